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
use futures_lite::{AsyncBufRead, AsyncRead};
use http_types::headers::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, TRAILER, TRANSFER_ENCODING,
};
use http_types::other::Date;
use http_types::{Body, Method, Response, StatusCode, Version};

use super::body::is_token_byte;
use super::head;
use super::outgoing::Outgoing;
use super::trailers::{LAST_CHUNK, Trailers};

/// A response on its way to the client.
pub(crate) struct Reply {
    /// The response, until its head is encoded.
    response: Option<Response>,
    /// Encodes the body behind the head.
    encoder: Option<Encoder>,
    /// The body, if it is long and of known length. Then it needs no encoding.
    body: Option<Box<Body>>,
    /// Set if the body is to be gathered, because its reader does not have it in one place, or
    /// because the stream is wrapped.
    is_piecemeal: bool,
    asked: Asked,
    framing: Framing,
    /// A field that the encoder adds and that must not be sent.
    unwanted: Option<&'static [u8]>,
    /// The error of the body's reader from `poll_begin`. It is reported only after the head has
    /// been encoded.
    failed: Option<io::Error>,
    /// Set if the response is the connection's last one, as the handler or the server wants it.
    closes: bool,
}

/// How the client finds the end of the body (RFC 9112 section 6.3).
enum Framing {
    /// There is no body (rule W11).
    None,
    /// The head says the length. This many bytes of the body are still to be sent.
    Length(u64),
    /// The body comes in chunks. Trailers may follow the last chunk.
    Chunked(Option<Trailers>),
    /// The body ends with the connection, because HTTP/1.0 knows no chunks (rule W8).
    UntilClose,
}

impl Framing {
    fn of(response: &mut Response, asked: Asked) -> Self {
        let trailers = Trailers::promised(response, asked);
        if asked.method == Method::Head || has_no_body(response.status()) {
            return Self::None;
        }
        match response.len() {
            Some(length) => Self::Length(length as u64),
            None if asked.version == Version::Http1_0 => Self::UntilClose,
            None => Self::Chunked(trailers),
        }
    }

    /// Returns how many bytes of a body of known length are still to be sent.
    fn owed(&self) -> usize {
        match self {
            Self::Length(owed) => usize::try_from(*owed).unwrap_or(usize::MAX),
            Self::None | Self::Chunked(_) | Self::UntilClose => 0,
        }
    }

    /// Notes that `n` bytes of the body have been sent.
    fn count(&mut self, n: usize) {
        if let Self::Length(owed) = self {
            *owed = owed.saturating_sub(n as u64);
        }
    }
}

/// Says what has become of the wish for more of a response.
pub(super) enum Filled {
    /// Something was added.
    More,
    /// There is a slice to be sent from where it lies.
    Slice,
    /// There is no more.
    Whole,
}

/// Holds what of the request decides how it is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) version: Version,
    /// Set if the client accepts trailers.
    pub(crate) accepts_trailers: bool,
}

impl Asked {
    pub(crate) fn by(head: &head::Head) -> Self {
        Self { method: head.method, version: head.version, accepts_trailers: head.accepts_trailers }
    }
}

/// Returns `true` if `response` hands the connection over to another protocol (RFC 9110 section
/// 7.8).
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

/// Sets `Date` (RFC 9110 section 6.6.1), which each thread writes out once a second.
fn set_date(response: &mut Response) {
    thread_local! {
        static NOW: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    NOW.with_borrow_mut(|(of, date)| {
        if *of != second || date.is_empty() {
            (*of, *date) = (second, Date::new(now).value().to_string());
        }
        response.insert_header(DATE, date.as_str());
    });
}

impl Reply {
    /// Prepares `response`, by which the connection may go on unless it says otherwise.
    pub(crate) fn new(mut response: Response, asked: Asked) -> Self {
        let fields = Fields::of(&response).unwrap_or_else(|problem| {
            log::error!("a handler has {problem}");
            response = plain(StatusCode::InternalServerError);
            Fields::default()
        });
        let status = response.status();
        if fields.framing {
            // The framing is ours to decide; a handler's own idea of it would contradict it.
            response.remove_header(TRANSFER_ENCODING);
            let declared = response.remove_header(CONTENT_LENGTH);
            let has_no_body = asked.method == Method::Head || has_no_body(status);
            if has_no_body && response.len() == Some(0) {
                // HEAD and 304 may tell the length of the body that GET would have (RFC 9110 8.6).
                let length = declared.and_then(|length| length.as_str().trim().parse().ok());
                if length.is_some() {
                    keep_headers(&mut response, nothing(length));
                }
            }
        }

        let framing = Framing::of(&mut response, asked);
        if fields.trailer && !matches!(framing, Framing::Chunked(Some(_))) {
            // Without trailers, the field would be wrong (RFC 9110 section 6.6.2).
            response.remove_header(TRAILER);
        }
        let is_open_ended = matches!(framing, Framing::UntilClose);
        if is_open_ended {
            // A length that is never reached, and never sent. The encoder then sends no chunks.
            let reader = response.take_body().into_reader();
            keep_headers(&mut response, Body::from_reader(reader, Some(usize::MAX)));
        }
        // Rule W11. A 304 for a page of unknown length must not claim that it is empty.
        let (added, is_unwanted) = match response.len() {
            Some(0) if status == StatusCode::NotModified => (LENGTH, true),
            Some(_) if status == StatusCode::NotModified => (LENGTH, false),
            Some(_) => (LENGTH, is_open_ended || has_no_body(status)),
            None => (CODING, has_no_body(status) || asked.version == Version::Http1_0),
        };
        let is_long = matches!(framing, Framing::Length(length) if length >= LONG);
        let body = is_long.then(|| {
            let nothing = nothing(response.len());
            let body = response.take_body();
            keep_headers(&mut response, nothing);
            Box::new(body)
        });
        if !fields.date {
            set_date(&mut response);
        }
        Self {
            response: Some(response),
            encoder: None,
            body,
            is_piecemeal: false,
            asked,
            closes: fields.close || is_open_ended,
            framing,
            unwanted: is_unwanted.then_some(added),
            failed: None,
        }
    }

    /// Tells the client that the connection ends (rule S9); before the response is encoded.
    pub(crate) fn announce_close(&mut self) {
        self.closes = true;
    }

    /// Returns `true` if the connection may be used for another response.
    pub(crate) fn allows_another(&self) -> bool {
        !self.closes
    }

    /// Returns `true` if a body goes with the response (rule W11). That body may be made of the
    /// request's.
    pub(crate) fn has_body(&self) -> bool {
        !matches!(self.framing, Framing::None)
    }

    /// Returns `true` if only the end of the connection tells where the body ends.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self.framing, Framing::UntilClose)
    }

    /// Gathers the body from now on, wherever it lies.
    pub(super) fn gather(&mut self) {
        self.is_piecemeal = true;
    }

    /// Polls the body for its first bytes, and consumes none of them.
    pub(super) fn poll_begin(&mut self, cx: &mut Context<'_>) {
        let begun = match (&mut self.body, &mut self.response) {
            (Some(body), _) => Pin::new(&mut **body).poll_fill_buf(cx).map_ok(drop),
            (None, Some(response)) => Pin::new(response).poll_fill_buf(cx).map_ok(drop),
            (None, None) => return,
        };
        if let Poll::Ready(Err(error)) = begun {
            self.failed = Some(error);
        }
    }

    /// Adds some of the response to `out`, or tells why there is nothing to add.
    ///
    /// # Errors
    ///
    /// The error of the body's reader, or `UnexpectedEof` if the body is shorter than declared. The
    /// client must not take what it got for the whole.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing,
    ) -> Poll<io::Result<Filled>> {
        let Some(response) = self.response.take() else { return self.poll_fill_body(cx, out) };
        let mut encoder = self.encoder(response);
        let begin = out.len();
        // The encoder has the whole head in memory, and gives head and body in separate reads. No
        // value holds a line end.
        while !out.since(begin).ends_with(b"\r\n\r\n") {
            let n = ready!(Pin::new(&mut encoder).poll_read(cx, out.room()))?;
            out.filled(n);
        }
        self.encoder = Some(encoder);
        self.drop_unwanted(begin, out);
        Poll::Ready(Ok(Filled::More))
    }

    fn poll_fill_body(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing,
    ) -> Poll<io::Result<Filled>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if !ready!(self.poll_slice(cx))?.is_empty() {
            return Poll::Ready(Ok(Filled::Slice));
        }
        if let Framing::Chunked(Some(trailers)) = &mut self.framing {
            if trailers.are_due {
                let last = ready!(trailers.poll_end(cx));
                let end = out.len();
                out.replace(end..end, &last);
                return Poll::Ready(Ok(Filled::Whole));
            }
        }
        let owed = self.framing.owed();
        let room = out.room();
        let n = ready!(match (&mut self.body, &mut self.encoder) {
            (Some(body), _) => {
                // The body itself does not count what was sent from where it lay.
                let most = room.len().min(owed);
                Pin::new(&mut **body).poll_read(cx, &mut room[..most])
            }
            (None, Some(encoder)) => Pin::new(encoder).poll_read(cx, room),
            (None, None) => unreachable!("the head goes first"),
        })?;
        // The encoder writes one chunk for each read, and only the last chunk's size begins with 0.
        if let (Framing::Chunked(Some(trailers)), LAST_CHUNK) = (&mut self.framing, &room[..n]) {
            // The bytes stay out of `out`, because the trailers have to come before the blank line.
            trailers.are_due = true;
            return self.poll_fill_body(cx, out);
        }
        out.filled(n);
        self.framing.count(n);
        Poll::Ready(match (&self.framing, n) {
            (Framing::Length(0), _) => Ok(Filled::Whole),
            (Framing::Length(_), 0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the response body is shorter than its declared length",
            )),
            (_, 0) => Ok(Filled::Whole),
            _ => Ok(Filled::More),
        })
    }

    /// Returns the next bytes of a long body where they lie in memory; none if the body has to be
    /// gathered.
    pub(super) fn poll_slice(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let owed = self.framing.owed();
        let Some(body) = self.body.as_mut().filter(|_| !self.is_piecemeal) else {
            return Poll::Ready(Ok(&[]));
        };
        let slice = ready!(Pin::new(&mut **body).poll_fill_buf(cx))?;
        if slice.len() < owed.min(LONG as usize) {
            // From now on, as its reader may have a better way to give more at once.
            self.is_piecemeal = true;
            return Poll::Ready(Ok(&[]));
        }
        Poll::Ready(Ok(&slice[..slice.len().min(owed)]))
    }

    /// Notes that `n` bytes of the slice have been sent. Returns `true` if that was the rest of the
    /// body.
    pub(super) fn sent(&mut self, n: usize) -> bool {
        if let Some(body) = &mut self.body {
            Pin::new(&mut **body).consume(n);
        }
        self.framing.count(n);
        self.framing.owed() == 0
    }

    fn encoder(&self, mut response: Response) -> Encoder {
        let connection = match response.status() {
            StatusCode::SwitchingProtocols => Some("upgrade"),
            _ if self.closes => Some("close"),
            _ if self.asked.version == Version::Http1_0 => Some("keep-alive"),
            _ => None,
        };
        if let Some(connection) = connection {
            response.insert_header(CONNECTION, connection);
        }
        // For HEAD the encoder stops behind the head.
        let is_whole = self.has_body() && self.body.is_none();
        Encoder::new(response, if is_whole { self.asked.method } else { Method::Head })
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

/// From how many bytes on a body is sent from where it lies, if that is one place in memory;
/// shorter ones are gathered with what is to be sent before and behind them.
const LONG: u64 = 16 * 1024;

const LENGTH: &[u8] = b"\r\ncontent-length: ";
const CODING: &[u8] = b"\r\ntransfer-encoding: ";

/// RFC 9110 sections 15.2, 15.3.5 and 15.4.5.
pub(super) fn has_no_body(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NoContent
        || status == StatusCode::NotModified
}

/// Holds what is to be known of a response's fields before it is sent.
#[derive(Default)]
struct Fields {
    /// There is a `Date`.
    date: bool,
    /// There is a `Content-Length` or a `Transfer-Encoding`.
    framing: bool,
    /// There is a `Trailer`.
    trailer: bool,
    /// The connection is to be closed.
    close: bool,
}

impl Fields {
    /// Looks at each field once.
    ///
    /// # Errors
    ///
    /// Says what the handler has done if sending the response would break the connection's framing.
    fn of(response: &Response) -> Result<Self, String> {
        let mut fields = Self::default();
        for (name, values) in response {
            let name = name.as_str();
            if !is_token(name) || !values.iter().all(|value| is_clean(value.as_str())) {
                return Err(format!("set a header field that cannot be sent: {name:?}"));
            }
            match name {
                "date" => fields.date = true,
                "content-length" | "transfer-encoding" => fields.framing = true,
                "trailer" => fields.trailer = true,
                "connection" => {
                    let mut options = values.iter().flat_map(|line| line.as_str().split(','));
                    fields.close = options.any(|o| o.trim().eq_ignore_ascii_case("close"));
                }
                _ => {}
            }
        }
        if response.status().is_informational() && !upgrades(response) {
            return Err(format!("answered with {}, which is no answer", response.status()));
        }
        Ok(fields)
    }
}

/// Returns `true` if a field may have this value (RFC 9110 section 5.5).
pub(super) fn is_clean(value: &str) -> bool {
    !value.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0))
}

/// Returns `true` if a field may have this name (RFC 9110 section 5.1).
pub(super) fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_token_byte)
}

/// Makes an empty body that declares a length.
fn nothing(length: Option<usize>) -> Body {
    Body::from_reader(futures_lite::io::empty(), length)
}

/// Sets the body without letting http-types invent a content type for it.
fn keep_headers(response: &mut Response, body: Body) {
    let had_type = response.header(CONTENT_TYPE).is_some();
    response.set_body(body);
    if !had_type {
        response.remove_header(CONTENT_TYPE);
    }
}
