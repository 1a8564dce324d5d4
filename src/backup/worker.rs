//! What is done with one segment.

use crate::backup::pipeline::Plain;
use crate::backup::{BackupError, BackupOptions};
use crate::codec::Encoder;
use crate::manifest::{BaseIndex, SegmentRef};
use crate::progress::{Notice, Progress};
use crate::repository::BackupDraft;
use crate::segment::{Fingerprint, SegmentHash, SegmentKey, Twin, is_zero};
use crate::store::{Claim, SegmentStore};

/// What a segment turned out to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Class {
    Zero,
    Unchanged,
    Deduplicated,
    New { plain_bytes: u64, stored_bytes: u64 },
}

/// Hashes, compares and encodes segments. One for each thread.
pub(super) struct Worker<'a> {
    store: &'a SegmentStore,
    draft: &'a BackupDraft,
    progress: &'a dyn Progress,
    encoder: Encoder,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        store: &'a SegmentStore,
        draft: &'a BackupDraft,
        options: &BackupOptions,
        progress: &'a dyn Progress,
    ) -> Result<Self, BackupError> {
        Ok(Self { store, draft, progress, encoder: Encoder::new(options.compression)? })
    }

    /// Finds out what a segment is, and stores it if it is new. Returns what the manifest says of it.
    ///
    /// BLAKE3 comes first, as it is the faster hash: it alone tells that a segment is its parent's. SHA-1 is
    /// computed for the others, encoding happens for new ones.
    pub(super) fn process(&mut self, plain: &Plain) -> Result<(Class, Option<SegmentRef>), BackupError> {
        let geometry = self.draft.info().geometry;
        let bytes = plain.bytes.as_slice();
        if !geometry.keeps_zeros(plain.index) && is_zero(bytes) {
            return Ok((Class::Zero, None));
        }
        let fingerprint = Fingerprint::of(bytes);
        let length = geometry.length(plain.index);
        if let Some(parent) = self.draft.parent()
            && let Some(segment) = parent.manifest.lookup(plain.index)
        {
            let stored = self.store.require(segment.key)?;
            if stored.fingerprint() == fingerprint && stored.plain_length == length {
                let segment = SegmentRef { base: parent.base(segment.base), ..segment };
                return Ok((Class::Unchanged, Some(segment)));
            }
        }
        let hash = SegmentHash::of(bytes);
        let (class, key) = match self.store.claim(hash, fingerprint, length)? {
            Claim::Known(key) => (Class::Deduplicated, key),
            Claim::New(new) => {
                let key = new.key();
                let mut buffer = self.store.buffer()?;
                let codec = self.encoder.encode(bytes, buffer.restart());
                let stored_bytes = buffer.stored_length();
                self.store.append(new, codec, buffer)?;
                self.warn_of_twin(key);
                (Class::New { plain_bytes: u64::from(length), stored_bytes }, key)
            }
        };
        let incremental = self.draft.info().incremental;
        Ok((class, Some(SegmentRef { key, incremental, base: BaseIndex(0) })))
    }

    fn warn_of_twin(&self, key: SegmentKey) {
        if key.twin != Twin(0) {
            self.progress.notice(Notice::TwinStored { hash: key.hash.to_string() });
        }
    }
}
