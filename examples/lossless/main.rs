//! A load for a server that is restarted meanwhile: says what its clients notice of that.
//!
//! Run with:
//!
//! ```
//! cargo run --release --example lossless -- --address 127.0.0.1:8082 -- systemctl restart app
//! ```
//!
//! The server must have two routes: `GET /work?for=20ms` works that long and answers `okay`, and
//! `POST /echo?for=20ms` works that long and answers with the body that it was sent.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use humantime::parse_duration;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

mod load;
#[cfg(test)]
mod tests;

use load::{Load, Report, Tally, Target};

/// Keeps a server under load, restarts it by COMMAND, and says what became of every request and
/// connection
///
/// Of the clients that ask without a pause, a third each take a new connection for every GET, keep
/// theirs for the next GET, and keep theirs for the next POST. A client whose kept connection is
/// closed takes a new one for its next request, and nothing is lost, unless it has sent that
/// request already.
///
/// The report counts requests that were answered, refused or lost, and connections that the server
/// closed: asked, because the request had asked for that; told, because the last answer said so;
/// untold, by FIN or reset, although no answer had said so. It gives p99 and the longest time of
/// all answers, and of those near a restart: in it, or begun within a second behind it.
///
/// Exit code: 0 nothing was lost, 1 something was lost (or what --none-refused and --seamless say),
/// 2 wrong usage, a COMMAND that failed or a server that does not answer. DURATION: such as 300ms,
/// 2s. The output of COMMAND goes to standard error.
#[derive(Debug, Parser)]
#[command(name = "lossless")]
struct Settings {
    /// Where the server listens: 127.0.0.1:8082, [::1]:8082, unix:/path
    #[arg(long, value_name = "ADDR")]
    address: Target,

    /// How many clients ask without a pause
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000),
        default_value = "16"
    )]
    clients: usize,

    /// How many idle clients there are beside them
    ///
    /// Each keeps a connection, on which it sends GET or POST at random moments, up to 5 s apart. A
    /// quarter of them sends when COMMAND is started: half of those at once, the others in the 300
    /// ms after it. At the end each of them sends once more
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(0..=20_000),
        default_value = "0"
    )]
    idle: usize,

    /// Clients send on a kept connection without a look whether the server has closed it
    ///
    /// A request on a closed connection is lost then. Without this, a client that finds its
    /// connection closed before it sends opens another one, as most client libraries do
    #[arg(long)]
    blind: bool,

    /// The longest that the server is asked to work on a request
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "50ms")]
    longest: Duration,

    /// How often COMMAND is run
    #[arg(long, value_name = "NUMBER", requires = "command", default_value = "10")]
    restarts: u32,

    /// How long the load goes on before each restart and after the last
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        requires = "command",
        default_value = "300ms"
    )]
    pause: Duration,

    /// How long the load goes on without COMMAND
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        conflicts_with = "command",
        default_value = "5s"
    )]
    duration: Duration,

    /// Refused connects count as lost
    #[arg(long)]
    none_refused: bool,

    /// Fails if a client notices anything: if a request was lost, a connect was refused, or the
    /// server closed a connection without being asked to, whether its last answer said so or not
    #[arg(long)]
    seamless: bool,

    /// A program that restarts the server, and ends when that is done
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let settings = Settings::parse();
    raise_open_files();
    let load = Load {
        clients: settings.clients,
        idle: settings.idle,
        is_blind: settings.blind,
        longest: settings.longest,
        ..Load::new(settings.address.clone())
    };
    let start = Instant::now();
    match load.run(|tally| settings.restart(tally, load.patience)) {
        Ok((report, Ok(what))) => settings.judge(&report, &what, start.elapsed()),
        Ok((report, Err(error))) => {
            let _ = write!(io::stdout(), "{report}");
            failed(&error)
        }
        Err(error) => failed(&error),
    }
}

/// Raises the limit of open files as far as it goes, because each client has a socket.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

fn failed(error: &io::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "lossless: {}", error.to_string().trim_end());
    ExitCode::from(2)
}

impl Settings {
    /// Restarts the server while the load is on, and returns in words what was done. Fails if a
    /// restart fails.
    fn restart(&self, tally: &Tally, patience: Duration) -> io::Result<String> {
        let Some((program, args)) = self.command.split_first() else {
            thread::sleep(self.duration);
            return Ok("no restart".to_owned());
        };
        let mut longest = Duration::ZERO;
        for number in 1..=self.restarts {
            thread::sleep(self.pause);
            let start = Instant::now();
            let mut command = Command::new(program);
            // Standard output is the report's.
            command.args(args).stdin(Stdio::null()).stdout(io::stderr());
            let status = tally.restart(|| command.status());
            let wrong = |what: String| {
                let program = program.to_string_lossy();
                let restarts = self.restarts;
                io::Error::other(format!("restart {number} of {restarts}: `{program}` {what}"))
            };
            let status = status.map_err(|error| wrong(format!("cannot be run: {error}")))?;
            if !status.success() {
                return Err(wrong(format!("failed: {status}")));
            }
            longest = longest.max(start.elapsed());
        }
        thread::sleep(self.pause);
        if !tally.all_answered(patience) {
            let error = "some client has had no answer since the last restart";
            return Err(io::Error::new(io::ErrorKind::TimedOut, error));
        }
        Ok(format!("{} restarts, the longest took {longest:.1?}", self.restarts))
    }

    /// Prints the report and the verdict.
    fn judge(&self, report: &Report, what: &str, took: Duration) -> ExitCode {
        let (verdict, code) = match self.faults(report).as_slice() {
            [] if self.seamless => ("no client has noticed anything".to_owned(), ExitCode::SUCCESS),
            [] => ("nothing was lost".to_owned(), ExitCode::SUCCESS),
            faults => (faults.join(", "), ExitCode::FAILURE),
        };
        let (clients, idle) = (self.clients, self.idle);
        let idle = if idle > 0 { format!(" and {idle} idle ones") } else { String::new() };
        // If nobody reads it, the exit code still tells.
        let _ = writeln!(
            io::stdout(),
            "{report}{what}; {took:.1?} with {clients} clients{idle}: {verdict}"
        );
        code
    }

    /// Returns the faults of a server that must not have any.
    fn faults(&self, report: &Report) -> Vec<String> {
        let Self { seamless, none_refused, .. } = self;
        [
            (true, report.lost(), "lost"),
            (*seamless, report.closed(), "connections closed by the server"),
            (*seamless || *none_refused, report.refused, "refused"),
        ]
        .into_iter()
        .filter(|(counts, number, _)| *counts && *number > 0)
        .map(|(_, number, what)| format!("{number} {what}"))
        .collect()
    }
}
