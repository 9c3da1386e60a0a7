//! [`Limits`]: every number of the server in one place, each with its default and unit.
//!
//! Keeps no state and takes no decision: the connection, the sweep and the drain read it.
//! The numbers that are not settings are constants next to their one user.

use std::time::Duration;

/// What bounds a server: time, bytes, counts.
///
/// All fields are public and have defaults; change some and take the rest with
/// `..Limits::default()`.
///
/// # Examples
///
/// ```
/// use smol_graceful::Limits;
/// use std::time::Duration;
///
/// let limits = Limits {
///     grace: Duration::from_secs(10),
///     ..Limits::default()
/// };
/// assert_eq!(limits.idle_timeout, Duration::from_secs(75));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long the drain may take, from the close of the listeners to the abort of what is left
    /// (rule S13). Default: 30 s. A supervisor's own limit must be longer than
    /// `lame_duck + grace`.
    pub grace: Duration,
    /// How long connections are still accepted after the stop, while readiness already says no
    /// (rule S3). Default: 0.
    pub lame_duck: Duration,
    /// An idle connection's last chance to send a request after the stop (rule S6).
    /// Default: 100 ms.
    pub linger: Duration,
    /// From the first byte of a request's head to its end; then 408. Default: 30 s.
    pub head_timeout: Duration,
    /// How long a connection may be silent before and between requests; then it is closed without
    /// a word. Default: 75 s.
    pub idle_timeout: Duration,
    /// How long reading a body or writing a response may make no progress at all. Default: 30 s.
    pub stall_timeout: Duration,
    /// How many bytes of a request's body a client has to send each second, on average, while the server
    /// waits for them, from the fifth second of a wait on; else 408. Zero means that any rate will do.
    /// Default: 240.
    ///
    /// A client that has sent a lot may pause for `stall_timeout`. A slow handler is not held against its
    /// client: time counts only while someone waits for the body.
    pub body_rate: u64,
    /// How long the request line and the header fields together may be, in bytes; beyond it the
    /// client gets 414 or 431. Default: 16 KiB. Memory is taken only for what has arrived.
    pub head_bytes: usize,
    /// How many header fields a request may have; beyond it the client gets 431. Default: 100.
    pub headers: usize,
    /// How long a request's body may be, in bytes; beyond it 413. Default: `None`, no bound.
    pub body_bytes: Option<u64>,
    /// How much of a body that the handler did not read is discarded, in bytes, to keep the
    /// connection (rule W9). If more is known to be left, the response announces that the connection
    /// ends. Default: 256 KiB.
    pub discard_bytes: u64,
    /// How many connections are served at the same time. If all places are taken and a further client
    /// waits in the kernel's queue, connections that have been idle longest are closed, and for at
    /// least `linger`. If none is idle, the client waits. Default: 10,000, or what the process's limit
    /// of open files allows.
    pub connections: usize,
}

impl Limits {
    /// How long the client's remaining bytes are discarded after the last response (rule S9).
    pub(crate) const CLOSING: Duration = Duration::from_secs(1);
    /// How long a listener's wrapper may take, at most (TLS's handshake).
    pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
    /// How long a client may be slower than [`Limits::body_rate`].
    pub(crate) const BODY_RATE_AFTER: Duration = Duration::from_secs(5);
    /// How long the client's kernel may take nothing of the last response, which ours goes on to send
    /// when the connection is closed, unless the client sends something (rule S9).
    pub(crate) const DELIVERING: Duration = Duration::from_secs(5);
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            lame_duck: Duration::ZERO,
            linger: Duration::from_millis(100),
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

/// As many connections as wished, less if the process may not open so many files.
fn connections_allowed(wished: usize) -> usize {
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
        assert_eq!(limits.grace, Duration::from_secs(30));
        assert_eq!(limits.lame_duck, Duration::ZERO);
        assert_eq!(limits.linger, Duration::from_millis(100));
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
