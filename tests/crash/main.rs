//! The crash sweep: every job of a table is disturbed at every system call that changes a file.
//!
//! At each call the program is killed, or the call fails, or the disk is full from then on; and of a recording of all calls
//! the files are laid out as a power loss after each of them may leave them. Whatever was acknowledged must still be there,
//! exactly, and the repository must work on. `docs/testing.md` says how to run all of it and how to add a job.
//!
//! It is a program of its own, without the usual harness: it starts itself again to be traced and to verify.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
#![allow(missing_docs, clippy::missing_panics_doc, unreachable_pub, reason = "a test is no library")]

#[cfg(target_arch = "x86_64")]
mod bench;
#[cfg(target_arch = "x86_64")]
mod calls;
#[cfg(target_arch = "x86_64")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_arch = "x86_64")]
mod device;
#[cfg(target_arch = "x86_64")]
mod jobs;
#[cfg(target_arch = "x86_64")]
mod replay;
#[cfg(target_arch = "x86_64")]
mod self_test;
#[cfg(target_arch = "x86_64")]
mod service;
#[cfg(target_arch = "x86_64")]
mod stage;
#[cfg(target_arch = "x86_64")]
mod sweep;
#[cfg(target_arch = "x86_64")]
mod tracer;
#[cfg(target_arch = "x86_64")]
mod verify;

use std::process::ExitCode;

/// Which registers a system call uses is written down for x86-64 alone.
#[cfg(not(target_arch = "x86_64"))]
#[expect(clippy::print_stderr, reason = "a test's own program")]
fn main() -> ExitCode {
    eprintln!("the crash sweep runs on x86-64 only: nothing was swept");
    ExitCode::SUCCESS
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::print_stderr, reason = "a test's own program")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["--become", program @ ..] => {
            let error = tracer::become_traced(program);
            eprintln!("cannot become {program:?}: {error}");
            ExitCode::from(127)
        }
        ["--verify"] => {
            verify::serve();
            ExitCode::SUCCESS
        }
        ["--work", job, from, to, seed, sample] => sweep::work(job, [from, to, seed, sample]),
        // How the harness of other tests is asked what there is.
        ["--list", ..] | [_, "--list", ..] => ExitCode::SUCCESS,
        filters => {
            let filters: Vec<_> = filters.iter().filter(|text| !text.starts_with('-')).collect();
            sweep::run(&filters)
        }
    }
}
