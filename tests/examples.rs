//! The examples, as a reader would run them. Each test sends the requests of the head comment,
//! stops the example, and checks its exit code and its log.
//!
//! `websocket` has its tests in tests/upgrade.rs, `blocking` in tests/signals.rs, and `testing` has
//! its own.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::iter;
use std::net::{Shutdown as Half, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;

use command_fds::{CommandFdExt, FdMapping};
use common::{
    Client, Directory, End, KeeperProcess, PATIENCE, ProcessId, Program, TlsStream, certificate,
    chromium, keep, output, pattern, run_ok, text, tls_client, wait_for_close, wait_until,
};
use futures_rustls::pki_types::CertificateDer;
use futures_rustls::rustls::ProtocolVersion;
use rustix::process::{Pid, Signal, kill_process_group};

// hello

/// The address of the example is fixed, so the test binds the address first and passes the socket,
/// as systemd would.
#[test]
#[ignore = "needs the port 8082"]
fn hello_says_okay() {
    let held = TcpListener::bind("127.0.0.1:8082").expect("someone else has the port 8082");
    let told = "Error: cannot listen on 127.0.0.1:8082: the address is in use by another process; \
        stop that process, or choose another address";
    fails("hello", &[], told);

    let mut command = quiet("hello", "LISTEN_PID=$$");
    let mappings = vec![FdMapping { parent_fd: held.into(), child_fd: 3 }];
    command.env("LISTEN_FDS", "1").fd_mappings(mappings).unwrap();
    let mut server = Program::start(command);
    let mut client = Client::connect(([127, 0, 0, 1], 8082).into());
    for path in ["/", "/any/other"] {
        assert_eq!(client.get(path).response().text(), "okay");
    }
    server.signal(Signal::INT);
    assert_eq!(client.end(), End::Eof);
    assert_eq!(server.exit_code(), 0, "{server}");
}

// tls

#[test]
fn tls_serves_curl() {
    let mut server = TlsExample::start();
    let mut twice = server.curl("/");
    twice.args([&*server.url("/again"), "-w", "%{http_version} %{num_connects}\n"]);
    assert_eq!(text(&run_ok(&mut twice, b"")), "okay\n1.1 1\nokay\n1.1 0\n");
    // The handler sees HTTPS, and the name for which its client has asked.
    let (url, asked) = (server.url("/name"), "asked for as localhost");
    let told = run_ok(&mut server.curl("/name"), b"");
    assert_eq!(text(&told), format!("{url}, {asked}\n"));
    let sent = pattern(1024 * 1024);
    let mut post = server.curl("/");
    let received = run_ok(post.args(["--data-binary", "@-"]), &sent);
    assert!(received == sent, "{} bytes", received.len());
    // The body is chunked in both directions.
    let received = run_ok(server.curl("/").args(["-X", "POST", "-T", "-"]), &sent);
    assert!(received == sent, "{} bytes", received.len());
    let mut put = server.curl("/");
    put.args(["-X", "PUT", "-o", "/dev/null", "-w", "%{http_code}"]);
    assert_eq!(text(&run_ok(&mut put, b"")), "405");
    // A client that does not trust the certificate ends in the handshake.
    assert_eq!(server.distrustful_curl("/").output().unwrap().status.code(), Some(60));
    server.end();
}

/// Rule S8: a request that has begun at the stop is finished, and its response says `close` if its
/// head was not sent yet.
#[test]
fn tls_finishes_what_is_in_flight() {
    let mut server = TlsExample::start();
    // This request has sent its head, as curl shows, and waits for its body.
    let mut echo = server.curl("/");
    echo.args(["-v", "-X", "POST", "-T", "-"]);
    let mut echo = piped(&mut echo);
    let mut told = BufReader::new(echo.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(told.any(|line| line.starts_with("> Transfer-Encoding: chunked")));
    // Of this request, a part of the head has arrived.
    let mut client = server.connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    client.flush().unwrap();
    // The handshake of this client has begun, with a request right after it.
    let (mut late, hello) = server.half_connect();
    late.conn.writer().write_all(GET).unwrap();

    server.program.signal(Signal::TERM);
    server.program.wait_for("stopping because of SIGTERM");
    wait_for_close(server.program.addr);
    assert!(server.program.is_running());

    late.sock.write_all(&hello).unwrap();
    client.write_all(b"\r\n").unwrap();
    for client in [&mut late, &mut client] {
        let answer = rest(client);
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nokay\n"), "{answer}");
    }
    assert!(server.program.is_running());
    echo.stdin.as_mut().unwrap().write_all(b"sent after the stop").unwrap();
    let told = thread::spawn(move || told.collect::<Vec<_>>());
    let output = echo.wait_with_output().unwrap();
    let told = told.join().unwrap();
    assert!(output.status.success(), "{told:#?}");
    assert_eq!(text(&output.stdout), "sent after the stop");
    assert_eq!(server.program.exit_code(), 0, "{}", server.program);
    let log = server.program.log();
    assert!(log.contains("drained in "), "{log}");
}

/// Rule S6, in TLS: the client gets a proper end (close_notify), and so can exclude an attack (RFC
/// 8446 section 6.1).
#[test]
fn tls_takes_leave_of_idle_connections() {
    let mut server = TlsExample::start();
    let mut idle: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut idle {
        okay(client);
        assert_eq!(client.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(client.conn.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    }
    // One client has sent no request after its handshake, and the other one is silent.
    let mut fresh = server.connect();
    fresh.conn.complete_io(&mut fresh.sock).unwrap();
    let mut silent = server.program.connect();
    server.program.signal(Signal::TERM);
    for mut client in idle.into_iter().chain([fresh]) {
        assert_eq!(rest(&mut client), "");
    }
    assert_eq!(silent.end(), End::Eof);
    assert_eq!(server.program.exit_code(), 0, "{}", server.program);
}

/// openssl, too, sees a proper end of TLS.
#[test]
#[ignore = "needs openssl"]
fn tls_takes_leave_of_openssl() {
    let mut server = TlsExample::start();
    // openssl has no time limit of its own.
    let mut openssl = Command::new("timeout");
    openssl.args([&PATIENCE.as_secs().to_string(), "openssl", "s_client", "-quiet"]);
    openssl.args(["-verify_return_error", "-servername", "localhost", "-CAfile"]);
    openssl.arg(server.dir.join("cert.pem"));
    openssl.args(["-connect", &server.program.addr.to_string()]);
    let mut openssl = piped(&mut openssl);
    openssl.stdin.as_mut().unwrap().write_all(GET).unwrap();
    answer(openssl.stdout.as_mut().unwrap());
    server.program.stop();
    // Its standard input is still open, so the server ends the connection.
    let stdin = openssl.stdin.take();
    let output = openssl.wait_with_output().unwrap();
    drop(stdin);
    let told = text(&output.stderr);
    assert!(output.status.success() && !told.contains("rror:"), "{told}");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn tls_is_not_disturbed_by_garbage() {
    let mut server = TlsExample::start();
    let mut good = server.connect();
    okay(&mut good);
    let random: Vec<u8> = (0..4096).map(|_| fastrand::u8(..)).collect();
    let hello = server.half_connect().1;
    for garbage in [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &b"\r\n\r\n"[..], &random, &hello]
    {
        let mut client = server.program.connect();
        // The server may close before all of this is sent.
        let _ = client.stream.write_all(garbage);
        let _ = client.stream.shutdown(Half::Write);
        let (told, _) = client.rest();
        assert!(!text(&told).contains("HTTP/1.1 200"), "{}", text(&told));
        okay(&mut good);
        assert_eq!(text(&run_ok(&mut server.curl("/"), b"")), "okay\n");
    }
    okay(&mut good);
    server.program.signal(Signal::TERM);
    assert_eq!(rest(&mut good), "");
    assert_eq!(server.program.exit_code(), 0, "{}", server.program);
}

/// A successor reads the current certificate.
#[test]
fn tls_renews_its_certificate() {
    let mut server = TlsExample::start_by(|example| keep(&[], &example));
    let mut old = server.connect();
    okay(&mut old);
    server.trusted = certificate(server.dir.path());
    server.program.signal(Signal::USR2);
    server.program.wait_for(" takes over from process ");
    assert_eq!(rest(&mut old), "");
    server.program.wait_for(" has ended: exit status: 0");
    okay(&mut server.connect());
    assert_eq!(text(&run_ok(&mut server.curl("/"), b"")), "okay\n");
    server.program.stop();
    let log = server.program.log();
    assert_eq!(log.matches("drained in ").count(), 2, "{log}");
}

#[test]
fn tls_says_what_is_wrong() {
    let dir = Directory::new();
    certificate(dir.path());
    let path = |name: &str| dir.join(name).display().to_string();
    let (chain, key, none) = (path("cert.pem"), path("key.pem"), path("none.pem"));
    for (args, told) in [
        (vec![], "`tls ADDR CERT KEY`"),
        (vec!["127.0.0.1:0", &*chain], "`tls ADDR CERT KEY`"),
        (vec!["127.0.0.1:0", &none, &key], "none.pem: "),
        (vec!["127.0.0.1:0", &chain, &none], "none.pem: "),
        (vec!["127.0.0.1:0", &key, &key], "key.pem: no items found"),
        (vec!["127.0.0.1:0", &chain, &chain], "cert.pem: no items found"),
        (vec!["localhost", &chain, &key], "`localhost` is not an address"),
    ] {
        fails("tls", &args, told);
    }
}

// events

/// The stream ends with its last chunk, and the successor goes on with the next event.
#[test]
fn events_go_on_with_the_successor() {
    let mut server = KeeperProcess::start(&Program::example_command("events", &["127.0.0.1:0"]));
    let mut page = server.program.connect();
    let page = page.get("/").response();
    assert_eq!(page.header("content-type").unwrap(), "text/html; charset=utf-8");
    assert!(page.text().contains("EventSource"));
    assert_eq!(server.program.connect().get("/other").response().status, 404);

    let predecessor = server.serving.number();
    let mut client = server.program.connect();
    subscribe(&mut client, None);
    for n in 1..=3 {
        assert_eq!(event(&mut client), Some((n, predecessor)));
    }
    let stopped = server.restart();
    let successor = server.serving.number();
    let mut last = 3;
    while let Some((n, by)) = event(&mut client) {
        assert_eq!((n, by), (last + 1, predecessor));
        last = n;
    }
    assert_eq!(server.exit_code(stopped), 0);

    // The connection has gone on.
    subscribe(&mut client, Some(&last.to_string()));
    assert_eq!(event(&mut client), Some((last + 1, successor)));
    // A client that sends nonsense gets all events.
    for nonsense in ["-1", "99999999999999999999", "x"] {
        let mut client = server.program.connect();
        subscribe(&mut client, Some(nonsense));
        assert_eq!(event(&mut client), Some((1, successor)));
    }
    server.end();
    while event(&mut client).is_some() {}
    assert_eq!(client.end(), End::Eof);
}

/// Asks for the events after `last`.
fn subscribe(client: &mut Client, last: Option<&str>) {
    client.send("GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n");
    if let Some(last) = last {
        client.send(format!("Last-Event-ID: {last}\r\n"));
    }
    client.send("\r\n");
    assert_eq!(client.line().unwrap(), "HTTP/1.1 200 OK");
    let lines: Vec<_> =
        iter::from_fn(|| client.line().ok().filter(|line| !line.is_empty())).collect();
    assert!(lines.contains(&"content-type: text/event-stream".to_owned()), "{lines:?}");
}

/// Returns the next event's number and process, or `None` if the stream ends properly.
fn event(client: &mut Client) -> Option<(u64, i32)> {
    loop {
        let line = client.line().unwrap();
        if line == "0" {
            assert_eq!(client.line().unwrap(), "");
            return None;
        }
        if let Some((_, event)) = line.split_once("data: event ") {
            let (n, pid) = event.trim_end().split_once(", by process ").unwrap();
            return Some((n.parse().unwrap(), pid.parse().unwrap()));
        }
    }
}

/// A browser notices only the end of a stream, both when no server runs for a while, and when a
/// successor takes over.
#[test]
#[ignore = "needs chromium"]
fn events_go_on_in_chromium() {
    let mut first = Program::example("events", &["127.0.0.1:0"]);
    let chromium = Chromium::open(&format!("http://{}/", first.addr));
    let mut received = 0;
    let mut receives_from = |process: ProcessId| {
        let before = received;
        wait_until(&format!("two more events by process {process}"), || {
            let title = chromium.title();
            let told = title.split_once(" received, the last: event ");
            let Some((count, last)) = told else {
                assert_ne!(title, "closed for good");
                return false;
            };
            // No event was lost or came twice.
            received = count.parse::<u64>().unwrap();
            assert!(last.starts_with(&format!("{count}, by process ")), "{title}");
            last.ends_with(&format!("process {process}")) && received >= before + 2
        });
    };
    receives_from(first.process());
    first.stop();

    let second = Program::example_command("events", &[&first.addr.to_string()]);
    let mut servers = KeeperProcess::start(&second);
    receives_from(servers.serving);
    let predecessor = servers.restart();
    assert_eq!(servers.exit_code(predecessor), 0);
    receives_from(servers.serving);
    servers.end();
}

// restart

/// A program with `serve` takes its signals from the library, so USR2 does no harm.
#[test]
fn restart_says_how_to_get_a_keeper() {
    let mut server = Program::example("restart", &["127.0.0.1:0"]);
    server.signal(Signal::USR2);
    server.wait_for("no restart because of SIGUSR2: only a keeper restarts a process");
    let told = format!("process {}\n", server.pid());
    assert_eq!(server.connect().get("/").response().text(), told);
    server.stop();
}

// proxy_protocol

/// The handler sees the client that the proxy names, on every request of the connection.
#[test]
fn proxy_protocol_tells_who_the_client_is() {
    let mut server = Program::example("proxy_protocol", &["127.0.0.1:0"]);
    let longest = format!("{}:ffff", "ffff:".repeat(7).trim_end_matches(':'));
    for (line, told) in [
        ("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443", Some("192.0.2.1:56324")),
        ("PROXY TCP6 2001:db8::1 2001:db8::2 1 443", Some("[2001:db8::1]:1")),
        (
            &*format!("PROXY TCP6 {longest} {longest} 65535 65535"),
            Some(&*format!("[{longest}]:65535")),
        ),
        ("PROXY UNKNOWN", None),
        (&*format!("PROXY UNKNOWN {longest} {longest} 65535 65535"), None),
    ] {
        // The bytes come in one piece, and one by one, and none after the line is lost.
        for size in [4096, 1] {
            let mut client = server.connect();
            let own = client.stream.local_addr().unwrap().to_string();
            let sent = format!("{line}\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n");
            for piece in sent.as_bytes().chunks(size) {
                client.send(piece);
            }
            for _ in 0..2 {
                assert_eq!(client.response().text(), format!("{}\n", told.unwrap_or(&own)));
                client.get("/");
            }
        }
    }
    let too_long = format!("PROXY UNKNOWN {}", "x".repeat(92));
    for bad in [
        "GET / HTTP/1.1",
        "PROXY TCP4 192.0.2.1 192.0.2.2 56324",
        "PROXY TCP4 192.0.2.1 192.0.2.2 65536 443",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1 443",
        "PROXY TCP6 192.0.2.1 192.0.2.2 56324 443",
        "PROXY TCP4 example.com 192.0.2.2 56324 443",
        &*too_long,
    ] {
        let mut client = server.connect();
        let _ = client.stream.write_all(format!("{bad}\r\nGET / HTTP/1.1\r\n\r\n").as_bytes());
        assert!(client.rest().0.is_empty(), "{bad}");
    }
    server.stop();
}

/// A connection with half a line at the stop is counted. The server serves it when the rest comes,
/// and an abort names it.
#[test]
fn proxy_protocol_serves_whose_line_is_half_there_at_the_stop() {
    for is_finished in [true, false] {
        let mut server = Program::example("proxy_protocol", &["127.0.0.1:0"]);
        let mut half = server.connect();
        half.send("PROXY TCP4 192.0.2.1 19");
        // The answer to a later client shows that the earlier one was accepted.
        let mut late = server.connect();
        assert!(
            late.send("PROXY UNKNOWN\r\n").get("/").response().text().starts_with("127.0.0.1:")
        );
        drop(late);
        server.signal(Signal::TERM);
        wait_for_close(server.addr);
        if is_finished {
            half.send("2.0.2.2 1 443\r\n").get("/");
            let response = half.response();
            assert_eq!((response.text().as_str(), response.says_close()), ("192.0.2.1:1\n", true));
            assert_eq!(half.end(), End::Eof);
            assert_eq!(server.exit_code(), 0, "{server}");
        } else {
            let own = half.stream.local_addr().unwrap();
            common::pass_repeat_window();
            server.signal(Signal::TERM);
            assert_eq!(server.exit_code(), 1, "{server}");
            let log = server.log();
            assert!(log.contains(&format!(" cut: {own} - - (in the handshake, ")), "{log}");
        }
    }
}

// worker

#[test]
fn worker_finishes_what_is_under_way() {
    let (mut worker, mut stdin) = worker();
    // There are always more jobs, which is not a reason to go on after the stop.
    stdin.write_all("1000\n".repeat(200).as_bytes()).unwrap();
    for _ in 0..6 {
        worker.wait_for("begun: 1000");
    }
    worker.stop();
    let log = worker.log();
    let count = |what: &str| log.matches(what).count();
    assert_eq!(count("begun: "), count("done: "), "{log}");
    assert!(count("begun: ") < 100, "{log}");
    assert!(log.contains("stopped by SIGTERM"), "{log}");
}

/// The stop comes at a random moment, and exit code 0 means that each job that has begun is done.
/// The test prints the seed, and `STRESS_SEED` sets it.
#[test]
#[expect(clippy::print_stdout, reason = "the seed of a failure")]
fn worker_loses_no_job_to_a_stop_at_any_moment() {
    let seed = std::env::var("STRESS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("STRESS_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..10 {
        let (mut worker, mut stdin) = worker();
        let jobs: String = (0..1000).map(|_| format!("{}\n", random.u8(..3))).collect();
        stdin.write_all(jobs.as_bytes()).unwrap();
        for _ in 0..random.usize(1..40) {
            worker.wait_for("begun: ");
        }
        worker.stop();
        let log = worker.log();
        let count = |what: &str| log.matches(what).count();
        for job in ["0", "1", "2"] {
            let (begun, done) = (format!("begun: {job}"), format!("done: {job}"));
            assert_eq!(count(&begun), count(&done), "{log}");
        }
    }
}

#[test]
fn worker_ends_at_once_when_told_twice() {
    let (mut worker, mut stdin) = worker();
    stdin.write_all(b"600000\n").unwrap();
    worker.wait_for("begun: 600000");
    worker.signal(Signal::INT);
    worker.wait_for("stopping because of SIGINT");
    common::pass_repeat_window();
    assert!(worker.is_running());
    worker.signal(Signal::INT);
    assert_eq!(worker.exit_code(), 1, "{worker}");
    let log = worker.log();
    assert!(log.contains(" cut: guard taken at examples/worker.rs:"), "{log}");
}

#[test]
fn worker_ends_with_its_input() {
    let (mut worker, mut stdin) = worker();
    stdin.write_all(b"1\nnonsense\n\xff\n2\n3\n").unwrap();
    drop(stdin);
    assert_eq!(worker.exit_code(), 0, "{worker}");
    let log = worker.log();
    for what in ["done: 1", "done: 2", "done: 3", "not a job: \"nonsense\"", "an unreadable job: "]
    {
        assert!(log.contains(what), "{what}: {log}");
    }
}

/// Returns a worker, and the other end of its standard input.
fn worker() -> (Program, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    (Program::start_with_stdin(quiet("worker", ""), OwnedFd::from(there)), here)
}

// embed

/// A job that was answered with 202 is done, by both ways to stop the program.
#[test]
fn embed_does_every_job_it_has_accepted() {
    let (mut program, admin) = embed();
    let mut public = program.connect();
    let mut client = Client::connect(admin);
    assert_eq!(client.get("/livez").response().status, 200);
    assert_eq!(client.get("/readyz").response().status, 200);
    assert_eq!(client.get("/stop").response().status, 404, "not by GET");
    assert_eq!(public.get("/jobs").response().status, 404, "not by GET");
    assert_eq!(public.get("/readyz").response().status, 404, "not in public");
    for n in 1..=5 {
        assert_eq!(public.post("/jobs", &format!("job {n}")).response().status, 202);
    }
    // The stop has begun for requests right after this one, and both servers are in the lame duck.
    let stop = "POST /stop HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    client.send(stop.to_owned() + "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.response().status, 202);
    assert_eq!(client.response().status, 503);
    assert_eq!(program.exit_code(), 0, "{program}");
    let log = program.log();
    for n in 1..=5 {
        assert!(log.contains(&format!("done: \"job {n}\"")), "{log}");
    }
    assert!(log.contains("stopping because 127.0.0.1:"), "{log}");
    assert!(log.contains("at the stop: "), "{log}");
    assert!(log.lines().last().unwrap().contains("drained in "), "{log}");
}

#[test]
fn embed_takes_a_job_that_is_being_sent_at_the_stop() {
    let (mut program, _) = embed();
    let mut client = program.connect();
    client.send("POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nthe ");
    program.signal(Signal::TERM);
    wait_for_close(program.addr);
    let answer = client.send("last").response();
    assert_eq!((answer.status, answer.says_close()), (202, true));
    assert_eq!(program.exit_code(), 0, "{program}");
    let log = program.log();
    assert!(log.contains("done: \"the last\""), "{log}");
    assert!(log.contains("1 request finished, stopped by SIGTERM"), "{log}");
}

#[test]
fn embed_ends_at_once_when_told_twice() {
    let (mut program, _) = embed();
    let mut client = program.connect();
    for _ in 0..100 {
        assert_eq!(client.post("/jobs", "too much").response().status, 202);
    }
    program.signal(Signal::TERM);
    program.wait_for("stopping because of SIGTERM");
    common::pass_repeat_window();
    program.signal(Signal::TERM);
    assert_eq!(program.exit_code(), 1, "{program}");
    let log = program.log();
    assert!(log.contains("forced to end after "), "{log}");
    assert!(log.contains("guard taken at examples/embed.rs:"), "{log}");
}

#[test]
fn embed_says_no_when_there_are_too_many_jobs() {
    let (program, _) = embed();
    let mut client = program.connect();
    // 1000 jobs wait, and two are under way.
    let all = "POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx".repeat(1100);
    let mut sender = client.stream.try_clone().unwrap();
    let sender = thread::spawn(move || sender.write_all(all.as_bytes()).unwrap());
    let statuses: Vec<_> = (0..1100).map(|_| client.response().status).collect();
    sender.join().unwrap();
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    let refused = statuses.iter().filter(|status| **status == 503).count();
    assert!((1000..1100).contains(&accepted), "{accepted}");
    assert_eq!(accepted + refused, 1100);
}

/// Many clients cannot make the program reserve memory for bodies that they only declare.
#[test]
fn embed_survives_what_clients_declare() {
    let plain = Program::example_command("embed", &["127.0.0.1:0", "127.0.0.1:0"]);
    let mut command = Command::new("sh");
    // The address space, in kilobytes, is ten times what the program needs, and half of one of
    // these bodies.
    command.args(["-c", "ulimit -v 500000 && exec \"$0\" \"$@\""]);
    command.arg(plain.get_program()).args(plain.get_args());
    let mut program = Program::start(command);
    let mut clients: Vec<_> = (0..100).map(|_| program.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let length = [1_000_000_000, 1_000_000_000_000, u64::MAX][n % 3];
        client
            .send(format!("POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\nab"));
    }
    // Half of the clients end with a body that was cut short, while the others are still connected.
    for client in &mut clients[..50] {
        client.half_close();
        assert_eq!(client.response().status, 400);
    }
    assert_eq!(program.connect().post("/jobs", "a job").response().status, 202);
    drop(clients);
    program.stop();
}

#[test]
fn embed_serves_nobody_unless_it_can_serve_both() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    for args in [["127.0.0.1:0", &*taken], [&*taken, "127.0.0.1:0"]] {
        fails("embed", &args, "the address is in use by another process; stop that process");
    }
}

/// Returns the program and the address of its admin server.
fn embed() -> (Program, SocketAddr) {
    let mut program = Program::example("embed", &["127.0.0.1:0", "127.0.0.1:0"]);
    let told = program.wait_for("listening on ");
    let admin = told.rsplit(' ').next().unwrap().parse().unwrap();
    (program, admin)
}

// tokio

#[test]
fn tokio_finishes_requests_and_tasks() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut server = Program::example("tokio", &["127.0.0.1:0"]);
        let mut client = server.connect();
        assert_eq!(client.get("/work/1").response().text(), "worked for 1ms\n");
        assert_eq!(client.get("/work/x").response().status, 400);
        assert_eq!(client.get("/later/1").response().status, 404, "not by GET");
        assert_eq!(client.post("/later/1000", "").response().status, 202);
        client.get("/work/500");
        server.signal(signal);
        let answer = client.response();
        assert_eq!(answer.text(), "worked for 500ms\n");
        assert_eq!(client.end(), End::Eof);
        assert_eq!(server.exit_code(), 0, "{server}");
        let log = server.log();
        assert!(log.contains("worked for 1s"), "{log}");
        let name = if signal == Signal::INT { "SIGINT" } else { "SIGTERM" };
        assert!(log.contains(&format!("stopped by {name}")), "{log}");
    }
}

#[test]
fn tokio_ends_at_once_when_told_twice() {
    let mut server = Program::example("tokio", &["127.0.0.1:0"]);
    assert_eq!(server.connect().post("/later/600000", "").response().status, 202);
    server.signal(Signal::INT);
    wait_for_close(server.addr);
    common::pass_repeat_window();
    assert!(server.is_running());
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), 1, "{server}");
    let log = server.log();
    assert!(log.contains("1 cut: guard taken at examples/tokio.rs:"), "{log}");
}

// The tools of the tests above

/// Returns a command for an example without a line about its address. A shell prints the line for
/// which [`Program`] waits, and becomes the example, with `variables` set.
fn quiet(name: &str, variables: &str) -> Command {
    let example = Program::example_command(name, &[]);
    let mut command = Command::new("sh");
    let script = format!("echo 'listening on something' >&2; {variables} exec \"$0\"");
    command.args(["-c", &script]).arg(example.get_program());
    command
}

/// Asserts that the example ends at once, with exit code 1 and one line.
fn fails(name: &str, args: &[&str], told: &str) {
    let output = output(Program::example_command(name, args).stdin(Stdio::null()));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(stderr.contains(told), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
}

/// The example `tls` with a new certificate for `localhost`.
struct TlsExample {
    program: Program,
    dir: Directory,
    trusted: CertificateDer<'static>,
}

impl TlsExample {
    fn start() -> Self {
        Self::start_by(|example| example)
    }

    /// Starts the example by another command.
    fn start_by(by: impl FnOnce(Command) -> Command) -> Self {
        let dir = Directory::new();
        let trusted = certificate(dir.path());
        let mut command = Program::example_command("tls", &["127.0.0.1:0"]);
        command.arg(dir.join("cert.pem")).arg(dir.join("key.pem"));
        Self { program: Program::start(by(command)), dir, trusted }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.program.addr.port())
    }

    /// Returns a command for curl that prints only errors, with a time limit.
    fn curl(&self, path: &str) -> Command {
        let mut curl = self.distrustful_curl(path);
        curl.arg("--cacert").arg(self.dir.join("cert.pem"));
        curl
    }

    fn distrustful_curl(&self, path: &str) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["-q", "-sS", "--noproxy", "*", "-m", &PATIENCE.as_secs().to_string()]);
        curl.args(["--resolve", &format!("localhost:{}:127.0.0.1", self.program.addr.port())]);
        curl.arg(self.url(path));
        curl
    }

    fn connect(&self) -> TlsStream {
        tls_client(&self.trusted, self.program.connect().stream)
    }

    /// Returns a client that has sent a part of its first message, and the rest of that message.
    fn half_connect(&self) -> (TlsStream, Vec<u8>) {
        let mut client = self.connect();
        let mut hello = Vec::new();
        client.conn.write_tls(&mut hello).unwrap();
        let rest = hello.split_off(hello.len() / 2);
        client.sock.write_all(&hello).unwrap();
        (client, rest)
    }

    fn end(&mut self) {
        self.program.stop();
        let log = self.program.log();
        assert!(log.contains("drained in "), "{log}");
    }
}

/// Sends a request, and asserts that the answer is `okay`.
fn okay(client: &mut TlsStream) {
    client.write_all(GET).unwrap();
    let answer = answer(client);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

/// Returns the bytes that come, up to `okay`.
fn answer(from: &mut impl Read) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\nokay\n") {
        let mut byte = [0];
        from.read_exact(&mut byte).unwrap();
        seen.extend(byte);
    }
    text(&seen)
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Returns the bytes until the server's close_notify. An end without one is an error, because an
/// attacker could have caused it.
fn rest(client: &mut TlsStream) -> String {
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    rest
}

/// Chromium with a page, which the test controls.
struct Chromium {
    program: Program,
    devtools: SocketAddr,
    url: String,
    _profile: Directory,
}

impl Chromium {
    fn open(url: &str) -> Self {
        let profile = Directory::new();
        let mut chromium = chromium(&profile);
        chromium.args(["--remote-debugging-port=0", url]);
        let program = Program::start(chromium);
        let log = program.to_string();
        let devtools = log.split("listening on ws://").nth(1).unwrap().split('/').next().unwrap();
        let devtools = devtools.parse().unwrap();
        Self { program, devtools, url: url.to_owned(), _profile: profile }
    }

    /// Returns the title of the page, or an empty text if there is no page yet.
    fn title(&self) -> String {
        let mut client = Client::connect(self.devtools);
        client.send("GET /json/list HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        let pages = client.response().text();
        let url = format!("\"url\": \"{}\"", self.url);
        let page = pages.split('}').find(|page| page.contains(&url)).unwrap_or_default();
        let title = page.split("\"title\": \"").nth(1).unwrap_or_default();
        title.split('"').next().unwrap_or_default().to_owned()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.program.pid()).unwrap()).unwrap();
        let _ = kill_process_group(group, Signal::KILL);
        self.program.wait();
    }
}

/// Starts `command` with pipes as its standard streams. The program has to end by itself.
fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}
