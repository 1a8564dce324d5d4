//! The test for zeros.

use std::ops::Range;

/// The granularity at which zeros inside a segment are left out of a sparse target, in bytes: the
/// block size of the filesystems in use.
pub const ZERO_BLOCK: usize = 4096;

/// Says whether all of `bytes` are zero. Stops at the first block that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (lanes, rest) = bytes.as_chunks::<64>();
    let full = lanes.chunks(64).all(|block| {
        // Folded without an early exit, so that the compiler makes wide loads and ORs of it.
        block.iter().fold(0_u64, |seen, lane| {
            let (words, _) = lane.as_chunks::<8>();
            words.iter().fold(seen, |seen, word| seen | u64::from_ne_bytes(*word))
        }) == 0
    });
    full && rest.iter().all(|byte| *byte == 0)
}

/// Returns the ranges of `bytes`, in whole blocks of [`ZERO_BLOCK`], that are not all zeros, in order.
pub fn data_runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut blocks = bytes.chunks(ZERO_BLOCK);
    let mut position = 0;
    std::iter::from_fn(move || {
        let mut start = None;
        for block in blocks.by_ref() {
            let at = position;
            position += block.len();
            match (is_zero(block), start) {
                (true, Some(start)) => return Some(start..at),
                (false, None) => start = Some(at),
                (true, None) | (false, Some(_)) => {}
            }
        }
        start.map(|start| start..position)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_seen() {
        for length in [0, 1, 63, 64, 65, 4095, 4096, 4097, 3 * 4096 + 17] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{length} {at}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn data_runs_cover_what_is_not_zero_and_join_neighbours() {
        let mut bytes = vec![0; 5 * ZERO_BLOCK + 10];
        bytes[ZERO_BLOCK] = 1;
        bytes[2 * ZERO_BLOCK + 7] = 1;
        bytes[5 * ZERO_BLOCK + 9] = 1;
        let runs: Vec<_> = data_runs(&bytes).collect();
        assert_eq!(runs, [ZERO_BLOCK..3 * ZERO_BLOCK, 5 * ZERO_BLOCK..5 * ZERO_BLOCK + 10]);
        assert_eq!(data_runs(&[0; 100]).count(), 0);
    }
}
