//! Tests of the latch: its moves, its tokens and guards, its children, and their races.
//!
//! The tests use private parts only to ask whether a drain is over. Each wait ends by an event, and
//! threads race with a seed that a failure shows. These tests do not cover HTTP.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use async_io::Timer;
use async_signal::Signal;
use futures_lite::FutureExt;
use futures_lite::future::{block_on, poll_once, yield_now};
use http_types::{Method, Request, Url};

use crate::seeded::seeded;
use crate::stop::latch::Times;
use crate::stop::outcome::{DrainEnding, Outcome, WorkKind};
use crate::stop::phase::Phase;
use crate::stop::shutdown::Shutdown;
use crate::stop::token::{Guard, Token};

fn is_ready<T>(future: impl Future<Output = T>) -> bool {
    block_on(poll_once(future)).is_some()
}

/// Operators rely on these values.
#[test]
fn defaults_are_the_agreed_ones() {
    let Times { grace, lame_duck, linger, stream_grace } = Shutdown::new().times();
    assert_eq!(grace, Duration::from_secs(30));
    assert_eq!(lame_duck, Duration::ZERO);
    assert_eq!(linger, Duration::from_millis(100));
    assert_eq!(stream_grace, Duration::MAX);
}

#[test]
fn every_clone_has_the_same_times() {
    let shutdown = Shutdown::new();
    let clone = shutdown.clone();
    let _ = shutdown.grace(Duration::from_secs(1)).lame_duck(Duration::from_secs(2));
    let _ = clone.clone().linger(Duration::from_secs(3)).stream_grace(Duration::from_secs(4));
    let Times { grace, lame_duck, linger, stream_grace } = clone.times();
    let times = [grace, lame_duck, linger, stream_grace];
    assert_eq!(times.map(|time| time.as_secs()), [1, 2, 3, 4]);
}

/// A drain beside a server must not cut the server's lame duck.
#[test]
fn the_grace_of_a_drain_begins_after_the_lame_duck() {
    let shutdown = Shutdown::new().lame_duck(Duration::MAX).grace(Duration::ZERO);
    let guard = shutdown.token().guard().unwrap();
    let drained = async {
        let _ = shutdown.stop_and_drain().await;
        true
    };
    // No event shows that a deadline does not come. A grace that begins too early is over at once,
    // so this short time is enough.
    let later = async {
        Timer::after(Duration::from_millis(20)).await;
        false
    };
    assert!(!block_on(drained.or(later)), "the lame duck was cut");
    drop(guard);
}

/// Rule S2.
#[test]
fn the_phase_only_goes_forward() {
    let shutdown = Shutdown::new();
    assert_eq!(shutdown.phase(), Phase::Running);
    shutdown.stop();
    shutdown.stop();
    assert_eq!(shutdown.phase(), Phase::Draining);
    shutdown.abort();
    shutdown.stop();
    shutdown.abort();
    assert_eq!(shutdown.phase(), Phase::Aborting);
}

/// Rule S2: the phase is a state and not an edge.
#[test]
fn a_tokens_futures_resolve_every_time() {
    let shutdown = Shutdown::new();
    let token = shutdown.token();
    assert!(!is_ready(token.stopping()));
    shutdown.stop();
    assert!(is_ready(token.stopping()) && is_ready(token.stopping()));
    assert!(!is_ready(token.aborting()));
    shutdown.abort();
    assert!(is_ready(token.aborting()) && is_ready(token.aborting()));
}

#[test]
fn a_waiting_token_is_woken() {
    let shutdown = Shutdown::new();
    let token = shutdown.token();
    let mut stopping = pin!(token.stopping());
    assert!(!is_ready(stopping.as_mut()));
    shutdown.stop();
    assert!(is_ready(stopping.as_mut()));
}

/// Rule S1: a latch is not drained before the stop or while a holder is left, and then it is for
/// good.
#[test]
fn drained_is_a_predicate() {
    let shutdown = Shutdown::new();
    let token = shutdown.token();
    // A count of zero before the stop means nothing.
    drop(token.guard());
    let drained = shutdown.token().latch;
    let mut drained = pin!(drained.drained());
    assert!(!is_ready(drained.as_mut()));

    let first = token.guard().unwrap();
    shutdown.stop();
    assert!(!is_ready(drained.as_mut()));
    // S12: the first guard holds the drain open, so there may be a second one.
    let second = token.guard().unwrap();
    drop(first);
    assert!(!is_ready(drained.as_mut()));
    drop(second);
    assert!(is_ready(drained.as_mut()));
    assert!(token.guard().is_err());
}

#[test]
fn nobody_joins_an_aborted_drain() {
    let shutdown = Shutdown::new();
    let guard = shutdown.token().guard().unwrap();
    shutdown.abort();
    assert!(shutdown.token().guard().is_err());
    drop(guard);
}

#[test]
fn a_drain_with_nobody_left_ends_at_once() {
    let shutdown = Shutdown::new();
    let outcome = block_on(poll_once(pin!(shutdown.stop_and_drain()))).expect("no wait (rule S19)");
    assert_eq!(outcome.ending, DrainEnding::Drained);
    // A later call gets the same outcome.
    assert!(block_on(shutdown.stop_and_drain()).is_drained());
}

/// Rule S13.
#[test]
fn a_drain_that_times_out_names_who_held_it() {
    let shutdown = Shutdown::new().grace(Duration::from_millis(10));
    let guard = shutdown.token().guard().unwrap();
    let line = line!() - 1;
    let outcome = block_on(shutdown.stop_and_drain());
    assert_eq!(outcome.ending, DrainEnding::TimedOut);
    let [cut] = &outcome.cut[..] else { panic!("{outcome}") };
    assert!(matches!(cut.kind, WorkKind::Guard(place) if place.line() == line), "{outcome}");
    drop(guard);
    // A later call gets the same ending.
    assert_eq!(block_on(shutdown.stop_and_drain()).ending, DrainEnding::TimedOut);
}

/// Rule S14.
#[test]
fn an_abort_ends_the_drain() {
    let shutdown = Shutdown::new();
    let guard = shutdown.token().guard().unwrap();
    let handle = shutdown.clone();
    let waiting = thread::spawn(move || block_on(handle.stop_and_drain()));
    block_on(shutdown.token().stopping());
    shutdown.abort();
    assert_eq!(waiting.join().unwrap().ending, DrainEnding::Forced);
    drop(guard);
}

#[test]
fn an_abort_that_cuts_nothing_is_a_drain() {
    let shutdown = Shutdown::new();
    shutdown.abort();
    assert_eq!(block_on(shutdown.stop_and_drain()).ending, DrainEnding::Drained);
}

#[test]
fn the_first_signal_is_the_one_that_began_it() {
    let shutdown = Shutdown::new();
    shutdown.stop_by(Signal::Hup);
    shutdown.stop_by(Signal::Term);
    assert_eq!(block_on(shutdown.stop_and_drain()).signal, Some(Signal::Hup));
}

#[test]
fn a_request_from_nowhere_never_stops() {
    let url = Url::parse("http://test/").unwrap();
    let token = Token::of(&Request::new(Method::Get, url));
    assert!(!token.is_stopping());
}

#[test]
fn public_types_are_what_threads_need() {
    fn check<T: Send + Sync + Unpin + 'static>() {}
    check::<Shutdown>();
    check::<Token>();
    check::<Guard>();
    check::<Outcome>();
}

/// Rule S12: a waiting worker holds no guard, and no stop or end comes between a job and its guard.
#[test]
fn a_job_comes_with_its_guard() {
    let shutdown = Shutdown::new().grace(Duration::ZERO);
    let token = shutdown.token();
    let (post, jobs) = smol::channel::unbounded();
    {
        let mut waiting = pin!(token.accept(jobs.recv()));
        assert!(block_on(poll_once(waiting.as_mut())).is_none());
        assert_eq!(shutdown.in_flight(), 0, "an idle worker is in flight");
        post.try_send(1).unwrap();
        let (job, guard) = block_on(waiting).unwrap();
        assert_eq!((job, shutdown.in_flight()), (Ok(1), 1));
        drop(guard);
    }
    // The stop begins while the worker takes the job.
    let line = line!() + 1;
    let (_, guard) = block_on(token.accept(async { shutdown.stop() })).expect("a taken job");
    let mut drain = pin!(shutdown.stop_and_drain());
    assert!(!is_ready(shutdown.token().latch.drained()));
    let outcome = block_on(drain.as_mut());
    let [cut] = &outcome.cut[..] else { panic!("{outcome}") };
    assert!(matches!(cut.kind, WorkKind::Guard(place) if place.line() == line), "{outcome}");
    drop(guard);
}

#[test]
fn no_job_is_taken_after_the_stop() {
    let shutdown = Shutdown::new();
    let token = shutdown.token();
    let (post, jobs) = smol::channel::unbounded();
    let mut waiting = pin!(token.accept(jobs.recv()));
    assert!(block_on(poll_once(waiting.as_mut())).is_none());
    // Another guard holds the drain open, so the worker could get one.
    let guard = token.guard();
    shutdown.stop();
    post.try_send("late").unwrap();
    assert!(block_on(waiting).is_none());
    assert!(block_on(token.accept(async { panic!("polled after the stop") })).is_none());
    assert_eq!(jobs.len(), 1);
    drop(guard);
}

// ── Clones of a guard ───────────────────────────────────────────────────────────────────────

/// A clone of a guard is possible even if the drain takes no other holder.
#[test]
fn a_clone_of_a_guard_holds_the_drain_as_long_as_it_lives() {
    let shutdown = Shutdown::new();
    let guard = shutdown.token().guard().unwrap();
    let line = line!() - 1;
    let clone = guard.clone();
    assert_eq!(shutdown.in_flight(), 2);
    shutdown.abort();
    let late = clone.clone();
    assert!(shutdown.token().guard().is_err());
    drop((guard, clone));
    assert!(!is_ready(shutdown.token().latch.drained()));
    drop(late);
    assert!(is_ready(shutdown.token().latch.drained()));
    let outcome = block_on(shutdown.stop_and_drain());
    let lines = outcome.cut.iter().map(|cut| match cut.kind {
        WorkKind::Guard(place) => place.line(),
        _ => panic!("{outcome}"),
    });
    assert!(lines.eq([line, line]), "{outcome}");
}

// ── Open work ───────────────────────────────────────────────────────────────────────────────

#[test]
fn open_work_comes_with_the_oldest_first() {
    let shutdown = Shutdown::new();
    assert!(shutdown.open_work().is_empty());
    let lines = || {
        shutdown.open_work().into_iter().map(|work| match work.kind {
            WorkKind::Guard(place) => place.line(),
            other => panic!("{other:?}"),
        })
    };
    let first = shutdown.token().guard().unwrap();
    let second = shutdown.token().guard().unwrap();
    let line = line!() - 2;
    assert!(lines().eq([line, line + 1]));
    drop(first);
    let third = second.clone();
    assert!(lines().eq([line + 1, line + 1]));
    drop((second, third));
    assert_eq!(lines().count(), 0);
}

// ── Children ────────────────────────────────────────────────────────────────────────────────

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

// ── Races ───────────────────────────────────────────────────────────────────────────────────

/// Workers take jobs while one thread stops, at any moment. When the drain ends, every job that was
/// taken is done, and the others are in the queue.
#[test]
fn jobs_and_stop_race() {
    let rounds = if cfg!(miri) { 5 } else { 300 };
    let mut random = seeded();
    for _ in 0..rounds {
        let shutdown = Shutdown::new();
        let (post, queue) = smol::channel::unbounded();
        let taken = Arc::new(AtomicUsize::new(0));
        let done = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let (token, queue, mut random) = (shutdown.token(), queue.clone(), random.fork());
                let (taken, done) = (taken.clone(), done.clone());
                let next = async move || {
                    queue.recv().await.unwrap();
                    taken.fetch_add(1, Ordering::SeqCst);
                };
                thread::spawn(move || {
                    block_on(async {
                        while let Some(((), guard)) = token.accept(next()).await {
                            let job = async {
                                for _ in 0..random.usize(..5) {
                                    yield_now().await;
                                }
                                done.fetch_add(1, Ordering::SeqCst);
                            };
                            guard.hold(job).await;
                        }
                    })
                })
            })
            .collect();
        let mut posted = 0;
        for _ in 0..random.usize(..100) {
            for _ in 0..random.usize(..3) {
                post.try_send(()).unwrap();
                posted += 1;
            }
            std::hint::spin_loop();
        }
        let outcome = block_on(shutdown.stop_and_drain());
        let (done, taken) = (done.load(Ordering::SeqCst), taken.load(Ordering::SeqCst));
        assert!(outcome.is_drained());
        assert_eq!(done, taken, "a job was lost");
        assert_eq!(taken + queue.len(), posted);
        for worker in workers {
            worker.join().unwrap();
        }
    }
}

/// Threads take and drop guards while one thread stops. No guard is given after the end, and the
/// end comes, and does not come early.
#[test]
fn guards_and_stop_race() {
    let rounds = if cfg!(miri) { 5 } else { 300 };
    let mut random = seeded();
    for _ in 0..rounds {
        let shutdown = Shutdown::new();
        let held = Arc::new(AtomicUsize::new(0));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (token, held, mut random) = (shutdown.token(), held.clone(), random.fork());
                thread::spawn(move || {
                    while let Ok(guard) = token.guard() {
                        held.fetch_add(1, Ordering::SeqCst);
                        let copies: Vec<_> =
                            (0..random.usize(..3)).filter_map(|_| token.guard().ok()).collect();
                        block_on(async {
                            for _ in 0..random.usize(..5) {
                                yield_now().await;
                            }
                        });
                        drop(copies);
                        held.fetch_sub(1, Ordering::SeqCst);
                        drop(guard);
                        if token.is_stopping() && random.bool() {
                            break;
                        }
                    }
                })
            })
            .collect();
        for _ in 0..random.usize(..200) {
            std::hint::spin_loop();
        }
        let outcome = block_on(shutdown.stop_and_drain());
        assert!(outcome.is_drained());
        assert_eq!(held.load(Ordering::SeqCst), 0, "the end came early");
        assert!(shutdown.token().guard().is_err(), "admitted after the end");
        for worker in workers {
            worker.join().unwrap();
        }
    }
}
