//! The answers of the successor: waits for them, applies them, and gives connections back to the
//! server.
//!
//! Invariant: a connection comes back only if the successor has refused it, or has closed the
//! passage without an answer (rules H2, H3). While the courier waits for a late answer, the server
//! serves the connections that were not sent. This file sends nothing.

use std::future::{self, Future};
use std::io;
use std::mem;
use std::pin::pin;
use std::time::Duration;

use futures_lite::FutureExt;

use super::{CONGESTION_PAUSE, Courier, End, next};
use crate::conn::leaving::Leaving;
use crate::error::reason;
use crate::restart::channel::Received;
use crate::restart::message::{Message, Taken};
use crate::server::running::sleep;
use crate::stop::orders::{Departure, HandOver};

/// A message from the passage, its end, or an error.
type Answer = io::Result<Option<Received>>;

/// An event while the server serves the waiting connections.
enum Event {
    Answer(Answer),
    Leaving(Leaving),
    Over,
}

impl Courier<'_> {
    /// Waits for the answer to the batch, and applies it.
    ///
    /// If the successor does not answer within the linger, the courier asks no further connection,
    /// and this process serves the waiting ones until the answer comes (rule H5).
    pub(super) async fn receive_answer(&mut self) -> Result<(), End> {
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

    /// Gives waiting connections back to the server, and those that still leave. Returns the answer
    /// to the batch, or `None` when `end` is ready.
    pub(super) async fn serve_until(&mut self, end: impl Future<Output = ()>) -> Option<Answer> {
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

    /// Applies an answer. Returns the reason as an error if the hand-over is over.
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
        // Count the connections first, because the drop may end the drain.
        self.handed_over += settled.taken.len();
        self.running.service.shutdown.count_handed_over(settled.taken.len());
        // As long as a copy is open, no close of the successor reaches the client.
        drop(settled.taken);
        if let Some(refused) = settled.refused {
            // If the successor has no place left, it would refuse the others as well.
            let departure = if takes_more { Departure::Refused } else { Departure::Unasked };
            self.give_back(departure, refused);
        }
        if takes_more { Ok(()) } else { Err(End::Full) }
    }

    /// Leaves the batch to a successor whose answer makes no sense, because the successor may read
    /// the sockets already.
    fn give_up_batch(&mut self) -> End {
        self.outbox.remove_sent().for_each(Leaving::abandon);
        End::InvalidAnswer
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

    /// Applies an answer that comes after the end of the hand-over.
    pub(super) async fn settle_late(&mut self, answer: Answer) {
        if let Err(End::Unreadable(_)) = self.settle(answer) {
            // The error may come again at once, and other tasks need their turn.
            sleep(CONGESTION_PAUSE).await;
        }
    }
}

/// The shortest and the longest time for an answer, for any linger. If the successor is suspended,
/// clients wait for this time.
const LEAST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
