//! [`Ownership`]: which processes have a listening socket beside this one (rule S5).
//!
//! Invariant: an answer follows from the state, the time and the predecessor's word. The caller
//! brings the time and a way to ask the predecessor, so this file makes no system call.

use std::time::{Duration, Instant};

/// Which processes may accept from a socket.
pub(crate) enum Ownership {
    /// This process has bound the socket, and no other process has it.
    Own,
    /// Another program has bound the socket, has passed it, and may accept from it.
    Foreign,
    /// A predecessor has bound the socket, and keeps it until this process is ready.
    Predecessors,
    /// This process has reported that it is ready. If it ends before it is trusted, the predecessor
    /// goes on with the socket. A predecessor that is suspended meanwhile takes longer to trust it.
    OnTrial {
        until: Instant,
        /// Returns `true` if the predecessor still waits for this process.
        is_awaited: Box<dyn Fn() -> bool + Send + Sync>,
    },
    /// A successor accepts from the socket.
    Successors,
}

#[cfg_attr(not(feature = "keeper"), allow(dead_code, reason = "nobody starts a successor"))]
impl Ownership {
    /// Notes that a predecessor has heard at `now` that this process is ready.
    pub(crate) fn take_over(
        &mut self,
        now: Instant,
        is_awaited: impl Fn() -> bool + Send + Sync + 'static,
    ) {
        // A successor of this process may have the socket already.
        if matches!(self, Self::Predecessors) {
            *self = Self::OnTrial { until: now + TRIAL, is_awaited: Box::new(is_awaited) };
        }
    }

    /// Notes that a successor accepts from the socket from now on.
    pub(crate) fn hand_over(&mut self) {
        *self = Self::Successors;
    }

    /// Returns `true` if this process or a predecessor has bound the socket, and no successor has
    /// it.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Self::Own | Self::Predecessors | Self::OnTrial { .. })
    }

    /// Returns `true` if no other process has the socket. Then the file of a Unix socket may be
    /// removed, and handshakes may be held back.
    pub(crate) fn is_alone(&self, now: Instant) -> bool {
        match self {
            Self::Own => true,
            Self::OnTrial { until, is_awaited } => *until <= now && !is_awaited(),
            Self::Foreign | Self::Predecessors | Self::Successors => false,
        }
    }

    /// Returns `true` if a successor accepts from the socket. Then the queue is the successor's.
    pub(crate) fn is_handed_over(&self) -> bool {
        matches!(self, Self::Successors)
    }
}

/// How long after READY=1 a successor has the sockets for itself. The predecessor looks at it for a
/// shorter time, and goes on if the successor ends by then.
const TRIAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::Ownership::*;
    use super::*;

    /// Each state, the state after each move, and the answers in that state.
    #[test]
    fn moves_and_answers() {
        let now = Instant::now();
        let on_trial =
            |until, is_awaited: bool| OnTrial { until, is_awaited: Box::new(move || is_awaited) };
        let name = |ownership: &Ownership| match ownership {
            Own => "own",
            Foreign => "foreign",
            Predecessors => "predecessor's",
            OnTrial { .. } => "on trial",
            Successors => "successor's",
        };
        type Make<'a> = Box<dyn Fn() -> Ownership + 'a>;
        let states: [(Make<'_>, _, _, [_; 3]); 8] = [
            // State; after `take_over`; own, alone, handed over.
            (Box::new(|| Own), "own", "own", [true, true, false]),
            (Box::new(|| Foreign), "foreign", "foreign", [false, false, false]),
            (Box::new(|| Predecessors), "predecessor's", "on trial", [true, false, false]),
            (
                Box::new(|| on_trial(now + TRIAL, false)),
                "on trial",
                "on trial",
                [true, false, false],
            ),
            (
                Box::new(|| on_trial(now + TRIAL, true)),
                "on trial",
                "on trial",
                [true, false, false],
            ),
            (Box::new(|| on_trial(now, true)), "on trial", "on trial", [true, false, false]),
            (Box::new(|| on_trial(now, false)), "on trial", "on trial", [true, true, false]),
            (Box::new(|| Successors), "successor's", "successor's", [false, false, true]),
        ];
        for (state, before, after, answers) in states {
            let mut ownership = state();
            assert_eq!(name(&ownership), before);
            let told = [ownership.is_own(), ownership.is_alone(now), ownership.is_handed_over()];
            assert_eq!(told, answers, "{before}");
            ownership.take_over(now, || false);
            assert_eq!(name(&ownership), after);
            ownership.hand_over();
            assert_eq!(name(&ownership), "successor's", "{before}");
        }
    }

    #[test]
    fn a_socket_that_was_taken_over_is_alone_after_the_trial() {
        let now = Instant::now();
        let mut ownership = Predecessors;
        ownership.take_over(now, || false);
        assert!(!ownership.is_alone(now) && ownership.is_alone(now + TRIAL));
        // A second call begins no second trial.
        ownership.take_over(now + TRIAL, || true);
        assert!(ownership.is_alone(now + TRIAL));
    }
}
