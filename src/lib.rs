//! An HTTP/1.1 server on smol that stops and restarts without losing a request.
//!
//! Five sentences define it:
//!
//! 1. There is one latch with three phases, *running → draining → aborting*; it never goes back.
//! 2. A **token** looks at the latch, a **guard** keeps the drain open, a **shutdown** handle moves
//!    the latch.
//! 3. A connection is counted before its task is spawned, and a request that has sent its first
//!    byte is finished, here or by a successor.
//! 4. A drain always ends, and says how it ended.
//! 5. If the server drops something that it had accepted, the outcome names it.
//!
//! Under a keeper, a small parent process, a restart closes no connection: the successor goes on
//! with all that can go.
//!
//! # Example
//!
//! A whole server. `curl localhost:8082` while it runs, stop it with Ctrl-C or any of HUP, TERM
//! and QUIT: what is in flight is finished, and the exit code is 0 if all of it was.
//!
//! ```no_run
//! use smol_graceful::{Outcome, ServeError, Server, run};
//!
//! fn main() -> Result<Outcome, ServeError> {
//!     let server = Server::new(|_request| async { Ok("okay") });
//!     run(server, [":8082"])
//! }
//! ```
//!
//! # What a stop does to a connection
//!
//! | it is | at the stop | at the deadline, or a second signal |
//! |---|---|---|
//! | in the kernel's queue | accepted and served | lost, if it could not be accepted |
//! | silent or idle | may send a request for [`Shutdown::linger`], then closed | closed |
//! | sending a request | finished; the response says `Connection: close` | cut and named |
//! | in a handler | finished; the handler can see it by its [`Token`] | cut and named |
//! | being answered | finished | cut and named |
//! | upgraded | waited for until it is dropped, or is silent for [`Shutdown::stream_grace`] | cut and named |
//!
//! At a restart by a keeper, a silent or idle connection goes to the successor at once, and so does
//! half a head. The others go when the response is sent, which does not say `close`.
//! Upgraded connections, those of a listener with a wrapper (TLS), and those that the successor
//! does not take are treated as the table says.
//!
//! # Ways in
//!
//! - [`run`] is a whole process: worker threads, signals, exit code. [`Process`] has its settings,
//!   and runs further servers and an admin server beside.
//! - [`Server::serve`] is a future for a program that has its own executor and control, and
//!   [`Server::serve_until`] stops by an event of the program. [`Server::executor`] and
//!   [`Server::local`] say where handlers run.
//! - [`Shutdown`], [`Token`] and [`Guard`] work without any HTTP.
//! - [`Process::keep`] makes the program its own keeper, and [`Keeper`] keeps any program. With
//!   [`Server::serve`], one call of [`ready`] is all that a restart needs.
//! - [`Listener`] takes sockets that systemd or Supervisor hold, TLS, and connections from
//!   anywhere.
//! - [`stream_body`] makes a response of a stream, [`probe`] answers balancers,
//!   [`Connection::pair`] tests a handler without a socket.
//!
//! `docs/embedding.md` tells which way is for whom, call by call for those who come from Go, tide,
//! async-h1, hyper, axum or trillium. `docs/restart.md` tells which way of restarting is for whom.
//!
//! # A map
//!
//! | level | |
//! |---|---|
//! | a process | [`run`], [`Process`], [`ready`], [`signals`], [`LogWriter`] |
//! | a keeper | [`Keeper`], [`ReadyWhen`], [`KeeperExit`], [`Kept`] |
//! | a server | [`Server`], [`ServerExecutor`], [`Limits`], [`ServeError`] |
//! | what it has served | [`Exchange`], [`ExchangeEnding`] |
//! | where connections come from | [`Listener`], [`ListenOptions`], [`Listen`], [`Address`], [`Connection`] |
//! | in a handler | [`Request`], [`Response`], [`Body`], [`BodyError`], [`stream_body`], [`probe`], [`probe_for`], [`Peer`], [`ConnectionInfo`], [`Client`], [`ClientLeft`], [`target`], [`Token`] |
//! | stopping | [`Shutdown`], [`Phase`], [`Token`], [`Guard`], [`Stopped`] |
//! | how it ended | [`Outcome`], [`DrainEnding`], [`OpenWork`], [`WorkKind`], [`Stage`] |
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | client | the program at the other end of a connection, perhaps a proxy |
//! | server | a [`Server`] that serves; a process may have several |
//! | connection | a byte stream to one client, for one request after another |
//! | handler | the program's function that makes a response from a request |
//! | keeper | a small parent process with a constant process id that holds the listening sockets and starts one process of the program after the other |
//! | child | a process that a keeper has started |
//! | successor, predecessor | two children at a restart: the successor takes over the sockets and the connections |
//! | passage | a pair of sockets through which connections go from a predecessor to its successor |
//! | kernel | the operating system below the server, with its queues of connections and bytes |
//! | wrapped stream | a stream that is not a plain socket, for example by [`Listener::wrap`] |
//! | latch | the three phases of a stop, which only move forward ([`Shutdown`]); a child latch follows another one ([`Token::child`]) |
//! | token | a look at the latch ([`Token`]) |
//! | guard | work that the drain waits for ([`Guard`]) |
//! | drain | the wait, after a stop, until all work has ended or is cut |
//! | grace | the longest time of a drain ([`Shutdown::grace`]) |
//! | lame duck | a stopped server that still accepts, before the grace ([`Shutdown::lame_duck`]) |
//! | linger | an idle connection's last chance to send a request ([`Shutdown::linger`]) |
//! | place | the right of one connection to be served, out of [`Limits::connections`] |
//!
//! # Implementation
//!
//! Requests are decoded and responses encoded by async-h1, with a gate in front of it that owns the
//! read buffer and admits one well-formed message at a time. [`run`] polls one smol executor from N
//! worker threads; the thread that called it keeps signals, deadlines and the drain, and runs no
//! handler. An idle connection holds its socket and its task, and no buffer. Deadlines are kept by
//! one sweep over all connections, at most once a second, and not by a timer for each. At a restart
//! by a keeper, a connection goes to the successor as its socket and the bytes that were read
//! ahead, when no exchange is under way. The library registers no signal handler unless [`run`] or
//! [`signals`] is called, and never exits the process. It prints nothing, apart from the line of an
//! [`Outcome`] that `main` returns where something was cut and no logger shows warnings.
//!
//! # Limits
//!
//! HTTP/1.1 and 1.0 over TCP, Unix sockets and whatever a program brings, on Unix. Methods are
//! those that http-types knows; others are answered 501. No routing, no HTTP/2; TLS by
//! [`Listener::wrap`], whose connections do not go to a successor.

pub use address::{Address, AddressError};
pub use async_signal::Signal;
pub use chunks::stream_body;
pub use client::{Client, target};
pub use connection_info::ConnectionInfo;
pub use error::ServeError;
pub use executor::ServerExecutor;
pub use http_types::{
    self, Body, Error, Method, Mime, Request, Response, StatusCode, Url, Version, headers, mime,
};
#[cfg(feature = "keeper")]
pub use keeper::{Keeper, KeeperExit, Kept, ReadyWhen};
pub use limits::Limits;
pub use listen::listener::Listener;
pub use listen::{Listen, ListenOptions};
pub use log_writer::LogWriter;
pub use observe::{Exchange, ExchangeEnding};
pub use probe::{probe, probe_for};
pub use process::{Process, run};
pub use ready::ready;
pub use server::Server;
pub use stop::outcome::{DrainEnding, OpenWork, Outcome, WorkKind};
pub use stop::phase::Phase;
pub use stop::shutdown::Shutdown;
pub use stop::signals::{STOP_SIGNALS, signals};
pub use stop::stage::Stage;
pub use stop::token::{Guard, Stopped, Token};
pub use stream::connection::Connection;
pub use stream::socket::ClientLeft;
pub use stream::transport::Peer;
pub use wire::fault::BodyError;

mod address;
mod adoption;
mod chunks;
mod client;
mod conn;
mod connection_info;
mod courier;
mod descriptors;
mod error;
mod executor;
#[cfg(feature = "keeper")]
mod keeper;
mod limits;
mod listen;
mod local;
mod lock;
mod log_limit;
mod log_writer;
mod observe;
mod places;
mod probe;
mod process;
mod ready;
mod restart;
#[cfg(test)]
mod seeded;
mod serve;
mod server;
mod stop;
mod stream;
mod threads;
mod turns;
mod under_keeper;
mod wire;

/// The result of a handler: a response, or an [`Error`] with the status for the client.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Request, Result, Server, StatusCode};
///
/// async fn length(mut request: Request) -> Result<String> {
///     let text = request.body_string().await?;
///     if text.is_empty() {
///         return Err(smol_graceful::Error::from_str(StatusCode::BadRequest, "nothing to count"));
///     }
///     Ok(format!("{} characters\n", text.chars().count()))
/// }
///
/// let server = Server::new(length);
/// # drop(server);
/// ```
pub type Result<T = Response, E = Error> = std::result::Result<T, E>;

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The examples of the page on embedding are tests, too.
#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
struct Embedding;
