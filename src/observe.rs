//! [`Exchange`]: a request and what became of it, for the observer of
//! [`Server::observe`](crate::Server::observe).
//!
//! Invariant: the observer hears of each exchange once, when it is over, and a panic of the
//! observer costs one log line and nothing else (rule O2). Measures nothing: `wire/watch.rs` does.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_types::{Extensions, StatusCode, Version};

use crate::address::Address;
use crate::stop::seat::Seat;
use crate::stream::transport::Peer;

/// A request and what became of it, once that is over.
///
/// The observer of [`Server::observe`](crate::Server::observe) gets one for each request of which
/// the server has read a byte, also for those that no handler sees: a head that is malformed, too
/// long or too slow, and a method or a version that the server does not know.
///
/// An exchange is over when the last byte of the response is with the kernel, and when the server
/// has read the request's body or has given it up. An exchange that is cut is over at that moment,
/// and an upgraded one when the other protocol has ended.
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

    /// Returns the address of the listener to which the client has connected. Returns `None` only
    /// for a connection whose listener the server does not have any more.
    pub fn listener(&self) -> Option<&Address> {
        self.seat.address()
    }

    /// Returns the address of this machine to which the client has connected. Returns `None` if the
    /// stream is not a TCP connection, or if the server refused the request before it asked the
    /// kernel for the address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.seat.local_addr()
    }

    /// Returns `true` if the client speaks HTTPS, as
    /// [`Connection::https`](crate::Connection::https) has said.
    pub fn is_https(&self) -> bool {
        self.seat.is_https()
    }

    /// Returns what the wrapper or the source of the connection has attached by
    /// [`Connection::with`](crate::Connection::with).
    pub fn connection<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.seat.attached()
    }

    /// Returns the method as the client wrote it, as far as it has arrived. Returns `""` if nothing
    /// of it has arrived.
    ///
    /// Any client can make up methods, so do not make a metric of each. In a request line that is
    /// malformed, each byte that is not visible ASCII is shown as U+FFFD.
    pub fn method(&self) -> &str {
        &self.request.text[self.request.method.clone()]
    }

    /// Returns the target as the client wrote it, as far as it has arrived. Returns `""` if nothing
    /// of it has arrived.
    ///
    /// In a request line that is malformed, each byte that is not visible ASCII is shown as U+FFFD.
    pub fn target(&self) -> &str {
        &self.request.text[self.request.target.clone()]
    }

    /// Returns the version. Returns `None` if it has not arrived, or if [`Version`] does not have
    /// it.
    pub fn version(&self) -> Option<Version> {
        self.request.version
    }

    /// Returns the value of the request's first field of this name, in upper or lower case, as the
    /// client sent it. A byte outside ASCII is shown as `%XX`, as in the fields of a request.
    ///
    /// Returns `None` if there is no such field, and for every name if the head was refused or has
    /// not arrived.
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.request.text[self.request.fields..].lines();
        let mut fields = fields.filter_map(|line| line.split_once(':'));
        fields.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim_ascii())
    }

    /// Returns the status of the response that the client got. Returns `None` if the server sent
    /// nothing of a response.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Returns how many bytes of the request came, head and body, with the framing of a chunked
    /// body. The bytes of another protocol behind an upgrade count, too.
    ///
    /// Of a request whose head was refused or has not arrived, everything counts that has come.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns how many bytes of the response were sent, head and body, with the framing of a
    /// chunked body. The bytes of another protocol behind an upgrade count, too.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns how many bytes of [`Exchange::sent`] were sent behind the response's head.
    pub fn body_sent(&self) -> u64 {
        self.body_sent
    }

    /// Returns when the server began to read the request. Of requests that a client sends without
    /// waiting for the answers, one begins after the other.
    pub fn began(&self) -> SystemTime {
        self.began
    }

    /// Returns how long it took from the beginning until the server sent the first byte of the
    /// response. Returns `None` if the server sent nothing of a response.
    pub fn first_byte(&self) -> Option<Duration> {
        self.first_byte
    }

    /// Returns how long the exchange took in all.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Returns how the exchange ended.
    pub fn ending(&self) -> ExchangeEnding {
        self.ending
    }

    /// Returns a value that the handler has put into its response's `ext_mut()`.
    ///
    /// # Examples
    ///
    /// A metric needs the pattern of a route, because the targets are without number:
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

/// How an exchange ended.
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
    /// The response was sent whole. The response is the handler's, or stands for the handler's
    /// error.
    Answered,
    /// The server has answered the request itself, and called no handler.
    Refused,
    /// The handler has panicked, or the body of its response has. If the response had not begun,
    /// the client got a 500.
    Panicked,
    /// The server has ended the exchange: the grace was over, the server was aborted, the
    /// response's body failed after a part of it was sent, or the body was silent in the drain for
    /// longer than [`Shutdown::stream_grace`](crate::Shutdown::stream_grace).
    Cut,
    /// The client has left before the response was whole, or has taken nothing of it for
    /// [`Limits::stall_timeout`](crate::Limits::stall_timeout).
    Reset,
    /// The request was upgraded, and the other protocol has ended.
    Upgraded,
    /// The connection has set out for the successor with a part of the request's head. The successor
    /// answers the request. If the successor does not take the connection, this server goes on with
    /// the request, and the observer hears of that as of another exchange.
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

/// A request's head as text.
#[derive(Debug, Default)]
pub(crate) struct RequestText {
    pub(crate) text: String,
    pub(crate) method: Range<usize>,
    pub(crate) target: Range<usize>,
    /// Where the field lines begin. Behind the end of the request line if the head is not whole.
    pub(crate) fields: usize,
    pub(crate) version: Option<Version>,
}

/// The program's function that hears of each exchange.
pub(crate) struct Observer(Box<dyn Fn(&Exchange) + Send + Sync>);

impl Observer {
    pub(crate) fn new(observe: impl Fn(&Exchange) + Send + Sync + 'static) -> Self {
        Self(Box::new(observe))
    }

    /// Tells the observer of an exchange. A panic ends here (rule O2).
    pub(crate) fn tell(&self, exchange: &Exchange) {
        if catch_unwind(AssertUnwindSafe(|| (self.0)(exchange))).is_err() {
            log::error!("{}: the observer has panicked", exchange.peer());
        }
    }
}
