//! Encrypted links: one connection that a thread reads while others write to it.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::image::nbd::NbdError;
use crate::image::nbd::socket::Socket;

/// How many encrypted bytes are read from the socket at once.
const READ_AT_ONCE: usize = 64 << 10;

/// What a client shows and whom it believes, from a folder as QEMU and libvirt have them: `ca-cert.pem`, and, if the server
/// wants to know who comes, `client-cert.pem` and `client-key.pem`.
pub(super) fn configuration(folder: &Path) -> Result<Arc<ClientConfig>, NbdError> {
    let wrong = |file: &Path, what: &dyn std::fmt::Display| NbdError::Certificates {
        what: format!("{}: {what}", file.display()),
    };
    let certificates = |file: &Path| {
        let all = CertificateDer::pem_file_iter(file).map_err(|error| wrong(file, &error))?;
        all.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(file, &error))
    };
    let mut roots = RootCertStore::empty();
    let authority = folder.join("ca-cert.pem");
    for certificate in certificates(&authority)? {
        roots.add(certificate).map_err(|error| wrong(&authority, &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(folder, &error))?
        .with_root_certificates(roots);
    let (own, key) = (folder.join("client-cert.pem"), folder.join("client-key.pem"));
    let configuration = if own.exists() {
        let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| wrong(&key, &error))?;
        builder.with_client_auth_cert(certificates(&own)?, key).map_err(|error| wrong(&own, &error))?
    } else {
        builder.with_no_client_auth()
    };
    Ok(Arc::new(configuration))
}

/// Makes the link encrypted, and says who is on the other side.
pub(super) fn begin(
    mut socket: Socket,
    configuration: &Arc<ClientConfig>,
    host: &str,
) -> Result<(TlsReader, TlsWriter), NbdError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| NbdError::Certificates { what: format!("{host:?} is no name of a host") })?;
    let mut connection = ClientConnection::new(Arc::clone(configuration), name)
        .map_err(|error| NbdError::Certificates { what: error.to_string() })?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    let shared = Arc::new(Mutex::new(connection));
    let writer = TlsWriter { connection: Arc::clone(&shared), socket: socket.try_clone()? };
    let reader = TlsReader { connection: shared, socket, stored: vec![0; READ_AT_ONCE], unread: 0..0 };
    Ok((reader, writer))
}

type Shared = Arc<Mutex<ClientConnection>>;

fn lock(connection: &Shared) -> MutexGuard<'_, ClientConnection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The side that is read from.
#[derive(Debug)]
pub(super) struct TlsReader {
    connection: Shared,
    socket: Socket,
    /// Encrypted bytes, of which the connection has not taken those in `unread`.
    stored: Vec<u8>,
    unread: std::ops::Range<usize>,
}

impl Read for TlsReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            {
                let mut connection = lock(&self.connection);
                match connection.reader().read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other,
                }
                let mut rest = self.stored.get(self.unread.clone()).unwrap_or_default();
                if !rest.is_empty() {
                    let taken = connection.read_tls(&mut rest)?;
                    self.unread.start += taken;
                    connection.process_new_packets().map_err(io::Error::other)?;
                    continue;
                }
            }
            // Not under the lock: others write meanwhile.
            let read = self.socket.read(&mut self.stored)?;
            self.unread = 0..read;
            if read == 0 {
                // An end that was not announced may be somebody else's doing.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The side that is written to.
#[derive(Debug)]
pub(super) struct TlsWriter {
    connection: Shared,
    socket: Socket,
}

impl Write for TlsWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut encrypted = Vec::new();
        let taken = {
            let mut connection = lock(&self.connection);
            let taken = connection.writer().write(buffer)?;
            while connection.wants_write() {
                connection.write_tls(&mut encrypted)?;
            }
            taken
        };
        // There is one writer, so what is encrypted goes out in its order.
        self.socket.write_all(&encrypted)?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}
