//! Makes http-types' request from a head and the body behind it.
//!
//! Invariant: a handler gets the client's own method, target, fields and body, and nothing that the
//! client did not send. The server reserves no memory for bytes that a client only declares (rule
//! W14). async-h1 decodes the body behind a head that the gate writes, so that async-h1's bounds on
//! heads, its reading of URLs and the content type that it adds do not reach the handler.

use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use async_h1::server::decode;
use futures_lite::{AsyncBufRead, AsyncRead, AsyncWrite};
use http_types::headers::Headers;
use http_types::{Body, Request, StatusCode};

use super::body::Framing;
use super::fault::Lost;
use super::field::header_name;
use super::head::Head;
use super::shared::Wire;
use super::target::url;
use crate::stop::seat::Seat;
use crate::stream::transport::{Transport, sign_local};

/// Makes the request of the message under way, whose head is `head`. `scheme` is the scheme of the
/// connection.
///
/// # Errors
///
/// Returns 400 if no URL says what the client has asked for.
pub(super) fn request(head: &Head, wire: &Arc<Wire>, scheme: &str) -> Result<Request, StatusCode> {
    // `with_body` locks the wire, too, so it comes before the lock here.
    let with_body = with_body(head.framing, wire);
    let shared = wire.lock();
    let bytes = shared.incoming.message();
    let url = url(scheme, head.host(bytes), head.target(bytes))?;
    let mut request = match with_body {
        Some(mut request) => {
            request.set_method(head.method);
            *request.url_mut() = url;
            request
        }
        None => Request::new(head.method, url),
    };
    if head.framing != Framing::Chunked {
        // Without chunks there are no trailers, so a handler that asks for trailers learns this at
        // once.
        drop(request.send_trailers());
    }
    request.set_version(Some(head.version));
    if head.lines > FEW {
        EMPTY_WITH_ROOM.with(|empty| request.as_mut().clone_from(empty));
    }
    for (name, value) in head.fields(bytes) {
        append(&mut request, name, &value);
    }
    Ok(request)
}

/// The number of fields for which http-types' map makes room when the map gets its first field.
const FEW: usize = 3;

thread_local! {
    /// An empty map with room for 14 fields. Without this room, the map of a browser's head grows
    /// twice, and hashes each name again.
    ///
    /// http-types has no function that reserves room. But a map keeps the room of fields that were
    /// removed, and a clone of a map has as much room as the map.
    static EMPTY_WITH_ROOM: Headers = {
        let mut fields = http_types::Trailers::new();
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        for name in names {
            fields.insert(name, "");
        }
        for name in names {
            fields.remove(name);
        }
        (*fields).clone()
    };
}

/// Adds a field behind those of the same name. http-types' own `append_header` costs more, because
/// it looks for the name first, and for this copies it and hashes it twice.
fn append(request: &mut Request, name: &str, value: &str) {
    let Some(mut values) = request.insert_header(header_name(name), value) else { return };
    if let Some(inserted) = request.header_mut(header_name(name)) {
        values.append(inserted);
        *inserted = values;
    }
}

/// Sets in `request` the address of its client, and the address to which the client has connected.
pub(super) fn set_addresses(request: &mut Request, seat: &Seat, transport: Option<&Transport>) {
    seat.peer().sign(request);
    if let Some((_, text)) = seat.only_local() {
        return request.set_local_addr(Some(&**text));
    }
    let local = seat.local_addr().or_else(|| {
        // The kernel is asked once a connection.
        seat.set_local_addr(transport?.local_addr()?);
        seat.local_addr()
    });
    if let Some(local) = local {
        sign_local(local, request);
    }
}

/// Makes a request that has the body of the message under way, and nothing else. Returns `None` if
/// the message has no body.
fn with_body(framing: Framing, wire: &Arc<Wire>) -> Option<Request> {
    let (head, length) = match framing {
        Framing::Empty | Framing::Fixed(0) => return None,
        Framing::Fixed(length) => {
            (WITH_LENGTH, usize::try_from(length).ok().filter(|length| *length <= RESERVED))
        }
        Framing::Chunked => (IN_CHUNKS, None),
    };
    let body_key = wire.lock().body_key;
    let message = Message { head, wire: wire.clone(), body_key };
    // Decoding never waits, because the head is in memory (rule W2). The body is read later,
    // through the request. The future lives on the stack, because its 4 KiB would be most of an
    // active connection's memory.
    let decoding = pin!(decode(message));
    let decoded = decoding.poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Ok(Some((mut request, _reader)))) = decoded else {
        unreachable!("async-h1 decodes a constant head");
    };
    let reader = request.take_body().into_reader();
    request.set_body(Body::from_reader(Content::Open(reader), length));
    // The fields of the canonical head are not the client's.
    mem::swap(request.as_mut(), &mut *http_types::Trailers::new());
    Some(request)
}

/// The head of a body of known length. The gate bounds such a body itself, so async-h1 need not
/// count. Without a content type, http-types would write one each time that a body is set.
const WITH_LENGTH: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\nContent-Type: t\r\n\
    Content-Length: 18446744073709551615\r\n\r\n";

/// The head of a body in chunks.
const IN_CHUNKS: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\nContent-Type: t\r\n\
    Transfer-Encoding: chunked\r\n\r\n";

/// The longest body, in bytes, whose length the request tells. http-types reserves memory for the
/// whole length when a handler asks for a string, so a length that a client only declares must not
/// matter (rule W14). A connection's read buffer may grow to this size anyway.
const RESERVED: usize = 16 * 1024;

/// One message, as async-h1 reads it: a head, then the client's body.
#[derive(Clone)]
struct Message {
    /// The part of the head that async-h1 has yet to read.
    head: &'static [u8],
    wire: Arc<Wire>,
    body_key: u32,
}

impl AsyncRead for Message {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if !self.head.is_empty() {
            let (now, later) = self.head.split_at(self.head.len().min(buf.len()));
            buf[..now.len()].copy_from_slice(now);
            self.head = later;
            return Poll::Ready(Ok(now.len()));
        }
        self.wire.poll_read(self.body_key, cx, buf)
    }
}

/// Refuses to write, because async-h1 would write only `100 Continue`, which the gate sends itself
/// (rule W7).
impl AsyncWrite for Message {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A body as async-h1 decodes it. When a read fails, async-h1's decoder is dropped, so that a
/// handler that waits for the trailers learns that there are none.
enum Content {
    Open(Box<dyn AsyncBufRead + Unpin + Send + Sync>),
    Failed(Lost),
}

impl Content {
    fn reader(&mut self) -> io::Result<Pin<&mut (dyn AsyncBufRead + Unpin + Send + Sync)>> {
        match self {
            Self::Open(reader) => Ok(Pin::new(reader)),
            Self::Failed(lost) => Err(lost.error()),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        *self = Self::Failed(Lost::by(error));
    }
}

impl AsyncRead for Content {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(self.reader()?.poll_read(cx, buf));
        Poll::Ready(read.inspect_err(|error| self.fail(error)))
    }
}

impl AsyncBufRead for Content {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if let Err(error) = ready!(this.reader()?.poll_fill_buf(cx)) {
            this.fail(&error);
            return Poll::Ready(Err(error));
        }
        // The decoder's buffer holds bytes, or the body has ended, so this does not wait.
        this.reader()?.poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        if let Ok(reader) = self.reader() {
            reader.consume(amount);
        }
    }
}
