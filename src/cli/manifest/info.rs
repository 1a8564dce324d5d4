//! `ekko manifest info`

use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format};
use crate::manifest::ManifestReader;

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

pub(super) fn run(manifest: &ManifestReader, context: &Context) -> Result<Outcome, CliError> {
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
    Ok(context.outcome())
}
