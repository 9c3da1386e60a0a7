//! A server on an executor of its own, which a keeper restarts without closing a connection. Beside
//! `serve` it takes one call: `ready`.
//!
//! Run with:
//!
//! ```
//! cargo build --example restart
//! cargo run -- keep -- target/debug/examples/restart 127.0.0.1:8082
//! ```
//!
//! Then `curl localhost:8082` says which process serves, and USR2 to the keeper, whose process id
//! the log begins with, makes it another one. Build it anew in between to see that it is the new
//! one.

use smol_graceful::{Listener, Outcome, ServeError, Server, Shutdown, ready, signals};

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8082".to_owned());
    let listener = Listener::bind(&*address)?;

    let shutdown = Shutdown::new();
    let server = Server::new(|_request| async { Ok(format!("process {}\n", std::process::id())) })
        .shutdown(&shutdown);
    smol::block_on(async {
        // From here on a signal stops the server, and does not kill it.
        let signals = signals()?;
        let serve = server.serve([listener.clone()]);
        // Under a keeper, the connections of the predecessor come from now on.
        ready(&[listener])?;
        shutdown.obey(signals, serve).await
    })
}
