//! `ekko forget`

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cli::args::ForgetArgs;
use crate::cli::context::Context;
use crate::cli::delete::{Row, change, show, would_free};
use crate::cli::error::CliError;
use crate::cli::{Outcome, format, gc};
use crate::error::ErrorKind;
use crate::manifest::ImageName;
use crate::repository::retention::{Candidate, RetentionPolicy};
use crate::repository::{BackupRecord, Backupset};

#[derive(Serialize)]
struct Document {
    dry_run: bool,
    kept: Vec<Kept>,
    deleted: Vec<Row>,
    freed_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gc: Option<gc::Document>,
}

#[derive(Serialize)]
struct Kept {
    #[serde(flatten)]
    row: Row,
    reasons: Vec<&'static str>,
}

pub(super) fn run(args: &ForgetArgs, context: &Context) -> Result<Outcome, CliError> {
    let policy = args.policy();
    if policy.is_empty() {
        let message = "nothing would be kept: say what is, with --keep-last, --keep-daily or another of them";
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    let writer = context.open_shared(1)?;
    let (sets, problems) = writer.repository().backupsets()?;
    // What a set that cannot be read holds would be missing from the plan.
    if let Some(problem) = problems.into_iter().next() {
        return Err(problem.into());
    }
    let (kept, deleted) = plan(&sets, &policy, args.name.as_ref());
    if let Some(name) = args.name.as_ref().filter(|_| kept.is_empty() && deleted.is_empty()) {
        let root = writer.repository().layout().root().display();
        return Err(CliError::new(ErrorKind::NotFound, format!("there is no backup of {name} in {root}")));
    }
    let freed_bytes = would_free(&writer, &deleted)?;
    if !context.json {
        let lines = kept.iter().map(|kept| {
            let [backup, time] = kept.row.shown();
            vec![backup, time, kept.reasons.join(", ")]
        });
        let mut text = Vec::new();
        format::table(&mut text, &["KEEPS", "TIME", "BECAUSE"], &[], lines)?;
        String::from_utf8_lossy(&text).lines().for_each(|line| context.progress().line(line));
    }
    show(&deleted, freed_bytes, args.dry_run, context)?;
    let gc = change(&writer, &deleted, args.dry_run, args.gc, context)?;
    writer.close()?;
    let document = Document { dry_run: args.dry_run, kept, deleted, freed_bytes, gc };
    context.print(&document, |out| {
        let (kept, deleted) = (document.kept.len(), document.deleted.len());
        let done = if args.dry_run { "would delete" } else { "deleted" };
        writeln!(out, "{done} {deleted} backups, {kept} are kept")?;
        document.gc.iter().try_for_each(|gc| gc::describe(gc, out))
    })?;
    Ok(gc::outcome(document.gc.as_ref(), context))
}

/// Divides the backups of each name into what is kept, and why, and what goes.
fn plan(sets: &[Backupset], policy: &RetentionPolicy, name: Option<&ImageName>) -> (Vec<Kept>, Vec<Row>) {
    let now = jiff::Timestamp::now();
    let mut names: BTreeMap<&ImageName, Vec<(&Backupset, &BackupRecord)>> = BTreeMap::new();
    for set in sets.iter().filter(|set| name.is_none_or(|name| set.name == *name)) {
        let backups = set.backups.iter().map(|backup| (set, backup));
        names.entry(&set.name).or_default().extend(backups);
    }
    let (mut kept, mut deleted) = (Vec::new(), Vec::new());
    for backups in names.into_values() {
        let candidates: Vec<_> = backups
            .iter()
            .map(|(_, backup)| Candidate {
                timestamp: backup.timestamp,
                order: backup.incremental.0,
                tags: &backup.tags,
                protected: backup.protection.holds(now),
            })
            .collect();
        for ((set, backup), reasons) in backups.into_iter().zip(policy.apply(&candidates)) {
            let row = Row::of(sets, set, backup);
            if reasons.is_empty() {
                deleted.push(row);
            } else {
                kept.push(Kept { row, reasons });
            }
        }
    }
    (kept, deleted)
}
