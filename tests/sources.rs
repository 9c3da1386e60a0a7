//! Where connections come from and what is made of them before they are served: sources and wrappers
//! that fail, and what the log says of it.

mod common;

use std::io;
use std::pin::Pin;
use std::process::{ExitCode, Termination};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use common::{Client, End, Log, PATIENCE, Running, address_of, handler, stage, tcp, wait_until};
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, StreamExt, future, stream};
use log::Level;
use smol::channel;
use smol_graceful::{Connection, Limits, Listener, Peer, Process, Server, What};

// Sources that panic (rule S17).

/// What is in flight is finished, and the error that follows names the panic and the line.
#[test]
fn a_source_that_panics_stops_the_server_and_is_its_error() {
    let log = Log::of_this_process();
    let (stage, handler) = stage();
    let socket = tcp();
    let addr = address_of(&socket);
    let (panic, told) = channel::bounded::<()>(1);
    let (source, line) = (Listener::of(panicking_after(told)), line!());
    let server = Running::on(Server::new(handler), [socket, source]);
    let mut client = Client::connect(addr);
    client.get("/wait");
    stage.entered("/wait");
    assert!(!server.shutdown.token().is_stopping());

    drop(panic);
    wait_until("the server stops", || server.shutdown.token().is_stopping());
    assert!(server.is_serving());
    stage.open();
    let response = client.response();
    assert_eq!((response.text().as_str(), response.says_close()), ("done", true));
    assert_eq!(client.end(), End::Eof);
    let error = server.ended().unwrap_err();
    let told = format!("the source of connections of {}:{line}:", file!());
    let text = error.to_string();
    assert!(text.starts_with(&told) && text.ends_with(" has panicked: no more to say"), "{text}");
    assert_eq!(log.with(&told), [(Level::Error, text)]);
}

/// A source that nobody asks before the stop panics when it is asked for the last time.
#[test]
fn a_source_that_panics_at_the_stop_is_an_error_too() {
    let is_stopped = Arc::new(AtomicBool::new(false));
    let panics = is_stopped.clone();
    let (ask, asked) = mpsc::channel();
    let source = Listener::of(stream::poll_fn(move |_| {
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

/// A process ends with 1, and says why in one line.
#[test]
fn a_source_that_panics_ends_a_process_with_1() {
    let (_, told) = channel::bounded::<()>(1);
    let source = Listener::of(panicking_after(told));
    let process = Process::default().threads(1).signals([]).restart_on(None);
    let ended = process.run(Server::new(handler()), [source]);
    let text = format!("{:?}", ended.as_ref().unwrap_err());
    assert!(text.contains("has panicked: no more to say") && !text.contains('\n'), "{text}");
    assert_eq!(format!("{:?}", ended.report()), format!("{:?}", ExitCode::FAILURE));
}

/// A stream that panics, wherever the server is with it, costs its client the connection and nobody
/// else anything.
#[test]
fn a_stream_that_panics_costs_its_client_alone() {
    let log = Log::of_this_process();
    let (send, connections) = channel::unbounded();
    let wrapped = tcp().wrap(|_| async { Ok(Panicking { reads: 1 }) });
    let addr = address_of(&wrapped);
    let server = Running::on(Server::new(handler()), [Listener::of(connections), wrapped]);
    for reads in 0..3 {
        let connection = Connection::new(Panicking { reads });
        let peer = ([192, 0, 2, 1], reads + 1);
        send.try_send(Ok(connection.from_peer(peer))).unwrap();
        wait_until("it has come and gone", || server.shutdown.in_flight() == 0 && send.is_empty());
    }
    // In an idle connection, before a request; the others panic where a request is read.
    let told = "192.0.2.1:1: the connection's stream has panicked";
    wait_until("the log tells it", || log.with(told) == [(Level::Error, told.to_owned())]);
    let mut client = Client::connect(addr);
    client.send("x");
    assert!(client.rest().0.is_empty());
    wait_until("nobody is left", || server.shutdown.in_flight() == 0);
    assert!(server.stop().is_drained());
}

/// Never brings a connection, and panics as soon as the other end is closed.
fn panicking_after(
    told: channel::Receiver<()>,
) -> impl futures_lite::Stream<Item = io::Result<Connection>> + Send {
    Box::pin(told).map(|()| unreachable!()).chain(stream::once_future(async {
        panic!("no more to say");
    }))
}

/// Gives the beginning of a request in so many reads, and panics in the next one.
struct Panicking {
    reads: u16,
}

impl AsyncRead for Panicking {
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

impl AsyncWrite for Panicking {
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

/// The client that a wrapper names is the one of the request and of the outcome.
#[test]
fn a_wrapper_tells_who_the_client_is() {
    let (stage, handler) = stage();
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
        stage.entered("/wait");
    }
    server.shutdown.abort();
    let outcome = server.ended().unwrap();
    let peers: Vec<_> = outcome.cut.iter().map(|cut| &cut.what).collect();
    let [What::Request { peer: first, .. }, What::Request { peer: second, .. }] = peers[..] else {
        panic!("{outcome}");
    };
    assert_eq!([*first, *second], [peer, own]);
}

/// A hundred clients with nonsense are a hundred in the count, and a line or two in the log.
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
    let limits = Limits { head_timeout: Duration::from_millis(50), ..Limits::default() };
    let server = Running::on(Server::new(handler()).limits(limits), [listener]);
    let mut good = Client::connect(addr);
    good.send("hello").get("/now").response();
    // A health check, which opens a connection and says nothing.
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
            // The first one is told at once.
            let told = format!("{addr}: a handshake failed, from {peer}: no hello");
            wait_until("the log tells it", || {
                log.with("no hello") == [(Level::Info, told.clone())]
            });
        }
    }
    let lines = log.with(&format!("{addr}: ")).len() as u64;
    assert!(lines <= 1 + begun.elapsed().as_secs(), "{lines} lines");

    // A second later a line speaks for all of them, and names the last.
    // Nothing but the clock begins the next second.
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

// What the tests share.
