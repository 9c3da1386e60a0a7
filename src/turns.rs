//! [`run`] runs the tasks of an executor, and handles events between them.
//!
//! Invariant: after every [`TASKS`] tasks, the future yields to its caller. `smol::block_on` then
//! asks the kernel for events, so a new client waits only for a few tasks, even if all other
//! clients are busy. The module spawns no tasks, and starts no threads.

use std::future::{Future, poll_fn};
use std::pin::pin;

use futures_lite::FutureExt;
use futures_lite::future::yield_now;
use smol::Executor;

use crate::conn::look;

/// The number of tasks that run in a row. Asking the kernel for events takes five system calls, and
/// a request takes two. `Executor::run` yields after 200 tasks.
const TASKS: usize = 24;

/// Runs tasks until `future` is ready, like `Executor::run`, but yields more often.
pub(crate) async fn run<T>(executor: &Executor<'_>, future: impl Future<Output = T>) -> T {
    let tasks = async {
        loop {
            for _ in 0..TASKS {
                executor.tick().await;
            }
            yield_now().await;
        }
    };
    let mut tasks = pin!(tasks);
    // `or` polls `future` first, so a future that is ready waits for no further task.
    future.or(poll_fn(|cx| look::with_events_let_in(|| tasks.as_mut().poll(cx)))).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::pending;
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Spawns tasks that never sleep. Returns the number of their polls so far.
    fn spawn_busy(executor: &Executor<'static>, count: usize) -> Arc<AtomicUsize> {
        let polls = Arc::new(AtomicUsize::new(0));
        for _ in 0..count {
            let polls = polls.clone();
            let busy = async move {
                loop {
                    polls.fetch_add(1, Ordering::SeqCst);
                    yield_now().await;
                }
            };
            executor.spawn(busy).detach();
        }
        polls
    }

    #[test]
    fn busy_tasks_let_events_in() {
        let executor = Executor::new();
        let polls = spawn_busy(&executor, 3);
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        let cx = &mut Context::from_waker(&waker);
        let mut running = pin!(run(&executor, pending::<Infallible>()));
        for turn in 1..=100 {
            assert!(running.as_mut().poll(cx).is_pending());
            assert_eq!(polls.load(Ordering::SeqCst), turn * TASKS);
            assert_eq!(woken.0.load(Ordering::SeqCst), turn, "it goes on without an event");
        }
    }

    #[test]
    fn busy_tasks_have_their_turn_in_order_with_a_new_one() {
        let executor = Executor::new();
        let polls = spawn_busy(&executor, 10);
        let cx = &mut Context::from_waker(Waker::noop());
        let mut running = pin!(run(&executor, pending::<Infallible>()));
        assert!(running.as_mut().poll(cx).is_pending());
        let before = polls.load(Ordering::SeqCst);
        let new = executor.spawn(async move { polls.load(Ordering::SeqCst) });
        assert!(running.as_mut().poll(cx).is_pending());
        let Poll::Ready(at) = pin!(new).poll(cx) else { panic!("it had no turn") };
        assert_eq!(at - before, 10);
    }

    #[test]
    fn it_ends_with_its_future_and_before_further_tasks() {
        let executor = Executor::new();
        let polls = spawn_busy(&executor, 1);
        let cx = &mut Context::from_waker(Waker::noop());
        let is_over = Cell::new(false);
        let over = poll_fn(|_| if is_over.get() { Poll::Ready(7) } else { Poll::Pending });
        let mut running = pin!(run(&executor, over));
        assert!(running.as_mut().poll(cx).is_pending());
        is_over.set(true);
        assert_eq!(running.as_mut().poll(cx), Poll::Ready(7));
        assert_eq!(polls.load(Ordering::SeqCst), TASKS);
    }
}
