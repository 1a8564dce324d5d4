//! Restoring a machine: all of its parts are examined before the first byte is written, and all files get their names together, once
//! each is complete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::machine::{FileName, MACHINE_FILE, MachineDisk, MachineError, Moment};
use crate::manifest::ManifestReader;
use crate::progress::Progress;
use crate::repository::{BackupRecord, Backupset, Repository};
use crate::restore::{
    PartialFolder, RestoreOptions, RestoreSummary, RestoredFile, TargetFormat, TargetPlan, plan_bytes,
    plan_target, restore_bytes, restore_planned,
};

/// Where the parts of a machine are restored to.
#[derive(Clone, Debug, Default)]
pub struct MachineTargets {
    /// The folder for all parts that have no target of their own.
    pub folder: Option<PathBuf>,
    /// Parts by name (`vda`, `MACHINE/vda`, or the name of an attached file), and the target of each.
    pub named: Vec<(String, PathBuf)>,
}

/// A disk of a machine that was restored.
#[derive(Debug)]
pub struct RestoredPart<'a> {
    /// The backup of the disk.
    pub backup: (&'a Backupset, &'a BackupRecord),
    /// Where the disk is.
    pub target: PathBuf,
    /// What was restored.
    pub summary: RestoreSummary,
}

/// A machine that was restored.
#[derive(Debug)]
pub struct RestoredMachine<'a> {
    /// The disks.
    pub disks: Vec<RestoredPart<'a>>,
    /// The attached files that were restored.
    pub attached: Vec<FileName>,
    /// The attached files that have no target.
    pub skipped: Vec<FileName>,
}

/// Where one part goes: while it is written, and as a person knows it.
#[derive(Clone, Debug)]
struct Place {
    written: PathBuf,
    shown: PathBuf,
}

/// The target of each part.
struct Places {
    disks: Vec<Place>,
    attached: Vec<Option<Place>>,
    description: Option<Place>,
    /// The folder, if this restore makes it.
    folder: Option<PartialFolder>,
}

/// Restores the disks and the attached files of a machine.
///
/// # Errors
///
/// If a disk's backup is gone, or a target cannot be restored to (nothing was written then), or if reading or writing fails: the error
/// names the targets that are complete nevertheless, devices for example.
pub fn restore_machine<'a>(
    repository: &Repository,
    moment: &Moment,
    sets: &'a [Backupset],
    targets: &MachineTargets,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoredMachine<'a>, MachineError> {
    restore_parts(repository, moment, sets, targets, options, progress).map_err(|error| {
        match options.cleanup.complete_targets() {
            complete if complete.is_empty() => error,
            complete => MachineError::Partly { source: Box::new(error), complete },
        }
    })
}

fn restore_parts<'a>(
    repository: &Repository,
    moment: &Moment,
    sets: &'a [Backupset],
    targets: &MachineTargets,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoredMachine<'a>, MachineError> {
    let found = find_all(moment, sets)?;
    let Places { disks, attached, description, folder } = place_all(moment, targets, options)?;
    let manifests = found.iter().map(|(set, backup)| Ok(repository.manifest(set, backup)?));
    let manifests = manifests.collect::<Result<Vec<_>, MachineError>>()?;
    // The last disk must still be there when the first one is done.
    let leases = found.iter().map(|(set, backup)| repository.lease(set.id, backup.incremental));
    let _leases = leases.collect::<Result<Vec<_>, _>>()?;
    let plan = |(manifest, place): (&ManifestReader, &Place)| plan_target(manifest, &place.written, options);
    let plans = manifests.iter().zip(&disks).map(plan).collect::<Result<Vec<_>, _>>()?;
    let text = moment.description();
    let files = moment.attached.iter().zip(&attached);
    let files = files.filter_map(|(file, place)| Some((file.bytes.as_slice(), place.as_ref()?)));
    let files: Vec<_> = files.chain(description.as_ref().map(|place| (text.as_slice(), place))).collect();
    let small = files.iter().map(|(bytes, place)| plan_bytes(&place.written, bytes.len() as u64, options));
    let small = small.collect::<Result<Vec<_>, _>>()?;
    check_distinct(plans.iter().chain(&small))?;
    if !options.ignore_space {
        TargetPlan::check_room(plans.iter().chain(&small))?;
    }
    let mut restored = Vec::new();
    for ((plan, manifest), place) in plans.into_iter().zip(&manifests).zip(&disks) {
        let disk = restore_planned(repository, manifest, plan, options, progress)?;
        restored.push((disk.publish_direct(), place.shown.clone()));
    }
    let written = small.into_iter().zip(&files).map(|(plan, (bytes, _))| restore_bytes(plan, bytes, options));
    let written = written.collect::<Result<Vec<_>, _>>()?;
    // Everything is complete. The description comes last.
    let mut parts = Vec::new();
    for ((disk, target), backup) in restored.into_iter().zip(found) {
        parts.push(RestoredPart { backup, target, summary: disk.publish()? });
    }
    written.into_iter().try_for_each(RestoredFile::publish)?;
    if let Some(folder) = folder {
        folder.publish(options.sync)?;
    }
    let (mut names, mut skipped) = (Vec::new(), Vec::new());
    for (file, place) in moment.attached.iter().zip(&attached) {
        if place.is_some() { &mut names } else { &mut skipped }.push(file.name.clone());
    }
    Ok(RestoredMachine { disks: parts, attached: names, skipped })
}

fn find_all<'a>(
    moment: &Moment,
    sets: &'a [Backupset],
) -> Result<Vec<(&'a Backupset, &'a BackupRecord)>, MachineError> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for disk in &moment.disks {
        match disk.find(sets) {
            Ok(it) => found.push(it),
            Err(why) => missing.push(why),
        }
    }
    if missing.is_empty() {
        return Ok(found);
    }
    Err(MachineError::MissingDisks { machine: moment.machine.clone(), missing })
}

/// Returns the name of a disk without the machine's.
fn short_name(disk: &MachineDisk) -> &str {
    let file = disk.file.as_str();
    file.strip_suffix(".raw").unwrap_or(file)
}

/// Finds the target of each part, and makes the folder if one is needed that is not there.
fn place_all(
    moment: &Moment,
    targets: &MachineTargets,
    options: &RestoreOptions,
) -> Result<Places, MachineError> {
    let mut names: Vec<[String; 2]> = Vec::new();
    names.extend(moment.disks.iter().map(|disk| [short_name(disk).to_owned(), disk.name.to_string()]));
    let file = |name: &str| [name.to_owned(), format!("attached/{name}")];
    names.extend(moment.attached.iter().map(|attached| file(attached.name.as_str())));
    names.push(file(MACHINE_FILE));
    let mut own: Vec<Option<Place>> = vec![None; names.len()];
    for (name, target) in &targets.named {
        let mut found = names.iter().zip(&mut own).filter(|(names, _)| names.contains(name));
        let (place, other) = (found.next(), found.next());
        let Some((_, place)) = place else {
            let known = names.iter().map(|[name, _]| name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(MachineError::NoSuchPart { name: name.clone(), known });
        };
        if let Some(([_, other], _)) = other {
            return Err(MachineError::AmbiguousPart { name: name.clone(), other: other.clone() });
        }
        if place.is_some() {
            return Err(MachineError::PartTwice { name: name.clone() });
        }
        *place = Some(Place { written: target.clone(), shown: target.clone() });
    }
    let (disks, files) = own.split_at(moment.disks.len());
    let Some(folder) = &targets.folder else {
        let unplaced = disks.iter().zip(&moment.disks).filter(|(place, _)| place.is_none());
        let unplaced: Vec<_> = unplaced.map(|(_, disk)| short_name(disk).to_owned()).collect();
        if !unplaced.is_empty() {
            return Err(MachineError::NoTarget { names: unplaced.join(", ") });
        }
        let (description, attached) = files.split_last().unwrap_or((&None, &[]));
        let disks = disks.iter().flatten().cloned().collect();
        let (attached, description) = (attached.to_vec(), description.clone());
        return Ok(Places { disks, attached, description, folder: None });
    };
    let made = make_folder(folder, options)?;
    let written = made.as_ref().map_or(folder.as_path(), PartialFolder::path);
    let within = |name: &str| Place { written: written.join(name), shown: folder.join(name) };
    let placed = |place: &Option<Place>, name: &str| place.clone().unwrap_or_else(|| within(name));
    let disk = |(place, disk): (&Option<Place>, &MachineDisk)| match options.format {
        TargetFormat::Unsaid | TargetFormat::Raw => placed(place, disk.file.as_str()),
        TargetFormat::Qcow2 => placed(place, &format!("{}.qcow2", short_name(disk))),
    };
    let disks = disks.iter().zip(&moment.disks).map(disk).collect();
    let attached = files.iter().zip(&moment.attached);
    let attached = attached.map(|(place, file)| Some(placed(place, file.name.as_str()))).collect();
    let description = Some(placed(files.last().unwrap_or(&None), MACHINE_FILE));
    Ok(Places { disks, attached, description, folder: made })
}

/// Makes the folder that a machine is restored to, unless it is there. One that is there must be empty, or files in it may be
/// overwritten.
fn make_folder(path: &Path, options: &RestoreOptions) -> Result<Option<PartialFolder>, MachineError> {
    match fs::read_dir(path) {
        Ok(mut entries) => {
            let is_usable = options.force || entries.next().is_none();
            if is_usable { Ok(None) } else { Err(MachineError::NotEmpty { path: path.to_owned() }) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Some(PartialFolder::create(path, options)?))
        }
        Err(source) => Err(MachineError::Folder { path: path.to_owned(), source }),
    }
}

fn check_distinct<'a>(plans: impl Iterator<Item = &'a TargetPlan>) -> Result<(), MachineError> {
    let mut seen = std::collections::BTreeSet::new();
    for plan in plans {
        if !seen.insert(plan.identity()) {
            return Err(MachineError::TargetTwice { path: plan.path().to_owned() });
        }
    }
    Ok(())
}
