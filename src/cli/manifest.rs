//! `ekko manifest`

use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use crate::cli::args::ManifestCommand;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;
use crate::manifest::ManifestReader;
use crate::repository::BackupSelector;

pub(super) fn run(command: &ManifestCommand, context: &Context) -> Result<Outcome, CliError> {
    match command {
        ManifestCommand::Dump(args) => dump(&open(&args.source, context)?, context),
        ManifestCommand::Info(args) => info(&open(&args.source, context)?, context),
    }
}

/// Opens the manifest of a backup, or of a file: what begins with `/`, `./` or `../` is a file, and so is
/// what names no backup and exists.
fn open(source: &str, context: &Context) -> Result<ManifestReader, CliError> {
    let path = Path::new(source);
    if ["/", "./", "../"].iter().any(|begin| source.starts_with(begin)) {
        return Ok(ManifestReader::read(path)?);
    }
    let by_name = || -> Result<ManifestReader, CliError> {
        let selector: BackupSelector =
            source.parse().map_err(|error: crate::repository::InvalidSelector| {
                CliError::new(ErrorKind::Invalid, error.to_string())
            })?;
        let repository = context.open()?;
        let (sets, _) = repository.backupsets()?;
        let (set, backup) = repository.find(&sets, &selector)?;
        Ok(repository.manifest(set, backup)?)
    };
    let manifest = match by_name() {
        Err(CliError::Failed { kind: ErrorKind::NotFound | ErrorKind::Invalid, .. }) if path.is_file() => {
            ManifestReader::read(path)?
        }
        other => other?,
    };
    Ok(manifest)
}

#[derive(Serialize)]
struct Row {
    segment: u32,
    hash: String,
    incremental: u32,
    base: u16,
    #[serde(skip_serializing_if = "is_first")]
    twin: u16,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_first(twin: &u16) -> bool {
    *twin == 0
}

fn dump(manifest: &ManifestReader, context: &Context) -> Result<Outcome, CliError> {
    manifest.verify()?;
    // Written as it is read: a list of 2^24 segments is no document to hold in memory.
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    if context.json {
        write!(out, "{{\"segments\":[")?;
        for (position, (index, segment)) in manifest.segments().enumerate() {
            let row = Row {
                segment: index.0,
                hash: segment.key.hash.to_string(),
                incremental: segment.incremental.0,
                base: segment.base.0,
                twin: segment.key.twin.0,
            };
            out.write_all(if position == 0 { b"\n" } else { b",\n" })?;
            serde_json::to_writer(&mut out, &row).map_err(io::Error::from)?;
        }
        writeln!(out, "\n]}}")?;
    } else {
        let mut line = [b'\n'; 41];
        for (_, segment) in manifest.segments() {
            if let Some(text) = line.get_mut(..40) {
                // The room is exactly twice the hash's length.
                let _ = hex::encode_to_slice(segment.key.hash.as_bytes(), text);
            }
            out.write_all(&line)?;
        }
    }
    out.flush()?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Info {
    name: String,
    backupset: String,
    incremental: u32,
    timestamp: String,
    size_of_disk: u64,
    segment_size: u32,
    segments: u32,
    present_segments: u32,
    runs: usize,
    bases: Vec<String>,
    attributes: Vec<String>,
    bytes: u64,
    blake3: String,
}

fn info(manifest: &ManifestReader, context: &Context) -> Result<Outcome, CliError> {
    manifest.verify()?;
    let info = manifest.info();
    let document = Info {
        name: info.name.to_string(),
        backupset: info.backupset.to_string(),
        incremental: info.incremental.0,
        timestamp: info.timestamp.to_string(),
        size_of_disk: info.geometry.size_of_disk(),
        segment_size: info.geometry.segment_size().bytes(),
        segments: info.geometry.segments(),
        present_segments: manifest.present(),
        runs: manifest.runs(),
        bases: info.bases.iter().map(ToString::to_string).collect(),
        attributes: info.attributes.iter().map(|(key, _)| key.clone()).collect(),
        bytes: manifest.file_size(),
        blake3: manifest.fingerprint().to_string(),
    };
    context.print(&document, |out| {
        let mut pairs = vec![
            ("name", document.name.clone()),
            ("backupset", document.backupset.clone()),
            ("incremental", document.incremental.to_string()),
            ("time", format::time(info.timestamp)),
            (
                "size of disk",
                format!("{} ({} bytes)", format::bytes(document.size_of_disk), document.size_of_disk),
            ),
            ("segment size", format::bytes(u64::from(document.segment_size))),
            (
                "segments",
                format!(
                    "{}, {} present in {} runs",
                    document.segments, document.present_segments, document.runs
                ),
            ),
            ("bases", document.bases.join(", ")),
            ("attributes", document.attributes.join(", ")),
            ("file", format::bytes(document.bytes)),
            ("BLAKE3", document.blake3.clone()),
        ];
        pairs.retain(|(_, value)| !value.is_empty());
        format::pairs(out, &pairs)
    })?;
    Ok(Outcome::Done)
}
