//! The progress of a check: a line for each restart, and the line of the moment.
//!
//! The line of a restart counts the events from its beginning to the beginning of the next. The
//! line of the moment has the current numbers. It is written only if standard error is a terminal,
//! and the next one overwrites it.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::load::{Report, Tally};

/// The time between two lines of the moment.
const REFRESH: Duration = Duration::from_millis(200);

/// The sequence that clears the line of the cursor.
const CLEAR: &str = "\r\x1b[K";

/// A restart, and the events from its beginning to the beginning of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Restart {
    pub(crate) number: u32,
    pub(crate) of: u32,
    /// The time that the command took.
    pub(crate) took: Duration,
    pub(crate) counts: Counts,
    /// The time of the slowest answer.
    pub(crate) slowest: Duration,
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, of, took, counts, slowest } = self;
        let (took, slowest) = (took.as_secs_f64(), slowest.as_millis());
        write!(f, "restart {number} of {of} took {took:.2} s: {counts}, slowest {slowest} ms")
    }
}

/// The counts that an operator looks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    /// Connections that the server closed although their clients would have kept them.
    pub(crate) closed: u64,
}

impl Counts {
    pub(crate) fn of(report: &Report) -> Self {
        Self { refused: report.refused, lost: report.lost(), closed: report.closed() }
    }

    /// Returns the counts since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            refused: self.refused - before.refused,
            lost: self.lost - before.lost,
            closed: self.closed - before.closed,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { refused, lost, closed } = self;
        write!(f, "{refused} refused, {lost} lost, {closed} closed")
    }
}

/// The time from the beginning of a restart to that of the next.
#[derive(Debug)]
pub(crate) struct Stretch {
    number: u32,
    before: Counts,
    begun: Instant,
}

impl Stretch {
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// The progress of a check.
pub(crate) struct Progress<'a> {
    tally: &'a Tally,
    restarts: u32,
    is_terminal: bool,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(tally: &'a Tally, restarts: u32) -> Self {
        Self { tally, restarts, is_terminal: io::stderr().is_terminal() }
    }

    /// Begins the count of a restart.
    pub(crate) fn begin(&self, number: u32) -> Stretch {
        self.tally.take_slowest();
        let before = Counts::of(&self.tally.report());
        Stretch { number, before, begun: Instant::now() }
    }

    /// Ends the count of a restart whose command took this time, and returns it.
    pub(crate) fn end(&self, stretch: &Stretch, took: Duration) -> Restart {
        Restart {
            number: stretch.number,
            of: self.restarts,
            took,
            counts: Counts::of(&self.tally.report()).since(stretch.before),
            slowest: self.tally.take_slowest(),
        }
    }

    /// Calls `wait`, and meanwhile writes the line of the moment. Returns the result of `wait`.
    pub(crate) fn while_waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        if !self.is_terminal {
            return wait();
        }
        let (done, is_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while is_done.recv_timeout(REFRESH) == Err(RecvTimeoutError::Timeout) {
                    let _ = write!(io::stderr(), "{CLEAR}{}", self.moment());
                }
                let _ = write!(io::stderr(), "{CLEAR}");
            });
            let made = wait();
            drop(done);
            made
        })
    }

    /// Returns the line of the moment.
    pub(super) fn moment(&self) -> String {
        let report = self.tally.report();
        let (time, counts) = (self.tally.elapsed().as_secs_f64(), Counts::of(&report));
        format!("{time:.1} s: {} answered, {counts}", report.answered)
    }
}
