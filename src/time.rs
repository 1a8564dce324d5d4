//! The time by the clock of this machine.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// Returns the time now.
///
/// A clock can say anything, for example after its battery was empty. A time that no text can hold (after the year 9999, or before
/// the year -9999) counts as the last or the first one that a text can hold.
pub fn now() -> Timestamp {
    nearest(SystemTime::now())
}

fn nearest(time: SystemTime) -> Timestamp {
    let outside = |_| if time < UNIX_EPOCH { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::try_from(time).unwrap_or_else(outside)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_that_no_text_can_hold_counts_as_the_nearest_one() {
        let years = |number: u64| Duration::from_secs(number * 366 * 86_400);
        assert_eq!(nearest(UNIX_EPOCH + years(20_000)), Timestamp::MAX);
        assert_eq!(nearest(UNIX_EPOCH - years(20_000)), Timestamp::MIN);
        assert_eq!(nearest(UNIX_EPOCH), Timestamp::UNIX_EPOCH);
        let text = Timestamp::MAX.to_string();
        assert_eq!(text.parse::<Timestamp>().ok(), Some(Timestamp::MAX), "it can be written and read");
    }
}
