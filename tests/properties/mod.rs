//! Properties of `head.rs`, `target.rs` and `body.rs` that must hold for any bytes.
//!
//! The library's unit tests (`src/wire/mod.rs`) and the targets in `fuzz/` each declare this file
//! beside those modules, which are pure and need not be public. The bytes themselves decide
//! how they are split, so an input is a plain file, and fails every time or never.

#![allow(dead_code, unreachable_pub, reason = "each user uses its own part of this")]

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::body::{Chunked, Framing, Malformed, Step};
use super::head::{self, Bounds, Head};
use super::target;
use async_h1::server::decode;
use futures_lite::future::block_on;
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite};
use http_types::{Method, StatusCode, Version};

/// The default limits.
pub const BOUNDS: Bounds = Bounds { head_bytes: 16 * 1024, headers: 100 };

/// Everything that must hold of `parse` and `request_line`.
pub fn check_head(bytes: &[u8]) {
    let mut random = seeded_by(bytes);
    let narrow = Bounds { head_bytes: random.usize(..600), headers: random.usize(..10) };
    for bounds in [BOUNDS, narrow] {
        let whole = Verdict::of(bytes, bounds);
        for end in cuts(&mut random, bytes) {
            let said = Verdict::of(&bytes[..end], bounds);
            if said != Verdict::Partial {
                assert_eq!(said, whole, "{end} bytes of {}", bytes.escape_ascii());
            }
        }
        if let Ok(Some(head)) = head::parse(bytes, bounds) {
            assert!(head.len <= bytes.len() && bytes[..head.len].ends_with(b"\r\n\r\n"));
            // Neither one byte less is enough, nor does what follows count.
            assert_eq!(Verdict::of(&bytes[..head.len - 1], bounds), Verdict::Partial);
            assert_eq!(Verdict::of(&bytes[..head.len], bounds), whole);
            check_seen(&head, bytes);
        }
    }
    for end in [bytes.len(), random.usize(..=bytes.len())] {
        head::request_line(&bytes[..end]);
    }
}

/// What `parse` says, comparable.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The facts, and the fields that a handler sees.
    Complete(String, Vec<(String, String)>),
    Partial,
    Reject(StatusCode),
}

impl Verdict {
    fn of(bytes: &[u8], bounds: Bounds) -> Self {
        match head::parse(bytes, bounds) {
            Ok(Some(head)) => {
                let fields = head.fields(bytes).map(|(name, value)| (name.into(), value.into()));
                Self::Complete(format!("{head:?}"), fields.collect())
            }
            Ok(None) => Self::Partial,
            Err(status) => Self::Reject(status),
        }
    }
}

/// What a handler sees of a head is what anybody can read in it.
fn check_seen(head: &Head, bytes: &[u8]) {
    let shown = bytes[..head.len].escape_ascii();
    let simple = Simple::of(&bytes[..head.len]);
    assert_eq!(
        (head.target(bytes), head.method.as_ref()),
        (simple.target, simple.method),
        "{shown}"
    );
    assert_eq!(simple.framing(), head.framing, "{shown}");
    let is_1_1 = head.version == Version::Http1_1;
    let persists = if is_1_1 { true } else { simple.lists("connection", "keep-alive") };
    assert_eq!(head.keep_alive, persists && !simple.lists("connection", "close"), "{shown}");
    let upgrade = simple.named("upgrade").count() > 0 && simple.lists("connection", "upgrade");
    assert_eq!(head.upgrade, is_1_1 && upgrade, "{shown}");
    let has_body = !matches!(head.framing, Framing::Empty | Framing::Fixed(0));
    assert!(!head.expects_continue || is_1_1 && has_body, "{shown}");
    assert!(!matches!(head.method, Method::Connect | Method::Pri), "{shown}");

    let authority = simple.target.split_once("://").filter(|_| !simple.target.starts_with('/'));
    let authority = authority.and_then(|(_, rest)| rest.split(['/', '?']).next());
    let written: Vec<_> = simple.named("host").collect();
    assert!(written.len() == 1 || written.is_empty() && !is_1_1, "{shown}");
    let host = authority.or(written.first().copied());
    assert_eq!(head.host(bytes), host, "{shown}");

    let is_hidden = |name: &str| name == "expect" || name == "upgrade" && !head.upgrade;
    let mut expected: Vec<_> = simple.fields.iter().filter(|field| !is_hidden(&field.0)).collect();
    let replaced = ("host".to_owned(), authority.unwrap_or_default().to_owned());
    if authority.is_some() {
        expected.retain(|field| field.0 != "host");
        expected.insert(0, &replaced);
    }
    let seen: Vec<_> = head.fields(bytes).collect();
    assert_eq!(seen.len(), expected.len(), "{shown}");
    for ((name, value), (expected_name, expected_value)) in seen.iter().zip(expected) {
        assert_eq!(&name.to_ascii_lowercase(), expected_name, "{shown}");
        assert_eq!(value, expected_value, "{shown}");
    }
    check_url(head, host, simple.target);
}

/// A URL says what was sent, or there is none.
fn check_url(head: &Head, host: Option<&str>, sent: &str) {
    let Ok(url) = target::url("http", host, sent) else { return };
    let name = match host.unwrap_or("localhost") {
        address if address.starts_with('[') => {
            address.split_inclusive(']').next().map(str::to_owned)
        }
        name => name.split(':').next().map(str::to_ascii_lowercase),
    };
    let held = url.host_str().unwrap();
    let is_address = held.starts_with('[') && name.as_deref().unwrap().starts_with('[');
    assert!(
        Some(held) == name.as_deref() || is_address || held == "host.invalid",
        "{host:?} {url}"
    );

    let path = sent
        .split_once("://")
        .filter(|_| !sent.starts_with('/'))
        .map_or(sent, |(_, rest)| &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]);
    let unescaped = |text: &str| {
        let mut text = text.to_owned();
        for escaped in ["%22", "%27", "%3C", "%3E", "%60", "%7B", "%7D", "%5E", "%7C"] {
            let byte = u8::from_str_radix(&escaped[1..], 16).unwrap();
            text = text.replace(escaped, &char::from(byte).to_string());
        }
        text
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    let query = url.query().map_or(String::new(), |query| format!("?{query}"));
    let held = unescaped(&format!("{}{query}", url.path()));
    assert_eq!(held, unescaped(&format!("{slash}{path}")), "{:?} {sent}", head.method);
}

/// A head that was accepted, read in the simplest way. Bytes beyond ASCII are written as `%XX`.
struct Simple<'a> {
    method: &'a str,
    target: &'a str,
    fields: Vec<(String, String)>,
}

impl<'a> Simple<'a> {
    fn of(head: &'a [u8]) -> Self {
        let begin = head.iter().position(|byte| !b"\r\n".contains(byte)).unwrap();
        let head = head[begin..].strip_suffix(b"\r\n\r\n").unwrap();
        let mut lines = head.split(|&byte| byte == b'\n');
        let line = std::str::from_utf8(lines.next().unwrap()).unwrap();
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let field = |line: &[u8]| {
            let escape = |&byte: &u8| match byte.is_ascii() {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02X}"),
            };
            let line: String = line.iter().map(escape).collect();
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim_matches([' ', '\t', '\r']).to_owned())
        };
        Self { method, target, fields: lines.map(field).collect() }
    }

    fn named(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.fields.iter().filter(move |field| field.0 == name).map(|field| field.1.as_str())
    }

    /// Whether a field lists `option`.
    fn lists(&self, name: &'static str, option: &str) -> bool {
        let mut options = self.named(name).flat_map(|value| value.split(','));
        options.any(|found| found.trim().eq_ignore_ascii_case(option))
    }

    fn framing(&self) -> Framing {
        let codings: Vec<_> = self.named("transfer-encoding").collect();
        let lengths: Vec<_> = self.named("content-length").collect();
        match (&codings[..], &lengths[..]) {
            ([], []) => Framing::Empty,
            ([], [length]) => Framing::Fixed(length.parse().unwrap()),
            ([coding], []) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunked,
            both => panic!("{both:?} let pass"),
        }
    }
}

/// Everything that must hold of `Chunked`.
pub fn check_body(bytes: &[u8]) {
    let mut random = seeded_by(bytes);
    let whole = Received::of([bytes]);
    let shown = bytes.escape_ascii();
    if bytes.len() <= 1024 {
        assert_eq!(Received::of(bytes.chunks(1)), whole, "{shown} byte by byte");
    }
    for _ in 0..4 {
        let parts = parts(&mut random, bytes);
        assert_eq!(Received::of(parts.iter().copied()), whole, "{shown} as {parts:?}");
    }
    let bounds =
        [Malformed::SIZE_TOO_LONG, Malformed::EXTENSION_TOO_LONG, Malformed::TRAILER_TOO_LONG];
    let simple = simple_body(bytes);
    if whole.end != Ok(true) {
        let is_bound = whole.end.is_err_and(|malformed| bounds.contains(&malformed));
        assert!(simple.is_none() || is_bound, "{:?} for {shown}", whole.end);
        return;
    }
    let (content, extensions, length) = simple.expect("a whole body");
    assert_eq!((&whole.content, whole.length), (&content, length), "{shown}");
    assert!(extensions <= 16 * 1024 + content.len(), "{shown}");

    // What follows is not part of it.
    let (end, behind) = bytes.split_at(whole.length);
    assert_eq!(Received::of([end]), whole, "{shown} without {}", behind.escape_ascii());

    let pieces = whole.encode(&mut random);
    let canonical = pieces.concat();
    let again = Received::of(parts(&mut random, &canonical));
    assert_eq!(again, Received { length: canonical.len(), ..whole.clone() }, "{shown}");

    // Rule W5: async-h1 reads what is handed on as we did.
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let pieces = Pieces([head].into_iter().chain(pieces).collect());
    let mut content = Vec::new();
    block_on(async {
        let (mut request, _) = decode(pieces).await.unwrap().unwrap();
        // Without a receiver of trailers it would not read them.
        let _trailers = request.recv_trailers();
        request.take_body().read_to_end(&mut content).await.unwrap();
    });
    assert!(content == whole.content, "{shown}");
}

/// Content, length of the extensions and length of a body that is whole and well-formed (RFC 9112
/// section 7.1), read in the simplest way and without bounds.
fn simple_body(bytes: &[u8]) -> Option<(Vec<u8>, usize, usize)> {
    let next_line = |rest: &mut &'_ [u8]| -> Option<Vec<u8>> {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let line = rest[..end].to_vec();
        *rest = &rest[end + 2..];
        Some(line).filter(|line| !line.contains(&b'\r') && !line.contains(&b'\n'))
    };
    let (mut rest, mut content, mut extensions) = (bytes, Vec::new(), 0);
    loop {
        let line: String = next_line(&mut rest)?.into_iter().map(char::from).collect();
        let digits = line.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(line.len());
        let (digits, extension) = line.split_at(digits);
        let size = usize::try_from(u64::from_str_radix(digits, 16).ok()?).ok()?;
        extensions += extension.chars().count();
        if !extension.is_empty() && !extension.trim_start_matches([' ', '\t']).starts_with(';') {
            return None;
        }
        let (mut quoted, mut characters) = (false, extension.chars());
        while let Some(character) = characters.next() {
            // What a backslash escapes is no different, but for being no end.
            let escaped = character == '\\' && quoted;
            match if escaped { characters.next()? } else { character } {
                '"' if !escaped => quoted = !quoted,
                '\t' | ' '..='~' => {}
                '\u{80}'.. if quoted => {}
                _ => return None,
            }
        }
        if quoted {
            return None;
        }
        if size == 0 {
            break;
        }
        content.extend_from_slice(rest.get(..size)?);
        rest = rest[size..].strip_prefix(b"\r\n")?;
    }
    loop {
        let line: String = next_line(&mut rest)?.into_iter().map(char::from).collect();
        if line.is_empty() {
            return Some((content, extensions, bytes.len() - rest.len()));
        }
        let (name, value) = line.split_once(':')?;
        let is_token = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        let is_text = value.chars().all(|c| matches!(c, '\t' | ' '..='~' | '\u{80}'..));
        let frames =
            ["content-length", "transfer-encoding"].contains(&&name.to_ascii_lowercase()[..]);
        if name.is_empty() || !is_token || !is_text || frames {
            return None;
        }
    }
}

/// What the decoder makes of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Received {
    content: Vec<u8>,
    trailers: Vec<u8>,
    /// Bytes consumed.
    length: usize,
    /// Whether it has ended, or what is wrong.
    end: Result<bool, Malformed>,
}

impl Received {
    /// Plays the gate: each part arrives after the other.
    fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut body = Chunked::new();
        let mut this = Self { content: vec![], trailers: vec![], length: 0, end: Ok(false) };
        let (mut unread, mut announced) = (Vec::new(), 0_u64);
        for part in parts {
            unread.extend_from_slice(part);
            loop {
                let consumed = match body.step(&unread) {
                    Ok(Step::Partial) => break,
                    Ok(Step::Skip(n)) => n,
                    Ok(Step::Chunk { consumed, size }) => {
                        assert_ne!(size, 0);
                        assert_eq!(body.content_left(), size);
                        announced = announced.saturating_add(size);
                        consumed
                    }
                    Ok(Step::Content(_)) if unread.is_empty() => break,
                    Ok(Step::Content(left)) => {
                        let n = usize::try_from(left).map_or(unread.len(), |n| n.min(unread.len()));
                        body.took(n as u64);
                        this.content.extend_from_slice(&unread[..n]);
                        n
                    }
                    Ok(Step::End { consumed, trailers }) => {
                        this.trailers = trailers.into_owned();
                        this.length += consumed;
                        this.end = Ok(true);
                        assert!(body.is_complete());
                        assert_eq!(announced, this.content.len() as u64);
                        return this;
                    }
                    Err(malformed) => {
                        assert_eq!(body.step(&unread), Err(malformed), "told again");
                        this.end = Err(malformed);
                        return this;
                    }
                };
                assert_ne!(consumed, 0);
                this.length += consumed;
                unread.drain(..consumed);
            }
            assert!(unread.len() < 4096, "an unbounded line");
        }
        this
    }

    /// In chunks of random sizes; the trailer section is a piece of its own, as async-h1 needs it.
    fn encode(&self, random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
        let mut pieces: Vec<_> = parts(random, &self.content)
            .iter()
            .map(|part| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat())
            .collect();
        pieces.push([b"0\r\n", &self.trailers[..], b"\r\n"].concat());
        pieces
    }
}

fn seeded_by(bytes: &[u8]) -> fastrand::Rng {
    // FNV-1a, which is the same everywhere.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    fastrand::Rng::with_seed(hash)
}

/// Where to cut `bytes`: everywhere if they are few, else around line ends and at random.
fn cuts(random: &mut fastrand::Rng, bytes: &[u8]) -> Vec<usize> {
    if bytes.len() <= 96 {
        return (0..bytes.len()).collect();
    }
    let around = |at: usize| [at, (at + 1).min(bytes.len())];
    let line_ends = memchr::memchr_iter(b'\n', bytes).take(12).flat_map(around);
    let cuts = line_ends.chain((0..20).map(|_| random.usize(..bytes.len())));
    cuts.collect()
}

/// `bytes` in pieces of random length, none empty.
fn parts<'a>(random: &mut fastrand::Rng, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
    let most = [2, 9, 100, 5000][random.usize(..4)];
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let (part, rest) = bytes.split_at(random.usize(1..=most).min(bytes.len()));
        parts.push(part);
        bytes = rest;
    }
    parts
}

/// A client in memory: a read gets at most one piece.
#[derive(Debug, Clone)]
pub struct Pieces(pub VecDeque<Vec<u8>>);

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some(piece) = self.0.front_mut() else { return Poll::Ready(Ok(0)) };
        let n = piece.len().min(buffer.len());
        buffer[..n].copy_from_slice(&piece[..n]);
        piece.drain(..n);
        if piece.is_empty() {
            self.0.pop_front();
        }
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        panic!("nothing is to be written")
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
