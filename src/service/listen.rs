//! Listening: on addresses, encrypted or of this machine alone, and on a socket in the repository.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket, UnixStream};
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;

use crate::service::guard::Origin;
use crate::service::last_resort::{LastResort, Stage};
use crate::service::limits::{Address, Seats, Steady, raise_descriptors};
use crate::service::tls::Certificates;
use crate::service::{App, Keeper, ServiceError, routes, sessions};
use crate::storage::Storage;

/// How often it is looked whether sessions have gone silent.
const LOOK: Duration = Duration::from_secs(5);
/// The shortest pause between two such looks.
const SOON: Duration = Duration::from_millis(100);
/// How often it is looked whether certificates have changed.
const RENEWAL: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted; the system may allow fewer.
const WAITING: u32 = 4096;
/// hyper takes no buffer that is smaller, in bytes.
const LEAST_BUFFER: usize = 8 << 10;

/// What every listener needs.
#[derive(Clone)]
struct Door {
    app: Arc<App>,
    router: Router,
    /// One for each connection from a network that may be open.
    seats: Arc<Seats>,
    /// Becomes true when no new requests are taken.
    stop: watch::Receiver<bool>,
    /// Held by each connection: when all are gone, the other side sees it.
    open: watch::Sender<()>,
}

/// Listens until the process is told to stop, and until the requests that were under way then have ended.
pub(super) async fn run(
    app: &Arc<App>,
    keeper: &dyn Keeper,
    last_resort: &LastResort,
) -> Result<(), ServiceError> {
    let settings = app.settings().clone();
    let certificates = settings.tls.as_ref().map(Certificates::read).transpose()?.map(Arc::new);
    let mut signals = Signals::new()?;
    let connections = raise_descriptors(settings.limits.connections);
    let (stop_in, stop) = watch::channel(false);
    let (open, _) = watch::channel(());
    let door = Door {
        app: Arc::clone(app),
        router: routes::router(app),
        seats: Arc::new(Seats::new(connections, settings.limits.connections_per_address)),
        stop,
        open,
    };
    let mut told = Vec::new();
    let mut listeners = Vec::new();
    for address in &settings.listen {
        if certificates.is_none() && !settings.insecure && !address.ip().is_loopback() {
            return Err(ServiceError::Insecure { address: address.to_string() });
        }
        let failed = |source| ServiceError::Listen { address: address.to_string(), source };
        let listener = bind(*address).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        told.push(format!("{}://{bound}", if certificates.is_some() { "https" } else { "http" }));
        listeners.push(tokio::spawn(accept_tcp(door.clone(), listener, certificates.clone())));
    }
    let socket = app.repository().layout().socket();
    let storage = Arc::clone(app.repository().storage());
    let listener = bind_socket(storage.as_ref(), &socket)?;
    told.push(format!("unix:{}", socket.display()));
    listeners.push(tokio::spawn(accept_unix(door.clone(), listener)));
    let asked = Arc::new(Notify::new());
    if let Some(certificates) = certificates {
        listeners.push(tokio::spawn(renew(certificates, Arc::clone(&asked))));
    }
    listeners.push(tokio::spawn(look_after_sessions(Arc::clone(app))));
    keeper.listening(&told);
    while !last_resort.was_told() && !signals.wait(app, keeper).await {
        asked.notify_one();
    }
    last_resort.at(Stage::Requests);
    keeper.stopping();
    tracing::info!("stopping: requests under way are finished");
    // Nothing is said to a socket that is not there: the next command opens the repository itself.
    let _ = storage.unlink(&socket);
    app.stop();
    let _ = stop_in.send(true);
    let Door { open, router, .. } = door;
    drop(router);
    // Who comes meanwhile is told to come back later.
    let _ = tokio::time::timeout(settings.limits.grace(), open.closed()).await;
    listeners.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

/// The signals that the service knows.
struct Signals {
    hangup: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, ServiceError> {
        use tokio::signal::unix::{SignalKind, signal};
        let of = |kind| signal(kind).map_err(|source| ServiceError::Start { source });
        Ok(Self {
            hangup: of(SignalKind::hangup())?,
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
        })
    }

    /// Waits for a signal, and tells who looks after the service meanwhile that it lives. Says whether it is to end; if
    /// not, it is to read again what can have changed.
    async fn wait(&mut self, app: &App, keeper: &dyn Keeper) -> bool {
        loop {
            let alive = async {
                match keeper.interval() {
                    Some(interval) => tokio::time::sleep(interval).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.terminate.recv() => return true,
                _ = self.interrupt.recv() => return true,
                _ = self.hangup.recv() => return false,
                () = alive => if app.pulse().is_alive() {
                    keeper.alive();
                },
            }
        }
    }
}

/// Listens on an address. Behind others that come all at once, a client is to find a place to wait in: without one, its
/// system tries again a second later.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A service that is started again finds its address, though links of the one before are still being closed.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(WAITING)
}

fn bind_socket(storage: &dyn Storage, path: &std::path::Path) -> Result<UnixListener, ServiceError> {
    let failed = |source| ServiceError::Listen { address: format!("unix:{}", path.display()), source };
    // Whoever holds the repository's lock is alone here: a socket is left from a process that has ended.
    match storage.examine(path) {
        Ok(found) if found.file_type().is_socket() => storage.unlink(path)?,
        Ok(_) => {
            let what = "something that is not a socket has this name: move it away";
            return Err(failed(std::io::Error::new(std::io::ErrorKind::AlreadyExists, what)));
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    // The repository's folder lets nobody in but its owner, who alone can reach it; should that have been changed, neither
    // the socket nor we do. Linux gives the name the mode of the socket, so it is private from the moment it appears.
    let socket = UnixSocket::new_stream().map_err(failed)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
        .map_err(|errno| failed(errno.into()))?;
    socket.bind(path).map_err(failed)?;
    socket.listen(WAITING).map_err(failed)
}

/// Says whether whoever is at the other end is the user that the service runs as, or root.
fn is_owner(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// Gives sessions up that have gone silent.
async fn look_after_sessions(app: Arc<App>) {
    let limit = Duration::from_secs(app.settings().limits.silence_seconds);
    let pause = LOOK.min(limit / 2).max(SOON);
    loop {
        tokio::time::sleep(pause).await;
        let app = Arc::clone(&app);
        let _ = tokio::task::spawn_blocking(move || sessions::give_up_silent(&app, false)).await;
    }
}

async fn renew(certificates: Arc<Certificates>, asked: Arc<Notify>) {
    loop {
        let _ = tokio::time::timeout(RENEWAL, asked.notified()).await;
        let certificates = Arc::clone(&certificates);
        let _ = tokio::task::spawn_blocking(move || certificates.renew()).await;
    }
}

async fn accept_tcp(door: Door, listener: TcpListener, certificates: Option<Arc<Certificates>>) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                refused_by_the_system(&error).await;
                continue;
            }
        };
        let Some(seat) = door.seats.take(Address::from(peer.ip())) else {
            tracing::debug!(%peer, "there is no room for another connection");
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (door, certificates) = (door.clone(), certificates.clone());
        tokio::spawn(async move {
            let meet = async {
                let Some(certificates) = certificates else {
                    return converse(&door, stream, Origin::Network(peer, Arc::clone(&seat))).await;
                };
                let header = door.app.settings().limits.header();
                let handshake = TlsAcceptor::from(certificates.current()).accept(stream);
                match tokio::time::timeout(header, handshake).await {
                    Ok(Ok(stream)) => converse(&door, stream, Origin::Network(peer, Arc::clone(&seat))).await,
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "no encrypted link came about"),
                    Err(_) => tracing::debug!(%peer, "no encrypted link came about in time"),
                }
            };
            tokio::select! {
                () = meet => {}
                () = seat.ended() => tracing::debug!(%peer, "a silent connection made room for another"),
            }
        });
    }
}

async fn accept_unix(door: Door, listener: UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                refused_by_the_system(&error).await;
                continue;
            }
        };
        if !is_owner(&stream) {
            tracing::warn!("another user came by the socket, and was not let in");
            continue;
        }
        let door = door.clone();
        tokio::spawn(async move { converse(&door, stream, Origin::Owner).await });
    }
}

/// The system has no descriptors left, or a client was gone before it was let in.
async fn refused_by_the_system(error: &std::io::Error) {
    tracing::debug!(%error, "a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Speaks HTTP with one client until it goes, or until the service stops and the request under way has ended.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    door: &Door,
    stream: S,
    origin: Origin,
) {
    let _open = door.open.subscribe();
    let mut stop = door.stop.clone();
    // One that came while the service stops is answered once.
    let is_late = *stop.borrow();
    let limits = &door.app.settings().limits;
    let stream = Steady::new(stream, limits.body(), limits.slowest_bytes);
    let service = TowerToHyperService::new(door.router.clone().layer(Extension(origin)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(!is_late)
        .header_read_timeout(limits.header())
        .max_buf_size(limits.header_bytes.max(LEAST_BUFFER))
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stopped(&mut stop), if !is_late => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}
