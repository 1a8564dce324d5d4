//! Finding out who asks: by the socket in the repository, by a token of the repository, or by one of Keystone's.
//!
//! Whoever shows something wrong is refused, whatever they ask for, and after some times is told to wait: guessing 256
//! random bits is hopeless at any rate, but each guess costs the service something, and Keystone more.
//!
//! A request counts before it costs anything. A caller who can be identified at once, by the file of tokens or by an answer of
//! Keystone's that is kept, has the request counted as theirs. Every other request counts as one of its address: before
//! Keystone is asked, and also if the token cannot be one at all.

use std::sync::Arc;
use std::time::Instant;

use axum::http::{HeaderMap, HeaderName, header};

use crate::api::{Refusal, View};
use crate::service::keystone::Verdict;
use crate::service::limits::Address;
use crate::service::tokens::{TokenTable, WrongToken};
use crate::service::{App, Caller, Refused, TokenText};

/// Where OpenStack's clients say who they are.
const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

/// The longest token that Keystone is asked about, in bytes. Fernet tokens have about 250, those with many groups or signed ones
/// (JWS) some hundred more. Web servers take no header above 4 to 8 KiB.
const LONGEST: usize = 2 << 10;

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
        None if is_authorization || TokenText::is_meant(text) || !can_be_keystones(text) => {
            Credential::Malformed
        }
        None => Credential::Keystone(text.to_owned()),
    }))
}

/// Says whether a text can be a token of Keystone's: a UUID, a Fernet token (base64url, with its padding) or a JWS (three of those,
/// with dots between them).
fn can_be_keystones(text: &str) -> bool {
    let is_possible = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=.".contains(&byte);
    (1..=LONGEST).contains(&text.len()) && text.bytes().all(is_possible)
}

/// Which request is looked at, when it came, and where from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    pub(super) address: Address,
    pub(super) came: Instant,
    pub(super) request_id: &'a str,
}

impl Asking<'_> {
    /// Writes to the log why a token was refused. The id of a token of this repository is no secret.
    fn token_refused(self, token: Option<&TokenText>, why: &dyn std::fmt::Display) {
        let Self { address, request_id, .. } = self;
        let token = token.map(|token| tracing::field::display(token.id()));
        tracing::info!(request_id, %address, token, %why, "a token was refused");
    }
}

/// Returns who asks, if they say so.
///
/// # Errors
///
/// If what they show is wrong, or cannot be looked up now.
pub(super) async fn identify(
    app: &Arc<App>,
    headers: &HeaderMap,
    asking: Asking<'_>,
) -> Result<Option<Caller>, Refused> {
    let address = asking.address;
    let credential = match credential(headers) {
        Ok(credential) => credential,
        Err(refused) => {
            asking.token_refused(None, &refused.detail());
            return Err(failure(app, address, refused));
        }
    };
    let caller = match credential {
        None => {
            app.count_request(None, address).map_err(too_fast)?;
            return Ok(None);
        }
        Some(Credential::Token(token)) => {
            let judged = of_token(app, &token, asking.came).await?;
            judged.inspect_err(|why| asking.token_refused(Some(&token), why)).ok()
        }
        Some(Credential::Keystone(token)) => of_keystone(app, &token, asking).await?,
        Some(Credential::Malformed) => {
            asking.token_refused(None, &"it has not the form of a token");
            None
        }
    };
    let Some(caller) = caller else {
        // The tokens may have gone with the repository's folder.
        app.at_home(Instant::now()).await?;
        let refused = Refused::new(Refusal::Unauthorized, "the token is not known, or its time is over");
        return Err(failure(app, address, refused));
    };
    app.count_request(Some(&caller), address).map_err(too_fast)?;
    Ok(Some(caller))
}

/// Counts a failure, and a request of the address. Returns how it is answered: with `refused`, unless there were too many.
fn failure(app: &App, address: Address, refused: Refused) -> Refused {
    if let Err(seconds) = app.count_request(None, address) {
        return too_fast(seconds);
    }
    match app.failures().take(address) {
        Ok(()) => refused,
        Err(seconds) => too_many_failures(seconds),
    }
}

fn too_fast(seconds: u32) -> Refused {
    Refused::new(Refusal::TooMany, "more requests in a second came than are taken").retry_after(seconds)
}

fn too_many_failures(seconds: u32) -> Refused {
    Refused::new(Refusal::TooMany, "too many wrong tokens came from this address").retry_after(seconds)
}

async fn of_keystone(app: &App, token: &str, asking: Asking<'_>) -> Result<Option<Caller>, Refused> {
    let address = asking.address;
    let unknown = |why: &str| asking.token_refused(None, &why);
    let Some(keystone) = app.keystone() else {
        unknown("it is no token of this repository, and no Keystone is configured");
        return Ok(None);
    };
    let verdict = match keystone.known(token) {
        Ok(Some(verdict)) => verdict,
        Ok(None) => {
            app.count_request(None, address).map_err(too_fast)?;
            // Each guess would cost Keystone something.
            app.failures().check(&address).map_err(too_many_failures)?;
            let who = format!("address:{address}");
            let _asks = app.flight().begin(&who)?;
            keystone.ask(token, &who).await?
        }
        Err(refused) => {
            app.count_request(None, address).map_err(too_fast)?;
            return Err(refused);
        }
    };
    match verdict {
        Verdict::In(caller) => Ok(Some(caller)),
        Verdict::Unknown => {
            unknown("Keystone does not know it, or its time is over");
            Ok(None)
        }
        Verdict::Unanswerable(refused) => {
            unknown("Keystone forbids the question");
            Err(failure(app, address, refused))
        }
    }
}

async fn of_token(
    app: &Arc<App>,
    shown: &TokenText,
    came: Instant,
) -> Result<Result<Caller, WrongToken>, Refused> {
    let tokens = match app.look(came).await?.tokens {
        Some(tokens) => tokens,
        None => renewed(app).await?,
    };
    Ok(tokens.judge(shown, crate::time::now()).map(|token| Caller {
        who: format!("token:{}", token.id),
        view: View::of(token.project.clone()),
        role: token.role,
    }))
}

/// Reads the file of tokens again: once for all requests that came before the reading began.
async fn renewed(app: &Arc<App>) -> Result<Arc<TokenTable>, Refused> {
    let came = Instant::now();
    let mut last = app.renewal().lock().await;
    if let Some((_, tokens)) = last.as_ref().filter(|(begun, _)| *begun >= came) {
        return Ok(Arc::clone(tokens));
    }
    let begun = Instant::now();
    let failed = |error| Refused::internal(Refusal::Unavailable, &error).retry_after(5);
    let tokens = app.aside(move |app| app.tokens().renew().map_err(failed)).await?;
    *last = Some((begun, Arc::clone(&tokens)));
    Ok(tokens)
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
        let of = |length| "a".repeat(length);
        assert_eq!(shown(&[("x-auth-token", &of(LONGEST))]), "keystone");
        assert_eq!(shown(&[("x-auth-token", &of(LONGEST + 1))]), "malformed");
        for good in ["0123456789abcdef0123456789abcdef", "gAAAAABn-x_Q==", "eyJhbGci.eyJzdWIi.c2ln-_"] {
            assert_eq!(shown(&[("x-auth-token", good)]), "keystone", "{good}");
        }
        for wrong in ["a b", "a/b", "a+b", "a,b", "a\tb", "a%20b", "<a>", "a;b", "\u{e9}"] {
            assert_eq!(shown(&[("x-auth-token", wrong)]), "malformed", "{wrong}");
        }
        assert_eq!(shown(&[("authorization", &bearer), ("authorization", &bearer)]), "refused");
        assert_eq!(shown(&[("authorization", &bearer), ("x-auth-token", token)]), "refused");
        assert_eq!(shown(&[("x-auth-token", "a"), ("x-auth-token", "b")]), "refused");
    }
}
