//! [`State::on`]: what follows from a signal, a successor and a stop by the program (rule S14).
//!
//! A pure function from a state and an event to the next state and an action, so that one table
//! tests each pair. Reads no clock, waits for nothing and logs nothing: `obey.rs` and `process.rs`
//! carry the actions out.

use std::time::{Duration, Instant};

use async_signal::Signal;

use crate::stop::signals::Received;

/// The condition of a server, as far as signals change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The server serves.
    Running,
    /// The server serves, and a successor is being started because of this signal.
    Starting(Signal),
    /// The server stops. `first` is the time of the first stop signal, if one has come.
    Stopping { first: Option<Instant> },
    /// A second stop signal has aborted the server.
    Aborting,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    StopSignal(Received),
    RestartSignal(Signal),
    /// The successor serves. This is its process id.
    SuccessorReady(u32),
    SuccessorFailed,
    /// The program itself has stopped the server.
    OwnStop,
}

/// A task for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Stop(Received),
    GiveUpSuccessorAndStop(Received),
    Abort(Received),
    StartSuccessor(Signal),
    GiveUpSuccessor,
    /// The server stops, because a successor serves: its process id, and the restart signal.
    HandOver(u32, Signal),
    Ignore(Ignored),
}

/// The reason why the server has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ignored {
    /// The first stop signal comes after a successor or the program has begun the stop.
    StoppingAlready(Received),
    /// The stop signal comes so soon after the first one that it belongs to the same stop.
    SameStop(Received, Duration),
    /// The restart signal comes after the stop has begun.
    TooLateToRestart(Signal),
    /// The restart signal comes while a successor is being started.
    StartingAlready,
    /// The event changes nothing that an operator wants to know.
    NothingNew,
}

impl State {
    /// Returns what follows from `event`. Stop signals within `window` of the first one belong to
    /// the same stop.
    pub(crate) fn on(self, event: Event, window: Duration) -> (Self, Action) {
        use Action::{Abort, GiveUpSuccessor, GiveUpSuccessorAndStop, HandOver, Ignore};
        use Action::{StartSuccessor, Stop};
        use Event::{OwnStop, RestartSignal, StopSignal, SuccessorFailed, SuccessorReady};
        use State::{Aborting, Running, Starting, Stopping};

        let unsignalled = Stopping { first: None };
        let signalled = |signal: Received| Stopping { first: Some(signal.at) };
        match (self, event) {
            (Running, StopSignal(signal)) => (signalled(signal), Stop(signal)),
            (Starting(_), StopSignal(signal)) => {
                (signalled(signal), GiveUpSuccessorAndStop(signal))
            }
            (Stopping { first: None }, StopSignal(signal)) => {
                (signalled(signal), Ignore(Ignored::StoppingAlready(signal)))
            }
            (Stopping { first: Some(first) }, StopSignal(signal)) => {
                let since = signal.at.saturating_duration_since(first);
                if since < window {
                    (self, Ignore(Ignored::SameStop(signal, since)))
                } else {
                    (Aborting, Abort(signal))
                }
            }

            (Running, RestartSignal(signal)) => (Starting(signal), StartSuccessor(signal)),
            (Starting(_), RestartSignal(_)) => (self, Ignore(Ignored::StartingAlready)),
            (Stopping { .. } | Aborting, RestartSignal(signal)) => {
                (self, Ignore(Ignored::TooLateToRestart(signal)))
            }

            (Starting(signal), SuccessorReady(pid)) => (unsignalled, HandOver(pid, signal)),
            (Starting(_), SuccessorFailed) => (Running, GiveUpSuccessor),
            (Starting(_), OwnStop) => (unsignalled, GiveUpSuccessor),
            (Running, OwnStop) => (unsignalled, Ignore(Ignored::NothingNew)),
            (Running | Stopping { .. } | Aborting, SuccessorReady(_) | SuccessorFailed)
            | (Stopping { .. } | Aborting, OwnStop)
            | (Aborting, StopSignal(_)) => (self, Ignore(Ignored::NothingNew)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Abort, GiveUpSuccessor, GiveUpSuccessorAndStop, HandOver, StartSuccessor, Stop};
    use Ignored::{NothingNew, SameStop, StartingAlready, StoppingAlready, TooLateToRestart};
    use State::{Aborting, Running, Stopping};

    const WINDOW: Duration = Duration::from_millis(100);
    const PID: u32 = 7;

    /// Rule S14: every state meets every event.
    #[test]
    fn every_state_meets_every_event() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let term = |millis| Received { signal: Signal::Term, at: after(millis) };
        let same = |signal| Action::Ignore(SameStop(signal, Duration::from_millis(99)));
        let stopping = |millis| Stopping { first: Some(after(millis)) };
        let (unsignalled, signalled) = (Stopping { first: None }, stopping(0));
        let ignore = Action::Ignore;
        let (early, late) = (Event::StopSignal(term(99)), Event::StopSignal(term(100)));
        let restart = Event::RestartSignal(Signal::Usr2);
        let (ready, failed) = (Event::SuccessorReady(PID), Event::SuccessorFailed);
        let own = Event::OwnStop;
        let starting = State::Starting(Signal::Usr2);
        for (state, event, next, action) in [
            (Running, early, stopping(99), Stop(term(99))),
            (Running, late, stopping(100), Stop(term(100))),
            (Running, restart, starting, StartSuccessor(Signal::Usr2)),
            (Running, ready, Running, ignore(NothingNew)),
            (Running, failed, Running, ignore(NothingNew)),
            (Running, own, unsignalled, ignore(NothingNew)),
            (starting, early, stopping(99), GiveUpSuccessorAndStop(term(99))),
            (starting, late, stopping(100), GiveUpSuccessorAndStop(term(100))),
            (starting, restart, starting, ignore(StartingAlready)),
            (starting, ready, unsignalled, HandOver(PID, Signal::Usr2)),
            (starting, failed, Running, GiveUpSuccessor),
            (starting, own, unsignalled, GiveUpSuccessor),
            (unsignalled, early, stopping(99), ignore(StoppingAlready(term(99)))),
            (unsignalled, late, stopping(100), ignore(StoppingAlready(term(100)))),
            (unsignalled, restart, unsignalled, ignore(TooLateToRestart(Signal::Usr2))),
            (unsignalled, ready, unsignalled, ignore(NothingNew)),
            (unsignalled, failed, unsignalled, ignore(NothingNew)),
            (unsignalled, own, unsignalled, ignore(NothingNew)),
            (signalled, early, signalled, same(term(99))),
            (signalled, late, Aborting, Abort(term(100))),
            (signalled, restart, signalled, ignore(TooLateToRestart(Signal::Usr2))),
            (signalled, ready, signalled, ignore(NothingNew)),
            (signalled, failed, signalled, ignore(NothingNew)),
            (signalled, own, signalled, ignore(NothingNew)),
            (Aborting, early, Aborting, ignore(NothingNew)),
            (Aborting, late, Aborting, ignore(NothingNew)),
            (Aborting, restart, Aborting, ignore(TooLateToRestart(Signal::Usr2))),
            (Aborting, ready, Aborting, ignore(NothingNew)),
            (Aborting, failed, Aborting, ignore(NothingNew)),
            (Aborting, own, Aborting, ignore(NothingNew)),
        ] {
            assert_eq!(state.on(event, WINDOW), (next, action), "{state:?}, {event:?}");
        }
    }

    /// Returns a letter for each action: `s`top, `g`ive up, `b`oth, `a`bort, start a s`u`ccessor,
    /// `h`and over, ignore `-`.
    fn letter(action: Action) -> char {
        match action {
            Stop(_) => 's',
            GiveUpSuccessor => 'g',
            GiveUpSuccessorAndStop(_) => 'b',
            Abort(_) => 'a',
            StartSuccessor(_) => 'u',
            HandOver(..) => 'h',
            Action::Ignore(_) => '-',
        }
    }

    /// The events come 200 ms after each other, longer than the window.
    #[test]
    fn events_in_a_row() {
        for (events, actions) in [
            // `t`erm, `r`estart, successor `y` ready, successor `n`ot ready, the program's `o`wn.
            ("ttt", "sa-"),
            ("ott", "--a"),
            ("ooo", "---"),
            ("to", "s-"),
            ("r", "u"),
            ("rr", "u-"),
            ("rtt", "uba"),
            ("rot", "ug-"),
            ("rott", "ug-a"),
            ("ryt", "uh-"),
            ("rytt", "uh-a"),
            ("ryo", "uh-"),
            ("ryr", "uh-"),
            ("rnr", "ugu"),
            ("rnt", "ugs"),
            ("rty", "ub-"),
            ("rtn", "ub-"),
            ("rtr", "ub-"),
            ("roy", "ug-"),
            ("ron", "ug-"),
            ("ror", "ug-"),
            ("rrt", "u-b"),
            ("tr", "s-"),
            ("trt", "s-a"),
            ("ttr", "sa-"),
            ("or", "--"),
            ("tot", "s-a"),
        ] {
            let (mut state, mut at) = (Running, Instant::now());
            let taken = events.chars().map(|event| {
                at += 2 * WINDOW;
                let event = match event {
                    't' => Event::StopSignal(Received { signal: Signal::Term, at }),
                    'r' => Event::RestartSignal(Signal::Usr2),
                    'y' => Event::SuccessorReady(PID),
                    'n' => Event::SuccessorFailed,
                    _ => Event::OwnStop,
                };
                let action;
                (state, action) = state.on(event, WINDOW);
                letter(action)
            });
            assert_eq!(taken.collect::<String>(), actions, "{events}");
        }
    }

    /// The window begins with the first signal, whichever the others are.
    #[test]
    fn the_window_tells_a_repetition_from_a_second_signal() {
        let start = Instant::now();
        for (window, millis, actions) in [
            (WINDOW, &[0][..], "s"),
            (WINDOW, &[5000], "s"),
            (WINDOW, &[0, 0], "s-"),
            (WINDOW, &[0, 99], "s-"),
            (WINDOW, &[0, 100], "sa"),
            (WINDOW, &[0, 60, 120], "s-a"),
            (WINDOW, &[0, 200, 201], "sa-"),
            (Duration::ZERO, &[0, 0, 0], "sa-"),
            (Duration::MAX, &[0, 1_000_000], "s-"),
            // Two streams may be read in another order than their signals came in.
            (WINDOW, &[50, 0], "s-"),
        ] {
            for signals in [[Signal::Term, Signal::Term], [Signal::Hup, Signal::Int]] {
                let mut state = Running;
                let taken =
                    millis.iter().zip(signals.into_iter().cycle()).map(|(millis, signal)| {
                        let at = start + Duration::from_millis(*millis);
                        let action;
                        (state, action) =
                            state.on(Event::StopSignal(Received { signal, at }), window);
                        letter(action)
                    });
                assert_eq!(taken.collect::<String>(), actions, "{window:?}: {millis:?}");
            }
        }
    }
}
