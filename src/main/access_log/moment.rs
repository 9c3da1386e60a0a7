//! `Moment`: a time of the clock as year, month, day, hour, minute and second, in UTC.
//!
//! Invariant: no value of the clock causes a panic, and a time before 1970 becomes the beginning of
//! 1970. Pure, and without an allocation, because every line of an access log has a time.

use std::time::{SystemTime, UNIX_EPOCH};

/// A time of the clock in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    year: u64,
    /// The month, 1 to 12.
    month: u64,
    /// The day, 1 to 31.
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    millisecond: u32,
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

const DAY: u64 = 24 * 60 * 60;

impl Moment {
    /// Adds the time in the form of the combined format: `28/Nov/2026:03:27:05 +0000`.
    pub(crate) fn combined(self, line: &mut String) {
        two(line, self.day);
        line.push('/');
        line.push_str(MONTHS[self.month as usize - 1]);
        line.push('/');
        four(line, self.year);
        for part in [self.hour, self.minute, self.second] {
            line.push(':');
            two(line, part);
        }
        line.push_str(" +0000");
    }

    /// Adds the time in the form of RFC 3339: `2026-11-28T03:27:05.042Z`.
    pub(crate) fn rfc3339(self, line: &mut String) {
        four(line, self.year);
        for (mark, part) in [
            ('-', self.month),
            ('-', self.day),
            ('T', self.hour),
            (':', self.minute),
            (':', self.second),
        ] {
            line.push(mark);
            two(line, part);
        }
        line.push('.');
        digit(line, u64::from(self.millisecond / 100));
        two(line, u64::from(self.millisecond % 100));
        line.push('Z');
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs();
        let (year, month, day) = date(seconds / DAY);
        Self {
            year,
            month,
            day,
            hour: seconds % DAY / 3600,
            minute: seconds % 3600 / 60,
            second: seconds % 60,
            millisecond: since.subsec_millis(),
        }
    }
}

/// Returns the year, month and day that is `days` after the first of January 1970.
///
/// The year of this calculation begins in March, so that a leap day is its last one. See Howard
/// Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(days: u64) -> (u64, u64, u64) {
    // 719,468 days lie between the first of March of the year 0 and 1970, and 146,097 in 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

fn four(line: &mut String, number: u64) {
    two(line, number / 100);
    two(line, number % 100);
}

fn two(line: &mut String, number: u64) {
    digit(line, number / 10);
    digit(line, number);
}

fn digit(line: &mut String, number: u64) {
    line.push(char::from(b'0' + (number % 10) as u8));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64, millis: u32) -> Moment {
        Moment::from(UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000))
    }

    #[test]
    fn both_formats() {
        for (seconds, combined, rfc3339) in [
            (0, "01/Jan/1970:00:00:00 +0000", "1970-01-01T00:00:00.042Z"),
            (951_782_399, "28/Feb/2000:23:59:59 +0000", "2000-02-28T23:59:59.042Z"),
            (951_782_400, "29/Feb/2000:00:00:00 +0000", "2000-02-29T00:00:00.042Z"),
            (1_795_836_425, "28/Nov/2026:03:27:05 +0000", "2026-11-28T03:27:05.042Z"),
            (4_107_542_400, "01/Mar/2100:00:00:00 +0000", "2100-03-01T00:00:00.042Z"),
        ] {
            let mut line = String::new();
            at(seconds, 42).combined(&mut line);
            assert_eq!(line, combined);
            line.clear();
            at(seconds, 42).rfc3339(&mut line);
            assert_eq!(line, rfc3339);
        }
    }

    /// humantime is an independent implementation.
    #[test]
    fn agrees_with_humantime() {
        // The step is a prime number of seconds, so each part of a time takes all of its values.
        for seconds in (0..8_000_000_000).step_by(15_485_863) {
            let mut line = String::new();
            at(seconds, 7).rfc3339(&mut line);
            let time = UNIX_EPOCH + Duration::new(seconds, 7_000_000);
            assert_eq!(line, humantime::format_rfc3339_millis(time).to_string());
        }
    }

    #[test]
    fn a_clock_that_is_wrong_panics_nobody() {
        assert_eq!(Moment::from(UNIX_EPOCH - Duration::from_secs(1)), at(0, 0));
        let mut line = String::new();
        at(1 << 50, 0).combined(&mut line);
        assert!(line.ends_with(" +0000"), "{line}");
    }
}
