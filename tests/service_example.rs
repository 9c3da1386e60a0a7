//! The example `service`, as a user would run it: each of its routes over the wire, and a stop in
//! the middle of its work.
//!
//! The handlers alone are tested in the example itself.

mod common;
// The example has a test of its handlers without sockets.
#[path = "../examples/service.rs"]
#[allow(dead_code, reason = "the tests here run it as a program")]
mod service;

use std::fs;
use std::net::SocketAddr;

use common::{
    Client, Directory, End, Program, Received, case, small_socket, wait_for_close, wait_until,
};
use rustix::process::Signal;

/// A report of nine rows, 54 bytes.
const NINE: &str = r#"{"name": "nine", "rows": 9}"#;

/// The example, in a directory of its own.
struct ServiceExample {
    program: Program,
    admin: SocketAddr,
    directory: Directory,
}

impl ServiceExample {
    fn start() -> Self {
        let directory = Directory::new();
        let path = directory.path().display().to_string();
        let mut program = Program::example("service", &[&path, "127.0.0.1:0", "127.0.0.1:0"]);
        // The admin server listens first.
        let admin = program.addr;
        let told = program.wait_for("listening on ");
        program.addr = told.rsplit(' ').next().unwrap().parse().unwrap();
        Self { program, admin, directory }
    }

    fn connect(&self) -> Client {
        self.program.connect()
    }

    /// Asks the admin server.
    fn admin(&self, path: &str) -> Received {
        Client::connect(self.admin).get(path).response()
    }

    /// Orders a report, and waits until the report is there.
    fn write(&self, order: &str, name: &str) {
        assert_eq!(self.connect().post("/reports", order).response().status, 202);
        let path = self.directory.join(name);
        wait_until("the report is written", || path.exists());
    }

    /// Returns the names of the files in the directory.
    fn reports(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn it_answers_each_request_with_its_status() {
    let service = ServiceExample::start();
    service.write(NINE, "nine");
    // The body is longer than the limit of 64 KiB, with a length and in chunks.
    let spaces = " ".repeat(64 * 1024);
    let chunks = format!("{NINE}{spaces}");
    let chunks = format!("{:x}\r\n{chunks}\r\n0\r\n\r\n", chunks.len());
    let too_long = format!("Content-Length: {}\r\n\r\n{NINE}{spaces}", NINE.len() + spaces.len());
    let body = |body: &str| format!("Content-Length: {}\r\n\r\n{body}", body.len());
    for (request, rest, status, expected) in [
        ("POST /reports", body(NINE), 202, "location: /reports/nine"),
        ("POST /reports", body("{"), 422, r#"{"error":"EOF while parsing"#),
        ("POST /reports", body(r#"{"name": "n"}"#), 422, "missing field `rows`"),
        ("POST /reports", body(r#"{"name": "n", "rows": 70000}"#), 422, "expected u16"),
        ("POST /reports", body(r#"{"name": "../n", "rows": 1}"#), 400, r#"{"error":"not a name"}"#),
        ("POST /reports", body(r#"{"name": "", "rows": 1}"#), 400, r#"{"error":"not a name"}"#),
        ("POST /reports", too_long, 413, "connection: close"),
        ("POST /reports", format!("Transfer-Encoding: chunked\r\n\r\n{chunks}"), 413, ""),
        ("GET /reports", body(""), 405, "allow: POST"),
        ("DELETE /reports/nine", body(""), 405, "allow: GET, HEAD"),
        ("POST /events", body(""), 405, "allow: GET"),
        ("GET /", body(""), 404, r#"{"error":"no such route"}"#),
        ("GET /reports/", body(""), 404, "no such route"),
        ("GET /reports/none", body(""), 404, "No such file"),
        ("GET /reports/nine.txt", body(""), 400, r#"{"error":"not a name"}"#),
        ("GET /reports/../Cargo.toml", body(""), 400, "Bad Request"),
        ("GET /reports/%2e%2e/Cargo.toml", body(""), 400, "Bad Request"),
        ("GET /reports/..%2fCargo.toml", body(""), 400, r#"{"error":"not a name"}"#),
        ("GET /reports/..%5cCargo.toml", body(""), 400, r#"{"error":"not a name"}"#),
        ("GET /reports/nine%00", body(""), 400, r#"{"error":"not a name"}"#),
        ("GET /reports//etc/passwd", body(""), 404, "no such route"),
    ] {
        case(&format!("{request} {rest:.60}"), || {
            let mut client = service.connect();
            client.send(format!("{request} HTTP/1.1\r\nHost: test\r\n{rest}"));
            let response = client.response();
            assert_eq!(response.status, status, "{response:?}");
            let told = format!("{:?} {}", response.lines, response.text());
            assert!(told.contains(expected), "{told}");
        });
    }
    let mut program = service.program;
    program.stop();
}

/// RFC 9110 section 14: a range gets 206 with that part, or 416 if the file has no such part.
#[test]
fn it_streams_a_file_or_the_part_that_a_client_wants() {
    let service = ServiceExample::start();
    service.write(NINE, "nine");
    let whole: String = (1..=9).map(|row| format!("row {row}\n")).collect();
    let mut client = service.connect();
    let mut ask = |method: &str, range: &str| -> Received {
        let range = if range.is_empty() { "" } else { &format!("Range: {range}\r\n") };
        client.send(format!("{method} /reports/nine HTTP/1.1\r\nHost: test\r\n{range}\r\n"));
        if method == "HEAD" { client.response_to_head() } else { client.response() }
    };
    for (range, status, content_range, text) in [
        ("", 200, None, &*whole),
        ("bytes=0-5", 206, Some("bytes 0-5/54"), "row 1\n"),
        ("bytes=48-", 206, Some("bytes 48-53/54"), "row 9\n"),
        ("bytes=-6", 206, Some("bytes 48-53/54"), "row 9\n"),
        ("bytes=-1000", 206, Some("bytes 0-53/54"), &whole),
        ("bytes=53-1000", 206, Some("bytes 53-53/54"), "\n"),
        ("bytes=0-18446744073709551615", 206, Some("bytes 0-53/54"), &whole),
        ("bytes=54-", 416, Some("bytes */54"), ""),
        ("bytes=-0", 416, Some("bytes */54"), ""),
        // A server may answer these with the whole file.
        ("bytes=0-1,4-5", 200, None, &whole),
        ("bytes=5-0", 200, None, &whole),
        ("bytes=+0-5", 200, None, &whole),
        ("bytes=a-b", 200, None, &whole),
        ("rows=1-2", 200, None, &whole),
    ] {
        case(range, || {
            let response = ask("GET", range);
            assert_eq!((response.status, &*response.text()), (status, text), "{response:?}");
            assert_eq!(response.header("content-range").as_deref(), content_range);
            assert_eq!(response.header("content-length"), Some(text.len().to_string()));
        });
    }
    for range in ["", "bytes=0-5"] {
        let head = ask("HEAD", range);
        assert_eq!((head.status, head.header("content-length")), (200, Some("54".to_owned())));
        assert_eq!(head.header("accept-ranges"), Some("bytes".to_owned()));
        assert_eq!(head.header("content-type"), Some("text/plain;charset=utf-8".to_owned()));
    }
}

/// The server drops a handler that takes too long, here one that waits for the rest of a body.
#[test]
fn it_gives_up_a_request_that_takes_too_long() {
    let service = ServiceExample::start();
    let mut client = service.connect();
    client.send("POST /reports HTTP/1.1\r\nHost: test\r\nContent-Length: 27\r\n\r\n{");
    let response = client.response();
    assert_eq!(response.status, 503);
    assert_eq!(response.text(), r#"{"error":"this has taken too long"}"#);
    assert_eq!(service.connect().post("/reports", NINE).response().status, 202);
}

/// Each order that was answered with 202 is done, a file under way arrives whole, and a stream ends
/// with its last chunk.
#[test]
fn it_finishes_everything_at_a_stop() {
    let mut service = ServiceExample::start();
    service.write(r#"{"name": "large", "rows": 65535}"#, "large");
    assert_eq!(service.admin("/readyz").status, 200);
    let mut events = service.connect();
    events.get("/events");
    assert_eq!(events.line().unwrap(), "HTTP/1.1 200 OK");
    assert_eq!(events.take_to(b"data: 0 orders wait\n\n").unwrap().last(), Some(&b'\n'));
    // The responses do not fit into the kernel's buffers, and the client does not read yet.
    let mut slow = Client::from(small_socket(service.program.addr, 4096));
    slow.send("GET /reports/large HTTP/1.1\r\nHost: test\r\n\r\n".repeat(20));
    slow.fill().unwrap();
    let mut client = service.connect();
    for n in 0..50 {
        let order = format!(r#"{{"name": "report{n}", "rows": 65535}}"#);
        assert_eq!(client.post("/reports", &order).response().status, 202);
    }
    // A part of this request has arrived.
    let mut late = service.connect();
    late.send("POST /reports HTTP/1.1\r\nHost: test\r\nContent-Length: 27\r\n\r\n{");

    service.program.signal(Signal::TERM);
    wait_for_close(service.program.addr);
    // The admin server answers, because the others have not drained.
    assert_eq!(service.admin("/readyz").status, 503);
    late.send(&NINE[1..]);
    assert_eq!(late.response().status, 202);
    // The stream ends with its last chunk, after an event that was on its way.
    let (rest, end) = events.rest();
    assert!(rest.ends_with(b"0\r\n\r\n") && end == End::Eof, "{}", common::text(&rest));
    let length = fs::metadata(service.directory.join("large")).unwrap().len();
    for _ in 0..20 {
        assert_eq!(slow.response().body.len() as u64, length);
    }
    assert_eq!(slow.end(), End::Eof);
    assert_eq!(service.program.exit_code(), 0, "{}", service.program);

    let mut reports = service.reports();
    reports.sort();
    let mut expected: Vec<_> = (0..50).map(|n| format!("report{n}")).collect();
    expected.extend(["large", "nine"].map(str::to_owned));
    expected.sort();
    assert_eq!(reports, expected);
    for report in reports.iter().filter(|report| report.starts_with("report")) {
        assert_eq!(fs::metadata(service.directory.join(report)).unwrap().len(), length);
    }
}

/// Each request has a line in the log and a count in the metrics, also a request that no handler
/// sees.
#[test]
fn it_logs_and_counts_each_request() {
    let mut service = ServiceExample::start();
    service.write(NINE, "nine");
    let mut client = service.connect();
    for _ in 0..3 {
        assert_eq!(client.get("/reports/nine").response().status, 200);
    }
    assert_eq!(client.get("/reports/none").response().status, 404);
    assert_eq!(client.get("/somewhere/else").response().status, 404);
    let port = client.stream.local_addr().unwrap().port();
    assert_eq!(service.connect().send("nonsense\r\n\r\n").response().status, 400);
    for (words, ending) in [
        (format!("127.0.0.1:{port} \"GET /reports/nine\" 200 "), " answered"),
        (format!("127.0.0.1:{port} \"GET /somewhere/else\" 404 "), " answered"),
        (" 400 ".to_owned(), " refused"),
    ] {
        service.program.line_where(&words, |line| line.contains(&words) && line.ends_with(ending));
    }
    let kind = service.admin("/metrics").header("content-type");
    assert_eq!(kind.as_deref(), Some("text/plain;charset=utf-8"));
    for (route, status, count) in [
        ("/reports", "202", 1),
        ("/reports/{name}", "200", 3),
        ("/reports/{name}", "404", 1),
        ("none", "404", 1),
        ("none", "400", 1),
    ] {
        let labels = format!("{{route=\"{route}\",status=\"{status}\"}}");
        let line = format!("http_requests_total{labels} {count}\n");
        // A client may have its response a moment before the exchange is over.
        wait_until(&line, || service.admin("/metrics").text().contains(&line));
    }
    service.program.stop();
}
