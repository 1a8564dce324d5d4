//! Which of two clients that back up one image goes on.

use std::time::Duration;

use crate::api::{NewSession, Refusal, sign_of_life};
use crate::manifest::ImageName;
use crate::service::sessions::give_up;
use crate::service::{App, Caller, Refused};

/// How many signs of life a client may miss before its session yields to another of the same image.
const MAY_MISS: u32 = 3;

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

/// Returns a span of time as a person says it.
fn short(span: Duration) -> String {
    match span.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}
