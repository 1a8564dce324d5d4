//! `ekko stats`

use std::io;

use wildmatch::WildMatch;

use crate::api::{self, Statistics};
use crate::cli::args::StatsArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::terminal::Lines;
use crate::cli::{Outcome, format};
use crate::repository::{Hint, RepositoryError};

pub(super) fn run(args: &StatsArgs, context: &Context) -> Result<Outcome, CliError> {
    let mut document: Statistics = match context.network()? {
        Some(remote) => remote.get("/v1/statistics")?,
        None => api::statistics(&context.open()?, context.progress())?,
    };
    let patterns: Vec<_> = args.names.iter().map(|name| (name, WildMatch::new(name))).collect();
    for (name, pattern) in &patterns {
        if !document.names.iter().any(|row| pattern.matches(&row.name)) {
            let hint = Hint::among(name, document.names.iter().map(|row| row.name.as_str()));
            return Err(RepositoryError::UnknownName { name: (*name).clone(), hint }.into());
        }
    }
    let is_named = |name: &str| patterns.is_empty() || patterns.iter().any(|(_, it)| it.matches(name));
    document.names.retain(|row| is_named(&row.name));
    let by_name = args.by_name || !args.names.is_empty();
    context.print(&document, |out| if by_name { table(&document, out) } else { describe(&document, out) })?;
    Ok(context.outcome())
}

/// Writes a line for each name, and which numbers mean what.
fn table(document: &Statistics, out: &mut Lines) -> io::Result<()> {
    let header = ["NAME", "BACKUPS", "SIZE", "USED", "REFERENCED", "ADDED", "EXCLUSIVE"];
    let rows = document.names.iter().map(|row| {
        let bytes =
            [row.size_of_disk, row.used_bytes, row.referenced_bytes, row.added_bytes, row.exclusive_bytes];
        let mut cells = vec![row.name.clone(), row.backups.to_string()];
        cells.extend(bytes.map(format::bytes));
        cells
    });
    format::table(out, &header, &[1, 2, 3, 4, 5, 6], rows)?;
    writeln!(
        out,
        "EXCLUSIVE: stored bytes that no other name needs; deleting all backups of the name frees them"
    )
}

fn describe(document: &Statistics, out: &mut Lines) -> io::Result<()> {
    let Statistics { backups, backupsets, segments, .. } = document;
    let stored = format::bytes(document.stored_bytes);
    format::pairs(
        out,
        &[
            ("backups", format!("{backups} in {backupsets} backupsets")),
            ("referenced", format!("{} over all backups", format::bytes(document.referenced_bytes))),
            ("unique", format!("{} once each", format::bytes(document.unique_bytes))),
            ("stored", format!("{stored} encoded, in {segments} segments")),
            ("saved", ratio(document)),
            ("garbage", format!("{} of it in no backup", format::bytes(document.garbage_bytes))),
            ("on disk", on_disk(document)),
            ("free", format::bytes(document.free_bytes)),
        ],
    )
}

/// Says how much larger the backups are than what they take.
fn ratio(document: &Statistics) -> String {
    let named = document.stored_bytes.saturating_sub(document.garbage_bytes);
    match document.referenced_bytes.saturating_mul(10).checked_div(named) {
        None | Some(0) => String::new(),
        Some(tenths) => format!("{}.{} : 1, by deduplication and compression", tenths / 10, tenths % 10),
    }
}

fn on_disk(document: &Statistics) -> String {
    let all = format::bytes(document.disk_bytes);
    match document.reserve_bytes {
        0 => all,
        reserve => format!("{all}, of which {} are the reserve for a full disk", format::bytes(reserve)),
    }
}
