//! [`restart`]: starts the executable again with the listening sockets, in place of this process.
//!
//! Invariant: until the successor has said that it is ready, this process serves as if nothing had
//! happened, and whatever goes wrong leaves it so. From then on the sockets, their queues and their
//! files are the successor's (rule S5). Does not stop the server: that is the caller's next step.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::time::Duration;

use async_io::{Async, Timer};
use command_fds::{CommandFdExt, FdMapping};
use futures_lite::FutureExt;
use rustix::process::{Pid, Signal, kill_process};
use smol::process::Child;

use crate::inherited::{FDS, FIRST, HANDOVER, HELD, NAMES, OWN, PID, name_of};
use crate::listener::Listener;
use crate::notify::{MANAGER, Notify, SOCKET};

/// Starts this program again, as it was started (its first argument and the rest, in the same
/// directory and environment), hands it the sockets of `listeners`, and waits up to `patience` until
/// it says that it is ready. Returns its process id.
///
/// The successor finds the sockets by [`Listener::bind`] with the same addresses, or by
/// [`Listener::inherited`]. It is ready when it sends `READY=1` to its NOTIFY_SOCKET, as
/// [`run`](crate::run) does. Then the successor accepts connections alone: stop this server, which
/// only lets go of its sockets and finishes what is in flight. If there is a service manager (systemd),
/// it is told that the successor is the main process now.
///
/// A supervisor that follows the process that it has started, as Supervisor does, takes this for
/// its end: `docs/restart.md` says which way is for whom.
///
/// # Errors
///
/// If the program cannot be started, ends before it is ready, or is not ready in time: then it is
/// told to stop (SIGTERM), is killed if it does not within 5 s, and this process goes on serving. Also
/// [`io::ErrorKind::Unsupported`] if this process is the first one of a container, which ends with
/// it.
///
/// # Cancel safety
///
/// If the future is dropped, the successor is told to stop (SIGTERM).
///
/// # Examples
///
/// ```no_run
/// use smol_graceful::{Listener, Server, restart};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// smol::block_on(async {
///     let listener = Listener::bind(&"127.0.0.1:8082".parse()?)?;
///     let server = Server::new(|_request| async { Ok("okay") });
///     let shutdown = server.handle();
///     let serve = smol::spawn(server.serve([listener.clone()]));
///
///     // Some time later, for whatever reason:
///     let successor = restart(&[listener], Duration::from_secs(30)).await?;
///     println!("process {successor} goes on");
///     shutdown.stop();
///     println!("{}", serve.await?);
///     Ok(())
/// })
/// # }
/// ```
pub async fn restart(listeners: &[Listener], patience: Duration) -> io::Result<u32> {
    if process::id() == 1 {
        let message = "this is process 1, with which the container ends";
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let mailbox = Mailbox::new()?;
    let mut successor = Starting::new(command(listeners, &mailbox)?)?;
    let pid = successor.child.id();
    log::info!("waiting for the successor, process {pid}, to be ready");

    let ready = mailbox.ready();
    let ended = async {
        let status = successor.child.status().await?;
        Err(io::Error::other(format!("the successor has ended before it was ready: {status}")))
    };
    let late = async {
        Timer::after(patience).await;
        let message = format!("the successor was not ready within {patience:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    };
    if let Err(error) = ready.or(ended).or(late).await {
        successor.end().await;
        return Err(error);
    }
    successor.is_ready = true;
    listeners.iter().for_each(Listener::hand_over);
    Notify::from_env().main_pid(pid);
    Ok(pid)
}

/// The program as it was started, with the sockets from descriptor 3 on.
fn command(listeners: &[Listener], mailbox: &Mailbox) -> io::Result<Command> {
    let mut words = env::args_os();
    // Not `current_exe`: that would be the file that runs now, even if another has its name.
    let program = match words.next().filter(|word| !word.is_empty()) {
        Some(word) => word,
        None => env::current_exe()?.into_os_string(),
    };
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());

    let mut mappings = Vec::new();
    let mut names = Vec::new();
    let mut handover = process::id().to_string();
    for (child_fd, listener) in (FIRST..).zip(listeners) {
        mappings.push(FdMapping { parent_fd: listener.copy()?, child_fd });
        let name = listener.origin().map(name_of);
        names.push(name.or(listener.name().map(str::to_owned)).unwrap_or_default());
        handover.push(' ');
        handover.push_str(if listener.is_held() { HELD } else { OWN });
    }
    command.env(FDS, mappings.len().to_string()).env(NAMES, names.join(":"));
    command.env(HANDOVER, handover).env_remove(PID);
    command.fd_mappings(mappings).map_err(io::Error::other)?;

    let manager = env::var_os(if env::var_os(HANDOVER).is_some() { MANAGER } else { SOCKET });
    match manager {
        Some(manager) => command.env(MANAGER, manager),
        None => command.env_remove(MANAGER),
    };
    command.env(SOCKET, &mailbox.path);
    // The watchdog's interval holds for the successor, too.
    command.env_remove("WATCHDOG_PID");
    Ok(command)
}

/// A successor that is not ready yet.
struct Starting {
    child: Child,
    is_ready: bool,
}

impl Starting {
    fn new(command: Command) -> io::Result<Self> {
        let program = PathBuf::from(command.get_program());
        let child = smol::process::Command::from(command).spawn().map_err(|error| {
            let message = format!("cannot start {}: {error}", program.display());
            io::Error::new(error.kind(), message)
        })?;
        Ok(Self { child, is_ready: false })
    }

    /// Ends it, gently first: it may have accepted connections.
    async fn end(&mut self) {
        if matches!(self.child.try_status(), Ok(None)) {
            self.signal(Signal::TERM);
        }
        let ended = async {
            let _ = self.child.status().await;
            true
        };
        let late = async {
            Timer::after(LAST_CHANCE).await;
            false
        };
        if !ended.or(late).await {
            self.signal(Signal::KILL);
        }
        // From here on there is nothing to be ended.
        self.is_ready = true;
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // It may have ended.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if !self.is_ready {
            self.signal(Signal::TERM);
        }
    }
}

/// How long a successor that has failed may take to stop.
const LAST_CHANCE: Duration = Duration::from_secs(5);

/// Where the successor says that it is ready: a socket in a directory that is nobody else's.
struct Mailbox {
    directory: PathBuf,
    path: PathBuf,
    socket: Async<UnixDatagram>,
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        let directory = Self::directory();
        let named = |error: io::Error| {
            let message = format!(
                "no place for the successor's word in {}: {error}; set TMPDIR",
                directory.display()
            );
            io::Error::new(error.kind(), message)
        };
        DirBuilder::new().mode(0o700).create(&directory).map_err(named)?;
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).map_err(named)?;
        let socket = Async::new(socket)?;
        Ok(Self { directory, path, socket })
    }

    /// A path that nothing has yet: one of the same process id may have been left behind.
    fn directory() -> PathBuf {
        let names = (0_u32..).map(|number| format!("smol-graceful-{}-{number}", process::id()));
        let mut paths = names.map(|name| env::temp_dir().join(name));
        paths.find(|path| path.symlink_metadata().is_err()).unwrap_or_default()
    }

    /// Waits for `READY=1`.
    async fn ready(&self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        loop {
            let n = self.socket.recv(&mut bytes).await?;
            if bytes[..n].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                return Ok(());
            }
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir(&self.directory);
    }
}
