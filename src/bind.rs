//! Binds sockets: [`TcpBind`], [`unix`], [`abstract_name`].
//!
//! Invariant: a socket that is returned listens, and until then nobody could connect, so that a
//! socket's file has its permissions before its first client. Every error is worded by
//! [`bind_error`](crate::bind_error). Accepts nothing, and takes no inherited socket.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{self, Path, PathBuf};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::address::Address;
use crate::bind_error::{self, Obstacle};
use crate::error::reason;
use crate::own_sockets::{OwnSocket, TcpSpan};
use crate::socket_file::{SocketFile, is_same_file, is_stale};

/// How long a queue is, unless the kernel cuts it (`somaxconn`). A drain empties the queue, so its
/// length costs nothing.
const BACKLOG: i32 = 4096;

/// A TCP address, and how to bind it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpBind {
    span: TcpSpan,
    /// Asks for SO_REUSEPORT.
    reuse_port: bool,
}

impl TcpBind {
    /// Binds the first of `candidates` whose family this machine has.
    ///
    /// # Errors
    ///
    /// Returns one line that says what is so and what to do. [`io::ErrorKind::InvalidInput`] if
    /// there are no candidates.
    pub(crate) fn first(candidates: &[SocketAddr], reuse_port: bool) -> io::Result<Socket> {
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "it is not an address to bind");
        for &addr in candidates {
            // `:8082` asks for both families itself, so it leaves IPv4 to no other socket.
            let may_share = candidates.len() == 1;
            let this = Self::new(addr, may_share, reuse_port);
            // The kernel binds these addresses, but no client can connect to them.
            if addr.ip().is_multicast() || addr.ip() == IpAddr::V4(Ipv4Addr::BROADCAST) {
                return Err(bind_error::unreachable(addr));
            }
            let error = match this.listen() {
                Ok(socket) => return Ok(socket),
                Err(error) => error,
            };
            match Errno::from_io_error(&error) {
                Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => {
                    last = bind_error::of_tcp(addr, &error);
                }
                Some(Errno::ADDRINUSE) => {
                    return Err(this.obstacle().into_error(&Address::Tcp(addr)));
                }
                _ => return Err(bind_error::of_tcp(addr, &error)),
            }
        }
        Err(last)
    }

    /// Makes a way to bind `addr`. With `may_share`, `[::]` leaves IPv4 to a socket of this program
    /// that serves IPv4 already.
    fn new(addr: SocketAddr, may_share: bool, reuse_port: bool) -> Self {
        let is_wildcard = addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let ipv4 = SocketAddr::from(([0, 0, 0, 0], addr.port()));
        let serves_ipv4 = |own: &OwnSocket| !own.is_passed && own.address == Address::Tcp(ipv4);
        let is_only_v6 = is_wildcard && may_share && OwnSocket::all().iter().any(serves_ipv4);
        Self { span: TcpSpan { addr, is_only_v6 }, reuse_port }
    }

    fn listen(self) -> io::Result<Socket> {
        let socket = self.bind()?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    }

    /// Returns what has the address, or a part of it.
    fn obstacle(self) -> Obstacle {
        let overlaps = |own: &OwnSocket| own.tcp().is_some_and(|own| own.overlaps(self.span));
        if let Some(own) = OwnSocket::all().into_iter().find(overlaps) {
            return Obstacle::Own(own);
        }
        if self.reuse_port {
            return Obstacle::Unshared;
        }
        // The kernel lets a second socket in only if both ask for it, and have the same user.
        let is_shared = Self { reuse_port: true, ..self }.bind().is_ok();
        if is_shared { Obstacle::Shared } else { Obstacle::Live }
    }

    /// Binds the address without listening on it.
    fn bind(self) -> io::Result<Socket> {
        let Self { span: TcpSpan { addr, is_only_v6 }, reuse_port } = self;
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            // `:8082` and `[::]:8082` mean both families, whatever the system's default is.
            socket.set_only_v6(is_only_v6)?;
        }
        // A successor can bind while old connections are in TIME_WAIT.
        socket.set_reuse_address(true)?;
        if reuse_port {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&addr.into())?;
        Ok(socket)
    }
}

/// Binds the file of a Unix socket, in place of a stale one. With `mode`, the file has these
/// permissions before the socket listens, so that nobody can connect by those of the umask.
///
/// # Errors
///
/// Returns one line that says what is so and what to do. [`io::ErrorKind::AlreadyExists`] if a file
/// is there that is not a socket.
pub(crate) fn unix(path: &Path, mode: Option<u32>) -> io::Result<(Socket, SocketFile)> {
    if let Some(mode) = mode.filter(|mode| *mode > 0o777) {
        let message = format!("a mode is octal, 0 to 0777, such as 0o660; this one is 0o{mode:o}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let bytes = path.as_os_str().len();
    if bytes > LONGEST {
        return Err(bind_error::too_long("path", bytes, LONGEST));
    }
    let named = |error: io::Error| bind_error::of_unix(path, &error);
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(named(error));
        }
        match make_way(path) {
            Ok(None) => {}
            Ok(Some(obstacle)) => {
                return Err(obstacle.into_error(&Address::Unix(path.to_owned())));
            }
            // Its server has removed the file meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(named(error)),
        }
        socket.bind(&address).map_err(named)?;
    }
    let file = SocketFile::at(path)?;
    let listens = mode
        .map_or(Ok(()), |mode| fs::set_permissions(path, Permissions::from_mode(mode)))
        .and_then(|()| socket.listen(BACKLOG));
    match listens {
        Ok(()) => Ok((socket, file)),
        Err(error) => {
            // Before the file, which is removed only if no socket is bound to it.
            drop(socket);
            Err(named(error))
        }
    }
}

/// Removes the file at `path` if it is a stale socket. Returns what else is there.
fn make_way(path: &Path) -> io::Result<Option<Obstacle>> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        return Ok(Some(Obstacle::Directory));
    }
    if kind.is_symlink() {
        return Ok(Some(Obstacle::Link(fs::read_link(path)?)));
    }
    if !kind.is_socket() {
        return Ok(Some(Obstacle::File));
    }
    let is_at_path =
        |own: &OwnSocket| matches!(&own.address, Address::Unix(own) if is_at(own, path));
    if let Some(own) = OwnSocket::all().into_iter().find(is_at_path) {
        return Ok(Some(Obstacle::Own(own)));
    }
    match is_stale(path) {
        Ok(true) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Ok(Some(Obstacle::NotRemovable(error)))
            }
            _ => Ok(None),
        },
        Ok(false) => Ok(Some(Obstacle::Live)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Some(Obstacle::Closed)),
        Err(error) => Err(error),
    }
}

/// Returns `true` if the socket that this process has bound as `own` is the file at `path`.
fn is_at(own: &Path, path: &Path) -> bool {
    if own.exists() {
        return is_same_file(own, path);
    }
    // The program may have changed its directory since: then only the end of the path is known.
    let own = own.strip_prefix(".").unwrap_or(own);
    own.is_relative() && path::absolute(path).is_ok_and(|path| path.ends_with(own))
}

/// Binds a name in Linux's abstract namespace.
///
/// # Errors
///
/// Returns one line that says what is so and what to do. [`io::ErrorKind::Unsupported`] where there
/// is no such namespace.
pub(crate) fn abstract_name(name: &OsStr) -> io::Result<Socket> {
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        let file = Address::Unix(PathBuf::from(name));
        let message = format!("abstract sockets are Linux's alone; write a file, such as `{file}`");
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    if name.len() > LONGEST {
        return Err(bind_error::too_long("name", name.len(), LONGEST));
    }
    let mut path = OsStr::new("\0").to_owned();
    path.push(name);
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let bind = || {
        socket.bind(&SockAddr::unix(&path)?)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            let wanted = Address::Abstract(name.to_owned());
            let own = OwnSocket::all().into_iter().find(|own| own.address == wanted);
            own.map_or(Obstacle::Live, Obstacle::Own).into_error(&wanted)
        }
        kind => io::Error::new(kind, reason(&error)),
    })?;
    Ok(socket)
}

/// The longest path or abstract name of a Unix socket, in bytes: `sun_path` without a zero byte.
const LONGEST: usize =
    if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };
