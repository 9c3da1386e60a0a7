//! [`Address`], [`Listener`]: bind, accept with error classes, lossless close.
//!
//! Invariant: a listener is closed only after every connection that the kernel had queued was
//! taken (rule S4), and a socket file is removed only if it is still the one made here. Accepting
//! never fails for good: errors are classed, backed off and logged here (rule S18). Does not know
//! what becomes of a connection.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_io::{Async, Timer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::transport::{Peer, Transport};

/// Where to listen.
///
/// # Examples
///
/// ```
/// use smol_graceful::Address;
///
/// for text in ["127.0.0.1:8082", "[::1]:8082", ":8082", "unix:/run/app.sock"] {
///     assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
/// }
/// assert!("8082".parse::<Address>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// One interface: `127.0.0.1:8082`, `[::1]:8082`. Port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// Every interface, in both families: `:8082`.
    Every(u16),
    /// A Unix socket: `unix:/run/app.sock`.
    Unix(PathBuf),
}

/// What is wrong with the text of an [`Address`].
///
/// # Examples
///
/// ```
/// let error = "localhost".parse::<smol_graceful::Address>().unwrap_err();
/// assert!(error.to_string().starts_with("`localhost` is no address to listen on"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError(String);

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = self;
        write!(
            f,
            "`{text}` is no address to listen on; write `127.0.0.1:8082`, `[::1]:8082`, `:8082` \
             for every interface, or `unix:/path`"
        )
    }
}

impl std::error::Error for AddressError {}

impl From<AddressError> for io::Error {
    fn from(error: AddressError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err(error());
            }
            Ok(Self::Unix(path.into()))
        } else if let Some(port) = text.strip_prefix(':') {
            // `u16` would take a sign.
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|_| digits);
            port.map(Self::Every).ok_or_else(error)
        } else {
            text.parse().map(Self::Tcp).map_err(|_| error())
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Every(port) => write!(f, ":{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What can be turned into a [`Listener`]: an address, its text, or a listener itself.
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
    /// As [`Listener::bind`], and [`io::ErrorKind::InvalidInput`] for a text that is no address.
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

/// A socket that clients connect to.
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
#[derive(Debug)]
pub struct Listener {
    address: Address,
    /// `None` once closed.
    socket: Mutex<Option<Bound>>,
    /// Exhaustion was logged, and the queue has not been empty since: the episode goes on.
    is_exhausted: AtomicBool,
}

#[derive(Debug)]
enum Bound {
    Tcp(Async<TcpListener>),
    Unix {
        socket: Async<UnixListener>,
        /// Removed when the listener is closed.
        _file: SocketFile,
    },
}

impl Listener {
    fn new(address: Address, socket: Bound) -> Self {
        let is_exhausted = AtomicBool::new(false);
        Self { address, socket: Mutex::new(Some(socket)), is_exhausted }
    }

    /// Binds `address` and listens on it.
    ///
    /// A Unix socket's file that no server answers on any more is replaced.
    ///
    /// # Errors
    ///
    /// What the operating system says, with the address named: in use, not allowed, not there.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot listen on {address}: {}", reason(&error)))
        };
        match address {
            Address::Tcp(addr) => tcp(*addr),
            Address::Every(port) => tcp((Ipv6Addr::UNSPECIFIED, *port).into()).or_else(|error| {
                // A machine without IPv6 still has every interface of the other family.
                match error.raw_os_error() {
                    Some(EAFNOSUPPORT | EADDRNOTAVAIL) => {
                        tcp((Ipv4Addr::UNSPECIFIED, *port).into())
                    }
                    _ => Err(error),
                }
            }),
            Address::Unix(path) => unix(path),
        }
        .map_err(named)
    }

    /// The address that is listened on: the kernel's choice where the port was 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Hands the next connection to `take`; `false` once the listener is closed.
    ///
    /// `take` runs before the listener can be closed: what counts connections misses none
    /// (rule S1). Never fails for good (rule S18): an error of one connection is skipped;
    /// exhaustion is waited out, from 5 ms up to 1 s, and logged once an episode.
    ///
    /// # Cancel safety
    ///
    /// No connection is lost when the future is dropped.
    pub(crate) async fn accept(&self, take: impl FnOnce(Transport, Peer)) -> bool {
        let mut take = Some(take);
        let mut pause = Duration::ZERO;
        loop {
            match poll_fn(|cx| self.poll_accept(cx, &mut take)).await {
                Ok(is_open) => return is_open,
                Err(error) => pause = self.wait(pause, &error).await,
            }
        }
    }

    /// Takes every connection that the kernel has queued and closes (rule S4).
    ///
    /// Waits for descriptors when there are none left, as the queue is lost otherwise. Whoever
    /// waits in [`Listener::accept`] is not woken.
    pub(crate) async fn close(&self, mut take: impl FnMut(Transport, Peer)) {
        let mut pause = Duration::ZERO;
        while let Err(error) = self.empty_queue(&mut take) {
            pause = self.wait(pause, &error).await;
        }
        *self.bound() = None;
    }

    /// Takes every connection that the kernel has queued. Ends even under a flood of new ones.
    ///
    /// # Errors
    ///
    /// What kept it from taking all.
    pub(crate) fn empty_queue(&self, mut take: impl FnMut(Transport, Peer)) -> io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < FLOOD {
            let bound = self.bound();
            let Some(socket) = &*bound else { return Ok(()) };
            match socket.accept() {
                // With the lock held, as in `accept`.
                Ok((transport, peer)) => take(transport, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn poll_accept(
        &self,
        cx: &mut Context<'_>,
        take: &mut Option<impl FnOnce(Transport, Peer)>,
    ) -> Poll<io::Result<bool>> {
        let bound = self.bound();
        let Some(socket) = &*bound else { return Poll::Ready(Ok(false)) };
        loop {
            match socket.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_exhausted.store(false, Ordering::Relaxed);
                    ready!(socket.poll_readable(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
                Ok((transport, peer)) => {
                    if let Some(take) = take.take() {
                        take(transport, peer);
                    }
                    return Poll::Ready(Ok(true));
                }
            }
        }
    }

    /// Waits as long as `error` of `accept` asks for, longer than `pause` before; not at all if it
    /// is one connection's own.
    async fn wait(&self, pause: Duration, error: &io::Error) -> Duration {
        const SHORTEST: Duration = Duration::from_millis(5);
        const LONGEST: Duration = Duration::from_secs(1);
        if is_of_one_connection(error) {
            return pause;
        }
        if !self.is_exhausted.swap(true, Ordering::Relaxed) {
            log::error!("cannot accept on {}, trying again: {}", self.address, reason(error));
        }
        let pause = (pause * 2).clamp(SHORTEST, LONGEST);
        Timer::after(pause).await;
        pause
    }

    fn bound(&self) -> MutexGuard<'_, Option<Bound>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the kernel's queue is emptied before the close when clients keep refilling it.
const FLOOD: Duration = Duration::from_millis(500);

impl Bound {
    fn accept(&self) -> io::Result<(Transport, Peer)> {
        let accepted = match self {
            Self::Tcp(socket) => socket.get_ref().accept().and_then(|(stream, addr)| {
                Ok((Transport::from(Async::new(stream)?), Peer::from(canonical(addr))))
            }),
            Self::Unix { socket, .. } => socket
                .get_ref()
                .accept()
                .and_then(|(stream, _)| Ok((Transport::from(Async::new(stream)?), Peer::Unix))),
        };
        // The kernel takes a descriptor before it looks at the queue, and complains even if the
        // queue is empty.
        accepted.map_err(|error| {
            let is_would_block = error.kind() == io::ErrorKind::WouldBlock;
            if is_would_block || is_of_one_connection(&error) || self.has_queue() {
                error
            } else {
                io::ErrorKind::WouldBlock.into()
            }
        })
    }

    /// Whether a client waits; if that cannot be known, perhaps.
    fn has_queue(&self) -> bool {
        let socket = match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix { socket, .. } => socket.as_fd(),
        };
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())) != Ok(0)
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_readable(cx),
            Self::Unix { socket, .. } => socket.poll_readable(cx),
        }
    }
}

/// An IPv4 client of a socket for both families, as what it is.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Whether an error of `accept` concerns only the connection that it took off the queue.
fn is_of_one_connection(error: &io::Error) -> bool {
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

/// An error in an operator's words: without Rust's decoration.
pub(crate) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is in use".into(),
        io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::NotFound => "no such directory".into(),
        _ => match error.raw_os_error() {
            Some(code) => error.to_string().replace(&format!(" (os error {code})"), ""),
            None => error.to_string(),
        },
    }
}

/// As long as the kernel lets it be (`somaxconn`): a drain empties it, so length costs nothing.
const BACKLOG: i32 = 4096;

const EAFNOSUPPORT: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
const EADDRNOTAVAIL: i32 = rustix::io::Errno::ADDRNOTAVAIL.raw_os_error();

fn tcp(addr: SocketAddr) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        // `:8082` and `[::]:8082` mean both families, whatever the system's default is.
        socket.set_only_v6(false)?;
    }
    // A successor can bind while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    // Accepted sockets inherit it: responses are written whole, so nothing is gained by waiting.
    socket.set_tcp_nodelay(true)?;
    let socket = Async::new(TcpListener::from(socket))?;
    let address = Address::Tcp(socket.get_ref().local_addr()?);
    Ok(Listener::new(address, Bound::Tcp(socket)))
}

fn unix(path: &Path) -> io::Result<Listener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let addr = SockAddr::unix(path)?;
    if let Err(error) = socket.bind(&addr) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(error);
        }
        if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
            let message = "the file exists and is no socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        if !is_stale(path)? {
            return Err(error);
        }
        std::fs::remove_file(path)?;
        socket.bind(&addr)?;
    }
    let file = SocketFile::at(path)?;
    socket.listen(BACKLOG)?;
    let socket = Async::new(UnixListener::from(socket))?;
    let address = Address::Unix(path.to_owned());
    Ok(Listener::new(address, Bound::Unix { socket, _file: file }))
}

/// Whether `path` is a socket that nobody listens on any more.
fn is_stale(path: &Path) -> io::Result<bool> {
    // Without blocking: a live server with a full queue is no less alive.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    Ok(probe.connect(&SockAddr::unix(path)?).is_err_and(refused))
}

/// The file of a Unix socket made here; removed at the end, unless it is another's by then.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // Not worth a word if it fails: the next server finds it stale and replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What tells one file from another that has taken its name: device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;
    use std::io::Write;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["127.0.0.1:8082", "[::1]:8082", ":8082", ":0", "unix:/run/app.sock", "unix:a"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "8082",
            ":",
            ":-1",
            ":+1",
            ":65536",
            ":http",
            "localhost:80",
            "::1:80",
            "1.2.3.4",
            "unix:",
            "fd:x",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

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
        assert_eq!(error, format!("cannot listen on {addr}: the address is in use"));
    }

    /// Rule S4: what had been queued is taken, and only then the door is closed.
    #[test]
    fn close_takes_the_queue() {
        let listener = "127.0.0.1:0".listen().unwrap();
        let Address::Tcp(addr) = *listener.address() else { unreachable!() };
        let clients: Vec<_> = (0..20).map(|_| TcpStream::connect(addr).unwrap()).collect();
        let mut taken = 0;
        block_on(listener.close(|_, _| taken += 1));
        assert_eq!(taken, clients.len());
        assert!(TcpStream::connect(addr).is_err());
        assert!(!block_on(listener.accept(|_, _| unreachable!())));
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_ours_removed() {
        let path = temporary("stale");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Address::Unix(path.clone()).listen().unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"hello").unwrap();
        let mut taken = 0;
        block_on(listener.close(|_, peer| taken += usize::from(peer == Peer::Unix)));
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
        assert!(error.to_string().ends_with(": the file exists and is no socket"), "{error}");
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
