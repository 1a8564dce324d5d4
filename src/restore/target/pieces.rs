//! Ranges of a disk that a restore in place treats in another way than the rest.

use std::ops::Range;

/// Cuts a range where others begin and end, which are in order and do not overlap. Says of each piece whether it lies in one of them.
pub(super) fn cut(range: &Range<u64>, others: &[Range<u64>]) -> Vec<(Range<u64>, bool)> {
    let mut pieces = Vec::new();
    let mut at = range.start;
    let first = others.partition_point(|other| other.end <= range.start);
    for other in others.iter().skip(first).take_while(|other| other.start < range.end) {
        let start = other.start.max(at);
        if at < start {
            pieces.push((at..start, false));
        }
        at = other.end.min(range.end);
        pieces.push((start..at, true));
    }
    if at < range.end {
        pieces.push((at..range.end, false));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_others_begin_and_end() {
        let others = [10..20, 20..25, 40..50];
        let cut = |range: Range<u64>| cut(&range, &others);
        assert_eq!(cut(0..5), [(0..5, false)]);
        assert_eq!(cut(25..40), [(25..40, false)]);
        assert_eq!(cut(12..18), [(12..18, true)]);
        assert_eq!(cut(5..22), [(5..10, false), (10..20, true), (20..22, true)]);
        assert_eq!(cut(30..60), [(30..40, false), (40..50, true), (50..60, false)]);
        assert_eq!(cut(10..10), []);
    }
}
