//! SHA-1 of several segments of one length at once, with the SHA instructions of x86 processors.
//!
//! Each step of SHA-1 waits for the one before, and these instructions take several cycles each, while the processor
//! could begin another one much sooner. Steps of other segments fill the gap: on a Zen 4 two segments side by side take
//! 1.17 times as long as one, three 1.53 times (`cargo bench --bench parts`). No crate that we know of does this for SHA-1.
//!
//! The algorithm is FIPS 180-4, its steps are those of Intel's "SHA Extensions" (2013): four rounds an instruction. Unit
//! tests compare every result with the `sha1` crate, which also checks what is read back from a repository.
#![expect(
    unsafe_code,
    reason = "a function that needs instructions which not every processor has can't be called safely"
)]

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_extract_epi32, _mm_set_epi8, _mm_set_epi32, _mm_set_epi64x,
    _mm_sha1msg1_epu32, _mm_sha1msg2_epu32, _mm_sha1nexte_epu32, _mm_sha1rnds4_epu32, _mm_shuffle_epi8,
    _mm_xor_si128,
};

/// A block of SHA-1 in bytes.
const BLOCK: usize = 64;

/// Returns the SHA-1 of each of these bytes, which are of one length; nothing if they are not, or if the processor has no
/// such instructions.
pub(super) fn digests<const N: usize>(plains: &[&[u8]; N]) -> Option<[[u8; 20]; N]> {
    let first = plains.first()?;
    if plains.iter().any(|plain| plain.len() != first.len()) {
        return None;
    }
    let able = is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1");
    // SAFETY: what the function needs of the processor is what was just asked for.
    able.then(|| unsafe { digests_here(plains) })
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
fn digests_here<const N: usize>(plains: &[&[u8]; N]) -> [[u8; 20]; N] {
    let mut lanes = [Lane::new(); N];
    let blocks = plains.map(|plain| plain.as_chunks::<BLOCK>());
    let whole = blocks.map(|(whole, _)| whole);
    compress(&mut lanes, &whole);
    // What is left of each, a bit, zeros and the length in bits fill one more block, or two.
    let mut padded = [[[0; BLOCK]; 2]; N];
    let mut used = 1;
    for (padded, (plain, (_, left))) in padded.iter_mut().zip(plains.iter().zip(&blocks)) {
        let padded = padded.as_flattened_mut();
        let end = left.iter().chain(&[0x80]);
        padded.iter_mut().zip(end).for_each(|(byte, from)| *byte = *from);
        used = if left.len() + 1 + 8 > BLOCK { 2 } else { 1 };
        let bits = (plain.len() as u64 * 8).to_be_bytes();
        let behind = padded.iter_mut().take(used * BLOCK).rev();
        behind.zip(bits.iter().rev()).for_each(|(byte, from)| *byte = *from);
    }
    let last = padded.each_ref().map(|padded| padded.get(..used).unwrap_or_default());
    compress(&mut lanes, &last);
    lanes.map(|lane| lane.digest())
}

/// Goes on with as many blocks as each lane has; all have as many.
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn compress<const N: usize>(lanes: &mut [Lane; N], blocks: &[&[[u8; BLOCK]]; N]) {
    let mut left = blocks.map(<[_]>::iter);
    loop {
        let mut round = *lanes;
        for (lane, left) in round.iter_mut().zip(&mut left) {
            let Some(block) = left.next() else { return };
            lane.load(block);
        }
        // Each step is taken in all lanes before the next one: so none waits for the step before.
        for lane in &mut round {
            lane.first();
        }
        for _ in 1..5 {
            for lane in &mut round {
                lane.step::<0>();
            }
        }
        for _ in 5..10 {
            for lane in &mut round {
                lane.step::<1>();
            }
        }
        for _ in 10..15 {
            for lane in &mut round {
                lane.step::<2>();
            }
        }
        for lane in &mut round {
            lane.step::<3>();
        }
        for _ in 16..20 {
            for lane in &mut round {
                lane.last_step();
            }
        }
        for (lane, round) in lanes.iter_mut().zip(&round) {
            lane.e = _mm_sha1nexte_epu32(round.e, lane.e);
            lane.abcd = _mm_add_epi32(round.abcd, lane.abcd);
        }
    }
}

/// What SHA-1 of one segment has come to.
#[derive(Clone, Copy, Debug)]
struct Lane {
    /// The words A to D, the first the highest.
    abcd: __m128i,
    /// The word E, the highest; within a block, what it is made from: the words four rounds ago.
    e: __m128i,
    /// The next 16 words of the message schedule, the first the highest.
    words: [__m128i; 4],
}

impl Lane {
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn new() -> Self {
        let zero = _mm_set_epi64x(0, 0);
        Self {
            abcd: words([0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]),
            e: words([0xc3d2_e1f0, 0, 0, 0]),
            words: [zero; 4],
        }
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn load(&mut self, block: &[u8; BLOCK]) {
        // All bytes the other way round.
        let order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let (parts, _) = block.as_chunks::<16>();
        for (words, part) in self.words.iter_mut().zip(parts) {
            let [low, high] = halves(part);
            *words = _mm_shuffle_epi8(_mm_set_epi64x(high, low), order);
        }
    }

    /// Takes the first four rounds.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn first(&mut self) {
        let [now, ..] = self.words;
        let input = _mm_add_epi32(self.e, now);
        self.rounds::<0>(input);
        self.schedule();
    }

    /// Takes four rounds, with the constant and the function of that quarter.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn step<const QUARTER: i32>(&mut self) {
        let [now, ..] = self.words;
        let input = _mm_sha1nexte_epu32(self.e, now);
        self.rounds::<QUARTER>(input);
        self.schedule();
    }

    /// Takes four of the last sixteen rounds, whose words are there.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn last_step(&mut self) {
        let [now, second, third, fourth] = self.words;
        let input = _mm_sha1nexte_epu32(self.e, now);
        self.rounds::<3>(input);
        self.words = [second, third, fourth, now];
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn rounds<const QUARTER: i32>(&mut self, input: __m128i) {
        let before = self.abcd;
        self.abcd = _mm_sha1rnds4_epu32::<QUARTER>(before, input);
        self.e = before;
    }

    /// Makes the words that come 16 after the first four of those that are there.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn schedule(&mut self) {
        let [first, second, third, fourth] = self.words;
        let mixed = _mm_xor_si128(_mm_sha1msg1_epu32(first, second), third);
        self.words = [second, third, fourth, _mm_sha1msg2_epu32(mixed, fourth)];
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn digest(self) -> [u8; 20] {
        let words = [
            _mm_extract_epi32::<3>(self.abcd),
            _mm_extract_epi32::<2>(self.abcd),
            _mm_extract_epi32::<1>(self.abcd),
            _mm_extract_epi32::<0>(self.abcd),
            _mm_extract_epi32::<3>(self.e),
        ];
        let mut digest = [0; 20];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_be_bytes();
        }
        digest
    }
}

/// Puts four words together, the first the highest.
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn words([a, b, c, d]: [u32; 4]) -> __m128i {
    _mm_set_epi32(a.cast_signed(), b.cast_signed(), c.cast_signed(), d.cast_signed())
}

/// Reads 16 bytes as two numbers.
fn halves(bytes: &[u8; 16]) -> [i64; 2] {
    let (halves, _) = bytes.as_chunks::<8>();
    let [low, high] = halves else { return [0; 2] };
    [i64::from_le_bytes(*low), i64::from_le_bytes(*high)]
}
