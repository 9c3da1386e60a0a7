//! The binary: arguments and environment become calls of the library, its outcome the exit code.
//!
//! Uses the library's public API only. Exit codes: 0 everything was finished, 1 something was cut
//! or the server could not start, 2 usage. They are decided here and nowhere else.

#[path = "main/app.rs"]
mod app;
#[path = "main/log.rs"]
mod log;

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::iter;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser};
use humantime::parse_duration;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use smol_graceful::{
    Address, Limits, ListenOptions, Listener, LogWriter, Outcome, Process, ServeError, Server,
};

fn main() -> ExitCode {
    let settings = match settings() {
        Ok(settings) => settings,
        Err(error) => return usage(&error),
    };
    let mut log = match LogWriter::new(io::stderr()) {
        Ok(log) => log,
        Err(error) => {
            // There is no thread to write it, and nothing in flight that it could hold up.
            let _ = writeln!(io::stderr(), "smol-graceful: {error}");
            return ExitCode::FAILURE;
        }
    };
    log::install(&log, &env::var("RUST_LOG").unwrap_or_default());
    // `log` is flushed where it is dropped, behind the last line, in a bounded time.
    match serve(&settings) {
        Ok(outcome) => outcome.report(),
        Err(error) => {
            let _ = writeln!(log, "smol-graceful: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves HTTP/1.1 until HUP, INT, TERM or QUIT, and finishes every request that has begun.
///
/// A second signal later than the repeat window ends this at once, and so does the end of the grace. USR2 starts the executable
/// again, with the sockets, and ends this process when that one is ready. Exit code: 0 everything was
/// finished, 1 something was cut or the server could not start, 2 wrong usage.
///
/// DURATION: such as 300ms, 2s, 1m30s. Logs go to standard error; RUST_LOG says which.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Settings {
    /// Where to listen; several times, or with commas between the addresses [default: the sockets
    /// that are inherited by LISTEN_FDS, or else :8082]
    ///
    /// ADDR: 127.0.0.1:8082, [::1]:8082, :8082 for every interface, unix:/path, fd:0 for an inherited
    /// socket. An inherited socket that listens on ADDR is taken
    #[arg(long, env = "SMOL_GRACEFUL_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    listen: Vec<Address>,

    /// How long a request to / works
    #[arg(
        long,
        env = "SMOL_GRACEFUL_WORK",
        value_name = "DURATION",
        value_parser = parse_duration,
        default_value = "15s"
    )]
    work: Duration,

    /// How long the drain may take before what is left is cut
    ///
    /// What kills the process if it does not end must wait longer than lame duck and grace together
    #[arg(
        long,
        env = "SMOL_GRACEFUL_GRACE",
        value_name = "DURATION",
        value_parser = parse_duration,
        default_value = "30s"
    )]
    grace: Duration,

    /// How long idle connections are kept in the drain, for a last request
    #[arg(
        long,
        env = "SMOL_GRACEFUL_LINGER",
        value_name = "DURATION",
        value_parser = parse_duration,
        default_value = "100ms"
    )]
    linger: Duration,

    /// How long connections are still accepted after the stop, while /readyz already says no
    #[arg(
        long,
        env = "SMOL_GRACEFUL_LAME_DUCK",
        value_name = "DURATION",
        value_parser = parse_duration,
        default_value = "0s"
    )]
    lame_duck: Duration,

    /// How long a successor that USR2 has started may take until it is ready
    #[arg(
        long,
        env = "SMOL_GRACEFUL_PATIENCE",
        value_name = "DURATION",
        value_parser = parse_duration,
        default_value = "30s"
    )]
    patience: Duration,

    /// How long after the first stop signal further ones belong to the same stop, because wrappers
    /// and terminals send two; with 0s each one counts
    #[arg(
        long,
        env = "SMOL_GRACEFUL_REPEAT_WINDOW",
        value_name = "DURATION",
        value_parser = parse_duration,
        default_value = "100ms"
    )]
    repeat_window: Duration,

    /// Lets a successor listen on the same addresses at the same time (SO_REUSEPORT)
    #[arg(long, env = "SMOL_GRACEFUL_REUSE_PORT", value_parser = BoolishValueParser::new())]
    reuse_port: bool,

    /// Holds back handshakes for 50 ms before the close, so that none is reset: they are tried again
    /// a second later
    #[arg(long, env = "SMOL_GRACEFUL_SYN_FILTER", value_parser = BoolishValueParser::new())]
    syn_filter: bool,

    /// How long a TCP client may be silent before its kernel is asked whether it is still there
    /// (SO_KEEPALIVE); 0s turns the probes off
    ///
    /// A client that answers none of six probes, 10 s apart, is gone
    #[arg(
        long,
        env = "SMOL_GRACEFUL_KEEPALIVE",
        value_name = "DURATION",
        value_parser = parse_duration,
        default_value = "60s"
    )]
    keepalive: Duration,

    /// How many threads run requests, 1 to 1024 [default: number of cores]
    #[arg(
        long,
        env = "SMOL_GRACEFUL_THREADS",
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024)
    )]
    threads: Option<usize>,
}

/// The arguments, and the environment where they are silent; a variable that is set to nothing is
/// not set.
fn settings() -> Result<Settings, clap::Error> {
    let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    let command = Settings::command().mut_args(|arg| match arg.get_env() {
        Some(name) if is_empty(name) => arg.env(None::<&str>),
        _ => arg,
    });
    Settings::from_arg_matches(&command.try_get_matches()?)
}

/// Says what is wrong with the arguments, or what was asked for: `--help`, `--version`.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.kind() == ErrorKind::ValueValidation {
        // For a wrong value clap leaves it out.
        let _ = write!(io::stderr(), "\n{}\n", Settings::command().render_usage());
    }
    if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

fn serve(settings: &Settings) -> Result<Outcome, ServeError> {
    raise_open_files();
    // Bound by `run`, when signals are handled (rule S16).
    let listeners = iter::once_with(|| listeners(settings)).flat_map(|all| match all {
        Ok(listeners) => listeners.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    });
    let Settings { work, grace, linger, lame_duck, patience, repeat_window, threads, .. } =
        *settings;
    let limits = Limits { grace, linger, lame_duck, ..Limits::default() };
    let server = Server::new(move |request| app::handle(work, request)).limits(limits);
    let mut process = Process::default().patience(patience).repeat_window(repeat_window);
    if let Some(threads) = threads {
        process = process.threads(threads);
    }
    process.run(server, listeners)
}

/// The sockets to listen on: as the operator says, or as whoever started this process does.
fn listeners(settings: &Settings) -> io::Result<Vec<Listener>> {
    let options = ListenOptions::default()
        .reuse_port(settings.reuse_port)
        .syn_filter(settings.syn_filter)
        .keepalive(settings.keepalive);
    let every = settings.listen.iter().map(|address| options.bind(address));
    let listeners = every.collect::<io::Result<Vec<_>>>()?;
    let inherited = options.inherited()?;
    if listeners.is_empty() && inherited.is_empty() {
        return Ok(vec![options.bind(&Address::Every(8082))?]);
    }
    if listeners.is_empty() {
        return Ok(inherited);
    }
    for listener in inherited {
        ::log::warn!("inherited {}, which no --listen asks for", listener.address());
    }
    Ok(listeners)
}

/// Raises the soft limit of open files to the hard one, as Go does: the low soft limit is there for
/// programs that use `select`. [`Limits::default`] looks at it. If it fails, less must do.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Settings::command().debug_assert();
    }

    /// Operators rely on them.
    #[test]
    fn defaults_are_the_agreed_ones() {
        let settings = Settings::try_parse_from(["smol-graceful"]).unwrap();
        assert_eq!(settings.listen, []);
        assert_eq!(settings.work, Duration::from_secs(15));
        assert_eq!(settings.grace, Duration::from_secs(30));
        assert_eq!(settings.linger, Duration::from_millis(100));
        assert_eq!(settings.lame_duck, Duration::ZERO);
        assert_eq!(settings.patience, Duration::from_secs(30));
        assert_eq!(settings.repeat_window, Duration::from_millis(100));
        assert!(!settings.reuse_port && !settings.syn_filter);
        assert_eq!(settings.keepalive, Duration::from_secs(60));
        assert_eq!(settings.threads, None);
    }

    #[test]
    fn addresses_are_repeated_or_separated_by_commas() {
        let line = ["smol-graceful", "--listen", ":1,:2", "--listen", "unix:/run/app.sock"];
        let settings = Settings::try_parse_from(line).unwrap();
        let unix = Address::Unix("/run/app.sock".into());
        assert_eq!(settings.listen, [Address::Every(1), Address::Every(2), unix]);
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            ["--listen", "8082"],
            ["--listen", ""],
            ["--work", "15"],
            ["--grace", "-1s"],
            ["--linger", "soon"],
            ["--repeat-window", "100"],
            ["--keepalive", "often"],
            ["--threads", "0"],
            ["--threads", "many"],
            ["--thread", "1"],
        ] {
            let line = ["smol-graceful"].into_iter().chain(line);
            assert_eq!(Settings::try_parse_from(line).unwrap_err().exit_code(), 2);
        }
    }
}
