//! [`OwnSocket`]: a listening socket that this process has open.
//!
//! This file asks the kernel each time, because a program also has sockets that this library did
//! not open. It takes, copies and closes nothing.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd};
use socket2::SockRef;

use crate::address::Address;

/// A listening socket of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnSocket {
    pub(crate) fd: RawFd,
    pub(crate) address: Address,
    /// A socket on `[::]` leaves IPv4 to other sockets.
    is_only_v6: bool,
    /// The process was started with the socket, and the program has not taken it.
    pub(crate) is_passed: bool,
}

impl OwnSocket {
    /// Returns all listening sockets of this process. Sockets on which the program itself listens
    /// come first. Returns an empty list if the system does not list descriptors.
    pub(crate) fn all() -> Vec<Self> {
        // Some systems and containers have only one of the two directories.
        let list = fs::read_dir("/dev/fd").or_else(|_| fs::read_dir("/proc/self/fd"));
        let numbers = list.into_iter().flatten().flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut all: Vec<_> = numbers.filter_map(Self::of).collect();
        all.sort_by_key(|own| (own.is_passed, own.fd));
        all
    }

    /// Returns the listening socket behind a descriptor, or `None` if it is not one.
    #[allow(unsafe_code, reason = "a descriptor that is known by its number alone")]
    fn of(fd: RawFd) -> Option<Self> {
        // SAFETY: this function only asks for flags and options. If another thread closes the
        // descriptor meanwhile, the calls fail or describe the next file with this number.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let flags = fcntl_getfd(borrowed).ok()?;
        let socket = SockRef::from(&borrowed);
        let address = Address::of(&socket).ok()?;
        let is_only_v6 = socket.only_v6().unwrap_or(false);
        // A passed descriptor has survived an exec, and a descriptor that this program has opened
        // would not.
        let is_passed = !flags.contains(FdFlags::CLOEXEC);
        Some(Self { fd, address, is_only_v6, is_passed })
    }

    /// Returns the address of a TCP socket, and whether the socket leaves IPv4 to others.
    pub(crate) fn tcp(&self) -> Option<TcpSpan> {
        match self.address {
            Address::Tcp(addr) => Some(TcpSpan { addr, is_only_v6: self.is_only_v6 }),
            _ => None,
        }
    }
}

/// The addresses that a TCP socket, which listens on `addr`, keeps from other sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TcpSpan {
    pub(crate) addr: SocketAddr,
    /// A socket on `[::]` leaves IPv4 to other sockets.
    pub(crate) is_only_v6: bool,
}

impl TcpSpan {
    /// Returns `true` if the two sockets cannot both listen.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.includes(other.addr) || other.includes(self.addr)
    }

    /// Returns `true` if this socket serves the clients of `addr`, or at least those of one family.
    pub(crate) fn includes(self, addr: SocketAddr) -> bool {
        let ip = addr.ip().to_canonical();
        let includes_ip = match self.addr.ip().to_canonical() {
            IpAddr::V4(own) if own.is_unspecified() => ip.is_ipv4(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => ip.is_ipv6() || !self.is_only_v6,
            own => own == ip,
        };
        self.addr.port() == addr.port() && includes_ip
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_listening_socket_of_this_process_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let is_this = |own: &OwnSocket| own.address == Address::Tcp(addr);
        let found = OwnSocket::all().into_iter().find(is_this).unwrap();
        assert_eq!((found.fd, found.is_passed), (listener.as_raw_fd(), false));
        drop(listener);
        assert!(!OwnSocket::all().iter().any(is_this));
    }

    #[test]
    fn sockets_overlap_as_the_kernel_says() {
        for (one, other, overlap) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("127.0.0.1:80", "[::]:80", true),
            ("127.0.0.1:80", "[::]:80 only", false),
            ("127.0.0.1:80", "[::1]:80", false),
            ("0.0.0.0:80", "[::]:80", true),
            ("0.0.0.0:80", "[::]:80 only", false),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::1]:80", "[::]:80", true),
            ("[::1]:80", "[::]:80 only", true),
            ("[::]:80", "[::]:80 only", true),
        ] {
            let span = |text: &str| {
                let addr = text.trim_end_matches(" only").parse().unwrap();
                TcpSpan { addr, is_only_v6: text.ends_with("only") }
            };
            assert_eq!(span(one).overlaps(span(other)), overlap, "{one} {other}");
            assert_eq!(span(other).overlaps(span(one)), overlap, "{other} {one}");
        }
    }
}
