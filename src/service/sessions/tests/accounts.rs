//! What sessions count in their project's quota, and who gets a place.

use crate::api::SourceFlaws;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::api::Refusal;
use crate::api::frames::Entry;
use crate::manifest::Incremental;
use crate::progress::Silent;
use crate::repository::{
    Deletion, GcOptions, InitOptions, OpenOptions, Repository, RepositoryWriter, SharedWriter,
};
use crate::segment::{SegmentIndex, SegmentSize};
use crate::service::sessions::receive::Received;
use crate::service::sessions::session::Session;
use crate::service::sessions::tests::{SIZE, World, caller, entry, frame, new, question, segment};
use crate::service::sessions::{begin, commit, commit_named, extend, give_up, lacking, receive};
use crate::service::{App, Caller, Limits, QuotaSettings, Refused, ServiceSettings};
use crate::storage::{FaultPlan, FaultStorage, Storage};

/// Room for a few small manifests.
const MANIFESTS: u64 = 8 << 10;

fn with_quota(bytes: u64) -> World {
    let projects = [("blue".parse().unwrap(), bytes)].into();
    World::with(ServiceSettings {
        quotas: QuotaSettings { default: None, projects },
        ..ServiceSettings::default()
    })
}

fn limited(limits: Limits) -> World {
    World::with(ServiceSettings { limits, ..ServiceSettings::default() })
}

fn empty_backup(world: &World, caller: &Caller, name: &str) -> Result<(), Refused> {
    let state = begin(world.app(), caller, &new(name, 0))?;
    let session = world.app().sessions().find(caller, &state.session)?;
    commit(world.app(), caller, &session, 0, &SourceFlaws::default()).map(drop)
}

fn send(world: &World, session: &Session, numbers: std::ops::Range<u32>) -> Result<(), Refused> {
    let frames: Vec<_> = numbers.map(|number| frame(&segment(number))).collect();
    receive(world.app(), session, &frames)
}

fn name_all(world: &World, session: &Session, numbers: std::ops::Range<u32>) -> Result<(), Refused> {
    let entries: Vec<_> = (0..).zip(numbers).map(|(at, number)| entry(at, &segment(number))).collect();
    extend(world.app(), session, 0, &entries)
}

#[test]
fn a_backup_that_goes_on_after_a_break_counts_once() {
    let world = with_quota(10 * SIZE as u64 + MANIFESTS);
    let blue = caller("blue");
    for end in [3, 6] {
        let session = world.begin(&blue, "web", 8);
        send(&world, &session, end - 3..end).unwrap();
        // Named, and sent once more because the answer was lost.
        send(&world, &session, end - 3..end).unwrap();
        name_all(&world, &session, 0..end).unwrap();
        give_up(world.app(), &session);
    }
    // Another image has what is left, and no more.
    let other = world.begin(&blue, "db", 8);
    send(&world, &other, 10..12).unwrap();
    let session = world.begin(&blue, "web", 8);
    send(&world, &session, 6..8).unwrap();
    assert_eq!(send(&world, &other, 12..13).unwrap_err().refusal(), Refusal::QuotaExceeded);
    name_all(&world, &session, 0..8).unwrap();
    commit(world.app(), &blue, &session, 1, &SourceFlaws::default()).unwrap();
    name_all(&world, &other, 10..12).unwrap();
    commit(world.app(), &blue, &other, 1, &SourceFlaws::default()).unwrap();
    // Nothing counts any longer for what was given up.
    let session = world.begin(&blue, "web", 8);
    assert_eq!(send(&world, &session, 20..21).unwrap_err().refusal(), Refusal::QuotaExceeded);
    let (sets, _) = blue.view.sets(world.app().repository()).unwrap();
    let db = sets.iter().find(|set| set.name.as_str() == "blue:db").unwrap();
    let backup = Deletion { backupset: db.id, incremental: Incremental(0) };
    world.app().writer().with(|writer| writer.delete(backup)).unwrap();
    give_up(world.app(), &session);
    let session = world.begin(&blue, "web", 8);
    send(&world, &session, 20..22).unwrap();
}

#[test]
fn the_manifests_of_unchanged_disks_count() {
    const PLACES: u32 = 2000;
    let world = with_quota(u64::from(PLACES) * SIZE as u64 + 100_000);
    let blue = caller("blue");
    let session = world.begin(&blue, "web", u64::from(PLACES));
    send(&world, &session, 0..1).unwrap();
    let entries: Vec<_> = (0..PLACES).map(|at| entry(at, &segment(0))).collect();
    extend(world.app(), &session, 0, &entries).unwrap();
    commit(world.app(), &blue, &session, 1, &SourceFlaws::default()).unwrap();
    let unchanged = || {
        let session = world.begin(&blue, "web", u64::from(PLACES));
        let kept = Entry::Kept { first: SegmentIndex(0), count: PLACES };
        extend(world.app(), &session, 0, &[kept]).unwrap();
        commit(world.app(), &blue, &session, 1, &SourceFlaws::default())
    };
    // Each manifest has 20 bytes for each place.
    unchanged().unwrap();
    let refused = unchanged().unwrap_err();
    assert_eq!(refused.refusal(), Refusal::QuotaExceeded);
}

#[test]
fn names_without_a_backup_do_not_count_and_a_name_counts_again_with_its_next_backup() {
    let world = limited(Limits { names_per_project: 2, ..Limits::default() });
    let blue = caller("blue");
    let refusal = |name: &str| empty_backup(&world, &blue, name).map_err(|it| it.refusal());
    for name in ["web", "db"] {
        assert_eq!(refusal(name), Ok(()));
    }
    let (sets, _) = blue.view.sets(world.app().repository()).unwrap();
    for set in &sets {
        let backup = Deletion { backupset: set.id, incremental: Incremental(0) };
        world.app().writer().with(|writer| writer.delete(backup)).unwrap();
    }
    assert_eq!(refusal("mail"), Err(Refusal::QuotaExceeded), "they can still be undeleted");
    world
        .app()
        .writer()
        .with(|writer| writer.gc(&GcOptions { now: Some(""), ..GcOptions::default() }, &Silent))
        .unwrap();
    assert_eq!(refusal("mail"), Ok(()));
    let growing = world.begin(&blue, "web", 0);
    assert_eq!(refusal("db"), Err(Refusal::QuotaExceeded), "its first backup is being made");
    give_up(world.app(), &growing);
    assert_eq!(refusal("db"), Ok(()));
    for name in ["web", "post"] {
        assert_eq!(refusal(name), Err(Refusal::QuotaExceeded), "{name}");
    }
    assert_eq!(refusal("db"), Ok(()));
}

#[test]
fn a_caller_who_comes_late_gets_a_session_whatever_others_hold() {
    let world = limited(Limits { sessions: 8, sessions_each: 4, ..Limits::default() });
    let mut sessions = Vec::new();
    let mut all = |who: &str| {
        let caller = Caller { who: who.to_owned(), ..caller("blue") };
        let mut number = 0;
        loop {
            match begin(world.app(), &caller, &new(&format!("{who}-{number}"), 1)) {
                Ok(state) => sessions.push((caller.clone(), state.session)),
                Err(refused) => {
                    assert_eq!(refused.refusal(), Refusal::TooMany);
                    assert!(refused.answer("id").headers().contains_key("retry-after"));
                    return number;
                }
            }
            number += 1;
        }
    };
    let held: Vec<_> = ["a", "b", "c", "d"].into_iter().map(&mut all).collect();
    assert_eq!(held, [4, 2, 1, 1]);
    // There is no place left: the session of whoever holds the most ends of which nothing was heard for longest.
    assert_eq!(all("e"), 1);
    let is_there = |(caller, id): &(Caller, String)| world.app().sessions().find(caller, id).is_ok();
    let there: Vec<_> = sessions.iter().map(is_there).collect();
    assert_eq!(there, [false, true, true, true, true, true, true, true, true]);
    // What ended is given up in order: its client may begin again when there is a place.
    assert_eq!(world.app().sessions().count(), 8);
    let a = &sessions[0].0;
    assert_eq!(begin(world.app(), a, &new("a-0", 1)).unwrap_err().refusal(), Refusal::TooMany);
    for (caller, id) in &sessions[4..6] {
        give_up(world.app(), &world.app().sessions().find(caller, id).unwrap());
    }
    begin(world.app(), &Caller { who: "f".to_owned(), ..caller("red") }, &new("f", 1)).unwrap();
}

#[test]
fn places_are_not_given_twice_to_those_who_ask_at_once() {
    let world = limited(Limits { sessions: 3, sessions_each: 2, ..Limits::default() });
    let began = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (world, began) = (&world, &began);
            scope.spawn(move || {
                if begin(world.app(), &caller("blue"), &new(&format!("vm{number}"), 1)).is_ok() {
                    began.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
                }
            });
        }
    });
    assert_eq!((began.into_inner(), world.app().sessions().count()), (2, 2));
}

#[test]
fn who_meets_a_disk_that_another_filled_is_to_ask_again() {
    let world = World::new();
    let blue = caller("blue");
    let (one, two) = (world.begin(&blue, "web", 1), world.begin(&blue, "db", 1));
    send(&world, &one, 0..1).unwrap();
    name_all(&world, &one, 0..1).unwrap();
    world
        .app()
        .writer()
        .with(|writer| {
            writer.store().poison("another backup found the disk full", true, false);
            Ok(())
        })
        .unwrap();
    for refused in [
        send(&world, &two, 1..2).unwrap_err(),
        commit(world.app(), &blue, &one, 1, &SourceFlaws::default()).map(drop).unwrap_err(),
    ] {
        assert_eq!(refused.refusal(), Refusal::Unavailable, "{}", refused.for_the_log());
        assert!(refused.answer("id").headers().contains_key("retry-after"));
    }
}

/// A service on a disk that fails as planned.
fn faulty(plan: FaultPlan, stays: bool) -> (World, FaultStorage) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let segment_size = SegmentSize::new(SIZE as u64).unwrap();
    Repository::init(&path, &InitOptions { segment_size, ..InitOptions::default() }).unwrap();
    let faults = FaultStorage::new(folder.path(), plan).unwrap();
    let storage = Arc::new(faults.clone()) as Arc<dyn Storage>;
    let writer = RepositoryWriter::open_with(&storage, &path, &OpenOptions::default(), &Silent).unwrap();
    let writer = SharedWriter::new(writer);
    let writer = if stays { writer.staying().unwrap() } else { writer };
    let app = Some(App::new(writer, ServiceSettings::default()).unwrap());
    (World { folder, app }, faults)
}

/// Two sessions of which the first has sent a segment, on a disk that is full at one operation, if any.
fn two_sessions(full_at: Option<u64>, stays: bool) -> (World, [Arc<Session>; 2], FaultStorage) {
    let error = std::io::ErrorKind::StorageFull;
    let plan = full_at.map_or(FaultPlan::Count, |at| FaultPlan::Fail { at, error });
    let (world, faults) = faulty(plan, stays);
    let sessions = ["web", "db"].map(|name| world.begin(&caller("blue"), name, 100));
    send(&world, &sessions[0], 0..1).unwrap();
    world.app().writer().with(|writer| Ok(writer.store().flush()?)).unwrap();
    (world, sessions, faults)
}

/// A segment that does not get smaller.
fn noise(seed: u64) -> Received {
    let mut state = seed + 1;
    let byte = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    };
    frame(&(0..SIZE).map(byte).collect::<Vec<_>>())
}

#[test]
fn whose_segments_found_the_disk_full_is_told_so_and_others_are_to_ask_again() {
    let begun = two_sessions(None, false).2.operations();
    for (stays, is_written_by_a_flush) in [(false, false), (false, true), (true, false), (true, true)] {
        let (world, [fills, other], _) = two_sessions(Some(begun), stays);
        let writer = || world.app().writer();
        // What is sent is written behind the request's back, at once or when a commit, perhaps another's, has it flushed.
        if is_written_by_a_flush {
            send(&world, &fills, 1..2).unwrap();
            assert!(writer().with(|writer| Ok(writer.store().flush()?)).is_err());
        } else {
            let _ = receive(world.app(), &fills, &(0..40).map(noise).collect::<Vec<_>>());
            let deadline = Instant::now() + Duration::from_mins(1);
            while writer().try_with(|writer| Ok(writer.store().check()?)).is_ok() {
                assert!(Instant::now() < deadline, "nothing was written");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let refused = send(&world, &other, 2..3).unwrap_err();
        // A service has opened the repository again by now, and its client begins again.
        let again = if stays { Refusal::Gone } else { Refusal::Unavailable };
        assert_eq!(refused.refusal(), again, "{}", refused.for_the_log());
        let refused = send(&world, &fills, 2..3).unwrap_err();
        assert_eq!(refused.refusal(), Refusal::QuotaExceeded, "{}", refused.for_the_log());
    }
}

#[test]
fn manifests_without_a_segment_are_opened_once() {
    let world = World::new();
    let blue = caller("blue");
    for number in 0..5 {
        // Zeros, and nothing at all.
        let session = world.begin(&blue, &format!("zeros{number}"), 2);
        commit(world.app(), &blue, &session, 0, &SourceFlaws::default()).unwrap();
        empty_backup(&world, &blue, &format!("empty{number}")).unwrap();
    }
    world.send(&blue, "web", &[segment(1)]);
    let opened = || world.app().sessions().owned.opened.load(Ordering::Acquire);
    let opens = |before: usize| {
        give_up(world.app(), &world.begin(&blue, "next", 1));
        opened() - before
    };
    opens(0);
    assert_eq!(opens(opened()), 1, "that of the one with a segment");
}

#[test]
fn a_project_has_a_set_of_its_segments_though_others_have_most_of_the_memory() {
    let world = World::new();
    let blue = caller("blue");
    let disk: Vec<_> = (0..10).map(segment).collect();
    world.send(&blue, "web", &disk);
    let full = world.app().sessions().owned.fill(20);
    let session = world.begin(&blue, "db", 10);
    let questions: Vec<_> = disk.iter().map(|plain| question(plain)).collect();
    let lacks = lacking(world.app(), &session, &questions).unwrap();
    assert_eq!(lacks.iter().filter(|lacks| !**lacks).count(), 5);
    drop(full);
    let session = world.begin(&blue, "mail", 10);
    assert_eq!(lacking(world.app(), &session, &questions).unwrap(), [false; 10]);
}

fn numbers(world: &World) -> Vec<(String, usize)> {
    let (sets, _) = caller("blue").view.sets(world.app().repository()).unwrap();
    sets.iter().map(|set| (set.name.to_string(), set.backups.len())).collect()
}

#[test]
fn a_commit_that_is_asked_for_again_after_a_restart_makes_no_second_backup() {
    let mut world = World::new();
    let blue = caller("blue");
    let session = world.begin(&blue, "web", 1);
    send(&world, &session, 0..1).unwrap();
    name_all(&world, &session, 0..1).unwrap();
    let id = session.state().session;
    let other = world.begin(&blue, "db", 0).state().session;
    let first = commit_named(world.app(), &blue, &id, 1, &SourceFlaws::default()).unwrap();
    drop(session);
    world.crash();
    assert_eq!(commit_named(world.app(), &blue, &id, 1, &SourceFlaws::default()).unwrap(), first);
    assert_eq!(numbers(&world), [("blue:web".to_owned(), 1)]);
    // Nothing is told of what was not committed, of what another session has become, and to others.
    let refusal = |caller: &Caller, id: &str| {
        commit_named(world.app(), caller, id, 1, &SourceFlaws::default()).unwrap_err().refusal()
    };
    assert_eq!(refusal(&blue, &other), Refusal::NotFound);
    assert_eq!(refusal(&caller("red"), &id), Refusal::NotFound);
    let (backup, secret) = id.rsplit_once('.').unwrap();
    let wrong = ["0".repeat(secret.len()), String::new(), format!("{secret}.{secret}")];
    for id in wrong.iter().map(|word| format!("{backup}.{word}")).chain([secret.to_owned(), "x".to_owned()]) {
        assert_eq!(refusal(&blue, &id), Refusal::NotFound, "{id}");
    }
}

#[test]
fn a_commit_that_failed_after_its_backup_came_to_exist_makes_no_second_one_when_it_is_asked_for_again() {
    let sent = |plan| {
        let (world, faults) = faulty(plan, true);
        let session = world.begin(&caller("blue"), "web", 1);
        send(&world, &session, 0..1).unwrap();
        world.app().writer().with(|writer| Ok(writer.store().flush()?)).unwrap();
        name_all(&world, &session, 0..1).unwrap();
        let id = session.state().session;
        let committed = commit_named(world.app(), &caller("blue"), &id, 1, &SourceFlaws::default());
        (world, faults, id, committed)
    };
    let (_, faults, _, committed) = sent(FaultPlan::Count);
    committed.unwrap();
    let is_last_step = |line: &&String| line.contains("rename") && line.ends_with("set.toml");
    let line = faults.log().iter().rfind(is_last_step).unwrap().clone();
    let at = line.split_once(':').unwrap().0.parse::<u64>().unwrap() + 1;
    let (world, _, id, failed) = sent(FaultPlan::Fail { at, error: std::io::ErrorKind::Other });
    assert!(failed.is_err());
    let again = commit_named(world.app(), &caller("blue"), &id, 1, &SourceFlaws::default()).unwrap();
    assert_eq!(again.backup, "web@0");
    assert_eq!(commit_named(world.app(), &caller("blue"), &id, 1, &SourceFlaws::default()).unwrap(), again);
    assert_eq!(numbers(&world), [("blue:web".to_owned(), 1)]);
}
