//! The course of a load: what happened in each tenth of a second, and when the restarts were.
//!
//! A [`Timeline`] has a bounded number of buckets. If a load lasts longer than they reach, each two
//! neighbours become one bucket of twice the width. So memory depends neither on the number of
//! requests nor on the time that the load lasts. Nothing here reads a clock.

use std::time::Duration;

/// The width of a bucket at the beginning.
pub const WIDTH: Duration = Duration::from_millis(100);

/// The most buckets.
const MOST: usize = 6000;

/// Everything that happened in one stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Requests that were answered whole and right.
    pub answered: u64,
    /// The longest that one of them took.
    pub slowest: Duration,
    /// Connections that the server closed behind an answer that said so, unasked.
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
    /// Returns what happened in both.
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

    /// Returns how many connections the server closed that their clients would have kept.
    pub fn closed(&self) -> u64 {
        self.told + self.untold
    }
}

/// When a restart was, since the load began.
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

    /// Returns the bucket of a time, for what happens then.
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

    /// Returns the last bucket, for what happens when the load is over.
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

    /// Makes one bucket of each two.
    fn widen(&mut self) {
        self.width *= 2;
        self.buckets = merged(&self.buckets, 2);
    }

    /// Returns how long a bucket is.
    pub fn width(&self) -> Duration {
        self.width
    }

    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    pub fn restarts(&self) -> &[Band] {
        &self.restarts
    }

    /// Returns at most `most` buckets, and how long each is.
    pub fn in_at_most(&self, most: usize) -> (Vec<Bucket>, Duration) {
        let times = self.buckets.len().div_ceil(most).max(1);
        (merged(&self.buckets, times), self.width * u32::try_from(times).unwrap_or(u32::MAX))
    }
}

/// Makes one bucket of each `times` neighbours.
fn merged(buckets: &[Bucket], times: usize) -> Vec<Bucket> {
    let sum = |some: &[Bucket]| some.iter().copied().fold(Bucket::default(), Bucket::and);
    buckets.chunks(times).map(sum).collect()
}
