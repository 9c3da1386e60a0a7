//! An HTTP/1.1 server on smol that stops and restarts without losing a request.
//!
//! # Example
//!
//! ```no_run
//! use smol_graceful::{Outcome, ServeError, Server, run};
//!
//! fn main() -> Result<Outcome, ServeError> {
//!     let server = Server::new(|_request| async { Ok("okay\n") });
//!     println!("Open http://localhost:8082; Ctrl-C stops, and a second one ends at once.");
//!     run(server, [":8082"])
//! }
//! ```
//!
//! This is a whole server. HUP, INT, TERM and QUIT stop it. The server then finishes the requests
//! under way, and the exit code is 0 if all of them were finished.
//!
//! # Promises
//!
//! 1. A stop has three phases, *running → draining → aborting*, and never goes back.
//! 2. A [`Token`] looks at the phase, a [`Guard`] keeps the drain open, and a [`Shutdown`] moves
//!    the phase.
//! 3. The server counts a connection before it spawns the connection's task. A request that has
//!    sent its first byte is finished, here or by a successor.
//! 4. A drain always ends, and says how it ended.
//! 5. If the server drops something that it had accepted, the outcome names it.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | connection | a byte stream to one client, for one request after another |
//! | handler | the program's function that makes a response from a request |
//! | latch | the three phases of a stop, which only move forward ([`Shutdown`]); a child latch follows another one ([`Token::child`]) |
//! | token | a look at the latch ([`Token`]) |
//! | guard | work that the drain waits for ([`Guard`]) |
//! | drain | the wait, after a stop, until all work has ended or is cut |
//! | grace | the longest time of a drain ([`Shutdown::grace`]) |
//! | linger | the time in which an idle connection may send a last request ([`Shutdown::linger`]) |
//! | lame duck | a stopped server that still accepts, before the grace ([`Shutdown::lame_duck`]) |
//! | keeper | a small parent process that holds the listening sockets and starts one process of the program after the other; its process id never changes |
//! | child | a process that a keeper has started |
//! | successor, predecessor | two children at a restart: the successor takes over the sockets and the connections |
//! | wrapped stream | a stream that is not a plain socket, for example by [`Listener::wrap`] (TLS) |
//! | place | the right of one connection to be served, out of [`Limits::connections`] |
//!
//! # What a stop does to a connection
//!
//! | the connection | at the stop | at the deadline, or a second signal |
//! |---|---|---|
//! | waits in the kernel's queue | is accepted and served | is lost, if the server could not accept it |
//! | is silent or idle | may send a request for [`Shutdown::linger`], and is closed then | is closed |
//! | sends a request | is finished; the response says `Connection: close` | is cut, and the outcome names it |
//! | is in a handler | is finished; the handler can see the stop by its [`Token`] | is cut, and the outcome names it |
//! | receives a response | is finished | is cut, and the outcome names it |
//! | was upgraded | is waited for until it is dropped, or is silent for [`Shutdown::stream_grace`] | is cut, and the outcome names it |
//!
//! At a restart by a keeper no plain connection is closed. A silent or idle connection goes to the
//! successor at once, and so does half a head. The others go when the response is sent, which does
//! not say `close`. The table holds for upgraded connections, for wrapped streams, and for
//! connections that the successor does not take.
//!
//! # Ways in
//!
//! - [`run`] is a whole process: worker threads, signals, exit code. [`Process`] has its settings,
//!   and runs further servers and an admin server beside.
//! - [`Server::serve`] is a future for a program with its own executor and control.
//!   [`Server::serve_until`] stops at an event of the program. [`Server::executor`] and
//!   [`Server::local`] say where handlers run.
//! - [`Shutdown`], [`Token`] and [`Guard`] work without HTTP.
//! - [`Process::keep`] makes the program its own keeper, and [`Keeper`] keeps any program. With
//!   [`Server::serve`], one call of [`ready`] is all that a restart needs.
//! - [`Listener`] takes sockets that systemd or Supervisor hold, TLS, and connections from
//!   anywhere.
//! - [`stream_body`] makes a response of a stream, [`probe`] answers balancers, and
//!   [`Connection::pair`] tests a handler without a socket.
//!
//! Two pages have more: [embedding] says which way is for whom, call by call for programs that come
//! from Go, tide, async-h1, hyper, axum or trillium, and [restarting] says which way of restarting
//! is for whom.
//!
//! [embedding]: https://github.com/smol-graceful/smol-graceful/blob/main/docs/embedding.md
//! [restarting]: https://github.com/smol-graceful/smol-graceful/blob/main/docs/restart.md
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
//! # Implementation
//!
//! async-h1 decodes the bodies of requests and encodes those of responses. A gate in front of
//! async-h1 owns the read buffer, reads and writes the heads, and admits one well-formed message at
//! a time. With [`run`], several worker threads poll one smol executor. The thread that called
//! [`run`] keeps signals, deadlines and the drain, and runs no handler. An idle connection holds
//! its socket and its task, and no buffer. A sweep over all connections keeps the deadlines, so a
//! connection needs no timer. At a restart by a keeper, a connection goes to the successor between
//! two exchanges, as its socket and the bytes that were read ahead. The library registers no signal
//! handler unless the program calls [`run`] or [`signals`], and never exits the process. The
//! library prints nothing but the line of an [`Outcome`] that `main` returns, if something was cut
//! and no logger shows warnings.
//!
//! # Limits
//!
//! HTTP/1.1 and 1.0 over TCP, Unix sockets and whatever a program brings, on Unix. The methods are
//! those that http-types knows, and the server answers 501 to others. The crate has no routing and
//! no HTTP/2. [`Listener::wrap`] adds TLS, whose connections do not go to a successor.

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
