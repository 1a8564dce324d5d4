//! The names of the files that a machine is restored to: never a path, so that none is written elsewhere.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::machine::MachineError;
use crate::manifest::ImageName;

/// The name of the file that says what a moment consists of.
pub const MACHINE_FILE: &str = "machine.json";

/// The longest name, in bytes: with its folder it has room in a header of the archive.
const LONGEST: usize = 90;

/// The name of a file in the folder of a restored machine: 1 to 90 bytes of text without `/`, `\` or control characters,
/// not beginning with `.` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName(String);

/// A text that cannot name a file of a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" cannot name a file of a machine: {why}", text.escape_debug())]
pub struct InvalidFileName {
    text: String,
    why: &'static str,
}

impl FileName {
    /// Checks `text` and makes a name of it.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidFileName> {
        let text = text.into();
        let why = if text.is_empty() || text.len() > LONGEST {
            "it has 1 to 90 bytes"
        } else if text.contains(['/', '\\']) {
            "it is a file's name and no path"
        } else if text.chars().any(char::is_control) {
            "control characters are not possible"
        } else if text.starts_with(['.', '-']) {
            "it does not begin with \".\" or \"-\""
        } else {
            return Ok(Self(text));
        };
        Err(InvalidFileName { text, why })
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns where the file lies in a folder.
    pub fn within(&self, folder: &Path) -> PathBuf {
        folder.join(&self.0)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A small file that lies beside the disks of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its name.
    pub name: FileName,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Returns the file that a disk of a machine is restored to: `MACHINE/vda` gives `vda.raw`.
pub fn disk_file(machine: &ImageName, disk: &ImageName) -> Result<FileName, MachineError> {
    let part = disk.as_str().strip_prefix(machine.as_str()).and_then(|rest| rest.strip_prefix('/'));
    let part =
        part.ok_or_else(|| MachineError::OtherMachine { name: disk.clone(), machine: machine.clone() })?;
    FileName::new(part)?;
    Ok(FileName::new(format!("{part}.raw"))?)
}

/// Returns the files that the disks of a machine are restored to, and makes sure that no two files of it have one name.
pub fn machine_files<'a, 'b>(
    machine: &ImageName,
    disks: impl Iterator<Item = &'a ImageName>,
    attached: impl Iterator<Item = &'b FileName>,
) -> Result<Vec<FileName>, MachineError> {
    let files = disks.map(|disk| disk_file(machine, disk)).collect::<Result<Vec<_>, _>>()?;
    let mut taken = BTreeSet::from([MACHINE_FILE]);
    let attached: Vec<_> = attached.collect();
    for name in files.iter().chain(attached) {
        if !taken.insert(name.as_str()) {
            return Err(MachineError::NameTwice { name: name.clone() });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_its_folder() {
        for text in [
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            "a\\b",
            ".hidden",
            "-f",
            "a\nb",
            "a\0",
            &"x".repeat(91),
        ] {
            assert!(FileName::new(text).is_err(), "{text:?}");
        }
        for text in ["domain.xml", "web_VARS.fd", "Büro 3", &"x".repeat(90)] {
            assert!(FileName::new(text).is_ok(), "{text:?}");
        }
        let name = |text: &str| ImageName::new(text).unwrap();
        assert_eq!(disk_file(&name("web"), &name("web/vda")).unwrap().as_str(), "vda.raw");
        assert_eq!(disk_file(&name("dc/web"), &name("dc/web/vda")).unwrap().as_str(), "vda.raw");
        for disk in ["web", "webs/vda", "db/vda", "web/", "web/../../x", "web/a/b", "web/.."] {
            assert!(disk_file(&name("web"), &name(disk)).is_err(), "{disk}");
        }
    }

    #[test]
    fn no_two_files_of_a_machine_have_one_name() {
        let name = |text: &str| ImageName::new(text).unwrap();
        let (web, disks) = (name("web"), [name("web/vda"), name("web/vdb")]);
        let files = |attached: &[&str]| {
            let attached: Vec<_> = attached.iter().map(|it| FileName::new(*it).unwrap()).collect();
            machine_files(&web, disks.iter(), attached.iter()).map(|files| files.len())
        };
        assert_eq!(files(&["domain.xml", "nvram.fd"]).unwrap(), 2);
        for attached in [&["vda.raw"][..], &["machine.json"], &["a", "a"]] {
            assert!(matches!(files(attached), Err(MachineError::NameTwice { .. })), "{attached:?}");
        }
    }
}
