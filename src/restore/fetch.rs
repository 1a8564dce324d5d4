//! Fetching segments and writing them where they belong, on all cores.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::codec::Decoder;
use crate::pace::{Pace, each_on_a_thread};
use crate::progress::Progress;
use crate::restore::plan::{Item, Plan};
use crate::restore::{DamagedSegment, RestoreError, SegmentError, SegmentSink};
use crate::segment::{Geometry, SegmentIndex, SegmentKey};
use crate::store::{Catalog, SegmentPlace};

/// Reads, decodes and verifies segments. One for each thread.
pub(super) struct Fetcher<'a> {
    catalog: &'a Catalog,
    decoder: Decoder,
    stored: Vec<u8>,
}

impl<'a> Fetcher<'a> {
    pub(super) fn new(catalog: &'a Catalog) -> Result<Self, RestoreError> {
        Ok(Self { catalog, decoder: Decoder::new()?, stored: Vec::new() })
    }

    /// Makes one of what another has left.
    pub(super) fn again(catalog: &'a Catalog, decoder: Decoder, stored: Vec<u8>) -> Self {
        Self { catalog, decoder, stored }
    }

    /// Leaves what another can be made of.
    pub(super) fn into_parts(self) -> (Decoder, Vec<u8>) {
        (self.decoder, self.stored)
    }

    /// Puts the verified plain bytes of a segment into `bytes`: of its first copy that is whole.
    pub(super) fn fetch(
        &mut self,
        plan: &Plan,
        item: &Item,
        bytes: &mut Vec<u8>,
    ) -> Result<(), SegmentError> {
        let catalog = self.catalog;
        let mut result = self.first_whole(catalog, item.key, plan.copies(item), bytes);
        let mut seen = None;
        while result.is_err()
            && let Some(moved) = plan.moved(catalog, seen.as_ref())
        {
            result = self.first_whole(&moved.catalog, item.key, moved.copies(item.key), bytes);
            seen = Some(moved);
        }
        result
    }

    fn first_whole(
        &mut self,
        catalog: &Catalog,
        key: SegmentKey,
        copies: &[SegmentPlace],
        bytes: &mut Vec<u8>,
    ) -> Result<(), SegmentError> {
        let mut last = SegmentError::Missing { key };
        for copy in copies {
            let pack = match catalog.pack(copy.place.pack) {
                Ok(pack) => pack,
                Err(error) => {
                    last = error.into();
                    continue;
                }
            };
            let Self { decoder, stored, .. } = self;
            match pack.segment(key, copy.place.offset, copy.stored_length, decoder, stored, bytes) {
                Ok(_) => return Ok(()),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }
}

/// Says whether a segment fits a place.
pub(super) fn check_length(
    item: &Item,
    bytes: &[u8],
    geometry: Geometry,
    index: SegmentIndex,
) -> Result<(), SegmentError> {
    let expected = geometry.length(index);
    if bytes.len() == expected as usize {
        Ok(())
    } else {
        Err(SegmentError::Length { key: item.key, found: bytes.len() as u64, expected })
    }
}

/// Describes a segment that could not be restored.
pub(super) fn damaged(geometry: Geometry, index: SegmentIndex, error: &SegmentError) -> DamagedSegment {
    let start = geometry.offset(index);
    let range = start..start + u64::from(geometry.length(index));
    DamagedSegment { index, range, error: error.to_string() }
}

/// Fetches all of a plan's segments and gives them to a sink. Returns what is damaged.
pub(super) fn run(
    catalog: &Catalog,
    plan: &Plan,
    sink: &dyn SegmentSink,
    geometry: Geometry,
    pace: &Pace,
    progress: &dyn Progress,
) -> Result<Vec<DamagedSegment>, RestoreError> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let results = Mutex::new((Vec::new(), None));
    let fetchers = (0..pace.jobs()).map(|_| Fetcher::new(catalog)).collect::<Result<Vec<_>, _>>()?;
    each_on_a_thread(fetchers, "ekko-restore", |mut fetcher| {
        let results = || results.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = Vec::new();
        while let Some(item) = plan.items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.load(Ordering::Acquire) {
                return;
            }
            let lengths = item.targets.iter().map(|index| u64::from(geometry.length(*index)));
            pace.spend(lengths.sum(), || stop.load(Ordering::Acquire));
            let fetched = fetcher.fetch(plan, item, &mut bytes);
            for index in &item.targets {
                let whole = match &fetched {
                    Ok(()) => check_length(item, &bytes, geometry, *index)
                        .map_err(|error| damaged(geometry, *index, &error)),
                    Err(error) => Err(damaged(geometry, *index, error)),
                };
                let written = match whole {
                    Ok(()) => sink.segment(*index, item.key, &bytes),
                    Err(damaged) => {
                        let written = sink.damaged(&damaged);
                        results().0.push(damaged);
                        written
                    }
                };
                if let Err(error) = written {
                    stop.store(true, Ordering::Release);
                    results().1.get_or_insert(error);
                    return;
                }
                progress.advance(u64::from(geometry.length(*index)));
            }
        }
    });
    match results.into_inner().unwrap_or_else(PoisonError::into_inner) {
        (_, Some(error)) => Err(error),
        (damaged, None) => Ok(damaged),
    }
}
