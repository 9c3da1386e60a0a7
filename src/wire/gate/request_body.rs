//! The gate and the body of a request: what is left of it, and discarding that.
//!
//! Invariant: discarding takes no byte behind the body (rule W1), and the body's owner cannot read
//! what is being discarded. The gate does not decide whether a rest is too long to discard.

use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;

use futures_lite::FutureExt;
use http_types::StatusCode;

use super::{Gate, Message};
use crate::observe::ExchangeEnding;
use crate::stop::activity::Doing;
use crate::stop::orders::Order;
use crate::wire::incoming::Rest;
use crate::wire::response::Reply;
use crate::wire::shared::Discarded;

impl Gate {
    /// Returns what is left of the message's body.
    pub(crate) fn rest(&self) -> Rest {
        if self.has_body() { self.wire.lock().incoming.rest() } else { Rest::Nothing }
    }

    /// Returns the status for a body that the client got wrong, and `None` for every other body.
    pub(crate) fn fault(&self) -> Option<StatusCode> {
        if self.has_body() { self.wire.lock().incoming.fault() } else { None }
    }

    /// Returns `true` if the request's owner still holds the body, so the response's body may be
    /// made of it.
    pub(crate) fn body_is_held(&self) -> bool {
        Arc::strong_count(&self.wire) > 1
    }

    /// Polls the body of `reply` for its first bytes. Returns `true` if this poll has read the
    /// request's body, because the response's body is then made of it.
    ///
    /// The result is also `true` if another task reads the request's body at the same moment.
    pub(crate) async fn begin_body(&mut self, reply: &mut Reply) -> bool {
        let before = self.wire.lock().reads;
        let begun = poll_fn(|cx| {
            reply.poll_begin(cx);
            Poll::Ready(())
        });
        if AssertUnwindSafe(begun).catch_unwind().await.is_err() {
            self.note(|open| open.ends_as(ExchangeEnding::Panicked));
            // `respond` ends the response (rule S17), and does not poll this body again, because a
            // stream may go on behind the item that has panicked, and would then look whole.
            reply.fail(io::Error::other("it has panicked"));
        }
        // The client may hold back its first byte until it gets `100 Continue`.
        self.say_continue();
        self.wire.lock().reads != before
    }

    /// Reads and drops the rest of the body. Returns `false` if the body is malformed or cut short,
    /// if the client is gone, or if the server wants idle connections to end before the body has
    /// ended.
    ///
    /// The server has sent the response by now, so nobody waits for the rest, and the drain may cut
    /// the discarding short. The response has promised that the connection goes on, so the body may
    /// be of any length.
    pub(crate) async fn discard_body(&mut self) -> bool {
        if !self.has_body() || !self.wire.revoke_body() {
            return true;
        }
        self.wire.lock().incoming.lift_bound();
        self.seat.activity.go_on(Doing::Discarding);
        let mut most = u64::MAX;
        poll_fn(|cx| {
            let discarded = self.wire.lock().poll_discard(cx, &mut most);
            match discarded {
                Poll::Ready(Discarded::Whole) => Poll::Ready(true),
                Poll::Ready(Discarded::Bad) => Poll::Ready(false),
                _ if self.seat.order() >= Order::LastLook => Poll::Ready(false),
                Poll::Ready(Discarded::Part) | Poll::Pending => self.poll_tend(cx).map(|()| false),
            }
        })
        .await
    }

    /// Reads and drops at most `most` bytes of the body that have already arrived.
    ///
    /// Returns `true` if the body is complete, or if its rest is not known to be malformed or
    /// longer than what is left of `most`.
    pub(crate) async fn discard_arrived(&mut self, mut most: u64) -> bool {
        if !self.rest().is_at_most(most) {
            return false;
        }
        if !self.wire.revoke_body() {
            return true;
        }
        poll_fn(|cx| {
            let discarded = self.wire.lock().poll_discard_arrived(cx, &mut most);
            match discarded {
                Poll::Ready(Discarded::Whole) => Poll::Ready(true),
                Poll::Ready(Discarded::Bad) => Poll::Ready(false),
                Poll::Ready(Discarded::Part) => Poll::Pending,
                Poll::Pending => Poll::Ready(self.rest().is_at_most(most)),
            }
        })
        .await
    }

    /// Finds out how many bytes have arrived behind the message, and reads them only if nothing
    /// else shows whether they are more than empty lines. Returns 0 for the empty lines that are
    /// tolerated, and at least 1 if a part of a request has arrived. The caller must have taken the
    /// message whole.
    pub(crate) fn read_ahead(&self) -> u64 {
        self.wire.lock().read_ahead()
    }

    /// Returns how many bytes of the message were taken from the connection, head included.
    pub(crate) fn taken(&self) -> u64 {
        self.wire.lock().incoming.taken()
    }

    /// Returns `true` if bytes of a next message have been read.
    pub(crate) fn has_input(&self) -> bool {
        self.wire.lock().incoming.has_request()
    }

    /// Returns `true` if the message has a body.
    pub(super) fn has_body(&self) -> bool {
        self.message == Message::WithBody
    }
}
