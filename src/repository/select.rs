//! How a person names a backup: `NAME@N`, `NAME@latest` or `NAME`.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
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

/// Which backupset each name means when a backup is asked for. Made once for a list of backupsets, it names all of their backups
/// in a time that grows with the list, and not with its square.
#[derive(Clone, Debug, Default)]
pub struct Addressed {
    sets: HashSet<BackupsetId>,
}

impl Addressed {
    /// Looks through all backupsets once.
    pub fn of<B: Borrow<Backupset>>(sets: &[B]) -> Self {
        let mut names: HashMap<&ImageName, Vec<&Backupset>> = HashMap::new();
        for set in sets.iter().map(Borrow::borrow) {
            names.entry(&set.name).or_default().push(set);
        }
        Self { sets: names.values().filter_map(|named| addressed(named)).map(|set| set.id).collect() }
    }

    /// Returns how a backup is named.
    pub fn backup_id(&self, set: &Backupset, incremental: Incremental) -> BackupId {
        let is_meant = self.sets.contains(&set.id);
        let name = if is_meant { set.name.as_str().to_owned() } else { set.id.to_string() };
        BackupId { name, incremental }
    }
}

/// Returns the current one of all backupsets of a name: the newest of those that no other is based on.
fn current<'a>(named: &[&'a Backupset]) -> Option<&'a Backupset> {
    let bases: HashSet<BackupsetId> = named.iter().flat_map(|set| set.bases.iter().copied()).collect();
    let current = named.iter().filter(|set| !bases.contains(&set.id));
    current.max_by_key(|set| (set.created, set.id)).copied()
}

/// Returns the one of all backupsets of a name that the name means when a backup is asked for: the current one, or, while that
/// is still empty, the newest that is not.
fn addressed<'a>(named: &[&'a Backupset]) -> Option<&'a Backupset> {
    current(named).filter(|set| !set.backups.is_empty()).or_else(|| {
        let filled = named.iter().filter(|set| !set.backups.is_empty());
        filled.max_by_key(|set| (set.created, set.id)).copied()
    })
}

fn named<'a, B: Borrow<Backupset>>(sets: &'a [B], name: &ImageName) -> Vec<&'a Backupset> {
    sets.iter().map(Borrow::borrow).filter(|set: &&Backupset| set.name == *name).collect()
}

impl Repository {
    /// Returns the backupset that the next backup of `name` belongs to: the newest of that name that no other one is based
    /// on.
    pub fn current_set<'a, B: Borrow<Backupset>>(sets: &'a [B], name: &ImageName) -> Option<&'a Backupset> {
        current(&named(sets, name))
    }

    /// Returns the newest backup of a name: the last one of the backupset that the name addresses, whatever its date is.
    pub fn newest<'a, B: Borrow<Backupset>>(
        sets: &'a [B],
        name: &ImageName,
    ) -> Option<(&'a Backupset, &'a BackupRecord)> {
        addressed(&named(sets, name)).and_then(|set| Some((set, set.backups.last()?)))
    }

    /// Finds the backup that a person asked for.
    pub fn find<'a, B: Borrow<Backupset>>(
        &self,
        sets: &'a [B],
        selector: &BackupSelector,
    ) -> Result<(&'a Backupset, &'a BackupRecord), RepositoryError> {
        let by_name =
            ImageName::new(selector.name.as_str()).ok().and_then(|name| addressed(&named(sets, &name)));
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

    fn set(name: &str, created: i64, bases: Vec<BackupsetId>, is_filled: bool) -> Backupset {
        let created = jiff::Timestamp::from_second(created).unwrap();
        let mut set = Backupset::new(BackupsetId::random(), ImageName::new(name).unwrap(), created);
        set.bases = bases;
        let record = BackupRecord {
            incremental: Incremental(0),
            manifest: crate::segment::Fingerprint::of(b"manifest"),
            timestamp: created,
            size_of_disk: 1,
            segments: 1,
            tags: Vec::new(),
            protection: crate::repository::Protection::None,
            note: None,
            suspect: None,
            flaws: crate::manifest::FlawMarks::default(),
        };
        set.backups.extend(Some(record).filter(|_| is_filled));
        set
    }

    /// What a name means, found for one backupset alone: by going through all others.
    fn is_meant(sets: &[Backupset], set: &Backupset) -> bool {
        let named = || sets.iter().filter(|other| other.name == set.name);
        let newest = |sets: &mut dyn Iterator<Item = &Backupset>| {
            sets.max_by_key(|set| (set.created, set.id)).map(|set| (set.id, set.backups.is_empty()))
        };
        let is_base = |set: &Backupset| named().any(|other| other.bases.contains(&set.id));
        match newest(&mut named().filter(|set| !is_base(set))) {
            Some((id, false)) => id == set.id,
            _ => {
                newest(&mut named().filter(|set| !set.backups.is_empty())).is_some_and(|(id, _)| id == set.id)
            }
        }
    }

    #[test]
    fn a_name_means_one_backupset_and_the_others_are_named_by_their_ids() {
        fn holds(choices: Vec<(u8, i8, u8, bool)>) -> bool {
            let mut sets: Vec<Backupset> = Vec::new();
            for (name, created, base, is_filled) in choices {
                // Sometimes of another name, as after a renaming.
                let base = sets.get(usize::from(base) % 8).map(|set| set.id);
                let name = if name % 2 == 0 { "web" } else { "db" };
                sets.push(set(name, created.into(), base.into_iter().collect(), is_filled));
            }
            let addressed = Addressed::of(&sets);
            sets.iter().all(|set| {
                let name = addressed.backup_id(set, Incremental(0)).name;
                let meant = is_meant(&sets, set);
                name == if meant { set.name.to_string() } else { set.id.to_string() }
            })
        }
        quickcheck::QuickCheck::new().tests(1000).quickcheck(holds as fn(Vec<(u8, i8, u8, bool)>) -> bool);
    }

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
