//! An idle connection: waits for a request to begin.
//!
//! Invariant: what is already in the socket wins over every reason to close (rules S6, S7), and
//! nothing is held but the transport while nothing has arrived (rule W12). Reads no head.

use std::future::poll_fn;
use std::mem;
use std::task::{Context, Poll};

use super::Conn;
use crate::activity::Doing;
use crate::orders::Order;
use crate::transport::Transport;
use crate::wire::buffer::Buffer;
use crate::wire::{LAST_LOOKS, is_empty_lines};

impl Conn<'_> {
    /// Waits for a request to begin; `None` when the connection is to be closed.
    ///
    /// A byte that is already in the socket wins over every reason to close (rules S6, S7).
    pub(super) async fn first_bytes(&mut self) -> Option<(Buffer, usize)> {
        let Self { seat, transport, is_fresh, empty, .. } = self;
        // A new client has mostly sent its request by now; later, waiting first saves a read.
        let mut look = mem::take(is_fresh);
        // A wrapped stream may return `Pending` although it holds data (piper yields at random), so
        // poll it a few more times.
        let mut looks = LAST_LOOKS;
        poll_fn(|cx| {
            loop {
                if seat.order() == Order::Abort {
                    // A request that nobody has read is cut too, and the outcome has to name it.
                    let asked = has_asked(transport, cx);
                    seat.activity.begin(if asked { Doing::Accepted } else { Doing::Idle });
                    return Poll::Ready(None);
                }
                let leave = seat.is_expired() || seat.order() >= Order::LastLook;
                if !(look || leave) {
                    match transport.poll_event(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => return Poll::Ready(None),
                        Poll::Pending => {
                            // A task that is woken has to look itself.
                            look = true;
                            return Poll::Pending;
                        }
                    }
                }
                look = true;
                let mut bytes = Buffer::new();
                bytes[..*empty]
                    .iter_mut()
                    .zip(b"\r\n".iter().cycle())
                    .for_each(|(to, byte)| *to = *byte);
                let room = &mut bytes[*empty..];
                let read = match leave {
                    true => transport.poll_last_read(cx, room),
                    false => transport.poll_read(cx, room),
                };
                match read {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                    // Empty lines are no request yet (RFC 9112 section 2.2).
                    Poll::Ready(Ok(n)) if is_empty_lines(&bytes[..*empty + n]) => {
                        *empty += n;
                        continue;
                    }
                    Poll::Ready(Ok(n)) => return Poll::Ready(Some((bytes, *empty + n))),
                    Poll::Pending if leave && transport.is_wrapped() && looks > 1 => {
                        looks -= 1;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    // Under a wrapper, a part of a request has arrived that does not make a byte
                    // yet (rules S6, S8).
                    Poll::Pending if transport.has_begun() => {
                        if seat.doing() != Doing::Head {
                            seat.begin(None);
                        } else if seat.is_expired() {
                            return Poll::Ready(None);
                        }
                        return Poll::Pending;
                    }
                    // That was the last look.
                    Poll::Pending if leave => return Poll::Ready(None),
                    Poll::Pending => {}
                }
                // TLS sends records of its own, so a record may end without a byte of a request.
                if matches!(seat.doing(), Doing::Accepted | Doing::Head) {
                    seat.activity.begin(Doing::Idle);
                }
                // The read has left its waker.
                return Poll::Pending;
            }
        })
        .await
    }
}

/// Returns `true` if the client has sent a part of a request that the server will not read any
/// more.
fn has_asked(transport: &mut Transport, cx: &mut Context<'_>) -> bool {
    if !transport.is_wrapped() {
        return transport.waiting() > 0;
    }
    let mut bytes = Buffer::new();
    // A wrapped stream may return `Pending` although it holds data, so poll it a few more times.
    let mut reads = (0..LAST_LOOKS).map(|_| transport.poll_last_read(cx, &mut bytes));
    match reads.find(Poll::is_ready) {
        Some(Poll::Ready(read)) => read.is_ok_and(|n| !is_empty_lines(&bytes[..n])),
        _ => transport.has_begun(),
    }
}
