//! [`Transport`]: the byte stream under a connection, and [`Peer`]: who is at its other end.
//!
//! One concrete type for TCP, Unix and anything else that reads and writes, so that the code of a
//! connection is compiled once. Knows what only a socket knows: readiness without reading, bytes
//! that wait in the kernel or were not taken by the client's, a reset, the half-close. Buffers
//! nothing.

use std::fmt;
use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_io::Async;
use futures_lite::{AsyncRead, AsyncWrite};
use http_types::Request;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::meter::{Meter, Position};

/// A connection's byte stream.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(Async<TcpStream>),
    Unix(Async<UnixStream>),
    /// Something that reads and writes, perhaps on a socket: TLS, a pipe.
    Wrapped(Box<Wrapped>),
}

/// A stream that is not a plain socket, and the socket under it, if there is one.
pub(crate) struct Wrapped {
    stream: Box<dyn Duplex>,
    socket: Option<Socket>,
    /// `None` if the server cannot count the bytes under the stream.
    meter: Option<Arc<Meter>>,
    /// The number of bytes that had been received when the stream last returned data.
    received_at_read: u64,
    /// Bytes that `poll_ahead` has read to find out whether there are any.
    ahead: Vec<u8>,
}

impl Wrapped {
    pub(crate) fn new(
        stream: Box<dyn Duplex>,
        socket: Option<Socket>,
        meter: Option<Arc<Meter>>,
    ) -> Self {
        let received_at_read = meter.as_ref().map_or(0, |meter| meter.received());
        Self { stream, socket, meter, received_at_read, ahead: Vec::new() }
    }

    /// Returns the stream, and the socket under it.
    pub(crate) fn into_parts(self) -> (Box<dyn Duplex>, Option<Socket>) {
        (self.stream, self.socket)
    }

    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; AHEAD];
        match self.poll_read(cx, &mut bytes) {
            Poll::Ready(Ok(n)) => self.ahead.extend_from_slice(&bytes[..n]),
            // The next read returns the error, or finds the end.
            Poll::Ready(Err(_)) => {}
            Poll::Pending if self.has_begun() => {}
            Poll::Pending => return Poll::Pending,
        }
        Poll::Ready(())
    }

    /// Returns `true` if bytes have arrived under the wrapper that do not make a byte of content
    /// yet.
    fn has_begun(&self) -> bool {
        self.meter.as_ref().is_some_and(|meter| match meter.position() {
            Position::Inside => true,
            Position::Between => false,
            Position::Unknown => meter.received() > self.received_at_read,
        })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self.ahead.is_empty() {
            let n = self.ahead.len().min(buf.len());
            buf[..n].copy_from_slice(&self.ahead[..n]);
            self.ahead.drain(..n);
            return Poll::Ready(Ok(n));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let (Poll::Ready(_), Some(meter)) = (&read, &self.meter) {
            self.received_at_read = meter.received();
        }
        read
    }
}

/// The number of bytes that one look ahead reads at most.
const AHEAD: usize = 1024;

/// A byte stream in both directions.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A socket that others use, too.
#[derive(Debug, Clone)]
pub(crate) enum Socket {
    Tcp(Arc<Async<TcpStream>>),
    Unix(Arc<Async<UnixStream>>),
}

impl Transport {
    /// Whether a read would find something, found out without reading; what is no socket has to be
    /// read to know.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_readable(cx),
            Self::Unix(socket) => socket.poll_readable(cx),
            Self::Wrapped(_) => Poll::Ready(Ok(())),
        }
    }

    /// Waits until a read would find data, the end or an error, or until a part of a TLS record has
    /// arrived.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Wrapped(wrapped) => wrapped.poll_ahead(cx),
            Self::Tcp(_) | Self::Unix(_) => self.poll_readable(cx).map(drop),
        }
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Wrapped(wrapped) => wrapped.poll_read(cx, buf),
        }
    }

    /// The same for a last look: whoever finds nothing in a socket is not woken when there is something.
    pub(crate) fn poll_last_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = match self {
            Self::Tcp(socket) => socket.get_ref().read(buf),
            Self::Unix(socket) => socket.get_ref().read(buf),
            Self::Wrapped(wrapped) => return wrapped.poll_read(cx, buf),
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            read => Poll::Ready(read),
        }
    }

    /// Writes some of `buf`, and of `tail` behind it: one write, if it is a socket.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        buf: &[u8],
        tail: &[u8],
    ) -> Poll<io::Result<usize>> {
        let first = if buf.is_empty() { tail } else { buf };
        match self {
            Self::Wrapped(wrapped) => Pin::new(&mut wrapped.stream).poll_write(cx, first),
            Self::Tcp(socket) if tail.is_empty() => Pin::new(socket).poll_write(cx, buf),
            Self::Unix(socket) if tail.is_empty() => Pin::new(socket).poll_write(cx, buf),
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, &both(buf, tail)),
            Self::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, &both(buf, tail)),
        }
    }

    /// Sends on what the stream itself may hold back (TLS does, a socket does not).
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Poll::Ready(Ok(())),
            Self::Wrapped(wrapped) => Pin::new(&mut wrapped.stream).poll_flush(cx),
        }
    }

    /// Says that nothing more will be written (FIN, and TLS's own farewell); reading goes on.
    pub(crate) fn poll_half_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => Poll::Ready(socket.get_ref().shutdown(Shutdown::Write)),
            Self::Unix(socket) => Poll::Ready(socket.get_ref().shutdown(Shutdown::Write)),
            Self::Wrapped(wrapped) => Pin::new(&mut wrapped.stream).poll_close(cx),
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
        let _ = match (self.tcp(), self.unix()) {
            (Some(socket), _) => socket.get_ref().shutdown(half),
            (_, Some(socket)) => socket.get_ref().shutdown(half),
            (None, None) => Ok(()),
        };
    }

    /// How many bytes wait in the kernel to be read; 0 where that cannot be known.
    pub(crate) fn waiting(&self) -> u64 {
        self.socket().map_or(0, waiting)
    }

    /// Whether what waits in the kernel is not what a read gives: there may be more, or less.
    pub(crate) fn is_wrapped(&self) -> bool {
        matches!(self, Self::Wrapped(_))
    }

    /// Returns `true` if bytes have arrived under a wrapper that do not make a byte of content yet,
    /// for example half of a TLS record.
    pub(crate) fn has_begun(&self) -> bool {
        matches!(self, Self::Wrapped(wrapped) if wrapped.has_begun())
    }

    /// Returns how many bytes have been received under a wrapper so far; `None` without a wrapper,
    /// or if the server cannot count them.
    pub(crate) fn metered_received(&self) -> Option<u64> {
        self.meter().map(Meter::received)
    }

    /// Returns how many bytes have been sent under a wrapper so far; `None` without a wrapper, or
    /// if the server cannot count them.
    pub(crate) fn metered_sent(&self) -> Option<u64> {
        self.meter().map(Meter::sent)
    }

    fn meter(&self) -> Option<&Meter> {
        match self {
            Self::Wrapped(wrapped) => wrapped.meter.as_deref(),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// Whether there is a socket, be it under something else.
    pub(crate) fn has_socket(&self) -> bool {
        self.socket().is_some()
    }

    /// How many bytes the client's kernel has yet to take, apart from a FIN; 0 where that cannot be
    /// known, and on Unix sockets, where the client can read what was written whatever comes.
    pub(crate) fn undelivered(&self) -> u64 {
        self.tcp().map_or(0, |socket| unacknowledged(socket.get_ref()).saturating_sub(1))
    }

    /// Returns how far the client has left, as far as the socket can tell; `None` if it has not
    /// left.
    pub(crate) fn left(&self) -> Option<Left> {
        /// Set if the client's FIN has come. Other systems report a FIN only to a read.
        #[cfg(target_os = "linux")]
        const FIN: PollFlags = PollFlags::RDHUP;
        #[cfg(not(target_os = "linux"))]
        const FIN: PollFlags = PollFlags::empty();
        let events = pending_events(self.socket()?, FIN);
        if events.intersects(PollFlags::ERR | PollFlags::HUP) {
            Some(Left::Gone)
        } else if events.intersects(FIN) {
            Some(Left::HalfClosed)
        } else {
            None
        }
    }

    /// Returns `true` if the connection has failed, for example by a reset. A connection that both
    /// sides have closed has not failed.
    pub(crate) fn is_reset(&self) -> bool {
        self.socket()
            .is_some_and(|fd| pending_events(fd, PollFlags::empty()).contains(PollFlags::ERR))
    }

    /// Makes the coming close a reset, so that the client cannot take what it got for the whole.
    pub(crate) fn reset_on_close(&self) {
        if let Some(socket) = self.tcp() {
            // Without it the client sees an early end of the stream: worse, but no reason to fail.
            let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }

    fn tcp(&self) -> Option<&Async<TcpStream>> {
        match self {
            Self::Tcp(socket) => Some(socket),
            Self::Wrapped(wrapped) => match &wrapped.socket {
                Some(Socket::Tcp(socket)) => Some(socket),
                Some(Socket::Unix(_)) | None => None,
            },
            Self::Unix(_) => None,
        }
    }

    fn unix(&self) -> Option<&Async<UnixStream>> {
        match self {
            Self::Unix(socket) => Some(socket),
            Self::Wrapped(wrapped) => match &wrapped.socket {
                Some(Socket::Unix(socket)) => Some(socket),
                Some(Socket::Tcp(_)) | None => None,
            },
            Self::Tcp(_) => None,
        }
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.tcp().map(AsFd::as_fd).or(self.unix().map(AsFd::as_fd))
    }
}

impl Socket {
    /// Whether a read of the socket itself would find something.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut poll_event = || match self {
            Self::Tcp(socket) => socket.poll_readable(cx),
            Self::Unix(socket) => socket.poll_readable(cx),
        };
        // Only to be woken. async-io may report an event that was answered by a read already, and does
        // not own up to one that came while another thread was waiting for events when this one asked.
        if poll_event()?.is_ready() {
            let _ = poll_event()?;
        }
        match pending_events(self.as_fd(), PollFlags::IN).is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }

    /// Returns how many bytes wait in the kernel to be read.
    pub(crate) fn waiting(&self) -> u64 {
        waiting(self.as_fd())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl fmt::Debug for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wrapped").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Which of the events `of` there are, and errors and hang-ups, without waiting; none if nobody tells.
fn pending_events(fd: BorrowedFd<'_>, of: PollFlags) -> PollFlags {
    let mut fds = [PollFd::from_borrowed_fd(fd, of)];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(_) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

/// Returns how many bytes wait in the kernel to be read; 0 if the kernel does not say.
fn waiting(fd: BorrowedFd<'_>) -> u64 {
    rustix::io::ioctl_fionread(fd).unwrap_or(0)
}

fn both<'a>(one: &'a [u8], other: &'a [u8]) -> [IoSlice<'a>; 2] {
    [IoSlice::new(one), IoSlice::new(other)]
}

/// Bytes that were written and not acknowledged, a FIN counts as one; 0 where nobody tells.
#[cfg_attr(target_os = "linux", allow(unsafe_code, reason = "no crate offers this call"))]
fn unacknowledged(socket: &TcpStream) -> u64 {
    #[cfg(all(
        target_os = "linux",
        any(
            target_arch = "x86",
            target_arch = "x86_64",
            target_arch = "arm",
            target_arch = "aarch64",
            target_arch = "riscv64",
            target_arch = "s390x",
            target_arch = "loongarch64",
        )
    ))]
    {
        use rustix::ioctl::{Getter, Opcode, ioctl};
        const SIOCOUTQ: Opcode = 0x5411;
        // SAFETY: for this request, which has this number on these architectures, the kernel writes
        // one `int` and does nothing else (tcp(7)).
        let count = unsafe { ioctl(socket, Getter::<SIOCOUTQ, std::ffi::c_int>::new()) };
        return count.map_or(0, |count| u64::try_from(count).unwrap_or(0));
    }
    #[allow(unreachable_code, reason = "reached where the call above is not known")]
    {
        let _ = socket;
        0
    }
}

/// How far a client has left its connection.
///
/// # Examples
///
/// ```
/// use smol_graceful::Left;
///
/// assert!(Left::HalfClosed < Left::Gone);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Left {
    /// The client sends nothing more. Most such clients have closed the connection. Others have
    /// closed only their own side and still wait for the response, and TCP does not distinguish the
    /// two.
    HalfClosed = 1,
    /// Nobody reads any more: the client has reset the connection, or the connection has ended.
    Gone = 2,
}

impl Left {
    pub(crate) fn of(number: u8) -> Option<Self> {
        [Self::HalfClosed, Self::Gone].into_iter().find(|left| *left as u8 == number)
    }
}

impl From<Async<TcpStream>> for Transport {
    fn from(socket: Async<TcpStream>) -> Self {
        Self::Tcp(socket)
    }
}

impl From<Async<UnixStream>> for Transport {
    fn from(socket: Async<UnixStream>) -> Self {
        Self::Unix(socket)
    }
}

/// Who is at the other end of a connection.
///
/// # What can be trusted
///
/// For a socket, the kernel gives the address, so no client can forge it. Behind a proxy it is the
/// proxy's address. If a wrapper or a source names the client
/// ([`Connection::from_peer`](crate::Connection::from_peer)), as for the PROXY protocol, the address
/// is as good as what the program has read: only the proxy may be able to connect to that listener.
///
/// http-types' `request.remote()` and `request.host()` prefer the fields `Forwarded`,
/// `X-Forwarded-For` and `X-Forwarded-Host`, and any client can send these. Believe them only if
/// every way to the server goes through a proxy that overwrites or removes them. The files for
/// nginx and HAProxy in `deploy/` do so. A proxy that appends to them does not.
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
    /// The other end of a stream that is no socket, or a request that came from no server.
    Unknown,
}

impl Peer {
    /// Returns the client that has sent `request`, or the proxy in front of it.
    ///
    /// Ignores every field of the request, so no client can forge it (see [`Peer`]).
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Peer, Server};
    ///
    /// let server = Server::new(|request| async move {
    ///     Ok(format!("you are {}\n", Peer::of(&request)))
    /// });
    /// # drop(server);
    /// ```
    pub fn of(request: &Request) -> Self {
        match request.peer_addr() {
            Some("unix") => Self::Unix,
            text => text.and_then(|text| text.parse().ok()).map_or(Self::Unknown, Self::Ip),
        }
    }
}

impl Peer {
    /// Says in `request` that it is from this client.
    pub(crate) fn sign(self, request: &mut Request) {
        match self {
            // Every request has to be signed, and the general way costs ten times as much.
            Self::Ip(SocketAddr::V4(addr)) => {
                request.set_peer_addr(Some(v4_text(addr, &mut [0; V4_ROOM])));
            }
            peer => request.set_peer_addr(Some(peer)),
        }
    }

    /// An IPv4 client of a socket for both families, as what it is.
    pub(crate) fn canonical(addr: SocketAddr) -> Self {
        Self::Ip(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }
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

/// How long an IPv4 address with its port can be as text.
const V4_ROOM: usize = "255.255.255.255:65535".len();

/// `addr` as text, written from the end of `room` backwards.
fn v4_text(addr: SocketAddrV4, room: &mut [u8; V4_ROOM]) -> &str {
    let [a, b, c, d] = addr.ip().octets().map(u16::from);
    let mut begin = V4_ROOM;
    for (mut number, behind) in [(addr.port(), 0), (d, b':'), (c, b'.'), (b, b'.'), (a, b'.')] {
        if begin < V4_ROOM {
            begin -= 1;
            room[begin] = behind;
        }
        loop {
            begin -= 1;
            room[begin] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
    }
    std::str::from_utf8(&room[begin..]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_reads_as_the_standard_library_writes_it() {
        for text in ["0.0.0.0:0", "127.0.0.1:8082", "10.200.30.9:65535", "255.255.255.255:65535"] {
            let peer = Peer::from(text.parse::<SocketAddr>().expect("an address"));
            let mut request = Request::new(http_types::Method::Get, "http://localhost/");
            peer.sign(&mut request);
            assert_eq!(request.peer_addr(), Some(text));
            assert_eq!((peer.to_string().as_str(), Peer::of(&request)), (text, peer));
        }
    }
}
