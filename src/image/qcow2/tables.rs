//! The two levels of tables that say where each cluster of a disk lies.

use std::sync::{Arc, Mutex, PoisonError};

use crate::image::qcow2::header::{Disk, Fields, Header};
use crate::image::{Image, ImageError, RawImage};

/// The bits of an entry that are an offset in a file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: of a cluster in a data file at offset 0, that it is there.
const COPIED: u64 = 1 << 63;
/// Bit 62: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0: the cluster reads as zeros.
const ZERO: u64 = 1;

/// How much of a table of the second level is read at once, and kept: at most so many parts.
const PART: u64 = 64 << 10;
const PARTS_KEPT: usize = 32;

/// Into how many parts an extended entry divides its cluster.
const SUBCLUSTERS: u64 = 32;

/// Where a run of a disk's bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In what lies below the image.
    Below,
    /// Nowhere: it is zeros.
    Zero,
    /// In the file that holds the data, from this offset on.
    Data(u64),
    /// In one compressed cluster of the image, whose stored bytes are these at most.
    Compressed { offset: u64, length: u64 },
}

/// Neighbouring bytes of a disk that lie in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) place: Place,
    pub(super) length: u64,
}

/// A part of a table of the second level: where it lies, and its numbers.
type Part = (u64, Arc<[u64]>);

/// The tables of one disk.
#[derive(Debug)]
pub(super) struct Tables {
    header: Header,
    size: u64,
    l1: Vec<u64>,
    /// What was read last, the latest at the end.
    parts: Mutex<Vec<Part>>,
}

impl Tables {
    /// Reads the table of the first level.
    pub(super) fn read(file: &RawImage, header: &Header, disk: Disk) -> Result<Self, ImageError> {
        header.check_disk(disk).map_err(|what| ImageError::damaged(file.path(), what))?;
        let used = disk.size.div_ceil(header.l2_span());
        let l1 = numbers(file, disk.l1_offset, used * 8)?;
        Ok(Self { header: header.clone(), size: disk.size, l1, parts: Mutex::default() })
    }

    /// Returns the size of the disk in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Says where the bytes from `offset`, which is on the disk, lie, and for how long in one place. A run ends at the
    /// end of what one read of a table says at the latest.
    pub(super) fn run(&self, file: &RawImage, offset: u64) -> Result<Run, ImageError> {
        let run = self.whole_run(file, offset)?;
        Ok(Run { length: run.length.min(self.size.saturating_sub(offset)), ..run })
    }

    fn whole_run(&self, file: &RawImage, offset: u64) -> Result<Run, ImageError> {
        let header = &self.header;
        let span = header.l2_span();
        let tables = usize::try_from(offset / span).ok().and_then(|first| self.l1.get(first..));
        let tables = tables.unwrap_or_default();
        let table = tables.first().map_or(0, |entry| entry & OFFSET);
        if table == 0 {
            let empty = tables.iter().take_while(|entry| *entry & OFFSET == 0).count().max(1) as u64;
            return Ok(Run { place: Place::Below, length: empty * span - offset % span });
        }
        if !table.is_multiple_of(header.cluster_size()) {
            return Err(ImageError::damaged(
                file.path(),
                "a table of the second level begins inside a cluster",
            ));
        }
        let part_bytes = PART.min(header.cluster_size());
        let clusters_a_part = part_bytes / header.entry_size();
        let cluster = offset % span / header.cluster_size();
        let entries = self.part(file, table + cluster / clusters_a_part * part_bytes, part_bytes)?;
        let first = cluster % clusters_a_part;
        let mut found: Option<Run> = None;
        let mut within = offset % header.cluster_size();
        for index in first..clusters_a_part {
            let more = self.cluster(file, &entries, index, within, &mut found)?;
            within = 0;
            if !more {
                break;
            }
        }
        found.ok_or_else(|| ImageError::damaged(file.path(), "a table of the second level is cut off"))
    }

    /// Adds what lies in one cluster, from `within` on, to a run. Says whether the run may go on behind it.
    fn cluster(
        &self,
        file: &RawImage,
        entries: &[u64],
        index: u64,
        within: u64,
        run: &mut Option<Run>,
    ) -> Result<bool, ImageError> {
        let header = &self.header;
        let cluster_size = header.cluster_size();
        let words = header.entry_size() / 8;
        let word = |at: u64| usize::try_from(index * words + at).ok().and_then(|at| entries.get(at)).copied();
        let cut = || ImageError::damaged(file.path(), "a table of the second level is cut off");
        let entry = word(0).ok_or_else(cut)?;
        if entry & COMPRESSED != 0 {
            let place = self.compressed(file, entry)?;
            // A run of its own.
            run.get_or_insert(Run { place, length: cluster_size - within });
            return Ok(false);
        }
        let host = self.host(file, entry)?;
        let mut add = |place: Place, length: u64| -> bool {
            match run {
                None => {
                    *run = Some(Run { place, length });
                    true
                }
                Some(run) if follows(*run, place) => {
                    run.length += length;
                    true
                }
                Some(_) => false,
            }
        };
        if !header.extended {
            let place = match (entry & ZERO != 0, host) {
                (true, _) if header.version < 3 => {
                    return Err(ImageError::damaged(
                        file.path(),
                        "a cluster is zeros, which version 2 cannot say",
                    ));
                }
                (true, _) => Place::Zero,
                (false, Some(host)) => Place::Data(host + within),
                (false, None) => Place::Below,
            };
            return Ok(add(place, cluster_size - within));
        }
        let bitmap = word(1).ok_or_else(cut)?;
        let (stored, zeros) = (bitmap & 0xffff_ffff, bitmap >> 32);
        if stored & zeros != 0 || (stored != 0 && host.is_none()) || entry & ZERO != 0 {
            return Err(ImageError::damaged(file.path(), "the parts of a cluster contradict each other"));
        }
        let size = cluster_size / SUBCLUSTERS;
        let mut within = within;
        for part in within / size..SUBCLUSTERS {
            let place = match (stored >> part & 1, zeros >> part & 1, host) {
                (1, _, Some(host)) => Place::Data(host + within),
                (_, 1, _) => Place::Zero,
                _ => Place::Below,
            };
            let end = (part + 1) * size;
            if !add(place, end - within) {
                return Ok(false);
            }
            within = end;
        }
        Ok(true)
    }

    /// Returns where a cluster lies that is not compressed; nothing if it is not there.
    fn host(&self, file: &RawImage, entry: u64) -> Result<Option<u64>, ImageError> {
        let host = entry & OFFSET;
        if !host.is_multiple_of(self.header.cluster_size()) {
            return Err(ImageError::damaged(file.path(), "a cluster begins inside another"));
        }
        // Only a data file of its own has guest bytes at its beginning.
        let is_there = host != 0 || (self.header.has_data_file && entry & COPIED != 0);
        Ok(is_there.then_some(host))
    }

    fn compressed(&self, file: &RawImage, entry: u64) -> Result<Place, ImageError> {
        if self.header.has_data_file {
            return Err(ImageError::damaged(file.path(), "a cluster in a data file is compressed"));
        }
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let entry = entry & !(COPIED | COMPRESSED);
        let (offset, sectors) = (entry & ((1 << offset_bits) - 1), (entry >> offset_bits) + 1);
        Ok(Place::Compressed { offset, length: sectors * 512 - offset % 512 })
    }

    /// Reads a part of a table of the second level, or takes it from what was read last.
    fn part(&self, file: &RawImage, offset: u64, length: u64) -> Result<Arc<[u64]>, ImageError> {
        let lock = || self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut parts = lock();
            if let Some(at) = parts.iter().position(|(at, _)| *at == offset) {
                let part = parts.remove(at);
                let numbers = Arc::clone(&part.1);
                parts.push(part);
                return Ok(numbers);
            }
        }
        let numbers: Arc<[u64]> = numbers(file, offset, length)?.into();
        let mut parts = lock();
        if parts.len() >= PARTS_KEPT {
            parts.remove(0);
        }
        parts.push((offset, Arc::clone(&numbers)));
        Ok(numbers)
    }
}

/// Says whether bytes at `place` go on where a run ends.
fn follows(run: Run, place: Place) -> bool {
    match (run.place, place) {
        (Place::Data(offset), Place::Data(next)) => offset.checked_add(run.length) == Some(next),
        (Place::Zero, Place::Zero) | (Place::Below, Place::Below) => true,
        _ => false,
    }
}

/// Reads numbers of 8 bytes.
fn numbers(file: &RawImage, offset: u64, length: u64) -> Result<Vec<u64>, ImageError> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read_at(&mut bytes, offset)?;
    Ok((0..bytes.len() / 8).filter_map(|index| Fields(&bytes).u64(index * 8)).collect())
}
