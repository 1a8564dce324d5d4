//! `ekko stats`

use std::io;

use crate::api::{self, Statistics};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::terminal::Lines;
use crate::cli::{Outcome, format};

pub(super) fn run(context: &Context) -> Result<Outcome, CliError> {
    let document: Statistics = match context.network()? {
        Some(remote) => remote.get("/v1/statistics")?,
        None => api::statistics(&context.open()?, context.progress())?,
    };
    context.print(&document, |out| describe(&document, out))?;
    Ok(context.outcome())
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
