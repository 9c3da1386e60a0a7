//! Logs what a keeper does and what happens to its children.
//!
//! Invariant: a line about a child has the child's process id, as long as the keeper knows the
//! child. This file keeps the words of the last failure, for the manager and for the keeper's
//! error, and decides nothing.

use std::time::Duration;

use crate::keeper::policy::{Failure, Id, Next, Note};
use crate::keeper::running::RunningKeeper;
use crate::keeper::settings::ReadyWhen;
use crate::stop::signals;

impl RunningKeeper {
    /// Logs a note of the policy.
    pub(super) fn note(&mut self, note: &Note) {
        match note {
            Note::AnotherFollows => {
                log::info!("keeper: a restart is under way; another follows");
            }
            Note::TooLate(signal) => {
                log::warn!("keeper: no restart because of {}: stopping", signals::name(*signal));
            }
            Note::Stopping(signal) => {
                log::info!("keeper: stopping because of {}", signals::name(*signal));
            }
            Note::Ready(id) => {
                let started = self.child(*id).map(|child| child.started);
                let after = started.map_or(0.0, |started| started.elapsed().as_secs_f64());
                log::info!("keeper: {} is ready after {after:.2} s", self.process(*id));
            }
            Note::Ended(id, status) => {
                log::info!("keeper: {} has ended: {status}", self.process(*id));
            }
            Note::NoRestart { failure, old: Some(old) } => {
                let failure = self.words(failure);
                self.failure = format!("{failure}; {} goes on", self.process(*old));
                log::error!("keeper: no restart: {}", self.failure);
            }
            Note::NoRestart { failure, old: None } => {
                self.failure = self.words(failure);
                match failure {
                    Failure::Late(_) => {
                        log::error!("keeper: {}; it is told to stop", self.failure);
                    }
                    // The caller of the keeper reports this error.
                    Failure::NotStarted(_) => {}
                    Failure::Ended(..) | Failure::EndedOnTrial(..) => {
                        log::error!("keeper: {}", self.failure);
                    }
                }
            }
            Note::Died { id, status, next } => {
                let next = match next {
                    Next::After(pause) => format!("starting another in {}", milliseconds(*pause)),
                    Next::OnItsWay(next) => format!("{} is starting already", self.process(*next)),
                };
                log::error!(
                    "keeper: {} has died: {status}; {next}{}",
                    self.process(*id),
                    self.clients()
                );
            }
            Note::NotRevived { failure, pause } => {
                self.failure = self.words(failure);
                log::error!(
                    "keeper: {}; starting another in {}{}",
                    self.failure,
                    milliseconds(*pause),
                    self.clients()
                );
            }
        }
    }

    /// Returns the words about clients for the time in which no child serves.
    fn clients(&self) -> &'static str {
        if self.sockets.all().is_empty() { "" } else { ", clients wait" }
    }

    /// Returns the words for a failure.
    fn words(&self, failure: &Failure) -> String {
        match failure {
            Failure::NotStarted(reason) => reason.clone(),
            Failure::Ended(id, status) => {
                format!("{} has ended before it was ready: {status}", self.process(*id))
            }
            Failure::EndedOnTrial(id, status) => {
                format!("{} was ready and has ended: {status}", self.process(*id))
            }
            Failure::Late(id) => {
                let why = match (&self.settings.ready, self.child(*id)) {
                    (ReadyWhen::Answers(url), Some(child)) => {
                        format!("{url}: {}", child.why_not_shown())
                    }
                    _ => "no READY=1 came to NOTIFY_SOCKET, and nothing through \
                          SMOL_GRACEFUL_KEEPER; if the program cannot say that it is ready, set \
                          another --ready, such as 2s"
                        .into(),
                };
                let patience = self.settings.patience;
                format!("{} was not ready within {patience:?} ({why})", self.process(*id))
            }
        }
    }

    /// Returns a child's name in the log, with its process id.
    fn process(&self, id: Id) -> String {
        match self.child(id) {
            Some(child) => format!("process {}", child.pid.as_raw_nonzero()),
            None => "a process".into(),
        }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
