//! The threads of handlers: each kind of executor that a server takes, and handlers that stay on
//! one thread (`Server::local`).
//!
//! A handler answers with the name of its thread, and a value sends the name of the thread on which
//! it is dropped.

mod common;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{pending, ready};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use common::{
    Client, End, PATIENCE, Running, StoppedBy, address_of, assert_drains, for_each, long_grace,
    tcp, wait_until,
};
use futures_lite::future;
use smol::{Executor, LocalExecutor, channel};
use smol_graceful::{
    OpenWork, Request, Server, ServerExecutor, Shutdown, Stage, StatusCode, Token, WorkKind,
};

fn thread_name() -> String {
    thread::current().name().unwrap_or("without name").to_owned()
}

// ── Executors ───────────────────────────────────────────────────────────────────────────────

/// Asserts that several clients of a server on `executor` are answered by the thread `name`.
fn check_thread(executor: impl Into<ServerExecutor>, name: &str) {
    let server = Server::new(|_| async { Ok(thread_name()) }).executor(executor);
    let server = Running::of(server);
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for client in &mut clients {
        for _ in 0..2 {
            assert_eq!(client.get("/").response().text(), name);
        }
    }
    drop(clients);
    assert_drains(&server);
}

/// Runs `executor` on a thread with this name, until the returned value is dropped.
fn run(executor: impl AsRef<Executor<'static>> + Send + 'static, name: &str) -> impl Sized {
    let (open, closed) = channel::bounded::<Infallible>(1);
    let run = move || smol::block_on(executor.as_ref().run(closed.recv()));
    thread::Builder::new().name(name.into()).spawn(run).unwrap();
    open
}

#[test]
fn a_shared_executor_runs_the_handlers() {
    let executor = Arc::new(Executor::new());
    let _running = run(executor.clone(), "shared");
    check_thread(executor, "shared");
}

#[test]
fn a_static_executor_runs_the_handlers() {
    static EXECUTOR: Executor<'static> = Executor::new();

    struct ByReference;

    impl AsRef<Executor<'static>> for ByReference {
        fn as_ref(&self) -> &Executor<'static> {
            &EXECUTOR
        }
    }

    let _running = run(ByReference, "static");
    check_thread(&EXECUTOR, "static");
}

#[test]
fn smols_global_executor_runs_the_handlers() {
    let name = smol::block_on(smol::spawn(async { thread_name() }));
    assert!(name.starts_with("smol-"), "{name}");
    check_thread(ServerExecutor::global(), &name);
}

#[test]
fn another_runtime_runs_the_handlers() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).thread_name("tokios").build().unwrap();
    let handle = runtime.handle().clone();
    let executor = ServerExecutor::from_fn(move |connection| drop(handle.spawn(connection)));
    check_thread(executor, "tokios");
}

/// Rule S17: the connection is closed, holds up no drain, and the server goes on.
#[test]
fn a_connection_that_an_executor_drops_is_closed() {
    let panics = ServerExecutor::from_fn(|_| panic!("no room"));
    for executor in [ServerExecutor::from_fn(drop), panics] {
        let server = Server::new(|_| async { Ok("okay") }).executor(executor);
        let server = Running::of(server);
        for _ in 0..2 {
            let mut client = server.connect();
            assert_ne!(client.end(), End::Cut);
        }
        assert_drains(&server);
    }
}

// ── Handlers that stay on one thread ────────────────────────────────────────────────────────

/// A server on one thread, and its handlers, which cannot leave their thread, on another one.
struct LocalServer {
    server: Running,
    /// The threads on which waiting handlers were dropped.
    dropped: Receiver<String>,
    /// The drop ends the handlers' thread.
    handlers: Option<(channel::Sender<Infallible>, JoinHandle<()>)>,
}

/// A value, neither `Send` nor `Sync`, that sends the name of the thread on which it is dropped.
struct ReportsDrop(Sender<String>, PhantomData<Rc<()>>);

impl Drop for ReportsDrop {
    fn drop(&mut self) {
        let _ = self.0.send(thread_name());
    }
}

impl LocalServer {
    /// Starts a server. `/count` counts, `/panic` panics, and `/panic-at-once` panics before there
    /// is a future. `/wait` waits for ever, and `/guarded` waits with a guard. `/until-stop` waits
    /// for the stop. A waiting handler reports the thread on which it is dropped.
    fn start(shutdown: &Shutdown) -> Self {
        let (tell_dropped, dropped) = mpsc::channel();
        let (send, server) = mpsc::channel();
        let (open, closed) = channel::bounded::<Infallible>(1);
        let run = move || {
            let count = Rc::new(Cell::new(0));
            let executor = LocalExecutor::new();
            let handler = move |request: Request| {
                assert_ne!(request.url().path(), "/panic-at-once", "as the client wished");
                handle(request, count.clone(), tell_dropped.clone())
            };
            send.send(Server::local(&executor, handler)).unwrap();
            let _ = smol::block_on(executor.run(closed.recv()));
        };
        let thread = thread::Builder::new().name("local".into()).spawn(run).unwrap();
        let server = Running::of(server.recv().unwrap().stopped_by(shutdown));
        Self { server, dropped, handlers: Some((open, thread)) }
    }

    /// Sends a request, and waits until its handler is at work.
    fn begin(&self, path: &str) -> Client {
        let mut client = self.server.connect();
        client.get(path);
        // The handlers are called in turn.
        let is_at_work = |work: &OpenWork| match &work.kind {
            WorkKind::Connection { stage, target, .. } => {
                *stage == Stage::Handler && target == path
            }
            _ => false,
        };
        wait_until("it is at work", || self.server.shutdown.open_work().iter().any(is_at_work));
        self.count();
        client
    }

    fn count(&self) -> u32 {
        count(self.server.addr())
    }

    fn end_handlers(&mut self) {
        let (open, thread) = self.handlers.take().expect("they have ended");
        drop(open);
        thread.join().unwrap();
    }

    fn dropped_on(&self) -> String {
        self.dropped.recv_timeout(PATIENCE).expect("nothing was dropped")
    }
}

/// Asks `/count`, and returns the count.
fn count(address: SocketAddr) -> u32 {
    let text = Client::connect(address).get("/count").response().text();
    let (count, thread) = text.split_once(" on ").expect("a count and a thread");
    assert_eq!(thread, "local");
    count.parse().unwrap()
}

async fn handle(
    request: Request,
    count: Rc<Cell<u32>>,
    tell_dropped: Sender<String>,
) -> smol_graceful::Result<String> {
    let report_drop = || ReportsDrop(tell_dropped, PhantomData);
    match request.url().path() {
        "/count" => {
            count.set(count.get() + 1);
            // The handler yields, so it is polled again after others.
            future::yield_now().await;
            Ok(format!("{} on {}", count.get(), thread_name()))
        }
        "/panic" => panic!("as the client wished"),
        "/wait" => {
            let _report_drop = report_drop();
            pending().await
        }
        "/guarded" => {
            let _report_drop = report_drop();
            let _guard = Token::of(&request).guard()?;
            pending().await
        }
        "/until-stop" => {
            Token::of(&request).stopping().await;
            Ok("stopped".into())
        }
        path => Err(smol_graceful::Error::from_str(StatusCode::NotFound, path.to_owned())),
    }
}

#[test]
fn handlers_that_are_not_send_share_what_is_not_sync() {
    let local = LocalServer::start(&long_grace());
    let mut client = local.server.connect();
    for n in 1..=3 {
        assert_eq!(client.get("/count").response().text(), format!("{n} on local"));
    }
    assert_eq!(local.count(), 4);
    assert_eq!(client.get("/lost").response().status, 404);
    let address = local.server.addr();
    for_each(0..4, |_| {
        for _ in 0..25 {
            count(address);
        }
    });
    assert_eq!(local.count(), 105);
}

/// Rule S17 holds on the other thread, too.
#[test]
fn a_panic_of_a_local_handler_costs_its_client_alone() {
    let local = LocalServer::start(&long_grace());
    for path in ["/panic", "/panic-at-once"] {
        let mut client = local.server.connect();
        let response = client.get(path).response();
        assert!(response.status == 500 && response.says_close(), "{path}");
        assert_eq!(client.end(), End::Eof);
    }
    assert_eq!(local.count(), 1);
}

/// Rules S13, S22: a handler is dropped on the thread on which it has run.
#[test]
fn a_local_handler_is_dropped_on_its_own_thread() {
    let shutdown = long_grace();
    let mut local = LocalServer::start(&shutdown);
    local.begin("/wait").reset();
    assert_eq!(local.dropped_on(), "local");
    // A handler with a guard goes on without its client.
    local.begin("/guarded").reset();
    let mut waits = local.begin("/wait");
    shutdown.abort();
    assert_ne!(waits.end(), End::Cut);
    let outcome = local.server.outcome();
    let is_named = |path: &str| {
        outcome
            .cut
            .iter()
            .any(|cut| matches!(&cut.kind, WorkKind::Connection { target, .. } if target == path))
    };
    assert!(is_named("/wait"), "{outcome}");
    assert_eq!([local.dropped_on(), local.dropped_on()], ["local", "local"]);
    local.end_handlers();
}

#[test]
fn the_drain_waits_for_a_local_handler() {
    let shutdown = long_grace().linger(std::time::Duration::ZERO);
    let local = LocalServer::start(&shutdown);
    let mut client = local.begin("/until-stop");
    shutdown.stop();
    let response = client.response();
    assert!(response.text() == "stopped" && response.says_close());
    let outcome = local.server.outcome();
    assert!(outcome.is_drained() && outcome.finished == 1, "{outcome}");
}

/// If the executor is dropped, a waiting request and a later one get an answer.
#[test]
fn a_request_without_an_executor_is_answered() {
    let mut local = LocalServer::start(&long_grace());
    let mut waits = local.begin("/wait");
    local.end_handlers();
    assert_eq!(waits.response().status, 503);
    assert_eq!(local.dropped_on(), "local");
    assert_eq!(local.server.connect().get("/count").response().status, 503);
}

/// A request that was sent to the handlers' thread, and was never received there, gets 503.
#[test]
fn a_request_whose_executor_was_never_polled_is_answered() {
    let executor = LocalExecutor::new();
    let shutdown = long_grace();
    let server = Server::local(&executor, |_| ready(Ok("never")));
    let server = Running::of(server.stopped_by(&shutdown));
    let mut client = server.connect();
    client.get("/");
    let in_handler =
        |work: &OpenWork| matches!(work.kind, WorkKind::Connection { stage: Stage::Handler, .. });
    wait_until("it waits", || shutdown.open_work().iter().any(in_handler));
    drop(executor);
    assert_eq!(client.response().status, 503);
}

/// The thread that polls the server polls the handlers, too.
#[test]
fn server_and_handlers_may_share_a_thread() {
    let (send, address) = mpsc::channel();
    let shutdown = long_grace();
    let stop = shutdown.clone();
    let serving = thread::spawn(move || {
        let executor = LocalExecutor::new();
        let count = Rc::new(Cell::new(0));
        let server = Server::local(&executor, move |_| {
            count.set(count.get() + 1);
            ready(Ok(count.get().to_string()))
        });
        let listener = tcp();
        send.send(address_of(&listener)).unwrap();
        let serve = server.shutdown(&stop).serve([listener]);
        smol::block_on(executor.run(serve)).unwrap()
    });
    let address = address.recv_timeout(PATIENCE).unwrap();
    for n in 1..=3 {
        assert_eq!(Client::connect(address).get("/").response().text(), n.to_string());
    }
    shutdown.stop();
    assert!(serving.join().unwrap().is_drained());
}
