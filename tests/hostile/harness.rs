//! A repository to harm, a folder beside it that must stay as it is, and runs of the program with limits.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// No command takes longer with any of these repositories: generous, as it only says that none hangs.
pub(crate) const LONGEST: Duration = Duration::from_mins(1);
/// The most memory that a command takes, in KiB: 300 MB.
pub(crate) const MOST_MEMORY: u64 = 300_000_000 / 1024;

/// The repository that is copied and harmed: two backups of `web`, one of them deleted, and one of `db`.
static ORIGINAL: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
        let output =
            command.args(["-r", "store"]).args(arguments).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["init", "--segment-size", "64KiB"]);
    for (seed, name) in [(1, "web"), (2, "web"), (3, "db")] {
        // The first pack holds segments of both backups of `web`, so a collection frees a part of it.
        let mut disk = noise(seed, 299_008);
        disk[..131_072].copy_from_slice(&noise(9, 131_072));
        fs::write(folder.path().join("disk.raw"), disk).unwrap();
        run(&["backup", &format!("{name}=disk.raw")]);
    }
    run(&["delete", "web@0"]);
    run(&["token", "create", "--project", "blue", "--role", "backup"]);
    for name in ["leases", "sessions"] {
        fs::create_dir_all(folder.path().join("store").join(name)).unwrap();
    }
    folder
});

fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Something in the folder outside: its path, mode, length, times and bytes.
type Outside = (PathBuf, u32, u64, i64, i64, Vec<u8>);

/// A copy of the repository, and the folder beside it.
pub(crate) struct World {
    folder: tempfile::TempDir,
}

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The exit code; none if it was killed.
    pub(crate) code: Option<i32>,
    pub(crate) text: String,
    /// The most memory that it had.
    pub(crate) peak_kib: u64,
}

impl Ran {
    /// Expects a failure, or that problems were found, and a name in what is said.
    pub(crate) fn refuses(&self, names: &str, what: &str) {
        assert!(self.code.is_some_and(|code| code != 0), "{what}: {self:?}");
        assert!(self.text.contains(names), "{what} does not name {names}: {self:?}");
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .args([ORIGINAL.path().join("store"), ORIGINAL.path().join("disk.raw")])
            .arg(folder.path())
            .status();
        assert!(copied.unwrap().success());
        fs::create_dir(folder.path().join("outside")).unwrap();
        Self { folder }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path in the repository.
    pub(crate) fn store(&self, name: &str) -> PathBuf {
        self.at("store").join(name)
    }

    /// The folder of the backupset of an image.
    pub(crate) fn set(&self, image: &str) -> PathBuf {
        let line = format!("name = \"{image}\"\n");
        let mut sets = fs::read_dir(self.store("manifests")).unwrap().map(|entry| entry.unwrap().path());
        sets.find(|set| fs::read_to_string(set.join("set.toml")).is_ok_and(|text| text.contains(&line)))
            .unwrap()
    }

    /// The first pack.
    pub(crate) fn pack(&self) -> PathBuf {
        self.store("packs/0000000000000001.pack")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
        command.args(["-r", "store"]).args(arguments).current_dir(self.folder.path());
        command.env_remove("EKKO_REPOSITORY").stdin(Stdio::null());
        command
    }

    /// Runs a command; it must end in time and within its memory.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        watched(&mut self.command(arguments), |_| {})
    }

    /// Runs one of the commands that are tried on every repository.
    pub(crate) fn try_command(&self, command: &str) -> Ran {
        let _ = fs::remove_file(self.at("restored"));
        match command {
            "restore" => self.run(&["restore", "web@1", "restored"]),
            "backup" => self.run(&["backup", "web=disk.raw"]),
            "gc" => self.run(&["gc", "--now", "--keep-unfinished", "0s"]),
            "token" => self.run(&["token", "list"]),
            "serve" => self.serve(),
            other => self.run(&[other]),
        }
    }

    /// Serves the repository, backs a disk up through the service, and ends it.
    fn serve(&self) -> Ran {
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0"]);
        let mut asked = false;
        watched(&mut command, |process| {
            let is_socket = fs::symlink_metadata(self.store("ekko.sock"))
                .is_ok_and(|it| std::os::unix::fs::FileTypeExt::is_socket(&it.file_type()));
            if !asked && is_socket && UnixStream::connect(self.store("ekko.sock")).is_ok() {
                asked = true;
                watched(&mut self.command(&["backup", "web=disk.raw"]), |_| {});
                let process = rustix::process::Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
                rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
            }
        })
    }

    /// What is in the folder outside: names, modes, lengths, times and bytes.
    pub(crate) fn outside(&self) -> Vec<Outside> {
        let mut all = Vec::new();
        let mut folders = vec![self.at("outside")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let bytes = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                if metadata.is_dir() {
                    folders.push(path.clone());
                }
                let times = (metadata.mtime(), metadata.mtime_nsec());
                all.push((path, metadata.mode(), metadata.len(), times.0, times.1, bytes));
            }
        }
        all.sort();
        all
    }

    /// Runs commands, and expects that those in `refusing` fail and name something, that all end within their limits, and
    /// that nothing outside has changed.
    pub(crate) fn refuse(&self, what: &str, refusing: &[&str], names: &str) {
        let before = self.outside();
        for command in ["list", "restore", "check", "gc", "backup", "token", "serve"] {
            let ran = self.try_command(command);
            let what = format!("{what}: {command}");
            assert!(ran.code.is_some() && !ran.text.contains("panicked"), "{what}: {ran:?}");
            assert!(ran.peak_kib <= MOST_MEMORY, "{what}: {ran:?}");
            if refusing.contains(&command) {
                ran.refuses(names, &what);
            }
            assert_eq!(self.outside(), before, "{what}");
        }
    }
}

/// Runs a command to its end; it must end in time and within its memory.
fn watched(command: &mut Command, mut look: impl FnMut(u32)) -> Ran {
    let log = tempfile::NamedTempFile::new().unwrap();
    let out = || Stdio::from(File::options().append(true).open(log.path()).unwrap());
    let mut child = command.stdout(out()).stderr(out()).spawn().unwrap();
    let (begun, mut peak_kib) = (Instant::now(), 0);
    let status = loop {
        // The most memory that it has had, which only grows.
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak_kib = peak.unwrap_or(0).max(peak_kib);
        let ended = child.try_wait().unwrap();
        if ended.is_none() && (begun.elapsed() > LONGEST || peak_kib > MOST_MEMORY) {
            child.kill().unwrap();
            child.wait().unwrap();
            let said = fs::read_to_string(log.path()).unwrap();
            let why = if peak_kib > MOST_MEMORY { "takes too much memory" } else { "hangs" };
            panic!("{command:?} {why}: {:?}, {peak_kib} KiB: {said}", begun.elapsed());
        }
        if let Some(status) = ended {
            break status;
        }
        look(child.id());
        std::thread::sleep(Duration::from_millis(1));
    };
    Ran { code: status.code(), text: fs::read_to_string(log.path()).unwrap(), peak_kib }
}

/// Makes a pipe.
pub(crate) fn pipe(path: &Path) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}
