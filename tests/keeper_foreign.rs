//! Programs under the keeper that know nothing of this library: small servers in Python, which take
//! their socket by LISTEN_FDS, and some of which make it hard to see whether they are ready.
//!
//! `keeper_peers.rs` has Go's and Node's servers.

#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::{Client, KeeperProcess, installed, keep, number_behind, wait_until};
use rustix::process::Signal;

#[test]
#[ignore = "needs python3"]
fn no_client_of_a_foreign_program_is_refused() {
    let mut servers = start(&[], "notify('READY=1')", "pass");
    let addr = servers.program.addr;
    let mut processes = BTreeSet::new();
    for _ in 0..3 {
        let old = servers.serving;
        servers.signal(Signal::USR2);
        // Each client gets an answer, from either process.
        wait_until("the successor answers", || {
            let answered = answering(addr);
            processes.insert(answered.clone());
            answered != old.to_string()
        });
        servers.wait_for_successor();
        assert_eq!(servers.exit_code(old), 0);
    }
    assert_eq!(processes.len(), 4);
    end(servers);
}

/// K7: an answer counts from any server. One server reads once and answers, one reads a whole head,
/// and one gets a connection only when there is something to read.
#[test]
#[ignore = "needs python3"]
fn any_kind_of_server_can_be_asked() {
    let addr = common::free_port();
    let url = format!("http://{addr}/");
    for (begin, read) in [
        ("pass", "pass"),
        ("pass", "whole(client)"),
        ("listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)", "whole(client)"),
    ] {
        let listen = addr.to_string();
        let flags = ["--listen", &listen, "--ready", &url];
        let mut servers = KeeperProcess::of(keep(&flags, &server(begin, read)));
        for _ in 0..2 {
            let old = servers.restart();
            assert_eq!(servers.exit_code(old), 0);
            assert_eq!(answering(addr), servers.serving.to_string());
        }
        end(servers);
    }
}

/// K7: READY=1 counts at once, although the time of the settings is not over.
#[test]
#[ignore = "needs python3"]
fn a_word_comes_before_the_time() {
    let mut servers = start(&["--ready", "29s"], "notify('READY=1')", "pass");
    let told = servers.program.line_where("ready", |line| line.contains(" is ready after "));
    assert!(number_behind(&told, " is ready after ") < 29, "{told}");
    end(servers);
}

/// Every process may send to an abstract name.
#[test]
#[ignore = "needs root, to become another user, and python3"]
fn another_users_word_does_not_count() {
    let other = "
if os.fork() == 0:
    os.setuid(65534)
    notify('READY=1')
    os._exit(0)
os.wait()";
    let own = "
os.setuid(65534)
notify('READY=1')";
    let mut heard = start(&[], own, "pass");
    heard.signal(Signal::TERM);
    assert_eq!(heard.program.exit_code(), 0);

    let flags = ["--listen", "127.0.0.1:0", "--patience", "1s"];
    let output = common::output(&mut keep(&flags, &server(other, "pass")));
    assert_eq!(output.status.code(), Some(1));
    let log = common::text(&output.stderr);
    assert!(log.contains(" was not ready within 1s "), "{log}");
}

// The parts of the tests above.

/// Returns a command for a server that answers each connection with its process id. `begin` is its
/// code after it has its socket, and `read` the code that reads the rest of a head.
fn server(begin: &str, read: &str) -> Command {
    let script = format!(
        r"
import os, signal, socket, sys
assert os.environ['LISTEN_PID'] == str(os.getpid())
assert os.environ['LISTEN_FDS'] == '1'
assert os.get_blocking(3)
listener = socket.socket(fileno=3)
stopping = waiting = False
def stop(*_):
    global stopping
    stopping = True
    if waiting:
        os._exit(0)
signal.signal(signal.SIGTERM, stop)
# A signal right before `accept` is heard only when the next one interrupts that.
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
def notify(text):
    name = os.environ['NOTIFY_SOCKET'].replace('@', '\0', 1)
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(text.encode(), name)
def whole(client):
    head = first
    while b'\r\n\r\n' not in head:
        more = client.recv(4096)
        if not more:
            return
        head += more
print('listening on %s:%s' % listener.getsockname(), file=sys.stderr, flush=True)
{begin}
while not stopping:
    waiting = True
    client, _ = listener.accept()
    waiting = False
    try:
        first = client.recv(4096)
        {read}
        body = b'%d' % os.getpid()
        client.sendall(b'HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
    except OSError:
        pass
    client.close()
# Python's own end would set back the handlers first.
os._exit(0)
"
    );
    let mut python = installed("python3", "python3");
    python.arg("-c").arg(script);
    python
}

/// Starts a keeper, and waits until its first child is ready.
fn start(flags: &[&str], begin: &str, read: &str) -> KeeperProcess {
    let flags = [&["--listen", "127.0.0.1:0"], flags].concat();
    KeeperProcess::of(keep(&flags, &server(begin, read)))
}

/// Returns the process that answers.
fn answering(addr: std::net::SocketAddr) -> String {
    Client::connect(addr).get("/").response().text()
}

fn end(mut servers: KeeperProcess) {
    servers.signal(Signal::TERM);
    assert_eq!(servers.program.exit_code(), 0, "{}", servers.program);
}
