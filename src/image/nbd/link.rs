//! A link on which requests of several threads are under way at once.
//!
//! Who asks sends its request and waits for the reply, which another thread reads ([`replies`](super::replies)).

use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::image::nbd::handshake::{self, Agreed, Greeting};
use crate::image::nbd::replies::{Asked, Pending, Reply, States, read_replies};
use crate::image::nbd::socket::Socket;
use crate::image::nbd::wire::{DONT_FRAGMENT, command, option, request, transmission};
use crate::image::nbd::{NbdError, Server, tls};

/// The longest read that every server takes, by the protocol.
const MOST: u32 = 32 << 20;

/// The longest read that every server answers in one piece, by the protocol.
const MOST_IN_ONE_PIECE: u32 = 64 << 10;

/// How much is made zero by one request.
const ZEROED_AT_ONCE: u32 = 32 << 20;

/// Both sides of a link, until it is agreed on.
struct Duplex {
    reader: Box<dyn Read + Send>,
    writer: Box<dyn Write + Send>,
}

impl Duplex {
    fn plain(socket: &Socket) -> io::Result<Self> {
        Ok(Self { reader: Box::new(socket.try_clone()?), writer: Box::new(socket.try_clone()?) })
    }
}

impl Read for Duplex {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl Write for Duplex {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.writer.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// A link to an export.
pub(super) struct Link {
    agreed: Agreed,
    socket: Socket,
    writer: Mutex<Box<dyn Write + Send>>,
    pending: Arc<Pending>,
    cookies: AtomicU64,
    /// Buffers to be used again: as many as there are threads that read.
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Link {
    /// Connects, agrees on the export, and begins to read replies.
    pub(super) fn connect(server: &Server, contexts: &[String]) -> Result<Self, NbdError> {
        let mut socket = Socket::connect(&server.uri.place)?;
        let greeting = handshake::greet(&mut socket)?;
        let stream = match &server.tls {
            None => Duplex::plain(&socket)?,
            Some(_) if !greeting.fixed => {
                return Err(NbdError::Refused { what: "it makes no encrypted links".to_owned() });
            }
            Some(configuration) => {
                handshake::ask_for_tls(&mut socket)?;
                let (reader, writer) = tls::begin(socket.try_clone()?, configuration, &server.uri.host)?;
                Duplex { reader: Box::new(reader), writer: Box::new(writer) }
            }
        };
        Self::begin(socket, stream, greeting, &server.uri.export, contexts)
    }

    /// The same with the default export of a server of our own, which was connected to already.
    pub(super) fn to_own(stream: UnixStream, contexts: &[String]) -> Result<Self, NbdError> {
        let mut socket = Socket::of_unix(stream)?;
        let greeting = handshake::greet(&mut socket)?;
        let stream = Duplex::plain(&socket)?;
        Self::begin(socket, stream, greeting, "", contexts)
    }

    fn begin(
        socket: Socket,
        mut stream: Duplex,
        greeting: Greeting,
        export: &str,
        contexts: &[String],
    ) -> Result<Self, NbdError> {
        let agreed = match handshake::agree(&mut stream, greeting, export, contexts) {
            Ok(agreed) => agreed,
            Err(error) => {
                // A courtesy: the server need not wonder.
                let _ = handshake::send(&mut stream, option::ABORT, &[]);
                return Err(error);
            }
        };
        let Duplex { reader, writer } = stream;
        let pending = Arc::new(Pending::new());
        let of_reader = Arc::clone(&pending);
        let structured = agreed.structured;
        std::thread::Builder::new().name("ekko-nbd".to_owned()).spawn(move || {
            let why = read_replies(&mut BufReader::new(reader), structured, &of_reader);
            of_reader.end(&why.to_string());
        })?;
        let writer = Mutex::new(writer);
        Ok(Self { agreed, socket, writer, pending, cookies: AtomicU64::new(1), spare: Mutex::default() })
    }

    /// Ends it, and every request that is under way.
    pub(super) fn shut_down(&self) {
        self.socket.shut_down();
    }

    /// Returns what was agreed on.
    pub(super) fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// Fills `buffer` with the bytes from `offset` on. With `in_one_piece`, each reply is one piece, if the server can do that: a
    /// server of QEMU that cannot read a sector drops the link in the middle of a reply of several pieces, and says so in a reply of
    /// one.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64, in_one_piece: bool) -> Result<(), NbdError> {
        let can = in_one_piece && self.agreed.flags & transmission::SEND_DF != 0;
        let (flags, longest) = if can { (DONT_FRAGMENT, MOST_IN_ONE_PIECE) } else { (0, MOST) };
        let most = self.agreed.most.unwrap_or(longest).clamp(1, longest);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        for (part, at) in buffer.chunks_mut(most).zip((0_u64..).step_by(most)) {
            let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            let mut data = spare().pop().unwrap_or_default();
            data.resize(part.len(), 0);
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let asked = Asked { kind: command::READ, offset: offset + at, length };
            let reply = self.ask_with(flags, asked, data, &[])?;
            part.copy_from_slice(reply.data.get(..part.len()).unwrap_or_default());
            spare().push(reply.data);
        }
        Ok(())
    }

    /// Asks for the states of ranges from `offset` on, by the numbers of contexts. They may end before `length`.
    pub(super) fn states(&self, offset: u64, length: u32) -> Result<Vec<(u32, States)>, NbdError> {
        Ok(self.ask(Asked { kind: command::BLOCK_STATUS, offset, length }, Vec::new(), &[])?.states)
    }

    /// Writes bytes from `offset` on. An error comes with the place of the request that failed.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> Result<(), (u64, NbdError)> {
        let most = usize::try_from(self.agreed.most.unwrap_or(MOST).clamp(1, MOST)).unwrap_or(usize::MAX);
        for (part, at) in bytes.chunks(most).zip((0_u64..).step_by(most)) {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let (kind, offset) = (command::WRITE, offset + at);
            self.ask(Asked { kind, offset, length }, Vec::new(), part).map_err(|error| (offset, error))?;
        }
        Ok(())
    }

    /// Makes a range zero. Says whether the server can. An error comes with the place of the request that failed.
    pub(super) fn zero(&self, range: Range<u64>) -> Result<bool, (u64, NbdError)> {
        if self.agreed.flags & transmission::WRITE_ZEROES == 0 {
            return Ok(false);
        }
        let mut at = range.start;
        while at < range.end {
            let length = u32::try_from(range.end - at).unwrap_or(u32::MAX).min(ZEROED_AT_ONCE);
            let asked = Asked { kind: command::WRITE_ZEROES, offset: at, length };
            self.ask(asked, Vec::new(), &[]).map_err(|error| (at, error))?;
            at += u64::from(length);
        }
        Ok(true)
    }

    /// Makes durable what was written, where the server can.
    pub(super) fn flush(&self) -> Result<(), NbdError> {
        if self.agreed.flags & transmission::FLUSH != 0 {
            self.ask(Asked { kind: command::FLUSH, offset: 0, length: 0 }, Vec::new(), &[])?;
        }
        Ok(())
    }

    /// Asks for something, with `payload` behind it, and waits for the reply; `data` is what is filled by it.
    fn ask(&self, asked: Asked, data: Vec<u8>, payload: &[u8]) -> Result<Reply, NbdError> {
        self.ask_with(0, asked, data, payload)
    }

    /// The same, with flags.
    fn ask_with(&self, flags: u16, asked: Asked, data: Vec<u8>, payload: &[u8]) -> Result<Reply, NbdError> {
        let cookie = self.cookies.fetch_add(1, Ordering::Relaxed);
        let bytes = request(flags, asked.kind, cookie, asked.offset, asked.length);
        let reply = self.pending.add(cookie, asked, data)?;
        // Held over I/O: requests must not be mixed up.
        let written = {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            writer.write_all(&bytes).and_then(|()| writer.write_all(payload))
        };
        if let Err(error) = written {
            self.pending.end(&NbdError::from(error).to_string());
            self.socket.shut_down();
        }
        reply.recv().unwrap_or_else(|_| Err(NbdError::Dropped { why: "nobody reads its replies".to_owned() }))
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("agreed", &self.agreed).finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let bytes = request(0, command::DISCONNECT, 0, 0, 0);
        // A courtesy; the thread that reads ends with the socket.
        let _ = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).write_all(&bytes);
        self.socket.shut_down();
    }
}
