//! [`Outcome`]: how a drain ended, what it cost, and the exit code that tells the truth; and
//! [`Draining`]: how it stands while it goes on.
//!
//! A value that must not be lost: it prints as one line and is what `main` returns.
//! Decides nothing; the latch fills it in.

use std::fmt;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use async_signal::Signal;

use crate::registry::Cut;

/// How a drain ended.
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
    /// How long the drain took, from the close of the listeners, and how long the signal that began
    /// the stop had waited before for a thread that a handler blocked
    /// ([`Shutdown::obey`](crate::Shutdown::obey)).
    pub took: Duration,
    /// How many requests were finished after the stop, on all servers that share the latch.
    pub finished: u64,
    /// The signal that began the stop, if it was a signal.
    pub signal: Option<Signal>,
    /// What was cut, the oldest first; empty when drained.
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
    /// Whether everything was finished.
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
        let requests = if self.finished == 1 { "request" } else { "requests" };
        write!(f, ", {} {requests} finished", self.finished)?;
        if let Some(signal) = self.signal {
            write!(f, ", stopped by {}", name(signal))?;
        }
        if !self.cut.is_empty() {
            write!(f, ", {} cut: ", self.cut.len())?;
            for (i, cut) in self.cut.iter().take(NAMED).enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                write!(f, "{comma}{cut}")?;
            }
            if self.cut.len() > NAMED {
                write!(f, " and {} more", self.cut.len() - NAMED)?;
            }
        }
        Ok(())
    }
}

/// How a drain stands (rule S20).
#[derive(Debug)]
pub(crate) struct Draining {
    /// Who holds it open: connections and guards.
    pub(crate) open: usize,
    /// Of those, who is waited for, rather than only told to leave.
    pub(crate) busy: usize,
    /// The time left until the rest is cut.
    pub(crate) left: Duration,
    /// Who has been busy for the longest time.
    pub(crate) oldest: Option<Cut>,
    /// Something has moved since the last look.
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

/// How many of the cut the one line names; the list in the outcome has them all.
const NAMED: usize = 10;

/// A signal as operators write it.
pub(crate) fn name(signal: Signal) -> String {
    format!("SIG{}", format!("{signal:?}").to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::What;
    use std::panic::Location;

    fn outcome(ending: Ending, cuts: usize) -> Outcome {
        let cut = Cut { what: What::Guard(Location::caller()), age: Duration::from_millis(2040) };
        Outcome {
            ending,
            took: Duration::from_millis(2000),
            finished: 3,
            signal: Some(Signal::Term),
            cut: vec![cut; cuts],
        }
    }

    #[test]
    fn prints_as_one_line() {
        let line = outcome(Ending::Drained, 0).to_string();
        assert_eq!(line, "drained in 2.0 s, 3 requests finished, stopped by SIGTERM");
        let line = outcome(Ending::TimedOut, 12).to_string();
        assert!(line.starts_with("timed out after 2.0 s, 3 requests finished, stopped by SIGTERM, 12 cut: guard taken at src/outcome.rs:"), "{line}");
        assert!(line.ends_with("(2.0 s) and 2 more"), "{line}");
        assert!(!line.contains('\n'));
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
