//! `--access-log`: one line for each exchange of the public server.
//!
//! Invariant: no thread waits for the log (rule S21). The access log has a `LogWriter` of its own.
//! The log of the process says how many lines were lost, at the latest at the end. This file reads
//! the library's `Exchange`. `line.rs` formats a line, and `file.rs` writes it.

mod file;
mod line;
mod moment;

use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use smol_graceful::{Exchange, LogWriter};

use self::file::LogFile;
use self::line::Facts;
pub(crate) use self::line::{Format, word};

/// If more lines than this are neither written nor reported as lost, some are lost: 4,096 lines may
/// wait in the `LogWriter`, and 64 KiB of lines may be in a write.
const STUCK: u64 = 6 * 1024;

/// The place of the lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The standard output.
    Stdout,
    /// A file, to whose end the lines are added.
    File(PathBuf),
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::Stdout } else { Self::File(text.into()) })
    }
}

impl Place {
    /// Checks that the log can be written, and leaves no new file.
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

    /// Opens the place, and returns it for the lines.
    ///
    /// # Errors
    ///
    /// Returns an error that names the path.
    fn open(&self) -> io::Result<LogFile> {
        Ok(match self {
            Self::Stdout => LogFile::stdout()?,
            Self::File(path) => LogFile::open(path)?,
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

/// An open access log.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    writer: LogWriter,
    format: Format,
    counts: Arc<Counts>,
}

impl AccessLog {
    /// Opens the place, and starts the thread that writes to it.
    ///
    /// # Errors
    ///
    /// Returns an error that names the path, or that says why there is no thread.
    pub(crate) fn open(place: &Place, format: Format) -> io::Result<Self> {
        let counts = Arc::new(Counts::default());
        let (mut losses, counted) = (Losses::default(), counts.clone());
        // The notice about lost lines goes to the log of the process, because a program may read
        // the access log.
        let notice = move |lost| {
            if let Some(lost) = losses.add(lost, Instant::now()) {
                counted.is_stuck.store(false, Relaxed);
                counted.told.fetch_add(lost, Relaxed);
                log::warn!("{lost} lines of the access log lost: nobody took them in time");
            }
            String::new()
        };
        let out = Counted { out: place.open()?, counts: counts.clone() };
        Ok(Self { writer: LogWriter::with_notice(out, notice)?, format, counts })
    }

    /// Adds the line of an exchange.
    pub(crate) fn add(&self, exchange: &Exchange) {
        self.counts.added.fetch_add(1, Relaxed);
        self.writer.line(self.format.line(&facts(exchange)));
        // The thread that writes counts the losses, and may be stuck for as long as the server
        // runs.
        if self.counts.missing() > STUCK && !self.counts.is_stuck.swap(true, Relaxed) {
            log::warn!("nobody takes the lines of the access log: the oldest ones are lost");
        }
    }

    /// Waits for a bounded time until the remaining lines are written. If lines are missing that
    /// the log of the process has not counted yet, logs their number there.
    pub(crate) fn close(self) {
        drop(self.writer);
        let missing = self.counts.missing();
        if missing > 0 {
            log::warn!("{missing} lines of the access log were not written");
        }
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

/// The numbers of lines. The thread that writes may be stuck, so other threads have to be able to
/// count the losses.
#[derive(Debug, Default)]
struct Counts {
    added: AtomicU64,
    written: AtomicU64,
    /// The number of lost lines that the log of the process has reported.
    told: AtomicU64,
    /// Set if the log of the process has said that nobody takes the lines.
    is_stuck: AtomicBool,
}

impl Counts {
    fn missing(&self) -> u64 {
        let known = self.written.load(Relaxed) + self.told.load(Relaxed);
        self.added.load(Relaxed).saturating_sub(known)
    }
}

/// Counts the lines that `out` has taken whole.
struct Counted {
    out: LogFile,
    counts: Arc<Counts>,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        // A line end by itself comes behind a line of which a part is lost.
        let is_end = bytes == b"\n";
        let lines = if is_end { 0 } else { memchr::memchr_iter(b'\n', &bytes[..written]).count() };
        self.counts.written.fetch_add(lines as u64, Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The lost lines that were not reported yet.
#[derive(Debug, Default)]
struct Losses {
    untold: u64,
    told_at: Option<Instant>,
}

impl Losses {
    /// Adds lost lines. Returns the number to report now, or `None` if the last report is less than
    /// 10 s old.
    fn add(&mut self, lost: u64, now: Instant) -> Option<u64> {
        const PAUSE: Duration = Duration::from_secs(10);
        self.untold += lost;
        if self.told_at.is_some_and(|at| now.saturating_duration_since(at) < PAUSE) {
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.untold))
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
        assert_eq!(losses.add(3, now), Some(3));
        assert_eq!(losses.add(4, now + Duration::from_secs(9)), None);
        assert_eq!(losses.add(5, now + Duration::from_secs(9)), None);
        assert_eq!(losses.add(1, now + Duration::from_secs(10)), Some(10));
    }
}
