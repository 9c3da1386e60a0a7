//! [`State::on`]: decides what follows from a signal and from a stop by the program (rule S14).
//!
//! It is a pure function from a state and an event to the next state and an action, so one table
//! tests each pair. It reads no clock, waits for nothing and logs nothing. `obey.rs` and
//! `process.rs` carry the actions out.

use std::time::{Duration, Instant};

use async_signal::Signal;

use crate::stop::signals::Received;

/// The condition of a server, as far as signals change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The server serves.
    Running,
    /// The server stops. `first` is the time of the first stop signal, if one has come.
    Stopping { first: Option<Instant> },
    /// A second stop signal has aborted the server.
    Aborting,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    StopSignal(Received),
    RestartSignal(Signal),
    /// The program itself has stopped the server, or the keeper has.
    OwnStop,
}

/// An action of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Stop(Received),
    Abort(Received),
    /// The signal asks for a restart, which only a keeper can do.
    DoNotRestart(Signal),
    Ignore(Ignored),
}

/// The reason why the server has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ignored {
    /// The stop signal is the first one, and comes after the keeper or the program has begun the
    /// stop.
    StoppingAlready(Received),
    /// The stop signal comes so soon after the first one that it belongs to the same stop.
    SameStop(Received, Duration),
    /// The event changes nothing that an operator wants to know.
    NothingNew,
}

impl State {
    /// Returns the next state and the action. Stop signals within `window` of the first one belong
    /// to the same stop.
    pub(crate) fn on(self, event: Event, window: Duration) -> (Self, Action) {
        use Action::{Abort, DoNotRestart, Ignore, Stop};
        use Event::{OwnStop, RestartSignal, StopSignal};
        use State::{Aborting, Running, Stopping};

        let signalled = |signal: Received| Stopping { first: Some(signal.at) };
        match (self, event) {
            (Running, StopSignal(signal)) => (signalled(signal), Stop(signal)),
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

            (_, RestartSignal(signal)) => (self, DoNotRestart(signal)),

            (Running, OwnStop) => (Stopping { first: None }, Ignore(Ignored::NothingNew)),
            (Stopping { .. } | Aborting, OwnStop) | (Aborting, StopSignal(_)) => {
                (self, Ignore(Ignored::NothingNew))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Abort, DoNotRestart, Stop};
    use Ignored::{NothingNew, SameStop, StoppingAlready};
    use State::{Aborting, Running, Stopping};

    const WINDOW: Duration = Duration::from_millis(100);

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
        let (restart, own) = (Event::RestartSignal(Signal::Usr2), Event::OwnStop);
        let refused = DoNotRestart(Signal::Usr2);
        for (state, event, next, action) in [
            (Running, early, stopping(99), Stop(term(99))),
            (Running, late, stopping(100), Stop(term(100))),
            (Running, restart, Running, refused),
            (Running, own, unsignalled, ignore(NothingNew)),
            (unsignalled, early, stopping(99), ignore(StoppingAlready(term(99)))),
            (unsignalled, late, stopping(100), ignore(StoppingAlready(term(100)))),
            (unsignalled, restart, unsignalled, refused),
            (unsignalled, own, unsignalled, ignore(NothingNew)),
            (signalled, early, signalled, same(term(99))),
            (signalled, late, Aborting, Abort(term(100))),
            (signalled, restart, signalled, refused),
            (signalled, own, signalled, ignore(NothingNew)),
            (Aborting, early, Aborting, ignore(NothingNew)),
            (Aborting, late, Aborting, ignore(NothingNew)),
            (Aborting, restart, Aborting, refused),
            (Aborting, own, Aborting, ignore(NothingNew)),
        ] {
            assert_eq!(state.on(event, WINDOW), (next, action), "{state:?}, {event:?}");
        }
    }

    /// Returns the letter of an action: `s`top, `a`bort, do not `r`estart, ignore `-`.
    fn letter(action: Action) -> char {
        match action {
            Stop(_) => 's',
            Abort(_) => 'a',
            DoNotRestart(_) => 'r',
            Action::Ignore(_) => '-',
        }
    }

    /// The events are 200 ms apart, which is longer than the window.
    #[test]
    fn events_in_a_row() {
        for (events, actions) in [
            // The events are `t`erm, `r`estart, and the program's `o`wn stop.
            ("ttt", "sa-"),
            ("ott", "--a"),
            ("ooo", "---"),
            ("to", "s-"),
            ("tot", "s-a"),
            ("rr", "rr"),
            ("rtt", "rsa"),
            ("trt", "sra"),
            ("ort", "-r-"),
            ("ttr", "sar"),
        ] {
            let (mut state, mut at) = (Running, Instant::now());
            let taken = events.chars().map(|event| {
                at += 2 * WINDOW;
                let event = match event {
                    't' => Event::StopSignal(Received { signal: Signal::Term, at }),
                    'r' => Event::RestartSignal(Signal::Usr2),
                    _ => Event::OwnStop,
                };
                let action;
                (state, action) = state.on(event, WINDOW);
                letter(action)
            });
            assert_eq!(taken.collect::<String>(), actions, "{events}");
        }
    }

    /// The window begins with the first signal, and the kinds of the signals do not matter.
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
            // Two streams may return signals in another order than that of their times.
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
