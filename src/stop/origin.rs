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
    /// The local address of each connection, if the listener has a single one, and its text, which
    /// every request gets.
    pub(crate) local: Option<(SocketAddr, String)>,
}

impl Origin {
    pub(crate) fn new(number: u32, address: Address) -> Self {
        let local = match address {
            Address::Tcp(addr) if !addr.ip().is_unspecified() => {
                let local = SocketAddr::new(addr.ip().to_canonical(), addr.port());
                Some((local, local.to_string()))
            }
            _ => None,
        };
        Self { number, address, local }
    }
}
