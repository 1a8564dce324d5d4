//! Reading stored segments and comparing them with their hashes, on all cores.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::check::CheckError;
use crate::check::copies::Copy;
use crate::codec::Decoder;
use crate::pace::each_on_a_thread;
use crate::progress::{Part, Progress};
use crate::segment::{SegmentHash, SegmentKey};
use crate::store::pack::PackError;
use crate::store::{Catalog, SegmentPlace, StoreError};

/// What is wrong with which segment, in words.
pub(super) type Errors = BTreeMap<SegmentKey, String>;

/// Reads the chosen copies, in the order of the packs, and marks the damaged ones. Returns what is wrong, and how
/// many bytes were read.
pub(super) fn read_data(
    catalog: &Catalog,
    copies: &mut [Copy],
    chosen: impl Fn(&SegmentPlace) -> bool,
    jobs: usize,
    progress: &dyn Progress,
) -> Result<(Errors, u64), CheckError> {
    let mut order: Vec<_> =
        (0_u32..).zip(copies.iter()).filter(|(_, copy)| chosen(&copy.place)).map(|(at, _)| at).collect();
    let place = |at: &u32| copies.get(*at as usize).map(|copy| copy.place);
    order.sort_unstable_by_key(|at| place(at).map(|place| place.place));
    let bytes = order.iter().filter_map(place).map(|place| u64::from(place.stored_length)).sum();
    let part = Part::begin(progress, "check", bytes);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let decoders = (0..jobs.max(1)).map(|_| Decoder::new()).collect::<Result<Vec<_>, _>>();
    let decoders = decoders.map_err(|source| StoreError::from(PackError::Decoder { source }))?;
    each_on_a_thread(decoders, "ekko-check", |mut decoder| {
        let (mut stored, mut plain) = (Vec::new(), Vec::new());
        while let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            if progress.is_cancelled() {
                return;
            }
            let Some(place) = place(at) else { return };
            if let Err(error) = read(catalog, place, &mut decoder, &mut stored, &mut plain) {
                found.lock().unwrap_or_else(PoisonError::into_inner).push((*at, error));
            }
            progress.advance(u64::from(place.stored_length));
        }
    });
    drop(part);
    let mut errors = Errors::new();
    for (at, error) in found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        if let Some(copy) = copies.get_mut(at as usize) {
            copy.damaged = true;
            errors.insert(copy.place.key, error);
        }
    }
    Ok((errors, bytes))
}

fn read(
    catalog: &Catalog,
    place: SegmentPlace,
    decoder: &mut Decoder,
    stored: &mut Vec<u8>,
    plain: &mut Vec<u8>,
) -> Result<(), String> {
    let SegmentPlace { key, place, stored_length, .. } = place;
    catalog
        .pack(place.pack)
        .and_then(|pack| pack.segment(key, place.offset, stored_length, decoder, stored, plain))
        .map_err(|error| error.to_string())?;
    // The record says so itself, under a checksum; but this is what the name promises.
    if SegmentHash::of(plain) == key.hash {
        Ok(())
    } else {
        Err(format!("segment {key} has another SHA-1 than its name"))
    }
}
