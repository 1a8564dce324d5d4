//! `ekko completions` and `ekko man`

use std::io::{self, Write};

use clap::CommandFactory;
use serde::Serialize;

use crate::cli::args::{Cli, CompletionsArgs, ManArgs};
use crate::cli::context::Context;
use crate::cli::error::{CliError, exit};
use crate::cli::{Outcome, terminal};
use crate::error::ErrorKind;

#[derive(Serialize)]
struct Text {
    text: String,
}

#[derive(Serialize)]
struct Files {
    files: Vec<String>,
}

pub(super) fn completions(args: &CompletionsArgs, context: &Context) -> Result<Outcome, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ekko", &mut script);
    print_text(&script, context)
}

fn print_text(text: &[u8], context: &Context) -> Result<Outcome, CliError> {
    if context.json {
        let document = Text { text: String::from_utf8_lossy(text).into_owned() };
        context.print(&document, |_| Ok(()))?;
    } else {
        terminal::program_text(text)?;
    }
    Ok(Outcome::Done)
}

/// Returns the section of a man page that lists the exit codes.
fn exit_status() -> String {
    let code = |(code, meaning): &(u8, &str)| format!(".TP\n{code}\n{meaning}\n");
    format!(".SH \"EXIT STATUS\"\n{}", exit::ALL.iter().map(code).collect::<String>())
}

pub(super) fn man(args: &ManArgs, context: &Context) -> Result<Outcome, CliError> {
    let Some(folder) = &args.folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        page.extend(exit_status().into_bytes());
        return print_text(&page, context);
    };
    let failed = |error: io::Error| {
        CliError::new(ErrorKind::Io, format!("cannot write manual pages to {}: {error}", folder.display()))
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), folder).map_err(failed)?;
    let names = std::fs::read_dir(folder).map_err(failed)?.flatten();
    let mut files: Vec<_> =
        names.map(|entry| entry.path().display().to_string()).filter(|path| path.ends_with(".1")).collect();
    files.sort_unstable();
    for file in &files {
        let mut page = std::fs::OpenOptions::new().append(true).open(file).map_err(failed)?;
        page.write_all(exit_status().as_bytes()).map_err(failed)?;
    }
    let document = Files { files };
    context.print(&document, |out| document.files.iter().try_for_each(|file| writeln!(out, "{file}")))?;
    Ok(Outcome::Done)
}
