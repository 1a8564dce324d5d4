//! `ekko delete` and `ekko undelete`

use std::io;
use std::time::Duration;

use crate::api::{self, BackupRef, DeleteDocument, DeletionPlan, GcDocument, View};
use crate::cli::args::{DeleteArgs, UndeleteArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::terminal::{self, Lines};
use crate::cli::{Outcome, format, gc, over_service};
use crate::error::ErrorKind;
use crate::repository::{GcOptions, SharedWriter};

pub(super) fn delete(args: &DeleteArgs, context: &Context) -> Result<Outcome, CliError> {
    for range in &args.backups {
        range.check()?;
    }
    if let Some(remote) = context.service()? {
        return over_service::delete(args, &remote, context);
    }
    let plan = |writer: &SharedWriter| {
        Ok(DeletionPlan::of(writer, &View::everything(), &args.backups, args.machine)?)
    };
    let (mut writer, mut plan_now) = planned(context, plan)?;
    show(&plan_now, context);
    if !args.dry_run && must_ask(args.yes, context) && !plan_now.rows.is_empty() {
        // Nobody else waits for an answer.
        writer.close()?;
        if !agreed(plan_now.rows.len(), args.gc, context)? {
            return Ok(Outcome::Failed);
        }
        let (opened, again) = planned(context, plan)?;
        is_unchanged(&plan_now, &again)?;
        (writer, plan_now) = (opened, again);
    }
    let plan = plan_now;
    let keep_deleted_seconds = writer.repository().settings().keep_deleted.as_secs();
    let gc = change(&writer, &plan, args.dry_run, args.gc, context)?;
    writer.close()?;
    let DeletionPlan { rows, freed_bytes, .. } = plan;
    let document =
        DeleteDocument { dry_run: args.dry_run, deleted: rows, freed_bytes, keep_deleted_seconds, gc };
    context.print(&document, |out| {
        writeln!(out, "{}", done(document.deleted.len(), args.dry_run))?;
        let collected = document.gc.is_some();
        undeletable(&document.deleted, keep_deleted_seconds, args.dry_run || collected, out)?;
        document.gc.iter().try_for_each(|gc| gc::describe(gc, out))
    })?;
    Ok(gc::outcome(document.gc.as_ref(), context))
}

/// Opens the repository and makes a plan. The repository is closed in order if there is none.
pub(super) fn planned<T>(
    context: &Context,
    plan: impl Fn(&SharedWriter) -> Result<T, CliError>,
) -> Result<(SharedWriter, T), CliError> {
    let writer = context.open_with_reserve(1)?;
    match plan(&writer) {
        Ok(plan) => Ok((writer, plan)),
        Err(error) => {
            writer.close()?;
            Err(error)
        }
    }
}

/// Makes sure that what was shown is what goes.
///
/// # Errors
/// It is not.
pub(super) fn is_unchanged(shown: &DeletionPlan, now: &DeletionPlan) -> Result<(), CliError> {
    if shown.rows == now.rows {
        return Ok(());
    }
    let message =
        "nothing was deleted: the backups have changed since they were shown; run the command again";
    Err(CliError::new(ErrorKind::Busy, message))
}

/// Says whether a person is asked before backups are deleted.
pub(super) fn must_ask(yes: bool, context: &Context) -> bool {
    !yes && !context.json && terminal::can_ask()
}

/// Asks whether so many backups may be deleted.
pub(super) fn agreed(backups: usize, with_gc: bool, context: &Context) -> Result<bool, CliError> {
    let gc = if with_gc { " and free the data of all deleted backups now" } else { "" };
    let agrees = terminal::agrees(&format!("Delete {}{gc}?", format::count(backups as u64, "backup")))?;
    if !agrees {
        context.progress().failure("nothing was deleted");
    }
    Ok(agrees)
}

/// Returns what was deleted, in words.
pub(super) fn done(backups: usize, dry_run: bool) -> String {
    let done = if dry_run { "would delete" } else { "deleted" };
    format!("{done} {}", format::count(backups as u64, "backup"))
}

/// Says how what was deleted comes back.
pub(super) fn undeletable(
    deleted: &[BackupRef],
    keep_seconds: u64,
    is_gone: bool,
    out: &mut Lines,
) -> io::Result<()> {
    let Some(first) = deleted.first().filter(|_| !is_gone && keep_seconds > 0) else { return Ok(()) };
    let (backup, them) = (&first.backup, if deleted.len() == 1 { "it" } else { "them" });
    let more = if deleted.len() == 1 { "" } else { " ..." };
    let period = format::span(Duration::from_secs(keep_seconds));
    writeln!(
        out,
        "\"ekko undelete {backup}{more}\" restores {them} for {period}, unless a collection with --now or --gc runs; \"ekko gc --now\" \
         frees the space at once"
    )
}

/// Returns how a person sees a backup: its name and its time.
pub(super) fn shown(row: &BackupRef) -> [String; 2] {
    [row.backup.clone(), format::time_text(&row.timestamp)]
}

/// Shows what is about to go, before it goes.
pub(super) fn show(plan: &DeletionPlan, context: &Context) {
    if context.json {
        return;
    }
    let lines = plan.rows.iter().map(|row| shown(row).to_vec());
    for line in format::table_lines(&["DELETES", "TIME"], &[], lines) {
        context.progress().line(&line);
    }
    let line = match plan.freed_bytes {
        Some(freed) => format!("only they need {}", format::bytes(freed)),
        None => "cannot tell how much space they alone need: a manifest is damaged".to_owned(),
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
    let options = GcOptions { now: Some(""), ..GcOptions::default() };
    let collect = || api::collect(writer, &options, context.progress());
    Ok(with_gc.then(collect).transpose()?)
}

pub(super) fn undelete(args: &UndeleteArgs, context: &Context) -> Result<Outcome, CliError> {
    let (document, was_lost) = if let Some(remote) = context.service()? {
        over_service::undelete(args, &remote)?
    } else {
        let writer = context.open_with_reserve(1)?;
        let document = api::undelete(&writer, &View::everything(), &args.backups, context.progress())?;
        writer.close()?;
        (document, false)
    };
    let why = if was_lost {
        "a request whose answer was lost has undeleted it, or it was not deleted before"
    } else {
        "there is nothing to undelete"
    };
    context.print(&document, |out| {
        document.undeleted.iter().try_for_each(|row| writeln!(out, "{} was undeleted", row.backup))?;
        document.not_deleted.iter().try_for_each(|row| writeln!(out, "{} is not deleted: {why}", row.backup))
    })?;
    for BackupRef { backup, .. } in &document.incomplete {
        let what = format!("{backup} lacks a disk whose backup is gone; \"ekko show {backup}\" names it");
        context.progress().failure(&what);
    }
    Ok(if document.incomplete.is_empty() { context.outcome() } else { Outcome::Problems })
}
