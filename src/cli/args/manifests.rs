//! Arguments of the commands on manifests.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::args::{Jobs, segment_size};
use crate::codec::CompressionSetting;
use crate::manifest::ImageName;
use crate::segment::SegmentSize;

#[derive(Args, Debug)]
pub(in crate::cli) struct DiffArgs {
    /// The older backup, or the path of a manifest file
    #[arg(value_name = "BACKUP|FILE")]
    pub(in crate::cli) older: String,
    /// The newer backup, or the path of a manifest file
    #[arg(value_name = "BACKUP|FILE")]
    pub(in crate::cli) newer: String,
}

/// Commands on manifests.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ManifestCommand {
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
pub(in crate::cli) struct ManifestArgs {
    /// A backup, or the path of a manifest file
    #[arg(value_name = "BACKUP|FILE")]
    pub(in crate::cli) source: String,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ExportArgs {
    /// A backup, or the path of a manifest file
    #[arg(value_name = "BACKUP|FILE")]
    pub(in crate::cli) source: String,
    /// The file to make
    #[arg(value_name = "OUT")]
    pub(in crate::cli) out: PathBuf,
    /// The format of the file
    #[arg(long, value_enum, default_value_t)]
    pub(in crate::cli) format: Format,
    /// Write the segments to this folder, as flat files
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) segments: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Replace a file although it is mounted, attached, or open for writing by another process
    #[arg(long, requires = "force")]
    pub(in crate::cli) target_in_use: bool,
    #[command(flatten)]
    pub(in crate::cli) jobs: Jobs,
}

/// The formats that a manifest can be exported to.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(in crate::cli) enum Format {
    /// The original's SQLite
    #[default]
    Sqlite,
    /// The original's OSDK, version 0
    Osdk,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ImportArgs {
    /// The manifest file
    pub(in crate::cli) file: PathBuf,
    /// The name of the image [default with --output: the file's name]
    #[arg(long, required_unless_present = "output")]
    pub(in crate::cli) name: Option<ImageName>,
    /// The folder that holds the segments as flat files
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    pub(in crate::cli) segments: Option<PathBuf>,
    /// How new segments are compressed: none, zlib[:1-9], lzma[:0-9], zstd[:-7-19] [default: the repository's]
    #[arg(long, value_name = "NAME[:LEVEL]", conflicts_with = "output")]
    pub(in crate::cli) compression: Option<CompressionSetting>,
    /// Make a manifest file of it, and touch no repository
    #[arg(short, long, value_name = "FILE")]
    pub(in crate::cli) output: Option<PathBuf>,
    /// Replace an output that exists
    #[arg(long, requires = "output")]
    pub(in crate::cli) force: bool,
    /// Replace a file although it is mounted, attached, or open for writing by another process
    #[arg(long, requires = "force")]
    pub(in crate::cli) target_in_use: bool,
    #[command(flatten)]
    pub(in crate::cli) jobs: Jobs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct GenerateArgs {
    /// The size of the disk in GiB: 65536 is 2^24 segments of 4 MiB
    #[arg(long, value_name = "GIB")]
    pub(in crate::cli) backupsize: u64,
    /// The file to make
    pub(in crate::cli) file: PathBuf,
    /// Replace a file that exists
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Replace a file although it is mounted, attached, or open for writing by another process
    #[arg(long, requires = "force")]
    pub(in crate::cli) target_in_use: bool,
    /// The size of a segment, a power of two from 64KiB to 64MiB
    #[arg(long, value_name = "SIZE", value_parser = segment_size, default_value = "4MiB")]
    pub(in crate::cli) segment_size: SegmentSize,
    /// What the random hashes follow from [default: a random number]
    #[arg(long, value_name = "NUMBER")]
    pub(in crate::cli) seed: Option<u64>,
    /// How many of a hundred segments begin a run
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100), default_value_t = 0)]
    pub(in crate::cli) fragmented: u8,
}
