//! A stop, and its effect on a connection in every state, and on the server.
//!
//! [`TABLE`] is the contract. The code after it prepares each state, does the action, and checks
//! the client and the outcome. Single scenarios follow.

mod common;

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    BIG, Client, Dropped, End, HeldHandlers, PATIENCE, Running, StoppedBy, held_handlers,
    is_refused, long_grace, small_socket, wait_for_close, wait_until,
};
use futures_lite::io::{BufReader, Cursor};
use futures_lite::{AsyncRead, FutureExt, Stream, future};
use smol::{Executor, channel};
use smol_graceful::{
    Address, Body, DrainEnding, Limits, Listener, Outcome, Peer, Phase, Request, Response, Server,
    Shutdown, Stage, Token, WorkKind,
};

use Action::{Abort, Deadline, Stop};
use Expected::{Closed, Cut, Finished, Served};
use State::{
    HalfBody, HalfHead, HalfResponse, Idle, InHandler, NoByte, Pipelined, PipelinedApart, Queued,
    Unread,
};

/// The expected result for each state of a connection and each action on the server. A line is a
/// state.
#[rustfmt::skip]
const TABLE: [(State, [Expected; 3]); 10] = [
    //                Stop         Deadline                          Abort
    (NoByte,         [Closed,      Closed,                           Closed]),
    (HalfHead,       [Served(1),   Cut(Stage::Head, End::Eof),       Cut(Stage::Head, End::Eof)]),
    (Queued,         [Served(1),   Cut(Stage::Handler, End::Eof),    Cut(Stage::Accepted, End::Reset)]),
    (Unread,         [Served(1),   Cut(Stage::Handler, End::Eof),    Cut(Stage::Accepted, End::Reset)]),
    (InHandler,      [Served(1),   Cut(Stage::Handler, End::Eof),    Cut(Stage::Handler, End::Eof)]),
    (HalfBody,       [Served(1),   Cut(Stage::Body, End::Eof),       Cut(Stage::Body, End::Eof)]),
    (HalfResponse,   [Finished,    Cut(Stage::Writing, End::Eof),    Cut(Stage::Writing, End::Eof)]),
    (Idle,           [Closed,      Closed,                           Closed]),
    (Pipelined,      [Served(2),   Cut(Stage::Handler, End::Eof),    Cut(Stage::Handler, End::Eof)]),
    (PipelinedApart, [Served(2),   Cut(Stage::Handler, End::Reset),  Cut(Stage::Handler, End::Reset)]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The connection was accepted, and is silent.
    NoByte,
    /// The server has read half a head.
    HalfHead,
    /// The connection has sent a whole request, and is still in the kernel's queue.
    Queued,
    /// A whole request is in the socket of an accepted connection, and no thread has had time for
    /// it.
    Unread,
    /// The handler runs.
    InHandler,
    /// The handler waits for the second half of the body.
    HalfBody,
    /// The client does not read the response, which is larger than the kernel's buffers.
    HalfResponse,
    /// One exchange is over, and the connection is idle.
    Idle,
    /// A request is in the handler, and the next one was read together with it.
    Pipelined,
    /// A request is in the handler, and the next one is still in the socket.
    PipelinedApart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// The server stops, and then client and handler do their part.
    Stop,
    /// The server stops, client and handler do nothing, and the grace ends.
    Deadline,
    /// The server is aborted without a stop before.
    Abort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The client sees a FIN and no byte. The server has drained, and its outcome counts no
    /// finished and no cut request.
    Closed,
    /// This number of requests is answered whole, and only the last response says `close`. A FIN
    /// follows, and the server has drained.
    Served(u64),
    /// One request is answered as in [`Served`], but its head was sent before the stop and does not
    /// say `close`.
    Finished,
    /// The client gets no whole response. The outcome names its request, at this stage.
    Cut(Stage, End),
}

impl State {
    /// Returns the method and the path of the request that a cut has to name.
    fn request(self) -> (&'static str, &'static str) {
        match self {
            HalfBody => ("POST", "/read"),
            HalfResponse => ("GET", "/big"),
            _ => ("GET", "/wait?for=it"),
        }
    }
}

#[test]
fn every_state_meets_every_action() {
    let cells: Vec<_> = TABLE
        .into_iter()
        .flat_map(|(state, cells)| {
            [Stop, Deadline, Abort]
                .into_iter()
                .zip(cells)
                .map(move |(act, cell)| (state, act, cell))
        })
        .map(|(state, action, cell)| {
            let name = format!("{state:?} × {action:?}");
            let check = move || Case::prepare(state, action).act().check(cell);
            (name.clone(), thread::Builder::new().name(name).spawn(check).unwrap())
        })
        .collect();
    let failed: Vec<_> =
        cells.into_iter().filter_map(|(name, cell)| cell.join().is_err().then_some(name)).collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// A connection in a state, and its server before the action.
struct Case {
    state: State,
    action: Action,
    handlers: HeldHandlers,
    server: Running,
    client: Client,
    /// The client with the server's only place, if there is only one.
    occupant: Option<Client>,
    /// The executor of the server's connections, if it is not the server's own.
    executor: Option<Arc<Executor<'static>>>,
    worker: Option<Worker>,
}

impl Case {
    fn prepare(state: State, action: Action) -> Self {
        // For `Deadline`, the linger outlasts the test, so that idle connections are still open
        // when the grace ends.
        let linger = if action == Deadline { 2 * PATIENCE } else { Duration::from_millis(50) };
        let connections = if state == Queued { 1 } else { 100 };
        let limits = Limits::default().connections(connections);
        let (handlers, handler) = held_handlers();
        let mut server = Server::new(handler).limits(limits);
        let executor = (state == Unread).then(|| Arc::new(Executor::new()));
        if let Some(executor) = &executor {
            server = server.executor(executor.clone());
        }
        let server = Running::of(server.stopped_by(&long_grace().linger(linger)));
        if let Some(executor) = &executor {
            // The server has begun to accept, and then its executor is paused.
            let worker = Worker::start(executor);
            wait_until_read(&server);
            worker.pause();
        }
        let occupant = (state == Queued).then(|| {
            let mut client = server.connect();
            client.get("/now").response();
            client
        });
        let mut client = server.connect();
        if state != Queued {
            wait_until("accepted", || server.shutdown.in_flight() == 1);
        }
        match state {
            NoByte => {}
            HalfHead => _ = client.send("GET /wait?for=it HTTP/1.1\r\nHo"),
            Queued | Unread => _ = client.get("/wait?for=it"),
            InHandler | PipelinedApart => {
                client.get("/wait?for=it");
                handlers.wait_for_call("/wait");
                if state == PipelinedApart {
                    client.get("/wait?for=next");
                }
            }
            Pipelined => {
                let get = |what| format!("GET /wait?for={what} HTTP/1.1\r\nHost: test\r\n\r\n");
                client.send(get("it") + &get("next"));
                handlers.wait_for_call("/wait");
            }
            HalfBody => {
                client.send("POST /read HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello");
                handlers.wait_for_call("/read");
            }
            HalfResponse => {
                socket2::SockRef::from(&client.stream).set_recv_buffer_size(16 * 1024).unwrap();
                client.get("/big");
                assert_eq!(client.stream.peek(&mut [0]).unwrap(), 1);
            }
            Idle => assert!(!client.get("/now").response().says_close()),
        }
        if !matches!(state, Queued | Unread) {
            wait_until_read(&server);
        }
        Self { state, action, handlers, server, client, occupant, executor, worker: None }
    }

    fn act(mut self) -> Self {
        let shutdown = &self.server.shutdown;
        let resume = || self.executor.as_ref().map(Worker::start);
        match self.action {
            Stop => {
                shutdown.stop();
                self.worker = resume();
                self.handlers.release();
                match self.state {
                    HalfHead => _ = self.client.send("st: test\r\n\r\n"),
                    HalfBody => _ = self.client.send("world"),
                    _ => {}
                }
            }
            Deadline => {
                shutdown.stop();
                self.worker = resume();
                if matches!(self.state, Queued | Unread) {
                    self.handlers.wait_for_call("/wait");
                }
                // S13: shorten the grace only now, because the connection must reach its state
                // first.
                let _ = future::block_on(
                    shutdown.clone().grace(Duration::from_millis(10)).stop_and_drain(),
                );
            }
            Abort => {
                shutdown.abort();
                self.worker = resume();
            }
        }
        // S6: this connection is idle, and gets its FIN in every case.
        if let Some(occupant) = &mut self.occupant {
            assert_eq!(occupant.end(), End::Eof);
        }
        self
    }

    fn check(self, expected: Expected) {
        let Self { state, action, mut client, server, .. } = self;
        let peer = Peer::from(client.stream.local_addr().unwrap());
        match expected {
            // S6, S7: an idle or silent connection is closed.
            Closed => assert_eq!(client.end(), End::Eof),
            // S8, S9: each request is answered, and the last response says `close`.
            Served(requests) => {
                for n in 1..=requests {
                    let response = client.response();
                    let body = if state == HalfBody { "10 bytes" } else { "done" };
                    assert_eq!((response.status, response.text().as_str()), (200, body));
                    assert_eq!(response.says_close(), n == requests, "response {n}");
                }
                assert_eq!(client.end(), End::Eof);
            }
            // S8: the response goes on to its end.
            Finished => {
                let response = client.response();
                assert_eq!((response.status, response.body.len()), (200, BIG));
                assert!(!response.says_close());
                assert_eq!(client.end(), End::Eof);
            }
            Cut(_, end) => {
                let (bytes, ended) = client.rest();
                assert_eq!(bytes.is_empty(), state != HalfResponse);
                assert!(bytes.len() < BIG);
                assert_eq!(ended, end);
            }
        }

        let outcome = server.outcome();
        let finished = match expected {
            Served(requests) => requests,
            Finished => 1,
            Closed | Cut(..) => 0,
        };
        assert_eq!(outcome.finished, finished, "{outcome}");
        let Cut(stage, _) = expected else {
            assert_eq!(outcome.ending, DrainEnding::Drained, "{outcome}");
            assert!(outcome.cut.is_empty(), "{outcome}");
            return assert_eq!(server.shutdown.in_flight(), 0);
        };
        // S13, S14: the outcome says how the drain ended, and names what was cut.
        let ending = if action == Deadline { DrainEnding::TimedOut } else { DrainEnding::Forced };
        assert_eq!(outcome.ending, ending, "{outcome}");
        assert_eq!(outcome.cut.len(), 1, "{outcome}");
        let (method, path) = if stage == Stage::Accepted { ("", "") } else { state.request() };
        assert_cut(&outcome, 0, peer, stage, method, path);
        wait_until("nobody left", || server.shutdown.in_flight() == 0);
    }
}

// ── Helpers ───────────────────────────────────────────────────────────────────────────────

/// A body of a channel's messages, up to the close of the channel.
struct Ticks(Pin<Box<channel::Receiver<&'static str>>>);

impl AsyncRead for Ticks {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let tick = ready!(self.0.as_mut().poll_next(cx)).unwrap_or_default();
        buf[..tick.len()].copy_from_slice(tick.as_bytes());
        Poll::Ready(Ok(tick.len()))
    }
}

/// Waits until the server, which runs on one thread, has read all bytes that its sockets had
/// before. The server's tasks take turns, so after four answers to a probe every other connection
/// has had a turn.
fn wait_until_read(server: &Running) {
    let before = server.shutdown.in_flight();
    let mut probe = server.connect();
    for _ in 0..4 {
        probe.get("/now").response();
    }
    drop(probe);
    wait_until("the probe is gone", || server.shutdown.in_flight() == before);
}

#[track_caller]
fn assert_cut(outcome: &Outcome, i: usize, peer: Peer, stage: Stage, method: &str, path: &str) {
    let WorkKind::Connection { peer: who, stage: at, method: m, target: p } = &outcome.cut[i].kind
    else {
        panic!("no request: {:?}", outcome.cut[i]);
    };
    assert_eq!((*who, *at, m.as_str(), p.as_str()), (peer, stage, method, path));
}

/// An executor's only thread, which the test can pause.
struct Worker {
    run: channel::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Worker {
    fn start(executor: &Arc<Executor<'static>>) -> Self {
        let executor = executor.clone();
        let (run, paused) = channel::bounded::<()>(1);
        let thread = thread::spawn(move || {
            let _ = future::block_on(executor.run(paused.recv()));
        });
        Self { run, thread }
    }

    fn pause(self) {
        drop(self.run);
        self.thread.join().unwrap();
    }
}

// ── Idle connections ────────────────────────────────────────────────────────────────────────

/// Rules S6, S7: the server serves a last request within the linger.
#[test]
fn a_request_within_the_linger_is_served() {
    let (_, handler) = held_handlers();
    let server = Running::stopped_by(&long_grace(), handler);
    let mut used = server.connect();
    used.get("/now").response();
    let (silent, probe) = (server.connect(), server.connect());
    wait_until("accepted", || server.shutdown.in_flight() == 3);
    wait_until_read(&server);
    server.shutdown.stop();
    wait_for_close(server.addr());
    // The server has one thread, so when it has served the probe, it has looked at the others.
    for mut client in [probe, used, silent] {
        let response = client.get("/now").response();
        assert_eq!((response.status, response.says_close()), (200, true));
        assert_eq!(client.end(), End::Eof);
    }
    let outcome = server.outcome();
    assert!(outcome.is_drained());
    assert_eq!(outcome.finished, 3);
}

/// Rule S6: the last look finds a request that came while the server did not run, although the
/// linger is over.
#[test]
fn a_request_that_has_arrived_is_served_though_the_linger_is_over() {
    let executor = Arc::new(Executor::new());
    let (_, handler) = held_handlers();
    let shutdown = long_grace().linger(Duration::ZERO);
    let server = Running::of(Server::new(handler).executor(executor.clone()).stopped_by(&shutdown));
    let worker = Worker::start(&executor);
    let mut client = server.connect();
    client.get("/now").response();
    worker.pause();
    client.get("/now");
    server.shutdown.stop();
    // The end of the linger follows the close of the listener at once.
    wait_for_close(server.addr());
    let worker = Worker::start(&executor);
    let response = client.response();
    assert_eq!((response.status, response.says_close()), (200, true));
    assert_eq!(client.end(), End::Eof);
    assert_eq!(server.outcome().finished, 1);
    worker.pause();
}

/// Rule S19: a stop takes no time if no connection is open.
#[test]
fn without_connections_a_stop_takes_no_time() {
    let (_, handler) = held_handlers();
    let unused = Running::stopped_by(&long_grace(), handler);
    let (_, handler) = held_handlers();
    let left = Running::stopped_by(&long_grace(), handler);
    left.connect().get("/now").response();
    wait_until("the client is gone", || left.shutdown.in_flight() == 0);
    for server in [unused, left] {
        let began = Instant::now();
        assert!(server.stop().is_drained());
        assert!(began.elapsed() < PATIENCE / 2);
    }
}

/// The drain does not wait for an idle client that has left during its linger.
#[test]
fn the_drain_ends_when_the_last_idle_client_leaves() {
    let (_, handler) = held_handlers();
    let server = Running::stopped_by(&long_grace(), handler);
    let mut client = server.connect();
    client.get("/now").response();
    server.shutdown.stop();
    wait_for_close(server.addr());
    assert!(server.is_serving());
    drop(client);
    assert!(server.outcome().is_drained());
}

// ── New connections ─────────────────────────────────────────────────────────────────────────

/// Rule S4: the kernel's whole queue is taken before the listener is closed.
#[test]
fn everyone_in_the_queue_is_served() {
    let (_, handler) = held_handlers();
    let server = Running::with(Limits::default().connections(1), handler);
    let mut occupant = server.connect();
    occupant.get("/now").response();
    let mut queue: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for client in &mut queue {
        client.get("/now");
    }
    server.shutdown.stop();
    for client in &mut queue {
        let response = client.response();
        assert_eq!((response.status, response.says_close()), (200, true));
        assert_eq!(client.end(), End::Eof);
    }
    assert_eq!(occupant.end(), End::Eof);
    assert_eq!(server.outcome().finished, 50);
    assert!(is_refused(server.addr()));
}

/// Rule S3: in the lame duck, connections are still accepted, and an abort ends it.
#[test]
fn a_lame_duck_still_takes_connections() {
    let (_, handler) = held_handlers();
    let server = Running::stopped_by(&long_grace().lame_duck(2 * PATIENCE), handler);
    server.connect().get("/now").response();
    server.shutdown.stop();
    let response = server.connect().get("/now").response();
    assert_eq!((response.status, response.says_close()), (200, true));
    wait_until("both are gone", || server.shutdown.in_flight() == 0);
    assert!(server.is_serving());
    server.shutdown.abort();
    let outcome = server.outcome();
    assert!(outcome.is_drained());
    assert_eq!(outcome.finished, 1);
}

/// Rules S2, S4: if the latch was stopped before `serve`, the server ends at once, and still
/// answers clients in the kernel's queue.
#[test]
fn a_stop_before_serve() {
    let (_, handler) = held_handlers();
    let shutdown = long_grace();
    let server = Server::new(handler).shutdown(&shutdown);
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let Address::Tcp(addr) = *listener.address() else { unreachable!() };
    let mut client = Client::connect(addr);
    client.get("/now");
    shutdown.stop();
    let outcome = future::block_on(server.serve([listener])).unwrap();
    assert!(outcome.is_drained());
    assert_eq!(shutdown.in_flight(), 0);
    assert!(is_refused(addr));
    let response = client.response();
    assert_eq!((response.status, response.says_close()), (200, true));
}

// ── The latch and the outcome ───────────────────────────────────────────────────────────────

/// The test follows Go's `TestServerShutdown`.
#[test]
fn a_handler_that_stops_the_server_is_not_cut() {
    let shutdown = Shutdown::new();
    let stop = shutdown.clone();
    let handler = move |_| {
        let stop = stop.clone();
        async move {
            stop.stop();
            // In this time, a stop that cuts handlers would cut this one.
            smol::Timer::after(Duration::from_millis(20)).await;
            Ok("stopped")
        }
    };
    let server = Running::of(Server::new(handler).stopped_by(&shutdown));
    let mut client = server.connect();
    let response = client.get("/").response();
    assert_eq!((response.text().as_str(), response.says_close()), ("stopped", true));
    assert_eq!(client.end(), End::Eof);
    let outcome = server.outcome();
    assert!(outcome.is_drained());
    assert_eq!(outcome.finished, 1);
    assert!(is_refused(server.addr()));
}

/// Rule S2: a second stop changes nothing.
#[test]
fn stopping_twice_is_stopping_once() {
    let (handlers, handler) = held_handlers();
    let server = Running::stopped_by(&long_grace(), handler);
    let mut client = server.connect();
    client.get("/wait");
    handlers.wait_for_call("/wait");
    server.shutdown.stop();
    server.shutdown.stop();
    assert_eq!(server.shutdown.phase(), Phase::Draining);
    handlers.release();
    assert!(client.response().says_close());
    assert_eq!(server.outcome().finished, 1);
    server.shutdown.stop();
    assert_eq!(server.shutdown.phase(), Phase::Draining);
}

/// Rule S2: a second abort, or a stop after an abort, changes nothing.
#[test]
fn aborting_twice_is_aborting_once() {
    let (handlers, handler) = held_handlers();
    let server = Running::stopped_by(&long_grace(), handler);
    let mut client = server.connect();
    client.get("/wait");
    handlers.wait_for_call("/wait");
    server.shutdown.abort();
    server.shutdown.abort();
    server.shutdown.stop();
    assert_eq!(server.shutdown.phase(), Phase::Aborting);
    assert_eq!(client.end(), End::Eof);
    let outcome = server.outcome();
    assert_eq!((outcome.ending, outcome.cut.len()), (DrainEnding::Forced, 1));
    // A later call gets the same outcome.
    server.shutdown.abort();
    let again = future::block_on(server.shutdown.stop_and_drain());
    assert_eq!((again.ending, again.cut.len()), (DrainEnding::Forced, 1));
}

/// The outcome counts only requests that were finished after the stop.
#[test]
fn the_outcome_counts_what_was_finished_in_the_drain() {
    let (handlers, handler) = held_handlers();
    let server = Running::with(Limits::default(), handler);
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        client.get("/now").response();
        client.get("/wait");
        handlers.wait_for_call("/wait");
    }
    server.shutdown.stop();
    handlers.release();
    for client in &mut clients {
        assert!(client.response().says_close());
    }
    assert_eq!(server.outcome().finished, 2);
}

/// Rule S13: at the end of the server's own grace, the outcome names all work that was cut, the
/// oldest first, in the value and in the line.
#[test]
fn the_grace_ends_and_the_outcome_names_what_was_cut() {
    let (handlers, handler) = held_handlers();
    let server = Running::stopped_by(&long_grace().grace(Duration::from_millis(20)), handler);
    let mut first = server.connect();
    first.get("/wait?for=ever");
    handlers.wait_for_call("/wait");
    let mut second = server.connect();
    second.send("POST /read HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    handlers.wait_for_call("/read");
    let mut idle = server.connect();
    idle.get("/now").response();
    wait_until_read(&server);
    let guard = server.shutdown.token().guard().unwrap();
    let line = line!() - 1;

    let outcome = server.stop();
    assert_eq!(outcome.ending, DrainEnding::TimedOut);
    assert_eq!(outcome.cut.len(), 3, "{outcome}");
    let peer = |client: &Client| Peer::from(client.stream.local_addr().unwrap());
    assert_cut(&outcome, 0, peer(&first), Stage::Handler, "GET", "/wait?for=ever");
    assert_cut(&outcome, 1, peer(&second), Stage::Body, "POST", "/read");
    assert!(matches!(outcome.cut[2].kind, WorkKind::Guard(at)
        if at.file() == file!() && at.line() == line));
    assert!(outcome.cut.is_sorted_by(|a, b| a.age >= b.age));
    let text = outcome.to_string();
    let named = [
        format!("{} GET /wait?for=ever (in the handler, ", peer(&first)),
        format!("{} POST /read (reading the body, ", peer(&second)),
        format!("guard taken at {}:{line}:", file!()),
    ];
    for name in named {
        assert!(text.contains(&name), "{name} is missing: {text}");
    }
    for client in [&mut first, &mut second, &mut idle] {
        assert_eq!(client.end(), End::Eof);
    }
    drop(guard);
}

/// Two servers with one latch stop together, and neither ends before both have drained.
#[test]
fn servers_that_share_a_latch_stop_together() {
    let shutdown = Shutdown::new().grace(2 * PATIENCE);
    let (handlers_one, handler) = held_handlers();
    let one = Running::of(Server::new(handler).stopped_by(&shutdown));
    let (_, handler) = held_handlers();
    let other = Running::of(Server::new(handler).stopped_by(&shutdown));
    let mut busy = one.connect();
    busy.get("/wait");
    handlers_one.wait_for_call("/wait");
    let mut idle = other.connect();
    idle.get("/now").response();
    shutdown.stop();
    assert_eq!(idle.end(), End::Eof);
    assert!(one.is_serving());
    handlers_one.release();
    assert!(busy.response().says_close());
    for server in [one, other] {
        assert!(server.outcome().is_drained());
        assert!(is_refused(server.addr()));
    }
    assert_eq!(shutdown.in_flight(), 0);
}

/// The drop of `serve` closes the listener and the connections, on any executor.
#[test]
fn dropping_the_server_closes_everything() {
    for executor in [None, Some(Arc::new(Executor::new()))] {
        let (handlers, handler) = held_handlers();
        let mut server = Server::new(handler);
        let worker = executor.map(|executor| {
            server = std::mem::replace(&mut server, Server::new(|_| async { Ok("") }))
                .executor(executor.clone());
            Worker::start(&executor)
        });
        let shutdown = long_grace();
        let server = server.shutdown(&shutdown);
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let Address::Tcp(addr) = *listener.address() else { unreachable!() };
        let (run, dropped) = channel::bounded::<()>(1);
        let serving = thread::spawn(move || {
            let serve = async { server.serve([listener]).await.is_ok() };
            let drop = async { dropped.recv().await.is_ok() };
            future::block_on(serve.or(drop));
        });
        let mut busy = Client::connect(addr);
        busy.get("/wait");
        handlers.wait_for_call("/wait");
        let mut idle = Client::connect(addr);
        idle.get("/now").response();
        drop(run);
        serving.join().unwrap();
        assert_eq!(busy.end(), End::Eof);
        assert_eq!(idle.end(), End::Eof);
        wait_until("nobody left", || shutdown.in_flight() == 0);
        wait_for_close(addr);
        assert_eq!(shutdown.phase(), Phase::Running);
        if let Some(worker) = worker {
            worker.pause();
        }
    }
}

// ── Handlers ────────────────────────────────────────────────────────────────────────────────

/// Rule S10: a handler sees the stop and can finish.
#[test]
fn a_handler_that_sees_the_stop_is_not_cancelled() {
    let (handlers, handler) = held_handlers();
    let server = Running::stopped_by(&long_grace(), handler);
    let mut client = server.connect();
    client.get("/until-stop");
    handlers.wait_for_call("/until-stop");
    server.shutdown.stop();
    handlers.wait_for_call("/until-stop");
    wait_for_close(server.addr());
    assert!(server.is_serving());
    handlers.release();
    let response = client.response();
    assert_eq!((response.text().as_str(), response.says_close()), ("stopped", true));
    assert_eq!(client.end(), End::Eof);
    assert!(server.outcome().is_drained());
}

/// Rule S12: a guard taken in a handler holds the drain open beyond the response.
#[test]
fn a_guard_from_a_handler_keeps_the_drain_open() {
    let (release, released) = channel::bounded::<()>(1);
    let server = Running::new(move |request| {
        let released = released.clone();
        async move {
            let guard = Token::of(&request).guard().expect("a request is in flight");
            let work = guard.hold(async move { released.recv().await.is_ok() });
            thread::spawn(move || future::block_on(work));
            Ok("begun")
        }
    });
    let mut client = server.connect();
    assert_eq!(client.get("/").response().text(), "begun");
    server.shutdown.stop();
    assert_eq!(client.end(), End::Eof);
    wait_until("only the guard is left", || server.shutdown.in_flight() == 1);
    wait_for_close(server.addr());
    assert!(server.is_serving());
    drop(release);
    let outcome = server.outcome();
    assert!(outcome.is_drained(), "{outcome}");
    assert_eq!(server.shutdown.in_flight(), 0);
    assert!(server.shutdown.token().guard().is_err()); // S1: the drain is over
}

/// Rule S17: the client of a handler or of a body that panics gets a 500 or a reset, and another
/// client notices nothing.
#[test]
fn a_panic_costs_its_client_alone() {
    let (handlers, handler) = held_handlers();
    let server = Running::stopped_by(&long_grace(), handler);
    let mut other = server.connect();
    other.get("/wait");
    handlers.wait_for_call("/wait");
    for _ in 0..3 {
        let mut client = server.connect();
        let response = client.get("/panic").response();
        assert_eq!((response.status, response.says_close()), (500, true));
        assert!(!response.text().contains("wished"));
        assert_eq!(client.end(), End::Eof);

        // Nothing of this response was sent, and the earlier answers arrive.
        let mut client = server.connect();
        client.get("/now").get("/now").get("/panic-in-body");
        for status in [200, 200, 500] {
            assert_eq!(client.response().status, status);
        }
        assert_eq!(client.end(), End::Eof);
        // The end is not clean, so the client cannot take a part for the whole.
        for version in ["1.0", "1.1"] {
            let mut client = server.connect();
            client.send(format!("GET /panic-in-big-body HTTP/{version}\r\nHost: x\r\n\r\n"));
            assert_eq!(client.try_response(false).unwrap_err(), End::Reset);
        }
    }
    wait_until("only the other is left", || server.shutdown.in_flight() == 1);
    server.shutdown.stop();
    handlers.release();
    let response = other.response();
    assert_eq!((response.status, response.says_close()), (200, true));
    assert!(server.outcome().is_drained());
    assert_eq!(server.shutdown.in_flight(), 0);
}

/// Rule S17: a handler that panics in the drain does not hold the drain open.
#[test]
fn a_panic_does_not_hold_the_drain() {
    let (release, released) = channel::bounded::<()>(1);
    let (enter, entered) = mpsc::channel();
    let server = Running::stopped_by(&long_grace(), move |_| {
        let (enter, released) = (enter.clone(), released.clone());
        async move {
            enter.send(()).unwrap();
            assert!(released.recv().await.is_ok(), "as the test wished");
            Ok("never")
        }
    });
    let mut client = server.connect();
    client.get("/");
    entered.recv_timeout(PATIENCE).unwrap();
    server.shutdown.stop();
    drop(release);
    let response = client.response();
    assert_eq!((response.status, response.says_close()), (500, true));
    assert!(server.outcome().is_drained());
    assert_eq!(server.shutdown.in_flight(), 0);
}

/// A body that begins, and then stays pending.
struct Silent {
    begin: Cursor<&'static str>,
    _dropped: Dropped,
}

impl AsyncRead for Silent {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.begin).poll_read(cx, buf) {
            Poll::Ready(Ok(0)) => Poll::Pending,
            read => read,
        }
    }
}

/// Rule S22: a client that has reset its connection does not hold the drain open while the source
/// of its response is silent, in chunks or with a length.
#[test]
fn a_client_that_is_gone_does_not_hold_the_drain_by_a_silent_response() {
    let (gone, dropped) = mpsc::channel();
    let server = Running::stopped_by(&long_grace(), move |request: Request| {
        let body = Silent { begin: Cursor::new("hello"), _dropped: Dropped(gone.clone()) };
        let length = (request.url().path() == "/long").then_some(100_000);
        async move { Ok(Body::from_reader(BufReader::new(body), length)) }
    });
    let connect = |path| {
        let mut client = server.connect();
        client.get(path);
        while !client.line().unwrap().is_empty() {}
        assert!(client.take(5).is_ok());
        client
    };
    let clients = ["/", "/long"].map(|path| [connect(path), connect(path)]);
    let (before, after): (Vec<_>, Vec<_>) =
        clients.map(|[one, two]| (one, two)).into_iter().unzip();
    before.into_iter().for_each(Client::reset);
    server.shutdown.stop();
    for _ in 0..2 {
        dropped.recv_timeout(PATIENCE).expect("the response to a client that left before the stop");
    }
    after.into_iter().for_each(Client::reset);
    assert!(server.outcome().is_drained());
    assert_eq!(dropped.try_iter().count(), 2);
}

/// Rule S22: in the drain, the server drops a handler whose client has reset the connection,
/// whether the reset came before or after the stop. A client that has only half-closed still gets
/// its answer.
#[test]
fn a_client_that_is_gone_does_not_hold_the_drain() {
    let (release, released) = channel::bounded::<()>(1);
    let (enter, entered) = mpsc::channel();
    let (gone, dropped) = mpsc::channel();
    let server = Running::stopped_by(&long_grace(), move |request: Request| {
        let (enter, released) = (enter.clone(), released.clone());
        let stuck = (request.url().path() == "/stuck").then(|| Dropped(gone.clone()));
        async move {
            enter.send(()).unwrap();
            let _ = released.recv().await;
            drop(stuck);
            Ok("done")
        }
    });
    let connect = |path| {
        let mut client = server.connect();
        client.get(path);
        entered.recv_timeout(PATIENCE).unwrap();
        client
    };
    let before = connect("/stuck");
    let after = connect("/stuck");
    let mut half = connect("/");
    half.half_close();
    before.reset();
    server.shutdown.stop();
    dropped.recv_timeout(PATIENCE).expect("the handler of the client that left before the stop");
    after.reset();
    dropped.recv_timeout(PATIENCE).expect("the handler of the client that left after the stop");
    wait_until("only the half-closed one is left", || server.shutdown.in_flight() == 1);
    drop(release);
    let response = half.response();
    assert_eq!((response.text().as_str(), response.says_close()), ("done", true));
    assert_eq!(half.end(), End::Eof);
    let outcome = server.outcome();
    assert!(outcome.is_drained());
    assert_eq!(outcome.finished, 1);
}

// ── Responses ───────────────────────────────────────────────────────────────────────────────

/// Rule S9, after Go's `TestServerGracefulClose`: the handler answers without reading the 5 MB that
/// the client sends, and the answer is not lost to a reset.
#[test]
fn the_last_response_is_not_lost_to_a_reset() {
    const UPLOAD: usize = 5 * 1024 * 1024;
    let (handlers, handler) = held_handlers();
    let server = Running::with(Limits::default(), handler);
    let mut client = server.connect();
    client.send(format!("POST /wait HTTP/1.1\r\nHost: test\r\nContent-Length: {UPLOAD}\r\n\r\n"));
    handlers.wait_for_call("/wait");
    server.shutdown.stop();
    let mut upload = client.stream.try_clone().unwrap();
    let sender = thread::spawn(move || upload.write_all(&vec![b'x'; UPLOAD]));
    handlers.release();
    // The client sends everything before it reads.
    sender.join().unwrap().unwrap();
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "done"));
    assert!(response.says_close());
    assert_eq!(client.end(), End::Eof);
    assert!(server.outcome().is_drained());
}

/// Rule S8: a response in chunks goes on in the drain to its proper end. An abort ends it without
/// one, so that the client cannot take a part for the whole.
#[test]
fn a_stream_ends_properly_or_visibly_not() {
    for abort in [false, true] {
        let (tick, ticks) = channel::unbounded();
        let server = Running::new(move |_| {
            let ticks = Ticks(Box::pin(ticks.clone()));
            async { Ok(Body::from_reader(BufReader::new(ticks), None)) }
        });
        let mut client = server.connect();
        tick.try_send("one").unwrap();
        client.get("/");
        while !client.line().unwrap().is_empty() {}
        assert_eq!(client.take(8).unwrap(), b"3\r\none\r\n");
        server.shutdown.stop();
        wait_for_close(server.addr());
        tick.try_send("three").unwrap();
        assert_eq!(client.take(10).unwrap(), b"5\r\nthree\r\n");
        assert!(server.is_serving());
        if abort {
            server.shutdown.abort();
            assert_eq!(client.rest(), (vec![], End::Eof));
            let outcome = server.outcome();
            assert_eq!(outcome.ending, DrainEnding::Forced);
            let peer = Peer::from(client.stream.local_addr().unwrap());
            assert_cut(&outcome, 0, peer, Stage::Response, "GET", "/");
        } else {
            drop(tick);
            assert_eq!(client.rest(), (b"0\r\n\r\n".to_vec(), End::Eof));
            let outcome = server.outcome();
            assert!(outcome.is_drained());
            assert_eq!(outcome.finished, 1);
        }
    }
}

/// An empty line after the last request is not a request, so it does not hold the drain open (RFC
/// 9112 section 2.2).
#[test]
fn empty_lines_do_not_hold_the_drain() {
    for lines in ["\r\n", "\r\n\r\n"] {
        let (handlers, handler) = held_handlers();
        let server = Running::stopped_by(&long_grace(), handler);
        let mut client = server.connect();
        client.get("/wait");
        handlers.wait_for_call("/wait");
        client.send(lines);
        server.shutdown.stop();
        handlers.release();
        let response = client.response();
        assert_eq!((response.status, response.says_close()), (200, true));
        assert_eq!(client.end(), End::Eof);
        assert!(server.outcome().is_drained());
    }
}

/// A task that reads a body does not wait for ever if the connection is gone.
#[test]
fn a_body_that_is_read_elsewhere_ends_with_its_connection() {
    use futures_lite::AsyncReadExt;

    let (send, read) = mpsc::channel();
    let server = Running::stopped_by(&long_grace(), move |mut request: Request| {
        let mut body = request.take_body();
        let send = send.clone();
        thread::spawn(move || {
            let mut bytes = [0; 5];
            future::block_on(body.read_exact(&mut bytes)).unwrap();
            send.send(None).unwrap();
            let read = future::block_on(body.read_to_end(&mut Vec::new()));
            send.send(Some(read.is_err())).unwrap();
        });
        future::pending::<http_types::Result<&str>>()
    });
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234");
    assert_eq!(read.recv_timeout(PATIENCE), Ok(None));
    server.shutdown.abort();
    assert_eq!(read.recv_timeout(PATIENCE), Ok(Some(true)));
    assert!(!server.outcome().is_drained());
}

/// Rule S9: a slow client gets its last response whole, even if it sends bytes meanwhile, and the
/// server waits for it.
#[test]
fn a_slow_client_gets_its_last_response_whole() {
    const LONG: usize = 300_000;
    for (what, closes, stop) in [
        ("idle when the server stops", false, true),
        ("answered with close when the server stops", true, true),
        ("answered with close", true, false),
    ] {
        let shutdown = Shutdown::new().linger(Duration::ZERO);
        let server = Running::stopped_by(&shutdown, move |_request| async move {
            let mut response = Response::from("x".repeat(LONG));
            if closes {
                response.insert_header("connection", "close");
            }
            Ok(response)
        });
        let mut client = Client::from(small_socket(server.addr(), 8 * 1024));
        client.get("/");
        // The response has begun to arrive, and its rest will soon be in the server's kernel.
        client.stream.peek(&mut [0]).unwrap();
        wait_until("the handler is done", || server.shutdown.in_flight() == 1);
        if stop {
            server.shutdown.stop();
        }
        // In this time, a connection that does not wait for its client would end. A connection that
        // waits shows no event.
        let began = Instant::now();
        while server.shutdown.in_flight() > 0 && began.elapsed() < Duration::from_millis(300) {
            thread::sleep(Duration::from_millis(1));
        }
        // The server may close the connection before these bytes arrive.
        let _ = client.stream.write_all(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n");
        let response = client.try_response(false);
        assert_eq!(response.map(|response| response.body.len()), Ok(LONG), "{what}");
        drop(client);
        assert!(server.stop().is_drained(), "{what}");
    }
}

/// Rule S9: the drain ends when the client has taken its last response, even if the server had sent
/// that response before the stop.
#[test]
fn a_slow_client_does_not_hold_the_drain_after_its_last_response() {
    const LONG: usize = 60_000;
    let server = Running::new(|request| async move {
        let mut response = Response::from("x".repeat(LONG));
        if request.url().path() == "/last" {
            response.insert_header("connection", "close");
        }
        Ok(response)
    });
    let mut client = Client::from(small_socket(server.addr(), 8 * 1024));
    client.get("/last");
    client.stream.peek(&mut [0]).unwrap();
    // The connection gives the rest to the kernel, and begins to wait for the client.
    wait_until_read(&server);
    server.shutdown.stop();
    // Meanwhile the connection sees the stop, and the client has not taken most of the response.
    thread::sleep(Duration::from_millis(200));
    assert_eq!(client.response().body.len(), LONG);
    assert_eq!(client.end(), End::Eof);
    let began = Instant::now();
    assert!(server.outcome().is_drained());
    // A drain that waits for the client would end after 5 s, so a slow machine does no harm here.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

/// A written response does not count as cut if only the rest of an unread body is missing.
#[test]
fn a_body_that_nobody_wants_does_not_hold_the_drain() {
    for body in [
        "Content-Length: 10\r\n\r\nabc",
        "Content-Length: 10\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    ] {
        let server = Running::new(|_request| async { Ok("okay") });
        let mut client = server.connect();
        client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{body}"));
        assert!(!client.response().says_close());
        server.shutdown.stop();
        assert_eq!(client.end(), End::Eof, "{body}");
        assert!(server.outcome().is_drained(), "{body}");
    }
}

/// Empty lines are not a request, so they hold up nothing.
#[test]
fn empty_lines_on_an_idle_connection_do_not_hold_the_drain() {
    for lines in ["\r", "\r\n", "\r\n\r\n\r\n", "\r\n\r\n\r\n\r\n"] {
        for request in ["", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
            let server = Running::new(|_request| async { Ok("okay") });
            let mut client = server.connect();
            client.send(request.to_owned() + lines);
            if !request.is_empty() {
                assert_eq!(client.response().text(), "okay");
            }
            server.shutdown.stop();
            assert_eq!(client.end(), End::Eof, "{lines:?}");
            assert!(server.outcome().is_drained(), "{lines:?}");
        }
    }
}
