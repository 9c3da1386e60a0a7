//! [`Condition`]: how far a child has come, as the policy of its keeper sees it.
//!
//! These are pure values. Invariant: a condition has at most one time, and only if the policy needs
//! one. This file does not say which condition follows another one.

use std::time::Instant;

use crate::keeper::policy::action::Id;

/// The progress of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// The child was started, and has to be ready by `until`.
    Starting { until: Instant },
    /// The child is ready. The keeper trusts the child if it is still alive at `until`.
    Trial { until: Instant },
    /// The child serves.
    Serving { since: Instant },
    /// The child finishes its connections, because a successor serves.
    Leaving,
    /// The keeper has told the child to stop before it was ready, and kills the child at `until`.
    Failing { until: Instant },
    /// The keeper has killed the child, because the child did not stop in time.
    Killed,
}

/// A child that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: Id,
    pub(crate) condition: Condition,
}

/// The part of a policy's state that the next program in this process takes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) children: Vec<Member>,
    pub(crate) next: Id,
}
