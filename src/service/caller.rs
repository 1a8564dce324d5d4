//! Who asks, and what they may.

use std::fmt;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::{Refusal, View};
use crate::service::Refused;

/// What somebody may do. The roles are in order: each may all that those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees and reads the project's backups.
    Restore,
    /// The same, and adds backups; takes nothing away: no deleting, no forgetting, no collecting, no end of a protection.
    Backup,
    /// The same, and deletes and protects backups of the project, and collects garbage.
    Operator,
    /// The same, and looks after the service itself: what is counted over all projects, jobs over everything. Images are
    /// the project's all the same.
    Admin,
}

impl Role {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Backup => "backup",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// A text that names no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is restore, backup, operator or admin")]
pub struct InvalidRole;

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        let all = [Self::Restore, Self::Backup, Self::Operator, Self::Admin];
        all.into_iter().find(|role| role.name() == text).ok_or(InvalidRole)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who it is, for the log and for what is counted by caller: `owner`, `token:ID` or `keystone:USER@PROJECT`.
    pub who: String,
    /// What they see.
    pub view: View,
    /// What they may.
    pub role: Role,
}

impl Caller {
    /// The owner's `who`. No token and no user of Keystone has it: theirs have a colon.
    pub(super) const OWNER: &'static str = "owner";

    /// The repository's owner, who comes by the socket in it.
    pub fn owner() -> Self {
        Self { who: Self::OWNER.to_owned(), view: View::everything(), role: Role::Admin }
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
            let why = format!("this takes the role {role}, and the token's is {}", self.role);
            Err(Refused::new(Refusal::Forbidden, why))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_what_those_before_it_may_and_nothing_else() {
        let roles = [Role::Restore, Role::Backup, Role::Operator, Role::Admin];
        for (held, role) in roles.into_iter().enumerate() {
            let caller = Caller { role, ..Caller::owner() };
            for (asked, needed) in roles.into_iter().enumerate() {
                assert_eq!(caller.must_be(needed).is_ok(), held >= asked, "{role} for {needed}");
            }
            assert_eq!(role.name().parse(), Ok(role));
            let json = serde_json::to_string(&role).unwrap();
            assert_eq!(json, format!("\"{role}\""), "one spelling everywhere");
        }
        assert!("Admin".parse::<Role>().is_err());
    }
}
