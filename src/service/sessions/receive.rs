//! Segments that come from clients: nothing of what is said of them is believed before it was looked at.

use std::sync::{Mutex, PoisonError};

use crate::api::Refusal;
use crate::api::frames::SegmentHead;
use crate::codec::Decoder;
use crate::error::ErrorKind;
use crate::repository::{JobError, RepositoryError};
use crate::segment::{Fingerprint, SegmentHash, SegmentKey, SegmentSize, is_zero};
use crate::service::Refused;
use crate::store::{Claim, FoundFull, SegmentStore, StoreError, StoreJob};

/// A segment as it came.
#[derive(Debug)]
pub(in crate::service) struct Received {
    pub(in crate::service) head: SegmentHead,
    pub(in crate::service) stored: Vec<u8>,
}

/// Refuses a segment before its bytes are read, by what its head says.
pub(in crate::service) fn check_head(head: &SegmentHead, size: SegmentSize) -> Result<(), Refused> {
    let refuse = |what: String| Err(Refused::new(Refusal::Unprocessable, what));
    if head.plain_length == 0 || head.plain_length > size.bytes() {
        return refuse(format!("a segment has 1 to {} bytes", size.bytes()));
    }
    // What does not shrink is stored as it is.
    if head.stored_length > head.plain_length {
        return refuse("the stored bytes of a segment are no more than its plain ones".to_owned());
    }
    match head.codec() {
        Ok(_) => Ok(()),
        Err(error) => refuse(error.to_string()),
    }
}

/// How many decoders are kept for later requests.
const MOST_FREE: usize = 8;
/// The largest buffer that is kept, in bytes.
const LARGEST_FREE: usize = 8 << 20;

/// What decodes segments, re-used from request to request.
#[derive(Debug, Default)]
pub(super) struct Decoders {
    free: Mutex<Vec<(Decoder, Vec<u8>)>>,
}

impl Decoders {
    /// Verifies segments and stores those that the store lacks. Returns their keys, and of each whether it was stored now. The
    /// decoded length has a bound before anything is decoded.
    pub(super) fn store(
        &self,
        store: &SegmentStore,
        job: &StoreJob,
        segments: &[Received],
        size: SegmentSize,
    ) -> Result<Vec<(SegmentKey, bool)>, RepositoryOrRefused> {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = free().pop();
        let (mut decoder, mut plain) = match taken {
            Some(taken) => taken,
            None => (Decoder::new().map_err(|error| Refused::internal(Refusal::Io, &error))?, Vec::new()),
        };
        let keys = segments
            .iter()
            .map(|segment| store_one(store, job, segment, size, &mut decoder, &mut plain))
            .collect();
        let mut free = free();
        if free.len() < MOST_FREE && plain.capacity() <= LARGEST_FREE {
            free.push((decoder, plain));
        }
        keys
    }
}

/// A failure of the repository, which may be answered with a new index, or a refusal.
#[derive(Debug)]
pub(super) enum RepositoryOrRefused {
    Repository(RepositoryError),
    Refused(Refused),
}

impl RepositoryOrRefused {
    /// Returns what the client of a backup is told. Segments are written behind the requests' backs: if it was this backup's
    /// that `found_full` the disk, it ends. Asked again and again, it would fill the disk again and again. If it was another's, it
    /// is to ask again.
    pub(super) fn of_sender(self, found_full: &FoundFull) -> Self {
        match self {
            Self::Repository(RepositoryError::Full { path, room, reason, found }) => {
                let found = found || found_full.is_set();
                Self::Repository(RepositoryError::Full { path, room, reason, found })
            }
            other => other,
        }
    }
}

impl std::fmt::Display for RepositoryOrRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Repository(error) => error.fmt(f),
            Self::Refused(refused) => f.write_str(refused.for_the_log()),
        }
    }
}

impl JobError for RepositoryOrRefused {
    fn repository(&self) -> Option<&RepositoryError> {
        match self {
            Self::Repository(error) => Some(error),
            Self::Refused(_) => None,
        }
    }
}

impl From<RepositoryOrRefused> for Refused {
    fn from(error: RepositoryOrRefused) -> Self {
        match error {
            RepositoryOrRefused::Repository(error) => error.into(),
            RepositoryOrRefused::Refused(refused) => refused,
        }
    }
}

impl From<Refused> for RepositoryOrRefused {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<RepositoryError> for RepositoryOrRefused {
    fn from(error: RepositoryError) -> Self {
        Self::Repository(error)
    }
}

impl From<StoreError> for RepositoryOrRefused {
    fn from(error: StoreError) -> Self {
        Self::Repository(error.into())
    }
}

fn store_one(
    store: &SegmentStore,
    job: &StoreJob,
    Received { head, stored }: &Received,
    size: SegmentSize,
    decoder: &mut Decoder,
    plain: &mut Vec<u8>,
) -> Result<(SegmentKey, bool), RepositoryOrRefused> {
    let refuse =
        |what: &str| Refused::new(Refusal::Unprocessable, format!("segment {}: {what}", head.key.hash));
    check_head(head, size)?;
    let codec = head.codec().map_err(|error| refuse(&error.to_string()))?;
    decoder.decode(codec, stored, head.plain_length, plain).map_err(|error| match error.kind() {
        ErrorKind::Io => Refused::internal(Refusal::Io, &error),
        _ => refuse("its stored bytes cannot be decoded to its length"),
    })?;
    if Fingerprint::of(plain) != head.fingerprint {
        return Err(refuse("its bytes do not have the BLAKE3 that it came with").into());
    }
    if plain.len() == size.bytes() as usize && is_zero(plain) {
        return Err(refuse("a segment of zeros is not stored").into());
    }
    // Whoever stored the same bytes under the same name has computed it.
    match store.look(job, head.key.hash, head.fingerprint, head.plain_length)? {
        Some(Claim::Known(key) | Claim::Unfinished(key)) => return Ok((key, false)),
        Some(Claim::New(_)) | None => {}
    }
    if SegmentHash::of(plain) != head.key.hash {
        return Err(refuse("its bytes do not have the SHA-1 that it came with").into());
    }
    match store.claim(job, head.key.hash, head.fingerprint, head.plain_length)? {
        Claim::Known(key) | Claim::Unfinished(key) => Ok((key, false)),
        Claim::New(new) => {
            let key = new.key();
            let mut buffer = store.buffer()?;
            buffer.restart().extend_from_slice(stored);
            store.append(new, codec, buffer)?;
            Ok((key, true))
        }
    }
}
