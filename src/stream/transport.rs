//! [`Transport`] and [`Peer`]: the byte stream under a connection, and its other end.
//!
//! One concrete type stands for sockets and all other streams, so that the code of a connection is
//! compiled once. Also knows which of a socket's answers hold under a wrapper. Buffers nothing but
//! what a look ahead has read.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite};
use http_types::Request;

use crate::stream::meter::Meter;
use crate::stream::socket::{ClientLeft, Socket};

/// A connection's byte stream.
pub(crate) enum Transport {
    Plain(Socket),
    /// Something that reads and writes, perhaps on a socket: TLS, a pipe.
    Wrapped(Box<Wrapped>),
}

/// A stream that is not a plain socket, and the socket under it, if there is one.
pub(crate) struct Wrapped {
    stream: Box<dyn Duplex>,
    pub(crate) socket: Option<Arc<Socket>>,
    /// `None` if the server cannot count the bytes under the stream.
    meter: Option<Arc<Meter>>,
    /// The number of bytes that had been received when the stream last returned data.
    received_at_read: u64,
    /// Bytes that were read to find out whether there are any.
    pub(crate) ahead: Vec<u8>,
}

impl Wrapped {
    pub(crate) fn new(stream: impl Duplex + 'static) -> Self {
        let stream = Box::new(stream);
        Self { stream, socket: None, meter: None, received_at_read: 0, ahead: Vec::new() }
    }

    /// Sets the socket under the stream, and the meter of the bytes that come from this socket.
    pub(crate) fn set_under(&mut self, socket: Option<Arc<Socket>>, meter: Option<Arc<Meter>>) {
        self.received_at_read = meter.as_ref().map_or(0, |meter| meter.received());
        (self.socket, self.meter) = (socket, meter);
    }

    /// Returns the stream, to write to it.
    pub(crate) fn writer(&mut self) -> Pin<&mut dyn Duplex> {
        Pin::new(&mut *self.stream)
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
        self.meter.as_ref().is_some_and(|meter| meter.has_begun(self.received_at_read))
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
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

/// The number of polls after which a wrapped stream counts as empty.
pub(crate) const LAST_READS: usize = 8;

/// The number of bytes that one look ahead reads at most.
const AHEAD: usize = 1024;

/// A byte stream in both directions.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Transport {
    /// Takes a connected socket, and finds out its peer.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says if async-io cannot watch the socket.
    pub(crate) fn of(socket: OwnedFd) -> io::Result<(Self, Peer)> {
        let socket = Socket::of(socket)?;
        let peer = match socket.peer_addr() {
            Ok(Some(addr)) => Peer::canonical(addr),
            Ok(None) => Peer::Unix,
            Err(_) => Peer::Unknown,
        };
        Ok((Self::Plain(socket), peer))
    }

    /// Waits like [`Socket::poll_event`]. Always returns `Ready` under a wrapper, because only a
    /// read shows what a wrapped stream holds.
    pub(crate) fn poll_event(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => socket.poll_event(cx),
            Self::Wrapped(_) => Poll::Ready(Ok(())),
        }
    }

    /// Waits until a read would find data, the end or an error, or until a part of a TLS record has
    /// arrived.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(socket) => socket.poll_readable(cx).map(drop),
            Self::Wrapped(wrapped) => wrapped.poll_ahead(cx),
        }
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_read(cx, buf),
            Self::Wrapped(wrapped) => wrapped.poll_read(cx, buf),
        }
    }

    /// Reads like [`Socket::poll_last_read`]. Under a wrapper, polls an ordinary read a few times,
    /// because some streams return `Pending` although they hold data. For example, a pipe of the
    /// crate piper does so in one of 100 polls.
    pub(crate) fn poll_last_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_last_read(buf),
            Self::Wrapped(wrapped) => {
                let mut reads = (0..LAST_READS).map(|_| wrapped.poll_read(cx, buf));
                reads.find(Poll::is_ready).unwrap_or(Poll::Pending)
            }
        }
    }

    /// Writes some of `buf`, and on a plain socket also of `tail` behind it, in one system call.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        buf: &[u8],
        tail: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => socket.poll_write(cx, buf, tail),
            Self::Wrapped(wrapped) => {
                let first = if buf.is_empty() { tail } else { buf };
                wrapped.writer().poll_write(cx, first)
            }
        }
    }

    /// Sends the bytes that the stream itself holds back, as TLS does and a socket does not.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Wrapped(wrapped) => wrapped.writer().poll_flush(cx),
        }
    }

    /// Ends the writing side, by a FIN and by TLS's own farewell. Reading goes on.
    pub(crate) fn poll_half_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => Poll::Ready(socket.shut(Shutdown::Write)),
            Self::Wrapped(wrapped) => wrapped.writer().poll_close(cx),
        }
    }

    /// Shuts down like [`Socket::shut`]. Does nothing if there is no socket, or if the connection
    /// has ended already.
    pub(crate) fn shut(&self, how: Shutdown) {
        let _ = self.socket().map(|socket| socket.shut(how));
    }

    /// Returns how many bytes wait in the kernel to be read, and 0 if there is no socket.
    pub(crate) fn waiting(&self) -> u64 {
        self.socket().map_or(0, Socket::waiting)
    }

    /// Returns `true` if the stream is not a plain socket. A read may then return more or less than
    /// what waits in the kernel.
    pub(crate) fn is_wrapped(&self) -> bool {
        matches!(self, Self::Wrapped(_))
    }

    /// Returns `true` if bytes have arrived under a wrapper that do not make a byte of content yet,
    /// for example half of a TLS record.
    pub(crate) fn has_begun(&self) -> bool {
        matches!(self, Self::Wrapped(wrapped) if wrapped.has_begun())
    }

    /// Returns how many bytes have been received under a wrapper so far. Returns `None` without a
    /// wrapper, or if the server cannot count the bytes.
    pub(crate) fn metered_received(&self) -> Option<u64> {
        self.meter().map(Meter::received)
    }

    /// Returns how many bytes have been sent under a wrapper so far. Returns `None` without a
    /// wrapper, or if the server cannot count the bytes.
    pub(crate) fn metered_sent(&self) -> Option<u64> {
        self.meter().map(Meter::sent)
    }

    fn meter(&self) -> Option<&Meter> {
        match self {
            Self::Plain(_) => None,
            Self::Wrapped(wrapped) => wrapped.meter.as_deref(),
        }
    }

    /// Returns `true` if there is a socket, even if it is under a wrapper.
    pub(crate) fn has_socket(&self) -> bool {
        self.socket().is_some()
    }

    /// Returns the result of [`Socket::undelivered`], and 0 if there is no socket.
    pub(crate) fn undelivered(&self) -> u64 {
        self.socket().map_or(0, Socket::undelivered)
    }

    /// Returns the address of this machine to which the client has connected. Returns `None` if
    /// there is no TCP socket, or the connection has ended already.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.socket()?.local_addr()
    }

    /// Returns the result of [`Socket::left`], and `None` if there is no socket.
    pub(crate) fn left(&self) -> Option<ClientLeft> {
        self.socket()?.left()
    }

    /// Returns the result of [`Socket::is_reset`], and `false` if there is no socket.
    pub(crate) fn is_reset(&self) -> bool {
        self.socket().is_some_and(Socket::is_reset)
    }

    /// Makes the coming close a reset, so that the client cannot take what it got for the whole.
    pub(crate) fn reset_on_close(&self) {
        if let Some(socket) = self.socket() {
            socket.reset_on_close();
        }
    }

    fn socket(&self) -> Option<&Socket> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Wrapped(wrapped) => wrapped.socket.as_deref(),
        }
    }
}

/// The other end of a connection.
///
/// # What can be trusted
///
/// The kernel gives the address of a socket, so no client can forge this address. Behind a proxy,
/// the address is the proxy's. If a wrapper or a source names the client
/// ([`Connection::from_peer`](crate::Connection::from_peer)), as for the PROXY protocol, the
/// address is as good as what the program has read: only the proxy may be able to connect to that
/// listener.
///
/// http-types' `request.remote()` and `request.host()` prefer the fields `Forwarded`,
/// `X-Forwarded-For` and `X-Forwarded-Host`, and any client can send these. Believe them only if
/// every way to the server goes through a proxy that overwrites or removes them. The files for
/// nginx and HAProxy in `deploy/` do so. A proxy that only appends to these fields is not enough.
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
    /// A client of a Unix socket. Such a client has no address.
    Unix,
    /// The other end of a stream that is not a socket, or a request that came from no server.
    Unknown,
}

impl Peer {
    /// Returns the client that has sent `request`, or the proxy in front of it.
    ///
    /// Ignores every field of the request, so no client can forge the result (see [`Peer`]).
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

    /// Sets this client as the peer of `request`.
    pub(crate) fn sign(self, request: &mut Request) {
        match self {
            // The server does this for every request, and the general way costs ten times as much.
            Self::Ip(SocketAddr::V4(addr)) => {
                request.set_peer_addr(Some(v4_text(addr, &mut [0; V4_ROOM])));
            }
            peer => request.set_peer_addr(Some(peer)),
        }
    }

    /// Returns the client with this address. An IPv4 client of a socket for both families gets its
    /// IPv4 address.
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

/// Sets `addr` as the address to which the client of `request` has connected.
pub(crate) fn sign_local(addr: SocketAddr, request: &mut Request) {
    match addr {
        SocketAddr::V4(addr) => request.set_local_addr(Some(v4_text(addr, &mut [0; V4_ROOM]))),
        SocketAddr::V6(addr) => request.set_local_addr(Some(addr)),
    }
}

/// The longest text of an IPv4 address with its port, in bytes, with a dot in front.
const V4_ROOM: usize = ".255.255.255.255:65535".len();

/// Writes `addr` as text from the end of `room` backwards, and returns the text.
fn v4_text(addr: SocketAddrV4, room: &mut [u8; V4_ROOM]) -> &str {
    let [a, b, c, d] = addr.ip().octets().map(u16::from);
    let mut begin = V4_ROOM;
    for (mut number, before) in [(addr.port(), b':'), (d, b'.'), (c, b'.'), (b, b'.'), (a, b'.')] {
        loop {
            begin -= 1;
            room[begin] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        begin -= 1;
        room[begin] = before;
    }
    std::str::from_utf8(&room[begin + 1..]).unwrap_or_default()
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
            sign_local(text.parse().expect("an address"), &mut request);
            assert_eq!(request.peer_addr(), Some(text));
            assert_eq!(request.local_addr(), Some(text));
            assert_eq!((peer.to_string().as_str(), Peer::of(&request)), (text, peer));
        }
    }
}
