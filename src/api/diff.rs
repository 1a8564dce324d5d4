//! What differs between two backups, as `rbd diff --format json` has it.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::manifest::{Difference, ManifestDiff};

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

/// Writes the ranges as they are found: those of a large disk are no document to hold in memory.
///
/// # Errors
///
/// If they cannot be written.
pub fn write_diff(diff: &ManifestDiff<'_>, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"[")?;
    let mut first = true;
    diff.for_each(|Difference { offset, length, exists }| {
        out.write_all(if first { b"\n" } else { b",\n" })?;
        first = false;
        let exists = if exists { Exists::Data } else { Exists::Zero };
        serde_json::to_writer(&mut *out, &DiffRow { offset, length, exists }).map_err(io::Error::from)
    })?;
    out.write_all(b"\n]\n")
}
