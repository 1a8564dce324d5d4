//! Manifests: what differs between two, and how they are exported.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::api::{DiffRow, DiffText, Refusal, View};
use crate::error::ErrorKind;
use crate::exchange::{ExchangeError, ExportOptions, ForeignFormat, export_backup, export_file};
use crate::manifest::{ImageName, ManifestDiff, ManifestError, ManifestReader, renamed};
use crate::progress::Silent;
use crate::repository::BackupSelector;
use crate::service::extract::{Path, Query};
use crate::service::pump::{FileSource, PIECE, Source};
use crate::service::routes::backups::selector;
use crate::service::{App, Caller, Refused, pump};
use crate::storage::{Access, private_folder};

/// Opens the manifest of a backup. Says also what its image is called now.
pub(super) fn open(
    app: &App,
    view: &View,
    asked: &BackupSelector,
) -> Result<(ManifestReader, ImageName), Refused> {
    let repository = app.repository();
    let seen = view.sets(repository)?.0;
    let (set, backup) = view.find(repository, &seen, asked)?;
    Ok((repository.manifest(set, backup)?, set.name.clone()))
}

/// Lists what differs between two backups.
///
/// Ranges of the newer disk, whole segments of it, as `rbd diff --format json` has them.
#[utoipa::path(get, path = "/v1/backups/{backup}/diff/{other}", tag = "backups",
    params(
        ("backup" = String, Path, description = "The older backup"),
        ("other" = String, Path, description = "The newer backup"),
    ),
    responses((status = 200, description = "The ranges, in order", body = Vec<DiffRow>)))]
pub(super) async fn diff(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((backup, other)): Path<(String, String)>,
) -> Result<Response, Refused> {
    let (older, newer) = (selector(&backup)?, selector(&other)?);
    let body = pump::body(&app, &caller, move |app, caller| {
        let (older, _) = open(app, &caller.view, &older)?;
        let (newer, _) = open(app, &caller.view, &newer)?;
        Ok(DiffSource { older, newer, text: DiffText::default() })
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], body.await?).into_response())
}

/// The text of a comparison, as far as it has come.
struct DiffSource {
    older: ManifestReader,
    newer: ManifestReader,
    text: DiffText,
}

impl Source for DiffSource {
    fn next(&mut self) -> Result<Option<Bytes>, Refused> {
        let diff = ManifestDiff::of(&self.older, &self.newer).map_err(|error| match error {
            ManifestError::Incomparable { .. } => {
                Refused::new(Refusal::Conflict, "the two have segments of different sizes")
            }
            error => error.into(),
        })?;
        let piece = self.text.next(&diff, PIECE).map_err(|error| Refused::internal(Refusal::Io, &error))?;
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}

/// The formats of manifests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// Ekko's own.
    #[default]
    Ekko,
    /// The original's SQLite.
    Sqlite,
    /// The original's OSDK, version 0.
    Osdk,
}

/// How a manifest is exported.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ExportQuery {
    /// The format.
    #[param(inline)]
    format: Format,
    /// Only the bytes from this one on, after an answer that was cut.
    from: u64,
}

/// Exports the manifest of a backup.
///
/// A project's has the name that the project gave its image, and says of no segment how it is stored (255, unknown): that
/// is a fact of the store, in which others may have been first.
#[utoipa::path(get, path = "/v1/backups/{backup}/manifest", tag = "backups",
    params(
        ("backup" = String, Path, description = "NAME@NUMBER, NAME@latest, or the backupset's UUID in place of the name"),
        ExportQuery,
    ),
    responses((status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream")))]
pub(super) async fn export(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
    Query(ExportQuery { format, from }): Query<ExportQuery>,
) -> Result<Response, Refused> {
    let asked = selector(&backup)?;
    // The repository's own file is read in place; everything else is a temporary file.
    let is_temporary = caller.view.project().is_some() || format != Format::Ekko;
    let share = if is_temporary { Some(app.work().exports.take(&caller.who, 1).await?) } else { None };
    let body = pump::body(&app, &caller, move |app, caller| {
        let mut file = file(app, &caller.view, &asked, format)?;
        file.seek(SeekFrom::Start(from)).map_err(|error| Refused::internal(Refusal::Invalid, &error))?;
        Ok(FileSource::new(file, share))
    });
    let extension = match format {
        Format::Ekko => "ekko",
        Format::Sqlite => "sqlite",
        Format::Osdk => "osdk",
    };
    let mut response = body.await?.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(name) = HeaderValue::from_str(&format!("attachment; filename=\"manifest.{extension}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// Returns a file with the manifest, which has no name any longer if it was made for this.
fn file(app: &App, view: &View, asked: &BackupSelector, format: Format) -> Result<File, Refused> {
    let failed = |error: io::Error| Refused::internal(Refusal::Io, &error);
    let (manifest, image) = open(app, view, asked)?;
    manifest.verify()?;
    let is_owner = view.project().is_none();
    if is_owner && format == Format::Ekko {
        let opened = app.repository().storage().handle(manifest.path(), Access::Read);
        return opened.map_err(|error| failed(error.source));
    }
    let folder = private_folder("ekko-", None).map_err(failed)?;
    let out = folder.path().join("manifest");
    let manifest = if is_owner {
        manifest
    } else {
        let name = ImageName::new(view.shown(&image).unwrap_or_default())?;
        let path = folder.path().join("renamed");
        renamed(&manifest, name, &path)?;
        if format == Format::Ekko {
            return File::open(&path).map_err(failed);
        }
        ManifestReader::read(&path)?
    };
    let foreign = match format {
        Format::Osdk => ForeignFormat::Osdk,
        Format::Ekko | Format::Sqlite => ForeignFormat::Sqlite,
    };
    if is_owner {
        let options = ExportOptions { format: foreign, segments: None, replace: false, jobs: 1 };
        export_backup(app.repository(), &manifest, &out, &options, &Silent).map_err(|error| match error {
            // What the format cannot say is no failure.
            error if error.kind() == ErrorKind::Unsupported => cannot_say(),
            ExchangeError::Repository(error) => Refused::from(error),
            error => Refused::internal(Refusal::from(error.kind()), &error),
        })?;
    } else {
        export_file(&manifest, &out, foreign, false, &Silent).map_err(|error| match error.kind() {
            ErrorKind::Unsupported => cannot_say(),
            _ => error.into(),
        })?;
    }
    File::open(&out).map_err(failed)
}

fn cannot_say() -> Refused {
    Refused::new(
        Refusal::Conflict,
        "the format cannot say what this backup is: its disk is no multiple of 512 bytes",
    )
}
