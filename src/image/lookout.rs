//! Who has which files open for writing, for many looks: one look at all open files of a host takes milliseconds, and a backup of
//! hundreds of disks looks twice for each.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::image::in_use::{DiskUse, Source, mounts, names, read_line, used, writable};

/// What was found is used again for so many times as long as it took: then looking takes a twentieth of the time at most.
const USED_FOR: u32 = 20;

/// Finds out who uses sources. It remembers for a fraction of a second who has which files open.
#[derive(Debug, Default)]
pub struct Lookout {
    writers: Mutex<Option<Writers>>,
}

/// Which files and devices others have open for writing.
#[derive(Debug)]
struct Writers {
    found: Instant,
    took: Duration,
    /// The number of a process that has it open.
    open: HashMap<Source, String>,
}

impl Writers {
    fn find() -> Self {
        let found = Instant::now();
        let own = std::process::id().to_string();
        let processes = Path::new("/proc");
        let mut open = HashMap::new();
        for pid in names(processes) {
            if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let folder = processes.join(&pid).join("fd");
            for descriptor in names(&folder) {
                let link = folder.join(descriptor);
                // The link says how the file was opened: its owner may write to it if the process may.
                let is_written = fs::symlink_metadata(&link).is_ok_and(|it| it.mode() & 0o200 != 0);
                // Following the link gives the open file itself, even if its name is gone.
                if is_written && let Some(source) = Source::at(&link) {
                    open.entry(source).or_insert_with(|| pid.clone());
                }
            }
        }
        Self { found, took: found.elapsed(), open }
    }

    fn is_recent(&self) -> bool {
        self.found.elapsed() <= self.took * USED_FOR
    }
}

impl Lookout {
    /// Says in words who may be changing a source: "mounted on /mnt/web", "held by dm-0", "open for writing by process 1234
    /// (qemu-system-x86)". `None` if nobody is known to.
    pub fn source_use(&self, path: &Path) -> Option<String> {
        used(path, &mounts(), |source| self.writer(source, false))
    }

    /// The same, but for a filesystem that is mounted read-only: it changes nothing on its disk. A device does not show later that
    /// it was written to, so nothing older is used for it.
    pub fn source_writer(&self, path: &Path) -> Option<String> {
        used(path, &writable(&mounts()), |source| self.writer(source, matches!(source, Source::Device(_))))
    }

    fn writer(&self, source: Source, anew: bool) -> Option<DiskUse> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = writers.take().filter(|writers| !anew && writers.is_recent());
        let writers = writers.insert(recent.unwrap_or_else(Writers::find));
        let process = writers.open.get(&source)?.clone();
        let program = read_line(&Path::new("/proc").join(&process).join("comm"));
        Some(DiskUse::OpenForWriting { process, program })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that has a file open for writing until its input ends.
    fn holder(path: &Path) -> Child {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec 3<>\"$1\"; echo ready; read end", "sh"]).arg(path);
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
        child
    }

    #[test]
    fn a_recent_look_is_used_again_and_an_old_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, "disk").unwrap();
        let lookout = Lookout::default();
        let takes = |took| lookout.writers.lock().unwrap().as_mut().unwrap().took = took;
        assert_eq!(lookout.source_writer(&path), None);
        let mut holder = holder(&path);
        takes(Duration::from_hours(1));
        assert_eq!(lookout.source_use(&path), None);
        takes(Duration::ZERO);
        let expected = format!("open for writing by process {} (sh)", holder.id());
        for look in [lookout.source_use(&path), lookout.source_writer(&path)] {
            assert_eq!(look, Some(expected.clone()));
        }
        drop(holder.stdin.take());
        holder.wait().unwrap();
    }
}
