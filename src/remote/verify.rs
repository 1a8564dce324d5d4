//! Comparing a disk with a backup that a service has: by fingerprints, without the backup's data.

use std::ops::Range;

use crate::api::frames::{MOST_FINGERPRINTS, ParentSegment};
use crate::check::{CheckError, FingerprintSupply, VerifyOptions, VerifySummary, verify_from};
use crate::image::Image;
use crate::manifest::ManifestReader;
use crate::progress::Progress;
use crate::remote::link::{Ask, Link};
use crate::remote::{RemoteError, RemoteRepository, part};
use crate::segment::{Fingerprint, SegmentIndex};

impl RemoteRepository {
    /// Compares every segment of a disk with a backup by BLAKE3. Holes of the disk are not read.
    ///
    /// # Errors
    ///
    /// If the disk or the service fails, or refuses.
    pub fn verify(
        &self,
        backup: &str,
        image: &dyn Image,
        options: &VerifyOptions,
        progress: &dyn Progress,
    ) -> Result<(String, VerifySummary), CheckError> {
        let (name, manifest) = self
            .named_manifest(backup)
            .map_err(|error| CheckError::Elsewhere { kind: error.kind(), source: Box::new(error) })?;
        let summary = verify_from(&mut Asked { link: &self.link }, &manifest, image, options, progress)?;
        Ok((name, summary))
    }
}

/// Fingerprints that a service is asked for.
struct Asked<'a> {
    link: &'a Link,
}

impl FingerprintSupply for Asked<'_> {
    fn fingerprints(
        &mut self,
        manifest: &ManifestReader,
        places: Range<u32>,
        _: &dyn Progress,
    ) -> Result<Vec<(SegmentIndex, Option<Fingerprint>)>, CheckError> {
        let info = manifest.info();
        let backup = format!("{}@{}", info.backupset, info.incremental);
        let mut cursor = manifest.cursor(SegmentIndex(places.start));
        let mut expected = Vec::new();
        let mut first = places.start;
        while first < places.end {
            let behind = first.saturating_add(MOST_FINGERPRINTS).min(places.end);
            let path = format!("/v1/backups/{}/fingerprints?first={first}&behind={behind}", part(&backup));
            let limit = u64::from(behind - first) * ParentSegment::LENGTH as u64;
            let frames = self.link.bytes(Ask { takes_work: true, ..Ask::get(&path) }, limit)?;
            let told = ParentSegment::decode_range(&frames, first..behind);
            let told = told.map_err(|error| self.link.misunderstood(&error))?;
            let mut told = told.iter().peekable();
            // The manifest says which segments there are: one that the service leaves out is unknown.
            for index in (first..behind).map(SegmentIndex) {
                let frame = told.next_if(|segment| segment.index == index);
                if cursor.at(index).is_some() {
                    let length = info.geometry.length(index);
                    let frame = frame.filter(|segment| segment.plain_length == length);
                    expected.push((index, frame.map(|segment| segment.fingerprint)));
                }
            }
            first = behind;
        }
        Ok(expected)
    }
}

impl From<RemoteError> for CheckError {
    fn from(error: RemoteError) -> Self {
        Self::Elsewhere { kind: error.kind(), source: Box::new(error) }
    }
}
