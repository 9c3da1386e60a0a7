//! [`Facts`]: the facts that the fields of a request state about its connection and its body.
//!
//! Invariant: if two recipients could read a field differently, the server refuses the head (rule
//! W3). Pure. Looks at each field once, and does not know which fields a handler sees.

use http_types::{StatusCode, Version};
use httparse::Header;

use super::body::Framing;
use super::request_line::is_host;

/// The facts that the fields state, before the version and the target are considered.
#[derive(Default)]
pub(super) struct Facts<'a> {
    /// The value of `Host`.
    host: Option<&'a [u8]>,
    /// The value of `Content-Length`.
    content_length: Option<u64>,
    /// The value of `Transfer-Encoding`.
    transfer_encoding: Option<&'a [u8]>,
    /// Set if `Connection` lists `close`.
    pub(super) close: bool,
    /// Set if `Connection` lists `keep-alive`.
    pub(super) keep_alive: bool,
    /// Set if `Connection` lists `upgrade`.
    pub(super) upgrade_listed: bool,
    /// Set if there is an `Upgrade` field.
    pub(super) upgrade_field: bool,
    /// Set if `Expect` lists `100-continue`.
    pub(super) expects_continue: bool,
    /// Set if `Expect` lists something else.
    pub(super) unknown_expectation: bool,
    /// Set if `TE` lists `trailers`. The grammar gives `trailers` no weight (RFC 9110 section
    /// 10.1.4), so an element with a weight does not count.
    pub(super) accepts_trailers: bool,
}

impl<'a> Facts<'a> {
    /// Looks at each field once.
    pub(super) fn collect(fields: &[Header<'a>]) -> Result<Self, StatusCode> {
        let mut facts = Self::default();
        for field in fields {
            // Most fields are told apart by their length.
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            match field.name.len() {
                2 if is("te") => facts.accepts_trailers |= lists(field.value, "trailers"),
                4 if is("host") => store_once(&mut facts.host, field.value)?,
                6 if is("expect") => facts.read_expect(field.value),
                7 if is("upgrade") => facts.upgrade_field = true,
                10 if is("connection") => facts.read_connection(field.value),
                14 if is("content-length") => {
                    store_once(&mut facts.content_length, content_length(field.value)?)?;
                }
                17 if is("transfer-encoding") => {
                    store_once(&mut facts.transfer_encoding, field.value)?
                }
                _ => {}
            }
        }
        Ok(facts)
    }

    /// Reads `Connection` (RFC 9110 section 7.6.1), which may come on several lines.
    fn read_connection(&mut self, value: &[u8]) {
        self.close |= lists(value, "close");
        self.keep_alive |= lists(value, "keep-alive");
        self.upgrade_listed |= lists(value, "upgrade");
    }

    /// Reads `Expect`, a list of which only `100-continue`, in any case, is known (RFC 9110 section
    /// 10.1.1).
    fn read_expect(&mut self, value: &[u8]) {
        for expectation in list(value).filter(|expectation| !expectation.is_empty()) {
            if expectation.eq_ignore_ascii_case(b"100-continue") {
                self.expects_continue = true;
            } else {
                self.unknown_expectation = true;
            }
        }
    }

    /// Checks that a `Host` field is valid, and on 1.1 present, even if an absolute target replaces
    /// it (RFC 9112 section 3.2). HTTP/1.0 needs no `Host` (rule W8).
    pub(super) fn check_host(&self, version: Version) -> Result<(), StatusCode> {
        match self.host {
            Some(host) if is_host(host) => Ok(()),
            None if version == Version::Http1_0 => Ok(()),
            _ => Err(StatusCode::BadRequest),
        }
    }

    /// Decides where the body ends (RFC 9112 section 6.3, rule W3).
    pub(super) fn framing(&self, version: Version) -> Result<Framing, StatusCode> {
        match (self.transfer_encoding, self.content_length) {
            // Section 6.1: both fields together, or an encoding in HTTP/1.0, are the marks of
            // request smuggling.
            (Some(_), Some(_)) => Err(StatusCode::BadRequest),
            (Some(_), None) if version == Version::Http1_0 => Err(StatusCode::BadRequest),
            (Some(codings), None) => transfer_encoding(codings),
            (None, Some(length)) => Ok(Framing::Fixed(length)),
            (None, None) => Ok(Framing::Empty),
        }
    }
}

/// Stores the value of a field that may come only once.
///
/// RFC 9112 section 3.2 allows one `Host`. Section 6.3 lets a recipient take equal lines of
/// `Content-Length` as one, and several lines of `Transfer-Encoding` could be joined. Two
/// recipients may then disagree, so this server refuses both (rule W3).
fn store_once<T>(slot: &mut Option<T>, value: T) -> Result<(), StatusCode> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(StatusCode::BadRequest),
    }
}

/// Reads `Content-Length`: digits, and nothing else (RFC 9110 section 8.6). Also refuses a number
/// that does not fit into 64 bits (rule W3).
fn content_length(value: &[u8]) -> Result<u64, StatusCode> {
    let digits =
        std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or(StatusCode::BadRequest)
}

/// Reads `Transfer-Encoding` (RFC 9112 sections 6.1 and 6.3, rule W3). The last coding must be
/// `chunked`, which must not come twice, or else the answer is 400. Other codings before `chunked`
/// are not implemented, so the answer to them is 501.
fn transfer_encoding(value: &[u8]) -> Result<Framing, StatusCode> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(Framing::Chunked);
    }
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let once = list(value).filter(|coding| is_chunked(coding)).count() == 1;
    let last = list(value).last().is_some_and(is_chunked);
    let gaps = list(value).any(<[u8]>::is_empty);
    if once && last && !gaps {
        Err(StatusCode::NotImplemented)
    } else {
        Err(StatusCode::BadRequest)
    }
}

/// Returns `true` if a comma-separated list has this element, in any case.
fn lists(value: &[u8], element: &str) -> bool {
    list(value).any(|found| found.eq_ignore_ascii_case(element.as_bytes()))
}

/// Returns the elements of a comma-separated list, empty ones included (RFC 9110 section 5.6.1).
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}
