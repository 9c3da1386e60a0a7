//! Tests of a latch and its children: which moves a child follows, and which effect its holders and
//! cuts have on its parent.
//!
//! Each wait ends by an event, and threads race with a seed that a failure shows.

use super::*;

#[test]
fn a_child_follows_its_parent_and_not_the_other_way() {
    let parent = Shutdown::new().grace(Duration::from_secs(7));
    let child = parent.token().child();
    let grandchild = child.token().child();
    let other = parent.token().child();
    assert_eq!(grandchild.times().grace, Duration::from_secs(7));
    let phases = || [&parent, &child, &grandchild, &other].map(Shutdown::phase);

    child.stop();
    use Phase::{Aborting, Draining, Running};
    assert_eq!(phases(), [Running, Draining, Draining, Running]);
    grandchild.abort();
    assert_eq!(phases(), [Running, Draining, Aborting, Running]);
    let mut stopping = pin!(async { other.token().stopping().await });
    assert!(!is_ready(stopping.as_mut()));
    parent.stop_by(Signal::Term);
    assert!(is_ready(stopping.as_mut()));
    assert_eq!(phases(), [Draining, Draining, Aborting, Draining]);
    parent.abort();
    assert_eq!(phases(), [Aborting; 4]);
    // The outcome has the parent's signal, unless the child was stopped before.
    let signals = [&parent, &child, &grandchild, &other]
        .map(|shutdown| block_on(shutdown.stop_and_drain()).signal);
    assert_eq!(signals, [Some(Signal::Term), None, None, Some(Signal::Term)]);
}

#[test]
fn a_child_made_late_is_where_its_parent_is() {
    let parent = Shutdown::new();
    let guard = parent.token().guard().unwrap();
    parent.stop();
    let child = parent.token().child();
    assert_eq!(child.phase(), Phase::Draining);
    assert!(child.token().guard().is_err(), "its drain is over");
    parent.abort();
    assert_eq!(parent.token().child().phase(), Phase::Aborting);
    drop(guard);
}

/// Rule S1 holds through all latches above.
#[test]
fn what_holds_a_child_holds_its_parent() {
    let parent = Shutdown::new().grace(Duration::ZERO);
    let child = parent.token().child();
    let grandchild = child.token().child();
    let guard = grandchild.token().guard().unwrap();
    let line = line!() - 1;
    let in_flight = || [&parent, &child, &grandchild].map(Shutdown::in_flight);
    assert_eq!(in_flight(), [1; 3]);
    let clone = guard.clone();
    assert_eq!(in_flight(), [2; 3]);
    drop(guard);

    grandchild.stop();
    let mut drained = pin!(async { grandchild.token().latch.drained().await });
    assert!(!is_ready(drained.as_mut()));
    let outcome = block_on(parent.stop_and_drain());
    let [cut] = &outcome.cut[..] else { panic!("{outcome}") };
    assert!(matches!(cut.kind, WorkKind::Guard(place) if place.line() == line), "{outcome}");
    drop(clone);
    assert_eq!(in_flight(), [0; 3]);
    assert!(is_ready(drained.as_mut()));
    // The end of the parent's grace ends the child, too.
    assert_eq!(block_on(grandchild.stop_and_drain()).ending, DrainEnding::TimedOut);
}

/// If a child cuts work in its parent's drain, the parent's outcome names the work, too, and once.
/// The parent's outcome does not name a cut from before its drain.
#[test]
fn a_drain_names_what_a_child_has_cut() {
    let parent = Shutdown::new();
    let child = || parent.token().child();
    let (early, late) = (child().grace(Duration::ZERO), child().grace(Duration::ZERO));
    let grandchild = late.token().child();
    let held_early = early.token().guard().unwrap();
    assert_eq!(block_on(early.stop_and_drain()).cut.len(), 1);

    let own = parent.token().guard().unwrap();
    let guard = grandchild.token().guard().unwrap();
    let line = line!() - 1;
    parent.stop();
    assert_eq!(block_on(late.stop_and_drain()).ending, DrainEnding::TimedOut);
    assert_eq!(parent.phase(), Phase::Draining);
    drop((own, held_early));
    let mut drain = pin!(parent.stop_and_drain());
    assert!(block_on(poll_once(drain.as_mut())).is_none(), "the child's guard is still there");
    drop(guard);
    let outcome = block_on(drain);
    let [cut] = &outcome.cut[..] else { panic!("{outcome}") };
    assert!(matches!(cut.kind, WorkKind::Guard(place) if place.line() == line), "{outcome}");
    assert_eq!(outcome.ending, DrainEnding::TimedOut);
}

#[test]
fn what_a_child_and_its_parent_cut_is_named_once() {
    let parent = Shutdown::new();
    let child = parent.token().child();
    let guards = [parent.token().guard().unwrap(), child.token().guard().unwrap()];
    parent.stop();
    child.abort();
    parent.abort();
    let outcome = block_on(parent.stop_and_drain());
    assert_eq!((outcome.cut.len(), outcome.ending), (2, DrainEnding::Forced), "{outcome}");
    assert_eq!(block_on(child.stop_and_drain()).cut.len(), 1);
    drop(guards);
}

#[test]
fn nobody_joins_a_child_of_a_drained_parent() {
    let parent = Shutdown::new();
    let child = parent.token().child();
    let guard = child.token().guard().unwrap();
    child.stop();
    drop(guard);
    assert!(child.token().guard().is_err(), "its own drain is over");
    assert_eq!(parent.in_flight(), 0, "an entry of the child stayed");
    assert!(parent.token().guard().is_ok(), "the parent still runs");
}

/// A parent keeps nothing for a child that is gone.
#[test]
fn a_child_leaves_nothing_behind() {
    let parent = Shutdown::new();
    for _ in 0..3 {
        let child = parent.token().child();
        let guard = child.token().guard().unwrap();
        drop(child);
        // The guard keeps the child, so the parent's stop reaches the child.
        assert_eq!((parent.in_flight(), parent.token().latch.children()), (1, 1));
        drop(guard);
        assert_eq!((parent.in_flight(), parent.token().latch.children()), (0, 0));
    }
}

/// A program that makes a child of a child at each reload gets a long chain. A recursive step from
/// latch to latch would overflow this thread's stack.
#[test]
fn a_chain_of_children_may_be_long() {
    let length = if cfg!(miri) { 50 } else { 20_000 };
    let chain = move || {
        let first = Shutdown::new();
        let mut last = first.token().child();
        for _ in 1..length {
            last = last.token().child();
        }
        let guard = last.token().guard().unwrap();
        let clone = guard.clone();
        drop(guard);
        assert_eq!(first.in_flight(), 1);
        assert!(last.is_below(&first) && !first.is_below(&last));
        first.stop();
        assert!(last.token().is_stopping());
        drop(clone);
        assert_eq!((first.in_flight(), last.in_flight()), (0, 0));
        assert!(last.token().guard().is_err());
        first.abort();
        assert_eq!(last.phase(), Phase::Aborting);
        drop(last);
        assert_eq!(first.token().latch.children(), 0);
    };
    let thread = thread::Builder::new().stack_size(256 * 1024).spawn(chain).unwrap();
    thread.join().unwrap();
}

/// Threads take guards of children while the parent stops. The parent's end comes, and does not
/// come early.
#[test]
fn children_and_stop_race() {
    let rounds = if cfg!(miri) { 5 } else { 300 };
    let mut random = seeded();
    for _ in 0..rounds {
        let parent = Shutdown::new();
        let held = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (token, held, mut random) = (parent.token(), held.clone(), random.fork());
                thread::spawn(move || {
                    loop {
                        let child = token.child();
                        let Ok(guard) = child.token().guard() else {
                            assert!(token.is_stopping(), "refused before the stop");
                            break;
                        };
                        held.fetch_add(1, Ordering::SeqCst);
                        let clone = guard.clone();
                        if random.bool() {
                            child.stop();
                        }
                        drop(guard);
                        block_on(async {
                            for _ in 0..random.usize(..5) {
                                yield_now().await;
                            }
                        });
                        held.fetch_sub(1, Ordering::SeqCst);
                        drop(clone);
                    }
                })
            })
            .collect();
        for _ in 0..random.usize(..200) {
            std::hint::spin_loop();
        }
        let outcome = block_on(parent.stop_and_drain());
        assert!(outcome.is_drained());
        assert_eq!(held.load(Ordering::SeqCst), 0, "the end came early");
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(parent.token().latch.children(), 0);
    }
}
