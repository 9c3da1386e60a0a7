//! Request heads: bytes in, [`Head`] or a refusal out. Pure, without I/O or state between calls.
//!
//! Invariant: the verdict on a head depends only on its bytes, not on how they were split into
//! reads. More bytes can turn `None` into a verdict, but never one verdict into another. If RFC
//! 9112 leaves a head ambiguous, the verdict is a refusal (rule W3). A head copies nothing, but
//! tells where its target and its fields are in the client's bytes.
//!
//! Does not look at bodies. `request_line.rs` judges the request line, and `head_fields.rs` the
//! fields.

use std::borrow::Cow;
use std::ops::Range;

use http_types::{Method, StatusCode, Version};
use memchr::{memchr, memchr_iter};

use super::body::Framing;
use super::field::visible;
use super::head_fields::Facts;
use super::request_line::{Absolute, RequestLine, check_line};
use crate::request_text::RequestText;

/// The bounds of a head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The most bytes from the request line to the final blank line.
    pub(crate) head_bytes: usize,
    /// The most fields.
    pub(crate) headers: usize,
}

/// The facts about a request's head that the gate needs.
#[derive(Debug)]
pub(crate) struct Head {
    /// The number of bytes that belong to the head, with leading empty lines and the final blank
    /// line.
    pub(crate) len: usize,
    /// One of http-types' methods, but never CONNECT or PRI.
    pub(crate) method: Method,
    /// `Http1_0` or `Http1_1`. A higher minor version counts as 1.1.
    pub(crate) version: Version,
    /// The way in which the body is delimited.
    pub(crate) framing: Framing,
    /// Set if the client wants to use the connection again.
    pub(crate) keep_alive: bool,
    /// Set if the client waits for `100 Continue` before it sends the body (rule W7).
    pub(crate) expects_continue: bool,
    /// Set if the client offers to switch protocols.
    pub(crate) upgrade: bool,
    /// Set if the client accepts trailers in the response.
    pub(crate) accepts_trailers: bool,
    /// The range of the target, as the client wrote it.
    target: Range<usize>,
    /// The range of the field lines, without the final blank line.
    fields: Range<usize>,
    /// The number of field lines.
    pub(super) lines: usize,
}

impl Head {
    /// Returns the positions of the parts that a report shows.
    pub(super) fn parts(&self) -> Parts {
        let (target, fields) = (self.target.clone(), self.fields.clone());
        Parts { target, fields, version: self.version }
    }

    /// Returns the target as the client wrote it. `bytes` must be the bytes that [`parse`] has
    /// parsed.
    pub(crate) fn target<'a>(&self, bytes: &'a [u8]) -> &'a str {
        // The target is ASCII, because `parse` refuses any other.
        std::str::from_utf8(&bytes[self.target.clone()]).unwrap_or_default()
    }

    /// Returns the parts of the target if it is an absolute one.
    fn absolute<'a>(&self, bytes: &'a [u8]) -> Option<Absolute<'a>> {
        let is_path = bytes.get(self.target.start) == Some(&b'/');
        if is_path { None } else { Absolute::split(self.target(bytes)) }
    }

    /// Returns the host that the client asks for: the authority of an absolute target (RFC 9112
    /// section 3.2.2), or else the value of `Host`. Returns `None` if an HTTP/1.0 client sent
    /// neither.
    pub(crate) fn host<'a>(&self, bytes: &'a [u8]) -> Option<&'a str> {
        let section = &bytes[self.fields.clone()];
        let host = || {
            let is_host = |name: Range<usize>| section[name].eq_ignore_ascii_case(b"host");
            let (_, value) = lines(section).find(|(name, _)| is_host(name.clone()))?;
            std::str::from_utf8(&section[value]).ok()
        };
        self.absolute(bytes).map(|absolute| absolute.authority).or_else(host)
    }

    /// Returns the fields that a handler may see, in the client's order, with these exceptions:
    ///
    /// - For an absolute target, `Host` is the target's authority.
    /// - `Expect` is left out (rule W7), and so is an `Upgrade` that the server does not follow
    ///   (see [`Head::upgrade`]).
    /// - A byte outside ASCII in a value is written as `%XX`, because http-types' values are ASCII.
    ///   A replacement character would make different values equal.
    pub(crate) fn fields<'a>(
        &self,
        bytes: &'a [u8],
    ) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> {
        let authority = self.absolute(bytes).map(|absolute| absolute.authority);
        let host = authority.map(|authority| ("Host", Cow::Borrowed(authority)));
        let upgrade = self.upgrade;
        let section = &bytes[self.fields.clone()];
        // Most heads are ASCII, and one check for the whole section costs less than one for each
        // value.
        let text = section.is_ascii().then(|| std::str::from_utf8(section)).and_then(Result::ok);
        let lines = lines(section).map(move |(name, value)| match text {
            Some(text) => (&text[name], Cow::Borrowed(&text[value])),
            // `parse` has checked that names are tokens.
            None => {
                (std::str::from_utf8(&section[name]).unwrap_or_default(), visible(&section[value]))
            }
        });
        let lines = lines.filter(move |(name, _)| match name.len() {
            4 => authority.is_none() || !name.eq_ignore_ascii_case("host"),
            6 => !name.eq_ignore_ascii_case("expect"),
            7 => upgrade || !name.eq_ignore_ascii_case("upgrade"),
            _ => true,
        });
        host.into_iter().chain(lines)
    }
}

/// Judges the head at the beginning of `bytes`. Returns `None` if nothing is wrong so far, but the
/// end of the head is missing. The caller then calls again with more bytes.
///
/// The checks go through the bytes in order, and those that need the whole head come last. So an
/// error in the first bytes is the error of the whole head, too.
///
/// # Errors
///
/// Returns the status with which the server answers before it closes the connection. No further
/// byte would change this status.
pub(crate) fn parse(bytes: &[u8], bounds: Bounds) -> Result<Option<Head>, StatusCode> {
    let start = empty_lines(bytes);
    // At least 2, so that a CR that may begin an empty line does not fill the window.
    let limit = bounds.head_bytes.max(2);
    let window = &bytes[start..bytes.len().min(start.saturating_add(limit))];
    let is_full = window.len() == limit;

    let Some(line_feed) = memchr(b'\n', window) else {
        check_line(window)?;
        return if is_full { Err(StatusCode::UriTooLong) } else { Ok(None) };
    };
    let line = RequestLine::parse(&window[..=line_feed])?;

    let section = &window[line_feed + 1..];
    let Some((section_len, lines)) = find_blank_line(section, bounds.headers)? else {
        check_section(section)?;
        return if is_full { Err(StatusCode::RequestHeaderFieldsTooLarge) } else { Ok(None) };
    };
    let section = &section[..section_len];

    // httparse refuses empty names, whitespace before a name or its colon, folded lines and control
    // characters (RFC 9112 sections 5.1 and 5.2, RFC 9110 section 5.5), and trims the whitespace
    // around values. httparse would take a bare LF as a line end, but `find_blank_line` has refused
    // such a line.
    let (mut few, mut many);
    let slots = if lines <= FEW_FIELDS {
        few = [httparse::EMPTY_HEADER; FEW_FIELDS];
        &mut few[..]
    } else {
        many = vec![httparse::EMPTY_HEADER; lines];
        &mut many[..]
    };
    let fields = match httparse::parse_headers(section, slots) {
        Ok(httparse::Status::Complete((end, fields))) if end == section.len() => fields,
        _ => return Err(StatusCode::BadRequest),
    };
    let facts = Facts::collect(fields)?;
    facts.check_host(line.version)?;
    let framing = facts.framing(line.version)?;

    // RFC 9110 section 10.1.1: `Expect` does not count in HTTP/1.0, an unknown expectation gets
    // 417, and a client without a body waits for nothing (rule W7).
    let is_1_1 = line.version == Version::Http1_1;
    if is_1_1 && facts.unknown_expectation {
        return Err(StatusCode::ExpectationFailed);
    }

    // RFC 9110 section 7.8: `Upgrade` does not count in HTTP/1.0, nor if `Connection` does not list
    // it.
    let upgrade = is_1_1 && facts.upgrade_field && facts.upgrade_listed;

    let fields = start + line_feed + 1;
    Ok(Some(Head {
        len: fields + section_len,
        // RFC 9112 section 9.3: a connection of HTTP/1.1 persists unless `close` is listed, and one
        // of 1.0 only with `keep-alive` (rule W8).
        keep_alive: !facts.close && (is_1_1 || facts.keep_alive),
        expects_continue: is_1_1 && framing.has_body() && facts.expects_continue,
        upgrade,
        // RFC 9112 section 7.1: HTTP/1.0 has no chunks, and so no trailers (rule W8).
        accepts_trailers: is_1_1 && facts.accepts_trailers,
        method: line.method,
        version: line.version,
        framing,
        target: start + line.target.start..start + line.target.end,
        fields: fields..fields + section_len - 2,
        lines,
    }))
}

/// Returns `true` if the bytes in front of a head are the beginning of a request, and not only
/// empty lines.
pub(crate) fn has_begun(bytes: &[u8]) -> bool {
    !EMPTY_LINES.starts_with(bytes)
}

/// Returns `true` if [`parse`] may give a verdict on all of `bytes` after it gave `None` for the
/// first `judged` of them. Bytes that only make a line longer cannot lead to a verdict, and parsing
/// a head from its beginning for each of its bytes would be slow.
pub(crate) fn may_decide(bytes: &[u8], judged: usize) -> bool {
    let (before, news) = bytes.split_at(judged.min(bytes.len()));
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~');
    // Nothing but a line feed may follow a carriage return.
    if before.is_empty() || before.ends_with(b"\r") {
        return true;
    }
    // Tabs and bytes beyond ASCII are legal in fields, but not in a request line.
    let is_plain = |byte: &u8| is_text(byte) || matches!(byte, b'\t' | 0x80..);
    let is_in_line = || memchr(b'\n', &before[empty_lines(before)..]).is_none();
    !news.iter().all(is_text) && (!news.iter().all(is_plain) || is_in_line())
}

/// Room for the fields of a common head.
const FEW_FIELDS: usize = 16;

/// The empty lines that are tolerated before a request line (RFC 9112 section 2.2 asks for at least
/// one).
pub(super) const EMPTY_LINES: &[u8] = b"\r\n\r\n\r\n\r\n";

/// Returns the length of the empty lines before the request line, as far as they are tolerated.
fn empty_lines(bytes: &[u8]) -> usize {
    let is_line = |(line, empty): &(&[u8], &[u8])| line == empty;
    2 * bytes.chunks_exact(2).zip(EMPTY_LINES.chunks_exact(2)).take_while(is_line).count()
}

/// Checks that the beginning of a header section holds neither control characters nor a lone CR or
/// LF.
fn check_section(section: &[u8]) -> Result<(), StatusCode> {
    let mut after_cr = false;
    for &byte in section {
        let is_legal = matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~' | 0x80..);
        if !is_legal || after_cr != (byte == b'\n') {
            return Err(StatusCode::BadRequest);
        }
        after_cr = byte == b'\r';
    }
    Ok(())
}

/// Returns the length of the header section with its blank line, and the number of lines before the
/// blank line.
///
/// A bare LF is not a line end. RFC 9112 section 2.2 would let a server take it as one, but rule W3
/// refuses what two recipients may read differently.
fn find_blank_line(section: &[u8], most: usize) -> Result<Option<(usize, usize)>, StatusCode> {
    let mut line_start = 0;
    let mut lines = 0;
    for line_feed in memchr_iter(b'\n', section) {
        let end = line_feed + 1;
        if !section[line_start..end].ends_with(b"\r\n") {
            return Err(StatusCode::BadRequest);
        }
        if end - line_start == 2 {
            return Ok(Some((end, lines)));
        }
        lines += 1;
        if lines > most {
            // A wrong byte in these lines comes first, because `parse` checks the bytes in order.
            check_section(&section[..end])?;
            return Err(StatusCode::RequestHeaderFieldsTooLarge);
        }
        line_start = end;
    }
    Ok(None)
}

/// Returns where name and value of each field line are in a header section that [`parse`] has
/// accepted.
fn lines(section: &[u8]) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let mut begin = 0;
    std::iter::from_fn(move || {
        // `parse` has checked that each line has a colon and ends in CRLF.
        let end = begin + memchr(b'\n', &section[begin..])?;
        let line = section[begin..end].strip_suffix(b"\r")?;
        let colon = memchr(b':', line)?;
        let value = line[colon + 1..].trim_ascii_end();
        let value_end = begin + colon + 1 + value.len();
        let value = value_end - value.trim_ascii_start().len()..value_end;
        let name = begin..begin + colon;
        begin = end + 1;
        Some((name, value))
    })
}

// ── The text of a head, for reports ─────────────────────────────────────────────────────────

/// The positions of a head's parts in the client's bytes.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    target: Range<usize>,
    fields: Range<usize>,
    version: Version,
}

impl Parts {
    /// Returns the head as text, with bytes outside ASCII as `%XX`. `bytes` must begin with the
    /// bytes that [`parse`] has parsed.
    pub(super) fn text(self, bytes: &[u8]) -> RequestText {
        let Self { target, fields, version } = self;
        RequestText {
            // Only field values can hold bytes outside ASCII, so the ranges in front of the fields
            // stay right.
            text: visible(&bytes[..fields.end]).into_owned(),
            method: empty_lines(bytes)..target.start - 1,
            target,
            fields: fields.start,
            version: Some(version),
        }
    }
}

/// Returns as much of a request line as has arrived. The head may be incomplete or garbage.
///
/// A byte that is not visible ASCII shows as U+FFFD.
pub(super) fn text_so_far(bytes: &[u8]) -> RequestText {
    let line = line_so_far(bytes);
    let mut words = line.split(|&byte| byte == b' ');
    let mut word = || words.next().unwrap_or_default();
    let (method, target) = (printable(word(), usize::MAX), printable(word(), usize::MAX));
    let version = match word() {
        b"HTTP/0.9" => Some(Version::Http0_9),
        b"HTTP/1.0" => Some(Version::Http1_0),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'..=b'9'] => Some(Version::Http1_1),
        b"HTTP/2.0" => Some(Version::Http2_0),
        b"HTTP/3.0" => Some(Version::Http3_0),
        _ => None,
    };
    let text = method + &target;
    let (begin, end) = (text.len() - target.len(), text.len());
    RequestText { text, method: 0..begin, target: begin..end, fields: end, version }
}

/// Returns method and target as the client wrote them, for log lines. Returns `None` if there is
/// nothing to show yet. The head may be incomplete or garbage.
///
/// A byte that is not visible ASCII shows as U+FFFD, and the words are cut to a sensible length.
pub(crate) fn request_line(bytes: &[u8]) -> Option<(String, String)> {
    let line = line_so_far(bytes);
    if line.is_empty() {
        return None;
    }
    let mut words = line.split(|&byte| byte == b' ');
    let method = printable(words.next().unwrap_or_default(), SHOWN_METHOD);
    let target = printable(words.next().unwrap_or_default(), SHOWN_TARGET);
    Some((method, target))
}

/// Returns the request line without its end, as far as it has arrived.
fn line_so_far(bytes: &[u8]) -> &[u8] {
    let rest = &bytes[empty_lines(bytes)..];
    let line = &rest[..memchr(b'\n', rest).unwrap_or(rest.len())];
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Returns at most `limit` bytes as text, with U+FFFD for each that is not visible ASCII.
fn printable(bytes: &[u8], limit: usize) -> String {
    let shown = |&byte: &u8| {
        if byte.is_ascii_graphic() { char::from(byte) } else { char::REPLACEMENT_CHARACTER }
    };
    bytes.iter().take(limit).map(shown).collect()
}

/// The longest method in a log line. All methods that http-types knows are shorter.
const SHOWN_METHOD: usize = 20;
/// The longest target in a log line.
const SHOWN_TARGET: usize = 100;

#[cfg(test)]
mod tests;
