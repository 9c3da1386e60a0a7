//! The courier: sends the connections of a server to its successor, a batch at a time.
//!
//! Invariant: a connection is asked to leave, goes when no exchange is under way, and is counted
//! here until the successor has said that it took it (rules H4, H5). Whatever cannot go is treated
//! as in any stop (rule H6). Reads nothing of a client, and does not decide to stop.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::{self, Future};
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::time::{Duration, Instant};

use async_io::Timer;
use futures_lite::FutureExt;

use crate::conn::leaving::Leaving;
use crate::error::reason;
use crate::restart::message::{BATCH, Message, Record, Taken};
use crate::restart::outbox::{Carried, Outbox};
use crate::restart::passage::{Passage, Received, ToSuccessor, is_congested};
use crate::server::Running;
use crate::stop::activity::Doing;
use crate::stop::orders::{Departure, HandOver};
use crate::stop::outcome::grouped;
use crate::stop::seat::Seat;
use crate::stop::shutdown::Guard;

/// The part of a server that hands its connections over.
pub(crate) struct Courier<'a> {
    running: &'a Running,
    passage: Passage,
    /// The inode of each listener, by its number, whose connections the successor takes.
    listeners: Vec<Option<u64>>,
    outbox: Outbox<Leaving>,
    /// Who is to leave, as long as the successor answers.
    asks: HandOver,
    began: Instant,
    /// How many connections the successor has taken.
    handed_over: usize,
}

/// Why the successor takes no more connections.
enum Closed {
    /// The other end of the passage is closed, or has failed.
    Ended(Option<io::Error>),
    /// The successor has no place or no descriptor left, or stops.
    Full,
    /// There is no answer to a batch, or none that makes sense. The batch stays with both.
    Silent,
}

impl<'a> Courier<'a> {
    pub(crate) fn new(running: &'a Running, to: ToSuccessor) -> Self {
        Self {
            running,
            passage: to.passage,
            listeners: to.adopted,
            outbox: Outbox::new(),
            asks: HandOver::Asking,
            began: Instant::now(),
            handed_over: 0,
        }
    }

    /// Hands over the connections of the server, and the passages from which further connections
    /// come. Never ends.
    ///
    /// `guard` holds the drain open until every connection was asked. Connections that are under
    /// way hold it open themselves.
    pub(crate) async fn run<T>(mut self, predecessors: Vec<Passage>, guard: Option<Guard>) -> T {
        let token = self.running.service.shutdown.token();
        let hand_over = async {
            let closed = match self.hand_over(predecessors, guard).await {
                Ok(never) => match never {},
                Err(closed) => closed,
            };
            let stay = self.count(|seat| seat.doing() != Doing::Closing);
            log::warn!("{}, {stay} stay: {closed}", self.summary());
            self.serve_the_rest().await;
        };
        hand_over.or(token.aborting()).await;
        self.abandon().await
    }

    /// Asks all connections to leave, and delivers them. Returns why it has to stop.
    async fn hand_over(
        &mut self,
        predecessors: Vec<Passage>,
        guard: Option<Guard>,
    ) -> Result<Infallible, Closed> {
        for passage in predecessors {
            let end = passage.into_fd().map_err(|error| Closed::Ended(Some(error)))?;
            let sent = self.passage.send(&Message::Passage, &[end.as_fd()]).await;
            sent.map_err(|error| Closed::Ended(Some(error)))?;
        }
        // Idle connections come first, a batch at a time. Meanwhile the others are served, and some
        // of them fall idle.
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
                break;
            }
        }
        self.asks = HandOver::All;
        self.order(HandOver::All);
        self.gather(self.count(|seat| seat.can_leave() && is_between(seat))).await;
        self.deliver().await?;
        log::info!("{}{}", self.summary(), self.stays());
        drop(guard);
        loop {
            let leaving = next(&self.running.leavers).await;
            self.outbox.push(leaving);
            self.gather(0).await;
            self.deliver().await?;
        }
    }

    /// Takes in the connections that leave, until so many wait or [`GATHERING`] is over, and then
    /// those that are there.
    async fn gather(&mut self, expected: usize) {
        let Self { running, outbox, .. } = self;
        let all = async {
            while outbox.waiting() < expected {
                outbox.push(next(&running.leavers).await);
            }
        };
        all.or(sleep(GATHERING)).await;
        while let Ok(leaving) = running.leavers.try_recv() {
            outbox.push(leaving);
        }
    }

    /// Delivers everything that waits.
    ///
    /// # Errors
    ///
    /// The reason for which the successor takes no more.
    async fn deliver(&mut self) -> Result<(), Closed> {
        while let Some((number, batch)) = self.outbox.next_batch() {
            let connections =
                batch.iter().map(|leaving| record(&self.listeners, leaving)).collect();
            let message = Message::Connections { number, connections };
            let sockets: Vec<_> = batch.iter().map(|leaving| leaving.socket.as_fd()).collect();
            let sent = self.passage.send(&message, &sockets).await;
            if let Err(error) = sent {
                self.outbox.take_back();
                if !is_congested(&error) || self.began.elapsed() > self.patience() {
                    return Err(Closed::Ended(Some(error)));
                }
                // Other processes of this user send descriptors, too.
                self.order(HandOver::Asking);
                let _ = self.serve_until(sleep(CONGESTED)).await;
                self.order(self.asks);
                return Ok(());
            }
            self.receive_answer().await?;
        }
        Ok(())
    }

    /// Waits for the answer to the batch, and takes note of it.
    ///
    /// If the successor does not answer within the linger, nobody is asked any more, and those that
    /// wait are served here again until it does (rule H5).
    async fn receive_answer(&mut self) -> Result<(), Closed> {
        let linger = self.running.service.shutdown.times().linger;
        let in_time = async { Some(self.passage.receive().await) };
        let late = async {
            sleep(linger.max(LEAST_LINGER).min(self.patience())).await;
            None
        };
        if let Some(received) = in_time.or(late).await {
            return self.settle(received);
        }
        log::warn!("the successor does not answer; its connections are served here until it does");
        self.order(HandOver::Asking);
        let given_up = sleep(self.patience().saturating_sub(self.began.elapsed()));
        let received = self.serve_until(given_up).await.ok_or(Closed::Silent)?;
        self.order(self.asks);
        self.settle(received)
    }

    /// Gives the connections that wait, and those that still come, back to the server. Returns the
    /// answer to the batch, or `None` when `end` is over.
    async fn serve_until(&mut self, end: impl Future<Output = ()>) -> Option<Answer> {
        let mut end = pin!(end);
        loop {
            self.return_waiting();
            let Self { running, passage, outbox, .. } = self;
            let over = async {
                (&mut end).await;
                Event::Over
            };
            let answer = async {
                if !outbox.has_sent() {
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

    /// Treats what is left as in any stop (rule H6): its idle connections have a linger of their
    /// own. Never ends.
    async fn serve_the_rest(&mut self) {
        let linger = self.running.service.shutdown.times().linger;
        for (hand_over, time) in [(HandOver::Over, linger), (HandOver::None, Duration::MAX)] {
            self.order(hand_over);
            let end = Instant::now().checked_add(time);
            let time_left = || async {
                match end {
                    Some(end) => drop(Timer::at(end).await),
                    None => future::pending().await,
                }
            };
            // An answer may still come for the batch that both have.
            while let Some(answer) = self.serve_until(time_left()).await {
                let _ = self.settle(answer);
            }
        }
    }

    /// Takes note of an answer.
    ///
    /// # Errors
    ///
    /// The reason for which the successor takes no more.
    fn settle(&mut self, answer: Answer) -> Result<(), Closed> {
        let taken = match answer {
            Ok(Some((Message::Taken(taken), _))) => taken,
            Ok(None) => {
                self.outbox.take_back();
                return Err(Closed::Ended(None));
            }
            Err(error) if error.kind() != io::ErrorKind::InvalidData => {
                self.outbox.take_back();
                return Err(Closed::Ended(Some(error)));
            }
            Ok(Some(_)) | Err(_) => return Err(Closed::Silent),
        };
        let Taken { takes_more, .. } = taken;
        let settled = self.outbox.settle(taken).ok_or(Closed::Silent)?;
        let count = settled.taken.len();
        self.handed_over += count;
        self.running.service.shutdown.handed_over(count);
        // As long as a copy is open, no close of the successor reaches the client.
        drop(settled.taken);
        if let Some(refused) = settled.refused {
            self.return_as(Departure::Refused, refused);
        }
        if takes_more { Ok(()) } else { Err(Closed::Full) }
    }

    fn return_waiting(&mut self) {
        for leaving in self.outbox.remove_waiting() {
            self.return_as(Departure::Unasked, leaving);
        }
    }

    /// Gives a connection back to the server.
    fn return_as(&self, departure: Departure, leaving: Leaving) {
        let peer = leaving.counted.seat.peer();
        match leaving.return_as(departure) {
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

    fn order(&self, hand_over: HandOver) {
        self.running.service.orders.set_hand_over(hand_over);
        self.running.wake_all();
    }

    /// Returns how long the successor may be silent, or a congestion may last: half the grace, so
    /// that what is left can still finish.
    fn patience(&self) -> Duration {
        self.running.service.shutdown.times().grace / 2
    }

    fn count(&self, is_meant: impl Fn(&Seat) -> bool) -> usize {
        let Self { running, .. } = self;
        let seats = running.service.shutdown.seats(|registry| {
            let seats = registry.seats_of(&running.service.orders);
            seats.filter(|seat| is_meant(seat)).cloned().collect()
        });
        seats.len()
    }

    fn summary(&self) -> String {
        let (count, took) = (grouped(self.handed_over as u64), self.began.elapsed().as_secs_f64());
        let connections = if self.handed_over == 1 { "connection" } else { "connections" };
        format!("handed over {count} {connections} in {took:.2} s")
    }

    /// Says how many connections stay, and why. Empty if none does.
    fn stays(&self) -> String {
        let Self { running, .. } = self;
        let seats = running
            .service
            .shutdown
            .seats(|registry| registry.seats_of(&running.service.orders).cloned().collect());
        let mut reasons = BTreeMap::<_, usize>::new();
        for seat in seats {
            let has_wrapper = |number| -> Option<bool> {
                Some(running.listeners.get(usize::try_from(number).ok()?)?.wrapper().is_some())
            };
            let reason = match seat.doing() {
                Doing::Leaving | Doing::Closing => continue,
                Doing::Upgraded => "upgraded",
                _ if seat.can_leave() => "with a request under way",
                _ if seat.departure() == Departure::Refused => "refused by the successor",
                _ if has_wrapper(seat.listener()) == Some(true) => {
                    "of a listener with a wrapper (TLS)"
                }
                _ => "of a listener that the successor does not have",
            };
            *reasons.entry(reason).or_default() += 1;
        }
        let count: usize = reasons.values().sum();
        if count == 0 {
            return String::new();
        }
        let reasons = reasons.iter().map(|(reason, count)| format!("{count} {reason}"));
        let verb = if count == 1 { "stays" } else { "stay" };
        format!(", {count} {verb}: {}", reasons.collect::<Vec<_>>().join(", "))
    }
}

/// What the passage has brought: an answer, its end, or an error.
type Answer = io::Result<Option<Received>>;

enum Event {
    Answer(Answer),
    Leaving(Leaving),
    Over,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(None) => f.write_str("the successor has closed the passage"),
            Self::Ended(Some(error)) => write!(f, "the passage has failed: {}", reason(error)),
            Self::Full => f.write_str("the successor has no place or no descriptor left, or stops"),
            Self::Silent => f.write_str("the successor does not answer"),
        }
    }
}

impl Carried for Leaving {
    fn ahead(&self) -> usize {
        self.ahead.len()
    }
}

fn record(listeners: &[Option<u64>], leaving: &Leaving) -> Record {
    let number = leaving.counted.seat.listener() as usize;
    Record {
        listener: listeners.get(number).copied().flatten().unwrap_or_default(),
        idle: leaving.idle_for(),
        ahead: leaving.ahead.clone(),
    }
}

/// Returns `true` if the connection can leave at once.
fn is_between(seat: &Seat) -> bool {
    matches!(seat.doing(), Doing::Accepted | Doing::Idle | Doing::Head | Doing::Leaving)
}

/// Returns the next connection that leaves.
async fn next(leavers: &smol::channel::Receiver<Leaving>) -> Leaving {
    match leavers.recv().await {
        Ok(leaving) => leaving,
        // The server has the other end.
        Err(_) => future::pending().await,
    }
}

async fn sleep(duration: Duration) {
    Timer::after(duration).await;
}

/// How long a batch is waited for until it is full.
const GATHERING: Duration = Duration::from_millis(2);

/// How long a successor may take to answer, at least, however short the linger is.
const LEAST_LINGER: Duration = Duration::from_millis(100);

/// How long the courier waits if the kernel passes no descriptors at the moment.
const CONGESTED: Duration = Duration::from_millis(50);
