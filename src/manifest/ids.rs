//! The names of backupsets, backups and images.

use std::fmt;
use std::str::FromStr;

/// The UUID of one disk's chain of backups.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupsetId(uuid::Uuid);

impl BackupsetId {
    /// Makes a new random one.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4())
    }

    /// Wraps the 16 bytes of a UUID.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid::Uuid::from_bytes(bytes))
    }

    /// Returns the 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for BackupsetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for BackupsetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackupsetId({self})")
    }
}

impl FromStr for BackupsetId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// A backup's number in its backupset, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incremental(pub u32);

impl fmt::Display for Incremental {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which backupset first stored a segment at its place: 0 is the manifest's own, `n` is `bases[n - 1]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseIndex(pub u16);

/// The name of an image, as a person gave it: 1 to 255 bytes of text without `@`, `=` or control
/// characters, not beginning with `-`, `.` or `/`. It is never used as a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

/// A text that cannot name an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" cannot name an image: {why}", text.escape_debug())]
pub struct InvalidName {
    text: String,
    why: &'static str,
}

impl ImageName {
    /// Checks `text` and makes a name of it.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        let why = if text.is_empty() || text.len() > 255 {
            "a name has 1 to 255 bytes"
        } else if text.contains(['@', '=']) {
            "\"@\" and \"=\" have a meaning of their own"
        } else if text.chars().any(char::is_control) || text.trim() != text {
            "control characters and white space at its ends are not possible"
        } else if text.starts_with(['-', '.', '/']) {
            "a name does not begin with \"-\", \".\" or \"/\""
        } else {
            return Ok(Self(text));
        };
        Err(InvalidName { text, why })
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` so that a width in a format is kept.
        f.pad(&self.0)
    }
}

impl FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_be_misread_are_refused() {
        for text in ["", "a@1", "a=b", "-r", "../x", "/dev/sda", "a\nb", " a", &"x".repeat(256)] {
            assert!(ImageName::new(text).is_err(), "{text:?}");
        }
        for text in ["web", "web/vda", "Büro 3", "db.raw", &"x".repeat(255)] {
            assert!(ImageName::new(text).is_ok(), "{text:?}");
        }
    }
}
