//! The course of a load: the events in each tenth of a second, and the times of the restarts.
//!
//! A [`Timeline`] has a bounded number of buckets. If a load lasts longer than these, two
//! neighbours become one bucket of twice the width. So memory depends neither on the number of
//! requests nor on the time that the load lasts. Nothing here reads a clock.

use std::time::Duration;

/// The width of a bucket at the beginning.
pub const WIDTH: Duration = Duration::from_millis(100);

/// The largest number of buckets.
const MOST: usize = 6000;

/// The events in one stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Requests that were answered whole and right.
    pub answered: u64,
    /// The longest time of one of these requests.
    pub slowest: Duration,
    /// Connections that the server closed by itself after an answer that said so.
    pub told: u64,
    /// Connections that the server closed although no answer had said so.
    pub untold: u64,
    /// Requests whose first connect failed.
    pub refused: u64,
    /// Connects that failed.
    pub attempts: u64,
    /// Requests that were lost.
    pub lost: u64,
}

impl Bucket {
    /// Returns the events of both buckets.
    pub fn and(self, other: Self) -> Self {
        Self {
            answered: self.answered + other.answered,
            slowest: self.slowest.max(other.slowest),
            told: self.told + other.told,
            untold: self.untold + other.untold,
            refused: self.refused + other.refused,
            attempts: self.attempts + other.attempts,
            lost: self.lost + other.lost,
        }
    }

    /// Returns the number of connections that the server closed although their clients would have
    /// kept them.
    pub fn closed(&self) -> u64 {
        self.told + self.untold
    }
}

/// The beginning and the end of a restart, from the beginning of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Band {
    pub begun: Duration,
    pub ended: Duration,
}

/// The course of a load.
#[derive(Debug, Clone)]
pub struct Timeline {
    width: Duration,
    buckets: Vec<Bucket>,
    restarts: Vec<Band>,
}

impl Timeline {
    pub fn new() -> Self {
        Self { width: WIDTH, buckets: Vec::new(), restarts: Vec::new() }
    }

    /// Returns the bucket for events at `time`.
    pub fn at(&mut self, time: Duration) -> &mut Bucket {
        let index = loop {
            let index = time.as_micros() / self.width.as_micros();
            match usize::try_from(index) {
                Ok(index) if index < MOST => break index,
                _ => self.widen(),
            }
        };
        if index >= self.buckets.len() {
            self.buckets.resize(index + 1, Bucket::default());
        }
        &mut self.buckets[index]
    }

    /// Returns the last bucket, for events after the end of the load.
    pub fn last(&mut self) -> &mut Bucket {
        if self.buckets.is_empty() {
            self.buckets.push(Bucket::default());
        }
        let last = self.buckets.len() - 1;
        &mut self.buckets[last]
    }

    pub fn add_restart(&mut self, restart: Band) {
        self.restarts.push(restart);
    }

    /// Merges each two neighbours into one bucket.
    fn widen(&mut self) {
        self.width *= 2;
        self.buckets = merged(&self.buckets, 2);
    }

    /// Returns the width of a bucket.
    pub fn width(&self) -> Duration {
        self.width
    }

    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    pub fn restarts(&self) -> &[Band] {
        &self.restarts
    }

    /// Returns at most `most` buckets, and their width.
    pub fn in_at_most(&self, most: usize) -> (Vec<Bucket>, Duration) {
        let times = self.buckets.len().div_ceil(most).max(1);
        (merged(&self.buckets, times), self.width * u32::try_from(times).unwrap_or(u32::MAX))
    }
}

/// Merges each `times` neighbours into one bucket.
fn merged(buckets: &[Bucket], times: usize) -> Vec<Bucket> {
    let sum = |some: &[Bucket]| some.iter().copied().fold(Bucket::default(), Bucket::and);
    buckets.chunks(times).map(sum).collect()
}
