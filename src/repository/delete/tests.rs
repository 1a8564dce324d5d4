//! What undeletions hold up, and what they look up.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::backup::{BackupOptions, back_up};
use crate::codec::CompressionSetting;
use crate::image::{Extent, Image, ImageError};
use crate::manifest::ImageName;
use crate::progress::Silent;
use crate::repository::{InitOptions, OpenOptions, SharedWriter};
use crate::segment::SegmentSize;

const SEGMENT: u64 = 64 << 10;

/// A disk of eight segments, of which the first one depends on the day.
#[derive(Debug)]
struct Disk(u8);

impl Image for Disk {
    fn path(&self) -> &Path {
        Path::new("disk")
    }

    fn size(&self) -> u64 {
        8 * SEGMENT
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        let length = self.size().saturating_sub(from);
        Ok((length > 0).then_some(Extent { offset: from, length }))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        for (at, byte) in (offset..).zip(buffer) {
            let place = u8::try_from(at / SEGMENT).unwrap();
            *byte = if place == 0 { 100 + self.0 } else { place };
        }
        Ok(())
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

/// Four deleted backups of one disk.
fn deleted() -> (tempfile::TempDir, SharedWriter, Vec<Deletion>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let segment_size = SegmentSize::new(SEGMENT).unwrap();
    Repository::init(&path, &InitOptions { segment_size, ..InitOptions::default() }).unwrap();
    let writer = SharedWriter::new(RepositoryWriter::open(&path, &OpenOptions::default(), &Silent).unwrap());
    let options = BackupOptions::new(CompressionSetting::default(), 1);
    let name = ImageName::new("web").unwrap();
    for day in 0..4 {
        back_up(&writer, &name, &Disk(day), &options, &Silent).unwrap();
    }
    let set = writer.repository().backupsets().unwrap().0.remove(0);
    let backups = set.backups.iter();
    let backups: Vec<_> =
        backups.map(|it| Deletion { backupset: set.id, incremental: it.incremental }).collect();
    writer.run_job(&Silent, |_: &Changed| false, |writer| writer.delete_all(&backups)).unwrap();
    (folder, writer, backups)
}

#[test]
fn backups_are_checked_before_an_undeletion_holds_up_others() {
    let (_folder, writer, backups) = deleted();
    let layout = writer.repository().layout();
    let manifest: PathBuf = layout.manifest(backups[3].backupset, backups[3].incremental);
    let away = manifest.with_extension("away");
    fs::rename(&manifest, &away).unwrap();
    writer
        .with(|writer| {
            std::thread::scope(|scope| {
                // Somebody commits a backup, which takes a while.
                let committing = writer.committing.lock().unwrap();
                let (ended, end) = mpsc::channel();
                let backups = &backups;
                scope.spawn(move || {
                    let _ = ended.send(writer.undelete_all(backups).map_err(|error| error.to_string()));
                });
                let undeleted = end.recv_timeout(Duration::from_secs(10));
                drop(committing);
                let error =
                    undeleted.expect("it waits for the lock before it has found the flaw").unwrap_err();
                assert!(error.contains("manifest"), "{error}");
            });
            Ok(())
        })
        .unwrap();
    fs::rename(&away, &manifest).unwrap();
    writer.run_job(&Silent, |_: &Changed| false, |writer| writer.undelete_all(&backups)).unwrap();
    assert_eq!(writer.repository().backupsets().unwrap().0[0].backups.len(), 4);
}

#[test]
fn an_undeletion_looks_up_what_a_backup_has_that_the_one_before_lacks() {
    let (_folder, writer, backups) = deleted();
    writer
        .with(|writer| {
            let of_sets = BTreeMap::from([(
                backups[0].backupset,
                backups.iter().map(|backup| backup.incremental).collect::<BTreeSet<_>>(),
            )]);
            let (intact, looked_up) = writer.require_intact(&of_sets).unwrap();
            assert_eq!((intact.len(), looked_up), (4, 8 + 3));
            Ok(())
        })
        .unwrap();
}
