//! [`Server::serve`]: a server as a future, for a program that has its own executor and control.
//!
//! Invariant: what the server needs to go on is polled by this future, or by the executor that the
//! program runs. Handles no signal and starts no thread.

use std::future::Future;
use std::sync::Arc;

use futures_lite::{FutureExt, future};
use smol::Executor;

use crate::error::ServeError;
use crate::listen::Listen;
use crate::server::Server;
use crate::server::running::Running;
use crate::stop::outcome::Outcome;
use crate::stop::phase::Phase;
use crate::turns;
use crate::under_keeper;

impl Server {
    /// Listens at once, and returns a future that serves. The future ends when the server was
    /// stopped and has drained, and returns the outcome.
    ///
    /// The future needs no particular runtime, and makes progress wherever it is polled.
    ///
    /// The server tells a keeper or a service manager nothing. The program calls
    /// [`ready`](crate::ready) when it serves, because a keeper and a unit with `Type=notify` wait
    /// for that call. Only [`run`](crate::run) sends STOPPING, EXTEND_TIMEOUT_USEC and WATCHDOG.
    ///
    /// Under a keeper, the server takes the connections of its predecessor. When a successor
    /// serves, the server stops and hands its own connections over. The server also stops when the
    /// keeper has ended.
    ///
    /// A handler that blocks the thread which polls this future holds up everything else on that
    /// thread: other requests, the deadline, and also signals if
    /// [`Shutdown::obey`](crate::Shutdown::obey) runs there. Use [`run`](crate::run), or
    /// [`Server::executor`] with threads of its own, if that may happen. The logger must never
    /// block either: see [`LogWriter`](crate::LogWriter).
    ///
    /// # Errors
    ///
    /// Returns an error if the server cannot listen on one of the addresses, and
    /// [`InvalidInput`](std::io::ErrorKind::InvalidInput) if there is no address. The future
    /// returns both before the server serves any connection.
    ///
    /// Returns an error if a source of connections
    /// ([`Listener::from_stream`](crate::Listener::from_stream)) panics. The server then stops by
    /// itself, the future returns the error after the drain, and the [`Outcome`] is only in the
    /// log.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future aborts the server: listeners and connections are closed at once.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Listener, Server};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// # let stopped = smol_graceful::Shutdown::new();
    /// # stopped.stop();
    /// # let server = server.shutdown(&stopped);
    /// let listener = Listener::bind("127.0.0.1:0")?;
    /// println!("listening on {}", listener.address());
    /// let outcome = smol::block_on(server.serve([listener]))?;
    /// println!("{outcome}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn serve<L: Listen>(
        mut self,
        listeners: impl IntoIterator<Item = L>,
    ) -> impl Future<Output = Result<Outcome, ServeError>> + Send {
        let own = self.executor.is_none().then(Arc::<Executor<'_>>::default);
        self.executor = self.executor.or_else(|| own.clone().map(Into::into));
        let running = self.start(listeners).map(Arc::new);
        running.iter().for_each(under_keeper::join);
        async move { serve(&running?, own.as_deref()).await }
    }

    /// Serves like [`Server::serve`], and stops when `stop` is ready, whatever `stop` returns.
    ///
    /// This is for a program that has an event of its own, for example a channel, a signal of its
    /// runtime, or the end of another task. The server's [`Shutdown`] and a keeper stop the server,
    /// too. For the signals that stop a process, use [`Shutdown::obey`](crate::Shutdown::obey),
    /// which also aborts at the second signal.
    ///
    /// The server polls `stop` until it is ready. The server drains then, for at most
    /// [`Shutdown::grace`](crate::Shutdown::grace).
    ///
    /// [`Shutdown`]: crate::Shutdown
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Server::serve`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `stop`, and aborts the server.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Server;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let (stop, stopped) = smol::channel::bounded::<()>(1);
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// let serve = server.serve_until(["127.0.0.1:0"], stopped.recv());
    /// drop(stop); // any time, from anywhere
    /// assert!(smol::block_on(serve)?.is_drained());
    /// # Ok(())
    /// # }
    /// ```
    pub fn serve_until<L: Listen, S: Future>(
        self,
        listeners: impl IntoIterator<Item = L>,
        stop: S,
    ) -> impl Future<Output = Result<Outcome, ServeError>> {
        let shutdown = self.shutdown.clone();
        let serve = self.serve(listeners);
        let stop = async move {
            stop.await;
            if shutdown.phase() == Phase::Running {
                log::info!("stopping: {}", shutdown.counted());
                shutdown.stop();
            }
            future::pending().await
        };
        serve.or(stop)
    }
}

/// Serves until the drain is over. Also runs `own`, the executor of a server to which the program
/// has given none.
async fn serve(running: &Arc<Running>, own: Option<&Executor<'_>>) -> Result<Outcome, ServeError> {
    let serve = running.control(|_| {}).or(running.accept()).or(under_keeper::obey(running));
    // `serve` is a task of its own, so that a connection that wakes this future does not poll it.
    // The task is in an executor of this function, because `serve` borrows `running`.
    let tasks = Executor::new();
    let outcome = turns::run(&tasks, tasks.spawn(serve));
    let outcome = match own {
        Some(executor) => turns::run(executor, outcome).await,
        None => outcome.await,
    };
    running.verdict(outcome)
}
