//! Restarts in which something fails while connections go to the successor: either process is
//! suspended or killed, descriptors or places run out, or the successor is another program.
//!
//! `handover.rs` has the restarts in which nothing fails. Most tests suspend the successor when it
//! is ready, so its predecessor sends it one batch, which waits in the passage until the test goes
//! on.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::iter;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::handover::{self, Handover, SocketKind, descriptors_of, over_tcp_and_unix, suspend};
use common::{
    Client, Directory, End, ProcessId, SERVER, copy_file, install, pass_repeat_window, wait_until,
};
use rustix::process::{Resource, Rlimit, Signal, prlimit};

/// The largest number of connections in one message.
const BATCH: usize = 253;

// The successor is suspended.

/// H1 and H2: a request waits while its socket is in the passage. The successor answers the request
/// without any further message from its predecessor.
#[test]
fn a_request_in_the_passage_is_answered_once_by_the_successor() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let clients = idle(&server, 3);
        let predecessor = server.suspend_successor();
        let (mut answered, mut waiting) = post_during_batch(&server, clients);
        suspend(predecessor);
        server.serving().signal(Signal::CONT);
        waiting.iter_mut().for_each(assert_hello);
        predecessor.signal(Signal::CONT);
        server.assert_handed_over(predecessor, 3);
        answered.iter_mut().for_each(assert_hello);
        answered.iter_mut().chain(&mut waiting).for_each(assert_kept);
        server.end();
    });
}

/// H5: the predecessor goes on serving the connections that are not in the passage, and nothing is
/// lost when the successor goes on.
#[test]
fn a_suspended_successor_holds_up_only_its_batch() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let clients = idle(&server, BATCH + 50);
        let predecessor = server.suspend_successor();
        let (mut answered, mut waiting) = post_during_batch(&server, clients);
        assert!(answered.len() >= 50, "{}", answered.len());
        answered.iter_mut().for_each(assert_hello);
        // These connections go on in the predecessor while the successor is suspended.
        answered.iter_mut().for_each(assert_kept);
        assert!(!waiting.iter().any(Client::has_something));
        server.serving().signal(Signal::CONT);
        waiting.iter_mut().for_each(assert_hello);
        server.assert_handed_over(predecessor, (BATCH + 50) as u64);
        answered.iter_mut().chain(&mut waiting).for_each(assert_kept);
        server.end();
    });
}

/// H2: at the end of the grace, an unanswered batch is the successor's. The other connections are
/// treated as in any stop before.
#[test]
fn a_batch_that_nobody_answers_is_the_successors_after_the_grace() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &["--grace", "4s"]);
        let clients = idle(&server, BATCH + 10);
        let predecessor = server.suspend_successor();
        let others = clients.len() - server.wait_for_batch();
        wait_until("the others are closed, when half the grace is over", || {
            clients.iter().filter(|client| client.has_something()).count() == others
        });
        let (mut closed, mut kept): (Vec<_>, Vec<_>) =
            clients.into_iter().partition(Client::has_something);
        assert!(closed.iter_mut().all(|client| client.end() == End::Eof));
        for client in &mut kept {
            client.post("/echo", "hello");
        }
        assert_eq!(server.exit_code(predecessor), 1, "{}", server.servers.program);
        server.serving().signal(Signal::CONT);
        kept.iter_mut().for_each(assert_hello);
        kept.iter_mut().for_each(assert_kept);
        server.stop();
    });
}

/// S13: a second signal ends the predecessor at once. The outcome names a request that waits in the
/// unanswered batch, and the successor answers the request all the same (H2).
#[test]
fn a_second_signal_names_a_request_in_the_passage() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut client = server.idle();
        let predecessor = server.suspend_successor();
        server.wait_for_batch();
        client.post("/echo", "hello");
        predecessor.signal(Signal::TERM);
        server.line_of(predecessor, "SIGTERM: stopping already");
        pass_repeat_window();
        predecessor.signal(Signal::TERM);
        assert_eq!(server.exit_code(predecessor), 1, "{}", server.servers.program);
        let outcome = server.line_of(predecessor, "forced to end after ");
        assert!(outcome.contains("(on its way to the successor, "), "{outcome}");
        if over == SocketKind::Tcp {
            let peer = client.stream.local_addr().unwrap();
            assert!(outcome.contains(&format!("{peer} - - (on its way")), "{outcome}");
        }
        server.serving().signal(Signal::CONT);
        assert_hello(&mut client);
        assert_kept(&mut client);
        server.stop();
    });
}

/// A successor that stops while a batch waits takes the batch and serves its requests, or leaves
/// the batch to the predecessor. In both cases each request is answered once.
#[test]
fn a_successor_that_is_told_to_stop_while_it_adopts_loses_nothing() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let clients = idle(&server, BATCH + 50);
        let predecessor = server.suspend_successor();
        let (mut answered, mut waiting) = post_during_batch(&server, clients);
        let successor = server.serving();
        successor.signal(Signal::TERM);
        successor.signal(Signal::CONT);
        for client in answered.iter_mut().chain(&mut waiting) {
            assert_eq!(client.response().text(), "hello");
            assert_eq!(client.end(), End::Eof);
        }
        for process in [predecessor, successor] {
            server.line_of(process, "drained in ");
            assert_eq!(server.exit_code(process), 0, "{}", server.servers.program);
        }
        server.stop_after_death(successor);
    });
}

/// H4: the predecessor counts the connections of a batch until the answer, and the successor from
/// then on. So the predecessor does not drain before the answer. The successor finishes a request
/// of a connection that it has taken, although it stops before the predecessor has read the answer.
#[test]
fn a_connection_counts_in_either_process() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut client = server.in_flight("/wait/first");
        let predecessor = server.suspend_successor();
        let successor = server.serving();
        // From here on, only the connection holds the drain open.
        server.line_of(predecessor, "handed over 0 connections in ");
        server.release("first");
        assert_eq!(client.response().text(), predecessor.to_string());
        assert_eq!(server.wait_for_batch(), 1);
        client.get("/wait/second");
        server.line_of(predecessor, "the successor does not answer");
        assert!(!server.servers.program.to_string().contains("drained in "));
        suspend(predecessor);
        successor.signal(Signal::CONT);
        server.line_of(successor, "waiting for second");
        successor.signal(Signal::TERM);
        server.wait_until_stopping(successor);
        predecessor.signal(Signal::CONT);
        server.assert_handed_over(predecessor, 1);
        assert!(successor.is_running());
        server.release("second");
        let response = client.response();
        assert_eq!((response.text(), response.says_close()), (successor.to_string(), true));
        assert_eq!(client.end(), End::Eof);
        let outcome = server.line_of(successor, "drained in ");
        assert_eq!(handover::number_before(&outcome, " request finished"), 1, "{outcome}");
        assert_eq!(server.exit_code(successor), 0);
        server.stop_after_death(successor);
    });
}

/// A stop signal in any moment of a restart stops the keeper and all of its children. A request
/// that has come before the signal is answered, by either of two processes, and the exit code is 0.
#[test]
fn a_stop_signal_in_any_moment_of_a_restart_loses_nothing() {
    over_tcp_and_unix(|over| {
        // In the first case both signals come together. Most restarts take less time than the
        // longest pause.
        let any = iter::repeat_with(|| Some(fastrand::u64(0..200)));
        for pause in iter::once(None).chain(any.take(5)) {
            let server = Handover::server(over, &[]);
            let mut clients = idle(&server, 50);
            if let Some(pause) = pause {
                server.servers.signal(Signal::USR2);
                thread::sleep(Duration::from_millis(pause));
            }
            for client in &mut clients {
                client.post("/echo", "hello");
            }
            if pause.is_none() {
                server.servers.signal(Signal::USR2);
            }
            server.servers.signal(Signal::TERM);
            for client in &mut clients {
                assert_eq!(client.response().text(), "hello", "{pause:?}");
                assert_eq!(client.end(), End::Eof, "{pause:?}");
            }
            let log = server.ended();
            assert!(log.contains("keeper: stopping because of SIGTERM"), "{log}");
        }
    });
}

// Either process is killed.

/// H2: a batch without an answer comes back when the successor dies. No other process can take the
/// connections, so the predecessor answers the requests that have come, and closes.
#[test]
fn a_successor_that_dies_before_its_answer_gives_the_batch_back() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let clients = idle(&server, BATCH + 50);
        let mut silent = idle(&server, 10);
        let predecessor = server.suspend_successor();
        let (mut answered, mut waiting) = post_during_batch(&server, clients);
        let successor = server.serving();
        successor.signal(Signal::KILL);
        for client in answered.iter_mut().chain(&mut waiting) {
            assert_eq!(client.response().text(), "hello");
            assert_eq!(client.end(), End::Eof);
        }
        assert!(silent.iter_mut().all(|client| client.end() == End::Eof));
        server.assert_handed_over(predecessor, 0);
        server.stop_after_death(successor);
    });
}

/// The predecessor waits for the rest of a head whose beginning was in the batch, or was read
/// before, for longer than for an idle connection (S8).
#[test]
fn half_a_head_in_a_batch_that_comes_back_is_completed() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
        let (begin, rest) = head.split_at(20);
        let mut read_before = server.idle();
        read_before.send(begin);
        let mut in_passage = server.idle();
        let mut idle = server.idle();
        let predecessor = server.suspend_successor();
        server.wait_for_batch();
        in_passage.send(head.repeat(3) + begin);
        let successor = server.serving();
        successor.signal(Signal::KILL);
        // The linger is over.
        assert_eq!(idle.end(), End::Eof);
        for (client, count) in [(&mut read_before, 1), (&mut in_passage, 4)] {
            client.send(rest);
            for _ in 0..count {
                assert_eq!(client.response().text(), "hello");
            }
            assert_eq!(client.end(), End::Eof);
        }
        server.assert_handed_over(predecessor, 0);
        server.stop_after_death(successor);
    });
}

/// The connections that a successor has taken end with its death, and each client sees that at
/// once, because the predecessor has closed its copies. The predecessor finishes its other
/// connections.
#[test]
fn a_successor_that_dies_after_its_answer_costs_only_its_own_clients() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut clients = idle(&server, 3);
        let mut busy = server.in_flight("/wait/busy");
        let predecessor = server.take_over();
        server.line_of(predecessor, "handed over 3 connections in ");
        let successor = server.serving();
        successor.signal(Signal::KILL);
        for client in &mut clients {
            assert_eq!(client.end(), End::Eof);
        }
        server.release("busy");
        assert_eq!(busy.response().text(), predecessor.to_string());
        assert_eq!(busy.end(), End::Eof);
        server.assert_handed_over(predecessor, 3);
        server.stop_after_death(successor);
    });
}

/// If a successor dies between two batches, only the connections of the first batch end, after it
/// has answered their requests. The predecessor answers the others and closes them.
#[test]
fn a_successor_that_dies_between_batches_costs_only_what_it_has_taken() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let clients = idle(&server, BATCH + 50);
        let predecessor = server.suspend_successor();
        let (mut answered, mut waiting) = post_during_batch(&server, clients);
        // The predecessor is suspended, so the answer to the first batch waits in the passage until
        // the successor is dead.
        suspend(predecessor);
        let successor = server.serving();
        successor.signal(Signal::CONT);
        waiting.iter_mut().for_each(assert_hello);
        successor.signal(Signal::KILL);
        wait_until("the successor is dead", || !successor.is_running());
        predecessor.signal(Signal::CONT);
        answered.iter_mut().for_each(assert_hello);
        for client in answered.iter_mut().chain(&mut waiting) {
            assert_eq!(client.end(), End::Eof);
        }
        server.assert_handed_over(predecessor, waiting.len() as u64);
        server.stop_after_death(successor);
    });
}

/// The successor dies at a random moment of several batches. Each client gets its answer from
/// either process, or sees the end of its connection.
#[test]
fn a_successor_that_dies_in_any_moment_leaves_no_client_waiting() {
    over_tcp_and_unix(|over| {
        for _ in 0..5 {
            let mut server = Handover::server(over, &["--linger", "20s"]);
            let mut clients = idle(&server, 3 * BATCH);
            let predecessor = server.suspend_successor();
            server.wait_for_batch();
            let successor = server.serving();
            let moment = descriptors_of(successor) + fastrand::usize(0..3 * BATCH);
            successor.signal(Signal::CONT);
            wait_until("the successor has taken so many", || descriptors_of(successor) > moment);
            successor.signal(Signal::KILL);
            let mut answered = 0;
            for client in &mut clients {
                // A connection that has ended takes no request.
                let post = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
                let _ = client.stream.write_all(post);
                if let Ok(response) = client.try_response(false) {
                    assert_eq!(response.text(), "hello");
                    assert_eq!(client.end(), End::Eof);
                    answered += 1;
                }
            }
            server.assert_handed_over(predecessor, 3 * BATCH as u64 - answered);
            server.stop_after_death(successor);
        }
    });
}

/// H2: the sockets are the successor's when the predecessor dies with a batch under way.
#[test]
fn a_predecessor_that_dies_leaves_its_batch_to_the_successor() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let clients = idle(&server, 3);
        let predecessor = server.suspend_successor();
        let (_, mut waiting) = post_during_batch(&server, clients);
        predecessor.signal(Signal::KILL);
        wait_until("the predecessor is dead", || !predecessor.is_running());
        server.serving().signal(Signal::CONT);
        waiting.iter_mut().for_each(assert_hello);
        waiting.iter_mut().for_each(assert_kept);
        assert_kept(&mut server.connect());
        server.stop();
    });
}

// Something is in short supply.

/// H7: a successor with too few places takes as many connections as it has places. The others are
/// treated as in any stop.
#[test]
fn a_successor_takes_as_many_as_it_has_places() {
    over_tcp_and_unix(|over| {
        // The server uses half of its descriptors for places.
        let taken = taken_by_short_successor(over, "ulimit -n 80", |_| {});
        assert_eq!(taken, 40);
    });
}

/// H7: if a message has more sockets than the successor may open, the kernel closes the rest. The
/// predecessor serves those connections from its copies.
#[test]
fn a_successor_takes_as_many_as_it_has_descriptors() {
    over_tcp_and_unix(|over| {
        let taken = taken_by_short_successor(over, "", |successor| {
            let is_free =
                |number: &u64| !Path::new(&format!("/proc/{successor}/fd/{number}")).exists();
            // One descriptor is for the passage.
            let limit = (0..).filter(is_free).nth(9);
            let limit = Rlimit { current: limit, maximum: limit };
            prlimit(Some(successor.0), Resource::Nofile, limit).unwrap();
        });
        assert_eq!(taken, 8);
    });
}

/// Restarts with 60 idle connections, each with a request that comes while the batch is under way.
/// The successor runs `lines` of a shell first, and the test calls `shorten` when it is ready, so
/// it does not take all connections. Returns the number of connections that it has taken.
fn taken_by_short_successor(over: SocketKind, lines: &str, shorten: impl FnOnce(ProcessId)) -> u64 {
    let mut server = Handover::server(over, &[]);
    let mut clients = idle(&server, 60);
    let successor = server.ready_successor(lines);
    suspend(successor);
    shorten(successor);
    let predecessor = server.resume_keeper(successor);
    server.wait_for_batch();
    for client in &mut clients {
        client.post("/echo", "hello");
    }
    successor.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.response().text(), "hello");
    }
    let taken = server.handed_over(predecessor);
    let (mut closed, mut kept): (Vec<_>, Vec<_>) =
        clients.into_iter().partition(Client::has_something);
    assert!(closed.iter_mut().all(|client| client.end() == End::Eof));
    assert_eq!(kept.len() as u64, taken);
    kept.iter_mut().for_each(assert_kept);
    server.end();
    taken
}

/// A user other than root may have only as many unreceived descriptors under way as it may open
/// files. Other processes of the user can use up this number. Then no connection goes, and no
/// request is lost.
#[test]
#[ignore = "needs root, to become another user, and python3"]
fn too_many_descriptors_on_their_way_cost_no_request() {
    const USER: u32 = 54_321;
    let script = "import socket, sys
a, b = socket.socketpair()
for _ in range(2):
    socket.send_fds(a, [b'x'], [0] * 253)
print('full', flush=True)
sys.stdin.read()";
    let mut python = Command::new("python3");
    python.args(["-c", script]).uid(USER).gid(USER).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut filler = python.spawn().unwrap();
    let mut told = String::new();
    BufReader::new(filler.stdout.take().unwrap()).read_line(&mut told).unwrap();
    assert_eq!(told, "full\n");

    // The user may have no access to the directory of the build.
    let elsewhere = Directory::new();
    let (copy, program) = (elsewhere.join("server"), elsewhere.join("app"));
    copy_file(Path::new(SERVER), &copy);
    let script = format!("#!/bin/sh\nulimit -n 300; exec {} \"$@\"\n", copy.display());
    install(&program, script.as_bytes());
    over_tcp_and_unix(|over| {
        let mut server =
            Handover::start_with_keeper(&copy, over, program.clone(), |command, listen| {
                if let Some(path) = listen.strip_prefix("unix:") {
                    let directory = Path::new(path).parent().unwrap();
                    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
                }
                command.args(["--listen", listen, "--grace", "4s", "--linger", "1s"]);
                command.uid(USER).gid(USER);
            });
        let mut clients = idle(&server, 10);
        let predecessor = server.restart();
        for client in &mut clients {
            client.post("/echo", "hello");
        }
        for client in &mut clients {
            assert_eq!(client.response().text(), "hello");
            assert_eq!(client.end(), End::Eof);
        }
        server.line_of(predecessor, "Too many references");
        server.assert_handed_over(predecessor, 0);
        server.end();
    });
    drop(filler.stdin.take());
    assert!(filler.wait().unwrap().success());
}

// The successor is another program.

/// A successor that does not know the parent channel, as an older version or another server, sends
/// READY=1. Then the predecessor stops as usual. The next successor gets no connections from such a
/// process, and the successor after that does again.
#[test]
fn a_child_that_does_not_speak_leaves_the_connections() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut clients = idle(&server, 3);
        let mut busy = server.in_flight("/wait/busy");
        // Without this variable, the server behaves like such a program.
        server.successors_run("unset SMOL_GRACEFUL_KEEPER");
        let predecessor = server.restart();
        for client in &mut clients {
            assert_eq!(client.end(), End::Eof);
        }
        server.release("busy");
        assert_eq!(busy.response().text(), predecessor.to_string());
        assert_eq!(busy.end(), End::Eof);
        server.assert_handed_over(predecessor, 0);

        let mut clients = idle(&server, 3);
        server.successors_run("");
        server.hand_over(0);
        for client in &mut clients {
            assert_eq!(client.end(), End::Eof);
        }

        let mut clients = idle(&server, 3);
        server.hand_over(3);
        clients.iter_mut().for_each(assert_kept);
        server.end();
    });
}

/// H6: the connections of a listener that the successor did not take are closed, and those of the
/// other listener go on. H8: this holds for connections that have come along, too.
#[test]
fn connections_of_a_listener_that_is_not_taken_are_closed() {
    over_tcp_and_unix(|over| {
        for come_along in [false, true] {
            let mut server = Handover::server(over, &["--listen", "127.0.0.2:0"]);
            let line = server.line_of(server.serving(), "listening on 127.0.0.2:");
            let second: SocketAddr = line.rsplit(' ').next().unwrap().parse().unwrap();
            let mut left = idle(&server, 3);
            let mut kept = [Client::connect(second), Client::connect(second)];
            kept.iter_mut().for_each(assert_kept);
            if come_along {
                server.hand_over(5);
                left.iter_mut().chain(&mut kept).for_each(assert_kept);
            }
            // The second listener is the first one of the successor.
            server.successors_run(&format!("set -- --listen {second}"));
            let predecessor = server.restart();
            for client in &mut left {
                assert_eq!(client.end(), End::Eof);
            }
            server.assert_handed_over(predecessor, 2);
            kept.iter_mut().for_each(assert_kept);
            server.end();
        }
    });
}

// Every worker is blocked.

/// The connections of a predecessor whose workers are all blocked go when the workers can run
/// again. Until then the successor serves new clients.
#[test]
fn connections_go_when_the_predecessors_workers_can_run_again() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held_with(over, |command| {
            command.env(handover::THREADS, "2");
        });
        let mut clients = idle(&server, 3);
        let mut blocked = block_workers(&mut server);
        for client in &mut clients {
            client.post("/echo", "hello");
        }
        let predecessor = server.restart();
        assert_kept(&mut server.connect());
        assert!(!clients.iter().chain(&blocked).any(Client::has_something));
        server.release("workers");
        for client in &mut blocked {
            let response = client.response();
            assert_eq!(response.text(), predecessor.to_string());
            assert!(!response.says_close());
        }
        for client in &mut clients {
            let response = client.response();
            assert_eq!((&*response.text(), response.says_close()), ("/echo hello", false));
        }
        server.assert_handed_over(predecessor, 5);
        clients.iter_mut().chain(&mut blocked).for_each(assert_kept);
        server.end();
    });
}

/// S15: a successor takes connections although all of its workers are blocked, so its predecessor
/// ends.
#[test]
fn a_successor_whose_workers_are_blocked_takes_connections() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held_with(over, |command| {
            command.env(handover::THREADS, "2");
        });
        let mut clients = idle(&server, 3);
        // Both processes accept. The predecessor is suspended, so the successor gets the clients.
        let successor = server.ready_successor("");
        suspend(server.serving());
        let mut blocked = block_workers(&mut server);
        let predecessor = server.resume_keeper(successor);
        predecessor.signal(Signal::CONT);
        server.assert_handed_over(predecessor, 3);
        for client in &mut clients {
            client.post("/echo", "hello");
        }
        assert!(!clients.iter().chain(&blocked).any(Client::has_something));
        server.release("workers");
        for client in &mut clients {
            let response = client.response();
            assert_eq!((&*response.text(), response.says_close()), ("/echo hello", false));
        }
        for client in &mut blocked {
            assert_eq!(client.response().text(), successor.to_string());
        }
        clients.iter_mut().chain(&mut blocked).for_each(assert_kept);
        server.end();
    });
}

/// Blocks both workers of a server, and returns the clients of the handlers that do it.
fn block_workers(server: &mut Handover) -> [Client; 2] {
    let clients = [server.connect(), server.connect()].map(|mut client| {
        client.get("/block/workers");
        client
    });
    for _ in &clients {
        server.servers.program.wait_for("waiting for workers");
    }
    clients
}

/// Serves if another test has started this process for that.
#[test]
fn the_program_of_these_tests() {
    handover::serve();
}

// A crowd.

/// Ten thousand idle connections hold up neither the predecessor's end nor a busy client.
#[test]
#[ignore = "needs 10,000 descriptors"]
#[expect(clippy::print_stdout, reason = "the figures are for whoever runs this")]
fn a_crowd_leaves_at_once() {
    for over in [SocketKind::Tcp, SocketKind::Unix] {
        let mut server = Handover::server(over, &[]);
        let mut crowd = idle(&server, 9_900);
        let mut busy = server.idle();
        let is_over = AtomicBool::new(false);
        let (took, longest) = thread::scope(|scope| {
            let busy = scope.spawn(|| {
                let mut longest = Duration::ZERO;
                while !is_over.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    assert_kept(&mut busy);
                    longest = longest.max(asked.elapsed());
                }
                longest
            });
            let asked = Instant::now();
            let predecessor = server.restart();
            server.exit_code(predecessor);
            let took = asked.elapsed();
            is_over.store(true, Ordering::Relaxed);
            server.assert_handed_over(predecessor, 9_901);
            (took, busy.join().unwrap())
        });
        println!("{over:?}: gone in {took:.3?}; the busy client waited {longest:.3?} at most");
        crowd.iter_mut().for_each(assert_kept);
        // A release build takes 0.2 s on a machine with nothing else to do.
        assert!(took < Duration::from_secs(5), "{took:?}");
        server.end();
    }
}

// The parts of the tests above.

/// Connects clients, and lets each have an answer.
fn idle(server: &Handover, count: usize) -> Vec<Client> {
    (0..count).map(|_| server.idle()).collect()
}

/// Sends a POST of `hello` by each client while a batch is on its way to a suspended successor.
/// Returns the clients with an answer, which are not in the batch, and the waiting clients.
fn post_during_batch(server: &Handover, mut clients: Vec<Client>) -> (Vec<Client>, Vec<Client>) {
    let batch = server.wait_for_batch();
    for client in &mut clients {
        client.post("/echo", "hello");
    }
    wait_until("the predecessor has answered the others", || {
        clients.iter().filter(|client| !client.has_something()).count() <= batch
    });
    clients.into_iter().partition(Client::has_something)
}

/// Asserts that the answer to a POST of `hello` comes once, and that the connection goes on.
fn assert_hello(client: &mut Client) {
    let response = client.response();
    assert_eq!((&*response.text(), response.says_close()), ("hello", false));
    assert_eq!(client.buffered(), b"");
}

/// Asserts that the connection serves a further request, and goes on.
fn assert_kept(client: &mut Client) {
    let response = client.get("/livez").response();
    assert_eq!((&*response.text(), response.says_close()), ("live\n", false));
}
