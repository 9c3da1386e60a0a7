//! [`Exchange`]: a request and its end, for the observer of
//! [`Server::observe`](crate::Server::observe).
//!
//! Invariant: the observer hears of each exchange once, when it is over, and a panic of the
//! observer costs one log line and nothing else (rule O2). This file measures nothing, because
//! `wire/watch.rs` does.

use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_types::{Extensions, StatusCode, Version};

use crate::address::Address;
use crate::request_text::RequestText;
use crate::stop::seat::Seat;
use crate::stream::transport::Peer;

/// A request and its response, after both are over.
///
/// The observer of [`Server::observe`](crate::Server::observe) gets one exchange for each request
/// of which the server has read a byte. This includes requests that no handler sees, because the
/// head is malformed, too long or too slow, or because the server does not know the method or the
/// version.
///
/// An exchange is over when the kernel has the last byte of the response, and the server has read
/// the request's body or has given it up. If an exchange is cut, it is over at that moment, and an
/// upgraded one is over when the other protocol has ended.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Exchange, Server};
///
/// fn log(exchange: &Exchange) {
///     let status = exchange.status().map_or("-".to_owned(), |status| status.to_string());
///     log::info!(
///         "{} {} {:?} {status} {} bytes in {:?}, {}",
///         exchange.peer(),
///         exchange.method(),
///         exchange.target(),
///         exchange.sent(),
///         exchange.took(),
///         exchange.ending(),
///     );
/// }
///
/// let server = Server::new(|_request| async { Ok("okay") }).observe(log);
/// # drop(server);
/// ```
pub struct Exchange {
    pub(crate) seat: Arc<Seat>,
    pub(crate) request: RequestText,
    pub(crate) status: Option<StatusCode>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) body_sent: u64,
    pub(crate) began: SystemTime,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) took: Duration,
    pub(crate) ending: ExchangeEnding,
    pub(crate) extensions: Extensions,
}

impl Exchange {
    /// Returns the client, or the proxy in front of it, as [`Peer::of`](crate::Peer::of) does.
    pub fn peer(&self) -> Peer {
        self.seat.peer()
    }

    /// Returns the address of the listener to which the client has connected, or `None` if the
    /// server does not have that listener any more.
    pub fn listener(&self) -> Option<&Address> {
        self.seat.address()
    }

    /// Returns the address of this machine to which the client has connected. Returns `None` if the
    /// stream is not a TCP connection, or if the server refused the request before it asked the
    /// kernel for the address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.seat.local_addr()
    }

    /// Returns `true` if the client speaks HTTPS, according to
    /// [`Connection::https`](crate::Connection::https).
    pub fn is_https(&self) -> bool {
        self.seat.is_https()
    }

    /// Returns the value of this type that the listener's wrapper, or the source of the connection,
    /// has attached by [`Connection::with`](crate::Connection::with).
    pub fn connection<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.seat.attached()
    }

    /// Returns the method as the client wrote it, as far as it has arrived, or `""` if nothing has
    /// arrived.
    ///
    /// A client can make up any number of methods, so do not make a metric of each. In a malformed
    /// request line, U+FFFD replaces each byte that is not visible ASCII.
    pub fn method(&self) -> &str {
        self.request.method()
    }

    /// Returns the target as the client wrote it, as far as it has arrived, or `""` if nothing has
    /// arrived.
    ///
    /// In a malformed request line, U+FFFD replaces each byte that is not visible ASCII.
    pub fn target(&self) -> &str {
        self.request.target()
    }

    /// Returns the version, or `None` if the version has not arrived or [`Version`] does not have
    /// it.
    pub fn version(&self) -> Option<Version> {
        self.request.version
    }

    /// Returns the value of the request's first field of this name, as the client sent it. The case
    /// of the name does not matter. `%XX` replaces a byte outside ASCII, as in the fields of a
    /// request.
    ///
    /// Returns `None` if there is no such field. If the head was refused or has not arrived whole,
    /// returns `None` for every name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.request.field(name)
    }

    /// Returns the status of the response, or `None` if the server sent nothing of a response.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Returns the number of bytes of the request that have come: head and body, with the framing
    /// of a chunked body. The bytes of another protocol after an upgrade count, too.
    ///
    /// If the head was refused or has not arrived whole, all bytes count that have come. The
    /// framing of a chunk that is incomplete or malformed does not count.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns the number of bytes of the response that were sent: head and body, with the framing
    /// of a chunked body. The bytes of another protocol after an upgrade count, too. `100 Continue`
    /// does not count.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns the number of bytes that were sent after the response's head, which are a part of
    /// [`Exchange::sent`].
    pub fn body_sent(&self) -> u64 {
        self.body_sent
    }

    /// Returns the time at which the server began to read the request. If a client pipelines
    /// requests, one begins after the other.
    pub fn began(&self) -> SystemTime {
        self.began
    }

    /// Returns the time from the beginning to the first byte of the response, or `None` if the
    /// server sent nothing of a response.
    pub fn first_byte(&self) -> Option<Duration> {
        self.first_byte
    }

    /// Returns the time from the beginning to the end of the exchange.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Returns the way in which the exchange ended.
    pub fn ending(&self) -> ExchangeEnding {
        self.ending
    }

    /// Returns a value that the handler has put into its response's `ext_mut()`.
    ///
    /// # Examples
    ///
    /// A metric needs the pattern of a route, because there are too many targets:
    ///
    /// ```
    /// use smol_graceful::{Response, Server};
    ///
    /// struct Route(&'static str);
    ///
    /// let server = Server::new(|_request| async {
    ///     let mut response = Response::from("a user");
    ///     response.ext_mut().insert(Route("/users/{id}"));
    ///     Ok(response)
    /// });
    /// let server = server.observe(|exchange| {
    ///     let route = exchange.extension::<Route>().map_or("none", |route| route.0);
    ///     log::debug!("{route}: {:?}", exchange.took());
    /// });
    /// # drop(server);
    /// ```
    pub fn extension<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.extensions.get()
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("peer", &self.peer())
            .field("method", &self.method())
            .field("target", &self.target())
            .field("status", &self.status)
            .field("received", &self.received)
            .field("sent", &self.sent)
            .field("took", &self.took)
            .field("ending", &self.ending)
            .finish_non_exhaustive()
    }
}

/// The way in which an exchange ended.
///
/// # Examples
///
/// ```
/// use smol_graceful::ExchangeEnding;
///
/// assert_eq!(ExchangeEnding::HandedOver.to_string(), "handed over");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExchangeEnding {
    /// The server has sent the whole response, which is the handler's, or stands for the handler's
    /// error.
    Answered,
    /// The server has answered the request itself, without a handler.
    Refused,
    /// The handler or the body of its response has panicked. If the response had not begun, the
    /// client got a 500.
    Panicked,
    /// The server has ended the exchange, because the grace was over, the server was aborted, the
    /// response's body failed after a part of it was sent, or the body was silent in the drain for
    /// longer than [`Shutdown::stream_grace`](crate::Shutdown::stream_grace).
    Cut,
    /// The client has left before the whole response was sent, or has taken nothing of it for
    /// [`Limits::stall_timeout`](crate::Limits::stall_timeout). A client that closes its side within
    /// the request's body has left, too, if the response's body fails because of this.
    Reset,
    /// The request was upgraded, and the other protocol has ended.
    Upgraded,
    /// The connection has gone to the successor with a part of the request's head, and the
    /// successor answers the request. If the successor does not take the connection, this server
    /// goes on with the request, which then is another exchange for the observer.
    HandedOver,
}

impl fmt::Display for ExchangeEnding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Panicked => "panicked",
            Self::Cut => "cut",
            Self::Reset => "reset",
            Self::Upgraded => "upgraded",
            Self::HandedOver => "handed over",
        })
    }
}

/// The program's function, which gets each exchange.
pub(crate) struct Observer(Box<dyn Fn(&Exchange) + Send + Sync>);

impl Observer {
    pub(crate) fn new(observe: impl Fn(&Exchange) + Send + Sync + 'static) -> Self {
        Self(Box::new(observe))
    }

    /// Passes an exchange to the observer. A panic ends here (rule O2).
    pub(crate) fn tell(&self, exchange: &Exchange) {
        if catch_unwind(AssertUnwindSafe(|| (self.0)(exchange))).is_err() {
            log::error!("{}: the observer has panicked", exchange.peer());
        }
    }
}
