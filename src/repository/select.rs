//! How a person names a backup: `NAME@N`, `NAME@latest` or `NAME`, or `UUID@N` with the beginning of a backupset's UUID.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use crate::manifest::{BackupsetId, ImageName, Incremental};
use crate::repository::number::is_prefix_of;
use crate::repository::{BackupNumber, BackupRecord, Backupset, Repository, RepositoryError};

/// How a backup is called: `web@7`. It means this backup for ever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackupId {
    /// The name of the image.
    pub name: String,
    /// The backup's number.
    pub number: BackupNumber,
}

impl BackupId {
    /// Returns how a backup is called.
    pub fn of(set: &Backupset, backup: &BackupRecord) -> Self {
        Self { name: set.name.as_str().to_owned(), number: backup.number }
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.number)
    }
}

/// Which backup of a name or of a backupset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The newest one.
    Latest,
    /// The one with this number: of a name its [`BackupNumber`], of a backupset its [`Incremental`].
    Number(u32),
}

impl Which {
    /// Says whether it means a backup that is named by its image.
    pub fn is_number(self, number: BackupNumber) -> bool {
        self == Self::Number(number.0)
    }

    /// Says whether it means a backup that is named by its backupset.
    pub fn is_incremental(self, incremental: Incremental) -> bool {
        self == Self::Number(incremental.0)
    }
}

/// What a person asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSelector {
    /// The name of an image, or the beginning of a backupset's UUID.
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
            Some((name, number)) => (name, Which::Number(number.parse().map_err(|_| invalid())?)),
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

/// The backupsets that the first part of an address means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressee<'a> {
    /// All backupsets of a name.
    Name(Vec<&'a Backupset>),
    /// One backupset, by its UUID.
    Backupset(&'a Backupset),
}

impl<'a> Addressee<'a> {
    /// Finds what a text means among backupsets: a name goes before a UUID, and a name that backupsets had once means nothing
    /// else. `full` makes the full name of a disk of the text.
    ///
    /// # Errors
    /// Nothing has that name.
    pub fn find<B: Borrow<Backupset>>(
        sets: &'a [B],
        text: &str,
        full: impl Fn(&str) -> Option<ImageName>,
        shown: impl Fn(&'a ImageName) -> Option<&'a str>,
    ) -> Result<Self, RepositoryError> {
        let all = || sets.iter().map(Borrow::borrow);
        let unknown = |hint: Hint| RepositoryError::UnknownName { name: text.to_owned(), hint };
        if let Some(name) = full(text) {
            let of_name: Vec<_> = all().filter(|set: &&Backupset| set.name == name).collect();
            if !of_name.is_empty() {
                return Ok(Self::Name(of_name));
            }
            if let Some(renamed) = all().find(|set| set.ever_had(&name)) {
                return Err(unknown(Hint::Renamed(shown(&renamed.name).unwrap_or_default().to_owned())));
            }
        }
        let mut by_id = all().filter(|set| is_prefix_of(text, set.id));
        match (by_id.next(), by_id.next()) {
            (Some(set), None) => Ok(Self::Backupset(set)),
            (Some(_), Some(_)) => Err(unknown(Hint::Ambiguous)),
            (None, _) => Err(unknown(nearest(text, all().filter_map(|set| shown(&set.name))))),
        }
    }

    /// Returns the backup that is meant, and its backupset.
    pub fn backup(&self, which: Which) -> Option<(&'a Backupset, &'a BackupRecord)> {
        match self {
            Self::Name(sets) if which == Which::Latest => newest(sets),
            Self::Name(sets) => sets.iter().find_map(|set| {
                Some((*set, set.backups.iter().find(|backup| which.is_number(backup.number))?))
            }),
            Self::Backupset(set) => {
                let found = match which {
                    Which::Latest => set.backups.last(),
                    Which::Number(_) => set.backups.iter().find(|it| which.is_incremental(it.incremental)),
                };
                found.map(|backup| (*set, backup))
            }
        }
    }

    /// Says whether it is a name, of which backups have their [`BackupNumber`].
    pub(super) fn is_name(&self) -> bool {
        matches!(self, Self::Name(_))
    }

    /// Says whether the backup with a number was deleted and can be undeleted.
    fn is_deleted(&self, which: Which) -> bool {
        let is_it = |record: &BackupRecord| match self {
            Self::Name(_) => which.is_number(record.number),
            Self::Backupset(_) => which.is_incremental(record.incremental),
        };
        self.sets().iter().flat_map(|set| &set.deleted).any(|deleted| is_it(&deleted.record))
    }

    /// Returns the backupsets that are meant.
    pub fn sets(&self) -> &[&'a Backupset] {
        match self {
            Self::Name(sets) => sets,
            Self::Backupset(set) => std::slice::from_ref(set),
        }
    }
}

/// What helps somebody who named a disk that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Nothing is near.
    None,
    /// The name that is nearest.
    Nearest(String),
    /// The disk has another name now.
    Renamed(String),
    /// Several backupsets have UUIDs that begin so.
    Ambiguous,
}

impl Hint {
    /// Returns the hint for somebody who named a disk that is not among `names`.
    pub fn among<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Self {
        nearest(text, names)
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("; \"ekko list\" shows all names"),
            Self::Nearest(name) => write!(f, " (did you mean \"{name}\"?); \"ekko list\" shows all names"),
            Self::Renamed(name) => write!(f, ": it was renamed to \"{name}\""),
            Self::Ambiguous => {
                f.write_str(": the UUIDs of several backupsets begin like that; type more of it")
            }
        }
    }
}

/// How alike two names must be for one to be a likely mistake for the other: 1 is equal.
const ALIKE: f64 = 0.7;

/// Returns the name that is most like a text, if one is near enough to be meant.
fn nearest<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Hint {
    let alike = |name: &'a str| (strsim::normalized_damerau_levenshtein(text, name), name);
    let short = |name: &str| strsim::damerau_levenshtein(text, name) == 1 && name.chars().count() > 1;
    let best = names.map(alike).filter(|(alike, name)| *alike >= ALIKE || short(name));
    match best.max_by(|(a, one), (b, other)| a.total_cmp(b).then_with(|| other.cmp(one))) {
        Some((_, name)) => Hint::Nearest(name.to_owned()),
        None => Hint::None,
    }
}

/// Returns the current one of all backupsets of a name: the newest of those that no other is based on.
fn current<'a>(named: &[&'a Backupset]) -> Option<&'a Backupset> {
    let bases: HashSet<BackupsetId> = named.iter().flat_map(|set| set.bases.iter().copied()).collect();
    let current = named.iter().filter(|set| !bases.contains(&set.id));
    current.max_by_key(|set| (set.created, set.id)).copied()
}

/// Returns the newest backup of a name: the last one of its current backupset, or, while that is still empty, the one with the
/// highest number. An import into an older backupset does not change it.
fn newest<'a>(named: &[&'a Backupset]) -> Option<(&'a Backupset, &'a BackupRecord)> {
    newest_such(named, |_, _| true)
}

/// Returns the newest backup of a name among those that are wanted.
fn newest_such<'a>(
    named: &[&'a Backupset],
    is_wanted: impl Fn(&Backupset, &BackupRecord) -> bool,
) -> Option<(&'a Backupset, &'a BackupRecord)> {
    let last =
        |set: &&'a Backupset| Some((*set, set.backups.iter().rev().find(|backup| is_wanted(set, backup))?));
    current(named)
        .and_then(|set| last(&set))
        .or_else(|| named.iter().filter_map(last).max_by_key(|(_, backup)| backup.number))
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

    /// Returns the newest backup of a name, whatever its date is.
    pub fn newest<'a, B: Borrow<Backupset>>(
        sets: &'a [B],
        name: &ImageName,
    ) -> Option<(&'a Backupset, &'a BackupRecord)> {
        newest(&named(sets, name))
    }

    /// Returns the newest of the wanted backups of a name, whatever its date is.
    pub fn newest_such<'a, B: Borrow<Backupset>>(
        sets: &'a [B],
        name: &ImageName,
        is_wanted: impl Fn(&Backupset, &BackupRecord) -> bool,
    ) -> Option<(&'a Backupset, &'a BackupRecord)> {
        newest_such(&named(sets, name), is_wanted)
    }

    /// Finds the backup that a person asked for.
    ///
    /// # Errors
    /// There is none.
    pub fn find<'a, B: Borrow<Backupset>>(
        &self,
        sets: &'a [B],
        selector: &BackupSelector,
    ) -> Result<(&'a Backupset, &'a BackupRecord), RepositoryError> {
        let addressee = Addressee::find(
            sets,
            &selector.name,
            |text| ImageName::new(text).ok(),
            |name| Some(name.as_str()),
        )?;
        self.found(&addressee, selector)
    }

    /// Returns the backup of a name or backupset that a person asked for.
    ///
    /// # Errors
    /// There is none, or it was deleted.
    pub fn found<'a>(
        &self,
        addressee: &Addressee<'a>,
        selector: &BackupSelector,
    ) -> Result<(&'a Backupset, &'a BackupRecord), RepositoryError> {
        addressee.backup(selector.which).ok_or_else(|| {
            let (is_latest, name) = (selector.which == Which::Latest, selector.name.clone());
            if is_latest && addressee.sets().iter().any(|set| !set.deleted.is_empty()) {
                return RepositoryError::AllDeleted { name };
            }
            let what = if is_latest { format!("of {name}") } else { selector.to_string() };
            if addressee.is_deleted(selector.which) {
                return RepositoryError::Deleted { what };
            }
            RepositoryError::NoSuchBackup { path: self.layout().root().to_owned(), what }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backupset with backups of these numbers.
    fn set(name: &str, created: i64, bases: Vec<BackupsetId>, numbers: &[u32]) -> Backupset {
        let created = jiff::Timestamp::from_second(created).unwrap();
        let mut set = Backupset::new(BackupsetId::random(), ImageName::new(name).unwrap(), created);
        set.bases = bases;
        set.backups.extend(numbers.iter().zip(0..).map(|(number, incremental)| BackupRecord {
            number: BackupNumber(*number),
            incremental: Incremental(incremental),
            manifest: crate::segment::Fingerprint::of(b"manifest"),
            timestamp: created,
            size_of_disk: 1,
            segments: 1,
            amounts: crate::repository::BackupAmounts::default(),
            is_machine: false,
            disks: Vec::new(),
            tags: Vec::new(),
            protection: crate::repository::Protection::None,
            note: None,
            suspect: None,
            flaws: crate::manifest::FlawMarks::default(),
        }));
        set
    }

    fn find(sets: &[Backupset], text: &str) -> Result<(BackupsetId, u32), String> {
        let selector: BackupSelector = text.parse().unwrap();
        let full = |text: &str| ImageName::new(text).ok();
        let found = Addressee::find(sets, &selector.name, full, |name| Some(name.as_str()));
        let found = found.map_err(|error| error.to_string())?.backup(selector.which);
        found.map(|(set, backup)| (set.id, backup.incremental.0)).ok_or_else(|| "none".to_owned())
    }

    #[test]
    fn a_number_means_one_backup_whatever_backupset_it_is_in() {
        let old = set("web", 1, Vec::new(), &[0, 1, 4]);
        let new = set("web", 2, vec![old.id], &[]);
        let sets = [old, new];
        assert_eq!(find(&sets, "web@1"), Ok((sets[0].id, 1)));
        assert_eq!(find(&sets, "web"), Ok((sets[0].id, 2)), "the current backupset is still empty");
        let mut filled = sets.clone();
        filled[1].backups = set("web", 2, Vec::new(), &[5, 6]).backups;
        assert_eq!(find(&filled, "web@6"), Ok((filled[1].id, 1)));
        assert_eq!(find(&filled, "web@4"), Ok((filled[0].id, 2)), "it did not move");
        assert_eq!(find(&filled, "web@latest"), Ok((filled[1].id, 1)));
        assert_eq!(find(&filled, "web@3"), Err("none".to_owned()));
        // Somebody imports an older backup: the disk's newest state stays what it was.
        filled[0].backups.push(BackupRecord { number: BackupNumber(7), ..filled[0].backups[2].clone() });
        assert_eq!(find(&filled, "web"), Ok((filled[1].id, 1)));
        assert_eq!(find(&filled, "web@7"), Ok((filled[0].id, 2)));
    }

    #[test]
    fn the_beginning_of_a_uuid_names_the_backups_of_one_backupset() {
        let sets = [set("web", 1, Vec::new(), &[3, 8]), set("db", 1, Vec::new(), &[0])];
        let id = sets[0].id.to_string();
        for length in [8, 12, 36] {
            assert_eq!(find(&sets, &format!("{}@1", &id[..length])), Ok((sets[0].id, 1)));
            assert_eq!(find(&sets, &id[..length]), Ok((sets[0].id, 1)));
        }
        assert!(find(&sets, &id[..3]).is_err());
        let twice = [sets[0].clone(), sets[0].clone()];
        let ambiguous = find(&twice, &format!("{}@1", &id[..8])).unwrap_err();
        assert!(ambiguous.contains("several backupsets"), "{ambiguous}");
    }

    #[test]
    fn an_unknown_name_gets_the_nearest_one_as_a_hint() {
        let mut sets = vec![set("web", 1, Vec::new(), &[0]), set("mail-server", 1, Vec::new(), &[0])];
        for (text, hint) in [
            ("wbe", "did you mean \"web\"?"),
            ("wep", "did you mean \"web\"?"),
            ("mail-servr", "did you mean \"mail-server\"?"),
            ("database", "no disk named \"database\"; \"ekko list\""),
            ("x", "no disk named \"x\"; \"ekko list\""),
        ] {
            let error = find(&sets, text).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
        sets[0].rename(&ImageName::new("www").unwrap(), 0);
        let error = find(&sets, "web@0").unwrap_err();
        assert!(error.contains("it was renamed to \"www\""), "{error}");
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
