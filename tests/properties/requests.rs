//! Compares the request that a handler gets with the one that async-h1 makes of the same head.
//! Method, URL, fields and the body's length are equal, over generated heads. If the two differ by
//! design, a comment has the reason.
//!
//! The test uses heads that both accept. `differential.rs` tests which heads the gate accepts.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::task::Poll;

use async_h1::server::decode;
use futures_lite::future::block_on;
use http_types::{Request, Version};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::differential::{heads, over};
use super::head::{self, Head};
use super::incoming::Incoming;
use super::properties::{BOUNDS, Pieces};
use super::request;
use super::shared::Wire;
use crate::stop::seat::Seat;
use crate::stop::shutdown::Shutdown;
use crate::stream::connection::Connection;
use crate::stream::transport::Peer;

/// The parts of a request that a handler can read.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    method: String,
    /// All parts of the URL, and not only its text.
    url: String,
    fields: BTreeMap<String, Vec<String>>,
    length: Option<usize>,
}

impl Seen {
    fn of(request: &Request) -> Self {
        let values = |name: &str| request.header(name).unwrap().iter().map(|v| v.to_string());
        let names = request.header_names().map(|name| name.as_str());
        Self {
            method: request.method().to_string(),
            url: format!("{:?}", request.url()),
            fields: names.map(|name| (name.to_owned(), values(name).collect())).collect(),
            length: request.len(),
        }
    }
}

/// Makes the request as a gate does.
fn by_gate(head: &Head, bytes: &[u8]) -> Option<Request> {
    let mut incoming = Incoming::behind(0);
    let mut left = bytes;
    while !left.is_empty() {
        let read = incoming.fill(|room| {
            let (now, later) = left.split_at(left.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            left = later;
            Poll::Ready(Ok(now.len()))
        });
        assert!(matches!(read, Poll::Ready(Ok(1..))));
    }
    incoming.begin_message(head, u64::MAX);
    let (_client, connection) = Connection::pair();
    let seat = Seat::new(Peer::Unknown, Shutdown::new().orders());
    let wire = Wire::new(connection.into_transport(None, None), incoming, seat);
    request::request(head, &wire, "http").ok()
}

/// Makes the request as async-h1 does.
fn by_engine(bytes: &[u8]) -> Option<Request> {
    let decoded = block_on(decode(Pieces([bytes.to_vec()].into())));
    decoded.ok().flatten().map(|(request, _)| request)
}

/// Compares the two requests. Returns `false` if one side makes no request of this head.
fn compare(bytes: &[u8]) -> Result<bool, String> {
    let Ok(Some(head)) = head::parse(bytes, BOUNDS) else { return Ok(false) };
    let begin = bytes.iter().take_while(|byte| b"\r\n".contains(byte)).count();
    // http-types panics at a value that is not ASCII, async-h1 starts a thread for an expectation,
    // and it does not know HTTP/1.0.
    let text = bytes[begin..head.len].to_ascii_lowercase();
    let is_left_out = !text.is_ascii() || text.windows(7).any(|part| part == b"\nexpect");
    if is_left_out || head.version != Version::Http1_1 {
        return Ok(false);
    }
    let Some(theirs) = by_engine(&bytes[begin..head.len]) else { return Ok(false) };
    let Some(ours) = by_gate(&head, bytes) else { return Ok(false) };
    assert_eq!(ours.version(), theirs.version());
    let (ours, mut theirs) = (Seen::of(&ours), Seen::of(&theirs));
    // async-h1 adds a content type if there is none.
    if !text.windows(14).any(|part| part == b"\ncontent-type:") {
        theirs.fields.remove("content-type");
    }
    // An upgrade that the server does not follow is hidden (RFC 9110 section 7.8).
    if !head.upgrade {
        theirs.fields.remove("upgrade");
    }
    // RFC 9112 section 3.2.2: an absolute target replaces `Host`.
    if !head.target(bytes).starts_with('/') {
        theirs.fields.insert("host".into(), ours.fields["host"].clone());
    }
    // W14: the gate passes on only short lengths, because http-types reserves memory for them.
    theirs.length = theirs.length.filter(|length| *length <= 16 * 1024);
    let shown = bytes.escape_ascii();
    if ours == theirs { Ok(true) } else { Err(format!("{shown}\n{ours:?}\n{theirs:?}")) }
}

/// Returns heads like those of browsers, with many fields, some of them several times.
fn browsers() -> impl Strategy<Value = Vec<u8>> {
    const NAMES: &[&str] = &[
        "accept",
        "ACCEPT-ENCODING",
        "Accept-Language",
        "authorization",
        "Cache-Control",
        "Content-Type",
        "Cookie",
        "DNT",
        "If-None-Match",
        "If-Modified-Since",
        "Origin",
        "Referer",
        "sec-ch-ua",
        "Sec-Fetch-Mode",
        "TE",
        "Upgrade-Insecure-Requests",
        "User-Agent",
        "X-Forwarded-For",
        "x-forwarded-for",
    ];
    let field = (select(NAMES), "[ \t]{0,2}[!-~]{0,9}[ -~]{0,30}");
    let field = field.prop_map(|(name, value)| format!("{name}:{value}\r\n"));
    let length = prop_oneof![4 => Just(""), 1 => Just("Content-Length: 7\r\n")];
    let path = "/[a-z0-9/._~?=&%+-]{0,20}";
    (path, vec(field, 0..24), length).prop_map(|(path, fields, length)| {
        let fields = fields.concat();
        format!("POST {path} HTTP/1.1\r\nHost: a:8082\r\n{fields}{length}\r\n").into_bytes()
    })
}

#[test]
fn a_handler_gets_what_the_engine_would_make() {
    for (heads, least) in [(heads().boxed(), 3), (browsers().boxed(), 90)] {
        let (all, compared) = (Cell::new(0), Cell::new(0));
        over(1500, heads, |bytes| {
            all.set(all.get() + 1);
            compared.set(compared.get() + u32::from(compare(bytes)?));
            Ok(())
        });
        let (all, compared) = (all.get(), compared.get());
        assert!(compared * 100 >= all * least, "only {compared} of {all} heads were compared");
    }
}

/// Heads of which both sides make equal requests.
#[test]
fn a_table_of_heads_that_both_read() {
    for head in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /?a=b HTTP/1.1\r\nhOST: a:80\r\nCookie: a\r\nCOOKIE: b\r\ncookie: a\r\n\r\n",
        "GET http://b:81/c HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]:8082\r\nX:\r\nY: \t z \t\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 16384\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 16385\r\nContent-Type: b/c\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\nTrailer: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: b\r\n\r\n",
    ] {
        assert_eq!(compare(head.as_bytes()), Ok(true), "{head}");
    }
}
