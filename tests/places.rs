//! Promises and places: a connection does what its response has announced, no task waits for ever,
//! and a place belongs to a client that uses it.
//!
//! Clients use raw sockets, or a pipe in memory if a socket would show the server too much. A test
//! that needs the sweep waits for an effect of the sweep, so that no test depends on the speed of
//! the machine. Only the tests of the least rate of a body need five seconds.

mod common;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Blocking, Client, Directory, Dropped, End, HeldHandlers, PATIENCE, PipeClient, Received,
    Running, Stoppable, StoppedBy, assert_drains, case, pattern, wait_until,
};
use futures_lite::future::{self, poll_once};
use futures_lite::io::BufReader;
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt, stream};
use http_types::headers::UPGRADE;
use smol::{Async, Timer, channel};
use smol_graceful::{
    Address, Body, ClientLeft, Connection, Limits, Listener, Request, Response, Server, Shutdown,
    StatusCode, Token, stream_body,
};

// ── Promises ────────────────────────────────────────────────────────────────────────────────

/// A request whose body comes in two parts. The second part comes after the response or after `100
/// Continue`.
struct Upload {
    name: &'static str,
    fields: &'static str,
    begin: Vec<u8>,
    rest: Vec<u8>,
    /// The body without its framing.
    content: Vec<u8>,
    /// `true` if the response has to say `close` when the body is not read. With `None`, both are
    /// right.
    closes: Option<bool>,
}

/// More than `Limits::discard_bytes` by default.
const LONG: usize = 300_000;

fn uploads() -> Vec<Upload> {
    let upload = |name, fields, (content, body): (&[u8], Vec<u8>), begin: usize, closes| Upload {
        name,
        fields,
        begin: body[..begin].to_vec(),
        rest: body[begin..].to_vec(),
        content: content.to_vec(),
        closes,
    };
    let long = pattern(LONG);
    let short = &long[..1000];
    let plain = |content: &[u8]| content.to_vec();
    let chunks = |size, content: &[u8]| {
        let mut body = Vec::new();
        for chunk in content.chunks(size) {
            body.extend(format!("{:x}\r\n", chunk.len()).bytes());
            body.extend([chunk, b"\r\n"].concat());
        }
        [&body[..], b"0\r\n\r\n"].concat()
    };
    let fixed = |content| (content, plain(content));
    let chunked = |size, content| (content, chunks(size, content));
    vec![
        upload("short", "Content-Length: 1000\r\n", fixed(short), 10, Some(false)),
        upload("long", "Content-Length: 300000\r\n", fixed(&long), 10, Some(true)),
        upload("a short chunk", CHUNKED, chunked(1000, short), 10, Some(false)),
        upload("a long chunk", CHUNKED, chunked(LONG, &long), 10, None),
        upload("many chunks", CHUNKED, chunked(1000, &long), 10, None),
        upload("expected", EXPECT, fixed(b"0123456789abc"), 0, Some(true)),
        upload("expected in chunks", EXPECT_CHUNKED, chunked(1000, short), 0, Some(true)),
    ]
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
const EXPECT: &str = "Content-Length: 13\r\nExpect: 100-continue\r\n";
const EXPECT_CHUNKED: &str = "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n";

/// The method and the path for every kind of response.
const ANSWERS: [(&str, &str); 6] = [
    ("POST", "/memory"),
    ("POST", "/long"),
    ("POST", "/stream"),
    ("POST", "/204"),
    ("HEAD", "/memory"),
    ("HEAD", "/stream"),
];

fn answer(path: &str) -> Response {
    match path {
        "/long" => Body::from(pattern(LONG)).into(),
        "/stream" => stream_body(stream::iter([Ok("one"), Ok("two")])).into(),
        "/204" => Response::new(StatusCode::NoContent),
        path => path.into(),
    }
}

/// Sends an upload. Returns the final response, and `true` if the server has asked for the body.
fn upload(client: &mut Client, method: &str, path: &str, upload: &Upload) -> (Received, bool) {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{}\r\n", upload.fields);
    client.send([head.as_bytes(), &upload.begin].concat());
    let response = client.try_response(method == "HEAD").unwrap();
    if response.status != 100 {
        return (response, false);
    }
    client.send(&upload.rest);
    (client.try_response(method == "HEAD").unwrap(), true)
}

/// Asserts that the connection ends or goes on, as `response` has announced.
fn assert_as_told(client: &mut Client, response: &Received, sent: bool, upload: &Upload) {
    if response.says_close() {
        assert_eq!(client.end(), End::Eof);
        return;
    }
    assert!(sent || !upload.fields.contains("Expect"), "the client cannot know what to send next");
    if !sent {
        client.send(&upload.rest);
    }
    assert_open(client);
}

/// Rules W7, W9 and S23: the announcement holds while a task of the handler's holds the body and
/// does not read it.
#[test]
fn a_body_that_a_task_holds_ends_the_connection_as_announced() {
    let held = Mutex::new(Vec::new());
    let server = Running::new(move |request: Request| {
        let response = answer(request.url().path());
        held.lock().unwrap().push(request);
        async { Ok(response) }
    });
    for body in uploads() {
        for (method, path) in ANSWERS {
            case(&format!("{method} {path}, {}", body.name), || {
                let mut client = server.connect();
                let (response, sent) = upload(&mut client, method, path, &body);
                assert!(!sent, "nobody has asked for the body");
                assert_eq!(response.says_close(), body.closes.unwrap_or(response.says_close()));
                assert_as_told(&mut client, &response, sent, &body);
            });
        }
    }
    assert_drains(&server);
}

/// Rules W7 and W9: the announcement holds while a task reads the body, at any point of the read.
#[test]
fn a_body_that_a_task_reads_ends_the_connection_as_announced() {
    let server = Running::new(|mut request: Request| {
        let response = answer(request.url().path());
        smol::spawn(async move { request.read_to_end(&mut Vec::new()).await }).detach();
        async { Ok(response) }
    });
    for body in uploads() {
        for (method, path) in ANSWERS {
            case(&format!("{method} {path}, {}", body.name), || {
                for _ in 0..10 {
                    let mut client = server.connect();
                    let (response, sent) = upload(&mut client, method, path, &body);
                    assert_as_told(&mut client, &response, sent, &body);
                }
            });
        }
    }
    assert_drains(&server);
}

/// Rule S23: the announcement holds for a response that is made of the request's body. The response
/// reads the whole body, or the server discards the rest.
#[test]
fn a_response_made_of_the_body_keeps_the_connection() {
    let server = Running::new(|mut request: Request| async move {
        let path = request.url().path().to_owned();
        let body = request.take_body();
        Ok::<Response, _>(match path.as_str() {
            "/echo" => body.into(),
            "/take" => Body::from_reader(body.take(10), None).into(),
            "/take10" => Body::from_reader(body.take(10), Some(10)).into(),
            path => path.into(),
        })
    });
    for body in uploads() {
        for path in ["/echo", "/take", "/take10"] {
            case(&format!("{path}, {}", body.name), || {
                let mut client = server.connect();
                let mut writer = Client::from(client.stream.try_clone().unwrap());
                let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{}\r\n", body.fields);
                client.send([head.as_bytes(), &body.begin].concat());
                if body.fields.contains("Expect") {
                    assert_eq!(client.response().status, 100);
                }
                // The server may take more bytes only after the client has taken some of the
                // response.
                let response = thread::scope(|scope| {
                    scope.spawn(|| writer.send(&body.rest));
                    client.response()
                });
                assert!(!response.says_close(), "{:?}", response.lines);
                let sent = match path {
                    "/echo" => &body.content[..],
                    _ => &body.content[..10],
                };
                assert!(response.body == sent, "{} bytes", response.body.len());
                assert_open(&mut client);
            });
        }
    }
    assert_drains(&server);
}

// ── Waits that have to end ──────────────────────────────────────────────────────────────────

/// A handler that asks for trailers before it has read the body learns at once that there are none.
#[test]
fn trailers_of_a_body_without_chunks_are_not_waited_for() {
    let server = Running::new(|mut request: Request| async move {
        Ok(format!("{}", request.recv_trailers().await.is_none()))
    });
    for send in [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        "POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\n",
    ] {
        case(send, || assert_eq!(server.connect().send(send).response().text(), "true"));
    }
    assert_drains(&server);
}

/// Rule W6: a task that waits for more of a discarded body gets an error, also on a stream that
/// keeps one waker only.
#[test]
fn a_reader_of_a_discarded_body_is_told() {
    for kind in STREAMS {
        for (fields, begin, rest) in [
            ("Content-Length: 10\r\n", "hello", "world"),
            (CHUNKED, "5\r\nhello\r\n", "0\r\n\r\n"),
            (CHUNKED, "a\r\nhello", "world\r\n0\r\n\r\n"),
        ] {
            for (path, close) in
                [("/memory", false), ("/stream", false), ("/204", false), ("/memory", true)]
            {
                case(&format!("{kind} {path} {begin:?}, close: {close}"), || {
                    let (server, mut client, read) = reading_elsewhere(kind);
                    let close = if close { "Connection: close\r\n" } else { "" };
                    client.send(format!(
                        "POST {path} HTTP/1.1\r\nHost: x\r\n{close}{fields}\r\n{begin}"
                    ));
                    assert_eq!(read.recv_timeout(PATIENCE), Ok(ErrorKind::UnexpectedEof));
                    if close.is_empty() {
                        client.send(format!("{rest}GET /now HTTP/1.1\r\nHost: x\r\n\r\n"));
                        client.take_to(b"/now").unwrap();
                    }
                    drop(client);
                    wait_until("its end", || server.shutdown.in_flight() == 0);
                    assert!(server.stop().is_drained());
                });
            }
        }
    }
}

/// Starts a server whose handler answers as soon as another thread waits for more than five bytes
/// of the body. The thread reports the end of its wait.
fn reading_elsewhere(kind: &str) -> (Running, Client<AnyStream>, Receiver<ErrorKind>) {
    let (report, read) = mpsc::channel();
    let server = Server::new(move |mut request: Request| {
        let path = request.url().path().to_owned();
        let report = report.clone();
        async move {
            if path == "/now" {
                return Ok(answer(&path));
            }
            let (waits, waiting) = channel::bounded(1);
            thread::spawn(move || {
                future::block_on(async {
                    let mut body = request.take_body();
                    body.read_exact(&mut [0; 5]).await.unwrap();
                    let mut bytes = Vec::new();
                    let mut rest = pin!(body.read_to_end(&mut bytes));
                    assert!(poll_once(&mut rest).await.is_none());
                    waits.send(()).await.unwrap();
                    report.send(rest.await.unwrap_err().kind()).unwrap();
                });
            });
            waiting.recv().await?;
            Ok(answer(&path))
        }
    });
    let (client, connection) = streams(kind);
    let listener = Listener::from_stream(stream::once(Ok(connection)));
    let listener = match kind {
        "wrapped pair" => listener.wrap(|connection| async { Ok(connection) }),
        _ => listener,
    };
    (Running::on(server, [listener]), client, read)
}

// ── Clients that leave ──────────────────────────────────────────────────────────────────────

/// Rule S22 without a stop: a client that has reset its connection keeps no place.
#[test]
fn a_client_that_is_gone_gives_its_place_back() {
    let directory = Directory::new();
    for (path, socket) in ["/handler", "/body", "/silent", "/long", "/upgraded"]
        .iter()
        .flat_map(|path| ["tcp", "unix"].map(|socket| (*path, socket)))
    {
        case(&format!("{path} over {socket}"), || {
            let (handlers, enter, released) = HeldHandlers::new();
            let (gone, dropped) = mpsc::channel();
            let (tell, told) = mpsc::channel();
            let handler = move |request: Request| {
                leaving(request, enter.clone(), released.clone(), gone.clone(), tell.clone())
            };
            let limits = quick_sweeps().connections(1);
            let server =
                Running::on(Server::new(handler).limits(limits), [listener(socket, &directory)]);
            let mut occupant = server.connect();
            match path {
                "/upgraded" => {
                    occupant.send(HANDSHAKE);
                    assert_eq!(occupant.response().status, 101);
                }
                "/body" => {
                    _ = occupant.send("POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
                }
                path => _ = occupant.get(path),
            }
            handlers.wait_for_call(path);
            if matches!(path, "/silent" | "/long") {
                while !occupant.line().unwrap().is_empty() {}
                occupant.take(5).unwrap();
            }
            let mut next = server.connect();
            next.get("/now");
            occupant.reset();
            assert_eq!(next.response().text(), "now");
            if path == "/upgraded" {
                // The owner of the stream learns of the end at its next read.
                handlers.release();
                assert_eq!(told.recv_timeout(PATIENCE).unwrap().unwrap_or(0), 0);
            } else {
                dropped.recv_timeout(PATIENCE).expect("the handler's work");
            }
            drop(next);
            wait_until("the end of all", || server.shutdown.in_flight() == 0);
        });
    }
}

/// Works by the path until the client is gone.
async fn leaving(
    mut request: Request,
    enter: Sender<String>,
    released: channel::Receiver<()>,
    gone: Sender<()>,
    tell: Sender<io::Result<usize>>,
) -> http_types::Result<Response> {
    let path = request.url().path().to_owned();
    if path == "/now" {
        return Ok("now".into());
    }
    let dropped = Dropped(gone);
    let hello_then_silence = stream::once(Ok("hello")).chain(stream::pending()).map(move |chunk| {
        let _ = &dropped;
        chunk
    });
    match path.as_str() {
        "/silent" => {
            enter.send(path)?;
            Ok(stream_body(hello_then_silence).into())
        }
        "/long" => {
            enter.send(path)?;
            let body = hello_then_silence.map(|chunk| chunk.map(str::as_bytes));
            let body = BufReader::new(stream_body(body).into_reader());
            Ok(Body::from_reader(body, Some(LONG)).into())
        }
        "/upgraded" => {
            let mut response = Response::new(StatusCode::SwitchingProtocols);
            response.insert_header(UPGRADE, "echo");
            let upgraded = response.recv_upgrade().await;
            let hold = async move {
                let mut stream = upgraded.await.unwrap();
                enter.send(path).unwrap();
                let _ = released.recv().await;
                tell.send(stream.read(&mut [0]).await).unwrap();
            };
            smol::spawn(hold).detach();
            Ok(response)
        }
        "/body" => {
            enter.send(path)?;
            // The client's reset ends this read, but not the handler.
            let _ = request.read(&mut [0]).await;
            future::pending().await
        }
        _ => {
            enter.send(path)?;
            let _held = hello_then_silence;
            future::pending().await
        }
    }
}

/// A client that has only closed its side gets its answer, although the sweep has looked at its
/// connection. The handler answers after the sweep.
#[cfg(target_os = "linux")]
#[test]
fn a_client_that_has_closed_its_side_gets_its_answer() {
    let directory = Directory::new();
    for socket in ["tcp", "unix"] {
        for drains in [false, true] {
            case(&format!("{socket}, drains: {drains}"), || {
                let (enter, entered) = mpsc::channel();
                let server = Server::new(move |request: Request| {
                    enter.send(()).unwrap();
                    async move {
                        let client = smol_graceful::Client::of(&request);
                        let left = client.left().await;
                        // At least one more sweep comes while the handler is still at work.
                        Timer::after(3 * SWEEP).await;
                        assert!(poll_once(client.gone()).await.is_none());
                        Ok(format!("{left:?}"))
                    }
                });
                let listener = listener(socket, &directory);
                let server = Running::on(server.limits(quick_sweeps()), [listener]);
                let mut client = server.connect();
                client.get("/").half_close();
                entered.recv_timeout(PATIENCE).unwrap();
                if drains {
                    server.shutdown.stop();
                }
                let response = client.response();
                assert_eq!((response.status, response.text().as_str()), (200, "HalfClosed"));
                assert_eq!(client.end(), End::Eof);
                assert!(server.stop().is_drained());
            });
        }
    }
}

/// A handler that holds a guard of its request goes on without its client, and is dropped without
/// one.
#[test]
fn a_handler_with_a_guard_goes_on_without_the_client() {
    let directory = Directory::new();
    for socket in ["tcp", "unix"] {
        for drains in [false, true] {
            case(&format!("{socket}, drains: {drains}"), || {
                let (handlers, enter, released) = HeldHandlers::new();
                let (gone, dropped) = mpsc::channel();
                let (finish, finished) = mpsc::channel();
                let server = Server::new(move |request: Request| {
                    let (dropped, released) = (Dropped(gone.clone()), released.clone());
                    let finish = finish.clone();
                    enter.send(request.url().path().to_owned()).unwrap();
                    async move {
                        let path = request.url().path();
                        let guard = (path == "/held").then(|| Token::of(&request).guard());
                        let _ = released.recv().await;
                        finish.send(path.to_owned()).unwrap();
                        drop((guard, dropped));
                        Ok("nobody reads it")
                    }
                });
                let server =
                    Running::on(server.limits(quick_sweeps()), [listener(socket, &directory)]);
                let [held, other, late] = ["/held", "/other", "/late"].map(|path| {
                    let mut client = server.connect();
                    client.get(path);
                    handlers.wait_for_call(path);
                    client
                });
                if drains {
                    server.shutdown.stop();
                }
                held.reset();
                other.reset();
                dropped.recv_timeout(PATIENCE).expect("the handler without a guard");
                // The next client is found by a sweep that began after these clients had left.
                late.reset();
                dropped.recv_timeout(PATIENCE).expect("the late handler without a guard");
                assert!(dropped.try_recv().is_err());
                handlers.release();
                assert_eq!(finished.recv_timeout(PATIENCE).as_deref(), Ok("/held"));
                dropped.recv_timeout(PATIENCE).expect("the handler with a guard");
                assert!(server.stop().is_drained());
            });
        }
    }
}

/// A handler whose client is gone is dropped. A task that the handler has started goes on, and a
/// stop waits for the task's guard.
#[test]
fn the_work_of_a_task_goes_on_without_the_client() {
    let (handlers, enter, released) = HeldHandlers::new();
    let (gone, dropped) = mpsc::channel();
    let (finish, finished) = mpsc::channel();
    let shutdown = Shutdown::new();
    // With a guard of the request's own token, the handler would go on, too.
    let token = shutdown.token();
    let server = Server::new(move |request: Request| {
        let (dropped, guard) = (Dropped(gone.clone()), token.guard());
        let (enter, released, finish) = (enter.clone(), released.clone(), finish.clone());
        async move {
            let work = async move {
                let _ = released.recv().await;
                finish.send(()).unwrap();
                drop(guard);
            };
            smol::spawn(work).detach();
            enter.send(request.url().path().to_owned())?;
            let never = future::pending::<http_types::Result<&str>>().await;
            drop(dropped);
            never
        }
    });
    let server = Running::of(server.limits(quick_sweeps()).stopped_by(&shutdown));
    let mut client = server.connect();
    client.get("/work");
    handlers.wait_for_call("/work");
    client.reset();
    dropped.recv_timeout(PATIENCE).expect("the handler");
    wait_until("only the guard is left", || server.shutdown.in_flight() == 1);
    server.shutdown.stop();
    assert!(finished.try_recv().is_err() && server.is_serving());
    handlers.release();
    finished.recv_timeout(PATIENCE).expect("the task's work");
    assert!(server.outcome().is_drained());
}

/// A task that a handler has started learns how far the client has left, and a later call returns
/// the same answer.
#[cfg(target_os = "linux")]
#[test]
fn a_task_learns_that_the_client_has_left() {
    let directory = Directory::new();
    for socket in ["tcp", "unix"] {
        for drains in [false, true] {
            case(&format!("{socket}, drains: {drains}"), || {
                let (server, handlers, left) = watching([listener(socket, &directory)]);
                let mut client = server.connect();
                client.get("/wait");
                handlers.wait_for_call("/wait");
                if drains {
                    server.shutdown.stop();
                }
                assert!(left.try_recv().is_err());
                client.half_close();
                assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::HalfClosed));
                assert!(left.try_recv().is_err());
                client.reset();
                assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::Gone));
                assert!(server.stop().is_drained());
            });
        }
    }
}

/// After the response, too, a task learns that the client has left, for each end of the connection.
#[test]
fn a_task_learns_behind_the_response_that_the_connection_has_ended() {
    let directory = Directory::new();
    for socket in ["tcp", "unix"] {
        for how in ["reset", "close", "announced", "stop", "abort"] {
            case(&format!("{socket}, {how}"), || {
                let (server, _stage, left) = watching([listener(socket, &directory)]);
                let mut client = server.connect();
                let close = if how == "announced" { "Connection: close\r\n" } else { "" };
                client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{close}\r\n"));
                assert_eq!(client.response().text(), "done");
                match how {
                    "reset" => client.reset(),
                    "close" => drop(client),
                    "announced" => assert_eq!(client.end(), End::Eof),
                    "stop" => server.shutdown.stop(),
                    _ => server.shutdown.abort(),
                }
                // The server reads the client's close and ends the connection, so the task sees
                // only that end.
                assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::Gone));
                assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::Gone));
                let _ = server.stop();
            });
        }
    }
}

/// A task of an earlier request learns of its client, also after a later request.
#[cfg(target_os = "linux")]
#[test]
fn a_task_learns_behind_the_response_that_the_client_has_closed_its_side() {
    let (server, handlers, left) = watching([listener("tcp", &Directory::new())]);
    let mut client = server.connect();
    assert_eq!(client.get("/").response().text(), "done");
    client.get("/wait");
    handlers.wait_for_call("/wait");
    client.half_close();
    // Each of the two requests has started a task.
    assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::HalfClosed));
    assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::HalfClosed));
    handlers.release();
    assert_eq!(client.response().text(), "done");
    assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::Gone));
    assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::Gone));
    assert!(server.stop().is_drained());
}

/// A task learns that a client has closed its side even if the client does not take the response.
#[cfg(target_os = "linux")]
#[test]
fn a_task_learns_that_a_client_that_does_not_read_has_closed_its_side() {
    let (report, left) = mpsc::channel();
    let limits = Limits::default().head_timeout(8 * SWEEP).stall_timeout(2 * PATIENCE);
    let server = Running::with(limits, move |request: Request| {
        watch(&request, report.clone());
        async { Ok(vec![b'x'; 32 << 20]) }
    });
    let mut client = server.connect();
    client.get("/").half_close();
    assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::HalfClosed));
    client.reset();
    assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::Gone));
    assert!(server.stop().is_drained());
}

/// On a pipe, a task learns nothing of the client before the connection ends.
#[cfg(target_os = "linux")]
#[test]
fn a_pipe_tells_only_its_end() {
    let (send, connections) = channel::unbounded();
    let (server, handlers, left) =
        watching([listener("tcp", &Directory::new()), Listener::from_stream(connections)]);
    let (pipe, connection) = Connection::pair();
    send.try_send(Ok(connection)).unwrap();
    let mut pipe = PipeClient::from(pipe);
    pipe.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    pipe.half_close();
    handlers.wait_for_call("/wait");
    // The sweep that finds this client has looked at the pipe, too.
    let mut client = server.connect();
    client.get("/wait");
    handlers.wait_for_call("/wait");
    client.half_close();
    assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::HalfClosed));
    client.reset();
    assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::Gone));
    assert!(left.try_recv().is_err());
    handlers.release();
    pipe.take_to(b"done").unwrap();
    assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::Gone));
    assert_eq!(left.recv_timeout(PATIENCE), Ok(ClientLeft::Gone));
    assert!(server.stop().is_drained());
}

/// Starts a server whose handler starts a task that reports the leave of the client. The handler
/// answers `/wait` when the test releases the handlers.
fn watching<const N: usize>(
    listeners: [Listener; N],
) -> (Running, HeldHandlers, Receiver<ClientLeft>) {
    let (handlers, enter, released) = HeldHandlers::new();
    let (report, left) = mpsc::channel();
    let server = Server::new(move |request: Request| {
        watch(&request, report.clone());
        let (enter, released) = (enter.clone(), released.clone());
        async move {
            let path = request.url().path();
            if path == "/wait" {
                enter.send(path.to_owned())?;
                let _ = released.recv().await;
            }
            Ok("done")
        }
    });
    (Running::on(server.limits(quick_sweeps()), listeners), handlers, left)
}

/// Starts a task that reports how far the client has left, and then that it is gone.
fn watch(request: &Request, report: Sender<ClientLeft>) {
    let client = smol_graceful::Client::of(request);
    let watch = async move {
        let left = client.left().await;
        assert!(poll_once(client.clone().left()).await >= Some(left), "it is told every time");
        report.send(left).unwrap();
        client.gone().await;
        assert!(poll_once(client.gone()).await.is_some());
        report.send(poll_once(client.left()).await.unwrap()).unwrap();
    };
    smol::spawn(watch).detach();
}

// ── Places ──────────────────────────────────────────────────────────────────────────────────

/// All places are taken by connections that wait for their next request. The connection that has
/// been idle longest gives way to a new client, long before the idle timeout. Of many connections,
/// two may give way at once. Rule S24: each new client gets one place.
#[test]
fn the_connection_that_is_idle_longest_gives_way() {
    for (connections, give_way) in [(1, 1), (2, 1), (5, 1), (15, 1), (20, 2)] {
        let stay = connections - give_way;
        case(&format!("{connections}"), || {
            let server =
                Running::of(with_places(connections, Server::new(|_| async { Ok("okay") })));
            let mut clients: Vec<_> = (0..connections).map(|_| server.connect()).collect();
            // The last connection falls idle first.
            for client in clients.iter_mut().rev() {
                assert_open(client);
            }
            let mut new = server.connect();
            assert_open(&mut new);
            assert_eq!(clients.last_mut().unwrap().end(), End::Eof);
            clients.iter_mut().take(stay).for_each(assert_open);
            drop((clients, new));
            assert_drains(&server);
        });
    }
}

/// A client that has never sent a byte gives way, too, with a wrapper and without.
#[test]
fn a_silent_client_gives_way() {
    for wrapped in [false, true] {
        case(&format!("wrapped: {wrapped}"), || {
            let mut listener = listener("tcp", &Directory::new());
            if wrapped {
                listener = listener.wrap(|connection| async { Ok(connection) });
            }
            let server = with_places(2, Server::new(|_| async { Ok("okay") }));
            let server = Running::on(server, [listener]);
            let silent = [server.connect(), server.connect()];
            let mut others = Vec::new();
            for mut one in silent {
                let mut new = server.connect();
                assert_open(&mut new);
                assert_eq!(one.end(), End::Eof);
                others.push(new);
            }
            drop(others);
            assert!(server.stop().is_drained());
        });
    }
}

/// A connection at work keeps its place, in each stage.
#[test]
fn a_connection_at_work_keeps_its_place() {
    let (handlers, enter, released) = HeldHandlers::new();
    let server = Server::new(move |mut request: Request| {
        let (enter, released) = (enter.clone(), released.clone());
        async move {
            let path = request.url().path().to_owned();
            let wait = async move {
                let _ = released.recv().await;
            };
            Ok(match path.as_str() {
                "/handler" => {
                    enter.send(path)?;
                    wait.await;
                    "done".into()
                }
                "/body" => {
                    enter.send(path)?;
                    request.body_string().await?.into()
                }
                "/stream" => {
                    enter.send(path)?;
                    let end = stream::once_future(async {
                        wait.await;
                        Ok("done")
                    });
                    stream_body(stream::once(Ok("begun")).chain(end)).into()
                }
                "/upgraded" => {
                    let mut response = Response::new(StatusCode::SwitchingProtocols);
                    let upgraded = response.recv_upgrade().await;
                    let echo = async move {
                        enter.send(path).unwrap();
                        let mut stream = upgraded.await.unwrap();
                        let mut bytes = [0; 4];
                        stream.read_exact(&mut bytes).await.unwrap();
                        stream.write_all(&bytes).await.unwrap();
                    };
                    smol::spawn(echo).detach();
                    response
                }
                _ => Response::from("okay"),
            })
        }
    });
    let server = Running::of(with_places(6, server));
    let mut clients = [(); 5].map(|()| server.connect());
    let [head, handler, body, streaming, upgraded] = &mut clients;
    head.send("GET /half HTTP/1.1\r\n");
    handler.get("/handler");
    handlers.wait_for_call("/handler");
    body.send("POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\ndo");
    handlers.wait_for_call("/body");
    streaming.get("/stream");
    handlers.wait_for_call("/stream");
    upgraded.send(HANDSHAKE);
    assert_eq!(upgraded.response().status, 101);
    handlers.wait_for_call("/upgraded");
    // One place is left, and the last client has it.
    let mut last = server.connect();
    assert_open(&mut last);
    for _ in 0..3 {
        let mut new = server.connect();
        assert_open(&mut new);
        assert_eq!(last.end(), End::Eof);
        last = new;
    }
    handlers.release();
    assert_eq!(head.send("Host: x\r\n\r\n").response().text(), "okay");
    assert_eq!(handler.response().text(), "done");
    assert_eq!(body.send("ne").response().text(), "done");
    assert_eq!(streaming.response().text(), "begundone");
    assert_eq!(upgraded.send("echo").take(4).unwrap(), b"echo");
    drop((clients, last));
    assert_drains(&server);
}

/// Rule S6: if a request is in the socket when its idle connection has to give way, the server
/// serves it, as at a stop.
#[test]
fn a_request_that_has_arrived_is_served_before_its_connection_gives_way() {
    let (server, entered, open) = blocking(2);
    let mut idle = server.connect();
    assert_open(&mut idle);
    for _ in 0..20 {
        let mut busy = server.connect();
        busy.get("/block");
        entered.recv_timeout(PATIENCE).unwrap();
        // After this pause, the idle connection may give way. If the pause is too short, the test
        // is only easier.
        thread::sleep(2 * LINGER);
        idle.get("/");
        let mut new = server.connect();
        new.get("/");
        open.send(()).unwrap();
        assert_eq!(idle.response().text(), "okay", "the request was there before the new client");
        assert_eq!(busy.response().text(), "okay");
        assert_eq!(new.response().text(), "okay");
        drop(busy);
        idle = new;
        wait_until("one is left", || server.shutdown.in_flight() == 1);
    }
    drop(idle);
    assert_drains(&server);
}

/// Many more new clients than places get their answers, one after the other.
#[test]
fn a_crowd_of_new_clients_is_served() {
    let (server, entered, open) = blocking(4);
    let mut idle = [(); 3].map(|()| server.connect());
    idle.iter_mut().for_each(assert_open);
    let mut busy = server.connect();
    busy.get("/block");
    entered.recv_timeout(PATIENCE).unwrap();
    // The requests are in the sockets before a connection is accepted, because a silent connection
    // might have to give way.
    let mut crowd: Vec<_> = (0..40).map(|_| server.connect()).collect();
    for client in &mut crowd {
        client.get("/");
    }
    open.send(()).unwrap();
    assert_eq!(busy.response().text(), "okay");
    for client in &mut crowd {
        assert_eq!(client.response().text(), "okay");
    }
    for client in &mut idle {
        assert_eq!(client.end(), End::Eof);
    }
    drop((idle, busy, crowd));
    assert_drains(&server);
}

/// Starts a server whose only thread is blocked while the handler handles `/block`. The receiver
/// shows that the handler has begun, and the sender lets it go on.
fn blocking(connections: usize) -> (Running, Receiver<()>, Sender<()>) {
    let (release, released) = mpsc::channel::<()>();
    let (enter, entered) = mpsc::channel();
    let released = Mutex::new(released);
    let server = Server::new(move |request: Request| {
        if request.url().path() == "/block" {
            enter.send(()).unwrap();
            released.lock().unwrap().recv().unwrap();
        }
        async { Ok("okay") }
    });
    (Running::of(with_places(connections, server)), entered, release)
}

/// All listeners of a server share its places.
#[test]
fn idle_connections_of_other_listeners_give_way() {
    let directory = Directory::new();
    let listeners = ["tcp", "unix", "tcp"].map(|socket| listener(socket, &directory));
    let server = with_places(1, Server::new(|_| async { Ok("okay") }));
    let server = Running::on(server, listeners);
    let mut last: Option<Client> = None;
    for address in server.addresses.iter().cycle().take(9) {
        let mut new = Client::connect_to(address);
        assert_open(&mut new);
        if let Some(mut last) = last.replace(new) {
            assert_eq!(last.end(), End::Eof);
        }
    }
    drop(last);
    assert!(server.stop().is_drained());
}

// ── The least rate of a body ────────────────────────────────────────────────────────────────

/// Rule S25: a client that sends a byte now and then gets 408. A client that sends steadily does
/// not, nor does the client of a slow handler, because only the wait for a body counts. Without a
/// rate, no client does.
#[test]
fn a_body_that_comes_too_slowly_is_ended() {
    let (handlers, enter, released) = HeldHandlers::new();
    let handler = move |mut request: Request| {
        let (enter, released) = (enter.clone(), released.clone());
        async move {
            let path = request.url().path().to_owned();
            if path == "/unread" {
                return Ok("unread".to_owned());
            }
            let mut n = 0;
            if path == "/slow" {
                n += request.read(&mut [0; 10]).await?;
                enter.send(path)?;
                let _ = released.recv().await;
            }
            n += request.read_to_end(&mut Vec::new()).await?;
            Ok(n.to_string())
        }
    };
    // The clients that must not get 408 may pause for `stall_timeout`. The sweeps are frequent.
    let limits = Limits::default()
        .head_timeout(Duration::from_millis(400))
        .stall_timeout(Duration::from_secs(4));
    let server = Running::with(limits.clone(), handler.clone());
    let unbound = Running::with(limits.body_rate(0), handler);
    let (server, unbound) = (server.addr(), unbound.addr());
    thread::scope(|scope| {
        let upload = |server, path, fields, piece: &'static [u8], times| {
            scope.spawn(move || SlowUpload::begin(server, path, fields).send(piece, times))
        };
        // These uploads take much longer than they may.
        let slow = [
            upload(server, "/read", "Content-Length: 1000\r\n", b"x", 300),
            upload(server, "/read", CHUNKED, b"1\r\nx\r\n", 300),
        ];
        let unread = upload(server, "/unread", "Content-Length: 1000\r\n", b"x", 300);
        // This client sends 4 kB a second, for seven seconds.
        let steady = upload(server, "/read", "Content-Length: 28000\r\n", &[b'x'; 400], 70);
        let discarded = upload(server, "/unread", "Content-Length: 28000\r\n", &[b'x'; 400], 70);
        let without = upload(unbound, "/read", "Content-Length: 70\r\n", b"x", 70);
        let mut patient = SlowUpload::begin(server, "/slow", "Content-Length: 20\r\n");
        patient.client.send("0123456789");
        handlers.wait_for_call("/slow");
        for slow in slow {
            let mut slow = slow.join().unwrap();
            assert!(slow.is_told, "the server has waited for all of it");
            assert!(slow.begun.elapsed() >= Duration::from_secs(4), "so soon");
            let response = slow.client.response();
            assert_eq!((response.status, response.says_close()), (408, true));
            assert_eq!(slow.client.end(), End::Eof);
        }
        let mut unread = unread.join().unwrap();
        assert!(unread.is_told, "the server has waited for all of it");
        assert!(unread.begun.elapsed() >= Duration::from_secs(4), "so soon");
        assert_eq!(unread.client.end(), End::Eof);
        for (steady, read) in [(steady, "28000"), (without, "70")] {
            let mut client = steady.join().unwrap().client;
            assert_eq!(client.response().text(), read);
            assert_open(&mut client);
        }
        assert_open(&mut discarded.join().unwrap().client);
        // The pause before was longer than a sweep, and shorter than a client may be slow.
        handlers.release();
        let mut client = patient.send(b"xx", 5).client;
        assert_eq!(client.response().text(), "20");
        assert_open(&mut client);
    });
}

/// The server gives up a client that stalls in the framing of a chunk, like one that stalls in its
/// content.
#[test]
fn a_body_that_stalls_in_its_framing_is_ended() {
    let limits = Limits::default().stall_timeout(Duration::from_millis(300));
    let server = Running::with(limits, |mut request: Request| async move {
        if request.url().path() == "/unread" {
            return Ok("unread".to_owned());
        }
        Ok(request.body_bytes().await?.len().to_string())
    });
    for begun in [
        "",
        "5",
        "5\r",
        "5;a=b",
        "5\r\nhello",
        "5\r\nhello\r",
        "0\r\n",
        "0\r\nx: y",
        "0\r\nx: y\r\n\r",
    ] {
        for path in ["/read", "/unread"] {
            case(&format!("{path} {begun:?}"), || {
                let mut client = server.connect();
                let fields = "Host: x\r\nTransfer-Encoding: chunked";
                client.send(format!("POST {path} HTTP/1.1\r\n{fields}\r\n\r\n{begun}"));
                let response = client.response();
                match path {
                    "/read" => assert_eq!((response.status, response.says_close()), (408, true)),
                    _ => assert_eq!((response.status, response.says_close()), (200, false)),
                }
                assert_eq!(client.end(), End::Eof);
            });
        }
    }
    assert!(server.stop().is_drained());
}

/// A handler with a guard goes on although its client takes nothing of the responses before.
/// Nothing follows a response that was sent in part.
#[test]
fn nothing_follows_a_response_that_a_client_has_not_taken() {
    let (handlers, enter, released) = HeldHandlers::new();
    let (finish, finished) = mpsc::channel();
    let limits = Limits::default().stall_timeout(Duration::from_millis(300));
    let server = Server::new(move |request: Request| {
        let (enter, released, finish) = (enter.clone(), released.clone(), finish.clone());
        async move {
            let path = request.url().path().to_owned();
            if path != "/held" {
                return Ok("b".repeat(60_000));
            }
            let guard = Token::of(&request).guard();
            enter.send(path)?;
            let _ = released.recv().await;
            finish.send(())?;
            drop(guard);
            Ok("HELD".to_owned())
        }
    });
    let (mut client, connection) = Connection::pair();
    let shutdown = Shutdown::new();
    let server = server.shutdown(&shutdown);
    let serving = smol::spawn(
        server.limits(limits).serve([Listener::from_stream(stream::once(Ok(connection)))]),
    );
    smol::block_on(async {
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        // The pipe has room for 64 KiB, so a part of the two responses is left.
        client.write_all((get("/1") + &get("/2") + &get("/held")).as_bytes()).await.unwrap();
        handlers.wait_for_call("/held");
        // Meanwhile, the server gives the client up.
        Timer::after(Duration::from_secs(1)).await;
        handlers.release();
        finished.recv_timeout(PATIENCE).expect("the handler with a guard");
        let mut all = Vec::new();
        let _ = client.read_to_end(&mut all).await;
        assert!(!common::text(&all).contains("HELD"), "a response within another one");
        shutdown.stop();
        assert!(serving.await.unwrap().is_drained());
    });
}

/// A bound on bodies does not break a promise, because the rest of an unread body is discarded.
#[test]
fn a_promise_holds_beyond_the_longest_body() {
    let limits = Limits::default().body_bytes(Some(1000));
    let server = Running::with(limits, |_| async { Ok("unread") });
    let mut client = server.connect();
    let chunk = |n: usize| format!("{n:x}\r\n{}\r\n", "x".repeat(n));
    client.send(
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned() + &chunk(500),
    );
    assert!(!client.response().says_close());
    client.send(chunk(600) + "0\r\n\r\n");
    assert_open(&mut client);
}

/// A wrapper that reads a byte and returns its connection does not hide later bytes.
#[test]
fn a_wrapper_that_steps_aside_hides_nothing() {
    let limits = Limits::default().body_rate(1000);
    let server = Server::new(|mut request: Request| async move {
        Ok(request.body_bytes().await?.len().to_string())
    });
    let (mut client, connection) = Connection::pair();
    let shutdown = Shutdown::new();
    let server = server.shutdown(&shutdown);
    let (send, has_read) = channel::bounded(1);
    let listener =
        Listener::from_stream(stream::once(Ok(connection))).wrap(move |mut connection| {
            let send = send.clone();
            async move {
                connection.read_exact(&mut [0]).await?;
                let _ = send.send(()).await;
                Ok(connection)
            }
        });
    let serving = smol::spawn(server.limits(limits).serve([listener]));
    smol::block_on(async {
        client.write_all(b"!").await.unwrap();
        has_read.recv().await.unwrap();
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 80000\r\n\r\n")
            .await
            .unwrap();
        // This takes eight seconds, at ten times the least rate.
        for _ in 0..80 {
            client.write_all(&[b'x'; 1000]).await.unwrap();
            Timer::after(Duration::from_millis(100)).await;
        }
        shutdown.stop();
        let mut all = String::new();
        client.read_to_string(&mut all).await.unwrap();
        assert!(all.ends_with("\r\n\r\n80000"), "{all}");
        assert!(serving.await.unwrap().is_drained());
    });
}

/// A client that sends a body piece by piece.
struct SlowUpload {
    client: Client,
    begun: Instant,
    /// `true` if an answer or the end came from the server before the whole body was sent.
    is_told: bool,
}

impl SlowUpload {
    /// Sends the head. A server that does not read the body answers at once.
    fn begin(server: SocketAddr, path: &str, fields: &str) -> Self {
        let mut client = Client::connect(server);
        let begun = Instant::now();
        client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
        if path == "/unread" {
            let response = client.response();
            assert_eq!((response.text().as_str(), response.says_close()), ("unread", false));
        }
        Self { client, begun, is_told: false }
    }

    /// Sends `piece` ten times a second, `times` times or until the server answers or closes.
    fn send(mut self, piece: &[u8], times: usize) -> Self {
        let stream = self.client.stream.try_clone().unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        for n in 1..=times {
            self.client.send(piece);
            if stream.peek(&mut [0]).is_ok() {
                self.is_told = n < times;
                break;
            }
        }
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        self
    }
}

// ── What the tests share ────────────────────────────────────────────────────────────────────

/// Asserts that the connection serves a further request.
fn assert_open(client: &mut Client) {
    assert_eq!(client.get("/again").response().status, 200);
}

/// The time between two sweeps with [`quick_sweeps`].
const SWEEP: Duration = Duration::from_millis(10);

/// Returns limits with frequent sweeps, because the shortest limit sets their pace. Each head here
/// comes in one piece.
fn quick_sweeps() -> Limits {
    Limits::default().head_timeout(8 * SWEEP)
}

/// The time after which an idle connection may give way.
const LINGER: Duration = Duration::from_millis(5);

/// Returns the server with this number of places.
fn with_places(connections: usize, server: Server) -> Stoppable {
    let limits = Limits::default().connections(connections);
    server.limits(limits).stopped_by(&Shutdown::new().linger(LINGER))
}

const HANDSHAKE: &str =
    "GET /upgraded HTTP/1.1\r\nHost: x\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n";

/// Binds a listener on a socket of this family.
fn listener(socket: &str, directory: &Directory) -> Listener {
    let address = match socket {
        "tcp" => "127.0.0.1:0".parse().unwrap(),
        _ => Address::Unix(directory.join(&fastrand::u64(..).to_string())),
    };
    Listener::bind(&address).unwrap()
}

/// The kinds of connections. The server knows a socket only for the last kind.
const STREAMS: [&str; 4] = ["pair", "wrapped pair", "stream", "socket"];

/// Makes both ends of a connection of this kind.
fn streams(kind: &str) -> (Client<AnyStream>, Connection) {
    if kind.ends_with("pair") {
        let (client, connection) = Connection::pair();
        return (Client::over(Blocking(Box::new(client))), connection);
    }
    let (client, server) = UnixStream::pair().unwrap();
    let (client, server) = (Async::new(client).unwrap(), Async::new(server).unwrap());
    let connection = match kind {
        "socket" => Connection::from(server),
        _ => Connection::new(server),
    };
    (Client::over(Blocking(Box::new(client))), connection)
}

/// A client's end of a connection of any kind.
type AnyStream = Blocking<Box<dyn AsyncDuplex>>;

trait AsyncDuplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncDuplex for T {}
