//! Nothing that a terminal obeys reaches stdout, stderr or a log, wherever it comes from.
//!
//! Each test feeds all 65 control characters (C0, DEL, C1), and a few characters that reorder or hide text, to every field
//! of a kind of input. It looks at all output of all commands: no such character, and no line that the data made up.

mod repositories;
mod servers;
mod strings;

use std::process::{Command, Stdio};

use crate::harness::{Ran, World, ran};

/// What a forged line begins with.
const FORGED: &str = "FORGED";

/// Characters that are no controls, and that reorder, hide or break text.
const TRICKS: &str = "\u{202e}\u{2066}\u{2028}\u{200b}\u{feff}";

/// Returns hostile text: `label`, all 65 control characters, and lines that look as if the program had written them.
fn evil(label: &str) -> String {
    let controls: String = ('\0'..='\u{1f}').chain('\u{7f}'..='\u{9f}').collect();
    format!("{label}{controls}{TRICKS}\n{FORGED} a\r{FORGED} b\u{1b}[2J\u{9b}2J")
}

/// The same for what can be an argument or the name of a file: without NUL and slashes.
fn evil_name(label: &str) -> String {
    evil(label).replace('\0', "")
}

/// Looks at all that a command has said.
fn assert_harmless(what: &str, said: &[u8]) {
    // Characters that are no UTF-8 at all would be replaced here: a lone byte of C1 is one.
    let text = std::str::from_utf8(said).unwrap_or_else(|error| panic!("{what}: {error}"));
    for letter in text.chars() {
        let is_bad = letter.is_control() && letter != '\n' || TRICKS.contains(letter);
        assert!(!is_bad, "{what}: {letter:?} in {text:?}");
    }
    assert!(!text.lines().any(|line| line.starts_with(FORGED)), "{what}: a line was forged: {text}");
}

/// All that was said in a test, to see that the hostile text was among it.
#[derive(Default)]
struct Said(String);

impl Said {
    fn hear(&mut self, what: &str, ran: &Ran) {
        assert_ne!(ran.code, -1, "{what}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{what}: {}", ran.stderr);
        assert_harmless(what, &ran.stdout);
        assert_harmless(what, ran.stderr.as_bytes());
        self.0.push_str(&String::from_utf8_lossy(&ran.stdout));
        self.0.push_str(&ran.stderr);
    }

    /// Runs a command in both forms of output, with a log of everything.
    fn hear_both(&mut self, world: &World, arguments: &[&str]) {
        self.hear_of(world, "R", arguments);
    }

    /// The same with a repository that is elsewhere.
    fn hear_of(&mut self, world: &World, repository: &str, arguments: &[&str]) {
        for form in ["-vv", "--json"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ekko"));
            command.current_dir(world.path(".")).arg("-r").arg(repository).arg(form).args(arguments);
            self.hear_command(command.stdin(Stdio::null()));
        }
    }

    fn hear_command(&mut self, command: &mut Command) {
        let what = format!("{command:?}");
        self.hear(&what, &ran(command.output().unwrap()));
    }

    /// Expects that the text with this label was shown, and escaped.
    fn assert_held(&self, label: &str) {
        let mut found = self.0.match_indices(label);
        let is_escaped = |(at, _)| self.0[at + label.len()..].starts_with('\\');
        assert!(found.any(is_escaped), "{label} was not shown: {}", self.0);
    }
}
