//! `ekko list`

use crate::api::{self, BackupList, ListFilter, MOST_LISTED, View};
use crate::cli::args::ListArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;
use crate::remote::{RemoteRepository, part};

pub(super) fn run(args: &ListArgs, context: &Context) -> Result<Outcome, CliError> {
    let document = if let Some(remote) = context.network()? {
        from_service(args, &remote)?
    } else {
        let name = args.name.as_ref().map(ToString::to_string);
        let filter = ListFilter { name, deleted: args.deleted, ..ListFilter::default() };
        api::list(&context.open()?, &View::everything(), &filter, context.progress())?
    };
    if let Some(name) = args.name.as_ref().filter(|_| document.backups.is_empty()) {
        let deleted = if args.deleted { "deleted " } else { "" };
        let message =
            format!("there is no {deleted}backup of {name} in {}", context.repository_name()?.display());
        return Err(CliError::new(ErrorKind::NotFound, message));
    }
    if args.deleted {
        return deleted(&document, context);
    }
    context.print(&document, |out| {
        let rows = document.backups.iter().map(|row| {
            let (time, size) = (format::time_text(&row.timestamp), format::bytes(row.size_of_disk));
            vec![row.backup.clone(), time, size, row.segments.to_string(), row.name.clone()]
        });
        format::table(out, &["BACKUP", "TIME", "SIZE OF DISK", "SEGMENTS", "NAME"], &[2, 3], rows)?;
        let mut suspects =
            document.backups.iter().filter_map(|row| Some((&row.backup, row.suspect.as_ref()?)));
        suspects.try_for_each(|(backup, why)| writeln!(out, "{backup} is suspect: {why}"))?;
        document.backups.iter().try_for_each(|row| {
            if let Some(why) = &row.inconsistent {
                writeln!(out, "{} is inconsistent: {why}", row.backup)?;
            }
            if row.unreadable_bytes > 0 {
                let bytes = format::bytes(row.unreadable_bytes);
                writeln!(out, "{} has zeros in place of {bytes} that could not be read", row.backup)?;
            }
            Ok(())
        })
    })?;
    Ok(context.outcome())
}

/// Lists deleted backups.
fn deleted(document: &BackupList, context: &Context) -> Result<Outcome, CliError> {
    context.print(document, |out| {
        let rows = document.backups.iter().map(|row| {
            let text = |time: &Option<String>| time.as_deref().map(format::time_text).unwrap_or_default();
            let (time, deleted, until) =
                (format::time_text(&row.timestamp), &row.deleted, &row.deleted_until);
            vec![row.backup.clone(), time, format::bytes(row.size_of_disk), text(deleted), text(until)]
        });
        format::table(out, &["BACKUP", "TIME", "SIZE OF DISK", "DELETED", "UNDELETE UNTIL"], &[2], rows)
    })?;
    Ok(context.outcome())
}

/// Asks for page after page.
fn from_service(args: &ListArgs, remote: &RemoteRepository) -> Result<BackupList, CliError> {
    let mut all = BackupList { backups: Vec::new(), next_marker: None };
    loop {
        let name = args.name.iter().map(|name| format!("&name={}", part(name.as_str())));
        let marker = all.next_marker.iter().map(|marker| format!("&marker={}", part(marker)));
        let deleted = args.deleted.then(|| "&deleted=true".to_owned());
        let query: String = name.chain(marker).chain(deleted).collect();
        let page: BackupList = remote.get(&format!("/v1/backups?limit={MOST_LISTED}{query}"))?;
        all.backups.extend(page.backups);
        all.next_marker = page.next_marker;
        if all.next_marker.is_none() {
            return Ok(all);
        }
    }
}
