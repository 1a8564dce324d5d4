//! The only way to stdout and stderr, in which nothing reaches a terminal that it would obey.
//!
//! Text leaves the program in lines: one `writeln!` to [`Lines`], one [`say`], one event of the log is one line, and every
//! other newline in it is escaped, because it comes from data. JSON documents keep their values and are safe to look at.
//! Two things pass as they are: the bytes of a disk, and text that is part of this program. `tests/layers.rs` holds that no
//! other file names stdout or stderr.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::tcgetwinsize;
use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter;

use crate::escape::{escaped, escaped_json};

/// The longest line of another program that is passed on in one piece, in bytes.
const LONGEST_LINE: u64 = 64 << 10;

/// Where text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn open(self) -> Box<dyn Write> {
        clear_status();
        match self {
            Self::Stdout => Box::new(BufWriter::with_capacity(1 << 16, io::stdout().lock())),
            Self::Stderr => Box::new(BufWriter::with_capacity(1 << 16, io::stderr().lock())),
        }
    }
}

/// Says whether a person may be looking at stderr.
pub(super) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Says whether stdout is a terminal.
pub(super) fn data_is_watched() -> bool {
    io::stdout().is_terminal()
}

/// Says whether nobody reads stdout or stderr any longer.
pub(super) fn is_reader_gone() -> bool {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let mut ends = [PollFd::new(&stdout, PollFlags::empty()), PollFd::new(&stderr, PollFlags::empty())];
    let looked = poll(&mut ends, Some(&Timespec::default()));
    looked.is_ok() && ends.iter().any(|end| end.revents().contains(PollFlags::ERR))
}

/// Whether a line of progress stands on the terminal.
static IS_DRAWN: AtomicBool = AtomicBool::new(false);

/// Draws a line of progress in place of the one before; an empty one only takes that away. Everything else that is written takes
/// it away first.
pub(super) fn draw_status(line: &str) {
    IS_DRAWN.store(!line.is_empty(), Ordering::Release);
    let _ = io::stderr().lock().write_all(format!("\r{}\x1b[K", escaped(line)).as_bytes());
}

fn clear_status() {
    if IS_DRAWN.load(Ordering::Acquire) {
        draw_status("");
    }
}

/// The columns of a terminal that does not say how many it has.
const USUAL_COLUMNS: usize = 80;

/// Returns how many columns stderr has.
pub(super) fn columns_of_stderr() -> usize {
    columns_of(io::stderr()).unwrap_or(USUAL_COLUMNS)
}

/// Returns how many columns a stream has; nothing if it is no terminal.
fn columns_of(stream: impl AsFd + IsTerminal) -> Option<usize> {
    if !stream.is_terminal() {
        return None;
    }
    let columns = tcgetwinsize(stream).map_or(0, |size| usize::from(size.ws_col));
    Some(if columns == 0 { USUAL_COLUMNS } else { columns })
}

/// Breaks a line between words, so that no part is as wide as a terminal of so many columns. The parts after the first are
/// indented. A word that is too long by itself stays whole, so that it can be copied.
fn broken(line: &str, columns: usize) -> Vec<String> {
    let width = |text: &str| text.chars().map(|letter| if letter.is_ascii() { 1 } else { 2 }).sum::<usize>();
    let mut parts = vec![String::new()];
    for word in line.split(' ') {
        let Some(part) = parts.last_mut() else { break };
        if part.is_empty() {
            part.push_str(word);
        } else if width(part) + 1 + width(word) < columns {
            part.push(' ');
            part.push_str(word);
        } else {
            parts.push(format!("  {word}"));
        }
    }
    parts
}

/// Says whether a person can answer a question: stdin is a terminal.
pub(super) fn can_ask() -> bool {
    io::stdin().is_terminal()
}

/// Asks a person at a terminal to agree.
pub(super) fn agrees(question: &str) -> io::Result<bool> {
    clear_status();
    let mut stderr = io::stderr().lock();
    write!(stderr, "{} [y/N] ", escaped(question))?;
    stderr.flush()?;
    let mut answer = String::new();
    // Someone who types on and on has not agreed.
    io::stdin().lock().take(LONGEST_LINE).read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

/// Lines of text for a person. Not a [`Write`]: bytes do not tell a newline of the program from one of the data.
pub(super) struct Lines {
    out: Box<dyn Write>,
    line: String,
    /// The columns that lines are broken to fit.
    columns: Option<usize>,
}

impl Lines {
    /// Begins to write lines.
    pub(super) fn to(stream: Stream) -> Self {
        Self { out: stream.open(), line: String::new(), columns: None }
    }

    /// Breaks long lines between words, if stdout is a terminal.
    pub(super) fn broken_to_fit(self) -> Self {
        Self { columns: columns_of(io::stdout()), ..self }
    }

    /// Writes one line. This is what `writeln!` calls: the newline at the end is the program's, each other one is data.
    pub(super) fn write_fmt(&mut self, line: fmt::Arguments<'_>) -> io::Result<()> {
        self.line.clear();
        // A String takes everything; what fails is the `Display` of a value.
        self.line.write_fmt(line).map_err(io::Error::other)?;
        let text = escaped(self.line.strip_suffix('\n').unwrap_or(&self.line));
        let Some(columns) = self.columns else {
            self.out.write_all(text.as_bytes())?;
            return self.out.write_all(b"\n");
        };
        broken(&text, columns).iter().try_for_each(|part| {
            self.out.write_all(part.as_bytes())?;
            self.out.write_all(b"\n")
        })
    }

    /// Makes sure that all lines are written.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Whether each line on stderr is a JSON document.
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// From now on each line on stderr is a JSON document, whoever writes it: programs read them.
pub(super) fn emit_json_lines() {
    IS_JSON.store(true, Ordering::Release);
}

/// How lines of the log begin.
const LEVELS: [&str; 5] = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];

/// A line for programs.
#[derive(Serialize)]
struct JsonLine<'a> {
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<String>,
    text: &'a str,
}

impl<'a> JsonLine<'a> {
    /// Takes the level out of a line of the log.
    fn of_log(line: &'a str) -> Self {
        let line = line.trim_start();
        match line.split_once(' ').filter(|(first, _)| LEVELS.contains(first)) {
            Some((level, text)) => Self { event: "log", level: Some(level.to_lowercase()), text },
            None => Self { event: "log", level: None, text: line },
        }
    }
}

/// Writes one line to stderr. If nobody reads it, nothing can be done.
pub(super) fn say(line: fmt::Arguments<'_>) {
    say_of("notice", line);
}

/// The same of a line that programs get as an event of this kind.
fn say_of(event: &str, line: fmt::Arguments<'_>) {
    if IS_JSON.load(Ordering::Acquire) {
        return say_json(&JsonLine { event, level: None, text: &line.to_string() });
    }
    clear_status();
    let mut text = escaped(&line.to_string()).into_owned();
    if let Some(columns) = columns_of(io::stderr()) {
        text = broken(&text, columns).join("\n");
    }
    text.push('\n');
    // In one piece, so that lines of several threads do not mix.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes a document as one line of JSON to stderr. If nobody reads it, nothing can be done.
pub(super) fn say_json(document: &impl Serialize) {
    let text = serde_json::to_string(document).unwrap_or_default();
    let line = format!("{}\n", escaped_json(&text));
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// JSON that is written as it comes to be.
pub(super) struct Json {
    out: Box<dyn Write>,
}

impl Json {
    /// Begins to write JSON.
    pub(super) fn to(stream: Stream) -> Self {
        Self { out: stream.open() }
    }

    /// Writes a document, laid out for a person, and a newline.
    pub(super) fn document(mut self, document: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(document).map_err(io::Error::from)?;
        self.write_all(text.as_bytes())?;
        self.write_all(b"\n")?;
        self.flush()
    }
}

impl Write for Json {
    /// Takes whole characters, as serializers write them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        self.out.write_all(escaped_json(text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Returns stdout for the bytes of a disk, and for digits: nothing is escaped.
pub(super) fn data() -> impl Write + Send {
    io::stdout()
}

/// Prints text that is part of this program, as it is: completion scripts and manual pages.
pub(super) fn program_text(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}

/// Says whether no argument, and no variable that stands for one, holds anything that a terminal would obey.
fn usage_is_safe() -> bool {
    let is_safe = |text: OsString| matches!(escaped(&text.to_string_lossy()), Cow::Borrowed(_));
    let is_ours = |name: &OsString| name.as_encoded_bytes().starts_with(b"EKKO_");
    let variables = std::env::vars_os().filter(|(name, _)| is_ours(name)).map(|(_, value)| value);
    std::env::args_os().chain(variables).all(is_safe)
}

/// Prints what the parser of the command line says: help and version to stdout, wrong usage to stderr.
pub(super) fn usage(error: &clap::Error) {
    if !error.use_stderr() || usage_is_safe() {
        // All of it is the program's own text, or harmless.
        let _ = error.print();
        return;
    }
    // It repeats an argument that a terminal would obey: no newline can be told from one of the argument's.
    say(format_args!("{}", error.render().to_string().trim_end()));
}

/// The event of a line that another program writes.
const OUTPUT: &str = "output";

/// Passes the output of another program on to stderr, line by line, until it ends or the line `end` comes. Neither that
/// line nor an empty line just before it is passed on.
pub(super) fn pass_on(output: &mut BufReader<impl Read>, end: &str) -> io::Result<()> {
    let (mut line, mut is_blank) = (Vec::new(), false);
    loop {
        line.clear();
        let read = output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        let text = String::from_utf8_lossy(&line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        if read > 0 && text == end {
            return Ok(());
        }
        if is_blank {
            say_of(OUTPUT, format_args!(""));
        }
        if read == 0 {
            return Ok(());
        }
        is_blank = text.is_empty();
        if !is_blank {
            say_of(OUTPUT, format_args!("{text}"));
        }
    }
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Log {
    Text,
    Json,
}

/// Takes events of the log: each comes in one call, with a newline at its end.
pub(super) struct Event(Log);

impl Write for Event {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        clear_status();
        let text = String::from_utf8_lossy(bytes);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        if self.0 == Log::Text && IS_JSON.load(Ordering::Acquire) {
            say_json(&JsonLine::of_log(line));
            return Ok(bytes.len());
        }
        let mut line = match self.0 {
            Log::Text => escaped(line).into_owned(),
            Log::Json => escaped_json(line).replace('\n', " "),
        };
        line.push('\n');
        // A log that nobody reads keeps nobody from working.
        let _ = io::stderr().lock().write_all(line.as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Event;

    fn make_writer(&'a self) -> Event {
        Event(*self)
    }
}

/// Tells of a panic, which may repeat data: to the log if that is JSON, else in lines.
pub(super) fn panicked(panic: &PanicHookInfo<'_>, log: Log) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let what = panic.payload_as_str().unwrap_or("no message");
    // The environment says whether it is wanted.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    match log {
        Log::Json => tracing::error!(thread = name, place, what, backtrace, "a thread panicked"),
        Log::Text => {
            say(format_args!("thread '{name}' panicked at {place}: {what}"));
            backtrace.iter().flat_map(|text| text.lines()).for_each(|line| say(format_args!("{line}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_has_its_level_beside_its_text() {
        let of = |line: &str| serde_json::to_value(JsonLine::of_log(line)).unwrap();
        let warned = serde_json::json!({ "event": "log", "level": "warn", "text": "it stays error=x" });
        assert_eq!(of(" WARN it stays error=x"), warned);
        let plain = serde_json::json!({ "event": "log", "text": "anything else" });
        assert_eq!(of("anything else"), plain);
    }

    #[test]
    fn long_lines_are_broken_between_words_and_never_as_wide_as_the_terminal() {
        let line = "web@0 done in 4.5 s: 8 GiB disk, 700 MiB used, 620 MiB new, 204 MiB added to the store";
        assert_eq!(broken(line, 100), [line]);
        let parts = [
            "web@0 done in 4.5 s: 8 GiB disk, 700",
            "  MiB used, 620 MiB new, 204 MiB added",
            "  to the store",
        ];
        assert_eq!(broken(line, 40), parts);
        let word = "x".repeat(50);
        assert_eq!(
            broken(&format!("a {word} b"), 40),
            ["a".to_owned(), format!("  {word}"), "  b".to_owned()]
        );
        assert_eq!(broken("", 40), [""]);
    }
}
