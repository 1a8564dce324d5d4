//! Files that look like a disk image of some format, and are read as raw.
//!
//! A format that other files may be named in is never recognised ([`Format`]), so such a file is read as it is unless somebody
//! says otherwise. That is rarely meant: the "disk" is the container then, or, of a VMDK in several files, a few hundred bytes
//! of text.
//!
//! Sources of the signatures: QEMU's `block/*.c`, the VMDK, VHDX and VHD specifications, and cryptsetup's LUKS formats.

use std::fmt;
use std::str::FromStr;

use crate::image::qcow2::MAGIC as QCOW;
use crate::image::{Format, Image, ImageError, RawImage};

/// How many bytes of the beginning are looked at: VDI's signature is at 64, and comments may stand before a VMDK's text.
const BEGIN: usize = 512;

/// What a VHD has at its end, and at its beginning unless its size is fixed.
const VHD: &[u8] = b"conectix";

/// What a file looks like that is read as raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookAlike {
    /// VMDK: an image, or the text that names the files of one.
    Vmdk,
    /// VHDX.
    Vhdx,
    /// VHD.
    Vpc,
    /// VDI.
    Vdi,
    /// QED.
    Qed,
    /// qcow of another version than 2 and 3.
    Qcow,
    /// Parallels.
    Parallels,
    /// LUKS.
    Luks,
}

impl LookAlike {
    /// All that are known.
    pub const ALL: [Self; 8] =
        [Self::Vmdk, Self::Vhdx, Self::Vpc, Self::Vdi, Self::Qed, Self::Qcow, Self::Parallels, Self::Luks];

    /// Returns its name, as documents and manifests have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Vdi => "vdi",
            Self::Qed => "qed",
            Self::Qcow => "qcow",
            Self::Parallels => "parallels",
            Self::Luks => "luks",
        }
    }

    /// Returns what a person calls it, with its article.
    pub const fn called(self) -> &'static str {
        match self {
            Self::Vmdk => "a VMDK image",
            Self::Vhdx => "a VHDX image",
            Self::Vpc => "a VHD image",
            Self::Vdi => "a VDI image",
            Self::Qed => "a QED image",
            Self::Qcow => "a qcow image of a version that Ekko does not read",
            Self::Parallels => "a Parallels image",
            Self::Luks => "a LUKS container",
        }
    }

    /// Returns the format to open it with; nothing if Ekko cannot read it as a disk.
    pub const fn format(self) -> Option<Format> {
        match self {
            Self::Vmdk => Some(Format::Vmdk),
            Self::Vhdx => Some(Format::Vhdx),
            Self::Vpc => Some(Format::Vpc),
            Self::Vdi => Some(Format::Vdi),
            Self::Qed => Some(Format::Qed),
            Self::Parallels => Some(Format::Parallels),
            Self::Qcow | Self::Luks => None,
        }
    }

    /// Returns what a file looks like, if it is read as raw.
    pub(super) fn of(file: &RawImage) -> Result<Option<Self>, ImageError> {
        let mut begin = vec![0; usize::try_from(file.size()).unwrap_or(BEGIN).min(BEGIN)];
        file.read_at(&mut begin, 0)?;
        if let Some(found) = by_begin(&begin) {
            return Ok(Some(found));
        }
        // Versions of Virtual PC before 2004 wrote 511 bytes.
        for length in [512, 511] {
            let Some(at) = file.size().checked_sub(length) else { continue };
            let mut end = [0; VHD.len()];
            file.read_at(&mut end, at)?;
            if end == *VHD {
                return Ok(Some(Self::Vpc));
            }
        }
        Ok(None)
    }
}

fn by_begin(begin: &[u8]) -> Option<LookAlike> {
    let signatures: [(usize, &[u8], LookAlike); 11] = [
        (0, b"KDMV", LookAlike::Vmdk),
        (0, b"COWD", LookAlike::Vmdk),
        (0, b"\xbe\xba\xfe\xca\0\0\0\0", LookAlike::Vmdk),
        (0, b"vhdxfile", LookAlike::Vhdx),
        (0, VHD, LookAlike::Vpc),
        (64, b"\x7f\x10\xda\xbe", LookAlike::Vdi),
        (0, b"QED\0", LookAlike::Qed),
        (0, &QCOW, LookAlike::Qcow),
        (0, b"WithoutFreeSpace", LookAlike::Parallels),
        (0, b"WithouFreSpacExt", LookAlike::Parallels),
        (0, b"LUKS\xba\xbe", LookAlike::Luks),
    ];
    let is_there =
        |at: usize, signature: &[u8]| begin.get(at..).is_some_and(|rest| rest.starts_with(signature));
    let found = signatures.iter().find(|(at, signature, _)| is_there(*at, signature));
    found.map(|(_, _, what)| *what).or_else(|| is_descriptor(begin).then_some(LookAlike::Vmdk))
}

/// Says whether this is the text that describes a VMDK of several files. Blank lines may stand before it.
fn is_descriptor(begin: &[u8]) -> bool {
    const FIRST_LINE: &[u8] = b"# Disk DescriptorFile";
    let text = begin.trim_ascii_start();
    text.get(..FIRST_LINE.len()).is_some_and(|line| line.eq_ignore_ascii_case(FIRST_LINE))
}

impl fmt::Display for LookAlike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LookAlike {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|it| it.name() == text);
        found.ok_or_else(|| format!("{text:?} is no format that a raw source can look like"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        for it in LookAlike::ALL {
            assert_eq!(it.name().parse(), Ok(it));
            assert!(it.format().is_none_or(|format| format.name() == it.name()));
        }
        "raw".parse::<LookAlike>().unwrap_err();
    }

    #[test]
    fn each_signature_is_recognised_where_it_belongs_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            LookAlike::of(&RawImage::open(&path).unwrap()).unwrap()
        };
        let padded = |at: usize, signature: &[u8]| {
            let mut bytes = vec![1; 4096];
            bytes[at..at + signature.len()].copy_from_slice(signature);
            bytes
        };
        for (at, signature, what) in [
            (0, &b"KDMV"[..], LookAlike::Vmdk),
            (0, b"COWD", LookAlike::Vmdk),
            (0, b"\xbe\xba\xfe\xca\0\0\0\0", LookAlike::Vmdk),
            (0, b"# Disk DescriptorFile\nversion=1\n", LookAlike::Vmdk),
            (0, b"\r\n# disk descriptorfile\n", LookAlike::Vmdk),
            (0, b"vhdxfile", LookAlike::Vhdx),
            (0, b"conectix", LookAlike::Vpc),
            (4096 - 512, b"conectix", LookAlike::Vpc),
            (4096 - 511, b"conectix", LookAlike::Vpc),
            (64, b"\x7f\x10\xda\xbe", LookAlike::Vdi),
            (0, b"QED\0", LookAlike::Qed),
            (0, b"QFI\xfb\0\0\0\x01", LookAlike::Qcow),
            (0, b"WithoutFreeSpace", LookAlike::Parallels),
            (0, b"WithouFreSpacExt", LookAlike::Parallels),
            (0, b"LUKS\xba\xbe", LookAlike::Luks),
        ] {
            assert_eq!(of(&padded(at, signature)), Some(what), "{what} at {at}");
            assert_eq!(of(&padded(at + 8, signature)), None, "{what} beside {at}");
        }
        // Shorter than any header: as a flat VMDK's text may be, and empty.
        assert_eq!(of(b"# Disk DescriptorFile"), Some(LookAlike::Vmdk));
        assert_eq!(of(b"KDM"), None);
        assert_eq!(of(b""), None);
    }
}
