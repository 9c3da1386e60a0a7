//! A process of the model, with the courier of its connections.
//!
//! The outbox is the real one. Beside it, the courier keeps a list of what has to be in the outbox,
//! and compares both whenever connections are sent, answered or given back. This file makes no
//! random choice.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::super::{Carried, Outbox, Settled};
use super::Seen;
use super::kernel::{Descriptor, End, Received, Socket};
use crate::limits::Limits;
use crate::restart::message::{BATCH, Message, Record};

/// A process that lives.
pub(super) struct Process {
    /// The connections whose sockets the process reads.
    pub(super) connections: Vec<Connection>,
    /// The largest number of connections.
    pub(super) places: usize,
    /// The process has to stop, and has no successor.
    pub(super) is_stopping: bool,
    /// The passages from which connections come.
    pub(super) sources: Vec<End>,
    /// Set once there is a successor.
    pub(super) courier: Option<Courier>,
}

pub(super) struct Connection {
    pub(super) socket: Rc<Socket>,
    /// The successor has refused the connection.
    pub(super) is_refused: bool,
}

pub(super) struct Courier {
    pub(super) outbox: Outbox<Connection>,
    pub(super) passage: End,
    /// The sockets that have to be in the outbox, in their order, with the bytes of each.
    pub(super) expected: VecDeque<(usize, usize)>,
    /// The number of those that are in the batch without an answer.
    pub(super) sent: usize,
    /// The number of the last batch.
    pub(super) number: u32,
    /// The courier asks connections to leave. If not, the successor takes no more.
    pub(super) asks: bool,
}

impl Carried for Connection {
    fn ahead(&self) -> usize {
        self.socket.ahead
    }
}

impl Process {
    pub(super) fn new(places: usize, sources: Vec<End>) -> Self {
        Self { connections: Vec::new(), places, is_stopping: false, sources, courier: None }
    }

    /// Asks a connection to leave. Returns `false` if it does not leave.
    pub(super) fn ask(&mut self, index: usize) -> bool {
        let Self { connections, courier: Some(courier), .. } = self else { return false };
        let may_leave = connections.get(index).is_some_and(|connection| !connection.is_refused);
        if courier.asks && may_leave {
            let connection = connections.remove(index);
            courier.expected.push_back((connection.socket.id, connection.socket.ahead));
            courier.outbox.push(connection);
            return true;
        }
        false
    }

    /// Asks one of the connections that can leave.
    pub(super) fn ask_any(&mut self) -> bool {
        let can_leave = |connection: &Connection| !connection.is_refused;
        self.connections.iter().rposition(can_leave).is_some_and(|index| self.ask(index))
    }

    /// Makes a batch and sends it, unless the kernel is `congested`.
    pub(super) fn deliver(&mut self, congested: bool, seen: &mut Seen) -> bool {
        let Some(courier) = &mut self.courier else { return false };
        let Courier { outbox, passage, expected, sent, number, .. } = courier;
        assert_eq!(outbox.waiting(), expected.len() - *sent);
        assert_eq!(outbox.sent() > 0, *sent > 0);
        let Some((now, batch)) = outbox.next_batch() else {
            assert!(*sent > 0 || expected.is_empty(), "connections wait, and there is no batch");
            return false;
        };
        assert_eq!(*sent, 0, "a batch was sent, and the one before it is not answered");
        assert_eq!(now, number.wrapping_add(1), "batches are numbered one after the other");
        *number = now;
        // The batch has the connections that have waited longest, as many as fit.
        let ids: Vec<_> = batch.iter().map(|connection| connection.socket.id).collect();
        let (first, others) = expected.as_slices();
        let expected_ids = first.iter().chain(others).take(ids.len()).map(|(id, _)| *id);
        assert_eq!(ids, expected_ids.collect::<Vec<_>>());
        let bytes: usize = batch.iter().map(Carried::ahead).sum();
        assert!(ids.len() <= BATCH && bytes <= Limits::MOST_AHEAD);
        let has_room = |(_, ahead): &(usize, usize)| bytes + ahead <= Limits::MOST_AHEAD;
        if ids.len() == BATCH {
            seen.full += 1;
        } else if let Some(next) = expected.get(ids.len()) {
            assert!(!has_room(next), "a further connection would fit");
            seen.bytes += 1;
        }

        let connections = batch.iter().map(|connection| Record {
            listener: connection.socket.has_listener.into(),
            idle: Duration::ZERO,
            ahead: vec![b'x'; connection.socket.ahead],
        });
        let message = Message::Connections { number: now, connections: connections.collect() };
        let sockets = batch.iter().map(|connection| Descriptor::Socket(connection.socket.clone()));
        *sent = ids.len();
        let descriptors = sockets.collect();
        if congested {
            self.take_back(seen);
        } else if !passage.send(&message, descriptors) {
            self.take_back(seen);
            self.stop_asking();
        }
        true
    }

    /// Applies an answer, if there is one.
    pub(super) fn hear(&mut self, seen: &mut Seen) -> bool {
        let Some(courier) = &mut self.courier else { return false };
        let packet = match courier.passage.receive() {
            Received::Nothing => return false,
            Received::Packet(packet) => packet,
            Received::Closed => {
                let is_news = courier.asks || courier.sent > 0;
                self.take_back(seen);
                self.stop_asking();
                return is_news;
            }
        };
        let Some(Message::Taken(answer)) = Message::decode(&packet.bytes) else {
            panic!("an answer was sent");
        };
        let Courier { outbox, expected, sent, number, .. } = courier;
        let count = usize::from(answer.count);
        let Some(Settled { taken, refused }) = outbox.settle(answer) else {
            let is_wrong = answer.number != *number || *sent == 0 || count > *sent;
            assert!(is_wrong, "an answer is not taken");
            // Both processes keep the batch.
            self.stop_asking();
            return true;
        };
        let is_right = answer.number == *number && *sent > 0 && count <= *sent;
        assert!(is_right, "a wrong answer is taken");
        let mut ids = expected.drain(..(count + 1).min(*sent)).map(|(id, _)| id);
        let taken_ids: Vec<_> = taken.iter().map(|connection| connection.socket.id).collect();
        assert_eq!(taken_ids, ids.by_ref().take(count).collect::<Vec<_>>());
        assert_eq!(refused.as_ref().map(|connection| connection.socket.id), ids.next());
        drop(ids);
        *sent = 0;
        if let Some(refused) = refused {
            self.connections.push(Connection { is_refused: true, ..refused });
            seen.refused += 1;
        }
        if !answer.takes_more || !courier.asks {
            self.stop_asking();
        }
        true
    }

    fn take_back(&mut self, seen: &mut Seen) {
        if let Some(courier) = &mut self.courier {
            courier.outbox.take_back();
            seen.taken_back += courier.sent.min(1);
            courier.sent = 0;
        }
    }

    pub(super) fn stop_asking(&mut self) {
        if let Some(courier) = &mut self.courier {
            courier.asks = false;
        }
        self.serve_waiting();
    }

    /// Serves the waiting connections in this process again. Returns their number.
    pub(super) fn serve_waiting(&mut self) -> usize {
        let Some(Courier { outbox, expected, sent, .. }) = &mut self.courier else { return 0 };
        let back: Vec<_> = outbox.remove_waiting().collect();
        let ids = back.iter().map(|connection| connection.socket.id);
        assert!(ids.eq(expected.drain(*sent..).map(|(id, _)| id)), "not those that wait");
        let count = back.len();
        self.connections.extend(back);
        count
    }

    /// Gives up all connections on their way, because the grace is over.
    pub(super) fn abandon(&mut self) {
        let Some(Courier { outbox, expected, sent, .. }) = &mut self.courier else { return };
        let batch: Vec<_> = outbox.remove_sent().map(|connection| connection.socket.id).collect();
        assert!(expected.drain(..*sent).map(|(id, _)| id).eq(batch), "not the batch");
        *sent = 0;
        self.serve_waiting();
    }

    pub(super) fn is_full(&self) -> bool {
        let on_their_way = self.courier.as_ref().map_or(0, |courier| courier.expected.len());
        self.connections.len() + on_their_way >= self.places
    }
}
