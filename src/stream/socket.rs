//! [`Socket`]: the connected socket of a client, TCP or Unix.
//!
//! Both kinds have one type, because the standard library's `TcpStream` reads, writes and shuts
//! down any stream socket. Only this file knows which events async-io does not report. Invariant: a
//! query never waits, and never reads. Buffers nothing, and speaks no protocol.

use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_io::Async;
use futures_lite::{AsyncRead, AsyncWrite};
#[cfg(target_os = "linux")]
use nix::libc::TIOCOUTQ;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;
#[cfg(target_os = "linux")]
use rustix::ioctl::{Getter, Opcode, ioctl};
use socket2::SockRef;

/// The connected socket of a client.
pub(crate) struct Socket {
    stream: Async<TcpStream>,
    /// `false` for a Unix socket.
    is_tcp: bool,
}

impl Socket {
    /// Takes a TCP connection.
    pub(crate) fn tcp(stream: Async<TcpStream>) -> Self {
        Self { stream, is_tcp: true }
    }

    /// Takes the connection of a Unix socket, and makes it non-blocking.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says if async-io cannot watch the socket.
    pub(crate) fn unix(stream: UnixStream) -> io::Result<Self> {
        let stream = TcpStream::from(OwnedFd::from(stream));
        Ok(Self { stream: Async::new(stream)?, is_tcp: false })
    }

    /// Takes a connected socket, TCP or Unix.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says if async-io cannot watch the socket.
    pub(crate) fn of(socket: OwnedFd) -> io::Result<Self> {
        let is_tcp = SockRef::from(&socket).local_addr()?.as_socket().is_some();
        Ok(Self { stream: Async::new(TcpStream::from(socket))?, is_tcp })
    }

    /// Returns the address of the client, and `None` for a Unix socket.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection has ended already.
    pub(crate) fn peer_addr(&self) -> io::Result<Option<SocketAddr>> {
        if self.is_tcp { self.stream.get_ref().peer_addr().map(Some) } else { Ok(None) }
    }

    /// Returns the address of this machine to which the client has connected. Returns `None` for a
    /// Unix socket, or if the connection has ended already.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        if self.is_tcp { self.stream.get_ref().local_addr().ok() } else { None }
    }

    /// Takes the socket away from async-io, which does not look for its events any more.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(self.stream.into_inner()?.into())
    }

    /// Returns `Ready` if async-io has an event that no read has answered, and otherwise lets the
    /// next event wake `cx`.
    ///
    /// async-io does not report an event that has come while another thread was already waiting for
    /// events when this task asked. So a task that is woken has to look at the socket itself, by a
    /// read or by [`Socket::poll_readable`].
    pub(crate) fn poll_event(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.poll_readable(cx) {
            // Perhaps a read has answered this event already. Asking again clears such an event.
            Poll::Ready(Ok(())) => self.stream.poll_readable(cx),
            other => other,
        }
    }

    /// Returns `Ready` if a read would find data, the end or an error.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // This call only registers the waker, because the socket itself shows whether there is
        // something.
        let _ = self.poll_event(cx)?;
        if self.events(PollFlags::IN).is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut &self.stream).poll_read(cx, buf)
    }

    /// Reads like [`Socket::poll_read`], but registers for no event. If nothing is there, the
    /// caller closes the connection, or waits for an event in another way.
    pub(crate) fn poll_last_read(&self, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self.stream.get_ref().read(buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            read => Poll::Ready(read),
        }
    }

    /// Writes some of `buf`, and of `tail` behind it, in one system call.
    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        tail: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut stream = &self.stream;
        let stream = Pin::new(&mut stream);
        match (buf, tail) {
            (only, []) | ([], only) => stream.poll_write(cx, only),
            _ => stream.poll_write_vectored(cx, &[IoSlice::new(buf), IoSlice::new(tail)]),
        }
    }

    /// Ends one direction or both, and so wakes the tasks that wait for that direction.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection has ended already.
    pub(crate) fn shut(&self, how: Shutdown) -> io::Result<()> {
        self.stream.get_ref().shutdown(how)
    }

    /// Returns how many bytes wait in the kernel to be read, and 0 if the kernel does not say.
    pub(crate) fn waiting(&self) -> u64 {
        ioctl_fionread(self).unwrap_or(0)
    }

    /// Returns how many bytes the client's kernel has yet to take, apart from a FIN, and 0 if the
    /// kernel does not say. Always returns 0 for a Unix socket, because its client can read what
    /// was written even after the close.
    pub(crate) fn undelivered(&self) -> u64 {
        if self.is_tcp { unacknowledged(self.as_fd()).saturating_sub(1) } else { 0 }
    }

    /// Returns how far the client has left, and `None` if the client has not left.
    pub(crate) fn left(&self) -> Option<ClientLeft> {
        /// Set if the client's FIN has come. Other systems report a FIN only to a read.
        #[cfg(target_os = "linux")]
        const FIN: PollFlags = PollFlags::RDHUP;
        #[cfg(not(target_os = "linux"))]
        const FIN: PollFlags = PollFlags::empty();
        let events = self.events(FIN);
        if events.intersects(PollFlags::ERR | PollFlags::HUP) {
            Some(ClientLeft::Gone)
        } else if events.intersects(FIN) {
            Some(ClientLeft::HalfClosed)
        } else {
            None
        }
    }

    /// Returns `true` if the connection has failed, for example by a reset. A connection that both
    /// sides have closed has not failed.
    pub(crate) fn is_reset(&self) -> bool {
        self.events(PollFlags::empty()).contains(PollFlags::ERR)
    }

    /// Makes the coming close a reset, so that the client cannot take what it got for the whole.
    pub(crate) fn reset_on_close(&self) {
        if self.is_tcp {
            // If this fails, the client sees an early end of the stream, which is worse, but not a
            // reason to fail.
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Returns those of the events `of` that have happened, and errors and hang-ups. Returns no
    /// event if the kernel does not say.
    fn events(&self, of: PollFlags) -> PollFlags {
        let mut fds = [PollFd::new(self, of)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(_) => fds[0].revents(),
            Err(_) => PollFlags::empty(),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The extent to which a client has left its connection.
///
/// # Examples
///
/// ```
/// use smol_graceful::ClientLeft;
///
/// assert!(ClientLeft::HalfClosed < ClientLeft::Gone);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum ClientLeft {
    /// The client sends nothing more. Most such clients have closed the connection. Others have
    /// closed only their own side and still wait for the response, and TCP does not distinguish the
    /// two.
    HalfClosed = 1,
    /// The client does not read any more, because it has reset the connection, or because the
    /// connection has ended.
    Gone = 2,
}

impl ClientLeft {
    pub(crate) fn of(number: u8) -> Option<Self> {
        [Self::HalfClosed, Self::Gone].into_iter().find(|left| *left as u8 == number)
    }
}

/// Returns how many bytes of a TCP socket were written and not acknowledged, where a FIN counts as
/// one, and 0 if the kernel does not say.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "no crate offers this call")]
fn unacknowledged(socket: BorrowedFd<'_>) -> u64 {
    /// SIOCOUTQ has the number of TIOCOUTQ, which differs between architectures.
    const SIOCOUTQ: Opcode = TIOCOUTQ as Opcode;
    // SAFETY: for this request the kernel writes one `int` and does nothing else (tcp(7)).
    let count = unsafe { ioctl(socket, Getter::<SIOCOUTQ, std::ffi::c_int>::new()) };
    count.map_or(0, |count| u64::try_from(count).unwrap_or(0))
}

/// Returns 0, because the kernel does not say.
#[cfg(not(target_os = "linux"))]
fn unacknowledged(_: BorrowedFd<'_>) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    /// Returns a TCP and a Unix socket, each with its client.
    fn pairs() -> [(Socket, Box<dyn Write>); 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let tcp = Socket::tcp(Async::new(listener.accept().unwrap().0).unwrap());
        let (unix, other) = UnixStream::pair().unwrap();
        [(tcp, Box::new(client)), (Socket::unix(unix).unwrap(), Box::new(other))]
    }

    #[test]
    fn both_kinds_are_read_written_and_closed() {
        for (socket, mut client) in pairs() {
            let cx = &mut Context::from_waker(Waker::noop());
            assert!(socket.poll_last_read(&mut [0; 8]).is_pending());
            assert_eq!(socket.left(), None);
            client.write_all(b"hello").unwrap();
            assert_eq!(socket.waiting(), 5);
            let mut bytes = [0; 8];
            assert!(matches!(socket.poll_last_read(&mut bytes), Poll::Ready(Ok(5))));
            assert_eq!(&bytes[..5], b"hello");
            assert!(matches!(socket.poll_write(cx, b"a", b"bc"), Poll::Ready(Ok(3))));
            socket.shut(Shutdown::Write).unwrap();
            drop(client);
            assert!(socket.left().is_some());
        }
    }

    /// An event that a read has answered does not count any more, and the next event wakes the
    /// task.
    #[test]
    fn an_answered_event_is_not_reported_again() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        for (socket, mut client) in pairs() {
            let count = Arc::new(Count(AtomicUsize::new(0)));
            let waker = Waker::from(count.clone());
            let cx = &mut Context::from_waker(&waker);
            assert!(socket.poll_event(cx).is_pending());
            client.write_all(b"x").unwrap();
            while count.0.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert!(matches!(socket.poll_last_read(&mut [0; 8]), Poll::Ready(Ok(1))));
            // async-io still has the event, and the read has answered it.
            assert!(socket.poll_event(cx).is_pending());
            assert!(socket.poll_readable(cx).is_pending());
        }
    }
}
