//! [`Places`]: the places of a server, one for each connection that may be open (rule S24).
//!
//! If no place is free and a client waits, an idle connection gives its place to the client. This
//! file knows neither connections nor the latch, and the caller closes the connections.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_io::Timer;
use futures_lite::FutureExt;
use smol::lock::{Semaphore, SemaphoreGuardArc};

use crate::limits::{connections_allowed, files_allowed};
use crate::listen::listener::Listener;
use crate::lock::lock;
use crate::log_limit::LogLimit;

/// A place. The drop frees it.
pub(crate) type Place = SemaphoreGuardArc;

/// The places of a server, shared by all its listeners.
pub(crate) struct Places {
    free: Arc<Semaphore>,
    pressure: Mutex<Pressure>,
    /// Keeps waiting clients from filling the log.
    reports: LogLimit,
}

impl Places {
    /// Makes the wished number of places, or fewer if the process may open too few files, or has
    /// opened most of them.
    pub(crate) fn new(wished: usize) -> Self {
        let left =
            open_files().map_or(usize::MAX, |open| files_allowed().saturating_sub(open + SPARE));
        let places = connections_allowed(wished).min(left).max(1);
        if places < wished {
            // With too few descriptors, the server could not even see that a client waits.
            log::warn!(
                "serving {places} connections at most, not {wished}, because the process may not \
                 open more files; raise `ulimit -n`",
            );
        }
        Self {
            free: Arc::new(Semaphore::new(places)),
            pressure: Mutex::default(),
            reports: LogLimit::new(),
        }
    }

    /// Returns a place if one is free.
    pub(crate) fn try_take(&self) -> Option<Place> {
        self.free.try_acquire_arc()
    }

    /// Waits for a free place, and returns it. While none is free and a client waits at `listener`,
    /// calls `close_idle` again and again. `close_idle` gets the largest number of idle connections
    /// to close, and returns the number that it closes.
    pub(crate) async fn take(
        &self,
        listener: &Listener,
        close_idle: impl Fn(usize) -> usize,
    ) -> Place {
        if let Some(place) = self.free.try_acquire_arc() {
            return place;
        }
        let make_room = async {
            let mut pause = Duration::from_millis(5);
            listener.has_client().await;
            let most = lock(&self.pressure).next(Instant::now());
            loop {
                listener.has_client().await;
                let closing = close_idle(most);
                if let Some(times) = self.reports.count(Instant::now()) {
                    log::info!(
                        "all places are taken and a client waits ({times} times since the last such line); \
                         closing the connections that have been idle longest: {closing}",
                    );
                }
                Timer::after(pause).await;
                pause = pause.saturating_mul(2).min(Duration::from_millis(100));
            }
        };
        self.free.acquire_arc().or(make_room).await
    }
}

/// The descriptors that no place gets, for logs that are opened anew and for a few operators.
const SPARE: usize = 4;

/// Returns the number of files that this process has open, or `None` if the system does not list
/// them.
fn open_files() -> Option<usize> {
    let listed = fs::read_dir("/dev/fd").or_else(|_| fs::read_dir("/proc/self/fd")).ok()?.count();
    // The list has an entry for the descriptor through which it is read.
    Some(listed.saturating_sub(1))
}

/// The number of idle connections that give way when a client waits. It is one, and more in a flood
/// of clients, because each time costs a look at all connections.
#[derive(Debug, Default)]
struct Pressure {
    last: Option<Instant>,
    batch: usize,
}

impl Pressure {
    /// Clients that come within this time after another one are a flood.
    const FLOOD: Duration = Duration::from_millis(100);

    fn next(&mut self, now: Instant) -> usize {
        let is_flood =
            self.last.is_some_and(|last| now.saturating_duration_since(last) < Self::FLOOD);
        self.batch = if is_flood { (self.batch * 2).min(32) } else { 1 };
        self.last = Some(now);
        self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_clients_raises_the_pressure() {
        let (mut pressure, start) = (Pressure::default(), Instant::now());
        let mut after = |millis| pressure.next(start + Duration::from_millis(millis));
        assert_eq!([0, 100, 150, 200, 201].map(&mut after), [1, 1, 2, 4, 8]);
        assert_eq!([202, 203, 204].map(&mut after), [16, 32, 32]);
        assert_eq!(after(304), 1);
    }
}
