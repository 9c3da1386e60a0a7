//! Tests that the load finds every kind of fault, and no fault in a right server.
//!
//! The servers here answer rightly and at once, until a test tells them to fail one request.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use smol::block_on;

use super::load::*;

/// The action of a server at a request.
enum Act {
    /// Sends the right answer.
    Serve,
    /// Reads the request, sends the bytes and closes.
    Close(Vec<u8>),
    /// Sends the bytes and closes with a reset, because the request stays unread.
    Reset(Vec<u8>),
    /// Reads the request, sends the bytes and goes on.
    Send(Vec<u8>),
    /// Sends the right answer, and closes although the answer has not said so.
    Leave,
    /// Reads the request, and waits until the client is gone.
    Wait,
}

/// The facts about a request before the server reads it.
struct Moment {
    /// The number of the request on its connection, from 0.
    number: usize,
    is_echo: bool,
}

/// Returns a load with a patience of 30 s.
fn load(target: Target) -> Load {
    let requests = Requests::of_bundled("localhost", Duration::ZERO);
    Load { clients: 6, requests, ..Load::new(target) }
}

/// Serves on a port of the kernel's choice. `act` decides the action at each request.
fn server(act: impl Fn(&Moment) -> Act + Clone + Send + 'static) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, act) = (stream.unwrap(), act.clone());
            thread::spawn(move || connection(stream, act));
        }
    });
    Target::Tcp(addr)
}

/// Serves a connection until it ends.
fn connection(mut stream: TcpStream, act: impl Fn(&Moment) -> Act) {
    for number in 0.. {
        let mut start = [0; 4];
        if !matches!(stream.peek(&mut start), Ok(1..)) {
            return;
        }
        let moment = Moment { number, is_echo: start.starts_with(b"POST") };
        let (bytes, goes_on) = match act(&moment) {
            Act::Serve => {
                let (body, close) = read_request(&mut stream);
                (right(&body, close, number), !close)
            }
            Act::Close(bytes) => {
                read_request(&mut stream);
                (bytes, false)
            }
            Act::Reset(bytes) => (bytes, false),
            Act::Send(bytes) => {
                read_request(&mut stream);
                (bytes, true)
            }
            Act::Leave => {
                let (body, _) = read_request(&mut stream);
                (right(&body, false, number), false)
            }
            Act::Wait => {
                read_request(&mut stream);
                let _ = stream.read(&mut [0]);
                return;
            }
        };
        if stream.write_all(&bytes).is_err() || !goes_on {
            return;
        }
    }
}

/// Reads a request. Returns its body, and `true` if its client asks for a close.
fn read_request(stream: &mut impl Read) -> (Vec<u8>, bool) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(byte(stream));
    }
    let head = String::from_utf8(head).unwrap();
    let mut body = if let Some((_, length)) = head.split_once("Content-Length: ") {
        vec![0; length.trim_end().parse().unwrap()]
    } else if head.contains("chunked") {
        let mut body = Vec::new();
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.push(byte(stream));
            }
            let line = String::from_utf8(line).unwrap();
            let mut chunk = vec![0; usize::from_str_radix(line.trim_end(), 16).unwrap() + 2];
            stream.read_exact(&mut chunk).unwrap();
            if chunk.len() == 2 {
                return (body, false);
            }
            body.extend(&chunk[..chunk.len() - 2]);
        }
    } else {
        return (b"okay".into(), head.contains("Connection: close"));
    };
    stream.read_exact(&mut body).unwrap();
    (body, false)
}

fn byte(stream: &mut impl Read) -> u8 {
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    byte[0]
}

/// Returns a right answer. The framings take turns by `number`.
fn right(body: &[u8], close: bool, number: usize) -> Vec<u8> {
    let close = if close { "Connection: close\r\n" } else { "" };
    if number % 2 == 0 {
        return answer(&format!("200 OK\r\n{close}Content-Length: {}", body.len()), body);
    }
    let mut bytes = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
    bytes.extend(answer(&format!("200 OK\r\n{close}Transfer-Encoding: chunked"), b""));
    for chunk in body.chunks(1000) {
        bytes.extend(format!("{:x};a=b\r\n", chunk.len()).as_bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\nTrailer: x\r\n\r\n");
    bytes
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [b"HTTP/1.1 ", head.as_bytes(), b"\r\n\r\n", body].concat()
}

/// Runs a load on a server that fails one request for which `is_it` returns `true`, and returns the
/// report.
fn fail_one(is_it: fn(&Moment) -> bool, with: fn() -> Act) -> Report {
    let is_armed = Arc::new(AtomicBool::new(false));
    let armed = is_armed.clone();
    let target =
        server(
            move |moment| {
                if is_it(moment) && armed.swap(false, Relaxed) { with() } else { Act::Serve }
            },
        );
    let (report, ()) = load(target)
        .run(|tally| {
            is_armed.store(true, Relaxed);
            until(|| tally.lost() > 0);
            assert!(tally.all_answered(Duration::from_secs(30)), "all go on");
        })
        .unwrap();
    assert_eq!(report.lost(), 1, "{report}");
    assert_eq!(report.failures.len(), 1, "{report}");
    assert_eq!(report.refused, 0, "{report}");
    report
}

fn until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain");
        thread::sleep(AGAIN);
    }
}

fn is_fresh(moment: &Moment) -> bool {
    moment.number == 0
}

fn is_used(moment: &Moment) -> bool {
    moment.number > 0
}

fn is_echo(moment: &Moment) -> bool {
    moment.is_echo
}

#[test]
fn a_reset_is_found() {
    assert_eq!(fail_one(|m| !m.is_echo && is_fresh(m), || Act::Reset(Vec::new())).reset, 1);
}

#[test]
fn a_close_without_an_answer_is_found() {
    assert_eq!(fail_one(is_used, || Act::Close(Vec::new())).crossed, 1);
    assert_eq!(fail_one(is_used, || Act::Reset(Vec::new())).crossed, 1);
}

#[test]
fn a_cut_answer_is_found() {
    let acts: [fn() -> Act; 5] = [
        || Act::Close(b"H".into()),
        || Act::Close(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n".into()),
        || Act::Close(answer("200 OK\r\nContent-Length: 4", b"oka")),
        || Act::Close(answer("200 OK\r\nTransfer-Encoding: chunked", b"4\r\nokay\r\n0\r\n")),
        || Act::Reset(answer("200 OK", b"okay")),
    ];
    for act in acts {
        assert_eq!(fail_one(is_used, act).cut, 1);
    }
}

#[test]
fn a_wrong_answer_is_found() {
    let acts: [fn() -> Act; 7] = [
        || Act::Close(answer("503 Busy\r\nContent-Length: 4", b"okay")),
        || Act::Close(answer("204 No Content", b"")),
        || Act::Close(answer("200 OK\r\nContent-Length: 4", b"okey")),
        || Act::Close(answer("200 OK", b"oka")),
        || Act::Close(answer("200 OK\r\nTransfer-Encoding: chunked", b"3\r\nokay\r\n0\r\n\r\n")),
        || Act::Close(b"220 mail.example ESMTP\r\n".into()),
        || Act::Close(answer("200 OK\r\nConnection: close\r\nContent-Length: 4", b"okayokay")),
    ];
    for act in acts {
        assert_eq!(fail_one(|moment| !is_echo(moment), act).wrong, 1);
    }
}

#[test]
fn a_wrong_echo_is_found() {
    let report = fail_one(is_echo, || Act::Send(answer("200 OK\r\nContent-Length: 3", b"abc")));
    assert_eq!(report.wrong, 1);
    assert_eq!(report.failures[0].shape, Shape::Post);
}

#[test]
fn an_unclean_end_is_found() {
    let close = "200 OK\r\nConnection: close\r\nContent-Length: 4";
    assert!(answer(close, b"okay").ends_with(b"\r\n\r\nokay"));
    let act = || Act::Reset(answer("200 OK\r\nConnection: x, Close\r\nContent-Length: 4", b"okay"));
    let report = fail_one(|moment| !is_echo(moment), act);
    assert_eq!(report.wrong, 1, "{report}");
    assert!(report.failures[0].what.starts_with("after the last answer: "), "{report}");
}

/// The bytes may be an answer to another request, or a second one.
#[test]
fn bytes_behind_an_answer_are_found() {
    let act = || Act::Send(answer("200 OK\r\nContent-Length: 4", b"okayH"));
    // The request has to be on a used connection, because a client that takes a new one for each
    // request has gone by then.
    assert_eq!(fail_one(|moment| !is_echo(moment) && is_used(moment), act).wrong, 1);
}

#[test]
fn silence_is_found() {
    let is_armed = Arc::new(AtomicBool::new(false));
    let armed = is_armed.clone();
    let target = server(move |_| if armed.swap(false, Relaxed) { Act::Wait } else { Act::Serve });
    let load = Load { patience: Duration::from_secs(2), ..load(target) };
    let (report, ()) = load
        .run(|tally| {
            is_armed.store(true, Relaxed);
            until(|| tally.lost() > 0);
        })
        .unwrap();
    assert_eq!((report.stalled, report.lost()), (1, 1), "{report}");
}

/// A close that the client sees before it sends its next request loses nothing.
#[test]
fn an_idle_close_is_no_loss() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let Ok((mut wire, _)) = block_on(Wire::connect(&target)) else { panic!("not connected") };
    let (accepted, _) = listener.accept().unwrap();
    assert!(matches!(block_on(wire.look()), Ok(true)));
    drop(accepted);
    until(|| matches!(block_on(wire.look()), Ok(false)));
}

/// Idle clients have the time to see that the server has closed their connection. Blind clients do
/// not look, so each close loses a request.
#[test]
fn a_close_without_a_word_is_a_loss_only_to_the_blind() {
    for is_blind in [false, true] {
        let load = Load { clients: 0, idle: 8, is_blind, ..load(server(|_| Act::Leave)) };
        let (report, ()) = load.run(|_| ()).unwrap();
        assert!(report.untold >= 8, "{report}");
        assert_eq!(report.lost(), report.crossed, "{report}");
        if is_blind {
            // The last close of a client may come after its last request.
            assert!((8..=report.untold).contains(&report.crossed), "{report}");
        } else {
            // By chance, a client may send before the close has arrived.
            assert!(report.crossed < 4, "{report}");
        }
    }
}

/// Each idle client asks once more at the end, so it finds that no process reads its connection.
#[test]
fn a_connection_that_nobody_reads_is_found() {
    let target = server(|moment| if moment.number == 0 { Act::Serve } else { Act::Wait });
    let load = Load { clients: 0, idle: 8, patience: Duration::from_secs(2), ..load(target) };
    let (report, ()) = load.run(|_| ()).unwrap();
    assert!(report.stalled >= 8, "{report}");
    assert_eq!(report.lost(), report.stalled, "{report}");
}

/// The test has all framings, and all three kinds of clients.
#[test]
fn right_answers_are_right() {
    let close = |moment: &Moment| match moment.number {
        _ if moment.is_echo => Act::Serve,
        // An answer without a length is the last one.
        10 => Act::Close(answer("200 OK", b"okay")),
        _ => Act::Serve,
    };
    let load = Load { clients: 16, ..load(server(close)) };
    let (report, ()) = load
        .run(|tally| until(|| tally.answered.load(Relaxed) > 2000 && tally.told.load(Relaxed) > 5))
        .unwrap();
    assert_eq!((report.lost(), report.refused, report.untold), (0, 0, 0), "{report}");
    assert!(report.asked > 0, "{report}");
}

#[test]
fn refused_connects_are_no_loss() {
    let path = std::env::temp_dir().join(format!("check-{}.sock", std::process::id()));
    let away = path.with_extension("away");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                // Each answer is the last one of its connection.
                let (body, _) = read_request(&mut stream);
                let _ = stream.write_all(&right(&body, true, 0));
            });
        }
    });
    let (report, ()) = load(Target::Unix(path.clone()))
        .run(|tally| {
            std::fs::rename(&path, &away).unwrap();
            until(|| tally.refused.load(Relaxed) == 6);
            std::fs::rename(&away, &path).unwrap();
            assert!(tally.all_answered(Duration::from_secs(30)));
        })
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!((report.lost(), report.refused), (0, 6), "{report}");
    assert!(report.attempts >= 6, "{report}");
    assert_eq!(report.asked + report.told, report.answered, "{report}");
    assert!(report.asked > 0 && report.told > 0, "{report}");
}

/// If no server answers, the load fails instead of waiting for ever.
#[test]
fn a_load_that_does_not_come_on_is_an_error() {
    let target = Target::Unix("/dev/null/no-directory".into());
    let load = Load { patience: Duration::from_millis(100), ..load(target) };
    let error = load.run(|_| unreachable!()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(error.to_string().contains("has not answered 6 of 6 clients"), "{error}");
    assert!(error.to_string().contains("; such as: Not a directory"), "{error}");
}
