//! `--admin`: readiness, metrics and connections of the public server, on another port.
//!
//! The tests use the real binary. The counts are compared with those of `smol-graceful check`, and
//! one test reads the metrics with Prometheus' own parser.

#![cfg(target_os = "linux")]

mod common;

use std::net::SocketAddr;
use std::process::Command;

use common::{
    Client, Program, Received, SERVER, in_flight, installed, is_refused, output, run_ok, text,
    wait_until,
};
use rustix::process::Signal;

/// A server with an admin port.
struct AdminServer {
    program: Program,
    public: SocketAddr,
    admin: SocketAddr,
}

impl AdminServer {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(SERVER);
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).args(args);
        Self::of(command)
    }

    fn of(command: Command) -> Self {
        let mut program = Program::start(command);
        let admin = program.addr;
        let line = program.wait_for("listening on ");
        let public = line.rsplit(' ').next().unwrap().parse().unwrap();
        Self { program, public, admin }
    }

    /// Asks the admin server, over a new connection.
    fn ask(&self, path: &str) -> Received {
        Client::connect(self.admin).get(path).response()
    }

    /// Returns the sum of all series with this name and these labels.
    fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let metrics = self.ask("/metrics").text();
        let series = metrics.lines().filter(|line| {
            let named = line.split(['{', ' ']).next() == Some(name);
            named && labels.iter().all(|label| line.contains(label))
        });
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

/// Rule S24: idle connections of operators take no descriptors that the public server needs.
#[test]
fn operators_leave_room_for_clients() {
    let mut command = Command::new("sh");
    let listen = "--listen 127.0.0.1:0 --admin 127.0.0.1:0";
    command.args(["-c", &format!("ulimit -n 100; exec \"$0\" {listen}")]).arg(SERVER);
    let mut server = AdminServer::of(command);
    let mut all = Vec::new();
    for (addr, count) in [(server.admin, 48), (server.public, 49)] {
        for _ in 0..count {
            let mut client = Client::connect(addr);
            assert_eq!(client.get("/livez").response().status, 200);
            all.push(client);
        }
    }
    assert_eq!(server.ask("/readyz").status, 200);
    server.program.stop();
    let log = server.program.log();
    assert!(!log.contains("cannot accept"), "{log}");
}

/// The admin server answers until the public one has drained, and is not counted itself.
#[test]
fn operators_can_ask_until_the_end_of_the_drain() {
    let mut server = AdminServer::start(&["--work", "60s", "--grace", "60s"]);
    let log = server.program.line_where("operators", |line| line.contains("for operators: "));
    assert!(log.contains(&server.admin.to_string()), "{log}");
    assert_eq!(server.ask("/readyz").status, 200);
    let slow = in_flight(server.public, "/work?for=1h");
    let mut body = Client::connect(server.public);
    body.send(
        "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    );
    assert_eq!(body.response().status, 100);
    server.program.signal(Signal::TERM);
    wait_until("the public server is closed", || is_refused(server.public));

    let ready = server.ask("/readyz");
    assert_eq!((ready.status, ready.text().as_str()), (503, "stopping\n"));
    assert_eq!(server.ask("/livez").status, 200);
    let table = server.ask("/connections").text();
    assert!(table.starts_with("2 connections, 2 requests\n"), "{table}");
    let row = |part: &str| table.lines().find(|line| line.contains(part)).map(str::to_owned);
    let peer = body.stream.local_addr().unwrap().to_string();
    assert!(row("GET /work?for=1h").is_some_and(|line| line.contains("in the handler")), "{table}");
    assert!(row(&peer).is_some_and(|line| line.contains("POST /echo")), "{table}");
    let json = server.ask("/connections?format=json");
    assert_eq!(json.header("content-type").unwrap(), "application/json");
    let json = json.text();
    let part =
        format!(r#"{{"peer":"{peer}","stage":"body","method":"POST","target":"/echo","age":"#);
    assert!(json.contains(&part) && json.ends_with("\"guards\":[]}\n"), "{json}");
    assert_eq!(server.metric("smol_graceful_requests_in_flight", &[]), 2);
    assert_eq!(server.metric("smol_graceful_connections", &["\"body\""]), 1);

    assert_eq!(body.send("hello").response().text(), "hello");
    // S22: the client has left, so the drain does not wait for the request.
    slow.reset();
    assert_eq!(server.program.exit_code(), 0, "{}", server.program);
    assert!(is_refused(server.admin));
}

/// The requests of an operator are not counted.
#[test]
fn requests_are_counted_by_what_became_of_them() {
    let server = AdminServer::start(&["--work", "60s"]);
    let mut client = Client::connect(server.public);
    assert_eq!(client.get("/nothing").response().status, 404);
    let length = client.get("/livez").response().body.len();
    assert_eq!(client.send("BREW / HTTP/1.1\r\nHost: x\r\n\r\n").response().status, 501);
    for method in ["get", "X-1", "X-2", "X-3"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(Client::connect(server.public).send(request).response().status, 501);
    }
    in_flight(server.public, "/").reset();
    let reset = ["ending=\"reset\""];
    wait_until("the reset is seen", || server.metric("smol_graceful_requests_total", &reset) == 1);
    for (labels, count) in [
        (&["method=\"GET\"", "status=\"404\"", "ending=\"answered\""][..], 1),
        (&["method=\"GET\"", "status=\"200\"", "ending=\"answered\""], 2),
        (&["method=\"other\"", "status=\"501\"", "ending=\"refused\""], 5),
        (&["method=\"GET\"", "status=\"0\"", "ending=\"reset\""], 1),
        (&[], 9),
    ] {
        assert_eq!(server.metric("smol_graceful_requests_total", labels), count, "{labels:?}");
    }
    assert_eq!(server.metric("smol_graceful_request_duration_seconds_count", &[]), 9);
    let sent = server.metric("smol_graceful_sent_bytes_total", &[]);
    assert!(sent > length as u64, "{sent}");
    let request = "GET /nothing HTTP/1.1\r\nHost: test\r\n\r\n".len() as u64;
    let received = server.metric("smol_graceful_received_bytes_total", &[]);
    assert!(received > 3 * request, "{received}");
}

/// The server counts as many answers as the clients of a load.
#[test]
fn the_counts_are_those_of_a_check() {
    let server = AdminServer::start(&["--work", "0s"]);
    let mut check = Command::new(SERVER);
    let addr = server.public.to_string();
    check.args(["check", "--duration", "1s", "--clients", "6", "--post", "/echo", "--echo", &addr]);
    let ended = output(&mut check);
    let report = text(&ended.stdout);
    assert!(ended.status.success(), "{report}{}", text(&ended.stderr));
    let row = report.lines().find(|line| line.trim_start().starts_with("answered")).unwrap();
    let answered: u64 = row.split_whitespace().nth(1).unwrap().parse().unwrap();
    // Before the load, `check` sends one GET and one POST to see whether the server answers.
    let labels = ["status=\"200\"", "ending=\"answered\""];
    let total = "smol_graceful_requests_total";
    wait_until("all is counted", || server.metric(total, &labels) == answered + 2);
    assert_eq!(server.metric(total, &[]), answered + 2, "{report}");
}

/// Prometheus' own parser checks its rules for names and help.
#[test]
#[ignore = "needs promtool"]
fn promtool_accepts_the_metrics() {
    let server = AdminServer::start(&["--work", "0s"]);
    assert_eq!(Client::connect(server.public).get("/").response().text(), "okay");
    let total = ["smol_graceful_requests_total"];
    wait_until("it is counted", || server.metric(total[0], &[]) == 1);
    let response = server.ask("/metrics");
    let content_type = response.header("content-type").unwrap();
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    let mut promtool = installed("promtool", "prometheus");
    let said = run_ok(promtool.args(["check", "metrics"]), &response.body);
    assert_eq!(text(&said), "");
}
