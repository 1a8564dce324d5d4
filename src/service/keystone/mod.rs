//! OpenStack's Keystone (identity API v3) as the one who knows who asks.
//!
//! A client shows its token; Keystone, asked with a token of the service's own, says whose it is, for which project and with
//! which roles. What it said is believed for a while, what it did not say never: when it cannot be reached, nobody is let in
//! by it. Owns how Keystone is asked and what is kept of its answers; knows nothing of requests.

mod answer;
mod cache;
mod client;
mod settings;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::api::Refusal;
use crate::segment::Fingerprint;
use crate::service::limits::Shares;
use crate::service::{Caller, Refused, ServiceError};

use answer::{Answer, Said};
use cache::Cache;
use client::{Client, Unreachable};
pub use settings::{Hidden, KeystoneSettings, ProjectKey};

/// Questions that are put to it at a time.
const AT_ONCE: usize = 8;
/// How long it is not asked again after it could not be reached.
const RESPITE: Duration = Duration::from_secs(2);
/// How long it is believed that a token is none.
const NEGATIVE: Duration = Duration::from_secs(10);

/// Keystone, and what it has said of late.
#[derive(Debug)]
pub(super) struct Keystone {
    client: Client,
    settings: KeystoneSettings,
    known: Mutex<Cache>,
    /// Questions, shared out among addresses.
    room: Arc<Shares>,
    out_of_reach_until: Mutex<Option<Instant>>,
}

/// What becomes of a client that shows a token.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is let in.
    In(Caller),
    /// The token is none.
    Unknown,
    /// This token cannot be asked about. That is no fault of Keystone's, so others are still asked about.
    Unanswerable(Refused),
}

impl Keystone {
    pub(super) fn new(settings: &KeystoneSettings) -> Result<Self, ServiceError> {
        settings.check()?;
        Ok(Self {
            client: Client::new(settings)?,
            settings: settings.clone(),
            known: Mutex::new(Cache::new()),
            room: Arc::new(Shares::new("questions to Keystone", AT_ONCE, 0, settings.timeout())),
            out_of_reach_until: Mutex::new(None),
        })
    }

    /// Returns what is known of a token without asking.
    ///
    /// # Errors
    ///
    /// If its user is known, and has no role here.
    pub(super) fn known(&self, token: &str) -> Result<Option<Verdict>, Refused> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = known.find(Fingerprint::of(token.as_bytes()), Instant::now()).cloned();
        drop(known);
        answer.map(Answer::verdict).transpose()
    }

    /// Asks Keystone about a token, for an address.
    ///
    /// # Errors
    ///
    /// If the user has no role here, or if Keystone cannot be asked now.
    pub(super) async fn ask(self: &Arc<Self>, token: &str, who: &str) -> Result<Verdict, Refused> {
        let room = self.room.take(who, 1).await?;
        // Somebody else may have asked the same, or found out that it does not answer.
        if let Some(verdict) = self.known(token)? {
            return Ok(verdict);
        }
        if self.is_out_of_reach() {
            return Err(unavailable(&"Keystone could not be reached a moment ago"));
        }
        let (keystone, asked) = (Arc::clone(self), token.to_owned());
        let ask = move || {
            let _room = room;
            keystone.client.look_up(&asked)
        };
        let said = tokio::task::spawn_blocking(ask).await;
        let said = said.unwrap_or_else(|_| Err(Unreachable::new("the question was ended by a fault")));
        match said {
            Ok(Said::Forbidden) => {
                // Either the token did not please what stands in front of Keystone, or the service's user has no right to ask.
                // In both cases the token is not let in, and in neither does it help to ask no more.
                let why = "Keystone forbids the question: the service's user needs the role service";
                Ok(Verdict::Unanswerable(unavailable(&why)))
            }
            Ok(said) => {
                let (answer, lifetime) = Answer::of(said, &self.settings);
                let key = Fingerprint::of(token.as_bytes());
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.keep(key, answer.clone(), Instant::now(), lifetime);
                drop(known);
                answer.verdict()
            }
            Err(error) => {
                let until = Instant::now() + RESPITE;
                *self.out_of_reach_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
                Err(unavailable(&error))
            }
        }
    }

    fn is_out_of_reach(&self) -> bool {
        let until = *self.out_of_reach_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}

fn unavailable(why: &dyn std::fmt::Display) -> Refused {
    Refused::internal(Refusal::Unavailable, why).retry_after(5)
}
