//! What was read and verified when: so that a check of a part takes what was longest not checked.
//!
//! The file `checked` has, for each pack, for each slice of 16 MiB the number of the check that read it last; checks
//! of data are numbered from 1. It is derived: gone or damaged, everything counts as never checked.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `EKKOCHK1` |
//! | 8 | 8 | number of packs |
//! | each | 16 | id of the pack |
//! | | 4 | number of its slices |
//! | | 4 each | number of the check that read it last; 0 never |
//! | last | 32 | BLAKE3 of all before |

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::check::copies::Copy;
use crate::repository::Repository;
use crate::segment::Fingerprint;
use crate::storage::{FieldReader, FieldWriter, TooShort};
use crate::store::pack::{PACK_LIMIT, PackId, PackNumber};
use crate::store::{Catalog, SegmentPlace};

const MAGIC: [u8; 8] = *b"EKKOCHK1";
const SLICE: u64 = 16 << 20;
/// A pack has fewer slices, unless somebody made it to have a record where none can be: those count as one.
const MOST_SLICES: u64 = 2 * PACK_LIMIT / SLICE;

/// A slice of a pack.
pub(super) type Slice = (PackNumber, u32);

/// Returns the slice that a record begins in.
pub(super) fn slice(place: &SegmentPlace) -> Slice {
    (place.place.pack, u32::try_from((place.place.offset / SLICE).min(MOST_SLICES)).unwrap_or(u32::MAX))
}

/// Which check read each slice of each pack last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    packs: HashMap<[u8; 16], Vec<u32>>,
}

impl Memory {
    /// Reads what was remembered.
    pub(super) fn load(repository: &Repository) -> Self {
        let bytes = repository.read_checked().unwrap_or_default();
        Self::decode(&bytes).unwrap_or_default()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (covered, checksum) = bytes.split_last_chunk::<32>()?;
        if Fingerprint::of(covered).as_bytes() != checksum {
            return None;
        }
        let fields = |mut reader: FieldReader<'_>| -> Result<Option<Self>, TooShort> {
            if reader.array()? != MAGIC {
                return Ok(None);
            }
            let mut packs = HashMap::new();
            for _ in 0..reader.u64()? {
                let id = reader.array()?;
                let slices = (0..reader.u32()?).map(|_| reader.u32()).collect::<Result<_, _>>()?;
                packs.insert(id, slices);
            }
            Ok(Some(Self { packs }))
        };
        fields(FieldReader::new(covered)).ok().flatten()
    }

    fn encode(&self) -> Vec<u8> {
        let fields = FieldWriter::default().bytes(&MAGIC).u64(self.packs.len() as u64);
        let fields = self.packs.iter().fold(fields, |fields, (id, slices)| {
            let fields = fields.bytes(id).u32(u32::try_from(slices.len()).unwrap_or(0));
            slices.iter().fold(fields, |fields, number| fields.u32(*number))
        });
        let checksum = Fingerprint::of(fields.as_slice());
        fields.bytes(checksum.as_bytes()).finish()
    }

    fn checked(&self, id: PackId, slice: u32) -> u32 {
        self.packs.get(&id.0).and_then(|slices| slices.get(slice as usize)).copied().unwrap_or(0)
    }

    /// Chooses the slices that were longest not checked and hold `percent` of all stored bytes, or a slice more.
    pub(super) fn choose(&self, catalog: &Catalog, copies: &[Copy], percent: f64) -> HashSet<Slice> {
        let mut slices: BTreeMap<Slice, u64> = BTreeMap::new();
        for copy in copies {
            *slices.entry(slice(&copy.place)).or_default() += u64::from(copy.place.stored_length);
        }
        let all: u64 = slices.values().sum();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of the bytes, not an exact number"
        )]
        let wanted = (all as f64 * percent / 100.0).ceil() as u64;
        let id = |number| catalog.pack(number).map(|pack| pack.header().id());
        let mut order: Vec<_> = slices
            .iter()
            .map(|(slice, bytes)| (id(slice.0).map_or(0, |id| self.checked(id, slice.1)), *slice, *bytes))
            .collect();
        order.sort_unstable();
        let mut chosen = HashSet::new();
        let mut bytes = 0;
        for (_, slice, length) in order {
            if bytes >= wanted {
                break;
            }
            bytes += length;
            chosen.insert(slice);
        }
        chosen
    }

    /// Remembers that slices were checked now, but for those that hold something damaged, and forgets packs that
    /// are gone. Says whether it could be written.
    pub(super) fn remember(
        mut self,
        repository: &Repository,
        catalog: &Catalog,
        chosen: &HashSet<Slice>,
        copies: &[Copy],
    ) -> bool {
        let damaged: HashSet<_> =
            copies.iter().filter(|copy| copy.damaged).map(|copy| slice(&copy.place)).collect();
        let numbers: HashSet<_> = copies.iter().map(|copy| copy.place.place.pack).collect();
        let ids: HashMap<_, _> = numbers
            .into_iter()
            .filter_map(|number| Some((number, catalog.pack(number).ok()?.header().id())))
            .collect();
        self.packs.retain(|id, _| ids.values().any(|there| there.0 == *id));
        let last = self.packs.values().flatten().max().copied().unwrap_or(0);
        for slice in chosen.difference(&damaged) {
            let Some(id) = ids.get(&slice.0) else { continue };
            let slices = self.packs.entry(id.0).or_default();
            let at = slice.1 as usize;
            if slices.len() <= at {
                slices.resize(at + 1, 0);
            }
            if let Some(number) = slices.get_mut(at) {
                *number = last.saturating_add(1);
            }
        }
        repository.write_checked(&self.encode()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{SegmentHash, SegmentKey, Twin};
    use crate::store::pack::RecordPlace;

    #[test]
    fn a_record_where_no_pack_has_any_makes_no_long_list() {
        let key = SegmentKey { hash: SegmentHash::of(b"x"), twin: Twin(0) };
        let slice_of = |offset| {
            let place = RecordPlace { pack: PackNumber(1), offset };
            slice(&SegmentPlace { key, place, stored_length: 1, plain_length: 1 }).1
        };
        assert_eq!(slice_of(3 * SLICE + 512), 3);
        assert!(u64::from(slice_of(u64::MAX)) <= MOST_SLICES);
    }

    #[test]
    fn what_was_remembered_comes_back_and_a_changed_byte_forgets_it() {
        let memory = Memory { packs: HashMap::from([([1; 16], vec![7, 0, 9]), ([2; 16], vec![])]) };
        let bytes = memory.encode();
        assert_eq!(Memory::decode(&bytes), Some(memory));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(Memory::decode(&changed), None, "byte {at}");
            assert_eq!(Memory::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
