//! [`Idle`]: a connection between two requests. [`Movable`]: one that another task or process can go
//! on with.
//!
//! Invariant: an idle connection owns no buffer (rule W12). Empty lines in front of a request are
//! not a request yet (RFC 9112 section 2.2), but they count as a part of its head, however they
//! were cut.

use std::io;
use std::task::{Context, Poll, ready};

use super::head::EMPTY_LINES;
use super::incoming::Incoming;
use crate::stream::transport::Transport;

/// A connection between two requests: its transport, and nothing else.
pub(crate) struct Idle {
    pub(crate) transport: Transport,
    /// The number of bytes of empty lines that have come.
    empty: usize,
}

impl Idle {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, empty: 0 }
    }

    /// Makes the connection idle again. `incoming` holds at most empty lines.
    pub(super) fn behind(incoming: &Incoming, transport: Transport) -> Self {
        Self { transport, empty: incoming.unread().len() }
    }

    /// Returns the connection with what was read of it.
    pub(crate) fn into_movable(self) -> Movable {
        Movable { transport: self.transport, ahead: EMPTY_LINES[..self.empty].to_vec() }
    }

    /// Reads the beginning of a request. Returns `None` at the end of the stream. With `is_last`,
    /// does not register for readiness, like [`Transport::poll_last_read`].
    pub(crate) fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        is_last: bool,
    ) -> Poll<io::Result<Option<Incoming>>> {
        let Self { transport, empty } = self;
        loop {
            let mut incoming = Incoming::behind(*empty);
            let n = ready!(incoming.fill(|room| {
                if is_last {
                    transport.poll_last_read(cx, room)
                } else {
                    transport.poll_read(cx, room)
                }
            }))?;
            if n == 0 {
                return Poll::Ready(Ok(None));
            }
            if incoming.has_request() {
                return Poll::Ready(Ok(Some(incoming)));
            }
            *empty = incoming.unread().len();
        }
    }
}

/// A connection with no exchange under way: its transport, and what was read of it and not answered.
pub(crate) struct Movable {
    pub(crate) transport: Transport,
    /// Empty lines, a part of a head, or requests that the client has sent ahead.
    pub(crate) ahead: Vec<u8>,
}

impl Movable {
    /// Returns the connection as one that waits for a request, and the beginning of a request if
    /// that was read.
    pub(crate) fn into_idle(self) -> (Idle, Option<Incoming>) {
        let Self { transport, ahead } = self;
        let incoming = Incoming::with(&ahead);
        if incoming.has_request() {
            (Idle::new(transport), Some(incoming))
        } else {
            (Idle::behind(&incoming, transport), None)
        }
    }
}
