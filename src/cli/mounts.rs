//! Finds mount points that the system's configuration names and where nothing is mounted.
//!
//! A repository below one would fill the disk that the mount point is on, and be hidden by the next mount.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The folders of mount units that an administrator or the generator for `/etc/fstab` writes.
const UNITS: [&str; 3] = ["/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator"];
const FSTAB: &str = "/etc/fstab";
const MOUNTED: &str = "/proc/self/mountinfo";

/// A mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountPoint {
    path: PathBuf,
    /// The file that names it.
    named_by: PathBuf,
}

/// Returns advice if a path is at or below a mount point where nothing is mounted.
pub(super) fn advice(path: &Path) -> Option<String> {
    let (mounted, configured) = (mounted(&fs::read(MOUNTED).ok()?), configured());
    let absolute = std::path::absolute(path).ok()?;
    let missing = |path: &Path| missing(path, &configured, &mounted);
    let MountPoint { path, named_by } = missing(&resolve(path)).or_else(|| missing(&absolute))?;
    let (path, named_by) = (path.display(), named_by.display());
    Some(format!(
        "{named_by} names the mount point {path}, and nothing is mounted there: run \"mount {path}\" first"
    ))
}

/// Returns the deepest configured mount point at or above `path`, if nothing is mounted there.
fn missing(path: &Path, configured: &[MountPoint], mounted: &[PathBuf]) -> Option<MountPoint> {
    // In a root that is no mount point, as that of a chroot, nothing is mounted at `/`.
    let above =
        configured.iter().filter(|point| path.starts_with(&point.path) && point.path != Path::new("/"));
    let deepest = above.max_by_key(|point| point.path.components().count())?;
    // The kernel knows mount points without the links in their paths.
    let is_mounted = mounted.contains(&deepest.path) || mounted.contains(&resolve(&deepest.path));
    (!is_mounted).then(|| deepest.clone())
}

fn configured() -> Vec<MountPoint> {
    // Their paths are compared as they are written: looking at one could wait for a server that is away.
    let named = |path: PathBuf, named_by: &Path| MountPoint { path, named_by: named_by.to_owned() };
    let fstab = Path::new(FSTAB);
    let mut points: Vec<_> =
        in_fstab(&fs::read(fstab).unwrap_or_default()).map(|path| named(path, fstab)).collect();
    for entry in UNITS.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
        let unit = entry.path();
        if unit.extension() == Some(OsStr::new("mount"))
            && let Some(path) = in_unit(&fs::read(&unit).unwrap_or_default())
        {
            points.push(named(path, &unit));
        }
    }
    points
}

/// Returns a path without links, as far as it exists.
fn resolve(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for existing in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (existing.canonicalize(), path.strip_prefix(existing)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path
}

fn lines(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let fields = |line: &'_ [u8]| -> bool { !line.trim_ascii_start().starts_with(b"#") };
    text.split(|byte| *byte == b'\n')
        .filter(move |line| fields(line))
        .map(|line| line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()).collect())
}

/// Returns the mount points in a text of the form of fstab(5).
fn in_fstab(text: &[u8]) -> impl Iterator<Item = PathBuf> {
    lines(text)
        .filter_map(|fields| fields.get(1).map(|field| unescaped(field)))
        .filter(|path| path.is_absolute())
}

/// Returns where a mount unit of systemd mounts.
fn in_unit(text: &[u8]) -> Option<PathBuf> {
    let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Where="))?;
    Some(PathBuf::from(OsStr::from_bytes(line.trim_ascii())))
}

/// Returns the mount points in a text of the form of `/proc/self/mountinfo`.
fn mounted(text: &[u8]) -> Vec<PathBuf> {
    lines(text).filter_map(|fields| fields.get(4).map(|field| unescaped(field))).collect()
}

/// Replaces `\040` and the like by the byte that they stand for.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = after.get(3..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"# a comment\n  # /dev/sdz1 /home ext4 defaults\n/dev/sda1 / ext4 defaults 0 1\nUUID=1 none swap sw 0 0\n\
        server:/x /srv/my\\040backups nfs noauto 0 0\n/dev/sdb1\t/backup\text4\tdefaults\n";
    const INFO: &[u8] =
        b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 8:2 / /srv/my\\040backups rw - nfs server:/x rw\n";

    #[test]
    fn a_path_below_a_mount_point_without_a_mount_is_found() {
        let named = Path::new("fstab");
        let points: Vec<_> =
            in_fstab(TABLE).map(|path| MountPoint { path, named_by: named.to_owned() }).collect();
        let mounted = mounted(INFO);
        let missing = |path: &str| missing(Path::new(path), &points, &mounted).map(|point| point.path);
        assert_eq!(missing("/backup/store"), Some("/backup".into()));
        assert_eq!(missing("/backup"), Some("/backup".into()));
        assert_eq!(missing("/backups/store"), None);
        assert_eq!(missing("/srv/my backups/store"), None);
        assert_eq!(missing("/home/me/store"), None);
    }

    #[test]
    fn a_mount_point_with_a_link_in_its_path_is_found_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        let link = folder.path().canonicalize().unwrap().join("link");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let points = [MountPoint { path: link.clone(), named_by: "fstab".into() }];
        assert_eq!(missing(&link.join("store"), &points, &[real]), None);
        assert_eq!(missing(&link.join("store"), &points, &[]).map(|point| point.path), Some(link));
    }

    #[test]
    fn a_mount_unit_names_its_mount_point() {
        assert_eq!(in_unit(b"[Mount]\nWhat=/dev/sdb1\nWhere=/backup \n"), Some("/backup".into()));
        assert_eq!(in_unit(b""), None);
    }

    #[test]
    fn a_path_that_does_not_exist_is_resolved_as_far_as_it_does() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        assert_eq!(resolve(&folder.path().join("link/a/b")), real.join("a/b"));
    }
}
