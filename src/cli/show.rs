//! `ekko show`

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cli::args::ShowArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::machine::{Parts, parts};
use crate::cli::{Outcome, format};
use crate::repository::Repository;

#[derive(Serialize)]
struct Document {
    backup: String,
    name: String,
    backupset: String,
    incremental: u32,
    timestamp: String,
    size_of_disk: u64,
    segment_size: u32,
    segments: u32,
    present_segments: u32,
    stored_by_this_backup: u64,
    bases: Vec<String>,
    tags: Vec<String>,
    protected: bool,
    note: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspect: Option<String>,
    attributes: BTreeMap<String, String>,
    /// What a machine's moment consists of.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Parts>,
    manifest: String,
    manifest_bytes: u64,
    manifest_blake3: String,
}

/// Shows the value of an attribute: a release to come may write what is no text.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

pub(super) fn run(args: &ShowArgs, context: &Context) -> Result<Outcome, CliError> {
    let repository = context.open()?;
    let (sets, _) = repository.backupsets()?;
    let (set, backup) = repository.find(&sets, &args.backup)?;
    let manifest = repository.manifest(set, backup)?;
    manifest.verify()?;
    let info = manifest.info();
    let own = manifest
        .segments()
        .filter(|(_, segment)| segment.incremental == info.incremental && segment.base.0 == 0)
        .count();
    let document = Document {
        backup: Repository::backup_id(&sets, set, backup.incremental).to_string(),
        // The manifest keeps the name that the disk had; it may have been renamed since.
        name: set.name.to_string(),
        backupset: info.backupset.to_string(),
        incremental: info.incremental.0,
        timestamp: info.timestamp.to_string(),
        size_of_disk: info.geometry.size_of_disk(),
        segment_size: info.geometry.segment_size().bytes(),
        segments: info.geometry.segments(),
        present_segments: manifest.present(),
        stored_by_this_backup: own as u64,
        bases: info.bases.iter().map(ToString::to_string).collect(),
        tags: backup.tags.clone(),
        protected: backup.protection.holds(jiff::Timestamp::now()),
        note: backup.note.clone(),
        suspect: backup.suspect.clone(),
        attributes: info.attributes.iter().map(|(key, value)| (key.clone(), text(value))).collect(),
        parts: parts(&repository, &sets, &manifest, context)?,
        manifest: manifest.path().display().to_string(),
        manifest_bytes: manifest.file_size(),
        manifest_blake3: manifest.fingerprint().to_string(),
    };
    context.print(&document, |out| {
        let segments = format!(
            "{} of {}: {} present, {} changed by this backup",
            document.segments,
            format::bytes(u64::from(document.segment_size)),
            document.present_segments,
            document.stored_by_this_backup,
        );
        let mut pairs = vec![
            ("backup", document.backup.clone()),
            ("name", document.name.clone()),
            ("backupset", document.backupset.clone()),
            ("time", format::time(info.timestamp)),
            ("size of disk", format::bytes(document.size_of_disk)),
            ("segments", segments),
            ("bases", document.bases.join(", ")),
            ("tags", document.tags.join(", ")),
            ("suspect", document.suspect.clone().unwrap_or_default()),
            ("manifest", format!("{} ({})", document.manifest, format::bytes(document.manifest_bytes))),
        ];
        pairs.extend(document.attributes.iter().map(|(key, value)| (key.as_str(), value.clone())));
        pairs.extend(document.parts.iter().flat_map(Parts::pairs));
        pairs.retain(|(_, value)| !value.is_empty());
        format::pairs(out, &pairs)
    })?;
    Ok(context.outcome())
}
