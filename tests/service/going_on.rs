//! A backup whose session is lost goes on without reading its disk again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ekko::backup::{BackupOptions, BackupSummary};
use ekko::codec::CompressionSetting;
use ekko::image::{Extent, Image, ImageError};
use ekko::manifest::ImageName;
use ekko::progress::{Notice, Progress};
use ekko::remote::{Address, Credentials, RemoteRepository};

use crate::harness::{Served, disk, ekko_done};

/// How much is read at once, and the size of a segment.
const PIECE: usize = 8 << 20;
const SEGMENT: usize = 64 << 10;

/// What happens to the bytes of a disk while it is read.
type Change = Box<dyn Fn(&mut Vec<u8>) + Send + Sync>;

/// A disk in memory that notes what is read of it, and does something once when it is read from a place on.
struct Noted {
    bytes: Mutex<Vec<u8>>,
    reads: Mutex<Vec<(u64, usize)>>,
    from: u64,
    then: Change,
    is_done: AtomicBool,
}

impl std::fmt::Debug for Noted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Noted")
    }
}

impl Image for Noted {
    fn path(&self) -> &Path {
        Path::new("noted")
    }

    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        let size = self.size();
        Ok((from < size).then(|| Extent { offset: from, length: size - from }))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        if offset >= self.from && !self.is_done.swap(true, Ordering::AcqRel) {
            (self.then)(&mut self.bytes.lock().unwrap());
        }
        self.reads.lock().unwrap().push((offset, buffer.len()));
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[start..start + buffer.len()]);
        Ok(())
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

impl Noted {
    fn new(bytes: &[u8], from: usize, then: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Self {
        Self {
            bytes: Mutex::new(bytes.to_vec()),
            reads: Mutex::default(),
            from: from as u64,
            then: Box::new(then),
            is_done: AtomicBool::new(false),
        }
    }

    /// Returns how often each segment was read.
    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; usize::try_from(self.size()).unwrap().div_ceil(SEGMENT)];
        for (offset, length) in &*self.reads.lock().unwrap() {
            let first = usize::try_from(*offset).unwrap() / SEGMENT;
            counts[first..(usize::try_from(*offset).unwrap() + length).div_ceil(SEGMENT)]
                .iter_mut()
                .for_each(|count| *count += 1);
        }
        counts
    }
}

#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl Progress for Told {
    fn notice(&self, notice: Notice) {
        if let Notice::GoesOn { what } = notice {
            self.0.lock().unwrap().push(what);
        }
    }
}

/// Ends all sessions of the owner; with `forgetful`, the service forgets what was sent in them as well.
fn end_sessions(address: &Path, repository: &Path, forgetful: bool) {
    let ask = |method: &str, path: &str| {
        let output = std::process::Command::new("curl")
            .args(["--silent", "--fail", "-X", method, "--unix-socket"])
            .arg(address)
            .arg(format!("http://ekko{path}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{method} {path}");
        output.stdout
    };
    let sessions: serde_json::Value = serde_json::from_slice(&ask("GET", "/v1/sessions")).unwrap();
    if forgetful {
        std::fs::remove_dir_all(repository.join("sessions")).unwrap();
    }
    for session in sessions.as_array().unwrap() {
        ask("DELETE", &format!("/v1/sessions/{}", session["session"].as_str().unwrap()));
    }
}

fn back_up(served: &Served, image: &Noted, told: &Arc<Told>) -> BackupSummary {
    let progress: Arc<dyn Progress> = Arc::<Told>::clone(told);
    let address = Address::Socket { path: served.socket() };
    let remote = RemoteRepository::new(address, &Credentials::default(), progress).unwrap();
    let options = BackupOptions::new(CompressionSetting::default(), 1);
    remote.back_up(&ImageName::new("web").unwrap(), image, None, &options, told.as_ref()).unwrap()
}

fn restored(served: &Served) -> Vec<u8> {
    let out = served.folder().join("out");
    ekko_done(&served.repository(), &["restore", "--force", "web", out.to_str().unwrap()]);
    std::fs::read(&out).unwrap()
}

/// Data, zeros, and data; of five pieces.
fn bytes() -> Vec<u8> {
    [disk(1, 2 * PIECE), vec![0; PIECE / 2], disk(2, 2 * PIECE + PIECE / 2)].concat()
}

/// One piece is being read when the session ends, and what became of the one before may not have been taken down.
fn reads_of_the_next_session(counts: &[usize], end: usize) {
    let known = end / SEGMENT - 2 * PIECE / SEGMENT;
    assert!(counts[..known].iter().all(|count| *count == 1), "{counts:?}");
    assert!(counts.iter().all(|count| (1..=2).contains(count)), "{counts:?}");
}

#[test]
fn what_was_read_is_not_read_again_and_what_was_sent_is_not_sent_again() {
    let served = Served::new();
    let (socket, repository) = (served.socket(), served.repository());
    let image = Noted::new(&bytes(), 4 * PIECE, move |_| end_sessions(&socket, &repository, false));
    let told = Arc::<Told>::default();
    let summary = back_up(&served, &image, &told);
    reads_of_the_next_session(&image.counts(), 4 * PIECE);
    let stats = summary.stats;
    assert_eq!(
        (stats.segments, stats.zero_segments, stats.new_segments + stats.deduplicated_segments),
        (640, 64, 576)
    );
    assert!(stats.read_bytes <= 7 * PIECE as u64, "{}", stats.read_bytes);
    assert_eq!(served.metric("ekko_segments_stored_total").to_string(), "576");
    assert!(restored(&served) == bytes());
    let texts = told.0.lock().unwrap().clone();
    assert!(texts.iter().any(|text| text.contains("goes on in a new one")), "{texts:?}");
    // The next day: what is the parent's is remembered, too.
    let (socket, repository) = (served.socket(), served.repository());
    let image = Noted::new(&bytes(), 4 * PIECE, move |_| end_sessions(&socket, &repository, false));
    let summary = back_up(&served, &image, &told);
    reads_of_the_next_session(&image.counts(), 4 * PIECE);
    assert_eq!((summary.stats.unchanged_segments, summary.stats.new_segments), (576, 0));
    assert!(restored(&served) == bytes());
}

#[test]
fn what_is_the_parents_is_read_again_if_the_parent_is_another_by_then() {
    let served = Served::new();
    back_up(&served, &Noted::new(&bytes(), usize::MAX, |_| {}), &Arc::default());
    let (socket, repository) = (served.socket(), served.repository());
    let other = served.folder().join("other");
    std::fs::write(&other, [disk(1, PIECE), disk(9, 4 * PIECE)].concat()).unwrap();
    let image = Noted::new(&bytes(), 4 * PIECE, move |_| {
        end_sessions(&socket, &repository, false);
        ekko_done(&repository, &["backup", &format!("web={}", other.display())]);
    });
    let summary = back_up(&served, &image, &Arc::default());
    assert_eq!(summary.backup.incremental.0, 2);
    assert!(restored(&served) == bytes());
}

#[test]
fn a_segment_that_the_service_lacks_is_read_again_as_it_is_then() {
    let served = Served::new();
    let (socket, repository) = (served.socket(), served.repository());
    let image = Noted::new(&bytes(), 4 * PIECE, move |bytes| {
        end_sessions(&socket, &repository, true);
        // The disk is written to meanwhile: once where data was, once where zeros were.
        bytes[PIECE + 5] ^= 1;
        bytes[2 * PIECE + 5] ^= 1;
    });
    back_up(&served, &image, &Arc::default());
    let counts = image.counts();
    let zeros = (2 * PIECE + SEGMENT) / SEGMENT..(2 * PIECE + PIECE / 4) / SEGMENT;
    assert!(counts[..2 * PIECE / SEGMENT].iter().all(|count| *count == 2), "{counts:?}");
    assert!(counts[zeros].iter().all(|count| *count == 1), "{counts:?}");
    // Of the data what was there later, of the zeros what was there first.
    let mut expected = bytes();
    expected[PIECE + 5] ^= 1;
    assert!(restored(&served) == expected);
}
