//! [`Origin`]: the listener to which a connection came.
//!
//! Invariant: a server has one origin for each of its listeners, and all connections of the
//! listener share it. This file asks no socket.

use std::net::SocketAddr;

use crate::address::Address;

/// The facts about a listener that its connections keep.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The listener's number in the server.
    pub(crate) number: u32,
    pub(crate) address: Address,
    /// The local address of all connections, if the listener has a single one, with its text for
    /// the requests.
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
