//! What a handler can learn of a request and its client beside what http-types holds: the target as it was sent, and
//! whether the client is still there.
//!
//! Invariant: what is told is what was on the wire, not what somebody has made of it. Reads nothing itself.

use std::future;
use std::sync::Arc;

use http_types::Request;
use http_types::url::Position;

use crate::registry::Seat;
use crate::transport::Left;

/// Returns the target of `request`, byte for byte as the client sent it (RFC 9112 section 3.2).
///
/// A signature over a request is made over these bytes, and a proxy in front has judged these bytes. The URL of
/// http-types says the same, but may hold some characters escaped.
///
/// A request that came from no server, in a test of a handler, has the path and the query of its URL. So has a clone
/// of a request, because http-types does not clone extensions: ask the original.
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
    match request.ext().get::<Received>() {
        Some(received) => &received.target,
        None => &request.url()[Position::BeforePath..Position::AfterQuery],
    }
}

/// The client of a request, for those who want to know whether it is still there. Clones are the same client.
///
/// The server drops a handler whose client has reset the connection, within two seconds, and at once in the drain. A
/// handler that must go on takes a [`Guard`](crate::Guard) of its request's token, or moves its work with a guard to a
/// task of its own. Such work can ask here.
///
/// TCP tells less than one would wish. A client that crashes or is killed has its side closed by its system, which is
/// [`Left::HalfClosed`], and so does a client that only has nothing more to send. A reset, [`Left::Gone`], comes if such
/// a client is sent something, for example some of the response. A client whose machine or network is gone says
/// nothing; keep-alive probes find that out after two minutes. A client of a Unix socket that closes it is gone at once. On a stream without a socket, and on systems other than
/// Linux for `HalfClosed`, nothing is known until the connection ends. What a proxy in front tells is about the proxy.
///
/// # Examples
///
/// Work that goes on without its client, but not for nobody:
///
/// ```
/// use futures_lite::FutureExt;
/// use smol_graceful::{Client, Request, Server, Token, http_types};
/// # async fn render(_: &str) {}
///
/// async fn handler(request: Request) -> http_types::Result<&'static str> {
///     let (client, guard) = (Client::of(&request), Token::of(&request).guard());
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
    /// Returns the client that has sent `request`. A request that came from no server, in a test of a handler, has a
    /// client that never leaves, and so has a clone of a request: ask the original.
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
        Self { seat: request.ext().get::<Received>().map(|received| received.seat.clone()) }
    }

    /// Waits until the client has closed its side or is gone; ready at once, every time, when that has happened.
    ///
    /// The sweep over all connections notices it, so it takes up to two seconds.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped and awaited again without missing anything.
    ///
    /// The server drops a handler without a guard when its client has reset the connection: there, this
    /// returns for a client that has closed its side, and not for one that is gone. What has to be done
    /// in any case goes into a `Drop`, or into work that holds a guard.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Client, Request, Token};
    ///
    /// async fn watch(request: &Request) {
    ///     let _guard = Token::of(request).guard();
    ///     let left = Client::of(request).left().await;
    ///     log::info!("nothing more comes: {left:?}");
    /// }
    /// ```
    pub async fn left(&self) -> Left {
        self.until(Left::HalfClosed).await
    }

    /// Waits until nobody reads the response any more, as [`Client::left`] does; a client that has closed its side alone
    /// is still there.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped and awaited again without missing anything.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Client, Request, Token};
    ///
    /// async fn watch(request: &Request) {
    ///     let _guard = Token::of(request).guard();
    ///     Client::of(request).gone().await;
    ///     log::info!("nobody reads");
    /// }
    /// ```
    pub async fn gone(&self) {
        self.until(Left::Gone).await;
    }

    async fn until(&self, least: Left) -> Left {
        match &self.seat {
            Some(seat) => seat.left(least).await,
            None => future::pending().await,
        }
    }
}

/// What the server knows of a request.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) target: Box<str>,
    pub(crate) seat: Arc<Seat>,
}
