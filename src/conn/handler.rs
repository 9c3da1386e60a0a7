//! [`Handler`]: calls the program's handler, and makes a response if the handler fails.
//!
//! Invariant: a panic of the handler ends here (rule S17), and a client that got its body wrong
//! sees its own fault (rule W16). A call ends when its future is dropped, and the next call finds
//! the slot empty. Sends nothing.

use std::future::{Future, poll_fn};
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_lite::FutureExt;
use http_types::{Request, Response, StatusCode};
use log::Level;

use super::Service;
use crate::wire::Gate;
use crate::wire::head::Head;
use crate::wire::response::plain;

/// A handler of any type, with slots for the futures of its calls.
///
/// A handler's future is too large for the cache that malloc keeps for a thread, so a call uses the
/// slot of an earlier call.
pub(crate) struct Handler {
    make_slot: Box<dyn Fn() -> Box<dyn Slot> + Send + Sync>,
    /// The slots of calls that are over. The slots are kept here and not per thread, because a slot
    /// holds the handler, and the handler has to end with the server.
    spare: Mutex<Vec<Box<dyn Slot>>>,
}

/// The number of slots that a server keeps.
const MOST_SPARE: usize = 16;

impl Handler {
    pub(crate) fn new<H, F, R>(handler: H) -> Self
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = http_types::Result<R>> + Send + 'static,
        R: Into<Response>,
    {
        let handler = Arc::new(handler);
        let make_slot = move || -> Box<dyn Slot> {
            Box::new(SlotOf { handler: handler.clone(), future: Box::pin(None) })
        };
        Self { make_slot: Box::new(make_slot), spare: Mutex::default() }
    }

    /// Calls the handler. The caller catches a panic.
    fn call(&self, request: Request) -> Call<'_> {
        // A call never waits for this lock, because a new slot costs less.
        let spare = self.spare.try_lock().ok().and_then(|mut spare| spare.pop());
        // The `Call` exists before the handler runs, so its drop keeps the slot if the handler
        // panics.
        let mut call = Call { handler: self, slot: spare.or_else(|| Some((self.make_slot)())) };
        if let Some(slot) = &mut call.slot {
            slot.call(request);
        }
        call
    }
}

/// A handler at work on a request.
struct Call<'a> {
    handler: &'a Handler,
    /// `None` once the call is over.
    slot: Option<Box<dyn Slot>>,
}

impl Call<'_> {
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<http_types::Result<Response>> {
        self.slot.as_mut().map_or(Poll::Pending, |slot| slot.poll_response(cx))
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(mut slot) = self.slot.take() {
            // If the future panics when it is dropped, its slot is dropped, too, and not kept.
            slot.clear();
            if let Ok(mut spare) = self.handler.spare.try_lock() {
                if spare.len() < MOST_SPARE {
                    spare.push(slot);
                }
            }
        }
    }
}

/// Slot for the future of one call at a time.
trait Slot: Send {
    /// Calls the handler.
    fn call(&mut self, request: Request);

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<http_types::Result<Response>>;

    /// Drops the future of the call.
    fn clear(&mut self);
}

struct SlotOf<H, F> {
    handler: Arc<H>,
    future: Pin<Box<Option<F>>>,
}

impl<H, F, R> Slot for SlotOf<H, F>
where
    H: Fn(Request) -> F + Send + Sync,
    F: Future<Output = http_types::Result<R>> + Send,
    R: Into<Response>,
{
    fn call(&mut self, request: Request) {
        self.future.set(Some((self.handler)(request)));
    }

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<http_types::Result<Response>> {
        match self.future.as_mut().as_pin_mut() {
            Some(future) => future.poll(cx).map_ok(Into::into),
            None => Poll::Pending,
        }
    }

    fn clear(&mut self) {
        self.future.set(None);
    }
}

/// The reason why a handler has made no response.
pub(super) enum Failure {
    Error(http_types::Error),
    Panic,
}

/// Returns the response for a request whose handler has made none.
pub(super) fn failure_response(gate: &Gate, failure: &Failure) -> Response {
    match failure {
        // The handler's error is the client's fault if the client got its body wrong.
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

/// Replaces a response that hides the client's fault by a response with the status of that fault
/// (rule W16).
///
/// Many programs answer 500 to every error that they do not know. Others take the status from
/// http-types, which is 422 for every body that http-types could not read.
pub(super) fn answer_fault(gate: &Gate, response: &mut Response) {
    let answered = response.status();
    let is_unaware = answered.is_server_error() || answered == StatusCode::UnprocessableEntity;
    if let Some(status) = gate.fault().filter(|_| is_unaware) {
        log::debug!("{}: {status} for its body, instead of {answered}", gate.label());
        *response = plain(status);
    }
}

/// Calls the handler with the message. A panic in the call, or later in the handler's future, ends
/// here (rule S17).
///
/// # Errors
///
/// Returns 400 if the request's host and target do not make a valid URL.
pub(super) fn call_handler<'a>(
    service: &'a Service,
    gate: &Gate,
    head: &Head,
) -> Result<impl Future<Output = Result<Response, Failure>> + use<'a>, StatusCode> {
    let request = gate.request(head, &service.shutdown)?;
    let called = panic::catch_unwind(AssertUnwindSafe(|| service.handler.call(request)));
    Ok(async {
        // The panic hook has said where the panic was.
        let mut call = called.map_err(|_| Failure::Panic)?;
        let handled = AssertUnwindSafe(poll_fn(|cx| call.poll_response(cx))).catch_unwind().await;
        // The future may also panic when it is dropped.
        let dropped = panic::catch_unwind(AssertUnwindSafe(|| drop(call)));
        let (Ok(answer), Ok(())) = (handled, dropped) else { return Err(Failure::Panic) };
        answer.map_err(Failure::Error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::yield_now;
    use http_types::Method;
    use std::task::Waker;

    /// Returns a handler whose calls hold a clone of `held`. The handler answers at the second
    /// poll, and panics at a request for `/call` or `/poll`.
    fn handler(held: &Arc<()>) -> Handler {
        let held = held.clone();
        Handler::new(move |request| {
            let held = held.clone();
            assert_ne!(request.url().path(), "/call");
            async move {
                yield_now().await;
                assert_ne!(request.url().path(), "/poll");
                drop(held);
                Ok("okay")
            }
        })
    }

    fn request(path: &str) -> Request {
        Request::new(Method::Get, &*format!("http://localhost{path}"))
    }

    #[test]
    fn a_slot_is_used_again_and_holds_nothing_in_between() {
        let held = Arc::new(());
        let handler = handler(&held);
        let spare = || handler.spare.lock().unwrap().len();
        let cx = &mut Context::from_waker(Waker::noop());
        let held_by_none = Arc::strong_count(&held);
        let over = |expected| {
            assert_eq!((spare(), Arc::strong_count(&held)), (expected, held_by_none));
        };

        let mut call = handler.call(request("/"));
        assert!(call.poll_response(cx).is_pending());
        // Another call at the same time needs a slot of its own.
        let mut other = handler.call(request("/"));
        assert!(matches!(call.poll_response(cx), Poll::Ready(Ok(_))));
        drop(call);
        assert_eq!(spare(), 1);
        // A call may be dropped before it has an answer, or before it was polled.
        assert!(other.poll_response(cx).is_pending());
        drop(other);
        over(2);
        drop(handler.call(request("/")));
        over(2);

        let mut panics = handler.call(request("/poll"));
        assert!(panics.poll_response(cx).is_pending());
        let polled = panic::catch_unwind(AssertUnwindSafe(|| panics.poll_response(cx).is_ready()));
        assert!(polled.is_err());
        drop(panics);
        over(2);
        let called = || drop(handler.call(request("/call")));
        assert!(panic::catch_unwind(AssertUnwindSafe(called)).is_err());
        over(2);

        let many: Vec<_> = (0..2 * MOST_SPARE).map(|_| handler.call(request("/"))).collect();
        assert_eq!(spare(), 0);
        drop(many);
        over(MOST_SPARE);
    }

    #[test]
    fn the_handler_ends_with_its_server() {
        let held = Arc::new(());
        let handler = handler(&held);
        drop(handler.call(request("/")));
        drop(handler);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
