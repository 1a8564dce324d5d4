//! A request that is refused: one shape for all of them, and nothing in it that is not the client's to know.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::api::{Problem, Refusal};
use crate::error::ErrorKind;
use crate::manifest::{InvalidName, ManifestError};
use crate::repository::MOST_FORMER_NAMES;
use crate::repository::RepositoryError;
use crate::service::pulse::MOVED;
use crate::store::StoreError;

/// Why a request is refused.
#[derive(Clone, Debug)]
pub struct Refused {
    refusal: Refusal,
    /// For the client.
    detail: String,
    /// For the log alone.
    internal: Option<String>,
    /// Seconds after which it may work.
    retry_after: Option<u32>,
}

/// What is told while the repository has stopped writing.
const STOPPED: &str =
    "the repository stopped writing after a failure, and is being opened again; ask again later";
/// When to ask again then, in seconds.
const AGAIN: u32 = 5;

/// What is told of a failure whose details are the operator's.
const INTERNAL: &str = "the server's log has more of it, under the request's id";

impl Refused {
    /// Refuses with a detail that the client may know.
    pub fn new(refusal: Refusal, detail: impl Into<String>) -> Self {
        Self { refusal, detail: detail.into(), internal: None, retry_after: None }
    }

    /// Refuses because something failed that is no business of the client's.
    pub fn internal(refusal: Refusal, error: &dyn std::fmt::Display) -> Self {
        Self { internal: Some(error.to_string()), ..Self::new(refusal, INTERNAL) }
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Returns what kind of refusal it is.
    pub fn refusal(&self) -> Refusal {
        self.refusal
    }

    /// Returns what the client is told.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// Returns the answer with a header of its own: one of those that are kept when refusals get their shape.
    pub(super) fn with_header(self, name: header::HeaderName, value: &str) -> Response {
        let mut response = self.into_response();
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
        response
    }

    /// Returns what the log is told beside.
    pub(super) fn for_the_log(&self) -> &str {
        self.internal.as_deref().unwrap_or(&self.detail)
    }

    /// Returns the answer that a client gets.
    pub(super) fn answer(&self, request_id: &str) -> Response {
        let status = self.refusal.status();
        let problem = Problem {
            kind: self.refusal,
            status,
            title: self.refusal.title().to_owned(),
            detail: self.detail.clone(),
            request_id: request_id.to_owned(),
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response =
            (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.refusal == Refusal::Unauthorized {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for Refused {
    /// An empty answer that carries the refusal: who knows the request's id fills it in.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.refusal.status());
        let mut response = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<RepositoryError> for Refused {
    fn from(error: RepositoryError) -> Self {
        let kind = error.kind();
        match &error {
            RepositoryError::NoSuchBackup { what, .. } => {
                Self::new(Refusal::NotFound, format!("there is no backup {what}"))
            }
            // What they name is what was asked for, and names that the caller sees.
            RepositoryError::UnknownName { .. }
            | RepositoryError::Deleted { .. }
            | RepositoryError::NoneNamed { .. }
            | RepositoryError::NoneDeleted { .. }
            | RepositoryError::AllDeleted { .. } => Self::new(Refusal::NotFound, error.to_string()),
            RepositoryError::NotExact { .. } | RepositoryError::NotAMachine { .. } => {
                Self::new(Refusal::Invalid, error.to_string())
            }
            RepositoryError::NameIsUuid { .. } => {
                let why = "the UUID of a backupset begins with this name: choose another name";
                Self::new(Refusal::Conflict, why)
            }
            RepositoryError::ListLost { .. } => {
                let why = "cannot back up this image: its earlier backups are missing on the server; ask the service's operator to \
                           put them back";
                Self { internal: Some(error.to_string()), ..Self::new(Refusal::from(kind), why) }
            }
            RepositoryError::BackupRunning { .. } => {
                Self::new(Refusal::Busy, "a backup of this image is running already")
            }
            RepositoryError::Protected { .. } => {
                Self::new(Refusal::Conflict, "the backup is protected: nothing was deleted")
            }
            // The names are those that the caller sees.
            RepositoryError::PartOfMachine { .. } => Self::new(Refusal::Conflict, error.to_string()),
            RepositoryError::ProtectedLonger { longer, .. } => {
                let why = format!("the backup is protected {longer}: to end that earlier, set \"shorten\"");
                Self::new(Refusal::Conflict, why)
            }
            RepositoryError::NameTaken { .. } => {
                Self::new(Refusal::Conflict, "the name has backups already: nothing was renamed")
            }
            RepositoryError::TooManyFormerNames { .. } => {
                let why = format!(
                    "cannot rename the image: it has had {MOST_FORMER_NAMES} other names already; rename it back to one of \
                     them, or back it up under the new name"
                );
                Self::new(Refusal::Conflict, why)
            }
            RepositoryError::SameName { .. } => {
                Self::new(Refusal::Conflict, "the image has this name already")
            }
            RepositoryError::Moved { .. } => Self {
                internal: Some(error.to_string()),
                ..Self::new(Refusal::Unavailable, MOVED).retry_after(AGAIN)
            },
            // Another request's failure, or one that is answered by opening the repository again.
            RepositoryError::Poisoned { .. }
            | RepositoryError::Store(StoreError::Poisoned { .. })
            | RepositoryError::Full { found: false, .. } => Self {
                internal: Some(error.to_string()),
                ..Self::new(Refusal::Unavailable, STOPPED).retry_after(AGAIN)
            },
            RepositoryError::ListFull { bytes, .. } => {
                let why = format!(
                    "cannot add a backup of this image: its list of backups has {bytes} bytes; remove old ones (forget) and \
                     collect garbage, or back up under a new name"
                );
                Self::new(Refusal::QuotaExceeded, why)
            }
            RepositoryError::TooManyBackups { .. } => {
                let why = "cannot add a backup of this image: it has as many as it may have; remove old ones (forget), and \
                           collect garbage";
                Self::new(Refusal::QuotaExceeded, why)
            }
            RepositoryError::TooManyNames { names, most, .. } => {
                let why = format!(
                    "cannot add an image: the project has {names}, and {most} is the most; back up an image that it has, \
                     or have the service's operator raise names_per_project"
                );
                Self::new(Refusal::QuotaExceeded, why)
            }
            RepositoryError::Full { .. } => Self {
                internal: Some(error.to_string()),
                ..Self::new(Refusal::QuotaExceeded, "the server's disk is full")
            },
            // Everything else names paths, or is for the operator to mend.
            _ => match kind {
                ErrorKind::Busy => Self::internal(Refusal::Busy, &error).retry_after(AGAIN),
                _ => Self::internal(Refusal::from(kind), &error),
            },
        }
    }
}

impl From<ManifestError> for Refused {
    fn from(error: ManifestError) -> Self {
        Self::internal(Refusal::from(error.kind()), &error)
    }
}

impl From<InvalidName> for Refused {
    fn from(error: InvalidName) -> Self {
        Self::new(Refusal::Invalid, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::manifest::ImageName;

    fn refused(error: RepositoryError) -> (u16, bool, String) {
        let refused = Refused::from(error);
        let answer = refused.answer("id");
        (answer.status().as_u16(), answer.headers().contains_key("retry-after"), refused.detail)
    }

    #[test]
    fn who_meets_a_store_that_stopped_is_to_ask_again_and_who_filled_the_disk_is_not() {
        let reason = || "write /srv/store/packs/1 failed".to_owned();
        let full = |found| RepositoryError::full(Path::new("/srv/store"), reason(), found);
        for full in [false, true] {
            let store = StoreError::Poisoned { reason: reason(), full, index: false };
            let (status, again, detail) = refused(store.into());
            assert_eq!((status, again), (503, true));
            assert!(!detail.contains("/srv"), "{detail}");
        }
        for error in [RepositoryError::Poisoned { reason: reason() }, full(false)] {
            let (status, again, detail) = refused(error);
            assert_eq!((status, again), (503, true));
            assert!(!detail.contains("/srv"), "{detail}");
        }
        let (status, again, detail) = refused(full(true));
        assert_eq!((status, again), (507, false));
        assert!(detail.contains("disk is full") && !detail.contains("/srv"), "{detail}");
    }

    #[test]
    fn who_has_a_long_list_of_backups_is_told_what_to_do() {
        let name = ImageName::new("blue:web").unwrap();
        let path = "/srv/store/set.toml".into();
        let (status, _, detail) = refused(RepositoryError::ListFull { path, name, bytes: 9 << 20 });
        assert_eq!(status, 507);
        assert!(detail.contains("9437184 bytes") && detail.contains("under a new name"), "{detail}");
        assert!(!detail.contains("/srv"), "{detail}");
    }

    #[test]
    fn who_has_too_many_names_is_told_what_to_do() {
        let name = ImageName::new("blue:web").unwrap();
        let (status, _, detail) = refused(RepositoryError::TooManyNames { name, names: 5, most: 5 });
        assert_eq!(status, 507);
        assert!(detail.contains("names_per_project") && detail.contains("the project has 5"), "{detail}");
    }
}
