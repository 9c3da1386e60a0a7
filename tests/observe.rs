//! The observer of a server (rules O1 and O2), over real sockets. The observer gets each exchange
//! once, after its end, with the bytes that were on the wire, and with the ending.

mod common;

use std::io;
use std::pin::Pin;
use std::sync::mpsc::{self, Receiver};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use common::{
    Answer, BIG, End, Log, PATIENCE, Pipes, Running, StoppedBy, UPGRADE_HEAD, assert_drains, case,
    handler, held_handlers, long_grace, short_linger, tcp, text, upgrading, wait_until,
};
use futures_lite::io::BufReader;
use futures_lite::{AsyncRead, StreamExt, stream};
use smol_graceful::{
    Address, Body, Connection, Exchange, ExchangeEnding, Limits, OpenWork, Peer, Request, Response,
    Server, Shutdown, Stage, StatusCode, Version, WorkKind, stream_body,
};

use ExchangeEnding::{Answered, Cut, Panicked, Refused, Reset, Upgraded};

/// A report of an exchange.
#[derive(Debug, Clone)]
struct Report {
    peer: Peer,
    listener: Option<Address>,
    is_https: bool,
    method: String,
    target: String,
    version: Option<Version>,
    agent: Option<String>,
    status: Option<u16>,
    received: u64,
    sent: u64,
    body_sent: u64,
    began: SystemTime,
    first_byte: Option<Duration>,
    took: Duration,
    ending: ExchangeEnding,
    route: Option<&'static str>,
    tenant: Option<&'static str>,
}

/// A route's pattern, which a handler attaches for the observer.
struct Route(&'static str);

/// A value that a wrapper attaches.
struct Tenant(&'static str);

impl Report {
    fn new(exchange: &Exchange) -> Self {
        Self {
            peer: exchange.peer(),
            listener: exchange.listener().cloned(),
            is_https: exchange.is_https(),
            method: exchange.method().to_owned(),
            target: exchange.target().to_owned(),
            version: exchange.version(),
            agent: exchange.header("user-agent").map(str::to_owned),
            status: exchange.status().map(u16::from),
            received: exchange.received(),
            sent: exchange.sent(),
            body_sent: exchange.body_sent(),
            began: exchange.began(),
            first_byte: exchange.first_byte(),
            took: exchange.took(),
            ending: exchange.ending(),
            route: exchange.extension().map(|route: &Route| route.0),
            tenant: exchange.connection().map(|tenant: &Tenant| tenant.0),
        }
    }

    fn line(&self) -> (&str, &str, Option<u16>, ExchangeEnding) {
        (&self.method, &self.target, self.status, self.ending)
    }
}

/// The exchanges of a server, in the order of their reports.
struct Reports(Receiver<Report>);

impl Reports {
    fn of(server: Server) -> (Self, Server) {
        let (send, seen) = mpsc::channel();
        let observe =
            move |exchange: &Exchange| send.send(Report::new(exchange)).unwrap_or_default();
        (Self(seen), server.observe(observe))
    }

    fn next(&self) -> Report {
        self.0.recv_timeout(PATIENCE).expect("no exchange was reported")
    }

    /// Asserts that nothing else is reported. The server must have ended.
    fn assert_no_more(&self) {
        assert!(self.0.try_recv().is_err());
    }
}

fn observed(handler: impl Fn(Request) -> Answer + Send + Sync + 'static) -> (Reports, Running) {
    observed_with(Limits::default(), &long_grace(), handler)
}

fn observed_with(
    limits: Limits,
    shutdown: &Shutdown,
    handler: impl Fn(Request) -> Answer + Send + Sync + 'static,
) -> (Reports, Running) {
    let (seen, server) = Reports::of(Server::new(handler).limits(limits));
    (seen, Running::of(server.stopped_by(shutdown)))
}

/// Sends `request` alone on a connection, and returns the answer, the end and the report.
fn exchange(server: &Running, seen: &Reports, request: &str) -> (Vec<u8>, End, Report) {
    let mut client = server.connect();
    client.send(request).half_close();
    let (answer, end) = client.rest();
    (answer, end, seen.next())
}

/// Returns a handler whose answer depends on the path, for the cases of the tables.
fn handler_by_path() -> impl Fn(Request) -> Answer + Send + Sync + 'static {
    |mut request| {
        Box::pin(async move {
            Ok(match request.url().path() {
                "/empty" => Response::new(StatusCode::NoContent),
                "/chunks" => {
                    stream_body(stream::iter(["one", "two", "three"].map(Ok::<_, io::Error>)))
                        .into()
                }
                "/long" => "x".repeat(100_000).into(),
                "/length" => request.body_bytes().await?.len().to_string().into(),
                "/error" => return Err(smol_graceful::Error::from_str(503, "not now")),
                "/routed" => {
                    let mut response = Response::from("a user");
                    response.ext_mut().insert(Route("/users/{id}"));
                    response
                }
                "/fails" => failing_body(0).into(),
                "/fails-late" => failing_body(100_000).into(),
                _ => "okay".into(),
            })
        })
    }
}

/// Returns a body that fails after this number of reads.
fn failing_body(reads: usize) -> Body {
    struct Fails(usize);

    impl AsyncRead for Fails {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            if self.0 == 0 {
                return Poll::Ready(Err(io::Error::other("as the client wished")));
            }
            self.0 -= 1;
            buf[..5].copy_from_slice(b"begin");
            Poll::Ready(Ok(5))
        }
    }

    Body::from_reader(BufReader::new(Fails(reads)), None)
}

/// Returns the number of bytes of a response after its head.
fn body_length(answer: &[u8]) -> u64 {
    let head = memchr::memmem::find(answer, b"\r\n\r\n").expect("a head") + 4;
    (answer.len() - head) as u64
}

// ── Exchanges that end well ─────────────────────────────────────────────────────────────────

#[test]
fn an_answer_is_reported_with_everything_that_is_known() {
    let (seen, server) = observed_with(Limits::default(), &short_linger(), handler_by_path());
    let mut client = server.connect();
    let before = SystemTime::now();
    let request =
        "GET /a?b=c HTTP/1.1\r\nHost: x\r\nUser-Agent: t\u{e9}st\r\nuser-agent: 2\r\n\r\n";
    client.send(request);
    assert_eq!(client.response().text(), "okay");
    let one = seen.next();
    assert_eq!(one.line(), ("GET", "/a?b=c", Some(200), Answered));
    assert_eq!(one.version, Some(Version::Http1_1));
    assert_eq!(one.agent.as_deref(), Some("t%C3%A9st"));
    assert_eq!(one.peer, Peer::from(client.stream.local_addr().unwrap()));
    assert_eq!(one.listener.as_ref(), Some(&server.addresses[0]));
    assert_eq!((one.is_https, one.route, one.tenant), (false, None, None));
    assert_eq!(one.received, request.len() as u64);
    assert_eq!(one.body_sent, 4);
    assert!(one.began >= before && one.began <= SystemTime::now());
    assert!(one.first_byte.is_some_and(|first_byte| first_byte <= one.took));

    client.get("/routed");
    assert_eq!(client.response().text(), "a user");
    assert_eq!(seen.next().route, Some("/users/{id}"));
    assert!(server.stop().is_drained());
    seen.assert_no_more();
}

/// Each case has the request and the status. The bytes are those on the wire.
#[test]
fn the_bytes_are_those_on_the_wire() {
    let (seen, server) = observed(handler_by_path());
    let chunked = "POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3;ext=1\r\nabc\r\n0\r\nTrailer-Field: y\r\n\r\n";
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("GET /empty HTTP/1.1\r\nHost: x\r\n\r\n", 204),
        ("GET /chunks HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("GET /chunks HTTP/1.0\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\n\r\n", 200),
        ("GET /long HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 200),
        // The handler does not read this body.
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 200),
        (chunked, 200),
        ("GET /error HTTP/1.1\r\nHost: x\r\n\r\n", 503),
        // The handler's response fails at its beginning, so the server sends another one.
        ("GET /fails HTTP/1.1\r\nHost: x\r\n\r\n", 500),
    ] {
        case(request, || {
            let (answer, end, one) = exchange(&server, &seen, request);
            assert_eq!((end, one.status, one.ending), (End::Eof, Some(status), Answered));
            assert_eq!(one.sent, answer.len() as u64, "{}", text(&answer));
            assert_eq!(one.body_sent, body_length(&answer));
            assert_eq!(one.received, request.len() as u64);
            assert_eq!(one.method, request.split_ascii_whitespace().next().unwrap());
            let is_1_0 = request.contains("HTTP/1.0");
            let version = if is_1_0 { Version::Http1_0 } else { Version::Http1_1 };
            assert_eq!(one.version, Some(version));
        });
    }
}

#[test]
fn a_100_continue_is_not_part_of_the_response() {
    let (seen, server) = observed(handler_by_path());
    let mut client = server.connect();
    let head =
        "POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    client.send(head);
    assert_eq!(client.line().unwrap(), "HTTP/1.1 100 Continue");
    client.line().unwrap();
    client.send("hello").half_close();
    let answer = client.rest().0;
    let one = seen.next();
    assert_eq!((one.sent, one.body_sent), (answer.len() as u64, 1));
    assert_eq!(one.received, head.len() as u64 + 5);
    assert_eq!(one.status, Some(200));
}

/// Responses gather (rule W10), and each is reported with its own bytes.
#[test]
fn requests_that_do_not_wait_are_reported_in_their_order() {
    let (seen, server) = observed(handler_by_path());
    let requests: Vec<_> = (0..50)
        .map(|n| {
            let path = if n % 10 == 0 { "long".to_owned() } else { n.to_string() };
            format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n")
        })
        .collect();
    let mut client = server.connect();
    client.send(requests.concat()).half_close();
    let (answers, end) = client.rest();
    assert_eq!(end, End::Eof);
    let mut sent = 0;
    for request in &requests {
        let one = seen.next();
        assert_eq!(Some(&*one.target), request.split(' ').nth(1));
        assert_eq!((one.received, one.ending), (request.len() as u64, Answered));
        assert!(one.first_byte.is_some_and(|first_byte| first_byte <= one.took));
        let answer = &answers[sent..sent + one.sent as usize];
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", text(answer));
        assert_eq!(one.body_sent, body_length(answer));
        sent += answer.len();
    }
    assert_eq!(sent, answers.len());
}

#[test]
fn an_upgrade_is_reported_when_the_other_protocol_has_ended() {
    let (seen, server) = observed(upgrading());
    let mut client = server.connect();
    client.send(UPGRADE_HEAD).send("first");
    let head = client.take_to(b"\r\n\r\n").unwrap();
    assert_eq!(client.take(5).unwrap(), b"first");
    client.send("second");
    assert_eq!(client.take(6).unwrap(), b"second");
    seen.assert_no_more();
    client.half_close();
    assert_eq!(client.end(), End::Eof);
    let one = seen.next();
    assert_eq!(one.line(), ("GET", "/", Some(101), Upgraded));
    assert_eq!(one.received, (UPGRADE_HEAD.len() + 11) as u64);
    assert_eq!((one.sent, one.body_sent), (head.len() as u64 + 11, 11));
}

// ── Requests that no handler sees ───────────────────────────────────────────────────────────

/// Each case has the request, the status, and the known parts of method, target and version.
#[test]
fn what_no_handler_sees_is_reported() {
    let limits = Limits::default().head_bytes(300).headers(5).body_bytes(Some(10));
    let (seen, server) = observed_with(limits, &long_grace(), |_| unreachable!("it is refused"));
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(300));
    let many = format!("GET /many HTTP/1.1\r\n{}", "a: b\r\n".repeat(6));
    let (v10, v11, v20) = (Some(Version::Http1_0), Some(Version::Http1_1), Some(Version::Http2_0));
    for (request, status, method, target, version) in [
        ("nonsense\r\n\r\n", 400, "nonsense", "", None),
        ("\u{1}\u{2} \u{3}\r\n\r\n", 400, "\u{fffd}\u{fffd}", "\u{fffd}", None),
        ("GET / HTTP/1.1\r\n\r\n", 400, "GET", "/", v11),
        ("GET /a/../b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "GET", "/a/../b", v11),
        ("GET /half HTTP/1.1\r\nHost: x\r\n", 400, "GET", "/half", v11),
        ("GET /ha", 400, "GET", "/ha", None),
        ("POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n", 413, "POST", "/p", v11),
        (&long, 414, "GET", &long[4..305], v11),
        ("GET / HTTP/1.1\r\nHost: x\r\nExpect: more\r\n\r\n", 417, "GET", "/", v11),
        (&many, 431, "GET", "/many", v11),
        ("BREW /pot HTTP/1.0\r\n\r\n", 501, "BREW", "/pot", v10),
        ("get /low HTTP/1.1\r\nHost: x\r\n\r\n", 501, "get", "/low", v11),
        ("PRI * HTTP/2.0\r\n\r\n", 505, "PRI", "*", v20),
    ] {
        case(request, || {
            let (answer, _, one) = exchange(&server, &seen, request);
            assert_eq!(
                (one.line(), one.version),
                ((method, target, Some(status), Refused), version)
            );
            assert_eq!(one.sent, answer.len() as u64);
            assert_eq!(one.body_sent, body_length(&answer));
            assert!(one.received > 0 && one.received <= request.len() as u64);
        });
    }
}

#[test]
fn a_head_that_does_not_come_in_time_is_reported() {
    let limits = Limits::default().head_timeout(Duration::from_millis(50));
    let (seen, server) = observed_with(limits, &long_grace(), handler());
    let mut client = server.connect();
    client.send("GET /slow HTTP/1.1\r\nUser-Agent: x\r\n");
    assert_eq!(client.response().status, 408);
    let one = seen.next();
    assert_eq!(one.line(), ("GET", "/slow", Some(408), Refused));
    assert_eq!((one.agent, one.received), (None, 35));
}

#[test]
fn what_is_no_request_is_not_reported() {
    let (seen, server) = observed_with(Limits::default(), &short_linger(), handler());
    for bytes in ["", "\r\n", "\r\n\r\n"] {
        let mut client = server.connect();
        client.send(bytes).half_close();
        assert_eq!(client.end(), End::Eof);
    }
    let mut idle = server.connect();
    assert_eq!(idle.get("/now").response().text(), "now");
    server.connect().reset();
    assert!(server.stop().is_drained());
    assert_eq!(idle.end(), End::Eof);
    assert_eq!(seen.next().line(), ("GET", "/now", Some(200), Answered));
    seen.assert_no_more();
}

// ── Exchanges that break ────────────────────────────────────────────────────────────────────

/// Rule S17: a panic affects its own client alone, and the observer gets the exchange.
#[test]
fn a_panic_is_reported() {
    let (seen, server) = observed(handler());
    for path in ["/panic", "/panic-in-body", "/panic-in-big-body"] {
        let mut client = server.connect();
        client.get(path);
        let (answer, end) = client.rest();
        let one = seen.next();
        // The big body has begun to be sent, so its client must not take it for whole.
        let (status, expected) = match path {
            "/panic-in-big-body" => (200, End::Reset),
            _ => (500, End::Eof),
        };
        assert_eq!(one.line(), ("GET", path, Some(status), Panicked));
        assert_eq!(end, expected, "{path}");
        if end == End::Eof {
            assert_eq!(one.sent, answer.len() as u64, "{path}");
        } else {
            assert!(one.sent >= answer.len() as u64, "{path}");
        }
    }
}

#[test]
fn a_response_whose_body_fails_is_cut() {
    let (seen, server) = observed(handler_by_path());
    let mut client = server.connect();
    client.get("/fails-late");
    let (answer, end) = client.rest();
    let one = seen.next();
    assert_eq!((end, one.line()), (End::Reset, ("GET", "/fails-late", Some(200), Cut)));
    assert!(one.sent >= answer.len() as u64 && one.first_byte.is_some());
}

#[test]
fn a_client_that_leaves_is_reported_as_that() {
    let (handlers, handler) = held_handlers();
    let (seen, server) = observed(handler);
    // This client leaves in the head.
    let mut client = server.connect();
    client.send("GET /half HTTP/1.1\r\n");
    wait_until("the head has begun", || server.shutdown.in_flight() == 1);
    client.reset();
    let one = seen.next();
    assert_eq!(one.line(), ("GET", "/half", None, Reset));
    assert_eq!((one.sent, one.first_byte, one.received), (0, None, 20));

    // This client leaves in the handler.
    let mut client = server.connect();
    client.get("/wait");
    handlers.wait_for_call("/wait");
    client.reset();
    let one = seen.next();
    assert_eq!(one.line(), ("GET", "/wait", None, Reset));
    assert_eq!((one.sent, one.first_byte), (0, None));

    // This client leaves in the response.
    let mut client = server.connect();
    client.get("/big");
    client.take(1).unwrap();
    client.reset();
    let one = seen.next();
    assert_eq!(one.line(), ("GET", "/big", Some(200), Reset));
    assert!(one.sent > 0 && one.sent < BIG as u64 && one.first_byte.is_some());
}

/// Rule O1: the exchange breaks within the request's body. The handler echoes that body, so the
/// response has begun. In the last case of the table, the handler's own body fails.
#[test]
fn a_client_that_leaves_in_its_body_is_reported_as_that() {
    let (seen, server) = observed(|mut request| {
        Box::pin(async move {
            let own = request.url().path() == "/own";
            let body = request.take_body();
            Ok(if own { failing_body(100_000) } else { body }.into())
        })
    });
    let length = "Content-Length: 1000\r\n\r\nbegin";
    let chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n";
    type Leave = fn(common::Client);
    let reset: Leave = |client| client.reset();
    let close: Leave = |mut client| assert_eq!(client.half_close().rest().1, End::Reset);
    let stay: Leave = |mut client| assert_eq!(client.rest().1, End::Reset);
    let malformed: Leave = |mut client| assert_eq!(client.send("x\r\n").rest().1, End::Reset);
    for (name, path, body, leave, ending) in [
        ("reset, by length", "/", length, reset, Reset),
        ("reset, by chunks", "/", chunked, reset, Reset),
        ("closed, by length", "/", length, close, Reset),
        ("closed, by chunks", "/", chunked, close, Reset),
        ("malformed", "/", chunked, malformed, Cut),
        ("the handler's own error", "/own", length, stay, Cut),
    ] {
        let mut client = server.connect();
        client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{body}"));
        client.take_to(b"begin").unwrap();
        leave(client);
        assert_eq!(seen.next().line(), ("POST", path, Some(200), ending), "{name}");
    }

    // In the drain.
    let mut client = server.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: x\r\n{length}")).take_to(b"begin").unwrap();
    server.shutdown.stop();
    client.reset();
    assert_eq!(seen.next().line(), ("POST", "/", Some(200), Reset));
    assert!(server.outcome().is_drained());
}

/// The server gives up a client that takes nothing.
#[test]
fn a_client_that_takes_nothing_is_reported_as_gone() {
    let limits = Limits::default().stall_timeout(Duration::from_millis(300));
    let (seen, server) = observed_with(limits, &long_grace(), handler());
    let mut client = server.connect();
    client.get("/big");
    let one = seen.next();
    assert_eq!(one.line(), ("GET", "/big", Some(200), Reset));
    assert!(one.sent > 0 && one.sent < BIG as u64);
}

/// Rule O1: an abort cuts an exchange at any step, and the observer hears of the cut.
#[test]
fn what_an_abort_cuts_is_reported() {
    let (handlers, handler) = held_handlers();
    let (seen, server) = observed(handler);
    let mut half = server.connect();
    half.send("GET /half HTTP/1.1\r\n");
    let mut waits = server.connect();
    waits.get("/wait");
    handlers.wait_for_call("/wait");
    let mut big = server.connect();
    big.get("/big");
    big.take(1).unwrap();
    wait_until("each has begun", || server.shutdown.in_flight() == 3);
    server.shutdown.abort();
    assert_eq!(server.outcome().cut.len(), 3);
    let mut all = [seen.next(), seen.next(), seen.next()];
    all.sort_by(|one, other| one.target.cmp(&other.target));
    assert_eq!(all[0].line(), ("GET", "/big", Some(200), Cut));
    assert_eq!(all[1].line(), ("GET", "/half", None, Cut));
    assert_eq!(all[2].line(), ("GET", "/wait", None, Cut));
    assert!(all[0].sent > 0 && all[0].sent < BIG as u64);
    seen.assert_no_more();
}

/// Rule S27: a silent stream is closed in the drain, and the outcome does not count it as cut.
#[test]
fn a_stream_that_was_silent_in_the_drain_is_reported() {
    let silent = || long_grace().stream_grace(Duration::from_millis(50));
    let (seen, server) = observed_with(Limits::default(), &silent(), |_| {
        let chunks = stream::once(Ok::<_, io::Error>("first")).chain(stream::pending());
        Box::pin(async { Ok(stream_body(chunks).into()) })
    });
    let mut client = server.connect();
    client.get("/stream").take_to(b"first").unwrap();
    assert!(server.stop().is_drained());
    assert_eq!(seen.next().line(), ("GET", "/stream", Some(200), Cut));

    let (seen, server) = observed_with(Limits::default(), &silent(), upgrading());
    let mut client = server.connect();
    client.send(UPGRADE_HEAD).take_to(b"\r\n\r\n").unwrap();
    assert!(server.stop().is_drained());
    assert_eq!(seen.next().line(), ("GET", "/", Some(101), Upgraded));
}

/// The client has its whole answer, and only the rest of an unread body is missing. Neither the
/// outcome nor the observer calls this a cut.
#[test]
fn an_answer_before_the_rest_of_the_body_is_no_cut() {
    let (seen, server) = observed(handler_by_path());
    let mut client = server.connect();
    let part = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\na part";
    client.send(part);
    assert_eq!(client.response().text(), "okay");
    let discards = |work: &OpenWork| {
        matches!(work.kind, WorkKind::Connection { stage: Stage::Discarding, .. })
    };
    wait_until("the rest is awaited", || server.shutdown.open_work().iter().any(discards));
    server.shutdown.abort();
    assert!(server.outcome().is_drained());
    let one = seen.next();
    assert_eq!(one.line(), ("POST", "/", Some(200), Answered));
    assert_eq!((one.received, one.body_sent), (part.len() as u64, 4));
    seen.assert_no_more();
}

#[test]
fn a_dropped_server_reports_what_it_cuts() {
    let (handlers, handler) = held_handlers();
    let (seen, mut server) = observed(handler);
    let mut client = server.connect();
    client.get("/wait");
    handlers.wait_for_call("/wait");
    server.drop_server();
    assert_eq!(seen.next().line(), ("GET", "/wait", None, Cut));
}

#[test]
fn an_upgrade_that_an_abort_cuts_is_reported() {
    let (seen, server) = observed(upgrading());
    let mut client = server.connect();
    client.send(UPGRADE_HEAD).send("first");
    client.take_to(b"first").unwrap();
    server.shutdown.abort();
    assert_eq!(seen.next().line(), ("GET", "/", Some(101), Cut));
}

// ── The observer itself, and other streams ──────────────────────────────────────────────────

/// Rule O2: a panic of the observer costs a line in the log, and nothing else.
#[test]
fn a_panic_of_the_observer_costs_a_line_of_the_log() {
    let log = Log::of_this_process();
    let (handlers, handler) = held_handlers();
    let server = Server::new(handler).observe(|exchange| panic!("at {}", exchange.target()));
    let server = Running::of(server.stopped_by(&short_linger()));
    let mut client = server.connect();
    let peer = format!("{}: the observer has panicked", client.stream.local_addr().unwrap());
    for path in ["/now", "/now"] {
        assert_eq!(client.get(path).response().text(), "now");
    }
    wait_until("both are in the log", || log.with(&peer).len() == 2);
    // The connection is cut by an abort here, and a panic of the observer at that moment also costs
    // only a line.
    client.get("/wait");
    handlers.wait_for_call("/wait");
    server.shutdown.abort();
    assert_eq!(server.outcome().cut.len(), 1);
    wait_until("the cut is in the log", || log.with(&peer).len() == 3);
}

/// If a stream that the program supplies panics, the connection ends, and the server reports the
/// exchange during the unwinding.
#[test]
fn a_stream_that_panics_is_reported() {
    let (seen, server) = Reports::of(Server::new(handler()));
    let (pipes, server) = Pipes::open(server.stopped_by(&short_linger()));
    let (mut client, connection) = Connection::pair();
    let mut reads = 0;
    let panics = common::ReadBy::new(connection, move |stream, cx, buf| {
        // A read that returns `Pending` does not count.
        assert!(reads < 2, "as the test wished");
        let most = buf.len().min(10);
        let read = stream.poll_read(cx, &mut buf[..most]);
        reads += u32::from(read.is_ready());
        read
    });
    pipes.send.try_send(Ok(Connection::new(panics))).unwrap();
    let sent = futures_lite::AsyncWriteExt::write_all(
        &mut client,
        b"GET /panics HTTP/1.1\r\nHost: test\r\n\r\n",
    );
    common::within_patience(sent).unwrap();
    let one = seen.next();
    assert_eq!(one.line(), ("GET", "/panics", None, Cut));
    assert_drains(&server);
}

/// The report shows what a wrapper says of its connection: HTTPS, a value and the peer.
#[test]
fn what_a_wrapper_says_is_reported() {
    let (seen, server) = Reports::of(Server::new(handler_by_path()));
    let listener = tcp().wrap(|connection| async {
        Ok(Connection::new(connection).https().with(Tenant("blue")).from_peer(([192, 0, 2, 1], 9)))
    });
    let server = Running::on(server, [listener]);
    let request = "GET /chunks HTTP/1.1\r\nHost: x\r\n\r\n";
    let (answer, end, one) = exchange(&server, &seen, request);
    assert_eq!((end, one.line()), (End::Eof, ("GET", "/chunks", Some(200), Answered)));
    assert_eq!((one.is_https, one.tenant), (true, Some("blue")));
    assert_eq!(one.peer, Peer::from(([192, 0, 2, 1], 9)));
    assert_eq!(one.listener.as_ref(), Some(&server.addresses[0]));
    assert_eq!((one.sent, one.body_sent), (answer.len() as u64, body_length(&answer)));
}

#[test]
fn a_pipe_is_reported_like_a_socket() {
    let (seen, server) = Reports::of(Server::new(handler()));
    let (pipes, _server) = Pipes::open(server);
    let mut client = pipes.connect();
    assert_eq!(client.get("/now").response().text(), "now");
    let one = seen.next();
    assert_eq!(one.line(), ("GET", "/now", Some(200), Answered));
    assert_eq!((one.peer, one.listener), (Peer::Unknown, Some(Address::Other)));
    // The client's end is gone in the middle of a response.
    client.get("/big");
    client.take(1).unwrap();
    drop(client);
    assert_eq!(seen.next().line(), ("GET", "/big", Some(200), Reset));
}
