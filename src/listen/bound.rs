//! [`Bound`]: the origin of a listener's connections, which is a TCP or Unix socket, or a source of
//! the program's own.
//!
//! Invariant: a connection comes out with its peer, and an error of one connection is distinguished
//! from an error of the socket (rule S18). This file waits for nothing. By itself it closes only a
//! source that has panicked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use async_io::Async;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::listen::socket_file::SocketFile;
use crate::listen::source::{Accepted, Source};
use crate::stream::facts::Facts;
use crate::stream::socket::Socket;
use crate::stream::transport::{Peer, Transport};

/// The origin of connections.
pub(crate) enum Bound {
    /// A listening socket, TCP or Unix.
    Socket {
        socket: Async<socket2::Socket>,
        /// The file of a Unix socket. The order of the fields drops the file after the socket.
        file: Option<SocketFile>,
    },
    /// A stream of connections that the program provides.
    Source(Source),
    /// No connection comes any more. `failure` is the reason, unless the server has closed the
    /// listener itself.
    Closed { failure: Option<String> },
}

impl Bound {
    /// Returns the next connection, or wakes `cx` when there is one. Returns `None` after the
    /// close. Closes a source that has panicked.
    pub(crate) fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Accepted>>> {
        let socket = match self {
            Self::Socket { socket, .. } => socket,
            Self::Source(source) => match source.poll_accept(cx) {
                Ok(next) => return next.map(Some),
                Err(failure) => {
                    log::error!("{failure}");
                    *self = Self::Closed { failure: Some(failure) };
                    return Poll::Ready(None);
                }
            },
            Self::Closed { .. } => return Poll::Ready(None),
        };
        loop {
            match accept(socket.get_ref()) {
                // The kernel takes a descriptor before it looks at the queue, and so returns an
                // error even if the queue is empty.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        || !(is_of_one_connection(&error) || has_queue(socket)) =>
                {
                    ready!(socket.poll_readable(cx))?;
                }
                accepted => return Poll::Ready(Some(accepted)),
            }
        }
    }

    /// Closes without a look at the queue.
    pub(crate) fn close(&mut self) {
        if !matches!(self, Self::Closed { .. }) {
            *self = Self::Closed { failure: None };
        }
    }

    /// Returns `Ready` if a client is in the queue, and leaves the client there. Without a socket,
    /// always returns `Pending`, because only a socket has a queue.
    pub(crate) fn poll_queue(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Self::Socket { socket, .. } = self else { return Poll::Pending };
        // The first event may belong to a client that was accepted already.
        for _ in 0..2 {
            if has_queue(socket) {
                return Poll::Ready(());
            }
            let _ = ready!(socket.poll_readable(cx));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Returns the reason for the close, unless the server has closed the listener itself.
    pub(crate) fn failure(&self) -> Option<&str> {
        let Self::Closed { failure } = self else { return None };
        failure.as_deref()
    }

    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        let Self::Socket { socket, .. } = self else { return None };
        Some(socket.as_fd())
    }

    /// Returns the file of a Unix socket.
    pub(crate) fn file(&self) -> Option<&SocketFile> {
        let Self::Socket { file, .. } = self else { return None };
        file.as_ref()
    }
}

fn accept(socket: &socket2::Socket) -> io::Result<Accepted> {
    let (stream, peer) = socket.accept()?;
    let (socket, peer) = match peer.as_socket() {
        Some(addr) => (Socket::tcp(Async::new(stream.into())?), Peer::canonical(addr)),
        None => (Socket::unix(stream.into())?, Peer::Unix),
    };
    Ok(Accepted { transport: Transport::Plain(socket), peer, facts: Facts::default() })
}

/// Returns `true` if a client waits in the queue, or if the look fails.
fn has_queue(socket: &Async<socket2::Socket>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())) != Ok(0)
}

/// Returns `true` if an error of `accept` concerns one connection of the queue alone.
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

/// Returns `true` if an error of `accept` means that the socket does not listen any more. In that
/// case another process that shares the socket has shut it down, and the kernel has reset the
/// queue.
pub(crate) fn is_of_no_listener(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::INVAL)
}
