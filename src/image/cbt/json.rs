//! Lists in JSON: an array of objects, told apart by their keys. Read one by one, so that only the ranges are kept.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::image::cbt::{ChangeList, ListBuilder, ListError, ListKind, RangeState};

/// The keys of all programs.
#[derive(Deserialize)]
struct Item {
    offset: Option<u64>,
    length: Option<u64>,
    /// `rbd diff`: whether there is data.
    #[serde(default, deserialize_with = "truth")]
    exists: Option<bool>,
    /// `nbdinfo`: what is so, as the protocol's number and in words.
    #[serde(rename = "type")]
    number: Option<u64>,
    description: Option<String>,
    /// `qemu-img map`, where `offset` is a place in the image's file.
    start: Option<u64>,
    data: Option<bool>,
    zero: Option<bool>,
}

/// Reads `true`, or `"true"` as `rbd` writes it.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Truth {
        Bool(bool),
        Text(String),
    }
    match Truth::deserialize(deserializer)? {
        Truth::Bool(truth) => Ok(Some(truth)),
        Truth::Text(text) if text == "true" => Ok(Some(true)),
        Truth::Text(text) if text == "false" => Ok(Some(false)),
        Truth::Text(text) => {
            Err(D::Error::custom(format_args!("exists is {text:?}, neither true nor false")))
        }
    }
}

impl Item {
    /// Says which program wrote this, by the keys it has.
    fn kind(&self) -> Option<ListKind> {
        if self.exists.is_some() {
            return Some(ListKind::RbdDiff);
        }
        if self.start.is_some() {
            return Some(ListKind::QemuMap);
        }
        match (self.number?, self.description.as_deref()?) {
            (0, "clean") | (1, "dirty") => Some(ListKind::NbdDirty),
            (0, "data") | (1, "hole") | (2, "zero") | (3, "hole,zero") => Some(ListKind::NbdAllocation),
            _ => None,
        }
    }

    fn range(&self, kind: ListKind) -> Option<(u64, u64, RangeState)> {
        use RangeState::{Data, Unchanged, Zero};
        let length = self.length?;
        Some(match kind {
            ListKind::RbdDiff => (self.offset?, length, if self.exists? { Data } else { Zero }),
            ListKind::QemuMap => (self.start?, length, if self.zero? && !self.data? { Zero } else { Data }),
            ListKind::NbdDirty => (self.offset?, length, if self.number? == 1 { Data } else { Unchanged }),
            // A hole that is not said to be zeros (1) may read as anything.
            ListKind::NbdAllocation => (self.offset?, length, if self.number? >= 2 { Zero } else { Data }),
            ListKind::RbdDiffText | ListKind::ThinDelta => return None,
        })
    }
}

struct List {
    size: u64,
}

impl<'de> Visitor<'de> for List {
    type Value = Result<ChangeList, ListError>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of ranges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut builder: Option<ListBuilder> = None;
        while let Some(item) = items.next_element::<Item>()? {
            let kind =
                item.kind().ok_or_else(|| A::Error::custom("a range has a state that is not known"))?;
            let builder = builder.get_or_insert_with(|| ListBuilder::new(kind, self.size));
            let range = item.range(kind).filter(|_| builder.kind == kind);
            let (offset, length, state) =
                range.ok_or_else(|| A::Error::custom("a range has not what the others have"))?;
            if let Err(error) = builder.add(offset, length, state) {
                // The rest is of no interest.
                while items.next_element::<serde::de::IgnoredAny>()?.is_some() {}
                return Ok(Err(error));
            }
        }
        // An empty list is one of changes, of which there are none.
        Ok(builder.unwrap_or_else(|| ListBuilder::new(ListKind::RbdDiff, self.size)).finish())
    }
}

pub(super) fn parse(text: &[u8], size: u64) -> Result<ChangeList, ListError> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let list = deserializer.deserialize_seq(List { size }).map_err(ListError::malformed)?;
    deserializer.end().map_err(ListError::malformed)?;
    list
}
