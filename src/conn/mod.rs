//! [`Conn`]: one connection, from its first byte to its end.
//!
//! Handshake, idle wait, exchanges and leave-taking each have a file of their own. Invariant: an
//! idle connection holds its transport and nothing else (rule W12), and a request whose first byte
//! has arrived is finished (rule S8), here or by the successor. The seat says what the server
//! wants, and nothing in this folder decides to stop.

mod exchange;
pub(crate) mod handler;
mod handshake;
mod idle;
mod leave;
pub(crate) mod leaving;
pub(crate) mod look;

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
use exchange::{Active, AfterActive};
use handler::Handler;
use idle::FirstBytes;
use leave::{Expected, leave};
use leaving::{Counted, Leaving};
use look::Looks;

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
    /// Sends a connection that leaves for the successor to the courier. Otherwise the connection
    /// stops counting here, because `counted` is dropped.
    pub(crate) fn end(&self, counted: Counted, served: thread::Result<Option<Movable>>) {
        match served {
            Ok(None) => {}
            Ok(Some(connection)) => {
                let peer = counted.seat.peer();
                match Leaving::new(connection, counted) {
                    // A send fails only if the server is gone, and then nobody can serve the
                    // connection.
                    Ok(leaving) => drop(self.leavers.try_send(leaving)),
                    Err(error) => log::error!("{peer}: lost on its way: {}", reason(&error)),
                }
            }
            Err(_) => log_panic(&counted.seat),
        }
    }
}

/// The last thing that has happened to an idle connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// The connection was accepted.
    Accept,
    /// The connection came from another task or process.
    Move,
    /// A request was answered.
    Exchange,
}

/// A connection of a server.
pub(crate) struct Conn<'a> {
    service: &'a Service,
    seat: &'a Arc<Seat>,
    idle: Idle,
    before: Before,
    looks: Looks,
}

impl<'a> Conn<'a> {
    pub(crate) fn new(service: &'a Service, seat: &'a Arc<Seat>, transport: Transport) -> Self {
        let idle = Idle::new(transport);
        Self { service, seat, idle, before: Before::Accept, looks: Looks::default() }
    }

    /// Takes a connection that another task or process has served before.
    pub(crate) fn moved(service: &'a Service, seat: &'a Arc<Seat>, idle: Idle) -> Self {
        Self { service, seat, idle, before: Before::Move, looks: Looks::default() }
    }

    // These functions are not `async fn`s, because an `async fn` keeps room for its arguments
    // twice, and an idle connection has to stay small (rule W12).

    /// Serves the connection until it ends, leaves, or is aborted by the server. Returns the
    /// connection if it leaves for the successor.
    pub(crate) fn serve(self) -> impl Future<Output = Option<Movable>> + Send + 'a {
        until_aborted(self.seat, self.requests())
    }

    /// Serves like [`Conn::serve`], after the listener's wrapper has done its part.
    pub(crate) fn serve_wrapped(
        self,
        wrapper: &'a Wrapper,
    ) -> impl Future<Output = Option<Movable>> + Send + 'a {
        until_aborted(self.seat, async move { self.handshake(wrapper).await?.requests().await })
    }

    /// Serves like [`Conn::serve`], beginning with the part of a request that was read already.
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

    /// Waits for requests and serves them, in turn, until the connection ends or leaves.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` keeps room for its arguments twice")]
    fn requests(mut self) -> impl Future<Output = Option<Movable>> + Send + 'a {
        async move {
            loop {
                // A `while let` would make an idle connection keep room for the value that it waits
                // for.
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
            // For most clients a plain close is enough: the kernel sends a FIN after the last look
            // (rule S6), or a reset if an abort has left bytes unread. Only a wrapped stream, and a
            // client that has not yet taken everything, need `leave`.
            let transport = self.idle.transport;
            let plain_close_is_enough = transport.undelivered() == 0 && !transport.is_wrapped();
            if !plain_close_is_enough && self.seat.order() < Order::Abort {
                // `leave` is in a box, because it is seldom needed, and would take room in every
                // idle connection.
                Box::pin(leave(transport, self.seat, Expected::Nothing)).await;
            }
            None
        }
    }

    /// Serves requests until nothing more has arrived. Returns `Continue` with the idle connection
    /// then. Returns `Break` with the connection if it leaves for the successor, and with `None` if
    /// it has ended.
    ///
    /// The active phase is a separate future, which is dropped when the connection falls idle (rule
    /// W12).
    fn exchanges(
        self,
        incoming: Incoming,
    ) -> impl Future<Output = ControlFlow<Option<Movable>, Self>> {
        let Self { service, seat, idle, looks, .. } = self;
        let Limits { head_bytes, headers, .. } = service.limits;
        let bounds = Bounds { head_bytes, headers };
        let gate = Gate::new(idle.transport, incoming, seat.clone(), bounds)
            .observed_by(service.observer.as_ref());
        let active = Box::pin(Active::new(service, seat, gate).run());
        // The panics of a handler and of a response's body are caught where they happen. Other
        // panics of the program's code end here (rule S17), for example in a wrapped stream or in a
        // `Drop`.
        async move {
            let served = AssertUnwindSafe(active).catch_unwind().await;
            let after = served.unwrap_or_else(|_| {
                log_panic(seat);
                None
            });
            match after {
                Some(AfterActive::Idle(idle)) => ControlFlow::Continue(Self {
                    service,
                    seat,
                    idle,
                    before: Before::Exchange,
                    looks,
                }),
                Some(AfterActive::Movable(connection)) => ControlFlow::Break(Some(connection)),
                None => ControlFlow::Break(None),
            }
        }
    }
}

/// Says in the log that the program's code under a connection has panicked. The caller ends the
/// connection (rule S17).
fn log_panic(seat: &Seat) {
    log::error!("{}: the program's code under this connection has panicked", seat.peer());
}

/// Runs `served` until the server aborts the connection. An abort comes before the next step of
/// `served`, because `served` must not finish what the outcome names as cut (rule S13).
///
/// An idle connection goes on, because `first_bytes` ends it, after a last look for a request that
/// the outcome has to name.
///
/// Each poll of the connection begins here, so its seat learns here whom to wake.
fn until_aborted<'a>(
    seat: &'a Seat,
    served: impl Future<Output = Option<Movable>> + Send + 'a,
) -> impl Future<Output = Option<Movable>> + Send + 'a {
    let aborted = poll_fn(|cx| {
        seat.register(cx.waker());
        let is_idle = matches!(seat.doing(), Doing::Accepted | Doing::Idle);
        if seat.order() == Order::Abort && !is_idle { Poll::Ready(None) } else { Poll::Pending }
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

    /// Returns the state of a server whose handler is not called.
    pub(super) fn service() -> Service {
        let shutdown = Shutdown::new();
        Service {
            handler: Handler::new(|_| future::pending::<http_types::Result<&str>>()),
            limits: Limits::default(),
            observer: None,
            orders: shutdown.orders(),
            shutdown,
            leavers: channel::unbounded().0,
        }
    }

    /// Rule W12: each idle connection keeps all that the future of `serve` keeps.
    #[test]
    fn an_idle_connection_is_small() {
        let service = service();
        let seat = Seat::new(Peer::Unix, service.orders.clone());
        let (socket, _client) = UnixStream::pair().unwrap();
        let conn = Conn::new(&service, &seat, Transport::Plain(Socket::unix(socket).unwrap()));
        assert!(size_of_val(&conn.serve()) <= 16 * size_of::<usize>());
    }
}
