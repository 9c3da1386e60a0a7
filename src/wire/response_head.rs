//! Judges the fields of a response, and writes its head.
//!
//! Invariant: the gate writes one well-formed head whose framing is the server's, whatever the
//! handler has set (RFC 9112 section 6). The fields are ordered by name, so that equal responses
//! are equal bytes. Decides nothing about the connection, and knows of no body.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_types::other::Date;
use http_types::{Response, StatusCode};

use super::field::{is_clean, is_token};
use super::outgoing::Outgoing;

/// Returns `true` if `response` hands the connection over to another protocol (RFC 9110 section
/// 7.8).
pub(crate) fn upgrades(response: &Response) -> bool {
    response.status() == StatusCode::SwitchingProtocols && response.has_upgrade()
}

/// The field by which a head frames its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FramingField {
    /// `content-length`, in bytes.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
}

/// The facts about a response's fields that the gate needs before it sends the head.
#[derive(Default)]
pub(super) struct Fields {
    /// Set if there is a `Date`.
    date: bool,
    /// The handler's own `Content-Length`, if its value is a number.
    pub(super) declared_length: Option<u64>,
    /// Set if there is a `Trailer` field that the gate has to send.
    pub(super) trailer: bool,
    /// Set if the handler wants the connection closed.
    pub(super) close: bool,
}

impl Fields {
    /// Looks at each field once.
    ///
    /// # Errors
    ///
    /// Returns what the handler has done if the response would break the connection's framing.
    pub(super) fn of(response: &Response) -> Result<Self, String> {
        let mut fields = Self::default();
        for (name, values) in response {
            let name = name.as_str();
            if !is_token(name) || !values.iter().all(|value| is_clean(value.as_str())) {
                return Err(format!("set a header field that cannot be sent: {name:?}"));
            }
            match name {
                "date" => fields.date = true,
                "content-length" => fields.declared_length = values.as_str().trim().parse().ok(),
                "trailer" => fields.trailer = true,
                "connection" => {
                    let mut options = values.iter().flat_map(|line| line.as_str().split(','));
                    fields.close = options.any(|o| o.trim().eq_ignore_ascii_case("close"));
                }
                _ => {}
            }
        }
        if response.status().is_informational() && !upgrades(response) {
            return Err(format!("answered with {}, which is no answer", response.status()));
        }
        Ok(fields)
    }
}

/// Adds the head of `response` to `out`. If there is a `connection`, it replaces the handler's
/// field. The handler's framing is always left out.
pub(super) fn write_head(
    response: &Response,
    fields: &Fields,
    connection: Option<&str>,
    framing: Option<FramingField>,
    out: &mut Outgoing,
) {
    let mut digits = [0; DIGITS];
    let framing = match framing {
        Some(FramingField::Length(length)) => {
            Some(("content-length", decimal(length, &mut digits)))
        }
        Some(FramingField::Chunked) => Some(("transfer-encoding", &b"chunked"[..])),
        None => None,
    };
    let date = (!fields.date).then(date);
    let mut lines = Vec::with_capacity(FEW_LINES);
    lines.extend(framing);
    lines.extend(connection.map(|connection| ("connection", connection.as_bytes())));
    lines.extend(date.as_deref().map(|date| ("date", date.as_bytes())));
    for (name, values) in response {
        let name = name.as_str();
        let is_sent = match name {
            "content-length" | "transfer-encoding" => false,
            "connection" => connection.is_none(),
            "trailer" => fields.trailer,
            _ => true,
        };
        if is_sent {
            lines.extend(values.iter().map(|value| (name, value.as_str().as_bytes())));
        }
    }
    // The order of several values of one name counts (RFC 9110 section 5.3), so the sort is stable.
    lines.sort_by_key(|(name, _)| *name);

    let status = response.status();
    out.append(b"HTTP/1.1 ");
    out.append(decimal(u64::from(u16::from(status)), &mut [0; DIGITS]));
    out.append(b" ");
    out.append(status.canonical_reason().as_bytes());
    for (name, value) in lines {
        for part in [b"\r\n", name.as_bytes(), b": ", value] {
            out.append(part);
        }
    }
    out.append(b"\r\n\r\n");
}

/// Room for the lines of a common head.
const FEW_LINES: usize = 12;

/// The number of digits of the largest `u64`.
const DIGITS: usize = 20;

/// Writes `number` at the end of `digits`, and returns the digits.
fn decimal(mut number: u64, digits: &mut [u8; DIGITS]) -> &[u8] {
    let mut begin = DIGITS;
    loop {
        begin -= 1;
        digits[begin] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[begin..];
        }
    }
}

/// Returns the value of `Date` (RFC 9110 section 6.6.1), which each thread writes out once a
/// second.
fn date() -> Rc<str> {
    thread_local! {
        static NOW: RefCell<(u64, Rc<str>)> = RefCell::new((0, Rc::from("")));
    }
    let second = second(SystemTime::now());
    NOW.with_borrow_mut(|(of, date)| {
        if *of != second || date.is_empty() {
            let time = UNIX_EPOCH + Duration::from_secs(second);
            (*of, *date) = (second, Date::new(time).value().as_str().into());
        }
        date.clone()
    })
}

/// Returns the second since 1970 that a `Date` can name and that is nearest to `now`. http-types
/// panics at times before 1970 and after the year 9999.
fn second(now: SystemTime) -> u64 {
    const LAST: u64 = 253_402_300_799;
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(LAST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded::seeded;
    use async_h1::server::Encoder;
    use futures_lite::AsyncReadExt;
    use futures_lite::future::block_on;
    use http_types::{Body, Method};

    fn written(response: &Response, framing: Option<FramingField>) -> String {
        let mut out = Outgoing::default();
        let fields = Fields::of(response).unwrap();
        write_head(response, &fields, None, framing, &mut out);
        String::from_utf8(out.since(0).to_vec()).unwrap()
    }

    #[test]
    fn a_clock_that_is_wrong_panics_nobody() {
        for (now, expected) in [
            (UNIX_EPOCH - Duration::from_secs(1), "Thu, 01 Jan 1970 00:00:00 GMT"),
            (UNIX_EPOCH + Duration::from_secs(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT"),
            (UNIX_EPOCH + Duration::from_secs(1 << 40), "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            let date = Date::new(UNIX_EPOCH + Duration::from_secs(second(now)));
            assert_eq!(date.value().as_str(), expected);
        }
    }

    /// Each head is what async-h1 would have written.
    #[test]
    fn a_head_is_the_engines() {
        const NAMES: &[&str] = &["x", "accept-ranges", "Set-Cookie", "server", "VARY", "etag"];
        const STATUSES: &[u16] = &[200, 201, 206, 301, 404, 418, 500, 503];
        let mut random = seeded();
        for _ in 0..200 {
            let status = STATUSES[random.usize(..STATUSES.len())];
            let mut response = Response::new(StatusCode::try_from(status).unwrap());
            let length = random.bool().then(|| usize::MAX >> random.u32(..64));
            response.set_body(Body::from_reader(futures_lite::io::empty(), length));
            response.insert_header("date", "Sun, 06 Nov 1994 08:49:37 GMT");
            for _ in 0..random.usize(..20) {
                let name = NAMES[random.usize(..NAMES.len())];
                let value = "v".repeat(random.usize(..200)) + &random.u32(..).to_string();
                response.append_header(name, value);
            }
            let framing =
                length.map_or(FramingField::Chunked, |length| FramingField::Length(length as u64));
            let ours = written(&response, Some(framing));
            let mut theirs = String::new();
            let mut encoder = Encoder::new(response, Method::Head);
            block_on(encoder.read_to_string(&mut theirs)).unwrap();
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn a_date_is_added_and_is_now() {
        let before = Date::now().value().to_string();
        let head = written(&Response::new(200), None);
        let after = Date::now().value().to_string();
        let (_, date) = head.split_once("\r\ndate: ").unwrap();
        let date = date.split_once("\r\n").unwrap().0;
        let is_now = (before.as_str()..=after.as_str()).contains(&date);
        // Across midnight, the names of the days are not in order.
        assert!(is_now || before[..16] != after[..16], "{before} {date} {after}");
    }

    #[test]
    fn numbers() {
        for number in [0, 9, 10, 200, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; DIGITS]), number.to_string().as_bytes());
        }
    }
}
