//! The rules of the RFCs about the bytes on the wire, as one table of sections, requests and
//! expected answers.
//!
//! Each row is sent whole, after another request, and cut in two at every place (at a few random
//! ones if it is long). The answer is always the same. A failure names all rows that fail, and the
//! places of their cuts.

#![allow(clippy::print_stdout, reason = "the seed of a failure")]

mod common;

use std::any::Any;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Client, End, Received, Running};
use futures_lite::AsyncReadExt;
use futures_lite::io::Cursor;
use http_types::headers::{HeaderValues, Headers, UPGRADE};
use http_types::trailers::Trailers;
use http_types::{Body, StatusCode, Version};
use smol_graceful::{Limits, Request, Response};

use Expect::*;

/// A row of the table.
struct Row {
    /// The group of the row.
    group: &'static str,
    /// The RFC and the section.
    section: &'static str,
    what: &'static str,
    send: Vec<u8>,
    expect: Expect,
}

/// The expected answer. `Connection: close` and the end of the connection go together, and the end
/// is a FIN, never a reset. Otherwise the connection serves a further request.
#[derive(Debug, Clone, Copy)]
enum Expect {
    /// The handler has seen this, in the words of [`app`], and its answer comes.
    Served(&'static str),
    /// The handler has seen this, its answer comes, and the connection ends.
    Last(&'static str),
    /// The answer is this, in the words of [`summary`]. The connection goes on or ends, as the
    /// answer says.
    Answered(&'static str),
    /// The answer to a HEAD request, without a body.
    Bodiless(&'static str),
    /// `100 Continue` comes, then the test sends the rest, and the answer is as in `Served`.
    Continue { then: &'static str, saw: &'static str },
    /// No handler is called, and an answer with this status comes before the end.
    Refused(u16),
    /// The answer to a HEAD request, without a body.
    RefusedHead(u16),
    /// The handler is called, the read of the body fails, and an answer with the status of that
    /// error comes before the end.
    BadBody(u16),
    /// The client closes its side in the middle of a head, and the answer is as in `Refused`.
    CutHead(u16),
    /// The client closes its side in the middle of a body, and the answer is as in `BadBody`.
    CutBody(u16),
    /// The client closes its side, and the server closes without an answer.
    Closed,
    /// Several answers to several requests.
    Series(&'static [Self]),
}

/// The longest body that the server in this file takes, in bytes.
const MOST: usize = 20_000;

#[rustfmt::skip]
fn table() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut group;
    // These make requests with a request line, a target, a field, a Host, a field and a body, a
    // body in chunks, and in HTTP/1.0.
    let line = |line: &str| format!("{line}\r\nHost: x\r\n\r\n");
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    let field = |field: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n");
    let host = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let post = |field: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n{body}");
    let chunks = |body: &str| post("Transfer-Encoding: chunked", body);
    let old = |fields: &str| format!("GET / HTTP/1.0\r\n{fields}\r\n");
    let coding = |value: &str| post(&format!("Transfer-Encoding: {value}"), "5\r\nhello\r\n0\r\n\r\n");
    let length = |value: &str| post(&format!("Content-Length: {value}"), "hello");
    macro_rules! group { ($name:literal) => { group = $name; } }
    macro_rules! row {
        ($section:literal, $what:expr, $send:expr, $expect:expr $(,)?) => {
            rows.push(Row { group, section: $section, what: $what, send: $send.into(), expect: $expect })
        };
    }

    // ------------------------------------------------------------------------------------------------------------
    group!("request line");
    row!("9112 3", "the plainest request", line("GET / HTTP/1.1"), Served("GET /"));
    row!("9112 2.2", "an empty line before it", "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", Served("GET /"));
    row!("9112 2.2", "four of them (our bound)", "\r\n".repeat(4) + &get("/"), Served("GET /"));
    row!("9112 2.2", "an empty line and nothing else", "\r\n", Closed);
    row!("9112 2.2", "four of them and nothing else", "\r\n".repeat(4), Closed);
    row!("9112 2.2", "a line that has begun with its end", "\r", Closed);
    row!("9112 2.2", "five empty lines (beyond our bound)", "\r\n".repeat(5) + &get("/"), Refused(400));
    row!("9112 9.5", "nothing at all", "", Closed);
    row!("9112 2.2", "a bare LF before it", "\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", Refused(400));
    row!("9112 2.2", "a bare CR before it", "\rGET / HTTP/1.1\r\nHost: x\r\n\r\n", Refused(400));
    row!("9112 3", "a space before it", line(" GET / HTTP/1.1"), Refused(400));
    row!("9112 3", "two spaces before the target", line("GET  / HTTP/1.1"), Refused(400));
    row!("9112 3", "two spaces before the version", line("GET /  HTTP/1.1"), Refused(400));
    row!("9112 3", "a space behind the version", line("GET / HTTP/1.1 "), Refused(400));
    row!("9112 3", "a tab for a space", line("GET\t/ HTTP/1.1"), Refused(400));
    row!("9112 3", "a tab before the version", line("GET /\tHTTP/1.1"), Refused(400));
    row!("9112 3", "a form feed for a space", line("GET /\u{c}HTTP/1.1"), Refused(400));
    row!("9112 3", "a space in the target", line("GET /a b HTTP/1.1"), Refused(400));
    row!("9112 3", "one word", "GET\r\nHost: x\r\n\r\n", Refused(400));
    row!("9112 3", "HTTP/0.9: no version", "GET /\r\n\r\n", Refused(400));
    row!("9112 3", "no target", line("GET HTTP/1.1"), Refused(400));
    row!("9112 3", "an empty target", line("GET  HTTP/1.1"), Refused(400));
    row!("9112 3", "no method", line(" / HTTP/1.1"), Refused(400));
    row!("9112 3", "a fourth word", line("GET / HTTP/1.1 x"), Refused(400));
    // Section 2.2 lets a recipient take a bare LF as a line end; rule W3 does not.
    row!("9112 2.2", "a bare LF behind it", "GET / HTTP/1.1\nHost: x\r\n\r\n", Refused(400));
    row!("9112 2.2", "bare LFs everywhere", "GET / HTTP/1.1\nHost: x\n\n", Refused(400));
    row!("9112 2.2", "a bare CR behind it", "GET / HTTP/1.1\rHost: x\r\n\r\n", Refused(400));
    row!("9112 2.2", "a bare CR in the target", line("GET /a\rb HTTP/1.1"), Refused(400));
    row!("9112 2.2", "two CRs", "GET / HTTP/1.1\r\r\nHost: x\r\n\r\n", Refused(400));
    row!("9112 3", "a NUL in the target", line("GET /\0 HTTP/1.1"), Refused(400));
    row!("9112 3", "a DEL in the target", line("GET /\u{7f} HTTP/1.1"), Refused(400));
    row!("3986 2", "bytes beyond ASCII in the target", line("GET /é HTTP/1.1"), Refused(400));
    row!("9112 3", "garbage", "\u{16}\u{3}\u{1}\u{2}\r\n\r\n", Refused(400));
    row!("9112 8", "the end within the line", "GET / HT", CutHead(400));

    // ------------------------------------------------------------------------------------------------------------
    group!("methods");
    // http-types knows a closed set of methods. RFC 9110 section 9.1 has 501 for the others.
    row!("9110 9.3.1", "GET", line("GET /m HTTP/1.1"), Served("GET /m"));
    row!("9110 9.3.2", "HEAD: no content", line("HEAD /m HTTP/1.1"), Bodiless("200 length=7"));
    row!("9110 9.3.3", "POST", line("POST /m HTTP/1.1"), Served("POST /m"));
    row!("9110 9.3.4", "PUT", line("PUT /m HTTP/1.1"), Served("PUT /m"));
    row!("9110 9.3.5", "DELETE", line("DELETE /m HTTP/1.1"), Served("DELETE /m"));
    row!("9110 9.3.7", "OPTIONS", line("OPTIONS /m HTTP/1.1"), Served("OPTIONS /m"));
    row!("9110 9.3.8", "TRACE is the handler's affair", line("TRACE /m HTTP/1.1"), Served("TRACE /m"));
    row!("5789 2", "PATCH", line("PATCH /m HTTP/1.1"), Served("PATCH /m"));
    row!("4918 9.1", "PROPFIND", line("PROPFIND /m HTTP/1.1"), Served("PROPFIND /m"));
    row!("3253 3.5", "a method with a hyphen", line("VERSION-CONTROL /m HTTP/1.1"), Served("VERSION-CONTROL /m"));
    row!("9110 9.1", "an unknown one", line("BREW / HTTP/1.1"), Refused(501));
    row!("9110 9.1", "any token is a method", line("!#$%&'*+-.^_`|~09aZ / HTTP/1.1"), Refused(501));
    row!("9110 9.1", "lower case", line("get / HTTP/1.1"), Refused(501));
    row!("9110 9.1", "head is not HEAD: the answer has a body", line("head / HTTP/1.1"), Refused(501));
    row!("9110 9.1", "mixed case", line("Post / HTTP/1.1"), Refused(501));
    row!("9110 9.1", "more than a known one", line("GETX / HTTP/1.1"), Refused(501));
    row!("9110 5.6.2", "no token: a colon", line("GE:T / HTTP/1.1"), Refused(400));
    row!("9110 5.6.2", "no token: a quote", line("\"GET\" / HTTP/1.1"), Refused(400));
    row!("9110 5.6.2", "no token: a bracket", line("GET[] / HTTP/1.1"), Refused(400));
    row!("9110 5.6.2", "no token: beyond ASCII", line("GÉT / HTTP/1.1"), Refused(400));
    row!("9110 9.3.6", "CONNECT: no proxy", "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", Refused(501));
    row!("9110 9.3.6", "CONNECT with a path", line("CONNECT / HTTP/1.1"), Refused(501));

    // ------------------------------------------------------------------------------------------------------------
    group!("versions");
    row!("9112 2.3", "1.0", old("Host: x\r\n"), Last("GET / as=1.0"));
    row!("9110 2.5", "1.2 is served as 1.1", line("GET / HTTP/1.2"), Served("GET /"));
    row!("9110 2.5", "1.9 is served as 1.1", line("GET / HTTP/1.9"), Served("GET /"));
    row!("9110 15.6.6", "0.9, written out", line("GET / HTTP/0.9"), Refused(505));
    row!("9110 15.6.6", "2.0", line("GET / HTTP/2.0"), Refused(505));
    row!("9110 15.6.6", "3.0", line("GET / HTTP/3.0"), Refused(505));
    row!("9113 3.4", "the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused(505));
    row!("9113 11.6", "PRI in 1.1", line("PRI * HTTP/1.1"), Refused(501));
    row!("9112 2.3", "lower case", line("GET / http/1.1"), Refused(400));
    row!("9112 2.3", "mixed case", line("GET / Http/1.1"), Refused(400));
    row!("9112 2.3", "two digits", line("GET / HTTP/1.10"), Refused(400));
    row!("9112 2.3", "a leading zero", line("GET / HTTP/01.1"), Refused(400));
    row!("9112 2.3", "no minor", line("GET / HTTP/1"), Refused(400));
    row!("9112 2.3", "an empty minor", line("GET / HTTP/1."), Refused(400));
    row!("9112 2.3", "a comma", line("GET / HTTP/1,1"), Refused(400));
    row!("9112 2.3", "a space within", line("GET / HTTP/ 1.1"), Refused(400));
    row!("9112 2.3", "a sign", line("GET / HTTP/+1.1"), Refused(400));
    row!("9112 2.3", "another protocol", line("GET / RTSP/1.0"), Refused(400));
    row!("9112 2.3", "a digit that is a letter", line("GET / HTTP/1.x"), Refused(400));

    // ------------------------------------------------------------------------------------------------------------
    group!("targets");
    row!("9112 3.2.1", "path and query", get("/a/b?c=d&e"), Served("GET /a/b?c=d&e"));
    row!("3986 3.4", "an empty query", get("/a?"), Served("GET /a?"));
    row!("3986 3.4", "`?` and `/` in a query", get("/a?b?c/d"), Served("GET /a?b?c/d"));
    row!("3986 3.4", "`..` in a query is no path", get("/a?b/../c"), Served("GET /a?b/../c"));
    row!("3986 3.3", "`//` stays, and names no host", get("//a//b"), Served("GET //a//b"));
    row!("3986 3.3", "a scheme within a path", get("/http://y/"), Served("GET /http://y/"));
    row!("3986 3.3", "`;`, `@` and others stay", get("/a;b=c@d:e,f!$&()*+~"), Served("GET /a;b=c@d:e,f!$&()*+~"));
    row!("3986 2.1", "escapes stay as they are", get("/a%20b%2Fc%2f%00%7E?d%3f"),
        Served("GET /a%20b%2Fc%2f%00%7E?d%3f"));
    // Section 2.1 does not allow this, and the server leaves it to the handler.
    row!("3986 2.1", "`%` with nothing behind it", get("/a%zz%"), Served("GET /a%zz%"));
    // A proxy in front has judged the path as it was sent, and http-types would hold another one.
    row!("3986 5.2.4", "a dot segment is no path", get("/a/./b"), Refused(400));
    row!("3986 5.2.4", "nor are two dots", get("/a/../b"), Refused(400));
    row!("3986 5.2.4", "at its end", get("/a/.."), Refused(400));
    row!("3986 5.2.4", "that climbs out", get("/../../a"), Refused(400));
    row!("3986 6.2.2.3", "escaped", get("/a/%2e%2E/b"), Refused(400));
    row!("3986 6.2.2.3", "escaped, one dot", get("/%2e/a"), Refused(400));
    row!("3986 6.2.2.3", "escaped by half", get("/a/.%2e/b"), Refused(400));
    row!("3986 5.2.4", "in an absolute target", get("http://x/a/../b"), Refused(400));
    row!("3986 3.3", "dots that are no segment", get("/.a/b../...?/../c"), Served("GET /.a/b../...?/../c"));
    // These are not URI characters, but browsers send some of them. http-types escapes where it
    // must.
    row!("9112 3.2", "odd bytes in a query", get("/?a[]=b|c^`{}"), Served("GET /?a[]=b|c^`{}"));
    row!("9112 3.2", "quotes in a query are escaped", get("/?\"<>"), Served("GET /?%22%3C%3E"));
    row!("9112 3.2", "a backslash in a query", get("/?a\\b"), Served("GET /?a\\b"));
    // The server does not repair a bad target, because it may be made to get around a filter.
    // http-types would make a slash of this.
    row!("9112 3.2", "a backslash in a path", get("/a\\..\\b"), Refused(400));
    row!("9110 4.1", "a fragment is never sent", get("/a#b"), Refused(400));
    row!("9112 3.2", "no path", get("a"), Refused(400));
    row!("9112 3.2", "a relative path", get("../a"), Refused(400));
    row!("9112 3.2", "a query only", get("?a"), Refused(400));
    row!("9112 3.2.2", "absolute: its authority is the host",
        "GET http://y:8080/a?b HTTP/1.1\r\nHost: z\r\n\r\n", Served("GET /a?b at=y:8080"));
    row!("9112 3.2.2", "absolute without a path", get("http://x"), Served("GET /"));
    row!("9112 3.2.2", "absolute, a query only", get("http://x?a=/b"), Served("GET /?a=/b"));
    row!("3986 3.1", "schemes are in any case", get("HtTp://x/A"), Served("GET /A"));
    row!("3986 3.2.2", "absolute with an IPv6 address", get("http://[::1]:80/"), Served("GET / at=[::1]:80"));
    row!("9112 3.2.2", "absolute in 1.0", "GET http://y/a HTTP/1.0\r\n\r\n", Last("GET /a as=1.0 at=y"));
    // RFC 9110 section 7.4 exempts trusted gateways, and only a deployment knows whether there is
    // one.
    row!("9112 3.2.2", "absolute, https", get("https://y/a"), Served("GET /a https at=y"));
    row!("9112 3.2.2", "absolute, but no Host", "GET http://x/ HTTP/1.1\r\n\r\n", Refused(400));
    row!("9112 3.2.2", "absolute, but a bad Host", "GET http://x/ HTTP/1.1\r\nHost: a b\r\n\r\n", Refused(400));
    row!("9110 4.2.1", "absolute, an empty host", get("http:///a"), Refused(400));
    row!("9110 4.2.1", "absolute, a port only", get("http://:80/a"), Refused(400));
    row!("9110 4.2.4", "absolute, with user information", get("http://u:p@x/"), Refused(400));
    row!("9112 3.2.2", "absolute, no authority", get("http:/a"), Refused(400));
    row!("9112 3.2.2", "absolute, a bad port", get("http://x:99999/"), Refused(400));
    row!("9112 3.2.2", "absolute, a backslash for a slash", get("http://x\\a/"), Refused(400));
    row!("9112 3.2.2", "absolute, with a fragment", get("http://x/#a"), Refused(400));
    row!("9112 3.2.2", "another scheme", get("ftp://x/"), Refused(400));
    row!("9112 3.2.3", "authority form, but not CONNECT", get("x:80"), Refused(400));
    // The handler sees `/*`, because http-types has no name for the server itself.
    row!("9112 3.2.4", "the server as a whole", line("OPTIONS * HTTP/1.1"), Served("OPTIONS /*"));
    row!("9112 3.2.4", "`*`, but not OPTIONS", get("*"), Refused(400));
    row!("9112 3.2.4", "`*` and more", line("OPTIONS *a HTTP/1.1"), Refused(400));

    // ------------------------------------------------------------------------------------------------------------
    group!("Host");
    row!("9112 3.2", "with a port", host("y:8080"), Served("GET / at=y:8080"));
    row!("3986 3.2.3", "with an empty port", host("y:"), Served("GET / at=y:"));
    row!("3986 3.2.2", "IPv4", host("127.0.0.1"), Served("GET / at=127.0.0.1"));
    row!("3986 3.2.2", "IPv6", host("[2001:db8::1]:8080"), Served("GET / at=[2001:db8::1]:8080"));
    row!("3986 3.2.2", "all that a name may hold", host("a-b.c_d~"), Served("GET / at=a-b.c_d~"));
    row!("3986 3.2.2", "a name that ends in a number", host("web.1"), Served("GET / at=web.1"));
    row!("3986 3.2.2", "and with a port", host("app.2024:80"), Served("GET / at=app.2024:80"));
    row!("3986 3.2.2", "five numbers", host("1.2.3.4.5"), Served("GET / at=1.2.3.4.5"));
    row!("3986 3.2.2", "no Punycode", host("xn--a"), Served("GET / at=xn--a"));
    // In these, the url crate would read another host than a proxy in front.
    row!("3986 3.2.2", "an escape", host("%61dmin"), Refused(400));
    row!("3986 3.2.2", "an escape of something else", host("a%2fb"), Refused(400));
    row!("3986 7.4", "an address as one number", host("2130706433"), Refused(400));
    row!("3986 7.4", "an address in octal", host("010.0.0.1"), Refused(400));
    row!("3986 7.4", "an address in hexadecimal", host("0x7f.1"), Refused(400));
    row!("3986 7.4", "in an absolute target", get("http://2130706433/"), Refused(400));
    row!("9110 5.1", "its name in any case, last", "GET / HTTP/1.1\r\nX: 1\r\nhOST:x\r\n\r\n",
        Served("GET / x=1"));
    row!("9112 3.2", "none", "GET / HTTP/1.1\r\n\r\n", Refused(400));
    row!("9112 3.2", "none in 1.2", "GET / HTTP/1.2\r\n\r\n", Refused(400));
    row!("9112 3.2", "empty", host(""), Refused(400));
    row!("9112 3.2", "spaces only", host(" \t "), Refused(400));
    row!("9112 3.2", "two", field("Host: y"), Refused(400));
    row!("9112 3.2", "two that are equal", field("hOST: x"), Refused(400));
    row!("9112 3.2", "two in 1.0", old("Host: x\r\nHost: x\r\n"), Refused(400));
    row!("9112 3.2", "a bad one in 1.0", old("Host: a b\r\n"), Refused(400));
    row!("9112 3.2", "two words", host("a b"), Refused(400));
    // A name may have a comma (RFC 3986 section 3.2.2), but the gate takes it for two joined
    // values.
    row!("9112 3.2", "a list", host("a, b"), Refused(400));
    row!("9112 3.2", "a path", host("x/a"), Refused(400));
    row!("9112 3.2", "a query", host("x?a"), Refused(400));
    row!("9112 3.2", "a scheme", host("http://x"), Refused(400));
    row!("9110 4.2.4", "user information", host("u@x"), Refused(400));
    row!("9112 3.2", "a port only", host(":80"), Refused(400));
    row!("9112 3.2", "two ports", host("x:80:80"), Refused(400));
    row!("9112 3.2", "a port in letters", host("x:http"), Refused(400));
    row!("9112 3.2", "a port with a sign", host("x:+80"), Refused(400));
    row!("9112 3.2", "a port beyond 65535", host("x:65536"), Refused(400));
    row!("3986 3.2.2", "an open bracket", host("[::1"), Refused(400));
    row!("3986 3.2.2", "IPv6 without brackets", host("::1"), Refused(400));
    row!("3986 3.2.2", "more behind the bracket", host("[::1]x"), Refused(400));
    row!("3986 3.2.2", "no address in brackets", host("[x]"), Refused(400));
    row!("3986 3.2.2", "a backslash", host("x\\y"), Refused(400));
    row!("3986 3.2.2", "beyond ASCII", host("é"), Refused(400));
    row!("9110 5.5", "a NUL", host("x\0"), Refused(400));

    // ------------------------------------------------------------------------------------------------------------
    group!("fields");
    row!("9110 5.1", "names are in any case", field("x: 1"), Served("GET / x=1"));
    row!("9112 5.1", "no space before the value", field("X:1"), Served("GET / x=1"));
    row!("9112 5.1", "spaces and tabs around the value", field("X: \t 1 \t "), Served("GET / x=1"));
    row!("9110 5.5", "spaces and tabs within it", field("X: a \tb"), Served("GET / x=a \tb"));
    row!("9110 5.5", "an empty value", field("X:"), Served("GET / x="));
    row!("9110 5.5", "a value of spaces", field("X: \t "), Served("GET / x="));
    row!("9110 5.3", "two lines of a name, in order", field("X: 1\r\nx: 2"), Served("GET / x=1|2"));
    row!("9110 5.5", "colons and other marks in a value", field("X: a:b;\"c\\d\" {e}"),
        Served("GET / x=a:b;\"c\\d\" {e}"));
    row!("9110 5.6.2", "a name of odd token bytes", field("!#$%&'*+-.^_`|~09: 1\r\nX: 1"), Served("GET / x=1"));
    // http-types has ASCII only. The mapping is the server's own, and the octets stay opaque
    // (section 5.5).
    row!("9110 5.5", "obs-text becomes %XX", field("X: caf\u{e9}"), Served("GET / x=caf%C3%A9"));
    row!("9110 5.5", "obs-text that is no UTF-8",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: \x80\xff%41\r\n\r\n", Served("GET / x=%80%FF%41"));
    row!("9112 5.1", "a space before the colon", field("X : 1"), Refused(400));
    row!("9112 5.1", "a tab before the colon", field("X\t: 1"), Refused(400));
    row!("9112 5.1", "a space before the colon of a length", length("5").replace("h:", "h :"), Refused(400));
    row!("9112 5.1", "a space within a name", field("X Y: 1"), Refused(400));
    row!("9112 2.2", "a space before the first name", "GET / HTTP/1.1\r\n Host: x\r\n\r\n", Refused(400));
    row!("9112 2.2", "a tab before the first name", "GET / HTTP/1.1\r\n\tX: 1\r\nHost: x\r\n\r\n", Refused(400));
    row!("9112 5.2", "a folded line", field("X: 1\r\n 2"), Refused(400));
    row!("9112 5.2", "folded by a tab", field("X: 1\r\n\t2"), Refused(400));
    row!("9112 5.2", "folded to nothing", field("X: 1\r\n "), Refused(400));
    row!("9112 5.2", "a folded Transfer-Encoding", post("Transfer-Encoding:\r\n chunked", "0\r\n\r\n"),
        Refused(400));
    row!("9112 5", "no colon", field("X"), Refused(400));
    row!("9112 5", "no name", field(": 1"), Refused(400));
    row!("9112 5", "a colon only", field(":"), Refused(400));
    row!("9110 5.1", "a name that is no token", field("X(Y): 1"), Refused(400));
    row!("9110 5.1", "a name in quotes", field("\"X\": 1"), Refused(400));
    row!("9110 5.1", "a name beyond ASCII", field("É: 1"), Refused(400));
    row!("9110 5.5", "a NUL in a name", field("X\0: 1"), Refused(400));
    row!("9110 5.5", "a NUL in a value", field("X: a\0b"), Refused(400));
    row!("9110 5.5", "a CR in a value", field("X: a\rb"), Refused(400));
    row!("9110 5.5", "a LF in a value", field("X: a\nb"), Refused(400));
    row!("9110 5.5", "a LF that would begin a field", field("X: a\nContent-Length: 5"), Refused(400));
    // Other control characters may be kept (section 5.5), but the gate refuses them.
    row!("9110 5.5", "an escape in a value", field("X: \u{1b}[2J"), Refused(400));
    row!("9110 5.5", "a vertical tab in a value", field("X: a\u{b}b"), Refused(400));
    row!("9110 5.5", "a DEL in a value", field("X: \u{7f}"), Refused(400));
    row!("9112 2.2", "a CR at the end of a value", field("X: 1\r"), Refused(400));
    row!("9112 2.2", "a bare LF for the blank line", "GET / HTTP/1.1\r\nHost: x\r\n\n", Refused(400));
    row!("9112 8", "the end within a field", "GET / HTTP/1.1\r\nHost: x\r\nX", CutHead(400));
    row!("9112 8", "the end before the blank line", "GET / HTTP/1.1\r\nHost: x\r\n", CutHead(400));

    // ------------------------------------------------------------------------------------------------------------
    group!("Connection");
    row!("9112 9.6", "close", field("Connection: close"), Last("GET /"));
    row!("9110 7.6.1", "in any case", field("connection: CLOSE"), Last("GET /"));
    row!("9110 7.6.1", "in a list", field("Connection: foo,\tClose , bar"), Last("GET /"));
    row!("9110 5.6.1.2", "in a list with gaps", field("Connection: ,, close,"), Last("GET /"));
    row!("9110 5.3", "over two lines", field("Connection: foo\r\nConnection: close"), Last("GET /"));
    row!("9112 9.3", "close beats keep-alive", field("Connection: keep-alive, close"), Last("GET /"));
    row!("9112 9.3", "keep-alive", field("Connection: keep-alive"), Served("GET /"));
    row!("9112 9.3", "an unknown option", field("Connection: closed, not-close"), Served("GET /"));
    row!("9112 9.3", "an empty one", field("Connection:"), Served("GET /"));
    row!("9110 7.6.1", "obs-text in it", field("Connection: é, close"), Last("GET /"));
    row!("9112 C.2.2", "Proxy-Connection means nothing", field("Proxy-Connection: close"), Served("GET /"));
    row!("9112 9.6", "nothing behind close is served", field("Connection: close") + &get("/2"), Last("GET /"));
    row!("9112 9.6", "close with a body", post("Connection: close\r\nContent-Length: 2", "ab"),
        Last("POST / body=ab"));

    // ------------------------------------------------------------------------------------------------------------
    group!("HTTP/1.0");
    row!("9112 9.3", "closes", old(""), Last("GET / as=1.0 at="));
    row!("9112 C.2.2", "keep-alive", old("Connection: Keep-Alive\r\n"), Served("GET / as=1.0 at="));
    row!("9112 9.3", "keep-alive and close", old("Host: x\r\nConnection: keep-alive, close\r\n"),
        Last("GET / as=1.0"));
    row!("9112 9.3", "a length", "POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nab",
        Last("POST / as=1.0 at= body=ab"));
    row!("9112 6.3", "no length, no body", "POST / HTTP/1.0\r\nHost: x\r\n\r\n", Last("POST / as=1.0"));
    row!("9112 9.3", "HEAD", "HEAD / HTTP/1.0\r\nHost: x\r\n\r\n", Bodiless("200 length=13 close"));
    row!("9112 7.1", "no chunks in the answer", "GET /stream HTTP/1.0\r\n\r\n", Answered("200 close body=hello"));
    row!("9112 7.1", "nor if it would keep the connection",
        "GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", Answered("200 close body=hello"));
    row!("9112 6.1", "chunks", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400));
    row!("9112 6.1", "chunks and a length",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", Refused(400));
    row!("9110 10.1.1", "an expectation is ignored",
        "POST / HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
        Last("POST / as=1.0 body=ab"));
    row!("9110 10.1.1", "even an unknown one", old("Host: x\r\nExpect: x\r\n"), Last("GET / as=1.0"));
    row!("9110 7.8", "an upgrade is ignored: the handler fails to",
        "GET /upgrade HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        Answered("400 length=12 close body=Bad Request\\n"));

    // ------------------------------------------------------------------------------------------------------------
    group!("Content-Length");
    row!("9112 6.3", "a body", length("5"), Served("POST / body=hello"));
    row!("9112 6.3", "none, no body", line("POST / HTTP/1.1"), Served("POST /"));
    row!("9110 8.6", "zero", post("Content-Length: 0", ""), Served("POST /"));
    row!("9110 8.6", "leading zeros", length("000000000000000000000005"), Served("POST / body=hello"));
    row!("9110 8.6", "spaces around it", length(" \t5 \t"), Served("POST / body=hello"));
    row!("9112 6.3", "with GET", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
        Served("GET / body=ab"));
    row!("9110 9.3.5", "with DELETE", "DELETE / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
        Served("DELETE / body=ab"));
    row!("9110 9.3.7", "with OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
        Served("OPTIONS /* body=ab"));
    row!("9110 6.4", "any bytes",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n\0\xff\r\n\r\n",
        Served("POST / body=\\x00\\xff\\r\\n\\r\\n"));
    row!("9112 6.3", "a sign", length("+5"), Refused(400));
    row!("9112 6.3", "negative", length("-5"), Refused(400));
    row!("9112 6.3", "a fraction", length("5.0"), Refused(400));
    row!("9112 6.3", "hexadecimal", length("0x5"), Refused(400));
    row!("9112 6.3", "letters", length("five"), Refused(400));
    row!("9112 6.3", "an exponent", length("5e0"), Refused(400));
    row!("9112 6.3", "two numbers", length("5 5"), Refused(400));
    row!("9112 6.3", "quotes", length("\"5\""), Refused(400));
    row!("9112 6.3", "nothing", length(""), Refused(400));
    row!("9112 6.3", "another script's digit", length("\u{665}"), Refused(400));
    row!("9110 8.6", "beyond 64 bits", length("18446744073709551616"), Refused(400));
    row!("9110 8.6", "far beyond", length("100000000000000000000000000000000000005"), Refused(400));
    row!("9112 6.3", "two that differ", length("5\r\nContent-Length: 6"), Refused(400));
    row!("9112 6.3", "a list of two that differ", length("5, 6"), Refused(400));
    // Section 6.3 allows to take equal lengths as one. Rule W3 refuses a message that two
    // recipients may read differently.
    row!("9112 6.3", "two that are equal", length("5\r\nContent-Length: 5"), Refused(400));
    row!("9112 6.3", "a list of two that are equal", length("5,5"), Refused(400));
    row!("9112 6.3", "a list with a gap", length("5,"), Refused(400));
    row!("9112 8", "a body cut short", length("9"), CutBody(400));
    row!("9112 9.3", "a body that nobody reads", "POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
        Served("POST /unread"));

    // ------------------------------------------------------------------------------------------------------------
    group!("Transfer-Encoding");
    row!("9112 7.1", "chunked", coding("chunked"), Served("POST / body=hello"));
    row!("9112 7", "in any case", coding("cHuNkEd"), Served("POST / body=hello"));
    row!("9112 5.1", "spaces and tabs around it", coding("\t chunked \t"), Served("POST / body=hello"));
    row!("9112 6.3", "with GET", coding("chunked").replace("POST", "GET"), Served("GET / body=hello"));
    row!("9110 10.1.4", "TE is no coding", field("TE: trailers, deflate;q=0.5"), Served("GET /"));
    // Section 6.3 lets a server use the chunks. The gate refuses because of section 11.2.
    row!("9112 6.3", "with a length", coding("chunked\r\nContent-Length: 5"), Refused(400));
    row!("9112 6.3", "behind a length", length("5\r\nTransfer-Encoding: chunked"), Refused(400));
    row!("9112 6.3", "with a length of 0", coding("chunked\r\nContent-Length: 0"), Refused(400));
    row!("9112 6.3", "with a bad length", coding("chunked\r\nContent-Length: x"), Refused(400));
    row!("9112 6.3", "identity with a length", length("5\r\nTransfer-Encoding: identity"), Refused(400));
    row!("9112 6.1", "a coding that we lack", coding("gzip, chunked"), Refused(501));
    row!("9112 6.1", "an unknown one", coding("x, chunked"), Refused(501));
    row!("9112 6.1", "identity is no coding any more", coding("identity, chunked"), Refused(501));
    row!("9112 6.3", "chunked is not the last", coding("chunked, gzip"), Refused(400));
    row!("9112 6.3", "chunked, then identity", coding("chunked, identity"), Refused(400));
    row!("9112 6.3", "no chunked", coding("gzip"), Refused(400));
    row!("9112 6.3", "identity", coding("identity"), Refused(400));
    row!("9112 6.1", "chunked twice", coding("chunked, chunked"), Refused(400));
    row!("9112 6.1", "chunked twice, on two lines", coding("chunked\r\nTransfer-Encoding: chunked"), Refused(400));
    row!("9112 6.3", "chunked, identity on a second line", coding("chunked\r\nTransfer-Encoding: identity"),
        Refused(400));
    row!("9112 6.3", "nothing", coding(""), Refused(400));
    row!("9112 6.3", "a name that ends so", coding("xchunked"), Refused(400));
    row!("9112 6.3", "a name that begins so", coding("chunkedx"), Refused(400));
    row!("9112 7", "in quotes", coding("\"chunked\""), Refused(400));
    row!("9112 7.1", "with a parameter, which chunked has not", coding("chunked;q=1"), Refused(400));
    row!("9112 6.3", "two words", coding("chunked chunked"), Refused(400));
    row!("9112 6.3", "a vertical tab before it", coding("\u{b}chunked"), Refused(400));
    row!("9112 6.3", "a no-break space before it", coding("\u{a0}chunked"), Refused(400));
    row!("9112 5.1", "a space before the colon", coding("chunked").replace("g:", "g :"), Refused(400));
    // An empty element should be skipped (RFC 9110 section 5.6.1.2), but here two recipients may
    // disagree.
    row!("9112 6.3", "a list with a gap", coding(", chunked"), Refused(400));

    // ------------------------------------------------------------------------------------------------------------
    group!("chunks");
    row!("9112 7.1", "none", chunks("0\r\n\r\n"), Served("POST /"));
    row!("9112 7.1", "two", chunks("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), Served("POST / body=hello"));
    row!("9112 7.1", "hexadecimal, small", chunks("a\r\n0123456789\r\n0\r\n\r\n"),
        Served("POST / body=0123456789"));
    row!("9112 7.1", "hexadecimal, capital", chunks("A\r\n0123456789\r\n0\r\n\r\n"),
        Served("POST / body=0123456789"));
    row!("9112 7.1", "leading zeros", chunks("0000000000000005\r\nhello\r\n0000\r\n\r\n"),
        Served("POST / body=hello"));
    row!("9112 7.1", "content that looks like framing", chunks("7\r\n0\r\n\r\nab\r\n0\r\n\r\n"),
        Served("POST / body=0\\r\\n\\r\\nab"));
    row!("9112 7.1.1", "an extension", chunks("5;a\r\nhello\r\n0;b\r\n\r\n"), Served("POST / body=hello"));
    row!("9112 7.1.1", "with a value", chunks("5;a=b;c=d\r\nhello\r\n0\r\n\r\n"), Served("POST / body=hello"));
    row!("9112 7.1.1", "with spaces", chunks("5 ; a = b\r\nhello\r\n0\t;x\r\n\r\n"), Served("POST / body=hello"));
    row!("9112 7.1.1", "with a quoted value", chunks("5;a=\"b;c \\\" \\\\\"\r\nhello\r\n0\r\n\r\n"),
        Served("POST / body=hello"));
    row!("9112 7.1.1", "of 256 bytes (our bound)",
        chunks(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(255))), Served("POST / body=hello"));
    row!("9112 7.1.1", "of 257 bytes",
        chunks(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(256))), BadBody(400));
    row!("9112 7.1", "no size", chunks("\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "no size is not the last chunk", chunks("\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "nor behind another chunk", chunks("5\r\nhello\r\n\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "nor with an extension", chunks(";a\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "no size, but an extension", chunks(";a\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "no number", chunks("x\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "a letter behind the number", chunks("5g\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "negative", chunks("-5\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "a sign", chunks("+5\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "0x", chunks("0x5\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "an underscore", chunks("0_5\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "a space before it", chunks(" 5\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "a space behind it", chunks("5 \r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "a tab behind it", chunks("5\t\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "two numbers", chunks("5 5\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "a NUL behind it", chunks("5\0\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "17 digits", chunks("10000000000000005\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "17 digits, zeros most", chunks("00000000000000005\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "more than is allowed", chunks("ffffffffffffffff\r\nhello"), BadBody(413));
    row!("9112 7.1", "together more than 64 bits", chunks("5\r\nhello\r\nffffffffffffffff\r\nx"), BadBody(413));
    row!("9112 2.2", "a bare LF behind the size", chunks("5\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 2.2", "a bare CR behind the size", chunks("5\rhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 2.2", "two CRs behind the size", chunks("5\r\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 2.2", "a bare LF behind an extension", chunks("5;a\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 2.2", "a bare CR in an extension", chunks("5;a\rb\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1.1", "a line end in a quoted value", chunks("5;a=\"b\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1.1", "a NUL in an extension", chunks("5;a\0\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "no line end behind the data", chunks("5\r\nhello0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "a bare LF behind the data", chunks("5\r\nhello\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "a bare CR behind the data", chunks("5\r\nhello\r0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "more data than its size", chunks("5\r\nhello!\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "less data than its size", chunks("6\r\nhello\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "an empty line between chunks", chunks("5\r\nhello\r\n\r\n0\r\n\r\n"), BadBody(400));
    row!("9112 8", "cut before the size", chunks(""), CutBody(400));
    row!("9112 8", "cut within a chunk", chunks("5\r\nhe"), CutBody(400));
    row!("9112 8", "cut before the last chunk", chunks("5\r\nhello\r\n"), CutBody(400));
    row!("9112 8", "cut before the last line end", chunks("5\r\nhello\r\n0\r\n"), CutBody(400));
    row!("9112 9.3", "that nobody reads", chunks("2;a\r\nab\r\n0\r\nX: y\r\n\r\n").replace("/ H", "/unread H"),
        Served("POST /unread"));

    // ------------------------------------------------------------------------------------------------------------
    group!("trailers");
    row!("9112 7.1.2", "one", chunks("0\r\nX: 1\r\n\r\n"), Served("POST / then x=1"));
    row!("9112 7.1.2", "two, behind a body", chunks("1\r\na\r\n0\r\nX: 1\r\nY:2\r\n\r\n"),
        Served("POST / body=a then x=1 y=2"));
    row!("9110 6.5.1", "they do not become header fields",
        post("X: head\r\nTrailer: x\r\nTransfer-Encoding: chunked", "0\r\nX: 1\r\n\r\n"),
        Served("POST / x=head then x=1"));
    // A header section would keep both (section 5.3), but http-types' trailers are a map.
    row!("9110 5.3", "two of a name: the last", chunks("0\r\nX: 1\r\nX: 2\r\n\r\n"), Served("POST / then x=2"));
    row!("9112 7.1.2", "an empty value", chunks("0\r\nX:\r\n\r\n"), Served("POST / then x="));
    row!("9110 5.5", "obs-text, as in heads", chunks("1\r\na\r\n0\r\nX: \u{e9}\r\n\r\n"),
        Served("POST / body=a then x=%C3%A9"));
    // Section 6.5.1: fields that are needed before the content must not be merged. The server drops
    // such fields.
    row!("9110 6.5.1", "routing", chunks("0\r\nHost: y\r\nX: 1\r\n\r\n"), Served("POST / then x=1"));
    row!("9110 6.5.1", "authentication", chunks("0\r\nAuthorization: y\r\nCookie: z\r\nX: 1\r\n\r\n"),
        Served("POST / then x=1"));
    row!("9110 6.5.1", "conditions", chunks("0\r\nIf-Match: y\r\nX: 1\r\n\r\n"), Served("POST / then x=1"));
    row!("9110 6.5.1", "content format", chunks("0\r\nContent-Type: y\r\nContent-Encoding: z\r\nX: 1\r\n\r\n"),
        Served("POST / then x=1"));
    row!("9110 6.5.1", "connection options", chunks("0\r\nConnection: close\r\nX: 1\r\n\r\n"),
        Served("POST / then x=1"));
    // Trailers that would change the framing are refused.
    row!("9110 6.5.1", "Content-Length", chunks("0\r\nContent-Length: 5\r\n\r\n"), BadBody(400));
    row!("9110 6.5.1", "Transfer-Encoding", chunks("0\r\ntransfer-encoding: chunked\r\n\r\n"), BadBody(400));
    row!("9112 7.1.2", "no colon", chunks("0\r\nX\r\n\r\n"), BadBody(400));
    row!("9112 7.1.2", "no name", chunks("0\r\n: 1\r\n\r\n"), BadBody(400));
    row!("9112 5.1", "a space before the colon", chunks("0\r\nX : 1\r\n\r\n"), BadBody(400));
    row!("9112 5.2", "a folded one", chunks("0\r\nX: 1\r\n 2\r\n\r\n"), BadBody(400));
    row!("9112 2.2", "a bare LF", chunks("0\r\nX: 1\n\r\n"), BadBody(400));
    row!("9112 2.2", "a bare LF at the very end", chunks("0\r\nX: 1\r\n\n"), BadBody(400));
    row!("9112 2.2", "a bare CR", chunks("0\r\nX: 1\rY: 2\r\n\r\n"), BadBody(400));
    row!("9110 5.5", "a NUL", chunks("0\r\nX: \0\r\n\r\n"), BadBody(400));
    row!("9112 7.1", "a request in their place", chunks("0\r\nGET / HTTP/1.1\r\n\r\n"), BadBody(400));
    row!("9112 8", "cut within", chunks("0\r\nX: 1\r\n"), CutBody(400));
    row!("9112 7.1.2", "16 of them (our bound)",
        chunks(&format!("0\r\n{}X: 1\r\n\r\n", "Host: y\r\n".repeat(15))), Served("POST / then x=1"));
    row!("9112 7.1.2", "17 of them", chunks(&format!("0\r\n{}\r\n", "X: 1\r\n".repeat(17))), BadBody(400));
    row!("9112 7.1.2", "4096 bytes (our bound)",
        chunks(&format!("0\r\nHost: {}\r\nX: 1\r\n\r\n", "y".repeat(4096 - 8 - 6 - 2))),
        Served("POST / then x=1"));
    row!("9112 7.1.2", "4097 bytes",
        chunks(&format!("0\r\nHost: {}\r\nX: 1\r\n\r\n", "y".repeat(4097 - 8 - 6 - 2))), BadBody(400));

    // ------------------------------------------------------------------------------------------------------------
    group!("Expect");
    row!("9110 10.1.1", "the body is asked for", post("Expect: 100-continue\r\nContent-Length: 2", ""),
        Continue { then: "ab", saw: "POST / body=ab" });
    row!("9110 10.1.1", "in any case", post("EXPECT: 100-CONTINUE\r\nContent-Length: 2", ""),
        Continue { then: "ab", saw: "POST / body=ab" });
    row!("9110 10.1.1", "for chunks", post("Expect: 100-continue\r\nTransfer-Encoding: chunked", ""),
        Continue { then: "2\r\nab\r\n0\r\nX: 1\r\n\r\n", saw: "POST / body=ab then x=1" });
    row!("9110 10.1.1", "there is no body", field("Expect: 100-continue"), Served("GET /"));
    row!("9110 10.1.1", "there is an empty body", post("Expect: 100-continue\r\nContent-Length: 0", ""),
        Served("POST /"));
    // A final answer is the other choice of section 10.1.1. The body may still come or not, so the
    // connection ends.
    row!("9110 10.1.1", "nobody wants the body",
        "POST /unread HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
        Last("POST /unread"));
    row!("9110 10.1.1", "an empty one", field("Expect:"), Served("GET /"));
    row!("9110 10.1.1", "an unknown one", field("Expect: more"), Refused(417));
    row!("9110 10.1.1", "a known and an unknown one", post("Expect: 100-continue, x\r\nContent-Length: 2", ""),
        Refused(417));
    row!("9110 10.1.1", "another status", field("Expect: 200-ok"), Refused(417));
    row!("9110 10.1.1", "a parameter", field("Expect: 100-continue;a=b"), Refused(417));
    row!("9110 10.1.1", "a refused body is not asked for",
        post(&format!("Expect: 100-continue\r\nContent-Length: {}", MOST + 1), ""), Refused(413));
    row!("9110 10.1.1", "nor is that of a bad request", post("Expect: 100-continue\r\nContent-Length: x", ""),
        Refused(400));

    // ------------------------------------------------------------------------------------------------------------
    group!("limits");
    // A head has at most 16 KiB from its first line to its blank line, with any part of it long.
    let pad = |total: usize| "y".repeat(total - field("Y: ").len());
    let long = |total: usize| "y".repeat(total - get("/").len());
    let obs = |total: usize| field(&format!("Y: {}", "\u{e9}".repeat((total - field("Y: ").len()) / 2)));
    let many = |count: usize| field("Y: 1\r\n".repeat(count - 1).trim_end());
    row!("9112 3", "a request line of 16000 bytes",
        get(&format!("/{}", "y".repeat(16000 - "GET / HTTP/1.1".len()))),
        Served(leak(format!("GET /{}", "y".repeat(16000 - "GET / HTTP/1.1".len())))));
    row!("9110 5.4", "a head of 16384 bytes, by a field", field(&format!("Y: {}", pad(16384))), Served("GET /"));
    row!("6585 5", "a head of 16385 bytes, by a field", field(&format!("Y: {}", pad(16385))), Refused(431));
    row!("9112 3", "a head of 16384 bytes, by its target",
        get(&format!("/{}", long(16384))), Served(leak(format!("GET /{}", long(16384)))));
    row!("6585 5", "a head of 16385 bytes, by its target", get(&format!("/{}", long(16385))), Refused(431));
    row!("9112 3", "a request line of 16384 bytes, its end included",
        get(&format!("/{}", "y".repeat(16384 - "GET / HTTP/1.1\r\n".len()))), Refused(431));
    row!("9110 15.5.15", "a request line of 16385 bytes, its end included",
        get(&format!("/{}", "y".repeat(16385 - "GET / HTTP/1.1\r\n".len()))), Refused(414));
    row!("9110 15.5.15", "a target without end", format!("GET /{}", "y".repeat(20_000)), Refused(414));
    row!("6585 5", "a field without end", format!("GET / HTTP/1.1\r\nY: {}", "y".repeat(20_000)), Refused(431));
    row!("6585 5", "a name without end", format!("GET / HTTP/1.1\r\n{}", "y".repeat(20_000)), Refused(431));
    row!("9110 5.4", "empty lines do not count", "\r\n".repeat(4) + &field(&format!("Y: {}", pad(16384))),
        Served("GET /"));
    row!("9110 5.5", "obs-text counts as it was sent: within", obs(16384), Served("GET /"));
    row!("9110 5.5", "obs-text counts as it was sent: beyond", obs(16386), Refused(431));
    row!("9110 5.4", "100 fields", many(100), Served("GET /"));
    row!("6585 5", "101 fields", many(101), Refused(431));
    row!("6585 5", "101 lines, and then none is well-formed", format!("GET / HTTP/1.1\r\n{}", "x\r\n".repeat(102)),
        Refused(431));
    row!("9110 15.5.14", "the longest body",
        post(&format!("Content-Length: {MOST}"), &"y".repeat(MOST)),
        Served(leak(format!("POST / body={}", "y".repeat(MOST)))));
    row!("9110 15.5.14", "one byte more", post(&format!("Content-Length: {}", MOST + 1), &"y".repeat(MOST + 1)),
        Refused(413));
    row!("9110 15.5.14", "far more", post("Content-Length: 18446744073709551615", ""), Refused(413));
    row!("9110 15.5.14", "the longest body, in chunks",
        chunks(&format!("{MOST:x}\r\n{}\r\n0\r\n\r\n", "y".repeat(MOST))),
        Served(leak(format!("POST / body={}", "y".repeat(MOST)))));
    row!("9110 15.5.14", "one byte more, in chunks",
        chunks(&format!("{MOST:x}\r\n{}\r\n1\r\ny\r\n0\r\n\r\n", "y".repeat(MOST))), BadBody(413));

    // ------------------------------------------------------------------------------------------------------------
    group!("responses");
    // Every answer in this file is checked for its status line, a Date, and a single framing.
    row!("9112 6.3", "a length", get("/hello"), Answered("200 length=5 body=hello"));
    row!("9112 7.1", "chunks, where there is none", get("/stream"), Answered("200 chunked body=hello"));
    row!("9112 6.3", "an empty body has a length", get("/empty"), Answered("200 length=0"));
    row!("9110 15.3.5", "204: no content, no length", get("/status/204"), Answered("204"));
    row!("9110 15.4.5", "304: no content", get("/status/304"), Answered("304"));
    row!("9110 15.3.6", "205: an empty body", get("/status/205"), Answered("205 length=0"));
    row!("9110 15.5.5", "404", get("/status/404"), Answered("404 length=0"));
    row!("9110 9.3.2", "HEAD of a length", line("HEAD /hello HTTP/1.1"), Bodiless("200 length=5"));
    row!("9110 9.3.2", "HEAD of chunks", line("HEAD /stream HTTP/1.1"), Bodiless("200 chunked"));
    row!("9110 9.3.2", "HEAD of a 204", line("HEAD /status/204 HTTP/1.1"), Bodiless("204"));
    row!("9110 9.3.2", "HEAD of a 404", line("HEAD /status/404 HTTP/1.1"), Bodiless("404 length=0"));
    row!("9110 9.3.2", "HEAD with a body", "HEAD /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
        Bodiless("200 length=5"));
    row!("9110 15.5.14", "HEAD that is refused for its body",
        format!("HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", MOST + 1), RefusedHead(413));
    // The answer to HEAD has no body, for any fault of the head.
    row!("9110 9.3.2", "HEAD without Host", "HEAD / HTTP/1.1\r\n\r\n", RefusedHead(400));
    row!("9110 9.3.2", "HEAD with a bad field", "HEAD / HTTP/1.1\r\nHost: x\r\nX : 1\r\n\r\n", RefusedHead(400));
    row!("9110 9.3.2", "HEAD with an unknown expectation", "HEAD / HTTP/1.1\r\nHost: x\r\nExpect: x\r\n\r\n",
        RefusedHead(417));
    row!("9112 9.6", "a handler that closes", get("/close"), Answered("200 length=5 close body=hello"));
    row!("9110 7.6.1", "a handler that closes, in a list", get("/foo-close"),
        Answered("200 length=5 close body=hello"));
    row!("9110 7.8", "an upgrade that is offered and not taken",
        field("Connection: upgrade\r\nUpgrade: websocket"), Served("GET /"));
    row!("9110 7.8", "an upgrade with a body, not taken",
        post("Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2", "ab"), Served("POST / body=ab"));
    row!("9110 7.8", "an upgrade that was not offered", get("/upgrade"),
        Answered("400 length=12 close body=Bad Request\\n"));
    row!("9110 7.8", "an upgrade that Connection does not list",
        "GET /upgrade HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\n\r\n",
        Answered("400 length=12 close body=Bad Request\\n"));

    // ------------------------------------------------------------------------------------------------------------
    group!("pipelining");
    row!("9112 9.3.2", "three, in order", get("/1") + &get("/2") + &get("/3"),
        Series(&[Served("GET /1"), Served("GET /2"), Served("GET /3")]));
    row!("9112 9.3.2", "bodies between", length("5") + &chunks("1\r\na\r\n0\r\nX: 1\r\n\r\n") + &get("/3"),
        Series(&[Served("POST / body=hello"), Served("POST / body=a then x=1"), Served("GET /3")]));
    row!("9112 2.2", "empty lines between", get("/1") + "\r\n" + &get("/2") + "\r\n\r\n" + &get("/3"),
        Series(&[Served("GET /1"), Served("GET /2"), Served("GET /3")]));
    row!("9112 9.3", "behind a body that nobody reads", length("5").replace("/ H", "/unread H") + &get("/2"),
        Series(&[Served("POST /unread"), Served("GET /2")]));
    row!("9110 9.3.2", "behind HEAD", line("HEAD /hello HTTP/1.1") + &get("/2"),
        Series(&[Bodiless("200 length=5"), Served("GET /2")]));
    row!("9110 15.3.5", "behind a 204 and a 304", get("/status/204") + &get("/status/304") + &get("/3"),
        Series(&[Answered("204"), Answered("304"), Served("GET /3")]));
    row!("9112 9.3", "1.0 and 1.1", old("Host: x\r\nConnection: keep-alive\r\n") + &get("/2"),
        Series(&[Served("GET / as=1.0"), Served("GET /2")]));
    row!("9112 9.6", "none behind close", get("/1") + &field("Connection: close") + &get("/3"),
        Series(&[Served("GET /1"), Last("GET /")]));
    row!("9112 9.6", "none behind a handler that closes", get("/close") + &get("/2"),
        Answered("200 length=5 close body=hello"));
    row!("9112 9.3", "none behind 1.0", old("Host: x\r\n") + &get("/2"), Last("GET / as=1.0"));
    row!("9112 3", "none behind a bad request line", line("GET / http/1.1") + &get("/2"), Refused(400));
    row!("9112 5.1", "none behind a bad field", field("X : 1") + &get("/2"), Refused(400));
    row!("9112 3.2", "none behind a request without Host", "GET / HTTP/1.1\r\n\r\n".to_owned() + &get("/2"),
        Refused(400));
    row!("9112 6.3", "none behind an unclear length", length("5, 6") + &get("/2"), Refused(400));
    row!("9112 6.1", "none behind an unknown coding", coding("gzip, chunked") + &get("/2"), Refused(501));
    row!("9112 11.2", "none that was smuggled by a length",
        post("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n") + &get("/2"), Refused(400));
    row!("9112 7.1", "none behind a bad chunk", chunks("5\r\nhello!\r\n0\r\n\r\n") + &get("/2"), BadBody(400));
    row!("9112 9.6", "none behind an unknown method", line("BREW / HTTP/1.1") + &get("/2"), Refused(501));
    row!("9112 6.3", "more body than its length is a request", length("4") + &get("/2"),
        Series(&[Served("POST / body=hell"), Refused(501)]));
    row!("9112 8", "the end within the second", get("/1") + "GET /2", Series(&[Served("GET /1"), CutHead(400)]));
    rows
}

fn leak(text: String) -> &'static str {
    text.leak()
}

#[test]
fn every_row_holds() {
    let seed = std::env::var("RFC_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("RFC_SEED={seed}");
    let rows = table();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let bench = CountingServer::new();
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let tried = catch_unwind(AssertUnwindSafe(|| bench.run(row, seed)));
                    if let Err(why) = tried.unwrap_or_else(|panic| Err(message(&*panic))) {
                        let Row { group, section, what, .. } = row;
                        let line = format!("{group}: RFC {section}: {what}: {why}");
                        failures.lock().unwrap().push(line);
                    }
                }
                bench.assert_drains();
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    let count = failures.len();
    assert!(failures.is_empty(), "{count} of {} rows:\n{}", rows.len(), failures.join("\n"));
}

/// Rows have different texts.
#[test]
fn no_row_is_there_twice() {
    let rows = table();
    assert!(rows.len() >= 170, "{}", rows.len());
    for (i, row) in rows.iter().enumerate() {
        let same = |other: &&Row| other.group == row.group && other.send == row.send;
        let twin = rows[..i].iter().find(same).map(|row| row.what);
        assert_eq!(twin, None, "{}", row.what);
    }
}

/// The number of rows at a time, each with a server of its own.
const WORKERS: usize = 4;
/// The number of open connections of a row at a time.
const CONNECTIONS: usize = 40;
/// The longest message that is cut at every place.
const SHORT: usize = 120;
/// The number of random cuts of a longer message.
const CUTS: usize = 8;

/// The request before a row, and its answer.
const FIRST: (&str, Expect) = ("GET /first HTTP/1.1\r\nHost: x\r\n\r\n", Served("GET /first"));

/// A server, and the number of requests that its handler was given.
struct CountingServer {
    server: Running,
    calls: Arc<AtomicUsize>,
}

impl CountingServer {
    fn new() -> Self {
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = calls.clone();
        let limits = Limits::default().body_bytes(Some(MOST as u64));
        let server = Running::with(limits, move |request| {
            if request.url().path() != "/again" {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            app(request)
        });
        Self { server, calls }
    }

    fn run(&self, row: &Row, seed: u64) -> Result<(), String> {
        let send = &row.send[..];
        self.exchange(row, &[(send, b"")], &[row.expect]).map_err(|why| format!("whole: {why}"))?;
        let (first, expect) = FIRST;
        let both = [first.as_bytes(), send].concat();
        self.exchange(row, &[(&both, b"")], &[expect, row.expect])
            .map_err(|why| format!("behind another: {why}"))?;

        let mut random = fastrand::Rng::with_seed(seed);
        let cuts: Vec<_> = match send.len() {
            length @ 0..=SHORT => (1..length).collect(),
            length => (0..CUTS).map(|_| random.usize(1..length)).collect(),
        };
        for cuts in cuts.chunks(CONNECTIONS) {
            let parts: Vec<_> = cuts.iter().map(|&cut| send.split_at(cut)).collect();
            self.exchange(row, &parts, &[row.expect]).map_err(|why| format!("cut: {why}"))?;
        }
        Ok(())
    }

    /// Sends the two parts of a message on a new connection, for each pair of parts.
    fn exchange(
        &self,
        row: &Row,
        parts: &[(&[u8], &[u8])],
        expect: &[Expect],
    ) -> Result<(), String> {
        self.calls.store(0, Ordering::Relaxed);
        let mut clients: Vec<_> = parts.iter().map(|_| self.server.connect()).collect();
        for (client, (begin, end)) in clients.iter_mut().zip(parts) {
            client.send(begin);
            if end.is_empty() && row.expect.half_closes() {
                client.half_close();
            }
        }
        if parts.iter().any(|(_, end)| !end.is_empty()) {
            // When this is answered, the server has read the first parts.
            again(&mut self.server.connect())?;
        }
        for (client, (begin, end)) in clients.iter_mut().zip(parts) {
            if !end.is_empty() {
                client.send(end);
                if row.expect.half_closes() {
                    client.half_close();
                }
            }
            let checked = catch_unwind(AssertUnwindSafe(|| check(client, expect)));
            checked
                .unwrap_or_else(|panic| Err(message(&*panic)))
                .map_err(|why| format!("{} + {}: {why}", shown(begin), shown(end)))?;
        }
        let expected = parts.len() * expect.iter().map(Expect::calls).sum::<usize>();
        let calls = self.calls.load(Ordering::Relaxed);
        ensure(calls == expected, || format!("{calls} calls of the handler, not {expected}"))
    }

    fn assert_drains(&self) {
        common::wait_until("every connection has ended", || self.server.shutdown.in_flight() == 0);
        assert!(self.server.stop().is_drained());
    }
}

impl Expect {
    /// Returns the number of requests for the handler.
    fn calls(&self) -> usize {
        match self {
            Refused(_) | RefusedHead(_) | CutHead(_) | Closed => 0,
            Series(all) => all.iter().map(Self::calls).sum(),
            _ => 1,
        }
    }

    /// Returns `true` if the client closes its side after the message.
    fn half_closes(&self) -> bool {
        match self {
            CutHead(_) | CutBody(_) | Closed => true,
            Series(all) => all.iter().any(Self::half_closes),
            _ => false,
        }
    }
}

/// Answers with the request as the handler sees it: method, path and query, and further facts.
async fn app(mut request: Request) -> http_types::Result<Response> {
    let url = request.url();
    let mut saw = format!("{} {}", request.method(), url.path());
    let _ = url.query().map(|query| write!(saw, "?{query}"));
    if url.scheme() == "https" {
        saw += " https";
    }
    if request.version() == Some(Version::Http1_0) {
        saw += " as=1.0";
    }
    let host = request.header("host").map_or("", |host| host.as_str());
    // If a URL cannot have the host, it has `host.invalid`.
    let held = url.host_str().unwrap();
    let is_held = host.to_ascii_lowercase().starts_with(held) || held == "host.invalid";
    assert!(is_held || host.is_empty() && held == "localhost", "{host}, {url}");
    if host != "x" {
        let _ = write!(saw, " at={host}");
    }
    if let Some(values) = request.header("x") {
        let values: Vec<_> = values.iter().map(|value| value.as_str()).collect();
        let _ = write!(saw, " x={}", values.join("|"));
    }

    let path = request.url().path().to_owned();
    if let Some(status) = path.strip_prefix("/status/") {
        return Ok(Response::new(status.parse::<u16>()?));
    }
    match &path[..] {
        "/unread" => return Ok(saw.into()),
        "/hello" => return Ok("hello".into()),
        "/stream" => return Ok(Body::from_reader(Cursor::new("hello"), None).into()),
        "/empty" => return Ok(Response::new(200)),
        "/close" | "/foo-close" => {
            let mut response = Response::from("hello");
            let option = if path == "/close" { "close" } else { "foo, Close" };
            response.insert_header("connection", option);
            return Ok(response);
        }
        "/upgrade" => {
            let mut response = Response::new(StatusCode::SwitchingProtocols);
            response.insert_header(UPGRADE, "x");
            drop(response.recv_upgrade().await);
            return Ok(response);
        }
        _ => {}
    }

    let trailers = request.has_trailers().then(|| request.recv_trailers());
    let mut body = Vec::new();
    request.read_to_end(&mut body).await?;
    if !body.is_empty() {
        let _ = write!(saw, " body={}", body.escape_ascii());
    }
    if let Some(trailers) = trailers {
        let trailers = trailers.await.unwrap_or_else(Trailers::new);
        let headers: &Headers = &trailers;
        let values = |values: &HeaderValues| values.iter().map(|v| v.as_str()).collect::<String>();
        let shown = headers.iter().map(|(name, all)| format!(" {name}={}", values(all)));
        let mut all: Vec<_> = shown.collect();
        all.sort();
        if !all.is_empty() {
            let _ = write!(saw, " then{}", all.concat());
        }
    }
    Ok(saw.into())
}

/// Checks all answers, and that the connection serves a further request if it should.
fn check(client: &mut Client, expect: &[Expect]) -> Result<(), String> {
    for expect in expect {
        if !check_one(client, expect)? {
            return end(client);
        }
    }
    again(client)
}

/// Checks the answer to one request. Returns `true` if the connection goes on.
fn check_one(client: &mut Client, expect: &Expect) -> Result<bool, String> {
    let expected = match *expect {
        Served(saw) | Last(saw) => {
            let response = receive(client, false)?;
            let last = matches!(expect, Last(_));
            let told = (response.status, &*response.text(), response.says_close());
            let keeps = saw.contains(" as=1.0") && !last;
            ensure(told == (200, saw, last), || format!("{told:?}, not {:?}", (saw, last)))?;
            let option = response.header("connection");
            let option = option.as_deref().unwrap_or("");
            let due = if last {
                "close"
            } else if keeps {
                "keep-alive"
            } else {
                ""
            };
            ensure(option == due, || format!("Connection: {option}"))?;
            return Ok(!last);
        }
        Answered(expected) | Bodiless(expected) => {
            let response = receive(client, matches!(expect, Bodiless(_)))?;
            let told = summary(&response);
            ensure(told == expected, || format!("`{told}`, not `{expected}`"))?;
            return Ok(!response.says_close());
        }
        Continue { then, saw } => {
            let interim = receive(client, false)?;
            ensure(interim.lines == ["HTTP/1.1 100 Continue"], || format!("{:?}", interim.lines))?;
            client.send(then);
            return check_one(client, &Served(saw));
        }
        Series(all) => {
            let mut open = true;
            for expect in all {
                ensure(open, || "the connection ended early".to_owned())?;
                open = check_one(client, expect)?;
            }
            return Ok(open);
        }
        Closed => return Ok(false),
        Refused(status) | RefusedHead(status) | BadBody(status) | CutHead(status)
        | CutBody(status) => status,
    };
    let response = receive(client, matches!(expect, RefusedHead(_)))?;
    let told = (response.status, response.says_close());
    ensure(told == (expected, true), || format!("{told:?}, not {expected}"))?;
    let has_body = !response.body.is_empty();
    ensure(has_body != matches!(expect, RefusedHead(_)), || "a body, or none".to_owned())?;
    Ok(false)
}

/// Returns the next response, which has to be well-formed and have a single framing.
fn receive(client: &mut Client, to_head: bool) -> Result<Received, String> {
    let received = client.try_response(to_head).map_err(|end| format!("no answer, but {end:?}"))?;
    let lines = &received.lines;
    let start = lines[0].as_bytes();
    let is_well_formed = start.starts_with(b"HTTP/1.1 ") && start.len() > 13 && start[12] == b' ';
    ensure(is_well_formed, || format!("{lines:?}"))?;
    let count = |name: &str| {
        let names = lines[1..].iter().map(|line| line.split_once(": ").map_or(&**line, |(n, _)| n));
        names.filter(|n| n.eq_ignore_ascii_case(name)).count()
    };
    let framing = (count("content-length"), count("transfer-encoding"));
    // RFC 9110 section 6.6.1, RFC 9112 sections 6.1 and 6.2.
    let (date, allowed): (_, &[_]) = match received.status {
        100..200 => (0, &[(0, 0)]),
        204 => (1, &[(0, 0)]),
        304 => (1, &[(0, 0), (1, 0)]),
        // This is for HTTP/1.0 alone, where the connection then ends.
        _ if received.says_close() && received.status == 200 => (1, &[(1, 0), (0, 1), (0, 0)]),
        _ => (1, &[(1, 0), (0, 1)]),
    };
    ensure(allowed.contains(&framing) && count("date") == date, || format!("{lines:?}"))?;
    if let Some(date) = received.header("date") {
        let is_date = date.len() == 29 && date.ends_with(" GMT") && date.as_bytes()[3] == b',';
        ensure(is_date, || date)?;
    }
    ensure(count("connection") <= 1, || format!("{lines:?}"))?;
    Ok(received)
}

/// Returns the status, the framing, the fate of the connection, and the body.
fn summary(response: &Received) -> String {
    let mut all = response.status.to_string();
    let _ = response.header("content-length").map(|length| write!(all, " length={length}"));
    let _ = response.header("transfer-encoding").map(|coding| write!(all, " {coding}"));
    let _ = response.header("connection").map(|option| write!(all, " {option}"));
    if !response.body.is_empty() {
        let _ = write!(all, " body={}", response.body.escape_ascii());
    }
    all
}

/// Checks that the connection serves a further request.
fn again(client: &mut Client) -> Result<(), String> {
    let response = receive(client.get("/again"), false);
    let response = response.map_err(|why| format!("a further request: {why}"))?;
    let told = response.text();
    ensure(told == "GET /again at=test", || {
        format!("a further request: {:?}, {told}", response.lines)
    })
}

/// Checks that only the end comes, and that it is not a reset.
fn end(client: &mut Client) -> Result<(), String> {
    let (rest, end) = client.rest();
    ensure(rest.is_empty() && end == End::Eof, || format!("at the end: {}, {end:?}", shown(&rest)))
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// Returns the message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default()
}

/// Returns bytes as text for a message, cut to a sensible length.
fn shown(bytes: &[u8]) -> String {
    match bytes.len() {
        0..200 => format!("\"{}\"", bytes.escape_ascii()),
        length => format!("\"{}\"… ({length} bytes)", bytes[..100].escape_ascii()),
    }
}
