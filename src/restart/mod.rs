//! How a process hands its place to a successor, and what it tells its service manager.
//!
//! Invariant: the only part that starts a process is `handover.rs`, which the feature `restart`
//! turns on. The rest is needed by a process that is the successor.

#[cfg(feature = "restart")]
pub(crate) mod handover;
pub(crate) mod notify;
pub(crate) mod pid_file;
pub(crate) mod ready;
#[cfg(feature = "restart")]
mod spawn;
