//! [`Registry`]: the holders that keep the drain open, and the sweep over the connections.
//!
//! The sweep keeps the deadlines, and the list is the source of the drain report. The sweep notices
//! connections that have not moved, so a connection needs no timer. This file decides nothing about
//! stopping.

use std::cmp::Reverse;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::limits::Limits;
use crate::stop::activity::Doing;
use crate::stop::draining::InFlight;
use crate::stop::orders::{Departure, Orders};
use crate::stop::outcome::{OpenWork, WorkKind};
use crate::stop::seat::Seat;
use crate::stop::stage::Stage;

/// All holders that keep the drain open.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) holders: Slab<Holder>,
}

/// A holder that keeps the drain open.
#[derive(Debug)]
pub(crate) enum Holder {
    /// A server that still listens, or still asks connections to go to its successor.
    Server,
    /// A guard taken by the program.
    Guard { place: &'static Location<'static>, since: Instant },
    /// A connection.
    Connection(Watched),
}

/// Work that an abort may cut, and its connection.
#[derive(Debug, Clone)]
pub(crate) struct Interrupted {
    pub(crate) work: OpenWork,
    /// The beginning of the request, of the guard, or of the pause between two requests.
    since: Option<Instant>,
    seat: Option<Arc<Seat>>,
}

impl Interrupted {
    pub(crate) fn of(seat: &Arc<Seat>, now: Instant) -> Self {
        Self::new(seat.open_work(now), now, Some(seat.clone()))
    }

    fn new(mut work: OpenWork, now: Instant, seat: Option<Arc<Seat>>) -> Self {
        let since = now.checked_sub(work.age);
        if let WorkKind::Connection { stage: Stage::Idle, .. } = work.kind {
            // If a request had arrived, it arrived in this moment.
            work.age = Duration::ZERO;
        }
        Self { work, since, seat }
    }

    /// Returns `true` if both are the same connection, the same guard, or clones of one guard.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.seat, &other.seat) {
            (Some(seat), Some(other)) => Arc::ptr_eq(seat, other),
            (None, None) => self.since == other.since,
            _ => false,
        }
    }

    /// Returns `true` if a client waits for an answer, or if the work is a guard. This is known
    /// only after the connection's task has ended: one that was at work may have finished, and one
    /// that was idle may have found a request.
    pub(crate) fn is_cut(&self) -> bool {
        self.seat.as_ref().is_none_or(|seat| seat.stage().is_request())
    }
}

/// The facts by which a sweep judges a connection.
#[derive(Debug)]
pub(crate) struct Sweep<'a> {
    pub(crate) limits: &'a Limits,
    /// `true` if the stop has begun.
    pub(crate) drains: bool,
    /// The beginning of the grace, and how long a stream may be silent from then on (rule S27).
    pub(crate) streams: Option<(Instant, Duration)>,
    pub(crate) now: Instant,
}

/// A connection, with the facts that the sweep keeps about it.
#[derive(Debug)]
pub(crate) struct Watched {
    seat: Arc<Seat>,
    /// The count of moves that the last sweep saw.
    seen: u32,
    /// The time at which a sweep first saw that count.
    seen_at: Instant,
    /// The pace of the body for which the server waits, in a box, because idle connections have
    /// none.
    pace: Option<Box<Pace>>,
}

impl Holder {
    pub(crate) fn connection(seat: Arc<Seat>) -> Self {
        let seen = seat.activity.look().moves();
        let seen_at = seat.since();
        Self::Connection(Watched { seat, seen, seen_at, pace: None })
    }

    /// Returns a holder for the same connection, guard or server in another latch.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Server => Self::Server,
            Self::Guard { place, since } => Self::Guard { place, since: *since },
            Self::Connection(watched) => Self::connection(watched.seat.clone()),
        }
    }

    pub(crate) fn seat(&self) -> Option<&Arc<Seat>> {
        match self {
            Self::Connection(watched) => Some(&watched.seat),
            Self::Server | Self::Guard { .. } => None,
        }
    }

    /// Describes a connection or a guard. Returns `None` for a server.
    fn open_work(&self, now: Instant) -> Option<OpenWork> {
        match self {
            Self::Server => None,
            Self::Guard { place, since } => {
                let age = now.saturating_duration_since(*since);
                Some(OpenWork { kind: WorkKind::Guard(place), age })
            }
            Self::Connection(watched) => Some(watched.seat.open_work(now)),
        }
    }
}

impl Registry {
    /// Returns the number of connections and guards.
    pub(crate) fn in_flight(&self) -> usize {
        self.holders.iter().filter(|(_, holder)| !matches!(holder, Holder::Server)).count()
    }

    /// Returns the numbers of connections, requests and guards.
    pub(crate) fn counted(&self) -> InFlight {
        let mut counted = InFlight::default();
        for (_, holder) in &self.holders {
            match holder {
                Holder::Server => {}
                Holder::Guard { .. } => counted.guards += 1,
                Holder::Connection(watched) => {
                    counted.connections += 1;
                    counted.requests += usize::from(watched.seat.stage().has_begun());
                }
            }
        }
        counted
    }

    /// Returns the connections of all servers.
    pub(crate) fn seats(&self) -> impl Iterator<Item = &Arc<Seat>> {
        self.holders.iter().filter_map(|(_, holder)| holder.seat())
    }

    /// Returns the connections of the server of `orders`.
    pub(crate) fn seats_of(&self, orders: &Arc<Orders>) -> impl Iterator<Item = &Arc<Seat>> {
        self.seats().filter(|seat| seat.obeys(orders))
    }

    /// Returns the idle connections of the server of `orders` that can go to a successor and were
    /// not asked yet.
    pub(crate) fn idle_unasked(&self, orders: &Arc<Orders>) -> Vec<Arc<Seat>> {
        let can_be_asked = |seat: &&Arc<Seat>| {
            seat.departure() == Departure::Unasked
                && seat.can_leave()
                && matches!(seat.doing(), Doing::Accepted | Doing::Idle)
        };
        self.seats_of(orders).filter(can_be_asked).cloned().collect()
    }

    /// Marks connections of the server of `orders` as expired, beginning with the one that has been
    /// idle longest. Each has been idle for `least` or longer, and there are at most `most`, and at
    /// most one in eight, but at least one. Returns these connections, because the caller has to
    /// wake them for a last look (rule S6).
    pub(crate) fn expire_idle_longest(
        &mut self,
        orders: &Arc<Orders>,
        most: usize,
        least: Duration,
        now: Instant,
    ) -> Vec<Arc<Seat>> {
        let mut idle: Vec<_> = self
            .seats_of(orders)
            .map(|seat| (seat.since(), seat.activity.look(), seat))
            .filter(|(since, look, _)| {
                Stage::of(*look) == Stage::Idle && now.saturating_duration_since(*since) >= least
            })
            .collect();
        let most = most.min(idle.len() / 8).max(1);
        if idle.len() > most {
            idle.select_nth_unstable_by_key(most, |(since, ..)| *since);
            idle.truncate(most);
        }
        idle.iter().for_each(|(_, look, seat)| seat.expire(*look));
        idle.into_iter().map(|(.., seat)| seat.clone()).collect()
    }

    /// Returns all work that an abort may interrupt now, the oldest first. [`Interrupted::is_cut`]
    /// decides later whether it has.
    pub(crate) fn cuts(&self, now: Instant) -> Vec<Interrupted> {
        let cut = |(_, holder): (usize, &Holder)| {
            Some(Interrupted::new(holder.open_work(now)?, now, holder.seat().cloned()))
        };
        let mut all: Vec<_> = self.holders.iter().filter_map(cut).collect();
        all.sort_by_key(|interrupted| Reverse(interrupted.work.age));
        all
    }

    /// Returns all connections and guards, the oldest first.
    pub(crate) fn open_work(&self, now: Instant) -> Vec<OpenWork> {
        let work = self.holders.iter().filter_map(|(_, holder)| holder.open_work(now));
        let mut work: Vec<_> = work.collect();
        work.sort_by_key(|work| Reverse(work.age));
        work
    }

    /// Returns a number that changes whenever a holder joins, moves or leaves.
    pub(crate) fn moves(&self) -> u64 {
        let activity = |seat: &Arc<Seat>| u64::from(seat.activity.look().moves());
        let holders = self.holders.iter().map(|(id, holder)| {
            ((id as u64 + 1) << 32).wrapping_add(holder.seat().map_or(0, activity))
        });
        holders.fold(0, u64::wrapping_add)
    }

    /// Finds the connections of the server of `orders` that have not moved for longer than their
    /// stage allows, or that send a body more slowly than [`Limits::body_rate`], and marks them as
    /// expired. Also asks connections to look whether their client is still there (rule S22). In
    /// the drain, that is all connections at work, and otherwise those that have not moved since
    /// the last sweep. Returns all connections that the caller has to wake.
    pub(crate) fn sweep(&mut self, orders: &Arc<Orders>, sweep: &Sweep<'_>) -> Vec<Arc<Seat>> {
        let watched = self.holders.iter_mut().filter_map(|(_, holder)| match holder {
            Holder::Connection(watched) if watched.seat.obeys(orders) => Some(watched),
            _ => None,
        });
        let woken =
            watched.filter_map(|watched| watched.sweep(sweep).then(|| watched.seat.clone()));
        woken.collect()
    }
}

impl Watched {
    /// Judges one connection for [`Registry::sweep`]. Returns `true` if the caller has to wake it.
    fn sweep(&mut self, sweep: &Sweep<'_>) -> bool {
        let Sweep { limits, drains, streams, now } = *sweep;
        let look = self.seat.activity.look();
        let stage = Stage::of(look);
        let has_moved = look.moves() != self.seen;
        if has_moved {
            self.seen = look.moves();
            // S27: bytes that the server sends after the client's own close are not a move.
            if !(streams.is_some() && stage == Stage::Upgraded && self.seat.has_left()) {
                self.seen_at = now;
            }
        }
        let waited = now.saturating_duration_since(self.seen_at);
        let is_late = !has_moved && stage.limit(limits).is_some_and(|limit| waited >= limit);
        // Both limits are needed, because a client may stall altogether, or may send a byte now and
        // then.
        let is_silent = stage.is_stream()
            && streams.is_some_and(|(began, grace)| {
                now.saturating_duration_since(self.seen_at.max(began)) >= grace
            });
        let is_over = self.is_slow(stage, limits, now) || is_late || is_silent;
        if is_over {
            self.seat.expire(look);
        }
        let is_asked = stage.can_look() && (drains || !has_moved);
        if is_asked {
            self.seat.ask_for_client();
        }
        is_over || is_asked
    }

    /// Returns `true` if the server waits for a body that comes too slowly.
    fn is_slow(&mut self, stage: Stage, limits: &Limits, now: Instant) -> bool {
        if limits.body_rate == 0 || stage == Stage::Idle {
            self.pace = None;
            return false;
        }
        let (number, received) = (self.seat.number(), self.seat.received());
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

/// The number of bytes by which a client is ahead of `body_rate` with one body (rule S25).
#[derive(Debug)]
struct Pace {
    /// The number of the request.
    number: u32,
    /// The number of bytes by which the client is ahead.
    credit: f64,
    /// The number of bytes that had come at the last look.
    received: u32,
    looked_at: Instant,
    /// `true` if the server waited for the body at the last look.
    waited: bool,
}

impl Pace {
    fn new(number: u32, limits: &Limits, received: u32, now: Instant) -> Self {
        let begin = limits.body_rate as f64 * Limits::BODY_RATE_AFTER.as_secs_f64();
        let credit = (begin + f64::from(received)).min(Self::most(limits));
        Self { number, credit, received, looked_at: now, waited: true }
    }

    /// Returns the largest credit, so that a client that has sent a lot cannot pause for longer
    /// than `stall_timeout`.
    fn most(limits: &Limits) -> f64 {
        let longest = limits.stall_timeout.max(Limits::BODY_RATE_AFTER);
        limits.body_rate as f64 * longest.as_secs_f64()
    }

    /// Adds the bytes that have come. If the server has waited for the body since the last look,
    /// subtracts the bytes that the rate asks for. Returns `true` if the client is behind.
    fn is_slow(&mut self, stage: Stage, limits: &Limits, received: u32, now: Instant) -> bool {
        let waits = stage.waits_for_body();
        if waits && self.waited {
            let waited = now.saturating_duration_since(self.looked_at).as_secs_f64();
            self.credit -= limits.body_rate as f64 * waited;
        }
        // The bytes are added last, so a burst does not make up for the wait before it.
        let came = f64::from(received.wrapping_sub(self.received));
        self.credit = (self.credit + came).min(Self::most(limits));
        (self.received, self.looked_at, self.waited) = (received, now, waits);
        waits && self.credit < 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::activity::Wait;
    use crate::stop::seat::Describe;
    use crate::stream::socket::ClientLeft;
    use crate::stream::transport::Peer;

    struct Line;

    impl Describe for Line {
        fn describe(&self) -> Option<(String, String)> {
            Some(("GET".into(), "/slow".into()))
        }
    }

    /// Returns the orders of a new server.
    fn orders() -> Arc<Orders> {
        Arc::new(Orders::under(Arc::default()))
    }

    /// Returns a sweep before the stop.
    fn running(limits: &Limits, now: Instant) -> Sweep<'_> {
        Sweep { limits, drains: false, streams: None, now }
    }

    fn registry_with(seat: &Arc<Seat>) -> Registry {
        let mut registry = Registry::default();
        registry.holders.insert(Holder::connection(seat.clone()));
        registry
    }

    #[test]
    fn a_connection_expires_only_when_it_has_not_moved() {
        let limits = Limits::default().head_timeout(Duration::from_secs(3));
        let head: Arc<dyn Describe> = Arc::new(Line);
        let seat = Seat::new(Peer::Unix, orders());
        let mut registry = registry_with(&seat);
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        seat.begin(Some(Arc::downgrade(&head)));
        registry.sweep(&seat.orders, &running(&limits, after(0)));
        registry.sweep(&seat.orders, &running(&limits, after(2)));
        assert!(!seat.is_expired());
        seat.activity.begin(Doing::Head);
        registry.sweep(&seat.orders, &running(&limits, after(4)));
        registry.sweep(&seat.orders, &running(&limits, after(6)));
        assert!(!seat.is_expired());
        registry.sweep(&seat.orders, &running(&limits, after(7)));
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
                &running(&Limits::default(), start + Duration::from_secs(days * 86_400)),
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
            &running(&Limits::default(), Instant::now() + Duration::from_secs(86_400)),
        );
        assert!(!seat.is_expired());
        assert_eq!(registry.seats_of(&seat.orders).count(), 1);
        assert_eq!(registry.seats_of(&orders()).count(), 0);
    }

    /// Rule S27. Each case has the connection's stage, the seconds in which it moves, how far its
    /// client has left, and the second in which the server closes it. The grace begins in second
    /// 10, and a stream may be silent for 5 s.
    #[test]
    fn a_stream_is_closed_when_it_was_silent_in_the_drain() {
        use Doing::{Handler, Response, Upgraded};

        type Case<'a> = (&'a str, Doing, &'a dyn Fn(u64) -> bool, Option<ClientLeft>, Option<u64>);
        let (never, always) = (&|_| false, &|_| true);
        let half_closed = Some(ClientLeft::HalfClosed);
        let cases: [Case<'_>; 8] = [
            ("silent since long before", Upgraded, never, None, Some(15)),
            ("a response, too", Response, never, None, Some(15)),
            ("moves now and then", Response, &|second| second % 4 == 0, None, None),
            ("moves once", Upgraded, &|second| second == 12, None, Some(17)),
            ("moves, but its client sends nothing more", Upgraded, always, half_closed, Some(15)),
            (
                "a client that has only half-closed gets its answer",
                Response,
                always,
                half_closed,
                None,
            ),
            ("and is not waited for if nothing comes", Response, never, half_closed, Some(15)),
            ("a handler", Handler, never, None, None),
        ];
        for (name, doing, moves, left, expected) in cases {
            let seat = Seat::new(Peer::Unix, orders());
            let mut registry = registry_with(&seat);
            let start = Instant::now();
            let after = |seconds| start + Duration::from_secs(seconds);
            seat.activity.begin(doing);
            left.into_iter().for_each(|left| seat.client_left(left));
            let closed = (0..40).find(|second| {
                if moves(*second) {
                    seat.activity.progress();
                }
                let streams = (*second >= 10).then(|| (after(10), Duration::from_secs(5)));
                let limits = &Limits::default();
                let sweep = Sweep { limits, drains: *second >= 5, streams, now: after(*second) };
                registry.sweep(&seat.orders, &sweep);
                seat.is_expired()
            });
            assert_eq!(closed, expected, "{name}");
        }
    }

    /// Rule S13: the line has peer, stage, method, path and age.
    #[test]
    fn a_request_is_named_and_an_idle_connection_is_not() {
        let head: Arc<dyn Describe> = Arc::new(Line);
        let seat = Seat::new(Peer::from(([127, 0, 0, 1], 9)), orders());
        let registry = registry_with(&seat);
        // The connection's task has not looked yet, so the client may have sent a request.
        let line = registry.cuts(Instant::now())[0].work.to_string();
        assert!(line.starts_with("127.0.0.1:9 - - (not looked at yet, "), "{line}");
        seat.activity.begin(Doing::Idle);
        assert!(!registry.cuts(Instant::now())[0].is_cut());
        seat.begin(Some(Arc::downgrade(&head)));
        seat.activity.begin(Doing::Handler);
        let cuts = registry.cuts(Instant::now() + Duration::from_secs(2));
        let line = cuts[0].work.to_string();
        assert!(line.starts_with("127.0.0.1:9 GET /slow (in the handler, 2."), "{line}");
        seat.fall_idle();
        assert!(!registry.cuts(Instant::now())[0].is_cut());
    }

    /// Each case has the bytes that a client sends in each second, whether the server waits for the
    /// body in that second, and the second in which the client is too slow.
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
        let limits = Limits::default().body_rate(0);
        let seat = Seat::new(Peer::Unix, orders());
        let mut registry = registry_with(&seat);
        seat.activity.wait(Wait::Body, false);
        let start = Instant::now();
        for second in 0..25 {
            registry.sweep(&seat.orders, &running(&limits, start + Duration::from_secs(second)));
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
            registry.holders.insert(Holder::connection(seat.clone()));
            seat.fall_idle();
        }
        let now = Instant::now();
        assert!(registry.expire_idle_longest(&own, 32, Duration::from_secs(1), now).is_empty());
        assert!(registry.expire_idle_longest(&orders(), 32, Duration::ZERO, now).is_empty());
        // One connection in eight gives way, but not one that is at work or has just been at work.
        seats[0].begin(Some(Arc::downgrade(&head)));
        seats[1].fall_idle();
        assert_eq!(registry.expire_idle_longest(&own, 1, Duration::ZERO, now).len(), 1);
        let chosen = registry.expire_idle_longest(&own, 32, Duration::ZERO, now);
        assert_eq!(chosen.len(), 4);
        for (n, seat) in seats.iter().enumerate() {
            let is_chosen = chosen.iter().any(|one| Arc::ptr_eq(one, seat));
            assert_eq!(is_chosen, (2..6).contains(&n), "{n}");
        }
        assert!(chosen[0].is_expired());
        assert!(!seats[0].is_expired(), "it is at work");
    }
}
