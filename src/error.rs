//! [`ServeError`]: why a server could not be started, or has stopped by itself; [`reason`] and
//! [`during`]: an error in the words of the operating system, and the step that has failed.
//!
//! Prints one line that names the thing and the way out, also as what `main` returns, which the
//! standard library prints with `Debug`.

use std::error::Error;
use std::fmt;
use std::io;

/// Says why a server could not be started (an address that cannot be listened on, a signal that
/// cannot be handled, a thread that cannot be started) or why it has stopped by itself: a source of
/// connections, [`Listener::from_stream`](crate::Listener::from_stream), has panicked.
///
/// It is an [`io::Error`] that tells the way out and, returned from `main`, prints as one line. The
/// two are converted into each other by `?`. Its [`source`](Error::source) is the error of the
/// operating system, which the line has in words.
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
    /// // No resolver is asked: names are no addresses, apart from `localhost`.
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
        // An error of `Listener::bind` tells the way out itself. These words are for a socket that
        // the program has tried to bind.
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
    /// Returns the error of the operating system, if one is below this error.
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

/// Returns the error for something that the program or its environment must not ask for.
pub(crate) fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message.into())
}

/// Says in front of an error which step has failed.
pub(crate) fn during(step: impl fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |error| {
        let message = format!("{step}: {}", reason(&error));
        because_of(message, error)
    }
}

/// Puts `message`, which says everything that an operator needs, in front of the error below it.
pub(crate) fn because_of(message: String, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), Explained { message, source })
}

/// An error in words for an operator, and the error that they explain.
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
        // An explained error adds nothing to the explanation around it.
        match self.source.get_ref() {
            Some(held) if held.is::<Self>() => held.source(),
            _ => Some(&self.source),
        }
    }
}

/// Returns what the operating system says, without Rust's `(os error 2)` behind it.
pub(crate) fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => error.to_string().replace(&format!(" (os error {code})"), ""),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::listener::Listener;

    /// A program that asks why gets the error of the operating system, once.
    #[test]
    fn the_error_of_the_operating_system_is_below() {
        // The documentation's own network, which no machine has.
        let error = ServeError::from(Listener::bind("192.0.2.1:0").unwrap_err());
        let source = error.source().expect("an error below");
        let source = source.downcast_ref::<io::Error>().expect("an io::Error");
        assert_eq!(source.kind(), io::ErrorKind::AddrNotAvailable, "{source}");
        assert!(source.raw_os_error().is_some(), "{source}");
        assert!(source.source().is_none());
    }
}
