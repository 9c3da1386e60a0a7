//! An HTTP/1.1 server on smol that stops and restarts without losing a request.
//!
//! Five sentences define it:
//!
//! 1. There is one latch with three phases, *running → draining → aborting*; it never goes back.
//! 2. A **token** looks at the latch, a **guard** keeps the drain open, a **shutdown** handle moves
//!    the latch.
//! 3. A connection is counted before its task is spawned, and a request that has sent its first
//!    byte is finished.
//! 4. A drain always ends, and says how it ended.
//! 5. Nothing that a client was told is accepted is dropped without being named.
//!
//! # Example
//!
//! A whole server. `curl localhost:8082` while it runs, stop it with Ctrl-C or any of HUP, TERM
//! and QUIT: what is in flight is finished, and the exit code is 0 if all of it was.
//!
//! ```no_run
//! use smol_graceful::{Outcome, Server, run};
//!
//! fn main() -> std::io::Result<Outcome> {
//!     let server = Server::new(|_request| async { Ok("okay") });
//!     run(server, [":8082"])
//! }
//! ```

mod connection;
mod limits;
mod listener;
mod outcome;
mod process;
mod registry;
mod server;
mod shutdown;
mod signals;
mod transport;
mod wire;

pub use async_signal::Signal;
pub use http_types::{Body, Request, Response, StatusCode};
pub use limits::Limits;
pub use listener::{Address, AddressError, Listen, Listener};
pub use outcome::{Ending, Outcome};
pub use process::{Process, run};
pub use registry::{Cut, Stage, What};
pub use server::Server;
pub use shutdown::{Guard, Phase, Shutdown, Token};
pub use signals::{STOP_SIGNALS, signals};
pub use transport::{Peer, Transport};

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
