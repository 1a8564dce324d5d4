//! Texts that people, guests and clients give, each kind with its rules.
//!
//! A text that Ekko writes down is one of these. What an earlier release wrote stays readable whatever it is: the records
//! that are read from files hold plain strings.

use std::fmt;
use std::str::FromStr;

/// A text that breaks the rules of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot use \"{text}\" as {what}: it has 1 to {longest} bytes, and {rule}")]
pub struct InvalidText {
    /// Its beginning, escaped.
    text: String,
    what: &'static str,
    longest: usize,
    rule: &'static str,
}

const NO_CONTROL: &str = "no control characters";

fn check(
    text: &str,
    what: &'static str,
    longest: usize,
    rule: &'static str,
    fits: impl Fn(char) -> bool,
) -> Result<(), InvalidText> {
    let is_fit = !text.is_empty() && text.len() <= longest;
    if is_fit && text.chars().all(|letter| !letter.is_control() && fits(letter)) {
        return Ok(());
    }
    let text = text.chars().take(64).flat_map(char::escape_debug).collect();
    Err(InvalidText { text, what, longest, rule })
}

/// Makes a kind of text.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $longest:literal, $rule:expr, $fits:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The most bytes that it has.
            pub const LONGEST: usize = $longest;

            /// Checks `text` and makes one of it.
            ///
            /// # Errors
            /// It breaks the rules.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidText> {
                let text = text.into();
                check(&text, $what, $longest, $rule, $fits)?;
                Ok(Self(text))
            }

            /// Returns it as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidText;

            fn from_str(text: &str) -> Result<Self, InvalidText> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text! {
    /// A word that a backup is found by: 1 to 64 bytes without commas, spaces or control characters.
    Tag, "a tag", 64, "no commas, spaces or control characters", |letter| !matches!(letter, ',' | ' ')
}

text! {
    /// A person's note: 1 to 256 bytes without control characters.
    Note, "a note", 256, NO_CONTROL, |_| true
}

text! {
    /// Who else uses a source: 1 to 1,024 bytes without control characters.
    SourceUse, "what uses the source", 1024, NO_CONTROL, |_| true
}

text! {
    /// The path or URL of a source: 1 to 1,024 bytes without control characters.
    SourceName, "the name of a source", 1024, NO_CONTROL, |_| true
}

text! {
    /// The name of a machine that reads a source: 1 to 255 bytes without control characters.
    HostName, "the name of a host", 255, NO_CONTROL, |_| true
}

text! {
    /// How a source changed while it was read: 1 to 1,024 bytes without control characters.
    Inconsistency, "how the source changed", 1024, NO_CONTROL, |_| true
}

text! {
    /// What a tracking of changes is called: 1 to 1,024 bytes without control characters.
    TrackingId, "the name of a tracking of changes", 1024, NO_CONTROL, |_| true
}

/// Makes a text of `text` that fits: control characters are escaped, and what is too long is cut. If nothing is left, it is
/// `otherwise`.
fn fitted(text: &str, longest: usize, otherwise: &str) -> String {
    let mut fit = String::new();
    for letter in text.chars() {
        let escaped: String =
            if letter.is_control() { letter.escape_default().collect() } else { letter.into() };
        if fit.len() + escaped.len() > longest {
            break;
        }
        fit.push_str(&escaped);
    }
    if fit.is_empty() { otherwise.to_owned() } else { fit }
}

impl SourceUse {
    /// Takes down what this machine says: control characters are escaped, and what is too long is cut.
    pub fn of_this_machine(text: &str) -> Self {
        Self(fitted(text, Self::LONGEST, "somebody"))
    }
}

impl SourceName {
    /// Takes down what this machine says: control characters are escaped, and what is too long is cut.
    pub fn of_this_machine(text: &str) -> Self {
        Self(fitted(text, Self::LONGEST, "unknown"))
    }
}

impl HostName {
    /// Takes down what this machine says: control characters are escaped, and what is too long is cut.
    pub fn of_this_machine(text: &str) -> Self {
        Self(fitted(text, Self::LONGEST, "unknown"))
    }
}

impl Inconsistency {
    /// Takes down what this machine says: control characters are escaped, and what is too long is cut.
    pub fn of_this_machine(text: &str) -> Self {
        Self(fitted(text, Self::LONGEST, "the source changed"))
    }
}

/// The tags of a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags(Vec<Tag>);

/// More tags than a backup has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot give a backup {count} tags: {} is the most", Tags::MOST)]
pub struct TooManyTags {
    count: usize,
}

impl Tags {
    /// How many a backup has at most.
    pub const MOST: usize = 16;

    /// Makes a list of tags.
    ///
    /// # Errors
    /// They are too many.
    pub fn new(tags: Vec<Tag>) -> Result<Self, TooManyTags> {
        if tags.len() <= Self::MOST { Ok(Self(tags)) } else { Err(TooManyTags { count: tags.len() }) }
    }

    /// Returns them as texts.
    pub fn to_strings(&self) -> Vec<String> {
        self.0.iter().map(|tag| tag.0.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_has_a_longest_length_and_none_has_any_of_the_65_control_characters() {
        type IsOk = fn(&str) -> bool;
        let kinds: [(usize, IsOk); 6] = [
            (Tag::LONGEST, |text| Tag::new(text).is_ok()),
            (Note::LONGEST, |text| Note::new(text).is_ok()),
            (SourceUse::LONGEST, |text| SourceUse::new(text).is_ok()),
            (TrackingId::LONGEST, |text| TrackingId::new(text).is_ok()),
            (SourceName::LONGEST, |text| SourceName::new(text).is_ok()),
            (HostName::LONGEST, |text| HostName::new(text).is_ok()),
        ];
        let controls: Vec<char> = ('\0'..='\u{ff}').filter(|letter| letter.is_control()).collect();
        assert_eq!(controls.len(), 65);
        for (longest, is_ok) in kinds {
            assert!(is_ok("x") && is_ok("Büro\u{301}") && is_ok(&"x".repeat(longest)));
            assert!(!is_ok("") && !is_ok(&"x".repeat(longest + 1)));
            assert!(!is_ok(&"ü".repeat(longest / 2 + 1)), "bytes are counted");
            for letter in &controls {
                assert!(!is_ok(&format!("a{letter}b")), "{letter:?}");
            }
        }
        for text in ["a,b", "a b"] {
            assert!(Tag::new(text).is_err() && Note::new(text).is_ok());
        }
        let error = Tag::new("\u{1b}[2J").unwrap_err().to_string();
        assert!(error.starts_with("cannot use \"\\u{1b}[2J\" as a tag: it has 1 to 64 bytes"), "{error}");
    }

    #[test]
    fn what_this_machine_says_is_taken_down_escaped_and_cut() {
        let of = |text: &str| SourceUse::of_this_machine(text);
        assert_eq!(of("mounted on /mnt\n\u{9b}x").as_str(), "mounted on /mnt\\n\\u{9b}x");
        for text in ["", "\n", &"\n".repeat(2000), &"ü".repeat(2000)] {
            let fit = of(text);
            assert_eq!(SourceUse::new(fit.as_str()), Ok(fit));
        }
    }

    #[test]
    fn a_backup_has_sixteen_tags_at_most() {
        let tags = |count| Tags::new(vec![Tag::new("x").unwrap(); count]);
        assert_eq!(tags(Tags::MOST).unwrap().to_strings().len(), 16);
        assert!(tags(Tags::MOST + 1).unwrap_err().to_string().contains("16"));
    }
}
