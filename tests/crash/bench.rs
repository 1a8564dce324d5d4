//! One job on the bench: it is prepared once, recorded once, and then disturbed at one call after the other.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::jobs::{Disk, Job};
use crate::replay::{Keep, Recording};
use crate::stage::{Acknowledged, Stage, text};
use crate::tracer::Plan;
use crate::verify::{Verifier, Wanted};

/// How a command is disturbed, or what is left after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// It runs again, under this plan.
    Again(Plan),
    /// The power fails after so many calls of the recording.
    Power(u64, Keep),
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Again(Plan::Record) => write!(f, "undisturbed"),
            Self::Again(Plan::Kill(at)) => write!(f, "kill {at}"),
            Self::Again(Plan::Fail(at, libc::EIO)) => write!(f, "EIO {at}"),
            Self::Again(Plan::Fail(at, libc::ENOSPC)) => write!(f, "ENOSPC {at}"),
            Self::Again(Plan::Fail(at, error)) => write!(f, "error {error} {at}"),
            Self::Again(Plan::Full(at)) => write!(f, "full {at}"),
            Self::Power(at, Keep::Random(seed)) => write!(f, "power {at} random {seed}"),
            Self::Power(at, keep) => write!(f, "power {at} {}", format!("{keep:?}").to_lowercase()),
        }
    }
}

/// A job that is ready to be disturbed.
#[derive(Debug)]
pub struct Bench {
    stage: Stage,
    recording: Recording,
    acknowledged: Acknowledged,
    /// The calls of an undisturbed run, in words.
    pub names: Vec<String>,
    verifier: Verifier,
    /// States that were verified already, with what they must hold.
    seen: HashMap<blake3::Hash, Vec<Wanted>>,
}

impl Bench {
    /// Prepares a job in an empty folder and records an undisturbed run.
    pub fn new(job: &'static Job, scratch: &Path) -> Result<Self, String> {
        let stage = Stage::new(job, scratch)?;
        let mut bench = Self {
            recording: Recording::of(&stage.folder()).map_err(text)?,
            stage,
            acknowledged: Vec::new(),
            names: Vec::new(),
            verifier: Verifier::default(),
            seen: HashMap::new(),
        };
        bench.record()?;
        Ok(bench)
    }

    fn record(&mut self) -> Result<(), String> {
        let stage = &mut self.stage;
        let device = stage.device()?;
        let ran = stage.run(Plan::Record, device.as_ref())?;
        drop(device);
        if ran.acknowledged.iter().flatten().any(Option::is_none) {
            let said = fs::read_to_string(stage.output()).unwrap_or_default();
            return Err(format!("it does not work undisturbed: {said}"));
        }
        self.recording.add(&ran.changes)?;
        (self.names, self.acknowledged) = (ran.calls, ran.acknowledged);
        let target = stage.job.target.map(|target| stage.work_folder().join(target.file));
        stage.made = target.and_then(|path| fs::read(path).ok());
        let left = Recording::of(&stage.folder()).map_err(text)?.layout(0, Keep::Everything);
        match self.recording.layout(self.names.len() as u64, Keep::Everything).difference(&left) {
            // The service's repository changes beside its traced clients.
            Some(path) if !stage.is_of_clients() || path.starts_with("client") => {
                Err(format!("the recording does not replay to what was left: {path} differs"))
            }
            _ => Ok(()),
        }
    }

    /// Returns how many calls an undisturbed run makes.
    pub fn calls(&self) -> u64 {
        self.names.len() as u64
    }

    /// Returns what must be there after so many calls.
    fn wanted(&self, acknowledged: &Acknowledged, calls: u64) -> Wanted {
        let backup = |(name, disk): &(&str, Disk)| ((*name).to_owned(), *disk);
        let mut wanted =
            Wanted { must: self.stage.job.there.iter().map(backup).collect(), ..Wanted::default() };
        for (line, steps) in self.stage.job.work.lines().iter().enumerate() {
            for (number, step) in steps.iter().enumerate() {
                let is_done = acknowledged[line][number].is_some_and(|at| at <= calls);
                let removed: Vec<_> =
                    step.removes.iter().filter_map(|name| wanted.must.remove_entry(*name)).collect();
                if !is_done {
                    wanted.may.extend(removed);
                    wanted.may.extend(step.adds.iter().map(backup));
                    break;
                }
                wanted.must.extend(step.adds.iter().map(backup));
            }
        }
        let is_done = acknowledged.iter().flatten().all(|at| at.is_some_and(|at| at <= calls));
        let harmed = self.stage.job.harmed.iter().filter(|_| !is_done);
        wanted.harmed =
            harmed.filter_map(|name| Some(((*name).to_owned(), *wanted.must.get(*name)?))).collect();
        let names = |group: &&[&str]| group.iter().map(|name| (*name).to_owned()).collect();
        wanted.together = self.stage.job.together.iter().map(names).collect();
        let pair = |(one, other): &(&str, &str)| ((*one).to_owned(), (*other).to_owned());
        wanted.one_of = self.stage.job.one_of.iter().map(pair).collect();
        wanted
    }

    /// Tries a case. Says whether it was a state that was verified before.
    pub fn try_case(&mut self, case: Case) -> Result<bool, String> {
        let _ = fs::remove_dir_all(self.stage.folder());
        let (acknowledged, calls, struck) = match case {
            Case::Power(calls, keep) => {
                let wanted = self.wanted(&self.acknowledged, calls);
                let layout = self.recording.layout(calls, keep);
                let seen = self.seen.entry(layout.digest()).or_default();
                if seen.contains(&wanted) {
                    return Ok(true);
                }
                seen.push(wanted);
                layout.write(&self.stage.folder()).map_err(text)?;
                (self.acknowledged.clone(), calls, None)
            }
            Case::Again(plan) => {
                self.recording.layout(0, Keep::Everything).write(&self.stage.folder()).map_err(text)?;
                let device = self.stage.device()?;
                let ran = self.stage.run(plan, device.as_ref())?;
                (ran.acknowledged, u64::MAX, ran.struck)
            }
        };
        let is_client = self.stage.is_of_clients();
        let at = |error: String| match &struck {
            Some(call) => format!("{error} [{call}]"),
            None => error,
        };
        if let Some(target) = self.stage.job.target
            && (!is_client || matches!(case, Case::Power(..)))
        {
            let device = self.stage.device()?;
            self.stage.target(target, &acknowledged, calls, device.as_ref(), None).map_err(at)?;
        }
        let wanted = self.wanted(&acknowledged, calls);
        if is_client && matches!(case, Case::Power(..)) {
            return Ok(false);
        }
        let folder = self.stage.folder().join(self.stage.job.repository());
        self.verifier.verify(&folder, &wanted).map_err(at)?;
        Ok(false)
    }

    /// Puts another recording in place, for the self-test.
    pub fn replace_recording(&mut self, change: impl FnOnce(&mut Recording)) {
        change(&mut self.recording);
        self.seen.clear();
    }
}
