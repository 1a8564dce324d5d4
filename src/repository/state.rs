//! `state`: how far the index may be believed.
//!
//! Two slots of 256 bytes, at 0 and at 4,096, written in turn; the one with the higher sequence that fits
//! its checksum counts, so a torn write leaves the other.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `EKKOSTAT` |
//! | 8 | 4 | format |
//! | 12 | 4 | 1 if the repository was closed in order, else 0 |
//! | 16 | 8 | sequence |
//! | 24 | 8 | generation |
//! | 32 | 8 | number of the index |
//! | 40 | 32 | digest of the index's files, if closed in order |
//! | 72 | 152 | zeros, reserved |
//! | 224 | 32 | BLAKE3 of the 224 bytes before |

use std::path::Path;

use crate::segment::Fingerprint;
use crate::storage::{FieldReader, FieldWriter, Storage, StorageError, StorageFile, TooShort};

const MAGIC: [u8; 8] = *b"EKKOSTAT";
const FORMAT: u32 = 1;
const LENGTH: usize = 256;
const COVERED: usize = 224;
const SLOTS: [u64; 2] = [0, 4096];

/// What the state says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Raised by every write; the caller's value is not looked at.
    pub(super) sequence: u64,
    /// No index below this may be believed.
    pub(super) generation: u64,
    /// The number of the index in use.
    pub(super) index: u64,
    /// The digest of the index's files if the repository was closed in order.
    pub(super) clean: Option<Fingerprint>,
}

impl State {
    fn encode(&self) -> Vec<u8> {
        let digest = self.clean.map_or([0; 32], |digest| *digest.as_bytes());
        let fields = FieldWriter::with_capacity(LENGTH)
            .bytes(&MAGIC)
            .u32(FORMAT)
            .u32(u32::from(self.clean.is_some()))
            .u64(self.sequence)
            .u64(self.generation)
            .u64(self.index)
            .bytes(&digest)
            .zeros_to(COVERED);
        let checksum = Fingerprint::of(fields.as_slice());
        fields.bytes(checksum.as_bytes()).finish()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let covered = bytes.get(..COVERED)?;
        if bytes.get(COVERED..LENGTH)? != Fingerprint::of(covered).as_bytes() {
            return None;
        }
        let fields = |mut reader: FieldReader<'_>| -> Result<Option<Self>, TooShort> {
            if reader.array()? != MAGIC || reader.u32()? != FORMAT {
                return Ok(None);
            }
            let clean = reader.u32()? == 1;
            let (sequence, generation, index) = (reader.u64()?, reader.u64()?, reader.u64()?);
            let digest = Fingerprint::from_bytes(reader.array()?);
            Ok(Some(Self { sequence, generation, index, clean: clean.then_some(digest) }))
        };
        fields(FieldReader::new(covered)).ok().flatten()
    }
}

/// The open file, and what it says.
#[derive(Debug)]
pub(super) struct StateFile {
    file: Box<dyn StorageFile>,
    state: State,
}

impl StateFile {
    /// Creates the file of a new repository, without an index.
    pub(super) fn create(storage: &dyn Storage, path: &Path) -> Result<(), StorageError> {
        let file = match storage.create(path) {
            Ok(file) => file,
            // An `init` that was cut short left it.
            Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => storage.open(path)?,
            Err(error) => return Err(error),
        };
        let state = State { sequence: 0, generation: 0, index: 0, clean: None };
        let mut file = Self { file, state };
        file.write(state)?;
        file.write(state)
    }

    /// Opens the file. A missing or unreadable one says that no index may be believed: `None` in place of
    /// what it said; generations then begin anew above every one that can have been.
    pub(super) fn open(storage: &dyn Storage, path: &Path) -> Result<(Self, Option<State>), StorageError> {
        let file = match storage.open(path) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => storage.create(path)?,
            Err(error) => return Err(error),
        };
        let mut newest: Option<State> = None;
        for slot in SLOTS {
            let mut bytes = [0; LENGTH];
            match file.read_at(&mut bytes, slot) {
                Ok(()) => {}
                Err(error) if error.source.kind() == std::io::ErrorKind::UnexpectedEof => continue,
                Err(error) => return Err(error),
            }
            if let Some(state) = State::decode(&bytes)
                && newest.is_none_or(|other| other.sequence < state.sequence)
            {
                newest = Some(state);
            }
        }
        let state = newest.unwrap_or(State { sequence: 0, generation: 0, index: 0, clean: None });
        Ok((Self { file, state }, newest))
    }

    /// Returns what was last written.
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Writes a new state; when this returns it is durable.
    pub(super) fn write(&mut self, state: State) -> Result<(), StorageError> {
        let sequence = self.state.sequence.wrapping_add(1);
        let state = State { sequence, ..state };
        let slot = if sequence.is_multiple_of(2) { SLOTS[0] } else { SLOTS[1] };
        self.file.write_at(&state.encode(), slot)?;
        self.file.sync()?;
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::OsStorage;
    use std::fs;

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        StateFile::create(&OsStorage, &path).unwrap();
        let (mut file, _) = StateFile::open(&OsStorage, &path).unwrap();
        for generation in 1..6 {
            let before = file.state();
            file.write(State { generation, ..before }).unwrap();
            let slot = if file.state().sequence % 2 == 0 { 0 } else { 4096 };
            let whole = fs::read(&path).unwrap();
            for at in (0..LENGTH).step_by(5) {
                let mut torn = whole.clone();
                torn[slot + at] ^= 0x10;
                fs::write(&path, torn).unwrap();
                let (_, state) = StateFile::open(&OsStorage, &path).unwrap();
                assert_eq!(state, Some(before));
            }
            fs::write(&path, whole).unwrap();
            assert_eq!(StateFile::open(&OsStorage, &path).unwrap().1, Some(file.state()));
        }
    }

    #[test]
    fn a_state_that_is_gone_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert_eq!(StateFile::open(&OsStorage, &path).unwrap().1, None);
        fs::write(&path, [7; 100]).unwrap();
        assert_eq!(StateFile::open(&OsStorage, &path).unwrap().1, None);
    }
}
