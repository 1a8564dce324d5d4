//! The archive of a machine's moment: a ustar file (POSIX.1-1988) with the attached files as `attached/NAME` and, at its
//! end, `machine.json`.
//!
//! It is the same for the same content. The attached files come first, so that they lie in the same places as long as none
//! of them changes.

use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::backup::KIND;
use crate::machine::{Attachment, FileName, MACHINE, MACHINE_FILE, MachineError, disk_file, machine_files};
use crate::manifest::{BackupsetId, ImageName, Incremental, ManifestInfo, ManifestReader};
use crate::progress::Progress;
use crate::repository::{BackupId, BackupRecord, Backupset, Repository};
use crate::restore::{RestoreOptions, read_to_stream};
use crate::segment::Fingerprint;

/// The most bytes that the attached files of a machine have together.
pub const ATTACHED_LIMIT: u64 = 64 << 20;

/// The most bytes that a description has.
const DESCRIPTION_LIMIT: u64 = 1 << 20;

/// The most bytes that an archive has: what it holds, and its headers.
const ARCHIVE_LIMIT: u64 = ATTACHED_LIMIT + 2 * DESCRIPTION_LIMIT;

/// The format of `machine.json`.
const FORMAT: u32 = 1;

/// Where the attached files lie in the archive.
const FOLDER: &str = "attached/";

/// A disk of a machine, at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDisk {
    /// The name that its backups had.
    pub name: ImageName,
    /// The file that it is restored to.
    pub file: FileName,
    /// The backupset of its backup.
    pub backupset: BackupsetId,
    /// The number of its backup.
    pub incremental: Incremental,
    /// Its size in bytes.
    pub size_of_disk: u64,
    /// The BLAKE3 of the body of its backup's manifest.
    pub manifest: Fingerprint,
    /// How it was read.
    pub format: String,
}

impl MachineDisk {
    /// Finds its backup.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub fn find<'a>(&self, sets: &'a [Backupset]) -> Result<(&'a Backupset, &'a BackupRecord), String> {
        let set = sets.iter().find(|set| set.id == self.backupset);
        let is_it = |record: &&BackupRecord| record.incremental == self.incremental;
        let record = set.and_then(|set| Some((set, set.backups.iter().find(is_it)?)));
        let deleted =
            set.and_then(|set| Some((set, set.deleted.iter().map(|deleted| &deleted.record).find(is_it)?)));
        let by_set = || format!("{} ({}@{})", self.name, self.backupset, self.incremental);
        match (record, deleted) {
            (Some((set, record)), _) if record.manifest != self.manifest => {
                Err(format!("{} is another backup than the one of this moment", BackupId::of(set, record)))
            }
            (Some(found), _) => Ok(found),
            (None, Some((set, record))) => {
                let id = BackupId::of(set, record);
                Err(format!("{id} was deleted; \"ekko undelete {id}\" restores it"))
            }
            (None, None) => {
                Err(format!("{} is not there: it was deleted, or its list of backups is gone", by_set()))
            }
        }
    }
}

/// A machine at a moment: what it consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The name that the machine had.
    pub machine: ImageName,
    /// When it was.
    pub time: jiff::Timestamp,
    /// Its disks.
    pub disks: Vec<MachineDisk>,
    /// What lay beside them.
    pub attached: Vec<Attachment>,
}

#[derive(Serialize, Deserialize)]
struct Format {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct Description {
    format: u32,
    machine: String,
    time: String,
    disks: Vec<Disk>,
    attached: Vec<Attached>,
}

#[derive(Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "they are the names in the file")]
struct Disk {
    name: String,
    file: String,
    backupset: String,
    incremental: u32,
    size_of_disk: u64,
    manifest: String,
    format: String,
}

#[derive(Serialize, Deserialize)]
struct Attached {
    name: String,
    size: u64,
    blake3: String,
}

impl Disk {
    fn read(self, machine: &ImageName) -> Result<MachineDisk, String> {
        let wrong = |error: &dyn std::fmt::Display| error.to_string();
        let name = ImageName::new(self.name).map_err(|error| wrong(&error))?;
        // Worked out and not believed: what is said for a person's eyes leads nowhere.
        let file = disk_file(machine, &name).map_err(|error| wrong(&error))?;
        Ok(MachineDisk {
            file,
            backupset: self.backupset.parse().map_err(|error: uuid::Error| wrong(&error))?,
            incremental: Incremental(self.incremental),
            size_of_disk: self.size_of_disk,
            manifest: self.manifest.parse().map_err(|error: crate::segment::InvalidHash| wrong(&error))?,
            format: self.format,
            name,
        })
    }
}

/// Says whether a manifest is that of a machine's moment.
pub fn is_moment(info: &ManifestInfo) -> bool {
    info.attribute(KIND) == Some(MACHINE.as_bytes())
}

impl Moment {
    /// Returns `machine.json`.
    pub fn description(&self) -> Vec<u8> {
        let disk = |disk: &MachineDisk| Disk {
            name: disk.name.to_string(),
            file: disk.file.to_string(),
            backupset: disk.backupset.to_string(),
            incremental: disk.incremental.0,
            size_of_disk: disk.size_of_disk,
            manifest: disk.manifest.to_string(),
            format: disk.format.clone(),
        };
        let attached = |attachment: &Attachment| Attached {
            name: attachment.name.to_string(),
            size: attachment.bytes.len() as u64,
            blake3: Fingerprint::of(&attachment.bytes).to_string(),
        };
        let description = Description {
            format: FORMAT,
            machine: self.machine.to_string(),
            time: self.time.to_string(),
            disks: self.disks.iter().map(disk).collect(),
            attached: self.attached.iter().map(attached).collect(),
        };
        // Texts and numbers alone: that cannot fail.
        let mut text = serde_json::to_vec_pretty(&description).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Makes the archive.
    ///
    /// # Errors
    /// It would be too large, or two of its files would have one name.
    pub(super) fn archive(&self) -> Result<Vec<u8>, MachineError> {
        let names = self.attached.iter().map(|attachment| &attachment.name);
        machine_files(&self.machine, self.disks.iter().map(|disk| &disk.name), names)?;
        self.check_length()?;
        let description = self.description();
        let mut archive = tar::Builder::new(Vec::new());
        for Attachment { name, bytes } in &self.attached {
            append(&mut archive, &format!("{FOLDER}{name}"), bytes);
        }
        append(&mut archive, MACHINE_FILE, &description);
        // Into memory: that cannot fail.
        let archive = archive.into_inner().unwrap_or_default();
        match archive.len() as u64 {
            0..=ARCHIVE_LIMIT => Ok(archive),
            _ => Err(MachineError::TooLarge { bytes: self.attached_bytes() }),
        }
    }

    fn attached_bytes(&self) -> u64 {
        self.attached.iter().map(|attachment| attachment.bytes.len() as u64).sum()
    }

    /// Makes sure that its archive will be read again. It is as long whichever manifests its disks have, so this is known
    /// before they are read.
    ///
    /// # Errors
    /// The attached files are too large, or there are too many disks.
    pub(super) fn check_length(&self) -> Result<(), MachineError> {
        let (bytes, description) = (self.attached_bytes(), self.description().len() as u64);
        if bytes > ATTACHED_LIMIT {
            return Err(MachineError::TooLarge { bytes });
        }
        if description > DESCRIPTION_LIMIT {
            let (disks, files) = (self.disks.len(), self.attached.len());
            return Err(MachineError::TooMany { machine: self.machine.clone(), disks, files });
        }
        Ok(())
    }

    /// Reads the moment that a manifest is of.
    ///
    /// # Errors
    /// It is the manifest of a disk, or what it names is damaged or makes no sense.
    pub fn read(
        repository: &Repository,
        manifest: &ManifestReader,
        progress: &dyn Progress,
    ) -> Result<Self, MachineError> {
        let info = manifest.info();
        let backup = || format!("{} ({}@{})", info.name, info.backupset, info.incremental);
        if !is_moment(info) {
            return Err(MachineError::NotAMachine { backup: backup() });
        }
        let size = info.geometry.size_of_disk();
        if size > ARCHIVE_LIMIT {
            let what = format!("its archive has {size} bytes, and {ARCHIVE_LIMIT} is the most it may have");
            return Err(MachineError::Invalid { backup: backup(), what });
        }
        let options = RestoreOptions::default();
        let mut archive = Vec::new();
        let summary = read_to_stream(repository, manifest, &mut archive, &options, "command", progress)?;
        if let Some(damaged) = summary.damaged.first() {
            return Err(MachineError::Damaged { backup: backup(), what: damaged.error.clone() });
        }
        Self::decode(&archive).map_err(|what| MachineError::Invalid { backup: backup(), what })
    }

    fn decode(archive: &[u8]) -> Result<Self, String> {
        let wrong = |error: &dyn std::fmt::Display| error.to_string();
        let mut attached = Vec::new();
        let mut description = None;
        for entry in tar::Archive::new(archive).entries().map_err(|error| wrong(&error))? {
            let mut entry = entry.map_err(|error| wrong(&error))?;
            let name = String::from_utf8(entry.path_bytes().into_owned()).map_err(|error| wrong(&error))?;
            if !entry.header().entry_type().is_file() {
                return Err(format!("{name:?} is no file"));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
            match name.strip_prefix(FOLDER) {
                Some(name) => {
                    let name = FileName::new(name).map_err(|error| wrong(&error))?;
                    attached.push(Attachment { name, bytes });
                }
                None if name == MACHINE_FILE && description.is_none() => description = Some(bytes),
                None => return Err(format!("{name:?} does not belong into it")),
            }
        }
        let text = description.ok_or_else(|| format!("it has no {MACHINE_FILE}"))?;
        let Format { format } = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        if format != FORMAT {
            return Err(format!("its format is {format}; this release reads {FORMAT}: use a newer ekko"));
        }
        let description: Description = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        let machine = ImageName::new(description.machine).map_err(|error| wrong(&error))?;
        let disks = description.disks.into_iter().map(|disk| disk.read(&machine));
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        let names = attached.iter().map(|attachment| &attachment.name);
        machine_files(&machine, disks.iter().map(|disk| &disk.name), names).map_err(|error| wrong(&error))?;
        let said: Vec<_> =
            description.attached.iter().map(|it| (it.name.as_str(), it.blake3.as_str())).collect();
        let found: Vec<_> =
            attached.iter().map(|it| (it.name.as_str(), Fingerprint::of(&it.bytes).to_string())).collect();
        if !said.iter().copied().eq(found.iter().map(|(name, blake3)| (*name, blake3.as_str()))) {
            return Err("its files are not those that it says it has".to_owned());
        }
        let time = description.time.parse().map_err(|error: jiff::Error| wrong(&error))?;
        Ok(Self { machine, time, disks, attached })
    }
}

/// Appends a file, without anything that does not follow from its content.
fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    // Names are short enough for a header, and writing to memory cannot fail.
    let _ = archive.append_data(&mut header, path, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment() -> Moment {
        let machine = ImageName::new("web").unwrap();
        let disk = |name: &str, number| {
            let name = ImageName::new(name).unwrap();
            MachineDisk {
                file: disk_file(&machine, &name).unwrap(),
                name,
                backupset: BackupsetId::from_bytes([number; 16]),
                incremental: Incremental(u32::from(number)),
                size_of_disk: 1 << 40,
                manifest: Fingerprint::of(&[number]),
                format: "qcow2".to_owned(),
            }
        };
        let disks = vec![disk("web/vda", 1), disk("web/vdb", 2)];
        let attachment = |name: &str, bytes: &[u8]| Attachment {
            name: FileName::new(name).unwrap(),
            bytes: bytes.to_vec(),
        };
        let attached = vec![attachment("domain.xml", b"<domain/>"), attachment(&"n".repeat(90), &[7; 1000])];
        Moment { machine, time: jiff::Timestamp::UNIX_EPOCH, disks, attached }
    }

    #[test]
    fn an_archive_comes_back_and_is_the_same_each_time() {
        let moment = moment();
        let archive = moment.archive().unwrap();
        assert_eq!(archive, moment.archive().unwrap());
        assert_eq!(Moment::decode(&archive).unwrap(), moment);
        let empty = Moment { attached: Vec::new(), ..moment };
        assert_eq!(Moment::decode(&empty.archive().unwrap()).unwrap(), empty);
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let mut moment = moment();
        moment.attached[0].bytes = vec![0; 1 + usize::try_from(ATTACHED_LIMIT).unwrap()];
        assert!(matches!(moment.archive(), Err(MachineError::TooLarge { .. })));
        moment.attached.clear();
        moment.check_length().unwrap();
        moment.disks = vec![moment.disks[0].clone(); 5000];
        assert!(matches!(moment.check_length(), Err(MachineError::TooMany { .. })));
    }

    #[test]
    fn an_archive_that_leads_elsewhere_or_was_changed_is_refused() {
        let whole = moment().archive().unwrap();
        for (from, to) in [
            ("attached/domain.xml", "attached/../../xml"),
            ("attached/domain.xml", "attached//etc/pass"),
            ("attached/domain.xml", "/etc/passwd.attach"),
            ("\"web/vda\"", "\"db/vda.\""),
            ("\"web/vda\"", "\"web/..\"\""),
            ("\"format\": 1", "\"format\": 2"),
            ("<domain/>", "<Domain/>"),
        ] {
            let text = whole.windows(from.len()).position(|it| it == from.as_bytes()).unwrap();
            let mut changed = whole.clone();
            changed[text..text + from.len()].fill(b' ');
            changed[text..text + to.len()].copy_from_slice(to.as_bytes());
            mend_checksums(&mut changed);
            assert!(Moment::decode(&changed).is_err(), "{from} -> {to}");
        }
        let mut link = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        link.append_link(&mut header, "attached/x", "/etc/passwd").unwrap();
        assert!(Moment::decode(&link.into_inner().unwrap()).is_err());
        assert!(Moment::decode(&[]).is_err());
        // Every changed byte and every end is an error or the same moment, and no panic.
        for at in (0..whole.len()).step_by(7) {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            let _ = Moment::decode(&changed);
            let _ = Moment::decode(&whole[..at]);
        }
    }

    /// Makes the headers' checksums right again, so that not they alone are what refuses.
    fn mend_checksums(archive: &mut [u8]) {
        for block in archive.chunks_mut(512) {
            if &block[257..262] == b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
    }
}
