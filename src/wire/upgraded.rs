//! [`Upgraded`]: a connection that was handed over to another protocol (RFC 9110 section 7.8).
//!
//! Invariant: the first bytes read are those that came behind the request's head; and as long as
//! this lives, its connection's task does too, so that the drain waits for it (rule S11). Knows
//! nothing of the protocol.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_lite::{AsyncRead, AsyncWrite};
use smol::channel::Sender;

use super::{Wire, lock};
use crate::transport::Transport;

/// The raw stream, as its new owner reads and writes it.
pub(super) struct Upgraded {
    pub(super) wire: Arc<Mutex<Wire>>,
    /// Dropped with this: the connection's task waits for that.
    pub(super) _open: Sender<Infallible>,
}

impl Upgraded {
    fn with<T>(
        &self,
        work: impl FnOnce(&mut Transport) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let wire = &mut *lock(&self.wire);
        let Some(transport) = &mut wire.transport else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        };
        let done = work(transport);
        if done.is_ready() {
            // Progress (rule S20).
            wire.seat.activity.progress();
        }
        done
    }
}

impl Upgraded {
    /// What is no socket does not tell its owner when it is taken away: the gate does.
    fn wait(&self, slot: impl FnOnce(&mut Wire) -> &mut Option<Waker>, cx: &Context<'_>) {
        let wire = &mut *lock(&self.wire);
        if wire.transport.as_ref().is_some_and(|transport| !transport.has_socket()) {
            *slot(wire) = Some(cx.waker().clone());
        }
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let here = lock(&self.wire).incoming.take_unread(buf);
        if here > 0 {
            return Poll::Ready(Ok(here));
        }
        let read = self.with(|transport| transport.poll_read(cx, buf));
        match &read {
            Poll::Pending => self.wait(|wire| &mut wire.reader, cx),
            Poll::Ready(Ok(n)) if *n > 0 || buf.is_empty() => {}
            Poll::Ready(_) => lock(&self.wire).is_read_to_end = true,
        }
        read
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.with(|transport| transport.poll_write(cx, buf, &[]));
        if written.is_pending() {
            self.wait(|wire| &mut wire.writer, cx);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|transport| transport.poll_flush(cx))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|transport| transport.poll_half_close(cx))
    }
}
