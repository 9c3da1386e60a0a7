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

    /// Returns `true` if a client waits for an answer, or if the work is a guard. The answer is
    /// final only after the connection's task has ended, because a busy connection may still finish
    /// its request, and an idle connection may still find one.
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
    pub(crate) fn for_another_latch(&self) -> Self {
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
    pub(crate) fn may_be_cut(&self, now: Instant) -> Vec<Interrupted> {
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
    /// the drain, the sweep asks all connections at work, and otherwise only the connections that
    /// have not moved since the last sweep. Returns all connections that the caller has to wake.
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
mod tests;
