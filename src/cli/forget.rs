//! `ekko forget`

use crate::api::{ForgetDocument, ForgetPlan, KeptBackup, View, is_rule};
use crate::cli::args::ForgetArgs;
use crate::cli::context::Context;
use crate::cli::delete::{agreed, change, done, is_unchanged, must_ask, planned, show, shown, undeletable};
use crate::cli::error::CliError;
use crate::cli::{Outcome, format, gc, over_service};
use crate::error::ErrorKind;
use crate::repository::{RepositoryError, SharedWriter};

pub(super) fn run(args: &ForgetArgs, context: &Context) -> Result<Outcome, CliError> {
    let policy = args.policy();
    if policy.is_empty() {
        let message = "nothing would be kept: say what is, with --keep-last, --keep-daily or another of them";
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    if let Some(remote) = context.service()? {
        return over_service::forget(args, &remote, context);
    }
    let plan = |writer: &SharedWriter| {
        let view = View::everything();
        ForgetPlan::of(writer, &view, &policy, args.name.as_ref(), args.allow_empty).map_err(|error| {
            match error {
                RepositoryError::NoSuchBackup { path, what } => {
                    let message = format!("there is no backup of {what} in {}", path.display());
                    CliError::new(ErrorKind::NotFound, message)
                }
                error => error.into(),
            }
        })
    };
    let (mut writer, ForgetPlan { mut kept, mut goes, mut refused }) = planned(context, plan)?;
    if !context.json {
        show_kept(&kept, context);
    }
    show(&goes, context);
    if !args.dry_run && must_ask(args.yes, context) && !goes.rows.is_empty() {
        // Nobody else waits for an answer.
        writer.close()?;
        if !agreed(goes.rows.len(), args.gc, context)? {
            return Ok(Outcome::Failed);
        }
        let (opened, again) = planned(context, plan)?;
        is_unchanged(&goes, &again.goes)?;
        writer = opened;
        ForgetPlan { kept, goes, refused } = again;
    }
    let keep_deleted_seconds = writer.repository().settings().keep_deleted.as_secs();
    let gc = change(&writer, &goes, args.dry_run, args.gc && refused.is_empty(), context)?;
    writer.close()?;
    let (deleted, freed_bytes) = (goes.rows, goes.freed_bytes);
    let document = ForgetDocument {
        dry_run: args.dry_run,
        kept,
        deleted,
        freed_bytes,
        keep_deleted_seconds,
        gc,
        refused,
        cancelled: false,
        plan: None,
    };
    let refused = self::refused(&document, args.gc, context);
    context.print(&document, |out| {
        let (kept, deleted) = (document.kept.len(), &document.deleted);
        writeln!(out, "{}, {kept} kept", done(deleted.len(), args.dry_run))?;
        undeletable(deleted, keep_deleted_seconds, args.dry_run || document.gc.is_some(), out)?;
        document.gc.iter().try_for_each(|gc| gc::describe(gc, out))
    })?;
    Ok(refused.unwrap_or_else(|| gc::outcome(document.gc.as_ref(), context)))
}

/// Reports the names that the rules would leave without a backup. Returns how the command ends if there are any.
pub(super) fn refused(document: &ForgetDocument, with_gc: bool, context: &Context) -> Option<Outcome> {
    for name in &document.refused {
        let what = format!(
            "nothing of {name} is deleted: the rules keep none of its backups; to delete all of them, add --allow-empty"
        );
        context.progress().failure(&what);
    }
    if with_gc && !document.dry_run && !document.is_complete() {
        let what =
            "no space was freed, because not everything was done: deleted backups can still be undeleted";
        context.progress().failure(what);
    }
    let mut reasons = document.kept.iter().flat_map(|kept| &kept.reasons);
    let rules_keep = reasons.any(|why| is_rule(why));
    let is_useless = document.deleted.is_empty() && !rules_keep;
    let outcome = if is_useless { Outcome::Failed } else { Outcome::Problems };
    (!document.refused.is_empty()).then_some(outcome)
}

/// Shows what is kept, and why.
pub(super) fn show_kept(kept: &[KeptBackup], context: &Context) {
    let lines = kept.iter().map(|kept| {
        let [backup, time] = shown(&kept.row);
        let flaw = kept.flaw.as_ref().map_or_else(String::new, |flaw| format!(" ({flaw}: takes no place)"));
        vec![backup, time, format!("{}{flaw}", kept.reasons.join(", "))]
    });
    let lines = format::table_lines(&["KEEPS", "TIME", "BECAUSE"], &[], lines);
    for line in lines {
        context.progress().line(&line);
    }
}
