//! One line of progress that fits the terminal, whatever its width.

use crate::cli::format;
use crate::cli::progress::meter::Reading;
use crate::escape::escaped;

/// The longest and the shortest bar, in columns.
const BAR: std::ops::RangeInclusive<usize> = 10..=40;
/// So many columns of the names are shown at least.
const NAMES: usize = 8;

/// Returns how many columns a text takes at most.
fn columns(text: &str) -> usize {
    text.chars().map(|letter| if letter.is_ascii() { 1 } else { 2 }).sum()
}

/// Returns the line for a terminal of so many columns. It is shorter than the terminal is wide: a terminal may wrap a line that
/// fills it.
pub(super) fn fitted(reading: &Reading, width: usize) -> String {
    let width = width.saturating_sub(1);
    let percent = percent(reading);
    let mut left = width.saturating_sub(columns(&percent));
    // By what a person misses most.
    let mut take = |text: Option<String>| {
        let text = text?;
        let columns = columns(&text) + 2;
        let fits = left >= columns + NAMES + 2;
        left -= if fits { columns } else { 0 };
        fits.then_some(text)
    };
    let time = take(reading.seconds_left.map(|seconds| format!("{} left", time(seconds))));
    let rate = take(Some(format!("{}/s", format::bytes(reading.bytes_per_second))));
    let disks =
        (reading.disks_total > 1).then(|| format!("{} of {} disks", reading.disks_done, reading.disks_total));
    let disks = take(disks);
    let bytes = format!("{} of {}", format::bytes(reading.done_bytes), format::bytes(reading.total_bytes));
    let bytes = take(Some(bytes));
    let names = cut(&reading.names, left.saturating_sub(1));
    left = left.saturating_sub(columns(&names) + 1);
    let bar = (left >= *BAR.start() + 3).then(|| bar(reading, (left - 3).min(*BAR.end())));
    let mut line = names;
    let parts = [Some(percent), bar, bytes, rate, time, disks];
    for (at, part) in parts.into_iter().flatten().enumerate() {
        line.push_str(if at == 0 { " " } else { "  " });
        line.push_str(&part);
    }
    if columns(&line) > width {
        line = line.chars().take(width / 2).collect();
    }
    line
}

fn percent(reading: &Reading) -> String {
    let share = u128::from(reading.done_bytes) * 100 / u128::from(reading.total_bytes.max(1));
    format!("{:>3}%", share.min(99))
}

/// Returns as many names as fit.
fn cut(names: &[String], width: usize) -> String {
    let all = escaped(&names.join(", ")).into_owned();
    if columns(&all) <= width {
        return all;
    }
    let mut cut = String::new();
    for letter in all.chars() {
        if columns(&cut) + columns(letter.encode_utf8(&mut [0; 4])) + 2 > width {
            break;
        }
        cut.push(letter);
    }
    if width >= 2 {
        cut.push_str("..");
    }
    cut
}

fn bar(reading: &Reading, width: usize) -> String {
    let inner = width.saturating_sub(2);
    let full = inner as u128 * u128::from(reading.done_bytes) / u128::from(reading.total_bytes.max(1));
    let full = usize::try_from(full).unwrap_or(inner).min(inner);
    format!("[{}{}]", "=".repeat(full), " ".repeat(inner - full))
}

fn time(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min"),
        (hours @ ..48, minutes) => format!("{hours} h {} min", minutes % 60),
        (hours, _) => format!("{} d", hours / 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> Reading {
        Reading {
            names: vec!["web/vda".to_owned(), "db".to_owned()],
            done_bytes: 3 << 30,
            total_bytes: 8 << 30,
            bytes_per_second: 180 << 20,
            seconds_left: Some(29),
            disks_done: 3,
            disks_total: 20,
        }
    }

    #[test]
    fn a_wider_terminal_shows_more() {
        let lines = [
            (40, "web/vda,..  37%  180.0 MiB/s  29 s left"),
            (60, "web/vda, db  37%  180.0 MiB/s  29 s left  3 of 20 disks"),
            (80, "web/vda, db  37%  3.0 GiB of 8.0 GiB  180.0 MiB/s  29 s left  3 of 20 disks"),
            (
                100,
                "web/vda, db  37%  [=======            ]  3.0 GiB of 8.0 GiB  180.0 MiB/s  29 s left  3 of 20 disks",
            ),
        ];
        for (width, line) in lines {
            assert_eq!(fitted(&reading(), width), line);
        }
    }

    #[test]
    fn no_line_is_as_wide_as_the_terminal() {
        let long = Reading {
            names: (0..64).map(|number| format!("machine{number}/vd\u{e9}")).collect(),
            ..reading()
        };
        let huge = Reading {
            bytes_per_second: u64::MAX,
            seconds_left: Some(u64::MAX),
            done_bytes: u64::MAX,
            total_bytes: u64::MAX,
            disks_total: 100_000,
            ..long.clone()
        };
        for reading in [Reading::default(), reading(), long, huge] {
            for width in 1..=300 {
                let line = fitted(&reading, width);
                assert!(columns(&line) < width.max(2), "{width}: {line}");
            }
        }
        assert!(fitted(&reading(), 40).contains("37%"));
    }

    #[test]
    fn times_left_are_as_a_person_says_them() {
        for (seconds, text) in [(59, "59 s"), (61, "1 min"), (7260, "2 h 1 min"), (200_000, "2 d")] {
            assert_eq!(time(seconds), text);
        }
    }
}
