//! The client's side of a restore: segments come as they are stored, and are decoded and verified here.

use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::api::frames::SegmentHead;
use crate::codec::Decoder;
use crate::manifest::ManifestReader;
use crate::pace::Pace;
use crate::progress::Progress;
use crate::remote::{RemoteError, RemoteRepository, part};
use crate::restore::{
    DamagedSegment, RestoreError, RestoreOptions, RestoreSummary, SegmentSink, SegmentSupply, restore_from,
};
use crate::segment::{Fingerprint, Geometry, SegmentIndex, SegmentKey};

/// How many plain bytes are asked for at once. The service opens the manifest for each request; what comes is taken segment by
/// segment, so memory does not follow this.
const BATCH: u32 = 64 << 20;
/// How often a request whose answer is cut is made.
const ATTEMPTS: u32 = 5;

impl RemoteRepository {
    /// Restores a backup to a file or a block device.
    ///
    /// # Errors
    ///
    /// If the target or the service fails, or refuses.
    pub fn restore(
        &self,
        backup: &str,
        target: &Path,
        options: &RestoreOptions,
        progress: &dyn Progress,
    ) -> Result<(ManifestReader, RestoreSummary), RestoreError> {
        let manifest = self.manifest(backup)?;
        let info = manifest.info();
        let supply = Supply { remote: self, backup: format!("{}@{}", info.backupset, info.incremental) };
        let summary = restore_from(&supply, &manifest, target, options, progress)?;
        Ok((manifest, summary))
    }

    /// Fetches a backup's manifest.
    ///
    /// # Errors
    ///
    /// If the service fails or refuses, or if the manifest is damaged.
    pub fn manifest(&self, backup: &str) -> Result<ManifestReader, RestoreError> {
        let path = format!("/v1/backups/{}/manifest?format=ekko", part(backup));
        let failed = |source: std::io::Error| RestoreError::Target {
            operation: "make",
            path: "a temporary file for the manifest".into(),
            source,
        };
        let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
        std::io::copy(&mut self.read(&path)?, &mut file).map_err(|error| self.cut(&error))?;
        let manifest = ManifestReader::open(&crate::storage::OsStorage, file.path())?;
        manifest.verify()?;
        Ok(manifest)
    }

    fn cut(&self, error: &dyn std::fmt::Display) -> RemoteError {
        self.link.misunderstood(error)
    }
}

/// The segments of a backup, by a service.
struct Supply<'a> {
    remote: &'a RemoteRepository,
    backup: String,
}

/// A batch of neighbouring segments that are present, or a few that are not between them.
struct Batch {
    first: u32,
    behind: u32,
    /// Which are present, in order.
    wanted: Vec<(SegmentIndex, SegmentKey)>,
}

impl SegmentSupply for Supply<'_> {
    fn fetch_all(
        &self,
        manifest: &ManifestReader,
        sink: &dyn SegmentSink,
        pace: &Pace,
        progress: &dyn Progress,
    ) -> Result<Vec<DamagedSegment>, RestoreError> {
        let geometry = manifest.info().geometry;
        let most = (BATCH / geometry.segment_size().bytes()).max(1);
        let segments = Mutex::new(manifest.segments().peekable());
        let next = || -> Option<Batch> {
            let mut segments = segments.lock().unwrap_or_else(PoisonError::into_inner);
            let (index, segment) = segments.next()?;
            let end = index.0.saturating_add(most);
            let mut batch = Batch { first: index.0, behind: index.0 + 1, wanted: vec![(index, segment.key)] };
            while let Some((index, segment)) = segments.next_if(|(index, _)| index.0 < end) {
                batch.wanted.push((index, segment.key));
                batch.behind = index.0 + 1;
            }
            Some(batch)
        };
        let results = Mutex::new((Vec::new(), None::<RestoreError>));
        std::thread::scope(|scope| {
            for _ in 0..pace.jobs() {
                scope.spawn(|| {
                    let results = || results.lock().unwrap_or_else(PoisonError::into_inner);
                    let mut fetcher = match Fetcher::new() {
                        Ok(fetcher) => fetcher,
                        Err(error) => {
                            results().1.get_or_insert(error);
                            return;
                        }
                    };
                    while results().1.is_none()
                        && let Some(batch) = next()
                    {
                        let bytes = batch.wanted.iter().map(|(index, _)| u64::from(geometry.length(*index)));
                        pace.spend(bytes.sum(), || results().1.is_some());
                        match fetcher.fetch(self, &batch, geometry, sink, progress) {
                            Ok(damaged) => results().0.extend(damaged),
                            Err(error) => {
                                results().1.get_or_insert(error);
                            }
                        }
                    }
                });
            }
        });
        match results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            (_, Some(error)) => Err(error),
            (mut damaged, None) => {
                damaged.sort_by_key(|damaged| damaged.index);
                Ok(damaged)
            }
        }
    }
}

/// Decodes and verifies. One for each thread.
struct Fetcher {
    decoder: Decoder,
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl Fetcher {
    fn new() -> Result<Self, RestoreError> {
        Ok(Self { decoder: Decoder::new()?, stored: Vec::new(), plain: Vec::new() })
    }

    /// Fetches a batch; what has come of an answer that is cut is not asked for again.
    fn fetch(
        &mut self,
        supply: &Supply<'_>,
        batch: &Batch,
        geometry: Geometry,
        sink: &dyn SegmentSink,
        progress: &dyn Progress,
    ) -> Result<Vec<DamagedSegment>, RestoreError> {
        let mut damaged = Vec::new();
        let mut wanted = batch.wanted.iter();
        let mut attempts = 0;
        while let Some((first, _)) = wanted.clone().next() {
            attempts += 1;
            let path = format!(
                "/v1/backups/{}/segments?first={}&behind={}",
                part(&supply.backup),
                first.0.max(batch.first),
                batch.behind
            );
            let mut answer = supply.remote.read(&path)?;
            while let Some((index, key)) = wanted.clone().next() {
                let whole = match self.next(&mut answer, (*index, *key), geometry) {
                    Ok(whole) => whole,
                    Err(error) if attempts < ATTEMPTS => {
                        tracing::debug!(%error, "an answer was cut; asking for the rest");
                        break;
                    }
                    Err(error) => return Err(supply.remote.cut(&error).into()),
                };
                wanted.next();
                match whole {
                    Ok(()) => sink.segment(*index, *key, &self.plain)?,
                    Err(why) => {
                        let start = geometry.offset(*index);
                        let range = start..start + u64::from(geometry.length(*index));
                        let one = DamagedSegment { index: *index, range, error: why };
                        sink.damaged(&one)?;
                        damaged.push(one);
                    }
                }
                progress.advance(u64::from(geometry.length(*index)));
            }
        }
        Ok(damaged)
    }

    /// Reads the next segment of an answer. Says why it is not whole, if it is not.
    fn next(
        &mut self,
        answer: &mut impl Read,
        (index, key): (SegmentIndex, SegmentKey),
        geometry: Geometry,
    ) -> std::io::Result<Result<(), String>> {
        let mut bytes = [0; SegmentHead::LENGTH];
        answer.read_exact(&mut bytes)?;
        let head = SegmentHead::decode(&bytes).map_err(std::io::Error::other)?;
        if head.index != index {
            return Err(std::io::Error::other("another segment came than the one that is next"));
        }
        let length = geometry.length(index);
        if head.stored_length > length {
            return Err(std::io::Error::other("a segment came that is longer than its place"));
        }
        self.stored.resize(head.stored_length as usize, 0);
        answer.read_exact(&mut self.stored)?;
        // What the service itself could not read comes without bytes.
        if head.plain_length == 0 {
            return Ok(Err(format!("the service cannot read segment {key}")));
        }
        if head.key != key || head.plain_length != length {
            return Ok(Err(format!("what came is not segment {key}")));
        }
        let Ok(codec) = head.codec() else {
            return Ok(Err(format!("segment {key} is encoded in a way that this release does not know")));
        };
        if let Err(error) = self.decoder.decode(codec, &self.stored, length, &mut self.plain) {
            return Ok(Err(format!("segment {key}: {error}")));
        }
        let fits = Fingerprint::of(&self.plain) == head.fingerprint;
        Ok(if fits { Ok(()) } else { Err(format!("segment {key} does not have its BLAKE3")) })
    }
}
