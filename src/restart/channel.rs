//! [`Channel`]: one end of a socket pair for [`Message`]s and their descriptors. A parent channel
//! is between a keeper and its child, and a passage between a predecessor and its successor.
//!
//! Invariant: a message and its descriptors come whole or not at all, and no program inherits an
//! end of a channel, apart from a child, which gets its own end of the parent channel. This file
//! knows neither connections nor servers.

use std::env;
use std::fmt::Write;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::task::{Context, Poll, ready};

use async_io::Async;
use rustix::cmsg_space;
use rustix::io::Errno;
#[cfg(not(target_vendor = "apple"))]
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};

use crate::descriptors::{inode, take_socket};
use crate::restart::message::{BATCH, LONGEST, Message};

/// The environment variable that names a child's end of the parent channel. The value has a
/// version, the descriptor, and its inode.
pub(crate) const KEEPER: &str = "SMOL_GRACEFUL_KEEPER";

/// The version of the messages.
const VERSION: &str = "2";

/// One end of a channel.
pub(crate) struct Channel {
    socket: Async<OwnedFd>,
}

/// A message, and the descriptors that came with it.
pub(crate) type Received = (Message, Vec<OwnedFd>);

impl Channel {
    /// Makes a channel. Returns this process's end, and the other end.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error. Some systems have no such sockets.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (own, other) = socket_pair()?;
        Ok((Self::of(own)?, other))
    }

    /// Makes a channel with a message in it, for a process that will be started. Returns this
    /// process's end, which is for [`Channel::of`], and the other end.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error. Some systems have no such sockets.
    #[cfg_attr(
        not(feature = "keeper"),
        allow(dead_code, reason = "only a keeper starts a process")
    )]
    pub(crate) fn pair_with(message: &Message) -> io::Result<(OwnedFd, OwnedFd)> {
        let (own, other) = socket_pair()?;
        send_packet(own.as_fd(), &message.encode(), &[])?;
        Ok((own, other))
    }

    /// Takes an end of a channel.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if this process cannot wait for the socket.
    pub(crate) fn of(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: Async::new(socket)? })
    }

    /// Takes the end with which this process was started, if there is one.
    pub(crate) fn from_env() -> Option<Self> {
        let word = env::var(KEEPER).ok()?;
        let (version, word) = word.split_once(':')?;
        let (fd, inode) = word.split_once(':')?;
        let socket = take_socket(fd.parse().ok()?, inode.parse().ok()?)?;
        // A keeper of another version would not understand this child.
        (version == VERSION).then(|| Self::of(socket).ok())?
    }

    /// Returns the value of [`KEEPER`] for a child's end, which has the descriptor `fd` in the
    /// child.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error.
    #[cfg_attr(not(feature = "keeper"), allow(dead_code, reason = "only a keeper writes it"))]
    pub(crate) fn env_value(end: &OwnedFd, fd: RawFd) -> io::Result<String> {
        let mut word = String::from(VERSION);
        let _ = write!(word, ":{fd}:{}", inode(end)?);
        Ok(word)
    }

    /// Sends a message at once, or not at all, with at most [`BATCH`] descriptors.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error. Nothing was sent in that case.
    pub(crate) fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        send_packet(self.socket.as_fd(), &message.encode(), descriptors)
    }

    /// Waits for a message. Returns `None` when the other end is closed.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error, and `InvalidData` if the bytes are not a message.
    /// Neither error shows whether the other process is alive.
    ///
    /// # Cancel safety
    ///
    /// No message is lost when the future is dropped.
    pub(crate) async fn receive(&self) -> io::Result<Option<Received>> {
        std::future::poll_fn(|cx| self.poll_receive(cx)).await
    }

    /// Returns the result of [`Channel::receive`], or `None` if nothing has come.
    pub(crate) fn try_receive(&self) -> Option<io::Result<Option<Received>>> {
        (!is_empty(self.socket.as_fd())).then(|| self.receive_now())
    }

    pub(crate) fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Received>>> {
        // Look first, because each read allocates room for the longest message.
        while is_empty(self.socket.as_fd()) {
            ready!(self.socket.poll_readable(cx))?;
        }
        Poll::Ready(self.receive_now())
    }

    fn receive_now(&self) -> io::Result<Option<Received>> {
        match receive_packet(self.socket.as_fd()) {
            // If the other process closes its end with something unread, Linux reports ECONNRESET
            // once, and gives the queued answer to the next read. So read once more, and take a
            // second report as the end. `is_empty` may have taken the first report already.
            Err(error) if is_reset(&error) => match receive_packet(self.socket.as_fd()) {
                Err(error) if is_reset(&error) => Ok(None),
                received => received,
            },
            received => received,
        }
    }

    /// Returns the socket, so that this end can be passed on.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        self.socket.into_inner()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn send_packet(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Returns `true` if there is no message, no end and no error.
fn is_empty(socket: BorrowedFd<'_>) -> bool {
    recv(socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT) == Err(Errno::AGAIN)
}

fn is_reset(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionReset
}

/// Returns the next message and its descriptors, or `None` when the other end is closed. If this
/// process has too few free descriptors, the last ones are missing.
fn receive_packet(socket: BorrowedFd<'_>) -> io::Result<Option<Received>> {
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, &mut pieces, &mut ancillary, RECEIVE | RecvFlags::DONTWAIT)?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<_> = descriptors.flatten().collect();
    if received.bytes == 0 {
        return Ok(None);
    }
    let message = Message::decode(&bytes[..received.bytes]);
    match message {
        Some(message) if !received.flags.contains(ReturnFlags::TRUNC) => {
            Ok(Some((message, descriptors)))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a message of this version")),
    }
}

/// Returns `true` if nothing can be sent because the other end is closed.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Returns `true` if the kernel sends nothing for the moment, for example because this user has too
/// many descriptors under way.
pub(crate) fn is_congested(error: &io::Error) -> bool {
    const FOR_A_MOMENT: [Errno; 4] =
        [Errno::TOOMANYREFS, Errno::AGAIN, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| FOR_A_MOMENT.contains(&errno))
}

const SPACE: usize = cmsg_space!(ScmRights(BATCH));

#[cfg(not(target_vendor = "apple"))]
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The flags of a receive. CLOEXEC is among them, so that no program inherits the descriptors.
#[cfg(not(target_vendor = "apple"))]
const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC;

/// Returns an error, because the system has no such sockets.
#[cfg(target_vendor = "apple")]
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_vendor = "apple")]
const RECEIVE: RecvFlags = RecvFlags::empty();

#[cfg(all(test, not(target_vendor = "apple")))]
mod tests;
