//! Whether a repository that was left at any moment holds what it must: the review that each state goes through.
//!
//! It works in a process of its own, so that one that hangs can be ended: it reads a line for each state and writes a line for
//! each step that begins, then one with the verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use ekko::backup::back_up;
use ekko::check::{CheckIndex, CheckOptions, ReadData, check_with_index};
use ekko::repository::{
    BackupRecord, Backupset, GcOptions, OpenOptions, Repository, RepositoryWriter, SharedWriter,
};
use ekko::restore::{RestoreOptions, restore_to_stream};
use serde::{Deserialize, Serialize};

use crate::common::{MemoryImage, Told, files_below, name, options, small_segments};
use crate::jobs::{Disk, content};
use crate::tracer::LIMIT;

/// What a repository must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wanted {
    /// Backups that must be there, with their disks.
    pub must: BTreeMap<String, Disk>,
    /// Backups that may be there.
    pub may: BTreeMap<String, Disk>,
    /// Backups of which something was damaged before: what restores of them must be right, until they are healed.
    pub harmed: BTreeMap<String, Disk>,
    /// Backups that are there together or not at all.
    pub together: Vec<Vec<String>>,
    /// Pairs of which exactly one is there.
    pub one_of: Vec<(String, String)>,
}

impl Wanted {
    fn disk(&self, backup: &str) -> Option<Disk> {
        self.must.get(backup).or_else(|| self.may.get(backup)).copied()
    }

    /// Compares what is listed with what must be.
    fn compare(&self, listed: &BTreeSet<String>) -> Result<(), String> {
        if let Some(lost) = self.must.keys().find(|backup| !listed.contains(*backup)) {
            return Err(format!("{lost} was acknowledged, and is not listed"));
        }
        if let Some(more) = listed.iter().find(|backup| self.disk(backup).is_none()) {
            return Err(format!("{more} is listed, and must not be"));
        }
        for group in &self.together {
            let there = group.iter().filter(|backup| listed.contains(*backup)).count();
            if there != 0 && there != group.len() {
                return Err(format!("of {group:?}, {there} are listed: all or none must be"));
            }
        }
        for (one, other) in &self.one_of {
            if listed.contains(one) == listed.contains(other) {
                return Err(format!("of {one} and {other}, one must be listed"));
            }
        }
        Ok(())
    }
}

fn listed(repository: &Repository) -> Result<Vec<(String, Backupset, BackupRecord)>, String> {
    let (sets, problems) = repository.backupsets().map_err(|error| error.to_string())?;
    if let Some(problem) = problems.first() {
        return Err(problem.to_string());
    }
    let of_set = |set: &Backupset| {
        let record =
            |backup: &BackupRecord| (format!("{}@{}", set.name, backup.number), set.clone(), backup.clone());
        set.backups.iter().map(record).collect::<Vec<_>>()
    };
    Ok(sets.iter().flat_map(of_set).collect())
}

/// Restores every backup that is listed and compares it with its disk.
fn restore_all(repository: &Repository, wanted: &Wanted) -> Result<(), String> {
    let backups = listed(repository)?;
    wanted.compare(&backups.iter().map(|(name, ..)| name.clone()).collect())?;
    for (name, set, backup) in &backups {
        let failed = |error: &dyn std::fmt::Display| format!("{name} does not restore: {error}");
        let manifest = repository.manifest(set, backup).map_err(|error| failed(&error))?;
        let mut bytes = Vec::new();
        let options = RestoreOptions { jobs: 1, sync: false, ..RestoreOptions::default() };
        let told = Told::default();
        let summary = restore_to_stream(repository, &manifest, &mut bytes, &options, &told)
            .map_err(|error| failed(&error))?;
        for damaged in &summary.damaged {
            let range =
                usize::try_from(damaged.range.start).unwrap()..usize::try_from(damaged.range.end).unwrap();
            // What is named as damaged is zero, and the rest is right.
            match wanted.harmed.get(name).copied().and_then(content) {
                Some(disk) => bytes[range.clone()].copy_from_slice(&disk[range]),
                None => return Err(failed(&damaged.error)),
            }
        }
        if wanted.disk(name).and_then(content).is_some_and(|disk| disk != bytes) {
            return Err(failed(&"it differs from its disk"));
        }
    }
    Ok(())
}

/// Opens a repository. If a segment was damaged before, a rebuild may report that no pack has it: a repair took it away.
fn open(folder: &Path, rebuild: bool, damaged: bool) -> Result<SharedWriter, String> {
    let options = OpenOptions { rebuild, wait: Duration::from_secs(5), ..OpenOptions::default() };
    let told = Told::default();
    let writer =
        RepositoryWriter::open(folder, &options, &told).map_err(|error| format!("does not open: {error}"))?;
    let expected = |problem: &String| damaged && problem.contains("that backups name are in no pack");
    match told.problems().iter().find(|problem| !expected(problem)) {
        Some(problem) => Err(format!("a problem when it opens: {problem}")),
        None => Ok(SharedWriter::new(writer)),
    }
}

fn check(writer: &SharedWriter) -> Result<(), String> {
    let options = CheckOptions { read_data: ReadData::All, jobs: 1 };
    let summary = check_with_index(writer, &options, false, &Told::default())
        .map_err(|error| format!("the check fails: {error}"))?;
    if !summary.is_clean() || summary.index != CheckIndex::Agrees {
        return Err(format!("the check finds {:?} {:?}", summary.problems, summary.damaged));
    }
    Ok(())
}

/// Backs up two disks that have segments in common with those that are there.
fn grow(writer: &SharedWriter, wanted: &mut Wanted) -> Result<(), String> {
    for (image, disk) in [("lean", Disk(0, 1)), ("lean-too", Disk(7, 0))] {
        back_up_as(writer, image, disk, wanted)?;
    }
    Ok(())
}

/// Repairs what was damaged before, and backs up the disks that it was of.
fn heal(writer: &SharedWriter, wanted: &mut Wanted) -> Result<(), String> {
    let options = CheckOptions { read_data: ReadData::All, jobs: 1 };
    check_with_index(writer, &options, true, &Told::default())
        .map_err(|error| format!("the repair fails: {error}"))?;
    for disk in std::mem::take(&mut wanted.harmed).into_values() {
        back_up_as(writer, "healed", disk, wanted)?;
    }
    Ok(())
}

fn back_up_as(writer: &SharedWriter, image: &str, disk: Disk, wanted: &mut Wanted) -> Result<(), String> {
    let bytes = content(disk).ok_or("a disk without content")?;
    back_up(writer, &name(image), &MemoryImage::new(&bytes, 4096), &options(), &Told::default())
        .map_err(|error| format!("the next backup fails: {error}"))?;
    wanted.must.insert(format!("{image}@0"), disk);
    Ok(())
}

fn collect(writer: &SharedWriter) -> Result<(), String> {
    let options = GcOptions {
        dry_run: false,
        now: Some(""),
        keep_unfinished: Some(Duration::ZERO),
        accept_lost: false,
        jobs: 1,
    };
    let told = Told::default();
    let summary = writer
        .run_job(
            &told,
            |summary: &ekko::repository::GcSummary| summary.replace_index,
            |writer| writer.gc(&options, &told),
        )
        .map_err(|error| format!("the collection fails: {error}"))?;
    match summary.problems.first() {
        Some(problem) => Err(format!("the collection has a problem: {problem}")),
        None => Ok(()),
    }
}

fn close(writer: SharedWriter) -> Result<(), String> {
    writer.close().map_err(|error| format!("it does not close: {error}"))
}

/// Goes through all that must work on a repository that was left at any moment.
fn verify(folder: &Path, wanted: &mut Wanted, step: &dyn Fn(&str)) -> Result<(), String> {
    let reader = || Repository::open(folder).map_err(|error| error.to_string());
    step("restore what is there, without recovery");
    if wanted.must.is_empty() && reader().is_err() {
        // Making it was cut short: that it is made must still work.
        Repository::init(folder, &small_segments()).map_err(|error| format!("cannot be made: {error}"))?;
    }
    restore_all(&reader()?, wanted)?;
    step("open and check");
    let writer = open(folder, false, !wanted.harmed.is_empty())?;
    // Now, as a check replaces the file of the checks and its temporary one.
    nothing_temporary(folder)?;
    if !wanted.harmed.is_empty() {
        heal(&writer, wanted)?;
    }
    check(&writer)?;
    step("two more backups");
    grow(&writer, wanted)?;
    step("collect");
    collect(&writer)?;
    step("restore again");
    restore_all(&reader()?, wanted)?;
    step("check again");
    check(&writer)?;
    close(writer)?;
    step("rebuild and check");
    let writer = open(folder, true, false)?;
    check(&writer)?;
    close(writer)?;
    step("look for what is left");
    nothing_temporary(folder)
}

fn nothing_temporary(folder: &Path) -> Result<(), String> {
    let left = files_below(folder).into_iter().find(|path| path.extension().is_some_and(|end| end == "tmp"));
    match left {
        Some(left) => Err(format!("{} is left", left.display())),
        None => Ok(()),
    }
}

#[derive(Serialize, Deserialize)]
struct Request {
    folder: PathBuf,
    wanted: Wanted,
}

/// Answers requests until there are no more.
pub fn serve() {
    // The answer says what a panic says; the store catches those of its index itself.
    std::panic::set_hook(Box::new(|_| {}));
    for line in std::io::stdin().lines() {
        let mut request: Request = serde_json::from_str(&line.unwrap()).unwrap();
        let step = |name: &str| say(&format!("step {name}"));
        let verdict = catch_unwind(AssertUnwindSafe(|| verify(&request.folder, &mut request.wanted, &step)));
        let verdict = verdict.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(format!("panics: {}", text.unwrap_or_default()))
        });
        match verdict {
            Ok(()) => say("holds"),
            Err(error) => say(&format!("fails {}", error.replace('\n', " "))),
        }
    }
}

#[expect(clippy::print_stdout, reason = "this process answers on its stdout")]
fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}

/// A process that verifies; a new one is started if it hangs or dies.
#[derive(Debug, Default)]
pub struct Verifier(Option<(Child, ChildStdin, Receiver<String>)>);

impl Verifier {
    fn process(&mut self) -> &mut (Child, ChildStdin, Receiver<String>) {
        self.0.get_or_insert_with(|| {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .arg("--verify")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let (lines, answers) = channel();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            std::thread::spawn(move || {
                stdout.lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
            });
            let stdin = child.stdin.take().unwrap();
            (child, stdin, answers)
        })
    }

    /// Verifies a repository, and changes it by that.
    pub fn verify(&mut self, folder: &Path, wanted: &Wanted) -> Result<(), String> {
        let request = Request { folder: folder.to_owned(), wanted: wanted.clone() };
        let (_, stdin, answers) = self.process();
        writeln!(stdin, "{}", serde_json::to_string(&request).unwrap()).map_err(|error| error.to_string())?;
        let mut at = "begin".to_owned();
        loop {
            match answers.recv_timeout(LIMIT) {
                Ok(line) if line == "holds" => return Ok(()),
                Ok(line) => match line.strip_prefix("step ") {
                    Some(step) => step.clone_into(&mut at),
                    None => return Err(format!("{at}: {}", line.trim_start_matches("fails "))),
                },
                Err(error) => {
                    self.end();
                    return Err(format!("{at}: hangs, or dies ({error})"));
                }
            }
        }
    }

    fn end(&mut self) {
        if let Some((mut child, stdin, _)) = self.0.take() {
            drop(stdin);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.end();
    }
}
