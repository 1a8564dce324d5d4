//! Which segments the index lacks, told from memory: most lookups of a large backup are of segments that are new, and each
//! would read a page of an index that does not fit its cache.
//!
//! A split block Bloom filter (Putze, Sanders, Singler 2007; as in Apache Parquet): a hash picks a block of one cache line
//! and one bit in each of its eight words. Hashes are never taken out: of one that has left the index it says "perhaps",
//! and the index is asked. It grows by layers, each as large as all before it, and takes 2 bytes for each segment, at most
//! 4 just after it grew.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::segment::SegmentHash;

/// Words in a block.
const WORDS: usize = 8;
/// How many hashes a block is meant for: 16 bits each. About 1 in 1,000 others is taken for one of them.
const HASHES: u64 = 32;
/// How many hashes the first layer is meant for.
const FIRST: u64 = 1 << 15;
/// An opened index is read for it once so many lookups were in vain...
const LEAST_MISSES: u64 = 1 << 12;
/// ... and one in so many of the segments that it holds: reading a record costs so much less than looking for one.
const READ_FOR: u64 = 16;

#[derive(Debug)]
struct Layer {
    blocks: Vec<[AtomicU64; WORDS]>,
    left: AtomicU64,
}

impl Layer {
    fn new(hashes: u64) -> Self {
        let blocks = (0..hashes.div_ceil(HASHES)).map(|_| Default::default()).collect();
        Self { blocks, left: AtomicU64::new(hashes) }
    }

    /// Returns a hash's block, and the bit in each of its words.
    fn place(&self, hash: &SegmentHash) -> Option<(&[AtomicU64; WORDS], impl Iterator<Item = u64>)> {
        let bytes = hash.as_bytes();
        let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let (block, bits) = (word(0)?, word(8)?);
        // The upper half of a product with the number of blocks: each block is as likely.
        let block = (u128::from(block) * self.blocks.len() as u128) >> 64;
        let block = self.blocks.get(usize::try_from(block).ok()?)?;
        Some((block, (0..WORDS).map(move |word| 1 << (bits >> (6 * word) & 63))))
    }

    fn insert(&self, hash: &SegmentHash) {
        if let Some((block, bits)) = self.place(hash) {
            for (word, bit) in block.iter().zip(bits) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    fn holds(&self, hash: &SegmentHash) -> bool {
        self.place(hash).is_none_or(|(block, mut bits)| {
            block.iter().all(|word| bits.next().is_none_or(|bit| word.load(Ordering::Relaxed) & bit != 0))
        })
    }
}

/// The filter of an index that is open.
#[derive(Debug, Default)]
pub(super) struct Filter {
    layers: RwLock<Vec<Layer>>,
    /// Whether every segment of the index is in it.
    complete: AtomicBool,
    /// How many lookups were in vain while it was not.
    misses: AtomicU64,
}

impl Filter {
    /// Says whether the index is known to lack a hash.
    pub(super) fn lacks(&self, hash: &SegmentHash) -> bool {
        // Whoever inserted into the index before this has inserted here before that.
        self.complete.load(Ordering::Acquire)
            && !self
                .layers
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .any(|layer| layer.holds(hash))
    }

    /// Puts a hash in, before it is put into the index.
    pub(super) fn insert(&self, hash: &SegmentHash) {
        {
            let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
            // An entry that changes is written again.
            if layers.iter().any(|layer| layer.holds(hash)) {
                return;
            }
            if let Some(layer) = layers.last()
                && layer
                    .left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
            {
                return layer.insert(hash);
            }
        }
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        let all: u64 = layers.iter().map(|layer| layer.blocks.len() as u64 * HASHES).sum();
        let layer = Layer::new(all.max(FIRST));
        layer.insert(hash);
        layer.left.fetch_sub(1, Ordering::Relaxed);
        layers.push(layer);
    }

    /// Says that from now on every segment of the index is in it.
    pub(super) fn complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Counts a lookup in vain in an index of `segments`. Says once whether it is time to read the index.
    pub(super) fn missed(&self, segments: u64) -> bool {
        if self.complete.load(Ordering::Acquire) {
            return false;
        }
        let due = (segments / READ_FOR).max(LEAST_MISSES);
        self.misses.fetch_add(1, Ordering::Relaxed) + 1 == due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u32) -> SegmentHash {
        SegmentHash::of(&number.to_le_bytes())
    }

    #[test]
    fn what_was_put_in_is_never_lacking_and_little_else_is_taken_for_it() {
        let filter = Filter::default();
        assert!(!filter.lacks(&hash(0)), "nothing is known before it is complete");
        filter.complete();
        assert!(filter.lacks(&hash(0)));
        // Three layers.
        let all = 4 * u32::try_from(FIRST).unwrap() - 1;
        (0..all).for_each(|number| filter.insert(&hash(number)));
        assert_eq!(filter.layers.read().unwrap().len(), 3);
        assert!((0..all).all(|number| !filter.lacks(&hash(number))));
        let wrong = (all..2 * all).filter(|number| !filter.lacks(&hash(*number))).count();
        assert!(wrong < 2 * 3 * all as usize / 1000, "{wrong} of {all}");
    }

    #[test]
    fn it_is_time_to_read_the_index_once() {
        let filter = Filter::default();
        let times = |segments| (0..10_000).filter(|_| filter.missed(segments)).count();
        assert_eq!(times(1_000_000), 0);
        assert_eq!((0..60_000).filter(|_| filter.missed(1_000_000)).count(), 1);
        let filter = Filter::default();
        assert_eq!((0..10_000).filter(|_| filter.missed(10)).count(), 1);
        let filter = Filter::default();
        filter.complete();
        assert!(!(0..10_000).any(|_| filter.missed(10)));
    }

    #[test]
    fn threads_put_in_side_by_side() {
        let filter = Filter::default();
        filter.complete();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let filter = &filter;
                scope.spawn(move || {
                    for number in 0..50_000 {
                        filter.insert(&hash(thread * 50_000 + number));
                    }
                });
            }
        });
        assert!((0..200_000).all(|number| !filter.lacks(&hash(number))));
    }
}
