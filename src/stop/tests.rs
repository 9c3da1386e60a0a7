//! Tests of the latch: its moves, its tokens and guards, and their races.
//!
//! The tests use private parts only to ask whether a drain is over. Each wait ends by an event, and
//! threads race with a seed that a failure shows. These tests do not cover HTTP.

mod children;

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
