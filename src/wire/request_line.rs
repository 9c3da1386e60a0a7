//! [`RequestLine`]: method, target and version (RFC 9112 section 3), and which of them the server
//! serves.
//!
//! Invariant: a target has one of the forms that the server serves, and all recipients read a host
//! in the same way (rule W3). Pure. Does not check that a target makes a URL, because `target.rs`
//! does.

use std::net::Ipv6Addr;
use std::ops::Range;

use http_types::{Method, StatusCode, Version};
use memchr::memchr;

use super::field::is_token;

/// A request line (RFC 9112 section 3).
pub(super) struct RequestLine {
    /// The method.
    pub(super) method: Method,
    /// The range of the target in the line.
    pub(super) target: Range<usize>,
    /// The version to serve.
    pub(super) version: Version,
}

impl RequestLine {
    /// Judges a whole line, its line end included.
    pub(super) fn parse(line: &[u8]) -> Result<Self, StatusCode> {
        const BAD: StatusCode = StatusCode::BadRequest;

        let line = line.strip_suffix(b"\r\n").ok_or(BAD)?;
        check_line(line)?;
        let line = std::str::from_utf8(line).map_err(|_| BAD)?;
        let space = |begin: usize| memchr(b' ', &line.as_bytes()[begin..]).map(|at| begin + at);
        // Exactly one space is between the parts, because a further one ends up in the version. A
        // line with fewer than two spaces is an HTTP/0.9 request, or garbage.
        let name_end = space(0).ok_or(BAD)?;
        let target_end = space(name_end + 1).ok_or(BAD)?;
        let (name, target) = (&line[..name_end], &line[name_end + 1..target_end]);
        let protocol = &line[target_end + 1..];
        if !is_token(name) {
            return Err(BAD);
        }
        let version = version(protocol)?;
        let method = method(name)?;
        if !is_target(target, method) {
            return Err(BAD);
        }
        Ok(Self { method, target: name_end + 1..target_end, version })
    }
}

/// Checks that the beginning of a request line holds only visible ASCII and spaces. The bytes may
/// end with a CR.
pub(super) fn check_line(line: &[u8]) -> Result<(), StatusCode> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let is_clean = line.iter().all(|byte| matches!(byte, b' '..=b'~'));
    if is_clean { Ok(()) } else { Err(StatusCode::BadRequest) }
}

/// The parts of an absolute target, `scheme "://" authority path` (RFC 9112 section 3.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Absolute<'a> {
    /// The scheme as the client wrote it, in upper or lower case.
    pub(crate) scheme: &'a str,
    /// Host and port.
    pub(crate) authority: &'a str,
    /// Path and query. A path may be missing.
    pub(crate) path: &'a str,
}

impl<'a> Absolute<'a> {
    /// Splits `target`. Returns `None` if it is not an absolute target.
    pub(crate) fn split(target: &'a str) -> Option<Self> {
        if target.starts_with('/') {
            return None;
        }
        let (scheme, rest) = target.split_once("://")?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        Some(Self { scheme, authority, path })
    }
}

/// Reads the version (RFC 9112 section 2.3). The server serves a higher minor version as 1.1 (RFC
/// 9110 section 2.5), and answers 505 to another major version.
fn version(protocol: &str) -> Result<Version, StatusCode> {
    match protocol.strip_prefix("HTTP/").map(str::as_bytes) {
        Some(b"1.0") => Ok(Version::Http1_0),
        Some([b'1', b'.', b'1'..=b'9']) => Ok(Version::Http1_1),
        Some([b'0'..=b'9', b'.', b'0'..=b'9']) => Err(StatusCode::HttpVersionNotSupported),
        _ => Err(StatusCode::BadRequest),
    }
}

/// Reads the name of a method, which is case-sensitive (RFC 9110 section 9.1). The server answers
/// 501 to an unknown method, to CONNECT, because the server is not a proxy, and to PRI, which is
/// not a method for use (RFC 9113 section 11.6).
fn method(name: &str) -> Result<Method, StatusCode> {
    match name {
        "GET" => Ok(Method::Get),
        "HEAD" => Ok(Method::Head),
        "POST" => Ok(Method::Post),
        "PUT" => Ok(Method::Put),
        "DELETE" => Ok(Method::Delete),
        // `from_str` ignores case and allocates.
        _ => match name.parse() {
            Ok(Method::Connect | Method::Pri) | Err(_) => Err(StatusCode::NotImplemented),
            Ok(method) if method.as_ref() == name => Ok(method),
            Ok(_) => Err(StatusCode::NotImplemented),
        },
    }
}

/// Returns `true` if the server serves targets of this form (RFC 9112 section 3.2).
fn is_target(target: &str, method: Method) -> bool {
    // A fragment is never sent (RFC 9110 section 4.1).
    if target.bytes().any(|byte| byte == b'#') {
        return false;
    }
    // A path must not hold a backslash (RFC 3986 section 3.3), which the url crate would take for a
    // slash. A query may, because browsers send it there.
    let mut path = target.bytes().take_while(|byte| *byte != b'?');
    if path.any(|byte| byte == b'\\') {
        return false;
    }
    if target.starts_with('/') {
        return true;
    }
    if target == "*" {
        return method == Method::Options;
    }
    // The authority must not be empty (RFC 9110 section 4.2.1), and must not have user information
    // (section 4.2.4).
    Absolute::split(target).is_some_and(|absolute| {
        let is = |scheme: &str| absolute.scheme.eq_ignore_ascii_case(scheme);
        (is("http") || is("https")) && is_host(absolute.authority.as_bytes())
    })
}

/// Returns `true` if a value is `uri-host [ ":" port ]` (RFC 9110 section 7.2) and not empty. An
/// IPv6 address is in brackets. The grammar allows a comma, but a comma is the mark of two joined
/// values.
pub(super) fn is_host(value: &[u8]) -> bool {
    let name = value.iter().take_while(|byte| is_host_byte(**byte)).count();
    let (host, port) = match &value[name..] {
        [] => (name > 0, Some(&b""[..])),
        [b':', port @ ..] => (name > 0, Some(port)),
        [b'[', rest @ ..] if name == 0 => {
            let end = rest.iter().position(|byte| *byte == b']').unwrap_or(rest.len());
            let address = std::str::from_utf8(&rest[..end]).unwrap_or_default();
            let port = match &rest[end..] {
                [b']'] => Some(&b""[..]),
                [b']', b':', port @ ..] => Some(port),
                _ => None,
            };
            (address.parse::<Ipv6Addr>().is_ok(), port)
        }
        _ => return false,
    };
    // RFC 3986 section 3.2.3: a port may be empty.
    let is_port = |port: &[u8]| {
        let digits = port.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(port));
        port.is_empty() || matches!(digits, Some(Ok(digits)) if digits.parse::<u16>().is_ok())
    };
    host && port.is_some_and(is_port)
}

/// Returns `true` if a byte may be part of a host's name (RFC 3986 section 3.2.2). RFC 3986 also
/// allows escapes, but one recipient would decode them and another one would not.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&byte)
}
