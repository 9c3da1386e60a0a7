//! [`Order`]: what a server wants of each of its connections.
//!
//! One ordered value, so a later order includes the earlier ones. It follows from the phase of the
//! latch, which several servers may share, and from what one server wants by itself. Invariant: an
//! order only grows. Wakes no connection: the code that gives an order does that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::stop::phase::{AtomicPhase, Phase};

/// An order of a server to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Order {
    /// The connection serves request after request.
    Serve = 0,
    /// The connection finishes what has begun, and announces the close with the last response
    /// (rules S8, S9). An idle connection still waits for a request.
    Finish = 1,
    /// An idle connection looks once more whether a request has arrived, and ends (rule S6).
    LastLook = 2,
    /// The connection ends at once, and what it does is cut (rule S13).
    Abort = 3,
}

/// The order for all connections of one server.
#[derive(Debug)]
pub(crate) struct Orders {
    phase: Arc<AtomicPhase>,
    /// An [`Order`] that the server has given by itself, or 0.
    own: AtomicU8,
}

impl Orders {
    /// Makes the orders of a server whose latch has this phase.
    pub(crate) fn under(phase: Arc<AtomicPhase>) -> Self {
        Self { phase, own: AtomicU8::new(0) }
    }

    /// Returns the order that holds now.
    pub(crate) fn current(&self) -> Order {
        let of_latch = match self.phase.current() {
            Phase::Running => Order::Serve,
            Phase::Draining => Order::Finish,
            Phase::Aborting => Order::Abort,
        };
        of_latch.max(match self.own.load(Ordering::Acquire) {
            0 => Order::Serve,
            1 => Order::Finish,
            2 => Order::LastLook,
            _ => Order::Abort,
        })
    }

    /// Gives an order to the connections of this server alone. An order that holds already stays.
    pub(crate) fn give(&self, order: Order) {
        self.own.fetch_max(order as u8, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_only_grows() {
        let phase = Arc::new(AtomicPhase::default());
        let (one, other) = (Orders::under(phase.clone()), Orders::under(phase.clone()));
        assert_eq!(one.current(), Order::Serve);
        phase.advance(Phase::Draining);
        one.give(Order::LastLook);
        assert_eq!((one.current(), other.current()), (Order::LastLook, Order::Finish));
        one.give(Order::Finish);
        phase.advance(Phase::Running);
        assert_eq!((one.current(), other.current()), (Order::LastLook, Order::Finish));
        phase.advance(Phase::Aborting);
        assert_eq!((one.current(), other.current()), (Order::Abort, Order::Abort));
    }

    #[test]
    fn a_server_that_is_gone_aborts_its_connections_alone() {
        let phase = Arc::new(AtomicPhase::default());
        let (gone, other) = (Orders::under(phase.clone()), Orders::under(phase));
        gone.give(Order::Abort);
        assert_eq!((gone.current(), other.current()), (Order::Abort, Order::Serve));
    }
}
