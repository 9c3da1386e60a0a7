//! [`Listener`]: bind, accept with error classes, lossless close.
//!
//! Invariant: a listener is closed only after every connection that the kernel had queued was taken
//! (rule S4), unless a successor accepts from its socket (rule S5).
//! Accepting never fails for good: errors are classed, backed off and logged here (rule S18). Does
//! not know what becomes of a connection.

use std::ffi::OsStr;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use async_io::{Async, Timer};
use futures_lite::{AsyncRead, AsyncWrite, Stream, future};
use socket2::{SockRef, Socket};

use crate::address::Address;
use crate::bind::{self, TcpBind};
use crate::bound::{Bound, is_of_no_listener, is_of_one_connection, tcp};
use crate::connection::Connection;
use crate::error::reason;
use crate::inherited::{self, Handed, Inherited};
use crate::notify::Notify;
use crate::own_sockets::address_of;
use crate::socket_file::SocketFile;
use crate::source::Source;
use crate::threads;
use crate::transport::{Peer, Transport};
use crate::wrapper::{Handshakes, Wrapper};

/// What can be turned into a [`Listener`]: an address, its text, a listening socket of the standard
/// library's, or a listener itself.
///
/// # Examples
///
/// ```
/// use smol_graceful::Listen;
///
/// let listener = "127.0.0.1:0".listen()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait Listen {
    /// Listens.
    ///
    /// # Errors
    ///
    /// As [`Listener::bind`], and [`io::ErrorKind::InvalidInput`] for a text that is not an
    /// address.
    fn listen(self) -> io::Result<Listener>;
}

impl Listen for Listener {
    fn listen(self) -> io::Result<Listener> {
        Ok(self)
    }
}

impl Listen for &Address {
    fn listen(self) -> io::Result<Listener> {
        Listener::bind(self)
    }
}

impl Listen for Address {
    fn listen(self) -> io::Result<Listener> {
        Listener::bind(&self)
    }
}

impl Listen for &str {
    fn listen(self) -> io::Result<Listener> {
        Listener::bind(&self.parse()?)
    }
}

impl Listen for String {
    fn listen(self) -> io::Result<Listener> {
        self.as_str().listen()
    }
}

impl Listen for SocketAddr {
    fn listen(self) -> io::Result<Listener> {
        Address::Tcp(self).listen()
    }
}

impl Listen for TcpListener {
    fn listen(self) -> io::Result<Listener> {
        ListenOptions::default().adopt(self)
    }
}

impl Listen for UnixListener {
    fn listen(self) -> io::Result<Listener> {
        ListenOptions::default().adopt(self)
    }
}

/// Something that may have failed, so that an iterator can listen when it is its turn: [`run`] asks
/// for the listeners after it has begun to handle signals.
///
/// [`run`]: crate::run
impl<L: Listen> Listen for io::Result<L> {
    fn listen(self) -> io::Result<Listener> {
        self?.listen()
    }
}

/// A socket that clients connect to. Clones are the same socket: closed for one, closed for all.
/// One server at a time takes connections from it; a clone is there to be handed to `restart`.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Address, Listener};
///
/// let listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
/// assert!(matches!(listener.address(), Address::Tcp(addr) if addr.port() != 0));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Listener {
    shared: Arc<Shared>,
    /// What becomes of an accepted connection before it is served.
    wrapper: Option<Arc<Wrapper>>,
}

/// A connection, as it was accepted.
pub(crate) struct Accepted {
    pub(crate) transport: Transport,
    pub(crate) peer: Peer,
    pub(crate) wrapper: Option<Arc<Wrapper>>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("address", self.address())
            .field("is_wrapped", &self.wrapper.is_some())
            .finish_non_exhaustive()
    }
}

/// How to listen, where that is not [`Listener::bind`]'s own way.
///
/// # Examples
///
/// ```
/// use smol_graceful::ListenOptions;
///
/// let options = ListenOptions::default().reuse_port(true);
/// let first = options.bind(&"127.0.0.1:0".parse()?)?;
/// let second = options.bind(first.address())?;
/// assert_eq!(first.address(), second.address());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenOptions {
    reuse_port: bool,
    syn_filter: bool,
    keepalive: Option<Duration>,
    unix_mode: Option<u32>,
}

impl Default for ListenOptions {
    /// Returns the options for an address that no other socket shares, without a SYN filter, with
    /// probes after 60 s of silence, and with the umask's permissions for the file of a Unix
    /// socket.
    fn default() -> Self {
        let keepalive = Some(Duration::from_secs(60));
        Self { reuse_port: false, syn_filter: false, keepalive, unix_mode: None }
    }
}

impl ListenOptions {
    /// Lets other sockets of the same user, such as a successor's, be bound to the same TCP address
    /// at the same time (`SO_REUSEPORT`). All of them have to ask for it. Default: no.
    ///
    /// The kernel gives each new connection to one of them, so nobody is refused while both
    /// listen. For Unix sockets it means nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{ListenOptions, Listener};
    ///
    /// let options = ListenOptions::default().reuse_port(true);
    /// let first = options.bind(&"127.0.0.1:0".parse()?)?;
    /// let successor = options.bind(first.address())?;
    /// assert_eq!(successor.address(), first.address());
    /// // A socket that does not ask for it is still kept out.
    /// assert!(Listener::bind(first.address()).is_err());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn reuse_port(mut self, yes: bool) -> Self {
        self.reuse_port = yes;
        self
    }

    /// Holds back TCP handshakes that begin in the 50 ms before the close. Default: no.
    ///
    /// Without it, a handshake that is under way in the very moment of the close is reset, which
    /// under load befalls a client or two in some of the stops. With it, none is, but a client that
    /// begins one in those 50 ms waits a second until its kernel tries again. Then a successor
    /// answers it, or it is refused. That is right for a restart in place, and wrong behind a
    /// balancer, which would go elsewhere at once. Linux only. A packet filter on the socket
    /// (`SO_ATTACH_FILTER`) does it. A socket that another program has bound never gets the filter,
    /// because that program may accept from it.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{ListenOptions, Server};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let options = ListenOptions::default().syn_filter(true);
    /// let listener = options.bind(&"127.0.0.1:0".parse()?)?;
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// server.handle().stop();
    ///
    /// // On Linux the close takes 50 ms; nothing is lost by that.
    /// let outcome = smol::block_on(server.serve([listener]))?;
    /// assert!(outcome.is_drained());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn syn_filter(mut self, yes: bool) -> Self {
        self.syn_filter = yes;
        self
    }

    /// Sets how long a TCP client may be silent before the server's kernel probes whether the
    /// client is still there (`SO_KEEPALIVE`). With `None` or zero, the kernel never probes.
    /// Default: 60 s.
    ///
    /// The kernel sends a probe every 10 s, and breaks the connection when six have had no answer,
    /// which is by default two minutes after the last byte. Probes find clients that have vanished
    /// without closing, for example because of a power cut, in the times in which the server waits
    /// for nothing from its client: while a handler runs, between the chunks of a response, and
    /// after an upgrade. The kernel counts whole seconds, from 1 to 32,767, so the server rounds up
    /// a fraction and cuts a longer time.
    ///
    /// The server sets this option on the listening socket, and each connection inherits it. An
    /// inherited socket gets the option too, whatever was set on it before, and other processes
    /// that hold this socket share the setting. The option means nothing for Unix sockets.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::ListenOptions;
    /// use std::time::Duration;
    ///
    /// // The server notices within 75 s that a client has vanished.
    /// let options = ListenOptions::default().keepalive(Duration::from_secs(15));
    /// let listener = options.bind(&"127.0.0.1:0".parse()?)?;
    ///
    /// // Without probes, the server does not wake clients that run on a battery.
    /// let options = ListenOptions::default().keepalive(None);
    /// let quiet = options.bind(&"127.0.0.1:0".parse()?)?;
    /// # drop((listener, quiet));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn keepalive(mut self, silence: impl Into<Option<Duration>>) -> Self {
        self.keepalive = silence.into();
        self
    }

    /// Sets the permissions of a Unix socket's file. A client may connect if it may write to the
    /// file. From 0 to `0o777`. With `None`, the umask decides. Default: `None`.
    ///
    /// The file has this mode before the socket listens, so nobody can connect by the umask's
    /// permissions in between. The option has no effect on an inherited socket, whose file is its
    /// owner's, or on an abstract one, which has no file.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Address, ListenOptions};
    /// use std::os::unix::fs::PermissionsExt;
    ///
    /// let path = std::env::temp_dir().join(format!("app-{}.sock", std::process::id()));
    /// // The reverse proxy is in this program's group.
    /// let options = ListenOptions::default().unix_mode(0o660);
    /// let listener = options.bind(&Address::Unix(path.clone()))?;
    /// assert_eq!(path.metadata()?.permissions().mode() & 0o777, 0o660);
    /// # drop(listener);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn unix_mode(mut self, mode: impl Into<Option<u32>>) -> Self {
        self.unix_mode = mode.into();
        self
    }

    /// Takes the listening sockets that this process was started with, with these options, like
    /// [`Listener::inherited`].
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Listener::inherited`].
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::ListenOptions;
    ///
    /// for listener in ListenOptions::default().keepalive(None).inherited()? {
    ///     println!("{}", listener.address());
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn inherited(self) -> io::Result<Vec<Listener>> {
        let named =
            |error| io::Error::new(io::Error::kind(&error), format!("inherited sockets: {error}"));
        let all = inherited::all().map_err(named)?;
        all.into_iter().map(|one| Listener::adopt(one, None, self).map_err(named)).collect()
    }

    /// Takes a listening socket that the program has bound itself, such as one of the standard
    /// library's, with these options.
    ///
    /// [`Listen`] takes such a socket with the default options. [`ListenOptions::reuse_port`] has
    /// no effect here, because it has to be set before the socket is bound.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if it is not a listening TCP or Unix socket.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::ListenOptions;
    /// use std::net::TcpListener;
    ///
    /// let socket = TcpListener::bind("127.0.0.1:0")?;
    /// let listener = ListenOptions::default().keepalive(None).adopt(socket)?;
    /// # drop(listener);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn adopt(self, socket: impl Into<OwnedFd>) -> io::Result<Listener> {
        let socket = Socket::from(socket.into());
        let address = address_of(&socket)?;
        let file = |path: &Path| SocketFile::at(path).ok();
        let bound = Bound::of(socket, &address, self.keepalive, file)?;
        let shared = Shared { syn_filter: self.syn_filter, ..Shared::new(address, bound) };
        Ok(Listener::from(shared))
    }

    /// Binds an address and listens on it, as [`Listener::bind`] does, with these options.
    ///
    /// # Errors
    ///
    /// As [`Listener::bind`].
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::ListenOptions;
    /// use std::io;
    ///
    /// let options = ListenOptions::default();
    /// let listener = options.bind(&"127.0.0.1:0".parse()?)?;
    /// let error = options.bind(listener.address()).unwrap_err();
    /// assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    /// assert!(error.to_string().contains(&listener.address().to_string()));
    /// # Ok::<(), io::Error>(())
    /// ```
    pub fn bind(self, address: &Address) -> io::Result<Listener> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot listen on {address}: {}", reason(&error)))
        };
        threads::check().map_err(named)?;
        if let Some(inherited) = inherited::matching(address).map_err(named)? {
            let origin = if let Address::Fd(fd) = *address { Some(fd) } else { None };
            return Listener::adopt(inherited, origin, self).map_err(named);
        }
        match address {
            Address::Unix(path) => self.unix(path),
            Address::Abstract(name) => self.abstract_name(name),
            // Of what is not an address, there is nothing to bind.
            _ => self.tcp(&address.candidates()),
        }
        .map_err(named)
    }

    fn tcp(self, candidates: &[SocketAddr]) -> io::Result<Listener> {
        let socket = TcpBind::first(candidates, self.reuse_port)?;
        let socket = tcp(socket, self.keepalive)?;
        let address = Address::Tcp(socket.get_ref().local_addr()?);
        let shared =
            Shared { syn_filter: self.syn_filter, ..Shared::new(address, Bound::Tcp(socket)) };
        Ok(Listener::from(shared))
    }

    fn unix(self, path: &Path) -> io::Result<Listener> {
        let (socket, file) = bind::unix(path, self.unix_mode)?;
        let socket = Async::new(UnixListener::from(socket))?;
        let bound = Bound::Unix { socket, file: Some(file) };
        Ok(Listener::from(Shared::new(Address::Unix(path.to_owned()), bound)))
    }

    fn abstract_name(self, name: &OsStr) -> io::Result<Listener> {
        let socket = Async::new(UnixListener::from(bind::abstract_name(name)?))?;
        let bound = Bound::Unix { socket, file: None };
        Ok(Listener::from(Shared::new(Address::Abstract(name.to_owned()), bound)))
    }
}

/// What clones of a listener share.
struct Shared {
    address: Address,
    /// How this process has got it; `None` if this process has bound it.
    passed: Option<Passed>,
    /// `None` once closed.
    socket: Mutex<Option<Bound>>,
    /// The reason for closing the listener, if the server did not want that.
    failure: OnceLock<String>,
    /// The others that accept from the socket.
    others: Mutex<Others>,
    /// Handshakes are held back before the close.
    syn_filter: bool,
    handshakes: Arc<Handshakes>,
    /// Exhaustion was logged, and the queue has not been empty since: the episode goes on.
    is_exhausted: AtomicBool,
}

/// How a socket was passed to this process.
struct Passed {
    /// The descriptor as which it was passed.
    fd: RawFd,
    /// Its name in LISTEN_FDNAMES.
    name: Option<String>,
    /// The descriptor by which the operator knows it.
    #[cfg_attr(not(feature = "restart"), allow(dead_code, reason = "a successor needs it"))]
    origin: Option<RawFd>,
    /// The predecessor's words on it, if a predecessor has handed it over.
    handed: Option<Handed>,
}

/// The processes that accept from a socket beside this one.
enum Others {
    /// Nobody does.
    Nobody,
    /// Perhaps somebody does, because the socket was passed to this process.
    Unknown,
    /// A predecessor does, until it has seen for a while that this process serves, and no longer
    /// waits for this process. A predecessor that is suspended meanwhile waits for longer.
    Predecessor { until: Instant, notify: Arc<Notify> },
    /// A successor does.
    #[cfg_attr(not(feature = "restart"), allow(dead_code, reason = "nobody starts a successor"))]
    Successor,
}

impl Shared {
    fn new(address: Address, socket: Bound) -> Self {
        Self {
            handshakes: Arc::new(Handshakes::of(address.clone())),
            address,
            passed: None,
            socket: Mutex::new(Some(socket)),
            failure: OnceLock::new(),
            others: Mutex::new(Others::Nobody),
            syn_filter: false,
            is_exhausted: AtomicBool::new(false),
        }
    }
}

impl From<Shared> for Listener {
    fn from(shared: Shared) -> Self {
        Self { shared: Arc::new(shared), wrapper: None }
    }
}

impl Listener {
    /// Binds `address` and listens on it, with the default [`ListenOptions`].
    ///
    /// If this process was started with a socket that listens there (LISTEN_FDS), that one is
    /// taken. A Unix socket's file that no server answers on any more is replaced.
    ///
    /// # Errors
    ///
    /// Returns one line that names the address and says why it could not be bound, and what to do.
    /// [`io::ErrorKind::AddrInUse`] if another process listens there, or this program does already.
    /// For `fd:N`, an error if the descriptor is not a listening socket, or was taken before. For a
    /// Unix socket, [`io::ErrorKind::AlreadyExists`] if a file is there that is not a socket. For
    /// an abstract one, [`io::ErrorKind::Unsupported`] on other systems than Linux.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Address, Listener};
    /// use std::net::TcpStream;
    ///
    /// let listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
    /// let Address::Tcp(addr) = *listener.address() else { unreachable!() };
    /// // Clients can connect from now on; the kernel has them wait until a server takes them.
    /// TcpStream::connect(addr)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn bind(address: &Address) -> io::Result<Self> {
        ListenOptions::default().bind(address)
    }

    /// Takes the listening sockets that this process was started with, as systemd passes them.
    /// LISTEN_FDS says how many, LISTEN_PID for which process, and LISTEN_FDNAMES what they are
    /// called. Returns an empty list if there are none, if they are meant for another process, or
    /// if the program has taken them before.
    ///
    /// When the server stops, it takes every connection that is queued, and then lets go of the
    /// sockets (rule S5). It does not shut them down, so another process that has them goes on. It
    /// removes a socket's file only if no other process has the socket. From here on
    /// they are non-blocking and have the default [`ListenOptions::keepalive`], also in other
    /// processes that hold them.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if one of them is not a listening TCP or Unix socket, or if
    /// the variables make no sense.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Listener;
    ///
    /// for listener in Listener::inherited()? {
    ///     println!("{} is called {:?}", listener.address(), listener.name());
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn inherited() -> io::Result<Vec<Self>> {
        ListenOptions::default().inherited()
    }

    /// Takes connections from a source of the program's own, such as a pipe in a test.
    ///
    /// When the stream ends, no further connection comes, but the server goes on until it is
    /// stopped. The server treats errors of the stream like those of `accept`. It skips the error
    /// of a single connection, and after any other error it tries again later, from 5 ms up to 1 s.
    ///
    /// The stream should bring each connection as soon as it has it, so that a stop loses no
    /// client. Work for each connection that takes time (a handshake, the head of the PROXY
    /// protocol) belongs into [`Listener::wrap`], because the server counts a connection only when
    /// the stream has brought it, and does not know of connections on which the stream still works.
    /// At the stop the server polls the stream until it returns `Pending`, and then drops it with
    /// everything in it.
    ///
    /// A source has no queue that the server could look at. If the server serves
    /// [`Limits::connections`], the source's clients wait until one of those connections has ended,
    /// even if some are idle. The program sets the options of the sockets, such as keep-alive
    /// probes, itself.
    ///
    /// If the stream panics, the server closes its listener, logs the panic, and stops, as by
    /// [`Shutdown::stop`]. [`Server::serve`] and [`run`] finish what is in flight, and then return
    /// an error that names the panic and the line that has called this function.
    ///
    /// [`Limits::connections`]: crate::Limits::connections
    /// [`Shutdown::stop`]: crate::Shutdown::stop
    /// [`Server::serve`]: crate::Server::serve
    /// [`run`]: crate::run
    ///
    /// # Examples
    ///
    /// An accept loop of the program's own:
    ///
    /// ```
    /// use futures_lite::{StreamExt, stream};
    /// use smol::Async;
    /// use smol_graceful::{Connection, Listener};
    /// use std::net::TcpListener;
    ///
    /// # smol::block_on(async {
    /// let socket = Async::<TcpListener>::bind(([127, 0, 0, 1], 0))?;
    /// let connections = stream::unfold(socket, |socket| async {
    ///     let accepted = socket.accept().await.map(|(stream, _)| Connection::from(stream));
    ///     Some((accepted, socket))
    /// });
    /// let listener = Listener::of(connections);
    /// # drop(listener);
    /// # std::io::Result::Ok(())
    /// # }).unwrap();
    /// ```
    ///
    /// A pipe:
    ///
    /// ```
    /// use futures_lite::stream;
    /// use smol_graceful::{Connection, Listener};
    ///
    /// let (client, connection) = Connection::pair();
    /// let listener = Listener::of(stream::once(Ok(connection)));
    /// # drop((client, listener));
    /// ```
    #[track_caller]
    pub fn of(connections: impl Stream<Item = io::Result<Connection>> + Send + 'static) -> Self {
        Self::from(Shared::new(Address::Other, Bound::Other(Source::new(connections))))
    }

    /// Lets `wrap` turn each accepted connection into the stream that the server speaks HTTP on,
    /// above all for TLS.
    ///
    /// `wrap` runs in the connection's own task, begins with the client's first byte, and has 10 s,
    /// or [`Limits::head_timeout`] if that is shorter. The server has counted the connection by
    /// then, so a stop waits for `wrap`, and an abort names the connection that it cuts there. A
    /// second call replaces the first.
    ///
    /// If `wrap` fails, panics or takes too long, the server ends the connection.
    /// [`Listener::failed_handshakes`] counts such connections. The server logs each of them at the
    /// level `debug`. At the level `info`, it logs once a second at most how many there have been,
    /// and the last of them.
    ///
    /// If `wrap` returns the [`Connection`] that it was given, the server serves a socket as a
    /// plain socket, without any cost. `wrap` may also set the address of the client by
    /// [`Connection::from_peer`], if a proxy in front tells it. Requests, the log and the outcome
    /// then name that peer. `examples/proxy_protocol.rs` does both. Only a [`Connection`] that
    /// `wrap` returns names a peer. With TLS behind such a proxy, return
    /// `Connection::new(tls_stream).from_peer(peer)`.
    ///
    /// [`Limits::head_timeout`]: crate::Limits::head_timeout
    ///
    /// # Examples
    ///
    /// `examples/tls.rs` does it with rustls, which comes down to:
    ///
    /// ```
    /// use smol_graceful::Listener;
    ///
    /// # struct Acceptor;
    /// # impl Acceptor { async fn accept<T>(&self, stream: T) -> std::io::Result<T> { Ok(stream) } }
    /// # let acceptor = std::sync::Arc::new(Acceptor);
    /// let listener = Listener::bind(&"127.0.0.1:0".parse()?)?.wrap(move |connection| {
    ///     let acceptor = acceptor.clone();
    ///     async move { acceptor.accept(connection).await }
    /// });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn wrap<W, F, C>(mut self, wrap: W) -> Self
    where
        W: Fn(Connection) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<C>> + Send + 'static,
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.wrapper = Some(Arc::new(Wrapper::new(wrap, self.shared.handshakes.clone())));
        self
    }

    /// Returns on how many connections [`Listener::wrap`] has failed, because it returned an error,
    /// panicked, or took too long. Clones of a listener share one count.
    ///
    /// A client that leaves without having sent a byte does not count.
    ///
    /// # Examples
    ///
    /// For a gauge of the program's own:
    ///
    /// ```
    /// use smol_graceful::{Listener, Server};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # async fn handshake<T>(stream: T) -> std::io::Result<T> { Ok(stream) }
    /// let listener = Listener::bind(&"127.0.0.1:0".parse()?)?.wrap(handshake);
    /// let gauge = listener.clone();
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// # server.handle().stop();
    /// smol::block_on(server.serve([listener]))?;
    /// println!("{} handshakes have failed", gauge.failed_handshakes());
    /// # assert_eq!(gauge.failed_handshakes(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn failed_handshakes(&self) -> u64 {
        self.shared.handshakes.failed()
    }

    /// Takes an inherited socket, which the operator knows by the descriptor `origin`.
    fn adopt(
        inherited: Inherited,
        origin: Option<RawFd>,
        options: ListenOptions,
    ) -> io::Result<Self> {
        let Inherited { socket, address, name, fd, handed } = inherited;
        let is_own = handed.as_ref().is_some_and(|handed| handed.is_own);
        let file = handed.as_ref().and_then(|handed| handed.file.clone());
        let bound = Bound::of(socket, &address, options.keepalive, |path| {
            SocketFile::at(file.as_deref().unwrap_or(path)).ok()
        })?;
        let syn_filter = options.syn_filter && is_own;
        if options.syn_filter && !syn_filter {
            log::warn!("no SYN filter on {address}, because another process may accept from it");
        }
        let passed = Some(Passed { fd, name, origin, handed });
        let others = Mutex::new(Others::Unknown);
        Ok(Self::from(Shared { passed, others, syn_filter, ..Shared::new(address, bound) }))
    }

    /// Notes that this process serves, so a socket that a predecessor has handed over is its own
    /// now.
    pub(crate) fn take_over(&self, notify: &Arc<Notify>) {
        let mut others = self.others();
        // A successor of this process may have it already.
        if matches!(*others, Others::Unknown) && self.is_own() {
            let until = Instant::now() + TRUSTED;
            *others = Others::Predecessor { until, notify: notify.clone() };
        }
    }

    /// Returns `true` if this process or a predecessor has bound the socket.
    pub(crate) fn is_own(&self) -> bool {
        let Some(passed) = &self.shared.passed else { return true };
        passed.handed.as_ref().is_some_and(|handed| handed.is_own)
    }

    /// Returns the descriptor as which a predecessor has passed the socket.
    pub(crate) fn handed_as(&self) -> Option<RawFd> {
        let passed = self.shared.passed.as_ref()?;
        passed.handed.as_ref().map(|_| passed.fd)
    }

    /// Returns the address of the listener: with the kernel's choice where the port was 0, and what
    /// the socket itself says for `:8082` and `fd:0`.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Listen;
    ///
    /// let listener = "127.0.0.1:0".listen()?;
    /// let address = listener.address().to_string();
    /// assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// Returns what LISTEN_FDNAMES calls an inherited socket (systemd's `FileDescriptorName=`).
    /// Returns `None` for a socket that has no name there, or that this process has bound itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Listener;
    ///
    /// let inherited = Listener::inherited()?;
    /// let admin = inherited.into_iter().find(|listener| listener.name() == Some("admin"));
    /// // Started by hand, it binds its own, which has no name.
    /// let admin = admin.map_or_else(|| Listener::bind(&"127.0.0.1:0".parse()?), Ok)?;
    /// assert_eq!(admin.name(), None);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.shared.passed.as_ref()?.name.as_deref()
    }

    /// Returns `true` if this process was started with the socket, and `false` if it has bound the
    /// socket itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Listener;
    ///
    /// for listener in Listener::inherited()? {
    ///     assert!(listener.is_inherited());
    /// }
    /// let own = Listener::bind(&"127.0.0.1:0".parse()?)?;
    /// assert!(!own.is_inherited());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn is_inherited(&self) -> bool {
        self.shared.passed.is_some()
    }

    /// Returns the reason for closing the listener, if the server did not want that: its source has
    /// panicked.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.shared.failure.get().cloned().map(io::Error::other)
    }

    /// Returns `true` if a successor has taken over.
    pub(crate) fn is_handed_over(&self) -> bool {
        matches!(*self.others(), Others::Successor)
    }

    /// Hands the next connection to `take`. Returns `false` once the listener is closed, and
    /// [`Listener::failure`] may then say why.
    ///
    /// Does not hold on to `take` while nobody comes: drops it, and returns when there may be
    /// someone.
    ///
    /// `take` runs before the listener can be closed: what counts connections misses none
    /// (rule S1). Never fails for good (rule S18): an error of one connection is skipped;
    /// exhaustion is waited out, from 5 ms up to 1 s, and logged once an episode.
    ///
    /// # Cancel safety
    ///
    /// No connection is lost when the future is dropped.
    pub(crate) async fn accept(&self, take: impl FnOnce(Accepted)) -> bool {
        let mut take = Some(take);
        let mut pause = Duration::ZERO;
        loop {
            let accepted = poll_fn(|cx| {
                if take.is_none() {
                    return Poll::Ready(Ok(true));
                }
                let accepted = self.poll_accept(cx, &mut take);
                if accepted.is_pending() {
                    take = None;
                }
                accepted
            });
            match accepted.await {
                Ok(is_open) => return is_open,
                Err(error) => pause = self.wait(pause, &error).await,
            }
            // A source that brings nothing but errors must not keep others from their turn.
            future::yield_now().await;
        }
    }

    /// Waits until a client is in the queue, and leaves it there. Never ready for a listener
    /// without a socket, because it has no queue to look at.
    pub(crate) async fn has_client(&self) {
        poll_fn(|cx| {
            let bound = self.bound();
            let Some(bound) = bound.as_ref().filter(|bound| bound.socket().is_some()) else {
                return Poll::Pending;
            };
            // The first event may be an old one that an accept has answered already.
            for _ in 0..2 {
                if bound.has_queue() {
                    return Poll::Ready(());
                }
                let _ = ready!(bound.poll_readable(cx));
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Takes every connection that the kernel has queued and closes (rule S4). Only closes if a
    /// successor accepts from the socket (rule S5).
    ///
    /// Waits for descriptors when there are none left, as the queue is lost otherwise. Whoever
    /// waits in [`Listener::accept`] is not woken.
    pub(crate) async fn close(&self, mut take: impl FnMut(Accepted)) {
        self.remove_file();
        // Held back for others too, handshakes would never be answered again.
        if self.shared.syn_filter && self.is_alone() && self.hold_back_handshakes() {
            Timer::after(HANDSHAKES).await;
        }
        let mut pause = Duration::ZERO;
        while let Err(error) = self.empty_queue(&mut take) {
            pause = self.wait(pause, &error).await;
        }
        self.let_go();
    }

    /// Takes what is queued, for the last time, and closes. Does nothing if the listener is closed.
    ///
    /// # Errors
    ///
    /// Returns the reason for which clients are left in the queue, and so are lost.
    pub(crate) fn close_at_once(&self, take: impl FnMut(Accepted)) -> io::Result<()> {
        let emptied = self.empty_queue(take);
        let has_queue = self.bound().as_ref().is_some_and(|bound| bound.socket().is_some());
        self.let_go();
        // An error of a source tells of no client.
        if has_queue { emptied } else { Ok(()) }
    }

    /// Closes, whatever is queued.
    pub(crate) fn let_go(&self) {
        self.remove_file();
        *self.bound() = None;
    }

    /// Removes the file of a Unix socket that no other process has, so that no client joins the
    /// queue any more. The file of another socket is removed behind the close, if it is of no more
    /// use then.
    fn remove_file(&self) {
        if let (true, Some(Bound::Unix { file: Some(file), .. })) =
            (self.is_alone(), &*self.bound())
        {
            file.remove();
        }
    }

    /// Returns `true` if no other process accepts from the socket.
    fn is_alone(&self) -> bool {
        match &*self.others() {
            Others::Nobody => true,
            // A predecessor that still waits goes on if this process ends.
            Others::Predecessor { until, notify } => {
                *until <= Instant::now() && !notify.is_awaited()
            }
            Others::Unknown | Others::Successor => false,
        }
    }

    /// Lets no further handshake begin; those under way go on, and a client that is held back tries
    /// again in a second. Returns `false` if the kernel does not do that.
    #[cfg(target_os = "linux")]
    fn hold_back_handshakes(&self) -> bool {
        use socket2::SockFilter;
        /// A program for the kernel: of a TCP header, drop what has SYN and no ACK.
        const NO_SYN: [SockFilter; 5] = [
            SockFilter::new(0x30, 0, 0, 13),       // load the byte of the flags
            SockFilter::new(0x54, 0, 0, 0x12),     // keep SYN and ACK
            SockFilter::new(0x15, 0, 1, 0x02),     // SYN alone?
            SockFilter::new(0x06, 0, 0, 0),        // drop
            SockFilter::new(0x06, 0, 0, u32::MAX), // pass
        ];
        match &*self.bound() {
            Some(Bound::Tcp(socket)) => match SockRef::from(socket).attach_filter(&NO_SYN) {
                Ok(()) => true,
                Err(error) => {
                    log::warn!("no SYN filter on {}: {}", self.address(), reason(&error));
                    false
                }
            },
            Some(Bound::Unix { .. } | Bound::Other(_)) | None => false,
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn hold_back_handshakes(&self) -> bool {
        false
    }

    /// Takes every connection that the kernel has queued, unless a successor does (rule S5). Ends
    /// even under a flood of new ones.
    ///
    /// # Errors
    ///
    /// Returns the error that kept it from taking all.
    pub(crate) fn empty_queue(&self, mut take: impl FnMut(Accepted)) -> io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < FLOOD && !self.is_handed_over() {
            let mut bound = self.bound();
            match self.poll_next(&mut bound, &mut Context::from_waker(Waker::noop())) {
                // With the lock held, as in `accept`.
                Poll::Ready(Some(Ok((transport, peer)))) => take(self.accepted(transport, peer)),
                Poll::Pending | Poll::Ready(None) => return Ok(()),
                Poll::Ready(Some(Err(error))) if is_of_one_connection(&error) => {}
                Poll::Ready(Some(Err(error))) if is_of_no_listener(&error) => return Ok(()),
                Poll::Ready(Some(Err(error))) => return Err(error),
            }
        }
        Ok(())
    }

    fn poll_accept(
        &self,
        cx: &mut Context<'_>,
        take: &mut Option<impl FnOnce(Accepted)>,
    ) -> Poll<io::Result<bool>> {
        let mut bound = self.bound();
        let accepted = self.poll_next(&mut bound, cx);
        if accepted.is_pending() {
            self.shared.is_exhausted.store(false, Ordering::Relaxed);
        }
        let Some(accepted) = ready!(accepted) else { return Poll::Ready(Ok(false)) };
        let (transport, peer) = accepted?;
        if let Some(take) = take.take() {
            take(self.accepted(transport, peer));
        }
        Poll::Ready(Ok(true))
    }

    /// Returns the next connection of `bound`, which the caller has locked. Returns `None` once
    /// `bound` is closed. Closes `bound` if its source has failed.
    fn poll_next(
        &self,
        bound: &mut Option<Bound>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<(Transport, Peer)>>> {
        let Some(open) = bound else { return Poll::Ready(None) };
        let accepted = open.poll_accept(cx);
        let Some(failure) = open.failure() else { return accepted.map(Some) };
        log::error!("{failure}");
        let _ = self.shared.failure.set(failure.to_owned());
        *bound = None;
        Poll::Ready(None)
    }

    fn accepted(&self, transport: Transport, peer: Peer) -> Accepted {
        Accepted { transport, peer, wrapper: self.wrapper.clone() }
    }

    /// Waits as long as `error` of `accept` asks for, longer than `pause` before; not at all if it
    /// is one connection's own.
    async fn wait(&self, pause: Duration, error: &io::Error) -> Duration {
        const SHORTEST: Duration = Duration::from_millis(5);
        const LONGEST: Duration = Duration::from_secs(1);
        if is_of_one_connection(error) {
            return pause;
        }
        if !self.shared.is_exhausted.swap(true, Ordering::Relaxed) {
            let reason = if is_of_no_listener(error) {
                "another process has shut the socket down".into()
            } else {
                reason(error)
            };
            log::error!("cannot accept on {}, trying again: {reason}", self.address());
        }
        let pause = (pause * 2).clamp(SHORTEST, LONGEST);
        Timer::after(pause).await;
        pause
    }

    fn bound(&self) -> MutexGuard<'_, Option<Bound>> {
        self.shared.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.shared.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a hand-over needs.
#[cfg(feature = "restart")]
impl Listener {
    /// Returns a copy of the socket, for a successor.
    ///
    /// # Errors
    ///
    /// If it is closed, or there are no descriptors left.
    pub(crate) fn copy(&self) -> io::Result<OwnedFd> {
        match self.bound().as_ref().and_then(Bound::socket) {
            Some(socket) => socket.try_clone_to_owned(),
            None => Err(io::Error::other(format!("{}: closed, or no socket", self.address()))),
        }
    }

    /// Returns what a successor has to know of the socket.
    ///
    /// # Errors
    ///
    /// As [`Listener::copy`].
    pub(crate) fn handed(&self) -> io::Result<Handed> {
        let socket = inherited::inode(self.copy()?)?;
        let file = match &*self.bound() {
            Some(Bound::Unix { file: Some(file), .. }) => Some(file.path().to_owned()),
            _ => None,
        };
        let origin = self.shared.passed.as_ref().and_then(|passed| passed.origin);
        Ok(Handed { socket, is_own: self.is_own(), file, origin })
    }

    /// Returns `true` if no client finds the Unix socket any more, because its file was removed.
    pub(crate) fn has_lost_its_file(&self) -> bool {
        match &*self.bound() {
            Some(Bound::Unix { file: Some(file), .. }) => file.is_removed(),
            _ => false,
        }
    }

    /// Returns `true` if another file has the name of the Unix socket's, so that no client finds
    /// the socket.
    pub(crate) fn has_another_file(&self) -> bool {
        match &*self.bound() {
            Some(Bound::Unix { file: Some(file), .. }) => file.is_replaced(),
            _ => false,
        }
    }

    /// A successor accepts from the socket from now on.
    pub(crate) fn hand_over(&self) {
        *self.others() = Others::Successor;
    }
}

/// How long after its word READY a successor has the sockets for itself. Its predecessor looks at
/// it for a shorter time, and goes on if the successor ends by then.
const TRUSTED: Duration = Duration::from_millis(200);

/// How long a handshake that is under way may take until the close, with a SYN filter.
const HANDSHAKES: Duration = Duration::from_millis(50);

/// How long the kernel's queue is emptied before the close when clients keep refilling it.
const FLOOD: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    #[test]
    fn every_interface_means_both_families() {
        let listener = ":0".listen().unwrap();
        let Address::Tcp(addr) = listener.address() else { panic!("{listener:?}") };
        TcpStream::connect((Ipv4Addr::LOCALHOST, addr.port())).unwrap();
    }

    #[test]
    fn an_address_in_use_is_named() {
        let first = "127.0.0.1:0".listen().unwrap();
        let error = first.address().listen().unwrap_err().to_string();
        let addr = first.address();
        let line = "this program listens on it already; leave one of the two out";
        assert_eq!(error, format!("cannot listen on {addr}: {line}"));
    }

    /// Rule S4: what had been queued is taken, and only then the door is closed.
    #[test]
    fn close_takes_the_queue() {
        let listener = "127.0.0.1:0".listen().unwrap();
        let Address::Tcp(addr) = *listener.address() else { unreachable!() };
        let clients: Vec<_> = (0..20).map(|_| TcpStream::connect(addr).unwrap()).collect();
        let mut taken = 0;
        block_on(listener.close(|_| taken += 1));
        assert_eq!(taken, clients.len());
        assert!(TcpStream::connect(addr).is_err());
        assert!(!block_on(listener.accept(|_| unreachable!())));
    }

    /// A connection inherits the options of its listening socket.
    #[test]
    fn connections_are_probed_when_they_are_silent() {
        let minute = Duration::from_secs(60);
        let options = ListenOptions::default();
        let address = "127.0.0.1:0".parse().unwrap();
        let own = || TcpListener::bind("127.0.0.1:0").unwrap();
        for (listener, silence) in [
            (Listener::bind(&address), Some(minute)),
            (own().listen(), Some(minute)),
            (options.adopt(own()), Some(minute)),
            (options.keepalive(2 * minute).bind(&address), Some(2 * minute)),
            // Rounded up, because 0 s would be an error.
            (options.keepalive(minute / 100).bind(&address), Some(minute / 60)),
            (options.keepalive(Duration::MAX).bind(&address), Some(Duration::from_secs(32_767))),
            (options.keepalive(None).bind(&address), None),
            (options.keepalive(Duration::ZERO).bind(&address), None),
            (options.keepalive(None).adopt(own()), None),
        ] {
            let listener = listener.unwrap();
            let Address::Tcp(addr) = *listener.address() else { unreachable!() };
            let _client = TcpStream::connect(addr).unwrap();
            let mut accepted = None;
            assert!(block_on(listener.accept(|connection| accepted = Some(connection.transport))));
            let Some(Transport::Plain(socket)) = &accepted else { panic!("{accepted:?}") };
            let socket = SockRef::from(socket);
            assert_eq!(socket.keepalive().unwrap(), silence.is_some());
            if let Some(silence) = silence {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), silence);
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), 6);
            }
        }
    }

    /// A connection inherits this option, too: its close would block the worker that closes it.
    #[test]
    fn no_close_of_a_connection_waits_for_its_client() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&socket).set_linger(Some(Duration::from_secs(30))).unwrap();
        let listener = socket.listen().unwrap();
        let Address::Tcp(addr) = *listener.address() else { unreachable!() };
        let _client = TcpStream::connect(addr).unwrap();
        let mut accepted = None;
        assert!(block_on(listener.accept(|connection| accepted = Some(connection.transport))));
        let Some(Transport::Plain(socket)) = &accepted else { panic!("{accepted:?}") };
        assert_eq!(SockRef::from(socket).linger().unwrap(), None);
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_ours_removed() {
        let path = temporary("stale");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Address::Unix(path.clone()).listen().unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"hello").unwrap();
        let mut taken = 0;
        block_on(listener.close(|accepted| taken += usize::from(accepted.peer == Peer::Unix)));
        assert_eq!(taken, 1);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_file_is_not_stolen() {
        let path = temporary("live");
        let first = Address::Unix(path.clone()).listen().unwrap();
        let error = Address::Unix(path.clone()).listen().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let path = temporary("file");
        std::fs::write(&path, "precious").unwrap();
        let error = Address::Unix(path.clone()).listen().unwrap_err();
        assert!(error.to_string().contains(": the file exists and is not a socket; "), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_successors_socket_file_is_left_alone() {
        let path = temporary("successor");
        let first = Address::Unix(path.clone()).listen().unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Address::Unix(path.clone()).listen().unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
    }

    fn temporary(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("sg-{}-{name}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }
}
