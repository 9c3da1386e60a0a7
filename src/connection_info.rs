//! [`ConnectionInfo`]: tells a handler what the server knows of the connection of its request.
//!
//! Invariant: no field of the request counts here, so no client can forge any of it. The program's
//! own word, by a wrapper or a source, is believed. Asks no socket.

use std::net::SocketAddr;
use std::sync::Arc;

use http_types::Request;

use crate::address::Address;
use crate::stop::seat::Seat;
use crate::stop::token::Attached;

/// The server's knowledge of the connection of a request, beside its [`Peer`](crate::Peer). Clones
/// stand for the same connection.
///
/// # Examples
///
/// A TLS wrapper passes on the name that the client has asked for, and handlers see it:
///
/// ```
/// use futures_rustls::TlsAcceptor;
/// use smol_graceful::{Connection, ConnectionInfo, Listener, Server};
///
/// struct ServerName(String);
///
/// fn listen(acceptor: TlsAcceptor) -> std::io::Result<Listener> {
///     Ok(Listener::bind("127.0.0.1:0")?.wrap(move |connection| {
///         let handshake = acceptor.accept(connection);
///         async move {
///             let stream = handshake.await?;
///             let name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
///             Ok(Connection::new(stream).https().with(ServerName(name)))
///         }
///     }))
/// }
///
/// let server = Server::new(|request| async move {
///     let connection = ConnectionInfo::of(&request);
///     let name = connection.get().map_or("none", |ServerName(name)| name);
///     Ok(format!("https: {}, name: {name}\n", connection.is_https()))
/// });
/// # drop(server);
/// ```
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// `None` if there is no connection.
    seat: Option<Arc<Seat>>,
    /// Set if the URL of the request says `https`. Counts only if there is no connection.
    is_https: bool,
}

impl ConnectionInfo {
    /// Returns what is known of the connection of `request`.
    ///
    /// For a request that came from no server, as in a test of a handler, only the scheme of its
    /// URL is known. A clone of a request is such a request too, so ask the original.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{ConnectionInfo, Method, Request};
    ///
    /// let connection = ConnectionInfo::of(&Request::new(Method::Get, "https://localhost/"));
    /// assert!(connection.is_https());
    /// assert_eq!(connection.listener(), None);
    /// ```
    pub fn of(request: &Request) -> Self {
        let seat = request.ext().get::<Attached>().map(|attached| attached.seat().clone());
        Self { seat, is_https: request.url().scheme() == "https" }
    }

    /// Returns the address of the listener to which the client has connected, as
    /// [`Listener::address`](crate::Listener::address) has it.
    ///
    /// # Examples
    ///
    /// One handler for a public and a private port:
    ///
    /// ```
    /// use smol_graceful::{Address, ConnectionInfo, Server};
    ///
    /// let server = Server::new(|request| async move {
    ///     let connection = ConnectionInfo::of(&request);
    ///     let is_private = matches!(connection.listener(), Some(Address::Unix(_)));
    ///     Ok(if is_private { "for the operator" } else { "for everybody" })
    /// });
    /// # drop(server);
    /// ```
    pub fn listener(&self) -> Option<&Address> {
        self.seat.as_ref()?.address()
    }

    /// Returns `true` if the client speaks HTTPS, as
    /// [`Connection::https`](crate::Connection::https) has said.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{ConnectionInfo, Method, Request};
    ///
    /// let request = Request::new(Method::Get, "http://localhost/");
    /// assert!(!ConnectionInfo::of(&request).is_https());
    /// ```
    pub fn is_https(&self) -> bool {
        self.seat.as_ref().map_or(self.is_https, |seat| seat.is_https())
    }

    /// Returns the address of this machine to which the client has connected, as the kernel says.
    /// `None` if the stream is not a TCP connection.
    ///
    /// http-types' `request.local_addr()` has the same address as text.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{ConnectionInfo, Server};
    ///
    /// let server = Server::new(|request| async move {
    ///     Ok(format!("you have come to {:?}\n", ConnectionInfo::of(&request).local_addr()))
    /// });
    /// # drop(server);
    /// ```
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.seat.as_ref()?.local_addr()
    }

    /// Returns the value of this type that the listener's wrapper, or the source of the connection,
    /// has attached by [`Connection::with`](crate::Connection::with).
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{ConnectionInfo, Response, Server, StatusCode};
    ///
    /// struct Certificate(Vec<u8>);
    ///
    /// let server = Server::new(|request| async move {
    ///     let connection = ConnectionInfo::of(&request);
    ///     Ok(match connection.get() {
    ///         Some(Certificate(bytes)) => format!("{} bytes\n", bytes.len()).into(),
    ///         None => Response::new(StatusCode::Forbidden),
    ///     })
    /// });
    /// # drop(server);
    /// ```
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.seat.as_ref()?.attached()
    }
}
