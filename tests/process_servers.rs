//! Several servers of one process under `run` (rule S26): one stop for all, and an admin server
//! that answers until the others have drained.

mod common;

use std::env;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use common::{
    Client, KeeperProcess, PATIENCE, Program, address_of, free_port, handler, held_handlers,
    is_refused, long_grace, pass_repeat_window, tcp, wait_until,
};
use futures_lite::{future, stream};
use rustix::process::Signal;
use smol_graceful::{
    Connection, DrainEnding, Listener, Outcome, Process, Request, Response, Result, ServeError,
    Server, Shutdown, StatusCode, WorkKind, probe_for,
};

/// Returns an admin server with `/readyz` and `/livez` of the server that `shutdown` stops. `/open`
/// lists the holders of that server's drain, and `/stuck` never ends.
fn admin(shutdown: &Shutdown) -> Server {
    let shutdown = Arc::new(shutdown.clone());
    Server::new(move |request: Request| {
        let shutdown = shutdown.clone();
        async move { administer(&shutdown, &request).await }
    })
}

async fn administer(shutdown: &Shutdown, request: &Request) -> Result {
    if let Some(response) = probe_for(&shutdown.token(), request) {
        return Ok(response);
    }
    match request.url().path() {
        "/open" => Ok(shutdown.in_flight().to_string().into()),
        "/stuck" => future::pending().await,
        _ => Ok(Response::new(StatusCode::NotFound)),
    }
}

/// Runs `process` without signals, in a thread.
fn run(
    process: Process,
    server: Server,
    listener: Listener,
) -> Receiver<std::result::Result<Outcome, ServeError>> {
    let (send, ended) = mpsc::channel();
    thread::spawn(move || {
        let _ = send.send(process.signals([]).restart_on(None).threads(2).run(server, [listener]));
    });
    ended
}

fn status(addr: SocketAddr, path: &str) -> u16 {
    Client::connect(addr).get(path).response().status
}

/// Rule S26: the admin server answers until the other server has drained, and then stops.
#[test]
fn the_admin_server_answers_until_the_others_have_drained() {
    let (handlers, handler) = held_handlers();
    let shutdown = long_grace();
    let [public, asked] = [tcp(), tcp()];
    let addresses = [&public, &asked].map(address_of);
    let process = Process::default().admin(admin(&shutdown), [asked]);
    let ended = run(process, Server::new(handler).shutdown(&shutdown), public);

    let mut idle = Client::connect(addresses[1]);
    assert_eq!(idle.get("/readyz").response().status, 200);
    let mut client = Client::connect(addresses[0]);
    client.get("/wait");
    handlers.wait_for_call("/wait");
    shutdown.stop();
    wait_until("the public server has closed its listener", || is_refused(addresses[0]));

    assert_eq!(status(addresses[1], "/readyz"), 503);
    assert_eq!(status(addresses[1], "/livez"), 200);
    let response = idle.get("/open").response();
    assert_eq!((response.text().as_str(), response.says_close()), ("1", false));
    assert!(ended.try_recv().is_err());

    handlers.release();
    assert_eq!(client.response().text(), "done");
    let outcome = ended.recv_timeout(PATIENCE).unwrap().unwrap();
    assert!(outcome.is_drained(), "{outcome}");
    assert_eq!(outcome.finished, 1, "{outcome}");
    assert!(is_refused(addresses[1]));
}

/// Rule S26: with a grace of its own, an admin server would prolong the stop beyond the operator's
/// limit.
#[test]
fn the_admin_server_has_what_the_others_leave_of_their_grace() {
    let shutdown = Shutdown::new().grace(Duration::from_millis(50)).linger(Duration::ZERO);
    let [public, asked] = [tcp(), tcp()];
    let addr = address_of(&asked);
    // These times are longer than the patience of this test.
    let own = Shutdown::new().grace(Duration::MAX).lame_duck(Duration::MAX);
    let process = Process::default().admin(admin(&shutdown).shutdown(&own), [asked]);
    let ended = run(process, Server::new(handler()).shutdown(&shutdown), public);
    let mut client = Client::connect(addr);
    client.get("/stuck");
    wait_until("the request is in flight", || own.in_flight() == 1);
    shutdown.stop();
    let outcome = ended.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(outcome.ending, DrainEnding::TimedOut);
    let [cut] = &outcome.cut[..] else { panic!("{outcome}") };
    assert!(matches!(&cut.kind, WorkKind::Connection { target, .. } if target == "/stuck"));
}

#[test]
fn an_admin_server_cannot_have_the_handle_of_another() {
    let shutdown = Shutdown::new();
    // A child of the handle is not allowed either.
    for own in [shutdown.clone(), shutdown.token().child()] {
        let admin = admin(&shutdown).shutdown(&own);
        let process = Process::default().admin(admin, ["127.0.0.1:0"]);
        let server = Server::new(handler()).shutdown(&shutdown);
        let error = process.run(server, ["127.0.0.1:0"]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().ends_with("give it a `Shutdown` of its own"), "{error}");
    }
}

/// Servers with one handle count the requests of all of them, and a server also counts those on its
/// child latches. No request counts twice.
#[test]
fn the_outcome_adds_up_all_servers() {
    for kind in ["shared", "child", "apart"] {
        let (handlers, handler) = held_handlers();
        let shutdown = long_grace();
        let other = match kind {
            "shared" => shutdown.clone(),
            "child" => shutdown.token().child(),
            _ => long_grace(),
        };
        let handler = Arc::new(handler);
        let server = |shutdown: &Shutdown| {
            let handler = handler.clone();
            Server::new(move |request| handler(request)).shutdown(shutdown)
        };
        let [one, two] = [tcp(), tcp()];
        let addresses = [&one, &two].map(address_of);
        let process = Process::default().also(server(&other), [two]);
        let ended = run(process, server(&shutdown), one);
        let clients = addresses.map(|addr| {
            let mut client = Client::connect(addr);
            client.get("/wait");
            handlers.wait_for_call("/wait");
            client
        });
        shutdown.stop();
        other.stop();
        addresses.iter().for_each(|addr| wait_until("it is closed", || is_refused(*addr)));
        handlers.release();
        for mut client in clients {
            assert_eq!(client.response().text(), "done");
        }
        let outcome = ended.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!((outcome.is_drained(), outcome.finished), (true, 2), "{outcome}");
    }
}

/// A server on a child latch was stopped alone and has cut a request. The outcome of the process
/// names it.
#[test]
fn the_outcome_names_what_a_child_has_cut_before() {
    let (handlers, handler) = held_handlers();
    let shutdown = long_grace();
    let part = shutdown.token().child().grace(Duration::ZERO);
    let [one, two] = [tcp(), tcp()];
    let address = address_of(&two);
    let server = Server::new(handler).shutdown(&part);
    let process = Process::default().also(server, [two]);
    let main = Server::new(|_| async { Ok("okay") }).shutdown(&shutdown);
    let ended = run(process, main, one);
    let mut client = Client::connect(address);
    client.get("/wait");
    handlers.wait_for_call("/wait");
    part.stop();
    assert!(client.try_response(false).is_err());
    wait_until("it is gone", || shutdown.in_flight() == 0);
    shutdown.stop();
    let outcome = ended.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(outcome.ending, DrainEnding::TimedOut, "{outcome}");
    let [cut] = &outcome.cut[..] else { panic!("{outcome}") };
    assert!(matches!(&cut.kind, WorkKind::Connection { target, .. } if target == "/wait"));
}

/// Rule S17: if the source of one server panics, all servers stop.
#[test]
fn a_source_that_panics_stops_all_servers() {
    for is_admin in [true, false] {
        let shutdown = long_grace();
        let broken = Listener::from_stream(stream::poll_fn(
            |_| -> std::task::Poll<Option<std::io::Result<Connection>>> { panic!("broken") },
        ));
        let beside = Server::new(handler());
        let process = Process::default();
        let process = match is_admin {
            true => process.admin(beside, [broken]),
            false => process.also(beside, [broken]),
        };
        let ended = run(process, Server::new(handler()).shutdown(&shutdown), tcp());
        let error = ended.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert!(error.to_string().contains("has panicked: broken"), "{error}");
        assert!(shutdown.token().is_stopping());
    }
}

// ── As a process of its own ─────────────────────────────────────────────────────────────────

/// The addresses of the two servers.
const PUBLIC: &str = "SG_TEST_PUBLIC";
const ADMIN: &str = "SG_TEST_ADMIN";

/// Returns a program with a public and an admin server, and their addresses.
fn program() -> (Command, [SocketAddr; 2]) {
    let addresses = [(); 2].map(|()| free_port());
    let mut program = Command::new(env::current_exe().unwrap());
    program.args(["--exact", "the_program_of_these_tests", "--nocapture", "--test-threads=1"]);
    program.env(PUBLIC, addresses[0].to_string()).env(ADMIN, addresses[1].to_string());
    (program, addresses)
}

#[test]
fn the_program_of_these_tests() {
    let (Ok(public), Ok(asked)) = (env::var(PUBLIC), env::var(ADMIN)) else { return };
    env_logger::Builder::new().filter_level(log::LevelFilter::Info).init();
    let shutdown = Shutdown::new().grace(PATIENCE);
    let server = Server::new(|request: Request| async move {
        if request.url().path() == "/stuck" {
            log::info!("a request is stuck");
            future::pending::<()>().await;
        }
        Ok(format!("{}", std::process::id()))
    });
    let process = Process::default().admin(admin(&shutdown), [asked]);
    let outcome = process.run(server.shutdown(&shutdown), [public]).unwrap();
    log::info!("all: {outcome}");
}

#[test]
fn a_second_signal_ends_the_admin_server_too() {
    let (command, [public, asked]) = program();
    let mut program = Program::start(command);
    program.wait_for(&format!("listening on {public}"));
    let mut client = Client::connect(public);
    client.get("/stuck");
    program.wait_for("a request is stuck");
    let mut stuck = Client::connect(asked);
    stuck.get("/stuck");
    wait_until("the admin server serves", || status(asked, "/readyz") == 200);
    program.signal(Signal::TERM);
    wait_until("the admin server says so", || status(asked, "/readyz") == 503);
    pass_repeat_window();
    program.signal(Signal::TERM);
    let line = program.wait_for("all: forced to end");
    assert!(line.contains("2 cut") && line.contains("stopped by SIGTERM"), "{line}");
    program.wait();
}

#[test]
#[cfg(target_os = "linux")]
fn a_restart_closes_no_connection_of_the_admin_server() {
    let (command, addresses) = program();
    let mut servers = KeeperProcess::start(&command);
    let mut clients = addresses.map(Client::connect);
    for path in ["/readyz", "/livez"] {
        assert_eq!(clients[0].get("/").response().text(), servers.serving.number().to_string());
        let predecessor = servers.serving;
        servers.restart();
        // The predecessor may be stopping, but the service goes on.
        assert_eq!(clients[1].get(path).response().status, 200);
        assert_eq!(servers.exit_code(predecessor), 0);
        let response = clients[0].get("/").response();
        assert_eq!(response.text(), servers.serving.number().to_string());
    }
    servers.signal(Signal::TERM);
    let log = servers.program.log();
    assert_eq!(servers.program.exit_code(), 0, "{log}");
    // Each of three processes has a line for both servers, and one for the process.
    assert_eq!(log.matches("drained in ").count(), 9, "{log}");
}

/// If its keeper has ended, a process stops as usual, and its admin server stops last.
#[test]
#[cfg(target_os = "linux")]
fn the_admin_server_outlives_the_keeper_as_well() {
    let (command, [public, asked]) = program();
    let mut servers = KeeperProcess::start(&command);
    let mut client = Client::connect(public);
    client.get("/stuck");
    servers.program.wait_for("a request is stuck");
    servers.keeper().signal(Signal::KILL);
    wait_until("the public server is closed", || is_refused(public));
    assert_eq!(status(asked, "/readyz"), 503);
    servers.serving.signal(Signal::KILL);
}
