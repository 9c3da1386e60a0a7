//! The wire: the bytes of requests and responses, over raw sockets.

mod common;

use std::fmt::Write as _;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{LazyLock, Mutex, mpsc};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Client, End, Log, PATIENCE, Received, Running, StoppedBy, assert_drains, case, is_refused,
    pattern, wait_until,
};
use futures_lite::io::{BufReader, Cursor};
use futures_lite::{AsyncReadExt, StreamExt, stream};
use http_types::trailers::{Sender, Trailers};
use http_types::{Body, Method, StatusCode};
use smol::Async;
use smol_graceful::{
    BodyError, DrainEnding, Limits, Request, Response, Server, Shutdown, WorkKind, stream_body,
};

/// The handler of most tests here. The path decides how the body is used.
async fn app(mut request: Request) -> http_types::Result<Response> {
    match request.url().path() {
        // The body becomes the response's body, as it comes.
        "/echo" => Ok(request.take_body().into()),
        // The whole body is read, and its error is passed on.
        "/read" => Ok(request.body_string().await?.into()),
        // The body is not read.
        path => Ok(path.into()),
    }
}

/// Asserts that the connection serves a further request.
fn assert_open(client: &mut Client) {
    let response = client.get("/again").response();
    assert_eq!((response.status, response.text().as_str()), (200, "/again"));
}

/// Asserts that `response` says `close`, and that the connection ends.
fn assert_closed(client: &mut Client, response: &Received) {
    assert!(response.says_close(), "{:?}", response.lines);
    assert_eq!(client.end(), End::Eof);
}

/// Asserts that the connection goes on or ends, as `response` has announced.
fn assert_as_told(client: &mut Client, response: &Received) {
    if response.says_close() {
        assert_eq!(client.end(), End::Eof);
    } else {
        assert_open(client);
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// Returns a POST with further fields, each with its line end.
fn post(path: &str, fields: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}")
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

/// Returns random bytes, so a misplaced part shows.
fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// Returns a response body of unknown length, whose bytes the test writes.
fn stream(from: UnixStream) -> Body {
    Body::from_reader(BufReader::new(Async::new(from).unwrap()), None)
}

// Keeping the connection.

#[test]
fn peers_have_addresses() {
    let server =
        Running::new(|request| async move { Ok(request.peer_addr().unwrap_or("").to_owned()) });
    let mut client = server.connect();
    let addr = client.stream.local_addr().unwrap().to_string();
    assert_eq!(client.get("/").response().text(), addr);
    // A field of the request does not change the peer.
    let forged = "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\n";
    client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{forged}\r\n"));
    assert_eq!(client.response().text(), addr);
    drop(client);
    assert_drains(&server);
}

// Pipelining.

/// Rules W1 and W2: async-h1 takes no byte of the next message.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Running::new(app);
    let fixed = |path| post(path, "Content-Length: 5\r\n", "fixed");
    let chunked = |path| post(path, CHUNKED, "3\r\nchu\r\n4;x=y\r\nnked\r\n0\r\nX: y\r\n\r\n");
    let long = |path| post(path, "Content-Length: 9000\r\n", &"x".repeat(9000));
    let cases: [(&str, String, &[&str]); 3] = [
        ("echoes", fixed("/echo") + &chunked("/echo") + &get("/3"), &["fixed", "chunked", "/3"]),
        ("behind unread bodies", fixed("/1") + &chunked("/2") + &get("/3"), &["/1", "/2", "/3"]),
        ("behind a long one", long("/1") + &get("/2"), &["/1", "/2"]),
    ];
    for (name, send, expect) in cases {
        case(name, || {
            let mut client = server.connect();
            client.send(send);
            for text in expect {
                assert_eq!(client.response().text(), *text);
            }
            assert_open(&mut client);
        });
    }
    assert_drains(&server);
}

/// Rule W10: responses that are ready together are sent together.
#[test]
fn responses_are_batched() {
    let server = Running::new(app);
    for count in [1, 20] {
        let mut client = server.connect();
        client.send((0..count).map(|i| get(&format!("/{i}"))).collect::<String>());
        let mut bytes = vec![0; 64 * 1024];
        let n = client.stream.peek(&mut bytes).unwrap();
        let responses = memchr::memmem::find_iter(&bytes[..n], "HTTP/1.1 200 OK\r\n").count();
        assert_eq!(responses, count);
        assert!(bytes[..n].ends_with(format!("\r\n\r\n/{}", count - 1).as_bytes()));
        for i in 0..count {
            assert_eq!(client.response().text(), format!("/{i}"));
        }
    }
    assert_drains(&server);
}

/// A response is not held back for the sake of a batch.
#[test]
fn a_response_does_not_wait_for_the_next_request() {
    let server = Running::new(app);
    let mut client = server.connect();
    // The response waits neither for the rest of a head or a body, nor for a handler.
    client.send(get("/1") + "GET /2 HT");
    assert_eq!(client.response().text(), "/1");
    client.send(
        "TP/1.1\r\nHost: x\r\n\r\n".to_owned() + &post("/read", "Content-Length: 2\r\n", "x"),
    );
    assert_eq!(client.response().text(), "/2");
    client.send("y");
    assert_eq!(client.response().text(), "xy");
    drop(client);
    assert_drains(&server);

    let (release, released) = smol::channel::bounded::<()>(1);
    let server = Running::new(move |request: Request| {
        let released = released.clone();
        async move {
            if request.url().path() == "/slow" {
                released.recv().await?;
            }
            Ok("done")
        }
    });
    let mut client = server.connect();
    client.send(get("/") + &get("/slow"));
    assert_eq!(client.response().text(), "done");
    release.try_send(()).unwrap();
    assert_eq!(client.response().text(), "done");
    drop(client);
    assert_drains(&server);
}

/// Returns the three messages of the tests below, and their answers.
fn trio() -> (String, [&'static str; 3]) {
    let fixed = post("/read", "Content-Length: 2\r\n", "ab");
    let chunked = post("/echo", CHUNKED, "2;x\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n");
    (fixed + &chunked + &get("/3"), ["ab", "abc", "/3"])
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let server = Running::new(app);
    let (send, expect) = trio();
    let mut client = server.connect();
    for byte in send.bytes() {
        client.send([byte]);
    }
    for text in expect {
        assert_eq!(client.response().text(), text);
    }
    assert_open(&mut client);
    drop(client);
    assert_drains(&server);
}

/// Each cut of the bytes has a connection of its own.
#[test]
fn bytes_may_be_cut_anywhere() {
    let server = Running::new(app);
    let (send, expect) = trio();
    let mut clients: Vec<_> = (1..send.len()).map(|_| server.connect()).collect();
    for (client, cut) in clients.iter_mut().zip(1..) {
        client.send(&send[..cut]);
    }
    // When this is answered, the server has read the first parts.
    assert_open(&mut server.connect());
    for (client, cut) in clients.iter_mut().zip(1..) {
        case(&format!("cut before {:?}", &send[cut..]), || {
            client.send(&send[cut..]);
            for text in expect {
                assert_eq!(client.response().text(), text);
            }
        });
    }
    drop(clients);
    assert_drains(&server);
}

// Bodies.

#[test]
fn bodies_reach_the_handler_and_the_client() {
    struct Case {
        rule: &'static str,
        fields: &'static str,
        send: &'static str,
        expect: &'static str,
    }
    let cases = [
        Case { rule: "RFC 9112 6.3: no body", fields: "", send: "", expect: "" },
        Case { rule: "fixed, empty", fields: "Content-Length: 0\r\n", send: "", expect: "" },
        Case { rule: "fixed", fields: "Content-Length: 5\r\n", send: "hello", expect: "hello" },
        Case { rule: "chunked, empty", fields: CHUNKED, send: "0\r\n\r\n", expect: "" },
        Case { rule: "chunked", fields: CHUNKED, send: "5\r\nhello\r\n0\r\n\r\n", expect: "hello" },
        Case {
            rule: "two chunks",
            fields: CHUNKED,
            send: "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            expect: "hello",
        },
        Case {
            rule: "RFC 9112 7.1: sizes are hexadecimal, with leading zeros",
            fields: CHUNKED,
            send: "000A\r\n0123456789\r\nb\r\n0123456789a\r\n000\r\n\r\n",
            expect: "01234567890123456789a",
        },
        Case {
            rule: "W5, RFC 9112 7.1.1: extensions are ignored",
            fields: CHUNKED,
            send: "2;a\r\nhe\r\n3 ;b=c;d=\"e;f\"\r\nllo\r\n0;g\r\n\r\n",
            expect: "hello",
        },
        Case {
            rule: "RFC 9112 7.1.2: trailers",
            fields: "Trailer: x\r\nTransfer-Encoding: chunked\r\n",
            send: "5\r\nhello\r\n0\r\nX-One: 1\r\nX-Two: 2\r\n\r\n",
            expect: "hello",
        },
        Case {
            rule: "RFC 9112 7: names of codings are in any case",
            fields: "transfer-encoding: CHUNKED\r\n",
            send: "5\r\nhello\r\n0\r\n\r\n",
            expect: "hello",
        },
        Case {
            rule: "content that looks like framing",
            fields: CHUNKED,
            send: "7\r\n0\r\n\r\nab\r\n0\r\n\r\n",
            expect: "0\r\n\r\nab",
        },
    ];
    let server = Running::new(app);
    for Case { rule, fields, send, expect } in cases {
        case(rule, || {
            let mut client = server.connect();
            for (path, expect) in [("/read", expect), ("/echo", expect), ("/unread", "/unread")] {
                // A further request after the body shows that the server has found its end.
                let response = client.send(post(path, fields, send) + &get("/next")).response();
                assert_eq!((response.status, response.text().as_str()), (200, expect), "{path}");
                assert_eq!(client.response().text(), "/next", "{path}");
            }
        });
    }
    assert_drains(&server);
}

#[test]
fn large_bodies_stream_both_ways() {
    const LENGTH: usize = 8 * 1024 * 1024;
    let server = Running::new(app);
    let noise = noise(LENGTH);
    let mut chunked = Vec::new();
    for chunk in noise.chunks(100_000) {
        chunked.extend(format!("{:x}\r\n", chunk.len()).bytes());
        chunked.extend(chunk);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    let fixed = format!("Content-Length: {LENGTH}\r\n");
    for (fields, send) in [(fixed.as_str(), &noise), (CHUNKED, &chunked)] {
        case(fields, || {
            let mut client = server.connect();
            let mut writer = client.stream.try_clone().unwrap();
            let head = post("/echo", fields, "");
            let response = thread::scope(|scope| {
                scope.spawn(move || {
                    writer.write_all(head.as_bytes()).unwrap();
                    writer.write_all(send).unwrap();
                });
                client.response()
            });
            assert!(response.body == noise, "the body came back changed");
            assert_as_told(&mut client, &response);
        });
    }
    assert_drains(&server);
}

/// The head, the first piece and the second piece each arrive before the next one exists.
#[test]
fn a_stream_arrives_piece_by_piece() {
    let (mut source, body) = UnixStream::pair().unwrap();
    let body = Mutex::new(Some(body));
    let server = Running::new(move |_| {
        let body = body.lock().unwrap().take();
        async move { Ok(body.map_or_else(|| "okay".into(), stream)) }
    });
    let mut client = server.connect();
    client.get("/");
    let mut head = Vec::new();
    loop {
        match client.line().unwrap() {
            line if line.is_empty() => break,
            line => head.push(line.to_lowercase()),
        }
    }
    assert!(head.contains(&"transfer-encoding: chunked".to_owned()), "{head:?}");
    assert!(!head.iter().any(|line| line.starts_with("content-length")), "{head:?}");
    for piece in ["first", "second"] {
        source.write_all(piece.as_bytes()).unwrap();
        assert_eq!(client.line().unwrap(), format!("{:x}", piece.len()));
        assert_eq!(client.line().unwrap(), piece);
    }
    drop(source);
    assert_eq!(client.line().unwrap(), "0");
    assert_eq!(client.line().unwrap(), "");
    client.get("/").response();
    drop(client);
    assert_drains(&server);
}

/// Rule W6: the handler gets `UnexpectedEof` for a body that is cut short, and never a clean end.
#[test]
fn a_body_cut_short_is_an_error() {
    let (report, reports) = mpsc::channel();
    let server = Running::new(move |mut request: Request| {
        let report = report.clone();
        async move {
            let mut body = Vec::new();
            let read = request.read_to_end(&mut body).await;
            report.send((read.map_err(|error| error.kind()), body.len()))?;
            Ok("okay")
        }
    });
    for (fields, send) in [
        ("Content-Length: 10\r\n", ""),
        ("Content-Length: 10\r\n", "01234"),
        (CHUNKED, ""),
        (CHUNKED, "5"),
        (CHUNKED, "5\r\n012"),
        (CHUNKED, "5\r\n01234"),
        (CHUNKED, "5\r\n01234\r\n"),
        (CHUNKED, "5\r\n01234\r\n0\r\n"),
        (CHUNKED, "5\r\n01234\r\n0\r\nX: y\r\n"),
    ] {
        case(&format!("{fields}{send}"), || {
            let mut client = server.connect();
            // The client may still listen.
            let response = client.send(post("/", fields, send)).half_close().response();
            let (read, length) = reports.recv_timeout(PATIENCE).unwrap();
            assert_eq!(read, Err(io::ErrorKind::UnexpectedEof));
            assert!(length <= 5);
            assert_closed(&mut client, &response);

            let mut client = server.connect();
            client.send(post("/", fields, send));
            client.reset();
            let (read, _) = reports.recv_timeout(PATIENCE).unwrap();
            assert!(read.is_err(), "after a reset: {read:?}");
        });
    }
    assert_drains(&server);
}

#[test]
fn a_malformed_chunk_is_an_error() {
    let (report, reports) = mpsc::channel();
    let server = Running::new(move |mut request: Request| {
        let report = report.clone();
        async move {
            let read = request.read_to_end(&mut Vec::new()).await;
            report.send(read.as_ref().map_err(io::Error::kind).copied())?;
            Ok("okay")
        }
    });
    for send in [
        "x\r\n",
        "\r\n\r\n",
        "-1\r\n",
        "+1\r\nx\r\n",
        "0x1\r\nx\r\n",
        " 1\r\nx\r\n",
        "1\nx\r\n0\r\n\r\n",
        "1;\nx\r\n0\r\n\r\n",
        "1\r\nxy\r\n0\r\n\r\n",
        "1\r\nx0\r\n\r\n",
        "10000000000000000\r\n",
        "5\r\nhello\r\n0\r\nno field\r\n\r\n",
        "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    ] {
        case(send, || {
            let mut client = server.connect();
            let response = client.send(post("/", CHUNKED, send)).response();
            let read = reports.recv_timeout(PATIENCE).unwrap();
            assert_eq!(read, Err(io::ErrorKind::InvalidData));
            assert_closed(&mut client, &response);
        });
    }
    assert_drains(&server);
}

/// Rule W16: a client gets the status for its own fault, for each way in which a program maps the
/// error of a body, unless the program has chosen another 4xx.
#[test]
fn a_bodys_fault_is_the_clients_however_the_error_is_mapped() {
    async fn read(mut request: Request, how: &str) -> http_types::Result<()> {
        let (mut all, sink) = (Vec::new(), futures_lite::io::sink());
        match how {
            "bytes" => drop(request.body_bytes().await?),
            "string" => drop(request.body_string().await?),
            "json" => drop(request.body_json::<u32>().await?),
            "form" => drop(request.body_form::<Vec<(String, String)>>().await?),
            "read" => drop(request.read_to_end(&mut all).await?),
            "take" => drop(request.take_body().take(1_000_000).read_to_end(&mut all).await?),
            "copy" => drop(futures_lite::io::copy(request.take_body(), sink).await?),
            "twice" => {
                let _ = request.read_to_end(&mut all).await;
                request.read_to_end(&mut all).await?;
            }
            "not" => {}
            _ => unreachable!("{how}"),
        }
        Ok(())
    }
    let limits = Limits::default().body_bytes(Some(10)).stall_timeout(SHORT);
    let server = Running::with(limits, |request: Request| async {
        let path = request.url().path().to_owned();
        let (how, mapping) = path[1..].split_once('/').unwrap();
        let read = read(request, how).await;
        let error = read.err().unwrap_or_else(|| http_types::Error::from_str(500, "no fault"));
        match mapping {
            "pass" => Err(error),
            "err-500" => Err(http_types::Error::from_str(500, "something went wrong")),
            "context" => Err(http_types::Error::new(500, error.into_inner().context("reading"))),
            "status" => {
                let fault = BodyError::find(error.as_ref());
                Ok(Response::new(fault.map_or(StatusCode::Conflict, BodyError::status)))
            }
            "its-status" => Ok(Response::new(error.status())),
            "panic" => panic!("on purpose: {error}"),
            status => Ok(Response::new(status.parse::<u16>()?)),
        }
    });
    let chunks = "5\r\n01234\r\n";
    let fixed = "Content-Length: 10\r\n";
    let bodies = [
        ("too long, by length", "Content-Length: 11\r\n", "0123456789x".to_owned(), 413),
        ("too long, in chunks", CHUNKED, format!("{chunks}6\r\n56789x\r\n0\r\n\r\n"), 413),
        ("malformed", CHUNKED, format!("{chunks}no size\r\n"), 400),
        ("malformed at once", CHUNKED, "no size\r\n".to_owned(), 400),
        ("cut short, by length", fixed, "01234".to_owned(), 400),
        ("cut short, in chunks", CHUNKED, format!("{chunks}5\r\n56"), 400),
        ("too slow, by length", fixed, "01234".to_owned(), 408),
        ("too slow, in chunks", CHUNKED, format!("{chunks}5\r\n56"), 408),
    ];
    let unaware =
        ["pass", "err-500", "context", "its-status", "status", "panic", "500", "502", "503", "422"];
    let aware = [("200", 200), ("400", 400), ("409", 409)];
    for (rule, fields, body, status) in &bodies {
        // All cases run at the same time, because slow clients take their time.
        let mut clients = Vec::new();
        for how in ["bytes", "string", "json", "form", "read", "take", "copy", "twice"] {
            for (mapping, status) in
                unaware.map(|mapping| (mapping, *status)).into_iter().chain(aware)
            {
                let mut client = server.connect();
                client.send(post(&format!("/{how}/{mapping}"), fields, body));
                if rule.starts_with("cut short") {
                    client.half_close();
                }
                // A body that is too long by its length reaches no handler.
                let status = if rule.ends_with("long, by length") { 413 } else { status };
                clients.push((format!("{rule}, {how}, {mapping}"), client, status));
            }
        }
        for (name, mut client, status) in clients {
            case(&name, || {
                let response = client.response();
                assert_eq!(response.status, status);
                assert_closed(&mut client, &response);
            });
        }
    }
    // If the body has no fault, or nothing has read the faulty part, the error stays the server's.
    for (how, body) in [("read", "5\r\nhello\r\n0\r\n\r\n"), ("not", "no size\r\n")] {
        for (mapping, status) in [("pass", 500), ("500", 500), ("503", 503), ("status", 409)] {
            case(&format!("{how}, {mapping}"), || {
                let mut client = server.connect();
                let response =
                    client.send(post(&format!("/{how}/{mapping}"), CHUNKED, body)).response();
                assert_eq!(response.status, status);
            });
        }
    }
    assert_drains(&server);
}

/// Rule W14: the server reserves no memory for a length that a client only declares, for any way of
/// reading.
#[test]
fn a_declared_length_reserves_nothing() {
    let server = Running::new(|mut request: Request| async move {
        match request.url().path() {
            "/string" => drop(request.body_string().await?),
            "/bytes" => drop(request.body_bytes().await?),
            "/form" => drop(request.body_form::<String>().await?),
            _ => drop(request.take_body().into_string().await?),
        }
        Ok("okay")
    });
    for length in ["1000000000000", "9223372036854775807", "18446744073709551615"] {
        for path in ["/string", "/bytes", "/form", "/body"] {
            case(&format!("{path} {length}"), || {
                let mut client = server.connect();
                client
                    .send(post(path, &format!("Content-Length: {length}\r\n"), "a="))
                    .half_close();
                let response = client.response();
                // The body is cut short, which is the client's fault (rule W6).
                assert_eq!(response.status, 400);
            });
        }
    }
    // A short length, which costs no more than a connection's buffers, is passed on.
    let server = Running::new(|request: Request| async move { Ok(format!("{:?}", request.len())) });
    for (length, told) in [(1, "Some(1)"), (16_384, "Some(16384)"), (16_385, "None")] {
        let mut client = server.connect();
        client.send(post("/", &format!("Content-Length: {length}\r\n"), &"x".repeat(length)));
        assert_eq!(client.response().text(), told);
    }
    assert_drains(&server);
}

// Requests as a handler sees them.

/// Rule W13: a handler sees the target as the client sent it, and no field that the client did not
/// send.
#[test]
fn a_handler_sees_what_was_sent() {
    let server = Running::new(|request: Request| async move {
        let mut fields: Vec<_> =
            request.iter().map(|(name, values)| format!("{name}={values}")).collect();
        fields.sort();
        let url = request.url();
        Ok(format!("{} {} {}", smol_graceful::target(&request), url, fields.join(" ")))
    });
    for (send, saw) in [
        (get("/a?b"), "/a?b http://x/a?b host=[\"x\"]"),
        (get("/\"{}|?'\\"), "/\"{}|?'\\ http://x/%22%7B%7D|?%27\\ host=[\"x\"]"),
        (
            "GET HTTP://Y:80?a HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            "HTTP://Y:80?a http://y/?a host=[\"Y:80\"]",
        ),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "* http://x/* host=[\"x\"]"),
        (
            "GET / HTTP/1.1\r\nHost: web.1:81\r\n\r\n".to_owned(),
            "/ http://host.invalid:81/ host=[\"web.1:81\"]",
        ),
        ("GET / HTTP/1.0\r\n\r\n".to_owned(), "/ http://localhost/ "),
        (
            post("/", "Content-Length: 2\r\n", "ab"),
            "/ http://x/ content-length=[\"2\"] host=[\"x\"]",
        ),
        (
            post("/", CHUNKED, "0\r\n\r\n"),
            "/ http://x/ host=[\"x\"] transfer-encoding=[\"chunked\"]",
        ),
        (
            post("/", "Content-Length: 2\r\nContent-Type: a/b\r\n", "ab"),
            "/ http://x/ content-length=[\"2\"] content-type=[\"a/b\"] host=[\"x\"]",
        ),
    ] {
        case(&send, || {
            let response = server.connect().send(&send).response();
            assert_eq!((response.status, response.text().as_str()), (200, saw));
        });
    }
    assert_drains(&server);
}

/// A handler that asks for trailers gets an answer at once if there can be none, or if the body has
/// failed.
#[test]
fn trailers_are_not_waited_for_in_vain() {
    let server = Running::new(|mut request: Request| async move {
        let trailers = request.recv_trailers();
        let read = request.read_to_end(&mut Vec::new()).await;
        let trailers = trailers.await;
        Ok(format!("{} {:?}", read.is_ok(), trailers.map(|trailers| trailers.iter().count())))
    });
    for (send, saw) in [
        (get("/"), "true None"),
        (post("/", "Content-Length: 0\r\n", ""), "true None"),
        (post("/", "Content-Length: 2\r\n", "ab"), "true None"),
        (post("/", CHUNKED, "2\r\nab\r\n0\r\n\r\n"), "true Some(0)"),
        (post("/", CHUNKED, "2\r\nab\r\n0\r\nX: y\r\n\r\n"), "true Some(1)"),
        (post("/", CHUNKED, "2\r\nab\r\nzz"), "false None"),
        (post("/", CHUNKED, "2\r\nabx"), "false None"),
    ] {
        case(&send, || {
            let response = server.connect().send(&send).response();
            assert_eq!(response.text(), saw);
        });
    }
    assert_drains(&server);
}

/// `Limits::head_bytes` and `Limits::headers` hold exactly, and a head that comes a byte at a time
/// is not more expensive.
#[test]
fn heads_are_as_long_as_the_limits_allow() {
    let limits = Limits::default().head_bytes(64 * 1024).headers(250);
    let server = Running::with(limits, |request: Request| async move {
        let longest = request.iter().map(|(_, values)| values.to_string().len()).max();
        Ok(format!("{} {longest:?}", request.iter().count()))
    });
    let fields: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    let long_field = head(&format!("Cookie: {}\r\n", "c".repeat(60_000)));
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "t".repeat(60_000));
    for (what, send, status) in [
        ("200 fields", head(&fields), 200),
        ("250 fields", head(&(fields + &"Y: z\r\n".repeat(49))), 200),
        ("251 fields", head(&"Y: z\r\n".repeat(250)), 431),
        ("a long field", long_field.clone(), 200),
        ("a long target", long_target, 200),
        ("too long", head(&format!("Cookie: {}\r\n", "c".repeat(66_000))), 431),
    ] {
        case(what, || assert_eq!(server.connect().send(&send).response().status, status));
    }
    let mut client = server.connect();
    for byte in long_field.as_bytes() {
        client.send([*byte]);
    }
    assert_eq!(client.response().status, 200);
    drop(client);
    assert_drains(&server);
}

// Bodies that the handler does not read.

/// Rule W9: a short unread body is discarded.
#[test]
fn an_unread_body_is_discarded() {
    let limits = Limits::default().discard_bytes(30);
    let server = Running::with(limits, app);
    for (fields, send) in [
        ("Content-Length: 30\r\n", "012345678901234567890123456789"),
        (CHUNKED, "5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n"),
    ] {
        // The body may come with its head or after the response.
        for cut in [0, send.len() / 2, send.len()] {
            case(&format!("{} + {}", &send[..cut], &send[cut..]), || {
                let mut client = server.connect();
                let response = client.send(post("/1", fields, &send[..cut])).response();
                assert_eq!((response.text().as_str(), response.says_close()), ("/1", false));
                client.send(&send[cut..]);
                assert_open(&mut client);
            });
        }
    }
    assert_drains(&server);
}

/// Rule W9: after a longer unread body the connection ends. The response says so (RFC 9112 section
/// 9.6), and is not lost to a reset.
#[test]
fn a_long_unread_body_ends_the_connection() {
    let limits = Limits::default().discard_bytes(3_000);
    let server = Running::with(limits, app);
    let long = "x".repeat(1 << 20);
    // Each chunk is below the limit, and all together are above it.
    let small = "3e8\r\n".to_owned() + &long[..1000] + "\r\n";
    for (what, fields, send) in [
        ("declared", "Content-Length: 1048576\r\n", long.clone()),
        ("of any length", "Content-Length: 99999999999\r\n", long.clone()),
        ("in one chunk", CHUNKED, format!("100000\r\n{long}")),
        ("in many chunks", CHUNKED, small.repeat(1000)),
    ] {
        case(what, || {
            let mut client = server.connect();
            // The bytes of the server's first read are enough to decide.
            client.send(post("/1", fields, &send[..3_500]));
            let response = client.response();
            assert_eq!((response.text().as_str(), response.says_close()), ("/1", true));
            // A client that goes on sending is not reset.
            client.send(&send[3_500..]);
            for _ in 0..10 {
                client.send([b'x'; 1000]);
            }
            assert_eq!(client.end(), End::Eof);
        });
    }
    assert_drains(&server);
}

/// If an unread body turns out to be malformed, the connection ends. After the response, the server
/// can send no error.
#[test]
fn a_malformed_unread_body_ends_the_connection() {
    let server = Running::new(app);
    for (begin, end, told) in [
        ("zz\r\n", "", true),
        ("5\r\nhello", "x\r\n", false),
        ("5\r\nhellox", "\r\n", true),
        ("5\r\nhello\r\n0\r\nContent-Length: 1\r\n\r\n", "", true),
        ("5\r\nhello\r\n", "-1\r\n", false),
    ] {
        case(&format!("{begin} + {end}"), || {
            let mut client = server.connect();
            client.send(post("/1", CHUNKED, begin));
            let response = client.response();
            assert_eq!((response.text().as_str(), response.says_close()), ("/1", told));
            client.send(end);
            assert_eq!(client.end(), End::Eof);
        });
    }
    assert_drains(&server);
}

/// The server looks at all bytes that have arrived, also at more than one read takes.
#[test]
fn a_fault_far_behind_in_an_unread_body_is_seen() {
    let (release, released) = smol::channel::bounded::<()>(1);
    let server = Running::new(move |_request| {
        let released = released.clone();
        async move {
            released.recv().await?;
            Ok("okay")
        }
    });
    let mut client = server.connect();
    let chunk = "3e8\r\n".to_owned() + &"x".repeat(1000) + "\r\n";
    client.send(post("/", CHUNKED, &(chunk.repeat(70) + "ZZ\r\n")));
    wait_until("everything has arrived", || unacknowledged(&client) == 0);
    release.send_blocking(()).unwrap();
    let response = client.response();
    assert_closed(&mut client, &response);
    assert_drains(&server);
}

/// A body counts as unread if the response is made of it but may have no body.
#[test]
fn a_body_that_cannot_be_answered_with_is_unread() {
    let server = Running::new(|mut request: Request| async move {
        let body = request.take_body();
        let status = if request.url().path() == "/204" { 204 } else { 200 };
        let mut response = Response::new(status);
        response.set_body(body);
        Ok(response)
    });
    for (request, to_head) in [
        ("HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n", true),
        ("HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", true),
        ("HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", true),
        ("POST /204 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", false),
    ] {
        case(request, || {
            let mut client = server.connect();
            let response = client.send(request).try_response(to_head).unwrap();
            assert_closed(&mut client, &response);
        });
    }
    assert_drains(&server);
}

/// Returns the number of `client`'s bytes that the server's kernel has not taken yet (Linux).
fn unacknowledged(client: &Client) -> u64 {
    let local = client.stream.local_addr().unwrap().port();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ours = format!("0100007F:{local:04X}");
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|line| line[1] == ours).unwrap();
    u64::from_str_radix(line[4].split(':').next().unwrap(), 16).unwrap()
}

/// Rule W9: the server does not wait for ever for an unread body.
#[test]
fn an_unread_body_that_does_not_come_ends_the_connection() {
    let limits = Limits::default().stall_timeout(SHORT);
    let server = Running::with(limits, app);
    for (fields, send) in
        [("Content-Length: 10\r\n", ""), ("Content-Length: 10\r\n", "01234"), (CHUNKED, "5\r\nx")]
    {
        case(&format!("{fields}{send}"), || {
            let mut client = server.connect();
            assert_eq!(client.send(post("/1", fields, send)).response().text(), "/1");
            assert_eq!(client.end(), End::Eof);
        });
    }
    assert_drains(&server);
}

/// Rule S23: while the server waits for the handler, it does not wait for an unread body.
#[test]
fn a_body_that_nobody_reads_may_come_behind_a_long_response() {
    let limits = Limits::default().stall_timeout(SHORT).head_timeout(SHORT);
    for path in ["/unread", "/given-up", "/kept"] {
        case(path, || {
            let (source, body) = UnixStream::pair().unwrap();
            let body = Mutex::new(Some(body));
            let (keep, _kept) = mpsc::channel();
            let server = Running::with(limits.clone(), move |mut request: Request| {
                let body = body.lock().unwrap().take();
                let keep = keep.clone();
                async move {
                    if matches!(request.url().path(), "/given-up" | "/kept") {
                        // The handler has a time limit of its own.
                        let mut bytes = Vec::new();
                        let _ =
                            futures_lite::future::poll_once(request.read_to_end(&mut bytes)).await;
                    }
                    if request.url().path() == "/kept" {
                        keep.send(request)?;
                    }
                    Ok(body.map_or_else(|| "okay".into(), stream))
                }
            });
            let mut client = server.connect();
            client.send(post(path, "Content-Length: 5\r\n", ""));
            while !client.line().unwrap().is_empty() {}
            // Each of these heads takes as long as a body may stall.
            for _ in 0..3 {
                assert_eq!(server.connect().send("GET ").response().status, 408);
            }
            drop(source);
            assert_eq!((client.line().unwrap(), client.line().unwrap()), ("0".into(), "".into()));
            client.send("01234");
            assert_eq!(client.get("/").response().text(), "okay");
            drop(client);
            assert_drains(&server);
        });
    }
}

// Expect: 100-continue.

const EXPECT: &str = "Content-Length: 5\r\nExpect: 100-continue\r\n";

/// Rule W7: `100 Continue` is sent once, at the handler's first read, and before the response.
#[test]
fn continue_is_said_when_the_handler_reads() {
    let (release, released) = smol::channel::bounded::<()>(1);
    let release_again = released.clone();
    let server = Running::new(move |request| {
        let released = released.clone();
        async move {
            released.recv().await?;
            app(request).await
        }
    });
    for (fields, body) in [
        (EXPECT, "hello"),
        ("Content-Length: 5\r\nexpect: 100-Continue\r\n", "hello"),
        ("Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        // An echo reads the body while its response is sent.
        for path in ["/read", "/echo"] {
            case(&format!("{path} {fields}"), || {
                let mut client = server.connect();
                client.send(post(path, fields, ""));
                client.assert_silent();
                release.try_send(()).unwrap();
                assert_eq!(client.response().lines, ["HTTP/1.1 100 Continue"]);
                let response = client.send(body).response();
                assert_eq!((response.status, response.text().as_str()), (200, "hello"));
                let _ = release.try_send(());
                assert_as_told(&mut client, &response);
                let _ = release_again.try_recv();
            });
        }
    }
    assert_drains(&server);
}

/// Rule W7: `100 Continue` comes after another response that waits to be sent.
#[test]
fn continue_comes_behind_earlier_responses() {
    let server = Running::new(app);
    for path in ["/read", "/echo"] {
        let mut client = server.connect();
        client.send(get("/1") + &post(path, EXPECT, ""));
        assert_eq!(client.response().text(), "/1");
        assert_eq!(client.response().status, 100);
        let response = client.send("hello").response();
        assert_eq!(response.text(), "hello");
        assert_as_told(&mut client, &response);
    }
    assert_drains(&server);
}

/// Rule W7: the server does not ask for a body that no handler reads. The body may come or not, so
/// the connection ends.
#[test]
fn continue_is_not_said_when_nobody_reads() {
    let server = Running::new(app);
    let mut client = server.connect();
    let response = client.send(post("/1", EXPECT, "")).response();
    assert_eq!((response.status, response.text().as_str()), (200, "/1"));
    // A client that sends the body anyway is not reset.
    client.send("hello");
    assert_closed(&mut client, &response);
    drop(client);
    assert_drains(&server);
}

/// RFC 9110 section 10.1.1: `100 Continue` is not sent in HTTP/1.0, or if the body has begun to
/// come.
#[test]
fn continue_is_not_said_without_need() {
    let server = Running::new(app);
    for (rule, send, expect) in [
        ("the body has begun to come", post("/read", EXPECT, "h"), ""),
        ("the body is here", post("/read", EXPECT, "hello"), "hello"),
        (
            "HTTP/1.0",
            "POST /read HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n".into(),
            "",
        ),
    ] {
        case(rule, || {
            let mut client = server.connect();
            client.send(&send);
            match rule {
                "the body has begun to come" | "HTTP/1.0" => {
                    client.assert_silent();
                    client.send(if send.ends_with('h') { "ello" } else { "hello" })
                }
                _ => &mut client,
            };
            let response = client.response();
            assert_eq!(response.status, 200);
            assert_eq!(response.text(), if send.contains("5\r\n") { "hello" } else { expect });
        });
    }
    assert_drains(&server);
}

/// Rule W7: after the beginning of the response, `100 Continue` would be taken for a part of it.
#[test]
fn continue_is_not_said_within_a_response() {
    let (mut source, first) = UnixStream::pair().unwrap();
    let first = Mutex::new(Some(first));
    let server = Running::new(move |mut request: Request| {
        let first = first.lock().unwrap().take().unwrap();
        async move {
            let both = Async::new(first)?.chain(request.take_body());
            Ok(Body::from_reader(BufReader::new(both), None))
        }
    });
    let mut client = server.connect();
    client.send(post("/", EXPECT, ""));
    source.write_all(b"first").unwrap();
    while !client.line().unwrap().is_empty() {}
    assert_eq!(client.line().unwrap(), "5");
    assert_eq!(client.line().unwrap(), "first");
    // From here on, the handler reads the request's body.
    drop(source);
    client.assert_silent();
    client.send("hello");
    for line in ["5", "hello", "0", ""] {
        assert_eq!(client.line().unwrap(), line);
    }
    drop(client);
    assert_drains(&server);
}

// Responses.

/// Rule W11, RFC 9110 section 9.3.2: a response to HEAD has the fields of a response to GET, and no
/// body.
#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let server = Running::new(|request: Request| async move {
        let mut response: Response = match request.url().path() {
            "/fixed" => "hello".into(),
            "/empty" => Response::new(200),
            "/none" => Response::new(204),
            "/stream" => Body::from_reader(Cursor::new("hello"), None).into(),
            _ => return Err(http_types::Error::from_str(404, "internals")),
        };
        response.insert_header("x-mark", "here");
        Ok(response)
    });
    let mut client = server.connect();
    for path in ["/fixed", "/empty", "/none", "/stream", "/missing"] {
        case(path, || {
            let expected = client.get(path).response();
            let head = format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            let received = client.send(head).response_to_head();
            let lines = |response: &Received| {
                let mut lines = response.lines.clone();
                lines.retain(|line| !line.to_lowercase().starts_with("date:"));
                lines.sort();
                lines
            };
            assert_eq!(lines(&received), lines(&expected));
        });
    }
    drop(client);
    assert_drains(&server);
}

/// The server sets the framing, and ignores the handler's fields for it (rule W11, RFC 9110 section
/// 8.6).
#[test]
fn responses_are_framed() {
    struct Case {
        rule: &'static str,
        method: Method,
        make: fn() -> Response,
        length: Option<&'static str>,
        chunked: bool,
        body: &'static str,
    }
    fn with(mut response: Response, name: &str, value: &str) -> Response {
        response.insert_header(name, value);
        response
    }
    fn unsized_body() -> Response {
        Body::from_reader(Cursor::new("hello"), None).into()
    }
    let get = Case {
        rule: "a body of known length",
        method: Method::Get,
        make: || "hello".into(),
        length: Some("5"),
        chunked: false,
        body: "hello",
    };
    let bare = Case {
        rule: "",
        method: Method::Get,
        make: || Response::new(200),
        length: None,
        chunked: false,
        body: "",
    };
    let cases = [
        Case { rule: "no body", make: || Response::new(200), length: Some("0"), ..bare },
        Case { rule: "W11: 204 with a body", make: || with_status(204, "hello".into()), ..bare },
        Case { rule: "W11: 204, unsized", make: || with_status(204, unsized_body()), ..bare },
        Case {
            rule: "W11: 204 with a declared length",
            make: || with(Response::new(204), "content-length", "5"),
            ..bare
        },
        Case { rule: "W11: 304, unsized", make: || with_status(304, unsized_body()), ..bare },
        Case {
            rule: "304 tells the length that it is told",
            make: || with(Response::new(304), "content-length", "5"),
            length: Some("5"),
            ..bare
        },
        Case {
            rule: "304 tells the length of its body",
            make: || with_status(304, "hello".into()),
            length: Some("5"),
            ..bare
        },
        Case {
            rule: "HEAD tells the length that it is told",
            method: Method::Head,
            make: || with(Response::new(200), "content-length", "12345678901"),
            length: Some("12345678901"),
            ..bare
        },
        Case {
            rule: "too short a length",
            make: || with("hello".into(), "content-length", "3"),
            ..get
        },
        Case {
            rule: "too long a length",
            make: || with("hello".into(), "content-length", "30"),
            ..get
        },
        Case {
            rule: "a length that is none",
            make: || with("hello".into(), "content-length", "x"),
            ..get
        },
        Case {
            rule: "an encoding of its own",
            make: || with("hello".into(), "transfer-encoding", "gzip, chunked"),
            ..get
        },
        Case {
            rule: "a length for a body without",
            make: || with(unsized_body(), "content-length", "3"),
            length: None,
            chunked: true,
            ..get
        },
        Case {
            rule: "a reader that has more than its length",
            make: || Body::from_reader(Cursor::new("hello, world"), Some(5)).into(),
            ..get
        },
    ];
    let makes: Vec<_> = cases.iter().map(|case| case.make).collect();
    let server = Running::new(move |request: Request| {
        let make = makes[request.url().path()[1..].parse::<usize>().unwrap()];
        async move { Ok(make()) }
    });
    for (i, Case { rule, method, length, chunked, body, .. }) in cases.into_iter().enumerate() {
        case(rule, || {
            let mut client = server.connect();
            client.send(format!("{method} /{i} HTTP/1.1\r\nHost: x\r\n\r\n"));
            let response = client.try_response(method == Method::Head).unwrap();
            assert_eq!(response.header("content-length").as_deref(), length);
            assert_eq!(response.header("transfer-encoding").is_some(), chunked);
            assert_eq!(response.text(), body);
            // A further request shows that client and server agree on the end of the response.
            assert_eq!(client.send("GET /0 HTTP/1.1\r\nHost: x\r\n\r\n").response().status, 200);
        });
    }
    assert_drains(&server);
}

fn with_status(status: u16, mut response: Response) -> Response {
    response.set_status(StatusCode::try_from(status).unwrap());
    response
}

/// Rule W15: trailers come after the last chunk if the client accepts them, and are otherwise not
/// announced. A further response shows that the client has found the end.
#[test]
fn trailers_follow_the_last_chunk() {
    struct Case {
        rule: &'static str,
        path: &'static str,
        request: &'static str,
        announced: bool,
        body: &'static str,
    }
    const SENT: &str = "5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n";
    const PLAIN: &str = "5\r\nhello\r\n0\r\n\r\n";
    let sent = Case {
        rule: "9110 10.1.4: the client accepts trailers",
        path: "/sum",
        request: "GET 1.1 TE: trailers",
        announced: true,
        body: SENT,
    };
    let withheld = Case { announced: false, body: PLAIN, ..sent };
    let cases = [
        Case { ..sent },
        Case { rule: "in a list, in any case", request: "GET 1.1 te: gzip;q=0.1,Trailers", ..sent },
        Case { rule: "on two lines", request: "GET 1.1 TE: deflate\r\nTE: trailers", ..sent },
        Case { rule: "the client says nothing", request: "GET 1.1 X: x", ..withheld },
        Case { rule: "with a weight", request: "GET 1.1 TE: trailers;q=0", ..withheld },
        Case { rule: "something else", request: "GET 1.1 TE: x-trailers", ..withheld },
        Case {
            rule: "in a field of the client's own",
            request: "GET 1.1 Trailer: trailers",
            ..withheld
        },
        Case { rule: "W8: HTTP/1.0", request: "GET 1.0 TE: trailers", body: "hello", ..withheld },
        Case { rule: "W11: HEAD", request: "HEAD 1.1 TE: trailers", body: "", ..withheld },
        Case { rule: "W11: 204", path: "/204", body: "", ..withheld },
        Case { rule: "W11: 304", path: "/304", body: "", ..withheld },
        Case { rule: "a body of known length", path: "/known", body: "hello", ..withheld },
        Case { rule: "no body", path: "/none", body: "", ..withheld },
        Case { rule: "an empty body", path: "/empty", body: "0\r\nx-sum: 5\r\n\r\n", ..sent },
        Case { rule: "sent with the last of the body", path: "/in-body", ..sent },
        Case { rule: "the sender is dropped", path: "/dropped", body: PLAIN, ..sent },
        Case { rule: "announced, and never meant", path: "/announced", ..withheld },
        Case { rule: "taken by the handler itself", path: "/taken", ..withheld },
        Case { rule: "9110 6.5.1: some do not belong there", path: "/forbidden", ..sent },
        Case {
            rule: "several, ordered by name",
            path: "/several",
            body: "5\r\nhello\r\n0\r\nx-a: 1\r\nx-a: 2\r\nx-b: 3\r\n\r\n",
            ..sent
        },
    ];
    async fn handle(request: Request) -> http_types::Result<Response> {
        let path = request.url().path().to_owned();
        let mut response: Response = match &*path {
            "/known" => "hello".into(),
            "/none" => Response::new(200),
            "/empty" => Body::from_reader(futures_lite::io::empty(), None).into(),
            "/behind" => return Ok("behind".into()),
            _ => Body::from_reader(Cursor::new("hello"), None).into(),
        };
        if let "/204" | "/304" = &*path {
            response = with_status(path[1..].parse()?, response);
        }
        response.insert_header("trailer", "x-sum");
        if path == "/announced" {
            return Ok(response);
        }
        let sender = response.send_trailers();
        let mut trailers = Trailers::new();
        trailers.insert("X-Sum", "5");
        match &*path {
            "/dropped" => return Ok(response),
            "/taken" => drop(response.recv_trailers()),
            "/forbidden" => {
                for name in ["content-length", "transfer-encoding", "host", "authorization", "date"]
                {
                    trailers.insert(name, "1");
                }
                trailers.insert("x: y\r\nevil", "1");
                trailers.insert("x-evil", "\r\n\r\nevil");
            }
            "/several" => {
                trailers = Trailers::new();
                trailers.insert("x-b", "3");
                trailers.append("x-a", "1");
                trailers.append("x-a", "2");
            }
            "/in-body" => {
                let chunks = stream::once(Ok("hello")).chain(stream::once_future(async move {
                    sender.send(trailers).await;
                    Ok("")
                }));
                response.set_body(stream_body(chunks));
                return Ok(response);
            }
            _ => {}
        }
        sender.send(trailers).await;
        Ok(response)
    }
    let server = Running::new(handle);
    for Case { rule, path, request, announced, body } in cases {
        case(rule, || {
            let (method, rest) = request.split_once(' ').unwrap();
            let (version, fields) = rest.split_once(' ').unwrap();
            let mut client = server.connect();
            let request = format!("{method} {path} HTTP/{version}\r\nHost: x\r\n{fields}\r\n\r\n");
            client.send(request + &get("/behind"));
            let head: Vec<_> = std::iter::from_fn(|| client.line().ok().filter(|l| !l.is_empty()))
                .map(|line| line.to_lowercase())
                .collect();
            assert_eq!(head.iter().any(|l| l.starts_with("trailer:")), announced, "{head:?}");
            assert_eq!(common::text(&client.take(body.len()).unwrap()), body);
            if version == "1.0" {
                assert_eq!(client.end(), End::Eof);
            } else {
                assert_eq!(client.response().text(), "behind");
            }
        });
    }
    assert_drains(&server);
}

/// Trailers of any length are sent, for any place of the last chunk in the write buffer.
#[test]
fn trailers_follow_a_body_of_any_length() {
    let server = Running::new(|request: Request| async move {
        let (body, trailer) = request.url().path()[1..].split_once('/').unwrap();
        let (body, trailer): (usize, usize) = (body.parse()?, trailer.parse()?);
        let mut response = Response::from(Body::from_reader(Cursor::new(pattern(body)), None));
        let mut trailers = Trailers::new();
        trailers.insert("x-long", "x".repeat(trailer));
        response.send_trailers().send(trailers).await;
        Ok(response)
    });
    let get = |body: usize, trailer: usize| {
        format!("GET /{body}/{trailer} HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n")
    };
    // The write buffer grows at about 4 KiB, and is sent at about 64 KiB.
    let lengths = (3500..4100).step_by(37).chain((64_500..65_600).step_by(37)).chain([300_000]);
    let mut client = server.connect();
    for length in lengths {
        for trailer in [1, 5000] {
            client.send(get(length, trailer).repeat(2));
            for _ in 0..2 {
                while !client.line().unwrap().is_empty() {}
                let mut body = Vec::new();
                loop {
                    let size = usize::from_str_radix(&client.line().unwrap(), 16).unwrap();
                    if size == 0 {
                        break;
                    }
                    body.extend(client.take(size).unwrap());
                    assert_eq!(client.take(2).unwrap(), b"\r\n");
                }
                assert!(body == pattern(length), "{length}");
                let line = client.line().unwrap();
                assert_eq!(line, format!("x-long: {}", "x".repeat(trailer)), "{length}");
                assert_eq!(client.line().unwrap(), "");
            }
        }
    }
    drop(client);
    assert_drains(&server);
}

/// The body's last chunk waits for late trailers, and a stop waits, too.
#[test]
fn late_trailers_are_waited_for() {
    let (give, senders) = mpsc::channel();
    let server = Running::new(move |request: Request| {
        let (path, give) = (request.url().path().to_owned(), give.clone());
        async move {
            if path != "/late" {
                return Ok(Response::from(path));
            }
            let mut response = Response::from(Body::from_reader(Cursor::new("hello"), None));
            give.send(response.send_trailers()).unwrap();
            Ok(response)
        }
    });
    let late = || {
        let mut client = server.connect();
        client.send("GET /late HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n");
        while !client.line().unwrap().is_empty() {}
        // The client has the body, but not its end.
        assert_eq!(client.take(10).unwrap(), b"5\r\nhello\r\n");
        client.assert_silent();
        assert_open(&mut server.connect());
        (client, senders.recv_timeout(PATIENCE).unwrap())
    };
    let send = |sender: Sender| {
        let mut trailers = Trailers::new();
        trailers.insert("x-sum", "5");
        futures_lite::future::block_on(sender.send(trailers));
    };
    let (mut client, sender) = late();
    send(sender);
    assert_eq!(client.take(15).unwrap(), b"0\r\nx-sum: 5\r\n\r\n");
    assert_open(&mut client);

    let (mut client, sender) = late();
    drop(sender);
    assert_eq!(client.take(5).unwrap(), b"0\r\n\r\n");
    assert_open(&mut client);
    drop(client);

    let (mut client, sender) = late();
    server.shutdown.stop();
    client.assert_silent();
    send(sender);
    assert_eq!(client.take(15).unwrap(), b"0\r\nx-sum: 5\r\n\r\n");
    assert_eq!(client.end(), End::Eof);
    assert!(server.outcome().is_drained());
}

/// The log says why trailers are not sent, but clients cannot fill the log.
#[test]
fn withheld_trailers_are_logged() {
    let log = Log::of_this_process();
    let count = |why| log.with(&format!("a response's trailers are not sent: {why}")).len();
    let server = Running::new(|request: Request| async move {
        let mut response: Response = match request.url().path() {
            "/known" => "hello".into(),
            _ => Body::from_reader(Cursor::new("hello"), None).into(),
        };
        response.send_trailers().send(Trailers::new()).await;
        Ok(response)
    });
    let mut client = server.connect();
    for _ in 0..20 {
        client.get("/known").response();
    }
    // Other tests may have added lines.
    assert!(count("the length of the body is known") >= 20);

    // The line of this second may be about another test's client.
    let refused = || count("the client has not sent `TE: trailers`");
    let began = Instant::now();
    wait_until("a line about the client", || {
        client.get("/").response();
        refused() > 0
    });
    for _ in 0..200 {
        client.get("/").response();
    }
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
    assert!(refused() <= seconds, "{} lines in {seconds} s", refused());
    drop(client);
    assert_drains(&server);
}

/// A reader that gives some bytes, and then an error instead of the end.
struct Failing(Cursor<&'static [u8]>);

impl futures_lite::AsyncRead for Failing {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match std::task::ready!(std::pin::Pin::new(&mut self.0).poll_read(cx, buf))? {
            0 => Poll::Ready(Err(io::Error::other("internals"))),
            n => Poll::Ready(Ok(n)),
        }
    }
}

/// Rule W10: a long body arrives whole, for each source of its bytes, and with other responses
/// before and after it.
#[test]
fn a_long_body_arrives_whole() {
    let server = Running::new(|request: Request| async move {
        let (from, length) = request.url().path()[1..].split_once('/').unwrap();
        let length: usize = length.parse().unwrap();
        let bytes = Cursor::new(pattern(length));
        let more = Cursor::new(pattern(2 * length));
        Ok(match from {
            "memory" => Body::from(pattern(length)),
            "longer" => Body::from_reader(more, Some(length)),
            "pieces" => Body::from_reader(BufReader::new(bytes), Some(length)),
            "memory-then-pieces" => {
                let mut front = pattern(length);
                let back = BufReader::new(Cursor::new(front.split_off(length / 2)));
                let both = Cursor::new(front).chain(back);
                Body::from_reader(both, Some(length))
            }
            "memory-then-longer" => {
                let mut front = pattern(length);
                let back = [front.split_off(length / 2), pattern(length)].concat();
                let both = Cursor::new(front).chain(BufReader::new(Cursor::new(back)));
                Body::from_reader(both, Some(length))
            }
            _ => Body::from_reader(bytes, None),
        })
    });
    let sources =
        ["memory", "longer", "pieces", "memory-then-pieces", "memory-then-longer", "chunks"];
    for from in sources {
        for length in [16_383, 16_384, 16_385, 100_000, 600_001] {
            case(&format!("{from} {length}"), || {
                let mut client = server.connect();
                let (small, long) = (get("/memory/3"), get(&format!("/{from}/{length}")));
                client.send(small.clone() + &long + &small + &long + &small);
                for expected in [3, length, 3, length, 3] {
                    assert!(client.response().body == pattern(expected));
                }
                let old = format!("GET /{from}/{length} HTTP/1.0\r\n\r\n");
                let (all, end) = client.send(old).rest();
                assert!(all.ends_with(&pattern(length)) && end == End::Eof);
            });
        }
    }
    assert_drains(&server);
}

/// Rules W10, W11: a head of any length goes out whole from any place in the write buffer, and
/// without the fields that must not be sent.
#[test]
fn a_head_that_crosses_what_is_sent_at_once_is_whole() {
    let server = Running::new(|request: Request| async move {
        let (status, sizes) = request.url().path()[1..].split_once('/').unwrap();
        let (head, body) = sizes.split_once('/').unwrap();
        let mut response = Response::from(pattern(body.parse().unwrap()));
        response.insert_header("x-long", "x".repeat(head.parse().unwrap()));
        Ok(with_status(status.parse().unwrap(), response))
    });
    let head = |response: &Received| response.lines.join("\r\n").len() + 4;
    let mut client = server.connect();
    let size = head(&client.send(get("/200/1/10000")).response()) + 10_000;
    // Six of these and a seventh leave `short` bytes of 64 KiB, so a head crosses the end of the
    // buffer.
    for short in (0..2500).step_by(97) {
        case(&format!("{short} bytes before 64 KiB"), || {
            let last = 64 * 1024 - 6 * size - (size - 10_000) - short;
            let mut client = server.connect();
            let many = get("/200/1/10000").repeat(6) + &get(&format!("/200/1/{last:05}"));
            client.send(many + &get("/200/2000/10") + &get("/204/2000/0"));
            for expected in [10_000, 10_000, 10_000, 10_000, 10_000, 10_000, last, 10] {
                assert!(client.response().body == pattern(expected));
            }
            assert_eq!(client.response().header("content-length"), None);
        });
    }
    let response = client.send(get("/204/70000/0")).response();
    assert_eq!((response.status, response.header("content-length")), (204, None));
    assert_eq!(response.header("x-long").map(|long| long.len()), Some(70_000));
    assert_eq!(client.send(get("/200/1/3")).response().body, pattern(3));
    drop(client);
    assert_drains(&server);
}

/// A response that cannot be finished is cut, so that the client does not take it for the whole. If
/// nothing of it was sent, the client gets another response.
#[test]
fn a_broken_response_is_cut() {
    fn failing() -> BufReader<Failing> {
        BufReader::new(Failing(Cursor::new(HUGE.as_bytes())))
    }
    static HUGE: LazyLock<String> = LazyLock::new(|| "hello".repeat(100_000));
    let server = Running::new(|request: Request| async move {
        let body = match request.url().path() {
            "/small" => Body::from_reader(BufReader::new(Failing(Cursor::new(b"hello"))), None),
            "/small-short" => Body::from_reader(Cursor::new("hello"), Some(10)),
            "/short" => Body::from_reader(Cursor::new(HUGE.as_bytes()), Some(HUGE.len() + 1)),
            "/fixed" => Body::from_reader(failing(), Some(HUGE.len() + 1)),
            "/stream" | "/trailers" => Body::from_reader(failing(), None),
            path => path.into(),
        };
        let mut response = Response::from(body);
        if request.url().path() == "/trailers" {
            response.send_trailers().send(Trailers::new()).await;
        }
        Ok(response)
    });
    for path in ["/short", "/fixed", "/stream", "/trailers"] {
        for version in ["1.0", "1.1"] {
            case(&format!("{path} {version}"), || {
                let mut client = server.connect();
                client
                    .send(format!("GET {path} HTTP/{version}\r\nHost: x\r\nTE: trailers\r\n\r\n"));
                assert_eq!(client.try_response(false).unwrap_err(), End::Reset);
            });
        }
    }
    for path in ["/small", "/small-short"] {
        case(path, || {
            let mut client = server.connect();
            client.send(get("/one") + &get(path));
            assert_eq!(client.response().text(), "/one");
            let response = client.response();
            assert_eq!(response.status, 500);
            assert_closed(&mut client, &response);
        });
    }
    assert_open(&mut server.connect());
    assert_drains(&server);
}

#[test]
fn a_handler_cannot_inject_fields() {
    let server = Running::new(|request: Request| async move {
        let mut response = Response::from("okay");
        match request.url().path() {
            "/value" => response.insert_header("x", "a\r\nevil: b"),
            "/line-feed" => response.insert_header("x", "a\nevil: b"),
            "/nul" => response.insert_header("x", "evil\0"),
            "/name" => response.insert_header("x: a\r\nevil", "b"),
            "/second" => {
                response.insert_header("x", "fine");
                response.append_header("x", "a\r\n\r\nevil");
                None
            }
            "/continue" => {
                response.set_status(StatusCode::Continue);
                None
            }
            _ => None,
        };
        Ok(response)
    });
    for path in ["/value", "/line-feed", "/nul", "/name", "/second", "/continue"] {
        case(path, || {
            let mut client = server.connect();
            let response = client.get(path).response();
            assert_eq!(response.status, 500);
            let all = response.lines.join("\n") + &response.text();
            assert!(!all.contains("evil"), "{all}");
            assert_eq!(client.get("/").response().text(), "okay");
        });
    }
    assert_drains(&server);
}

#[test]
fn a_handlers_error_is_its_status_and_no_more() {
    let server = Running::new(|request: Request| async move {
        match request.url().path() {
            "/missing" => Err(http_types::Error::from_str(404, "internals")),
            "/unwell" => Err(http_types::Error::from_str(500, "internals")),
            "/io" => Err(io::Error::other("internals").into()),
            path => Ok(path.to_owned()),
        }
    });
    let mut client = server.connect();
    for (path, status) in [("/missing", 404), ("/unwell", 500), ("/io", 500)] {
        case(path, || {
            let response = client.get(path).response();
            assert_eq!(response.status, status);
            let all = response.lines.join("\n") + &response.text();
            assert!(!all.contains("internals"), "{all}");
            assert_open(&mut client);
        });
    }
    drop(client);
    assert_drains(&server);
}

/// Rule S17: the client of a handler that panics gets a 500 and the end, and another client notices
/// nothing.
#[test]
fn a_panic_costs_one_client_a_500() {
    let server = Running::new(|request: Request| async move {
        assert!(request.url().path() != "/panic", "on purpose");
        Ok(request.url().path().to_owned())
    });
    let mut other = server.connect();
    assert_open(&mut other);
    let mut client = server.connect();
    client.send(get("/1") + &get("/panic") + &get("/3"));
    assert_eq!(client.response().text(), "/1");
    let response = client.response();
    assert_eq!(response.status, 500);
    assert_closed(&mut client, &response);
    assert_open(&mut other);
    drop((client, other));
    assert_drains(&server);
}

/// Rule S17: a handler's future may have answered, and panic when the server drops it.
#[test]
fn a_panic_in_the_drop_of_a_handlers_future_is_a_500() {
    struct PanicsInDrop;
    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    let server = Running::new(|_| {
        let panics = PanicsInDrop;
        poll_fn(move |_| {
            let _held = &panics;
            Poll::Ready(Ok("okay"))
        })
    });
    let mut client = server.connect();
    let response = client.get("/").response();
    assert_eq!(response.status, 500);
    assert_closed(&mut client, &response);
    drop(client);
    assert_drains(&server);
}

/// Rule S17: a response that panics at its first poll is not sent without the part that panicked.
/// The server polls this response early, because the response holds the request's body.
#[test]
fn a_panic_in_a_response_that_holds_the_requests_body_is_a_500() {
    let server = Running::new(|mut request: Request| async move {
        let body = request.take_body();
        let rows = stream::iter(1..=3).map(move |row| {
            assert!(row > 1 && body.len() == Some(5), "on purpose");
            Ok(format!("row {row}\n"))
        });
        Ok(stream_body(rows))
    });
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (500, "Internal Server Error\n"));
    assert_closed(&mut client, &response);
    drop(client);
    assert_drains(&server);
}

// Heads that are refused.

/// Rule W4: a bad head gets the right status, `Connection: close` and a proper end, and never a
/// reset.
#[test]
fn bad_heads_are_answered_and_closed() {
    let line = |line: &str| format!("{line}\r\nHost: x\r\n\r\n");
    let field = |field: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n");
    let many = (0..101).fold(String::new(), |mut fields, i| {
        let _ = write!(fields, "X-{i}: y\r\n");
        fields
    });
    let cases: Vec<(&str, String, u16)> = vec![
        ("garbage", "garbage\r\n\r\n".into(), 400),
        ("a TLS hello", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0".into(), 400),
        ("RFC 9112 5.1: a space before the colon", field("X : y"), 400),
        ("RFC 9112 5.2: a folded line", field("X: y\r\n z"), 400),
        ("RFC 9112 5.1: no name", field(": y"), 400),
        ("RFC 9112 5: no colon", field("X"), 400),
        ("RFC 9110 5.5: a NUL", field("X: \0"), 400),
        ("RFC 9112 2.2: a bare CR", field("X: a\rb"), 400),
        ("W3: a bare LF", "GET / HTTP/1.1\nHost: x\n\n".into(), 400),
        ("RFC 9112 3.2: no Host", "GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("RFC 9112 3.2: two Hosts", field("Host: x"), 400),
        ("RFC 9112 3.2: a bad Host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), 400),
        ("RFC 9112 3: HTTP/0.9", "GET /\r\n\r\n".into(), 400),
        ("RFC 9112 3: two spaces", line("GET  / HTTP/1.1"), 400),
        ("RFC 9112 3.2: no path", line("GET x HTTP/1.1"), 400),
        ("RFC 9112 2.3: a version in lower case", line("GET / http/1.1"), 400),
        ("W3: two lengths", field("Content-Length: 1\r\nContent-Length: 2"), 400),
        ("W3: a list of lengths", field("Content-Length: 1, 1"), 400),
        ("W3: a signed length", field("Content-Length: +1"), 400),
        ("W3: a length beyond 64 bits", field("Content-Length: 18446744073709551616"), 400),
        ("W3: length and chunks", field("Content-Length: 1\r\nTransfer-Encoding: chunked"), 400),
        ("W3: chunked is not the last", field("Transfer-Encoding: chunked, gzip"), 400),
        ("W3: chunked twice", field("Transfer-Encoding: chunked, chunked"), 400),
        ("W3: chunks in HTTP/1.0", format!("POST / HTTP/1.0\r\n{CHUNKED}\r\n"), 400),
        ("RFC 9112 6.1: an unknown coding", field("Transfer-Encoding: gzip, chunked"), 501),
        ("RFC 9110 9.1: an unknown method", line("BREW / HTTP/1.1"), 501),
        ("RFC 9110 9.1: methods are case-sensitive", line("get / HTTP/1.1"), 501),
        ("CONNECT", "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n".into(), 501),
        ("another major version", line("GET / HTTP/3.0"), 505),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
        ("RFC 9110 10.1.1: an unknown expectation", field("Expect: more"), 417),
        ("a long target", line(&format!("GET /{} HTTP/1.1", "x".repeat(17_000))), 414),
        ("a target without end", format!("GET /{}", "x".repeat(17_000)), 414),
        ("a long field", field(&format!("X: {}", "y".repeat(17_000))), 431),
        ("a field without end", format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(17_000)), 431),
        ("many fields", field(many.trim_end()), 431),
    ];
    let (called, calls) = mpsc::channel();
    let server = Running::new(move |request| {
        called.send(()).unwrap();
        app(request)
    });
    for (rule, send, status) in cases {
        case(rule, || {
            let refused = |client: &mut Client| {
                let response = client.response();
                assert_eq!(response.status, status);
                assert_closed(client, &response);
            };
            refused(server.connect().send(&send));
            // This holds even if the client goes on sending.
            refused(server.connect().send(&send).send(vec![b'x'; 100_000]));
            assert_eq!(calls.try_iter().count(), 0);
            // This holds after a good request, too.
            let mut client = server.connect();
            assert_eq!(client.send(get("/1") + &send).response().text(), "/1");
            refused(&mut client);
            assert_eq!(calls.try_iter().count(), 1);
        });
    }
    assert_drains(&server);
}

/// A client that closes its side in the middle of a head still listens.
#[test]
fn half_a_head_is_refused() {
    let server = Running::new(app);
    for send in ["G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\n", "GET / HTTP/1.1\r\nHo"]
    {
        let mut client = server.connect();
        let response = client.send(send).half_close().response();
        assert_eq!(response.status, 400);
        assert_closed(&mut client, &response);
    }
    // A client that closes its side after whole requests gets its answers.
    let mut client = server.connect();
    client.send(get("/1") + &post("/read", "Content-Length: 2\r\n", "ab")).half_close();
    assert_eq!(client.response().text(), "/1");
    assert_eq!(client.response().text(), "ab");
    assert_eq!(client.end(), End::Eof);
    drop(client);
    assert_drains(&server);
}

// Deadlines.

/// A short time limit, which the tests let pass.
const SHORT: Duration = Duration::from_millis(200);

/// Returns limits without any bound, to which a test adds one.
fn unlimited() -> Limits {
    Limits::default()
        .head_timeout(Duration::MAX)
        .idle_timeout(Duration::MAX)
        .stall_timeout(Duration::MAX)
        .body_rate(0)
        .connections(100)
}

/// Returns a handle of a stop without time limits.
fn endless() -> Shutdown {
    Shutdown::new().grace(Duration::MAX).linger(Duration::MAX)
}

/// Zero means *at once*, for each duration of `Limits` and `Shutdown`, and never means *no limit*.
#[test]
fn zero_means_at_once() {
    fn with(change: impl FnOnce(Limits) -> Limits) -> Running {
        let limits = change(unlimited());
        serve(limits, &endless())
    }
    fn serve(limits: Limits, shutdown: &Shutdown) -> Running {
        let server = Server::new(|mut request: Request| async move {
            match request.url().path() {
                "/never" => futures_lite::future::pending().await,
                "/read" => Ok(request.body_string().await?.into()),
                "/flood" => {
                    let chunks = stream::repeat(()).map(|()| Ok(vec![b'x'; 65_536]));
                    Ok(Response::from(stream_body(chunks)))
                }
                path => Ok(Response::from(path)),
            }
        });
        Running::of(server.limits(limits).stopped_by(shutdown))
    }
    case("head_timeout", || {
        let server = with(|limits| limits.head_timeout(Duration::ZERO));
        let response = server.connect().send("GET / HTTP/1.1\r\nHo").response();
        assert_eq!((response.status, response.says_close()), (408, true));
        // A head in one piece is in time.
        assert_eq!(server.connect().get("/whole").response().text(), "/whole");
        assert_drains(&server);
    });
    case("idle_timeout", || {
        let server = with(|limits| limits.idle_timeout(Duration::ZERO));
        assert_eq!(server.connect().end(), End::Eof);
        server.shutdown.abort();
        assert!(server.outcome().is_drained());
    });
    case("stall_timeout of a body", || {
        let server = with(|limits| limits.stall_timeout(Duration::ZERO));
        let mut client = server.connect();
        let response = client.send(post("/read", "Content-Length: 2\r\n", "x")).response();
        assert_eq!((response.status, response.says_close()), (408, true));
        drop(client);
        assert_drains(&server);
    });
    case("stall_timeout of a reader", || {
        let server = with(|limits| limits.stall_timeout(Duration::ZERO));
        let mut client = server.connect();
        client.get("/flood");
        assert_eq!(client.stream.peek(&mut [0]).unwrap(), 1);
        // The client does not read any more.
        assert_drains(&server);
    });
    case("linger", || {
        let server = serve(unlimited(), &endless().linger(Duration::ZERO));
        let mut client = server.connect();
        assert_open(&mut client);
        assert!(server.stop().is_drained());
        assert_eq!(client.end(), End::Eof);
    });
    case("grace", || {
        let server = serve(unlimited(), &endless().grace(Duration::ZERO));
        let mut client = server.connect();
        client.get("/never");
        wait_until("it has come", || server.shutdown.in_flight() == 1);
        assert_eq!(server.stop().ending, DrainEnding::TimedOut);
    });
    case("lame_duck", || {
        let server = serve(unlimited(), &endless().lame_duck(Duration::ZERO));
        assert!(server.stop().is_drained());
    });
}

/// `Duration::MAX` means *no limit*, and no sum or product of it overflows.
#[test]
fn the_longest_duration_means_no_limit() {
    let limits = unlimited().body_rate(u64::MAX);
    let shutdown = endless().lame_duck(Duration::MAX);
    let server = Running::of(Server::new(app).limits(limits).stopped_by(&shutdown));
    let (mut idle, mut slow) = (server.connect(), server.connect());
    assert_open(&mut idle);
    slow.send("POST /read HTTP/1.1\r\nHost: x\r\n");
    // The lame duck does not end, so clients are still accepted.
    server.shutdown.stop();
    let response = server.connect().get("/new").response();
    assert_eq!((response.text().as_str(), response.says_close()), ("/new", true));
    slow.send("Content-Length: 1\r\n\r\nx");
    assert_eq!(slow.response().text(), "x");
    assert!(server.is_serving());
    drop((idle, slow));
    server.shutdown.abort();
    assert!(server.outcome().is_drained());

    // In the drain, too, an idle connection has no limit.
    let server = Running::of(Server::new(app).limits(unlimited()).stopped_by(&endless()));
    let mut idle = server.connect();
    assert_open(&mut idle);
    server.shutdown.stop();
    wait_until("it drains", || is_refused(server.addr()));
    idle.assert_silent();
    let response = idle.get("/last").response();
    assert_closed(&mut idle, &response);
    assert!(server.outcome().is_drained());
}

#[test]
fn a_head_has_to_come_in_time() {
    let limits = Limits::default().head_timeout(SHORT);
    let server = Running::with(limits, app);
    let late = |client: &mut Client| {
        let response = client.response();
        assert_eq!(response.status, 408);
        assert_closed(client, &response);
    };
    late(server.connect().send("GET / HTTP/1.1\r\nHo"));

    case("on a connection that was used", || {
        let mut client = server.connect();
        client.get("/").response();
        late(client.send("G"));
    });
    case("behind a request", || {
        let mut client = server.connect();
        assert_eq!(client.send(get("/1") + "GET / HT").response().text(), "/1");
        late(&mut client);
    });
    case("drop by drop", || {
        let mut client = server.connect();
        client.send("GET /");
        let mut writer = client.stream.try_clone().unwrap();
        let (stop, stopped) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while stopped.try_recv() == Err(mpsc::TryRecvError::Empty)
                    && writer.write_all(b"x").is_ok()
                {
                    // This pause is the pace of the client.
                    thread::sleep(Duration::from_millis(5));
                }
            });
            let response = client.response();
            drop(stop);
            assert_eq!(response.status, 408);
            assert_closed(&mut client, &response);
        });
    });
    assert_drains(&server);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    // This is longer than a busy machine keeps a client from sending its request.
    let limits = Limits::default().idle_timeout(Duration::from_secs(1));
    let server = Running::with(limits, app);
    let mut used = server.connect();
    assert_open(&mut used);
    assert_eq!(server.connect().end(), End::Eof);
    assert_eq!(used.end(), End::Eof);
    drop(used);
    assert_drains(&server);
}

#[test]
fn a_stalled_upload_is_ended() {
    let limits = Limits::default().stall_timeout(SHORT);
    let (report, reports) = mpsc::channel();
    let server = Running::with(limits, move |mut request: Request| {
        let report = report.clone();
        async move {
            let read = request.read_to_end(&mut Vec::new()).await;
            report.send(read.as_ref().map_err(io::Error::kind).copied())?;
            Ok(if request.url().path() == "/pass" { read?.to_string() } else { "okay".into() })
        }
    });
    for (rule, send) in [
        ("fixed", post("/pass", "Content-Length: 10\r\n", "01234")),
        ("chunked", post("/pass", CHUNKED, "5\r\n012")),
        ("between chunks", post("/pass", CHUNKED, "5\r\n01234\r\n")),
        ("after 100 Continue", post("/pass", EXPECT, "")),
        ("behind a request", post("/pass", "", "") + &post("/pass", "Content-Length: 1\r\n", "")),
    ] {
        // If the handler passes the error on, the status is that of the client's fault.
        for (path, status) in [("/pass", 408), ("/keep", 200)] {
            case(&format!("{rule} {path}"), || {
                let mut client = server.connect();
                client.send(send.replace("/pass", path));
                match rule {
                    "after 100 Continue" => assert_eq!(client.response().status, 100),
                    "behind a request" => {
                        assert_eq!(client.response().status, 200);
                        assert_eq!(reports.recv_timeout(PATIENCE).unwrap(), Ok(0));
                    }
                    _ => {}
                }
                let response = client.response();
                let read = reports.recv_timeout(PATIENCE).unwrap();
                assert_eq!(read, Err(io::ErrorKind::TimedOut));
                assert_eq!(response.status, status);
                assert_closed(&mut client, &response);
            });
        }
    }
    assert_drains(&server);
}

/// Sending a response gives no more time to a body that does not come.
#[test]
fn a_stalled_upload_is_ended_while_its_response_streams() {
    let limits = Limits::default().stall_timeout(SHORT).body_rate(0);
    let (report, reports) = mpsc::channel();
    let server = Running::with(limits, move |mut request: Request| {
        let report = report.clone();
        async move {
            let mut body = request.take_body();
            smol::spawn(async move {
                let read = body.read_to_end(&mut Vec::new()).await;
                let _ = report.send(read.map_err(|error| error.kind()));
            })
            .detach();
            let ticks = smol::Timer::interval(SHORT / 20).map(|_| Ok("tick"));
            Ok(Response::from(stream_body(ticks)))
        }
    });
    let mut client = server.connect();
    client.send(post("/", "Content-Length: 5\r\n", "0"));
    let begun = Instant::now();
    let read = loop {
        client.line().unwrap();
        if let Ok(read) = reports.try_recv() {
            break read;
        }
        assert!(begun.elapsed() < PATIENCE, "the reader still waits");
    };
    assert_eq!(read, Err(io::ErrorKind::TimedOut));
    drop(client);
    assert_drains(&server);
}

/// The time of a slow handler does not count for its client.
#[test]
fn a_slow_handler_is_waited_for() {
    let limits = Limits::default()
        .head_timeout(Duration::from_millis(10))
        .idle_timeout(Duration::from_millis(10))
        .stall_timeout(Duration::from_millis(10));
    let (release, released) = smol::channel::bounded::<()>(1);
    let server = Running::with(limits, move |_| {
        let released = released.clone();
        async move {
            released.recv().await?;
            Ok("okay")
        }
    });
    // The ten milliseconds may be over before the request is sent, and then the test tries again.
    let mut client = loop {
        let mut client = server.connect();
        client.send(get("/"));
        let peeked = {
            client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            client.stream.peek(&mut [0])
        };
        client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match peeked {
            Ok(0) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Ok(_) => panic!("an answer came early"),
            Err(_) => break client,
        }
    };
    release.try_send(()).unwrap();
    assert_eq!(client.response().text(), "okay");
    drop(client);
    assert_drains(&server);
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    const LENGTH: usize = 32 << 20;
    let limits = Limits::default().stall_timeout(SHORT);
    let server = Running::with(limits, |request: Request| async move {
        Ok(match request.url().path() {
            "/fixed" => Body::from(vec![b'x'; LENGTH]),
            _ => Body::from_reader(BufReader::new(futures_lite::io::repeat(b'x')), None),
        })
    });
    for path in ["/fixed", "/stream"] {
        case(path, || {
            let mut client = server.connect();
            client.get(path);
            wait_until("the client is given up", || {
                // The connection has to be there first.
                client.stream.peek(&mut [0]).unwrap_or(1) > 0 && server.shutdown.in_flight() == 0
            });
            let (bytes, end) = client.rest();
            assert_eq!(end, End::Reset);
            assert!(bytes.len() < LENGTH, "all of it had room: make it larger");
        });
    }
    assert_drains(&server);
}

/// A client that takes nothing gains no time by sending bytes of a body.
#[test]
fn a_client_that_sends_and_does_not_read_is_given_up() {
    let limits = Limits::default().stall_timeout(SHORT);
    let server = Running::with(limits, |mut request: Request| async move {
        let mut body = request.take_body();
        smol::spawn(async move { body.read_to_end(&mut Vec::new()).await }).detach();
        Ok(Body::from_reader(BufReader::new(futures_lite::io::repeat(b'x')), None))
    });
    let mut client = server.connect();
    client.send(post("/", "Content-Length: 1000000\r\n", ""));
    wait_until("the client is given up", || {
        // This pause is the pace of the client.
        thread::sleep(SHORT / 10);
        let _ = client.stream.write(b"x");
        client.stream.peek(&mut [0]).unwrap_or(1) > 0 && server.shutdown.in_flight() == 0
    });
    assert_drains(&server);
}

// Bad company.

/// Bad clients do not disturb other clients, and leave nothing behind.
#[test]
fn clients_do_not_disturb_each_other() {
    let server = Running::new(app);
    let mut live = server.connect();
    assert_open(&mut live);
    let random = noise(50_000);
    let half_body = post("/read", "Content-Length: 10\r\n", "01234");
    let half_echo = post("/echo", CHUNKED, "5\r\nhello\r\n");
    let cases: [(&str, Vec<u8>); 8] = [
        ("nothing", Vec::new()),
        ("line ends", b"\r\n".repeat(10_000)),
        ("noise", random),
        ("half a head", b"GET / HT".to_vec()),
        ("half a body", half_body.into()),
        ("half an echo", half_echo.into()),
        ("a request", get("/").into()),
        ("many requests", get("/").repeat(1000).into()),
    ];
    for (what, bytes) in cases {
        for reset in [false, true] {
            case(&format!("{what}, reset: {reset}"), || {
                let mut bad: Vec<_> = (0..5).map(|_| server.connect()).collect();
                for client in &mut bad {
                    // The server may have closed already.
                    let _ = client.stream.write_all(&bytes);
                }
                assert_open(&mut live);
                for client in bad {
                    if reset {
                        client.reset();
                    } else {
                        drop(client);
                    }
                }
                assert_open(&mut live);
                wait_until("only one is left", || server.shutdown.in_flight() == 1);
                assert_open(&mut live);
            });
        }
    }
    drop(live);
    assert_drains(&server);
}

/// A client that leaves while its response is streamed ends the stream.
#[test]
fn a_stream_ends_with_its_client() {
    let server = Running::new(|_| async {
        Ok(Body::from_reader(BufReader::new(futures_lite::io::repeat(b'x')), None))
    });
    for reset in [false, true] {
        let mut client = server.connect();
        client.get("/");
        let mut some = vec![0; 100_000];
        client.stream.read_exact(&mut some).unwrap();
        assert_eq!(server.shutdown.in_flight(), 1);
        if reset {
            client.reset();
        } else {
            drop(client);
        }
        wait_until("the stream has ended", || server.shutdown.in_flight() == 0);
    }
    assert_drains(&server);
}

// Fairness and deadlines under load.

/// Empty lines before the first request (RFC 9112 section 2.2) do not make the server deaf.
#[test]
fn a_request_behind_empty_lines_is_answered() {
    let server = Running::new(app);
    for lines in ["\r\n", "\r\n\r\n"] {
        let mut client = server.connect();
        client.send(lines);
        // The server has read the empty lines, because it has answered another client since, on the
        // same thread.
        server.connect().get("/other").response();
        assert_eq!(client.get("/1").response().text(), "/1");
    }
    assert_drains(&server);
}

/// A client that reads as fast as the server writes leaves others their turn on the only thread.
#[test]
fn a_fast_client_leaves_others_their_turn() {
    let server = Running::new(|request: Request| async move {
        Ok(match request.url().path() {
            "/endless" => Body::from_reader(BufReader::new(futures_lite::io::repeat(b'x')), None),
            path => path.into(),
        })
    });
    let mut fast = server.connect();
    fast.get("/endless");
    let mut reader = fast.stream.try_clone().unwrap();
    thread::spawn(move || {
        let mut bytes = vec![0; 1024 * 1024];
        while reader.read(&mut bytes).is_ok_and(|n| n > 0) {}
    });
    for _ in 0..20 {
        assert_eq!(server.connect().get("/1").response().text(), "/1");
    }
    fast.stream.shutdown(std::net::Shutdown::Both).unwrap();
    drop(fast);
    assert_drains(&server);
}

/// A stream that is always ready and never has a byte leaves the only thread to other clients. The
/// grace ends its request, and the outcome names it.
#[test]
fn a_stream_of_nothing_leaves_others_their_turn() {
    let server =
        Running::stopped_by(&Shutdown::new().grace(SHORT), |request: Request| async move {
            Ok(match request.url().path() {
                "/nothing" => stream_body(stream::repeat_with(|| Ok(""))),
                path => path.into(),
            })
        });
    let mut nothing = server.connect();
    nothing.get("/nothing");
    while !nothing.line().unwrap().is_empty() {}
    for _ in 0..20 {
        assert_eq!(server.connect().get("/1").response().text(), "/1");
    }
    let outcome = server.stop();
    assert_eq!((outcome.ending, outcome.cut.len()), (DrainEnding::TimedOut, 1), "{outcome}");
    let WorkKind::Connection { target: path, .. } = &outcome.cut[0].kind else {
        panic!("{outcome}")
    };
    assert_eq!(path, "/nothing");
    assert!(nothing.rest().0.is_empty());
}

/// Bytes that arrived in time are served, although the server had no time to look at them.
#[test]
fn a_busy_server_does_not_blame_its_clients() {
    let (entered, entries) = mpsc::channel();
    let limits = Limits::default().head_timeout(SHORT).stall_timeout(SHORT);
    let server = Running::with(limits, move |request: Request| {
        if request.url().path() == "/block" {
            entered.send(()).unwrap();
            // The test needs a handler that blocks its thread for longer than the clients' limits.
            thread::sleep(SHORT * 3);
        }
        app(request)
    });
    for (first, rest) in [
        ("GET /1 HTTP/1.1\r\nHo", "st: x\r\n\r\n"),
        ("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234", "56789"),
    ] {
        let mut client = server.connect();
        client.send(first);
        let mut other = server.connect();
        other.get("/block");
        entries.recv_timeout(PATIENCE).unwrap();
        client.send(rest);
        assert_eq!(client.response().status, 200, "{first}");
        other.response();
    }
    assert_drains(&server);
}
