use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;

use super::*;
use crate::store::IndexWriter;

/// Runs a test in a process in which no file can become longer than some KiB: there writes of the index fail.
pub(in crate::store) mod limited {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    /// Set for that process.
    const LIMITED: &str = "EKKO_TEST_LIMITED_FILES";
    /// What it prints when it has come to its end.
    const DONE: &str = "all of it was tested";

    /// Says whether this is that process.
    pub(in crate::store) fn is_so() -> bool {
        std::env::var_os(LIMITED).is_some()
    }

    /// Says in that process that the test has come to its end.
    pub(in crate::store) fn done() {
        println!("{DONE}");
    }

    /// Runs the test that calls it in that process, to its end.
    pub(in crate::store) fn run() {
        let program = std::env::current_exe().unwrap();
        let name = std::thread::current().name().unwrap().to_owned();
        let limited = "trap '' XFSZ; ulimit -f 48; exec \"$0\" --exact \"$1\" --nocapture";
        let mut command = Command::new("sh");
        command.args(["-c", limited]).arg(program).arg(name).env(LIMITED, "1").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A generous limit, which shows that it does not hang.
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > Duration::from_mins(1) {
                child.kill().unwrap();
                panic!("a call waits for ever");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(DONE));
    }
}

/// In each round a write of a buffer fails of which sled tells nobody while `flush` waits for it.
#[test]
fn a_write_that_fails_ends_the_calls_that_wait_for_it() {
    if limited::is_so() {
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let index = IndexWriter::create(&folder.path().join("1")).unwrap();
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // A lookup takes sled's lock, too, and must be able to go on.
                scope.spawn(|| {
                    while !done.load(Ordering::Acquire) {
                        let _ = index.index().packs();
                    }
                });
                #[expect(clippy::default_trait_access, reason = "one file alone names sled")]
                // An empty batch is a buffer of its own, which `exit_reservation` has written.
                let step = || {
                    index.index().call("write", |db| db.apply_batch(Default::default()))?;
                    index.index().call("flush", |db| db.flush())
                };
                while step().is_ok() {}
                done.store(true, Ordering::Release);
            });
            assert!(index.index().has_failed());
            // It writes no more, so it can be closed.
            index.let_go().unwrap();
        }
        limited::done();
        return;
    }
    limited::run();
}

#[test]
fn a_call_is_stuck_when_neither_it_nor_the_file_moves_though_the_disk_answers() {
    let asked = std::cell::Cell::new(0);
    let seconds = |clock: &mut Clock, calls: &Calls, count: u64, look: &dyn Fn(u64) -> Option<Look>| {
        (0..count).any(|second| clock.second(calls, || look(second), || asked.set(asked.get() + 1)))
    };
    let still = |_| Some((1, 1, 1));
    let calls = Calls::new(Path::new("index"));
    let mut clock = Clock::default();
    // Nobody calls.
    assert!(!seconds(&mut clock, &calls, 1000, &still));
    let call = calls.begin().unwrap();
    // As a long flush on a slow disk: the file changes once a minute.
    assert!(!seconds(&mut clock, &calls, 1000, &|second| Some((second / 60, 1, 1))));
    drop(call);
    // Calls that end and begin.
    for _ in 0..10 {
        let call = calls.begin().unwrap();
        assert!(!seconds(&mut clock, &calls, LIMIT - 1, &still));
        drop(call);
        assert!(!seconds(&mut clock, &calls, 1, &still));
    }
    assert_eq!(asked.get(), 0);
    // A disk that hung for a long time answers, and the file changes then.
    let hung = calls.begin().unwrap();
    assert!(!seconds(&mut clock, &calls, LIMIT + 1, &still));
    assert_eq!(asked.get(), 1);
    assert!(!seconds(&mut clock, &calls, LIMIT, &|second| Some((2 + second / 60, 1, 1))));
    drop(hung);
    assert!(!seconds(&mut clock, &calls, 1, &still));
    asked.set(0);
    // One of two does not end, though the disk answers.
    let stuck = calls.begin().unwrap();
    assert!(!seconds(&mut clock, &calls, LIMIT / 2, &still));
    let other = calls.begin().unwrap();
    drop(other);
    assert!(!seconds(&mut clock, &calls, LIMIT / 2 + 1, &still));
    assert_eq!(asked.get(), 1);
    assert!(seconds(&mut clock, &calls, GRACE + 1, &still));
    drop(stuck);
}

#[test]
fn an_index_that_is_left_takes_no_more_calls() {
    let folder = tempfile::tempdir().unwrap();
    let writer = IndexWriter::create(&folder.path().join("1")).unwrap();
    let index = writer.index().clone();
    assert!(index.packs().is_ok());
    drop(writer);
    assert!(index.packs().is_err());
}

// The protocol. Each thread is a program whose steps are atomic; every order of the steps is tried. A call must be able
// to return from every state that can be reached: from a state from which it cannot, it waits for ever.

/// What may be left out or done another way.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a rule of its own")]
struct Rules {
    watcher: bool,
    /// It goes on looking while calls are under way, and does not look once.
    looks_again: bool,
    /// It takes the mutex of the condition variable before it wakes.
    takes_mutex: bool,
    /// It wakes by `open_tree`, and not by `flush`, which takes the process-wide lock.
    without_lock: bool,
    /// A caller counts itself before it looks whether calls are refused.
    counts_first: bool,
    /// The watcher looks whether calls are refused before it looks for callers.
    refused_first: bool,
}

const RULES: Rules = Rules {
    watcher: true,
    looks_again: true,
    takes_mutex: true,
    without_lock: true,
    counts_first: true,
    refused_first: true,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each can be so or not beside all others")]
struct World {
    pool: u8,
    caller: u8,
    writer: u8,
    leaver: u8,
    watcher: u8,
    error: bool,
    mutex: bool,
    asleep: bool,
    counted: bool,
    refused: bool,
    /// What the watcher has read.
    saw_refused: bool,
    /// Whether the caller reads under the process-wide lock, and whether the store's thread waits to write.
    reads: bool,
    wants_write: bool,
}

const ENDED: u8 = 99;

fn steps(rules: Rules, world: World) -> Vec<World> {
    let mut next = Vec::new();
    let mut go = |change: &dyn Fn(&mut World)| {
        let mut world = world;
        change(&mut world);
        next.push(world);
    };
    // A thread of sled's pool: its write fails, and it wakes nobody.
    if world.pool == 0 {
        go(&|w| (w.error, w.pool) = (true, ENDED));
    }
    // The store's thread asks for the lock for writing, and never ends if the caller does not.
    match world.writer {
        0 => go(&|w| (w.wants_write, w.writer) = (true, 1)),
        1 if !world.reads => go(&|w| (w.wants_write, w.writer) = (false, ENDED)),
        _ => {}
    }
    // Somebody gives the index up.
    if world.leaver == 0 {
        go(&|w| (w.refused, w.leaver) = (true, ENDED));
    }
    // A caller: counts itself, looks whether calls are refused, takes the lock, then waits for the write.
    match (world.caller, rules.counts_first) {
        (0, true) | (1, false) => go(&|w| (w.counted, w.caller) = (true, w.caller + 1)),
        (1, true) | (0, false) => go(&|w| {
            if w.refused {
                (w.counted, w.caller) = (false, ENDED);
            } else {
                w.caller += 1;
            }
        }),
        (2, _) if !world.wants_write => go(&|w| (w.reads, w.caller) = (true, 3)),
        (3, _) if !world.mutex => go(&|w| (w.mutex, w.caller) = (true, 4)),
        (4, _) if world.error => {
            go(&|w| (w.mutex, w.reads, w.counted, w.caller) = (false, false, false, ENDED));
        }
        (4, _) => go(&|w| w.caller = 5),
        (5, _) => go(&|w| (w.mutex, w.asleep, w.caller) = (false, true, 6)),
        (6, _) if !world.asleep => go(&|w| w.caller = 3),
        _ => {}
    }
    let end_or_again = if rules.looks_again { 0 } else { ENDED };
    match world.watcher {
        _ if !rules.watcher => {}
        0 if rules.refused_first => go(&|w| (w.saw_refused, w.watcher) = (w.refused, 1)),
        0 => go(&|w| w.watcher = if w.counted { 2 } else { 1 }),
        1 if rules.refused_first => go(&|w| match (w.counted, w.saw_refused) {
            (true, _) => w.watcher = 2,
            (false, true) => w.watcher = ENDED,
            (false, false) => w.watcher = 0,
        }),
        1 => go(&|w| w.watcher = if w.refused { ENDED } else { 0 }),
        2 if !world.error => go(&|w| w.watcher = end_or_again),
        2 if !rules.without_lock && world.wants_write => {}
        2 if rules.takes_mutex && world.mutex => {}
        2 => go(&|w| w.watcher = 3),
        3 => go(&|w| (w.asleep, w.watcher) = (false, end_or_again)),
        _ => {}
    }
    next
}

/// Says whether there is a state in which a call waits for ever.
fn can_hang(rules: Rules) -> bool {
    let mut from: HashMap<World, Vec<World>> = HashMap::new();
    let mut queue = vec![World::default()];
    let mut seen = HashSet::from([World::default()]);
    while let Some(world) = queue.pop() {
        for next in steps(rules, world) {
            from.entry(next).or_default().push(world);
            if seen.insert(next) {
                queue.push(next);
            }
        }
    }
    let mut queue: Vec<World> = seen.iter().filter(|world| world.caller == ENDED).copied().collect();
    let mut ends: HashSet<World> = queue.iter().copied().collect();
    while let Some(world) = queue.pop() {
        for before in from.get(&world).into_iter().flatten() {
            if ends.insert(*before) {
                queue.push(*before);
            }
        }
    }
    ends.len() < seen.len()
}

#[test]
fn no_order_of_events_lets_a_call_wait_for_ever_and_every_rule_is_needed() {
    assert!(!can_hang(RULES));
    assert!(can_hang(Rules { watcher: false, ..RULES }));
    assert!(can_hang(Rules { looks_again: false, ..RULES }));
    assert!(can_hang(Rules { without_lock: false, ..RULES }));
    assert!(can_hang(Rules { counts_first: false, ..RULES }));
    assert!(can_hang(Rules { refused_first: false, ..RULES }));
    // One look is enough if it comes after the error, but only with the mutex; a second look makes up for either.
    assert!(!can_hang(Rules { takes_mutex: false, ..RULES }));
}
