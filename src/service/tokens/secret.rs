//! How a token is written: `ekko_<id>_<secret>`, 8 and 32 random bytes in hexadecimal.

use std::fmt;
use std::str::FromStr;

use crate::segment::Fingerprint;

const PREFIX: &str = "ekko_";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A token's name, which may be told to anybody: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId([u8; ID_BYTES]);

/// A text that names no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token is named by the 16 hexadecimal digits that \"ekko token list\" shows")]
pub struct InvalidTokenId;

impl FromStr for TokenId {
    type Err = InvalidTokenId;

    fn from_str(text: &str) -> Result<Self, InvalidTokenId> {
        digits(text).map(Self).ok_or(InvalidTokenId)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

/// Reads lower-case hexadecimal digits, exactly as many as `N` bytes take: no token has two spellings.
fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    text.bytes().all(|letter| !letter.is_ascii_uppercase()).then_some(bytes)
}

/// A whole token, which lets in whoever says it. It cannot be printed by accident.
#[derive(Clone)]
pub struct TokenText {
    id: TokenId,
    text: String,
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenText({}, ...)", self.id)
    }
}

impl TokenText {
    /// Makes a token that nobody knows yet.
    ///
    /// # Errors
    ///
    /// If the operating system has no random bytes.
    pub(in crate::service) fn random() -> std::io::Result<Self> {
        let mut bytes = [0; ID_BYTES + SECRET_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
        let digits = hex::encode(bytes);
        let (id, secret) = digits.split_at(2 * ID_BYTES);
        let text = format!("{PREFIX}{id}_{secret}");
        Self::read(&text).ok_or_else(|| std::io::Error::other("a token that was made cannot be read"))
    }

    /// Reads a token; nothing if the text cannot be one.
    pub(in crate::service) fn read(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let id = id.parse().ok()?;
        digits::<SECRET_BYTES>(secret)?;
        Some(Self { id, text: text.to_owned() })
    }

    /// Says whether a text is meant as a token of a repository.
    pub(in crate::service) fn is_meant(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// Returns its name.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// Returns what is kept of it: the BLAKE3 of its whole text, so that `b3sum` can check it. 256 random bits need no
    /// slower hash.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.text.as_bytes())
    }

    /// Returns the text itself, to be told once.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_and_nothing_else_is_one() {
        let token = TokenText::random().unwrap();
        let text = token.reveal().to_owned();
        let again = TokenText::read(&text).unwrap();
        assert_eq!((again.id(), again.fingerprint()), (token.id(), token.fingerprint()));
        assert_eq!(text.len(), 5 + 16 + 1 + 64);
        assert_ne!(TokenText::random().unwrap().reveal(), text);
        for cut in 0..text.len() {
            assert!(TokenText::read(&text[..cut]).is_none(), "cut at {cut}");
        }
        let upper = format!("ekko_{}", text[5..].to_uppercase().replace("EKKO_", ""));
        for wrong in
            [format!("{text}0"), format!(" {text}"), text.replace('_', "-"), upper, "ekko__".to_owned()]
        {
            assert!(TokenText::read(&wrong).is_none() || wrong == text, "{wrong}");
        }
    }

    #[test]
    fn a_token_is_not_told_by_accident() {
        let token = TokenText::random().unwrap();
        let secret = &token.reveal()[22..];
        assert!(!format!("{token:?}").contains(secret));
    }
}
