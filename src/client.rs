//! What a handler can learn of a request and its client beside what http-types holds: the target as it was sent.
//!
//! Invariant: what is told is what was on the wire, not what somebody has made of it. Reads nothing itself.

use http_types::Request;
use http_types::url::Position;

/// Returns the target of `request`, byte for byte as the client sent it (RFC 9112 section 3.2).
///
/// A signature over a request is made over these bytes, and a proxy in front has judged these bytes. The URL of
/// http-types says the same, but may hold some characters escaped.
///
/// A request that came from no server, in a test of a handler, has the path and the query of its URL.
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

/// What the server knows of a request, for [`target`].
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) target: Box<str>,
}
