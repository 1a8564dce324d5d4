//! Restoring to a stream, in order.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::manifest::{ManifestReader, unreadable_ranges};
use crate::pace::Pace;
use crate::progress::{Part, Progress};
use crate::restore::{
    DamagedSegment, RestoreError, RestoreOptions, RestoreSummary, SegmentSink, SegmentSupply,
};
use crate::segment::{Geometry, SegmentIndex, SegmentKey};

/// How many zeros are written at once.
const ZEROS: usize = 1 << 18;

/// A stream that segments are written to as they come: in order, from one thread.
pub(super) struct InOrderStream<'a> {
    output: Mutex<Output<'a>>,
    geometry: Geometry,
    progress: &'a dyn Progress,
}

struct Output<'a> {
    stream: &'a mut (dyn Write + Send),
    size: u64,
    /// Up to where the disk is written, in bytes.
    position: u64,
}

impl<'a> InOrderStream<'a> {
    pub(super) fn new(
        stream: &'a mut (dyn Write + Send),
        geometry: Geometry,
        progress: &'a dyn Progress,
    ) -> Self {
        Self {
            output: Mutex::new(Output { stream, size: geometry.size_of_disk(), position: 0 }),
            geometry,
            progress,
        }
    }

    /// Writes a disk.
    pub(super) fn run(
        self,
        supply: &dyn SegmentSupply,
        manifest: &ManifestReader,
        options: &RestoreOptions,
    ) -> Result<RestoreSummary, RestoreError> {
        let begun = Instant::now();
        let size = self.geometry.size_of_disk();
        let part = Part::begin(self.progress, "restore", size);
        // One thread fetches the segments in the order of the manifest.
        let all = 0..self.geometry.segments();
        let prepared = supply.prepare(manifest, vec![all], self.progress)?;
        let damaged = prepared.fetch(&self, &Pace::new(1, options.limit), self.progress)?;
        let mut output = self.output.into_inner().unwrap_or_else(PoisonError::into_inner);
        output.zeros_to(size)?;
        output.flush()?;
        drop(part);
        Ok(RestoreSummary {
            segments: u64::from(self.geometry.segments()),
            written_bytes: output.position,
            damaged,
            unwritten: Vec::new(),
            never_read: unreadable_ranges(manifest.info()).unwrap_or_default(),
            elapsed: begun.elapsed(),
        })
    }
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.stream.write_all(bytes).map_err(|source| self.failed(source))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), RestoreError> {
        self.stream.flush().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> RestoreError {
        RestoreError::Stream { written: self.position, size: self.size, source }
    }

    fn zeros_to(&mut self, end: u64) -> Result<(), RestoreError> {
        let zeros = vec![0; ZEROS];
        while self.position < end {
            let length = usize::try_from(end - self.position).unwrap_or(ZEROS).min(ZEROS);
            self.write(zeros.get(..length).unwrap_or_default())?;
        }
        Ok(())
    }
}

impl SegmentSink for InOrderStream<'_> {
    fn segment(&self, index: SegmentIndex, _: SegmentKey, plain: &[u8]) -> Result<(), RestoreError> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.zeros_to(self.geometry.offset(index))?;
        output.write(plain)
    }

    fn damaged(&self, _: &DamagedSegment) -> Result<(), RestoreError> {
        // Its range is written as zeros before the next segment, or at the end.
        Ok(())
    }
}
