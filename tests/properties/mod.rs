//! What must hold of `head.rs` and `body.rs` for any bytes: used by the targets in `fuzz/` and by `differential.rs`.
//!
//! Both files are pure, so they are compiled in here as they are, and need not be public. How the bytes are split is
//! drawn from the bytes themselves: an input is a plain file, and fails every time or never.

#![allow(dead_code, unreachable_pub, reason = "each user uses its own part of this")]

#[path = "../../src/wire/body.rs"]
pub mod body;
#[path = "../../src/wire/head.rs"]
pub mod head;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_h1::server::decode;
use body::{Chunked, Framing, Malformed, Step};
use futures_lite::future::block_on;
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite};
use head::{Bounds, Head, Parse};
use http_types::{Method, StatusCode, Url, Version};

/// The default limits.
pub const BOUNDS: Bounds = Bounds { head_bytes: 8 * 1024, headers: 100 };

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
        if let Parse::Complete(head) = head::parse(bytes, bounds) {
            assert!(head.len <= bytes.len() && bytes[..head.len].ends_with(b"\r\n\r\n"));
            // Neither one byte less is enough, nor does what follows count.
            assert_eq!(Verdict::of(&bytes[..head.len - 1], bounds), Verdict::Partial);
            assert_eq!(Verdict::of(&bytes[..head.len], bounds), whole);
            check_canonical(&head, &head.canonical(bytes));
        }
    }
    for end in [bytes.len(), random.usize(..=bytes.len())] {
        head::request_line(&bytes[..end]);
    }
}

/// What `parse` says, comparable.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The facts and the canonical form.
    Complete(String, Vec<u8>),
    Partial,
    Reject(StatusCode),
}

impl Verdict {
    fn of(bytes: &[u8], bounds: Bounds) -> Self {
        match head::parse(bytes, bounds) {
            Parse::Complete(head) => {
                Self::Complete(format!("{head:?}"), head.canonical(bytes).into_owned())
            }
            Parse::Partial => Self::Partial,
            Parse::Reject(status) => Self::Reject(status),
        }
    }
}

/// A canonical head is one that every parser reads as `parse` did.
fn check_canonical(head: &Head, canonical: &[u8]) {
    let shown = canonical.escape_ascii();
    assert!(canonical.is_ascii() && canonical.len() < 8192, "{shown}");
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(canonical);
    assert_eq!(parsed, Ok(httparse::Status::Complete(canonical.len())), "{shown}");
    assert_eq!((request.method, request.version), (Some(head.method.as_ref()), Some(1)), "{shown}");

    let simple = Simple::of(canonical);
    assert_eq!(simple.named("host").count(), 1, "{shown}");
    assert_eq!(simple.named("expect").count(), 0, "{shown}");
    assert_eq!(simple.fields.len(), request.headers.len(), "{shown}");
    assert_eq!(simple.framing(), head.framing, "{shown}");
    let is_1_1 = head.version == Version::Http1_1;
    let persists = if is_1_1 { true } else { simple.lists("connection", "keep-alive") };
    assert_eq!(head.keep_alive, persists && !simple.lists("connection", "close"), "{shown}");
    let upgrade = simple.named("upgrade").count() > 0 && simple.lists("connection", "upgrade");
    assert_eq!(head.upgrade, is_1_1 && upgrade, "{shown}");
    let has_body = !matches!(head.framing, Framing::Empty | Framing::Fixed(0));
    assert!(!head.expects_continue || is_1_1 && has_body, "{shown}");
    assert!(!matches!(head.method, Method::Connect | Method::Pri), "{shown}");

    if let Some((_, rest)) =
        simple.target.split_once("://").filter(|_| !simple.target.starts_with('/'))
    {
        assert_eq!(rest.split(['/', '?']).next(), simple.named("host").next(), "{shown}");
    }

    // async-h1 refuses one only for its URL.
    let host = simple.named("host").next().unwrap();
    let url = match simple.target.starts_with('/') {
        true => format!("http://{host}{}", simple.target),
        false => simple.target.to_owned(),
    };
    let pieces = Pieces(VecDeque::from([canonical.to_vec()]));
    match (block_on(decode(pieces)), Url::parse(&url)) {
        (Ok(Some((request, _))), Ok(url)) => {
            assert_eq!(request.method(), head.method, "{shown}");
            assert_eq!(request.url(), &url, "{shown}");
            assert_eq!(request.host(), Some(host), "{shown}");
            let length = match head.framing {
                Framing::Empty => Some(0),
                Framing::Fixed(length) => Some(length as usize),
                Framing::Chunked => None,
            };
            assert_eq!(request.len(), length, "{shown}");
        }
        (Err(_), Err(_)) => {}
        (decoded, url) => panic!("{decoded:?} {url:?} {shown}"),
    }
}

/// A canonical head, read in the simplest way.
struct Simple<'a> {
    target: &'a str,
    fields: Vec<(String, &'a str)>,
}

impl<'a> Simple<'a> {
    fn of(canonical: &'a [u8]) -> Self {
        let text = std::str::from_utf8(canonical).unwrap();
        let mut lines = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n");
        let target = lines.next().unwrap().split(' ').nth(1).unwrap();
        let field = |line: &'a str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim_matches([' ', '\t']))
        };
        Self { target, fields: lines.map(field).collect() }
    }

    fn named(&self, name: &'static str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |field| field.0 == name).map(|field| field.1)
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
    use Malformed::{ExtensionTooLong, SizeTooLong, TrailerTooLong};
    let simple = simple_body(bytes);
    if whole.end != Ok(true) {
        let is_bound = matches!(whole.end, Err(SizeTooLong | ExtensionTooLong | TrailerTooLong));
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

/// Content, length of the extensions and length of a body that is whole and well-formed (RFC 9112 section 7.1), read in
/// the simplest way and without bounds.
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
                    Ok(Step::Data(n)) => {
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
struct Pieces(VecDeque<Vec<u8>>);

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
