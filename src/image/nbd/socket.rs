//! The socket of a link.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::image::nbd::uri::Place;

/// How long a server may take to accept a link.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server may be silent while something is read of it.
pub(super) const SILENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });

/// A socket that is read by one thread and written to by another.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(super) fn connect(place: &Place) -> io::Result<Self> {
        match place {
            Place::Unix(path) => Self::of_unix(at_short_path(path, |path| UnixStream::connect(path))?),
            Place::Tcp { host, port } => {
                let stream = connect_tcp(host, *port)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(SILENCE))?;
                stream.set_write_timeout(Some(SILENCE))?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Takes a stream that is connected.
    pub(super) fn of_unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Self::Unix(stream))
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    /// Ends both directions, so that whoever reads or writes is woken.
    pub(super) fn shut_down(&self) {
        // One that has ended already is what is wanted.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// The longest path of a socket that the kernel takes, in bytes: 108 with the zero at its end.
const PATH_LIMIT: usize = 107;

/// Does something with the path of a socket. If the path is too long for the kernel, it is reached by an open descriptor of
/// its folder.
pub(in crate::image) fn at_short_path<T>(
    path: &Path,
    work: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) if path.as_os_str().as_bytes().len() > PATH_LIMIT => {
            let folder = File::open(folder)?;
            let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
            work(&short)
        }
        _ => work(path),
    }
}

/// Tries every address that a host has.
fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
        }
    }
}
