//! [`Passage`]: one end of the socket pair through which connections go from a process to its
//! successor.
//!
//! Invariant: a message and its descriptors come whole or not at all, and no program that this
//! process starts inherits a descriptor of a passage. Knows neither connections nor servers.

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
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::listen::inherited;
use crate::listen::own_sockets::inode;
use crate::restart::message::{BATCH, LONGEST, Message};

/// Tells a successor which descriptor is its end of the passage: a version, the descriptor, and its
/// inode.
pub(crate) const PASSAGE: &str = "SMOL_GRACEFUL_PASSAGE";

/// What passages of this version speak.
const VERSION: &str = "1";

/// One end of a passage.
pub(crate) struct Passage {
    socket: Async<OwnedFd>,
}

/// The way of a process's connections to its successor.
pub(crate) struct ToSuccessor {
    pub(crate) passage: Passage,
    /// The inode of each listener, by its number, whose connections the successor takes.
    pub(crate) adopted: Vec<Option<u64>>,
}

/// A message, and the descriptors that came with it.
pub(crate) type Received = (Message, Vec<OwnedFd>);

impl Passage {
    /// Makes a passage. Returns this process's end, and the one for the successor.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says. Some have no such sockets.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (own, other) = pair()?;
        Ok((Self::of(own)?, other))
    }

    /// Takes an end of a passage.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says if no events can be had for the socket.
    pub(crate) fn of(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: Async::new(socket)? })
    }

    /// Takes the end that this process was started with, if it was.
    pub(crate) fn from_env() -> Option<Self> {
        let word = env::var(PASSAGE).ok()?;
        let (version, word) = word.split_once(':')?;
        let (fd, inode) = word.split_once(':')?;
        let socket = inherited::take_socket(fd.parse().ok()?, inode.parse().ok()?)?;
        // Another version would not understand this one.
        (version == VERSION).then(|| Self::of(socket).ok())?
    }

    /// Returns the word of [`PASSAGE`] for a successor's end, which has the descriptor `fd` there.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says.
    pub(crate) fn word(end: &OwnedFd, fd: RawFd) -> io::Result<String> {
        let mut word = String::from(VERSION);
        let _ = write!(word, ":{fd}:{}", inode(end)?);
        Ok(word)
    }

    /// Sends a message. At most [`BATCH`] descriptors go along.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says; nothing was sent then.
    pub(crate) async fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = message.encode();
        self.socket.write_with(|socket| send(socket.as_fd(), &bytes, descriptors)).await
    }

    /// Sends a message without descriptors, if it goes at once.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says; nothing was sent then.
    pub(crate) fn answer(&self, message: &Message) -> io::Result<()> {
        send(self.socket.as_fd(), &message.encode(), &[])
    }

    /// Waits for a message. Returns `None` when the other end is closed.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says, and `InvalidData` for what is no message.
    ///
    /// # Cancel safety
    ///
    /// No message is lost when the future is dropped.
    pub(crate) async fn receive(&self) -> io::Result<Option<Received>> {
        std::future::poll_fn(|cx| self.poll_receive(cx)).await
    }

    pub(crate) fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Received>>> {
        loop {
            match receive(self.socket.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_readable(cx))?;
                }
                // The other end was closed with something unread, and the kernel says so before it
                // gives what is queued here.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Poll::Ready(receive(self.socket.as_fd()));
                }
                received => return Poll::Ready(received),
            }
        }
    }

    /// Takes the socket, to pass this end on.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says.
    pub(crate) fn into_fd(self) -> io::Result<OwnedFd> {
        self.socket.into_inner()
    }
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Returns the next message, and as many of its descriptors as this process could take, from the
/// first on. Returns `None` when the other end is closed.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Received>> {
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
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no message of this version")),
    }
}

/// Returns `true` if the kernel has refused to send descriptors because this user has too many of
/// them under way.
pub(crate) fn is_congested(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::TOOMANYREFS)
}

const SPACE: usize = cmsg_space!(ScmRights(BATCH));

// Nobody inherits either end, and nobody inherits what is received.

#[cfg(not(target_vendor = "apple"))]
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

#[cfg(not(target_vendor = "apple"))]
const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC;

/// Has no such sockets.
#[cfg(target_vendor = "apple")]
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_vendor = "apple")]
const RECEIVE: RecvFlags = RecvFlags::empty();
