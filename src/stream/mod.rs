//! The byte stream under a connection: a socket, or whatever a program or a wrapper puts in its
//! place.
//!
//! Invariant: this folder does not know HTTP, and does not know when a connection has to end.

pub(crate) mod connection;
pub(crate) mod facts;
mod meter;
pub(crate) mod socket;
pub(crate) mod transport;
