//! Streams that are silent in the drain (`Shutdown::stream_grace`, rule S27): upgraded connections,
//! and responses whose body is awaited.
//!
//! The servers here have a short stream grace and a grace that is longer than the test, so a test
//! fails if the server does not close a stream. The tests of the registry have the cases in which
//! time matters.

mod common;

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use common::{
    Client, End, PATIENCE, Running, StoppedBy, UPGRADE_HEAD, held_handlers, long_grace, upgrades,
    upgrading, wait_for_close, wait_until, within_patience,
};
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt, stream};
use smol_graceful::{
    ExchangeEnding, Outcome, Request, Server, Shutdown, Token, WorkKind, stream_body,
};

const EVENTS: &str = "GET /events HTTP/1.1\r\nHost: test\r\n\r\n";

/// Returns a handle of a stop that closes silent streams soon, and waits for everything else.
fn short_stream_grace() -> Shutdown {
    long_grace().linger(Duration::ZERO).stream_grace(Duration::from_millis(50))
}

fn assert_closed(outcome: &Outcome, streams: u64) {
    assert!(outcome.is_drained() && outcome.cut.is_empty(), "{outcome}");
    assert_eq!(outcome.streams_closed, streams, "{outcome}");
    let words = match streams {
        1 => ", 1 silent stream closed".into(),
        _ => format!(", {streams} silent streams closed"),
    };
    assert!(outcome.to_string().contains(&words), "{outcome}");
}

/// Returns a server whose streams send one event and then stay silent.
fn server_of_one_event(shutdown: &Shutdown) -> Running {
    let server = Server::new(|_| async {
        let event = stream::once(io::Result::Ok("data: one\n\n"));
        Ok(stream_body(event.chain(stream::pending())))
    });
    Running::of(server.stopped_by(shutdown))
}

/// Returns a client that has received the event.
fn listen(server: &Running) -> Client {
    let mut client = server.connect();
    client.send(EVENTS).take_to(b"data: one\n\n\r\n").unwrap();
    client
}

/// A WebSocket has a handler that does not look at its token. The client gets a FIN, and the
/// handler's read fails.
#[test]
fn a_silent_upgraded_connection_is_closed() {
    let (upgraded, handler) = upgrades();
    let server = Running::of(Server::new(handler).stopped_by(&short_stream_grace()));
    let mut client = server.connect();
    assert_eq!(client.send(UPGRADE_HEAD).response().status, 101);
    let mut stream = upgraded.recv_timeout(PATIENCE).unwrap();
    let reading = std::thread::spawn(move || {
        let read = within_patience(stream.read(&mut [0; 10]));
        (read.unwrap_err().kind(), within_patience(stream.write(b"too late")).unwrap_err().kind())
    });
    server.shutdown.stop();
    assert_eq!(client.end(), End::Eof);
    drop(client);
    let errors = reading.join().unwrap();
    assert_eq!(errors, (io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionAborted));
    assert_closed(&server.outcome(), 1);
}

/// Server-sent events have a handler that does not look at its token. The client has received the
/// events, and the end is not a proper one.
#[test]
fn a_silent_response_is_closed() {
    let server = server_of_one_event(&short_stream_grace());
    let clients: Vec<_> = (0..3).map(|_| listen(&server)).collect();
    server.shutdown.stop();
    for mut client in clients {
        let (rest, end) = client.rest();
        assert_eq!((&rest[..], end), (&b""[..], End::Reset));
    }
    assert_closed(&server.outcome(), 3);
}

/// The response was not sent whole, so it is cut. The end of the other protocol is an ending like
/// any other.
#[test]
fn an_observer_hears_how_a_silent_stream_ended() {
    for (head, expected) in
        [(EVENTS, ExchangeEnding::Cut), (UPGRADE_HEAD, ExchangeEnding::Upgraded)]
    {
        let (send, heard) = mpsc::channel();
        let server = Server::new(|request: Request| async move {
            match request.url().path() {
                "/" => upgrading()(request).await,
                _ => Ok(stream_body(stream::pending::<io::Result<String>>()).into()),
            }
        });
        let server = server.observe(move |exchange| send.send(exchange.ending()).unwrap());
        let server = Running::of(server.stopped_by(&short_stream_grace()));
        let mut client = server.connect();
        client.send(head).take_to(b"\r\n\r\n").unwrap();
        server.shutdown.stop();
        client.rest();
        drop(client);
        assert_closed(&server.outcome(), 1);
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [expected]);
    }
}

/// The stream grace does not end other work: a handler, a guard, and a client that sends slowly.
#[test]
fn nothing_else_is_closed() {
    let (handlers, handler) = held_handlers();
    let server = Running::of(Server::new(handler).stopped_by(&short_stream_grace()));
    let guard = server.shutdown.token().guard().unwrap();
    let mut busy = server.connect();
    busy.get("/wait");
    handlers.wait_for_call("/wait");
    let mut slow = server.connect();
    slow.send("POST /read HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhe");
    handlers.wait_for_call("/read");
    // A stream beside them shows that the stream grace is over.
    let streams = server.shutdown.token().child();
    let upgraded = Running::of(Server::new(upgrading()).stopped_by(&streams));
    let mut stream = upgraded.connect();
    assert_eq!(stream.send(UPGRADE_HEAD).response().status, 101);
    server.shutdown.stop();
    assert_eq!(stream.end(), End::Eof);
    drop(stream);
    assert_closed(&upgraded.outcome(), 1);

    slow.send("llo");
    assert_eq!(slow.response().text(), "5 bytes");
    handlers.release();
    assert_eq!(busy.response().text(), "done");
    drop(guard);
    // The parent counts the stream of its child.
    assert_closed(&server.outcome(), 1);
}

/// A handler that sees the stop and ends its stream in time is not counted.
#[test]
fn a_stream_that_takes_leave_is_not_counted() {
    let server = Server::new(|request: Request| async move {
        let token = Token::of(&request);
        let farewell = stream::once_future(async move {
            token.stopping().await;
            io::Result::Ok("data: bye\n\n")
        });
        Ok(stream_body(farewell))
    });
    let shutdown = long_grace().linger(Duration::ZERO).stream_grace(PATIENCE);
    let server = Running::of(server.stopped_by(&shutdown));
    let mut client = server.connect();
    client.send(EVENTS).take_to(b"\r\n\r\n").unwrap();
    shutdown.stop();
    let (rest, end) = client.rest();
    assert!(rest.ends_with(b"data: bye\n\n\r\n0\r\n\r\n") && end == End::Eof);
    let outcome = server.outcome();
    assert!(outcome.is_drained() && outcome.streams_closed == 0, "{outcome}");
    assert!(!outcome.to_string().contains("silent"), "{outcome}");
}

/// The handler sees the stop in the lame duck. Its streams have time until the lame duck is over,
/// and new clients are served.
#[test]
fn a_lame_duck_closes_no_stream() {
    let server = server_of_one_event(&short_stream_grace().lame_duck(Duration::MAX));
    let client = listen(&server);
    server.shutdown.stop();
    let late = listen(&server);
    // No event shows that a stream is not closed. The stream grace is over meanwhile.
    client.assert_silent();
    late.assert_silent();
    client.assert_silent();
    assert_eq!(server.shutdown.in_flight(), 2);
    server.shutdown.abort();
    let outcome = server.outcome();
    assert_eq!((outcome.cut.len(), outcome.streams_closed), (2, 0), "{outcome}");
}

/// By default, a silent stream has the whole grace, and is then cut and named.
#[test]
fn without_a_stream_grace_a_silent_stream_is_cut() {
    let shutdown = Shutdown::new().grace(Duration::from_millis(200));
    let server = Running::of(Server::new(upgrading()).stopped_by(&shutdown));
    let mut client: Client = server.connect();
    assert_eq!(client.send(UPGRADE_HEAD).response().status, 101);
    shutdown.stop();
    wait_for_close(server.addr());
    let outcome = server.outcome();
    assert!(outcome.streams_closed == 0 && !outcome.is_drained(), "{outcome}");
    assert!(matches!(outcome.cut[0].kind, WorkKind::Connection { .. }), "{outcome}");
    wait_until("it is gone", || shutdown.in_flight() == 0);
}
