//! How much of the machine jobs take that run side by side: how many threads work at once, and how many bytes a second
//! are moved.
//!
//! Each job has as many threads as may work in all, and a thread keeps its turn from piece to piece until another job
//! has fewer: so a job that is alone has all turns and never waits, several have as many as the others, and what one that
//! ends leaves goes to those that are still there. (Turns that change hands after every piece cost a sixth of the speed on
//! two cores: who is next is woken on a core that is still busy.)

mod threads;

use std::num::NonZeroU64;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use threads::{each_on_a_thread, on_threads};

/// How long a wait goes on before it is looked whether the job has ended meanwhile.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Turns {
    free: usize,
    /// How many turns each job has, by its number.
    held: Vec<usize>,
    /// Who waits: the job, and a number that tells who asked first.
    waiting: Vec<(usize, u64)>,
    asked: u64,
}

impl Turns {
    /// Returns who is next: of the job with the fewest turns, who asked first.
    fn next(&self) -> Option<(usize, u64)> {
        self.waiting.iter().copied().min_by_key(|(job, asked)| (self.of(*job), *asked))
    }

    fn of(&self, job: usize) -> usize {
        self.held.get(job).copied().unwrap_or(0)
    }

    /// Says whether a turn of `job` belongs to another that waits.
    fn owes(&self, job: usize) -> bool {
        let own = self.of(job);
        // Who has none at all is let in even where there are more jobs than turns.
        let fewer = |other: usize| other != job && (self.of(other) + 1 < own || self.of(other) == 0);
        self.free == 0 && self.waiting.iter().any(|(other, _)| fewer(*other))
    }

    fn change(&mut self, job: usize, take: bool) {
        if let Some(held) = self.held.get_mut(job) {
            *held = if take { *held + 1 } else { held.saturating_sub(1) };
        }
        self.free = if take { self.free.saturating_sub(1) } else { self.free + 1 };
    }
}

/// What jobs that run side by side share.
#[derive(Debug)]
pub struct Pace {
    jobs: usize,
    turns: Mutex<Turns>,
    changed: Condvar,
    limit: Option<NonZeroU64>,
    /// When what was spent so far is paid for.
    paid: Mutex<Option<Instant>>,
}

/// A turn to work; it ends when this is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    pace: &'a Pace,
    job: usize,
}

impl Turn<'_> {
    /// Gives the turn to a job that has fewer, if one waits, and waits for the next.
    pub fn give_way(&mut self) {
        let mut turns = self.pace.turns();
        if turns.owes(self.job) {
            turns.change(self.job, false);
            self.pace.changed.notify_all();
            self.pace.take(turns, self.job);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.pace.turns().change(self.job, false);
        self.pace.changed.notify_all();
    }
}

impl Pace {
    /// Makes one for `jobs` threads that work at once, at least one, and at most `limit` bytes a second.
    pub fn new(jobs: usize, limit: Option<NonZeroU64>) -> Self {
        let jobs = jobs.max(1);
        let turns = Mutex::new(Turns { free: jobs, ..Turns::default() });
        Self { jobs, turns, changed: Condvar::new(), limit, paid: Mutex::new(None) }
    }

    /// Returns how many threads work at once.
    pub fn jobs(&self) -> usize {
        self.jobs
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        // Whole between any two statements.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a number for a job, which its threads ask for turns with.
    pub fn join(&self) -> usize {
        let mut turns = self.turns();
        turns.held.push(0);
        turns.held.len() - 1
    }

    /// Waits for a turn of a job.
    pub fn turn(&self, job: usize) -> Turn<'_> {
        self.take(self.turns(), job);
        Turn { pace: self, job }
    }

    fn take(&self, mut turns: MutexGuard<'_, Turns>, job: usize) {
        let own = (job, turns.asked);
        turns.asked += 1;
        turns.waiting.push(own);
        while turns.free == 0 || turns.next() != Some(own) {
            turns = self.changed.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        turns.waiting.retain(|other| *other != own);
        turns.change(job, true);
        if turns.free > 0 && !turns.waiting.is_empty() {
            // Whoever is next may have been told before it was.
            self.changed.notify_all();
        }
    }

    /// Returns how many bytes a second may be moved; nothing if there is no limit.
    pub fn limit(&self) -> Option<NonZeroU64> {
        self.limit
    }

    /// Waits until `bytes` more may be moved, or until `stopped` says that nobody wants them any longer.
    pub fn spend(&self, bytes: u64, stopped: impl Fn() -> bool) {
        let Some(limit) = self.limit else { return };
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(limit.get());
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let from = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let from = paid.map_or(now, |paid| paid.max(now));
            // A wait for ever is what a limit of a byte a second asks for.
            *paid = Some(from.checked_add(cost).unwrap_or(from));
            from
        };
        loop {
            let left = from.saturating_duration_since(Instant::now());
            if left.is_zero() || stopped() {
                return;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Runs `jobs` jobs of `threads` threads each; returns how many pieces each did, and the most at once.
    fn run(pace: &Pace, jobs: usize, threads: usize, pieces: usize) -> (Vec<usize>, usize) {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let done: Vec<_> = (0..jobs).map(|_| AtomicUsize::new(0)).collect();
        let left = AtomicUsize::new(pieces);
        std::thread::scope(|scope| {
            for done in &done {
                let job = pace.join();
                for _ in 0..threads {
                    let (running, most, left) = (&running, &most, &left);
                    scope.spawn(move || {
                        let mut turn = pace.turn(job);
                        while left
                            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |it| it.checked_sub(1))
                            .is_ok()
                        {
                            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_micros(50));
                            running.fetch_sub(1, Ordering::SeqCst);
                            done.fetch_add(1, Ordering::SeqCst);
                            turn.give_way();
                        }
                    });
                }
            }
        });
        (done.into_iter().map(AtomicUsize::into_inner).collect(), most.into_inner())
    }

    #[test]
    fn no_more_threads_have_a_turn_than_there_are() {
        for (jobs, threads) in [(1, 3), (1, 8), (3, 3), (7, 3)] {
            let pace = Pace::new(3, None);
            let (done, most) = run(&pace, jobs, threads, 500);
            assert_eq!(done.iter().sum::<usize>(), 500);
            assert!((1..=3).contains(&most), "{most}");
            // All are given back.
            let turns = pace.turns();
            assert_eq!((turns.free, turns.held.iter().sum::<usize>(), turns.waiting.len()), (3, 0, 0));
        }
    }

    #[test]
    fn turns_are_shared_evenly_and_nobody_waits_in_vain() {
        let mut turns = Turns { free: 4, held: vec![0, 0, 0], ..Turns::default() };
        (0..4).for_each(|_| turns.change(0, true));
        assert!(!turns.owes(0), "nobody waits");
        turns.waiting = vec![(1, 0), (2, 1)];
        assert!(turns.owes(0));
        turns.change(0, false);
        assert_eq!(turns.next(), Some((1, 0)));
        turns.change(1, true);
        assert_eq!(turns.next(), Some((2, 1)), "who has fewer goes first");
        turns.change(0, false);
        turns.change(2, true);
        turns.waiting = vec![(1, 2), (0, 3)];
        assert!(!turns.owes(0) && !turns.owes(2), "two, one and one of four turns are even");
        // More jobs than turns: who has none is let in.
        turns.held.push(0);
        turns.waiting.push((3, 4));
        assert!(turns.owes(1) && turns.owes(2));
    }

    #[test]
    fn what_is_spent_is_spread_over_the_time_it_takes() {
        let pace = Pace::new(1, NonZeroU64::new(1_000_000_000));
        let begun = Instant::now();
        (0..5).for_each(|_| pace.spend(10_000_000, || false));
        // The first goes at once, each other waits until the one before is paid for.
        assert!(begun.elapsed() >= Duration::from_millis(40));
        // A job that has ended does not wait.
        Pace::new(1, Some(NonZeroU64::MIN)).spend(u64::MAX, || true);
        Pace::new(1, None).spend(u64::MAX, || false);
    }
}
