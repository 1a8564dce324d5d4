//! How many files, how much memory and how many threads this process may have.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::cli::format;

/// Descriptors for everything but the sources: packs, the index, standard streams.
const OWN: u64 = 64;
/// Descriptors that one open source takes at most: the file, the same past the page cache, and a server that reads it.
const OF_A_SOURCE: u64 = 3;

/// The number of descriptors is not raised beyond this: programs that Ekko starts inherit the limit, and some of them go through all
/// descriptors that they may have.
const MOST: u64 = 1 << 16;

/// Raises the number of descriptors as far as this process may. Returns how many it has then; nothing if there is no limit.
pub(super) fn raise_descriptors() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let has = limit.current?;
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(MOST);
    if has >= wanted {
        return Some(has);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        Ok(()) => Some(wanted),
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

/// Address space that a backup takes besides its threads: the program, the index, and what an allocator keeps.
const OWN_MEMORY: u64 = 256 << 20;
/// What each thread takes: a piece that is read, the same encoded, the codec, and its stack.
const OF_A_THREAD: u64 = 28 << 20;

/// Says why a backup by so many threads has too little memory, if it has. An allocation that fails would end the process.
pub(super) fn too_little_memory(threads: usize) -> Option<String> {
    let needed = OWN_MEMORY + OF_A_THREAD * threads as u64;
    let has = getrlimit(Resource::As).current.filter(|has| *has < needed)?;
    let (has, needed) = (format::bytes(has), format::bytes(needed));
    Some(format!(
        "{threads} threads need about {needed} of address space, and this process may have {has}; use a smaller number of --jobs, \
         or raise the limit with \"ulimit -v\""
    ))
}

/// Threads that a repository needs at once when it is opened for changes: the store's, the index's, and what watches it.
const OF_A_REPOSITORY: usize = 8;

/// Makes sure that the threads of a repository can be started: sled waits for ever for one of its own that could not.
pub(super) fn has_threads() -> io::Result<()> {
    let (end, ended) = mpsc::channel::<()>();
    let ended = Arc::new(Mutex::new(ended));
    let mut threads = Vec::with_capacity(OF_A_REPOSITORY);
    let mut started = Ok(());
    while threads.len() < OF_A_REPOSITORY && started.is_ok() {
        let ended = Arc::clone(&ended);
        // All of them are there until the other end of the channel goes.
        let wait = move || {
            let _ = ended.lock().unwrap_or_else(PoisonError::into_inner).recv();
        };
        match std::thread::Builder::new().spawn(wait) {
            Ok(thread) => threads.push(thread),
            Err(error) => started = Err(error),
        }
    }
    drop(end);
    for thread in threads {
        // It only waits.
        let _ = thread.join();
    }
    started
}
