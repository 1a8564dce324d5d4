//! A job's folder, and how its commands run in it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::calls::{Area, Change};
use crate::device::Loop;
use crate::jobs::{self, Disk, Job, Step, Target, Work, content};
use crate::service::Served;
use crate::tracer::{Ended, LIMIT, Plan, Tracer};

/// For each line of commands and each command: after how many calls it was acknowledged.
pub type Acknowledged = Vec<Vec<Option<u64>>>;

/// What a run left.
pub struct Ran {
    pub acknowledged: Acknowledged,
    pub changes: Vec<Vec<Change>>,
    pub calls: Vec<String>,
    pub struck: Option<String>,
}

/// Which byte of a pack is harmed: one of its first record.
const HARMED: u64 = 9000;

/// Returns the program that is swept: the one built for tests, or the one that `EKKO` names.
pub fn ekko() -> PathBuf {
    std::env::var_os("EKKO").map_or_else(|| env!("CARGO_BIN_EXE_ekko").into(), PathBuf::from)
}

/// Where a job runs.
#[derive(Debug)]
pub struct Stage {
    pub job: &'static Job,
    scratch: PathBuf,
    /// What an undisturbed run makes of the target.
    pub made: Option<Vec<u8>>,
}

impl Stage {
    /// Prepares a job in an empty folder.
    pub fn new(job: &'static Job, scratch: &Path) -> Result<Self, String> {
        fs::create_dir_all(scratch.join("disks")).map_err(text)?;
        for family in 0..jobs::FAMILIES {
            for version in 0..jobs::VERSIONS {
                let bytes = content(Disk(family, version)).unwrap_or_default();
                fs::write(scratch.join(format!("disks/{family}-{version}")), bytes).map_err(text)?;
            }
        }
        let stage = Self { job, scratch: scratch.to_owned(), made: None };
        stage.prepare()?;
        Ok(stage)
    }

    pub fn is_of_clients(&self) -> bool {
        matches!(self.job.work, Work::Clients(_))
    }

    pub fn folder(&self) -> PathBuf {
        self.scratch.join("F")
    }

    /// Where the commands run.
    pub fn work_folder(&self) -> PathBuf {
        if self.is_of_clients() { self.folder().join("client") } else { self.folder() }
    }

    pub fn output(&self) -> PathBuf {
        self.scratch.join("output")
    }

    fn prepare(&self) -> Result<(), String> {
        for folder in ["out", "client/out", "service"] {
            fs::create_dir_all(self.folder().join(folder)).map_err(text)?;
        }
        for line in self.job.before.iter().copied().flatten() {
            let mut command = Command::new(ekko());
            let (kill_at, repository, line) = match line.split_once(' ') {
                Some(("@other", rest)) => (None, "other", rest),
                Some(("!harm", file)) => {
                    let file = File::options().read(true).write(true).open(self.folder().join(file));
                    let file = file.map_err(text)?;
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, HARMED).map_err(text)?;
                    file.write_all_at(&[!byte[0]], HARMED).map_err(text)?;
                    continue;
                }
                Some(("!room", file)) => {
                    let file = File::options().write(true).open(self.folder().join(file)).map_err(text)?;
                    file.set_len(1 << 20).map_err(text)?;
                    continue;
                }
                Some(("!kill", rest)) => {
                    let (number, rest) = rest.split_once(' ').unwrap_or_default();
                    (number.parse().ok(), self.job.repository(), rest)
                }
                _ => (None, self.job.repository(), *line),
            };
            command.args(["-q", "-r", repository]).args(self.words(line, None)).current_dir(self.folder());
            command.env_remove("EKKO_REPOSITORY");
            let works = if let Some(at) = kill_at {
                let mut tracer = Tracer::new(self.area(None), Plan::Kill(at));
                tracer.run(&command, &self.output(), |_| ())? == Ended::Killed
            } else {
                let output = File::create(self.output()).map_err(text)?;
                let output = command.stdout(output.try_clone().map_err(text)?).stderr(output);
                output.status().map_err(text)?.success()
            };
            if !works {
                let said = fs::read_to_string(self.output()).unwrap_or_default();
                return Err(format!("cannot prepare: {line}: {said}"));
            }
        }
        Ok(())
    }

    pub fn device(&self) -> Result<Option<Loop>, String> {
        match self.job.target {
            Some(target) if target.again.contains("{device}") => {
                Loop::attach(&self.work_folder().join(target.file))
            }
            _ => Ok(None),
        }
    }

    fn area(&self, device: Option<&Loop>) -> Area {
        let target = self.job.target.map(|target| target.file.to_owned()).unwrap_or_default();
        Area {
            root: self.folder(),
            below: self.work_folder(),
            devices: device.map(|device| (device.path().to_owned(), target)).into_iter().collect(),
            sends: self.is_of_clients(),
        }
    }

    /// Returns the words of a command, with what stands for files.
    fn words(&self, command: &str, device: Option<&Loop>) -> Vec<String> {
        let disks = format!("{}/", self.scratch.join("disks").display());
        let file = self.job.target.map_or("", |target| target.file);
        let device = device.map_or(file.to_owned(), |device| device.path().display().to_string());
        let word = |word: &str| word.replace("disks/", &disks).replace("{device}", &device);
        command.split_whitespace().map(word).collect()
    }

    fn command(&self, command: &str, device: Option<&Loop>, served: Option<&Served>) -> Command {
        let mut run = Command::new(ekko());
        run.arg("-q").args(self.words(command, device)).current_dir(self.work_folder());
        match served {
            Some(served) => run.env("EKKO_REPOSITORY", &served.address).env("EKKO_TOKEN", &served.token),
            None => run.env("EKKO_REPOSITORY", self.job.repository()),
        };
        run
    }

    /// Runs the job's commands under a plan. An error is one of the bench, or a hang.
    pub fn run(&self, plan: Plan, device: Option<&Loop>) -> Result<Ran, String> {
        let service = self.is_of_clients().then(|| Served::start(&self.folder().join("service/R")));
        let served = service.transpose()?;
        let ran = self.run_beside(plan, device, served.as_ref());
        // What is made complete again needs the service.
        let again = match (&ran, self.job.target, &served) {
            (Ok(ran), Some(target), Some(_)) if plan != Plan::Record => {
                self.target(target, &ran.acknowledged, u64::MAX, device, served.as_ref())
            }
            _ => Ok(()),
        };
        served.map_or(Ok(()), Served::stop)?;
        again.and(ran)
    }

    fn run_beside(&self, plan: Plan, device: Option<&Loop>, served: Option<&Served>) -> Result<Ran, String> {
        let _ = fs::remove_file(self.output());
        let mut tracer = Tracer::new(self.area(device), plan);
        let lines = self.job.work.lines();
        let mut acknowledged: Acknowledged = lines.iter().map(|line| vec![None; line.len()]).collect();
        if let Work::Service(lines) = self.job.work {
            acknowledged = self.run_service(&mut tracer, lines)?;
        } else {
            for (number, step) in lines.iter().flat_map(|line| line.iter()).enumerate() {
                let command = self.command(step.command, device, served);
                match tracer.run(&command, &self.output(), |_| ())? {
                    Ended::Code(code) if code == step.code => {
                        acknowledged[0][number] = Some(tracer.count.load(Ordering::SeqCst));
                    }
                    Ended::Hung => return Err(hang(&tracer, step.command)),
                    Ended::Code(_) | Ended::Killed => break,
                }
            }
        }
        Ok(Ran { acknowledged, changes: tracer.changes, calls: tracer.calls, struck: tracer.struck })
    }

    fn run_service(&self, tracer: &mut Tracer, lines: &[&[Step]]) -> Result<Acknowledged, String> {
        let mut serve = Command::new(ekko());
        serve.args(["-r", "R", "serve", "--listen", "127.0.0.1:0"]).current_dir(self.folder());
        serve.env_remove("EKKO_REPOSITORY");
        let acknowledged =
            Mutex::new(lines.iter().map(|line| vec![None; line.len()]).collect::<Acknowledged>());
        let (over, process) = (AtomicBool::new(false), AtomicI32::new(0));
        let count = Arc::clone(&tracer.count);
        let socket = self.folder().join("R/ekko.sock");
        let ended = std::thread::scope(|scope| {
            let beside = || {
                while UnixStream::connect(&socket).is_err() && !over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(2));
                }
                std::thread::scope(|scope| {
                    for (number, line) in lines.iter().enumerate() {
                        let (acknowledged, over, count) = (&acknowledged, &over, &count);
                        scope.spawn(move || self.run_line(number, line, over, count, acknowledged));
                    }
                });
                let process = Pid::from_raw(process.load(Ordering::SeqCst));
                let _ = kill(process, Signal::SIGTERM);
            };
            let ended = tracer.run(&serve, &self.output(), |pid| {
                process.store(pid.as_raw(), Ordering::SeqCst);
                scope.spawn(beside);
            });
            over.store(true, Ordering::SeqCst);
            ended
        })?;
        match ended {
            Ended::Hung => Err(hang(tracer, "serve")),
            Ended::Code(_) | Ended::Killed => Ok(acknowledged.into_inner().unwrap()),
        }
    }

    /// Runs clients of a service one after the other, until one fails or the service is over.
    fn run_line(
        &self,
        line: usize,
        steps: &[Step],
        over: &AtomicBool,
        count: &AtomicU64,
        acknowledged: &Mutex<Acknowledged>,
    ) {
        for (number, step) in steps.iter().enumerate() {
            let mut command = self.command(step.command, None, None);
            let output = File::options().append(true).create(true).open(self.output());
            let stderr = output.map_or(Stdio::null(), Stdio::from);
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn();
            let code = child.ok().and_then(|child| ends(child, || over.load(Ordering::SeqCst)));
            if code != Some(step.code) {
                return;
            }
            acknowledged.lock().unwrap()[line][number] = Some(count.load(Ordering::SeqCst));
        }
    }

    /// Looks at a file that the commands write, and lets them make it complete.
    pub fn target(
        &self,
        target: Target,
        acknowledged: &Acknowledged,
        calls: u64,
        device: Option<&Loop>,
        served: Option<&Served>,
    ) -> Result<(), String> {
        let path = device.map_or(self.work_folder().join(target.file), |device| device.path().to_owned());
        let made = target.disk.and_then(content).or_else(|| self.made.clone()).unwrap_or_default();
        // A device may be larger than the disk.
        let is_complete = || {
            let is_device = target.file.ends_with("device");
            fs::read(&path).is_ok_and(|bytes| bytes == made || (is_device && bytes.starts_with(&made)))
        };
        let is_done = acknowledged.iter().flatten().all(|at| at.is_some_and(|at| at <= calls));
        if is_done && !is_complete() {
            return Err(format!("{} was acknowledged, and is not complete", target.file));
        }
        let is_old = || fs::read(&path).ok() == target.old.and_then(content);
        if target.is_atomic && path.exists() && !is_complete() && !is_old() {
            return Err(format!("{} has its name, and is not complete", target.file));
        }
        if self.is_of_clients() && served.is_none() {
            return Ok(());
        }
        remove_unnamed(&path, &made);
        let output = File::create(self.output()).map_err(text)?;
        let mut command = self.command(target.again, device, served);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).spawn().map_err(text)?;
        let begun = Instant::now();
        match ends(child, || begun.elapsed() > LIMIT) {
            Some(0) if is_complete() => Ok(()),
            Some(0) => Err(format!("{} is not complete after it was made again", target.file)),
            code => {
                let said = fs::read_to_string(self.output()).unwrap_or_default();
                Err(format!("{} cannot be made again: {code:?}: {said}", target.file))
            }
        }
    }
}

pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn hang(tracer: &Tracer, command: &str) -> String {
    let at = tracer.struck.as_deref().unwrap_or("nowhere");
    format!("hangs: {command} [{at}]")
}

/// Waits for a process to end, and kills it when it is to be given up. Returns its exit code.
fn ends(mut child: Child, is_over: impl Fn() -> bool) -> Option<i32> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.code(),
            Ok(None) if !is_over() => std::thread::sleep(Duration::from_millis(1)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// Removes a complete disk that could not get its name. It has no mark of what a later restore may remove: a person must remove it.
fn remove_unnamed(path: &Path, made: &[u8]) {
    let partial = |path: &Path| {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".ekko-partial");
        PathBuf::from(partial)
    };
    let stays = |named: &Path, file: &Path| {
        let is_unmarked = fs::metadata(named).is_ok_and(|metadata| metadata.mode() & 0o1000 == 0);
        is_unmarked && fs::read(file).is_ok_and(|bytes| bytes == made)
    };
    let file = partial(path);
    if stays(&file, &file) {
        let _ = fs::remove_file(&file);
    }
    if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
        let folder = partial(folder);
        if stays(&folder, &folder.join(name)) {
            let _ = fs::remove_dir_all(&folder);
        }
    }
}
