//! What helps somebody whose command line is wrong, beyond what its parser says.

use std::ffi::OsString;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::args::Cli;

/// The words that other backup tools have, and Ekko's.
const ELSEWHERE: [(&str, &str); 14] = [
    ("prune", "\"ekko forget\" deletes old backups by rules, and \"ekko gc\" frees their space"),
    ("compact", "\"ekko gc\" frees space"),
    ("snapshots", "\"ekko list\" lists backups"),
    ("snapshot", "\"ekko backup\" makes a backup, and \"ekko list\" lists them"),
    ("ls", "\"ekko list\" lists backups"),
    ("create", "\"ekko init\" creates a repository, and \"ekko backup\" makes a backup"),
    ("rm", "\"ekko delete\" deletes backups"),
    ("remove", "\"ekko delete\" deletes backups"),
    ("info", "\"ekko show\" shows a backup, and \"ekko stats\" the repository"),
    ("extract", "\"ekko restore\" restores a backup"),
    ("repair", "\"ekko check --repair\" repairs a repository"),
    (
        "mount",
        "Ekko cannot mount backups: \"ekko restore\" restores a disk or, with --offset and --length, a part of it",
    ),
    ("copy", "Ekko cannot copy backups to another repository yet"),
    ("sync", "Ekko cannot copy backups to another repository yet"),
];

/// How alike a word must be to a command to be meant for it.
const ALIKE: f64 = 0.6;

/// Returns what to type instead; nothing if what the parser says is enough.
pub(super) fn hint(error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    let value = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = value(ContextKind::InvalidSubcommand)?;
            let known = ELSEWHERE.iter().find(|(other, _)| *other == word);
            known.map(|(_, hint)| (*hint).to_owned()).or_else(|| nearest(error, word))
        }
        ErrorKind::UnknownArgument => {
            let argument = value(ContextKind::InvalidArg)?;
            if argument == "--dry-run" {
                return Some(
                    "this command has no --dry-run; \"delete\", \"forget\" and \"gc\" have one".to_owned(),
                );
            }
            let follows = |pair: &[OsString]| matches!(pair, [option, value] if option == "--read-data" && value.to_str() == Some(argument));
            arguments
                .windows(2)
                .any(follows)
                .then(|| format!("write --read-data={argument}, with an equals sign"))
        }
        _ => None,
    }
}

/// Returns the command that is most like a word, if the parser names none.
fn nearest(error: &clap::Error, word: &str) -> Option<String> {
    if error.get(ContextKind::SuggestedSubcommand).is_some() {
        return None;
    }
    let command = Cli::command();
    let names = command.get_subcommands().map(clap::Command::get_name);
    let alike = names.map(|name| (strsim::normalized_damerau_levenshtein(word, name), name));
    let best = alike.filter(|(alike, _)| *alike >= ALIKE).max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, name)| format!("did you mean \"{name}\"?"))
}
