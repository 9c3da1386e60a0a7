//! [`Outgoing`]: the bytes that are to be sent, gathered so that few writes are needed (rule W10).
//!
//! Invariant: what was sent is never changed, and storage is cleared only once, when it is made.
//! Sends when asked and waits for nothing.

use std::io;
use std::task::{Context, Poll, ready};

use super::buffer::Buffer;
use crate::transport::Transport;

/// A connection's write buffer.
#[derive(Default)]
pub(super) struct Outgoing {
    /// Storage; what is to be sent ends at `end`.
    bytes: Buffer,
    /// How much of it has been sent.
    sent: usize,
    end: usize,
}

impl Outgoing {
    /// The least room offered; async-h1's encoder panics below 6 bytes.
    const ROOM: usize = 256;

    pub(super) fn is_empty(&self) -> bool {
        self.end == 0
    }

    pub(super) fn len(&self) -> usize {
        self.end
    }

    /// Storage behind what is to be sent, for [`Outgoing::filled`].
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = Buffer::new();
        } else if self.bytes.len() - self.end < Self::ROOM {
            let size = (self.bytes.len() * 2).max(self.end + Self::ROOM);
            self.bytes.resize(size, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// Adds the first `n` bytes of the room.
    pub(super) fn filled(&mut self, n: usize) {
        self.end += n;
    }

    /// What was added behind `from`.
    pub(super) fn since(&self, from: usize) -> &[u8] {
        &self.bytes[from..self.end]
    }

    /// Puts `new` in the place of `old`, which has not been sent.
    pub(super) fn replace(&mut self, old: std::ops::Range<usize>, new: &[u8]) {
        debug_assert!(self.sent <= old.start && old.end <= self.end);
        self.bytes.truncate(self.end);
        self.bytes.splice(old, new.iter().copied());
        self.end = self.bytes.len();
    }

    /// Sends everything, and as much of `tail` behind it as goes with it: how much that was, 0 only
    /// without a tail or before everything has gone. `moved` is called after every write that got
    /// something out.
    pub(super) fn poll_send(
        &mut self,
        transport: &mut Transport,
        cx: &mut Context<'_>,
        tail: &[u8],
        moved: impl Fn(),
    ) -> Poll<io::Result<usize>> {
        let mut of_tail = 0;
        while self.sent < self.end || of_tail < tail.len().min(1) {
            let gathered = &self.bytes[self.sent..self.end];
            let n = ready!(transport.poll_write(cx, gathered, tail))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            of_tail = n.saturating_sub(gathered.len());
            self.sent += n - of_tail;
            moved();
        }
        ready!(transport.poll_flush(cx))?;
        (self.sent, self.end) = (0, 0);
        Poll::Ready(Ok(of_tail))
    }
}
