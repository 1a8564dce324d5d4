//! Raw images: regular files and block devices whose bytes are the disk's bytes.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, OFlags, SeekFrom, fadvise, ioctl_blksszget, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2, retry_on_intr};

use crate::image::bad_sectors::is_bad_place;
use crate::image::change::{SourceChange, Times};
use crate::image::{Extent, Image, ImageError};
use crate::storage::DIRECT;

/// The bytes of a sector, where nobody says how many it has.
const SECTOR: usize = 512;

/// The least extent answered when the holes move while they are looked for.
const STEP: u64 = 4096;

/// A regular file or a block device, read as it is.
///
/// Several threads may read and look for data at once. Reads are positioned and neither use nor move
/// the cursor of the open file. Looking for data moves it, but every `lseek` carries its own starting
/// point and returns its own answer in one call, so two that meet cannot mix up their answers, and
/// where the cursor stands afterwards nobody asks.
#[derive(Debug)]
pub struct RawImage {
    path: PathBuf,
    file: File,
    /// The same file, for reads past the page cache.
    direct: Option<File>,
    /// The same, once a place could not be read: the page cache gives no sector of a page in which one is bad.
    sectors: OnceLock<Option<File>>,
    /// What direct reads are aligned to, at least: the device's logical block.
    sector: usize,
    /// Whether the kernel can be asked to keep nothing in the page cache that was not there before.
    uncached: AtomicBool,
    size: u64,
    /// As they were when it was opened.
    times: Option<Times>,
}

/// `RWF_DONTCACHE` of Linux 6.14: what a read brings into the page cache leaves it again.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// How the bytes come from the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// Through the page cache: what is in it is used, and what is not is dropped again where the kernel can. Block devices are
    /// read past it all the same: a filesystem that is mounted on one, or who writes below it, does not tell it, and what an
    /// earlier backup brought into it would be taken for what the disk holds.
    #[default]
    Cached,
    /// Past it (`O_DIRECT`), so that it is left as it is.
    Direct,
}

impl RawImage {
    /// Opens a regular file or a block device for reading, through the page cache.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        Self::open_for(path, Reading::Cached)
    }

    /// Opens a regular file or a block device for reading.
    pub fn open_for(path: &Path, reading: Reading) -> Result<Self, ImageError> {
        let opening = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ImageError::NotFound { path: path.to_owned() },
            _ => ImageError::Open { path: path.to_owned(), source },
        };
        let refuse = |kind: FileType| match not_an_image(kind) {
            Some(what) => Err(ImageError::NotAnImage { path: path.to_owned(), what }),
            None => Ok(()),
        };
        // Looked at before it is opened, because opening a pipe waits for a writer and opening a tape
        // winds it back; and once more after, because another thing may have taken the name meanwhile.
        refuse(fs::metadata(path).map_err(opening)?.file_type())?;
        let file = File::open(path).map_err(opening)?;
        refuse(file.metadata().map_err(opening)?.file_type())?;
        // The times before the size: a write between the two shows.
        let times = Times::of(&file).map_err(opening)?;
        let size = size_of(&file).map_err(opening)?;
        let is_device = file.metadata().map_err(opening)?.file_type().is_block_device();
        let direct = match reading {
            Reading::Cached if is_device => open_direct(path).ok(),
            Reading::Cached => None,
            Reading::Direct => {
                let failed = |source| ImageError::Direct { path: path.to_owned(), source };
                Some(open_direct(path).map_err(failed)?)
            }
        };
        // A regular file does not tell: a read that its filesystem finds unaligned is repeated through the page cache.
        let block = if is_device { ioctl_blksszget(&file).ok() } else { None };
        let sector = block.and_then(|bytes| usize::try_from(bytes).ok()).filter(|it| it.is_power_of_two());
        let sector = sector.unwrap_or(SECTOR);
        if is_device {
            // For what cannot be read past the cache: its end, if that is not aligned, or all of it on some devices.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
        // Advice alone: where it is not taken, reading is only slower, or pushes more out of the page cache.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        let _ = fadvise(&file, 0, None, Advice::NoReuse);
        let (path, sectors, uncached) = (path.to_owned(), OnceLock::new(), AtomicBool::new(true));
        Ok(Self { path, file, direct, sectors, sector, uncached, size, times })
    }

    /// Returns the file for a read past the page cache, if that is how so many bytes are read.
    fn past_cache(&self, bytes: usize) -> Option<&File> {
        let sectors = || self.sectors.get()?.as_ref().filter(|_| bytes < DIRECT);
        self.direct.as_ref().or_else(sectors)
    }

    /// From now on small pieces are read past the page cache.
    fn read_by_sectors(&self) {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        self.sectors
            .get_or_init(|| if self.direct.is_some() { None } else { open_direct(path.as_ref()).ok() });
    }

    /// Reads once, as many bytes as come at once.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(direct) = self.past_cache(buffer.len()) {
            // A direct read needs everything aligned; what is not, at the very end of a disk, is read as ever.
            let is_large = buffer.len() >= DIRECT && offset.is_multiple_of(DIRECT as u64);
            let block = if is_large { DIRECT } else { self.sector };
            let whole = buffer.len() - buffer.len() % block;
            let aligned = buffer.as_ptr().align_offset(block) == 0 && offset.is_multiple_of(block as u64);
            if aligned && let Some(part) = buffer.get_mut(..whole).filter(|part| !part.is_empty()) {
                match direct.read_at(part, offset) {
                    // The device counts in larger blocks.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                    read => return read,
                }
            }
        } else if self.uncached.load(Ordering::Relaxed) {
            match preadv2(&self.file, &mut [io::IoSliceMut::new(buffer)], offset, DONTCACHE) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                    self.uncached.store(false, Ordering::Relaxed);
                }
                other => return Ok(other?),
            }
        }
        self.file.read_at(buffer, offset)
    }

    fn seek_failed(&self, offset: u64, source: impl Into<io::Error>) -> ImageError {
        ImageError::Seek { path: self.path.clone(), offset, source: source.into() }
    }
}

/// Opens a file for reads past the page cache.
fn open_direct(path: &Path) -> io::Result<File> {
    let flag = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    OpenOptions::new().read(true).custom_flags(flag).open(path)
}

/// Returns the size in bytes. Seeking to the end works for regular files and block devices alike; the
/// size that `stat` tells is 0 for a device.
fn size_of(file: &File) -> io::Result<u64> {
    Ok(retry_on_intr(|| seek(file, SeekFrom::End(0)))?)
}

/// Returns what a thing is if it is no image, with its article.
fn not_an_image(kind: FileType) -> Option<&'static str> {
    if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        Some("a folder")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else if kind.is_char_device() {
        Some("a character device")
    } else {
        Some("neither a regular file nor a block device")
    }
}

/// Says whether the answer means that holes cannot be asked for here: block devices say EINVAL, and so
/// do filesystems that never learned it; network and user-space filesystems have the other two.
fn holes_are_unknown(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS)
}

impl Image for RawImage {
    fn path(&self) -> &Path {
        &self.path
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        if from >= self.size {
            return Ok(None);
        }
        let rest = |offset| Ok(Some(Extent { offset, length: self.size - offset }));
        let start = match retry_on_intr(|| seek(&self.file, SeekFrom::Data(from))) {
            Ok(start) if start < self.size => start,
            // The file grew, and its next data is in what grew.
            Ok(_) => return Ok(None),
            Err(Errno::NXIO) => {
                // Only hole up to the end; or `from` is behind the end, because the file was cut.
                self.verify_unchanged()?;
                return Ok(None);
            }
            Err(errno) if holes_are_unknown(errno) => return rest(from),
            Err(errno) => return Err(self.seek_failed(from, errno)),
        };
        let end = match retry_on_intr(|| seek(&self.file, SeekFrom::Hole(start))) {
            // A hole made between the two calls may begin right at `start`. The extent must not be
            // empty, or the caller would never get on; a hole read as data is zeros all the same.
            Ok(end) => end.max(start.saturating_add(STEP)).min(self.size),
            Err(Errno::NXIO) => {
                self.verify_unchanged()?;
                return rest(start);
            }
            Err(errno) if holes_are_unknown(errno) => return rest(start),
            Err(errno) => return Err(self.seek_failed(start, errno)),
        };
        Ok(Some(Extent { offset: start, length: end - start }))
    }

    fn read_at(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<(), ImageError> {
        while !buffer.is_empty() {
            match self.read(buffer, offset) {
                Ok(0) => {
                    self.verify_unchanged()?;
                    let missing = buffer.len() as u64;
                    return Err(ImageError::ShortRead { path: self.path.clone(), offset, missing });
                }
                Ok(done) => {
                    buffer = buffer.get_mut(done..).unwrap_or_default();
                    offset += done as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    if is_bad_place(&source) {
                        self.read_by_sectors();
                    }
                    return Err(ImageError::Read { path: self.path.clone(), offset, source });
                }
            }
        }
        Ok(())
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        let now = size_of(&self.file).map_err(|source| self.seek_failed(self.size, source))?;
        if now < self.size {
            return Err(ImageError::Shrank { path: self.path.clone(), was: self.size, now });
        }
        Ok(())
    }

    fn allocated(&self) -> Option<u64> {
        let metadata = self.file.metadata().ok()?;
        Some(if metadata.is_file() { (metadata.blocks() * 512).min(self.size) } else { self.size })
    }

    fn sector_bytes(&self) -> usize {
        self.sector
    }

    fn change(&self) -> Result<Option<SourceChange>, ImageError> {
        let failed = |source| self.seek_failed(self.size, source);
        let now = size_of(&self.file).map_err(failed)?;
        if now > self.size {
            return Ok(Some(SourceChange::Grew { was: self.size, now }));
        }
        let times = Times::of(&self.file).map_err(failed)?;
        Ok(self.times.zip(times).and_then(|(before, now)| before.compare(now)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, Mode, mknodat};

    use super::*;
    use crate::error::ErrorKind;

    /// A length that every filesystem in use keeps apart as data or hole.
    const PART: u64 = 1 << 20;

    /// Makes an image of `size` bytes with data in the parts named, and holes elsewhere.
    fn sparse(size: u64, parts: &[u64]) -> (tempfile::TempDir, RawImage) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for part in parts {
            let length = PART.min(size - part * PART);
            file.write_all_at(&vec![7; usize::try_from(length).unwrap()], part * PART).unwrap();
        }
        (folder, RawImage::open(&path).unwrap())
    }

    fn extents(image: &RawImage) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(extent) = image.next_data(from).unwrap() {
            assert!(extent.length > 0 && extent.offset >= from);
            found.push((extent.offset, extent.length));
            from = extent.offset + extent.length;
            assert!(from <= image.size());
        }
        found
    }

    fn cut(image: &RawImage, size: u64) {
        File::options().write(true).open(image.path()).unwrap().set_len(size).unwrap();
    }

    #[test]
    fn holes_at_the_start_in_the_middle_and_at_the_end_are_passed_over() {
        let (_folder, image) = sparse(8 * PART, &[1, 2, 5]);
        assert_eq!(extents(&image), [(PART, 2 * PART), (5 * PART, PART)]);
        let inside = image.next_data(2 * PART + 4096).unwrap().unwrap();
        assert_eq!((inside.offset, inside.length), (2 * PART + 4096, PART - 4096));
        let mut bytes = [1; 4];
        image.read_at(&mut bytes, 3 * PART - 2).unwrap();
        assert_eq!(bytes, [7, 7, 0, 0]);
    }

    #[test]
    fn a_file_without_holes_is_one_extent() {
        for size in [1, PART - 1, PART, PART + 1] {
            let (_folder, image) = sparse(size, if size > PART { &[0, 1] } else { &[0] });
            assert_eq!(extents(&image), [(0, size)]);
        }
    }

    #[test]
    fn a_file_that_is_all_hole_has_no_extents() {
        let (_folder, image) = sparse(5 * PART + 1, &[]);
        assert_eq!((image.size(), extents(&image)), (5 * PART + 1, vec![]));
    }

    #[test]
    fn an_empty_file_has_no_extents_and_can_be_read() {
        let (_folder, image) = sparse(0, &[]);
        assert_eq!((image.size(), image.next_data(0).unwrap()), (0, None));
        image.read_at(&mut [], 0).unwrap();
        image.verify_unchanged().unwrap();
    }

    #[test]
    fn a_file_that_shrinks_is_reported_wherever_it_is_noticed() {
        let (_folder, image) = sparse(4 * PART, &[0, 3]);
        image.verify_unchanged().unwrap();
        cut(&image, 2 * PART);
        let mut bytes = [0; 8];
        let noticed = [
            image.verify_unchanged(),
            image.read_at(&mut bytes, 3 * PART),
            image.next_data(PART).map(drop),
            image.next_data(3 * PART).map(drop),
        ];
        for result in noticed {
            let error = result.unwrap_err();
            let expected = (4 * PART, 2 * PART);
            assert!(
                matches!(error, ImageError::Shrank { was, now, .. } if (was, now) == expected),
                "{error}"
            );
            assert_eq!(error.kind(), ErrorKind::Io);
        }
        image.read_at(&mut bytes, 2 * PART - 8).unwrap();
    }

    #[test]
    fn a_file_that_grows_is_read_as_it_was_opened() {
        let (_folder, image) = sparse(PART, &[]);
        cut(&image, 2 * PART);
        fs::OpenOptions::new().write(true).open(image.path()).unwrap().write_all_at(&[7], PART + 5).unwrap();
        assert_eq!((image.size(), image.next_data(0).unwrap()), (PART, None));
        image.verify_unchanged().unwrap();
        assert_eq!(image.change().unwrap(), Some(SourceChange::Grew { was: PART, now: 2 * PART }));
    }

    #[test]
    fn a_file_that_is_written_to_or_touched_is_seen() {
        let (_folder, image) = sparse(PART, &[0]);
        assert_eq!(image.change().unwrap(), None);
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::set_permissions(image.path(), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(image.change().unwrap(), Some(SourceChange::Touched));
        fs::OpenOptions::new().write(true).open(image.path()).unwrap().write_all_at(&[8], 5).unwrap();
        assert_eq!(image.change().unwrap(), Some(SourceChange::Written));
    }

    #[test]
    fn a_short_read_says_where_and_how_much_is_missing() {
        let (_folder, image) = sparse(10, &[0]);
        let error = image.read_at(&mut [0; 8], 6).unwrap_err();
        assert!(matches!(error, ImageError::ShortRead { offset: 10, missing: 4, .. }), "{error}");
        assert!(error.to_string().ends_with("disk.raw ends at byte 10, where 4 more bytes were to be read"));
    }

    #[test]
    fn a_missing_image_is_named_in_the_message() {
        let error = RawImage::open(Path::new("/nowhere/web.raw")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let expected = "cannot open image /nowhere/web.raw: there is no such file or device; check the path";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn folders_pipes_sockets_and_character_devices_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let [pipe, socket] = ["pipe", "socket"].map(|name| folder.path().join(name));
        mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        let cases = [
            (folder.path(), "a folder"),
            (&pipe, "a pipe"),
            (&socket, "a socket"),
            (Path::new("/dev/null"), "a character device"),
        ];
        for (path, expected) in cases {
            let error = RawImage::open(path).unwrap_err();
            assert!(matches!(error, ImageError::NotAnImage { what, .. } if what == expected), "{error}");
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn only_answers_that_mean_no_support_make_the_rest_data() {
        assert!([Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS].into_iter().all(holes_are_unknown));
        assert!(![Errno::IO, Errno::NXIO, Errno::BADF].into_iter().any(holes_are_unknown));
    }

    #[test]
    fn threads_that_read_and_seek_at_once_do_not_disturb_each_other() {
        let (_folder, image) = sparse(64 * PART, &[3, 17, 40]);
        let expected = extents(&image);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert_eq!(extents(&image), expected);
                        let mut bytes = [0; 2];
                        image.read_at(&mut bytes, 18 * PART - 1).unwrap();
                        assert_eq!(bytes, [7, 0]);
                    }
                });
            }
        });
    }
}
