//! `Sockets`: the listening sockets of the servers of this process, from the operator or the
//! service manager.
//!
//! Invariant: the sockets of the admin server are taken before those of the public server, which
//! takes the rest of the inherited ones. The rest has no socket that an earlier process has bound
//! itself (rule K10), so a new `--admin` does not make the old admin port a public one. The
//! creation of a value binds nothing.

use std::io;

use smol_graceful::{Address, ListenOptions, Listener};

use crate::settings::Settings;

/// The addresses to listen on, with their options.
#[derive(Debug, Clone)]
pub(crate) struct Sockets {
    public: Vec<Address>,
    admin: Vec<Address>,
    options: ListenOptions,
}

impl Sockets {
    pub(crate) fn of(settings: &Settings) -> Self {
        let options = ListenOptions::default()
            .reuse_port(settings.reuse_port)
            .syn_filter(settings.syn_filter)
            .keepalive(settings.keepalive)
            .unix_mode(settings.unix_mode);
        let (mut public, mut admin) = (settings.listen.clone(), settings.admin.clone());
        // `[::]` comes last, because it then leaves IPv4 to a socket of this program.
        public.sort_by_key(is_every_ipv6);
        admin.sort_by_key(is_every_ipv6);
        Self { public, admin, options }
    }

    /// Binds the sockets of the admin server.
    pub(crate) fn admin(&self) -> Vec<io::Result<Listener>> {
        self.bind(&self.admin)
    }

    /// Binds the sockets of the public server, or takes those that this process inherits.
    pub(crate) fn public(&self) -> Vec<io::Result<Listener>> {
        let listeners = self.bind(&self.public);
        if listeners.iter().any(Result::is_err) {
            // The error of an address from the operator says more than an error of an inherited
            // socket.
            return listeners;
        }
        let inherited = match self.options.inherited() {
            Ok(inherited) => inherited,
            Err(error) => return vec![Err(error)],
        };
        if !listeners.is_empty() {
            for listener in inherited {
                let address = listener.address();
                log::warn!("inherited {address}, which no --listen and no --admin asks for");
            }
            listeners
        } else if !inherited.is_empty() {
            inherited.into_iter().map(Ok).collect()
        } else {
            vec![self.options.bind(Address::Every(8082))]
        }
    }

    fn bind(&self, addresses: &[Address]) -> Vec<io::Result<Listener>> {
        addresses.iter().map(|address| self.options.bind(address)).collect()
    }
}

/// Returns `true` for an address such as `[::]:8082`, which means every interface in IPv6.
fn is_every_ipv6(address: &Address) -> bool {
    matches!(address, Address::Tcp(addr) if addr.is_ipv6() && addr.ip().is_unspecified())
}
