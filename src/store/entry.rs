//! The records of the index, and the changes to them.
//!
//! Values are rkyv archives (little-endian, unaligned, 64-bit pointers), read in place. The index is
//! derived, so its format may change with a release: [`INDEX_FORMAT`] is then raised and every index is
//! rebuilt at the next opening.

use rkyv::{Archive, Deserialize, Serialize};

use crate::manifest::{BackupsetId, Incremental};
use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin};
use crate::store::pack::{
    Appended, ContentsEntry, DeadSegment, PackId, PackNumber, RecordPlace, record_span,
};

/// The format of the index's records.
pub(super) const INDEX_FORMAT: u64 = 6;

/// The pack of a segment that is in none: no pack has this number.
pub(super) const LOST: u64 = 0;

/// What the index says of a stored segment.
#[derive(Archive, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    pub(super) fingerprint: [u8; 32],
    /// The number of its stays.
    pub refcount: u64,
    /// The generation in which the refcount fell to 0: the segment is then listed by it. 0 while the refcount is
    /// above 0, and while it has never been.
    pub zero_since: u64,
    pub(super) pack: u64,
    pub(super) offset: u64,
    /// The length of its stored bytes.
    pub stored_length: u32,
    /// The length of its plain bytes.
    pub plain_length: u32,
    /// The compression id.
    pub compression: u8,
    /// The encryption id.
    pub encryption: u8,
}

impl SegmentEntry {
    /// Makes the entry of a segment that no manifest names yet.
    pub fn new(number: PackNumber, entry: &ContentsEntry) -> Self {
        Self {
            fingerprint: *entry.fingerprint.as_bytes(),
            refcount: 0,
            zero_since: 0,
            pack: number.0,
            offset: entry.offset,
            stored_length: u32::try_from(entry.stored_length).unwrap_or(u32::MAX),
            plain_length: entry.plain_length,
            compression: entry.compression,
            encryption: entry.encryption,
        }
    }

    /// Makes the entry of a segment that was just appended.
    pub(super) fn appended(appended: &Appended) -> Self {
        Self {
            fingerprint: *appended.meta.fingerprint.as_bytes(),
            refcount: 0,
            zero_since: 0,
            pack: appended.place.pack.0,
            offset: appended.place.offset,
            stored_length: appended.stored_length,
            plain_length: appended.meta.plain_length,
            compression: appended.meta.codec.compression.id(),
            encryption: appended.meta.codec.encryption.id(),
        }
    }

    /// Makes the entry of a segment whose only copy is damaged: who brings it again must bring the same.
    pub(super) fn damaged(self) -> Self {
        Self { pack: LOST, offset: 0, stored_length: 0, compression: 0, encryption: 0, ..self }
    }

    /// Says whether it is known which bytes a lost segment had.
    pub(super) fn is_known(&self) -> bool {
        self.fingerprint != [0; 32]
    }

    /// Makes the entry of a segment that a manifest names and no pack holds: its refcount is kept, and it is
    /// stored anew by the next backup that brings it.
    pub(super) fn lost() -> Self {
        Self {
            fingerprint: [0; 32],
            refcount: 0,
            zero_since: 0,
            pack: LOST,
            offset: 0,
            stored_length: 0,
            plain_length: 0,
            compression: 0,
            encryption: 0,
        }
    }

    /// Says whether no pack holds the segment.
    pub fn is_lost(&self) -> bool {
        self.pack == LOST
    }

    /// Returns how many bytes of its pack its record takes.
    pub fn span(&self) -> u64 {
        record_span(u64::from(self.stored_length))
    }

    /// Returns the BLAKE3 of its plain bytes.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::from_bytes(self.fingerprint)
    }

    /// Returns where its record lies.
    pub fn place(&self) -> RecordPlace {
        RecordPlace { pack: PackNumber(self.pack), offset: self.offset }
    }
}

/// What the index says of a pack.
#[derive(Archive, Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackEntry {
    pub(super) id: [u8; 16],
    /// How many bytes the file has; 0 until it is sealed.
    pub size: u64,
    /// How many dead records it holds.
    pub dead: u64,
    /// How many segments' entries lie in it.
    pub living: u64,
    /// How many bytes their records take.
    pub living_bytes: u64,
    /// At most so many segments in it have never been counted, or are second copies.
    pub uncounted: u64,
}

impl PackEntry {
    /// Says whether the pack is sealed and all its segments are in the index.
    pub fn is_sealed(&self) -> bool {
        self.size > 0
    }

    /// Returns the pack's id, once it is sealed.
    pub fn id(&self) -> PackId {
        PackId(self.id)
    }
}

/// A segment that may be freed, as garbage collection found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The segment.
    pub key: SegmentKey,
    /// Where the copy lies that is to go.
    pub place: RecordPlace,
    /// How many bytes of the pack it takes.
    pub span: u64,
    /// Why nobody needs it.
    pub why: Garbage,
}

/// Why a copy of a segment may be garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Garbage {
    /// Its refcount fell to 0.
    Zero,
    /// A backup stored it that was not finished.
    Uncounted,
    /// It lies elsewhere too, where it was found whole.
    SecondCopy,
}

/// The place of a record that is in the index no longer.
#[derive(Archive, Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreedPlace {
    pub(super) pack: u64,
    id: [u8; 16],
    pub(super) offset: u64,
    /// How many bytes of the pack it takes.
    pub span: u64,
    hash: [u8; 20],
    twin: u16,
}

impl FreedPlace {
    pub(super) fn new(key: SegmentKey, place: RecordPlace, id: PackId, span: u64) -> Self {
        let (hash, twin) = (*key.hash.as_bytes(), key.twin.0);
        Self { pack: place.pack.0, id: id.0, offset: place.offset, span, hash, twin }
    }

    /// Returns the segment that was there.
    pub(super) fn key(&self) -> SegmentKey {
        SegmentKey { hash: SegmentHash::from_bytes(self.hash), twin: Twin(self.twin) }
    }

    /// Returns which pack it is in.
    pub fn pack(&self) -> PackNumber {
        PackNumber(self.pack)
    }

    pub(super) fn dead(&self) -> DeadSegment {
        DeadSegment { pack: PackId(self.id), offset: self.offset, span: self.span }
    }
}

/// What is still to be done to the packs' files after a change to the index.
#[derive(Archive, Deserialize, Serialize, Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// These places are to be given back.
    Punch {
        /// Where.
        places: Vec<FreedPlace>,
        /// Whether dead records name them already.
        buried: bool,
    },
    /// The pack is to be removed.
    Unlink {
        /// Its number.
        pack: u64,
        /// Its id: the number may be another pack's by now.
        id: [u8; 16],
    },
}

/// How far a backup's segments are counted.
#[derive(Archive, Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedState {
    /// All of them.
    Whole,
    /// It is being added: the windows before this one are counted, and of it this many keys.
    Adding {
        /// The window.
        window: u32,
        /// How many keys of it, in their order.
        keys: u32,
    },
    /// It is being taken away: the windows before this one are, and of it this many keys.
    Removing {
        /// The window.
        window: u32,
        /// How many keys of it, in their order.
        keys: u32,
    },
}

impl Task {
    /// Returns the pack that is to be removed.
    pub(super) fn unlinks(&self) -> Option<PackNumber> {
        match self {
            Self::Punch { .. } => None,
            Self::Unlink { pack, .. } => Some(PackNumber(*pack)),
        }
    }
}

/// What the index says of a backup whose segments it counts.
#[derive(Archive, Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The BLAKE3 of its manifest.
    pub manifest: [u8; 32],
    /// How far.
    pub state: CountedState,
    /// The neighbour before it when it was counted.
    pub before: Option<u32>,
    /// The neighbour after it when it was counted.
    pub after: Option<u32>,
}

impl Counted {
    /// Returns what the index says of a backup that is counted wholly.
    pub fn whole(manifest: Fingerprint) -> Self {
        Self { manifest: *manifest.as_bytes(), state: CountedState::Whole, before: None, after: None }
    }
}

/// One change to the index.
#[derive(Clone, Debug)]
pub enum Change {
    /// A segment is stored; an entry that exists already stays as it is.
    Insert(SegmentKey, SegmentEntry),
    /// A segment's refcount grows by this, or shrinks.
    Count(SegmentKey, i64),
    /// A segment lies in another pack now; if it is gone meanwhile, or elsewhere, the new copy is one too many.
    Move(SegmentKey, SegmentEntry, RecordPlace),
    /// A segment was stored again because its copy at this place was found damaged. The damaged copy is then one too many.
    Heal(SegmentKey, SegmentEntry, RecordPlace),
    /// A copy of a segment at a place, with so many bytes, is damaged: who names it lacks it until it is stored anew.
    Quarantine(SegmentKey, RecordPlace, u64),
    /// A pack is sealed: its id, its size in bytes and how many dead records it holds.
    Seal(PackNumber, PackId, u64, u64),
    /// A sealed pack holds at most so many segments that have never been counted.
    Settle(PackNumber, u64),
    /// Something is to be done to the packs' files.
    Task(Task),
    /// It is done.
    TaskDone(u64),
    /// A backup is counted this far.
    Counted(BackupsetId, Incremental, Counted),
    /// A backup is not counted any longer.
    Uncounted(BackupsetId, Incremental),
    /// The generation is this.
    Generation(u64),
}

/// The keys of the index: a letter for the kind, then the key proper, big-endian so that they sort.
pub(super) mod key {
    use super::{BackupsetId, Incremental, PackNumber, SegmentHash, SegmentKey, Twin};

    pub(in crate::store) const COUNTED: u8 = b'c';
    pub(in crate::store) const META: u8 = b'm';
    pub(in crate::store) const PACK: u8 = b'p';
    pub(in crate::store) const SEGMENT: u8 = b's';
    pub(in crate::store) const ZERO: u8 = b'z';
    /// Large records, that come and go: before all others, so that they share no page of sled's with those that
    /// change often.
    pub(in crate::store) const TASK: u8 = b'a';

    pub(in crate::store) fn segment(key: SegmentKey) -> [u8; 23] {
        let mut bytes = [SEGMENT; 23];
        let parts = key.hash.as_bytes().iter().copied().chain(key.twin.0.to_be_bytes());
        bytes.iter_mut().skip(1).zip(parts).for_each(|(to, from)| *to = from);
        bytes
    }

    pub(in crate::store) fn read_segment(bytes: &[u8]) -> Option<SegmentKey> {
        let (SEGMENT, rest) = bytes.split_first().map(|(kind, rest)| (*kind, rest))? else { return None };
        let (hash, twin) = rest.split_first_chunk::<20>()?;
        let twin = Twin(u16::from_be_bytes(*<&[u8; 2]>::try_from(twin).ok()?));
        Some(SegmentKey { hash: SegmentHash::from_bytes(*hash), twin })
    }

    /// The list of what fell to 0, in the order in which it did.
    pub(in crate::store) fn zero(since: u64, of: SegmentKey) -> Vec<u8> {
        let [_, key @ ..] = segment(of);
        [&[ZERO][..], &since.to_be_bytes(), &key].concat()
    }

    pub(in crate::store) fn read_zero(bytes: &[u8]) -> Option<(u64, SegmentKey)> {
        let (since, key) = bytes.strip_prefix(&[ZERO])?.split_first_chunk::<8>()?;
        Some((u64::from_be_bytes(*since), read_segment(&[&[SEGMENT], key].concat())?))
    }

    pub(in crate::store) fn task(number: u64) -> Vec<u8> {
        [&[TASK][..], &number.to_be_bytes()].concat()
    }

    pub(in crate::store) fn read_task(bytes: &[u8]) -> Option<u64> {
        Some(u64::from_be_bytes(bytes.strip_prefix(&[TASK])?.try_into().ok()?))
    }

    pub(in crate::store) fn pack(number: PackNumber) -> Vec<u8> {
        [&[PACK][..], &number.0.to_be_bytes()].concat()
    }

    pub(in crate::store) fn read_pack(bytes: &[u8]) -> Option<PackNumber> {
        let number = bytes.strip_prefix(&[PACK])?.try_into().ok()?;
        Some(PackNumber(u64::from_be_bytes(number)))
    }

    pub(in crate::store) fn counted(backupset: BackupsetId, incremental: Incremental) -> Vec<u8> {
        [&[COUNTED][..], backupset.as_bytes(), &incremental.0.to_be_bytes()].concat()
    }

    pub(in crate::store) fn read_counted(bytes: &[u8]) -> Option<(BackupsetId, Incremental)> {
        let (backupset, incremental) = bytes.strip_prefix(&[COUNTED])?.split_first_chunk::<16>()?;
        let incremental = Incremental(u32::from_be_bytes(incremental.try_into().ok()?));
        Some((BackupsetId::from_bytes(*backupset), incremental))
    }

    pub(in crate::store) fn meta(name: &str) -> Vec<u8> {
        [&[META][..], name.as_bytes()].concat()
    }
}
