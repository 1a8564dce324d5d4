//! How much time has certainly passed: for periods that must not end early because a date was wrong.
//!
//! The file `clock` counts the seconds in which a machine that works on the repository was running, by the clock that counts
//! since the machine's boot. Nobody sets that clock. So the count never exceeds the time that has passed, whatever the date
//! was; it falls behind while the machine is off, and a period then takes longer.
//!
//! For each machine the file keeps its boot, its uptime and the count at its last look:
//!
//! - In the same boot, the uptime has grown by the time since then.
//! - A boot of the same machine that is not the one of the last look began after it, so its whole uptime has passed since then.
//! - Of a machine that was never here nothing is known: its boot may be older than the repository.
//!
//! Never does more time pass than by the date: a container may have a new boot id and the uptime of its host, and machines that
//! were cloned may share an id. So a period ends early only if the date and the uptime are both wrong.
//!
//! The file may be removed: the count goes on from the last deletion, and running periods take longer.

use std::borrow::Borrow;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::repository::set_file::{read_sealed, seal};
use crate::repository::settings::FORMAT;
use crate::repository::{Backupset, DeletedBackup, Repository, RepositoryError};
use crate::storage::{Storage, replace};

/// How many machines are kept: those that looked last.
const MOST_MACHINES: usize = 16;

/// The time that has certainly passed in a repository, in seconds. It only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clock {
    format: u32,
    passed_seconds: u64,
    #[serde(default, rename = "machine", skip_serializing_if = "Vec::is_empty")]
    machines: Vec<Look>,
}

/// When a machine looked last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Look {
    machine: String,
    boot: String,
    uptime_seconds: u64,
    /// The date, in seconds since 1970.
    date: i64,
    passed_seconds: u64,
}

/// A machine, and how long it has been running.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Machine {
    id: String,
    boot: String,
    uptime_seconds: u64,
    date: i64,
}

impl Machine {
    /// Returns this machine as it is now.
    fn now() -> Self {
        let id = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let boot = id("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        // Without an id of its own, a machine is another one after each boot.
        let machine = id("/etc/machine-id").filter(|id| !id.is_empty());
        let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self {
            id: machine.unwrap_or_else(|| boot.clone()),
            boot,
            uptime_seconds: u64::try_from(uptime.tv_sec).unwrap_or(0),
            date: crate::time::now().as_second(),
        }
    }
}

impl Clock {
    /// Returns the seconds that have certainly passed.
    pub(super) fn passed_seconds(&self) -> u64 {
        self.passed_seconds
    }

    /// Has a machine look at it.
    fn look(mut self, now: &Machine, at_least: u64) -> Self {
        let known = self.machines.iter().position(|look| look.machine == now.id);
        let before = known.map(|at| self.machines.remove(at));
        let since = match &before {
            // Without a boot id, one boot cannot be told from another.
            Some(_) if now.boot.is_empty() => 0,
            None => 0,
            Some(look) if look.boot == now.boot => now.uptime_seconds.saturating_sub(look.uptime_seconds),
            Some(_) => now.uptime_seconds,
        };
        let by_date = before.as_ref().map_or(0, |look| now.date.saturating_sub(look.date));
        let since = since.min(u64::try_from(by_date).unwrap_or(0));
        let same_boot = before.as_ref().filter(|look| look.boot == now.boot);
        let uptime_seconds = same_boot.map_or(0, |look| look.uptime_seconds).max(now.uptime_seconds);
        let passed = before.map_or(0, |look| look.passed_seconds).saturating_add(since);
        self.passed_seconds = self.passed_seconds.max(passed).max(at_least);
        self.machines.push(Look {
            machine: now.id.clone(),
            boot: now.boot.clone(),
            uptime_seconds,
            date: now.date,
            passed_seconds: self.passed_seconds,
        });
        let surplus = self.machines.len().saturating_sub(MOST_MACHINES);
        self.machines.drain(..surplus);
        self.format = FORMAT;
        self
    }

    fn read(storage: &dyn Storage, path: &Path) -> Result<Option<Self>, RepositoryError> {
        match read_sealed(storage, path) {
            // What cannot be understood is as good as none: periods take longer.
            Ok(text) => Ok(toml::from_str(&text).ok()),
            Err(RepositoryError::Storage(error)) if error.is_not_found() => Ok(None),
            Err(RepositoryError::SettingsDamaged { .. } | RepositoryError::Settings { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it; durable when this returns.
    pub(super) fn write(&self, repository: &Repository) -> Result<(), RepositoryError> {
        let path = repository.layout.clock();
        let text = toml::to_string(self)
            .map_err(|error| RepositoryError::Settings { path: path.clone(), what: error.to_string() })?;
        Ok(replace(repository.storage.as_ref(), &path, seal(&text).as_bytes())?)
    }
}

/// How long deleted backups can still be undeleted.
#[derive(Clone, Copy, Debug)]
pub struct UndeletePeriods {
    now: u64,
    keep: u64,
}

impl UndeletePeriods {
    /// Periods of so many seconds, at a moment of the clock.
    pub(super) fn new(clock: &Clock, keep: u64) -> Self {
        Self { now: clock.passed_seconds, keep }
    }

    /// Returns how long a backup can be undeleted, at least.
    pub fn left(&self, deleted: &DeletedBackup) -> Duration {
        let passed = self.now.saturating_sub(deleted.deleted_clock);
        Duration::from_secs(self.keep.saturating_sub(passed))
    }
}

impl Repository {
    /// Returns how long the deleted backups of these backupsets can still be undeleted.
    ///
    /// # Errors
    /// The file that counts the time cannot be read.
    pub fn undelete_periods<B: Borrow<Backupset>>(
        &self,
        sets: &[B],
    ) -> Result<UndeletePeriods, RepositoryError> {
        let deleted = sets.iter().flat_map(|set| &set.borrow().deleted).map(|deleted| deleted.deleted_clock);
        let clock = self.clock(deleted.max().unwrap_or(0))?;
        Ok(UndeletePeriods::new(&clock, self.settings.keep_deleted.as_secs()))
    }

    /// Looks at the clock. It is not before `least`, a moment that some list of backups names.
    ///
    /// # Errors
    /// Its file cannot be read. A damaged file is none.
    pub(super) fn clock(&self, least: u64) -> Result<Clock, RepositoryError> {
        let clock = Clock::read(self.storage.as_ref(), &self.layout.clock())?;
        Ok(clock.unwrap_or_default().look(&Machine::now(), least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Machines that run, stop and start, and look at the clock now and then.
    struct World {
        true_seconds: u64,
        clock: Clock,
        /// Number of the boot, and its beginning; nothing while the machine is off.
        machines: Vec<(u32, Option<u64>)>,
        /// Whether restarts keep the uptime, as those of containers do.
        keeps_uptime: bool,
        /// Whether a new boot of a known machine is taken for one that has always been there.
        trusts_any_uptime: bool,
    }

    impl World {
        fn new(trusts_any_uptime: bool) -> Self {
            // One has been running for long before it sees the repository.
            let machines = vec![(0, Some(0)), (0, Some(0)), (0, None)];
            let clock = Clock::default();
            Self { true_seconds: 100_000, clock, machines, keeps_uptime: false, trusts_any_uptime }
        }

        /// Says whether no more has passed than has passed.
        fn step(&mut self, what: u8, which: u8) -> bool {
            let machine = usize::from(which) % self.machines.len();
            self.true_seconds += u64::from(what) * 7;
            let (boot, began) = self.machines[machine];
            match (what % 4, began) {
                (0, Some(_)) => self.machines[machine] = (boot, None),
                (0, None) => {
                    let began = if self.keeps_uptime { 0 } else { self.true_seconds };
                    self.machines[machine] = (boot + 1, Some(began));
                }
                (_, None) => {}
                (_, Some(began)) => {
                    let now = Machine {
                        id: machine.to_string(),
                        boot: format!("{machine}.{boot}"),
                        uptime_seconds: self.true_seconds - began,
                        date: i64::try_from(self.true_seconds).unwrap(),
                    };
                    let before = self.clock.passed_seconds;
                    let unknown = self.clock.machines.iter().all(|look| look.machine != now.id);
                    self.clock = std::mem::take(&mut self.clock).look(&now, 0);
                    if unknown && self.trusts_any_uptime {
                        self.clock.passed_seconds += now.uptime_seconds;
                    }
                    assert!(self.clock.passed_seconds >= before);
                }
            }
            self.clock.passed_seconds <= self.true_seconds - 100_000
        }
    }

    #[test]
    fn no_more_time_passes_than_has_passed_and_that_of_a_machine_that_runs_passes() {
        fn holds(keeps_uptime: bool, steps: Vec<(u8, u8)>) -> bool {
            let mut world = World { keeps_uptime, ..World::new(false) };
            steps.into_iter().all(|(what, which)| world.step(what, which))
        }
        quickcheck::QuickCheck::new().tests(2000).quickcheck(holds as fn(bool, Vec<(u8, u8)>) -> bool);
        let mut unsound = World::new(true);
        assert!(!(0..40).all(|step| unsound.step(step, step)), "the model sees what it is to see");
        let mut running = World::new(false);
        assert!((0..40).all(|_| running.step(1, 0)));
        assert_eq!(running.clock.passed_seconds, 39 * 7);
    }

    #[test]
    fn of_many_machines_the_last_ones_are_kept_and_a_lost_file_sets_nothing_back() {
        let machine =
            |id: u32| Machine { id: id.to_string(), boot: id.to_string(), uptime_seconds: 5, date: 9 };
        let clock = (0..100).fold(Clock::default(), |clock, id| clock.look(&machine(id), 0));
        assert_eq!(clock.machines.len(), MOST_MACHINES);
        assert_eq!(clock.machines.last().unwrap().machine, "99");
        assert_eq!(Clock::default().look(&machine(1), 77).passed_seconds, 77);
    }

    #[test]
    fn a_wrong_date_or_a_wrong_uptime_alone_lets_no_time_pass() {
        let at = |boot: &str, uptime_seconds, date| Machine {
            id: "m".to_owned(),
            boot: boot.to_owned(),
            uptime_seconds,
            date,
        };
        let first = Clock::default().look(&at("a", 1_000_000, 5000), 0);
        // The date jumps; a container is restarted; another machine has the same id.
        for now in [at("a", 1_000_010, 900_000), at("b", 1_000_010, 5010), at("", 2_000_000, 900_000)] {
            assert!(first.clone().look(&now, 0).passed_seconds <= 10, "{now:?}");
        }
        let back = first.look(&at("a", 500, 5001), 0).look(&at("a", 1_000_001, 6000), 0);
        assert!(back.passed_seconds <= 1, "a lower uptime does not replace a higher one");
    }
}
