//! Binds sockets: [`TcpBind`], [`unix`], [`abstract_name`].
//!
//! Invariant: a socket that is returned listens, and no client can connect before that, so a
//! socket's file has its permissions before its first client. This file finds the reason of a
//! failure, and leaves the words to [`BindError`]. It accepts nothing, and takes no inherited
//! socket.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{self, Path};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::address::Address;
use crate::error::invalid;
use crate::listen::bind_error::BindError;
use crate::listen::own_sockets::{OwnSocket, TcpSpan};
use crate::listen::socket_file::{SocketFile, is_same_file, is_stale};

/// The length of a listener's queue, unless the kernel cuts it (`somaxconn`). A drain empties the
/// queue, so a long one loses no client.
const BACKLOG: i32 = 4096;

/// A TCP address, with the options of its bind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpBind {
    span: TcpSpan,
    /// The socket gets SO_REUSEPORT.
    reuse_port: bool,
}

impl TcpBind {
    /// Binds the first of `candidates` whose family this machine has.
    ///
    /// # Errors
    ///
    /// Returns one line with the reason and the remedy. Returns [`io::ErrorKind::InvalidInput`] if
    /// there are no candidates.
    pub(crate) fn first(candidates: &[SocketAddr], reuse_port: bool) -> io::Result<Socket> {
        let mut last = invalid("it is not an address to bind");
        for &addr in candidates {
            let span = match candidates {
                [_] => span_beside_own_sockets(addr),
                // `:8082` means both families, so its socket leaves IPv4 to no other socket.
                _ => TcpSpan { addr, is_only_v6: false },
            };
            let this = Self { span, reuse_port };
            let error = match this.listen() {
                Ok(socket) => return Ok(socket),
                Err(error) => error,
            };
            let errno = Errno::from_io_error(&error);
            let is_missing = matches!(errno, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL));
            last = this.reason(error).worded(&Address::Tcp(addr));
            if !is_missing {
                break;
            }
        }
        Err(last)
    }

    fn listen(self) -> io::Result<Socket> {
        let (ip, port) = (self.span.addr.ip(), self.span.addr.port());
        // The kernel binds these addresses, but no client can connect to them.
        if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
            let message = format!(
                "no client can connect to {ip}; choose an address of this machine, or `:{port}` \
                 for every interface"
            );
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, message));
        }
        let socket = self.bind()?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    }

    /// Returns the reason for `error`, for example another socket that has the address or a part of
    /// it.
    fn reason(self, error: io::Error) -> BindError {
        if error.kind() != io::ErrorKind::AddrInUse {
            return BindError::Refused(error);
        }
        let overlaps = |own: &OwnSocket| own.tcp().is_some_and(|own| own.overlaps(self.span));
        if let Some(own) = OwnSocket::all().into_iter().find(overlaps) {
            return BindError::Own(own);
        }
        if self.reuse_port {
            return BindError::Unshared;
        }
        // The kernel accepts a second socket only if both ask for SO_REUSEPORT and belong to one
        // user.
        let is_shared = Self { reuse_port: true, ..self }.bind().is_ok();
        if is_shared { BindError::Shared } else { BindError::Live }
    }

    /// Binds the address without listening on it.
    fn bind(self) -> io::Result<Socket> {
        let Self { span: TcpSpan { addr, is_only_v6 }, reuse_port } = self;
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            // Set the option always, because `:8082` and `[::]:8082` mean both families on every
            // system.
            socket.set_only_v6(is_only_v6)?;
        }
        // With this option, a successor can bind while old connections are in TIME_WAIT.
        socket.set_reuse_address(true)?;
        if reuse_port {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&addr.into())?;
        Ok(socket)
    }
}

/// Returns the span of `addr`. `[::]` leaves IPv4 to a socket of this program that serves IPv4
/// already.
fn span_beside_own_sockets(addr: SocketAddr) -> TcpSpan {
    let is_wildcard = addr.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let ipv4 = SocketAddr::from(([0, 0, 0, 0], addr.port()));
    let serves_ipv4 = |own: &OwnSocket| !own.is_passed && own.address == Address::Tcp(ipv4);
    TcpSpan { addr, is_only_v6: is_wildcard && OwnSocket::all().iter().any(serves_ipv4) }
}

/// Binds the file of a Unix socket, and replaces a stale file. With `mode`, the file has these
/// permissions before the socket listens, so that no client can connect by the umask's permissions.
pub(crate) fn unix(path: &Path, mode: Option<u32>) -> Result<(Socket, SocketFile), BindError> {
    if let Some(mode) = mode.filter(|mode| *mode > 0o777) {
        let message = format!("a mode is octal, 0 to 0777, such as 0o660; this one is 0o{mode:o}");
        return Err(invalid(message).into());
    }
    check_length("path", path.as_os_str())?;
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            make_way(path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    // If this function fails, the socket is dropped first, because the drop of the file removes it
    // only if no socket is bound to it.
    let bound = (socket, SocketFile::at(path)?);
    if let Some(mode) = mode {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    bound.0.listen(BACKLOG)?;
    Ok(bound)
}

/// Removes the file at `path`. Returns an error unless it is a stale socket.
fn make_way(path: &Path) -> Result<(), BindError> {
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let kind = match fs::symlink_metadata(path) {
        // The other server has removed its file meanwhile.
        Err(error) if is_gone(&error) => return Ok(()),
        found => found?.file_type(),
    };
    if kind.is_dir() {
        return Err(BindError::Directory);
    }
    if kind.is_symlink() {
        return Err(BindError::Link(fs::read_link(path)?));
    }
    if !kind.is_socket() {
        return Err(BindError::File);
    }
    let is_at_path =
        |own: &OwnSocket| matches!(&own.address, Address::Unix(own) if is_at(own, path));
    if let Some(own) = OwnSocket::all().into_iter().find(is_at_path) {
        return Err(BindError::Own(own));
    }
    match is_stale(path) {
        Ok(true) => {}
        Ok(false) => return Err(BindError::Live),
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(BindError::Closed);
        }
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if !is_gone(&error) => Err(BindError::NotRemovable(error)),
        _ => Ok(()),
    }
}

/// Returns `true` if the socket that this process has bound as `own` is the file at `path`.
fn is_at(own: &Path, path: &Path) -> bool {
    if own.exists() {
        return is_same_file(own, path);
    }
    // The program may have changed its directory since. Then only the end of the path is known.
    let own = own.strip_prefix(".").unwrap_or(own);
    own.is_relative() && path::absolute(path).is_ok_and(|path| path.ends_with(own))
}

/// Binds a name in Linux's abstract namespace.
pub(crate) fn abstract_name(name: &OsStr) -> Result<Socket, BindError> {
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        let file = Address::Unix(name.into());
        let message = format!("abstract sockets are Linux's alone; write a file, such as `{file}`");
        return Err(io::Error::new(io::ErrorKind::Unsupported, message).into());
    }
    check_length("name", name)?;
    let mut path = OsStr::new("\0").to_owned();
    path.push(name);
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    match socket.bind(&SockAddr::unix(&path)?) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let has_name =
                |own: &OwnSocket| matches!(&own.address, Address::Abstract(own) if own == name);
            let own = OwnSocket::all().into_iter().find(has_name);
            return Err(own.map_or(BindError::Live, BindError::Own));
        }
        bound => bound?,
    }
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Checks that `name`, which is a `noun`, fits into the address of a Unix socket (`sun_path`
/// without a zero byte).
fn check_length(noun: &str, name: &OsStr) -> io::Result<()> {
    let longest = if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };
    let bytes = name.len();
    if bytes <= longest {
        return Ok(());
    }
    Err(invalid(format!(
        "the {noun} of a Unix socket has at most {longest} bytes, and this one has {bytes}; choose \
         a shorter one"
    )))
}
