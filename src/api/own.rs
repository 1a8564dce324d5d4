//! What a client is told of itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who asks, and how much of theirs is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Own {
    /// Who asks, as the log has it.
    pub who: String,
    /// What they may: `restore`, `backup`, `operator` or `admin`.
    pub role: String,
    /// Their project; nothing for the repository's owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The plain bytes of the project's backups, where a segment that stays the same at its place from one backup of a
    /// backupset to the next counts once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// How many of them there may be, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
}
