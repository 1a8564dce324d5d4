//! Which segments a client may name without sending them: those that its project's backups hold, and those that were sent in
//! the session or in earlier ones of the image that were cut off. Knowing a hash is not owning data.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::manifest::ImageName;
use crate::segment::SegmentKey;
use crate::service::limits::{Share, Shares};
use crate::service::sessions::journal::{Journal, MOST_RECORDS};
use crate::service::sessions::owned::Owned;
use crate::storage::Storage;

/// How long generations are, in segments. A session knows at least one generation of those that were sent or asked about last,
/// and at most four.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    /// That of a session that has no share of the memory that sessions share.
    least: usize,
    /// How much longer a generation gets with each share.
    step: usize,
    /// Two generations hold a whole file.
    most: usize,
}

/// A client names what it asked about within two of its parts of a manifest, 8192 segments.
const LENGTHS: Lengths = Lengths { least: 1 << 13, step: 1 << 13, most: MOST_RECORDS / 2 };

/// How many shares of memory for longer generations there are, for all sessions together. Each is for 2^15 segments: 0.8 to
/// 1.7 MB, as tables grow in powers of two.
pub(super) const SHARES: usize = 64;

/// What was sent, in two generations: the old one is dropped when the young one is full.
///
/// Whoever asks about a segment names it a while later. So what is asked about becomes young: it is known until a generation
/// of others has been sent after it. No generation has more than two times its length.
///
/// A generation that is full gets longer as long as its caller has a share of the memory for that: one caller, or the first ones to
/// come, leave room to others.
#[derive(Debug)]
struct Sent {
    lengths: Lengths,
    generation: usize,
    room: Arc<Shares>,
    who: String,
    shares: Vec<Share>,
    young: HashSet<SegmentKey>,
    old: HashSet<SegmentKey>,
}

impl Sent {
    fn new(lengths: Lengths, room: &Arc<Shares>, who: &str) -> Self {
        Self {
            lengths,
            generation: lengths.least,
            room: Arc::clone(room),
            who: who.to_owned(),
            shares: Vec::new(),
            young: HashSet::new(),
            old: HashSet::new(),
        }
    }

    /// Takes a segment down. Says whether it is new among the youngest.
    fn insert(&mut self, key: SegmentKey) -> bool {
        if self.young.contains(&key) {
            return false;
        }
        self.old.remove(&key);
        if self.young.len() >= self.generation {
            self.grow();
        }
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

    fn grow(&mut self) {
        if self.generation + self.lengths.step <= self.lengths.most
            && let Some(share) = self.room.try_take(&self.who, 1)
        {
            self.shares.push(share);
            self.generation += self.lengths.step;
        }
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
    /// Begins what a session of `name` may name; it goes on from what earlier ones that were cut off have sent. It has shares
    /// of `room` in the name of its caller.
    pub(super) fn new(
        owned: Arc<Owned>,
        name: &ImageName,
        (storage, folder): (&Arc<dyn Storage>, &Path),
        (room, who): (&Arc<Shares>, &str),
    ) -> Self {
        let journal = Journal::of(storage, folder, name);
        let mut sent = Sent::new(LENGTHS, room, who);
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

    /// Says whether a segment was sent, as far as that is still known.
    pub(super) fn was_sent(&self, key: &SegmentKey) -> bool {
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
    use std::time::Duration;

    use crate::segment::{SegmentHash, Twin};
    use crate::storage::RootStorage;

    fn key(number: u32) -> SegmentKey {
        SegmentKey { hash: SegmentHash::of(&number.to_le_bytes()), twin: Twin(1) }
    }

    fn room(shares: usize) -> Arc<Shares> {
        Arc::new(Shares::new("memory", shares, 0, Duration::ZERO))
    }

    fn begin(owned: Arc<Owned>, name: &ImageName, storage: &Arc<dyn Storage>, folder: &Path) -> Known {
        Known::new(owned, name, (storage, folder), (&room(SHARES), "blue"))
    }

    #[test]
    fn what_was_sent_may_be_named_and_a_later_session_of_that_image_goes_on_from_it() {
        let root = tempfile::tempdir().unwrap();
        let storage = Arc::new(RootStorage::at(root.path())) as Arc<dyn Storage>;
        let folder = root.path().join("sessions");
        let web = ImageName::new("blue:web").unwrap();
        let known = begin(Owned::of(&[key(7)]), &web, &storage, &folder);
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
        let other = begin(Arc::default(), &ImageName::new("red:web").unwrap(), &storage, &folder);
        assert!(!other.may_name(&key(2)), "another project's");
        let next = begin(Arc::default(), &web, &storage, &folder);
        assert!(!next.may_name(&key(1)) && next.may_name(&key(2)));
        next.sent(&[key(3)]);
        drop(next);
        let last = begin(Arc::default(), &web, &storage, &folder);
        assert!(last.may_name(&key(2)) && last.may_name(&key(3)), "it goes on from the one that went on");
        last.forget();
        assert!(!path.exists());
    }

    #[test]
    fn what_was_sent_last_is_known_and_memory_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(RootStorage::at(folder.path())) as Arc<dyn Storage>;
        let sessions = folder.path().join("sessions");
        let known = begin(Arc::default(), &ImageName::new("web").unwrap(), &storage, &sessions);
        let generation = LENGTHS.most;
        let all = u32::try_from(3 * generation).unwrap();
        let keys: Vec<_> = (0..all).map(key).collect();
        keys.chunks(1000).for_each(|keys| known.sent(keys));
        assert!(keys[keys.len() - generation..].iter().all(|key| known.may_name(key)));
        let sent = known.sent.lock().unwrap();
        assert!(sent.young.len() + sent.old.len() <= 4 * generation);
    }

    #[test]
    fn what_was_asked_about_stays_known_while_a_generation_is_sent_after_it() {
        for generation in [4, 16] {
            let number = u32::try_from(generation).unwrap();
            let lengths = Lengths { least: generation, step: 1, most: generation };
            let mut sent = Sent::new(lengths, &room(1), "blue");
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
    fn all_sessions_together_have_a_bound_and_a_caller_who_comes_late_has_a_share() {
        let lengths = Lengths { least: 10, step: 10, most: 100 };
        let room = room(16);
        let number =
            |sessions: &[Sent]| sessions.iter().map(|it| it.young.len() + it.old.len()).sum::<usize>();
        let keys: Vec<_> = (0..500).map(key).collect();
        let mut sessions = Vec::new();
        let mut generations = Vec::new();
        for who in ["a", "b", "c", "d"] {
            for _ in 0..10 {
                let mut sent = Sent::new(lengths, &room, who);
                for (at, key) in keys.iter().enumerate() {
                    sent.insert(*key);
                    keys[..at].iter().for_each(|other| _ = sent.find(other));
                }
                generations.push(sent.generation);
                sessions.push(sent);
            }
            assert!(number(&sessions) <= 4 * (sessions.len() * lengths.least + 16 * lengths.step));
        }
        assert_eq!([0, 1, 10, 11, 20, 30].map(|at| generations[at]), [100, 40, 40, 10, 20, 10]);
        drop(sessions);
        assert_eq!(room.taken(), 0);
    }

    #[test]
    fn a_session_goes_on_from_all_of_a_full_file() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(RootStorage::at(folder.path())) as Arc<dyn Storage>;
        let (sessions, web) = (folder.path().join("sessions"), ImageName::new("web").unwrap());
        let keys: Vec<_> = (0..u32::try_from(MOST_RECORDS).unwrap()).map(key).collect();
        let journal = Journal::of(&storage, &sessions, &web);
        keys.chunks(1000).for_each(|keys| journal.append(keys.iter()));
        let known = begin(Arc::default(), &web, &storage, &sessions);
        assert!(keys.iter().all(|key| known.may_name(key)));
        assert!(keys.iter().all(|key| known.may_name(key)), "asked about once more");
    }
}
