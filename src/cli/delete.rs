//! `ekko delete` and `ekko undelete`

use serde::Serialize;

use crate::api::{self, BackupRef, DeleteDocument, DeletionPlan, GcDocument, View};
use crate::cli::args::{DeleteArgs, UndeleteArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::machine::disks_of;
use crate::cli::{Outcome, format, gc, over_service};
use crate::error::ErrorKind;
use crate::repository::{
    Addressed, BackupRecord, BackupSelector, Backupset, Changed, Deletion, GcOptions, Repository,
    SharedWriter, Which,
};

pub(super) fn delete(args: &DeleteArgs, context: &Context) -> Result<Outcome, CliError> {
    let backups = if args.machine {
        of_machines(&args.backups, &context.open()?, context)?
    } else {
        args.backups.clone()
    };
    if let Some(remote) = context.service()? {
        return over_service::delete(args, &backups, &remote, context);
    }
    let writer = context.open_shared(1)?;
    let plan = DeletionPlan::of(&writer, &View::everything(), &backups)?;
    show(&plan, args.dry_run, context);
    let gc = change(&writer, &plan, args.dry_run, args.gc, context)?;
    writer.close()?;
    let DeletionPlan { rows, freed_bytes, .. } = plan;
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

/// Returns how a person sees a backup: its name and its time.
pub(super) fn shown(row: &BackupRef) -> [String; 2] {
    [row.backup.clone(), format::time_text(&row.timestamp)]
}

/// Shows what is about to go, before it goes.
pub(super) fn show(plan: &DeletionPlan, dry_run: bool, context: &Context) {
    if context.json {
        return;
    }
    let lines = plan.rows.iter().map(|row| shown(row).to_vec());
    for line in format::table_lines(&["DELETES", "TIME"], &[], lines) {
        context.progress().line(&line);
    }
    let would = if dry_run { "would be" } else { "is" };
    let line = match plan.freed_bytes {
        Some(freed) => format!("{} {would} needed by no backup any longer", format::bytes(freed)),
        None => "a manifest is damaged: what becomes free cannot be known".to_owned(),
    };
    context.progress().line(&line);
}

/// Deletes backups, one after the other, and collects the garbage if that was asked for; or does neither.
pub(super) fn change(
    writer: &SharedWriter,
    plan: &DeletionPlan,
    dry_run: bool,
    with_gc: bool,
    context: &Context,
) -> Result<Option<GcDocument>, CliError> {
    if dry_run {
        return Ok(None);
    }
    plan.apply(writer, context.progress())?;
    let collect = || api::collect(writer, &GcOptions::default(), context.progress());
    Ok(with_gc.then(collect).transpose()?)
}

#[derive(Serialize)]
struct UndeleteDocument {
    undeleted: Vec<BackupRef>,
}

pub(super) fn undelete(args: &UndeleteArgs, context: &Context) -> Result<Outcome, CliError> {
    let writer = context.open_shared(1)?;
    let (sets, _) = writer.repository().backupsets()?;
    let addressed = Addressed::of(&sets);
    let rows = args.backups.iter().map(|selector| find_deleted(&writer, &sets, &addressed, selector));
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    for (_, id) in &rows {
        let replace = |changed: &Changed| changed.replace_index;
        writer.run_job(context.progress(), replace, |writer| writer.undelete(*id))?;
    }
    writer.close()?;
    let document = UndeleteDocument { undeleted: rows.into_iter().map(|(row, _)| row).collect() };
    context.print(&document, |out| {
        document.undeleted.iter().try_for_each(|row| writeln!(out, "{} is there again", row.backup))
    })?;
    Ok(context.outcome())
}

/// Finds a deleted backup by the name that it had.
fn find_deleted(
    writer: &SharedWriter,
    sets: &[Backupset],
    addressed: &Addressed,
    selector: &BackupSelector,
) -> Result<(BackupRef, Deletion), CliError> {
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
    let deletion = Deletion { backupset: set.id, incremental: record.incremental };
    Ok((BackupRef::of(&View::everything(), addressed, set, record), deletion))
}

/// Names the backups that moments of machines consist of, exactly: what `latest` means is looked up once.
///
/// Each moment comes after its disks. It lists them, so while it is there, the same command finishes a deletion that was cut short.
fn of_machines(
    moments: &[BackupSelector],
    repository: &Repository,
    context: &Context,
) -> Result<Vec<BackupSelector>, CliError> {
    let (sets, _) = repository.backupsets()?;
    let mut backups = Vec::new();
    for moment in moments {
        let found = repository.find(&sets, moment)?;
        let disks = disks_of(repository, &sets, found, context)?;
        backups.extend(disks.into_iter().chain([found]).map(|(set, backup)| BackupSelector {
            name: set.id.to_string(),
            which: Which::Number(backup.incremental),
        }));
    }
    Ok(backups)
}
