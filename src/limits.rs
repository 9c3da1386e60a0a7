//! [`Limits`]: all numbers that bound connections in one place, each with its default and unit.
//!
//! Keeps no state and takes no decision: the connection and the sweep read it. The times that the
//! sweep needs and that are not settings are constants of [`Limits`]. Every other number that is
//! not a setting is a constant next to its one user.

use std::time::Duration;

/// The bounds of a server's connections: times, bytes and counts. The times of a stop belong to
/// [`Shutdown`](crate::Shutdown).
///
/// Each setter changes one bound, and the others keep their defaults.
///
/// For each duration, zero means *at once*, and [`Duration::MAX`] means *no limit*. Zero never
/// means that there is no limit. The server looks at the clock for `head_timeout`, `idle_timeout`
/// and `stall_timeout` once a second, or eight times within the shortest of them, and at most every
/// 5 ms. So a client gets up to two such pauses more.
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
    /// Sets how long a request's head may take, from its first byte to its end; then the client
    /// gets 408. Default: 30 s.
    ///
    /// Zero refuses a head that does not come in one piece. [`Duration::MAX`] waits for as long as
    /// it takes; only TLS's handshake still has 10 s.
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

    /// Sets how long a connection may be silent before and between requests. Then the server closes
    /// it without a word. Default: 75 s.
    ///
    /// Zero closes a connection that has no request at once, also a new one whose client has not
    /// sent a byte yet. With [`Duration::MAX`] the client may be silent for as long as it likes.
    /// The time goes on when a successor takes the connection over.
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
    /// Zero gives up a client at its first pause. With [`Duration::MAX`], a body still has to come
    /// at [`Limits::body_rate`].
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
    /// seconds, whichever is longer. When the credit is used up, reading the body fails within two
    /// seconds, and the client gets 408 unless the handler judges otherwise (rule W16). A slow
    /// handler costs its client nothing, because only the server's waiting counts. The framing of
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

    /// Sets how long the request line and the header fields may be together, in bytes and with the
    /// blank line behind them. A longer head gets 414 or 431. Default: 16 KiB.
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

    /// Sets how long a request's body may be, in bytes. A longer one gets 413. Default: `None`, no
    /// bound.
    ///
    /// If a body declares more, the server calls no handler. In a body in chunks, the read that
    /// meets the bound fails with a [`BodyError`](crate::BodyError), and the client gets 413 unless
    /// the handler judges otherwise (rule W16).
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

    /// Sets up to which length, in bytes, the server discards a body that the handler did not read,
    /// to keep the connection (rule W9). Default: 256 KiB.
    ///
    /// The response announces that the connection ends if more than this is left of a body of known
    /// length, or if more than this of a body in chunks has already come. Otherwise the server
    /// reads and discards the rest, however long a body in chunks becomes.
    ///
    /// After a response that ends the connection, the server reads for up to two seconds what the
    /// client still sends, and then resets the connection. Some clients report the reset instead of
    /// the response. If such a client has to see the response, the handler has to read the body.
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
    /// the process may not open so many files.
    ///
    /// A connection that comes from a predecessor counts like any other. If no place is free, it
    /// stays with the predecessor, and ends there as at any stop.
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

    /// How long the client's remaining bytes are discarded after the last response (rule S9).
    pub(crate) const CLOSING: Duration = Duration::from_secs(1);
    /// How long a listener's wrapper may take, at most (TLS's handshake).
    pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
    /// How many bytes that were read ahead go along with a connection to the successor, and how
    /// many in one batch. The predecessor reads a longer head itself.
    pub(crate) const MOST_AHEAD: usize = 64 * 1024;
    /// The credit with which a body begins, as the time for which it lasts at
    /// [`Limits::body_rate`].
    pub(crate) const BODY_RATE_AFTER: Duration = Duration::from_secs(5);
    /// How long the client's kernel may take nothing of the last response, which ours goes on to
    /// send when the connection is closed, unless the client sends something (rule S9).
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

/// Returns the wished number of connections, or less if the process may not open so many files.
pub(crate) fn connections_allowed(wished: usize) -> usize {
    /// Descriptors left for listeners, logs, the reactor and what handlers open.
    const SPARE: u64 = 64;
    let files =
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let allowed = files.saturating_sub(SPARE).max(files / 2).max(1);
    wished.min(usize::try_from(allowed).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operators rely on them.
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
