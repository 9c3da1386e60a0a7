//! How a process hands its place to a successor, and what it tells its service manager.
//!
//! Invariant: only `handover.rs` and `spawn.rs`, which the feature `restart` turns on, start a
//! process. The rest is for every process: it may be a successor, or have a service manager.

#[cfg_attr(not(feature = "keeper"), allow(dead_code, reason = "nobody starts a successor"))]
pub(crate) mod channel;
#[cfg(feature = "keeper")]
pub(crate) mod handover;
pub(crate) mod message;
pub(crate) mod notify;
pub(crate) mod outbox;
pub(crate) mod pid_file;
pub(crate) mod ready;
#[cfg(feature = "keeper")]
mod spawn;

/// The way of a process's connections to its successor.
pub(crate) struct ToSuccessor {
    pub(crate) passage: channel::Channel,
    /// By the number of a listener: the inode of its socket, if the successor takes its connections.
    pub(crate) adopted: Vec<Option<u64>>,
}
