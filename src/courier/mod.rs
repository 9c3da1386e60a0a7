//! The courier sends the connections of a server to its successor, a batch at a time.
//!
//! Invariant: the courier asks a connection to leave, the connection leaves when no exchange is
//! under way, and this process counts it until the successor has taken it (rules H4, H5).
//! Connections that cannot leave are treated as in any stop (rule H6). The courier reads nothing
//! from a client, and does not decide to stop.

mod answer;
mod report;

use std::convert::Infallible;
use std::future;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use log::Level;
use smol::channel::Receiver;

use crate::conn::leaving::Leaving;
use crate::error::reason;
use crate::restart::channel::{Channel, is_congested, is_gone};
use crate::restart::message::{BATCH, Message, Record};
use crate::restart::outbox::{Carried, Outbox};
use crate::server::running::{Running, sleep, stays};
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
    /// The order to repeat after a pause. It is [`HandOver::Asking`] first, and then
    /// [`HandOver::All`].
    asks: HandOver,
    began: Instant,
    /// The successor was silent once, and the log has said so.
    was_silent: bool,
    /// The time at which the courier gives up, if the kernel takes nothing until then.
    congested_until: Option<Instant>,
    /// The number of connections that the successor has taken.
    handed_over: usize,
}

/// The reason for the end of a hand-over.
enum End {
    /// The successor has closed the passage.
    Closed,
    /// The passage takes no message.
    Failed(io::Error),
    /// The successor has no place or no descriptor left, or stops.
    Full,
    /// The answer to a batch makes no sense.
    InvalidAnswer,
    /// The successor does not answer a batch, so both processes keep the batch.
    Silent,
    /// The answer to a batch cannot be read, so both processes keep the batch.
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

    /// Hands over the connections of the server, and the passages from which more connections come.
    /// The future stays pending for ever.
    ///
    /// `guard` holds the drain open until the courier has asked every connection. Connections on
    /// their way hold the drain open themselves ([`Leaving::counted`]).
    pub(crate) async fn run<T>(mut self, predecessors: Vec<Channel>, guard: Option<Entry>) -> T {
        let token = self.running.service.shutdown.token();
        let hand_over = async {
            let end = match self.hand_over(predecessors, guard).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            self.order(HandOver::Over);
            // Neither number includes a batch that both processes have.
            let stay = self.seats(|seat| !is_ending(seat)).len().saturating_sub(self.outbox.sent());
            let level = if stay == 0 { Level::Debug } else { Level::Warn };
            log::log!(level, "{}, {}: {end}", self.summary(), stays(stay));
            self.serve_until_linger_is_over().await;
            self.serve_to_the_end().await;
        };
        // The abort comes first, because after it nothing is sent and no answer counts.
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
            // No answer is due, so a message here means the end of the passage. The courier has to
            // notice that before the next response promises that its connection goes on.
            let Self { running, passage, .. } = self;
            let leaving = async { Ok(next(&running.leavers).await) };
            let end = async {
                Err(match passage.receive().await {
                    Ok(None) => End::Closed,
                    Ok(Some(_)) => End::InvalidAnswer,
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
                // `into_fd` has closed the end, and the process at the other end notices that.
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

    /// Asks the idle connections to leave, a batch at a time. Meanwhile other connections are
    /// served and fall idle, so the courier goes on until few idle ones are left.
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
            // `after_failed_send` decides when a congestion has lasted too long.
            if moved.0 != self.handed_over || self.congested_until.is_some() {
                moved = (self.handed_over, Instant::now());
            }
            if count == 0 || moved.1.elapsed() >= FIRST_WAIT {
                return Ok(());
            }
            self.gather(count).await;
            self.deliver().await?;
        }
    }

    /// Moves leaving connections into the outbox. Waits up to [`FIRST_WAIT`] for the first one, and
    /// then up to [`GATHER_WAIT`] for `expected` of them.
    async fn gather(&mut self, expected: usize) {
        let Self { running, outbox, .. } = self;
        // On a busy machine, the first connection takes longer. Without it the courier would have
        // nothing to deliver, and would ask more than a batch.
        for (wanted, time) in [(expected.min(1), FIRST_WAIT), (expected, GATHER_WAIT)] {
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

    /// Delivers all waiting connections.
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

    /// Waits if the kernel sends nothing for the moment. This process serves the waiting
    /// connections meanwhile.
    ///
    /// # Errors
    ///
    /// Returns the reason if nothing more can be sent.
    async fn after_failed_send(&mut self, error: io::Error) -> Result<(), End> {
        if is_gone(&error) {
            return Err(End::Closed);
        }
        if !is_congested(&error) {
            return Err(End::Failed(error));
        }
        let end = Instant::now() + self.patience().min(LONGEST_CONGESTION);
        if self.congested_until.is_none() {
            log::info!("connections wait until the kernel passes them on: {}", reason(&error));
        }
        let until = *self.congested_until.get_or_insert(end);
        if Instant::now() >= until {
            return Err(End::Failed(error));
        }
        self.order(HandOver::Asking);
        // No answer is due, so this call lasts for the whole pause.
        self.serve_until(sleep(CONGESTION_PAUSE)).await;
        self.order(self.asks);
        Ok(())
    }

    /// Treats the remaining connections as in any stop (rule H6). Idle ones may still send a
    /// request within the linger.
    async fn serve_until_linger_is_over(&mut self) {
        let linger = self.running.service.shutdown.times().linger;
        let mut over = pin!(sleep(linger));
        // The answer to a batch that both processes have may still come.
        while let Some(answer) = self.serve_until(&mut over).await {
            self.settle_late(answer).await;
        }
    }

    /// Lets the remaining idle connections end. The future stays pending for ever.
    async fn serve_to_the_end(&mut self) {
        self.order(HandOver::None);
        while let Some(answer) = self.serve_until(future::pending()).await {
            self.settle_late(answer).await;
        }
    }

    /// Gives up all connections on their way, at an abort. The sockets of a batch without an answer
    /// are the successor's (rule H2). The future stays pending for ever.
    async fn abandon<T>(mut self) -> T {
        self.outbox.remove_waiting().chain(self.outbox.remove_sent()).for_each(Leaving::abandon);
        loop {
            next(&self.running.leavers).await.abandon();
        }
    }

    /// Orders the connections to leave or to stay, and wakes those for which that changes
    /// something.
    fn order(&self, hand_over: HandOver) {
        self.running.service.orders.set_hand_over(hand_over);
        if matches!(hand_over, HandOver::All | HandOver::None) {
            self.running.wake_all();
        }
    }

    /// Returns how long the successor may be silent. This is half of the remaining grace, so that
    /// connections that stay can still finish.
    fn patience(&self) -> Duration {
        let grace = self.running.service.shutdown.times().grace;
        grace.saturating_sub(self.began.elapsed()) / 2
    }

    /// Returns the connections for which `is_meant` returns `true`.
    fn seats(&self, is_meant: impl Fn(&Seat) -> bool) -> Vec<Arc<Seat>> {
        let orders = &self.running.service.orders;
        let choose = |registry: &Registry| {
            registry.seats_of(orders).filter(|seat| is_meant(seat)).cloned().collect()
        };
        self.running.service.shutdown.seats(choose)
    }
}

impl Carried for Leaving {
    fn ahead(&self) -> usize {
        self.ahead.len()
    }
}

fn record(leaving: &Leaving) -> Record {
    let seat = &leaving.counted.seat;
    Record {
        // A connection leaves only if its listener has a number (`Orders::can_leave`).
        listener: seat.orders.adopted_as(seat.listener()).unwrap_or_default(),
        idle: leaving.idle_for(),
        ahead: leaving.ahead.clone(),
    }
}

/// Returns the next connection that leaves.
async fn next(leavers: &Receiver<Leaving>) -> Leaving {
    match leavers.recv().await {
        Ok(leaving) => leaving,
        // The server holds the sender, so this does not happen while the server lives.
        Err(_) => future::pending().await,
    }
}

/// The time for which the courier waits for more of the asked connections, before it sends those
/// that have come.
const GATHER_WAIT: Duration = Duration::from_millis(2);

/// The time for which the courier waits for the first connection that can leave at once. If a
/// handler blocks the thread, connections take longer.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// The pause of the courier if the kernel sends nothing for the moment.
const CONGESTION_PAUSE: Duration = Duration::from_millis(50);

/// The longest congestion, so that a deadline does not overflow when the grace is endless.
const LONGEST_CONGESTION: Duration = Duration::from_secs(24 * 60 * 60);
