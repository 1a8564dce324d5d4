//! What differs between two backups, as `rbd diff --format json` has it.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::manifest::{DiffCursor, Difference, ManifestDiff};

/// A range that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffRow {
    /// The first byte.
    pub offset: u64,
    /// How many bytes there are.
    pub length: u64,
    /// Whether the newer disk holds data here; if not, it is zero.
    pub exists: Exists,
}

/// A yes or no that is text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Exists {
    /// There is data.
    #[serde(rename = "true")]
    Data,
    /// There are zeros.
    #[serde(rename = "false")]
    Zero,
}

/// How many places are compared before the text is looked at again.
const STEP: u32 = 1024;

/// The text of a comparison, made piece by piece: the ranges of a large disk are no document to hold in memory.
#[derive(Debug, Default)]
pub struct DiffText {
    cursor: DiffCursor,
    begun: bool,
    has_rows: bool,
    ended: bool,
}

impl DiffText {
    /// Returns the next piece, of about `most` bytes; an empty one at the end. Every call names the same two manifests.
    ///
    /// # Errors
    ///
    /// If a range cannot be written as JSON.
    pub fn next(&mut self, diff: &ManifestDiff<'_>, most: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        if !self.begun {
            out.push(b'[');
            self.begun = true;
        }
        while !self.ended && out.len() < most {
            let has_rows = &mut self.has_rows;
            let more = diff.advance(&mut self.cursor, STEP, |Difference { offset, length, exists }| {
                out.extend_from_slice(if *has_rows { b",\n" } else { b"\n" });
                *has_rows = true;
                let exists = if exists { Exists::Data } else { Exists::Zero };
                serde_json::to_writer(&mut out, &DiffRow { offset, length, exists }).map_err(io::Error::from)
            })?;
            if !more {
                out.extend_from_slice(b"\n]\n");
                self.ended = true;
            }
        }
        Ok(out)
    }
}

/// Writes the ranges as they are found.
///
/// # Errors
///
/// If they cannot be written.
pub fn write_diff(diff: &ManifestDiff<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut text = DiffText::default();
    loop {
        let piece = text.next(diff, 1 << 16)?;
        if piece.is_empty() {
            return Ok(());
        }
        out.write_all(&piece)?;
    }
}
