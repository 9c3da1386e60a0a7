//! [`Phase`], a phase of a latch, and [`AtomicPhase`], the current one.
//!
//! Invariant: a phase only goes forward. This file wakes no task, because the code that moves the
//! phase does that.

use std::sync::atomic::{AtomicU8, Ordering};

/// The phase of a [`Shutdown`](crate::Shutdown), which only ever goes forward.
///
/// The list is complete, and will not grow.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Phase, Shutdown};
///
/// let shutdown = Shutdown::new();
/// shutdown.abort();
/// shutdown.stop(); // too late
/// assert_eq!(shutdown.phase(), Phase::Aborting);
/// assert!(Phase::Running < Phase::Draining && Phase::Draining < Phase::Aborting);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// New work is accepted.
    Running = 0,
    /// Work under way is finished.
    Draining = 1,
    /// The remaining work is dropped.
    Aborting = 2,
}

/// The phase of a latch.
#[derive(Debug, Default)]
pub(crate) struct AtomicPhase(AtomicU8);

impl AtomicPhase {
    /// Returns the current phase.
    pub(crate) fn current(&self) -> Phase {
        match self.0.load(Ordering::SeqCst) {
            0 => Phase::Running,
            1 => Phase::Draining,
            _ => Phase::Aborting,
        }
    }

    /// Moves on to `phase`. Does nothing if that has happened before.
    pub(crate) fn advance(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::SeqCst);
    }
}
