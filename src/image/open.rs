//! Opening an image of any format.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::image::nbd::{NbdImage, is_nbd};
use crate::image::qcow2::{MAGIC, Qcow2Image, Trust};
use crate::image::served::{ServedImage, is_rbd};
use crate::image::{ChangeList, Image, ImageError, LookAlike, RawImage, Reading};

/// How the bytes of a file are a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// They are the disk's.
    Raw,
    /// QEMU's own format.
    Qcow2,
    /// That of `VMware`, also over several files.
    Vmdk,
    /// Hyper-V's newer one.
    Vhdx,
    /// Hyper-V's and Virtual PC's older one (VHD).
    Vpc,
    /// That of `VirtualBox`.
    Vdi,
    /// An early successor of qcow2.
    Qed,
    /// Parallels'.
    Parallels,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 8] =
        [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhdx, Self::Vpc, Self::Vdi, Self::Qed, Self::Parallels];

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Vdi => "vdi",
            Self::Qed => "qed",
            Self::Parallels => "parallels",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is no format: {names} are possible")
        })
    }
}

/// How a source is opened.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// Its format; without one it is recognised by its content. A guest can write the beginning of a qcow2 image into its
    /// raw disk, so an image that was only recognised may not refer to other files, by which the guest would read those.
    pub format: Option<Format>,
    /// How its bytes come from the disk.
    pub reading: Reading,
    /// The name of a dirty bitmap of an NBD server, of which the changes are asked for.
    pub bitmap: Option<String>,
    /// The folder with the certificates for encrypted links to NBD servers: `ca-cert.pem`, `client-cert.pem`,
    /// `client-key.pem`.
    pub certificates: Option<PathBuf>,
    /// The id or the name of an internal snapshot that is read instead of the disk as it is.
    pub snapshot: Option<String>,
}

/// An open image.
#[derive(Debug)]
pub struct OpenImage {
    /// The disk.
    pub image: Box<dyn Image>,
    /// Its format.
    pub format: Format,
    /// Whether that was recognised by its content.
    pub recognised: bool,
    /// What it looks like, if it is read as raw and nobody said that it is.
    pub looks_like: Option<LookAlike>,
    /// What changed, if a bitmap was asked for; or why that is not known. The disk can be read in full then.
    pub changes: Option<Result<ChangeList, ImageError>>,
    /// The ranges that an NBD server reads from the top image of the disk's chain, if a bitmap was asked for and the server
    /// tells (`qemu:allocation-depth`).
    pub overlaid: Vec<Range<u64>>,
}

impl OpenImage {
    fn of_remote(
        image: Box<dyn Image>,
        changes: Option<Result<ChangeList, ImageError>>,
        overlaid: Vec<Range<u64>>,
    ) -> Self {
        Self { image, format: Format::Raw, recognised: false, looks_like: None, changes, overlaid }
    }
}

/// Opens a file or a block device that is or holds a disk, an export of an NBD server, or an RBD image.
pub fn open_image(path: &Path, options: &ImageOptions) -> Result<OpenImage, ImageError> {
    if is_remote(path) {
        return open_remote(path, options);
    }
    let no_bitmap = options.bitmap.as_ref().map(|_| Err(ImageError::no_bitmaps(path)));
    let file = RawImage::open_for(path, options.reading)?;
    let (format, trust) = match options.format {
        Some(format) => (format, Trust::Said),
        None => (probe(&file)?, Trust::Guessed),
    };
    let looks_like = match (format, trust) {
        (Format::Raw, Trust::Guessed) => LookAlike::of(&file)?,
        _ => None,
    };
    let image: Box<dyn Image> = match format {
        Format::Qcow2 => {
            Box::new(Qcow2Image::open(file, options.reading, trust, options.snapshot.as_deref())?)
        }
        _ if options.snapshot.is_some() => {
            return Err(ImageError::unsupported(path, "an internal snapshot of what is no qcow2 image"));
        }
        Format::Raw => Box::new(file),
        Format::Vmdk | Format::Vhdx | Format::Vpc | Format::Vdi | Format::Qed | Format::Parallels => {
            drop(file);
            Box::new(ServedImage::open_file(path, format, options.reading)?)
        }
    };
    let (recognised, overlaid) = (options.format.is_none(), Vec::new());
    Ok(OpenImage { image, format, recognised, looks_like, changes: no_bitmap, overlaid })
}

/// Says whether a source is named by something else than a path: an NBD export, or an RBD image.
pub fn is_remote(path: &Path) -> bool {
    is_nbd(path) || is_rbd(path)
}

fn open_remote(path: &Path, options: &ImageOptions) -> Result<OpenImage, ImageError> {
    if options.format.is_some_and(|format| format != Format::Raw) || options.snapshot.is_some() {
        return Err(ImageError::unsupported(path, "an image of another format in what is a disk already"));
    }
    if is_rbd(path) {
        let changes = options.bitmap.as_ref().map(|_| Err(ImageError::no_bitmaps(path)));
        let image = Box::new(ServedImage::open_rbd(path, options.reading)?);
        return Ok(OpenImage::of_remote(image, changes, Vec::new()));
    }
    let image = NbdImage::open(path, options.bitmap.as_deref(), options.certificates.as_deref())?;
    let changes = options.bitmap.as_deref().map(|bitmap| image.changes(bitmap));
    let overlaid = if changes.is_some() { image.overlaid()? } else { Vec::new() };
    Ok(OpenImage::of_remote(Box::new(image), changes, overlaid))
}

/// Recognises the format of a file by how it begins.
pub(super) fn probe(file: &RawImage) -> Result<Format, ImageError> {
    let mut begin = [0; 8];
    if file.size() < begin.len() as u64 {
        return Ok(Format::Raw);
    }
    file.read_at(&mut begin, 0)?;
    let is_qcow2 = begin.starts_with(&MAGIC) && matches!(begin.last(), Some(2 | 3));
    Ok(if is_qcow2 { Format::Qcow2 } else { Format::Raw })
}
