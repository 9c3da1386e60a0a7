//! [`Message`]: the messages between a keeper and its children, and between two children. The
//! descriptors go beside them.
//!
//! Pure: the code turns a value into bytes, and bytes into a value. Invariant: bytes that make no
//! sense give no value, and a count that a message declares reserves no memory. Numbers are
//! big-endian.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use crate::limits::Limits;

/// A message, which is one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// From the keeper, before the child begins: the listening sockets that the child has from
    /// descriptor 3 on, in their order.
    Offer(Vec<Offered>),
    /// From a child: the child serves. The sockets of new listeners come with this message, in
    /// their order.
    Ready(Ready),
    /// From the keeper, or from a predecessor: connections come from a passage, whose end comes
    /// with this message.
    Pass,
    /// From the keeper: a successor serves, so hand over and stop. If the successor takes
    /// connections, the end of a passage comes with this message.
    Leave(Leave),
    /// From the keeper: the keeper has closed its copies of the listening sockets, and a stop
    /// signal follows.
    Alone,
    /// From the predecessor: a batch of connections. One socket for each comes with this message.
    Connections { number: u32, connections: Vec<Record> },
    /// From the successor: the number of connections of a batch that it has taken, from the first
    /// on.
    Taken(Taken),
}

/// A listening socket that a keeper gives to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offered {
    /// The number by which the keeper and all of its children know the listener.
    pub(crate) number: u32,
    /// The keeper or a child of it has bound the socket, so no other program has it.
    pub(crate) is_own: bool,
    /// `true` if an earlier child has bound the socket. Only a child that asks for its address
    /// takes it.
    pub(crate) is_brought: bool,
    /// The path of a Unix socket's file. The socket itself may know only a relative path.
    pub(crate) file: Option<PathBuf>,
}

/// The report of a child that serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) listeners: Vec<Served>,
    /// The version of a keeper's state that the program reads, or 0 if the program does not become
    /// its own keeper (`Process::keep`).
    pub(crate) resumes: u16,
}

/// A listener on which a child serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Served {
    /// The keeper's number. New listeners get numbers above all offered ones.
    pub(crate) number: u32,
    /// The child takes a predecessor's connections to this listener.
    pub(crate) adopts: bool,
    /// Set if the child has brought the socket itself.
    pub(crate) brought: Option<Brought>,
}

/// The facts about a new listener that only its child knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Brought {
    pub(crate) is_own: bool,
    pub(crate) file: Option<PathBuf>,
}

/// The message of a keeper to a child that has a successor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Leave {
    /// The process id of the successor.
    pub(crate) successor: u32,
    /// The listeners on which the successor serves. No other process has the rest.
    pub(crate) taken: Vec<u32>,
    /// The listeners among those whose connections the successor takes.
    pub(crate) adopted: Vec<u32>,
}

/// The facts that go along with the socket of a connection (rule H8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The keeper's number of the listener to which the connection came.
    pub(crate) listener: u32,
    /// The time for which the connection has been idle, or the first byte of its request has been
    /// there, in whole milliseconds.
    pub(crate) idle: Duration,
    /// The bytes that were read from the socket and not answered.
    pub(crate) ahead: Vec<u8>,
}

/// The answer to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The number of the batch.
    pub(crate) number: u32,
    /// The number of connections that were taken. The next one of the batch, if there is one, was
    /// refused.
    pub(crate) count: u16,
    /// `false` if the successor would not take any further connection either.
    pub(crate) takes_more: bool,
}

/// The largest number of connections in a batch, because the kernel passes no more sockets at once.
pub(crate) const BATCH: usize = 253;

/// The largest number of bytes in a message.
pub(crate) const LONGEST: usize = HEAD + BATCH * RECORD + Limits::MOST_AHEAD;

/// The bytes of a kind, a number and a count.
const HEAD: usize = 1 + 4 + 2;

/// The bytes of a listener, a time and a length.
const RECORD: usize = 4 + 8 + 4;

const KIND_OFFER: u8 = b'O';
const KIND_READY: u8 = b'R';
const KIND_PASS: u8 = b'P';
const KIND_LEAVE: u8 = b'L';
const KIND_ALONE: u8 = b'A';
const KIND_CONNECTIONS: u8 = b'C';
const KIND_TAKEN: u8 = b'T';

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Offer(offered) => {
                bytes.push(KIND_OFFER);
                put_list(&mut bytes, offered, |bytes, offered| {
                    bytes.extend(offered.number.to_be_bytes());
                    bytes.push(u8::from(offered.is_own));
                    bytes.push(u8::from(offered.is_brought));
                    put_file(bytes, offered.file.as_ref());
                });
            }
            Self::Ready(Ready { listeners, resumes }) => {
                bytes.push(KIND_READY);
                bytes.extend(resumes.to_be_bytes());
                put_list(&mut bytes, listeners, |bytes, Served { number, adopts, brought }| {
                    bytes.extend(number.to_be_bytes());
                    bytes.push(u8::from(*adopts));
                    bytes.push(u8::from(brought.is_some()));
                    if let Some(Brought { is_own, file }) = brought {
                        bytes.push(u8::from(*is_own));
                        put_file(bytes, file.as_ref());
                    }
                });
            }
            Self::Pass => bytes.push(KIND_PASS),
            Self::Leave(Leave { successor, taken, adopted }) => {
                bytes.push(KIND_LEAVE);
                bytes.extend(successor.to_be_bytes());
                for numbers in [taken, adopted] {
                    put_list(&mut bytes, numbers, |bytes, number| {
                        bytes.extend(number.to_be_bytes());
                    });
                }
            }
            Self::Alone => bytes.push(KIND_ALONE),
            Self::Connections { number, connections } => {
                bytes.push(KIND_CONNECTIONS);
                bytes.extend(number.to_be_bytes());
                put_list(&mut bytes, connections, |bytes, Record { listener, idle, ahead }| {
                    let idle = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
                    bytes.extend(listener.to_be_bytes());
                    bytes.extend(idle.to_be_bytes());
                    put_bytes(bytes, ahead);
                });
            }
            Self::Taken(Taken { number, count, takes_more }) => {
                bytes.push(KIND_TAKEN);
                bytes.extend(number.to_be_bytes());
                bytes.extend(count.to_be_bytes());
                bytes.push(u8::from(*takes_more));
            }
        }
        bytes
    }

    /// Reads a message. Returns `None` if the bytes are not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let rest = &mut &*rest;
        let message = match *kind {
            KIND_OFFER => Self::Offer(take_list(rest, |rest| {
                let (number, is_own) = (take_u32(rest)?, take_bool(rest)?);
                let is_brought = take_bool(rest)?;
                Some(Offered { number, is_own, is_brought, file: take_file(rest)? })
            })?),
            KIND_READY => {
                let resumes = u16::from_be_bytes(take(rest)?);
                let listeners = take_list(rest, |rest| {
                    let (number, adopts) = (take_u32(rest)?, take_bool(rest)?);
                    let brought = match take_bool(rest)? {
                        true => Some(Brought { is_own: take_bool(rest)?, file: take_file(rest)? }),
                        false => None,
                    };
                    Some(Served { number, adopts, brought })
                })?;
                Self::Ready(Ready { listeners, resumes })
            }
            KIND_PASS => Self::Pass,
            KIND_LEAVE => Self::Leave(Leave {
                successor: take_u32(rest)?,
                taken: take_list(rest, take_u32)?,
                adopted: take_list(rest, take_u32)?,
            }),
            KIND_ALONE => Self::Alone,
            KIND_CONNECTIONS => {
                let number = take_u32(rest)?;
                let connections = take_list(rest, |rest| {
                    let (listener, idle) = (take_u32(rest)?, u64::from_be_bytes(take(rest)?));
                    let (idle, ahead) = (Duration::from_millis(idle), take_bytes(rest)?);
                    Some(Record { listener, idle, ahead })
                })?;
                Self::Connections { number, connections }
            }
            KIND_TAKEN => {
                let (number, count) = (take_u32(rest)?, u16::from_be_bytes(take(rest)?));
                Self::Taken(Taken { number, count, takes_more: take_bool(rest)? })
            }
            _ => return None,
        };
        rest.is_empty().then_some(message)
    }
}

/// Writes a count, and then each value.
fn put_list<T>(bytes: &mut Vec<u8>, list: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    bytes.extend(u16::try_from(list.len()).unwrap_or(u16::MAX).to_be_bytes());
    list.iter().for_each(|value| put(bytes, value));
}

/// Writes a length, and then the bytes.
fn put_bytes(bytes: &mut Vec<u8>, content: &[u8]) {
    bytes.extend(u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(content);
}

/// Writes a path. An empty path stands for `None`, because no real path is empty.
fn put_file(bytes: &mut Vec<u8>, file: Option<&PathBuf>) {
    put_bytes(bytes, file.map_or(&[], |file| file.as_os_str().as_bytes()));
}

/// Takes the next `N` bytes.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*bytes)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take(rest).map(u32::from_be_bytes)
}

fn take_bool(rest: &mut &[u8]) -> Option<bool> {
    match take(rest)? {
        [0] => Some(false),
        [1] => Some(true),
        [_] => None,
    }
}

fn take_list<T>(rest: &mut &[u8], each: impl Fn(&mut &[u8]) -> Option<T>) -> Option<Vec<T>> {
    let count = u16::from_be_bytes(take(rest)?);
    // The vector grows with the values that are there, not by the count.
    (0..count).map(|_| each(rest)).collect()
}

fn take_bytes(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(take_u32(rest)?).ok()?;
    let (content, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(content.to_vec())
}

fn take_file(rest: &mut &[u8]) -> Option<Option<PathBuf>> {
    let path = OsString::from_vec(take_bytes(rest)?);
    Some(Some(path).filter(|path| !path.is_empty()).map(PathBuf::from))
}

#[cfg(test)]
mod tests;
