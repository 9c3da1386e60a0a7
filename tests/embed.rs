//! The library inside of other programs: several servers on one latch, work of the program's own,
//! connections that are not sockets, and listeners that the program has bound itself.
//!
//! Most tests use pipes in memory ([`Pipes`]), where a client's bytes have arrived when `send`
//! returns, and only the server and the test move.

mod common;

use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use common::{
    BIG, Client, Directory, End, PATIENCE, PipeClient, Pipes, Running, StoppedBy, UPGRADE_HEAD,
    address_of, handler, held_handlers, is_refused, long_grace, pattern, pending_at_first,
    short_linger, tcp, upgrading, wait_until, within_patience,
};
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt, future, stream};
use smol::{Executor, channel};
use smol_graceful::{
    Address, AddressError, Connection, DrainEnding, Guard, Limits, Listen, ListenOptions, Listener,
    Method, OpenWork, Outcome, Peer, Phase, Request, ServeError, Server, Shutdown, Stage,
    StatusCode, Token, WorkKind, stream_body,
};

// ── Several servers, one latch ──────────────────────────────────────────────────────────────

/// Each server gets an outcome, and none before both have drained, because a holder of the latch
/// holds it for both.
#[test]
fn servers_that_share_a_latch_end_together() {
    let shutdown = short_linger();
    let (handlers, handler) = held_handlers();
    let public = Running::of(Server::new(handler).stopped_by(&shutdown));
    let admin = Running::of(Server::new(|_| async { Ok("fine") }).stopped_by(&shutdown));
    let mut busy = public.connect();
    busy.get("/wait");
    handlers.wait_for_call("/wait");
    let mut probe = admin.connect();
    assert_eq!(probe.get("/readyz").response().text(), "fine");
    assert_eq!(shutdown.in_flight(), 2);

    admin.shutdown.stop(); // any handle will do, as all are the same
    assert_eq!(probe.end(), End::Eof);
    for server in [&public, &admin] {
        wait_until("its listener is closed", || is_refused(server.addr()));
    }
    wait_until("only the request is left", || shutdown.in_flight() == 1);
    assert!(public.is_serving() && admin.is_serving());
    handlers.release();
    let response = busy.response();
    assert_eq!((response.text().as_str(), response.says_close()), ("done", true));
    for server in [public, admin] {
        let outcome = server.outcome();
        assert!(outcome.is_drained(), "{outcome}");
        assert_eq!(outcome.finished, 1);
    }
}

/// Servers that share a latch have the same grace, and both outcomes have the same content.
#[test]
fn the_first_grace_that_ends_ends_both() {
    let shutdown = long_grace();
    let (handlers, handler) = held_handlers();
    let public = Running::of(Server::new(handler).stopped_by(&shutdown));
    let hasty = shutdown.clone().grace(Duration::from_millis(10));
    let admin = Running::of(Server::new(|_| async { Ok("fine") }).stopped_by(&hasty));
    let mut busy = public.connect();
    busy.get("/wait");
    handlers.wait_for_call("/wait");
    shutdown.stop();
    assert_eq!(busy.end(), End::Eof);
    for server in [public, admin] {
        let outcome = server.outcome();
        assert_eq!(outcome.ending, DrainEnding::TimedOut, "{outcome}");
        let [OpenWork { kind: WorkKind::Connection { target: path, .. }, .. }] = &outcome.cut[..]
        else {
            panic!("{outcome}");
        };
        assert_eq!(path, "/wait"); // S13: the outcome names it
    }
}

/// The drop of a server closes its own listener and connections, and leaves the other server alone.
#[test]
fn a_server_that_is_dropped_leaves_the_other_alone() {
    let shutdown = short_linger();
    let (handlers, handler) = held_handlers();
    let public = Running::of(Server::new(handler).stopped_by(&shutdown));
    let (handlers_2, handler) = held_handlers();
    let mut admin = Running::of(Server::new(handler).stopped_by(&shutdown));
    let mut busy = public.connect();
    busy.get("/wait");
    handlers.wait_for_call("/wait");
    let mut doomed = admin.connect();
    doomed.get("/wait");
    handlers_2.wait_for_call("/wait");

    admin.drop_server();
    assert_eq!(doomed.end(), End::Eof);
    wait_until("its listener is closed", || is_refused(admin.addr()));
    wait_until("its connection is gone", || shutdown.in_flight() == 1);
    assert_eq!(shutdown.phase(), Phase::Running);
    assert_eq!(public.connect().get("/now").response().text(), "now");
    handlers.release();
    assert_eq!(busy.response().text(), "done");
    shutdown.stop();
    assert!(public.outcome().is_drained());
}

// ── Work of the program's own ───────────────────────────────────────────────────────────────

/// Rule S12: at the stop, a queue worker next to a server takes no further job, and the drain waits
/// for its current job.
#[test]
fn a_worker_finishes_its_job_and_takes_no_other() {
    let server = Running::of(Server::new(|_| async { Ok("okay") }).stopped_by(&long_grace()));
    let token = server.shutdown.token();
    let (post, jobs) = channel::unbounded::<&str>();
    let (begin, begun) = mpsc::channel();
    let (release, released) = channel::bounded::<()>(1);
    let worker = async move {
        let mut done = Vec::new();
        while let Some((job, guard)) = token.accept(jobs.recv()).await {
            begin.send(()).unwrap();
            let _ = guard.hold(released.recv()).await;
            done.push(job.unwrap());
        }
        done
    };
    let worker = thread::spawn(move || future::block_on(worker));
    post.try_send("first").unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    post.try_send("second").unwrap();

    server.shutdown.stop();
    wait_until("closed", || is_refused(server.addr()));
    // The server may have accepted the last connection of `is_refused`.
    wait_until("the worker is all that is left", || server.shutdown.in_flight() == 1);
    assert!(server.is_serving());
    drop(release);
    assert_eq!(worker.join().unwrap(), ["first"]);
    assert!(server.outcome().is_drained());
}

/// Rule S15: if the program runs the executor on other threads than `serve`, a handler that blocks
/// its thread does not hold up the deadline.
#[test]
fn a_handler_that_blocks_the_executor_does_not_hold_up_the_deadline() {
    let (entered, enters) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let shutdown = Shutdown::new().grace(Duration::from_millis(10));
    let executor = Arc::new(Executor::new());
    let server = Server::new(move |_| {
        entered.send(()).unwrap();
        let _ = released.lock().unwrap().recv();
        async { Ok("blocked") }
    });
    let server = Running::of(server.executor(executor.clone()).stopped_by(&shutdown));
    let (end, ended) = channel::bounded::<()>(1);
    let worker = thread::spawn(move || future::block_on(executor.run(ended.recv())));
    let mut client = server.connect();
    client.get("/");
    enters.recv_timeout(PATIENCE).unwrap();
    let outcome = server.stop();
    assert_eq!(outcome.ending, DrainEnding::TimedOut);
    assert!(matches!(
        &outcome.cut[..],
        [OpenWork { kind: WorkKind::Connection { stage: Stage::Handler, .. }, .. }]
    ));
    drop((release, end));
    assert!(worker.join().unwrap().is_err());
}

/// A task of the program runs at the stop and before the end, as with Go's `RegisterOnShutdown`.
#[test]
fn a_hook_on_the_stop_runs_before_the_end() {
    let server = Running::of(Server::new(|_| async { Ok("okay") }));
    let token = server.shutdown.token();
    let (release, released) = channel::bounded::<()>(1);
    let (ran, hook_ran) = mpsc::channel();
    let guard = token.guard().expect("not stopped yet");
    let hook = smol::spawn(guard.hold(async move {
        token.stopping().await;
        ran.send(token.is_stopping()).unwrap();
        let _ = released.recv().await;
    }));
    assert_eq!(server.connect().get("/").response().text(), "okay");
    assert!(hook_ran.try_recv().is_err(), "ran before the stop");
    server.shutdown.stop();
    assert!(hook_ran.recv_timeout(PATIENCE).unwrap());
    assert!(server.is_serving());
    drop(release);
    assert!(server.outcome().is_drained());
    future::block_on(hook);
}

/// Rule S13: the outcome names work without a request by the line that took its guard.
#[test]
fn work_that_does_not_end_is_named() {
    let shutdown = Shutdown::new().grace(Duration::from_millis(10));
    let server = Running::of(Server::new(|_| async { Ok("okay") }).stopped_by(&shutdown));
    let guard = server.shutdown.token().guard();
    let line = line!() - 1;
    let outcome = server.stop();
    assert_eq!(outcome.ending, DrainEnding::TimedOut);
    let [OpenWork { kind: WorkKind::Guard(place), .. }] = &outcome.cut[..] else {
        panic!("{outcome}")
    };
    assert_eq!((place.file(), place.line()), (file!(), line));
    drop(guard);
}

// ── Pipes ───────────────────────────────────────────────────────────────────────────────────

/// The test uses async-h1's own client, as a program would to test its handler.
#[test]
fn a_client_of_async_h1_is_served_over_pipes() {
    let (source, server) = Pipes::open(Server::new(handler()));
    let text = |client, request: Request| {
        let (status, text) = within_patience(async {
            let mut response = async_h1::connect(client, request).await.unwrap();
            (response.status(), response.body_string().await.unwrap())
        });
        assert_eq!(status, StatusCode::Ok);
        text
    };
    let request = |method, path: &str| {
        Request::new(method, format!("http://test{path}").parse::<http_types::Url>().unwrap())
    };
    assert_eq!(text(source.end(), request(Method::Get, "/now")), "now");
    assert_eq!(text(source.end(), request(Method::Get, "/peer")), "unknown");

    let mut post = request(Method::Post, "/echo");
    post.set_body("in one piece");
    assert_eq!(text(source.end(), post), "in one piece");
    // A body of unknown length is chunked in both directions.
    let mut post = request(Method::Post, "/echo");
    let chunks = ["in ", "several ", "pieces"].map(Ok);
    post.set_body(stream_body(stream::iter(chunks)));
    assert_eq!(text(source.end(), post), "in several pieces");

    // One connection serves several requests.
    let client = SharedConnection(Arc::new(Mutex::new(source.end())));
    for n in 0..3 {
        let mut post = request(Method::Post, "/echo");
        post.set_body(format!("request {n}"));
        assert_eq!(text_of(client.clone(), post), format!("request {n}"));
    }
    drop(client);
    wait_until("all are gone", || server.shutdown.in_flight() == 0);
    assert!(server.stop().is_drained());
}

fn text_of(client: SharedConnection, request: Request) -> String {
    within_patience(async {
        let mut response = async_h1::connect(client, request).await.unwrap();
        response.body_string().await.unwrap()
    })
}

/// One connection for a client that takes a connection for each request.
#[derive(Clone)]
struct SharedConnection(Arc<Mutex<Connection>>);

impl AsyncRead for SharedConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_read(cx, buf)
    }
}

impl AsyncWrite for SharedConnection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock().unwrap()).poll_close(cx)
    }
}

/// A pipe has keep-alive, pipelining, a head in pieces, and a refused head.
#[test]
fn a_pipe_is_a_connection_like_any_other() {
    let (source, server) = Pipes::open(Server::new(handler()));
    let mut pipe = source.connect();
    for _ in 0..3 {
        let response = pipe.get("/now").response();
        assert_eq!((response.text().as_str(), response.says_close()), ("now", false));
    }
    pipe.send("GET /now HTTP/1.1\r\nHost: test\r\n\r\n".repeat(5));
    for _ in 0..5 {
        assert_eq!(pipe.response().text(), "now");
    }
    for piece in ["GET /no", "w HTTP/1.1\r\nHo", "st: a\r\n", "\r\nGET /now"] {
        pipe.send(piece);
    }
    assert_eq!(pipe.response().text(), "now");
    pipe.send(" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let response = pipe.response();
    assert_eq!((response.text().as_str(), response.says_close()), ("now", true));
    assert_eq!(pipe.end(), End::Eof);
    drop(pipe);

    let mut pipe = source.connect();
    pipe.send("GET /now HTTP/1.1\r\n\r\n");
    let response = pipe.response();
    assert_eq!((response.status, response.says_close()), (400, true)); // W4: refused
    drop(pipe);
    wait_until("nobody is left", || server.shutdown.in_flight() == 0);
    assert!(server.stop().is_drained());
}

/// Rules S6, S7: idle and silent connections are closed after the linger.
#[test]
fn a_stop_closes_idle_pipes_after_the_linger() {
    let (source, server) = Pipes::open(Server::new(handler()).stopped_by(&short_linger()));
    let mut silent = source.connect();
    let mut idle = source.connect();
    idle.get("/now").response();
    wait_until("both are there", || server.shutdown.in_flight() == 2);
    server.shutdown.stop();
    assert_eq!(silent.end(), End::Eof);
    assert_eq!(idle.end(), End::Eof);
    let outcome = server.outcome();
    assert!(outcome.is_drained(), "{outcome}");
    assert_eq!(outcome.finished, 0);
    assert!(source.is_closed());
}

/// Rule S6: a client may still send a request within the linger.
#[test]
fn a_request_within_the_linger_is_served_over_a_pipe() {
    let (source, server) = Pipes::open(Server::new(handler()).stopped_by(&long_grace()));
    let mut idle = source.connect();
    idle.get("/now").response();
    server.shutdown.stop();
    let response = idle.get("/now").response();
    assert_eq!((response.text().as_str(), response.says_close()), ("now", true));
    assert_eq!(idle.end(), End::Eof);
    assert!(server.outcome().is_drained());
}

/// Rules S8, S9: a request that was sent after the first one is answered, too.
#[test]
fn a_stop_lets_finish_what_runs_over_a_pipe() {
    let (handlers, handler) = held_handlers();
    let (source, server) = Pipes::open(Server::new(handler).stopped_by(&short_linger()));
    let mut one = source.connect();
    one.get("/wait");
    handlers.wait_for_call("/wait");
    let mut two = source.connect();
    two.get("/wait");
    handlers.wait_for_call("/wait");
    two.get("/now");
    let mut head = source.connect();
    head.send("GET /now HTTP/1.1\r\nHo");
    let mut body = source.connect();
    body.send("POST /read HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello");
    handlers.wait_for_call("/read");

    server.shutdown.stop();
    wait_until("the stop is known", || source.is_closed());
    handlers.release();
    head.send("st: a\r\n\r\n");
    body.send("world");
    let answers = |pipe: &mut PipeClient, expected: &[&str]| {
        for (n, text) in expected.iter().enumerate() {
            let response = pipe.response();
            assert_eq!(response.text(), *text);
            assert_eq!(response.says_close(), n + 1 == expected.len());
        }
        assert_eq!(pipe.end(), End::Eof);
    };
    answers(&mut one, &["done"]);
    answers(&mut two, &["done", "now"]);
    answers(&mut head, &["now"]);
    answers(&mut body, &["10 bytes"]);
    let outcome = server.outcome();
    assert!(outcome.is_drained(), "{outcome}");
    assert_eq!(outcome.finished, 5);
}

/// Rules S6, S8, S9: a stream may return `Pending` although it holds data, as pipes do at random.
/// The server must not take this for the end of the client's bytes. The test goes step by step, so
/// the stop and the end of the linger come before the connections have their last look.
#[test]
fn a_stream_that_gives_way_loses_no_request() {
    let (handlers, handler) = held_handlers();
    let executor = Arc::new(Executor::new());
    let shutdown = long_grace().linger(Duration::ZERO);
    let server = Server::new(handler).shutdown(&shutdown).executor(executor.clone());
    let (send, connections) = channel::unbounded();
    let serve = server.serve([Listener::from_stream(connections)]);
    let mut serve = Box::pin(serve);
    let connect = || {
        let (client, connection) = Connection::pair();
        let connection = pending_at_first(connection, usize::MAX);
        send.try_send(Ok(connection)).unwrap();
        PipeClient::from(client)
    };
    let (mut pipelined, mut idle, mut silent) = (connect(), connect(), connect());
    pipelined.get("/wait");
    idle.get("/now");
    assert!(future::block_on(future::poll_once(&mut serve)).is_none());
    while executor.try_tick() {}
    handlers.wait_for_call("/wait");
    idle.response();

    for pipe in [&mut pipelined, &mut idle, &mut silent] {
        pipe.get("/now");
    }
    shutdown.stop();
    assert!(future::block_on(future::poll_once(&mut serve)).is_none());
    handlers.release();
    let outcome = within_patience(executor.run(serve)).unwrap();
    let answers = [(pipelined, &["done", "now"][..]), (idle, &["now"]), (silent, &["now"])];
    for (mut pipe, texts) in answers {
        for (n, text) in texts.iter().enumerate() {
            let response = pipe.response();
            assert_eq!(response.text(), *text);
            assert_eq!(response.says_close(), n + 1 == texts.len());
        }
        assert_eq!(pipe.end(), End::Eof);
    }
    assert!(outcome.is_drained(), "{outcome}");
    assert_eq!(outcome.finished, 4);
}

/// Rule S13: the outcome names a request on a pipe, and does not name an idle pipe.
#[test]
fn an_abort_cuts_pipes_and_names_them() {
    let (handlers, handler) = held_handlers();
    let (source, server) = Pipes::open(Server::new(handler).stopped_by(&long_grace()));
    let mut busy = source.connect();
    busy.get("/wait?for=it");
    handlers.wait_for_call("/wait");
    let mut idle = source.connect();
    idle.get("/now").response();
    server.shutdown.abort();
    assert_eq!(busy.end(), End::Eof);
    assert_eq!(idle.end(), End::Eof);
    let outcome = server.outcome();
    let [OpenWork { kind: WorkKind::Connection { peer, stage, method, target: path }, .. }] =
        &outcome.cut[..]
    else {
        panic!("{outcome}");
    };
    assert_eq!((*peer, *stage), (Peer::Unknown, Stage::Handler));
    assert_eq!((method.as_str(), path.as_str()), ("GET", "/wait?for=it"));
}

/// Rule W6: the end of a closed or half-closed pipe does not make half a body whole.
#[test]
fn an_upload_that_is_cut_short_is_an_error() {
    for framing in
        ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello"]
    {
        let (tell, told) = mpsc::channel();
        let (source, _server) = Pipes::open(Server::new(move |mut request: Request| {
            let tell = tell.clone();
            async move {
                let read = request.body_bytes().await;
                let _ = tell.send(read.as_ref().err().map(http_types::Error::status));
                Ok(read?.into_iter().map(char::from).collect::<String>())
            }
        }));
        let mut half = source.connect();
        half.send(format!("POST / HTTP/1.1\r\nHost: test\r\n{framing}")).half_close();
        let response = half.response();
        assert_eq!((response.status, response.says_close()), (400, true));
        assert_eq!(half.end(), End::Eof);
        assert!(told.recv_timeout(PATIENCE).unwrap().is_some());
        let mut gone = source.connect();
        gone.send(format!("POST / HTTP/1.1\r\nHost: test\r\n{framing}"));
        drop(gone);
        assert!(told.recv_timeout(PATIENCE).unwrap().is_some());
    }
}

#[test]
fn a_half_closed_pipe_gets_its_answers() {
    let (handlers, handler) = held_handlers();
    let (source, server) = Pipes::open(Server::new(handler).stopped_by(&long_grace()));
    let mut pipe = source.connect();
    pipe.get("/wait").get("/now").half_close();
    handlers.wait_for_call("/wait");
    handlers.release();
    assert_eq!(pipe.response().text(), "done");
    assert_eq!(pipe.response().text(), "now");
    assert_eq!(pipe.end(), End::Eof);
    wait_until("it is gone", || server.shutdown.in_flight() == 0);
}

/// Rule W9: a small unread body is discarded, and after a large one the connection ends. In both
/// cases there is an answer.
#[test]
fn a_handler_that_never_reads_answers_all_the_same() {
    let limits = Limits::default().discard_bytes(100);
    let server = Server::new(|_| async { Ok("read nothing") }).limits(limits);
    let (source, server) = Pipes::open(server);
    let mut pipe = source.connect();
    let post =
        |length| format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
    for _ in 0..3 {
        pipe.send(post(100) + &"x".repeat(100));
        let response = pipe.response();
        assert_eq!((response.text().as_str(), response.says_close()), ("read nothing", false));
    }
    // The body is larger than the pipe, and the server does not read it before the answer.
    pipe.send(post(1_000_000));
    let response = pipe.response();
    assert_eq!((response.text().as_str(), response.says_close()), ("read nothing", true));
    assert_eq!(pipe.end(), End::Eof);
    drop(pipe);
    wait_until("it is gone", || server.shutdown.in_flight() == 0);
}

/// The slower side holds up the other one, and nothing is buffered without bound. The executor runs
/// until nothing moves any more, so the test needs no clock to see that no more bytes are taken.
#[test]
fn large_bodies_flow_both_ways_at_the_pace_of_the_slower_one() {
    const LONG: usize = 8 * 1024 * 1024;
    /// The room of two pipes and a write buffer, and of bytes between them.
    const BOUND: usize = 512 * 1024;

    let executor = Arc::new(Executor::new());
    let (release, released) = channel::bounded::<()>(1);
    let server = Server::new(move |mut request: Request| {
        let released = released.clone();
        async move {
            let _ = released.recv().await;
            // W14: a long body does not have its length, so the handler sets it.
            Ok(smol_graceful::Body::from_reader(request.take_body().into_reader(), Some(LONG)))
        }
    });
    let server = server.executor(executor.clone());
    let shutdown = Shutdown::new();
    let server = server.shutdown(&shutdown);
    let (client, connection) = Connection::pair();
    let serve = executor.spawn(server.serve([Listener::from_stream(stream::once(Ok(connection)))]));
    let (mut reader, mut writer) = futures_lite::io::split(client);

    let body = Arc::new(pattern(LONG));
    let sent = Arc::new(AtomicUsize::new(0));
    let sending = {
        let (body, sent) = (body.clone(), sent.clone());
        executor.spawn(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {LONG}\r\n\r\n");
            writer.write_all(head.as_bytes()).await.unwrap();
            for at in (0..LONG).step_by(1024) {
                writer.write_all(&body[at..at + 1024]).await.unwrap();
                sent.fetch_add(1024, Ordering::Relaxed);
            }
        })
    };
    let rest = || while executor.try_tick() {};
    rest();
    // Now the handler does not read.
    let before = sent.load(Ordering::Relaxed);
    assert!((1..BOUND).contains(&before), "{before}");
    drop(release);
    rest();
    // Now the client does not read.
    let after = sent.load(Ordering::Relaxed);
    assert!((before + 1..BOUND).contains(&after), "{after}");

    let reading = async {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            reader.read_exact(&mut byte).await.unwrap();
            bytes.extend(byte);
        }
        let head = String::from_utf8(bytes).unwrap().to_lowercase();
        assert!(head.contains(&format!("content-length: {LONG}\r\n")), "{head}");
        let mut bytes = vec![0; 4096];
        for at in (0..LONG).step_by(4096) {
            reader.read_exact(&mut bytes).await.unwrap();
            assert!(bytes == body[at..at + 4096], "other bytes at {at}");
        }
        sending.await;
        shutdown.stop();
        serve.await.unwrap()
    };
    assert!(within_patience(executor.run(reading)).is_drained());
}

#[test]
fn many_pipes_at_once_are_served() {
    let (source, server) = Pipes::open(Server::new(handler()));
    thread::scope(|scope| {
        for number in 0..8 {
            let source = &source;
            scope.spawn(move || {
                let mut pipes: Vec<_> = (0..50).map(|_| source.connect()).collect();
                for round in 0..3 {
                    let body = |n| format!("{number} {round} {n}");
                    for (n, pipe) in pipes.iter_mut().enumerate() {
                        pipe.post("/echo", &body(n));
                    }
                    for (n, pipe) in pipes.iter_mut().enumerate().rev() {
                        assert_eq!(pipe.response().text(), body(n));
                    }
                }
            });
        }
    });
    assert!(server.stop().is_drained());
}

/// `Limits::connections` holds for connections from a channel, where further ones wait.
#[test]
fn the_limit_of_connections_holds_for_pipes() {
    let limits = Limits::default().connections(2);
    let (handlers, handler) = held_handlers();
    let (source, server) =
        Pipes::open(Server::new(handler).limits(limits).stopped_by(&long_grace()));
    let mut pipes: Vec<_> = (0..3).map(|_| source.connect()).collect();
    for pipe in &mut pipes {
        pipe.get("/wait");
    }
    handlers.wait_for_call("/wait");
    handlers.wait_for_call("/wait");
    assert_eq!(server.shutdown.in_flight(), 2);
    assert_eq!(source.queued(), 1);
    pipes.remove(0);
    handlers.release();
    handlers.wait_for_call("/wait");
    for pipe in &mut pipes {
        assert_eq!(pipe.response().text(), "done");
    }
}

/// Rule S4: queued connections are served, and then the source is closed.
#[test]
fn what_waits_in_the_channel_is_served_at_the_stop() {
    let limits = Limits::default().connections(1);
    let (handlers, handler) = held_handlers();
    let (source, server) =
        Pipes::open(Server::new(handler).limits(limits).stopped_by(&short_linger()));
    let mut first = source.connect();
    first.get("/wait");
    handlers.wait_for_call("/wait");
    let mut queued: Vec<_> = (0..5).map(|_| source.connect()).collect();
    queued.iter_mut().for_each(|pipe| _ = pipe.get("/now"));
    server.shutdown.stop();
    for pipe in &mut queued {
        let response = pipe.response();
        assert_eq!((response.text().as_str(), response.says_close()), ("now", true));
        assert_eq!(pipe.end(), End::Eof);
    }
    wait_until("closed", || source.is_closed());
    handlers.release();
    assert_eq!(first.response().text(), "done");
    let outcome = server.outcome();
    assert!(outcome.is_drained(), "{outcome}");
    assert_eq!(outcome.finished, 6);
}

/// Rule S18: the server skips an error of one connection, waits after another error, and ends at
/// neither.
#[test]
fn errors_of_the_stream_end_nothing() {
    const EMFILE: i32 = 24;
    let (source, server) = Pipes::open(Server::new(handler()));
    let errors = [
        io::Error::from(ErrorKind::ConnectionAborted),
        io::Error::from(ErrorKind::ConnectionReset),
        io::Error::from_raw_os_error(EMFILE),
        io::Error::other("of another kind"),
        io::Error::from(ErrorKind::TimedOut),
    ];
    for error in errors {
        source.fail(error);
        assert_eq!(source.connect().get("/now").response().text(), "now");
    }
    // This holds at the stop, too.
    let (handlers, handler) = held_handlers();
    let limits = Limits::default().connections(1);
    let (source, full) =
        Pipes::open(Server::new(handler).limits(limits).stopped_by(&short_linger()));
    let mut first = source.connect();
    first.get("/wait");
    handlers.wait_for_call("/wait");
    source.fail(ErrorKind::ConnectionReset.into());
    source.fail(io::Error::from_raw_os_error(EMFILE));
    let mut last = source.connect();
    last.get("/now");
    full.shutdown.stop();
    assert_eq!(last.response().text(), "now");
    handlers.release();
    assert_eq!(first.response().text(), "done");
    assert!(full.outcome().is_drained());
    assert!(server.stop().is_drained());
}

/// Any number of errors leaves other tasks their turn.
#[test]
fn errors_without_end_hold_up_nobody() {
    let (source, pipes) = Pipes::listener();
    let errors =
        Listener::from_stream(stream::repeat_with(|| Err(ErrorKind::ConnectionReset.into())));
    let server = Running::on(Server::new(handler()).stopped_by(&short_linger()), [errors, pipes]);
    let mut pipe = source.connect();
    for _ in 0..3 {
        assert_eq!(pipe.get("/now").response().text(), "now");
    }
    assert!(server.stop().is_drained());
    assert_eq!(pipe.end(), End::Eof);
}

/// After the end of the stream, existing connections go on until the stop.
#[test]
fn the_end_of_the_stream_is_not_the_end_of_the_server() {
    let (source, server) = Pipes::open(Server::new(handler()).stopped_by(&short_linger()));
    let mut pipe = source.connect();
    pipe.get("/now").response();
    source.send.close();
    for _ in 0..3 {
        assert_eq!(pipe.get("/now").response().text(), "now");
    }
    assert!(server.is_serving());
    let outcome = server.stop();
    assert!(outcome.is_drained());
    assert_eq!(pipe.end(), End::Eof);

    // A server without any connection waits for its stop, too.
    let serving = Running::on(Server::new(handler()), [Listener::from_stream(stream::empty())]);
    let outcome = serving.stop();
    assert!(outcome.is_drained());
}

/// The server ends a connection whose client drops its end, in the middle of an unread response or
/// of a request.
#[test]
fn a_pipe_that_was_dropped_is_let_go_of() {
    let (source, server) = Pipes::open(Server::new(handler()).stopped_by(&long_grace()));
    let mut big = source.connect();
    big.get("/big");
    big.take(1).unwrap();
    let mut head = source.connect();
    head.send("GET / HT");
    let mut body = source.connect();
    body.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello");
    let mut idle = source.connect();
    idle.get("/now").response();
    wait_until("all are there", || server.shutdown.in_flight() == 4);
    drop((big, head, body, idle));
    wait_until("all are gone", || server.shutdown.in_flight() == 0);
    assert!(server.stop().is_drained());
}

/// The deadlines hold for a connection without a socket.
#[test]
fn a_pipe_that_stalls_is_told_so() {
    let short = Duration::from_millis(40);
    let limits = Limits::default().head_timeout(short).stall_timeout(short).idle_timeout(short);
    let (source, server) =
        Pipes::open(Server::new(handler()).limits(limits).stopped_by(&long_grace()));
    for request in [
        "GET /now HTTP/1.1\r\nHost: test\r\n",
        "POST /read HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello",
    ] {
        let mut pipe = source.connect();
        let response = pipe.send(request).response();
        assert_eq!((response.status, response.says_close()), (408, true), "{request}");
    }
    let mut idle = source.connect();
    idle.get("/now").response();
    assert_eq!(idle.end(), End::Eof);
    let mut slow = source.connect();
    slow.get("/big").take(1).unwrap();
    // The client takes nothing, so the server gives the connection up.
    wait_until("nobody is left", || server.shutdown.in_flight() == 0);
    assert!(slow.rest().0.len() < BIG);
}

/// Rule S11 over a pipe: the stop waits for an upgraded connection, and an abort ends it.
#[test]
fn an_upgraded_pipe_is_waited_for() {
    for abort in [false, true] {
        let (source, server) = Pipes::open(Server::new(upgrading()).stopped_by(&long_grace()));
        let mut pipe = source.connect();
        pipe.send(UPGRADE_HEAD.to_owned() + "early");
        assert_eq!(pipe.response().status, 101);
        assert_eq!(pipe.take(5).unwrap(), b"early");
        assert_eq!(pipe.send("hello").take(5).unwrap(), b"hello");
        server.shutdown.stop();
        wait_until("closed", || source.is_closed());
        assert_eq!(pipe.send("still there").take(11).unwrap(), b"still there");
        assert!(server.is_serving());
        if abort {
            server.shutdown.abort();
            assert_eq!(pipe.end(), End::Eof);
            let outcome = server.outcome();
            let [OpenWork { kind: WorkKind::Connection { stage, .. }, .. }] = &outcome.cut[..]
            else {
                panic!("{outcome}");
            };
            assert_eq!(*stage, Stage::Upgraded);
        } else {
            pipe.half_close();
            assert_eq!(pipe.end(), End::Eof);
            assert!(server.outcome().is_drained());
        }
        assert_eq!(server.shutdown.in_flight(), 0);
    }
}

/// A body that another task reads ends with its pipe.
#[test]
fn a_body_that_is_read_elsewhere_ends_with_its_pipe() {
    let (send, read) = mpsc::channel();
    let (source, server) = Pipes::open(Server::new(move |mut request: Request| {
        let mut body = request.take_body();
        let send = send.clone();
        thread::spawn(move || {
            future::block_on(body.read_exact(&mut [0; 5])).unwrap();
            send.send(None).unwrap();
            let read = future::block_on(body.read_to_end(&mut Vec::new()));
            send.send(Some(read.is_err())).unwrap();
        });
        future::pending::<http_types::Result<&str>>()
    }));
    let mut pipe = source.connect();
    pipe.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234");
    assert_eq!(read.recv_timeout(PATIENCE), Ok(None));
    server.shutdown.abort();
    assert_eq!(read.recv_timeout(PATIENCE), Ok(Some(true)));
    assert_eq!(pipe.end(), End::Eof);
    assert!(!server.outcome().is_drained());
}

// ── Listeners ───────────────────────────────────────────────────────────────────────────────

/// Clones are one socket. Two servers can take turns at it, and the first server's stop closes it
/// for both.
#[test]
fn clones_of_a_listener_are_one_socket() {
    let listener = tcp();
    let clone = listener.clone();
    assert_eq!(clone.address(), listener.address());
    let first = Running::on(Server::new(handler()).stopped_by(&short_linger()), [listener]);
    let second = Running::on(Server::new(handler()).stopped_by(&short_linger()), [clone.clone()]);
    let mut clients: Vec<_> = (0..20).map(|_| second.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/now").response().text(), "now");
    }
    let open = || first.shutdown.in_flight() + second.shutdown.in_flight();
    assert_eq!(open(), clients.len());

    first.shutdown.stop();
    assert!(first.outcome().is_drained());
    assert!(is_refused(second.addr()));
    // The second server goes on with its connections until its own stop.
    assert!(second.is_serving());
    assert!(second.stop().is_drained());

    // A closed listener gives no connection to a later server.
    let third = Running::on(Server::new(handler()), [clone]);
    assert!(third.stop().is_drained());
}

/// The drop of a server closes its listener, even if the program has a clone.
#[test]
fn a_clone_does_not_keep_the_socket_of_a_dropped_server() {
    let listener = tcp();
    let mut server = Running::on(Server::new(handler()), [listener.clone()]);
    assert_eq!(server.connect().get("/now").response().text(), "now");
    server.drop_server();
    wait_until("closed", || is_refused(address_of(&listener)));
}

/// A socket that a program has bound with the standard library is blocking, and is served, too.
#[test]
fn a_listener_of_the_standard_library_is_served() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    // This client is in the queue before the server knows the socket.
    let mut early = Client::connect(addr);
    early.get("/now");
    let server =
        Running::start(Server::new(handler()).stopped_by(&short_linger()), vec![], [listener]);
    assert_eq!(early.response().text(), "now");
    let mut client = Client::connect(addr);
    assert_eq!(client.get("/now").response().text(), "now");
    server.shutdown.stop();
    assert_eq!(client.end(), End::Eof);
    assert!(server.outcome().is_drained());
    assert!(TcpListener::bind(addr).is_ok());
}

/// The server removes the file of a Unix socket that the program has bound.
#[test]
fn a_unix_listener_of_the_standard_library_is_served() {
    for dropped in [false, true] {
        let directory = Directory::new();
        let path = directory.join("std");
        let listener = UnixListener::bind(&path).unwrap();
        let server = Server::new(handler()).stopped_by(&short_linger());
        let mut server = Running::start(server, vec![], [listener]);
        assert_eq!(
            Client::from(UnixStream::connect(&path).unwrap()).get("/peer").response().text(),
            "unix"
        );
        assert!(path.exists());
        if dropped {
            server.drop_server();
        } else {
            assert!(server.stop().is_drained());
        }
        wait_until("the file is removed", || !path.exists());
    }
}

#[test]
fn addresses_of_all_types_are_listened_on() {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listeners = [
        any.listen(),
        "127.0.0.1:0".listen(),
        "127.0.0.1:0".to_owned().listen(),
        Address::Tcp(any).listen(),
        (&Address::Tcp(any)).listen(),
        TcpListener::bind(any).listen(),
        tcp().listen(),
        ListenOptions::default().reuse_port(true).bind(Address::Tcp(any)),
    ];
    let listeners = listeners.map(Result::unwrap);
    let addresses: Vec<_> = listeners.iter().map(address_of).collect();
    let server = Running::on(Server::new(handler()), listeners);
    for addr in &addresses {
        assert_eq!(Client::connect(*addr).get("/now").response().text(), "now");
    }
    assert!(server.stop().is_drained());
    for addr in addresses {
        assert!(is_refused(addr));
    }
    // A text that is not an address is an error before anything is served.
    let serve = Server::new(handler()).serve(["example.org:80".to_owned()]);
    assert_eq!(within_patience(serve).unwrap_err().kind(), ErrorKind::InvalidInput);
    let serve = Server::new(handler()).serve([Err::<Listener, _>(ErrorKind::NotFound.into())]);
    assert_eq!(within_patience(serve).unwrap_err().kind(), ErrorKind::NotFound);
}

/// One server can have different kinds of listeners.
#[test]
fn a_server_listens_on_sockets_and_pipes_at_once() {
    let directory = Directory::new();
    let path = directory.join("mixed");
    let (source, pipes) = Pipes::listener();
    let (tcp, unix) = (tcp(), Listener::bind(Address::Unix(path.clone())).unwrap());
    let server = Running::on(Server::new(handler()), [tcp, unix, pipes]);
    let mut client = server.connect();
    let local = client.stream.local_addr().unwrap().to_string();
    assert_eq!(client.get("/peer").response().text(), local);
    assert_eq!(
        Client::from(UnixStream::connect(&path).unwrap()).get("/peer").response().text(),
        "unix"
    );
    assert_eq!(source.connect().get("/peer").response().text(), "unknown");
    // A peer from the program replaces the socket's own.
    for peer in [Peer::from(([192, 0, 2, 1], 80)), Peer::Unix] {
        let (client, connection) = Connection::pair();
        let connection = connection.from_peer(peer);
        assert_eq!(connection.peer(), peer);
        source.send.try_send(Ok(connection)).unwrap();
        assert_eq!(PipeClient::from(client).get("/peer").response().text(), peer.to_string());
    }
    assert!(server.stop().is_drained());
    assert!(!path.exists());
}

/// Sockets that the program has accepted or connected itself are served as sockets.
#[test]
fn sockets_of_the_program_are_connections() {
    use smol::Async;

    let (source, server) = Pipes::open(Server::new(handler()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Client::connect(listener.local_addr().unwrap());
    let (accepted, addr) = listener.accept().unwrap();
    let connection = Connection::from(Async::new(accepted).unwrap());
    assert_eq!(connection.peer(), Peer::from(addr));
    source.send.try_send(Ok(connection)).unwrap();
    assert_eq!(client.get("/peer").response().text(), addr.to_string());

    let (client, accepted) = UnixStream::pair().unwrap();
    let connection = Connection::from(Async::new(accepted).unwrap());
    assert_eq!(connection.peer(), Peer::Unix);
    source.send.try_send(Ok(connection)).unwrap();
    assert_eq!(Client::from(client).get("/peer").response().text(), "unix");
    assert!(server.stop().is_drained());
}

// ── Types ───────────────────────────────────────────────────────────────────────────────────

/// Shows, when it is compiled, that the types have the properties that threads and executors need.
const _: () = {
    const fn shared<T: Send + Sync + Unpin + 'static>() {}
    shared::<Address>();
    shared::<AddressError>();
    shared::<Connection>();
    shared::<OpenWork>();
    shared::<DrainEnding>();
    shared::<Guard>();
    shared::<Limits>();
    shared::<Listener>();
    shared::<ListenOptions>();
    shared::<Outcome>();
    shared::<Peer>();
    shared::<Phase>();
    shared::<ServeError>();
    shared::<Server>();
    shared::<Shutdown>();
    shared::<smol_graceful::Signal>();
    shared::<Stage>();
    shared::<Token>();
    shared::<WorkKind>();
};

/// Shows, when it is compiled, that the futures can be spawned on any executor.
#[expect(dead_code, reason = "its signature is the test")]
fn futures_move_between_threads(server: Server, shutdown: &Shutdown, token: &Token, guard: Guard) {
    fn send<T: Send>(_: T) {}
    send(server.serve([tcp()]));
    send(shutdown.stop_and_drain());
    send(token.stopping());
    send(token.aborting());
    send(token.until_stop(async {}));
    send(guard.hold(async {}));
}

/// The standard library prints an error of `main` with `Debug`, which must be one line for an
/// operator.
#[test]
fn an_error_of_serve_is_an_io_error_and_one_line() {
    let listener = tcp();
    let serve = Server::new(handler()).serve([listener.address().clone()]);
    let error = within_patience(serve).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let line = format!("{error:?}");
    let addr = listener.address();
    let reason = "this program listens on it already; leave one of the two out";
    assert_eq!(line, format!("cannot listen on {addr}: {reason}"));
    assert_eq!(format!("{error}"), line);
    assert_eq!(format!("{error:#?}"), line);

    fn into_io(error: ServeError) -> io::Result<()> {
        Err(error)?
    }
    fn into_box(error: ServeError) -> Result<(), Box<dyn Error + Send + Sync>> {
        Err(error)?
    }
    fn from_io(error: io::Error) -> Result<(), ServeError> {
        Err(error)?
    }
    let error = into_io(error).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let error = from_io(error).unwrap_err();
    assert_eq!(format!("{error:?}"), line);
    assert_eq!(into_box(error).unwrap_err().to_string(), line);
    // Errors of other kinds have no remedy.
    for kind in [ErrorKind::NotFound, ErrorKind::Other] {
        let error = ServeError::from(io::Error::new(kind, "it is so"));
        assert_eq!((error.kind(), format!("{error:?}")), (kind, "it is so".to_owned()));
    }
}

// ── Bodies of chunks ────────────────────────────────────────────────────────────────────────

/// Returns a server whose answers have the chunks that the test sends.
fn chunked() -> (channel::Sender<io::Result<&'static str>>, Running) {
    let (send, chunks) = channel::unbounded();
    let server = Server::new(move |request: Request| {
        let (token, chunks) = (Token::of(&request), Box::pin(chunks.clone()));
        let until_stop = stream::unfold((token, chunks), |(token, mut chunks)| async {
            let next = token.until_stop(chunks.next()).await??;
            Some((next, (token, chunks)))
        });
        async { Ok(stream_body(until_stop)) }
    });
    (send, Running::of(server.stopped_by(&short_linger())))
}

#[test]
fn chunks_arrive_one_at_a_time() {
    let (send, server) = chunked();
    let mut client = server.connect();
    client.get("/");
    for (chunk, sent) in [("one", "3\r\none\r\n"), ("fifteen letters", "F\r\nfifteen letters\r\n")]
    {
        send.try_send(Ok(chunk)).unwrap();
        if chunk == "one" {
            while !client.line().unwrap().is_empty() {}
        }
        // The next chunk is not there yet. The server waits for it, and has sent the first one.
        assert_eq!(
            client.take(sent.len()).unwrap().to_ascii_uppercase(),
            sent.to_uppercase().as_bytes()
        );
    }
    // An empty chunk is not the end, and is not sent.
    send.try_send(Ok("")).unwrap();
    send.try_send(Ok("three")).unwrap();
    assert_eq!(client.take(10).unwrap(), b"5\r\nthree\r\n");
    send.close();
    assert_eq!(client.take(5).unwrap(), b"0\r\n\r\n");
    // The connection goes on.
    assert_eq!(client.get("/").response().text(), "");
    assert!(server.stop().is_drained());
}

/// RFC 9112 section 8: in both versions, the client must not take a part for the whole.
#[test]
fn an_error_in_the_middle_of_a_body_is_a_reset() {
    for version in ["1.1", "1.0"] {
        let (send, server) = chunked();
        let mut client = server.connect();
        client.send(format!("GET / HTTP/{version}\r\nHost: test\r\n\r\n"));
        send.try_send(Ok("one")).unwrap();
        while !client.line().unwrap().is_empty() {}
        let first: &[u8] = if version == "1.0" { b"one" } else { b"3\r\none\r\n" };
        assert_eq!(client.take(first.len()).unwrap(), first);
        send.try_send(Err(ErrorKind::Other.into())).unwrap();
        assert_eq!(client.rest(), (vec![], End::Reset));
        wait_until("it is gone", || server.shutdown.in_flight() == 0);
        // Other clients are served.
        send.close();
        assert_eq!(server.connect().get("/").response().status, 200);
    }
}

/// An error before the first byte gives a 500.
#[test]
fn an_error_at_the_beginning_of_a_body_is_a_500() {
    let (send, server) = chunked();
    send.try_send(Err(ErrorKind::Other.into())).unwrap();
    let mut client = server.connect();
    let response = client.get("/").response();
    assert_eq!((response.status, response.says_close()), (500, true));
    assert_eq!(client.end(), End::Eof);
}

/// Rule S10: a body of chunks sees the stop, and ends with its last chunk.
#[test]
fn a_stop_ends_a_body_of_chunks_politely() {
    let (send, server) = chunked();
    let mut client = server.connect();
    client.get("/");
    send.try_send(Ok("one")).unwrap();
    while !client.line().unwrap().is_empty() {}
    assert_eq!(client.take(8).unwrap(), b"3\r\none\r\n");
    server.shutdown.stop();
    assert_eq!(client.rest(), (b"0\r\n\r\n".to_vec(), End::Eof));
    let outcome = server.outcome();
    assert!(outcome.is_drained(), "{outcome}");
    assert_eq!(outcome.finished, 1);
}

/// A stream that always has a chunk ends at the stop, too.
#[test]
fn a_stop_ends_an_endless_body_of_chunks() {
    let server = Running::of(Server::new(|request: Request| async move {
        let token = Token::of(&request);
        let chunks = stream::unfold(token, |token| async {
            token.until_stop(async {}).await?;
            Some((Ok("again and again"), token))
        });
        Ok(stream_body(chunks))
    }));
    let mut client = server.connect();
    client.get("/");
    while !client.line().unwrap().is_empty() {}
    client.take(100_000).unwrap();
    server.shutdown.stop();
    let (bytes, end) = client.rest();
    assert!(bytes.ends_with(b"\r\n0\r\n\r\n"), "no end: {} bytes", bytes.len());
    assert_eq!(end, End::Eof);
    assert!(server.outcome().is_drained());
}
