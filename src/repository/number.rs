//! The numbers of backups, as in `web@7`, and the names that have them.
//!
//! The number of a backup belongs to its name: it grows with every backup of that name, whatever backupset the backup is in, and
//! no backup ever gets it again. So `web@7` means one backup for ever, or nothing once that backup is gone. These are the
//! rules that hold it, each of which a variant of the model in `tests/numbers.rs` breaks:
//!
//! - The next number of a name is the highest one that any backupset of the name keeps as `next_number`, or keeps of a
//!   former name. A backupset stays when its last backup is gone.
//! - A commit gives the number, under the lock of commits, and in the same write that makes the backup exist.
//! - A renaming keeps the numbers. The backupsets keep the old name with its next number, for whoever uses that name again.
//!   All backupsets of a name get the new one at one moment.
//! - A backupset keeps all its former names. If it has [`MOST_FORMER_NAMES`], a renaming to any other name is refused.
//! - A renaming to a name that other backupsets have, or ever had, is refused.
//! - A text that is the beginning of a backupset's UUID means that backupset, unless it is, or ever was, the name of a disk. So
//!   no disk gets such a text as its name later.

use std::borrow::Borrow;
use std::fmt;

use crate::manifest::{BackupsetId, ImageName};
use crate::repository::{Backupset, RepositoryError};

/// The number of a backup among all backups that its name ever had, from 0: the 7 of `web@7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupNumber(pub u32);

impl fmt::Display for BackupNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many former names a backupset has at most. All of them are in its list, and whoever commits a backup looks at them.
pub const MOST_FORMER_NAMES: usize = 64;

/// A name that a backupset had before it was renamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerName {
    /// The name.
    pub name: ImageName,
    /// The number that the next backup of that name gets.
    pub next_number: u32,
}

impl Backupset {
    /// Returns which number the next backup of a name gets, as far as this backupset knows; nothing if it never had the name.
    fn next_number_of(&self, name: &ImageName) -> Option<u32> {
        let own = (self.name == *name).then_some(self.next_number);
        let former = self.former_names.iter().find(|former| former.name == *name);
        own.max(former.map(|former| former.next_number))
    }

    /// Says whether it has a name or had it once.
    pub(super) fn ever_had(&self, name: &ImageName) -> bool {
        self.next_number_of(name).is_some()
    }

    /// Gives it another name, of which the next backup gets the number `next` at least.
    pub(super) fn rename(&mut self, to: &ImageName, next: u32) {
        let from = std::mem::replace(&mut self.name, to.clone());
        let next_number = self.next_number;
        self.next_number = next.max(next_number);
        self.former_names.retain(|former| former.name != *to && former.name != from);
        self.former_names.push(FormerName { name: from, next_number });
    }
}

/// Returns which number the next backup of a name gets.
pub(super) fn next_number<B: Borrow<Backupset>>(sets: &[B], name: &ImageName) -> u32 {
    sets.iter().filter_map(|set| set.borrow().next_number_of(name)).max().unwrap_or(0)
}

/// How many characters of a backupset's UUID name it at least.
pub const LEAST_PREFIX: usize = 4;

/// Says whether a text is the beginning of a backupset's UUID, and long enough to name it.
pub(super) fn is_prefix_of(text: &str, id: BackupsetId) -> bool {
    text.len() >= LEAST_PREFIX && id.to_string().starts_with(text)
}

/// Says whether a text may be the beginning of a UUID: anything else costs no look at the backupsets.
fn may_be_prefix(text: &str) -> bool {
    let is_of_uuid = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    (LEAST_PREFIX..=36).contains(&text.len()) && text.bytes().all(is_of_uuid)
}

/// Returns the backupset whose UUID begins with a name that a disk is to get. Members of a project name its disks without the
/// project, and its backupsets alone.
fn addressed_by<B: Borrow<Backupset>>(sets: &[B], name: &ImageName) -> Option<BackupsetId> {
    let text = last_part(name.as_str());
    if !may_be_prefix(text) {
        return None;
    }
    let project = project_of(name.as_str());
    let sets = sets.iter().map(Borrow::borrow);
    let of_project = sets.filter(|set| project.is_none() || project_of(set.name.as_str()) == project);
    of_project.map(|set| set.id).find(|id| is_prefix_of(text, *id))
}

/// Returns what stands behind the project in a name: by that the members of a project name the disk.
fn last_part(name: &str) -> &str {
    name.split_once(':').map_or(name, |(_, rest)| rest)
}

fn project_of(name: &str) -> Option<&str> {
    name.split_once(':').map(|(project, _)| project)
}

/// Makes sure that a disk may get a name: one that no backupset has or had must not be the beginning of a UUID.
pub(super) fn check_new_name<B: Borrow<Backupset>>(
    sets: &[B],
    name: &ImageName,
) -> Result<(), RepositoryError> {
    if sets.iter().any(|set| set.borrow().ever_had(name)) {
        return Ok(());
    }
    match addressed_by(sets, name) {
        Some(backupset) => Err(RepositoryError::NameIsUuid { name: name.clone(), backupset }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, next_number: u32) -> Backupset {
        let name = ImageName::new(name).unwrap();
        let set = Backupset::new(BackupsetId::random(), name, jiff::Timestamp::UNIX_EPOCH);
        Backupset { next_number, ..set }
    }

    #[test]
    fn a_name_keeps_its_next_number_whoever_has_it() {
        let name = |text| ImageName::new(text).unwrap();
        let (mut old, other) = (set("web", 5), set("web", 3));
        assert_eq!(next_number(&[old.clone(), other.clone()], &name("web")), 5);
        old.rename(&name("www"), 0);
        assert_eq!((old.next_number, next_number(&[&old, &other], &name("web"))), (5, 5));
        old.next_number = 9;
        old.rename(&name("web"), 7);
        assert_eq!((old.next_number, next_number(&[&old], &name("web"))), (9, 9));
        assert_eq!(next_number(&[&old], &name("www")), 9, "it has been used, too");
        assert_eq!(old.former_names.len(), 1);
        assert_eq!(next_number(&[&old], &name("db")), 0);
    }

    #[test]
    fn four_characters_of_a_uuid_name_a_backupset_and_no_new_disk() {
        let sets = [set("web", 1)];
        let id = sets[0].id.to_string();
        let named = |text: &str| ImageName::new(text).unwrap();
        for length in [4, 8, 9, 13, 36] {
            assert_eq!(addressed_by(&sets, &named(&id[..length])), Some(sets[0].id), "{length}");
        }
        assert_eq!(addressed_by(&sets, &named(&id[..3])), None);
        assert_eq!(addressed_by(&sets, &named(&format!("{id}0"))), None);
        assert_eq!(addressed_by(&sets, &named("web1")), None);
    }
}
