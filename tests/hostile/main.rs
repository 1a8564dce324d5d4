//! Repositories that somebody else has made to harm: every command ends soon, takes bounded memory, says what it refuses, and
//! touches nothing outside the repository.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod harness;
mod lengths;
mod links;
mod modes;
mod names;
