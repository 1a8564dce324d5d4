//! What a person is told before a disk is read.

use jiff::SignedDuration;

use crate::backup::changes::Tracking;
use crate::progress::{Notice, Progress};
use crate::repository::BackupDraft;
use crate::repository::retention::is_to_come;

/// Tells a person if a disk is smaller than in the backup before. Returns its size there then.
pub fn tell_shrunk(name: &str, before: Option<u64>, now: u64, progress: &dyn Progress) -> Option<u64> {
    let was = before.filter(|was| *was > now)?;
    progress.notice(Notice::Shrank { name: name.to_owned(), was, now });
    Some(was)
}

/// How long a disk may go without a backup before the clock is doubted.
const LONG: SignedDuration = SignedDuration::from_hours(400 * 24);

/// Tells a person if the clock is before the newest backup of a disk, or far ahead of it.
pub(super) fn tell_clock(draft: &BackupDraft, progress: &dyn Progress) {
    let now = crate::time::now();
    let Some(newest) = draft.newest() else { return };
    if is_to_come(newest, now) || now.duration_since(newest) > LONG {
        let name = draft.info().name.as_str().to_owned();
        progress.notice(Notice::DoubtfulClock { name, newest, now });
    }
}

/// Tells a person that the whole disk is read in spite of a list of changes, before that takes its time.
pub(super) fn tell_full_read(draft: &BackupDraft, tracking: &Tracking, progress: &dyn Progress) {
    if let Some(why) = &tracking.full_read {
        let name = draft.info().name.to_string();
        progress.notice(Notice::ReadInFull { name, why: why.to_string() });
    }
}
