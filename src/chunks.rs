//! [`stream_body`]: a response body of chunks that come one after the other.
//!
//! Invariant: a chunk is sent before the body waits for the next one, and a client can tell a
//! response that an error has ended from a whole one. A body holds one chunk at a time.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_lite::{AsyncBufRead, AsyncRead, Stream};
use http_types::Body;
use smol::lock::Mutex;

/// Makes a body of unknown length from a stream of chunks, such as lines or server-sent events.
///
/// The server sends each chunk as soon as the stream returns it, and skips empty chunks. The body
/// ends with the stream. At an error of the stream, the server breaks the response off, and the
/// client sees that the body is not whole (RFC 9112 section 8).
///
/// The handler's trailers (`Response::send_trailers`) follow the last chunk if the client has sent
/// `TE: trailers` (RFC 9110 section 10.1.4).
///
/// In TCP, a client that has closed its connection looks like a client that only sends nothing
/// more. The server notices the difference only when it writes. So a stream that may be quiet
/// should send something now and then, such as the comment `:\n\n` among server-sent events.
///
/// # Examples
///
/// This stream ends when the server stops:
///
/// ```
/// use futures_lite::stream;
/// use smol_graceful::{Response, Server, Token, stream_body};
/// use std::time::Duration;
///
/// let server = Server::new(|request| async move {
///     let token = Token::of(&request);
///     let ticks = stream::unfold(1, move |n| {
///         let token = token.clone();
///         async move {
///             token.until_stop(smol::Timer::after(Duration::from_secs(1))).await?;
///             Some((Ok(format!("tick {n}\n")), n + 1))
///         }
///     });
///     Ok(Response::from(stream_body(ticks)))
/// });
/// # drop(server);
/// ```
pub fn stream_body<S, B>(chunks: S) -> Body
where
    S: Stream<Item = io::Result<B>> + Send + 'static,
    B: AsRef<[u8]> + Send + 'static,
{
    let chunks = Chunks { chunks: Mutex::new(Box::pin(chunks)), chunk: None };
    Body::from_reader(chunks, None)
}

/// The number of empty chunks that the body takes before other tasks have their turn.
const CHUNKS_A_TURN: usize = 32;

/// A stream of chunks that can be read as bytes.
struct Chunks<B> {
    /// The stream. The mutex is never locked, and is there because a body has to be `Sync`.
    chunks: Mutex<Pin<Box<dyn Stream<Item = io::Result<B>> + Send>>>,
    /// The current chunk, and the number of its bytes that were read.
    chunk: Option<(Mutex<B>, usize)>,
}

impl<B: AsRef<[u8]>> AsyncBufRead for Chunks<B> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let Self { chunks, chunk } = self.get_mut();
        let chunks = chunks.get_mut();
        let mut taken = 0;
        // Zero bytes would end the body, so skip an empty chunk.
        while chunk.as_mut().is_none_or(|(bytes, read)| B::as_ref(bytes.get_mut()).len() == *read) {
            if taken == CHUNKS_A_TURN {
                // The stream may be ready for ever without a byte, and other tasks need the thread.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            taken += 1;
            *chunk = match ready!(chunks.as_mut().poll_next(cx)?) {
                Some(next) => Some((Mutex::new(next), 0)),
                None => return Poll::Ready(Ok(&[])),
            };
        }
        let unread =
            chunk.as_mut().map_or(&[][..], |(bytes, read)| &B::as_ref(bytes.get_mut())[*read..]);
        Poll::Ready(Ok(unread))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        if let Some((_, read)) = &mut self.get_mut().chunk {
            *read += amount;
        }
    }
}

impl<B: AsRef<[u8]>> AsyncRead for Chunks<B> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(self.as_mut().poll_fill_buf(cx))?.read(buf)?;
        self.consume(n);
        Poll::Ready(Ok(n))
    }
}

impl<B> Unpin for Chunks<B> {}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::{AsyncReadExt, StreamExt, future, stream};

    #[test]
    fn chunks_are_read_one_after_the_other() {
        let chunks = ["one ", "", "two ", "three"].map(Ok);
        let mut body = stream_body(stream::iter(chunks));
        assert_eq!(body.len(), None);
        let mut text = String::new();
        future::block_on(body.read_to_string(&mut text)).unwrap();
        assert_eq!(text, "one two three");
    }

    /// Any number of empty chunks leaves the thread to other tasks.
    #[test]
    fn empty_chunks_give_way_and_end_nothing() {
        let empty = stream::repeat_with(|| Ok("")).take(1000);
        let mut body = stream_body(empty.chain(stream::iter(["text"].map(Ok))));
        let mut bytes = [0; 8];
        let mut polls = 0;
        let n = future::block_on(future::poll_fn(|cx| {
            polls += 1;
            Pin::new(&mut body).poll_read(cx, &mut bytes)
        }));
        assert_eq!(&bytes[..n.unwrap()], b"text");
        assert!(polls > 1000 / CHUNKS_A_TURN, "{polls} polls");
    }

    #[test]
    fn an_error_is_no_end() {
        let chunks = [Ok(vec![1, 2]), Err(io::ErrorKind::BrokenPipe.into())];
        let mut body = stream_body(stream::iter(chunks));
        let mut bytes = Vec::new();
        let error = future::block_on(body.read_to_end(&mut bytes)).unwrap_err();
        assert_eq!((error.kind(), &bytes[..]), (io::ErrorKind::BrokenPipe, &[1, 2][..]));
    }
}
