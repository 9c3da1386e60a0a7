//! `/metrics`: the counts of the public server's observer, in Prometheus' text format.
//!
//! Invariant: clients cannot make the number of series grow without bound. A method that neither
//! RFC 9110 nor RFC 5789 names counts as `other`, and no label has text from a client. This file
//! does not know the reader.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use smol_graceful::{Exchange, ExchangeEnding, OpenWork, WorkKind};

use super::connections::{self, Counts};
use crate::access_log::word;

pub(crate) use prometheus_text::CONTENT_TYPE;

/// The upper ends of the buckets of a duration, in seconds.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// The counts of the public server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Exchanged, Counter>,
    duration: Histogram,
    received: Counter,
    sent: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Exchanged {
    method: &'static str,
    /// The status, or 0 if no response has begun.
    status: u16,
    ending: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InStage {
    stage: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("smol_graceful");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version of smol-graceful", version);
        let requests = Family::default();
        registry.register(
            "requests",
            "Exchanges that are over, by how they ended; status 0 if no response had begun",
            requests.clone(),
        );
        let duration = Histogram::new(BUCKETS);
        registry.register_with_unit(
            "request_duration",
            "The time from the first byte of a request to the end of its exchange",
            Unit::Seconds,
            duration.clone(),
        );
        let mut bytes = |name, help| {
            let counter = Counter::default();
            registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
            counter
        };
        let received = bytes("received", "Bytes of requests, heads and bodies");
        let sent = bytes("sent", "Bytes of responses, heads and bodies");
        Self { registry, requests, duration, received, sent }
    }
}

impl Metrics {
    /// Counts an exchange after its end.
    pub(crate) fn count(&self, exchange: &Exchange) {
        let status = exchange.status().map_or(0, u16::from);
        self.count_as(exchange.method(), status, exchange.ending());
        self.duration.observe(exchange.took().as_secs_f64());
        self.received.inc_by(exchange.received());
        self.sent.inc_by(exchange.sent());
    }

    fn count_as(&self, method: &str, status: u16, ending: ExchangeEnding) {
        let labels = Exchanged { method: class(method), status, ending: word(ending) };
        self.requests.get_or_create(&labels).inc();
    }

    /// Returns all counts, and the current numbers of connections, requests and guards.
    ///
    /// # Errors
    ///
    /// Returns an error only in theory, because a write to text in memory does not fail.
    pub(crate) fn encode(&self, work: &[OpenWork]) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(4096);
        prometheus_text::encode(&mut text, &self.registry)?;
        // This registry is made for this answer, so that two answers at the same time do not mix.
        prometheus_text::encode(&mut text, &at_this_moment(work))?;
        Ok(text)
    }
}

/// Returns the current numbers, which are not kept.
fn at_this_moment(work: &[OpenWork]) -> Registry {
    let mut registry = Registry::with_prefix("smol_graceful");
    let connections = Family::<InStage, Gauge>::default();
    for work in work {
        if let WorkKind::Connection { stage, .. } = &work.kind {
            connections.get_or_create(&InStage { stage: connections::word(*stage) }).inc();
        }
    }
    registry.register("connections", "Open connections, by what they do", connections);
    let counts = Counts::of(work);
    let mut gauge = |name, help, number: usize| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    gauge("requests_in_flight", "Requests that have begun and are not answered", counts.requests);
    gauge("guards", "Work of the program that the drain waits for", counts.guards);
    registry
}

/// Returns the name of a method that RFC 9110 or RFC 5789 has, or `other`.
fn class(method: &str) -> &'static str {
    const NAMES: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    match NAMES.into_iter().find(|name| *name == method) {
        Some(name) => name,
        None if method.is_empty() => "none",
        None => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_what_was_counted() {
        let metrics = Metrics::default();
        for method in ["GET", "GET", "", "get", "BREW", "DROP TABLE"] {
            metrics.count_as(method, 200, ExchangeEnding::Answered);
        }
        metrics.count_as("POST", 0, ExchangeEnding::Cut);
        metrics.duration.observe(0.002);
        metrics.received.inc_by(80);
        let text = metrics.encode(&[]).unwrap();
        for line in [
            "# TYPE smol_graceful_requests_total counter",
            r#"smol_graceful_requests_total{method="GET",status="200",ending="answered"} 2"#,
            r#"smol_graceful_requests_total{method="none",status="200",ending="answered"} 1"#,
            r#"smol_graceful_requests_total{method="other",status="200",ending="answered"} 3"#,
            r#"smol_graceful_requests_total{method="POST",status="0",ending="cut"} 1"#,
            "# TYPE smol_graceful_request_duration_seconds histogram",
            r#"smol_graceful_request_duration_seconds_bucket{le="0.001"} 0"#,
            r#"smol_graceful_request_duration_seconds_bucket{le="0.0025"} 1"#,
            "smol_graceful_received_bytes_total 80",
            "smol_graceful_requests_in_flight 0",
            concat!("smol_graceful_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("DROP"), "{text}");
    }
}
