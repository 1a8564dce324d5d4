//! `ekko rebuild`

use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::context::Context;
use crate::cli::error::CliError;

#[derive(Serialize)]
struct Document {
    rebuilt: bool,
}

pub(super) fn run(context: &Context) -> Result<Outcome, CliError> {
    let writer = context.open_writer(1, true)?;
    writer.close()?;
    context.print(&Document { rebuilt: true }, |_| Ok(()))?;
    Ok(context.outcome())
}
