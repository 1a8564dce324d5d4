//! The source of a backup as it is read: what is wrong with it is found out here.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backup::{BackupError, BackupOptions};
use crate::error::ErrorKind;
use crate::image::{Extent, Image, ImageError, SourceChange, UnreadableRanges};
use crate::manifest::{Flaws, Inconsistency};
use crate::progress::{Notice, Progress};

/// A source that is read for a backup. It reads around unreadable sectors if the options say so, and tells at the end which flaws
/// the source has.
#[derive(Debug)]
pub struct WatchedSource<'a> {
    image: &'a dyn Image,
    options: &'a BackupOptions,
    unreadable: UnreadableRanges,
    /// How many bytes could not be read of segments that the list of changes calls unchanged.
    not_audited: AtomicU64,
    /// Who may have been changing the source when the backup began.
    writer: Option<String>,
}

impl<'a> WatchedSource<'a> {
    /// Watches a source.
    pub fn new(image: &'a dyn Image, options: &'a BackupOptions) -> Self {
        // The second look costs something, so it is taken only where the first one found somebody.
        let is_used = options.in_use.is_some() && !options.stands_still;
        let writer = if is_used { options.lookout.source_writer(image.path()) } else { None };
        Self {
            image,
            options,
            unreadable: UnreadableRanges::default(),
            not_audited: AtomicU64::new(0),
            writer,
        }
    }

    /// Says whether a part of a range could not be read, which a list of changes calls unchanged and which is only compared with the
    /// backup before. Such a range is what the backup before has, as all others are that the list does not name: it is no flaw.
    pub(super) fn could_not_audit(&self, range: &Range<u64>) -> bool {
        let bytes = self.unreadable.take(range).iter().map(|range| range.end - range.start).sum();
        self.not_audited.fetch_add(bytes, Ordering::Relaxed);
        bytes > 0
    }

    /// Begins anew: the list of changes is wrong, and the whole source is read.
    pub(super) fn distrust_list(&self) {
        self.not_audited.store(0, Ordering::Relaxed);
    }

    /// Returns the flaws of the source, once it has been read, and tells a person of them.
    ///
    /// # Errors
    /// The source cannot be looked at, or shrank.
    pub fn flaws(&self, name: &str, progress: &dyn Progress) -> Result<Flaws, BackupError> {
        self.image.verify_unchanged()?;
        let flaws = Flaws { inconsistent: self.inconsistency()?, unreadable: self.unreadable.ranges() };
        if let Some(why) = &flaws.inconsistent {
            progress.notice(Notice::Inconsistent { name: name.to_owned(), why: why.to_string() });
        }
        let not_audited = self.not_audited.load(Ordering::Relaxed);
        if not_audited > 0 {
            let what = format!(
                "{not_audited} bytes of {name} cannot be read; this backup has there what the backup before has, since the list of \
                 changes does not name them; check the health of the disk"
            );
            progress.notice(Notice::Problem { kind: ErrorKind::Io, what });
        }
        if !flaws.unreadable.is_empty() {
            let (name, bytes) = (name.to_owned(), flaws.marks().unreadable_bytes);
            progress.notice(Notice::Unreadable { name, ranges: flaws.unreadable.len(), bytes });
        }
        Ok(flaws)
    }

    /// Says how the source changed while it was read, or who may have changed it.
    fn inconsistency(&self) -> Result<Option<Inconsistency>, ImageError> {
        let change = self.image.change()?.map(|change| change.to_string());
        let text = change.or_else(|| {
            // Whoever sees to it that the disk stands still may have it open all the same.
            let writer = match &self.writer {
                _ if self.options.stands_still => None,
                Some(writer) => Some(writer.clone()),
                None => self.options.lookout.source_writer(self.image.path()),
            };
            writer.map(|how| format!("it was in use while it was read: {how}"))
        });
        Ok(text.map(|text| Inconsistency::of_this_machine(&text)))
    }
}

impl Image for WatchedSource<'_> {
    fn path(&self) -> &Path {
        self.image.path()
    }

    fn size(&self) -> u64 {
        self.image.size()
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        self.image.next_data(from)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        if self.options.skip_bad_sectors {
            return self.unreadable.read_around(self.image, buffer, offset).map(drop);
        }
        self.image.read_at(buffer, offset).map_err(|error| {
            if error.is_unreadable_place() {
                ImageError::BadSector { source: Box::new(error) }
            } else {
                error
            }
        })
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        self.image.verify_unchanged()
    }

    fn allocated(&self) -> Option<u64> {
        self.image.allocated()
    }

    fn change(&self) -> Result<Option<SourceChange>, ImageError> {
        self.image.change()
    }
}
