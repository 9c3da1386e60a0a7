//! An idle connection: waits for a request to begin.
//!
//! Invariant: what is already in the socket wins over every reason to close (rules S6, S7), and
//! nothing is held but the transport while nothing has arrived (rule W12). Each step comes behind
//! the question what the server wants of the connection. Reads no head.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::task::{Context, Poll};

use super::Conn;
use crate::stop::activity::Doing;
use crate::stop::orders::Order;
use crate::wire::{Idle, Incoming};

/// The next step of an idle connection.
pub(super) enum FirstBytes {
    /// A request has begun to arrive.
    Request(Incoming),
    /// The connection goes to the successor, with whatever is in its socket.
    Leave,
    /// The connection is to be closed.
    Close,
}

impl FirstBytes {
    fn of(read: io::Result<Option<Incoming>>) -> Self {
        read.ok().flatten().map_or(Self::Close, Self::Request)
    }
}

/// How an idle connection finds out that a request has begun.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It lets other tasks run, and the client send its request meanwhile.
    GiveWay,
    /// It reads, and registers for no event (rule W17).
    Look,
    /// It waits for an event.
    Wait,
    /// It reads, because there may have been an event.
    Read,
}

impl Conn<'_> {
    /// Waits for a request to begin.
    ///
    /// A byte that is already in the socket wins over every reason to close (rules S6, S7).
    pub(super) async fn first_bytes(&mut self) -> FirstBytes {
        let Self { seat, idle, is_fresh, looks, .. } = self;
        // A new client has mostly sent its request by now. Later, waiting first saves a read. Under
        // a wrapper, only a read can tell whether there is something.
        let mut step = match mem::take(is_fresh) || idle.transport.is_wrapped() {
            true => Step::Read,
            false if looks.begin() => Step::GiveWay,
            false => Step::Wait,
        };
        poll_fn(|cx| {
            if seat.order() == Order::Abort {
                // A request that nobody has read is cut too, and the outcome has to name it.
                let asked = has_asked(idle, cx);
                seat.activity.begin(if asked { Doing::Accepted } else { Doing::Idle });
                return Poll::Ready(FirstBytes::Close);
            }
            // One that is expired stays for its last look: the successor would find it expired, too.
            if seat.order() == Order::Leave && !seat.is_expired() {
                return Poll::Ready(FirstBytes::Leave);
            }
            let is_last = seat.is_expired() || seat.order() >= Order::LastLook;
            if step == Step::GiveWay && !is_last {
                step = Step::Look;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if step == Step::Look && !is_last {
                let read = idle.poll_request(cx, true);
                looks.end(read.is_ready());
                if let Poll::Ready(read) = read {
                    return Poll::Ready(FirstBytes::of(read));
                }
                step = Step::Wait;
            }
            // A task that is woken has to look itself, so it waits for an event only once.
            if step == Step::Wait && !is_last {
                step = Step::Read;
                match idle.transport.poll_event(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(FirstBytes::Close),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if let Poll::Ready(read) = idle.poll_request(cx, is_last) {
                return Poll::Ready(FirstBytes::of(read));
            }
            let begun = idle.transport.has_begun();
            match seat.doing() {
                // Under a wrapper, a part of a request has arrived that does not make a byte yet
                // (rules S6, S8).
                Doing::Head if begun && seat.is_expired() => return Poll::Ready(FirstBytes::Close),
                Doing::Head if begun => {}
                _ if begun => seat.begin(None),
                // That was the last look.
                _ if is_last => return Poll::Ready(FirstBytes::Close),
                // TLS sends records of its own, so a record may end without a byte of a request.
                Doing::Accepted | Doing::Head => seat.activity.begin(Doing::Idle),
                _ => {}
            }
            // The read has left its waker.
            Poll::Pending
        })
        .await
    }
}

/// Returns `true` if the client has sent a part of a request that the server will not read any
/// more.
fn has_asked(idle: &mut Idle, cx: &mut Context<'_>) -> bool {
    if !idle.transport.is_wrapped() {
        return idle.transport.waiting() > 0;
    }
    match idle.poll_request(cx, true) {
        Poll::Ready(read) => matches!(read, Ok(Some(_))),
        Poll::Pending => idle.transport.has_begun(),
    }
}
