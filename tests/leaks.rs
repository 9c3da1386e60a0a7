//! Bad clients leave nothing behind in the real binary and in its successors.

#![cfg(target_os = "linux")]

mod common;

use std::fs;

use common::handover::{Handover, descriptors_of, over_tcp_and_unix};
use common::{Client, Program, wait_until};

/// The beginnings of clients: garbage, half a message, or a whole one.
const BEGINNINGS: [&str; 9] = [
    "",
    "\r\n",
    "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
    "GET / HTT",
    "GET / HTTP/1.1\r\nHost: x\r\nX",
    "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
    "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf",
    "GET /stream?every=1ms&count=1000000 HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
];

/// The ends of clients.
const ENDINGS: [fn(Client); 3] = [drop, Client::reset, |mut client| {
    client.half_close();
}];

#[test]
fn nothing_is_left_of_bad_clients() {
    let mut server = Program::server(&["--work", "0s"]);
    // Descriptors that the server opens late are open after this.
    server.connect().get("/").response();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    wait_until("the first client's connection is closed", || sockets(&server) == 0);
    let before = descriptors();
    for _ in 0..10 {
        for beginning in BEGINNINGS {
            for ending in ENDINGS {
                let mut client = server.connect();
                client.send(beginning);
                ending(client);
                // Other clients do not notice.
                assert_eq!(server.connect().get("/").response().text(), "okay");
            }
        }
    }
    wait_until("every descriptor is closed", || descriptors() == before);
    server.stop();
    let log = server.log();
    // The count of connections is zero again.
    assert!(log.contains("stopping because of SIGTERM: nothing in flight"), "{log}");
}

/// Clients that have begun with one process and end with the next leave nothing in either: the
/// predecessor ends, and its successor has as many descriptors as before.
#[test]
fn nothing_is_left_of_bad_clients_after_a_restart() {
    over_tcp_and_unix(|over| {
        let mut server = Handover::server(over, &["--work", "0s"]);
        // Descriptors that a successor opens late are open after this.
        server.hand_over(0);
        server.wait_until_accepted();
        let has_no_client = |process| server.connections_of(process).is_empty();
        wait_until("the first client's connection is closed", || has_no_client(server.serving()));
        let before = descriptors_of(server.serving());
        for _ in 0..3 {
            let mut clients = Vec::new();
            for beginning in BEGINNINGS {
                for ending in ENDINGS {
                    let mut client = server.connect();
                    client.send(beginning);
                    clients.push((client, ending));
                }
            }
            server.wait_until_accepted();
            let predecessor = server.restart();
            clients.into_iter().for_each(|(client, ending)| ending(client));
            // The number of connections that have gone depends on the bytes that the predecessor
            // has read.
            server.handed_over(predecessor);
            let successor = server.serving();
            wait_until("every descriptor is closed", || descriptors_of(successor) == before);
            assert_eq!(server.connect().get("/").response().text(), "okay");
            wait_until("that client's connection is closed", || {
                descriptors_of(successor) == before
            });
        }
        let log = server.end();
        // The count of connections is zero again.
        assert!(log.contains("stopping because of SIGTERM: nothing in flight"), "{log}");
    });
}

/// Rule W12: an idle connection owns no buffer. Its first read alone takes 4 KiB.
#[test]
fn an_idle_connection_owns_no_buffer() {
    const ROUND: u64 = 200;
    let mut server = Program::server(&["--work", "0s"]);
    let mut idle = Vec::new();
    // A table of connections may grow in one round, but buffers would grow in every round.
    let least = (0..4).map(|_| {
        let before = private_memory(&server);
        let mut clients: Vec<_> = (0..ROUND).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.get("/").response().text(), "okay");
        }
        idle.extend(clients);
        private_memory(&server).saturating_sub(before) / ROUND
    });
    let least = least.min().unwrap();
    assert!(least < 3 * 1024, "{least} bytes a connection");
    drop(idle);
    server.stop();
}

/// Returns the private memory of `server`, in bytes.
fn private_memory(server: &Program) -> u64 {
    let all = fs::read_to_string(format!("/proc/{}/smaps_rollup", server.pid())).unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Returns the number of connections to clients that `server` has open.
fn sockets(server: &Program) -> usize {
    let port = format!(":{:04X}", server.addr.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let is_ours = |line: &&str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        // The states are ESTABLISHED and CLOSE_WAIT.
        columns[1].ends_with(&port) && ["01", "08"].contains(&columns[3])
    };
    table.lines().skip(1).filter(is_ours).count()
}
