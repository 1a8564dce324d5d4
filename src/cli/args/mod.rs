//! The arguments.

mod changes;
mod manifests;
mod restore;
mod serve;
mod sources;
mod tokens;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use changes::within as days;
pub(in crate::cli) use changes::{
    DeleteArgs, ForgetArgs, GcArgs, ProtectArgs, RenameArgs, RetireArgs, UndeleteArgs, UnprotectArgs,
};
pub(in crate::cli) use manifests::{DiffArgs, ExportArgs, Format, GenerateArgs, ImportArgs, ManifestCommand};
pub(in crate::cli) use restore::{RestoreArgs, RestoreFormat};
pub(in crate::cli) use serve::ServeArgs;
pub(in crate::cli) use sources::{BackupArgs, CbtArgs, ImageArgs, MachineArgs, TlsArgs};
pub(in crate::cli) use tokens::{TokenCommand, TokenCreateArgs, TokenRevokeArgs};

use clap::{Args, Parser, Subcommand};
use jiff::SignedDuration;

use crate::cli::error::exit;
use crate::codec::CompressionSetting;

use crate::repository::BackupSelector;
use crate::segment::SegmentSize;

/// Block-based backups of virtual machines in one deduplicating store.
#[derive(Debug, Parser)]
#[command(name = "ekko", version, about, propagate_version = true)]
#[command(after_help = after_help())]
pub struct Cli {
    #[command(flatten)]
    pub(in crate::cli) global: Global,
    #[command(subcommand)]
    pub(in crate::cli) command: Command,
}

/// Returns what stands at the end of the help for all commands.
fn after_help() -> String {
    let example = "Example:\n  ekko -r /backup/store backup web=/dev/vg/web db=/srv/vm/db.raw\n  ekko -r /backup/store \
                    restore web@latest /srv/vm/web.raw";
    let codes = exit::ALL.map(|(code, meaning)| format!("\n  {code:<3} {meaning}"));
    format!("{example}\n\nExit codes:{}", codes.concat())
}

/// Arguments of every command.
#[derive(Args, Debug)]
pub(in crate::cli) struct Global {
    /// The repository's folder
    #[arg(short, long, global = true, value_name = "PATH", env = "EKKO_REPOSITORY", hide_env_values = true)]
    pub(in crate::cli) repository: Option<PathBuf>,
    /// The roots of certificates to believe, in PEM, for a repository that is https://HOST:PORT/ [default: the machine's]
    #[arg(long, global = true, value_name = "FILE", env = "EKKO_CACERT", hide_env_values = true)]
    pub(in crate::cli) cacert: Option<PathBuf>,
    /// The file with the token for a repository that is https://HOST:PORT/; `EKKO_TOKEN` may hold the token itself
    #[arg(long, global = true, value_name = "FILE", env = "EKKO_TOKEN_FILE", hide_env_values = true)]
    pub(in crate::cli) token_file: Option<PathBuf>,
    /// Print one JSON document (on stderr where stdout carries data)
    #[arg(long, global = true)]
    pub(in crate::cli) json: bool,
    /// Print only warnings, problems and results: no progress and no notices
    #[arg(short, long, global = true)]
    pub(in crate::cli) quiet: bool,
    /// Log more to stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(in crate::cli) verbose: u8,
    /// Wait so long for a repository that another process uses, e.g. 30s or 5m
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub(in crate::cli) wait: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let span: SignedDuration = text.parse().map_err(|_| "a duration is e.g. 30s, 5m or 1h30m".to_owned())?;
    span.try_into().map_err(|_| "a duration is not negative".to_owned())
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Command {
    /// Make a repository
    #[command(after_help = "Example:\n  ekko -r /backup/store init --segment-size 1MiB")]
    Init(InitArgs),
    /// Back up disks: files or block devices
    #[command(
        after_help = "The repository is made if its folder does not exist. The second backup of a name is \
                            incremental 1 of the same backupset; only segments that no backup holds are stored.\n\n\
                            Example:\n  ekko -r /backup/store backup web=/dev/vg/web db=/srv/vm/db.raw\n  \
                            ekko -r /backup/store backup --machine web web/vda=/dev/vg/a-snap web/vdb=/dev/vg/b-snap \\\n    \
                            --attach domain.xml --before 'freeze && snapshot && thaw' --after 'drop-snapshots'"
    )]
    Backup(BackupArgs),
    /// Restore a backup to a file, a block device or stdout
    #[command(
        after_help = "A target that exists is only overwritten with --force, and one that is mounted, attached or open for \
                            writing elsewhere only with --target-in-use as well. No target may lie in a \
                            repository. A file appears under its name when it is complete. A damaged segment does not stop \
                            the restore: it is named, its range is left zero, and the exit code is 3.\n\n\
                            Example:\n  ekko -r /backup/store restore web@3 /srv/vm/web.raw\n  \
                            ekko -r /backup/store restore web - | zstd > web.raw.zst\n  \
                            ekko -r /backup/store restore --machine web@latest /srv/vm/web\n  \
                            ekko -r /backup/store restore --machine web --force --to vda=/dev/vg/a --to vdb=/dev/vg/b"
    )]
    Restore(RestoreArgs),
    /// List backups
    #[command(
        after_help = "Example:\n  ekko -r /backup/store list web 'db*' --since 7d\n  ekko -r /backup/store list --latest"
    )]
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
    /// Delete backups, any of a chain
    #[command(
        after_help = "Ekko shows the backups and the bytes that only they need, and asks before it deletes them if stdin and \
                            stderr are a terminal. A deleted backup can be undeleted for 24 hours, or as long as keep_deleted \
                            in ekko.toml says; its space is freed by the first \"ekko gc\" after that. A collection with --now or \
                            --gc, whoever runs it, ends the periods of all deleted backups (over the service: of the project's).\n\n\
                            Example:\n  ekko -r /backup/store delete web@3 db@0-6 --dry-run\n  \
                            ekko -r /backup/store delete --yes mail@all"
    )]
    Delete(DeleteArgs),
    /// Restore deleted backups, until their period is over
    #[command(
        after_help = "\"ekko list --deleted\" shows the deleted backups and the end of their period. A machine's moment brings the \
                            deleted backups of its disks with it.\n\n\
                            Example:\n  ekko -r /backup/store undelete web@3"
    )]
    Undelete(UndeleteArgs),
    /// Delete the backups that a policy does not keep
    #[command(
        after_help = "The rules are restic's: --keep-daily 7 keeps the newest backup of each of the last seven days that \
                            have one, and so on; times are in UTC. NUMBER may be \"unlimited\".\n\n\
                            These are always kept: protected backups; the newest backup of a name, and the newest intact one; \
                            the last intact backup from before the disk became smaller; what a machine's moment that is kept \
                            consists of. A backup that \"ekko list\" marks as damaged, suspect, inconsistent, incomplete or \
                            bad-sectors, or that is empty though an earlier one was not, takes no place of a rule: the rules count \
                            intact backups, and keep it as long as they would if it were one.\n\n\
                            If a name is refused because the rules would keep none of its backups, --gc frees nothing. In cron, \
                            run \"forget\" without --gc and \"gc\" after it: then a deletion can be undone for 24 hours.\n\n\
                            Example:\n  ekko -r /backup/store forget --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run"
    )]
    Forget(ForgetArgs),
    /// Free space used by deleted backups and other garbage
    #[command(
        after_help = "Data of deleted backups is freed when their period is over (keep_deleted, 24 hours by default), or at \
                            once with --now. What a running backup uses stays, and what an unfinished one stored is kept for \
                            its next run. Nothing goes while a manifest cannot be read. It runs beside backups, restores and \
                            checks.\n\n\
                            Example:\n  ekko -r /backup/store gc --dry-run"
    )]
    Gc(GcArgs),
    /// Protect a backup from being deleted
    #[command(after_help = "Example:\n  ekko -r /backup/store protect web@3 --until 2027-01-01")]
    Protect(ProtectArgs),
    /// Allow a protected backup to be deleted
    #[command(after_help = "Example:\n  ekko -r /backup/store unprotect web@3")]
    Unprotect(UnprotectArgs),
    /// Give all backups of a name another one
    #[command(after_help = "Example:\n  ekko -r /backup/store rename web shop")]
    Rename(RenameArgs),
    /// Stop expecting backups of a disk in "ekko status"
    #[command(
        after_help = "The backups of the disk stay. The next backup of it makes the disk expected again.\n\n\
                            Example:\n  ekko -r /backup/store retire web"
    )]
    Retire(RetireArgs),
    /// Check that every backup is whole
    #[command(
        after_help = "Every manifest is verified, every segment that it names looked up in the packs, and the index \
                            compared with both; with --read-data stored segments are read, decoded and compared with their \
                            BLAKE3 and SHA-1. It goes on after a problem, names the backups that each damaged segment \
                            hurts, and exits with 3. Beside a running backup the index is not compared.\n\n\
                            Example:\n  ekko -r /backup/store check --read-data=5\n  \
                            ekko -r /backup/store check --read-data --repair"
    )]
    Check(CheckArgs),
    /// Compare a backup with a disk
    #[command(
        after_help = "The ranges that differ are named; the exit code is then 3. Holes of the disk are not read.\n\n\
                            Example:\n  ekko -r /backup/store verify web /dev/vg/web-snap"
    )]
    Verify(VerifyArgs),
    /// Say whether every name has a fresh, whole backup, for monitoring
    #[command(
        after_help = "A line for each name that has none, and exit code 3. Whole means that its manifest is, and that all \
                            its segments are in packs.\n\n\
                            Example:\n  ekko -r /backup/store status --max-age 26h"
    )]
    Status(StatusArgs),
    /// Show what the repository holds and takes
    #[command(
        after_help = "Example:\n  ekko -r /backup/store stats\n  ekko -r /backup/store stats --by-name\n  \
                            ekko -r /backup/store stats 'web*'"
    )]
    Stats(StatsArgs),
    /// Measure what this machine can do: hash, compress, read, write
    #[command(
        after_help = "All cores are busy at once, with a sample of SOURCE or with bytes made up. The times at the end are what \
                            hashing and compressing alone take: no backup is faster. Writing is measured if -r names a \
                            folder.\n\n\
                            Example:\n  ekko -r /backup/store benchmark /dev/vg/web"
    )]
    Benchmark(BenchmarkArgs),
    /// Make the index anew from packs and manifests
    #[command(after_help = "This is done by itself whenever the index is missing, damaged or old.\n\n\
                            Example:\n  ekko -r /backup/store rebuild")]
    Rebuild,
    /// Serve the repository to other hosts over HTTP
    #[command(
        after_help = "Commands on this machine that name the repository go through the service while it runs. It ends in order on \
                            SIGTERM.\n\n\
                            Example:\n  ekko -r /backup/store serve --listen 0.0.0.0:6800 --tls-certificate cert.pem --tls-key key.pem"
    )]
    Serve(ServeArgs),
    /// Say who may do what over the service
    #[command(subcommand)]
    Token(TokenCommand),
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
pub(in crate::cli) struct StatsArgs {
    /// Show what the backups of these names hold; * and ? stand for any letters
    #[arg(value_name = "NAME")]
    pub(in crate::cli) names: Vec<String>,
    /// Show what the backups of each name hold
    #[arg(long)]
    pub(in crate::cli) by_name: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct InitArgs {
    /// The size of a segment, a power of two from 64KiB to 64MiB; it cannot be changed later
    #[arg(long, value_name = "SIZE", value_parser = segment_size, default_value = "4MiB")]
    pub(in crate::cli) segment_size: SegmentSize,
    /// The compression of backups that do not say otherwise: none, zlib[:1-9], lzma[:0-9], zstd[:-7-19]
    /// [default: zstd:1; with segments below 1 MiB zstd:3]
    #[arg(long, value_name = "NAME[:LEVEL]")]
    pub(in crate::cli) compression: Option<CompressionSetting>,
}

fn segment_size(text: &str) -> Result<SegmentSize, String> {
    SegmentSize::new(bytes(text)?).map_err(|error| error.to_string())
}

/// Reads a number of bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "m" | "MiB" => 1 << 20,
        "G" | "g" | "GiB" => 1 << 30,
        "T" | "t" | "TiB" => 1 << 40,
        unit => {
            return Err(format!(
                "\"{unit}\" is no unit: K, M, G and T (or KiB, MiB, GiB and TiB) are possible, and 1M is 1024 K"
            ));
        }
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    Ok(bytes.ok_or("a size is e.g. 4MiB")?)
}

/// Returns how many threads can run at once.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn rate(text: &str) -> Result<NonZeroU64, String> {
    NonZeroU64::new(bytes(text)?).ok_or_else(|| "a limit is above 0".to_owned())
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Jobs {
    /// How many threads hash, compress and verify [default: one a core]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
}

impl Jobs {
    pub(in crate::cli) fn number(&self) -> usize {
        self.jobs.map_or_else(cores, usize::from)
    }
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ListArgs {
    /// Only backups of these names; * and ? stand for any characters
    #[arg(value_name = "NAME")]
    pub(in crate::cli) names: Vec<String>,
    /// Only backups with this tag
    #[arg(long)]
    pub(in crate::cli) tag: Option<String>,
    /// Only the newest backup of each name
    #[arg(long)]
    pub(in crate::cli) latest: bool,
    /// Only backups since a date, a time, or so long ago, e.g. 2026-11-01 or 7d
    #[arg(long, value_name = "TIME", value_parser = changes::since)]
    pub(in crate::cli) since: Option<jiff::Timestamp>,
    /// Show times in UTC and not in local time
    #[arg(long)]
    pub(in crate::cli) utc: bool,
    /// List the deleted backups that can be undeleted, and until when
    #[arg(long)]
    pub(in crate::cli) deleted: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ShowArgs {
    /// The backup: NAME, NAME@latest or NAME@NUMBER
    pub(in crate::cli) backup: BackupSelector,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct CheckArgs {
    /// Read stored segments as well: all, or so many percent, those first that were longest not checked
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, require_equals = true, default_missing_value = "100",
        value_parser = percent)]
    pub(in crate::cli) read_data: Option<f64>,
    /// Put what is damaged into quarantine, so that the next backup stores it anew, and mend the index
    #[arg(long)]
    pub(in crate::cli) repair: bool,
    #[command(flatten)]
    pub(in crate::cli) jobs: Jobs,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>().ok();
    number.filter(|it| *it > 0.0 && *it <= 100.0).ok_or_else(|| "a share is above 0 and up to 100".to_owned())
}

#[derive(Args, Debug)]
pub(in crate::cli) struct VerifyArgs {
    /// The backup: NAME, NAME@latest or NAME@NUMBER
    pub(in crate::cli) backup: BackupSelector,
    /// A file or a block device
    pub(in crate::cli) source: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) image: ImageArgs,
    #[command(flatten)]
    pub(in crate::cli) jobs: Jobs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct StatusArgs {
    /// How old the newest backup of a name may be, e.g. 26h or 8d
    #[arg(long, value_name = "DURATION", value_parser = days)]
    pub(in crate::cli) max_age: Option<SignedDuration>,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct BenchmarkArgs {
    /// A file or a block device to take a sample of
    pub(in crate::cli) source: Option<PathBuf>,
    /// The size of a segment
    #[arg(long, value_name = "SIZE", value_parser = segment_size, default_value = "4MiB")]
    pub(in crate::cli) segment_size: SegmentSize,
    /// How segments are compressed: none, zlib[:1-9], lzma[:0-9], zstd[:-7-19] [default: zstd:1]
    #[arg(long, value_name = "NAME[:LEVEL]")]
    pub(in crate::cli) compression: Option<CompressionSetting>,
    #[command(flatten)]
    pub(in crate::cli) jobs: Jobs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct CompletionsArgs {
    /// The shell
    pub(in crate::cli) shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ManArgs {
    /// The folder to write a page for each command to; without it, the main page goes to stdout
    pub(in crate::cli) folder: Option<PathBuf>,
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
