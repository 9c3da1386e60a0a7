//! [`ServeError`], the error of a server that could not be started or has stopped by itself, and
//! [`reason`] and [`during`], which put an error and the failed step into words.
//!
//! Invariant: the text is one line with the failed thing and the remedy, also in `Debug`, with
//! which the standard library prints an error of `main`.

use std::error::Error;
use std::fmt;
use std::io;

use rustix::io::Errno;

/// The error of a server that could not be started, or that has stopped by itself.
///
/// A start fails at an address that cannot be bound, a signal that cannot be handled, or a thread
/// that cannot be started. A server stops by itself if a source of connections,
/// [`Listener::from_stream`](crate::Listener::from_stream), panics.
///
/// The text names the remedy, and is one line when `main` returns the error. `?` converts the error
/// into an [`io::Error`], and back. [`source`](Error::source) returns the error of the operating
/// system, which the line has in words.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Listener, Server};
/// use std::io;
///
/// # fn main() -> io::Result<()> {
/// let listener = Listener::bind("127.0.0.1:0")?;
/// let server = Server::new(|_request| async { Ok("okay") });
/// let serve = server.serve([listener.address().clone()]);
/// let error = futures_lite::future::block_on(serve).unwrap_err();
/// assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
/// let line = format!("{error:?}");
/// assert!(line.contains("this program listens on it already; leave one of the two out"));
/// # Ok(())
/// # }
/// ```
pub struct ServeError(io::Error);

impl ServeError {
    /// Returns the kind of the error.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Server;
    /// use std::io;
    ///
    /// let server = Server::new(|_request| async { Ok("okay") });
    /// // The library asks no resolver, so a name is not an address, apart from `localhost`.
    /// let serve = server.serve(["example.org:8082"]);
    /// let error = futures_lite::future::block_on(serve).unwrap_err();
    /// assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    /// ```
    pub fn kind(&self) -> io::ErrorKind {
        self.0.kind()
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An error of `Listener::bind` names the remedy itself. These words are for errors of the
        // program's own binds.
        let way_out = match (self.0.raw_os_error(), self.kind()) {
            (Some(_), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
                "; choose another address"
            }
            (Some(_), io::ErrorKind::PermissionDenied) => {
                "; a port below 1024 needs CAP_NET_BIND_SERVICE, a socket file a writable directory"
            }
            _ => "",
        };
        write!(f, "{}{way_out}", self.0)
    }
}

impl fmt::Debug for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for ServeError {
    /// Returns the error of the operating system, if there is one.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self.0.get_ref() {
            Some(held) => held.source(),
            None => Some(&self.0),
        }
    }
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<ServeError> for io::Error {
    fn from(error: ServeError) -> Self {
        error.0
    }
}

/// Returns the error for a value from the program or its environment that is not allowed.
pub(crate) fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message.into())
}

/// Returns a function that puts the failed step in front of an error.
pub(crate) fn during(step: impl fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |error| {
        let message = format!("{step}: {}", reason(&error));
        because_of(message, error)
    }
}

/// Returns an error with `message`, which has everything that an operator needs, and with `source`
/// below it.
pub(crate) fn because_of(message: String, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), Explained { message, source })
}

/// A message for an operator, and the error that it explains.
#[derive(Debug)]
struct Explained {
    message: String,
    source: io::Error,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Explained {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // An explained error is skipped, because the message around it has the same words.
        match self.source.get_ref() {
            Some(held) if held.is::<Self>() => held.source(),
            _ => Some(&self.source),
        }
    }
}

/// Returns the operating system's words, without the `(os error 2)` that Rust adds, and the remedy
/// for too few descriptors, because any step may be the first to lack them.
pub(crate) fn reason(error: &io::Error) -> String {
    let Some(code) = error.raw_os_error() else { return error.to_string() };
    let words = error.to_string().replace(&format!(" (os error {code})"), "");
    if code == Errno::MFILE.raw_os_error() { format!("{words}; raise `ulimit -n`") } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::listener::Listener;

    /// Only the error of the operating system gets the remedy, so no text has the remedy twice.
    #[test]
    fn a_lack_of_descriptors_names_the_remedy_once() {
        let lack = io::Error::from(Errno::MFILE);
        assert_eq!(reason(&lack), "Too many open files; raise `ulimit -n`");
        let outer = during("cannot start")(during("no socket")(lack));
        let words = "cannot start: no socket: Too many open files; raise `ulimit -n`";
        assert_eq!(reason(&outer), words);
        assert_eq!(reason(&Errno::NOENT.into()), "No such file or directory");
    }

    /// A program that asks for the source gets the error of the operating system, once.
    #[test]
    fn the_error_of_the_operating_system_is_below() {
        // No machine has this address, which is from a network for documentation.
        let error = ServeError::from(Listener::bind("192.0.2.1:0").unwrap_err());
        let source = error.source().expect("an error below");
        let source = source.downcast_ref::<io::Error>().expect("an io::Error");
        assert_eq!(source.kind(), io::ErrorKind::AddrNotAvailable, "{source}");
        assert!(source.raw_os_error().is_some(), "{source}");
        assert!(source.source().is_none());
    }
}
