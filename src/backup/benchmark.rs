//! What this machine can do at most: the speed of each thing that is done to a byte, and the bounds that follow.
//!
//! Every thing is measured with all cores busy at once, on a sample of a real disk where one is given, since both its
//! speed and what it gives depend on the bytes.

use std::hint::black_box;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backup::BackupError;
use crate::backup::pieces::{PIECE, Pieces};
use crate::backup::plan::Plan;
use crate::codec::{Codec, CodecError, CompressionSetting, Decoder, Encoder};
use crate::image::Image;
use crate::pace::each_on_a_thread;
use crate::segment::{Fingerprint, Geometry, GeometryError, SegmentHash, SegmentIndex, SegmentSize, is_zero};
use crate::storage::{AlignedBuffer, Storage, StorageError};

/// The most bytes of a sample.
const SAMPLE: usize = 192 << 20;
/// How long each thing is done at least.
const LEAST: Duration = Duration::from_millis(500);
/// How many bytes are written to find out how fast that is.
const WRITTEN: usize = 256 << 20;

/// A sample of a disk: segments that are not zero, evenly spread over it.
#[derive(Clone, Debug)]
pub struct Sample {
    segments: Vec<Vec<u8>>,
    /// How many bytes of segments that are not zero the disk has, by the sample.
    pub data_bytes: u64,
    /// How fast it was read, in bytes a second; nothing if it was made up.
    pub read: Option<f64>,
}

/// Bytes a second, on one core while all are busy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// The test for zeros, on zeros.
    pub zero_test: f64,
    /// BLAKE3.
    pub blake3: f64,
    /// SHA-1, of as many segments at once as a backup takes.
    pub sha1: f64,
    /// Compression, of plain bytes.
    pub compress: f64,
    /// Decompression, of plain bytes.
    pub decompress: f64,
    /// Stored bytes for each plain byte.
    pub stored: f64,
}

/// The least time that jobs take on a disk with so much data, in seconds: what is computed, on all cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// A first backup: BLAKE3, SHA-1 and compression of everything.
    pub first: f64,
    /// An unchanged one: BLAKE3.
    pub again: f64,
    /// A restore: decompression and BLAKE3.
    pub restore: f64,
}

#[allow(clippy::cast_precision_loss, reason = "a rate need not be exact")]
fn rate(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64().max(1e-9)
}

impl Sample {
    /// Reads a sample of an image.
    pub fn of(image: &dyn Image, segment_size: SegmentSize) -> Result<Self, BackupError> {
        let geometry = Geometry::new(image.size(), segment_size).map_err(|error| too_large(image, &error))?;
        let plan = Plan::full(geometry);
        // Gone through twice, so that the pieces of a large disk need not be kept.
        let (mut count, mut segments, mut pieces) = (0, 0, Pieces::new(image, geometry, &plan));
        while let Some(piece) = pieces.next()? {
            count += 1;
            segments += piece.segments.len() as u64;
        }
        let most = (SAMPLE / Pieces::most_bytes(geometry).max(1)).max(1) as u64;
        let step = u64::div_ceil(count, most).max(1);
        let size = usize::try_from(segment_size.bytes()).unwrap_or(usize::MAX);
        let mut buffer = AlignedBuffer::new(Pieces::most_bytes(geometry));
        let mut sample = Self { segments: Vec::new(), data_bytes: 0, read: None };
        let (mut read_bytes, mut took, mut seen) = (0, Duration::ZERO, 0);
        let mut pieces = Pieces::new(image, geometry, &plan);
        while let Some(piece) = pieces.next()? {
            if piece.sequence % step != 0 {
                continue;
            }
            let first = SegmentIndex(piece.segments.start);
            let last = SegmentIndex(piece.segments.end.saturating_sub(1));
            let end = geometry.offset(last) + u64::from(geometry.length(last));
            let start = geometry.offset(first);
            let bytes = buffer.of(usize::try_from(end - start).unwrap_or(usize::MAX));
            let begun = Instant::now();
            piece.read(image, start, bytes)?;
            took += begun.elapsed();
            read_bytes += piece.data_bytes();
            seen += piece.segments.len() as u64;
            sample.segments.extend(bytes.chunks(size).filter(|plain| !is_zero(plain)).map(<[u8]>::to_vec));
        }
        sample.read = (read_bytes > 0).then(|| rate(read_bytes, took));
        let found: u64 = sample.segments.iter().map(|plain| plain.len() as u64).sum();
        sample.data_bytes = found.saturating_mul(segments.max(1)) / seen.max(1);
        Ok(sample)
    }

    /// Makes a sample up that compresses about as a disk with an operating system on it does: three to one.
    pub fn made_up(segment_size: SegmentSize) -> Self {
        let size = usize::try_from(segment_size.bytes()).unwrap_or(usize::MAX);
        let count = ((SAMPLE / 4) / size).max(2);
        let words: Vec<String> = (0..4000_u32)
            .map(|word| {
                let hash = blake3::hash(&word.to_le_bytes()).to_hex();
                hash.get(..2 + (word % 9) as usize).unwrap_or_default().to_owned() + " "
            })
            .collect();
        let segment = |number: usize| {
            let mut noise = vec![0; size];
            blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut noise);
            let text: Vec<u8> = noise
                .as_chunks::<2>()
                .0
                .iter()
                .filter_map(|pair| words.get(usize::from(u16::from_le_bytes(*pair)) % words.len()))
                .flat_map(|word| word.bytes())
                .take(size / 8 * 7)
                .collect();
            let noise = noise.get(text.len()..).unwrap_or(&[]);
            [text.as_slice(), noise].concat()
        };
        let segments: Vec<_> = (0..count).map(segment).collect();
        let data_bytes = segments.iter().map(|plain| plain.len() as u64).sum();
        Self { segments, data_bytes, read: None }
    }

    /// Says whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Measures the rates on `cores` threads at once.
    pub fn rates(&self, compression: CompressionSetting, cores: usize) -> Result<Rates, CodecError> {
        let length = self.segments.first().map_or(0, Vec::len);
        let zeros = vec![vec![0; length.max(1)]];
        let together = (PIECE as usize / length.max(1)).clamp(1, SegmentHash::LANES);
        let mut encoder = Encoder::new(compression)?;
        let mut stored_segments: Vec<(Codec, Vec<u8>, u32)> = Vec::new();
        for plain in &self.segments {
            let mut stored = Vec::new();
            let codec = encoder.encode(plain, &mut stored);
            stored.shrink_to_fit();
            stored_segments.push((codec, stored, u32::try_from(plain.len()).unwrap_or(u32::MAX)));
        }
        let plain: u64 = self.segments.iter().map(|plain| plain.len() as u64).sum();
        let stored: u64 = stored_segments.iter().map(|(_, stored, _)| stored.len() as u64).sum();
        let compress = busy(
            cores,
            &self.segments,
            || Encoder::new(compression).ok().map(|it| (it, Vec::new())),
            |context, plain| {
                if let Some((encoder, out)) = context {
                    out.clear();
                    black_box(encoder.encode(plain, out));
                }
                plain.len()
            },
        );
        let decompress = busy(
            cores,
            &stored_segments,
            || Decoder::new().ok().map(|it| (it, Vec::new())),
            |context, (codec, stored, length)| {
                if let Some((decoder, out)) = context {
                    // What was encoded just now decodes; the time is what is asked for.
                    let _ = black_box(decoder.decode(*codec, stored, *length, out));
                }
                *length as usize
            },
        );
        Ok(Rates {
            zero_test: busy(
                cores,
                &zeros,
                || (),
                |(), plain| usize::from(black_box(is_zero(plain))) * plain.len(),
            ),
            blake3: busy(
                cores,
                &self.segments,
                || (),
                |(), plain| {
                    black_box(Fingerprint::of(plain));
                    plain.len()
                },
            ),
            // As many at once as a backup takes.
            sha1: busy(
                cores,
                &self.segments.chunks(together).collect::<Vec<_>>(),
                || (),
                |(), some| {
                    let plains: Vec<&[u8]> = some.iter().map(Vec::as_slice).collect();
                    black_box(SegmentHash::of_each(&plains));
                    plains.iter().map(|plain| plain.len()).sum()
                },
            ),
            compress,
            decompress,
            stored: rate(stored, Duration::from_secs(1)) / rate(plain.max(1), Duration::from_secs(1)),
        })
    }
}

fn too_large(image: &dyn Image, error: &GeometryError) -> BackupError {
    let path = image.path().to_owned();
    crate::repository::RepositoryError::from(crate::manifest::ManifestError::Invalid {
        path,
        what: error.to_string(),
    })
    .into()
}

/// Does something to each item over and over on `cores` threads at once, each with a context of its own. `each` returns
/// how many bytes that was. Returns the bytes a second of one thread.
fn busy<T: Sync, C>(
    cores: usize,
    items: &[T],
    context: impl Fn() -> C + Sync,
    each: impl Fn(&mut C, &T) -> usize + Sync,
) -> f64 {
    if items.is_empty() {
        return 0.0;
    }
    let one = |offset: usize| {
        let mut context = context();
        let (begun, mut bytes) = (Instant::now(), 0);
        // Each thread begins elsewhere, so that they do not go through the same memory side by side.
        for item in items.iter().cycle().skip(offset) {
            bytes += each(&mut context, item) as u64;
            if begun.elapsed() >= LEAST {
                break;
            }
        }
        rate(bytes, begun.elapsed())
    };
    let cores = cores.max(1);
    let rates = Mutex::new(Vec::new());
    each_on_a_thread(0..cores, "ekko-benchmark", |core| {
        let rate = one(core * items.len() / cores);
        rates.lock().unwrap_or_else(PoisonError::into_inner).push(rate);
    });
    let rates: Vec<f64> = rates.into_inner().unwrap_or_else(PoisonError::into_inner);
    rates.iter().sum::<f64>() / rate(cores as u64, Duration::from_secs(1))
}

impl Rates {
    /// Returns the least time that jobs take on a disk with `data_bytes` of segments that are not zero.
    #[allow(clippy::cast_precision_loss, reason = "a bound need not be exact")]
    pub fn bounds(&self, data_bytes: u64, cores: usize) -> Bounds {
        let each_core = data_bytes as f64 / cores.max(1) as f64;
        let time = |rates: &[f64]| rates.iter().map(|rate| each_core / rate.max(1.0)).sum();
        Bounds {
            first: time(&[self.blake3, self.sha1, self.compress]),
            again: time(&[self.blake3]),
            restore: time(&[self.decompress, self.blake3]),
        }
    }
}

/// Writes a file in `folder`, as packs are written, and makes it durable. Returns the bytes a second; the file is removed.
pub fn write_rate(storage: &dyn Storage, folder: &Path) -> Result<f64, StorageError> {
    let path = folder.join(format!("benchmark-{}.{}", std::process::id(), crate::storage::TEMPORARY));
    let mut buffer = AlignedBuffer::new(1 << 20);
    let bytes = buffer.of(1 << 20);
    blake3::Hasher::new().finalize_xof().fill(bytes);
    let file = storage.create(&path)?;
    let begun = Instant::now();
    let written = (0..WRITTEN / bytes.len())
        .try_for_each(|part| file.write_direct_at(bytes, (part * bytes.len()) as u64))
        .and_then(|()| file.sync());
    let took = begun.elapsed();
    drop(file);
    storage.unlink(&path)?;
    written.map(|()| rate(WRITTEN as u64, took))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::RawImage;
    use crate::storage::OsStorage;

    #[test]
    fn a_sample_knows_how_much_of_the_disk_is_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let size = SegmentSize::new(64 << 10).unwrap();
        let segment = vec![7; 64 << 10];
        let disk = [segment.clone(), vec![0; 64 << 10], segment.clone(), segment, vec![3; 10]].concat();
        std::fs::write(&path, disk).unwrap();
        let sample = Sample::of(&RawImage::open(&path).unwrap(), size).unwrap();
        assert_eq!((sample.segments.len(), sample.data_bytes), (4, 3 * (64 << 10) + 10));
        assert!(sample.read.is_some_and(|rate| rate > 0.0));
        std::fs::write(&path, b"").unwrap();
        assert!(Sample::of(&RawImage::open(&path).unwrap(), size).unwrap().is_empty());
    }

    #[test]
    fn bounds_are_what_the_rates_say() {
        let rates =
            Rates { zero_test: 9.0, blake3: 4.0, sha1: 2.0, compress: 1.0, decompress: 4.0, stored: 0.3 };
        assert_eq!(rates.bounds(8, 2), Bounds { first: 7.0, again: 1.0, restore: 2.0 });
    }

    #[test]
    fn everything_has_a_rate_and_nothing_is_left_behind() {
        let sample = Sample::made_up(SegmentSize::new(64 << 10).unwrap());
        let rates = sample.rates(CompressionSetting::default(), 2).unwrap();
        let all = [rates.zero_test, rates.blake3, rates.sha1, rates.compress, rates.decompress];
        assert!(all.iter().all(|rate| *rate > 0.0), "{rates:?}");
        assert!((0.2..0.6).contains(&rates.stored), "{rates:?}");
        let folder = tempfile::tempdir().unwrap();
        assert!(write_rate(&OsStorage, folder.path()).unwrap() > 0.0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
