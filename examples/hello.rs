//! The shortest server. It answers `okay` to every request, and loses none when it stops.
//!
//! Run with:
//!
//! ```
//! cargo run --example hello
//! ```
//!
//! Open <http://127.0.0.1:8082>, and stop the server with Ctrl-C.

#![allow(clippy::print_stdout, reason = "a program may print, unlike a library")]

use smol_graceful::{Outcome, ServeError, Server, run};

fn main() -> Result<Outcome, ServeError> {
    println!("Open http://127.0.0.1:8082; Ctrl-C stops, and a second one ends at once.");
    run(Server::new(|_request| async { Ok("okay") }), ["127.0.0.1:8082"])
}
