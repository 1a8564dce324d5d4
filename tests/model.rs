//! 10,000 random steps of work on repositories in `world`, which says what must hold.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod common;
mod world;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::Noise;
use quickcheck::QuickCheck;
use world::{Step, holds};

#[test]
fn random_work_gives_every_backup_back_and_counts_as_the_model_does() {
    static STEPS: AtomicUsize = AtomicUsize::new(0);
    #[expect(clippy::needless_pass_by_value, reason = "as quickcheck hands it over")]
    fn hold(steps: Vec<Step>) -> bool {
        STEPS.fetch_add(steps.len(), Ordering::Relaxed);
        holds(&steps);
        true
    }
    while STEPS.load(Ordering::Relaxed) < 10_000 {
        QuickCheck::new().tests(10).quickcheck(hold as fn(Vec<Step>) -> bool);
    }
}

#[test]
fn every_kind_of_step_is_taken_at_least_once() {
    let steps = (0..400_u16).map(|n| {
        let mut noise = Noise::new(u64::from(n) + 99);
        (noise.byte(), noise.byte(), noise.byte(), n)
    });
    holds(&steps.collect::<Vec<_>>());
}
