//! The random work of `tests/model.rs`, with steps that the fuzzer chooses.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/world/mod.rs"]
mod world;
mod shared;

use libfuzzer_sys::fuzz_target;

/// More steps only make a run slow.
const STEPS: usize = 48;

fuzz_target!(
    init: shared::pass_over_panics_of_sled(),
    |data: &[u8]| {
        let (steps, _) = data.as_chunks::<5>();
        let step = |bytes: &[u8; 5]| {
            let [what, image, place, low, high] = *bytes;
            (what, image, place, u16::from_le_bytes([low, high]))
        };
        world::holds(&steps.iter().take(STEPS).map(step).collect::<Vec<_>>());
    }
);
