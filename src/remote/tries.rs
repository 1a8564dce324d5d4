//! How long a client goes on asking: it counts progress, not attempts.
//!
//! A request that fails for a reason that may pass is repeated after a pause that grows. It ends when [`Timing::budget`] has
//! gone by without progress: of this request, or of any request on the link. So one budget serves a whole call, however many
//! disks it has, and a service that answers others but never this request does not keep it for ever.
//!
//! A service that answers that it is full and when to ask again has not failed: that is a queue, and it is waited in for
//! [`Timing::queue`]. In a night, hundreds of disks wait for a free place.

use std::time::{Duration, Instant};

use crate::remote::RemoteError;
use crate::remote::link::Link;

/// How often a wait looks whether the job is to end.
const LOOK: Duration = Duration::from_millis(100);

/// What a client waits for, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// How long nothing may succeed.
    pub(super) budget: Duration,
    /// How long a service may say that it is full.
    pub(super) queue: Duration,
    /// The pause after a first failure: a link that was cut is there again at once.
    pub(super) first_pause: Duration,
    /// The pause after the next one; each further one is twice as long.
    pub(super) pause: Duration,
    pub(super) longest_pause: Duration,
    /// After how long a wait is told.
    pub(super) tell_after: Duration,
    /// How often it is told again.
    pub(super) tell_again: Duration,
    /// How long a connection may stand still in the middle of a request or an answer.
    pub(super) silence: Duration,
    /// How long a connection may take to come about.
    pub(super) connect: Duration,
    /// How long an answer may take to begin that needs work: a commit, a document.
    pub(super) work: Duration,
    /// How slow an answer may be in the long run, in bytes per second.
    pub(super) slowest: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            budget: Duration::from_mins(10),
            queue: Duration::from_hours(24),
            first_pause: Duration::from_millis(100),
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
            tell_after: Duration::from_secs(5),
            tell_again: Duration::from_mins(5),
            silence: Duration::from_mins(2),
            connect: Duration::from_secs(20),
            work: Duration::from_mins(15),
            slowest: 1 << 10,
        }
    }
}

/// Why a wait ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The budget is used up.
    Exhausted,
    /// Somebody asked for the job to be stopped.
    Stopped,
}

/// Something that is asked for, as often as it takes.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    link: &'a Link,
    number: u64,
    /// Since when it has failed.
    since: Option<Instant>,
    /// Since when it waits for a free place.
    queued: Option<Instant>,
    failures: u32,
}

impl<'a> Tries<'a> {
    pub(super) fn new(link: &'a Link) -> Self {
        Self { link, number: link.watch().number(), since: None, queued: None, failures: 0 }
    }

    /// A part of what is asked for has come: what went before does not count.
    pub(super) fn progressed(&mut self) {
        self.link.watch().succeeded();
        if self.since.take().is_some() | self.queued.take().is_some() {
            self.link.watch().forget(self.number);
        }
        self.failures = 0;
    }

    /// The next attempt begins, and may take long: it is no wait.
    pub(super) fn resumed(&self) {
        self.link.watch().forget(self.number);
    }

    /// It failed: waits for the next attempt.
    ///
    /// # Errors
    ///
    /// With the failure, if it will not pass or has lasted too long.
    pub(super) fn failed(&mut self, error: RemoteError) -> Result<(), RemoteError> {
        if !error.may_pass(self.link.is_met()) {
            return Err(error);
        }
        tracing::debug!(%error, "asking again");
        let waited = match &error {
            RemoteError::Refused { problem, .. } if error.is_queued() => {
                self.queue(&problem.detail, error.retry_after())
            }
            _ => self.wait(&error.to_string(), error.retry_after()),
        };
        waited.map_err(|ended| match ended {
            Ended::Exhausted => error,
            Ended::Stopped => RemoteError::Stopped { address: self.link.address().to_string() },
        })
    }

    /// Waits before the next attempt, at least as long as somebody has said.
    pub(super) fn wait(&mut self, reason: &str, at_least: Option<Duration>) -> Result<(), Ended> {
        let timing = self.link.timing();
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let away = self.link.watch().failing(self.number, since, reason.to_owned());
        self.pause_until(since.min(away) + timing.budget, at_least)
    }

    /// Waits for a free place: the service answers, so nothing has failed.
    fn queue(&mut self, reason: &str, at_least: Option<Duration>) -> Result<(), Ended> {
        let now = Instant::now();
        let since = *self.queued.get_or_insert(now);
        // What has failed before is over.
        self.since = None;
        self.link.watch().queued(self.number, since, format!("a free place at the service: {reason}"));
        self.pause_until(since + self.link.timing().queue, at_least)
    }

    fn pause_until(&mut self, end: Instant, at_least: Option<Duration>) -> Result<(), Ended> {
        let (timing, now) = (self.link.timing(), Instant::now());
        if now >= end {
            return Err(Ended::Exhausted);
        }
        let pause = match self.failures {
            0 => timing.first_pause,
            failures => timing.pause.saturating_mul(1 << (failures - 1).min(16)).min(timing.longest_pause),
        };
        self.failures += 1;
        // Many clients wait for one service: they are not to come back all at once.
        let pause = pause.mul_f64(0.75 + 0.5 * random_share());
        let pause = pause.max(at_least.unwrap_or_default().min(2 * timing.longest_pause));
        let until = (now + pause).min(end);
        while Instant::now() < until {
            if self.link.is_stopped() {
                return Err(Ended::Stopped);
            }
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
        if self.link.is_stopped() { Err(Ended::Stopped) } else { Ok(()) }
    }
}

impl Drop for Tries<'_> {
    fn drop(&mut self) {
        self.link.watch().forget(self.number);
    }
}

/// Returns a number from 0 to 1.
fn random_share() -> f64 {
    getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}
