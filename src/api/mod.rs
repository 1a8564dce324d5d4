//! What is said about a repository, to a person's script and over the network alike.
//!
//! Owns the documents (JSON), how they are made from a repository, whose eyes see what of it ([`View`]), the frames that
//! carry segments, and what a refusal looks like ([`Problem`]). Knows nothing of HTTP and of terminals: the service and
//! the command line both speak this.

mod backups;
mod own;
mod problem;
pub mod version;
mod view;

pub use backups::{
    BackupDetails, BackupList, BackupRow, ImageList, ImageRow, ListFilter, MOST_LISTED, Statistics, images,
    list, show, statistics,
};
pub use own::Own;
pub use problem::{Problem, Refusal};
pub use view::{InvalidProject, Project, View};
