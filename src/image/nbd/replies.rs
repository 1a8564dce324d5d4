//! The replies of a link.
//!
//! A thread of the link reads them, each of which names the request that it is to, and hands them to who waits. What
//! ends the link (an error of the socket, a reply that follows no rule, silence while something is asked) ends every request
//! that is under way, and is told to all who wait: nothing that came before in part is used.

use std::collections::HashMap;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::image::nbd::NbdError;
use crate::image::nbd::socket::SILENCE;
use crate::image::nbd::wire::{ReadNumbers, SIMPLE_MAGIC, STRUCTURED_MAGIC, chunk, command};

/// How long a server may take for what it writes.
const SILENCE_OF_WRITES: Duration = Duration::from_mins(15);

/// The most contexts that are asked for.
const CONTEXTS_LIMIT: usize = 3;

/// The most chunks of one reply.
const CHUNKS_LIMIT: u32 = 1 << 16;

/// The longest chunk that holds no data: an error's words, or the states of ranges.
const CHUNK_LIMIT: u32 = 4 << 20;

/// States of ranges from the beginning of a request on: how long, and what is so.
pub(super) type States = Vec<(u32, u32)>;

/// What a request is about.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) kind: u16,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// A request that is under way.
#[derive(Debug)]
struct Waiting {
    asked: Asked,
    /// When it was sent.
    since: Instant,
    data: Vec<u8>,
    /// What of the data has come.
    filled: Vec<Range<usize>>,
    states: Vec<(u32, States)>,
    chunks: u32,
    failed: Option<NbdError>,
    done: Sender<Result<Reply, NbdError>>,
}

/// What was asked for.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) data: Vec<u8>,
    pub(super) states: Vec<(u32, States)>,
}

/// Requests that are under way, by their cookies; or why there can be none any longer.
#[derive(Debug)]
pub(super) struct Pending(Mutex<Result<HashMap<u64, Waiting>, String>>);

impl Pending {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Ok(HashMap::new())))
    }

    /// Adds a request before it is sent, and returns where its reply comes; `data` is what is filled by it.
    pub(super) fn add(
        &self,
        cookie: u64,
        asked: Asked,
        data: Vec<u8>,
    ) -> Result<Receiver<Result<Reply, NbdError>>, NbdError> {
        let (done, reply) = bounded(1);
        let (filled, states) = (Vec::new(), Vec::new());
        let since = Instant::now();
        let waiting = Waiting { asked, since, data, filled, states, chunks: 0, failed: None, done };
        match &mut *self.lock() {
            Ok(all) => all.insert(cookie, waiting),
            Err(why) => return Err(NbdError::Dropped { why: why.clone() }),
        };
        Ok(reply)
    }

    /// Ends every request that is under way and all that are to come.
    pub(super) fn end(&self, why: &str) {
        let before = std::mem::replace(&mut *self.lock(), Err(why.to_owned()));
        match before {
            Ok(all) => {
                for (_, waiting) in all {
                    // Who waits has the other end.
                    let _ = waiting.done.send(Err(NbdError::Dropped { why: why.to_owned() }));
                }
            }
            // The first reason stays.
            Err(first) => *self.lock() = Err(first),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Result<HashMap<u64, Waiting>, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads replies until there can be no more of them, and returns why.
pub(super) fn read_replies(stream: &mut impl BufRead, structured: bool, pending: &Pending) -> NbdError {
    loop {
        let nobody_waits_too_long =
            || pending.lock().as_ref().is_ok_and(|all| all.values().all(|waiting| !waiting.is_overdue()));
        match wait(stream) {
            Err(error) if is_timeout(&error) && nobody_waits_too_long() => continue,
            Err(error) => return error.into(),
            Ok(()) => {}
        }
        if let Err(error) = read_reply(stream, structured, pending) {
            return error;
        }
    }
}

/// Waits for the first byte of a reply.
fn wait(stream: &mut impl BufRead) -> io::Result<()> {
    if stream.fill_buf()?.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Reads one reply, or a chunk of one.
fn read_reply(stream: &mut impl Read, structured: bool, pending: &Pending) -> Result<(), NbdError> {
    let magic = stream.u32()?;
    let (last, kind, error) = match magic {
        SIMPLE_MAGIC => (true, None, stream.u32()?),
        STRUCTURED_MAGIC if structured => (stream.u16()? & chunk::DONE != 0, Some(stream.u16()?), 0),
        _ => return Err(NbdError::protocol("what it sends is no reply")),
    };
    let cookie = stream.u64()?;
    // Taken out while it is filled, so that others can ask meanwhile.
    let waiting = pending.lock().as_mut().ok().and_then(|all| all.remove(&cookie));
    let mut waiting = waiting.ok_or_else(|| NbdError::protocol("its reply is to nothing that was asked"))?;
    let result = match kind {
        None if error != 0 => {
            waiting.failed = Some(NbdError::server(error, String::new()));
            Ok(())
        }
        // A server that agreed on chunks sends data in them.
        None if structured && waiting.asked.kind == command::READ => {
            Err(NbdError::protocol("its reply is not in chunks"))
        }
        None => waiting.fill(stream, 0, waiting.data.len()),
        Some(kind) => {
            let length = stream.u32();
            length.map_err(NbdError::from).and_then(|length| waiting.chunk(stream, kind, length))
        }
    };
    if let Err(error) = result {
        let why = error.to_string();
        let _ = waiting.done.send(Err(NbdError::Dropped { why }));
        return Err(error);
    }
    if last {
        let done = waiting.done.clone();
        // Who waits has the other end.
        let _ = done.send(waiting.finish());
    } else if let Ok(all) = &mut *pending.lock() {
        all.insert(cookie, waiting);
    }
    Ok(())
}

impl Waiting {
    /// Says whether the server has had its time. What is to be durable may wait for a disk that has much to write.
    fn is_overdue(&self) -> bool {
        let reads = matches!(self.asked.kind, command::READ | command::BLOCK_STATUS);
        self.since.elapsed() > if reads { SILENCE } else { SILENCE_OF_WRITES }
    }

    /// Reads data to a place of the buffer.
    fn fill(&mut self, stream: &mut impl Read, from: usize, length: usize) -> Result<(), NbdError> {
        let range = from..from.saturating_add(length);
        let room = self.data.get_mut(range.clone());
        stream.read_exact(room.ok_or_else(|| NbdError::protocol("it sends more than was asked for"))?)?;
        self.filled.push(range);
        Ok(())
    }

    /// Returns where in the buffer bytes of the disk go.
    fn place(&self, offset: u64) -> Result<usize, NbdError> {
        let within = offset.checked_sub(self.asked.offset).and_then(|it| usize::try_from(it).ok());
        within.ok_or_else(|| NbdError::protocol("it sends what was not asked for"))
    }

    /// Reads one chunk.
    fn chunk(&mut self, stream: &mut impl Read, kind: u16, length: u32) -> Result<(), NbdError> {
        let is_read = self.asked.kind == command::READ;
        self.chunks += 1;
        if self.chunks > CHUNKS_LIMIT {
            return Err(NbdError::protocol("its reply has no end"));
        }
        if length > CHUNK_LIMIT && !(is_read && kind == chunk::DATA) {
            return Err(NbdError::protocol("a chunk is too long"));
        }
        let short = || NbdError::protocol("a chunk is too short");
        match kind {
            chunk::NONE if length == 0 => Ok(()),
            chunk::DATA if is_read => {
                let bytes = length.checked_sub(8).ok_or_else(short)?;
                let from = self.place(stream.u64()?)?;
                self.fill(stream, from, usize::try_from(bytes).unwrap_or(usize::MAX))
            }
            chunk::HOLE if is_read && length == 12 => {
                let from = self.place(stream.u64()?)?;
                let range = from..from.saturating_add(usize::try_from(stream.u32()?).unwrap_or(usize::MAX));
                let room = self.data.get_mut(range.clone());
                room.ok_or_else(|| NbdError::protocol("it sends more than was asked for"))?.fill(0);
                self.filled.push(range);
                Ok(())
            }
            // A context has one list of states.
            chunk::BLOCK_STATUS if self.states.len() >= CONTEXTS_LIMIT => {
                Err(NbdError::protocol("it has more contexts than were asked for"))
            }
            chunk::BLOCK_STATUS if !is_read && length >= 12 && (length - 4).is_multiple_of(8) => {
                let context = stream.u32()?;
                let states = (0..(length - 4) / 8).map(|_| Ok((stream.u32()?, stream.u32()?)));
                self.states.push((context, states.collect::<io::Result<_>>()?));
                Ok(())
            }
            _ => {
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
                stream.read_exact(&mut bytes)?;
                if kind & chunk::ERROR == 0 {
                    return Err(NbdError::protocol("it sends a chunk that is not known"));
                }
                let mut rest = bytes.as_slice();
                let (number, words) = (rest.u32()?, usize::from(rest.u16()?));
                let words = rest.get(..words).ok_or_else(short)?;
                self.failed = Some(NbdError::server(number, String::from_utf8_lossy(words).into_owned()));
                Ok(())
            }
        }
    }

    /// Returns what was asked for, if all of it has come.
    fn finish(mut self) -> Result<Reply, NbdError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.asked.kind == command::READ {
            self.filled.sort_unstable_by_key(|range| range.start);
            let end = self.filled.iter().try_fold(0, |end, range| (range.start == end).then_some(range.end));
            if end != Some(self.data.len()) {
                return Err(NbdError::protocol("it has not sent what was asked for, or parts of it twice"));
            }
        }
        Ok(Reply { data: self.data, states: self.states })
    }
}
