//! [`Manager`]: the messages of a keeper to the service manager above it.
//!
//! Invariant: the keeper never waits for the manager. If the manager does not take a message at
//! once, the keeper drops the message, apart from READY=1, which it sends again later. Without a
//! NOTIFY_SOCKET, this file does nothing.

use std::io;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::keeper::notify::Words;
use crate::restart::notify::{NotifySocket, bounded};

/// The service manager of a keeper, if there is one.
#[derive(Default)]
pub(crate) struct Manager {
    socket: Option<NotifySocket>,
    /// The time at which READY=1 is sent again, if the manager has not taken it.
    owes_ready: Option<Instant>,
}

/// The pause before READY=1 is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

impl Manager {
    /// Finds the socket that the environment names.
    pub(crate) fn from_env() -> Self {
        Self { socket: NotifySocket::from_env(), owes_ready: None }
    }

    /// Tells the manager that a child serves.
    pub(crate) fn ready(&mut self) {
        let sent = self.send(&[NotifyState::Ready]);
        let is_full = sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.owes_ready = is_full.then(|| Instant::now() + RETRY_PAUSE);
    }

    /// Tells the manager that a restart has begun.
    pub(crate) fn reloading(&mut self) {
        self.owes_ready = None;
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            let _ = self.send(&[NotifyState::Reloading, now]);
        }
    }

    /// Tells the manager that the stop has begun.
    pub(crate) fn stopping(&mut self) {
        self.owes_ready = None;
        let _ = self.send(&[NotifyState::Stopping]);
    }

    /// Gives the manager a line to show.
    pub(crate) fn status(&self, status: &str) {
        let _ = self.send(&[NotifyState::Status(&bounded(status))]);
    }

    /// Passes the words of a child on, apart from READY=1.
    pub(crate) fn pass_on(&self, words: &Words) {
        if let Some(status) = &words.status {
            self.status(status);
        }
        if let Some(time) = words.extension {
            let _ = self.send(&[NotifyState::ExtendTimeoutUsec(time)]);
        }
        if words.is_watchdog {
            let _ = self.send(&[NotifyState::Watchdog]);
        }
    }

    /// Returns when [`Manager::try_again`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.owes_ready
    }

    /// Sends READY=1 again if that is due.
    pub(crate) fn try_again(&mut self, now: Instant) {
        if self.owes_ready.is_some_and(|at| at <= now) {
            self.ready();
        }
    }

    fn send(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        self.socket.as_ref().map_or(Ok(()), |socket| socket.send(states))
    }
}
