//! Numbers and tables for people.

use std::io;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use crate::cli::terminal::Lines;
use crate::escape::escaped;

/// Writes a number of bytes in binary units.
pub(super) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut divisor: u64 = 1024;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while number / divisor >= 1024
        && let Some(next) = units.next()
    {
        divisor <<= 10;
        unit = Some(next);
    }
    // In tenths, rounded; u128 because 16 EiB in tenths does not fit u64.
    let tenths = (u128::from(number) * 10 + u128::from(divisor) / 2) / u128::from(divisor);
    format!("{}.{} {}", tenths / 10, tenths % 10, unit.unwrap_or(&""))
}

/// Writes a number of things: "1 backup", "2 backups".
pub(super) fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Writes a span of time in one unit that a person uses: "62 s", "90 min", "26 h", "5 d".
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", (seconds + 30) / 60),
        7200..172_801 => format!("{} h", (seconds + 1800) / 3600),
        _ => format!("{} d", (seconds + 43_200) / 86_400),
    }
}

/// Writes how long ago a moment was, as a document has it; of one that is to come, how far off it is.
pub(super) fn age_text(timestamp: &str, now: jiff::Timestamp) -> String {
    let Ok(time) = timestamp.parse::<jiff::Timestamp>() else { return timestamp.to_owned() };
    let age = now.duration_since(time);
    let text = span(age.unsigned_abs());
    if age.is_negative() { format!("in {text}") } else { text }
}

/// Where a person's clock hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zone {
    Local,
    Utc,
}

impl Zone {
    pub(super) fn of(utc: bool) -> Self {
        if utc { Self::Utc } else { Self::Local }
    }

    /// Writes a time as a document has it, to the minute.
    pub(super) fn text(self, timestamp: &str) -> String {
        let Ok(time) = timestamp.parse::<jiff::Timestamp>() else { return timestamp.to_owned() };
        match self {
            Self::Utc => time.strftime("%Y-%m-%d %H:%MZ").to_string(),
            Self::Local => time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string(),
        }
    }
}

/// Returns a time as a document has it, for a person.
pub(super) fn time_text(timestamp: &str) -> String {
    timestamp.parse().map_or_else(|_| timestamp.to_owned(), time)
}

/// Writes a moment in UTC, to the second.
pub(super) fn time(timestamp: jiff::Timestamp) -> String {
    timestamp.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Writes rows under a header, without lines between them.
pub(super) fn table(
    out: &mut Lines,
    header: &[&str],
    numbers: &[usize],
    rows: impl Iterator<Item = Vec<String>>,
) -> io::Result<()> {
    table_lines(header, numbers, rows).iter().try_for_each(|line| writeln!(out, "{line}"))
}

/// Returns the lines of a table.
pub(super) fn table_lines(
    header: &[&str],
    numbers: &[usize],
    rows: impl Iterator<Item = Vec<String>>,
) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    // A newline would make further rows, and other characters have no width that counts.
    table.add_rows(rows.map(|row| row.iter().map(|cell| escaped(cell).into_owned()).collect::<Vec<_>>()));
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// Writes names and values, one pair a line.
pub(super) fn pairs(out: &mut Lines, pairs: &[(&str, String)]) -> io::Result<()> {
    let pairs = pairs.iter().filter(|(_, value)| !value.is_empty());
    let pairs: Vec<_> = pairs.map(|(name, value)| (escaped(name), value)).collect();
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().try_for_each(|(name, value)| writeln!(out, "{name:width$}  {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_to_tenths_of_binary_units() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (8 << 30, "8.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn spans_are_in_the_unit_that_a_person_uses() {
        let spans = [0, 62, 119, 120, 5400, 7200, 86_400, 172_800, 172_801, 432_000];
        let texts = ["0 s", "62 s", "119 s", "2 min", "90 min", "2 h", "24 h", "48 h", "2 d", "5 d"];
        assert_eq!(spans.map(|seconds| span(Duration::from_secs(seconds))), texts);
        assert_eq!([0, 1, 2].map(|number| count(number, "backup")), ["0 backups", "1 backup", "2 backups"]);
    }
}
