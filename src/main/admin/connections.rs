//! `/connections`: the work and the age of each connection and guard of the public server.
//!
//! Invariant: text from a client can neither end a line nor move a terminal's cursor. Pure: the
//! library's list → text. This file keeps the library's order, which has the oldest first.

use std::fmt::Write;

use smol_graceful::{OpenWork, Stage, WorkKind};

use crate::escape;

/// Returns a table for people.
pub(crate) fn table(work: &[OpenWork]) -> String {
    let mut text = summary(work);
    let mut rows = vec![["AGE", "STAGE", "PEER", "REQUEST"].map(str::to_owned)];
    rows.extend(work.iter().map(row));
    if rows.len() == 1 {
        return text;
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (age, stage, peer) = (width(0), width(1), width(2));
    text.push('\n');
    for [a, s, p, request] in &rows {
        let line = format!("{a:>age$}  {s:<stage$}  {p:<peer$}  {request}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns a JSON object for programs. Ages are in seconds.
pub(crate) fn json(work: &[OpenWork]) -> String {
    let (mut connections, mut guards) = (String::new(), String::new());
    for work in work {
        let age = work.age.as_secs_f64();
        match &work.kind {
            WorkKind::Connection { peer, stage, method, target } => {
                separate(&mut connections);
                let _ = write!(
                    connections,
                    r#"{{"peer":"{peer}","stage":"{}","method":"#,
                    word(*stage)
                );
                escape::json(&mut connections, method);
                connections.push_str(r#","target":"#);
                escape::json(&mut connections, target);
                let _ = write!(connections, r#","age":{age:.3}}}"#);
            }
            WorkKind::Guard(place) => {
                separate(&mut guards);
                guards.push_str(r#"{"place":"#);
                escape::json(&mut guards, &place.to_string());
                let _ = write!(guards, r#","age":{age:.3}}}"#);
            }
            _ => {}
        }
    }
    format!("{{\"connections\":[{connections}],\"guards\":[{guards}]}}\n")
}

fn separate(list: &mut String) {
    if !list.is_empty() {
        list.push(',');
    }
}

fn row(work: &OpenWork) -> [String; 4] {
    let age = format!("{:.1} s", work.age.as_secs_f64());
    match &work.kind {
        WorkKind::Connection { peer, stage, method, target } => {
            let mut request = String::new();
            escape::plain(&mut request, method);
            if !target.is_empty() {
                request.push(' ');
                escape::plain(&mut request, target);
            }
            [age, stage.to_string(), peer.to_string(), request]
        }
        WorkKind::Guard(place) => [age, "guard".into(), place.to_string(), String::new()],
        _ => [age, "other".into(), String::new(), String::new()],
    }
}

fn summary(work: &[OpenWork]) -> String {
    let Counts { connections, requests, guards } = Counts::of(work);
    let count =
        |number: usize, thing| format!("{number} {thing}{}", if number == 1 { "" } else { "s" });
    let mut text = format!("{}, {}", count(connections, "connection"), count(requests, "request"));
    if guards > 0 {
        let _ = write!(text, ", {}", count(guards, "guard"));
    }
    text.push('\n');
    text
}

/// The number of holders of each kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) connections: usize,
    /// Connections with a request that has begun and has no whole answer yet.
    pub(crate) requests: usize,
    pub(crate) guards: usize,
}

impl Counts {
    pub(crate) fn of(work: &[OpenWork]) -> Self {
        let mut counts = Self::default();
        for work in work {
            match &work.kind {
                WorkKind::Connection { stage, .. } => {
                    counts.connections += 1;
                    counts.requests += usize::from(is_request(*stage));
                }
                WorkKind::Guard(_) => counts.guards += 1,
                _ => {}
            }
        }
        counts
    }
}

/// Returns `true` if a client has begun a request and does not have the whole answer.
fn is_request(stage: Stage) -> bool {
    use Stage::{Body, Handler, Head, Response, Upgraded, Writing};
    matches!(stage, Head | Handler | Body | Response | Writing | Upgraded)
}

/// Returns a word for programs, which stays the same if the library's words for people change.
pub(crate) fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Accepted => "accepted",
        Stage::Idle => "idle",
        Stage::Head => "head",
        Stage::Handler => "handler",
        Stage::Body => "body",
        Stage::Response => "response",
        Stage::Writing => "writing",
        Stage::Closing => "closing",
        Stage::Upgraded => "upgraded",
        Stage::Discarding => "discarding",
        Stage::Handshake => "handshake",
        Stage::Delivering => "delivering",
        Stage::Leaving => "leaving",
        _ => "other",
    }
}
