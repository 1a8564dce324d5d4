//! What is found out about a target before anything of it is changed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::image::{DiskUse, NbdTarget, is_nbd, target_use};
use crate::repository::enclosing_repository;
use crate::restore::target::partial::parent;
use crate::restore::{RestoreError, RestoreOptions, TargetFormat};

/// A target that was examined, and not changed.
#[derive(Debug)]
pub struct TargetPlan {
    /// As a person named it.
    pub(super) path: PathBuf,
    pub(super) kind: PlannedTarget,
    /// How many bytes of a disk are written to it, holes included.
    pub(super) size: u64,
    /// How many bytes may have to be allocated at most.
    needed: u64,
    /// The device that its filesystem is on, and a folder of that; nothing if the target needs no room.
    room: Option<(u64, PathBuf)>,
}

/// What a target is.
#[derive(Debug)]
pub(super) enum PlannedTarget {
    /// A file that is made beside the target; the path is the target's without symbolic links.
    File {
        path: PathBuf,
        /// Whether there is a file to be replaced.
        replace: bool,
    },
    /// A file that exists, of which parts are written.
    InPlace { path: PathBuf },
    /// A block device, which is open, so that nobody mounts it meanwhile.
    Device(File),
    /// An export.
    Export(NbdTarget),
}

/// Which bytes are written to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::restore) enum Written {
    /// All of them.
    All,
    /// Some; the others are right already.
    Some,
}

impl TargetPlan {
    /// Examines a target for `size` bytes of a disk, of which at most `needed` are not zero.
    ///
    /// # Errors
    /// The target cannot be written to, is too small, or somebody else uses it.
    pub(in crate::restore) fn new(
        path: &Path,
        size: u64,
        needed: u64,
        written: Written,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        if is_nbd(path) {
            return Self::export(path, size, options);
        }
        outside_repositories(path)?;
        let examined = |source| RestoreError::Target { operation: "examine", path: path.to_owned(), source };
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match written {
                Written::All => {
                    named_as_its_format(path, path, written, options)?;
                    Self::new_file(path, size, needed)
                }
                Written::Some => Err(RestoreError::NoTarget { path: path.to_owned() }),
            },
            Err(error) => Err(examined(error)),
            Ok(metadata) if !metadata.is_file() && !metadata.file_type().is_block_device() => {
                Err(RestoreError::NotATarget { path: path.to_owned() })
            }
            Ok(metadata) if metadata.is_file() && options.range.is_some() => {
                Err(RestoreError::PartOverFile { path: path.to_owned() })
            }
            Ok(_) if !options.force => Err(RestoreError::TargetExists { path: path.to_owned() }),
            Ok(metadata) => {
                if !options.target_in_use
                    && let Some(how) = target_use(path)
                {
                    return Err(RestoreError::TargetInUse { path: path.to_owned(), how });
                }
                if !metadata.is_file() {
                    return Self::device(path, size, options);
                }
                // A link stays, and what it points to is replaced.
                let is_link = fs::symlink_metadata(path).map_err(examined)?.is_symlink();
                let real = if is_link { fs::canonicalize(path).map_err(examined)? } else { path.to_owned() };
                named_as_its_format(path, &real, written, options)?;
                let room = Some((metadata.dev(), parent(&real).to_owned()));
                let (needed, kind) = match written {
                    Written::All => (needed, PlannedTarget::File { path: real, replace: true }),
                    // What it has allocated already can be written to.
                    Written::Some => (
                        needed.saturating_sub(metadata.blocks().saturating_mul(512)),
                        PlannedTarget::InPlace { path: real },
                    ),
                };
                Ok(Self { path: path.to_owned(), kind, size, needed, room })
            }
        }
    }

    fn new_file(path: &Path, size: u64, needed: u64) -> Result<Self, RestoreError> {
        if fs::symlink_metadata(path).is_ok() {
            return Err(RestoreError::DanglingLink { path: path.to_owned() });
        }
        let folder = parent(path);
        let metadata = fs::metadata(folder).ok().filter(fs::Metadata::is_dir);
        if path.file_name().is_none() {
            return Err(RestoreError::NotATarget { path: path.to_owned() });
        }
        let Some(metadata) = metadata else {
            return Err(RestoreError::NoFolder { path: path.to_owned(), folder: folder.to_owned() });
        };
        let kind = PlannedTarget::File { path: path.to_owned(), replace: false };
        let room = Some((metadata.dev(), folder.to_owned()));
        Ok(Self { path: path.to_owned(), kind, size, needed, room })
    }

    /// An export is there, and nobody can see whether it holds anything.
    fn export(path: &Path, size: u64, options: &RestoreOptions) -> Result<Self, RestoreError> {
        not_qcow2(path, options)?;
        if !options.force {
            return Err(RestoreError::TargetExists { path: path.to_owned() });
        }
        let export = NbdTarget::open(path, options.certificates.as_deref())
            .map_err(|source| RestoreError::Export { source })?;
        large_enough(path, export.size(), size)?;
        Ok(Self { path: path.to_owned(), kind: PlannedTarget::Export(export), size, needed: 0, room: None })
    }

    fn device(path: &Path, size: u64, options: &RestoreOptions) -> Result<Self, RestoreError> {
        not_qcow2(path, options)?;
        let failed =
            |operation| move |source| RestoreError::Target { operation, path: path.to_owned(), source };
        // On a block device O_EXCL means: unless the kernel uses it, for a mount or for another device.
        let exclusive = if options.target_in_use { OFlags::empty() } else { OFlags::EXCL };
        let exclusive = i32::try_from(exclusive.bits()).unwrap_or(0);
        let file = match OpenOptions::new().write(true).custom_flags(exclusive).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(RestoreError::TargetInUse { path: path.to_owned(), how: DiskUse::Kernel });
            }
            Err(error) => return Err(failed("open")(error)),
        };
        let has = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
            .map_err(|errno| failed("measure")(errno.into()))?;
        large_enough(path, has, size)?;
        Ok(Self { path: path.to_owned(), kind: PlannedTarget::Device(file), size, needed: 0, room: None })
    }

    /// Makes sure that the filesystems have room for what is restored to these targets.
    ///
    /// # Errors
    /// One has not. What is needed is an upper bound: of a segment with data all blocks are counted, also those that are zero.
    pub fn check_room<'a>(plans: impl IntoIterator<Item = &'a Self>) -> Result<(), RestoreError> {
        let mut all: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
        for plan in plans {
            if let Some((device, folder)) = &plan.room {
                let (_, needed) = all.entry(*device).or_insert((folder.as_path(), 0));
                *needed = needed.saturating_add(plan.needed);
            }
        }
        for (folder, needed) in all.into_values() {
            let Ok(found) = rustix::fs::statvfs(folder) else { continue };
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            // A filesystem without blocks does not tell its size.
            if found.f_blocks > 0 && free < needed {
                return Err(RestoreError::NoRoom { folder: folder.to_owned(), free, needed });
            }
        }
        Ok(())
    }

    /// Returns the target as a person named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says whether a new file will have the target's name.
    pub(in crate::restore) fn is_file(&self) -> bool {
        matches!(self.kind, PlannedTarget::File { .. })
    }

    /// Returns what tells the target from all others.
    pub fn identity(&self) -> PathBuf {
        match &self.kind {
            PlannedTarget::File { path, .. } | PlannedTarget::InPlace { path } => {
                let folder = fs::canonicalize(parent(path)).unwrap_or_else(|_| parent(path).to_owned());
                path.file_name().map_or(folder.clone(), |name| folder.join(name))
            }
            PlannedTarget::Device(file) => {
                let number = file.metadata().map(|metadata| metadata.rdev()).unwrap_or_default();
                PathBuf::from(format!("device {number}"))
            }
            PlannedTarget::Export(_) => self.path.clone(),
        }
    }
}

/// Makes sure that a restore writes into no repository, its own or another.
pub(super) fn outside_repositories(path: &Path) -> Result<(), RestoreError> {
    match enclosing_repository(path) {
        Some(repository) => Err(RestoreError::InRepository { path: path.to_owned(), repository }),
        None => Ok(()),
    }
}

/// How the names of disks end whose format is not raw.
const OTHER_FORMATS: [&str; 7] = ["qcow2", "qcow", "vmdk", "vhd", "vhdx", "vdi", "qed"];

/// Makes sure that a raw disk gets no name of another format, unless raw was asked for: a hypervisor would not know it. `real` is the
/// path without links.
fn named_as_its_format(
    path: &Path,
    real: &Path,
    written: Written,
    options: &RestoreOptions,
) -> Result<(), RestoreError> {
    if options.format != TargetFormat::Unsaid {
        return Ok(());
    }
    let format = |path: &Path| {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        OTHER_FORMATS.into_iter().find(|format| *format == extension)
    };
    let Some(format) = format(path).or_else(|| format(real)) else { return Ok(()) };
    // Only all of a disk can be restored to a new qcow2 file.
    let is_possible = format == "qcow2" && written == Written::All && options.range.is_none();
    Err(RestoreError::OtherFormat { path: path.to_owned(), format, is_possible })
}

fn large_enough(path: &Path, has: u64, needed: u64) -> Result<(), RestoreError> {
    if has < needed {
        return Err(RestoreError::TargetTooSmall { path: path.to_owned(), size: has, needed });
    }
    Ok(())
}

fn not_qcow2(path: &Path, options: &RestoreOptions) -> Result<(), RestoreError> {
    match options.format {
        TargetFormat::Unsaid | TargetFormat::Raw => Ok(()),
        TargetFormat::Qcow2 => Err(RestoreError::NoFileForFormat { path: path.to_owned() }),
    }
}
