//! Restarts by the keeper of the real binary, from outside, and the ways in which a successor
//! fails.
//!
//! The successor in these tests is a script that replaces the program. `keeper_ends.rs` has the
//! deaths and the stops, `keeper_children.rs` the start of a child, `handover*.rs` the connections,
//! and `keeper_fakes.rs` a child whose messages make no sense.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::handover::{Handover, assert_live, over_tcp_and_unix};
use common::{
    Client, Directory, KeeperProcess, Program, SERVER, copy_file, free_port, install, keep,
    server_command, wait_until,
};
use rustix::process::Signal;

// Restarts.

/// K2: ten signals in a second cause restarts one after the other, as many as there is time for,
/// and no client notices.
#[test]
fn ten_signals_in_a_second_restart_one_after_the_other() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut clients: Vec<_> = (0..20).map(|_| server.idle()).collect();
        let first = server.serving();
        for _ in 0..10 {
            server.servers.signal(Signal::USR2);
            clients.iter_mut().for_each(assert_live);
            thread::sleep(Duration::from_millis(100));
        }
        server.wait_for_successor();
        wait_until("one child is left", || server.processes().count() == 2);
        assert!(!first.is_running());
        clients.iter_mut().for_each(assert_live);
        let log = server.end();
        let starts = log.matches("keeper: started process ").count();
        // During a restart, the keeper remembers one further request for a restart.
        assert!((3..=11).contains(&starts), "{log}");
    });
}

/// HUP and USR1 restart if `--restart-on` says so, and then do not stop.
#[test]
fn the_signals_of_a_restart_are_a_setting() {
    for flags in [&["--restart-on", "HUP,SIGUSR1"][..], &["--restart-on=hup", "--restart-on=USR1"]]
    {
        let mut servers = KeeperProcess::of(keep(flags, &server_command(&[])));
        for signal in [Signal::HUP, Signal::USR1] {
            servers.signal(signal);
            servers.wait_for_successor();
            assert_okay(&mut servers.program.connect());
        }
        let log = servers.end();
        assert_eq!(log.matches("keeper: started process ").count(), 3, "{log}");
    }
    let mut command = keep(&[], &server_command(&[]));
    command.env("SMOL_GRACEFUL_KEEP_RESTART_ON", "HUP");
    let mut servers = KeeperProcess::of(command);
    servers.signal(Signal::HUP);
    servers.wait_for_successor();
    servers.end();
}

/// Without a keeper, USR2 does no harm, and the log says how to get one.
#[test]
fn usr2_without_a_keeper_is_answered_by_a_line() {
    let mut server = Program::server(&["--work", "0s"]);
    let mut client = server.connect();
    assert_okay(&mut client);
    for _ in 0..2 {
        server.signal(Signal::USR2);
        server.wait_for(
            "no restart because of SIGUSR2: this process has no keeper; start it as: smol-graceful \
             keep -- COMMAND, or call Process::keep",
        );
        assert_okay(&mut client);
    }
    server.stop();
    assert!(!server.log().contains("started"), "{server}");
}

/// If a child gets the signal, its log names the process that should get it.
#[test]
fn usr2_to_a_child_is_answered_by_a_line() {
    let mut servers = KeeperProcess::start(&server_command(&[]));
    servers.serving.signal(Signal::USR2);
    let keeper = servers.keeper();
    servers.program.wait_for(&format!(
        "no restart because of SIGUSR2: send it to the keeper, process {keeper}"
    ));
    assert_okay(&mut servers.program.connect());
    let log = servers.end();
    assert_eq!(log.matches("keeper: started process ").count(), 1, "{log}");
}

/// In the drain, USR2 starts no successor.
#[test]
fn usr2_in_the_drain_starts_nothing() {
    let mut servers = KeeperProcess::start(&server_command(&[]));
    let mut client = servers.program.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel").fill().unwrap();
    servers.signal(Signal::TERM);
    servers.program.wait_for("] stopping because of SIGTERM");
    servers.signal(Signal::USR2);
    servers.program.wait_for("SIGUSR2");
    assert_eq!(client.send("lo").response().text(), "hello");
    let log = servers.program.log();
    assert_eq!(servers.program.exit_code(), 0, "{log}");
    assert_eq!(log.matches("keeper: started process ").count(), 1, "{log}");
}

/// A program without a slash in its name is looked up in PATH, at each restart anew.
#[test]
fn a_program_is_looked_up_in_path() {
    let directory = Directory::new();
    let (program, elsewhere) = (directory.join("app-in-path"), directory.join("elsewhere"));
    copy_file(Path::new(SERVER), &program);
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let mut child = Command::new("app-in-path");
    child.args(["--listen", "127.0.0.1:0"]).env("PATH", path);
    let mut servers = KeeperProcess::start(&child);
    servers.restart();
    fs::rename(&program, &elsewhere).unwrap();
    servers.signal(Signal::USR2);
    let told = servers.program.wait_for("keeper: no restart: ");
    assert!(told.contains("no such file in any directory of PATH"), "{told}");
    fs::rename(&elsewhere, &program).unwrap();
    servers.restart();
    servers.end();
}

// Successors that fail.

/// K2: a successor that fails, in each possible way, leaves everything as it was.
#[test]
fn a_successor_that_fails_changes_nothing() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::with_patience(over, "300ms");
        let first = server.serving();
        let mut client = server.idle();
        let mut wait_for_failure = |server: &mut Handover, error: &str| {
            server.servers.signal(Signal::USR2);
            let told = server.servers.program.wait_for("keeper: no restart: ");
            assert!(told.contains(error), "{error}: {told}");
            assert!(told.ends_with(&format!("; process {first} goes on")), "{told}");
            assert_live(&mut client);
            // A successor that is stopping may answer this, and then closes.
            assert_eq!(server.connect().get("/livez").response().text(), "live\n");
        };
        let is_silent = "unset NOTIFY_SOCKET SMOL_GRACEFUL_KEEPER";
        for (lines, error) in [
            ("exit 3", "has ended before it was ready: exit status: 3"),
            ("kill -KILL $$", "has ended before it was ready: signal: 9 (SIGKILL)"),
            // This successor has taken the sockets before it fails.
            ("set -- \"$@\" --listen 192.0.2.1:1", "has ended before it was ready: exit status: 1"),
            ("exec sleep 60", "was not ready within 300ms (no READY=1"),
            // This successor serves, and does not report that.
            (is_silent, "was not ready within 300ms (no READY=1"),
            // This successor ignores TERM, too, so the keeper has to kill it.
            ("trap '' TERM; while :; do sleep 1; done", "was not ready within 300ms (no READY=1"),
        ] {
            server.successors_run(lines);
            wait_for_failure(&mut server, error);
        }
        let app = server.directory.join("app");
        fs::remove_file(&app).unwrap();
        wait_for_failure(&mut server, "cannot start ");
        install(&app, b"exit 0\n");
        wait_for_failure(&mut server, "it is not a program that this machine can run");
        install(&app, b"#!/bin/sh\n");
        fs::set_permissions(&app, fs::Permissions::from_mode(0o644)).unwrap();
        wait_for_failure(&mut server, "it is not executable");
        wait_until("those that have failed are gone", || server.processes().count() == 2);
        // After the program is repaired, a restart works.
        server.successors_run("");
        server.restart();
        server.assert_handed_over(first, 1);
        assert_live(&mut client);
        // A launcher starts this successor, and ends when its child has ended.
        server.successors_run(&format!("{SERVER} \"$@\"; exit $?"));
        server.take_over();
        assert_live(&mut client);
        server.successors_run("");
        server.restart();
        assert_live(&mut client);
        server.stop();
    });
}

/// A file that is not a program is not run, not even by a shell, and one line has the reason.
#[test]
fn what_is_not_a_program_is_not_run() {
    let directory = Directory::new();
    let (program, ran) = (directory.join("app"), directory.join("ran"));
    let bytes = fs::read(SERVER).unwrap();
    let patched = |at: usize, new: &[u8]| {
        let mut file = bytes.clone();
        file[at..at + new.len()].copy_from_slice(new);
        file
    };
    // A shell would run this.
    let commands = format!("touch {}; exec {SERVER} \"$@\"\n", ran.display());
    let (garbage, plain) = (directory.join("garbage"), directory.join("plain"));
    install(&garbage, commands.as_bytes());
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    let script = |interpreter: &Path| format!("#!{}\n{commands}", interpreter.display());
    let not_a_program = "it is not a program that this machine can run";
    let no_interpreter = "no such file as the interpreter or the loader that it names";
    let mut table = vec![
        (commands.clone().into_bytes(), not_a_program),
        ([b"\x7fELF", commands.as_bytes()].concat(), not_a_program),
        (Vec::new(), not_a_program),
        // The program is for another architecture, or is half a copy.
        (patched(18, &[0xfe, 0x7e]), not_a_program),
        (bytes[..40].to_vec(), not_a_program),
        (bytes[..100].to_vec(), not_a_program),
        (bytes[..10_000].to_vec(), "has ended before it was ready: signal: "),
        (script(&garbage).into_bytes(), not_a_program),
        (script(&directory.join("nobody")).into_bytes(), no_interpreter),
        (script(&plain).into_bytes(), "names an interpreter that is not executable"),
    ];
    let loader = memchr::memmem::find(&bytes, b"/ld-linux");
    table.extend(loader.map(|at| (patched(at, b"/nobody--"), no_interpreter)));

    copy_file(Path::new(SERVER), &program);
    let mut child = Command::new(&program);
    child.args(["--listen", "127.0.0.1:0", "--work", "0s"]).current_dir(directory.path());
    let mut servers = KeeperProcess::start(&child);
    let first = servers.serving;
    let mut check = |error: &str| {
        servers.signal(Signal::USR2);
        let told = servers.program.wait_for_any(&["keeper: no restart: ", " takes over from "]);
        let start = format!("cannot start {}", program.display());
        // The kernel may notice only after the start that the end of a file is missing.
        let is_begun = error.starts_with("has ended before it was ready");
        assert!(is_begun || told.contains(&start), "{error}: {told}");
        assert!(told.contains(error), "{error}: {told}");
        assert!(told.ends_with(&format!("; process {first} goes on")), "{told}");
        assert_okay(&mut servers.program.connect());
        assert!(first.is_running() && !ran.exists(), "{error}");
    };
    for (bytes, error) in &table {
        install(&program, bytes);
        check(error);
    }
    install(&program, &bytes);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
    check("it is not executable");
    // `cp` writes in this way to a file that is not running.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let writer = fs::OpenOptions::new().append(true).open(&program).unwrap();
    check("it is still being written");
    drop(writer);
    fs::remove_file(&program).unwrap();
    check("no such file");
    fs::create_dir(&program).unwrap();
    check("it is a directory, not a program");
    fs::remove_dir(&program).unwrap();
    install(&program, &bytes);
    servers.restart();
    servers.end();
}

/// If a late successor is stopped, it does not hold back handshakes on the socket that it shares
/// with its predecessor, and does not remove the socket's file.
#[test]
fn a_late_successor_leaves_the_socket_to_its_predecessor() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::with_patience(over, "1s");
        // The keeper is suspended, and so reads READY only after the patience is over.
        let successor = server.ready_successor("unset NOTIFY_SOCKET; set -- \"$@\" --syn-filter");
        // No event shows that the patience is over, because the keeper is suspended.
        thread::sleep(Duration::from_millis(1200));
        // The child does not know of any trust yet.
        successor.signal(Signal::TERM);
        successor.wait();
        server.keeper().signal(Signal::CONT);
        server.line_of(server.keeper(), "keeper: no restart: ");
        for _ in 0..3 {
            assert_live(&mut server.connect());
        }
        server.stop();
    });
}

/// K7: a program that does not know the channel counts as ready after a time, or when it answers.
#[test]
fn ready_may_be_a_time_or_an_answer() {
    let mut silent = Command::new("sh");
    silent.args(["-c", &format!("unset NOTIFY_SOCKET SMOL_GRACEFUL_KEEPER; exec {SERVER}")]);
    let addr = free_port();
    let listen = addr.to_string();
    let url = format!("http://{addr}/readyz");
    for ready in ["100ms", &url] {
        let mut servers =
            KeeperProcess::of(keep(&["--listen", &listen, "--ready", ready], &silent));
        for _ in 0..2 {
            assert_live(&mut Client::connect(addr));
            let first = servers.restart();
            assert_eq!(servers.exit_code(first), 0);
        }
        servers.end();
    }
    // The predecessor answers, but the successor does not.
    let directory = Directory::new();
    let program = directory.join("app");
    install(&program, format!("#!/bin/sh\nexec {SERVER}\n").as_bytes());
    let flags = ["--listen", &listen, "--ready", &url, "--patience", "1s"];
    let mut servers = KeeperProcess::of(keep(&flags, &Command::new(&program)));
    install(&program, b"#!/bin/sh\nexec sleep 60\n");
    servers.signal(Signal::USR2);
    let told = servers.program.wait_for("keeper: no restart: ");
    assert!(told.contains("was not ready within 1s"), "{told}");
    assert_live(&mut Client::connect(addr));
    servers.end();
}

// The parts of the tests above.

/// Asserts that the server answers.
fn assert_okay(client: &mut Client) {
    assert_eq!(client.get("/").response().text(), "okay");
}
