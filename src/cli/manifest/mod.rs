//! `ekko manifest`: one file a command.

mod dump;
mod export;
mod generate;
mod import;
mod info;

use std::path::Path;

use crate::cli::Outcome;
use crate::cli::args::ManifestCommand;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::error::ErrorKind;
use crate::image::target_use;
use crate::manifest::ManifestReader;
use crate::progress::{Notice, Progress};
use crate::repository::{BackupSelector, InvalidSelector, Repository, RepositoryError, enclosing_repository};
use crate::restore::RestoreError;

pub(super) fn run(command: &ManifestCommand, context: &Context) -> Result<Outcome, CliError> {
    match command {
        ManifestCommand::Dump(args) => dump::run(&open(&args.source, context)?, context),
        ManifestCommand::Info(args) => info::run(&open(&args.source, context)?, context),
        ManifestCommand::Export(args) => export::run(args, context),
        ManifestCommand::Import(args) => import::run(args, context),
        ManifestCommand::Generate(args) => generate::run(args, context),
    }
}

/// A manifest, and the repository if it is that of a backup.
pub(super) struct Named {
    pub(super) manifest: ManifestReader,
    pub(super) repository: Option<Repository>,
}

/// Opens the manifest of a backup, or of a file.
pub(super) fn open(source: &str, context: &Context) -> Result<ManifestReader, CliError> {
    Ok(open_named(source, context)?.manifest)
}

/// Makes sure that a new file does not lie in a repository.
pub(super) fn refuse_repository(path: &Path) -> Result<(), CliError> {
    let Some(repository) = enclosing_repository(path) else { return Ok(()) };
    let message = format!(
        "cannot write {}: this path lies in the repository {}; choose a path outside of it",
        path.display(),
        repository.display()
    );
    Err(CliError::new(ErrorKind::Invalid, message))
}

/// Makes sure that a manifest can be written to a path. What it replaces may be a disk by mistake: one that somebody uses stays, unless
/// that was said too.
pub(super) fn check_output(path: &Path, force: bool, target_in_use: bool) -> Result<(), CliError> {
    refuse_repository(path)?;
    if force
        && !target_in_use
        && let Some(how) = target_use(path)
    {
        return Err(RestoreError::TargetInUse { path: path.to_owned(), how }.into());
    }
    Ok(())
}

/// Opens the manifest of a backup, or of a file: what begins with `/`, `./` or `../` is a file, and so is
/// what names no backup and exists.
pub(super) fn open_named(source: &str, context: &Context) -> Result<Named, CliError> {
    let path = Path::new(source);
    let by_path = || Ok(Named { manifest: ManifestReader::read(path)?, repository: None });
    if ["/", "./", "../"].iter().any(|begin| source.starts_with(begin)) {
        return by_path();
    }
    match by_name(source, context) {
        Err(NoBackup::There(_)) if path.is_file() => by_path(),
        Err(NoBackup::There(error) | NoBackup::Failed(error)) => Err(error),
        Ok(named) => Ok(named),
    }
}

/// Why no backup was found.
enum NoBackup {
    /// None is called so.
    There(CliError),
    /// It cannot be opened, or nobody can know.
    Failed(CliError),
}

fn by_name(source: &str, context: &Context) -> Result<Named, NoBackup> {
    let invalid = |error: InvalidSelector| CliError::new(ErrorKind::Invalid, error.to_string());
    let selector: BackupSelector = source.parse().map_err(|error| NoBackup::There(invalid(error)))?;
    if let Some(remote) = context.network().map_err(NoBackup::There)? {
        let manifest = remote.manifest(&selector.to_string()).map_err(|error| match error.kind() {
            ErrorKind::NotFound => NoBackup::There(error.into()),
            _ => NoBackup::Failed(error.into()),
        })?;
        return Ok(Named { manifest, repository: None });
    }
    let root = context.repository_path().map_err(NoBackup::There)?;
    let failed = |error: RepositoryError| match error {
        RepositoryError::NotFound { .. }
        | RepositoryError::NoSuchBackup { .. }
        | RepositoryError::Deleted { .. }
        | RepositoryError::UnknownName { .. } => NoBackup::There(error.into()),
        error => NoBackup::Failed(error.into()),
    };
    let repository = Repository::open(root).map_err(failed)?;
    let (sets, problems) = repository.backupsets().map_err(failed)?;
    for problem in problems {
        // The name may mean another backup than it would.
        context.progress().notice(Notice::Problem { kind: problem.kind(), what: problem.to_string() });
    }
    let (set, backup) = repository.find(&sets, &selector).map_err(failed)?;
    let manifest = repository.manifest(set, backup).map_err(failed)?;
    Ok(Named { manifest, repository: Some(repository) })
}
