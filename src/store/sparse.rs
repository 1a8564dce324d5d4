//! Where holes give nothing back: what lives in a pack in which little does is moved, and the pack removed.

use crate::codec::Decoder;
use crate::error::ErrorKind;
use crate::store::StoreError;
use crate::store::entry::Change;
use crate::store::gc::Collector;
use crate::store::pack::{
    ContentsEntry, PackNumber, PackReader, RecordHeader, RecordKind, RecordPlace, SegmentMeta,
};
use crate::store::writer::Moved;

impl Collector<'_> {
    /// Returns the packs of which less than a third lives, where punching holes gives nothing back.
    pub fn sparse_packs(&self) -> Result<Vec<PackNumber>, StoreError> {
        let packs = self.store.packs()?;
        let sparse = packs.iter().filter(|(number, pack)| {
            pack.is_sealed()
                && **number < self.horizon.pack
                && pack.living_bytes.saturating_mul(3) < pack.size
        });
        let mut sparse: Vec<_> =
            sparse.filter(|(_, pack)| pack.living > 0).map(|(number, _)| *number).collect();
        if self.holes {
            return Ok(Vec::new());
        }
        sparse.sort_unstable();
        Ok(sparse)
    }

    /// Copies what lives in a pack to the one that is appended to, and its dead records as far as they are needed.
    /// When this returns, the copies are durable and the index names them; if all could be copied, the pack is to be
    /// removed. Returns how many bytes were copied.
    pub fn move_living(&self, number: PackNumber, problems: &mut Vec<String>) -> Result<u64, StoreError> {
        let pack = match PackReader::open(self.storage.as_ref(), self.folder, number) {
            Ok(pack) => pack,
            Err(error) => {
                problems.push(error.to_string());
                return Ok(0);
            }
        };
        let mut decoder = Decoder::new()?;
        let (mut stored, mut plain) = (Vec::new(), Vec::new());
        let entries = match pack.contents() {
            Ok(Some(entries)) => entries,
            unread => {
                let damaged = pack.damaged(0, "its table of contents cannot be read");
                problems.push(unread.err().unwrap_or(damaged).to_string());
                return Ok(0);
            }
        };
        let (mut moved, mut whole) = (0, true);
        for entry in entries.iter().filter(|entry| entry.kind == RecordKind::Segment) {
            let place = RecordPlace { pack: number, offset: entry.offset };
            if self.store.lookup(entry.key)?.is_none_or(|indexed| indexed.place() != place) {
                // A copy that was not found to be one too many may be the one that is needed.
                whole &= pack.record(entry.offset).is_err_and(|error| error.kind() != ErrorKind::Io);
                continue;
            }
            let length = u32::try_from(entry.stored_length).unwrap_or(u32::MAX);
            match pack.segment(entry.key, entry.offset, length, &mut decoder, &mut stored, &mut plain) {
                Ok(record) => {
                    self.copy(entry, &record, &stored, Moved { place, time: record.time })?;
                    moved += entry.span();
                }
                Err(error) => {
                    problems.push(error.to_string());
                    whole = false;
                }
            }
        }
        self.store.flush()?;
        if whole && let Some(dead) = self.needed_dead(number, self.pack_ids()?.as_ref()) {
            let others: Vec<_> = dead.into_iter().filter(|dead| dead.pack != pack.header().id()).collect();
            if !others.is_empty() {
                self.store.bury(others)?;
            }
            self.store.apply(vec![Change::Settle(number, 0)])?;
            self.store.drop_packs(vec![number])?;
        }
        Ok(moved)
    }

    fn copy(
        &self,
        entry: &ContentsEntry,
        record: &RecordHeader,
        stored: &[u8],
        from: Moved,
    ) -> Result<(), StoreError> {
        let meta = SegmentMeta {
            key: entry.key,
            fingerprint: entry.fingerprint,
            plain_length: entry.plain_length,
            codec: record.codec()?,
        };
        let mut buffer = self.store.buffer()?;
        buffer.restart().extend_from_slice(RecordHeader::payload(stored));
        self.store.relocate(meta, buffer, from)
    }
}
