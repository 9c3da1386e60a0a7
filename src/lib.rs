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
//! This program is a whole server. At HUP, INT, TERM or QUIT the server finishes the requests under
//! way and ends. The exit code is 0 if all of them were finished.
//!
//! A program that embeds the server does not need the dependencies of the binary, and can leave
//! them out:
//!
//! ```toml
//! [dependencies]
//! smol-graceful = { version = "0.1", default-features = false, features = ["keeper"] }
//! ```
//!
//! The feature `keeper` adds [`Keeper`] and [`Process::keep`], by which a program restarts itself.
//! The feature `cli` is for the binary. Both are on by default.
//!
//! # Promises
//!
//! 1. A server never takes a stop back: it has three phases, *running → draining → aborting*, and
//!    does not return to an earlier one.
//! 2. A [`Shutdown`] moves the server to its next phase, a [`Token`] shows the phase, and a
//!    [`Guard`] keeps the drain open.
//! 3. A request whose first byte has arrived is finished, here or by a successor, unless the grace
//!    ends first. The server counts a connection before the connection's task begins, so the drain
//!    misses none.
//! 4. A drain always ends, and says how it ended.
//! 5. If the server cuts work that it had accepted, the outcome names the work.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | connection | a byte stream to one client, for one request after another |
//! | handler | the program's function that makes a response from a request |
//! | latch | the phase of one or more servers, which only moves forward ([`Shutdown`]); a child latch also stops with its parent ([`Token::child`]) |
//! | token | a handle that shows the phase of a latch, and cannot change the phase ([`Token`]) |
//! | guard | a value that stands for work: the drain waits until the guard is dropped ([`Guard`]) |
//! | drain | the wait, after a stop, until all work has ended or is cut |
//! | grace | the longest time of a drain ([`Shutdown::grace`]) |
//! | linger | the time after a stop in which an idle connection may send a last request ([`Shutdown::linger`]) |
//! | lame duck | the time after a stop in which the server still accepts connections, before the grace begins ([`Shutdown::lame_duck`]) |
//! | keeper | a small parent process with a constant process id, which holds the listening sockets and starts one process of the program after the other |
//! | child | a process that a keeper has started |
//! | successor, predecessor | the new child and the old one at a restart: the successor takes over the sockets and the connections |
//! | wrapped stream | a stream that is not a plain socket, for example by [`Listener::wrap`] (TLS) |
//! | place | the room for one open connection; a server has as many places as [`Limits::connections`] says |
//!
//! # What a stop does to a connection
//!
//! | the connection | at the stop | at the deadline, or a second signal |
//! |---|---|---|
//! | waits in the kernel's queue | is accepted and served | is lost, if the server could not accept it |
//! | has sent nothing yet, or is idle | may send one more request within [`Shutdown::linger`], and is then closed | is closed |
//! | sends a request | gets its response, which says `Connection: close` | is cut, and the outcome names it |
//! | waits for a response | gets its response, which says `Connection: close`; the handler can see the stop by its [`Token`] | is cut, and the outcome names it |
//! | receives a response | gets the rest of the response | is cut, and the outcome names it |
//! | was upgraded | stays open until the program drops it, or until it is silent for [`Shutdown::stream_grace`] | is cut, and the outcome names it |
//!
//! At a restart by a keeper no plain connection is closed. If a connection has sent nothing yet, is
//! idle, or has sent only a part of a head, it goes to the successor at once. Any other connection
//! goes after its response, which does not say `close`. For upgraded connections, for wrapped
//! streams, and for connections that the successor does not take, a restart is a stop as in the
//! table.
//!
//! # Ways in
//!
//! - [`run`] runs a server as a whole process: worker threads, signals, exit code. [`Process`] has
//!   settings for that, and can run further servers and an admin server beside the first one.
//! - [`Server::serve`] returns a future, for a program with an executor and signal handlers of its
//!   own. [`Server::serve_until`] stops at an event of the program. [`Server::executor`] and
//!   [`Server::local`] say where handlers run.
//! - [`Shutdown`], [`Token`] and [`Guard`] work without HTTP.
//! - [`Process::keep`] makes the program its own keeper, and [`Keeper`] keeps any program. A
//!   program with [`Server::serve`] calls [`ready`] once, and its keeper can then restart it.
//! - [`Listener`] binds an address, takes a socket that systemd or Supervisor holds, adds TLS, and
//!   takes connections from any source of the program.
//! - [`stream_body`] makes a response of a stream, [`probe`] answers balancers, and
//!   [`Connection::pair`] tests a handler without a socket.
//!
//! Two pages of this documentation have more. [`embedding`] helps to choose between these ways, and
//! has a table of calls for programs that come from Go, tide, async-h1, hyper, axum or trillium.
//! [`restarting`] compares the ways to restart a server.
//!
//! # A map
//!
//! | level | items |
//! |---|---|
//! | a process | [`run`], [`Process`], [`ready`], [`signals`], [`Signal`], [`STOP_SIGNALS`], [`LogWriter`] |
//! | a keeper | [`Keeper`], [`ReadyWhen`], [`KeeperExit`], [`Kept`] |
//! | a server | [`Server`], [`ServerExecutor`], [`Limits`], [`ServeError`] |
//! | what a server has served | [`Exchange`], [`ExchangeEnding`] |
//! | where connections come from | [`Listener`], [`ListenOptions`], [`Listen`], [`Address`], [`AddressError`], [`Connection`] |
//! | in a handler | [`Request`], [`Response`], [`Result`], [`Error`], [`StatusCode`], [`Body`], [`BodyError`], [`stream_body`], [`probe`], [`probe_for`], [`Peer`], [`ConnectionInfo`], [`Client`], [`ClientLeft`], [`target`], [`Token`] |
//! | stopping | [`Shutdown`], [`Phase`], [`Token`], [`Guard`], [`Stopped`] |
//! | how a stop ended | [`Outcome`], [`DrainEnding`], [`OpenWork`], [`WorkKind`], [`Stage`] |
//!
//! # Implementation
//!
//! async-h1 decodes the bodies of requests and encodes those of responses. A gate in front of
//! async-h1 owns the read buffer, reads and writes the heads, and admits one well-formed message at
//! a time. With [`run`], several worker threads poll one smol executor. The thread that called
//! [`run`] accepts connections and handles signals, deadlines and the drain, but runs no handler.
//!
//! An idle connection holds its socket and its task, and no buffer. A sweep over all connections
//! finds those that are past a deadline, so a connection needs no timer. At a restart by a keeper,
//! a connection goes to the successor between two requests: the predecessor sends the socket and
//! the bytes that it has read ahead. The library registers no signal handler unless the program
//! calls [`run`] or [`signals`], and never exits the process. The library prints at most one line:
//! if `main` returns an [`Outcome`] in which something was cut, and no logger shows warnings, that
//! outcome goes to standard error.
//!
//! This documentation cites rules of the server, such as S13. [`docs/design.md`][rules] has them
//! all.
//!
//! [rules]: https://github.com/smol-graceful/smol-graceful/blob/main/docs/design.md
//!
//! # Limits
//!
//! The server speaks HTTP/1.1 and 1.0, over TCP, over Unix sockets, and over the streams that a
//! program brings. The crate has no routing and no HTTP/2, and runs on Unix only. The server knows
//! the methods that http-types knows, and answers 501 to any other. [`Listener::wrap`] adds TLS,
//! whose connections do not go to a successor.

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
#[cfg(any(all(doc, not(doctest)), all(doctest, feature = "keeper")))]
pub use pages::{embedding, restarting};
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

// These two come first, because rustdoc shows the methods of a type in the order of the modules.
mod process;
mod server;

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
#[cfg(any(doc, doctest))]
mod pages;
mod places;
mod probe;
mod ready;
mod request_text;
mod restart;
#[cfg(test)]
mod seeded;
mod serve;
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
