//! Connections that look for their next request before they wait for an event (rules W17, W18).
//!
//! In the first tests, the executor runs a task only when the test asks for it, so the test knows
//! when a connection has yielded and has not looked yet. The test names call this time the pause.
//! In the last tests, some clients send requests as fast as they can, and the other clients must be
//! served, too. The tests count the waits in requests and not in time, because other work of the
//! machine must not matter.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::task::{Context, Wake, Waker};
use std::thread;

use common::{
    Client, End, PATIENCE, Running, StoppedBy, address_of, held_handlers, is_refused, long_grace,
    short_linger, tcp, wait_until,
};
use smol::Executor;
use smol_graceful::{Limits, Listener, OpenWork, Server, ServerExecutor, Shutdown, WorkKind};

/// A server whose connections run only when the test asks for it.
struct SteppedServer {
    server: Running,
    executor: Arc<Executor<'static>>,
}

impl SteppedServer {
    fn start(shutdown: &Shutdown, limits: Limits) -> Self {
        let executor = Arc::new(Executor::new());
        let server = Server::new(held_handlers().1).limits(limits).executor(executor.clone());
        Self { server: Running::of(server.stopped_by(shutdown)), executor }
    }

    /// Runs one connection until it yields, as soon as one can run.
    fn step(&self) {
        wait_until("a connection can go on", || self.executor.try_tick());
    }

    /// Returns a client that has received its first response, and whose connection has yielded.
    fn client(&self) -> Client {
        let mut client = self.server.connect();
        client.get("/now");
        self.step();
        assert_eq!(client.response().text(), "now");
        client
    }

    /// Runs the connections until `done` returns `true`.
    fn run_until(&self, what: &str, mut done: impl FnMut() -> bool) {
        wait_until(what, || {
            while self.executor.try_tick() {}
            done()
        });
    }
}

/// Rule W17: a connection yields once, and then finds a request that has come meanwhile.
#[test]
fn a_request_that_comes_in_the_pause_is_found() {
    let stepped = SteppedServer::start(&short_linger(), Limits::default());
    let mut client = stepped.client();
    client.get("/now");
    assert!(stepped.executor.try_tick(), "the connection does not look");
    assert_eq!(client.response().text(), "now");
}

/// Rule W17: a connection whose look has found nothing waits for an event.
#[test]
fn a_connection_that_has_found_nothing_waits_for_an_event() {
    let stepped = SteppedServer::start(&short_linger(), Limits::default());
    let mut client = stepped.client();
    assert!(stepped.executor.try_tick(), "the connection does not look");
    assert!(!stepped.executor.try_tick(), "the connection does not wait");
    client.get("/now");
    stepped.step();
    assert_eq!(client.response().text(), "now");
}

/// Rule W18: a busy connection sometimes waits for an event, because a program's executor may
/// handle no events while it has tasks to run.
#[test]
fn a_busy_connection_waits_for_an_event_now_and_then() {
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    let (send, connections) = mpsc::channel();
    let executor = ServerExecutor::from_fn(move |connection| send.send(connection).unwrap());
    let server = Server::new(held_handlers().1).executor(executor);
    let server = Running::of(server.stopped_by(&short_linger()));
    let mut client = server.connect();
    let mut connection = connections.recv_timeout(PATIENCE).unwrap();
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    let waker = Waker::from(wakes.clone());
    let woken = || wakes.0.load(Ordering::SeqCst);
    let mut has_yielded = true;
    let mut waits = 0;
    for _ in 0..100 {
        let before = woken();
        client.get("/now");
        wait_until("the connection is woken", || has_yielded || woken() > before);
        let before = woken();
        assert!(connection.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        // The client has not sent its next request yet, so only the connection can have woken
        // itself.
        has_yielded = woken() > before;
        waits += usize::from(!has_yielded);
        assert_eq!(client.response().text(), "now");
    }
    assert!((5..50).contains(&waits), "{waits} waits for an event");
}

/// Rules S6, S8 and S9: a request that comes after the stop, and before the connection looks, is
/// served, and its response says `close`.
#[test]
fn a_last_request_may_come_in_the_pause() {
    let stepped = SteppedServer::start(&long_grace(), Limits::default());
    let mut client = stepped.client();
    stepped.server.shutdown.stop();
    client.get("/now");
    assert!(stepped.executor.try_tick());
    let response = client.response();
    assert!(response.says_close() && response.text() == "now");
    assert_eq!(client.end(), End::Eof);
    stepped.run_until("the connection has ended", || stepped.server.shutdown.in_flight() == 0);
    let outcome = stepped.server.outcome();
    assert!(outcome.is_drained() && outcome.finished == 1, "{outcome}");
}

/// Rule S6: the linger continues, and the connection looks a last time after it.
#[test]
fn a_stop_in_the_pause_closes_the_connection_after_the_linger() {
    for is_late in [false, true] {
        let stepped = SteppedServer::start(&short_linger(), Limits::default());
        let mut client = stepped.client();
        stepped.server.shutdown.stop();
        if is_late {
            // The connection has not run before the linger is over.
            wait_until("the listener is closed", || is_refused(stepped.server.addr()));
        }
        stepped.run_until("the connection has ended", || stepped.server.shutdown.in_flight() == 0);
        assert_eq!(client.end(), End::Eof);
        let outcome = stepped.server.outcome();
        assert!(outcome.is_drained() && outcome.finished == 0, "{outcome}");
    }
}

/// Rule S13: an abort reports a request that nobody has read, and no connection without a request.
#[test]
fn an_abort_in_the_pause_names_a_request_that_has_come() {
    for comes in [false, true] {
        let stepped = SteppedServer::start(&long_grace(), Limits::default());
        let mut client = stepped.client();
        if comes {
            client.get("/now");
        }
        stepped.server.shutdown.abort();
        stepped.run_until("the connection has ended", || stepped.server.shutdown.in_flight() == 0);
        assert_eq!(client.end(), if comes { End::Reset } else { End::Eof });
        let outcome = stepped.server.outcome();
        let is_cut = |work: &OpenWork| matches!(work.kind, WorkKind::Connection { .. });
        assert_eq!(outcome.cut.iter().filter(|work| is_cut(work)).count(), usize::from(comes));
    }
}

#[test]
fn a_server_that_is_dropped_in_the_pause_ends_the_connection() {
    let mut stepped = SteppedServer::start(&long_grace(), Limits::default());
    let mut client = stepped.client();
    stepped.server.drop_server();
    stepped.run_until("no tasks are left", || stepped.executor.is_empty());
    assert_eq!(client.end(), End::Eof);
}

#[test]
fn a_client_that_leaves_in_the_pause_is_noticed() {
    let stepped = SteppedServer::start(&short_linger(), Limits::default());
    drop(stepped.client());
    assert!(stepped.executor.try_tick());
    wait_until("the connection has ended", || stepped.server.shutdown.in_flight() == 0);
    assert!(stepped.server.stop().is_drained());
}

/// Rule S24: a connection that has yielded can still be closed in favour of a new client.
#[test]
fn a_connection_in_the_pause_gives_its_place() {
    let stepped = SteppedServer::start(&short_linger(), Limits::default().connections(1));
    let mut first = stepped.client();
    let mut second = stepped.server.connect();
    second.get("/now");
    stepped.run_until("the second client is served", || second.has_something());
    assert_eq!(second.response().text(), "now");
    assert_eq!(first.end(), End::Eof);
}

// ── Beside busy clients ─────────────────────────────────────────────────────────────────────

/// The number of busy clients.
const BUSY: usize = 32;
/// The number of other clients, each of which sends a request.
const OTHERS: usize = 60;

/// The executor that runs the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExecutorKind {
    /// One thread polls `serve`, and no other thread runs tasks.
    Serve,
    /// One thread polls `serve` as a task on smol's global executor.
    Spawned,
    /// One thread runs the connections on the program's own executor.
    Own,
}

impl ExecutorKind {
    /// Returns the largest number of requests that may be answered before a waiting one. A new
    /// client waits for the listener's event and then for its task, each for at most one round of
    /// the executor, and then for one request of each busy client.
    fn longest_wait(self) -> usize {
        BUSY + 2 * match self {
            // W18: the library handles events after every 24 tasks.
            Self::Serve => 24,
            // `Executor::run` yields after 200 tasks, so that events are handled.
            Self::Spawned | Self::Own => 200,
        }
    }

    /// Serves until the server is stopped.
    fn serve(self, server: Server, listener: Listener) {
        let outcome = match self {
            Self::Serve => smol::block_on(server.serve([listener])),
            Self::Spawned => smol::block_on(smol::spawn(server.serve([listener]))),
            Self::Own => {
                let executor = Arc::new(Executor::new());
                let server = server.executor(executor.clone());
                smol::block_on(executor.run(server.serve([listener])))
            }
        };
        let _ = outcome.unwrap();
    }
}

/// Rule W18: a new client, and a client that has been idle for a moment, wait for a limited number
/// of requests of the busy clients.
#[test]
fn clients_are_served_beside_busy_ones() {
    for kind in [ExecutorKind::Serve, ExecutorKind::Spawned, ExecutorKind::Own] {
        let count = Arc::new(AtomicUsize::new(0));
        let handler = {
            let count = count.clone();
            move |_| {
                let number = count.fetch_add(1, Ordering::SeqCst);
                async move { Ok(number.to_string()) }
            }
        };
        let shutdown = short_linger();
        let server = Server::new(handler).shutdown(&shutdown);
        let listener = tcp();
        let addr = address_of(&listener);
        let serving = thread::spawn(move || kind.serve(server, listener));
        let (open, is_over) = mpsc::channel();
        let busy = thread::spawn(move || be_busy(addr, &is_over));
        let mut idle = Client::connect(addr);
        idle.get("/").response();
        wait_until("the others are busy", || count.load(Ordering::SeqCst) > 10 * BUSY);
        // The request is already in the socket, so a delay of this thread only makes the number
        // smaller.
        let waits = |client: &mut Client| {
            let before = count.load(Ordering::SeqCst);
            let at: usize = client.response().text().parse().unwrap();
            at.saturating_sub(before)
        };
        let mut new_ones = Vec::new();
        let mut idle_ones = Vec::new();
        for _ in 0..OTHERS {
            new_ones.push(waits(Client::connect(addr).get("/")));
            idle_ones.push(waits(idle.get("/")));
        }
        drop(open);
        busy.join().unwrap();
        shutdown.stop();
        serving.join().unwrap();
        for mut waits in [new_ones, idle_ones] {
            waits.sort_unstable();
            // The test takes the median, because async-io's thread may hold an event while it waits
            // for a processor.
            assert!(waits[OTHERS / 2] <= kind.longest_wait(), "{kind:?}: {waits:?}");
        }
    }
}

/// Sends requests on some connections, without a pause, until `is_over` is closed.
fn be_busy(addr: SocketAddr, is_over: &Receiver<()>) {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    let mut streams: Vec<_> = (0..BUSY).map(|_| TcpStream::connect(addr).unwrap()).collect();
    for stream in &mut streams {
        stream.set_nodelay(true).unwrap();
        stream.write_all(REQUEST).unwrap();
        stream.set_nonblocking(true).unwrap();
    }
    while is_over.try_recv() != Err(TryRecvError::Disconnected) {
        for stream in &mut streams {
            match stream.read(&mut [0; 1024]) {
                Ok(n) => {
                    assert!(n > 0, "the server has closed a connection");
                    stream.write_all(REQUEST).unwrap();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }
}
