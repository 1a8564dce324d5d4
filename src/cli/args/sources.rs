//! The arguments that say what is backed up, and how it is read.

use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{cores, percent, rate};
use crate::cli::error::CliError;
use crate::codec::CompressionSetting;
use crate::error::ErrorKind;
use crate::image::{Format, ImageOptions, Reading};
use crate::manifest::{ImageName, Tag, Tags, TooManyTags};
use crate::repository::BackupSelector;

#[derive(Args, Debug)]
pub(in crate::cli) struct BackupArgs {
    /// What to back up, and under which name; without a name, the source's file name is used
    #[arg(required = true, value_name = "[NAME=]SOURCE")]
    pub(in crate::cli) sources: Vec<OsString>,
    /// How new segments are compressed: none, zlib[:1-9], lzma[:0-9], zstd[:-7-19] [default: the repository's]
    #[arg(long, value_name = "NAME[:LEVEL]")]
    pub(in crate::cli) compression: Option<CompressionSetting>,
    /// A word that these backups are found by; may be given up to 16 times
    #[arg(long = "tag", value_name = "TAG")]
    pub(in crate::cli) tags: Vec<Tag>,
    /// How many threads read, hash and compress, for all sources together [default: one a core, and two for each source that is read at once]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// How many sources are backed up at once; they share the threads evenly
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=64), default_value = "2")]
    pub(in crate::cli) at_once: u16,
    /// Read at most so many bytes a second from all sources together, e.g. 100MiB
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    pub(in crate::cli) limit_rate: Option<NonZeroU64>,
    /// Read past the page cache (`O_DIRECT`), so that what others have in it stays there
    #[arg(long)]
    pub(in crate::cli) direct: bool,
    /// Read around unreadable sectors: they become zeros in the backup, "ekko show" lists them, and the exit code is 3
    #[arg(long)]
    pub(in crate::cli) skip_bad_sectors: bool,
    /// Print progress and results to stderr as lines of JSON, for programs
    #[arg(long)]
    pub(in crate::cli) json_progress: bool,
    #[command(flatten)]
    pub(in crate::cli) machine: MachineArgs,
    #[command(flatten)]
    pub(in crate::cli) image: ImageArgs,
    #[command(flatten)]
    pub(in crate::cli) cbt: CbtArgs,
}

/// Several disks at one moment, and what is done so that they stand still.
#[derive(Args, Debug)]
pub(in crate::cli) struct MachineArgs {
    /// The sources are the disks of this machine, named NAME/DISK: they are backed up at one moment, which is the backup
    /// NAME@N, and committed together or not at all
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) machine: Option<ImageName>,
    /// A small file that belongs to the machine, read once --before has ended; may be given several times, at most 64 MiB in all
    #[arg(long, value_name = "FILE", requires = "machine")]
    pub(in crate::cli) attach: Vec<PathBuf>,
    /// Run this by the shell before any source is opened; if it fails, nothing is backed up. `EKKO_MACHINE` is the machine's
    /// name
    #[arg(long, value_name = "COMMAND")]
    pub(in crate::cli) before: Option<String>,
    /// Run this by the shell once the sources are read and closed, whatever happened, also after a signal (INT, TERM, HUP). A
    /// second INT or TERM, one second or more after the first, ends Ekko at once. `EKKO_RESULT` is "done" or "failed", `EKKO_MACHINE` the machine's name
    #[arg(long, value_name = "COMMAND")]
    pub(in crate::cli) after: Option<String>,
}

/// How sources are opened.
#[derive(Args, Debug)]
pub(in crate::cli) struct ImageArgs {
    /// The format of the sources: raw or qcow2 [default: by how each begins]; vmdk, vhdx, vpc, vdi, qed or parallels, which
    /// are read through qemu-nbd and only if they are said. A guest can write the beginning of a qcow2 image into its raw disk,
    /// to have another file of this machine read as its backing file; so a backing or data file is only followed where
    /// qcow2 was said
    #[arg(long, value_name = "FORMAT")]
    pub(in crate::cli) format: Option<Format>,
    /// Read an internal snapshot of a qcow2 image, by its id or name
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) snapshot: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) tls: TlsArgs,
}

/// Encrypted links.
#[derive(Args, Debug)]
pub(in crate::cli) struct TlsArgs {
    /// The folder with ca-cert.pem and, if the server asks for them, client-cert.pem and client-key.pem, for nbds://
    #[arg(long, value_name = "FOLDER")]
    pub(in crate::cli) tls_certificates: Option<PathBuf>,
}

impl ImageArgs {
    pub(in crate::cli) fn options(&self, reading: Reading) -> ImageOptions {
        ImageOptions {
            format: self.format,
            reading,
            bitmap: None,
            certificates: self.tls.tls_certificates.clone(),
            snapshot: self.snapshot.clone(),
        }
    }
}

/// Changed block tracking.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("changes").args(["cbt", "bitmap"]).multiple(true))]
pub(in crate::cli) struct CbtArgs {
    /// Read only what this list says has changed, of one source: "rbd diff", "nbdinfo --map=qemu:dirty-bitmap:NAME --json",
    /// `thin_delta`, or Ekko's own "diff --json"; for a first backup "qemu-img map --output=json" or "nbdinfo --map --json"
    #[arg(long, value_name = "FILE", conflicts_with = "bitmap")]
    pub(in crate::cli) cbt: Option<PathBuf>,
    /// Read only what this dirty bitmap of an NBD server says has changed, of one source or of all disks of a machine
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) bitmap: Option<String>,
    /// Since which backup the changes are, e.g. web@3; it must be the newest of its backupset. A machine's moment stands for
    /// the backups of its disks
    #[arg(long, value_name = "BACKUP", requires = "changes")]
    pub(in crate::cli) cbt_base: Option<BackupSelector>,
    /// What the tracking is called, to be written down: the name of a bitmap or a snapshot [default: the name
    /// of the bitmap, or the list's BLAKE3]
    #[arg(long, value_name = "TEXT", requires = "changes")]
    pub(in crate::cli) cbt_id: Option<String>,
    /// Read the whole disk if the changes since the backup before are not known: no list or bitmap, or one of other changes;
    /// no such base, or one without the disk
    #[arg(long, requires = "changes")]
    pub(in crate::cli) cbt_fallback: bool,
    /// How many of a hundred segments are read to see whether the list is right about them, at least 10; in turns, so that
    /// with 1 each is read once in 100 backups
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "1", requires = "changes")]
    pub(in crate::cli) cbt_audit: f64,
}

impl BackupArgs {
    /// Returns how the sources are opened.
    pub(in crate::cli) fn image_options(&self) -> ImageOptions {
        let reading = if self.direct { Reading::Direct } else { Reading::Cached };
        ImageOptions { bitmap: self.cbt.bitmap.clone(), ..self.image.options(reading) }
    }

    /// Returns the tags of these backups.
    pub(in crate::cli) fn tags(&self) -> Result<Tags, CliError> {
        let invalid = |error: TooManyTags| CliError::new(ErrorKind::Invalid, error.to_string());
        Tags::new(self.tags.clone()).map_err(invalid)
    }

    /// Returns how many threads are to work: two of each source that is read wait for it while the others compute.
    pub(in crate::cli) fn jobs(&self) -> usize {
        let read = usize::from(self.at_once).min(self.sources.len()).max(1);
        self.jobs.map_or_else(|| cores() + 2 * read, usize::from)
    }
}
