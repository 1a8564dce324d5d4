//! Which segments of a disk are read, and what is believed of the others.

use std::ops::Range;

use crate::image::{ChangeList, RangeState};
use crate::segment::{Geometry, SegmentIndex};

/// What is done about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is read.
    Read,
    /// It is said to be zeros now, and not read.
    Zero,
    /// It is said to be the parent's, and not read.
    Keep,
    /// It is said to be zeros, or the parent's, and is read to see whether that is so.
    Audit {
        /// Whether it is said to be zeros.
        zero: bool,
    },
}

impl Fate {
    fn is_read(self) -> bool {
        matches!(self, Self::Read | Self::Audit { .. })
    }
}

/// How many segments of different fates are given out as one stretch at least: more than are read at once.
const JOINED: u32 = 1024;

/// What is done about each segment of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Where each run of neighbours with one fate ends; the last one ends with the disk.
    runs: Vec<(u32, Fate)>,
}

impl Plan {
    /// Everything is read.
    pub(super) fn full(geometry: Geometry) -> Self {
        Self { runs: vec![(geometry.segments(), Fate::Read)] }
    }

    /// What a list says is to be read is; a segment of which it speaks in part is read whole.
    ///
    /// `size_before` is the size of the parent's disk: what is behind the smaller of both sizes is read.
    pub(super) fn of_list(list: &ChangeList, geometry: Geometry, size_before: Option<u64>) -> Self {
        let size = u64::from(geometry.segment_size().bytes());
        let segments = geometry.segments();
        let index = |at: u64| u32::try_from(at).unwrap_or(u32::MAX).min(segments);
        let otherwise = if list.kind().is_of_changes() { Fate::Keep } else { Fate::Read };
        let mut runs = Runs::default();
        for (range, state) in list.ranges() {
            let outside = index(range.start / size)..index(range.end.div_ceil(size));
            match state {
                RangeState::Unchanged => {}
                RangeState::Data => runs.add(outside, Fate::Read, otherwise),
                RangeState::Zero => {
                    let behind =
                        if range.end == geometry.size_of_disk() { segments } else { index(range.end / size) };
                    let inside = index(range.start.div_ceil(size))..behind;
                    if inside.is_empty() {
                        runs.add(outside, Fate::Read, otherwise);
                    } else {
                        runs.add(outside.start..inside.start, Fate::Read, otherwise);
                        runs.add(inside.clone(), Fate::Zero, otherwise);
                        runs.add(inside.end..outside.end, Fate::Read, otherwise);
                    }
                }
            }
        }
        let plan = Self { runs: runs.finish(segments, otherwise) };
        let smaller =
            size_before.map_or(geometry.size_of_disk(), |before| before.min(geometry.size_of_disk()));
        let differs = size_before.is_some_and(|before| before != geometry.size_of_disk());
        let new = if differs { index(smaller / size)..segments } else { segments..segments };
        // A short last segment is stored even if it is zeros.
        let end = segments.saturating_sub(1);
        let kept = geometry.keeps_zeros(SegmentIndex(end)) && plan.fate(end) == Fate::Zero;
        let short = if kept { end..segments } else { segments..segments };
        plan.with(&[new], |_| Fate::Read).with(&[short], |_| Fate::Read)
    }

    /// Changes what is done about the segments in ranges, which are in order and do not overlap.
    pub(super) fn with(&self, ranges: &[Range<u32>], change: impl Fn(Fate) -> Fate) -> Self {
        let mut runs = Runs::default();
        let mut ranges = ranges.iter().filter(|range| !range.is_empty()).peekable();
        let mut start = 0;
        for &(end, fate) in &self.runs {
            while start < end {
                while ranges.next_if(|range| range.end <= start).is_some() {}
                let (until, fate) = match ranges.peek() {
                    Some(range) if range.start <= start => (range.end.min(end), change(fate)),
                    Some(range) => (range.start.min(end), fate),
                    None => (end, fate),
                };
                runs.add(start..until, fate, fate);
                start = until;
            }
        }
        Self { runs: runs.runs }
    }

    /// Has so many segments from `first` on read that would not be, going on from the beginning behind the last one.
    pub(super) fn audited(&self, first: u32, count: u32) -> Self {
        let segments = self.runs.last().map_or(0, |(end, _)| *end);
        let count = count.min(segments);
        let to_end = count.min(segments.saturating_sub(first));
        let ranges = [0..count - to_end, first..first + to_end];
        self.with(&ranges, |fate| match fate {
            Fate::Zero => Fate::Audit { zero: true },
            Fate::Keep => Fate::Audit { zero: false },
            read => read,
        })
    }

    /// Returns what is done about one segment.
    pub(super) fn fate(&self, segment: u32) -> Fate {
        let at = self.runs.partition_point(|(end, _)| *end <= segment);
        self.runs.get(at).map_or(Fate::Read, |(_, fate)| *fate)
    }

    /// Returns the runs in a range, in order.
    pub(super) fn runs(&self, range: Range<u32>) -> impl Iterator<Item = (Range<u32>, Fate)> + '_ {
        let first = self.runs.partition_point(|(end, _)| *end <= range.start);
        let mut start = range.start;
        let runs = self.runs.get(first..).unwrap_or_default().iter();
        runs.map_while(move |&(end, fate)| {
            let run = start..end.min(range.end);
            start = run.end;
            (!run.is_empty()).then_some((run, fate))
        })
    }

    /// Returns the next segments that are read, from `from` on; of a long stretch of changing fates, the beginning.
    pub(super) fn next_read(&self, from: u32) -> Option<Range<u32>> {
        let mut found: Option<Range<u32>> = None;
        for (run, fate) in self.runs(from..u32::MAX) {
            match &mut found {
                Some(found) if fate.is_read() && found.end - found.start < JOINED => found.end = run.end,
                Some(_) => break,
                None if fate.is_read() => found = Some(run),
                None => {}
            }
        }
        found
    }

    /// Returns how many segments are read.
    pub(super) fn reads(&self) -> u64 {
        let reads = self.runs(0..u32::MAX).filter(|(_, fate)| fate.is_read());
        reads.map(|(run, _)| u64::from(run.end - run.start)).sum()
    }

    /// Returns how many segments are read to see whether what is said of them is so.
    pub(super) fn audits(&self) -> u64 {
        let audits = self.runs(0..u32::MAX).filter(|(_, fate)| matches!(fate, Fate::Audit { .. }));
        audits.map(|(run, _)| u64::from(run.end - run.start)).sum()
    }
}

/// Runs under construction.
#[derive(Debug, Default)]
struct Runs {
    runs: Vec<(u32, Fate)>,
    end: u32,
}

impl Runs {
    /// Adds a run behind the others; what lies between becomes `otherwise`, and what was added already stays.
    fn add(&mut self, range: Range<u32>, fate: Fate, otherwise: Fate) {
        if range.end <= self.end {
            return;
        }
        if range.start > self.end {
            self.push(range.start, otherwise);
        }
        self.push(range.end, fate);
    }

    fn push(&mut self, end: u32, fate: Fate) {
        match self.runs.last_mut() {
            Some((last, same)) if *same == fate => *last = end,
            _ => self.runs.push((end, fate)),
        }
        self.end = end;
    }

    fn finish(mut self, segments: u32, otherwise: Fate) -> Vec<(u32, Fate)> {
        if self.end < segments {
            self.push(segments, otherwise);
        }
        self.runs
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "one range is a list of ranges")]

    use super::*;
    use crate::segment::SegmentSize;

    const K: u64 = 64 << 10;

    fn geometry(size: u64) -> Geometry {
        Geometry::new(size, SegmentSize::new(K).unwrap()).unwrap()
    }

    fn plan(ranges: &[(u64, u64, bool)], size: u64, before: u64) -> String {
        let items = ranges.iter().map(|(offset, length, exists)| {
            format!(r#"{{"offset":{offset},"length":{length},"exists":{exists}}}"#)
        });
        let text = format!("[{}]", items.collect::<Vec<_>>().join(","));
        let list = ChangeList::parse(text.as_bytes(), size).unwrap();
        shown(&Plan::of_list(&list, geometry(size), Some(before)))
    }

    /// A letter a segment.
    fn shown(plan: &Plan) -> String {
        let letter = |fate| match fate {
            Fate::Read => 'r',
            Fate::Zero => 'z',
            Fate::Keep => '.',
            Fate::Audit { zero: true } => 'Z',
            Fate::Audit { zero: false } => 'A',
        };
        let runs: Vec<_> = plan.runs(0..u32::MAX).collect();
        for pair in runs.windows(2) {
            assert!(pair[0].0.end == pair[1].0.start && pair[0].1 != pair[1].1, "{runs:?}");
        }
        let segments = runs.last().map_or(0, |(run, _)| run.end);
        let text: String = (0..segments).map(|segment| letter(plan.fate(segment))).collect();
        let again = runs.iter().flat_map(|(run, fate)| run.clone().map(|_| letter(*fate)));
        assert_eq!(again.collect::<String>(), text);
        text
    }

    #[test]
    fn ranges_are_rounded_outwards_to_segments_and_zeros_inwards() {
        let size = 10 * K;
        assert_eq!(plan(&[], size, size), "..........");
        assert_eq!(plan(&[(K, K, true), (5 * K - 1, 2, true)], size, size), ".r..rr....");
        assert_eq!(plan(&[(K, 3 * K, false)], size, size), ".zzz......");
        assert_eq!(plan(&[(K + 1, 3 * K, false)], size, size), ".rzzr.....");
        assert_eq!(plan(&[(K + 1, 5, false), (7 * K, 3 * K, false)], size, size), ".r.....zzz");
        // A segment that is zeros in part and data in part.
        assert_eq!(
            plan(&[(0, K + 5, false), (K + 5, 1, true), (K + 6, 2 * K, false)], size, size),
            "zrzr......"
        );
        assert_eq!(plan(&[(0, 5, true), (6, 5, true), (K - 1, 1, false)], size, size), "r.........");
    }

    #[test]
    fn ends_of_disks_are_read_where_they_moved() {
        let size = 3 * K + 9;
        // Short, so it is stored even if it is zeros.
        assert_eq!(plan(&[(0, size, false)], size, size), "zzzr");
        assert_eq!(plan(&[], size, size), "....");
        assert_eq!(plan(&[], size, size - 1), "...r");
        assert_eq!(plan(&[], size, K + 1), ".rrr");
        assert_eq!(plan(&[], size, 10 * K), "...r");
        assert_eq!(plan(&[], 3 * K, 10 * K), "...");
        assert_eq!(plan(&[], 3 * K, 0), "rrr");
        assert_eq!(plan(&[], 0, K), "");
    }

    #[test]
    fn audits_go_round_and_come_to_every_segment() {
        let size = 10 * K;
        let list = ChangeList::parse(br#"[{"offset":65536,"length":131072,"exists":false}]"#, size).unwrap();
        let plan = Plan::of_list(&list, geometry(size), Some(size)).with(&[4..5], |_| Fate::Read);
        assert_eq!(shown(&plan), ".zz.r.....");
        assert_eq!(shown(&plan.audited(8, 4)), "AZz.r...AA");
        assert_eq!(shown(&plan.audited(2, 4)), ".zZArA....");
        assert_eq!(shown(&plan.audited(0, 99)), "AZZArAAAAA");
        assert_eq!((plan.audited(2, 4).audits(), plan.audits()), (3, 0));
        for (segments, count) in [(1000, 10), (1001, 11), (64, 10), (7, 10)] {
            let mut turns = vec![0; segments as usize];
            let keep = Plan { runs: vec![(segments, Fate::Keep)] };
            let mut cursor = 0;
            for _ in 0..segments.div_ceil(count) {
                for (run, fate) in keep.audited(cursor, count).runs(0..segments) {
                    if fate != Fate::Keep {
                        run.for_each(|segment| turns[segment as usize] += 1);
                    }
                }
                cursor = (cursor + count) % segments;
            }
            assert!(turns.iter().all(|turns| *turns > 0), "{segments} {count}");
        }
    }

    #[test]
    fn what_is_read_next_is_all_of_it() {
        let keep = Plan { runs: vec![(10, Fate::Keep)] };
        let plan = keep.with(&[2..4, 7..10], |_| Fate::Read).audited(4, 1);
        assert_eq!(shown(&plan), "..rrA..rrr");
        assert_eq!(plan.next_read(0), Some(2..5));
        assert_eq!(plan.next_read(3), Some(3..5));
        assert_eq!(plan.next_read(5), Some(7..10));
        assert_eq!(plan.next_read(10), None);
    }
}
