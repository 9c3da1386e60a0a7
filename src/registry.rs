//! [`Registry`]: who holds the drain open and what each of them is doing.
//!
//! Feeds the deadlines (the sweep) and the drain report. A connection's [`Seat`] is written by its
//! own task without a lock and without a clock; the sweep notices what has not moved. Nothing is
//! copied per request: a request's method and path are read from the connection's buffer when a
//! report asks for them. Decides nothing about stopping.

use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use event_listener::Event;
use slab::Slab;

use crate::activity::{Activity, Doing, Look, Wait};
use crate::limits::Limits;
use crate::orders::{Order, Orders};
use crate::socket::Left;
use crate::transport::Peer;

/// Something that the end of the grace, or a second signal, cut short.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Shutdown, What};
/// use std::time::Duration;
///
/// let shutdown = Shutdown::new().grace(Duration::ZERO);
/// let guard = shutdown.token().guard().unwrap();
/// let outcome = futures_lite::future::block_on(shutdown.drain());
/// assert!(matches!(outcome.cut[0].what, What::Guard(place) if place.line() > 0));
/// # drop(guard);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Cut {
    /// What was cut.
    pub what: What,
    /// How long it had been going on: since the request's first byte, or since the guard was taken;
    /// for a connection in [`Stage::Accepted`] or [`Stage::Handshake`], since it was accepted.
    pub age: Duration,
}

/// What can hold a drain open.
///
/// # Examples
///
/// In words of the program's own:
///
/// ```
/// use smol_graceful::{Shutdown, What};
/// use std::time::Duration;
///
/// let shutdown = Shutdown::new().grace(Duration::ZERO);
/// let guard = shutdown.token().guard().unwrap(); // for work that does not end
/// let outcome = futures_lite::future::block_on(shutdown.drain());
/// let line = match &outcome.cut[0].what {
///     What::Request { peer, method, path, .. } => format!("{peer} {method} {path}"),
///     What::Guard(place) => format!("work of line {}", place.line()),
///     _ => outcome.cut[0].to_string(),
/// };
/// assert!(line.starts_with("work of line "));
/// # drop(guard);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum What {
    /// A request that had sent its first byte, or a connection of which that is not known.
    Request {
        /// Who sent it.
        peer: Peer,
        /// How far it had come.
        stage: Stage,
        /// Its method, as far as it has arrived.
        method: String,
        /// Its target (path and query) as the client wrote it, as far as it has arrived.
        path: String,
    },
    /// A guard, by the place in the code that took it.
    Guard(&'static Location<'static>),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = self.age.as_secs_f64();
        match &self.what {
            What::Request { peer, stage, method, path } => {
                let (method, path) = (or_dash(method), or_dash(path));
                write!(f, "{peer} {method} {path} ({stage}, {age:.1} s)")
            }
            What::Guard(place) => write!(f, "guard taken at {place} ({age:.1} s)"),
        }
    }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// How far a connection has come with its request.
///
/// # Examples
///
/// Whose fault was it? The handler waits for a body that the client does not send:
///
/// ```
/// use futures_lite::{AsyncWriteExt, stream};
/// use smol_graceful::{Connection, Listener, Server, Shutdown, Stage, What};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// let (mut client, connection) = Connection::pair();
/// let shutdown = Shutdown::new().grace(Duration::from_millis(10));
/// let handle = shutdown.clone();
/// let server = Server::new(move |mut request| {
///     handle.stop();
///     async move { request.body_string().await }
/// });
/// let listener = Listener::of(stream::once(Ok(connection)));
/// let serve = server.shutdown(&shutdown).serve([listener]);
///
/// let outcome = smol::block_on(async {
///     client.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n").await?;
///     serve.await
/// })?;
/// assert!(matches!(outcome.cut[0].what, What::Request { stage: Stage::Body, .. }));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Accepted, and not looked at yet: whether a request has begun is not known.
    Accepted,
    /// Between requests, or before the first.
    Idle,
    /// The head has begun to arrive.
    Head,
    /// The handler runs.
    Handler,
    /// Someone waits for more of the request's body.
    Body,
    /// The response has begun; its body is awaited from the handler's reader.
    Response,
    /// The client is slow to take the response.
    Writing,
    /// The response is written; what the client still sends is discarded.
    Closing,
    /// The connection was handed over to another protocol.
    Upgraded,
    /// The response is written; the rest of a body that nobody has read is discarded, to go on
    /// with the next request.
    Discarding,
    /// The listener's wrapper is at work: TLS's handshake.
    Handshake,
    /// The response is written; the client's kernel has yet to take the last of it.
    Delivering,
}

impl Stage {
    /// Returns what a report calls the activity. A client that takes no output is reported before a
    /// client that sends no body.
    fn of(look: Look) -> Self {
        let (body, room) = (look.waits_for(Wait::Body), look.waits_for(Wait::Room));
        match look.doing() {
            Doing::Closing if room => Self::Delivering,
            Doing::Closing => Self::Closing,
            _ if room => Self::Writing,
            Doing::Discarding => Self::Discarding,
            _ if body => Self::Body,
            Doing::Accepted => Self::Accepted,
            Doing::Idle => Self::Idle,
            Doing::Head => Self::Head,
            Doing::Handler => Self::Handler,
            Doing::Response => Self::Response,
            Doing::Upgraded => Self::Upgraded,
            Doing::Handshake => Self::Handshake,
        }
    }

    /// Returns what there is to know of the stage, all in one table.
    fn facts(self) -> Facts {
        let facts = |name, limit: fn(&Limits) -> Duration| Facts {
            name,
            limit: Some(limit),
            is_request: true,
            can_look: false,
        };
        let stall: fn(&Limits) -> Duration = |limits| limits.stall_timeout;
        let endless = |name| Facts { limit: None, can_look: true, ..facts(name, stall) };
        match self {
            Self::Accepted => facts("not looked at yet", |limits| limits.idle_timeout),
            Self::Idle => facts("idle", |limits| limits.idle_timeout).of_nobody(),
            Self::Head => facts("reading the head", |limits| limits.head_timeout),
            Self::Handler => endless("in the handler"),
            Self::Body => Facts { can_look: true, ..facts("reading the body", stall) },
            Self::Response => endless("streaming the response"),
            Self::Writing => Facts { can_look: true, ..facts("writing the response", stall) },
            Self::Closing => facts("closing", |_| Limits::CLOSING).of_nobody(),
            Self::Upgraded => endless("upgraded"),
            Self::Discarding => facts("discarding the body", stall).of_nobody(),
            Self::Handshake => {
                facts("in the handshake", |limits| Limits::HANDSHAKE.min(limits.head_timeout))
            }
            Self::Delivering => facts("delivering the response", |limits| {
                Limits::DELIVERING.min(limits.stall_timeout)
            })
            .of_nobody(),
        }
    }

    /// Returns `true` if the server waits in this stage for the rest of a request's body.
    pub(crate) fn waits_for_body(self) -> bool {
        matches!(self, Self::Body | Self::Discarding)
    }
}

/// All facts about a [`Stage`].
struct Facts {
    /// The words of a report.
    name: &'static str,
    /// How long a connection may stay in it without a move; `None` if as long as it likes.
    limit: Option<fn(&Limits) -> Duration>,
    /// A client waits for something that it has asked for.
    is_request: bool,
    /// The connection can look whether its client is still there. Elsewhere it reads, and the read
    /// tells.
    can_look: bool,
}

impl Facts {
    /// Says that no client waits for anything in this stage.
    fn of_nobody(self) -> Self {
        Self { is_request: false, ..self }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.facts().name)
    }
}

/// A request that can say what it is, for a report.
pub(crate) trait Describe: Send + Sync {
    /// Method and target, as far as they are known.
    fn describe(&self) -> Option<(String, String)>;
}

/// What a connection's task and the rest of the server know of each other.
#[derive(Debug)]
pub(crate) struct Seat {
    /// The client's address, as the kernel or the source gave it.
    accepted: Peer,
    /// The client's address, if a wrapper has found a better one. In a box, because few connections
    /// need it.
    named: OnceLock<Box<Peer>>,
    /// The server's orders to its connections.
    orders: Arc<Orders>,
    /// The connection's task.
    waker: AtomicWaker,
    /// The connection's work and waits. The tasks that serve the connection write here.
    pub(crate) activity: Activity,
    /// The count of moves at which the sweep found that the connection's time is over. Any move
    /// since voids it.
    verdict: AtomicU32,
    /// Counts the bytes of the request's body that have come, and wraps around.
    received: AtomicU32,
    /// Set if the sweep wants to know whether the client is still there.
    is_asked: AtomicBool,
    /// A [`Left`], or 0 as long as the client is there.
    left: AtomicU8,
    /// Notifies the tasks in [`Seat::left`] that `left` has changed.
    has_left: Event,
    /// The request's number in the high 32 bits, and in the low 32 bits how many guards its handler
    /// holds.
    holds: AtomicU64,
    /// The request under way.
    now: Mutex<Now>,
}

/// The request that a connection serves, or the pause between two.
struct Now {
    /// When the request's first byte was read. Without a request, when the connection was accepted
    /// or fell idle.
    since: Instant,
    /// Describes the request's head.
    head: Option<Weak<dyn Describe>>,
}

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Now").field("since", &self.since).finish_non_exhaustive()
    }
}

impl Seat {
    pub(crate) fn new(peer: Peer, orders: Arc<Orders>) -> Arc<Self> {
        Arc::new(Self {
            accepted: peer,
            named: OnceLock::new(),
            orders,
            waker: AtomicWaker::new(),
            activity: Activity::default(),
            verdict: AtomicU32::new(Look::NEVER.moves()),
            received: AtomicU32::new(0),
            is_asked: AtomicBool::new(false),
            left: AtomicU8::new(0),
            has_left: Event::new(),
            holds: AtomicU64::new(0),
            now: Mutex::new(Now { since: Instant::now(), head: None }),
        })
    }

    /// Returns the address of the client.
    pub(crate) fn peer(&self) -> Peer {
        self.named.get().map_or(self.accepted, |peer| **peer)
    }

    /// Sets the address of the client, if the wrapper knows a better one than `accept` gave. The
    /// first call counts.
    pub(crate) fn name(&self, peer: Peer) {
        if peer != self.accepted {
            let _ = self.named.set(Box::new(peer));
        }
    }

    /// Returns what the server wants of the connection now.
    pub(crate) fn order(&self) -> Order {
        self.orders.current()
    }

    /// Returns `true` if the connection belongs to the server of `orders`.
    fn obeys(&self, orders: &Arc<Orders>) -> bool {
        Arc::ptr_eq(&self.orders, orders)
    }

    pub(crate) fn stage(&self) -> Stage {
        Stage::of(self.activity.look())
    }

    pub(crate) fn doing(&self) -> Doing {
        self.activity.look().doing()
    }

    /// Notes that a request's first byte has arrived. `head` describes the request, and is `None`
    /// as long as no gate holds the request.
    pub(crate) fn begin(&self, head: Option<Weak<dyn Describe>>) {
        *self.lock() = Now { since: Instant::now(), head };
        self.activity.begin(Doing::Head);
    }

    /// The connection falls idle.
    pub(crate) fn end(&self) {
        *self.lock() = Now { since: Instant::now(), head: None };
        self.activity.begin(Doing::Idle);
    }

    /// Counts `bytes` bytes of a body that have come.
    pub(crate) fn receive(&self, bytes: u64) {
        // Only the connection writes this counter. The sweep looks at differences, so wrapping
        // around is harmless.
        let received = self.received.load(Ordering::Relaxed).wrapping_add(bytes as u32);
        self.received.store(received, Ordering::Relaxed);
    }

    /// Returns `true` if the sweep has asked, since the last call, whether the client is still
    /// there.
    pub(crate) fn take_asked(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed) && self.is_asked.swap(false, Ordering::Relaxed)
    }

    /// Notes that the server calls the handler of a new request. Returns the number of that
    /// request.
    pub(crate) fn call(&self) -> u32 {
        let number = (self.holds.load(Ordering::Relaxed) >> 32) as u32;
        let number = number.wrapping_add(1);
        self.received.store(0, Ordering::Relaxed);
        self.holds.store(u64::from(number) << 32, Ordering::Relaxed);
        number
    }

    /// Returns the number of the request whose handler was called last.
    fn number(&self) -> u32 {
        (self.holds.load(Ordering::Relaxed) >> 32) as u32
    }

    /// Adds `change` (1 or -1) to the number of guards that the handler of request `number` holds.
    /// Does nothing if the connection has gone on to another request.
    fn change_holds(&self, number: u32, change: i64) {
        let _ = self.holds.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |holds| {
            let is_under_way = (holds >> 32) as u32 == number;
            is_under_way.then(|| holds.wrapping_add_signed(change))
        });
    }

    /// Returns `true` if the handler that runs holds a guard. Such a handler goes on although its
    /// client has left.
    pub(crate) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Acquire) as u32 > 0
    }

    /// Notes that the client has left, and notifies the tasks that wait for this.
    pub(crate) fn leave(&self, left: Left) {
        if self.left.fetch_max(left as u8, Ordering::AcqRel) < left as u8 {
            self.has_left.notify(usize::MAX);
        }
    }

    /// Waits until the client has left at least as far as `least` says. Returns how far it has
    /// left.
    pub(crate) async fn left(&self, least: Left) -> Left {
        loop {
            let listener = self.has_left.listen();
            match Left::of(self.left.load(Ordering::Acquire)) {
                Some(left) if left >= least => return left,
                _ => listener.await,
            }
        }
    }

    /// Makes an idle connection look at its socket once more and then end (rule S6).
    pub(crate) fn give_way(&self) {
        let look = self.activity.look();
        if look.doing() == Doing::Idle {
            self.expire(look);
            self.wake();
        }
    }

    /// Whether the sweep found that this connection's time is over, and it has not moved since.
    pub(crate) fn is_expired(&self) -> bool {
        self.verdict.load(Ordering::Acquire) == self.activity.look().moves()
    }

    /// The current task is to be woken by [`Seat::wake`].
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    fn expire(&self, look: Look) {
        self.verdict.store(look.moves(), Ordering::Release);
    }

    fn cut(&self, now: Instant) -> Cut {
        let stage = self.stage();
        // The head is asked with the lock released: it has a lock of its own.
        let (since, head) = {
            let doing = self.lock();
            (doing.since, doing.head.as_ref().and_then(Weak::upgrade))
        };
        // Before a request has begun, the drain waits for the connection itself. It does not wait
        // for an idle connection.
        let since = if stage == Stage::Idle { now } else { since };
        let (method, path) = head.and_then(|head| head.describe()).unwrap_or_default();
        Cut {
            what: What::Request { peer: self.peer(), stage, method, path },
            age: now.saturating_duration_since(since),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The call of a request's handler, for the guards that the handler takes.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    seat: Arc<Seat>,
    /// The request's number on its connection.
    number: u32,
}

impl Call {
    pub(crate) fn new(seat: Arc<Seat>) -> Self {
        let number = seat.call();
        Self { seat, number }
    }

    pub(crate) fn hold(self) -> Hold {
        self.seat.change_holds(self.number, 1);
        Hold(self)
    }
}

/// Keeps the handler of a call going although its client has left.
#[derive(Debug)]
pub(crate) struct Hold(Call);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.seat.change_holds(self.0.number, -1);
    }
}

/// Everyone who holds the drain open.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    holders: Slab<Holder>,
}

/// One of them.
#[derive(Debug)]
pub(crate) enum Holder {
    /// A server that still listens.
    Server,
    /// A guard taken by the program.
    Guard { place: &'static Location<'static>, since: Instant },
    /// A connection.
    Connection(Watched),
}

/// What may become a [`Cut`], and whose it is.
#[derive(Debug)]
pub(crate) struct Interrupted {
    pub(crate) cut: Cut,
    seat: Option<Arc<Seat>>,
}

impl Interrupted {
    pub(crate) fn of(seat: &Arc<Seat>, now: Instant) -> Self {
        Self { cut: seat.cut(now), seat: Some(seat.clone()) }
    }

    /// Whether anybody waits for an answer. A connection that was at work in the very moment of an
    /// abort may have finished since; one that was idle may find that a request had arrived.
    pub(crate) fn is_cut(&self) -> bool {
        self.seat.as_ref().is_none_or(|seat| seat.stage().facts().is_request)
    }
}

/// A connection as the sweep sees it.
#[derive(Debug)]
pub(crate) struct Watched {
    seat: Arc<Seat>,
    /// The activity that the last sweep saw, and when it saw it first.
    seen: u32,
    seen_at: Instant,
    /// How fast the client sends the body that the server waits for. In a box, because idle
    /// connections have none.
    pace: Option<Box<Pace>>,
}

impl Holder {
    pub(crate) fn connection(seat: Arc<Seat>) -> Self {
        let seen = seat.activity.look().moves();
        let seen_at = seat.lock().since;
        Self::Connection(Watched { seat, seen, seen_at, pace: None })
    }

    fn seat(&self) -> Option<&Arc<Seat>> {
        match self {
            Self::Connection(watched) => Some(&watched.seat),
            Self::Server | Self::Guard { .. } => None,
        }
    }
}

impl Registry {
    pub(crate) fn insert(&mut self, holder: Holder) -> usize {
        self.holders.insert(holder)
    }

    /// Removes a holder. Returns the seat if the holder is a connection, so that the caller can
    /// tell those who wait for its client to leave.
    pub(crate) fn remove(&mut self, id: usize) -> Option<Arc<Seat>> {
        match self.holders.remove(id) {
            Holder::Connection(watched) => Some(watched.seat),
            Holder::Server | Holder::Guard { .. } => None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// Connections and guards.
    pub(crate) fn in_flight(&self) -> usize {
        self.holders.iter().filter(|(_, holder)| !matches!(holder, Holder::Server)).count()
    }

    /// Returns `true` if the server of `orders` has a connection.
    pub(crate) fn serves(&self, orders: &Arc<Orders>) -> bool {
        let mut holders = self.holders.iter();
        holders.any(|(_, holder)| holder.seat().is_some_and(|seat| seat.obeys(orders)))
    }

    /// The connections of all servers.
    pub(crate) fn all_seats(&self) -> Vec<Arc<Seat>> {
        self.holders.iter().filter_map(|(_, holder)| holder.seat()).cloned().collect()
    }

    /// Returns the connections of the server of `orders`.
    pub(crate) fn seats(&self, orders: &Arc<Orders>) -> Vec<Arc<Seat>> {
        let mut seats = self.all_seats();
        seats.retain(|seat| seat.obeys(orders));
        seats
    }

    /// Returns those connections of the server of `orders` that have been idle longest, and for at
    /// least `least`: at least one, and at most `most` and one in eight.
    pub(crate) fn idle_longest(
        &self,
        orders: &Arc<Orders>,
        most: usize,
        least: Duration,
        now: Instant,
    ) -> Vec<Arc<Seat>> {
        let seats = self.holders.iter().filter_map(|(_, holder)| holder.seat());
        let idle = seats.filter(|seat| seat.obeys(orders) && seat.stage() == Stage::Idle);
        let mut idle: Vec<_> = idle
            .map(|seat| (seat.lock().since, seat))
            .filter(|(since, _)| now.saturating_duration_since(*since) >= least)
            .collect();
        let most = most.min(idle.len() / 8).max(1);
        if idle.len() > most {
            idle.select_nth_unstable_by_key(most, |(since, _)| *since);
            idle.truncate(most);
        }
        idle.into_iter().map(|(_, seat)| seat.clone()).collect()
    }

    /// Everything that an abort now may interrupt, the oldest first; whether it does is known once
    /// its task has been told.
    pub(crate) fn cuts(&self, now: Instant) -> Vec<Interrupted> {
        let mut cuts: Vec<Interrupted> = self
            .holders
            .iter()
            .filter_map(|(_, holder)| {
                let cut = match holder {
                    Holder::Server => return None,
                    Holder::Guard { place, since } => {
                        Cut { what: What::Guard(place), age: now.saturating_duration_since(*since) }
                    }
                    Holder::Connection(watched) => watched.seat.cut(now),
                };
                Some(Interrupted { cut, seat: holder.seat().cloned() })
            })
            .collect();
        cuts.sort_by_key(|interrupted| std::cmp::Reverse(interrupted.cut.age));
        cuts
    }

    /// A number that is another one as soon as someone has joined, moved or left.
    pub(crate) fn moves(&self) -> u64 {
        let activity = |seat: &Arc<Seat>| u64::from(seat.activity.look().moves());
        let holders = self.holders.iter().map(|(id, holder)| {
            ((id as u64 + 1) << 32).wrapping_add(holder.seat().map_or(0, activity))
        });
        holders.fold(0, u64::wrapping_add)
    }

    /// Finds the connections of the server of `orders` that have not moved for longer than their
    /// stage allows, or that send a body more slowly than [`Limits::body_rate`], and marks them as
    /// expired. Also asks connections to look whether their client is still there: all that are at
    /// work if `drains`, otherwise those that have not moved since the last sweep (rule S22).
    /// Returns all connections that the caller has to wake.
    pub(crate) fn sweep(
        &mut self,
        orders: &Arc<Orders>,
        limits: &Limits,
        drains: bool,
        now: Instant,
    ) -> Vec<Arc<Seat>> {
        let mut told = Vec::new();
        for (_, holder) in &mut self.holders {
            let Holder::Connection(watched) = holder else { continue };
            if !watched.seat.obeys(orders) {
                continue;
            }
            let look = watched.seat.activity.look();
            let stage = Stage::of(look);
            let facts = stage.facts();
            let has_moved = look.moves() != watched.seen;
            if has_moved {
                watched.seen = look.moves();
                watched.seen_at = now;
            }
            let waited = now.saturating_duration_since(watched.seen_at);
            let is_late = !has_moved && facts.limit.is_some_and(|limit| waited >= limit(limits));
            // Both count, because a client may stall altogether, or may send now and then and get
            // nowhere.
            let is_slow = watched.is_slow(stage, limits, now);
            if is_late || is_slow {
                watched.seat.expire(look);
            }
            let is_asked = facts.can_look && (drains || !has_moved);
            if is_asked {
                watched.seat.is_asked.store(true, Ordering::Relaxed);
            }
            if is_late || is_slow || is_asked {
                told.push(watched.seat.clone());
            }
        }
        told
    }
}

impl Watched {
    /// Returns `true` if the server waits for a body that comes too slowly.
    fn is_slow(&mut self, stage: Stage, limits: &Limits, now: Instant) -> bool {
        if limits.body_rate == 0 || stage == Stage::Idle {
            self.pace = None;
            return false;
        }
        let (number, received) = (self.seat.number(), self.seat.received.load(Ordering::Relaxed));
        match self.pace.as_mut().filter(|pace| pace.number == number) {
            Some(pace) => pace.is_slow(stage, limits, received, now),
            None if stage.waits_for_body() => {
                self.pace = Some(Box::new(Pace::new(number, limits, received, now)));
                false
            }
            None => false,
        }
    }
}

/// Measures how many bytes a client is ahead of `body_rate` with the body of one request (rule
/// S25).
#[derive(Debug)]
struct Pace {
    /// The number of the request.
    number: u32,
    /// The number of bytes that the client is ahead.
    credit: f64,
    /// The number of bytes that had come at the last look.
    received: u32,
    looked_at: Instant,
    /// Says whether the server waited for the body at the last look.
    waited: bool,
}

impl Pace {
    fn new(number: u32, limits: &Limits, received: u32, now: Instant) -> Self {
        let begin = limits.body_rate as f64 * Limits::BODY_RATE_AFTER.as_secs_f64();
        let credit = (begin + f64::from(received)).min(Self::most(limits));
        Self { number, credit, received, looked_at: now, waited: true }
    }

    /// Returns the largest credit. It keeps a client that has sent a lot from pausing longer than
    /// any client may stall.
    fn most(limits: &Limits) -> f64 {
        let longest = limits.stall_timeout.max(Limits::BODY_RATE_AFTER);
        limits.body_rate as f64 * longest.as_secs_f64()
    }

    /// Adds what has come, and subtracts what the rate asks for if the server has waited for the
    /// body since the last look. Returns `true` if the client is behind.
    fn is_slow(&mut self, stage: Stage, limits: &Limits, received: u32, now: Instant) -> bool {
        let waits = stage.waits_for_body();
        if waits && self.waited {
            let waited = now.saturating_duration_since(self.looked_at).as_secs_f64();
            self.credit -= limits.body_rate as f64 * waited;
        }
        // Added last: a burst does not pay for the wait that it has ended.
        let came = f64::from(received.wrapping_sub(self.received));
        self.credit = (self.credit + came).min(Self::most(limits));
        (self.received, self.looked_at, self.waited) = (received, now, waits);
        waits && self.credit < 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Line;

    impl Describe for Line {
        fn describe(&self) -> Option<(String, String)> {
            Some(("GET".into(), "/slow".into()))
        }
    }

    /// The orders of a server of its own.
    fn orders() -> Arc<Orders> {
        Arc::new(Orders::under(Arc::default()))
    }

    fn registry_with(seat: &Arc<Seat>) -> Registry {
        let mut registry = Registry::default();
        registry.insert(Holder::connection(seat.clone()));
        registry
    }

    #[test]
    fn a_connection_expires_only_when_it_has_not_moved() {
        let limits = Limits { head_timeout: Duration::from_secs(3), ..Limits::default() };
        let head: Arc<dyn Describe> = Arc::new(Line);
        let seat = Seat::new(Peer::Unix, orders());
        let mut registry = registry_with(&seat);
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        seat.begin(Some(Arc::downgrade(&head)));
        registry.sweep(&seat.orders, &limits, false, after(0));
        registry.sweep(&seat.orders, &limits, false, after(2));
        assert!(!seat.is_expired());
        seat.activity.begin(Doing::Head);
        registry.sweep(&seat.orders, &limits, false, after(4));
        registry.sweep(&seat.orders, &limits, false, after(6));
        assert!(!seat.is_expired());
        registry.sweep(&seat.orders, &limits, false, after(7));
        assert!(seat.is_expired());
        // A move in the last moment counts.
        seat.activity.begin(Doing::Head);
        assert!(!seat.is_expired());
    }

    #[test]
    fn a_handler_may_take_its_time() {
        let seat = Seat::new(Peer::Unix, orders());
        let mut registry = registry_with(&seat);
        seat.activity.begin(Doing::Handler);
        let start = Instant::now();
        for days in 0..3 {
            registry.sweep(
                &seat.orders,
                &Limits::default(),
                false,
                start + Duration::from_secs(days * 86_400),
            );
        }
        assert!(!seat.is_expired());
    }

    #[test]
    fn a_sweep_leaves_other_servers_alone() {
        let seat = Seat::new(Peer::Unix, orders());
        let mut registry = registry_with(&seat);
        registry.sweep(
            &orders(),
            &Limits::default(),
            false,
            Instant::now() + Duration::from_secs(86_400),
        );
        assert!(!seat.is_expired());
        assert!(registry.serves(&seat.orders) && !registry.serves(&orders()));
    }

    /// Rule S13: each one is named, with peer, stage, method, path and age.
    #[test]
    fn a_request_is_named_and_an_idle_connection_is_not() {
        let head: Arc<dyn Describe> = Arc::new(Line);
        let seat = Seat::new(Peer::from(([127, 0, 0, 1], 9)), orders());
        let registry = registry_with(&seat);
        // Nobody has looked: it may have sent a request.
        let line = registry.cuts(Instant::now())[0].cut.to_string();
        assert!(line.starts_with("127.0.0.1:9 - - (not looked at yet, "), "{line}");
        seat.activity.begin(Doing::Idle);
        assert!(!registry.cuts(Instant::now())[0].is_cut());
        seat.begin(Some(Arc::downgrade(&head)));
        seat.activity.begin(Doing::Handler);
        let cuts = registry.cuts(Instant::now() + Duration::from_secs(2));
        let line = cuts[0].cut.to_string();
        assert!(line.starts_with("127.0.0.1:9 GET /slow (in the handler, 2."), "{line}");
        seat.end();
        assert!(!registry.cuts(Instant::now())[0].is_cut());
    }

    /// Each case: the bytes that a client sends in each second, whether the server waits for them
    /// then, and the second in which the client is too slow.
    #[test]
    fn a_body_has_to_come_at_a_rate() {
        type Case<'a> = (&'a str, &'a dyn Fn(u64) -> u64, &'a dyn Fn(u64) -> bool, Option<u64>);
        let cases: [Case<'_>; 8] = [
            ("nothing", &|_| 0, &|_| true, Some(6)),
            ("a byte now and then", &|n| u64::from(n % 29 == 0), &|_| true, Some(6)),
            ("just enough", &|_| 240, &|_| true, None),
            ("a little less", &|_| 230, &|_| true, Some(121)),
            ("enough, in bursts", &|n| if n % 5 == 4 { 1200 } else { 0 }, &|_| true, None),
            ("much, and then nothing", &|n| if n < 3 { 1 << 30 } else { 0 }, &|_| true, Some(34)),
            ("a server that does not wait", &|_| 0, &|_| false, None),
            ("a server that waits half of the time", &|_| 0, &|n| n % 4 < 3, Some(10)),
        ];
        for (what, sent, waits, expected) in cases {
            let seat = Seat::new(Peer::Unix, orders());
            let Holder::Connection(mut watched) = Holder::connection(seat.clone()) else {
                unreachable!()
            };
            let (limits, start) = (Limits::default(), Instant::now());
            let slow = (0..1000).find(|&second| {
                let now = start + Duration::from_secs(second);
                let stage = if waits(second) { Stage::Body } else { Stage::Handler };
                let is_slow = watched.is_slow(stage, &limits, now);
                seat.receive(sent(second));
                is_slow
            });
            assert_eq!(slow, expected, "{what}");
        }
    }

    /// The bytes before the first look count, and each request has a credit of its own.
    #[test]
    fn the_pace_is_that_of_one_body() {
        let seat = Seat::new(Peer::Unix, orders());
        let Holder::Connection(mut watched) = Holder::connection(seat.clone()) else {
            unreachable!()
        };
        let (limits, start) = (Limits::default(), Instant::now());
        let mut slow_after = |from: u64, sent: u64| {
            seat.call();
            seat.receive(sent);
            (0..100).find(|second| {
                let now = start + Duration::from_secs(from + second);
                watched.is_slow(Stage::Body, &limits, now)
            })
        };
        assert_eq!(slow_after(0, 1_000_000), Some(31));
        assert_eq!(slow_after(100, 0), Some(6));
        assert_eq!(slow_after(200, 240), Some(7));
    }

    #[test]
    fn no_rate_is_no_rate() {
        let limits = Limits { body_rate: 0, ..Limits::default() };
        let seat = Seat::new(Peer::Unix, orders());
        let mut registry = registry_with(&seat);
        seat.activity.wait(Wait::Body, false);
        let start = Instant::now();
        for second in 0..25 {
            registry.sweep(&seat.orders, &limits, false, start + Duration::from_secs(second));
            assert!(!seat.is_expired());
        }
    }

    #[test]
    fn those_who_have_been_idle_longest_give_way() {
        let mut registry = Registry::default();
        let head: Arc<dyn Describe> = Arc::new(Line);
        let own = orders();
        let seats: Vec<_> = (0..40).map(|_| Seat::new(Peer::Unix, own.clone())).collect();
        for seat in &seats {
            registry.insert(Holder::connection(seat.clone()));
            seat.end();
        }
        let now = Instant::now();
        assert!(registry.idle_longest(&own, 32, Duration::from_secs(1), now).is_empty());
        assert!(registry.idle_longest(&orders(), 32, Duration::ZERO, now).is_empty());
        // One connection of eight gives way, and neither one that is at work nor one that has just
        // been at work.
        seats[0].begin(Some(Arc::downgrade(&head)));
        seats[1].end();
        assert_eq!(registry.idle_longest(&own, 1, Duration::ZERO, now).len(), 1);
        let chosen = registry.idle_longest(&own, 32, Duration::ZERO, now);
        assert_eq!(chosen.len(), 4);
        for (n, seat) in seats.iter().enumerate() {
            let is_chosen = chosen.iter().any(|one| Arc::ptr_eq(one, seat));
            assert_eq!(is_chosen, (2..6).contains(&n), "{n}");
        }
        chosen[0].give_way();
        assert!(chosen[0].is_expired());
        seats[0].give_way();
        assert!(!seats[0].is_expired(), "it is at work");
    }

    #[test]
    fn a_handler_is_held_by_its_own_guards_alone() {
        let seat = Seat::new(Peer::Unix, orders());
        let first = Call::new(seat.clone());
        let (one, other) = (first.clone().hold(), first.clone().hold());
        drop(one);
        assert!(seat.is_held());
        let second = Call::new(seat.clone());
        assert!(!seat.is_held(), "the first handler's guard is not the second's");
        drop((other, first.hold()));
        assert!(!seat.is_held());
        let own = second.hold();
        assert!(seat.is_held());
        drop(own);
        assert!(!seat.is_held());
    }
}
