//! Tests of `body.rs`: good, bad and random chunked bodies.
//!
//! Each body comes whole, byte by byte, and in random pieces, because the verdict must not depend
//! on how the bytes were split into reads. async-h1 has to read the canonical chunks as the gate
//! has read the client's.

use super::*;
use async_h1::server::decode;
use futures_lite::future::block_on;
use futures_lite::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

/// A good body: its bytes, its content, the trailers that are handed on.
type Good = (&'static str, &'static str, &'static str);

/// Bodies that are accepted. The tests put other bytes behind each body, and these bytes are
/// never part of the body.
const GOOD: &[Good] = &[
    // RFC 9112 section 7.1: chunk-size, chunk-data, last-chunk
    ("0\r\n\r\n", "", ""),
    ("5\r\nhello\r\n0\r\n\r\n", "hello", ""),
    ("1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", "abc", ""),
    ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789", ""),
    ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789", ""),
    ("0000000000000003\r\nabc\r\n0000000000000000\r\n\r\n", "abc", ""),
    ("000\r\n\r\n", "", ""),
    ("4\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n", ""),
    ("5\r\n0\r\n\r\n\r\n0\r\n\r\n", "0\r\n\r\n", ""),
    // section 7.1.1: extensions are skipped
    ("1;a\r\nx\r\n0;b\r\n\r\n", "x", ""),
    ("1;a=b;c=d\r\nx\r\n0\r\n\r\n", "x", ""),
    ("1 \t; \ta = b\r\nx\r\n0 ;c\r\n\r\n", "x", ""),
    ("1;a=\"q;\\\"\\\\\"\r\nx\r\n0\r\n\r\n", "x", ""),
    ("1;a=\"\u{e9}\"\r\nx\r\n0\r\n\r\n", "x", ""),
    ("1;\r\nx\r\n0\r\n\r\n", "x", ""),
    ("1;a\\\r\nx\r\n0\r\n\r\n", "x", ""),
    // section 7.1.2: trailers
    ("0\r\na: b\r\n\r\n", "", "a: b\r\n"),
    ("0\r\na: \u{e9}\r\n\r\n", "", "a: %C3%A9\r\n"), // obs-text, as in heads
    ("1\r\nx\r\n0\r\na:\r\nB:\t c:d \r\n\r\n", "x", "a:\r\nB:\t c:d \r\n"),
    (
        "0;e\r\nContent-MD5: x\r\nContent-Digest: y\r\n\r\n",
        "",
        "Content-MD5: x\r\nContent-Digest: y\r\n",
    ),
    ("0\r\n!#$%&'*+-.^_`|~09azAZ: !~\r\n\r\n", "", "!#$%&'*+-.^_`|~09azAZ: !~\r\n"),
    // RFC 9110 section 6.5.1: fields that must not be merged
    ("0\r\nHost: evil\r\n\r\n", "", ""),
    ("0\r\na: 1\r\nAUTHORIZATION: x\r\nb: 2\r\nIf-Match: x\r\n\r\n", "", "a: 1\r\nb: 2\r\n"),
    (
        "0\r\nX-Forwarded-For: ::1\r\nhosts: 3\r\nx-forwarded: 4\r\n\r\n",
        "",
        "hosts: 3\r\nx-forwarded: 4\r\n",
    ),
];

/// Bodies that are refused, each at its last byte and not before.
const BAD: &[(&str, Malformed)] = &[
    // RFC 9112 section 7.1: chunk-size = 1*HEXDIG
    ("\r", Malformed::SIZE), // async-h1 takes an empty size for the end
    ("\n", Malformed::SIZE),
    (";", Malformed::SIZE),
    (" ", Malformed::SIZE),
    ("+", Malformed::SIZE),
    ("-", Malformed::SIZE),
    ("g", Malformed::SIZE),
    ("\0", Malformed::SIZE),
    ("0x", Malformed::SIZE_END),
    ("1_", Malformed::SIZE_END),
    ("1h", Malformed::SIZE_END),
    ("00000000000000001", Malformed::SIZE_TOO_LONG),
    ("fffffffffffffffff", Malformed::SIZE_TOO_LONG),
    ("1\n", Malformed::SIZE_END),
    ("1\r1", Malformed::SIZE_END),
    ("1\r\r", Malformed::SIZE_END),
    ("1 \r", Malformed::SIZE_END),
    ("1 \t \n", Malformed::SIZE_END),
    ("1 1", Malformed::SIZE_END),
    ("1\r\nx\r\n\r", Malformed::SIZE),
    // chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF
    ("1\r\nxy", Malformed::DATA_END),
    ("1\r\nx\n", Malformed::DATA_END),
    ("1\r\nx\r0", Malformed::DATA_END),
    ("1\r\nx\r\r", Malformed::DATA_END),
    ("1\r\nx0", Malformed::DATA_END),
    // section 7.1.1: an extension hides neither line end nor control character
    ("1;a\n", Malformed::EXTENSION),
    ("1;a\rb", Malformed::EXTENSION),
    ("1;a\r\r", Malformed::EXTENSION),
    ("1;a\0", Malformed::EXTENSION),
    ("1;a\x7f", Malformed::EXTENSION),
    ("1;\u{80}", Malformed::EXTENSION),
    ("1;a=\"\r", Malformed::EXTENSION),
    ("1;a=\"\n", Malformed::EXTENSION),
    ("1;a=\"\\\r", Malformed::EXTENSION),
    ("1;a=\"\\\"\r", Malformed::EXTENSION),
    ("1;a=\"\x0b", Malformed::EXTENSION),
    ("1;a\r\nx\r\n0;\n", Malformed::EXTENSION),
    ("1;\\\"\r", Malformed::EXTENSION), // outside quotes, a backslash escapes nothing
    // section 7.1.2 and section 5: trailers are field lines
    ("0\r\n\n", Malformed::TRAILER),
    ("0\r\n\rx", Malformed::TRAILER),
    ("0\r\n\r\r", Malformed::TRAILER),
    ("0\r\n:", Malformed::TRAILER),
    ("0\r\n ", Malformed::TRAILER),
    ("0\r\na ", Malformed::TRAILER),
    ("0\r\na\r", Malformed::TRAILER),
    ("0\r\na\n", Malformed::TRAILER),
    ("0\r\na(", Malformed::TRAILER),
    ("0\r\n\u{e9}", Malformed::TRAILER),
    ("0\r\na: b\n", Malformed::TRAILER),
    ("0\r\na: b\rc", Malformed::TRAILER),
    ("0\r\na: b\r\n ", Malformed::TRAILER), // obs-fold
    ("0\r\na: b\r\n\t", Malformed::TRAILER),
    ("0\r\na: b\r\n\n", Malformed::TRAILER),
    ("0\r\na: \0", Malformed::TRAILER),
    ("0\r\na: \x7f", Malformed::TRAILER),
    // RFC 9110 section 6.5.1: message framing
    ("0\r\nContent-Length:", Malformed::TRAILER_FRAMING),
    ("0\r\na: b\r\ntransfer-encoding:", Malformed::TRAILER_FRAMING),
];

#[test]
fn good_bodies_are_taken_however_they_are_split() {
    for &(message, content, trailers) in GOOD {
        let whole = Verdict::Whole {
            content: content.into(),
            trailers: trailers.into(),
            length: message.len(),
        };
        for behind in ["", "GET / HTTP/1.1\r\n\r\n", "0\r\n\r\n", "\r\n", "\0"] {
            assert_however_split(format!("{message}{behind}").as_bytes(), &whole);
        }
        for length in 0..message.len() {
            let cut = &message.as_bytes()[..length];
            assert_eq!(read([cut]), Verdict::Unfinished, "{message:?} cut to {length}");
        }
    }
}

#[test]
fn bad_bodies_are_refused_at_the_first_wrong_byte() {
    for &(message, malformed) in BAD {
        let message = last_byte_once(message);
        let (_, before) = message.split_last().unwrap();
        assert_eq!(read([before]), Verdict::Unfinished, "{}", message.escape_ascii());
        for behind in ["", "\n", "\r\n0\r\n\r\n"] {
            let message = [&message, behind.as_bytes()].concat();
            assert_however_split(&message, &Verdict::Malformed(malformed));
        }
    }
}

#[test]
fn sizes_reach_to_the_largest_number() {
    let mut body = Chunked::new();
    let step = body.step(b"FFFFFFFFffffffff\r\nab");
    assert_eq!(step, Ok(Step::Chunk { consumed: 18, size: u64::MAX }));
    assert_eq!(body.step(b"ab"), Ok(Step::Content(u64::MAX)));
    body.took(u64::MAX - 1);
    assert_eq!(body.content_left(), 1);
    assert_eq!(body.step(b"c\r"), Ok(Step::Content(1)));
    body.took(1);
    assert_eq!(body.content_left(), 0);
    assert_eq!(body.step(b"\r\n0"), Ok(Step::Skip(2)));
    assert!(!body.is_complete());
}

#[test]
fn behind_its_end_a_body_stays_ended() {
    let mut body = Chunked::new();
    assert_eq!(body.step(b"0\r\n\r\n"), Ok(Step::Skip(3)));
    let end = |consumed| Ok(Step::End { consumed, trailers: Cow::Borrowed(&[][..]) });
    assert_eq!(body.step(b"\r\n\0"), end(2));
    assert!(body.is_complete());
    assert_eq!(body.step(b"\0"), end(0));
}

#[test]
fn extensions_of_one_line_are_bounded() {
    for blank in ["", " "] {
        let line = |length: usize| format!("1{blank};{}", "e".repeat(length - 1 - blank.len()));
        let rest = "\r\nx\r\n0\r\n\r\n";
        let longest = line(MAX_EXTENSION_BYTES) + rest;
        let length = longest.len();
        let whole = Verdict::Whole { content: b"x".into(), trailers: vec![], length };
        assert_however_split(longest.as_bytes(), &whole);
        let longer = line(MAX_EXTENSION_BYTES + 1) + rest;
        let refused = Verdict::Malformed(Malformed::EXTENSION_TOO_LONG);
        assert_however_split(longer.as_bytes(), &refused);
    }
    let blanks = format!("1{}x", " ".repeat(2 * MAX_EXTENSION_BYTES));
    let refused = Verdict::Malformed(Malformed::EXTENSION_TOO_LONG);
    assert_however_split(blanks.as_bytes(), &refused);
}

#[test]
fn extensions_of_a_whole_body_are_bounded_by_its_content() {
    let chunks = |extension: usize, content: usize, count: usize| {
        let chunk =
            format!("{content:x};{}\r\n{}\r\n", "e".repeat(extension - 1), "c".repeat(content));
        chunk.repeat(count) + "0\r\n\r\n"
    };
    // 200 bytes for each byte of content are refused soon, 200 for each 200 never.
    let refused = Verdict::Malformed(Malformed::EXTENSION_TOO_LONG);
    assert!(matches!(read([chunks(200, 1, 82).as_bytes()]), Verdict::Whole { .. }));
    assert_eq!(read([chunks(200, 1, 84).as_bytes()]), refused);
    assert_eq!(read(chunks(200, 1, 84).as_bytes().chunks(1)), refused);
    assert!(matches!(read([chunks(200, 200, 1000).as_bytes()]), Verdict::Whole { .. }));
}

#[test]
fn trailer_sections_are_bounded() {
    let refused = Verdict::Malformed(Malformed::TRAILER_TOO_LONG);

    let fields = |count: usize| format!("0\r\n{}\r\n", "host: x\r\n".repeat(count));
    let most = fields(MAX_TRAILER_FIELDS);
    let whole = Verdict::Whole { content: vec![], trailers: vec![], length: most.len() };
    assert_however_split(most.as_bytes(), &whole);
    assert_however_split(fields(MAX_TRAILER_FIELDS + 1).as_bytes(), &refused);

    let long = |bytes: usize| format!("0\r\na:{}\r\n\r\n", "v".repeat(bytes - 6));
    let longest = long(MAX_TRAILER_BYTES);
    let trailers = longest[3..longest.len() - 2].into();
    let whole = Verdict::Whole { content: vec![], trailers, length: longest.len() };
    assert_eq!(read([longest.as_bytes()]), whole);
    assert_eq!(read(longest.as_bytes().chunks(1)), whole);
    let longer = long(MAX_TRAILER_BYTES + 1);
    assert_eq!(read([longer.as_bytes()]), refused);
    assert_eq!(read(longer.as_bytes().chunks(1)), refused);
}

#[test]
fn random_bodies_come_back() {
    for_seeds(500, |random| {
        let (message, whole) = random_body(random);
        let seen = read_and_hand_on(random_parts(random, &message));
        assert_eq!(seen.verdict, whole, "{}", message.escape_ascii());
    });
}

#[test]
fn random_damage_is_judged_alike_however_it_is_split() {
    for_seeds(1000, |random| {
        let (mut message, _) = random_body(random);
        message.truncate(600);
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..message.len());
            let byte = random.choice(b"\r\n;:0 \"\\\0x\xe9").unwrap();
            match random.u8(..3) {
                0 => message[at] = *byte,
                1 => message.insert(at, *byte),
                _ if message.len() > 1 => drop(message.remove(at)),
                _ => {}
            }
        }
        let verdict = read([&message[..]]);
        assert_eq!(read(message.chunks(1)), verdict, "{}", message.escape_ascii());
        for _ in 0..20 {
            let parts = random_parts(random, &message);
            assert_eq!(read(parts), verdict, "{}", message.escape_ascii());
        }
    });
}

/// Rule W5: async-h1 reads the canonical chunks as the gate has read the client's.
#[test]
fn async_h1_reads_what_is_handed_on() {
    for &(message, ..) in GOOD {
        assert_async_h1_agrees(read_and_hand_on([message.as_bytes()]));
        assert_async_h1_agrees(read_and_hand_on(message.as_bytes().chunks(1)));
    }
    for_seeds(200, |random| {
        let (message, _) = random_body(random);
        assert_async_h1_agrees(read_and_hand_on(random_parts(random, &message)));
    });
    // The largest trailer sections that we take are none too large for it.
    let longest = format!("0\r\na:{}\r\n\r\n", "v".repeat(MAX_TRAILER_BYTES - 6));
    assert_async_h1_agrees(read_and_hand_on([longest.as_bytes()]));
    let fields = (0..MAX_TRAILER_FIELDS).map(|n| format!("x-{n}: {n}\r\n"));
    let most = format!("0\r\n{}\r\n", fields.collect::<String>());
    assert_async_h1_agrees(read_and_hand_on([most.as_bytes()]));
}

/// The fate of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// The message ended after `length` bytes.
    Whole { content: Vec<u8>, trailers: Vec<u8>, length: usize },
    /// The message was good so far, but did not end.
    Unfinished,
    /// The message was refused.
    Malformed(Malformed),
}

/// A verdict, and the canonical pieces that were handed on until then.
struct Seen {
    verdict: Verdict,
    handed_on: Vec<Vec<u8>>,
}

fn read<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Verdict {
    read_and_hand_on(parts).verdict
}

/// Plays the gate: receives `parts` one after the other, steps as far as they go, and hands
/// canonical pieces on.
fn read_and_hand_on<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let mut body = Chunked::new();
    let mut unread = Vec::new();
    let (mut length, mut content, mut handed_on) = (0, Vec::new(), Vec::new());
    for part in parts {
        unread.extend_from_slice(part);
        loop {
            let consumed = match body.step(&unread) {
                Ok(Step::Skip(n)) => {
                    assert_ne!(n, 0);
                    n
                }
                Ok(Step::Chunk { consumed, size }) => {
                    let line_end = if content.is_empty() { "" } else { "\r\n" };
                    handed_on.push(format!("{line_end}{size:x}\r\n").into());
                    consumed
                }
                Ok(Step::Content(_)) if unread.is_empty() => break,
                Ok(Step::Content(left)) => {
                    assert_ne!(left, 0);
                    let n = usize::try_from(left).map_or(unread.len(), |n| n.min(unread.len()));
                    body.took(n as u64);
                    content.extend_from_slice(&unread[..n]);
                    handed_on.push(unread[..n].to_vec());
                    n
                }
                Ok(Step::End { consumed, trailers }) => {
                    let line_end = if content.is_empty() { "" } else { "\r\n" };
                    let last = [line_end.as_bytes(), b"0\r\n", &trailers, b"\r\n"].concat();
                    handed_on.push(last);
                    let trailers = trailers.into_owned();
                    length += consumed;
                    let verdict = Verdict::Whole { content, trailers, length };
                    return Seen { verdict, handed_on };
                }
                Ok(Step::Partial) => {
                    assert!(unread.len() < MAX_TRAILER_BYTES);
                    break;
                }
                Err(malformed) => {
                    assert_eq!(body.step(&unread), Err(malformed), "told again");
                    return Seen { verdict: Verdict::Malformed(malformed), handed_on };
                }
            };
            length += consumed;
            unread.drain(..consumed);
        }
    }
    Seen { verdict: Verdict::Unfinished, handed_on }
}

/// Checks that the verdict on `message` does not depend on cuts: none, one behind each byte,
/// one anywhere, and two anywhere if the message is short.
fn assert_however_split(message: &[u8], verdict: &Verdict) {
    let said = message.escape_ascii();
    assert_eq!(&read([message]), verdict, "{said}");
    assert_eq!(&read(message.chunks(1)), verdict, "{said} byte by byte");
    for first in 0..message.len() {
        let (a, rest) = message.split_at(first);
        assert_eq!(&read([a, rest]), verdict, "{said} cut at {first}");
        for second in 0..rest.len() {
            if message.len() > 80 {
                break;
            }
            let (b, c) = rest.split_at(second);
            assert_eq!(&read([a, b, c]), verdict, "{said} cut at {first} and {second} later");
        }
    }
}

/// Returns text as bytes, without the second byte of a last character that takes two.
fn last_byte_once(text: &str) -> Vec<u8> {
    let last = text.chars().next_back().map_or(0, char::len_utf8);
    text.as_bytes()[..text.len() - last + 1].to_vec()
}

/// Runs `test` with random numbers from `count` seeds. The last seed that is printed is the one
/// that fails. `BODY_SEED` sets the first seed.
#[expect(clippy::print_stdout, reason = "shown for a failed test only")]
fn for_seeds(count: u64, test: impl Fn(&mut fastrand::Rng)) {
    let first = std::env::var("BODY_SEED").ok().and_then(|seed| seed.parse().ok());
    let first = first.unwrap_or_else(|| fastrand::u64(..u64::MAX - count));
    for seed in first..first + count {
        println!("BODY_SEED={seed}");
        test(&mut fastrand::Rng::with_seed(seed));
    }
}

/// Returns a random good body with something behind it, and the verdict on the body.
fn random_body(random: &mut fastrand::Rng) -> (Vec<u8>, Verdict) {
    let (mut message, mut content) = (Vec::new(), Vec::new());
    for _ in 0..random.usize(..6) {
        let most = random.choice([3, 40, 20_000]).unwrap();
        let chunk: Vec<u8> = (0..random.usize(1..most)).map(|_| random.u8(..)).collect();
        message.extend(random_size_line(random, chunk.len()));
        message.extend_from_slice(&chunk);
        message.extend_from_slice(b"\r\n");
        content.extend(chunk);
    }
    message.extend(random_size_line(random, 0));
    let mut trailers = Vec::new();
    for _ in 0..random.usize(..4) {
        let name = random.choice(["x-sum", "Digest", "a", "HOST", "if-none-match"]).unwrap();
        let value: String = (0..random.usize(..20)).map(|_| random.char(' '..='~')).collect();
        let line = format!("{name}:{value}\r\n");
        message.extend_from_slice(line.as_bytes());
        if !["HOST", "if-none-match"].contains(&name) {
            trailers.extend_from_slice(line.as_bytes());
        }
    }
    message.extend_from_slice(b"\r\n");
    let length = message.len();
    message.extend((0..random.usize(..8)).map(|_| random.u8(..)));
    (message, Verdict::Whole { content, trailers, length })
}

/// Returns a size line with random zeros, case and extensions.
fn random_size_line(random: &mut fastrand::Rng, size: usize) -> Vec<u8> {
    let width = random.usize(1..=16);
    let digits =
        if random.bool() { format!("{size:0width$x}") } else { format!("{size:0width$X}") };
    let extension =
        random.choice(["", "", " ;", ";a=b", "\t; a = \"\\\";\u{ff}\"", ";a;b;c"]).unwrap();
    format!("{digits}{extension}\r\n").into()
}

/// Returns `message` in random pieces, small or large.
fn random_parts<'a>(random: &mut fastrand::Rng, mut message: &'a [u8]) -> Vec<&'a [u8]> {
    let most = random.choice([2, 10, 1000, 100_000]).unwrap();
    let mut parts = Vec::new();
    while !message.is_empty() {
        let (part, rest) = message.split_at(random.usize(1..=most).min(message.len()));
        parts.push(part);
        message = rest;
    }
    parts
}

/// Gives the canonical pieces to async-h1, one in each read, and compares what async-h1 makes
/// of them.
fn assert_async_h1_agrees(seen: Seen) {
    let Verdict::Whole { content, trailers, .. } = seen.verdict else {
        panic!("{:?}", seen.verdict)
    };
    let mut pieces = VecDeque::from(seen.handed_on);
    pieces.push_front(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".into());
    block_on(async {
        let pieces = Pieces(Arc::new(Mutex::new(pieces)));
        let (mut request, _reader) = decode(pieces.clone()).await.unwrap().unwrap();
        let receiver = request.recv_trailers();
        let mut body = Vec::new();
        request.take_body().read_to_end(&mut body).await.unwrap();
        assert!(body == content, "content differs");
        assert!(pieces.0.lock().unwrap().is_empty(), "something is left");

        let received = receiver.await.unwrap();
        let trailers = String::from_utf8(trailers).unwrap();
        for line in trailers.lines() {
            let (name, _) = line.split_once(':').unwrap();
            // Of several fields of one name, async-h1 keeps the last.
            let mut same =
                trailers.lines().filter_map(|line| line.split_once(':')).filter(|l| l.0 == name);
            let value = same.next_back().unwrap().1.trim_matches([' ', '\t']);
            assert_eq!(received[name].as_str(), value, "{line:?}");
        }
        assert_eq!(received.iter().count() == 0, trailers.is_empty());
    });
}

/// A client in memory: each read gets at most one piece.
#[derive(Debug, Clone)]
struct Pieces(Arc<Mutex<VecDeque<Vec<u8>>>>);

impl AsyncRead for Pieces {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut pieces = self.0.lock().unwrap();
        let Some(piece) = pieces.front_mut() else {
            return Poll::Ready(Ok(0));
        };
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        piece.drain(..length);
        if piece.is_empty() {
            pieces.pop_front();
        }
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        panic!("nothing is written here")
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
