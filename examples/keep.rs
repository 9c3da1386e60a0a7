//! A server that is its own keeper. USR2 starts the executable anew, and no client notices.
//!
//! Run with:
//!
//! ```
//! cargo run --example keep -- :8082 /tmp/keep.pid
//! ```
//!
//! `curl localhost:8082` prints the process that has answered. Build another version, and try `kill
//! -USR2 "$(cat /tmp/keep.pid)"`. After that another process answers, and the file still names the
//! same keeper. Ctrl-C stops both.

use std::{env, process};

use smol_graceful::{Kept, Outcome, Process, ServeError, Server};

fn main() -> Result<Kept<Outcome>, ServeError> {
    // The logger comes first, because the keeper logs, too.
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
