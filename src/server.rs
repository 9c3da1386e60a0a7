//! [`Server`]: the accept loop over listeners; count, spawn, stop, drain.
//!
//! Invariant: a connection is counted before its task is spawned (rule S1), and what the server
//! was asked to do is done by two futures that need not run on the same thread: `accept` takes
//! connections, `control` sweeps, stops and drains (rule S15). Handles no signal.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_io::Timer;
use futures_lite::{FutureExt, future};
use http_types::{Request, Response};
use log::Level;
use smol::Executor;
use smol::channel::{self, Receiver, Sender};

use crate::conn::handler::Handler;
use crate::conn::leaving::{Counted, Leaving};
use crate::conn::{Conn, Service};
use crate::error::{ServeError, reason};
use crate::executor::ServerExecutor;
use crate::limits::Limits;
use crate::listen::Listen;
use crate::listen::listener::Listener;
use crate::listen::source::Accepted;
use crate::observe::{Exchange, Observer};
use crate::places::{Place, Places};
use crate::restart::channel::Channel;
use crate::stop::activity::Doing;
use crate::stop::draining::Draining;
use crate::stop::latch::{Entry, Times};
use crate::stop::orders::Order;
use crate::stop::origin::Origin;
use crate::stop::outcome::Outcome;
use crate::stop::phase::Phase;
use crate::stop::registry::{Holder, Sweep};
use crate::stop::seat::Seat;
use crate::stop::shutdown::Shutdown;
use crate::stream::transport::Peer;
use crate::threads;
use crate::wire::Movable;

/// An HTTP/1.1 server.
///
/// The handler is called for every request. It returns anything that is `Into<Response>` (of one
/// type: with several, each `.into()` a [`Response`](crate::Response)), or an error, which the
/// client sees as its status and no more: `http_types::Error::new(StatusCode::BadRequest, error)`;
/// without a status it is a 500. A handler that panics costs its client a 500 and the connection,
/// nothing else.
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
    ///     let serve = smol::spawn(server.serve([Listener::from_stream(stream::once(Ok(connection)))]));
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

    /// Sets the limits; the default is [`Limits::default`].
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

    /// Lets `observe` hear of each exchange, once it is over: for an access log or metrics, also of
    /// what no handler ever sees (400, 408, 431, 501 and so on). By default nothing is measured,
    /// and that costs nothing. A second call replaces the first.
    ///
    /// `observe` runs on the thread that serves the connection, so it must not block: write logs
    /// through a [`LogWriter`](crate::LogWriter). If it panics, the log says so, and the server
    /// goes on.
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

    /// Runs connections on `executor`: an `Arc` of a [`smol::Executor`], a `&'static` one, smol's
    /// global one ([`ServerExecutor::global`]), or a runtime that is not smol's
    /// ([`ServerExecutor::from_fn`]). The default is inside [`Server::serve`], on one thread.
    ///
    /// The program runs the executor, on as many threads as it likes, until `serve` has returned.
    /// `serve` itself may be polled elsewhere. For handlers that cannot leave their thread there is
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
    /// or with work of the program's own. Without a handle only signals under [`run`](crate::run),
    /// a keeper, and the end of its future stop a server.
    ///
    /// Servers that share a latch drain together, with the same four times. They have drained when
    /// nobody holds the latch any more. Each outcome counts what all of them have finished. If a
    /// server has to answer while the others drain, give it a latch of its own and stop it after
    /// the others.
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

    /// Listens.
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
        for listener in &listeners {
            let inherited = if listener.is_inherited() { " (inherited)" } else { "" };
            log::info!("listening on {}{inherited}", listener.address());
        }
        let (leavers_in, leavers) = channel::unbounded();
        let executor = self.executor.unwrap_or_else(|| Arc::<Executor<'_>>::default().into());
        STARTED.fetch_add(1, Ordering::Relaxed);
        let origins = listeners
            .iter()
            .zip(0..)
            .map(|(listener, number)| Arc::new(Origin::new(number, listener.address().clone())));
        Ok(Running {
            origins: origins.collect(),
            hand_over: channel::bounded(1),
            listeners,
            executor,
            is_succeeded: AtomicBool::new(false),
            drain_began: OnceLock::new(),
            stops_last: false,
            places: Places::new(self.limits.connections),
            service: Arc::new(Service {
                handler: self.handler,
                limits: self.limits,
                observer: self.observer,
                orders: self.shutdown.orders(),
                shutdown: self.shutdown,
                leavers: leavers_in,
            }),
            leavers,
        })
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

/// A server that listens.
pub(crate) struct Running {
    pub(crate) listeners: Vec<Listener>,
    /// The listeners, as the connections know them.
    origins: Vec<Arc<Origin>>,
    executor: ServerExecutor,
    /// A successor serves in the place of this server.
    is_succeeded: AtomicBool,
    /// When the grace has begun, which is after the lame duck.
    drain_began: OnceLock<Instant>,
    /// The process stops this server when the others have drained (rule S26).
    pub(crate) stops_last: bool,
    pub(crate) places: Places,
    pub(crate) service: Arc<Service>,
    /// The connections that leave for the successor.
    pub(crate) leavers: Receiver<Leaving>,
    /// Brings the begin of a hand-over.
    pub(crate) hand_over: (Sender<HandOverStart>, Receiver<HandOverStart>),
}

/// The begin of a hand-over.
pub(crate) struct HandOverStart {
    /// The way to the successor.
    pub(crate) passage: Channel,
    /// The passages from which connections still come.
    pub(crate) predecessors: Vec<Channel>,
    /// Holds the drain open until each connection was asked to go.
    pub(crate) guard: Option<Entry>,
}

impl Running {
    /// Accepts connections until dropped. After the listeners have closed, the future stays
    /// pending.
    pub(crate) async fn accept<T: Send>(&self) -> T {
        let nobody: Pin<Box<dyn Future<Output = T> + Send + '_>> = Box::pin(future::pending());
        let all = self.listeners.iter().map(|listener| self.accept_on(listener));
        // Not tasks of their own: they would keep the executor alive that they run on.
        all.fold(nobody, |others, accept| Box::pin(others.or(accept))).await
    }

    async fn accept_on<T>(&self, listener: &Listener) -> T {
        for turn in 1_usize.. {
            // Beyond `Limits::connections`, clients wait in the kernel's queue. `accept` drops the
            // place while it waits, so a listener without a client keeps no place from the others.
            let place = self.places.take(listener, |most| self.close_idle(most)).await;
            if !listener.accept(|accepted| self.admit(listener, accepted, Some(place))).await {
                break;
            }
            if turn % 32 == 0 {
                // A flood of connections must not keep those accepted from their turn.
                future::yield_now().await;
            }
        }
        if listener.failure().is_some() {
            // Without this source the server would look healthy but serve less, so it stops (rule
            // S17).
            self.service.shutdown.stop();
        }
        future::pending().await
    }

    /// Closes the connections that have been idle longest, but at most so many. Returns how many
    /// these are.
    fn close_idle(&self, most: usize) -> usize {
        let Service { shutdown, orders, .. } = &*self.service;
        // A client that has just come, or just got an answer, may well have a request on its way.
        let (least, now) = (shutdown.times().linger, Instant::now());
        shutdown.wake(|registry| registry.expire_idle_longest(orders, most, least, now))
    }

    /// Takes what the kernel has queued, so that an abort can name it.
    pub(crate) fn empty_queues(&self) {
        for listener in &self.listeners {
            // Clients that cannot be taken yet are tried again at the end (`close_at_once`).
            let _ = listener.empty_queue(|accepted| self.admit(listener, accepted, None));
        }
    }

    /// Counts a connection and spawns its task, in this order (rule S1).
    fn admit(&self, listener: &Listener, accepted: Accepted, place: Option<Place>) {
        let Accepted { transport, peer, facts } = accepted;
        let seat = self.seat(listener, peer, Instant::now());
        seat.learn(peer, facts);
        let Some(counted) = self.count(&seat, place) else {
            if transport.waiting() > 0 {
                self.service.shutdown.missed(&seat);
            }
            return;
        };
        let service = self.service.clone();
        // Two kinds of tasks: what a wrapper needs is no part of a plain connection's.
        match listener.wrapper().cloned() {
            None => self.executor.spawn(async move {
                let served = Conn::new(&service, &counted.seat, transport).serve();
                let served = AssertUnwindSafe(served).catch_unwind().await;
                service.end(counted, served);
            }),
            Some(wrapper) => self.executor.spawn(async move {
                let served = Conn::new(&service, &counted.seat, transport).serve_wrapped(&wrapper);
                let served = AssertUnwindSafe(served).catch_unwind().await;
                service.end(counted, served);
            }),
        }
    }

    /// Makes the seat of a connection of `listener` that was accepted or fell idle at `since`.
    pub(crate) fn seat(&self, listener: &Listener, peer: Peer, since: Instant) -> Arc<Seat> {
        let number = self.listeners.iter().position(|own| own.is_same(listener));
        let origin = number.and_then(|number| self.origins.get(number)).cloned();
        Seat::of_listener(origin, peer, self.service.orders.clone(), since)
    }

    /// Counts a connection, unless the drain is over or aborted (rule S1).
    pub(crate) fn count(&self, seat: &Arc<Seat>, place: Option<Place>) -> Option<Counted> {
        let entry = self.service.shutdown.admit(Holder::connection(seat.clone()))?;
        Some(Counted { seat: seat.clone(), _entry: entry, _place: place })
    }

    /// Spawns the task of a connection that another task or process has served before.
    pub(crate) fn go_on(&self, connection: Movable, counted: Counted) {
        let service = self.service.clone();
        // Two kinds of tasks here, too: an idle connection has no room for a part of a request.
        match connection.into_idle() {
            (idle, None) => self.executor.spawn(async move {
                let served = Conn::of(&service, &counted.seat, idle).serve();
                let served = AssertUnwindSafe(served).catch_unwind().await;
                service.end(counted, served);
            }),
            (idle, Some(incoming)) => self.executor.spawn(async move {
                let served = Conn::of(&service, &counted.seat, idle).serve_begun(incoming);
                let served = AssertUnwindSafe(served).catch_unwind().await;
                service.end(counted, served);
            }),
        }
    }

    /// Returns the drain's outcome, or the failure of a source.
    pub(crate) fn verdict(&self, outcome: Outcome) -> Result<Outcome, ServeError> {
        self.failure().map_or(Ok(outcome), Err)
    }

    /// Returns the failure of a source, if one has failed.
    pub(crate) fn failure(&self) -> Option<ServeError> {
        self.listeners.iter().find_map(Listener::failure).map(Into::into)
    }

    /// Keeps the deadlines, waits for the stop, closes and drains. Tells `tell` how the stop goes
    /// on.
    pub(crate) async fn control(&self, tell: impl Fn(Stopping<'_>)) -> Outcome {
        let _abort = AbortOnDrop(self);
        let listening = self.service.shutdown.admit(Holder::Server);
        let outcome = self.stop(listening, tell).or(self.sweep()).await;
        let level = if outcome.is_drained() { Level::Info } else { Level::Warn };
        if STARTED.load(Ordering::Relaxed) > 1 {
            log::log!(level, "{}: {outcome}", self.addresses());
        } else {
            log::log!(level, "{outcome}");
        }
        outcome
    }

    /// Returns where the server listens, in one line.
    fn addresses(&self) -> String {
        let addresses = self.listeners.iter().map(|listener| listener.address().to_string());
        addresses.collect::<Vec<_>>().join(", ")
    }

    async fn stop(&self, listening: Option<Entry>, tell: impl Fn(Stopping<'_>)) -> Outcome {
        let shutdown = &self.service.shutdown;
        let token = shutdown.token();
        token.stopping().await;
        let Times { grace, lame_duck, linger, .. } = shutdown.times();
        tell(Stopping::Begun);
        // Rule S3. With a successor, a balancer that asks for readiness asks the successor.
        if !lame_duck.is_zero() && !self.has_successor() {
            log::info!("lame duck: accepting connections for another {lame_duck:?}");
            tell(Stopping::LameDuck(lame_duck));
            sleep(lame_duck).or(token.aborting()).await;
        }
        self.drain_began.get_or_init(Instant::now);
        // Three futures side by side, until the drain ends: what the queue needs, descriptors above
        // all, may only come free when idle connections leave, and the deadline holds for all.
        // 1. S4: empty the queue, then close. Until then the drain is held open. It is polled
        // before the drain, so the outcome of an abort names what was queued, too.
        let close = async {
            for listener in &self.listeners {
                listener.close(|accepted| self.admit(listener, accepted, None)).await;
            }
            drop(listening);
            future::pending().await
        };
        // 2. Rule S6: idle connections go on as before, until they are told to have a last look.
        let linger = async {
            sleep(linger).await;
            self.service.orders.give(Order::LastLook);
            self.wake_all();
            future::pending().await
        };
        // 3. The drain itself.
        let drain = shutdown.drain_telling(grace, |draining| tell(Stopping::Draining(draining)));
        let took = close.or(linger).or(drain).await;
        if shutdown.phase() == Phase::Aborting {
            self.close_at_once();
        }
        shutdown.outcome(took)
    }

    /// Closes what the end of the drain has found open, because there were no descriptors for the
    /// clients in the queue. Some may have come free by now, so those clients are named by their
    /// request. The rest is named as a client of whom nothing is known.
    fn close_at_once(&self) {
        for listener in &self.listeners {
            if let Err(error) =
                listener.close_at_once(|accepted| self.admit(listener, accepted, None))
            {
                let (address, reason) = (listener.address(), reason(&error));
                log::error!("clients stay in the queue of {address}, not served: {reason}");
                let unknown = Seat::new(Peer::Unknown, self.service.orders.clone());
                self.service.shutdown.missed(&unknown);
            }
        }
    }

    /// Notes that a successor serves in the place of this server.
    pub(crate) fn succeeded(&self) {
        self.is_succeeded.store(true, Ordering::Release);
    }

    /// Lets connections go to a successor, from the coming stop on: those of the listeners that
    /// have a number in `adopted`. Comes before the stop.
    pub(crate) fn begin_hand_over(
        &self,
        adopted: Vec<Option<u32>>,
        passage: Channel,
        predecessors: Vec<Channel>,
    ) {
        let Service { shutdown, orders, .. } = &*self.service;
        orders.begin_hand_over(adopted);
        let guard = shutdown.admit(Holder::Server);
        let _ = self.hand_over.0.try_send(HandOverStart { passage, predecessors, guard });
    }

    /// Waits until the stop begins.
    pub(crate) async fn stopping(&self) {
        self.service.shutdown.token().stopping().await;
    }

    /// Logs that no connection goes to the successor, and why.
    pub(crate) fn log_that_all_stay(&self) {
        let Service { shutdown, orders, .. } = &*self.service;
        let all = shutdown.seats(|registry| {
            let seats = registry.seats_of(orders);
            seats.filter(|seat| seat.doing() != Doing::Closing).cloned().collect()
        });
        let reason = if !self.listeners.iter().any(Listener::can_move_connections) {
            "of a listener with a wrapper (TLS)"
        } else if !self.listeners.iter().any(Listener::is_handed_over) {
            "the successor does not listen there"
        } else {
            "the successor takes none (it is another program or version)"
        };
        if !all.is_empty() {
            log::info!("handed over 0 connections, {}: {reason}", stays(all.len()));
        }
    }

    /// Returns how long the drain may still take, if it has begun.
    pub(crate) fn left(&self) -> Option<Duration> {
        let began = self.drain_began.get()?;
        Some(self.service.shutdown.times().grace.saturating_sub(began.elapsed()))
    }

    /// Returns `true` if a successor serves in the place of this server, even if the successor does
    /// not listen on all addresses.
    pub(crate) fn has_successor(&self) -> bool {
        self.is_succeeded.load(Ordering::Acquire)
    }

    /// Finds, again and again, the connections that have not moved for too long. Sleeps without
    /// connections, and never ends.
    async fn sweep<T>(&self) -> T {
        let Service { limits, shutdown, orders, .. } = &*self.service;
        let token = shutdown.token();
        loop {
            shutdown.occupied(orders).await;
            let pause = sleep(self.period());
            if shutdown.phase() == Phase::Running {
                // The drain looks more often, from its beginning on.
                pause.or(token.stopping()).await;
            } else {
                pause.await;
            }
            let began = self.drain_began.get();
            let sweep = Sweep {
                limits,
                drains: shutdown.phase() > Phase::Running,
                streams: began.map(|began| (*began, shutdown.times().stream_grace)),
                now: Instant::now(),
            };
            shutdown.wake(|registry| registry.sweep(orders, &sweep));
        }
    }

    /// Returns the time between two sweeps: a second, or less if the shortest limit needs that.
    fn period(&self) -> Duration {
        let Service { limits, shutdown, .. } = &*self.service;
        let Limits { head_timeout, idle_timeout, stall_timeout, .. } = *limits;
        let shortest = head_timeout.min(idle_timeout).min(stall_timeout);
        let (shortest, longest) = match shutdown.phase() {
            Phase::Running => (shortest, 1000),
            _ => (shortest.min(shutdown.times().stream_grace), 100),
        };
        (shortest / 8).clamp(Duration::from_millis(5), Duration::from_millis(longest))
    }

    pub(crate) fn wake_all(&self) {
        let Service { shutdown, orders, .. } = &*self.service;
        shutdown.wake(|registry| registry.seats_of(orders).cloned().collect());
    }
}

/// A step between the stop and the end.
pub(crate) enum Stopping<'a> {
    /// The stop has begun.
    Begun,
    /// The server still accepts connections for so long (rule S3).
    LameDuck(Duration),
    /// The drain goes on. Comes every second, until nobody is left (rule S20).
    Draining(&'a Draining),
}

/// Aborts the connections of a server whose future was dropped.
struct AbortOnDrop<'a>(&'a Running);

impl Drop for AbortOnDrop<'_> {
    fn drop(&mut self) {
        // The program may have clones of the listeners.
        self.0.listeners.iter().for_each(Listener::let_go);
        self.0.service.orders.give(Order::Abort);
        self.0.wake_all();
    }
}

/// How many servers this process has started. If there were several, the log says which has
/// drained.
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// Says that so many connections stay in the predecessor: `1 stays`, `3 stay`.
pub(crate) fn stays(count: usize) -> String {
    format!("{count} {}", if count == 1 { "stays" } else { "stay" })
}

pub(crate) async fn sleep(duration: Duration) {
    Timer::after(duration).await;
}
