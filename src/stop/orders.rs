//! [`Order`]: the order of a server to each of its connections.
//!
//! The order follows from the phase of the latch, which several servers may share, from the
//! server's own order, and from the state of the hand-over. Invariant: the orders of the latch and
//! of the server only grow, and so does the order of a connection that cannot leave. A connection
//! that can leave is served, or asked to leave, until the hand-over is over. This file wakes no
//! connection, because the code that gives an order does that.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use crate::stop::phase::{AtomicPhase, Phase};

/// An order of a server to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Order {
    /// The connection serves request after request.
    Serve = 0,
    /// The connection goes to the successor as soon as no exchange is under way (rule H5).
    Leave = 1,
    /// The connection finishes the exchanges that have begun, and announces the close with the last
    /// response (rules S8, S9). An idle connection still waits for a request.
    Finish = 2,
    /// An idle connection looks once more for a request, and ends (rule S6).
    LastLook = 3,
    /// The connection ends at once, and its work is cut (rule S13).
    Abort = 4,
}

/// The order for all connections of one server.
#[derive(Debug)]
pub(crate) struct Orders {
    phase: Arc<AtomicPhase>,
    /// An [`Order`] that the server has given by itself, or 0.
    own: AtomicU8,
    /// A [`HandOver`].
    hand_over: AtomicU8,
    /// For each listener of the server, the number by which the successor knows the listener, or
    /// `None` if the successor does not take its connections. Set when a hand-over begins.
    adopted: OnceLock<Vec<Option<u32>>>,
}

/// The state of a hand-over, for connections that can leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum HandOver {
    /// There is no successor that takes connections.
    None = 0,
    /// A connection that was asked goes to the successor. The others are served as if there were no
    /// stop.
    Asking = 1,
    /// Every connection goes after its exchange.
    All = 2,
    /// The successor takes no more connections. The rest are stopped, and idle ones may still send
    /// a request within the linger.
    Over = 3,
}

impl Orders {
    /// Makes the orders of a server whose latch has this phase.
    pub(crate) fn under(phase: Arc<AtomicPhase>) -> Self {
        Self {
            phase,
            own: AtomicU8::new(0),
            hand_over: AtomicU8::new(HandOver::None as u8),
            adopted: OnceLock::new(),
        }
    }

    /// Returns the current order for a connection that does not go to a successor.
    pub(crate) fn current(&self) -> Order {
        let of_latch = match self.phase.current() {
            Phase::Running => Order::Serve,
            Phase::Draining => Order::Finish,
            Phase::Aborting => Order::Abort,
        };
        of_latch.max(match self.own.load(Ordering::Acquire) {
            0 => Order::Serve,
            // `Leave` (1) depends on the connection, so a server never gives it.
            1 | 2 => Order::Finish,
            3 => Order::LastLook,
            _ => Order::Abort,
        })
    }

    /// Returns the current order for a connection of the listener with this number.
    pub(crate) fn of_listener(&self, listener: u32, departure: Departure) -> Order {
        let order = self.current();
        // Before a stop and at an abort, all connections have the same order.
        if !matches!(order, Order::Finish | Order::LastLook) || !self.can_leave(listener, departure)
        {
            return order;
        }
        match self.hand_over() {
            HandOver::None => order,
            HandOver::Asking if departure == Departure::Asked => Order::Leave,
            HandOver::Asking => Order::Serve,
            HandOver::All => Order::Leave,
            HandOver::Over => Order::Finish,
        }
    }

    /// Returns `true` if a connection of this listener can go to the successor.
    pub(crate) fn can_leave(&self, listener: u32, departure: Departure) -> bool {
        departure != Departure::Refused && self.adopted_as(listener).is_some()
    }

    /// Returns the number by which the successor knows a listener whose connections it takes.
    pub(crate) fn adopted_as(&self, listener: u32) -> Option<u32> {
        *self.adopted.get()?.get(listener as usize)?
    }

    /// Returns `true` if the stop has begun, also while single connections are still served.
    pub(crate) fn is_stopping(&self) -> bool {
        self.current() >= Order::Finish
    }

    /// Gives an order to the connections of this server alone. A stronger order stays.
    pub(crate) fn give(&self, order: Order) {
        self.own.fetch_max(order as u8, Ordering::AcqRel);
    }

    /// Lets the connections of listeners with a number in `adopted` go to a successor. This comes
    /// before the stop, because otherwise a response in between would say `close`.
    pub(crate) fn begin_hand_over(&self, adopted: Vec<Option<u32>>) {
        let _ = self.adopted.set(adopted);
        self.set_hand_over(HandOver::Asking);
    }

    pub(crate) fn set_hand_over(&self, hand_over: HandOver) {
        self.hand_over.store(hand_over as u8, Ordering::Release);
    }

    fn hand_over(&self) -> HandOver {
        match self.hand_over.load(Ordering::Acquire) {
            0 => HandOver::None,
            1 => HandOver::Asking,
            2 => HandOver::All,
            _ => HandOver::Over,
        }
    }
}

/// The state of one connection in a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Departure {
    Unasked = 0,
    Asked = 1,
    /// The successor has refused the connection.
    Refused = 2,
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

    /// Rules H5 and H6: each step of a hand-over, and the orders of four connections. The first two
    /// belong to a listener whose connections the successor takes, and one of them is asked. The
    /// third was refused, and the fourth belongs to another listener.
    #[test]
    fn who_can_leave_is_served_until_it_is_asked() {
        use Departure::{Asked, Refused, Unasked};
        use Order::{Abort, Finish, LastLook, Leave, Serve};

        let phase = Arc::new(AtomicPhase::default());
        let orders = Orders::under(phase.clone());
        let now = || {
            [(0, Asked), (0, Unasked), (0, Refused), (1, Unasked)]
                .map(|(listener, departure)| orders.of_listener(listener, departure))
        };
        orders.begin_hand_over(vec![Some(7), None]);
        assert_eq!(now(), [Serve; 4]);
        phase.advance(Phase::Draining);
        assert_eq!(now(), [Leave, Serve, Finish, Finish]);
        // The linger is over for connections that do not leave.
        orders.give(LastLook);
        assert_eq!(now(), [Leave, Serve, LastLook, LastLook]);
        orders.set_hand_over(HandOver::All);
        assert_eq!(now(), [Leave, Leave, LastLook, LastLook]);
        orders.set_hand_over(HandOver::Asking);
        assert_eq!(now(), [Leave, Serve, LastLook, LastLook]);
        // The passage is closed, so connections that would have left get a linger of their own.
        orders.set_hand_over(HandOver::Over);
        assert_eq!(now(), [Finish, Finish, LastLook, LastLook]);
        orders.set_hand_over(HandOver::None);
        assert_eq!(now(), [LastLook; 4]);
        orders.set_hand_over(HandOver::All);
        phase.advance(Phase::Aborting);
        assert_eq!(now(), [Abort; 4]);
    }
}
