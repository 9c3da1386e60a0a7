//! [`check`]: starts async-io's thread, or returns an error if the thread or its descriptors cannot
//! be had.
//!
//! Invariant: after `check` has succeeded once, async-io's thread runs, so no later call into
//! async-io can panic because the thread cannot be started. This file knows nothing of the threads
//! that run handlers.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::panic;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use async_io::Timer;
use futures_lite::future;

use crate::error::{because_of, during, reason};

/// Starts async-io's thread if it does not run yet.
///
/// async-io panics if it cannot start its thread or open its descriptors. So this function first
/// tries both by itself.
///
/// # Errors
///
/// Returns the operating system's error if a limit leaves no thread or no descriptor.
pub(crate) fn check() -> io::Result<()> {
    static STARTED: OnceLock<()> = OnceLock::new();
    if STARTED.get().is_none() {
        try_one().map_err(named("cannot start a thread"))?;
        try_descriptors()?;
        // The start may still panic, because another process of the same user may have taken the
        // last thread meanwhile.
        panic::catch_unwind(start_async_io)
            .map_err(|_| named("cannot start a thread")(io::ErrorKind::WouldBlock.into()))?;
        let _ = STARTED.set(());
    }
    Ok(())
}

/// Returns a function that makes an error with `what` and the remedy.
pub(crate) fn named(what: &str) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| {
        let message = format!(
            "{what}: {}; raise the limit of threads (`ulimit -u`, the container's limit of \
             processes), or run fewer threads",
            reason(&error)
        );
        because_of(message, error)
    }
}

/// Opens as many descriptors as async-io needs (epoll, its timer, its waker), and closes them,
/// because async-io panics if it gets fewer.
fn try_descriptors() -> io::Result<()> {
    let pairs = [UnixStream::pair(), UnixStream::pair()];
    pairs.into_iter().collect::<io::Result<Vec<_>>>().map(drop).map_err(during("cannot start"))
}

/// Starts a thread that ends at once, and waits until the kernel no longer counts that thread.
/// Returns the path under which the kernel listed the thread, on Linux.
fn try_one() -> io::Result<Option<PathBuf>> {
    let probe = thread::Builder::new().name("probe".into()).spawn(own_entry)?;
    let entry = probe.join().ok().flatten();
    // `join` returns a moment before the kernel stops counting the thread.
    let deadline = Instant::now() + Duration::from_millis(100);
    while entry.as_deref().is_some_and(Path::exists) && Instant::now() < deadline {
        thread::sleep(Duration::from_micros(100));
    }
    Ok(entry)
}

/// Returns the path under which the kernel lists the calling thread, on Linux.
fn own_entry() -> Option<PathBuf> {
    Some(Path::new("/proc").join(fs::read_link("/proc/thread-self").ok()?))
}

/// Polls a timer once, because async-io then starts its thread.
fn start_async_io() {
    let timer = pin!(Timer::after(Duration::from_secs(1)));
    future::block_on(future::poll_once(timer));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_ended_is_no_longer_listed() {
        let entry = try_one().unwrap();
        assert!(!entry.is_some_and(|entry| entry.exists()));
        check().unwrap();
        // The thread sets its name itself, a moment after it has begun.
        let is_there = || {
            let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
            let mut names =
                tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
            names.any(|name| name == "async-io\n")
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_there() {
            assert!(Instant::now() < deadline, "async-io has no thread");
            thread::yield_now();
        }
    }
}
