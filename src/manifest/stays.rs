//! Refcounts count stays.
//!
//! In a backupset, at each place of the disk, a *stay* is a stretch of consecutive surviving backups with
//! the same segment there. A segment's refcount is the number of its stays over all backupsets. So an
//! unchanged backup changes no count, and a first one costs one count for each present segment.
//!
//! Zero, and "beyond the end of the disk", are values like others that carry no count; since neither
//! carries one they need not be told apart.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::manifest::{Cursor, ManifestReader};
use crate::segment::{SegmentIndex, SegmentKey};

/// How many places one window covers: what bounds the memory of a commit.
pub const WINDOW: u32 = 1 << 16;

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
        let segments = |manifest: &ManifestReader| manifest.info().geometry.segments();
        let places = self.manifests().into_iter().flatten().map(segments).max().unwrap_or(0);
        (0..places.div_ceil(WINDOW)).map(move |window| {
            let first = window * WINDOW;
            first..first.saturating_add(WINDOW).min(places)
        })
    }

    /// Returns by how much the refcount of each segment grows in a window when the middle backup is
    /// added, summed by key. Deleting it takes the same away. No sum is 0.
    pub fn gains(self, window: Range<u32>) -> BTreeMap<SegmentKey, u32> {
        let mut gains = BTreeMap::new();
        let mut cursors =
            self.manifests().map(|manifest| manifest.map(|it| it.cursor(SegmentIndex(window.start))));
        for place in window {
            let [before, this, after] = cursors
                .each_mut()
                .map(|cursor| cursor.as_mut().and_then(|cursor: &mut Cursor| cursor.at(SegmentIndex(place))))
                .map(|segment| segment.map(|segment| segment.key));
            // A neighbour that does not exist differs from everything.
            let same_before = self.before.is_some() && before == this;
            let same_after = self.after.is_some() && after == this;
            if same_before || same_after {
                continue;
            }
            if let Some(key) = this {
                *gains.entry(key).or_insert(0) += 1;
            }
            // What stood there before and after is one stay that is now cut in two.
            if let (true, true, Some(key)) =
                (self.before.is_some() && self.after.is_some(), before == after, before)
            {
                *gains.entry(key).or_insert(0) += 1;
            }
        }
        gains
    }
}
