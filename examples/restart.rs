//! A server with `Server::serve`, which a keeper restarts without closing a connection. This needs
//! one further call, `ready`.
//!
//! Run with:
//!
//! ```
//! cargo build --example restart
//! cargo run -- keep -- target/debug/examples/restart 127.0.0.1:8082
//! ```
//!
//! `curl localhost:8082` prints the process that serves. The log has the keeper's process id in its
//! first lines. Build another version, send USR2 to the keeper, and the new version answers.

use smol_graceful::{Listener, Outcome, ServeError, Server, Shutdown, ready, signals};

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8082".to_owned());
    let listener = Listener::bind(&*address)?;

    let shutdown = Shutdown::new();
    let server = Server::new(|_request| async { Ok(format!("process {}\n", std::process::id())) })
        .shutdown(&shutdown);
    smol::block_on(async {
        // From here on, a signal stops the server and does not kill it.
        let signals = signals()?;
        let serve = server.serve([listener.clone()]);
        // Under a keeper, the predecessor now hands its connections over.
        ready(&[listener])?;
        shutdown.obey(signals, serve).await
    })
}
