//! [`target`] and [`Client`]: tell a handler what http-types does not, namely the target as the
//! client sent it, and whether the client is still there.
//!
//! Invariant: the target and the client's state are what was on the wire, not an interpretation.
//! This file reads nothing itself.

use std::future;
use std::sync::Arc;

use http_types::Request;
use http_types::url::Position;

use crate::stop::orders::Order;
use crate::stop::seat::Seat;
use crate::stop::token::Attached;
use crate::stream::socket::ClientLeft;

/// Returns the target of `request`, byte for byte as the client sent it (RFC 9112 section 3.2).
///
/// A signature over a request covers these bytes, and a proxy in front has judged these bytes. The
/// URL of http-types says the same, but may hold some characters escaped.
///
/// For a request that came from no server, as in a test of a handler, returns the path and the
/// query of its URL. A clone of a request is such a request too, because http-types does not clone
/// extensions, so ask the original.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Method, Request, Server, target};
///
/// let server = Server::new(|request| async move {
///     Ok(format!("you have asked for {}\n", target(&request)))
/// });
/// # drop(server);
///
/// let request = Request::new(Method::Get, "http://localhost/a?b=c");
/// assert_eq!(target(&request), "/a?b=c");
/// ```
pub fn target(request: &Request) -> &str {
    match request.ext().get::<Attached>() {
        Some(attached) => &attached.target,
        None => &request.url()[Position::BeforePath..Position::AfterQuery],
    }
}

/// The client that has sent a request, to find out whether it is still there. Clones stand for the
/// same client.
///
/// The server drops a handler whose client has reset the connection, within two seconds, and at
/// once in the drain. A handler that must go on takes a [`Guard`](crate::Guard) of its request's
/// token, or moves its work with a guard to a task of its own. Such work can find out here whether
/// its client has left.
///
/// TCP tells only some of this:
///
/// - If a client crashes or is killed, its system closes its side, which is
///   [`ClientLeft::HalfClosed`]. A client that only has nothing more to send looks the same.
/// - If the server sends something to a client that has crashed, for example some of the response,
///   the client's system answers with a reset, which is [`ClientLeft::Gone`].
/// - If the client's machine or network is gone, nothing arrives any more. Keep-alive probes find
///   this out after two minutes.
/// - If the client of a Unix socket closes it, the client is [`ClientLeft::Gone`] at once.
/// - On a stream without a socket, the server learns nothing until the connection ends. On systems
///   other than Linux, it does not learn of [`ClientLeft::HalfClosed`].
///
/// Behind a proxy, all this is about the proxy.
///
/// # Examples
///
/// Work that goes on without its handler, but ends when its client leaves:
///
/// ```
/// use futures_lite::FutureExt;
/// use smol_graceful::{Client, Request, Server, Token, http_types};
/// # async fn render(_: &str) {}
///
/// async fn handler(request: Request) -> http_types::Result<&'static str> {
///     let (client, guard) = (Client::of(&request), Token::of(&request).guard()?);
///     let work = async move {
///         let given_up = async { log::info!("the client has left: {:?}", client.left().await) };
///         render("a long report").or(given_up).await;
///         drop(guard);
///     };
///     smol::spawn(work).detach();
///     Ok("under way")
/// }
///
/// let server = Server::new(handler);
/// # drop(server);
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    /// `None` if there is no connection.
    seat: Option<Arc<Seat>>,
}

impl Client {
    /// Returns the client that has sent `request`.
    ///
    /// For a request that came from no server, as in a test of a handler, returns a client that
    /// never leaves. A clone of a request is such a request too, so ask the original.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_lite::future;
    /// use smol_graceful::{Client, Method, Request};
    ///
    /// let client = Client::of(&Request::new(Method::Get, "http://localhost/"));
    /// assert!(future::block_on(future::poll_once(client.left())).is_none());
    /// ```
    pub fn of(request: &Request) -> Self {
        Self { seat: request.ext().get::<Attached>().map(|attached| attached.seat().clone()) }
    }

    /// Waits until the client has closed its side or is gone. Afterwards every further call returns
    /// at once.
    ///
    /// The server notices this in a sweep over all connections, so it takes up to two seconds.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped and awaited again without missing anything.
    ///
    /// The server drops a handler without a guard when its client has reset the connection. In such
    /// a handler, this method returns for a client that has closed its side, but not for a client
    /// that is gone. Cleanup that must always happen belongs in a `Drop`, or in work that holds a
    /// guard.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Client, Request, Stopped, Token};
    ///
    /// async fn watch(request: &Request) -> Result<(), Stopped> {
    ///     let _guard = Token::of(request).guard()?;
    ///     let left = Client::of(request).left().await;
    ///     log::info!("nothing more comes: {left:?}");
    ///     Ok(())
    /// }
    /// ```
    pub async fn left(&self) -> ClientLeft {
        self.until(ClientLeft::HalfClosed).await
    }

    /// Waits until nobody reads the response any more. A client that has closed only its own side
    /// still counts as a reader.
    ///
    /// Like [`Client::left`], it takes up to two seconds, and afterwards returns at once.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped and awaited again without missing anything.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Client, Request, Stopped, Token};
    ///
    /// async fn watch(request: &Request) -> Result<(), Stopped> {
    ///     let _guard = Token::of(request).guard()?;
    ///     Client::of(request).gone().await;
    ///     log::info!("nobody reads");
    ///     Ok(())
    /// }
    /// ```
    pub async fn gone(&self) {
        self.until(ClientLeft::Gone).await;
    }

    async fn until(&self, least: ClientLeft) -> ClientLeft {
        match &self.seat {
            Some(seat) => seat.left(least).await,
            None => future::pending().await,
        }
    }
}

/// Returns `true` if the connection of `request` serves further requests, whatever becomes of this
/// process: the server is not stopped, or the connection can go to the successor.
pub(crate) fn goes_on(request: &Request) -> bool {
    request.ext().get::<Attached>().is_some_and(|attached| attached.seat().order() < Order::Finish)
}
