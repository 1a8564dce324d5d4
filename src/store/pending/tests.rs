//! Claims beside each other, beside the index, and beside a collection.

use super::*;
use std::cell::Cell;
use std::convert::Infallible;

fn identity(of: &[u8]) -> Identity {
    Identity { fingerprint: Fingerprint::of(of), plain_length: 1 }
}

fn indexed(stored: &[(Twin, Identity)]) -> Vec<Indexed> {
    let indexed = |(twin, identity): &(Twin, Identity)| Indexed {
        twin: *twin,
        identity: Some(*identity),
        lost: false,
        at_zero: false,
        unfinished: false,
    };
    stored.iter().map(indexed).collect()
}

fn claim(pending: &Pending, of: &[u8], stored: &[(Twin, Identity)]) -> Claimed {
    pending.claim(SegmentHash::of(b"same"), identity(of), || Ok::<_, Infallible>(indexed(stored))).unwrap()
}

#[test]
fn different_segments_with_one_sha1_get_twin_numbers() {
    let pending = Pending::default();
    assert_eq!(claim(&pending, b"a", &[]), Claimed::New(Twin(0)));
    assert_eq!(claim(&pending, b"a", &[]), Claimed::Known(Twin(0)));
    assert_eq!(claim(&pending, b"b", &[]), Claimed::New(Twin(1)));
    assert_eq!(claim(&pending, b"c", &[(Twin(4), identity(b"d"))]), Claimed::New(Twin(5)));
    assert_eq!(claim(&pending, b"d", &[(Twin(4), identity(b"d"))]), Claimed::Known(Twin(4)));
    assert_eq!(claim(&pending, b"e", &[(Twin(u16::MAX), identity(b"f"))]), Claimed::Full);
}

#[test]
fn a_segment_that_moves_into_the_index_during_a_claim_is_found() {
    let pending = Pending::default();
    let key = SegmentKey { hash: SegmentHash::of(b"same"), twin: Twin(0) };
    let looks = Cell::new(0);
    let claimed = pending.claim(key.hash, identity(b"a"), || {
        looks.set(looks.get() + 1);
        if looks.get() == 1 {
            // Behind this look's back another worker stores it, and it is flushed.
            assert_eq!(claim(&pending, b"a", &[]), Claimed::New(Twin(0)));
            pending.drain(std::iter::once(key));
            Ok::<_, Infallible>(Vec::new())
        } else {
            Ok(indexed(&[(Twin(0), identity(b"a"))]))
        }
    });
    assert_eq!(claimed, Ok(Claimed::Known(Twin(0))));
}

const KEY: SegmentKey = SegmentKey { hash: SegmentHash::from_bytes([7; 20]), twin: Twin(0) };

fn find_at_zero(pending: &Pending) -> Claimed {
    let found = Indexed {
        twin: KEY.twin,
        identity: Some(identity(b"a")),
        lost: false,
        at_zero: true,
        unfinished: false,
    };
    pending.claim(KEY.hash, identity(b"a"), || Ok::<_, Infallible>(vec![found])).unwrap()
}

#[test]
fn what_a_running_backup_found_is_not_freed_and_is_freed_after_it() {
    let pending = Pending::default();
    pending.set_generation(5);
    let (job, _) = pending.begin_job();
    assert_eq!(find_at_zero(&pending), Claimed::Known(Twin(0)));
    pending.set_generation(9);
    let before = pending.horizon().generation;
    assert_eq!(before, 5, "nothing that the backup can have found");
    assert_eq!(pending.begin_dying(vec![KEY], before, |key| *key), []);
    pending.end_dying();
    pending.end_job(job);
    let before = pending.horizon().generation;
    assert_eq!(pending.begin_dying(vec![KEY], before, |key| *key), [KEY]);
}

#[test]
fn while_more_is_found_than_is_kept_track_of_nothing_is_freed() {
    let pending = Pending::default();
    let (job, _) = pending.begin_job();
    let key = |number: u8| SegmentKey { hash: SegmentHash::from_bytes([number; 20]), twin: Twin(0) };
    for number in 0..=u8::try_from(TOUCHED).unwrap() {
        assert!(pending.touch(key(number), 0));
    }
    let before = pending.horizon().generation;
    assert_eq!(pending.begin_dying(vec![key(100)], before, |key| *key), []);
    pending.end_dying();
    pending.end_job(job);
    let before = pending.horizon().generation;
    assert_eq!(pending.begin_dying(vec![key(100)], before, |key| *key), [key(100)]);
}

#[test]
fn who_finds_what_is_dying_waits_and_stores_it_anew() {
    let pending = Pending::default();
    pending.set_generation(2);
    assert_eq!(pending.begin_dying(vec![KEY], 2, |key| *key), [KEY]);
    let gone = std::sync::atomic::AtomicBool::new(false);
    let (looked, looking) = crossbeam_channel::unbounded();
    std::thread::scope(|scope| {
        let (pending, gone) = (&pending, &gone);
        let claimed = scope.spawn(move || {
            pending.claim(KEY.hash, identity(b"a"), || {
                let found = Indexed {
                    twin: KEY.twin,
                    identity: Some(identity(b"a")),
                    lost: false,
                    at_zero: true,
                    unfinished: false,
                };
                let there = !gone.load(Ordering::Acquire);
                looked.send(()).unwrap();
                Ok::<_, Infallible>(there.then_some(found).into_iter().collect())
            })
        });
        // It has found what is dying by then.
        looking.recv().unwrap();
        gone.store(true, Ordering::Release);
        pending.end_dying();
        assert_eq!(claimed.join().unwrap(), Ok(Claimed::New(Twin(0))));
    });
}

#[test]
fn a_lost_segment_is_healed_under_its_own_twin_number() {
    let pending = Pending::default();
    let lost = Indexed { twin: Twin(0), identity: None, lost: true, at_zero: false, unfinished: false };
    let damaged = Indexed {
        twin: Twin(3),
        identity: Some(identity(b"had")),
        lost: true,
        at_zero: false,
        unfinished: false,
    };
    let other = Indexed {
        twin: Twin(1),
        identity: Some(identity(b"other")),
        lost: false,
        at_zero: false,
        unfinished: false,
    };
    let claim = |of: &[u8]| {
        pending.claim(KEY.hash, identity(of), || Ok::<_, Infallible>(vec![damaged, lost, other])).unwrap()
    };
    assert_eq!(claim(b"a"), Claimed::New(Twin(0)));
    assert_eq!(claim(b"b"), Claimed::New(Twin(4)), "not in place of the one that had other bytes");
    assert_eq!(claim(b"had"), Claimed::New(Twin(3)));
    assert_eq!(claim(b"other"), Claimed::Known(Twin(1)));
}
