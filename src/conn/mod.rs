//! [`Conn`]: one connection, from its first byte to its end.
//!
//! Handshake, idle, exchanges, leave: each has a file of its own. Invariant: an idle connection
//! holds its transport and nothing else (rule W12), and a request whose first byte has arrived is
//! finished (rule S8). The seat says what the server wants. Nothing here decides to stop.

mod exchange;
pub(crate) mod handler;
mod handshake;
mod idle;
mod leave;

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;

use futures_lite::FutureExt;

use crate::limits::Limits;
use crate::listen::wrapper::Wrapper;
use crate::stop::activity::Doing;
use crate::stop::orders::{Order, Orders};
use crate::stop::seat::Seat;
use crate::stop::shutdown::Shutdown;
use crate::stream::transport::Transport;
use crate::wire::head::Bounds;
use crate::wire::{Gate, Idle, Incoming};
use exchange::Active;
use handler::Handler;
use leave::leave;

/// The state that all connections of a server share.
pub(crate) struct Service {
    pub(crate) handler: Box<Handler>,
    pub(crate) limits: Limits,
    pub(crate) shutdown: Shutdown,
    /// The server's orders to its connections.
    pub(crate) orders: Arc<Orders>,
}

/// A connection of a server.
pub(crate) struct Conn<'a> {
    service: &'a Service,
    seat: &'a Arc<Seat>,
    idle: Idle,
    /// Set if nobody has looked for a request yet.
    is_fresh: bool,
}

impl<'a> Conn<'a> {
    pub(crate) fn new(service: &'a Service, seat: &'a Arc<Seat>, transport: Transport) -> Self {
        Self { service, seat, idle: Idle::new(transport), is_fresh: true }
    }

    // None of these is an `async fn`, which keeps room for its arguments twice: an idle connection
    // has to stay small (rule W12).

    /// Serves the connection until it ends or the server aborts it.
    pub(crate) fn serve(self) -> impl Future<Output = ()> + Send + 'a {
        until_aborted(self.seat, self.requests())
    }

    /// Like [`Conn::serve`], for a connection that a listener's wrapper gets first.
    pub(crate) fn serve_wrapped(
        self,
        wrapper: &'a Wrapper,
    ) -> impl Future<Output = ()> + Send + 'a {
        until_aborted(self.seat, async move {
            if let Some(conn) = self.handshake(wrapper).await {
                conn.requests().await;
            }
        })
    }

    /// Idle, active, idle, active, …
    #[expect(clippy::manual_async_fn, reason = "an `async fn` keeps room for its arguments twice")]
    fn requests(mut self) -> impl Future<Output = ()> + Send + 'a {
        async move {
            loop {
                // With `while let`, an idle connection would keep room for what it waits for.
                let exchanges = match self.first_bytes().await {
                    Some(incoming) => self.exchanges(incoming),
                    None => break,
                };
                match exchanges.await {
                    Some(idle) => self = idle,
                    None => return,
                }
            }
            // The close says it: a FIN after the last look (rule S6), or a reset if an abort has
            // left something unread. Only a client that is slow to take what it was sent needs
            // more.
            let transport = self.idle.transport;
            let is_delivered = transport.undelivered() == 0 && !transport.is_wrapped();
            if !is_delivered && self.seat.order() < Order::Abort {
                // In a box: it is seldom needed, and would make room in every idle connection.
                Box::pin(leave(transport, self.seat, true)).await;
            }
        }
    }

    /// Serves requests until nothing more has arrived. Returns `None` if the connection has ended.
    ///
    /// The active phase is a future of its own, which is dropped when the connection falls idle
    /// (rule W12).
    fn exchanges(self, incoming: Incoming) -> impl Future<Output = Option<Self>> {
        let Self { service, seat, idle, .. } = self;
        let Limits { head_bytes, headers, .. } = service.limits;
        let bounds = Bounds { head_bytes, headers };
        let gate = Gate::new(idle.transport, incoming, seat.clone(), bounds);
        let active = Box::pin(Active::new(service, seat, gate).run());
        async move {
            // A handler's panic is answered where it happens, and a panic of a response's body ends
            // here.
            let ended = AssertUnwindSafe(active).catch_unwind().await;
            Some(Self { service, seat, idle: ended.ok()??, is_fresh: false })
        }
    }
}

/// Runs `served` until the server aborts the connection, before it can finish what the outcome
/// names as cut (rule S13). Between requests, the connection has a last look first.
///
/// Each poll of the connection begins here, so its seat learns here whom to wake.
fn until_aborted<'a>(
    seat: &'a Seat,
    served: impl Future<Output = ()> + Send + 'a,
) -> impl Future<Output = ()> + Send + 'a {
    let aborted = poll_fn(|cx| {
        seat.register(cx.waker());
        let is_between = matches!(seat.doing(), Doing::Accepted | Doing::Idle);
        if seat.order() == Order::Abort && !is_between { Poll::Ready(()) } else { Poll::Pending }
    });
    aborted.or(served)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::seat::Seat;
    use crate::stream::socket::Socket;
    use crate::stream::transport::Peer;
    use std::os::unix::net::UnixStream;

    /// Rule W12. Whatever `serve` keeps, each idle connection keeps.
    #[test]
    fn an_idle_connection_is_small() {
        let service = Service {
            handler: Box::new(|_| unreachable!("there is no request")),
            limits: Limits::default(),
            shutdown: Shutdown::new(),
            orders: Arc::new(Orders::under(Arc::default())),
        };
        let seat = Seat::new(Peer::Unix, service.orders.clone());
        let (socket, _client) = UnixStream::pair().unwrap();
        let conn = Conn::new(&service, &seat, Transport::Plain(Socket::unix(socket).unwrap()));
        assert!(size_of_val(&conn.serve()) <= 16 * size_of::<usize>());
    }
}
