//! [`Bound`]: what a listener takes its connections from: a TCP or Unix socket, or a source of the
//! program's own.
//!
//! Invariant: a connection comes out as what it is, with its peer; an error that concerns one
//! connection alone is told from one of the socket's (rule S18). Waits for nothing and never
//! closes.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, ready};

use async_io::Async;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::socket::Socket;
use crate::socket_file::SocketFile;
use crate::source::Source;
use crate::transport::{Peer, Transport};

/// Where connections come from.
pub(crate) enum Bound {
    /// A listening socket, TCP or Unix.
    Socket {
        socket: Async<socket2::Socket>,
        /// The file of a Unix socket. Dropped after the socket.
        file: Option<SocketFile>,
    },
    /// Not a socket: connections that come from elsewhere.
    Source(Source),
}

impl Bound {
    /// Returns the next connection, or wakes `cx` when there is one.
    pub(crate) fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Transport, Peer)>> {
        let socket = match self {
            Self::Socket { socket, .. } => socket,
            Self::Source(source) => return source.poll_accept(cx),
        };
        loop {
            match accept(socket.get_ref()) {
                // The kernel takes a descriptor before it looks at the queue, and complains even if
                // the queue is empty.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        || !(is_of_one_connection(&error) || has_queue(socket)) =>
                {
                    ready!(socket.poll_readable(cx))?;
                }
                accepted => return Poll::Ready(accepted),
            }
        }
    }

    /// Returns `Ready` if a client is in the queue, and leaves it there. Always returns `Pending`
    /// for a source, because a source has no queue to look at.
    pub(crate) fn poll_queue(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Self::Socket { socket, .. } = self else { return Poll::Pending };
        // The first event may be an old one that an accept has answered already.
        for _ in 0..2 {
            if has_queue(socket) {
                return Poll::Ready(());
            }
            let _ = ready!(socket.poll_readable(cx));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Returns why no connection will come any more. Returns `None` for a socket, because a socket
    /// never fails for good.
    pub(crate) fn failure(&self) -> Option<&str> {
        match self {
            Self::Source(source) => source.failure(),
            Self::Socket { .. } => None,
        }
    }

    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Socket { socket, .. } => Some(socket.as_fd()),
            Self::Source(_) => None,
        }
    }

    /// Returns the file of a Unix socket.
    pub(crate) fn file(&self) -> Option<&SocketFile> {
        match self {
            Self::Socket { file, .. } => file.as_ref(),
            Self::Source(_) => None,
        }
    }
}

fn accept(socket: &socket2::Socket) -> io::Result<(Transport, Peer)> {
    let (stream, peer) = socket.accept()?;
    Ok(match peer.as_socket() {
        Some(addr) => {
            let stream = Async::new(TcpStream::from(stream))?;
            (Socket::tcp(stream).into(), Peer::canonical(addr))
        }
        None => (Socket::unix(UnixStream::from(stream))?.into(), Peer::Unix),
    })
}

/// Returns `true` if a client waits, or if that cannot be known.
fn has_queue(socket: &Async<socket2::Socket>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())) != Ok(0)
}

/// Returns `true` if an error of `accept` concerns only the connection that it took off the queue.
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
    Errno::from_io_error(error) == Some(Errno::INVAL)
}
