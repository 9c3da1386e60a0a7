//! [`Outbox`]: the connections that wait for the successor, and the batch that has no answer yet.
//!
//! Pure: no socket and no clock, so that a model test can run it against every order of events.
//! Invariant: a connection is in the outbox until the answer says that the successor has it, and a
//! batch that was sent comes back only when the passage has closed without an answer (rules H2,
//! H3).

use std::collections::VecDeque;

use crate::limits::Limits;
use crate::restart::message::{BATCH, Taken};

#[cfg(test)]
mod model;

/// Connections on their way to the successor.
pub(crate) struct Outbox<T> {
    /// The connections that were not sent yet.
    waiting: VecDeque<T>,
    /// The batch that was sent last and has no answer. Both processes have its sockets.
    sent: Vec<T>,
    /// The number of that batch.
    number: u32,
}

/// A connection that can go into a batch.
pub(crate) trait Carried {
    /// Returns the number of bytes that go along, at most [`Limits::MOST_AHEAD`].
    fn ahead(&self) -> usize;
}

/// The result of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settled<T> {
    /// The connections that the successor has taken. The caller closes the copies of their sockets
    /// at once.
    pub(crate) taken: Vec<T>,
    /// The connection that the successor has refused, and that belongs to this process again. The
    /// connections behind it wait for the next batch.
    pub(crate) refused: Option<T>,
}

impl<T: Carried> Outbox<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::new(), sent: Vec::new(), number: 0 }
    }

    pub(crate) fn push(&mut self, connection: T) {
        // A longer one would never fit into a batch, and would block the connections behind it.
        debug_assert!(connection.ahead() <= Limits::MOST_AHEAD);
        self.waiting.push_back(connection);
    }

    /// Returns the number of connections that wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the number of connections in the batch that has no answer.
    pub(crate) fn sent(&self) -> usize {
        self.sent.len()
    }

    /// Makes the next batch of waiting connections. Returns `None` if no connection waits, or if
    /// the last batch has no answer yet.
    pub(crate) fn next_batch(&mut self) -> Option<(u32, &[T])> {
        if !self.sent.is_empty() {
            return None;
        }
        let mut room = Limits::MOST_AHEAD;
        while let Some(connection) = self.waiting.front() {
            if self.sent.len() == BATCH || connection.ahead() > room {
                break;
            }
            room -= connection.ahead();
            self.sent.extend(self.waiting.pop_front());
        }
        if self.sent.is_empty() {
            return None;
        }
        self.number = self.number.wrapping_add(1);
        Some((self.number, &self.sent))
    }

    /// Applies an answer. Returns `None`, and changes nothing, if the answer does not belong to the
    /// batch.
    pub(crate) fn settle(&mut self, answer: Taken) -> Option<Settled<T>> {
        let count = usize::from(answer.count);
        if answer.number != self.number || self.sent.is_empty() || count > self.sent.len() {
            return None;
        }
        let mut rest = self.sent.split_off(count).into_iter();
        let taken = std::mem::take(&mut self.sent);
        let refused = rest.next();
        rest.rev().for_each(|connection| self.waiting.push_front(connection));
        Some(Settled { taken, refused })
    }

    /// Takes back a batch that could not be sent, or whose passage has closed without an answer.
    /// Its connections wait again, in front of the others.
    pub(crate) fn take_back(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter().rev().for_each(|connection| self.waiting.push_front(connection));
    }

    /// Removes the waiting connections, and returns them. A batch without an answer stays.
    pub(crate) fn remove_waiting(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.waiting).into_iter()
    }

    /// Removes the batch without an answer, and returns its connections. The caller does not wait
    /// for the answer any more, so the sockets are the successor's.
    pub(crate) fn remove_sent(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.sent).into_iter()
    }
}
