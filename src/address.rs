//! [`Address`]: an address to listen on, as text and as a value.
//!
//! Invariant: the printed text of an address reads as the same address. Text that is not an address
//! gives an [`AddressError`], which shows the right form. This file opens nothing and asks no
//! resolver, so the only name of a host is `localhost`.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket2::{Domain, Socket, Type};

use crate::error::{ServeError, invalid};

/// An address to listen on.
///
/// White space around the text of an address is ignored.
///
/// # Examples
///
/// ```
/// use smol_graceful::Address;
///
/// for text in [
///     "127.0.0.1:8082",
///     "[::1]:8082",
///     ":8082",
///     "localhost:8082",
///     "unix:/run/app.sock",
///     "unix:@app",
///     "fd:0",
/// ] {
///     assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
/// }
/// assert!("8082".parse::<Address>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// One interface: `127.0.0.1:8082`, `[::1]:8082`. Port 0 lets the kernel choose.
    ///
    /// `[::]:8082` serves both families, like `:8082`. If this program already listens on
    /// `0.0.0.0:8082`, then `[::]:8082` serves IPv6 alone, so a program can listen on both in that
    /// order.
    Tcp(SocketAddr),
    /// Every interface, in both families: `:8082`.
    Every(u16),
    /// This machine alone: `localhost:8082`, in upper or lower case. The library asks no resolver.
    /// The name means `127.0.0.1`, or `::1` on a machine without IPv4.
    Localhost(u16),
    /// The file of a Unix socket: `unix:/run/app.sock`. A relative path begins at the current
    /// directory at the time of the bind.
    ///
    /// The permissions of the file and of its directory decide which users may connect. The file
    /// gets those of the umask, or of [`ListenOptions::unix_mode`].
    ///
    /// [`ListenOptions::unix_mode`]: crate::ListenOptions::unix_mode
    Unix(PathBuf),
    /// A Unix socket without a file, in the abstract namespace of Linux: `unix:@app`. The value has
    /// the name without the `@`. Every user of the same network namespace may connect.
    ///
    /// The text of a file with the name `@app` is `unix:./@app`.
    Abstract(OsString),
    /// A listening socket that this process was started with, by its descriptor: `fd:0`, as
    /// Supervisor's `[fcgi-program]` passes it.
    Fd(RawFd),
    /// The listener has no address, but a source of its own
    /// ([`Listener::from_stream`](crate::Listener::from_stream)).
    Other,
}

impl Address {
    /// Returns the address on which a stream socket listens.
    ///
    /// # Errors
    ///
    /// Returns an error if `socket` is not a listening TCP or Unix socket.
    pub(crate) fn of(socket: &Socket) -> io::Result<Self> {
        if socket.r#type()? != Type::STREAM || !socket.is_listener().unwrap_or(false) {
            return Err(invalid("is not a socket that listens for connections"));
        }
        let addr = socket.local_addr()?;
        if let Some(addr) = addr.as_socket() {
            return Ok(Self::Tcp(addr));
        }
        if socket.domain()? != Domain::UNIX {
            return Err(invalid("is not a TCP or Unix socket"));
        }
        Ok(match (addr.as_pathname(), addr.as_abstract_namespace()) {
            (None, Some(name)) => Self::Abstract(OsStr::from_bytes(name).to_owned()),
            (path, _) => Self::Unix(path.unwrap_or(Path::new("")).to_owned()),
        })
    }

    /// Returns `true` if a socket that listens on `bound` can be used for this address.
    pub(crate) fn covers(&self, bound: &Self) -> bool {
        // Port 0 accepts any port.
        let is_port = |wanted: u16, bound: &SocketAddr| [0, bound.port()].contains(&wanted);
        match (self, bound) {
            (Self::Tcp(wanted), Self::Tcp(bound)) => {
                wanted.ip().to_canonical() == bound.ip().to_canonical()
                    && is_port(wanted.port(), bound)
            }
            (Self::Every(port), Self::Tcp(bound)) => {
                bound.ip().is_unspecified() && is_port(*port, bound)
            }
            (Self::Localhost(port), Self::Tcp(bound)) => {
                LOCALHOST.contains(&bound.ip().to_canonical()) && is_port(*port, bound)
            }
            _ => self == bound,
        }
    }

    /// Returns the TCP addresses to bind for this address, the best one first. A machine that lacks
    /// the family of one needs the next. The list is empty for other kinds of addresses.
    pub(crate) fn candidates(&self) -> Vec<SocketAddr> {
        let each = |ips: [IpAddr; 2], port| ips.map(|ip| SocketAddr::new(ip, port)).to_vec();
        match *self {
            Self::Tcp(addr) => vec![addr],
            Self::Every(port) => each(EVERY, port),
            Self::Localhost(port) => each(LOCALHOST, port),
            Self::Unix(_) | Self::Abstract(_) | Self::Fd(_) | Self::Other => Vec::new(),
        }
    }
}

/// The addresses of `localhost`, the usual one first.
const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The addresses of every interface. The first one serves both families.
const EVERY: [IpAddr; 2] = [IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];

/// The error for text that is not an [`Address`], with advice on the right form.
///
/// # Examples
///
/// ```
/// let error = "localhost".parse::<smol_graceful::Address>().unwrap_err();
/// assert!(error.to_string().starts_with("`localhost` is not an address to listen on: "));
/// assert!(error.to_string().ends_with("write it with a port, such as `localhost:8082`"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError {
    text: String,
    advice: String,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text is escaped, so that the message always has one line.
        let text = self.text.escape_debug();
        write!(f, "`{text}` is not an address to listen on: {}", self.advice)
    }
}

impl std::error::Error for AddressError {}

impl From<Infallible> for AddressError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl From<AddressError> for io::Error {
    fn from(error: AddressError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

impl From<AddressError> for ServeError {
    fn from(error: AddressError) -> Self {
        io::Error::from(error).into()
    }
}

impl From<&Self> for Address {
    fn from(address: &Self) -> Self {
        address.clone()
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self::Tcp(addr)
    }
}

impl TryFrom<&str> for Address {
    type Error = AddressError;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        read(text).ok_or_else(|| AddressError { text: text.to_owned(), advice: advice(text) })
    }
}

fn read(text: &str) -> Option<Address> {
    match text.split_once(':')? {
        ("unix", path) if ["", "@"].contains(&path) || path.contains('\0') => None,
        ("unix", path) => Some(match path.strip_prefix('@') {
            Some(name) => Address::Abstract(name.into()),
            None => Address::Unix(path.into()),
        }),
        ("fd", fd) => number(fd).map(Address::Fd),
        ("", port) => number(port).map(Address::Every),
        (host, port) if host.eq_ignore_ascii_case("localhost") => {
            number(port).map(Address::Localhost)
        }
        _ => text.parse().map(Address::Tcp).ok(),
    }
}

/// Returns advice for `text`, by its probable meaning.
fn advice(text: &str) -> String {
    if text.is_empty() {
        return format!("it is empty; {FORMS}");
    }
    if text.contains('\0') {
        return "it contains a zero byte".into();
    }
    if let Some(advice) = advice_without_port(text).or_else(|| advice_on_scheme(text)) {
        return advice;
    }
    if let Some(address) = text.split_once('/').and_then(|(authority, _)| read(authority)) {
        return format!("leave out the path: write `{address}`");
    }
    if text.contains('/') || text.starts_with('@') {
        return format!("write `unix:{text}` for a Unix socket");
    }
    match text.rsplit_once(':') {
        Some((host, port)) if number::<u16>(port).is_none() => {
            format!("a port is a number from 0 to 65535, as in `{host}:8082`")
        }
        Some((host, port)) => advice_on_host(host, port),
        None => FORMS.into(),
    }
}

/// Returns advice for a port alone, or a host alone.
fn advice_without_port(text: &str) -> Option<String> {
    if let Some(port) = number::<u16>(text) {
        return Some(format!("write `:{port}` for every interface, or `localhost:{port}`"));
    }
    let host = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => Some(BRACKETS.into()),
        Err(_) if !host.eq_ignore_ascii_case("localhost") => None,
        _ => Some(format!("write it with a port, such as `{}:8082`", host.to_ascii_lowercase())),
    }
}

/// Returns advice for an address with a scheme: `unix:`, `fd:`, or that of a URL.
fn advice_on_scheme(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once(':')?;
    let scheme = scheme.to_ascii_lowercase();
    match (&*scheme, rest) {
        ("unix", "") => Some("a path is missing, as in `unix:/run/app.sock`".into()),
        ("unix", "@") => Some("a name is missing after the `@`, as in `unix:@app`".into()),
        ("fd", fd) if number::<RawFd>(fd).is_none() => {
            Some("write the number of an inherited descriptor, such as `fd:0`".into())
        }
        // A scheme in upper case gets the advice to write it in lower case.
        ("unix" | "fd", _) => Some(format!("write `{}`", read(&format!("{scheme}:{rest}"))?)),
        _ if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            advice_on_url(rest)
        }
        _ => None,
    }
}

/// Returns advice for a URL. `rest` is the part after the scheme.
fn advice_on_url(rest: &str) -> Option<String> {
    let authority = rest.trim_start_matches('/').split('/').next()?;
    let write = match read(authority) {
        Some(address) => format!(": write `{address}`"),
        None if rest.starts_with("//") => format!("; {FORMS}"),
        None => return None,
    };
    Some(format!("leave out the scheme and the path{write}"))
}

/// Returns advice for `host`, which is not the host of an address.
fn advice_on_host(host: &str, port: &str) -> String {
    if host == "*" {
        return format!("write `:{port}` for every interface");
    }
    if host.starts_with('[') && host.contains('%') {
        return "write the zone as the number that `ip link` shows for the interface, such as \
                `[fe80::1%2]:8082`"
            .into();
    }
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if let Some(address) = inner.and_then(|host| read(&format!("{host}:{port}"))) {
        return format!("leave out the brackets: write `{address}`");
    }
    if host.contains(':') {
        return BRACKETS.into();
    }
    format!(
        "names are not looked up, apart from localhost: write an IP address, such as \
         `127.0.0.1:{port}`, or `:{port}` for every interface"
    )
}

/// The advice on IPv6 addresses.
const BRACKETS: &str =
    "write an IPv6 address in brackets, and the port after them, such as `[::1]:8082`";

/// The advice that shows all forms of an address.
const FORMS: &str = "write `127.0.0.1:8082`, `[::1]:8082`, `localhost:8082`, `:8082` for every \
 interface, `unix:/path`, `unix:@name`, or `fd:0` for an inherited socket";

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Every(port) => write!(f, ":{port}"),
            Self::Localhost(port) => write!(f, "localhost:{port}"),
            // The text of a file with the name `@app` must not read as an abstract socket.
            Self::Unix(path) if path.as_os_str().as_encoded_bytes().starts_with(b"@") => {
                write!(f, "unix:./{}", path.display())
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{}", Path::new(name).display()),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
            Self::Other => f.write_str("a source of its own"),
        }
    }
}

/// Reads a number. Accepts only digits, because `parse` would accept a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
