//! The process and its manager: the pid file, and the messages of systemd's protocol, from a server
//! alone and from a keeper.
//!
//! The manager is a datagram socket of the test. `supervision.rs` and `deploy.rs` have real ones.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    Directory, KeeperProcess, PATIENCE, ProcessId, Program, SERVER, install, keep, next_message,
    number_behind, output, pass_repeat_window, service_manager, terminate, text, wait_until,
};
use rustix::process::Signal;
use smol_graceful::{Process, Server, Shutdown};

// The pid file.

/// The server takes over a file that names another server, with a warning, and does not touch a
/// file that is not a pid file. A symbolic link stays.
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

/// The file is there before the manager gets READY.
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
        while next_message(&manager) != "READY=1\n" {}
        assert!(names(&file, server.process()), "{server}");
        server.stop();
        assert!(!file.exists());
    }
}

/// The server does not remove a file that names another process by now.
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

/// If a pipe has replaced the file, the server neither waits for it nor removes it.
#[test]
fn a_pipe_in_place_of_the_pid_file_holds_up_nothing() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let mut server = Program::server(&["--pid-file", file.to_str().unwrap()]);
    wait_until("the server is named", || names(&file, server.process()));
    fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    server.stop();
    assert!(fs::symlink_metadata(&file).is_ok());
}

/// If the path cannot be written, one line says so before anything is served.
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
        // This address cannot be bound, so the line about the path shows that the path comes first.
        command.args(["--listen", "192.0.2.1:1", "--pid-file"]).arg(&path);
        let output = command.output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        let path = path.display();
        assert_eq!(log, format!("smol-graceful: cannot write the pid file {path}: {error}\n"));
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

/// The pid file works without a keeper.
#[test]
fn a_pid_file_without_restarts() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let shutdown = Shutdown::new();
    let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
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

/// The pid file of a keeper has the keeper's id, from READY of the first child to the end, and no
/// restart changes it. An operator restarts by this id.
#[test]
fn the_pid_file_names_the_keeper() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    for by_flag in [true, false] {
        let mut child = Command::new(SERVER);
        child.args(["--listen", "127.0.0.1:0"]).current_dir(directory.path());
        let flags: &[&str] = if by_flag { &["--pid-file", "app.pid"] } else { &[] };
        let mut keeper = keep(flags, &child);
        if !by_flag {
            keeper.env("SMOL_GRACEFUL_KEEP_PID_FILE", &file);
        }
        // A keeper that was killed has left this file.
        fs::write(&file, "1\n").unwrap();
        let mut servers = KeeperProcess::of(keeper);
        let keeper = servers.keeper();
        wait_until("the keeper is named", || names(&file, keeper));
        for _ in 0..3 {
            let kill = format!("kill -USR2 \"$(cat {})\"", file.display());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
            servers.wait_for_successor();
            assert!(names(&file, keeper), "{}", servers.program);
        }
        servers.end();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

/// No second keeper gets the pid file of a running one, also before the first child is ready, and
/// by a link. The file of a keeper that was killed is free.
#[test]
fn two_keepers_do_not_share_a_pid_file() {
    let directory = Directory::new();
    let (file, link) = (directory.join("app.pid"), directory.join("link.pid"));
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let mut child = Command::new(SERVER);
    child.args(["--listen", "127.0.0.1:0"]);
    let flags = ["--pid-file", file.to_str().unwrap()];
    let mut first = KeeperProcess::of(keep(&flags, &child));
    wait_until("the keeper is named", || names(&file, first.keeper()));
    let flags_of = |path: &Path| ["--pid-file", path.to_str().unwrap()].map(str::to_owned);
    let keeper = |path: &Path| keep(&flags_of(path).each_ref().map(|flag| &**flag), &child);
    // A server without a keeper may not take the file either.
    let server = |path: &Path| {
        let mut server = Command::new(SERVER);
        server.args(["--listen", "127.0.0.1:0"]).args(flags_of(path));
        server
    };
    for mut command in [keeper(&file), keeper(&link), server(&file), server(&link)] {
        let told = output(&mut command);
        let log = text(&told.stderr);
        assert_eq!(told.status.code(), Some(1), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        let words = format!("belongs to the keeper with the process id {}", first.keeper());
        assert!(log.contains(&words), "{log}");
        assert!(names(&file, first.keeper()));
    }
    first.program.signal(Signal::KILL);
    first.program.wait();
    let mut second = KeeperProcess::of(keep(&flags, &child));
    wait_until("the keeper is named", || names(&file, second.keeper()));
    second.end();
    assert!(!file.exists());

    // This first child is never ready.
    let mut silent = Command::new("sh");
    silent.args(["-c", "echo listening on nothing >&2; exec sleep 60"]);
    let mut starting = Program::start(keep(&flags, &silent));
    let told = output(&mut keep(&flags, &child));
    assert_eq!(told.status.code(), Some(1), "{}", text(&told.stderr));
    assert!(text(&told.stderr).contains("belongs to "), "{}", text(&told.stderr));
    assert_eq!(fs::read_to_string(&file).unwrap(), "");
    starting.signal(Signal::TERM);
    starting.wait();
    assert!(!file.exists());
}

/// Of two keepers that start at once, one gets the file.
#[test]
fn one_of_two_keepers_gets_the_pid_file() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    for _ in 0..10 {
        let mut child = Command::new("sh");
        child.args(["-c", "echo listening on nothing >&2; exec sleep 60"]);
        let mut keepers = [(); 4].map(|()| {
            let mut keeper = keep(&["--pid-file", file.to_str().unwrap()], &child);
            keeper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            keeper.spawn().unwrap()
        });
        wait_until("the others have ended", || {
            let is_running = |keeper: &mut Child| keeper.try_wait().unwrap().is_none();
            keepers.iter_mut().map(is_running).filter(|is_running| *is_running).count() == 1
        });
        assert!(file.exists());
        keepers.iter_mut().for_each(terminate);
        assert!(!file.exists());
    }
}

/// If another keeper has replaced its file, a keeper does not remove the new one.
#[test]
fn another_keepers_pid_file_is_not_removed() {
    let directory = Directory::new();
    let file = directory.join("app.pid");
    let mut child = Command::new(SERVER);
    child.args(["--listen", "127.0.0.1:0"]);
    let flags = ["--pid-file", file.to_str().unwrap()];
    let mut first = KeeperProcess::of(keep(&flags, &child));
    wait_until("the keeper is named", || names(&file, first.keeper()));
    fs::remove_file(&file).unwrap();
    let mut second = KeeperProcess::of(keep(&flags, &child));
    wait_until("the second one is named", || names(&file, second.keeper()));
    first.end();
    assert!(names(&file, second.keeper()));
    second.end();
    assert!(!file.exists());
}

// The service manager.

/// Rule S20: the manager gets READY when the server listens, STOPPING at the stop, STATUS in the
/// drain, and requests for more time while something moves.
#[test]
fn the_manager_is_told() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--lame-duck", "300ms", "--grace", "20s"]);
    command.env("NOTIFY_SOCKET", directory.join("manager"));
    let mut server = Program::start(command);
    assert_eq!(next_message(&manager), "READY=1\n");
    assert_eq!(next_message(&manager), format!("STATUS=listening on {}\n", server.addr));

    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nh");
    assert_eq!(client.stream.peek(&mut [0]).unwrap(), 1);
    let told_to_stop = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(next_message(&manager), "STOPPING=1\nSTATUS=stopping\n");
    assert_eq!(
        next_message(&manager),
        "STATUS=lame duck: accepting connections for another 300ms\nEXTEND_TIMEOUT_USEC=1300000\n"
    );
    let first = next_message(&manager);
    // The report comes a second after the lame duck, and later on a busy machine, where this test
    // has waited longer, too.
    let to_go = number_behind(&first, "STATUS=draining: 1 connection, 1 request, ");
    let waited = told_to_stop.elapsed() - Duration::from_millis(300);
    let least = (Duration::from_secs(20).saturating_sub(waited)).as_secs_f64().round() as i32;
    assert!((least..=19).contains(&to_go), "{to_go}, not from {least} to 19: {first}");
    assert!(first.contains(" s to go; the oldest: 127.0.0.1:"), "{first}");
    assert!(first.ends_with("s)\nEXTEND_TIMEOUT_USEC=5000000\n"), "{first}");
    // Nothing has moved since, so the server asks for no more time.
    let second = next_message(&manager);
    assert!(
        second.starts_with("STATUS=draining: 1 connection, 1 request")
            && !second.contains("EXTEND"),
        "{second}"
    );
    client.send("e");
    let deadline = Instant::now() + PATIENCE;
    while !next_message(&manager).contains("EXTEND_TIMEOUT_USEC=5000000") {
        assert!(Instant::now() < deadline);
    }
    client.send("llo");
    assert_eq!(client.response().text(), "hello");
    assert_eq!(server.exit_code(), 0, "{server}");
}

/// A program with `serve` sends READY itself, and nothing else.
#[test]
fn a_program_of_its_own_tells_the_manager() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let mut command = Program::example_command("restart", &["127.0.0.1:0"]);
    command.env("NOTIFY_SOCKET", directory.join("manager"));
    let mut server = Program::start(command);
    assert_eq!(next_message(&manager), "READY=1\n");
    server.stop();
    manager.set_nonblocking(true).unwrap();
    assert!(manager.recv(&mut [0]).is_err());
}

/// WATCHDOG=1 comes from the threads that run handlers, so it stops when all of them are blocked.
#[test]
fn a_blocked_executor_is_noticed() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let mut command = Program::example_command("blocking", &["127.0.0.1:0", "30", "2"]);
    command.env("NOTIFY_SOCKET", directory.join("manager")).env("WATCHDOG_USEC", "100000");
    let mut server = Program::start(command);
    assert_eq!(next_message(&manager), "READY=1\n");
    assert!(next_message(&manager).starts_with("STATUS=listening on "));
    for _ in 0..3 {
        assert_eq!(next_message(&manager), "WATCHDOG=1\n");
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

/// Rule S21: a manager that does not read, or does not exist, holds up nothing.
#[test]
fn a_deaf_manager_holds_up_nothing() {
    let directory = Directory::new();
    let path = directory.join("manager");
    let _manager = deaf_manager(&path);
    for socket in [path, directory.join("nobody")] {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0", "--work", "0s"]).env("NOTIFY_SOCKET", &socket);
        let mut server = Program::start(command);
        assert_eq!(server.connect().get("/").response().text(), "okay");
        server.stop();
    }
}

/// Without this line, the operator would find no reason in the log when the manager takes the
/// server for failed.
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

// A manager above a keeper.

/// K9: the manager hears only of the keeper. The manager gets READY when the first child is ready,
/// RELOADING with a time and READY at each restart, even if that fails, and STOPPING. Each STATUS
/// is the newest child's, or the reason of a failure.
#[test]
fn the_manager_hears_of_each_restart() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let program = directory.join("app");
    let put = |script: &str| install(&program, format!("#!/bin/sh\n{script}\n").as_bytes());
    put(&format!("exec {SERVER} \"$@\""));
    let mut child = Command::new(&program);
    child.args(["--listen", "127.0.0.1:0"]).env("NOTIFY_SOCKET", directory.join("manager"));
    let mut servers = KeeperProcess::start(&child);
    let addr = servers.program.addr;
    let serving = format!("STATUS=listening on {addr}");
    let mut said = ManagerMessages::of(&manager);
    said.until(&["READY=1", &serving]);
    let mut before = 0;
    for _ in 0..3 {
        servers.restart();
        let reloading = said.until(&["RELOADING=1"]);
        let began = number_behind_line(&reloading, "MONOTONIC_USEC=");
        said.until(&["READY=1", &serving]);
        assert!(began > before, "{began} is not behind {before}");
        before = began;
    }
    put("exit 3");
    servers.signal(Signal::USR2);
    said.until(&["RELOADING=1"]);
    let over = said.until(&["READY=1", "STATUS="]);
    assert!(over.contains("exit status: 3"), "{over}");
    servers.signal(Signal::TERM);
    said.until(&["STOPPING=1"]);
    assert_eq!(servers.program.exit_code(), 0);
    assert!(!said.all.contains("MAINPID="), "{}", said.all);
}

/// K9: the keeper passes on the requests for time of a child that drains, and the watchdog of the
/// child that serves. The watchdog is silent if that child is blocked.
#[test]
fn the_manager_hears_the_children_through_the_keeper() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let mut child = Program::example_command("blocking", &["127.0.0.1:0", "30", "2"]);
    child.env("NOTIFY_SOCKET", directory.join("manager")).env("WATCHDOG_USEC", "100000");
    // WATCHDOG_PID has the keeper's id, so it must not reach a child.
    let mut shell = Command::new("sh");
    let keeper = keep(&[], &child);
    shell.args(["-c", "export WATCHDOG_PID=$$; exec \"$@\"", "sh"]).arg(keeper.get_program());
    shell.args(keeper.get_args());
    for (name, value) in keeper.get_envs() {
        shell.env(name, value.unwrap());
    }
    let mut servers = KeeperProcess::of(shell);
    let mut said = ManagerMessages::of(&manager);
    for _ in 0..2 {
        for _ in 0..3 {
            said.until(&["WATCHDOG=1"]);
        }
        let predecessor = servers.restart();
        assert_eq!(servers.exit_code(predecessor), 0);
    }
    // Both of its workers are blocked by these.
    let mut clients = [servers.program.connect(), servers.program.connect()];
    for client in &mut clients {
        client.get("/block/60000");
    }
    manager.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    wait_until("the watchdog is silent", || {
        manager.recv(&mut [0; 4096]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    });
    servers.signal(Signal::KILL);
    servers.program.wait();
    servers.serving.signal(Signal::KILL);

    let mut child = Command::new(SERVER);
    child.args(["--listen", "127.0.0.1:0"]).env("NOTIFY_SOCKET", directory.join("manager"));
    let mut servers = KeeperProcess::start(&child);
    let mut client = servers.program.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nh").fill().unwrap();
    servers.signal(Signal::TERM);
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = ManagerMessages::of(&manager);
    said.until(&["STOPPING=1"]);
    said.until(&["EXTEND_TIMEOUT_USEC=5000000", "STATUS=draining: 1 connection, 1 request"]);
    client.send(["e"; 49].concat()).rest();
    assert_eq!(servers.program.exit_code(), 0);
}

/// A manager that does not read, or that is not there, holds up neither a restart nor the stop.
#[test]
fn a_deaf_manager_does_not_hold_up_the_keeper() {
    let directory = Directory::new();
    let path = directory.join("manager");
    let _manager = deaf_manager(&path);
    for socket in [path, directory.join("nobody")] {
        let mut child = Command::new(SERVER);
        child.args(["--listen", "127.0.0.1:0"]).env("NOTIFY_SOCKET", &socket);
        let mut servers = KeeperProcess::start(&child);
        servers.restart();
        servers.restart();
        servers.end();
    }
}

/// Returns a manager's socket at `path`, which is full and is not read.
fn deaf_manager(path: &Path) -> UnixDatagram {
    let manager = UnixDatagram::bind(path).unwrap();
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"x", path).is_ok() {}
    manager
}

/// The messages that a manager gets.
struct ManagerMessages<'a> {
    manager: &'a UnixDatagram,
    all: String,
}

impl<'a> ManagerMessages<'a> {
    fn of(manager: &'a UnixDatagram) -> Self {
        Self { manager, all: String::new() }
    }

    /// Receives messages until each of these beginnings has had its line, in any order. Returns the
    /// messages since the last call.
    fn until(&mut self, begins: &[&str]) -> String {
        let mut heard = String::new();
        let is_in = |begin: &&str, heard: &str| heard.lines().any(|line| line.starts_with(begin));
        while !begins.iter().all(|begin| is_in(begin, &heard)) {
            let mut bytes = [0; 4096];
            let length = self.manager.recv(&mut bytes);
            let length = length.unwrap_or_else(|error| {
                panic!("{error}: no {begins:?} in {heard} behind {}", self.all)
            });
            heard += &text(&bytes[..length]);
        }
        self.all += &heard;
        heard
    }
}

/// Returns the number in the line that begins with `name`.
fn number_behind_line(message: &str, name: &str) -> u64 {
    let number = message.lines().find_map(|line| line.strip_prefix(name));
    number.unwrap_or_else(|| panic!("no {name} in {message}")).parse().unwrap()
}
