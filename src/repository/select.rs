//! How a person names a backup: `NAME@N`, `NAME@latest` or `NAME`.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use crate::manifest::{BackupsetId, ImageName, Incremental};
use crate::repository::{BackupRecord, Backupset, Repository, RepositoryError};

/// A backup's name as it is shown: `web@0`. In a backupset that a later one of the same name has
/// superseded, the backupset's UUID stands in place of the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupId {
    /// The name of the image, or the UUID of the backupset.
    pub name: String,
    /// The backup's number.
    pub incremental: Incremental,
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.incremental)
    }
}

/// Which backup of a backupset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one with the highest number.
    Latest,
    /// The one with this number.
    Number(Incremental),
}

/// What a person asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSelector {
    /// The name of an image, or a backupset's UUID.
    pub name: String,
    /// Which of its backups.
    pub which: Which,
}

/// A text that names no backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" names no backup: NAME, NAME@latest and NAME@NUMBER are possible")]
pub struct InvalidSelector {
    text: String,
}

impl FromStr for BackupSelector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let invalid = || InvalidSelector { text: text.to_owned() };
        let (name, which) = match text.rsplit_once('@') {
            None => (text, Which::Latest),
            Some((name, "latest")) => (name, Which::Latest),
            Some((name, number)) => {
                (name, Which::Number(Incremental(number.parse().map_err(|_| invalid())?)))
            }
        };
        if ImageName::new(name).is_err() {
            return Err(invalid());
        }
        Ok(Self { name: name.to_owned(), which })
    }
}

impl fmt::Display for BackupSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.which {
            Which::Latest => write!(f, "{}@latest", self.name),
            Which::Number(number) => write!(f, "{}@{number}", self.name),
        }
    }
}

impl Repository {
    /// Returns how a backup is named.
    pub fn backup_id<B: Borrow<Backupset>>(
        sets: &[B],
        set: &Backupset,
        incremental: Incremental,
    ) -> BackupId {
        let current = Self::addressed_set(sets, &set.name).is_some_and(|current| current.id == set.id);
        let name = if current { set.name.as_str().to_owned() } else { set.id.to_string() };
        BackupId { name, incremental }
    }

    /// Returns the backupset that a name means when a backup is asked for: the current one, or, while that is
    /// still empty, the newest that is not.
    fn addressed_set<'a, B: Borrow<Backupset>>(sets: &'a [B], name: &ImageName) -> Option<&'a Backupset> {
        Self::current_set(sets, name).filter(|set| !set.backups.is_empty()).or_else(|| {
            let sets = sets.iter().map(Borrow::borrow);
            let named = sets.filter(|set: &&Backupset| set.name == *name && !set.backups.is_empty());
            named.max_by_key(|set| (set.created, set.id))
        })
    }

    /// Finds the backup that a person asked for.
    pub fn find<'a, B: Borrow<Backupset>>(
        &self,
        sets: &'a [B],
        selector: &BackupSelector,
    ) -> Result<(&'a Backupset, &'a BackupRecord), RepositoryError> {
        let by_name =
            ImageName::new(selector.name.as_str()).ok().and_then(|name| Self::addressed_set(sets, &name));
        let by_id = || {
            let id: BackupsetId = selector.name.parse().ok()?;
            sets.iter().map(Borrow::borrow).find(|set: &&Backupset| set.id == id)
        };
        let set = by_name.or_else(by_id);
        set.and_then(|set| {
            let backup = match selector.which {
                Which::Latest => set.backups.last(),
                Which::Number(number) => set.backups.iter().find(|backup| backup.incremental == number),
            };
            Some((set, backup?))
        })
        .ok_or_else(|| RepositoryError::NoSuchBackup {
            path: self.layout().root().to_owned(),
            what: selector.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read() {
        let read = |text: &str| text.parse::<BackupSelector>().map(|selector| selector.to_string());
        assert_eq!(read("web"), Ok("web@latest".to_owned()));
        assert_eq!(read("web@latest"), Ok("web@latest".to_owned()));
        assert_eq!(read("web/vda@12"), Ok("web/vda@12".to_owned()));
        for text in ["", "@1", "web@", "web@-1", "web@x", "web@4294967296", "-x"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
