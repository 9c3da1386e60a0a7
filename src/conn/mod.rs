//! [`Conn`]: one connection, from its first byte to its end.
//!
//! Handshake, idle, exchanges, leave: each is a method of the connection, in a file of its own.
//! Invariant: an idle connection holds its transport and nothing else (rule W12), and a request
//! whose first byte has arrived is finished (rule S8). Whether the server stops is asked of the
//! seat, and never decided here.

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

use crate::activity::Doing;
use crate::limits::Limits;
use crate::orders::{Order, Orders};
use crate::seat::Seat;
use crate::shutdown::Shutdown;
use crate::transport::Transport;
use crate::wire::Gate;
use crate::wire::buffer::Buffer;
use crate::wire::head::Bounds;
use crate::wrapper::Wrapper;
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

impl Service {
    fn bounds(&self) -> Bounds {
        let Limits { head_bytes, headers, .. } = self.limits;
        Bounds { head_bytes, headers }
    }
}

/// A connection of a server.
pub(crate) struct Conn<'a> {
    service: &'a Service,
    seat: &'a Arc<Seat>,
    transport: Transport,
    /// Nobody has looked for a request yet.
    is_fresh: bool,
    /// The number of bytes of empty lines that have come in front of the next request. They count
    /// as a part of its head, however they were cut.
    empty: usize,
}

impl<'a> Conn<'a> {
    pub(crate) fn new(service: &'a Service, seat: &'a Arc<Seat>, transport: Transport) -> Self {
        Self { service, seat, transport, is_fresh: true, empty: 0 }
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
            while let Some((bytes, n)) = self.first_bytes().await {
                match self.exchanges(bytes, n).await {
                    Some(idle) => self = idle,
                    None => return,
                }
            }
            // The close says it: a FIN after the last look (rule S6), or a reset if an abort has
            // left something unread. Only a client that is slow to take what it was sent needs
            // more.
            let is_delivered = self.transport.undelivered() == 0 && !self.transport.is_wrapped();
            if !is_delivered && self.seat.order() < Order::Abort {
                // In a box: it is seldom needed, and would make room in every idle connection.
                Box::pin(leave(self.transport, self.seat, true)).await;
            }
        }
    }

    /// Serves requests until nothing more has arrived. Returns `None` if the connection has ended.
    ///
    /// The active phase is a future of its own, which is dropped when the connection falls idle
    /// (rule W12).
    fn exchanges(self, bytes: Buffer, n: usize) -> impl Future<Output = Option<Self>> {
        let Self { service, seat, transport, .. } = self;
        let gate = Gate::new(transport, bytes, n, seat.clone(), service.bounds());
        let active = Box::pin(Active::new(service, seat, gate).run());
        async move {
            // A handler's panic is answered where it happens, and a panic of a response's body ends
            // here.
            let ended = AssertUnwindSafe(active).catch_unwind().await;
            let (transport, empty) = ended.ok()??;
            Some(Self { service, seat, transport, is_fresh: false, empty })
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
