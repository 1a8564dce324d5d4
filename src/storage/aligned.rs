//! Memory that a disk can be read into, and a file written from, past the page cache.

/// What the memory, the offset and the length of a direct read or write are multiples of, in bytes: at least what any disk's
/// logical block is.
pub const DIRECT: usize = 4096;

/// A buffer that begins on a page, as a direct read or write needs it. Filled with zeros when it is made.
#[derive(Debug)]
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    /// Makes one of `length` bytes.
    pub fn new(length: usize) -> Self {
        let bytes = vec![0; length.saturating_add(DIRECT)];
        let start = bytes.as_ptr().align_offset(DIRECT).min(DIRECT);
        Self { bytes, start }
    }

    /// Returns its first `length` bytes, or all if it has fewer; they hold what was put there before.
    pub fn of(&mut self, length: usize) -> &mut [u8] {
        let room = self.bytes.get_mut(self.start..).unwrap_or_default();
        let length = length.min(room.len());
        room.get_mut(..length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_on_a_page_and_has_the_room_that_was_asked_for() {
        for length in [0, 1, 4096, 4097, 4 << 20] {
            let mut buffer = AlignedBuffer::new(length);
            let bytes = buffer.of(length);
            assert_eq!((bytes.as_ptr().align_offset(DIRECT), bytes.len()), (0, length));
        }
    }
}
