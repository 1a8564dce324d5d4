//! Where a repository's files lie.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::manifest::{BackupsetId, Incremental};
use crate::storage::TEMPORARY;
use crate::store::pack::PackNumber;

/// Reads a name that Ekko gives, a number or a UUID. The same written in another way, as `007` or in capitals, is not one.
pub(super) fn canonical<T: FromStr + Display>(name: &str) -> Option<T> {
    name.parse().ok().filter(|value: &T| value.to_string() == name)
}

/// Says something of the name of a file.
pub(super) type NameTest = fn(&str) -> bool;

/// Returns what the temporary file with this name will be called; nothing if it is not one.
fn finished(name: &str) -> Option<&str> {
    name.strip_suffix(TEMPORARY)?.strip_suffix('.')
}

/// Says whether Ekko gives this name to a temporary file in `packs`.
pub(super) fn is_temporary_pack(name: &str) -> bool {
    finished(name).is_some_and(|name| PackNumber::from_file_name(name).is_some())
}

/// Says whether Ekko gives this name to a temporary file in the repository's own folder. The list of tokens is not meant: it has a
/// lock of its own.
pub(super) fn is_temporary_of_root(name: &str) -> bool {
    matches!(finished(name), Some(SETTINGS | CHECKED | CLOCK | FINDINGS | ROSTER))
}

/// Says whether Ekko gives this name to a temporary file in `manifests`.
pub(super) fn is_temporary_of_sets(name: &str) -> bool {
    let is_own_probe = |name: &str| name.strip_prefix(OWN_PROBE).and_then(canonical::<uuid::Uuid>).is_some();
    finished(name) == Some(TOGETHER) || name == PROBE || finished(name).is_some_and(is_own_probe)
}

/// Says whether Ekko gives this name to a temporary file in the folder of a backupset.
pub(super) fn is_temporary_of_set(name: &str) -> bool {
    name == Layout::NEWBORN
        || finished(name)
            .is_some_and(|name| name == Layout::SET_SETTINGS || name == Layout::NEWBORN || is_draft(name))
}

/// Says whether this is the name of a manifest that is being written: a number, and the 32 hexadecimal digits that tell it
/// from others of that number. Earlier releases left the digits out.
fn is_draft(name: &str) -> bool {
    let (number, id) = name.split_once('.').unwrap_or((name, ""));
    let is_id = id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    canonical::<u32>(number).is_some() && (is_id || number == name)
}

const TOGETHER: &str = "together.toml";
const CHECKED: &str = "checked";
const CLOCK: &str = "clock";
const FINDINGS: &str = "findings";
const ROSTER: &str = "backupsets";
const SETTINGS: &str = "ekko.toml";

/// The name of what shows that the repository can be written to.
const PROBE: &str = "probe.tmp";
const OWN_PROBE: &str = "probe-";

/// The paths of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The name of the settings in a backupset's folder.
    pub const SET_SETTINGS: &str = "set.toml";
    /// The name of what says, beside no settings, that its first backup has begun: it does not exist.
    pub const NEWBORN: &str = "newborn.tmp";

    /// Makes the layout of a repository at `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Returns the repository's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the file of settings.
    pub fn settings(&self) -> PathBuf {
        self.root.join(SETTINGS)
    }

    /// Returns the file that names the backupsets which have had a backup.
    pub fn roster(&self) -> PathBuf {
        self.root.join(ROSTER)
    }

    /// Returns the file with generation and clean mark.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Returns the file that a writer locks.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Returns the socket of the service that has the repository open.
    pub fn socket(&self) -> PathBuf {
        self.root.join("ekko.sock")
    }

    /// Returns the folder that says what was sent in sessions that did not end.
    pub fn sessions(&self) -> PathBuf {
        self.root.join("sessions")
    }

    /// Returns the file of the tokens by which clients of the service are let in.
    pub fn tokens(&self) -> PathBuf {
        self.root.join("tokens.toml")
    }

    /// Returns the file that is locked by who changes the tokens.
    pub fn tokens_lock(&self) -> PathBuf {
        self.root.join("tokens.lock")
    }

    /// Returns the file that is given up when the disk is full.
    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// Returns the file by which it is found out whether the repository can be written to. Only there meanwhile.
    pub fn probe(&self) -> PathBuf {
        self.sets().join(PROBE)
    }

    /// Returns a file that no other process creates, by which it is found out whom new files belong to. Only there meanwhile.
    pub(super) fn own_probe(&self) -> PathBuf {
        self.sets().join(format!("{OWN_PROBE}{}.{TEMPORARY}", uuid::Uuid::new_v4()))
    }

    /// Returns the folder of the packs.
    pub fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }

    /// Returns the folder of what says which backups are being read.
    pub fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    /// Returns the folder of damaged records.
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// Returns the file that says what was checked when.
    pub fn checked(&self) -> PathBuf {
        self.root.join(CHECKED)
    }

    /// Returns the file that lists what checks found damaged.
    pub fn findings(&self) -> PathBuf {
        self.root.join(FINDINGS)
    }

    /// Returns the folder of the failed backups that no backup has followed.
    pub fn failures(&self) -> PathBuf {
        self.root.join("failures")
    }

    /// Returns the file that counts the time that has certainly passed.
    pub fn clock(&self) -> PathBuf {
        self.root.join(CLOCK)
    }

    /// Returns the folder of the indexes.
    pub fn indexes(&self) -> PathBuf {
        self.root.join("index")
    }

    /// Returns the folder of one index.
    pub fn index(&self, number: u64) -> PathBuf {
        self.indexes().join(number.to_string())
    }

    /// Returns the folder of the backupsets.
    pub fn sets(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// Returns the file that says which backups of several backupsets have come to exist together.
    pub fn together(&self) -> PathBuf {
        self.sets().join(TOGETHER)
    }

    /// Returns the folder of one backupset.
    pub fn set(&self, id: BackupsetId) -> PathBuf {
        self.sets().join(id.to_string())
    }

    /// Returns the settings of one backupset.
    pub fn set_settings(&self, id: BackupsetId) -> PathBuf {
        self.set(id).join(Self::SET_SETTINGS)
    }

    /// Returns what says that a backupset does not exist yet.
    pub fn newborn(&self, id: BackupsetId) -> PathBuf {
        self.set(id).join(Self::NEWBORN)
    }

    /// Returns the manifest of one backup.
    pub fn manifest(&self, id: BackupsetId, incremental: Incremental) -> PathBuf {
        self.set(id).join(incremental.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_ekko_gives_are_read_or_removed() {
        let id = BackupsetId::random().to_string();
        assert!(canonical::<BackupsetId>(&id).is_some());
        for other in [id.to_uppercase(), id.replace('-', ""), format!("{{{id}}}"), format!("urn:uuid:{id}")] {
            assert!(canonical::<BackupsetId>(&other).is_none(), "{other}");
        }
        assert_eq!(canonical::<u64>("2021"), Some(2021));
        for other in ["02021", "+2021", "", "2021 ", "18446744073709551616"] {
            assert!(canonical::<u64>(other).is_none(), "{other}");
        }
        assert!(is_temporary_pack("0000000000000012.pack.tmp"));
        assert!(is_temporary_of_sets("together.toml.tmp"));
        assert!(is_temporary_of_sets("probe.tmp"));
        let own = format!("probe-{}.tmp", uuid::Uuid::new_v4());
        assert!(is_temporary_of_sets(&own) && !is_temporary_of_sets("probe-x.tmp"));
        assert!(is_temporary_of_root("clock.tmp") && is_temporary_of_root("findings.tmp"));
        assert!(is_temporary_of_root("checked.tmp") && is_temporary_of_root("ekko.toml.tmp"));
        let draft = format!("7.{}.tmp", uuid::Uuid::new_v4().simple());
        for name in ["0.tmp", &draft, "set.toml.tmp", "newborn.tmp", "newborn.tmp.tmp"] {
            assert!(is_temporary_of_set(name), "{name}");
        }
        for name in [
            "letter.tmp",
            "12.pack.tmp",
            "00.tmp",
            "tmp",
            ".tmp",
            "set.toml",
            "together.toml",
            "7",
            "checked",
            "tokens.toml.tmp",
            "7..tmp",
            "7.x.tmp",
        ] {
            let temporary =
                [is_temporary_pack, is_temporary_of_sets, is_temporary_of_set, is_temporary_of_root];
            assert!(!temporary.iter().any(|is_temporary| is_temporary(name)), "{name}");
        }
    }
}
