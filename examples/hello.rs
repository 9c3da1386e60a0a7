//! The shortest server: answers `okay` to everything, and loses nothing when it stops.
//!
//! Run with:
//!
//! ```
//! cargo run --example hello
//! ```
//!
//! Open <http://127.0.0.1:8082>, and stop it with Ctrl-C.

use smol_graceful::{Outcome, ServeError, Server, run};

fn main() -> Result<Outcome, ServeError> {
    run(Server::new(|_request| async { Ok("okay") }), ["127.0.0.1:8082"])
}
