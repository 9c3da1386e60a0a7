//! [`total`]: one outcome for the servers of a process.
//!
//! Pure. Invariant: each request, connection and cut counts once, although servers may share a
//! latch, and a latch may follow another one. This file waits for nothing and logs nothing.

use std::cmp::Reverse;

use crate::stop::outcome::{DrainEnding, Outcome, WorkKind};
use crate::stop::shutdown::Shutdown;

/// Returns one outcome for several servers, each with its latch.
///
/// Servers that share a latch have the same outcome, which counts once. The outcome of a latch
/// already counts what its child latches have done, but does not name what was cut when a child was
/// aborted alone before.
pub(super) fn total(outcomes: Vec<(&Shutdown, Outcome)>) -> Outcome {
    let latches: Vec<_> = outcomes.iter().map(|(latch, _)| *latch).collect();
    let mut counted: Vec<&Shutdown> = Vec::new();
    let outcomes = outcomes.into_iter().filter(|(latch, _)| {
        let is_new = !counted.iter().any(|other| other.is_same(latch));
        counted.push(latch);
        is_new
    });
    let is_child = |latch: &Shutdown| latches.iter().any(|other| latch.is_below(other));
    let (children, outcomes): (Vec<_>, Vec<_>) = outcomes.partition(|(latch, _)| is_child(latch));
    let outcomes = outcomes.into_iter().map(|(_, outcome)| outcome);
    let Some(mut total) = outcomes.reduce(sum) else { unreachable!("a process has a server") };
    for (_, child) in children {
        add_cuts(&mut total, child);
    }
    total.cut.sort_by_key(|cut| Reverse(cut.age));
    total
}

/// Adds up the outcomes of two latches, neither of which follows the other.
fn sum(one: Outcome, other: Outcome) -> Outcome {
    Outcome {
        ending: worse(one.ending, other.ending),
        took: one.took.max(other.took),
        finished: one.finished + other.finished,
        handed_over: one.handed_over + other.handed_over,
        streams_closed: one.streams_closed + other.streams_closed,
        signal: one.signal.or(other.signal),
        cut: one.cut.into_iter().chain(other.cut).collect(),
    }
}

/// Adds the ending and the cuts of a child latch, but not its counts, and each cut once.
fn add_cuts(total: &mut Outcome, child: Outcome) {
    total.ending = worse(total.ending, child.ending);
    for cut in child.cut {
        if !total.cut.iter().any(|known| is_same_work(&known.kind, &cut.kind)) {
            total.cut.push(cut);
        }
    }
}

/// Returns `true` if both are the same request, or guards of the same line. The peer alone does not
/// tell two clients of a Unix socket apart.
fn is_same_work(one: &WorkKind, other: &WorkKind) -> bool {
    let request = |kind: &WorkKind| match kind {
        WorkKind::Connection { peer, method, target, .. } => {
            Some((*peer, method.clone(), target.clone()))
        }
        WorkKind::Guard(_) => None,
    };
    match (one, other) {
        (WorkKind::Guard(one), WorkKind::Guard(other)) => one == other,
        _ => request(one) == request(other),
    }
}

fn worse(one: DrainEnding, other: DrainEnding) -> DrainEnding {
    use DrainEnding::{Drained, Forced, TimedOut};
    match (one, other) {
        (Forced, _) | (_, Forced) => Forced,
        (TimedOut, _) | (_, TimedOut) => TimedOut,
        (Drained, Drained) => Drained,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::stop::outcome::OpenWork;
    use crate::stop::stage::Stage;
    use crate::stream::transport::Peer;

    /// A child latch was aborted before the stop, and the drain of its parent has cut something,
    /// too. The outcome names both, and names once what both latches have named.
    #[test]
    fn clients_of_a_unix_socket_are_told_apart() {
        let parent = Shutdown::new();
        let child = parent.token().child();
        let cut = |targets: &[&str]| {
            let work = targets.iter().map(|target| OpenWork {
                kind: WorkKind::Connection {
                    peer: Peer::Unix,
                    stage: Stage::Handler,
                    method: "GET".to_owned(),
                    target: (*target).to_owned(),
                },
                age: Duration::ZERO,
            });
            let mut outcome = parent.outcome(Duration::ZERO);
            outcome.ending = DrainEnding::Forced;
            outcome.cut = work.collect();
            outcome
        };
        let total = total(vec![(&parent, cut(&["/now"])), (&child, cut(&["/before", "/now"]))]);
        assert_eq!(total.cut.len(), 2, "{total}");
    }
}
