//! [`Ownership`]: which processes have a listening socket beside this one (rule S5).
//!
//! Invariant: an answer follows from the state and from the keeper's word, which the caller passes.
//! So this file makes no system call.

/// The processes that may accept from a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// This process has bound the socket, and no other process has it.
    Own,
    /// Another program has bound the socket, has passed it, and may accept from it.
    Foreign,
    /// The keeper has the socket, too. The keeper or one of its children has bound it.
    Keepers,
    /// A successor accepts from the socket.
    Successors,
}

impl Ownership {
    /// Notes that from now on the keeper has the socket, too.
    pub(crate) fn share(&mut self) {
        if matches!(self, Self::Own) {
            *self = Self::Keepers;
        }
    }

    /// Notes that the keeper has closed its copy, because the successor does not want the socket.
    pub(crate) fn keep(&mut self) {
        if matches!(self, Self::Keepers) {
            *self = Self::Own;
        }
    }

    /// Notes that a successor accepts from the socket from now on.
    pub(crate) fn hand_over(&mut self) {
        *self = Self::Successors;
    }

    /// Returns `true` if only this program, its keeper and the keeper's other children have the
    /// socket.
    pub(crate) fn is_own(self) -> bool {
        matches!(self, Self::Own | Self::Keepers)
    }

    /// Returns `true` if no other process has the socket. Then this process may remove the file of
    /// a Unix socket, and may hold handshakes back. `keeper_has_let_go` returns whether the keeper
    /// has closed its copies, and is called only if that matters.
    pub(crate) fn is_alone(self, keeper_has_let_go: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Own => true,
            Self::Keepers => keeper_has_let_go(),
            Self::Foreign | Self::Successors => false,
        }
    }

    /// Returns `true` if a successor accepts from the socket. Then the queue is the successor's.
    pub(crate) fn is_handed_over(self) -> bool {
        matches!(self, Self::Successors)
    }
}

#[cfg(test)]
mod tests {
    use super::Ownership::*;

    /// Each row has a state, the states after `share`, `keep` and `hand_over`, and four answers:
    /// own, alone while the keeper has its copy, alone when the keeper has closed it, handed over.
    #[test]
    fn moves_and_answers() {
        for (state, after, answers) in [
            (Own, [Keepers, Own, Successors], [true, true, true, false]),
            (Foreign, [Foreign, Foreign, Successors], [false, false, false, false]),
            (Keepers, [Keepers, Own, Successors], [true, false, true, false]),
            (Successors, [Successors, Successors, Successors], [false, false, false, true]),
        ] {
            let (mut shared, mut kept, mut handed) = (state, state, state);
            shared.share();
            kept.keep();
            handed.hand_over();
            assert_eq!([shared, kept, handed], after, "{state:?}");
            let alone = [state.is_alone(|| false), state.is_alone(|| true)];
            let told = [state.is_own(), alone[0], alone[1], state.is_handed_over()];
            assert_eq!(told, answers, "{state:?}");
        }
    }
}
