//! [`Address`]: where to listen, as text and as a value.
//!
//! Invariant: what an address that was read prints is what it was read from. Pure: opens nothing, and asks no
//! resolver, so names of hosts are no addresses.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

/// Where to listen.
///
/// # Examples
///
/// ```
/// use smol_graceful::Address;
///
/// for text in ["127.0.0.1:8082", "[::1]:8082", ":8082", "unix:/run/app.sock", "fd:0"] {
///     assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
/// }
/// assert!("8082".parse::<Address>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// One interface: `127.0.0.1:8082`, `[::1]:8082`. Port 0 lets the kernel choose.
    Tcp(SocketAddr),
    /// Every interface, in both families: `:8082`.
    Every(u16),
    /// A Unix socket: `unix:/run/app.sock`. Who may connect is the umask's affair, and the directory's;
    /// a listener of the standard library's can be given other permissions before it is served.
    Unix(PathBuf),
    /// A listening socket that this process was started with, by its descriptor: `fd:0`, as
    /// Supervisor's `[fcgi-program]` passes it.
    Fd(RawFd),
    /// No address: the listener has a source of its own ([`Listener::of`](crate::Listener::of)).
    Other,
}

impl Address {
    /// Whether who wants to listen here is served by a socket that listens on `bound`.
    pub(crate) fn covers(&self, bound: &Self) -> bool {
        match (self, bound) {
            // Port 0 leaves the choice to others.
            (Self::Tcp(wanted), Self::Tcp(bound)) => {
                wanted.ip() == bound.ip() && [0, bound.port()].contains(&wanted.port())
            }
            (Self::Every(port), Self::Tcp(bound)) => {
                bound.ip().is_unspecified() && [0, bound.port()].contains(port)
            }
            _ => self == bound,
        }
    }
}

/// What is wrong with the text of an [`Address`].
///
/// # Examples
///
/// ```
/// let error = "localhost".parse::<smol_graceful::Address>().unwrap_err();
/// assert!(error.to_string().starts_with("`localhost` is no address to listen on"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError(String);

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = self;
        write!(
            f,
            "`{text}` is no address to listen on; write `127.0.0.1:8082`, `[::1]:8082`, `:8082` \
             for every interface, `unix:/path`, or `fd:0` for an inherited socket; names are not looked up"
        )
    }
}

impl std::error::Error for AddressError {}

impl From<AddressError> for io::Error {
    fn from(error: AddressError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err(error());
            }
            Ok(Self::Unix(path.into()))
        } else if let Some(fd) = text.strip_prefix("fd:") {
            number(fd).map(Self::Fd).ok_or_else(error)
        } else if let Some(port) = text.strip_prefix(':') {
            number(port).map(Self::Every).ok_or_else(error)
        } else {
            text.parse().map(Self::Tcp).map_err(|_| error())
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Every(port) => write!(f, ":{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
            Self::Other => f.write_str("a source of its own"),
        }
    }
}

/// Digits and nothing else: `parse` would take a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in
            ["127.0.0.1:8082", "[::1]:8082", ":8082", ":0", "unix:/run/app.sock", "unix:a", "fd:0"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "8082",
            ":",
            ":-1",
            ":+1",
            ":65536",
            ":http",
            "localhost:80",
            "::1:80",
            "1.2.3.4",
            "unix:",
            "fd:",
            "fd:x",
            "fd:-1",
            "fd:+1",
            "fd:4294967296",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_serves_who_wanted_its_address() {
        for (wanted, bound, covers) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:0", "127.0.0.1:80", true),
            ("127.0.0.1:81", "127.0.0.1:80", false),
            ("127.0.0.2:80", "127.0.0.1:80", false),
            ("127.0.0.1:80", "0.0.0.0:80", false),
            (":80", "0.0.0.0:80", true),
            (":80", "[::]:80", true),
            (":0", "[::]:80", true),
            (":80", "[::]:81", false),
            (":80", "[::1]:80", false),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "unix:/b", false),
            ("127.0.0.1:80", "unix:/a", false),
        ] {
            let parse = |text: &str| text.parse::<Address>().unwrap();
            assert_eq!(parse(wanted).covers(&parse(bound)), covers, "{wanted} {bound}");
        }
    }
}
