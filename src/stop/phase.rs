//! [`Phase`]: where a latch stands, and [`AtomicPhase`]: where it stands now.
//!
//! Invariant: a phase only goes forward. Wakes no task: the code that moves the phase does that.

use std::sync::atomic::{AtomicU8, Ordering};

/// Where a [`Shutdown`](crate::Shutdown) stands. It only ever goes forward.
///
/// The list is complete: there will be no further phase.
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
    /// Work is taken on.
    Running = 0,
    /// Work that is under way is finished.
    Draining = 1,
    /// The work that is left is dropped.
    Aborting = 2,
}

/// The phase of a latch.
#[derive(Debug, Default)]
pub(crate) struct AtomicPhase(AtomicU8);

impl AtomicPhase {
    /// Returns where the latch stands now.
    pub(crate) fn current(&self) -> Phase {
        match self.0.load(Ordering::SeqCst) {
            0 => Phase::Running,
            1 => Phase::Draining,
            _ => Phase::Aborting,
        }
    }

    /// Goes on to `phase`. Does nothing if that has happened before.
    pub(crate) fn advance(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::SeqCst);
    }
}
