//! [`Looks`] and [`Credit`]: decide whether a connection looks for its next request before it
//! waits.
//!
//! A look is a read that registers for no event. A look saves the registration and the wait if the
//! request is there, and otherwise costs a system call in vain. Invariant: a thread on which most
//! looks fail makes few of them, and on an executor of the program a connection waits for an event
//! now and then, however busy its client is. Does not read, and does not know the connections.

use std::cell::Cell;

/// The number of looks that a thread may make.
///
/// Each look that finds something, a request or the end of the stream, adds to the credit. Each
/// look that finds nothing takes 1 away. A thread without credit looks once in a while, to find out
/// whether its clients have become busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Credit {
    /// The number of looks that may fail in a row.
    left: u8,
    /// The number of waits without a look since the credit was spent, modulo [`Credit::PROBE`].
    waits: u8,
}

impl Credit {
    /// The most credit, in looks. A busy thread needs some, because its clients may all pause for a
    /// moment.
    const MOST: u8 = 16;
    /// The credit that a look earns by finding something. Looks go on as long as at least one in
    /// three finds something, because that one saves more than the two others cost.
    const GAIN: u8 = 2;
    /// Without credit, one wait in this many begins with a look.
    const PROBE: u8 = 128;

    const fn new() -> Self {
        Self { left: Self::GAIN, waits: 0 }
    }

    /// Returns `true` if the next connection may look. Without credit, counts the wait.
    fn allows(&mut self) -> bool {
        if self.left > 0 {
            return true;
        }
        self.waits = (self.waits + 1) % Self::PROBE;
        self.waits == 0
    }

    /// Notes whether a look has found something.
    fn note(&mut self, has_found: bool) {
        self.left = if has_found {
            self.left.saturating_add(Self::GAIN).min(Self::MOST)
        } else {
            self.left.saturating_sub(1)
        };
    }
}

/// The number of successful looks in a row after which a connection waits, on an executor of the
/// program. Such an executor may let no events in as long as it has tasks to run.
const MOST_IN_A_ROW: u8 = 8;

thread_local! {
    static CREDIT: Cell<Credit> = const { Cell::new(Credit::new()) };
    /// Set while the thread runs tasks by [`crate::turns::run`].
    static LETS_EVENTS_IN: Cell<bool> = const { Cell::new(false) };
}

/// The looks of one connection.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// The number of looks that have found something since the connection last waited for an event.
    in_a_row: u8,
}

impl Looks {
    /// Returns `true` if the connection may look before it waits. Starts the row anew otherwise.
    pub(super) fn begin(&mut self) -> bool {
        let has_to_wait = !LETS_EVENTS_IN.get() && self.in_a_row >= MOST_IN_A_ROW;
        let may_look = !has_to_wait && on_this_thread(Credit::allows);
        if !may_look {
            self.in_a_row = 0;
        }
        may_look
    }

    /// Notes whether the look has found something.
    pub(super) fn end(&mut self, has_found: bool) {
        on_this_thread(|credit| credit.note(has_found));
        self.in_a_row = if has_found { self.in_a_row.saturating_add(1) } else { 0 };
    }
}

/// Uses the credit of this thread.
fn on_this_thread<T>(by: impl FnOnce(&mut Credit) -> T) -> T {
    let mut credit = CREDIT.get();
    let result = by(&mut credit);
    CREDIT.set(credit);
    result
}

/// Runs tasks for an executor that lets events in at short intervals, so connections may look as
/// often as they like.
pub(crate) fn with_events_let_in<T>(run: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            LETS_EVENTS_IN.set(self.0);
        }
    }
    let _restore = Restore(LETS_EVENTS_IN.replace(true));
    run()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets `count` connections fall idle, of which one in `period` finds a request if it looks.
    /// Returns how many have looked.
    fn looks(credit: &mut Credit, count: usize, period: usize) -> usize {
        let mut looks = 0;
        for _ in 0..count {
            if credit.allows() {
                looks += 1;
                credit.note(looks % period == 0);
            }
        }
        looks
    }

    const NEVER: usize = usize::MAX;
    const MOST: usize = Credit::MOST as usize;
    const PROBE: usize = Credit::PROBE as usize;

    #[test]
    fn clients_that_pause_cost_few_looks() {
        let mut credit = Credit::new();
        looks(&mut credit, MOST, NEVER);
        assert_eq!(looks(&mut credit, 10 * PROBE, NEVER), 10);
        // Clients that have been busy get some more looks.
        looks(&mut credit, 10 * PROBE, 1);
        assert_eq!(looks(&mut credit, MOST, NEVER), MOST);
        assert_eq!(looks(&mut credit, 10 * PROBE, NEVER), 10);
    }

    #[test]
    fn clients_that_become_busy_are_found_out() {
        let mut credit = Credit::new();
        looks(&mut credit, 10 * PROBE, NEVER);
        let missed = 1000 - looks(&mut credit, 1000, 1);
        assert!(missed < PROBE, "{missed} have not looked");
    }

    #[test]
    fn looks_pay_if_one_in_three_finds_something() {
        for (period, is_worth_it) in [(1, true), (2, true), (5, false), (10, false)] {
            let mut credit = Credit::new();
            looks(&mut credit, 1000, 1);
            looks(&mut credit, 1000, period);
            let looked = looks(&mut credit, 1000, period);
            assert_eq!(looked == 1000, is_worth_it, "one in {period}: {looked}");
            assert!(looked == 1000 || looked < 100, "one in {period}: {looked}");
        }
    }

    /// An executor of the program may let no events in as long as it has tasks.
    #[test]
    fn a_connection_waits_now_and_then_unless_events_are_let_in() {
        CREDIT.set(Credit { left: Credit::MOST, waits: 0 });
        let find = |looks: &mut Looks| {
            let may = looks.begin();
            if may {
                looks.end(true);
            }
            may
        };
        let most = usize::from(MOST_IN_A_ROW);
        let mut connection = Looks::default();
        let found: Vec<_> = (0..2 * most + 2).map(|_| find(&mut connection)).collect();
        let waits = |n: usize| n % (most + 1) == most;
        assert!(found.iter().enumerate().all(|(n, found)| *found != waits(n)), "{found:?}");
        with_events_let_in(|| assert!((0..1000).all(|_| find(&mut connection))));
        assert!(!find(&mut connection));
    }
}
