//! [`Event`] and [`Action`]: the words between a keeper at work and its policy.
//!
//! Pure values. Invariant: a child is known by its number, because its process id may be another
//! process's by then. Says nothing of which action follows from which event.

use std::process::ExitStatus;
use std::time::Duration;

use async_signal::Signal;

/// The number of a child, in the order in which they were started.
pub(crate) type Id = u32;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A signal asks for a restart.
    Restart(Signal),
    /// A signal asks for a stop.
    Stop(Signal),
    /// The kernel has refused to start the child, for this reason.
    NotStarted(Id, String),
    /// The child has said or shown that it is ready.
    Ready(Id),
    /// The child has ended.
    Ended(Id, ExitStatus),
    /// The time of [`Policy::deadline`] has come.
    Tick,
}

/// Something that the keeper has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a child. If that fails, [`Event::NotStarted`] says so.
    Start(Id),
    /// Let `old` hand over to `new`, and stop.
    TakeOver { new: Id, old: Option<Id> },
    /// Send TERM to a child that has failed.
    Term(Id),
    /// Kill it.
    Kill(Id),
    /// Pass a stop signal to a child.
    Forward(Id, Signal),
    /// Close the listening sockets, and tell the children.
    LetGo,
    /// Announce that the first child serves.
    FirstReady,
    /// Announce that a restart has begun.
    RestartBegins,
    /// Announce that it is over.
    RestartEnds { is_done: bool },
    /// Become the new program, if the child is the kind that asks for it.
    Resume(Id),
    /// Write a line to the log.
    Note(Note),
    /// End the keeper.
    End(Ending),
}

/// A line for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    /// A restart is under way, and one more follows.
    AnotherFollows,
    /// A restart signal came too late.
    TooLate(Signal),
    /// A stop begins.
    Stopping(Signal),
    /// A child is ready.
    Ready(Id),
    /// A child has ended as it had to.
    Ended(Id, ExitStatus),
    /// A restart, or the first start, has failed. `old` goes on.
    NoRestart { failure: Failure, old: Option<Id> },
    /// The child that served has died.
    Died { id: Id, status: ExitStatus, next: Next },
    /// A start in place of a child that has died has failed.
    NotRevived { failure: Failure, pause: Duration },
}

/// Which child comes after one that has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another is started after the pause.
    After(Duration),
    /// A successor was on its way already.
    OnItsWay(Id),
}

/// The reason why a child did not come to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    NotStarted(String),
    /// It has ended before it was ready.
    Ended(Id, ExitStatus),
    /// It was ready, and has ended before it was trusted.
    EndedOnTrial(Id, ExitStatus),
    /// It was not ready in time.
    Late(Id),
}

/// How a keeper ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    Code(u8),
    /// The first child could not be started, for this reason.
    NotStarted(String),
    /// The first child was not ready in time.
    Late(Id),
}
