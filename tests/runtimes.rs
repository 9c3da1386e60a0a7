//! `serve` on every runtime: smol's own executor, an executor of the program's, a local one, a bare
//! `block_on`, tokio with many threads and with one, and tokio's own `block_on`.
//!
//! All tests run on each runtime. A runtime gives the server nothing but threads, because tokio is
//! built without its I/O and its timers. The server starts no threads of its own, as the last tests
//! show.
//!
//! async-std is missing, because it was given up in 2025 and names smol as its successor. Its rest,
//! async-global-executor, is smol's executor on other threads.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::{Pin, pin};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use common::{
    Client, End, HeldHandlers, PATIENCE, Program, address_of, long_grace, tcp, wait_until,
};
use futures_lite::{FutureExt, future, stream};
use rustix::process::Signal;
use smol::{Executor, LocalExecutor, channel};
use smol_graceful::{
    Body, Listen, Listener, Outcome, Phase, Process, Request, Response, ServeError, Server,
    Shutdown, Token, signals, stream_body,
};

/// The runtime that polls a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runtime {
    /// `smol::spawn`.
    Global,
    /// The server and its connections run on an executor of the program's, with three threads.
    Own,
    /// The server is a task of a `LocalExecutor`, next to tasks that cannot leave their thread.
    Local,
    /// `block_on` alone.
    Bare,
    Tokio,
    TokioCurrent,
    /// tokio's `block_on` itself polls the server.
    TokioBare,
}

const RUNTIMES: [Runtime; 7] = [
    Runtime::Global,
    Runtime::Own,
    Runtime::Local,
    Runtime::Bare,
    Runtime::Tokio,
    Runtime::TokioCurrent,
    Runtime::TokioBare,
];

impl Runtime {
    /// Serves until the server has ended, or drops it as soon as `drop` is closed.
    fn serve(
        self,
        server: Server,
        listener: Listener,
        drop: &channel::Receiver<Infallible>,
    ) -> Option<Outcome> {
        let dropped = async {
            let _ = drop.recv().await;
            None
        };
        let ended = |outcome: Result<Outcome, ServeError>| Some(outcome.unwrap());
        match self {
            Self::Global => {
                // The drop of the task cancels it.
                let task = smol::spawn(server.serve([listener]));
                smol::block_on(async move { ended(task.await) }.or(dropped))
            }
            Self::Own => {
                let executor = Arc::new(Executor::new());
                let (_open, closed) = channel::bounded::<Infallible>(1);
                for _ in 0..3 {
                    let (executor, closed) = (executor.clone(), closed.clone());
                    thread::spawn(move || smol::block_on(executor.run(closed.recv())));
                }
                let server = server.executor(executor.clone());
                let task = executor.spawn(server.serve([listener]));
                let outcome = future::block_on(async move { ended(task.await) }.or(dropped));
                if outcome.is_none() {
                    // The connections are tasks of the program's executor, and have to end by
                    // themselves.
                    wait_until("no tasks are left", || executor.is_empty());
                }
                outcome
            }
            Self::Local => {
                let executor = LocalExecutor::new();
                let (send, received) = channel::unbounded::<u32>();
                // A task that cannot leave the thread goes on beside the server.
                let sum = Rc::new(RefCell::new(0));
                let adding = {
                    let sum = sum.clone();
                    executor.spawn(async move {
                        while let Ok(n) = received.recv().await {
                            *sum.borrow_mut() += n;
                        }
                    })
                };
                let counting = executor.spawn(async move {
                    for n in 0..1000 {
                        send.send(n).await.unwrap();
                        future::yield_now().await;
                    }
                });
                let serve = async { ended(server.serve([listener]).await) }.or(dropped);
                let outcome = smol::block_on(executor.run(serve));
                future::block_on(executor.run(async { (counting.await, adding.await) }));
                assert_eq!(*sum.borrow(), 499_500);
                outcome
            }
            Self::Bare => {
                future::block_on(async { ended(server.serve([listener]).await) }.or(dropped))
            }
            Self::TokioBare => {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async { ended(server.serve([listener]).await) }.or(dropped))
            }
            Self::Tokio | Self::TokioCurrent => {
                let mut builder = match self {
                    Self::Tokio => tokio::runtime::Builder::new_multi_thread(),
                    _ => tokio::runtime::Builder::new_current_thread(),
                };
                let runtime = builder.worker_threads(2).build().unwrap();
                runtime.block_on(async {
                    let mut task = tokio::spawn(server.serve([listener]));
                    let outcome = async { ended((&mut task).await.unwrap()) }.or(dropped).await;
                    if outcome.is_none() {
                        task.abort();
                        assert!(task.await.unwrap_err().is_cancelled());
                    }
                    outcome
                })
            }
        }
    }

    fn is_tokio(self) -> bool {
        matches!(self, Self::Tokio | Self::TokioCurrent | Self::TokioBare)
    }
}

/// A server in a runtime.
struct ServerInRuntime {
    runtime: Runtime,
    addr: SocketAddr,
    shutdown: Shutdown,
    handlers: HeldHandlers,
    drop: Option<channel::Sender<Infallible>>,
    outcome: Receiver<Option<Outcome>>,
}

impl ServerInRuntime {
    fn start(runtime: Runtime, shutdown: Shutdown) -> Self {
        let (handlers, enter, released) = HeldHandlers::new();
        let server = Server::new(handler(runtime, enter, released)).shutdown(&shutdown);
        let listener = tcp();
        let addr = address_of(&listener);
        let (drop, dropped) = channel::bounded(1);
        let (send, outcome) = mpsc::channel();
        thread::spawn(move || send.send(runtime.serve(server, listener, &dropped)));
        Self { runtime, addr, shutdown, handlers, drop: Some(drop), outcome }
    }

    fn connect(&self) -> Client {
        Client::connect(self.addr)
    }

    fn outcome(&self) -> Option<Outcome> {
        let outcome = self.outcome.recv_timeout(PATIENCE);
        outcome.unwrap_or_else(|_| panic!("{:?}: the server did not end", self.runtime))
    }

    fn wait_for_the_port(&self) {
        wait_until("the port is free", || TcpListener::bind(self.addr).is_ok());
    }
}

/// Returns a handler. `/now` answers, `/wait` waits for its release, `/echo` streams the body back,
/// `/ticks` streams one chunk after the other, `/until-stop` streams until the stop, and `/task`
/// asks a task of the runtime.
fn handler(
    runtime: Runtime,
    enter: Sender<String>,
    released: channel::Receiver<()>,
) -> impl Fn(Request) -> future::Boxed<http_types::Result<Response>> + Send + Sync + 'static {
    move |mut request| {
        let (enter, released) = (enter.clone(), released.clone());
        Box::pin(async move {
            let path = request.url().path().to_owned();
            Ok(match path.as_str() {
                "/now" => format!("now {}", request.url().query().unwrap_or_default()).into(),
                "/wait" => {
                    enter.send(path).unwrap();
                    let _ = released.recv().await;
                    "done".into()
                }
                "/echo" => Response::from(request.take_body()),
                "/ticks" => {
                    let ticks = stream::unfold(1, |n| async move {
                        future::yield_now().await;
                        (n <= 20).then(|| (Ok(format!("tick {n}\n")), n + 1))
                    });
                    stream_body(ticks).into()
                }
                "/until-stop" => {
                    let token = Token::of(&request);
                    let ticks = stream::unfold(true, move |first| {
                        let token = token.clone();
                        async move {
                            if !first {
                                token.until_stop(future::pending::<()>()).await?;
                            }
                            Some((Ok("first"), false))
                        }
                    });
                    stream_body(ticks).into()
                }
                "/task" if runtime.is_tokio() => {
                    tokio::spawn(async { "from a task" }).await.unwrap().into()
                }
                "/task" => smol::spawn(async { "from a task" }).await.into(),
                path => panic!("unknown: {path}"),
            })
        })
    }
}

/// Runs a test on all runtimes at once, and names those on which it fails.
fn on_each(test: fn(Runtime)) {
    let threads = RUNTIMES.map(|runtime| {
        let name = format!("{runtime:?}");
        (runtime, thread::Builder::new().name(name).spawn(move || test(runtime)).unwrap())
    });
    let failed: Vec<_> = threads
        .into_iter()
        .filter_map(|(runtime, thread)| thread.join().is_err().then_some(runtime))
        .collect();
    assert!(failed.is_empty(), "failed on {failed:?}");
}

#[test]
fn several_clients_are_served_everywhere() {
    on_each(|runtime| {
        let server = ServerInRuntime::start(runtime, Shutdown::new());
        thread::scope(|scope| {
            for number in 0..4 {
                let client = server.connect();
                scope.spawn(move || several_requests(client, number));
            }
        });
        server.shutdown.stop();
        let outcome = server.outcome().unwrap();
        assert!(outcome.is_drained(), "{outcome}");
        assert_eq!(server.shutdown.in_flight(), 0);
        server.wait_for_the_port();
    });
}

fn several_requests(mut client: Client, number: usize) {
    for n in 0..5 {
        let response = client.get(&format!("/now?{number}-{n}")).response();
        assert_eq!((response.status, response.text()), (200, format!("now {number}-{n}")));
    }
    // The body is larger than the kernel's buffers, so the server has to wait for the client in
    // both directions.
    let body: Vec<u8> = (0..2 * 1024 * 1024_usize).map(|i| (i % 251 + number) as u8).collect();
    let head =
        format!("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut upload = client.stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            upload.write_all(head.as_bytes()).unwrap();
            upload.write_all(&body).unwrap();
        });
        let response = client.response();
        assert_eq!(response.status, 200);
        assert!(response.body == body, "the echo is another");
    });
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n");
    client.send("Transfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.response().status, 100);
    client.send("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "hello world");

    let ticks: String = (1..=20).map(|n| format!("tick {n}\n")).collect();
    let response = client.get("/ticks").response();
    assert_eq!(response.header("transfer-encoding").as_deref(), Some("chunked"));
    assert_eq!(response.text(), ticks);
    assert_eq!(client.get("/task").response().text(), "from a task");

    let paths: Vec<_> = (0..50).map(|n| format!("/now?{number}-{n}")).collect();
    let get = |path: &String| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    client.send(paths.iter().map(get).collect::<String>());
    for path in &paths {
        assert_eq!(client.response().text(), path.replace("/now?", "now "));
    }
}

/// Rules S8, S9: on every runtime a request in the handler is finished, and its response says
/// `close`.
#[test]
fn a_stop_lets_finish_what_is_in_a_handler_everywhere() {
    on_each(|runtime| {
        let server = ServerInRuntime::start(runtime, Shutdown::new().grace(2 * PATIENCE));
        let mut busy = server.connect();
        busy.get("/wait");
        server.handlers.wait_for_call("/wait");
        let mut stream = server.connect();
        stream.get("/until-stop");
        while !stream.line().unwrap().is_empty() {}
        assert_eq!(stream.take(10).unwrap(), b"5\r\nfirst\r\n");
        let mut idle = server.connect();
        idle.get("/now").response();

        server.shutdown.stop();
        assert_eq!(stream.rest(), (b"0\r\n\r\n".to_vec(), End::Eof)); // S10: the handler sees the stop
        assert_eq!(idle.end(), End::Eof); // S6: closed after the linger
        server.wait_for_the_port(); // S4: the listener closes
        wait_until("only the busy one is left", || server.shutdown.in_flight() == 1);
        assert!(server.outcome.try_recv().is_err(), "{runtime:?}: ended with a request in flight");
        server.handlers.release();
        let response = busy.response();
        assert_eq!((response.text().as_str(), response.says_close()), ("done", true));
        assert_eq!(busy.end(), End::Eof);
        let outcome = server.outcome().unwrap();
        assert!(outcome.is_drained(), "{outcome}");
        assert_eq!(outcome.finished, 2);
    });
}

#[test]
fn dropping_the_server_closes_everything_everywhere() {
    on_each(|runtime| {
        let mut server = ServerInRuntime::start(runtime, long_grace());
        let mut busy = server.connect();
        busy.get("/wait");
        server.handlers.wait_for_call("/wait");
        let mut idle = server.connect();
        idle.get("/now").response();
        let mut half = server.connect();
        half.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello");

        server.drop = None;
        assert!(server.outcome().is_none());
        assert_eq!(busy.end(), End::Eof);
        assert_eq!(idle.end(), End::Eof);
        // The echo may have begun or not.
        half.rest();
        wait_until("nobody is left", || server.shutdown.in_flight() == 0);
        server.wait_for_the_port();
        // The latch is the program's, and was not stopped.
        assert_eq!(server.shutdown.phase(), Phase::Running);
    });
}

/// A server may be dropped in the middle of its drain, too.
#[test]
fn dropping_a_server_that_drains_closes_everything_everywhere() {
    on_each(|runtime| {
        let mut server = ServerInRuntime::start(runtime, long_grace());
        let mut busy = server.connect();
        busy.get("/wait");
        server.handlers.wait_for_call("/wait");
        server.shutdown.stop();
        server.wait_for_the_port();

        server.drop = None;
        assert!(server.outcome().is_none());
        assert_eq!(busy.end(), End::Eof);
        wait_until("nobody is left", || server.shutdown.in_flight() == 0);
    });
}

// ── Threads ─────────────────────────────────────────────────────────────────────────────────

/// A process that serves under a bare `block_on` has the same threads as before, and one that waits
/// for I/O.
#[test]
fn serve_starts_no_thread_but_the_reactor() {
    if is_child() {
        let outcome = future::block_on(server_that_lists_threads().serve(announced())).unwrap();
        return assert!(outcome.is_drained());
    }
    let mut child = child("serve_starts_no_thread_but_the_reactor");
    check_threads(&child, "async-io");
    let mut last = child.connect();
    assert!(last.get("/stop").response().says_close());
    assert_eq!(last.end(), End::Eof);
    assert_eq!(child.exit_code(), 0, "{child}");
}

/// With `run`, a process has its workers, the thread that called it, and one that waits for I/O.
#[test]
fn run_starts_its_workers_and_no_other_thread() {
    if is_child() {
        let process = Process::default().threads(3);
        return assert!(
            process.run(server_that_lists_threads(), announced()).unwrap().is_drained()
        );
    }
    let mut child = child("run_starts_its_workers_and_no_other_thread");
    check_threads(&child, "async-io worker-1 worker-2 worker-3");
    child.stop();
}

/// A handler that blocks the thread delays the signals for `obey`. The log and the outcome say so,
/// and two signals still count as two.
#[test]
fn a_signal_that_had_to_wait_is_told() {
    if is_child() {
        return serve_and_obey(future::block_on);
    }
    check_signals_that_wait("a_signal_that_had_to_wait_is_told");
}

/// In this case, the blocked thread is the one that waits for I/O.
#[test]
fn a_signal_that_had_to_wait_is_told_under_smols_block_on() {
    if is_child() {
        return serve_and_obey(smol::block_on);
    }
    check_signals_that_wait("a_signal_that_had_to_wait_is_told_under_smols_block_on");
}

/// Serves. `/block` blocks until it has read the parent's bytes from standard input.
fn serve_and_obey(run: impl FnOnce(Pin<Box<dyn Future<Output = Outcome>>>) -> Outcome) {
    env_logger::Builder::new().filter_level(log::LevelFilter::Info).init();
    let server = Server::new(|mut request: Request| async move {
        if request.url().path() == "/block" {
            log::info!("blocking");
            io::stdin().read_line(&mut String::new())?;
        }
        Ok(request.take_body())
    });
    let shutdown = Shutdown::new();
    let server = server.shutdown(&shutdown);
    let signals = signals().unwrap();
    let serve = async move { server.serve(announced()).await.unwrap() };
    let outcome = run(Box::pin(async move { shutdown.obey(signals, serve).await }));
    log::info!("outcome: {outcome}");
}

fn check_signals_that_wait(test: &str) {
    const LONG: Duration = Duration::from_millis(1500);
    for (second, is_cut) in [(None, false), (Some(Duration::ZERO), false), (Some(LONG), true)] {
        let (stdin, mut release) = UnixStream::pair().unwrap();
        let mut child = Program::start_with_stdin(child_command(test), OwnedFd::from(stdin));
        let mut sending = child.connect();
        sending.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n");
        assert_eq!(sending.send("Expect: 100-continue\r\n\r\n").response().status, 100);
        child.connect().get("/block");
        child.wait_for("blocking");

        // The child is suspended, so that it sees two signals in one moment.
        child.signal(Signal::STOP);
        child.signal(Signal::TERM);
        if second == Some(Duration::ZERO) {
            child.signal(Signal::INT);
        }
        child.signal(Signal::CONT);
        // This pause is the wait of the signal, which the test is about.
        thread::sleep(LONG);
        if second == Some(LONG) {
            child.signal(Signal::INT);
            // This gives the child the time to take the signal in, which no event shows.
            thread::sleep(LONG);
        }
        release.write_all(b"\n").unwrap();
        // The kernel may deliver either of two signals first.
        child.wait_for(" waited ");
        if !is_cut {
            assert_eq!(sending.send("hello").response().text(), "hello");
        }
        let line = child.wait_for("outcome: ");
        assert_eq!(line.contains("drained in "), !is_cut, "{child}");
        let (took, _) = line.split_once(" s, ").unwrap();
        let took: f64 = took.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(took >= LONG.as_secs_f64(), "{child}");
        assert_eq!(child.log().contains("second signal, SIGINT"), is_cut, "{child}");
    }
}

/// If async-io's own thread waits for events, as under all runtimes but smol's, a request costs it
/// a few waits and no more. async-io does not report an event that came while that thread was
/// waiting already, so a task that only asks async-io again would wait again and again.
#[test]
fn a_request_is_not_waited_for_again_and_again() {
    if is_child() {
        let outcome = future::block_on(server_that_lists_threads().serve(announced())).unwrap();
        return assert!(outcome.is_drained());
    }
    let mut child = child("a_request_is_not_waited_for_again_and_again");
    let mut client = child.connect();
    let waits = |client: &mut Client| -> u64 {
        client.get("/waits").response().text().parse().expect("a number")
    };
    // A thread has its name only after it has begun.
    wait_until("async-io's thread is there", || client.get("/waits").response().status == 200);
    let before = waits(&mut client);
    const REQUESTS: u64 = 1000;
    for _ in 0..REQUESTS {
        assert_eq!(client.get("/").response().status, 200);
    }
    let each = (waits(&mut client) - before) as f64 / REQUESTS as f64;
    assert!(each < 4.0, "{each} waits of the reactor for each request");
    assert!(client.get("/stop").response().says_close());
    assert_eq!(child.exit_code(), 0, "{child}");
}

/// A new waker at each poll, as under `block_on` of tokio's current-thread runtime, must not cause
/// another poll. async-io wakes its old waker when it gets a new one, so this could go on for ever.
#[test]
fn another_waker_at_each_poll_is_no_reason_to_poll_again() {
    if is_child() {
        let polls = Arc::new(AtomicU64::new(0));
        let counted = polls.clone();
        let server = Server::new(move |_| {
            let polls = counted.load(Ordering::Relaxed).to_string();
            async { Ok(polls) }
        });
        let shutdown = Shutdown::new();
        let server = server.shutdown(&shutdown);
        let serving = async {
            let signals = signals().unwrap();
            shutdown.obey(signals, server.serve(announced())).await
        };
        let outcome = block_on_with_new_wakers(serving, &polls).unwrap();
        return assert!(outcome.is_drained());
    }
    let mut child = child("another_waker_at_each_poll_is_no_reason_to_poll_again");
    let mut client = child.connect();
    let polls =
        |client: &mut Client| client.get("/").response().text().parse::<u64>().expect("a number");
    let before = polls(&mut client);
    const REQUESTS: u64 = 200;
    for _ in 1..REQUESTS {
        polls(&mut client);
    }
    let each = (polls(&mut client) - before) as f64 / REQUESTS as f64;
    assert!(each < 5.0, "{each} polls for each request");
    child.stop();
}

fn block_on_with_new_wakers<F: Future>(future: F, polls: &AtomicU64) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut future = pin!(future);
    loop {
        polls.fetch_add(1, Ordering::Relaxed);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Sends requests of every kind, and checks that none has started a thread (async-h1 would, at
/// `Expect`).
fn check_threads(child: &Program, expected: &str) {
    let mut client = child.connect();
    // A thread has its name only after it has begun.
    wait_until("the threads are there", || client.get("/threads").response().text() == expected);
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n");
    client.send("Content-Length: 5\r\n\r\n");
    assert_eq!(client.response().status, 100);
    assert_eq!(client.send("hello").response().text(), "hello");
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n");
    client.send("Trailer: x\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n");
    assert_eq!(client.response().text(), "hello");
    assert_eq!(child.connect().send("nonsense\r\n\r\n").response().status, 400);
    assert_eq!(client.get("/threads").response().text(), expected);
}

/// Starts this test in a process of its own.
fn child(test: &str) -> Program {
    Program::start(child_command(test))
}

fn child_command(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, "yes");
    command
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

const CHILD: &str = "SMOL_GRACEFUL_TEST_CHILD";

/// Returns a listener that prints its address for the parent, when the server asks for it.
#[expect(clippy::print_stderr, reason = "the parent reads it")]
fn announced() -> impl Iterator<Item = io::Result<Listener>> {
    ["127.0.0.1:0"].into_iter().map(|address| {
        let listener = address.listen()?;
        eprintln!("listening on {}", listener.address());
        Ok(listener)
    })
}

/// Returns a server whose `/threads` lists the threads that the process has started since this
/// call.
fn server_that_lists_threads() -> Server {
    let before = Arc::new(threads());
    let shutdown = Shutdown::new();
    let stop = shutdown.clone();
    let server = Server::new(move |mut request: Request| {
        let (before, stop) = (before.clone(), stop.clone());
        async move {
            Ok(match request.url().path() {
                "/threads" => {
                    let mut new = threads();
                    new.retain(|id, _| !before.contains_key(id));
                    let mut names: Vec<_> = new.into_values().collect();
                    names.sort();
                    Body::from(names.join(" "))
                }
                "/waits" => {
                    let thread = threads().into_iter().find(|(_, name)| name == "async-io");
                    // This is an error and not a panic, because a panic would close the connection.
                    let no_thread = || http_types::Error::from_str(503, "async-io has no thread");
                    waits(&thread.ok_or_else(no_thread)?.0).to_string().into()
                }
                "/stop" => {
                    stop.stop();
                    "stopping".into()
                }
                _ => request.take_body(),
            })
        }
    });
    server.shutdown(&shutdown)
}

/// Returns how often this thread has waited so far.
fn waits(id: &OsString) -> u64 {
    let status = fs::read_to_string(Path::new("/proc/self/task").join(id).join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Returns the ids and the names of this process's threads.
fn threads() -> BTreeMap<OsString, String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap());
    // A thread may end meanwhile.
    let name = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        Some((task.file_name(), name.trim_end().to_owned()))
    };
    tasks.filter_map(name).collect()
}
