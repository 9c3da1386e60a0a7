//! A model of several generations of the server, whose processes die at any moment.
//!
//! The processes hold a real [`Outbox`](super::Outbox) and send real messages. The kernel's part
//! and the rest of the courier and of the adoption are small models. After each step the model
//! looks for a socket that two processes read, and for a socket that was lost although its reader
//! lives (rules H1 to H7). A run depends on its seed alone.

mod kernel;
mod process;
mod world;

use std::thread;

use crate::seeded;
use world::World;

#[test]
fn one_process_reads_a_socket_and_none_is_lost_unless_its_reader_died() {
    let given = seeded::given();
    let first = given.unwrap_or_else(|| fastrand::u64(..));
    let runs = if cfg!(miri) { 20 } else { 3_000 };
    let mut seen = Seen::default();
    for seed in (0..runs).map(|run| first.wrapping_add(run)) {
        let _printed = SeedOfFailure(seed);
        let mut world = World::new(seed, seen, given == Some(seed));
        for _ in 0..world.random.usize(20..200) {
            world.step();
            world.check();
        }
        world.settle();
        seen = world.seen;
    }
    // A case that no run reaches would prove nothing.
    let Seen { full, bytes, late, taken_back, refused, passed_on } = seen;
    let least = if given.is_some() || cfg!(miri) { 0 } else { 1 };
    for count in [full, bytes, late, taken_back, refused, passed_on] {
        assert!(count >= least, "the runs do not reach everything: {seen:?}");
    }
}

/// Prints the seed of a run that has failed. STRESS_SEED repeats that run, which then prints its
/// steps.
struct SeedOfFailure(u64);

impl Drop for SeedOfFailure {
    #[expect(clippy::print_stdout, reason = "the seed of a failure")]
    fn drop(&mut self) {
        if thread::panicking() {
            println!("STRESS_SEED={}", self.0);
        }
    }
}

/// The number of times that the runs have reached each of the rarer cases.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// Batches of `BATCH` connections, the largest number.
    full: usize,
    /// Batches that have room for a further connection, but not for its bytes.
    bytes: usize,
    /// Connections that went back to their server while a batch had no answer.
    late: usize,
    /// Batches that came back to the predecessor.
    taken_back: usize,
    /// Connections that a successor refused.
    refused: usize,
    /// Connections that came through a passage that was passed on.
    passed_on: usize,
}
