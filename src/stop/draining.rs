//! [`Draining`], the state of a drain for a report, [`InFlight`], the numbers of open work, and
//! [`ReportTimes`], the times of the log's reports.
//!
//! Pure: the latch passes the numbers and the time. This file logs nothing.

use std::fmt;
use std::time::{Duration, Instant};

use crate::stop::outcome::{OpenWork, count_of};

/// The numbers of holders of a latch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct InFlight {
    /// The number of connections, including idle ones.
    pub(crate) connections: usize,
    /// The number of connections whose request has begun, or that were upgraded.
    pub(crate) requests: usize,
    /// The number of guards.
    pub(crate) guards: usize,
}

impl InFlight {
    /// Adds up the numbers of two latches.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            requests: self.requests + other.requests,
            guards: self.guards + other.guards,
        }
    }
}

impl fmt::Display for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, requests, guards } = *self;
        let count = |number: usize, thing| count_of(number as u64, thing);
        let on_connections =
            || format!("{}, {}", count(connections, "connection"), count(requests, "request"));
        match (connections, guards) {
            (0, 0) => f.write_str("nothing in flight"),
            (0, _) => f.write_str(&count(guards, "guard")),
            (_, 0) => f.write_str(&on_connections()),
            _ => write!(f, "{}, {}", on_connections(), count(guards, "guard")),
        }
    }
}

/// The state of a drain under way (rule S20).
#[derive(Debug, Clone)]
pub(crate) struct Draining {
    /// The numbers of holders that keep the drain open.
    pub(crate) in_flight: InFlight,
    /// The time left until the rest is cut.
    pub(crate) left: Duration,
    /// The work that has been open for the longest time.
    pub(crate) oldest: Option<OpenWork>,
    /// `true` if something has moved since the last report.
    pub(crate) is_moving: bool,
}

impl Draining {
    /// Returns `true` if something holds the drain open.
    pub(crate) fn is_open(&self) -> bool {
        self.in_flight != InFlight::default()
    }

    /// Adds up two drains of one process, which ends after both.
    pub(crate) fn and(self, other: Self) -> Self {
        let oldest = self.oldest.into_iter().chain(other.oldest);
        Self {
            in_flight: self.in_flight.and(other.in_flight),
            left: self.left.max(other.left),
            oldest: oldest.max_by_key(|oldest| oldest.age),
            is_moving: self.is_moving || other.is_moving,
        }
    }
}

impl fmt::Display for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { in_flight, left, oldest, .. } = self;
        write!(f, "draining: {in_flight}, ")?;
        if *left < WITHOUT_LIMIT {
            write!(f, "{:.0} s to go", left.as_secs_f64())?;
        } else {
            f.write_str("for as long as it takes")?;
        }
        oldest.iter().try_for_each(|oldest| write!(f, "; the oldest: {oldest}"))
    }
}

/// A time of this length or longer counts as no limit.
const WITHOUT_LIMIT: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The times at which the log reports a drain: after 1, 2, 5 and 10 s, and then every 10 s.
///
/// Several drains of one latch share the times, so the log does not repeat a report.
#[derive(Debug, Default)]
pub(crate) struct ReportTimes {
    /// The time at which the first drain began.
    began: Option<Instant>,
    /// The number of reports that were due at the last one.
    logged: u64,
}

impl ReportTimes {
    /// Notes that a drain begins.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.began.get_or_insert(now);
    }

    /// Returns `true` if a report is due, and notes that the caller logs it.
    pub(crate) fn take_due(&mut self, now: Instant) -> bool {
        let Some(began) = self.began else { return false };
        let due = due_after(now.saturating_duration_since(began).as_secs());
        let is_due = self.logged < due;
        self.logged = self.logged.max(due);
        is_due
    }
}

/// Returns the number of reports that are due after `seconds`.
fn due_after(seconds: u64) -> u64 {
    match seconds {
        0 | 1 => seconds,
        2..5 => 2,
        5..10 => 3,
        _ => 3 + seconds / 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::outcome::WorkKind;
    use std::panic::Location;

    #[test]
    fn connections_are_told_from_requests() {
        for (connections, requests, guards, line) in [
            (0, 0, 0, "nothing in flight"),
            (13, 8, 0, "13 connections, 8 requests"),
            (1, 1, 1, "1 connection, 1 request, 1 guard"),
            (10_234, 0, 2, "10,234 connections, 0 requests, 2 guards"),
            (0, 0, 4, "4 guards"),
        ] {
            assert_eq!(InFlight { connections, requests, guards }.to_string(), line);
        }
        let one = InFlight { connections: 1, requests: 2, guards: 3 };
        assert_eq!(one.and(one), InFlight { connections: 2, requests: 4, guards: 6 });
    }

    #[test]
    fn a_report_is_one_line() {
        let in_flight = InFlight { connections: 2, requests: 0, guards: 0 };
        let left = Duration::from_secs(28);
        let mut draining = Draining { in_flight, left, oldest: None, is_moving: true };
        assert_eq!(draining.to_string(), "draining: 2 connections, 0 requests, 28 s to go");
        let kind = WorkKind::Guard(Location::caller());
        draining.oldest = Some(OpenWork { kind, age: Duration::from_millis(2040) });
        draining.left = Duration::MAX;
        let line = draining.to_string();
        assert!(line.contains(" requests, for as long as it takes; the oldest: guard "), "{line}");
        assert!(line.ends_with("(2.0 s)"), "{line}");
    }

    #[test]
    fn drains_add_up() {
        let drain = |age, left, is_moving| Draining {
            in_flight: InFlight { connections: 1, requests: 1, guards: 1 },
            left: Duration::from_secs(left),
            oldest: Some(OpenWork {
                kind: WorkKind::Guard(Location::caller()),
                age: Duration::from_secs(age),
            }),
            is_moving,
        };
        for (one, other) in
            [(drain(1, 9, true), drain(2, 5, false)), (drain(2, 5, false), drain(1, 9, true))]
        {
            let both = one.and(other);
            assert_eq!(both.in_flight, InFlight { connections: 2, requests: 2, guards: 2 });
            assert_eq!(both.left, Duration::from_secs(9));
            assert_eq!(both.oldest.as_ref().map(|oldest| oldest.age.as_secs()), Some(2));
            assert!(both.is_moving && both.is_open());
        }
        let empty = Draining { in_flight: InFlight::default(), ..drain(1, 1, true) };
        assert!(!empty.is_open());
    }

    /// Two drains of one latch ask every 100 ms, for a minute.
    #[test]
    fn a_long_drain_is_reported_now_and_then() {
        let start = Instant::now();
        let mut times = ReportTimes::default();
        assert!(!times.take_due(start), "no drain has begun");
        times.begin(start);
        times.begin(start + Duration::from_millis(40));
        let mut reports = Vec::new();
        for tenths in 0..=600 {
            let now = start + Duration::from_millis(100 * tenths);
            if times.take_due(now) {
                reports.push(tenths / 10);
            }
            assert!(!times.take_due(now), "the same line twice");
        }
        assert_eq!(reports, [1, 2, 5, 10, 20, 30, 40, 50, 60]);
    }

    /// A process that was suspended makes one report for all that were due meanwhile.
    #[test]
    fn reports_that_were_missed_are_one() {
        let start = Instant::now();
        let mut times = ReportTimes::default();
        times.begin(start);
        assert!(times.take_due(start + Duration::from_secs(45)));
        assert!(!times.take_due(start + Duration::from_secs(46)));
        assert!(times.take_due(start + Duration::from_secs(50)));
    }
}
