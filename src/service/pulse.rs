//! Whether the repository answers.
//!
//! Two threads of their own, so that no request that hangs keeps them from looking: one asks the store's thread and tells what
//! comes of it, the other opens a repository again that has stopped writing. They hold the service weakly, and end with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::progress::Silent;
use crate::repository::RepositoryError;
use crate::service::look::readable_now;
use crate::service::{App, ServiceError};

/// How often the store's thread is asked.
const LOOK: Duration = Duration::from_secs(1);
/// For how long its answer is waited for at a time.
const ANSWER: Duration = Duration::from_secs(2);
/// After what time without an answer the service is not ready: a sync of a busy disk takes a while.
const READY: Duration = Duration::from_secs(10);
/// After what time without an answer the service does not say any longer that it lives. A disk that is slow, and syncs gigabytes,
/// takes less; and ending the process would make it no faster.
const ALIVE: Duration = Duration::from_mins(5);

/// What is known of the store's thread.
#[derive(Debug)]
pub(super) struct Pulse {
    beat: Mutex<Beat>,
}

#[derive(Clone, Debug)]
struct Beat {
    /// When it was last known that nothing hangs.
    alive: Instant,
    /// Since when no answer has come.
    silent: Option<Instant>,
    /// Whether the repository is lost to this process.
    lost: bool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { beat: Mutex::new(Beat { alive: Instant::now(), silent: None, lost: false }) }
    }
}

impl Pulse {
    fn beat(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether the store's thread answers, or for how long it has not.
    pub(super) fn silence(&self) -> Option<Duration> {
        let beat = self.beat();
        // Whoever asks may hang, too, as on a filesystem that is gone.
        let silence = beat.silent.unwrap_or(beat.alive).elapsed();
        (silence > READY).then_some(silence)
    }

    /// Says whether the process is of use: nothing has hung for long, and it has a repository.
    pub(super) fn is_alive(&self) -> bool {
        let beat = self.beat();
        !beat.lost && beat.alive.elapsed() < ALIVE
    }

    /// Notes that only another process can use the repository again.
    fn lost(&self) {
        self.beat().lost = true;
    }

    fn answered(&self) {
        *self.beat() = Beat { alive: Instant::now(), silent: None, lost: false };
    }

    fn did_not_answer(&self, asked: Instant) {
        self.beat().silent.get_or_insert(asked);
    }

    /// Asks once. A repository that takes no changes has no thread that could hang.
    fn ask(&self, app: &App) {
        if app.writer().is_lost() {
            return self.lost();
        }
        let asked = Instant::now();
        match app.writer().try_with(|writer| Ok(writer.store().answers(ANSWER))) {
            Ok(false) => self.did_not_answer(asked),
            Ok(true) | Err(_) => self.answered(),
        }
    }
}

/// The threads that look.
#[derive(Debug)]
pub(super) struct Looking {
    threads: Vec<JoinHandle<()>>,
}

impl Looking {
    /// Waits until they have ended: the service stops.
    pub(super) fn end(self) {
        for thread in self.threads {
            thread.thread().unpark();
            // One that panicked has told so.
            let _ = thread.join();
        }
    }
}

type Look = fn(&App);

/// Starts both threads.
pub(super) fn start(app: &Arc<App>) -> Result<Looking, ServiceError> {
    let looking: [(&str, Look); 2] =
        [("ekko-pulse", |app| app.pulse().ask(app)), ("ekko-look-after", look_after)];
    let start = |(name, look): (&str, Look)| {
        let app = Arc::downgrade(app);
        let again = move || while once(&app, look) {};
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(again);
        started.map_err(|source| ServiceError::Start { source })
    };
    Ok(Looking { threads: looking.into_iter().map(start).collect::<Result<_, _>>()? })
}

/// Looks once, and waits. Says whether to go on.
fn once(app: &Weak<App>, look: Look) -> bool {
    let Some(app) = app.upgrade().filter(|app| !app.is_stopping()) else { return false };
    look(&app);
    drop(app);
    std::thread::park_timeout(LOOK);
    true
}

fn look_after(app: &App) {
    if let Err(error) = app.writer().look_after(&Silent) {
        tracing::debug!(%error, "the repository is not looked after");
    }
}

/// Says why the service takes no changes, in words for whoever watches it: without paths, which the log has. Blocks.
pub(super) fn unready(app: &App) -> Option<String> {
    match app.writer().home() {
        Ok(()) => readable_now(app).map_or_else(|why| Some(why.to_owned()), |()| unready_at_home(app)),
        Err(_) => Some(MOVED.to_owned()),
    }
}

/// Says the same of a repository whose folder is where it was. Waits for nothing.
pub(super) fn unready_at_home(app: &App) -> Option<String> {
    let why = match app.writer().readiness_at_home() {
        Ok(()) => {
            let silence = app.pulse().silence()?.as_secs();
            return Some(format!("the store's thread has not answered for {silence} s"));
        }
        Err(error) => error,
    };
    tracing::debug!(error = %why, "not ready");
    Some(match why {
        RepositoryError::IndexBeingReplaced { .. } => "the index is being rebuilt".to_owned(),
        why if why.is_full() || matches!(why, RepositoryError::Full { .. }) => {
            "the server's disk is full".to_owned()
        }
        _ => "a write failed: the server's log has more".to_owned(),
    })
}

/// What clients are told while the repository is not where it was.
pub(super) const MOVED: &str =
    "the repository's folder was moved or unmounted on the server: try again when it is back";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_repository_is_lost_is_of_no_use() {
        let pulse = Pulse::default();
        assert!(pulse.is_alive());
        pulse.lost();
        assert!(!pulse.is_alive());
    }
}
