//! `rbd diff` as it is for people: a heading, then offset, length and type in columns.

use crate::image::cbt::{ChangeList, ListBuilder, ListError, ListKind, RangeState};

pub(super) fn parse(text: &[u8], size: u64) -> Result<ChangeList, ListError> {
    let text = std::str::from_utf8(text).map_err(|_| ListError::Unknown)?;
    let mut lines = text.lines();
    let heading: Vec<_> = lines.next().unwrap_or_default().split_whitespace().collect();
    if heading != ["Offset", "Length", "Type"] {
        return Err(ListError::Unknown);
    }
    let mut builder = ListBuilder::new(ListKind::RbdDiffText, size);
    for line in lines {
        let malformed = || ListError::malformed(format_args!("{line:?} is no line of rbd diff"));
        let mut fields = line.split_whitespace();
        let mut number = || fields.next().and_then(|field| field.parse::<u64>().ok()).ok_or_else(malformed);
        let (offset, length) = (number()?, number()?);
        let state = match (fields.next(), fields.next()) {
            (Some("data"), None) => RangeState::Data,
            (Some("zero"), None) => RangeState::Zero,
            _ => return Err(malformed()),
        };
        builder.add(offset, length, state)?;
    }
    builder.finish()
}
