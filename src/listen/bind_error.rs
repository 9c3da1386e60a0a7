//! [`BindError`]: the reason why an address could not be bound, and the remedy, in one line for an
//! operator.
//!
//! Invariant: if this program itself listens on the address, the line does not advise to stop
//! another process. This file looks at the process's sockets and at files, and changes nothing.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::address::Address;
use crate::error::{because_of, reason};
use crate::listen::inherited;
use crate::listen::own_sockets::OwnSocket;

/// The reason why an address could not be bound.
#[derive(Debug)]
pub(crate) enum BindError {
    /// The kernel or this library has refused, and no other socket or file is the reason.
    Refused(io::Error),
    /// A socket of this process has the address.
    Own(OwnSocket),
    /// Another process listens on the address.
    Live,
    /// A TCP socket of another process asks for SO_REUSEPORT, and this one does not.
    Shared,
    /// A TCP socket of another process does not ask for SO_REUSEPORT, or is another user's.
    Unshared,
    /// A directory is at the path of a Unix socket.
    Directory,
    /// A symbolic link to this target is at the path.
    Link(PathBuf),
    /// A file that is not a socket is at the path.
    File,
    /// This process may not connect to the socket at the path, so the socket may be stale or in
    /// use.
    Closed,
    /// This process may not remove the stale socket at the path.
    NotRemovable(io::Error),
}

impl From<io::Error> for BindError {
    fn from(error: io::Error) -> Self {
        Self::Refused(error)
    }
}

impl BindError {
    /// Returns one line with the reason why `wanted` could not be bound, and the remedy.
    pub(crate) fn worded(self, wanted: &Address) -> io::Error {
        let message = self.message(wanted);
        match self {
            Self::Refused(error) | Self::NotRemovable(error) => because_of(message, error),
            _ => io::Error::new(self.kind(), message),
        }
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Refused(error) | Self::NotRemovable(error) => error.kind(),
            Self::Own(_) | Self::Live | Self::Shared | Self::Unshared => io::ErrorKind::AddrInUse,
            Self::Directory | Self::Link(_) | Self::File => io::ErrorKind::AlreadyExists,
            Self::Closed => io::ErrorKind::PermissionDenied,
        }
    }

    fn message(&self, wanted: &Address) -> String {
        let (noun, path) = match wanted {
            Address::Unix(path) => ("path", path.as_path()),
            Address::Abstract(name) => ("name", Path::new(name)),
            _ => ("address", Path::new("")),
        };
        let shown = path.display();
        match self {
            Self::Refused(error) => refused(wanted, error),
            Self::Own(own) => of_own(own, wanted),
            Self::Live if noun == "address" => "the address is in use by another process; stop \
                 that process, or choose another address"
                .into(),
            Self::Live => format!(
                "another process listens on it; stop that process, or choose another {noun}"
            ),
            Self::Shared => "the address is in use by a process that asks for SO_REUSEPORT \
                 (--reuse-port), and this one does not; let both ask for it, or choose another \
                 address"
                .into(),
            Self::Unshared => "the address is in use by a process that does not ask for \
                 SO_REUSEPORT (--reuse-port), or that belongs to another user; let both ask for it \
                 under the same user, or choose another address"
                .into(),
            Self::Directory => {
                let file = Address::Unix(path.join("app.sock"));
                format!("it is a directory; write the path of a file, such as `{file}`")
            }
            Self::Link(target) => format!(
                "it is a symbolic link to {}; write the path of the socket itself, or remove the \
                 link",
                target.display()
            ),
            Self::File => {
                "the file exists and is not a socket; remove it, or choose another path".into()
            }
            Self::Closed => format!(
                "the socket file belongs to user {}, and this user may not connect to it; if no \
                 server listens on it any more, remove {shown}, or choose another path",
                owner(path)
            ),
            Self::NotRemovable(error) => format!(
                "the socket file is stale and belongs to user {}, and this user may not remove it \
                 ({}); remove {shown}, or choose another path",
                owner(path),
                reason(error)
            ),
        }
    }
}

/// Explains an error of the kernel that no other socket or file has caused.
fn refused(wanted: &Address, error: &io::Error) -> String {
    let words = Errno::from_io_error(error).and_then(|errno| match wanted {
        Address::Tcp(addr) => of_tcp(*addr, errno),
        Address::Unix(path) => of_unix(path, errno),
        _ => None,
    });
    words.unwrap_or_else(|| reason(error))
}

fn of_tcp(addr: SocketAddr, errno: Errno) -> Option<String> {
    let (ip, port) = (addr.ip(), addr.port());
    Some(match errno {
        Errno::ACCESS | Errno::PERM if port < 1024 => "this user may not listen on a port below \
             1024; choose one from 1024 on, let a service manager pass the socket (LISTEN_FDS, \
             fd:0), or give the program CAP_NET_BIND_SERVICE"
            .into(),
        Errno::ADDRNOTAVAIL => format!(
            "this machine has no such address; choose one of its own, or `:{port}` for every \
             interface"
        ),
        Errno::AFNOSUPPORT if addr.is_ipv4() => {
            "this machine has no IPv4; choose an IPv6 address".into()
        }
        Errno::AFNOSUPPORT => "this machine has no IPv6; choose an IPv4 address".into(),
        Errno::INVAL if matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) => format!(
            "a link-local address needs a zone, the number that `ip link` shows for the \
             interface; write `[{ip}%2]:{port}`"
        ),
        Errno::NODEV => {
            "this machine has no interface with the number of the zone; write one that \
             `ip link` shows"
                .into()
        }
        _ => return None,
    })
}

fn of_unix(path: &Path, errno: Errno) -> Option<String> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let shown = directory.display();
    let is_slash_last = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    Some(match errno {
        Errno::NOENT if is_slash_last => {
            "the path ends in a slash; write the path of a file".into()
        }
        Errno::NOENT if directory.is_dir() => {
            format!("the file system of {shown} takes no sockets; choose another path")
        }
        Errno::NOENT => format!("there is no directory {shown}; make it, or choose another path"),
        Errno::NOTDIR => format!("{shown} is not a directory; choose another path"),
        Errno::ACCESS | Errno::PERM => format!(
            "this user may not make a file in {shown}; change who may, or choose another path"
        ),
        Errno::ROFS => format!("the file system of {shown} is read-only; choose another path"),
        _ => return None,
    })
}

/// Returns the line for a socket of this process, `own`, that has the address `wanted`.
fn of_own(own: &OwnSocket, wanted: &Address) -> String {
    let OwnSocket { fd, address: at, is_passed, .. } = own;
    if *is_passed {
        // If LISTEN_FDS does not name the socket, only its descriptor finds it.
        let is_announced = inherited::is_announced(*fd);
        let words = if is_announced { at.clone() } else { Address::Fd(*fd) };
        return format!(
            "this process was started with a socket on {at}; write `{words}` to use that one"
        );
    }
    match (own.tcp(), wanted) {
        (Some(span), Address::Tcp(addr)) if span.addr != *addr => {
            if *addr == SocketAddr::from(([0, 0, 0, 0], addr.port())) && span.addr.is_ipv6() {
                return format!(
                    "this program listens on {at} already, which serves IPv4, too; give {addr} \
                     before {at}, or leave it out"
                );
            }
            let relation =
                if span.includes(*addr) { "which serves it, too" } else { "which is a part of it" };
            format!("this program listens on {at} already, {relation}; leave one of the two out")
        }
        _ => "this program listens on it already; leave one of the two out".into(),
    }
}

/// Returns the name of a file's owner, or the owner's number.
fn owner(path: &Path) -> String {
    let Ok(metadata) = fs::symlink_metadata(path) else { return "unknown".into() };
    let id = metadata.uid().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    });
    name.unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the lines for errors that a test cannot cause on every machine.
    #[test]
    fn what_the_kernel_says_is_put_in_an_operators_words() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for (addr, errno, line) in [
            (
                "0.0.0.0:80",
                Errno::ACCESS,
                "this user may not listen on a port below 1024; choose one from 1024 on, let a \
                 service manager pass the socket (LISTEN_FDS, fd:0), or give the program \
                 CAP_NET_BIND_SERVICE",
            ),
            ("0.0.0.0:8082", Errno::ACCESS, "Permission denied"),
            (
                "192.0.2.1:80",
                Errno::ADDRNOTAVAIL,
                "this machine has no such address; choose one of its own, or `:80` for every \
                 interface",
            ),
            ("[::1]:80", Errno::AFNOSUPPORT, "this machine has no IPv6; choose an IPv4 address"),
            (
                "127.0.0.1:80",
                Errno::AFNOSUPPORT,
                "this machine has no IPv4; choose an IPv6 address",
            ),
            (
                "[fe80::1]:80",
                Errno::INVAL,
                "a link-local address needs a zone, the number that `ip link` shows for the \
                 interface; write `[fe80::1%2]:80`",
            ),
            (
                "[fe80::1%99]:80",
                Errno::NODEV,
                "this machine has no interface with the number of the zone; write one that `ip \
                 link` shows",
            ),
        ] {
            assert_eq!(refused(&Address::Tcp(addr.parse().unwrap()), &error(errno)), line);
        }
        for (path, errno, line) in [
            (
                "/no/app.sock",
                Errno::NOENT,
                "there is no directory /no; make it, or choose another path",
            ),
            (
                "/proc/app.sock",
                Errno::NOENT,
                "the file system of /proc takes no sockets; choose another path",
            ),
            ("/no/", Errno::NOENT, "the path ends in a slash; write the path of a file"),
            ("/a/app.sock", Errno::NOTDIR, "/a is not a directory; choose another path"),
            (
                "/run/app.sock",
                Errno::ACCESS,
                "this user may not make a file in /run; change who may, or choose another path",
            ),
            (
                "/ro/app.sock",
                Errno::ROFS,
                "the file system of /ro is read-only; choose another path",
            ),
            ("/a/app.sock", Errno::NOSPC, "No space left on device"),
        ] {
            let explained = BindError::Refused(error(errno)).worded(&Address::Unix(path.into()));
            assert_eq!(explained.to_string(), line);
            assert_eq!(explained.kind(), error(errno).kind());
        }
    }
}
