//! The signals that stop a server, as a stream.
//!
//! Invariant: from the moment the stream is made, none of its signals kills the process; this does
//! not end when the stream is dropped, as a handler cannot be taken back safely. Nothing here is
//! done unless asked for: the library registers no signal by itself. Knows nothing of servers.

use std::io;

use async_signal::{Signal, Signals};
use futures_lite::{Stream, StreamExt};

/// The signals that stop a server unless it is told otherwise: HUP, INT, TERM and QUIT.
pub const STOP_SIGNALS: [Signal; 4] = [Signal::Hup, Signal::Int, Signal::Term, Signal::Quit];

/// HUP, INT, TERM and QUIT as they arrive, for programs that have their own control loop; those
/// that have none call [`run`](crate::run).
///
/// Never ends. Several signals that arrive in one moment may show as fewer, but never as none.
///
/// # Errors
///
/// What the operating system says if a signal cannot be handled.
///
/// # Examples
///
/// ```no_run
/// use futures_lite::StreamExt;
/// use smol_graceful::{Shutdown, signals};
///
/// # fn main() -> std::io::Result<()> {
/// let shutdown = Shutdown::new();
/// let mut signals = signals()?;
/// futures_lite::future::block_on(async {
///     let mut told = false;
///     while let Some(signal) = signals.next().await {
///         if told {
///             shutdown.abort();
///         }
///         told = true;
///         shutdown.stop_by(signal);
///     }
/// });
/// # Ok(())
/// # }
/// ```
pub fn signals() -> io::Result<impl Stream<Item = Signal> + Send + Unpin + use<>> {
    stream(&STOP_SIGNALS)
}

/// The same for any set of signals.
pub(crate) fn stream(
    set: &[Signal],
) -> io::Result<impl Stream<Item = Signal> + Send + Unpin + use<>> {
    // A read of the pipe can fail only if the pipe is gone, and it lives as long as the stream.
    Ok(Signals::new(set)?.filter_map(Result::ok))
}
