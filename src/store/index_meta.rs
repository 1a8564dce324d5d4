//! The record with the index's own numbers, and the sum over all others.

use crate::storage::{FieldReader, FieldWriter, TooShort};
use crate::store::entry::INDEX_FORMAT;

/// What the index says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// The sum over all other records: the BLAKE3 of key and value, added lane by lane.
    pub(super) sum: [u64; 4],
    /// Raised before anything is freed or acknowledged.
    pub(super) generation: u64,
    /// How many segments there are.
    pub(super) segments: u64,
    /// How many of them have a twin number above 0.
    pub(super) twins: u64,
    /// How many of them are lost.
    pub(super) lost: u64,
    /// The number of the next task.
    pub(super) next_task: u64,
    /// The highest number that a pack has had.
    pub(super) last_pack: u64,
}

impl Meta {
    pub(super) fn encode(&self) -> Vec<u8> {
        let writer = FieldWriter::default().u64(INDEX_FORMAT);
        let writer = self.sum.into_iter().fold(writer, FieldWriter::u64);
        let writer = writer.u64(self.generation).u64(self.segments).u64(self.twins).u64(self.lost);
        writer.u64(self.next_task).u64(self.last_pack).finish()
    }

    /// Reads the record back; nothing if another release wrote it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>, TooShort> {
        let mut reader = FieldReader::new(bytes);
        if reader.u64()? != INDEX_FORMAT {
            return Ok(None);
        }
        let sum = [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
        Ok(Some(Self {
            sum,
            generation: reader.u64()?,
            segments: reader.u64()?,
            twins: reader.u64()?,
            lost: reader.u64()?,
            next_task: reader.u64()?,
            last_pack: reader.u64()?,
        }))
    }

    /// Adds a record to the sum.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.change(key, value, u64::wrapping_add);
    }

    /// Takes a record out of the sum.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) {
        self.change(key, value, u64::wrapping_sub);
    }

    fn change(&mut self, key: &[u8], value: &[u8], part: fn(u64, u64) -> u64) {
        let length = (key.len() as u64).to_le_bytes();
        let hash = blake3::Hasher::new().update(&length).update(key).update(value).finalize();
        let (lanes, _) = hash.as_bytes().as_chunks::<8>();
        for (lane, bytes) in self.sum.iter_mut().zip(lanes) {
            *lane = part(*lane, u64::from_le_bytes(*bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_does_not_depend_on_the_order_and_knows_key_from_value() {
        let (mut one, mut other) = (Meta::default(), Meta::default());
        one.add(b"a", b"1");
        one.add(b"b", b"2");
        other.add(b"b", b"2");
        other.add(b"c", b"3");
        other.add(b"a", b"1");
        other.take(b"c", b"3");
        assert_eq!(one, other);
        let mut shifted = Meta::default();
        shifted.add(b"a1", b"");
        shifted.add(b"b", b"2");
        assert_ne!(one, shifted);
        assert_eq!(Meta::decode(&one.encode()), Ok(Some(one)));
    }
}
