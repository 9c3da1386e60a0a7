//! The result of a load: [`Report`], in numbers and as the lines that a person reads.
//!
//! Each request is in exactly one of the rows `answered`, `crossed`, `reset`, `cut`, `wrong` and
//! `stalled`, and each connection that the server has closed is in at most one of `asked`, `told`
//! and `untold`. Only the first losses are described, but all are counted.

use std::fmt;
use std::time::Duration;

use super::Shape;

/// The times of answers, each from the first attempt to connect.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spread {
    pub answers: u64,
    /// The 99th percentile, with an error of one hundredth.
    pub p99: Duration,
    pub longest: Duration,
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p99 {:.1?}, the longest took {:.1?}", self.p99, self.longest)
    }
}

/// The counts of requests and connections, by their results.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests that were answered whole and right.
    pub answered: u64,
    /// The times of these answers.
    pub all: Spread,
    /// The times of answers to requests that were under way in a restart, or began within a second
    /// after it.
    pub near: Spread,
    /// Connections that the server closed because the request had asked for that.
    pub asked: u64,
    /// Connections that the server closed by itself after an answer that said so.
    pub told: u64,
    /// Kept connections that the server closed or reset, although the last answer had not said so.
    /// If the client had sent the next request already, that request is lost, and counts below,
    /// too.
    pub untold: u64,
    /// Requests whose first connect failed. Nothing was sent, and the client tried again.
    pub refused: u64,
    /// The number of connects that failed for these requests.
    pub attempts: u64,
    /// Lost: the request was sent on a used connection, and not a byte came back. HTTP/1.1 allows
    /// this race.
    pub crossed: u64,
    /// Lost: the request was sent on a new connection, and not a byte came back.
    pub reset: u64,
    /// Lost: the answer began and did not end.
    pub cut: u64,
    /// Lost: the whole answer had a wrong status or body, or was the last one and had no clean end.
    pub wrong: u64,
    /// Lost: no whole answer came in time.
    pub stalled: u64,
    /// The first error of a connect that a restart does not explain.
    pub odd: Option<String>,
    /// The descriptions of the first losses.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Returns the number of requests that the server has lost.
    pub fn lost(&self) -> u64 {
        self.crossed + self.reset + self.cut + self.wrong + self.stalled
    }

    /// Returns the number of connections that the server has closed although its clients would have
    /// kept them.
    pub fn closed(&self) -> u64 {
        self.told + self.untold
    }
}

/// A number of a report, with its name and its words.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: &'static str,
    pub number: u64,
    pub words: String,
    /// `true` if the number should be 0.
    pub is_fault: bool,
}

impl Report {
    /// Returns all numbers, in the order in which a person reads them.
    pub fn rows(&self) -> Vec<Row> {
        let odd = self.odd.as_ref().map_or(String::new(), |error| format!("; such as: {error}"));
        let tried = format!("nothing was sent; {} connects failed{odd}", self.attempts);
        let all = format!("whole and right; {}", self.all);
        let near = format!("of those, in a restart or within 1 s after it; {}", self.near);
        let rows = [
            ("answered", self.answered, &*all),
            ("near", self.near.answers, &*near),
            ("asked", self.asked, "connections closed by the server, as the request had asked"),
            ("told", self.told, "connections closed by the server, and its last answer said so"),
            ("untold", self.untold, "connections closed by the server, and no answer said so"),
            ("refused", self.refused, &*tried),
            ("crossed", self.crossed, "LOST: sent on a used connection, and not a byte came back"),
            ("reset", self.reset, "LOST: sent on a new connection, and not a byte came back"),
            ("cut", self.cut, "LOST: an answer began and did not end"),
            ("wrong", self.wrong, "LOST: another answer than the right one, or no clean end"),
            ("stalled", self.stalled, "LOST: no answer in time"),
        ];
        rows.into_iter()
            .map(|(name, number, words)| {
                // `LOST` appears only if something was lost.
                let words = if number == 0 { words.trim_start_matches("LOST: ") } else { words };
                let is_fault = !matches!(name, "answered" | "near" | "asked");
                Row { name, number, words: words.to_owned(), is_fault }
            })
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row { name, number, words, .. } in self.rows() {
            let name = if name == "near" { "  near" } else { name };
            writeln!(f, "{name:<10}{number:>8}  {words}")?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(f, "{failure}"))?;
        match self.lost().saturating_sub(self.failures.len() as u64) {
            0 => Ok(()),
            more => writeln!(f, "… and {more} more"),
        }
    }
}

/// The kind of a loss. The fields of [`Report`] with the same names count them.
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
    /// The kind of the request, and the use of its connection.
    pub shape: Shape,
    /// The client's end of the connection.
    pub client: String,
    /// The time since the load began.
    pub at: Duration,
    /// The time since the request began.
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
