//! Lists of changes: when one is used, how far it is believed, and what is written down of it.
//!
//! A list says what changed since some moment, and nobody can see in it which. So it is used only if whoever brings it
//! says of which backup that moment was, and that backup is the parent. Then a share of what it says is unchanged is read
//! all the same and compared; the place where that goes on is kept in the manifest, so that in so many backups every
//! segment's turn comes. One difference, and the whole disk is read, and the backups since the last full read are marked as
//! suspect: what the lists have hidden is not in them.
//!
//! The manifest's attribute `cbt` is JSON:
//!
//! | key | what |
//! |---|---|
//! | `kind` | the kind of the list, [`ListKind::name`] |
//! | `id` | what the tracking is called, or the BLAKE3 of the list |
//! | `granularity` | of what its places are multiples, in bytes |
//! | `cursor` | the segment at which the next audit begins |
//! | `full` | the number of the last backup of the backupset for which the whole disk was read, or nothing if there is none |

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::backup::plan::Plan;
use crate::backup::{BackupError, BackupOptions};
use crate::image::{ChangeList, Format, ListKind};
use crate::manifest::{BackupsetId, Incremental, TrackingId, unreadable_ranges};
use crate::repository::{BackupDraft, BackupNumber, Parent, RepositoryWriter};
use crate::segment::{Geometry, SegmentIndex};

/// The attribute of a manifest that says how the disk's format was.
const FORMAT: &str = "format";
/// The attribute of a manifest that says what the disk looks like that was read as raw, if nobody said that it is raw.
const LOOKS_LIKE: &str = "looks-like";
/// The attribute of a manifest that says who may have been changing the disk while it was read.
const IN_USE: &str = "in-use";
/// The attribute of a manifest that says of which list it was made.
const TRACKING: &str = "cbt";

/// The attribute of a manifest that says what it is of, if it is not a disk.
pub const KIND: &str = "kind";

/// So many segments are audited at least.
const AUDITED_AT_LEAST: u32 = 10;

/// Since which backup changes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangesBase {
    /// Nobody said it.
    NotSaid,
    /// This one.
    Is(BackupsetId, Incremental),
    /// One that is not there.
    Missing {
        /// Why it cannot be found.
        why: String,
    },
}

/// What somebody says of a disk's changes.
#[derive(Clone, Debug)]
pub struct TrackedChanges {
    /// The changes, or why they are not known.
    pub list: Result<ChangeList, String>,
    /// Since which backup.
    pub base: ChangesBase,
    /// What the tracking is called.
    pub id: TrackingId,
    /// The ranges that an NBD server reads from the top image of the disk's chain, if it tells: with fleecing, what it saved
    /// before the guest overwrote it.
    pub overlaid: Vec<Range<u64>>,
    /// How many of a hundred segments are read although they are said to be unchanged.
    pub audit: f64,
    /// Whether the disk is read in full if the list cannot be used.
    pub fallback: bool,
}

/// Why a disk was read in full although there was a list of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FullRead {
    /// There is no list.
    NoList {
        /// Why not.
        why: String,
    },
    /// The backup that the changes are since is not there.
    NoSuchBase {
        /// Why it cannot be found.
        why: String,
    },
    /// The list says what changed, and there is nothing since which.
    NoParent,
    /// The list says where data lies, and is of use for a first backup alone.
    NotOfChanges {
        /// Its kind.
        kind: ListKind,
    },
    /// It was not said since which backup the changes are.
    NoBase {
        /// The parent's number.
        parent: BackupNumber,
    },
    /// The changes are since another backup than the parent.
    OtherBase {
        /// The parent's number.
        parent: BackupNumber,
    },
    /// A segment was another than the list says.
    Wrong {
        /// The segment.
        segment: SegmentIndex,
    },
}

impl fmt::Display for FullRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoList { why } => write!(f, "what changed is not known: {why}"),
            Self::NoSuchBase { why } => write!(f, "--cbt-base is not there: {why}"),
            Self::NoParent => f.write_str("it says what changed, and there is no backup before"),
            Self::NotOfChanges { kind } => {
                write!(
                    f,
                    "it is a {kind}, which says where data lies and not what changed; it is of use for a first backup"
                )
            }
            Self::NoBase { parent } => {
                write!(
                    f,
                    "say with --cbt-base since which backup the changes are; the one before is number {parent}"
                )
            }
            Self::OtherBase { parent } => {
                write!(
                    f,
                    "it says what changed since another backup than the one before, which is number {parent}"
                )
            }
            Self::Wrong { segment } => write!(f, "it is wrong about segment {segment}"),
        }
    }
}

/// What came of a list of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// The kind of the list; nothing if there was none.
    pub kind: Option<ListKind>,
    /// Why the whole disk was read all the same; nothing if it was not.
    pub full_read: Option<FullRead>,
    /// The backups of the backupset that are suspect now, by number.
    pub suspects: Vec<BackupNumber>,
}

impl Tracking {
    /// Says whether the list was found to be wrong.
    pub fn was_wrong(&self) -> bool {
        matches!(self.full_read, Some(FullRead::Wrong { .. }))
    }
}

#[derive(Serialize, Deserialize)]
struct Attribute {
    kind: String,
    id: String,
    granularity: u64,
    cursor: u32,
    full: Option<u32>,
}

/// What is to be read, and what is said of the list.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) tracking: Option<Tracking>,
}

/// Decides what of a disk is read, and writes into the draft how it was made.
pub(super) fn prepare(
    writer: &RepositoryWriter,
    draft: &mut BackupDraft,
    options: &BackupOptions,
) -> Result<Prepared, BackupError> {
    let geometry = draft.info().geometry;
    describe(draft, options)?;
    let Some(changes) = &options.changes else {
        return Ok(Prepared { plan: Plan::full(geometry), tracking: None });
    };
    let full = |kind, reason| {
        if !changes.fallback {
            return Err(BackupError::ListUnusable { reason });
        }
        let tracking = Tracking { kind, full_read: Some(reason), suspects: Vec::new() };
        Ok(Prepared { plan: Plan::full(geometry), tracking: Some(tracking) })
    };
    let told = match &changes.list {
        Ok(list) => list,
        Err(why) => return full(None, FullRead::NoList { why: why.clone() }),
    };
    let kind = told.kind();
    // A backup of an earlier backupset is what the disk was restored from, and no base of any list.
    let own = draft.info().backupset;
    let parent = draft.parent().filter(|parent| parent.manifest.info().backupset == own);
    let usable = match (kind.is_of_changes(), parent) {
        (true, parent) => is_base(changes, parent),
        (false, None) => Ok(()),
        (false, Some(_)) => Err(FullRead::NotOfChanges { kind }),
    };
    if let Err(reason) = usable {
        return full(Some(kind), reason);
    }
    let before = parent.map(|parent| parent.manifest.info());
    let last = before.and_then(|info| serde_json::from_slice::<Attribute>(info.attribute(TRACKING)?).ok());
    let plan = Plan::of_list(told, geometry, before.map(|info| info.geometry.size_of_disk()));
    let plan = match parent {
        Some(parent) => plan
            .with(&lost_segments(writer, parent, &plan)?, |_| super::plan::Fate::Read)
            .with(&unread_segments(parent, geometry), |_| super::plan::Fate::Read),
        None => plan,
    };
    let segments = geometry.segments();
    let cursor = last.as_ref().map_or(0, |last| last.cursor).checked_rem(segments).unwrap_or(0);
    let count = audited(segments, changes.audit);
    let next = (u64::from(cursor) + u64::from(count)).checked_rem(u64::from(segments)).unwrap_or(0);
    let attribute = Attribute {
        kind: kind.name().to_owned(),
        id: changes.id.to_string(),
        granularity: told.granularity(),
        cursor: u32::try_from(next).unwrap_or(0),
        // The parent itself was read in full, if it says nothing of a list.
        full: last.map_or_else(|| before.map(|info| info.incremental.0), |last| last.full),
    };
    let text = serde_json::to_vec(&attribute).unwrap_or_default();
    draft.set_attribute(TRACKING, text);
    let tracking = Tracking { kind: Some(kind), full_read: None, suspects: Vec::new() };
    Ok(Prepared { plan: plan.audited(cursor, count), tracking: Some(tracking) })
}

/// Gives a list up that was found to be wrong: returns the plan that reads everything, and has the backups since the last
/// full read marked when this one is committed.
pub(super) fn distrust(
    draft: &mut BackupDraft,
    segment: SegmentIndex,
    tracking: &mut Option<Tracking>,
) -> Plan {
    let made = draft.attribute(TRACKING).and_then(|text| serde_json::from_slice::<Attribute>(text).ok());
    let full = made.and_then(|attribute| attribute.full).map(Incremental);
    draft.remove_attribute(TRACKING);
    let why = format!(
        "the list of changes of the backup of {:.0} was wrong about segment {segment}",
        draft.info().timestamp
    );
    let suspects = draft.suspect_since(full, &why);
    if let Some(tracking) = tracking {
        tracking.full_read = Some(FullRead::Wrong { segment });
        tracking.suspects = suspects;
    }
    Plan::full(draft.info().geometry)
}

/// Has the manifest say what is known of the source, if that fits what it was before.
///
/// # Errors
///
/// If the source looks like something else than the backup before.
pub fn describe(draft: &mut BackupDraft, options: &BackupOptions) -> Result<(), BackupError> {
    for (key, value) in &options.attributes {
        draft.set_attribute(key, value.clone());
    }
    check_kind(draft)?;
    check_format(draft, options)?;
    draft.set_attribute(FORMAT, options.format.format.name().into());
    if let Some(what) = options.format.looks_like {
        draft.set_attribute(LOOKS_LIKE, what.name().into());
    }
    if let Some(how) = &options.in_use {
        draft.set_attribute(IN_USE, how.as_str().into());
    }
    for (key, value) in options.origin.attributes() {
        draft.set_attribute(key, value);
    }
    Ok(())
}

/// Refuses a disk under the name of something else, and the other way round.
fn check_kind(draft: &BackupDraft) -> Result<(), BackupError> {
    let Some(parent) = draft.parent() else { return Ok(()) };
    let (before, now) = (parent.manifest.info().attribute(KIND), draft.attribute(KIND));
    if before == now {
        return Ok(());
    }
    let was = if before.is_none() { "a disk" } else { "a machine" };
    Err(BackupError::OtherKind { name: draft.info().name.clone(), was })
}

/// Refuses an image whose content looks like another format than the parent had.
fn check_format(draft: &BackupDraft, options: &BackupOptions) -> Result<(), BackupError> {
    let Some(parent) = draft.parent().filter(|_| options.format.recognised) else { return Ok(()) };
    // What says nothing was made when there was only one.
    let before = parent.manifest.info().attribute(FORMAT).unwrap_or(Format::Raw.name().as_bytes());
    let now = options.format.format.name();
    if before == now.as_bytes() {
        return Ok(());
    }
    let before = String::from_utf8_lossy(before).into_owned();
    Err(BackupError::FormatChanged { before, now: now.to_owned() })
}

/// Says whether the changes are those since the parent.
fn is_base(changes: &TrackedChanges, parent: Option<&Parent>) -> Result<(), FullRead> {
    match (&changes.base, parent) {
        (ChangesBase::Missing { why }, _) => Err(FullRead::NoSuchBase { why: why.clone() }),
        (_, None) => Err(FullRead::NoParent),
        (ChangesBase::NotSaid, Some(parent)) => Err(FullRead::NoBase { parent: parent.number }),
        (ChangesBase::Is(set, number), Some(parent)) => {
            let info = parent.manifest.info();
            let is_parent = (*set, *number) == (info.backupset, info.incremental);
            if is_parent { Ok(()) } else { Err(FullRead::OtherBase { parent: parent.number }) }
        }
    }
}

/// Returns the segments that would be taken over from the parent and are in no pack any longer.
fn lost_segments(
    writer: &RepositoryWriter,
    parent: &Parent,
    plan: &Plan,
) -> Result<Vec<Range<u32>>, BackupError> {
    let mut lost: Vec<Range<u32>> = Vec::new();
    if !writer.store().lacks_any()? {
        return Ok(lost);
    }
    for (run, _) in plan.runs(0..u32::MAX).filter(|(_, fate)| *fate == super::plan::Fate::Keep) {
        let mut cursor = parent.manifest.cursor(SegmentIndex(run.start));
        let mut next = run.start;
        while next < run.end {
            let index = next;
            next += 1;
            let Some(segment) = cursor.at(SegmentIndex(index)) else {
                next = cursor.next_present().map_or(run.end, |present| present.0.max(next));
                continue;
            };
            let store = writer.store();
            if store.lacks(segment.key, &store.require(segment.key)?) {
                match lost.last_mut() {
                    Some(before) if before.end == index => before.end += 1,
                    _ => lost.push(index..index + 1),
                }
            }
        }
    }
    Ok(lost)
}

/// Returns the segments of which the parent could not read everything: no list says that they are to be read again.
fn unread_segments(parent: &Parent, geometry: Geometry) -> Vec<Range<u32>> {
    let Ok(ranges) = unreadable_ranges(parent.manifest.info()) else {
        return std::iter::once(0..geometry.segments()).collect();
    };
    let mut segments: Vec<Range<u32>> = Vec::new();
    for range in ranges.into_iter().filter(|range| range.start < geometry.size_of_disk()) {
        let first = geometry.containing(range.start).0;
        let last = geometry.containing(range.end.min(geometry.size_of_disk()) - 1).0;
        match segments.last_mut() {
            Some(before) if before.end >= first => before.end = last + 1,
            _ => segments.push(first..last + 1),
        }
    }
    segments
}

/// Returns how many segments are audited.
fn audited(segments: u32, percent: f64) -> u32 {
    let share = (f64::from(segments) * percent / 100.0).ceil();
    // At most all of them, so it is a number of segments.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
    let share = share.clamp(0.0, f64::from(segments)) as u32;
    share.max(AUDITED_AT_LEAST.min(segments))
}
