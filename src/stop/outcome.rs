//! [`Outcome`], the end of a drain as a line and as an exit code, and [`OpenWork`], work that holds
//! a drain open or that the drain has cut.
//!
//! An outcome must not be lost, so it prints as one line, and `main` returns it. This file decides
//! nothing, because the latch fills the outcome in.

use std::fmt;
use std::io::{self, Write};
use std::panic::Location;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use async_signal::Signal;
use log::Level;

use crate::log_writer::LogWriter;
use crate::stop::signals::name;
use crate::stop::stage::Stage;
use crate::stream::transport::Peer;

/// The result of a drain: how it ended, how long it took, and what was cut.
///
/// If `main` returns an outcome, the exit code is 0 after a complete drain, and 1 otherwise. If the
/// code is 1, and the program has no logger that shows warnings, the outcome also prints its line
/// on standard error, so that an operator can read what was cut.
///
/// # Examples
///
/// ```
/// use smol_graceful::{DrainEnding, Shutdown};
///
/// let outcome = futures_lite::future::block_on(Shutdown::new().stop_and_drain());
/// assert_eq!(outcome.ending, DrainEnding::Drained);
/// assert!(outcome.to_string().starts_with("drained in 0.0 s"));
/// ```
#[derive(Debug, Clone)]
#[must_use = "the outcome says whether anything was cut, and is the exit code"]
#[non_exhaustive]
pub struct Outcome {
    /// The way in which the drain ended.
    pub ending: DrainEnding,
    /// The time that the drain took from the close of the listeners. If a handler had blocked the
    /// thread that obeys signals, the time for which the signal waited is included
    /// ([`Shutdown::obey`](crate::Shutdown::obey)).
    pub took: Duration,
    /// The number of requests that were finished after the stop, on all servers that share the
    /// latch.
    pub finished: u64,
    /// The number of connections that a successor has taken, on all servers that share the latch.
    /// Their clients notice nothing. Always 0 without a restart under [`run`](crate::run).
    pub handed_over: u64,
    /// The number of streams that the server has closed because they were silent for longer than
    /// [`Shutdown::stream_grace`](crate::Shutdown::stream_grace), on all servers that share the
    /// latch. These streams do not count as cut. Always 0 by default.
    pub streams_closed: u64,
    /// The signal that began the stop, or `None` if the program did.
    pub signal: Option<Signal>,
    /// All work that was cut, the oldest first. The list is empty after a complete drain.
    pub cut: Vec<OpenWork>,
}

/// One of the three ways in which a drain can end.
///
/// The list is complete, and will not grow.
///
/// # Examples
///
/// ```
/// use smol_graceful::{DrainEnding, Shutdown};
/// use std::time::Duration;
///
/// let shutdown = Shutdown::new().grace(Duration::from_millis(10));
/// let guard = shutdown.token().guard().unwrap(); // for work that does not end
/// let advice = match futures_lite::future::block_on(shutdown.stop_and_drain()).ending {
///     DrainEnding::Drained => "nothing was lost",
///     DrainEnding::TimedOut => "allow a longer grace",
///     DrainEnding::Forced => "somebody was in a hurry",
/// };
/// assert_eq!(advice, "allow a longer grace");
/// # drop(guard);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainEnding {
    /// All work was finished.
    Drained,
    /// The grace was over before all work was finished.
    TimedOut,
    /// A second signal, or [`Shutdown::abort`](crate::Shutdown::abort), cut the drain short.
    Forced,
}

impl Outcome {
    /// Returns `true` if all work was finished.
    ///
    /// # Examples
    ///
    /// ```
    /// # use smol_graceful::Shutdown;
    /// # let outcome = futures_lite::future::block_on(Shutdown::new().stop_and_drain());
    /// assert!(outcome.is_drained());
    /// ```
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.ending == DrainEnding::Drained
    }

    /// Prints the line on standard error (rule S28). Waits 1 s at most, because an exit must not
    /// wait for a pipe that nobody reads (rule S21).
    fn print(&self) {
        // If the thread cannot be started, the exit code alone has to do.
        if let Ok(mut stderr) = LogWriter::new(io::stderr()) {
            let _ = writeln!(stderr, "{self}");
        }
    }
}

impl Termination for Outcome {
    fn report(self) -> ExitCode {
        if self.is_drained() {
            return ExitCode::SUCCESS;
        }
        if !log::log_enabled!(Level::Warn) {
            self.print();
        }
        ExitCode::FAILURE
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.took.as_secs_f64();
        match self.ending {
            DrainEnding::Drained => write!(f, "drained in {took:.1} s")?,
            DrainEnding::TimedOut => write!(f, "timed out after {took:.1} s")?,
            DrainEnding::Forced => write!(f, "forced to end after {took:.1} s")?,
        }
        write!(f, ", {} finished", count_of(self.finished, "request"))?;
        if self.handed_over > 0 {
            write!(f, ", {} handed over", count_of(self.handed_over, "connection"))?;
        }
        if self.streams_closed > 0 {
            write!(f, ", {} closed", count_of(self.streams_closed, "silent stream"))?;
        }
        if let Some(signal) = self.signal {
            write!(f, ", stopped by {}", name(signal))?;
        }
        if !self.cut.is_empty() {
            let named: Vec<_> = self.cut.iter().take(NAMED).map(OpenWork::to_string).collect();
            write!(f, ", {} cut: {}", self.cut.len(), named.join(", "))?;
            if self.cut.len() > NAMED {
                write!(f, " and {} more", self.cut.len() - NAMED)?;
            }
        }
        Ok(())
    }
}

/// Returns a number with its noun, such as `1 connection` or `10,231 connections`.
pub(crate) fn count_of(number: u64, thing: &str) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        // A comma stands in front of each three digits.
        if position > 0 && (digits.len() - position) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{text} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A connection or a guard that holds a drain open, or that was cut.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Shutdown, WorkKind};
/// use std::time::Duration;
///
/// let shutdown = Shutdown::new().grace(Duration::ZERO);
/// let guard = shutdown.token().guard().unwrap();
/// let outcome = futures_lite::future::block_on(shutdown.stop_and_drain());
/// assert!(matches!(outcome.cut[0].kind, WorkKind::Guard(place) if place.line() > 0));
/// # drop(guard);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpenWork {
    /// A connection or a guard.
    pub kind: WorkKind,
    /// The time since the request's first byte, or since the guard was taken. Without a request,
    /// the time since the connection was accepted or fell idle.
    pub age: Duration,
}

/// A connection or a guard that can hold a drain open.
///
/// Its text is that of [`OpenWork`] without the age, such as `192.0.2.1:4711 GET /report (in the
/// handler)`, or `guard taken at src/main.rs:12:30`. A part that has not arrived is `-`.
///
/// # Examples
///
/// ```
/// use smol_graceful::Shutdown;
///
/// let shutdown = Shutdown::new();
/// let guard = shutdown.token().guard().unwrap();
/// let work = shutdown.open_work();
/// assert!(work[0].kind.to_string().starts_with("guard taken at "));
/// # drop(guard);
/// ```
///
/// In words of the program's own:
///
/// ```
/// use smol_graceful::{Shutdown, WorkKind};
/// use std::time::Duration;
///
/// let shutdown = Shutdown::new().grace(Duration::ZERO);
/// let guard = shutdown.token().guard().unwrap(); // for work that does not end
/// let outcome = futures_lite::future::block_on(shutdown.stop_and_drain());
/// let line = match &outcome.cut[0].kind {
///     WorkKind::Connection { peer, method, target, .. } => format!("{peer} {method} {target}"),
///     WorkKind::Guard(place) => format!("work of line {}", place.line()),
///     _ => outcome.cut[0].to_string(),
/// };
/// assert!(line.starts_with("work of line "));
/// # drop(guard);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum WorkKind {
    /// A connection, with the request that it serves.
    Connection {
        /// The client.
        peer: Peer,
        /// The stage that the connection had reached.
        stage: Stage,
        /// The request's method, as far as it has arrived. Without a request, the text is empty.
        method: String,
        /// The request's target (path and query) as the client wrote it, as far as it has arrived.
        /// Without a request, the text is empty.
        target: String,
    },
    /// A guard, named by the line that took it.
    Guard(&'static Location<'static>),
}

impl fmt::Display for OpenWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = self.age.as_secs_f64();
        self.kind.write_name(f)?;
        match &self.kind {
            WorkKind::Connection { stage, .. } => write!(f, " ({stage}, {age:.1} s)"),
            WorkKind::Guard(_) => write!(f, " ({age:.1} s)"),
        }
    }
}

impl fmt::Display for WorkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_name(f)?;
        match self {
            Self::Connection { stage, .. } => write!(f, " ({stage})"),
            Self::Guard(_) => Ok(()),
        }
    }
}

impl WorkKind {
    /// Writes the name of the connection or guard.
    fn write_name(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection { peer, method, target, .. } => {
                write!(f, "{peer} {} {}", or_dash(method), or_dash(target))
            }
            Self::Guard(place) => write!(f, "guard taken at {place}"),
        }
    }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// The largest number of cuts in the line. The list in the outcome has all of them.
const NAMED: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_work_says_what_it_is_and_since_when() {
        let connection = |stage, method: &str, target: &str| WorkKind::Connection {
            peer: Peer::Unix,
            stage,
            method: method.into(),
            target: target.into(),
        };
        let place = Location::caller();
        let guard = format!("guard taken at {place}");
        for (kind, alone, with_age) in [
            (
                connection(Stage::Handler, "GET", "/a?b"),
                "unix GET /a?b (in the handler)",
                "unix GET /a?b (in the handler, 2.0 s)",
            ),
            (connection(Stage::Idle, "", ""), "unix - - (idle)", "unix - - (idle, 2.0 s)"),
            (WorkKind::Guard(place), &*guard, &*format!("{guard} (2.0 s)")),
        ] {
            assert_eq!(kind.to_string(), alone);
            let work = OpenWork { kind, age: Duration::from_millis(2040) };
            assert_eq!(work.to_string(), with_age);
        }
    }

    fn outcome(ending: DrainEnding, cuts: usize) -> Outcome {
        let cut = OpenWork {
            kind: WorkKind::Guard(Location::caller()),
            age: Duration::from_millis(2040),
        };
        Outcome {
            ending,
            took: Duration::from_millis(2000),
            finished: 3,
            handed_over: 0,
            streams_closed: 0,
            signal: Some(Signal::Term),
            cut: vec![cut; cuts],
        }
    }

    #[test]
    fn prints_as_one_line() {
        let line = outcome(DrainEnding::Drained, 0).to_string();
        assert_eq!(line, "drained in 2.0 s, 3 requests finished, stopped by SIGTERM");
        let line = outcome(DrainEnding::TimedOut, 12).to_string();
        assert!(line.starts_with("timed out after 2.0 s, 3 requests finished, stopped by SIGTERM, 12 cut: guard taken at src/stop/outcome.rs:"), "{line}");
        assert!(line.ends_with("(2.0 s) and 2 more"), "{line}");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn names_how_many_connections_have_gone_on() {
        for (count, words) in [
            (0, ", 3 requests finished, stopped"),
            (1, ", 1 connection handed over, stopped"),
            (999, ", 999 connections handed over, stopped"),
            (1_000, ", 1,000 connections handed over, stopped"),
            (12_345_678, ", 12,345,678 connections handed over, stopped"),
        ] {
            let outcome = Outcome { handed_over: count, ..outcome(DrainEnding::Drained, 0) };
            assert!(outcome.to_string().contains(words), "{outcome}");
        }
    }

    /// The code is 0 after a complete drain, and 1 otherwise.
    #[test]
    fn is_the_exit_code() {
        let code = |ending| format!("{:?}", outcome(ending, 1).report());
        assert_eq!(code(DrainEnding::Drained), format!("{:?}", ExitCode::from(0)));
        assert_eq!(code(DrainEnding::TimedOut), format!("{:?}", ExitCode::from(1)));
        assert_eq!(code(DrainEnding::Forced), format!("{:?}", ExitCode::from(1)));
    }
}
