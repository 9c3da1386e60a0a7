//! [`Tally`]: counts the results of the requests during the load.
//!
//! All clients share a tally with the thread that restarts the server. Clients count events by its
//! methods, and each method also adds the event to the [`Timeline`]. The numbers at the end are the
//! [`Report`]. A tally keeps no request, so a long load needs no more memory.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use event_listener::Event;

use super::timeline::{Band, Bucket};
use super::{AGAIN, Failure, Kind, Report, SHARE, Shape, Spread, Timeline};

/// The largest number of failures that are described. All of them are counted.
const DESCRIBED: usize = 20;

/// The time after a restart in which a new request still counts as near it.
const NEAR: Duration = Duration::from_secs(1);

/// The count so far. The fields are described at [`Report`].
#[derive(Debug)]
pub struct Tally {
    pub answered: AtomicU64,
    pub asked: AtomicU64,
    pub told: AtomicU64,
    pub untold: AtomicU64,
    pub refused: AtomicU64,
    pub attempts: AtomicU64,
    pub crossed: AtomicU64,
    pub reset: AtomicU64,
    pub cut: AtomicU64,
    pub wrong: AtomicU64,
    pub stalled: AtomicU64,
    /// The first error of a connect that a restart does not explain.
    pub odd: OnceLock<String>,
    /// The event for the idle clients. A restart wakes some of them, and the end of the load all.
    pub crowd: Event,
    /// The event for the other clients. The end of the load wakes all of them.
    pub end: Event,
    pub all: Latencies,
    near: Latencies,
    /// A request that began before this time counts as near a restart, in microseconds since the
    /// start.
    near_until: AtomicU64,
    /// The time of the slowest answer since the last call of [`Tally::take_slowest`], in
    /// microseconds.
    slowest: AtomicU64,
    timeline: Mutex<Timeline>,
    failures: Mutex<Vec<Failure>>,
    /// The progress of each client, with the idle ones at the end. A client with slow requests has
    /// none.
    progress: Box<[Progress]>,
    idle: usize,
    start: Instant,
    /// `true` when the idle clients have to ask once more and end.
    is_stopping: AtomicBool,
    /// `true` when the idle clients have ended, so that the others end, too.
    is_over: AtomicBool,
}

/// The progress of a client, whose requests are numbered from 1.
#[derive(Debug, Default)]
struct Progress {
    begun: AtomicU64,
    answered: AtomicU64,
}

impl Tally {
    pub fn new(busy: usize, idle: usize) -> Self {
        Self {
            answered: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            told: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
            crossed: AtomicU64::new(0),
            reset: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            odd: OnceLock::new(),
            crowd: Event::new(),
            end: Event::new(),
            all: Latencies::new(),
            near: Latencies::new(),
            near_until: AtomicU64::new(0),
            slowest: AtomicU64::new(0),
            timeline: Mutex::new(Timeline::new()),
            failures: Mutex::default(),
            progress: (0..busy + idle).map(|_| Progress::default()).collect(),
            idle,
            start: Instant::now(),
            is_stopping: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        }
    }

    /// Calls `restart`, and returns its result. Requests meanwhile, and those that begin within a
    /// second after it, count as near a restart. A share of the idle clients sends now.
    pub fn restart<T>(&self, restart: impl FnOnce() -> T) -> T {
        let begun = self.elapsed();
        self.near_until.store(u64::MAX, Relaxed);
        self.crowd.notify(self.idle.div_ceil(SHARE));
        let made = restart();
        let ended = self.elapsed();
        self.near_until.store(micros(ended + NEAR), Relaxed);
        locked(&self.timeline).add_restart(Band { begun, ended });
        made
    }

    /// Waits until every busy client has an answer to a request that it began after this call.
    /// Returns `false` if one has no answer in time.
    pub fn all_answered(&self, within: Duration) -> bool {
        let busy = &self.progress[..self.progress.len() - self.idle];
        let begun: Vec<_> = busy.iter().map(|client| client.begun.load(Relaxed)).collect();
        self.wait_for_answers(&begun, within) == 0
    }

    /// Waits until every client, idle or not, has had an answer. Returns the number of clients
    /// without an answer in time.
    pub fn wait_for_all(&self, within: Duration) -> usize {
        self.wait_for_answers(&vec![0; self.progress.len()], within)
    }

    /// Waits until each client has an answer to a later request than the one in `behind`. Returns
    /// the number of clients without such an answer in time.
    fn wait_for_answers(&self, behind: &[u64], within: Duration) -> usize {
        let deadline = Instant::now() + within;
        loop {
            let clients = self.progress.iter().zip(behind);
            let without = clients
                .filter(|(client, behind)| client.answered.load(Relaxed) <= **behind)
                .count();
            if without == 0 || Instant::now() > deadline {
                return without;
            }
            thread::sleep(AGAIN);
        }
    }

    /// Returns the report up to now.
    pub fn report(&self) -> Report {
        Report {
            answered: self.answered.load(Relaxed),
            all: self.all.spread(),
            near: self.near.spread(),
            asked: self.asked.load(Relaxed),
            told: self.told.load(Relaxed),
            untold: self.untold.load(Relaxed),
            refused: self.refused.load(Relaxed),
            attempts: self.attempts.load(Relaxed),
            crossed: self.crossed.load(Relaxed),
            reset: self.reset.load(Relaxed),
            cut: self.cut.load(Relaxed),
            wrong: self.wrong.load(Relaxed),
            stalled: self.stalled.load(Relaxed),
            odd: self.odd.get().cloned(),
            failures: locked(&self.failures).clone(),
        }
    }

    /// Returns the number of lost requests up to now.
    pub fn lost(&self) -> u64 {
        self.report().lost()
    }

    /// Returns the course of the load up to now.
    pub fn timeline(&self) -> Timeline {
        locked(&self.timeline).clone()
    }

    /// Returns the time of the slowest answer since the last call.
    pub fn take_slowest(&self) -> Duration {
        Duration::from_micros(self.slowest.swap(0, Relaxed))
    }

    /// Notes that a client has begun a request.
    pub fn begin(&self, client: usize, number: u64) {
        if let Some(progress) = self.progress.get(client) {
            progress.begun.store(number, Relaxed);
        }
    }

    /// Counts a request that began at `begun`, and has just been answered.
    pub fn answer(&self, shape: Shape, client: usize, number: u64, begun: Instant) {
        self.answered.fetch_add(1, Relaxed);
        if shape == Shape::Slow {
            self.note(shape, |bucket| bucket.answered += 1);
            return;
        }
        let took = begun.elapsed();
        self.all.add(took);
        if micros(begun.duration_since(self.start)) < self.near_until.load(Relaxed) {
            self.near.add(took);
        }
        self.slowest.fetch_max(micros(took), Relaxed);
        self.note(shape, |bucket| {
            bucket.answered += 1;
            bucket.slowest = bucket.slowest.max(took);
        });
        self.progress[client].answered.store(number, Relaxed);
    }

    /// Counts a connection that the server has closed because the request had asked for that.
    pub fn close_as_asked(&self) {
        self.asked.fetch_add(1, Relaxed);
    }

    /// Counts a connection that the server has closed after an answer that said so.
    pub fn close_as_told(&self, shape: Shape) {
        self.told.fetch_add(1, Relaxed);
        self.note(shape, |bucket| bucket.told += 1);
    }

    /// Counts a connection that the server has closed although no answer had said so.
    pub fn close_untold(&self, shape: Shape) {
        self.untold.fetch_add(1, Relaxed);
        self.note(shape, |bucket| bucket.untold += 1);
    }

    /// Counts a connect that failed. `is_first` is `true` for the first one of its request.
    pub fn refuse(&self, shape: Shape, is_first: bool) {
        self.refused.fetch_add(u64::from(is_first), Relaxed);
        self.attempts.fetch_add(1, Relaxed);
        self.note(shape, |bucket| {
            bucket.refused += u64::from(is_first);
            bucket.attempts += 1;
        });
    }

    /// Counts and describes a lost request.
    pub fn lose(&self, failure: Failure) {
        let counter = match failure.kind {
            Kind::Crossed => &self.crossed,
            Kind::Reset => &self.reset,
            Kind::Cut => &self.cut,
            Kind::Wrong => &self.wrong,
            Kind::Stalled => &self.stalled,
        };
        self.note(failure.shape, |bucket| bucket.lost += 1);
        // The description comes first, because a test may read it as soon as it sees the count.
        let mut failures = locked(&self.failures);
        if failures.len() < DESCRIBED {
            failures.push(failure);
        }
        counter.fetch_add(1, Relaxed);
    }

    /// Adds an event of this moment to the time line.
    fn note(&self, shape: Shape, what: impl FnOnce(&mut Bucket)) {
        let time = self.elapsed();
        let mut timeline = locked(&self.timeline);
        // A slow request may outlast the load by far, which must not make the time line longer.
        let is_late = shape == Shape::Slow && self.is_over();
        what(if is_late { timeline.last() } else { timeline.at(time) });
    }

    /// Returns the time since the load began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Tells the idle clients to ask once more and to end. The others go on meanwhile, so that the
    /// load stays the same up to its end.
    pub fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
        self.crowd.notify(usize::MAX);
        if self.idle == 0 {
            self.end();
        }
    }

    /// Tells the other clients to end, after the idle ones have ended.
    pub fn end(&self) {
        self.is_over.store(true, Relaxed);
        self.end.notify(usize::MAX);
    }

    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Relaxed)
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The times of answers. Each time counts in a bucket, and each bucket is a hundredth wider than
/// the one before it, so a long run needs no more memory than a short one.
#[derive(Debug)]
pub struct Latencies {
    buckets: Box<[AtomicU64]>,
    /// The longest time, in microseconds.
    longest: AtomicU64,
}

impl Latencies {
    const WIDER: f64 = 1.01;

    fn new() -> Self {
        // The last bucket begins at seven minutes.
        let buckets = (0..2000).map(|_| AtomicU64::new(0)).collect();
        Self { buckets, longest: AtomicU64::new(0) }
    }

    pub fn add(&self, took: Duration) {
        let micros = micros(took);
        let bucket = (micros.max(1) as f64).log(Self::WIDER) as usize;
        self.buckets[bucket.min(self.buckets.len() - 1)].fetch_add(1, Relaxed);
        self.longest.fetch_max(micros, Relaxed);
    }

    fn spread(&self) -> Spread {
        let counts: Vec<_> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        let answers = counts.iter().sum();
        let longest = Duration::from_micros(self.longest.load(Relaxed));
        let mut below = 0;
        let bucket = counts.iter().position(|count| {
            below += count;
            below * 100 >= answers * 99
        });
        let end = Self::WIDER.powf(bucket.unwrap_or_default() as f64 + 1.0);
        Spread { answers, p99: Duration::from_micros(end as u64).min(longest), longest }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
