//! The log lines of the courier: how many connections were handed over, how many stay, and why.
//!
//! Invariant: no connection counts both as handed over and as one that stays. This file keeps no
//! state, and sends nothing.

use std::collections::BTreeMap;
use std::fmt;

use super::{Courier, End};
use crate::error::reason;
use crate::server::running::stays;
use crate::stop::activity::Doing;
use crate::stop::orders::Departure;
use crate::stop::outcome::count_of;
use crate::stop::seat::Seat;

impl Courier<'_> {
    pub(super) fn summary(&self) -> String {
        let connections = count_of(self.handed_over as u64, "connection");
        format!("handed over {connections} in {:.2} s", self.began.elapsed().as_secs_f64())
    }

    /// Returns the numbers of connections that stay, with the reasons, or an empty text if none
    /// stays.
    pub(super) fn stays(&self) -> String {
        let mut reasons = BTreeMap::<_, usize>::new();
        for seat in self.seats(|seat| !is_ending(seat)) {
            *reasons.entry(self.reason_to_stay(&seat)).or_default() += 1;
        }
        let count: usize = reasons.values().sum();
        if count == 0 {
            return String::new();
        }
        let reasons = reasons.iter().map(|(reason, count)| format!("{count} {reason}"));
        format!(", {}: {}", stays(count), reasons.collect::<Vec<_>>().join(", "))
    }

    fn reason_to_stay(&self, seat: &Seat) -> &'static str {
        let listener = self.running.listeners.get(seat.listener() as usize);
        match seat.doing() {
            Doing::Upgraded => "upgraded",
            _ if seat.departure() == Departure::Refused => "refused by the successor",
            _ if listener.is_some_and(|listener| !listener.can_move_connections()) => {
                "of a listener with a wrapper (TLS)"
            }
            _ if !seat.can_leave() => "of a listener that the successor does not have",
            _ if may_leave_soon(seat) => "not gone yet",
            _ => "with a request under way",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the successor has closed the passage"),
            Self::Failed(error) => write!(f, "the passage has failed: {}", reason(error)),
            Self::Full => f.write_str("the successor has no place or no descriptor left, or stops"),
            Self::InvalidAnswer => f.write_str("the successor's answer makes no sense"),
            Self::Unreadable(error) => {
                write!(f, "the successor's answer cannot be read: {}", reason(error))
            }
            Self::Silent => f.write_str("the successor does not answer"),
        }
    }
}

/// Returns `true` if the connection is on its way, or leaves as soon as its task runs. A connection
/// with a long head may stay.
pub(super) fn may_leave_soon(seat: &Seat) -> bool {
    matches!(seat.doing(), Doing::Accepted | Doing::Idle | Doing::Head | Doing::Leaving)
}

/// Returns `true` if the server has nothing more to do for the connection.
pub(super) fn is_ending(seat: &Seat) -> bool {
    seat.doing() == Doing::Closing
}
