//! Refcounts count stays.
//!
//! In a backupset, at each place of the disk, a *stay* is a stretch of consecutive surviving backups with
//! the same segment there. A segment's refcount is the number of its stays over all backupsets. So an
//! unchanged backup changes no count, and a first one costs one count for each present segment.
//!
//! Zero, and "beyond the end of the disk", are values like others that carry no count; since neither
//! carries one they need not be told apart.

use std::ops::Range;

use crate::manifest::{Cursor, ManifestReader};
use crate::segment::{SegmentIndex, SegmentKey};

/// How many places one window covers.
pub const WINDOW: u32 = 1 << 16;
/// How many places a window of a commit covers, at 28 bytes each: its keys are looked up and counted in their order, so the
/// whole index is gone through once a window.
pub const COUNTED_WINDOW: u32 = 1 << 21;

/// Up to three neighbouring backups of one backupset, of which the middle one comes or goes.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours<'a> {
    /// The surviving backup before it.
    pub before: Option<&'a ManifestReader>,
    /// The backup that is added or deleted.
    pub this: &'a ManifestReader,
    /// The surviving backup after it.
    pub after: Option<&'a ManifestReader>,
}

impl<'a> Neighbours<'a> {
    fn manifests(self) -> [Option<&'a ManifestReader>; 3] {
        [self.before, Some(self.this), self.after]
    }

    /// Returns the windows of places to go through, in order.
    pub fn windows(self) -> impl Iterator<Item = Range<u32>> + use<> {
        self.windows_of(WINDOW)
    }

    /// Returns the windows of `length` places to go through, in order.
    pub fn windows_of(self, length: u32) -> impl Iterator<Item = Range<u32>> + use<> {
        let segments = |manifest: &ManifestReader| manifest.info().geometry.segments();
        let places = self.manifests().into_iter().flatten().map(segments).max().unwrap_or(0);
        (0..places.div_ceil(length)).map(move |window| {
            let first = window * length;
            first..first.saturating_add(length).min(places)
        })
    }

    /// Returns by how much the refcount of each segment grows in a window when the middle backup is
    /// added, summed by key and in their order. Deleting it takes the same away. No sum is 0.
    pub fn gains(self, window: Range<u32>) -> Vec<(SegmentKey, u32)> {
        let mut gains: Vec<(SegmentKey, u32)> = Vec::new();
        let mut cursors =
            self.manifests().map(|manifest| manifest.map(|it| it.cursor(SegmentIndex(window.start))));
        let mut next = window.start;
        while next < window.end {
            let place = next;
            let [before, this, after] = cursors
                .each_mut()
                .map(|cursor| cursor.as_mut().and_then(|cursor: &mut Cursor| cursor.at(SegmentIndex(place))))
                .map(|segment| segment.map(|segment| segment.key));
            next += 1;
            if [before, this, after].iter().all(Option::is_none) {
                // A large hole costs nothing.
                let present = cursors.iter().flatten().filter_map(Cursor::next_present).min();
                next = present.map_or(window.end, |present| present.0.max(next));
                continue;
            }
            // A neighbour that does not exist differs from everything.
            let same_before = self.before.is_some() && before == this;
            let same_after = self.after.is_some() && after == this;
            if same_before || same_after {
                continue;
            }
            gains.extend(this.map(|key| (key, 1)));
            // What stood there before and after is one stay that is now cut in two.
            if let (true, true, Some(key)) =
                (self.before.is_some() && self.after.is_some(), before == after, before)
            {
                gains.push((key, 1));
            }
        }
        gains.sort_unstable_by_key(|(key, _)| *key);
        gains.dedup_by(|(key, gain), (first, sum)| {
            let same = key == first;
            *sum += if same { *gain } else { 0 };
            same
        });
        gains
    }
}
