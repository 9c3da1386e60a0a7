//! Several servers of one process under a keeper: a restart closes no connection of either.

#![cfg(target_os = "linux")]

mod common;

use std::env;
use std::process::{self, Command};

use common::{Client, KeeperProcess, free_port};
use futures_lite::{FutureExt, future};
use http_types::{Request, Response};
use rustix::process::Signal;
use smol_graceful::{Listener, Server, Shutdown, ready, signals};

/// The variable that marks the program's process. Its value says whether the servers share a latch.
const SHARED: &str = "SG_TEST_SHARED_LATCH";

/// The addresses of its servers.
const PUBLIC: &str = "SG_TEST_PUBLIC";
const ADMIN: &str = "SG_TEST_ADMIN";

#[test]
fn a_restart_closes_no_connection_of_either_server() {
    for is_shared in [true, false] {
        let mut program = Command::new(env::current_exe().unwrap());
        program.args(["--exact", "the_program_of_these_tests", "--nocapture"]);
        let addresses = [(); 2].map(|()| free_port());
        program.env(SHARED, is_shared.to_string()).args(["--test-threads=1"]);
        program.env(PUBLIC, addresses[0].to_string()).env(ADMIN, addresses[1].to_string());
        let mut servers = KeeperProcess::start(&program);
        let mut clients: Vec<_> =
            addresses.iter().flat_map(|addr| [(); 3].map(|()| Client::connect(*addr))).collect();
        let ask = |client: &mut Client| {
            let response = client.get("/").response();
            assert!(!response.says_close());
            response.text()
        };
        for _ in 0..3 {
            clients.iter_mut().for_each(|client| {
                ask(client);
            });
            let predecessor = servers.serving;
            servers.restart();
            assert_eq!(servers.exit_code(predecessor), 0);
            for (client, server) in
                clients.iter_mut().zip(["public"; 3].iter().chain(&["admin"; 3]))
            {
                assert_eq!(ask(client), format!("{server} of {}", servers.serving));
            }
        }
        // A request under way is answered, and then its connection goes to the successor, too.
        let [public, admin] = addresses.map(Client::connect);
        let mut busy = [public, admin];
        for client in &mut busy {
            client.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
        }
        for _ in 0..2 {
            servers.program.wait_for("a slow request");
        }
        let predecessor = servers.serving;
        servers.restart();
        for client in &mut busy {
            let response = client.response();
            assert!(response.text().ends_with(&format!("of {predecessor}")));
            assert!(!response.says_close());
        }
        for client in &mut busy {
            assert!(ask(client).ends_with(&format!("of {}", servers.serving)));
        }
        servers.signal(Signal::TERM);
        let log = servers.program.log();
        assert_eq!(servers.program.exit_code(), 0, "{log}");
        // Two servers in each of five processes.
        assert_eq!(log.matches("drained in ").count(), 10, "{log}");
    }
}

#[test]
fn the_program_of_these_tests() {
    let Ok(is_shared) = env::var(SHARED) else { return };
    env_logger::Builder::new().filter_level(log::LevelFilter::Info).init();
    let shutdown = Shutdown::new();
    let other = if is_shared == "true" { shutdown.clone() } else { Shutdown::new() };
    let public = Server::new(|request| answer("public", request)).shutdown(&shutdown);
    let admin = Server::new(|request| answer("admin", request)).shutdown(&other);
    let listeners = [PUBLIC, ADMIN].map(|name| {
        let address = env::var(name).unwrap();
        Listener::bind(address).unwrap()
    });
    let outcomes = smol::block_on(async {
        let signals = signals().unwrap();
        let [one, two] = listeners.clone();
        let both = future::zip(public.serve([one]), admin.serve([two]));
        ready(&listeners).unwrap();
        let obey = async {
            shutdown.token().stopping().await;
            other.stop();
            future::pending().await
        };
        shutdown.obey(signals, both.or(obey)).await
    });
    assert!(outcomes.0.unwrap().is_drained() && outcomes.1.unwrap().is_drained());
}

async fn answer(name: &str, request: Request) -> http_types::Result<Response> {
    if request.url().path() == "/slow" {
        log::info!("a slow request");
        let token = smol_graceful::Token::of(&request);
        token.stopping().await;
        // The pause is longer than the linger, so this connection leaves after all others were
        // asked.
        smol::Timer::after(std::time::Duration::from_millis(200)).await;
    }
    Ok(format!("{name} of {}", process::id()).into())
}
