//! Reading around unreadable sectors, in smaller and smaller pieces.
//!
//! Only an error that means "this place cannot be read" is read around: a link that drops or a device that is gone still ends
//! the reading. The ranges are bounded: if there are more than [`MOST_UNREADABLE`], the two that are nearest to each other are
//! recorded as one, with the readable bytes between them.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use crate::image::{Image, ImageError, NbdError, NbdTask};

/// The most ranges that are recorded.
const MOST_UNREADABLE: usize = 1024;
/// The sizes of a sector that are believed, in bytes.
const SECTORS: RangeInclusive<usize> = 512..=64 << 10;
/// How many pieces a piece that cannot be read is divided into.
const PARTS: usize = 8;

/// The errors of the kernel that mean that a place cannot be read: of a medium (ENODATA), of its target (EREMOTEIO), of a
/// checksum (EILSEQ, EBADMSG, EUCLEAN), or any other (EIO).
const UNREADABLE: [Errno; 6] =
    [Errno::IO, Errno::NODATA, Errno::REMOTEIO, Errno::ILSEQ, Errno::BADMSG, Errno::UCLEAN];
/// The number by which an NBD server says that a place cannot be read.
const NBD_EIO: u32 = 5;

/// Says whether an error of the operating system means that one place cannot be read or written.
pub fn is_bad_place(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| UNREADABLE.contains(&errno))
}

impl ImageError {
    /// Says whether the source cannot give the bytes of one place, and may give others.
    pub fn is_unreadable_place(&self) -> bool {
        match self {
            Self::Read { source, .. } => is_bad_place(source),
            Self::Nbd { task: NbdTask::Read { .. }, source: NbdError::Server { number, .. }, .. } => {
                *number == NBD_EIO
            }
            _ => false,
        }
    }

    /// Says whether a target cannot take the bytes of one place, and may take others.
    pub fn is_unwritable_place(&self) -> bool {
        match self {
            Self::Nbd { task: NbdTask::Write { .. }, source: NbdError::Server { number, .. }, .. } => {
                *number == NBD_EIO
            }
            _ => false,
        }
    }
}

/// Ranges of bytes that could not be read.
#[derive(Debug, Default)]
pub struct UnreadableRanges {
    /// The end of each range by its beginning. They do not touch.
    ranges: Mutex<BTreeMap<u64, u64>>,
}

impl UnreadableRanges {
    /// Fills `buffer` from `offset` on. What cannot be read of it becomes zeros and is recorded; returns how many bytes that is.
    ///
    /// # Errors
    /// The source fails in another way than at a place.
    pub fn read_around(&self, image: &dyn Image, buffer: &mut [u8], offset: u64) -> Result<u64, ImageError> {
        match image.read_at(buffer, offset) {
            Ok(()) => return Ok(0),
            Err(error) if error.is_unreadable_place() => {}
            Err(error) => return Err(error),
        }
        let bytes = buffer.len() as u64;
        let sector = image.sector_bytes().clamp(*SECTORS.start(), *SECTORS.end());
        if buffer.len() <= sector {
            buffer.fill(0);
            self.add(offset..offset + bytes);
            return Ok(bytes);
        }
        let part = (buffer.len() / PARTS).next_multiple_of(sector).max(sector);
        let parts = buffer.chunks_mut(part).zip((offset..).step_by(part));
        parts.into_iter().map(|(part, offset)| self.read_around(image, part, offset)).sum()
    }

    fn add(&self, range: Range<u64>) {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let Range { mut start, mut end } = range;
        while let Some((&first, &last)) = ranges.range(..=end).next_back()
            && last >= start
        {
            ranges.remove(&first);
            (start, end) = (start.min(first), end.max(last));
        }
        ranges.insert(start, end);
        if ranges.len() > MOST_UNREADABLE {
            join_nearest(&mut ranges);
        }
    }

    /// Forgets what of the ranges lies in another one. Returns what that was, in order.
    pub fn take(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let touching: Vec<_> = ranges.range(..range.end).filter(|(_, end)| **end > range.start).collect();
        let touching: Vec<_> = touching.into_iter().map(|(start, end)| *start..*end).collect();
        for Range { start, end } in &touching {
            ranges.remove(start);
            if *start < range.start {
                ranges.insert(*start, range.start);
            }
            if range.end < *end {
                ranges.insert(range.end, *end);
            }
        }
        touching.into_iter().map(|it| it.start.max(range.start)..it.end.min(range.end)).collect()
    }

    /// Returns the ranges, in order.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        let ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.iter().map(|(start, end)| *start..*end).collect()
    }
}

/// Makes one of the two ranges with the shortest gap between them.
fn join_nearest(ranges: &mut BTreeMap<u64, u64>) {
    let pairs = ranges.iter().zip(ranges.keys().skip(1));
    let nearest = pairs.min_by_key(|((_, end), next)| *next - *end).map(|((start, _), next)| (*start, *next));
    let Some((start, next)) = nearest else { return };
    if let Some(end) = ranges.remove(&next) {
        ranges.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "one range is a list of ranges")]

    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::image::Extent;

    /// A disk of 0x55 with sectors that cannot be read.
    #[derive(Debug)]
    struct Worn {
        size: u64,
        bad: Vec<Range<u64>>,
        errno: Errno,
        sector: usize,
        reads: AtomicU64,
    }

    impl Worn {
        fn new(bad: Vec<Range<u64>>, errno: Errno) -> Self {
            Self { size: 8 << 20, bad, errno, sector: 512, reads: AtomicU64::new(0) }
        }
    }

    impl Image for Worn {
        fn path(&self) -> &Path {
            Path::new("worn")
        }

        fn size(&self) -> u64 {
            self.size
        }

        fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
            Ok(Some(Extent { offset: from, length: self.size - from }))
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let end = offset + buffer.len() as u64;
            if self.bad.iter().any(|bad| bad.start < end && offset < bad.end) {
                let source = io::Error::from(self.errno);
                return Err(ImageError::Read { path: self.path().to_owned(), offset, source });
            }
            buffer.fill(0x55);
            Ok(())
        }

        fn verify_unchanged(&self) -> Result<(), ImageError> {
            Ok(())
        }

        fn sector_bytes(&self) -> usize {
            self.sector
        }
    }

    #[test]
    fn no_part_of_a_larger_sector_is_read_by_itself() {
        let read = |sector| {
            let worn = Worn { sector, ..Worn::new(vec![8192..8193], Errno::IO) };
            let found = UnreadableRanges::default();
            found.read_around(&worn, &mut vec![9; 64 << 10], 0).unwrap();
            (found.ranges(), worn.reads.into_inner())
        };
        // 64 KiB, 8 KiB, and one piece after the other of the last.
        assert_eq!(read(512), (vec![8192..8704], 1 + 8 + 8 + 2));
        assert_eq!(read(4096), (vec![8192..12_288], 1 + 8 + 2));
    }

    #[test]
    fn only_the_sectors_that_cannot_be_read_become_zeros() {
        let bad = vec![512..1024, 1024..1536, (5 << 20) + 1..(5 << 20) + 2];
        for errno in UNREADABLE {
            let worn = Worn::new(bad.clone(), errno);
            let found = UnreadableRanges::default();
            let mut bytes = vec![9; 8 << 20];
            found.read_around(&worn, &mut bytes, 0).unwrap();
            assert_eq!(found.ranges(), [512..1536, 5 << 20..(5 << 20) + 512]);
            for (at, byte) in bytes.iter().enumerate() {
                let is_bad = (512..1536).contains(&at) || (5 << 20..(5 << 20) + 512).contains(&at);
                assert_eq!(*byte, if is_bad { 0 } else { 0x55 }, "{at}");
            }
            // Two bad places cost about two paths down, not every sector.
            assert!(worn.reads.load(Ordering::Relaxed) < 200, "{worn:?}");
        }
    }

    #[test]
    fn a_source_that_is_gone_is_not_read_around() {
        for errno in [Errno::NXIO, Errno::NODEV, Errno::ACCESS] {
            let worn = Worn::new(vec![512..1024], errno);
            let found = UnreadableRanges::default();
            assert!(found.read_around(&worn, &mut vec![0; 1 << 20], 0).is_err(), "{errno}");
            assert!(found.ranges().is_empty());
        }
    }

    #[test]
    fn a_short_end_of_a_disk_is_read_around_too() {
        let worn = Worn { size: 1300, ..Worn::new(vec![1290..1291], Errno::IO) };
        let found = UnreadableRanges::default();
        let mut bytes = vec![9; 1300];
        found.read_around(&worn, &mut bytes, 0).unwrap();
        assert_eq!(found.ranges(), [1024..1300]);
        assert!(
            bytes.iter().take(1024).all(|byte| *byte == 0x55)
                && bytes.iter().skip(1024).all(|byte| *byte == 0)
        );
    }

    #[test]
    fn ranges_join_and_their_number_is_bounded() {
        let found = UnreadableRanges::default();
        for (start, end) in [(100, 200), (300, 400), (200, 300), (50, 120), (350, 360)] {
            found.add(start..end);
        }
        assert_eq!(found.ranges(), [50..400]);
        let found = UnreadableRanges::default();
        let most = MOST_UNREADABLE as u64;
        for number in 0..3 * most {
            // The gaps grow.
            let start = number * number;
            found.add(2 * start..2 * start + 1);
        }
        let ranges = found.ranges();
        assert_eq!(ranges.len(), MOST_UNREADABLE);
        let last = 2 * (3 * most - 1).pow(2);
        assert_eq!(
            (ranges.first().map(|it| it.start), ranges.last().cloned()),
            (Some(0), Some(last..last + 1))
        );
    }
}
