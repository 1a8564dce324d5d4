//! What a person is told of notices.

use crate::cli::format;
use crate::progress::Notice;

/// How much a notice matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// It is of interest; `--quiet` hides it.
    News,
    /// Something may be wrong.
    Warning,
    /// Something is wrong: the exit code is 3.
    Problem,
}

/// Returns how much a notice matters, and what a person is told.
pub(super) fn described(notice: Notice) -> (Weight, String) {
    match notice {
        Notice::IndexRebuilt { reason, segments } => {
            (Weight::News, format!("the index was rebuilt with {segments} segments: {reason}"))
        }
        Notice::Recovered { what } => (Weight::News, format!("recovered: {what}")),
        // When the disk has been read, it is told with the name of the backup, and never hidden.
        Notice::SourceInUse { path, how } => (
            Weight::News,
            format!(
                "warning: {} is {how}: this backup may be inconsistent; back up a snapshot instead",
                path.display()
            ),
        ),
        Notice::Inconsistent { name, why } => (
            Weight::Problem,
            format!("warning: this backup of {name} is inconsistent: {why}; back up a snapshot instead"),
        ),
        Notice::Unreadable { name, ranges, bytes } => {
            let (noun, bytes) = (if ranges == 1 { "range" } else { "ranges" }, format::bytes(bytes));
            let text = format!(
                "problem: {bytes} of {name} in {ranges} {noun} cannot be read and are zeros in this backup; \"ekko show {name}\" lists them"
            );
            (Weight::Problem, text)
        }
        Notice::Shrank { name, was, now } => {
            let (was_exactly, now_exactly) = (was, now);
            let (was, now) = (format::bytes(was), format::bytes(now));
            let text = format!(
                "warning: {name} shrank from {was} ({was_exactly} bytes) to {now} ({now_exactly} bytes) since the backup before; check \
                 that it is the right disk"
            );
            (Weight::Problem, text)
        }
        Notice::DoubtfulClock { name, newest, now } => {
            let (newest, now) = (format::time(newest), format::time(now));
            let text = format!(
                "warning: the clock says {now}, and the newest backup of {name} is of {newest}; check the clock of this machine"
            );
            (Weight::Problem, text)
        }
        Notice::LooksLike { path, what, format } => {
            let path = path.display();
            let instead = match format {
                Some(format) => format!("use --format {format}, or --format raw"),
                None => "use --format raw".to_owned(),
            };
            let text =
                format!("warning: {path} looks like {what} but is read as raw: {instead} to silence this");
            (Weight::Warning, text)
        }
        Notice::ReadInFull { name, why } => {
            (Weight::Warning, format!("warning: {name} is read in full: {why}"))
        }
        Notice::Unleased { backup, job, why } => {
            let text = format!(
                "warning: cannot lease {backup}: {why}; if somebody deletes it and \"ekko gc\" runs before this {job} ends, the \
                 {job} loses its data: run no gc until then"
            );
            (Weight::Warning, text)
        }
        Notice::TwinStored { hash } => {
            (Weight::News, format!("warning: two different segments have the SHA-1 {hash}; both are kept"))
        }
        Notice::Waiting { reason } => (Weight::News, format!("waiting: {reason}")),
        Notice::GoesOn { what } => (Weight::News, what),
        Notice::Problem { what, .. } => (Weight::Problem, format!("problem: {what}")),
    }
}
