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
use crate::manifest::ManifestReader;
use crate::repository::{BackupSelector, Repository};

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

/// Opens the manifest of a backup, or of a file: what begins with `/`, `./` or `../` is a file, and so is
/// what names no backup and exists.
pub(super) fn open_named(source: &str, context: &Context) -> Result<Named, CliError> {
    let path = Path::new(source);
    let by_path = || Ok(Named { manifest: ManifestReader::read(path)?, repository: None });
    if ["/", "./", "../"].iter().any(|begin| source.starts_with(begin)) {
        return by_path();
    }
    let by_name = || -> Result<Named, CliError> {
        let selector: BackupSelector =
            source.parse().map_err(|error: crate::repository::InvalidSelector| {
                CliError::new(ErrorKind::Invalid, error.to_string())
            })?;
        let repository = context.open()?;
        let (sets, _) = repository.backupsets()?;
        let (set, backup) = repository.find(&sets, &selector)?;
        let manifest = repository.manifest(set, backup)?;
        Ok(Named { manifest, repository: Some(repository) })
    };
    match by_name() {
        Err(CliError::Failed { kind: ErrorKind::NotFound | ErrorKind::Invalid, .. }) if path.is_file() => {
            by_path()
        }
        other => other,
    }
}
