//! Hostile qcow2 images: no panic, no read without an end, and nothing but what lies in the file.
//!
//! The image is recognised, not said to be qcow2, so it can name no other file.
#![no_main]

mod shared;

use std::sync::LazyLock;

use ekko::image::{Extent, ImageOptions, open_image};
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(shared::folder);

/// How much of a disk is looked at: an image may say any size.
const MOST: u64 = 64 << 20;

fuzz_target!(|bytes: &[u8]| {
    let path = FOLDER.path().join("disk.qcow2");
    std::fs::write(&path, bytes).unwrap();
    let options = ImageOptions { snapshot: (bytes.len() % 2 == 1).then(|| "1".to_owned()), ..ImageOptions::default() };
    let Ok(opened) = open_image(&path, &options) else { return };
    let image = opened.image;
    let mut buffer = vec![0; 100_000];
    let mut at = 0;
    for _ in 0..1000 {
        let Ok(Some(Extent { offset, length })) = image.next_data(at) else { return };
        assert!(offset >= at && length > 0 && offset + length <= image.size());
        let part = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        let _ = image.read_at(&mut buffer[..part], offset);
        at = offset + length;
        if at > MOST {
            return;
        }
    }
});
