//! [`Seat`]: what a connection and the rest of the server know of each other.
//!
//! A move costs no look at the clock, and a request costs no copy: a report that asks for a
//! request's method and path reads them from the connection's buffer. Decides nothing: the orders
//! come from the server, and the verdict from the sweep.

use std::iter;
use std::mem;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::Waker;
use std::time::Instant;

use atomic_waker::AtomicWaker;
use event_listener::Event;

use crate::address::Address;
use crate::lock::lock;
use crate::stop::activity::{Activity, Doing, Look};
use crate::stop::orders::{Departure, Order, Orders};
use crate::stop::origin::Origin;
use crate::stop::outcome::{OpenWork, WorkKind};
use crate::stop::stage::Stage;
use crate::stream::facts::Facts;
use crate::stream::socket::ClientLeft;
use crate::stream::transport::Peer;

/// A request that can say what it is, for a report.
pub(crate) trait Describe: Send + Sync {
    /// Returns method and target, as far as they are known.
    fn describe(&self) -> Option<(String, String)>;
}

/// The state that a connection's tasks share with the rest of the server.
#[derive(Debug)]
pub(crate) struct Seat {
    /// The client's address, as the kernel or the source gave it.
    accepted: Peer,
    /// The words of the source on the connection, if it has said something, and those of the
    /// wrapper. In a box, because few connections have any.
    told: OnceLock<Box<Told>>,
    /// The server's orders to its connections.
    pub(crate) orders: Arc<Orders>,
    /// The listener that the connection came to.
    origin: Option<Arc<Origin>>,
    /// The local address of the connection, once it was asked for and the listener has several. An
    /// IPv4 address is mapped.
    local: OnceLock<(Ipv6Addr, u16)>,
    /// A [`Departure`].
    departure: AtomicU8,
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
    /// A [`ClientLeft`], or 0 as long as the client is there.
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
#[derive(Debug)]
struct Now {
    /// When the request's first byte was read. Without a request, when the connection was accepted
    /// or fell idle.
    since: Instant,
    /// Describes the request's head.
    head: Option<Weak<dyn Describe>>,
}

/// The words of a source or a wrapper on a connection.
#[derive(Debug)]
struct Told {
    /// The client's address, if it is a better one than `accept` gave.
    peer: Option<Peer>,
    facts: Facts,
    /// The words of the wrapper, if these are the source's.
    next: OnceLock<Box<Self>>,
}

/// Stands for the number of a listener where there is none.
const NO_LISTENER: u32 = u32::MAX;

impl Seat {
    /// Makes the seat of a connection that does not go to a successor.
    pub(crate) fn new(peer: Peer, orders: Arc<Orders>) -> Arc<Self> {
        Self::of_listener(None, peer, orders, Instant::now())
    }

    /// Makes the seat of a connection that came to a listener, and that was accepted or fell idle
    /// at `since`.
    pub(crate) fn of_listener(
        origin: Option<Arc<Origin>>,
        peer: Peer,
        orders: Arc<Orders>,
        since: Instant,
    ) -> Arc<Self> {
        Arc::new(Self {
            accepted: peer,
            told: OnceLock::new(),
            orders,
            origin,
            local: OnceLock::new(),
            departure: AtomicU8::new(Departure::Unasked as u8),
            waker: AtomicWaker::new(),
            activity: Activity::default(),
            verdict: AtomicU32::new(Look::NEVER.moves()),
            received: AtomicU32::new(0),
            is_asked: AtomicBool::new(false),
            left: AtomicU8::new(0),
            has_left: Event::new(),
            holds: AtomicU64::new(0),
            now: Mutex::new(Now { since, head: None }),
        })
    }

    /// Returns the address of the client.
    pub(crate) fn peer(&self) -> Peer {
        self.told().filter_map(|told| told.peer).last().unwrap_or(self.accepted)
    }

    /// Notes what the source or the wrapper has said of the connection. The source comes first, and
    /// what the wrapper says of the same thing counts. A peer that it does not know says nothing.
    pub(crate) fn learn(&self, peer: Peer, facts: Facts) {
        let peer = Some(peer).filter(|peer| *peer != Peer::Unknown && *peer != self.accepted);
        if peer.is_some() || !facts.is_empty() {
            let told = Box::new(Told { peer, facts, next: OnceLock::new() });
            if let Err(told) = self.told.set(told) {
                let _ = self.told.get().map(|first| first.next.set(told));
            }
        }
    }

    fn told(&self) -> impl Iterator<Item = &Told> {
        iter::successors(self.told.get(), |told| told.next.get()).map(|told| &**told)
    }

    /// Returns `true` if the client speaks HTTPS, as the source or the wrapper says.
    pub(crate) fn is_https(&self) -> bool {
        self.told().any(|told| told.facts.is_https)
    }

    /// Returns what the source or the wrapper has attached to the connection.
    pub(crate) fn attached<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.told().filter_map(|told| told.facts.get()).last()
    }

    /// Returns the local address of the connection, if it is known.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        let asked = || self.local.get().map(|(ip, port)| (ip.to_canonical(), *port).into());
        self.only_local().map(|(addr, _)| *addr).or_else(asked)
    }

    /// Returns the local address of every connection of the listener, and its text, if the listener
    /// has a single one.
    pub(crate) fn only_local(&self) -> Option<&(SocketAddr, String)> {
        self.origin.as_ref()?.local.as_ref()
    }

    /// Notes the local address of the connection, as its socket says.
    pub(crate) fn set_local_addr(&self, addr: SocketAddr) {
        let ip = match addr {
            SocketAddr::V4(addr) => addr.ip().to_ipv6_mapped(),
            SocketAddr::V6(addr) => *addr.ip(),
        };
        let _ = self.local.set((ip, addr.port()));
    }

    /// Returns what the server wants of the connection now.
    pub(crate) fn order(&self) -> Order {
        self.orders.of_listener(self.listener(), self.departure())
    }

    /// Returns the address of the listener that the connection came to.
    pub(crate) fn address(&self) -> Option<&Address> {
        self.origin.as_ref().map(|origin| &origin.address)
    }

    /// Returns the number of the listener that the connection came to.
    pub(crate) fn listener(&self) -> u32 {
        self.origin.as_ref().map_or(NO_LISTENER, |origin| origin.number)
    }

    /// Returns `true` if the connection can go to the successor, once there is one.
    pub(crate) fn can_leave(&self) -> bool {
        self.orders.can_leave(self.listener(), self.departure())
    }

    pub(crate) fn departure(&self) -> Departure {
        match self.departure.load(Ordering::Acquire) {
            0 => Departure::Unasked,
            1 => Departure::Asked,
            _ => Departure::Refused,
        }
    }

    /// Notes whether the connection was asked to go to the successor. The caller wakes it.
    pub(crate) fn set_departure(&self, departure: Departure) {
        self.departure.store(departure as u8, Ordering::Release);
    }

    /// Returns `true` if the connection belongs to the server of `orders`.
    pub(crate) fn obeys(&self, orders: &Arc<Orders>) -> bool {
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
        *lock(&self.now) = Now { since: Instant::now(), head };
        self.activity.begin(Doing::Head);
    }

    /// Notes that the connection falls idle.
    pub(crate) fn fall_idle(&self) {
        self.come_back(Instant::now(), false);
    }

    /// Notes that the server goes on with a connection. `since` is when it fell idle, or when its
    /// request began if a part of one was read.
    pub(crate) fn come_back(&self, since: Instant, has_begun: bool) {
        *lock(&self.now) = Now { since, head: None };
        self.activity.begin(if has_begun { Doing::Head } else { Doing::Idle });
    }

    /// Notes that the connection sets out for the successor. Returns since when it has been idle.
    pub(crate) fn set_out(&self) -> Instant {
        let now = Instant::now();
        let before = mem::replace(&mut *lock(&self.now), Now { since: now, head: None });
        self.activity.begin(Doing::Leaving);
        before.since
    }

    /// Returns how many bytes of the request's body have come. The number wraps around.
    pub(crate) fn received(&self) -> u32 {
        self.received.load(Ordering::Relaxed)
    }

    /// Counts `bytes` bytes of a body that have come.
    pub(crate) fn receive(&self, bytes: u64) {
        // Only the connection writes this counter. The sweep looks at differences, so wrapping
        // around is harmless.
        self.received.store(self.received().wrapping_add(bytes as u32), Ordering::Relaxed);
    }

    /// Asks the connection whether its client is still there.
    pub(crate) fn ask_for_client(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
    }

    /// Returns `true` if the sweep has asked, since the last call, whether the client is still
    /// there.
    pub(crate) fn take_asked(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed) && self.is_asked.swap(false, Ordering::Relaxed)
    }

    /// Notes that the server calls the handler of a new request.
    pub(crate) fn call(self: &Arc<Self>) -> Call {
        let number = self.number().wrapping_add(1);
        self.received.store(0, Ordering::Relaxed);
        self.holds.store(u64::from(number) << 32, Ordering::Relaxed);
        Call { seat: self.clone(), number }
    }

    /// Returns the number of the request whose handler was called last.
    pub(crate) fn number(&self) -> u32 {
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
    pub(crate) fn client_left(&self, left: ClientLeft) {
        if self.left.fetch_max(left as u8, Ordering::AcqRel) < left as u8 {
            self.has_left.notify(usize::MAX);
        }
    }

    /// Returns `true` if the client is known to send nothing more.
    pub(crate) fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire) > 0
    }

    /// Waits until the client has left at least as far as `least` says. Returns how far it has
    /// left.
    pub(crate) async fn left(&self, least: ClientLeft) -> ClientLeft {
        loop {
            let listener = self.has_left.listen();
            match ClientLeft::of(self.left.load(Ordering::Acquire)) {
                Some(left) if left >= least => return left,
                _ => listener.await,
            }
        }
    }

    /// Returns `true` if the sweep has found that the connection's time is over, and the connection
    /// has not moved since.
    pub(crate) fn is_expired(&self) -> bool {
        self.verdict.load(Ordering::Acquire) == self.activity.look().moves()
    }

    /// Lets [`Seat::wake`] wake the task of `waker`.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// Says that the connection's time is over if it has not moved since `look`.
    pub(crate) fn expire(&self, look: Look) {
        self.verdict.store(look.moves(), Ordering::Release);
    }

    /// Describes the request under way, or the connection without one.
    pub(crate) fn open_work(&self, now: Instant) -> OpenWork {
        let stage = self.stage();
        // The head is asked with the lock released: it has a lock of its own.
        let (since, head) = {
            let now = lock(&self.now);
            (now.since, now.head.as_ref().and_then(Weak::upgrade))
        };
        let (method, target) = head.and_then(|head| head.describe()).unwrap_or_default();
        OpenWork {
            kind: WorkKind::Connection { peer: self.peer(), stage, method, target },
            age: now.saturating_duration_since(since),
        }
    }

    /// Returns when the request's first byte was read. Without a request, returns when the
    /// connection was accepted or fell idle.
    pub(crate) fn since(&self) -> Instant {
        lock(&self.now).since
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
    /// Returns the seat of the request's connection.
    pub(crate) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }

    pub(crate) fn hold(self) -> Hold {
        self.seat.change_holds(self.number, 1);
        Hold(self)
    }
}

/// Keeps the handler of a call going although its client has left.
#[derive(Debug)]
pub(crate) struct Hold(Call);

impl Clone for Hold {
    fn clone(&self) -> Self {
        self.0.clone().hold()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.seat.change_holds(self.0.number, -1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_held_by_its_own_guards_alone() {
        let seat = Seat::new(Peer::Unix, Arc::new(Orders::under(Arc::default())));
        let first = seat.call();
        let (one, other) = (first.clone().hold(), first.clone().hold());
        drop(one);
        assert!(seat.is_held());
        let second = seat.call();
        assert!(!seat.is_held(), "the first handler's guard is not the second's");
        drop((other, first.hold()));
        assert!(!seat.is_held());
        let own = second.hold();
        assert!(seat.is_held());
        drop(own);
        assert!(!seat.is_held());
    }
}
