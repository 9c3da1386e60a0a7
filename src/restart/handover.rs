//! [`restart`]: starts the executable again with the listening sockets, in place of this process.
//!
//! Invariant: until the successor has said that it is ready, this process serves as if nothing had
//! happened, and whatever goes wrong leaves it so. From then on the sockets, their queues and their
//! files are the successor's (rule S5). Does not stop the server: that is the caller's next step.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use async_io::{Async, Timer};
use futures_lite::FutureExt;
use rustix::io::ioctl_fionread;
use rustix::process::Signal;
use smol::lock::Mutex;
use socket2::SockRef;

use crate::error::{during, reason};
use crate::listen::listener::Listener;
use crate::listen::passing::{FDS, FIRST, HANDOVER, NAMES, PID};
use crate::restart::ToSuccessor;
use crate::restart::channel::{Channel, KEEPER};
use crate::restart::notify::{ADOPTS, MANAGER, Notify, SOCKET, TAKEN};
use crate::restart::pid_file;
use crate::restart::spawn::{Child, Program};

/// Starts this program again, as it was started (its first argument and the rest, in the same
/// directory and environment), hands it the sockets of `listeners`, and waits up to `patience`
/// until it says that it is ready. Returns its process id.
///
/// Hands over listening sockets, not connections: those end by the stop that follows. Only
/// [`run`](crate::run) hands over connections, too.
///
/// The successor finds the sockets by [`Listener::bind`] with the same addresses, or by
/// [`Listener::inherited`]; they have the descriptors from 3 on, whatever else this process had
/// been started with there. It is ready when it sends `READY=1` to its NOTIFY_SOCKET, as
/// [`run`](crate::run) and [`ready`](crate::ready) do. Then it serves, and this server is to be
/// stopped: it only lets go of its sockets and finishes what is in flight. If there is a service
/// manager (systemd), it is told that the successor is the main process now.
///
/// A supervisor that follows the process that it has started, as Supervisor does, takes this for
/// its end: `docs/restart.md` says which way is for whom.
///
/// # Errors
///
/// If a listener is closed or is not a socket ([`Listener::of`]), if the program cannot be started
/// (the message says whether its file is missing, not executable or not a program), ends before it
/// is ready, or is not ready in time: then it is told to stop (SIGTERM), is killed if it does not
/// within `patience` (5 s at least), and this process goes on serving. If this process is a
/// successor itself, and its predecessor still waits for it after `patience`. Also
/// [`io::ErrorKind::Unsupported`] if this process is the first one of a container, which ends with
/// it; [`io::ErrorKind::AlreadyExists`] while a successor is being started, and when there is one.
/// A restart needs a directory for temporary files that can be written to (TMPDIR).
///
/// # Cancel safety
///
/// If the future is dropped, the successor is told to stop (SIGTERM).
///
/// # Examples
///
/// ```no_run
/// use smol_graceful::{Listener, Server, ready, restart};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// smol::block_on(async {
///     let listener = Listener::bind(&"127.0.0.1:8082".parse()?)?;
///     let server = Server::new(|_request| async { Ok("okay") });
///     let shutdown = server.handle();
///     let serve = smol::spawn(server.serve([listener.clone()]));
///     // This may be a successor itself: its predecessor waits for this.
///     ready(&[listener.clone()])?;
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
    Ok(start(listeners, patience, None).await?.0)
}

/// Starts a successor like [`restart`], and offers it this process's connections. Returns its
/// process id, and the passage to it, if it takes them.
///
/// # Errors
///
/// As [`restart`].
pub(crate) async fn restart_with_connections(
    listeners: &[Listener],
    patience: Duration,
) -> io::Result<(u32, Option<ToSuccessor>)> {
    let passage = Channel::pair().inspect_err(|error| {
        log::warn!("no passage to the successor, which takes no connections: {}", reason(error));
    });
    let (own, other) = passage.ok().unzip();
    let (pid, adopted) = start(listeners, patience, other).await?;
    if adopted.is_empty() {
        return Ok((pid, None));
    }
    let is_adopted = |listener: &Listener| {
        listener.can_move_connections() && adopted.iter().any(|other| other.is_same(listener))
    };
    let inode = |listener: &Listener| if is_adopted(listener) { listener.inode() } else { None };
    let adopted = listeners.iter().map(inode).collect();
    Ok((pid, own.map(|passage| ToSuccessor { passage, adopted })))
}

/// Starts a successor, with an end of a passage if there is one. Returns its process id, and those
/// of `listeners` whose connections it takes.
async fn start(
    listeners: &[Listener],
    patience: Duration,
    passage: Option<OwnedFd>,
) -> io::Result<(u32, Vec<Listener>)> {
    if process::id() == 1 {
        let message = "this is process 1, with which the container ends";
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let already = |message: String| io::Error::new(io::ErrorKind::AlreadyExists, message);
    let lock = RESTART_LOCK.try_lock();
    let _lock = lock.ok_or_else(|| already("a successor is being started already".into()))?;
    if let Some(listener) = listeners.iter().find(|listener| listener.is_handed_over()) {
        return Err(already(format!("{} was handed over already", listener.address())));
    }
    if env::var_os("SUPERVISOR_ENABLED").is_some() {
        log::warn!(
            "Supervisor follows the process that it has started, and will start another one beside \
             the successor; restart with supervisorctl instead"
        );
    }
    trusted(patience).await?;
    let listeners: Vec<_> = listeners.iter().filter(|listener| is_reachable(listener)).collect();
    let readiness = ReadinessSocket::new()?;
    let child = program(&listeners, &readiness, passage)?.spawn()?;
    let pid = child.id();
    let mut successor = Starting { child, stops_on_drop: true };
    log::info!("waiting for the successor, process {pid}, to be ready");
    let ready = match successor.ready(&readiness, patience).await {
        Ok(ready) => ready,
        Err(error) => {
            if error.kind() == io::ErrorKind::TimedOut {
                // It may take as long again until the successor has ended.
                log::warn!("process {pid} is not ready in time, and is told to stop");
            }
            successor.end(patience).await;
            pid_file::write_again();
            return Err(error);
        }
    };
    let Ready { taken, adopts } = ready;
    let mut adopted = Vec::new();
    for (fd, listener) in (FIRST..).zip(listeners) {
        if adopts.contains(&fd) {
            adopted.push(listener.clone());
        }
        // A socket that the successor has not taken stays this process's, which empties and closes
        // it.
        if taken.as_ref().is_none_or(|taken| taken.contains(&fd)) {
            listener.ownership().hand_over();
        } else {
            let address = listener.address();
            log::warn!("the successor does not listen on {address}, which is closed now");
        }
    }
    Notify::from_env().main_pid(pid);
    Ok((pid, adopted))
}

/// Waits until no predecessor waits for this process any more. A predecessor that finds this process
/// gone, because a successor has taken its place already, would go on beside that one.
///
/// # Errors
///
/// If the predecessor still waits after `patience`.
async fn trusted(patience: Duration) -> io::Result<()> {
    let notify = Notify::from_env();
    let is_trusted = async {
        while notify.is_awaited() {
            Timer::after(SECOND_LOOK / 10).await;
        }
        Ok(())
    };
    let late = async {
        Timer::after(patience).await;
        let message = "the predecessor has not let go of this process; is it suspended?";
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    };
    is_trusted.or(late).await
}

/// Held during a restart: two successors would both take the sockets for their own.
static RESTART_LOCK: Mutex<()> = Mutex::new(());

/// Returns `true` if the successor gets this listener: any but a Unix socket of this process whose
/// file was removed. The successor binds that one anew, so that clients find it again.
fn is_reachable(listener: &Listener) -> bool {
    let address = listener.address();
    match listener.has_its_file() {
        Ok(false) => {
            // The successor could not bind it anew, and would not serve the other addresses then.
            log::warn!(
                "another file has the name of {address}, so no client finds this socket; remove \
                 that file, or stop who listens on it, and start a successor again"
            );
            true
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let is_own = listener.ownership().is_own();
            let remedy = if is_own {
                "the successor binds it anew"
            } else {
                "start the program that passes this socket again, such as its systemd socket unit"
            };
            log::warn!(
                "the file of {address} was removed, so no client finds this socket; {remedy}"
            );
            !is_own
        }
        _ => true,
    }
}

/// Returns the program as it was started, with the sockets from descriptor 3 on, and the passage
/// behind them.
fn program(
    listeners: &[&Listener],
    readiness: &ReadinessSocket,
    passage: Option<OwnedFd>,
) -> io::Result<Program> {
    let mut words = env::args_os();
    // Not `current_exe`: that would be the file that runs now, even if another has its name.
    let name = match words.next().filter(|word| !word.is_empty()) {
        Some(word) => word,
        None => env::current_exe()?.into_os_string(),
    };
    let mut program = Program::new(name, words);

    let mut names = Vec::new();
    let mut handover = Vec::new();
    for (fd, listener) in (FIRST..).zip(listeners) {
        let tried = format_args!("cannot hand over {}", listener.address());
        let (socket, passed) = listener.pass(fd).map_err(during(tried))?;
        program.pass(socket);
        handover.push(passed.to_string());
        names.push(passed.name.unwrap_or_default());
    }
    program.set(FDS, listeners.len().to_string());
    program.set(NAMES, names.join(":"));
    program.set(HANDOVER, handover.join(" "));
    program.unset(PID);
    program.unset(KEEPER);
    if let Some(passage) = passage {
        program.set(KEEPER, Channel::word(&passage, FIRST + listeners.len() as RawFd)?);
        program.pass(passage);
    }

    let manager = env::var_os(if env::var_os(HANDOVER).is_some() { MANAGER } else { SOCKET });
    match manager {
        Some(manager) => program.set(MANAGER, manager),
        None => program.unset(MANAGER),
    }
    program.set(SOCKET, readiness.path.clone());
    // The watchdog's interval holds for the successor, too.
    program.unset("WATCHDOG_PID");
    Ok(program)
}

/// The word of a successor that it is ready.
struct Ready {
    /// The descriptors that it has taken, if it says so.
    taken: Option<Vec<RawFd>>,
    /// The descriptors of those listeners whose connections it takes.
    adopts: Vec<RawFd>,
}

/// A successor that is not ready yet.
struct Starting {
    child: Child,
    /// Set until the successor is ready, or has been told to stop.
    stops_on_drop: bool,
}

impl Starting {
    /// Waits until the successor says that it is ready, and then for [`SECOND_LOOK`].
    ///
    /// # Errors
    ///
    /// Returns an error if the successor ends before that, or is not ready within `patience`.
    async fn ready(
        &mut self,
        readiness: &ReadinessSocket,
        patience: Duration,
    ) -> io::Result<Ready> {
        let ended = async {
            let status = self.child.ended().await;
            Err(io::Error::other(format!("the successor has ended before it was ready: {status}")))
        };
        let late = async {
            Timer::after(patience).await;
            let message = format!(
                "the successor was not ready within {patience:?}: no READY=1 came to NOTIFY_SOCKET"
            );
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        };
        let ready = readiness.ready().or(ended).or(late).await;
        // A successor that reports ready and then exits counts as failed.
        Timer::after(SECOND_LOOK).await;
        if let (Ok(_), Some(status)) = (&ready, self.child.try_wait()) {
            let message = format!("the successor was ready and has ended: {status}");
            return Err(io::Error::other(message));
        }
        self.stops_on_drop = ready.is_err();
        ready
    }

    /// Ends the successor, gently first: it may have accepted connections, and gets `patience` for
    /// them.
    async fn end(&mut self, patience: Duration) {
        if self.child.try_wait().is_none() {
            self.tell_to_stop();
        }
        let ended = async { Some(self.child.ended().await) };
        let late = async {
            Timer::after(patience.max(LAST_CHANCE)).await;
            None
        };
        if ended.or(late).await.is_none() {
            self.child.signal(Signal::KILL);
            self.child.ended().await;
        }
    }

    /// Tells the successor to stop, but only once: a second signal would cut the connections that
    /// the successor has accepted (rule S14).
    fn tell_to_stop(&mut self) {
        if mem::take(&mut self.stops_on_drop) {
            self.child.signal(Signal::TERM);
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.tell_to_stop();
    }
}

/// How long a successor that has failed may take to stop, at least.
const LAST_CHANCE: Duration = Duration::from_secs(5);

/// How long a successor that is ready is looked at, until it is trusted.
const SECOND_LOOK: Duration = Duration::from_millis(50);

/// The socket to which the successor says that it is ready, in a directory of this user's alone.
struct ReadinessSocket {
    directory: PathBuf,
    path: PathBuf,
    socket: Async<UnixDatagram>,
}

impl ReadinessSocket {
    fn new() -> io::Result<Self> {
        let directory = Self::directory();
        let named = |error: io::Error| {
            let message = format!(
                "cannot make {} for the successor's readiness: {error}; set TMPDIR",
                directory.display()
            );
            io::Error::new(error.kind(), message)
        };
        DirBuilder::new().mode(0o700).create(&directory).map_err(named)?;
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).and_then(Async::new).map_err(|error| {
            // There is no `ReadinessSocket` yet whose drop would remove it.
            let _ = fs::remove_dir_all(&directory);
            named(error)
        })?;
        Ok(Self { directory, path, socket })
    }

    /// Returns a path that nothing has yet. A process with the same id may have left one behind.
    fn directory() -> PathBuf {
        let names = (0_u32..).map(|number| format!("smol-graceful-{}-{number}", process::id()));
        let temporary = Some(env::temp_dir()).filter(|path| !path.as_os_str().is_empty());
        let temporary = temporary.unwrap_or_else(|| PathBuf::from("/tmp"));
        let mut paths = names.map(|name| temporary.join(name));
        paths.find(|path| path.symlink_metadata().is_err()).unwrap_or_default()
    }

    /// Waits for `READY=1`, and for what comes with it. The successor may be another program, and
    /// say more in the same datagram.
    async fn ready(&self) -> io::Result<Ready> {
        loop {
            let datagram = self.socket.read_with(datagram).await?;
            let text = String::from_utf8_lossy(&datagram);
            let listed = |name| -> Option<Vec<RawFd>> {
                let fds = text.lines().find_map(|line| line.strip_prefix(name))?;
                Some(fds.split_whitespace().filter_map(|fd| fd.parse().ok()).collect())
            };
            if text.lines().any(|line| line == "READY=1") {
                let adopts = listed(ADOPTS).unwrap_or_default();
                return Ok(Ready { taken: listed(TAKEN), adopts });
            }
        }
    }
}

/// Returns the next datagram, however long it is: a socket that was taken and is not named in it
/// would be closed.
///
/// # Errors
///
/// `WouldBlock` if there is none.
fn datagram(socket: &UnixDatagram) -> io::Result<Vec<u8>> {
    // Only when there is a datagram does its length say something.
    SockRef::from(socket).peek(&mut [MaybeUninit::uninit()])?;
    let length = ioctl_fionread(socket)?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let n = socket.recv(&mut bytes)?;
    bytes.truncate(n);
    Ok(bytes)
}

impl Drop for ReadinessSocket {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
