//! smol-graceful in several arrangements of threads, executors and listeners. The second argument
//! names one, and `../../../harness/arrangements.py` explains them.

use std::convert::Infallible;
use std::env;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use futures_lite::future;
use peers::http_types_app::handle;
use smol::Executor;
use smol_graceful::{
    Address, Listen, ListenOptions, Listener, Outcome, Process, ServeError, Server, Shutdown, run,
    signals,
};
use tokio::runtime::Runtime;

fn main() -> Result<Outcome, ServeError> {
    let (address, threads) = (peers::address(), peers::threads());
    match env::args().nth(2).as_deref() {
        Some("shared") => run(Server::new(handle), [address]),
        Some("one") => one(address),
        Some("process") => one(beside_others(address)?),
        Some("per-core") => per_core(address, threads),
        Some("embedded") => embedded(address, threads),
        Some("tokio") => tokio(address),
        Some("beside-tokio") => beside_tokio(address, threads),
        _ => panic!(
            "usage: arrangements ADDRESS \
             shared|one|process|per-core|embedded|tokio|beside-tokio"
        ),
    }
}

/// Serves with one worker thread, on any number of cores.
fn one(listener: impl Listen) -> Result<Outcome, ServeError> {
    Process::default().threads(1).run(Server::new(handle), [listener])
}

/// Serves with a server, an executor and a listener for each thread. The kernel spreads the
/// connections.
fn per_core(address: SocketAddr, threads: usize) -> Result<Outcome, ServeError> {
    let shutdown = obeying()?;
    let listeners: Vec<_> =
        (0..threads).map(|_| beside_others(address)).collect::<io::Result<_>>()?;
    let serving: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            let server = Server::new(handle).shutdown(&shutdown);
            thread::spawn(move || smol::block_on(server.serve([listener])))
        })
        .collect();
    let outcomes = serving.into_iter().map(|thread| thread.join().expect("no panic"));
    // Servers with one latch have the same outcome.
    Ok(outcomes.collect::<Result<Vec<_>, _>>()?.swap_remove(0))
}

/// Serves with the program's own executor for the connections, as in `examples/embed.rs`. A thread
/// that only parks polls `serve`.
fn embedded(address: SocketAddr, threads: usize) -> Result<Outcome, ServeError> {
    let executor = Arc::new(Executor::new());
    for _ in 0..threads {
        let executor = executor.clone();
        thread::spawn(move || smol::block_on(executor.run(future::pending::<Infallible>())));
    }
    let server = Server::new(handle).shutdown(&obeying()?).executor(executor);
    future::block_on(server.serve([address]))
}

/// Serves under tokio, as in `examples/tokio.rs`, with the connections inside of `serve`.
fn tokio(address: SocketAddr) -> Result<Outcome, ServeError> {
    let server = Server::new(handle).shutdown(&obeying()?);
    Runtime::new()?.block_on(server.serve([address]))
}

/// Serves under tokio, but with the connections on threads of smol's. Their handlers are inside of
/// tokio's runtime, too, so its timers and sockets work there.
fn beside_tokio(address: SocketAddr, threads: usize) -> Result<Outcome, ServeError> {
    let runtime = Runtime::new()?;
    let executor = Arc::new(Executor::new());
    for _ in 0..threads {
        let (executor, tokio) = (executor.clone(), runtime.handle().clone());
        thread::spawn(move || {
            let _inside = tokio.enter();
            smol::block_on(executor.run(future::pending::<Infallible>()))
        });
    }
    let server = Server::new(handle).shutdown(&obeying()?).executor(executor);
    runtime.block_on(server.serve([address]))
}

/// Returns a latch that signals move, on a thread that runs no handler.
fn obeying() -> io::Result<Shutdown> {
    let (shutdown, signals) = (Shutdown::new(), signals()?);
    let latch = shutdown.clone();
    thread::spawn(move || future::block_on(latch.obey(signals, future::pending::<Infallible>())));
    Ok(shutdown)
}

/// Returns a listener on a port that other listeners share.
fn beside_others(address: SocketAddr) -> io::Result<Listener> {
    ListenOptions::default().reuse_port(true).bind(&Address::Tcp(address))
}
