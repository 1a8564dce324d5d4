//! Who else uses a source: a disk that is written while it is read gives a backup that no moment of it
//! ever was.
//!
//! Everything here is a look at `/proc` and `/sys`, and a courtesy: what may not be looked at is passed
//! over, and a user that comes a moment later is not seen. Nothing depends on the answer but a notice.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

/// Says in words who may be changing a source: "mounted on /mnt/web", "held by dm-0", "open for writing
/// by process 1234 (qemu-system-x86)". `None` if nobody is known to.
pub fn source_use(path: &Path) -> Option<String> {
    let source = Source::of(&fs::metadata(path).ok()?)?;
    match source {
        Source::Device(device) => device_use(device),
        Source::File { .. } => loop_use(source),
    }
    .or_else(|| writer(source))
}

/// What tells one source from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A block device, by its number: it may have several names.
    Device(u64),
    /// A regular file.
    File { filesystem: u64, inode: u64 },
}

impl Source {
    fn of(metadata: &Metadata) -> Option<Self> {
        if metadata.file_type().is_block_device() {
            Some(Self::Device(metadata.rdev()))
        } else if metadata.is_file() {
            Some(Self::File { filesystem: metadata.dev(), inode: metadata.ino() })
        } else {
            None
        }
    }

    fn at(path: &Path) -> Option<Self> {
        Self::of(&fs::metadata(path).ok()?)
    }
}

/// Says how a block device or a partition of it is used by the kernel.
fn device_use(device: u64) -> Option<String> {
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let folder = PathBuf::from(format!("/sys/dev/block/{}", number(device)));
    if let Some(place) = mounted_on(&mounts, &number(device), |source| is_device(source, device)) {
        return Some(format!("mounted on {}", place.display()));
    }
    if let Some(holder) = names(&folder.join("holders")).into_iter().next() {
        return Some(format!("held by {holder}"));
    }
    for name in names(&folder) {
        let part = folder.join(&name);
        if !part.join("partition").exists() {
            continue;
        }
        let numbers = read_line(&part.join("dev")).unwrap_or_default();
        let node = Path::new("/dev").join(&name);
        if let Some(place) = mounted_on(&mounts, &numbers, |source| source == node) {
            return Some(format!("its partition {name} is mounted on {}", place.display()));
        }
        if let Some(holder) = names(&part.join("holders")).into_iter().next() {
            return Some(format!("its partition {name} is held by {holder}"));
        }
    }
    None
}

fn is_device(path: &Path, device: u64) -> bool {
    Source::at(path) == Some(Source::Device(device))
}

/// Writes a device number as the kernel does.
fn number(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

/// Returns where the device is mounted, by the text of a `mountinfo` (proc(5)): its third field is the
/// device's number, its fifth the mount point, and the second after the lone dash the mounted thing.
///
/// The number alone is not enough: btrfs and others show a number that no device has.
fn mounted_on(mounts: &[u8], numbers: &str, is_source: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    mounts.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let found = fields.nth(2)?;
        let place = unescaped(fields.nth(1)?);
        let source = fields.skip_while(|field| *field != b"-").nth(2).map(unescaped);
        // A tmpfs and its like name anything they please as their source.
        let same = source.is_some_and(|source| source.is_absolute() && is_source(&source));
        (found == numbers.as_bytes() || same).then_some(place)
    })
}

/// Undoes the escapes of `mountinfo`: space, tab, newline and backslash are written in octal, `\040`.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail.get(..3).filter(|_| *first == b'\\').and_then(octal);
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// Says whether a regular file is the content of a loop device that can be written.
fn loop_use(source: Source) -> Option<String> {
    let folder = Path::new("/sys/block");
    names(folder).into_iter().filter(|name| name.starts_with("loop")).find_map(|name| {
        let device = folder.join(&name);
        let backing = read_line(&device.join("loop/backing_file"))?;
        let writable = read_line(&device.join("ro")).is_none_or(|flag| flag != "1");
        (writable && Source::at(Path::new(&backing)) == Some(source))
            .then(|| format!("attached to /dev/{name} for writing"))
    })
}

/// Says which other process has the source open for writing.
fn writer(source: Source) -> Option<String> {
    let own = std::process::id().to_string();
    let processes = Path::new("/proc");
    let is_other = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != own;
    names(processes).into_iter().filter(is_other).find_map(|pid| {
        let process = processes.join(&pid);
        names(&process.join("fd")).into_iter().find(|descriptor| {
            // Following the link gives the open file itself, even if its name is gone.
            Source::at(&process.join("fd").join(descriptor)) == Some(source)
                && fs::read_to_string(process.join("fdinfo").join(descriptor))
                    .is_ok_and(|text| is_for_writing(&text))
        })?;
        let command = read_line(&process.join("comm")).map(|name| format!(" ({name})"));
        Some(format!("open for writing by process {pid}{}", command.unwrap_or_default()))
    })
}

/// Says whether the text of an `fdinfo` is that of a file opened for writing: the two lowest bits of
/// its flags, written in octal, are 1 (writing) or 2 (both).
fn is_for_writing(text: &str) -> bool {
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|digits| u32::from_str_radix(digits.trim(), 8).ok());
    flags.is_some_and(|flags| matches!(flags & 3, 1 | 2))
}

/// Returns the names in a folder, sorted; none if it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// Returns the first line of a small file.
fn read_line(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Starts a process that opens `path` as `redirection` says and keeps it until its input ends.
    fn holder(redirection: &str, path: &Path) -> Child {
        let script = format!("exec 3{redirection}\"$1\"; echo ready; read end");
        let mut child = Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child
    }

    fn release(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_file_is_in_use_while_another_process_has_it_open_for_writing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        fs::write(&path, "disk").unwrap();
        for redirection in [">>", "<>"] {
            let child = holder(redirection, &path);
            let expected = format!("open for writing by process {} (sh)", child.id());
            assert_eq!(source_use(&path), Some(expected));
            release(child);
            assert_eq!(source_use(&path), None);
        }
    }

    #[test]
    fn readers_and_we_ourselves_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        fs::write(&path, "disk").unwrap();
        let _own = fs::OpenOptions::new().append(true).open(&path).unwrap();
        let child = holder("<", &path);
        // Another test may be starting a process, which has our files for a moment before it is itself.
        assert!((0..1000).any(|_| source_use(&path).is_none()));
        release(child);
    }

    #[test]
    fn what_is_not_there_or_no_disk_is_used_by_nobody() {
        assert_eq!(source_use(Path::new("/nowhere/disk.raw")), None);
        assert_eq!(source_use(Path::new("/dev/null")), None);
    }

    #[test]
    fn a_mounted_device_is_found_by_number_and_by_name() {
        let mounts = b"36 35 98:0 /mnt1 /mnt/my\\040web rw,noatime shared:1 master:2 - ext3 /dev/root rw\n\
            40 35 0:44 / /srv rw - btrfs /dev/vdb rw\n\
            41 35 0:45 / /tmp rw - tmpfs vdb rw\n";
        let nobody = |_: &Path| false;
        assert_eq!(mounted_on(mounts, "98:0", nobody), Some(PathBuf::from("/mnt/my web")));
        let is_vdb = |path: &Path| path.ends_with("vdb");
        assert_eq!(mounted_on(mounts, "254:16", is_vdb), Some(PathBuf::from("/srv")));
        assert_eq!(mounted_on(mounts, "8:0", nobody), None);
        assert_eq!(mounted_on(b"", "8:0", is_vdb), None);
    }

    #[test]
    fn what_looks_like_an_escape_but_is_none_stays() {
        for (field, path) in [("a\\134b", "a\\b"), ("a\\", "a\\"), ("\\04", "\\04"), ("\\999x", "\\999x")] {
            assert_eq!(unescaped(field.as_bytes()), PathBuf::from(path));
        }
    }

    #[test]
    fn only_flags_that_allow_writing_count() {
        for (flags, expected) in [("0100000", false), ("0100001", true), ("0102002", true), ("x", false)] {
            assert_eq!(is_for_writing(&format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t29\n")), expected);
        }
        assert!(!is_for_writing(""));
    }
}
