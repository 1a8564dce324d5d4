//! What is said about a repository, to a person's script and over the network alike.
//!
//! Owns the documents (JSON), how they are made from a repository, whose eyes see what of it ([`View`]), the frames that
//! carry segments, and what a refusal looks like ([`Problem`]). Knows nothing of HTTP and of terminals: the service and
//! the command line both speak this.

mod backups;
mod changes;
mod check;
mod deletion;
mod diff;
mod forget;
pub mod frames;
mod jobs;
mod names;
mod own;
mod problem;
mod sessions;
mod statistics;
mod undelete;
pub mod version;
mod view;

pub use backups::{
    BackupDetails, BackupList, BackupRow, ImageList, ImageRow, ListFilter, MOST_LISTED, images, list, show,
};
pub use changes::{
    BackupRef, DeleteDocument, GcDocument, ProtectionDocument, ProtectionRequest, collect, protect,
};
pub use check::{
    CheckDocument, CheckedBackups, CheckedIndex, DamagedRow, FailureReport, FailureRow, StatusDocument,
    StatusRow, status_of,
};
pub use deletion::{DeletionPlan, plan_of};
pub use diff::{DiffRow, DiffText, Exists, write_diff};
pub use forget::{ForgetDocument, ForgetPlan, KeptBackup, REFUSED, is_rule};
pub use jobs::{
    CollectedDocument, InvalidRules, JobDocument, JobEvent, JobEventKind, JobFailure, JobKind, JobList,
    JobProgress, JobRequest, JobResult, JobState, KeepNumber, KeepRules, Unlimited,
};
pub use names::{
    FailureDocument, RenameDocument, RenameRequest, RetireDocument, rename, report_failure, retire,
};
pub use own::Own;
pub use problem::{Problem, Refusal};
pub use sessions::{ByteRange, Committed, InvalidFlaws, NewSession, SessionState, SourceFlaws, sign_of_life};
pub use statistics::{NameStatistics, Statistics, statistics};
pub use undelete::{UndeleteDocument, UndeleteRequest, undelete};
pub use view::{InvalidProject, Project, View};
