//! Escapes the characters of foreign text that a terminal acts on.
//!
//! Tags, names, messages of servers and guests, and the bytes of damaged files reach terminals and logs. A terminal obeys
//! some of their characters: they clear the screen, forge lines, or change the order of what a person reads. This module
//! decides which characters those are, and how they are shown. `cli::terminal` applies it to everything that the program
//! prints, and the service applies it to the JSON that it sends.

use std::borrow::Cow;
use std::fmt::Write;

/// Says whether a character must not reach a terminal as it is.
///
/// - Control characters: C0 (with tab and newline), DEL and C1.
/// - Line and paragraph separators, which some programs show as a new line.
/// - Marks, embeddings, overrides and isolates of bidirectional text: they reorder the letters around them ("Trojan
///   Source", CVE-2021-42574).
/// - Characters without a width: two names that look the same must print differently. Emoji and some scripts join letters
///   with U+200C and U+200D; they are shown in escaped form as well.
#[must_use]
pub const fn is_unsafe(letter: char) -> bool {
    matches!(letter,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        | '\u{2028}' | '\u{2029}'
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        | '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Says whether a text needs no look at each of its characters: printable ASCII holds nothing unsafe.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Replaces what `is_meant` names by what `escape` writes.
fn replaced(text: &str, is_meant: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if is_plain(text) || !text.chars().any(&is_meant) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_meant(letter) {
            escape(&mut shown, letter);
        } else {
            shown.push(letter);
        }
    }
    Cow::Owned(shown)
}

/// Returns a text as one line that a terminal shows and does not obey: `\n`, `\r` and `\t`, and `\u{1b}` for all others.
///
/// Backslashes stay as they are, so paths and patterns stay readable; a program that needs the exact value reads JSON.
///
/// ```
/// assert_eq!(ekko::escape::escaped("web\u{1b}[2J\nroot"), "web\\u{1b}[2J\\nroot");
/// assert_eq!(ekko::escape::escaped("B\u{fc}ro 3"), "B\u{fc}ro 3");
/// ```
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    replaced(text, is_unsafe, |shown, letter| match letter {
        '\n' => shown.push_str("\\n"),
        '\r' => shown.push_str("\\r"),
        '\t' => shown.push_str("\\t"),
        // A String takes everything.
        _ => drop(write!(shown, "\\u{{{:x}}}", u32::from(letter))),
    })
}

/// Returns a JSON document with the same values and without an unsafe character, but for the newlines between its parts.
///
/// Outside of strings JSON has only ASCII, and serializers escape C0 in strings: each other unsafe character stands in a
/// string, where `\u001b` means the same.
///
/// ```
/// assert_eq!(ekko::escape::escaped_json("{\"tag\":\"a\u{9b}\"}"), "{\"tag\":\"a\\u009b\"}");
/// ```
#[must_use]
pub fn escaped_json(document: &str) -> Cow<'_, str> {
    let is_meant = |letter| is_unsafe(letter) && letter != '\n';
    replaced(document, is_meant, |shown, letter| {
        for unit in letter.encode_utf16(&mut [0; 2]) {
            // A String takes everything.
            let _ = write!(shown, "\\u{unit:04x}");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control_characters() -> impl Iterator<Item = char> {
        ('\0'..='\u{1f}').chain('\u{7f}'..='\u{9f}')
    }

    #[test]
    fn every_control_character_and_no_other_ascii_is_escaped() {
        assert_eq!(control_characters().count(), 65);
        for letter in control_characters() {
            assert!(is_unsafe(letter), "{letter:?}");
            let shown = escaped(letter.encode_utf8(&mut [0; 4])).into_owned();
            assert!(shown.starts_with('\\') && is_plain(&shown), "{letter:?}: {shown}");
        }
        let all: String = (' '..='~').collect();
        assert!(matches!(escaped(&all), Cow::Borrowed(text) if text == all));
    }

    #[test]
    fn text_that_reorders_or_hides_other_text_is_escaped_and_other_scripts_are_not() {
        for (text, shown) in [
            ("gpj.\u{202e}exe", "gpj.\\u{202e}exe"),
            ("a\u{2028}b\u{2029}c", "a\\u{2028}b\\u{2029}c"),
            ("\u{2066}x\u{2069}", "\\u{2066}x\\u{2069}"),
            ("w\u{200b}eb\u{feff}", "w\\u{200b}eb\\u{feff}"),
            ("x\u{e0041}", "x\\u{e0041}"),
            (
                "B\u{fc}ro \u{65e5}\u{672c} \u{645}\u{631} e\u{301}",
                "B\u{fc}ro \u{65e5}\u{672c} \u{645}\u{631} e\u{301}",
            ),
            ("C:\\x \"q\" 'q'", "C:\\x \"q\" 'q'"),
        ] {
            assert_eq!(escaped(text), shown);
        }
    }

    #[test]
    fn json_keeps_its_value_and_its_own_newlines() {
        let all: String = control_characters().chain("\u{202e}\u{200d}\u{e0041}\\\"\u{fc}".chars()).collect();
        for text in [
            serde_json::to_string(&all).unwrap(),
            serde_json::to_string_pretty(&serde_json::json!({ &all: [&all, 1] })).unwrap(),
        ] {
            let safe = escaped_json(&text);
            assert!(safe.chars().all(|letter| letter == '\n' || !is_unsafe(letter)), "{safe}");
            let [was, is] = [&text, &*safe].map(|it| serde_json::from_str::<serde_json::Value>(it).unwrap());
            assert_eq!(was, is);
            assert_eq!(safe.matches('\n').count(), text.matches('\n').count());
        }
    }
}
