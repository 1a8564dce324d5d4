//! Flaws of a source that a backup found while it read it: the source changed, or sectors could not be read.
//!
//! The manifest has them as attributes, and the list of backups has a short mark of each ([`FlawMarks`]), so that a list needs
//! no manifest.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::manifest::{Inconsistency, ManifestInfo};

/// The attribute of a manifest that says how the source changed while it was read.
const INCONSISTENT: &str = "inconsistent";
/// The attribute of a manifest with the ranges that could not be read and are zeros in the backup: JSON, a list of objects with
/// `offset` and `length`.
const UNREADABLE: &str = "unreadable";

/// The most ranges of unreadable sectors that a backup records.
pub const MOST_UNREADABLE: usize = 1024;

/// Flaws of the source of a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flaws {
    /// How the source changed while it was read.
    pub inconsistent: Option<Inconsistency>,
    /// The ranges of bytes with unreadable sectors, in order; they do not touch. An unreadable sector is zeros in the backup.
    pub unreadable: Vec<Range<u64>>,
}

/// What the list of backups says of the flaws of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlawMarks {
    /// How the source changed while it was read.
    pub inconsistent: Option<String>,
    /// How many bytes the unreadable ranges have.
    pub unreadable_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    offset: u64,
    length: u64,
}

impl Flaws {
    /// Returns the marks of the list of backups.
    pub fn marks(&self) -> FlawMarks {
        FlawMarks {
            inconsistent: self.inconsistent.as_ref().map(ToString::to_string),
            unreadable_bytes: self.unreadable.iter().map(|range| range.end - range.start).sum(),
        }
    }

    /// Returns the attributes of the manifest.
    pub fn attributes(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut attributes = Vec::new();
        attributes.extend(self.inconsistent.as_ref().map(|why| (INCONSISTENT, why.as_str().into())));
        if !self.unreadable.is_empty() {
            let entry = |range: &Range<u64>| Entry { offset: range.start, length: range.end - range.start };
            let entries: Vec<_> = self.unreadable.iter().map(entry).collect();
            // Numbers always become JSON.
            attributes.push((UNREADABLE, serde_json::to_vec(&entries).unwrap_or_default()));
        }
        attributes
    }
}

/// Returns why a backup is inconsistent, if it is.
pub fn inconsistency(info: &ManifestInfo) -> Option<String> {
    info.attribute(INCONSISTENT).map(|why| String::from_utf8_lossy(why).into_owned())
}

/// Returns the ranges that the source of a backup did not give.
///
/// # Errors
/// The manifest says it in a way that this release does not know: any part of the backup may be zeros that were not on the disk.
pub fn unreadable_ranges(info: &ManifestInfo) -> Result<Vec<Range<u64>>, UnknownRanges> {
    let Some(value) = info.attribute(UNREADABLE) else { return Ok(Vec::new()) };
    let entries: Vec<Entry> = serde_json::from_slice(value).map_err(|_| UnknownRanges)?;
    let size = info.geometry.size_of_disk();
    let mut ranges = Vec::with_capacity(entries.len());
    let mut behind = 0;
    for Entry { offset, length } in entries {
        let end = offset.checked_add(length).filter(|end| *end <= size && length > 0 && offset >= behind);
        let end = end.ok_or(UnknownRanges)?;
        ranges.push(offset..end);
        behind = end;
    }
    Ok(ranges)
}

/// A manifest has unreadable ranges that this release cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the manifest lists the unreadable ranges of its source in a way that this release does not know")]
pub struct UnknownRanges;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{BackupsetId, ImageName, Incremental};
    use crate::segment::{Geometry, SegmentSize};

    fn info(attributes: Vec<(String, Vec<u8>)>) -> ManifestInfo {
        ManifestInfo {
            backupset: BackupsetId::random(),
            incremental: Incremental(0),
            name: ImageName::new("web").unwrap(),
            geometry: Geometry::new(1 << 20, SegmentSize::new(64 << 10).unwrap()).unwrap(),
            timestamp: jiff::Timestamp::UNIX_EPOCH,
            bases: Vec::new(),
            attributes,
        }
    }

    #[test]
    fn unreadable_ranges_come_back_from_a_manifest() {
        let flaws = Flaws {
            inconsistent: Some(Inconsistency::of_this_machine("the source grew")),
            unreadable: vec![512..1024, 4096..8192],
        };
        let attributes = flaws.attributes().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let info = info(attributes);
        assert_eq!(unreadable_ranges(&info), Ok(flaws.unreadable.clone()));
        assert_eq!(info.attribute("inconsistent"), Some(&b"the source grew"[..]));
        let marks = FlawMarks { inconsistent: Some("the source grew".to_owned()), unreadable_bytes: 4608 };
        assert_eq!(flaws.marks(), marks);
        assert!(Flaws::default().attributes().is_empty());
    }

    #[test]
    fn ranges_in_an_unknown_form_are_an_error() {
        for text in [
            "x",
            r#"[{"offset":1}]"#,
            r#"[{"offset":0,"length":0}]"#,
            r#"[{"offset":0,"length":1048577}]"#,
            r#"[{"offset":18446744073709551615,"length":2}]"#,
            r#"[{"offset":512,"length":512},{"offset":0,"length":512}]"#,
            r#"[{"offset":0,"length":512,"kind":"new"}]"#,
        ] {
            let info = info(vec![(UNREADABLE.to_owned(), text.into())]);
            assert_eq!(unreadable_ranges(&info), Err(UnknownRanges), "{text}");
        }
    }
}
