//! `ekko delete` and `ekko undelete`

use serde::Serialize;

use crate::cli::args::{DeleteArgs, UndeleteArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::machine::disks_of;
use crate::cli::{Outcome, format, gc};
use crate::error::ErrorKind;
use crate::repository::{
    BackupRecord, BackupSelector, Backupset, Changed, Deletion, GcOptions, Repository, RepositoryError,
    SharedWriter, Which,
};

/// A backup that goes or comes back.
#[derive(Serialize)]
pub(super) struct Row {
    backup: String,
    backupset: String,
    incremental: u32,
    timestamp: String,
    #[serde(skip)]
    shown_time: String,
    #[serde(skip)]
    pub(super) id: Deletion,
}

impl Row {
    pub(super) fn of(sets: &[Backupset], set: &Backupset, backup: &BackupRecord) -> Self {
        Self {
            backup: Repository::backup_id(sets, set, backup.incremental).to_string(),
            backupset: set.id.to_string(),
            incremental: backup.incremental.0,
            timestamp: backup.timestamp.to_string(),
            shown_time: format::time(backup.timestamp),
            id: Deletion { backupset: set.id, incremental: backup.incremental },
        }
    }

    /// Returns how a person sees it: its name and its time.
    pub(super) fn shown(&self) -> [String; 2] {
        [self.backup.clone(), self.shown_time.clone()]
    }
}

#[derive(Serialize)]
struct DeleteDocument {
    dry_run: bool,
    deleted: Vec<Row>,
    /// Nothing if a damaged manifest keeps it from being known.
    freed_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gc: Option<gc::Document>,
}

pub(super) fn delete(args: &DeleteArgs, context: &Context) -> Result<Outcome, CliError> {
    let writer = context.open_shared(1)?;
    let (sets, _) = writer.repository().backupsets()?;
    let mut rows: Vec<Row> = Vec::new();
    for selector in &args.backups {
        let found = writer.repository().find(&sets, selector)?;
        let mut all = vec![found];
        if args.machine {
            all.extend(disks_of(writer.repository(), &sets, found, context)?);
        }
        for (set, backup) in all {
            let row = Row::of(&sets, set, backup);
            if backup.protection.holds(jiff::Timestamp::now()) {
                return Err(RepositoryError::Protected { backup: row.backup }.into());
            }
            if rows.iter().all(|other| other.id != row.id) {
                rows.push(row);
            }
        }
    }
    let freed_bytes = would_free(&writer, &rows)?;
    show(&rows, freed_bytes, args.dry_run, context)?;
    let gc = change(&writer, &rows, args.dry_run, args.gc, context)?;
    writer.close()?;
    let document = DeleteDocument { dry_run: args.dry_run, deleted: rows, freed_bytes, gc };
    context.print(&document, |out| {
        match (args.dry_run, document.deleted.len()) {
            (true, number) => writeln!(out, "would delete {number} backups")?,
            (false, number) => writeln!(out, "deleted {number} backups")?,
        }
        document.gc.iter().try_for_each(|gc| gc::describe(gc, out))
    })?;
    Ok(gc::outcome(document.gc.as_ref(), context))
}

pub(super) fn would_free(writer: &SharedWriter, rows: &[Row]) -> Result<Option<u64>, CliError> {
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    Ok(writer.with(|writer| writer.would_free(&ids))?)
}

/// Shows what is about to go, before it goes.
pub(super) fn show(
    rows: &[Row],
    freed: Option<u64>,
    dry_run: bool,
    context: &Context,
) -> Result<(), CliError> {
    if context.json {
        return Ok(());
    }
    let lines = rows.iter().map(|row| row.shown().to_vec());
    let mut text = Vec::new();
    format::table(&mut text, &["DELETES", "TIME"], &[], lines)?;
    for line in String::from_utf8_lossy(&text).lines() {
        context.progress().line(line);
    }
    let would = if dry_run { "would be" } else { "is" };
    let line = match freed {
        Some(freed) => format!("{} {would} needed by no backup any longer", format::bytes(freed)),
        None => "a manifest is damaged: what becomes free cannot be known".to_owned(),
    };
    context.progress().line(&line);
    Ok(())
}

/// Deletes backups, one after the other, and collects the garbage if that was asked for; or does neither.
pub(super) fn change(
    writer: &SharedWriter,
    rows: &[Row],
    dry_run: bool,
    with_gc: bool,
    context: &Context,
) -> Result<Option<gc::Document>, CliError> {
    if dry_run {
        return Ok(None);
    }
    let replace = |changed: &Changed| changed.replace_index;
    for row in rows {
        writer.run_job(context.progress(), replace, |writer| writer.delete(row.id))?;
    }
    with_gc.then(|| gc::collect(writer, &GcOptions::default(), context)).transpose()
}

#[derive(Serialize)]
struct UndeleteDocument {
    undeleted: Vec<Row>,
}

pub(super) fn undelete(args: &UndeleteArgs, context: &Context) -> Result<Outcome, CliError> {
    let writer = context.open_shared(1)?;
    let (sets, _) = writer.repository().backupsets()?;
    let rows = args.backups.iter().map(|selector| find_deleted(&writer, &sets, selector));
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    for row in &rows {
        let replace = |changed: &Changed| changed.replace_index;
        writer.run_job(context.progress(), replace, |writer| writer.undelete(row.id))?;
    }
    writer.close()?;
    let document = UndeleteDocument { undeleted: rows };
    context.print(&document, |out| {
        document.undeleted.iter().try_for_each(|row| writeln!(out, "{} is there again", row.backup))
    })?;
    Ok(context.outcome())
}

/// Finds a deleted backup by the name that it had.
fn find_deleted(
    writer: &SharedWriter,
    sets: &[Backupset],
    selector: &BackupSelector,
) -> Result<Row, CliError> {
    let named = |set: &&Backupset| set.name.as_str() == selector.name || set.id.to_string() == selector.name;
    let mut found = sets.iter().filter(named).flat_map(|set| {
        let wanted = |record: &&BackupRecord| match selector.which {
            Which::Latest => true,
            Which::Number(number) => record.incremental == number,
        };
        set.deleted.iter().filter(wanted).map(move |record| (set, record))
    });
    let root = writer.repository().layout().root().display();
    let Some((set, record)) = found.next() else {
        let message = format!("there is no deleted backup {selector} in {root}");
        return Err(CliError::new(ErrorKind::NotFound, message));
    };
    if found.next().is_some() {
        let message = format!(
            "several deleted backups are meant by {selector}: name one as {}@NUMBER or UUID@NUMBER",
            selector.name
        );
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    Ok(Row::of(sets, set, record))
}
