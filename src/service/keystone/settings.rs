//! How Keystone is found, what the service says to it, and what its roles mean.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::Uri;
use serde::Deserialize;

use crate::service::{Role, ServiceError};

/// A text that is not to be printed.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Hidden(String);

impl Hidden {
    /// Returns the text itself.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Hidden {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("...")
    }
}

/// By what a project of Keystone's is called here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProjectKey {
    /// By its id, which nobody else ever has.
    #[default]
    Id,
    /// By its name; only projects of the domain of the settings are let in then, for names are used again in others.
    Name,
}

/// A Keystone that knows the clients.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeystoneSettings {
    /// Its address with the version, e.g. `https://keystone.example:5000/v3`.
    pub url: String,
    /// The roots of its certificate, in PEM; without it, those of the machine.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Ask it without encryption, over a network too.
    #[serde(default)]
    pub insecure: bool,
    /// The id of the domain that the service's user and its project are in.
    #[serde(default = "default_domain")]
    pub domain: String,
    /// The service's own user, by name. It needs the role `service`, and no other.
    #[serde(default)]
    pub user: Option<String>,
    /// Its password.
    #[serde(default)]
    pub password: Option<Hidden>,
    /// The project that it has its role in, by name.
    #[serde(default)]
    pub user_project: Option<String>,
    /// The id of an application credential, in place of user, password and project.
    #[serde(default)]
    pub application_credential: Option<String>,
    /// Its secret.
    #[serde(default)]
    pub secret: Option<Hidden>,
    /// What projects are called here: `id` or `name`.
    #[serde(default)]
    pub project: ProjectKey,
    /// What roles of Keystone's mean here. Of a user who has several, the highest counts; roles that are not named here
    /// mean nothing.
    pub roles: BTreeMap<String, Role>,
    /// For how many seconds its answers are believed: a token that is revoked there is let in here so long.
    #[serde(default = "default_cache")]
    pub cache_seconds: u64,
    /// For how many seconds it is waited for.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u64,
}

fn default_domain() -> String {
    "default".to_owned()
}

const fn default_cache() -> u64 {
    60
}

const fn default_timeout() -> u64 {
    10
}

impl KeystoneSettings {
    /// Returns how long its answers are believed.
    pub(super) const fn cache(&self) -> Duration {
        Duration::from_secs(self.cache_seconds)
    }

    /// Returns how long it is waited for.
    pub(super) const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// Says whether the settings fit together.
    pub(super) fn check(&self) -> Result<(), ServiceError> {
        let wrong = |what: &str| Err(ServiceError::Keystone { what: what.to_owned() });
        let by_user = [self.user.is_some(), self.password.is_some(), self.user_project.is_some()];
        let by_credential = [self.application_credential.is_some(), self.secret.is_some()];
        if !matches!(
            (by_user, by_credential),
            ([true, true, true], [false, false]) | ([false, false, false], [true, true])
        ) {
            return wrong("name user, password and user_project, or application_credential and secret");
        }
        if self.roles.is_empty() {
            return wrong("roles says of no role what it means, so nobody could be let in");
        }
        let Ok(uri) = self.url.parse::<Uri>() else { return wrong("url is no address") };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_loopback =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        match uri.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.insecure || is_loopback => Ok(()),
            Some("http") => {
                wrong("tokens would be sent to url without encryption: use https, or say insecure = true")
            }
            _ => wrong("url begins with https:// or http://"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(), String> {
        let settings: KeystoneSettings = toml::from_str(text).map_err(|error| error.to_string())?;
        assert!(!format!("{settings:?}").contains("s3cret"), "{settings:?}");
        settings.check().map_err(|error| error.to_string())
    }

    #[test]
    fn settings_that_do_not_fit_together_are_refused() {
        let roles = "[roles]\nmember = \"backup\"\n";
        let user = "user = \"ekko\"\npassword = \"s3cret\"\nuser_project = \"service\"\n";
        let credential = "application_credential = \"12\"\nsecret = \"s3cret\"\n";
        for good in ["https://keystone:5000/v3", "http://127.0.0.1:5000/v3", "http://[::1]:5000/v3"] {
            assert_eq!(read(&format!("url = \"{good}\"\n{user}{roles}")), Ok(()));
            assert_eq!(read(&format!("url = \"{good}\"\n{credential}{roles}")), Ok(()));
        }
        let insecure = "url = \"http://keystone:5000/v3\"\n";
        assert_eq!(read(&format!("{insecure}insecure = true\n{user}{roles}")), Ok(()));
        let url = "url = \"https://keystone:5000/v3\"\n";
        for wrong in [
            format!("{insecure}{user}{roles}"),
            format!("url = \"keystone\"\n{user}{roles}"),
            format!("{url}{roles}"),
            format!("{url}{user}{credential}{roles}"),
            format!("{url}user = \"ekko\"\n{roles}"),
            format!("{url}{user}[roles]\n"),
            format!("{url}{user}[roles]\nmember = \"root\"\n"),
            format!("{url}{user}"),
        ] {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
    }
}
