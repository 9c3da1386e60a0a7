//! [`Server`]: a server before it listens, with its handler and its settings.
//!
//! Invariant: a server owns no socket and no task before [`Server::start`], which returns the
//! [`Running`] that serves. This file accepts no connection, and polls nothing.

pub(crate) mod running;

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;

use http_types::{Request, Response};
use smol::Executor;
use smol::channel;

use crate::conn::Service;
use crate::conn::handler::Handler;
use crate::executor::ServerExecutor;
use crate::limits::Limits;
use crate::listen::Listen;
use crate::observe::{Exchange, Observer};
use crate::places::Places;
use crate::stop::shutdown::Shutdown;
use crate::threads;
use running::Running;

/// An HTTP/1.1 server.
///
/// The server calls the handler for every request. The handler returns a value that is
/// `Into<Response>`, such as a text or a [`Response`](crate::Response), or an error. If the
/// branches of a handler return values of several types, call `.into()` on each to make a
/// [`Response`](crate::Response).
///
/// If the handler returns an error, the client gets the status of the error and nothing more: 400
/// for `Error::new(StatusCode::BadRequest, error)`, and 500 for an error that was made without a
/// status. If a handler panics, its client gets a 500 and loses the connection, and nothing else
/// happens.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Server, Shutdown};
///
/// # fn main() -> std::io::Result<()> {
/// let shutdown = Shutdown::new();
/// let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
/// shutdown.stop(); // any time, from anywhere
///
/// let outcome = smol::block_on(server.serve(["127.0.0.1:0"]))?;
/// assert!(outcome.is_drained());
/// # Ok(())
/// # }
/// ```
pub struct Server {
    handler: Handler,
    limits: Limits,
    observer: Option<Arc<Observer>>,
    pub(crate) shutdown: Shutdown,
    pub(crate) executor: Option<ServerExecutor>,
}

impl Server {
    /// Makes a server of a handler.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_lite::stream;
    /// use smol_graceful::{Connection, Listener, Method, Request, Server, StatusCode, http_types};
    ///
    /// # fn main() -> http_types::Result<()> {
    /// let server = Server::new(|request| async move {
    ///     match request.url().path() {
    ///         "/" => Ok("okay"),
    ///         _ => Err(http_types::Error::from_str(StatusCode::NotFound, "no such page")),
    ///     }
    /// });
    ///
    /// let (client, connection) = Connection::pair();
    /// smol::block_on(async {
    ///     let listener = Listener::from_stream(stream::once(Ok(connection)));
    ///     let serve = smol::spawn(server.serve([listener]));
    ///     let request = Request::new(Method::Get, "http://localhost/lost");
    ///     let response = async_h1::connect(client, request).await?;
    ///     assert_eq!(response.status(), StatusCode::NotFound);
    ///     # drop(serve);
    ///     # Ok(())
    /// })
    /// # }
    /// ```
    pub fn new<H, F, R>(handler: H) -> Self
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = http_types::Result<R>> + Send + 'static,
        R: Into<Response>,
    {
        Self {
            handler: Handler::new(handler),
            limits: Limits::default(),
            observer: None,
            shutdown: Shutdown::new(),
            executor: None,
        }
    }

    /// Sets the limits. Default: [`Limits::default`].
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Limits, Server};
    /// use std::time::Duration;
    ///
    /// let limits = Limits::default().idle_timeout(Duration::from_secs(10));
    /// let server = Server::new(|_request| async { Ok("okay") }).limits(limits);
    /// # drop(server);
    /// ```
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets a function that gets each exchange after its end, for an access log or metrics. This
    /// includes requests that no handler sees (400, 408, 431, 501 and so on). Default: no function,
    /// and then the server measures nothing. A second call replaces the first.
    ///
    /// `observe` runs on the thread that serves the connection, so it must not block. Write logs
    /// through a [`LogWriter`](crate::LogWriter). If `observe` panics, the log says so, and the
    /// server goes on.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Server;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// let failures = Arc::new(AtomicU64::new(0));
    /// let count = failures.clone();
    /// let server = Server::new(|_request| async { Ok("okay") }).observe(move |exchange| {
    ///     if exchange.status().is_some_and(|status| status.is_server_error()) {
    ///         count.fetch_add(1, Ordering::Relaxed);
    ///     }
    /// });
    /// # drop(server);
    /// ```
    #[must_use]
    pub fn observe(mut self, observe: impl Fn(&Exchange) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(Observer::new(observe)));
        self
    }

    /// Runs connections on `executor`: an `Arc` of a `smol::Executor`, a `&'static` one, smol's
    /// global one ([`ServerExecutor::global`]), or a runtime that is not smol's
    /// ([`ServerExecutor::from_fn`]). Default: the connections run inside [`Server::serve`], on one
    /// thread.
    ///
    /// The program runs the executor, on any number of threads, until `serve` has returned. Another
    /// thread may poll `serve` itself. For handlers that cannot leave their thread, use
    /// [`Server::local`].
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Server;
    /// use std::sync::Arc;
    ///
    /// let executor = Arc::new(smol::Executor::new());
    /// let server = Server::new(|_request| async { Ok("okay") }).executor(executor.clone());
    /// # drop(server);
    /// ```
    #[must_use]
    pub fn executor(mut self, executor: impl Into<ServerExecutor>) -> Self {
        self.executor = Some(executor.into());
        self
    }

    /// Sets the handle that stops this server. The handle's latch may be shared with other servers,
    /// or with work of the program's own. Without a handle, a server is stopped only by signals
    /// under [`run`](crate::run), by a keeper, or by the drop of its future.
    ///
    /// Servers that share a latch drain together, with the same four times, until the latch has no
    /// holder any more. Each outcome counts the requests that all of them have finished. If one
    /// server has to answer while the others drain, give it a latch of its own, and stop that latch
    /// after the others.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_lite::future;
    /// use smol_graceful::{Server, Shutdown};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let shutdown = Shutdown::new();
    /// let public = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
    /// let admin = Server::new(|_request| async { Ok("fine") }).shutdown(&shutdown);
    /// shutdown.stop(); // any time, from anywhere
    ///
    /// let both = future::zip(public.serve(["127.0.0.1:0"]), admin.serve(["127.0.0.1:0"]));
    /// let (public, admin) = smol::block_on(both);
    /// assert!(public?.is_drained() && admin?.is_drained());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn shutdown(mut self, shutdown: &Shutdown) -> Self {
        self.shutdown = shutdown.clone();
        self
    }

    /// Listens on `listeners`, and returns the server that runs.
    pub(crate) fn start<L: Listen>(
        self,
        listeners: impl IntoIterator<Item = L>,
    ) -> io::Result<Running> {
        threads::check()?;
        let listeners =
            listeners.into_iter().map(Listen::listen).collect::<io::Result<Vec<_>>>()?;
        if listeners.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "nothing to listen on: give an address such as `:8082`, or start the process with sockets (LISTEN_FDS)",
            ));
        }
        // The count of open files opens one for a moment, so it comes before the line that says that
        // the server is up.
        let places = Places::new(self.limits.connections);
        for listener in &listeners {
            let inherited = if listener.is_inherited() { " (inherited)" } else { "" };
            log::info!("listening on {}{inherited}", listener.address());
        }
        let (leavers_in, leavers) = channel::unbounded();
        let executor = self.executor.unwrap_or_else(|| Arc::<Executor<'_>>::default().into());
        let service = Arc::new(Service {
            handler: self.handler,
            limits: self.limits,
            observer: self.observer,
            orders: self.shutdown.orders(),
            shutdown: self.shutdown,
            leavers: leavers_in,
        });
        Ok(Running::new(listeners, executor, service, places, leavers))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("limits", &self.limits)
            .field("shutdown", &self.shutdown)
            .finish_non_exhaustive()
    }
}
