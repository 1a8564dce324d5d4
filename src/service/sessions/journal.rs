//! The file that says what a session has sent, so that a client whose session ended with the service goes on from there.
//!
//! There is one for each image, made with the first segment that is sent. It is of use only, never of need: it is not synced,
//! a record that does not fit its checksum is left out, and each segment is looked up in the index all the same.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::error::ErrorKind;
use crate::manifest::ImageName;
use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin};
use crate::storage::{Access, Storage, StorageError};

/// How long the file of a session that was cut off is kept.
const KEPT: Duration = Duration::from_hours(48);
/// How many files are kept; above that, the oldest go.
const MOST_FILES: usize = 4096;
/// How many records a file has at most: as many as are read again.
pub(super) const MOST_RECORDS: usize = 1 << 18;
/// The BLAKE3 of the image's name.
const HEAD: usize = 32;
/// A record: a key and 8 bytes of its BLAKE3.
const RECORD: usize = 30;

/// The file of a session.
#[derive(Debug)]
pub(super) struct Journal {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    head: [u8; HEAD],
    stage: Mutex<Stage>,
}

#[derive(Debug)]
enum Stage {
    /// Nothing has been sent yet.
    NotYet,
    Open {
        file: File,
        records: usize,
    },
    /// It cannot be written, or is gone.
    Closed,
}

fn record(key: &SegmentKey) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let (fields, checksum) = record.split_at_mut(RECORD - 8);
    let (hash, twin) = fields.split_at_mut(SegmentHash::LENGTH);
    hash.copy_from_slice(key.hash.as_bytes());
    twin.copy_from_slice(&key.twin.0.to_le_bytes());
    checksum.copy_from_slice(Fingerprint::of(fields).as_bytes().first_chunk::<8>().unwrap_or(&[0; 8]));
    record
}

fn read_record(record: &[u8; RECORD]) -> Option<SegmentKey> {
    let (fields, checksum) = record.split_last_chunk::<8>()?;
    let (hash, twin) = fields.split_first_chunk::<20>()?;
    let twin = Twin(u16::from_le_bytes(twin.try_into().ok()?));
    let fits = Fingerprint::of(fields).as_bytes().starts_with(checksum);
    fits.then(|| SegmentKey { hash: SegmentHash::from_bytes(*hash), twin })
}

impl Journal {
    /// Names the file of an image; nothing is made yet.
    pub(super) fn of(storage: &Arc<dyn Storage>, folder: &Path, name: &ImageName) -> Self {
        let head = Fingerprint::of(name.as_str().as_bytes());
        let name: String = head.to_string().chars().take(HEAD).collect();
        let (storage, path) = (Arc::clone(storage), folder.join(name));
        Self { storage, path, head: *head.as_bytes(), stage: Mutex::new(Stage::NotYet) }
    }

    /// Returns what earlier sessions of the image that were cut off have sent.
    pub(super) fn read(&self) -> Vec<SegmentKey> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = self.storage.handle(&self.path, Access::Read).map_err(|error| error.source)?;
            let mut head = [0; HEAD];
            file.read_exact(&mut head)?;
            let mut records = Vec::new();
            if head == self.head {
                file.take((MOST_RECORDS * RECORD) as u64).read_to_end(&mut records)?;
            }
            Ok(records)
        };
        let records = read().unwrap_or_default();
        records.as_chunks::<RECORD>().0.iter().filter_map(read_record).collect()
    }

    /// Appends what was sent, until the file is full.
    pub(super) fn append<'a>(&self, keys: impl ExactSizeIterator<Item = &'a SegmentKey>) {
        // Held over I/O: records are appended whole, one after the other.
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*stage, Stage::NotYet) && keys.len() > 0 {
            *stage = match self.open_file() {
                Ok((file, records)) => Stage::Open { file, records },
                Err(error) => failed(&error),
            };
        }
        let Stage::Open { file, records } = &mut *stage else { return };
        let bytes: Vec<u8> = keys.take(MOST_RECORDS.saturating_sub(*records)).flat_map(record).collect();
        match file.write_all(&bytes) {
            Ok(()) => *records += bytes.len() / RECORD,
            Err(error) => *stage = failed(&error),
        }
    }

    /// Opens the file behind its last whole record. Says how many it has.
    fn open_file(&self) -> io::Result<(File, usize)> {
        if let Some(folder) = self.path.parent() {
            self.storage.create_folder(folder).map_err(|error| error.source)?;
        }
        let opened = self.storage.handle(&self.path, Access::OpenOrCreate);
        let mut file = opened.map_err(|error| error.source)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let mut head = [0; HEAD];
        if length >= HEAD && file.read_exact(&mut head).is_ok() && head == self.head {
            let records = (length - HEAD) / RECORD;
            file.set_len((HEAD + records * RECORD) as u64)?;
            file.seek(SeekFrom::End(0))?;
            return Ok((file, records));
        }
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&self.head)?;
        Ok((file, 0))
    }

    /// Removes the file: the backup exists.
    pub(super) fn remove(&self) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = Stage::Closed;
        let _ = self.storage.unlink(&self.path);
    }
}

fn failed(error: &io::Error) -> Stage {
    tracing::warn!(%error, "what is sent will be sent again if the session is cut off");
    Stage::Closed
}

/// Says whether a file has a name that Ekko gives: 32 hexadecimal digits, with hyphens in earlier releases.
fn is_ours(name: &str) -> bool {
    let is_id = name.parse().is_ok_and(|id: uuid::Uuid| id.to_string() == name);
    is_id || name.len() == HEAD && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Removes the files that nobody will go on from any longer: those that are old, and the oldest of too many.
///
/// # Errors
/// The folder is not one that Ekko made.
pub(super) fn tidy(storage: &dyn Storage, folder: &Path) -> Result<(), StorageError> {
    tidy_to(storage, folder, MOST_FILES)
}

fn tidy_to(storage: &dyn Storage, folder: &Path, most: usize) -> Result<(), StorageError> {
    let names = match storage.list(folder) {
        Ok(names) => names,
        Err(error) if error.kind() == ErrorKind::Corrupt => return Err(error),
        // There is none yet, or it cannot be read now.
        Err(error) => {
            tracing::debug!(%error, "no earlier sessions");
            return Ok(());
        }
    };
    let dated = |path: PathBuf| Some((storage.examine(&path).ok()?.modified().ok()?, path));
    let ours = names.iter().filter(|name| is_ours(name)).map(|name| folder.join(name));
    let mut files: Vec<(SystemTime, PathBuf)> = ours.filter_map(dated).collect();
    files.sort_unstable();
    let too_many = files.len().saturating_sub(most);
    for (at, (time, path)) in files.iter().enumerate() {
        if at < too_many || time.elapsed().is_ok_and(|age| age > KEPT) {
            let _ = storage.unlink(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::RootStorage;
    use std::fs;

    fn key(number: u32) -> SegmentKey {
        SegmentKey { hash: SegmentHash::of(&number.to_le_bytes()), twin: Twin(1) }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .map(|it| it.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }

    #[test]
    fn there_is_no_file_before_something_is_sent_and_it_is_not_written_beyond_what_is_read() {
        let root = tempfile::tempdir().unwrap();
        let storage = Arc::new(RootStorage::at(root.path())) as Arc<dyn Storage>;
        let folder = root.path().join("sessions");
        let web = ImageName::new("blue:web").unwrap();
        let journal = Journal::of(&storage, &folder, &web);
        journal.append([].iter());
        assert_eq!(names(&folder), [""; 0]);
        let most = u32::try_from(MOST_RECORDS).unwrap();
        let keys: Vec<_> = (0..most + 500).map(key).collect();
        keys.chunks(1000).for_each(|keys| journal.append(keys.iter()));
        assert_eq!(fs::metadata(&journal.path).unwrap().len(), (HEAD + MOST_RECORDS * RECORD) as u64);
        assert_eq!(Journal::of(&storage, &folder, &web).read(), keys[..MOST_RECORDS]);
        // The session after it goes on where it ends, which is nowhere.
        Journal::of(&storage, &folder, &web).append(keys.iter());
        assert_eq!(fs::metadata(&journal.path).unwrap().len(), (HEAD + MOST_RECORDS * RECORD) as u64);
        journal.remove();
        journal.append(keys.iter());
        assert_eq!(names(&folder), [""; 0]);
    }

    #[test]
    fn old_files_and_the_oldest_of_too_many_go_and_nothing_that_is_not_ours() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let storage = RootStorage::at(root.path());
        let folder = root.path().join("sessions");
        fs::create_dir(&folder).unwrap();
        let now = SystemTime::now();
        let write = |folder: &Path, name: &str, age: Duration| {
            let file = File::create(folder.join(name)).unwrap();
            file.set_modified(now - age).unwrap();
        };
        let [a, b, c] = ["a", "b", "c"].map(|digit| digit.repeat(HEAD));
        for folder in [&folder, elsewhere.path()] {
            write(folder, &a, KEPT + Duration::from_mins(1));
            write(folder, &b, Duration::from_hours(2));
            write(folder, &c, Duration::from_hours(1));
            write(folder, "letter", KEPT * 2);
        }
        tidy(&storage, &folder).unwrap();
        assert_eq!(names(&folder), [b.as_str(), &c, "letter"]);
        tidy_to(&storage, &folder, 1).unwrap();
        assert_eq!(names(&folder), [c.as_str(), "letter"]);
        let link = root.path().join("link");
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        assert!(tidy(&storage, &link).is_err());
        assert_eq!(names(elsewhere.path()).len(), 4);
    }
}
