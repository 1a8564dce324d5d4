//! The client's side of a restore: segments come as they are stored, and are decoded and verified here.
//!
//! What a service sends is believed of nothing that can be computed here: each segment must have the SHA-1 that the manifest
//! names and the BLAKE3 that came with it.

use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::api::frames::SegmentHead;
use crate::codec::Decoder;
use crate::manifest::ManifestReader;
use crate::pace::{Pace, on_threads};
use crate::progress::Progress;
use crate::remote::link::{Ask, Link};
use crate::remote::stream::InOrderStream;
use crate::remote::tries::Tries;
use crate::remote::{RemoteRepository, part};
use crate::restore::{
    DamagedSegment, PreparedSegments, RestoreError, RestoreOptions, RestoreSummary, SegmentSink,
    SegmentSupply, restore_from,
};
use crate::segment::{Fingerprint, Geometry, SegmentHash, SegmentIndex, SegmentKey};

/// How many plain bytes are asked for at once. The service opens the manifest for each request; what comes is taken segment by
/// segment, so memory does not follow this.
const BATCH: u32 = 64 << 20;

impl RemoteRepository {
    /// Restores the backup of a manifest that the service sent to a file or a block device.
    ///
    /// # Errors
    ///
    /// If the target or the service fails, or refuses.
    pub fn restore(
        &self,
        manifest: &ManifestReader,
        target: &Path,
        options: &RestoreOptions,
        progress: &dyn Progress,
    ) -> Result<RestoreSummary, RestoreError> {
        restore_from(&Supply::of(&self.link, manifest), manifest, target, options, progress)
    }

    /// Restores the backup of a manifest that the service sent to a stream, in order, zeros included. A damaged segment is named in
    /// the summary, and its range is zero.
    ///
    /// # Errors
    ///
    /// If the stream or the service fails, or refuses.
    pub fn restore_to_stream(
        &self,
        manifest: &ManifestReader,
        stream: &mut (dyn Write + Send),
        options: &RestoreOptions,
        progress: &dyn Progress,
    ) -> Result<RestoreSummary, RestoreError> {
        let output = InOrderStream::new(stream, manifest.info().geometry, progress);
        output.run(&Supply::of(&self.link, manifest), manifest, options)
    }
}

/// The segments of a backup, by a service.
pub(super) struct Supply<'a> {
    link: &'a Link,
    backup: String,
}

/// A batch of neighbouring segments that are present, or a few that are not between them.
struct Batch {
    behind: u32,
    /// Which are present, in order.
    wanted: Vec<(SegmentIndex, SegmentKey)>,
}

impl<'a> Supply<'a> {
    fn of(link: &'a Link, manifest: &ManifestReader) -> Self {
        let info = manifest.info();
        // However the backup was named, no other one is meant from here on.
        Self { link, backup: format!("{}@{}", info.backupset, info.incremental) }
    }
}

/// All segments of a backup, by a service.
struct Supplied<'a> {
    supply: &'a Supply<'a>,
    manifest: &'a ManifestReader,
}

impl SegmentSupply for Supply<'_> {
    /// The service has just sent the manifest. It is asked for whole disks alone.
    fn prepare<'a>(
        &'a self,
        manifest: &'a ManifestReader,
        _: Vec<Range<u32>>,
        _: &dyn Progress,
    ) -> Result<Box<dyn PreparedSegments + 'a>, RestoreError> {
        Ok(Box::new(Supplied { supply: self, manifest }))
    }
}

impl PreparedSegments for Supplied<'_> {
    fn fetch(
        self: Box<Self>,
        sink: &dyn SegmentSink,
        pace: &Pace,
        progress: &dyn Progress,
    ) -> Result<Vec<DamagedSegment>, RestoreError> {
        let Self { supply, manifest } = *self;
        let geometry = manifest.info().geometry;
        // Of a limited rate no more than a second is asked for at once: the wait comes before each request.
        let bytes =
            pace.limit().map_or(BATCH, |limit| u32::try_from(limit.get()).unwrap_or(BATCH).min(BATCH));
        let most = (bytes / geometry.segment_size().bytes()).max(1);
        let segments = Mutex::new(manifest.segments().peekable());
        let next = || -> Option<Batch> {
            let mut segments = segments.lock().unwrap_or_else(PoisonError::into_inner);
            let (index, segment) = segments.next()?;
            let end = index.0.saturating_add(most);
            let mut batch = Batch { behind: index.0 + 1, wanted: vec![(index, segment.key)] };
            while let Some((index, segment)) = segments.next_if(|(index, _)| index.0 < end) {
                batch.wanted.push((index, segment.key));
                batch.behind = index.0 + 1;
            }
            Some(batch)
        };
        let results = Mutex::new((Vec::new(), None::<RestoreError>));
        on_threads(pace.jobs(), "ekko-restore", || {
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
                match fetcher.fetch(supply, &batch, geometry, sink, progress) {
                    Ok(damaged) => results().0.extend(damaged),
                    Err(error) => {
                        results().1.get_or_insert(error);
                    }
                }
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

/// What came where a segment was to come.
#[derive(Debug)]
enum Came {
    /// The segment.
    Intact,
    /// The service cannot read it.
    Lost(String),
    /// Something else than the segment.
    Wrong(String),
}

/// Why no segment came.
#[derive(Debug)]
enum NoSegment {
    /// The answer ended.
    Cut(std::io::Error),
    /// What came makes no sense: it would not if it came again.
    Senseless(&'static str),
}

impl From<std::io::Error> for NoSegment {
    fn from(error: std::io::Error) -> Self {
        Self::Cut(error)
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
        let link = supply.link;
        let mut damaged = Vec::new();
        let mut wanted = batch.wanted.iter();
        let mut tries = Tries::new(link);
        // Asked for twice, since it came wrong.
        let mut twice = None;
        'ask: while let Some((first, _)) = wanted.clone().next() {
            let path = format!(
                "/v1/backups/{}/segments?first={first}&behind={}",
                part(&supply.backup),
                batch.behind
            );
            let response = link.ask(Ask::get(&path), &mut tries)?;
            let mut answer = link.incoming(response.into_body().into_with_config().limit(u64::MAX).reader());
            while let Some((index, key)) = wanted.clone().next() {
                let came = match self.next(&mut answer, (*index, *key), geometry) {
                    Ok(came) => came,
                    Err(NoSegment::Cut(error)) => {
                        tries.failed(link.broken(error))?;
                        continue 'ask;
                    }
                    Err(NoSegment::Senseless(what)) => return Err(link.misunderstood(&what).into()),
                };
                match came {
                    Came::Wrong(why) if twice != Some(*index) => {
                        // A fault on the way may not happen again.
                        tracing::warn!(why, "a segment is fetched again");
                        twice = Some(*index);
                        continue 'ask;
                    }
                    Came::Intact => sink.segment(*index, *key, &self.plain)?,
                    Came::Lost(why) | Came::Wrong(why) => {
                        let start = geometry.offset(*index);
                        let range = start..start + u64::from(geometry.length(*index));
                        let one = DamagedSegment { index: *index, range, error: why };
                        sink.damaged(&one)?;
                        damaged.push(one);
                    }
                }
                wanted.next();
                tries.progressed();
                progress.advance(u64::from(geometry.length(*index)));
            }
            // The connection can serve again once its answer has ended.
            let _ = answer.read(&mut [0]);
        }
        Ok(damaged)
    }

    /// Reads the next segment of an answer.
    fn next(
        &mut self,
        answer: &mut impl Read,
        (index, key): (SegmentIndex, SegmentKey),
        geometry: Geometry,
    ) -> Result<Came, NoSegment> {
        let mut bytes = [0; SegmentHead::LENGTH];
        answer.read_exact(&mut bytes)?;
        let head = SegmentHead::decode(&bytes).map_err(|_| NoSegment::Senseless("a frame is cut"))?;
        if head.index != index {
            return Err(NoSegment::Senseless("it sends another segment than the next one"));
        }
        let length = geometry.length(index);
        if head.stored_length > length {
            return Err(NoSegment::Senseless("it sends a segment that is longer than its place"));
        }
        self.stored.resize(head.stored_length as usize, 0);
        answer.read_exact(&mut self.stored)?;
        // What the service itself could not read comes without bytes.
        if head.plain_length == 0 {
            return Ok(Came::Lost(format!("the service cannot read segment {key}")));
        }
        if head.key != key || head.plain_length != length {
            return Ok(Came::Wrong(format!("the service sends another segment instead of {key}")));
        }
        let Ok(codec) = head.codec() else {
            let why = format!("segment {key} is encoded in a way that this release does not know");
            return Ok(Came::Lost(why));
        };
        if let Err(error) = self.decoder.decode(codec, &self.stored, length, &mut self.plain) {
            return Ok(Came::Wrong(format!("segment {key}: {error}")));
        }
        if Fingerprint::of(&self.plain) != head.fingerprint {
            return Ok(Came::Wrong(format!("segment {key} does not have its BLAKE3")));
        }
        // The manifest says which bytes they must be, whatever the service says of them. (Twins have one SHA-1.)
        if SegmentHash::of(&self.plain) != key.hash {
            return Ok(Came::Wrong(format!("segment {key} does not have its SHA-1")));
        }
        Ok(Came::Intact)
    }
}
