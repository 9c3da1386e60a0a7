//! [`Stage`]: the progress of a connection with its request, and what follows from that.
//!
//! A stage is derived from the connection's activity when it is needed. This file keeps no state.

use std::fmt;
use std::time::Duration;

use crate::limits::Limits;
use crate::stop::activity::{Doing, Look, Wait};

/// The progress of a connection with its request.
///
/// # Examples
///
/// The stage shows which side held a request up. Here the handler waits for a body that the client
/// does not send:
///
/// ```
/// use futures_lite::{AsyncWriteExt, stream};
/// use smol_graceful::{Connection, Listener, Server, Shutdown, Stage, WorkKind};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// let (mut client, connection) = Connection::pair();
/// let shutdown = Shutdown::new().grace(Duration::from_millis(10));
/// let handle = shutdown.clone();
/// let server = Server::new(move |mut request| {
///     handle.stop();
///     async move { request.body_string().await }
/// });
/// let listener = Listener::from_stream(stream::once(Ok(connection)));
/// let serve = server.shutdown(&shutdown).serve([listener]);
///
/// let outcome = smol::block_on(async {
///     client.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n").await?;
///     serve.await
/// })?;
/// assert!(matches!(outcome.cut[0].kind, WorkKind::Connection { stage: Stage::Body, .. }));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The connection was accepted, and the server has not looked for a request yet.
    Accepted,
    /// The connection is between two requests, or before the first.
    Idle,
    /// The head has begun to arrive.
    Head,
    /// The handler runs.
    Handler,
    /// The server or the handler waits for more of the request's body.
    Body,
    /// The response has begun, and the server waits for more of its body from the handler's reader.
    Response,
    /// The client is slow to take the response.
    Writing,
    /// The response is written, and the server discards the bytes that the client still sends.
    Closing,
    /// The connection was handed over to another protocol.
    Upgraded,
    /// The response is written, and the server discards the rest of the request's body, to go on
    /// with the next request.
    Discarding,
    /// The listener's wrapper is at work, for example in a TLS handshake.
    Handshake,
    /// The response is written, and the client's kernel has not acknowledged the last bytes.
    Delivering,
    /// The connection is on its way to the successor, which has not answered yet. If the drain is
    /// cut short, the successor may still answer a request of this connection.
    Leaving,
}

impl Stage {
    /// Returns the stage of an activity. If a client neither takes output nor sends its body, the
    /// stage is [`Stage::Writing`].
    pub(crate) fn of(look: Look) -> Self {
        let (body, room) = (look.waits_for(Wait::Body), look.waits_for(Wait::Room));
        match look.doing() {
            Doing::Closing if room => Self::Delivering,
            Doing::Closing => Self::Closing,
            _ if room => Self::Writing,
            Doing::Discarding => Self::Discarding,
            _ if body => Self::Body,
            Doing::Accepted => Self::Accepted,
            Doing::Idle => Self::Idle,
            Doing::Head => Self::Head,
            Doing::Handler => Self::Handler,
            Doing::Response => Self::Response,
            Doing::Upgraded => Self::Upgraded,
            Doing::Handshake => Self::Handshake,
            Doing::Leaving => Self::Leaving,
        }
    }

    /// Returns how long a connection may stay in the stage without a move, or `None` if there is no
    /// limit.
    pub(crate) fn limit(self, limits: &Limits) -> Option<Duration> {
        match self {
            Self::Accepted | Self::Idle => Some(limits.idle_timeout),
            Self::Handshake => Some(Limits::HANDSHAKE.min(limits.head_timeout)),
            Self::Head => Some(limits.head_timeout),
            Self::Body | Self::Writing | Self::Discarding => Some(limits.stall_timeout),
            Self::Delivering => Some(Limits::DELIVERING.min(limits.stall_timeout)),
            Self::Closing => Some(Limits::CLOSING),
            Self::Handler | Self::Response | Self::Upgraded | Self::Leaving => None,
        }
    }

    /// Returns `true` if the client may wait for an answer.
    pub(crate) fn is_request(self) -> bool {
        !matches!(self, Self::Idle | Self::Discarding | Self::Delivering | Self::Closing)
    }

    /// Returns `true` if a request has begun, and has no answer yet.
    pub(crate) fn has_begun(self) -> bool {
        self.is_request() && !matches!(self, Self::Accepted | Self::Handshake)
    }

    /// Returns `true` if only the program decides when the connection moves on, as for an upgraded
    /// connection, or a response whose body is awaited.
    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Self::Response | Self::Upgraded)
    }

    /// Returns `true` if the connection has to look whether its client is still there. In the other
    /// stages the connection reads anyway, and the read fails if the client is gone.
    pub(crate) fn can_look(self) -> bool {
        matches!(self, Self::Handler | Self::Body | Self::Response | Self::Writing | Self::Upgraded)
    }

    /// Returns `true` if the server waits in this stage for the rest of a request's body.
    pub(crate) fn waits_for_body(self) -> bool {
        matches!(self, Self::Body | Self::Discarding)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accepted => "not looked at yet",
            Self::Idle => "idle",
            Self::Head => "reading the head",
            Self::Handler => "in the handler",
            Self::Body => "reading the body",
            Self::Response => "streaming the response",
            Self::Writing => "writing the response",
            Self::Closing => "closing",
            Self::Upgraded => "upgraded",
            Self::Discarding => "discarding the body",
            Self::Handshake => "in the handshake",
            Self::Delivering => "delivering the response",
            Self::Leaving => "on its way to the successor",
        })
    }
}
