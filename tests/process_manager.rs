//! The messages of several servers of one process to the service manager.
//!
//! The tests use the real binary with `--admin`, or a program with two public servers (the last
//! test of this file) whose handlers are stuck until the test lets them go.

#![cfg(target_os = "linux")]

mod common;

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{
    Client, Directory, PATIENCE, Program, SERVER, free_port, is_refused, next_message,
    service_manager, wait_until,
};
use rustix::process::Signal;
use smol_graceful::{Outcome, Process, Request, Server, Shutdown};

/// S20: the manager gets READY once, when both servers listen, and STOPPING once, although the
/// admin server stops later than the public one.
#[test]
fn the_manager_hears_once_of_both_servers() {
    let directory = Directory::new();
    let manager = service_manager(&directory);
    let mut command = Command::new(SERVER);
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--grace", "60s"]);
    command.env("NOTIFY_SOCKET", directory.join("manager"));
    let mut server = Program::start(command);
    let admin = server.addr;
    assert_eq!(next_message(&manager), "READY=1\n");
    let log = server.line_where("public address", |line| {
        line.contains("listening on ") && !line.contains(&admin.to_string())
    });
    let public: SocketAddr = log.rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(next_message(&manager), format!("STATUS=listening on {public}, {admin}\n"));
    let mut operator = Client::connect(admin);
    assert_eq!(operator.get("/readyz").response().status, 200);

    let mut client = Client::connect(public);
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nh");
    assert_eq!(client.stream.peek(&mut [0]).unwrap(), 1);
    server.signal(Signal::TERM);
    assert_eq!(next_message(&manager), "STOPPING=1\nSTATUS=stopping\n");
    // The operator's connection does not count, because it does not hold the drain open.
    let draining = next_message(&manager);
    assert!(draining.starts_with("STATUS=draining: 1 connection, 1 request, "), "{draining}");
    assert!(draining.ends_with("\nEXTEND_TIMEOUT_USEC=5000000\n"), "{draining}");
    client.send("i");
    assert_eq!(client.response().text(), "hi");
    assert_eq!(server.exit_code(), 0, "{server}");
    let rest = all_of(&manager);
    assert!(!rest.contains("READY") && !rest.contains("STOPPING"), "{rest}");
}

/// S20: the manager shows one line for both, with the work of both, and the time until the last one
/// must end.
#[test]
fn the_manager_hears_what_is_left_of_both_servers() {
    let mut servers = TwoStuckServers::start();
    let [web, other] = servers.addresses;
    assert_eq!(next_message(&servers.manager), format!("STATUS=listening on {web}, {other}\n"));
    servers.program.signal(Signal::TERM);
    assert_eq!(next_message(&servers.manager), "STOPPING=1\nSTATUS=stopping\n");
    for _ in 0..2 {
        let draining = next_message(&servers.manager);
        assert!(draining.starts_with("STATUS=draining: 2 connections, 2 requests, "), "{draining}");
        // One server has 60 s, and the other one an hour.
        let left = common::number_behind(&draining, "2 requests, ");
        assert!(left > 60, "{draining}");
    }
    servers.let_go("other");
    let one = "draining: 1 connection, 1 request";
    wait_until("only one is left", || next_message(&servers.manager).contains(one));
    servers.let_go("web");
    assert_eq!(servers.program.exit_code(), 0, "{}", servers.program);
    assert!(!all_of(&servers.manager).contains("STOPPING"));
}

/// S20: if the program stops one server alone, the unit does not count as stopping, because the
/// manager would kill the process after a time.
#[test]
fn a_server_that_stops_alone_does_not_stop_the_unit() {
    let mut servers = TwoStuckServers::start();
    assert!(next_message(&servers.manager).starts_with("STATUS=listening on "));
    let [web, other] = servers.addresses;
    assert_eq!(Client::connect(web).get("/stop-other").response().text(), "stopping");
    wait_until("the other server is closed", || is_refused(other));
    // The first report on the drain would come a second after the stop.
    servers.program.wait_for("draining: 1 connection, 1 request");
    servers.let_go("other");
    servers.program.wait_for(&format!("{other}: drained in "));
    assert_eq!(all_of(&servers.manager), "");
    servers.program.signal(Signal::TERM);
    assert_eq!(next_message(&servers.manager), "STOPPING=1\nSTATUS=stopping\n");
    servers.let_go("web");
    assert_eq!(servers.program.exit_code(), 0, "{}", servers.program);
}

/// Returns the messages that were sent and not yet received.
fn all_of(manager: &UnixDatagram) -> String {
    manager.set_nonblocking(true).unwrap();
    let mut all = String::new();
    let mut bytes = [0; 4096];
    while let Ok(length) = manager.recv(&mut bytes) {
        all += &common::text(&bytes[..length]);
    }
    manager.set_nonblocking(false).unwrap();
    all
}

/// Two public servers, each with a request that is stuck until a test lets it go, under a manager
/// that has heard that they are ready.
struct TwoStuckServers {
    manager: UnixDatagram,
    program: Program,
    addresses: [SocketAddr; 2],
    clients: [Client; 2],
    /// Holds the manager's socket, and a file for each server whose request may end.
    directory: Directory,
}

impl TwoStuckServers {
    fn start() -> Self {
        let directory = Directory::new();
        let manager = service_manager(&directory);
        let addresses = [(); 2].map(|()| free_port());
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "the_program_of_these_tests", "--nocapture", "--test-threads=1"]);
        for (name, addr) in NAMES.into_iter().zip(addresses) {
            command.env(format!("{ADDRESS}_{name}"), addr.to_string());
        }
        command.env(RELEASED, directory.path()).env("NOTIFY_SOCKET", directory.join("manager"));
        let mut program = Program::start(command);
        program
            .line_where("both", |line| line.ends_with(&format!("listening on {}", addresses[0])));
        let clients = addresses.map(|addr| {
            let mut client = Client::connect(addr);
            client.get("/stuck");
            client
        });
        for _ in 0..2 {
            program.wait_for("a request is stuck");
        }
        assert_eq!(next_message(&manager), "READY=1\n");
        Self { manager, program, addresses, clients, directory }
    }

    fn let_go(&mut self, name: &str) {
        fs::write(self.directory.join(name), "").unwrap();
        let client = NAMES.into_iter().position(|other| other == name).unwrap();
        assert_eq!(self.clients[client].response().text(), "done");
    }
}

// The program of these tests.

/// The variables for the addresses of this process, and for the directory of the files that let
/// requests go.
const ADDRESS: &str = "SG_TEST_ADDRESS";
const RELEASED: &str = "SG_TEST_RELEASED";

/// The names of the two servers.
const NAMES: [&str; 2] = ["web", "other"];

/// Serves both [`NAMES`], whose `/stuck` ends when there is a file of the server's name.
/// `/stop-other` stops the other server.
#[test]
fn the_program_of_these_tests() {
    if env::var_os(RELEASED).is_none() {
        return;
    }
    env_logger::Builder::new().filter_level(log::LevelFilter::Info).init();
    let outcome = serve_both();
    assert!(outcome.is_drained(), "{outcome}");
}

fn serve_both() -> Outcome {
    let shutdown = Shutdown::new().grace(2 * PATIENCE);
    let other = Shutdown::new().grace(Duration::from_secs(3600));
    let server = |name: &'static str, own: &Shutdown| {
        let other = other.clone();
        let handler = move |request: Request| {
            let other = other.clone();
            async move {
                match request.url().path() {
                    "/stop-other" => {
                        other.stop();
                        Ok("stopping")
                    }
                    _ => {
                        log::info!("a request is stuck");
                        let released = Path::new(&env::var(RELEASED).unwrap()).join(name);
                        while !released.exists() {
                            smol::Timer::after(Duration::from_millis(2)).await;
                        }
                        Ok("done")
                    }
                }
            }
        };
        Server::new(handler).shutdown(own)
    };
    let [web, beside] = NAMES.map(|name| env::var(format!("{ADDRESS}_{name}")).unwrap());
    let process = Process::default().also(server("other", &other), [beside]);
    process.run(server("web", &shutdown), [web]).unwrap()
}
