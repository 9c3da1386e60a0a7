//! [`Connection`]: a client's connection as the program sees it, before it is served.
//!
//! A listener's wrapper (TLS) takes a connection and returns another one, and a source is a stream
//! of connections. Invariant: a plain socket that a wrapper or a source returns stays a plain
//! socket, unless the program still shares the socket. This file does not know HTTP.

use std::fmt;
use std::io;
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use async_io::Async;
use futures_lite::io::Cursor;
use futures_lite::{AsyncRead, AsyncWrite};

use crate::stream::facts::Facts;
use crate::stream::meter::Meter;
use crate::stream::socket::Socket;
use crate::stream::transport::{Peer, Transport, Wrapped};

/// A client's connection: bytes in both directions.
///
/// # Examples
///
/// In memory, to test a handler over HTTP without a socket:
///
/// ```
/// use futures_lite::stream;
/// use http_types::{Method, Request};
/// use smol_graceful::{Connection, Listener, Server, Shutdown};
///
/// let shutdown = Shutdown::new();
/// let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
/// let (client, connection) = Connection::pair();
///
/// smol::block_on(async {
///     let listener = Listener::from_stream(stream::once(Ok(connection)));
///     let serve = smol::spawn(server.serve([listener]));
///     let request = Request::new(Method::Get, "http://localhost/");
///     let mut response = async_h1::connect(client, request).await.unwrap();
///     assert_eq!(response.body_string().await.unwrap(), "okay");
///
///     shutdown.stop();
///     assert!(serve.await.unwrap().is_drained());
/// });
/// ```
pub struct Connection {
    kind: Kind,
    peer: Peer,
    /// Counts the bytes that a wrapper reads and writes here.
    meter: Option<Arc<Meter>>,
    facts: Facts,
}

enum Kind {
    Socket(Arc<Socket>),
    /// The mutex is never locked, and only makes a `Connection` `Sync` and `UnwindSafe`.
    Other(Mutex<Box<Wrapped>>),
}

impl Connection {
    /// Makes a connection of any byte stream.
    ///
    /// For a socket, use `Connection::from` instead, which takes a `smol::Async<TcpStream>` or
    /// `smol::Async<UnixStream>` (of the standard library's streams). The server then knows the
    /// client's address, and when the client is gone.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_lite::{AsyncReadExt, future, io::Cursor};
    /// use smol_graceful::{Connection, Peer};
    ///
    /// let mut connection = Connection::new(Cursor::new(b"GET / HTTP/1.1".to_vec()));
    /// assert_eq!(connection.peer(), Peer::Unknown);
    ///
    /// let mut text = String::new();
    /// future::block_on(connection.read_to_string(&mut text))?;
    /// assert_eq!(text, "GET / HTTP/1.1");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self::of(Kind::Other(Mutex::new(Box::new(Wrapped::new(stream)))), Peer::Unknown)
    }

    /// Returns the two ends of a pipe in memory.
    ///
    /// In each direction, the pipe holds up to 64 KiB that nobody has read, and a writer of more
    /// waits.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
    /// use smol_graceful::Connection;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let (mut client, mut server) = Connection::pair();
    /// let mut text = String::new();
    /// future::block_on(async {
    ///     client.write_all(b"hello").await?;
    ///     client.close().await?;
    ///     server.read_to_string(&mut text).await
    /// })?;
    /// assert_eq!(text, "hello");
    /// # Ok(())
    /// # }
    /// ```
    pub fn pair() -> (Self, Self) {
        let (here, there) = (piper::pipe(PIPE), piper::pipe(PIPE));
        let end = |reader, writer| Self::new(Pipe { reader, writer });
        (end(here.0, there.1), end(there.0, here.1))
    }

    /// Sets the address of the client, where the stream cannot know it: for a connection that a
    /// source brings, and for one that [`Listener::wrap`](crate::Listener::wrap) gives.
    ///
    /// # Examples
    ///
    /// A proxy in front has said whose connection it passes on:
    ///
    /// ```
    /// use smol_graceful::{Connection, Peer};
    ///
    /// let (_client, connection) = Connection::pair();
    /// assert_eq!(connection.peer(), Peer::Unknown);
    /// let connection = connection.from_peer(([192, 0, 2, 1], 50000));
    /// assert_eq!(connection.peer().to_string(), "192.0.2.1:50000");
    /// ```
    #[must_use]
    pub fn from_peer(mut self, peer: impl Into<Peer>) -> Self {
        self.peer = peer.into();
        self
    }

    /// Says that the client speaks HTTPS, so that the URL of each request begins with `https` and
    /// [`ConnectionInfo::is_https`](crate::ConnectionInfo::is_https) returns `true`.
    ///
    /// The server does not find this out by itself. Call `https` in a
    /// [`Listener::wrap`](crate::Listener::wrap) that makes TLS, and in a source behind a proxy
    /// that makes TLS.
    ///
    /// # Examples
    ///
    /// A wrapper for TLS:
    ///
    /// ```
    /// use futures_rustls::TlsAcceptor;
    /// use smol_graceful::{Connection, Listener};
    ///
    /// fn listen(acceptor: TlsAcceptor) -> std::io::Result<Listener> {
    ///     Ok(Listener::bind("127.0.0.1:0")?.wrap(move |connection| {
    ///         let handshake = acceptor.accept(connection);
    ///         async move { Ok(Connection::new(handshake.await?).https()) }
    ///     }))
    /// }
    /// ```
    #[must_use]
    pub fn https(mut self) -> Self {
        self.facts.is_https = true;
        self
    }

    /// Attaches a value for the handlers of the connection's requests, which get it by its type
    /// from [`ConnectionInfo::get`](crate::ConnectionInfo::get): for example a client's
    /// certificate, or the name that the client has asked for in the handshake.
    ///
    /// A further value of the same type takes the place of the first one. A wrapper's value takes
    /// the place of a source's.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_lite::stream;
    /// use smol_graceful::{Connection, ConnectionInfo, Listener, Method, Request, Server, http_types};
    ///
    /// struct Tenant(&'static str);
    ///
    /// # fn main() -> http_types::Result<()> {
    /// let server = Server::new(|request| async move {
    ///     let connection = ConnectionInfo::of(&request);
    ///     Ok(connection.get().map_or("nobody", |tenant: &Tenant| tenant.0))
    /// });
    ///
    /// let (client, connection) = Connection::pair();
    /// let connection = connection.with(Tenant("blue"));
    /// let serve = server.serve([Listener::from_stream(stream::once(Ok(connection)))]);
    /// let ask = async {
    ///     let request = Request::new(Method::Get, "http://localhost/");
    ///     async_h1::connect(client, request).await?.body_string().await
    /// };
    /// let served = async { unreachable!("{:?}", serve.await) };
    /// assert_eq!(smol::block_on(futures_lite::future::or(ask, served))?, "blue");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.facts.add(value);
        self
    }

    /// Takes what the program has said of the connection.
    pub(crate) fn take_facts(&mut self) -> Facts {
        mem::take(&mut self.facts)
    }

    /// Returns the client at the other end.
    ///
    /// # Examples
    ///
    /// A socket knows its client:
    ///
    /// ```
    /// use smol_graceful::{Connection, Peer};
    /// use std::net::{TcpListener, TcpStream};
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let client = TcpStream::connect(listener.local_addr()?)?;
    /// let (socket, _) = listener.accept()?;
    /// let connection = Connection::from(smol::Async::new(socket)?);
    /// assert_eq!(connection.peer(), Peer::from(client.local_addr()?));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn peer(&self) -> Peer {
        self.peer
    }

    fn of(kind: Kind, peer: Peer) -> Self {
        Self { kind, peer, meter: None, facts: Facts::default() }
    }

    /// Makes a connection for a wrapper. Also returns the socket under the connection, if there is
    /// one, and the meter for the connection's bytes. From a wrapped stream, the server has read
    /// `ahead` already.
    pub(crate) fn share(
        transport: Transport,
        peer: Peer,
        ahead: Vec<u8>,
    ) -> (Self, Option<Arc<Socket>>, Arc<Meter>) {
        let (kind, socket) = match transport {
            Transport::Plain(socket) => {
                let socket = Arc::new(socket);
                (Kind::Socket(socket.clone()), Some(socket))
            }
            Transport::Wrapped(mut wrapped) => {
                wrapped.ahead = ahead;
                let socket = wrapped.socket.clone();
                (Kind::Other(Mutex::new(wrapped)), socket)
            }
        };
        let meter = Arc::new(Meter::default());
        (Self { meter: Some(meter.clone()), ..Self::of(kind, peer) }, socket, meter)
    }

    /// Turns the connection into the transport that the server uses. `under` is the socket under a
    /// wrapped stream, and `meter` has counted the bytes that the wrapper has read from it.
    pub(crate) fn into_transport(
        self,
        under: Option<Arc<Socket>>,
        meter: Option<Arc<Meter>>,
    ) -> Transport {
        let socket = match self.kind {
            Kind::Other(wrapped) => {
                let mut wrapped = wrapped.into_inner().unwrap_or_else(PoisonError::into_inner);
                // If no wrapper lies on this connection, nothing updates its meter any more.
                wrapped.set_under(under, meter.filter(|_| self.meter.is_none()));
                return Transport::Wrapped(wrapped);
            }
            Kind::Socket(socket) => socket,
        };
        // Usually `under` is this same socket, which is not shared any more without `under`.
        drop(under);
        Arc::try_unwrap(socket).map(Transport::Plain).unwrap_or_else(|shared| {
            let stream = Self::of(Kind::Socket(shared.clone()), self.peer);
            let mut wrapped = Wrapped::new(stream);
            wrapped.set_under(Some(shared), None);
            Transport::Wrapped(Box::new(wrapped))
        })
    }
}

/// The most bytes that a pipe holds and nobody has read.
const PIPE: usize = 64 * 1024;

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(match &mut self.kind {
            Kind::Socket(socket) => socket.poll_read(cx, buf),
            Kind::Other(wrapped) => unlocked(wrapped).poll_read(cx, buf),
        })?;
        if let Some(meter) = &self.meter {
            meter.receive(&buf[..n]);
        }
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(match &mut self.kind {
            Kind::Socket(socket) => socket.poll_write(cx, buf, b""),
            Kind::Other(wrapped) => unlocked(wrapped).writer().poll_write(cx, buf),
        })?;
        if n == 0 && !buf.is_empty() {
            // A pipe whose other end is gone writes 0 bytes, and futures-rustls would try again for
            // ever.
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        if let Some(meter) = &self.meter {
            meter.send(n);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Socket(_) => Poll::Ready(Ok(())),
            Kind::Other(wrapped) => unlocked(wrapped).writer().poll_flush(cx),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Socket(socket) => Poll::Ready(socket.shut(Shutdown::Write)),
            Kind::Other(wrapped) => unlocked(wrapped).writer().poll_close(cx),
        }
    }
}

/// Returns the content of `mutex`, without a lock.
fn unlocked<T>(mutex: &mut Mutex<T>) -> &mut T {
    mutex.get_mut().unwrap_or_else(PoisonError::into_inner)
}

impl From<Async<TcpStream>> for Connection {
    fn from(socket: Async<TcpStream>) -> Self {
        let peer = socket.get_ref().peer_addr().map_or(Peer::Unknown, Peer::canonical);
        Self::of(Kind::Socket(Arc::new(Socket::tcp(socket))), peer)
    }
}

impl From<Async<UnixStream>> for Connection {
    fn from(socket: Async<UnixStream>) -> Self {
        match socket.into_inner().and_then(Socket::unix) {
            Ok(socket) => Self::of(Kind::Socket(Arc::new(socket)), Peer::Unix),
            // Without events nothing can be read, so the server finds the end of the stream.
            Err(_) => Self::new(Cursor::new(Vec::new())).from_peer(Peer::Unix),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// One end of a pipe.
struct Pipe {
    reader: piper::Reader,
    writer: piper::Writer,
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, poll_fn};
    use std::io::Write;
    use std::net::TcpListener;
    use std::panic::{RefUnwindSafe, UnwindSafe};

    fn socket() -> Async<TcpStream> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"later").unwrap();
        Async::new(listener.accept().unwrap().0).unwrap()
    }

    #[test]
    fn a_socket_that_was_shared_for_a_wrapper_is_plain_again() {
        let (connection, under, _) =
            Connection::share(Transport::Plain(Socket::tcp(socket())), Peer::Unknown, Vec::new());
        assert!(matches!(connection.into_transport(under, None), Transport::Plain(_)));
    }

    /// Programs may rely on these traits.
    #[test]
    fn the_auto_traits_are_the_agreed_ones() {
        fn check<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe>() {}
        check::<Connection>();
    }

    #[test]
    fn what_was_read_ahead_is_not_lost() {
        let wrapped = Box::new(Wrapped::new(Cursor::new(b"later".to_vec())));
        let (connection, under, meter) =
            Connection::share(Transport::Wrapped(wrapped), Peer::Unknown, b"first, ".to_vec());
        let mut transport = connection.into_transport(under, Some(meter));
        let mut text = [0; 16];
        let mut length = 0;
        while length < "first, later".len() {
            let read = poll_fn(|cx| transport.poll_read(cx, &mut text[length..]));
            length += block_on(read).unwrap();
        }
        assert_eq!(&text[..length], b"first, later");
    }
}
