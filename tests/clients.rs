//! Real clients and proxies (curl, ab, wrk, nginx, HAProxy, Chromium), and a crowd of slow clients.
//!
//! All tests use 127.0.0.1 alone. A test that needs a Debian package is ignored by default.
//! `.ci/run` installs the packages and runs all tests.

#![allow(clippy::print_stdout, reason = "figures")]

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Client, Directory, PATIENCE, Program, Proxy, Running, chromium, installed, output_within,
    pattern, run_ok, text, wait_until,
};
use rustix::process::Signal;
use smol_graceful::{Body, Limits, Request, Response};

// curl

/// Rule W7: curl waits for the `100 Continue`, for longer than the test does.
#[test]
fn curl_uploads_with_expect() {
    let server = Program::server(&[]);
    let sent = pattern(2 * 1024 * 1024);
    let (mut curl, url) = curl(server.addr, "/echo");
    curl.args(["-v", "-X", "POST", "-T", "-", "-H", "Expect: 100-continue"]);
    curl.args(["-H", &format!("Content-Length: {}", sent.len()), "-H", "Transfer-Encoding:"]);
    curl.args(["--expect100-timeout", "3600", &url]);
    let output = output_within(&mut curl, &sent, PATIENCE);
    let told = text(&output.stderr);
    assert!(told.contains("< HTTP/1.1 100 Continue"), "{told}");
    assert!(output.stdout == sent, "{} bytes: {told}", output.stdout.len());
}

#[test]
fn curl_uploads_in_chunks() {
    let server = Program::server(&[]);
    let sent = pattern(2 * 1024 * 1024);
    let (mut curl, url) = curl(server.addr, "/echo");
    curl.args(["-v", "-X", "POST", "-T", "-", &url]);
    let output = output_within(&mut curl, &sent, PATIENCE);
    let told = text(&output.stderr);
    assert!(told.contains("> Transfer-Encoding: chunked"), "{told}");
    assert!(output.stdout == sent, "{} bytes: {told}", output.stdout.len());
}

/// Rule W8: in HTTP/1.0, the connection is kept only if the client asks for that, and no chunks are
/// sent.
#[test]
fn curl_speaks_http_1_0() {
    let server = Program::server(&["--work", "0s"]);
    let (mut one, url) = curl(server.addr, "/");
    let output = text_of(one.args(["--http1.0", "-i", &url]), b"");
    assert!(output.ends_with("\r\n\r\nokay"), "{output}");
    assert!(output.contains("\r\nconnection: close\r\n"), "{output}");
    // A body without a length ends with the connection.
    let (mut stream, url) = curl(server.addr, "/stream?every=1ms&count=3");
    let output = text_of(stream.args(["--http1.0", "-i", &url]), b"");
    assert!(output.ends_with("\r\n\r\ntick 1\ntick 2\ntick 3\n"), "{output}");
    assert!(!output.contains("transfer-encoding"), "{output}");
    // A connection is kept if the client asks for that.
    let (mut two, url) = curl(server.addr, "/");
    two.args(["--http1.0", "-H", "Connection: keep-alive", "-w", " %{num_connects}\n", &url, &url]);
    assert_eq!(text_of(&mut two, b""), "okay 1\nokay 0\n");
}

#[test]
fn curl_uses_its_connection_again() {
    let server = Program::server(&["--work", "0s"]);
    let (mut three, url) = curl(server.addr, "/");
    three.args(["-w", " %{num_connects}\n", &url, &format!("{url}livez"), &url]);
    assert_eq!(text_of(&mut three, b""), "okay 1\nlive\n 0\nokay 0\n");
    // W9: the connection stays usable after an unread body and after an error.
    let (mut post, url) = curl(server.addr, "/");
    post.args(["-o", "/dev/null", "-o", "/dev/null"]);
    post.args(["-d", "unread", "-w", "%{http_code} %{num_connects}\n", &url, &url]);
    assert_eq!(text_of(&mut post, b""), "405 1\n405 0\n");
}

/// Rule W13: a handler sees a path as it was sent, or the path is refused, because a proxy in front
/// has judged it as it was sent.
#[test]
fn curl_sends_a_path_as_it_is() {
    let server = Running::new(async |request: Request| Ok(request.url().path().to_owned()));
    for (path, seen) in [
        ("/../x", "Bad Request\n"),
        ("/a/../../x", "Bad Request\n"),
        ("/./x", "Bad Request\n"),
        ("//x", "//x"),
        ("/a..b/.c", "/a..b/.c"),
    ] {
        let (mut curl, url) = curl(server.addr(), path);
        assert_eq!(text_of(curl.args(["--path-as-is", &url]), b""), seen, "{path}");
    }
}

/// Rule W11: a response to HEAD has the fields of a response to GET, and no body.
#[test]
fn curl_asks_for_the_head_alone() {
    let server = Program::server(&["--work", "0s"]);
    let (mut head, url) = curl(server.addr, "/");
    let output = text_of(head.args(["-I", "-w", "%{num_connects}\n", &url, &url]), b"");
    assert_eq!(output.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{output}");
    assert_eq!(output.matches("content-length: 4\r\n").count(), 2, "{output}");
    assert!(output.ends_with("\r\n\r\n0\n"), "used again: {output}");
}

/// The server does not speak HTTP/2. The server ignores an offer, and closes if a client insists.
#[test]
fn curl_falls_back_from_http_2() {
    let server = Program::server(&["--work", "0s"]);
    let (mut offer, url) = curl(server.addr, "/");
    assert_eq!(text_of(offer.args(["--http2", "-w", " %{http_version}", &url]), b""), "okay 1.1");
    let (mut insist, url) = curl(server.addr, "/");
    insist.args(["--http2-prior-knowledge", &url]);
    assert!(!output_within(&mut insist, b"", PATIENCE).status.success());
}

// ab and wrk

/// Rule W8: ab speaks HTTP/1.0 with keep-alive.
#[test]
#[ignore = "needs ab (apache2-utils)"]
fn ab_keeps_its_connections() {
    let server = Program::server(&["--work", "0s"]);
    let mut ab = installed("ab", "apache2-utils");
    ab.args(["-k", "-n", "5000", "-c", "16", &format!("http://{}/", server.addr)]);
    let output = text_of(&mut ab, b"");
    let figure = |name: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next().unwrap().parse::<f64>().ok()
    };
    println!("ab -k: {} requests a second", figure("Requests per second:").unwrap());
    assert_eq!(figure("Complete requests:"), Some(5000.0), "{output}");
    assert_eq!(figure("Failed requests:"), Some(0.0), "{output}");
    assert_eq!(figure("Non-2xx responses:"), None, "{output}");
    assert_eq!(figure("Keep-Alive requests:"), Some(5000.0), "{output}");
}

/// Rule W10: no answer is lost or mixed up. wrk counts and parses them.
#[test]
#[ignore = "needs wrk"]
fn wrk_sends_pipelines() {
    let server = Program::server(&[]);
    let mut wrk = installed("wrk", "wrk");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/pipeline.lua");
    wrk.args(["-t", "2", "-c", "32", "-d", "2s", "--timeout", "30s", "-s"]).arg(script);
    let output = text_of(wrk.arg(format!("http://{}/livez", server.addr)), b"");
    let told = output.lines().last().unwrap();
    println!("wrk with pipelines of 16, for 2 s: {told}");
    let (requests, errors) = told.strip_prefix("requests=").unwrap().split_once(' ').unwrap();
    assert!(requests.parse::<u64>().unwrap() >= 16, "{output}");
    assert_eq!(errors, "connect=0 read=0 write=0 status=0 timeout=0", "{output}");
}

// Proxies

#[test]
#[ignore = "needs nginx"]
fn nginx_keeps_its_connections() {
    keeps_its_connections(nginx);
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_keeps_its_connections() {
    keeps_its_connections(haproxy);
}

#[test]
#[ignore = "needs nginx"]
fn nginx_finishes_what_is_in_flight() {
    let server = Program::server(&[]);
    in_flight_at_the_stop(&nginx(server.addr), server);
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_finishes_what_is_in_flight() {
    let server = Program::server(&[]);
    in_flight_at_the_stop(&haproxy(server.addr), server);
}

/// The number of requests whose handshake may meet the close of the listener. The kernel leaves
/// this gap (docs/decisions.md, S4, and tests/load.rs).
const IN_HANDSHAKE: usize = 2;

/// nginx logs the reason of every request that failed.
#[test]
#[ignore = "needs nginx"]
fn nginx_loses_nothing_at_the_stop() {
    let mut server = Program::server(&["--linger", "2s"]);
    let mut proxy = nginx(server.addr);
    let failed = stop_amid_traffic(&proxy, &mut server);
    assert!(failed.iter().all(|failed| failed == "502"), "{failed:?}");
    let log = proxy.end();
    let errors: Vec<_> = log.iter().filter(|line| line.contains("[error]")).collect();
    let count = |what: &str| errors.iter().filter(|line| line.contains(what)).count();
    // Nothing was sent, because no process listened.
    let refused = count("(111: Connection refused) while connecting to upstream");
    let reset = count("(104: Connection reset by peer)");
    println!("nginx: {refused} refused, {reset} reset in the handshake");
    assert_eq!(refused + reset, errors.len(), "{errors:#?}");
    assert_eq!(errors.len(), failed.len(), "{errors:#?}");
    assert!(reset <= IN_HANDSHAKE, "{errors:#?}");
}

/// HAProxy answers 503 if it could not connect, and 502 if a request was lost.
#[test]
#[ignore = "needs haproxy"]
fn haproxy_loses_nothing_at_the_stop() {
    let mut server = Program::server(&["--linger", "2s"]);
    let proxy = haproxy(server.addr);
    let failed = stop_amid_traffic(&proxy, &mut server);
    let refused = failed.iter().filter(|failed| *failed == "503").count();
    println!("HAProxy: {refused} refused, of {failed:?}");
    assert!(failed.len() - refused <= IN_HANDSHAKE, "{failed:?}");
}

/// HAProxy's default health check is `OPTIONS /` in HTTP/1.0, without a Host.
#[test]
#[ignore = "needs haproxy"]
fn haproxy_finds_us_healthy() {
    let server = Program::server(&[]);
    let proxy = haproxy(server.addr);
    wait_until("the first check", || {
        let stats = Client::connect(proxy.stats).get("/;csv").response().text();
        let app = stats.lines().find(|line| line.starts_with("app,app,")).unwrap();
        assert!(!app.contains(",DOWN"), "{app}");
        app.contains(",L7OK,204,")
    });
}

/// No handler sees a path or a host that the proxy has denied (rule W13).
#[test]
#[ignore = "needs haproxy"]
fn haproxy_and_the_handler_see_the_same() {
    let server = Running::new(async |request: Request| {
        let host = request.header("host").map(ToString::to_string).unwrap_or_default();
        let url = request.url();
        let is_denied = url.path() == "/seen"
            || host.contains("admin")
            || matches!(url.host_str(), Some("admin" | "127.0.0.1"));
        Ok(if is_denied { "denied" } else { "served" })
    });
    let proxy = haproxy(server.addr());
    for (target, host, told) in [
        ("/seen", "x", "403"),
        ("/", "admin", "403"),
        ("/other", "x", "served"),
        ("/other", "web.1", "served"),
        ("/x/../seen", "x", "400"),
        ("/x/%2e%2e/seen", "x", "400"),
        ("/%2e/seen", "x", "400"),
        ("/./seen", "x", "400"),
        ("/.%2E/seen", "x", "400"),
        ("http://x/x/../seen", "x", "400"),
        ("/", "%61dmin", "400"),
        ("/", "2130706433", "400"),
        ("/", "0177.0.0.1", "400"),
        ("/", "0x7f.1", "400"),
    ] {
        let mut client = Client::connect(proxy.addr);
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let response = client.response();
        let answer = match response.status {
            200 => response.text(),
            status => status.to_string(),
        };
        assert_eq!(answer, told, "{target} at {host}");
    }
}

/// Rule S11: a WebSocket works through a proxy, and so does its end at the stop.
#[test]
#[ignore = "needs nginx"]
fn nginx_passes_a_websocket_on() {
    // These are `Hello` from a client and from a server (RFC 6455 section 5.7).
    const MASKED: &[u8] = &[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    const UNMASKED: &[u8] = &[0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
    let mut server = Program::example("websocket", &["127.0.0.1:0"]);
    let proxy = nginx(server.addr);
    let mut client = Client::connect(proxy.addr);
    client.send("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    client.send("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    assert_eq!(client.response().status, 101);
    assert_eq!(client.send(MASKED).take(7).unwrap(), UNMASKED);
    server.signal(Signal::TERM);
    // The server sends a Close with 1001 and `stopping`, and the client answers with one, masked
    // with zeros.
    assert_eq!(client.take(12).unwrap(), b"\x88\x0a\x03\xe9stopping");
    client.send(b"\x88\x82\0\0\0\0\x03\xe9");
    assert_eq!(server.exit_code(), 0, "{server}");
}

/// Through a proxy, many requests of many clients share few connections to the server.
fn keeps_its_connections(proxy: fn(SocketAddr) -> Proxy) {
    const EACH: usize = 100;
    let peers = Arc::new(Mutex::new(HashSet::new()));
    let seen = peers.clone();
    let server = Running::new(move |mut request: Request| {
        seen.lock().unwrap().insert(request.peer_addr().unwrap().to_owned());
        async move { Ok(Response::from(request.take_body())) }
    });
    let proxy = proxy(server.addr());
    let body = pattern(100_000);
    thread::scope(|scope| {
        for n in 0..8 {
            let (mut client, body) = (Client::connect(proxy.addr), &body);
            scope.spawn(move || {
                for m in 0..EACH {
                    let length = (n * 7919 + m * 104_729) % body.len();
                    let body = &body[..length];
                    client.send("POST / HTTP/1.1\r\nHost: x\r\n");
                    if m % 2 == 0 {
                        client.send(format!("Content-Length: {length}\r\n\r\n")).send(body);
                    } else {
                        client.send("Transfer-Encoding: chunked\r\n\r\n");
                        for chunk in body.chunks(30_000) {
                            client.send(format!("{:x}\r\n", chunk.len())).send(chunk).send("\r\n");
                        }
                        client.send("0\r\n\r\n");
                    }
                    let answer = client.response();
                    assert_eq!(answer.status, 200);
                    assert!(answer.body == body, "{} bytes of {length}", answer.body.len());
                }
            });
        }
    });
    let peers: Vec<_> = peers.lock().unwrap().drain().collect();
    println!("{} requests on {} connections", 8 * EACH, peers.len());
    assert!(peers.len() < 8 * EACH / 4, "{} connections", peers.len());
    // The proxy's kept connections do not hold up the stop.
    assert!(server.stop().is_drained());
}

/// A download and an upload that have both visibly begun are finished (rule S8).
fn in_flight_at_the_stop(proxy: &Proxy, mut server: Program) {
    let mut download = Client::connect(proxy.addr);
    download.get("/stream?every=50ms&count=1000000");
    let mut upload = Client::connect(proxy.addr);
    upload
        .send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    for (client, what) in [(&mut download, "tick 1\n"), (&mut upload, "first")] {
        let mut seen = String::new();
        while !seen.ends_with(what) {
            seen.push_str(&text(&client.take(1).unwrap()));
        }
        assert!(seen.starts_with("HTTP/1.1 200 OK\r\n"), "{seen}");
    }
    server.signal(Signal::TERM);
    // S10: the stream sees the stop and ends properly, with the last chunk.
    let mut end = String::new();
    while !end.ends_with("\r\n0\r\n\r\n") {
        end.push_str(&text(&download.take(1).unwrap()));
    }
    assert!(server.is_running(), "{server}");
    upload.send("6\r\nsecond\r\n0\r\n\r\n");
    let mut rest = String::new();
    while !rest.ends_with("\r\n0\r\n\r\n") {
        rest.push_str(&text(&upload.take(1).unwrap()));
    }
    assert!(rest.contains("second"), "{rest}");
    assert_eq!(server.exit_code(), 0, "{server}");
}

/// Sends requests through `proxy` without a pause, from clients that stop at their first failure,
/// and stops the server meanwhile. Returns the failures: statuses, or the end of the proxy's own
/// connection.
fn stop_amid_traffic(proxy: &Proxy, server: &mut Program) -> Vec<String> {
    let addr = proxy.addr;
    const CLIENTS: usize = 16;
    let answered = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let begin = Instant::now();
    let ask = || {
        let mut client = Client::connect(addr);
        let failure = loop {
            if begin.elapsed() > PATIENCE {
                break "nothing failed".to_owned();
            }
            match client.get("/work?for=2ms").try_response(false) {
                Ok(answer) if answer.status == 200 => {
                    assert_eq!(answer.text(), "okay");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(answer) => break answer.status.to_string(),
                Err(end) => break format!("{end:?}"),
            }
        };
        failed.lock().unwrap().push(failure);
    };
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(ask);
        }
        wait_until("answers", || answered.load(Ordering::Relaxed) >= 500);
        assert!(failed.lock().unwrap().is_empty(), "lost without a signal: {failed:?}");
        server.signal(Signal::TERM);
    });
    assert_eq!(server.exit_code(), 0, "{server}");
    println!("{} answered; {}", answered.into_inner(), server.log().lines().last().unwrap());
    let failed = failed.into_inner().unwrap();
    assert_eq!(failed.len(), CLIENTS);
    failed
}

fn nginx(server: SocketAddr) -> Proxy {
    Proxy::nginx(|_, listen, stats| {
        adapted(include_str!("clients/nginx.conf"), listen, stats, server)
    })
}

fn haproxy(server: SocketAddr) -> Proxy {
    let config = include_str!("clients/haproxy.cfg");
    Proxy::haproxy(|_, listen, stats| adapted(config, listen, stats, server))
}

fn adapted(config: &str, listen: SocketAddr, stats: SocketAddr, server: SocketAddr) -> String {
    let config = config.replace("{listen}", &listen.to_string());
    config.replace("{stats}", &stats.to_string()).replace("{server}", &server.to_string())
}

// Chromium

/// Chromium loads a page with 20 subresources: styles, scripts, images, and data that a script
/// fetches and sends.
#[test]
#[ignore = "needs chromium"]
fn chromium_loads_a_page() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let server = Running::new(move |request: Request| {
        let path = request.url().path().to_owned();
        let peer = request.peer_addr().unwrap().to_owned();
        seen.lock().unwrap().push((path.clone(), peer));
        async move { page(&path, request).await }
    });
    let profile = Directory::new();
    let mut chromium = chromium(&profile);
    chromium.args(["--timeout=25000", "--dump-dom", &format!("http://{}/", server.addr())]);
    let output = output_within(&mut chromium, b"", 3 * PATIENCE);
    let dom = text(&output.stdout);
    let asked = asked.lock().unwrap();
    assert!(dom.contains("all 20 loaded"), "{dom}\n{asked:?}\n{}", text(&output.stderr));
    let subresources: HashSet<_> =
        asked.iter().map(|(path, _)| path).filter(|path| path.starts_with("/r/")).collect();
    assert_eq!(subresources.len(), 20, "{asked:?}");
    let connections: HashSet<_> = asked.iter().map(|(_, peer)| peer).collect();
    println!("Chromium: {} requests on {} connections", asked.len(), connections.len());
    assert!(connections.len() < asked.len(), "none was used again: {asked:?}");
    assert!(server.stop().is_drained());
}

/// Serves the page and its subresources.
async fn page(path: &str, mut request: Request) -> http_types::Result<Response> {
    let kind = |body: Body, content_type: &str| {
        let mut response = Response::from(body);
        response.insert_header("Content-Type", content_type);
        response
    };
    Ok(match path.rsplit('.').next().unwrap() {
        "/" => kind(PAGE.into(), "text/html; charset=utf-8"),
        "css" => kind("p { color: green }".into(), "text/css"),
        "js" => kind("loaded();".into(), "text/javascript"),
        "svg" => {
            let image = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>";
            // A body without a length is sent in chunks.
            let reader = futures_lite::io::Cursor::new(image);
            kind(Body::from_reader(reader, None), "image/svg+xml")
        }
        "bin" => kind(pattern(300_000).into(), "application/octet-stream"),
        "echo" => kind(request.take_body(), "text/plain"),
        _ => Response::new(404),
    })
}

/// The page counts the subresources that have come. A fetched body must be right to the last byte.
const PAGE: &str = r#"<!DOCTYPE html><title>twenty</title><p id="p">loading</p><script>
let n = 0, late = [];
function loaded() { if (++n == 20) p.textContent = "all 20 " + "loaded"; }
function add(tag, attributes) {
    const element = Object.assign(document.createElement(tag), attributes);
    element.onload = tag == "script" ? null : loaded;
    document.body.append(element);
}
onerror = event => p.textContent = "failed: " + event;
// The load event waits for these.
for (let i = 0; i < 4; i++) add("link", { rel: "stylesheet", href: `/r/${i}.css` });
for (let i = 0; i < 4; i++) add("script", { src: `/r/${i}.js` });
for (let i = 0; i < 6; i++) add("img", { src: `/r/${i}.svg` });
// The load event waits for these, too, because the requests are synchronous.
function ask(method, url, body) {
    const request = new XMLHttpRequest();
    request.open(method, url, false);
    request.send(body);
    return request.responseText;
}
for (let i = 0; i < 3; i++) if (ask("GET", `/r/${i}.bin`).length > 0) loaded();
for (let i = 0; i < 3; i++) {
    const sent = "x".repeat(100000 + i);
    if (ask("POST", `/r/${i}.echo`, sent) == sent) loaded();
}
</script>"#;

// A crowd

/// 200 clients send a byte a second. Other clients do not notice them, and after the head timeout
/// they are gone.
#[test]
fn slow_clients_harm_nobody() {
    const CROWD: usize = 200;
    let head_timeout = Duration::from_secs(2);
    let server = Running::with(Limits::default().head_timeout(head_timeout), async |_| Ok("okay"));
    let in_flight = || server.shutdown.in_flight();
    let mut others: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for client in &mut others {
        assert_eq!(client.get("/").response().text(), "okay");
    }
    let before = resident();
    let begin = Instant::now();
    let mut crowd: Vec<_> = (0..CROWD).map(|_| SlowClient::new(server.addr())).collect();
    wait_until("the crowd", || in_flight() == CROWD + others.len());

    let (mut answers, mut slowest, mut most) = (0, Duration::ZERO, before);
    thread::scope(|scope| {
        let slow = scope.spawn(|| {
            // Each client sends a byte a second. This pause is the scenario, and not a wait for an
            // event.
            while crowd.iter_mut().filter_map(SlowClient::go_on).count() > 0 {
                thread::sleep(Duration::from_secs(1));
            }
        });
        // Meanwhile other clients are served, on old connections and on new ones. A client that has
        // just left may still be counted.
        while in_flight() > others.len() + 2 {
            for client in others.iter_mut().chain([&mut server.connect()]) {
                let asked = Instant::now();
                assert_eq!(client.get("/").response().text(), "okay");
                answers += 1;
                slowest = slowest.max(asked.elapsed());
            }
            most = most.max(resident());
            assert!(begin.elapsed() < PATIENCE, "{} in flight", in_flight());
        }
        let gone = begin.elapsed();
        assert!(gone >= head_timeout, "gone after {gone:?}");
        println!(
            "{CROWD} gone after {gone:.1?}; meanwhile {answers} answers, the slowest after {slowest:?}"
        );
        slow.join().unwrap();
    });
    println!("memory: {} KiB more at most", most - before);
    assert!(most - before < 32 * 1024, "{} KiB more", most - before);
    for slow in crowd {
        let answer = text(&slow.answer);
        assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    }
    // The other clients are still connected.
    for client in &mut others {
        assert_eq!(client.get("/").response().text(), "okay");
    }
    wait_until("only the live ones", || in_flight() == others.len());
}

/// A client that sends a byte at a time, and the answer that it gets.
struct SlowClient {
    stream: TcpStream,
    sent: usize,
    answer: Vec<u8>,
    ended: bool,
}

impl SlowClient {
    fn new(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self { stream, sent: 0, answer: Vec::new(), ended: false }
    }

    /// Sends the next byte, unless there is an answer. Returns `None` when the connection has
    /// ended.
    fn go_on(&mut self) -> Option<()> {
        const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\nX: ";
        match self.stream.read_to_end(&mut self.answer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) => self.ended = true,
            Err(error) => panic!("{error}, after {:?}", text(&self.answer)),
        }
        if !self.ended && self.answer.is_empty() {
            let byte = HEAD.get(self.sent).unwrap_or(&b'x');
            self.stream.write_all(&[*byte]).unwrap();
            self.sent += 1;
        }
        (!self.ended).then_some(())
    }
}

/// Returns this process's memory, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

// The parts of the tests above

/// Returns a command for curl that prints only errors, and the URL of `path`.
fn curl(addr: SocketAddr, path: &str) -> (Command, String) {
    let mut curl = installed("curl", "curl");
    curl.args(["-q", "-sS", "--noproxy", "*"]);
    (curl, format!("http://{addr}{path}"))
}

/// Runs `command` with `input`, and returns its standard output.
fn text_of(command: &mut Command, input: &[u8]) -> String {
    text(&run_ok(command, input))
}
