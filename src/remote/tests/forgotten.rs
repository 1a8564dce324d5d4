//! A backup to a service that forgets what it knew.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::api::frames::encode_answer;
use crate::api::{Committed, SessionState};
use crate::backup::BackupOptions;
use crate::codec::CompressionSetting;
use crate::image::{Extent, Image, ImageError};
use crate::manifest::ImageName;
use crate::progress::Silent;
use crate::remote::tests::repository;
use crate::remote::tests::scripted::{Answer, Scripted, answer};

const SIZE: u32 = 64 << 10;

/// A disk of one segment.
#[derive(Debug)]
struct Ones;

impl Image for Ones {
    fn path(&self) -> &Path {
        Path::new("ones")
    }

    fn size(&self) -> u64 {
        u64::from(SIZE)
    }

    fn next_data(&self, from: u64) -> Result<Option<Extent>, ImageError> {
        Ok((from < self.size()).then(|| Extent { offset: from, length: self.size() - from }))
    }

    fn read_at(&self, buffer: &mut [u8], _: u64) -> Result<(), ImageError> {
        buffer.fill(1);
        Ok(())
    }

    fn verify_unchanged(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

fn state() -> Answer {
    let state = SessionState {
        session: "s".to_owned(),
        name: "web".to_owned(),
        backupset: uuid::Uuid::nil().to_string(),
        incremental: 0,
        size_of_disk: u64::from(SIZE),
        segment_size: SIZE,
        parent_size_of_disk: None,
        has_parent: false,
        parent: None,
        compression: "none".to_owned(),
        entries: 0,
        silence_seconds: 600,
    };
    answer(201, &[], &serde_json::to_vec(&state).unwrap())
}

fn committed() -> Answer {
    let committed = Committed {
        backup: "web@0".to_owned(),
        backupset: uuid::Uuid::nil().to_string(),
        number: 0,
        incremental: 0,
        timestamp: "2026-01-02T03:04:05Z".to_owned(),
        healed_segments: 0,
    };
    answer(200, &[], &serde_json::to_vec(&committed).unwrap())
}

#[test]
fn a_segment_that_was_known_and_is_forgotten_when_it_is_named_is_sent_then() {
    let refused = br#"{"kind":"conflict","status":409,"title":"t","detail":"not sent","request_id":"r"}"#;
    let (named, asked) = (AtomicU32::new(0), AtomicU32::new(0));
    let service = Scripted::new(move |path, _| match path {
        "/v1/sessions" => state(),
        // It is known at first, and not any longer when it is asked about again.
        "/v1/sessions/s/lacking" => {
            answer(200, &[], &encode_answer(&[asked.fetch_add(1, Ordering::AcqRel) > 0]))
        }
        "/v1/sessions/s/entries?part=0" if named.fetch_add(1, Ordering::AcqRel) == 0 => {
            answer(409, &[], refused)
        }
        "/v1/sessions/s/commit?parts=1" => committed(),
        _ => answer(204, &[], b""),
    });
    let (name, compression) = (ImageName::new("web").unwrap(), CompressionSetting::default());
    let options = BackupOptions::new(compression, 1);
    let made = repository(&service.address).back_up(&name, &Ones, None, &options, &Silent).unwrap();
    assert_eq!(made.backup.id.to_string(), "web@0");
    let asked = service.asked();
    let count = |what: &str| asked.iter().filter(|head| head.starts_with(what)).count();
    assert_eq!(count("POST /v1/sessions "), 2, "{asked:?}");
    assert_eq!(count("POST /v1/sessions/s/segments"), 1, "{asked:?}");
    assert_eq!(count("POST /v1/sessions/s/entries"), 2, "{asked:?}");
}
