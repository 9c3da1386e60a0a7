//! Compares `head.rs` with httparse and hyper's server, over generated heads, and explains each
//! difference by a rule. Also checks the properties of `head.rs` and `body.rs` for any bytes, over
//! generated messages and the seeds of the fuzzer.
//!
//! A failure prints the shortest head that shows it, and its seed. `PROPTEST_RNG_SEED` repeats a
//! failure, and `PROPTEST_CASES` prolongs a run. The test writes no file. A head that was found
//! becomes a file in `fuzz/seeds` or a line in a table by hand.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http_types::{Method, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::rt::ReadBufCursor;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{RngSeed, TestRunner};

use super::body::Framing;
use super::head;
use super::properties;

/// The verdict of a parser on a head.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Accepted(Seen),
    Partial,
    Refused,
}

/// An accepted head. A part that a parser does not look at is `None`.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    method: String,
    /// The target. An absolute one has at least the path `/`, which means the same (RFC 9110
    /// section 4.2.3).
    target: String,
    is_1_1: bool,
    /// The host of the resource (RFC 9112 sections 3.2 and 3.3).
    host: String,
    /// The fields, in order if names are alike, and without those that [`head::Head::fields`]
    /// replaces or leaves out.
    fields: Vec<(String, Vec<u8>)>,
    framing: Option<Framing>,
    keep_alive: Option<bool>,
}

/// A reason why another parser may differ from `head.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    // `head.rs` refuses, and the other parser does not.
    /// RFC 9112 section 2.2: a recipient may take a bare LF as a line end. Rule W3: the gate does
    /// not.
    BareLf,
    /// RFC 9112 section 2.2: at least one empty line before a request has to be skipped. The gate
    /// skips four.
    EmptyLines,
    /// RFC 9112 section 3 and RFC 6585 section 5: 414 and 431, for more than 16,384 bytes or 100
    /// fields.
    TooLarge,
    /// RFC 9110 sections 9.1 and 15.6.2: 501 for methods that http-types does not know, and for
    /// CONNECT and PRI.
    UnknownMethod,
    /// RFC 9112 section 3.2: `*` needs OPTIONS, an authority needs CONNECT, and this server is not
    /// a proxy for other schemes.
    TargetForm,
    /// RFC 9110 section 4.1: a fragment is not sent. RFC 3986 section 2: neither is a byte outside
    /// ASCII, nor a backslash in a path, which the url crate would take for a slash.
    TargetBytes,
    /// RFC 9110 sections 4.2.1, 4.2.4 and 7.2: the authority of a target is a host and a port.
    TargetAuthority,
    /// RFC 9112 section 3.2: there is exactly one Host, and it is valid. In HTTP/1.0 there may be
    /// none.
    Host,
    /// RFC 9112 section 6.3: a recipient may take equal Content-Lengths as one. Rule W3: the gate
    /// does not.
    DuplicateLength,
    /// RFC 9110 section 8.6: a length has only digits. httparse does not look.
    LengthSyntax,
    /// RFC 9112 section 6.1: a server may refuse a message with both framings. Rule W3: the gate
    /// does.
    LengthAndCoding,
    /// RFC 9112 section 6.1: 501 for other codings than `chunked`. Rule W3: the coding is on one
    /// line, and not in HTTP/1.0.
    Coding,
    /// RFC 9110 section 10.1.1: 417 for an unknown expectation.
    Expectation,
    // The other parser refuses, and `head.rs` does not.
    /// RFC 9110 section 2.5: a higher minor version is served as 1.1. httparse knows 1.0 and 1.1
    /// only.
    MinorVersion,
    /// RFC 3986 has no such bytes in a URI. The URL standard, which http-types follows, encodes
    /// them.
    UriBytes,
    /// RFC 9110 section 8.6: a length has any number of digits. hyper uses two of the largest
    /// lengths for itself.
    LargestLength,
    /// A verdict may come at any byte from the wrong one to the end. httparse's comes at the wrong
    /// byte, and that of `head.rs` at the end of the line or the section.
    Unfinished,
    // Both accept.
    /// RFC 9110 section 5.5: a byte outside ASCII is opaque. hyper sees no option in a line with
    /// such a byte.
    ObsTextOption,
}

use Difference::*;

/// All differences, each with a head that shows it.
const DIFFERENCES: &[(Difference, &[u8])] = &[
    (BareLf, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    (EmptyLines, b"\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (TooLarge, &[b'A'; 16_384]),
    (UnknownMethod, b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (TargetForm, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    (TargetBytes, b"GET /#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    (TargetAuthority, b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Host, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    (
        DuplicateLength,
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    ),
    (LengthSyntax, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n"),
    (
        LengthAndCoding,
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    (Coding, b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    (Expectation, b"GET / HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n"),
    (MinorVersion, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    (UriBytes, b"GET /<> HTTP/1.1\r\nHost: a\r\n\r\n"),
    (LargestLength, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n"),
    (Unfinished, b"GET  "),
    (ObsTextOption, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, \xff\r\n\r\n"),
];

/// The parser that refuses in a [`Difference`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    WeRefuse,
    TheyRefuse,
    BothAccept,
}

impl Difference {
    fn side(self) -> Side {
        match self {
            MinorVersion | UriBytes | LargestLength | Unfinished => Side::TheyRefuse,
            ObsTextOption => Side::BothAccept,
            _ => Side::WeRefuse,
        }
    }

    /// Returns `true` if the head has the property of this difference. If `head.rs` refuses,
    /// returns `true` if it has to.
    fn holds(self, head: &Written<'_>) -> bool {
        match self {
            BareLf => {
                head.lines.iter().any(|line| line.ends_with(b"\n") && !line.ends_with(b"\r\n"))
            }
            EmptyLines => head.empty_lines > 4,
            TooLarge => {
                let text = head.lines[head.empty_lines.min(head.lines.len())..].concat();
                let size = text.len();
                head.fields.len() > 100 || size > 16_384 || size == 16_384 && !head.is_complete
            }
            UnknownMethod => head.words.len() == 3 && !is_known_method(head.words[0]),
            TargetForm => head.target().is_some_and(|target| {
                let is_path = target.starts_with(b"/");
                let is_asterisk = target == b"*" && head.words[0] == b"OPTIONS";
                !is_path && !is_asterisk && authority(target).is_none()
            }),
            TargetBytes => {
                head.words.get(1).is_some_and(|target| !target.is_ascii())
                    || head.target().is_some_and(|target| {
                        let path = target.split(|byte| *byte == b'?').next();
                        target.contains(&b'#') || path.is_some_and(|path| path.contains(&b'\\'))
                    })
            }
            TargetAuthority => {
                head.target().and_then(authority).is_some_and(|host| !is_plain_host(host))
                    && head.status.is_some()
            }
            Host => match &head.named("host")[..] {
                [] => head.is_complete && !head.words.ends_with(&[b"HTTP/1.0"]),
                [host] => is_no_host(host) || !is_plain_host(host) && head.status.is_some(),
                _ => true,
            },
            DuplicateLength => head.named("content-length").len() > 1,
            LengthSyntax => head.named("content-length").iter().any(|length| {
                let text = String::from_utf8_lossy(length);
                text.starts_with('+') || text.parse::<u64>().is_err()
            }),
            LengthAndCoding => {
                let both = ["content-length", "transfer-encoding"];
                both.iter().all(|name| !head.named(name).is_empty())
            }
            Coding => match &head.named("transfer-encoding")[..] {
                [] => false,
                [coding] => {
                    !coding.eq_ignore_ascii_case(b"chunked") || head.words.ends_with(&[b"HTTP/1.0"])
                }
                _ => true,
            },
            Expectation => {
                let lines = head.named("expect");
                let mut all = lines.iter().flat_map(|line| line.split(|&byte| byte == b','));
                let known =
                    |one: &[u8]| one.is_empty() || one.eq_ignore_ascii_case(b"100-continue");
                !head.words.ends_with(&[b"HTTP/1.0"]) && all.any(|one| !known(one.trim_ascii()))
            }
            MinorVersion => {
                matches!(
                    head.words[..],
                    [.., [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9']]
                )
            }
            UriBytes => head
                .target()
                .is_some_and(|target| target.iter().any(|byte| b"\"<>[\\]^`{|}".contains(byte))),
            LargestLength => head.named("content-length").iter().any(|length| {
                String::from_utf8_lossy(length)
                    .parse()
                    .is_ok_and(|length: u64| length > u64::MAX - 2)
            }),
            // `head.rs` refuses this head after any end of the line and the section.
            Unfinished => head.is_refused_in_the_end,
            ObsTextOption => head.named("connection").iter().any(|line| !line.is_ascii()),
        }
    }
}

/// A head, split into its parts without a verdict.
struct Written<'a> {
    /// The lines up to the blank one, if there is one.
    lines: Vec<&'a [u8]>,
    empty_lines: usize,
    is_complete: bool,
    /// The words of the request line.
    words: Vec<&'a [u8]>,
    fields: Vec<(String, &'a [u8])>,
    /// The status with which `head.rs` refuses the head.
    status: Option<StatusCode>,
    is_refused_in_the_end: bool,
}

impl<'a> Written<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let text = |line: &'a [u8]| {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            line.strip_suffix(b"\r").unwrap_or(line)
        };
        let all: Vec<_> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
        let empty_lines = all.iter().take_while(|line| text(line).is_empty()).count();
        let blank = all
            .iter()
            .skip(empty_lines)
            .position(|line| line.ends_with(b"\n") && text(line).is_empty());
        let end = blank.map_or(all.len(), |at| empty_lines + at + 1);
        let mut rest = all[empty_lines..end].iter().map(|line| text(line));
        let words = rest.next().map(|line| line.split(|&byte| byte == b' ').collect());
        let field = |line: &'a [u8]| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
            Some((name, line[colon + 1..].trim_ascii()))
        };
        let fields = rest.filter_map(field).collect();
        let status = |bytes: &[u8]| head::parse(bytes, properties::BOUNDS).err();
        let missing: &[u8] = match bytes {
            [.., b'\r', b'\n'] => b"\r\n",
            [.., b'\r'] => b"\n\r\n",
            _ if end - empty_lines < 2 => b"\r\nHost: a\r\n\r\n",
            _ => b"\r\n\r\n",
        };
        Self {
            lines: all[..end].to_vec(),
            empty_lines,
            is_complete: blank.is_some(),
            words: words.unwrap_or_default(),
            fields,
            status: status(bytes),
            is_refused_in_the_end: status(&[bytes, missing].concat()).is_some(),
        }
    }

    /// Returns the target, if the request line is whole and has one.
    fn target(&self) -> Option<&'a [u8]> {
        match self.words[..] {
            [_, target, _] if self.lines[self.empty_lines].ends_with(b"\n") => Some(target),
            _ => None,
        }
    }

    fn named(&self, name: &str) -> Vec<&'a [u8]> {
        self.fields.iter().filter(|field| field.0 == name).map(|field| field.1).collect()
    }
}

fn is_known_method(name: &[u8]) -> bool {
    let parsed = std::str::from_utf8(name).ok().and_then(|name| name.parse::<Method>().ok());
    parsed.is_some_and(|method| {
        method.as_ref().as_bytes() == name && !matches!(method, Method::Connect | Method::Pri)
    })
}

/// Returns the authority of an absolute target.
fn authority(target: &[u8]) -> Option<&[u8]> {
    let target_lower = target.to_ascii_lowercase();
    let begin =
        ["http://", "https://"].iter().find(|s| target_lower.starts_with(s.as_bytes()))?.len();
    let rest = &target[begin..];
    Some(&rest[..rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len())])
}

/// Returns `true` for a host that is valid beyond doubt, with or without a port. Other hosts may be
/// valid, too.
fn is_plain_host(value: &[u8]) -> bool {
    let Ok(value) = std::str::from_utf8(value) else { return false };
    let (host, port) = match value.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (value, ""),
    };
    let is_name =
        |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_name(host) && !host.is_empty(),
    };
    is_host && port.len() <= 4 && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns `true` for a value that is beyond doubt not a host.
fn is_no_host(value: &[u8]) -> bool {
    let port = match value.iter().rposition(|&byte| byte == b':') {
        Some(at) if !value.contains(&b']') => &value[at + 1..],
        _ => b"",
    };
    let is_odd = |byte: &u8| !byte.is_ascii_graphic() || b",/?#@\\\"<>^`{|}".contains(byte);
    value.is_empty() || value.iter().any(is_odd) || !port.iter().all(u8::is_ascii_digit)
}

/// Compares the three verdicts. Returns the explanations of the differences, or an error for a
/// difference without one.
fn compare(bytes: &[u8]) -> Result<Vec<Difference>, String> {
    let ours = by_us(bytes);
    let written = Written::of(bytes);
    let all = || DIFFERENCES.iter().map(|difference| difference.0);
    let mut found = Vec::new();
    for (name, theirs) in [("httparse", by_httparse(bytes)), ("hyper", by_hyper(bytes))] {
        let side = match (&ours, &theirs) {
            (Verdict::Refused, Verdict::Refused) | (Verdict::Partial, Verdict::Partial) => continue,
            (Verdict::Accepted(ours), Verdict::Accepted(theirs)) if ours.agrees_with(theirs) => {
                continue;
            }
            // After its first read, hyper parses again only when the head has ended.
            (Verdict::Refused, Verdict::Partial)
                if name == "hyper" && bytes.len() > 8192 && !written.is_complete =>
            {
                continue;
            }
            (Verdict::Refused, _) => Some(Side::WeRefuse),
            (_, Verdict::Refused) => Some(Side::TheyRefuse),
            (Verdict::Accepted(_), Verdict::Accepted(_)) => Some(Side::BothAccept),
            (Verdict::Accepted(_) | Verdict::Partial, _) => None,
        };
        let explains = |one: &Difference| Some(one.side()) == side && one.holds(&written);
        match all().find(explains) {
            Some(difference) => found.push(difference),
            None => {
                let bytes = bytes.escape_ascii();
                return Err(format!("{bytes}\n    we: {ours:?}\n    {name}: {theirs:?}"));
            }
        }
    }
    // `head.rs` has to keep the rules also if all parsers agree.
    let broken = all().find(|one| one.side() == Side::WeRefuse && one.holds(&written));
    match (ours, broken) {
        (Verdict::Accepted(_), Some(rule)) => {
            Err(format!("{} breaks {rule:?}", bytes.escape_ascii()))
        }
        _ => Ok(found),
    }
}

impl Seen {
    /// Returns `true` if both agree on the parts that both have looked at.
    fn agrees_with(&self, other: &Self) -> bool {
        let sorted = |fields: &[(String, Vec<u8>)]| {
            let mut fields = fields.to_vec();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            fields
        };
        self.method == other.method
            && self.target == other.target
            && self.is_1_1 == other.is_1_1
            && self.host == other.host
            && sorted(&self.fields) == sorted(&other.fields)
            && other.framing.is_none_or(|framing| self.framing == Some(framing))
            && other.keep_alive.is_none_or(|keep_alive| self.keep_alive == Some(keep_alive))
    }
}

fn by_us(bytes: &[u8]) -> Verdict {
    let head = match head::parse(bytes, properties::BOUNDS) {
        Ok(Some(head)) => head,
        Ok(None) => return Verdict::Partial,
        Err(_) => return Verdict::Refused,
    };
    // For httparse and hyper, an empty body is a body of length 0.
    let framing = match head.framing {
        Framing::Empty => Framing::Fixed(0),
        framing => framing,
    };
    let seen: Vec<_> = head.fields(bytes).collect();
    Verdict::Accepted(Seen {
        method: head.method.as_ref().to_owned(),
        target: comparable_target(head.target(bytes)),
        is_1_1: head.version == Version::Http1_1,
        host: head.host(bytes).unwrap_or("localhost").to_owned(),
        fields: comparable_fields(seen.iter().map(|(name, value)| (*name, value.as_bytes()))),
        framing: Some(framing),
        keep_alive: Some(head.keep_alive),
    })
}

fn by_httparse(bytes: &[u8]) -> Verdict {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => Verdict::Partial,
        Err(_) => Verdict::Refused,
        Ok(httparse::Status::Complete(_)) => {
            let is_1_1 = request.version == Some(1);
            let fields = request.headers.iter().map(|field| (field.name, field.value));
            Verdict::Accepted(Seen {
                method: request.method.unwrap().to_owned(),
                target: comparable_target(request.path.unwrap()),
                is_1_1,
                host: host(request.path.unwrap(), fields.clone()),
                fields: comparable_fields(fields),
                framing: None,
                keep_alive: None,
            })
        }
    }
}

fn by_hyper(bytes: &[u8]) -> Verdict {
    let seen = Rc::new(RefCell::new(None));
    let sent = Rc::new(RefCell::new(Vec::new()));
    let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
        // The request stays in this cell, because hyper must not see a drop of its body before the
        // answer.
        seen.borrow_mut().get_or_insert(request);
        async { Ok::<_, Infallible>(hyper::Response::new(String::new())) }
    });
    let client = Client { bytes, sent: sent.clone() };
    let connection = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(client, service);
    let end = pin!(connection).poll(&mut Context::from_waker(Waker::noop()));

    let sent = String::from_utf8(sent.take()).unwrap();
    let Some(request) = seen.take() else {
        let refused = matches!(end, Poll::Ready(Err(_))) || sent.starts_with("HTTP/1.1 4");
        return if refused { Verdict::Refused } else { Verdict::Partial };
    };
    let is_1_1 = request.version() == hyper::Version::HTTP_11;
    let answer = sent.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
    let fields = || request.headers().iter().map(|field| (field.0.as_str(), field.1.as_bytes()));
    let keep_alive = match is_1_1 {
        true => !answer.contains("\r\nconnection: close"),
        false => answer.contains("\r\nconnection: keep-alive"),
    };
    Verdict::Accepted(Seen {
        method: request.method().to_string(),
        target: comparable_target(&request.uri().to_string()),
        is_1_1,
        host: host(&request.uri().to_string(), fields()),
        fields: comparable_fields(fields()),
        framing: Some(request.body().size_hint().exact().map_or(Framing::Chunked, Framing::Fixed)),
        keep_alive: Some(keep_alive),
    })
}

/// Returns the authority of an absolute target, or else the value of `Host`, or else the server's
/// own value for HTTP/1.0.
fn host<'a>(target: &str, mut fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let named = fields.find(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, value)| value);
    let host = authority(target.as_bytes()).or(named).unwrap_or(b"localhost");
    String::from_utf8_lossy(host).into_owned()
}

/// Returns a target in a form that can be compared, in which an absolute one has a path.
fn comparable_target(target: &str) -> String {
    if target == "*" {
        return "/*".to_owned();
    }
    let Some((scheme, rest)) = target.split_once("://").filter(|_| !target.starts_with('/')) else {
        return target.to_owned();
    };
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let slash = if rest.starts_with('/') { "" } else { "/" };
    format!("{}://{authority}{slash}{rest}", scheme.to_ascii_lowercase())
}

/// Returns the fields in the form of [`head::Head::fields`], without those that it replaces or
/// leaves out.
fn comparable_fields<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Vec<(String, Vec<u8>)> {
    let mut comparable = Vec::new();
    for (name, value) in fields {
        let name = name.to_ascii_lowercase();
        if ["host", "expect", "upgrade"].contains(&name.as_str()) {
            continue;
        }
        let mut text = String::new();
        for &byte in value {
            match byte.is_ascii() {
                true => text.push(char::from(byte)),
                false => write!(text, "%{byte:02X}").unwrap(),
            }
        }
        comparable.push((name, text.into_bytes()));
    }
    comparable
}

/// A stream for hyper, which gives `bytes` at once, and then stays pending.
struct Client<'a> {
    bytes: &'a [u8],
    sent: Rc<RefCell<Vec<u8>>>,
}

impl hyper::rt::Read for Client<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Poll::Pending;
        }
        let (now, later) = self.bytes.split_at(self.bytes.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Client<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.sent.borrow_mut().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Returns heads by the grammar, some with odd parts, some damaged, some cut off.
pub(super) fn heads() -> impl Strategy<Value = Vec<u8>> {
    let request_line = (
        prop_oneof![
            12 => select(&["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "M-SEARCH"][..]),
            1 => select(&["get", "BREW", "CONNECT", "PRI", "", "G@T", "GET\t"][..]),
        ],
        prop_oneof![
            12 => targets(),
            1 => "[!-~]{1,12}",
            1 => "/[!-\u{ff}]{0,12}",
        ],
        prop_oneof![
            12 => select(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.0"][..]),
            1 => select(&["HTTP/1.2", "HTTP/1.9", "HTTP/2.0", "HTTP/0.9", "http/1.1", "HTTP/1.", ""][..]),
        ],
        prop_oneof![40 => Just(" "), 1 => select(&["  ", "\t", ""][..])],
    );
    let request_line = request_line
        .prop_map(|(method, target, version, space)| format!("{method} {target}{space}{version}"));
    let hosts = prop_oneof![
        12 => select(&["Host: a", "host:example.com:8080", "HOST: [::1]:80 ", "Host: 127.0.0.1"][..]),
        1 => select(&["Host: ", "Host: a b", "Host: a,b", "Host: u@a", "Host: a:x", "X: no host"][..]),
    ];
    let head = (
        prop_oneof![12 => 0..1_usize, 1 => 1..7_usize],
        request_line,
        hosts,
        vec(fields(), 0..7),
        any::<Index>(),
        vec(line_ends(), 10),
        select(&["", "", "hello", "\r\n\r\n", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n"][..]),
    );
    let head = head.prop_map(|(empty_lines, request_line, host, mut lines, at, ends, behind)| {
        lines.insert(at.index(lines.len() + 1), host.into());
        lines.insert(0, request_line.into());
        lines.push(Vec::new());
        let mut head = b"\r\n".repeat(empty_lines);
        for (line, end) in lines.iter().zip(ends) {
            head.extend_from_slice(line);
            head.extend_from_slice(end.as_bytes());
        }
        head.extend_from_slice(behind.as_bytes());
        head
    });
    damaged(head)
}

fn targets() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "/[a-z0-9./?=&%:@!$'()*+,;~_-]{0,12}",
        1 => "(http|https|HTTP)://(a|b:80|\\[::1\\]|a%41|u@a|a:|)(/|\\?|)[a-z/?]{0,4}",
        1 => select(&["*", "a:443", "/#", "ftp://a/", "http:/a", "//a", "/*", "/a://b"][..])
            .prop_map(str::to_owned),
    ]
}

fn line_ends() -> impl Strategy<Value = &'static str> {
    prop_oneof![80 => Just("\r\n"), 1 => select(&["\n", "\r", "\r\r\n", ""][..])]
}

/// Returns field lines.
fn fields() -> impl Strategy<Value = Vec<u8>> {
    const PLAIN: &[&str] = &[
        "Accept: */*",
        "User-Agent: x/1.0 (y; z)",
        "Cookie: a=b; c=d",
        "Cookie: e",
        "X:",
        "x: \t y\tz \t",
        "Content-Length: 5",
        "content-length: 0",
        "Transfer-Encoding: chunked",
        "Connection: close",
        "Connection: keep-alive",
        "Connection: foo, Close",
        "Connection: , Keep-Alive ,",
        "Connection: upgrade",
        "Upgrade: websocket",
        "Expect: 100-Continue",
    ];
    const ODD: &[&str] = &[
        "Content-Length: +5",
        "Content-Length: 5, 5",
        "Content-Length: ",
        "Content-Length: 6",
        "Content-Length: 18446744073709551615",
        "Content-Length: 18446744073709551616",
        "Content-Length: 0x5",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: ,CHUNKED",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: ",
        "Expect: more",
        "Expect: 100-continue, more",
        "Expect:",
        "Host: b",
        "Host: a",
        " folded: x",
        "\tfolded",
        "X : a",
        "no colon",
        ": no name",
        "X(: a",
        "é: a",
        "Connection: closed",
        "Connection: close é",
        "Connection: close, é",
        "Connection: keep-alive, close",
        "X: \0",
        "X: a\rb",
        "X: \x7f",
    ];
    prop_oneof![
        20 => select(PLAIN).prop_map(|line| line.into()),
        2 => select(ODD).prop_map(|line| line.into()),
        3 => ("[!#$%&'*+.^_`|~0-9A-Za-z-]{1,8}", "[ -~\t]{0,20}").prop_map(|(name, value)| {
            format!("{name}:{value}").into_bytes()
        }),
        // This one gives bytes outside ASCII.
        1 => vec(0x80..=0xff_u8, 1..20).prop_map(|value| [b"X: ", &value[..]].concat()),
        // These give many bytes and many fields.
        1 => prop_oneof![
            (7900..8300_usize).prop_map(|length| [b"X: ", &vec![b'x'; length][..]].concat()),
            (2600..2800_usize).prop_map(|length| [b"X: ", &vec![b'\xff'; length][..]].concat()),
            (85..140_usize).prop_map(|count| {
                let lines = b"X: y\r\n".repeat(count);
                lines[..lines.len() - 2].into()
            }),
        ],
    ]
}

/// Returns chunked bodies by the grammar, some with odd parts, some damaged, some cut off.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let extension = prop_oneof![
        6 => Just(String::new()),
        2 => " ?;[a-z]{1,5}(=[a-z0-9]{1,5})?",
        1 => ";a=\"[ -~\t]{0,9}\"",
        1 => "[ -~]{0,9}",
        1 => "[e;]{250,258}".prop_map(|text| format!(";{text}")),
    ];
    let content = prop_oneof![9 => vec(any::<u8>(), 1..20), 1 => vec(any::<u8>(), 1..2000)];
    let chunk = (0..4_usize, content, extension, line_ends(), line_ends());
    let chunk = chunk.prop_map(|(zeros, content, extension, end, data_end)| {
        let line = format!("{}{:x}{extension}{end}", "0".repeat(zeros), content.len());
        [line.as_bytes(), &content, data_end.as_bytes()].concat()
    });
    let trailer = prop_oneof![
        6 => "[a-zA-Z-]{1,8}:[ -~\t]{0,12}\r\n",
        2 => select(&["Host: a\r\n", "If-Match: x\r\n", "TE: x\r\n", "Content-Length: 1\r\n"][..])
            .prop_map(str::to_owned),
        1 => "[ -~]{0,9}[\r\n]{1,2}",
    ];
    let behind = select(&["", "0", "\r\n", "GET / HTTP/1.1\r\n\r\n"][..]);
    let body = (vec(chunk, 0..8), line_ends(), vec(trailer, 0..4), behind);
    let body = body.prop_map(|(chunks, end, trailers, behind)| {
        let last = format!("0{end}{}\r\n{behind}", trailers.concat());
        [chunks.concat(), last.into_bytes()].concat()
    });
    damaged(body)
}

/// Returns two of three messages unchanged, and the others with bytes changed, inserted or removed,
/// or with their end cut off.
fn damaged(message: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let odd = prop_oneof![3 => select(&b"\r\n\0\t :;,/#@*?%[]+-019aAzZ\"\\\x7f\x80\xff"[..]), 1 => any::<u8>()];
    let damage = (0..5_u8, any::<Index>(), odd);
    let damages = prop_oneof![2 => Just(Vec::new()), 1 => vec(damage, 1..4)];
    (message, damages).prop_map(|(mut message, damages)| {
        for (kind, at, byte) in damages {
            let at = at.index(message.len() + 1);
            match kind {
                0 | 1 if at < message.len() => message[at] = byte,
                2 | 3 if at < message.len() => drop(message.remove(at)),
                4 => message.truncate(at),
                _ => message.insert(at, byte),
            }
        }
        message
    })
}

/// Runs `test` over generated messages. A failure prints how to repeat it.
pub(super) fn over(
    cases: u32,
    messages: impl Strategy<Value = Vec<u8>>,
    test: impl Fn(&[u8]) -> Result<(), String>,
) {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => fastrand::u64(..),
    };
    config.rng_seed = RngSeed::Fixed(seed);
    let result = TestRunner::new(config).run(&messages, |message| {
        test(&message).map_err(|why| TestCaseError::fail(format!("\n{why}\n")))
    });
    if let Err(error) = result {
        panic!("PROPTEST_RNG_SEED={seed}: {error}");
    }
}

#[test]
fn every_difference_is_explained() {
    let (all, accepted) = (Cell::new(0), Cell::new(0));
    over(3000, heads(), |bytes| {
        all.set(all.get() + 1);
        if matches!(by_us(bytes), Verdict::Accepted(_)) {
            accepted.set(accepted.get() + 1);
        }
        compare(bytes).map(drop)
    });
    let (all, accepted) = (all.get(), accepted.get());
    assert!(accepted * 5 > all, "only {accepted} of {all} heads were good");
}

#[test]
fn every_explanation_is_needed() {
    for &(difference, head) in DIFFERENCES {
        let found = compare(head).unwrap();
        assert!(found.contains(&difference), "{found:?} and not {difference:?}");
    }
}

#[test]
fn properties_of_heads() {
    over(1000, heads(), |bytes| {
        properties::check_head(bytes);
        Ok(())
    });
    over(1000, vec(any::<u8>(), 0..200), |bytes| {
        properties::check_head(bytes);
        Ok(())
    });
}

#[test]
fn properties_of_bodies() {
    over(1000, bodies(), |bytes| {
        properties::check_body(bytes);
        Ok(())
    });
    over(1000, vec(any::<u8>(), 0..200), |bytes| {
        properties::check_body(bytes);
        Ok(())
    });
}

/// The published package does not have `fuzz/`.
#[test]
fn seeds_of_the_fuzzer() {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    if !fuzz.exists() {
        return;
    }
    for (folder, check) in
        [("head", properties::check_head as fn(&[u8])), ("body", properties::check_body)]
    {
        for seed in fuzz.join("seeds").join(folder).read_dir().unwrap() {
            let path = seed.unwrap().path();
            check(&std::fs::read(path).unwrap());
        }
    }
}
