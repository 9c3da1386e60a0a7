//! The gate and a response: encodes it, gathers it with others (rule W10), and sends it.
//!
//! Invariant: `100 Continue` never comes behind the final response (rule W7). While the body of a
//! response is pending, a client that is gone ends the wait (rule S22). A panic of the body ends
//! the response like any other failure (rule S17). Does not decide whether the connection goes on.

use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll, ready};

use futures_lite::FutureExt;
use futures_lite::future::yield_now;
use log::Level;

use super::{CONTINUE, Gate};
use crate::observe::ExchangeEnding;
use crate::stop::activity::{Doing, Wait};
use crate::wire::fault::BodyError;
use crate::wire::response::{Filled, Reply};
use crate::wire::shared::End;

/// A response that could not be sent whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The client may have seen a part of the response, so no other response can follow.
    Seen,
    /// No byte of the response was sent, so another response can take its place.
    Unseen,
    /// The body of the response was silent in the drain for too long (rule S27). In all else, this
    /// is like `Seen`.
    Silent,
}

impl Gate {
    /// Encodes a response and sends what does not fit into the buffer. [`Gate::flush`] sends the
    /// rest, together with the next response (rule W10).
    ///
    /// # Errors
    ///
    /// Returns [`Broken`] if the response's body fails, or if the client is gone, even while the
    /// body is pending (rule S22).
    pub(crate) async fn respond(&mut self, reply: &mut Reply) -> Result<(), Broken> {
        self.seat.activity.go_on(Doing::Response);
        self.note(|open| open.responds(reply.status()));
        self.forget_wait_for_body();
        if self.is_wrapped {
            // A wrapped stream may hold back bytes until a flush, so the body goes through the
            // buffer.
            reply.gather();
        }
        // If the body ends with the connection, an early end would make a part of the response look
        // whole.
        let is_open_ended = reply.ends_with_connection();
        self.if_dropped = if is_open_ended { End::Reset } else { End::Close };
        self.output.begin_message();
        // A panic of the response's body ends the response like any other failure (rule S17).
        let sent = AssertUnwindSafe(self.send(reply)).catch_unwind().await;
        sent.unwrap_or_else(|_| {
            self.note(|open| open.ends_as(ExchangeEnding::Panicked));
            Err(self.take_back())
        })?;
        if is_open_ended {
            self.flush().await?;
            self.if_dropped = End::Close;
        }
        Ok(())
    }

    async fn send(&mut self, reply: &mut Reply) -> Result<(), Broken> {
        loop {
            if self.output.len() >= FULL {
                self.flush().await?;
                self.give_way().await?;
            }
            match self.fill(reply).await? {
                Filled::More => {}
                Filled::Whole => return Ok(()),
                Filled::Slice => {
                    if self.flushed(|gate, cx| gate.poll_send_slice(cx, reply)).await? {
                        return Ok(());
                    }
                    self.give_way().await?;
                }
            }
        }
    }

    /// Gives other tasks their turn, because a fast client may never make this task wait.
    async fn give_way(&mut self) -> Result<(), Broken> {
        yield_now().await;
        if self.answer_sweep() { Err(Broken::Seen) } else { Ok(()) }
    }

    /// Adds some of the response to the output, and tends the connection while the response's body
    /// is pending.
    async fn fill(&mut self, reply: &mut Reply) -> Result<Filled, Broken> {
        poll_fn(|cx| {
            let filled = reply.poll_fill(cx, &mut self.output);
            // The body of the response is made of the request's body, which the client sends only
            // after `100 Continue`. `100 Continue` has to come before the final response (rule W7).
            if self.takes_continue() {
                self.output.put_before_message(CONTINUE);
            }
            match filled {
                Poll::Ready(Ok(filled)) => Poll::Ready(Ok(filled)),
                Poll::Ready(Err(error)) => {
                    // A response that is made of the request's body fails with that body. A
                    // client's fault has a lower level, so that clients cannot fill the log.
                    let is_clients = self.has_body() && self.wire.lock().incoming.is_cut();
                    let level = if is_clients { Level::Debug } else { Level::Warn };
                    log::log!(level, "{}: the response's body: {error}", self.label());
                    // Most clients that end within their body have closed the connection.
                    if BodyError::find(&error) == Some(BodyError::CUT_SHORT) {
                        self.note_gone();
                    }
                    Poll::Ready(Err(self.take_back()))
                }
                Poll::Pending if self.answer_sweep() => Poll::Ready(Err(Broken::Seen)),
                Poll::Pending if self.is_silent() => Poll::Ready(Err(Broken::Silent)),
                Poll::Pending => self.poll_tend(cx).map(|()| Err(Broken::Seen)),
            }
        })
        .await
    }

    /// Returns `true` if a stream has been silent in the drain for too long (rule S27). No other
    /// limit holds in these stages.
    pub(super) fn is_silent(&self) -> bool {
        self.seat.is_expired() && self.seat.stage().is_stream()
    }

    /// Removes the response under way from the output, if that is still possible.
    fn take_back(&mut self) -> Broken {
        if self.output.take_back_message() { Broken::Unseen } else { Broken::Seen }
    }

    /// Ends a wait for the body, because its reader may be gone: a handler may have stopped
    /// waiting, and the gate itself discards only what has arrived. Without this, the client would
    /// have to send a body that nobody reads. A reader that still waits is woken, and begins a new
    /// wait.
    fn forget_wait_for_body(&self) {
        if self.seat.activity.look().waits_for(Wait::Body) {
            self.seat.activity.got(Wait::Body);
            self.wire.wake();
        }
    }

    /// Sends everything, unless the client is gone (rule S22).
    pub(crate) async fn flush(&mut self) -> Result<(), Broken> {
        self.flushed(Self::poll_flush).await
    }

    /// Waits until `send` has sent something, unless the client is gone (rule S22) or takes
    /// nothing.
    async fn flushed<T>(
        &mut self,
        mut send: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Result<T, Broken> {
        poll_fn(|cx| match send(self, cx) {
            Poll::Pending if self.seat.is_expired() || self.answer_sweep() => {
                self.note_gone();
                Poll::Ready(Err(Broken::Seen))
            }
            sent => sent.map_err(|_| Broken::Seen),
        })
        .await
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.poll_send(cx, &[]).map_ok(drop)
    }

    /// Sends the whole output, and behind it a part of the body from where the body lies in memory.
    /// Returns `true` if the body is then complete.
    fn poll_send_slice(
        &mut self,
        cx: &mut Context<'_>,
        reply: &mut Reply,
    ) -> Poll<io::Result<bool>> {
        let slice = ready!(reply.poll_slice(cx))?;
        let n = ready!(self.poll_send(cx, slice))?;
        Poll::Ready(Ok(reply.sent(n)))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, tail: &[u8]) -> Poll<io::Result<usize>> {
        let sent = match &mut self.wire.lock().transport {
            Some(transport) => self.output.poll_send(transport, &self.seat, cx, tail),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        if matches!(sent, Poll::Ready(Err(_))) {
            self.note_gone();
        }
        self.note_sent();
        sent
    }
}

/// The number of bytes that the gate gathers before it sends them.
const FULL: usize = 64 * 1024;
