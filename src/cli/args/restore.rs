//! The arguments of `ekko restore`.

use std::ffi::OsStr;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, ValueEnum};

use crate::cli::args::{Jobs, TlsArgs, bytes, rate};
use crate::manifest::ImageName;
use crate::repository::BackupSelector;

/// The format of a file that a disk is restored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum RestoreFormat {
    Raw,
    Qcow2,
}

/// A part of a machine, and where it is restored to.
#[derive(Clone, Debug)]
pub(in crate::cli) struct NamedTarget {
    pub(in crate::cli) name: String,
    pub(in crate::cli) target: PathBuf,
}

/// Reads NAME=TARGET. The target may be no text.
fn named_target() -> impl TypedValueParser<Value = NamedTarget> {
    OsStringValueParser::new().try_map(|text| {
        let bytes = text.as_bytes();
        let at = bytes.iter().position(|byte| *byte == b'=');
        let (name, target) = at.and_then(|at| bytes.split_at_checked(at)).unwrap_or_default();
        match (std::str::from_utf8(name), target.get(1..)) {
            (Ok(name), Some(target)) if !name.is_empty() && !target.is_empty() => {
                let target = PathBuf::from(OsStr::from_bytes(target));
                Ok(NamedTarget { name: name.to_owned(), target })
            }
            _ => Err("a target is named as in vda=/dev/vg/web-a"),
        }
    })
}

#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(in crate::cli) struct RestoreArgs {
    /// The backup: NAME, NAME@latest or NAME@NUMBER
    pub(in crate::cli) backup: BackupSelector,
    /// A file, a block device at least as large as the disk, or - for stdout
    #[arg(required_unless_present = "to")]
    pub(in crate::cli) target: Option<PathBuf>,
    /// Restore all of a machine at the moment that the backup is: a file for each disk, and what lay beside them, into the
    /// folder that the target names
    #[arg(long, conflicts_with_all = ["over", "in_place", "delta", "offset", "length"])]
    pub(in crate::cli) machine: bool,
    /// With --machine: restore this disk, or this attached file, to a target of its own; the others go into the folder
    #[arg(long, value_name = "NAME=TARGET", value_parser = named_target(), requires = "machine")]
    pub(in crate::cli) to: Vec<NamedTarget>,
    /// Overwrite a target that exists
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Overwrite a target although it is mounted, attached, or open for writing by another process
    #[arg(long, requires = "force")]
    pub(in crate::cli) target_in_use: bool,
    /// Restore although the target's filesystem may have too little room
    #[arg(long)]
    pub(in crate::cli) ignore_space: bool,
    /// Keep an incomplete file as TARGET.ekko-partial if the restore ends early. No later restore removes it
    #[arg(long)]
    pub(in crate::cli) keep_partial: bool,
    /// The format of the file to write; qcow2 needs QEMU's tools. Without it Ekko writes a raw disk, but not to a name that ends in
    /// .qcow2, .qcow, .vmdk, .vhd, .vhdx, .vdi or .qed [default: raw]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(in crate::cli) format: Option<RestoreFormat>,
    /// Say that the disk of this name is replaced by what is restored: its next backup begins a new backupset
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) over: Option<ImageName>,
    /// Write only what differs: the target is read and compared first
    #[arg(long, requires = "force", conflicts_with_all = ["offset", "length", "delta"])]
    pub(in crate::cli) in_place: bool,
    /// Write only what this list says has changed on the target since the backup; the lists of backup --cbt. The rest is
    /// not looked at
    #[arg(long, value_name = "LIST", requires = "force", conflicts_with_all = ["offset", "length"])]
    pub(in crate::cli) delta: Option<PathBuf>,
    /// Do not wait until the target is durable
    #[arg(long)]
    pub(in crate::cli) no_sync: bool,
    #[command(flatten)]
    pub(in crate::cli) tls: TlsArgs,
    /// Restore the disk from this byte on, to the beginning of a new file or of a device, e.g. 1MiB. A file that exists is refused,
    /// also with --force
    #[arg(long, value_name = "BYTES", value_parser = bytes, conflicts_with = "over")]
    pub(in crate::cli) offset: Option<u64>,
    /// Restore so many bytes, not all up to the disk's end, to the beginning of a new file or of a device
    #[arg(long, value_name = "BYTES", value_parser = bytes, conflicts_with = "over")]
    pub(in crate::cli) length: Option<u64>,
    /// Restore at most so many bytes a second, e.g. 100MiB
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    pub(in crate::cli) limit_rate: Option<NonZeroU64>,
    #[command(flatten)]
    pub(in crate::cli) jobs: Jobs,
}
