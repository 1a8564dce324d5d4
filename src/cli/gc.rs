//! `ekko gc`

use std::io;
use std::time::Duration;

use crate::api::{GcDocument, collect};
use crate::cli::args::GcArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::terminal::Lines;
use crate::cli::{Outcome, format, over_service};
use crate::repository::GcOptions;

pub(super) fn run(args: &GcArgs, context: &Context) -> Result<Outcome, CliError> {
    if let Some(remote) = context.service()? {
        return over_service::gc(args, &remote, context);
    }
    let writer = context.open_with_reserve(1)?;
    let options = GcOptions {
        dry_run: args.dry_run,
        now: args.now.then_some(""),
        accept_lost: args.accept_lost,
        keep_unfinished: args.keep_unfinished.and_then(|span| Duration::try_from(span).ok()),
        jobs: args.jobs.number(),
    };
    let document = collect(&writer, &options, context.progress())?;
    writer.close()?;
    context.print(&document, |out| describe(&document, out))?;
    if args.accept_lost && document.problems.is_empty() {
        // The opening has named what is given up now.
        return Ok(Outcome::Done);
    }
    Ok(outcome(Some(&document), context))
}

/// Says what a collection did.
pub(super) fn describe(document: &GcDocument, out: &mut Lines) -> io::Result<()> {
    for problem in &document.problems {
        writeln!(out, "problem: {problem}")?;
    }
    let GcDocument { freed_segments, purged_backups, unfinished_segments, .. } = document;
    let would = if document.dry_run { "would be freed" } else { "freed" };
    let freed = format::bytes(document.freed_bytes);
    match (freed_segments, document.dry_run) {
        (0, true) => writeln!(out, "nothing would be freed")?,
        (0, false) => writeln!(out, "nothing to free")?,
        (number, _) => writeln!(out, "{freed} {would} ({})", format::count(*number, "segment"))?,
    }
    if *purged_backups > 0 {
        let can = if document.dry_run { "could then no longer" } else { "can no longer" };
        writeln!(out, "{} {can} be undeleted", format::count(*purged_backups, "deleted backup"))?;
    }
    if let Some(until) = &document.kept_until {
        let (backups, bytes) = (format::count(document.kept_backups, "deleted backup"), document.kept_bytes);
        let (bytes, until) = (format::bytes(bytes), format::time_text(until));
        let (hold, them) = if document.kept_backups == 1 { ("holds", "it") } else { ("hold", "them") };
        writeln!(
            out,
            "{backups} {hold} {bytes} until {until} at the earliest; \"ekko gc --now\" frees this, \"ekko undelete\" restores {them}"
        )?;
    }
    if document.moved_bytes > 0 {
        let moved = format::bytes(document.moved_bytes);
        writeln!(out, "{moved} moved out of packs in which little lived")?;
    }
    if *unfinished_segments > 0 {
        let bytes = format::bytes(document.unfinished_bytes);
        writeln!(
            out,
            "{unfinished_segments} segments ({bytes}) of unfinished backups are kept for their next run"
        )?;
    }
    Ok(())
}

/// Returns how a command ended that collected garbage, if it did.
pub(super) fn outcome(gc: Option<&GcDocument>, context: &Context) -> Outcome {
    if gc.is_some_and(|gc| !gc.problems.is_empty()) { Outcome::Problems } else { context.outcome() }
}
