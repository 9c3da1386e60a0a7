//! The handshake of a connection whose listener has a wrapper (TLS).
//!
//! Invariant: the wrapper begins at the client's first byte, so a silent client counts as idle
//! (rule S7). The wrapper has as much time as a head. Does not know what the wrapper does.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use async_io::Timer;
use futures_lite::FutureExt;

use super::Conn;
use super::idle::FirstBytes;
use crate::listen::wrapper::Wrapper;
use crate::stop::activity::Doing;
use crate::stop::orders::Order;
use crate::stop::seat::Seat;
use crate::stream::connection::Connection;
use crate::stream::socket::Socket;
use crate::stream::transport::Transport;

impl Conn<'_> {
    /// Waits for the client's first byte as for a request (rule S7), and then lets the listener's
    /// wrapper do its part, for example the handshake of TLS. The wrapper has as much time as a
    /// head. Returns `None` if there is nothing to serve.
    pub(super) async fn handshake(mut self, wrapper: &Wrapper) -> Option<Self> {
        let (service, seat) = (self.service, self.seat);
        let mut ahead = Vec::new();
        if self.idle.transport.is_wrapped() {
            // A source's stream is not a plain socket even before the wrapper runs, so only a read
            // shows whether a byte has come.
            let FirstBytes::Request(read) = self.first_bytes().await else { return None };
            ahead.extend_from_slice(read.unread());
        }
        let (connection, socket, meter) =
            Connection::share(self.idle.transport, seat.peer(), ahead);
        if let Some(socket) = &socket {
            if !wait_for_first_byte(socket, seat).await {
                return None;
            }
        }
        seat.activity.begin(Doing::Handshake);
        let handshake = wrapper.wrap(connection);
        let late = poll_fn(|_| match seat.is_expired() {
            true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            false => Poll::Pending,
        });
        let wrapped = handshake.or(late).await;
        let failed = |error: &io::Error| wrapper.handshakes.fail(seat.peer(), error);
        let mut connection = wrapped.inspect_err(failed).ok()?;
        seat.learn(connection.peer(), connection.take_facts());
        seat.fall_idle();
        let mut transport = connection.into_transport(socket, Some(meter));
        if seat.order() >= Order::Finish {
            // The linger may have ended during the handshake, so the client gets a linger of its
            // own.
            wait_for_request(&mut transport, seat, service.shutdown.times().linger).await;
        }
        Some(Self::new(service, seat, transport))
    }
}

/// Waits for the client's first byte. Returns `false` if the connection has to close first, or if
/// the client leaves without sending anything, as health checks do.
async fn wait_for_first_byte(socket: &Socket, seat: &Seat) -> bool {
    let event = poll_fn(|cx| {
        if seat.order() == Order::Abort {
            return Poll::Ready(false);
        }
        // A byte that is in the socket wins over every reason to close but an abort, as in
        // `first_bytes` (rules S6, S7, S13).
        let readable = socket.poll_readable(cx);
        if readable.is_pending() && seat.doing() == Doing::Accepted {
            seat.activity.begin(Doing::Idle);
        }
        let is_last = seat.is_expired() || seat.order() >= Order::LastLook;
        match readable {
            Poll::Pending if is_last => Poll::Ready(false),
            readable => readable.map(|readable| readable.is_ok()),
        }
    });
    event.await && socket.waiting() > 0
}

/// Waits until a request has come, but not beyond `linger`, and not beyond an abort. The wrapper
/// may have read the request already, so the socket alone does not show whether one has come.
async fn wait_for_request(transport: &mut Transport, seat: &Seat, linger: Duration) {
    let request = poll_fn(|cx| match seat.order() {
        Order::Abort => Poll::Ready(()),
        _ => transport.poll_ahead(cx),
    });
    let linger = async {
        Timer::after(linger).await;
    };
    request.or(linger).await;
}
