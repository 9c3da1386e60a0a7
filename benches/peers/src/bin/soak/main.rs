//! The load of `benches/soak`: clients that ask for much, and leave at bad moments.
//!
//! `soak ADDRESS REQUESTS SEED` begins this number of requests, and prints the counts of their
//! results in a line of JSON, for each step of the mix. A wrong answer is named on standard error,
//! and makes the exit code 1. With the same seed, each client takes the same steps with the same
//! sizes.

mod steps;
mod wire;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::thread;

use smol::LocalExecutor;

use steps::{Client, STEPS, Tally};

/// The number of connections at a time.
const CLIENTS: u64 = 64;

fn main() -> ExitCode {
    let address: SocketAddr = argument(1);
    let requests: u64 = argument(2);
    let seed: u64 = argument(3);

    let mut seeds = fastrand::Rng::with_seed(seed);
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|number| {
            let share = requests / CLIENTS + u64::from(number < requests % CLIENTS);
            Client::new(number, address, share, seeds.fork())
        })
        .collect();

    let threads = peers::threads().min(4);
    let share = clients.len().div_ceil(threads);
    let mut running = Vec::new();
    while !clients.is_empty() {
        let own = clients.split_off(clients.len().saturating_sub(share));
        running.push(thread::spawn(|| run(own)));
    }
    let mut whole = Tally::default();
    for thread in running {
        whole.add(&thread.join().expect("a client has panicked"));
    }
    println!("{}", json(&whole));
    ExitCode::from(u8::from(whole.failed > 0))
}

/// Runs clients side by side on this thread to their ends. Returns the counts.
fn run(clients: Vec<Client>) -> Tally {
    let executor = LocalExecutor::new();
    let tasks: Vec<_> = clients.into_iter().map(|client| executor.spawn(client.run())).collect();
    smol::block_on(executor.run(async {
        let mut whole = Tally::default();
        for task in tasks {
            whole.add(&task.await);
        }
        whole
    }))
}

fn json(tally: &Tally) -> String {
    let steps: Vec<String> = STEPS
        .iter()
        .zip(&tally.steps)
        .map(|((_, step), of)| {
            let name = step.name();
            format!("\"{name}\": [{}, {}, {}, {}]", of.times, of.begun, of.answered, of.left)
        })
        .collect();
    format!(
        "{{\"connections\": {}, \"failed\": {}, \"steps\": {{{}}}}}",
        tally.connections,
        tally.failed,
        steps.join(", ")
    )
}

fn argument<T: FromStr>(number: usize) -> T {
    let given = std::env::args().nth(number).and_then(|given| given.parse().ok());
    given.unwrap_or_else(|| {
        eprintln!("usage: soak ADDRESS REQUESTS SEED");
        std::process::exit(2)
    })
}
