//! What is to be fetched from where, a window of the disk at a time.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::manifest::ManifestReader;
use crate::restore::RestoreError;
use crate::segment::{SegmentIndex, SegmentKey};
use crate::store::{Catalog, CatalogProblem, SegmentPlace};

/// How many segments one window of a restore covers.
const WINDOW: u32 = 1 << 18;

/// The windows of a range of a disk's segments, in order.
pub(super) fn windows(segments: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    windows_of(segments, WINDOW)
}

/// The same, of `most` segments each.
pub(super) fn windows_of(segments: Range<u32>, most: u32) -> impl Iterator<Item = Range<u32>> {
    let Range { start, end } = segments;
    (0..end.saturating_sub(start).div_ceil(most)).map(move |window| {
        let first = start + window * most;
        first..first.saturating_add(most).min(end)
    })
}

/// One segment of the plan: where its copies lie and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: SegmentKey,
    /// Its copies, as a range of [`Plan::places`]; none if it is missing.
    copies: Range<usize>,
    pub(super) targets: Vec<SegmentIndex>,
}

/// Where a window's segments lie after garbage collection has moved some.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) catalog: Catalog,
    /// Sorted by their keys.
    places: Vec<SegmentPlace>,
}

impl Moved {
    /// Returns where the copies of a segment lie.
    pub(super) fn copies(&self, key: SegmentKey) -> &[SegmentPlace] {
        let first = self.places.partition_point(|place| place.key < key);
        let behind = self.places.partition_point(|place| place.key <= key);
        self.places.get(first..behind).unwrap_or(&[])
    }
}

/// A window's segments.
#[derive(Debug)]
pub(super) struct Plan {
    places: Vec<SegmentPlace>,
    /// Each segment once, in the order of the packs.
    pub(super) items: Vec<Item>,
    /// Where the segments lie now, if garbage collection has moved any since.
    moved: Mutex<Option<Arc<Moved>>>,
}

impl Plan {
    /// Makes the plan of those segments of a window that are wanted.
    pub(super) fn of(
        manifest: &ManifestReader,
        catalog: &Catalog,
        window: Range<u32>,
        is_wanted: impl Fn(SegmentIndex) -> bool,
    ) -> Result<(Self, Vec<CatalogProblem>), RestoreError> {
        let mut cursor = manifest.cursor(SegmentIndex(window.start));
        let mut wanted: Vec<(SegmentKey, SegmentIndex)> = window
            .map(SegmentIndex)
            .filter(|index| is_wanted(*index))
            .filter_map(|index| Some((cursor.at(index)?.key, index)))
            .collect();
        wanted.sort_unstable();
        let mut keys: Vec<_> = wanted.iter().map(|(key, _)| *key).collect();
        keys.dedup();
        let (places, problems) = catalog.locate(&keys)?;
        let mut items: Vec<Item> = Vec::with_capacity(keys.len());
        for (key, index) in wanted {
            match items.last_mut() {
                Some(item) if item.key == key => item.targets.push(index),
                _ => {
                    let first = places.partition_point(|place| place.key < key);
                    let behind = places.partition_point(|place| place.key <= key);
                    items.push(Item { key, copies: first..behind, targets: vec![index] });
                }
            }
        }
        let mut plan = Self { places, items: Vec::new(), moved: Mutex::default() };
        items.sort_by_key(|item| plan.copies(item).first().map(|copy| copy.place));
        plan.items = items;
        Ok((plan, problems))
    }

    /// Returns where the copies of a segment lie.
    pub(super) fn copies(&self, item: &Item) -> &[SegmentPlace] {
        self.places.get(item.copies.clone()).unwrap_or(&[])
    }

    /// Looks where the segments lie now, if packs have gone since it was last looked: `seen` is what came of that,
    /// if it was. Returns nothing if all packs are still there.
    pub(super) fn moved(&self, catalog: &Catalog, seen: Option<&Arc<Moved>>) -> Option<Arc<Moved>> {
        // Held over I/O: whoever else needs to know waits for the same answer.
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        let known = moved.as_ref();
        if let Some(known) = known.filter(|known| seen.is_none_or(|seen| !Arc::ptr_eq(seen, known))) {
            return Some(Arc::clone(known));
        }
        let renewed = known.map_or(catalog, |known| &known.catalog).renewed().ok().flatten()?;
        let mut keys: Vec<_> = self.items.iter().map(|item| item.key).collect();
        keys.sort_unstable();
        let (places, _) = renewed.locate(&keys).ok()?;
        Some(Arc::clone(moved.insert(Arc::new(Moved { catalog: renewed, places }))))
    }

    /// Returns each place of the window with its item, in the order of the places.
    pub(super) fn in_order(&self) -> Vec<(SegmentIndex, &Item)> {
        let mut order: Vec<_> =
            self.items.iter().flat_map(|item| item.targets.iter().map(move |index| (*index, item))).collect();
        order.sort_unstable_by_key(|(index, _)| *index);
        order
    }
}
