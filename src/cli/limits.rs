//! How many files this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything but the sources: packs, the index, standard streams.
const OWN: u64 = 64;
/// Descriptors that one open source takes at most: the file, the same past the page cache, and a server that reads it.
const OF_A_SOURCE: u64 = 3;

/// Raises the number of descriptors as far as this process may. Returns how many it has then; nothing if there is no limit.
pub(super) fn raise_descriptors() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let has = limit.current?;
    let most = limit.maximum.unwrap_or(u64::MAX);
    if has >= most {
        return Some(has);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::info!(%error, "the number of descriptors stays {has}");
            Some(has)
        }
    }
}

/// Says why so many sources cannot be open at one moment, if they cannot.
pub(super) fn too_few_descriptors(sources: usize) -> Option<String> {
    let needed = OWN + OF_A_SOURCE * sources as u64;
    let has = raise_descriptors().filter(|has| *has < needed)?;
    Some(format!(
        "its {sources} disks are read at one moment and need up to {needed} open files, and this process may have {has}; raise \
         the limit with \"ulimit -n {needed}\""
    ))
}
