//! [`leave`]: how a connection ends after its last response.
//!
//! Invariant: the last response is never lost to a reset (rule S9; RFC 9112 section 9.6). The
//! client's kernel takes all of it first, or takes nothing more for a time. Sends no byte of HTTP.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use async_io::Timer;
use futures_lite::{FutureExt, future};

use crate::activity::{Doing, Wait};
use crate::orders::Order;
use crate::seat::Seat;
use crate::transport::Transport;
use crate::wire::buffer::Buffer;

/// Half-closes, and closes when no reset can take the last response away (rule S9; RFC 9112 section
/// 9.6): what the client still sends is discarded until it has taken everything, and with `at_rest`
/// that is all; without, when it owes the rest of a message or has sent more, until it closes or a
/// short, bounded time is over.
pub(super) async fn leave(mut transport: Transport, seat: &Seat, mut at_rest: bool) {
    let is_draining = || seat.order() >= Order::Finish;
    let activity = &seat.activity;
    activity.begin(Doing::Closing);
    let mut seen = None;
    let half_closed = poll_fn(|cx| {
        let closed = transport.poll_half_close(cx);
        if closed.is_ready() {
            return closed;
        }
        // A wrapper may still hold output, so its client gets as long as a slow client.
        let moved = Some((transport.metered_sent(), transport.undelivered()));
        if moved != seen {
            seen = moved;
            if transport.has_socket() {
                activity.wait(Wait::Room, true);
            }
            activity.progress();
        } else if seat.is_expired() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    });
    if half_closed.await.is_err() {
        return;
    }
    let mut scrap = Buffer::new();
    let mut seen = None;
    let mut pause = Duration::from_millis(1);
    loop {
        let look = poll_fn(|cx| {
            let read = transport.poll_read(cx, &mut scrap);
            let Poll::Pending = read else { return read.map(|read| read.unwrap_or(0)) };
            let left = transport.undelivered();
            let is_over = seat.is_expired();
            if left == 0 {
                let is_done = at_rest || (is_over && !activity.look().waits_for(Wait::Room));
                if !is_done {
                    activity.got(Wait::Room);
                }
                return if is_done { Poll::Ready(0) } else { Poll::Pending };
            }
            // A slow client, which is given up only if it takes nothing more.
            if seen != Some(left) && (is_over || is_draining()) {
                seen = Some(left);
                activity.wait(Wait::Room, true);
                activity.progress();
            } else if is_over {
                return Poll::Ready(0);
            }
            Poll::Pending
        });
        // No event tells when the client's kernel has taken something; in the drain that is looked
        // at, otherwise the sweep's wake-up will do.
        let wait = async {
            if !is_draining() {
                future::pending::<()>().await;
            }
            Timer::after(pause).await;
            usize::MAX
        };
        match look.or(wait).await {
            0 => return,
            usize::MAX => pause = (pause * 2).min(Duration::from_millis(100)),
            _ if transport.undelivered() == 0 && seat.is_expired() => return,
            _ => {
                at_rest = false;
                // A client that never stops sending must not keep others from their turn.
                future::yield_now().await;
            }
        }
    }
}
