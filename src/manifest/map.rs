//! The memory map: the only file with unsafe code.
#![expect(
    unsafe_code,
    reason = "mapping a file and reading a checked archive in place cannot be said safely"
)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::manifest::archive::ArchivedBody;
use crate::manifest::header::LENGTH;
use crate::manifest::{ManifestError, header::Header};
use crate::storage::StorageError;

/// A manifest's bytes, mapped or read, whose archive has been checked.
#[derive(Debug)]
pub(super) struct MappedBody {
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Read(Vec<u8>),
}

impl MappedBody {
    /// Maps `path`, checks its header, and lets bytecheck check the archive.
    ///
    /// Returns the map and the header; the body's fingerprint is left to the caller.
    pub(super) fn open(path: &Path) -> Result<(Self, Header), ManifestError> {
        let io = |operation| move |source| StorageError::new(operation, path, source);
        let file = File::open(path).map_err(io("open"))?;
        if !file.metadata().map_err(io("examine"))?.is_file() {
            return Err(ManifestError::NotAManifest { path: path.to_owned() });
        }
        // SAFETY: the map is sound as long as nobody changes or cuts the file while it stands. The
        // repository never rewrites a manifest: it is made under another name and renamed once whole,
        // and deleting unlinks it, which leaves a map intact. What could break it is a person, or
        // another program, writing into `manifests/` by hand during a job; `read` below is the way for
        // files that are not the repository's own.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
        let header = check(&map, path)?;
        Ok((Self { bytes: Bytes::Mapped(map) }, header))
    }

    /// Reads `path` into memory and checks it likewise: for files that somebody may change meanwhile.
    pub(super) fn read(path: &Path) -> Result<(Self, Header), ManifestError> {
        let failed = |source| StorageError::new("read", path, source);
        let bytes = std::fs::read(path).map_err(failed)?;
        let header = check(&bytes, path)?;
        Ok((Self { bytes: Bytes::Read(bytes) }, header))
    }

    /// Returns the archive, in place.
    pub(super) fn body(&self) -> &ArchivedBody {
        // SAFETY: `open` and `read` have let bytecheck walk these very bytes (position of the root, every
        // pointer and length, the text's UTF-8). Bytes that were read are ours alone; mapped ones have not
        // changed since, by the argument in `open`.
        unsafe { rkyv::access_unchecked::<ArchivedBody>(self.body_bytes()) }
    }

    /// Returns the body's bytes.
    pub(super) fn body_bytes(&self) -> &[u8] {
        let bytes = match &self.bytes {
            Bytes::Mapped(map) => map.as_ref(),
            Bytes::Read(bytes) => bytes.as_slice(),
        };
        bytes.get(LENGTH..).unwrap_or(&[])
    }
}

fn check(bytes: &[u8], path: &Path) -> Result<Header, ManifestError> {
    use crate::manifest::header::HeaderError;
    let damaged = |what: &str| ManifestError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let header = Header::decode(bytes).map_err(|error| match error {
        HeaderError::Signature => ManifestError::NotAManifest { path: path.to_owned() },
        HeaderError::Format(found) => ManifestError::NewerFormat { path: path.to_owned(), found },
        HeaderError::Damaged => damaged("its header does not fit its checksum"),
    })?;
    let body = bytes.get(LENGTH..).unwrap_or(&[]);
    if body.len() as u64 != header.body_length {
        return Err(damaged("its length is not the one in its header"));
    }
    rkyv::access::<ArchivedBody, rkyv::rancor::Failure>(body)
        .map_err(|_| damaged("its archive does not hold together"))?;
    Ok(header)
}
