//! Which segments a client may name without sending them: those that its project's backups hold, and those that were sent in
//! the session. Knowing a hash is not owning data.
//!
//! What was sent is also written to a file of the session, so that a client whose session ended with the service goes on
//! with what it has sent. That is of use only, never of need: it is not synced, what does not fit its checksum is left
//! out, and each segment is looked up in the index all the same.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::View;
use crate::manifest::ImageName;
use crate::repository::{Repository, RepositoryError};
use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin};
use crate::storage::{Access, Storage, StorageError};

/// How many segments of a project's backups are known at most, of the newest backup of each image: 6 MB. What lies beyond
/// is sent once more.
const MOST_OWNED: usize = 1 << 18;
/// How many segments that were sent are known at least; at most twice as many.
const GENERATION: usize = 1 << 17;
/// A record of the file: a key and 8 bytes of its BLAKE3.
const RECORD: usize = 30;

#[derive(Debug, Default)]
struct Sent {
    young: HashSet<SegmentKey>,
    old: HashSet<SegmentKey>,
}

/// What a session may name.
#[derive(Debug)]
pub(super) struct Known {
    /// Sorted.
    owned: Arc<[SegmentKey]>,
    sent: Mutex<Sent>,
    journal: Mutex<Option<File>>,
    storage: Arc<dyn Storage>,
    path: PathBuf,
}

/// Says whether Ekko gives this name to the file of a session.
pub(super) fn is_session(name: &str) -> bool {
    name.parse().is_ok_and(|id: uuid::Uuid| id.to_string() == name)
}

/// Returns the segments of the newest backup of each image that is seen, sorted; images whose manifests cannot be read
/// are left out.
pub(super) fn owned_by(repository: &Repository, view: &View) -> Result<Arc<[SegmentKey]>, RepositoryError> {
    let (sets, _) = repository.backupsets()?;
    let mut keys = Vec::new();
    for set in view.seen(sets) {
        let Some(newest) = set.backups.last() else { continue };
        let Ok(manifest) = repository.manifest(&set, newest) else { continue };
        if manifest.verify().is_err() {
            continue;
        }
        let room = MOST_OWNED.saturating_sub(keys.len());
        keys.extend(manifest.segments().take(room).map(|(_, segment)| segment.key));
    }
    keys.sort_unstable();
    keys.dedup();
    Ok(keys.into())
}

/// Returns what stands first in the file of a session of an image: nobody else goes on from it.
fn head(name: &ImageName) -> [u8; 32] {
    *Fingerprint::of(name.as_str().as_bytes()).as_bytes()
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

impl Known {
    /// Begins what a session of `name` may name; it goes on from what earlier ones that were cut off have sent.
    pub(super) fn new(
        owned: Arc<[SegmentKey]>,
        name: &ImageName,
        storage: Arc<dyn Storage>,
        path: PathBuf,
    ) -> Self {
        let known = Self { owned, sent: Mutex::default(), journal: Mutex::default(), storage, path };
        let earlier = known.earlier();
        match known.begin(name) {
            Ok(file) => *known.journal.lock().unwrap_or_else(PoisonError::into_inner) = Some(file),
            Err(error) => tracing::warn!(%error, "what is sent will be sent again if the session is cut off"),
        }
        for from in &earlier {
            known.go_on_from(from, name);
        }
        known
    }

    /// Lists the files beside its own. One of an image that is being sent is not among those that fit: there is one
    /// session of an image at a time.
    fn earlier(&self) -> Vec<PathBuf> {
        let Some(folder) = self.path.parent() else { return Vec::new() };
        let names = self.storage.list(folder).unwrap_or_default();
        names.iter().filter(|name| is_session(name)).map(|name| folder.join(name)).collect()
    }

    fn begin(&self, name: &ImageName) -> Result<File, StorageError> {
        if let Some(folder) = self.path.parent() {
            self.storage.create_folder(folder)?;
        }
        let mut file = self.storage.handle(&self.path, Access::Create)?;
        file.write_all(&head(name)).map_err(|source| StorageError::new("write", &self.path, source))?;
        Ok(file)
    }

    fn go_on_from(&self, from: &Path, name: &ImageName) {
        let read = || -> std::io::Result<Option<Vec<u8>>> {
            let mut file = self.storage.handle(from, Access::Read).map_err(|error| error.source)?;
            let mut begin = [0; 32];
            file.read_exact(&mut begin)?;
            if begin != head(name) {
                return Ok(None);
            }
            let mut records = Vec::new();
            file.take((2 * GENERATION * RECORD) as u64).read_to_end(&mut records)?;
            Ok(Some(records))
        };
        let Ok(Some(records)) = read() else { return };
        let (records, _) = records.as_chunks::<RECORD>();
        let keys: Vec<_> = records.iter().filter_map(read_record).collect();
        self.sent(&keys);
        // It is in the new one now.
        let _ = self.storage.unlink(from);
    }

    /// Says whether the session may name a segment.
    pub(super) fn may_name(&self, key: &SegmentKey) -> bool {
        if self.owned.binary_search(key).is_ok() {
            return true;
        }
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.young.contains(key) || sent.old.contains(key)
    }

    /// Takes down that segments were sent.
    pub(super) fn sent(&self, keys: &[SegmentKey]) {
        let mut records = Vec::with_capacity(keys.len() * RECORD);
        {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            for key in keys {
                if sent.young.insert(*key) {
                    records.extend_from_slice(&record(key));
                }
                if sent.young.len() >= GENERATION {
                    sent.old = std::mem::take(&mut sent.young);
                }
            }
        }
        // Held over I/O: records are appended whole, one after the other.
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = journal.as_mut()
            && let Err(error) = file.write_all(&records)
        {
            tracing::warn!(%error, "what is sent will be sent again if the session is cut off");
            *journal = None;
        }
    }

    /// Removes the file: the backup exists, or was given up.
    pub(super) fn forget(&self) {
        *self.journal.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let _ = self.storage.unlink(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::RootStorage;

    /// A name as Ekko gives it, for each letter.
    fn session(letter: &str) -> String {
        uuid::Uuid::from_bytes([letter.as_bytes()[0]; 16]).to_string()
    }

    fn key(number: u32) -> SegmentKey {
        SegmentKey { hash: SegmentHash::of(&number.to_le_bytes()), twin: Twin(1) }
    }

    #[test]
    fn what_was_sent_may_be_named_and_a_later_session_of_that_image_goes_on_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let storage = || Arc::new(RootStorage::at(folder.path())) as Arc<dyn Storage>;
        let path = |name: &str| folder.path().join("sessions").join(session(name));
        let web = ImageName::new("blue:web").unwrap();
        let owned: Arc<[_]> = Arc::new([key(7)]);
        let known = Known::new(Arc::clone(&owned), &web, storage(), path("a"));
        assert!(known.may_name(&key(7)) && !known.may_name(&key(1)));
        known.sent(&[key(1), key(2)]);
        assert!(known.may_name(&key(1)) && known.may_name(&key(2)));
        drop(known);
        // A torn record at the end, as a crash leaves it, and a changed bit.
        let mut bytes = std::fs::read(path("a")).unwrap();
        bytes.extend_from_slice(&record(&key(3))[..29]);
        bytes[32 + 5] ^= 1;
        std::fs::write(path("a"), &bytes).unwrap();
        // What is not the file of a session is neither read nor removed.
        let letter = folder.path().join("sessions/letter");
        std::fs::write(&letter, &bytes).unwrap();
        let other = Known::new(Arc::default(), &ImageName::new("red:web").unwrap(), storage(), path("b"));
        assert!(!other.may_name(&key(2)), "another project's");
        let next = Known::new(Arc::default(), &web, storage(), path("c"));
        assert!(!next.may_name(&key(1)) && next.may_name(&key(2)) && !next.may_name(&key(3)));
        assert!(!path("a").exists());
        let last = Known::new(Arc::default(), &web, storage(), path("d"));
        assert!(last.may_name(&key(2)), "it goes on from the one that went on");
        last.forget();
        assert!(!path("d").exists() && letter.exists());
    }

    #[test]
    fn what_was_sent_last_is_known_and_memory_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(RootStorage::at(folder.path()));
        let path = folder.path().join(session("a"));
        let known = Known::new(Arc::default(), &ImageName::new("web").unwrap(), storage, path);
        let all = u32::try_from(3 * GENERATION).unwrap();
        let keys: Vec<_> = (0..all).map(key).collect();
        keys.chunks(1000).for_each(|keys| known.sent(keys));
        assert!(keys[keys.len() - GENERATION..].iter().all(|key| known.may_name(key)));
        let sent = known.sent.lock().unwrap();
        assert!(sent.young.len() + sent.old.len() <= 2 * GENERATION);
    }
}
