//! `smol-graceful` without a command: the settings of the server, and its outcome as an exit code.
//!
//! Uses the library's public API only. Exit codes: 0 everything was finished, 1 something was cut
//! or the server could not start, 2 usage.

use std::io::{self, Write};
use std::iter;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::{ExitCode, Termination};
use std::thread;
use std::time::Duration;

use clap::Parser;
use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use humantime::format_duration;
use rustix::process::{Resource, getrlimit};
use smol_graceful::{
    Address, ListenOptions, Listener, Outcome, Process, ServeError, Server, Shutdown,
};

use crate::arguments::{address, begin_log, duration, read, warn_of_unknown_variables};
use crate::preview::{Preview, try_pid_file};
use crate::{app, raise_open_files};

/// Serves HTTP/1.1 until HUP, INT, TERM or QUIT, and finishes every request that has begun.
///
/// A second signal later than the repeat window ends this at once, and so does the end of the
/// grace. To restart it without closing a connection, start it under a keeper: smol-graceful keep.
/// Exit code: 0 everything was finished, 1 something was cut or the server could not start, 2 wrong
/// usage.
///
/// Commands: `smol-graceful keep` restarts any program without refusing a client,
/// `smol-graceful check` says what clients notice of a restart, and `smol-graceful generate` prints
/// man pages and shell completions; each has a --help of its own.
///
/// DURATION: such as 300ms, 2s, 1m30s. Logs go to standard error; RUST_LOG says which.
#[derive(Debug, Parser)]
#[command(name = "smol-graceful", version, verbatim_doc_comment)]
pub(crate) struct Settings {
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
    #[arg(long, env = "SMOL_GRACEFUL_WORK", value_name = "DURATION", value_parser = duration, default_value = "15s")]
    work: Duration,

    /// How long the drain may take before what is left is cut; 0s cuts it at once
    ///
    /// A supervisor must wait longer than lame duck and grace together before it kills the process
    #[arg(long, env = "SMOL_GRACEFUL_GRACE", value_name = "DURATION", value_parser = duration, default_value = "30s")]
    grace: Duration,

    /// How long idle connections are kept in the drain, for a last request; 0s closes them at once
    ///
    /// Connections that a successor takes over are not closed
    #[arg(long, env = "SMOL_GRACEFUL_LINGER", value_name = "DURATION", value_parser = duration, default_value = "100ms")]
    linger: Duration,

    /// How long connections are still accepted after the stop, while /readyz already says no
    #[arg(long, env = "SMOL_GRACEFUL_LAME_DUCK", value_name = "DURATION", value_parser = duration, default_value = "0s")]
    lame_duck: Duration,

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
        value_parser = duration,
        default_value = "100ms"
    )]
    repeat_window: Duration,

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
    #[arg(long, env = "SMOL_GRACEFUL_KEEPALIVE", value_name = "DURATION", value_parser = duration, default_value = "60s")]
    keepalive: Duration,

    /// How many threads run requests, 1 to 1024 [default: number of cores]
    #[arg(
        long,
        env = "SMOL_GRACEFUL_THREADS",
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024)
    )]
    threads: Option<usize>,

    /// Says what it would do, tries to bind each address and to write each file, lets go of them,
    /// and ends: with 0 if it would start, and 1 if not
    #[arg(long)]
    check: bool,
}

/// Serves as the command line says. Returns the exit code.
pub(crate) fn main() -> ExitCode {
    let (settings, mut log) =
        match read().and_then(|settings: Settings| Ok((settings, begin_log()?))) {
            Ok(begun) => begun,
            Err(code) => return code,
        };
    // A keeper sets the last two, and has settings of its own.
    let keepers = ["SMOL_GRACEFUL_KEEP_", "SMOL_GRACEFUL_KEEPER", "SMOL_GRACEFUL_RESUME"];
    warn_of_unknown_variables::<Settings>("SMOL_GRACEFUL_", &keepers);
    raise_open_files();
    if settings.check {
        let preview = preview(&settings);
        // Before what is printed, so that both stand in order on a terminal.
        drop(log);
        return preview.end();
    }
    match serve(&settings) {
        Ok(outcome) => outcome.report(),
        Err(error) => {
            let _ = writeln!(log, "smol-graceful: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: &Settings) -> Result<Outcome, ServeError> {
    // Bound by `run`, when signals are handled (rule S16).
    let listeners = iter::once_with(|| {
        let listeners = listeners(settings);
        if listeners.iter().all(Result::is_ok) {
            ::log::info!(concat!("smol-graceful ", env!("CARGO_PKG_VERSION")));
        }
        listeners
    });
    let shutdown =
        Shutdown::new().grace(settings.grace).linger(settings.linger).lame_duck(settings.lame_duck);
    let work = settings.work;
    let server = Server::new(move |request| app::handle(work, request)).shutdown(&shutdown);
    let mut process = Process::default().repeat_window(settings.repeat_window);
    if let Some(threads) = settings.threads {
        process = process.threads(threads);
    }
    if let Some(path) = &settings.pid_file {
        process = process.pid_file(path);
    }
    process.run(server, listeners.flatten())
}

/// Says what [`serve`] would do.
fn preview(settings: &Settings) -> Preview {
    let mut preview = Preview::new();
    // All at once, as two of them may be in each other's way.
    let listeners = listeners(settings);
    for listener in &listeners {
        preview.tried(listener.as_ref().map(|listener| {
            let inherited = if listener.is_inherited() { " (inherited)" } else { "" };
            format!("listens on {}{inherited}", listener.address())
        }));
    }
    if let Some(path) = &settings.pid_file {
        let writes = format!("writes the pid file {}", path.display());
        preview.tried(try_pid_file(path).map(|()| writes));
    }
    let [work, grace, linger, lame_duck] =
        [settings.work, settings.grace, settings.linger, settings.lame_duck].map(format_duration);
    let longest = format_duration(settings.lame_duck.saturating_add(settings.grace));
    preview.say(format_args!("works for {work} at each GET of /"));
    preview.say(format_args!("at a stop: lame duck {lame_duck}, grace {grace}, linger {linger}"));
    preview.say(format_args!("a supervisor has to wait longer than {longest} before it kills it"));
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    preview.say(format_args!("runs {} threads for requests", settings.threads.unwrap_or(cores)));
    if let Some(files) = getrlimit(Resource::Nofile).current {
        preview.say(format_args!("may open {files} files and connections"));
    }
    preview
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

/// Binds the sockets to listen on, as the operator or the service manager says.
fn listeners(settings: &Settings) -> Vec<io::Result<Listener>> {
    let options = ListenOptions::default()
        .reuse_port(settings.reuse_port)
        .syn_filter(settings.syn_filter)
        .keepalive(settings.keepalive)
        .unix_mode(settings.unix_mode);
    let mut addresses = settings.listen.clone();
    // `[::]` leaves IPv4 alone if the program listens there already.
    addresses.sort_by_key(is_every_ipv6);
    let listeners: Vec<_> = addresses.iter().map(|address| options.bind(address)).collect();
    let inherited = match options.inherited() {
        Ok(inherited) => inherited,
        Err(error) => return vec![Err(error)],
    };
    if !listeners.is_empty() {
        for listener in inherited {
            ::log::warn!("inherited {}, which no --listen asks for", listener.address());
        }
        listeners
    } else if !inherited.is_empty() {
        inherited.into_iter().map(Ok).collect()
    } else {
        vec![options.bind(Address::Every(8082))]
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
        assert_eq!(settings.pid_file, None);
        assert_eq!(settings.repeat_window, Duration::from_millis(100));
        assert!(!settings.reuse_port && !settings.syn_filter);
        assert_eq!(settings.keepalive, Duration::from_secs(60));
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
