//! Restarts that no client notices. Each kind of connection goes to the successor, over TCP and
//! over Unix sockets, and stays the same connection.
//!
//! No test connects anew, because the client that asked the predecessor asks the successor. A
//! connection that cannot go (TLS, another protocol) ends as in any stop. `handover_faults.rs` has
//! the restarts with faults.

#![cfg(target_os = "linux")]

mod common;

use std::fmt::Display;
use std::io::Write;
use std::iter;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::handover::{
    self, BIG_BODY, Handover, IDLE_TIMEOUT, SocketKind, descriptors_of, number_before,
    over_tcp_and_unix,
};
use common::{
    Client, Directory, Duplex, End, KeeperProcess, PATIENCE, ProcessId, Program, Received,
    certificate, pattern, small_socket, tls_client, wait_until,
};
use futures_rustls::TlsAcceptor;
use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer};
use futures_rustls::rustls::ServerConfig;
use rustix::net::sockopt::socket_peercred;
use rustix::process::Signal;
use smol_graceful::{Address, Listener};
use socket2::SockRef;

const HEAD: &str = "GET /livez HTTP/1.1\r\nHost: test\r\n\r\n";

// Between two requests.

/// Idle connections go from one process to the next, ten times in a row.
#[test]
fn idle_connections_outlive_ten_restarts() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut clients: Vec<_> = (0..3).map(|_| server.idle()).collect();
        let mut at_once = 0;
        for _ in 0..10 {
            let predecessor = server.restart();
            let told = server.line_of(predecessor, "handed over ");
            at_once += usize::from(told.contains("] handed over 3 connections in "));
            server.assert_handed_over(predecessor, 3);
            let successor = server.serving();
            server.line_of(successor, "took over 3 connections of the predecessor");
            for client in &mut clients {
                assert_kept(&client.get("/livez").response(), "live\n");
            }
        }
        // On a busy machine, some connections go only after the line of the log.
        assert!(at_once > 0);
        server.end();
    });
}

/// Connections whose clients have not sent a byte yet go to the successor, too.
#[test]
fn silent_connections_go_to_the_successor() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
        server.wait_until_accepted();
        server.hand_over(3);
        server.hand_over(3);
        for client in &mut clients {
            assert_kept(&client.get("/livez").response(), "live\n");
        }
        server.end();
    });
}

/// An HTTP/1.0 connection with keep-alive goes to the successor, both between requests and during
/// one.
#[test]
fn http_1_0_connections_go_to_the_successor() {
    let keep_alive = |path| format!("GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let assert_kept_alive = |response: &Received, body: &dyn Display| {
        assert_kept(response, body);
        assert_eq!(response.header("connection").unwrap(), "keep-alive");
    };
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut clients = [server.connect(), server.connect()];
        for client in &mut clients {
            let response = client.send(keep_alive("/livez")).response();
            assert_kept_alive(&response, &"live\n");
        }
        clients[0].send(keep_alive("/wait/restart"));
        let first = server.serving();
        server.line_of(first, "waiting for restart");
        let predecessor = server.restart();
        server.release("restart");
        assert_kept_alive(&clients[0].response(), &predecessor);
        server.assert_handed_over(predecessor, 2);
        for client in &mut clients {
            let response = client.send(keep_alive("/pid")).response();
            assert_kept_alive(&response, &server.serving());
        }
        server.end();
    });
}

/// H8: the idle time goes along, because otherwise no idle connection would reach its limit with
/// frequent restarts.
#[test]
fn idle_connections_end_in_time_although_restarts_come_between() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held_with(over, |command| {
            command.env(IDLE_TIMEOUT, "4");
        });
        let begin = Instant::now();
        let mut client = server.idle();
        let mut handed_over = 0;
        // No process lives for as long as the limit, but each sweeps its connections once a second.
        client.stream.set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
        let end = loop {
            match client.try_fill() {
                Ok(is_filled) => assert!(!is_filled, "the server has sent something"),
                Err(end) => break end,
            }
            assert!(begin.elapsed() < PATIENCE, "{}", server.servers.program);
            let predecessor = server.restart();
            handed_over += server.handed_over(predecessor);
        };
        assert_eq!(end, End::Eof);
        assert!(begin.elapsed() >= Duration::from_secs(4), "{:?}", begin.elapsed());
        assert!(handed_over > 0);
        server.end();
    });
}

/// The time of a long request is not idle time.
#[test]
fn idle_time_begins_after_the_last_response() {
    const LIMIT: Duration = Duration::from_secs(1);
    over_tcp_and_unix(|over| {
        for attempt in 0..5 {
            let mut server = Handover::held_with(over, |command| {
                command.env(IDLE_TIMEOUT, "1");
            });
            let mut client = server.in_flight("/wait/restart");
            let begin = Instant::now();
            let predecessor = server.restart();
            // The request lasts for longer than a connection may be idle.
            thread::sleep((LIMIT + LIMIT / 4).saturating_sub(begin.elapsed()));
            server.release("restart");
            let answered = Instant::now();
            assert_kept(&client.response(), predecessor);
            server.assert_handed_over(predecessor, 1);
            // This gives the successor the time for a sweep over idle connections, of which no
            // event shows the end.
            thread::sleep(LIMIT / 3);
            client.get("/pid");
            // On a busy machine, the connection may have been idle for too long by now.
            if answered.elapsed() < LIMIT {
                assert_kept(&client.response(), server.serving());
                server.end();
                return;
            }
            server.end();
            assert!(attempt < 4, "the machine is too busy");
        }
    });
}

// A part of a request.

/// H8: the bytes of half a head go along, from any cut.
#[test]
fn half_a_head_is_completed_at_the_successor() {
    assert_completed(HEAD, 1..HEAD.len());
}

/// Cuts the request text `whole` at each of these places, on a new connection and on one that has
/// served a request. The predecessor gets the first part, and the successor the second.
fn assert_completed(whole: &str, cuts: Range<usize>) {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut halves = Vec::new();
        for cut in cuts.clone() {
            for mut client in [server.connect(), server.idle()] {
                client.send(&whole[..cut]);
                halves.push((client, &whole[cut..]));
            }
        }
        server.wait_until_accepted();
        server.hand_over(halves.len() as u64);
        for (client, rest) in &mut halves {
            assert_kept(&client.send(rest).response(), "live\n");
        }
        server.end();
    });
}

/// The bytes that were read ahead do not fit into one message to the successor.
#[test]
fn many_long_halves_go_to_the_successor() {
    let field = format!("X-Long: {}\r\n", "x".repeat(4000));
    let head = format!("GET /livez HTTP/1.1\r\nHost: test\r\n{field}{field}{field}\r\n");
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut clients: Vec<_> = (0..30).map(|_| server.idle()).collect();
        for client in &mut clients {
            client.send(&head[..head.len() - 1]);
        }
        server.wait_until_accepted();
        server.hand_over(30);
        for client in &mut clients {
            assert_kept(&client.send("\n").response(), "live\n");
        }
        server.end();
    });
}

/// A head may arrive a byte at a time, each in another process.
#[test]
fn a_head_may_take_ten_processes() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut client = server.idle();
        for at in 0..10 {
            client.send(&HEAD[at..=at]);
            server.hand_over(1);
        }
        assert_kept(&client.send(&HEAD[10..]).response(), "live\n");
        server.end();
    });
}

/// An empty line in front of a request belongs to the request (RFC 9112 section 2.2), also across
/// two processes.
#[test]
fn an_empty_line_is_followed_by_a_head_at_the_successor() {
    assert_completed(&("\r\n\r\n".to_owned() + HEAD), 1..6);
}

/// A body that has begun is read to its end by the process that has begun it. Then the connection
/// goes.
#[test]
fn half_a_body_is_completed_at_the_predecessor() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut clients = [server.idle(), server.idle()];
        let post = "POST /post/length HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nfirst";
        clients[0].send(post);
        let post = "POST /post/chunks HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n\
            5\r\nfirst\r\n4\r\nha";
        clients[1].send(post);
        let predecessor = server.serving();
        for path in ["/post/length", "/post/chunks"] {
            server.line_of(predecessor, &format!("handled {path}"));
        }
        server.restart();
        for client in &clients {
            client.assert_silent();
        }
        assert_kept(&clients[0].send(" half").response(), "/post/length first half");
        assert_kept(&clients[1].send("lf\r\n0\r\n\r\n").response(), "/post/chunks firsthalf");
        server.assert_handed_over(predecessor, 2);
        assert_served_by(&mut clients, server.serving());
        server.end();
    });
}

/// A client that waits for `100 Continue` gets it once, from the process that has the head.
#[test]
fn a_client_that_expects_100_continue_is_served_across_the_restart() {
    let head =
        "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let (mut continued, mut half) = (server.idle(), server.idle());
        half.send(&head[..head.len() - 1]);
        assert_eq!(continued.send(head).response().status, 100);
        let predecessor = server.restart();
        assert_eq!(half.send(&head[head.len() - 1..]).response().status, 100);
        for client in [&mut half, &mut continued] {
            assert_kept(&client.send("hello").response(), "hello");
        }
        server.assert_handed_over(predecessor, 2);
        for client in [&mut half, &mut continued] {
            assert_kept(&client.get("/livez").response(), "live\n");
        }
        server.end();
    });
}

// A request under way.

/// H5: a handler ends in its process, its response does not say `close`, and then the connection
/// goes to the successor.
#[test]
fn a_handler_ends_in_the_predecessor() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut client = server.in_flight("/wait/restart");
        let predecessor = server.restart();
        server.connect().get("/livez").response();
        assert!(predecessor.is_running());
        server.release("restart");
        assert_kept(&client.response(), predecessor);
        server.assert_handed_over(predecessor, 1);
        assert_served_by([&mut client], server.serving());
        server.end();
    });
}

/// If a client asks for a close, the process that serves the request closes the connection.
#[test]
fn a_connection_that_the_client_closes_does_not_go() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut client = server.idle();
        client.send("GET /wait/restart HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        let predecessor = server.serving();
        server.line_of(predecessor, "waiting for restart");
        server.restart();
        server.release("restart");
        let response = client.response();
        assert_eq!((response.text(), response.says_close()), (predecessor.to_string(), true));
        assert_eq!(client.end(), End::Eof);
        server.assert_handed_over(predecessor, 0);
        server.end();
    });
}

/// A half-closed client gets all of its answers, from both processes.
#[test]
fn a_half_closed_client_gets_its_answers() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut pipelined = server.in_flight("/wait/restart");
        pipelined.get("/pid").half_close();
        let mut single = server.in_flight("/wait/restart");
        single.half_close();
        let predecessor = server.restart();
        server.release("restart");
        assert_eq!(pipelined.response().text(), predecessor.to_string());
        assert_eq!(single.response().text(), predecessor.to_string());
        // The predecessor has not begun the second request.
        assert_eq!(pipelined.response().text(), server.serving().to_string());
        for client in [&mut pipelined, &mut single] {
            assert_eq!(client.end(), End::Eof);
        }
        // The other connection has no request left, so it may end in either process.
        assert!((1..=2).contains(&server.handed_over(predecessor)), "{}", server.servers.program);
        server.end();
    });
}

/// W1: requests that were read ahead go along, in order.
#[test]
fn pipelined_requests_are_answered_in_order() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut client = server.idle();
        let mut all = "GET /wait/restart HTTP/1.1\r\nHost: test\r\n\r\n".to_owned();
        (1..52).for_each(|n| all += &post("/post", &n.to_string()));
        client.send(all);
        let predecessor = server.serving();
        server.line_of(predecessor, "waiting for restart");
        server.restart();
        server.release("restart");
        assert_kept(&client.response(), predecessor);
        for n in 1..52 {
            assert_kept(&client.response(), format!("/post {n}"));
        }
        server.assert_handed_over(predecessor, 1);
        assert_served_by([&mut client], server.serving());
        let log = server.end();
        // A busy connection goes after its exchange, so the successor has handled the POSTs.
        assert_eq!(handled_by(&log, predecessor), 0, "{log}");
        assert_eq!(log.matches("handled /post").count(), 51, "{log}");
    });
}

/// Pipelined requests are answered in order even if their bytes do not fit into one message to the
/// successor.
#[test]
fn a_long_pipeline_is_answered_in_order() {
    const COUNT: usize = 300;
    let body = "x".repeat(1000);
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut client = server.in_flight("/wait/restart");
        let mut writer = client.stream.try_clone().unwrap();
        thread::scope(|scope| {
            // The kernel does not take in all of this before the server reads.
            scope.spawn(|| {
                for n in 0..COUNT {
                    writer.write_all(post(&format!("/post/{n}"), &body).as_bytes()).unwrap();
                }
            });
            let predecessor = server.restart();
            server.release("restart");
            assert_kept(&client.response(), predecessor);
            for n in 0..COUNT {
                assert_kept(&client.response(), format!("/post/{n} {body}"));
            }
            server.assert_handed_over(predecessor, 1);
        });
        assert_served_by([&mut client], server.serving());
        let log = server.end();
        assert_eq!(log.matches("handled /post/").count(), COUNT, "{log}");
    });
}

/// A client that never waits for an answer moves along, too, and loses none.
#[test]
fn an_endless_pipeline_goes_through_five_restarts() {
    /// More requests than the connection can wait for an answer to.
    const AHEAD: usize = 1000;
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let mut client = server.idle();
        let mut writer = client.stream.try_clone().unwrap();
        let (answered, is_last) = (AtomicUsize::new(0), AtomicBool::new(false));
        let write = || {
            let deadline = Instant::now() + 2 * PATIENCE;
            for n in 0.. {
                wait_until("answers", || n < answered.load(Ordering::Relaxed) + AHEAD);
                // If the test fails, `is_last` stays `false`, and the deadline ends the loop.
                let is_last = is_last.load(Ordering::Relaxed) || Instant::now() > deadline;
                let body = if is_last { "last".to_owned() } else { n.to_string() };
                writer.write_all(post("/echo", &body).as_bytes()).unwrap();
                if is_last {
                    return n;
                }
            }
            0
        };
        let read = |client: &mut Client| {
            for n in 0.. {
                let response = client.response();
                if response.text() == "last" {
                    return n;
                }
                assert_kept(&response, n);
                answered.store(n + 1, Ordering::Relaxed);
            }
            0
        };
        thread::scope(|scope| {
            let written = scope.spawn(write);
            let read = scope.spawn(|| read(&mut client));
            for restarts in 1..=5 {
                server.hand_over(1);
                let before = answered.load(Ordering::Relaxed);
                wait_until("answers go on", || {
                    read.is_finished() || answered.load(Ordering::Relaxed) > before + 100
                });
                assert!(!read.is_finished(), "after {restarts} restarts");
            }
            is_last.store(true, Ordering::Relaxed);
            assert_eq!(written.join().unwrap(), read.join().unwrap());
        });
        assert_kept(&client.get("/livez").response(), "live\n");
        server.end();
    });
}

/// POSTs on idle connections before, during and after the hand-over: each is handled exactly once.
#[test]
fn posts_during_the_hand_over_are_handled_once() {
    const THREADS: usize = 10;
    const EACH: usize = 50;
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut clients: Vec<_> = (0..THREADS * EACH).map(|_| server.idle()).collect();
        let has_handed_over = AtomicBool::new(false);
        let (begin, begun) = mpsc::channel();
        let send_all = |first: usize, clients: &mut [Client]| {
            for (n, client) in clients.iter_mut().enumerate() {
                // The first POSTs belong to the predecessor, and the last ones to the successor.
                match n {
                    5 => begin.send(()).unwrap(),
                    45 => wait_until("the successor", || has_handed_over.load(Ordering::Relaxed)),
                    _ => {}
                }
                client.post(&format!("/post/{}", first + n), "");
                // The forty POSTs between those take about as long as a restart. No event shows the
                // moment of the hand-over, and the client must not know it.
                thread::sleep(Duration::from_millis(2));
            }
            for (n, client) in clients.iter_mut().enumerate() {
                assert_kept(&client.response(), format!("/post/{} ", first + n));
            }
        };
        let predecessor = thread::scope(|scope| {
            for (number, clients) in clients.chunks_mut(EACH).enumerate() {
                scope.spawn(move || send_all(number * EACH, clients));
            }
            (0..THREADS).for_each(|_| begun.recv_timeout(PATIENCE).unwrap());
            let predecessor = server.restart();
            server.assert_handed_over(predecessor, (THREADS * EACH) as u64);
            has_handed_over.store(true, Ordering::Relaxed);
            predecessor
        });
        let successor = server.serving();
        assert_served_by(&mut clients, successor);
        let log = server.end();
        for n in 0..THREADS * EACH {
            let handled = format!("handled /post/{n}");
            let times = log.lines().filter(|line| line.ends_with(&handled)).count();
            assert_eq!(times, 1, "{n}");
        }
        let by_each = [predecessor, successor].map(|process| handled_by(&log, process));
        assert!(by_each.into_iter().all(|count| count >= 5 * THREADS), "{by_each:?}");
        assert_eq!(by_each.iter().sum::<usize>(), THREADS * EACH);
    });
}

/// A slow reader gets the whole response from the process that has begun it. Then the connection
/// goes.
#[test]
fn a_slow_reader_gets_its_response_from_the_predecessor() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut client = match server.address {
            Address::Tcp(addr) => Client::from(small_socket(addr, 64 * 1024)),
            _ => server.connect(),
        };
        client.get("/big").get("/pid").fill().unwrap();
        let predecessor = server.restart();
        server.connect().get("/livez").response();
        assert!(predecessor.is_running());
        assert!(client.buffered().len() < BIG_BODY / 2);
        let response = client.response();
        assert!(response.body == pattern(BIG_BODY), "{} bytes", response.body.len());
        assert!(!response.says_close());
        // The second request goes along.
        assert_kept(&client.response(), server.serving());
        server.assert_handed_over(predecessor, 1);
        assert_served_by([&mut client], server.serving());
        server.end();
    });
}

/// A stream ends properly at the restart, and its connection goes after the others.
#[test]
fn a_stream_ends_and_its_connection_goes() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let (mut client, mut idle) = (server.idle(), server.idle());
        client.get("/stream?every=5ms&count=1000000").fill().unwrap();
        let predecessor = server.restart();
        // A whole response shows that the stream has had its last chunk.
        let response = client.response();
        assert!(response.text().ends_with('\n') && !response.says_close(), "{response:?}");
        server.assert_handed_over(predecessor, 2);
        for client in [&mut client, &mut idle] {
            assert_kept(&client.get("/livez").response(), "live\n");
        }
        server.end();
    });
}

/// Restarts that come faster than a request ends: each process leaves as soon as its connections
/// have gone, and the connection of the long request goes to the last one.
#[test]
fn a_long_request_outlives_three_restarts() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut long = server.in_flight("/wait/restarts");
        let mut idle = server.idle();
        let [first, second, third] = [(); 3].map(|()| server.take_over());
        for process in [second, third] {
            assert!(server.handed_over(process) <= 1);
        }
        assert!(first.is_running());
        assert_served_by([&mut idle], server.serving());
        server.release("restarts");
        assert_kept(&long.response(), first);
        server.assert_handed_over(first, 2);
        assert_served_by([&mut long, &mut idle], server.serving());
        server.end();
    });
}

/// A restart that is asked for while another one is under way follows it: both successors take
/// over, one after the other, and the connection goes twice.
#[test]
fn a_restart_in_the_middle_of_another_follows_it() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut client = server.idle();
        let first = server.serving();
        let second = server.ready_successor("");
        // The keeper is suspended, so both signals count as one, and READY came before them.
        server.servers.signal(Signal::USR2);
        server.servers.signal(Signal::USR2);
        assert_eq!(server.resume_keeper(second), first);
        server.line_of(server.keeper(), "keeper: a restart is under way; another follows");
        server.wait_for_successor();
        for process in [first, second] {
            assert!(server.handed_over(process) <= 1);
        }
        assert_served_by([&mut client], server.serving());
        let log = server.end();
        assert_eq!(log.matches("keeper: started process ").count(), 3, "{log}");
    });
}

/// H7: requests in three processes end in any order, and each connection goes to the fourth
/// process, through the passages that were passed on.
#[test]
fn requests_of_three_processes_end_at_the_fourth() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut clients = Vec::new();
        for name in ["first", "second", "third"] {
            let client = server.in_flight(&format!("/wait/{name}"));
            clients.push((client, name, server.restart()));
        }
        // The second process ends first, although it was the link between the first and the third.
        for at in [1, 0, 2] {
            let (client, name, process) = &mut clients[at];
            server.release(name);
            assert_kept(&client.response(), *process);
            server.assert_handed_over(*process, 1);
            assert_served_by([client], server.serving());
        }
        server.end();
    });
}

/// A predecessor that hands over still answers that it is ready, because the client asks about the
/// service, which goes on.
#[test]
fn a_predecessor_that_hands_over_is_ready() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        let (mut idle, mut asks) = (server.idle(), server.idle());
        asks.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel");
        // `fill` waits for the response, which the echo begins when it has a part of the body.
        asks.fill().unwrap();
        let predecessor = server.suspend_successor();
        server.wait_for_batch();
        assert_kept(&asks.send("lo").response(), "hello");
        assert_kept(&asks.get("/readyz").response(), "ready\n");
        server.serving().signal(Signal::CONT);
        server.assert_handed_over(predecessor, 2);
        for client in [&mut asks, &mut idle] {
            assert_kept(&client.get("/readyz").response(), "ready\n");
        }
        server.end();
    });
}

// A connection stays the same.

/// The socket stays the same, with its options, and so does the peer.
#[test]
fn the_socket_and_its_peer_stay_the_same() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut client = server.connect();
        let peer = match over {
            SocketKind::Tcp => client.stream.local_addr().unwrap().to_string(),
            SocketKind::Unix => "unix".to_owned(),
        };
        assert_eq!(client.get("/peer").response().text(), peer);
        let options = |server: &Handover| {
            let sockets = server.copies_of(server.serving());
            let [socket] = &sockets[..] else { panic!("{} sockets", sockets.len()) };
            if over == SocketKind::Unix {
                let peer = socket_peercred(socket).unwrap();
                return (format!("{:?}", (peer.pid, peer.uid, peer.gid)), false);
            }
            let socket = SockRef::from(socket);
            let keepalive = (socket.keepalive().unwrap(), socket.tcp_keepalive_time().unwrap());
            let others = (socket.tcp_keepalive_interval(), socket.tcp_keepalive_retries());
            let all = format!("{keepalive:?} {others:?} {:?}", socket.linger());
            (all, socket.tcp_nodelay().unwrap())
        };
        let inode = server.connections_of(server.serving());
        let before = options(&server);
        server.hand_over(1);
        server.hand_over(1);
        assert_eq!(server.connections_of(server.serving()), inode);
        assert_eq!(options(&server), before);
        if over == SocketKind::Unix {
            assert!(before.0.contains(&format!("({})", ProcessId::own())), "{before:?}");
        } else {
            assert!(before.0.starts_with("(true, 60s)") && before.1, "{before:?}");
        }
        assert_kept(&client.get("/peer").response(), peer);
        server.end();
    });
}

/// A close by the successor reaches the client, although the predecessor, which has had the same
/// socket, is still there.
#[test]
fn a_close_by_the_successor_reaches_the_client() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let mut long = server.in_flight("/wait/restart");
        let mut client = server.idle();
        let predecessor = server.restart();
        let close = "GET /pid HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        wait_until("the idle connection has gone", || {
            server.connections_of(predecessor).len() == 1
        });
        assert_eq!(client.send(close).response().text(), server.serving().to_string());
        assert_eq!(client.end(), End::Eof);
        assert!(predecessor.is_running());
        server.release("restart");
        assert_kept(&long.response(), predecessor);
        server.assert_handed_over(predecessor, 2);
        server.end();
    });
}

/// A client that ends its connection on the way, by a reset or a FIN, does not affect other
/// connections.
#[test]
fn an_end_on_the_way_costs_nobody_else() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::held(over);
        let [mut kept, mut reset, mut finished] = [server.idle(), server.idle(), server.idle()];
        // A Unix socket with unread bytes is reset, too.
        reset.get("/pid");
        assert!(reset.stream.peek(&mut [0]).unwrap() > 0);
        let predecessor = server.suspend_batch(3);
        kept.get("/pid");
        reset.reset();
        finished.get("/pid").half_close();
        let successor = server.serving();
        successor.signal(Signal::CONT);
        assert_kept(&kept.response(), successor);
        assert_eq!(finished.response().text(), successor.to_string());
        assert_eq!(finished.end(), End::Eof);
        server.assert_handed_over(predecessor, 3);
        wait_until("the others are closed", || server.connections_of(successor).len() == 1);
        assert_served_by([&mut kept], successor);
        let log = server.end();
        assert!(!log.contains("ERROR"), "{log}");
    });
}

/// After the clients have gone, the successor has no more descriptors than without the hand-over.
#[test]
fn no_descriptor_is_left() {
    const CLIENTS: usize = 50;
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &[]);
        server.hand_over(0);
        server.wait_until_accepted();
        let served = |server: &Handover| {
            wait_until("nobody is connected", || {
                server.connections_of(server.serving()).is_empty()
            });
            descriptors_of(server.serving())
        };
        let before = served(&server);
        for _ in 0..3 {
            let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.idle()).collect();
            server.hand_over(CLIENTS as u64);
            for client in &mut clients {
                assert_kept(&client.get("/livez").response(), "live\n");
            }
            let successor = server.serving();
            wait_until("only connections have come along", || {
                descriptors_of(successor) == before + CLIENTS
            });
            drop(clients);
            wait_until("every descriptor is closed", || descriptors_of(successor) == before);
        }
        server.end();
    });
}

// Connections that do not go, beside those that do.

/// The handshake and the first message of RFC 6455, as a client sends them.
const WEBSOCKET: &str = "GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const MASKED_HELLO: &[u8] = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
const HELLO: &[u8] = b"\x81\x05Hello";

/// A Close with the code 1001 (going away), from the server, and the client's answer.
const AWAY: &[u8] = b"\x88\x0a\x03\xe9stopping";
const MASKED_AWAY: &[u8] = b"\x88\x82\0\0\0\0\x03\xe9";

/// A WebSocket gets a Close, and a connection beside it goes to the successor.
#[test]
fn a_websocket_takes_leave_beside_a_connection_that_goes() {
    over_tcp_and_unix(|over| {
        let directory = Directory::new();
        let (mut servers, address) = example("websocket", over, &directory, &[]);
        let mut plain = Client::connect_to(&address);
        let assert_refused = |plain: &mut Client| {
            let response = plain.get("/").response();
            assert_eq!((response.status, response.says_close()), (426, false));
        };
        assert_refused(&mut plain);
        let mut socket = Client::connect_to(&address);
        assert_eq!(socket.send(WEBSOCKET).response().status, 101);
        assert_eq!(socket.send(MASKED_HELLO).take(HELLO.len()).unwrap(), HELLO);
        let predecessor = servers.restart();
        assert_eq!(socket.take(AWAY.len()).unwrap(), AWAY);
        assert_eq!(socket.send(MASKED_AWAY).end(), End::Eof);
        assert_handed_over(&mut servers, predecessor, 1);
        assert_refused(&mut plain);
        servers.end();
    });
}

/// The connections of the example `tls` end as in any stop, and the next ones are the successor's.
#[test]
fn tls_connections_end_at_a_restart() {
    over_tcp_and_unix(|over| {
        let directory = Directory::new();
        let trusted = certificate(directory.path());
        let files = ["cert.pem", "key.pem"].map(|name| directory.join(name));
        let files = files.each_ref().map(|file| file.to_str().unwrap());
        let (mut servers, address) = example("tls", over, &directory, &files);
        let connect = || Client::over(tls_client(&trusted, Client::connect_to(&address).stream));
        let (mut idle, mut half) = (connect(), connect());
        assert_kept(&idle.get("/").response(), "okay\n");
        assert_kept(&half.get("/").response(), "okay\n");
        half.send("GET / HTTP/1.1\r\nHost: x\r\n");
        assert_kept(&connect().get("/").response(), "okay\n");
        let predecessor = servers.restart();
        assert_eq!(idle.end(), End::Eof);
        let response = half.send("\r\n").response();
        assert_eq!((&*response.text(), response.says_close()), ("okay\n", true));
        assert_eq!(half.end(), End::Eof);
        assert_handed_over(&mut servers, predecessor, 0);
        assert_kept(&connect().get("/").response(), "okay\n");
        servers.end();
    });
}

/// H6: plain connections go to the successor beside TLS connections, which end.
#[test]
fn plain_connections_go_beside_tls() {
    over_tcp_and_unix(|over| {
        let certificates = Directory::new();
        let trusted = certificate(certificates.path());
        let mut server = Handover::held_with(over, |command| {
            command.env(CERTIFICATES, certificates.path());
        });
        let tls = server.directory.socket("tls");
        let connect = || Client::over(tls_client(&trusted, Client::connect_to(&tls).stream));
        let mut plain = [server.idle(), server.idle()];
        let mut encrypted = [connect(), connect(), connect()];
        let first = server.serving();
        assert_served_by(&mut encrypted, first);
        let predecessor = server.restart();
        let told = server.line_of(predecessor, "handed over ");
        // On a busy machine, the TLS connections may have ended by then.
        let is_silent = told.ends_with(" s");
        assert!(is_silent || told.contains("3 of a listener with a wrapper (TLS)"), "{told}");
        for client in &mut encrypted {
            assert_eq!(client.end(), End::Eof);
        }
        server.assert_handed_over(predecessor, 2);
        assert_served_by(&mut plain, server.serving());
        assert_served_by([&mut connect()], server.serving());
        server.end();
    });
}

// The parts of the tests above.

/// Asserts that a response has this body, and that the connection goes on after it.
#[track_caller]
fn assert_kept(response: &Received, body: impl Display) {
    let got = (response.status, response.text(), response.says_close());
    assert_eq!(got, (200, body.to_string(), false));
}

/// Asserts that each client's next request is answered by this process.
#[track_caller]
fn assert_served_by<'a, S: Duplex + 'a>(
    clients: impl IntoIterator<Item = &'a mut Client<S>>,
    process: ProcessId,
) {
    for client in clients {
        assert_kept(&client.get("/pid").response(), process);
    }
}

/// Returns a POST with this body.
fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Returns the number of POSTs that a process has handled.
fn handled_by(log: &str, process: ProcessId) -> usize {
    let pid = process.to_string();
    let own = log.lines().filter(|line| line.split(' ').nth(1) == Some(&pid));
    own.filter(|line| line.contains("handled /post")).count()
}

/// Starts a keeper of an example whose first argument is its address. The example binds its socket
/// itself.
fn example(
    name: &str,
    over: SocketKind,
    directory: &Directory,
    more: &[&str],
) -> (KeeperProcess, Address) {
    let listen = match over {
        SocketKind::Tcp => "127.0.0.1:0".to_owned(),
        SocketKind::Unix => directory.socket("socket").to_string(),
    };
    let mut command = Program::example_command(name, &[&listen]);
    command.args(more);
    let servers = KeeperProcess::start(&command);
    let address = match over {
        SocketKind::Tcp => Address::Tcp(servers.program.addr),
        SocketKind::Unix => directory.socket("socket"),
    };
    (servers, address)
}

/// Waits until the predecessor, the only one that stops, has ended with exit code 0 and has handed
/// over this many connections. The examples' logs do not name the process of a line.
fn assert_handed_over(servers: &mut KeeperProcess, predecessor: ProcessId, count: u64) {
    assert_eq!(servers.exit_code(predecessor), 0, "{}", servers.program);
    let is_outcome = |line: &str| line.contains("drained in ");
    let outcome = servers.program.line_where("outcome", is_outcome);
    assert_eq!(number_before(&outcome, " connection"), count, "{}", servers.program);
}

/// The variable of the program's environment with the directory of the TLS listener's certificate.
const CERTIFICATES: &str = "HANDOVER_CERTIFICATES";

/// Serves if another test has started this process for that, and over TLS, too, if the environment
/// says so.
#[test]
fn the_program_of_these_tests() {
    handover::serve_with(|directory| {
        let Some(certificates) = std::env::var_os(CERTIFICATES) else { return Vec::new() };
        let acceptor = acceptor(Path::new(&certificates));
        let listener = Listener::bind(Address::Unix(directory.join("tls"))).unwrap();
        vec![listener.wrap(move |connection| acceptor.accept(connection))]
    });
}

fn acceptor(certificates: &Path) -> TlsAcceptor {
    let chain = CertificateDer::from_pem_file(certificates.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificates.join("key.pem")).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(iter::once(chain).collect(), key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
