//! What Keystone's words mean here.

use std::time::Duration;

use serde::Deserialize;

use crate::api::{Project, Refusal, View};
use crate::service::keystone::{KeystoneSettings, NEGATIVE, ProjectKey, Verdict};
use crate::service::{Caller, Refused};

/// What Keystone, or the web server in front of it, says of a token.
#[derive(Debug)]
pub(super) enum Said {
    /// It is one.
    Of(TokenBody),
    /// It is none, or the question was refused because of it.
    Nothing,
    /// The service may not ask about it.
    Forbidden,
}

#[derive(Debug, Deserialize)]
pub(super) struct Document {
    pub(super) token: TokenBody,
}

/// A token, in the form of the identity API v3.
#[derive(Debug, Deserialize)]
pub(super) struct TokenBody {
    pub(super) expires_at: String,
    pub(super) user: Named,
    /// Not there if the token is for a domain, for the whole system or for nothing.
    #[serde(default)]
    pub(super) project: Option<ProjectBody>,
    #[serde(default)]
    pub(super) roles: Vec<Named>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Named {
    pub(super) id: String,
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct ProjectBody {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) domain: DomainBody,
}

#[derive(Debug, Deserialize)]
pub(super) struct DomainBody {
    pub(super) id: String,
}

/// What is kept of it.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    In(Caller),
    /// The user is known, and may nothing here.
    Nothing(&'static str),
    Unknown,
}

impl Answer {
    /// Returns what Keystone's words mean, and for how long.
    pub(super) fn of(said: Said, settings: &KeystoneSettings) -> (Self, Duration) {
        let negative = (Self::Unknown, NEGATIVE.min(settings.cache()));
        let Said::Of(token) = said else { return negative };
        let Ok(end) = token.expires_at.parse::<jiff::Timestamp>() else { return negative };
        let left = Duration::try_from(end.duration_since(crate::time::now())).unwrap_or_default();
        if left.is_zero() {
            return negative;
        }
        (Self::of_living(token, settings), left.min(settings.cache()))
    }

    fn of_living(token: TokenBody, settings: &KeystoneSettings) -> Self {
        let Some(project) = token.project else { return Self::Nothing("the token is for no project") };
        let name = match settings.project {
            ProjectKey::Id => project.id.clone(),
            ProjectKey::Name if project.domain.id == settings.domain => project.name,
            ProjectKey::Name => return Self::Nothing("the token's project is in another domain"),
        };
        let Ok(name) = Project::try_from(name) else {
            return Self::Nothing("the project's name has characters that are not possible here");
        };
        let role = token.roles.iter().filter_map(|role| settings.roles.get(&role.name)).max();
        let Some(role) = role else {
            return Self::Nothing("no role of the user in this project means anything here");
        };
        let who = format!("keystone:{}@{}", token.user.id, project.id);
        Self::In(Caller { who, view: View::of(name), role: *role })
    }

    /// Returns what becomes of a client that shows the token.
    pub(super) fn verdict(self) -> Result<Verdict, Refused> {
        match self {
            Self::In(caller) => Ok(Verdict::In(caller)),
            Self::Nothing(why) => Err(Refused::new(Refusal::Forbidden, why)),
            Self::Unknown => Ok(Verdict::Unknown),
        }
    }
}
