//! Stored copies of segments that a check or a restore found damaged.
//!
//! The index names them as places of their segments, because a copy that cannot be read today may be readable tomorrow. A new
//! backup must not rest on them: for it, such a segment is as one that is lost, so the backup stores it again. The new
//! copy takes the place of the damaged one in the index, and all backups that name the segment are intact again.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use crate::segment::SegmentKey;
use crate::store::SegmentStore;
use crate::store::entry::SegmentEntry;
use crate::store::pack::RecordPlace;

/// The damaged copies.
#[derive(Debug, Default)]
pub(super) struct Distrusted {
    copies: RwLock<HashMap<SegmentKey, Vec<RecordPlace>>>,
}

impl Distrusted {
    fn is_empty(&self) -> bool {
        self.copies.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn has(&self, key: SegmentKey, place: RecordPlace) -> bool {
        let copies = self.copies.read().unwrap_or_else(PoisonError::into_inner);
        copies.get(&key).is_some_and(|places| places.contains(&place))
    }
}

impl SegmentStore {
    /// Takes these copies of segments, and no others, for damaged.
    pub fn distrust_copies(&self, copies: impl IntoIterator<Item = (SegmentKey, Vec<RecordPlace>)>) {
        let copies = copies.into_iter().collect();
        *self.state.distrusted.copies.write().unwrap_or_else(PoisonError::into_inner) = copies;
    }

    /// Says whether a new backup must store a segment again, of which the index says this: it is lost, or known to be damaged.
    pub fn lacks(&self, key: SegmentKey, entry: &SegmentEntry) -> bool {
        entry.is_lost() || self.state.distrusted.has(key, entry.place())
    }

    /// Says whether there may be a segment that new backups must store again.
    ///
    /// # Errors
    /// The index has failed.
    pub fn lacks_any(&self) -> Result<bool, crate::store::StoreError> {
        Ok(self.lost_segments()? > 0 || !self.state.distrusted.is_empty())
    }
}
