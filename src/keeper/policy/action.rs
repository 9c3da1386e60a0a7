//! [`Event`] and [`Action`]: the values between a keeper at work and its policy.
//!
//! These are pure values. Invariant: a child is known by its number, because another process may
//! get its process id. This file does not say which action follows from which event.

use std::process::ExitStatus;
use std::time::Duration;

use async_signal::Signal;

/// The number of a child. Children are numbered in the order of their starts.
pub(crate) type Id = u32;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A signal asks for a restart.
    Restart(Signal),
    /// A signal asks for a stop.
    Stop(Signal),
    /// The kernel has refused to start the child, for the given reason.
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
    /// Start a child. If the start fails, the keeper reports [`Event::NotStarted`].
    Start(Id),
    /// Let `old` hand over to `new`, and stop.
    TakeOver { new: Id, old: Option<Id> },
    /// Send TERM to a child that has failed.
    Term(Id),
    /// Kill a child.
    Kill(Id),
    /// Pass a stop signal to a child.
    Forward(Id, Signal),
    /// Close the listening sockets, and tell the children that this has happened.
    LetGo,
    /// Announce that the first child serves.
    FirstReady,
    /// Announce that a restart has begun.
    RestartBegins,
    /// Announce that a restart is over.
    RestartEnds { is_done: bool },
    /// Become the new program, if the child's program can be the keeper.
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
    /// A child has ended as expected.
    Ended(Id, ExitStatus),
    /// A restart, or the first start, has failed. The child `old` goes on.
    NoRestart { failure: Failure, old: Option<Id> },
    /// The child that served has died.
    Died { id: Id, status: ExitStatus, next: Next },
    /// The start of a child has failed that was to replace a child that has died.
    NotRevived { failure: Failure, pause: Duration },
}

/// The child that comes after one that has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The keeper starts another child after the pause.
    After(Duration),
    /// A successor was starting already.
    OnItsWay(Id),
}

/// The reason why a child has not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    NotStarted(String),
    /// The child has ended before it was ready.
    Ended(Id, ExitStatus),
    /// The child was ready, and has ended before the keeper trusted it.
    EndedOnTrial(Id, ExitStatus),
    /// The child was not ready in time.
    Late(Id),
}

/// The end of a keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    Code(u8),
    /// The first child could not be started, for the given reason.
    NotStarted(String),
    /// The first child was not ready in time.
    Late(Id),
}
