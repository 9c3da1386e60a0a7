//! The ends of a keeper and of its children: deaths, stops, and first starts that fail. No client
//! is refused while the keeper lives, no process is left, and the exit code is right. `keeper.rs`
//! has the restarts.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::fakes::FakeChild;
use common::handover::{self, Handover, SocketKind, assert_live, over_tcp_and_unix, suspend};
use common::{
    Client, Directory, End, KeeperProcess, SERVER, STOP_SIGNALS, free_port, is_refused, keep,
    output, pass_repeat_window, server_command, text, wait_until,
};
use rustix::process::Signal;
use smol_graceful::Address;

// Children that die.

/// If a successor dies after it has taken over, the keeper starts another one, and clients that
/// come meanwhile wait.
#[test]
fn a_successor_that_dies_after_it_has_taken_over_is_replaced() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        server.restart();
        let dead = server.serving();
        suspend(dead);
        let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.get("/livez");
        }
        dead.signal(Signal::KILL);
        let next = server.servers.wait_for_start();
        for client in &mut clients {
            assert_eq!(client.response().text(), "live\n");
        }
        server.servers.wait_for_ready(next);
        server.stop();
    });
}

/// K1 and K4: clients wait while no child serves. The keeper replaces a child that was killed, and
/// no client is refused.
#[test]
fn clients_wait_while_a_child_is_dead() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        server.hand_over(0);
        let go = server.directory.join("go");
        server.successors_run(&format!("until [ -e {} ]; do sleep 0.01; done", go.display()));
        let dead = server.serving();
        dead.signal(Signal::KILL);
        let told = server.servers.line_of_end(dead);
        let words = "has died: signal: 9 (SIGKILL); starting another in 50 ms, clients wait";
        assert!(told.contains(words), "{told}");
        let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.get("/livez");
        }
        let next = server.servers.wait_for_start();
        assert!(!clients.iter().any(Client::has_something));
        fs::write(&go, "").unwrap();
        for client in &mut clients {
            assert_eq!(client.response().text(), "live\n");
        }
        server.servers.wait_for_ready(next);
        server.restart();
        server.stop();
    });
}

/// The keeper also replaces a child that ends by itself, with any exit code.
#[test]
fn a_child_that_ends_by_itself_is_replaced() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        server.hand_over(0);
        let first = server.serving();
        first.signal(Signal::TERM);
        assert_eq!(server.exit_code(first), 0);
        assert_live(&mut server.connect());
        server.stop();
    });
}

/// Ten children are killed one after the other, at different moments. Each client gets an answer or
/// the end of its connection, and none is refused.
#[test]
fn ten_children_are_killed() {
    kill_children(10);
}

#[test]
#[ignore = "takes a minute"]
fn fifty_children_are_killed() {
    kill_children(50);
}

fn kill_children(times: u64) {
    let mut server = Handover::server(SocketKind::Tcp, &[]);
    // The first child has to serve first, because otherwise the keeper ends with it.
    server.hand_over(0);
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let address = server.address.clone();
    let ask = || {
        while !is_over.load(Ordering::Relaxed) {
            // A refused client would fail the test here.
            let mut client = Client::connect_to(&address);
            client.get("/livez");
            // The child may die with the request.
            if let Ok(response) = client.try_response(false) {
                assert_eq!(response.text(), "live\n");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        for time in 0..times {
            let before = answered.load(Ordering::Relaxed);
            // The moment differs each time.
            thread::sleep(Duration::from_millis(17 * time % 50));
            let dead = server.serving();
            dead.signal(Signal::KILL);
            server.servers.line_of_end(dead);
            // The signal ends a pause, too.
            if time % 2 == 0 {
                server.servers.signal(Signal::USR2);
            }
            let next = server.servers.wait_for_start();
            server.servers.wait_for_ready(next);
            wait_until("answers", || {
                let is_over = clients.iter().any(|client| client.is_finished());
                is_over || answered.load(Ordering::Relaxed) > before + 10
            });
        }
        is_over.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    server.stop();
}

/// K4: the pause before the next start doubles when a child dies again and again, and the restart
/// signal ends it.
#[test]
fn the_pause_doubles() {
    let mut server = Handover::server(SocketKind::Tcp, &[]);
    server.hand_over(0);
    for pause in ["50 ms", "100 ms", "200 ms", "400 ms"] {
        let dead = server.serving();
        dead.signal(Signal::KILL);
        let told = server.servers.line_of_end(dead);
        // On a busy machine, the child may have served for a second, and the pause begins anew.
        let words = [format!("starting another in {pause}"), "starting another in 50 ms".into()];
        assert!(words.iter().any(|words| told.contains(words)), "{told}");
        let next = server.servers.wait_for_start();
        server.servers.wait_for_ready(next);
    }
    server.stop();
}

/// K6: if the keeper is killed, its child finishes its requests, serves the queue to the end, and
/// ends by itself.
#[test]
fn a_child_outlives_its_keeper_for_as_long_as_its_requests() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut busy = server.in_flight("/wait/keeper");
        let child = server.serving();
        suspend(child);
        let mut clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.get("/livez");
        }
        server.keeper().signal(Signal::KILL);
        server.servers.program.wait();
        child.signal(Signal::CONT);
        for client in &mut clients {
            assert_eq!(client.response().text(), "live\n");
        }
        assert!(child.is_running());
        server.release("keeper");
        let response = busy.response();
        assert_eq!((response.text(), response.says_close()), (child.to_string(), true));
        assert_eq!(server.exit_code_without_keeper(), 0, "{}", server.servers.program);
        if let Address::Tcp(addr) = server.address {
            assert!(is_refused(addr));
        }
        assert_eq!(server.processes().next(), None);
    });
}

/// K6: if the keeper is killed while its child drains, for example by a launcher with a short
/// limit, the child's requests still end within its own grace.
#[test]
fn a_keeper_that_is_killed_in_a_drain_cuts_nothing() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut busy = server.connect();
        busy.send("POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n");
        busy.send("Expect: 100-continue\r\n\r\n");
        assert_eq!(busy.take_to(b"\r\n\r\n").unwrap(), b"HTTP/1.1 100 Continue\r\n\r\n");
        let child = server.serving();
        server.servers.signal(Signal::TERM);
        server.wait_until_stopping(child);
        pass_repeat_window();
        server.keeper().signal(Signal::KILL);
        server.servers.program.wait();
        assert_eq!(busy.send("body").response().text(), "body");
        assert_eq!(server.exit_code_without_keeper(), 0, "{}", server.servers.program);
        assert_eq!(server.processes().next(), None);
    });
}

/// K6: if the keeper is killed in the middle of a restart, no process is left either.
#[test]
fn nobody_outlives_a_keeper_that_is_killed_in_a_restart() {
    over_tcp_and_unix(|over| {
        for pause in [0, 10, 30, 60, 100] {
            let mut server = Handover::server(over, &[]);
            let mut clients: Vec<_> = (0..20).map(|_| server.idle()).collect();
            for client in &mut clients {
                client.post("/echo", "hello");
            }
            server.servers.signal(Signal::USR2);
            thread::sleep(Duration::from_millis(pause));
            server.keeper().signal(Signal::KILL);
            server.servers.program.wait();
            for client in &mut clients {
                assert_eq!(client.response().text(), "hello", "{pause} ms");
                assert_eq!(client.end(), End::Eof, "{pause} ms");
            }
            wait_until("the children are gone", || {
                server.processes().all(|process| !process.is_running())
            });
        }
    });
}

// Stops.

/// K5: each stop signal ends the keeper and its child.
#[test]
fn each_stop_signal_ends_the_keeper() {
    for (signal, name) in STOP_SIGNALS {
        let mut servers = KeeperProcess::start(&server_command(&[]));
        let child = servers.serving;
        servers.signal(signal);
        assert_eq!(servers.program.exit_code(), 0, "{name}");
        let log = servers.program.log();
        assert!(log.contains(&format!("keeper: stopping because of {name}")), "{log}");
        assert!(log.contains(&format!("] stopping because of {name}: nothing in flight")), "{log}");
        assert!(
            log.contains(&format!("keeper: process {child} has ended: exit status: 0")),
            "{log}"
        );
    }
}

/// A stop in the middle of a restart ends the successor, too, and the predecessor finishes its
/// requests. A restart that was to follow does not begin.
#[test]
fn a_stop_in_the_middle_of_a_restart_ends_both() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut busy = server.in_flight("/wait/stop");
        let child = server.serving();
        server.successors_run("exec sleep 60");
        server.servers.signal(Signal::USR2);
        let successor = server.servers.wait_for_start();
        server.servers.signal(Signal::USR2);
        server.line_of(server.keeper(), "keeper: a restart is under way; another follows");
        server.servers.signal(Signal::TERM);
        let end = server.servers.line_of_end(successor);
        assert!(end.contains("signal: 15 (SIGTERM)"), "{end}");
        server.line_of(child, "stopping because of SIGTERM: 1 connection, 1 request");
        server.release("stop");
        assert_eq!(busy.response().text(), child.to_string());
        let log = server.ended();
        assert_eq!(log.matches("keeper: started process ").count(), 2, "{log}");
    });
}

/// A second signal cuts requests in flight, in all children, and the exit code says so.
#[test]
fn a_second_stop_signal_cuts_all_children() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let half = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe";
        let mut first = server.connect();
        first.send(half).fill().unwrap();
        let predecessor = server.restart();
        let mut second = server.connect();
        second.send(half).fill().unwrap();
        server.servers.signal(Signal::TERM);
        server.line_of(predecessor, "SIGTERM: stopping already: 1 connection, 1 request");
        server.line_of(server.serving(), "stopping because of SIGTERM: 1 connection, 1 request");
        pass_repeat_window();
        server.servers.signal(Signal::TERM);
        assert_eq!(server.servers.program.exit_code(), 1, "{}", server.servers.program);
        for client in [&mut first, &mut second] {
            assert!(client.try_response(false).is_err());
        }
        assert_eq!(server.processes().next(), None);
    });
}

/// K5: the exit code is about the children that were alive at the stop. A predecessor that has
/// ended before with another code is only named in the log.
#[test]
fn the_exit_code_is_the_newest_childs() {
    for code in [0, 7] {
        let mut server = Handover::server(SocketKind::Tcp, &[]);
        let children = [9, code].map(|code| {
            let waits = "kill -STOP $$; exec 4<&-; while :; do sleep 0.05; done";
            let child = successor(&mut server, &format!("trap 'exit {code}' TERM; {waits}"));
            child.notify("READY=1");
            server.wait_for_successor();
            child
        });
        assert_eq!(server.exit_code(children[0].process), 9);
        server.servers.signal(Signal::TERM);
        let told = &mut server.servers.program;
        assert_eq!(told.exit_code(), code, "{told}");
    }
}

/// Starts a successor, and gives the test its channel.
fn successor(server: &mut Handover, lines: &str) -> FakeChild {
    server.successors_run(lines);
    server.servers.signal(Signal::USR2);
    FakeChild::of(server.servers.wait_for_start())
}

// The first start.

/// K4: a first child that ends before it is ready ends the keeper, with the child's exit code.
#[test]
fn a_first_start_that_fails_ends_with_the_childs_exit_code() {
    for (script, code, line) in [
        ("exit 3", 3, "has ended before it was ready: exit status: 3"),
        ("exit 0", 0, "has ended before it was ready: exit status: 0"),
        ("kill -KILL $$", 137, "has ended before it was ready: signal: 9 (SIGKILL)"),
        ("exec sleep 60", 1, "was not ready within 300ms (no READY=1"),
    ] {
        let mut child = Command::new("sh");
        child.args(["-c", script]);
        let told = output(&mut keep(&["--patience", "300ms"], &child));
        let log = text(&told.stderr);
        assert_eq!(told.status.code(), Some(code), "{script}: {log}");
        assert!(log.contains(line), "{script}: {log}");
    }
    // A message cannot have as many sockets, and the child logs that once.
    let directory = Directory::new();
    let addresses = (0..254).map(|n| format!("unix:{}", directory.join(&n.to_string()).display()));
    let listen = addresses.collect::<Vec<_>>().join(",");
    let told = output(&mut keep(&["--patience", "1s"], &server_at(&listen)));
    let log = text(&told.stderr);
    assert_eq!(told.status.code(), Some(1), "{log}");
    assert!(log.contains("takes at most 253 sockets that a program has bound"), "{log}");
    // A launcher may have ignored SIGCHLD.
    let keeper = keep(&[], &Command::new("false"));
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' CHLD; exec \"$@\"", "sh"]).arg(keeper.get_program());
    let told = output(shell.args(keeper.get_args()));
    assert_eq!(told.status.code(), Some(1), "{}", text(&told.stderr));
    // The child's own line has the reason.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let child = server_at(&taken.local_addr().unwrap().to_string());
    let told = output(&mut keep(&[], &child));
    let log = text(&told.stderr);
    assert_eq!(told.status.code(), Some(1), "{log}");
    assert!(log.contains("smol-graceful: cannot listen on "), "{log}");
}

/// A keeper that cannot begin prints one line with the reason, and its exit code is 1.
#[test]
fn a_keeper_that_cannot_start_says_why_in_one_line() {
    let directory = Directory::new();
    let plain = directory.join("plain");
    fs::write(&plain, "x").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let missing = directory.join("missing");
    for (flags, program, error) in [
        (vec!["--listen", &addr], Path::new(SERVER), "the address is in use"),
        (vec![], &*missing, "no such file"),
        (vec![], &*plain, "it is not executable"),
        (vec![], directory.path(), "it is a directory, not a program"),
        (vec![], Path::new("nobody-has-this"), "no such file in any directory of PATH"),
    ] {
        let told = output(&mut keep(&flags, &Command::new(program)));
        let log = text(&told.stderr);
        assert_eq!(told.status.code(), Some(1), "{log}");
        assert!(log.starts_with("smol-graceful: cannot "), "{log}");
        assert!(log.contains(error), "{error}: {log}");
        assert_eq!(log.lines().count(), 1, "{log}");
    }
}

/// A wrong command line gives exit code 2, and nothing is started.
#[test]
fn wrong_use_is_told_before_anything_starts() {
    let directory = Directory::new();
    let ran = directory.join("ran");
    let mut child = Command::new("touch");
    child.arg(&ran);
    for flags in [
        &["--ready", "soon"][..],
        &["--ready", "https://127.0.0.1/"],
        &["--ready", "http:///path"],
        &["--patience", "long"],
        &["--restart-on", "NOBODY"],
        &["--restart-on", "KILL"],
        &["--listen", "localhost"],
        &["--nonsense"],
    ] {
        let told = output(&mut keep(flags, &child));
        assert_eq!(told.status.code(), Some(2), "{flags:?}: {}", text(&told.stderr));
    }
    let told = output(Command::new(SERVER).args(["keep", "--listen", "127.0.0.1:0"]));
    assert_eq!(told.status.code(), Some(2), "{}", text(&told.stderr));
    assert!(!ran.exists());
}

// The parts of the tests above.

/// A shell in front of a program dies of the TERM that was meant for the program. The keeper ends
/// the program, too, which would otherwise go on beside its successor.
#[test]
fn a_program_behind_a_shell_ends_with_the_shell() {
    let port = free_port().port().to_string();
    let mut shell = Command::new("sh");
    // Without the variable, the server does not know the channel.
    let script = "env -u SMOL_GRACEFUL_KEEPER \"$0\" --listen fd:3; exit $?";
    shell.args(["-c", script, SERVER]).stdin(Stdio::null());
    let mut servers = KeeperProcess::of(keep(&["--listen", &format!("127.0.0.1:{port}")], &shell));
    let predecessor = servers.restart();
    servers.program.wait_for("stopping because of SIGTERM");
    servers.program.wait_for("drained in ");
    let line = servers.line_of_end(predecessor);
    assert!(line.contains("signal: 15 (SIGTERM)"), "{line}");
    servers.signal(Signal::TERM);
    servers.program.wait_for("drained in ");
    // The exit code is that of the shell.
    assert_eq!(servers.program.exit_code(), 143);
}

/// Returns a command for the server, which binds these addresses itself.
fn server_at(listen: &str) -> Command {
    let mut command = Command::new(SERVER);
    command.args(["--listen", listen, "--work", "0s"]).stdin(Stdio::null());
    command
}

/// Serves if another test has started this process for that.
#[test]
fn the_program_of_these_tests() {
    handover::serve();
}
