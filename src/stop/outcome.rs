//! [`Outcome`]: how a drain ended, what it cost, and the exit code that tells the truth; [`Cut`]:
//! what it has cut; and [`Draining`]: how it stands while it goes on.
//!
//! A value that must not be lost: it prints as one line and is what `main` returns.
//! Decides nothing; the latch fills it in.

use std::fmt;
use std::panic::Location;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use async_signal::Signal;

use crate::stop::signals::name;
use crate::stop::stage::Stage;
use crate::stream::transport::Peer;

/// The end of a drain.
///
/// As the value that `main` returns it is the exit code: 0 when drained, 1 otherwise.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Ending, Shutdown};
///
/// let outcome = futures_lite::future::block_on(Shutdown::new().drain());
/// assert_eq!(outcome.ending, Ending::Drained);
/// assert!(outcome.to_string().starts_with("drained in 0.0 s"));
/// ```
#[derive(Debug, Clone)]
#[must_use = "the outcome says whether anything was cut, and is the exit code"]
#[non_exhaustive]
pub struct Outcome {
    /// Drained, timed out or forced.
    pub ending: Ending,
    /// The time that the drain took, from the close of the listeners, and the time for which the
    /// signal that began the stop had waited before for a thread that a handler blocked
    /// ([`Shutdown::obey`](crate::Shutdown::obey)).
    pub took: Duration,
    /// The number of requests that were finished after the stop, on all servers that share the
    /// latch.
    pub finished: u64,
    /// The number of connections that a successor has taken, on all servers that share the latch.
    /// Their clients notice nothing. Always 0 without a restart under [`run`](crate::run).
    pub handed_over: u64,
    /// The signal that began the stop, if it was a signal.
    pub signal: Option<Signal>,
    /// Everything that was cut, the oldest first. Empty when drained.
    pub cut: Vec<Cut>,
}

/// The three ways a drain can end.
///
/// The list is complete: there will be no further one.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Ending, Shutdown};
/// use std::time::Duration;
///
/// let shutdown = Shutdown::new().grace(Duration::from_millis(10));
/// let guard = shutdown.token().guard().unwrap(); // for work that does not end
/// let advice = match futures_lite::future::block_on(shutdown.drain()).ending {
///     Ending::Drained => "nothing was lost",
///     Ending::TimedOut => "allow a longer grace",
///     Ending::Forced => "somebody was in a hurry",
/// };
/// assert_eq!(advice, "allow a longer grace");
/// # drop(guard);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything was finished.
    Drained,
    /// The grace was over before everything was finished.
    TimedOut,
    /// A second signal, or [`Shutdown::abort`](crate::Shutdown::abort), cut the drain short.
    Forced,
}

impl Outcome {
    /// Returns `true` if everything was finished.
    ///
    /// # Examples
    ///
    /// ```
    /// # use smol_graceful::Shutdown;
    /// # let outcome = futures_lite::future::block_on(Shutdown::new().drain());
    /// assert!(outcome.is_drained());
    /// ```
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.ending == Ending::Drained
    }
}

impl Termination for Outcome {
    fn report(self) -> ExitCode {
        if self.is_drained() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.took.as_secs_f64();
        match self.ending {
            Ending::Drained => write!(f, "drained in {took:.1} s")?,
            Ending::TimedOut => write!(f, "timed out after {took:.1} s")?,
            Ending::Forced => write!(f, "forced to end after {took:.1} s")?,
        }
        write!(f, ", {} finished", count_of(self.finished, "request"))?;
        if self.handed_over > 0 {
            write!(f, ", {} handed over", count_of(self.handed_over, "connection"))?;
        }
        if let Some(signal) = self.signal {
            write!(f, ", stopped by {}", name(signal))?;
        }
        if !self.cut.is_empty() {
            let named: Vec<_> = self.cut.iter().take(NAMED).map(Cut::to_string).collect();
            write!(f, ", {} cut: {}", self.cut.len(), named.join(", "))?;
            if self.cut.len() > NAMED {
                write!(f, " and {} more", self.cut.len() - NAMED)?;
            }
        }
        Ok(())
    }
}

/// Returns a number of things in words: `1 connection`, `10,231 connections`.
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

/// Something that the end of the grace, or a second signal, cut short.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Shutdown, What};
/// use std::time::Duration;
///
/// let shutdown = Shutdown::new().grace(Duration::ZERO);
/// let guard = shutdown.token().guard().unwrap();
/// let outcome = futures_lite::future::block_on(shutdown.drain());
/// assert!(matches!(outcome.cut[0].what, What::Guard(place) if place.line() > 0));
/// # drop(guard);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Cut {
    /// The request or the guard that was cut.
    pub what: What,
    /// The time since the request's first byte, or since the guard was taken. For a connection in
    /// [`Stage::Accepted`] or [`Stage::Handshake`], the time since it was accepted.
    pub age: Duration,
}

/// A request or a guard that can hold a drain open.
///
/// # Examples
///
/// In words of the program's own:
///
/// ```
/// use smol_graceful::{Shutdown, What};
/// use std::time::Duration;
///
/// let shutdown = Shutdown::new().grace(Duration::ZERO);
/// let guard = shutdown.token().guard().unwrap(); // for work that does not end
/// let outcome = futures_lite::future::block_on(shutdown.drain());
/// let line = match &outcome.cut[0].what {
///     What::Request { peer, method, path, .. } => format!("{peer} {method} {path}"),
///     What::Guard(place) => format!("work of line {}", place.line()),
///     _ => outcome.cut[0].to_string(),
/// };
/// assert!(line.starts_with("work of line "));
/// # drop(guard);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum What {
    /// A request that had sent its first byte, or a connection of which that is not known.
    Request {
        /// The client that sent it.
        peer: Peer,
        /// The stage that it had reached.
        stage: Stage,
        /// Its method, as far as it has arrived.
        method: String,
        /// Its target (path and query) as the client wrote it, as far as it has arrived.
        path: String,
    },
    /// A guard, by the place in the code that took it.
    Guard(&'static Location<'static>),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = self.age.as_secs_f64();
        match &self.what {
            What::Request { peer, stage, method, path } => {
                let (method, path) = (or_dash(method), or_dash(path));
                write!(f, "{peer} {method} {path} ({stage}, {age:.1} s)")
            }
            What::Guard(place) => write!(f, "guard taken at {place} ({age:.1} s)"),
        }
    }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// A drain that goes on (rule S20).
#[derive(Debug)]
pub(crate) struct Draining {
    /// The number of connections and guards that hold it open.
    pub(crate) open: usize,
    /// The number of those that the drain waits for. The others are only told to leave.
    pub(crate) busy: usize,
    /// The time left until the rest is cut.
    pub(crate) left: Duration,
    /// The one that has been busy for the longest time.
    pub(crate) oldest: Option<Cut>,
    /// Something has moved since the last report.
    pub(crate) is_moving: bool,
}

impl fmt::Display for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { open, busy, left, oldest, .. } = self;
        let left = left.as_secs_f64();
        match oldest {
            Some(cut) => write!(f, "draining: {busy} left, {left:.0} s to go; the oldest: {cut}"),
            None => write!(f, "draining: {open} left, none with a request, {left:.0} s to go"),
        }
    }
}

/// The line names at most so many cuts. The list in the outcome has them all.
const NAMED: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(ending: Ending, cuts: usize) -> Outcome {
        let cut = Cut { what: What::Guard(Location::caller()), age: Duration::from_millis(2040) };
        Outcome {
            ending,
            took: Duration::from_millis(2000),
            finished: 3,
            handed_over: 0,
            signal: Some(Signal::Term),
            cut: vec![cut; cuts],
        }
    }

    #[test]
    fn prints_as_one_line() {
        let line = outcome(Ending::Drained, 0).to_string();
        assert_eq!(line, "drained in 2.0 s, 3 requests finished, stopped by SIGTERM");
        let line = outcome(Ending::TimedOut, 12).to_string();
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
            let outcome = Outcome { handed_over: count, ..outcome(Ending::Drained, 0) };
            assert!(outcome.to_string().contains(words), "{outcome}");
        }
    }

    /// 0 when drained, 1 otherwise.
    #[test]
    fn is_the_exit_code() {
        let code = |ending| format!("{:?}", outcome(ending, 1).report());
        assert_eq!(code(Ending::Drained), format!("{:?}", ExitCode::from(0)));
        assert_eq!(code(Ending::TimedOut), format!("{:?}", ExitCode::from(1)));
        assert_eq!(code(Ending::Forced), format!("{:?}", ExitCode::from(1)));
    }
}
