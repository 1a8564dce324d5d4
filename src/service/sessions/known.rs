//! Which segments a client may name without sending them: those that its project's backups hold, and those that were sent in
//! the session or in earlier ones of the image that were cut off. Knowing a hash is not owning data.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::manifest::ImageName;
use crate::segment::SegmentKey;
use crate::service::sessions::journal::{Journal, MOST_RECORDS};
use crate::service::sessions::owned::Owned;
use crate::storage::Storage;

/// How many segments that were sent are known at least; at most twice as many.
const GENERATION: usize = MOST_RECORDS / 2;

#[derive(Debug, Default)]
struct Sent {
    young: HashSet<SegmentKey>,
    old: HashSet<SegmentKey>,
}

impl Sent {
    /// Takes a segment down. Says whether it is new among the youngest.
    fn insert(&mut self, key: SegmentKey) -> bool {
        let is_new = self.young.insert(key);
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        is_new
    }
}

/// What a session may name.
#[derive(Debug)]
pub(super) struct Known {
    owned: Arc<Owned>,
    sent: Mutex<Sent>,
    journal: Journal,
}

impl Known {
    /// Begins what a session of `name` may name; it goes on from what earlier ones that were cut off have sent.
    pub(super) fn new(
        owned: Arc<Owned>,
        name: &ImageName,
        storage: &Arc<dyn Storage>,
        folder: &Path,
    ) -> Self {
        let journal = Journal::of(storage, folder, name);
        let mut sent = Sent::default();
        for key in journal.read() {
            sent.insert(key);
        }
        Self { owned, sent: Mutex::new(sent), journal }
    }

    /// Says whether the session may name a segment.
    pub(super) fn may_name(&self, key: &SegmentKey) -> bool {
        if self.owned.holds(key) {
            return true;
        }
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.young.contains(key) || sent.old.contains(key)
    }

    /// Takes down that segments were sent.
    pub(super) fn sent(&self, keys: &[SegmentKey]) {
        let new: Vec<_> = {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            keys.iter().filter(|key| sent.insert(**key)).collect()
        };
        self.journal.append(new.into_iter());
    }

    /// Removes the file: the backup exists.
    pub(super) fn forget(&self) {
        self.journal.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{SegmentHash, Twin};
    use crate::storage::RootStorage;

    fn key(number: u32) -> SegmentKey {
        SegmentKey { hash: SegmentHash::of(&number.to_le_bytes()), twin: Twin(1) }
    }

    #[test]
    fn what_was_sent_may_be_named_and_a_later_session_of_that_image_goes_on_from_it() {
        let root = tempfile::tempdir().unwrap();
        let storage = Arc::new(RootStorage::at(root.path())) as Arc<dyn Storage>;
        let folder = root.path().join("sessions");
        let web = ImageName::new("blue:web").unwrap();
        let known = Known::new(Owned::of(&[key(7)]), &web, &storage, &folder);
        assert!(known.may_name(&key(7)) && !known.may_name(&key(1)));
        known.sent(&[key(1), key(2)]);
        assert!(known.may_name(&key(1)) && known.may_name(&key(2)));
        drop(known);
        // A torn record at the end, as a crash leaves it, and a changed bit.
        let path = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let torn = bytes[bytes.len() - 30..bytes.len() - 1].to_vec();
        bytes.extend_from_slice(&torn);
        bytes[32 + 5] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let other = Known::new(Arc::default(), &ImageName::new("red:web").unwrap(), &storage, &folder);
        assert!(!other.may_name(&key(2)), "another project's");
        let next = Known::new(Arc::default(), &web, &storage, &folder);
        assert!(!next.may_name(&key(1)) && next.may_name(&key(2)));
        next.sent(&[key(3)]);
        drop(next);
        let last = Known::new(Arc::default(), &web, &storage, &folder);
        assert!(last.may_name(&key(2)) && last.may_name(&key(3)), "it goes on from the one that went on");
        last.forget();
        assert!(!path.exists());
    }

    #[test]
    fn what_was_sent_last_is_known_and_memory_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(RootStorage::at(folder.path())) as Arc<dyn Storage>;
        let sessions = folder.path().join("sessions");
        let known = Known::new(Arc::default(), &ImageName::new("web").unwrap(), &storage, &sessions);
        let all = u32::try_from(3 * GENERATION).unwrap();
        let keys: Vec<_> = (0..all).map(key).collect();
        keys.chunks(1000).for_each(|keys| known.sent(keys));
        assert!(keys[keys.len() - GENERATION..].iter().all(|key| known.may_name(key)));
        let sent = known.sent.lock().unwrap();
        assert!(sent.young.len() + sent.old.len() <= 2 * GENERATION);
    }
}
