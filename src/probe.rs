//! [`probe`]: what a balancer or an orchestrator asks a server: is it alive, is it ready.
//!
//! Invariant: *live* as long as handlers run at all, *ready* until the stop begins, so that in the
//! lame duck (rule S3) new requests go elsewhere while this server still takes them. Looks at the
//! request's token and connection, and at nothing else.

use http_types::headers::{CACHE_CONTROL, CONTENT_TYPE};
use http_types::{Method, Request, Response, StatusCode};

use crate::client::goes_on;
use crate::stop::token::Token;

/// Answers a `GET` or `HEAD` of `/livez` (200) or `/readyz` (200, and 503 from the moment the stop
/// begins, unless the connection goes to a successor); `None` for any other request.
///
/// The words are Kubernetes'; HAProxy's `option httpchk GET /readyz` wants the same.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Server, probe};
///
/// let server = Server::new(|request| async move {
///     if let Some(response) = probe(&request) {
///         return Ok(response);
///     }
///     Ok("okay".into())
/// });
/// # drop(server);
/// ```
pub fn probe(request: &Request) -> Option<Response> {
    probe_for(&Token::of(request), request)
}

/// Answers like [`probe`], for the server of `token`: an admin server tells by this whether the
/// public server is ready.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Method, Request, Shutdown, StatusCode, probe_for};
///
/// let public = Shutdown::new();
/// let request = Request::new(Method::Get, "http://localhost/readyz"); // to the admin server
/// let status = || probe_for(&public.token(), &request).map(|response| response.status());
/// assert_eq!(status(), Some(StatusCode::Ok));
/// public.stop();
/// assert_eq!(status(), Some(StatusCode::ServiceUnavailable));
/// ```
pub fn probe_for(token: &Token, request: &Request) -> Option<Response> {
    if !matches!(request.method(), Method::Get | Method::Head) {
        return None;
    }
    let (status, text) = match request.url().path() {
        "/livez" => (StatusCode::Ok, "live\n"),
        "/readyz" if token.is_stopping() && !is_succeeded(request) => {
            (StatusCode::ServiceUnavailable, "stopping\n")
        }
        "/readyz" => (StatusCode::Ok, "ready\n"),
        _ => return None,
    };
    let mut response = Response::new(status);
    response.insert_header(CONTENT_TYPE, "text/plain; charset=utf-8");
    response.insert_header(CACHE_CONTROL, "no-store");
    response.set_body(text);
    Some(response)
}

/// Returns `true` if a successor serves: the connection of `request` goes there, although its
/// server is stopped. The client asks about the service, which goes on.
fn is_succeeded(request: &Request) -> bool {
    Token::of(request).is_stopping() && goes_on(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::stop::origin::Origin;
    use crate::stop::seat::Seat;
    use crate::stop::shutdown::Shutdown;
    use crate::stream::transport::Peer;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn ready_until_the_stop_and_live_beyond_it() {
        let shutdown = Shutdown::new();
        let ask = |method, path: &str| {
            let mut request = Request::new(method, &*format!("http://localhost{path}"));
            request.ext_mut().insert(shutdown.token());
            probe(&request).map(|response| u16::from(response.status()))
        };
        assert_eq!(ask(Method::Get, "/livez"), Some(200));
        assert_eq!(ask(Method::Head, "/readyz?verbose"), Some(200));
        assert_eq!(ask(Method::Post, "/readyz"), None);
        assert_eq!(ask(Method::Get, "/readyz/"), None);
        shutdown.stop();
        assert_eq!(ask(Method::Get, "/livez"), Some(200));
        assert_eq!(ask(Method::Get, "/readyz"), Some(503));
    }

    /// Rule H5: with a successor the service goes on, and so does this connection.
    #[test]
    fn a_connection_that_goes_to_the_successor_sees_it_ready() {
        let shutdown = Shutdown::new();
        let orders = shutdown.orders();
        orders.begin_hand_over(vec![Some(7), None]);
        shutdown.stop();
        for (listener, expected) in [(0, 200), (1, 503)] {
            let (peer, since) = (Peer::Unix, Instant::now());
            let origin = Arc::new(Origin::new(listener, Address::Other));
            let seat = Seat::of_listener(Some(origin), peer, orders.clone(), since);
            let mut request = Request::new(Method::Get, "http://localhost/readyz");
            request.ext_mut().insert(shutdown.attached(seat.call(), "/readyz"));
            let response = probe(&request).map(|response| u16::from(response.status()));
            assert_eq!(response, Some(expected));
        }
    }
}
