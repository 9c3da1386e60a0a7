//! [`Activity`]: what a connection does, and what it waits for, in one word.
//!
//! The word keeps the two apart, because several tasks may write here: the connection's own task
//! says what the connection does, and the task that reads the body or sends the output says what
//! the client keeps waiting. The word also counts moves, so that a look at two times tells whether
//! the connection stands still. Invariant: each change is one atomic step, and no step of one task
//! undoes another's.

use std::sync::atomic::{AtomicU32, Ordering};

/// The work of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Doing {
    /// Nothing yet: nobody has looked whether a request has begun.
    Accepted = 0,
    /// It waits for a request.
    Idle = 1,
    /// It reads a head.
    Head = 2,
    /// It waits for the handler.
    Handler = 3,
    /// It sends the response.
    Response = 4,
    /// It discards a body that nobody has read, to go on with the next request.
    Discarding = 5,
    /// It has sent the last response, and ends.
    Closing = 6,
    /// It belongs to another protocol.
    Upgraded = 7,
    /// The listener's wrapper is at work.
    Handshake = 8,
    /// It is on its way to the successor.
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
    /// No connection looks like this, because there is no such thing to do.
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

    /// Returns a number that is another one as soon as the connection has moved.
    pub(crate) fn moves(self) -> u32 {
        self.0 & !WAITS
    }
}

/// The activity of a connection.
#[derive(Debug, Default)]
pub(crate) struct Activity(AtomicU32);

impl Activity {
    pub(crate) fn look(&self) -> Look {
        // Relaxed, here and below: the sweep needs no order with anything else, only to see a
        // change in time.
        Look(self.0.load(Ordering::Relaxed))
    }

    /// Begins to do something else, and waits for nothing. Counts as a move.
    pub(crate) fn begin(&self, doing: Doing) {
        self.change(|word| (word & !(DOING | WAITS)) | doing as u32);
    }

    /// Does something else in the same exchange, and still waits for what was waited for. Counts as
    /// a move.
    pub(crate) fn go_on(&self, doing: Doing) {
        self.change(|word| (word & !DOING) | doing as u32);
    }

    /// Counts a move.
    pub(crate) fn progress(&self) {
        self.change(|word| word);
    }

    /// Begins to wait. Counts as a move, unless the connection has waited for this already, or
    /// `is_still` says that nothing has moved.
    pub(crate) fn wait(&self, wait: Wait, is_still: bool) {
        let word = self.0.fetch_or(wait as u32, Ordering::Relaxed);
        if word & wait as u32 == 0 && !is_still {
            self.progress();
        }
    }

    /// Ends a wait, and counts a move if the connection has waited for this. A body does not count
    /// while the client takes no output: otherwise a byte of it now and then would buy any time.
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
/// The count of moves lies above the rest.
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
