//! Documents about jobs: what is asked for, how far it is, and what came of it.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::api::changes::end_of;
use crate::api::{CheckDocument, CheckedBackups, ForgetDocument, GcDocument, Refusal, View};
use crate::repository::retention::{Keep, RetentionPolicy};
use crate::repository::{Repository, RepositoryError, span};

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum JobRequest {
    /// Collect garbage, of the whole store.
    Gc {
        /// Only say what would be freed.
        #[serde(default)]
        dry_run: bool,
        /// Keep what an unfinished backup stored so long for its next run, as in 90m, 12h or PT90M; else as long as the repository's
        /// settings say. For an admin.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(example = "12h")]
        keep_unfinished: Option<String>,
        /// Free the space of the caller's deleted backups at once, though they could still be undeleted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        now: bool,
        /// Give up the backups whose list is lost. While there are such, nothing is freed otherwise. For an admin.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        accept_lost: bool,
    },
    /// Check the whole store.
    Check {
        /// Read so many percent of the stored segments as well, those first that were longest not checked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(exclusive_minimum = 0, maximum = 100)]
        read_data: Option<f64>,
        /// Put what is damaged into quarantine, and mend the index. For an admin.
        #[serde(default)]
        repair: bool,
    },
    /// Delete the caller's backups that a policy does not keep.
    Forget {
        /// Only of this image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// What is kept.
        #[serde(deserialize_with = "rules")]
        keep: KeepRules,
        /// Only say what would be deleted.
        #[serde(default)]
        dry_run: bool,
        /// Delete all backups of a name of which the rules keep none. Otherwise such a name is left alone.
        #[serde(default)]
        allow_empty: bool,
        /// The `plan` of a dry run: nothing is deleted if other backups would go now than went then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan: Option<String>,
    },
}

/// Reads rules from an object alone: a list of their values would pass for them.
fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeepRules, D::Error> {
    let value = serde_json::Map::deserialize(deserializer)?;
    serde_json::from_value(value.into()).map_err(serde::de::Error::custom)
}

impl JobRequest {
    /// Returns what kind of job it is.
    pub const fn kind(&self) -> JobKind {
        match self {
            Self::Gc { .. } => JobKind::Gc,
            Self::Check { .. } => JobKind::Check,
            Self::Forget { .. } => JobKind::Forget,
        }
    }
}

/// Kinds of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// A collection of garbage.
    Gc,
    /// A check of the whole store.
    Check,
    /// A policy's deletions.
    Forget,
}

/// What a policy keeps, with restic's meanings.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeepRules {
    /// The newest ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<KeepNumber>,
    /// The newest of each hour that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hourly: Option<KeepNumber>,
    /// The newest of each day that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily: Option<KeepNumber>,
    /// The newest of each week that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weekly: Option<KeepNumber>,
    /// The newest of each month that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<KeepNumber>,
    /// The newest of each year that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yearly: Option<KeepNumber>,
    /// All that are no older than this before the newest, as in 90m, 48h, 30d or PT90M.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "30d")]
    pub within: Option<String>,
    /// All that have one of these tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// How many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum KeepNumber {
    /// So many.
    Number(u32),
    /// All.
    Word(Unlimited),
}

/// All.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unlimited {
    /// All.
    Unlimited,
}

/// Rules that are no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRules {
    /// They would keep nothing.
    #[error("nothing would be kept: say what is")]
    Empty,
    /// A span of time cannot be read.
    #[error("\"within\" is a duration, as in 48h, 30d or 2w")]
    Within,
}

impl From<KeepNumber> for Keep {
    fn from(number: KeepNumber) -> Self {
        match number {
            KeepNumber::Number(number) => Self::Number(number),
            KeepNumber::Word(Unlimited::Unlimited) => Self::Unlimited,
        }
    }
}

impl KeepRules {
    /// Returns the policy that they say.
    ///
    /// # Errors
    ///
    /// If they keep nothing at all, or are not understood.
    pub fn policy(&self) -> Result<RetentionPolicy, InvalidRules> {
        let keep = |number: Option<KeepNumber>| number.map(Keep::from).unwrap_or_default();
        let within = |text: &String| span(text).ok_or(InvalidRules::Within);
        let policy = RetentionPolicy {
            last: keep(self.last),
            hourly: keep(self.hourly),
            daily: keep(self.daily),
            weekly: keep(self.weekly),
            monthly: keep(self.monthly),
            yearly: keep(self.yearly),
            within: self.within.as_ref().map(within).transpose()?,
            tags: self.tags.clone(),
        };
        if policy.is_empty() { Err(InvalidRules::Empty) } else { Ok(policy) }
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Others come first.
    Queued,
    /// It is being done.
    Running,
    /// It is through; its result may name problems.
    Done,
    /// It could not be done.
    Failed,
    /// It was ended before it was through.
    Cancelled,
}

impl JobState {
    /// Says whether nothing comes of it any longer.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobDocument {
    /// By which it is asked for.
    pub id: String,
    /// What kind of job it is.
    pub kind: JobKind,
    /// How far it is.
    pub state: JobState,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub created: String,
    /// When it was begun.
    #[schema(format = DateTime)]
    pub started: Option<String>,
    /// When it ended.
    #[schema(format = DateTime)]
    pub ended: Option<String>,
    /// What of it is done.
    pub progress: JobProgress,
    /// What it had to tell, the first of it; to whom sees the whole store alone.
    pub notices: Vec<String>,
    /// What came of it.
    pub result: Option<JobResult>,
    /// Why it could not be done.
    pub error: Option<JobFailure>,
}

/// What of a job is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobProgress {
    /// The part that was begun last.
    pub part: Option<String>,
    /// Bytes that are done, over all parts.
    pub done_bytes: u64,
    /// Bytes of all parts that have begun.
    pub total_bytes: u64,
}

/// What came of a job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobResult {
    /// What a collection did.
    Gc(GcDocument),
    /// What a project is told of a collection.
    Collected(CollectedDocument),
    /// What a check found.
    Check(CheckDocument),
    /// What a project is told of a check.
    Checked(CheckedBackups),
    /// What a policy did.
    Forget(ForgetDocument),
}

/// What a project is told of a collection, which is of the whole store: how much it freed would say what others have.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CollectedDocument {
    /// Whether it is only looked what would be freed.
    pub dry_run: bool,
    /// Whether something kept it from freeing all: the service's admin can see what.
    pub problems: bool,
    /// Whether it was ended before it was through.
    pub cancelled: bool,
    /// How many deleted backups of the project can still be undeleted.
    #[serde(default)]
    pub kept_backups: u64,
    /// When the last of them can be undeleted no longer, at the earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub kept_until: Option<String>,
}

impl CollectedDocument {
    /// Takes from what a collection did what concerns a project.
    ///
    /// # Errors
    /// The lists of backups, or the count of the time, cannot be read.
    pub fn of(document: &GcDocument, repository: &Repository, view: &View) -> Result<Self, RepositoryError> {
        let (seen, _) = view.sets(repository)?;
        let periods = repository.undelete_periods(&seen)?;
        let left = seen.iter().flat_map(|set| &set.deleted).map(|deleted| periods.left(deleted));
        let left: Vec<_> = left.filter(|left| !left.is_zero()).collect();
        Ok(Self {
            dry_run: document.dry_run,
            problems: !document.problems.is_empty(),
            cancelled: document.cancelled,
            kept_backups: left.len() as u64,
            kept_until: left.into_iter().max().map(end_of),
        })
    }
}

/// Why a job could not be done.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobFailure {
    /// What kind of failure it is, for programs.
    pub kind: Refusal,
    /// What is wrong; what is the operator's to know stands in the server's log, under the job's id.
    pub detail: String,
}

/// An event of a job, as server-sent events carry it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobEvent {
    /// What kind of event it is.
    pub event: JobEventKind,
    /// The job, as JSON.
    pub data: String,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobEventKind {
    /// Something has changed.
    Progress,
    /// The job has ended, and the events with it.
    End,
}

/// Jobs, the newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    /// The jobs.
    pub jobs: Vec<JobDocument>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<KeepRules, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn rules_are_a_policy_or_refused() {
        let policy =
            rules(r#"{"daily": 7, "yearly": "unlimited", "within": "2w", "tags": ["gold"]}"#).unwrap();
        let policy = policy.policy().unwrap();
        assert_eq!(
            (policy.daily, policy.yearly, policy.last),
            (Keep::Number(7), Keep::Unlimited, Keep::None)
        );
        assert_eq!(policy.within.map(|span| span.as_hours()), Some(14 * 24));
        assert_eq!(rules("{}").unwrap().policy(), Err(InvalidRules::Empty));
        assert_eq!(rules(r#"{"last": 0}"#).unwrap().policy(), Err(InvalidRules::Empty));
        assert_eq!(rules(r#"{"within": "soon"}"#).unwrap().policy(), Err(InvalidRules::Within));
        for text in [r#"{"dayly": 7}"#, r#"{"daily": -1}"#, r#"{"daily": "all"}"#, r#"{"daily": 1.5}"#] {
            assert!(rules(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_request_says_nothing_that_is_not_understood() {
        let request = |text: &str| serde_json::from_str::<JobRequest>(text);
        assert!(matches!(request(r#"{"kind": "gc"}"#), Ok(JobRequest::Gc { dry_run: false, .. })));
        assert!(matches!(
            request(r#"{"kind": "check", "repair": true}"#),
            Ok(JobRequest::Check { repair: true, .. })
        ));
        for text in [
            r#"{"kind": "gc", "dryrun": true}"#,
            r#"{"kind": "forget"}"#,
            r#"{"kind": "forget", "keep": [1]}"#,
            r#"{"kind": "rebuild"}"#,
            r#"{"dry_run": true}"#,
            "[]",
        ] {
            assert!(request(text).is_err(), "{text}");
        }
    }
}
