//! So many in a second, or in a minute, for each.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many are told apart; the others share what one has.
const MOST: usize = 8192;
/// How often it is looked who need not be told apart any longer.
const SWEEP: Duration = Duration::from_secs(1);

/// Buckets that fill by themselves, one for each, and that each of its requests takes one from.
#[derive(Debug)]
pub(in crate::service) struct Rates<K> {
    per_second: f64,
    /// What a full bucket holds.
    burst: f64,
    now: Mutex<Now<K>>,
}

#[derive(Debug)]
struct Now<K> {
    each: HashMap<K, Bucket>,
    others: Option<Bucket>,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl<K: Hash + Eq> Rates<K> {
    pub(in crate::service) fn new(per_second: f64, burst: f64) -> Self {
        let now = Now { each: HashMap::new(), others: None, swept: None };
        Self { per_second: per_second.max(1e-6), burst: burst.max(1.0), now: Mutex::new(now) }
    }

    /// Takes one from a bucket; what is missing, as the seconds until it is there, if it is empty.
    pub(in crate::service) fn take(&self, key: K) -> Result<(), u32> {
        self.take_at(key, Instant::now())
    }

    /// Puts back what was taken for nothing.
    pub(in crate::service) fn put_back(&self, key: &K) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = now.each.get_mut(key) {
            bucket.level = (bucket.level + 1.0).min(self.burst);
        }
    }

    /// Says whether a bucket is empty, and takes nothing from it.
    pub(in crate::service) fn check(&self, key: &K) -> Result<(), u32> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        match now.each.get(key) {
            Some(bucket) => self.missing(self.level(*bucket, Instant::now())),
            None => Ok(()),
        }
    }

    fn take_at(&self, key: K, at: Instant) -> Result<(), u32> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.each.len() >= MOST && !now.each.contains_key(&key) && Self::may_sweep(&now, at) {
            // A full bucket says no more than none.
            now.each.retain(|_, bucket| self.level(*bucket, at) < self.burst);
            now.swept = Some(at);
        }
        let full = Bucket { level: self.burst, at };
        let bucket = if now.each.len() < MOST || now.each.contains_key(&key) {
            now.each.entry(key).or_insert(full)
        } else {
            now.others.get_or_insert(full)
        };
        let level = self.level(*bucket, at);
        let missing = self.missing(level);
        *bucket = Bucket { level: if missing.is_ok() { level - 1.0 } else { level }, at };
        missing
    }

    fn may_sweep(now: &Now<K>, at: Instant) -> bool {
        now.swept.is_none_or(|swept| at.saturating_duration_since(swept) >= SWEEP)
    }

    fn level(&self, bucket: Bucket, at: Instant) -> f64 {
        let seconds = at.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.level + seconds * self.per_second).min(self.burst)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 1 to 3600")]
    fn missing(&self, level: f64) -> Result<(), u32> {
        if level >= 1.0 {
            return Ok(());
        }
        Err(((1.0 - level) / self.per_second).ceil().clamp(1.0, 3600.0) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_then_as_many_as_come_by_themselves_and_others_are_not_touched() {
        let rates = Rates::new(0.5, 3.0);
        let begun = Instant::now();
        for _ in 0..3 {
            assert_eq!(rates.take_at("a", begun), Ok(()));
        }
        assert_eq!(rates.take_at("a", begun), Err(2));
        assert!(rates.check(&"a").is_err());
        assert_eq!(rates.take_at("b", begun), Ok(()));
        assert_eq!(rates.take_at("a", begun + Duration::from_secs(1)), Err(1));
        assert_eq!(rates.take_at("a", begun + Duration::from_secs(2)), Ok(()));
        assert_eq!(rates.take_at("a", begun + Duration::from_hours(1)), Ok(()));
        assert_eq!(rates.take_at("a", begun + Duration::from_hours(1)), Ok(()));
        assert_eq!(rates.take_at("a", begun + Duration::from_hours(1)), Ok(()));
        assert!(rates.take_at("a", begun + Duration::from_hours(1)).is_err());
        rates.put_back(&"a");
        assert_eq!(rates.take_at("a", begun + Duration::from_hours(1)), Ok(()));
    }

    #[test]
    fn the_table_has_a_bound_and_who_finds_no_place_in_it_shares_one() {
        let rates = Rates::new(1.0, 2.0);
        let begun = Instant::now();
        for key in 0..3 * MOST {
            let _ = rates.take_at(key, begun);
        }
        assert_eq!(rates.now.lock().unwrap().each.len(), MOST);
        assert!(rates.take_at(usize::MAX, begun).is_err(), "the shared one is empty");
        // Once theirs are full again they are forgotten, and others find a place.
        assert_eq!(rates.take_at(usize::MAX, begun + Duration::from_secs(5)), Ok(()));
        assert_eq!(rates.now.lock().unwrap().each.len(), 1);
    }
}
