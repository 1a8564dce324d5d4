//! `ekko show`

use serde::Serialize;

use crate::api::{self, BackupDetails, ByteRange, View};
use crate::cli::args::ShowArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::machine::{Parts, parts};
use crate::cli::{Outcome, format};
use crate::remote::part;
use crate::repository::{BackupSelector, Repository};

/// A backup, and what it consists of if it is a machine's moment.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    details: BackupDetails,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Parts>,
}

pub(super) fn run(args: &ShowArgs, context: &Context) -> Result<Outcome, CliError> {
    let whole = if let Some(remote) = context.network()? {
        let path = format!("/v1/backups/{}", part(&args.backup.to_string()));
        Document { details: remote.get(&path)?, parts: None }
    } else {
        let repository = context.open()?;
        let details = api::show(&repository, &View::everything(), &args.backup)?;
        Document { details, parts: parts_of(&repository, &args.backup, context)? }
    };
    let Document { details: document, parts } = &whole;
    context.print(&whole, |out| {
        let segments = format!(
            "{} of {}: {} present, {} changed by this backup",
            document.segments,
            format::bytes(u64::from(document.segment_size)),
            document.present_segments,
            document.stored_by_this_backup,
        );
        let (new, stored) = (format::bytes(document.new_bytes), format::bytes(document.stored_bytes));
        let added = format!("{new} new, stored as {stored}");
        let read = document.read_bytes.map(|bytes| format!("{} from the source", format::bytes(bytes)));
        let damaged = if document.damaged { "a check found segments of it damaged" } else { "" }.to_owned();
        let manifest = document.manifest.as_deref().unwrap_or(&document.manifest_blake3);
        let mut pairs = vec![
            ("backup", document.backup.clone()),
            ("name", document.name.clone()),
            ("backupset", document.backupset.clone()),
            ("time", format!("{} ({})", format::time_text(&document.timestamp), age(&document.timestamp))),
            ("size of disk", format::bytes(document.size_of_disk)),
            ("source", document.source.clone().unwrap_or_default()),
            ("host", document.host.clone().unwrap_or_default()),
            (
                "duration",
                document.duration_seconds.map(|seconds| format!("{seconds:.1} s")).unwrap_or_default(),
            ),
            ("used", format::bytes(document.used_bytes)),
            ("read", read.unwrap_or_default()),
            ("added", added),
            ("segments", segments),
            ("bases", document.bases.join(", ")),
            ("tags", document.tags.join(", ")),
            ("protected", protected(document)),
            ("damaged", damaged),
            // The parts name them as well.
            ("missing", if parts.is_none() { document.missing.join(", ") } else { String::new() }),
            ("note", document.note.clone().unwrap_or_default()),
            ("suspect", document.suspect.clone().unwrap_or_default()),
            ("inconsistent", document.inconsistent.clone().unwrap_or_default()),
            ("manifest", format!("{manifest} ({})", format::bytes(document.manifest_bytes))),
        ];
        pairs.extend(document.unreadable.iter().map(|range| ("unreadable", unreadable(range))));
        let is_shown =
            |key: &str| key == "inconsistent" || (key == "unreadable" && !document.unreadable.is_empty());
        let others = document.attributes.iter().filter(|(key, _)| !is_shown(key));
        pairs.extend(others.map(|(key, value)| (key.as_str(), value.clone())));
        pairs.extend(parts.iter().flat_map(Parts::pairs));
        pairs.retain(|(_, value)| !value.is_empty());
        format::pairs(out, &pairs)
    })?;
    Ok(context.outcome())
}

/// Returns a range of unreadable sectors for a person.
pub(super) fn unreadable(range: &ByteRange) -> String {
    let (offset, length) = (format::bytes(range.offset), format::bytes(range.length));
    format!("{length} at {offset} (byte {}): zeros in this backup", range.offset)
}

/// Says how long ago a moment was.
fn age(timestamp: &str) -> String {
    let age = format::age_text(timestamp, crate::time::now());
    if age.starts_with("in ") { age } else { format!("{age} ago") }
}

/// Says whether and until when a backup is protected; nothing if it is not.
fn protected(document: &BackupDetails) -> String {
    match (&document.protected_until, document.protected) {
        (_, false) => String::new(),
        (None, true) => "for ever".to_owned(),
        (Some(end), true) => format!("until {}", format::time_text(end)),
    }
}

fn parts_of(
    repository: &Repository,
    asked: &BackupSelector,
    context: &Context,
) -> Result<Option<Parts>, CliError> {
    let (sets, _) = repository.backupsets()?;
    let (set, backup) = repository.find(&sets, asked)?;
    parts(repository, &sets, &repository.manifest(set, backup)?, context)
}
