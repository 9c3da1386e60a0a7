//! A take-over: the child that is ready serves from now on, and the one before it leaves.
//!
//! Invariant: a connection goes only to a listener that is the same socket in both children. If
//! something fails, the old child stops without a hand-over, so idle connections are closed and no
//! request is lost.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use async_signal::Signal;

use crate::error::reason;
use crate::keeper::child::Child;
use crate::keeper::policy::Id;
use crate::keeper::resume::ServedState;
use crate::keeper::sockets::Sockets;
use crate::restart::channel::Channel;
use crate::restart::message::{Leave, Message};

/// Lets the child `id` take the place of `old`, and closes the sockets that `id` does not serve.
pub(crate) fn take_over(children: &mut [Child], sockets: &mut Sockets, id: Id, old: Option<Id>) {
    // K3: close the sockets first, so that `old` is alone with them when it hears of its successor.
    let taken = settle_sockets(children, sockets, id);
    let child = |id: Id| children.iter().find(|child| child.id == id);
    if let (Some(new), Some(old)) = (child(id), old.and_then(child)) {
        let [pid, old_pid] = [new.pid, old.pid].map(|pid| pid.as_raw_nonzero());
        log::info!("keeper: process {pid} takes over from process {old_pid}");
        if let Err(error) = let_leave(new, old, &taken) {
            log::warn!("keeper: no connections are handed over: {}", reason(&error));
            old.signal(Signal::Term);
        }
    }
}

/// Keeps the sockets that the child `id` has brought, and closes those that it does not serve.
/// Returns the numbers of the sockets that it serves.
///
/// A child may report its sockets after it has taken over, if the settings say that a time or an
/// answer is enough.
pub(crate) fn settle_sockets(children: &mut [Child], sockets: &mut Sockets, id: Id) -> Vec<u32> {
    let Some(child) = children.iter_mut().find(|child| child.id == id) else {
        return sockets.numbers();
    };
    for (number, socket, brought) in child.brought.drain(..) {
        if sockets.inode(number).is_some() {
            log::warn!("keeper: a child has brought a listener with a number that is taken");
        } else if let Err(error) = sockets.bring(number, socket, brought) {
            log::warn!("keeper: cannot keep a socket of a child: {}", reason(&error));
        }
    }
    let taken = match &child.reported {
        Some(reported) => reported.iter().map(|served| served.number).collect(),
        // A program that does not know the channel counts as serving every socket.
        None => sockets.numbers(),
    };
    let pid = child.pid.as_raw_nonzero();
    for address in sockets.close_others(&taken) {
        log::warn!("keeper: process {pid} does not listen on {address}, which is closed now");
    }
    taken
}

/// Tells `old` to leave. Gives both children a passage if both can hand connections over.
///
/// # Errors
///
/// Returns the operating system's error if the message to `old` cannot be sent.
fn let_leave(new: &Child, old: &Child, taken: &[u32]) -> io::Result<()> {
    let (Some(served), Some(channel)) = (&old.reported, &old.channel) else {
        old.signal(Signal::Term);
        return Ok(());
    };
    let adopted = adopted(new.reported.as_deref().unwrap_or_default(), served);
    let successor = new.pid.as_raw_nonzero().get().unsigned_abs();
    let mut leave = Leave { successor, taken: taken.to_vec(), adopted };
    let passage = if leave.adopted.is_empty() { None } else { passage_to(new) };
    if passage.is_none() {
        leave.adopted.clear();
    }
    let ends: Vec<_> = passage.iter().map(AsFd::as_fd).collect();
    channel.send(&Message::Leave(leave), &ends)
}

/// Returns the numbers of the listeners whose connections can go from one child to the other.
fn adopted(new: &[ServedState], old: &[ServedState]) -> Vec<u32> {
    let both = new.iter().filter(|served| served.adopts && old.contains(served));
    both.map(|served| served.number).collect()
}

/// Gives `new` one end of a passage, and returns the other end.
fn passage_to(new: &Child) -> Option<OwnedFd> {
    let passage = Channel::pair().and_then(|(one, other)| {
        let channel = new.channel.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        channel.send(&Message::Pass, &[other.as_fd()])?;
        one.into_fd()
    });
    let warn = |error: &io::Error| log::warn!("keeper: no passage: {}", reason(error));
    passage.inspect_err(warn).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_to_the_same_socket_alone() {
        let served = |number, inode, adopts| ServedState { number, inode, adopts };
        let old = [served(0, 10, true), served(1, 11, true), served(2, 12, false)];
        let new = [
            served(0, 10, true),
            // This socket has the number of a socket that was closed.
            served(1, 21, true),
            served(2, 12, true),
            served(3, 13, true),
        ];
        assert_eq!(adopted(&new, &old), [0]);
        assert!(adopted(&[served(0, 10, false)], &old).is_empty());
    }
}
