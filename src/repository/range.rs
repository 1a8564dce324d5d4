//! How a person names the backups that a command deletes or restores from deletion: `NAME@7`, `NAME@3-7` or `NAME@all`.
//!
//! What is deleted is named exactly: neither a bare name nor `latest` means the same backup when the command is run twice.

use std::fmt;
use std::str::FromStr;

use crate::manifest::ImageName;
use crate::repository::{Addressee, BackupRecord, Backupset, DeletedBackup, RepositoryError};

/// Which backups of a name or backupset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Nothing was said: `web`.
    Unsaid,
    /// The newest: `web@latest`.
    Latest,
    /// From one number to another, both included: `web@3-7`, or `web@3`.
    Range(u32, u32),
    /// All of them: `web@all`.
    All,
}

/// Backups that a person named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupRange {
    /// The name of an image, or the beginning of a backupset's UUID.
    pub name: String,
    /// Which of its backups.
    pub numbers: Numbers,
}

/// A text that names no backups.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" names no backups: NAME@NUMBER, NAME@FIRST-LAST and NAME@all are possible")]
pub struct InvalidRange {
    text: String,
}

impl FromStr for BackupRange {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let invalid = || InvalidRange { text: text.to_owned() };
        let number = |text: &str| text.parse::<u32>().map_err(|_| invalid());
        let (name, numbers) = match text.rsplit_once('@') {
            None => (text, Numbers::Unsaid),
            Some((name, "latest")) => (name, Numbers::Latest),
            Some((name, "all")) => (name, Numbers::All),
            Some((name, numbers)) => match numbers.split_once('-') {
                None => (name, Numbers::Range(number(numbers)?, number(numbers)?)),
                Some((first, last)) => (name, Numbers::Range(number(first)?, number(last)?)),
            },
        };
        let is_empty = matches!(numbers, Numbers::Range(first, last) if first > last);
        if is_empty || ImageName::new(name).is_err() {
            return Err(invalid());
        }
        Ok(Self { name: name.to_owned(), numbers })
    }
}

impl fmt::Display for BackupRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match self.numbers {
            Numbers::Unsaid => write!(f, "{name}"),
            Numbers::Latest => write!(f, "{name}@latest"),
            Numbers::Range(first, last) if first == last => write!(f, "{name}@{first}"),
            Numbers::Range(first, last) => write!(f, "{name}@{first}-{last}"),
            Numbers::All => write!(f, "{name}@all"),
        }
    }
}

impl BackupRange {
    /// Names one backup by its backupset: so it means the same to whoever sees that.
    pub fn of(set: &Backupset, backup: &BackupRecord) -> Self {
        let number = backup.incremental.0;
        Self { name: set.id.to_string(), numbers: Numbers::Range(number, number) }
    }

    /// Makes sure that it names the same backups whenever it is looked up.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self) -> Result<(), RepositoryError> {
        match self.numbers {
            Numbers::Range(..) | Numbers::All => Ok(()),
            Numbers::Unsaid | Numbers::Latest => {
                Err(RepositoryError::NotExact { what: self.to_string(), name: self.name.clone() })
            }
        }
    }

    /// Says whether it means a backup of these numbers.
    fn has(&self, by_name: bool, record: &BackupRecord) -> bool {
        let number = if by_name { record.number.0 } else { record.incremental.0 };
        match self.numbers {
            Numbers::Range(first, last) => (first..=last).contains(&number),
            Numbers::All => true,
            Numbers::Unsaid | Numbers::Latest => false,
        }
    }

    /// Returns the backups that it names, by number.
    ///
    /// # Errors
    /// There is none, or it is not exact.
    pub fn backups<'a>(
        &self,
        addressee: &Addressee<'a>,
    ) -> Result<Vec<(&'a Backupset, &'a BackupRecord)>, RepositoryError> {
        self.check()?;
        let by_name = addressee.is_name();
        let of = |set: &&'a Backupset| {
            let set = *set;
            set.backups
                .iter()
                .filter(move |record| self.has(by_name, record))
                .map(move |record| (set, record))
        };
        let mut found: Vec<_> = addressee.sets().iter().flat_map(of).collect();
        found.sort_by_key(|(_, record)| record.number);
        if found.is_empty() {
            let is_deleted = self.deleted(addressee).is_ok_and(|deleted| !deleted.is_empty());
            return Err(self.nothing(is_deleted));
        }
        Ok(found)
    }

    /// Returns the deleted backups that it names, by number. A bare name means the only one that was deleted.
    ///
    /// # Errors
    /// It means several, and does not say which.
    pub fn deleted<'a>(
        &self,
        addressee: &Addressee<'a>,
    ) -> Result<Vec<(&'a Backupset, &'a DeletedBackup)>, RepositoryError> {
        let by_name = addressee.is_name();
        let is_exact = self.check().is_ok();
        let of = |set: &&'a Backupset| {
            let set = *set;
            let deleted = set.deleted.iter();
            let named = deleted.filter(move |deleted| !is_exact || self.has(by_name, &deleted.record));
            named.map(move |deleted| (set, deleted))
        };
        let mut found: Vec<_> = addressee.sets().iter().flat_map(of).collect();
        found.sort_by_key(|(_, deleted)| deleted.record.number);
        if !is_exact && found.len() > 1 {
            self.check()?;
        }
        Ok(found)
    }

    fn nothing(&self, is_deleted: bool) -> RepositoryError {
        let what = self.to_string();
        if is_deleted { RepositoryError::Deleted { what } } else { RepositoryError::NoneNamed { what } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_bare_names_are_not_exact() {
        let read = |text: &str| text.parse::<BackupRange>().map(|range| range.to_string());
        for text in ["web", "web@latest", "web@7", "web@3-7", "web@all", "web/vda@0-0", "a-b@1-2"] {
            let shown = text.replace("0-0", "0");
            assert_eq!(read(text), Ok(shown));
        }
        for text in ["", "@1", "web@", "web@7-3", "web@-3", "web@3-", "web@a-b", "web@1-2-3", "-x@1"] {
            assert!(read(text).is_err(), "{text}");
        }
        for (text, exact) in [("web", false), ("web@latest", false), ("web@7", true), ("web@all", true)] {
            assert_eq!(text.parse::<BackupRange>().unwrap().check().is_ok(), exact, "{text}");
        }
    }
}
