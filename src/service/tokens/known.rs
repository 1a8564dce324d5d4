//! The tokens as the service knows them: read again as soon as the file is another.

use std::collections::HashMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use crate::service::tokens::file::Contents;
use crate::service::{ServiceError, Token, TokenFile, TokenId, TokenText};

/// A file that was changed so shortly before it was read may be changed again without a newer time: the clock of
/// filesystems ticks some hundred times a second, and numbers of files are used again.
const UNSETTLED: Duration = Duration::from_secs(2);

/// What a file looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

/// What was seen of the file when it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sight {
    /// Nothing that can be relied on: it must be read again in any case.
    #[default]
    Unsure,
    /// It was not there.
    Nothing,
    File(Look),
}

/// Why a token lets nobody in. It is for the log: a client is told less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::service) enum WrongToken {
    Unknown,
    Revoked(jiff::Timestamp),
    WrongSecret,
    Expired(jiff::Timestamp),
}

impl fmt::Display for WrongToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("no token has this id"),
            Self::Revoked(when) => write!(f, "it was revoked at {when:.0}"),
            Self::WrongSecret => f.write_str("its secret is wrong"),
            Self::Expired(end) => write!(f, "it expired at {end:.0}"),
        }
    }
}

/// The tokens, and those that were revoked.
#[derive(Debug, Default)]
pub(in crate::service) struct TokenTable {
    tokens: HashMap<TokenId, Token>,
    revoked: HashMap<TokenId, jiff::Timestamp>,
}

impl TokenTable {
    fn of(contents: Contents) -> Self {
        Self {
            tokens: contents.tokens.into_iter().map(|token| (token.id, token)).collect(),
            revoked: contents.revoked.into_iter().map(|token| (token.id, token.revoked)).collect(),
        }
    }

    /// Returns the token that a client shows if it lets them in at `now`.
    pub(in crate::service) fn judge(
        &self,
        shown: &TokenText,
        now: jiff::Timestamp,
    ) -> Result<&Token, WrongToken> {
        let Some(token) = self.tokens.get(&shown.id()) else {
            return Err(self
                .revoked
                .get(&shown.id())
                .map_or(WrongToken::Unknown, |it| WrongToken::Revoked(*it)));
        };
        // `blake3::Hash` is compared in constant time; and what is compared are hashes, which nobody can steer.
        let [kept, is] =
            [token.fingerprint, shown.fingerprint()].map(|it| blake3::Hash::from_bytes(*it.as_bytes()));
        match token.expires {
            _ if kept != is => Err(WrongToken::WrongSecret),
            Some(end) if token.is_expired(now) => Err(WrongToken::Expired(end)),
            _ => Ok(token),
        }
    }
}

#[derive(Debug, Default)]
struct Now {
    sight: Sight,
    tokens: Arc<TokenTable>,
}

/// The tokens that are known.
#[derive(Debug)]
pub(in crate::service) struct KnownTokens {
    file: TokenFile,
    now: RwLock<Now>,
}

impl KnownTokens {
    pub(in crate::service) fn new(file: TokenFile) -> Self {
        Self { file, now: RwLock::default() }
    }

    /// Returns the tokens as the file has them at this moment, if it has not changed since it was read. Asks the operating
    /// system what the file looks like, which blocks if its filesystem's server is away.
    pub(in crate::service) fn current(&self) -> Option<Arc<TokenTable>> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        let is_same = now.sight != Sight::Unsure && now.sight == self.look();
        is_same.then(|| Arc::clone(&now.tokens))
    }

    /// Reads the file again. Blocks.
    pub(in crate::service) fn renew(&self) -> Result<Arc<TokenTable>, ServiceError> {
        // It is looked at before it is read: what changes between is seen by the next look.
        let sight = self.look();
        let tokens = Arc::new(TokenTable::of(self.file.read()?));
        let sight = if is_settled(sight) { sight } else { Sight::Unsure };
        let now = Now { sight, tokens: Arc::clone(&tokens) };
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(tokens)
    }

    fn look(&self) -> Sight {
        match self.file.storage().examine(self.file.path()) {
            Ok(it) => Sight::File(Look {
                inode: it.ino(),
                bytes: it.len(),
                changed: (it.ctime(), it.ctime_nsec()),
                modified: (it.mtime(), it.mtime_nsec()),
            }),
            Err(error) if error.is_not_found() => Sight::Nothing,
            Err(_) => Sight::Unsure,
        }
    }
}

fn is_settled(sight: Sight) -> bool {
    let Sight::File(look) = sight else { return true };
    let changed =
        u64::try_from(look.changed.0).map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > UNSETTLED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Layout;
    use crate::service::{NewToken, Role};
    use crate::storage::RootStorage;

    #[test]
    fn a_change_is_seen_at_once_however_fast_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let file = TokenFile::at(Arc::new(RootStorage::at(folder.path())), &layout);
        let known = KnownTokens::new(file.clone());
        let now = || known.current().unwrap_or_else(|| known.renew().unwrap());
        assert!(now().tokens.is_empty());
        for _ in 0..50 {
            let project = "blue".parse().unwrap();
            let new = NewToken { project, role: Role::Backup, expires: None, note: None };
            let (token, text) = file.create(new).unwrap();
            assert_eq!(now().judge(&text, token.created), Ok(&token));
            file.revoke(token.id).unwrap();
            assert!(matches!(now().judge(&text, token.created), Err(WrongToken::Revoked(_))));
        }
    }

    #[test]
    fn it_is_known_why_a_token_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let file = TokenFile::at(Arc::new(RootStorage::at(folder.path())), &layout);
        let known = KnownTokens::new(file.clone());
        let end: jiff::Timestamp = "2999-01-01T00:00:00Z".parse().unwrap();
        let new =
            |expires| NewToken { project: "blue".parse().unwrap(), role: Role::Backup, expires, note: None };
        let (token, text) = file.create(new(Some(end))).unwrap();
        let (_, other) = file.create(new(None)).unwrap();
        let table = known.renew().unwrap();
        let before = token.created;
        assert_eq!(table.judge(&text, before), Ok(&token));
        assert_eq!(table.judge(&text, end), Err(WrongToken::Expired(end)));
        // Whoever has a wrong secret learns nothing of the token, and the log does not take them for its owner.
        let mixed = format!("{}{}", &text.reveal()[..22], &other.reveal()[22..]);
        let mixed = TokenText::read(&mixed).unwrap();
        assert_eq!(table.judge(&mixed, end), Err(WrongToken::WrongSecret));
        assert_eq!(table.judge(&TokenText::random().unwrap(), before), Err(WrongToken::Unknown));
        assert_eq!(WrongToken::Expired(end).to_string(), "it expired at 2999-01-01T00:00:00Z");
    }

    #[test]
    fn a_damaged_file_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let known = KnownTokens::new(TokenFile::at(Arc::new(RootStorage::at(folder.path())), &layout));
        known.renew().unwrap();
        std::fs::write(layout.tokens(), "format = 1\n").unwrap();
        assert!(known.current().is_none());
        assert!(known.renew().is_err());
    }
}
