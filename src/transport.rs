//! [`Transport`]: the byte stream under a connection, and [`Peer`]: who is at its other end.
//!
//! One concrete type for TCP, Unix and anything else that reads and writes, so that the code of a
//! connection is compiled once. Knows what only a socket knows: readiness without reading, bytes
//! that wait in the kernel, a reset by the client, the half-close. Buffers nothing.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_io::Async;
use futures_lite::{AsyncRead, AsyncWrite};

/// A connection's byte stream.
///
/// # Examples
///
/// ```
/// use smol_graceful::Transport;
///
/// // Anything that is `AsyncRead + AsyncWrite` can be served: TLS, pipes in tests.
/// let transport = Transport::new(futures_lite::io::Cursor::new(Vec::new()));
/// ```
pub struct Transport(Kind);

enum Kind {
    Tcp(Async<TcpStream>),
    Unix(Async<UnixStream>),
    Other(Box<dyn Duplex>),
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Transport {
    /// Wraps any byte stream that is not a plain socket.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Kind::Other(Box::new(stream)))
    }

    /// Whether this is a plain socket.
    pub(crate) fn is_socket(&self) -> bool {
        !matches!(self.0, Kind::Other(_))
    }

    /// Whether a read would find something, found out without reading; what is no socket has to
    /// be read to know.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            Kind::Tcp(socket) => socket.poll_readable(cx),
            Kind::Unix(socket) => socket.poll_readable(cx),
            Kind::Other(_) => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Kind::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            Kind::Other(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Kind::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
            Kind::Other(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    /// Sends on what the stream itself may hold back (TLS does, a socket does not).
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tcp(_) | Kind::Unix(_) => Poll::Ready(Ok(())),
            Kind::Other(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Says that nothing more will be written (FIN); reading goes on.
    pub(crate) fn poll_half_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tcp(socket) => Poll::Ready(socket.get_ref().shutdown(Shutdown::Write)),
            Kind::Unix(socket) => Poll::Ready(socket.get_ref().shutdown(Shutdown::Write)),
            Kind::Other(stream) => Pin::new(stream).poll_close(cx),
        }
    }

    /// Ends reading: a reader that waits, in whichever task, finds the end of the stream.
    pub(crate) fn stop_reading(&self) {
        self.shut(Shutdown::Read);
    }

    /// Ends reading and writing: whoever waits for either, in whichever task, is told.
    pub(crate) fn shut_down(&self) {
        self.shut(Shutdown::Both);
    }

    fn shut(&self, half: Shutdown) {
        // A socket that is already gone has nothing to be shut.
        let _ = match &self.0 {
            Kind::Tcp(socket) => socket.get_ref().shutdown(half),
            Kind::Unix(socket) => socket.get_ref().shutdown(half),
            Kind::Other(_) => Ok(()),
        };
    }

    /// How many bytes wait in the kernel to be read; 0 where that cannot be known.
    pub(crate) fn waiting(&self) -> u64 {
        match &self.0 {
            Kind::Tcp(socket) => rustix::io::ioctl_fionread(socket.as_fd()).unwrap_or(0),
            Kind::Unix(socket) => rustix::io::ioctl_fionread(socket.as_fd()).unwrap_or(0),
            Kind::Other(_) => 0,
        }
    }

    /// Whether the client has reset the connection: not one that only half-closed (rule S22).
    pub(crate) fn is_reset(&self) -> bool {
        let error = match &self.0 {
            Kind::Tcp(socket) => socket.get_ref().take_error(),
            Kind::Unix(socket) => socket.get_ref().take_error(),
            Kind::Other(_) => Ok(None),
        };
        !matches!(error, Ok(None))
    }

    /// Makes the coming close a reset, so that the client cannot take what it got for the whole.
    pub(crate) fn reset_on_close(&self) {
        if let Kind::Tcp(socket) = &self.0 {
            // Without it the client sees an early end of the stream: worse, but no reason to fail.
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}

impl From<Async<TcpStream>> for Transport {
    fn from(socket: Async<TcpStream>) -> Self {
        Self(Kind::Tcp(socket))
    }
}

impl From<Async<UnixStream>> for Transport {
    fn from(socket: Async<UnixStream>) -> Self {
        Self(Kind::Unix(socket))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Tcp(_) => "Transport::Tcp",
            Kind::Unix(_) => "Transport::Unix",
            Kind::Other(_) => "Transport::Other",
        })
    }
}

/// Who is at the other end of a connection.
///
/// # Examples
///
/// ```
/// use smol_graceful::Peer;
///
/// assert_eq!(Peer::from(([127, 0, 0, 1], 80)).to_string(), "127.0.0.1:80");
/// assert_eq!(Peer::Unix.to_string(), "unix");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A TCP client.
    Ip(SocketAddr),
    /// A client of a Unix socket; such clients have no address.
    Unix,
    /// The other end of a stream that is no socket.
    Unknown,
}

impl<A: Into<SocketAddr>> From<A> for Peer {
    fn from(addr: A) -> Self {
        Self::Ip(addr.into())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix => f.write_str("unix"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}
