//! [`Activity`]: the work of a connection and the step of its client for which it waits, in one
//! word.
//!
//! The word has a part for each, because several tasks may write here. The connection's own task
//! writes the work, and the task that reads the body or sends the output writes the wait. The word
//! also counts moves, so two looks at different times show whether the connection stands still.
//! Invariant: each change is one atomic step, and no step of one task undoes another's.

use std::sync::atomic::{AtomicU32, Ordering};

/// The work of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Doing {
    /// The connection was accepted, and its task has not looked for a request yet.
    Accepted = 0,
    /// The connection waits for a request.
    Idle = 1,
    /// The connection reads a head.
    Head = 2,
    /// The connection waits for the handler.
    Handler = 3,
    /// The connection sends the response.
    Response = 4,
    /// The connection discards the rest of a body, to go on with the next request.
    Discarding = 5,
    /// The connection has sent the last response, and ends.
    Closing = 6,
    /// The connection belongs to another protocol.
    Upgraded = 7,
    /// The listener's wrapper is at work.
    Handshake = 8,
    /// The connection is on its way to the successor.
    Leaving = 9,
}

/// The step of the client for which the server waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Wait {
    /// The client has to send more of the body.
    Body = 1 << 4,
    /// The client has to take some of the output.
    Room = 1 << 5,
}

/// A look at a connection's activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look(u32);

impl Look {
    /// A look that no connection gives, because its work does not exist.
    pub(crate) const NEVER: Self = Self(!WAITS);

    pub(crate) fn doing(self) -> Doing {
        match self.0 & DOING {
            0 => Doing::Accepted,
            1 => Doing::Idle,
            2 => Doing::Head,
            3 => Doing::Handler,
            4 => Doing::Response,
            5 => Doing::Discarding,
            6 => Doing::Closing,
            7 => Doing::Upgraded,
            8 => Doing::Handshake,
            _ => Doing::Leaving,
        }
    }

    pub(crate) fn waits_for(self, wait: Wait) -> bool {
        self.0 & wait as u32 != 0
    }

    /// Returns a number that changes whenever the connection moves.
    pub(crate) fn moves(self) -> u32 {
        self.0 & !WAITS
    }
}

/// The activity of a connection.
#[derive(Debug, Default)]
pub(crate) struct Activity(AtomicU32);

impl Activity {
    pub(crate) fn look(&self) -> Look {
        // Relaxed is enough here and below, because the sweep only has to see a change some time
        // later, and in no order with other changes.
        Look(self.0.load(Ordering::Relaxed))
    }

    /// Begins another work, and ends all waits. Counts as a move.
    pub(crate) fn begin(&self, doing: Doing) {
        self.change(|word| (word & !(DOING | WAITS)) | doing as u32);
    }

    /// Begins another work in the same exchange, and keeps the waits. Counts as a move.
    pub(crate) fn go_on(&self, doing: Doing) {
        self.change(|word| (word & !DOING) | doing as u32);
    }

    /// Counts a move.
    pub(crate) fn progress(&self) {
        self.change(|word| word);
    }

    /// Begins to wait. Counts as a move, unless the connection has waited for this already, or
    /// `is_still` is `true` because nothing has moved.
    pub(crate) fn wait(&self, wait: Wait, is_still: bool) {
        let word = self.0.fetch_or(wait as u32, Ordering::Relaxed);
        if word & wait as u32 == 0 && !is_still {
            self.progress();
        }
    }

    /// Ends a wait, and counts a move if the connection has waited for this. A part of a body does
    /// not count while the client takes no output. Otherwise a client could gain any time with a
    /// byte now and then.
    pub(crate) fn got(&self, wait: Wait) {
        let look = self.look();
        if wait == Wait::Body && look.waits_for(Wait::Room) {
            self.0.fetch_and(!(wait as u32), Ordering::Relaxed);
        } else if look.waits_for(wait) {
            self.change(|word| word & !(wait as u32));
        }
    }

    fn change(&self, change: impl Fn(u32) -> u32) {
        let step = |word| Some(change(word).wrapping_add(MOVE));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }
}

const DOING: u32 = 0b1111;
const WAITS: u32 = Wait::Body as u32 | Wait::Room as u32;
/// One move in the count, which has the high bits of the word.
const MOVE: u32 = 1 << 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_do_not_change_what_is_done() {
        let activity = Activity::default();
        activity.begin(Doing::Handler);
        activity.wait(Wait::Body, false);
        activity.go_on(Doing::Response);
        activity.wait(Wait::Room, false);
        let look = activity.look();
        assert_eq!(look.doing(), Doing::Response);
        assert!(look.waits_for(Wait::Body) && look.waits_for(Wait::Room));
        activity.got(Wait::Room);
        let look = activity.look();
        assert!(look.waits_for(Wait::Body) && !look.waits_for(Wait::Room));
        activity.begin(Doing::Idle);
        assert!(!activity.look().waits_for(Wait::Body));
        assert_eq!(activity.look().doing(), Doing::Idle);
    }

    #[test]
    fn a_move_shows_and_a_wait_that_goes_on_does_not() {
        let activity = Activity::default();
        let has_moved = |step: &dyn Fn()| {
            let before = activity.look().moves();
            step();
            activity.look().moves() != before
        };
        assert!(has_moved(&|| activity.begin(Doing::Head)));
        assert!(has_moved(&|| activity.go_on(Doing::Handler)));
        assert!(has_moved(&|| activity.progress()));
        assert!(has_moved(&|| activity.wait(Wait::Body, false)));
        assert!(!has_moved(&|| activity.wait(Wait::Body, false)));
        assert!(!has_moved(&|| activity.wait(Wait::Room, true)));
        assert!(!has_moved(&|| activity.got(Wait::Body)));
        assert!(!activity.look().waits_for(Wait::Body));
        assert!(has_moved(&|| activity.got(Wait::Room)));
        assert!(!has_moved(&|| activity.got(Wait::Room)));
        activity.wait(Wait::Body, true);
        assert!(has_moved(&|| activity.got(Wait::Body)));
    }

    #[test]
    fn the_count_of_moves_may_wrap_around() {
        let activity = Activity(AtomicU32::new(!(DOING | WAITS)));
        activity.begin(Doing::Upgraded);
        assert_eq!(activity.look().doing(), Doing::Upgraded);
        assert_ne!(activity.look().moves(), Look::NEVER.moves());
    }
}
