//! [`Message`]: what goes through a passage between predecessor and successor, beside the
//! descriptors.
//!
//! Pure: a value into bytes, and bytes into a value. Invariant: bytes that make no sense make no
//! value, and a count that a message declares reserves no memory. Numbers are big-endian.

use std::time::Duration;

use crate::limits::Limits;

/// A message, whole in one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// From the predecessor: a batch of connections. As many sockets come with it.
    Connections { number: u32, connections: Vec<Record> },
    /// From the successor: how many connections of that batch it has taken, from the first on.
    Taken(Taken),
    /// From the predecessor: the end of a passage, from which further connections come.
    Passage,
}

/// The facts that go along with the socket of a connection (rule H8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The inode of the listener that the connection came to.
    pub(crate) listener: u64,
    /// How long the connection has been idle, or since when the first byte of its request is there,
    /// to the millisecond.
    pub(crate) idle: Duration,
    /// The bytes that were read of the socket and not answered.
    pub(crate) ahead: Vec<u8>,
}

/// The answer to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The number of the batch.
    pub(crate) number: u32,
    /// How many connections were taken. The next one, if there is one, was not.
    pub(crate) count: u16,
    /// `false` if no further connection would be taken either.
    pub(crate) takes_more: bool,
}

/// How many connections a batch has at most: the kernel passes no more sockets at once.
pub(crate) const BATCH: usize = 253;

/// How many bytes a message has at most.
pub(crate) const LONGEST: usize = HEAD + BATCH * RECORD + Limits::MOST_AHEAD;

/// A kind, a number, a count.
const HEAD: usize = 1 + 4 + 2;

/// A listener, a time, a length.
const RECORD: usize = 8 + 8 + 4;

const KIND_CONNECTIONS: u8 = b'C';
const KIND_TAKEN: u8 = b'T';
const KIND_PASSAGE: u8 = b'P';

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Connections { number, connections } => {
                let count = u16::try_from(connections.len()).unwrap_or(u16::MAX);
                bytes.push(KIND_CONNECTIONS);
                bytes.extend(number.to_be_bytes());
                bytes.extend(count.to_be_bytes());
                for Record { listener, idle, ahead } in connections {
                    let idle = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
                    let length = u32::try_from(ahead.len()).unwrap_or(u32::MAX);
                    bytes.extend(listener.to_be_bytes());
                    bytes.extend(idle.to_be_bytes());
                    bytes.extend(length.to_be_bytes());
                    bytes.extend(ahead);
                }
            }
            Self::Taken(Taken { number, count, takes_more }) => {
                bytes.push(KIND_TAKEN);
                bytes.extend(number.to_be_bytes());
                bytes.extend(count.to_be_bytes());
                bytes.push(u8::from(*takes_more));
            }
            Self::Passage => bytes.push(KIND_PASSAGE),
        }
        bytes
    }

    /// Returns `None` if the bytes are no message.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let rest = &mut &*rest;
        let message = match *kind {
            KIND_CONNECTIONS => {
                let (number, count) = (u32::from_be_bytes(take(rest)?), take(rest)?);
                let records = (0..u16::from_be_bytes(count)).map(|_| Record::decode(rest));
                Self::Connections { number, connections: records.collect::<Option<_>>()? }
            }
            KIND_TAKEN => {
                let (number, count) = (u32::from_be_bytes(take(rest)?), take(rest)?);
                let takes_more = match take(rest)? {
                    [0] => false,
                    [1] => true,
                    [_] => return None,
                };
                let count = u16::from_be_bytes(count);
                Self::Taken(Taken { number, count, takes_more })
            }
            KIND_PASSAGE => Self::Passage,
            _ => return None,
        };
        rest.is_empty().then_some(message)
    }
}

impl Record {
    fn decode(rest: &mut &[u8]) -> Option<Self> {
        let listener = u64::from_be_bytes(take(rest)?);
        let idle = Duration::from_millis(u64::from_be_bytes(take(rest)?));
        let length = usize::try_from(u32::from_be_bytes(take(rest)?)).ok()?;
        let (ahead, behind) = rest.split_at_checked(length)?;
        *rest = behind;
        Some(Self { listener, idle, ahead: ahead.to_vec() })
    }
}

/// Takes the next `N` bytes.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded::seeded;
    use fastrand::Rng;

    fn messages() -> Vec<Message> {
        let record = |ahead: &[u8]| Record {
            listener: u64::MAX - 7,
            idle: Duration::from_millis(90_061),
            ahead: ahead.to_vec(),
        };
        let full = vec![record(&[b'x'; Limits::MOST_AHEAD / BATCH]); BATCH];
        vec![
            Message::Connections { number: 0, connections: vec![] },
            Message::Connections { number: 7, connections: vec![record(b""), record(b"GET /")] },
            Message::Connections { number: u32::MAX, connections: full },
            Message::Taken(Taken { number: 1, count: 253, takes_more: true }),
            Message::Taken(Taken { number: u32::MAX, count: 0, takes_more: false }),
            Message::Passage,
        ]
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        for message in messages() {
            let bytes = message.encode();
            assert!(bytes.len() <= LONGEST);
            assert_eq!(Message::decode(&bytes), Some(message));
        }
    }

    #[test]
    fn what_is_no_whole_message_is_none() {
        for message in messages() {
            let mut bytes = message.encode();
            // Long ones are cut at some places only.
            for end in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
                assert_eq!(Message::decode(&bytes[..end]), None, "{message:?} cut at {end}");
            }
            bytes.push(0);
            assert_eq!(Message::decode(&bytes), None, "{message:?} and one byte more");
        }
        assert_eq!(Message::decode(b"?"), None);
        // More records than there are bytes.
        assert_eq!(Message::decode(b"C\0\0\0\0\xff\xff"), None);
        // Neither yes nor no.
        assert_eq!(Message::decode(b"T\0\0\0\x07\0\x01\x02"), None);
    }

    fn any_message(random: &mut Rng) -> Message {
        let number = random.u32(..);
        let record = |random: &mut Rng| {
            let most = if random.u32(..20) == 0 { 2_000 } else { 5 };
            let ahead = (0..random.usize(..most)).map(|_| random.u8(..));
            let ahead = ahead.collect();
            let (listener, idle) = (bits(random), Duration::from_millis(bits(random)));
            Record { listener, idle, ahead }
        };
        match random.u32(..3) {
            0 => {
                let most = if random.u32(..20) == 0 { BATCH } else { 3 };
                let connections = (0..random.usize(..=most)).map(|_| record(random)).collect();
                Message::Connections { number, connections }
            }
            1 => Message::Taken(Taken { number, count: random.u16(..), takes_more: random.bool() }),
            _ => Message::Passage,
        }
    }

    /// Returns a number of random length, so the least and the greatest are not rare.
    fn bits(random: &mut Rng) -> u64 {
        u64::MAX.checked_shr(random.u32(..=64)).unwrap_or(0)
    }

    #[test]
    fn any_message_is_read_as_it_was_written() {
        let mut random = seeded();
        for _ in 0..2_000 {
            let message = any_message(&mut random);
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
    }

    /// Each message has one form, so bytes that are read as a message are the form of this message.
    #[test]
    fn bytes_that_were_changed_are_another_message_or_none() {
        let mut random = seeded();
        for _ in 0..5_000 {
            let before = any_message(&mut random);
            let mut bytes = before.encode();
            for _ in 0..random.usize(1..4) {
                let place = random.usize(..=bytes.len());
                match random.u32(..4) {
                    0 => bytes.truncate(place),
                    1 => bytes.insert(place, random.u8(..)),
                    // Mostly in front, where the counts are.
                    2 => bytes.iter_mut().take(12).for_each(|byte| {
                        if random.u32(..6) == 0 {
                            *byte = random.u8(..4);
                        }
                    }),
                    _ => {
                        bytes.iter_mut().skip(place).take(1).for_each(|byte| *byte = random.u8(..))
                    }
                }
            }
            if let Some(message) = Message::decode(&bytes) {
                assert_eq!(message.encode(), bytes, "{before:?} was changed to {message:?}");
            }
        }
    }
}
