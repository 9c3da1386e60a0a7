//! The words between a keeper and its children, and between a predecessor and its successor; and
//! what a process tells its service manager.
//!
//! Invariant: nothing here starts a process, accepts a connection or stops a server.

pub(crate) mod channel;
pub(crate) mod message;
pub(crate) mod notify;
pub(crate) mod outbox;
pub(crate) mod parent;
pub(crate) mod pid_file;

use std::sync::atomic::{AtomicU16, Ordering};

/// The version of a keeper's state that this program reads, once it is known that the program
/// becomes its own keeper. Otherwise 0.
static RESUMES: AtomicU16 = AtomicU16::new(0);

/// Returns the version of a keeper's state that this program reads, or 0.
pub(crate) fn resumes() -> u16 {
    RESUMES.load(Ordering::Relaxed)
}

/// Notes that this program becomes its own keeper, and reads this version of a keeper's state.
#[cfg(feature = "keeper")]
pub(crate) fn set_resumes(version: u16) {
    RESUMES.store(version, Ordering::Relaxed);
}
