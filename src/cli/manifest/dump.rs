//! `ekko manifest dump`

use std::io::{self, BufWriter, Write};

use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::terminal::{self, Json, Stream};
use crate::manifest::ManifestReader;

/// After how many segments the manifest's pages are given back.
const RELEASE: u32 = 1 << 20;

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

pub(super) fn run(manifest: &ManifestReader, context: &Context) -> Result<Outcome, CliError> {
    manifest.verify()?;
    // Written as it is read: a list of 2^24 segments is no document to hold in memory.
    if context.json {
        let mut out = Json::to(Stream::Stdout);
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
        out.flush()?;
    } else {
        // Digits alone.
        let mut out = BufWriter::with_capacity(1 << 16, terminal::data());
        let mut line = [b'\n'; 41];
        for (position, (_, segment)) in (1_u32..).zip(manifest.segments()) {
            if let Some(text) = line.get_mut(..40) {
                // The room is exactly twice the hash's length.
                let _ = hex::encode_to_slice(segment.key.hash.as_bytes(), text);
            }
            out.write_all(&line)?;
            if position.is_multiple_of(RELEASE) {
                manifest.release_pages();
            }
        }
        out.flush()?;
    }
    Ok(context.outcome())
}
