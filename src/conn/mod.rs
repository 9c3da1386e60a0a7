//! [`Conn`]: one connection, from its first byte to its end.
//!
//! Handshake, idle, exchanges, leave: each has a file of its own. Invariant: an idle connection
//! holds its transport and nothing else (rule W12), and a request whose first byte has arrived is
//! finished (rule S8), here or by the successor. The seat says what the server wants. Nothing here
//! decides to stop.

mod exchange;
pub(crate) mod handler;
mod handshake;
mod idle;
mod leave;
pub(crate) mod leaving;

use std::future::{Future, poll_fn};
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::thread;

use futures_lite::FutureExt;
use smol::channel::Sender;

use crate::error::reason;
use crate::limits::Limits;
use crate::listen::wrapper::Wrapper;
use crate::observe::Observer;
use crate::stop::activity::Doing;
use crate::stop::orders::{Order, Orders};
use crate::stop::seat::Seat;
use crate::stop::shutdown::Shutdown;
use crate::stream::transport::Transport;
use crate::wire::head::Bounds;
use crate::wire::{Gate, Idle, Incoming, Movable};
use exchange::{Active, Behind};
use handler::Handler;
use idle::FirstBytes;
use leave::leave;
use leaving::{Counted, Leaving};

/// The state that all connections of a server share.
pub(crate) struct Service {
    pub(crate) handler: Handler,
    pub(crate) limits: Limits,
    /// Hears of each exchange.
    pub(crate) observer: Option<Arc<Observer>>,
    pub(crate) shutdown: Shutdown,
    /// The server's orders to its connections.
    pub(crate) orders: Arc<Orders>,
    /// Takes the connections that leave for the successor.
    pub(crate) leavers: Sender<Leaving>,
}

impl Service {
    /// Notes that the task of a connection has ended: because the connection has, or because it
    /// leaves for the successor.
    pub(crate) fn end(&self, counted: Counted, served: thread::Result<Option<Movable>>) {
        match served {
            Ok(None) => {}
            Ok(Some(connection)) => {
                let peer = counted.seat.peer();
                match Leaving::new(connection, counted) {
                    // If nobody takes it, the process is about to end.
                    Ok(leaving) => drop(self.leavers.try_send(leaving)),
                    Err(error) => log::error!("{peer}: lost on its way: {}", reason(&error)),
                }
            }
            Err(_) => log::error!("{}: the connection's stream has panicked", counted.seat.peer()),
        }
    }
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

    /// Takes a connection that another task or process has served before.
    pub(crate) fn of(service: &'a Service, seat: &'a Arc<Seat>, idle: Idle) -> Self {
        Self { service, seat, idle, is_fresh: false }
    }

    // None of these is an `async fn`, which keeps room for its arguments twice: an idle connection
    // has to stay small (rule W12).

    /// Serves the connection until it ends, the server aborts it, or it leaves. Returns it if it
    /// leaves for the successor.
    pub(crate) fn serve(self) -> impl Future<Output = Option<Movable>> + Send + 'a {
        until_aborted(self.seat, self.requests())
    }

    /// Like [`Conn::serve`], for a connection that a listener's wrapper gets first.
    pub(crate) fn serve_wrapped(
        self,
        wrapper: &'a Wrapper,
    ) -> impl Future<Output = Option<Movable>> + Send + 'a {
        until_aborted(self.seat, async move { self.handshake(wrapper).await?.requests().await })
    }

    /// Like [`Conn::serve`], for a connection of whose next request a part was read already.
    pub(crate) fn serve_begun(
        self,
        incoming: Incoming,
    ) -> impl Future<Output = Option<Movable>> + Send + 'a {
        until_aborted(self.seat, async move {
            match self.exchanges(incoming).await {
                ControlFlow::Continue(idle) => idle.requests().await,
                ControlFlow::Break(left) => left,
            }
        })
    }

    /// Idle, active, idle, active, …
    #[expect(clippy::manual_async_fn, reason = "an `async fn` keeps room for its arguments twice")]
    fn requests(mut self) -> impl Future<Output = Option<Movable>> + Send + 'a {
        async move {
            loop {
                // With `while let`, an idle connection would keep room for what it waits for.
                let exchanges = match self.first_bytes().await {
                    FirstBytes::Request(incoming) => self.exchanges(incoming),
                    FirstBytes::Leave => return Some(self.idle.into_movable()),
                    FirstBytes::Close => break,
                };
                match exchanges.await {
                    ControlFlow::Continue(idle) => self = idle,
                    ControlFlow::Break(left) => return left,
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
            None
        }
    }

    /// Serves requests until nothing more has arrived, and continues with the idle connection then.
    /// Otherwise breaks: with what leaves for the successor, or with `None` if the connection has
    /// ended.
    ///
    /// The active phase is a future of its own, which is dropped when the connection falls idle
    /// (rule W12).
    fn exchanges(
        self,
        incoming: Incoming,
    ) -> impl Future<Output = ControlFlow<Option<Movable>, Self>> {
        let Self { service, seat, idle, .. } = self;
        let Limits { head_bytes, headers, .. } = service.limits;
        let bounds = Bounds { head_bytes, headers };
        let gate = Gate::new(idle.transport, incoming, seat.clone(), bounds)
            .observed_by(service.observer.as_ref());
        let active = Box::pin(Active::new(service, seat, gate).run());
        // A handler's panic is answered where it happens, and a panic of a response's body ends
        // here.
        async move {
            match AssertUnwindSafe(active).catch_unwind().await.ok().flatten() {
                Some(Behind::Idle(idle)) => {
                    ControlFlow::Continue(Self { service, seat, idle, is_fresh: false })
                }
                Some(Behind::Movable(connection)) => ControlFlow::Break(Some(connection)),
                None => ControlFlow::Break(None),
            }
        }
    }
}

/// Runs `served` until the server aborts the connection, before it can finish what the outcome
/// names as cut (rule S13). Between requests, the connection has a last look first.
///
/// Each poll of the connection begins here, so its seat learns here whom to wake.
fn until_aborted<'a>(
    seat: &'a Seat,
    served: impl Future<Output = Option<Movable>> + Send + 'a,
) -> impl Future<Output = Option<Movable>> + Send + 'a {
    let aborted = poll_fn(|cx| {
        seat.register(cx.waker());
        let is_between = matches!(seat.doing(), Doing::Accepted | Doing::Idle);
        if seat.order() == Order::Abort && !is_between { Poll::Ready(None) } else { Poll::Pending }
    });
    aborted.or(served)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::seat::Seat;
    use crate::stream::socket::Socket;
    use crate::stream::transport::Peer;
    use smol::channel;
    use std::future;
    use std::os::unix::net::UnixStream;

    /// Rule W12. Whatever `serve` keeps, each idle connection keeps.
    #[test]
    fn an_idle_connection_is_small() {
        let service = Service {
            handler: Handler::new(|_| future::pending::<http_types::Result<&str>>()),
            limits: Limits::default(),
            observer: None,
            shutdown: Shutdown::new(),
            orders: Arc::new(Orders::under(Arc::default())),
            leavers: channel::unbounded().0,
        };
        let seat = Seat::new(Peer::Unix, service.orders.clone());
        let (socket, _client) = UnixStream::pair().unwrap();
        let conn = Conn::new(&service, &seat, Transport::Plain(Socket::unix(socket).unwrap()));
        assert!(size_of_val(&conn.serve()) <= 16 * size_of::<usize>());
    }
}
