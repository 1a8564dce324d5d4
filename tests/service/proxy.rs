//! A network between a client and a service: it pauses, and it cuts connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What happens on the way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// A connection is cut when so many bytes have gone by, both ways together.
    pub cut_every: Option<u64>,
    /// When so many bytes have gone by on all connections, everything stands still for a time, once.
    pub pause: Option<(u64, Duration)>,
}

/// A proxy that listens until it is dropped.
pub struct Proxy {
    /// `http://127.0.0.1:PORT`
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    rules: Rules,
    passed: AtomicU64,
    cuts: AtomicU64,
    ended: AtomicBool,
    /// Until when everything stands still.
    still: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Proxy {
    /// Passes on to a service, whose address begins with `http://`.
    pub fn new(service: &str, rules: Rules) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let service = service.trim_start_matches("http://").to_owned();
        let shared = Arc::new(Shared {
            rules,
            passed: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            still: Mutex::new(None),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if own.ended.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&service)) else { continue };
                let own_bytes = Arc::<AtomicU64>::default();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (shared, own_bytes) = (Arc::clone(&own), Arc::clone(&own_bytes));
                    std::thread::spawn(move || shared.pass_on(from, to, &own_bytes));
                }
            }
        });
        Self { address, shared }
    }

    /// Returns how many connections were cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address.trim_start_matches("http://"));
    }
}

impl Shared {
    /// Passes bytes on, one way, until a side closes or the connection is cut.
    fn pass_on(&self, mut from: TcpStream, mut to: TcpStream, own: &AtomicU64) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = from.read(&mut buffer).unwrap_or(0);
            if read == 0 {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            self.stand_still(read as u64);
            let gone = own.fetch_add(read as u64, Ordering::AcqRel) + read as u64;
            if self.rules.cut_every.is_some_and(|most| gone > most) {
                if gone - (read as u64) <= self.rules.cut_every.unwrap() {
                    self.cuts.fetch_add(1, Ordering::AcqRel);
                }
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                return;
            }
            if to.write_all(&buffer[..read]).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    /// Waits while everything stands still.
    fn stand_still(&self, bytes: u64) {
        let before = self.passed.fetch_add(bytes, Ordering::AcqRel);
        let mut still = self.still.lock().unwrap();
        if let Some((at, pause)) = self.rules.pause
            && (before..before + bytes).contains(&at)
        {
            *still = Some(Instant::now() + pause);
        }
        while let Some(left) = still.and_then(|end| end.checked_duration_since(Instant::now())) {
            still = self.changed.wait_timeout(still, left).unwrap().0;
        }
    }
}
