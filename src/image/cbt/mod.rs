//! Changed block tracking: lists of what changed on a disk since a moment, as other programs write them.
//!
//! Owns how the lists are recognised, read and checked, and what they mean in bytes of a disk. What a list says is a
//! claim; how far it is believed is the backup's to decide. Must not know segments or backups.
//!
//! | kind | from | listed | not listed |
//! |---|---|---|---|
//! | [`ListKind::RbdDiff`] | `rbd diff --format json`, `ekko diff --json` | data, or (`exists` false) zero now | unchanged |
//! | [`ListKind::RbdDiffText`] | `rbd diff` | `data` or `zero` | unchanged |
//! | [`ListKind::NbdDirty`] | `nbdinfo --map=qemu:dirty-bitmap:NAME --json` | everything, `dirty` or `clean` | refused |
//! | [`ListKind::NbdAllocation`] | `nbdinfo --map --json` | everything, where data lies | refused |
//! | [`ListKind::QemuMap`] | `qemu-img map --output=json` | everything, where data lies | refused |
//! | [`ListKind::ThinDelta`] | `thin_delta` | changed, by blocks | refused |
//!
//! The maps of where data lies say nothing of a moment before: they are of use for a first backup alone.

mod json;
#[cfg(test)]
mod tests;
mod text;
mod thin;

use std::fmt;
use std::ops::Range;

/// Which program wrote a list, and what of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// `rbd diff --format json`; Ekko's own `diff --json` is written alike.
    RbdDiff,
    /// `rbd diff` as it is for people.
    RbdDiffText,
    /// `nbdinfo --map=qemu:dirty-bitmap:NAME --json`.
    NbdDirty,
    /// `nbdinfo --map=base:allocation --json`.
    NbdAllocation,
    /// `qemu-img map --output=json`.
    QemuMap,
    /// `thin_delta` of the thin-provisioning-tools.
    ThinDelta,
}

impl ListKind {
    /// Returns its name, as manifests have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RbdDiff => "rbd-diff",
            Self::RbdDiffText => "rbd-diff-text",
            Self::NbdDirty => "nbd-dirty-bitmap",
            Self::NbdAllocation => "nbd-allocation",
            Self::QemuMap => "qemu-img-map",
            Self::ThinDelta => "thin-delta",
        }
    }

    /// Says whether it tells what changed, not only where data lies.
    pub const fn is_of_changes(self) -> bool {
        !matches!(self, Self::NbdAllocation | Self::QemuMap)
    }

    /// Says whether it must speak of every byte.
    const fn is_map(self) -> bool {
        matches!(self, Self::NbdDirty | Self::NbdAllocation | Self::QemuMap)
    }
}

impl fmt::Display for ListKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is said of a range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeState {
    /// Its bytes have to be read.
    Data,
    /// It is zeros now.
    Zero,
    /// It is as it was.
    Unchanged,
}

/// A list that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// No program writes such a list.
    #[error(
        "it is none of the lists that are known: rbd diff, nbdinfo --map --json, qemu-img map --output=json, thin_delta, \
         ekko diff --json"
    )]
    Unknown,
    /// The text does not follow its own form.
    #[error("it cannot be read: {what}")]
    Malformed {
        /// What is wrong, in words.
        what: String,
    },
    /// It speaks of something that is not on the disk, or twice of the same.
    #[error("its range of {length} bytes at {offset} {what}")]
    Range {
        /// The first byte of the range.
        offset: u64,
        /// How many bytes it has.
        length: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl ListError {
    fn malformed(what: impl fmt::Display) -> Self {
        Self::Malformed { what: what.to_string() }
    }
}

/// A list of what changed, or of where data lies: ranges in the order of the disk, none of which overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeList {
    kind: ListKind,
    granularity: u64,
    /// Of what is not unchanged; neighbours of one state are one range.
    ranges: Vec<(Range<u64>, RangeState)>,
}

impl ChangeList {
    /// Reads a list, whatever program wrote it, of a disk of `size` bytes.
    pub fn parse(bytes: &[u8], size: u64) -> Result<Self, ListError> {
        let text = bytes.trim_ascii_start();
        match text.first() {
            Some(b'[') => json::parse(text, size),
            Some(b'<') => thin::parse(text, size),
            _ => text::parse(text, size),
        }
    }

    /// Returns which program wrote it.
    pub fn kind(&self) -> ListKind {
        self.kind
    }

    /// Returns of what the places and lengths in it are multiples, a power of two: what was tracked, or more.
    pub fn granularity(&self) -> u64 {
        self.granularity
    }

    /// Returns what is not unchanged, in the order of the disk.
    pub fn ranges(&self) -> &[(Range<u64>, RangeState)] {
        &self.ranges
    }
}

/// The most ranges that a list has, neighbours of one state counted as one.
const RANGES_LIMIT: usize = 1 << 24;

/// Takes the ranges of a list one after the other and checks them.
#[derive(Debug)]
pub(in crate::image) struct ListBuilder {
    kind: ListKind,
    size: u64,
    /// Where the last range ended.
    end: u64,
    /// All bits of all places and lengths.
    bits: u64,
    ranges: Vec<(Range<u64>, RangeState)>,
}

impl ListBuilder {
    pub(in crate::image) fn new(kind: ListKind, size: u64) -> Self {
        Self { kind, size, end: 0, bits: 0, ranges: Vec::new() }
    }

    pub(in crate::image) fn add(
        &mut self,
        offset: u64,
        length: u64,
        state: RangeState,
    ) -> Result<(), ListError> {
        let wrong = |what| ListError::Range { offset, length, what };
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        let end = end.ok_or_else(|| wrong("reaches beyond the end of the disk"))?;
        if length == 0 {
            return Err(wrong("is empty"));
        }
        if offset < self.end {
            return Err(wrong("is not behind the range before it"));
        }
        if self.kind.is_map() && offset != self.end {
            return Err(wrong("leaves a gap before it, of which nothing is said"));
        }
        self.end = end;
        // The end of a disk need not be on any boundary.
        self.bits |= offset | if end == self.size { 0 } else { length };
        if state == RangeState::Unchanged {
            return Ok(());
        }
        let is_full = self.ranges.len() >= RANGES_LIMIT;
        match self.ranges.last_mut() {
            Some((last, of)) if last.end == offset && *of == state => last.end = end,
            _ if is_full => {
                return Err(wrong("is one too many: read the disk in full"));
            }
            _ => self.ranges.push((offset..end, state)),
        }
        Ok(())
    }

    pub(in crate::image) fn finish(self) -> Result<ChangeList, ListError> {
        if self.kind.is_map() && self.end != self.size {
            let length = self.size - self.end;
            return Err(ListError::Range { offset: self.end, length, what: "is not spoken of" });
        }
        let granularity = if self.bits == 0 {
            self.size.max(1).checked_next_power_of_two().unwrap_or(1 << 63)
        } else {
            1 << self.bits.trailing_zeros()
        };
        Ok(ChangeList { kind: self.kind, granularity, ranges: self.ranges })
    }
}
