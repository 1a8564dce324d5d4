//! Documents about changes to the name of an image.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::{FailureReport, View};
use crate::manifest::ImageName;
use crate::repository::{BackupFailure, Hint, Repository, RepositoryError, SharedWriter};

/// The new name of an image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameRequest {
    /// The name.
    #[schema(min_length = 1, max_length = 190)]
    pub to: String,
}

/// An image that was renamed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RenameDocument {
    /// The name that it had.
    pub from: String,
    /// The name that it has.
    pub to: String,
    /// How many backupsets its backups are in.
    pub backupsets: u64,
}

/// An image that was retired.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RetireDocument {
    /// Its name.
    pub name: String,
}

/// What became of the report of a failed backup.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FailureDocument {
    /// The name of the image.
    pub name: String,
    /// Whether the failure was recorded: a project has room for those of a limited number of images.
    pub recorded: bool,
}

/// Says that an image is not there, with a hint that names only what is seen.
fn unknown(repository: &Repository, view: &View, name: &str) -> RepositoryError {
    let none = || RepositoryError::UnknownName { name: name.to_owned(), hint: Hint::None };
    view.sets(repository)
        .and_then(|(seen, _)| view.addressee(&seen, name).map(|_| ()))
        .err()
        .unwrap_or_else(none)
}

/// Shows an error in the view of the caller.
fn shown(error: RepositoryError, writer: &SharedWriter, view: &View, name: &str) -> RepositoryError {
    match error {
        RepositoryError::UnknownName { .. } | RepositoryError::NoSuchBackup { .. } => {
            unknown(writer.repository(), view, name)
        }
        error => error,
    }
}

/// Gives all backups of an image another name.
///
/// # Errors
/// There is no image of the old name, or the new one is taken.
pub fn rename(
    writer: &SharedWriter,
    view: &View,
    from: &ImageName,
    to: &ImageName,
) -> Result<RenameDocument, RepositoryError> {
    let seen = |name: &ImageName| view.shown(name).unwrap_or_default().to_owned();
    let backupsets = writer
        .with(|writer| writer.rename(from, to))
        .map_err(|error| shown(error, writer, view, &seen(from)))?;
    Ok(RenameDocument { from: seen(from), to: seen(to), backupsets })
}

/// Retires an image: "ekko status" expects no backups of it until there is one.
///
/// # Errors
/// There is no such image, and no failed attempt to back one up.
pub fn retire(
    writer: &SharedWriter,
    view: &View,
    name: &ImageName,
) -> Result<RetireDocument, RepositoryError> {
    let seen = view.shown(name).unwrap_or_default().to_owned();
    writer.with(|writer| writer.retire(name)).map_err(|error| shown(error, writer, view, &seen))?;
    Ok(RetireDocument { name: seen })
}

/// Records that a client could not back up an image.
///
/// # Errors
/// The record cannot be written.
pub fn report_failure(
    writer: &SharedWriter,
    view: &View,
    name: &ImageName,
    report: FailureReport,
) -> Result<FailureDocument, RepositoryError> {
    let failure = BackupFailure {
        name: name.clone(),
        time: crate::time::now(),
        reason: Some(report.reason),
        // The owner's command may have read a disk of this machine.
        is_reported: view.project().is_some(),
    };
    let recorded = writer.with(|writer| writer.repository().record_failure(&failure))?;
    Ok(FailureDocument { name: view.shown(name).unwrap_or_default().to_owned(), recorded })
}
