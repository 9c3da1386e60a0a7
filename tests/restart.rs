//! Restarts of the real binary under a load that checks every answer: inherited sockets, the
//! service manager's protocol, an upgrade in place, an overlap, and a plain rebinding.
//!
//! The load is `smol-graceful check`. Where a socket stays open, nothing may be lost or refused;
//! where it is closed, what the kernel does to a handshake in that very moment is counted apart
//! (`docs/design.md` section 4).

#![cfg(target_os = "linux")]

mod common;
#[path = "../src/main/check/load.rs"]
mod load;

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    Client, Directory, Generations, PATIENCE, ProcessId, Program, SERVER, ask_unix,
    assert_all_okay, copy_file, hear, install, is_refused, number_behind, pass_repeat_window,
    queued, service_manager, wait_for_close, wait_until,
};
use load::{Load, Report, Tally, Target};
use rustix::process::Signal;
use smol_graceful::{Listener, Process, Server, restart};
use socket2::SockRef;

// Inherited sockets.

/// LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES as systemd sets them: TCP and Unix sockets at once.
#[test]
fn sockets_are_inherited() {
    let directory = Directory::new();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = directory.join("app.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let (tcp_fd, unix_fd) = (copy(&tcp), copy(&unix));
    let mut server =
        Program::start(activated("$$", vec![tcp_fd, unix_fd], "web:admin", &["--work", "0s"]));
    let addr = tcp.local_addr().unwrap();
    assert_eq!(server.addr, addr);
    server.wait_for(&format!("listening on unix:{} (inherited)", path.display()));
    assert_eq!(Client::connect(addr).get("/").response().text(), "okay");
    assert_eq!(ask_unix(&path), "okay");

    // S5: the socket and its file stay, because this test has the socket. A client that comes now
    // waits for the successor.
    server.stop();
    assert!(path.exists());
    let mut early = Client::connect(addr);
    early.get("/");
    let fds = vec![copy(&tcp), copy(&unix)];
    let mut successor = Program::start(activated("$$", fds, "", &["--work", "0s"]));
    assert_eq!(early.response().text(), "okay");
    assert_eq!(ask_unix(&path), "okay");
    successor.stop();
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
    server.stop();
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
        server.stop();
    }
}

/// What is no listening socket is named, in one line, with exit code 1.
#[test]
fn what_cannot_be_inherited_is_named() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (stream, _other) = UnixStream::pair().unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let no_listener = "is not a socket that listens for connections";
    for (fd, args, error) in [
        (OwnedFd::from(udp), &[][..], format!("inherited sockets: descriptor 3 {no_listener}")),
        (stream.into(), &[], format!("inherited sockets: descriptor 3 {no_listener}")),
        (
            file.into(),
            &[],
            "inherited sockets: descriptor 3 is not a socket; Supervisor passes".into(),
        ),
        (
            fs::File::open("/dev/null").unwrap().into(),
            &["--listen", "fd:3"],
            "cannot listen on fd:3: descriptor 3 is not a socket; Supervisor passes".into(),
        ),
        (
            fs::File::open("/dev/null").unwrap().into(),
            &["--listen", "fd:77"],
            "cannot listen on fd:77: descriptor 77 is not open; Supervisor passes".into(),
        ),
    ] {
        let mut command = activated("$$", vec![fd], "", args);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.starts_with(&format!("smol-graceful: {error}")), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
    }
}

/// The second address is the same socket, of which only one copy is left.
#[test]
fn a_socket_that_is_asked_for_twice_is_named() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    for (redirection, fd) in [("", 0), ("1<&0", 1), ("5<&0", 5)] {
        let script = format!("exec \"$0\" --listen fd:0,fd:{fd} {redirection}");
        let mut command = Command::new("sh");
        let output = command.args(["-c", &script, SERVER]).stdin(copy(&socket)).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        let error = format!(
            "cannot listen on fd:{fd}: descriptor {fd} was taken before, or has another socket now\n"
        );
        assert_eq!(log, format!("smol-graceful: {error}"));
    }
}

/// Supervisor's `[fcgi-program]`: the socket is descriptor 0.
#[test]
fn descriptor_0_is_inherited() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = held_on_stdin(&held, &["--work", "0s"]);
    assert_eq!(server.addr, held.local_addr().unwrap());
    assert_eq!(server.connect().get("/").response().text(), "okay");
    server.stop();
}

/// Once the socket is taken, no child of the server inherits it: a standard stream that was the
/// socket is /dev/null, and an exec closes the copy.
#[test]
fn children_do_not_inherit_the_socket() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let inode = fs::metadata(format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd())).unwrap();
    let inode = inode.ino();
    let shell = |redirection: &str, listen: &str| {
        let mut command = Command::new("sh");
        let script = format!("exec \"$0\" --listen {listen} --work 0s {redirection}");
        command.args(["-c", &script, SERVER]);
        command
    };
    // All streams at once, as inetd passes it; one of them; and one that is no standard stream.
    for (redirection, listen, streams) in [
        ("", "fd:0", &[0][..]),
        ("1<&0", "fd:0", &[0, 1]),
        ("1<&0", "fd:1", &[0, 1]),
        ("1<&0 3<&0", "fd:3", &[0, 1]),
        // A launcher that has forgotten to close its own.
        ("5<&0 6<&0", "fd:0", &[0, 5, 6]),
        ("7<&0 </dev/null", "fd:7", &[]),
    ] {
        let command = shell(redirection, listen);
        let mut server = Program::start_with(command, copy(&socket));
        assert_eq!(server.connect().get("/").response().text(), "okay");
        let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
        let left: Vec<_> = descriptors
            .map(|fd| fd.unwrap().path())
            .filter(|fd| fs::metadata(fd).is_ok_and(|file| file.ino() == inode))
            .collect();
        let [copy] = &left[..] else { panic!("{left:?} for {listen} {redirection}") };
        let number = copy.file_name().unwrap().to_str().unwrap();
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", server.pid())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        assert_ne!(flags & 0o2_000_000, 0, "{number} has no O_CLOEXEC: {info}");
        for stream in streams {
            let stream = fs::read_link(format!("/proc/{}/fd/{stream}", server.pid())).unwrap();
            assert_eq!(stream, Path::new("/dev/null"));
        }
        server.stop();
    }
}

/// A process that has the socket, too, may shut it down for all who have it. Then nobody is in the
/// queue, so the stop does not wait for the queue.
#[test]
fn a_socket_that_another_process_shuts_down_does_not_hold_up_the_stop() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = held_on_stdin(&held, &["--grace", "1h"]);
    SockRef::from(&held).shutdown(Shutdown::Both).unwrap();
    server.wait_for("another process has shut the socket down");
    server.stop();
}

/// S5: clients in the queue are served although the socket was passed, because nobody else may be
/// there to serve them: a program that makes the socket and then becomes the server, as s6's
/// binders do.
#[test]
fn the_queue_of_a_passed_socket_is_served() {
    let on_stdin = |socket: TcpListener| {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "fd:0", "--threads", "1"]);
        Program::start_with(command, OwnedFd::from(socket))
    };
    let by_listen_fds = |socket: TcpListener| {
        Program::start(activated("$$", vec![socket.into()], "", &["--threads", "1"]))
    };
    let ways: [&dyn Fn(TcpListener) -> Program; 2] = [&on_stdin, &by_listen_fds];
    for start in ways {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        // The standard library's queue is too short for the clients below.
        SockRef::from(&socket).listen(4096).unwrap();
        let mut server = start(socket);
        let addr = server.addr;
        // It accepts nothing and sees no signal meanwhile.
        server.signal(Signal::STOP);
        let clients = queued(addr, 500);
        server.signal(Signal::TERM);
        server.signal(Signal::CONT);
        assert_all_okay(clients);
        assert_eq!(server.exit_code(), 0, "{server}");
        assert!(is_refused(addr));
    }
}

/// S5: the file of a passed Unix socket is removed by the last process that has the socket.
#[test]
fn the_last_holder_removes_a_passed_sockets_file() {
    let directory = Directory::new();
    for is_held in [false, true] {
        let path = directory.join("passed.sock");
        let socket = UnixListener::bind(&path).unwrap();
        let held = is_held.then(|| copy(&socket));
        let mut server =
            Program::start(activated("$$", vec![socket.into()], "", &["--work", "0s"]));
        assert_eq!(ask_unix(&path), "okay");
        server.stop();
        assert_eq!(path.exists(), is_held);
        drop(held);
    }
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
            let mut server = if by_listen_fds {
                Program::start(activated("$$", vec![copy(&held)], "http", args))
            } else {
                held_on_stdin(&held, args)
            };
            let socket = SockRef::from(&held);
            assert_eq!(socket.keepalive().unwrap(), seconds.is_some(), "{args:?}");
            if let Some(seconds) = seconds {
                let silence = socket.tcp_keepalive_time().unwrap();
                assert_eq!(silence, Duration::from_secs(seconds), "{args:?}");
            }
            server.stop();
        }
    }
}

/// Ten restarts of a server whose socket another process holds, as Supervisor does and as systemd
/// does: nothing is lost, nobody refused.
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
                server.stop();
                server = start();
                assert!(tally.all_answered(PATIENCE));
            }
        });
        assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
    }
}

// Those who bind themselves.

/// Five times stopped and started anew on the same address: no request is lost that had been sent,
/// apart from handshakes that were under way in the moment of the close.
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
            server.stop();
            server = at(&listen, args);
            assert!(tally.all_answered(PATIENCE));
        }
    });
    (report, RESTARTS)
}

/// With SO_REUSEPORT the successor listens before the predecessor stops: nobody is refused, and
/// with the filter nothing is lost either.
#[test]
fn an_overlap_refuses_nobody() {
    let args = ["--reuse-port", "--syn-filter"];
    let mut server = Program::server(&args);
    let listen = server.addr.to_string();
    let (report, ()) = under_load(Target::Tcp(server.addr), |tally| {
        for _ in 0..5 {
            let successor = at(&listen, &args);
            server.stop();
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

/// Ten times in a row, over TCP: nothing is lost, nobody refused, and the manager is told each
/// time.
#[test]
fn usr2_loses_nothing() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0"]).env("NOTIFY_SOCKET", directory.join("manager"));
    let mut servers = Generations::start(command);
    assert_eq!(hear(&manager), "READY=1\n");
    assert!(hear(&manager).starts_with("STATUS=listening on 127.0.0.1:"));
    let (report, ()) = under_load(Target::Tcp(servers.program.addr), |tally| {
        for _ in 0..10 {
            servers.restart();
            assert_eq!(hear(&manager), format!("MAINPID={}\n", servers.serving));
            assert!(tally.all_answered(PATIENCE));
        }
    });
    assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
    servers.end();
    // The last in the line, which the manager follows, says when it stops.
    assert!(hear(&manager).starts_with("STOPPING=1\n"));
}

/// The same over a Unix socket, whose file goes from one to the next and is removed by the last.
#[test]
fn usr2_hands_over_a_socket_file() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let mut command = Command::new(SERVER);
    command.args(["--listen", &format!("unix:{}", path.display())]);
    let mut servers = Generations::start(command);
    let (report, ()) = under_load(Target::Unix(path.clone()), |tally| {
        for _ in 0..10 {
            servers.restart();
            assert!(tally.all_answered(PATIENCE));
        }
    });
    assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
    assert!(path.exists());
    servers.end();
    assert!(!path.exists());
}

/// What the operator calls `fd:0` and LISTEN_FDS can be handed over, too.
#[test]
fn usr2_hands_over_what_was_inherited() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut on_stdin = Command::new(SERVER);
    on_stdin.args(["--listen", "fd:0", "--work", "0s"]);
    let fds = vec![copy(&held)];
    for (command, stdin) in [
        (on_stdin, copy(&held).into()),
        (activated("$$", fds, "web", &["--work", "0s"]), Stdio::null()),
    ] {
        let mut servers = Generations::start_with(command, stdin);
        for _ in 0..3 {
            servers.restart();
            assert_eq!(servers.program.connect().get("/").response().text(), "okay");
        }
        servers.end();
        // S5: it is not shut down, so this test still listens.
        TcpStream::connect(held.local_addr().unwrap()).unwrap();
    }
}

/// However many sockets there are and however long their paths, each of them goes from one to the
/// next, and a manager, which reads 4096 bytes of a message, understands READY.
#[test]
fn usr2_hands_over_a_hundred_sockets() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    // Close to the kernel's limit for a path, 107 bytes.
    let padding = "x".repeat(95_usize.saturating_sub(directory.join("").as_os_str().len()));
    let paths: Vec<_> = (0..100).map(|n| directory.join(&format!("{padding}{n:03}"))).collect();
    let mut command = Command::new(SERVER);
    command.args(["--work", "0s"]).env("NOTIFY_SOCKET", directory.join("manager"));
    for path in &paths {
        command.arg("--listen").arg(format!("unix:{}", path.display()));
    }
    let mut servers = Generations::start(command);
    assert_eq!(hear(&manager), "READY=1\n");
    let status = hear(&manager);
    assert!(status.starts_with("STATUS=listening on unix:"), "{status}");
    assert!(status.ends_with("...\n") && status.len() < 300, "{status}");
    for _ in 0..2 {
        let predecessor = servers.serving;
        servers.restart();
        assert_eq!(hear(&manager), format!("MAINPID={}\n", servers.serving));
        // A hundred sockets take a fraction of a second. The time of the clock would also count what
        // else the machine does.
        let work = servers.serving.processor_time();
        assert!(work < Duration::from_secs(3), "{work:?}");
        predecessor.wait();
        for path in &paths {
            assert_eq!(ask_unix(path), "okay");
        }
    }
    servers.end();
    assert!(paths.iter().all(|path| !path.exists()));
}

/// A successor of another program may say what it likes beside READY, in any order and at any
/// length.
#[test]
fn a_successor_may_say_more_than_ready() {
    let long = "s".repeat(100_000);
    for message in [
        format!("STATUS={long}\nX_TAKEN=3\nREADY=1").as_bytes(),
        format!("READY=1\nSTATUS={long}\nX_TAKEN=3\n").as_bytes(),
        b"\n=\nSTATUS=\xff\r\nREADY=1\r\n",
    ] {
        let directory = Directory::new();
        let (program, told) = (directory.join("app"), directory.join("told"));
        copy_server(&program);
        let mut command = Command::new(&program);
        command.args(["--listen", "127.0.0.1:0", "--work", "0s"]);
        let mut servers = Generations::start(command);
        let predecessor = servers.serving;
        // The test says it in the place of the successor.
        let tell = format!("echo \"$NOTIFY_SOCKET\" >{0}.new; mv {0}.new {0}", told.display());
        replace(&program, &format!("{tell}; NOTIFY_SOCKET= exec {SERVER} \"$@\""));
        servers.signal(Signal::USR2);
        wait_until("the successor waits", || told.exists());
        let address = fs::read_to_string(&told).unwrap();
        let speaker = UnixDatagram::unbound().unwrap();
        speaker.send_to(b"STATUS=not yet", address.trim_end()).unwrap();
        speaker.send_to(b"", address.trim_end()).unwrap();
        speaker.send_to(message, address.trim_end()).unwrap();
        servers.wait_for_successor();
        predecessor.wait();
        assert_eq!(servers.program.connect().get("/").response().text(), "okay");
        servers.end();
    }
}

/// What is in flight when the successor takes over is finished by the predecessor.
#[test]
fn usr2_finishes_what_is_in_flight() {
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0"]);
    let mut servers = Generations::start(command);
    let predecessor = servers.serving;
    let mut slow = servers.program.connect();
    slow.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nok");
    // The handler runs when it sends back what has come.
    slow.take_to(b"\r\n\r\nok").unwrap();
    servers.restart();
    assert_eq!(servers.program.connect().get("/livez").response().text(), "live\n");
    // To it, the first signal is no second one.
    predecessor.signal(Signal::TERM);
    servers.program.wait_for("SIGTERM: stopping already; in flight: ");
    assert_eq!(slow.send("ay").take(2).unwrap(), b"ay");
    predecessor.wait();
    // The connection has gone on.
    assert_eq!(slow.get("/livez").response().text(), "live\n");
    servers.end();
}

/// A successor that fails, in each of the ways that it can, leaves everything as it was.
#[test]
fn a_broken_successor_changes_nothing() {
    let directory = Directory::new();
    let program = directory.join("app");
    let put = |script: Option<&str>| match script {
        Some(script) => replace(&program, script),
        None => replace(&program, &format!("exec {SERVER} \"$@\"")),
    };
    copy_server(&program);
    let path = directory.join("app.sock");
    let mut command = Command::new(&program);
    command.args(["--listen", "127.0.0.1:0", "--work", "0s", "--patience", "300ms"]);
    command.args(["--listen", &format!("unix:{}", path.display())]);
    let mut servers = Generations::start(command);
    let first = servers.serving;
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
        put(Some(script));
        servers.signal(Signal::USR2);
        servers.program.wait_for(error);
        assert_eq!(servers.program.connect().get("/").response().text(), "okay", "{script}");
        assert_eq!(ask_unix(&path), "okay", "{script}");
        assert!(first.is_running());
    }
    fs::remove_file(&program).unwrap();
    servers.signal(Signal::USR2);
    servers.program.wait_for("no successor: cannot start ");
    // And once it is mended:
    put(None);
    servers.restart();
    assert_ne!(servers.serving, first);
    assert_eq!(servers.program.connect().get("/").response().text(), "okay");
    // One that is started by something else that stays.
    put(Some(&format!("{SERVER} \"$@\"; exit $?")));
    servers.restart();
    assert_eq!(servers.program.connect().get("/").response().text(), "okay");
    assert_eq!(ask_unix(&path), "okay");
    servers.end();
    assert!(!path.exists());
}

/// A successor that is told to stop, after it has said too late that it is ready, leaves handshakes
/// alone on the socket that it shares with its predecessor, and the predecessor goes on to serve.
#[test]
fn a_late_successor_leaves_no_syn_filter() {
    let mut servers = outlive_a_late_successor(&["--listen", "127.0.0.1:0", "--syn-filter"]);
    // Without an answer to its handshake, a client would wait for minutes.
    TcpStream::connect_timeout(&servers.program.addr, Duration::from_secs(3)).unwrap();
    servers.end();
}

/// The same successor leaves the file of the socket, because clients need the file to find the
/// predecessor.
#[test]
fn a_late_successor_leaves_the_socket_file() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let mut servers = outlive_a_late_successor(&["--listen", &format!("unix:{}", path.display())]);
    assert_eq!(ask_unix(&path), "okay");
    servers.end();
    assert!(!path.exists());
}

/// A successor that is not ready in time is told to stop, and finishes what it has accepted, even if
/// its predecessor is told to stop meanwhile.
#[test]
fn a_late_successor_is_told_to_stop_only_once() {
    let directory = Directory::new();
    let app = directory.join("app");
    std::os::unix::fs::symlink(SERVER, &app).unwrap();
    let mut command = Command::new(&app);
    command.args(["--listen", "127.0.0.1:0", "--patience", "200ms"]);
    let mut servers = Generations::start(command);
    // This successor serves, and does not say so.
    install(&app, format!("#!/bin/sh\nunset NOTIFY_SOCKET\nexec {SERVER} \"$@\"\n").as_bytes());
    servers.signal(Signal::USR2);
    let told = servers.program.wait_for("waiting for the successor, process ");
    let successor = ProcessId::named(&told, "process ");
    servers.signal(Signal::STOP);
    wait_until("the server is suspended", || servers.serving.is_suspended());
    servers.program.wait_for("(inherited)");
    let mut client = servers.program.connect();
    client.get("/work?for=2s");
    // Clients are accepted in turn, so the first one has been accepted when the second has its
    // answer.
    servers.program.connect().get("/livez").response();
    servers.signal(Signal::CONT);
    servers.program.wait_for("stopping because of SIGTERM; in flight: ");
    // The repeat window of the successor has to pass, or a second TERM would do no harm.
    pass_repeat_window();
    servers.signal(Signal::TERM);
    assert_eq!(servers.program.exit_code(), 0, "{}", servers.program);
    assert_eq!(client.response().text(), "okay", "{}", servers.program);
    successor.wait();
}

/// Returns a server that was suspended before its successor became ready. The successor then counted
/// on the sockets, and was told to stop. The server goes on.
fn outlive_a_late_successor(args: &[&str]) -> Generations {
    let directory = Directory::new();
    let (path, manager) = (directory.join("manager"), service_manager(&directory));
    let (app, go) = (directory.join("app"), directory.join("go"));
    std::os::unix::fs::symlink(SERVER, &app).unwrap();
    let mut command = Command::new(&app);
    command.args(["--work", "0s"]).args(args);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "20000");
    let mut servers = Generations::start(command);
    // The successor waits for the test, so that on a busy machine, too, it is ready only after the
    // server was suspended.
    let wait = format!(
        "n=0; until [ -e {} ] || [ $n = 3000 ]; do n=$((n + 1)); sleep 0.01; done",
        go.display()
    );
    install(&app, format!("#!/bin/sh\n{wait}\nexec {SERVER} \"$@\"\n").as_bytes());
    servers.signal(Signal::USR2);
    let told = servers.program.wait_for("waiting for the successor, process ");
    servers.signal(Signal::STOP);
    wait_until("the server is suspended", || servers.serving.is_suspended());
    // Whatever the predecessor has said is heard: the next words are the successor's, every
    // 10 ms. After 500 ms the sockets are its own.
    manager.set_nonblocking(true).unwrap();
    while manager.recv(&mut [0; 4096]).is_ok() {}
    manager.set_nonblocking(false).unwrap();
    fs::write(&go, "").unwrap();
    let mut beats = 0;
    while beats < 50 {
        beats += usize::from(hear(&manager) == "WATCHDOG=1\n");
    }
    let successor = ProcessId::named(&told, "process ");
    successor.signal(Signal::TERM);
    successor.wait();
    servers.signal(Signal::CONT);
    servers.program.wait_for("no successor: the successor was ready and has ended");
    servers
}

/// A file that is not a program is not run, not even by a shell, and one line says what is wrong.
#[test]
fn what_is_not_a_program_is_not_run() {
    let directory = Directory::new();
    let (program, ran) = (directory.join("app"), directory.join("ran"));
    let server = fs::read(SERVER).unwrap();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = server.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
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
        // Another architecture, and what an interrupted copy leaves.
        (patched(18, &[0xfe, 0x7e]), not_a_program),
        (server[..40].to_vec(), not_a_program),
        (server[..100].to_vec(), not_a_program),
        (server[..10_000].to_vec(), "the successor has ended before it was ready: signal: "),
        (script(&garbage).into_bytes(), not_a_program),
        (script(&directory.join("nobody")).into_bytes(), no_interpreter),
        (script(&plain).into_bytes(), "names an interpreter that is not executable"),
    ];
    let loader = memchr::memmem::find(&server, b"/ld-linux");
    table.extend(loader.map(|at| (patched(at, b"/nobody--"), no_interpreter)));

    copy_server(&program);
    let mut command = Command::new(&program);
    command.args(["--listen", "127.0.0.1:0", "--work", "0s"]).current_dir(directory.path());
    let mut servers = Generations::start(command);
    let first = servers.serving;
    let mut check = |error: &str| {
        servers.signal(Signal::USR2);
        let told = servers.program.wait_for_any(&["no successor: ", " has taken over"]);
        let here = fs::canonicalize(directory.path()).unwrap();
        let start = format!("cannot start {} in {}: ", program.display(), here.display());
        // Of a file that was cut further behind, the kernel notices that only when it has begun.
        let is_begun = error.starts_with("the successor has ended before it was ready");
        assert!(is_begun || told.contains(&start), "{error}: {told}");
        assert!(told.contains(error), "{error}: {told}");
        assert!(told.ends_with("; this process goes on"), "{told}");
        assert_eq!(servers.program.connect().get("/").response().text(), "okay", "{error}");
        assert!(first.is_running() && !ran.exists(), "{error}");
    };
    for (bytes, error) in &table {
        install(&program, bytes);
        check(error);
    }
    install(&program, &server);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
    check("it is not executable;");
    // `cp` does that to a file that is not running.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let writer = fs::OpenOptions::new().append(true).open(&program).unwrap();
    check("it is still being written;");
    drop(writer);
    fs::remove_file(&program).unwrap();
    check("no such file;");
    fs::create_dir(&program).unwrap();
    check("it is a directory, not a program;");
    fs::remove_dir(&program).unwrap();
    install(&program, &server);
    servers.restart();
    servers.end();
}

/// A name without a slash is looked up in PATH, and one that is nowhere in it is told of.
#[test]
fn a_successor_is_looked_up_in_path() {
    let directory = Directory::new();
    let (program, elsewhere) = (directory.join("app-in-path"), directory.join("elsewhere"));
    copy_server(&program);
    let path = format!("{}:{}", directory.path().display(), env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", "exec app-in-path \"$@\"", "sh", "--listen", "127.0.0.1:0"]);
    command.env("PATH", path);
    let mut servers = Generations::start(command);
    servers.restart();
    fs::rename(&program, &elsewhere).unwrap();
    servers.signal(Signal::USR2);
    servers.program.wait_for(": no such file in any directory of PATH; this process goes on");
    fs::rename(&elsewhere, &program).unwrap();
    servers.restart();
    servers.end();
}

/// The successor begins as the first process did: with its sockets from descriptor 3 on, the passage
/// behind them and no other one of its predecessor's, an empty input, and the signals ignored that the first one was
/// started to ignore.
#[test]
fn a_successor_begins_like_the_first() {
    let directory = Directory::new();
    let (program, seen) = (directory.join("app"), directory.join("seen"));
    copy_server(&program);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' USR1; exec \"$@\"", "sh"]).arg(&program);
    command.args(["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--work", "0s"]);
    let mut servers = Generations::start(command);
    let look = "grep SigIgn /proc/$$/status; ls -l /proc/$$/fd";
    replace(&program, &format!("{{ {look}; }} >{}; exec {SERVER} \"$@\"", seen.display()));
    servers.restart();

    let seen = fs::read_to_string(&seen).unwrap();
    let ignored = seen.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    // Without the C library's own signals, 32 and 33.
    let ignored = u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff;
    // USR1 alone, and not PIPE, which every Rust program ignores.
    assert_eq!(ignored, 1 << (Signal::USR1.as_raw() - 1), "{seen}");
    let of_kind = |kind: &str| -> Vec<_> {
        let lines = seen.lines().filter_map(|line| line.split_once(" -> "));
        let lines = lines.filter(|(_, what)| what.starts_with(kind));
        lines.map(|(fd, _)| fd.rsplit(' ').next().unwrap()).collect()
    };
    assert_eq!(of_kind("/dev/null")[0], "0", "{seen}");
    assert_eq!(of_kind("socket:"), ["3", "4", "5"], "{seen}");
    assert!(of_kind("anon_inode:").is_empty(), "{seen}");
    servers.end();
}

/// What a successor does not take stays the predecessor's, and is closed like it.
#[test]
fn what_a_successor_does_not_take_is_closed() {
    let directory = Directory::new();
    let (program, path) = (directory.join("app"), directory.join("app.sock"));
    copy_server(&program);
    let mut command = Command::new(&program);
    command.args(["--listen", "127.0.0.1:0", "--listen", &format!("unix:{}", path.display())]);
    let mut servers = Generations::start(command);
    let old = servers.program.addr;
    replace(&program, &format!("exec {SERVER} --listen 127.0.0.2:0"));
    servers.signal(Signal::USR2);
    for address in [old.to_string(), format!("unix:{}", path.display())] {
        let warning = format!("the successor does not listen on {address}, which is closed now");
        servers.program.wait_for(&warning);
    }
    servers.wait_for_successor();
    wait_for_close(old);
    wait_until("the old file is gone", || !path.exists());
    servers.end();
}

/// A predecessor that is killed leaves a successor that serves the queue to the end.
#[test]
fn a_successor_of_a_killed_process_serves_the_queue() {
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--threads", "1"]);
    let mut servers = Generations::start(command);
    let predecessor = servers.serving;
    // Its predecessor waits for this connection, and is still there when the successor has taken
    // over.
    let mut slow = servers.program.connect();
    slow.send("GET /work?for=0s HTTP/1.1\r\nHo");
    servers.program.connect().get("/livez").response();
    servers.restart();
    predecessor.signal(Signal::KILL);
    servers.signal(Signal::STOP);
    let clients = queued(servers.program.addr, 500);
    servers.signal(Signal::TERM);
    servers.signal(Signal::CONT);
    assert_all_okay(clients);
    servers.serving.wait();
}

/// A socket file that something has removed is made anew by a restart.
#[test]
fn usr2_makes_a_removed_socket_file_anew() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--work", "0s", "--lame-duck", "600s"]);
    command.args(["--listen", &format!("unix:{}", path.display())]);
    let manager = service_manager(&directory);
    command.env("NOTIFY_SOCKET", directory.join("manager"));
    let mut servers = Generations::start(command);
    let predecessor = servers.serving;
    assert_eq!(hear(&manager), "READY=1\n");
    assert!(hear(&manager).starts_with("STATUS=listening on "));
    fs::remove_file(&path).unwrap();
    servers.signal(Signal::USR2);
    servers.program.wait_for(&format!(
        "the file of unix:{} was removed, so no client finds this socket; the successor binds it anew",
        path.display()
    ));
    servers.wait_for_successor();
    assert_eq!(ask_unix(&path), "okay");
    assert_eq!(servers.program.connect().get("/").response().text(), "okay");
    // It has a successor although that has not taken all of its sockets: no lame duck, and no word
    // to the manager but this one.
    predecessor.wait();
    assert_eq!(hear(&manager), format!("MAINPID={}\n", servers.serving));
    servers.signal(Signal::TERM);
    assert!(hear(&manager).starts_with("STOPPING=1\n"));
    pass_repeat_window();
    servers.signal(Signal::TERM);
    servers.serving.wait();
    assert!(!path.exists());
}

/// A file that is another's by now is left alone, whoever in the line ends.
#[test]
fn another_servers_file_is_not_handed_over() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let mut command = Command::new(SERVER);
    command.args(["--listen", &format!("unix:{}", path.display())]);
    let mut servers = Generations::start(command);
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    servers.signal(Signal::USR2);
    servers.program.wait_for(&format!(
        "another file has the name of unix:{}, so no client finds this socket",
        path.display()
    ));
    servers.wait_for_successor();
    servers.end();
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
        let mut servers = Generations::start(command);
        servers.signal(Signal::USR2);
        // Either.
        let told = servers.program.wait_for_any(&["no successor: ", " has taken over"]);
        if told.contains("taken over") {
            servers.serving = ProcessId::named(&told, "process ");
        }
        assert_eq!(servers.program.connect().get("/").response().text(), "okay", "{limit}");
        servers.end();
    }
}

/// Puts a script in the place of a program, as a deployment does.
fn replace(program: &Path, script: &str) {
    install(program, format!("#!/bin/sh\n{script}\n").as_bytes());
}

fn copy_server(program: &Path) {
    copy_file(Path::new(SERVER), program);
}

/// A stop while a successor is being started ends both.
#[test]
fn a_stop_ends_a_successor_that_is_not_ready() {
    let directory = Directory::new();
    let program = directory.join("app");
    copy_server(&program);
    let mut command = Command::new(&program);
    command.args(["--listen", "127.0.0.1:0"]);
    let mut servers = Generations::start(command);
    replace(&program, "exec sleep 60");
    servers.signal(Signal::USR2);
    let told = servers.program.wait_for("waiting for the successor, process ");
    let successor = ProcessId::named(&told, "process ");
    servers.signal(Signal::USR2);
    servers.program.wait_for("a successor is being started already");
    servers.signal(Signal::TERM);
    assert_eq!(servers.program.exit_code(), 0, "{}", servers.program);
    successor.wait();
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
    let mut servers = Generations::start(Program::example_command("restart", &["127.0.0.1:0"]));
    for _ in 0..3 {
        let mut client = servers.program.connect();
        assert_eq!(client.get("/").response().text(), format!("process {}\n", servers.serving));
        let mut other = servers.program.connect();
        let post = "POST /restart HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        // Both at once.
        let answers = [client.send(post).response(), other.send(post).response()];
        let statuses = answers.each_ref().map(|answer| answer.status);
        let told = answers.iter().find(|answer| answer.status == 200);
        let told = told.unwrap_or_else(|| panic!("{statuses:?}")).text();
        servers.serving = ProcessId::named(&told, "process ");
    }
    servers.signal(Signal::TERM);
    servers.serving.wait();
}

// The pid file.

/// The file holds the id of the process that serves as soon as the predecessor lets go, whatever
/// its directory is, and the last process removes it.
#[test]
fn the_pid_file_names_who_serves() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let by_flag: [&[&str]; 2] = [&["--pid-file", "app.pid"], &[]];
    for args in by_flag {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0"]).args(args).current_dir(directory.path());
        if args.is_empty() {
            command.env("SMOL_GRACEFUL_PID_FILE", &file);
        }
        // What a process that was killed has left.
        fs::write(&file, "1\n").unwrap();
        let mut servers = Generations::start(command);
        wait_until("the first is named", || names(&file, servers.serving));
        for _ in 0..3 {
            let predecessor = servers.serving;
            // As an operator does it.
            let kill = format!("kill -USR2 \"$(cat {})\"", file.display());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
            servers.wait_for_successor();
            assert!(names(&file, servers.serving), "{}", servers.program);
            predecessor.wait();
            assert!(names(&file, servers.serving));
        }
        servers.end();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

/// A file that names another server is taken over with a warning, and one that is no pid file is
/// left alone. A link stays.
#[test]
fn a_pid_file_that_somebody_else_uses_is_told_of() {
    let directory = Directory::new();
    let (file, link) = (directory.join("app.pid"), directory.join("link.pid"));
    let mut first = Program::server(&["--pid-file", file.to_str().unwrap()]);
    wait_until("the first is named", || names(&file, first.process()));
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let mut second = Command::new(SERVER);
    second.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(&link);
    second.stderr(Stdio::piped()).stdin(Stdio::null());
    let mut second = second.spawn().unwrap();
    let mut log = BufReader::new(second.stderr.take().unwrap()).lines();
    let warning = log.find(|line| line.as_ref().unwrap().contains("WARN")).unwrap().unwrap();
    assert!(warning.contains(&format!("names process {}, which runs", first.pid())), "{warning}");
    let pid_of_second = ProcessId::of(&second);
    wait_until("the second is named", || names(&file, pid_of_second));
    assert!(link.is_symlink());
    pid_of_second.signal(Signal::TERM);
    assert!(second.wait().unwrap().success());
    first.stop();

    fs::write(&file, "my notes\n").unwrap();
    let mut command = Command::new(SERVER);
    let output = command.args(["--pid-file"]).arg(&file).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("the file there holds something else than a process id"), "{log}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "my notes\n");
}

/// A stop while a successor is being started leaves the file with the process that drains.
#[test]
fn a_draining_process_keeps_its_pid_file() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let mut server = Program::server(&["--pid-file", file.to_str().unwrap()]);
    let own = server.process();
    wait_until("the server is named", || names(&file, own));
    let mut client = server.connect();
    client.send("GET /work?for=0s HTTP/1.1\r\nHo");
    server.connect().get("/livez").response();
    server.signal(Signal::TERM);
    server.wait_for("stopping because of SIGTERM");
    // As a successor does that has written its own id, and is told to stop.
    fs::remove_file(&file).unwrap();
    wait_until("the server is named again", || names(&file, own));
    assert_eq!(client.send("st: x\r\n\r\n").response().text(), "okay");
    assert_eq!(server.exit_code(), 0, "{server}");
    assert!(!file.exists());
}

/// A manager that hears READY finds the file.
#[test]
fn the_pid_file_is_there_before_ready() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let manager = service_manager(&directory);
    for _ in 0..20 {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0", "--pid-file"]).arg(&file);
        command.env("NOTIFY_SOCKET", directory.join("manager"));
        let mut server = Program::start(command);
        while hear(&manager) != "READY=1\n" {}
        assert!(names(&file, server.process()), "{server}");
        server.stop();
        assert!(!file.exists());
    }
}

/// A process that stays because its successor has failed is named as before, whatever the
/// successor has done to the file.
#[test]
fn a_broken_successor_leaves_the_pid_file() {
    let directory = Directory::new();
    let (program, file) = (directory.join("app"), directory.join("app.pid"));
    copy_server(&program);
    let mut command = Command::new(&program);
    command.args(["--listen", "127.0.0.1:0", "--work", "0s", "--patience", "1s", "--pid-file"]);
    command.arg(&file);
    let mut servers = Generations::start(command);
    wait_until("the first is named", || names(&file, servers.serving));
    let of_file = |script: &str| script.replace("FILE", &file.display().to_string());
    for script in [
        "exit 3",
        // The same as a successor that says READY and is killed.
        &of_file("echo $$ >FILE; exit 3"),
        &of_file("rm FILE; exit 3"),
        &of_file("echo >FILE; exit 3"),
        // It serves, so it writes the file, but does not say so; told to end, it removes the file.
        &format!("NOTIFY_SOCKET= exec {SERVER} \"$@\""),
    ] {
        replace(&program, script);
        servers.signal(Signal::USR2);
        servers.program.wait_for("no successor: ");
        assert!(names(&file, servers.serving), "{script}");
    }
    servers.end();
    assert!(!file.exists());
}

/// The same if the program itself has started the successor. While that one starts, a USR2 that
/// starts none does not touch the file, because the successor may have written it.
#[test]
fn a_broken_successor_of_a_program_of_its_own_leaves_the_pid_file() {
    const FILE: &str = "SMOL_GRACEFUL_TEST_PID_FILE";
    match (env::var_os(FILE), env::var_os("SMOL_GRACEFUL_HANDOVER")) {
        (None, _) => {}
        (Some(file), None) => return restart_under_run(Path::new(&file)),
        (Some(file), Some(_)) => {
            fs::write(file, std::process::id().to_string()).unwrap();
            return std::thread::sleep(PATIENCE);
        }
    }
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let mut command = Command::new(env::current_exe().unwrap());
    let test = "a_broken_successor_of_a_program_of_its_own_leaves_the_pid_file";
    command.args(["--exact", test, "--nocapture"]).env(FILE, &file);
    let mut server = Program::start(command);
    let own = server.process();
    wait_until("the first is named", || names(&file, own));
    let mut client = server.connect();
    client.get("/restart");
    wait_until("the successor is named", || !names(&file, own));
    let successor = fs::read_to_string(&file).unwrap();
    server.signal(Signal::USR2);
    server.wait_for("a successor is being started already");
    assert_eq!(fs::read_to_string(&file).unwrap(), successor);
    ProcessId::named(&format!("process {successor}"), "process ").signal(Signal::KILL);
    assert!(client.response().text().contains("SIGKILL"));
    assert!(names(&file, own));
    server.signal(Signal::TERM);
    assert!(server.wait().success(), "{server}");
    assert!(!file.exists());
}

/// Runs a server that restarts itself by a request.
#[expect(clippy::print_stderr, reason = "the parent reads it")]
fn restart_under_run(file: &Path) {
    env_logger::Builder::new().filter_level(log::LevelFilter::Warn).init();
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    eprintln!("listening on {}", listener.address());
    let handed = listener.clone();
    let server = Server::new(move |_request| {
        let listener = handed.clone();
        async move { Ok(format!("{:?}", restart(&[listener], PATIENCE).await)) }
    });
    assert!(Process::default().pid_file(file).run(server, [listener]).unwrap().is_drained());
}

/// A file that names another process by now is left alone.
#[test]
fn another_processs_pid_file_is_not_removed() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let mut server = Program::server(&["--pid-file", file.to_str().unwrap()]);
    wait_until("the server is named", || names(&file, server.process()));
    fs::write(&file, "1\n").unwrap();
    server.stop();
    assert_eq!(fs::read_to_string(&file).unwrap(), "1\n");
}

/// A pipe that has taken the name of the file is neither waited for nor removed.
#[test]
fn a_pipe_in_place_of_the_pid_file_holds_up_nothing() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let mut server = Program::server(&["--pid-file", file.to_str().unwrap()]);
    wait_until("the server is named", || names(&file, server.process()));
    fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    // The successor refuses what is not a file. Then the server looks at the file itself.
    server.signal(Signal::USR2);
    server.wait_for("pid_file] cannot write the pid file ");
    server.wait_for("no successor: ");
    server.stop();
    assert!(fs::symlink_metadata(&file).is_ok());
}

/// A path that cannot be written is told of in one line, before anything is served.
#[test]
fn a_pid_file_that_cannot_be_written_is_named() {
    let directory = Directory::new();
    let (plain, socket) = (directory.join("plain"), directory.join("socket"));
    fs::write(&plain, "").unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    let no_file = "it is not a regular file; give another path";
    for (path, error) in [
        (directory.join("missing/app.pid"), "no such directory; make it first"),
        (plain.join("app.pid"), "Not a directory"),
        (directory.path().to_owned(), no_file),
        (socket, no_file),
        ("/dev/null".into(), no_file),
        ("/".into(), no_file),
        (directory.join(&"x".repeat(255)), "File name too long"),
    ] {
        let mut command = Command::new(SERVER);
        // Nobody could listen there: the path comes first.
        command.args(["--listen", "192.0.2.1:1", "--pid-file"]).arg(&path);
        let output = command.output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        let path = path.display();
        assert_eq!(log, format!("smol-graceful: cannot write the pid file {path}: {error}\n"));
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

/// The file does not need the restart by a signal.
#[test]
fn a_pid_file_without_restarts() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let server = Server::new(|_request| async { Ok("okay") });
    let shutdown = server.handle();
    let process = Process::default().signals([]).restart_on(None).pid_file(&file);
    let run = std::thread::spawn(move || process.run(server, ["127.0.0.1:0"]).unwrap());
    wait_until("the process is named", || names(&file, ProcessId::own()));
    shutdown.stop();
    assert!(run.join().unwrap().is_drained());
    assert!(!file.exists());
}

/// Returns `true` if a pid file names this process.
fn names(file: &Path, pid: ProcessId) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text == format!("{pid}\n"))
}

// The service manager.

/// Rule S20: READY when it listens, STOPPING at the stop, STATUS in the drain, and time is asked
/// for as long as something moves.
#[test]
fn the_manager_is_told() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--lame-duck", "300ms", "--grace", "20s"]);
    command.env("NOTIFY_SOCKET", directory.join("manager"));
    let mut server = Program::start(command);
    assert_eq!(hear(&manager), "READY=1\n");
    assert_eq!(hear(&manager), format!("STATUS=listening on {}\n", server.addr));

    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nh");
    assert_eq!(client.stream.peek(&mut [0]).unwrap(), 1);
    let told_to_stop = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(hear(&manager), "STOPPING=1\nSTATUS=stopping\n");
    assert_eq!(
        hear(&manager),
        "STATUS=lame duck: accepting connections for another 300ms\nEXTEND_TIMEOUT_USEC=1300000\n"
    );
    let first = hear(&manager);
    // The report comes a second after the lame duck. On a busy machine it comes later, but then this
    // test has waited for as long.
    let to_go = number_behind(&first, "STATUS=draining: 1 left, ");
    let waited = told_to_stop.elapsed() - Duration::from_millis(300);
    let least = (Duration::from_secs(20).saturating_sub(waited)).as_secs_f64().round() as i32;
    assert!((least..=19).contains(&to_go), "{to_go}, not from {least} to 19: {first}");
    assert!(first.contains(" s to go; the oldest: 127.0.0.1:"), "{first}");
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

/// A successor that is told to stop is not the service, whose manager might listen to it all the
/// same (`NotifyAccess=all`).
#[test]
fn a_late_successor_does_not_tell_the_manager_that_it_stops() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--patience", "0s"]);
    command.env("NOTIFY_SOCKET", directory.join("manager"));
    let mut servers = Generations::start(command);
    assert_eq!(hear(&manager), "READY=1\n");
    assert!(hear(&manager).starts_with("STATUS=listening on "));
    servers.signal(Signal::USR2);
    servers.program.wait_for("no successor: the successor was not ready within 0ns");
    manager.set_nonblocking(true).unwrap();
    let heard = manager.recv(&mut [0; 100]);
    assert!(heard.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
    manager.set_nonblocking(false).unwrap();
    servers.signal(Signal::TERM);
    assert!(hear(&manager).starts_with("STOPPING=1\n"));
    assert_eq!(servers.program.exit_code(), 0, "{}", servers.program);
}

/// A program with `serve` says itself that it is ready, and nothing else.
#[test]
fn a_program_of_its_own_tells_the_manager() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let mut command = Program::example_command("restart", &["127.0.0.1:0"]);
    command.env("NOTIFY_SOCKET", directory.join("manager"));
    let mut server = Program::start(command);
    assert_eq!(hear(&manager), "READY=1\n");
    assert_eq!(hear(&manager), "STATUS=serving\n");
    server.stop();
    manager.set_nonblocking(true).unwrap();
    assert!(manager.recv(&mut [0]).is_err());
}

/// WATCHDOG=1 comes from the threads that run handlers: when all of them are blocked, it does not.
#[test]
fn a_blocked_executor_is_noticed() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let mut command = Program::example_command("blocking", &["127.0.0.1:0", "30", "2"]);
    command.env("NOTIFY_SOCKET", directory.join("manager")).env("WATCHDOG_USEC", "100000");
    let mut server = Program::start(command);
    assert_eq!(hear(&manager), "READY=1\n");
    assert!(hear(&manager).starts_with("STATUS=listening on "));
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
    pass_repeat_window();
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), 1, "{server}");
}

/// Rule S21: a manager that does not read holds up nothing, and one that is not there neither.
#[test]
fn a_deaf_manager_holds_up_nothing() {
    let directory = Directory::new();
    let path = directory.join("manager");
    let manager = UnixDatagram::bind(&path).unwrap();
    // Fill it.
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"x", &path).is_ok() {}
    for socket in [path, directory.join("nobody")] {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0", "--work", "0s"]).env("NOTIFY_SOCKET", &socket);
        let mut server = Program::start(command);
        assert_eq!(server.connect().get("/").response().text(), "okay");
        server.stop();
    }
    drop(manager);
}

/// The operator would find nothing in the log of a server that its manager takes for one that has
/// failed to start.
#[test]
fn a_manager_that_cannot_be_reached_is_named_once() {
    let directory = Directory::new();
    fs::write(directory.join("file"), "").unwrap();
    let name = |name| directory.join(name).into_os_string();
    for socket in [name("nobody"), name("file"), name(&"x".repeat(200)), "@nobody-listens".into()] {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0"]).env("NOTIFY_SOCKET", &socket);
        let mut server = Program::start(command);
        server.wait_for("NOTIFY_SOCKET");
        server.stop();
        let log = server.log();
        assert_eq!(log.matches("NOTIFY_SOCKET").count(), 1, "{socket:?}: {log}");
    }
}

// What the tests above are made of.

/// Returns a command for the server with `fds` from descriptor 3 on, for the process `pid`.
fn activated(pid: &str, fds: Vec<OwnedFd>, names: &str, args: &[&str]) -> Command {
    let mut command = common::activated(pid, "exec", fds, args);
    command.env("LISTEN_FDNAMES", names);
    command
}

/// Runs `during` under a load of 16 clients of all kinds, with requests of up to 50 ms.
fn under_load<T>(target: Target, during: impl FnOnce(&Tally) -> T) -> (Report, T) {
    let (report, made) = Load::new(target).run(during).unwrap();
    assert!(report.answered > 100, "{report}");
    (report, made)
}

fn held_on_stdin(held: &TcpListener, args: &[&str]) -> Program {
    let mut command = Command::new(SERVER);
    command.args(["--listen", "fd:0"]).args(args);
    Program::start_with(command, copy(held))
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
