//! Tests of `incoming.rs`: how a read buffer takes a message, and keeps the bytes behind it.
//!
//! A stream in memory gives the bytes of the client in pieces, and is then silent. These tests read
//! no socket.

use super::super::body::Malformed;
use super::super::head::{self, Bounds};
use super::super::idle::Idle;
use super::*;
use crate::stream::transport::{Transport, Wrapped};
use futures_lite::{AsyncRead, AsyncWrite};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Waker};

/// A stream in memory. Each read gives one piece, and an empty piece is the end of the stream.
/// When there are no more pieces, the client is silent.
#[derive(Clone)]
struct Pieces(VecDeque<Vec<u8>>);

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some(mut piece) = self.0.pop_front() else { return Poll::Pending };
        let n = piece.len().min(buf.len());
        buf[..n].copy_from_slice(&piece[..n]);
        if n < piece.len() {
            self.0.push_front(piece.split_off(n));
        }
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        unreachable!("the read buffer sends nothing")
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        unreachable!("the read buffer sends nothing")
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        unreachable!("the read buffer sends nothing")
    }
}

fn transport(pieces: &[&[u8]]) -> Transport {
    let pieces = Pieces(pieces.iter().map(|piece| piece.to_vec()).collect());
    Transport::Wrapped(Box::new(Wrapped::new(pieces)))
}

/// Reads a head, and begins its message.
fn begin(transport: &mut Transport, most: u64) -> Incoming {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut incoming = Incoming::behind(0);
    let bounds = Bounds { head_bytes: 8192, headers: 100 };
    loop {
        if let Some(head) = head::parse(incoming.unread(), bounds).unwrap() {
            incoming.begin_message(&head, most);
            return incoming;
        }
        assert!(incoming.fill(|room| transport.poll_read(cx, room)).is_ready());
    }
}

/// Reads the body in pieces of at most `size` bytes. Returns what the reader saw, and how the
/// body has ended; `None` if the reader has to wait.
fn read(
    incoming: &mut Incoming,
    transport: &mut Transport,
    size: usize,
) -> (String, Option<Result<(), BodyError>>) {
    let cx = &mut Context::from_waker(Waker::noop());
    let (mut seen, mut buf) = (Vec::new(), vec![0; size]);
    let end = loop {
        match incoming.poll_body(|room| transport.poll_read(cx, room), &mut buf) {
            Poll::Ready(Ok(0)) => break Some(Ok(())),
            Poll::Ready(Ok(n)) => seen.extend_from_slice(&buf[..n]),
            Poll::Ready(Err(error)) => break Some(Err(BodyError::find(&error).unwrap())),
            Poll::Pending => break None,
        }
    };
    (String::from_utf8(seen).unwrap(), end)
}

const FIXED: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n";
const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\n";

#[test]
fn a_reader_sees_the_body_alone_however_it_arrives() {
    let malformed = BodyError::from(Malformed::SIZE);
    let wrong = |fault| Some(Err(fault));
    // The head, what is behind it, what the reader sees, how the body ends, what is unread.
    let cases = [
        (FIXED, "hello", "hello", Some(Ok(())), ""),
        (FIXED, "helloGET /next HTTP/1.1\r\n", "hello", Some(Ok(())), NEXT),
        (FIXED, "hel", "hel", None, ""),
        (CHUNKED, "0\r\n\r\n", "0\r\n\r\n", Some(Ok(())), ""),
        (
            CHUNKED,
            "05;ext=\"y\"\r\nhello\r\n00\r\nA: b\r\nHost: c\r\n\r\nGET /next HTTP/1.1\r\n",
            "5\r\nhello\r\n0\r\nA: b\r\n\r\n",
            Some(Ok(())),
            NEXT,
        ),
        (CHUNKED, "2\r\nhe\r\n3\r\nllo\r\n", "2\r\nhe\r\n3\r\nllo", None, ""),
        (CHUNKED, "2\r\nhe\r\nx", "2\r\nhe", wrong(malformed), "x"),
        (
            CHUNKED,
            "8\r\neightbytes",
            "8\r\neightbyt",
            wrong(BodyError::from(Malformed::DATA_END)),
            "es",
        ),
        (CHUNKED, "4\r\nfour\r\n7\r\n", "4\r\nfour", wrong(BodyError::TOO_LONG), "7\r\n"),
    ];
    for (head, body, seen, end, unread) in cases {
        let bytes = format!("{head}{body}");
        for size in [1, 3, 4096] {
            for cut in 1..=bytes.len() {
                let (first, second) = bytes.as_bytes().split_at(cut);
                let pieces = [first, second];
                let pieces = if second.is_empty() { &pieces[..1] } else { &pieces };
                let mut transport = transport(pieces);
                let mut incoming = begin(&mut transport, 10);
                let said = read(&mut incoming, &mut transport, size);
                let place = format!("{body:?} cut at {cut}, read by {size}");
                assert_eq!(said.1, end, "{place}");
                // A read that finds a fault drops what it has found before.
                let is_wrong = matches!(end, Some(Err(_)));
                assert!(said.0 == seen || is_wrong && seen.starts_with(&said.0), "{place}");
                assert!(incoming.message().starts_with(head.as_bytes()), "{place}");
                // The second piece may not have been read.
                let _ = incoming.fill(|room| {
                    transport.poll_read(&mut Context::from_waker(Waker::noop()), room)
                });
                assert_eq!(incoming.unread(), unread.as_bytes(), "{place}");
                let taken = bytes.len() - unread.len();
                assert_eq!(incoming.taken(), taken as u64, "{place}");
                // A further read finds the same end.
                assert_eq!(read(&mut incoming, &mut transport, size), (String::new(), end));
                if let Some(Err(fault)) = end {
                    assert_eq!(incoming.fault(), Some(fault.status()), "{place}");
                    assert_eq!(incoming.rest(), Rest::Lost, "{place}");
                } else {
                    assert_eq!(incoming.rest() == Rest::Nothing, end.is_some(), "{place}");
                }
            }
        }
    }
}

#[test]
fn a_body_that_the_client_cuts_short_is_never_whole() {
    for bytes in [FIXED.to_owned() + "hel", CHUNKED.to_owned() + "5\r\nhello\r\n"] {
        let mut transport = transport(&[bytes.as_bytes(), b""]);
        let mut incoming = begin(&mut transport, u64::MAX);
        let (_, end) = read(&mut incoming, &mut transport, 4096);
        assert_eq!(end, Some(Err(BodyError::CUT_SHORT)));
    }
}

#[test]
fn what_was_read_of_a_long_body_makes_room_and_the_head_stays() {
    let length = 100_000;
    let head = format!("POST /long HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
    let bytes = [head.as_bytes(), &vec![b'x'; length], NEXT.as_bytes()].concat();
    let pieces: Vec<_> = bytes.chunks(1000).collect();
    let mut transport = transport(&pieces);
    let mut incoming = begin(&mut transport, u64::MAX);
    assert_eq!(incoming.rest(), Rest::AtLeast(length as u64));
    let (seen, end) = read(&mut incoming, &mut transport, 512);
    assert_eq!((seen.len(), end), (length, Some(Ok(()))));
    assert!(incoming.message().starts_with(head.as_bytes()));
    assert!(incoming.bytes.len() <= 2 * super::super::buffer::SIZE);
}

/// Each case: what comes behind the head, and at which steps `100 Continue` is due.
#[test]
fn a_client_is_told_to_continue_once_and_only_if_it_waits() {
    let head = FIXED.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");

    let mut silent = transport(&[head.as_bytes()]);
    let mut incoming = begin(&mut silent, 10);
    assert!(!incoming.take_continue(), "nobody has read");
    assert_eq!(incoming.rest(), Rest::Lost);
    assert!(incoming.poll_body(|_| Poll::Pending, &mut [0; 8]).is_pending());
    assert_eq!(incoming.rest(), Rest::AtLeast(5));
    assert!(incoming.take_continue() && !incoming.take_continue());

    let mut hasty = transport(&[head.as_bytes(), b"hello"]);
    let mut incoming = begin(&mut hasty, 10);
    assert_eq!(read(&mut incoming, &mut hasty, 8), ("hello".into(), Some(Ok(()))));
    assert!(!incoming.take_continue(), "the client has not waited");

    let mut hastier = transport(&[(head + "he").as_bytes(), b"llo"]);
    let incoming = begin(&mut hastier, 10);
    assert_eq!(incoming.rest(), Rest::AtLeast(5));
}

/// RFC 9112 section 2.2, and rule W12: an idle connection keeps a number, and no buffer.
#[test]
fn empty_lines_are_no_request_and_count_as_part_of_the_next() {
    let get = "GET / HTTP/1.1\r\n";
    let cases: [(&[&str], Poll<Option<String>>); 7] = [
        (&[get], Poll::Ready(Some(get.into()))),
        (&["\r\n", "\r", "\n", get], Poll::Ready(Some("\r\n\r\n".to_owned() + get))),
        (&["\r\n\r\n\r\n\r\n", "\r"], Poll::Ready(Some("\r\n\r\n\r\n\r\n\r".into()))),
        (&["\n"], Poll::Ready(Some("\n".into()))),
        (&["\r\n\r"], Poll::Pending),
        (&["\r\n", ""], Poll::Ready(None)),
        (&[], Poll::Pending),
    ];
    for (pieces, expected) in cases {
        for is_last in [false, true] {
            let pieces: Vec<_> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            let mut idle = Idle::new(transport(&pieces));
            let cx = &mut Context::from_waker(Waker::noop());
            let read = idle.poll_request(cx, is_last).map(Result::unwrap);
            let read = read.map(|read| read.map(|incoming| incoming.unread().to_vec()));
            let expected = expected.clone().map(|text| text.map(String::into_bytes));
            assert_eq!(read, expected, "{pieces:?}");
        }
    }
}
