//! Tests of [`Message`]: each message is read as it was written, and changed bytes are read as
//! another message or as none.
//!
//! The random messages come from a seed that a failure shows. No test here has a socket.

use super::*;
use crate::seeded::seeded;
use fastrand::Rng;

fn messages() -> Vec<Message> {
    let record = |ahead: &[u8]| Record {
        listener: u32::MAX - 7,
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
        Message::Pass,
        Message::Alone,
        Message::Offer(vec![]),
        Message::Offer(vec![
            offered(0, true, None),
            offered(u32::MAX, false, Some("/run/a b\n.sock")),
        ]),
        Message::Ready(Ready::default()),
        Message::Ready(Ready {
            listeners: vec![
                Served { number: 0, adopts: true, brought: None },
                Served { number: 1, adopts: false, brought: Some(brought(None)) },
                Served { number: 2, adopts: true, brought: Some(brought(Some("x"))) },
            ],
            resumes: 1,
        }),
        Message::Leave(Leave::default()),
        Message::Leave(Leave { successor: 4711, taken: vec![0, 1, 7], adopted: vec![7] }),
    ]
}

fn offered(number: u32, is_own: bool, file: Option<&str>) -> Offered {
    Offered { number, is_own, is_brought: !is_own, file: file.map(PathBuf::from) }
}

fn brought(file: Option<&str>) -> Brought {
    Brought { is_own: file.is_none(), file: file.map(PathBuf::from) }
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
        // Long messages are cut at some places only.
        for end in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
            assert_eq!(Message::decode(&bytes[..end]), None, "{message:?} cut at {end}");
        }
        bytes.push(0);
        assert_eq!(Message::decode(&bytes), None, "{message:?} and one byte more");
    }
    assert_eq!(Message::decode(b"?"), None);
    // The message declares more records than it has bytes for.
    assert_eq!(Message::decode(b"C\0\0\0\0\xff\xff"), None);
    // The last byte is neither yes nor no.
    assert_eq!(Message::decode(b"T\0\0\0\x07\0\x01\x02"), None);
}

fn any_message(random: &mut Rng) -> Message {
    let number = random.u32(..);
    match random.u32(..7) {
        0 => {
            let most = if random.u32(..20) == 0 { BATCH } else { 3 };
            let connections = (0..random.usize(..=most)).map(|_| any_record(random)).collect();
            Message::Connections { number, connections }
        }
        1 => Message::Taken(Taken { number, count: random.u16(..), takes_more: random.bool() }),
        2 => Message::Pass,
        3 => Message::Alone,
        4 => Message::Offer(any_list(random, |random| {
            let (number, is_own, is_brought) = (random.u32(..), random.bool(), random.bool());
            Offered { number, is_own, is_brought, file: any_file(random) }
        })),
        5 => {
            let listeners = any_list(random, |random| {
                let (number, adopts) = (random.u32(..), random.bool());
                let is_own = random.bool();
                let brought = random.bool().then(|| Brought { is_own, file: any_file(random) });
                Served { number, adopts, brought }
            });
            Message::Ready(Ready { listeners, resumes: random.u16(..) })
        }
        _ => {
            let taken = any_list(random, |random| random.u32(..));
            let adopted = any_list(random, |random| random.u32(..));
            Message::Leave(Leave { successor: number, taken, adopted })
        }
    }
}

fn any_record(random: &mut Rng) -> Record {
    let most = if random.u32(..20) == 0 { 2_000 } else { 5 };
    let ahead = (0..random.usize(..most)).map(|_| random.u8(..)).collect();
    let idle = Duration::from_millis(bits(random));
    Record { listener: random.u32(..), idle, ahead }
}

fn any_list<T>(random: &mut Rng, any: impl Fn(&mut Rng) -> T) -> Vec<T> {
    (0..random.usize(..4)).map(|_| any(random)).collect()
}

fn any_file(random: &mut Rng) -> Option<PathBuf> {
    let path = any_list(random, |random| random.u8(..));
    (!path.is_empty()).then(|| OsString::from_vec(path).into())
}

/// Returns a number with a random count of bits, so very small and very large numbers are not
/// rare.
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
                // Most changes are at the beginning, where the counts are.
                2 => bytes.iter_mut().take(12).for_each(|byte| {
                    if random.u32(..6) == 0 {
                        *byte = random.u8(..4);
                    }
                }),
                _ => bytes.iter_mut().skip(place).take(1).for_each(|byte| *byte = random.u8(..)),
            }
        }
        if let Some(message) = Message::decode(&bytes) {
            assert_eq!(message.encode(), bytes, "{before:?} was changed to {message:?}");
        }
    }
}
