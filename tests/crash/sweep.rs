//! Which cases are tried, in which processes, and what is said of them.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::bench::{Bench, Case};
use crate::common::Noise;
use crate::jobs::{JOBS, Job};
use crate::replay::Keep;
use crate::self_test;
use crate::tracer::Plan;

/// How many cases of each job are tried unless all are asked for: three minutes on two busy cores.
const SAMPLE: usize = 20;
/// How many calls of a job one process takes on when all are tried.
const CHUNK: u64 = 20;

/// What was tried.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Tally {
    /// Calls of the undisturbed run.
    calls: u64,
    /// Runs that were disturbed.
    points: u64,
    /// Files laid out as a power loss leaves them, without those that were the same as others.
    states: u64,
    failures: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.calls = self.calls.max(other.calls);
        self.points += other.points;
        self.states += other.states;
        self.failures.extend(other.failures);
    }
}

/// Returns the cases at a call.
fn cases_at(at: u64, calls: u64, noise: &mut Noise) -> Vec<Case> {
    let runs = [Plan::Kill(at), Plan::Fail(at, libc::EIO), Plan::Fail(at, libc::ENOSPC), Plan::Full(at)];
    // After the last call there is none to disturb, and the power can still fail.
    let runs = runs.into_iter().filter(|_| at < calls).map(Case::Again);
    let keeps =
        [Keep::Nothing, Keep::Names, Keep::Bytes, Keep::Random(noise.next()), Keep::Random(noise.next())];
    runs.chain(keeps.map(|keep| Case::Power(at, keep))).collect()
}

/// Tries cases of one job in this process: calls `from` to `to`, or a sample of them. Prints a tally.
#[expect(clippy::print_stdout, reason = "this process answers on its stdout")]
pub fn work(job: &str, [from, to, seed, sample]: [&str; 4]) -> ExitCode {
    let job = JOBS.iter().find(|known| known.name == job).unwrap();
    let tally = try_job(
        job,
        from.parse().unwrap()..to.parse().unwrap(),
        seed.parse().unwrap(),
        sample.parse().unwrap(),
    );
    println!("{}", serde_json::to_string(&tally).unwrap());
    ExitCode::SUCCESS
}

fn try_job(job: &'static Job, range: std::ops::Range<u64>, seed: u64, sample: usize) -> Tally {
    let mut tally = Tally::default();
    let scratch = std::env::current_dir().unwrap();
    let mut bench = match Bench::new(job, &scratch) {
        Ok(bench) => bench,
        Err(error) => {
            tally.failures.push(format!("{}: {error}", job.name));
            return tally;
        }
    };
    tally.calls = bench.calls();
    let mut noise = Noise::new(seed);
    let mut cases: Vec<_> = (0..=bench.calls())
        .flat_map(|at| cases_at(at, bench.calls(), &mut noise).into_iter().map(move |case| (at, case)))
        .filter(|(at, _)| range.contains(at))
        .map(|(_, case)| case)
        .collect();
    if let Ok(only) = std::env::var("EKKO_CRASH_CASE") {
        cases.retain(|case| case.to_string() == only);
    } else if let Ok(file) = std::env::var("EKKO_CRASH_FAIL") {
        let name = |at: u64| bench.names.get(usize::try_from(at).unwrap());
        cases.retain(|case| match case {
            Case::Again(Plan::Fail(at, _)) => name(*at).is_some_and(|name| name.contains(&file)),
            _ => false,
        });
    } else if sample > 0 {
        cases = (0..sample).map(|_| cases[noise.below(cases.len())]).collect();
        // What is acknowledged in the end must last.
        cases.push(Case::Power(bench.calls(), Keep::Nothing));
    }
    for case in cases {
        match (case, bench.try_case(case)) {
            (_, Ok(true)) => {}
            (Case::Again(_), Ok(false)) => tally.points += 1,
            (Case::Power(..), Ok(false)) => tally.states += 1,
            (_, Err(error)) => {
                tally.points += u64::from(matches!(case, Case::Again(_)));
                tally.states += u64::from(matches!(case, Case::Power(..)));
                tally.failures.push(format!("{}, {case}: {error}", job.name));
            }
        }
    }
    tally
}

/// A part of a job for one process.
#[derive(Clone, Debug)]
struct Part {
    job: &'static Job,
    from: u64,
    to: u64,
}

impl Part {
    /// Runs this program on the part, in a folder of its own.
    fn run(&self, scratch: &Path, seed: u64, sample: usize) -> Tally {
        let folder = scratch.join(format!("{}-{}", self.job.name, self.from));
        fs::create_dir_all(&folder).unwrap();
        let ran = Command::new(std::env::current_exe().unwrap())
            .args(["--work", self.job.name, &self.from.to_string(), &self.to.to_string()])
            .args([seed.to_string(), sample.to_string()])
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let _ = fs::remove_dir_all(&folder);
        serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| Tally {
            failures: vec![format!("{}: its process ends with {}: {error}", self.job.name, ran.status)],
            ..Tally::default()
        })
    }
}

/// What is asked for, by the environment.
#[derive(Debug)]
struct Asked {
    all: bool,
    seed: u64,
    sample: usize,
    cores: usize,
    /// Where parts that are done are written down, so that they are not done twice.
    log: Option<PathBuf>,
}

impl Asked {
    fn read() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let cores = std::thread::available_parallelism().map_or(2, usize::from) as u64;
        let all = std::env::var_os("EKKO_CRASH_ALL").is_some();
        let only = std::env::var_os("EKKO_CRASH_CASE").is_some();
        let to_usize = |number: u64| usize::try_from(number).unwrap();
        Self {
            all,
            seed: number("EKKO_CRASH_SEED").unwrap_or_else(random),
            sample: if all || only { 0 } else { number("EKKO_CRASH_SAMPLE").map_or(SAMPLE, to_usize) },
            cores: to_usize(number("EKKO_CRASH_CORES").unwrap_or(cores)).max(1),
            log: std::env::var_os("EKKO_CRASH_LOG").map(PathBuf::from),
        }
    }
}

/// Runs the self-test, then the sweep of all jobs whose names hold one of the filters.
pub fn run(filters: &[&&str]) -> ExitCode {
    let asked = Asked::read();
    say(&format!("crash sweep: repeat it with EKKO_CRASH_SEED={}", asked.seed));
    // Every fsync of a disk is waited for; in memory none is.
    let folder = || tempfile::Builder::new().prefix("ekko-crash-").to_owned();
    let scratch = folder().tempdir_in("/dev/shm").or_else(|_| folder().tempdir()).unwrap();
    let scratch_path = scratch.path().canonicalize().unwrap();
    let begun = Instant::now();
    if let Err(error) = self_test::run(&scratch_path) {
        say(&format!("the self-test fails: {error}"));
        return ExitCode::FAILURE;
    }
    say(&format!("self-test: held, {:.0} s", begun.elapsed().as_secs_f64()));
    let wanted = |job: &&Job| filters.is_empty() || filters.iter().any(|text| job.name.contains(**text));
    let jobs: Vec<_> = JOBS.iter().filter(wanted).collect();
    let tallies = sweep(&asked, &jobs, &scratch_path);
    let mut all = Tally::default();
    for (name, tally) in tallies {
        say(&format!(
            "{name}: {} calls, {} points, {} states, {} did not hold",
            tally.calls,
            tally.points,
            tally.states,
            tally.failures.len()
        ));
        all.add(tally);
    }
    for failure in &all.failures {
        say(&format!("did not hold: {failure}"));
    }
    say(&format!(
        "seed {}: {} jobs, {} points, {} states, {} did not hold; {:.0} s",
        asked.seed,
        jobs.len(),
        all.points,
        all.states,
        all.failures.len(),
        begun.elapsed().as_secs_f64()
    ));
    if all.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Sweeps jobs with several processes at once. When all cases are asked for, each job is divided into parts.
fn sweep(asked: &Asked, jobs: &[&'static Job], scratch: &Path) -> BTreeMap<&'static str, Tally> {
    let done = Done::read(asked.log.as_deref());
    let first_end = if asked.all { CHUNK } else { u64::MAX };
    let parts: VecDeque<_> = jobs.iter().map(|job| Part { job, from: 0, to: first_end }).collect();
    let parts = Mutex::new((parts, 0_usize));
    let tallies = Mutex::new(BTreeMap::<&'static str, Tally>::new());
    std::thread::scope(|scope| {
        for _ in 0..asked.cores {
            scope.spawn(|| {
                loop {
                    let part = {
                        let mut parts = parts.lock().unwrap();
                        let part = parts.0.pop_front();
                        parts.1 += usize::from(part.is_some());
                        (part, parts.1)
                    };
                    let part = match part {
                        (Some(part), _) => part,
                        // Who works on a first part may find more.
                        (None, 1..) => {
                            std::thread::sleep(std::time::Duration::from_millis(50));
                            continue;
                        }
                        (None, 0) => return,
                    };
                    let tally = done.get(&part).unwrap_or_else(|| {
                        let tally = part.run(scratch, asked.seed, asked.sample);
                        done.write(&part, &tally);
                        tally
                    });
                    let mut parts = parts.lock().unwrap();
                    if part.from == 0 && part.to != u64::MAX {
                        let more = (part.to..=tally.calls).step_by(usize::try_from(CHUNK).unwrap());
                        parts.0.extend(more.map(|from| Part { from, to: from + CHUNK, ..part.clone() }));
                    }
                    parts.1 -= 1;
                    drop(parts);
                    tallies.lock().unwrap().entry(part.job.name).or_default().add(tally);
                }
            });
        }
    });
    tallies.into_inner().unwrap()
}

/// Parts that are done, in a file.
struct Done {
    file: Option<Mutex<File>>,
    known: BTreeMap<String, String>,
}

impl Done {
    fn read(path: Option<&Path>) -> Self {
        let text = path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let line = |line: &str| line.split_once(' ').map(|(part, tally)| (part.to_owned(), tally.to_owned()));
        let open = |path: &Path| File::options().append(true).create(true).open(path).unwrap();
        Self { file: path.map(open).map(Mutex::new), known: text.lines().filter_map(line).collect() }
    }

    fn key(part: &Part) -> String {
        format!("{}:{}", part.job.name, part.from)
    }

    fn get(&self, part: &Part) -> Option<Tally> {
        serde_json::from_str(self.known.get(&Self::key(part))?).ok()
    }

    fn write(&self, part: &Part, tally: &Tally) {
        if let Some(file) = &self.file {
            let text = serde_json::to_string(tally).unwrap();
            writeln!(file.lock().unwrap(), "{} {text}", Self::key(part)).unwrap();
        }
    }
}

/// Returns a seed that is another one each time.
fn random() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |time| u64::from(time.subsec_nanos()) ^ time.as_secs())
}

#[expect(clippy::print_stdout, reason = "this program says what it finds")]
fn say(line: &str) {
    println!("{line}");
}
