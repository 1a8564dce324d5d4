//! The `ekko` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ekko::cli::main()
}
