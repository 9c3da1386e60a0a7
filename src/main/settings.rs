//! The command line of `smol-graceful` without a command, and its environment.
//!
//! Each setting is a flag and a variable, with its default and the facts that an operator needs.
//! Nothing here acts, because `serve.rs` does.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use smol_graceful::Address;

use crate::access_log::{Format, Place};
use crate::arguments::{Dependent, GivenInVain, address, boolean, duration};

/// Serves HTTP/1.1 until HUP, INT, TERM or QUIT, and finishes every request that has begun.
///
/// A second signal after the repeat window ends the server at once, and so does the end of the
/// grace. To restart the server without closing a connection, start it under a keeper:
/// smol-graceful keep. The exit code is 0 if all work was finished, 1 if work was cut or the server
/// could not start, and 2 for wrong usage.
///
/// Commands: `smol-graceful keep` restarts any program without refusing a client, `smol-graceful
/// check` reports what clients notice of a restart, and `smol-graceful generate` prints man pages
/// and shell completions. Each has a --help of its own.
///
/// DURATION is a time such as 300ms, 2s or 1m30s. Logs go to standard error. RUST_LOG sets the
/// lines that are logged.
#[derive(Debug, Parser)]
#[command(name = "smol-graceful", version, verbatim_doc_comment)]
pub(crate) struct Settings {
    /// The addresses to listen on; several times, or with commas between them [default: the sockets
    /// that are inherited by LISTEN_FDS, or else :8082]
    ///
    /// ADDR: 127.0.0.1:8082, [::1]:8082, localhost:8082, :8082 for every interface, unix:/path,
    /// unix:@name for an abstract socket (Linux), fd:0 for an inherited socket. If a socket on ADDR
    /// was inherited, the server takes that one. A comma separates addresses, so a path cannot
    /// contain one
    #[arg(
        long,
        env = "SMOL_GRACEFUL_LISTEN",
        value_name = "ADDR",
        value_delimiter = ',',
        value_parser = address
    )]
    pub(crate) listen: Vec<Address>,

    /// The permissions of a Unix socket's file in octal, such as 0660, which decide which users may
    /// connect [default: those of the umask]
    ///
    /// Needs an address such as unix:/path. Without effect on inherited and abstract sockets
    #[arg(long, env = "SMOL_GRACEFUL_UNIX_MODE", value_name = "MODE", value_parser = unix_mode)]
    pub(crate) unix_mode: Option<u32>,

    /// How long a request to / works
    #[arg(long, env = "SMOL_GRACEFUL_WORK", value_name = "DURATION", value_parser = duration, default_value = "15s")]
    pub(crate) work: Duration,

    /// How long the drain may take before the remaining work is cut; 0s cuts it at once
    ///
    /// A supervisor must wait longer than lame duck and grace together before it kills the process
    #[arg(long, env = "SMOL_GRACEFUL_GRACE", value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub(crate) grace: Duration,

    /// How long idle connections are kept in the drain, for a last request; 0s closes them at once
    ///
    /// Connections that a successor takes over are not closed
    #[arg(long, env = "SMOL_GRACEFUL_LINGER", value_name = "DURATION", value_parser = duration, default_value = "100ms")]
    pub(crate) linger: Duration,

    /// How long connections are still accepted after the stop, while /readyz already answers 503
    #[arg(long, env = "SMOL_GRACEFUL_LAME_DUCK", value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pub(crate) lame_duck: Duration,

    /// How long a streamed response or an upgraded connection may be silent in the drain before it
    /// is closed [default: as long as the grace]
    ///
    /// An upgraded connection whose client has closed its side is closed after this time, too
    #[arg(
        long,
        env = "SMOL_GRACEFUL_STREAM_GRACE",
        value_name = "DURATION",
        value_parser = duration
    )]
    pub(crate) stream_grace: Option<Duration>,

    /// The file that gets a line for each request after its end: a path, or - for standard output
    ///
    /// Lines are added to the end of the file. If the file was renamed or removed, it is made anew
    /// within a second, so logrotate needs neither copytruncate nor a signal. No request waits for
    /// the file. If it cannot be written in time, lines are lost, and the log says how many
    #[arg(long, env = "SMOL_GRACEFUL_ACCESS_LOG", value_name = "WHERE")]
    pub(crate) access_log: Option<Place>,

    /// The format of these lines: Apache's and nginx's combined format, or a JSON object in each
    /// line
    ///
    /// Needs --access-log
    #[arg(
        long,
        env = "SMOL_GRACEFUL_ACCESS_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "combined"
    )]
    pub(crate) access_log_format: Format,

    /// The addresses that answer operators until the server has drained: /livez and /readyz of the
    /// server, /metrics in Prometheus' text format, /connections; several times, or with commas
    /// between the addresses
    ///
    /// The admin server serves 16 connections at the same time, and idle ones give way to further
    /// clients.
    /// Every client that can connect there may read these pages, so choose an address that only
    /// operators reach
    #[arg(
        long,
        env = "SMOL_GRACEFUL_ADMIN",
        value_name = "ADDR",
        value_delimiter = ',',
        value_parser = address
    )]
    pub(crate) admin: Vec<Address>,

    /// The file that gets the id of the process that serves, when it is ready; removed at the end
    ///
    /// The directory must be writable. Under a keeper nothing is written, so give the path to the
    /// keeper
    #[arg(long, env = "SMOL_GRACEFUL_PID_FILE", value_name = "PATH")]
    pub(crate) pid_file: Option<PathBuf>,

    /// The time after the first stop signal in which further ones belong to the same stop, because
    /// wrappers and terminals send two; with 0s each one counts
    #[arg(
        long,
        env = "SMOL_GRACEFUL_REPEAT_WINDOW",
        value_name = "DURATION",
        value_parser = duration,
        default_value = "100ms"
    )]
    pub(crate) repeat_window: Duration,

    /// Lets another process of this user listen on the same addresses at the same time
    /// (SO_REUSEPORT)
    #[arg(long, env = "SMOL_GRACEFUL_REUSE_PORT", value_parser = boolean)]
    pub(crate) reuse_port: bool,

    /// Holds back handshakes for 50 ms before the close, so that none is reset; clients try again a
    /// second later
    #[arg(long, env = "SMOL_GRACEFUL_SYN_FILTER", value_parser = boolean)]
    pub(crate) syn_filter: bool,

    /// How long a TCP client may be silent before its kernel is asked whether it is still there
    /// (SO_KEEPALIVE); 0s turns the probes off
    ///
    /// A client that answers none of six probes, 10 s apart, is gone
    #[arg(long, env = "SMOL_GRACEFUL_KEEPALIVE", value_name = "DURATION", value_parser = duration, default_value = "60s")]
    pub(crate) keepalive: Duration,

    /// How many threads run requests, 1 to 1024 [default: number of cores]
    #[arg(
        long,
        env = "SMOL_GRACEFUL_THREADS",
        value_name = "NUMBER",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024)
    )]
    pub(crate) threads: Option<usize>,

    /// Prints what it would do, tries to bind each address and to write each file, and ends with 0
    /// if it would start, and 1 if not
    #[arg(long)]
    pub(crate) check: bool,
}

impl Dependent for Settings {
    fn given_in_vain(&self, is_given: impl Fn(&str) -> bool) -> Option<GivenInVain> {
        let is_file = |address: &Address| matches!(address, Address::Unix(_));
        let has_file = self.listen.iter().chain(&self.admin).any(is_file);
        if self.access_log.is_none() && is_given("access_log_format") {
            return Some(GivenInVain { field: "access_log_format", needs: "--access-log WHERE" });
        }
        (self.unix_mode.is_some() && !has_file).then_some(GivenInVain {
            field: "unix_mode",
            needs: "an address such as --listen unix:/run/app.sock",
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Settings::command().debug_assert();
    }

    /// Operators rely on these values.
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
