//! Sources of connections and wrappers: sources that fail, wrappers, and their lines in the log.

mod common;

use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::process::{ExitCode, Termination};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    BIG, Client, Directory, End, Log, PATIENCE, PipeClient, Pipes, Running, StoppedBy,
    UPGRADE_HEAD, address_of, handler, held_handlers, is_refused, long_grace, short_linger, tcp,
    upgrading, wait_until,
};
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt, future, stream};
use log::Level;
use smol::channel;
use smol_graceful::{
    Address, Connection, DrainEnding, Limits, Listener, OpenWork, Peer, Process, Server, Stage,
    WorkKind,
};

// Sources that panic (rule S17).

/// Requests in flight are finished, and then the error names the panic and the line.
#[test]
fn a_source_that_panics_stops_the_server_and_is_its_error() {
    let log = Log::of_this_process();
    let (handlers, handler) = held_handlers();
    let socket = tcp();
    let addr = address_of(&socket);
    let (panic, told) = channel::bounded::<()>(1);
    let (source, line) = (Listener::from_stream(panicking_after(told)), line!());
    let server = Running::on(Server::new(handler), [socket, source]);
    let mut client = Client::connect(addr);
    client.get("/wait");
    handlers.wait_for_call("/wait");
    assert!(!server.shutdown.token().is_stopping());

    drop(panic);
    wait_until("the server stops", || server.shutdown.token().is_stopping());
    assert!(server.is_serving());
    handlers.release();
    let response = client.response();
    assert_eq!((response.text().as_str(), response.says_close()), ("done", true));
    assert_eq!(client.end(), End::Eof);
    let error = server.ended().unwrap_err();
    let told = format!("the source of connections of {}:{line}:", file!());
    let text = error.to_string();
    assert!(text.starts_with(&told) && text.ends_with(" has panicked: no more to say"), "{text}");
    assert_eq!(log.with(&told), [(Level::Error, text)]);
}

/// A source that is not polled before the stop panics when the server polls it for the last time.
#[test]
fn a_source_that_panics_at_the_stop_is_an_error_too() {
    let is_stopped = Arc::new(AtomicBool::new(false));
    let panics = is_stopped.clone();
    let (ask, asked) = mpsc::channel();
    let source = Listener::from_stream(stream::poll_fn(move |_| {
        assert!(!panics.load(Ordering::SeqCst), "asked at the stop");
        ask.send(()).unwrap();
        Poll::Pending
    }));
    let server = Running::on(Server::new(handler()), [source]);
    asked.recv_timeout(PATIENCE).unwrap();
    is_stopped.store(true, Ordering::SeqCst);
    server.shutdown.stop();
    let text = server.ended().unwrap_err().to_string();
    assert!(text.ends_with(" has panicked: asked at the stop"), "{text}");
}

/// A process ends with exit code 1 and one line with the reason.
#[test]
fn a_source_that_panics_ends_a_process_with_1() {
    let (_, told) = channel::bounded::<()>(1);
    let source = Listener::from_stream(panicking_after(told));
    let process = Process::default().threads(1).signals([]).restart_on(None);
    let ended = process.run(Server::new(handler()), [source]);
    let text = format!("{:?}", ended.as_ref().unwrap_err());
    assert!(text.contains("has panicked: no more to say") && !text.contains('\n'), "{text}");
    assert_eq!(format!("{:?}", ended.report()), format!("{:?}", ExitCode::FAILURE));
}

/// A panic of a stream, at any step of the server, ends its own connection alone.
#[test]
fn a_stream_that_panics_costs_its_client_alone() {
    let log = Log::of_this_process();
    let (send, connections) = channel::unbounded();
    let wrapped = tcp().wrap(|_| async { Ok(PanickingStream { reads: 1 }) });
    let addr = address_of(&wrapped);
    let server = Running::on(Server::new(handler()), [Listener::from_stream(connections), wrapped]);
    for reads in 0..3 {
        let connection = Connection::new(PanickingStream { reads });
        let peer = ([192, 0, 2, 1], reads + 1);
        send.try_send(Ok(connection.from_peer(peer))).unwrap();
        wait_until("it has come and gone", || server.shutdown.in_flight() == 0 && send.is_empty());
    }
    // The first one panics in an idle connection, and the others panic while a request is read.
    for port in 1..=3 {
        let told =
            format!("192.0.2.1:{port}: the program's code under this connection has panicked");
        wait_until("the log tells it", || log.with(&told) == [(Level::Error, told.clone())]);
    }
    let mut client = Client::connect(addr);
    client.send("x");
    assert!(client.rest().0.is_empty());
    wait_until("nobody is left", || server.shutdown.in_flight() == 0);
    assert!(server.stop().is_drained());
}

/// Returns a source without connections, which panics when the other end is closed.
fn panicking_after(
    told: channel::Receiver<()>,
) -> impl futures_lite::Stream<Item = io::Result<Connection>> + Send {
    Box::pin(told).map(|()| unreachable!()).chain(stream::once_future(async {
        panic!("no more to say");
    }))
}

/// A stream that gives the beginning of a request in this number of reads, and panics in the next
/// one.
struct PanickingStream {
    reads: u16,
}

impl AsyncRead for PanickingStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.reads = self.reads.checked_sub(1).expect("the stream panics");
        buf[..2].copy_from_slice(b"GE");
        Poll::Ready(Ok(2))
    }
}

impl AsyncWrite for PanickingStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        panic!("the stream panics in writing")
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        panic!("the stream panics in closing")
    }
}

// Wrappers.

/// The request and the outcome have the client that a wrapper names.
#[test]
fn a_wrapper_tells_who_the_client_is() {
    let (handlers, handler) = held_handlers();
    let (peer, unknown) = (Peer::from(([192, 0, 2, 1], 7)), Peer::Unknown);
    let named = tcp().wrap(move |connection| async move { Ok(connection.from_peer(peer)) });
    let unnamed = tcp().wrap(move |connection| async move { Ok(connection.from_peer(unknown)) });
    let addresses = [address_of(&named), address_of(&unnamed)];
    let server = Running::on(Server::new(handler), [named, unnamed]);
    let mut clients = addresses.map(Client::connect);
    let own = Peer::from(clients[1].stream.local_addr().unwrap());
    for (client, peer) in clients.iter_mut().zip([peer, own]) {
        for _ in 0..2 {
            assert_eq!(client.get("/peer").response().text(), peer.to_string());
        }
        client.get("/wait");
        handlers.wait_for_call("/wait");
    }
    server.shutdown.abort();
    let outcome = server.ended().unwrap();
    let peers: Vec<_> = outcome.cut.iter().map(|cut| &cut.kind).collect();
    let [WorkKind::Connection { peer: first, .. }, WorkKind::Connection { peer: second, .. }] =
        peers[..]
    else {
        panic!("{outcome}");
    };
    assert_eq!([*first, *second], [peer, own]);
}

/// A hundred clients with nonsense give a count of a hundred, and a line or two in the log.
#[test]
fn failed_handshakes_are_counted_and_do_not_fill_the_log() {
    let log = Log::of_this_process();
    let listener = tcp().wrap(|mut connection: Connection| async move {
        let mut hello = [0; 5];
        connection.read_exact(&mut hello).await?;
        match &hello {
            b"hello" => Ok(connection),
            b"panic" => panic!("as the client wished"),
            b"sleep" => future::pending().await,
            _ => Err(io::Error::other("no hello")),
        }
    });
    let (addr, gauge) = (address_of(&listener), listener.clone());
    let limits = Limits::default().head_timeout(Duration::from_millis(50));
    let server = Running::on(Server::new(handler()).limits(limits), [listener]);
    let mut good = Client::connect(addr);
    good.send("hello").get("/now").response();
    // This client is like a health check that opens a connection and sends nothing.
    drop(Client::connect(addr));
    wait_until("it has gone", || server.shutdown.in_flight() == 1);
    assert_eq!(gauge.failed_handshakes(), 0);

    let begun = Instant::now();
    for n in 0..100 {
        let mut bad = Client::connect(addr);
        let peer = bad.stream.local_addr().unwrap();
        assert_eq!(bad.send("HELLO").end(), End::Eof);
        wait_until("it is counted", || gauge.failed_handshakes() == n + 1);
        if n == 0 {
            // The first failure is logged at once.
            let told = format!("{addr}: a handshake failed, from {peer}: no hello");
            wait_until("the log tells it", || {
                log.with("no hello") == [(Level::Info, told.clone())]
            });
        }
    }
    let lines = log.with(&format!("{addr}: ")).len() as u64;
    assert!(lines <= 1 + begun.elapsed().as_secs(), "{lines} lines");

    // A second later, one line counts all of them, and names the last. Only the clock begins the
    // next second.
    thread::sleep(Duration::from_secs(1));
    let mut late = Client::connect(addr);
    let peer = late.stream.local_addr().unwrap();
    assert_eq!(late.send("panic").end(), End::Eof);
    let told = format!(" handshakes failed, the last one from {peer}: the wrapper has panicked");
    wait_until("the log tells it", || log.with(&told).len() == 1);
    assert_eq!(Client::connect(addr).send("sleep").end(), End::Eof);
    wait_until("it is counted", || gauge.failed_handshakes() == 102);
    assert!(server.stop().is_drained());
}

#[test]
fn a_wrapper_that_changes_nothing_changes_nothing() {
    let listener = tcp().wrap(|connection| async move { Ok(connection) });
    assert!(format!("{listener:?}").contains("is_wrapped: true"));
    let server = Running::on(Server::new(handler()), [listener]);
    let mut client = server.connect();
    for _ in 0..3 {
        assert_eq!(client.get("/now").response().text(), "now");
    }
    let local = client.stream.local_addr().unwrap().to_string();
    assert_eq!(client.get("/peer").response().text(), local);
    client.send(
        "POST /echo HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    );
    assert_eq!(client.response().status, 100);
    assert_eq!(client.send("hello").response().text(), "hello");
    client.send("GET /now HTTP/1.1\r\nHost: test\r\n\r\n".repeat(20));
    for _ in 0..20 {
        assert_eq!(client.response().text(), "now");
    }
    let response = client.get("/big").response();
    assert_eq!(response.body.len(), BIG);
    server.shutdown.stop();
    assert_eq!(client.end(), End::Eof);
    assert!(server.outcome().is_drained());
}

/// The server uses the wrapper's stream in both directions.
#[test]
fn a_wrapper_that_changes_bytes_is_used_for_all_of_them() {
    let listener = tcp().wrap(|connection| async move { Ok(UpperCaseStream(connection)) });
    let server = Running::on(Server::new(handler()), [listener]);
    let mut client = server.connect();
    let response = client.get("/now").response();
    assert_eq!(response.lines[0], "HTTP/1.1 200 OK");
    assert!(response.lines.contains(&"CONTENT-LENGTH: 3".to_owned()), "{:?}", response.lines);
    assert_eq!(response.text(), "NOW");
    // The path has a `$`, which the wrapper reads as `o`.
    assert_eq!(client.get("/n$w").response().text(), "NOW");
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("5\r\nhell$\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "HELLO");
    assert!(server.stop().is_drained());
}

/// A stream that writes in upper case, and reads `$` as `o`.
struct UpperCaseStream<T>(T);

impl<T: AsyncRead + Unpin> AsyncRead for UpperCaseStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        if let Poll::Ready(Ok(n)) = read {
            buf[..n].iter_mut().filter(|byte| **byte == b'$').for_each(|byte| *byte = b'o');
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for UpperCaseStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &buf.to_ascii_uppercase())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// Rule S17: a wrapper's error or panic closes its client's connection without a response, and
/// affects no other one.
#[test]
fn a_wrapper_that_fails_costs_its_client_alone() {
    let listener = tcp().wrap(|mut connection| {
        let mut first = [0];
        // The wrapper may panic before it returns a future, or in the future.
        assert!(future::block_on(connection.read_exact(&mut first)).is_ok());
        assert_ne!(first[0], b'!', "as the client wished, early");
        async move {
            assert_ne!(first[0], b'?', "as the client wished");
            if first[0] == b'E' { Err(ErrorKind::InvalidData.into()) } else { Ok(connection) }
        }
    });
    let server = Running::on(Server::new(handler()), [listener]);
    let mut good = server.connect();
    assert_eq!(good.send("+").get("/now").response().text(), "now");
    for first in ["!", "?", "E"] {
        let mut bad = server.connect();
        // The client sends only as much as the wrapper reads, because unread bytes would make the
        // close a reset.
        assert_eq!(bad.send(first).end(), End::Eof, "{first}");
    }
    // A client that leaves before its first byte does not reach the wrapper.
    drop(server.connect());
    wait_until("only the good one is left", || server.shutdown.in_flight() == 1);
    assert_eq!(good.get("/now").response().text(), "now");
    assert!(server.stop().is_drained());
}

/// A handshake has as much time as a head, from the client's first byte on.
#[test]
fn a_handshake_that_does_not_end_is_ended() {
    let limits = Limits::default().head_timeout(Duration::from_millis(40));
    let (shake, begun) = counted(future::pending::<()>);
    let server = Running::on(
        Server::new(handler()).limits(limits).stopped_by(&long_grace()),
        [tcp().wrap(shake)],
    );
    let mut silent = server.connect();
    wait_until("it is accepted", || server.shutdown.in_flight() == 1);
    for _ in 0..2 {
        let mut client = server.connect();
        assert_eq!(client.send("hello").end(), End::Eof);
    }
    assert_eq!(begun.load(Ordering::SeqCst), 2);
    // The silent client has waited for longer than a handshake may take, and is still connected.
    wait_until("they are gone", || server.shutdown.in_flight() == 1);
    assert_eq!(silent.send("hello").end(), End::Eof);
    assert_eq!(begun.load(Ordering::SeqCst), 3);
    assert!(server.stop().is_drained());
}

/// Rules S6, S7: with a wrapper, too, a silent client is treated like an idle one.
#[test]
fn a_silent_client_of_a_wrapper_is_closed_at_the_stop() {
    let (shake, begun) = counted(|| async {});
    let server =
        Running::on(Server::new(handler()).stopped_by(&short_linger()), [tcp().wrap(shake)]);
    let mut silent = server.connect();
    let mut idle = server.connect();
    idle.send("hello").get("/now");
    assert_eq!(idle.take(5).unwrap(), b"world");
    assert_eq!(idle.response().text(), "now");
    wait_until("both are there", || server.shutdown.in_flight() == 2);
    server.shutdown.stop();
    assert_eq!((silent.end(), idle.end()), (End::Eof, End::Eof));
    assert!(server.outcome().is_drained());
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

/// The wrapper of a pipe begins with the first byte, too.
#[test]
fn a_silent_client_of_a_wrapped_pipe_is_closed_at_the_stop() {
    let (shake, begun) = counted(|| async {});
    let calls = Arc::new(AtomicUsize::new(0));
    let called = calls.clone();
    let (source, pipes) = Pipes::listener();
    let listener = pipes.wrap(move |connection| {
        called.fetch_add(1, Ordering::SeqCst);
        shake(connection)
    });
    let server = Running::on(Server::new(handler()).stopped_by(&short_linger()), [listener]);
    let mut silent = source.connect();
    let mut idle = source.connect();
    assert_eq!(idle.send("hello").get("/now").take(5).unwrap(), b"world");
    assert_eq!(idle.response().text(), "now");
    wait_until("both are there", || server.shutdown.in_flight() == 2);
    server.shutdown.stop();
    assert_eq!(silent.end(), End::Eof);
    assert_eq!(idle.end(), End::Eof);
    assert!(server.outcome().is_drained());
    assert_eq!((calls.load(Ordering::SeqCst), begun.load(Ordering::SeqCst)), (1, 1));
}

/// Rule S8: a handshake that has begun is finished after the stop, and its client's request is
/// answered, even if the linger is long over.
#[test]
fn a_handshake_under_way_at_the_stop_gets_its_request_served() {
    let shutdown = long_grace().linger(Duration::from_secs(2));
    let (release, released) = channel::bounded::<()>(1);
    let (shake, begun) = counted(move || {
        let released = released.clone();
        async move { _ = released.recv().await }
    });
    let server = Running::on(Server::new(handler()).stopped_by(&shutdown), [tcp().wrap(shake)]);
    let mut idle = server.connect();
    let mut early = server.connect();
    early.send("hello").get("/now");
    let mut late = server.connect();
    late.send("hello");
    wait_until("both shake hands", || begun.load(Ordering::SeqCst) == 2);

    server.shutdown.stop();
    // The linger is over.
    assert_eq!(idle.end(), End::Eof);
    assert!(server.is_serving());
    drop(release);
    for client in [&mut early, &mut late] {
        assert_eq!(client.take(5).unwrap(), b"world");
    }
    late.get("/now");
    for mut client in [early, late] {
        let response = client.response();
        assert_eq!((response.text().as_str(), response.says_close()), ("now", true));
        assert_eq!(client.end(), End::Eof);
    }
    let outcome = server.outcome();
    assert!(outcome.is_drained(), "{outcome}");
    assert_eq!(outcome.finished, 2);
}

/// Rule S13: at the deadline the outcome names a connection in its handshake.
#[test]
fn a_handshake_that_the_grace_cuts_is_named() {
    let shutdown = long_grace().grace(Duration::from_millis(10));
    let (shake, begun) = counted(future::pending::<()>);
    let server = Running::on(Server::new(handler()).stopped_by(&shutdown), [tcp().wrap(shake)]);
    let mut client = server.connect();
    client.send("hello");
    wait_until("it has begun", || begun.load(Ordering::SeqCst) == 1);
    let outcome = server.stop();
    assert_eq!(client.end(), End::Eof);
    assert_eq!(outcome.ending, DrainEnding::TimedOut, "{outcome}");
    let [OpenWork { kind: WorkKind::Connection { stage, peer, .. }, .. }] = &outcome.cut[..] else {
        panic!("{outcome}");
    };
    let local = client.stream.local_addr().unwrap();
    assert_eq!((*stage, *peer), (Stage::Handshake, Peer::from(local)));
}

/// Rule S11: the drain waits for an upgraded connection under a wrapper.
#[test]
fn a_wrapped_connection_can_be_upgraded() {
    for abort in [false, true] {
        let listener = tcp().wrap(|connection| async move { Ok(UpperCaseStream(connection)) });
        let server = Running::on(Server::new(upgrading()).stopped_by(&long_grace()), [listener]);
        let mut client = server.connect();
        client.send(UPGRADE_HEAD.to_owned() + "early");
        assert_eq!(client.response().status, 101);
        assert_eq!(client.take(5).unwrap(), b"EARLY");
        server.shutdown.stop();
        wait_until("closed", || is_refused(server.addr()));
        assert_eq!(client.send("late").take(4).unwrap(), b"LATE");
        assert!(server.is_serving());
        if abort {
            server.shutdown.abort();
            assert_eq!(client.end(), End::Eof);
            assert_eq!(server.outcome().ending, DrainEnding::Forced);
        } else {
            assert_eq!(client.half_close().end(), End::Eof);
            assert!(server.outcome().is_drained());
        }
    }
}

/// A wrapped connection behaves like a plain one with pipelined requests, a cut response, and a
/// stop during a handler.
#[test]
fn a_wrapped_connection_ends_like_a_plain_one() {
    let listener = || tcp().wrap(|connection| async move { Ok(connection) });
    let (handlers, handler) = held_handlers();
    let server = Running::on(Server::new(handler).stopped_by(&short_linger()), [listener()]);
    let mut client = server.connect();
    client.get("/wait");
    handlers.wait_for_call("/wait");
    client.get("/now").get("/now");
    server.shutdown.stop();
    wait_until("closed", || is_refused(server.addr()));
    handlers.release();
    for (text, closes) in [("done", false), ("now", false), ("now", true)] {
        let response = client.response();
        assert_eq!((response.text().as_str(), response.says_close()), (text, closes));
    }
    assert_eq!(client.end(), End::Eof);
    assert_eq!(server.outcome().finished, 3);

    // S22: the drain does not wait for a client that has reset its connection.
    let (handlers, handler) = held_handlers();
    let server = Running::on(Server::new(handler).stopped_by(&long_grace()), [listener()]);
    let mut client = server.connect();
    client.get("/wait");
    handlers.wait_for_call("/wait");
    server.shutdown.stop();
    client.reset();
    assert!(server.outcome().is_drained());
}

/// Pipes and Unix sockets can be wrapped, too.
#[test]
fn a_wrapper_does_not_care_what_it_wraps() {
    let (send, pipes) = channel::unbounded();
    let peer = Peer::from(([192, 0, 2, 1], 80));
    let listener = Listener::from_stream(pipes).wrap(move |connection| async move {
        assert_eq!(connection.peer(), peer);
        Ok(UpperCaseStream(connection))
    });
    let server = Running::on(Server::new(handler()), [listener]);
    let (client, connection) = Connection::pair();
    send.try_send(Ok(connection.from_peer(peer))).unwrap();
    let mut pipe = PipeClient::from(client);
    assert_eq!(pipe.get("/peer").response().text(), peer.to_string());
    for _ in 0..2 {
        assert_eq!(pipe.get("/n$w").response().text(), "NOW");
    }
    assert!(server.stop().is_drained());
    assert_eq!(pipe.end(), End::Eof);

    let directory = Directory::new();
    let path = directory.join("wrapped");
    let listener = Listener::bind(Address::Unix(path.clone())).unwrap();
    let listener = listener.wrap(|connection| async move { Ok(UpperCaseStream(connection)) });
    let server = Running::on(Server::new(handler()), [listener]);
    assert_eq!(
        Client::from(UnixStream::connect(&path).unwrap()).get("/peer").response().text(),
        "UNIX"
    );
    assert!(server.stop().is_drained());
}

/// Returns a wrapper that answers `hello` with `hello` after `wait`, and a count of the handshakes
/// that have begun.
fn counted<W, F>(
    wait: W,
) -> (
    impl Fn(Connection) -> future::Boxed<io::Result<Connection>> + Send + Sync + 'static,
    Arc<AtomicUsize>,
)
where
    W: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let count = Arc::new(AtomicUsize::new(0));
    let begun = count.clone();
    let shake = move |mut connection: Connection| -> future::Boxed<io::Result<Connection>> {
        let (begun, wait) = (begun.clone(), wait());
        Box::pin(async move {
            let mut hello = [0; 5];
            connection.read_exact(&mut hello).await?;
            assert_eq!(&hello, b"hello");
            begun.fetch_add(1, Ordering::SeqCst);
            wait.await;
            connection.write_all(b"world").await?;
            Ok(connection)
        })
    };
    (shake, count)
}

/// Each clone has a wrapper of its own.
#[test]
fn clones_of_a_listener_are_wrapped_each_by_itself() {
    let plain = tcp();
    let upper = plain.clone().wrap(|connection| async move { Ok(UpperCaseStream(connection)) });
    let addr = address_of(&plain);
    for (listener, text) in [(upper, "NOW"), (plain, "now")] {
        // One server at a time uses the listener, and the drop of a server closes it for both.
        let server = Running::on(Server::new(handler()), [listener.clone()]);
        if text == "NOW" {
            assert_eq!(Client::connect(addr).get("/now").response().text(), text);
        } else {
            assert!(is_refused(addr));
        }
        assert!(server.stop().is_drained());
    }
}
