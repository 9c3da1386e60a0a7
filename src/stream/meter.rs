//! [`Meter`]: counts the bytes that go through the stream under a wrapper such as TLS.
//!
//! Invariant: the meter sees bytes where they come from the client, because a wrapper may hold back
//! a part of them. So the server knows whether data has arrived, and whether data moves, before the
//! wrapper returns any. The meter knows only one thing about TLS: where records end (RFC 8446
//! section 5.1).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lock::lock;

/// Counts the bytes that a wrapper has read and written, and follows the TLS records among them.
///
/// Only the connection's task reads and writes a meter, one part at a time, so the order of the
/// counts does not matter, and nobody waits for the lock.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    received: AtomicU64,
    sent: AtomicU64,
    records: Mutex<Records>,
}

impl Meter {
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns `true` if bytes have come that do not make a byte of content yet. If the bytes are
    /// not TLS, all those behind the first `shown` count, which the wrapper had received when it
    /// last returned data.
    pub(crate) fn has_begun(&self, shown: u64) -> bool {
        match *lock(&self.records) {
            Records::Header(_, 0) => false,
            Records::Header(..) | Records::Content(_) => true,
            Records::Other => self.received() > shown,
        }
    }

    /// Counts bytes that the wrapper has read.
    pub(crate) fn receive(&self, bytes: &[u8]) {
        lock(&self.records).read(bytes);
        self.received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    /// Counts bytes that the wrapper has written.
    pub(crate) fn send(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Follows TLS records through a stream, from its first byte on.
#[derive(Debug, PartialEq)]
enum Records {
    /// This many bytes of a record's header have come.
    Header([u8; HEADER], usize),
    /// This many bytes of a record's content, at least 1, are still to come.
    Content(u16),
    /// These bytes are not TLS.
    Other,
}

/// The length of a record's header: its type, two bytes of version, two bytes of length.
const HEADER: usize = 5;

/// The longest content of a record that an implementation accepts. RFC 8446 section 5.2 allows 256
/// bytes more than 2^14, and RFC 5246 allows 2048 more.
const LONGEST: u16 = (1 << 14) + 2048;

impl Default for Records {
    fn default() -> Self {
        Self::Header([0; HEADER], 0)
    }
}

impl Records {
    fn read(&mut self, mut bytes: &[u8]) {
        // TLS may begin behind other bytes, such as the line of a proxy, and then begins in a read
        // of its own.
        if matches!((&self, bytes), (Self::Other, [22, 3, 0..=4, high, _, ..]) if *high < 64) {
            *self = Self::default();
        }
        while let Some((&first, behind)) = bytes.split_first() {
            match self {
                Self::Header(header, have) => {
                    header[*have] = first;
                    *have += 1;
                    bytes = behind;
                    let length = u16::from_be_bytes([header[3], header[4]]);
                    match (*header, *have) {
                        // Types are change of cipher, alert, handshake, application data and
                        // heartbeat. The version is 3.x.
                        ([20..=24, ..], 1) | ([_, 3, ..], 2) | (_, 3..HEADER) => {}
                        (_, HEADER) if length == 0 => *self = Self::default(),
                        (_, HEADER) if length <= LONGEST => *self = Self::Content(length),
                        _ => *self = Self::Other,
                    }
                }
                Self::Content(left) => {
                    let n = bytes.len().min(usize::from(*left));
                    bytes = &bytes[n..];
                    *left -= n as u16;
                    if *left == 0 {
                        *self = Self::default();
                    }
                }
                Self::Other => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the records at the end of `bytes`, which must not depend on how they are cut.
    fn records(bytes: &[u8]) -> Records {
        let mut whole = Records::default();
        whole.read(bytes);
        for cut in 0..=bytes.len() {
            let mut records = Records::default();
            records.read(&bytes[..cut]);
            records.read(&bytes[cut..]);
            assert_eq!(records, whole, "{bytes:?} cut at {cut}");
        }
        whole
    }

    #[test]
    fn records_are_followed() {
        let record = |content: usize| {
            let length = u16::try_from(content).unwrap().to_be_bytes();
            [&[23, 3, 3], &length[..], &vec![0xff; content]].concat()
        };
        assert_eq!(records(b""), Records::default());
        assert_eq!(records(&[record(1), record(0), record(300)].concat()), Records::default());
        assert_eq!(records(&record(16_384)), Records::default());
        for n in 1..305 {
            let inside = records(&record(300)[..n]);
            match n {
                ..HEADER => assert!(matches!(inside, Records::Header(_, have) if have == n), "{n}"),
                _ => assert_eq!(inside, Records::Content((305 - n) as u16)),
            }
            assert_eq!(records(&[&record(5)[..], &record(300)[..n]].concat()), inside);
        }
    }

    #[test]
    fn what_is_no_tls_is_not_followed() {
        for bytes in [
            &b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"[..],
            b"\r\n\r\n\0\r\nQUIT\n",
            b"GET / HTTP/1.1\r\n",
            &[22, 2],
            &[25],
            &[23, 3, 3, 0xff, 0xff, 0],
        ] {
            assert_eq!(records(bytes), Records::Other, "{bytes:?}");
        }
    }

    #[test]
    fn tls_may_begin_behind_something_else() {
        let mut records = Records::default();
        for byte in b"PROXY UNKNOWN\r\n" {
            records.read(&[*byte]);
        }
        assert_eq!(records, Records::Other);
        records.read(&[22, 3, 1, 0, 2, 1]);
        assert_eq!(records, Records::Content(1));
        records.read(&[1]);
        assert_eq!(records, Records::default());
    }

    #[test]
    fn a_meter_counts() {
        let meter = Meter::default();
        meter.receive(&[23, 3, 3, 0]);
        meter.send(7);
        assert_eq!((meter.received(), meter.sent(), meter.has_begun(4)), (4, 7, true));
        meter.receive(&[1, 0]);
        assert_eq!((meter.received(), meter.has_begun(4)), (6, false));
    }

    #[test]
    fn bytes_that_are_not_tls_have_begun_until_the_wrapper_shows_them() {
        let meter = Meter::default();
        meter.receive(b"GET");
        assert!(meter.has_begun(0) && !meter.has_begun(3));
    }
}
