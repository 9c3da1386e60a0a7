//! Latches in programs: a server that stops by an event of the program, servers and work on child
//! latches, the holders of a latch, and the log of several servers.
//!
//! The servers are in this process, and the port in each line of the log shows its server.

mod common;

use std::future::{pending, ready};

use common::{
    Dropped, End, Log, PATIENCE, Running, StoppedBy, address_of, held_handlers, long_grace,
    short_linger, tcp, wait_for_close, wait_until, within_patience,
};
use futures_lite::FutureExt;
use log::Level;
use smol::channel;
use smol_graceful::{Phase, Server, Shutdown, Stage, WorkKind};

// ── serve_until ─────────────────────────────────────────────────────────────────────────────

/// An event of the program stops the server, which drains as at any stop.
#[test]
fn a_server_stops_by_an_event_of_the_program() {
    let (handlers, handler) = held_handlers();
    let shutdown = short_linger();
    let (stop, stopped) = channel::bounded::<()>(1);
    let listener = tcp();
    let addr = address_of(&listener);
    let server = Server::new(handler).shutdown(&shutdown);
    let serving = std::thread::spawn(move || {
        within_patience(server.serve_until([listener], async move { stopped.recv().await }))
    });
    let mut busy = common::Client::connect(addr);
    busy.get("/wait");
    handlers.wait_for_call("/wait");
    stop.try_send(()).unwrap();
    wait_for_close(addr);
    handlers.release();
    let response = busy.response();
    assert!(response.text() == "done" && response.says_close());
    let outcome = serving.join().unwrap().unwrap();
    assert!(outcome.is_drained() && outcome.finished == 1, "{outcome}");
}

/// A server stops by an event that has come already, and by its own handle if the event never
/// comes.
#[test]
fn an_event_is_one_way_to_stop_among_others() {
    let server = || Server::new(|_| async { Ok("okay") });
    let outcome =
        within_patience(server().serve_until(["127.0.0.1:0"], ready("whatever"))).unwrap();
    assert!(outcome.is_drained());

    let shutdown = Shutdown::new();
    let serve = server().shutdown(&shutdown).serve_until(["127.0.0.1:0"], pending::<()>());
    shutdown.stop();
    // The future may move between threads if the event may.
    assert!(within_patience(smol::spawn(serve)).unwrap().is_drained());

    // The event does not hide an error of the start.
    let nowhere: [&str; 0] = [];
    assert!(within_patience(server().serve_until(nowhere, ready(()))).is_err());
}

#[test]
fn dropping_the_server_drops_its_event() {
    let (dropped, is_dropped) = std::sync::mpsc::channel();
    let event = async move {
        let _dropped = Dropped(dropped);
        pending::<()>().await
    };
    let server = Server::new(|_| async { Ok("okay") });
    let serve = server.serve_until(["127.0.0.1:0"], event);
    within_patience(async { Some(serve.await) }.or(ready(None)));
    is_dropped.recv_timeout(PATIENCE).expect("the event is still there");
}

// ── Children ────────────────────────────────────────────────────────────────────────────────

/// S2: of two servers, the first is stopped alone, and the second by the stop of both. The second
/// outcome counts the requests of both.
#[test]
fn a_server_on_a_child_latch_can_be_stopped_alone() {
    let parent = short_linger();
    let (handlers, handler) = held_handlers();
    let part = parent.token().child();
    let whole = Running::of(Server::new(|_| async { Ok("whole") }).stopped_by(&parent));
    let other = Running::of(Server::new(handler).stopped_by(&part));
    let mut busy = other.connect();
    busy.get("/wait");
    handlers.wait_for_call("/wait");
    assert_eq!((parent.in_flight(), part.in_flight()), (1, 1));

    part.stop();
    wait_for_close(other.addr());
    assert_eq!(whole.connect().get("/").response().text(), "whole");
    assert_eq!(parent.phase(), Phase::Running);

    // The child's request holds the parent's drain.
    parent.stop();
    wait_for_close(whole.addr());
    wait_until("only the request is left", || parent.in_flight() == 1);
    assert!(whole.is_serving());
    handlers.release();
    assert_eq!(busy.response().text(), "done");
    let (part, whole) = (other.outcome(), whole.outcome());
    assert!(part.is_drained() && whole.is_drained());
    assert_eq!((part.finished, whole.finished), (1, 1));
}

/// S2: the parent's abort cuts a child's request, and both outcomes name it.
#[test]
fn an_abort_reaches_the_connections_of_a_child() {
    let parent = long_grace();
    let (handlers, handler) = held_handlers();
    let server = Running::of(Server::new(handler).stopped_by(&parent.token().child()));
    let mut busy = server.connect();
    busy.get("/wait");
    handlers.wait_for_call("/wait");
    parent.abort();
    assert_ne!(busy.end(), End::Cut);
    for outcome in [server.outcome(), within_patience(parent.stop_and_drain())] {
        let [cut] = &outcome.cut[..] else { panic!("{outcome}") };
        assert!(
            matches!(&cut.kind, WorkKind::Connection { target, .. } if target == "/wait"),
            "{outcome}"
        );
    }
}

// ── The holders of a latch ──────────────────────────────────────────────────────────────────

/// `Shutdown::open_work` lists all connections and guards, with their stages, the oldest first.
#[test]
fn open_work_names_connections_and_guards() {
    let shutdown = long_grace();
    let (handlers, handler) = held_handlers();
    let part = shutdown.token().child();
    let server = Running::of(Server::new(handler).stopped_by(&part));
    let mut idle = server.connect();
    assert_eq!(idle.get("/now").response().text(), "now");
    let guard = shutdown.token().guard().unwrap();
    let mut busy = server.connect();
    busy.get("/wait?a=b");
    handlers.wait_for_call("/wait");
    // A connection falls idle a moment after its client has the response.
    wait_until("it is idle", || {
        let is_idle = |work: &smol_graceful::OpenWork| {
            matches!(work.kind, WorkKind::Connection { stage: Stage::Idle, .. })
        };
        shutdown.open_work().iter().any(is_idle)
    });
    let work = shutdown.open_work();
    assert!(work.is_sorted_by(|one, other| one.age >= other.age), "{work:?}");
    let mut lines: Vec<_> = work.iter().map(ToString::to_string).collect();
    lines.sort();
    let [one, other, guard_line] = &lines[..] else { panic!("{lines:?}") };
    let mut connections = [one, other];
    connections.sort_by_key(|line| line.contains("/wait"));
    assert!(connections[0].contains(" - - (idle, "), "{lines:?}");
    assert!(connections[1].contains(" GET /wait?a=b (in the handler, "), "{lines:?}");
    assert!(guard_line.starts_with("guard taken at tests/latches.rs:"), "{lines:?}");
    // The child has its own connections alone.
    assert_eq!(part.open_work().len(), 2);

    drop((guard, idle));
    handlers.release();
    assert_eq!(busy.response().text(), "done");
    drop(busy);
    wait_until("nothing is left", || shutdown.open_work().is_empty());
}

// ── The log ─────────────────────────────────────────────────────────────────────────────────

/// If several servers have drained, each line names its server.
#[test]
fn the_log_says_which_server_has_drained() {
    let log = Log::of_this_process();
    let shutdown = short_linger();
    let server = || Server::new(|_| async { Ok("okay") });
    let two_addresses = Running::on(server().stopped_by(&shutdown), [tcp(), tcp()]);
    let other = Running::of(server().stopped_by(&shutdown));
    shutdown.stop();
    for server in [two_addresses, other] {
        assert!(server.outcome().is_drained());
        let addresses: Vec<_> = server.addresses.iter().map(ToString::to_string).collect();
        let lines = log.with(&format!("{}: drained in ", addresses.join(", ")));
        assert!(matches!(&lines[..], [(Level::Info, _)]), "{lines:?}");
    }
}

/// The stop by an event is logged, and a second one is not.
#[test]
fn a_stop_by_an_event_is_logged_once() {
    let log = Log::of_this_process();
    let shutdown = Shutdown::new();
    let guards: Vec<_> = (0..17).map(|_| shutdown.token().guard().unwrap()).collect();
    let server = Server::new(|_| async { Ok("okay") }).shutdown(&shutdown);
    let (end, ended) = channel::bounded::<()>(1);
    let serve = server.serve_until(["127.0.0.1:0"], async { ended.recv().await });
    let watch = async {
        drop(end);
        shutdown.token().stopping().await;
        assert_eq!(log.with("stopping: 17 guards").len(), 1);
        drop(guards);
        pending().await
    };
    assert!(within_patience(serve.or(watch)).unwrap().is_drained());
    let again = Server::new(|_| async { Ok("okay") }).shutdown(&shutdown);
    assert!(within_patience(again.serve_until(["127.0.0.1:0"], ready(()))).unwrap().is_drained());
    assert_eq!(log.with("stopping: 17 guards").len(), 1);
}
