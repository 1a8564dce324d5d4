//! Reading and writing fixed layouts, field after field, little-endian.
//!
//! Every header of ours is written by a [`FieldWriter`] and read by a [`FieldReader`] in the same
//! order; neither can leave its bounds.

/// The bytes ended before the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes end in the middle of a field")]
pub struct TooShort;

/// Appends fields to a buffer.
#[derive(Debug, Default)]
#[must_use]
pub struct FieldWriter {
    bytes: Vec<u8>,
}

impl FieldWriter {
    /// Makes a writer whose buffer has room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    /// Appends bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends one byte.
    pub fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    /// Appends a `u16`.
    pub fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a `u32`.
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a `u64`.
    pub fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends zeros until the buffer has `length` bytes.
    pub fn zeros_to(mut self, length: usize) -> Self {
        debug_assert!(self.bytes.len() <= length, "the fields are longer than their header");
        self.bytes.resize(length, 0);
        self
    }

    /// Returns what was appended so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the buffer.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes fields from the front of some bytes.
#[derive(Clone, Debug)]
pub struct FieldReader<'a> {
    bytes: &'a [u8],
}

impl<'a> FieldReader<'a> {
    /// Makes a reader of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Takes the next `N` bytes as they are.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], TooShort> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().ok_or(TooShort)?;
        self.bytes = rest;
        Ok(*head)
    }

    /// Takes one byte.
    pub fn u8(&mut self) -> Result<u8, TooShort> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Takes a `u16`.
    pub fn u16(&mut self) -> Result<u16, TooShort> {
        self.array().map(u16::from_le_bytes)
    }

    /// Takes a `u32`.
    pub fn u32(&mut self) -> Result<u32, TooShort> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes a `u64`.
    pub fn u64(&mut self) -> Result<u64, TooShort> {
        self.array().map(u64::from_le_bytes)
    }

    /// Takes `length` bytes and says whether all of them are zero, as reserved room must be.
    pub fn reserved(&mut self, length: usize) -> Result<bool, TooShort> {
        let (head, rest) = self.bytes.split_at_checked(length).ok_or(TooShort)?;
        self.bytes = rest;
        Ok(head.iter().all(|byte| *byte == 0))
    }

    /// Says whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_the_order_they_were_written() {
        let bytes = FieldWriter::default().u8(1).u16(2).u32(3).u64(4).bytes(b"ab").zeros_to(20).finish();
        let mut reader = FieldReader::new(&bytes);
        assert_eq!((reader.u8(), reader.u16(), reader.u32(), reader.u64()), (Ok(1), Ok(2), Ok(3), Ok(4)));
        assert_eq!(reader.array::<2>(), Ok(*b"ab"));
        assert_eq!(reader.reserved(3), Ok(true));
        assert!(reader.is_empty());
        assert_eq!(reader.u8(), Err(TooShort));
    }
}
