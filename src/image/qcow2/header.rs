//! The header of a qcow2 image, and its table of internal snapshots.
//!
//! Source of the format: `docs/interop/qcow2.rst` of QEMU. All numbers are big-endian.

use crate::image::{ImageError, RawImage};

/// The first four bytes of every qcow2 image.
pub(in crate::image) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The most bytes of a table of the first level (QEMU's limit).
const L1_LIMIT: u64 = 32 << 20;
/// The most internal snapshots (QEMU's limit).
const SNAPSHOTS_LIMIT: u32 = 65_536;
/// How many of them an error names.
const NAMES_SAID: usize = 32;
/// The most bytes of a backing file's name, by the format.
const NAME_LIMIT: u32 = 1023;

/// Incompatible features: who does not know one cannot read the image.
mod feature {
    /// Reference counts may be wrong; the tables that are read here are not.
    pub(super) const DIRTY: u64 = 1;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const DATA_FILE: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED: u64 = 1 << 4;
    pub(super) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED;
}

/// How compressed clusters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClusterCompression {
    /// A raw deflate stream, RFC 1951.
    Deflate,
    /// One Zstandard frame, RFC 8878.
    Zstd,
}

/// A disk in the image: the active one, or an internal snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// Its size in bytes.
    pub(super) size: u64,
    /// Where its table of the first level lies.
    pub(super) l1_offset: u64,
    /// How many entries that has.
    pub(super) l1_entries: u32,
}

/// What lies below an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    /// Its file's name as the image says it.
    pub(super) name: String,
    /// Its format, if the image says one.
    pub(super) format: Option<String>,
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) disk: Disk,
    /// Whether entries of the second level have 16 bytes and speak of 32 parts of a cluster.
    pub(super) extended: bool,
    pub(super) compression: ClusterCompression,
    pub(super) backing: Option<Backing>,
    /// Whether the guest's bytes are in another file.
    pub(super) has_data_file: bool,
    /// That file's name, if the image says one.
    pub(super) data_file: Option<String>,
    snapshots: u32,
    snapshots_offset: u64,
}

/// Numbers at places of a text of bytes.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn bytes(&self, at: usize, length: usize) -> Option<&[u8]> {
        self.0.get(at..at.checked_add(length)?)
    }

    pub(super) fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(at, 2)?.try_into().ok()?))
    }

    pub(super) fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(at, 4)?.try_into().ok()?))
    }

    pub(super) fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes(at, 8)?.try_into().ok()?))
    }

    fn text(&self, at: u64, length: u32) -> Option<String> {
        let bytes = self.bytes(usize::try_from(at).ok()?, usize::try_from(length).ok()?)?;
        String::from_utf8(bytes.to_vec()).ok()
    }
}

impl Header {
    /// Reads and checks the header of an image.
    pub(super) fn read(file: &RawImage) -> Result<Self, ImageError> {
        use crate::image::Image;
        let damaged = |what: &str| ImageError::damaged(file.path(), what);
        // Everything that is looked for lies in the first cluster, whose size is said in its first bytes.
        let mut first = vec![0; usize::try_from(file.size().min(104)).unwrap_or(0)];
        file.read_at(&mut first, 0)?;
        let bits = Fields(&first).u32(20).ok_or_else(|| damaged("its header is cut off"))?;
        if !(9..=21).contains(&bits) {
            return Err(damaged(&format!("its clusters have 2^{bits} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(file.size().min(1 << bits)).unwrap_or(0)];
        file.read_at(&mut bytes, 0)?;
        Self::decode(&bytes).map_err(|problem| match problem {
            Problem::Damaged(what) => damaged(what),
            Problem::Unsupported(what) => ImageError::unsupported(file.path(), &what),
        })
    }

    fn decode(bytes: &[u8]) -> Result<Self, Problem> {
        let fields = Fields(bytes);
        let cut = || Problem::Damaged("its header is cut off");
        let (u32_at, u64_at) = (|at| fields.u32(at).ok_or_else(cut), |at| fields.u64(at).ok_or_else(cut));
        if fields.bytes(0, 4) != Some(MAGIC.as_slice()) {
            return Err(Problem::Damaged("it is no qcow2 image"));
        }
        let version = u32_at(4)?;
        let features = match version {
            2 => 0,
            3 => u64_at(72)?,
            _ => return Err(Problem::Unsupported(format!("qcow2 of version {version}"))),
        };
        let header_length = if version == 2 { 72 } else { u32_at(100)? };
        if features & feature::CORRUPT != 0 {
            return Err(Problem::Damaged("it is marked as corrupt; see \"qemu-img check\""));
        }
        let unknown = features & !feature::KNOWN;
        if unknown != 0 {
            return Err(Problem::Unsupported(format!("qcow2 with the incompatible features {unknown:#x}")));
        }
        if u32_at(32)? != 0 {
            return Err(Problem::Unsupported("encrypted qcow2".to_owned()));
        }
        let cluster_bits = u32_at(20)?;
        let extended = features & feature::EXTENDED != 0;
        if extended && cluster_bits < 14 {
            return Err(Problem::Damaged(
                "its clusters are too small for the parts that it divides them into",
            ));
        }
        let compression = match features & feature::COMPRESSION {
            0 => 0,
            _ => *fields.bytes(104, 1).and_then(<[u8]>::first).ok_or_else(cut)?,
        };
        let compression = match compression {
            0 => ClusterCompression::Deflate,
            1 => ClusterCompression::Zstd,
            id => return Err(Problem::Unsupported(format!("qcow2 with the compression {id}"))),
        };
        let disk = Disk { size: u64_at(24)?, l1_entries: u32_at(36)?, l1_offset: u64_at(40)? };
        let backing_name = match (u64_at(8)?, u32_at(16)?) {
            (0, _) => None,
            (_, length) if length > NAME_LIMIT => {
                return Err(Problem::Damaged("the name of its backing file is too long"));
            }
            (at, length) => {
                let name = fields.text(at, length);
                Some(name.ok_or(Problem::Damaged("the name of its backing file cannot be read"))?)
            }
        };
        let (backing_format, data_file) = extensions(&fields, header_length)?;
        let backing = backing_name.map(|name| Backing { name, format: backing_format });
        Ok(Self {
            version,
            cluster_bits,
            disk,
            extended,
            compression,
            backing,
            has_data_file: features & feature::DATA_FILE != 0,
            data_file,
            snapshots: u32_at(60)?,
            snapshots_offset: u64_at(64)?,
        })
    }

    /// Returns the bytes of a cluster.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Returns the bytes of an entry of the second level.
    pub(super) fn entry_size(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Returns how many bytes of a disk one table of the second level speaks of.
    pub(super) fn l2_span(&self) -> u64 {
        self.cluster_size() / self.entry_size() * self.cluster_size()
    }

    /// Finds the internal snapshot of this id or name and returns its disk. QEMU takes the one with the id if another has the
    /// name; that is rarely meant, so it is refused.
    pub(super) fn snapshot(&self, file: &RawImage, wanted: &str) -> Result<Disk, ImageError> {
        use crate::image::Image;
        let damaged = |what: &str| ImageError::damaged(file.path(), what);
        if self.snapshots > SNAPSHOTS_LIMIT {
            return Err(damaged("it has impossibly many internal snapshots"));
        }
        let (mut at, mut found, mut known) = (self.snapshots_offset, None, Vec::new());
        let mut also = Vec::new();
        for _ in 0..self.snapshots {
            let mut fixed = [0; 40];
            file.read_at(&mut fixed, at)?;
            let cut = || damaged("its table of internal snapshots is cut off");
            let fields = Fields(&fixed);
            let (l1_offset, l1_entries) = (fields.u64(0).ok_or_else(cut)?, fields.u32(8).ok_or_else(cut)?);
            let (id_length, name_length) = (fields.u16(12).ok_or_else(cut)?, fields.u16(14).ok_or_else(cut)?);
            let extra_length = fields.u32(36).ok_or_else(cut)?;
            if extra_length > 1024 {
                return Err(damaged("an internal snapshot has too much extra data"));
            }
            let [extra, id, name] = [extra_length, id_length.into(), name_length.into()].map(u64::from);
            let mut rest = vec![0; usize::try_from(extra + id + name).unwrap_or(0)];
            file.read_at(&mut rest, at.saturating_add(40))?;
            let rest = Fields(&rest);
            let text = |at: u64, length: u16| rest.text(at, length.into()).unwrap_or_default();
            let (id_text, name_text) = (text(extra, id_length), text(extra + id, name_length));
            let size = if extra_length >= 16 { rest.u64(8).ok_or_else(cut)? } else { self.disk.size };
            let disk = Disk { size, l1_offset, l1_entries };
            let cut = |text: &str| text.chars().take(100).collect::<String>();
            if id_text == wanted || name_text == wanted {
                found = Some(disk);
                if also.len() < NAMES_SAID {
                    also.push(format!("{:?} (id {})", cut(&name_text), cut(&id_text)));
                }
            }
            if known.len() < NAMES_SAID {
                known.push(format!("{} ({})", cut(&name_text), cut(&id_text)));
            }
            at = at.saturating_add((40 + extra + id + name).next_multiple_of(8));
        }
        if also.len() > 1 {
            let (path, wanted) = (file.path().to_owned(), wanted.to_owned());
            return Err(ImageError::AmbiguousSnapshot { path, wanted, found: also });
        }
        found.ok_or_else(|| ImageError::NoSnapshot {
            path: file.path().to_owned(),
            wanted: wanted.to_owned(),
            known: if known.is_empty() { "none".to_owned() } else { known.join(", ") },
        })
    }

    /// Checks that the table of the first level is as large as the disk needs it to be, and no larger than may be read.
    pub(super) fn check_disk(&self, disk: Disk) -> Result<(), &'static str> {
        if u64::from(disk.l1_entries) * 8 > L1_LIMIT {
            Err("its table of the first level is impossibly large")
        } else if u64::from(disk.l1_entries) < disk.size.div_ceil(self.l2_span()) {
            Err("its table of the first level is too small for its size")
        } else if !disk.l1_offset.is_multiple_of(self.cluster_size()) {
            Err("its table of the first level begins inside a cluster")
        } else {
            Ok(())
        }
    }
}

/// Why a header cannot be used.
#[derive(Debug)]
enum Problem {
    Damaged(&'static str),
    Unsupported(String),
}

/// Reads the extensions that are of use: the format of the backing file and the name of the data file.
fn extensions(fields: &Fields<'_>, header_length: u32) -> Result<(Option<String>, Option<String>), Problem> {
    let cut = || Problem::Damaged("its header extensions are cut off");
    let (mut format, mut data_file) = (None, None);
    let mut at = u64::from(header_length);
    loop {
        let place = usize::try_from(at).map_err(|_| cut())?;
        // A header that fills its cluster needs no end.
        let Some(kind) = fields.u32(place) else { break };
        let length = fields.u32(place.saturating_add(4)).ok_or_else(cut)?;
        match kind {
            0 => break,
            0xe279_2aca => format = Some(fields.text(at + 8, length).ok_or_else(cut)?),
            0x4441_5441 => data_file = Some(fields.text(at + 8, length).ok_or_else(cut)?),
            _ => {}
        }
        at += 8 + u64::from(length).next_multiple_of(8);
    }
    Ok((format, data_file))
}
