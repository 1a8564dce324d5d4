//! `tokens.toml`: the tokens of a repository, each as its BLAKE3.
//!
//! It is replaced atomically and its last line is a comment with the BLAKE3 of all before it, as with `set.toml`. Whoever
//! changes it holds a lock of its own (`flock` on `tokens.lock`), so that of two changes at once none is lost; the
//! repository's lock is not needed, so tokens are made and revoked beside a running service.

use std::fs::File as LockFile;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::api::Project;
use crate::manifest::Note;
use crate::repository::{Layout, Repository, check_owner};
use crate::segment::Fingerprint;
use crate::service::{Role, ServiceError, TokenId, TokenText};
use crate::storage::{Access, Storage, StorageError, read_small, replace};

/// The newest format this release reads, and the one it writes.
const FORMAT: u32 = 1;
/// The file is never larger, in bytes: some 10,000 tokens.
const LIMIT: u64 = 4 << 20;

/// How many revoked tokens are remembered, those that were revoked last.
const MOST_REVOKED: usize = 1000;

const CHECKSUM: &str = "# BLAKE3 of all before this line: ";

/// What is kept of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its name.
    pub id: TokenId,
    /// The BLAKE3 of its text.
    pub fingerprint: Fingerprint,
    /// Whose images it is for.
    pub project: Project,
    /// What it allows.
    pub role: Role,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// From when on it allows nothing.
    pub expires: Option<jiff::Timestamp>,
    /// A person's note.
    pub note: Option<String>,
}

impl Token {
    /// Says whether its time is over at `now`.
    pub fn is_expired(&self, now: jiff::Timestamp) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

/// What is remembered of a token that was revoked: so that the log can say so when it is shown again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::service) struct RevokedToken {
    pub(in crate::service) id: TokenId,
    pub(in crate::service) project: Project,
    pub(in crate::service) revoked: jiff::Timestamp,
}

/// All that the file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) tokens: Vec<Token>,
    /// In the order of their ends.
    pub(super) revoked: Vec<RevokedToken>,
}

/// What a token is made with.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Whose images it is for.
    pub project: Project,
    /// What it allows.
    pub role: Role,
    /// From when on it allows nothing.
    pub expires: Option<jiff::Timestamp>,
    /// A person's note.
    pub note: Option<Note>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    #[serde(default, rename = "token")]
    tokens: Vec<FileToken>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    revoked: Vec<FileRevoked>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRevoked {
    id: String,
    project: Project,
    revoked: String,
}

impl FileRevoked {
    fn of(token: &RevokedToken) -> Self {
        let (id, revoked) = (token.id.to_string(), token.revoked.to_string());
        Self { id, project: token.project.clone(), revoked }
    }

    fn read(self) -> Result<RevokedToken, String> {
        Ok(RevokedToken {
            id: self.id.parse().map_err(|error: crate::service::InvalidTokenId| error.to_string())?,
            project: self.project,
            revoked: self.revoked.parse().map_err(|error: jiff::Error| error.to_string())?,
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToken {
    id: String,
    blake3: String,
    project: Project,
    role: Role,
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl FileToken {
    fn of(token: &Token) -> Self {
        Self {
            id: token.id.to_string(),
            blake3: token.fingerprint.to_string(),
            project: token.project.clone(),
            role: token.role,
            created: token.created.to_string(),
            expires: token.expires.map(|end| end.to_string()),
            note: token.note.clone(),
        }
    }

    fn read(self) -> Result<Token, String> {
        let time = |text: &str| text.parse().map_err(|error: jiff::Error| error.to_string());
        Ok(Token {
            id: self.id.parse().map_err(|error: crate::service::InvalidTokenId| error.to_string())?,
            fingerprint: self
                .blake3
                .parse()
                .map_err(|error: crate::segment::InvalidHash| error.to_string())?,
            project: self.project,
            role: self.role,
            created: time(&self.created)?,
            expires: self.expires.as_deref().map(time).transpose()?,
            note: self.note,
        })
    }
}

/// The tokens of a repository.
#[derive(Clone, Debug)]
pub struct TokenFile {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    lock: PathBuf,
    layout: Layout,
}

impl TokenFile {
    /// Returns the tokens of an open repository.
    pub fn of(repository: &Repository) -> Self {
        Self::at(Arc::clone(repository.storage()), repository.layout())
    }

    pub(super) fn at(storage: Arc<dyn Storage>, layout: &Layout) -> Self {
        Self { storage, path: layout.tokens(), lock: layout.tokens_lock(), layout: layout.clone() }
    }

    pub(super) fn storage(&self) -> &dyn Storage {
        self.storage.as_ref()
    }

    pub(super) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Reads all tokens, in the order of their making. A repository without the file has none.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or is not as it was written.
    pub fn list(&self) -> Result<Vec<Token>, ServiceError> {
        Ok(self.read()?.tokens)
    }

    pub(super) fn read(&self) -> Result<Contents, ServiceError> {
        match read_small(self.storage(), &self.path, LIMIT) {
            Ok(bytes) => self.decode(&bytes),
            Err(error) if error.is_not_found() => Ok(Contents::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a token; durable when this returns. Its text is kept nowhere.
    ///
    /// # Errors
    ///
    /// If its time is over already, or if the file cannot be read or written.
    pub fn create(&self, new: NewToken) -> Result<(Token, TokenText), ServiceError> {
        let now = crate::time::now();
        let wrong = |what: &str| ServiceError::WrongToken { what: what.to_owned() };
        if new.expires.is_some_and(|end| end <= now) {
            return Err(wrong("its time would be over already"));
        }
        let text = TokenText::random().map_err(|source| ServiceError::Start { source })?;
        let token = Token {
            id: text.id(),
            fingerprint: text.fingerprint(),
            project: new.project,
            role: new.role,
            created: now,
            expires: new.expires,
            note: new.note.map(|note| note.to_string()),
        };
        let _lock = self.lock()?;
        let Contents { mut tokens, revoked } = self.read()?;
        let mut ids = tokens.iter().map(|other| other.id).chain(revoked.iter().map(|other| other.id));
        if ids.any(|id| id == token.id) {
            return Err(wrong("its name is taken; try again"));
        }
        tokens.push(token.clone());
        self.write(&tokens, &revoked)?;
        Ok((token, text))
    }

    /// Ends a token; durable when this returns.
    ///
    /// # Errors
    ///
    /// If there is none of this name, or if the file cannot be read or written.
    pub fn revoke(&self, id: TokenId) -> Result<Token, ServiceError> {
        let _lock = self.lock()?;
        let Contents { mut tokens, mut revoked } = self.read()?;
        let at = tokens.iter().position(|token| token.id == id);
        let gone = at.map(|at| tokens.remove(at));
        let gone = gone.ok_or_else(|| ServiceError::NoSuchToken { path: self.path.clone(), id })?;
        let project = gone.project.clone();
        revoked.push(RevokedToken { id: gone.id, project, revoked: crate::time::now() });
        revoked.drain(..revoked.len().saturating_sub(MOST_REVOKED));
        self.write(&tokens, &revoked)?;
        Ok(gone)
    }

    /// Waits until nobody else changes the file.
    fn lock(&self) -> Result<LockFile, ServiceError> {
        check_owner(self.storage(), &self.layout)?;
        let file = self.storage.handle(&self.lock, Access::OpenOrCreate)?;
        file.lock().map_err(|source| StorageError::new("lock", &self.lock, source))?;
        Ok(file)
    }

    fn write(&self, tokens: &[Token], revoked: &[RevokedToken]) -> Result<(), ServiceError> {
        let file = File {
            format: FORMAT,
            tokens: tokens.iter().map(FileToken::of).collect(),
            revoked: revoked.iter().map(FileRevoked::of).collect(),
        };
        let text = toml::to_string(&file).map_err(|error| self.damaged(error.to_string()))?;
        let bytes = format!("{text}{CHECKSUM}{}\n", Fingerprint::of(text.as_bytes()));
        if bytes.len() as u64 > LIMIT {
            return Err(ServiceError::WrongToken {
                what: "there are too many tokens; revoke some".to_owned(),
            });
        }
        Ok(replace(self.storage(), &self.path, bytes.as_bytes())?)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Contents, ServiceError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.damaged("it is no text".to_owned()))?;
        let cut = text.rsplit_once(CHECKSUM);
        let (covered, sum) = cut.ok_or_else(|| self.damaged("its last line is gone".to_owned()))?;
        if sum.strip_suffix('\n') != Some(Fingerprint::of(covered.as_bytes()).to_string().as_str()) {
            return Err(self.damaged("it does not fit the BLAKE3 in its last line".to_owned()));
        }
        let file: File = toml::from_str(covered).map_err(|error| self.damaged(error.message().to_owned()))?;
        if file.format != FORMAT {
            return Err(self.damaged(format!("format {} is not known to this release", file.format)));
        }
        let tokens: Result<Vec<_>, _> = file.tokens.into_iter().map(FileToken::read).collect();
        let revoked: Result<Vec<_>, _> = file.revoked.into_iter().map(FileRevoked::read).collect();
        let contents = tokens.and_then(|tokens| Ok(Contents { tokens, revoked: revoked? }));
        contents.map_err(|what| self.damaged(what))
    }

    fn damaged(&self, what: String) -> ServiceError {
        ServiceError::TokensDamaged { path: self.path.clone(), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::RootStorage;
    use std::os::unix::fs::PermissionsExt;

    fn new(project: &str) -> NewToken {
        let note = Some(Note::new("the \"old\" host\u{e4}").unwrap());
        NewToken { project: project.parse().unwrap(), role: Role::Backup, expires: None, note }
    }

    #[test]
    fn tokens_come_back_and_every_changed_byte_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = TokenFile::at(Arc::new(RootStorage::at(folder.path())), &Layout::new(folder.path()));
        assert_eq!(tokens.list().unwrap(), []);
        let (first, text) = tokens.create(new("blue")).unwrap();
        let (second, _) = tokens.create(NewToken { role: Role::Admin, ..new("red") }).unwrap();
        assert_eq!(tokens.list().unwrap(), [first.clone(), second]);
        assert_eq!(first.fingerprint, text.fingerprint());
        let whole = std::fs::read(tokens.path()).unwrap();
        assert!(
            !String::from_utf8_lossy(&whole).contains(&text.reveal()[22..]),
            "the secret is kept nowhere"
        );
        assert_eq!(tokens.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x04;
            std::fs::write(tokens.path(), &changed).unwrap();
            assert!(tokens.list().is_err(), "byte {at}");
            std::fs::write(tokens.path(), &whole[..at]).unwrap();
            assert!(tokens.list().is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_revoked_token_is_gone_and_one_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = TokenFile::at(Arc::new(RootStorage::at(folder.path())), &Layout::new(folder.path()));
        let (token, _) = tokens.create(new("blue")).unwrap();
        assert_eq!(tokens.revoke(token.id).unwrap(), token);
        assert_eq!(tokens.list().unwrap(), []);
        let kept = tokens.read().unwrap();
        assert_eq!((kept.tokens.len(), kept.revoked[0].id), (0, token.id), "it is remembered");
        // Those that were revoked last are, and a new token does not change that.
        let old = vec![kept.revoked[0].clone(); MOST_REVOKED + 7];
        let (new, _) = tokens.create(new("blue")).unwrap();
        tokens.write(std::slice::from_ref(&new), &old).unwrap();
        tokens.revoke(new.id).unwrap();
        let kept = tokens.read().unwrap();
        assert_eq!((kept.revoked.len(), kept.revoked.last().unwrap().id), (MOST_REVOKED, new.id));
        let again = tokens.revoke(token.id).unwrap_err();
        assert!(again.to_string().contains(&token.id.to_string()), "{again}");
    }

    #[test]
    fn tokens_made_at_once_are_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = TokenFile::at(Arc::new(RootStorage::at(folder.path())), &Layout::new(folder.path()));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..8).for_each(|_| drop(tokens.create(new("blue")).unwrap())));
            }
        });
        assert_eq!(tokens.list().unwrap().len(), 64);
    }

    #[test]
    fn more_tokens_than_the_file_is_read_for_are_refused_and_those_that_are_there_can_be_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = TokenFile::at(Arc::new(RootStorage::at(folder.path())), &Layout::new(folder.path()));
        let (token, _) = tokens.create(new("blue")).unwrap();
        let length =
            |many: usize| tokens.write(&vec![token.clone(); many], &[]).map(|()| tokens.path().metadata());
        let each = length(2).unwrap().unwrap().len() - length(1).unwrap().unwrap().len();
        let most = usize::try_from(LIMIT / each).unwrap();
        let error = tokens.write(&vec![token.clone(); most + 1], &[]).unwrap_err();
        assert!(error.to_string().contains("revoke some"), "{error}");
        assert_eq!(tokens.list().unwrap().len(), 1, "the file stays as it was");
        tokens.write(&vec![token.clone(); most - 1], &[]).unwrap();
        let all: Result<Vec<_>, _> = (0..3).map(|_| tokens.create(new("blue"))).collect();
        assert!(all.is_err());
        tokens.revoke(token.id).unwrap();
    }

    #[test]
    fn a_token_whose_time_is_over_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = TokenFile::at(Arc::new(RootStorage::at(folder.path())), &Layout::new(folder.path()));
        let past = Some("2026-01-01T00:00:00Z".parse().unwrap());
        assert!(tokens.create(NewToken { expires: past, ..new("blue") }).is_err());
        assert_eq!(tokens.list().unwrap(), []);
    }
}
