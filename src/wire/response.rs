//! [`Reply`]: an http-types response as bytes, through async-h1's encoder, with its fix-ups.
//!
//! Invariant: what is sent is one well-formed message whose framing the client and we agree on
//! (RFC 9112 section 6.3), or it is reported as broken and the connection must not be used again.
//! Sends nothing itself and decides nothing about keeping the connection: it is told.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use async_h1::server::Encoder;
use futures_lite::AsyncRead;
use http_types::headers::{CONNECTION, CONTENT_LENGTH, DATE, HeaderValue, TRANSFER_ENCODING};
use http_types::other::Date;
use http_types::{Body, Method, Response, StatusCode, Version};

use super::outgoing::Outgoing;

/// A response that is being encoded.
pub(crate) struct Reply {
    encoder: Encoder,
    head: Head,
    /// A field that the encoder adds and that must not be sent.
    unwanted: Option<&'static [u8]>,
    /// Bytes of the body that are still owed to the client, where that is known.
    owed: Option<u64>,
    /// Whether only the end of the connection tells where the body ends.
    until_close: bool,
}

/// How far the head has come.
#[derive(Clone, Copy)]
enum Head {
    Unsent,
    /// Some of it is in the buffer, from here on.
    Begun(usize),
    Complete,
}

/// What of the request decides how it is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) version: Version,
}

/// Whether a body without a length has to end with the connection: HTTP/1.0 knows no chunks (W8).
pub(crate) fn ends_with_connection(response: &Response, asked: Asked) -> bool {
    asked.version == Version::Http1_0
        && response.len().is_none()
        && asked.method != Method::Head
        && !has_no_body(response.status())
}

/// Whether a body goes with `response` (rule W11), which may be made of the request's.
pub(crate) fn has_body(response: &Response, asked: Asked) -> bool {
    asked.method != Method::Head && !has_no_body(response.status())
}

/// Whether the handler itself asks to close.
pub(crate) fn asks_to_close(response: &Response) -> bool {
    let lines = response.header(CONNECTION).into_iter().flatten();
    lines.flat_map(|line| line.as_str().split(',')).any(|o| o.trim().eq_ignore_ascii_case("close"))
}

/// Whether `response` hands the connection over to another protocol (RFC 9110 section 7.8).
pub(crate) fn upgrades(response: &Response) -> bool {
    response.status() == StatusCode::SwitchingProtocols && response.has_upgrade()
}

/// The response for a request that failed before or in its handler: the status, and no internals.
pub(crate) fn plain(status: StatusCode) -> Response {
    let mut response = Response::new(status);
    if !has_no_body(status) {
        response.set_body(format!("{}\n", status.canonical_reason()));
    }
    response
}

/// The time for `Date` (RFC 9110 section 6.6.1), which each thread writes out once a second.
fn date() -> HeaderValue {
    thread_local! {
        static NOW: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    NOW.with_borrow_mut(|cached| match cached {
        Some((of, date)) if *of == second => date.clone(),
        _ => cached.insert((second, Date::new(now).value())).1.clone(),
    })
}

impl Reply {
    /// Prepares `response`; with `last` it tells the client that the connection ends (rule S9).
    pub(crate) fn new(response: Response, asked: Asked, last: bool) -> Self {
        let mut response = fit_to_send(response);
        let status = response.status();
        let bodiless = asked.method == Method::Head || has_no_body(status);

        // The framing is ours to decide; a handler's own idea of it would contradict it.
        response.remove_header(TRANSFER_ENCODING);
        let declared = response.remove_header(CONTENT_LENGTH);
        if bodiless && response.len() == Some(0) {
            // HEAD and 304 may tell the length of the body that GET would have (RFC 9110 8.6).
            let length = declared.and_then(|length| length.as_str().trim().parse().ok());
            if let Some(length) = length {
                keep_headers(
                    &mut response,
                    Body::from_reader(futures_lite::io::empty(), Some(length)),
                );
            }
        }

        let until_close = ends_with_connection(&response, asked);
        if until_close {
            // A length that is never reached, and never sent: the encoder then sends no chunks.
            let reader = response.take_body().into_reader();
            keep_headers(&mut response, Body::from_reader(reader, Some(usize::MAX)));
        }

        // Rule W11. A 304 for a page of unknown length must not claim that it is empty.
        let unsized_1_0 = asked.version == Version::Http1_0 && response.len().is_none();
        let unwanted: Option<&'static [u8]> = match response.len() {
            _ if until_close => Some(LENGTH),
            Some(0) if status == StatusCode::NotModified => Some(LENGTH),
            Some(_) if has_no_body(status) && status != StatusCode::NotModified => Some(LENGTH),
            None if has_no_body(status) || unsized_1_0 => Some(CODING),
            _ => None,
        };

        if response.header(DATE).is_none() {
            response.insert_header(DATE, date());
        }
        if status == StatusCode::SwitchingProtocols {
            response.insert_header(CONNECTION, "upgrade");
        } else if last {
            response.insert_header(CONNECTION, "close");
        } else if asked.version == Version::Http1_0 {
            response.insert_header(CONNECTION, "keep-alive");
        }

        let owed = match response.len() {
            Some(length) if !bodiless && !until_close => Some(length as u64),
            _ => None,
        };
        // For HEAD the encoder stops behind the head.
        let method = if bodiless { Method::Head } else { asked.method };
        Self {
            encoder: Encoder::new(response, method),
            head: Head::Unsent,
            unwanted,
            owed,
            until_close,
        }
    }

    /// Whether only the end of the connection tells where the body ends.
    pub(super) fn ends_with_connection(&self) -> bool {
        self.until_close
    }

    /// Adds some of the response to `out`; `true` when there is no more.
    ///
    /// # Errors
    ///
    /// What the reader of the body says, and `UnexpectedEof` if it is shorter than declared: the
    /// client must not take what it got for the whole.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing,
    ) -> Poll<io::Result<bool>> {
        let n = ready!(Pin::new(&mut self.encoder).poll_read(cx, out.room()))?;
        let before = out.len();
        out.filled(n);
        let head = match self.head {
            Head::Unsent => Some(before),
            Head::Begun(head) => Some(head),
            Head::Complete => None,
        };
        if let Some(head) = head {
            // The encoder gives head and body in separate reads, and no value holds a line end.
            self.head = if out.since(head).ends_with(b"\r\n\r\n") {
                self.drop_unwanted(head, out);
                Head::Complete
            } else {
                Head::Begun(head)
            };
            return Poll::Ready(Ok(false));
        }
        if n > 0 {
            self.owed = self.owed.map(|owed| owed.saturating_sub(n as u64));
            return Poll::Ready(Ok(false));
        }
        match self.owed {
            Some(owed) if owed > 0 => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the response body is shorter than its declared length",
            ))),
            _ => Poll::Ready(Ok(true)),
        }
    }

    fn drop_unwanted(&self, head: usize, out: &mut Outgoing) {
        let Some(name) = self.unwanted else { return };
        let bytes = out.since(head);
        if let Some(begin) = memchr::memmem::find(bytes, name) {
            // The line end before the name goes, the one behind the value stays.
            let length = memchr::memmem::find(&bytes[begin + 2..], b"\r\n").unwrap_or(0) + 2;
            out.replace(head + begin..head + begin + length, b"");
        }
    }
}

const LENGTH: &[u8] = b"\r\ncontent-length: ";
const CODING: &[u8] = b"\r\ntransfer-encoding: ";

/// RFC 9110 sections 15.2, 15.3.5 and 15.4.5.
fn has_no_body(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NoContent
        || status == StatusCode::NotModified
}

/// `response`, unless sending it would break the connection's framing: then a 500.
fn fit_to_send(response: Response) -> Response {
    let is_clean = |text: &str| !text.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0));
    let broken = response.iter().find(|(name, values)| {
        !is_token(name.as_str()) || !values.iter().all(|value| is_clean(value.as_str()))
    });
    if let Some((name, _)) = broken {
        log::error!("a handler has set a header field that cannot be sent: {:?}", name.as_str());
        return plain(StatusCode::InternalServerError);
    }
    if response.status().is_informational() && !upgrades(&response) {
        log::error!("a handler has answered with {}, which is no answer", response.status());
        return plain(StatusCode::InternalServerError);
    }
    response
}

/// A field name (RFC 9110 section 5.6.2).
fn is_token(name: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_tchar)
}

/// Sets the body without letting http-types invent a content type for it.
fn keep_headers(response: &mut Response, body: Body) {
    use http_types::headers::CONTENT_TYPE;
    let had_type = response.header(CONTENT_TYPE).is_some();
    response.set_body(body);
    if !had_type {
        response.remove_header(CONTENT_TYPE);
    }
}
