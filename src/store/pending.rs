//! Segments that were claimed or appended and are not yet in the index.
//!
//! An entry is put in when a worker claims a new segment, and taken out when the segment is durable in a
//! pack *and* in the index. Between a lookup in the index and the next look in here an entry may move
//! from here to there; [`Pending::claim`] sees that by the number of drains and looks again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin};

/// What decides whether a segment is the same as another with its SHA-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) fingerprint: Fingerprint,
    pub(super) plain_length: u32,
}

#[derive(Debug, Default)]
struct Table {
    segments: HashMap<SegmentHash, Vec<(Twin, Identity)>>,
    drains: u64,
}

/// The table. Its lock is held for look-ups in memory alone, never over I/O.
#[derive(Debug, Default)]
pub(super) struct Pending {
    table: Mutex<Table>,
}

/// What came of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// The segment is stored already, or being stored.
    Known(Twin),
    /// The caller stores it under this twin number.
    New(Twin),
    /// No twin number is left.
    Full,
}

impl Pending {
    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is whole between any two statements that hold the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a segment here or, by `indexed`, in the index, or claims it for the caller.
    pub(super) fn claim<E>(
        &self,
        hash: SegmentHash,
        identity: Identity,
        indexed: impl Fn() -> Result<Vec<(Twin, Identity)>, E>,
    ) -> Result<Claimed, E> {
        let same = |known: &[(Twin, Identity)]| {
            known.iter().find(|(_, other)| *other == identity).map(|(twin, _)| *twin)
        };
        loop {
            let drains = {
                let table = self.table();
                if let Some(twin) = table.segments.get(&hash).and_then(|known| same(known)) {
                    return Ok(Claimed::Known(twin));
                }
                table.drains
            };
            let stored = indexed()?;
            if let Some(twin) = same(&stored) {
                return Ok(Claimed::Known(twin));
            }
            let mut table = self.table();
            if table.drains != drains {
                continue;
            }
            let known = table.segments.entry(hash).or_default();
            if let Some(twin) = same(known) {
                return Ok(Claimed::Known(twin));
            }
            let taken = stored.iter().chain(known.iter()).map(|(twin, _)| twin.0).max();
            let twin = match taken {
                None => Twin(0),
                Some(last) => match last.checked_add(1) {
                    Some(next) => Twin(next),
                    None => return Ok(Claimed::Full),
                },
            };
            known.push((twin, identity));
            return Ok(Claimed::New(twin));
        }
    }

    /// Takes segments out that are now in the index.
    pub(super) fn drain(&self, keys: impl Iterator<Item = SegmentKey>) {
        let mut table = self.table();
        table.drains += 1;
        for key in keys {
            if let Some(known) = table.segments.get_mut(&key.hash) {
                known.retain(|(twin, _)| *twin != key.twin);
                if known.is_empty() {
                    table.segments.remove(&key.hash);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;

    fn identity(of: &[u8]) -> Identity {
        Identity { fingerprint: Fingerprint::of(of), plain_length: 1 }
    }

    fn claim(pending: &Pending, of: &[u8], stored: &[(Twin, Identity)]) -> Claimed {
        pending
            .claim(SegmentHash::of(b"same"), identity(of), || Ok::<_, Infallible>(stored.to_vec()))
            .unwrap()
    }

    #[test]
    fn different_segments_with_one_sha1_get_twin_numbers() {
        let pending = Pending::default();
        assert_eq!(claim(&pending, b"a", &[]), Claimed::New(Twin(0)));
        assert_eq!(claim(&pending, b"a", &[]), Claimed::Known(Twin(0)));
        assert_eq!(claim(&pending, b"b", &[]), Claimed::New(Twin(1)));
        assert_eq!(claim(&pending, b"c", &[(Twin(4), identity(b"d"))]), Claimed::New(Twin(5)));
        assert_eq!(claim(&pending, b"d", &[(Twin(4), identity(b"d"))]), Claimed::Known(Twin(4)));
        assert_eq!(claim(&pending, b"e", &[(Twin(u16::MAX), identity(b"f"))]), Claimed::Full);
    }

    #[test]
    fn a_segment_that_moves_into_the_index_during_a_claim_is_found() {
        let pending = Pending::default();
        let key = SegmentKey { hash: SegmentHash::of(b"same"), twin: Twin(0) };
        let looks = Cell::new(0);
        let claimed = pending.claim(key.hash, identity(b"a"), || {
            looks.set(looks.get() + 1);
            if looks.get() == 1 {
                // Behind this look's back another worker stores it, and it is flushed.
                assert_eq!(claim(&pending, b"a", &[]), Claimed::New(Twin(0)));
                pending.drain(std::iter::once(key));
                Ok::<_, Infallible>(Vec::new())
            } else {
                Ok(vec![(Twin(0), identity(b"a"))])
            }
        });
        assert_eq!(claimed, Ok(Claimed::Known(Twin(0))));
    }
}
