//! `smol-graceful` without a command: the settings of the server, and its outcome as an exit code.
//!
//! Uses the library's public API only. Exit codes: 0 everything was finished, 1 something was cut
//! or the server could not start, 2 usage.

use std::io::{self, Write};
use std::iter;
use std::path::PathBuf;
use std::process::{ExitCode, Termination};

use clap::Parser;
use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use smol_graceful::{
    Address, ListenOptions, Listener, Outcome, Process, ServeError, Server, Shutdown,
};

use crate::arguments::{address, begin_log, read, warn_of_unknown_variables};
use crate::{app, raise_open_files};

/// Serves HTTP/1.1 until HUP, INT, TERM or QUIT, and finishes every request that has begun.
///
/// A second signal later than the repeat window ends this at once, and so does the end of the
/// grace. To restart it without closing a connection, start it under a keeper: smol-graceful keep.
/// Exit code: 0 everything was finished, 1 something was cut or the server could not start, 2 wrong
/// usage.
///
/// Commands: `smol-graceful keep` restarts any program without refusing a client, and
/// `smol-graceful check` says what clients notice of a restart; each has a --help of its own.
///
/// DURATION: such as 300ms, 2s, 1m30s. Logs go to standard error; RUST_LOG says which.
#[derive(Debug, Parser)]
#[command(name = "smol-graceful", version, verbatim_doc_comment)]
struct Settings {
    /// Where to listen; several times, or with commas between the addresses [default: the sockets
    /// that are inherited by LISTEN_FDS, or else :8082]
    ///
    /// ADDR: 127.0.0.1:8082, [::1]:8082, localhost:8082, :8082 for every interface, unix:/path,
    /// unix:@name for an abstract socket (Linux), fd:0 for an inherited socket. An inherited socket
    /// that listens on ADDR is taken. A comma separates addresses, so a path cannot contain one
    #[arg(
        long,
        env = "SMOL_GRACEFUL_LISTEN",
        value_name = "ADDR",
        value_delimiter = ',',
        value_parser = address
    )]
    listen: Vec<Address>,

    /// The permissions of a Unix socket's file in octal, such as 0660: they say who may connect
    /// [default: what the umask leaves]
    ///
    /// Without effect on inherited and abstract sockets
    #[arg(long, env = "SMOL_GRACEFUL_UNIX_MODE", value_name = "MODE", value_parser = unix_mode)]
    unix_mode: Option<u32>,

    /// How long a request to / works
    #[arg(long, env = "SMOL_GRACEFUL_WORK", value_name = "DURATION", default_value = "15s")]
    work: humantime::Duration,

    /// How long the drain may take before what is left is cut; 0s cuts it at once
    ///
    /// A supervisor must wait longer than lame duck and grace together before it kills the process
    #[arg(long, env = "SMOL_GRACEFUL_GRACE", value_name = "DURATION", default_value = "30s")]
    grace: humantime::Duration,

    /// How long idle connections are kept in the drain, for a last request; 0s closes them at once
    ///
    /// Connections that a successor takes over are not closed
    #[arg(long, env = "SMOL_GRACEFUL_LINGER", value_name = "DURATION", default_value = "100ms")]
    linger: humantime::Duration,

    /// How long connections are still accepted after the stop, while /readyz already says no
    #[arg(long, env = "SMOL_GRACEFUL_LAME_DUCK", value_name = "DURATION", default_value = "0s")]
    lame_duck: humantime::Duration,

    /// Where to write the id of the process that serves, when it is ready; removed at the end
    ///
    /// The directory must be writable. Under a keeper nothing is written: give the path to the
    /// keeper
    #[arg(long, env = "SMOL_GRACEFUL_PID_FILE", value_name = "PATH")]
    pid_file: Option<PathBuf>,

    /// How long after the first stop signal further ones belong to the same stop, because wrappers
    /// and terminals send two; with 0s each one counts
    #[arg(
        long,
        env = "SMOL_GRACEFUL_REPEAT_WINDOW",
        value_name = "DURATION",
        default_value = "100ms"
    )]
    repeat_window: humantime::Duration,

    /// Lets another process of this user listen on the same addresses at the same time
    /// (SO_REUSEPORT)
    #[arg(long, env = "SMOL_GRACEFUL_REUSE_PORT", value_parser = BoolishValueParser::new())]
    reuse_port: bool,

    /// Holds back handshakes for 50 ms before the close, so that none is reset: they are tried
    /// again a second later
    #[arg(long, env = "SMOL_GRACEFUL_SYN_FILTER", value_parser = BoolishValueParser::new())]
    syn_filter: bool,

    /// How long a TCP client may be silent before its kernel is asked whether it is still there
    /// (SO_KEEPALIVE); 0s turns the probes off
    ///
    /// A client that answers none of six probes, 10 s apart, is gone
    #[arg(long, env = "SMOL_GRACEFUL_KEEPALIVE", value_name = "DURATION", default_value = "60s")]
    keepalive: humantime::Duration,

    /// How many threads run requests, 1 to 1024 [default: number of cores]
    #[arg(
        long,
        env = "SMOL_GRACEFUL_THREADS",
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024)
    )]
    threads: Option<usize>,
}

/// Serves as the command line says. Returns the exit code.
pub(crate) fn main() -> ExitCode {
    let (settings, mut log) = match read().and_then(|settings| Ok((settings, begin_log()?))) {
        Ok(begun) => begun,
        Err(code) => return code,
    };
    match serve(&settings) {
        Ok(outcome) => outcome.report(),
        Err(error) => {
            let _ = writeln!(log, "smol-graceful: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: &Settings) -> Result<Outcome, ServeError> {
    // A keeper sets the last two, and has settings of its own.
    let keepers = ["SMOL_GRACEFUL_KEEP_", "SMOL_GRACEFUL_KEEPER", "SMOL_GRACEFUL_RESUME"];
    warn_of_unknown_variables::<Settings>("SMOL_GRACEFUL_", &keepers);
    raise_open_files();
    // Bound by `run`, when signals are handled (rule S16).
    let listeners = iter::once_with(|| listeners(settings)).flat_map(|all| match all {
        Ok(listeners) => listeners.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    });
    let shutdown = Shutdown::new()
        .grace(*settings.grace)
        .linger(*settings.linger)
        .lame_duck(*settings.lame_duck);
    let work = *settings.work;
    let server = Server::new(move |request| app::handle(work, request)).shutdown(&shutdown);
    let mut process = Process::default().repeat_window(*settings.repeat_window);
    if let Some(threads) = settings.threads {
        process = process.threads(threads);
    }
    if let Some(path) = &settings.pid_file {
        process = process.pid_file(path);
    }
    process.run(server, listeners)
}

/// Reads permissions in octal, as `chmod` does.
fn unix_mode(text: &str) -> Result<u32, String> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0o").unwrap_or(digits);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 && !digits.starts_with('+') => Ok(mode),
        _ => Err("write the permissions in octal, from 0 to 0777, such as 0660".into()),
    }
}

/// Returns the sockets to listen on, as the operator or the service manager says.
fn listeners(settings: &Settings) -> io::Result<Vec<Listener>> {
    let options = ListenOptions::default()
        .reuse_port(settings.reuse_port)
        .syn_filter(settings.syn_filter)
        .keepalive(*settings.keepalive)
        .unix_mode(settings.unix_mode);
    let mut addresses = settings.listen.clone();
    // `[::]` leaves IPv4 alone if the program listens there already.
    addresses.sort_by_key(is_every_ipv6);
    let listeners = addresses.iter().map(|address| options.bind(address));
    let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
    let inherited = options.inherited()?;
    if !listeners.is_empty() {
        for listener in inherited {
            ::log::warn!("inherited {}, which no --listen asks for", listener.address());
        }
        Ok(listeners)
    } else if !inherited.is_empty() {
        Ok(inherited)
    } else {
        Ok(vec![options.bind(Address::Every(8082))?])
    }
}

/// Returns `true` for `[::]:8082`.
fn is_every_ipv6(address: &Address) -> bool {
    matches!(address, Address::Tcp(addr) if addr.is_ipv6() && addr.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::time::Duration;

    #[test]
    fn the_command_line_is_well_formed() {
        Settings::command().debug_assert();
    }

    /// Operators rely on them.
    #[test]
    fn defaults_are_the_agreed_ones() {
        let settings = Settings::try_parse_from(["smol-graceful"]).unwrap();
        assert_eq!(settings.listen, []);
        assert_eq!(*settings.work, Duration::from_secs(15));
        assert_eq!(*settings.grace, Duration::from_secs(30));
        assert_eq!(*settings.linger, Duration::from_millis(100));
        assert_eq!(*settings.lame_duck, Duration::ZERO);
        assert_eq!(settings.pid_file, None);
        assert_eq!(*settings.repeat_window, Duration::from_millis(100));
        assert!(!settings.reuse_port && !settings.syn_filter);
        assert_eq!(*settings.keepalive, Duration::from_secs(60));
        assert_eq!(settings.threads, None);
        assert_eq!(settings.unix_mode, None);
    }

    #[test]
    fn addresses_are_repeated_or_separated_by_commas() {
        let line = ["smol-graceful", "--listen", ":1,:2", "--listen", "unix:/run/app.sock"];
        let settings = Settings::try_parse_from(line).unwrap();
        let unix = Address::Unix("/run/app.sock".into());
        assert_eq!(settings.listen, [Address::Every(1), Address::Every(2), unix]);
    }

    #[test]
    fn a_mode_is_octal() {
        for (text, mode) in [
            ("0660", Some(0o660)),
            ("660", Some(0o660)),
            ("0o600", Some(0o600)),
            (" 0777 ", Some(0o777)),
            ("0", Some(0)),
            ("1000", None),
            ("0668", None),
            ("+660", None),
            ("-1", None),
            ("0x1b0", None),
            ("rw-rw----", None),
            ("", None),
        ] {
            assert_eq!(unix_mode(text).ok(), mode, "{text}");
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            ["--listen", "8082"],
            ["--listen", ""],
            ["--listen", ":1,,:2"],
            ["--listen", ":1,"],
            ["--listen", "unix:/a,b.sock"],
            ["--unix-mode", "rw"],
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
