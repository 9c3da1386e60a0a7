//! The byte stream under a connection: a socket, or whatever a program or a wrapper puts in its
//! place.
//!
//! Invariant: nothing here knows HTTP, or when a connection is to end.

pub(crate) mod connection;
pub(crate) mod facts;
mod meter;
pub(crate) mod socket;
pub(crate) mod transport;
