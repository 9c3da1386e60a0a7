//! Connections on which the bytes of the socket are not those of HTTP: TLS, and streams without a
//! socket.
//!
//! A TLS record shows nothing before its last byte has come, and a stream in memory does not show
//! how much waits in it. The rules still hold: a request that has begun is finished (rule S8), a
//! move of bytes under the wrapper is progress, and a cut response never looks whole. The client of
//! these tests makes its own records, so a test decides which bytes of a record are sent. A sleep
//! in these tests is a slow client.

mod common;

use std::future::Future;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Blocking, Duplex, End, HeldHandlers, Log, PATIENCE, Pipes, ReadBy, Running, Stoppable,
    StoppedBy, for_each, held_handlers, is_refused, long_grace, pending_at_first, short_linger,
    small_socket, upgrades, wait_until, within_patience,
};
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWriteExt, StreamExt, future, stream};
use futures_rustls::TlsAcceptor;
use futures_rustls::pki_types::{PrivateKeyDer, ServerName};
use futures_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, version,
};
use smol::{Executor, channel};
use smol_graceful::{
    Address, Body, Connection, DrainEnding, Limits, Listen, Listener, OpenWork, Request, Response,
    Server, Shutdown, Stage, WorkKind,
};
use socket2::SockRef;

// ── Requests that have begun (rules S6, S8) ─────────────────────────────────────────────────

/// Even a small part of a record is a request that has begun. The part may come before the stop or
/// within the linger, on an idle connection or on one at work.
#[test]
fn a_request_whose_record_has_begun_is_served() {
    for_each([Kind::Plain, Kind::Tls, Kind::Tls12, Kind::TlsPipe], |kind| {
        let (handlers, handler) = held_handlers();
        let shutdown = long_grace().linger(Duration::from_secs(3));
        let wrapped = WrappedServer::open(kind, Server::new(handler).stopped_by(&shutdown));
        let mut idle = wrapped.connect();
        let mut begun = Vec::new();
        let mut late = Vec::new();
        for is_late in [false, true] {
            for is_fresh in [false, true] {
                for cut in ["one byte", "a header", "half", "all but one byte"] {
                    let mut client = wrapped.connect();
                    if !is_fresh {
                        assert_eq!(client.get("/now").response().text(), "now");
                    }
                    let (first, rest) = client.stream.record(&get("/now"), cut);
                    if is_late {
                        late.push((client, first, rest));
                    } else {
                        client.stream.send_raw(&first);
                        begun.push((client, rest));
                    }
                }
            }
        }
        let mut behind = Vec::new();
        for cut in ["one byte", "a header", "half", "all but one byte"] {
            let mut client = wrapped.connect();
            client.get("/wait");
            handlers.wait_for_call("/wait");
            let (first, rest) = client.stream.record(&get("/now"), cut);
            client.stream.send_raw(&first);
            behind.push((client, rest));
        }
        let requests = (begun.len() + late.len() + 2 * behind.len()) as u64;

        wrapped.server.shutdown.stop();
        for (mut client, first, rest) in late {
            client.stream.send_raw(&first);
            begun.push((client, rest));
        }
        // The linger is over.
        assert_eq!(idle.end(), End::Eof);
        handlers.release();
        for (client, _) in &mut behind {
            let response = client.response();
            assert_eq!((&*response.text(), response.says_close()), ("done", false), "{kind:?}");
        }
        for (mut client, rest) in begun.into_iter().chain(behind) {
            client.stream.send_raw(&rest);
            let response = client.response();
            assert_eq!((&*response.text(), response.says_close()), ("now", true), "{kind:?}");
            assert_eq!(client.end(), End::Eof, "{kind:?}");
        }
        let outcome = wrapped.server.outcome();
        assert!(outcome.is_drained(), "{kind:?}: {outcome}");
        assert_eq!(outcome.finished, requests, "{kind:?}");
    });
}

/// Rule S13: if the rest of the record does not come, the outcome names the client at the deadline.
#[test]
fn a_record_that_stays_half_is_named_at_the_deadline() {
    for_each([Kind::Plain, Kind::Tls, Kind::TlsPipe], |kind| {
        for cut in ["one byte", "half"] {
            let (handlers, handler) = held_handlers();
            let shutdown = short_linger().grace(Duration::from_millis(1500));
            let wrapped = WrappedServer::open(kind, Server::new(handler).stopped_by(&shutdown));
            let mut clients = [wrapped.connect(), wrapped.connect()];
            clients[0].get("/now").response();
            clients[1].get("/wait");
            handlers.wait_for_call("/wait");
            // A request's age does not count the time for which its connection was idle.
            thread::sleep(Duration::from_millis(300));
            let sent = Instant::now();
            for client in &mut clients {
                let (first, _) = client.stream.record(&get("/now"), cut);
                client.stream.send_raw(&first);
            }
            wrapped.server.shutdown.stop();
            handlers.release();
            let response = clients[1].response();
            assert_eq!((&*response.text(), response.says_close()), ("done", false), "{kind:?}");
            let outcome = wrapped.server.outcome();
            assert_eq!(outcome.ending, DrainEnding::TimedOut, "{kind:?} {cut}: {outcome}");
            assert!(outcome.cut.iter().all(|cut| cut.age <= sent.elapsed()), "{kind:?}: {outcome}");
            let mut cut_clients: Vec<_> = outcome.cut.iter().map(peer_and_stage).collect();
            let mut expected: Vec<_> =
                clients.iter().map(|client| (client.stream.local(), Stage::Head)).collect();
            cut_clients.sort_by(|a, b| a.0.cmp(&b.0));
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            assert_eq!(cut_clients, expected, "{kind:?} {cut}: {outcome}");
            if kind.is_tls() {
                clients.iter_mut().for_each(|client| assert_ne!(client.end(), End::Eof));
            }
        }
    });
}

/// TLS has records that are not requests. After half of such a record, the connection counts as
/// idle again when the other half has come.
#[test]
fn a_record_without_a_request_leaves_the_connection_idle() {
    for_each([Kind::Tls, Kind::TlsPipe], |kind| {
        let (_handlers, handler) = held_handlers();
        let limits = Limits::default().head_timeout(Duration::from_millis(300));
        let wrapped = WrappedServer::open(
            kind,
            Server::new(handler).limits(limits).stopped_by(&short_linger()),
        );
        let mut client = wrapped.connect();
        assert_eq!(client.get("/now").response().text(), "now");
        client.stream.tls.as_mut().unwrap().refresh_traffic_keys().unwrap();
        let (first, rest) = client.stream.record(b"", "half");
        client.stream.send_raw(&first);
        client.stream.send_raw(&rest);
        // This head takes as long as the limit allows, twice.
        for _ in 0..2 {
            let mut clock = wrapped.connect();
            clock.send(b"GET ");
            assert_eq!(clock.response().status, 408);
        }
        assert_eq!(client.get("/now").response().text(), "now", "{kind:?}");
        assert!(wrapped.server.stop().is_drained());
    });
}

/// At an abort, a request that has arrived is answered or named, even if only a read can find it.
#[test]
fn a_request_that_has_arrived_is_named_by_an_abort() {
    for_each([Kind::Plain, Kind::Tls, Kind::Pipe, Kind::TlsPipe], |kind| {
        for _ in 0..20 {
            let (_handlers, handler) = held_handlers();
            let wrapped = WrappedServer::open(kind, Server::new(handler).stopped_by(&long_grace()));
            let mut client = wrapped.connect();
            assert_eq!(client.get("/now").response().text(), "now");
            client.get("/now");
            wrapped.server.shutdown.abort();
            let outcome = wrapped.server.outcome();
            let (rest, _) = client.rest();
            let is_answered = rest.ends_with(b"now");
            assert!(is_answered || outcome.cut.len() == 1, "{kind:?}: {outcome}");
        }
    });
}

/// If a handshake ends in the drain, after the linger, its client has a linger of its own. A
/// request that comes with the last message of the handshake is answered at once.
#[test]
fn a_handshake_that_ends_in_the_drain_is_followed_by_a_request() {
    for_each([Kind::Tls, Kind::Tls12, Kind::TlsPipe], |kind| {
        for (is_together, linger) in [(true, 2 * PATIENCE), (false, Duration::from_secs(3))] {
            let (_handlers, handler) = held_handlers();
            let shutdown = long_grace().linger(linger);
            let wrapped = WrappedServer::open(kind, Server::new(handler).stopped_by(&shutdown));
            let (mut client, hello) = wrapped.half_connect();
            let mut idle = wrapped.connect();
            wrapped.server.shutdown.stop();
            wait_until("the close", || wrapped.is_closed());
            if !is_together {
                // The linger is over.
                assert_eq!(idle.end(), End::Eof);
            }
            client.stream.send_raw(&hello);
            client.shake_hands(is_together.then(|| get("/now")));
            if !is_together {
                client.get("/now");
            }
            let response = client.response();
            assert_eq!((&*response.text(), response.says_close()), ("now", true), "{kind:?}");
            assert_eq!(client.end(), End::Eof, "{kind:?}");
            drop((client, idle));
            wrapped.server.shutdown.abort();
            assert!(wrapped.server.outcome().is_drained());
        }
    });
}

// ── Pipelined requests (rules S8, S9) ───────────────────────────────────────────────────────

/// All requests that had arrived at the stop are answered, and the last response says close.
#[test]
fn requests_that_were_pipelined_at_the_stop_are_all_answered() {
    const MANY: usize = 400;
    for_each(
        [
            (Kind::Plain, 1),
            (Kind::Tls, 1),
            (Kind::Tls, MANY),
            (Kind::Pipe, 1),
            (Kind::Pipe, MANY),
            (Kind::TlsPipe, 1),
            (Kind::TlsPipe, MANY),
        ],
        |(kind, records)| {
            let what = format!("{kind:?}, {records} records");
            let (handlers, handler) = held_handlers();
            let wrapped =
                WrappedServer::open(kind, Server::new(handler).stopped_by(&short_linger()));
            let mut client = wrapped.connect();
            client.get("/wait");
            handlers.wait_for_call("/wait");
            let requests = get("/now").repeat(MANY);
            for part in requests.chunks(requests.len() / records) {
                client.send(part);
            }
            wrapped.server.shutdown.stop();
            wait_until("the close", || wrapped.is_closed());
            handlers.release();
            for n in 0..=MANY {
                let response = client.response();
                let told = (response.text(), response.says_close());
                let expected = if n == 0 { "done" } else { "now" };
                assert_eq!(told, (expected.to_owned(), n == MANY), "{what}: {n}");
            }
            assert_eq!(client.end(), End::Eof, "{what}");
            let outcome = wrapped.server.outcome();
            assert!(outcome.is_drained(), "{what}: {outcome}");
            assert_eq!(outcome.finished, MANY as u64 + 1, "{what}");
        },
    );
}

/// An unread body and the request after it have arrived, even if the stream shows them piece by
/// piece.
#[test]
fn a_request_behind_an_unread_body_is_answered_in_the_drain() {
    let (handlers, handler) = held_handlers();
    let (stream, mut client) = Connection::pair();
    let stream = pending_at_first(stream, 700);
    let listener = Listener::from_stream(stream::once(Ok(stream)).chain(stream::pending()));
    let shutdown = short_linger();
    let server = Server::new(handler).shutdown(&shutdown);
    let served = thread::spawn(move || future::block_on(server.serve([listener])));
    let requests = [post("/wait", 5000), vec![b'x'; 5000], get("/now")].concat();
    within_patience(client.write_all(&requests)).unwrap();
    handlers.wait_for_call("/wait");
    shutdown.stop();
    handlers.release();
    let mut answers = String::new();
    within_patience(client.read_to_string(&mut answers)).unwrap();
    let (done, now) = answers.split_once("done").expect("there is a first answer");
    assert!(!done.contains("connection: close"), "{answers}");
    assert!(now.contains("connection: close") && now.ends_with("now"), "{answers}");
    assert!(served.join().unwrap().unwrap().is_drained());
}

/// Any number of requests after the stop does not prolong the connection.
#[test]
fn a_client_that_pipelines_without_end_is_told_close() {
    /// The number of responses for which the client waits.
    const WINDOW: usize = 500;
    for_each([Kind::Plain, Kind::Tls, Kind::Pipe], |kind| {
        let (_handlers, handler) = held_handlers();
        let shutdown = short_linger().grace(Duration::from_secs(10));
        let wrapped = WrappedServer::open(kind, Server::new(handler).stopped_by(&shutdown));
        let mut client = wrapped.connect();
        client.stream.base.do_not_wait();
        let (mut sent, mut received, mut is_told) = (0, 0, false);
        let mut unsent = Vec::new();
        let mut has_ended = false;
        while !has_ended {
            if unsent.is_empty() && sent - received < WINDOW {
                unsent = client.stream.seal(&get("/now").repeat(10));
                sent += 10;
            }
            match client.stream.base.write(&unsent) {
                Ok(n) => drop(unsent.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(_) => unsent.clear(),
            }
            match client.try_fill() {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) => has_ended = true,
            }
            while memchr::memmem::find(client.buffered(), b"\r\n\r\nnow").is_some() {
                let response = client.response();
                assert!(!is_told, "{kind:?}: a response behind the last one");
                assert_eq!(response.text(), "now");
                is_told = response.says_close();
                received += 1;
                if received == 1000 {
                    wrapped.server.shutdown.stop();
                }
            }
        }
        assert!(is_told, "{kind:?}: {received} of {sent}");
        let outcome = wrapped.server.outcome();
        assert!(outcome.is_drained(), "{kind:?}: {outcome}");
    });
}

// ── Progress ────────────────────────────────────────────────────────────────────────────────

/// A client that reads slowly and steadily gets a long response whole, because the bytes that its
/// kernel takes are progress, long before the server's kernel asks for more.
#[test]
fn a_steady_slow_reader_gets_its_response_whole() {
    for_each([Kind::Plain, Kind::Tls], |kind| {
        let wrapped = slow_server(kind, ROOMY, Duration::from_secs(2));
        let mut client = wrapped.connect();
        client.get("/long");
        // The client reads 20 kB/s, and the kernel asks for more when 64 KiB are free.
        for _ in 0..25 {
            client.sip(4 * 1024);
            thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(client.response().body.len(), LONG, "{kind:?}");
        assert!(wrapped.server.stop().is_drained());
    });
}

/// A body that comes slowly and steadily arrives, even if all of it is one record.
#[test]
fn a_steady_slow_sender_gets_its_body_through() {
    for_each([Kind::Plain, Kind::Tls, Kind::TlsPipe], |kind| {
        let wrapped = slow_server(kind, ROOMY, Duration::from_secs(2));
        let mut client = wrapped.connect();
        client.send(post("/read", 16 * 1024));
        for part in client.stream.seal(&[b'x'; 16 * 1024]).chunks(1024) {
            thread::sleep(Duration::from_millis(250));
            client.stream.send_raw(part);
        }
        assert_eq!(client.response().text(), "16384 bytes", "{kind:?}");
        assert!(wrapped.server.stop().is_drained());
    });
}

/// The server gives up a client that has stopped, at any step, with TLS and without.
#[test]
fn a_client_that_stalls_is_given_up() {
    for_each([Kind::Plain, Kind::Tls], |kind| {
        for case in ["a body", "a response", "a body nobody wants", "both"] {
            let wrapped = slow_server(kind, TINY, Duration::from_millis(300));
            let mut client = wrapped.connect();
            match case {
                "a body" => {
                    client.send(post("/read", 1000));
                    let (first, _) = client.stream.record(&[b'x'; 1000], "half");
                    client.stream.send_raw(&first);
                    let response = client.response();
                    assert_eq!((response.status, response.says_close()), (408, true), "{kind:?}");
                }
                "a response" => _ = client.get("/long"),
                // The response is gathered, and the connection goes on after the body.
                "a body nobody wants" => _ = client.send(post("/short", 1000)),
                "both" => _ = client.get("/short").send(post("/read", 1000)),
                case => panic!("unknown: {case}"),
            }
            wait_until(&format!("{kind:?}, {case}"), || wrapped.server.shutdown.in_flight() == 0);
            assert!(wrapped.server.stop().is_drained());
        }
    });
}

/// If the handler does not read for a while, the client is not to blame, even if only a read shows
/// that the body has come.
#[test]
fn a_body_that_nobody_waits_for_is_not_late() {
    for_each([Kind::Plain, Kind::Tls, Kind::Pipe, Kind::TlsPipe], |kind| {
        let (handlers, enter, released) = HeldHandlers::new();
        let handler = move |mut request: Request| {
            let (enter, released) = (enter.clone(), released.clone());
            async move {
                let mut byte = [0];
                let looked = future::poll_once(request.read(&mut byte)).await;
                assert!(looked.is_none());
                let _ = enter.send("looked".to_owned());
                let _ = released.recv().await;
                Ok(format!("{} bytes", request.body_bytes().await?.len()))
            }
        };
        let short = Duration::from_millis(300);
        let limits = Limits::default().stall_timeout(short).head_timeout(short);
        let wrapped = WrappedServer::open(
            kind,
            Server::new(handler).limits(limits).stopped_by(&short_linger()),
        );
        let mut client = wrapped.connect();
        client.send(post("/", 1000));
        handlers.wait_for_call("looked");
        client.send([b'x'; 1000]);
        // Each of these heads takes as long as a body may stall.
        for _ in 0..3 {
            let mut clock = wrapped.connect();
            clock.send(b"GET ");
            assert_eq!(clock.response().status, 408);
        }
        handlers.release();
        assert_eq!(client.response().text(), "1000 bytes", "{kind:?}");
        assert!(wrapped.server.stop().is_drained());
    });
}

/// The sizes of the smallest buffer of the kernel, and of one for a short response.
const TINY: usize = 4 * 1024;
const ROOMY: usize = 100 * 1024;

/// A client that leaves while its request is in the handler holds up nothing, because a write to a
/// stream without its other end fails and is not repeated.
#[test]
fn a_client_that_has_gone_holds_up_nobody() {
    for_each([Kind::Plain, Kind::Tls, Kind::Pipe, Kind::TlsPipe], |kind| {
        let (handlers, handler) = held_handlers();
        let wrapped = WrappedServer::open(kind, Server::new(handler).stopped_by(&short_linger()));
        let mut gone = wrapped.connect();
        gone.get("/wait");
        handlers.wait_for_call("/wait");
        let mut other = wrapped.connect();
        drop(gone);
        handlers.release();
        wait_until("its end", || wrapped.server.shutdown.in_flight() == 1);
        assert_eq!(other.get("/now").response().text(), "now", "{kind:?}");
        assert!(wrapped.server.stop().is_drained());
    });
}

/// The length of the long response, in bytes, which is more than the kernels' buffers.
const LONG: usize = 400 * 1024;

/// Opens a server whose clients' kernels take in little.
fn slow_server(kind: Kind, send_buffer: usize, stall_timeout: Duration) -> WrappedServer {
    let handler = |mut request: Request| async move {
        Ok(match request.url().path() {
            "/long" => Response::from(vec![b'x'; LONG]),
            "/short" => vec![b'x'; 40 * 1024].into(),
            "/read" => format!("{} bytes", request.body_bytes().await?.len()).into(),
            path => panic!("unknown: {path}"),
        })
    };
    let limits = Limits::default().stall_timeout(stall_timeout);
    let server = Server::new(handler).limits(limits).stopped_by(&short_linger());
    WrappedServer::with_buffers(kind, server, Some((send_buffer, TINY)))
}

// ── Cuts (rule S13) ─────────────────────────────────────────────────────────────────────────

/// If the end of the connection is the end of the body, a cut is a reset, also if the server has
/// the whole response and has not sent it.
#[test]
fn a_body_without_a_length_that_is_cut_does_not_look_whole() {
    const LENGTH: usize = 40 * 1024;
    for_each([Kind::Plain, Kind::Tls, Kind::Tls12], |kind| {
        for abort in [false, true] {
            let (send, is_read) = mpsc::channel();
            let send = Mutex::new(send);
            let handler = move |_| {
                let body = ReportingBody { left: LENGTH, tell: send.lock().unwrap().clone() };
                async move { Ok(Body::from_reader(futures_lite::io::BufReader::new(body), None)) }
            };
            let grace = Duration::from_millis(if abort { 60_000 } else { 100 });
            let server = Server::new(handler).stopped_by(&long_grace().grace(grace));
            let wrapped = WrappedServer::with_buffers(kind, server, Some((TINY, TINY)));
            let mut client = wrapped.connect();
            client.send(b"GET / HTTP/1.0\r\n\r\n");
            is_read.recv_timeout(PATIENCE).expect("the server reads the body to its end");
            wrapped.server.shutdown.stop();
            if abort {
                wrapped.server.shutdown.abort();
            }
            let outcome = wrapped.server.outcome();
            let ending = if abort { DrainEnding::Forced } else { DrainEnding::TimedOut };
            assert_eq!(outcome.ending, ending, "{kind:?}: {outcome}");
            assert_eq!(outcome.cut.len(), 1, "{kind:?}: {outcome}");
            let (received, end) = client.rest();
            assert!(received.len() < LENGTH, "{kind:?}");
            assert_eq!(end, End::Reset, "{kind:?}, abort: {abort}");
        }
    });
}

/// A body of this number of bytes, which reports its end.
struct ReportingBody {
    left: usize,
    tell: mpsc::Sender<()>,
}

impl AsyncRead for ReportingBody {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let n = self.left.min(buf.len());
        buf[..n].fill(b'x');
        self.left -= n;
        if n == 0 {
            let _ = self.tell.send(());
        }
        Poll::Ready(Ok(n))
    }
}

/// Rules S13, S15: the deadline does not wait for a thread that a stream blocks, and a stream may
/// abort the server. In both cases the outcome names the client, without its request.
#[test]
fn a_stream_that_blocks_or_aborts_does_not_hold_up_the_end() {
    for_each([false, true], |aborts| {
        let (entered, enters) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let shutdown =
            Shutdown::new().grace(Duration::from_millis(if aborts { 60_000 } else { 10 }));
        let handle = shutdown.clone();
        let in_body: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            let _ = entered.send(());
            if aborts {
                handle.abort();
            } else {
                let _ = released.lock().unwrap().recv();
            }
        });
        let listener = "127.0.0.1:0".listen().unwrap().wrap(move |stream| {
            let in_body = in_body.clone();
            async move {
                Ok(ReadBy::new(stream, move |stream, cx: &mut Context<'_>, buf: &mut [u8]| {
                    let read = stream.poll_read(cx, buf);
                    if matches!(read, Poll::Ready(Ok(n)) if buf[..n].ends_with(BODY)) {
                        in_body();
                    }
                    read
                }))
            }
        });
        let Address::Tcp(addr) = *listener.address() else { panic!("not TCP") };
        let executor = Arc::new(Executor::new());
        let (end, ended) = channel::bounded::<()>(1);
        let connections = executor.clone();
        let worker = thread::spawn(move || future::block_on(connections.run(ended.recv())));
        let (call, calls) = mpsc::channel();
        let server = Server::new(move |mut request: Request| {
            call.send(()).unwrap();
            async move { request.body_string().await }
        });
        let server = server.shutdown(&shutdown).executor(executor);
        let (tell, outcomes) = mpsc::channel();
        thread::spawn(move || tell.send(future::block_on(server.serve([listener]))));

        let mut client = TcpStream::connect(addr).unwrap();
        client.write_all(&post("/", 2 * BODY.len())).unwrap();
        calls.recv_timeout(PATIENCE).unwrap();
        client.write_all(BODY).unwrap();
        enters.recv_timeout(PATIENCE).unwrap();
        if !aborts {
            shutdown.stop();
        }
        let outcome = outcomes.recv_timeout(PATIENCE).expect("the end was held up").unwrap();
        assert_eq!(
            outcome.ending,
            if aborts { DrainEnding::Forced } else { DrainEnding::TimedOut }
        );
        let cuts: Vec<_> = outcome.cut.iter().map(|cut| peer_and_stage(cut).0).collect();
        assert_eq!(cuts, [client.local_addr().unwrap().to_string()]);
        drop((release, end));
        assert!(worker.join().unwrap().is_err());
    });
}

/// The content of half a body.
const BODY: &[u8] = b"half a body";

// ── Upgraded connections (rules S11, S22) ───────────────────────────────────────────────────

/// An upgraded connection whose client has reset it ends, in the drain or before, even if the owner
/// of the stream does not look. The client's last bytes may be unread.
#[test]
fn an_upgraded_connection_whose_client_has_reset_is_let_go() {
    for_each([Kind::Plain, Kind::Tls], |kind| {
        for (is_draining, last) in [(false, &b""[..]), (true, b""), (true, b"unread")] {
            let (upgraded, handler) = upgrades();
            let wrapped = WrappedServer::open(kind, Server::new(handler).stopped_by(&long_grace()));
            let mut client = wrapped.connect();
            client.upgrade();
            let mut stream = upgraded.recv_timeout(PATIENCE).unwrap();
            client.send(last);
            if is_draining {
                wrapped.server.shutdown.stop();
                wait_until("the close", || wrapped.is_closed());
                // The server may have accepted the last connection of `is_closed`.
                wait_until("one is left", || wrapped.server.shutdown.in_flight() == 1);
            }
            client.reset();
            wait_until("its end", || wrapped.server.shutdown.in_flight() == 0);
            // The owner of the stream gets an error.
            assert!(within_patience(stream.write_all(b"late")).is_err(), "{kind:?}");
            let outcome = wrapped.server.stop();
            assert!(outcome.is_drained(), "{kind:?}: {outcome}");
        }
    });
}

/// A client that has only closed its side is not gone, even if the server's side is closed, too.
/// Its bytes wait until the owner of the stream reads them.
#[test]
fn an_upgraded_connection_that_both_have_closed_is_read_to_its_end() {
    for_each([Kind::Plain, Kind::Tls, Kind::Pipe], |kind| {
        for is_draining in [false, true] {
            let (upgraded, handler) = upgrades();
            // The sweep looks at connections every 20 ms because of this limit.
            let limits = Limits::default().head_timeout(Duration::from_millis(160));
            let wrapped = WrappedServer::open(
                kind,
                Server::new(handler).limits(limits).stopped_by(&long_grace()),
            );
            let mut client = wrapped.connect();
            client.upgrade();
            let mut stream = upgraded.recv_timeout(PATIENCE).unwrap();
            let mut clock = wrapped.connect();
            if is_draining {
                clock.send(b"GET ");
                wrapped.server.shutdown.stop();
            }
            within_patience(stream.close()).unwrap();
            assert_eq!(client.end(), End::Eof, "{kind:?}");
            client.send(b"bye").half_close();
            // This connection ends only after several sweeps.
            if !is_draining {
                clock.send(b"GET ");
            }
            assert_eq!(clock.response().status, 408);
            let mut read = String::new();
            within_patience(stream.read_to_string(&mut read)).unwrap();
            assert_eq!(read, "bye", "{kind:?}, draining: {is_draining}");
            drop(stream);
            assert!(wrapped.server.stop().is_drained());
        }
    });
}

/// The owner of an upgraded stream writes everything and drops the stream. All bytes arrive,
/// although the client's bytes stay unread.
#[test]
fn an_upgraded_connection_that_is_dropped_delivers_what_was_written() {
    const LENGTH: usize = 3_000_000;
    for_each([Kind::Plain, Kind::Tls, Kind::Tls12], |kind| {
        let (upgraded, handler) = upgrades();
        let wrapped = WrappedServer::open(kind, Server::new(handler).stopped_by(&long_grace()));
        let mut client = wrapped.connect();
        client.upgrade();
        let mut stream = upgraded.recv_timeout(PATIENCE).unwrap();
        client.send(b"nobody reads this");
        let writer = thread::spawn(move || within_patience(stream.write_all(&vec![b'x'; LENGTH])));
        let (received, end) = client.rest();
        assert_eq!((received.len(), end), (LENGTH, End::Eof), "{kind:?}");
        writer.join().unwrap().unwrap();
        drop(client);
        assert!(wrapped.server.stop().is_drained());
    });
}

/// Bytes that a wrapper still has when its stream is dropped arrive at the pace of the client, also
/// if that takes longer than a client may be silent at the end of a connection.
#[test]
fn what_a_wrapper_holds_arrives_at_the_pace_of_the_client() {
    for_each([Kind::Plain, Kind::Tls], |kind| {
        for is_draining in [false, true] {
            let (upgraded, handler) = upgrades();
            let server = Server::new(handler).stopped_by(&long_grace());
            let wrapped = WrappedServer::with_buffers(kind, server, Some((ROOMY, TINY)));
            let mut client = wrapped.connect();
            client.upgrade();
            let mut stream = upgraded.recv_timeout(PATIENCE).unwrap();
            client.send(b"nobody reads this");
            // The loop writes as much as the kernels and the wrapper take.
            let (mut written, mut refused) = (0, 0);
            while refused < 3 {
                match at_once(stream.write(&[b'x'; 16 * 1024])) {
                    Ok(n) => written += n,
                    Err(_) => {
                        refused += 1;
                        thread::sleep(Duration::from_millis(10));
                    }
                }
            }
            if is_draining {
                wrapped.server.shutdown.stop();
            }
            drop(stream);
            for _ in 0..25 {
                client.sip(2 * 1024);
                thread::sleep(Duration::from_millis(150));
            }
            let (received, end) = client.rest();
            assert_eq!((received.len(), end), (written, End::Eof), "{kind:?}, {is_draining}");
            drop(client);
            assert!(wrapped.server.stop().is_drained());
        }
    });
}

/// If a handler upgrades a request that cannot be upgraded, that is a mistake of the program, so
/// the log names the request and the reason.
#[test]
fn an_upgrade_that_cannot_be_is_logged_with_peer_and_path() {
    let log = Log::of_this_process();
    let head = "Host: x\r\nUpgrade: x\r\n";
    for_each([Kind::Plain, Kind::Tls], |kind| {
        let (_upgraded, handler) = upgrades();
        let wrapped = WrappedServer::open(kind, Server::new(handler).stopped_by(&long_grace()));
        for (request, problem) in [
            (format!("GET /a?b=1 HTTP/1.1\r\n{head}\r\n"), "Connection: upgrade"),
            (format!("GET /a?b=1 HTTP/1.0\r\n{head}Connection: upgrade\r\n\r\n"), "HTTP/1.1"),
            (
                format!(
                    "GET /a?b=1 HTTP/1.1\r\n{head}Connection: upgrade\r\nContent-Length: 300000\r\n\r\n"
                ),
                "its body is not to be had",
            ),
        ] {
            let mut client = wrapped.connect();
            let response = client.send(request.as_bytes()).response();
            assert_eq!((response.status, response.says_close()), (400, true), "{kind:?}");
            let begin = format!("{} GET /a?b=1: ", client.stream.local());
            let lines = log.with(&begin);
            assert!(lines.iter().any(|(_, line)| line.contains(problem)), "{begin}: {lines:#?}");
        }
        assert!(wrapped.server.stop().is_drained());
    });
}

// ── Helpers ───────────────────────────────────────────────────────────────────────────────

/// The stream under a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A plain TCP socket, for comparison.
    Plain,
    /// TLS 1.3 over TCP.
    Tls,
    /// TLS 1.2 over TCP.
    Tls12,
    /// A pipe in memory.
    Pipe,
    /// TLS 1.3 over a pipe in memory.
    TlsPipe,
}

impl Kind {
    fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Tls12 | Self::TlsPipe)
    }

    fn is_pipe(self) -> bool {
        matches!(self, Self::Pipe | Self::TlsPipe)
    }
}

/// A server, and the way to it for clients.
struct WrappedServer {
    kind: Kind,
    server: Running,
    pipes: Pipes,
    /// The size of a client's receive buffer, if that matters.
    client_buffer: Option<usize>,
}

impl WrappedServer {
    fn open(kind: Kind, server: impl Into<Stoppable>) -> Self {
        Self::with_buffers(kind, server, None)
    }

    /// Opens a server with a small send buffer, and small receive buffers of its clients.
    fn with_buffers(
        kind: Kind,
        server: impl Into<Stoppable>,
        buffers: Option<(usize, usize)>,
    ) -> Self {
        let (pipes, source) = Pipes::listener();
        let mut listener = if kind.is_pipe() {
            source
        } else {
            // Sockets inherit the size from their listener.
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            if let Some((send, _)) = buffers {
                SockRef::from(&listener).set_send_buffer_size(send).unwrap();
            }
            listener.listen().unwrap()
        };
        if kind.is_tls() {
            let acceptor = TlsAcceptor::from(tls().0.clone());
            listener = listener.wrap(move |connection| acceptor.accept(connection));
        }
        let client_buffer = buffers.map(|(_, receive)| receive);
        Self { kind, server: Running::on(server, [listener]), pipes, client_buffer }
    }

    /// Connects a client, and does its part of the handshake.
    fn connect(&self) -> Client {
        let mut client = self.connect_silently();
        client.shake_hands(None);
        client
    }

    /// Connects a client that has sent half of its first message. Also returns the other half.
    fn half_connect(&self) -> (Client, Vec<u8>) {
        let mut client = self.connect_silently();
        let (first, rest) = client.stream.record(b"", "half");
        client.stream.send_raw(&first);
        (client, rest)
    }

    /// Connects a client that has not sent anything.
    fn connect_silently(&self) -> Client {
        let base = if self.kind.is_pipe() {
            BelowTls::Pipe(Blocking(self.pipes.end()), false)
        } else {
            let socket = match self.client_buffer {
                Some(size) => small_socket(self.server.addr(), size),
                None => TcpStream::connect(self.server.addr()).unwrap(),
            };
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.set_write_timeout(Some(PATIENCE)).unwrap();
            socket.set_nodelay(true).unwrap();
            BelowTls::Socket(socket)
        };
        let tls = self.kind.is_tls().then(|| {
            let versions: &[_] = match self.kind {
                Kind::Tls12 => &[&version::TLS12],
                _ => &[&version::TLS13],
            };
            let config = ClientConfig::builder_with_protocol_versions(versions)
                .with_root_certificates(tls().1.clone())
                .with_no_client_auth();
            let name = ServerName::try_from("localhost").unwrap();
            let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
            // Without a limit, the buffer takes everything that a test sends at once.
            tls.set_buffer_limit(None);
            tls
        });
        Client::over(ClientStream { base, tls, most: RECORD })
    }

    /// Returns `true` if the server takes no more connections.
    fn is_closed(&self) -> bool {
        if self.kind.is_pipe() { self.pipes.is_closed() } else { is_refused(self.server.addr()) }
    }
}

/// Returns the server's side of TLS, and the certificate that its clients trust.
fn tls() -> &'static (Arc<ServerConfig>, RootCertStore) {
    static TLS: OnceLock<(Arc<ServerConfig>, RootCertStore)> = OnceLock::new();
    TLS.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        (Arc::new(server), roots)
    })
}

/// A client's end of the stream below TLS.
enum BelowTls {
    Socket(TcpStream),
    /// A pipe. With `true`, a call that has to wait fails instead.
    Pipe(Blocking<Connection>, bool),
}

impl BelowTls {
    /// Makes each call that has to wait fail from now on.
    fn do_not_wait(&mut self) {
        match self {
            Self::Socket(socket) => socket.set_nonblocking(true).unwrap(),
            Self::Pipe(_, does_not_wait) => *does_not_wait = true,
        }
    }
}

impl Read for BelowTls {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.read(buf),
            Self::Pipe(pipe, false) => pipe.read(buf),
            Self::Pipe(pipe, true) => at_once(pipe.0.read(buf)),
        }
    }
}

impl Write for BelowTls {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.write(buf),
            Self::Pipe(pipe, false) => pipe.write(buf),
            Self::Pipe(pipe, true) => at_once(pipe.0.write(buf)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The longest record of TLS, roughly.
const RECORD: usize = 16 * 1024;

/// The client's end of a connection, which makes its own records.
struct ClientStream {
    base: BelowTls,
    tls: Option<ClientConnection>,
    /// The largest number of bytes that a read takes from below.
    most: usize,
}

type Client = common::Client<ClientStream>;

impl ClientStream {
    /// Returns the bytes of the wire for `bytes`, in records of at most 16 KiB.
    fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Some(tls) = &mut self.tls else { return bytes.to_vec() };
        tls.writer().write_all(bytes).unwrap();
        let mut sealed = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut sealed).unwrap();
        }
        sealed
    }

    /// Seals `bytes` and cuts the result in two.
    fn record(&mut self, bytes: &[u8], cut: &str) -> (Vec<u8>, Vec<u8>) {
        let mut sealed = self.seal(bytes);
        let rest = sealed.split_off(match cut {
            "one byte" => 1,
            "a header" => 5,
            "half" => sealed.len() / 2,
            "all but one byte" => sealed.len() - 1,
            cut => panic!("unknown: {cut}"),
        });
        (sealed, rest)
    }

    /// Sends sealed bytes.
    fn send_raw(&mut self, sealed: &[u8]) {
        self.base.write_all(sealed).unwrap();
    }

    /// Returns the name of this client in the server's log and outcome.
    fn local(&self) -> String {
        match &self.base {
            BelowTls::Socket(socket) => socket.local_addr().unwrap().to_string(),
            BelowTls::Pipe(..) => "unknown".to_owned(),
        }
    }
}

impl Write for ClientStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let sealed = self.seal(buf);
        self.base.write_all(&sealed)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for ClientStream {
    /// Reads once from below. Returns `Interrupted` if there is no whole record yet.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.base.read(&mut buf[..self.most]) };
        let mut bytes = vec![0; self.most];
        let n = self.base.read(&mut bytes)?;
        let mut unread = &bytes[..n];
        let mut plain = 0;
        loop {
            let n = tls.read_tls(&mut unread).unwrap();
            let state = tls.process_new_packets().unwrap();
            let end = plain + state.plaintext_bytes_to_read();
            tls.reader().read_exact(&mut buf[plain..end]).unwrap();
            plain = end;
            if n == 0 && !state.peer_has_closed() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if n == 0 || unread.is_empty() && plain > 0 {
                return Ok(plain);
            }
            if unread.is_empty() {
                return Err(ErrorKind::Interrupted.into());
            }
        }
    }
}

impl Duplex for ClientStream {
    fn half_close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let farewell = self.seal(b"");
            self.send_raw(&farewell);
        }
        match &mut self.base {
            BelowTls::Socket(socket) => socket.half_close(),
            BelowTls::Pipe(pipe, _) => pipe.half_close(),
        }
    }
}

impl Client {
    /// Ends the handshake, and sends `request` together with the last message of it.
    fn shake_hands(&mut self, request: Option<Vec<u8>>) {
        while self.stream.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            let message = self.stream.seal(b"");
            self.stream.send_raw(&message);
            // The handshake of TLS 1.2 ends with a message of the server.
            self.fill().unwrap();
        }
        let last = self.stream.seal(&request.unwrap_or_default());
        self.stream.send_raw(&last);
    }

    /// Reads once, up to `most` bytes of the wire.
    fn sip(&mut self, most: usize) {
        self.stream.most = most;
        assert_eq!(self.try_fill(), Ok(true));
        self.stream.most = RECORD;
    }

    /// Changes to another protocol.
    fn upgrade(&mut self) {
        self.send(b"GET /up?a=1 HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
        assert_eq!(self.response().status, 101);
    }

    /// Closes with a reset instead of a FIN.
    fn reset(self) {
        let BelowTls::Socket(socket) = self.stream.base else { panic!("a pipe has no reset") };
        common::Client::from(socket).reset();
    }
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// The head of a request with a body.
fn post(path: &str, length: usize) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

fn peer_and_stage(cut: &OpenWork) -> (String, Stage) {
    match &cut.kind {
        WorkKind::Connection { peer, stage, .. } => (peer.to_string(), *stage),
        what => panic!("{what:?}"),
    }
}

/// Runs a future that must not wait.
fn at_once<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    future::block_on(future::poll_once(future)).unwrap_or(Err(ErrorKind::WouldBlock.into()))
}
