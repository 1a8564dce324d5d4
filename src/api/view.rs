//! Whose eyes see what: images belong to projects, and a project sees its own alone.
//!
//! The project of an image is what stands before the first `:` in its name. An image without one belongs to the
//! repository's owner, who sees everything under its full name; a project sees its images by what stands behind its own.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::manifest::{ImageName, InvalidName};
use crate::repository::{
    Addressee, BackupId, BackupRecord, BackupSelector, Backupset, Repository, RepositoryError,
};

/// What stands between the project and the rest of an image's name.
const SEPARATOR: char = ':';

/// The name of a project: 1 to 64 letters, digits, `-`, `_` and `.`, the first a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Project(String);

/// A text that names no project.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" names no project: 1 to 64 letters, digits, \"-\", \"_\" and \".\" are possible", text.escape_debug())]
pub struct InvalidProject {
    text: String,
}

impl Project {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Project {
    type Error = InvalidProject;

    fn try_from(text: String) -> Result<Self, InvalidProject> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins && text.len() <= 64 && text.bytes().all(fits) {
            Ok(Self(text))
        } else {
            Err(InvalidProject { text })
        }
    }
}

impl FromStr for Project {
    type Err = InvalidProject;

    fn from_str(text: &str) -> Result<Self, InvalidProject> {
        Self::try_from(text.to_owned())
    }
}

impl From<Project> for String {
    fn from(project: Project) -> Self {
        project.0
    }
}

impl fmt::Display for Project {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What somebody sees of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    project: Option<Project>,
}

impl View {
    /// Everything, as the repository's owner sees it.
    pub const fn everything() -> Self {
        Self { project: None }
    }

    /// What belongs to a project.
    pub const fn of(project: Project) -> Self {
        Self { project: Some(project) }
    }

    /// Returns the project that it is confined to.
    pub fn project(&self) -> Option<&Project> {
        self.project.as_ref()
    }

    /// Returns how an image is called in this view; nothing if it is not seen.
    pub fn shown<'a>(&self, name: &'a ImageName) -> Option<&'a str> {
        let Some(project) = &self.project else { return Some(name.as_str()) };
        let (owner, rest) = name.as_str().split_once(SEPARATOR)?;
        (owner == project.as_str()).then_some(rest)
    }

    /// Returns the full name of an image that is called `shown` in this view.
    ///
    /// # Errors
    ///
    /// If it cannot name an image.
    pub fn full(&self, shown: &str) -> Result<ImageName, InvalidName> {
        // By itself it is held to the same rules, wherever it goes.
        let name = ImageName::new(shown)?;
        match &self.project {
            None => Ok(name),
            Some(project) => ImageName::new(format!("{project}{SEPARATOR}{shown}")),
        }
    }

    /// Returns what the names of all images of the project begin with; of everything, nothing.
    pub fn prefix(&self) -> String {
        self.project.as_ref().map(|project| format!("{project}{SEPARATOR}")).unwrap_or_default()
    }

    /// Reads the backupsets that are seen. Those that cannot be read are left out and returned beside.
    ///
    /// # Errors
    ///
    /// If the folder of the manifests cannot be read.
    pub fn sets(
        &self,
        repository: &Repository,
    ) -> Result<(Vec<Arc<Backupset>>, Vec<RepositoryError>), RepositoryError> {
        let (sets, problems) = repository.backupsets_named(&self.prefix())?;
        Ok((self.seen(sets), problems))
    }

    /// Leaves out the backupsets that are not seen.
    pub fn seen<B: Borrow<Backupset>>(&self, sets: Vec<B>) -> Vec<B> {
        sets.into_iter().filter(|set| self.shown(&set.borrow().name).is_some()).collect()
    }

    /// Finds a backup that was asked for by the name that its image has in this view, or by its backupset.
    ///
    /// # Errors
    ///
    /// The same if there is none and if it is not seen.
    pub fn find<'a, B: Borrow<Backupset>>(
        &self,
        repository: &Repository,
        seen: &'a [B],
        asked: &BackupSelector,
    ) -> Result<(&'a Backupset, &'a BackupRecord), RepositoryError> {
        let addressee = self.addressee(seen, &asked.name)?;
        repository.found(&addressee, asked)
    }

    /// Finds what a name means in this view: a disk, or a backupset by its UUID.
    ///
    /// # Errors
    ///
    /// The same if there is none and if it is not seen.
    pub fn addressee<'a, B: Borrow<Backupset>>(
        &self,
        seen: &'a [B],
        name: &str,
    ) -> Result<Addressee<'a>, RepositoryError> {
        let full = |text: &str| self.full(text).ok();
        Addressee::find(seen, name, full, |name: &ImageName| self.shown(name))
    }

    /// Leaves the project out of the names of its images in a text.
    pub(super) fn in_words(&self, text: &str) -> String {
        if self.project.is_none() { text.to_owned() } else { text.replace(&self.prefix(), "") }
    }

    /// Returns how a backup is called in this view.
    pub fn backup_id(&self, set: &Backupset, backup: &BackupRecord) -> String {
        let name = self.shown(&set.name).unwrap_or_default().to_owned();
        BackupId { name, number: backup.number }.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ImageName {
        ImageName::new(text).unwrap()
    }

    #[test]
    fn a_project_sees_its_own_images_and_no_others() {
        let blue = View::of("blue".parse().unwrap());
        assert_eq!(blue.shown(&name("blue:web/vda")), Some("web/vda"));
        assert_eq!(blue.full("web/vda").unwrap(), name("blue:web/vda"));
        assert_eq!(blue.full("red:web").unwrap(), name("blue:red:web"), "no way into another project");
        for other in ["web", "blue", "blue/web", "blues:web", "Blue:web", "red:blue:web"] {
            assert_eq!(blue.shown(&name(other)), None, "{other}");
        }
        assert_eq!(View::everything().shown(&name("blue:web")), Some("blue:web"));
        assert_eq!(View::everything().full("blue:web").unwrap(), name("blue:web"));
    }

    #[test]
    fn names_stay_within_their_rules() {
        let blue = View::of("blue".parse().unwrap());
        for text in ["", "-x", "../x", "/x", "a@1", "a=b", "a\nb", &"x".repeat(251)] {
            assert!(blue.full(text).is_err(), "{text:?}");
        }
        for text in ["", "-x", ".x", "a:b", "a/b", "ä", "a b", &"x".repeat(65)] {
            assert!(text.parse::<Project>().is_err(), "{text:?}");
        }
        for text in ["a", "A-b_c.d", "0", &"x".repeat(64)] {
            assert!(text.parse::<Project>().is_ok(), "{text:?}");
        }
    }
}
