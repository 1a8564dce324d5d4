//! Several disks backed up at one moment: read side by side, committed together or not at all.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::backup::{BackupError, BackupOptions, BackupSummary, DiskRead, KIND, read_disk};
use crate::image::{Extent, Format, Image, ImageError};
use crate::machine::{Attachment, FileName, MACHINE, MachineDisk, MachineError, Moment, machine_files};
use crate::manifest::{ImageName, ManifestInfo};
use crate::pace::on_threads;
use crate::progress::Progress;
use crate::repository::{BackupDraft, CommittedBackup, FinishedDraft, RepositoryWriter, SharedWriter};
use crate::segment::Fingerprint;

/// A disk of a machine.
#[derive(Debug)]
pub struct MachineSource {
    /// The name of its backups: `MACHINE/DISK`.
    pub name: ImageName,
    /// The disk.
    pub image: Box<dyn Image>,
    /// How it is backed up.
    pub options: BackupOptions,
}

/// How a machine is backed up.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// How many disks are read at once, at least one.
    pub at_once: usize,
    /// How what lies beside the disks is backed up.
    pub moment: BackupOptions,
}

/// A machine that is to be backed up.
pub struct MachineBackup<'a> {
    name: ImageName,
    /// Nothing is left of them once they have been read.
    sources: Mutex<Vec<MachineSource>>,
    attached: Vec<Attachment>,
    options: MachineOptions,
    let_go: &'a (dyn Fn() + Sync),
}

impl std::fmt::Debug for MachineBackup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachineBackup").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<'a> MachineBackup<'a> {
    /// Describes a machine. `let_go` is called once all disks have been read and closed, before the commit: whatever kept
    /// them still may then end.
    ///
    /// # Errors
    /// A disk's name does not begin with that of the machine, or two of its files would have one name.
    pub fn new(
        name: ImageName,
        sources: Vec<MachineSource>,
        attached: Vec<Attachment>,
        options: MachineOptions,
        let_go: &'a (dyn Fn() + Sync),
    ) -> Result<Self, MachineError> {
        let names = sources.iter().map(|source| &source.name);
        machine_files(&name, names, attached.iter().map(|attachment| &attachment.name))?;
        Ok(Self { name, sources: Mutex::new(sources), attached, options, let_go })
    }
}

/// A machine that was backed up.
#[derive(Clone, Debug)]
pub struct MachineSummary {
    /// The moment.
    pub backup: CommittedBackup,
    /// Its disks, in the order in which they were given.
    pub disks: Vec<BackupSummary>,
    /// How long it took, the commit included.
    pub elapsed: Duration,
}

/// Backs a machine up: all of its disks and what lies beside them, at one moment.
///
/// When this returns a summary, all of it is durable. A failure of any part leaves none of it, but for segments that the
/// next backup re-uses. If the index fails while the disks are read, it is made anew and they are read once more.
pub fn back_up_machine(
    writer: &SharedWriter,
    machine: &MachineBackup<'_>,
    progress: &dyn Progress,
) -> Result<MachineSummary, MachineError> {
    writer.run_job(
        progress,
        |summary: &MachineSummary| summary.backup.replace_index,
        |writer| attempt(writer, machine, progress),
    )
}

fn attempt(
    writer: &RepositoryWriter,
    machine: &MachineBackup<'_>,
    progress: &dyn Progress,
) -> Result<MachineSummary, MachineError> {
    let begun = Instant::now();
    writer.prepare_for_growth()?;
    // Nobody else has it: one job, one attempt at a time.
    let mut sources = machine.sources.lock().unwrap_or_else(PoisonError::into_inner);
    if sources.is_empty() {
        return Err(MachineError::LetGo);
    }
    let (moment, drafts) = begin(writer, machine, &sources)?;
    let time = moment.info().timestamp;
    let formats: Vec<_> = sources.iter().map(|source| source.options.format.format).collect();
    let describe = |disks: Vec<(&ManifestInfo, Fingerprint)>| {
        let files = machine_files(&machine.name, disks.iter().map(|(info, _)| &info.name), [].into_iter())?;
        let entry = |(((info, manifest), file), format): (_, &Format)| disk_of(info, manifest, file, *format);
        let disks = disks.into_iter().zip(files).zip(&formats).map(entry).collect();
        let attached = machine.attached.clone();
        Ok::<_, MachineError>(Moment { machine: machine.name.clone(), time, disks, attached })
    };
    // Hours before they are read.
    let unread = drafts.iter().map(|draft| (draft.info(), Fingerprint::from_bytes([0; 32])));
    describe(unread.collect())?.check_length()?;
    let disks = read_all(writer, &sources, drafts, machine.options.at_once, progress)?;
    sources.clear();
    drop(sources);
    (machine.let_go)();
    let read = disks.iter().map(|disk| (disk.draft.draft().info(), disk.draft.manifest()));
    let description = describe(read.collect())?;
    let moment = store_moment(writer, moment, &description, &machine.options.moment, progress)?;
    let sizes: Vec<_> = description.disks.iter().map(|disk| disk.size_of_disk).collect();
    let (drafts, done): (Vec<_>, Vec<_>) = disks
        .into_iter()
        .map(|DiskRead { draft, stats, tracking, flaws, shrank_from }| {
            (draft, (stats, tracking, flaws, shrank_from))
        })
        .unzip();
    let mut committed = writer.commit_all(drafts.into_iter().chain([moment]).collect())?;
    let backup = committed.pop().ok_or(BackupError::WorkerLost)?;
    let elapsed = begun.elapsed();
    let disk = |((backup, size_of_disk), (stats, tracking, flaws, shrank_from))| BackupSummary {
        backup,
        size_of_disk,
        stats,
        tracking,
        flaws,
        shrank_from,
        elapsed,
    };
    let disks = committed.into_iter().zip(sizes).zip(done).map(disk).collect();
    Ok(MachineSummary { backup, disks, elapsed })
}

fn disk_of(info: &ManifestInfo, manifest: Fingerprint, file: FileName, format: Format) -> MachineDisk {
    MachineDisk {
        name: info.name.clone(),
        file,
        backupset: info.backupset,
        incremental: info.incremental,
        size_of_disk: info.geometry.size_of_disk(),
        manifest,
        format: format.name().to_owned(),
    }
}

/// Begins the backups of all disks and of the moment, which all say that they are of the same time.
fn begin(
    writer: &RepositoryWriter,
    machine: &MachineBackup<'_>,
    sources: &[MachineSource],
) -> Result<(BackupDraft, Vec<BackupDraft>), MachineError> {
    let mut moment = writer.begin_backup(&machine.name, 0)?;
    let id = format!("{}@{}", moment.info().backupset, moment.info().incremental);
    let mut drafts = Vec::with_capacity(sources.len());
    for source in sources {
        let mut draft = writer.begin_backup(&source.name, source.image.size())?;
        draft.set_attribute(MACHINE, id.clone().into_bytes());
        drafts.push(draft);
    }
    let now = crate::time::now();
    drafts.iter_mut().chain([&mut moment]).for_each(|draft| draft.set_timestamp(now));
    Ok((moment, drafts))
}

/// Reads all disks, several at once. If one fails, the others stop, and nothing is left of any.
fn read_all(
    writer: &RepositoryWriter,
    sources: &[MachineSource],
    drafts: Vec<BackupDraft>,
    at_once: usize,
    progress: &dyn Progress,
) -> Result<Vec<DiskRead>, MachineError> {
    let failed = Arc::new(AtomicBool::new(false));
    let results: Vec<_> = sources.iter().map(|_| OnceLock::new()).collect();
    let queue = Mutex::new(drafts.into_iter().zip(sources).zip(&results));
    on_threads(at_once.clamp(1, sources.len().max(1)), "ekko-disk", || {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(((draft, source), result)) = next else { break };
            let mut options = source.options.clone();
            options.stop.push(Arc::clone(&failed));
            let read = if failed.load(Ordering::Acquire) {
                Err(BackupError::Stopped)
            } else {
                read_disk(writer, draft, source.image.as_ref(), &options, progress)
            };
            if read.is_err() {
                failed.store(true, Ordering::Release);
            }
            // Each is taken by one thread, so nothing is there yet.
            let _ = result.set(read);
        }
    });
    let mut disks = Vec::with_capacity(sources.len());
    let mut first: Option<(&ImageName, BackupError)> = None;
    for (source, result) in sources.iter().zip(results) {
        match result.into_inner().unwrap_or(Err(BackupError::WorkerLost)) {
            Ok(disk) => disks.push(disk),
            // Most stop because another failed: that one says why.
            Err(BackupError::Stopped) if first.is_some() => {}
            Err(error) if matches!(first, None | Some((_, BackupError::Stopped))) => {
                first = Some((&source.name, error));
            }
            Err(_) => {}
        }
    }
    let Some((name, error)) = first else { return Ok(disks) };
    Err(MachineError::Disk { name: name.clone(), source: Box::new(error) })
}

/// Stores what lies beside the disks.
fn store_moment(
    writer: &RepositoryWriter,
    mut draft: BackupDraft,
    description: &Moment,
    options: &BackupOptions,
    progress: &dyn Progress,
) -> Result<FinishedDraft, MachineError> {
    let archive = description.archive()?;
    draft.set_size_of_disk(archive.len() as u64)?;
    draft.set_attribute(KIND, MACHINE.into());
    draft.set_machine(description.disks.iter().map(|disk| (disk.backupset, disk.incremental)).collect());
    let image = Archive(archive);
    Ok(read_disk(writer, draft, &image, options, progress)?.draft)
}

/// An archive in memory, as a disk.
#[derive(Debug)]
struct Archive(Vec<u8>);

impl Image for Archive {
    fn path(&self) -> &Path {
        Path::new("the machine's archive")
    }

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        let length = self.size().saturating_sub(from);
        Ok((length > 0).then_some(Extent { offset: from, length }))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let from = usize::try_from(offset).ok().and_then(|from| self.0.get(from..));
        match from.and_then(|rest| rest.get(..buffer.len())) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(ImageError::ShortRead {
                path: self.path().to_owned(),
                offset,
                missing: buffer.len() as u64,
            }),
        }
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        Ok(())
    }
}
