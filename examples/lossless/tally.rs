//! Counts what became of the requests: [`Tally`] while the load goes on, [`Report`] behind it.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use event_listener::Event;

use super::{AGAIN, SHARE, Shape};

/// How many failures are described; all are counted.
const DESCRIBED: usize = 20;

/// How long after a restart a request still counts as near it.
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
    /// The first error of a connect that no restart explains.
    pub odd: OnceLock<String>,
    /// The idle clients listen to it: a restart wakes some of them, the end of the load all.
    pub crowd: Event,
    pub all: Latencies,
    near: Latencies,
    /// A request that began before this counts as near a restart. In microseconds since the start.
    near_until: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    /// One for each client; the idle ones stand last.
    progress: Box<[Progress]>,
    idle: usize,
    start: Instant,
    stop: AtomicBool,
}

/// How far a client is. Its requests are numbered from 1.
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
            all: Latencies::new(),
            near: Latencies::new(),
            near_until: AtomicU64::new(0),
            failures: Mutex::default(),
            progress: (0..busy + idle).map(|_| Progress::default()).collect(),
            idle,
            start: Instant::now(),
            stop: AtomicBool::new(false),
        }
    }

    /// Calls `restart`. Requests meanwhile, and those that begin within a second behind it, count
    /// as near a restart. A share of the idle clients sends now.
    pub fn restart<T>(&self, restart: impl FnOnce() -> T) -> T {
        self.near_until.store(u64::MAX, Relaxed);
        self.crowd.notify(self.idle.div_ceil(SHARE));
        let made = restart();
        self.near_until.store(micros(self.elapsed() + NEAR), Relaxed);
        made
    }

    /// Waits until every client that asks without a pause has had an answer to a request that it
    /// began after this call. Returns `true` if that came true in time.
    pub fn all_answered(&self, within: Duration) -> bool {
        let busy = &self.progress[..self.progress.len() - self.idle];
        let begun: Vec<_> = busy.iter().map(|client| client.begun.load(Relaxed)).collect();
        self.wait_for_answers(&begun, within) == 0
    }

    /// Waits until every client, idle or not, has had an answer. Returns how many have had none in
    /// time.
    pub fn wait_for_all(&self, within: Duration) -> usize {
        self.wait_for_answers(&vec![0; self.progress.len()], within)
    }

    /// Waits until each client has an answer to a later request than the one in `behind`. Returns
    /// how many have none in time.
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
            failures: self.failures().clone(),
        }
    }

    /// Returns how many requests are lost by now.
    pub fn lost(&self) -> u64 {
        self.report().lost()
    }

    /// Notes that a client has begun a request.
    pub fn begin(&self, client: usize, number: u64) {
        self.progress[client].begun.store(number, Relaxed);
    }

    /// Counts a request that was begun then, and has been answered now.
    pub fn answer(&self, client: usize, number: u64, begun: Instant) {
        let took = begun.elapsed();
        self.all.add(took);
        if micros(begun.duration_since(self.start)) < self.near_until.load(Relaxed) {
            self.near.add(took);
        }
        self.answered.fetch_add(1, Relaxed);
        self.progress[client].answered.store(number, Relaxed);
    }

    pub fn lose(&self, failure: Failure) {
        let counter = match failure.kind {
            Kind::Crossed => &self.crossed,
            Kind::Reset => &self.reset,
            Kind::Cut => &self.cut,
            Kind::Wrong => &self.wrong,
            Kind::Stalled => &self.stalled,
        };
        // The description comes first, because a test that sees the count may want to read it.
        let mut failures = self.failures();
        if failures.len() < DESCRIBED {
            failures.push(failure);
        }
        counter.fetch_add(1, Relaxed);
    }

    fn failures(&self) -> MutexGuard<'_, Vec<Failure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how long the load has been going on.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
        self.crowd.notify(usize::MAX);
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

/// How long answers took. Each is counted in a bucket, and each bucket is a hundredth wider than
/// the one before it, so that a long run needs no more memory than a short one.
#[derive(Debug)]
pub struct Latencies {
    buckets: Box<[AtomicU64]>,
    /// In microseconds.
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

/// How long so many answers took, from the first attempt to connect.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spread {
    pub answers: u64,
    /// 99 of 100 took no longer, to a hundredth.
    pub p99: Duration,
    pub longest: Duration,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p99 {:.1?}, the longest took {:.1?}", self.p99, self.longest)
    }
}

/// Requests and connections, counted by what became of them.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests that were answered whole and right.
    pub answered: u64,
    /// How long they took.
    pub all: Spread,
    /// How long those took that were under way in a restart, or began within a second behind it.
    pub near: Spread,
    /// Connections that the server closed because the request had asked for that.
    pub asked: u64,
    /// Connections that the server closed behind an answer that said so, unasked.
    pub told: u64,
    /// Kept connections that the server closed or reset, and the last answer had not said so. A
    /// client that had sent the next request by then has lost it, which is counted below, too.
    pub untold: u64,
    /// Requests whose connect failed at first: nothing was sent, and the client tried again.
    pub refused: u64,
    /// How many connects failed for them.
    pub attempts: u64,
    /// Lost: sent on a used connection, and not a byte came back. HTTP/1.1 allows this race.
    pub crossed: u64,
    /// Lost: sent on a new connection, and not a byte came back.
    pub reset: u64,
    /// Lost: an answer that began and did not end.
    pub cut: u64,
    /// Lost: a whole answer with a wrong status or body, or without a clean end though it was the
    /// last.
    pub wrong: u64,
    /// Lost: no whole answer in time.
    pub stalled: u64,
    /// The first error of a connect that is not among those that a restart explains.
    pub odd: Option<String>,
    /// The first losses.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Returns how many requests the server has lost.
    pub fn lost(&self) -> u64 {
        self.crossed + self.reset + self.cut + self.wrong + self.stalled
    }

    /// Returns how many connections the server has closed that its clients would have kept.
    pub fn closed(&self) -> u64 {
        self.told + self.untold
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let odd = self.odd.as_ref().map_or(String::new(), |error| format!("; such as: {error}"));
        let tried = format!("nothing was sent; {} connects failed{odd}", self.attempts);
        let all = format!("whole and right; {}", self.all);
        let near = format!("of those, in a restart or within 1 s behind it; {}", self.near);
        for (what, number, words) in [
            ("answered", self.answered, &*all),
            ("  near", self.near.answers, &*near),
            ("asked", self.asked, "connections closed by the server, as the request had asked"),
            ("told", self.told, "connections closed by the server, and its last answer said so"),
            ("untold", self.untold, "connections closed by the server, and no answer said so"),
            ("refused", self.refused, &*tried),
            ("crossed", self.crossed, "LOST: sent on a used connection, and not a byte came back"),
            ("reset", self.reset, "LOST: sent on a new connection, and not a byte came back"),
            ("cut", self.cut, "LOST: an answer began and did not end"),
            ("wrong", self.wrong, "LOST: another answer than the right one, or no clean end"),
            ("stalled", self.stalled, "LOST: no answer in time"),
        ] {
            // The word stands out only where something was lost.
            let words = if number == 0 { words.trim_start_matches("LOST: ") } else { words };
            writeln!(f, "{what:<10}{number:>8}  {words}")?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(f, "{failure}"))?;
        match self.lost().saturating_sub(self.failures.len() as u64) {
            0 => Ok(()),
            more => writeln!(f, "… and {more} more"),
        }
    }
}

/// How a request was lost: the fields of [`Report`] of the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Crossed,
    Reset,
    Cut,
    Wrong,
    Stalled,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crossed => "crossed",
            Self::Reset => "reset",
            Self::Cut => "cut",
            Self::Wrong => "wrong",
            Self::Stalled => "stalled",
        })
    }
}

/// A lost request.
#[derive(Debug, Clone)]
pub struct Failure {
    pub kind: Kind,
    /// The kind of request, and how the connection was used.
    pub shape: Shape,
    /// The client's end of the connection.
    pub client: String,
    /// Since the load began.
    pub at: Duration,
    /// Since the request was begun.
    pub elapsed: Duration,
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, shape, client, at, elapsed, what } = self;
        let at = at.as_secs_f64();
        write!(f, "at {at:.3} s, {kind}: {shape}, by {client}, after {elapsed:.1?}: {what}")
    }
}
