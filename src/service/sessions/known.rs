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

/// How many segments are known at least that were sent or asked about last; at most four times as many. Two generations hold
/// a whole file.
const GENERATION: usize = MOST_RECORDS / 2;

/// What was sent, in two generations: the old one is dropped when the young one is full.
///
/// Whoever asks about a segment names it a while later. So what is asked about becomes young: it is known until
/// [`GENERATION`] others have been sent after it. No generation has more than two times as many segments.
#[derive(Debug)]
struct Sent {
    generation: usize,
    young: HashSet<SegmentKey>,
    old: HashSet<SegmentKey>,
}

impl Sent {
    fn new(generation: usize) -> Self {
        Self { generation, young: HashSet::new(), old: HashSet::new() }
    }

    /// Takes a segment down. Says whether it is new among the youngest.
    fn insert(&mut self, key: SegmentKey) -> bool {
        if self.young.contains(&key) {
            return false;
        }
        self.old.remove(&key);
        self.make_room(self.generation);
        self.young.insert(key)
    }

    /// Says whether a segment is known. If so, it is young from now on.
    fn find(&mut self, key: &SegmentKey) -> bool {
        if self.young.contains(key) {
            return true;
        }
        let was_old = self.old.remove(key);
        if was_old {
            // One after the other, all of the old ones may be asked about: none of those goes because of it.
            self.make_room(2 * self.generation);
            self.young.insert(*key);
        }
        was_old
    }

    fn make_room(&mut self, most: usize) {
        if self.young.len() >= most {
            self.old = std::mem::take(&mut self.young);
        }
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
        let mut sent = Sent::new(GENERATION);
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
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).find(key)
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
        assert!(sent.young.len() + sent.old.len() <= 4 * GENERATION);
    }

    #[test]
    fn what_was_asked_about_stays_known_while_a_generation_is_sent_after_it() {
        for generation in [4, 16] {
            let number = u32::try_from(generation).unwrap();
            let mut sent = Sent::new(generation);
            (0..number).for_each(|it| assert!(sent.insert(key(it))));
            // One more makes those the old ones; the first of them is asked about.
            assert!(sent.insert(key(number)) && sent.find(&key(0)));
            (number + 1..2 * number).for_each(|it| assert!(sent.insert(key(it))));
            assert!(sent.find(&key(0)), "what a client was told it need not send");
            // However it is sent and asked for, memory has a bound.
            for it in 0..20 * number {
                sent.insert(key(1000 + it));
                for other in 0..1000 + it {
                    sent.find(&key(other));
                }
                assert!(sent.young.len() <= 2 * generation && sent.old.len() <= 2 * generation);
            }
        }
    }

    #[test]
    fn a_session_goes_on_from_all_of_a_full_file() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(RootStorage::at(folder.path())) as Arc<dyn Storage>;
        let (sessions, web) = (folder.path().join("sessions"), ImageName::new("web").unwrap());
        let keys: Vec<_> = (0..u32::try_from(MOST_RECORDS).unwrap()).map(key).collect();
        let journal = Journal::of(&storage, &sessions, &web);
        keys.chunks(1000).for_each(|keys| journal.append(keys.iter()));
        let known = Known::new(Arc::default(), &web, &storage, &sessions);
        assert!(keys.iter().all(|key| known.may_name(key)));
        assert!(keys.iter().all(|key| known.may_name(key)), "asked about once more");
    }
}
