//! Restarts of the real binary under a load that checks every answer: inherited sockets, the service
//! manager's protocol, an upgrade in place, an overlap, and a plain rebinding.
//!
//! The load is `examples/lossless`. Where a socket stays open, nothing may be lost or refused; where
//! it is closed, what the kernel does to a handshake in that very moment is counted apart
//! (`docs/design.md` section 4).

#![cfg(target_os = "linux")]

mod common;
#[path = "../examples/lossless/load.rs"]
mod load;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use common::{Client, Directory, PATIENCE, Program, wait_until};
use load::{Load, Report, Tally, Target};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

const SERVER: &str = env!("CARGO_BIN_EXE_smol-graceful");

// Inherited sockets.

/// LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES as systemd sets them: TCP and Unix sockets at once.
#[test]
fn sockets_are_inherited() {
    let directory = Directory::new();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = directory.path("app.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let (tcp_fd, unix_fd) = (copy(&tcp), copy(&unix));
    let mut server =
        Program::start(activated("$$", vec![tcp_fd, unix_fd], "web:admin", &["--work", "0s"]));
    let addr = tcp.local_addr().unwrap();
    assert_eq!(server.addr, addr);
    server.wait_for(&format!("listening on unix:{} (inherited)", path.display()));
    assert_eq!(Client::connect(addr).get("/").response().text(), "okay");
    assert_eq!(ask_unix(&path), "okay");

    // Rule S5: only let go of. Whoever comes now waits for the successor.
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), 0, "{server}");
    assert!(path.exists());
    let mut early = Client::connect(addr);
    early.get("/");
    let fds = vec![copy(&tcp), copy(&unix)];
    let mut successor = Program::start(activated("$$", fds, "", &["--work", "0s"]));
    assert_eq!(early.response().text(), "okay");
    assert_eq!(ask_unix(&path), "okay");
    successor.signal(Signal::TERM);
    assert_eq!(successor.exit_code(), 0, "{successor}");
    assert!(path.exists());
}

/// An address that is asked for is taken from what was inherited, and what nobody asks for is left.
#[test]
fn an_inherited_socket_is_taken_by_its_address() {
    let (wanted, other) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let addr = wanted.local_addr().unwrap();
    let fds = vec![copy(&other), copy(&wanted)];
    let listen = addr.to_string();
    let mut server = Program::start(activated("$$", fds, "", &["--listen", &listen]));
    assert_eq!(server.addr, addr);
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), 0);
    let log = server.log();
    let unwanted = other.local_addr().unwrap();
    assert!(log.contains(&format!("inherited {unwanted}, which no --listen asks for")), "{log}");
}

/// What is meant for another process is not taken.
#[test]
fn sockets_for_another_process_are_ignored() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    let args = ["--listen", "127.0.0.1:0", "--work", "0s"];
    for pid in ["1", ""] {
        let mut server = Program::start(activated(pid, vec![copy(&held)], "", &args));
        assert_ne!(server.addr, addr);
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code(), 0);
    }
}

/// What is no listening socket is named, in one line, with exit code 1.
#[test]
fn what_cannot_be_inherited_is_named() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (stream, _other) = UnixStream::pair().unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let no_listener = "is no socket that listens for connections";
    for (fd, args, error) in [
        (OwnedFd::from(udp), &[][..], format!("inherited sockets: descriptor 3 {no_listener}")),
        (stream.into(), &[], format!("inherited sockets: descriptor 3 {no_listener}")),
        (file.into(), &[], "inherited sockets: descriptor 3 is no socket".into()),
        (
            fs::File::open("/dev/null").unwrap().into(),
            &["--listen", "fd:3"],
            "cannot listen on fd:3: descriptor 3 is no socket".into(),
        ),
        (
            fs::File::open("/dev/null").unwrap().into(),
            &["--listen", "fd:77"],
            "cannot listen on fd:77: descriptor 77 is not open".into(),
        ),
    ] {
        let mut command = activated("$$", vec![fd], "", args);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert_eq!(log, format!("smol-graceful: {error}\n"));
    }
}

/// Supervisor's `[fcgi-program]`: the socket is descriptor 0.
#[test]
fn descriptor_0_is_inherited() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = held_on_stdin(&held, &["--work", "0s"]);
    assert_eq!(server.addr, held.local_addr().unwrap());
    assert_eq!(server.connect().get("/").response().text(), "okay");
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), 0, "{server}");
}

/// The flag holds for inherited sockets too, however they are asked for. The test holds the same
/// socket, so it sees what the program has set.
#[test]
fn inherited_sockets_have_the_keepalive_of_the_flag() {
    let cases: [(&[&str], Option<u64>); 3] =
        [(&[], Some(60)), (&["--keepalive", "42s"], Some(42)), (&["--keepalive", "0s"], None)];
    for (args, seconds) in cases {
        for by_listen_fds in [false, true] {
            let held = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut server = match by_listen_fds {
                false => held_on_stdin(&held, args),
                true => Program::start(activated("$$", vec![copy(&held)], "http", args)),
            };
            let socket = socket2::SockRef::from(&held);
            assert_eq!(socket.keepalive().unwrap(), seconds.is_some(), "{args:?}");
            if let Some(seconds) = seconds {
                let silence = socket.tcp_keepalive_time().unwrap();
                assert_eq!(silence, Duration::from_secs(seconds), "{args:?}");
            }
            server.signal(Signal::TERM);
            assert_eq!(server.exit_code(), 0, "{server}");
        }
    }
}

/// Ten restarts of a server whose socket another process holds, as Supervisor does and as systemd does:
/// nothing is lost, nobody refused.
#[test]
fn a_held_socket_loses_nothing() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let on_stdin = || held_on_stdin(&held, &[]);
    let by_listen_fds = || Program::start(activated("$$", vec![copy(&held)], "http", &[]));
    let ways: [&dyn Fn() -> Program; 2] = [&on_stdin, &by_listen_fds];
    for start in ways {
        let mut server = start();
        let (report, ()) = under_load(Target::Tcp(server.addr), |tally| {
            for _ in 0..10 {
                server.signal(Signal::TERM);
                assert_eq!(server.exit_code(), 0, "{server}");
                server = start();
                assert!(tally.all_answered(PATIENCE));
            }
        });
        assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
    }
}

// Those who bind themselves.

/// Five times stopped and started anew on the same address: no request is lost that had been sent, apart
/// from handshakes that were under way in the moment of the close.
#[test]
fn rebinding_loses_no_request() {
    let (report, restarts) = rebinding(&[]);
    assert_eq!(report.lost() - report.reset, 0, "{report}");
    assert!(report.reset <= 2 * restarts, "{report}");
}

/// With the filter, not even those.
#[test]
fn rebinding_with_a_syn_filter_loses_nothing() {
    let (report, _) = rebinding(&["--syn-filter"]);
    assert_eq!(report.lost(), 0, "{report}");
}

fn rebinding(args: &[&str]) -> (Report, u64) {
    const RESTARTS: u64 = 5;
    let mut server = Program::server(args);
    let listen = server.addr.to_string();
    let (report, ()) = under_load(Target::Tcp(server.addr), |tally| {
        for _ in 0..RESTARTS {
            server.signal(Signal::TERM);
            assert_eq!(server.exit_code(), 0, "{server}");
            server = at(&listen, args);
            assert!(tally.all_answered(PATIENCE));
        }
    });
    (report, RESTARTS)
}

/// With SO_REUSEPORT the successor listens before the predecessor stops: nobody is refused, and with
/// the filter nothing is lost either.
#[test]
fn an_overlap_refuses_nobody() {
    let args = ["--reuse-port", "--syn-filter"];
    let mut server = Program::server(&args);
    let listen = server.addr.to_string();
    let (report, ()) = under_load(Target::Tcp(server.addr), |tally| {
        for _ in 0..5 {
            let successor = at(&listen, &args);
            server.signal(Signal::TERM);
            assert_eq!(server.exit_code(), 0, "{server}");
            server = successor;
            assert!(tally.all_answered(PATIENCE));
        }
    });
    assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
}

/// Without the flag the address is in use.
#[test]
fn an_overlap_has_to_be_asked_for() {
    let server = Program::server(&["--reuse-port"]);
    let listen = server.addr.to_string();
    let output = Command::new(SERVER).args(["--listen", &listen]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("the address is in use"), "{log}");
}

// An upgrade in place.

/// Ten times in a row, over TCP: nothing is lost, nobody refused, and the manager is told each time.
#[test]
fn usr2_loses_nothing() {
    let directory = Directory::new();
    let manager = UnixDatagram::bind(directory.path("manager")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0"]).env("NOTIFY_SOCKET", directory.path("manager"));
    let mut line = Line::start(command);
    assert!(hear(&manager).starts_with("READY=1\nSTATUS=listening on 127.0.0.1:"));
    let (report, ()) = under_load(Target::Tcp(line.program.addr), |tally| {
        for _ in 0..10 {
            line.restart();
            assert_eq!(hear(&manager), format!("MAINPID={}\n", line.pid));
            assert!(tally.all_answered(PATIENCE));
        }
    });
    assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
    line.end();
    // The last in the line, which the manager follows, says when it stops.
    assert!(hear(&manager).starts_with("STOPPING=1\n"));
}

/// The same over a Unix socket, whose file goes from one to the next and is removed by the last.
#[test]
fn usr2_hands_over_a_socket_file() {
    let directory = Directory::new();
    let path = directory.path("app.sock");
    let mut command = Command::new(SERVER);
    command.args(["--listen", &format!("unix:{}", path.display())]);
    let mut line = Line::start(command);
    let (report, ()) = under_load(Target::Unix(path.clone()), |tally| {
        for _ in 0..10 {
            line.restart();
            assert!(tally.all_answered(PATIENCE));
        }
    });
    assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
    assert!(path.exists());
    line.end();
    assert!(!path.exists());
}

/// What the operator calls `fd:0` and LISTEN_FDS can be handed over, too.
#[test]
fn usr2_hands_over_what_was_inherited() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut on_stdin = Command::new(SERVER);
    on_stdin.args(["--listen", "fd:0", "--work", "0s"]);
    let fds = vec![copy(&held)];
    for (command, stdin) in
        [(on_stdin, Some(copy(&held))), (activated("$$", fds, "web", &["--work", "0s"]), None)]
    {
        let mut line = Line::start_with(command, stdin);
        for _ in 0..3 {
            line.restart();
            assert_eq!(line.program.connect().get("/").response().text(), "okay");
        }
        line.end();
        // Rule S5: whoever held it still does.
        TcpStream::connect(held.local_addr().unwrap()).unwrap();
    }
}

/// What is in flight when the successor takes over is finished by the predecessor.
#[test]
fn usr2_finishes_what_is_in_flight() {
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0"]);
    let mut line = Line::start(command);
    let predecessor = line.pid;
    let mut slow = line.program.connect();
    slow.send("GET /work?for=0s HTTP/1.1\r\nHo");
    // By the time this is answered, the first bytes of that were read.
    line.program.connect().get("/livez").response();
    line.restart();
    assert_eq!(line.program.connect().get("/livez").response().text(), "live\n");
    // To it, the first signal is no second one.
    kill_process(pid(predecessor), Signal::TERM).unwrap();
    line.program.wait_for("SIGTERM: stopping already; in flight: ");
    let response = slow.send("st: x\r\n\r\n").response();
    assert_eq!((response.text().as_str(), response.says_close()), ("okay", true));
    wait_until("the predecessor has ended", || !is_running(predecessor));
    line.end();
}

/// A successor that fails, in each of the ways that it can, leaves everything as it was.
#[test]
fn a_broken_successor_changes_nothing() {
    let directory = Directory::new();
    let program = directory.path("app");
    let install = |script: Option<&str>| match script {
        Some(script) => replace(&program, script),
        None => replace(&program, &format!("exec {SERVER} \"$@\"")),
    };
    fs::copy(SERVER, &program).unwrap();
    let path = directory.path("app.sock");
    let mut command = Command::new(&program);
    command.args(["--listen", "127.0.0.1:0", "--work", "0s", "--patience", "300ms"]);
    command.args(["--listen", &format!("unix:{}", path.display())]);
    let mut line = Line::start(command);
    let first = line.pid;
    // It has taken the sockets by then; and it serves, but does not say so.
    let fails = &format!("exec {SERVER} \"$@\" --listen 192.0.2.1:1");
    let is_silent = &format!("NOTIFY_SOCKET= exec {SERVER} \"$@\"");
    for (script, error) in [
        (&**fails, "no successor: the successor has ended before it was ready: exit status: 1"),
        (is_silent, "no successor: the successor was not ready within 300ms"),
        ("exit 3", "no successor: the successor has ended before it was ready: exit status: 3"),
        ("exec sleep 60", "no successor: the successor was not ready within 300ms"),
        // It also does not stop when it is told to.
        ("trap '' TERM; exec sleep 60", "no successor: the successor was not ready within"),
    ] {
        install(Some(script));
        line.signal(Signal::USR2);
        line.program.wait_for(error);
        assert_eq!(line.program.connect().get("/").response().text(), "okay", "{script}");
        assert_eq!(ask_unix(&path), "okay", "{script}");
        assert!(is_running(first));
    }
    fs::remove_file(&program).unwrap();
    line.signal(Signal::USR2);
    line.program.wait_for("no successor: cannot start ");
    // And once it is mended:
    install(None);
    line.restart();
    assert_ne!(line.pid, first);
    assert_eq!(line.program.connect().get("/").response().text(), "okay");
    // One that is started by something else that stays.
    install(Some(&format!("{SERVER} \"$@\"; exit $?")));
    line.restart();
    assert_eq!(line.program.connect().get("/").response().text(), "okay");
    assert_eq!(ask_unix(&path), "okay");
    line.end();
    assert!(!path.exists());
}

/// What a successor does not take stays the predecessor's, and is closed like it.
#[test]
fn what_a_successor_does_not_take_is_closed() {
    let directory = Directory::new();
    let (program, path) = (directory.path("app"), directory.path("app.sock"));
    fs::copy(SERVER, &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["--listen", "127.0.0.1:0", "--listen", &format!("unix:{}", path.display())]);
    let mut line = Line::start(command);
    let old = line.program.addr;
    replace(&program, &format!("exec {SERVER} --listen 127.0.0.2:0"));
    line.restart();
    wait_until("the old address is closed", || TcpStream::connect(old).is_err());
    wait_until("the old file is gone", || !path.exists());
    line.end();
}

/// A file that is another's by now is left alone, whoever in the line ends.
#[test]
fn another_servers_file_is_not_handed_over() {
    let directory = Directory::new();
    let path = directory.path("app.sock");
    let mut command = Command::new(SERVER);
    command.args(["--listen", &format!("unix:{}", path.display())]);
    let mut line = Line::start(command);
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    line.restart();
    line.end();
    assert!(path.exists());
    drop(other);
}

/// Without descriptors there is no successor, and no end either.
#[test]
fn too_few_descriptors_change_nothing() {
    for limit in 16..24 {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        command.args(["-c", &script, "sh", SERVER, "--listen", "127.0.0.1:0", "--work", "0s"]);
        let mut line = Line::start(command);
        line.signal(Signal::USR2);
        // Either.
        let told = line.program.wait_for_any(&["no successor: ", " has taken over"]);
        if told.contains("taken over") {
            line.pid = number_behind(&told, "process ");
        }
        assert_eq!(line.program.connect().get("/").response().text(), "okay", "{limit}");
        line.end();
    }
}

/// Puts a script in the place of a program, as a deployment does.
fn replace(program: &Path, script: &str) {
    let new = program.with_extension("new");
    fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, program).unwrap();
}

/// A stop while a successor is being started ends both.
#[test]
fn a_stop_ends_a_successor_that_is_not_ready() {
    let directory = Directory::new();
    let program = directory.path("app");
    fs::copy(SERVER, &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["--listen", "127.0.0.1:0"]);
    let mut line = Line::start(command);
    replace(&program, "exec sleep 60");
    line.signal(Signal::USR2);
    let told = line.program.wait_for("waiting for the successor, process ");
    let successor = number_behind(&told, "process ");
    line.signal(Signal::USR2);
    line.program.wait_for("a successor is being started already");
    line.signal(Signal::TERM);
    assert_eq!(line.program.exit_code(), 0, "{}", line.program);
    wait_until("the successor has ended", || !is_running(successor));
}

/// A successor is not started by a server that stops already.
#[test]
fn usr2_in_the_drain_starts_nothing() {
    let mut server = Program::server(&[]);
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel");
    server.signal(Signal::TERM);
    server.wait_for("stopping because of SIGTERM");
    server.signal(Signal::USR2);
    server.wait_for("no successor is started because of SIGUSR2: stopping");
    assert_eq!(client.send("lo").response().text(), "hello");
    assert_eq!(server.exit_code(), 0, "{server}");
}

/// `serve` and `restart` in a program of one's own: the successor says itself that it is ready; and
/// there is one successor at a time.
#[test]
fn a_program_of_its_own_restarts_itself() {
    let mut line = Line::start(Program::example_command("restart", &["127.0.0.1:0"]));
    for _ in 0..3 {
        let mut client = line.program.connect();
        assert_eq!(client.get("/").response().text(), format!("process {}\n", line.pid));
        let mut other = line.program.connect();
        let post = "POST /restart HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        // Both at once.
        let answers = [client.send(post).response(), other.send(post).response()];
        let statuses = answers.each_ref().map(|answer| answer.status);
        let told = answers.iter().find(|answer| answer.status == 200);
        let told = told.unwrap_or_else(|| panic!("{statuses:?}")).text();
        line.pid = number_behind(&told, "process ");
    }
    line.signal(Signal::TERM);
    wait_until("the last one has ended", || !is_running(line.pid));
}

// The service manager.

/// Rule S20: READY when it listens, STOPPING at the stop, STATUS in the drain, and time is asked for as
/// long as something moves.
#[test]
fn the_manager_is_told() {
    let directory = Directory::new();
    let manager = UnixDatagram::bind(directory.path("manager")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--lame-duck", "300ms", "--grace", "20s"]);
    command.env("NOTIFY_SOCKET", directory.path("manager"));
    let mut server = Program::start(command);
    assert_eq!(hear(&manager), format!("READY=1\nSTATUS=listening on {}\n", server.addr));

    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nh");
    assert_eq!(client.stream.peek(&mut [0]).unwrap(), 1);
    server.signal(Signal::TERM);
    assert_eq!(hear(&manager), "STOPPING=1\nSTATUS=stopping\n");
    assert_eq!(
        hear(&manager),
        "STATUS=lame duck: accepting connections for another 300ms\nEXTEND_TIMEOUT_USEC=1300000\n"
    );
    let first = hear(&manager);
    assert!(
        first.starts_with("STATUS=draining: 1 left, 19 s to go; the oldest: 127.0.0.1:"),
        "{first}"
    );
    assert!(first.ends_with("s)\nEXTEND_TIMEOUT_USEC=5000000\n"), "{first}");
    // Nothing has moved since, so no more time is asked for.
    let second = hear(&manager);
    assert!(
        second.starts_with("STATUS=draining: 1 left") && !second.contains("EXTEND"),
        "{second}"
    );
    client.send("e");
    let deadline = Instant::now() + PATIENCE;
    while !hear(&manager).contains("EXTEND_TIMEOUT_USEC=5000000") {
        assert!(Instant::now() < deadline);
    }
    client.send("llo");
    assert_eq!(client.response().text(), "hello");
    assert_eq!(server.exit_code(), 0, "{server}");
}

/// WATCHDOG=1 comes from the threads that run handlers: when all of them are blocked, it does not.
#[test]
fn a_blocked_executor_is_noticed() {
    let directory = Directory::new();
    let manager = UnixDatagram::bind(directory.path("manager")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Program::example_command("blocking", &["127.0.0.1:0", "30", "2"]);
    command.env("NOTIFY_SOCKET", directory.path("manager")).env("WATCHDOG_USEC", "100000");
    let mut server = Program::start(command);
    assert!(hear(&manager).starts_with("READY=1\n"));
    for _ in 0..3 {
        assert_eq!(hear(&manager), "WATCHDOG=1\n");
    }
    // Both of its workers are blocked by these.
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        client.get("/block/60000");
    }
    manager.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    wait_until("the watchdog is silent", || {
        let mut bytes = [0; 100];
        manager.recv(&mut bytes).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    });
    server.signal(Signal::TERM);
    server.wait_for("stopping because of SIGTERM");
    common::pass_repeat_window();
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), 1, "{server}");
}

/// Rule S21: a manager that does not read holds up nothing, and one that is not there neither.
#[test]
fn a_deaf_manager_holds_up_nothing() {
    let directory = Directory::new();
    let path = directory.path("manager");
    let manager = UnixDatagram::bind(&path).unwrap();
    // Fill it.
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"x", &path).is_ok() {}
    for socket in [path, directory.path("nobody")] {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0", "--work", "0s"]).env("NOTIFY_SOCKET", &socket);
        let mut server = Program::start(command);
        assert_eq!(server.connect().get("/").response().text(), "okay");
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code(), 0, "{server}");
    }
    drop(manager);
}

// What the tests above are made of.

/// Runs `during` under a load of 16 clients of all kinds, with requests of up to 50 ms.
fn under_load<T>(target: Target, during: impl FnOnce(&Tally) -> T) -> (Report, T) {
    let (report, made) = Load::new(target).run(during).unwrap();
    assert!(report.answered > 100, "{report}");
    (report, made)
}

/// The server with `fds` from descriptor 3 on, for the process `pid`.
fn activated(pid: &str, fds: Vec<OwnedFd>, names: &str, args: &[&str]) -> Command {
    // The process id is not known before: the shell becomes the server.
    let mut command = Command::new("sh");
    command.args(["-c", &format!("LISTEN_PID={pid} exec \"$@\""), "sh", SERVER]).args(args);
    command.env("LISTEN_FDS", fds.len().to_string()).env("LISTEN_FDNAMES", names);
    let mappings = (3..).zip(fds).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).unwrap();
    command
}

fn held_on_stdin(held: &TcpListener, args: &[&str]) -> Program {
    let mut command = Command::new(SERVER);
    command.args(["--listen", "fd:0"]).args(args);
    Program::start_with(command, copy(held).into())
}

/// The server on an address that may take a moment to be free.
fn at(listen: &str, args: &[&str]) -> Program {
    let mut command = Command::new(SERVER);
    command.args(["--listen", listen]).args(args);
    Program::start(command)
}

fn copy(socket: &impl AsFd) -> OwnedFd {
    socket.as_fd().try_clone_to_owned().unwrap()
}

fn ask_unix(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response.rsplit("\r\n").next().unwrap().to_owned()
}

/// The next message to the manager.
fn hear(manager: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let n = manager.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..n].to_vec()).unwrap()
}

/// The number behind `words`.
fn number_behind(line: &str, words: &str) -> i32 {
    let rest = line.rsplit(words).next().unwrap();
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

fn pid(number: i32) -> Pid {
    Pid::from_raw(number).unwrap()
}

/// Whether there is such a process, be it that nobody has asked yet how it ended.
fn is_running(number: i32) -> bool {
    let state = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
    test_kill_process(pid(number)).is_ok() && !state.contains(") Z ")
}

/// Servers that follow one another; they share the log.
struct Line {
    program: Program,
    /// Who serves.
    pid: i32,
}

impl Line {
    fn start(command: Command) -> Self {
        Self::start_with(command, None)
    }

    fn start_with(command: Command, stdin: Option<OwnedFd>) -> Self {
        let program = Program::start_with(command, stdin.map_or_else(Stdio::null, Stdio::from));
        let pid = i32::try_from(program.pid()).unwrap();
        Self { program, pid }
    }

    fn signal(&self, signal: Signal) {
        kill_process(pid(self.pid), signal).unwrap();
    }

    /// Lets a successor take over.
    fn restart(&mut self) {
        self.signal(Signal::USR2);
        let told = self.program.wait_for(" has taken over");
        self.pid = number_behind(&told, "process ");
    }

    /// Stops the last one; all of them have drained.
    fn end(&mut self) {
        self.signal(Signal::TERM);
        let log = self.program.log();
        let stops = log.matches("stopping because of SIGTERM").count();
        let restarts = log.matches(" has taken over").count();
        assert_eq!(log.matches("drained in ").count(), stops + restarts, "{log}");
        wait_until("the last one has ended", || !is_running(self.pid));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if std::thread::panicking() && self.pid != i32::try_from(self.program.pid()).unwrap() {
            let _ = kill_process(pid(self.pid), Signal::KILL);
        }
    }
}
