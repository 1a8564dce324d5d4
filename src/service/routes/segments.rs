//! Segments of a backup, as they are stored: what clients restore from.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::api::Problem;
use crate::api::frames::SegmentHead;
use crate::manifest::ManifestReader;
use crate::segment::{Fingerprint, SegmentIndex, SegmentKey};
use crate::service::extract::{Path, Query};
use crate::service::limits::Held;
use crate::service::pump::Source;
use crate::service::routes::backups::selector;
use crate::service::routes::manifests;
use crate::service::routes::sessions::Places;
use crate::service::work::units;
use crate::service::{App, Caller, Refused, Role, pump};
use crate::store::{Catalog, SegmentStore};

/// Returns the segments of a backup that lie in a range of places and are not zero, as they are stored: a head of 68 bytes
/// and the stored bytes for each. One that cannot be read has a length of 0 and no bytes.
#[utoipa::path(get, path = "/v1/backups/{backup}/segments", tag = "backups",
    params(("backup" = String, Path, description = "NAME@NUMBER, NAME@latest, or the backupset's UUID in place of the name"), Places),
    responses(
        (status = 200, description = "The segments", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, description = "The request is wrong", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "Who asks is not known", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "There is no such backup", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn segments(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(backup): Path<String>,
    Query(places): Query<Places>,
) -> Result<Response, Refused> {
    caller.must_be(Role::Restore)?;
    let asked = selector(&backup)?;
    // One segment is sent, and the next one may be read meanwhile.
    let segment = app.repository().settings().segment_size.bytes() as usize;
    let memory = app.work().reading.take(&caller.who, units(2 * segment)).await?;
    let open = move |app: &Arc<App>, caller: &Caller| {
        let (manifest, _) = manifests::open(app, &caller.view, &asked)?;
        let catalog = app.repository().catalog()?;
        let behind = places.behind().min(manifest.info().geometry.segments());
        Ok(Sending { app: Arc::clone(app), manifest, catalog, next: places.first(), behind })
    };
    let body = pump::body(&app, &caller, open).await?;
    let body = Body::new(Held::new(body, memory));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Segments that are being sent.
struct Sending {
    app: Arc<App>,
    manifest: ManifestReader,
    catalog: Catalog,
    next: u32,
    behind: u32,
}

impl Source for Sending {
    fn next(&mut self) -> Result<Option<Bytes>, Refused> {
        let mut cursor = self.manifest.cursor(SegmentIndex(self.next));
        let found =
            (self.next..self.behind).map(SegmentIndex).find_map(|index| Some((index, cursor.at(index)?.key)));
        let Some((index, key)) = found else { return Ok(None) };
        self.next = index.0 + 1;
        let frame = self.app.writer().with(|writer| Ok(frame(writer.store(), &self.catalog, index, key)))?;
        Ok(Some(frame.into()))
    }
}

fn frame(store: &SegmentStore, catalog: &Catalog, index: SegmentIndex, key: SegmentKey) -> Vec<u8> {
    let (mut frame, mut stored) = (Vec::new(), Vec::new());
    let lost = SegmentHead {
        index,
        plain_length: 0,
        stored_length: 0,
        compression: 0,
        encryption: 0,
        key,
        fingerprint: Fingerprint::from_bytes([0; 32]),
    };
    let head = match store.read_stored(catalog, key, &mut stored) {
        Ok(entry) => SegmentHead {
            plain_length: entry.plain_length,
            stored_length: entry.stored_length,
            compression: entry.compression,
            encryption: entry.encryption,
            fingerprint: entry.fingerprint(),
            ..lost
        },
        Err(error) => {
            tracing::error!(%error, "a segment cannot be read");
            stored.clear();
            lost
        }
    };
    frame.reserve(SegmentHead::LENGTH + stored.len());
    head.encode(&mut frame);
    frame.append(&mut stored);
    frame
}
