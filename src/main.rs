//! The binary: arguments and environment become calls of the library, its outcome the exit code.
//!
//! Uses the library's public API only. Exit codes: 0 everything was finished, 1 something was cut
//! or the server could not start, 2 usage. They are decided here and nowhere else.

#[path = "main/app.rs"]
mod app;
#[path = "main/check/mod.rs"]
mod check;
#[path = "main/keep.rs"]
mod keep;
#[path = "main/log.rs"]
mod log;

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::iter;
use std::path::PathBuf;
use std::process::{ExitCode, Termination};

use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use smol_graceful::{
    Address, ListenOptions, Listener, LogWriter, Outcome, Process, ServeError, Server, Shutdown,
};

fn main() -> ExitCode {
    let settings = match settings() {
        Ok(settings) => settings,
        Err(error) => return usage(&error),
    };
    if let Some(Command::Check(check)) = &settings.command {
        raise_open_files();
        return check::run(check);
    }
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
    if let Some(Command::Keep(keep)) = &settings.command {
        warn_of_unknown_variables("SMOL_GRACEFUL_KEEP_");
        return keep::run(keep, &mut log);
    }
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
/// A second signal later than the repeat window ends this at once, and so does the end of the
/// grace. To restart it without closing a connection, start it under a keeper: smol-graceful keep.
/// Exit code: 0 everything was finished, 1 something was cut or the server could not start, 2 wrong
/// usage.
///
/// DURATION: such as 300ms, 2s, 1m30s. Logs go to standard error; RUST_LOG says which.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment, args_conflicts_with_subcommands = true)]
struct Settings {
    #[command(subcommand)]
    command: Option<Command>,

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

    /// Who may connect to the file of a Unix socket: its permissions in octal, such as 0660
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
    /// The directory must be writable. Under a keeper nothing is written: give the path to the keeper
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

    /// Lets another process of this user listen on the same addresses at the same time (SO_REUSEPORT)
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

/// The uses of the binary besides serving.
#[derive(Debug, Subcommand)]
enum Command {
    /// Keeps a server under load, restarts it, and says what became of every request and connection
    ///
    /// It works with any HTTP/1.1 server, for example:
    ///
    ///     smol-graceful check --restarts 3 http://127.0.0.1:8082/ -- systemctl restart app
    ///
    /// A client whose kept connection is closed takes a new one for its next request, and nothing is
    /// lost, unless it has sent that request already.
    ///
    /// The report counts requests that were answered, refused or lost, and connections that the
    /// server closed: asked, because the request had asked for that; told, because the last answer
    /// said so; untold, by FIN or reset, although no answer had said so. It gives p99 and the longest
    /// time of all answers, and of those near a restart: in it, or begun within a second behind it.
    ///
    /// Exit code: 0 nothing was lost, 1 something was lost (or what --none-refused and --seamless
    /// say), the server cannot be reached or COMMAND fails, 2 wrong usage.
    ///
    /// DURATION: such as 300ms, 2s.
    #[command(verbatim_doc_comment)]
    Check(Box<check::Settings>),

    /// Keeps the listening sockets of any program, and starts the program anew at USR2 without
    /// refusing a client.
    ///
    ///     smol-graceful keep --pid-file /run/app.pid -- smol-graceful --listen :8082
    ///     smol-graceful keep --listen :8080 --ready 2s -- node server.js
    ///
    /// The process id never changes. A restart starts the next process of the program, and when it
    /// is ready, the one before it finishes what it has. A program of this library hands its
    /// connections over, so that no client notices; another one is stopped by TERM. If the next
    /// process fails, the one before it goes on. If the only process dies, another is started, and
    /// clients wait meanwhile.
    ///
    /// HUP, INT, TERM and QUIT go to all processes of the program, and the keeper ends with them.
    /// Other signals go to the one that serves. Exit code: that of the newest process (128 and the
    /// number of the signal that has killed it), 1 if another had to be cut or the keeper could not
    /// begin, 2 wrong usage.
    ///
    /// DURATION: such as 300ms, 2s. Logs go to standard error; RUST_LOG says which.
    #[command(verbatim_doc_comment)]
    Keep(Box<keep::Settings>),
}

/// Reads an address from among those that commas separate.
fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error| format!("{error} (a comma separates addresses)"))
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

/// Reads the arguments, and the environment where the arguments are silent. A variable that is set
/// to nothing counts as not set.
fn settings() -> Result<Settings, clap::Error> {
    let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    // The variables are the server's.
    let is_other = subcommand().is_some();
    let command = Settings::command().mut_args(|arg| match arg.get_env() {
        Some(name) if is_other || is_empty(name) => arg.env(None::<&str>),
        _ => arg,
    });
    let command = command.mut_subcommands(|command| {
        command.mut_args(|arg| match arg.get_env() {
            Some(name) if is_empty(name) => arg.env(None::<&str>),
            _ => arg,
        })
    });
    Settings::from_arg_matches(&command.try_get_matches()?)
}

/// Returns the subcommand that the arguments begin with.
fn subcommand() -> Option<&'static str> {
    let first = env::args_os().nth(1)?;
    SUBCOMMANDS.into_iter().find(|name| first == *name)
}

/// The names of the subcommands.
const SUBCOMMANDS: [&str; 2] = ["check", "keep"];

/// Prints what is wrong with the arguments, or what they ask for: `--help`, `--version`. Returns
/// the exit code.
fn usage(error: &clap::Error) -> ExitCode {
    if let Some(name) = subcommand().filter(|_| error.use_stderr()) {
        let text = error.render().to_string();
        // Behind the first empty line, clap repeats the usage.
        let wrong: Vec<_> =
            text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        let wrong = wrong.join(" ");
        let wrong = wrong.trim_start_matches("error: ");
        let origin = variable(error).map(|name| format!(" (from the variable {name})"));
        let _ = writeln!(
            io::stderr(),
            "smol-graceful {name}: {wrong}{}; `smol-graceful {name} --help` tells more",
            origin.unwrap_or_default()
        );
        return ExitCode::from(2);
    }
    let _ = error.print();
    if let Some(name) = variable(error) {
        let _ = writeln!(io::stderr(), "\nThe value comes from the variable {name}.");
    }
    if error.kind() == ErrorKind::ValueValidation {
        // For a wrong value, clap leaves the usage out.
        let _ = write!(io::stderr(), "\n{}\n", Settings::command().render_usage());
    }
    if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

/// Returns the variable that holds the wrong value, if no argument does.
fn variable(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = named.split(' ').next()?;
    let mut words = env::args_os().map(|word| word.to_string_lossy().into_owned());
    if words.any(|word| word.split('=').next() == Some(flag)) {
        return None;
    }
    let command = Settings::command();
    let subcommand = subcommand().and_then(|name| command.find_subcommand(name));
    let mut arguments = subcommand.unwrap_or(&command).get_arguments();
    let arg = arguments.find(|arg| arg.get_long() == flag.strip_prefix("--"))?;
    let name = arg.get_env()?;
    env::var_os(name).map(|_| name.to_string_lossy().into_owned())
}

/// Warns of variables whose names begin with `prefix` and that mean nothing.
fn warn_of_unknown_variables(prefix: &str) {
    // A keeper sets these.
    let keepers = ["SMOL_GRACEFUL_KEEPER", "SMOL_GRACEFUL_RESUME"];
    let names = env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let mut names = names
        .filter(|name| name.starts_with(prefix) && !keepers.contains(&name.as_str()))
        .peekable();
    if names.peek().is_none() {
        // The list of those that are known takes longer than the rest of the start.
        return;
    }
    let command = Settings::command();
    let commands = [&command].into_iter().chain(command.get_subcommands());
    let own = commands.flat_map(|command| command.get_arguments()).filter_map(Arg::get_env);
    let known: Vec<_> = own.collect();
    for name in names.filter(|name| !known.contains(&OsStr::new(name))) {
        ::log::warn!("the variable {name} means nothing; --help lists those that do");
    }
}

fn serve(settings: &Settings) -> Result<Outcome, ServeError> {
    warn_of_unknown_variables("SMOL_GRACEFUL_");
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
        Ok(vec![options.bind(&Address::Every(8082))?])
    }
}

/// Returns `true` for `[::]:8082`.
fn is_every_ipv6(address: &Address) -> bool {
    matches!(address, Address::Tcp(addr) if addr.is_ipv6() && addr.ip().is_unspecified())
}

/// Raises the soft limit of open files to the hard one, as Go does: the low soft limit is there for
/// programs that use `select`. [`Limits::default`](smol_graceful::Limits::default) looks at it. If
/// it fails, less must do.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_command_line_is_well_formed() {
        Settings::command().debug_assert();
        let names: Vec<_> =
            Settings::command().get_subcommands().map(|one| one.get_name().to_owned()).collect();
        assert_eq!(names, SUBCOMMANDS);
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
