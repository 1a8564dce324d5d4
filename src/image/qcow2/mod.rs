//! qcow2 images, read natively: versions 2 and 3, compressed clusters, clusters divided into parts (extended L2), external
//! data files, backing chains and internal snapshots.
//!
//! Owns what a qcow2 file says and how its disk is read. It never writes, and needs no reference counts: an image that was
//! not closed in order ("dirty") is read all the same. A path inside an image is only followed if its format was said by
//! somebody who is trusted ([`crate::image::ImageOptions`]); see [`Trust`].
//!
//! Memory: the table of the first level (at most 32 MiB, 8 bytes for 512 MiB of disk as a rule), 2 MiB of tables of the
//! second level for each file of a chain, and a cluster for each thread that decompresses.

mod compressed;
mod header;
mod tables;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub(super) use header::MAGIC;

use crate::image::qcow2::header::{Backing, ClusterCompression, Header};
use crate::image::qcow2::tables::{Place, Run, Tables};
use crate::image::{Extent, Image, ImageError, RawImage, Reading, SourceChange};

/// The most files that a chain has.
const CHAIN_LIMIT: usize = 256;

/// Whether the format of an image is known, or was guessed from bytes that a guest may have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Somebody said it: its references to other files are followed.
    Said,
    /// It was recognised by its content: it may not refer to other files.
    Guessed,
}

/// A qcow2 image and everything below it.
#[derive(Debug)]
pub(super) struct Qcow2Image {
    /// The file that was named: it has the tables, and the data as a rule.
    file: RawImage,
    data: Option<RawImage>,
    tables: Tables,
    compression: ClusterCompression,
    cluster_size: u64,
    below: Option<Below>,
    /// Whether it is an internal snapshot, which does not change although the file does.
    is_snapshot: bool,
}

/// What lies below an image.
#[derive(Debug)]
enum Below {
    Raw(RawImage),
    Qcow2(Box<Qcow2Image>),
}

impl Qcow2Image {
    /// Opens an image and everything that it refers to.
    pub(super) fn open(
        file: RawImage,
        reading: Reading,
        trust: Trust,
        snapshot: Option<&str>,
    ) -> Result<Self, ImageError> {
        Self::open_in_chain(file, reading, trust, snapshot, CHAIN_LIMIT)
    }

    fn open_in_chain(
        file: RawImage,
        reading: Reading,
        trust: Trust,
        snapshot: Option<&str>,
        limit: usize,
    ) -> Result<Self, ImageError> {
        let header = Header::read(&file)?;
        let may_follow = |what: &str, name: &str| match trust {
            Trust::Said => Ok(()),
            Trust::Guessed => {
                Err(ImageError::Untrusted { path: file.path().to_owned(), what: format!("{what} {name}") })
            }
        };
        let data = match (header.has_data_file, &header.data_file) {
            (false, _) => None,
            (true, None) => return Err(ImageError::damaged(file.path(), "it does not name its data file")),
            (true, Some(name)) => {
                may_follow("data file", name)?;
                Some(RawImage::open_for(&beside(&file, name)?, reading)?)
            }
        };
        let below = match &header.backing {
            None => None,
            Some(backing) => {
                may_follow("backing file", &backing.name)?;
                let limit = limit.checked_sub(1);
                let limit = limit.ok_or_else(|| ImageError::damaged(file.path(), "its chain has no end"))?;
                Some(Below::open(&file, backing, reading, limit)?)
            }
        };
        let disk = match snapshot {
            Some(wanted) => header.snapshot(&file, wanted)?,
            None => header.disk,
        };
        let tables = Tables::read(&file, &header, disk)?;
        Ok(Self {
            data,
            tables,
            compression: header.compression,
            cluster_size: header.cluster_size(),
            below,
            file,
            is_snapshot: snapshot.is_some(),
        })
    }

    /// Returns the file that has the guest's bytes.
    fn data(&self) -> &RawImage {
        self.data.as_ref().unwrap_or(&self.file)
    }

    /// Returns the next extent with data that begins in the range.
    fn next_data_in(&self, from: u64, end: u64) -> Result<Option<Extent>, ImageError> {
        let mut at = from;
        while at < end {
            let Run { place, length } = self.tables.run(&self.file, at)?;
            let run_end = at.saturating_add(length).min(end);
            let found = match place {
                Place::Zero => None,
                Place::Compressed { .. } => Some(at..run_end),
                Place::Below => match &self.below {
                    None => None,
                    Some(below) => {
                        below.next_data_in(at, run_end)?.map(|it| it.offset..it.offset + it.length)
                    }
                },
                Place::Data(host) => {
                    let data = self.data();
                    if host.saturating_add(run_end - at) > data.size() {
                        return Err(ImageError::damaged(
                            data.path(),
                            "it ends before data that it should hold",
                        ));
                    }
                    // A file may have holes where clusters are: preallocation makes them.
                    data.next_data(host)?
                        .map(|it| at + (it.offset - host)..(at + (it.offset - host) + it.length))
                }
            };
            if let Some(found) = found.filter(|found| found.start < run_end) {
                return Ok(Some(Extent {
                    offset: found.start,
                    length: found.end.min(run_end) - found.start,
                }));
            }
            at = run_end;
        }
        Ok(None)
    }

    fn read_compressed(&self, at: u64, place: (u64, u64), buffer: &mut [u8]) -> Result<(), ImageError> {
        let (offset, length) = place;
        // The last sector of a file may be cut short.
        let length = length.min(self.file.size().saturating_sub(offset));
        let mut stored = vec![0; usize::try_from(length).unwrap_or(0)];
        self.file.read_at(&mut stored, offset)?;
        let undecodable = |source| ImageError::Read { path: self.file.path().to_owned(), offset, source };
        let whole = usize::try_from(self.cluster_size).unwrap_or(usize::MAX);
        let within = usize::try_from(at % self.cluster_size).unwrap_or(usize::MAX);
        if buffer.len() == whole {
            return compressed::decompress(self.compression, &stored, buffer).map_err(undecodable);
        }
        let mut cluster = vec![0; whole];
        compressed::decompress(self.compression, &stored, &mut cluster).map_err(undecodable)?;
        if let Some(part) = cluster.get(within..within.saturating_add(buffer.len())) {
            buffer.copy_from_slice(part);
        }
        Ok(())
    }
}

impl Image for Qcow2Image {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn size(&self) -> u64 {
        self.tables.size()
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        self.next_data_in(from, self.size())
    }

    fn read_at(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<(), ImageError> {
        while !buffer.is_empty() {
            let missing = buffer.len() as u64;
            if offset >= self.size() {
                return Err(ImageError::ShortRead { path: self.path().to_owned(), offset, missing });
            }
            let Run { place, length } = self.tables.run(&self.file, offset)?;
            let (part, rest) = buffer.split_at_mut(usize::try_from(length.min(missing)).unwrap_or(0));
            match place {
                Place::Zero => part.fill(0),
                Place::Data(host) => self.data().read_at(part, host)?,
                Place::Compressed { offset: at, length } => {
                    self.read_compressed(offset, (at, length), part)?;
                }
                Place::Below => match &self.below {
                    Some(below) => below.read_at(part, offset)?,
                    None => part.fill(0),
                },
            }
            offset += part.len() as u64;
            buffer = rest;
        }
        Ok(())
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        self.file.verify_unchanged()?;
        self.data.iter().try_for_each(Image::verify_unchanged)?;
        self.below.as_ref().map_or(Ok(()), |below| below.image().verify_unchanged())
    }

    fn allocated(&self) -> Option<u64> {
        let below = self.below.iter().map(Below::image);
        let all = [self.data() as &dyn Image].into_iter().chain(below);
        Some(all.filter_map(Image::allocated).sum::<u64>().min(self.size()))
    }

    fn change(&self) -> Result<Option<SourceChange>, ImageError> {
        if self.is_snapshot {
            return Ok(None);
        }
        let below = self.below.iter().map(Below::image);
        let all =
            [&self.file as &dyn Image].into_iter().chain(self.data.iter().map(|data| data as &dyn Image));
        for file in all.chain(below) {
            if let Some(change) = file.change()? {
                return Ok(Some(change));
            }
        }
        Ok(None)
    }
}

impl Below {
    /// Opens the file that an image names as the one below it.
    fn open(above: &RawImage, backing: &Backing, reading: Reading, limit: usize) -> Result<Self, ImageError> {
        let file = RawImage::open_for(&beside(above, &backing.name)?, reading)?;
        let qcow2 = |file, trust| {
            Qcow2Image::open_in_chain(file, reading, trust, None, limit)
                .map(|image| Self::Qcow2(Box::new(image)))
        };
        match backing.format.as_deref() {
            Some("raw") => Ok(Self::Raw(file)),
            Some("qcow2") => qcow2(file, Trust::Said),
            Some(other) => {
                Err(ImageError::unsupported(above.path(), &format!("a backing file of the format {other:?}")))
            }
            // QEMU guesses as well, and warns: the base of a chain is a disk that a guest has written.
            None if super::probe(&file)? == super::Format::Qcow2 => qcow2(file, Trust::Guessed),
            None => Ok(Self::Raw(file)),
        }
    }

    fn image(&self) -> &dyn Image {
        match self {
            Self::Raw(image) => image,
            Self::Qcow2(image) => image.as_ref(),
        }
    }

    fn next_data_in(&self, from: u64, end: u64) -> Result<Option<Extent>, ImageError> {
        let end = end.min(self.image().size());
        if from >= end {
            return Ok(None);
        }
        let found = match self {
            Self::Raw(image) => image.next_data(from)?,
            Self::Qcow2(image) => image.next_data_in(from, end)?,
        };
        Ok(found.filter(|extent| extent.offset < end))
    }

    /// Fills `buffer`; what lies behind its end reads as zeros.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let there = self.image().size().saturating_sub(offset).min(buffer.len() as u64);
        let (part, behind) = buffer.split_at_mut(usize::try_from(there).unwrap_or(0));
        behind.fill(0);
        self.image().read_at(part, offset)
    }
}

/// Returns the path of a file that an image names: beside the image, unless the name says otherwise.
fn beside(image: &RawImage, name: &str) -> Result<PathBuf, ImageError> {
    let plain = name.strip_prefix("file:").unwrap_or(name);
    // What QEMU takes for the name of a protocol, not of a file: letters, then a colon before any slash.
    let protocol = plain.split_once(':').is_some_and(|(before, _)| !before.contains('/'));
    if protocol {
        let what = format!("a file that is named as {name:?}, which is no path");
        return Err(ImageError::unsupported(image.path(), &what));
    }
    let folder = image.path().parent().unwrap_or(Path::new(""));
    Ok(folder.join(plain))
}
