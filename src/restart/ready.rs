//! [`ready`]: tells the predecessor or the manager that this process serves.
//!
//! A program with `serve` calls it, and `run` does what it does. Keeps no state, and sends nothing
//! later.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::listen::inherited;
use crate::listen::listener::Listener;
use crate::restart::channel::Channel;
use crate::restart::notify::Notify;

/// Tells the service manager (systemd's `READY=1`) that this process serves on `listeners`. In a
/// successor, tells the predecessor instead, whose sockets are this process's own from then on. A
/// program that calls this takes no connections of the predecessor; only [`run`] does.
///
/// [`run`] reports by itself, so do not call this there: the predecessor would keep its connections.
/// A program with [`Server::serve`] has to call it when it is ready:
/// until then a unit with `Type=notify` is not started, and the predecessor goes on serving. Only
/// [`run`] sends the manager anything else, namely STOPPING, EXTEND_TIMEOUT_USEC, WATCHDOG and how
/// the drain goes on. A program with [`Server::serve`] may send those itself: in a successor to the
/// socket that SMOL_GRACEFUL_NOTIFY_SOCKET names, and otherwise to NOTIFY_SOCKET.
///
/// Does nothing if neither waits. A second call does no harm.
///
/// [`run`]: crate::run
/// [`Server::serve`]: crate::Server::serve
///
/// # Errors
///
/// Returns [`io::ErrorKind::WouldBlock`] if the message could not be sent now. Try again then.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Listener, Server, ready};
///
/// # fn main() -> std::io::Result<()> {
/// let listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
/// let server = Server::new(|_request| async { Ok("okay") });
/// # server.handle().stop();
/// let serve = server.serve([listener.clone()]);
/// ready(&[listener])?;
/// println!("{}", smol::block_on(serve)?);
/// # Ok(())
/// # }
/// ```
pub fn ready(listeners: &[Listener]) -> io::Result<()> {
    // A program with `serve` takes no connections of its predecessor's.
    drop(Channel::from_env());
    report(&Arc::new(Notify::from_env()), "serving", listeners, false)
}

/// Tells the process that waits for this one that it serves on `listeners`, and whether it takes a
/// predecessor's connections. A manager shows the `status`.
///
/// # Errors
///
/// Returns the errors of [`ready`].
pub(crate) fn report(
    notify: &Arc<Notify>,
    status: &str,
    listeners: &[Listener],
    takes_connections: bool,
) -> io::Result<()> {
    inherited::close_unclaimed();
    let taken: Vec<_> = listeners.iter().filter_map(Listener::handed_as).collect();
    let adopt =
        listeners.iter().filter(|listener| takes_connections && listener.can_move_connections());
    let adopted: Vec<_> = adopt.filter_map(Listener::handed_as).collect();
    if notify.ready(status, &taken, &adopted)? {
        for listener in listeners {
            let predecessor = notify.clone();
            listener.ownership().take_over(Instant::now(), move || predecessor.is_awaited());
        }
    }
    Ok(())
}
