//! The stop of a server: the latch, the holders that keep its drain open, the signals that move the
//! latch, and the outcome.
//!
//! Invariant: nothing here accepts, reads or sends. `latch.rs` has the latch, `seat.rs` the facts
//! that a connection and its server share, and `policy.rs` the meaning of a signal.

// These two come first, because rustdoc shows the methods of a type in the order of the modules.
pub(crate) mod token;

pub(crate) mod shutdown;

pub(crate) mod activity;
pub(crate) mod draining;
pub(crate) mod latch;
pub(crate) mod obey;
pub(crate) mod orders;
pub(crate) mod origin;
pub(crate) mod outcome;
pub(crate) mod phase;
pub(crate) mod policy;
pub(crate) mod registry;
pub(crate) mod seat;
pub(crate) mod signals;
pub(crate) mod stage;
#[cfg(test)]
mod tests;
