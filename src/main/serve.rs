//! `smol-graceful` without a command: makes a server by the settings, and turns its outcome into
//! the exit code.
//!
//! This file uses the library's public API only. The exit code is 0 if all work was finished, 1 if
//! work was cut or the server could not start, and 2 for wrong usage. Each address is bound, and
//! each file opened, in one place, so that `--check` tries the same.

use std::io::{self, Write};
use std::iter;
use std::num::NonZero;
use std::process::{ExitCode, Termination};
use std::sync::{Arc, Once};
use std::thread;

use humantime::format_duration;
use rustix::process::{Resource, getrlimit};
use smol_graceful::{Limits, Listener, Outcome, Process, ServeError, Server, Shutdown};

use crate::access_log::AccessLog;
use crate::admin::{Admin, Metrics};
use crate::arguments::{begin_log, read, warn_of_unknown_variables};
use crate::preview::{Preview, try_pid_file};
use crate::settings::Settings;
use crate::sockets::Sockets;
use crate::{app, raise_open_files};

/// Serves by the settings of the command line. Returns the exit code.
pub(crate) fn main() -> ExitCode {
    let (settings, mut log) =
        match read().and_then(|settings: Settings| Ok((settings, begin_log()?))) {
            Ok(begun) => begun,
            Err(code) => return code,
        };
    // The first prefix is that of the keeper's settings, and the keeper itself sets the other two
    // variables.
    let keepers = ["SMOL_GRACEFUL_KEEP_", "SMOL_GRACEFUL_KEEPER", "SMOL_GRACEFUL_RESUME"];
    warn_of_unknown_variables::<Settings>("SMOL_GRACEFUL_", &keepers);
    raise_open_files();
    if settings.check {
        let preview = preview(&settings);
        // The log is flushed before the preview is printed, so that both are in order on a
        // terminal.
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
    let shutdown = shutdown_of(settings);
    let access_log = match &settings.access_log {
        Some(place) => Some(AccessLog::open(place, settings.access_log_format)?),
        None => None,
    };
    let metrics = (!settings.admin.is_empty()).then(|| Arc::new(Metrics::default()));
    let work = settings.work;
    let mut server = Server::new(move |request| app::handle(work, request)).shutdown(&shutdown);
    if access_log.is_some() || metrics.is_some() {
        let (access_log, metrics) = (access_log.clone(), metrics.clone());
        server = server.observe(move |exchange| {
            if let Some(access_log) = &access_log {
                access_log.add(exchange);
            }
            if let Some(metrics) = &metrics {
                metrics.count(exchange);
            }
        });
    }
    let mut process = process_of(settings);
    let sockets = Sockets::of(settings);
    if let Some(metrics) = metrics {
        let admin = Arc::new(Admin::new(&shutdown, metrics));
        let server = Server::new(move |request| {
            let admin = admin.clone();
            async move { admin.answer(&request) }
        });
        let server = server.limits(Limits::default().connections(Admin::CONNECTIONS));
        let sockets = sockets.clone();
        // S16: `run` binds these like the others, after signals are handled.
        process =
            process.admin(server, iter::once_with(move || admin_listeners(&sockets)).flatten());
    }
    let outcome = process.run(server, iter::once_with(|| public_listeners(&sockets)).flatten());
    if let Some(access_log) = access_log {
        access_log.close();
    }
    outcome
}

/// Returns a handle with the four times of the settings.
fn shutdown_of(settings: &Settings) -> Shutdown {
    let shutdown =
        Shutdown::new().grace(settings.grace).linger(settings.linger).lame_duck(settings.lame_duck);
    match settings.stream_grace {
        Some(stream_grace) => shutdown.stream_grace(stream_grace),
        None => shutdown,
    }
}

/// Returns a process with the settings that are not a server's.
fn process_of(settings: &Settings) -> Process {
    let mut process = Process::default().repeat_window(settings.repeat_window);
    if let Some(threads) = settings.threads {
        process = process.threads(threads);
    }
    if let Some(path) = &settings.pid_file {
        process = process.pid_file(path);
    }
    process
}

fn public_listeners(sockets: &Sockets) -> Vec<io::Result<Listener>> {
    let listeners = sockets.public();
    if listeners.iter().all(Result::is_ok) {
        say_version();
    }
    listeners
}

fn admin_listeners(sockets: &Sockets) -> Vec<io::Result<Listener>> {
    let listeners = sockets.admin();
    for listener in listeners.iter().flatten() {
        say_version();
        let address = listener.address();
        ::log::info!("for operators: /livez, /readyz, /metrics and /connections of {address}");
    }
    listeners
}

/// Logs the version once. The callers do this late, so a failed start logs nothing but its error.
fn say_version() {
    static SAID: Once = Once::new();
    SAID.call_once(|| ::log::info!(concat!("smol-graceful ", env!("CARGO_PKG_VERSION"))));
}

/// Returns the steps that [`serve`] would take.
fn preview(settings: &Settings) -> Preview {
    let mut preview = Preview::new();
    // All sockets are bound at the same time and in this order, because two of them may conflict.
    let sockets = Sockets::of(settings);
    let (admin, public) = (sockets.admin(), sockets.public());
    for (listeners, whom) in [(&public, ""), (&admin, " for operators")] {
        for listener in listeners {
            preview.tried(listener.as_ref().map(|listener| {
                let inherited = if listener.is_inherited() { " (inherited)" } else { "" };
                format!("listens on {}{whom}{inherited}", listener.address())
            }));
        }
    }
    if let Some(path) = &settings.pid_file {
        let writes = format!("writes the pid file {}", path.display());
        preview.tried(try_pid_file(path).map(|()| writes));
    }
    if let Some(place) = &settings.access_log {
        preview.tried(place.check().map(|()| format!("writes the access log to {place}")));
    }
    let [work, grace, linger, lame_duck] =
        [settings.work, settings.grace, settings.linger, settings.lame_duck].map(format_duration);
    let longest = format_duration(settings.lame_duck.saturating_add(settings.grace));
    preview.say(format_args!("works for {work} at each GET of /"));
    let streams = settings
        .stream_grace
        .map_or(String::new(), |time| format!(", stream grace {}", format_duration(time)));
    preview.say(format_args!(
        "at a stop: lame duck {lame_duck}, grace {grace}, linger {linger}{streams}"
    ));
    preview.say(format_args!("a supervisor has to wait longer than {longest} before it kills it"));
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    preview.say(format_args!("runs {} threads for requests", settings.threads.unwrap_or(cores)));
    if let Some(files) = getrlimit(Resource::Nofile).current {
        preview.say(format_args!("may open {files} files and connections"));
    }
    preview
}
