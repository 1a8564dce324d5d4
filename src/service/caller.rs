//! Who asks, and what they may.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::{Refusal, View};
use crate::service::Refused;

/// What somebody may do; each may all that those before may, but that `restore` and `backup` stand side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees and reads the project's backups.
    Restore,
    /// The same, and adds backups; never deletes.
    Backup,
    /// The same, and deletes backups of the project, and collects garbage.
    Operator,
    /// The same, and looks after the service itself.
    Admin,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who it is, for the log.
    pub who: String,
    /// What they see.
    pub view: View,
    /// What they may.
    pub role: Role,
}

impl Caller {
    /// The repository's owner, who comes by the socket in it.
    pub fn owner() -> Self {
        Self { who: "owner".to_owned(), view: View::everything(), role: Role::Admin }
    }

    /// Refuses what takes more than this caller's role.
    ///
    /// # Errors
    ///
    /// If the role is below `role`.
    pub fn must_be(&self, role: Role) -> Result<(), Refused> {
        if self.role >= role {
            Ok(())
        } else {
            Err(Refused::new(Refusal::Forbidden, "the token's role does not allow this"))
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Refused::new(Refusal::Unauthorized, "a token is needed"))
    }
}
