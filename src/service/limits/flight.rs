//! Requests at a time, of everybody and of each caller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::Refusal;
use crate::service::Refused;

/// Requests, or sessions, that are under way.
#[derive(Debug)]
pub(in crate::service) struct Flight {
    most: usize,
    most_of_one: usize,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    all: usize,
    /// Only who has some is in here, so it is never longer than `all`.
    of_each: HashMap<String, usize>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) enum Full {
    /// Everybody together has all places.
    All,
    /// The caller has as many as one may have now.
    Own(usize),
}

/// A place that is taken, until this is dropped.
#[derive(Debug)]
pub(in crate::service) struct Pass {
    flight: Arc<Flight>,
    who: String,
}

impl Flight {
    pub(in crate::service) fn new(most: usize, most_of_one: usize) -> Self {
        Self { most, most_of_one, now: Mutex::default() }
    }

    /// Lets a request begin.
    ///
    /// # Errors
    ///
    /// If `who` has too many under way (429), or everybody together (503).
    pub(in crate::service) fn begin(self: &Arc<Self>, who: &str) -> Result<Pass, Refused> {
        self.enter(who).map_err(|full| match full {
            Full::All => Refused::new(Refusal::Unavailable, "too many requests are under way").retry_after(1),
            Full::Own(most) => {
                let why = format!("{most} requests at a time are taken of one caller now");
                Refused::new(Refusal::TooMany, why).retry_after(1)
            }
        })
    }

    /// Takes a place. A caller may have as many as are free, and `most_of_one` at most: several callers who take all they may
    /// leave places to the next ones.
    pub(in crate::service) fn enter(self: &Arc<Self>, who: &str) -> Result<Pass, Full> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.all >= self.most {
            return Err(Full::All);
        }
        let most = self.most_of_one.min((self.most - now.all).max(1));
        if now.of_each.get(who).is_some_and(|under_way| *under_way >= most) {
            return Err(Full::Own(most));
        }
        now.all += 1;
        *now.of_each.entry(who.to_owned()).or_default() += 1;
        Ok(Pass { flight: Arc::clone(self), who: who.to_owned() })
    }

    /// Returns how many places a caller has.
    pub(in crate::service) fn held(&self, who: &str) -> usize {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).of_each.get(who).copied().unwrap_or_default()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut now = self.flight.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.all = now.all.saturating_sub(1);
        if let Some(under_way) = now.of_each.get_mut(&self.who) {
            *under_way -= 1;
            if *under_way == 0 {
                now.of_each.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_room_to_others_and_what_ends_gives_its_room_back() {
        let flight = Arc::new(Flight::new(3, 2));
        let first = flight.begin("a").unwrap();
        let second = flight.begin("a").unwrap();
        assert_eq!(flight.begin("a").unwrap_err().refusal(), Refusal::TooMany);
        let third = flight.begin("b").unwrap();
        assert_eq!(flight.begin("c").unwrap_err().refusal(), Refusal::Unavailable);
        drop((first, third));
        let again = [flight.begin("a").unwrap(), flight.begin("c").unwrap()];
        drop((second, again));
        let now = flight.now.lock().unwrap();
        assert_eq!((now.all, now.of_each.len()), (0, 0));
    }

    #[test]
    fn several_callers_with_all_they_may_have_leave_a_place_to_the_next() {
        let flight = Arc::new(Flight::new(64, 64));
        let mut passes = Vec::new();
        let mut numbers = Vec::new();
        for who in ["a", "b", "c", "d", "e"] {
            let own: Vec<_> = std::iter::from_fn(|| flight.begin(who).ok()).collect();
            numbers.push(own.len());
            passes.extend(own);
        }
        assert_eq!(numbers, [32, 16, 8, 4, 2]);
    }
}
