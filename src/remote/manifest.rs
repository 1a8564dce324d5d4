//! Fetching a manifest: of no more bytes than its disk can have, and verified before it is used.

use std::io::{Read, Write};

use crate::api::BackupDetails;
use crate::manifest::ManifestReader;
use crate::remote::link::Ask;
use crate::remote::tries::Tries;
use crate::remote::{RemoteRepository, part};
use crate::restore::RestoreError;
use crate::segment::{Geometry, SegmentSize};
use crate::storage::OsStorage;

/// How many bytes have to come before an answer that is cut counts as progress.
const PROGRESS: u64 = 64 << 10;

impl RemoteRepository {
    /// Fetches a backup's manifest. An answer that is cut is continued.
    ///
    /// # Errors
    ///
    /// If the service fails or refuses, or if the manifest is damaged or another one than was asked for.
    pub fn manifest(&self, backup: &str) -> Result<ManifestReader, RestoreError> {
        Ok(self.named_manifest(backup)?.1)
    }

    /// Fetches a backup's manifest, with how the service calls the backup.
    ///
    /// # Errors
    ///
    /// As [`Self::manifest`].
    pub fn named_manifest(&self, backup: &str) -> Result<(String, ManifestReader), RestoreError> {
        let details: BackupDetails = self.get(&format!("/v1/backups/{}", part(backup)))?;
        let misunderstood = |what: &dyn std::fmt::Display| RestoreError::from(self.link.misunderstood(what));
        let size =
            SegmentSize::new(u64::from(details.segment_size)).map_err(|error| misunderstood(&error))?;
        let geometry = Geometry::new(details.size_of_disk, size).map_err(|error| misunderstood(&error))?;
        let file = self.manifest_file(&details, ManifestReader::most_bytes(geometry))?;
        let manifest = ManifestReader::open(&OsStorage, file.path())?;
        manifest.verify()?;
        let info = manifest.info();
        let named = (info.backupset.to_string(), info.incremental.0, info.geometry);
        if named != (details.backupset, details.incremental, geometry) {
            return Err(misunderstood(&"it sends the manifest of another backup"));
        }
        Ok((details.backup, manifest))
    }

    fn manifest_file(
        &self,
        details: &BackupDetails,
        most: u64,
    ) -> Result<tempfile::NamedTempFile, RestoreError> {
        let failed = |source: std::io::Error| RestoreError::Target {
            operation: "write",
            path: "a temporary file for the manifest".into(),
            source,
        };
        let mut file = tempfile::NamedTempFile::new().map_err(failed)?;
        let backup = format!("{}@{}", details.backupset, details.incremental);
        let mut tries = Tries::new(&self.link);
        let mut buffer = vec![0; 1 << 16];
        let (mut written, mut progress) = (0, 0);
        loop {
            let path = format!("/v1/backups/{}/manifest?format=ekko&from={written}", part(&backup));
            let response = self.link.ask(Ask { takes_work: true, ..Ask::get(&path) }, &mut tries)?;
            let mut body =
                self.link.incoming(response.into_body().into_with_config().limit(u64::MAX).reader());
            let error = loop {
                match body.read(&mut buffer) {
                    Ok(0) => return Ok(file),
                    Ok(read) => {
                        written += read as u64;
                        if written > most {
                            let what = format!(
                                "it sends a manifest of more than {most} bytes, and its disk has none"
                            );
                            return Err(self.link.misunderstood(&what).into());
                        }
                        file.write_all(buffer.get(..read).unwrap_or_default()).map_err(failed)?;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => break error,
                }
            };
            if written >= progress + PROGRESS {
                progress = written;
                tries.progressed();
            }
            tries.failed(self.link.broken(error))?;
        }
    }
}
