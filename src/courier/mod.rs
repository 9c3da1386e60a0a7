//! The courier: sends the connections of a server to its successor, a batch at a time.
//!
//! Invariant: a connection is asked to leave, goes when no exchange is under way, and is counted
//! here until the successor has said that it took it (rules H4, H5). All that cannot go is treated
//! as in any stop (rule H6). Reads nothing of a client, and does not decide to stop.

mod report;

use std::convert::Infallible;
use std::future::{self, Future};
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use log::Level;
use smol::channel::Receiver;

use crate::conn::leaving::Leaving;
use crate::error::reason;
use crate::restart::channel::{Channel, Received, is_congested, is_gone};
use crate::restart::message::{BATCH, Message, Record, Taken};
use crate::restart::outbox::{Carried, Outbox};
use crate::server::{Running, sleep, stays};
use crate::stop::latch::Entry;
use crate::stop::orders::{Departure, HandOver};
use crate::stop::registry::Registry;
use crate::stop::seat::Seat;
use report::{is_ending, may_leave_soon};

/// The part of a server that hands its connections over.
pub(crate) struct Courier<'a> {
    running: &'a Running,
    passage: Channel,
    outbox: Outbox<Leaving>,
    /// The order to give again after a pause: first [`HandOver::Asking`], then [`HandOver::All`].
    asks: HandOver,
    began: Instant,
    /// The successor has not answered in time once, and the log has said so.
    was_silent: bool,
    /// When the courier gives up sending, if the kernel has taken nothing since the last batch.
    congested_until: Option<Instant>,
    /// How many connections the successor has taken.
    handed_over: usize,
}

/// The reason for which a hand-over is over.
enum End {
    /// The successor has closed the passage.
    Closed,
    /// The passage takes no message.
    Failed(io::Error),
    /// The successor has no place or no descriptor left, or stops.
    Full,
    /// The answer to a batch makes no sense.
    Senseless,
    /// There is no answer to a batch, which stays with both.
    Silent,
    /// The answer to a batch cannot be read. The batch stays with both.
    Unreadable(io::Error),
}

impl<'a> Courier<'a> {
    pub(crate) fn new(running: &'a Running, passage: Channel) -> Self {
        Self {
            running,
            passage,
            outbox: Outbox::new(),
            asks: HandOver::Asking,
            began: Instant::now(),
            was_silent: false,
            congested_until: None,
            handed_over: 0,
        }
    }

    /// Hands over the connections of the server, and the passages from which further connections
    /// come. Never ends.
    ///
    /// `guard` holds the drain open until every connection was asked. Connections on their way hold
    /// it open themselves ([`Leaving::counted`]).
    pub(crate) async fn run<T>(mut self, predecessors: Vec<Channel>, guard: Option<Entry>) -> T {
        let token = self.running.service.shutdown.token();
        let hand_over = async {
            let end = match self.hand_over(predecessors, guard).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            self.order(HandOver::Over);
            // A batch that both have counts in neither number.
            let stay = self.seats(|seat| !is_ending(seat)).len().saturating_sub(self.outbox.sent());
            let level = if stay == 0 { Level::Debug } else { Level::Warn };
            log::log!(level, "{}, {}: {end}", self.summary(), stays(stay));
            self.serve_until_linger_is_over().await;
            self.serve_to_the_end().await;
        };
        // The abort comes first: after it, nothing is sent and no answer counts.
        token.aborting().or(hand_over).await;
        self.abandon().await
    }

    async fn hand_over(
        &mut self,
        predecessors: Vec<Channel>,
        guard: Option<Entry>,
    ) -> Result<Infallible, End> {
        for passage in predecessors {
            self.pass_on(passage).await?;
        }
        self.ask_idle().await?;
        self.ask_all().await?;
        log::info!("{}{}", self.summary(), self.stays());
        drop(guard);
        loop {
            // No answer is due, so what comes here is the end: it must be noticed before the next
            // response promises that its connection goes on.
            let Self { running, passage, .. } = self;
            let leaving = async { Ok(next(&running.leavers).await) };
            let end = async {
                Err(match passage.receive().await {
                    Ok(None) => End::Closed,
                    Ok(Some(_)) => End::Senseless,
                    Err(error) => End::Failed(error),
                })
            };
            self.outbox.push(end.or(leaving).await?);
            self.gather(0).await;
            self.deliver().await?;
        }
    }

    /// Passes on the end of a passage from which connections come.
    async fn pass_on(&mut self, passage: Channel) -> Result<(), End> {
        let end = match passage.into_fd() {
            Ok(end) => end,
            Err(error) => {
                // The end is closed with this, and the process at the other end notices that.
                log::error!("a passage cannot be passed on: {}", reason(&error));
                return Ok(());
            }
        };
        while let Err(error) = self.passage.send(&Message::Pass, &[end.as_fd()]) {
            self.after_failed_send(error).await?;
        }
        self.congested_until = None;
        Ok(())
    }

    /// Asks the idle connections to leave, a batch at a time. Meanwhile the others are served, and
    /// some of them fall idle, so this goes on until few are left.
    async fn ask_idle(&mut self) -> Result<(), End> {
        loop {
            let orders = &self.running.service.orders;
            let idle =
                self.running.service.shutdown.seats(|registry| registry.idle_unasked(orders));
            for batch in idle.chunks(BATCH) {
                for seat in batch {
                    seat.set_departure(Departure::Asked);
                    seat.wake();
                }
                self.gather(batch.len()).await;
                self.deliver().await?;
            }
            if idle.len() < BATCH {
                return Ok(());
            }
        }
    }

    /// Asks all connections to leave, and delivers those that can leave at once.
    async fn ask_all(&mut self) -> Result<(), End> {
        self.asks = HandOver::All;
        self.order(HandOver::All);
        let mut moved = (self.handed_over, Instant::now());
        loop {
            let can_leave_now = |seat: &Seat| seat.can_leave() && may_leave_soon(seat);
            let count = self.seats(can_leave_now).len();
            // In a congestion, `after_failed_send` says when it has lasted too long.
            if moved.0 != self.handed_over || self.congested_until.is_some() {
                moved = (self.handed_over, Instant::now());
            }
            if count == 0 || moved.1.elapsed() >= SOON {
                return Ok(());
            }
            self.gather(count).await;
            self.deliver().await?;
        }
    }

    /// Moves the connections that leave into the outbox. Waits up to [`SOON`] for the first one,
    /// and then up to [`GATHERING`] for `expected` of them.
    async fn gather(&mut self, expected: usize) {
        let Self { running, outbox, .. } = self;
        // On a busy machine the first one takes longer. Without it nothing could be delivered, and
        // more than a batch would be asked.
        for (wanted, time) in [(expected.min(1), SOON), (expected, GATHERING)] {
            let come = async {
                while outbox.waiting() < wanted {
                    outbox.push(next(&running.leavers).await);
                }
            };
            come.or(sleep(time)).await;
        }
        while let Ok(leaving) = running.leavers.try_recv() {
            outbox.push(leaving);
        }
    }

    /// Delivers everything that waits.
    async fn deliver(&mut self) -> Result<(), End> {
        while let Some((number, batch)) = self.outbox.next_batch() {
            let connections = batch.iter().map(record).collect();
            let message = Message::Connections { number, connections };
            let sockets: Vec<_> = batch.iter().map(|leaving| leaving.socket.as_fd()).collect();
            if let Err(error) = self.passage.send(&message, &sockets) {
                self.outbox.take_back();
                self.after_failed_send(error).await?;
                continue;
            }
            self.congested_until = None;
            self.receive_answer().await?;
        }
        Ok(())
    }

    /// Waits if the kernel sends nothing at the moment. Those that wait are served here meanwhile.
    ///
    /// # Errors
    ///
    /// The reason for which nothing can be sent any more.
    async fn after_failed_send(&mut self, error: io::Error) -> Result<(), End> {
        if is_gone(&error) {
            return Err(End::Closed);
        }
        if !is_congested(&error) {
            return Err(End::Failed(error));
        }
        let end = Instant::now() + self.patience().min(CONGESTED_AT_MOST);
        if self.congested_until.is_none() {
            log::info!("connections wait until the kernel passes them on: {}", reason(&error));
        }
        let until = *self.congested_until.get_or_insert(end);
        if Instant::now() >= until {
            return Err(End::Failed(error));
        }
        self.order(HandOver::Asking);
        // No answer is due, so this lasts for the whole pause.
        self.serve_until(sleep(CONGESTED)).await;
        self.order(self.asks);
        Ok(())
    }

    /// Waits for the answer to the batch, and takes note of it.
    ///
    /// If the successor does not answer within the linger, nobody is asked any more, and those that
    /// wait are served here again until it does (rule H5).
    async fn receive_answer(&mut self) -> Result<(), End> {
        let linger = self.running.service.shutdown.times().linger;
        let in_time = async { Some(self.passage.receive().await) };
        let late = async {
            sleep(linger.clamp(LEAST_WAIT, LONGEST_WAIT).min(self.patience())).await;
            None
        };
        if let Some(answer) = in_time.or(late).await {
            return self.settle(answer);
        }
        if !mem::replace(&mut self.was_silent, true) {
            log::warn!(
                "the successor does not answer; its connections are served here until it does"
            );
        }
        self.order(HandOver::Asking);
        let given_up = sleep(self.patience());
        let answer = self.serve_until(given_up).await.ok_or(End::Silent)?;
        self.order(self.asks);
        self.settle(answer)
    }

    /// Treats what is left as in any stop (rule H6). Its idle connections may still send a request
    /// for the time of the linger.
    async fn serve_until_linger_is_over(&mut self) {
        let linger = self.running.service.shutdown.times().linger;
        let mut over = pin!(sleep(linger));
        // An answer may still come to the batch that both have.
        while let Some(answer) = self.serve_until(&mut over).await {
            self.settle_late(answer).await;
        }
    }

    /// Lets the idle connections of what is left end. Never ends.
    async fn serve_to_the_end(&mut self) {
        self.order(HandOver::None);
        while let Some(answer) = self.serve_until(future::pending()).await {
            self.settle_late(answer).await;
        }
    }

    /// Takes note of an answer that comes when the hand-over is over.
    async fn settle_late(&mut self, answer: Answer) {
        if let Err(End::Unreadable(_)) = self.settle(answer) {
            // The error may come again and again, and others need their turn.
            sleep(CONGESTED).await;
        }
    }

    /// Gives the connections that wait, and those that still come, back to the server. Returns the
    /// answer to the batch, or `None` when `end` is ready.
    async fn serve_until(&mut self, end: impl Future<Output = ()>) -> Option<Answer> {
        let mut end = pin!(end);
        loop {
            self.give_back_waiting();
            let Self { running, passage, outbox, .. } = self;
            let over = async {
                (&mut end).await;
                Event::Over
            };
            let answer = async {
                if outbox.sent() == 0 {
                    future::pending().await
                }
                Event::Answer(passage.receive().await)
            };
            let leaving = async { Event::Leaving(next(&running.leavers).await) };
            match answer.or(leaving).or(over).await {
                Event::Answer(answer) => return Some(answer),
                Event::Leaving(leaving) => outbox.push(leaving),
                Event::Over => return None,
            }
        }
    }

    /// Takes note of an answer. Returns the reason if the hand-over is over.
    fn settle(&mut self, answer: Answer) -> Result<(), End> {
        let taken = match answer {
            Ok(Some((Message::Taken(taken), _))) => taken,
            Ok(None) => {
                self.outbox.take_back();
                return Err(End::Closed);
            }
            Ok(Some(_)) => return Err(self.give_up_batch()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(self.give_up_batch());
            }
            // The successor may have the batch, so it does not come back (rule H2).
            Err(error) => return Err(End::Unreadable(error)),
        };
        let Taken { takes_more, .. } = taken;
        let Some(settled) = self.outbox.settle(taken) else { return Err(self.give_up_batch()) };
        // Counted first, because the drop may end the drain.
        self.handed_over += settled.taken.len();
        self.running.service.shutdown.handed_over(settled.taken.len());
        // As long as a copy is open, no close of the successor reaches the client.
        drop(settled.taken);
        if let Some(refused) = settled.refused {
            // Without places, it is no worse off than those behind it.
            let departure = if takes_more { Departure::Refused } else { Departure::Unasked };
            self.give_back(departure, refused);
        }
        if takes_more { Ok(()) } else { Err(End::Full) }
    }

    /// Leaves the batch to a successor whose answer makes no sense: it may read the sockets
    /// already.
    fn give_up_batch(&mut self) -> End {
        self.outbox.remove_sent().for_each(Leaving::abandon);
        End::Senseless
    }

    fn give_back_waiting(&mut self) {
        for leaving in self.outbox.remove_waiting() {
            self.give_back(Departure::Unasked, leaving);
        }
    }

    /// Gives a connection back to the server.
    fn give_back(&self, departure: Departure, leaving: Leaving) {
        let peer = leaving.counted.seat.peer();
        match leaving.give_back(departure) {
            Ok((connection, counted)) => self.running.go_on(connection, counted),
            Err(error) => log::error!("{peer}: lost on its way back: {}", reason(&error)),
        }
    }

    /// Gives up what is on its way, at an abort. The sockets of a batch without an answer are the
    /// successor's (rule H2). Never ends.
    async fn abandon<T>(mut self) -> T {
        self.outbox.remove_waiting().chain(self.outbox.remove_sent()).for_each(Leaving::abandon);
        loop {
            next(&self.running.leavers).await.abandon();
        }
    }

    /// Says how far connections are to go, and wakes those that have something to do then.
    fn order(&self, hand_over: HandOver) {
        self.running.service.orders.set_hand_over(hand_over);
        if matches!(hand_over, HandOver::All | HandOver::None) {
            self.running.wake_all();
        }
    }

    /// Returns how long the successor may be silent: half of what is left of the grace, so that
    /// what stays can still finish.
    fn patience(&self) -> Duration {
        let grace = self.running.service.shutdown.times().grace;
        grace.saturating_sub(self.began.elapsed()) / 2
    }

    /// Returns the connections of the server that are meant.
    fn seats(&self, is_meant: impl Fn(&Seat) -> bool) -> Vec<Arc<Seat>> {
        let orders = &self.running.service.orders;
        let choose = |registry: &Registry| {
            registry.seats_of(orders).filter(|seat| is_meant(seat)).cloned().collect()
        };
        self.running.service.shutdown.seats(choose)
    }
}

/// The message that the passage has brought, its end, or an error.
type Answer = io::Result<Option<Received>>;

enum Event {
    Answer(Answer),
    Leaving(Leaving),
    Over,
}

impl Carried for Leaving {
    fn ahead(&self) -> usize {
        self.ahead.len()
    }
}

fn record(leaving: &Leaving) -> Record {
    let seat = &leaving.counted.seat;
    Record {
        // A connection leaves only if its listener has a number here (`Orders::can_leave`).
        listener: seat.orders.adopted_as(seat.listener()).unwrap_or_default(),
        idle: leaving.idle_for(),
        ahead: leaving.ahead.clone(),
    }
}

/// Returns the next connection that leaves.
async fn next(leavers: &Receiver<Leaving>) -> Leaving {
    match leavers.recv().await {
        Ok(leaving) => leaving,
        // The server has the other end.
        Err(_) => future::pending().await,
    }
}

/// How long the courier waits for more of the connections that it has asked, before it sends those
/// that have come.
const GATHERING: Duration = Duration::from_millis(2);

/// How long the courier waits for the first of the connections that can leave at once. A thread
/// that a handler blocks keeps them here for longer.
const SOON: Duration = Duration::from_millis(100);

/// How long a successor may take to answer, at least and at most, whatever the linger is. Clients
/// wait so long for one that is suspended.
const LEAST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How long the courier waits if the kernel sends nothing at the moment.
const CONGESTED: Duration = Duration::from_millis(50);

/// Keeps a deadline from an overflow when the grace is endless.
const CONGESTED_AT_MOST: Duration = Duration::from_secs(24 * 60 * 60);
