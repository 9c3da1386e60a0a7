//! `--access-log`: one line for each exchange of the public server.
//!
//! Invariant: nobody waits for the log (rule S21). A line goes to a `LogWriter` of its own, apart
//! from the log of the process, and lines that are lost are told of there. Knows the library's
//! `Exchange`, and leaves to `line.rs` what a line says and to `file.rs` where it goes.

mod file;
mod line;
mod moment;

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use smol_graceful::{Exchange, LogWriter};

use self::file::LogFile;
use self::line::Facts;
pub(crate) use self::line::{Format, word};

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The standard output.
    Stdout,
    /// A file, to whose end they are added.
    File(PathBuf),
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::Stdout } else { Self::File(text.into()) })
    }
}

impl Place {
    /// Finds out whether the log could be written, and leaves no file behind.
    ///
    /// # Errors
    ///
    /// Returns an error that names the path.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self {
            Self::Stdout => Ok(()),
            Self::File(path) => LogFile::check(path),
        }
    }

    /// Opens what the lines are written to.
    ///
    /// # Errors
    ///
    /// Returns an error that names the path.
    pub(crate) fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            // Without the lock and the buffer of the standard library.
            Self::Stdout => Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            Self::File(path) => Box::new(LogFile::open(path)?),
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// An access log that is open. Dropping the last copy writes what is left, in a bounded time.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    writer: LogWriter,
    format: Format,
}

impl AccessLog {
    /// Opens the place and starts the thread that writes to it.
    ///
    /// # Errors
    ///
    /// Returns an error that names the path, or says that there is no thread.
    pub(crate) fn open(place: &Place, format: Format) -> io::Result<Self> {
        let mut losses = Losses::default();
        // No word about lost lines may stand among lines that a program reads.
        let notice = move |lost| {
            losses.tell(lost, Instant::now());
            String::new()
        };
        Ok(Self { writer: LogWriter::with_notice(place.open()?, notice)?, format })
    }

    /// Adds the line of an exchange.
    pub(crate) fn add(&self, exchange: &Exchange) {
        self.writer.line(self.format.line(&facts(exchange)));
    }
}

fn facts(exchange: &Exchange) -> Facts<'_> {
    Facts {
        peer: exchange.peer(),
        listener: exchange.listener(),
        is_https: exchange.is_https(),
        method: exchange.method(),
        target: exchange.target(),
        version: exchange.version(),
        host: exchange.header("host"),
        referer: exchange.header("referer"),
        user_agent: exchange.header("user-agent"),
        forwarded_for: exchange.header("x-forwarded-for"),
        status: exchange.status().map(u16::from),
        received: exchange.received(),
        sent: exchange.sent(),
        body_sent: exchange.body_sent(),
        began: exchange.began(),
        first_byte: exchange.first_byte(),
        took: exchange.took(),
        ending: exchange.ending(),
    }
}

/// The lines that were lost and not told of yet.
#[derive(Debug, Default)]
struct Losses {
    untold: u64,
    told_at: Option<Instant>,
}

impl Losses {
    /// Says in the log of the process how many lines were lost, at most once in 10 s.
    fn tell(&mut self, lost: u64, now: Instant) {
        const PAUSE: Duration = Duration::from_secs(10);
        self.untold += lost;
        if self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE) {
            self.told_at = Some(now);
            log::warn!("{} lines of the access log lost: nobody took them in time", self.untold);
            self.untold = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dash_is_the_standard_output() {
        assert_eq!("-".parse(), Ok(Place::Stdout));
        assert_eq!("/var/log/app.log".parse(), Ok(Place::File("/var/log/app.log".into())));
        assert_eq!("./-".parse(), Ok(Place::File("./-".into())));
    }

    #[test]
    fn losses_are_added_up() {
        let (mut losses, now) = (Losses::default(), Instant::now());
        losses.tell(3, now);
        assert_eq!(losses.untold, 0);
        losses.tell(4, now + Duration::from_secs(9));
        losses.tell(5, now + Duration::from_secs(9));
        assert_eq!(losses.untold, 9);
        losses.tell(1, now + Duration::from_secs(10));
        assert_eq!(losses.untold, 0);
    }
}
