//! The sources of a backup, as they are named on the command line.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use crate::cli::error::CliError;
use crate::error::ErrorKind;
use crate::image::is_remote;
use crate::manifest::ImageName;

/// What the kernel counts the size of files and devices in, in bytes.
const SECTOR: u64 = 512;

/// A source and the name it is backed up under.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: ImageName,
    pub(super) path: PathBuf,
    /// Whether the name was given, and not taken from the path.
    is_named: bool,
}

impl Source {
    /// Returns about how many bytes of data it has, without opening it: what its file takes on its disk, or the size of a device.
    pub(super) fn estimate(&self) -> u64 {
        let Ok(metadata) = std::fs::metadata(&self.path) else { return 0 };
        if !metadata.file_type().is_block_device() {
            return metadata.blocks() * SECTOR;
        }
        let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
        let sectors = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"));
        sectors.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0) * SECTOR
    }
}

fn invalid(message: impl Into<String>) -> CliError {
    CliError::new(ErrorKind::Invalid, message)
}

/// Reads all sources.
///
/// # Errors
/// One cannot be a source, two have one name, or a space stands where `=` was meant.
pub(super) fn sources(texts: &[OsString]) -> Result<Vec<Source>, CliError> {
    let sources = texts.iter().map(|text| source(text)).collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::new();
    if let Some(twice) = sources.iter().find(|source| !names.insert(&source.name)) {
        return Err(invalid(format!("the name {} is given twice: each source needs its own", twice.name)));
    }
    if let [name, path, ..] = sources.as_slice()
        && is_torn(&sources)
    {
        let (name, path) = (name.path.display(), path.path.display());
        return Err(invalid(format!(
            "cannot back up {name}: there is no such file or device; did you mean {name}={path}?"
        )));
    }
    Ok(sources)
}

/// Says whether all sources are pairs of a name and a path with a space between them. One disk that is missing beside others is
/// no such pair: it must not keep the others from being backed up.
fn is_torn(sources: &[Source]) -> bool {
    let is_name = |source: &Source| {
        let is_word = !source.path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b'/' | b'.'));
        !source.is_named && is_word && !source.path.exists()
    };
    let is_pair = |pair: &[Source]| matches!(pair, [name, path] if is_name(name) && !path.is_named && path.path.exists());
    sources.chunks(2).all(is_pair)
}

/// Reads `[NAME=]SOURCE`. A path that begins with `/`, `./` or `../` has no name before it, so that paths
/// with `=` in them can be said.
fn source(text: &OsStr) -> Result<Source, CliError> {
    let bytes = text.as_bytes();
    let is_path = ["/", "./", "../"].iter().any(|begin| bytes.starts_with(begin.as_bytes()));
    if is_remote(Path::new(text)) {
        return Err(invalid(format!("what is no path needs a name of its own: NAME={}", text.display())));
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == b'=').filter(|_| !is_path) {
        let (name, path) = (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..).unwrap_or_default());
        let not_text = |_| invalid(format!("the name in {} is not UTF-8", text.display()));
        let name = std::str::from_utf8(name).map_err(not_text)?;
        if path.is_empty() {
            let example = if name.is_empty() { "NAME" } else { name };
            return Err(invalid(format!(
                "cannot back up {}: the source is missing; use {example}=PATH",
                text.display()
            )));
        }
        let name = ImageName::new(name).map_err(|error| invalid(error.to_string()))?;
        return Ok(Source { name, path: PathBuf::from(OsStr::from_bytes(path)), is_named: true });
    }
    let Some(file_name) = Path::new(text).file_name().unwrap_or_default().to_str() else {
        return Err(invalid(format!(
            "cannot name the backup of {}: the file name is not UTF-8; use NAME={}",
            text.display(),
            text.display()
        )));
    };
    let name = ImageName::new(file_name)
        .map_err(|error| invalid(format!("{error}; give it one with NAME={}", text.display())))?;
    Ok(Source { name, path: PathBuf::from(text), is_named: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_told_apart() {
        let read = |text: &str| {
            source(OsStr::new(text)).ok().map(|it| (it.name.to_string(), it.path.display().to_string()))
        };
        let pair = |name: &str, path: &str| Some((name.to_owned(), path.to_owned()));
        assert_eq!(read("web=/dev/vg/web"), pair("web", "/dev/vg/web"));
        assert_eq!(read("web/vda=a=b"), pair("web/vda", "a=b"));
        assert_eq!(read("/srv/a=b/disk.raw"), pair("disk.raw", "/srv/a=b/disk.raw"));
        assert_eq!(read("./x=y"), None, "its file name has a = in it, so it needs a name");
        assert_eq!(read("disk.raw"), pair("disk.raw", "disk.raw"));
        assert_eq!(read("a@b=disk"), None);
        assert_eq!(read("/"), None);
        assert_eq!(read("web="), None);
    }

    #[test]
    fn a_path_that_is_not_utf_8_needs_a_name() {
        let path = OsStr::from_bytes(b"bad\xff.raw");
        assert!(source(path).is_err());
        let named = source(OsStr::from_bytes(b"web=bad\xff.raw")).unwrap();
        assert_eq!((named.name.as_str(), named.path.as_os_str()), ("web", path));
    }
}
