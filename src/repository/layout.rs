//! Where a repository's files lie.

use std::path::{Path, PathBuf};

use crate::manifest::{BackupsetId, Incremental};

/// The paths of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The name of the settings in a backupset's folder.
    pub const SET_SETTINGS: &str = "set.toml";
    /// The name of what says, beside no settings, that an import has begun the backupset: it does not exist.
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
        self.root.join("ekko.toml")
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
        self.root.join("checked")
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
        self.sets().join("together.toml")
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
