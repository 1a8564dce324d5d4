//! Which SHA-1 goes with which BLAKE3, as far as is remembered: what is stored already, like a system that many disks were
//! installed from, is then found by its BLAKE3 alone, which takes half of the time.
//!
//! What is remembered are facts about bytes, whoever stores them, so nothing of it has to be forgotten when a segment
//! is freed. It comes from what was computed, and from the packs' tables. A name from there only ever finds what is stored
//! under it: what is stored anew is named by its bytes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::segment::{Fingerprint, SegmentHash};

/// How many names a generation has at most: as many as a table of 2^18 places takes, 14 MB.
const GENERATION: usize = (1 << 18) / 8 * 7;
/// The packs' tables are read once the SHA-1 of so many bytes was computed: reading GENERATION of their entries takes
/// about as long.
const READ_AFTER: u64 = 32 << 20;

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Fingerprint, SegmentHash>,
    old: HashMap<Fingerprint, SegmentHash>,
}

/// What is remembered: the last names, at least one generation of them and at most two.
#[derive(Debug, Default)]
pub(super) struct Names {
    generations: Mutex<Generations>,
    computed_bytes: AtomicU64,
}

impl Names {
    fn generations(&self) -> MutexGuard<'_, Generations> {
        // Whole between any two statements.
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the SHA-1 of the bytes with this BLAKE3.
    pub(super) fn recall(&self, fingerprint: &Fingerprint) -> Option<SegmentHash> {
        let generations = self.generations();
        generations.young.get(fingerprint).or_else(|| generations.old.get(fingerprint)).copied()
    }

    /// Remembers what was computed of so many bytes. Says once whether it is time to read the packs' tables.
    pub(super) fn computed(&self, fingerprint: Fingerprint, hash: SegmentHash, plain_length: u32) -> bool {
        let mut generations = self.generations();
        generations.young.insert(fingerprint, hash);
        if generations.young.len() >= GENERATION {
            generations.old = std::mem::take(&mut generations.young);
        }
        drop(generations);
        let before = self.computed_bytes.fetch_add(u64::from(plain_length), Ordering::Relaxed);
        before < READ_AFTER && before.saturating_add(u64::from(plain_length)) >= READ_AFTER
    }

    /// Remembers what a pack's table says. Says whether there is room for more.
    pub(super) fn remember_stored(&self, fingerprint: Fingerprint, hash: SegmentHash) -> bool {
        let old = &mut self.generations().old;
        if old.len() < GENERATION {
            old.insert(fingerprint, hash);
        }
        old.len() < GENERATION
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(number: u32) -> (Fingerprint, SegmentHash) {
        (Fingerprint::of(&number.to_le_bytes()), SegmentHash::of(&number.to_le_bytes()))
    }

    #[test]
    fn the_last_names_are_remembered_and_their_number_has_a_bound() {
        let names = Names::default();
        let all = u32::try_from(GENERATION).unwrap() * 2 + 1000;
        for number in 0..all {
            let (fingerprint, hash) = pair(number);
            names.computed(fingerprint, hash, 1);
        }
        let held = {
            let generations = names.generations();
            generations.young.len() + generations.old.len()
        };
        assert!((GENERATION..=2 * GENERATION).contains(&held), "{held}");
        let last = all - u32::try_from(GENERATION).unwrap();
        assert!((last..all).all(|number| names.recall(&pair(number).0) == Some(pair(number).1)));
        assert_eq!(names.recall(&pair(0).0), None);
    }

    #[test]
    fn tables_are_read_once_and_only_while_there_is_room() {
        let names = Names::default();
        let times = (0..100).filter(|number| {
            let (fingerprint, hash) = pair(*number);
            names.computed(fingerprint, hash, 1 << 20)
        });
        assert_eq!(times.count(), 1);
        let room = (0..).take_while(|number| {
            let (fingerprint, hash) = pair(1000 + number);
            names.remember_stored(fingerprint, hash)
        });
        assert_eq!(room.count(), GENERATION - 1);
        let (fingerprint, hash) = pair(u32::MAX);
        assert!(!names.remember_stored(fingerprint, hash));
        assert_eq!(names.recall(&fingerprint), None);
    }
}
