//! Exports that read from a fleecing image which was used before.
//!
//! A hypervisor that exports the state of a running disk at one moment writes the old content of a block to a *fleecing* image
//! before the guest overwrites it, and reads the block from there for the export. In a new image these blocks hold what the disk
//! held at the moment of the export. If the image of the day before is used again, its blocks are still in it: they hold what the
//! disk held at the moment of the backup before, and hide what the guest has written since.
//!
//! Such blocks can be told apart. The guest overwrote them after the moment of the backup before, so they are in the bitmap of
//! what changed since; and they hold exactly what that backup holds. So Ekko compares blocks that are both in the fleecing image
//! and in the bitmap. If more of them are as in the backup before than not, the export is refused.
//!
//! What this cannot see: a server that does not tell which blocks are in the image (`allocation-depth`), an export without a
//! bitmap, and blocks of zeros, which are not counted, since discarding zeros is a change as well.

use std::ops::Range;

use crate::backup::{BackupError, TrackedChanges};
use crate::codec::Decoder;
use crate::image::{ChangeList, Image, RangeState};
use crate::repository::{Parent, RepositoryWriter};
use crate::segment::{SegmentIndex, SegmentKey, is_zero};
use crate::store::Catalog;

/// How many blocks are compared at most; they are spread over the disk.
const COMPARED: usize = 256;

/// How much of each is compared: a cluster of a fleecing image.
const BLOCK: u64 = 64 << 10;

/// Refuses an image whose changed blocks come from a fleecing image and hold what the parent holds.
pub(super) fn check(
    writer: &RepositoryWriter,
    parent: &Parent,
    image: &dyn Image,
    changes: &TrackedChanges,
) -> Result<(), BackupError> {
    let Ok(list) = &changes.list else { return Ok(()) };
    let segment_size = u64::from(parent.manifest.info().geometry.segment_size().bytes());
    let size = image.size().min(parent.manifest.info().geometry.size_of_disk());
    let blocks = both(list, &changes.overlaid, segment_size, size);
    if blocks.is_empty() {
        return Ok(());
    }
    let catalog = writer.repository().catalog()?;
    let mut before = Before { writer, parent, catalog, decoder: Decoder::new()?, last: None };
    let (mut same, mut compared) = (0, 0);
    for block in blocks.iter().step_by(blocks.len().div_ceil(COMPARED)) {
        let mut now = vec![0; usize::try_from(block.end - block.start).unwrap_or(0)];
        image.read_at(&mut now, block.start)?;
        if is_zero(&now) {
            continue;
        }
        let index = SegmentIndex(u32::try_from(block.start / segment_size).unwrap_or(u32::MAX));
        let within = usize::try_from(block.start % segment_size).unwrap_or(usize::MAX);
        // A segment that is lost says nothing.
        let Some(plain) = before.segment(index) else { continue };
        compared += 1;
        same += u32::from(plain.get(within..).is_some_and(|rest| rest.starts_with(&now)));
    }
    if same * 2 > compared { Err(BackupError::UsedFleece { same, compared }) } else { Ok(()) }
}

/// Returns blocks that are in the list as data and in the overlay, none across the boundary of a segment.
fn both(list: &ChangeList, overlaid: &[Range<u64>], segment_size: u64, size: u64) -> Vec<Range<u64>> {
    let mut blocks = Vec::new();
    let changed = list.ranges().iter().filter(|(_, state)| *state == RangeState::Data);
    let mut overlaid = overlaid.iter().peekable();
    for (range, _) in changed {
        while let Some(part) = overlaid.peek() {
            let (start, end) = (part.start.max(range.start), part.end.min(range.end).min(size));
            if start < end {
                let boundary = (start / segment_size + 1) * segment_size;
                blocks.push(start..end.min(boundary).min(start + BLOCK));
            }
            if part.end > range.end {
                break;
            }
            overlaid.next();
        }
    }
    blocks
}

/// The segments of the backup before.
struct Before<'a> {
    writer: &'a RepositoryWriter,
    parent: &'a Parent,
    catalog: Catalog,
    decoder: Decoder,
    /// The segment that was read last; nothing of one that cannot be read.
    last: Option<(SegmentIndex, Option<Vec<u8>>)>,
}

impl Before<'_> {
    fn segment(&mut self, index: SegmentIndex) -> Option<&[u8]> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != index) {
            let plain = match self.parent.manifest.cursor(index).at(index) {
                // Zeros, which the blocks that are compared are not.
                None => Some(Vec::new()),
                Some(segment) => self.read(segment.key),
            };
            self.last = Some((index, plain));
        }
        self.last.as_ref()?.1.as_deref()
    }

    fn read(&mut self, key: SegmentKey) -> Option<Vec<u8>> {
        let entry = self.writer.store().require(key).ok().filter(|entry| !entry.is_lost())?;
        let pack = self.catalog.pack(entry.place().pack).ok()?;
        let (mut stored, mut plain) = (Vec::new(), Vec::new());
        let offset = entry.place().offset;
        pack.segment(key, offset, entry.stored_length, &mut self.decoder, &mut stored, &mut plain).ok()?;
        Some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_where_the_list_and_the_overlay_meet_within_one_segment_and_the_disk() {
        const K: u64 = 1024;
        let text = br#"[{"offset":10240,"length":10240,"exists":"true"},{"offset":30720,"length":1024,"exists":"false"},
            {"offset":40960,"length":1048576,"exists":"true"}]"#;
        let list = ChangeList::parse(text, 2048 * K).unwrap();
        let blocks = |overlaid: &[Range<u64>]| both(&list, overlaid, 256 * K, 1000 * K);
        assert_eq!(blocks(&[0..11 * K, 19 * K..25 * K]), [10 * K..11 * K, 19 * K..20 * K]);
        // Zeros are no data, and what lies between two ranges is in neither.
        assert_eq!(blocks(&[20 * K..30 * K, 30 * K..40 * K]), []);
        // One range of the overlay in two of the list; of a long one the first block.
        assert_eq!(blocks(&[0..2048 * K, 3000 * K..3001 * K]), [10 * K..20 * K, 40 * K..104 * K]);
        // A segment ends at 256 KiB, and both disks at 1000 KiB.
        assert_eq!(
            blocks(&[250 * K..300 * K, 999 * K..1010 * K, 1020 * K..1030 * K]),
            [250 * K..256 * K, 999 * K..1000 * K]
        );
    }
}
