//! [`run`]: a server as a process: worker threads, signals, the drain, the outcome for `main`.
//!
//! Invariant: the control loop runs on the thread that calls `run`, which runs no handler; so a
//! signal, the deadline and a second signal work with every worker blocked (rule S15). Signals are
//! handled from before the first bind (rule S16). Never exits the process and prints nothing.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::thread;

use async_signal::Signal;
use futures_lite::{FutureExt, Stream, StreamExt, future};
use smol::Executor;
use smol::channel;

use crate::listener::{Listen, reason};
use crate::outcome::{Outcome, name};
use crate::server::{Running, Server};
use crate::shutdown::{Phase, Shutdown};
use crate::signals::{STOP_SIGNALS, stream};

/// Runs a server as a process until a signal stops it, with [`Process::default`]'s settings.
///
/// # Errors
///
/// As [`Process::run`].
///
/// # Examples
///
/// ```no_run
/// use smol_graceful::{Outcome, Server, run};
///
/// fn main() -> std::io::Result<Outcome> {
///     run(Server::new(|_request| async { Ok("okay") }), ["127.0.0.1:8082"])
/// }
/// ```
pub fn run<L: Listen>(
    server: Server,
    listeners: impl IntoIterator<Item = L>,
) -> io::Result<Outcome> {
    Process::default().run(server, listeners)
}

/// How a server runs as a process.
///
/// # Examples
///
/// ```no_run
/// use smol_graceful::{Outcome, Process, Server, Signal};
///
/// fn main() -> std::io::Result<Outcome> {
///     Process::default()
///         .threads(4)
///         .signals([Signal::Int, Signal::Term])
///         .run(Server::new(|_request| async { Ok("okay") }), ["127.0.0.1:8082"])
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Process {
    threads: usize,
    signals: Vec<Signal>,
}

impl Default for Process {
    /// One thread per core; stopped by [`STOP_SIGNALS`].
    fn default() -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        Self { threads, signals: STOP_SIGNALS.to_vec() }
    }
}

impl Process {
    /// How many threads run handlers; at least one. Default: the number of cores.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Which signals stop the server. Default: [`STOP_SIGNALS`].
    #[must_use]
    pub fn signals(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.signals = signals.into_iter().collect();
        self
    }

    /// Listens, serves, and returns when the server was stopped and has drained.
    ///
    /// The first signal stops the server, the second aborts it at once (rule S14). The signals
    /// stay without effect on the process after this has returned. A connection's task runs on
    /// worker threads of this call's own, whatever [`Server::executor`] was set to; workers that
    /// are stuck in a handler are left behind when the drain has timed out or was forced.
    ///
    /// # Errors
    ///
    /// What the operating system says if an address cannot be listened on, a signal not be
    /// handled or a thread not be started.
    pub fn run<L: Listen>(
        self,
        server: Server,
        listeners: impl IntoIterator<Item = L>,
    ) -> io::Result<Outcome> {
        // Rule S16.
        let signals = stream(&self.signals).map_err(named("cannot handle signals"))?;
        let executor = Arc::new(Executor::new());
        let shutdown = server.handle();
        let running = Arc::new(server.executor(executor.clone()).start(listeners)?);

        // Closed when this function returns: the workers end.
        let (_open, closed) = channel::bounded::<Infallible>(1);
        for number in 1..=self.threads {
            let (executor, closed) = (executor.clone(), closed.clone());
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || smol::block_on(executor.run(closed.recv())))
                .map_err(named("cannot start a worker thread"))?;
        }
        let accepting = running.clone();
        let _accept = executor.spawn(async move { accepting.accept().await });

        // This `block_on` only parks: it takes no I/O events away from the workers.
        let outcome = future::block_on(running.control().or(obey(signals, &shutdown, &running)));
        Ok(outcome)
    }
}

fn named(what: &str) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{what}: {}", reason(&error)))
}

/// Stops at the first signal, aborts at the second. Never ends.
async fn obey(
    mut signals: impl Stream<Item = Signal> + Unpin,
    shutdown: &Shutdown,
    running: &Running,
) -> Outcome {
    while let Some(signal) = signals.next().await {
        if shutdown.phase() == Phase::Running {
            let open = shutdown.in_flight();
            log::info!("stopping because of {}; open connections: {open}", name(signal));
            shutdown.stop_by(signal);
        } else {
            log::warn!("ending at once because of a second signal, {}", name(signal));
            // A client in the queue was accepted by the kernel: the outcome has to name it.
            running.empty_queues();
            shutdown.abort();
        }
    }
    future::pending().await
}
