//! How many connections the operating system lets the process have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What files the repository itself may have open, and threads to say so with.
const OWN: u64 = 1024;

/// Raises the number of descriptors as far as the process may, and returns how many connections fit, `wanted` at most.
pub(in crate::service) fn raise_descriptors(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let needed = (wanted as u64).saturating_add(OWN);
    let mut has = limit.current.unwrap_or(u64::MAX);
    if has < needed {
        let raised = needed.min(limit.maximum.unwrap_or(u64::MAX));
        match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
            Ok(()) => has = raised,
            Err(error) => tracing::debug!(%error, "the number of descriptors cannot be raised"),
        }
    }
    let fit = if has >= needed {
        wanted
    } else {
        usize::try_from(has.saturating_sub(OWN).max(has / 2)).unwrap_or(wanted)
    };
    if fit < wanted {
        tracing::warn!(
            wanted,
            fit,
            "the process may not have so many descriptors: fewer connections are taken"
        );
    }
    fit
}
