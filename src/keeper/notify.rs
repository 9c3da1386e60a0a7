//! [`ChildNotify`]: the socket to which a child sends its state (systemd's NOTIFY_SOCKET).
//!
//! Invariant: the keeper hears only root, its own user and the child's user, because every process
//! may send to an abstract name. No child can make the keeper read without an end. This file passes
//! nothing on.

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::task::{Context, Poll, ready};

use async_io::Async;
use rustix::cmsg_space;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, getuid};

/// The socket to which one child sends its notifications.
pub(crate) struct ChildNotify {
    socket: Async<UnixDatagram>,
}

/// The parts of a child's message that a keeper understands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) is_ready: bool,
    pub(crate) status: Option<String>,
    /// In microseconds.
    pub(crate) extension: Option<u32>,
    pub(crate) is_watchdog: bool,
}

/// The largest number of bytes that is read of a datagram, as systemd does.
const LONGEST: usize = 4096;

impl ChildNotify {
    /// Makes a socket with a name that no other socket has, for a process that will be started.
    /// Returns the socket for [`ChildNotify::of`], and its name.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error.
    pub(crate) fn bind() -> io::Result<(OwnedFd, OsString)> {
        let random = || RandomState::new().build_hasher().finish();
        let name = format!("smol-graceful-keeper/{:016x}{:016x}", random(), random());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        set_socket_passcred(&socket, true)?;
        Ok((socket.into(), format!("@{name}").into()))
    }

    /// Takes a socket that [`ChildNotify::bind`] has made, perhaps before this process replaced its
    /// program.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error.
    pub(crate) fn of(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: Async::new(UnixDatagram::from(socket))? })
    }

    /// Waits for a datagram of the process `child`, and returns its words. A datagram from another
    /// user counts as empty.
    pub(crate) fn poll_receive(&self, child: Pid, cx: &mut Context<'_>) -> Poll<io::Result<Words>> {
        loop {
            let mut bytes = [0; LONGEST];
            match receive(self.socket.get_ref(), &mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_readable(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
                Ok((length, user)) => {
                    let is_heard = user.is_some_and(|user| is_trusted(user, child));
                    let words =
                        if is_heard { Words::read(&bytes[..length]) } else { Words::default() };
                    return Poll::Ready(Ok(words));
                }
            }
        }
    }
}

impl AsFd for ChildNotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns the number of bytes that have come, and the user that has sent them.
fn receive(socket: &UnixDatagram, bytes: &mut [u8]) -> io::Result<(usize, Option<u32>)> {
    // The buffer has no room for descriptors, so the kernel closes the descriptors that come. The
    // sender of systemd's BARRIER=1 waits for that close.
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let users = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(sender) => Some(sender.uid.as_raw()),
        _ => None,
    });
    Ok((received.bytes, users.last()))
}

/// Returns `true` if a user may speak for the child: root, the keeper's user, or the child's.
fn is_trusted(user: u32, child: Pid) -> bool {
    let directory = || std::fs::metadata(format!("/proc/{}", child.as_raw_nonzero()));
    user == 0 || user == getuid().as_raw() || directory().is_ok_and(|child| child.uid() == user)
}

impl Words {
    /// Reads a datagram. Ignores unknown words.
    fn read(bytes: &[u8]) -> Self {
        let mut words = Self::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => words.is_ready = true,
                Some(("STATUS", status)) => words.status = Some(status.to_owned()),
                Some(("EXTEND_TIMEOUT_USEC", time)) => words.extension = time.parse().ok(),
                Some(("WATCHDOG", "1")) => words.is_watchdog = true,
                _ => {}
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;
    use rustix::process::getpid;
    use std::future::poll_fn;

    fn send(name: &OsString, text: &[u8]) {
        let name = name.to_str().unwrap().strip_prefix('@').unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        let to = SocketAddr::from_abstract_name(name).unwrap();
        socket.send_to_addr(text, &to).unwrap();
    }

    #[test]
    fn a_child_is_heard() {
        let (socket, name) = ChildNotify::bind().unwrap();
        let notify = ChildNotify::of(socket).unwrap();
        let next = |text: &[u8]| {
            send(&name, text);
            block_on(poll_fn(|cx| notify.poll_receive(getpid(), cx))).unwrap()
        };
        for (text, words) in [
            ("READY=1", Words { is_ready: true, ..Words::default() }),
            ("READY=0\nREADY=1 \nREADY\n=\n", Words::default()),
            ("STATUS=a=b\n", Words { status: Some("a=b".into()), ..Words::default() }),
            (
                "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=7\nMAINPID=1\n",
                Words { is_watchdog: true, extension: Some(7), ..Words::default() },
            ),
            ("EXTEND_TIMEOUT_USEC=-7\n", Words::default()),
        ] {
            assert_eq!(next(text.as_bytes()), words, "{text}");
        }
        // The datagram is longer than the part of it that is read.
        let long = format!("STATUS={}\nREADY=1\n", "x".repeat(LONGEST));
        assert!(!next(long.as_bytes()).is_ready);
        assert_eq!(next(b"\xff\nREADY=1"), Words { is_ready: true, ..Words::default() });
    }

    #[test]
    fn only_some_users_are_heard() {
        assert!(is_trusted(0, getpid()));
        assert!(is_trusted(getuid().as_raw(), getpid()));
        // No user has this number.
        assert!(!is_trusted(4_000_000_000, getpid()));
        // The first process is root's, or its user is visible.
        let first = std::fs::metadata("/proc/1").unwrap().uid();
        assert!(is_trusted(first, Pid::INIT));
    }
}
