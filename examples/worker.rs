//! A queue worker without any HTTP. At the first signal it finishes the jobs under way, a second
//! signal ends it at once, and the exit code shows which of the two happened.
//!
//! Run with:
//!
//! ```
//! yes 3000 | cargo run --example worker
//! ```
//!
//! Every line of the standard input is a job, with its length in milliseconds. Stop the worker with
//! Ctrl-C, once or twice, and look at `$?`. It also stops when there are no more lines.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::io::{BufReader, Lines};
use futures_lite::{AsyncBufReadExt, StreamExt};
use smol::lock::Mutex;
use smol::{Timer, Unblock};
use smol_graceful::{Outcome, Shutdown, signals};

/// The number of jobs under way at the same time.
const WORKERS: usize = 4;

/// The longest time that the jobs may take after the first signal.
const GRACE: Duration = Duration::from_secs(30);

type Queue = Arc<Mutex<Lines<BufReader<Unblock<io::Stdin>>>>>;

/// Does one job after the other, until there are no more or the stop begins.
async fn work(queue: Queue, shutdown: Shutdown) {
    let token = shutdown.token();
    let next = async || queue.lock().await.next().await;
    // Each job comes with a guard that was taken before it, so the drain waits for every job.
    while let Some((job, guard)) = token.accept(next()).await {
        match job {
            Some(Ok(job)) => guard.hold(perform(&job)).await,
            Some(Err(error)) => log::warn!("an unreadable job: {error}"),
            None => return shutdown.stop(),
        }
    }
}

async fn perform(job: &str) {
    let Ok(milliseconds) = job.parse() else { return log::warn!("not a job: {job:?}") };
    log::info!("begun: {job}");
    Timer::after(Duration::from_millis(milliseconds)).await;
    log::info!("done: {job}");
}

fn main() -> io::Result<Outcome> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let signals = signals()?;
    let shutdown = Shutdown::new().grace(GRACE);
    let queue = Arc::new(Mutex::new(BufReader::new(Unblock::new(io::stdin())).lines()));
    for _ in 0..WORKERS {
        smol::spawn(work(queue.clone(), shutdown.clone())).detach();
    }
    // The jobs run on smol's own thread, so this thread is free for the signals and the deadline.
    let token = shutdown.token();
    let drained = async {
        token.stopping().await;
        shutdown.stop_and_drain().await
    };
    let outcome = smol::block_on(shutdown.obey(signals, drained));
    log::info!("{outcome}");
    Ok(outcome)
}
