//! The command line: the only place that prints, all of it through `terminal`.
//!
//! One file a command. Owns arguments, tables, JSON, progress bars and exit codes: 0 done, 1 failed,
//! 2 wrong usage, 3 done but problems were found.

mod address;
mod args;
mod backup;
mod benchmark;
mod check;
mod completions;
mod context;
mod delete;
mod diff;
mod error;
mod forget;
mod format;
mod gc;
mod hints;
mod init;
mod limits;
mod list;
mod machine;
mod manifest;
mod mounts;
mod over_service;
mod progress;
mod protect;
mod rebuild;
mod restore;
mod restored;
mod serve;
mod show;
mod signals;
mod stats;
mod terminal;
mod token;

use std::process::ExitCode;

use clap::Parser;

pub use args::Cli;

use crate::cli::args::Command;
use crate::cli::context::Context;
use crate::cli::error::{CliError, exit};
use crate::cli::terminal::Log;
use crate::service::end_process;
use crate::store::{in_guarded_call, when_index_is_stuck};

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Exit 0.
    Done,
    /// Exit 3.
    Problems,
    /// Exit 1: the command has told why.
    Failed,
}

impl Outcome {
    fn code(self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::Problems => ExitCode::from(exit::PROBLEMS),
            Self::Failed => ExitCode::from(exit::FAILED),
        }
    }
}

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    tell_of_panics(Log::Text);
    // This process cannot use an index again; what it has begun is undone or gone on from by the next one.
    when_index_is_stuck(end_process);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version end with code 0, wrong usage with code 2.
            terminal::usage(&error);
            let arguments: Vec<_> = std::env::args_os().collect();
            if let Some(hint) = hints::hint(&error, &arguments) {
                terminal::say(format_args!("ekko: {hint}"));
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let (log, level) = match &cli.command {
        Command::Serve(args) if args.log_json => (Log::Json, tracing::Level::INFO),
        Command::Serve(_) => (Log::Text, tracing::Level::INFO),
        _ => (Log::Text, tracing::Level::WARN),
    };
    tell_of_panics(log);
    let context = Context::new(&cli.global, log);
    // Before anything can be told.
    if matches!(&cli.command, Command::Backup(args) if args.json_progress) {
        context.progress().emit_json();
    }
    context.start_log(level);
    let prepared = match signals::meaning(&cli.command) {
        Some(meaning) => signals::tell_of_signals(meaning, &context),
        None => Ok(()),
    };
    match prepared.and_then(|()| run(cli.command, &context)) {
        // A program that wanted a document did not get it. A person who saw enough of a table got what they wanted.
        Ok(Outcome::Done) if context.json && context.is_reader_gone() => {
            context.fail(&CliError::BrokenPipe);
            ExitCode::from(CliError::BrokenPipe.exit_code())
        }
        Ok(outcome) => outcome.code(),
        Err(error) => {
            context.fail(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command, context: &Context) -> Result<Outcome, CliError> {
    match command {
        Command::Init(args) => init::run(&args, context),
        Command::Backup(args) => backup::run(&args, context),
        Command::Restore(args) if args.machine => machine::restore(&args, context),
        Command::Restore(args) => restore::run(&args, context),
        Command::List(args) => list::run(&args, context),
        Command::Show(args) => show::run(&args, context),
        Command::Diff(args) => diff::run(&args, context),
        Command::Delete(args) => delete::delete(&args, context),
        Command::Undelete(args) => delete::undelete(&args, context),
        Command::Forget(args) => forget::run(&args, context),
        Command::Gc(args) => gc::run(&args, context),
        Command::Protect(args) => protect::protect(&args, context),
        Command::Unprotect(args) => protect::unprotect(&args, context),
        Command::Rename(args) => protect::rename(&args, context),
        Command::Retire(args) => protect::retire(&args, context),
        Command::Check(args) => check::check(&args, context),
        Command::Verify(args) => check::verify(&args, context),
        Command::Status(args) => check::status(&args, context),
        Command::Serve(args) => serve::run(&args, context),
        Command::Token(command) => token::run(&command, context),
        Command::Stats(args) => stats::run(&args, context),
        Command::Benchmark(args) => benchmark::run(&args, context),
        Command::Rebuild => rebuild::run(context),
        Command::Manifest(args) => manifest::run(&args, context),
        Command::Completions(args) => completions::completions(&args, context),
        Command::Man(args) => completions::man(&args, context),
    }
}

/// Says how panics are told. One inside sled is caught and answered with a new index; nobody needs to see it.
fn tell_of_panics(log: Log) {
    std::panic::set_hook(Box::new(move |panic| {
        if !in_guarded_call() {
            terminal::panicked(panic, log);
        }
    }));
}
