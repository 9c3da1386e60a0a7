//! The line of an exchange in an access log, in the combined format or as JSON.
//!
//! Invariant: for any bytes from a client, a line is one line of printable text, and its facts are
//! true. Pure: facts → text. This file does not know the origin of the facts or the place of the
//! line.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use smol_graceful::{Address, ExchangeEnding, Peer, Version};

use super::moment::Moment;
use crate::escape::{json, quoted};

/// The format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// The `combined` format of Apache and nginx.
    Combined,
    /// One JSON object in each line.
    Json,
}

/// The facts of an exchange in a line.
#[derive(Debug, Clone)]
pub(crate) struct Facts<'a> {
    pub(crate) peer: Peer,
    pub(crate) listener: Option<&'a Address>,
    pub(crate) is_https: bool,
    /// The method, or an empty text if it has not arrived.
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) version: Option<Version>,
    pub(crate) host: Option<&'a str>,
    pub(crate) referer: Option<&'a str>,
    pub(crate) user_agent: Option<&'a str>,
    pub(crate) forwarded_for: Option<&'a str>,
    /// The status, or `None` if no response has begun.
    pub(crate) status: Option<u16>,
    /// The bytes of the request, head and body.
    pub(crate) received: u64,
    /// The bytes of the response, head and body.
    pub(crate) sent: u64,
    pub(crate) body_sent: u64,
    pub(crate) began: SystemTime,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) took: Duration,
    pub(crate) ending: ExchangeEnding,
}

impl Format {
    /// Returns the line of an exchange, with its line end.
    pub(crate) fn line(self, facts: &Facts<'_>) -> String {
        let mut line = String::with_capacity(512);
        match self {
            Self::Combined => combined(&mut line, facts),
            Self::Json => object(&mut line, facts),
        }
        line.push('\n');
        line
    }
}

/// Adds `HOST - - [TIME] "REQUEST" STATUS BYTES "REFERER" "AGENT"`. A missing value is `-`, and a
/// status that was never sent is 000, as in nginx.
fn combined(line: &mut String, facts: &Facts<'_>) {
    match facts.peer {
        Peer::Ip(addr) => ip(line, addr.ip()),
        Peer::Unix => line.push_str("unix:"),
        _ => line.push('-'),
    }
    line.push_str(" - - [");
    Moment::from(facts.began).combined(line);
    line.push_str("] ");
    quoted(line, &request_line(facts));
    let status = facts.status.unwrap_or(0);
    let _ = write!(line, " {status:03} ");
    number(line, facts.body_sent);
    line.push(' ');
    quoted(line, facts.referer.unwrap_or("-"));
    line.push(' ');
    quoted(line, facts.user_agent.unwrap_or("-"));
}

/// Returns the first line of the request, as far as it has arrived.
fn request_line(facts: &Facts<'_>) -> String {
    let mut text = String::with_capacity(facts.method.len() + facts.target.len() + 10);
    if facts.method.is_empty() {
        return "-".into();
    }
    text.push_str(facts.method);
    if !facts.target.is_empty() {
        text.push(' ');
        text.push_str(facts.target);
    }
    if let Some(version) = &facts.version {
        text.push(' ');
        text.push_str(version.as_ref());
    }
    text
}

/// Adds the exchange as a JSON object. Times are in seconds, and a missing value is `null`.
///
/// Almost nothing here uses `write!`, which would cost more than all the rest.
fn object(line: &mut String, facts: &Facts<'_>) {
    line.push_str(r#"{"time":""#);
    Moment::from(facts.began).rfc3339(line);
    line.push_str(r#"","peer":""#);
    match facts.peer {
        Peer::Ip(addr) => socket(line, addr),
        peer => drop(write!(line, "{peer}")),
    }
    line.push_str(r#"","listener":"#);
    match facts.listener {
        Some(Address::Tcp(addr)) => {
            line.push('"');
            socket(line, *addr);
            line.push('"');
        }
        listener => optional(line, listener.map(Address::to_string).as_deref()),
    }
    line.push_str(r#","https":"#);
    line.push_str(if facts.is_https { "true" } else { "false" });
    for (key, value) in [
        (r#","method":"#, Some(facts.method).filter(|text| !text.is_empty())),
        (r#","target":"#, Some(facts.target).filter(|text| !text.is_empty())),
        (r#","version":"#, facts.version.as_ref().map(Version::as_ref)),
        (r#","host":"#, facts.host),
        (r#","referer":"#, facts.referer),
        (r#","user_agent":"#, facts.user_agent),
        (r#","forwarded_for":"#, facts.forwarded_for),
    ] {
        line.push_str(key);
        optional(line, value);
    }
    for (key, value) in [
        (r#","status":"#, facts.status.map(u64::from)),
        (r#","received":"#, Some(facts.received)),
        (r#","sent":"#, Some(facts.sent)),
        (r#","body_sent":"#, Some(facts.body_sent)),
    ] {
        line.push_str(key);
        match value {
            Some(value) => number(line, value),
            None => line.push_str("null"),
        }
    }
    line.push_str(r#","first_byte":"#);
    match facts.first_byte {
        Some(time) => seconds(line, time),
        None => line.push_str("null"),
    }
    line.push_str(r#","took":"#);
    seconds(line, facts.took);
    line.push_str(r#","ending":""#);
    line.push_str(word(facts.ending));
    line.push_str(r#""}"#);
}

fn optional(line: &mut String, text: Option<&str>) {
    match text {
        Some(text) => json(line, text),
        None => line.push_str("null"),
    }
}

/// Adds an address in the form of its `Display`.
fn socket(line: &mut String, addr: SocketAddr) {
    match addr {
        SocketAddr::V4(addr) => {
            ip(line, (*addr.ip()).into());
            line.push(':');
            number(line, addr.port().into());
        }
        // The address may have a zone.
        SocketAddr::V6(addr) => drop(write!(line, "{addr}")),
    }
}

/// Adds an address in the form of its `Display`.
fn ip(line: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (at, part) in ip.octets().into_iter().enumerate() {
                if at > 0 {
                    line.push('.');
                }
                number(line, part.into());
            }
        }
        IpAddr::V6(ip) => drop(write!(line, "{ip}")),
    }
}

/// Adds a time in seconds, with microseconds, and without floats.
fn seconds(line: &mut String, time: Duration) {
    number(line, time.as_secs());
    line.push('.');
    // The first digit, which is left out, keeps the zeros in front.
    line.push_str(&itoa::Buffer::new().format(1_000_000 + time.subsec_micros())[1..]);
}

fn number(line: &mut String, number: u64) {
    line.push_str(itoa::Buffer::new().format(number));
}

/// Returns a word for programs, which stays the same if the library's words for people change.
pub(crate) fn word(ending: ExchangeEnding) -> &'static str {
    match ending {
        ExchangeEnding::Answered => "answered",
        ExchangeEnding::Refused => "refused",
        ExchangeEnding::Panicked => "panicked",
        ExchangeEnding::Cut => "cut",
        ExchangeEnding::Reset => "reset",
        ExchangeEnding::Upgraded => "upgraded",
        ExchangeEnding::HandedOver => "handed_over",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn facts() -> Facts<'static> {
        Facts {
            peer: Peer::from(([127, 0, 0, 1], 9)),
            listener: Some(&Address::Localhost(8082)),
            is_https: false,
            method: "GET",
            target: "/a?b=c",
            version: Some(Version::Http1_1),
            host: Some("localhost:8082"),
            referer: Some("http://localhost/"),
            user_agent: Some("curl/8.0"),
            forwarded_for: None,
            status: Some(200),
            received: 80,
            sent: 120,
            body_sent: 4,
            began: UNIX_EPOCH + Duration::from_secs(1_795_836_425),
            first_byte: Some(Duration::from_micros(1_500)),
            took: Duration::from_millis(2_000),
            ending: ExchangeEnding::Answered,
        }
    }

    #[test]
    fn the_combined_format() {
        let whole = facts();
        let nothing = Facts {
            method: "",
            target: "",
            version: None,
            referer: None,
            user_agent: None,
            status: None,
            body_sent: 0,
            ..facts()
        };
        let hostile =
            Facts { target: "/\"\n1.2.3.4 - - [", user_agent: Some("\x1b[2J\" \\"), ..facts() };
        let unix = Facts { peer: Peer::Unix, version: Some(Version::Http1_0), ..facts() };
        let begin = "127.0.0.1 - - [28/Nov/2026:03:27:05 +0000]";
        for (facts, line) in [
            (whole, format!("{begin} \"GET /a?b=c HTTP/1.1\" 200 4 \"http://localhost/\" \"curl/8.0\"\n")),
            (nothing, format!("{begin} \"-\" 000 0 \"-\" \"-\"\n")),
            (
                hostile,
                format!("{begin} \"GET /\\x22\\x0A1.2.3.4 - - [ HTTP/1.1\" 200 4 \"http://localhost/\" \"\\x1B[2J\\x22 \\x5C\"\n"),
            ),
            (
                unix,
                "unix: - - [28/Nov/2026:03:27:05 +0000] \"GET /a?b=c HTTP/1.0\" 200 4 \"http://localhost/\" \"curl/8.0\"\n".into(),
            ),
        ] {
            assert_eq!(Format::Combined.line(&facts), line);
        }
    }

    #[test]
    fn json_has_every_fact() {
        assert_eq!(
            Format::Json.line(&facts()),
            concat!(
                r#"{"time":"2026-11-28T03:27:05.000Z","peer":"127.0.0.1:9","#,
                r#""listener":"localhost:8082","https":false,"method":"GET","target":"/a?b=c","#,
                r#""version":"HTTP/1.1","host":"localhost:8082","referer":"http://localhost/","#,
                r#""user_agent":"curl/8.0","forwarded_for":null,"status":200,"received":80,"sent":120,"#,
                r#""body_sent":4,"first_byte":0.001500,"took":2.000000,"ending":"answered"}"#,
                "\n"
            )
        );
        let nothing = Facts {
            listener: None,
            method: "",
            target: "",
            version: None,
            status: None,
            first_byte: None,
            ending: ExchangeEnding::Cut,
            ..facts()
        };
        let line = Format::Json.line(&nothing);
        for part in [
            r#""listener":null,"https":false,"method":null,"target":null,"version":null,"#,
            r#""status":null,"received":"#,
            r#""first_byte":null,"took":2.000000,"ending":"cut"}"#,
        ] {
            assert!(line.contains(part), "{line}");
        }
    }
}
