//! A server that keeps itself: USR2 starts the executable anew, and no client notices.
//!
//! Run with:
//!
//! ```
//! cargo run --example keep -- :8082 /tmp/keep.pid
//! ```
//!
//! `curl localhost:8082` tells which process has answered. Build another version, and try
//! `kill -USR2 "$(cat /tmp/keep.pid)"`: another process answers, and the one in the file is the
//! same. Ctrl-C stops both.

use std::{env, process};

use smol_graceful::{Kept, Outcome, Process, ServeError, Server};

fn main() -> Result<Kept<Outcome>, ServeError> {
    // The keeper and the server both log.
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:8082".into());
    let mut settings = Process::default();
    if let Some(path) = args.next() {
        settings = settings.pid_file(path);
    }
    settings.keep(|process| {
        let server = Server::new(|_request| async { Ok(format!("process {}\n", process::id())) });
        process.run(server, [address])
    })
}
