//! [`Trailers`]: the fields that a handler sends behind a response's last chunk (RFC 9110 section
//! 6.5).
//!
//! Invariant: trailers reach only a client that has asked for them, and no trailer frames, routes
//! or authorises the message (rule W15). If trailers cannot be sent, the log says why.

use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http_types::headers::HeaderValues;
use http_types::{Method, Response, Version, trailers};

use crate::log_limit::LogLimit;

use super::asked::{Asked, has_no_body};
use super::field::{is_clean, is_forbidden_trailer, is_one_of, is_token};

/// Holds back the last chunk of a response's body until the handler has sent its trailers.
pub(super) struct Trailers {
    receiver: trailers::Receiver,
    /// Set if the trailers are all that is still missing.
    pub(super) are_due: bool,
}

/// The end of a chunked body as async-h1 writes it, without room for trailers.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The fields that control what a client does with a response. The client needs them before the
/// body (RFC 9110 section 6.5.1). `field.rs` lists the fields that requests may not send as
/// trailers either.
#[rustfmt::skip]
const RESPONSE_CONTROLS: &[&str] = &[
    "age", "date", "expires", "location", "retry-after", "vary", "warning", "www-authenticate",
];

impl Trailers {
    /// Takes the trailers that the handler has promised for `response`.
    ///
    /// Returns `None` if the handler has promised none, or if something keeps the server from
    /// sending them. In the second case the log says why.
    pub(super) fn promised(response: &mut Response, asked: Asked) -> Option<Self> {
        if !response.has_trailers() {
            return None;
        }
        let obstacle = match Obstacle::between(response, asked) {
            Some(obstacle) => obstacle,
            // http-types panics if the handler has taken the receiver, and has no way to ask first.
            None => match panic::catch_unwind(AssertUnwindSafe(|| response.recv_trailers())) {
                Ok(receiver) => return Some(Self { receiver, are_due: false }),
                Err(_) => {
                    Obstacle::OfHandler("the handler has called `recv_trailers` itself".into())
                }
            },
        };
        static LIMIT: LogLimit = LogLimit::new();
        let why = match &obstacle {
            Obstacle::OfClient(why) => LIMIT.count(Instant::now()).and(Some(*why)),
            Obstacle::OfHandler(why) => Some(why.as_str()),
        };
        if let Some(why) = why {
            log::warn!("a response's trailers are not sent: {why}");
        }
        None
    }

    /// Returns the last chunk and the trailers behind it, once the handler has sent them.
    ///
    /// Returns a last chunk without trailers if the handler drops its sender instead.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Vec<u8>> {
        Pin::new(&mut self.receiver).poll(cx).map(|trailers| last_chunk(trailers.as_ref()))
    }
}

/// The reason why a response's trailers cannot be sent, and the side on which it depends.
#[derive(Debug, PartialEq, Eq)]
enum Obstacle {
    OfClient(&'static str),
    OfHandler(String),
}

impl Obstacle {
    /// Returns the first obstacle that keeps the trailers of `response` from a client that sent
    /// `asked`.
    fn between(response: &Response, asked: Asked) -> Option<Self> {
        let status = response.status();
        if asked.method == Method::Head {
            Some(Self::OfClient("the response to HEAD has no body"))
        } else if has_no_body(status) {
            Some(Self::OfHandler(format!("a response with status {status} has no body")))
        } else if response.len().is_some() {
            Some(Self::OfHandler("the length of the body is known, so it has no chunks".into()))
        } else if asked.version == Version::Http1_0 {
            Some(Self::OfClient("HTTP/1.0 has no trailers"))
        } else if !asked.accepts_trailers {
            Some(Self::OfClient("the client has not sent `TE: trailers`"))
        } else {
            None
        }
    }
}

/// Writes the last chunk with the trailers that may be sent, ordered by name like async-h1's
/// fields.
fn last_chunk(trailers: Option<&trailers::Trailers>) -> Vec<u8> {
    let mut fields: Vec<_> = trailers.into_iter().flat_map(|trailers| trailers.iter()).collect();
    fields.sort_unstable_by_key(|(name, _)| name.as_str());
    let mut end = b"0\r\n".to_vec();
    for (name, values) in fields {
        let name = name.as_str();
        if let Err(problem) = judge(name, values) {
            log::warn!("a handler's trailer is left out, because {problem}: {name:?}");
            continue;
        }
        for value in values {
            end.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
    }
    end.extend_from_slice(b"\r\n");
    end
}

/// Decides whether the server may send a trailer.
///
/// # Errors
///
/// Returns the reason why the server must not send the trailer.
fn judge(name: &str, values: &HeaderValues) -> Result<(), &'static str> {
    if !is_token(name) || !values.iter().all(|value| is_clean(value.as_str())) {
        return Err("it is not a valid field");
    }
    let name = name.as_bytes();
    if is_forbidden_trailer(name) || is_one_of(name, RESPONSE_CONTROLS) {
        return Err("clients need it before the body");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_types::{Body, StatusCode};

    fn asked(method: Method, version: Version, accepts_trailers: bool) -> Asked {
        Asked { method, version, accepts_trailers }
    }

    #[test]
    fn trailers_need_chunks_and_a_client_that_accepts_them() {
        use Version::{Http1_0, Http1_1};
        let known = || Response::from("hello");
        let streamed =
            || Response::from(Body::from_reader(futures_lite::io::Cursor::new("hello"), None));
        let with_status = |status: StatusCode| {
            let mut response = streamed();
            response.set_status(status);
            response
        };
        let of_client = Obstacle::OfClient;
        let of_handler = |why: &str| Obstacle::OfHandler(why.into());
        let known_length = || of_handler("the length of the body is known, so it has no chunks");
        for (response, asked, obstacle) in [
            (streamed(), asked(Method::Get, Http1_1, true), None),
            (streamed(), asked(Method::Post, Http1_1, true), None),
            (
                streamed(),
                asked(Method::Get, Http1_1, false),
                Some(of_client("the client has not sent `TE: trailers`")),
            ),
            (
                streamed(),
                asked(Method::Get, Http1_0, false),
                Some(of_client("HTTP/1.0 has no trailers")),
            ),
            (
                streamed(),
                asked(Method::Head, Http1_1, true),
                Some(of_client("the response to HEAD has no body")),
            ),
            (known(), asked(Method::Get, Http1_1, true), Some(known_length())),
            (Response::new(200), asked(Method::Get, Http1_1, true), Some(known_length())),
            // The handler's own fault takes precedence over the client's choice.
            (known(), asked(Method::Get, Http1_1, false), Some(known_length())),
            (
                known(),
                asked(Method::Head, Http1_1, true),
                Some(of_client("the response to HEAD has no body")),
            ),
            (
                with_status(StatusCode::NoContent),
                asked(Method::Get, Http1_1, true),
                Some(of_handler("a response with status 204 has no body")),
            ),
            (
                with_status(StatusCode::NotModified),
                asked(Method::Get, Http1_1, true),
                Some(of_handler("a response with status 304 has no body")),
            ),
        ] {
            assert_eq!(Obstacle::between(&response, asked), obstacle, "{asked:?} {response:?}");
        }
    }

    #[test]
    fn a_last_chunk_holds_what_may_be_sent() {
        assert_eq!(last_chunk(None), LAST_CHUNK);
        assert_eq!(last_chunk(Some(&trailers::Trailers::new())), LAST_CHUNK);
        let mut trailers = trailers::Trailers::new();
        trailers.insert("x-two", "2");
        trailers.append("x-two", "two");
        trailers.insert("Content-Digest", "md5=:x:");
        trailers.insert("x-empty", "");
        let good = "0\r\ncontent-digest: md5=:x:\r\nx-empty: \r\nx-two: 2\r\nx-two: two\r\n\r\n";
        assert_eq!(last_chunk(Some(&trailers)), good.as_bytes());
        #[rustfmt::skip]
        let bad = [
            "", "a b", "a:", "a\r\nb",
            "Content-Length", "Transfer-Encoding", "Trailer", "TE", "Connection", "Host", "Content-Type",
            "Authorization", "Set-Cookie", "If-Match", "Proxy-Authenticate", "X-Forwarded-For",
            "Cache-Control", "Date", "Location", "Vary", "WWW-Authenticate",
        ];
        for name in bad {
            trailers.insert(name, "x");
        }
        for (i, value) in ["a\r\nevil: b", "a\nb", "a\rb", "a\0"].into_iter().enumerate() {
            trailers.insert(format!("x-bad-{i}").as_str(), value);
        }
        trailers.append("x-mixed", "fine");
        trailers.append("x-mixed", "\r\n\r\nevil");
        assert_eq!(last_chunk(Some(&trailers)), good.as_bytes());
    }

    #[test]
    fn a_handler_may_have_taken_the_receiver() {
        let mut response = Response::from(Body::from_reader(futures_lite::io::empty(), None));
        let _sender = response.send_trailers();
        let _receiver = response.recv_trailers();
        assert!(
            Trailers::promised(&mut response, asked(Method::Get, Version::Http1_1, true)).is_none()
        );
    }
}
