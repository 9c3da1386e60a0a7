//! [`ready`]: tells the keeper or the service manager that this process serves.
//!
//! A program with `Server::serve` calls this function, and `run` does the same by itself. This file
//! keeps no state, and sends nothing later.

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
/// [`run`](crate::run) reports by itself. A program with [`Server::serve`] calls this after it has
/// called `serve` for each of its servers. Until then, a keeper lets the predecessor serve, and a
/// unit with `Type=notify` does not count as started.
///
/// From then on, a keeper restarts this process without closing a connection. The servers of this
/// process take the connections of the predecessor, and at the next restart hand their own to the
/// successor. Then they stop, and [`Server::serve`] returns after the drain. If the process has no
/// server, the keeper stops it by SIGTERM, like any other program.
///
/// Call [`signals`](crate::signals) first. A signal may come as soon as this process is ready, and
/// would kill a process that does not handle it. `examples/restart.rs` is a whole program.
///
/// Without a keeper and a manager, this does nothing. A second call does no harm, because only the
/// first one counts.
///
/// [`run`](crate::run) also sends the manager STOPPING, EXTEND_TIMEOUT_USEC, WATCHDOG and a STATUS.
/// A program with [`Server::serve`] may send these to NOTIFY_SOCKET itself. Under a keeper it may
/// do so, too, because the keeper passes them on.
///
/// [`Server::serve`]: crate::Server::serve
///
/// # Errors
///
/// Returns [`io::ErrorKind::WouldBlock`] if the message cannot be sent now, and then the program
/// should try again. Returns the operating system's error if no descriptor is left for the copy of
/// a socket, and [`io::ErrorKind::InvalidInput`] if the program has bound more than 253 sockets,
/// because a keeper takes no more.
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
        // Without a server, this process does not read the keeper's messages, so the keeper has to
        // stop it by a signal.
        Some(parent) if under_keeper::has_server() => tell_keeper(parent, listeners),
        _ => Notify::from_env().ready(),
    }
}

/// Tells the keeper on which listeners this process serves, and sends it the sockets that it does
/// not have.
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
