//! Restarts of the real binary under a load that checks every answer: inherited sockets, the
//! keeper, an overlap, and a plain rebinding.
//!
//! The load is `smol-graceful check`. If the socket stays open, no request may be lost or refused.
//! If the socket is closed, a handshake under way in that very moment is counted apart (rule S4,
//! and its price in `docs/decisions.md`). `keeper*.rs` has everything else about the keeper.

#![cfg(target_os = "linux")]

mod common;
#[path = "../src/main/check/load.rs"]
mod load;

use std::fs;
use std::net::{Shutdown, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{
    Client, Directory, KeeperProcess, PATIENCE, Program, SERVER, ask_unix, assert_all_okay,
    clients_in_queue, is_refused, keep,
};
use load::{Load, Report, Tally, Target};
use rustix::process::Signal;
use socket2::SockRef;

// Inherited sockets.

/// The server takes TCP and Unix sockets from LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES, as systemd
/// sets them.
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

    // S5: the socket and its file stay, because this test has the socket, too. A client that comes
    // now waits for the successor.
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

/// The server takes the inherited socket on its address, and leaves the others.
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
    let said = format!("inherited {unwanted}, which no --listen and no --admin asks for");
    assert!(log.contains(&said), "{log}");
}

/// Sockets that are meant for another process are not taken.
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

/// One line names a descriptor that is not a listening socket, and the exit code is 1.
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

/// A second address that names a socket that was taken already is an error, and one line names the
/// socket.
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

/// With Supervisor's `[fcgi-program]`, the socket is descriptor 0.
#[test]
fn descriptor_0_is_inherited() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = held_on_stdin(&held, &["--work", "0s"]);
    assert_eq!(server.addr, held.local_addr().unwrap());
    assert_eq!(server.connect().get("/").response().text(), "okay");
    server.stop();
}

/// No child of the server inherits a taken socket, because a standard stream that was the socket is
/// /dev/null, and an exec closes the copy.
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
    // The socket may be all standard streams, as with inetd, or one of them, or another descriptor.
    for (redirection, listen, streams) in [
        ("", "fd:0", &[0][..]),
        ("1<&0", "fd:0", &[0, 1]),
        ("1<&0", "fd:1", &[0, 1]),
        ("1<&0 3<&0", "fd:3", &[0, 1]),
        // This launcher has not closed its own copies.
        ("5<&0 6<&0", "fd:0", &[0, 5, 6]),
        ("7<&0 </dev/null", "fd:7", &[]),
    ] {
        let command = shell(redirection, listen);
        let mut server = Program::start_with_stdin(command, copy(&socket));
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

/// Another process with the socket may shut it down for all processes. Then the queue is empty, so
/// the stop does not wait for it.
#[test]
fn a_socket_that_another_process_shuts_down_does_not_hold_up_the_stop() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut server = held_on_stdin(&held, &["--grace", "1h"]);
    SockRef::from(&held).shutdown(Shutdown::Both).unwrap();
    server.wait_for("another process has shut the socket down");
    server.stop();
}

/// S5: the server serves the queue of a passed socket, because there may be no other process for
/// it. For example, s6's binders make the socket and then become the server.
#[test]
fn the_queue_of_a_passed_socket_is_served() {
    let on_stdin = |socket: TcpListener| {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "fd:0", "--threads", "1"]);
        Program::start_with_stdin(command, OwnedFd::from(socket))
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
        // The suspended server accepts nothing and sees no signal.
        server.signal(Signal::STOP);
        let clients = clients_in_queue(addr, 500);
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

/// `--keepalive` holds for inherited sockets, too, in each form of the address. The test has the
/// same socket, so it sees the option.
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

/// Ten restarts of a server whose socket another process holds, as Supervisor and systemd do, lose
/// no request and refuse no client.
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

// Servers that bind themselves.

/// Five stops and starts on the same address lose no request that was sent, apart from handshakes
/// under way in the moment of the close.
#[test]
fn rebinding_loses_no_request() {
    let (report, restarts) = rebinding(&[]);
    assert_eq!(report.lost() - report.reset, 0, "{report}");
    assert!(report.reset <= 2 * restarts, "{report}");
}

/// With the filter, not even a handshake is lost.
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

/// With SO_REUSEPORT, the successor listens before the predecessor stops. No client is refused, and
/// with the filter no request is lost either.
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

/// Without `--reuse-port` for the second process, the address is in use.
#[test]
fn an_overlap_has_to_be_asked_for() {
    let server = Program::server(&["--reuse-port"]);
    let listen = server.addr.to_string();
    let output = Command::new(SERVER).args(["--listen", &listen]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("the address is in use"), "{log}");
}

// Under the keeper.

/// Ten restarts in a row, over TCP, lose no request and refuse no client.
#[test]
fn the_keeper_loses_nothing() {
    let mut server = Command::new(SERVER);
    server.args(["--listen", "127.0.0.1:0"]);
    for flags in [&["--listen", "127.0.0.1:0"][..], &[]] {
        let mut servers = KeeperProcess::of(keep(flags, &server));
        let (report, ()) = under_load(Target::Tcp(servers.program.addr), |tally| {
            for _ in 0..10 {
                servers.restart();
                assert!(tally.all_answered(PATIENCE));
            }
        });
        assert_eq!((report.lost(), report.refused), (0, 0), "{report}");
        servers.end();
    }
}

/// A Unix socket's file stays until the end of the keeper.
#[test]
fn the_keeper_keeps_a_socket_file() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let listen = format!("unix:{}", path.display());
    let mut server = Command::new(SERVER);
    server.args(["--listen", &listen]);
    for flags in [&["--listen", &listen][..], &[]] {
        let mut servers = KeeperProcess::of(keep(flags, &server));
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
}

// The tools of the tests above.

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
    Program::start_with_stdin(command, copy(held))
}

/// Starts the server on an address that may take a moment to be free.
fn at(listen: &str, args: &[&str]) -> Program {
    let mut command = Command::new(SERVER);
    command.args(["--listen", listen]).args(args);
    Program::start(command)
}

fn copy(socket: &impl AsFd) -> OwnedFd {
    socket.as_fd().try_clone_to_owned().unwrap()
}
