//! What the threads of one process agree on about segments: which were claimed or appended and are not yet in
//! the index, which are just being freed, and which a running backup has found with a refcount of 0.
//!
//! An entry is put in when a worker claims a new segment, and taken out when the segment is durable in a
//! pack *and* in the index. Between a lookup in the index and the next look in here an entry may move
//! from here to there, or be freed; [`Pending::claim`] sees that by the number of such moves and looks again.
//!
//! A segment that no backup names may be found by a running backup and by garbage collection at once. Both
//! decide under this table's lock: who finds it *touches* it, with the generation of that moment, and it is not
//! freed while a backup runs that began before; who frees it marks it as *dying* first, and whoever finds it then
//! waits until it is gone.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin};
use crate::store::pack::PackNumber;

/// How many touched segments are kept track of: 33 bytes each, in a table of 2^20. A backup that finds more, as it does where nearly all of a large
/// disk was stored by one that was cut off, keeps a collection beside it from freeing anything.
const TOUCHED: usize = if cfg!(test) { 4 } else { 7 << 17 };

/// What decides whether a segment is the same as another with its SHA-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) fingerprint: Fingerprint,
    pub(super) plain_length: u32,
}

/// What the index says of a segment with the SHA-1 that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Indexed {
    pub(super) twin: Twin,
    /// Nothing if that is not known of a lost one.
    pub(super) identity: Option<Identity>,
    /// Whether no pack holds it: who brings it stores it under this twin number.
    pub(super) lost: bool,
    /// Whether no backup names it.
    pub(super) at_zero: bool,
    /// Whether a backup stored it before, and none has ever named it.
    pub(super) unfinished: bool,
}

#[derive(Debug, Default)]
struct Table {
    segments: HashMap<SegmentHash, Vec<(Twin, Identity)>>,
    /// Those of them that were claimed and are not yet with the writer: about one for each thread.
    claimed: HashSet<SegmentKey>,
    /// How often segments moved from here into the index, or out of the index.
    moves: u64,
    dying: HashSet<SegmentKey>,
    touched: HashMap<SegmentKey, u64>,
    /// The generation in which more was touched than is kept track of: everything counts as touched then.
    all_touched: Option<u64>,
    /// When the running jobs began.
    running: HashMap<u64, Horizon>,
    next_job: u64,
}

/// A moment in the life of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// The index's generation then: what fell to a refcount of 0 later has at least this.
    pub generation: u64,
    /// The lowest number of a pack that what was stored later can lie in.
    pub pack: PackNumber,
}

/// The table. Its lock is held for look-ups in memory alone, never over I/O.
#[derive(Debug, Default)]
pub(super) struct Pending {
    table: Mutex<Table>,
    /// Is told when what was dying is gone.
    gone: Condvar,
    /// Is told when what was claimed is with the writer.
    appended: Condvar,
    /// The index's generation.
    generation: AtomicU64,
    /// The pack that is appended to, or will be next.
    open_pack: AtomicU64,
}

/// What came of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// The segment is stored already, or being stored.
    Known(Twin),
    /// The segment was stored by a backup that was not finished.
    Unfinished(Twin),
    /// The caller stores it under this twin number.
    New(Twin),
    /// No twin number is left.
    Full,
}

/// A segment that is stored already, or being stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) twin: Twin,
    /// Whether it was stored by a backup that was not finished.
    pub(super) unfinished: bool,
}

/// What came of looking for a segment.
enum Look {
    Found(Found),
    /// It was not there, when so many moves had been made; these have its SHA-1 and are others, or lost.
    Absent {
        moves: u64,
        stored: Vec<Indexed>,
    },
}

/// Returns the twin number of a segment among those with its SHA-1.
fn twin_of(known: &[(Twin, Identity)], identity: Identity) -> Option<Twin> {
    known.iter().find(|(_, other)| *other == identity).map(|(twin, _)| *twin)
}

impl Pending {
    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is whole between any two statements that hold the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a segment here or, by `indexed`, in the index.
    pub(super) fn find<E>(
        &self,
        hash: SegmentHash,
        identity: Identity,
        indexed: impl Fn() -> Result<Vec<Indexed>, E>,
    ) -> Result<Option<Found>, E> {
        Ok(match self.look(hash, identity, &indexed)? {
            Look::Found(found) => Some(found),
            Look::Absent { .. } => None,
        })
    }

    /// Looks for a segment until it is found, or until nothing moved between the look in here and that in the index.
    fn look<E>(
        &self,
        hash: SegmentHash,
        identity: Identity,
        indexed: &impl Fn() -> Result<Vec<Indexed>, E>,
    ) -> Result<Look, E> {
        loop {
            let moves = {
                let table = self.table();
                if let Some(twin) = table.segments.get(&hash).and_then(|known| twin_of(known, identity)) {
                    return Ok(Look::Found(Found { twin, unfinished: false }));
                }
                table.moves
            };
            let stored = indexed()?;
            let Some(found) = stored.iter().find(|it| !it.lost && it.identity == Some(identity)) else {
                return Ok(Look::Absent { moves, stored });
            };
            if !found.at_zero || self.touch(SegmentKey { hash, twin: found.twin }, moves) {
                return Ok(Look::Found(Found { twin: found.twin, unfinished: found.unfinished }));
            }
        }
    }

    /// Finds a segment here or, by `indexed`, in the index, or claims it for the caller.
    pub(super) fn claim<E>(
        &self,
        hash: SegmentHash,
        identity: Identity,
        indexed: impl Fn() -> Result<Vec<Indexed>, E>,
    ) -> Result<Claimed, E> {
        loop {
            let (moves, stored) = match self.look(hash, identity, &indexed)? {
                Look::Found(Found { twin, unfinished: true }) => return Ok(Claimed::Unfinished(twin)),
                Look::Found(Found { twin, unfinished: false }) => return Ok(Claimed::Known(twin)),
                Look::Absent { moves, stored } => (moves, stored),
            };
            let mut table = self.table();
            if table.moves != moves {
                continue;
            }
            let known = table.segments.entry(hash).or_default();
            if let Some(twin) = twin_of(known, identity) {
                return Ok(Claimed::Known(twin));
            }
            let free = |twin: &Twin| known.iter().all(|(other, _)| other != twin);
            let heals = |it: &&Indexed| it.lost && it.identity.is_none_or(|had| had == identity);
            let lost = stored.iter().filter(heals).map(|lost| lost.twin);
            let taken =
                stored.iter().map(|indexed| indexed.twin.0).chain(known.iter().map(|(twin, _)| twin.0));
            let twin = match (lost.into_iter().find(free), taken.max()) {
                (Some(lost), _) => lost,
                (None, None) => Twin(0),
                (None, Some(highest)) => match highest.checked_add(1) {
                    Some(next) => Twin(next),
                    None => return Ok(Claimed::Full),
                },
            };
            known.push((twin, identity));
            table.claimed.insert(SegmentKey { hash, twin });
            return Ok(Claimed::New(twin));
        }
    }

    /// A segment that was claimed is with the writer, or never will be.
    pub(super) fn settle(&self, key: SegmentKey) {
        self.table().claimed.remove(&key);
        self.appended.notify_all();
    }

    /// Waits until what others have claimed so far is with the writer: somebody may have found it, and counts on it. They
    /// encode meanwhile, and wait for nobody but the writer.
    pub(super) fn wait_for_claimed(&self) {
        let mut table = self.table();
        let before = table.claimed.clone();
        while !table.claimed.is_disjoint(&before) {
            table = self.appended.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns a number that [`Self::touch`] compares: what was looked up since is still as it was.
    pub(super) fn moves(&self) -> u64 {
        self.table().moves
    }

    /// Keeps a segment that was found with a refcount of 0, since `moves` was read, from being freed while the
    /// caller's backup runs. Says whether it is still there; if not, the caller looks again.
    pub(super) fn touch(&self, key: SegmentKey, moves: u64) -> bool {
        let mut table = self.table();
        while table.dying.contains(&key) {
            table = self.gone.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        if table.moves != moves {
            return false;
        }
        let generation = self.generation();
        if table.touched.len() < TOUCHED || table.touched.contains_key(&key) {
            table.touched.insert(key, generation);
        } else {
            table.all_touched = Some(generation);
        }
        true
    }

    /// Takes segments out that are now in the index.
    pub(super) fn drain(&self, keys: impl Iterator<Item = SegmentKey>) {
        let mut table = self.table();
        table.moves += 1;
        for key in keys {
            if let Some(known) = table.segments.get_mut(&key.hash) {
                known.retain(|(twin, _)| *twin != key.twin);
                if known.is_empty() {
                    table.segments.remove(&key.hash);
                }
            }
        }
    }

    /// Returns the index's generation.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn set_generation(&self, generation: u64) {
        self.generation.fetch_max(generation, Ordering::AcqRel);
    }

    pub(super) fn set_open_pack(&self, number: PackNumber) {
        self.open_pack.store(number.0, Ordering::Release);
    }

    fn now(&self) -> Horizon {
        Horizon { generation: self.generation(), pack: PackNumber(self.open_pack.load(Ordering::Acquire)) }
    }

    /// Registers a job that looks segments up, before its first lookup. Returns its number, and when that was.
    pub(super) fn begin_job(&self) -> (u64, Horizon) {
        let mut table = self.table();
        let number = table.next_job;
        table.next_job += 1;
        let now = self.now();
        table.running.insert(number, now);
        (number, now)
    }

    pub(super) fn end_job(&self, number: u64) {
        let mut table = self.table();
        table.running.remove(&number);
        // What was touched was touched for those that run.
        if table.running.is_empty() {
            table.touched = HashMap::new();
            table.all_touched = None;
        }
    }

    /// Returns the moment before which what nobody names may be freed: nothing that runs can have found it since.
    /// Forgets what was touched before that.
    pub(super) fn horizon(&self) -> Horizon {
        let mut table = self.table();
        let horizon = table.running.values().fold(self.now(), |horizon, began| Horizon {
            generation: horizon.generation.min(began.generation),
            pack: horizon.pack.min(began.pack),
        });
        table.touched.retain(|_, generation| *generation >= horizon.generation);
        table.all_touched = table.all_touched.filter(|generation| *generation >= horizon.generation);
        horizon
    }

    /// Marks segments as being freed, and leaves out those that are in use: touched in the generation `before` or
    /// later, or being stored anew.
    pub(super) fn begin_dying<T>(
        &self,
        candidates: Vec<T>,
        before: u64,
        key: impl Fn(&T) -> SegmentKey,
    ) -> Vec<T> {
        let mut table = self.table();
        let all = table.all_touched.is_some_and(|generation| generation >= before);
        let in_use = |table: &Table, key: SegmentKey| {
            all || table.touched.get(&key).is_some_and(|generation| *generation >= before)
                || table.segments.get(&key.hash).is_some_and(|known| known.iter().any(|it| it.0 == key.twin))
        };
        let dying: Vec<T> = candidates.into_iter().filter(|it| !in_use(&table, key(it))).collect();
        table.dying.extend(dying.iter().map(key));
        dying
    }

    /// What was dying is gone from the index, or stays.
    pub(super) fn end_dying(&self) {
        let mut table = self.table();
        table.dying.clear();
        table.moves += 1;
        drop(table);
        self.gone.notify_all();
    }
}
