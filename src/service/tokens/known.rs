//! The tokens as the service knows them: read again as soon as the file is another.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use crate::service::{ServiceError, Token, TokenFile, TokenId};

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

#[derive(Debug, Default)]
struct Now {
    sight: Sight,
    tokens: Arc<HashMap<TokenId, Token>>,
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
    /// system for no more than what the file looks like, so it may be called where nothing may block.
    pub(in crate::service) fn current(&self) -> Option<Arc<HashMap<TokenId, Token>>> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        let is_same = now.sight != Sight::Unsure && now.sight == self.look();
        is_same.then(|| Arc::clone(&now.tokens))
    }

    /// Reads the file again. Blocks.
    pub(in crate::service) fn renew(&self) -> Result<Arc<HashMap<TokenId, Token>>, ServiceError> {
        // It is looked at before it is read: what changes between is seen by the next look.
        let sight = self.look();
        let tokens = self.file.list()?;
        let tokens = Arc::new(tokens.into_iter().map(|token| (token.id, token)).collect());
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
        assert!(now().is_empty());
        for _ in 0..50 {
            let project = "blue".parse().unwrap();
            let new = NewToken { project, role: Role::Backup, expires: None, note: None };
            let (token, _) = file.create(new).unwrap();
            assert_eq!(now().get(&token.id), Some(&token));
            file.revoke(token.id).unwrap();
            assert!(!now().contains_key(&token.id));
        }
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
