//! The messages of a keeper, its children and a passage, for tests that speak with a real process
//! in place of another one.
//!
//! This file defines the messages a second time, because two versions of a program have to agree on
//! them. So a test can also send messages that no process of this version would send. Linux only.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use socket2::SockRef;

use super::handover::SocketKind;
use super::{Client, PATIENCE};

/// The largest number of connections in one message.
pub const BATCH: usize = 253;

const SPACE: usize = cmsg_space!(ScmRights(BATCH));

/// The variable that names a child's end of the parent channel.
pub const KEEPER: &str = "SMOL_GRACEFUL_KEEPER";

/// PASS carries the end of a passage, and no content.
pub const PASS: &[u8] = b"P";
/// ALONE tells a child that no other process will serve the queue (K5).
pub const ALONE: &[u8] = b"A";

/// An end of a parent channel or of a passage.
pub struct Channel(OwnedFd);

/// A batch in the form that the successor gets.
pub struct Batch {
    pub number: u32,
    /// The number of each connection's listener.
    pub listeners: Vec<u32>,
    pub sockets: Vec<OwnedFd>,
}

/// READY in the form that the keeper gets.
#[derive(Debug, PartialEq, Eq)]
pub struct Ready {
    pub resumes: u16,
    pub listeners: Vec<Served>,
}

/// A listener in READY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub number: u32,
    pub adopts: bool,
    /// Set if the child has brought the socket. The values are `true` if it has bound the socket,
    /// and the path of the file.
    pub brought: Option<(bool, String)>,
}

/// LEAVE in the form that a child gets.
#[derive(Debug, PartialEq, Eq)]
pub struct Leave {
    pub successor: u32,
    pub taken: Vec<u32>,
    pub adopted: Vec<u32>,
}

impl Channel {
    pub fn of(end: OwnedFd) -> Self {
        let socket = SockRef::from(&end);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(end)
    }

    /// Returns the test's end, and the other end.
    pub fn pair() -> (Self, OwnedFd) {
        let (own, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        (Self::of(own), other)
    }

    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        self.try_send(bytes, descriptors).unwrap();
    }

    /// Waits for room if there is none.
    pub fn try_send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Returns the next message and the descriptors that come with it, or `None` at the end.
    pub fn receive(&self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; 16 * 1024];
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let length = match recvmsg(&self.0, &mut pieces, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received.bytes,
            // The other end was closed with something unread.
            Err(Errno::CONNRESET) => return self.receive(),
            Err(error) => panic!("nothing comes through the channel: {error}"),
        };
        let descriptors = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = descriptors.flatten().collect();
        bytes.truncate(length);
        (length > 0).then_some((bytes, descriptors))
    }

    /// Returns the next message, with which no descriptor comes.
    pub fn message(&self) -> Vec<u8> {
        let (bytes, descriptors) = self.receive().expect("the channel is closed");
        assert_eq!(descriptors.len(), 0, "{bytes:?}");
        bytes
    }

    /// Returns the next batch of the predecessor.
    pub fn batch(&self) -> Batch {
        let (bytes, sockets) = self.receive().expect("the channel is closed");
        let rest = &mut &bytes[..];
        assert_eq!(take::<1>(rest), *b"C");
        let number = take_u32(rest);
        let listeners = take_list(rest, |rest| {
            let (listener, _idle) = (take_u32(rest), take::<8>(rest));
            take_bytes(rest);
            listener
        });
        assert!(rest.is_empty());
        Batch { number, listeners, sockets }
    }

    /// Returns READY, which has to be the next message, and the sockets that come with it.
    pub fn ready(&self) -> (Ready, Vec<OwnedFd>) {
        let (bytes, sockets) = self.receive().expect("the channel is closed");
        let rest = &mut &bytes[..];
        assert_eq!(take::<1>(rest), *b"R");
        let resumes = u16::from_be_bytes(take(rest));
        let listeners = take_list(rest, |rest| {
            let (number, adopts) = (take_u32(rest), take_bool(rest));
            let brought = take_bool(rest).then(|| {
                let is_own = take_bool(rest);
                (is_own, String::from_utf8(take_bytes(rest)).unwrap())
            });
            Served { number, adopts, brought }
        });
        assert!(rest.is_empty());
        (Ready { resumes, listeners }, sockets)
    }

    /// Returns the numbers and files of OFFER, which has to be the next message.
    pub fn offer(&self) -> Vec<(u32, bool, String)> {
        let bytes = self.message();
        let rest = &mut &bytes[..];
        assert_eq!(take::<1>(rest), *b"O");
        let offered = take_list(rest, |rest| {
            let (number, is_own, _) = (take_u32(rest), take_bool(rest), take_bool(rest));
            (number, is_own, String::from_utf8(take_bytes(rest)).unwrap())
        });
        assert!(rest.is_empty());
        offered
    }

    /// Returns LEAVE, which has to be the next message, and the end of a passage if one comes.
    pub fn leave(&self) -> (Leave, Option<Self>) {
        let (bytes, ends) = self.receive().expect("the channel is closed");
        let rest = &mut &bytes[..];
        assert_eq!(take::<1>(rest), *b"L");
        let successor = take_u32(rest);
        let (taken, adopted) = (take_list(rest, take_u32), take_list(rest, take_u32));
        assert!(rest.is_empty());
        (Leave { successor, taken, adopted }, one(ends))
    }

    /// Returns the passage of PASS, which has to be the next message.
    pub fn pass(&self) -> Self {
        let (bytes, ends) = self.receive().expect("the channel is closed");
        assert_eq!(bytes, PASS);
        one(ends).expect("no passage")
    }
}

fn one(ends: Vec<OwnedFd>) -> Option<Channel> {
    assert!(ends.len() <= 1, "{} descriptors", ends.len());
    ends.into_iter().next().map(Channel::of)
}

/// Takes the next `N` bytes.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (bytes, behind) = rest.split_first_chunk().unwrap();
    *rest = behind;
    *bytes
}

fn take_u32(rest: &mut &[u8]) -> u32 {
    u32::from_be_bytes(take(rest))
}

fn take_bool(rest: &mut &[u8]) -> bool {
    let [byte] = take(rest);
    assert!(byte <= 1);
    byte == 1
}

fn take_list<T>(rest: &mut &[u8], each: impl Fn(&mut &[u8]) -> T) -> Vec<T> {
    let count = u16::from_be_bytes(take(rest));
    (0..count).map(|_| each(rest)).collect()
}

fn take_bytes(rest: &mut &[u8]) -> Vec<u8> {
    let length = take_u32(rest) as usize;
    let (bytes, behind) = rest.split_at(length);
    *rest = behind;
    bytes.to_vec()
}

fn put_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend(u16::try_from(count).unwrap().to_be_bytes());
}

fn put_bytes(bytes: &mut Vec<u8>, content: &[u8]) {
    bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
    bytes.extend(content);
}

/// Returns OFFER with these numbers, of sockets that the keeper has bound.
pub fn offer(numbers: &[u32]) -> Vec<u8> {
    let mut bytes = b"O".to_vec();
    put_count(&mut bytes, numbers.len());
    for number in numbers {
        bytes.extend(number.to_be_bytes());
        bytes.extend([1, 0]);
        put_bytes(&mut bytes, b"");
    }
    bytes
}

/// Returns READY of a child that serves on these listeners, takes connections of all of them, and
/// has brought none.
pub fn ready(numbers: &[u32]) -> Vec<u8> {
    let served = |number: &u32| Served { number: *number, adopts: true, brought: None };
    ready_with(&numbers.iter().map(served).collect::<Vec<_>>())
}

/// Returns READY with these listeners.
pub fn ready_with(listeners: &[Served]) -> Vec<u8> {
    let mut bytes = b"R\0\0".to_vec();
    put_count(&mut bytes, listeners.len());
    for Served { number, adopts, brought } in listeners {
        bytes.extend(number.to_be_bytes());
        bytes.extend([u8::from(*adopts), u8::from(brought.is_some())]);
        if let Some((is_own, file)) = brought {
            bytes.push(u8::from(*is_own));
            put_bytes(&mut bytes, file.as_bytes());
        }
    }
    bytes
}

/// Returns LEAVE.
pub fn leave(successor: u32, taken: &[u32], adopted: &[u32]) -> Vec<u8> {
    let mut bytes = b"L".to_vec();
    bytes.extend(successor.to_be_bytes());
    for numbers in [taken, adopted] {
        put_count(&mut bytes, numbers.len());
        numbers.iter().for_each(|number| bytes.extend(number.to_be_bytes()));
    }
    bytes
}

/// Returns a batch of connections: the listener of each, how long it has been idle, and the bytes
/// that were read ahead.
pub fn batch(number: u32, connections: &[(u32, Duration, &str)]) -> Vec<u8> {
    let mut bytes = b"C".to_vec();
    bytes.extend(number.to_be_bytes());
    put_count(&mut bytes, connections.len());
    for (listener, idle, ahead) in connections {
        bytes.extend(listener.to_be_bytes());
        bytes.extend(u64::try_from(idle.as_millis()).unwrap().to_be_bytes());
        put_bytes(&mut bytes, ahead.as_bytes());
    }
    bytes
}

/// Returns the answer that `count` connections were taken, and that the successor would take more.
pub fn taken(number: u32, count: usize) -> Vec<u8> {
    let mut bytes = b"T".to_vec();
    bytes.extend(number.to_be_bytes());
    put_count(&mut bytes, count);
    bytes.push(1);
    bytes
}

/// Returns the server's end of a connection, and its client.
pub fn connection(over: SocketKind) -> (OwnedFd, Client) {
    match over {
        SocketKind::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener.accept().unwrap().0.into(), client.into())
        }
        SocketKind::Unix => {
            let (server, client) = UnixStream::pair().unwrap();
            (server.into(), client.into())
        }
    }
}

/// Reads a POST of `hello`, and answers `fake`.
pub fn answer_as_fake(socket: OwnedFd) {
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    // This works over TCP, too, because it only reads and writes.
    let mut server = Client::from(stream);
    server.take_to(b"\r\n\r\nhello").unwrap();
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake");
}

/// Returns the inode of a socket.
pub fn inode(socket: &OwnedFd) -> u64 {
    File::from(socket.try_clone().unwrap()).metadata().unwrap().ino()
}

/// Returns the value that names a child's end of the parent channel, which has descriptor `fd` in
/// the child.
pub fn keeper_word(end: &OwnedFd, fd: i32) -> String {
    format!("2:{fd}:{}", inode(end))
}

/// Returns borrowed descriptors, for sending.
pub fn borrowed(descriptors: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    descriptors.iter().map(AsFd::as_fd).collect()
}
