//! Connections whose server reads other bytes than arrive: TLS, and streams without a socket.
//!
//! A TLS record shows nothing before its last byte has come, and a stream in memory does not tell
//! how much waits in it. The rules hold all the same: a request that has begun is finished (rule
//! S8), progress counts where the bytes move, and a response that is cut never looks whole. The
//! client of these tests makes its own records, so a test decides which bytes of a record are sent.
//! Where a test sleeps, a slow client is what it tests.

mod common;

use std::future::Future;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Half, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use common::{PATIENCE, Received, Stagehand, text, wait_until};
use futures_lite::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, FutureExt, StreamExt, future, stream,
};
use futures_rustls::TlsAcceptor;
use futures_rustls::pki_types::{PrivateKeyDer, ServerName};
use futures_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, version,
};
use http_types::headers::UPGRADE;
use smol::{Timer, channel};
use smol_graceful::{
    Address, Body, Connection, Cut, Ending, Limits, Listen, Listener, Outcome, Request, Response,
    Server, Shutdown, Stage, StatusCode, What,
};

// ── What has begun (rules S6, S8) ───────────────────────────────────────────────────────────

/// A part of a record, however small, is a request that has begun, whether the part came before
/// the stop or within the linger, and whether the connection was idle or at work.
#[test]
fn a_request_whose_record_has_begun_is_served() {
    for_each([Kind::Plain, Kind::Tls, Kind::Tls12, Kind::TlsPipe], |kind| {
        let (stage, handler) = stage();
        let shutdown = patient().linger(Duration::from_secs(3));
        let site = Site::open(kind, Server::new(handler).shutdown(&shutdown));
        let mut idle = site.connect();
        let mut begun = Vec::new();
        let mut late = Vec::new();
        for is_late in [false, true] {
            for is_fresh in [false, true] {
                for cut in ["one byte", "a header", "half", "all but one byte"] {
                    let mut client = site.connect();
                    if !is_fresh {
                        assert_eq!(client.get("/now").response().text(), "now");
                    }
                    let (first, rest) = client.record(&get("/now"), cut);
                    match is_late {
                        true => late.push((client, first, rest)),
                        false => begun.push((client.send_raw(&first), rest)),
                    }
                }
            }
        }
        let mut behind = Vec::new();
        for cut in ["one byte", "a header", "half", "all but one byte"] {
            let mut client = site.connect();
            client.get("/wait");
            stage.entered("/wait");
            let (first, rest) = client.record(&get("/now"), cut);
            behind.push((client.send_raw(&first), rest));
        }
        let requests = (begun.len() + late.len() + 2 * behind.len()) as u64;

        site.shutdown.stop();
        begun.extend(late.into_iter().map(|(client, first, rest)| (client.send_raw(&first), rest)));
        // The linger is over.
        assert_eq!(idle.end(), End::Farewell);
        stage.open();
        for (client, _) in &mut behind {
            let response = client.response();
            assert_eq!((&*response.text(), response.says_close()), ("done", false), "{kind:?}");
        }
        for (client, rest) in begun.into_iter().chain(behind) {
            let mut client = client.send_raw(&rest);
            let response = client.response();
            assert_eq!((&*response.text(), response.says_close()), ("now", true), "{kind:?}");
            assert_eq!(client.end(), End::Farewell, "{kind:?}");
        }
        let outcome = site.outcome();
        assert!(outcome.is_drained(), "{kind:?}: {outcome}");
        assert_eq!(outcome.finished, requests, "{kind:?}");
    });
}

/// Rule S13: if the rest of the record does not come, the deadline names the client.
#[test]
fn a_record_that_stays_half_is_named_at_the_deadline() {
    for_each([Kind::Plain, Kind::Tls, Kind::TlsPipe], |kind| {
        for cut in ["one byte", "half"] {
            let (stage, handler) = stage();
            let shutdown = quick().grace(Duration::from_millis(1500));
            let site = Site::open(kind, Server::new(handler).shutdown(&shutdown));
            let mut clients = [site.connect(), site.connect()];
            clients[0].get("/now").response();
            clients[1].get("/wait");
            stage.entered("/wait");
            // A request's age does not count the time for which its connection was idle.
            thread::sleep(Duration::from_millis(300));
            let sent = Instant::now();
            for client in &mut clients {
                let (first, _) = client.record(&get("/now"), cut);
                client.send_raw_to(&first);
            }
            site.shutdown.stop();
            stage.open();
            let response = clients[1].response();
            assert_eq!((&*response.text(), response.says_close()), ("done", false), "{kind:?}");
            let outcome = site.outcome();
            assert_eq!(outcome.ending, Ending::TimedOut, "{kind:?} {cut}: {outcome}");
            assert!(outcome.cut.iter().all(|cut| cut.age <= sent.elapsed()), "{kind:?}: {outcome}");
            let mut cut_clients: Vec<_> = outcome.cut.iter().map(peer_and_stage).collect();
            let mut expected: Vec<_> =
                clients.iter().map(|client| (client.local(), Stage::Head)).collect();
            cut_clients.sort_by(|a, b| a.0.cmp(&b.0));
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            assert_eq!(cut_clients, expected, "{kind:?} {cut}: {outcome}");
            if kind.is_tls() {
                clients.iter_mut().for_each(|client| assert_ne!(client.end(), End::Farewell));
            }
        }
    });
}

/// TLS has records of its own, which are no request: half of one does not make the connection one
/// that has to send a request in time, once the other half has come.
#[test]
fn a_record_without_a_request_leaves_the_connection_idle() {
    for_each([Kind::Tls, Kind::TlsPipe], |kind| {
        let (_stage, handler) = stage();
        let limits = Limits { head_timeout: Duration::from_millis(300), ..Limits::default() };
        let site = Site::open(kind, Server::new(handler).limits(limits).shutdown(&quick()));
        let mut client = site.connect();
        assert_eq!(client.get("/now").response().text(), "now");
        client.tls.as_mut().unwrap().refresh_traffic_keys().unwrap();
        let (first, rest) = client.record(b"", "half");
        let mut client = client.send_raw(&first).send_raw(&rest);
        // A head that does not come in time, twice, for as long as the limit allows.
        for _ in 0..2 {
            let mut clock = site.connect();
            clock.send(b"GET ");
            assert_eq!(clock.response().status, 408);
        }
        assert_eq!(client.get("/now").response().text(), "now", "{kind:?}");
        assert!(site.stop().is_drained());
    });
}

/// An abort names a request that has arrived, where only a read tells that, or answers it.
#[test]
fn a_request_that_has_arrived_is_named_by_an_abort() {
    for_each([Kind::Plain, Kind::Tls, Kind::Pipe, Kind::TlsPipe], |kind| {
        for _ in 0..20 {
            let (_stage, handler) = stage();
            let site = Site::open(kind, Server::new(handler).shutdown(&patient()));
            let mut client = site.connect();
            assert_eq!(client.get("/now").response().text(), "now");
            client.get("/now");
            site.shutdown.abort();
            let outcome = site.outcome();
            let (rest, _) = client.rest();
            let is_answered = rest.ends_with(b"now");
            assert!(is_answered || outcome.cut.len() == 1, "{kind:?}: {outcome}");
        }
    });
}

/// A handshake that ends in the drain, after the linger, gives its client a linger of its own, and
/// a request that comes with the client's last message of the handshake does not wait for its end.
#[test]
fn a_handshake_that_ends_in_the_drain_is_followed_by_a_request() {
    for_each([Kind::Tls, Kind::Tls12, Kind::TlsPipe], |kind| {
        for (is_together, linger) in [(true, 2 * PATIENCE), (false, Duration::from_secs(3))] {
            let (_stage, handler) = stage();
            let shutdown = patient().linger(linger);
            let site = Site::open(kind, Server::new(handler).shutdown(&shutdown));
            let (mut client, hello) = site.half_connect();
            let mut idle = site.connect();
            site.shutdown.stop();
            wait_until("the close", || site.is_closed());
            if !is_together {
                // The linger is over.
                assert_eq!(idle.end(), End::Farewell);
            }
            client.send_raw_to(&hello).shake_hands(is_together.then(|| get("/now")));
            if !is_together {
                client.get("/now");
            }
            let response = client.response();
            assert_eq!((&*response.text(), response.says_close()), ("now", true), "{kind:?}");
            assert_eq!(client.end(), End::Farewell, "{kind:?}");
            drop((client, idle));
            site.shutdown.abort();
            assert!(site.outcome().is_drained());
        }
    });
}

// ── What was pipelined (rules S8, S9) ───────────────────────────────────────────────────────

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
            let (stage, handler) = stage();
            let site = Site::open(kind, Server::new(handler).shutdown(&quick()));
            let mut client = site.connect();
            client.get("/wait");
            stage.entered("/wait");
            let requests = get("/now").repeat(MANY);
            for part in requests.chunks(requests.len() / records) {
                client.send(part);
            }
            site.shutdown.stop();
            wait_until("the close", || site.is_closed());
            stage.open();
            for n in 0..=MANY {
                let response = client.response();
                let told = (response.text(), response.says_close());
                let expected = if n == 0 { "done" } else { "now" };
                assert_eq!(told, (expected.to_owned(), n == MANY), "{what}: {n}");
            }
            assert_eq!(client.end(), End::Farewell, "{what}");
            let outcome = site.outcome();
            assert!(outcome.is_drained(), "{what}: {outcome}");
            assert_eq!(outcome.finished, MANY as u64 + 1, "{what}");
        },
    );
}

/// A stream that gives little at a time, and is pending between any two reads although it holds
/// data.
struct Reluctant {
    stream: Connection,
    is_pending: bool,
}

impl AsyncRead for Reluctant {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.is_pending = !self.is_pending;
        if self.is_pending {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = buf.len().min(700);
        Pin::new(&mut self.stream).poll_read(cx, &mut buf[..most])
    }
}

impl AsyncWrite for Reluctant {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// A body that nobody reads has arrived, too, and so has the request behind it, even if the stream
/// shows them piece by piece.
#[test]
fn a_request_behind_an_unread_body_is_answered_in_the_drain() {
    let (stage, handler) = stage();
    let (stream, mut client) = Connection::pair();
    let stream = Connection::new(Reluctant { stream, is_pending: false });
    let listener = Listener::of(stream::once(Ok(stream)).chain(stream::pending()));
    let server = Server::new(handler).shutdown(&quick());
    let shutdown = server.handle();
    let served = thread::spawn(move || future::block_on(server.serve([listener])));
    let requests = [post("/wait", 5000), vec![b'x'; 5000], get("/now")].concat();
    patiently(client.write_all(&requests)).unwrap();
    stage.entered("/wait");
    shutdown.stop();
    stage.open();
    let mut answers = String::new();
    patiently(client.read_to_string(&mut answers)).unwrap();
    let (done, now) = answers.split_once("done").expect("there is a first answer");
    assert!(!done.contains("connection: close"), "{answers}");
    assert!(now.contains("connection: close") && now.ends_with("now"), "{answers}");
    assert!(served.join().unwrap().unwrap().is_drained());
}

/// What arrives after the stop does not prolong the connection, however much it is.
#[test]
fn a_client_that_pipelines_without_end_is_told_close() {
    /// How many responses the client may be waiting for.
    const WINDOW: usize = 500;
    for_each([Kind::Plain, Kind::Tls, Kind::Pipe], |kind| {
        let (_stage, handler) = stage();
        let shutdown = quick().grace(Duration::from_secs(10));
        let site = Site::open(kind, Server::new(handler).shutdown(&shutdown));
        let mut client = site.connect();
        client.base.do_not_wait();
        let (mut sent, mut received, mut is_told) = (0, 0, false);
        let mut unsent = Vec::new();
        let mut has_ended = false;
        while !has_ended {
            if unsent.is_empty() && sent - received < WINDOW {
                unsent = client.seal(&get("/now").repeat(10));
                sent += 10;
            }
            match client.base.write(&unsent) {
                Ok(n) => drop(unsent.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(_) => unsent.clear(),
            }
            match client.try_fill() {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) => has_ended = true,
            }
            while let Some(response) = client.whole_response() {
                assert!(!is_told, "{kind:?}: a response behind the last one");
                assert_eq!(response.text(), "now");
                is_told = response.says_close();
                received += 1;
                if received == 1000 {
                    site.shutdown.stop();
                }
            }
        }
        assert!(is_told, "{kind:?}: {received} of {sent}");
        let outcome = site.outcome();
        assert!(outcome.is_drained(), "{kind:?}: {outcome}");
    });
}

// ── What moves ──────────────────────────────────────────────────────────────────────────────

/// A client that reads slowly and steadily gets a long response whole: what its kernel takes is
/// progress, long before the server's kernel asks for more.
#[test]
fn a_steady_slow_reader_gets_its_response_whole() {
    for_each([Kind::Plain, Kind::Tls], |kind| {
        let site = slow_site(kind, ROOMY, Duration::from_secs(2));
        let mut client = site.connect();
        client.get("/long");
        // 20 kB/s: the kernel asks for more when 64 KiB are free.
        for _ in 0..25 {
            assert_eq!(client.try_fill_with(4 * 1024), Ok(true), "{kind:?}");
            thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(client.response().body.len(), LONG, "{kind:?}");
        assert!(site.stop().is_drained());
    });
}

/// A body that comes slowly and steadily arrives, even if all of it is one record.
#[test]
fn a_steady_slow_sender_gets_its_body_through() {
    for_each([Kind::Plain, Kind::Tls, Kind::TlsPipe], |kind| {
        let site = slow_site(kind, ROOMY, Duration::from_secs(2));
        let mut client = site.connect();
        client.send(&post("/read", 16 * 1024));
        for part in client.seal(&[b'x'; 16 * 1024]).chunks(1024) {
            thread::sleep(Duration::from_millis(250));
            client.send_raw_to(part);
        }
        assert_eq!(client.response().text(), "16384 bytes", "{kind:?}");
        assert!(site.stop().is_drained());
    });
}

/// A client that has stopped is cut, under TLS as without, wherever it has stopped.
#[test]
fn a_client_that_stalls_is_given_up() {
    for_each([Kind::Plain, Kind::Tls], |kind| {
        for case in ["a body", "a response", "a body nobody wants", "both"] {
            let site = slow_site(kind, TINY, Duration::from_millis(300));
            let mut client = site.connect();
            match case {
                "a body" => {
                    client.send(&post("/read", 1000));
                    let (first, _) = client.record(&[b'x'; 1000], "half");
                    client.send_raw_to(&first);
                    let response = client.response();
                    assert_eq!((response.status, response.says_close()), (408, true), "{kind:?}");
                }
                "a response" => _ = client.get("/long"),
                // The response is gathered, and the connection is to go on behind the body.
                "a body nobody wants" => _ = client.send(&post("/short", 1000)),
                "both" => _ = client.get("/short").send(&post("/read", 1000)),
                case => panic!("unknown: {case}"),
            }
            wait_until(&format!("{kind:?}, {case}"), || site.shutdown.in_flight() == 0);
            assert!(site.stop().is_drained());
        }
    });
}

/// A reader that has lost interest for a while is not the client's fault, where only a read tells
/// that the body has come.
#[test]
fn a_body_that_nobody_waits_for_is_not_late() {
    for_each([Kind::Plain, Kind::Tls, Kind::Pipe, Kind::TlsPipe], |kind| {
        let (stagehand, enter, gate) = Stagehand::new();
        let handler = move |mut request: Request| {
            let (enter, gate) = (enter.clone(), gate.clone());
            async move {
                let mut byte = [0];
                let looked = future::poll_once(request.read(&mut byte)).await;
                assert!(looked.is_none());
                let _ = enter.send("looked".to_owned());
                let _ = gate.recv().await;
                Ok(format!("{} bytes", request.body_bytes().await?.len()))
            }
        };
        let short = Duration::from_millis(300);
        let limits = Limits { stall_timeout: short, head_timeout: short, ..Limits::default() };
        let site = Site::open(kind, Server::new(handler).limits(limits).shutdown(&quick()));
        let mut client = site.connect();
        client.send(&post("/", 1000));
        stagehand.entered("looked");
        client.send(&[b'x'; 1000]);
        // Heads that do not come in time: as long as the body may not stall.
        for _ in 0..3 {
            let mut clock = site.connect();
            clock.send(b"GET ");
            assert_eq!(clock.response().status, 408);
        }
        stagehand.open();
        assert_eq!(client.response().text(), "1000 bytes", "{kind:?}");
        assert!(site.stop().is_drained());
    });
}

/// A buffer that the kernel makes as small as it can, and one that holds a short response.
const TINY: usize = 4 * 1024;
const ROOMY: usize = 100 * 1024;

/// A client that goes away while its request is in the handler costs nobody else a thing: what is
/// written to a stream without its other end fails, and is not tried again and again.
#[test]
fn a_client_that_has_gone_holds_up_nobody() {
    for_each([Kind::Plain, Kind::Tls, Kind::Pipe, Kind::TlsPipe], |kind| {
        let (stage, handler) = stage();
        let site = Site::open(kind, Server::new(handler).shutdown(&quick()));
        let mut gone = site.connect();
        gone.get("/wait");
        stage.entered("/wait");
        let mut other = site.connect();
        drop(gone);
        stage.open();
        wait_until("its end", || site.shutdown.in_flight() == 1);
        assert_eq!(other.get("/now").response().text(), "now", "{kind:?}");
        assert!(site.stop().is_drained());
    });
}

/// How long the long response is, in bytes: more than the kernels hold.
const LONG: usize = 400 * 1024;

/// A server whose clients' kernels take in little.
fn slow_site(kind: Kind, send_buffer: usize, stall_timeout: Duration) -> Site {
    let handler = |mut request: Request| async move {
        Ok(match request.url().path() {
            "/long" => Response::from(vec![b'x'; LONG]),
            "/short" => vec![b'x'; 40 * 1024].into(),
            "/read" => format!("{} bytes", request.body_bytes().await?.len()).into(),
            path => panic!("unknown: {path}"),
        })
    };
    let limits = Limits { stall_timeout, ..Limits::default() };
    let server = Server::new(handler).limits(limits).shutdown(&quick());
    Site::with_buffers(kind, server, Some((send_buffer, TINY)))
}

// ── What is cut (rule S13) ──────────────────────────────────────────────────────────────────

/// Where the end of the connection is the end of the body, a cut is a reset: also of a response
/// that the server has whole, but that has not left.
#[test]
fn a_body_without_a_length_that_is_cut_does_not_look_whole() {
    const LENGTH: usize = 40 * 1024;
    for_each([Kind::Plain, Kind::Tls, Kind::Tls12], |kind| {
        for abort in [false, true] {
            let (send, is_read) = mpsc::channel();
            let send = Mutex::new(send);
            let handler = move |_| {
                let body = Told { left: LENGTH, tell: send.lock().unwrap().clone() };
                async move { Ok(Body::from_reader(futures_lite::io::BufReader::new(body), None)) }
            };
            let grace = Duration::from_millis(if abort { 60_000 } else { 100 });
            let server = Server::new(handler).shutdown(&patient().grace(grace));
            let site = Site::with_buffers(kind, server, Some((TINY, TINY)));
            let mut client = site.connect();
            client.send(b"GET / HTTP/1.0\r\n\r\n");
            is_read.recv_timeout(PATIENCE).expect("the server reads the body to its end");
            site.shutdown.stop();
            if abort {
                site.shutdown.abort();
            }
            let outcome = site.outcome();
            let ending = if abort { Ending::Forced } else { Ending::TimedOut };
            assert_eq!(outcome.ending, ending, "{kind:?}: {outcome}");
            assert_eq!(outcome.cut.len(), 1, "{kind:?}: {outcome}");
            let (received, end) = client.rest();
            assert!(received.len() < LENGTH, "{kind:?}");
            assert_eq!(end, End::Reset, "{kind:?}, abort: {abort}");
        }
    });
}

/// So many bytes, and a word at their end.
struct Told {
    left: usize,
    tell: mpsc::Sender<()>,
}

impl AsyncRead for Told {
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

// ── What was upgraded (rules S11, S22) ──────────────────────────────────────────────────────

/// A client that has reset an upgraded connection does not hold it, in the drain or before, even
/// if the owner of the stream does not look at it. What the client sent last may be unread.
#[test]
fn an_upgraded_connection_whose_client_has_reset_is_let_go() {
    for_each([Kind::Plain, Kind::Tls], |kind| {
        for (is_draining, last) in [(false, &b""[..]), (true, b""), (true, b"unread")] {
            let (upgraded, handler) = upgrades();
            let site = Site::open(kind, Server::new(handler).shutdown(&patient()));
            let mut client = site.connect();
            client.upgrade();
            let mut stream = upgraded.recv_timeout(PATIENCE).unwrap();
            client.send(last);
            if is_draining {
                site.shutdown.stop();
                wait_until("the close", || site.is_closed());
                // The last of those who looked may have been let in.
                wait_until("one is left", || site.shutdown.in_flight() == 1);
            }
            client.reset();
            wait_until("its end", || site.shutdown.in_flight() == 0);
            // Whoever holds the stream is told.
            assert!(patiently(stream.write_all(b"late")).is_err(), "{kind:?}");
            let outcome = site.stop();
            assert!(outcome.is_drained(), "{kind:?}: {outcome}");
        }
    });
}

/// A client that only closes its side is no client that is gone, even if the server's side is
/// closed too: what it has sent waits until the owner of the stream reads it.
#[test]
fn an_upgraded_connection_that_both_have_closed_is_read_to_its_end() {
    for_each([Kind::Plain, Kind::Tls, Kind::Pipe], |kind| {
        for is_draining in [false, true] {
            let (upgraded, handler) = upgrades();
            // The sweep looks at connections every 20 ms because of this limit.
            let limits = Limits { head_timeout: Duration::from_millis(160), ..Limits::default() };
            let site = Site::open(kind, Server::new(handler).limits(limits).shutdown(&patient()));
            let mut client = site.connect();
            client.upgrade();
            let mut stream = upgraded.recv_timeout(PATIENCE).unwrap();
            let mut clock = site.connect();
            if is_draining {
                clock.send(b"GET ");
                site.shutdown.stop();
            }
            patiently(stream.close()).unwrap();
            assert_eq!(client.end(), End::Farewell, "{kind:?}");
            client.send(b"bye").half_close();
            // This connection is at its end only after several sweeps.
            if !is_draining {
                clock.send(b"GET ");
            }
            assert_eq!(clock.response().status, 408);
            let mut read = String::new();
            patiently(stream.read_to_string(&mut read)).unwrap();
            assert_eq!(read, "bye", "{kind:?}, draining: {is_draining}");
            drop(stream);
            assert!(site.stop().is_drained());
        }
    });
}

/// The owner of an upgraded stream has written everything and drops it. All of it arrives, although
/// nobody has read what the client has sent.
#[test]
fn an_upgraded_connection_that_is_dropped_delivers_what_was_written() {
    const LENGTH: usize = 3_000_000;
    for_each([Kind::Plain, Kind::Tls, Kind::Tls12], |kind| {
        let (upgraded, handler) = upgrades();
        let site = Site::open(kind, Server::new(handler).shutdown(&patient()));
        let mut client = site.connect();
        client.upgrade();
        let mut stream = upgraded.recv_timeout(PATIENCE).unwrap();
        client.send(b"nobody reads this");
        let writer = thread::spawn(move || patiently(stream.write_all(&vec![b'x'; LENGTH])));
        let (received, end) = client.rest();
        assert_eq!((received.len(), end), (LENGTH, End::Farewell), "{kind:?}");
        writer.join().unwrap().unwrap();
        drop(client);
        assert!(site.stop().is_drained());
    });
}

/// What a wrapper still holds when its stream is dropped arrives at the pace of the client, also
/// if that takes longer than a client may be silent at the end of a connection.
#[test]
fn what_a_wrapper_holds_arrives_at_the_pace_of_the_client() {
    for_each([Kind::Plain, Kind::Tls], |kind| {
        for is_draining in [false, true] {
            let (upgraded, handler) = upgrades();
            let server = Server::new(handler).shutdown(&patient());
            let site = Site::with_buffers(kind, server, Some((ROOMY, TINY)));
            let mut client = site.connect();
            client.upgrade();
            let mut stream = upgraded.recv_timeout(PATIENCE).unwrap();
            client.send(b"nobody reads this");
            // As much as the kernels and the wrapper hold.
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
                site.shutdown.stop();
            }
            drop(stream);
            for _ in 0..25 {
                assert_eq!(client.try_fill_with(2 * 1024), Ok(true), "{kind:?}, {is_draining}");
                thread::sleep(Duration::from_millis(150));
            }
            let (received, end) = client.rest();
            assert_eq!((received.len(), end), (written, End::Farewell), "{kind:?}, {is_draining}");
            drop(client);
            assert!(site.stop().is_drained());
        }
    });
}

/// A handler that upgrades what cannot be upgraded is a mistake of the program's, so the log says
/// whose request it was, and what is wrong with it.
#[test]
fn an_upgrade_that_cannot_be_is_logged_with_peer_and_path() {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let head = "Host: x\r\nUpgrade: x\r\n";
    for_each([Kind::Plain, Kind::Tls], |kind| {
        let (_upgraded, handler) = upgrades();
        let site = Site::open(kind, Server::new(handler).shutdown(&patient()));
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
            let mut client = site.connect();
            let response = client.send(request.as_bytes()).response();
            assert_eq!((response.status, response.says_close()), (400, true), "{kind:?}");
            let begin = format!("{} GET /a?b=1: ", client.local());
            let lines = LOG.0.lock().unwrap();
            let line = lines.iter().find(|line| line.starts_with(&begin));
            assert!(line.is_some_and(|line| line.contains(problem)), "{begin}: {lines:#?}");
        }
        assert!(site.stop().is_drained());
    });
}

/// Keeps what the servers of all tests warn of.
struct Log(Mutex<Vec<String>>);

static LOG: Log = Log(Mutex::new(Vec::new()));

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// A handler that hands upgraded streams to the test.
fn upgrades()
-> (Receiver<http_types::upgrade::Connection>, impl Fn(Request) -> Answer + Send + Sync + 'static) {
    let (send, upgraded) = mpsc::channel();
    let handler = move |_| -> Answer {
        let send = send.clone();
        Box::pin(async move {
            let mut response = Response::new(StatusCode::SwitchingProtocols);
            response.insert_header(UPGRADE, "x");
            let stream = response.recv_upgrade().await;
            smol::spawn(async move { send.send(stream.await.unwrap()).unwrap() }).detach();
            Ok(response)
        })
    };
    (upgraded, handler)
}

// ── The stage ───────────────────────────────────────────────────────────────────────────────

/// What is under a connection, and around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A TCP socket as it is, to compare with.
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

/// Runs `test` for each of `cases`, all at the same time.
fn for_each<T: Send>(cases: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| test(case));
        }
    });
}

/// A server on a thread of its own.
struct Site {
    kind: Kind,
    /// Where to connect, if there is a socket.
    addr: Option<SocketAddr>,
    /// How much the kernel of a client takes in before the client reads, if that matters.
    client_buffer: Option<usize>,
    pipes: channel::Sender<io::Result<Connection>>,
    shutdown: Shutdown,
    outcome: Receiver<Outcome>,
}

impl Site {
    fn open(kind: Kind, server: Server) -> Self {
        Self::with_buffers(kind, server, None)
    }

    /// Opens a server whose kernel, and whose clients' kernels, hold few bytes: sent, and received.
    fn with_buffers(kind: Kind, server: Server, buffers: Option<(usize, usize)>) -> Self {
        let (send, pipes) = channel::unbounded();
        let listener = if kind.is_pipe() {
            Listener::of(pipes)
        } else {
            // Sockets inherit it from their listener.
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            if let Some((send, _)) = buffers {
                socket2::SockRef::from(&listener).set_send_buffer_size(send).unwrap();
            }
            listener.listen().unwrap()
        };
        let addr = match listener.address() {
            Address::Tcp(addr) => Some(*addr),
            _ => None,
        };
        let listener = if kind.is_tls() {
            let acceptor = TlsAcceptor::from(tls().0.clone());
            listener.wrap(move |connection| acceptor.accept(connection))
        } else {
            listener
        };
        let shutdown = server.handle();
        let (send_outcome, outcome) = mpsc::channel();
        thread::spawn(move || {
            let outcome = future::block_on(server.serve([listener])).unwrap();
            let _ = send_outcome.send(outcome);
        });
        let client_buffer = buffers.map(|(_, receive)| receive);
        Self { kind, addr, client_buffer, pipes: send, shutdown, outcome }
    }

    /// Connects a client, whose part of the handshake is over when this returns.
    fn connect(&self) -> Client {
        let mut client = self.connect_silently();
        client.shake_hands(None);
        client
    }

    /// Connects a client that has sent half of its first message, and returns the other half too.
    fn half_connect(&self) -> (Client, Vec<u8>) {
        let mut client = self.connect_silently();
        let (first, rest) = client.record(b"", "half");
        (client.send_raw(&first), rest)
    }

    /// Connects a client that has not sent anything.
    fn connect_silently(&self) -> Client {
        let base = match self.addr {
            Some(addr) => {
                let domain = socket2::Domain::IPV4;
                let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
                if let Some(size) = self.client_buffer {
                    socket.set_recv_buffer_size(size).unwrap();
                }
                socket.connect(&addr.into()).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.set_write_timeout(Some(PATIENCE)).unwrap();
                socket.set_tcp_nodelay(true).unwrap();
                Base::Socket(socket.into())
            }
            None => {
                let (client, connection) = Connection::pair();
                self.pipes.try_send(Ok(connection)).expect("the server has closed");
                Base::Pipe(client, false)
            }
        };
        let mut client = Client { base, tls: None, bytes: Vec::new() };
        if self.kind.is_tls() {
            let versions: &[_] = match self.kind {
                Kind::Tls12 => &[&version::TLS12],
                _ => &[&version::TLS13],
            };
            let config = ClientConfig::builder_with_protocol_versions(versions)
                .with_root_certificates(tls().1.clone())
                .with_no_client_auth();
            let name = ServerName::try_from("localhost").unwrap();
            let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
            // One that takes in whatever a test wants to send at once.
            tls.set_buffer_limit(None);
            client.tls = Some(tls);
        }
        client
    }

    /// Whether the server takes no more connections.
    fn is_closed(&self) -> bool {
        match self.addr {
            Some(addr) => TcpStream::connect(addr)
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused),
            None => self.pipes.is_closed(),
        }
    }

    /// Waits for the server's end; does not stop it.
    fn outcome(&self) -> Outcome {
        self.outcome.recv_timeout(PATIENCE).expect("the server did not end")
    }

    fn stop(&self) -> Outcome {
        self.shutdown.stop();
        self.outcome()
    }
}

/// The server's side of TLS, and what its clients trust.
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

/// A client's end of what bytes go over.
enum Base {
    Socket(TcpStream),
    /// A pipe, and whether a call that has to wait fails instead.
    Pipe(Connection, bool),
}

impl Base {
    /// From now on, a call that has to wait fails instead.
    fn do_not_wait(&mut self) {
        match self {
            Self::Socket(socket) => socket.set_nonblocking(true).unwrap(),
            Self::Pipe(_, does_not_wait) => *does_not_wait = true,
        }
    }
}

impl Read for Base {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.read(buf),
            Self::Pipe(pipe, false) => patiently(pipe.read(buf)),
            Self::Pipe(pipe, true) => at_once(pipe.read(buf)),
        }
    }
}

impl Write for Base {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.write(buf),
            Self::Pipe(pipe, false) => patiently(pipe.write(buf)),
            Self::Pipe(pipe, true) => at_once(pipe.write(buf)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// A proper end: TLS's close_notify and then a FIN, or a FIN where there is no TLS.
    Farewell,
    /// A FIN without close_notify under TLS: anyone could have cut the connection there.
    Fin,
    Reset,
}

/// A client that makes its own records.
struct Client {
    base: Base,
    tls: Option<ClientConnection>,
    /// What was received and decrypted, and not yet consumed.
    bytes: Vec<u8>,
}

impl Client {
    /// Makes of `bytes` what goes over the wire, in records of 16 KiB at most.
    fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Some(tls) = &mut self.tls else { return bytes.to_vec() };
        tls.writer().write_all(bytes).unwrap();
        let mut sealed = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut sealed).unwrap();
        }
        sealed
    }

    /// Ends the handshake, and sends `request` together with the last message of it.
    fn shake_hands(&mut self, request: Option<Vec<u8>>) {
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            let sealed = self.seal(b"");
            self.send_raw_to(&sealed);
            // TLS 1.2 ends with a message of the server's.
            self.fill().unwrap();
        }
        self.send(&request.unwrap_or_default());
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

    fn send(&mut self, bytes: &[u8]) -> &mut Self {
        let sealed = self.seal(bytes);
        self.send_raw_to(&sealed)
    }

    /// Sends what was sealed before.
    fn send_raw_to(&mut self, sealed: &[u8]) -> &mut Self {
        self.base.write_all(sealed).unwrap();
        self
    }

    fn send_raw(mut self, sealed: &[u8]) -> Self {
        self.send_raw_to(sealed);
        self
    }

    /// Changes to another protocol.
    fn upgrade(&mut self) {
        self.send(b"GET /up?a=1 HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
        assert_eq!(self.response().status, 101);
    }

    /// Says that nothing more will be sent.
    fn half_close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let mut farewell = Vec::new();
            tls.write_tls(&mut farewell).unwrap();
            self.send_raw_to(&farewell);
        }
        match &mut self.base {
            Base::Socket(socket) => socket.shutdown(Half::Write).unwrap(),
            Base::Pipe(pipe, _) => patiently(pipe.close()).unwrap(),
        }
    }

    /// Closes with a reset instead of a FIN.
    fn reset(self) {
        let Base::Socket(socket) = self.base else { panic!("a pipe has no reset") };
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// `GET path`, keep-alive.
    fn get(&mut self, path: &str) -> &mut Self {
        self.send(&get(path))
    }

    /// The next response, which must have a length or no body.
    fn response(&mut self) -> Received {
        loop {
            if let Some(response) = self.whole_response() {
                return response;
            }
            if let Err(end) = self.fill() {
                panic!("{end:?} before a whole response: {:?}", text(&self.bytes));
            }
        }
    }

    /// The next response, if it has come whole.
    fn whole_response(&mut self) -> Option<Received> {
        let end = memchr::memmem::find(&self.bytes, b"\r\n\r\n")?;
        let head = String::from_utf8(self.bytes[..end].to_vec()).unwrap();
        let lines: Vec<_> = head.split("\r\n").map(str::to_owned).collect();
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let mut received = Received { status, lines, body: Vec::new() };
        let length = received.header("content-length").map_or(0, |value| value.parse().unwrap());
        let whole = end + 4 + length;
        if self.bytes.len() < whole {
            return None;
        }
        received.body = self.bytes.drain(..whole).skip(end + 4).collect();
        Some(received)
    }

    /// Everything that still comes, and how it ended.
    fn rest(&mut self) -> (Vec<u8>, End) {
        loop {
            if let Err(end) = self.fill() {
                return (std::mem::take(&mut self.bytes), end);
            }
        }
    }

    /// How the connection ends; nothing more may come before.
    fn end(&mut self) -> End {
        let (rest, end) = self.rest();
        assert!(rest.is_empty(), "unexpected: {:?}", text(&rest));
        end
    }

    /// Waits for more bytes.
    fn fill(&mut self) -> Result<(), End> {
        match self.try_fill()? {
            true => Ok(()),
            false => panic!("waited in vain for the server"),
        }
    }

    /// Reads once; `false` if nothing has come in time.
    fn try_fill(&mut self) -> Result<bool, End> {
        self.try_fill_with(16 * 1024)
    }

    /// Reads once, up to `most` bytes as they come over the wire.
    fn try_fill_with(&mut self, most: usize) -> Result<bool, End> {
        let mut bytes = vec![0; most];
        let read = match self.base.read(&mut bytes) {
            Ok(n) => &bytes[..n],
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => return Ok(true),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(false),
                _ => return Err(End::Reset),
            },
        };
        let Some(tls) = &mut self.tls else {
            self.bytes.extend_from_slice(read);
            return if read.is_empty() { Err(End::Farewell) } else { Ok(true) };
        };
        let mut unread = read;
        loop {
            let n = tls.read_tls(&mut unread).unwrap();
            let state = tls.process_new_packets().unwrap();
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            tls.reader().read_exact(&mut plain).unwrap();
            self.bytes.extend(plain);
            if n == 0 {
                return Err(if state.peer_has_closed() { End::Farewell } else { End::Fin });
            }
            if unread.is_empty() {
                return Ok(true);
            }
        }
    }

    /// Whom the server calls the peer.
    fn local(&self) -> String {
        match &self.base {
            Base::Socket(socket) => socket.local_addr().unwrap().to_string(),
            Base::Pipe(..) => "unknown".to_owned(),
        }
    }
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// The head of a request with a body.
fn post(path: &str, length: usize) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

fn peer_and_stage(cut: &Cut) -> (String, Stage) {
    match &cut.what {
        What::Request { peer, stage, .. } => (peer.to_string(), *stage),
        what => panic!("{what:?}"),
    }
}

/// Returns a handle of a stop that does not end by time before the test gives up.
fn patient() -> Shutdown {
    Shutdown::new().linger(2 * PATIENCE).grace(2 * PATIENCE)
}

/// Returns a patient handle whose idle connections do not stay for long.
fn quick() -> Shutdown {
    patient().linger(Duration::from_millis(20))
}

/// Runs a future that may not take for ever.
fn patiently<T>(future: impl Future<Output = T>) -> T {
    let late = async {
        Timer::after(PATIENCE).await;
        panic!("waited in vain");
    };
    future::block_on(future.or(late))
}

/// Runs a future that may not wait.
fn at_once<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    future::block_on(future::poll_once(future)).unwrap_or(Err(ErrorKind::WouldBlock.into()))
}

type Answer = future::Boxed<http_types::Result<Response>>;

/// A handler that can be waited for: `/now` answers, `/wait` waits until the stage is opened.
fn stage() -> (Stagehand, impl Fn(Request) -> Answer + Send + Sync + 'static) {
    let (stagehand, enter, gate) = Stagehand::new();
    let handler = move |request: Request| -> Answer {
        let (enter, gate) = (enter.clone(), gate.clone());
        Box::pin(async move {
            match request.url().path() {
                "/now" => Ok("now".into()),
                "/wait" => {
                    let _ = enter.send("/wait".to_owned());
                    let _ = gate.recv().await;
                    Ok("done".into())
                }
                path => panic!("unknown: {path}"),
            }
        })
    };
    (stagehand, handler)
}
