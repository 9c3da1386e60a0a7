//! `smol-graceful keep`: the settings of a keeper, and its end as an exit code.
//!
//! This file uses the library's public API only. The exit code is that of the newest child, 1 if
//! the keeper could not begin, and 2 for settings that make no sense. This keeper runs any program,
//! so it never replaces itself by that program, as `Process::keep` does.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use clap::Parser;
use humantime::{format_duration, parse_duration};
use smol_graceful::{Address, Keeper, Listener, LogWriter, ReadyWhen, Signal};

use crate::arguments::{
    Dependent, GivenInVain, address, begin_log, duration, read, warn_of_unknown_variables,
};
use crate::preview::{Preview, find_program, try_pid_file};

/// Keeps the listening sockets of any program, and starts the program anew at USR2 without
/// refusing a client.
///
///     smol-graceful keep --pid-file /run/app.pid -- smol-graceful --listen :8082
///     smol-graceful keep --listen :8080 --ready 2s -- node server.js
///
/// The process id never changes. A restart starts the next process of the program. When it is
/// ready, the old process finishes its requests. A program of this library hands its connections
/// over, so that no client notices, and any other program gets TERM. If the next process fails, the
/// old one goes on. If the only process dies, the keeper starts another one, and clients wait
/// meanwhile.
///
/// HUP, INT, TERM and QUIT go to all processes of the program, and the keeper ends with them. Other
/// signals go to the process that serves. The exit code is that of the newest process (128 plus the
/// number of the signal that has killed it), 1 if that is 0 and another process has ended badly
/// after the stop, or if the keeper could not begin, and 2 for wrong usage.
///
/// DURATION is a time such as 300ms or 2s. Logs go to standard error. RUST_LOG sets the lines that
/// are logged.
#[derive(Debug, Parser)]
#[command(name = "smol-graceful keep", verbatim_doc_comment)]
pub(crate) struct Settings {
    /// The addresses to listen on for the program; several times, or with commas between them
    /// [default: the program listens itself]
    ///
    /// The program gets the sockets from descriptor 3 on, in this order, by LISTEN_FDS. Sockets
    /// that the keeper has inherited come first
    #[arg(
        long,
        env = "SMOL_GRACEFUL_KEEP_LISTEN",
        value_name = "ADDR",
        value_delimiter = ',',
        value_parser = address
    )]
    listen: Vec<Address>,

    /// When a new process counts as ready, so that the old one may leave: `notify`, when it has
    /// sent READY=1 to NOTIFY_SOCKET; a time such as `2s`, when it has been alive for that time; or
    /// `http://HOST:PORT/PATH`, when it has answered with 2xx or 3xx
    #[arg(
        long,
        env = "SMOL_GRACEFUL_KEEP_READY",
        value_name = "WHEN",
        default_value = "notify",
        value_parser = ready
    )]
    ready: ReadyWhen,

    /// How long a new process may take until it is ready
    #[arg(
        long,
        env = "SMOL_GRACEFUL_KEEP_PATIENCE",
        value_name = "DURATION",
        value_parser = duration,
        default_value = "30s"
    )]
    patience: Duration,

    /// The signals that restart the program: USR2, HUP, USR1 and others, with or without SIG;
    /// several times, or with commas between them
    #[arg(
        long,
        env = "SMOL_GRACEFUL_KEEP_RESTART_ON",
        value_name = "SIGNAL",
        value_delimiter = ',',
        default_value = "USR2",
        value_parser = signal
    )]
    restart_on: Vec<Signal>,

    /// The file that gets the keeper's process id, when the first process is ready; removed at the
    /// end
    ///
    /// One keeper at a time can have the file
    #[arg(long, env = "SMOL_GRACEFUL_KEEP_PID_FILE", value_name = "PATH")]
    pid_file: Option<PathBuf>,

    /// Prints what it would do, tries to bind each address and to find the program, and ends with 0
    /// if it would start, and 1 if not
    #[arg(long)]
    check: bool,

    /// The program, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Dependent for Settings {
    /// Returns `None`, because each setting of a keeper has an effect by itself.
    fn given_in_vain(&self, _is_given: impl Fn(&str) -> bool) -> Option<GivenInVain> {
        None
    }
}

/// Keeps the program of the command line. Returns the exit code.
pub(crate) fn main() -> ExitCode {
    match read().and_then(|settings: Settings| Ok((settings, begin_log()?))) {
        Ok((settings, log)) if settings.check => {
            warn_of_unknown_variables::<Settings>("SMOL_GRACEFUL_KEEP_", &[]);
            // The log is flushed before the preview is printed, so that both are in order on a
            // terminal.
            drop(log);
            preview(&settings).end()
        }
        Ok((settings, mut log)) => run(&settings, &mut log),
        Err(code) => code,
    }
}

fn run(settings: &Settings, log: &mut LogWriter) -> ExitCode {
    warn_of_unknown_variables::<Settings>("SMOL_GRACEFUL_KEEP_", &[]);
    let mut keeper = Keeper::new(settings.command.iter().cloned())
        .ready(settings.ready.clone())
        .patience(settings.patience)
        .restart_on(settings.restart_on.iter().copied());
    for address in &settings.listen {
        keeper = keeper.listen(address.clone());
    }
    if let Some(path) = &settings.pid_file {
        keeper = keeper.pid_file(path);
    }
    match keeper.run() {
        Ok(exit) => exit.report(),
        Err(error) => {
            let _ = writeln!(log, "smol-graceful: {error}");
            let is_usage = error.kind() == io::ErrorKind::InvalidInput;
            if is_usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Returns the steps that [`run`] would take.
fn preview(settings: &Settings) -> Preview {
    let mut preview = Preview::new();
    for address in &settings.listen {
        let bound = Listener::bind(address);
        preview.tried(bound.map(|_| format!("listens on {address} for the program")));
    }
    if let Some(name) = settings.command.first() {
        preview.tried(find_program(name).map(|path| format!("starts {}", path.display())));
    }
    if let Some(path) = &settings.pid_file {
        let writes = format!("writes the pid file {}", path.display());
        preview.tried(try_pid_file(path).map(|()| writes));
    }
    let ready = match &settings.ready {
        ReadyWhen::Notified => "when it says so (READY=1)".to_owned(),
        ReadyWhen::After(time) => format!("after {}", format_duration(*time)),
        ReadyWhen::Answers(url) => format!("when {url} answers"),
        other => format!("{other:?}"),
    };
    let patience = format_duration(settings.patience);
    preview.say(format_args!("a new process is ready {ready}, and has {patience} for that"));
    let signals = SIGNALS.into_iter().filter(|(_, signal)| settings.restart_on.contains(signal));
    let signals: Vec<_> = signals.map(|(name, _)| name).collect();
    preview.say(format_args!("restarts at {}", signals.join(", ")));
    preview
}

/// Reads the condition under which a process is ready.
fn ready(text: &str) -> Result<ReadyWhen, String> {
    if text == "notify" {
        return Ok(ReadyWhen::Notified);
    }
    if text.contains("://") {
        return Ok(ReadyWhen::Answers(text.into()));
    }
    let time = parse_duration(text).map_err(
        |_| "write `notify`, a time such as `2s`, or a URL such as `http://127.0.0.1:8082/readyz`",
    )?;
    Ok(ReadyWhen::After(time))
}

/// The signals that may restart a program.
const SIGNALS: [(&str, Signal); 8] = [
    ("USR2", Signal::Usr2),
    ("HUP", Signal::Hup),
    ("USR1", Signal::Usr1),
    ("WINCH", Signal::Winch),
    ("ALRM", Signal::Alarm),
    ("INT", Signal::Int),
    ("QUIT", Signal::Quit),
    ("TERM", Signal::Term),
];

/// Reads the name of a signal that may restart a program.
fn signal(text: &str) -> Result<Signal, String> {
    let name = text.trim().to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let found = SIGNALS.into_iter().find(|(known, _)| *known == name);
    let wrong = "write USR2, HUP, USR1, WINCH, ALRM, INT, QUIT or TERM";
    found.map(|(_, signal)| signal).ok_or_else(|| wrong.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Settings::command().debug_assert();
    }

    fn read(words: &[&str]) -> Result<Settings, clap::Error> {
        Settings::try_parse_from(["keep"].iter().chain(words))
    }

    /// Operators rely on these values.
    #[test]
    fn defaults_are_the_agreed_ones() {
        let settings = read(&["app"]).unwrap();
        assert_eq!(settings.listen, []);
        assert_eq!(settings.ready, ReadyWhen::Notified);
        assert_eq!(settings.patience, Duration::from_secs(30));
        assert_eq!(settings.restart_on, [Signal::Usr2]);
        assert_eq!(settings.pid_file, None);
        assert_eq!(settings.command, ["app"]);
    }

    #[test]
    fn what_stands_behind_the_command_is_its_own() {
        for (words, command) in [
            (&["app", "--listen", ":1"][..], &["app", "--listen", ":1"][..]),
            (&["--", "app", "--", "x"], &["app", "--", "x"]),
            (&["--patience", "1s", "app", "-v"], &["app", "-v"]),
        ] {
            assert_eq!(read(words).unwrap().command, command);
        }
    }

    #[test]
    fn settings_are_read() {
        let words = ["--listen", ":1,:2", "--listen", "unix:/a", "--restart-on", "HUP,sigusr1"];
        let settings = read(&[&words[..], &["app"]].concat()).unwrap();
        let unix = Address::Unix("/a".into());
        assert_eq!(settings.listen, [Address::Every(1), Address::Every(2), unix]);
        assert_eq!(settings.restart_on, [Signal::Hup, Signal::Usr1]);
        for (text, when) in [
            ("notify", ReadyWhen::Notified),
            ("1m", ReadyWhen::After(Duration::from_secs(60))),
            ("http://127.0.0.1/", ReadyWhen::Answers("http://127.0.0.1/".into())),
        ] {
            assert_eq!(read(&["--ready", text, "app"]).unwrap().ready, when);
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for words in [
            &[][..],
            &["--"],
            &["--ready", "soon", "app"],
            &["--ready", "5", "app"],
            &["--patience", "30", "app"],
            &["--restart-on", "KILL", "app"],
            &["--restart-on", "USR2,", "app"],
            &["--listen", "8082", "app"],
            &["--work", "1s", "app"],
        ] {
            assert_eq!(read(words).unwrap_err().exit_code(), 2, "{words:?}");
        }
    }
}
