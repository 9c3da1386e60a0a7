//! [`Limits`]: all numbers that bound connections in one place, each with its default and unit.
//!
//! This file keeps no state and decides nothing. The connection and the sweep read the numbers.
//! Times of the sweep that are not settings are constants of [`Limits`]. Every other number that is
//! not a setting is a constant next to its one user.

use std::time::Duration;

/// The bounds of a server's connections: times, bytes and counts. The times of a stop belong to
/// [`Shutdown`](crate::Shutdown).
///
/// Each setter changes one bound, and the others keep their defaults.
///
/// For each duration, zero means *at once*, and [`Duration::MAX`] means *no limit*. The server
/// checks `head_timeout`, `idle_timeout` and `stall_timeout` once a second, or eight times within
/// the shortest of them, but at most every 5 ms. So a client may get up to two such pauses more.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Limits, Server};
/// use std::time::Duration;
///
/// let limits = Limits::default().head_timeout(Duration::from_secs(10)).body_bytes(64 * 1024);
/// let server = Server::new(|_request| async { Ok("okay") }).limits(limits);
/// # drop(server);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub(crate) head_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) stall_timeout: Duration,
    pub(crate) body_rate: u64,
    pub(crate) head_bytes: usize,
    pub(crate) headers: usize,
    pub(crate) body_bytes: Option<u64>,
    pub(crate) discard_bytes: u64,
    pub(crate) connections: usize,
}

impl Limits {
    /// Sets how long a request's head may take, from its first byte to its end. After that, the
    /// client gets 408. Default: 30 s.
    ///
    /// With zero, the server refuses a head that does not come in one piece. With
    /// [`Duration::MAX`], there is no limit, except that a TLS handshake still has 10 s.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Limits;
    /// use std::time::Duration;
    ///
    /// let limits = Limits::default().head_timeout(Duration::from_secs(10));
    /// assert_ne!(limits, Limits::default());
    /// ```
    #[must_use]
    pub fn head_timeout(mut self, head_timeout: Duration) -> Self {
        self.head_timeout = head_timeout;
        self
    }

    /// Sets how long a connection may be silent before and between requests. After that, the server
    /// closes the connection without a response. Default: 75 s.
    ///
    /// With zero, the server at once closes a connection without a request, even a new one whose
    /// client has not sent a byte yet. With [`Duration::MAX`], there is no limit. The time goes on
    /// when a successor takes the connection over.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Limits;
    /// use std::time::Duration;
    ///
    /// let limits = Limits::default().idle_timeout(Duration::from_secs(10));
    /// assert_ne!(limits, Limits::default());
    /// ```
    #[must_use]
    pub fn idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.idle_timeout = idle_timeout;
        self
    }

    /// Sets how long reading a body or writing a response may make no progress. Default: 30 s.
    ///
    /// With zero, the server gives up a client at its first pause. With [`Duration::MAX`], a body
    /// still has to come at [`Limits::body_rate`].
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Limits;
    /// use std::time::Duration;
    ///
    /// let limits = Limits::default().stall_timeout(Duration::from_secs(5));
    /// assert_ne!(limits, Limits::default());
    /// ```
    #[must_use]
    pub fn stall_timeout(mut self, stall_timeout: Duration) -> Self {
        self.stall_timeout = stall_timeout;
        self
    }

    /// Sets the least rate of a request's body, in bytes per second. Zero allows any rate. Default:
    /// 240.
    ///
    /// A client begins with a credit of five seconds. The credit shrinks while the server waits for
    /// the body, and grows with the bytes that arrive, up to [`Limits::stall_timeout`] or five
    /// seconds, whichever is longer. When the credit is used up, the read of the body fails within
    /// two seconds, and the client gets 408 unless the handler decides otherwise (rule W16). A slow
    /// handler does not use up the credit, because only the server's waiting counts. The framing of
    /// chunks and of TLS records counts as a part of the body.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Limits;
    ///
    /// let limits = Limits::default().body_rate(10_000);
    /// assert_ne!(limits, Limits::default());
    /// ```
    #[must_use]
    pub fn body_rate(mut self, body_rate: u64) -> Self {
        self.body_rate = body_rate;
        self
    }

    /// Sets how long the request line and the header fields may be together, in bytes, including
    /// the blank line after them. A longer head gets 414 or 431. Default: 16 KiB.
    ///
    /// The server takes memory only for bytes that have arrived.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Limits;
    ///
    /// let limits = Limits::default().head_bytes(64 * 1024);
    /// assert_ne!(limits, Limits::default());
    /// ```
    #[must_use]
    pub fn head_bytes(mut self, head_bytes: usize) -> Self {
        self.head_bytes = head_bytes;
        self
    }

    /// Sets how many header fields a request may have. A head with more gets 431. Default: 100.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Limits;
    ///
    /// let limits = Limits::default().headers(50);
    /// assert_ne!(limits, Limits::default());
    /// ```
    #[must_use]
    pub fn headers(mut self, headers: usize) -> Self {
        self.headers = headers;
        self
    }

    /// Sets how long a request's body may be, in bytes. A longer one gets 413. Default: `None`,
    /// which means no bound.
    ///
    /// If a body declares a greater length, the server does not call the handler. In a body in
    /// chunks, the read that reaches the bound fails with a [`BodyError`](crate::BodyError), and
    /// the client gets 413 unless the handler decides otherwise (rule W16).
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Limits;
    ///
    /// let limits = Limits::default().body_bytes(1024 * 1024);
    /// assert_ne!(limits, Limits::default());
    /// ```
    #[must_use]
    pub fn body_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.body_bytes = bytes.into();
        self
    }

    /// Sets how many bytes of an unread body the server discards, so that the connection can go on
    /// (rule W9). Default: 256 KiB.
    ///
    /// If more than this is left of a body of known length, or more than this of a body in chunks
    /// has already come, the response says `close`. Otherwise the server reads and discards the
    /// rest, even if a body in chunks becomes longer.
    ///
    /// After a response that says `close`, the server discards the client's bytes for up to two
    /// seconds, and then resets the connection. Some clients report the reset instead of the
    /// response. If such a client has to see the response, the handler has to read the body.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Limits;
    ///
    /// let limits = Limits::default().discard_bytes(0);
    /// assert_ne!(limits, Limits::default());
    /// ```
    #[must_use]
    pub fn discard_bytes(mut self, discard_bytes: u64) -> Self {
        self.discard_bytes = discard_bytes;
        self
    }

    /// Sets how many connections the server serves at the same time. Default: 10,000, or fewer if
    /// the process may open too few files.
    ///
    /// When the server starts, it counts the files that the process has open, and serves no more
    /// connections than the process can then still open, with a few to spare. Several servers of a
    /// process do not know of each other's connections, so choose limits that leave room for all of
    /// them.
    ///
    /// A connection from a predecessor counts like any other. If no place is free, it stays with
    /// the predecessor, and ends there as at any stop.
    ///
    /// If all places are taken and a further client waits in the kernel's queue, the server closes
    /// the connection that has been idle longest, if it has been idle for
    /// [`Shutdown::linger`](crate::Shutdown::linger). In a flood of clients it closes more at a
    /// time, up to 32, and never more than one idle connection in eight. A connection that has not
    /// sent a byte counts as idle. If no connection is idle, the client waits.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Limits;
    ///
    /// let limits = Limits::default().connections(1_000);
    /// assert_ne!(limits, Limits::default());
    /// ```
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// The longest time for which the server discards the client's bytes after the last response
    /// (rule S9).
    pub(crate) const CLOSING: Duration = Duration::from_secs(1);
    /// The longest time for a listener's wrapper (TLS handshake).
    pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
    /// The largest number of bytes read ahead that go to the successor with a connection, and in
    /// one batch. The predecessor reads a longer head itself.
    pub(crate) const MOST_AHEAD: usize = 64 * 1024;
    /// The credit of a new body, as the time for which it lasts at [`Limits::body_rate`].
    pub(crate) const BODY_RATE_AFTER: Duration = Duration::from_secs(5);
    /// The longest time for which the client's kernel may acknowledge nothing of the last response
    /// before the server closes the connection (rule S9). After the close, the server's kernel goes
    /// on sending, unless the client sends something.
    pub(crate) const DELIVERING: Duration = Duration::from_secs(5);
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(30),
            body_rate: 240,
            head_bytes: 16 * 1024,
            headers: 100,
            body_bytes: None,
            discard_bytes: 256 * 1024,
            connections: connections_allowed(10_000),
        }
    }
}

/// Returns the wished number of connections, or fewer if the process may open too few files.
pub(crate) fn connections_allowed(wished: usize) -> usize {
    /// The descriptors that are left for listeners, logs, the reactor and handlers.
    const SPARE: usize = 64;
    let files = files_allowed();
    wished.min(files.saturating_sub(SPARE).max(files / 2).max(1))
}

/// Returns the number of files that the process may open.
pub(crate) fn files_allowed() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    files.and_then(|files| files.try_into().ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operators rely on these values.
    #[test]
    fn defaults_are_the_agreed_ones() {
        let limits = Limits::default();
        assert_eq!(limits.head_timeout, Duration::from_secs(30));
        assert_eq!(limits.idle_timeout, Duration::from_secs(75));
        assert_eq!(limits.stall_timeout, Duration::from_secs(30));
        assert_eq!(limits.body_rate, 240);
        assert_eq!(limits.head_bytes, 16_384);
        assert_eq!(limits.headers, 100);
        assert_eq!(limits.body_bytes, None);
        assert_eq!(limits.discard_bytes, 262_144);
        assert!(limits.connections <= 10_000 && limits.connections > 0);
    }
}
