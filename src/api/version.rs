//! The versions of the API, and how client and server agree on one, as in the original: the client names one in a header,
//! and the server answers with the one it used and the range that it has.

use std::fmt;
use std::str::FromStr;

/// The header by which a version is asked for and told: `1.0`, or `latest`.
pub const HEADER: &str = "x-openstack-ekko-api-version";
/// The header that tells the lowest version.
pub const MINIMUM_HEADER: &str = "x-openstack-ekko-api-minimum-version";
/// The header that tells the highest version.
pub const MAXIMUM_HEADER: &str = "x-openstack-ekko-api-maximum-version";

/// The lowest version that is spoken.
pub const MINIMUM: Version = Version { major: 1, minor: 0 };
/// The highest version that is spoken.
pub const MAXIMUM: Version = Version { major: 1, minor: 0 };

/// A version: within one major version, a higher minor version only adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// What breaks clients.
    pub major: u16,
    /// What does not.
    pub minor: u16,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A text that is no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a version is two numbers, as in 1.0, or latest")]
pub struct InvalidVersion;

impl FromStr for Version {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        if text == "latest" {
            return Ok(MAXIMUM);
        }
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).ok_or(InvalidVersion)
        };
        let (major, minor) = text.split_once('.').ok_or(InvalidVersion)?;
        Ok(Self { major: number(major)?, minor: number(minor)? })
    }
}

/// Returns the version to use for a request that asks for `asked`; without one, the lowest, as a client that knows of
/// no versions was written for that.
///
/// # Errors
///
/// With what to tell a client that asks for none of those that are spoken.
pub fn negotiate(asked: Option<&str>) -> Result<Version, String> {
    let Some(asked) = asked else { return Ok(MINIMUM) };
    let version = asked.trim().parse::<Version>().map_err(|error| format!("{asked:?}: {error}"))?;
    if (MINIMUM..=MAXIMUM).contains(&version) {
        Ok(version)
    } else {
        Err(format!("version {version} is not spoken here: {MINIMUM} to {MAXIMUM} are"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_agreed_on_or_refused() {
        assert_eq!(negotiate(None), Ok(MINIMUM));
        assert_eq!(negotiate(Some("latest")), Ok(MAXIMUM));
        assert_eq!(negotiate(Some(" 1.0 ")), Ok(MINIMUM));
        for asked in ["", "1", "1.", ".0", "1.0.0", "+1.0", "2.0", "0.9", "1.70000", "one"] {
            assert!(negotiate(Some(asked)).is_err(), "{asked}");
        }
    }
}
