//! [`ready`]: tells the keeper or the service manager that this process serves.
//!
//! A program with `serve` calls it, and `run` does what it does. Keeps no state, and sends nothing
//! later.

use std::io;
use std::os::fd::AsFd;

use crate::error::invalid;
use crate::listen::inherited;
use crate::listen::listener::Listener;
use crate::restart::message::{BATCH, Ready, Served};
use crate::restart::notify::Notify;
use crate::restart::parent::{Parent, resumes};
use crate::under_keeper;

/// Tells the keeper, or else the service manager (systemd's `READY=1`), that this process serves on
/// `listeners`.
///
/// [`run`](crate::run) reports by itself. A program with [`Server::serve`] calls this when `serve`
/// was called for each of its servers. Until then a keeper lets the predecessor serve, and a unit
/// with `Type=notify` is not started.
///
/// From then on a keeper restarts this process without closing a connection: the servers of this
/// process take the connections of the predecessor, and hand their own to the successor. Then they
/// stop, and [`Server::serve`] returns when they have drained. If the process has no server, the
/// keeper stops it by SIGTERM, like any other program.
///
/// Call [`signals`](crate::signals) first. As soon as this process is ready, a signal may come,
/// which would kill it otherwise. `examples/restart.rs` is a whole program.
///
/// Without a keeper and a manager, this does nothing. A second call does no harm, because a keeper
/// counts only the first.
///
/// Only [`run`](crate::run) tells a manager anything else, namely STOPPING, EXTEND_TIMEOUT_USEC,
/// WATCHDOG and how the drain goes on. A program with [`Server::serve`] may send those to
/// NOTIFY_SOCKET itself, under a keeper, too, which passes them on.
///
/// [`Server::serve`]: crate::Server::serve
///
/// # Errors
///
/// Returns [`io::ErrorKind::WouldBlock`] if the message could not be sent now. Try again then.
/// Returns what the operating system says if there is no descriptor left to give the keeper a
/// socket, and [`io::ErrorKind::InvalidInput`] if it has bound more than 253, which no keeper
/// takes.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Listener, Server, ready};
///
/// # fn main() -> std::io::Result<()> {
/// let listener = Listener::bind("127.0.0.1:0")?;
/// let server = Server::new(|_request| async { Ok("okay") });
/// # let stopped = smol_graceful::Shutdown::new();
/// # stopped.stop();
/// # let server = server.shutdown(&stopped);
/// let serve = server.serve([listener.clone()]);
/// ready(&[listener])?;
/// println!("{}", smol::block_on(serve)?);
/// # Ok(())
/// # }
/// ```
pub fn ready(listeners: &[Listener]) -> io::Result<()> {
    inherited::close_unclaimed();
    match Parent::of_this_process() {
        // Without a server nobody would hear the keeper, which then stops this process by a signal.
        Some(parent) if under_keeper::has_server() => tell_keeper(parent, listeners),
        _ => Notify::from_env().ready(),
    }
}

/// Tells the keeper which listeners this process serves. Gives it the sockets that it does not
/// have.
fn tell_keeper(parent: &Parent, listeners: &[Listener]) -> io::Result<()> {
    let next = parent.offered.iter().map(|offered| offered.number + 1).max().unwrap_or(0);
    let mut numbers = next..;
    let (mut served, mut sockets) = (Vec::new(), Vec::new());
    for listener in listeners {
        let adopts = listener.can_move_connections();
        if let Some(number) = listener.number() {
            served.push(Served { number, adopts, brought: None });
        } else if let (Some((socket, brought)), Some(number)) = (listener.bring()?, numbers.next())
        {
            served.push(Served { number, adopts, brought: Some(brought) });
            sockets.push((listener, number, socket));
        }
    }
    if sockets.len() > BATCH {
        return Err(invalid(format!(
            "the keeper takes at most {BATCH} sockets that a program has bound; let the keeper bind \
             them (`smol-graceful keep --listen`)"
        )));
    }
    let ready = Ready { listeners: served, resumes: resumes() };
    let descriptors: Vec<_> = sockets.iter().map(|(_, _, socket)| socket.as_fd()).collect();
    if parent.ready(ready, &descriptors)? {
        for (listener, number, _) in sockets {
            listener.set_number(number);
            listener.ownership().share();
        }
    }
    Ok(())
}
