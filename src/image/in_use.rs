//! Who else uses a disk. A disk that is written while it is read gives a backup that no moment of it ever was, and one that is
//! restored under a running machine is torn by both.
//!
//! Everything here is a look at `/proc` and `/sys`: what may not be looked at is passed over, and a user that comes a moment
//! later is not seen. A restore therefore looks again before it replaces a file.

use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, makedev, minor};

/// How somebody else uses a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskUse {
    /// A filesystem on the disk, or on a partition of it, is mounted.
    Mounted {
        /// The partition, if it is not the whole disk.
        partition: Option<String>,
        /// The mount point.
        place: PathBuf,
    },
    /// The kernel uses the disk, or a partition of it, for another device.
    Held {
        /// The partition, if it is not the whole disk.
        partition: Option<String>,
        /// The other device.
        holder: String,
    },
    /// The disk is the content of a loop device.
    Attached {
        /// The loop device.
        device: PathBuf,
        /// Whether the loop device can be written.
        writable: bool,
        /// Where the loop device is mounted.
        place: Option<PathBuf>,
    },
    /// Another process has the disk open for writing.
    OpenForWriting {
        /// The process's number.
        process: String,
        /// The name of its program.
        program: Option<String>,
    },
    /// The kernel uses the disk, and does not say for what.
    Kernel,
    /// QEMU holds its lock on the image: nobody else may write to it.
    Locked,
}

impl fmt::Display for DiskUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { partition: None, place } => write!(f, "mounted on {}", place.display()),
            Self::Mounted { partition: Some(partition), place } => {
                write!(f, "its partition {partition} is mounted on {}", place.display())
            }
            Self::Held { partition: None, holder } => write!(f, "held by {holder}"),
            Self::Held { partition: Some(partition), holder } => {
                write!(f, "its partition {partition} is held by {holder}")
            }
            Self::Attached { device, writable, place } => {
                write!(f, "attached to {}", device.display())?;
                if *writable {
                    f.write_str(" for writing")?;
                }
                place.as_ref().map_or(Ok(()), |place| write!(f, ", which is mounted on {}", place.display()))
            }
            Self::OpenForWriting { process, program } => {
                write!(f, "open for writing by process {process}")?;
                program.as_ref().map_or(Ok(()), |program| write!(f, " ({program})"))
            }
            Self::Kernel => f.write_str("in use by the kernel (mounted, or part of another device)"),
            Self::Locked => f.write_str("locked by QEMU"),
        }
    }
}

impl DiskUse {
    /// Returns what a person can do to end the use.
    pub fn remedy(&self) -> String {
        match self {
            Self::Mounted { place, .. } | Self::Attached { place: Some(place), .. } => {
                format!("unmount it first (umount {})", place.display())
            }
            Self::Held { holder, .. } => format!("stop what uses {holder} first (lsblk shows it)"),
            Self::Attached { device, place: None, .. } => {
                format!("detach it first (losetup -d {})", device.display())
            }
            Self::OpenForWriting { process, .. } => {
                format!("stop the machine or process {process} first")
            }
            Self::Kernel => "unmount or detach it first (lsblk shows what uses it)".to_owned(),
            Self::Locked => "stop the machine that has it open first".to_owned(),
        }
    }
}

/// Says in words who may be changing a source, by what the kernel says of it, by mounts, and by its writer.
pub(super) fn used(
    path: &Path,
    mounts: &[u8],
    writer: impl FnOnce(Source) -> Option<DiskUse>,
) -> Option<String> {
    let source = Source::at(path)?;
    let how = match source {
        Source::Device(device) => device_use(device, mounts),
        Source::File { .. } => {
            loop_use(source).filter(|how| matches!(how, DiskUse::Attached { writable, .. } if *writable))
        }
    }
    .or_else(|| writer(source))?;
    Some(how.to_string())
}

/// Returns those mounts that are not of a read-only filesystem.
pub(super) fn writable(mounts: &[u8]) -> Vec<u8> {
    let lines = mounts.split_inclusive(|byte| *byte == b'\n');
    lines.filter(|line| !is_read_only(line)).flatten().copied().collect()
}

/// Finds out who would be harmed if a disk were overwritten. `None` if nobody is known to.
///
/// That is more than is found of a source: a loop device that only reads, a process that has the whole disk open of which the
/// target is a partition, or the other way round, and an image that QEMU has locked against writers.
pub fn target_use(path: &Path) -> Option<DiskUse> {
    let source = Source::at(path)?;
    let device = match source {
        Source::Device(device) => device_use(device, &mounts()),
        Source::File { .. } => None,
    };
    device.or_else(|| loop_use(source)).or_else(|| writer(&relatives(source))).or_else(|| qemu_lock(source))
}

/// What tells one disk from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
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

    pub(super) fn at(path: &Path) -> Option<Self> {
        Self::of(&fs::metadata(path).ok()?)
    }

    /// Reads a device's number as the kernel writes it.
    fn of_number(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self::Device(makedev(major.parse().ok()?, minor.parse().ok()?)))
    }
}

/// Says how a block device or a partition of it is used by the kernel.
fn device_use(device: u64, mounts: &[u8]) -> Option<DiskUse> {
    let folder = device_folder(device);
    if let Some(place) = mounted_on(mounts, &number(device), |source| is_device(source, device)) {
        return Some(DiskUse::Mounted { partition: None, place });
    }
    if let Some(holder) = names(&folder.join("holders")).into_iter().next() {
        return Some(DiskUse::Held { partition: None, holder });
    }
    for name in partitions(&folder) {
        let part = folder.join(&name);
        let numbers = read_line(&part.join("dev")).unwrap_or_default();
        let node = Path::new("/dev").join(&name);
        if let Some(place) = mounted_on(mounts, &numbers, |source| source == node) {
            return Some(DiskUse::Mounted { partition: Some(name), place });
        }
        if let Some(holder) = names(&part.join("holders")).into_iter().next() {
            return Some(DiskUse::Held { partition: Some(name), holder });
        }
    }
    None
}

/// Returns what the kernel says of a block device.
fn device_folder(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}", number(device)))
}

/// Returns the names of a disk's partitions.
fn partitions(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|name| folder.join(name).join("partition").exists()).collect()
}

/// Returns a disk and what shares its bytes: its partitions, the disk that it is a partition of, and what a loop device reads.
fn relatives(source: Source) -> Vec<Source> {
    let Source::Device(device) = source else { return vec![source] };
    let folder = device_folder(device);
    let at_number = |folder: &Path| Source::of_number(&read_line(&folder.join("dev"))?);
    let parts = partitions(&folder).into_iter().filter_map(|name| at_number(&folder.join(name)));
    let whole = folder.join("partition").exists().then(|| fs::canonicalize(&folder).ok()).flatten();
    let whole = whole.as_deref().and_then(Path::parent).and_then(at_number);
    let content = read_line(&folder.join("loop/backing_file")).and_then(|path| Source::at(Path::new(&path)));
    [source].into_iter().chain(parts).chain(whole).chain(content).collect()
}

/// Returns what is mounted where.
pub(super) fn mounts() -> Vec<u8> {
    fs::read("/proc/self/mountinfo").unwrap_or_default()
}

/// Says whether a line of `mountinfo` is of a filesystem that is read-only, be it mounted in several places: the options of the
/// filesystem itself are its last field.
fn is_read_only(line: &[u8]) -> bool {
    let options = line.trim_ascii_end().rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    options.split(|byte| *byte == b',').any(|option| option == b"ro")
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

/// Says whether a disk is the content of a loop device.
fn loop_use(source: Source) -> Option<DiskUse> {
    let folder = Path::new("/sys/block");
    names(folder).into_iter().filter(|name| name.starts_with("loop")).find_map(|name| {
        let device = folder.join(&name);
        let backing = read_line(&device.join("loop/backing_file"))?;
        if Source::at(Path::new(&backing)) != Some(source) {
            return None;
        }
        let writable = read_line(&device.join("ro")).is_none_or(|flag| flag != "1");
        let own = read_line(&device.join("dev")).and_then(|text| Source::of_number(&text));
        let place = match own {
            Some(Source::Device(number)) => device_use(number, &mounts()),
            _ => None,
        };
        let place = match place {
            Some(DiskUse::Mounted { place, .. }) => Some(place),
            _ => None,
        };
        Some(DiskUse::Attached { device: Path::new("/dev").join(name), writable, place })
    })
}

/// Says which other process has one of these open for writing.
fn writer(sources: &[Source]) -> Option<DiskUse> {
    let own = std::process::id().to_string();
    let processes = Path::new("/proc");
    let is_other = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != own;
    names(processes).into_iter().filter(is_other).find_map(|pid| {
        let process = processes.join(&pid);
        names(&process.join("fd")).into_iter().find(|descriptor| {
            // Following the link gives the open file itself, even if its name is gone.
            Source::at(&process.join("fd").join(descriptor)).is_some_and(|open| sources.contains(&open))
                && fs::read_to_string(process.join("fdinfo").join(descriptor))
                    .is_ok_and(|text| is_for_writing(&text))
        })?;
        Some(DiskUse::OpenForWriting { program: read_line(&process.join("comm")), process: pid })
    })
}

/// Says whether QEMU has a file locked against writers. Everybody can see that, also who may not see which files QEMU's process
/// has open.
fn qemu_lock(source: Source) -> Option<DiskUse> {
    let Source::File { filesystem, inode } = source else { return None };
    let file = format!("{:02x}:{:02x}:{inode}", major(filesystem), minor(filesystem));
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().any(|line| is_qemu_lock(line, &file)).then_some(DiskUse::Locked)
}

/// Says whether a line of `/proc/locks` is QEMU's lock against other writers of a file: an open file description holds the byte
/// 101 (it writes) or 201 (it lets nobody else write); see `RAW_PERM_LOCK_BASE` in QEMU's `block/file-posix.c`.
fn is_qemu_lock(line: &str, file: &str) -> bool {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let kind = fields.next();
    let (locked, start, end) = (fields.nth(3), fields.next(), fields.next());
    let start: Option<u64> = start.and_then(|text| text.parse().ok());
    let end = end.map(|text| text.parse().unwrap_or(u64::MAX));
    let (Some(start), Some(end)) = (start, end) else { return false };
    // A lock of the whole file is none of QEMU's.
    kind == Some("OFDLCK")
        && locked == Some(file)
        && start >= 100
        && end < 300
        && [101, 201].iter().any(|byte| (start..=end).contains(byte))
}

/// Says whether the text of an `fdinfo` is that of a file opened for writing: the two lowest bits of
/// its flags, written in octal, are 1 (writing) or 2 (both).
fn is_for_writing(text: &str) -> bool {
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|digits| u32::from_str_radix(digits.trim(), 8).ok());
    flags.is_some_and(|flags| matches!(flags & 3, 1 | 2))
}

/// Returns the names in a folder, sorted; none if it cannot be read.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// Returns the first line of a small file.
pub(super) fn read_line(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::image::Lookout;

    fn source_use(path: &Path) -> Option<String> {
        Lookout::default().source_use(path)
    }

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
            assert_eq!(source_use(&path), Some(expected.clone()));
            assert_eq!(target_use(&path).map(|how| how.to_string()), Some(expected));
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
        for path in ["/nowhere/disk.raw", "/dev/null"] {
            assert_eq!((source_use(Path::new(path)), target_use(Path::new(path))), (None, None));
        }
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
    fn a_filesystem_that_is_read_only_is_told_by_its_own_options() {
        let line =
            |mount: &str, own: &str| format!("40 35 8:1 / /srv {mount},noatime - ext4 /dev/sda1 {own}\n");
        assert!(is_read_only(line("ro", "ro,errors=remount-ro").as_bytes()));
        assert!(!is_read_only(line("ro", "rw,errors=remount-ro").as_bytes()));
        assert!(!is_read_only(b"") && !is_read_only(b"\n"));
    }

    #[test]
    fn what_looks_like_an_escape_but_is_none_stays() {
        for (field, path) in [("a\\134b", "a\\b"), ("a\\", "a\\"), ("\\04", "\\04"), ("\\999x", "\\999x")] {
            assert_eq!(unescaped(field.as_bytes()), PathBuf::from(path));
        }
    }

    #[test]
    fn the_locks_of_a_machine_and_of_a_backing_file_are_known() {
        let line = |kind: &str, file: &str, start: &str, end: &str| {
            is_qemu_lock(&format!("7: {kind} ADVISORY  READ  -1 {file} {start} {end}"), "fe:00:42")
        };
        for (start, end, expected) in [
            ("100", "101", true),
            ("201", "201", true),
            ("200", "203", true),
            ("100", "100", false),
            ("203", "203", false),
            ("0", "EOF", false),
            ("101", "EOF", false),
            ("x", "101", false),
        ] {
            assert_eq!(line("OFDLCK", "fe:00:42", start, end), expected, "{start} {end}");
        }
        assert!(!line("OFDLCK", "fe:00:43", "100", "101"));
        assert!(!line("POSIX ", "fe:00:42", "100", "101"));
        assert!(!is_qemu_lock("", "fe:00:42"));
        assert!(!is_qemu_lock("7: -> OFDLCK ADVISORY  WRITE -1 fe:00:42 101 101", "fe:00:42"), "it waits");
    }

    #[test]
    fn only_flags_that_allow_writing_count() {
        for (flags, expected) in [("0100000", false), ("0100001", true), ("0102002", true), ("x", false)] {
            assert_eq!(is_for_writing(&format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t29\n")), expected);
        }
        assert!(!is_for_writing(""));
    }
}
