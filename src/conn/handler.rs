//! The handler: how it is called, and what its client gets if it fails.
//!
//! Invariant: a panic of the handler ends here (rule S17), and if the client got its body wrong, it
//! sees its own fault (rule W16). Sends nothing.

use std::future::{Future, poll_fn};
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::FutureExt;
use http_types::{Request, Response, StatusCode};
use log::Level;

use super::Service;
use crate::wire::Gate;
use crate::wire::head::Head;
use crate::wire::response::plain;

/// A handler, whatever its own type.
pub(crate) type Handler = dyn Fn(Request) -> Pin<Box<dyn Handling>> + Send + Sync;

/// A handler at work on a request: its own future, not another one around it.
pub(crate) trait Handling: Send {
    fn poll_response(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<http_types::Result<Response>>;
}

impl<F, R> Handling for F
where
    F: Future<Output = http_types::Result<R>> + Send,
    R: Into<Response>,
{
    fn poll_response(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<http_types::Result<Response>> {
        self.poll(cx).map_ok(Into::into)
    }
}

/// Why there is no response.
pub(super) enum Failure {
    Error(http_types::Error),
    Panic,
}

/// Returns the response for a request whose handler had none.
pub(super) fn apology(gate: &Gate, failure: &Failure) -> Response {
    match failure {
        // If the client got its body wrong, the error is the client's.
        Failure::Error(error) => {
            let status = gate.fault().unwrap_or(error.status());
            // Clients must not fill the log with their own faults.
            let level = if status.is_server_error() { Level::Warn } else { Level::Debug };
            log::log!(level, "{}: {status}: {error}", gate.label());
            plain(status)
        }
        Failure::Panic => {
            log::error!("{}: the handler has panicked", gate.label());
            plain(StatusCode::InternalServerError)
        }
    }
}

/// Puts the status of the client's fault in the place of a response that does not know it (rule
/// W16).
///
/// Many programs answer 500 to every error that they do not know, or take the status from
/// http-types, which calls every body that it could not read 422.
pub(super) fn answer_fault(gate: &Gate, response: Response) -> Response {
    let answered = response.status();
    let is_unaware = answered.is_server_error() || answered == StatusCode::UnprocessableEntity;
    match gate.fault() {
        Some(status) if is_unaware => {
            log::debug!("{}: {status} for its body, instead of {answered}", gate.label());
            plain(status)
        }
        _ => response,
    }
}

/// Calls the handler with the message. A panic in the call, or later in the handler's future, ends
/// here (rule S17).
///
/// # Errors
///
/// 400 if no URL says what the client has asked for.
pub(super) fn ask(
    service: &Service,
    gate: &Gate,
    head: &Head,
) -> Result<impl Future<Output = Result<Response, Failure>> + use<>, StatusCode> {
    let request = gate.request(head, &service.shutdown)?;
    let called = panic::catch_unwind(AssertUnwindSafe(|| (service.handler)(request)));
    Ok(async {
        // The panic hook has said where.
        let mut handling = called.map_err(|_| Failure::Panic)?;
        let handled = poll_fn(|cx| handling.as_mut().poll_response(cx));
        let handled = AssertUnwindSafe(handled).catch_unwind();
        handled.await.map_err(|_| Failure::Panic)?.map_err(Failure::Error)
    })
}
