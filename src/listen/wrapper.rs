//! [`Wrapper`]: turns each connection of a listener into another stream before the server serves
//! it, above all for TLS.
//!
//! Invariant: a panic of the program's part is an error of one connection (rule S17), and
//! [`Handshakes`] counts every connection on which the program's part fails. `handshake.rs`
//! limits how long that part may take.

use std::any::Any;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures_lite::{AsyncRead, AsyncWrite, FutureExt};

use crate::address::Address;
use crate::log_limit::LogLimit;
use crate::stream::connection::Connection;
use crate::stream::transport::Peer;

/// The program's function.
type Wrap = dyn Fn(Connection) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>
    + Send
    + Sync;

/// Turns a connection into the stream that the server serves.
pub(crate) struct Wrapper {
    wrap: Box<Wrap>,
    /// The counts of the wrapper's listener.
    pub(crate) handshakes: Arc<Handshakes>,
}

impl Wrapper {
    pub(crate) fn new<W, F, C>(wrap: W, handshakes: Arc<Handshakes>) -> Self
    where
        W: Fn(Connection) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<C>> + Send + 'static,
        C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let wrap = move |connection| -> Pin<Box<dyn Future<Output = _> + Send>> {
            let wrapped = wrap(connection);
            Box::pin(async move { Ok(connection_of(wrapped.await?)) })
        };
        Self { wrap: Box::new(wrap), handshakes }
    }

    /// Wraps a connection.
    ///
    /// # Errors
    ///
    /// Returns the errors of the program's function, and its panic as an error.
    pub(crate) async fn wrap(&self, connection: Connection) -> io::Result<Connection> {
        let wrapped = AssertUnwindSafe(async { (self.wrap)(connection).await }).catch_unwind();
        wrapped.await.unwrap_or_else(|_| Err(io::Error::other("the wrapper has panicked")))
    }
}

/// Returns `stream` itself if it is a [`Connection`], which keeps its peer and its socket.
/// Otherwise makes a connection of `stream`.
fn connection_of<C: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: C) -> Connection {
    let mut stream = Some(stream);
    let any: &mut dyn Any = &mut stream;
    let connection = any.downcast_mut::<Option<Connection>>().and_then(Option::take);
    let connection = connection.or_else(|| stream.map(Connection::new));
    connection.unwrap_or_else(|| unreachable!("the stream is taken only as a connection"))
}

/// Counts the failed handshakes of a listener.
pub(crate) struct Handshakes {
    listener: Address,
    failed: AtomicU64,
    limit: LogLimit,
}

impl Handshakes {
    pub(crate) fn of(listener: Address) -> Self {
        Self { listener, failed: AtomicU64::new(0), limit: LogLimit::new() }
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Counts the failure of a handshake with `peer`. Logs the failure if the last line is old
    /// enough.
    pub(crate) fn fail(&self, peer: Peer, error: &io::Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        log::debug!("{peer}: no connection: {error}");
        let listener = &self.listener;
        match self.limit.count(Instant::now()) {
            None => {}
            Some(1) => log::info!("{listener}: a handshake failed, from {peer}: {error}"),
            Some(count) => log::info!(
                "{listener}: {count} handshakes failed, the last one from {peer}: {error}"
            ),
        }
    }
}
