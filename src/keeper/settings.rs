//! [`Keeper`]: the settings of a keeper, and their defaults.
//!
//! Invariant: a setting is stored as it was given, and is checked when the keeper begins. This file
//! starts nothing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use async_signal::Signal;

use crate::address::Address;
use crate::stop::signals::STOP_SIGNALS;

/// A small parent process that keeps the listening sockets of any program, and starts the program
/// anew without refusing a client.
///
/// USR2 starts the next process of the program. When the new process is ready, the old one finishes
/// its requests. A program of this library also hands its connections over, so that no client
/// notices. The keeper stops any other program by TERM. If the new process fails, the old one goes
/// on as if nothing had happened. If the only process dies, the keeper starts another one, and
/// clients wait meanwhile.
///
/// The program finds the sockets by LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES, from descriptor 3
/// on, as systemd passes them. A stop signal goes to all processes of the program. When all of them
/// have ended, the keeper ends with the exit code of the newest. The keeper reaps orphans, so it
/// can be process 1 of a container. If the keeper is killed, its children get TERM.
///
/// A keeper needs Linux. `smol-graceful keep` does this on the command line, and
/// [`Process::keep`](crate::Process::keep) makes a program its own keeper.
///
/// # Examples
///
/// ```no_run
/// use smol_graceful::{Keeper, KeeperExit};
///
/// fn main() -> std::io::Result<KeeperExit> {
///     Keeper::new(["/opt/app/server", "--verbose"])
///         .listen("127.0.0.1:8082".parse()?)
///         .pid_file("/run/app.pid")
///         .run()
/// }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a keeper does nothing until it is run"]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "keepers are Linux's alone"))]
pub struct Keeper {
    pub(crate) command: Vec<OsString>,
    pub(crate) listen: Vec<Address>,
    pub(crate) ready: ReadyWhen,
    pub(crate) patience: Duration,
    pub(crate) restart_on: Vec<Signal>,
    pub(crate) signals: Vec<Signal>,
    pub(crate) pid_file: Option<PathBuf>,
    /// The command is this program, which replaces this process's program after a restart.
    pub(crate) is_own: bool,
}

/// The moment at which a new process counts as ready, so that the old one may leave.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Keeper, ReadyWhen};
/// use std::time::Duration;
///
/// let keeper = Keeper::new(["node", "server.js"]).ready(ReadyWhen::After(Duration::from_secs(2)));
/// # drop(keeper);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadyWhen {
    /// The process has said that it is ready. [`run`](crate::run) and [`ready`](crate::ready) do
    /// this, and other programs send `READY=1` to their NOTIFY_SOCKET. A program that does none of
    /// these needs another variant.
    Notified,
    /// The process has been alive for this time, or has said earlier that it is ready. The time has
    /// to be shorter than [`Keeper::patience`].
    After(Duration),
    /// The process has answered this URL with a status of 2xx or 3xx. Answers of the old process do
    /// not count, although it may have the same socket. The URL begins with `http://`, and its host
    /// is an IP address or `localhost`.
    Answers(String),
}

impl Keeper {
    /// Makes a keeper of a command: a program, looked up in PATH if it has no slash, and its
    /// arguments.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Keeper;
    ///
    /// let keeper = Keeper::new(["/opt/app/server", "--verbose"]);
    /// # drop(keeper);
    /// ```
    pub fn new(command: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            listen: Vec::new(),
            ready: ReadyWhen::Notified,
            patience: Duration::from_secs(30),
            restart_on: vec![Signal::Usr2],
            signals: STOP_SIGNALS.to_vec(),
            pid_file: None,
            is_own: false,
        }
    }

    /// Adds an address to listen on. By default there is none. Then a program of this library binds
    /// its own addresses, and gives their sockets to the keeper when it is ready.
    ///
    /// In the program, the sockets have the descriptors from 3 on. Sockets with which the keeper
    /// itself was started come first, and the others follow in the order of the calls.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Keeper;
    ///
    /// # fn main() -> Result<(), smol_graceful::AddressError> {
    /// let keeper = Keeper::new(["/opt/app/server"])
    ///     .listen(":8082".parse()?)
    ///     .listen("unix:/run/app.sock".parse()?);
    /// # drop(keeper);
    /// # Ok(())
    /// # }
    /// ```
    pub fn listen(mut self, address: Address) -> Self {
        self.listen.push(address);
        self
    }

    /// Sets when a process counts as ready. Default: [`ReadyWhen::Notified`].
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Keeper, ReadyWhen};
    ///
    /// let url = "http://127.0.0.1:8082/readyz".into();
    /// let keeper = Keeper::new(["/opt/app/server"]).ready(ReadyWhen::Answers(url));
    /// # drop(keeper);
    /// ```
    pub fn ready(mut self, when: ReadyWhen) -> Self {
        self.ready = when;
        self
    }

    /// Sets how long a process may take until it is ready. After that time, the keeper sends TERM.
    /// If the process has not ended after the same time again, or after 5 s if that is longer, the
    /// keeper kills it. Default: 30 s.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Keeper;
    /// use std::time::Duration;
    ///
    /// let keeper = Keeper::new(["/opt/app/server"]).patience(Duration::from_secs(120));
    /// # drop(keeper);
    /// ```
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets the signals that restart the program. These signals do not stop the program, even if
    /// they are among [`Keeper::signals`]. Default: USR2.
    ///
    /// # Examples
    ///
    /// HUP restarts the program, too:
    ///
    /// ```
    /// use smol_graceful::{Keeper, Signal};
    ///
    /// let keeper = Keeper::new(["/opt/app/server"]).restart_on([Signal::Hup, Signal::Usr2]);
    /// # drop(keeper);
    /// ```
    pub fn restart_on(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.restart_on = signals.into_iter().collect();
        self
    }

    /// Sets the signals that stop the program. Each of them goes to all of its processes. Default:
    /// [`STOP_SIGNALS`](crate::STOP_SIGNALS). HUP, INT and QUIT stay ignored if the keeper was
    /// started so. Other signals, such as USR1 and WINCH, go to the process that serves.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Keeper, Signal};
    ///
    /// let keeper = Keeper::new(["/opt/app/server"]).signals([Signal::Term, Signal::Int]);
    /// # drop(keeper);
    /// ```
    pub fn signals(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.signals = signals.into_iter().collect();
        self
    }

    /// Writes the keeper's process id to the file at `path` when the first process is ready.
    /// Scripts use the file to send signals: `kill -USR2 "$(cat /run/app.pid)"`. Default: no file.
    ///
    /// The file belongs to one keeper at a time, which holds its lock (`flock`). The file is empty
    /// until the first process is ready, and is removed at the end. A keeper takes over the file of
    /// a keeper that was killed.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Keeper;
    ///
    /// let keeper = Keeper::new(["/opt/app/server"]).pid_file("/run/app.pid");
    /// # drop(keeper);
    /// ```
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pid_file = Some(path.into());
        self
    }
}
