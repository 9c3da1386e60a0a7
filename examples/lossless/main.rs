//! A load for a server that is restarted meanwhile: says whether a request was lost by it.
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

mod load;
#[cfg(test)]
mod tests;

use load::{Load, Report, Tally, Target};

/// Keeps a server under load, restarts it by COMMAND, and says what became of every request
///
/// Exit code: 0 nothing was lost, 1 something was lost, 2 wrong usage, a COMMAND that failed or a
/// server that does not answer. DURATION: such as 300ms, 2s. What COMMAND prints goes to standard
/// error.
#[derive(Debug, Parser)]
#[command(name = "lossless")]
struct Settings {
    /// Where the server listens: 127.0.0.1:8082, [::1]:8082, unix:/path
    #[arg(long, value_name = "ADDR")]
    address: Target,

    /// How many clients ask at the same time
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000),
        default_value = "16"
    )]
    clients: usize,

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

    /// What restarts the server, and returns when that is done
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let settings = Settings::parse();
    let load = Load {
        clients: settings.clients,
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

fn failed(error: &io::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "lossless: {}", error.to_string().trim_end());
    ExitCode::from(2)
}

impl Settings {
    /// What happens while the load is on, in words. An error if a restart has failed.
    fn restart(&self, tally: &Tally, patience: Duration) -> io::Result<String> {
        let Some((program, args)) = self.command.split_first() else {
            thread::sleep(self.duration);
            return Ok("no restart".to_owned());
        };
        let mut longest = Duration::ZERO;
        for number in 1..=self.restarts {
            thread::sleep(self.pause);
            let start = Instant::now();
            let status = Command::new(program)
                .args(args)
                .stdin(Stdio::null())
                // Standard output is the report's.
                .stdout(io::stderr())
                .status();
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

    /// Prints the report, and what it comes to.
    fn judge(&self, report: &Report, what: &str, took: Duration) -> ExitCode {
        let (lost, refused) = (report.lost(), report.refused);
        let (verdict, code) = match lost {
            0 if self.none_refused && refused > 0 => {
                (format!("nothing was lost, but {refused} refused"), ExitCode::FAILURE)
            }
            0 => ("nothing was lost".to_owned(), ExitCode::SUCCESS),
            _ => (format!("{lost} lost"), ExitCode::FAILURE),
        };
        let clients = self.clients;
        // Whoever does not read it has the exit code.
        let _ =
            writeln!(io::stdout(), "{report}{what}; {took:.1?} with {clients} clients: {verdict}");
        code
    }
}
