//! The wire: bytes in, bytes out, over raw sockets.

mod common;

use common::{Client, End, Running};

#[test]
fn a_request_is_answered() {
    let server = Running::new(|_| async { Ok("okay") });
    let mut client = server.connect();
    let response = client.get("/").response();
    assert_eq!((response.status, response.text().as_str()), (200, "okay"));
    drop(client);
    assert!(server.stop().is_drained());
}

#[test]
fn pipelined_requests_are_all_answered() {
    let server = Running::new(|request| async move { Ok(request.url().path().to_owned()) });
    let mut client = server.connect();
    let burst: String = (0..20).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    client.send(burst);
    for i in 0..20 {
        assert_eq!(client.response().text(), format!("/{i}"));
    }
}

#[test]
fn bodies_stream_both_ways() {
    let server = Running::new(|mut request| async move { Ok(request.take_body()) });
    for (framing, body) in [
        ("Content-Length: 5", "hello"),
        ("Transfer-Encoding: chunked", "5;x=y\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"),
    ] {
        let mut client: Client = server.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n{body}"));
        assert_eq!(client.response().text(), "hello");
        client.get("/").response();
    }
}

#[test]
fn a_bad_head_is_answered_and_closed() {
    let server = Running::new(|_| async { Ok("okay") });
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost : x\r\n\r\n");
    let response = client.response();
    assert_eq!(response.status, 400);
    assert!(response.says_close());
    assert_eq!(client.end(), End::Eof);
}
