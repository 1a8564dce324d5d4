//! Which of two clients that back up one image goes on, and who gets a place when all are taken.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::api::{NewSession, Refusal, sign_of_life};
use crate::manifest::ImageName;
use crate::service::limits::{Full, Pass};
use crate::service::sessions::give_up;
use crate::service::sessions::session::Session;
use crate::service::{App, Caller, Limits, Refused};

/// How many signs of life a client may miss before its session yields to another of the same image.
const MAY_MISS: u32 = 3;
/// How often a place is taken that became free; others may be faster.
const TRIES: usize = 8;
/// The number of seconds after which a client asks again for a place.
const AGAIN: u32 = 30;

/// Gives up the sessions of the same image whose clients are gone, or have begun again.
///
/// Two clients that back up one image must not take the session from each other: both would begin again for ever. A client
/// gives a sign of life every [`sign_of_life`], so the states are these:
///
/// - *alive*: heard within [`MAY_MISS`] signs of life. Nobody but its own client, who knows its word, ends it.
/// - *yielding*: it missed them. Another client of the same caller may take its place; until one does, its own client
///   goes on with it as if nothing had happened.
/// - *gone*: silent for longer than the limit. The service gives it up, whoever its caller was.
///
/// A client whose session was taken is told so by its next request, begins again, and is refused while the other one is
/// alive: there is one winner.
pub(super) fn make_way(
    app: &App,
    caller: &Caller,
    name: &ImageName,
    new: &NewSession,
) -> Result<(), Refused> {
    let same: Vec<_> = app
        .sessions()
        .open()
        .values()
        .filter(|session| !session.is_over() && session.name == *name)
        .cloned()
        .collect();
    let limit = Duration::from_secs(app.settings().limits.silence_seconds);
    for session in &same {
        let own = session.belongs_to(caller);
        let yields = if own { limit.min(MAY_MISS * sign_of_life(limit.as_secs())) } else { limit };
        let silence = session.silence();
        if !(own && (silence > yields || session.is_of_client(new.client.as_deref()))) {
            let left = yields.saturating_sub(silence).as_secs() + 1;
            let (who, age) = session.origin();
            let detail = format!(
                "{} is being backed up by another client ({who}) since {}, heard {} ago: wait until it ends, or for {left} s \
                 if that client is gone",
                new.name,
                short(age),
                short(silence),
            );
            let refused = Refused::new(Refusal::Busy, detail);
            return Err(refused.retry_after(u32::try_from(left).unwrap_or(u32::MAX)));
        }
        tracing::info!(session = session.id, "a session yields to another of its image");
        give_up(app, session);
    }
    Ok(())
}

/// Takes a place for a session of a caller.
///
/// [`Flight`](crate::service::limits::Flight) leaves places to callers who come late, but callers who keep what they have can hold
/// all of them in the end. So a caller who has no session always gets one while another has several: of whoever has the most
/// sessions, the one ends of which nothing was heard for longest. Its client goes on in a new session when its caller may have
/// another one, and is told to wait until then. It does not take a place back: that is only for those who have none.
///
/// # Errors
///
/// If there is no place (429); the answer says when to ask again.
pub(super) fn take_place(app: &App, caller: &Caller) -> Result<Pass, Refused> {
    let places = app.sessions().places();
    for _ in 0..TRIES {
        match places.enter(&caller.who) {
            Ok(place) => return Ok(place),
            Err(Full::All) if places.held(&caller.who) == 0 && free_a_place(app) => {}
            Err(_) => break,
        }
    }
    let Limits { sessions, sessions_each, .. } = app.settings().limits;
    let detail = format!(
        "it takes {sessions} backups at once, of one caller {sessions_each} at most and never more than places are free: wait \
         until one ends"
    );
    Err(Refused::new(Refusal::TooMany, detail).retry_after(AGAIN))
}

/// Ends a session of the caller who has the most, if somebody has more than one. Says whether one has ended.
fn free_a_place(app: &App) -> bool {
    let mut of_each: HashMap<String, Vec<Arc<Session>>> = HashMap::new();
    for session in app.sessions().open().values().filter(|session| !session.is_over()) {
        of_each.entry(session.origin().0.to_owned()).or_default().push(Arc::clone(session));
    }
    let most = of_each.into_values().filter(|sessions| sessions.len() > 1).max_by_key(Vec::len);
    let mut sessions = most.unwrap_or_default();
    sessions.sort_by_key(|session| std::cmp::Reverse(session.silence()));
    let ended = sessions.into_iter().find(|session| session.try_give_up());
    if let Some(session) = &ended {
        session.log("a session ends: its caller has the most, and another caller has none");
        app.sessions().open().remove(&session.id);
    }
    ended.is_some()
}

/// Returns a span of time as a person says it.
fn short(span: Duration) -> String {
    match span.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}
