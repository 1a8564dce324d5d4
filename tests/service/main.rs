//! The service, as its clients meet it: a process of its own, over HTTP.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
#![allow(dead_code, missing_docs, unreachable_pub, reason = "a test is no library")]

mod attacks;
mod between;
mod changes;
mod daemon;
mod data;
mod deleting;
mod document;
mod fair;
mod flaws;
mod forgetting;
mod going_on;
mod harness;
mod jobs;
mod logs;
mod lost;
mod machines;
mod names;
mod network;
mod proxy;
mod reading;
mod renaming;
mod reports;
mod sending;
mod tokens;
mod views;
