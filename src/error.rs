//! What kinds of failure there are, whatever room they come from.
//!
//! Every room has its own error type that says what failed and where; each of them answers
//! `kind()` with one of these, and the edges (exit codes, HTTP statuses) match on nothing else.

/// The kind of a failure, as a caller needs it to decide what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// There is no repository where one was asked for.
    NoRepository,
    /// The thing asked for does not exist.
    NotFound,
    /// Somebody else is using it; trying again later may work.
    Busy,
    /// Bytes on disk are not what they must be.
    Corrupt,
    /// This release, or this filesystem, cannot do it.
    Unsupported,
    /// The request itself is wrong.
    Invalid,
    /// The service does not let the caller do it: the token, its role or its quota.
    Refused,
    /// The operating system refused or failed.
    Io,
}

impl ErrorKind {
    /// Returns the kind's name as it stands in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoRepository => "no_repository",
            Self::NotFound => "not_found",
            Self::Busy => "busy",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Invalid => "invalid",
            Self::Refused => "refused",
            Self::Io => "io",
        }
    }
}
