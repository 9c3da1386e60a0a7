//! Streams that do not behave like a socket: [`ReadBy`], [`pending_at_first`].
//!
//! Only the reads differ. Writes, flushes and the close are those of the connection beneath.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite};
use smol_graceful::Connection;

/// A connection whose reads are a function of the test.
pub struct ReadBy<F> {
    stream: Connection,
    read: F,
}

impl<F> ReadBy<F>
where
    F: FnMut(Pin<&mut Connection>, &mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
{
    pub fn new(stream: Connection, read: F) -> Self {
        Self { stream, read }
    }
}

/// Returns a connection that is pending before each read, although it may hold data, and then gives
/// at most `most` bytes.
pub fn pending_at_first(stream: Connection, most: usize) -> Connection {
    let mut is_pending = false;
    Connection::new(ReadBy::new(stream, move |stream, cx, buf| {
        is_pending = !is_pending;
        if is_pending {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = buf.len().min(most);
        stream.poll_read(cx, &mut buf[..most])
    }))
}

impl<F> AsyncRead for ReadBy<F>
where
    F: FnMut(Pin<&mut Connection>, &mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>> + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, read } = &mut *self;
        read(Pin::new(stream), cx, buf)
    }
}

impl<F: Unpin> AsyncWrite for ReadBy<F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
