//! What the segments of a backup are compared with.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use crate::api::frames::{MOST_FINGERPRINTS, ParentSegment};
use crate::api::{Problem, Refusal};
use crate::segment::{Fingerprint, SegmentIndex};
use crate::service::extract::{Path, Query};
use crate::service::routes::backups::selector;
use crate::service::routes::manifests::open;
use crate::service::routes::sessions::Places;
use crate::service::{App, Caller, Refused, Role};

/// Returns the BLAKE3 of segments of a backup, to compare a disk with it: 40 bytes for each segment in a range of places
/// that is not zero. One that no pack holds has a length of 0.
#[utoipa::path(get, path = "/v1/backups/{backup}/fingerprints", tag = "backups",
    params(("backup" = String, Path, description = "NAME@NUMBER, NAME@latest, or the backupset's UUID in place of the name"), Places),
    responses(
        (status = 200, description = "Frames of place, length and BLAKE3", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, description = "More places than are told at once", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such backup", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn fingerprints(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
    Query(places): Query<Places>,
) -> Result<impl IntoResponse, Refused> {
    caller.must_be(Role::Restore)?;
    let asked = selector(&backup)?;
    if places.behind().saturating_sub(places.first()) > MOST_FINGERPRINTS {
        let why = format!("at most {MOST_FINGERPRINTS} places are told at once");
        return Err(Refused::new(Refusal::Invalid, why));
    }
    let frames = app
        .blocking(&caller, move |app, caller| {
            let (manifest, _) = open(app, &caller.view, &asked)?;
            let geometry = manifest.info().geometry;
            let mut frames = Vec::new();
            app.writer().with(|writer| {
                let mut cursor = manifest.cursor(SegmentIndex(places.first()));
                for index in (places.first()..places.behind().min(geometry.segments())).map(SegmentIndex) {
                    let Some(segment) = cursor.at(index) else { continue };
                    let stored = writer.store().require(segment.key)?;
                    let (plain_length, fingerprint) = if stored.is_lost() {
                        (0, Fingerprint::from_bytes([0; 32]))
                    } else {
                        (stored.plain_length, stored.fingerprint())
                    };
                    ParentSegment { index, plain_length, fingerprint }.encode(&mut frames);
                }
                Ok(())
            })?;
            Ok(frames)
        })
        .await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], frames))
}
