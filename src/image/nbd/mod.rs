//! Exports of NBD servers: a running QEMU's disks, and everything else that QEMU opens.
//!
//! Owns the client's side of the newstyle protocol: structured replies, contexts (`base:allocation` for holes,
//! `qemu:dirty-bitmap:NAME` for what changed), several requests under way at once, and going on after a link was dropped.
//! Source of the protocol: `doc/proto.md` of the NBD project.
//!
//! A dropped link is made anew and what was asked is asked again, as long as the export still has its size. A server that is
//! gone for [`PATIENCE`] ends the backup, as does one that does not answer a request within [`TOTAL`], over all links. Nothing is known of what the server did meanwhile: it must export something that does
//! not change, as it must anyway.

mod error;
mod handshake;
mod link;
mod replies;
mod socket;
mod target;
#[cfg(test)]
mod tests;
mod tls;
mod uri;
mod wire;

pub use error::{NbdError, NbdTask};
pub(in crate::image) use socket::at_short_path;
pub use target::NbdTarget;

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::image::cbt::{ChangeList, ListBuilder, ListError, ListKind, RangeState};
use crate::image::nbd::link::Link;
use crate::image::nbd::socket::SILENCE;
use crate::image::nbd::uri::NbdUri;
use crate::image::{Extent, Image, ImageError};

/// How long a server may be gone.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 30 });
/// How often one request is sent at most.
const TRIES: u32 = 20;
/// How long one request may take in all, over all links. The manual states it.
const TOTAL: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 240 });
/// How often a server may be silent to one request.
const SILENCES: u32 = 2;
/// How long another try may take: to reach the server, which may then be silent in the handshake or to the request.
const ANOTHER_TRY: Duration = PATIENCE.saturating_add(SILENCE).saturating_add(SILENCE);
/// How much of a disk is asked about at once.
const ASKED_AT_ONCE: u64 = 1 << 31;

/// The context that says where data lies, and its flag of ranges that read as zeros.
const ALLOCATION: &str = "base:allocation";
const ZERO: u32 = 2;
/// The context that says which image of a chain each range is read from; 1 is the top one.
const DEPTH: &str = "qemu:allocation-depth";
/// How many ranges of the top image are told at most.
const OVERLAID_LIMIT: usize = 1 << 16;
/// The flag of ranges that a bitmap has.
const DIRTY: u32 = 1;
/// The context of a bitmap, before its name.
const BITMAP: &str = "qemu:dirty-bitmap:";

/// A server and its export.
#[derive(Debug)]
struct Server {
    uri: NbdUri,
    /// What an encrypted link is made with.
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Server {
    /// Reads a URI, and the certificates if it says that the link is encrypted.
    fn of(path: &Path, certificates: Option<&Path>) -> Result<Self, NbdError> {
        let uri = NbdUri::parse(path.to_str().unwrap_or_default());
        let uri = uri.map_err(|what| NbdError::Uri { what })?;
        let tls = match (uri.tls, certificates) {
            (false, _) => None,
            (true, Some(folder)) => Some(tls::configuration(folder)?),
            (true, None) => {
                let what = "an encrypted link needs certificates: --tls-certificates".to_owned();
                return Err(NbdError::Certificates { what });
            }
        };
        Ok(Self { uri, tls })
    }
}

/// Ranges of the disk and whether each holds data: what the server said last.
#[derive(Debug, Default)]
struct Known {
    ranges: Vec<(Range<u64>, bool)>,
}

/// An export, as a disk.
#[derive(Debug)]
pub(in crate::image) struct NbdImage {
    path: PathBuf,
    /// Nothing if it is a server of our own, which ends with its one link.
    server: Option<Server>,
    contexts: Vec<String>,
    size: u64,
    link: Mutex<Arc<Link>>,
    /// Why there is no link any longer: it is waited for once, and not by each thread.
    gone: OnceLock<String>,
    known: Mutex<Known>,
    /// Whether the server drops the link when it cannot read a sector, unless it answers in one piece.
    drops_bad_sectors: AtomicBool,
}

/// Says whether a path is a URI of NBD.
pub fn is_nbd(path: &Path) -> bool {
    path.to_str().is_some_and(uri::is_uri)
}

impl NbdImage {
    /// Connects to the server that a URI names. With `bitmap`, [`Self::changes`] can be asked about that dirty bitmap.
    pub(super) fn open(
        path: &Path,
        bitmap: Option<&str>,
        certificates: Option<&Path>,
    ) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Nbd { path: path.to_owned(), task: NbdTask::Open, source };
        let server = Server::of(path, certificates).map_err(failed)?;
        let mut contexts = vec![ALLOCATION.to_owned()];
        contexts.extend(bitmap.map(|name| format!("{BITMAP}{name}")));
        contexts.extend(bitmap.map(|_| DEPTH.to_owned()));
        let link = Link::connect(&server, &contexts).map_err(failed)?;
        Ok(Self::of(path, Some(server), contexts, link))
    }

    /// Takes the default export of a server of our own, which `stream` is connected to. The server ends with this link, so
    /// there is no other one if it is dropped.
    pub(super) fn of_own_server(path: &Path, stream: UnixStream) -> Result<Self, NbdError> {
        let contexts = vec![ALLOCATION.to_owned()];
        let link = Link::to_own(stream, &contexts)?;
        Ok(Self::of(path, None, contexts, link))
    }

    fn of(path: &Path, server: Option<Server>, contexts: Vec<String>, link: Link) -> Self {
        Self {
            path: path.to_owned(),
            server,
            contexts,
            size: link.agreed().size,
            link: Mutex::new(Arc::new(link)),
            gone: OnceLock::new(),
            known: Mutex::default(),
            drops_bad_sectors: AtomicBool::new(false),
        }
    }

    /// Reads what a bitmap says of the whole disk.
    pub(super) fn changes(&self, bitmap: &str) -> Result<ChangeList, ImageError> {
        let context = format!("{BITMAP}{bitmap}");
        let link = Arc::clone(&self.link.lock().unwrap_or_else(PoisonError::into_inner));
        if number(&link, &context).is_none() {
            let source = NbdError::NoBitmap { bitmap: bitmap.to_owned() };
            return Err(ImageError::Nbd { path: self.path.clone(), task: NbdTask::Open, source });
        }
        let wrong = |error: ListError| ImageError::damaged(&self.path, &error.to_string());
        let (mut at, mut list) = (0, ListBuilder::new(ListKind::NbdDirty, self.size));
        while at < self.size {
            for (range, state) in self.states(&context, at)? {
                at = range.end;
                let state = if state & DIRTY != 0 { RangeState::Data } else { RangeState::Unchanged };
                list.add(range.start, range.end - range.start, state).map_err(wrong)?;
            }
        }
        list.finish().map_err(wrong)
    }

    /// Returns the ranges that are read from the top image of the disk's chain, if the server tells.
    pub(super) fn overlaid(&self) -> Result<Vec<Range<u64>>, ImageError> {
        let mut overlaid: Vec<Range<u64>> = Vec::new();
        let link = Arc::clone(&self.link.lock().unwrap_or_else(PoisonError::into_inner));
        let mut at = if number(&link, DEPTH).is_some() { 0 } else { self.size };
        while at < self.size && overlaid.len() < OVERLAID_LIMIT {
            for (range, depth) in self.states(DEPTH, at)? {
                at = range.end;
                match overlaid.last_mut() {
                    _ if depth != 1 => {}
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => overlaid.push(range),
                }
            }
        }
        Ok(overlaid)
    }

    /// Asks for the states of ranges from `at` on: one after the other, at least one, none beyond the end.
    fn states(&self, context: &str, at: u64) -> Result<Vec<(Range<u64>, u32)>, ImageError> {
        let length = u32::try_from((self.size - at).min(ASKED_AT_ONCE)).unwrap_or(u32::MAX);
        self.with_link(NbdTask::Map { offset: at }, |link, _| {
            let number = number(link, context);
            let number =
                number.ok_or_else(|| NbdError::Lacks { what: format!("context {context} any longer") })?;
            let all = link.states(at, length)?;
            let states = all.into_iter().find(|(of, _)| *of == number).map(|(_, states)| states);
            let (mut end, mut ranges) = (at, Vec::new());
            for (length, state) in states.unwrap_or_default() {
                let start = end;
                // The last may go on behind what was asked.
                end = start.saturating_add(length.into()).min(self.size);
                if start < end {
                    ranges.push((start..end, state));
                } else if length == 0 {
                    return Err(NbdError::protocol("a range is empty"));
                }
            }
            if ranges.is_empty() { Err(NbdError::protocol("it says nothing of a range")) } else { Ok(ranges) }
        })
    }

    /// Does something with a link, and again with another one if that is dropped. `work` is told how often it was tried before.
    fn with_link<T>(
        &self,
        task: NbdTask,
        mut work: impl FnMut(&Link, u32) -> Result<T, NbdError>,
    ) -> Result<T, ImageError> {
        let failed = |source| ImageError::Nbd { path: self.path.clone(), task, source };
        let (mut tries, mut silences, begun) = (0, 0, Instant::now());
        loop {
            let asked = Instant::now();
            let link = Arc::clone(&self.link.lock().unwrap_or_else(PoisonError::into_inner));
            let done = work(&link, tries);
            silences += u32::from(asked.elapsed() >= SILENCE);
            let is_in_time = silences < SILENCES && begun.elapsed() + ANOTHER_TRY <= TOTAL;
            match done {
                Err(error) if error.is_drop() && tries < TRIES && is_in_time => {
                    tracing::warn!(%error, "the link is made anew");
                    tries += 1;
                    self.reconnect(&link).map_err(failed)?;
                }
                other => return other.map_err(failed),
            }
        }
    }

    /// Makes a link anew that was dropped, unless another thread has done so.
    fn reconnect(&self, dropped: &Arc<Link>) -> Result<(), NbdError> {
        // Held over I/O: all threads need the same new link, and none can do anything before it is there.
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&link, dropped) {
            return Ok(());
        }
        if let Some(why) = self.gone.get() {
            return Err(NbdError::Gone { why: why.clone() });
        }
        let new = self.link_anew(dropped).inspect_err(|error| {
            let _ = self.gone.set(error.to_string());
        })?;
        *link = Arc::new(new);
        Ok(())
    }

    fn link_anew(&self, dropped: &Link) -> Result<Link, NbdError> {
        // A server may take one link at a time.
        dropped.shut_down();
        let Some(server) = &self.server else {
            return Err(NbdError::Gone { why: "it ended".to_owned() });
        };
        let begun = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            match Link::connect(server, &self.contexts) {
                Ok(new) if new.agreed().size == self.size => return Ok(new),
                Ok(new) => return Err(NbdError::Changed { was: self.size, now: new.agreed().size }),
                Err(error) if error.is_drop() && begun.elapsed() < PATIENCE => {
                    tracing::warn!(%error, "the server cannot be reached");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the next data at or after `from` by what is known, and up to where anything is known.
    fn next_known(known: &Known, from: u64) -> (Option<Extent>, u64) {
        let first = known.ranges.partition_point(|(range, _)| range.end <= from);
        let mut behind = from;
        let mut found: Option<Range<u64>> = None;
        for (range, is_data) in known.ranges.get(first..).unwrap_or_default() {
            if range.start > behind {
                break;
            }
            match &mut found {
                Some(found) if *is_data => found.end = range.end,
                Some(_) => break,
                None if *is_data => found = Some(range.start.max(from)..range.end),
                None => {}
            }
            behind = range.end;
        }
        (found.map(|range| Extent { offset: range.start, length: range.end - range.start }), behind)
    }
}

/// Returns the number of a context on a link.
fn number(link: &Link, context: &str) -> Option<u32> {
    link.agreed().contexts.iter().find(|(_, name)| name == context).map(|(number, _)| *number)
}

impl Image for NbdImage {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        let link = Arc::clone(&self.link.lock().unwrap_or_else(PoisonError::into_inner));
        let mut at = from;
        while at < self.size {
            if number(&link, ALLOCATION).is_none() {
                // A server that does not tell may have data everywhere.
                return Ok(Some(Extent { offset: at, length: self.size - at }));
            }
            let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let (found, behind) = Self::next_known(&known(), at);
            if found.is_some() {
                return Ok(found);
            }
            at = behind;
            if at < self.size {
                let states = self.states(ALLOCATION, at)?;
                // A hole that does not read as zeros is data.
                let ranges = states.into_iter().map(|(range, state)| (range, state & ZERO == 0)).collect();
                *known() = Known { ranges };
            }
        }
        Ok(None)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.size {
            let missing = end - self.size.max(offset);
            return Err(ImageError::ShortRead {
                path: self.path.clone(),
                offset: self.size.max(offset),
                missing,
            });
        }
        let drops = &self.drops_bad_sectors;
        // Each try fills it anew.
        self.with_link(NbdTask::Read { offset }, |link, tries| {
            let read = link.read(buffer, offset, tries > 0 || drops.load(Ordering::Relaxed));
            if tries > 0 && matches!(read, Err(NbdError::Server { .. })) {
                drops.store(true, Ordering::Relaxed);
            }
            read
        })
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        Ok(())
    }
}
