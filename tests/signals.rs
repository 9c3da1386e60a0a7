//! The real binary as a process: signals, deadlines, exit codes, its log, its command line.
//!
//! No signal goes to the test runner, because each server is a process of its own. The server's
//! bytes and log show that a request is in flight, and never the time that has passed.

#![allow(clippy::print_stdout, reason = "the seed of a failure")]

mod common;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use common::{
    Client, Directory, End, PATIENCE, ProcessId, Program, SERVER, STOP_SIGNALS, ask_unix, for_each,
    handle_ignored_signals, in_flight, is_refused, output, pass_repeat_window, text, wait_at_most,
    wait_until,
};
use rustix::process::Signal;
use socket2::SockRef;

// ── The first signal ────────────────────────────────────────────────────────────────────────────

/// Rules S16 and S19: each stop signal is handled, and an idle server ends at once.
#[test]
fn each_signal_ends_an_idle_server() {
    for_each(STOP_SIGNALS, |(signal, name)| {
        let mut server = Program::server(&[]);
        server.signal(signal);
        assert_eq!(server.exit_code(), 0, "{server}");
        let log = server.log();
        assert!(
            log.contains(&format!(
                "stopping because of {name}: nothing in flight; again to end at once"
            )),
            "{log}"
        );
        let last = log.lines().last().unwrap();
        assert!(last.contains("drained in ") && last.ends_with(&format!("by {name}")), "{log}");
    });
}

/// Rules S6 and S7: idle and silent connections end with a FIN and not with a reset, and before the
/// idle timeout.
#[test]
fn idle_and_silent_connections_do_not_keep_it() {
    let mut server = Program::server(&["--work", "0s"]);
    let mut idle = server.connect();
    assert_eq!(idle.get("/").response().text(), "okay");
    let mut silent = server.connect();
    server.signal(Signal::TERM);
    assert_eq!(idle.end(), End::Eof);
    assert_eq!(silent.end(), End::Eof);
    assert_eq!(server.exit_code(), 0, "{server}");
}

/// Rules S8, S9 and S10: half a head, half a body and half a response are finished.
#[test]
fn each_signal_lets_finish_what_is_in_flight() {
    for_each(STOP_SIGNALS, |(signal, name)| {
        let mut server = Program::server(&[]);
        let mut head = server.connect();
        head.send("GET /work?for=20ms HTTP/1.1\r\nHo");
        let mut body = server.connect();
        body.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello");
        let mut stream = server.connect();
        stream.get("/stream?every=20ms&count=1000000");
        while stream.line().unwrap() != "tick 1\n".len().to_string() {}
        // From here on, the server is in the middle of this response.

        server.signal(signal);
        server.wait_for(&format!("stopping because of {name}"));
        wait_until("the listener is closed", || is_refused(server.addr));

        let response = head.send("st: x\r\n\r\n").response();
        assert_eq!((response.status, response.text().as_str()), (200, "okay"));
        assert!(response.says_close(), "{response:?}");
        assert_eq!(head.end(), End::Eof);

        let response = body.send("world").response();
        assert_eq!((response.status, response.text().as_str()), (200, "helloworld"));
        assert_eq!(body.end(), End::Eof);

        let (rest, end) = stream.rest();
        assert_eq!(end, End::Eof);
        assert!(rest.ends_with(b"\n\r\n0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&rest));

        assert_eq!(server.exit_code(), 0, "{server}");
        let log = server.log();
        let outcome = log.lines().last().unwrap();
        let expected = format!(", 3 requests finished, stopped by {name}");
        assert!(outcome.contains("drained in ") && outcome.ends_with(&expected), "{log}");
    });
}

/// Rule S9: the server waits for a handler that has begun before the stop.
#[test]
fn a_handler_that_runs_is_waited_for() {
    let mut server = Program::server(&["--work", "2s"]);
    let mut client = in_flight(server.addr, "/");
    server.signal(Signal::TERM);
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "okay"));
    assert!(response.says_close(), "{response:?}");
    assert_eq!(client.end(), End::Eof);
    assert_eq!(server.exit_code(), 0, "{server}");
}

/// Rule S16: the signal comes as soon as the server listens.
#[test]
fn a_signal_right_after_the_start_is_not_lost() {
    for (signal, _) in STOP_SIGNALS.into_iter().cycle().take(12) {
        let mut server = Program::server(&[]);
        server.signal(signal);
        assert_eq!(server.exit_code(), 0, "{server}");
    }
}

/// Rule S16: a signal at any moment of the start ends the server, and is handled from the first
/// bind on.
#[test]
fn a_signal_during_the_start_ends_it() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..100 {
        let mut server =
            UnreadProcess::start(Command::new(SERVER).args(["--listen", "127.0.0.1:0"]));
        // This pause makes the moment random, and is not a wait for an event.
        thread::sleep(Duration::from_micros(random.u64(0..20_000)));
        server.signal(Signal::TERM);
        let (status, _, log) = server.output();
        let killed = status.signal() == Some(Signal::TERM.as_raw());
        assert!(killed || status.code() == Some(0), "{status}: {log}");
        assert!(!killed || !log.contains("listening on"), "{status}: {log}");
    }
}

// ── The deadline and the report ─────────────────────────────────────────────────────────────────

/// Rule S13: the deadline aborts the rest, and the outcome names it.
#[test]
fn the_grace_ends_the_drain_and_names_what_it_cuts() {
    let mut server = Program::server(&["--work", "60s", "--grace", "300ms"]);
    let mut client = in_flight(server.addr, "/");
    server.signal(Signal::TERM);
    let cut = client.try_response(false).expect_err("answered");
    assert!(matches!(cut, End::Eof | End::Reset));
    assert_eq!(server.exit_code(), 1, "{server}");
    let log = server.log();
    let outcome = log.lines().last().unwrap();
    let named = format!("1 cut: {} GET / (in the handler, ", local(&client));
    assert!(outcome.contains("timed out after ") && outcome.contains(&named), "{log}");
}

/// Rule S20: the log has a report after 1 s and after 2 s, and not after 3 s.
#[test]
fn the_log_says_now_and_then_what_is_left() {
    let mut server = Program::server(&["--work", "60s", "--grace", "4500ms"]);
    let client = in_flight(server.addr, "/?a=b");
    server.signal(Signal::HUP);
    server.wait_for("stopping because of SIGHUP: 1 connection, 1 request; again to end at once");
    for _ in 0..2 {
        let line = server.wait_for("draining: 1 connection, 1 request, ");
        assert!(line.contains(&format!("{} GET /?a=b (", local(&client))), "{line}");
    }
    assert_eq!(server.exit_code(), 1, "{server}");
    // On a busy machine, a drain that reaches its fifth second has a third report.
    let log = server.log();
    let reports = log.matches("draining: ").count();
    assert!(reports == 2 || (reports == 3 && log.contains("timed out after 5.")), "{log}");
}

// ── The second signal ───────────────────────────────────────────────────────────────────────────

/// Rule S14: any second signal after any first one ends the server. The grace of 60 s is longer
/// than the patience of the tests.
#[test]
fn a_second_signal_ends_it_at_once() {
    let firsts = STOP_SIGNALS;
    let seconds = STOP_SIGNALS.into_iter().cycle().skip(1);
    for_each(firsts.into_iter().zip(seconds), |((first, first_name), (second, second_name))| {
        let mut server = Program::server(&["--work", "60s", "--grace", "60s"]);
        let mut client = in_flight(server.addr, "/");
        server.signal(first);
        server.wait_for(&format!("stopping because of {first_name}"));
        pass_repeat_window();
        server.signal(second);
        assert_eq!(server.exit_code(), 1, "{server}");
        assert!(client.try_response(false).is_err());
        let log = server.log();
        assert!(log.contains(&format!("second signal, {second_name}")), "{log}");
        let outcome = log.lines().last().unwrap();
        let named = format!("by {first_name}, 1 cut: {} GET / (in the handler, ", local(&client));
        assert!(outcome.contains("forced to end ") && outcome.contains(&named), "{log}");
    });
}

/// Rule S14: the same signal may come twice.
#[test]
fn the_same_signal_twice_ends_it_at_once() {
    for_each(STOP_SIGNALS, |(signal, name)| {
        let mut server = Program::server(&["--work", "60s", "--grace", "60s"]);
        let _client = in_flight(server.addr, "/");
        server.signal(signal);
        server.wait_for(&format!("stopping because of {name}"));
        pass_repeat_window();
        server.signal(signal);
        assert_eq!(server.exit_code(), 1, "{server}");
    });
}

/// Rules S13 and S14: two signals come right after a request that may not have been accepted yet.
/// The outcome names each request that is cut, and an exit code of 0 means that none was.
#[test]
fn a_request_that_has_just_been_sent_is_not_dropped_in_silence() {
    for _ in 0..40 {
        let args = ["--work", "60s", "--grace", "60s", "--repeat-window", "0s"];
        let mut server = Program::server(&args);
        let mut client = server.connect();
        client.get("/");
        server.signal(Signal::TERM);
        server.signal(Signal::INT);
        assert!(client.try_response(false).is_err());
        assert_eq!(server.exit_code(), 1, "cut, but not told: {}", server.log());
        let log = server.log();
        assert!(log.lines().last().unwrap().contains(&local(&client).to_string()), "{log}");
    }
}

/// Rule S16: the process handles signals until it ends, so no number of signals kills it.
#[test]
fn a_storm_of_signals_neither_hangs_nor_kills() {
    for_each([(false, 0), (true, 1)], |(busy, code)| {
        let args = ["--work", "60s", "--grace", "60s", "--repeat-window", "0s"];
        let mut server = Program::server(&args);
        let _client = busy.then(|| in_flight(server.addr, "/"));
        let pid = server.process();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // The process is not reaped yet, so its id is still its own, even if it has
                    // ended.
                    STOP_SIGNALS
                        .into_iter()
                        .cycle()
                        .take(2_500)
                        .for_each(|(signal, _)| pid.signal(signal));
                });
            }
        });
        assert_eq!(server.exit_code(), code, "{server}");
    });
}

// ── Blocked workers (rule S15) ──────────────────────────────────────────────────────────────────

#[test]
fn with_every_worker_blocked_the_deadline_ends_it() {
    for_each([1, 2], |threads| {
        let mut server = BlockedServer::start(threads, 60_000, 2);
        server.program.signal(Signal::TERM);
        server.program.wait_for("stopping because of SIGTERM");
        wait_until("the listener is closed", || is_refused(server.program.addr));
        // S20: the report comes in this case, too.
        server.program.wait_for("draining: ");
        assert_eq!(server.program.exit_code(), 1, "{}", server.program);
        server.assert_named_after("timed out after ");
    });
}

#[test]
fn with_every_worker_blocked_a_second_signal_ends_it() {
    for_each([1, 2], |threads| {
        let mut server = BlockedServer::start(threads, 60_000, 60);
        server.program.signal(Signal::QUIT);
        server.program.wait_for("stopping because of SIGQUIT");
        wait_until("the listener is closed", || is_refused(server.program.addr));
        pass_repeat_window();
        server.program.signal(Signal::TERM);
        assert_eq!(server.program.exit_code(), 1, "{}", server.program);
        server.assert_named_after("forced to end after ");
    });
}

/// Requests that came while the workers were blocked are answered, too.
#[test]
fn workers_that_are_free_again_finish_the_drain() {
    for_each([1, 2], |threads| {
        let mut server = BlockedServer::start(threads, 1_000, 30);
        server.program.signal(Signal::TERM);
        for client in &mut server.clients {
            let response = client.response();
            assert_eq!((response.status, response.text().as_str()), (200, "okay\n"));
        }
        assert_eq!(server.program.exit_code(), 0, "{}", server.program);
    });
}

/// `examples/blocking` with every worker blocked.
struct BlockedServer {
    program: Program,
    /// The clients that block the workers, and then the later ones.
    clients: Vec<Client>,
    threads: usize,
}

impl BlockedServer {
    fn start(threads: usize, milliseconds: u64, grace: u64) -> Self {
        let args = ["127.0.0.1:0", &grace.to_string(), &threads.to_string()];
        let program = Program::example("blocking", &args);
        let mut clients = Vec::new();
        for _ in 0..threads {
            let mut client = program.connect();
            client.get(&format!("/block/{milliseconds}"));
            clients.push(client);
        }
        // As long as a worker is free, other clients get answers.
        wait_until("every worker is blocked", || {
            let mut other = program.connect();
            other.get("/");
            other.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let free = other.stream.peek(&mut [0]).is_ok();
            other.stream.set_read_timeout(Some(PATIENCE)).unwrap();
            if !free {
                clients.push(other);
            }
            !free
        });
        Self { program, clients, threads }
    }

    /// Asserts that the last line of the log is the outcome, and names every request that blocks.
    fn assert_named_after(&mut self, ending: &str) {
        let log = self.program.log();
        let outcome = log.lines().last().unwrap();
        assert!(outcome.contains(ending), "{log}");
        for client in &self.clients[..self.threads] {
            let named = format!("{} GET /block/60000 (in the handler, ", local(client));
            assert!(outcome.contains(&named), "{log}");
        }
    }
}

// ── A log that cannot be written (rule S21) ─────────────────────────────────────────────────────

/// The log is a pipe without a reader, or a socket as under systemd when the journal hangs. Both
/// are full from the start.
#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    let directory = Directory::new();
    let path = directory.join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    // Both ends are open, so that the pipe neither blocks the open nor breaks.
    let pipe = File::options().read(true).write(true).open(path).unwrap();
    let (_unread, socket) = UnixStream::pair().unwrap();
    for_each([pipe.into(), socket.into()], |stderr: OwnedFd| {
        fill(File::from(stderr.try_clone().unwrap()));
        let command = &mut Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0", "--work", "1ms"]).env("RUST_LOG", "trace");
        let mut server = UnreadProcess::with_stderr(command, stderr.try_clone().unwrap().into());
        let mut client = Client::connect(server.addr());
        for _ in 0..100 {
            assert_eq!(client.get("/").response().text(), "okay");
        }
        server.signal(Signal::TERM);
        assert_eq!(client.end(), End::Eof);
        assert_eq!(server.wait().code(), Some(0));
    });
}

/// S21: a program that embeds the server and logs through a `LogWriter` drains, and keeps the
/// deadline and the second signal.
#[test]
fn a_program_with_a_log_writer_is_not_held_up_either() {
    let (_unread, socket) = UnixStream::pair().unwrap();
    let stderr = OwnedFd::from(socket);
    fill(File::from(stderr.try_clone().unwrap()));
    let start = |grace| {
        let command = &mut Program::example_command("logging", &["127.0.0.1:0", grace]);
        command.env("RUST_LOG", "trace");
        let mut server = UnreadProcess::with_stderr(command, stderr.try_clone().unwrap().into());
        let addr = server.addr();
        let mut client = Client::connect(addr);
        let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n";
        for _ in 0..100 {
            assert_eq!(client.send(format!("{head}\r\nhello")).response().text(), "hello");
        }
        // The server sends `100 Continue` when the handler reads the body.
        client.send(format!("{head}Expect: 100-continue\r\n\r\n"));
        assert_eq!(client.response().status, 100);
        server.signal(Signal::TERM);
        wait_until("the listener is closed", || is_refused(addr));
        (server, client)
    };

    let (mut server, mut client) = start("60");
    assert_eq!(client.send("hello").response().text(), "hello");
    assert_eq!(server.wait().code(), Some(0), "the drain");

    let (mut server, _client) = start("1");
    assert_eq!(server.wait().code(), Some(1), "the deadline");

    let (mut server, _client) = start("60");
    pass_repeat_window();
    server.signal(Signal::INT);
    assert_eq!(server.wait().code(), Some(1), "the second signal");
}

/// Fills a pipe or socket to the last byte, and leaves it blocking.
fn fill(mut file: File) {
    let blocks = file.try_clone().unwrap();
    let blocks = SockRef::from(&blocks);
    blocks.set_nonblocking(true).unwrap();
    while file.write(&[b'x'; 4096]).is_ok() {}
    while file.write(b"x").is_ok() {}
    blocks.set_nonblocking(false).unwrap();
}

/// A server whose standard descriptors are closed writes no log to a client, although its first
/// sockets would get the numbers 0 to 2.
#[test]
fn closed_standard_descriptors_put_no_log_on_the_wire() {
    for_each(["2>&-", "<&- >&- 2>&-", "<&-", ">&- 2>&-"], |closed| {
        let command = &mut Command::new("sh");
        command.args(["-c", &format!("exec \"$0\" \"$@\" {closed}"), SERVER]);
        command.args(["--listen", "127.0.0.1:0", "--work", "1ms"]).env("RUST_LOG", "trace");
        let mut server = UnreadProcess::start(command);
        let addr = server.addr();
        // Several clients connect at the same time, so that low numbers are in use.
        let mut clients: Vec<_> = (0..4).map(|_| Client::connect(addr)).collect();
        for _ in 0..10 {
            for client in &mut clients {
                client.get("/");
            }
            for client in &mut clients {
                let response = client.response();
                assert_eq!((response.status, response.text().as_str()), (200, "okay"));
            }
        }
        server.signal(Signal::TERM);
        for client in &mut clients {
            // No byte comes before the end.
            assert_eq!(client.end(), End::Eof);
        }
        assert_eq!(server.wait().code(), Some(0), "{closed}");
    });
}

// ── The command line ────────────────────────────────────────────────────────────────────────────

#[test]
fn an_address_that_cannot_be_had_is_one_line_and_exit_1() {
    let directory = Directory::new();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = directory.join("live.sock");
    let _unix = UnixListener::bind(&path).unwrap();
    let missing = directory.join("missing/app.sock");
    for address in [
        tcp.local_addr().unwrap().to_string(),
        format!("unix:{}", path.display()),
        format!("unix:{}", missing.display()),
        "192.0.2.1:0".to_owned(),
    ] {
        let (status, _, log) = run(&["--listen", &address], &[]);
        assert_eq!(status.code(), Some(1), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains(&address) && log.contains("cannot listen on"), "{log}");
        assert!(!log.contains("panicked") && !log.contains("os error"), "{log}");
    }
    assert!(path.exists(), "the socket file of another server was removed");
}

#[test]
fn bad_usage_is_exit_2() {
    let flags: [&[&str]; 8] = [
        &["--grace", "nonsense"],
        &["--work", "-1s"],
        &["--linger", "1"],
        &["--lame-duck", ""],
        &["--threads", "0"],
        &["--listen", "nowhere"],
        &["--frobnicate"],
        &["argument"],
    ];
    for args in flags {
        let (status, stdout, stderr) = run(args, &[]);
        assert_eq!(status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stdout.is_empty() && stderr.contains("--help"), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
    let (_, _, stderr) = run(&["--frobnicate"], &[]);
    assert!(stderr.contains("Usage: smol-graceful"), "{stderr}");
    let (_, _, stderr) = run(&["kep", "--", "true"], &[]);
    assert!(stderr.contains("the commands are `keep`, `check` and `generate`"), "{stderr}");
}

#[test]
fn help_and_version_are_exit_0() {
    let (status, help, stderr) = run(&["--help"], &[]);
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    for flag in ["listen", "work", "grace", "linger", "lame-duck", "repeat-window", "threads"] {
        let variable = format!("SMOL_GRACEFUL_{}", flag.replace('-', "_").to_uppercase());
        assert!(help.contains(&format!("--{flag} ")) && help.contains(&variable), "{help}");
    }
    let (status, version, _) = run(&["--version"], &[]);
    assert_eq!(status.code(), Some(0));
    assert_eq!(version, concat!("smol-graceful ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// A setting without an effect is an error, because the operator expects an effect.
#[test]
fn a_setting_in_vain_is_named_in_one_line() {
    let format = "SMOL_GRACEFUL_ACCESS_LOG_FORMAT";
    let json = [(format, "json")];
    let log = "without --access-log WHERE: give that, or leave --access-log-format out; \
               `smol-graceful --help` tells more";
    let told = format!("--access-log-format has no effect {log}");
    let from_variable =
        format!("--access-log-format (from the variable {format}) has no effect {log}");
    let mode = "--unix-mode has no effect without an address such as --listen \
                unix:/run/app.sock: give that, or leave --unix-mode out; `smol-graceful --help` \
                tells more";
    for (args, variables, line) in [
        (&["--access-log-format", "combined"][..], &[][..], &*told),
        (&["--access-log-format", "json", "--check"], &[], &told),
        (&[], &json, &from_variable),
        (&["--check"], &json, &from_variable),
        (&["--unix-mode", "0660", "--listen", ":0", "--listen", "unix:@sg-in-vain"], &[], mode),
    ] {
        let (status, stdout, stderr) = run(args, variables);
        assert_eq!((status.code(), &*stdout), (Some(2), ""), "{args:?}: {stderr}");
        assert_eq!(stderr, format!("smol-graceful: {line}\n"), "{args:?}");
    }
    let (status, _, stderr) = run(&["generate", "bash", "keep"], &[]);
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("COMMAND has no effect without `man` in front of it: "), "{stderr}");
    // Both settings are accepted with the setting that they need.
    let directory = Directory::new();
    let socket = format!("unix:{}", directory.join("socket").display());
    for args in [
        ["--access-log", "-", "--access-log-format", "json"],
        ["--unix-mode", "0660", "--admin", &socket],
    ] {
        let args = [&args[..], &["--check", "--listen", "127.0.0.1:0"]].concat();
        let (status, _, stderr) = run(&args, &[]);
        assert_eq!(status.code(), Some(0), "{args:?}: {stderr}");
    }
}

#[test]
fn every_flag_has_its_variable() {
    for name in [
        "LISTEN",
        "UNIX_MODE",
        "WORK",
        "GRACE",
        "LINGER",
        "LAME_DUCK",
        "REPEAT_WINDOW",
        "REUSE_PORT",
        "SYN_FILTER",
        "KEEPALIVE",
        "THREADS",
        "STREAM_GRACE",
        "ACCESS_LOG_FORMAT",
        "ADMIN",
    ] {
        let name = format!("SMOL_GRACEFUL_{name}");
        let (status, _, stderr) = run(&[], &[(&name, "nonsense")]);
        assert_eq!(status.code(), Some(2), "{name}: {stderr}");
        assert!(stderr.contains(&format!("The value comes from the variable {name}.")), "{stderr}");
    }
    // A flag without a value has a variable with a value.
    for (value, code, words) in
        [("off", 0, ""), ("Yes", 0, ""), ("maybe", 2, "write true or false")]
    {
        let args = ["--check", "--listen", "127.0.0.1:0"];
        let (status, _, stderr) = run(&args, &[("SMOL_GRACEFUL_SYN_FILTER", value)]);
        assert_eq!(status.code(), Some(code), "{value}: {stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }
    // The argument is wrong, so the variable is not to blame.
    let (_, _, stderr) = run(&["--grace", "soon"], &[("SMOL_GRACEFUL_GRACE", "1s")]);
    assert!(!stderr.contains("variable"), "{stderr}");
    // A keeper's variable is wrong, with any arguments of its program, and a value is not UTF-8.
    let mut command = Command::new(SERVER);
    command.args(["keep", "--", "true", "--patience", "1s"]);
    command.env("SMOL_GRACEFUL_KEEP_PATIENCE", "5");
    let (status, _, stderr) = UnreadProcess::start(&mut command).output();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("(from the variable SMOL_GRACEFUL_KEEP_PATIENCE)"), "{stderr}");
    let mut command = Command::new(SERVER);
    command.env("SMOL_GRACEFUL_GRACE", OsStr::from_bytes(b"\xff"));
    let (status, _, stderr) = UnreadProcess::start(&mut command).output();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("The value comes from the variable SMOL_GRACEFUL_GRACE."), "{stderr}");
    // A misspelt variable gets a warning.
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0"]).env("SMOL_GRACEFUL_THREDS", "2");
    let mut server = Program::start(command);
    server.stop();
    let warning = "the variable SMOL_GRACEFUL_THREDS means nothing";
    assert!(server.log().contains(warning), "{server}");
    let mut command = Command::new(SERVER);
    command
        .env("SMOL_GRACEFUL_LISTEN", "127.0.0.1:0")
        .env("SMOL_GRACEFUL_WORK", "60s")
        .env("SMOL_GRACEFUL_GRACE", "100ms");
    let mut server = Program::start(command);
    let _client = in_flight(server.addr, "/");
    server.signal(Signal::INT);
    assert_eq!(server.exit_code(), 1, "{server}");
    assert!(server.log().contains("timed out after "), "{server}");
}

/// A number without a unit is a common mistake.
#[test]
fn a_wrong_duration_costs_a_line_with_a_right_one() {
    for args in [
        &["--grace", "30"][..],
        &["--work", "soon"],
        &["keep", "--patience", "30", "true"],
        &["check", "--duration", "5", "127.0.0.1:1"],
    ] {
        let (status, _, stderr) = run(args, &[]);
        assert_eq!(status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("such as 300ms, 2s or 1m30s"), "{stderr}");
    }
}

/// `--check` finds mistakes, disturbs no running server, and leaves nothing behind.
#[test]
fn a_check_tries_everything_and_leaves_nothing() {
    let directory = Directory::new();
    let (pid_file, socket) = (directory.join("app.pid"), directory.join("app.sock"));
    let unix = format!("unix:{}", socket.display());
    let pid_flag = ["--pid-file", pid_file.to_str().unwrap()];
    let args = [&["--check", "--listen", "127.0.0.1:0", "--listen", &unix][..], &pid_flag].concat();
    let (status, said, stderr) = run(&args, &[("SMOL_GRACEFUL_GRACE", "1m")]);
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{said}");
    for line in [
        concat!("smol-graceful ", env!("CARGO_PKG_VERSION"), "\n"),
        "okay  listens on 127.0.0.1:",
        &format!("okay  listens on {unix}\n"),
        &format!("okay  writes the pid file {}\n", pid_file.display()),
        "at a stop: lame duck 0s, grace 1m, linger 100ms\n",
        "\nit would start\n",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert_eq!(directory.path().read_dir().unwrap().count(), 0, "{said}");

    // A running server keeps its address, its socket's file and its pid file.
    let args = [&["--work", "0s", "--listen", &unix][..], &pid_flag].concat();
    let mut server = Program::server(&args);
    wait_until("the pid file is there", || pid_file.exists());
    let addr = server.addr.to_string();
    let args = [&["--check", "--listen", &addr, "--listen", &unix][..], &pid_flag].concat();
    let (status, said, _) = run(&args, &[]);
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(said.matches("WRONG cannot listen on ").count(), 2, "{said}");
    assert!(said.ends_with("\nit would not start\n"), "{said}");
    assert_eq!(ask_unix(&socket), "okay");
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), format!("{}\n", server.pid()));
    server.stop();

    let missing = directory.join("missing/app.pid");
    let (status, said, _) = run(&["--check", "--pid-file", missing.to_str().unwrap()], &[]);
    assert!(status.code() == Some(1) && said.contains("WRONG cannot write the pid file"), "{said}");
}

#[test]
fn a_keeper_checks_too() {
    let args = ["keep", "--check", "--listen", "127.0.0.1:0", "--restart-on", "HUP", "--", "sh"];
    let (status, said, _) = run(&args, &[]);
    assert_eq!(status.code(), Some(0), "{said}");
    for line in ["okay  listens on 127.0.0.1:0 for the program\n", "/sh\n", "restarts at HUP\n"] {
        assert!(said.contains(line), "{line} in {said}");
    }
    let (status, said, _) = run(&["keep", "--check", "--", "no-such-program"], &[]);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("WRONG cannot start no-such-program: "), "{said}");
}

#[test]
fn man_pages_and_completions_are_printed() {
    for (args, parts) in [
        (&["man"][..], [".TH smol-graceful 1", "SMOL_GRACEFUL_LAME_DUCK"]),
        (&["man", "keep"], [".TH smol-graceful-keep 1", "SMOL_GRACEFUL_KEEP_READY"]),
        (&["man", "check"], [".TH smol-graceful-check 1", "seamless"]),
        (&["bash"], ["complete -F _smol__graceful", "--restart-on"]),
        (&["zsh"], ["#compdef smol-graceful", "--seamless"]),
        (&["fish"], ["complete -c smol-graceful", "lame-duck"]),
    ] {
        let (status, said, stderr) = run(&[&["generate"], args].concat(), &[]);
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(parts.iter().all(|part| said.contains(part)), "{args:?}: {said}");
    }
    assert_eq!(run(&["generate"], &[]).0.code(), Some(2));
    assert_eq!(run(&["generate", "csh"], &[]).0.code(), Some(2));
}

/// Lines are in colour on a terminal, unless the operator has asked for plain text, and never in a
/// file or a pipe.
#[test]
fn lines_are_in_colour_on_a_terminal() {
    for_each(
        [("true", "xterm", "", true), ("true", "xterm", "1", false), ("true", "dumb", "", false)],
        |(end, term, no_color, is_coloured)| {
            let mut command = Command::new("script");
            // The keeper's only process ends at once, so that the log is short.
            command.args(["-qec", &format!("{SERVER} keep -- {end}"), "/dev/null"]);
            command.env("TERM", term).env("NO_COLOR", no_color);
            let said = text(&output(&mut command).stdout);
            assert!(said.contains("keeper: "), "{said}");
            assert_eq!(said.contains("\x1b["), is_coloured, "{said}");
        },
    );
    let (_, _, log) = run(&["keep", "--", "true"], &[("TERM", "xterm")]);
    assert!(log.contains("keeper: ") && !log.contains('\x1b'), "{log}");
}

#[test]
fn the_first_line_has_the_version() {
    let mut server = Program::server(&[]);
    server.stop();
    let log = server.log();
    let version = concat!("] smol-graceful ", env!("CARGO_PKG_VERSION"));
    assert!(log.lines().next().unwrap().ends_with(version), "{log}");
}

/// Long work of `GET /` is logged, and short work is not.
#[test]
fn long_work_is_told_of() {
    let mut server = Program::server(&["--work", "1s"]);
    let mut client = server.connect();
    let named = format!("GET / from {}: ", local(&client));
    assert_eq!(client.get("/").response().text(), "okay");
    server.stop();
    let log = server.log();
    let lines: Vec<_> = log.lines().filter_map(|line| line.split_once(&named)).collect();
    let lines: Vec<_> = lines.into_iter().map(|(_, words)| words).collect();
    assert!(
        matches!(lines[..], ["works for 1s", end] if end.starts_with("has worked for ")),
        "{log}"
    );

    let mut server = Program::server(&["--work", "60s", "--grace", "0s"]);
    let _client = in_flight(server.addr, "/");
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), 1, "{server}");
    assert!(server.log().contains(": was dropped after "), "{server}");

    let mut server = Program::server(&["--work", "1ms"]);
    assert_eq!(server.connect().get("/").response().text(), "okay");
    server.stop();
    assert!(!server.log().contains("GET / from "), "{server}");
}

/// A flag counts more than its variable.
#[test]
fn a_flag_goes_before_its_variable() {
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--work", "0s"]).env("SMOL_GRACEFUL_WORK", "60s");
    let server = Program::start(command);
    assert_eq!(server.connect().get("/").response().text(), "okay");
}

#[test]
fn a_unix_socket_is_served_and_its_file_removed() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let listen = format!("unix:{}", path.display());
    let start = || {
        let mut command = Command::new(SERVER);
        command.args(["--listen", &listen, "--work", "0s"]);
        Program::start(command)
    };
    // The server is killed, so its file stays, and its successor replaces the file.
    drop(start());
    assert!(path.exists());
    let mut server = start();
    assert_eq!(ask_unix(&path), "okay");
    server.stop();
    assert!(!path.exists(), "the socket file is still there");
}

#[test]
fn several_addresses_are_served_and_closed() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let unix = format!("unix:{}", path.display());
    let mut server =
        Program::server(&["--work", "0s", "--listen", "127.0.0.1:0", "--listen", &unix]);
    let line = server.wait_for("listening on 127.0.0.1:");
    let second: SocketAddr = line.rsplit(' ').next().unwrap().parse().unwrap();
    server.wait_for(&format!("listening on {unix}"));
    assert_eq!(server.connect().get("/livez").response().status, 200);
    assert_eq!(Client::connect(second).get("/livez").response().status, 200);
    assert_eq!(ask_unix(&path), "okay");

    let mut client = in_flight(second, "/work?for=1s");
    server.signal(Signal::TERM);
    wait_until("every listener is closed", || {
        is_refused(server.addr) && is_refused(second) && !path.exists()
    });
    assert_eq!(client.response().status, 200);
    assert_eq!(server.exit_code(), 0, "{server}");
}

// ── The bundled application ─────────────────────────────────────────────────────────────────────

#[test]
fn every_route_answers() {
    let server = Program::server(&["--work", "0s"]);
    let mut client = server.connect();
    for (path, status, body) in [
        ("/", 200, "okay"),
        ("/work?for=1ms", 200, "okay"),
        ("/livez", 200, "live\n"),
        ("/readyz", 200, "ready\n"),
        ("/stream?every=20ms&count=3", 200, "tick 1\ntick 2\ntick 3\n"),
    ] {
        let response = client.get(path).response();
        assert_eq!((response.status, response.text().as_str()), (status, body), "{path}");
    }
    let response = client.get("/nothing").response();
    let begin = "Not Found; try:\nGET /\nGET /work?for=300ms\n";
    assert!(response.status == 404 && response.text().starts_with(begin), "{response:?}");
    for path in ["/work?for=x", "/work", "/stream?every=x", "/stream?count=x"] {
        assert_eq!(client.get(path).response().status, 400, "{path}");
    }

    let response = client.send("DELETE / HTTP/1.1\r\nHost: x\r\n\r\n").response();
    assert_eq!(response.status, 405);
    assert!(response.header("allow").unwrap().contains("GET"), "{response:?}");
    let response = client.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").response_to_head();
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-length").unwrap(), "4");
    let response = client.send("OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n").response();
    assert_eq!(response.status / 100, 2);
    assert!(response.header("allow").unwrap().contains("GET"), "{response:?}");

    // W8: this is HAProxy's default check.
    let mut check = server.connect();
    assert_eq!(check.send("OPTIONS / HTTP/1.0\r\n\r\n").response().status / 100, 2);
    assert_eq!(check.end(), End::Eof);
}

#[test]
fn a_mebibyte_comes_back() {
    let server = Program::server(&[]);
    let mut client = server.connect();
    let body: Vec<u8> = (0..1024 * 1024).map(|i: u32| i.to_le_bytes()[i as usize % 3]).collect();
    let mut stream = client.stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let head = format!("Host: x\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(format!("POST /echo HTTP/1.1\r\n{head}").as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
        });
        let response = client.response();
        assert_eq!(response.status, 200);
        assert!(response.body == body, "{} bytes came back", response.body.len());
    });
}

/// Rule S3: in the lame duck, a server is not ready, but is alive and serves new connections.
#[test]
fn a_lame_duck_still_serves() {
    let mut server =
        Program::server(&["--work", "0s", "--lame-duck", "60s", "--repeat-window", "0s"]);
    let ask = |path: &str| Client::connect(server.addr).get(path).response();
    assert_eq!(ask("/readyz").status, 200);
    server.signal(Signal::TERM);
    wait_until("it is no longer ready", || ask("/readyz").status == 503);
    assert_eq!(ask("/livez").status, 200);
    let response = ask("/");
    assert_eq!((response.status, response.text().as_str()), (200, "okay"));
    assert!(response.says_close(), "{response:?}");
    assert_eq!(ask("/readyz").status, 503);
    // The second signal ends the server, which has nothing to cut.
    server.stop();
}

// ── Tools ───────────────────────────────────────────────────────────────────────────────────────

fn local(client: &Client) -> SocketAddr {
    client.stream.local_addr().unwrap()
}

/// Runs the binary until it ends by itself.
fn run(args: &[&str], variables: &[(&str, &str)]) -> (ExitStatus, String, String) {
    let command = &mut Command::new(SERVER);
    UnreadProcess::start(command.args(args).envs(variables.iter().copied())).output()
}

/// A process whose log the test reads only after its end.
struct UnreadProcess(Child);

impl UnreadProcess {
    fn start(command: &mut Command) -> Self {
        Self::with_stderr(command, Stdio::piped())
    }

    fn with_stderr(command: &mut Command, stderr: Stdio) -> Self {
        handle_ignored_signals();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        ProcessId::of(&self.0).signal(signal);
    }

    /// Returns the address of the server from the kernel, because the log cannot be read yet.
    fn addr(&mut self) -> SocketAddr {
        let mut addr = None;
        wait_until("it listens", || {
            assert!(self.0.try_wait().unwrap().is_none(), "it has ended");
            addr = listens_on(self.0.id());
            addr.is_some()
        });
        addr.unwrap()
    }

    fn wait(&mut self) -> ExitStatus {
        wait_at_most(&mut self.0, PATIENCE).expect("the program did not end")
    }

    /// Waits for the end, and only then reads standard output and standard error.
    fn output(&mut self) -> (ExitStatus, String, String) {
        let status = self.wait();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (status, stdout, stderr)
    }
}

impl Drop for UnreadProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the port on 127.0.0.1 on which a process listens (Linux), by its open sockets and the
/// kernel's table.
fn listens_on(pid: u32) -> Option<SocketAddr> {
    let open: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| {
            let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [_, local, _, "0A", _, _, _, _, _, inode, ..] = columns[..] else { return None };
        let port = u16::from_str_radix(local.strip_prefix("0100007F:")?, 16).ok()?;
        open.iter().any(|of| of == inode).then(|| ([127, 0, 0, 1], port).into())
    })
}
