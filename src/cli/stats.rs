//! `ekko stats`

use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format};
use crate::repository::RepositoryStats;

#[derive(Serialize)]
struct Document {
    backups: u64,
    backupsets: u64,
    segments: u64,
    referenced_bytes: u64,
    unique_bytes: u64,
    stored_bytes: u64,
    garbage_bytes: u64,
    disk_bytes: u64,
}

pub(super) fn run(context: &Context) -> Result<Outcome, CliError> {
    let stats = context.open()?.statistics(context.progress())?;
    let RepositoryStats {
        backups,
        backupsets,
        segments,
        referenced_bytes,
        unique_bytes,
        stored_bytes,
        garbage_bytes,
        disk_bytes,
    } = stats;
    let document = Document {
        backups,
        backupsets,
        segments,
        referenced_bytes,
        unique_bytes,
        stored_bytes,
        garbage_bytes,
        disk_bytes,
    };
    context.print(&document, |out| {
        format::pairs(
            out,
            &[
                ("backups", format!("{backups} in {backupsets} backupsets")),
                ("referenced", format!("{} over all backups", format::bytes(referenced_bytes))),
                ("unique", format!("{} once each", format::bytes(unique_bytes))),
                ("stored", format!("{} encoded, in {segments} segments", format::bytes(stored_bytes))),
                ("garbage", format!("{} of it in no backup", format::bytes(garbage_bytes))),
                ("on disk", format::bytes(disk_bytes)),
            ],
        )
    })?;
    Ok(context.outcome())
}
