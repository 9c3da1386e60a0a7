//! [`run`]: a server as a process: worker threads, signals, the drain, the outcome for `main`.
//!
//! Invariant: the control loop runs on the thread that calls `run`, which runs no handler; so a
//! signal, the deadline and a second signal work with every worker blocked (rule S15). Signals are
//! handled from before the first bind (rule S16). Never exits the process and prints nothing.

use std::convert::Infallible;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use async_io::Timer;
use async_signal::Signal;
use futures_lite::{FutureExt, Stream, StreamExt, future};
use smol::Executor;
use smol::channel;

use crate::error::{ServeError, during, reason};
use crate::listen::Listen;
use crate::ready::ready;
use crate::restart::notify::Notify;
use crate::restart::parent::Parent;
use crate::restart::pid_file::{PidFile, PidWriter};
use crate::server::{Running, Server, Stopping};
use crate::stop::obey::REPEAT_WINDOW;
use crate::stop::outcome::Outcome;
use crate::stop::policy::{Action, Event, State};
use crate::stop::shutdown::Shutdown;
use crate::stop::signals::{self, Received, STOP_SIGNALS, survive_full_files};
use crate::threads;
use crate::under_keeper;

/// Runs a server as a process until a signal stops it, with [`Process::default`]'s settings.
///
/// The drain takes 30 s at most. For another time, give the server a [`Shutdown`] of your own, as
/// in the second example.
///
/// # Errors
///
/// As [`Process::run`].
///
/// # Examples
///
/// ```no_run
/// use smol_graceful::{Outcome, ServeError, Server, run};
///
/// fn main() -> Result<Outcome, ServeError> {
///     run(Server::new(|_request| async { Ok("okay") }), ["127.0.0.1:8082"])
/// }
/// ```
///
/// With times of its own:
///
/// ```no_run
/// use smol_graceful::{Outcome, ServeError, Server, Shutdown, run};
/// use std::time::Duration;
///
/// fn main() -> Result<Outcome, ServeError> {
///     let shutdown = Shutdown::new()
///         .grace(Duration::from_secs(5))
///         .linger(Duration::from_millis(50));
///     let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
///     run(server, ["127.0.0.1:8082"])
/// }
/// ```
pub fn run<L: Listen>(
    server: Server,
    listeners: impl IntoIterator<Item = L>,
) -> Result<Outcome, ServeError> {
    Process::default().run(server, listeners)
}

/// The settings of a server that runs as a process: worker threads, signals, and its keeper.
///
/// Under a keeper the process takes the connections of its predecessor. When a successor serves, it
/// hands its own over, and their clients notice nothing. An idle connection goes at once, and a
/// connection with a request under way goes when the response is sent. Connections of a listener
/// with a wrapper (TLS) and upgraded ones end as at any stop. `docs/restart.md` says what the log
/// tells about this.
///
/// The times of the stop (grace, lame duck, linger) are not settings of the process, but of the
/// [`Shutdown`] that the server was given by [`Server::shutdown`].
///
/// For several servers use [`Server::serve`] for each, with one [`Shutdown`] for all.
///
/// # Examples
///
/// ```no_run
/// use smol_graceful::{Outcome, Process, ServeError, Server, Signal};
///
/// fn main() -> Result<Outcome, ServeError> {
///     Process::default()
///         .threads(4)
///         .signals([Signal::Int, Signal::Term])
///         .run(Server::new(|_request| async { Ok("okay") }), ["127.0.0.1:8082"])
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Process {
    threads: usize,
    pub(crate) signals: Vec<Signal>,
    pub(crate) restart: Option<Signal>,
    #[cfg(feature = "keeper")]
    pub(crate) patience: Duration,
    pub(crate) pid_file: Option<PathBuf>,
    repeat_window: Duration,
}

impl Default for Process {
    /// Returns one thread per core. [`STOP_SIGNALS`] stop the server, and those within 100 ms are
    /// one stop. USR2 asks for a restart, and a successor has 30 s. There is no pid file.
    fn default() -> Self {
        Self {
            threads: thread::available_parallelism().map_or(1, usize::from),
            signals: STOP_SIGNALS.to_vec(),
            restart: Some(Signal::Usr2),
            #[cfg(feature = "keeper")]
            patience: Duration::from_secs(30),
            pid_file: None,
            repeat_window: REPEAT_WINDOW,
        }
    }
}

impl Process {
    /// Sets how many threads run handlers, at least one. Default: the number of cores.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Process, ServeError, Server};
    ///
    /// # fn main() -> Result<(), ServeError> {
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// # let stopped = smol_graceful::Shutdown::new();
    /// # stopped.stop();
    /// # let server = server.shutdown(&stopped);
    /// let outcome = Process::default().threads(2).run(server, ["127.0.0.1:0"])?;
    /// assert!(outcome.is_drained());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Sets which signals stop the server. The others kill the process, unless the program handles
    /// them itself. Default: [`STOP_SIGNALS`].
    ///
    /// # Examples
    ///
    /// With none of them only the program stops the server:
    ///
    /// ```
    /// use smol_graceful::{Process, ServeError, Server, Shutdown};
    /// use std::thread;
    ///
    /// # fn main() -> Result<(), ServeError> {
    /// let shutdown = Shutdown::new();
    /// let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
    /// thread::spawn(move || shutdown.stop());
    /// let outcome = Process::default().signals([]).run(server, ["127.0.0.1:0"])?;
    /// assert_eq!(outcome.signal, None);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn signals(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.signals = signals.into_iter().collect();
        self
    }

    /// Sets how long after the first stop signal further ones belong to the same stop, whichever
    /// they are. A later one aborts (rule S14). Default: 100 ms. With zero, each signal counts.
    ///
    /// Wrappers (`timeout`), terminals that are closed and scripts send two signals for one stop.
    ///
    /// # Examples
    ///
    /// For a program whose wrapper sends INT, and TERM a second later:
    ///
    /// ```
    /// use smol_graceful::{Process, ServeError, Server};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), ServeError> {
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// # let stopped = smol_graceful::Shutdown::new();
    /// # stopped.stop();
    /// # let server = server.shutdown(&stopped);
    /// let process = Process::default().repeat_window(Duration::from_secs(2));
    /// assert!(process.run(server, ["127.0.0.1:0"])?.is_drained());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn repeat_window(mut self, window: Duration) -> Self {
        self.repeat_window = window;
        self
    }

    /// Sets which signal asks for a restart: of the keeper, if [`Process::keep`] makes one. A
    /// process without a keeper only logs how to get one. With `None`, no signal does, and USR2
    /// kills the process, unless the program handles it itself. Default: USR2.
    ///
    /// # Examples
    ///
    /// For a program to which a manager says HUP when there is something new:
    ///
    /// ```
    /// use smol_graceful::{Process, STOP_SIGNALS, ServeError, Server, Signal};
    ///
    /// # fn main() -> Result<(), ServeError> {
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// # let stopped = smol_graceful::Shutdown::new();
    /// # stopped.stop();
    /// # let server = server.shutdown(&stopped);
    /// let stop = STOP_SIGNALS.into_iter().filter(|signal| *signal != Signal::Hup);
    /// let process = Process::default().signals(stop).restart_on(Signal::Hup);
    /// assert!(process.run(server, ["127.0.0.1:0"])?.is_drained());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn restart_on(mut self, signal: impl Into<Option<Signal>>) -> Self {
        self.restart = signal.into();
        self
    }

    /// Sets how long a process may take until it is ready, if [`Process::keep`] makes a keeper.
    /// After that, the keeper ends it, and its predecessor goes on. Default: 30 s.
    ///
    /// # Examples
    ///
    /// For a program that fills a cache before it serves:
    ///
    /// ```
    /// use smol_graceful::{Process, ServeError, Server};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), ServeError> {
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// # let stopped = smol_graceful::Shutdown::new();
    /// # stopped.stop();
    /// # let server = server.shutdown(&stopped);
    /// let process = Process::default().patience(Duration::from_secs(120));
    /// assert!(process.run(server, ["127.0.0.1:0"])?.is_drained());
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "keeper")]
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Writes the id of the process to the file at `path`, for scripts that send it signals: `kill
    /// -TERM "$(cat /run/app/app.pid)"`. Default: no file.
    ///
    /// The process writes the file when it is ready, before it tells the service manager so, and
    /// removes it after the drain if the file still holds its own id. A process that is killed
    /// leaves the file behind, and the next one replaces it. With [`Process::keep`] it is the id of
    /// the keeper, which a restart does not change. A process whose keeper was started in another
    /// way writes no file: give the path to the keeper.
    ///
    /// The file replaces an older one as a whole, so a reader never finds half an id. The process
    /// therefore needs a directory that it may write to. A relative path holds for the directory in
    /// which [`Process::run`] is called.
    ///
    /// # Errors
    ///
    /// [`Process::run`] fails before it listens if it cannot write a file there, or if `path`
    /// names a directory, a device or a socket.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Process, ServeError, Server};
    ///
    /// # fn main() -> Result<(), ServeError> {
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// # let stopped = smol_graceful::Shutdown::new();
    /// # stopped.stop();
    /// # let server = server.shutdown(&stopped);
    /// let path = std::env::temp_dir().join("smol-graceful-example.pid");
    /// let outcome = Process::default().pid_file(&path).run(server, ["127.0.0.1:0"])?;
    /// assert!(outcome.is_drained() && !path.exists());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pid_file = Some(path.into());
        self
    }

    /// Listens, serves, and returns when the server was stopped and has drained.
    ///
    /// The first signal stops the server, the second aborts it at once (rule S14); those within
    /// [`Process::repeat_window`] of the first belong to the same stop. HUP, INT and QUIT stay
    /// ignored if the process was started so, as `nohup` does, and the log says so. Signals that
    /// the process was started to block are unblocked. SIGXFSZ does not kill the process, so a log
    /// that has reached the limit of a file's size costs its lines alone. The signals stay without
    /// effect on the process after this has returned.
    ///
    /// The logger must never block, because the thread that keeps signals and deadlines logs, too:
    /// a pipe that nobody reads would then hold up the stop. [`LogWriter`](crate::LogWriter) takes
    /// care of that.
    ///
    /// A connection's task runs on worker threads of this call's own, whatever [`Server::executor`]
    /// was set to; workers that are stuck in a handler are left behind when the drain has timed out
    /// or was forced.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says if an address cannot be listened on, a signal cannot
    /// be handled, a thread cannot be started, or the pid file cannot be written. Returns
    /// [`InvalidInput`](std::io::ErrorKind::InvalidInput) if there is nothing to listen on. After
    /// the drain, if a source of connections ([`Listener::from_stream`](crate::Listener::from_stream)) has panicked.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Process, ServeError, Server, Shutdown};
    /// use std::thread;
    ///
    /// # fn main() -> Result<(), ServeError> {
    /// let shutdown = Shutdown::new();
    /// let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
    /// thread::spawn(move || shutdown.stop()); // or a signal
    /// let outcome = Process::default().run(server, ["127.0.0.1:0"])?;
    /// assert!(outcome.to_string().starts_with("drained in "));
    /// # Ok(())
    /// # }
    /// ```
    pub fn run<L: Listen>(
        self,
        server: Server,
        listeners: impl IntoIterator<Item = L>,
    ) -> Result<Outcome, ServeError> {
        threads::check()?;
        // XFSZ comes before the others, so that its descriptors are closed again. All of them come
        // before the first bind (rule S16), and before a worker inherits what is blocked.
        let signals = survive_full_files()
            .and_then(|()| signals::stream(&self.signals, self.restart.as_slice()))
            .map_err(during("cannot handle signals"))?;
        // Dropped last: the file names this process until the drain is over.
        let pid_file = self.own_pid_file().map(PidFile::at).transpose()?;
        let writer = pid_file.as_ref().map(PidFile::writer);
        let executor = Arc::new(Executor::new());

        // This channel closes when the function returns, and that ends the workers. They begin
        // before the bind, because there may be no room for so many threads.
        let (_open, closed) = channel::bounded::<Infallible>(1);
        let threads = self.threads;
        for number in 1..=threads {
            let (executor, closed) = (executor.clone(), closed.clone());
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || smol::block_on(executor.run(closed.recv())))
                .map_err(threads::named(&format!("cannot start worker {number} of {threads}")))?;
        }
        let shutdown = server.shutdown.clone();
        let running = Arc::new(server.executor(executor.clone()).start(listeners)?);
        under_keeper::join(&running);
        let notify = Notify::from_env();
        let _announce = executor.spawn(announce(notify.clone(), running.clone(), writer));
        let tell = |stopping: Stopping<'_>| match stopping {
            Stopping::Begun => notify.stopping(),
            Stopping::LameDuck(duration) => notify.lame_duck(duration),
            Stopping::Draining(draining) => notify.draining(draining),
        };

        // Not on the workers: what connections keep and what requests need for a moment are then
        // allocated apart, so that many idle connections do not slow down the busy ones.
        let control = running.control(tell).or(self.obey(signals, &shutdown, &running));
        let control = control.or(running.accept()).or(under_keeper::obey(&running));
        // This `block_on` only parks: it takes no I/O events away from the workers.
        running.verdict(future::block_on(control))
    }

    /// Returns where to write the id of this process. A child's keeper writes its own.
    fn own_pid_file(&self) -> Option<&Path> {
        let path = self.pid_file.as_deref()?;
        if Parent::of_this_process().is_none() {
            return Some(path);
        }
        log::warn!("no pid file {}: the keeper of this process writes one", path.display());
        None
    }

    /// Obeys signals (rule S14). Never ends.
    async fn obey(
        &self,
        mut signals: impl Stream<Item = Received> + Unpin,
        shutdown: &Shutdown,
        running: &Running,
    ) -> Outcome {
        let token = shutdown.token();
        let mut state = State::Running;
        loop {
            let own_stop = async {
                if state != State::Running {
                    future::pending().await
                }
                token.stopping().await;
                Event::OwnStop
            };
            let signal = async {
                match signals.next().await {
                    Some(received) if Some(received.signal) == self.restart => {
                        Event::RestartSignal(received.signal)
                    }
                    Some(received) => Event::StopSignal(received),
                    None => future::pending().await,
                }
            };
            let action;
            (state, action) = state.on(own_stop.or(signal).await, self.repeat_window);
            match action {
                // A client in the queue was accepted by the kernel: the outcome has to name it.
                Action::Abort(_) => running.empty_queues(),
                Action::DoNotRestart(signal) => log_how_to_restart(signal),
                Action::Stop(_) | Action::Ignore(_) => {}
            }
            shutdown.carry_out(action);
        }
    }
}

/// Logs that this process does not restart itself, and how to restart it.
fn log_how_to_restart(signal: Signal) {
    let name = signals::name(signal);
    if Parent::of_this_process().is_some() {
        let keeper = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        log::warn!("no restart because of {name}: send it to the keeper, process {keeper}");
    } else {
        log::warn!(
            "no restart because of {name}: this process has no keeper; start it as: smol-graceful \
             keep -- COMMAND, or call Process::keep"
        );
    }
}

/// Tells the service manager that requests are served, by the very threads that serve them. Goes on
/// telling it if the manager has a watchdog.
async fn announce(notify: Notify, running: Arc<Running>, pid_file: Option<PidWriter>) {
    // The file comes first, so a manager that hears READY finds it.
    pid_file.iter().for_each(PidWriter::write);
    let mut failed = false;
    while let Err(error) = ready(&running.listeners) {
        if !mem::replace(&mut failed, true) {
            log::warn!("cannot say that this process serves, trying again: {}", reason(&error));
        }
        Timer::after(Duration::from_millis(100)).await;
    }
    let addresses: Vec<_> = running.listeners.iter().map(|l| l.address().to_string()).collect();
    notify.status(&format!("listening on {}", addresses.join(", ")));
    let Some(interval) = notify.watchdog_interval() else { return };
    loop {
        notify.watchdog();
        // As sd_watchdog_enabled(3) recommends.
        Timer::after(interval / 2).await;
    }
}
