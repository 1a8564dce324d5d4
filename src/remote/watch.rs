//! What is told of waiting: a watch over all links to a service.
//!
//! A thread looks whether requests stand still: nothing has moved on any link for some time, or a request fails again and
//! again, or waits for a free place. The user is told the reason, again every few minutes, and once that the job goes on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

use crate::progress::{Notice, Progress};
use crate::remote::tries::Timing;

/// What is known of the links.
pub(super) struct Watch {
    state: Mutex<State>,
    progress: Arc<dyn Progress>,
    /// After how long a wait is told.
    tell_after: Duration,
    /// How often it is told again.
    tell_again: Duration,
    address: String,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    /// How many threads wait for bytes to move.
    busy: usize,
    /// When bytes last moved.
    moved: Instant,
    /// When a request last got what it asked for, or a part of it.
    succeeded: Instant,
    /// Since when every request has failed, if one has.
    away: Option<Instant>,
    /// Requests that failed and are repeated: their numbers, since when, and why.
    failing: Vec<(u64, Instant, String)>,
    next: u64,
    /// Since when there is a wait that was told, and when it was told last.
    told: Option<(Instant, Instant)>,
}

/// Looks at a watch until it is dropped.
#[derive(Debug)]
pub(super) struct Ticker(#[expect(dead_code, reason = "dropped to end the thread")] Sender<()>);

impl Watch {
    pub(super) fn new(address: String, progress: Arc<dyn Progress>, timing: &Timing) -> Arc<Self> {
        let Timing { tell_after, tell_again, .. } = *timing;
        let now = Instant::now();
        let state = State {
            busy: 0,
            moved: now,
            succeeded: now,
            away: None,
            failing: Vec::new(),
            next: 0,
            told: None,
        };
        Arc::new(Self { state: Mutex::new(state), progress, tell_after, tell_again, address })
    }

    /// Begins to look. Without a thread, nothing is told.
    pub(super) fn start(self: &Arc<Self>) -> Ticker {
        let (end, ended) = bounded(0);
        let watch = Arc::clone(self);
        let interval = (self.tell_after / 10).clamp(Duration::from_millis(10), Duration::from_millis(500));
        let thread = std::thread::Builder::new().name("ekko-watch".to_owned());
        let started = thread.spawn(move || {
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                watch.look();
            }
        });
        if let Err(error) = started {
            tracing::debug!(%error, "nothing is told of waits");
        }
        Ticker(end)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what there is to tell.
    fn look(&self) {
        let notice = {
            let mut state = self.state();
            let now = Instant::now();
            let long = |since: Instant| now.duration_since(since) >= self.tell_after;
            let failing = state.failing.iter().find(|(_, since, _)| long(*since));
            let reason = match failing {
                Some((_, since, reason)) => Some((*since, format!("{reason}; trying again"))),
                None if state.busy > 0 && long(state.moved) => {
                    let reason = format!("the service at {} does not answer", self.address);
                    Some((state.moved, reason))
                }
                None => None,
            };
            match (state.told, reason) {
                (None, Some((since, reason))) => {
                    state.told = Some((since, now));
                    Some(Notice::Waiting { reason })
                }
                (Some((since, last)), Some((_, reason))) if now.duration_since(last) >= self.tell_again => {
                    state.told = Some((since, now));
                    Some(Notice::Waiting { reason })
                }
                // A request that was given up is no success: it has a message of its own.
                (Some((since, _)), None) if state.succeeded > since => {
                    state.told = None;
                    let seconds = now.duration_since(since).as_secs();
                    Some(Notice::GoesOn { what: format!("the service answers again after {seconds} s") })
                }
                _ => None,
            }
        };
        if let Some(notice) = notice {
            self.progress.notice(notice);
        }
    }

    /// Bytes have moved.
    fn moved(&self) {
        self.state().moved = Instant::now();
    }

    /// A thread waits for bytes to move, until what this returns is dropped.
    pub(super) fn busy(&self) -> Busy<'_> {
        let mut state = self.state();
        if state.busy == 0 {
            // What was before is no wait.
            state.moved = Instant::now();
        }
        state.busy += 1;
        Busy(self)
    }

    /// A request has got what it asked for.
    pub(super) fn succeeded(&self) {
        let mut state = self.state();
        state.succeeded = Instant::now();
        state.away = None;
    }

    /// Returns a number for a request.
    pub(super) fn number(&self) -> u64 {
        let mut state = self.state();
        state.next += 1;
        state.next
    }

    /// A request has failed since some time and is repeated. Returns since when all requests have.
    pub(super) fn failing(&self, number: u64, since: Instant, reason: String) -> Instant {
        let mut state = self.state();
        state.failing.retain(|(other, ..)| *other != number);
        state.failing.push((number, since, reason));
        *state.away.get_or_insert(since)
    }

    /// A request waits for a free place since some time: the service answers, so no request of the link stands still.
    pub(super) fn queued(&self, number: u64, since: Instant, reason: String) {
        let mut state = self.state();
        state.failing.retain(|(other, ..)| *other != number);
        state.failing.push((number, since, reason));
        state.away = None;
    }

    /// A request is not repeated any longer.
    pub(super) fn forget(&self, number: u64) {
        self.state().failing.retain(|(other, ..)| *other != number);
    }

    /// Says whether the job is to end.
    pub(super) fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }
}

/// See [`Watch::busy`].
pub(super) struct Busy<'a>(&'a Watch);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.state().busy -= 1;
    }
}

/// Makes connections watched ones.
#[derive(Debug)]
pub(super) struct Watching(pub(super) Arc<Watch>);

impl<In: Transport> Connector<In> for Watching {
    type Out = Watched<In>;

    fn connect(
        &self,
        _: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Watched<In>>, ureq::Error> {
        Ok(chained.map(|inner| Watched { inner, watch: Arc::clone(&self.0) }))
    }
}

/// A connection that tells when bytes move.
#[derive(Debug)]
pub(super) struct Watched<T> {
    inner: T,
    watch: Arc<Watch>,
}

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.inner.transmit_output(amount, timeout).inspect(|()| self.watch.moved())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.inner.await_input(timeout).inspect(|came| {
            if *came {
                self.watch.moved();
            }
        })
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
