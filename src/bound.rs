//! [`Bound`]: what a listener takes its connections from: a TCP or Unix socket, or a source of the
//! program's own.
//!
//! Invariant: a connection comes out as what it is, with its peer; an error that concerns one
//! connection alone is told from one of the socket's (rule S18). Waits for nothing and never
//! closes.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_io::Async;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::TcpKeepalive;

use crate::address::Address;
use crate::socket::Socket;
use crate::socket_file::SocketFile;
use crate::source::Source;
use crate::threads;
use crate::transport::{Peer, Transport};

/// Where connections come from.
pub(crate) enum Bound {
    Tcp(Async<TcpListener>),
    Unix {
        socket: Async<UnixListener>,
        /// Dropped after the socket. `None` if there is no file.
        file: Option<SocketFile>,
    },
    /// Not a socket: connections that come from elsewhere.
    Other(Source),
}

impl Bound {
    /// Makes it of a socket that listens on `address`. `file` finds the file of a Unix socket.
    pub(crate) fn of(
        socket: socket2::Socket,
        address: &Address,
        keepalive: Option<Duration>,
        file: impl FnOnce(&Path) -> Option<SocketFile>,
    ) -> io::Result<Self> {
        threads::check()?;
        Ok(match address {
            Address::Unix(path) => {
                Self::Unix { socket: Async::new(UnixListener::from(socket))?, file: file(path) }
            }
            Address::Abstract(_) => {
                Self::Unix { socket: Async::new(UnixListener::from(socket))?, file: None }
            }
            _ => Self::Tcp(tcp(socket, keepalive)?),
        })
    }

    /// Returns the next connection, or wakes `cx` when there is one.
    pub(crate) fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Transport, Peer)>> {
        loop {
            let accepted = match self {
                Self::Tcp(socket) => socket.get_ref().accept().and_then(|(stream, addr)| {
                    Ok((Transport::Plain(Socket::tcp(Async::new(stream)?)), Peer::canonical(addr)))
                }),
                Self::Unix { socket, .. } => socket.get_ref().accept().and_then(|(stream, _)| {
                    Ok((Transport::Plain(Socket::unix(stream)?), Peer::Unix))
                }),
                Self::Other(source) => return source.poll_accept(cx),
            };
            match accepted {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.poll_readable(cx))?;
                }
                // The kernel takes a descriptor before it looks at the queue, and complains even if
                // the queue is empty.
                Err(error) if !is_of_one_connection(&error) && !self.has_queue() => {
                    ready!(self.poll_readable(cx))?;
                }
                accepted => return Poll::Ready(accepted),
            }
        }
    }

    /// Returns why no connection will come any more. Returns `None` for a socket, because a socket
    /// never fails for good.
    pub(crate) fn failure(&self) -> Option<&str> {
        match self {
            Self::Other(source) => source.failure(),
            Self::Tcp(_) | Self::Unix { .. } => None,
        }
    }

    /// Returns `true` if a client waits, or if that cannot be known.
    pub(crate) fn has_queue(&self) -> bool {
        let Some(socket) = self.socket() else { return true };
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())) != Ok(0)
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_readable(cx),
            Self::Unix { socket, .. } => socket.poll_readable(cx),
            Self::Other(_) => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(socket) => Some(socket.as_fd()),
            Self::Unix { socket, .. } => Some(socket.as_fd()),
            Self::Other(_) => None,
        }
    }
}

/// Whether an error of `accept` concerns only the connection that it took off the queue.
pub(crate) fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::PermissionDenied
    )
}

/// Returns `true` if an error of `accept` says that the socket does not listen any more. Another
/// process that has it, too, has shut it down, and the kernel has reset the queue.
pub(crate) fn is_of_no_listener(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error())
}

/// Prepares a listening TCP socket for use here. `keepalive` is the option of
/// [`ListenOptions::keepalive`](crate::ListenOptions::keepalive).
pub(crate) fn tcp(
    socket: socket2::Socket,
    keepalive: Option<Duration>,
) -> io::Result<Async<TcpListener>> {
    // Accepted sockets inherit these options. The server writes responses whole, so waiting for
    // more bytes would gain nothing.
    socket.set_tcp_nodelay(true)?;
    // It may be set on an inherited socket. The close of a connection would then block the worker,
    // or reset the connection.
    socket.set_linger(None)?;
    match keepalive.filter(|silence| !silence.is_zero()) {
        Some(silence) => socket.set_tcp_keepalive(&probes_after(silence))?,
        // The option may be set on an inherited socket.
        None => socket.set_keepalive(false)?,
    }
    Async::new(TcpListener::from(socket))
}

/// Returns the option for six probes, one every 10 s, of a client that has been silent for
/// `silence`.
fn probes_after(silence: Duration) -> TcpKeepalive {
    /// The longest time that Linux takes.
    const LONGEST: Duration = Duration::from_secs(32_767);
    let silence = silence.min(LONGEST);
    let seconds = silence.as_secs() + u64::from(silence.subsec_nanos() > 0);
    let probes = TcpKeepalive::new().with_time(Duration::from_secs(seconds));
    // The other systems use an interval and a number of their own.
    #[cfg(not(any(target_os = "openbsd", target_os = "haiku", target_os = "solaris")))]
    let probes = probes.with_interval(Duration::from_secs(10)).with_retries(6);
    probes
}
