//! The kernel of the model: sockets, passages, and the messages in them.
//!
//! Invariant: a socket is closed when its last descriptor is dropped, and a descriptor in an unread
//! message keeps its socket open. No function here can fail by chance.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::restart::message::{LONGEST, Message};

/// A client's socket. Each `Rc` is a descriptor, so the socket is closed when the last `Rc` is
/// dropped.
pub(super) struct Socket {
    pub(super) id: usize,
    /// The successors have the listener to which the client came. If not, they refuse the socket.
    pub(super) has_listener: bool,
    pub(super) ahead: usize,
}

/// A descriptor that goes along with a message.
pub(super) enum Descriptor {
    Socket(Rc<Socket>),
    Passage(End),
}

impl Descriptor {
    pub(super) fn socket(self) -> Option<Rc<Socket>> {
        match self {
            Self::Socket(socket) => Some(socket),
            Self::Passage(_) => None,
        }
    }

    pub(super) fn end(self) -> Option<End> {
        match self {
            Self::Passage(end) => Some(end),
            Self::Socket(_) => None,
        }
    }
}

pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<Descriptor>,
}

/// A passage: the unread messages at each of its two ends, and whether each end is open.
pub(super) struct Queues {
    pub(super) unread: [VecDeque<Packet>; 2],
    pub(super) is_open: [bool; 2],
}

/// One end of a passage.
pub(super) struct End {
    pub(super) queues: Rc<RefCell<Queues>>,
    pub(super) side: usize,
}

pub(super) enum Received {
    Packet(Packet),
    Nothing,
    Closed,
}

impl End {
    pub(super) fn pair() -> (Self, Self) {
        let queues = Queues { unread: Default::default(), is_open: [true; 2] };
        let queues = Rc::new(RefCell::new(queues));
        (Self { queues: queues.clone(), side: 0 }, Self { queues, side: 1 })
    }

    /// Sends a message with its descriptors. Returns `false`, and closes the descriptors, if the
    /// other end is closed.
    pub(super) fn send(&self, message: &Message, descriptors: Vec<Descriptor>) -> bool {
        let bytes = message.encode();
        assert!(bytes.len() <= LONGEST);
        let mut queues = self.queues.borrow_mut();
        let is_open = queues.is_open[1 - self.side];
        if is_open {
            queues.unread[1 - self.side].push_back(Packet { bytes, descriptors });
        }
        is_open
    }

    /// Returns `true` if there is a message, or if the other end is closed.
    pub(super) fn is_readable(&self) -> bool {
        let queues = self.queues.borrow();
        !queues.unread[self.side].is_empty() || !queues.is_open[1 - self.side]
    }

    pub(super) fn receive(&self) -> Received {
        let mut queues = self.queues.borrow_mut();
        match queues.unread[self.side].pop_front() {
            Some(packet) => Received::Packet(packet),
            None if queues.is_open[1 - self.side] => Received::Nothing,
            None => Received::Closed,
        }
    }
}

impl Drop for End {
    /// Destroys the unread messages at this end. The other end can still read its own.
    fn drop(&mut self) {
        let mut queues = self.queues.borrow_mut();
        queues.is_open[self.side] = false;
        let unread = std::mem::take(&mut queues.unread[self.side]);
        // Drop the lock first, because other ends may be among the descriptors.
        drop(queues);
        drop(unread);
    }
}
