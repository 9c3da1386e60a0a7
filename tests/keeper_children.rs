//! The start of a keeper's child (descriptors, signals, orphans), and the costs of the keeper
//! itself.
//!
//! The child is a script that writes its state to a file and then becomes the real binary, which
//! reports that it is ready.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use common::handover::{
    self, Handover, SocketKind, assert_live, descriptors_of, over_tcp_and_unix,
};
use common::{
    Client, Directory, KeeperProcess, ProcessId, SERVER, ask_unix, keep, number_behind, wait_until,
};
use rustix::process::{Pid, Signal};

// Sockets.

/// LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES are right in each child, and so are the descriptors:
/// the sockets from 3 on, then the channel, and no other one.
#[test]
fn a_child_begins_with_its_sockets() {
    let directory = Directory::new();
    let seen = directory.join("seen");
    let unix = directory.join("app.sock");
    let look = "echo $$ $LISTEN_PID $LISTEN_FDS [$LISTEN_FDNAMES] $SMOL_GRACEFUL_KEEPER; \
        grep -E '^(SigBlk|SigIgn):' /proc/self/status; ls -l /proc/$$/fd";
    let listen = format!("127.0.0.1:0,unix:{}", unix.display());
    let flags = ["--listen", &listen, "--listen", "127.0.0.2:0"];
    let mut servers = KeeperProcess::of(keep(&flags, &script_that_writes(look, &seen)));
    for _ in 0..2 {
        let child = servers.serving;
        let told = fs::read_to_string(&seen).unwrap();
        let first = told.lines().next().unwrap();
        let expected = format!("{child} {child} 3 [::] 2:6:");
        assert!(first.starts_with(&expected), "{told}");
        assert_eq!(descriptors_of_kind(&told, "/dev/null")[0], "0", "{told}");
        assert_eq!(descriptors_of_kind(&told, "socket:"), ["3", "4", "5", "6"], "{told}");
        assert!(descriptors_of_kind(&told, "anon_inode:").is_empty(), "{told}");
        // PIPE is not ignored either, although every Rust program ignores it. The mask leaves out
        // two signals of the C library.
        assert_eq!(signals_in(&told, "SigBlk:"), 0, "{told}");
        assert_eq!(signals_in(&told, "SigIgn:") & 0x7fff_ffff, 0, "{told}");
        assert_eq!(ask_unix(&unix), "okay");
        servers.restart();
    }
    servers.end();
    assert!(!unix.exists());
}

/// A program that binds its sockets itself gets them back in the next child, from descriptor 3 on.
#[test]
fn a_child_gets_what_another_has_bound() {
    let directory = Directory::new();
    let (seen, unix) = (directory.join("seen"), directory.join("app.sock"));
    let mut child = script_that_writes("echo $LISTEN_FDS; ls -l /proc/$$/fd", &seen);
    child.arg("--listen").arg(format!("127.0.0.1:0,unix:{}", unix.display()));
    let mut servers = KeeperProcess::start(&child);
    let told = fs::read_to_string(&seen).unwrap();
    assert!(told.starts_with('\n'), "{told}");
    assert_eq!(descriptors_of_kind(&told, "socket:"), ["3"], "{told}");
    let address = servers.program.addr;
    for _ in 0..3 {
        servers.restart();
        let told = fs::read_to_string(&seen).unwrap();
        assert!(told.starts_with("2\n"), "{told}");
        assert_eq!(descriptors_of_kind(&told, "socket:"), ["3", "4", "5"], "{told}");
        assert_eq!(Client::connect(address).get("/").response().text(), "okay");
        assert_eq!(ask_unix(&unix), "okay");
    }
    servers.end();
    assert!(!unix.exists());
}

/// A child ignores the signals that were ignored when the keeper was started, and no others.
#[test]
fn a_child_ignores_what_the_keeper_was_started_to_ignore() {
    let directory = Directory::new();
    let seen = directory.join("seen");
    let keeper = keep(&[], &script_that_writes("grep -E '^SigIgn:' /proc/self/status", &seen));
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' WINCH; exec \"$@\"", "sh"]).arg(keeper.get_program());
    shell.args(keeper.get_args()).args(["--listen", "127.0.0.1:0"]);
    let mut servers = KeeperProcess::of(shell);
    let told = fs::read_to_string(&seen).unwrap();
    assert_eq!(
        signals_in(&told, "SigIgn:") & 0x7fff_ffff,
        1 << (Signal::WINCH.as_raw() - 1),
        "{told}"
    );
    servers.end();
}

/// The children get the sockets that the keeper was started with, in front of the keeper's own,
/// with their numbers and names. The keeper does not shut them down.
#[test]
fn inherited_sockets_keep_their_numbers_and_names() {
    let directory = Directory::new();
    let seen = directory.join("seen");
    let held =
        [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let addrs = held.each_ref().map(|socket| socket.local_addr().unwrap());
    let look = "echo $LISTEN_FDS $LISTEN_FDNAMES";
    let keeper = keep(&["--listen", "127.0.0.2:0"], &script_that_writes(look, &seen));
    let mut shell = Command::new("sh");
    shell.args(["-c", "export LISTEN_PID=$$; exec \"$@\"; exit $?", "sh"]);
    shell.arg(keeper.get_program()).args(keeper.get_args());
    shell.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "web:admin");
    let fds = held.each_ref().map(|socket| OwnedFd::from(socket.try_clone().unwrap()));
    let mappings = (3..).zip(fds).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    shell.fd_mappings(mappings.collect()).unwrap();
    let mut servers = KeeperProcess::of(shell);
    for _ in 0..3 {
        assert_eq!(fs::read_to_string(&seen).unwrap().trim_end(), "3 web:admin:");
        for addr in addrs {
            assert_eq!(Client::connect(addr).get("/").response().text(), "okay");
        }
        servers.restart();
    }
    servers.end();
    for addr in addrs {
        Client::connect(addr).assert_silent();
    }
}

/// Supervisor's `[fcgi-program]`: the socket is descriptor 0 of the keeper, and of each child.
#[test]
fn descriptor_0_goes_on_to_each_child() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    let mut child = Command::new(SERVER);
    child.args(["--listen", "fd:0", "--work", "0s"]);
    let stdin = OwnedFd::from(held.try_clone().unwrap());
    let mut servers = KeeperProcess::start_with_stdin(keep(&[], &child), stdin);
    for _ in 0..3 {
        assert_eq!(Client::connect(addr).get("/").response().text(), "okay");
        servers.restart();
    }
    servers.end();
    Client::connect(addr).assert_silent();
}

/// A program may ask for its sockets by their numbers.
#[test]
fn a_child_may_ask_for_its_sockets_by_their_numbers() {
    let mut child = Command::new(SERVER);
    child.args(["--listen", "fd:3,fd:4", "--work", "0s"]);
    let flags = ["--listen", "127.0.0.1:0,127.0.0.2:0"];
    let mut servers = KeeperProcess::of(keep(&flags, &child));
    for _ in 0..3 {
        assert_eq!(servers.program.connect().get("/").response().text(), "okay");
        servers.restart();
    }
    servers.end();
}

/// K3: a socket that a successor does not take is closed, and the file of a Unix socket is removed.
#[test]
fn what_a_successor_does_not_take_is_closed() {
    let directory = Directory::new();
    let (program, path) = (directory.join("app"), directory.join("app.sock"));
    let listen = format!("127.0.0.1:0,unix:{}", path.display());
    common::install(&program, format!("#!/bin/sh\nexec {SERVER}\n").as_bytes());
    let mut servers = KeeperProcess::of(keep(&["--listen", &listen], &Command::new(&program)));
    let (old, child) = (servers.program.addr, servers.serving);
    let script = format!("#!/bin/sh\nexec {SERVER} --listen 127.0.0.2:0\n");
    common::install(&program, script.as_bytes());
    servers.restart();
    for address in [old.to_string(), format!("unix:{}", path.display())] {
        let successor = servers.serving;
        let words = format!(
            "keeper: process {successor} does not listen on {address}, which is closed now"
        );
        servers.program.line_where(&words, |line| line.ends_with(&words));
    }
    assert_eq!(servers.exit_code(child), 0);
    common::wait_for_close(old);
    wait_until("the file is gone", || !path.exists());
    servers.end();
}

/// The file of a Unix socket stays until the end of the keeper, which removes it unless it is
/// another server's by then.
#[test]
fn another_servers_file_stays() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let listen = format!("unix:{}", path.display());
    for by_keeper in [true, false] {
        let mut child = Command::new(SERVER);
        let flags: &[&str] = if by_keeper { &["--listen", &listen] } else { &[] };
        child.args(["--listen", &listen, "--work", "0s"]);
        let mut servers = KeeperProcess::of(keep(flags, &child));
        servers.restart();
        assert_eq!(ask_unix(&path), "okay");
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        servers.restart();
        servers.end();
        assert!(path.exists(), "by the keeper: {by_keeper}");
        drop(other);
        fs::remove_file(&path).unwrap();
    }
}

/// A hundred sockets with long paths go from one child to the next.
#[test]
fn a_hundred_sockets_go_from_child_to_child() {
    let directory = Directory::new();
    // The paths are close to the kernel's limit of 107 bytes.
    let padding = "x".repeat(95_usize.saturating_sub(directory.join("").as_os_str().len()));
    let paths: Vec<_> = (0..100).map(|n| directory.join(&format!("{padding}{n:03}"))).collect();
    for by_keeper in [true, false] {
        let listen = paths.iter().map(|path| format!("unix:{}", path.display()));
        let listen = listen.collect::<Vec<_>>().join(",");
        let mut child = Command::new(SERVER);
        child.args(["--work", "0s"]);
        let flags: &[&str] = if by_keeper { &["--listen", &listen] } else { &[] };
        if !by_keeper {
            child.args(["--listen", &listen]);
        }
        let mut servers = KeeperProcess::of(keep(flags, &child));
        for _ in 0..2 {
            servers.restart();
            for path in &paths {
                assert_eq!(ask_unix(path), "okay");
            }
        }
        servers.end();
        assert!(paths.iter().all(|path| !path.exists()));
    }
}

// Signals.

/// Signals that neither stop nor restart go to the child that serves. A child is in a group of its
/// own, so a terminal's signals reach the keeper alone.
#[test]
fn other_signals_go_to_the_child_that_serves() {
    let directory = Directory::new();
    let mut child = Command::new("sh");
    let trap = |name: &str| format!("trap 'echo got {name} in $$ >&2' {name}");
    let traps = ["USR1", "WINCH", "CONT"].map(trap).join("; ");
    // The server is the shell's child, so the shell gets the signals.
    let script = format!("{traps}; \"$0\" \"$@\" & while :; do wait $! && exit; done");
    child.args(["-c", &script, SERVER, "--listen", "127.0.0.1:0"]);
    child.current_dir(directory.path());
    let mut servers = KeeperProcess::start(&child);
    for _ in 0..2 {
        for (signal, name) in
            [(Signal::USR1, "USR1"), (Signal::WINCH, "WINCH"), (Signal::CONT, "CONT")]
        {
            servers.signal(signal);
            servers.program.wait_for(&format!("got {name} in {}", servers.serving));
        }
        let group = rustix::process::getpgid(Some(servers.serving.0)).unwrap();
        assert_eq!(group, servers.serving.0);
        servers.restart();
    }
}

/// K5: TTIN and TTOU, by which other programs count their workers, suspend no server.
#[test]
fn no_signal_that_is_passed_on_suspends_a_server() {
    let mut server = Handover::server(SocketKind::Tcp, &[]);
    let mut client = server.idle();
    for signal in [Signal::TTIN, Signal::TTOU] {
        server.servers.signal(signal);
        assert_live(&mut client);
    }
    // A suspended server would not hand over.
    server.hand_over(1);
    assert_live(&mut client);
    server.end();
}

/// As process 1, the keeper reaps orphans.
#[test]
#[ignore = "needs root, for a PID namespace"]
fn orphans_are_reaped_by_process_1() {
    let directory = Directory::new();
    let orphan = directory.join("orphan");
    // The inner shell ends at once, so its child becomes an orphan, which ends when the test makes
    // a file.
    let script = format!(
        "sh -c '(until [ -e {0}.end ]; do sleep 0.01; done; echo >{0}.ended) & echo >{0}'; exec {SERVER} \"$@\"",
        orphan.display()
    );
    let mut child = Command::new("sh");
    child.args(["-c", &script, "sh", "--listen", "127.0.0.1:0"]);
    let keeper = keep(&[], &child);
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child"]).arg(keeper.get_program());
    unshare.args(keeper.get_args());
    let mut program = common::Program::start(unshare);
    program.wait_for(" is ready after ");
    let all = children_of(program.process());
    let [keeper] = all[..] else { panic!("{all:?}") };
    let status = fs::read_to_string(format!("/proc/{keeper}/status")).unwrap();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    assert!(ids.ends_with("\t1"), "{ids}");
    wait_until("the orphan is there", || orphan.exists());
    wait_until("the orphan is process 1's child", || children_of(keeper).len() == 2);
    keeper.signal(Signal::USR2);
    program.wait_for(" takes over from process ");
    fs::write(directory.join("orphan.end"), "").unwrap();
    wait_until("the orphans have ended", || directory.join("orphan.ended").exists());
    wait_until(
        "one child is left",
        || matches!(children_of(keeper)[..], [child] if child.is_running()),
    );
    assert_eq!(program.connect().get("/livez").response().text(), "live\n");
    keeper.signal(Signal::TERM);
    assert_eq!(program.exit_code(), 0, "{program}");
}

// The keeper itself.

/// No descriptor is left in the keeper after twenty restarts, some of which fail.
#[test]
fn no_descriptor_is_left_in_the_keeper() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &["--listen", "127.0.0.2:0"]);
        server.hand_over(0);
        let before = descriptors_of(server.keeper());
        for time in 0..20 {
            if time % 4 == 3 {
                server.successors_run("exit 3");
                server.servers.signal(Signal::USR2);
                server.servers.program.wait_for("keeper: no restart: ");
                server.successors_run("");
            }
            server.hand_over(0);
        }
        wait_until("every descriptor is closed", || descriptors_of(server.keeper()) <= before);
        server.end();
    });
}

/// The keeper is a small process, also after restarts, with the main thread, one that waits and
/// one that writes the log, and 2.5 MB of private memory.
#[test]
fn the_keeper_is_small() {
    let mut server = Handover::server(SocketKind::Tcp, &[]);
    for _ in 0..5 {
        server.hand_over(0);
    }
    let keeper = server.keeper();
    let rollup = fs::read_to_string(format!("/proc/{keeper}/smaps_rollup")).unwrap();
    let kilobytes = |name: &str| number_behind(&rollup.replace(' ', ""), name);
    let dirty = kilobytes("Private_Dirty:");
    assert!(dirty <= 2560, "{dirty} kB: {rollup}");
    let threads = fs::read_dir(format!("/proc/{keeper}/task")).unwrap().count();
    assert!(threads <= 3, "{threads} threads");
    server.end();
}

/// The keeper does nothing while nothing happens.
#[test]
fn the_keeper_sleeps_while_nothing_happens() {
    let mut server = Handover::server(SocketKind::Tcp, &[]);
    server.hand_over(0);
    let switches = |process: ProcessId| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        number_behind(&status, "\nvoluntary_ctxt_switches:\t")
    };
    let mut before = switches(server.keeper());
    // The end of the restart may take a while, and no event shows that it is over.
    wait_until("the keeper sleeps", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = switches(server.keeper());
        std::mem::replace(&mut before, now) == now
    });
    server.end();
}

/// A program with `serve` and `ready` takes part in restarts. Its connections go on, and it ends
/// after the hand-over.
#[test]
fn a_program_with_serve_hands_its_connections_over() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held_with(over, |command| {
            command.env(handover::SERVE, "yes");
        });
        let mut idle = server.idle();
        let mut busy = server.in_flight("/wait/restart");
        let predecessor = server.restart();
        server.release("restart");
        let response = busy.response();
        assert_eq!((response.text(), response.says_close()), (predecessor.to_string(), false));
        assert_eq!(server.exit_code(predecessor), 0);
        for client in [&mut idle, &mut busy] {
            let response = client.get("/pid").response();
            assert_eq!(response.text(), server.serving().to_string());
        }
        server.restart();
        assert_eq!(idle.get("/pid").response().text(), server.serving().to_string());
        let (keeper, last) = (server.keeper(), server.serving());
        keeper.signal(Signal::TERM);
        assert_eq!(server.exit_code(last), 0);
        assert_eq!(server.servers.program.exit_code(), 0);
    });
}

// The parts of the tests above.

/// Returns a command for a script that writes the output of these lines to a file, and becomes the
/// server.
fn script_that_writes(lines: &str, seen: &Path) -> Command {
    let script = format!("{{ {lines}; }} >{}; exec {SERVER} --work 0s \"$@\"", seen.display());
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).stdin(Stdio::null());
    command
}

/// Returns the descriptors of `ls -l` that are of this kind.
fn descriptors_of_kind<'a>(told: &'a str, kind: &str) -> Vec<&'a str> {
    let lines = told.lines().filter_map(|line| line.split_once(" -> "));
    let lines = lines.filter(|(_, what)| what.starts_with(kind));
    lines.map(|(fd, _)| fd.rsplit(' ').next().unwrap()).collect()
}

/// Returns the signals in a line of `/proc/PID/status`.
fn signals_in(told: &str, name: &str) -> u64 {
    let digits = told.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(digits.trim(), 16).unwrap()
}

/// Returns the children of a process, including zombies.
fn children_of(parent: ProcessId) -> Vec<ProcessId> {
    let numbers = fs::read_dir("/proc").unwrap();
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let of_parent = |process: &ProcessId| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        fields.split(' ').nth(1) == Some(&*parent.to_string())
    };
    numbers.filter_map(Pid::from_raw).map(ProcessId).filter(of_parent).collect()
}

/// Serves if another test has started this process for that.
#[test]
fn the_program_of_these_tests() {
    handover::serve();
}
