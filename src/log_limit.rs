//! [`LogLimit`]: keeps clients from filling the log.
//!
//! It counts events, and tells the caller when to log a line and for how many events. This file
//! writes nothing, and gets the time from the caller.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;

/// The shortest time between two lines.
const PERIOD: Duration = Duration::from_secs(1);

/// A limit of one line a second, which can be a `static`.
///
/// Events within a second of the last line are not logged by themselves. The line of a later event
/// counts them.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The time of the last line.
    last: Option<Instant>,
    /// The number of events since the last line.
    unlogged: u64,
}

impl LogLimit {
    pub(crate) const fn new() -> Self {
        Self { state: Mutex::new(State { last: None, unlogged: 0 }) }
    }

    /// Counts an event at the time `now`. Returns the number of events for a line, including this
    /// one, or `None` if the last line is less than a second old.
    pub(crate) fn count(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.state);
        state.unlogged += 1;
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < PERIOD) {
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_is_logged_at_once() {
        static LIMIT: LogLimit = LogLimit::new();
        assert_eq!(LIMIT.count(Instant::now()), Some(1));
    }

    #[test]
    fn a_line_a_second_speaks_for_all_events() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        // An event comes every 100 ms for 2.5 s.
        let lines: Vec<_> = (0..25).filter_map(|n| limit.count(after(100 * n))).collect();
        assert_eq!(lines, [1, 10, 10]);
        // The line of the next event counts the last four of these, too.
        assert_eq!(limit.count(after(3_600_000)), Some(5));
        assert_eq!(limit.count(after(3_600_999)), None);
        assert_eq!(limit.count(after(3_601_000)), Some(2));
    }

    /// Threads may read the clock in one order and take the lock in another.
    #[test]
    fn an_earlier_event_that_comes_late_is_counted() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        assert_eq!(limit.count(start + PERIOD), Some(1));
        assert_eq!(limit.count(start), None);
        assert_eq!(limit.count(start + 2 * PERIOD), Some(2));
    }
}
