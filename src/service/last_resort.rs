//! The end of a process that does not end by itself.
//!
//! After SIGTERM or SIGINT the service ends in order. Whatever it waits for then may hang: a disk, a filesystem that is gone, a
//! fault of ours. A thread that waits for nothing but the time ends the process when `grace_seconds` and `close_seconds` have
//! passed since the signal. Another SIGTERM or SIGINT, [`PATIENCE`] after the first or later, ends it at once; one that comes sooner
//! means the same as the first, as programs that pass a signal on may send it twice. Nothing that was acknowledged is lost: that is durable, and the next opening is one after a crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::service::ServiceError;

/// After a signal, how long another one means the same.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether a signal has come.
const LOOK: Duration = Duration::from_millis(100);
/// How long telling why may take: stderr may hang, too.
const TELL: Duration = Duration::from_secs(1);

/// What the service does while it ends, in this order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// It does not yet end.
    Serving,
    /// Requests under way are finished.
    Requests,
    /// Sessions are given up.
    Sessions,
    /// Threads that were given work end.
    Threads,
    /// The repository is closed.
    Closing,
}

const STAGES: [(Stage, &str); 5] = [
    (Stage::Serving, "the network side"),
    (Stage::Requests, "a request that is under way"),
    (Stage::Sessions, "a session that is given up"),
    (Stage::Threads, "a thread that works for a request or a job"),
    (Stage::Closing, "closing the repository"),
];

/// Ends the process if it does not end.
#[derive(Debug)]
pub(super) struct LastResort {
    told: Arc<AtomicBool>,
    stage: Arc<AtomicU8>,
}

impl LastResort {
    /// Starts to wait for a signal, and ends the process `within` that time of it.
    pub(super) fn start(within: Duration) -> Result<Self, ServiceError> {
        let failed = |source| ServiceError::Start { source };
        let told = Arc::new(AtomicBool::new(false));
        let ends_now = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&ends_now)).map_err(failed)?;
            signal_hook::flag::register(signal, Arc::clone(&told)).map_err(failed)?;
        }
        let stage = Arc::new(AtomicU8::new(0));
        let (seen, heard) = (Arc::clone(&stage), Arc::clone(&told));
        let wait = move || {
            while !heard.load(Ordering::Acquire) {
                std::thread::sleep(LOOK);
            }
            let begun = Instant::now();
            while begun.elapsed() < within {
                if begun.elapsed() >= PATIENCE && !ends_now.swap(true, Ordering::AcqRel) {
                    tracing::info!("another signal ends the process at once");
                }
                std::thread::sleep(LOOK);
            }
            let at = usize::from(seen.load(Ordering::Acquire));
            let what = STAGES.get(at).map_or("an unknown part", |(_, what)| what);
            end_process(&format!(
                "the service did not end within {} s of the signal: {what} hangs. The process ends now. Nothing that was \
                 acknowledged is lost; the next start checks the index",
                within.as_secs()
            ));
        };
        let started = std::thread::Builder::new().name("ekko-last-resort".to_owned()).spawn(wait);
        started.map_err(failed)?;
        Ok(Self { told, stage })
    }

    /// Says whether a signal has come. One that came before others listened for it reaches none of them.
    pub(super) fn was_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// Says what is done now, so that it can be told if it hangs.
    pub(super) fn at(&self, stage: Stage) {
        let at = STAGES
            .iter()
            .position(|(other, _)| std::mem::discriminant(other) == std::mem::discriminant(&stage));
        self.stage.store(at.and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX), Ordering::Release);
    }
}

/// Ends the process with 1, whatever else it does, after it has told why.
pub fn end_process(why: &str) {
    let why = why.to_owned();
    let (told, is_told) = std::sync::mpsc::channel();
    // On threads of their own: both may hang.
    let tell = move || {
        tracing::error!("{why}");
        let _ = told.send(());
    };
    if std::thread::Builder::new().spawn(tell).is_ok() {
        let _ = is_told.recv_timeout(TELL);
    }
    if std::thread::Builder::new().spawn(|| std::process::exit(1)).is_ok() {
        std::thread::sleep(TELL);
    }
    // What is registered to be done at the end of a process hangs. This takes no lock.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set for the process that is to be ended.
    const HANGS: &str = "EKKO_TEST_HANGS";

    /// Starts the test `name` again, as a process that hangs after it has sent itself `signals`. Returns how it ended.
    fn ended(name: &str, signals: &str) -> std::process::ExitStatus {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(HANGS, signals)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // A generous limit, which shows that it ends at all.
        let begun = Instant::now();
        loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if begun.elapsed() > Duration::from_mins(1) => {
                    child.kill().unwrap();
                    panic!("it hangs");
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// In the process that is to be ended: sends itself a signal, and another one if it is to, and hangs.
    fn hang(signals: &str) {
        let is_twice = signals == "twice";
        let within = if is_twice { Duration::from_mins(20) } else { Duration::from_millis(300) };
        let last_resort = LastResort::start(within).unwrap();
        assert!(!last_resort.was_told());
        last_resort.at(Stage::Closing);
        let send = || {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::TERM).unwrap();
        };
        // Two at once mean the same.
        send();
        send();
        std::thread::sleep(PATIENCE + 3 * LOOK);
        if is_twice {
            send();
        }
        std::thread::sleep(Duration::from_mins(10));
    }

    #[test]
    fn a_process_that_hangs_after_a_signal_is_ended_and_at_once_after_another() {
        if let Ok(signals) = std::env::var(HANGS) {
            return hang(&signals);
        }
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        assert_eq!(ended(&name, "once").code(), Some(1));
        let status = ended(&name, "twice");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(SIGTERM), "{status}");
    }
}
