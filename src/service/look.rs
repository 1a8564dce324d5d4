//! Looks at the repository's folder and at the file of tokens, for requests.
//!
//! The operating system answers such a question at once, but for a filesystem whose server is away: then it never does. So no
//! thread that requests are driven by asks it. One thread asks for all requests that come meanwhile, and they wait for it for
//! [`PATIENCE`] at most. A thread that hangs is the only one: it is waited for, and none is started beside it.
//!
//! An answer counts only for requests that came before it was asked for: what has changed since is seen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::api::Refusal;
use crate::service::pulse::MOVED;
use crate::service::tokens::TokenTable;
use crate::service::{App, Refused};

/// For how long a request waits for an answer: a file server that is only busy answers in this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// The number of seconds after which a refused client may ask again.
const AGAIN: u32 = 5;

/// What is told while there is no answer.
pub(super) const SILENT: &str = "the server's disk does not answer: try again later";

/// What a look finds.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Whether the repository's folder is where it was.
    pub(super) is_home: bool,
    /// The tokens, if their file has not changed since it was read.
    pub(super) tokens: Option<Arc<TokenTable>>,
}

/// A question that one thread at a time asks, for all who want to know.
#[derive(Debug)]
pub(super) struct Question<T>(Mutex<State<T>>);

#[derive(Debug)]
struct State<T> {
    /// The last answer, and when it was asked for.
    answer: Option<(Instant, T)>,
    /// The thread that asks, and since when.
    asks: Option<(Instant, JoinHandle<T>)>,
}

impl<T> Default for Question<T> {
    fn default() -> Self {
        Self(Mutex::new(State { answer: None, asks: None }))
    }
}

impl<T: Clone + Send + 'static> Question<T> {
    /// Returns an answer that was asked for after `came`; nothing if it does not come in time.
    async fn ask(
        &self,
        came: Instant,
        patience: Duration,
        question: impl Fn() -> T + Clone + Send + 'static,
    ) -> Option<T> {
        let answer = async {
            let mut state = self.0.lock().await;
            loop {
                if let Some((_, answer)) = state.answer.as_ref().filter(|(asked, _)| *asked >= came) {
                    return Some(answer.clone());
                }
                let ask = || (Instant::now(), tokio::task::spawn_blocking(question.clone()));
                let (asked, thread) = state.asks.get_or_insert_with(ask);
                let asked = *asked;
                let answer = thread.await;
                state.asks = None;
                state.answer = Some((asked, answer.ok()?));
            }
        };
        tokio::time::timeout(patience, answer).await.ok().flatten()
    }
}

impl App {
    /// Returns what a look finds that was begun after `came`.
    ///
    /// # Errors
    ///
    /// If the disk does not answer (503).
    pub(super) async fn look(self: &Arc<Self>, came: Instant) -> Result<Seen, Refused> {
        let app = Arc::downgrade(self);
        let look = move || {
            let app = app.upgrade()?;
            Some(Seen { is_home: app.writer().home().is_ok(), tokens: app.tokens().current() })
        };
        let seen = self.looks().ask(came, PATIENCE, look).await.flatten();
        seen.ok_or_else(|| Refused::new(Refusal::Unavailable, SILENT).retry_after(AGAIN))
    }

    /// Makes sure that the repository's folder is where it was, at a moment after `came`.
    ///
    /// # Errors
    ///
    /// If it is not, or if the disk does not answer (503).
    pub(super) async fn at_home(self: &Arc<Self>, came: Instant) -> Result<(), Refused> {
        if self.look(came).await?.is_home {
            return Ok(());
        }
        Err(Refused::new(Refusal::Unavailable, MOVED).retry_after(AGAIN))
    }

    /// Makes sure that the repository and its tokens can be read, at a moment after `came`.
    ///
    /// # Errors
    ///
    /// If they cannot, or if the disk does not answer (503).
    pub(super) async fn readable(self: &Arc<Self>, came: Instant) -> Result<(), Refused> {
        let app = Arc::downgrade(self);
        let look = move || Some(readable_now(&*app.upgrade()?));
        let seen = self.readings().ask(came, PATIENCE, look).await.flatten();
        seen.unwrap_or(Err(SILENT)).map_err(|why| Refused::new(Refusal::Unavailable, why).retry_after(AGAIN))
    }
}

/// Makes sure that the repository and its tokens can be read. Blocks.
///
/// # Errors
///
/// Why they cannot, in words for whoever watches the service: the log has the paths.
pub(super) fn readable_now(app: &App) -> Result<(), &'static str> {
    let tokens = || match app.tokens().current() {
        Some(_) => Ok(()),
        None => app.tokens().renew().map(drop),
    };
    let read = match app.repository().check_readable() {
        Err(error) => Err((REPOSITORY_UNREADABLE, error.to_string())),
        Ok(()) => tokens().map_err(|error| (TOKENS_UNREADABLE, error.to_string())),
    };
    // Whoever watches the service asks every few seconds: only a change is logged.
    match (&read, app.note_unreadable(read.is_err())) {
        (Err((what, error)), false) => tracing::error!(error, "not ready: {what}"),
        (Ok(()), true) => tracing::info!("the repository and its tokens can be read again"),
        _ => {}
    }
    read.map_err(|(what, _)| what)
}

const REPOSITORY_UNREADABLE: &str = "the repository cannot be read: the server's log says why";
const TOKENS_UNREADABLE: &str = "the tokens cannot be read, so nobody is let in: the server's log says why";

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_question_that_hangs_keeps_nobody_from_running_and_one_thread_at_most_waits_for_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (answers, hangs) = mpsc::channel::<()>();
        let (hangs, asked) = (Arc::new(std::sync::Mutex::new(hangs)), Arc::new(AtomicU32::new(0)));
        let number = Arc::clone(&asked);
        let ask = move || {
            let number = number.fetch_add(1, Ordering::AcqRel);
            let _ = hangs.lock().unwrap().recv_timeout(Duration::from_mins(1));
            number
        };
        runtime.block_on(async {
            let question = Arc::new(Question::default());
            let wait = |patience| {
                let (question, ask) = (Arc::clone(&question), ask.clone());
                async move { question.ask(Instant::now(), patience, ask).await }
            };
            // The runtime has one thread, and it is free.
            for _ in 0..5 {
                assert_eq!(wait(Duration::from_millis(5)).await, None);
            }
            assert_eq!(asked.load(Ordering::Acquire), 1);
            // The answer that came late is not for whoever asks now.
            let late = tokio::spawn(wait(Duration::from_mins(1)));
            tokio::task::yield_now().await;
            for _ in 0..2 {
                answers.send(()).unwrap();
            }
            assert_eq!(late.await.unwrap(), Some(1));
            answers.send(()).unwrap();
            assert_eq!(wait(Duration::from_mins(1)).await, Some(2));
            // Those who come while one asks share the next answer.
            let many: Vec<_> = (0..20).map(|_| tokio::spawn(wait(Duration::from_mins(1)))).collect();
            tokio::task::yield_now().await;
            drop(answers);
            for one in many {
                assert!(one.await.unwrap().is_some());
            }
            assert!(asked.load(Ordering::Acquire) <= 5, "{asked:?}");
        });
    }
}
