//! The conditions under which launchers, wrappers and operators run the process, with a keeper and
//! without: blocked and ignored signals, two signals for one stop, endless durations, too few
//! threads, files or descriptors, and a suspension.
//!
//! The tests use the real binary and real signals. Events that have to come within a certain time
//! come while the process is suspended, so that a slow machine changes nothing.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{
    Client, Directory, ProcessId, Program, SERVER, STOP_SIGNALS, case, in_flight,
    pass_repeat_window, wait_until,
};
use rustix::process::Signal;
use smol_graceful::Address;

// Signals that are blocked or ignored from the start

/// S16: some launchers block signals while they fork, and leave them blocked.
#[test]
fn blocked_signals_are_unblocked() {
    for (signal, name) in STOP_SIGNALS {
        let mut server = launched(&["env", "--block-signal"], &[]);
        server.signal(signal);
        server.wait_for(&format!("stopping because of {name}"));
        assert_eq!(server.exit_code(), 0, "{server}");
    }
}

#[test]
fn a_keeper_unblocks_signals_for_itself_and_its_children() {
    let mut keeper = launched_keeper(&["env", "--block-signal"]);
    restart(&mut keeper);
    keeper.stop();
    assert_eq!(keeper.log().matches("drained in ").count(), 2, "{keeper}");
}

/// S16: `signals()` unblocks signals in a program without `run`.
#[test]
fn blocked_signals_are_unblocked_for_programs_of_their_own_control() {
    let example = Program::example_command("embed", &["127.0.0.1:0", "127.0.0.1:0"]);
    let mut command = Command::new("env");
    command.arg("--block-signal").arg(example.get_program()).args(example.get_args());
    let mut program = Program::start(command);
    program.signal(Signal::QUIT);
    assert_eq!(program.exit_code(), 0, "{program}");
}

/// S16: under `nohup`, the end of a terminal does not end the server.
#[test]
fn nohup_is_obeyed() {
    let mut server = launched(&["nohup"], &[]);
    server.signal(Signal::HUP);
    pass_repeat_window();
    assert_eq!(server.connect().get("/").response().text(), "okay");
    server.stop();
    let log = server.log();
    let told = "SIGHUP is ignored, because the process was started so, as nohup and scripts do; \
                it does not stop the server";
    assert_eq!(log.matches("ignored").count(), 1, "{log}");
    assert!(log.contains(told), "{log}");
    assert!(log.contains("stopping because of SIGTERM"), "{log}");
}

/// A script's background job ignores INT and QUIT, because Ctrl-C is meant for the script.
#[test]
fn a_background_job_is_not_stopped_with_its_script() {
    let script = ["sh", "-c", "\"$0\" \"$@\" & wait"];
    let mut shell = launched(&script, &[]);
    // These are the lines until the server listens.
    let log = shell.to_string();
    let server = EndOnDrop(ProcessId::named(&log, "Z "));
    let told = "SIGINT and SIGQUIT are ignored, because the process was started so, as nohup and \
                scripts do; they do not stop the server";
    assert!(log.contains(told), "{log}");
    server.0.signal(Signal::INT);
    server.0.signal(Signal::QUIT);
    pass_repeat_window();
    assert_eq!(shell.connect().get("/").response().text(), "okay");
    server.0.signal(Signal::HUP);
    shell.wait_for("stopping because of SIGHUP");
    server.0.wait();
}

/// TERM and USR2 are always sent on purpose. A keeper that ignored SIGCHLD would never learn of the
/// end of its children.
#[test]
fn term_usr2_and_the_end_of_children_are_never_ignored() {
    let mut keeper = launched_keeper(&["env", "--ignore-signal"]);
    assert_eq!(keeper.connect().get("/").response().text(), "okay");
    restart(&mut keeper);
    keeper.wait_for(" has ended: exit status: 0");
    keeper.stop();
    assert_eq!(keeper.log().matches("drained in ").count(), 2, "{keeper}");
}

// Two signals for one stop (rule S14)

/// Wrappers, terminals and scripts send two different signals, one right after the other.
#[test]
fn signals_within_the_window_are_one_stop() {
    let pairs = STOP_SIGNALS.into_iter().zip(STOP_SIGNALS.into_iter().cycle().skip(1));
    for ((first, _), (second, _)) in pairs.chain([(STOP_SIGNALS[2], STOP_SIGNALS[2])]) {
        let mut server = Program::server(&[]);
        let mut client = in_flight(server.addr, "/work?for=300ms");
        // Both have come when the process goes on.
        server.signal(Signal::STOP);
        server.signal(first);
        server.signal(second);
        server.signal(Signal::CONT);
        assert_eq!(client.response().text(), "okay");
        assert_eq!(server.exit_code(), 0, "{server}");
        assert!(!server.log().contains("second signal"), "{server}");
    }
}

/// The pause may be any time shorter than the window, also under `obey`.
#[test]
fn the_window_is_a_setting() {
    let args = ["--repeat-window", "60s"];
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0"]).args(args).env("RUST_LOG", "smol_graceful=debug");
    let mut server = Program::start(command);
    let mut client = in_flight_body(&server);
    server.signal(Signal::INT);
    // The stop itself does not wait.
    server.wait_for("stopping because of SIGINT");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        pass_repeat_window();
        server.signal(signal);
        server.wait_for("after the first stop signal: the same stop");
    }
    assert_eq!(client.send("world").response().text(), "helloworld");
    assert_eq!(server.exit_code(), 0, "{server}");
}

#[test]
fn two_signals_are_one_stop_under_obey_too() {
    let mut program = Program::example("embed", &["127.0.0.1:0", "127.0.0.1:0"]);
    let mut client = program.connect();
    let head = "POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n";
    assert_eq!(client.send(format!("{head}one")).response().status, 202);
    program.signal(Signal::STOP);
    program.signal(Signal::TERM);
    program.signal(Signal::HUP);
    program.signal(Signal::CONT);
    assert_eq!(program.exit_code(), 0, "{program}");
    assert!(program.log().contains("done: \"one\""), "{program}");
}

/// The window begins with the first signal, so two signals do not end a predecessor at once that
/// drains beside its successor.
#[test]
fn two_signals_to_a_keeper_are_one_stop_for_all_its_children() {
    let mut keeper = launched_keeper(&[]);
    let mut client = in_flight_body(&keeper);
    restart(&mut keeper);
    keeper.signal(Signal::STOP);
    keeper.signal(Signal::TERM);
    keeper.signal(Signal::HUP);
    keeper.signal(Signal::CONT);
    keeper.wait_for("keeper: stopping because of ");
    pass_repeat_window();
    assert_eq!(client.send("world").response().text(), "helloworld");
    assert_eq!(keeper.exit_code(), 0, "{keeper}");
    assert!(!keeper.log().contains("second signal"), "{keeper}");
}

// Numbers

/// Each duration is valid, and the sum of two of them overflows.
#[test]
fn the_longest_durations_add_up_to_no_panic() {
    let directory = Directory::new();
    let manager = UnixDatagram::bind(directory.join("notify")).unwrap();
    manager.set_nonblocking(true).unwrap();
    let longest = "18446744073709551615s";
    let flags = ["work", "grace", "linger", "lame-duck", "keepalive", "repeat-window"];
    let alone = flags.map(|flag| vec![flag]);
    for flags in alone.into_iter().chain([flags.to_vec(), flags[..6].to_vec()]) {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0"]).env("NOTIFY_SOCKET", directory.join("notify"));
        command.args(flags.iter().flat_map(|flag| [format!("--{flag}"), longest.to_owned()]));
        let mut server = Program::start(command);
        let path = if flags.contains(&"work") { "/" } else { "/work?for=1h" };
        let client = in_flight(server.addr, path);
        server.signal(Signal::TERM);
        server.wait_for("stopping because of SIGTERM");
        pass_repeat_window();
        server.signal(Signal::INT);
        if flags.contains(&"repeat-window") {
            // A second signal cannot end this server, so the client leaves.
            client.reset();
            if flags.contains(&"lame-duck") {
                server.signal(Signal::KILL);
                server.wait();
            } else {
                assert_eq!(server.exit_code(), 0, "{flags:?}: {server}");
            }
        } else {
            assert_eq!(server.exit_code(), 1, "{flags:?}: {server}");
            assert!(server.log().contains("1 cut: "), "{flags:?}: {server}");
        }
        assert!(!server.log().contains("panicked"), "{flags:?}: {server}");
        // The test empties the manager's socket, which must not fill up.
        while manager.recv(&mut [0; 200]).is_ok() {}
    }
}

/// With any number of threads, the server either serves, or prints one line with the reason.
#[test]
#[ignore = "needs root"]
fn a_lack_of_threads_is_one_line_and_exit_1() {
    // The limit counts all processes of a user, so the test needs an unused user, who must be able
    // to read the programs.
    let user = 1_000_000 + std::process::id();
    let directory = Directory::new();
    let copy = |program: &OsStr, name: &str| {
        let path = directory.join(name);
        fs::copy(program, &path).unwrap();
        path
    };
    let binary = copy(SERVER.as_ref(), "binary");
    let example = copy(Program::example_command("blocking", &[]).get_program(), "blocking");
    // The threads are the main thread, async-io's, four workers, and the binary's for the log.
    let programs = [
        (binary, &["--listen", "127.0.0.1:0", "--threads", "4"][..], 7),
        (example, &["127.0.0.1:0", "1", "4"], 6),
    ];
    for (program, args, least) in &programs {
        for room in 1..=9 {
            case(&format!("{room} threads, {}", program.display()), || {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nproc={room}:{room}")).arg("setpriv");
                command.args([format!("--reuid={user}"), format!("--regid={user}")]);
                command.arg("--clear-groups").arg(program).args(*args);
                start_with_room(&mut command, room >= *least);
            });
        }
    }
}

/// A write beyond the limit of a file's size (`ulimit -f`) fails, but does not kill the process.
/// This holds for a log line while a request is in flight, and for the pid file.
#[test]
fn a_file_that_may_not_grow_ends_nothing() {
    let directory = Directory::new();
    let (socket, log) = (directory.join("socket"), directory.join("log"));
    let mut command = Command::new("prlimit");
    command.arg("--fsize=10:10").arg(SERVER).arg("--listen");
    command.arg(format!("unix:{}", socket.display())).stderr(File::create(&log).unwrap());
    let mut server = command.spawn().unwrap();
    wait_until("the server listens", || UnixStream::connect(&socket).is_ok());
    let mut client = Client::connect_to(&Address::Unix(socket));
    client.get("/livez").response();
    client.get("/work?for=300ms");
    ProcessId::of(&server).signal(Signal::TERM);
    assert_eq!(client.response().text(), "okay");
    assert_eq!(server.wait().unwrap().code(), Some(0));
    assert_eq!(fs::metadata(&log).unwrap().len(), 10);

    let output = Command::new("prlimit")
        .args(["--fsize=0:0", SERVER, "--listen", "127.0.0.1:0", "--pid-file"])
        .arg(directory.join("pid"))
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("cannot write the pid file"), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
}

/// async-io panics if it has no descriptors. Each limit makes a different step of the start fail.
#[test]
fn a_lack_of_descriptors_is_one_line_and_exit_1() {
    let directory = Directory::new();
    let log = directory.join("access.log").display().to_string();
    let more = ["--access-log", log.as_str(), "--admin", "127.0.0.1:0"];
    for (args, most) in [(&more[..0], 12), (&more[..], 13)] {
        // With less than 4 the loader finds no libraries.
        for room in 4..=most {
            let limit = format!("--nofile={room}:{room}");
            let mut command = Command::new("prlimit");
            command.args([&limit, SERVER, "--listen", "127.0.0.1:0"]).args(args);
            let output = command.output().unwrap();
            let log = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{room}: {log}");
            assert!(log.ends_with("Too many open files; raise `ulimit -n`\n"), "{room}: {log}");
            assert_eq!(log.lines().count(), 1, "{room}: {log}");
        }
    }
}

/// Rule S4: if a client stays in the queue, the outcome and the exit code say that it was not
/// served.
#[test]
fn a_queue_that_cannot_be_emptied_is_cut() {
    for (grace, signals) in [("500ms", 1), ("1h", 2)] {
        let mut server = Program::server(&["--grace", grace, "--linger", "0s"]);
        // From now on, the server can open no further descriptor.
        let is_free = |fd: &i32| !Path::new(&format!("/proc/{}/fd/{fd}", server.pid())).exists();
        let free = (3..).find(is_free).unwrap();
        let (pid, limit) = (server.pid().to_string(), format!("--nofile={free}:{free}"));
        let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap();
        assert!(status.success());
        let mut client = server.connect();
        client.get("/livez");
        server.wait_for("cannot accept on ");
        for _ in 0..signals {
            server.signal(Signal::TERM);
            pass_repeat_window();
        }
        assert_eq!(server.exit_code(), 1, "{grace}: {server}");
        let log = server.log();
        assert!(log.contains("clients stay in the queue of 127.0.0.1:"), "{grace}: {log}");
        assert!(log.contains(" 1 cut: "), "{grace}: {log}");
    }
}

/// The end of the line with the version.
const VERSION_END: &str = concat!("smol-graceful ", env!("CARGO_PKG_VERSION"), "\n");

fn start_with_room(command: &mut Command, is_enough: bool) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    // The version comes first, then a line if the test runs with signals ignored, and then the
    // address or an error.
    let is_before = |line: &str| line.ends_with(VERSION_END) || line.contains(" are ignored, ");
    while log.read_line(&mut line).unwrap() > 0 && is_before(&line) {
        line.clear();
    }
    if let Some((_, addr)) = line.trim().split_once("listening on ") {
        assert_eq!(Client::connect(addr.parse().unwrap()).get("/livez").response().status, 200);
        ProcessId::of(&child).signal(Signal::TERM);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    } else {
        log.read_to_string(&mut line).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{line}");
        assert!(line.contains("thread") && line.contains("ulimit -u"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(!is_enough, "{line}");
    }
}

/// Rule S21: a terminal may stop each background job that writes to it (`stty tostop`), but not the
/// server.
#[test]
fn a_terminal_does_not_stop_a_background_job_for_its_log() {
    let directory = Directory::new();
    let [socket, pid, done] = ["socket", "pid", "done"].map(|name| directory.join(name));
    let listen = format!("unix:{}", socket.display());
    let script = format!(
        "stty tostop; set -m; {SERVER} --listen {listen} & echo $! >{pid}; \
         until test -e {done}; do sleep 0.01; done",
        pid = pid.display(),
        done = done.display(),
    );
    let mut terminal = Command::new("script");
    terminal.args(["-qc", &script, "/dev/null"]).env("SHELL", "/bin/sh");
    let mut terminal =
        terminal.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the server listens", || UnixStream::connect(&socket).is_ok());
    let pid = fs::read_to_string(&pid).unwrap();
    let server = EndOnDrop(ProcessId::named(&format!("process {pid}"), "process "));
    server.0.signal(Signal::TERM);
    server.0.wait();
    fs::write(done, "").unwrap();
    terminal.wait().unwrap();
}

// A process that was suspended

/// S13: tasks that became ready while the process was suspended beyond its grace get their turn,
/// such as handlers whose timer has fired, and bodies whose rest has arrived. There are many, so
/// that one thread cannot finish them by chance before the deadline.
#[test]
fn what_was_done_during_a_suspension_is_answered() {
    let mut server = Program::server(&["--grace", "2s", "--threads", "1"]);
    let mut working: Vec<_> = (0..100).map(|_| in_flight(server.addr, "/work?for=2s")).collect();
    let mut sending: Vec<_> = (0..100).map(|_| in_flight_body(&server)).collect();
    server.signal(Signal::TERM);
    server.wait_for("stopping because of SIGTERM");
    server.signal(Signal::STOP);
    for client in &mut sending {
        client.send("world");
    }
    // While the server is suspended, only the clock moves.
    thread::sleep(Duration::from_secs(4));
    server.signal(Signal::CONT);
    for client in &mut working {
        assert_eq!(client.response().text(), "okay");
    }
    for client in &mut sending {
        assert_eq!(client.response().text(), "helloworld");
    }
    assert_eq!(server.exit_code(), 0, "{server}");
    assert!(server.log().contains("drained in "), "{server}");
}

/// The deadline ends a drain also after a suspension.
#[test]
fn a_suspension_does_not_end_the_deadline() {
    let mut server = Program::server(&["--grace", "1s"]);
    let _working = in_flight(server.addr, "/work?for=1h");
    server.signal(Signal::TERM);
    server.wait_for("stopping because of SIGTERM");
    server.signal(Signal::STOP);
    // While the server is suspended, only the clock moves.
    thread::sleep(Duration::from_secs(2));
    server.signal(Signal::CONT);
    assert_eq!(server.exit_code(), 1, "{server}");
    assert!(server.log().contains("timed out after "), "{server}");
}

// Tools

/// Starts the binary by `launcher`, which becomes the binary or stays beside it.
fn launched(launcher: &[&str], args: &[&str]) -> Program {
    let mut command = Command::new(launcher[0]);
    command.args(&launcher[1..]).arg(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--work", "0s"]).args(args);
    Program::start(command)
}

/// Starts a keeper of the binary by `launcher`, which becomes the keeper. Without words, there is
/// no launcher.
fn launched_keeper(launcher: &[&str]) -> Program {
    let keeper = [SERVER, "keep", "--", SERVER, "--listen", "127.0.0.1:0", "--work", "0s"];
    let words: Vec<_> = launcher.iter().chain(&keeper).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    Program::start(command)
}

/// Lets another process take over.
fn restart(keeper: &mut Program) {
    keeper.signal(Signal::USR2);
    keeper.wait_for(" takes over from process ");
}

/// Sends a request whose rest, `world`, is missing.
fn in_flight_body(server: &Program) -> Client {
    let mut client = server.connect();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n");
    client.send("Expect: 100-continue\r\n\r\n");
    assert_eq!(client.response().status, 100);
    client.send("hello");
    client
}

/// A process that is not a child of the test, and that the drop ends.
struct EndOnDrop(ProcessId);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if self.0.is_running() {
            self.0.signal(Signal::KILL);
        }
    }
}
