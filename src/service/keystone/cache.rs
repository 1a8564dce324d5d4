//! Answers, for a while.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::segment::Fingerprint;
use crate::service::keystone::answer::Answer;

/// The most answers that are kept.
const MOST: usize = 4096;

/// Answers by the BLAKE3 of the tokens: the tokens themselves are kept nowhere.
#[derive(Debug)]
pub(super) struct Cache {
    kept: HashMap<Fingerprint, (Answer, Instant)>,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { kept: HashMap::new() }
    }

    pub(super) fn find(&self, token: Fingerprint, now: Instant) -> Option<&Answer> {
        self.kept.get(&token).filter(|(_, end)| now < *end).map(|(answer, _)| answer)
    }

    pub(super) fn keep(&mut self, token: Fingerprint, answer: Answer, now: Instant, lifetime: Duration) {
        if self.kept.len() >= MOST && !self.kept.contains_key(&token) {
            self.kept.retain(|_, (_, end)| now < *end);
        }
        if self.kept.len() >= MOST && !self.kept.contains_key(&token) {
            // What ends first: tokens that are none are believed for the shortest time.
            let first = self.kept.iter().min_by_key(|(_, (_, end))| *end).map(|(token, _)| *token);
            first.and_then(|token| self.kept.remove(&token));
        }
        self.kept.insert(token, (answer, now + lifetime));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_and_their_number_has_a_bound() {
        let (mut cache, now) = (Cache::new(), Instant::now());
        let key = |number: u64| Fingerprint::of(&number.to_le_bytes());
        cache.keep(key(0), Answer::Nothing("a while"), now, Duration::from_mins(1));
        for number in 1..10_000 {
            cache.keep(key(number), Answer::Unknown, now, Duration::from_secs(10));
        }
        assert_eq!(cache.kept.len(), MOST);
        assert!(
            matches!(cache.find(key(0), now), Some(Answer::Nothing(_))),
            "made-up tokens do not drive it out"
        );
        assert!(cache.find(key(0), now + Duration::from_mins(1)).is_none());
        assert!(cache.find(key(9_999), now).is_some());
        cache.keep(key(20_000), Answer::Unknown, now + Duration::from_secs(11), Duration::ZERO);
        assert_eq!(cache.kept.len(), 2, "what has ended goes first");
        assert!(cache.find(key(20_000), now + Duration::from_secs(11)).is_none());
    }
}
