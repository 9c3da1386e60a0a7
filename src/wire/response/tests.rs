//! Tests of `response.rs`: the bytes of a response, head and body.
//!
//! Each body is in memory, so a test encodes a whole response without waiting. `tests/` sends
//! responses over sockets.

use super::*;
use Version::{Http1_0, Http1_1};
use futures_lite::io::{BufReader, Cursor, empty};
use http_types::Body;
use http_types::headers::{CONTENT_TYPE, UPGRADE};

/// A content type that each body has from its handler.
const TYPE: &str = "content-type: a/b\r\n";

/// Encodes `reply` to its end. Returns the bytes without `date` and [`TYPE`], and the error of
/// the body.
fn encode(reply: &mut Reply) -> (String, Option<io::ErrorKind>) {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut out = Outgoing::default();
    let error = loop {
        match reply.poll_fill(cx, &mut out) {
            Poll::Ready(Ok(Filled::More)) => {}
            Poll::Ready(Ok(Filled::Whole)) => break None,
            Poll::Ready(Ok(Filled::Slice)) => {
                let Poll::Ready(Ok(slice)) = reply.poll_slice(cx) else { panic!("no slice") };
                let (slice, end) = (slice.to_vec(), out.len());
                out.replace(end..end, &slice);
                if reply.sent(slice.len()) {
                    break None;
                }
            }
            Poll::Ready(Err(error)) => break Some(error.kind()),
            Poll::Pending => panic!("the body is in memory"),
        }
    };
    let text = String::from_utf8(out.since(0).to_vec()).unwrap();
    let text = text.replacen(TYPE, "", 1);
    let (before, behind) = text.split_once("date: ").unwrap();
    (format!("{before}{}", &behind[behind.find('\n').unwrap() + 1..]), error)
}

fn with_body(body: Body) -> Response {
    let mut response = Response::new(200);
    response.set_body(body);
    response.insert_header(CONTENT_TYPE, "a/b");
    response
}

fn fixed(text: &str) -> Response {
    with_body(Body::from_bytes(text.into()))
}

fn streamed(text: &str) -> Response {
    with_body(Body::from_reader(Cursor::new(text.to_owned()), None))
}

fn status(status: u16) -> Response {
    let mut response = fixed("");
    response.set_status(StatusCode::try_from(status).unwrap());
    response
}

fn with_field(name: &str, value: &str, mut response: Response) -> Response {
    response.insert_header(name, value);
    response
}

#[test]
fn a_response_is_framed_as_the_request_wants_it() {
    let long = "x".repeat(LONG);
    let ok = |rest: &str| format!("HTTP/1.1 200 OK\r\n{rest}");
    let not_modified = |rest: &str| {
        format!("HTTP/1.1 304 {}\r\n{rest}", StatusCode::NotModified.canonical_reason())
    };
    let failed = |body: &str| {
        let fields = "content-length: 22\r\ncontent-type: text/plain;charset=utf-8\r\n\r\n";
        format!("HTTP/1.1 500 Internal Server Error\r\n{fields}{body}")
    };
    let get = (Method::Get, Http1_1);
    #[rustfmt::skip]
    let cases = [
        (fixed("hi"), get, ok("content-length: 2\r\n\r\nhi")),
        (fixed("hi"), (Method::Head, Http1_1), ok("content-length: 2\r\n\r\n")),
        (fixed("hi"), (Method::Get, Http1_0), ok("connection: keep-alive\r\ncontent-length: 2\r\n\r\nhi")),
        (fixed(&long), get, ok(&format!("content-length: {LONG}\r\n\r\n{long}"))),
        (fixed(&long), (Method::Head, Http1_1), ok(&format!("content-length: {LONG}\r\n\r\n"))),
        (streamed("hi"), get, ok("transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")),
        (streamed("hi"), (Method::Head, Http1_1), ok("transfer-encoding: chunked\r\n\r\n")),
        (streamed("hi"), (Method::Get, Http1_0), ok("connection: close\r\n\r\nhi")),
        (streamed("hi"), (Method::Head, Http1_0), ok("connection: keep-alive\r\n\r\n")),
        // The handler's own framing does not count, except where there is no body to frame.
        (with_field("transfer-encoding", "gzip", fixed("hi")), get, ok("content-length: 2\r\n\r\nhi")),
        (with_field("content-length", "9", fixed("hi")), get, ok("content-length: 2\r\n\r\nhi")),
        (with_field("content-length", "9", fixed("")), (Method::Head, Http1_1), ok("content-length: 9\r\n\r\n")),
        (with_field("content-length", "9", status(304)), get, not_modified("content-length: 9\r\n\r\n")),
        (status(304), get, not_modified("\r\n")),
        (status(204), get, "HTTP/1.1 204 No Content\r\n\r\n".into()),
        (with_field("content-length", "9", status(204)), get, "HTTP/1.1 204 No Content\r\n\r\n".into()),
        (with_field("connection", "close", fixed("")), get, ok("connection: close\r\ncontent-length: 0\r\n\r\n")),
        (with_field("trailer", "x", streamed("")), get, ok("transfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        // Responses that would break the framing.
        (with_field("x", "a\r\nb: c", fixed("hi")), get, failed("Internal Server Error\n")),
        (with_field("a b", "c", fixed("hi")), get, failed("Internal Server Error\n")),
        (status(103), get, failed("Internal Server Error\n")),
    ];
    for (response, (method, version), expected) in cases {
        let shown = format!("{method} {version} {response:?}");
        let mut reply = Reply::new(response, Asked { method, version, accepts_trailers: false });
        let allows_another = reply.allows_another();
        let (bytes, error) = encode(&mut reply);
        assert_eq!((bytes, error), (expected.clone(), None), "{shown}");
        assert_eq!(allows_another, !expected.contains("connection: close"), "{shown}");
    }
}

#[test]
fn an_upgrade_has_neither_length_nor_close() {
    let mut response = with_field(UPGRADE.as_str(), "x", status(101));
    let _stream = response.send_upgrade();
    assert!(upgrades(&response));
    let asked = Asked { method: Method::Get, version: Http1_1, accepts_trailers: false };
    let expected = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    assert_eq!(encode(&mut Reply::new(response, asked)).0, expected);
}

/// The client must not take what it got for the whole.
#[test]
fn a_body_that_is_shorter_than_declared_is_an_error() {
    let reader = |text: &str| BufReader::new(Cursor::new(text.to_owned()));
    let asked = Asked { method: Method::Get, version: Http1_1, accepts_trailers: false };
    for body in [
        Body::from_reader(reader("hi"), Some(3)),
        Body::from_reader(empty(), Some(3)),
        Body::from_reader(reader("hi"), Some(LONG)),
    ] {
        let (bytes, error) = encode(&mut Reply::new(with_body(body), asked));
        assert!(!bytes.is_empty());
        assert_eq!(error, Some(io::ErrorKind::UnexpectedEof), "{bytes}");
    }
    // A body that is longer than declared ends where the head says.
    let longer = with_body(Body::from_reader(reader("hello"), Some(2)));
    let (bytes, error) = encode(&mut Reply::new(longer, asked));
    assert!(error.is_none() && bytes.ends_with("\r\n\r\nhe"), "{bytes}");
}

#[test]
fn a_close_may_be_announced_until_the_head_is_encoded() {
    let asked = Asked { method: Method::Get, version: Http1_1, accepts_trailers: false };
    let mut reply = Reply::new(fixed("hi"), asked);
    // The body may have been asked for its first bytes before.
    reply.poll_begin(&mut Context::from_waker(Waker::noop()));
    reply.announce_close();
    let expected = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
    assert_eq!(encode(&mut reply).0, expected);
}
