//! The arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::codec::CompressionSetting;
use crate::manifest::ImageName;
use crate::repository::BackupSelector;
use crate::segment::SegmentSize;

/// Block-based backups of virtual machines in one deduplicating store.
#[derive(Debug, Parser)]
#[command(name = "ekko", version, about, propagate_version = true)]
#[command(after_help = "Example:\n  ekko -r /backup/store backup web=/dev/vg/web db=/srv/vm/db.raw\n  \
                        ekko -r /backup/store restore web@latest /srv/vm/web.raw")]
pub struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Arguments of every command.
#[derive(Args, Debug)]
pub(super) struct Global {
    /// The repository's folder
    #[arg(short, long, global = true, value_name = "PATH", env = "EKKO_REPOSITORY")]
    pub(super) repository: Option<PathBuf>,
    /// Print one JSON document (on stderr where stdout carries data)
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Print no progress and no notices
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// Log more to stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
    /// Wait so long for a repository that another process uses, e.g. 30s or 5m
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub(super) wait: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| "a duration is e.g. 30s, 5m or 1h30m".to_owned())?;
    span.try_into().map_err(|_| "a duration is not negative".to_owned())
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a repository
    #[command(after_help = "Example:\n  ekko -r /backup/store init --segment-size 1MiB")]
    Init(InitArgs),
    /// Back up disks: files or block devices
    #[command(
        after_help = "The repository is made if its folder does not exist. The second backup of a name is \
                            incremental 1 of the same backupset; only segments that no backup holds are stored.\n\n\
                            Example:\n  ekko -r /backup/store backup web=/dev/vg/web db=/srv/vm/db.raw"
    )]
    Backup(BackupArgs),
    /// Restore a backup to a file, a block device or stdout
    #[command(
        after_help = "A target that exists is only overwritten with --force. A damaged segment does not stop \
                            the restore: it is named, its range is left zero, and the exit code is 3.\n\n\
                            Example:\n  ekko -r /backup/store restore web@3 /srv/vm/web.raw\n  \
                            ekko -r /backup/store restore web - | zstd > web.raw.zst"
    )]
    Restore(RestoreArgs),
    /// List backups
    #[command(after_help = "Example:\n  ekko -r /backup/store list web")]
    List(ListArgs),
    /// Show what is known of one backup
    #[command(after_help = "Example:\n  ekko -r /backup/store show web@latest")]
    Show(ShowArgs),
    /// List the ranges of a disk that differ between two backups
    #[command(
        after_help = "--json prints what \"rbd diff --format json\" prints. Ranges are whole segments of the newer \
                            disk; \"zero\", or exists \"false\", is a range that is zero now.\n\n\
                            Example:\n  ekko -r /backup/store diff web@3 web@4\n  ekko --json diff ./old.ekko ./new.ekko"
    )]
    Diff(DiffArgs),
    /// Show what the repository holds and takes
    #[command(after_help = "Example:\n  ekko -r /backup/store stats --json")]
    Stats,
    /// Make the index anew from packs and manifests
    #[command(after_help = "This is done by itself whenever the index is missing, damaged or old.\n\n\
                            Example:\n  ekko -r /backup/store rebuild")]
    Rebuild,
    /// Look into manifests
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  ekko completions bash > /etc/bash_completion.d/ekko")]
    Completions(CompletionsArgs),
    /// Write the manual pages
    #[command(after_help = "Example:\n  ekko man /usr/local/share/man/man1")]
    Man(ManArgs),
}

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    /// The size of a segment, a power of two from 64KiB to 64MiB; it cannot be changed later
    #[arg(long, value_name = "SIZE", value_parser = segment_size, default_value = "4MiB")]
    pub(super) segment_size: SegmentSize,
    /// The compression of backups that do not say otherwise: none, zlib[:1-9], lzma[:0-9], zstd[:-7-19]
    #[arg(long, value_name = "NAME[:LEVEL]", default_value_t)]
    pub(super) compression: CompressionSetting,
}

fn segment_size(text: &str) -> Result<SegmentSize, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "m" | "MiB" => 1 << 20,
        unit => return Err(format!("\"{unit}\" is no unit: KiB and MiB are possible")),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    SegmentSize::new(bytes.ok_or("a size is e.g. 4MiB")?).map_err(|error| error.to_string())
}

#[derive(Args, Debug)]
pub(super) struct BackupArgs {
    /// What to back up, and under which name; without a name, the source's file name is used
    #[arg(required = true, value_name = "[NAME=]SOURCE")]
    pub(super) sources: Vec<String>,
    /// How new segments are compressed: none, zlib[:1-9], lzma[:0-9], zstd[:-7-19] [default: the repository's]
    #[arg(long, value_name = "NAME[:LEVEL]")]
    pub(super) compression: Option<CompressionSetting>,
    #[command(flatten)]
    pub(super) jobs: Jobs,
}

#[derive(Args, Debug)]
pub(super) struct Jobs {
    /// How many threads hash, compress and verify [default: one a core]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
}

impl Jobs {
    pub(super) fn number(&self) -> usize {
        self.jobs.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }
}

#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    /// The backup: NAME, NAME@latest or NAME@NUMBER
    pub(super) backup: BackupSelector,
    /// A file, a block device at least as large as the disk, or - for stdout
    pub(super) target: PathBuf,
    /// Overwrite a target that exists
    #[arg(long)]
    pub(super) force: bool,
    /// Say that the disk of this name is replaced by what is restored: its next backup begins a new backupset
    #[arg(long, value_name = "NAME")]
    pub(super) over: Option<ImageName>,
    /// Do not wait until the target is durable
    #[arg(long)]
    pub(super) no_sync: bool,
    #[command(flatten)]
    pub(super) jobs: Jobs,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// Only backups of this name
    pub(super) name: Option<ImageName>,
}

#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    /// The backup: NAME, NAME@latest or NAME@NUMBER
    pub(super) backup: BackupSelector,
}

#[derive(Args, Debug)]
pub(super) struct DiffArgs {
    /// The older backup, or the path of a manifest file
    #[arg(value_name = "BACKUP|FILE")]
    pub(super) older: String,
    /// The newer backup, or the path of a manifest file
    #[arg(value_name = "BACKUP|FILE")]
    pub(super) newer: String,
}

/// Commands on manifests.
#[derive(Debug, Subcommand)]
pub(super) enum ManifestCommand {
    /// Print the SHA-1 of each present segment, in order
    #[command(after_help = "Example:\n  ekko -r /backup/store manifest dump web | sha1sum")]
    Dump(ManifestArgs),
    /// Show what a manifest says about the whole
    #[command(after_help = "Example:\n  ekko manifest info ./manifests/7c1e.../0")]
    Info(ManifestArgs),
    /// Write a backup's manifest as the original Ekko has it
    #[command(
        after_help = "With --segments, the backup's segments are written as well, as the original's flat files \
                            (DIR/UUID/INCREMENTAL/SEGMENT, zlib), as its local storage has them. Of a FILE only \
                            the manifest can be exported: compression and encryption are then 255, unknown.\n\n\
                            Example:\n  ekko -r /backup/store manifest export web@3 web.sqlite --segments /srv/flat"
    )]
    Export(ExportArgs),
    /// Import a backup of the original Ekko, or a manifest of another repository
    #[command(
        after_help = "FILE is recognized by its content: SQLite, OSDK or Ekko's own. The backup keeps its backupset, \
                            number and time; backups of one chain are imported in their order. Each segment file is \
                            compared with its SHA-1. Without --segments all segments must be stored already.\n\n\
                            Example:\n  ekko -r /backup/store manifest import old.sqlite --segments /srv/flat --name web"
    )]
    Import(ImportArgs),
    /// Make a manifest with random hashes, for benchmarks
    #[command(after_help = "Example:\n  ekko manifest generate --backupsize 65536 64-tib.ekko")]
    Generate(GenerateArgs),
}

#[derive(Args, Debug)]
pub(super) struct ManifestArgs {
    /// A backup, or the path of a manifest file
    #[arg(value_name = "BACKUP|FILE")]
    pub(super) source: String,
}

#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    /// A backup, or the path of a manifest file
    #[arg(value_name = "BACKUP|FILE")]
    pub(super) source: String,
    /// The file to make
    #[arg(value_name = "OUT")]
    pub(super) out: PathBuf,
    /// The format of the file
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Write the segments to this folder, as flat files
    #[arg(long, value_name = "DIR")]
    pub(super) segments: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) jobs: Jobs,
}

/// The formats that a manifest can be exported to.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// The original's SQLite
    #[default]
    Sqlite,
    /// The original's OSDK, version 0
    Osdk,
}

#[derive(Args, Debug)]
pub(super) struct ImportArgs {
    /// The manifest file
    pub(super) file: PathBuf,
    /// The name of the image [default with --output: the file's name]
    #[arg(long, required_unless_present = "output")]
    pub(super) name: Option<ImageName>,
    /// The folder that holds the segments as flat files
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    pub(super) segments: Option<PathBuf>,
    /// How new segments are compressed: none, zlib[:1-9], lzma[:0-9], zstd[:-7-19] [default: the repository's]
    #[arg(long, value_name = "NAME[:LEVEL]", conflicts_with = "output")]
    pub(super) compression: Option<CompressionSetting>,
    /// Make a manifest file of it, and touch no repository
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Replace an output that exists
    #[arg(long, requires = "output")]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) jobs: Jobs,
}

#[derive(Args, Debug)]
pub(super) struct GenerateArgs {
    /// The size of the disk in GiB: 65536 is 2^24 segments of 4 MiB
    #[arg(long, value_name = "GIB")]
    pub(super) backupsize: u64,
    /// The file to make
    pub(super) file: PathBuf,
    /// Replace a file that exists
    #[arg(long)]
    pub(super) force: bool,
    /// The size of a segment, a power of two from 64KiB to 64MiB
    #[arg(long, value_name = "SIZE", value_parser = segment_size, default_value = "4MiB")]
    pub(super) segment_size: SegmentSize,
    /// What the random hashes follow from [default: a random number]
    #[arg(long, value_name = "NUMBER")]
    pub(super) seed: Option<u64>,
    /// How many of a hundred segments begin a run
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100), default_value_t = 0)]
    pub(super) fragmented: u8,
}

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// The shell
    pub(super) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// The folder to write a page for each command to; without it, the main page goes to stdout
    pub(super) folder: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [("64KiB", 64 << 10), ("4MiB", 4 << 20), ("64M", 64 << 20), ("65536", 64 << 10)]
        {
            assert_eq!(segment_size(text).unwrap().bytes(), bytes);
        }
        for text in ["", "MiB", "3MiB", "4GiB", "128MiB", "99999999999999999999", "18446744073709551615MiB"] {
            assert!(segment_size(text).is_err(), "{text}");
        }
    }
}
