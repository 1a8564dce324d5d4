//! `ekko list`

use serde::Serialize;

use crate::cli::args::ListArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;
use crate::progress::{Notice, Progress};
use crate::repository::{BackupRecord, Backupset, Repository};

#[derive(Serialize)]
struct Document {
    backups: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    backup: String,
    name: String,
    backupset: String,
    incremental: u32,
    timestamp: String,
    size_of_disk: u64,
    segments: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspect: Option<String>,
    #[serde(skip)]
    shown_time: String,
}

pub(super) fn run(args: &ListArgs, context: &Context) -> Result<Outcome, CliError> {
    let repository = context.open()?;
    let (sets, problems) = repository.backupsets()?;
    for problem in problems {
        context.progress().notice(Notice::Problem { kind: problem.kind(), what: problem.to_string() });
    }
    let wanted = |set: &&Backupset| args.name.as_ref().is_none_or(|name| set.name == *name);
    let row = |set: &Backupset, backup: &BackupRecord| Row {
        backup: Repository::backup_id(&sets, set, backup.incremental).to_string(),
        name: set.name.to_string(),
        backupset: set.id.to_string(),
        incremental: backup.incremental.0,
        timestamp: backup.timestamp.to_string(),
        size_of_disk: backup.size_of_disk,
        segments: backup.segments,
        suspect: backup.suspect.clone(),
        shown_time: format::time(backup.timestamp),
    };
    let backups: Vec<_> = sets
        .iter()
        .filter(wanted)
        .flat_map(|set| set.backups.iter().map(move |backup| row(set, backup)))
        .collect();
    if let Some(name) = args.name.as_ref().filter(|_| backups.is_empty()) {
        let message = format!("there is no backup of {name} in {}", repository.layout().root().display());
        return Err(CliError::new(ErrorKind::NotFound, message));
    }
    let document = Document { backups };
    context.print(&document, |out| {
        let rows = document.backups.iter().map(|row| {
            let size = format::bytes(row.size_of_disk);
            vec![row.backup.clone(), row.shown_time.clone(), size, row.segments.to_string(), row.name.clone()]
        });
        format::table(out, &["BACKUP", "TIME", "SIZE OF DISK", "SEGMENTS", "NAME"], &[2, 3], rows)?;
        let mut suspects =
            document.backups.iter().filter_map(|row| Some((&row.backup, row.suspect.as_ref()?)));
        suspects.try_for_each(|(backup, why)| writeln!(out, "{backup} is suspect: {why}"))
    })?;
    Ok(context.outcome())
}
