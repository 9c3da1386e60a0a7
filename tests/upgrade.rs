//! Upgraded connections: the bytes that the handler gets, and the effect of a stop (rule S11).
//!
//! async-tungstenite's own client talks to the WebSocket example, and a raw client does if a test
//! needs improper bytes. The other tests have a server in this process, whose other protocol is a
//! plain echo.

mod common;

use std::future::Future;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_tungstenite::tungstenite::protocol::CloseFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use async_tungstenite::tungstenite::{Error, Message};
use async_tungstenite::{WebSocketStream, client_async};
use common::{
    Client, End, PATIENCE, Program, Running, pattern, wait_for_close, wait_until, within_patience,
};
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt, io};
use http_types::headers::UPGRADE;
use http_types::upgrade::Connection;
use rustix::process::Signal;
use smol::Async;
use smol_graceful::{
    DrainEnding, Limits, Phase, Request, Response, Shutdown, Stage, StatusCode, WorkKind,
};

type Socket = WebSocketStream<Async<TcpStream>>;

/// The handshake of RFC 6455 section 1.2, and the answer of the RFC's own server.
const HANDSHAKE: &str = "GET /chat?room=1 HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// `Hello` from a client and from a server (RFC 6455 section 5.7).
const MASKED: [u8; 11] = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
const UNMASKED: [u8; 7] = [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];

/// The longest message that the example takes.
const MAX_MESSAGE: usize = 1024 * 1024;

/// The Close of a server that goes away, with 10 bytes, the code 1001 and a reason.
const AWAY: &[u8] = b"\x88\x0a\x03\xe9stopping";

#[test]
fn messages_come_back() {
    let mut server = Program::example("websocket", &["127.0.0.1:0"]);
    let mut socket = websocket(server.addr);
    for message in [
        Message::text("hello"),
        Message::text("ünïcödé"),
        Message::text(""),
        Message::binary(vec![0, 255, 10, 13]),
        Message::binary(pattern(70_000)),
        Message::binary(pattern(MAX_MESSAGE)),
    ] {
        within_patience(socket.send(message.clone())).unwrap();
        assert_eq!(next(&mut socket), message);
    }
    within_patience(socket.send(Message::Ping("are you there?".into()))).unwrap();
    assert_eq!(next(&mut socket), Message::Pong("are you there?".into()));

    within_patience(socket.close(None)).unwrap();
    assert_eq!(next(&mut socket), Message::Close(None));
    assert!(within_patience(socket.next()).is_none());
    server.wait_for("a client has taken leave");
    server.stop();
}

/// The stream begins with the bytes after the request's head, for any split into packets.
#[test]
fn bytes_right_behind_the_handshake_arrive() {
    let server = Program::example("websocket", &["127.0.0.1:0"]);
    let whole = [HANDSHAKE.as_bytes(), &MASKED, &MASKED].concat();
    for behind in 0..=2 * MASKED.len() {
        let (first, second) = whole.split_at(HANDSHAKE.len() + behind);
        let mut client = server.connect();
        client.send(first);
        let answer = client.response();
        assert_eq!(answer.lines[0], "HTTP/1.1 101 Switching Protocols");
        assert_eq!(answer.header("upgrade").unwrap(), "websocket");
        assert_eq!(answer.header("connection").unwrap(), "upgrade");
        assert_eq!(answer.header("sec-websocket-accept").unwrap(), ACCEPT);
        assert_eq!(answer.header("content-length"), None, "rule W11");
        assert_eq!(answer.header("transfer-encoding"), None, "rule W11");
        client.send(second);
        assert_eq!(client.take(14).unwrap(), [UNMASKED, UNMASKED].concat(), "{behind} behind");
    }
}

/// RFC 6455 section 4.2: only a proper handshake is answered with 101, and every other request gets
/// an error. Its connection goes on as HTTP.
#[test]
fn only_a_proper_handshake_is_answered_with_101() {
    let server = Program::example("websocket", &["127.0.0.1:0"]);
    let upgrade = |fields: &str| HANDSHAKE.replace("Upgrade: websocket\r\n", fields);
    let version = |fields: &str| HANDSHAKE.replace("Sec-WebSocket-Version: 13\r\n", fields);
    let key = |key: &str| HANDSHAKE.replace("dGhlIHNhbXBsZSBub25jZQ==", key);
    let key_line = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (what, request, status) in [
        ("what the RFC shows", HANDSHAKE.to_owned(), 101),
        ("any case", upgrade("upgrade: WebSocket\r\n"), 101),
        ("a list", upgrade("Upgrade: h2c, websocket\r\n"), 101),
        ("several lines", upgrade("Upgrade: h2c\r\nUpgrade: ,\twebsocket ,\r\n"), 101),
        ("another last digit", key("+/+/+/+/+/+/+/+/+/+/+w=="), 101),
        ("no handshake at all", "GET / HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(), 426),
        ("no Upgrade", upgrade(""), 426),
        ("another protocol", upgrade("Upgrade: h2c\r\n"), 426),
        ("a longer name", upgrade("Upgrade: websocket2\r\n"), 426),
        ("not in Connection", HANDSHAKE.replace("Connection: Upgrade\r\n", ""), 426),
        // HTTP/1.0 has no upgrade, so the server ignores the field (RFC 9110 section 7.8).
        ("HTTP/1.0", HANDSHAKE.replace("HTTP/1.1", "HTTP/1.0"), 426),
        ("no version", version(""), 426),
        ("an old version", version("Sec-WebSocket-Version: 8\r\n"), 426),
        ("several versions", version("Sec-WebSocket-Version: 8, 13\r\n"), 426),
        ("two versions", version(&"Sec-WebSocket-Version: 13\r\n".repeat(2)), 426),
        ("POST", HANDSHAKE.replace("GET", "POST"), 405),
        ("PUT", HANDSHAKE.replace("GET", "PUT"), 405),
        ("no key", HANDSHAKE.replace(key_line, ""), 400),
        ("two keys", HANDSHAKE.replace(key_line, &key_line.repeat(2)), 400),
        ("an empty key", key(""), 400),
        ("15 bytes", key("AAAAAAAAAAAAAAAAAAAA"), 400),
        ("17 bytes", key("AAAAAAAAAAAAAAAAAAAAAAA="), 400),
        ("18 bytes", key("AAAAAAAAAAAAAAAAAAAAAAAA"), 400),
        ("19 bytes", key("AAAAAAAAAAAAAAAAAAAAAAAAAA=="), 400),
        ("bits behind the last byte", key("dGhlIHNhbXBsZSBub25jZR=="), 400),
        ("the other base64", key("_-_-_-_-_-_-_-_-_-_-_A=="), 400),
        ("padding inside", key("dGhlIHNhbX==ZSBub25jZQ=="), 400),
        ("no padding", key("dGhlIHNhbXBsZSBub25jZQ"), 400),
        ("a body", with_body(HANDSHAKE), 400),
    ] {
        let mut client = server.connect();
        let answer = client.send(&request).response();
        assert_eq!(answer.status, status, "{what}");
        let field = |name: &str| answer.header(name).unwrap_or_default();
        assert_eq!(field("allow"), if status == 405 { "GET" } else { "" }, "{what}");
        assert_eq!(field("sec-websocket-accept").is_empty(), status != 101, "{what}");
        if status == 426 {
            assert_eq!((&*field("upgrade"), &*field("sec-websocket-version")), ("websocket", "13"));
        }
        match status {
            101 => assert_eq!(client.send(MASKED).take(7).unwrap(), UNMASKED, "{what}"),
            _ if answer.says_close() => assert_eq!(client.end(), End::Eof, "{what}"),
            _ => {
                let connection = if status == 426 { "Upgrade" } else { "" };
                assert_eq!(field("connection"), connection, "{what}");
                assert_eq!(client.send(HANDSHAKE).response().status, 101, "{what}");
            }
        }
    }
    // HEAD has no body in its answer.
    let answer = server.connect().send(HANDSHAKE.replace("GET", "HEAD")).response_to_head();
    assert_eq!((answer.status, answer.header("allow").as_deref()), (405, Some("GET")));
}

/// RFC 6455 sections 5 to 8: a client that makes a mistake gets a Close with the code for it, and
/// the end of the connection. The end is not a reset, which might overtake the Close.
#[test]
fn a_mistake_is_answered_with_a_close() {
    let server = Program::example("websocket", &["127.0.0.1:0"]);
    for (what, mistake, code) in [
        ("not masked", UNMASKED.to_vec(), 1002),
        ("reserved bit 1", frame(0xc1, b"x"), 1002),
        ("reserved bit 2", frame(0xa1, b"x"), 1002),
        ("reserved bit 3", frame(0x91, b"x"), 1002),
        ("no such message", frame(0x83, b"x"), 1002),
        ("no such control frame", frame(0x8b, b"x"), 1002),
        ("a Ping in fragments", frame(0x09, b"x"), 1002),
        ("a Close in fragments", frame(0x08, b""), 1002),
        ("a long Ping", frame(0x89, &[0; 126]), 1002),
        ("a fragment of nothing", frame(0x80, b"x"), 1002),
        ("a message in another", [frame(0x01, b"x"), frame(0x81, b"x")].concat(), 1002),
        ("a Close with half a code", frame(0x88, &[3]), 1002),
        ("a Close with no proper code", frame(0x88, &close(999)), 1002),
        ("a Close with a code that is not sent", frame(0x88, &close(1005)), 1002),
        ("a text of Latin 1", frame(0x81, b"\xfc"), 1007),
        ("a text that ends too early", frame(0x81, b"\xc3"), 1007),
        ("half a character", [frame(0x01, b"\xc3"), frame(0x80, b"(")].concat(), 1007),
        ("a reason of Latin 1", frame(0x88, b"\x03\xe8\xfc"), 1007),
        ("too long, before it comes", b"\x82\xff\0\0\0\0\0\x10\0\x01\0\0\0\0".to_vec(), 1009),
        ("too long, and sent", frame(0x82, &pattern(4 * MAX_MESSAGE)), 1009),
        (
            "too long in fragments",
            [frame(0x02, &pattern(MAX_MESSAGE)), frame(0x80, b"x")].concat(),
            1009,
        ),
    ] {
        let mut client = server.connect();
        assert_eq!(client.send(HANDSHAKE).response().status, 101);
        // Bytes before the mistake are answered, also if they come in the same packet.
        client.send([&MASKED, &*mistake].concat());
        assert_eq!(client.take(7).unwrap(), UNMASKED, "{what}");
        let (head, code_sent) = (client.take(2).unwrap(), client.take(2).unwrap());
        assert_eq!((head[0], code_sent), (0x88, close(code).to_vec()), "{what}");
        client.take(usize::from(head[1]) - 2).unwrap();
        assert_eq!(client.end(), End::Eof, "{what}");
    }
}

/// RFC 6455 section 5.5.1: the answer to a Close has the same code and the same reason.
#[test]
fn a_close_is_answered_with_its_code() {
    let server = Program::example("websocket", &["127.0.0.1:0"]);
    for payload in [
        &[][..],
        &close(1000),
        &close(1001),
        &close(3000),
        &close(4999),
        &[&close(1000)[..], "tschüß".as_bytes()].concat(),
    ] {
        let mut client = server.connect();
        assert_eq!(client.send(HANDSHAKE).response().status, 101);
        let answer = [&[0x88, payload.len() as u8], payload].concat();
        client.send(frame(0x88, payload));
        assert_eq!(client.take(answer.len()).unwrap(), answer);
        assert_eq!(client.end(), End::Eof);
    }
}

/// RFC 6455 section 5.4: a client may cut a character into fragments, and send a Ping between them.
#[test]
fn fragments_come_back_as_one_message() {
    let server = Program::example("websocket", &["127.0.0.1:0"]);
    let mut client = server.connect();
    assert_eq!(client.send(HANDSHAKE).response().status, 101);
    client.send([frame(0x01, b"\xc3"), frame(0x89, b"?"), frame(0x80, b"\xbc")].concat());
    assert_eq!(client.take(7).unwrap(), b"\x8a\x01?\x81\x02\xc3\xbc");
}

/// Rules S10, S11: a handler sees the stop and ends properly, which does not count as a cut.
#[test]
fn a_stop_takes_leave_of_every_client() {
    let mut server = Program::example("websocket", &["127.0.0.1:0"]);
    let mut sockets: Vec<_> = (0..20).map(|_| websocket(server.addr)).collect();
    for socket in &mut sockets {
        within_patience(socket.send(Message::text("hello"))).unwrap();
        assert_eq!(next(socket), Message::text("hello"));
    }
    server.signal(Signal::TERM);
    let away = CloseFrame { code: CloseCode::Away, reason: "stopping".into() };
    for socket in &mut sockets {
        assert_eq!(next(socket), Message::Close(Some(away.clone())));
    }
    // The drain waits until each has answered.
    assert!(server.is_running());
    for socket in &mut sockets {
        assert!(within_patience(socket.next()).is_none(), "no error, and nothing more");
    }
    assert_eq!(server.exit_code(), 0);
    let log = server.log();
    assert!(log.contains("drained in "), "{log}");
}

/// Rule S8: a handshake that has begun is finished, and its handler sees the stop at once.
#[test]
fn a_handshake_that_has_begun_is_finished() {
    let mut server = Program::example("websocket", &["127.0.0.1:0"]);
    let (first, second) = HANDSHAKE.split_at(30);
    let mut client = server.connect();
    client.send(first);
    server.signal(Signal::TERM);
    wait_for_close(server.addr);
    assert_eq!(client.send(second).response().status, 101);
    assert_eq!(client.take(12).unwrap(), AWAY);
    // The client answers with a Close, masked with zeros.
    client.send([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]);
    assert_eq!(client.end(), End::Eof);
    assert_eq!(server.exit_code(), 0, "{server}");
}

/// Rule S10: no client holds up the stop until the end of the grace, which would be a cut and exit
/// code 1. In each case, the handler waits for another event.
#[test]
fn a_client_that_does_not_go_on_does_not_hold_up_the_stop() {
    let mut server = Program::example("websocket", &["127.0.0.1:0"]);
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.send(HANDSHAKE).response().status, 101);
    }
    let [in_a_frame, in_a_message, mistaken, no_echo, no_pong] = &mut clients[..] else {
        unreachable!()
    };
    for (client, half) in [(in_a_frame, &MASKED[..8]), (in_a_message, &frame(0x01, b"hel"))] {
        client.send([&MASKED, half].concat());
        assert_eq!(client.take(7).unwrap(), UNMASKED);
    }
    assert_eq!(mistaken.send(UNMASKED).take(4).unwrap(), b"\x88\x02\x03\xea");
    send_until_full(no_echo, &frame(0x82, &pattern(64 * 1024)));
    send_until_full(no_pong, &frame(0x89, &[0; 125]).repeat(500));

    server.signal(Signal::TERM);
    for client in &mut clients[..2] {
        assert_eq!(client.take(12).unwrap(), AWAY);
    }
    assert_eq!(server.exit_code(), 0, "{server}");
    let log = server.log();
    assert!(log.contains("drained in "), "{log}");
}

/// The stop interrupts the wait for a slow client, but not the echo. The client gets the whole
/// echo, and then the Close.
#[test]
fn an_echo_that_has_begun_is_finished() {
    let mut server = Program::example("websocket", &["127.0.0.1:0"]);
    let mut client = server.connect();
    assert_eq!(client.send(HANDSHAKE).response().status, 101);
    let message = pattern(64 * 1024);
    send_until_full(&mut client, &frame(0x82, &message));
    server.signal(Signal::TERM);
    wait_for_close(server.addr);
    let echo = [b"\x82\x7f\0\0\0\0\0\x01\0\0", &*message].concat();
    let mut echoes = 0;
    loop {
        let head = client.take(AWAY.len()).unwrap();
        if head == AWAY {
            break;
        }
        let tail = client.take(echo.len() - head.len()).unwrap();
        assert!([head, tail].concat() == echo, "behind {echoes} echoes");
        echoes += 1;
    }
    assert!(echoes > 0);
    drop(client);
    assert_eq!(server.exit_code(), 0, "{server}");
}

/// Rule S14: a second signal cuts the client, and the outcome names it.
#[test]
fn a_second_signal_cuts_a_client_that_does_not_take_leave() {
    let mut server = Program::example("websocket", &["127.0.0.1:0"]);
    let mut client = server.connect();
    assert_eq!(client.send(HANDSHAKE).response().status, 101);
    server.signal(Signal::TERM);
    assert_eq!(client.take(12).unwrap(), AWAY);
    common::pass_repeat_window();
    server.signal(Signal::TERM);
    assert_eq!(client.end(), End::Eof);
    assert_eq!(server.exit_code(), 1);
    let log = server.log();
    let outcome = log.lines().find(|line| line.contains("forced to end")).expect(&log);
    assert!(outcome.contains("1 cut: 127.0.0.1:"), "{outcome}");
    assert!(outcome.contains(" GET /chat?room=1 (upgraded, "), "{outcome}");
}

/// Rule S11: an upgraded connection counts and lives until it is dropped.
#[test]
fn the_drain_waits_for_an_upgraded_connection() {
    let server = Running::new(|_| switch(echo));
    let mut client = upgraded(&server);
    server.shutdown.stop();
    only_this_is_left(&server);
    for _ in 0..3 {
        assert_eq!(client.send("still here").take(10).unwrap(), b"still here");
        assert_eq!((server.shutdown.phase(), server.shutdown.in_flight()), (Phase::Draining, 1));
        assert!(server.is_serving());
    }
    // The echo ends with its client, and drops the connection.
    assert_eq!(client.half_close().end(), End::Eof);
    assert!(server.outcome().is_drained());
    assert_eq!(server.shutdown.in_flight(), 0);
}

/// Rule S13: at the deadline the outcome names an upgraded connection.
#[test]
fn at_the_deadline_it_is_cut_and_named() {
    let shutdown = Shutdown::new().grace(Duration::from_millis(50));
    cut(&shutdown, DrainEnding::TimedOut, |server| server.shutdown.stop());
}

#[test]
fn an_abort_cuts_and_names_it() {
    cut(&Shutdown::new(), DrainEnding::Forced, |server| server.shutdown.abort());
}

/// Ends a server by `end` while its one client is upgraded, and checks both sides.
fn cut(shutdown: &Shutdown, ending: DrainEnding, end: impl Fn(&Running)) {
    let (send, told) = mpsc::channel();
    let server = Running::stopped_by(shutdown, move |_| {
        let send = send.clone();
        // This handler does not look at the stop.
        switch(async move |mut connection| {
            let echoed = echo_once(&mut connection).await;
            assert_eq!(echoed.unwrap(), 5);
            send.send(echo_once(&mut connection).await).unwrap();
        })
    });
    let mut client = upgraded(&server);
    // An echo shows that the handler has the stream, which the 101 does not.
    assert_eq!(client.send("hello").take(5).unwrap(), b"hello");
    end(&server);
    let outcome = server.outcome();
    assert_eq!(outcome.ending, ending, "{outcome}");
    let [cut] = outcome.cut.as_slice() else { panic!("{outcome}") };
    let WorkKind::Connection { stage, method, target: path, peer } = &cut.kind else {
        panic!("{outcome}")
    };
    assert_eq!((*stage, method.as_str(), path.as_str()), (Stage::Upgraded, "GET", "/chat?room=1"));
    assert_eq!(peer.to_string(), client.stream.local_addr().unwrap().to_string());
    assert_eq!(client.end(), End::Eof);
    // The owner of the stream sees its end or an error at once.
    assert_eq!(told.recv_timeout(PATIENCE).unwrap().unwrap_or(0), 0);
}

/// A client that has not asked for an upgrade gets a 400, because it would not understand a 101.
#[test]
fn a_101_that_the_client_did_not_ask_for_is_a_400() {
    let (send, told) = mpsc::channel();
    let server = Running::new(move |_| {
        let send = send.clone();
        async move {
            let mut response = Response::new(StatusCode::SwitchingProtocols);
            let upgraded = response.recv_upgrade().await;
            smol::spawn(async move { send.send(upgraded.await.is_some()).unwrap() }).detach();
            Ok(response)
        }
    });
    for (what, request) in [
        ("no upgrade", "GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("not in Connection", HANDSHAKE.replace("Connection: Upgrade\r\n", "")),
        ("not in Connection", HANDSHAKE.replace("Connection: Upgrade", "Connection: keep-alive")),
        ("no Upgrade field", HANDSHAKE.replace("Upgrade: websocket\r\n", "")),
        ("HTTP/1.0", HANDSHAKE.replace("HTTP/1.1", "HTTP/1.0")),
        ("a long body", HANDSHAKE.replace("\r\n\r\n", "\r\nContent-Length: 300000\r\n\r\n")),
        (
            "a body that has to be asked for",
            HANDSHAKE.replace("\r\n\r\n", "\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"),
        ),
    ] {
        let mut client = server.connect();
        let answer = client.send(&request).response();
        let told_client = (answer.status, answer.text(), answer.says_close());
        assert_eq!(told_client, (400, "Bad Request\n".to_owned(), true), "{what}");
        assert!(!told.recv_timeout(PATIENCE).unwrap(), "{what}: there is no stream to be had");
        assert_eq!(client.end(), End::Eof, "{what}");
    }
    // The other protocol begins after the body, which may come late (RFC 9110 section 7.8).
    for cut in [0, 3, 5] {
        let mut client = server.connect();
        let request = with_body(&HANDSHAKE.replace("GET", "POST"));
        let (now, later) = request.split_at(request.len() - cut);
        client.send(now).send(later);
        assert_eq!(client.response().status, 101, "{cut}");
        assert!(told.recv_timeout(PATIENCE).unwrap(), "{cut}");
        assert_eq!(client.end(), End::Eof);
    }
    // A client that has asked gets a 101, also with a list and in any case.
    for connection in ["keep-alive, Upgrade", "UPGRADE"] {
        let request =
            HANDSHAKE.replace("Connection: Upgrade", &format!("Connection: {connection}"));
        let mut client = server.connect();
        assert_eq!(client.send(request).response().status, 101, "{connection}");
        assert!(told.recv_timeout(PATIENCE).unwrap(), "{connection}");
        // The task has dropped the stream.
        assert_eq!(client.end(), End::Eof);
    }
    wait_until("the end of all", || server.shutdown.in_flight() == 0);
}

/// Earlier requests on the same connection are answered first, and bytes after the upgrade are not
/// HTTP.
#[test]
fn an_upgrade_ends_a_pipeline() {
    let server = Running::new(async |request: Request| {
        if request.header(UPGRADE).is_some() { switch(echo).await } else { Ok("okay".into()) }
    });
    let mut client = server.connect();
    let get = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    client.send([get, get, HANDSHAKE, get].concat());
    assert_eq!(client.response().text(), "okay");
    assert_eq!(client.response().text(), "okay");
    assert_eq!(client.response().status, 101);
    assert_eq!(client.take(get.len()).unwrap(), get.as_bytes(), "echoed, not answered");
    assert_eq!(client.half_close().end(), End::Eof);
}

/// The limits of HTTP for idle and slow clients do not hold after an upgrade.
#[test]
fn it_may_be_silent() {
    let short = Duration::from_millis(50);
    let server = Running::with(
        Limits::default().head_timeout(short).idle_timeout(short).stall_timeout(short),
        |_| switch(echo),
    );
    let mut client = upgraded(&server);
    // These clients come later, and their idle timeout is over already.
    for _ in 0..3 {
        assert_eq!(server.connect().end(), End::Eof);
        assert_eq!(server.connect().send("GET /").response().status, 408);
    }
    assert_eq!(client.send("still here").take(10).unwrap(), b"still here");
    wait_until("all but one have ended", || server.shutdown.in_flight() == 1);
}

/// Many bytes go in both directions, through a socket that is often full.
#[test]
fn much_goes_through() {
    let server = Running::new(|_| switch(echo));
    let mut client = upgraded(&server);
    let sent = pattern(16 * 1024 * 1024);
    let mut writer = Client::from(client.stream.try_clone().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| writer.send(&sent).half_close());
        let (received, end) = client.rest();
        assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
        assert_eq!(end, End::Eof);
    });
    assert!(server.stop().is_drained());
}

/// After any end, an upgraded connection does not count any more.
#[test]
fn nothing_stays_in_flight() {
    let server = Running::new(|_| switch(echo));
    let in_flight = || server.shutdown.in_flight();
    let mut clients: Vec<_> = (0..30).map(|_| upgraded(&server)).collect();
    assert_eq!(in_flight(), 30);
    clients.drain(..10).for_each(Client::reset);
    wait_until("resets", || in_flight() == 20);
    clients.drain(..10).for_each(drop);
    wait_until("closes", || in_flight() == 10);
    for mut client in clients {
        assert_eq!(client.half_close().end(), End::Eof);
    }
    wait_until("half-closes", || in_flight() == 0);
    assert!(server.stop().is_drained());
}

/// If the handler does not take the stream, the connection ends after the 101.
#[test]
fn a_stream_that_nobody_takes_is_closed() {
    let server = Running::new(async |_| {
        let mut response = Response::new(StatusCode::SwitchingProtocols);
        drop(response.recv_upgrade().await);
        Ok(response)
    });
    let mut client = server.connect();
    assert_eq!(client.send(HANDSHAKE).response().status, 101);
    assert_eq!(client.end(), End::Eof);
    wait_until("its end", || server.shutdown.in_flight() == 0);
}

/// The stream can be kept outside of the handler's task and of any executor.
#[test]
fn it_can_be_kept_anywhere() {
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let server = Running::new(move |_| {
        let keep = keep.clone();
        switch(async move |connection| *keep.lock().unwrap() = Some(connection))
    });
    let mut client = upgraded(&server);
    wait_until("the stream", || kept.lock().unwrap().is_some());
    let mut connection = kept.lock().unwrap().take().unwrap();
    client.send("hello");
    assert_eq!(within_patience(echo_once(&mut connection)).unwrap(), 5);
    assert_eq!(client.take(5).unwrap(), b"hello");
    server.shutdown.stop();
    only_this_is_left(&server);
    // After a half-close of the server, the client can still send.
    within_patience(connection.close()).unwrap();
    assert_eq!(client.end(), End::Eof);
    client.send("bye").half_close();
    let mut rest = String::new();
    within_patience(connection.read_to_string(&mut rest)).unwrap();
    assert_eq!(rest, "bye");
    assert!(server.is_serving());
    drop(connection);
    assert!(server.outcome().is_drained());
}

/// Asserts that the drain is under way, because the listener is closed, and waits for one
/// connection.
fn only_this_is_left(server: &Running) {
    wait_for_close(server.addr());
    wait_until("the end of all others", || server.shutdown.in_flight() == 1);
}

/// Sends `bytes` again and again, and reads nothing, until the server takes no more because it
/// waits for this client to read. A very busy machine may end this too early, which only makes the
/// test easier.
fn send_until_full(client: &mut Client, bytes: &[u8]) {
    client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    // This is far more than the kernel's buffers for both directions.
    for _ in 0..256 * 1024 * 1024 / bytes.len() {
        if client.stream.write_all(bytes).is_err() {
            return;
        }
    }
    panic!("the server takes everything from a client that never reads");
}

/// Returns a client's frame, masked with zeros, with the first byte `first`.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u64;
    let mut frame = vec![first];
    match length {
        0..126 => frame.push(0x80 | length as u8),
        126..0x1_0000 => frame.extend([&[0x80 | 126], &length.to_be_bytes()[6..]].concat()),
        _ => frame.extend([&[0x80 | 127], &length.to_be_bytes()[..]].concat()),
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Returns the content of a Close with this code and without a reason.
fn close(code: u16) -> [u8; 2] {
    code.to_be_bytes()
}

/// Answers 101 and runs `task` on the stream.
async fn switch<F>(
    task: impl FnOnce(Connection) -> F + Send + 'static,
) -> http_types::Result<Response>
where
    F: Future<Output = ()> + Send,
{
    let mut response = Response::new(StatusCode::SwitchingProtocols);
    response.insert_header(UPGRADE, "echo");
    let upgraded = response.recv_upgrade().await;
    let task = async move { task(upgraded.await.unwrap()).await };
    smol::spawn(task).detach();
    Ok(response)
}

/// Runs the other protocol, which is an echo until the client half-closes.
async fn echo(mut connection: Connection) {
    while echo_once(&mut connection).await.is_ok_and(|n| n > 0) {}
}

async fn echo_once(connection: &mut Connection) -> io::Result<usize> {
    let mut bytes = vec![0; 16 * 1024];
    let n = connection.read(&mut bytes).await?;
    connection.write_all(&bytes[..n]).await?;
    Ok(n)
}

/// Returns a client whose connection was upgraded.
fn upgraded(server: &Running) -> Client {
    let mut client = server.connect();
    let answer = client.send(HANDSHAKE).response();
    assert_eq!((answer.status, answer.header("upgrade").as_deref()), (101, Some("echo")));
    client
}

fn websocket(addr: SocketAddr) -> Socket {
    let socket = async {
        let stream = Async::<TcpStream>::connect(addr).await?;
        Ok::<_, Error>(client_async("ws://test/chat", stream).await?.0)
    };
    within_patience(socket).unwrap()
}

fn next(socket: &mut Socket) -> Message {
    within_patience(socket.next()).expect("the connection has ended").unwrap()
}

fn with_body(request: &str) -> String {
    request.replace("Host: test\r\n", "Host: test\r\nContent-Length: 5\r\n") + "hello"
}
