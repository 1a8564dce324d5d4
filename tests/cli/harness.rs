//! Running the binary on a repository in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use sha1::{Digest, Sha1};

pub(crate) const MIB: usize = 1 << 20;

/// A folder with a repository `R` to be, and files beside it.
pub(crate) struct World {
    folder: tempfile::TempDir,
}

/// What a run of the binary gave.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Expects an exit code and returns the run.
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            code,
            "stdout: {}\nstderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }

    /// Expects a line on stderr that holds `text`.
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "\"{text}\" is not in: {}", self.stderr);
        self
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// The binary with the repository `R`, in the world's folder.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
        command
            .args(["-r", "R"])
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("EKKO_REPOSITORY");
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.command(arguments).output().unwrap())
    }

    /// Runs with `--json` and expects exit code 0.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[&["--json"], arguments].concat()).exits(0).json()
    }

    /// Makes a repository with segments of 64 KiB and expects it to work.
    pub(crate) fn init_small(&self) {
        self.run(&["init", "--segment-size", "64KiB"]).exits(0);
    }
}

pub(crate) fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The keys of a JSON object, sorted.
pub(crate) fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// What the original would list: the SHA-1 of each segment but the full ones of zeros.
pub(crate) fn hash_list(disk: &[u8], segment: usize) -> String {
    let kept =
        disk.chunks(segment).filter(|plain| plain.len() < segment || plain.iter().any(|byte| *byte != 0));
    kept.map(|plain| hex::encode(Sha1::digest(plain)) + "\n").collect()
}

/// Bytes that follow from a seed and do not compress.
pub(crate) fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// The disk that the original's reference manifest was made from: 22 MiB and 1000 bytes.
pub(crate) fn reference_disk() -> Vec<u8> {
    // The first 4 KiB of each segment repeat one digest; which one does not matter here.
    let filled = |tag: &[u8]| blake3::hash(tag).as_bytes().repeat(4 * MIB / 32);
    let zeros = vec![0; 4 * MIB];
    [zeros.clone(), filled(b"a"), filled(b"b"), zeros, filled(b"a"), vec![0; 2 * MIB + 1000]].concat()
}

/// Every file of the index that holds anything.
pub(crate) fn index_files(world: &World) -> Vec<PathBuf> {
    fn below(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, files);
            } else if path.metadata().unwrap().len() > 0 {
                files.push(path);
            }
        }
    }
    let mut files = Vec::new();
    below(&world.path("R/index"), &mut files);
    files.sort();
    files
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}
