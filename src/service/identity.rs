//! Finding out who asks: by the socket in the repository, by a token of the repository, or by one of Keystone's.
//!
//! Whoever shows something wrong is refused, whatever they ask for, and after some times is told to wait: guessing 256
//! random bits is hopeless at any rate, but each guess costs the service something, and Keystone more.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, header};

use crate::api::{Refusal, View};
use crate::service::keystone::Verdict;
use crate::service::limits::Address;
use crate::service::tokens::WrongToken;
use crate::service::{App, Caller, Refused, TokenText};

/// Where OpenStack's clients say who they are.
const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// The longest token that Keystone is asked about, in bytes.
const LONGEST: usize = 8 << 10;

/// What a client shows.
enum Credential {
    /// A token of this repository, by its looks.
    Token(TokenText),
    /// A token of Keystone's, perhaps.
    Keystone(String),
    /// Nothing that can be either.
    Malformed,
}

/// Reads what a client shows. Two things at once are refused: whoever stands between may have looked at the other one.
fn credential(headers: &HeaderMap) -> Result<Option<Credential>, Refused> {
    let mut shown = headers.get_all(header::AUTHORIZATION).iter().map(|value| (true, value));
    let mut also = headers.get_all(AUTH_TOKEN).iter().map(|value| (false, value));
    let Some((is_authorization, value)) = shown.next().or_else(|| also.next()) else { return Ok(None) };
    if shown.next().is_some() || also.next().is_some() {
        return Err(Refused::new(Refusal::Unauthorized, "one token is to be shown, once"));
    }
    let Ok(text) = value.to_str() else { return Ok(Some(Credential::Malformed)) };
    let text = if is_authorization {
        match text.split_once(' ') {
            Some((scheme, text)) if scheme.eq_ignore_ascii_case("bearer") => text,
            _ => return Ok(Some(Credential::Malformed)),
        }
    } else {
        text
    };
    Ok(Some(match TokenText::read(text) {
        Some(token) => Credential::Token(token),
        None if is_authorization || TokenText::is_meant(text) || !(1..=LONGEST).contains(&text.len()) => {
            Credential::Malformed
        }
        None => Credential::Keystone(text.to_owned()),
    }))
}

/// Returns who asks, if they say so.
///
/// # Errors
///
/// If what they show is wrong, or cannot be looked up now.
pub(super) async fn identify(
    app: &Arc<App>,
    headers: &HeaderMap,
    address: Address,
) -> Result<Option<Caller>, Refused> {
    let caller = match credential(headers)? {
        None => return Ok(None),
        Some(Credential::Token(token)) => {
            let judged = of_token(app, &token).await?;
            // Its id is no secret.
            judged
                .inspect_err(|why| tracing::info!(%address, token = %token.id(), %why, "a token was refused"))
                .ok()
        }
        Some(Credential::Keystone(token)) => of_keystone(app, &token, address).await?,
        Some(Credential::Malformed) => {
            tracing::info!(%address, why = "it has not the form of a token", "a token was refused");
            None
        }
    };
    if caller.is_none() {
        // The tokens may have gone with the repository's folder.
        app.writer().home()?;
        return Err(failure(app, address));
    }
    Ok(caller)
}

/// Counts a failure, and says how it is answered.
fn failure(app: &App, address: Address) -> Refused {
    match app.failures().take(address) {
        Ok(()) => Refused::new(Refusal::Unauthorized, "the token is not known, or its time is over"),
        Err(seconds) => too_many_failures(seconds),
    }
}

fn too_many_failures(seconds: u32) -> Refused {
    Refused::new(Refusal::TooMany, "too many wrong tokens came from this address").retry_after(seconds)
}

async fn of_keystone(app: &App, token: &str, address: Address) -> Result<Option<Caller>, Refused> {
    let unknown = |why: &str| tracing::info!(%address, why, "a token was refused");
    let Some(keystone) = app.keystone() else {
        unknown("it is no token of this repository, and no Keystone is configured");
        return Ok(None);
    };
    let verdict = if let Some(verdict) = keystone.known(token)? {
        verdict
    } else {
        // Each guess would cost Keystone something.
        app.failures().check(&address).map_err(too_many_failures)?;
        keystone.ask(token).await?
    };
    Ok(match verdict {
        Verdict::In(caller) => Some(caller),
        Verdict::Unknown => {
            unknown("Keystone does not know it, or its time is over");
            None
        }
    })
}

async fn of_token(app: &Arc<App>, shown: &TokenText) -> Result<Result<Caller, WrongToken>, Refused> {
    let tokens = if let Some(tokens) = app.tokens().current() {
        tokens
    } else {
        let renew = |app: &Arc<App>| {
            let failed = |error| Refused::internal(Refusal::Unavailable, &error).retry_after(5);
            app.tokens().renew().map_err(failed)
        };
        app.blocking(renew).await?
    };
    Ok(tokens.judge(shown, jiff::Timestamp::now()).map(|token| Caller {
        who: format!("token:{}", token.id),
        view: View::of(token.project.clone()),
        role: token.role,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(headers: &[(&'static str, &str)]) -> &'static str {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        match credential(&map) {
            Err(_) => "refused",
            Ok(None) => "nothing",
            Ok(Some(Credential::Token(_))) => "token",
            Ok(Some(Credential::Keystone(_))) => "keystone",
            Ok(Some(Credential::Malformed)) => "malformed",
        }
    }

    #[test]
    fn one_thing_is_shown_in_one_way() {
        let token = TokenText::random().unwrap();
        let token = token.reveal();
        let bearer = format!("Bearer {token}");
        assert_eq!(shown(&[]), "nothing");
        assert_eq!(shown(&[("authorization", &bearer)]), "token");
        assert_eq!(shown(&[("authorization", &bearer.replace("Bearer", "bearer"))]), "token");
        assert_eq!(shown(&[("x-auth-token", token)]), "token");
        assert_eq!(shown(&[("x-auth-token", "gAAAAAB")]), "keystone");
        for wrong in
            ["", "Bearer", "Bearer ", "Basic YTpi", token, "Bearer gAAAAAB", &format!("Bearer  {token}")]
        {
            assert_eq!(shown(&[("authorization", wrong)]), "malformed", "{wrong}");
        }
        assert_eq!(shown(&[("x-auth-token", &token[..80])]), "malformed");
        assert_eq!(shown(&[("authorization", &bearer), ("authorization", &bearer)]), "refused");
        assert_eq!(shown(&[("authorization", &bearer), ("x-auth-token", token)]), "refused");
        assert_eq!(shown(&[("x-auth-token", "a"), ("x-auth-token", "b")]), "refused");
    }
}
