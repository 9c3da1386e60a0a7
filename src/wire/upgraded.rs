//! [`Upgraded`]: a connection that was handed over to another protocol (RFC 9110 section 7.8).
//!
//! Invariant: the owner first reads the bytes that came behind the request's head. While an
//! `Upgraded` lives, its connection's task goes on, so that the drain waits for the stream (rule
//! S11). Knows nothing of the protocol.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_lite::{AsyncRead, AsyncWrite};
use smol::channel::Sender;

use super::shared::{Shared, Wire};
use crate::stream::transport::Transport;

/// The raw stream, as its new owner reads and writes it.
pub(super) struct Upgraded {
    pub(super) wire: Arc<Wire>,
    /// Dropped with the stream, and the connection's task waits for this drop.
    pub(super) _open: Sender<Infallible>,
}

impl Upgraded {
    /// Works on the stream. If the work has to wait, keeps the task's waker in `slot`, because a
    /// stream that is not a socket does not tell its owner when it is taken away.
    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        slot: fn(&mut Shared) -> &mut Option<Waker>,
        work: impl FnOnce(&mut Transport, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let shared = &mut *self.wire.lock();
        let Some(transport) = &mut shared.transport else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        };
        let has_socket = transport.has_socket();
        let done = work(transport, cx);
        if done.is_ready() {
            // A byte that moves is progress (rule S20).
            shared.seat.activity.progress();
        } else if !has_socket {
            *slot(shared) = Some(cx.waker().clone());
        }
        done
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let here = self.wire.lock().incoming.take_unread(buf);
        if here > 0 {
            return Poll::Ready(Ok(here));
        }
        let read = self.poll(
            cx,
            |shared| &mut shared.reader,
            |transport, cx| transport.poll_read(cx, buf),
        );
        match read {
            Poll::Ready(Ok(n @ 1..)) => self.wire.lock().upgraded.received += n as u64,
            Poll::Ready(_) if !buf.is_empty() => self.wire.lock().is_read_to_end = true,
            _ => {}
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
        let written = self.poll(
            cx,
            |shared| &mut shared.writer,
            |transport, cx| transport.poll_write(cx, buf, &[]),
        );
        if let Poll::Ready(Ok(n)) = written {
            self.wire.lock().upgraded.sent += n as u64;
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, |shared| &mut shared.writer, Transport::poll_flush)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, |shared| &mut shared.writer, Transport::poll_half_close)
    }
}
