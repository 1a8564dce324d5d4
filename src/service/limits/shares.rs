//! Something scarce, shared out among callers: threads, or memory.
//!
//! A caller may hold up to three times as much as stays free. A caller who is alone gets three quarters of everything, so a second
//! caller finds a quarter free at once, a third one a quarter of that, and so on: nobody has to give back what they hold. (Switches
//! share their packet memory by this rule: Choudhury and Hahne, "Dynamic queue length thresholds", 1998.) A caller who holds
//! nothing may take the last free units.
//!
//! Where few units are many to one request, some can be spared for callers who hold nothing: a quarter of a quarter is soon too little
//! for one.
//!
//! Some units are kept for the repository's owner. So the owner's requests do not stand in the line of the others: they are looked at
//! first, and one that has to wait keeps nobody waiting.
//!
//! | state of a request | becomes |
//! |---|---|
//! | asks | holds, if nobody waits in its line and the rule allows it; else waits |
//! | waits | holds, when units become free and no waiting caller holds less; refused with 503 when the time is over |
//! | holds | ended, when its [`Share`] is dropped |
//!
//! Three races, and what makes them harmless:
//!
//! - A grant meets a request that has just gone or has given up. The [`Share`] travels in the channel, so it is dropped
//!   with it and its units are free again. Grants are sent outside the lock, since dropping one takes the lock.
//! - A request that waits for many units meets callers who take a few again and again. As long as a caller who holds nothing
//!   waits and does not fit, nobody who holds something gets more.
//! - Requests that go away while they wait leave nothing behind: whoever comes next removes them from the queue. Their number
//!   has the bound of the requests under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::api::Refusal;
use crate::service::{Caller, Refused};

/// How much of the free units a caller may hold: see the module.
const TIMES_FREE: usize = 3;
/// The number of seconds after which a refused client may ask again.
const AGAIN: u32 = 5;

/// Units that callers share.
#[derive(Debug)]
pub(in crate::service) struct Shares {
    /// The name of the units, for refusals.
    what: &'static str,
    all: usize,
    /// Further units, for the repository's owner alone.
    kept: usize,
    /// What stays free for callers who hold nothing.
    spare: usize,
    patience: Duration,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    taken: usize,
    /// Only callers who hold something.
    of_each: HashMap<String, usize>,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    who: String,
    units: usize,
    granted: oneshot::Sender<Share>,
}

/// Units that a caller holds until this is dropped.
#[derive(Debug)]
pub(in crate::service) struct Share {
    shares: Arc<Shares>,
    who: String,
    units: usize,
}

type Grants = Vec<(oneshot::Sender<Share>, Share)>;

impl Shares {
    /// Shares out `all` units, and `kept` more for the owner alone. A request waits for `patience` at most.
    pub(in crate::service) fn new(what: &'static str, all: usize, kept: usize, patience: Duration) -> Self {
        Self { what, all, kept, spare: 0, patience, now: Mutex::default() }
    }

    /// Leaves `spare` units free for callers who hold nothing: whoever holds some takes no more of the others.
    pub(in crate::service) fn sparing(self, spare: usize) -> Self {
        Self { spare, ..self }
    }

    /// Returns how many units callers hold.
    pub(in crate::service) fn taken(&self) -> usize {
        self.now().taken
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes units if they are free at this moment and nobody waits for any in the same line.
    pub(in crate::service) fn try_take(self: &Arc<Self>, who: &str, units: usize) -> Option<Share> {
        let mut now = self.now();
        now.waiting.retain(|waiting| !waiting.granted.is_closed());
        let is_first = now.waiting.iter().all(|waiting| is_owner(&waiting.who) != is_owner(who));
        (is_first && self.allows(&now, who, units)).then(|| self.grant(&mut now, who, units))
    }

    /// Takes units; waits for them if need be.
    ///
    /// # Errors
    ///
    /// If they do not become free in time (503).
    pub(in crate::service) async fn take(
        self: &Arc<Self>,
        who: &str,
        units: usize,
    ) -> Result<Share, Refused> {
        let (granted, wait) = oneshot::channel();
        let grants = {
            let mut now = self.now();
            now.waiting.retain(|waiting| !waiting.granted.is_closed());
            now.waiting.push(Waiting { who: who.to_owned(), units, granted });
            self.grants(&mut now)
        };
        send(grants);
        if let Ok(Ok(share)) = tokio::time::timeout(self.patience, wait).await {
            return Ok(share);
        }
        let why = format!("the service is busy: {} are in use by other requests", self.what);
        Err(Refused::new(Refusal::Unavailable, why).retry_after(AGAIN))
    }

    /// Says whether a caller may take so many units now.
    fn allows(&self, now: &Now, who: &str, units: usize) -> bool {
        let all = if is_owner(who) { self.all + self.kept } else { self.all };
        let held = now.held(who);
        let free = all.checked_sub(now.taken).and_then(|free| free.checked_sub(units));
        free.is_some_and(|free| {
            held == 0 || free >= self.spare && held + units <= free.saturating_mul(TIMES_FREE)
        })
    }

    fn grant(self: &Arc<Self>, now: &mut Now, who: &str, units: usize) -> Share {
        now.taken += units;
        *now.of_each.entry(who.to_owned()).or_default() += units;
        Share { shares: Arc::clone(self), who: who.to_owned(), units }
    }

    /// Grants what can be granted now. The caller sends it when the lock is free.
    fn grants(self: &Arc<Self>, now: &mut Now) -> Grants {
        let mut grants = Vec::new();
        while let Some(next) = self.next(now) {
            let Waiting { who, units, granted } = now.waiting.remove(next);
            grants.push((granted, self.grant(now, &who, units)));
        }
        grants
    }

    /// Returns the place in the queue of the request whose turn it is, if there is one that may have what it wants.
    fn next(&self, now: &Now) -> Option<usize> {
        let may = |waiting: &Waiting| self.allows(now, &waiting.who, waiting.units);
        let of_owner = now.waiting.iter().position(|waiting| is_owner(&waiting.who) && may(waiting));
        if of_owner.is_some() {
            return of_owner;
        }
        let others = now.waiting.iter().enumerate().filter(|(_, waiting)| !is_owner(&waiting.who));
        let mut order: Vec<_> = others.collect();
        // The sort is stable: of callers who hold the same, the first to come is the first.
        order.sort_by_key(|(_, waiting)| now.held(&waiting.who));
        for (place, waiting) in order {
            if may(waiting) {
                return Some(place);
            }
            if now.held(&waiting.who) == 0 {
                return None;
            }
        }
        None
    }
}

fn is_owner(who: &str) -> bool {
    who == Caller::OWNER
}

impl Now {
    fn held(&self, who: &str) -> usize {
        self.of_each.get(who).copied().unwrap_or_default()
    }
}

/// Sends grants. One whose request has gone drops here and gives its units back.
fn send(grants: Grants) {
    for (granted, share) in grants {
        drop(granted.send(share));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let grants = {
            let mut now = self.shares.now();
            now.taken = now.taken.saturating_sub(self.units);
            if let Some(held) = now.of_each.get_mut(&self.who) {
                *held = held.saturating_sub(self.units);
                if *held == 0 {
                    now.of_each.remove(&self.who);
                }
            }
            self.shares.grants(&mut now)
        };
        send(grants);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    const LONG: Duration = Duration::from_mins(1);

    fn shares(all: usize) -> Arc<Shares> {
        Arc::new(Shares::new("units", all, 0, LONG))
    }

    type Wait<'a> = Pin<Box<dyn Future<Output = Result<Share, Refused>> + 'a>>;

    fn wait<'a>(shares: &'a Arc<Shares>, who: &'a str, units: usize) -> Wait<'a> {
        Box::pin(shares.take(who, units))
    }

    /// Polls once: the share, if it is there.
    fn now(wait: &mut Wait<'_>) -> Option<Share> {
        match wait.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(share) => Some(share.unwrap()),
            Poll::Pending => None,
        }
    }

    fn in_runtime<T>(test: impl FnOnce() -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        test()
    }

    fn all_that_are_free(shares: &Arc<Shares>, who: &str, units: usize) -> Vec<Share> {
        std::iter::from_fn(|| shares.try_take(who, units)).collect()
    }

    #[test]
    fn one_caller_takes_three_quarters_and_each_further_one_finds_room_at_once() {
        let shares = shares(32);
        let first = all_that_are_free(&shares, "a", 1);
        assert_eq!(first.len(), 24);
        let others: Vec<_> =
            ["b", "c", "d"].into_iter().map(|who| all_that_are_free(&shares, who, 1)).collect();
        assert_eq!(others.iter().map(Vec::len).collect::<Vec<_>>(), [6, 1, 1]);
        drop((first, others));
        let now = shares.now();
        assert_eq!((now.taken, now.of_each.len()), (0, 0), "nothing stays behind");
    }

    #[test]
    fn what_becomes_free_goes_to_the_caller_who_holds_the_least() {
        in_runtime(|| {
            let shares = shares(4);
            let mut greedy = all_that_are_free(&shares, "greedy", 1);
            assert_eq!(greedy.len(), 3);
            let last = shares.try_take("other", 1).unwrap();
            let mut waits: Vec<_> = (0..100).map(|_| wait(&shares, "greedy", 1)).collect();
            assert!(waits.iter_mut().all(|wait| now(wait).is_none()));
            let mut late = wait(&shares, "late", 1);
            assert!(now(&mut late).is_none());
            greedy.pop();
            assert!(now(&mut late).is_some(), "the last to come holds nothing");
            assert!(waits.iter_mut().all(|wait| now(wait).is_none()));
            drop(last);
        });
    }

    #[test]
    fn a_caller_who_wants_much_is_not_kept_waiting_by_those_who_want_little_again_and_again() {
        in_runtime(|| {
            let shares = shares(8);
            let mut small = all_that_are_free(&shares, "small", 1);
            assert_eq!(small.len(), 6);
            let mut large = wait(&shares, "large", 4);
            assert!(now(&mut large).is_none());
            let mut again = Vec::new();
            for _ in 0..2 {
                small.pop();
                let mut more = wait(&shares, "small", 1);
                again.push(now(&mut more));
                drop(more);
            }
            assert!(again.iter().all(Option::is_none), "nobody overtakes a caller who has nothing");
            assert!(now(&mut large).is_some());
        });
    }

    #[test]
    fn a_request_that_goes_away_leaves_neither_a_place_nor_units_behind() {
        in_runtime(|| {
            let shares = shares(1);
            let held = shares.try_take("a", 1).unwrap();
            for _ in 0..1000 {
                let mut gone = wait(&shares, "b", 1);
                assert!(now(&mut gone).is_none());
            }
            assert!(shares.now().waiting.len() <= 1);
            let mut granted = wait(&shares, "b", 1);
            assert!(now(&mut granted).is_none());
            // The grant is on its way when its request goes.
            drop(held);
            drop(granted);
            assert_eq!(shares.taken(), 0);
            assert!(shares.try_take("c", 1).is_some());
        });
    }

    #[test]
    fn nobody_waits_longer_than_the_limit_and_the_refusal_says_when_to_come_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let shares = Arc::new(Shares::new("units", 1, 0, Duration::from_millis(20)));
            let held = shares.take("a", 1).await.unwrap();
            let refused = shares.take("b", 1).await.unwrap_err();
            assert_eq!(refused.refusal(), Refusal::Unavailable);
            assert!(refused.answer("id").headers().contains_key("retry-after"));
            drop(held);
            assert!(shares.take("b", 1).await.is_ok(), "who gave up is no longer in the queue");
        });
    }

    #[test]
    fn the_owner_gets_in_when_others_hold_everything() {
        let shares = Arc::new(Shares::new("units", 4, 2, LONG));
        let others: Vec<_> =
            ["a", "b", "c", "d"].into_iter().flat_map(|who| all_that_are_free(&shares, who, 1)).collect();
        assert_eq!(others.len(), 4);
        assert!(shares.try_take("e", 1).is_none());
        assert!(shares.try_take(Caller::OWNER, 1).is_some());
    }

    #[test]
    fn the_owner_gets_in_when_others_wait_and_keeps_none_of_them_waiting() {
        in_runtime(|| {
            let shares = Arc::new(Shares::new("units", 4, 2, LONG));
            let mut others: Vec<_> =
                ["a", "b", "c", "d"].into_iter().filter_map(|who| shares.try_take(who, 1)).collect();
            assert_eq!(others.len(), 4);
            let mut waiter = wait(&shares, "e", 1);
            assert!(now(&mut waiter).is_none());
            let mut owner = wait(&shares, Caller::OWNER, 1);
            let held = now(&mut owner).expect("what is kept for the owner");
            drop(held);
            assert!(shares.try_take(Caller::OWNER, 1).is_some());
            // More than there will be.
            let mut owner = wait(&shares, Caller::OWNER, 6);
            assert!(now(&mut owner).is_none());
            others.pop();
            assert!(now(&mut waiter).is_some());
            assert!(shares.try_take("f", 1).is_some());
            drop(others);
            assert!(now(&mut owner).is_some());
        });
    }
}
