//! `ekko check`, `ekko verify` and `ekko status`

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Serialize;

use crate::api::{ByteRange, CheckDocument, DamagedRow, FailureRow, StatusRow, View, status_of};
use crate::check::{CheckOptions, ReadData, StatusOptions, VerifyOptions, VerifySummary, check_with_index};
use crate::cli::args::{CheckArgs, StatusArgs, VerifyArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format, over_service};
use crate::error::ErrorKind;
use crate::image::{Reading, open_image};
use crate::progress::{Notice, Progress};
use crate::repository::{BackupId, RepositoryError, SharedWriter};

pub(super) fn check(args: &CheckArgs, context: &Context) -> Result<Outcome, CliError> {
    if let Some(remote) = context.service()? {
        return over_service::check(args, &remote, context);
    }
    let read_data = match args.read_data {
        None => ReadData::None,
        Some(percent) if percent >= 100.0 => ReadData::All,
        Some(percent) => ReadData::Percent(percent),
    };
    let options = CheckOptions { read_data, jobs: args.jobs.number() };
    let alone = |kind: ErrorKind| matches!(kind, ErrorKind::Busy | ErrorKind::Io | ErrorKind::Unsupported);
    let summary = match context.try_writer(1)? {
        Ok(writer) => {
            let writer = SharedWriter::new(writer);
            let summary = check_with_index(&writer, &options, args.repair, context.progress())?;
            writer.close()?;
            summary
        }
        // Where nothing can be written, or somebody else writes, what is true can be checked all the same.
        Err(error)
            if args.repair || !(alone(error.kind()) || matches!(error, RepositoryError::Settings { .. })) =>
        {
            return Err(error.into());
        }
        Err(error) => {
            context.progress().line(&format!("the index is not compared: {error}"));
            crate::check::check(&context.open()?, &options, context.progress())?
        }
    };
    tell(&CheckDocument::from(summary), args.read_data.is_some(), context)
}

/// Names backups, those of a disk together: "web@0-7, db@3 (9 backups of 2 disks)".
fn affected(backups: &[String]) -> String {
    const MOST: usize = 10;
    let mut names: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (name, number) in backups.iter().filter_map(|backup| backup.rsplit_once('@')) {
        names.entry(name).or_default().extend(number.parse::<u32>());
    }
    let mut parts = Vec::new();
    for (name, numbers) in &mut names {
        numbers.sort_unstable();
        for run in numbers.chunk_by(|one, next| next.saturating_sub(*one) == 1) {
            parts.push(match run {
                [first, .., last] => format!("{name}@{first}-{last}"),
                [one] => format!("{name}@{one}"),
                [] => continue,
            });
        }
    }
    let more = if parts.len() > MOST { ", ..." } else { "" };
    let shown = parts.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    match backups.len() {
        0 => "no backup".to_owned(),
        1 => shown,
        number => {
            let disks = format::count(names.len() as u64, "disk");
            format!("{shown}{more} ({number} backups of {disks})")
        }
    }
}

/// Tells what a check found.
pub(super) fn tell(
    document: &CheckDocument,
    read_data: bool,
    context: &Context,
) -> Result<Outcome, CliError> {
    let clean = document.is_clean();
    context.print(document, |out| {
        let CheckDocument { backups, segments, garbage_segments, .. } = document;
        for problem in &document.problems {
            writeln!(out, "problem: {problem}")?;
        }
        for DamagedRow { error, backups, .. } in &document.damaged {
            writeln!(out, "problem: {error}; it affects {}", affected(backups))?;
        }
        if document.quarantined_segments > 0 {
            let number = document.quarantined_segments;
            writeln!(
                out,
                "{number} damaged segments are in quarantine; a backup that brings them stores them anew"
            )?;
        }
        let read = if read_data {
            format!("{} were read and verified", format::bytes(document.read_bytes))
        } else {
            "their data was not read".to_owned()
        };
        writeln!(
            out,
            "{backups} backups, {segments} segments, {garbage_segments} of them in no backup; {read}"
        )?;
        let found = document.problems.len() + document.damaged.len();
        if clean {
            writeln!(out, "no problems were found")
        } else {
            writeln!(out, "{} found", format::count(found as u64, "problem"))
        }
    })?;
    Ok(if clean { context.outcome() } else { Outcome::Problems })
}

#[derive(Serialize)]
struct VerifyDocument {
    backup: String,
    source: String,
    same: bool,
    differing: Vec<ByteRange>,
    /// Of the disk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<ByteRange>,
    /// When the backup was made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    never_read: Vec<ByteRange>,
    unknown_segments: u64,
    read_bytes: u64,
}

pub(super) fn verify(args: &VerifyArgs, context: &Context) -> Result<Outcome, CliError> {
    let image = open_image(&args.source, &args.image.options(Reading::Cached))?.image;
    let options = VerifyOptions { jobs: args.jobs.number() };
    if let Some(remote) = context.network()? {
        let (backup, summary) =
            remote.verify(&args.backup.to_string(), image.as_ref(), &options, context.progress())?;
        return tell_verified(backup, args, &summary, context);
    }
    let repository = context.open()?;
    let (sets, problems) = repository.backupsets()?;
    for problem in problems {
        context.progress().notice(Notice::Problem { kind: problem.kind(), what: problem.to_string() });
    }
    let (set, backup) = repository.find(&sets, &args.backup)?;
    let manifest = repository.manifest(set, backup)?;
    let summary = crate::check::verify(&repository, &manifest, image.as_ref(), &options, context.progress())?;
    let backup = BackupId::of(set, backup).to_string();
    tell_verified(backup, args, &summary, context)
}

/// Tells what a comparison found.
fn tell_verified(
    backup: String,
    args: &VerifyArgs,
    summary: &VerifySummary,
    context: &Context,
) -> Result<Outcome, CliError> {
    let same = summary.is_same();
    let ranges = |ranges: &[Range<u64>]| ranges.iter().map(ByteRange::from).collect();
    let document = VerifyDocument {
        backup,
        source: args.source.display().to_string(),
        same,
        differing: ranges(&summary.differing),
        unreadable: ranges(&summary.unreadable),
        never_read: ranges(&summary.never_read),
        unknown_segments: summary.unknown_segments,
        read_bytes: summary.read_bytes,
    };
    context.print(&document, |out| {
        let VerifyDocument { backup, source, unknown_segments, .. } = &document;
        let lists = [
            (&document.differing, "differs"),
            (&document.unreadable, "cannot be read"),
            (&document.never_read, "could not be read when the backup was made"),
        ];
        for (ranges, what) in lists {
            for ByteRange { offset, length } in ranges {
                writeln!(out, "{offset:>16} {length:>16} {what}")?;
            }
        }
        if *unknown_segments > 0 {
            writeln!(out, "{unknown_segments} segments of {backup} are in no pack that can be read")?;
        }
        if same {
            writeln!(out, "{source} is what {backup} holds ({} read)", format::bytes(document.read_bytes))
        } else if document.differing.is_empty() && *unknown_segments == 0 {
            let bytes = format::bytes(document.unreadable.iter().map(|range| range.length).sum());
            writeln!(
                out,
                "{bytes} of {source} cannot be read; every segment without them is what {backup} holds"
            )
        } else {
            writeln!(out, "{source} is not what {backup} holds")
        }
    })?;
    Ok(if same { context.outcome() } else { Outcome::Problems })
}

pub(super) fn status(args: &StatusArgs, context: &Context) -> Result<Outcome, CliError> {
    let document = if let Some(remote) = context.network()? {
        over_service::status(args, &remote)?
    } else {
        let repository = context.open()?;
        let options = StatusOptions { max_age: args.max_age, now: crate::time::now() };
        status_of(&repository, &View::everything(), &options, context.progress())?
    };
    let repository = context.repository_name()?.display().to_string();
    context.print(&document, |out| {
        for row in &document.names {
            if let Some(what) = what_of(row) {
                writeln!(out, "{}: {what}", row.name)?;
            }
        }
        for problem in &document.problems {
            writeln!(out, "{problem}")?;
        }
        let (all, bad) = (document.names.len(), document.names.iter().filter(|name| !name.ok).count());
        let fresh = args.max_age.map_or_else(String::new, |limit| {
            format!(" younger than {}", format::span(limit.unsigned_abs()))
        });
        let disks = format::count(all as u64, "disk");
        match (document.is_ok(), document.problems.is_empty()) {
            (true, _) => writeln!(out, "OK: {disks}, each with an intact backup{fresh}"),
            (_, true) if all == 0 => {
                writeln!(out, "PROBLEM: no disk is expected to have backups in {repository}: is that the right repository?")
            }
            (_, true) => writeln!(out, "PROBLEM: {bad} of {disks}, see above"),
            (_, false) => writeln!(out, "PROBLEM: {bad} of {disks}, and disks may be missing here, see above"),
        }
    })?;
    Ok(if document.is_ok() { context.outcome() } else { Outcome::Problems })
}

/// Says what a person has to know of a disk; nothing if all is well.
fn what_of(row: &StatusRow) -> Option<String> {
    let attempt = row.failure.as_ref().map(|FailureRow { time, reason }| {
        let time = format::time_text(time);
        match reason {
            Some(reason) => format!("the attempt of {time} failed: {reason}"),
            None => format!("the attempt of {time} is running, or was interrupted"),
        }
    });
    match (&row.problem, attempt) {
        (None, None) => None,
        (None, Some(attempt)) => Some(attempt),
        (Some(problem), None) => Some(problem.clone()),
        (Some(problem), Some(attempt)) if row.backup.is_some() => Some(format!("{problem}; {attempt}")),
        (Some(problem), Some(attempt)) => {
            let name = &row.name;
            Some(format!(
                "{problem}; {attempt}; if this name is wrong, \"ekko retire {name}\" removes it from the status"
            ))
        }
    }
}
