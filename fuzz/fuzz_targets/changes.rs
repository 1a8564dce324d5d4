//! Hostile lists of changes: whatever the bytes are, what is read of them is in order and on the disk.
#![no_main]

use ekko::image::ChangeList;
use libfuzzer_sys::fuzz_target;

// The size of the disk (8 bytes, big-endian), then the list.
fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first_chunk() else { return };
    let size = u64::from_be_bytes(*size);
    let Ok(list) = ChangeList::parse(bytes, size) else { return };
    assert!(list.granularity().is_power_of_two());
    let mut end = 0;
    for (range, _) in list.ranges() {
        assert!(range.start >= end && range.start < range.end && range.end <= size);
        end = range.end;
    }
});
