//! The stored copies of all segments, as the packs' tables list them.

use crate::check::CheckError;
use crate::segment::SegmentKey;
use crate::store::pack::RecordPlace;
use crate::store::{Catalog, SegmentPlace};

/// A stored copy of a segment: 64 bytes each is the memory that a check takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub(super) place: SegmentPlace,
    pub(super) damaged: bool,
    pub(super) named: bool,
    /// Whether the index has the segment; said of the first copy of each.
    pub(super) indexed: bool,
    /// The number of the segment's stays, counted from the manifests; said of the first copy of each.
    pub(super) refcount: u32,
}

/// For how many copies there is room before the first is read: 1 GiB for a store of 64 TiB. More are added as they come.
const MOST_AHEAD: usize = 1 << 24;

/// Lists every stored copy, by segment and place. What cannot be read is described in `problems`.
pub(super) fn list(catalog: &Catalog, problems: &mut Vec<String>) -> Result<Vec<Copy>, CheckError> {
    // As much as is needed, and not up to twice as much, as a vector that grows takes; but not all that packs say at once,
    // which may come from somebody else.
    let listed = usize::try_from(catalog.listed()).unwrap_or(0);
    let mut copies = Vec::with_capacity(listed.min(MOST_AHEAD));
    let unreadable = catalog.for_each_segment(|number, entry| {
        let place = RecordPlace { pack: number, offset: entry.offset };
        let stored_length = u32::try_from(entry.stored_length).unwrap_or(u32::MAX);
        let place = SegmentPlace { key: entry.key, place, stored_length, plain_length: entry.plain_length };
        copies.push(Copy { place, damaged: false, named: false, indexed: false, refcount: 0 });
    })?;
    problems.extend(unreadable.iter().map(|problem| problem.error.to_string()));
    copies.sort_unstable_by_key(|copy| (copy.place.key, copy.place.place));
    Ok(copies)
}

/// Returns the copies of a segment.
pub(super) fn of(copies: &[Copy], key: SegmentKey) -> &[Copy] {
    let first = copies.partition_point(|copy| copy.place.key < key);
    let rest = copies.get(first..).unwrap_or_default();
    let behind = rest.iter().take_while(|copy| copy.place.key == key).count();
    rest.get(..behind).unwrap_or_default()
}

/// Returns the copies of a segment, to note something of them.
pub(super) fn of_mut(copies: &mut [Copy], key: SegmentKey) -> &mut [Copy] {
    let first = copies.partition_point(|copy| copy.place.key < key);
    let rest = copies.get_mut(first..).unwrap_or_default();
    let behind = rest.iter().take_while(|copy| copy.place.key == key).count();
    rest.get_mut(..behind).unwrap_or_default()
}
