//! `ekko stats`

use crate::api;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format};

pub(super) fn run(context: &Context) -> Result<Outcome, CliError> {
    let document = match context.network()? {
        Some(remote) => remote.get("/v1/statistics")?,
        None => api::statistics(&context.open()?, context.progress())?,
    };
    context.print(&document, |out| {
        let stored = format::bytes(document.stored_bytes);
        format::pairs(
            out,
            &[
                ("backups", format!("{} in {} backupsets", document.backups, document.backupsets)),
                ("referenced", format!("{} over all backups", format::bytes(document.referenced_bytes))),
                ("unique", format!("{} once each", format::bytes(document.unique_bytes))),
                ("stored", format!("{stored} encoded, in {} segments", document.segments)),
                ("garbage", format!("{} of it in no backup", format::bytes(document.garbage_bytes))),
                ("on disk", format::bytes(document.disk_bytes)),
            ],
        )
    })?;
    Ok(context.outcome())
}
