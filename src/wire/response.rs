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
use super::response_head::{Fields, Line, write_head};
use super::trailers::{LAST_CHUNK, Trailers};

/// A response on its way to the client.
pub(crate) struct Reply {
    /// The response, until the encoder has it.
    response: Option<Response>,
    /// Encodes a body in chunks. The encoder is in a box, because most replies have none.
    encoder: Option<Box<Encoder>>,
    /// Set once the head is among the bytes.
    has_head: bool,
    /// Set if the body goes through the output, because it is short, because its reader does not
    /// have it in one place, or because the stream is wrapped.
    is_piecemeal: bool,
    asked: Asked,
    framing: ReplyFraming,
    /// The field by which the head frames the body, if there is one.
    framing_line: Option<Line>,
    /// The facts about the fields that the handler has set.
    fields: Fields,
    /// The error of a body that has failed before the response began. The reply returns the error
    /// only after it has encoded the head.
    failed: Option<io::Error>,
    /// Set if the handler or the server wants the response to be the connection's last one.
    closes: bool,
}

/// The way in which the client finds the end of the body (RFC 9112 section 6.3).
enum ReplyFraming {
    /// There is no body (rule W11).
    None,
    /// The head says the length. This many bytes of the body are still to be sent.
    Length(u64),
    /// The body comes in chunks. Trailers may follow the last chunk.
    Chunked(Option<Trailers>),
    /// The body ends with the connection, because HTTP/1.0 knows no chunks (rule W8).
    UntilClose,
}

impl ReplyFraming {
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
        let framing = ReplyFraming::of(&mut response, asked);
        let is_open_ended = matches!(framing, ReplyFraming::UntilClose);
        // HEAD and 304 may tell the length of the body that GET would have (RFC 9110 section 8.6).
        // In all other cases the server decides the framing, and a length of the handler's could
        // contradict it.
        let declared = match (&framing, response.len()) {
            (ReplyFraming::None, Some(0)) => fields.declared_length,
            _ => None,
        };
        let length = declared.or(response.len().map(|length| length as u64));
        // Rule W11: a 304 for a page of unknown length must not claim that the page is empty.
        let framing_line = match length {
            Some(0) if status == StatusCode::NotModified => None,
            Some(length) if status == StatusCode::NotModified => Some(Line::Length(length)),
            _ if has_no_body(status) => None,
            Some(length) => Some(Line::Length(length)),
            None if asked.version == Version::Http1_0 => None,
            None => Some(Line::Chunked),
        };
        // Without trailers, a `Trailer` field would be wrong (RFC 9110 section 6.6.2).
        fields.trailer &= matches!(framing, ReplyFraming::Chunked(Some(_)));
        let is_long = matches!(framing, ReplyFraming::Length(length) if length >= LONG);
        Self {
            response: Some(response),
            encoder: None,
            has_head: false,
            is_piecemeal: !is_long,
            asked,
            closes: fields.close || is_open_ended,
            framing,
            framing_line,
            fields,
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
        !matches!(self.framing, ReplyFraming::None)
    }

    /// Returns `true` if only the end of the connection tells where the body ends.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self.framing, ReplyFraming::UntilClose)
    }

    /// Returns the status, and `None` once a chunk has been encoded.
    pub(super) fn status(&self) -> Option<StatusCode> {
        self.response.as_ref().map(Response::status)
    }

    /// Gathers the body from now on, even if it lies in one place in memory.
    pub(super) fn gather(&mut self) {
        self.is_piecemeal = true;
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
                    self.framing_line,
                    out,
                );
            }
            out.end_head();
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        match &self.framing {
            ReplyFraming::None | ReplyFraming::Length(0) => Poll::Ready(Ok(Filled::Whole)),
            ReplyFraming::Length(_) | ReplyFraming::UntilClose => self.poll_fill_plain(cx, out),
            ReplyFraming::Chunked(_) => self.poll_fill_chunk(cx, out),
        }
    }

    /// Adds some of a body that needs no encoding.
    fn poll_fill_plain(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing,
    ) -> Poll<io::Result<Filled>> {
        if !ready!(self.poll_slice(cx))?.is_empty() {
            return Poll::Ready(Ok(Filled::Slice));
        }
        let Some(response) = &mut self.response else { return Poll::Ready(Ok(Filled::Whole)) };
        let room = out.room();
        // The body's own bound leaves out the slices that were sent from where they lay.
        let most = match self.framing {
            ReplyFraming::Length(_) => room.len().min(self.framing.owed()),
            _ => room.len(),
        };
        let n = ready!(Pin::new(response).poll_read(cx, &mut room[..most]))?;
        out.filled(n);
        self.framing.count(n);
        Poll::Ready(match (&self.framing, n) {
            (ReplyFraming::Length(0), _) => Ok(Filled::Whole),
            (ReplyFraming::Length(_), 0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the response body is shorter than its declared length",
            )),
            (_, 0) => Ok(Filled::Whole),
            _ => Ok(Filled::More),
        })
    }

    /// Adds a chunk that async-h1 has encoded.
    fn poll_fill_chunk(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Outgoing,
    ) -> Poll<io::Result<Filled>> {
        if let ReplyFraming::Chunked(Some(trailers)) = &mut self.framing {
            if trailers.are_due {
                out.append(&ready!(trailers.poll_end(cx)));
                return Poll::Ready(Ok(Filled::Whole));
            }
        }
        let room = out.room();
        if let Some(response) = self.response.take() {
            self.encoder = Some(Box::new(body_encoder(response, room)?));
        }
        let Some(encoder) = &mut self.encoder else { return Poll::Ready(Ok(Filled::Whole)) };
        let n = ready!(Pin::new(&mut **encoder).poll_read(cx, room))?;
        // The encoder writes one chunk for each read, and only the last chunk's size begins with 0.
        if let (ReplyFraming::Chunked(Some(trailers)), LAST_CHUNK) = (&mut self.framing, &room[..n])
        {
            // These bytes are not added to `out`, because the trailers have to come before the
            // blank line.
            trailers.are_due = true;
            return self.poll_fill_chunk(cx, out);
        }
        out.filled(n);
        Poll::Ready(Ok(if n == 0 { Filled::Whole } else { Filled::More }))
    }

    /// Returns the next bytes of a long body from where they lie in memory. Returns no bytes if the
    /// body has to be gathered.
    pub(super) fn poll_slice(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let owed = self.framing.owed();
        let Some(response) = self.response.as_mut().filter(|_| !self.is_piecemeal) else {
            return Poll::Ready(Ok(&[]));
        };
        let slice = ready!(Pin::new(response).poll_fill_buf(cx))?;
        if slice.len() < owed.min(LONG as usize) {
            // The rest is gathered, because `poll_read` of the body's reader may give more at once.
            self.is_piecemeal = true;
            return Poll::Ready(Ok(&[]));
        }
        Poll::Ready(Ok(&slice[..slice.len().min(owed)]))
    }

    /// Notes that `n` bytes of the slice have been sent. Returns `true` if the body is then
    /// complete.
    pub(super) fn sent(&mut self, n: usize) -> bool {
        if let Some(response) = &mut self.response {
            Pin::new(response).consume(n);
        }
        self.framing.count(n);
        self.framing.owed() == 0
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
const LONG: u64 = 16 * 1024;

#[cfg(test)]
mod tests;
