//! [`Listen`], [`ListenOptions`]: the ways to a [`Listener`], which binds an address or takes a
//! socket that this process was started with.
//!
//! Invariant: a TCP socket has its options before it accepts, because its connections inherit them.
//! This file does not accept, and does not close.

pub(crate) mod bind;
pub(crate) mod bind_error;
mod bound;
pub(crate) mod inherited;
pub(crate) mod listener;
pub(crate) mod own_sockets;
mod ownership;
pub(crate) mod passing;
pub(crate) mod socket_file;
pub(crate) mod source;
pub(crate) mod wrapper;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use async_io::Async;
use socket2::{Socket, TcpKeepalive};

use crate::address::{Address, AddressError};
use crate::error::during;
use crate::listen::bind::TcpBind;
use crate::listen::bind_error::BindError;
use crate::listen::bound::Bound;
use crate::listen::listener::Listener;
use crate::listen::passing::Passed;
use crate::listen::socket_file::SocketFile;
use crate::threads;

/// A value that can be turned into a [`Listener`]: an address, its text, a listening socket of the
/// standard library, or a listener itself.
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
    /// Binds the address, or takes the socket, and returns the listener.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Listener::bind`], and [`io::ErrorKind::InvalidInput`] for a text
    /// that is not an address.
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
        Listener::bind(self)
    }
}

impl Listen for &str {
    fn listen(self) -> io::Result<Listener> {
        Listener::bind(self)
    }
}

impl Listen for String {
    fn listen(self) -> io::Result<Listener> {
        Listener::bind(self)
    }
}

impl Listen for SocketAddr {
    fn listen(self) -> io::Result<Listener> {
        Listener::bind(self)
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

/// A result lets an iterator listen while it runs, because [`run`] asks for its listeners after it
/// has begun to handle signals. `run` returns the first error.
///
/// [`run`]: crate::run
impl<L: Listen> Listen for io::Result<L> {
    fn listen(self) -> io::Result<Listener> {
        self?.listen()
    }
}

/// Options for listening, where the defaults of [`Listener::bind`] do not fit.
///
/// # Examples
///
/// ```
/// use smol_graceful::ListenOptions;
///
/// let options = ListenOptions::default().reuse_port(true);
/// let first = options.bind("127.0.0.1:0")?;
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
    /// Lets other sockets of the same user, such as a successor's, bind the same TCP address at the
    /// same time (`SO_REUSEPORT`). All of these sockets need the option. Default: no.
    ///
    /// The kernel gives each new connection to one of the sockets, so no client is refused while
    /// both listen. The option has no effect on Unix sockets.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{ListenOptions, Listener};
    ///
    /// let options = ListenOptions::default().reuse_port(true);
    /// let first = options.bind("127.0.0.1:0")?;
    /// let successor = options.bind(first.address())?;
    /// assert_eq!(successor.address(), first.address());
    /// // A socket without the option is refused.
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
    /// Without the filter, the kernel resets a handshake that is under way in the very moment of
    /// the close. Under load this happens to a client or two in some stops. With the filter, no
    /// handshake is reset, but a client that begins one in those 50 ms waits a second until its
    /// kernel tries again. Then a successor answers, or the client is refused. So the filter is
    /// right for a restart in place, and wrong behind a balancer, which would go elsewhere at once.
    ///
    /// The filter needs Linux (`SO_ATTACH_FILTER`). A socket that another program has bound never
    /// gets the filter, because that program may accept from the socket.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{ListenOptions, Server, Shutdown};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let options = ListenOptions::default().syn_filter(true);
    /// let listener = options.bind("127.0.0.1:0")?;
    /// let shutdown = Shutdown::new();
    /// let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
    /// shutdown.stop();
    ///
    /// // On Linux the close takes 50 ms, and no client is lost.
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
    /// inherited socket gets the option, too, even if its old setting was another one, and other
    /// processes that hold the socket share the setting. The option has no effect on Unix sockets.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::ListenOptions;
    /// use std::time::Duration;
    ///
    /// // The server notices within 75 s that a client has vanished.
    /// let options = ListenOptions::default().keepalive(Duration::from_secs(15));
    /// let listener = options.bind("127.0.0.1:0")?;
    ///
    /// // Without probes, the server does not wake clients that run on a battery.
    /// let options = ListenOptions::default().keepalive(None);
    /// let quiet = options.bind("127.0.0.1:0")?;
    /// # drop((listener, quiet));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn keepalive(mut self, silence: impl Into<Option<Duration>>) -> Self {
        self.keepalive = silence.into();
        self
    }

    /// Sets the permissions of a Unix socket's file. A client may connect if it may write to the
    /// file. The mode is from 0 to `0o777`. With `None`, the umask decides. Default: `None`.
    ///
    /// The file has this mode before the socket listens, so no client can connect by the umask's
    /// permissions in between. The option has no effect on an inherited socket, whose file belongs
    /// to another program, or on an abstract one, which has no file.
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

    /// Takes the listening sockets that this process was started with, as [`Listener::inherited`]
    /// does, with these options.
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
        let take = |(socket, passed)| self.listener(socket, None, Some(passed));
        let listeners = inherited::given().and_then(|given| given.into_iter().map(take).collect());
        listeners.map_err(during("inherited sockets"))
    }

    /// Takes a listening socket that the program has bound itself, for example with the standard
    /// library, and sets these options.
    ///
    /// [`Listen`] takes such a socket with the default options. [`ListenOptions::reuse_port`] has
    /// no effect here, because that option has to be set before the bind.
    ///
    /// # Errors
    ///
    /// Returns [`io::ErrorKind::InvalidInput`] if the socket is not a listening TCP or Unix socket.
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
        self.listener(Socket::from(socket.into()), None, None)
    }

    /// Binds an address and listens on it, as [`Listener::bind`] does, with these options.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Listener::bind`].
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::ListenOptions;
    /// use std::io;
    ///
    /// let options = ListenOptions::default();
    /// let listener = options.bind("127.0.0.1:0")?;
    /// let error = options.bind(listener.address()).unwrap_err();
    /// assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    /// assert!(error.to_string().contains(&listener.address().to_string()));
    /// # Ok::<(), io::Error>(())
    /// ```
    pub fn bind(
        self,
        address: impl TryInto<Address, Error: Into<AddressError>>,
    ) -> io::Result<Listener> {
        let address = address.try_into().map_err(Into::into)?;
        self.bind_or_take(&address).map_err(during(format_args!("cannot listen on {address}")))
    }

    fn bind_or_take(self, address: &Address) -> io::Result<Listener> {
        threads::check()?;
        if let Some((socket, passed)) = inherited::matching(address)? {
            return self.listener(socket, None, Some(passed));
        }
        let worded = |error: BindError| error.worded(address);
        let (socket, file) = match address {
            Address::Unix(path) => {
                let (socket, file) = bind::unix(path, self.unix_mode).map_err(worded)?;
                (socket, Some(file))
            }
            Address::Abstract(name) => (bind::abstract_name(name).map_err(worded)?, None),
            // `first` returns an error for an address without candidates.
            _ => (TcpBind::first(&address.candidates(), self.reuse_port)?, None),
        };
        self.listener(socket, file, None)
    }

    /// Makes a listener of a listening socket. `passed` is `None` if this program has bound the
    /// socket. Without `file`, looks for the file of a Unix socket.
    fn listener(
        self,
        socket: Socket,
        file: Option<SocketFile>,
        passed: Option<Passed>,
    ) -> io::Result<Listener> {
        threads::check()?;
        let address = Address::of(&socket)?;
        let file = file.or_else(|| {
            let Address::Unix(path) = &address else { return None };
            SocketFile::at(
                passed.as_ref().and_then(|passed| passed.file.as_deref()).unwrap_or(path),
            )
            .ok()
        });
        let is_tcp = matches!(address, Address::Tcp(_));
        if is_tcp {
            self.set_tcp_options(&socket)?;
        }
        if self.syn_filter && passed.as_ref().is_some_and(|passed| !passed.is_own) {
            log::warn!("no SYN filter on {address}, because another process may accept from it");
        }
        let bound = Bound::Socket { socket: Async::new(socket)?, file };
        Ok(Listener::new(address, bound, passed, self.syn_filter && is_tcp))
    }

    /// Sets the options that accepted connections inherit.
    fn set_tcp_options(self, socket: &Socket) -> io::Result<()> {
        // The server writes responses whole, so a wait for more bytes would only delay them.
        socket.set_tcp_nodelay(true)?;
        // An inherited socket may have this option. The close of a connection would then block the
        // worker, or reset the connection.
        socket.set_linger(None)?;
        match self.keepalive.filter(|silence| !silence.is_zero()) {
            Some(silence) => socket.set_tcp_keepalive(&probes_after(silence)),
            // An inherited socket may have this option.
            None => socket.set_keepalive(false),
        }
    }
}

impl Listener {
    /// Binds `address` and listens on it, with the default [`ListenOptions`]. The address may be a
    /// text such as `":8082"`, an [`Address`] or a [`SocketAddr`].
    ///
    /// If this process was started with a socket on that address (LISTEN_FDS), this function takes
    /// the socket instead. It replaces a stale file of a Unix socket, on which no server answers
    /// any more.
    ///
    /// # Errors
    ///
    /// Returns one line that names the address, the reason and the remedy:
    ///
    /// - [`io::ErrorKind::AddrInUse`] if another process or this program listens on the address
    ///   already.
    /// - For `fd:N`, an error if the descriptor is not a listening socket, or was taken before.
    /// - For a Unix socket, [`io::ErrorKind::AlreadyExists`] if the file is not a socket.
    /// - For an abstract socket, [`io::ErrorKind::Unsupported`] on other systems than Linux.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Address, Listener};
    /// use std::net::TcpStream;
    ///
    /// let listener = Listener::bind("127.0.0.1:0")?;
    /// let Address::Tcp(addr) = *listener.address() else { unreachable!() };
    /// // Clients can connect from now on, and wait in the kernel's queue for a server.
    /// TcpStream::connect(addr)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn bind(address: impl TryInto<Address, Error: Into<AddressError>>) -> io::Result<Self> {
        ListenOptions::default().bind(address)
    }

    /// Takes the listening sockets that this process was started with, as systemd passes them.
    /// LISTEN_FDS is their number, LISTEN_PID the process for which they are meant, and
    /// LISTEN_FDNAMES has their names. Returns an empty list if there are none, if they are meant
    /// for another process, or if the program has taken them before.
    ///
    /// Under a keeper, these are the sockets that the keeper was started with or has bound. A
    /// socket that an earlier process of the program has bound is not among them.
    /// [`Listener::bind`] finds such a socket by its address, so that no server takes the old
    /// address of another one.
    ///
    /// At its stop, the server takes every queued connection, and then closes its copies of the
    /// sockets (rule S5). The server does not shut the sockets down, so another process that has
    /// them goes on. It removes a socket's file only if no other process has the socket. From this
    /// call on, the sockets are non-blocking and have the default [`ListenOptions::keepalive`],
    /// also in other processes that hold them.
    ///
    /// # Errors
    ///
    /// Returns [`io::ErrorKind::InvalidInput`] if one of the sockets is not a listening TCP or Unix
    /// socket, or if the variables make no sense.
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
}

/// Returns the option for six probes, one every 10 s, after a silence of `silence`.
fn probes_after(silence: Duration) -> TcpKeepalive {
    /// The longest time that Linux accepts.
    const LONGEST: Duration = Duration::from_secs(32_767);
    let silence = silence.min(LONGEST);
    let seconds = silence.as_secs() + u64::from(silence.subsec_nanos() > 0);
    let probes = TcpKeepalive::new().with_time(Duration::from_secs(seconds));
    // Other systems use an interval and a number of their own.
    #[cfg(not(any(target_os = "openbsd", target_os = "haiku", target_os = "solaris")))]
    let probes = probes.with_interval(Duration::from_secs(10)).with_retries(6);
    probes
}

#[cfg(test)]
mod tests;
