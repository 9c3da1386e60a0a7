//! Takes the listening sockets that this process was started with: [`all`], [`given`],
//! [`matching`].
//!
//! The environment describes them ([`Passed`]), or the operator names a bare descriptor (`fd:0`,
//! Supervisor's `[fcgi-program]`). Invariant: a descriptor is taken once, and only if it is a
//! listening stream socket. Other descriptors stay as they were. After a socket was taken, only a
//! copy is left, which no child of this process inherits. This file does not accept, and does not
//! decide when a socket is closed.

use std::collections::BTreeSet;
use std::env;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::Once;

use rustix::io::{Errno, FdFlags, dup2, fcntl_setfd};
use socket2::Socket;

use crate::address::Address;
use crate::descriptors::{FIRST, close, copy, inode, taken};
use crate::error::invalid;
use crate::listen::own_sockets::OwnSocket;
use crate::listen::passing::{self, Passed, Passing, VARIABLES};
use crate::listen::socket_file::is_same_file;
use crate::restart::parent::Parent;

/// Takes every socket that LISTEN_FDS or a keeper passes and that was not taken before.
///
/// # Errors
///
/// Returns an error if a variable makes no sense, or if a descriptor is not a listening stream
/// socket.
#[cfg_attr(not(feature = "keeper"), allow(dead_code, reason = "only a keeper takes them all"))]
pub(crate) fn all() -> io::Result<Vec<(Socket, Passed)>> {
    take_each(|_| true)
}

/// Takes the same sockets as [`all`], except those that an earlier child of the keeper has bound.
/// Only a program that asks for their address takes them (rule K10). Otherwise, a public server
/// would serve the old address of an admin port.
///
/// # Errors
///
/// As [`all`].
pub(crate) fn given() -> io::Result<Vec<(Socket, Passed)>> {
    take_each(|passed| !passed.is_brought)
}

fn take_each(is_meant: impl Fn(&Passed) -> bool) -> io::Result<Vec<(Socket, Passed)>> {
    let mut taken = Vec::new();
    for passed in passed()?.into_iter().filter(is_meant) {
        taken.extend(take(&passed, |_| true)?.map(|socket| (socket, passed)));
    }
    Ok(taken)
}

/// Takes the socket that listens on `address`, if this process was started with one.
///
/// # Errors
///
/// Returns the errors of [`all`] for `fd:N`. For another address, a socket that cannot be taken is
/// not an error.
pub(crate) fn matching(address: &Address) -> io::Result<Option<(Socket, Passed)>> {
    if let Address::Fd(fd) = *address {
        // A keeper passes the socket of its standard input twice, and only the other descriptor has
        // a number.
        let is_meant = |passed: &Passed| passed.fd == fd || is_same_socket(passed.fd, fd);
        let chosen = passed()?.into_iter().find(is_meant);
        let passed = chosen.unwrap_or(Passed::bare(fd, None));
        let socket = take(&passed, |_| true)?.ok_or_else(|| {
            let message = format!("descriptor {fd} was taken before, or has another socket now");
            io::Error::other(message)
        });
        return Ok(Some((socket?, passed)));
    }
    let found = passed().unwrap_or_default().into_iter().find_map(|passed| {
        // Symbolic links may lead from one path to the other. A keeper passes the path of the file,
        // because the socket's own path may be relative to another directory.
        let is_wanted = |bound: &Address| match (address, bound) {
            (Address::Unix(wanted), Address::Unix(path)) => {
                wanted == path || is_same_file(wanted, passed.file.as_deref().unwrap_or(path))
            }
            _ => address.covers(bound),
        };
        let socket = take(&passed, is_wanted).ok().flatten()?;
        Some((socket, passed))
    });
    Ok(found)
}

/// Returns `true` if the environment names the descriptor as passed to this process.
pub(crate) fn is_announced(fd: RawFd) -> bool {
    passed().unwrap_or_default().iter().any(|passed| passed.fd == fd)
}

/// Closes the sockets that the keeper has passed and the program has not taken. The predecessor
/// empties their queues.
pub(crate) fn close_unclaimed() {
    let offered = passed().unwrap_or_default().into_iter().filter(|passed| passed.number.is_some());
    for socket in offered.filter_map(|passed| take(&passed, |_| true).ok().flatten()) {
        if let Ok(address) = Address::of(&socket) {
            log::warn!("the keeper has passed {address}, and this program does not listen on it");
        }
    }
}

/// Returns `true` if both descriptors are open and lead to the same socket.
fn is_same_socket(one: RawFd, other: RawFd) -> bool {
    let inode = |fd| copy(fd).and_then(|(copy, _)| inode(copy)).ok();
    inode(one).is_some_and(|one| inode(other) == Some(one))
}

/// Returns the sockets that the keeper or the environment describes.
fn passed() -> io::Result<Vec<Passed>> {
    static WARNED: Once = Once::new();
    let text = |name| env::var(name).ok().filter(|text| !text.is_empty());
    let variables = VARIABLES.map(text);
    if let Some(parent) = Parent::of_this_process() {
        return Ok(passing::offered(&parent.offered, variables));
    }
    match passing::read(variables, process::id())? {
        Passing::Here(passed) => Ok(passed),
        Passing::Astray(warning) => {
            WARNED.call_once(|| log::warn!("{warning}"));
            Ok(Vec::new())
        }
    }
}

/// Takes a descriptor that is `wanted` and was not taken before. Returns a copy, and closes the
/// descriptor itself.
fn take(
    &Passed { fd, .. }: &Passed,
    wanted: impl FnOnce(&Address) -> bool,
) -> io::Result<Option<Socket>> {
    let mut taken = taken();
    if taken.contains(&fd) {
        return Ok(None);
    }
    let (copy, flags) = copy(fd).map_err(|error| named(fd, &error))?;
    // A passed descriptor has survived an exec, and a descriptor that this program has opened would
    // not.
    let is_opened_here = fd >= FIRST && flags.contains(FdFlags::CLOEXEC);
    if is_opened_here {
        return Err(unusable(fd, "was not passed to this process"));
    }
    let socket = Socket::from(copy);
    let address = Address::of(&socket).map_err(|error| named(fd, &error))?;
    if !wanted(&address) {
        return Ok(None);
    }
    taken.insert(fd);
    if fd >= FIRST {
        close(fd);
    }
    clear_copies(&socket, &mut taken)?;
    Ok(Some(socket))
}

/// Replaces by /dev/null each standard stream that is `socket`, and each further copy that this
/// process was started with and the environment does not name. Without that, children of this
/// process would inherit the socket, and keep it open after the close.
fn clear_copies(socket: &Socket, taken: &mut BTreeSet<RawFd>) -> io::Result<()> {
    let socket = inode(socket)?;
    // The variables are read once, because a program may have hundreds of sockets.
    let announced: BTreeSet<_> =
        passed().unwrap_or_default().into_iter().map(|passed| passed.fd).collect();
    let others = OwnSocket::all().into_iter().filter(|own| own.is_passed).map(|own| own.fd);
    let others = others.filter(|fd| *fd >= FIRST && !announced.contains(fd));
    for fd in (0..FIRST).chain(others) {
        if clear_if(fd, socket)? {
            taken.insert(fd);
        }
    }
    Ok(())
}

/// Replaces `fd` by /dev/null if it is the socket with this inode. Returns `true` if `fd` was
/// replaced.
#[allow(unsafe_code, reason = "a descriptor that is known by its number alone")]
fn clear_if(fd: RawFd, socket: u64) -> io::Result<bool> {
    // SAFETY: the descriptor is a standard stream, or is open, was passed to this process and was
    // not taken. The number stays open, so other code that uses it finds an empty file there.
    let mut copy = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) });
    if !inode(&*copy).is_ok_and(|inode| inode == socket) {
        return Ok(false);
    }
    dup2(&nothing()?, &mut copy)?;
    if fd >= FIRST {
        fcntl_setfd(&*copy, FdFlags::CLOEXEC)?;
    }
    Ok(true)
}

/// Opens a file without content.
fn nothing() -> io::Result<OwnedFd> {
    match File::options().read(true).write(true).open("/dev/null") {
        Ok(null) => Ok(null.into()),
        // Without /dev, a socket whose other end is closed has no content either.
        Err(_) => UnixStream::pair().map(|(end, _)| end.into()),
    }
}

/// Returns an error that names the descriptor.
fn named(fd: RawFd, error: &io::Error) -> io::Error {
    match Errno::from_io_error(error) {
        Some(Errno::BADF) => unusable(fd, "is not open"),
        Some(Errno::NOTSOCK) => unusable(fd, "is not a socket"),
        _ => io::Error::new(error.kind(), format!("descriptor {fd} {error}")),
    }
}

/// Returns an error that says why a descriptor cannot be taken, and which programs pass sockets.
fn unusable(fd: RawFd, why: &str) -> io::Error {
    invalid(format!(
        "descriptor {fd} {why}; Supervisor passes one as fd:0 to an [fcgi-program] (not to a \
         [program]), systemd to the service of a socket unit"
    ))
}
