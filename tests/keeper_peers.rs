//! Other servers under the keeper: Go's net/http and Node's http, restarted ten times.
//!
//! The keeper holds the socket and starts the new process first, so no client is refused, and each
//! request on a new connection is answered. Open connections close, because only smol-graceful
//! hands them over.

#![cfg(target_os = "linux")]

mod common;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::{Directory, PATIENCE, Program, SERVER, free_port, installed, run_ok, wait_until};
use rustix::process::Signal;

/// The keeper asks the new process for a page, because Go's server does not report that it is
/// ready.
#[test]
#[ignore = "needs go (golang-go)"]
fn go_is_restarted_without_a_refused_client() {
    let directory = Directory::new();
    let program = directory.join("net-http");
    let mut go = installed("go", "golang-go");
    go.arg("build").arg("-o").arg(&program).arg(peer("net-http/main.go"));
    run_ok(go.current_dir(directory.path()), b"");
    let addr = free_port();
    let mut keep = keep(addr, &format!("http://{addr}/work"));
    keep.arg(&program).args(["-listen", "fd:3"]);
    assert_no_new_connection_suffers(keep);
}

/// The keeper gives the new process time. If Node needs more, clients wait in the queue.
#[test]
#[ignore = "needs node (nodejs)"]
fn node_is_restarted_without_a_refused_client() {
    let node = installed("node", "nodejs");
    let mut keep = keep(free_port(), "500ms");
    keep.arg(node.get_program()).arg(peer("node-http/main.mjs"));
    assert_no_new_connection_suffers(keep);
}

fn peer(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(file)
}

fn keep(addr: SocketAddr, ready: &str) -> Command {
    let mut command = Command::new(SERVER);
    command.args(["keep", "--listen", &addr.to_string(), "--ready", ready, "--"]);
    command
}

/// Restarts a server ten times while clients ask it on a new connection each.
fn assert_no_new_connection_suffers(keep: Command) {
    let mut keeper = Program::start(keep);
    let addr = keeper.addr;
    let clients = Clients::default();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&clients);
        for _ in 0..8 {
            scope.spawn(|| clients.ask_on(addr));
        }
        for _ in 0..10 {
            clients.wait_for_answers(100);
            keeper.signal(Signal::USR2);
            keeper.wait_for(" takes over from process ");
        }
        clients.wait_for_answers(100);
    });
    let faults = clients.faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{} faults, such as {:?}: {keeper}", faults.len(), faults[0]);
    keeper.stop();
    let log = keeper.log();
    let stopped = log.lines().filter(|line| line.ends_with("stopped")).count();
    assert_eq!(stopped, 11, "each process stops by itself: {log}");
}

/// Clients that ask until they are stopped, and the counts of their answers.
#[derive(Default)]
struct Clients {
    answered: AtomicU64,
    faults: Mutex<Vec<String>>,
    is_stopping: AtomicBool,
}

impl Clients {
    /// Asks again and again, each time on a new connection, until an answer is wrong.
    fn ask_on(&self, addr: SocketAddr) {
        while !self.is_stopping.load(Ordering::Relaxed) {
            match answer(addr) {
                Ok(answer) if answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("okay") => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
                fault => return self.faults.lock().unwrap().push(format!("{fault:?}")),
            }
        }
    }

    fn wait_for_answers(&self, more: u64) {
        let answered = || self.answered.load(Ordering::Relaxed);
        let enough = answered() + more;
        let is_wrong = || !self.faults.lock().unwrap().is_empty();
        wait_until("clients are answered", || answered() >= enough || is_wrong());
    }
}

/// Returns the whole answer to a request on a new connection.
fn answer(addr: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /work?for=2ms HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Stops the clients, also if the test panics, because their scope waits for them.
struct StopOnDrop<'a>(&'a Clients);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.is_stopping.store(true, Ordering::Relaxed);
    }
}
