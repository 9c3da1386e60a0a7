//! [`Wire`]: the part of a connection that its task shares with the reader of the request's body,
//! or with the owner of an upgraded stream.
//!
//! Invariant: only [`Wire::lock`] and [`Wire::lock_soon`] lock this part. A waker, and the drop of
//! a program's stream, may run any code. So this file drops no stream under the lock, and wakes no
//! task under the lock apart from the connection's own while that task is polled. A body that is
//! kept beyond its exchange finds an error, never the next message.

use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::task::{Context, Poll, Waker, ready};
use std::thread;
use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::fault::{BodyError, Lost};
use super::head::{self, EMPTY_LINES};
use super::incoming::{Incoming, Rest};
use crate::lock::lock;
use crate::stop::activity::{Doing, Wait};
use crate::stop::seat::{Describe, Seat};
use crate::stream::transport::{LAST_READS, Transport};

/// The lock around the shared part.
pub(super) struct Wire(Mutex<Shared>);

/// The shared part itself.
pub(super) struct Shared {
    /// `None` once the connection has ended, or has gone on without this gate.
    pub(super) transport: Option<Transport>,
    pub(super) incoming: Incoming,
    /// The number that a reader of the body has to know. Each message has a new number, and so has
    /// a body that was taken away from its reader.
    pub(super) body_key: u32,
    /// The task that waits for more of the body, or of an upgraded stream that is not a socket.
    pub(super) reader: Option<Waker>,
    /// The task that waits to write to an upgraded stream that is not a socket.
    pub(super) writer: Option<Waker>,
    /// Counts the reads of the body by the request's owner, successful or not.
    pub(super) reads: u32,
    /// Bytes of the body that were read without a pause.
    streak: usize,
    /// The number of bytes of the other protocol, after an upgrade.
    pub(super) upgraded: Traffic,
    /// Set if the owner of an upgraded stream has read to its end, or to an error.
    pub(super) is_read_to_end: bool,
    pub(super) seat: Arc<Seat>,
}

/// Counts bytes.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// The end of a connection that is still in its gate.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// The stream is closed.
    Close,
    /// The stream is closed with a reset, so that the client cannot take a part of a response for
    /// the whole.
    Reset,
    /// The stream belongs to another task, which finds that both directions have ended.
    ShutDown,
}

/// The result of discarding some of a body.
pub(super) enum Discarded {
    /// The whole body has been read or discarded.
    Whole,
    /// The connection's turn is over, and its task has been woken for the next one.
    Part,
    /// The body is longer than allowed, malformed or cut short.
    Bad,
}

impl Wire {
    pub(super) fn new(transport: Transport, incoming: Incoming, seat: Arc<Seat>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Shared {
            transport: Some(transport),
            incoming,
            body_key: 0,
            reader: None,
            writer: None,
            reads: 0,
            streak: 0,
            upgraded: Traffic::default(),
            is_read_to_end: false,
            seat,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.0)
    }

    /// Locks like [`Wire::lock`], but gives up after [`SOON`], for reports, which come from other
    /// tasks. The server polls a stream of the program under this lock, and the stream may block
    /// its thread, or may stop the server.
    fn lock_soon(&self) -> Option<MutexGuard<'_, Shared>> {
        let began = Instant::now();
        loop {
            match self.0.try_lock() {
                Ok(shared) => return Some(shared),
                Err(TryLockError::Poisoned(shared)) => return Some(shared.into_inner()),
                Err(TryLockError::WouldBlock) if began.elapsed() >= SOON => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(SOON / 100),
            }
        }
    }

    /// Returns method and target of the message under way, for the connection's own task, which
    /// has to know them.
    pub(super) fn request_line(&self) -> (String, String) {
        head::request_line(self.lock().incoming.message()).unwrap_or_default()
    }

    /// Wakes the tasks that wait for the body, or for an upgraded stream.
    pub(super) fn wake(&self) {
        let waiting = self.lock().take_waiting();
        waiting.into_iter().flatten().for_each(Waker::wake);
    }

    /// Takes the rest of the body away from the request's owner, whose reads fail from now on.
    /// Returns `false` if the body has been read whole.
    pub(super) fn revoke_body(&self) -> bool {
        let mut shared = self.lock();
        if shared.incoming.rest() == Rest::Nothing {
            return false;
        }
        shared.change_body_key();
        drop(shared);
        self.wake();
        true
    }

    /// Reads the body for the request's owner. `key` is the [`Shared::body_key`] that the owner got
    /// with the request.
    ///
    /// # Errors
    ///
    /// Returns `UnexpectedEof` if the body does not belong to the owner any more, because this is
    /// not a clean end (rule W6), and every error of [`Incoming::poll_body`].
    pub(super) fn poll_read(
        &self,
        key: u32,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.lock();
        if shared.body_key != key {
            return Poll::Ready(Err(over()));
        }
        shared.reads = shared.reads.wrapping_add(1);
        if shared.ends_turn() {
            drop(shared);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let was_asked = shared.incoming.continue_is_asked();
        let read = shared.poll_body(cx, buf);
        if !was_asked && shared.incoming.continue_is_asked() {
            let seat = shared.seat.clone();
            drop(shared);
            // The connection's task sends `100 Continue`, and the reader may be another task.
            seat.wake();
        }
        read
    }

    /// Ends the connection, unless it has ended or was taken out of its gate.
    pub(super) fn end(&self, how: End) {
        let mut shared = self.lock();
        let mut closed = shared.transport.take();
        match (how, &closed) {
            (End::ShutDown, Some(transport)) if transport.has_socket() => {
                transport.shut(Shutdown::Both);
                shared.transport = closed.take();
            }
            (End::Reset, Some(transport)) => transport.reset_on_close(),
            _ => {}
        }
        // A stream that is not a socket does not tell its readers and writers that it has ended.
        let waiting = shared.take_waiting();
        drop(shared);
        // A stream of the program may wake a task when it is dropped.
        drop(closed);
        waiting.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Describe for Wire {
    /// Returns `None` if a stream of the program keeps the lock, because a deadline does not wait
    /// for a thread that is blocked (rule S15). The caller has the lock of the latch, for which the
    /// stream may wait.
    fn describe(&self) -> Option<(String, String)> {
        head::request_line(self.lock_soon()?.incoming.message())
    }
}

/// The time for which a report waits for the name of a request. A thread that is not blocked has
/// the lock for a moment only.
const SOON: Duration = Duration::from_millis(20);

impl Shared {
    /// Takes the wakers of the tasks that wait for the body, or for an upgraded stream.
    fn take_waiting(&mut self) -> [Option<Waker>; 2] {
        [self.reader.take(), self.writer.take()]
    }

    /// Takes the right to read a body away from all that have it.
    pub(super) fn change_body_key(&mut self) {
        self.body_key = self.body_key.wrapping_add(1);
    }

    /// Returns `true` if the owner of an upgraded stream can read nothing more from it. A
    /// connection that both sides have closed looks gone, although the client's last bytes may be
    /// unread.
    pub(super) fn has_nothing_to_read(&self) -> bool {
        let Some(transport) = &self.transport else { return true };
        let is_empty = transport.waiting() == 0 && self.incoming.unread().is_empty();
        self.is_read_to_end || transport.is_reset() || (is_empty && !transport.is_wrapped())
    }

    /// Reads and drops some of the body, up to `most` bytes and as much as a turn allows. Subtracts
    /// the dropped bytes from `most`.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, most: &mut u64) -> Poll<Discarded> {
        let mut scrap = Buffer::new();
        while self.incoming.rest() != Rest::Nothing {
            if self.ends_turn() {
                cx.waker().wake_by_ref();
                return Poll::Ready(Discarded::Part);
            }
            match ready!(self.poll_body(cx, &mut scrap)) {
                Ok(n) if n > 0 && n as u64 <= *most => *most -= n as u64,
                _ => return Poll::Ready(Discarded::Bad),
            }
        }
        Poll::Ready(Discarded::Whole)
    }

    /// Discards like [`Shared::poll_discard`], but is pending only if no more has arrived. Polls a
    /// wrapped stream a few more times, like [`Transport::poll_last_read`].
    pub(super) fn poll_discard_arrived(
        &mut self,
        cx: &mut Context<'_>,
        most: &mut u64,
    ) -> Poll<Discarded> {
        let is_wrapped = self.transport.as_ref().is_some_and(Transport::is_wrapped);
        let mut looks = 1;
        loop {
            let before = *most;
            match self.poll_discard(cx, most) {
                Poll::Pending if is_wrapped && *most < before => looks = 1,
                Poll::Pending if is_wrapped && looks < LAST_READS => looks += 1,
                discarded => return discarded,
            }
        }
    }

    /// Returns `true` if much of the body was read without a pause, and begins a new turn then. A
    /// client that is faster than the reader must not keep others from their turn.
    fn ends_turn(&mut self) -> bool {
        let is_over = self.streak >= TURN;
        if is_over {
            self.streak = 0;
        }
        is_over
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(transport) = &mut self.transport else { return Poll::Ready(Err(over())) };
        let before = transport.metered_received();
        let read = self.incoming.poll_body(|room| transport.poll_read(cx, room), buf);
        let n = if let Poll::Ready(Ok(n)) = read { n } else { 0 };
        self.streak = if n > 0 { self.streak + n } else { 0 };
        // Bytes may have come under a wrapper that do not make a byte of content yet.
        let came = match (before, transport.metered_received()) {
            (Some(before), Some(after)) => after - before,
            _ => n as u64,
        };
        if came > 0 {
            self.seat.receive(came);
        }
        let activity = &self.seat.activity;
        // While the client takes no output, no byte of the body counts as progress.
        let is_stuck = activity.look().waits_for(Wait::Room);
        match &read {
            Poll::Pending => {
                self.reader = Some(cx.waker().clone());
                activity.wait(Wait::Body, is_stuck);
                if came > 0 && !is_stuck {
                    activity.progress();
                }
            }
            // A read of the body is progress, whether the bytes are kept or discarded.
            Poll::Ready(_) if activity.look().waits_for(Wait::Body) => activity.got(Wait::Body),
            Poll::Ready(_) if activity.look().doing() == Doing::Discarding && !is_stuck => {
                activity.progress();
            }
            Poll::Ready(_) => {}
        }
        read
    }

    /// Ends a wait for the body that has been too long. From then on every read of the body fails,
    /// unless bytes are there that the reader has not taken, because then the client is not at
    /// fault. The caller wakes the reader.
    pub(super) fn end_wait_for_body(&mut self, cx: &mut Context<'_>) {
        let Self { transport, incoming, seat, .. } = self;
        // Only bytes that have not been read count. Bytes in the buffer did not help the reader,
        // because they may be the beginning of a chunk's size line.
        let has_more = match transport.as_mut() {
            // Only a read shows what this stream holds. The waker of this read replaces the
            // reader's.
            Some(transport) if !transport.has_socket() => {
                let read = incoming.fill(|room| transport.poll_last_read(cx, room));
                matches!(read, Poll::Ready(Ok(1..)))
            }
            transport => transport.is_some_and(|transport| transport.waiting() > 0),
        };
        if has_more {
            seat.activity.got(Wait::Body);
        } else {
            incoming.cut_body(Lost::Wrong(BodyError::TOO_SLOW));
            if let Some(transport) = transport {
                transport.shut(Shutdown::Read);
            }
        }
    }

    /// Finds out how many bytes have arrived behind the message, and reads them only if nothing
    /// else shows whether they are more than empty lines. Returns 0 for the empty lines that are
    /// tolerated, and at least 1 if a part of a request has arrived. The caller must have taken the
    /// message whole.
    pub(super) fn read_ahead(&mut self) -> u64 {
        let Self { transport: Some(transport), incoming, .. } = self else { return 0 };
        let cx = &mut Context::from_waker(Waker::noop());
        // Only a read shows what a wrapped stream holds, and whether a few bytes in a plain socket
        // are empty lines.
        let is_unclear = |transport: &Transport| {
            let few = 1..=EMPTY_LINES.len() as u64;
            transport.is_wrapped() || few.contains(&transport.waiting())
        };
        while incoming.unread().len() < READ_AHEAD && is_unclear(transport) {
            let read = incoming.fill(|room| transport.poll_last_read(cx, room));
            if !matches!(read, Poll::Ready(Ok(1..))) {
                break;
            }
        }
        let begun = u64::from(transport.has_begun());
        match transport.waiting() {
            0 if !incoming.has_request() => begun,
            in_socket => in_socket + incoming.unread().len() as u64 + begun,
        }
    }
}

/// The number of bytes of a body that are read in one turn.
const TURN: usize = 64 * 1024;

/// The number of bytes that the server reads ahead to find out what has arrived, for a stream that
/// shows this only by a read. Requests beyond these bytes get no answer when the server stops.
const READ_AHEAD: usize = 1024 * 1024;

/// Makes the error of a body that is read after its exchange is over.
fn over() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the response has ended this request")
}

#[cfg(test)]
mod tests;
