//! What a refusal looks like (RFC 9457, `application/problem+json`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ErrorKind;

/// Why a request is refused: what a client needs to know to decide what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// The request is wrong.
    Invalid,
    /// Nobody said who asks, or not so that it is believed.
    Unauthorized,
    /// Whoever asks may not.
    Forbidden,
    /// There is no such thing, or none that whoever asks may know of.
    NotFound,
    /// It cannot be asked of that.
    MethodNotAllowed,
    /// No version of the API that was asked for is spoken.
    NotAcceptable,
    /// The client took too long.
    Timeout,
    /// Somebody else is using it; trying again later may work.
    Busy,
    /// It does not fit what is there.
    Conflict,
    /// It was there, and is not any longer; what it was for begins anew.
    Gone,
    /// It is larger than is taken.
    TooLarge,
    /// No such range.
    RangeNotSatisfiable,
    /// Bytes that came are not what they are said to be.
    Unprocessable,
    /// Too much at once; the answer says when to try again.
    TooMany,
    /// The project has used up what it may store.
    QuotaExceeded,
    /// The header is larger than is taken.
    HeaderTooLarge,
    /// Bytes on disk are not what they must be.
    Corrupt,
    /// This release, or its filesystem, cannot do it.
    Unsupported,
    /// The server's machine failed.
    Io,
    /// The server is stopping, or cannot take more; the answer says when to try again.
    Unavailable,
}

impl Refusal {
    /// Returns the HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::Timeout => 408,
            Self::Busy | Self::Conflict => 409,
            Self::Gone => 410,
            Self::TooLarge => 413,
            Self::RangeNotSatisfiable => 416,
            Self::Unprocessable => 422,
            Self::TooMany => 429,
            Self::HeaderTooLarge => 431,
            Self::Corrupt | Self::Io => 500,
            Self::Unsupported => 501,
            Self::Unavailable => 503,
            Self::QuotaExceeded => 507,
        }
    }

    /// Returns what it is in a few words.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Invalid => "the request is wrong",
            Self::Unauthorized => "who asks is not known",
            Self::Forbidden => "not allowed",
            Self::NotFound => "no such thing",
            Self::MethodNotAllowed => "not possible with this",
            Self::NotAcceptable => "no such version",
            Self::Timeout => "it took too long",
            Self::Busy => "in use",
            Self::Conflict => "it does not fit what is there",
            Self::Gone => "no longer there",
            Self::TooLarge => "too large",
            Self::RangeNotSatisfiable => "no such range",
            Self::Unprocessable => "not what it is said to be",
            Self::TooMany => "too much at once",
            Self::QuotaExceeded => "the project's quota is used up",
            Self::HeaderTooLarge => "the header is too large",
            Self::Corrupt => "stored bytes are damaged",
            Self::Unsupported => "not possible here",
            Self::Io => "the server failed",
            Self::Unavailable => "not now",
        }
    }

    /// Returns the kind of failure that it is to a caller who does not care that a network was between.
    pub const fn error_kind(self) -> ErrorKind {
        match self {
            Self::Invalid
            | Self::Conflict
            | Self::TooLarge
            | Self::HeaderTooLarge
            | Self::RangeNotSatisfiable
            | Self::MethodNotAllowed => ErrorKind::Invalid,
            Self::NotFound | Self::Gone => ErrorKind::NotFound,
            Self::Busy | Self::TooMany | Self::Unavailable => ErrorKind::Busy,
            Self::Unprocessable | Self::Corrupt => ErrorKind::Corrupt,
            Self::NotAcceptable | Self::Unsupported => ErrorKind::Unsupported,
            Self::Unauthorized | Self::Forbidden | Self::QuotaExceeded => ErrorKind::Refused,
            Self::Timeout | Self::Io => ErrorKind::Io,
        }
    }
}

impl From<ErrorKind> for Refusal {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound | ErrorKind::NoRepository => Self::NotFound,
            ErrorKind::Busy => Self::Busy,
            ErrorKind::Corrupt => Self::Corrupt,
            ErrorKind::Unsupported => Self::Unsupported,
            ErrorKind::Invalid => Self::Invalid,
            ErrorKind::Refused => Self::Forbidden,
            ErrorKind::Io => Self::Io,
        }
    }
}

/// The document of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind of refusal it is, for programs.
    pub kind: Refusal,
    /// The HTTP status.
    pub status: u16,
    /// What kind of refusal it is, in words.
    pub title: String,
    /// What is wrong this time.
    pub detail: String,
    /// By which the server's log can be searched.
    pub request_id: String,
}
