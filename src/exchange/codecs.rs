//! How the segments of a backup are stored, asked of the packs.

use crate::error::ErrorKind;
use crate::exchange::ExchangeError;
use crate::manifest::ManifestReader;
use crate::manifest::foreign::{CodecIds, CodecSource};
use crate::progress::{Notice, Progress};
use crate::segment::{SegmentIndex, SegmentKey};
use crate::store::Catalog;
use crate::store::pack::ContentsEntry;

/// How many present segments are looked up at once: 38 bytes of memory each, and a walk through the tables of
/// all packs for every window.
const WINDOW: usize = 1 << 21;

/// The codecs of one backup's segments, a window at a time.
pub(super) struct StoreCodecs<'a> {
    manifest: &'a ManifestReader,
    catalog: Catalog,
    progress: &'a dyn Progress,
    /// The places of the window, in order, and what is known of them.
    window: Vec<(SegmentIndex, CodecIds)>,
    next: usize,
    /// How many segments were in no pack.
    unknown: u64,
}

impl<'a> StoreCodecs<'a> {
    pub(super) fn new(manifest: &'a ManifestReader, catalog: Catalog, progress: &'a dyn Progress) -> Self {
        Self { manifest, catalog, progress, window: Vec::new(), next: 0, unknown: 0 }
    }

    /// Tells how many segments were in no pack, if there were any.
    pub(super) fn tell_unknown(&self) {
        if self.unknown > 0 {
            let number = self.unknown;
            let what = format!(
                "{number} segments are in no pack that can be read; their codecs are given as unknown"
            );
            self.progress.notice(Notice::Problem { kind: ErrorKind::Corrupt, what });
        }
    }

    fn load(&mut self, from: SegmentIndex) -> Result<(), ExchangeError> {
        let mut cursor = self.manifest.cursor(from);
        let places = from.0..self.manifest.info().geometry.segments();
        let present =
            places.filter_map(|place| Some((cursor.at(SegmentIndex(place))?.key, SegmentIndex(place))));
        let mut wanted: Vec<(SegmentKey, SegmentIndex)> =
            Vec::with_capacity(WINDOW.min(self.manifest.present() as usize));
        wanted.extend(present.take(WINDOW));
        wanted.sort_unstable();
        let ids =
            |entry: &ContentsEntry| CodecIds { compression: entry.compression, encryption: entry.encryption };
        let (codecs, problems) = self.catalog.describe(&wanted, |(key, _)| *key, ids)?;
        for problem in problems {
            let what = problem.error.to_string();
            self.progress.notice(Notice::Problem { kind: problem.error.kind(), what });
        }
        self.window.clear();
        let codecs = codecs.into_iter().map(|codec| codec.unwrap_or(CodecIds::UNKNOWN));
        self.window.extend(wanted.iter().map(|(_, index)| *index).zip(codecs));
        self.window.sort_unstable_by_key(|(index, _)| *index);
        self.next = 0;
        Ok(())
    }
}

impl CodecSource<ExchangeError> for StoreCodecs<'_> {
    fn codec(&mut self, index: SegmentIndex) -> Result<CodecIds, ExchangeError> {
        if self.next >= self.window.len() {
            self.load(index)?;
        }
        let found = self.window.get(self.next).filter(|(place, _)| *place == index);
        self.next += 1;
        let codec = found.map_or(CodecIds::UNKNOWN, |(_, codec)| *codec);
        self.unknown += u64::from(codec == CodecIds::UNKNOWN);
        Ok(codec)
    }
}

/// The codecs of flat segment files: each is a zlib stream, whatever the store has.
pub(super) struct FlatCodecs;

impl CodecSource<ExchangeError> for FlatCodecs {
    fn codec(&mut self, _: SegmentIndex) -> Result<CodecIds, ExchangeError> {
        Ok(CodecIds { compression: crate::codec::Compression::Zlib.id(), encryption: 0 })
    }
}
