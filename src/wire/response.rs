//! [`Reply`]: turns an http-types response into bytes. The head is the gate's own, and async-h1
//! encodes the body if it needs encoding.
//!
//! Invariant: the bytes are one well-formed message whose end the client finds as the server means
//! it (RFC 9112 section 6.3), or the reply fails and the connection must not be used again. Sends
//! nothing. The caller decides whether the connection goes on.

use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use async_h1::server::Encoder;
use futures_lite::{AsyncBufRead, AsyncRead};
use http_types::{Method, Response, StatusCode, Version};

use super::asked::{Asked, has_no_body};
use super::outgoing::Outgoing;
pub(crate) use super::response_head::upgrades;
use super::response_head::{Fields, FramingField, write_head};
use super::trailers::{LAST_CHUNK, Trailers};

/// A response on its way to the client.
pub(crate) struct Reply {
    /// `None` once the encoder of chunks has the response.
    response: Option<Response>,
    asked: Asked,
    /// The facts about the fields that the handler has set.
    fields: Fields,
    framing_field: Option<FramingField>,
    /// Set if the handler or the server wants the response to be the connection's last one.
    closes: bool,
    /// Set once the head is among the bytes.
    has_head: bool,
    body: ReplyBody,
    /// The error of a body that has failed before the response began. The reply returns the error
    /// only after it has encoded the head.
    failed: Option<io::Error>,
}

/// The part of a response's body that is still to be sent, and the way in which the client finds
/// the end of the body (RFC 9112 section 6.3).
enum ReplyBody {
    /// There is no body (rule W11).
    None,
    /// The head says the length. This many bytes are left.
    Length {
        left: u64,
        /// Set if the bytes are sent from where they lie in memory. Otherwise the output gathers
        /// them, because they are few, because their reader does not have them in one place, or
        /// because the stream is wrapped.
        in_place: bool,
    },
    /// The body comes in chunks. Trailers may follow the last chunk.
    Chunked {
        /// `None` before the first chunk. The encoder is in a box, because most replies have none.
        encoder: Option<Box<Encoder>>,
        trailers: Option<Trailers>,
    },
    /// The body ends with the connection, because HTTP/1.0 knows no chunks (rule W8).
    UntilClose,
}

impl ReplyBody {
    fn of(response: &mut Response, asked: Asked) -> Self {
        let trailers = Trailers::promised(response, asked);
        if asked.method == Method::Head || has_no_body(response.status()) {
            return Self::None;
        }
        match response.len() {
            Some(length) => Self::Length { left: length as u64, in_place: length >= LONG },
            None if asked.version == Version::Http1_0 => Self::UntilClose,
            None => Self::Chunked { encoder: None, trailers },
        }
    }

    /// Returns how many bytes of a body of known length are still to be sent.
    fn left(&self) -> usize {
        match self {
            Self::Length { left, .. } => usize::try_from(*left).unwrap_or(usize::MAX),
            Self::None | Self::Chunked { .. } | Self::UntilClose => 0,
        }
    }

    fn is_in_place(&self) -> bool {
        matches!(self, Self::Length { in_place: true, .. })
    }

    /// Lets the output gather the rest of the body.
    fn gather(&mut self) {
        if let Self::Length { in_place, .. } = self {
            *in_place = false;
        }
    }

    /// Notes that `n` bytes of the body have been sent.
    fn count(&mut self, n: usize) {
        if let Self::Length { left, .. } = self {
            *left = left.saturating_sub(n as u64);
        }
    }
}

/// The result of [`Reply::poll_fill`].
pub(super) enum Filled {
    /// Bytes were added to the output.
    More,
    /// The caller has to send a slice from where it lies ([`Reply::poll_slice`]).
    Slice,
    /// The response is whole.
    Whole,
}

/// Returns the response for a request that failed before or in its handler. The response has the
/// status, and no internals.
pub(crate) fn plain(status: StatusCode) -> Response {
    let mut response = Response::new(status);
    if !has_no_body(status) {
        response.set_body(format!("{}\n", status.canonical_reason()));
    }
    response
}

impl Reply {
    /// Prepares `response`. The connection may go on behind it, unless its fields or its framing
    /// say otherwise.
    pub(crate) fn new(mut response: Response, asked: Asked) -> Self {
        let mut fields = Fields::of(&response).unwrap_or_else(|problem| {
            log::error!("a handler has {problem}");
            response = plain(StatusCode::InternalServerError);
            Fields::default()
        });
        let status = response.status();
        let body = ReplyBody::of(&mut response, asked);
        // HEAD and 304 may tell the length of the body that GET would have (RFC 9110 section 8.6).
        // In all other cases the server decides the framing, and a length of the handler's could
        // contradict it.
        let declared = match (&body, response.len()) {
            (ReplyBody::None, Some(0)) => fields.declared_length,
            _ => None,
        };
        let length = declared.or(response.len().map(|length| length as u64));
        // Rule W11: a 304 for a page of unknown length must not claim that the page is empty.
        let framing_field = match length {
            Some(0) if status == StatusCode::NotModified => None,
            Some(length) if status == StatusCode::NotModified => Some(FramingField::Length(length)),
            _ if has_no_body(status) => None,
            Some(length) => Some(FramingField::Length(length)),
            None if asked.version == Version::Http1_0 => None,
            None => Some(FramingField::Chunked),
        };
        // Without trailers, a `Trailer` field would be wrong (RFC 9110 section 6.6.2).
        fields.trailer &= matches!(body, ReplyBody::Chunked { trailers: Some(_), .. });
        Self {
            response: Some(response),
            asked,
            closes: fields.close || matches!(body, ReplyBody::UntilClose),
            fields,
            framing_field,
            has_head: false,
            body,
            failed: None,
        }
    }

    /// Lets the response tell the client that the connection ends (rule S9). Call this before the
    /// response is encoded.
    pub(crate) fn announce_close(&mut self) {
        self.closes = true;
    }

    /// Returns `true` if the connection may be used for another response.
    pub(crate) fn allows_another(&self) -> bool {
        !self.closes
    }

    /// Returns `true` if a body goes with the response (rule W11). The response's body may be made
    /// of the request's.
    pub(crate) fn has_body(&self) -> bool {
        !matches!(self.body, ReplyBody::None)
    }

    /// Returns `true` if only the end of the connection tells where the body ends.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self.body, ReplyBody::UntilClose)
    }

    /// Returns the status, and `None` once a chunk has been encoded.
    pub(super) fn status(&self) -> Option<StatusCode> {
        self.response.as_ref().map(Response::status)
    }

    /// Gathers the body from now on, even if it lies in one place in memory.
    pub(super) fn gather(&mut self) {
        self.body.gather();
    }

    /// Polls the body for its first bytes, and consumes none of them.
    pub(super) fn poll_begin(&mut self, cx: &mut Context<'_>) {
        let Some(response) = &mut self.response else { return };
        if let Poll::Ready(Err(error)) = Pin::new(response).poll_fill_buf(cx) {
            self.fail(error);
        }
    }

    /// Ends the response with `error` behind its head, whatever its body still holds.
    pub(super) fn fail(&mut self, error: io::Error) {
        self.failed = Some(error);
    }

    /// Adds a part of the response to `out`, or returns why there is nothing to add.
    ///
    /// # Errors
    ///
    /// Returns the error of the body's reader, or `UnexpectedEof` if the body is shorter than
    /// declared. The client must not take what it got for the whole.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing,
    ) -> Poll<io::Result<Filled>> {
        if !mem::replace(&mut self.has_head, true) {
            if let Some(response) = &self.response {
                write_head(
                    response,
                    &self.fields,
                    self.connection(response),
                    self.framing_field,
                    out,
                );
            }
            out.end_head();
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        match &self.body {
            ReplyBody::None | ReplyBody::Length { left: 0, .. } => Poll::Ready(Ok(Filled::Whole)),
            ReplyBody::Length { .. } => self.poll_fill_by_length(cx, out),
            ReplyBody::UntilClose => self.poll_fill_until_close(cx, out),
            ReplyBody::Chunked { .. } => self.poll_fill_chunk(cx, out),
        }
    }

    /// Adds some of a body of known length.
    fn poll_fill_by_length(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing,
    ) -> Poll<io::Result<Filled>> {
        if !ready!(self.poll_slice(cx))?.is_empty() {
            return Poll::Ready(Ok(Filled::Slice));
        }
        let Some(response) = &mut self.response else { return Poll::Ready(Ok(Filled::Whole)) };
        let room = out.room();
        // http-types bounds the body, too, but does not count the slices that were sent in place.
        let most = room.len().min(self.body.left());
        let n = ready!(Pin::new(response).poll_read(cx, &mut room[..most]))?;
        if n == 0 {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the response body is shorter than its declared length",
            )));
        }
        out.filled(n);
        self.body.count(n);
        Poll::Ready(Ok(if self.body.left() == 0 { Filled::Whole } else { Filled::More }))
    }

    /// Adds some of a body that ends with the connection.
    fn poll_fill_until_close(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing,
    ) -> Poll<io::Result<Filled>> {
        let Some(response) = &mut self.response else { return Poll::Ready(Ok(Filled::Whole)) };
        let n = ready!(Pin::new(response).poll_read(cx, out.room()))?;
        out.filled(n);
        Poll::Ready(Ok(if n == 0 { Filled::Whole } else { Filled::More }))
    }

    /// Adds a chunk that async-h1 has encoded.
    fn poll_fill_chunk(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing,
    ) -> Poll<io::Result<Filled>> {
        let ReplyBody::Chunked { encoder, trailers } = &mut self.body else {
            return Poll::Ready(Ok(Filled::Whole));
        };
        if let Some(trailers) = trailers.as_mut().filter(|trailers| trailers.are_due) {
            out.append(&ready!(trailers.poll_end(cx)));
            return Poll::Ready(Ok(Filled::Whole));
        }
        let room = out.room();
        if let Some(response) = self.response.take() {
            *encoder = Some(Box::new(body_encoder(response, room)?));
        }
        let Some(encoder) = encoder else { return Poll::Ready(Ok(Filled::Whole)) };
        let n = ready!(Pin::new(&mut **encoder).poll_read(cx, room))?;
        // The encoder writes one chunk for each read, and only the last chunk's size begins with 0.
        if let (Some(trailers), LAST_CHUNK) = (trailers, &room[..n]) {
            // These bytes are not added to `out`, because the trailers have to come before the
            // blank line.
            trailers.are_due = true;
            return self.poll_fill_chunk(cx, out);
        }
        out.filled(n);
        Poll::Ready(Ok(if n == 0 { Filled::Whole } else { Filled::More }))
    }

    /// Returns the next bytes of a long body from where they lie in memory. Returns no bytes if the
    /// output has to gather the body.
    pub(super) fn poll_slice(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let left = self.body.left();
        let Some(response) = self.response.as_mut().filter(|_| self.body.is_in_place()) else {
            return Poll::Ready(Ok(&[]));
        };
        let slice = ready!(Pin::new(response).poll_fill_buf(cx))?;
        if slice.len() < left.min(LONG) {
            // `poll_read` of the body's reader may give more at once.
            self.body.gather();
            return Poll::Ready(Ok(&[]));
        }
        Poll::Ready(Ok(&slice[..slice.len().min(left)]))
    }

    /// Notes that `n` bytes of the slice have been sent. Returns `true` if the body is then
    /// complete.
    pub(super) fn sent(&mut self, n: usize) -> bool {
        if let Some(response) = &mut self.response {
            Pin::new(response).consume(n);
        }
        self.body.count(n);
        self.body.left() == 0
    }

    /// Returns the value of the server's own `Connection` field. With `None`, the handler's field
    /// is sent.
    fn connection(&self, response: &Response) -> Option<&'static str> {
        match response.status() {
            StatusCode::SwitchingProtocols => Some("upgrade"),
            _ if self.closes => Some("close"),
            _ if self.asked.version == Version::Http1_0 => Some("keep-alive"),
            _ => None,
        }
    }
}

/// Makes async-h1's encoder of the body of `response`. The gate has written a head, so the
/// encoder's head goes to `scrap`.
fn body_encoder(mut response: Response, scrap: &mut [u8]) -> io::Result<Encoder> {
    // Without the handler's fields, the encoder's head is a few short lines.
    mem::swap(response.as_mut(), &mut *http_types::Trailers::new());
    let mut encoder = Encoder::new(response, Method::Get);
    // The encoder has the whole head in memory, and returns head and body in separate reads.
    let cx = &mut Context::from_waker(Waker::noop());
    match Pin::new(&mut encoder).poll_read(cx, scrap) {
        Poll::Ready(Ok(n)) if scrap[..n].ends_with(b"\r\n\r\n") => Ok(encoder),
        Poll::Ready(Err(error)) => Err(error),
        _ => unreachable!("the encoder's head is in memory, and fits"),
    }
}

/// The least length, in bytes, of a body that is sent from where it lies, if it lies in one place
/// in memory. A shorter body is gathered with the bytes before and behind it.
const LONG: usize = 16 * 1024;

#[cfg(test)]
mod tests;
