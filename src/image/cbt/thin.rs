//! `thin_delta` of the thin-provisioning-tools: XML, in blocks of the pool.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::image::cbt::{ChangeList, ListBuilder, ListError, ListKind, RangeState};

/// The unit of `data_block_size`, in bytes.
const SECTOR: u64 = 512;

/// Reads the differences between two thin devices, of which the second (`right`) is the disk as it is now.
///
/// What only the first has was discarded since. It reads as zeros unless the device has an external origin, which the list
/// does not say; so it is read.
pub(super) fn parse(text: &[u8], size: u64) -> Result<ChangeList, ListError> {
    let text = std::str::from_utf8(text).map_err(ListError::malformed)?;
    let mut reader = Reader::from_str(text);
    let mut builder = ListBuilder::new(ListKind::ThinDelta, size);
    let (mut block, mut inside, mut complete) = (None, false, false);
    loop {
        match reader.read_event().map_err(ListError::malformed)? {
            Event::Start(element) | Event::Empty(element) => match element.name().as_ref() {
                "superblock" => {
                    let sectors = number(&element, "data_block_size")?;
                    let bytes = sectors.checked_mul(SECTOR).filter(|bytes| *bytes > 0);
                    block = Some(bytes.ok_or_else(|| ListError::malformed("its blocks have no size"))?);
                }
                "diff" => inside = true,
                kind if inside => {
                    let state = match kind {
                        "same" => RangeState::Unchanged,
                        "different" | "right_only" | "left_only" => RangeState::Data,
                        _ => return Err(unknown(&element)),
                    };
                    let block = block.ok_or_else(|| ListError::malformed("its blocks have no size"))?;
                    let bytes = |blocks: u64| {
                        blocks.checked_mul(block).ok_or_else(|| ListError::malformed("a place is too large"))
                    };
                    let (offset, length) =
                        (bytes(number(&element, "begin")?)?, bytes(number(&element, "length")?)?);
                    // The last block of a device may be cut short.
                    let end = offset.saturating_add(length);
                    let cut = if end > size && end - size < block { end - size } else { 0 };
                    builder.add(offset, length - cut.min(length), state)?;
                }
                _ => return Err(unknown(&element)),
            },
            Event::End(element) if element.name().as_ref() == "diff" => {
                inside = false;
                complete = true;
            }
            Event::Eof => break,
            _ => {}
        }
    }
    if !complete {
        return Err(ListError::malformed("it is cut off"));
    }
    let list = builder.finish()?;
    let granularity = block.map_or(list.granularity, |block| 1 << block.trailing_zeros());
    Ok(ChangeList { granularity, ..list })
}

fn unknown(element: &BytesStart<'_>) -> ListError {
    ListError::malformed(format_args!("<{}> is not known", element.name().as_ref()))
}

fn number(element: &BytesStart<'_>, key: &str) -> Result<u64, ListError> {
    let value = element.try_get_attribute(key).map_err(ListError::malformed)?;
    let value = value.and_then(|it| it.value.parse().ok());
    value.ok_or_else(|| ListError::malformed(format_args!("{key} is no number")))
}
