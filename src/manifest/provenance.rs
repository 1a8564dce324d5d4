//! Where the data of a backup came from, and what it took to read it: attributes of the manifest, for people.
//!
//! Nothing is decided by them.

use std::time::Duration;

use crate::manifest::{HostName, ManifestInfo, SourceName};

/// The attribute with the path or URL of the source, without credentials.
const SOURCE: &str = "source";
/// The attribute with the name of the machine that read the source.
const HOST: &str = "host";
/// The attribute with the number of bytes that were read from the source, in decimal digits.
const READ_BYTES: &str = "read_bytes";
/// The attribute with the seconds from the beginning of the backup until its source was read, with three decimals.
const SECONDS: &str = "seconds";

/// The attribute that says in which session of a service the backup was sent.
pub const SESSION: &str = "session";

/// The attributes that [`Provenance`] reads.
pub const PROVENANCE: [&str; 4] = [SOURCE, HOST, READ_BYTES, SECONDS];

/// Which source is backed up, and by which machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceOrigin {
    /// The path or URL of the source.
    pub source: Option<SourceName>,
    /// The machine that reads it.
    pub host: Option<HostName>,
}

impl SourceOrigin {
    /// Returns the attributes of the manifest.
    pub fn attributes(&self) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
        let source = self.source.as_ref().map(|source| (SOURCE, source.as_str().into()));
        let host = self.host.as_ref().map(|host| (HOST, host.as_str().into()));
        source.into_iter().chain(host)
    }
}

/// What it took to read a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadEffort {
    /// How many bytes were read from the source, if that is known; holes are not read.
    pub read_bytes: Option<u64>,
    /// How long the backup took until then.
    pub elapsed: Duration,
}

impl ReadEffort {
    /// Returns the attributes of the manifest.
    pub fn attributes(&self) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
        let read = self.read_bytes.map(|bytes| (READ_BYTES, bytes.to_string().into_bytes()));
        let seconds = format!("{:.3}", self.elapsed.as_secs_f64()).into_bytes();
        read.into_iter().chain([(SECONDS, seconds)])
    }
}

/// What a manifest says of where its data came from. A text that cannot be understood says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Provenance {
    /// The path or URL of the source.
    pub source: Option<String>,
    /// The machine that read it.
    pub host: Option<String>,
    /// How many bytes were read from the source.
    pub read_bytes: Option<u64>,
    /// How long the backup took until the source was read, in seconds.
    pub seconds: Option<f64>,
}

impl Provenance {
    /// Reads the attributes of a manifest.
    pub fn of(info: &ManifestInfo) -> Self {
        let text = |key| info.attribute(key).and_then(|value| std::str::from_utf8(value).ok());
        let seconds = text(SECONDS).and_then(|text| text.parse().ok());
        Self {
            source: text(SOURCE).map(str::to_owned),
            host: text(HOST).map(str::to_owned),
            read_bytes: text(READ_BYTES).and_then(|text| text.parse().ok()),
            seconds: seconds.filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0),
        }
    }
}
