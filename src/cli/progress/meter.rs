//! How far a command is: bytes of data that are done and to be done, the speed of the last seconds, and the time left.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

/// The speed is that of so many last seconds.
const WINDOW: Duration = Duration::from_secs(15);
/// How far two samples of the speed are apart at least.
const APART: Duration = Duration::from_millis(250);
/// The time left is not told before so much time has shown the speed.
const ENOUGH: Duration = Duration::from_secs(2);

/// Counts what is done.
#[derive(Debug, Default)]
pub(super) struct Meter {
    parts: usize,
    label: String,
    total: u64,
    done: u64,
    /// Disks that have not begun, and about how many bytes each has.
    waiting: HashMap<String, u64>,
    /// Disks that are read, in the order in which they began.
    reading: Vec<String>,
    disks_total: usize,
    disks_done: usize,
    /// Whether disks are to come.
    expects: bool,
    samples: VecDeque<(Instant, u64)>,
}

/// What a meter shows at a moment.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Reading {
    /// The disks that are read, or what is done.
    pub(super) names: Vec<String>,
    pub(super) done_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) bytes_per_second: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seconds_left: Option<u64>,
    pub(super) disks_done: usize,
    pub(super) disks_total: usize,
}

impl Meter {
    pub(super) fn expect(&mut self, disks: impl Iterator<Item = (String, u64)>) {
        self.waiting = disks.collect();
        self.disks_total = self.waiting.len();
        self.total = self.waiting.values().sum();
        self.expects = true;
    }

    pub(super) fn expect_no_more(&mut self) {
        self.expects = false;
        self.waiting.clear();
    }

    pub(super) fn begin_disk(&mut self, name: &str) {
        self.reading.push(name.to_owned());
    }

    pub(super) fn end_disk(&mut self, name: &str) {
        self.reading.retain(|other| other != name);
        self.disks_done += 1;
    }

    /// What a disk was expected to have does not come any longer.
    pub(super) fn give_up(&mut self, name: &str) {
        self.total = self.total.saturating_sub(self.waiting.remove(name).unwrap_or(0));
    }

    pub(super) fn begin(&mut self, label: &str, bytes: u64) {
        if self.parts == 0 && !self.expects {
            *self = Self::default();
        }
        self.parts += 1;
        label.clone_into(&mut self.label);
        // What is known when a disk is open takes the place of what was expected.
        self.give_up(label);
        self.total = self.total.saturating_add(bytes);
    }

    pub(super) fn advance(&mut self, bytes: u64, now: Instant) {
        self.done = self.done.saturating_add(bytes);
        self.total = self.total.max(self.done);
        let is_due = self.samples.back().is_none_or(|(last, _)| now.duration_since(*last) >= APART);
        if is_due {
            self.samples.push_back((now, self.done));
        }
        while self.samples.len() > 2
            && let Some((first, _)) = self.samples.front()
            && now.duration_since(*first) > WINDOW
        {
            self.samples.pop_front();
        }
    }

    pub(super) fn end(&mut self) {
        self.parts = self.parts.saturating_sub(1);
    }

    pub(super) fn is_running(&self) -> bool {
        self.parts > 0 || self.expects
    }

    /// Returns what there is to show.
    pub(super) fn read(&self, now: Instant) -> Reading {
        let (mut bytes_per_second, mut seconds_left) = (0, None);
        if let Some((begun, before)) = self.samples.front() {
            let time = now.duration_since(*begun);
            let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
            bytes_per_second = self.done.saturating_sub(*before).saturating_mul(1000) / milliseconds;
            if time >= ENOUGH {
                seconds_left = (self.total - self.done).checked_div(bytes_per_second);
            }
        }
        let names = if self.reading.is_empty() {
            Some(self.label.clone()).filter(|label| !label.is_empty()).into_iter().collect()
        } else {
            self.reading.clone()
        };
        Reading {
            names,
            done_bytes: self.done,
            total_bytes: self.total,
            bytes_per_second,
            seconds_left,
            disks_done: self.disks_done,
            disks_total: self.disks_total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_disk_really_has_replaces_what_was_expected() {
        let mut meter = Meter::default();
        let now = Instant::now();
        meter.expect([("a".to_owned(), 100), ("b".to_owned(), 50), ("c".to_owned(), 7)].into_iter());
        assert_eq!(meter.read(now).total_bytes, 157);
        meter.begin_disk("a");
        meter.begin("a", 80);
        meter.give_up("c");
        assert_eq!(meter.read(now).total_bytes, 130);
        meter.advance(80, now);
        meter.end();
        meter.end_disk("a");
        let reading = meter.read(now);
        assert_eq!((reading.done_bytes, reading.disks_done, reading.disks_total), (80, 1, 3));
        // More than was expected comes.
        meter.begin("b", 10);
        meter.advance(60, now);
        assert_eq!((meter.read(now).done_bytes, meter.read(now).total_bytes), (140, 140));
        assert!(meter.is_running());
        meter.end();
        meter.expect_no_more();
        assert!(!meter.is_running());
    }

    #[test]
    fn the_speed_is_that_of_the_last_seconds_and_the_time_left_follows_from_it() {
        let (mut meter, begun) = (Meter::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        meter.begin("web", 10_000);
        meter.advance(0, at(0));
        assert_eq!(meter.read(at(1)).seconds_left, None);
        for second in 1..=30 {
            meter.advance(if second <= 10 { 10 } else { 100 }, at(second));
        }
        let reading = meter.read(at(30));
        assert!((90..=100).contains(&reading.bytes_per_second), "{reading:?}");
        assert_eq!(reading.seconds_left, Some((10_000 - 2100) / reading.bytes_per_second));
        // Nothing comes any more: the speed falls.
        assert!(meter.read(at(60)).bytes_per_second < 50);
    }
}
