//! The messages between a keeper and its children, between a predecessor and its successor, and
//! from a process to its service manager.
//!
//! Invariant: nothing here starts a process, accepts a connection or stops a server.

pub(crate) mod channel;
pub(crate) mod message;
pub(crate) mod notify;
pub(crate) mod outbox;
pub(crate) mod parent;
pub(crate) mod pid_file;
