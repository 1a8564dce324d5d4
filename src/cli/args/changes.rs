//! Arguments of what changes the list of backups.

use clap::Args;
use jiff::{SignedDuration, Timestamp};

use crate::api::{KeepNumber, KeepRules, Unlimited};
use crate::cli::args::Jobs;
use crate::manifest::ImageName;
use crate::repository::retention::{Keep, RetentionPolicy};
use crate::repository::{BackupRange, BackupSelector, span};

#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(in crate::cli) struct DeleteArgs {
    /// The backups: NAME@NUMBER, NAME@FIRST-LAST, or NAME@all
    #[arg(required = true, value_name = "BACKUP")]
    pub(in crate::cli) backups: Vec<BackupRange>,
    /// The backups are moments of machines: delete the backups of their disks as well
    #[arg(long)]
    pub(in crate::cli) machine: bool,
    /// Only show what would be deleted
    #[arg(short = 'n', long)]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask before deleting
    #[arg(short, long)]
    pub(in crate::cli) yes: bool,
    /// Free the space of all deleted backups at once, as "ekko gc --now" does: none of them can be undeleted then, whoever deleted it
    #[arg(long)]
    pub(in crate::cli) gc: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct UndeleteArgs {
    /// The deleted backups: NAME@NUMBER, NAME@FIRST-LAST, NAME@all, or NAME if there is one
    #[arg(required = true, value_name = "BACKUP")]
    pub(in crate::cli) backups: Vec<BackupRange>,
}

#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(in crate::cli) struct ForgetArgs {
    /// Only backups of this name
    pub(in crate::cli) name: Option<ImageName>,
    /// Keep the newest ones
    #[arg(long, value_name = "NUMBER", value_parser = keep)]
    keep_last: Option<Keep>,
    /// Keep the newest of each hour, for so many hours that have one
    #[arg(long, value_name = "NUMBER", value_parser = keep)]
    keep_hourly: Option<Keep>,
    /// Keep the newest of each day
    #[arg(long, value_name = "NUMBER", value_parser = keep)]
    keep_daily: Option<Keep>,
    /// Keep the newest of each week
    #[arg(long, value_name = "NUMBER", value_parser = keep)]
    keep_weekly: Option<Keep>,
    /// Keep the newest of each month
    #[arg(long, value_name = "NUMBER", value_parser = keep)]
    keep_monthly: Option<Keep>,
    /// Keep the newest of each year
    #[arg(long, value_name = "NUMBER", value_parser = keep)]
    keep_yearly: Option<Keep>,
    /// Keep all that are no older than this before the newest, e.g. 48h or 30d
    #[arg(long, value_name = "DURATION", value_parser = within)]
    keep_within: Option<SignedDuration>,
    /// Keep all that have this tag; may be given several times
    #[arg(long, value_name = "TAG")]
    keep_tag: Vec<String>,
    /// Delete all backups of a name if the rules keep none of them
    #[arg(long)]
    pub(in crate::cli) allow_empty: bool,
    /// Only show what would be deleted
    #[arg(short = 'n', long)]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask before deleting
    #[arg(short, long)]
    pub(in crate::cli) yes: bool,
    /// Free the space of all deleted backups at once, as "ekko gc --now" does: none of them can be undeleted then, whoever deleted it
    #[arg(long)]
    pub(in crate::cli) gc: bool,
}

impl ForgetArgs {
    pub(in crate::cli) fn policy(&self) -> RetentionPolicy {
        RetentionPolicy {
            last: self.keep_last.unwrap_or_default(),
            hourly: self.keep_hourly.unwrap_or_default(),
            daily: self.keep_daily.unwrap_or_default(),
            weekly: self.keep_weekly.unwrap_or_default(),
            monthly: self.keep_monthly.unwrap_or_default(),
            yearly: self.keep_yearly.unwrap_or_default(),
            within: self.keep_within,
            tags: self.keep_tag.clone(),
        }
    }
}

impl ForgetArgs {
    /// Returns the same as it is said to a service.
    pub(in crate::cli) fn rules(&self) -> KeepRules {
        let number = |keep: Option<Keep>| match keep {
            None | Some(Keep::None) => None,
            Some(Keep::Number(number)) => Some(KeepNumber::Number(number)),
            Some(Keep::Unlimited) => Some(KeepNumber::Word(Unlimited::Unlimited)),
        };
        KeepRules {
            last: number(self.keep_last),
            hourly: number(self.keep_hourly),
            daily: number(self.keep_daily),
            weekly: number(self.keep_weekly),
            monthly: number(self.keep_monthly),
            yearly: number(self.keep_yearly),
            within: self.keep_within.as_ref().map(ToString::to_string),
            tags: self.keep_tag.clone(),
        }
    }
}

fn keep(text: &str) -> Result<Keep, String> {
    match text {
        "unlimited" => Ok(Keep::Unlimited),
        number => number.parse().map(Keep::Number).map_err(|_| "a number, or \"unlimited\"".to_owned()),
    }
}

/// Reads a span of time.
pub(super) fn within(text: &str) -> Result<SignedDuration, String> {
    span(text).ok_or_else(|| "a duration is e.g. 48h, 30d or 2w".to_owned())
}

#[derive(Args, Debug)]
pub(in crate::cli) struct GcArgs {
    /// Free the space of deleted backups at once; they cannot be undeleted then
    #[arg(long)]
    pub(in crate::cli) now: bool,
    /// Only say what would be freed
    #[arg(short = 'n', long)]
    pub(in crate::cli) dry_run: bool,
    /// Give up the backups whose folder in "manifests" is lost for good
    #[arg(long, conflicts_with = "dry_run")]
    pub(in crate::cli) accept_lost: bool,
    /// Keep what an unfinished backup stored so long for its next run, e.g. 12h or 0s [default: the repository's, 1d]
    #[arg(long, value_name = "DURATION", value_parser = within)]
    pub(in crate::cli) keep_unfinished: Option<SignedDuration>,
    #[command(flatten)]
    pub(in crate::cli) jobs: Jobs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ProtectArgs {
    /// The backup: NAME, NAME@latest or NAME@NUMBER
    pub(in crate::cli) backup: BackupSelector,
    /// Until then: a date or a time in UTC, e.g. 2027-01-31 or 2027-01-31T12:00:00Z
    #[arg(long, value_name = "DATE", value_parser = moment)]
    pub(in crate::cli) until: Option<Timestamp>,
    /// Let the protection end earlier than it does now
    #[arg(long, requires = "until")]
    pub(in crate::cli) shorten: bool,
}

/// Reads a moment in the past: a date or a time in UTC, or how long ago it was.
pub(super) fn since(text: &str) -> Result<Timestamp, String> {
    let ago = || crate::time::now().checked_sub(span(text)?).ok();
    moment(text)
        .ok()
        .or_else(ago)
        .ok_or_else(|| "a time is e.g. 2026-11-01, 2026-11-01T12:00:00Z or 7d".to_owned())
}

/// Reads a date or a time in UTC.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    let date = || text.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    let time = text.parse().ok().or_else(|| date().map(|zoned| zoned.timestamp()));
    time.ok_or_else(|| "a date is e.g. 2027-01-31, a time 2027-01-31T12:00:00Z".to_owned())
}

#[derive(Args, Debug)]
pub(in crate::cli) struct UnprotectArgs {
    /// The backup: NAME, NAME@latest or NAME@NUMBER
    pub(in crate::cli) backup: BackupSelector,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RetireArgs {
    /// The name of the disk
    pub(in crate::cli) name: ImageName,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RenameArgs {
    /// The name that the backups have
    pub(in crate::cli) from: ImageName,
    /// The name that they get
    pub(in crate::cli) to: ImageName,
}
