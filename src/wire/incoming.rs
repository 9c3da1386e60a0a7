//! [`Incoming`]: the bytes that a client has sent, and how far the message under way has been
//! taken.
//!
//! Invariant: bytes behind the message stay in the buffer for the next one (rule W1); content goes
//! straight to the reader's buffer where nothing has been read ahead. The head stays in the buffer
//! until its exchange ends, for the drain report. Reads when asked, waits for nothing, sends
//! nothing.

use std::io;
use std::task::{Context, Poll, ready};

use http_types::StatusCode;

use super::body::{Chunked, Framing, Step};
use super::buffer::Buffer;
use super::fault::{BodyError, Lost};
use super::head::{EMPTY_LINES, Head};
use crate::transport::Transport;

/// A connection's read buffer, with the message at its beginning.
pub(crate) struct Incoming {
    /// Storage; what has been read ends at `end`.
    bytes: Buffer,
    /// Where the message under way begins.
    start: usize,
    /// Where its head ends, once that is known; `start` before.
    head_end: usize,
    /// The first byte that has not been taken.
    next: usize,
    /// Where the bytes end that have been read.
    end: usize,
    body: Body,
    /// Bytes of the message taken so far, head included.
    taken: u64,
    /// How far `Expect: 100-continue` has come.
    permission: Permission,
}

/// Says what is left of the body.
enum Body {
    /// This many bytes are left.
    Fixed(u64),
    /// Chunks. Those that have begun have `content` bytes. The reader has yet to see `frame`, the
    /// canonical framing in front of what comes next (rule W5).
    Chunked { decoder: Chunked, frame: Vec<u8>, content: u64, most: u64 },
    /// The rest cannot be read.
    Cut(Lost),
}

/// Says whether the client has been told to send the body (rule W7).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Permission {
    /// The client has not asked, or has been told.
    Settled,
    /// The client has asked, and nobody wants the body yet.
    Due,
    /// A reader waits for the body, so `100 Continue` is to be sent.
    Asked,
}

/// The rest of a message's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// The body was taken whole, or there was none.
    Nothing,
    /// At least this many bytes are left.
    AtLeast(u64),
    /// The rest cannot be discarded. It is malformed or cut short, or the client waits to be told
    /// to send the body, and may leave it out.
    Lost,
}

impl Rest {
    /// Returns `true` if the connection can go on behind the rest, as far as is known, when at most
    /// `most` bytes are discarded (rule W9).
    pub(crate) fn is_at_most(self, most: u64) -> bool {
        match self {
            Self::Nothing => true,
            Self::AtLeast(left) => left <= most,
            Self::Lost => false,
        }
    }
}

impl Incoming {
    /// Makes a buffer that begins with `empty` bytes of empty lines.
    pub(super) fn behind(empty: usize) -> Self {
        let mut bytes = Buffer::new();
        bytes[..empty].copy_from_slice(&EMPTY_LINES[..empty]);
        Self {
            bytes,
            start: 0,
            head_end: 0,
            next: 0,
            end: empty,
            body: Body::Fixed(0),
            taken: 0,
            permission: Permission::Settled,
        }
    }

    /// Returns what has been read and not taken.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.next..self.end]
    }

    /// Returns `true` if the unread bytes are the beginning of a request. Some clients send empty
    /// lines behind a request (RFC 9112 section 2.2).
    pub(super) fn has_request(&self) -> bool {
        !EMPTY_LINES.starts_with(self.unread())
    }

    /// Returns the message under way, as far as it is in the buffer.
    pub(super) fn message(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Lets `read` read more behind what has been read.
    pub(super) fn fill(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let n = ready!(read(&mut self.bytes[self.end..]))?;
        self.end += n;
        Poll::Ready(Ok(n))
    }

    fn make_room(&mut self) {
        if self.end < self.bytes.len() {
            return;
        }
        // Bytes of the body that were taken make room first, then bytes before the message.
        if self.next > self.head_end {
            self.bytes.copy_within(self.next..self.end, self.head_end);
            self.end -= self.next - self.head_end;
            self.next = self.head_end;
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            for position in [&mut self.head_end, &mut self.next, &mut self.end] {
                *position -= self.start;
            }
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            // Bounded: a head, a chunk's size line and a trailer section all are.
            let size = self.bytes.len() * 2;
            self.bytes.resize(size, 0);
        }
    }

    /// Begins the message whose head is at the beginning of the unread bytes. A body in chunks that
    /// turns out to be longer than `most` bytes is refused while it is read.
    pub(super) fn begin_message(&mut self, head: &Head, most: u64) {
        self.head_end = self.start + head.len;
        self.next = self.head_end;
        self.taken = head.len as u64;
        self.body = match head.framing {
            Framing::Empty => Body::Fixed(0),
            Framing::Fixed(length) => Body::Fixed(length),
            Framing::Chunked => {
                Body::Chunked { decoder: Chunked::new(), frame: Vec::new(), content: 0, most }
            }
        };
        // A client that has sent some of its body does not wait (RFC 9110 section 10.1.1).
        let waits = head.expects_continue && self.next == self.end;
        self.permission = if waits { Permission::Due } else { Permission::Settled };
    }

    /// Ends the message. The unread bytes belong to another one.
    pub(super) fn finish_message(&mut self) {
        if self.next == self.end {
            (self.next, self.end) = (0, 0);
        }
        self.start = self.next;
        self.head_end = self.next;
        self.body = Body::Fixed(0);
        self.taken = 0;
        self.permission = Permission::Settled;
    }

    /// Returns how many bytes of the message were taken, head included.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Moves unread bytes to `buf`, whatever they are. Returns 0 once there are none.
    pub(super) fn take_unread(&mut self, buf: &mut [u8]) -> usize {
        let n = self.unread().len().min(buf.len());
        buf[..n].copy_from_slice(&self.unread()[..n]);
        self.take(n);
        n
    }

    /// Returns what is left of the message's body.
    pub(super) fn rest(&self) -> Rest {
        match &self.body {
            Body::Fixed(0) => Rest::Nothing,
            Body::Chunked { decoder, .. } if decoder.is_complete() => Rest::Nothing,
            Body::Cut(..) => Rest::Lost,
            _ if self.permission == Permission::Due => Rest::Lost,
            Body::Fixed(left) => Rest::AtLeast(*left),
            Body::Chunked { decoder, .. } => Rest::AtLeast(decoder.content_left()),
        }
    }

    /// Returns the status for a body that the client got wrong.
    pub(super) fn fault(&self) -> Option<StatusCode> {
        match self.body {
            Body::Cut(Lost::Wrong(wrong)) => Some(wrong.status()),
            Body::Cut(Lost::Failed(_)) | Body::Fixed(_) | Body::Chunked { .. } => None,
        }
    }

    /// Lets every further read of the body fail with `lost`.
    pub(super) fn cut_body(&mut self, lost: Lost) {
        self.body = Body::Cut(lost);
    }

    /// Accepts a body of any length from now on, because the response has promised that the
    /// connection goes on.
    pub(super) fn lift_bound(&mut self) {
        if let Body::Chunked { most, .. } = &mut self.body {
            *most = u64::MAX;
        }
    }

    /// Returns `true` if the body cannot be read to its end, through no fault of the handler's.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self.body, Body::Cut(..))
    }

    /// Returns `true` once if `100 Continue` is to be sent. The caller sends it.
    pub(super) fn take_continue(&mut self) -> bool {
        let asked = self.continue_is_asked();
        if asked {
            self.permission = Permission::Settled;
        }
        asked
    }

    /// Returns `true` if `100 Continue` is to be sent.
    pub(super) fn continue_is_asked(&self) -> bool {
        self.permission == Permission::Asked
    }

    /// Reads the body as async-h1 may see it: bounded by its framing, chunks canonical (rules W2,
    /// W5).
    ///
    /// # Errors
    ///
    /// A [`BodyError`] if the client has got the body wrong (rules W6, W16), or the stream's own
    /// error; the same again on every further read.
    pub(super) fn poll_body(
        &mut self,
        transport: &mut Transport,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = match &self.body {
            Body::Fixed(_) => self.poll_fixed(transport, cx, buf),
            Body::Chunked { .. } => self.poll_chunked(transport, cx, buf),
            Body::Cut(lost) => return Poll::Ready(Err(lost.error())),
        };
        read.map_err(|error| {
            let lost = match Lost::by(&error) {
                // A wrapped stream (TLS) that ends within a record, or carries nonsense.
                Lost::Failed(io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) => {
                    Lost::Wrong(BodyError::CUT_SHORT)
                }
                lost => lost,
            };
            self.cut_body(lost);
            match lost {
                Lost::Wrong(wrong) => wrong.into(),
                Lost::Failed(_) => error,
            }
        })
    }

    fn poll_fixed(
        &mut self,
        transport: &mut Transport,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Body::Fixed(left) = self.body else { return Poll::Ready(Ok(0)) };
        if left == 0 || buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(self.poll_content(transport, cx, buf, left))?;
        self.body = Body::Fixed(left - n as u64);
        Poll::Ready(Ok(n))
    }

    fn poll_chunked(
        &mut self,
        transport: &mut Transport,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        loop {
            let Body::Chunked { decoder, frame, content, most } = &mut self.body else {
                return Poll::Ready(Ok(filled));
            };
            let n = frame.len().min(buf.len() - filled);
            buf[filled..filled + n].copy_from_slice(&frame[..n]);
            frame.drain(..n);
            filled += n;
            if filled == buf.len() || decoder.is_complete() {
                return Poll::Ready(Ok(filled));
            }
            let line_end = if *content > 0 { "\r\n" } else { "" };
            match decoder.step(&self.bytes[self.next..self.end]).map_err(BodyError::from)? {
                Step::Skip(n) => self.take(n),
                Step::Chunk { consumed, size } => {
                    *content = content.saturating_add(size);
                    if *content > *most {
                        return Poll::Ready(Err(BodyError::TOO_LONG.into()));
                    }
                    *frame = format!("{line_end}{size:x}\r\n").into();
                    self.take(consumed);
                }
                Step::Content(_) if filled > 0 && self.next == self.end => {
                    return Poll::Ready(Ok(filled));
                }
                Step::Content(left) => {
                    let n = ready!(self.poll_content(transport, cx, &mut buf[filled..], left))?;
                    filled += n;
                    if let Body::Chunked { decoder, .. } = &mut self.body {
                        decoder.took(n as u64);
                    }
                }
                Step::End { consumed, trailers } => {
                    *frame = [line_end.as_bytes(), b"0\r\n", &trailers, b"\r\n"].concat();
                    self.take(consumed);
                    // async-h1 hangs unless it gets the trailer section in one piece: it goes
                    // alone.
                    if filled > 0 {
                        return Poll::Ready(Ok(filled));
                    }
                }
                Step::Partial if filled > 0 => return Poll::Ready(Ok(filled)),
                Step::Partial => {
                    let read = self.fill(|room| transport.poll_read(cx, room));
                    self.ask_for_body(read.is_pending());
                    if ready!(read)? == 0 {
                        return Poll::Ready(Err(BodyError::CUT_SHORT.into()));
                    }
                }
            }
        }
    }

    /// Moves up to `most` bytes of content to `buf`, from the buffer or else from the client.
    fn poll_content(
        &mut self,
        transport: &mut Transport,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        most: u64,
    ) -> Poll<io::Result<usize>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buf.len());
        let here = self.take_unread(&mut buf[..most]);
        if here > 0 {
            return Poll::Ready(Ok(here));
        }
        let read = transport.poll_read(cx, &mut buf[..most]);
        self.ask_for_body(read.is_pending());
        let n = ready!(read)?;
        if n == 0 {
            return Poll::Ready(Err(BodyError::CUT_SHORT.into()));
        }
        self.taken += n as u64;
        Poll::Ready(Ok(n))
    }

    /// Someone wants the body, and has or has not to wait for it: a client that sends it unasked is
    /// not told to (RFC 9110 section 10.1.1).
    fn ask_for_body(&mut self, waits: bool) {
        if self.permission == Permission::Due {
            self.permission = if waits { Permission::Asked } else { Permission::Settled };
        }
    }

    fn take(&mut self, n: usize) {
        self.next += n;
        self.taken += n as u64;
    }
}
