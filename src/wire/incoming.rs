//! [`Incoming`]: the bytes that a client has sent, and how far the message under way has been
//! taken.
//!
//! Invariant: bytes behind the message stay in the buffer for the next message (rule W1). Content
//! goes straight to the reader's buffer if nothing has been read ahead. The head stays in the
//! buffer until its exchange ends, for the drain report. Reads when asked, waits for nothing, and
//! sends nothing.

use std::io;
use std::task::{Poll, ready};

use http_types::StatusCode;

use super::body::{Chunked, Framing, Step};
use super::buffer::Buffer;
use super::fault::{BodyError, Lost};
use super::head::{EMPTY_LINES, Head, has_begun};

/// A connection's read buffer, with the message at its beginning.
pub(crate) struct Incoming {
    /// The storage. The bytes that have been read end at `end`.
    bytes: Buffer,
    /// The beginning of the message under way.
    start: usize,
    /// The end of that message's head once the head is known, and `start` before.
    head_end: usize,
    /// The first byte that has not been taken.
    next: usize,
    /// The end of the bytes that have been read.
    end: usize,
    body: Body,
    /// Bytes of the message taken so far, head included.
    taken: u64,
    /// The state of `Expect: 100-continue`.
    permission: Permission,
}

/// Reads further bytes of the client's into the room that it is given.
pub(super) trait ReadMore: FnMut(&mut [u8]) -> Poll<io::Result<usize>> {}

impl<F: FnMut(&mut [u8]) -> Poll<io::Result<usize>>> ReadMore for F {}

/// The rest of the body.
enum Body {
    /// This many bytes are left.
    Fixed(u64),
    /// The body comes in chunks. The chunks that have begun have `content` bytes in all, and `most`
    /// is the bound. The reader has yet to see `frame`, the canonical framing in front of the next
    /// bytes (rule W5).
    Chunked { decoder: Chunked, frame: Vec<u8>, content: u64, most: u64 },
    /// The rest cannot be read.
    Cut(Lost),
}

/// The state of `100 Continue`, which tells the client to send the body (rule W7).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Permission {
    /// The client does not wait for `100 Continue`, or has got it.
    Settled,
    /// The client waits for `100 Continue`, and nobody wants the body yet.
    Due,
    /// A reader waits for the body, so the gate has to send `100 Continue`.
    Asked,
}

/// The rest of a message's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// The body was taken whole, or there was none.
    Nothing,
    /// At least this many bytes are left.
    AtLeast(u64),
    /// The rest cannot be discarded. The body is malformed or cut short, or the client waits for
    /// `100 Continue` and may leave the body out.
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
        Self::with(&EMPTY_LINES[..empty])
    }

    /// Makes a buffer that begins with these bytes, which were read before.
    pub(super) fn with(read: &[u8]) -> Self {
        let mut bytes = Buffer::new();
        if bytes.len() < read.len() {
            bytes.resize(read.len(), 0);
        }
        bytes[..read.len()].copy_from_slice(read);
        Self {
            bytes,
            start: 0,
            head_end: 0,
            next: 0,
            end: read.len(),
            body: Body::Fixed(0),
            taken: 0,
            permission: Permission::Settled,
        }
    }

    /// Returns the bytes that have been read and not taken.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.next..self.end]
    }

    /// Returns `true` if the unread bytes are the beginning of a request. Some clients send empty
    /// lines behind a request (RFC 9112 section 2.2).
    pub(super) fn has_request(&self) -> bool {
        has_begun(self.unread())
    }

    /// Returns the message under way, as far as it is in the buffer.
    pub(super) fn message(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Lets `more` read further bytes. Returns how many.
    pub(super) fn fill(&mut self, mut more: impl ReadMore) -> Poll<io::Result<usize>> {
        self.make_room();
        let n = ready!(more(&mut self.bytes[self.end..]))?;
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
            // The growth is bounded, because a head, a chunk's size line and a trailer section are.
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

    /// Returns `true` if the stream has failed while the body was read.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.body, Body::Cut(Lost::Failed(_)))
    }

    /// Returns `true`, once, if the caller has to send `100 Continue`.
    pub(super) fn take_continue(&mut self) -> bool {
        let asked = self.continue_is_asked();
        if asked {
            self.permission = Permission::Settled;
        }
        asked
    }

    /// Returns `true` if the gate has to send `100 Continue`.
    pub(super) fn continue_is_asked(&self) -> bool {
        self.permission == Permission::Asked
    }

    /// Reads the body as async-h1 may see it: bounded by its framing, and in canonical chunks
    /// (rules W2, W5).
    ///
    /// # Errors
    ///
    /// Returns a [`BodyError`] if the client has got the body wrong (rules W6, W16), and otherwise
    /// the stream's own error. Every further read returns the same error.
    pub(super) fn poll_body(
        &mut self,
        more: impl ReadMore,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = match self.body {
            Body::Fixed(left) => self.poll_fixed(left, more, buf),
            Body::Chunked { .. } => self.poll_chunked(more, buf),
            Body::Cut(lost) => return Poll::Ready(Err(lost.error())),
        };
        read.map_err(|error| {
            let lost = match Lost::by(&error) {
                // A wrapped stream (TLS) has ended within a record, or carries nonsense.
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
        left: u64,
        more: impl ReadMore,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if left == 0 || buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(self.poll_content(left, more, buf))?;
        self.body = Body::Fixed(left - n as u64);
        Poll::Ready(Ok(n))
    }

    fn poll_chunked(&mut self, mut more: impl ReadMore, buf: &mut [u8]) -> Poll<io::Result<usize>> {
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
                    let n = ready!(self.poll_content(left, &mut more, &mut buf[filled..]))?;
                    filled += n;
                    if let Body::Chunked { decoder, .. } = &mut self.body {
                        decoder.took(n as u64);
                    }
                }
                Step::End { consumed, trailers } => {
                    *frame = [line_end.as_bytes(), b"0\r\n", &trailers, b"\r\n"].concat();
                    self.take(consumed);
                    // async-h1 hangs unless it gets the trailer section in one piece, so the
                    // section goes alone.
                    if filled > 0 {
                        return Poll::Ready(Ok(filled));
                    }
                }
                Step::Partial if filled > 0 => return Poll::Ready(Ok(filled)),
                Step::Partial => {
                    let read = self.fill(&mut more);
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
        most: u64,
        mut more: impl ReadMore,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buf.len());
        let here = self.take_unread(&mut buf[..most]);
        if here > 0 {
            return Poll::Ready(Ok(here));
        }
        let read = more(&mut buf[..most]);
        self.ask_for_body(read.is_pending());
        let n = ready!(read)?;
        if n == 0 {
            return Poll::Ready(Err(BodyError::CUT_SHORT.into()));
        }
        self.taken += n as u64;
        Poll::Ready(Ok(n))
    }

    /// Notes that a reader wants the body, and whether the reader has to wait. If the client has
    /// sent the body unasked, the server need not ask for it (RFC 9110 section 10.1.1).
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

#[cfg(test)]
mod tests;
