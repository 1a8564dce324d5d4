//! What a restored disk lacks, and what its backup lacked already.

use std::ops::Range;

use serde::Serialize;

use crate::api::ByteRange;
use crate::cli::context::Context;
use crate::cli::format;
use crate::manifest::{ManifestReader, inconsistency, unreadable_ranges};
use crate::restore::{DamagedSegment, RestoreSummary, UnwrittenRange};

/// What a restored disk lacks.
#[derive(Serialize)]
pub(super) struct Lacks {
    /// Why the backup may be of no single moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    inconsistent: Option<String>,
    /// The ranges that are not what the backup has, in order.
    incomplete: Vec<ByteRange>,
    damaged: Vec<Damaged>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unwritten: Vec<Unwritten>,
    /// When the backup was made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    never_read: Vec<ByteRange>,
    /// Whether what is lacking is zeros, or what was there before.
    #[serde(skip)]
    in_place: bool,
}

/// A segment that could not be had.
#[derive(Serialize)]
pub(super) struct Damaged {
    segment: u32,
    offset: u64,
    length: u64,
    error: String,
}

/// A range of the target that could not be written.
#[derive(Serialize)]
struct Unwritten {
    offset: u64,
    length: u64,
    error: String,
}

impl From<DamagedSegment> for Damaged {
    fn from(damaged: DamagedSegment) -> Self {
        let DamagedSegment { index, range, error } = damaged;
        Self { segment: index.0, offset: range.start, length: range.end - range.start, error }
    }
}

impl From<UnwrittenRange> for Unwritten {
    fn from(unwritten: UnwrittenRange) -> Self {
        let UnwrittenRange { range, error } = unwritten;
        Self { offset: range.start, length: range.end - range.start, error }
    }
}

/// Sorts ranges and joins neighbours.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, range| {
        let touches = next.start <= range.end;
        if touches {
            range.end = range.end.max(next.end);
        }
        touches
    });
    ranges
}

/// How many ranges are named in a line.
const NAMED: usize = 8;

/// Names ranges for a person.
pub(super) fn words<'a>(ranges: impl Iterator<Item = &'a Range<u64>> + Clone) -> String {
    let length = |range: &Range<u64>| range.end - range.start;
    let named = ranges.clone().take(NAMED);
    let named = named.map(|it| format!("{} at {}", format::bytes(length(it)), format::bytes(it.start)));
    let named = named.collect::<Vec<_>>().join(", ");
    let more = ranges.clone().skip(NAMED).count();
    if more == 0 {
        return named;
    }
    let bytes = ranges.skip(NAMED).map(length).sum();
    format!("{named} and {more} more ranges ({})", format::bytes(bytes))
}

/// Names rows of a document for a person, neighbours together.
fn words_of(rows: impl Iterator<Item = (u64, u64)>) -> String {
    words(joined(rows.map(|(offset, length)| offset..offset + length).collect()).iter())
}

/// Tells of segments that could not be had, and what that means for each, unless a document does.
pub(super) fn tell_damaged(damaged: &[Damaged], means: &str, context: &Context) {
    if context.json {
        return;
    }
    for Damaged { segment, offset, length, error } in damaged {
        let line = format!("problem: segment {segment} ({length} bytes at {offset}) {means}: {error}");
        context.progress().line(&line);
    }
}

impl Lacks {
    pub(super) fn of(summary: RestoreSummary, manifest: &ManifestReader, in_place: bool) -> Self {
        let damaged = summary.damaged.iter().map(|damaged| damaged.range.clone());
        let unwritten = summary.unwritten.iter().map(|unwritten| unwritten.range.clone());
        let incomplete = joined(damaged.chain(unwritten).collect());
        Self {
            inconsistent: inconsistency(manifest.info()),
            incomplete: incomplete.iter().map(ByteRange::from).collect(),
            damaged: summary.damaged.into_iter().map(Damaged::from).collect(),
            unwritten: summary.unwritten.into_iter().map(Unwritten::from).collect(),
            never_read: summary.never_read.iter().map(ByteRange::from).collect(),
            in_place,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.incomplete.is_empty()
    }

    /// Tells of each fault, unless a document does. One of several disks is named.
    pub(super) fn tell(&self, backup: Option<&str>, context: &Context) {
        let of = backup.map_or_else(String::new, |backup| format!("of {backup} "));
        let left = if self.in_place { "is left as it was" } else { "is left zero" };
        tell_damaged(&self.damaged, &format!("{of}{left}"), context);
        for Unwritten { offset, length, error } in self.unwritten.iter().filter(|_| !context.json) {
            context
                .progress()
                .line(&format!("problem: {length} bytes at {offset} {of}are not written: {error}"));
        }
    }

    /// Says what is lacking, if anything is.
    pub(super) fn words(&self) -> Option<String> {
        let damaged = words_of(self.damaged.iter().map(|it| (it.offset, it.length)));
        let unwritten = words_of(self.unwritten.iter().map(|it| (it.offset, it.length)));
        let are = if self.in_place { "are as they were before" } else { "are zeros" };
        let parts = [
            (damaged, format!("could not be read and {are}")),
            (unwritten, "could not be written".to_owned()),
        ];
        let parts = parts.into_iter().filter(|(ranges, _)| !ranges.is_empty());
        let parts: Vec<_> = parts.map(|(ranges, what)| format!("{ranges} {what}")).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// Says which ranges the backup does not know, if there are any.
    pub(super) fn never_read(&self) -> Option<String> {
        let ranges = words_of(self.never_read.iter().map(|it| (it.offset, it.length)));
        let are = if self.in_place { "left as they were" } else { "zeros" };
        let line = || format!("unreadable when the backup was made, and {are}: {ranges}");
        (!ranges.is_empty()).then(line)
    }
}

/// Tells of the flaws of a backup before the first byte is written, unless a document does.
pub(super) fn tell_flaws(manifest: &ManifestReader, name: &str, in_place: bool, context: &Context) {
    if context.json {
        return;
    }
    let tell = |text: &str| context.progress().line(&format!("warning: {text}"));
    if let Some(why) = inconsistency(manifest.info()) {
        tell(&format!("{name} is inconsistent: {why}; check the disk before you use it"));
    }
    match unreadable_ranges(manifest.info()) {
        Err(error) => tell(&format!("any part of {name} may be zeros: {error}")),
        Ok(ranges) if ranges.is_empty() => {}
        Ok(ranges) => {
            let bytes = format::bytes(ranges.iter().map(|range| range.end - range.start).sum());
            let effect = if in_place {
                "Ekko leaves these bytes of the target as they are"
            } else {
                "so has the restored disk"
            };
            tell(&format!(
                "{name} has zeros in place of {bytes} that could not be read when it was made; {effect}"
            ));
        }
    }
}
