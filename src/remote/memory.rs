//! What a backup knows of its disk already: a session that is lost costs no second reading.
//!
//! The memory says of each place that was read what the manifest says of it. It is filled in the order of the disk, so after
//! a failure it covers the beginning of the disk, and what earlier sessions knew beyond it. The next session
//!
//! 1. forgets what was equal to the parent's if it is compared with another parent ([`Memory::fit`]),
//! 2. asks which of the remembered segments the service lacks, and forgets those ([`Memory::forget`]),
//! 3. reads what is not remembered, and names the rest without reading it.
//!
//! A place that is read again may hold something else by then: a disk that is written to while it is read. Then the new
//! content is sent and named. That is no worse than a backup without an interruption, which may come to any place at any
//! time as well; disks that must be consistent are read from a snapshot, and a snapshot does not change.

use std::ops::Range;

use crate::backup::BackupStats;
use crate::segment::{Fingerprint, Geometry, SegmentHash, SegmentIndex};

/// The most entries that are kept, 72 bytes each. What lies beyond is read again.
const MOST_ENTRIES: usize = 1 << 20;

/// What the manifest says of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// So many segments are the parent's.
    Kept { count: u32 },
    Segment {
        hash: SegmentHash,
        fingerprint: Fingerprint,
        /// The length of the stored bytes, if this backup has sent them.
        sent: Option<u32>,
    },
}

/// An entry at its place.
pub(super) type Placed = (SegmentIndex, Entry);

/// What is known of a disk.
#[derive(Debug, Default)]
pub(super) struct Memory {
    entries: Vec<Placed>,
    /// The places that are known: sorted, and no two of them touch.
    known: Vec<Range<u32>>,
    /// The manifest that `Kept` speaks of.
    parent: String,
    segment_size: u32,
}

impl Memory {
    /// Returns the places that are known.
    pub(super) fn known(&self) -> &[Range<u32>] {
        &self.known
    }

    /// Returns how many places are known.
    pub(super) fn places(&self) -> u64 {
        self.known.iter().map(|range| u64::from(range.end - range.start)).sum()
    }

    pub(super) fn entries(&self) -> &[Placed] {
        &self.entries
    }

    /// Forgets what another parent, or another division of the disk, makes worthless.
    pub(super) fn fit(&mut self, parent: &str, segment_size: u32) {
        if self.segment_size != segment_size {
            *self = Self { segment_size, ..Self::default() };
        }
        if self.parent != parent {
            let kept = self.entries.extract_if(.., |(_, entry)| matches!(entry, Entry::Kept { .. }));
            let gone: Vec<_> = kept.map(|(first, entry)| first.0..first.0 + entry.count()).collect();
            self.known = without(&self.known, &gone);
            parent.clone_into(&mut self.parent);
        }
    }

    /// Forgets segments, whose places are in order.
    pub(super) fn forget(&mut self, places: &[SegmentIndex]) {
        self.entries.retain(|(index, _)| places.binary_search(index).is_err());
        let gone: Vec<_> = places.iter().map(|place| place.0..place.0 + 1).collect();
        self.known = without(&self.known, &gone);
    }

    /// Adds what a session has found out about places that were not known.
    pub(super) fn learn(&mut self, fresh: Fresh) {
        let Fresh { entries, reached, .. } = fresh;
        self.entries.extend(entries);
        // Both are in order: that is quick.
        self.entries.sort_by_key(|(index, _)| *index);
        let mut known: Vec<Range<u32>> = Vec::new();
        for range in std::iter::once(0..reached).chain(self.known.drain(..)) {
            match known.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => known.push(range),
            }
        }
        known.retain(|range| !range.is_empty());
        self.known = known;
    }
}

/// What a session finds out, in the order of the disk.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    entries: Vec<Placed>,
    /// All places before this one are known, here or in the memory.
    reached: u32,
    is_full: bool,
}

impl Fresh {
    /// Takes down an entry, unless there is no room: `remembered` entries are there already.
    pub(super) fn push(&mut self, (index, entry): Placed, remembered: usize) {
        // Neighbours that are the parent's are one entry.
        if let (Some((first, Entry::Kept { count: before })), Entry::Kept { count }) =
            (self.entries.last_mut(), entry)
            && first.0 + *before == index.0
            && !self.is_full
        {
            *before += count;
            return;
        }
        self.is_full |= self.entries.len() + remembered >= MOST_ENTRIES;
        if !self.is_full {
            self.entries.push((index, entry));
        }
    }

    /// All places before `place` have been read.
    pub(super) fn reached(&mut self, place: u32) {
        if !self.is_full {
            self.reached = place;
        }
    }
}

impl Entry {
    pub(super) fn count(&self) -> u32 {
        match self {
            Self::Kept { count } => *count,
            Self::Segment { .. } => 1,
        }
    }

    /// Counts it.
    pub(super) fn add_to(&self, stats: &mut BackupStats, plain_length: u32) {
        match self {
            Self::Kept { count } => stats.unchanged_segments += u64::from(*count),
            Self::Segment { sent: None, .. } => stats.deduplicated_segments += 1,
            Self::Segment { sent: Some(stored), .. } => {
                stats.new_segments += 1;
                stats.new_bytes += u64::from(plain_length);
                stats.stored_bytes += u64::from(*stored);
            }
        }
    }
}

/// Returns what of a list of ranges lies in no range of another; both are sorted.
fn without(ranges: &[Range<u32>], gone: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut left = Vec::new();
    let mut gone = gone.iter().peekable();
    for range in ranges {
        let mut start = range.start;
        while let Some(next) = gone.next_if(|next| next.start < range.end) {
            if start < next.start {
                left.push(start..next.start);
            }
            start = start.max(next.end);
        }
        if start < range.end {
            left.push(start..range.end);
        }
    }
    left
}

/// Counts what a whole manifest names.
pub(super) fn zeros(stats: &BackupStats, geometry: Geometry) -> u64 {
    let others = stats.unchanged_segments + stats.deduplicated_segments + stats.new_segments;
    u64::from(geometry.segments()).saturating_sub(others)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "one range is a list of ranges")]

    use super::*;

    fn segment(place: u32) -> Placed {
        let bytes = place.to_le_bytes();
        let (hash, fingerprint) = (SegmentHash::of(&bytes), Fingerprint::of(&bytes));
        (SegmentIndex(place), Entry::Segment { hash, fingerprint, sent: Some(1) })
    }

    fn fresh(entries: &[Placed], reached: u32) -> Fresh {
        Fresh { entries: entries.to_vec(), reached, is_full: false }
    }

    fn memory(entries: &[Placed], reached: u32) -> Memory {
        let mut memory = Memory::default();
        memory.fit("parent", 4096);
        memory.learn(fresh(entries, reached));
        memory
    }

    #[test]
    fn what_was_read_is_known_and_what_the_service_lacks_is_forgotten() {
        let mut memory = memory(&[segment(1), segment(4), segment(5), segment(8)], 10);
        assert_eq!((memory.known(), memory.places()), ([0..10].as_slice(), 10));
        memory.forget(&[SegmentIndex(4), SegmentIndex(5), SegmentIndex(8)]);
        assert_eq!(memory.known(), [0..4, 6..8, 9..10]);
        assert_eq!(memory.entries(), [segment(1)]);
        // The next session reads some of it again, and ends before it came as far as the first.
        memory.learn(fresh(&[segment(4)], 5));
        assert_eq!(memory.known(), [0..5, 6..8, 9..10]);
        assert_eq!(memory.entries(), [segment(1), segment(4)]);
        memory.learn(fresh(&[segment(5), segment(8), segment(12)], 20));
        assert_eq!(memory.known(), [0..20]);
        assert_eq!(memory.entries(), [segment(1), segment(4), segment(5), segment(8), segment(12)]);
    }

    #[test]
    fn what_equals_the_parent_is_forgotten_with_the_parent() {
        let kept = |first, count| (SegmentIndex(first), Entry::Kept { count });
        let mut memory = memory(&[segment(0), kept(2, 3), segment(5), kept(7, 3)], 12);
        memory.fit("parent", 4096);
        assert_eq!(memory.places(), 12);
        memory.fit("another", 4096);
        assert_eq!(memory.known(), [0..2, 5..7, 10..12]);
        assert_eq!(memory.entries(), [segment(0), segment(5)]);
        memory.fit("", 4096);
        assert_eq!(memory.places(), 6);
        memory.fit("", 8192);
        assert_eq!((memory.places(), memory.entries().len()), (0, 0));
    }

    #[test]
    fn memory_has_a_bound_and_what_lies_beyond_is_not_known() {
        let mut fresh = Fresh::default();
        fresh.push(segment(0), MOST_ENTRIES - 1);
        fresh.reached(1);
        fresh.push(segment(1), MOST_ENTRIES - 1);
        fresh.reached(2);
        assert_eq!((fresh.entries.len(), fresh.reached), (1, 1));
    }
}
