//! [`Outgoing`]: the bytes that are to be sent, gathered so that few writes are needed (rule W10).
//!
//! Invariant: bytes that were sent never change, and storage is cleared only once, when it is made.
//! Sends when asked and waits for nothing.

use std::io;
use std::task::{Context, Poll, ready};

use super::buffer::Buffer;
use crate::stop::activity::{Activity, Doing, Wait};
use crate::stop::seat::Seat;
use crate::stream::transport::Transport;

/// A connection's write buffer.
#[derive(Default)]
pub(super) struct Outgoing {
    /// The storage. The bytes that are to be sent end at `end`.
    bytes: Buffer,
    /// The number of bytes of the storage that have been sent.
    sent: usize,
    end: usize,
    /// The beginning of the last message, and `None` once the client may have seen some of that
    /// message.
    unseen: Option<usize>,
    /// The number of bytes that have been sent in all, with those of tails.
    total: u64,
    /// The last message among all bytes.
    pub(super) message: Extent,
    /// The number of bytes that the client's kernel had yet to take at the last look.
    undelivered: u64,
}

/// The position of a message among all bytes of a connection.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Extent {
    pub(super) begin: u64,
    /// The end of the message's head. Equal to `begin` until the head has been added.
    pub(super) head_end: u64,
}

impl Outgoing {
    /// The least room, in bytes, that a caller gets. async-h1's encoder panics below 6 bytes.
    const ROOM: usize = 256;

    pub(super) fn is_empty(&self) -> bool {
        self.end == 0
    }

    pub(super) fn len(&self) -> usize {
        self.end
    }

    /// Returns room behind the bytes that are to be sent. The caller writes to it, and calls
    /// [`Outgoing::filled`].
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

    /// Adds `bytes`.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        if self.bytes.len() - self.end < bytes.len() {
            self.room();
            let size = (self.bytes.len()).max(self.end + bytes.len());
            self.bytes.resize(size, 0);
        }
        self.bytes[self.end..][..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Returns the bytes that were added behind `from`.
    #[cfg(test)]
    pub(super) fn since(&self, from: usize) -> &[u8] {
        &self.bytes[from..self.end]
    }

    /// Begins another message behind what is to be sent.
    pub(super) fn begin_message(&mut self) {
        self.unseen = Some(self.end);
        let begin = self.position();
        self.message = Extent { begin, head_end: begin };
    }

    /// Ends the head of the last message behind what is to be sent.
    pub(super) fn end_head(&mut self) {
        self.message.head_end = self.position();
    }

    /// Returns how many bytes have been sent in all.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Returns how many bytes will have been sent in all once the buffer is empty.
    pub(super) fn position(&self) -> u64 {
        self.total + (self.end - self.sent) as u64
    }

    /// Puts `bytes` in front of the last message, unless its client may have seen some of it.
    pub(super) fn put_before_message(&mut self, bytes: &[u8]) {
        if let Some(begin) = self.unseen {
            self.replace(begin..begin, bytes);
            let Extent { begin, head_end } = &mut self.message;
            (*begin, *head_end) = (*begin + bytes.len() as u64, *head_end + bytes.len() as u64);
        }
    }

    /// Removes the last message. Returns `false` if its client may have seen some of it.
    pub(super) fn take_back_message(&mut self) -> bool {
        let unseen = self.unseen.take();
        self.end = unseen.unwrap_or(self.end);
        unseen.is_some()
    }

    /// Puts `new` in the place of `old`, which has not been sent.
    pub(super) fn replace(&mut self, old: std::ops::Range<usize>, new: &[u8]) {
        debug_assert!(self.sent <= old.start && old.end <= self.end);
        self.bytes.truncate(self.end);
        self.bytes.splice(old, new.iter().copied());
        self.end = self.bytes.len();
    }

    /// Sends the whole buffer, and behind it as much of `tail` as the last write takes. Notes in
    /// `seat` what the client takes. Returns how many bytes of `tail` were sent, which is 0 only if
    /// `tail` is empty.
    pub(super) fn poll_send(
        &mut self,
        transport: &mut Transport,
        seat: &Seat,
        cx: &mut Context<'_>,
        tail: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unseen = None;
        let activity = &seat.activity;
        let before = transport.metered_sent();
        let sent = self.poll_write(transport, activity, cx, tail);
        if sent.is_ready() {
            // The wrapper may have sent what it had held back, without a further write.
            activity.got(Wait::Room);
            return sent;
        }
        // Progress is what the socket takes, including what a wrapper has held back, and what the
        // client's kernel takes from the socket. The server's kernel signals room only when a good
        // part of its buffer is free, so the server looks at the socket before the client counts as
        // stalled.
        let has_waited = activity.look().waits_for(Wait::Room);
        let mut moves = transport.metered_sent() != before || !has_waited;
        if moves || seat.is_expired() {
            let undelivered = transport.undelivered();
            moves |= undelivered != self.undelivered;
            self.undelivered = undelivered;
        }
        activity.wait(Wait::Room, true);
        if moves {
            activity.progress();
        }
        sent
    }

    fn poll_write(
        &mut self,
        transport: &mut Transport,
        activity: &Activity,
        cx: &mut Context<'_>,
        tail: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut of_tail = 0;
        while self.sent < self.end || of_tail < tail.len().min(1) {
            let gathered = &self.bytes[self.sent..self.end];
            let n = ready!(transport.poll_write(cx, gathered, tail))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            of_tail = n.saturating_sub(gathered.len());
            self.total += n as u64;
            self.sent += n - of_tail;
            let look = activity.look();
            if look.waits_for(Wait::Room) {
                activity.got(Wait::Room);
            } else if look.doing() == Doing::Response && !look.waits_for(Wait::Body) {
                // A response that goes out is progress (rule S20), but gives the client no further
                // time for a body.
                activity.progress();
            }
        }
        ready!(transport.poll_flush(cx))?;
        (self.sent, self.end) = (0, 0);
        Poll::Ready(Ok(of_tail))
    }
}
