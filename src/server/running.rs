//! [`Running`]: a server that listens. It accepts, counts and spawns connections, stops and drains.
//!
//! Invariant: a connection is counted before its task is spawned (rule S1), and a server runs by
//! two futures that need not be on the same thread: `accept` takes connections, and `control`
//! sweeps, stops and drains (rule S15). This file handles no signal.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_io::Timer;
use futures_lite::{FutureExt, future};
use log::Level;
use smol::channel::{self, Receiver, Sender};

use crate::conn::leaving::{Counted, Leaving};
use crate::conn::{Conn, Service};
use crate::error::{ServeError, reason};
use crate::executor::ServerExecutor;
use crate::limits::Limits;
use crate::listen::listener::Listener;
use crate::listen::source::Accepted;
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
use crate::stream::transport::Peer;
use crate::wire::Movable;

/// A server that listens.
pub(crate) struct Running {
    pub(crate) listeners: Vec<Listener>,
    /// The facts about each listener that its connections share.
    origins: Vec<Arc<Origin>>,
    executor: ServerExecutor,
    /// `true` if a successor serves in place of this server.
    is_succeeded: AtomicBool,
    /// The time at which the grace began, which is after the lame duck.
    drain_began: OnceLock<Instant>,
    /// `true` if the process stops this server after the others have drained (rule S26).
    pub(crate) stops_last: bool,
    pub(crate) places: Places,
    pub(crate) service: Arc<Service>,
    /// The connections that leave for the successor.
    pub(crate) leavers: Receiver<Leaving>,
    /// The channel that starts a hand-over.
    pub(crate) hand_over: (Sender<HandOverStart>, Receiver<HandOverStart>),
}

/// The data for the begin of a hand-over.
pub(crate) struct HandOverStart {
    /// The passage to the successor.
    pub(crate) passage: Channel,
    /// The passages from which connections still come.
    pub(crate) predecessors: Vec<Channel>,
    /// Holds the drain open until the courier has asked each connection to leave.
    pub(crate) guard: Option<Entry>,
}

impl Running {
    /// Takes the listeners of a server. `leavers` is the other end of [`Service::leavers`].
    pub(crate) fn new(
        listeners: Vec<Listener>,
        executor: ServerExecutor,
        service: Arc<Service>,
        places: Places,
        leavers: Receiver<Leaving>,
    ) -> Self {
        STARTED.fetch_add(1, Ordering::Relaxed);
        let origins = listeners
            .iter()
            .zip(0..)
            .map(|(listener, number)| Arc::new(Origin::new(number, listener.address().clone())));
        Self {
            origins: origins.collect(),
            hand_over: channel::bounded(1),
            listeners,
            executor,
            is_succeeded: AtomicBool::new(false),
            drain_began: OnceLock::new(),
            stops_last: false,
            places,
            service,
            leavers,
        }
    }

    /// Accepts connections until dropped. After the listeners have closed, the future stays
    /// pending.
    pub(crate) async fn accept<T: Send>(&self) -> T {
        let nobody: Pin<Box<dyn Future<Output = T> + Send + '_>> = Box::pin(future::pending());
        let all = self.listeners.iter().map(|listener| self.accept_on(listener));
        // These futures are not tasks, because a task would keep its executor alive.
        all.fold(nobody, |others, accept| Box::pin(others.or(accept))).await
    }

    async fn accept_on<T>(&self, listener: &Listener) -> T {
        for turn in 1_usize.. {
            // Clients beyond `Limits::connections` wait in the kernel's queue. `accept` drops the
            // place while it waits, so a listener without a client keeps no place from the others.
            let place = self.places.take(listener, |most| self.close_idle(most)).await;
            if !listener.accept(|accepted| self.admit(listener, accepted, Some(place))).await {
                break;
            }
            if turn % 32 == 0 {
                // A flood of new connections must not keep accepted ones from their turn.
                future::yield_now().await;
            }
        }
        if listener.failure().is_some() {
            // S17: stop, because without this source the server would look healthy but serve less.
            self.service.shutdown.stop();
        }
        future::pending().await
    }

    /// Closes the connections that have been idle longest, but at most `most`. Returns their
    /// number.
    fn close_idle(&self, most: usize) -> usize {
        let Service { shutdown, orders, .. } = &*self.service;
        // `least` protects clients that have just come or just got an answer, because their next
        // request may be on its way.
        let (least, now) = (shutdown.times().linger, Instant::now());
        shutdown.wake(|registry| registry.expire_idle_longest(orders, most, least, now))
    }

    /// Takes the connections in the kernel's queues, so that an abort can name them.
    pub(crate) fn empty_queues(&self) {
        for listener in &self.listeners {
            // If a client cannot be taken now, `close_at_once` tries again at the end.
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
                self.service.shutdown.note_missed(&seat);
            }
            return;
        };
        let service = self.service.clone();
        // A wrapped connection has another kind of task, so the task of a plain one has no room for
        // a wrapper.
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
        // Two kinds of tasks keep small the task of an idle connection, which has no room for a
        // part of a request.
        match connection.into_idle() {
            (idle, None) => self.executor.spawn(async move {
                let served = Conn::moved(&service, &counted.seat, idle).serve();
                let served = AssertUnwindSafe(served).catch_unwind().await;
                service.end(counted, served);
            }),
            (idle, Some(incoming)) => self.executor.spawn(async move {
                let served = Conn::moved(&service, &counted.seat, idle).serve_begun(incoming);
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

    /// Keeps the deadlines, waits for the stop, closes and drains. Calls `tell` at each step of the
    /// stop, and returns the outcome.
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

    /// Returns the addresses of the server in one line.
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
        // S3: with a successor there is no lame duck, because a balancer's probe goes to the
        // successor.
        if !lame_duck.is_zero() && !self.has_successor() {
            log::info!("lame duck: accepting connections for another {lame_duck:?}");
            tell(Stopping::LameDuck(lame_duck));
            sleep(lame_duck).or(token.aborting()).await;
        }
        self.drain_began.get_or_init(Instant::now);
        // Three futures run side by side until the drain ends. The queue may need descriptors that
        // only idle connections can give back, and the deadline holds for all three.
        // 1. S4: empty the queue, then close. Until then, the server holds the drain open. It is
        // polled before the drain, so the outcome of an abort names queued connections, too.
        let close = async {
            for listener in &self.listeners {
                listener.close(|accepted| self.admit(listener, accepted, None)).await;
            }
            drop(listening);
            future::pending().await
        };
        // 2. S6: idle connections go on as before, until they get the order for a last look.
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

    /// Closes listeners that are still open at the end of the drain, because there were no
    /// descriptors for the clients in their queues. If descriptors have come free, the outcome
    /// names those clients by their requests. It names the others as clients of which nothing is
    /// known.
    fn close_at_once(&self) {
        for listener in &self.listeners {
            if let Err(error) =
                listener.close_at_once(|accepted| self.admit(listener, accepted, None))
            {
                let (address, reason) = (listener.address(), reason(&error));
                log::error!("clients stay in the queue of {address}, not served: {reason}");
                let unknown = Seat::new(Peer::Unknown, self.service.orders.clone());
                self.service.shutdown.note_missed(&unknown);
            }
        }
    }

    /// Notes that a successor serves in place of this server.
    pub(crate) fn succeeded(&self) {
        self.is_succeeded.store(true, Ordering::Release);
    }

    /// Lets the connections of listeners with a number in `adopted` go to a successor, from the
    /// coming stop on. This has to come before the stop.
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

    /// Logs that no connection goes to the successor, and the reason.
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

    /// Returns the remaining time of the drain, if it has begun.
    pub(crate) fn left(&self) -> Option<Duration> {
        let began = self.drain_began.get()?;
        Some(self.service.shutdown.times().grace.saturating_sub(began.elapsed()))
    }

    /// Returns `true` if a successor serves in place of this server, even if the successor does not
    /// listen on all addresses.
    pub(crate) fn has_successor(&self) -> bool {
        self.is_succeeded.load(Ordering::Acquire)
    }

    /// Finds, again and again, the connections that have not moved for too long. Sleeps while there
    /// are none. The future stays pending for ever.
    async fn sweep<T>(&self) -> T {
        let Service { limits, shutdown, orders, .. } = &*self.service;
        let token = shutdown.token();
        loop {
            shutdown.occupied(orders).await;
            let pause = sleep(self.period());
            if shutdown.phase() == Phase::Running {
                // The drain has more frequent sweeps, from its beginning on.
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
    /// The server still accepts connections for this time (rule S3).
    LameDuck(Duration),
    /// The drain goes on. This step comes once a second until the end of the drain (rule S20).
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

/// The number of servers that this process has started. With several, the log names the one that
/// has drained.
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// Returns the words for a number of connections that stay: `1 stays`, `3 stay`.
pub(crate) fn stays(count: usize) -> String {
    format!("{count} {}", if count == 1 { "stays" } else { "stay" })
}

pub(crate) async fn sleep(duration: Duration) {
    Timer::after(duration).await;
}
