//! The framing of request bodies: where a body ends, and which of its bytes are content (RFC 9112
//! sections 6 and 7.1).
//!
//! Invariant: the verdict on a body (content, trailers, end, or what is malformed) depends on its
//! bytes alone, and never on how they were cut into reads. No byte behind the body's end ever
//! counts as part of it.
//!
//! Pure: no reading, no buffer, and no limit on content. `incoming.rs` does these, and hands the
//! content on to async-h1 in canonical chunks (rule W5), so that no byte that a client wrote
//! between chunks gets through.

use std::borrow::Cow;
use std::fmt;

use super::field::{FRAMING_FIELDS, is_early, is_one_of, is_token_byte, visible};

/// The most digits of a chunk size, leading zeros included. Sixteen digits cannot overflow a `u64`.
const MAX_SIZE_DIGITS: usize = 16;

/// The most bytes of extensions on one chunk's size line.
const MAX_EXTENSION_BYTES: usize = 256;

/// The most bytes by which extensions may exceed content over a whole body. A client must not send
/// a lot of framing around a little content (Go's CVE-2023-39326), but a long signed upload may
/// sign every chunk.
const MAX_EXTENSION_DEBT: usize = 16 * 1024;

/// The most bytes of the trailer section with its final blank line. async-h1 takes 8192.
const MAX_TRAILER_BYTES: usize = 4 * 1024;

/// The most field lines of the trailer section. async-h1 takes as many and no more.
const MAX_TRAILER_FIELDS: usize = 16;

/// The way in which a request's body is delimited. The gate decides it once, from the head (rule
/// W3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body.
    Empty,
    /// The body is this many bytes long (`Content-Length`).
    Fixed(u64),
    /// The body comes in chunks and says itself where it ends (`Transfer-Encoding: chunked`).
    Chunked,
}

impl Framing {
    /// Returns `true` if there is a body, which may turn out to be empty if it comes in chunks.
    pub(crate) fn has_body(self) -> bool {
        !matches!(self, Self::Empty | Self::Fixed(0))
    }
}

/// The position of a connection in a chunked body.
#[derive(Debug)]
pub(crate) struct Chunked {
    state: State,
    /// The bytes of extensions that content has not outweighed yet, at most [`MAX_EXTENSION_DEBT`].
    debt: usize,
}

/// The meaning of the first bytes of the input. The caller consumes these bytes, and calls again
/// with the rest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// This many bytes (never 0) are framing only: the line end after a chunk's data, or the last
    /// chunk's size line.
    Skip(usize),
    /// A chunk begins.
    Chunk {
        /// Length of its size line, with extensions and line end.
        consumed: usize,
        /// The number of bytes of content that follow, never 0. The client chooses this number, so
        /// sum it up with saturation.
        size: u64,
    },
    /// The next bytes, this many (never 0), are content. The caller takes as many as it can, and
    /// then calls [`Chunked::took`].
    Content(u64),
    /// The body ends here.
    End {
        /// Length of the trailer section with its final blank line.
        consumed: usize,
        /// The field lines that may be handed on, without the final blank line. Empty if there are
        /// none.
        ///
        /// async-h1 hangs unless it gets the whole section at once, so hand on `0\r\n`, these lines
        /// and `\r\n` in one read without other bytes. Of several fields of one name, async-h1
        /// keeps the last.
        trailers: Cow<'a, [u8]>,
    },
    /// More bytes are needed. The next call sees the same beginning again, with more behind it.
    Partial,
}

/// The fault of a chunked body. The connection cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(&'static str);

impl Malformed {
    pub(crate) const SIZE: Self = Self("chunk size is not a number");
    pub(crate) const SIZE_TOO_LONG: Self = Self("chunk size has too many digits");
    pub(crate) const SIZE_END: Self = Self("chunk size is not followed by a line end");
    pub(crate) const EXTENSION: Self = Self("chunk extension is malformed");
    pub(crate) const EXTENSION_TOO_LONG: Self = Self("chunk extensions are too long");
    pub(crate) const DATA_END: Self = Self("chunk data is not followed by a line end");
    pub(crate) const TRAILER: Self = Self("trailer is malformed");
    pub(crate) const TRAILER_FRAMING: Self = Self("trailer would change the framing");
    pub(crate) const TRAILER_TOO_LONG: Self = Self("trailer section is too long");
}

impl Chunked {
    /// Returns the beginning of a chunked body.
    pub(crate) fn new() -> Self {
        Self { state: State::Size, debt: 0 }
    }

    /// Returns what the first bytes of `input` are. `input` holds the unread bytes, as far as they
    /// have arrived.
    ///
    /// Refuses a malformed body at the first byte that makes it so. Behind the end of the body,
    /// returns `End` again and again, with nothing consumed.
    pub(crate) fn step<'a>(&mut self, input: &'a [u8]) -> Result<Step<'a>, Malformed> {
        match self.state {
            State::Size => {
                let allowed = MAX_EXTENSION_BYTES.min(MAX_EXTENSION_DEBT - self.debt);
                let Some(line) = size_line(input, allowed)? else {
                    return Ok(Step::Partial);
                };
                let paid = usize::try_from(line.size).unwrap_or(usize::MAX);
                self.debt = (self.debt + line.extensions).saturating_sub(paid);
                if line.size == 0 {
                    self.state = State::Trailers;
                    return Ok(Step::Skip(line.consumed));
                }
                self.state = State::Data { left: line.size };
                Ok(Step::Chunk { consumed: line.consumed, size: line.size })
            }
            State::Data { left } => Ok(Step::Content(left)),
            State::DataEnd => match input {
                [] | [b'\r'] => Ok(Step::Partial),
                [b'\r', b'\n', ..] => {
                    self.state = State::Size;
                    Ok(Step::Skip(2))
                }
                _ => Err(Malformed::DATA_END),
            },
            State::Trailers => {
                let Some(length) = trailer_section(input)? else {
                    return Ok(Step::Partial);
                };
                let trailers = fit_to_hand_on(&input[..length])?;
                self.state = State::Complete;
                Ok(Step::End { consumed: length + 2, trailers })
            }
            State::Complete => Ok(Step::End { consumed: 0, trailers: Cow::Borrowed(&[]) }),
        }
    }

    /// Returns how many bytes of the current chunk's content are still to come.
    pub(crate) fn content_left(&self) -> u64 {
        match self.state {
            State::Data { left } => left,
            _ => 0,
        }
    }

    /// Notes that the caller took `n` bytes of content, at most [`Step::Content`] of them.
    pub(crate) fn took(&mut self, n: u64) {
        debug_assert!(n <= self.content_left(), "took {n} bytes, more than the chunk has");
        if let State::Data { left } = self.state {
            self.state = match left.saturating_sub(n) {
                0 => State::DataEnd,
                left => State::Data { left },
            };
        }
    }

    /// Returns `true` if the whole body, trailers included, has been consumed.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete)
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The part of a body to which the next byte belongs.
#[derive(Debug, Clone, Copy)]
enum State {
    /// A chunk's size line.
    Size,
    /// Content, `left` bytes of it (never 0) in this chunk.
    Data { left: u64 },
    /// The CRLF behind a chunk's content.
    DataEnd,
    /// The trailer section behind the last chunk's size line.
    Trailers,
    /// The next message.
    Complete,
}

/// A chunk's size line.
struct SizeLine {
    /// The length of the line with extensions and CRLF.
    consumed: usize,
    /// The number of bytes of content that follow, which is 0 for the last chunk.
    size: u64,
    /// The length of the extensions.
    extensions: usize,
}

// The three scanners below look at a line from its beginning each time, until the line is complete.
// A line is bounded, so this stays cheap. Each scanner refuses at the first wrong byte, and looks
// at no byte beyond its bound, so that the verdict is the same however the bytes arrive.

/// Reads `chunk-size [ chunk-ext ] CRLF` (RFC 9112 section 7.1). Returns `None` if the line is not
/// complete.
fn size_line(input: &[u8], allowed: usize) -> Result<Option<SizeLine>, Malformed> {
    let digits =
        input.iter().take(MAX_SIZE_DIGITS + 1).take_while(|b| b.is_ascii_hexdigit()).count();
    if digits > MAX_SIZE_DIGITS {
        return Err(Malformed::SIZE_TOO_LONG);
    }
    let (digits, rest) = input.split_at(digits);
    if digits.is_empty() && !rest.is_empty() {
        return Err(Malformed::SIZE);
    }
    let extensions = match rest {
        [] | [b'\r'] => return Ok(None),
        [b'\r', b'\n', ..] => 0,
        [b';' | b' ' | b'\t', ..] => match extensions(rest, allowed)? {
            Some(length) => length,
            None => return Ok(None),
        },
        _ => return Err(Malformed::SIZE_END),
    };
    let values = digits.iter().filter_map(|&digit| char::from(digit).to_digit(16));
    let size = values.fold(0, |size, value| size << 4 | u64::from(value));
    Ok(Some(SizeLine { consumed: digits.len() + extensions + 2, size, extensions }))
}

/// Returns the length of the extensions at the beginning of `rest`, up to their CRLF (RFC 9112
/// section 7.1.1). Returns `None` if they are not complete.
///
/// The caller skips extensions, so this function refuses only what two parsers could read
/// differently. These are white space without a `;` behind it, and a line end that is not exactly
/// CRLF or is inside a quoted string.
fn extensions(rest: &[u8], allowed: usize) -> Result<Option<usize>, Malformed> {
    let view = &rest[..rest.len().min(allowed + 2)];
    let incomplete =
        if view.len() == allowed + 2 { Err(Malformed::EXTENSION_TOO_LONG) } else { Ok(None) };

    let Some(begin) = view.iter().position(|b| !matches!(b, b' ' | b'\t')) else {
        return incomplete;
    };
    if view[begin] != b';' {
        return Err(Malformed::SIZE_END);
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, &byte) in view.iter().enumerate().skip(begin) {
        let was_escaped = std::mem::take(&mut escaped);
        match byte {
            b'\r' if !quoted => match view.get(at + 1) {
                Some(b'\n') => return Ok(Some(at)),
                Some(_) => return Err(Malformed::EXTENSION),
                None => {}
            },
            b'\\' if quoted => escaped = !was_escaped,
            b'"' if !was_escaped => quoted = !quoted,
            b'\t' | b' '..=b'~' => {}
            0x80.. if quoted => {}
            _ => return Err(Malformed::EXTENSION),
        }
    }
    incomplete
}

/// Returns the length of the trailer section's field lines, without the blank line that ends it
/// (RFC 9112 section 7.1.2). Returns `None` if the section is not complete.
fn trailer_section(input: &[u8]) -> Result<Option<usize>, Malformed> {
    let view = &input[..input.len().min(MAX_TRAILER_BYTES)];
    let mut at = 0;
    for fields in 0.. {
        match &view[at..] {
            [b'\r', b'\n', ..] => return Ok(Some(at)),
            [] | [b'\r'] => break,
            _ if fields == MAX_TRAILER_FIELDS => return Err(Malformed::TRAILER_TOO_LONG),
            rest => match field_line(rest)? {
                Some(length) => at += length,
                None => break,
            },
        }
    }
    if view.len() == MAX_TRAILER_BYTES { Err(Malformed::TRAILER_TOO_LONG) } else { Ok(None) }
}

/// Returns the length of the field line at the beginning of `rest`, with its CRLF (RFC 9112 section
/// 5). Returns `None` if the line is not complete. Refuses a folded line.
fn field_line(rest: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(colon) = rest.iter().position(|&b| !is_token_byte(b)) else {
        return Ok(None);
    };
    if colon == 0 || rest[colon] != b':' {
        return Err(Malformed::TRAILER);
    }
    if is_one_of(&rest[..colon], FRAMING_FIELDS) {
        return Err(Malformed::TRAILER_FRAMING);
    }
    let value = &rest[colon + 1..];
    let Some(end) = value.iter().position(|b| !matches!(b, b'\t' | b' '..=b'~' | 0x80..)) else {
        return Ok(None);
    };
    match &value[end..] {
        [b'\r'] => Ok(None),
        [b'\r', b'\n', ..] => Ok(Some(colon + 1 + end + 2)),
        _ => Err(Malformed::TRAILER),
    }
}

/// Returns the well-formed field lines of `section` without those that must not come as a trailer.
/// Writes a byte outside ASCII as `%XX`, as in heads, because http-types cannot hold such a byte.
fn fit_to_hand_on(section: &[u8]) -> Result<Cow<'_, [u8]>, Malformed> {
    let lines = || section.split_inclusive(|&b| b == b'\n');
    let is_fit = |line: &&[u8]| !line.split(|&b| b == b':').next().is_some_and(is_early);
    if section.is_ascii() && lines().all(|line| is_fit(&line)) {
        return Ok(Cow::Borrowed(section));
    }
    let fit = visible(&lines().filter(is_fit).collect::<Vec<_>>().concat()).into_owned();
    // The bound holds for what is handed on, too.
    let is_too_long = fit.len() + 2 > MAX_TRAILER_BYTES;
    if is_too_long { Err(Malformed::TRAILER_TOO_LONG) } else { Ok(Cow::Owned(fit.into())) }
}

#[cfg(test)]
mod tests;
