//! [`run`] and [`Process`]: servers as a process, with its settings, worker threads and listeners.
//!
//! Invariant: signals are handled from before the first bind (rule S16), and the calling thread is
//! left for signals, deadlines and the drain (rule S15). Never exits the process and prints
//! nothing.

mod running;
mod total;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use async_signal::Signal;
use futures_lite::future;
use smol::Executor;
use smol::channel;

use crate::error::{ServeError, during, invalid};
use crate::listen::Listen;
use crate::restart::parent::Parent;
use crate::restart::pid_file::PidFile;
use crate::server::Server;
use crate::server::running::Running;
use crate::stop::obey::REPEAT_WINDOW;
use crate::stop::outcome::Outcome;
use crate::stop::shutdown::Shutdown;
use crate::stop::signals::{self, STOP_SIGNALS, survive_full_files};
use crate::threads;
use crate::turns;
use running::RunningProcess;

/// Runs a server as a process until a signal stops it, with [`Process::default`]'s settings.
///
/// The drain takes 30 s at most. If the drain has to take another time, give the server a
/// [`Shutdown`] of your own, as in the second example.
///
/// # Errors
///
/// Returns the errors of [`Process::run`].
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
/// A server with other times:
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
/// Under a keeper the process takes the connections of its predecessor. When a successor serves,
/// the process hands its own connections over, and their clients notice nothing. An idle connection
/// goes at once, and a connection with a request under way goes when the response is sent.
/// Connections of a listener with a wrapper (TLS) and upgraded ones end as at any stop.
/// The page [`restarting`](crate::restarting) explains the lines of the log about this.
///
/// The times of the stop (grace, lame duck, linger, stream grace) are not settings of the process,
/// but of the [`Shutdown`] that [`Server::shutdown`] has given to the server.
///
/// [`Process::also`] and [`Process::admin`] add further servers.
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
#[derive(Debug)]
pub struct Process {
    threads: usize,
    pub(crate) signals: Vec<Signal>,
    pub(crate) restart: Option<Signal>,
    #[cfg(feature = "keeper")]
    pub(crate) patience: Duration,
    pub(crate) pid_file: Option<PathBuf>,
    repeat_window: Duration,
    beside: Vec<Beside>,
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
            beside: Vec::new(),
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

    /// Sets the signals that stop the server. Other signals kill the process, unless the program
    /// handles them itself. Default: [`STOP_SIGNALS`].
    ///
    /// # Examples
    ///
    /// Without any signal, only the program stops the server:
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

    /// Sets the time after the first stop signal in which every further stop signal belongs to the
    /// same stop. A later signal aborts (rule S14). Default: 100 ms. With zero, each signal counts.
    ///
    /// Scripts, wrappers such as `timeout`, and terminals that close send two signals for one stop.
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

    /// Sets the signal that asks the keeper for a restart, if [`Process::keep`] makes a keeper. A
    /// process without a keeper only logs how to get one. With `None`, no signal asks for a
    /// restart, and USR2 kills the process, unless the program handles USR2 itself. Default: USR2.
    ///
    /// # Examples
    ///
    /// For a program to which a manager sends HUP when there is a new version:
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
    /// After this time, the keeper ends the process, and the predecessor goes on. Default: 30 s.
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
    /// leaves the file behind, and the next one replaces it. With [`Process::keep`], the file has
    /// the id of the keeper, which a restart does not change. A process whose keeper was started in
    /// another way writes no file, so give the path to the keeper.
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

    /// Runs a further server beside the one of [`Process::run`]: with the same workers, signals and
    /// keeper, and with listeners, a handler and limits of its own.
    ///
    /// A signal stops all of them. The outcome of [`Process::run`] counts the work of all, and its
    /// ending is the worst one. Each server has the grace of its own [`Shutdown`].
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Process, ServeError, Server, Shutdown};
    /// use std::thread;
    ///
    /// # fn main() -> Result<(), ServeError> {
    /// let shutdown = Shutdown::new();
    /// let public = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
    /// let internal = Server::new(|_request| async { Ok("fine") }).shutdown(&shutdown);
    /// thread::spawn(move || shutdown.stop()); // or a signal
    /// let process = Process::default().also(internal, ["127.0.0.1:0"]);
    /// assert!(process.run(public, ["127.0.0.1:0"])?.is_drained());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn also<L: Listen>(
        mut self,
        server: Server,
        listeners: impl IntoIterator<Item = L> + Send + 'static,
    ) -> Self {
        self.beside.push(Beside::new(server, listeners, false));
        self
    }

    /// Runs a server that answers until all others have drained, for example about readiness and
    /// metrics.
    ///
    /// A signal stops the other servers, and their end stops this server. The drain of this server
    /// takes at most as long as the others have left of their grace, and has no lame duck. A second
    /// signal ends this server at once, like the others. At a restart by a keeper, this server
    /// stops together with the others, because the successor answers then.
    ///
    /// The server needs a [`Shutdown`] of its own, and has one by default. For readiness and
    /// [`Shutdown::open_work`], give its handler the handle of the others, and ask
    /// [`probe_for`](crate::probe_for).
    ///
    /// # Errors
    ///
    /// [`Process::run`] returns [`InvalidInput`](std::io::ErrorKind::InvalidInput) if the server has
    /// the [`Shutdown`] of another one.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Process, Response, ServeError, Server, Shutdown, StatusCode, probe_for};
    /// use std::thread;
    ///
    /// # fn main() -> Result<(), ServeError> {
    /// let shutdown = Shutdown::new();
    /// let public = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
    /// let token = shutdown.token();
    /// let admin = Server::new(move |request| {
    ///     let answer = probe_for(&token, &request);
    ///     async { Ok(answer.unwrap_or(Response::new(StatusCode::NotFound))) }
    /// });
    /// thread::spawn(move || shutdown.stop()); // or a signal
    /// let process = Process::default().admin(admin, ["127.0.0.1:0"]);
    /// assert!(process.run(public, ["127.0.0.1:0"])?.is_drained());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn admin<L: Listen>(
        mut self,
        server: Server,
        listeners: impl IntoIterator<Item = L> + Send + 'static,
    ) -> Self {
        self.beside.push(Beside::new(server, listeners, true));
        self
    }

    /// Listens and serves. Returns when the server has been stopped and has drained, and the
    /// servers of [`Process::also`] and [`Process::admin`] have, too.
    ///
    /// The first signal stops the server, and the second aborts it at once (rule S14). Signals
    /// within [`Process::repeat_window`] of the first one belong to the same stop. HUP, INT and
    /// QUIT stay ignored if the process was started so, as `nohup` does, and the log says so.
    /// Signals that the process was started to block are unblocked. SIGXFSZ does not kill the
    /// process, so a log that has reached the limit of a file's size loses its lines, and nothing
    /// else happens. After `run` has returned, all these signals still have no effect on the
    /// process.
    ///
    /// The logger must never block, because the thread that keeps signals and deadlines logs, too.
    /// For example, a pipe that nobody reads would hold up the stop.
    /// [`LogWriter`](crate::LogWriter) takes care of that.
    ///
    /// Connections run on worker threads of this call, and [`Server::executor`] does not count. If
    /// the drain has timed out or was forced, `run` leaves behind the workers that are stuck in a
    /// handler.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says if an address cannot be listened on, a signal cannot
    /// be handled, a thread cannot be started, or the pid file cannot be written. Returns
    /// [`InvalidInput`](std::io::ErrorKind::InvalidInput) if there is nothing to listen on. Returns
    /// an error after the drain if a source of connections
    /// ([`Listener::from_stream`](crate::Listener::from_stream)) has panicked.
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
        self.check_latches(&server)?;
        // XFSZ comes before the others, so that its descriptors are closed again. All of them come
        // before the first bind (rule S16), and before a worker inherits what is blocked.
        let signals = survive_full_files()
            .and_then(|()| signals::stream(&self.signals, self.restart.as_slice()))
            .map_err(during("cannot handle signals"))?;
        // Dropped last, so that the file names this process until the drain is over.
        let pid_file = self.own_pid_file().map(PidFile::at).transpose()?;
        let writer = pid_file.as_ref().map(PidFile::writer);
        let executor = Arc::new(Executor::new());

        // This channel closes when the function returns, and the workers end then. The workers
        // start before the bind, because the system may refuse so many threads.
        let (_open, closed) = channel::bounded::<Infallible>(1);
        let threads = self.threads;
        for number in 1..=threads {
            let (executor, closed) = (executor.clone(), closed.clone());
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || smol::block_on(turns::run(&executor, closed.recv())))
                .map_err(threads::named(&format!("cannot start worker {number} of {threads}")))?;
        }
        // The servers beside come first, because an iterator of `listeners` may take what is left
        // of the sockets that the process was passed.
        let mut servers = self
            .beside
            .into_iter()
            .map(|server| server.start(executor.clone()))
            .collect::<io::Result<Vec<_>>>()?;
        servers.insert(0, server.executor(executor.clone()).start(listeners)?);
        let process = RunningProcess::new(servers, self.restart, self.repeat_window);
        let _announce = executor.spawn(process.announce(writer));
        // This `block_on` only parks, so it takes no I/O events away from the workers.
        future::block_on(process.serve(signals))
    }

    /// Returns an error if a server that stops last has the latch of a server that stops first, or
    /// a child of that latch.
    fn check_latches(&self, server: &Server) -> Result<(), ServeError> {
        let (last, first): (Vec<_>, Vec<_>) =
            self.beside.iter().partition(|beside| beside.stops_last);
        let first = first.iter().map(|beside| &beside.shutdown).chain([&server.shutdown]);
        let mut first = first.flat_map(|latch| last.iter().map(move |beside| (latch, beside)));
        let follows = |(latch, beside): (&Shutdown, &&Beside)| {
            beside.shutdown.is_same(latch) || beside.shutdown.is_below(latch)
        };
        if first.any(follows) {
            return Err(invalid(
                "an admin server stops after the others, so give it a `Shutdown` of its own",
            )
            .into());
        }
        Ok(())
    }

    /// Returns the path to which this process writes its id. Returns `None` for a child, because
    /// its keeper writes the file.
    fn own_pid_file(&self) -> Option<&Path> {
        let path = self.pid_file.as_deref()?;
        if Parent::of_this_process().is_none() {
            return Some(path);
        }
        log::warn!("no pid file {}: the keeper of this process writes one", path.display());
        None
    }
}

/// A server that a process runs beside another one.
pub(crate) struct Beside {
    shutdown: Shutdown,
    stops_last: bool,
    start: Box<dyn FnOnce(Arc<Executor<'static>>) -> io::Result<Running> + Send>,
}

impl Beside {
    fn new<L: Listen>(
        server: Server,
        listeners: impl IntoIterator<Item = L> + Send + 'static,
        stops_last: bool,
    ) -> Self {
        let shutdown = server.shutdown.clone();
        let start = Box::new(move |executor| {
            let mut running = server.executor(executor).start(listeners)?;
            running.stops_last = stops_last;
            Ok(running)
        });
        Self { shutdown, stops_last, start }
    }

    /// Makes the server listen, and runs its connections on `executor`.
    fn start(self, executor: Arc<Executor<'static>>) -> io::Result<Running> {
        (self.start)(executor)
    }
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").field("stops_last", &self.stops_last).finish_non_exhaustive()
    }
}
