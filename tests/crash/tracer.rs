//! Runs a program so that its changing calls happen in one order, over all its threads and children.
//!
//! A filter (seccomp) stops a thread at each call of [`calls`]. The tracer lets one such call run to its end before it
//! looks at the next, so each has a number. At a chosen number it kills the program, or lets the call fail.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, killpg, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use seccompiler::{SeccompAction, SeccompFilter, TargetArch};

use crate::calls::{self, Area, Call, Change};

/// A program that takes longer hangs.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What happens to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing; its calls are recorded with their bytes.
    Record,
    /// It is killed before the call of this number, counted from 0.
    Kill(u64),
    /// The call of this number fails with this error.
    Fail(u64, i32),
    /// From this number on, each call that needs room fails: the disk is full.
    Full(u64),
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// By a signal.
    Killed,
    /// It did not end in time.
    Hung,
}

/// Runs programs one after the other and counts on.
#[derive(Debug)]
pub struct Tracer {
    area: Area,
    plan: Plan,
    /// How many calls have ended.
    pub count: Arc<AtomicU64>,
    /// What each call changed; only of a plan that records.
    pub changes: Vec<Vec<Change>>,
    /// The calls themselves, in words; of the same plan.
    pub calls: Vec<String>,
    /// Where the plan struck.
    pub struck: Option<String>,
}

impl Tracer {
    pub fn new(area: Area, plan: Plan) -> Self {
        let count = Arc::new(AtomicU64::new(0));
        Self { area, plan, count, changes: Vec::new(), calls: Vec::new(), struck: None }
    }

    /// Runs a program, which prints to a file. `started` is told its process.
    ///
    /// # Errors
    ///
    /// The program cannot be traced here.
    pub fn run(
        &mut self,
        command: &Command,
        output: &Path,
        started: impl FnOnce(Pid),
    ) -> Result<Ended, String> {
        let child = under_filter(command, output).and_then(|mut command| command.spawn());
        let child = child.map_err(|error| format!("cannot start it: {error}"))?;
        let root = Pid::from_raw(child.id().cast_signed());
        match waitpid(root, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Stopped(_, Signal::SIGSTOP)) => {}
            other => {
                return Err(format!("cannot trace a program: {other:?}; does this machine allow ptrace?"));
            }
        }
        let options = Options::PTRACE_O_TRACESECCOMP
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(root, options).map_err(|error| format!("cannot trace a program: {error}"))?;
        ptrace::cont(root, None).map_err(|error| format!("cannot trace a program: {error}"))?;
        started(root);
        let (done, watched) = channel::<()>();
        let watch = std::thread::spawn(move || {
            let hangs = watched.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
            if hangs {
                let _ = killpg(root, Signal::SIGKILL);
            }
            hangs
        });
        let ended = self.follow(root);
        drop(done);
        match watch.join() {
            Ok(false) => ended,
            _ => Ok(Ended::Hung),
        }
    }

    /// Follows the program until all of it has ended.
    fn follow(&mut self, root: Pid) -> Result<Ended, String> {
        let mut ended = Ended::Killed;
        loop {
            // All of its process group, and no other child of this process.
            let group = Pid::from_raw(-root.as_raw());
            let status = match waitpid(group, Some(WaitPidFlag::__WALL)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return Ok(ended),
                Err(error) => return Err(format!("cannot follow a program: {error}")),
            };
            match status {
                WaitStatus::Exited(pid, code) if pid == root => ended = Ended::Code(code),
                WaitStatus::PtraceEvent(pid, _, libc::PTRACE_EVENT_SECCOMP) => {
                    if let Some(code) = self.call(pid, root)? {
                        ended = Ended::Code(code);
                    }
                }
                WaitStatus::Stopped(pid, Signal::SIGSTOP | Signal::SIGTRAP)
                | WaitStatus::PtraceEvent(pid, ..)
                | WaitStatus::PtraceSyscall(pid) => resume(pid, None),
                WaitStatus::Stopped(pid, signal) => resume(pid, Some(signal)),
                _ => {}
            }
        }
    }

    /// Lets a thread make its call, or not. Returns the exit code of the program if it ended meanwhile.
    fn call(&mut self, thread: Pid, root: Pid) -> Result<Option<i32>, String> {
        // A thread that was killed meanwhile is gone, here and below.
        let Ok(registers) = ptrace::getregs(thread) else { return Ok(None) };
        let arguments =
            [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
        let Some(call) = Call::of(thread, registers.orig_rax.cast_signed(), arguments, &self.area) else {
            resume(thread, None);
            return Ok(None);
        };
        let number = self.count.load(Ordering::SeqCst);
        let error = match self.plan {
            Plan::Kill(at) if at == number => {
                self.struck = Some(call.to_string());
                let _ = killpg(root, Signal::SIGKILL);
                return Ok(None);
            }
            Plan::Fail(at, error) if at == number => Some(error),
            Plan::Full(from) if number >= from && call.needs_room() => Some(libc::ENOSPC),
            _ => None,
        };
        if let Some(error) = error {
            self.struck.get_or_insert_with(|| call.to_string());
            let mut registers = registers;
            registers.orig_rax = u64::MAX;
            registers.rax = i64::from(-error).cast_unsigned();
            let _ = ptrace::setregs(thread, registers);
            self.count.fetch_add(1, Ordering::SeqCst);
            resume(thread, None);
            return Ok(None);
        }
        let ended = to_its_end(thread, root)?;
        if ended.is_none() && self.plan == Plan::Record {
            let result = ptrace::getregs(thread).map_or(-1, |registers| registers.rax.cast_signed());
            let changed = match u64::try_from(result) {
                Ok(result) => call.changed(result, &self.area)?,
                Err(_) => Vec::new(),
            };
            self.changes.push(changed);
            self.calls.push(call.to_string());
        }
        self.count.fetch_add(1, Ordering::SeqCst);
        if ended.is_none() {
            resume(thread, None);
        }
        Ok(ended)
    }
}

fn resume(thread: Pid, signal: Option<Signal>) {
    // It fails for a thread that was killed meanwhile, which is what waitpid says next.
    let _ = ptrace::cont(thread, signal);
}

/// Lets a call run to its end. Returns the exit code if the whole program ended in it.
fn to_its_end(thread: Pid, root: Pid) -> Result<Option<i32>, String> {
    let mut signal = None;
    loop {
        if ptrace::syscall(thread, signal).is_err() {
            return Ok(None);
        }
        match waitpid(thread, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceSyscall(_)) => return Ok(None),
            Ok(WaitStatus::Stopped(_, Signal::SIGSTOP | Signal::SIGTRAP)) => signal = None,
            Ok(WaitStatus::Stopped(_, other)) => signal = Some(other),
            Ok(WaitStatus::PtraceEvent(..)) | Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(pid, code)) if pid == root => return Ok(Some(code)),
            Ok(_) | Err(Errno::ECHILD) => return Ok(Some(-1)),
            Err(error) => return Err(format!("cannot follow a call: {error}")),
        }
    }
}

/// Returns a command that runs this program, which asks to be traced, sets the filter and becomes the other.
fn under_filter(command: &Command, output: &Path) -> io::Result<Command> {
    let output = File::options().append(true).create(true).open(output)?;
    let mut traced = Command::new(std::env::current_exe()?);
    traced.arg("--become").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(key, value),
            None => traced.env_remove(key),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        traced.current_dir(folder);
    }
    // It and its children are killed together.
    traced.process_group(0);
    traced.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    Ok(traced)
}

/// Becomes another program, under the filter and traced by the parent. Returns why that cannot be.
pub fn become_traced(arguments: &[&str]) -> io::Error {
    let Some((program, arguments)) = arguments.split_first() else {
        return io::Error::other("no program");
    };
    let prepare = || -> Result<(), String> {
        let rules = calls::numbers().map(|number| (number, Vec::new())).collect();
        let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trace(0), architecture)
            .map_err(|error| error.to_string())?;
        let filter: seccompiler::BpfProgram = filter.try_into().map_err(|error| format!("{error}"))?;
        ptrace::traceme().map_err(|error| error.to_string())?;
        raise(Signal::SIGSTOP).map_err(|error| error.to_string())?;
        seccompiler::apply_filter(&filter).map_err(|error| error.to_string())
    };
    match prepare() {
        Ok(()) => Command::new(Path::new(program)).args(arguments).exec(),
        Err(error) => io::Error::other(error),
    }
}
