//! The original's flat segment files: `DIR/UUID/INCREMENTAL/SEGMENT`, each a zlib stream.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::codec::{Codec, Compression, Decoder, Encryption, deflate};
use crate::exchange::ExchangeError;
use crate::manifest::{BackupsetId, ManifestInfo, SegmentRef};
use crate::segment::{SegmentHash, SegmentIndex};

/// A folder of segment files.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlatFolder<'a> {
    pub(super) folder: &'a Path,
}

/// Why a file is not the segment that it should be.
type Mismatch = String;

impl FlatFolder<'_> {
    /// Returns where a segment of a manifest lies: under the backupset and the number of the backup that stored
    /// it at this place.
    pub(super) fn path(self, info: &ManifestInfo, index: SegmentIndex, segment: &SegmentRef) -> PathBuf {
        let earlier = usize::from(segment.base.0).checked_sub(1).and_then(|base| info.bases.get(base));
        let backupset: BackupsetId = earlier.copied().unwrap_or(info.backupset);
        let folder = self.folder.join(backupset.to_string()).join(segment.incremental.to_string());
        folder.join(index.to_string())
    }
}

/// Reads segment files. One for each thread.
pub(super) struct FlatReader {
    decoder: Decoder,
    stored: Vec<u8>,
}

impl FlatReader {
    pub(super) fn new() -> Result<Self, ExchangeError> {
        Ok(Self { decoder: Decoder::new()?, stored: Vec::new() })
    }

    /// Replaces `plain` by what the file at `path` holds, if that is `length` bytes with this SHA-1. Says
    /// otherwise what is wrong; nothing if there is no file.
    pub(super) fn read(
        &mut self,
        path: &Path,
        hash: SegmentHash,
        length: u32,
        plain: &mut Vec<u8>,
    ) -> Result<Option<Result<(), Mismatch>>, ExchangeError> {
        let failed =
            |operation| move |source| ExchangeError::SegmentFile { operation, path: path.to_owned(), source };
        // Looked at before it is opened: opening a pipe would wait for somebody to write into it.
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open")(error)),
            Ok(metadata) if !metadata.is_file() => return Ok(Some(Err("it is no file".to_owned()))),
            Ok(_) => {}
        }
        // zlib adds a few bytes to every block that does not shrink; what is much longer is no such segment.
        let limit = u64::from(length) + u64::from(length) / 64 + 4096;
        self.stored.clear();
        let file = File::open(path).map_err(failed("open"))?;
        file.take(limit + 1).read_to_end(&mut self.stored).map_err(failed("read"))?;
        if self.stored.len() as u64 > limit {
            return Ok(Some(Err(format!("it is too long for {length} bytes"))));
        }
        let codec = Codec { compression: Compression::Zlib, encryption: Encryption::None };
        if let Err(error) = self.decoder.decode(codec, &self.stored, length, plain) {
            return Ok(Some(Err(error.to_string())));
        }
        let found = SegmentHash::of(plain);
        Ok(Some(if found == hash { Ok(()) } else { Err(format!("its SHA-1 is {found}")) }))
    }
}

/// Writes a segment file: whole or not at all, unless the machine crashes before the filesystem was synced. One that
/// replaces another is durable before it does.
pub(super) fn write(path: &Path, plain: &[u8], replaces: bool) -> Result<(), ExchangeError> {
    let failed = |source| ExchangeError::SegmentFile { operation: "write", path: path.to_owned(), source };
    let stored = deflate(plain).map_err(failed)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    make_folders(folder).map_err(failed)?;
    let mut file = tempfile::Builder::new().prefix(".ekko-").tempfile_in(folder).map_err(failed)?;
    file.write_all(&stored).map_err(failed)?;
    if replaces {
        file.as_file().sync_data().map_err(failed)?;
    }
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Makes a folder and those above it, for their owner alone: the files in them are the guest's.
fn make_folders(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The filesystem that segment files are written to. Opened before the first of them, so that it tells of every
/// write that fails from then on.
pub(super) struct Filesystem<'a> {
    path: &'a Path,
    folder: File,
}

impl<'a> Filesystem<'a> {
    /// Opens the folder of the segment files, or makes it.
    pub(super) fn open(path: &'a Path) -> Result<Self, ExchangeError> {
        let failed =
            |source| ExchangeError::SegmentFile { operation: "create", path: path.to_owned(), source };
        make_folders(path).map_err(failed)?;
        Ok(Self { path, folder: File::open(path).map_err(failed)? })
    }

    /// Makes everything on it durable.
    pub(super) fn sync(&self) -> Result<(), ExchangeError> {
        rustix::fs::syncfs(&self.folder).map_err(|errno| ExchangeError::SegmentFile {
            operation: "sync",
            path: self.path.to_owned(),
            source: errno.into(),
        })
    }
}
