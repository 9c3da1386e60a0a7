//! [`Origin`]: the listener to which a connection came.
//!
//! Invariant: a server has one for each of its listeners, which all connections of the listener
//! share. Asks no socket.

use std::net::SocketAddr;

use crate::address::Address;

/// A listener, as its connections know it.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The listener's number in the server.
    pub(crate) number: u32,
    pub(crate) address: Address,
}

impl Origin {
    /// Returns the local address of each connection, if the listener has a single one.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        match self.address {
            Address::Tcp(addr) if !addr.ip().is_unspecified() => {
                Some(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
            }
            _ => None,
        }
    }
}
