//! [`leave`]: how a connection ends after its last response.
//!
//! Invariant: the last response is never lost to a reset (rule S9, and RFC 9112 section 9.6). The
//! server closes only when the client's kernel has taken the whole response, or has taken nothing
//! more for a time. Does not send HTTP.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use async_io::Timer;
use futures_lite::FutureExt;

use crate::stop::activity::{Doing, Wait};
use crate::stop::seat::Seat;
use crate::stream::transport::Transport;
use crate::wire::buffer::Buffer;

/// The bytes that a client may still send after the last response.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// The client owes nothing, and has sent nothing more.
    Nothing,
    /// The client owes the rest of a message, or has sent more.
    More,
}

/// Half-closes the connection, and closes it when no reset can take the last response away (rule
/// S9, and RFC 9112 section 9.6).
///
/// Discards what the client still sends until the client has taken everything. If nothing more is
/// expected, the connection closes then. Otherwise the server goes on discarding until the client
/// closes or a short, bounded time is over.
pub(super) async fn leave(mut transport: Transport, seat: &Seat, mut expected: Expected) {
    let activity = &seat.activity;
    activity.begin(Doing::Closing);
    if half_close(&mut transport, seat).await.is_err() {
        return;
    }
    let is_draining = || seat.orders.is_stopping();
    // The number of undelivered bytes when the client last got more time to take them.
    let mut left_before = None;
    let ended = poll_fn(|cx| {
        match transport.poll_read(cx, &mut Buffer::new()) {
            Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(_)) => {
                expected = Expected::More;
                // A client that never stops sending must not keep others from their turn.
                cx.waker().wake_by_ref();
                let is_over = transport.undelivered() == 0 && seat.is_expired();
                return if is_over { Poll::Ready(()) } else { Poll::Pending };
            }
            Poll::Pending => {}
        }
        let left = transport.undelivered();
        let is_over = seat.is_expired();
        if left == 0 {
            // If the client has only now taken the rest of the response, its time to close begins
            // here (`got` counts a move).
            let is_late = is_over && !activity.look().waits_for(Wait::Room);
            if expected == Expected::Nothing || is_late {
                return Poll::Ready(());
            }
            activity.got(Wait::Room);
        } else if left_before != Some(left) && (is_over || is_draining()) {
            // This is the first check, or the client has taken something since the last check, so
            // the client's time begins again.
            left_before = Some(left);
            activity.wait(Wait::Room, true);
            activity.progress();
        } else if is_over {
            return Poll::Ready(());
        }
        Poll::Pending
    });
    // No event tells when the client's kernel has taken something, so in the drain this task polls
    // `ended` at short intervals. At other times the sweep wakes the task often enough. If the
    // drain begins later, the end of the linger wakes the task.
    let ticks = async {
        let mut pause = Duration::from_millis(1);
        loop {
            poll_fn(|_| if is_draining() { Poll::Ready(()) } else { Poll::Pending }).await;
            Timer::after(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    };
    ended.or(ticks).await;
}

/// Half-closes the stream. If a wrapper still holds output, waits for the client as long as for a
/// slow client.
async fn half_close(transport: &mut Transport, seat: &Seat) -> io::Result<()> {
    let mut seen = None;
    poll_fn(|cx| {
        let closed = transport.poll_half_close(cx);
        if closed.is_ready() {
            return closed;
        }
        let moved = Some((transport.metered_sent(), transport.undelivered()));
        if moved != seen {
            seen = moved;
            if transport.has_socket() {
                seat.activity.wait(Wait::Room, true);
            }
            seat.activity.progress();
        } else if seat.is_expired() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    })
    .await
}
