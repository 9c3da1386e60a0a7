//! `smol-graceful keep`: the settings of a keeper, and its end as an exit code.
//!
//! Uses the library's public API only. Exit codes: the newest child's, 1 if the keeper could not
//! begin, 2 for settings that make no sense. A keeper runs another program than this one, so it
//! never replaces itself by that program, as `Process::keep` does.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use clap::Parser;
use smol_graceful::{Address, Keeper, LogWriter, ReadyWhen, Signal};

use crate::arguments::{address, begin_log, read, warn_of_unknown_variables};

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
#[derive(Debug, Parser)]
#[command(name = "smol-graceful keep", verbatim_doc_comment)]
struct Settings {
    /// Where to listen for the program; several times, or with commas between the addresses
    /// [default: the program listens itself]
    ///
    /// The program gets the sockets from descriptor 3 on, in this order, by LISTEN_FDS. Sockets
    /// that the keeper itself inherits come first
    #[arg(
        long,
        env = "SMOL_GRACEFUL_KEEP_LISTEN",
        value_name = "ADDR",
        value_delimiter = ',',
        value_parser = address
    )]
    listen: Vec<Address>,

    /// When a new process is ready, so that the one before it may leave: `notify`, when it has said
    /// so (READY=1 to NOTIFY_SOCKET); a time such as `2s`, when it has been alive for so long; or
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
        default_value = "30s"
    )]
    patience: humantime::Duration,

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

    /// Where to write the keeper's process id, when the first process is ready; removed at the end
    ///
    /// One keeper at a time can have the file
    #[arg(long, env = "SMOL_GRACEFUL_KEEP_PID_FILE", value_name = "PATH")]
    pid_file: Option<PathBuf>,

    /// The program, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Keeps a program as the command line says. Returns the exit code.
pub(crate) fn main() -> ExitCode {
    match read().and_then(|settings| Ok((settings, begin_log()?))) {
        Ok((settings, mut log)) => run(&settings, &mut log),
        Err(code) => code,
    }
}

fn run(settings: &Settings, log: &mut LogWriter) -> ExitCode {
    warn_of_unknown_variables::<Settings>("SMOL_GRACEFUL_KEEP_", &[]);
    let mut keeper = Keeper::new(settings.command.iter().cloned())
        .ready(settings.ready.clone())
        .patience(*settings.patience)
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

/// Reads when a process is ready.
fn ready(text: &str) -> Result<ReadyWhen, String> {
    if text == "notify" {
        return Ok(ReadyWhen::Notified);
    }
    if text.contains("://") {
        return Ok(ReadyWhen::Answers(text.into()));
    }
    let time: Duration = *text.parse::<humantime::Duration>().map_err(
        |_| "write `notify`, a time such as `2s`, or a URL such as `http://127.0.0.1:8082/readyz`",
    )?;
    Ok(ReadyWhen::After(time))
}

/// Reads the name of a signal that may restart a program.
fn signal(text: &str) -> Result<Signal, String> {
    let name = text.trim().to_uppercase();
    match name.strip_prefix("SIG").unwrap_or(&name) {
        "USR2" => Ok(Signal::Usr2),
        "HUP" => Ok(Signal::Hup),
        "USR1" => Ok(Signal::Usr1),
        "WINCH" => Ok(Signal::Winch),
        "ALRM" => Ok(Signal::Alarm),
        "INT" => Ok(Signal::Int),
        "QUIT" => Ok(Signal::Quit),
        "TERM" => Ok(Signal::Term),
        _ => Err("write USR2, HUP, USR1, WINCH, ALRM, INT, QUIT or TERM".into()),
    }
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

    /// Operators rely on them.
    #[test]
    fn defaults_are_the_agreed_ones() {
        let settings = read(&["app"]).unwrap();
        assert_eq!(settings.listen, []);
        assert_eq!(settings.ready, ReadyWhen::Notified);
        assert_eq!(*settings.patience, Duration::from_secs(30));
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
