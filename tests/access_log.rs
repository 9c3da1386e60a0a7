//! `--access-log`: the content and the place of its lines, and that no request waits for them.
//!
//! The tests use the real binary, real sockets, files and pipes. The format of a line has its tests
//! beside the code, in `src/main/access_log`.

#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use common::{
    Client, Directory, KeeperProcess, PATIENCE, Program, SERVER, in_flight, output, server_command,
    text, wait_until,
};
use rustix::process::Signal;

/// Waits until a file has `count` lines, and returns them.
fn lines(path: &Path, count: usize) -> Vec<String> {
    let read = || fs::read_to_string(path).unwrap_or_default();
    wait_until("the lines are written", || read().lines().count() >= count);
    let text = read();
    assert_eq!(text.lines().count(), count, "{text}");
    text.lines().map(str::to_owned).collect()
}

/// Returns the line without its time.
fn without_time(line: &str) -> String {
    let (before, rest) = line.split_once(" [").unwrap();
    let (time, behind) = rest.split_once("] ").unwrap();
    assert!(time.len() == "28/Nov/2026:03:27:05 +0000".len() && time.ends_with(" +0000"), "{line}");
    format!("{before} {behind}")
}

/// Every request has its line, also a request that no handler has seen.
#[test]
fn every_request_has_a_line() {
    let directory = Directory::new();
    let path = directory.join("access.log");
    let mut server = Program::server(&["--work", "0s", "--access-log", path.to_str().unwrap()]);
    let mut client = server.connect();
    assert_eq!(client.get("/?a=\"b\"").response().text(), "okay");
    let head = "POST /echo HTTP/1.1\r\nHost: x\r\nReferer: http://x/\r\nUser-Agent: a \"b\"\r\n";
    client.send(format!("{head}Content-Length: 5\r\n\r\nhello"));
    assert_eq!(client.response().text(), "hello");
    assert_eq!(client.get("/nothing").response().status, 404);
    client.send("HEAD / HTTP/1.0\r\n\r\n");
    assert_eq!(client.response_to_head().status, 200);
    for (bytes, status) in [
        ("BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        ("GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505),
        ("\x01\r\n\r\n", 400),
    ] {
        assert_eq!(server.connect().send(bytes).response().status, status);
    }
    let lines: Vec<_> = lines(&path, 7).iter().map(|line| without_time(line)).collect();
    let not_found = Client::connect(server.addr).get("/nothing").response().body.len();
    for line in [
        r#"127.0.0.1 - - "GET /?a=\x22b\x22 HTTP/1.1" 200 4 "-" "-""#.to_owned(),
        r#"127.0.0.1 - - "POST /echo HTTP/1.1" 200 5 "http://x/" "a \x22b\x22""#.to_owned(),
        format!(r#"127.0.0.1 - - "GET /nothing HTTP/1.1" 404 {not_found} "-" "-""#),
        r#"127.0.0.1 - - "HEAD / HTTP/1.0" 200 0 "-" "-""#.to_owned(),
    ] {
        assert!(lines.contains(&line), "{line} in {lines:#?}");
    }
    for part in ["\"BREW /pot HTTP/1.1\" 501 ", "\"GET /\" 505 ", " 400 "] {
        assert!(lines.iter().any(|line| line.contains(part)), "{part} in {lines:#?}");
    }
    server.stop();
}

/// The line shows endings that only the server knows: a client that has left, and a request that
/// the end of the grace has cut.
#[test]
fn json_says_how_a_request_ended() {
    let directory = Directory::new();
    let path = directory.join("access.log");
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--work", "60s", "--grace", "200ms"]);
    command.env("SMOL_GRACEFUL_ACCESS_LOG", &path).env("SMOL_GRACEFUL_ACCESS_LOG_FORMAT", "json");
    let mut server = Program::start(command);
    in_flight(server.addr, "/?left").reset();
    let _cut = in_flight(server.addr, "/?cut");
    // The lines are those of two probes, and of the client that has left.
    lines(&path, 3);
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), 1, "{server}");
    let lines = lines(&path, 4);
    for (target, status, ending) in
        [("/livez", "200", "answered"), ("/?left", "null", "reset"), ("/?cut", "null", "cut")]
    {
        let is_it = |line: &&String| {
            line.starts_with("{\"time\":\"")
                && line.contains(&format!(r#""target":"{target}","#))
                && line.contains(&format!(r#""status":{status},"#))
                && line.ends_with(&format!(r#","ending":"{ending}"}}"#))
        };
        assert!(lines.iter().any(|line| is_it(&line)), "{target} in {lines:#?}");
    }
}

/// Lines go to standard output, and the log still goes to standard error.
#[test]
fn a_dash_is_standard_output() {
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--work", "0s", "--access-log", "-"]);
    let mut server = Program::start_with_stdout(command, Stdio::piped());
    assert_eq!(server.connect().get("/").response().text(), "okay");
    server.wait_for("\"GET / HTTP/1.1\" 200 4 ");
    server.stop();
}

/// Rule S21: no request waits if nobody takes the lines, whether they go to a pipe (named, or as
/// standard output), a socket or a full disk. The server's log says at the end that lines are
/// missing.
#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    let directory = Directory::new();
    let path = directory.join("pipe");
    let pipe = fifo(&path);
    let (_unread, socket) = UnixStream::pair().unwrap();
    let cases = [
        (path.to_str().unwrap(), Stdio::null()),
        ("/dev/full", Stdio::null()),
        ("-", pipe.into()),
        ("-", OwnedFd::from(socket).into()),
    ];
    for (place, stdout) in cases {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0", "--work", "0s", "--access-log", place]);
        let mut server = Program::start_with_stdout(command, stdout);
        ask_often(server.addr, MANY);
        // A request that is under way at the stop is still answered.
        let mut client = server.connect();
        let head = "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n";
        client.send(format!("{head}Content-Length: 5\r\n\r\n"));
        assert_eq!(client.response().status, 100);
        server.signal(Signal::TERM);
        assert_eq!(client.send("hello").response().text(), "hello");
        server.wait_for(" lines of the access log were not written");
        assert_eq!(server.exit_code(), 0, "{server}");
    }
}

/// Rule S21: the log says while the server runs that nobody reads. In the end, the lines in the
/// pipe are whole, and with the missing lines they are as many as the requests.
#[test]
fn written_and_lost_lines_add_up() {
    let (_directory, mut pipe, mut server) = unread_log();
    server.wait_for(NOBODY_READS);
    // The pipe now has room for a part of the lines that wait.
    let mut read = vec![0; 8 * 1024];
    pipe.read_exact(&mut read).unwrap();
    server.stop();
    let log = server.log();
    let numbers = log.lines().filter_map(|line| line.split_once(" lines of the access log "));
    let numbers = numbers.map(|(before, _)| before.rsplit(' ').next().unwrap());
    let lost: usize = numbers.map(|number| number.parse::<usize>().unwrap()).sum();
    let mut rest = vec![0; 1024 * 1024];
    let n = pipe.read(&mut rest).unwrap();
    read.extend_from_slice(&rest[..n]);
    let read = text(&read);
    assert!(read.lines().all(|line| line.starts_with("127.0.0.1 - - [")), "{read}");
    assert!(read.ends_with("\"-\"\n"), "{read}");
    assert_eq!(read.lines().count() + lost, MANY, "{server}");
}

/// Rule S21: processes that share a pipe do not mix their lines, although both wait for room.
#[test]
fn two_servers_share_a_pipe() {
    let directory = Directory::new();
    let path = directory.join("pipe");
    let mut pipe = fifo(&path);
    let args = ["--work", "0s", "--access-log", path.to_str().unwrap()];
    let mut servers = [Program::server(&args), Program::server(&args)];
    for server in &mut servers {
        ask_often(server.addr, MANY);
        server.wait_for(NOBODY_READS);
    }
    let reader = thread::spawn(move || {
        // With such small reads, the pipe is full for most of the time.
        let (mut read, mut buffer) = (Vec::new(), [0; 64]);
        while !read.ends_with(b"the end\n") {
            let n = pipe.read(&mut buffer).unwrap();
            read.extend_from_slice(&buffer[..n]);
        }
        text(&read)
    });
    servers.iter_mut().for_each(Program::stop);
    fs::write(&path, "the end\n").unwrap();
    let read = reader.join().unwrap();
    let whole = |line: &&str| line.starts_with("127.0.0.1 - - [") && line.ends_with("\"-\"");
    let mixed: Vec<_> = read.lines().filter(|line| !whole(line)).collect();
    assert_eq!(mixed, ["the end"]);
}

/// A late reader finds whole lines, and the log says how many are missing.
#[test]
fn lost_lines_are_told_in_the_log_and_not_among_the_lines() {
    let (_directory, mut pipe, mut server) = unread_log();
    let (send, chunks) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 64 * 1024];
        while let Ok(n) = pipe.read(&mut buffer) {
            if send.send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    assert_eq!(server.connect().get("/last").response().status, 404);
    let mut read = String::new();
    while !read.lines().any(|line| line.contains("GET /last ")) || !read.ends_with('\n') {
        read += &text(&chunks.recv_timeout(PATIENCE).expect("the last line"));
    }
    assert!(
        read.lines().all(|line| line.starts_with("127.0.0.1 - - [") && line.ends_with("\"-\""))
    );
    assert!(read.lines().count() < MANY, "{}", read.lines().count());
    server.wait_for(" lines of the access log lost: ");
    server.stop();
}

/// The file is renamed as by logrotate. Every line is in one of the two files.
#[test]
fn the_server_replaces_a_renamed_file() {
    let directory = Directory::new();
    let (path, old) = (directory.join("access.log"), directory.join("access.log.1"));
    let mut server = Program::server(&["--work", "0s", "--access-log", path.to_str().unwrap()]);
    let mut client = server.connect();
    assert_eq!(client.get("/").response().text(), "okay");
    lines(&path, 1);
    fs::rename(&path, &old).unwrap();
    let mut asked = 1;
    wait_until("the new file is there", || {
        assert_eq!(client.get("/").response().text(), "okay");
        asked += 1;
        path.exists()
    });
    server.stop();
    let count = |path| fs::read_to_string(path).unwrap().lines().count();
    assert_eq!(count(&old) + count(&path), asked);
}

/// The processes of a keeper share the file.
#[test]
fn a_successor_goes_on_with_the_file() {
    let directory = Directory::new();
    let path = directory.join("access.log");
    let child = server_command(&["--access-log", path.to_str().unwrap()]);
    let mut keeper = KeeperProcess::start(&child);
    let addr = keeper.program.addr;
    let mut client = Client::connect(addr);
    assert_eq!(client.get("/?before").response().text(), "okay");
    keeper.restart();
    assert_eq!(client.get("/?behind").response().text(), "okay");
    let lines = lines(&path, 2);
    assert!(lines[0].contains("GET /?before ") && lines[1].contains("GET /?behind "), "{lines:?}");
    keeper.end();
}

#[test]
fn a_file_that_cannot_be_written_is_one_line_and_exit_1() {
    for (path, error) in [
        ("/nowhere/access.log", "/nowhere/access.log: no such directory; make it first"),
        ("/", "/: it is a directory; give the path of a file"),
        ("", ": the path is empty; give the path of a file, or - for standard output"),
    ] {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0", "--access-log", path]);
        let ended = output(&mut command);
        let log = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{log}");
        assert_eq!(log, format!("smol-graceful: cannot write the access log {error}\n"));
        command.arg("--check");
        let ended = output(&mut command);
        assert_eq!(ended.status.code(), Some(1));
        assert!(
            text(&ended.stdout).contains(&format!("WRONG cannot write the access log {error}"))
        );
    }
}

/// More lines than fit into a pipe, the waiting write and the queue together.
const MANY: usize = 8_000;

/// Sends `count` requests over one connection.
fn ask_often(addr: SocketAddr, count: usize) {
    const AT_ONCE: usize = 100;
    let mut client = Client::connect(addr);
    let requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(AT_ONCE);
    for _ in 0..count / AT_ONCE {
        client.send(&requests);
        for _ in 0..AT_ONCE {
            assert_eq!(client.response().text(), "okay");
        }
    }
}

/// The log's words when the queue of the access log is full.
const NOBODY_READS: &str = "nobody takes the lines of the access log";

/// Starts a server whose access log goes to a pipe, asks it [`MANY`] times, and reads no line.
fn unread_log() -> (Directory, File, Program) {
    let directory = Directory::new();
    let path = directory.join("pipe");
    let pipe = fifo(&path);
    let server = Program::server(&["--work", "0s", "--access-log", path.to_str().unwrap()]);
    ask_often(server.addr, MANY);
    (directory, pipe, server)
}

/// Makes a named pipe and opens both ends, so that no open waits and no write breaks.
fn fifo(path: &Path) -> File {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    File::options().read(true).write(true).open(path).unwrap()
}
