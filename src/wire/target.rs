//! Makes the URL that a handler sees from a request's host and target.
//!
//! Invariant: a handler's URL says what the client sent (rule W13). The url crate removes dot
//! segments, decodes escapes in hosts, and reads numbers as IPv4 addresses, but a proxy in front
//! does not. The server refuses a request if the two would disagree. Looks at neither methods nor
//! fields. Each answer follows from host and target alone, although a thread keeps its last URL to
//! save work.

use std::cell::RefCell;
use std::net::Ipv6Addr;

use http_types::url::Position;
use http_types::{StatusCode, Url};

use super::request_line::Absolute;

/// The host in the URL of a request whose own host cannot be in a `Url`, such as `web.1`.
///
/// RFC 2606 section 2 keeps this name from ever meaning anything. `localhost` would be wrong,
/// because a proxy in front may forbid its clients to ask for `localhost`.
const UNKNOWN: &str = "host.invalid";

/// A URL, and the host that it was made of.
struct Made {
    host: String,
    url: Url,
}

thread_local! {
    /// The last URL of the thread. Most clients of a thread ask for the same host, and most of the
    /// cost of parsing a URL is in the host.
    static LAST: RefCell<Option<Made>> = const { RefCell::new(None) };
}

/// The longest host and target, in bytes, of which a thread keeps the URL.
const KEPT: usize = 256;

/// Returns the URL that [`parse`] makes, with less work if the thread's last URL has the same host.
///
/// # Errors
///
/// Returns the errors of [`parse`].
pub(crate) fn url(scheme: &str, host: Option<&str>, target: &str) -> Result<Url, StatusCode> {
    // A reference that begins with one slash keeps the authority of its base, and nothing else of
    // the base (RFC 3986 section 5.2.2). The url crate takes a backslash for a slash.
    let bytes = target.as_bytes();
    let is_path = bytes.first() == Some(&b'/') && !matches!(bytes.get(1), Some(b'/' | b'\\'));
    let Some(host) = host.filter(|host| is_path && host.len() + target.len() <= KEPT) else {
        return parse(scheme, host, target);
    };
    LAST.with_borrow_mut(|last| {
        let has_this_host = |made: &&mut Made| made.url.scheme() == scheme && made.host == host;
        if let Some(made) = last.as_mut().filter(has_this_host) {
            if &made.url[Position::BeforePath..] != target {
                let url = made.url.join(target).ok().filter(|url| is_same_path(target, url));
                made.url = url.ok_or(StatusCode::BadRequest)?;
            }
            return Ok(made.url.clone());
        }
        let url = parse(scheme, Some(host), target)?;
        *last = Some(Made { host: host.to_owned(), url: url.clone() });
        Ok(url)
    })
}

/// Makes the URL of `target` at `host`, with this scheme unless the target has one. Without a host,
/// as HTTP/1.0 allows, the URL is at `localhost`.
///
/// The URL may escape characters that no URI may have (RFC 3986 section 2), for example `"` as
/// `%22`.
///
/// # Errors
///
/// Returns 400 if the URL would say something else, because of a dot segment in the path
/// (`/a/../b`, `/%2e%2e/b`) or a host that the url crate reads as another one (`%61dmin`,
/// `0x7f.1`).
fn parse(scheme: &str, host: Option<&str>, target: &str) -> Result<Url, StatusCode> {
    let absolute = Absolute::split(target);
    let scheme = match absolute {
        Some(absolute) if absolute.scheme.eq_ignore_ascii_case("https") => "https",
        Some(_) => "http",
        None => scheme,
    };
    let path = match absolute {
        Some(absolute) => absolute.path,
        // http-types has no name for the server as a whole, and `/` is a resource of its own.
        None if target == "*" => "/*",
        None => target,
    };
    let at = |host: &str| Url::parse(&format!("{scheme}://{host}{path}"));
    let url = match host.map(|host| (host, at(host))) {
        Some((host, Ok(url))) if is_same_host(host, &url) => Ok(url),
        Some((_, Ok(_))) => return Err(StatusCode::BadRequest),
        // The url crate has failed because of the name, since it takes every path and every valid
        // port. A proxy in front may know that name.
        Some((host, Err(_))) => {
            at(&format!("{UNKNOWN}{}", &host[host.find(':').unwrap_or(host.len())..]))
        }
        None => at("localhost"),
    };
    url.ok().filter(|url| is_same_path(path, url)).ok_or(StatusCode::BadRequest)
}

/// Returns `true` if `url` has the host that the client sent, apart from the case of letters and
/// the form of an IPv6 address.
fn is_same_host(sent: &str, url: &Url) -> bool {
    let Some(held) = url.host_str() else { return false };
    match sent.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((sent, _)) => {
            let held = held.trim_matches(['[', ']']).parse::<Ipv6Addr>();
            sent.parse::<Ipv6Addr>().is_ok_and(|sent| held == Ok(sent))
        }
        None => {
            let sent = sent.split_once(':').map_or(sent, |(name, _)| name);
            sent.eq_ignore_ascii_case(held)
        }
    }
}

/// Returns `true` if `url` has the path and the query that the client sent, apart from characters
/// that `url` holds escaped.
fn is_same_path(sent: &str, url: &Url) -> bool {
    let held = &url[Position::BeforePath..];
    if sent.starts_with('/') && held == sent {
        return true;
    }
    let mut held = held.bytes();
    // RFC 9110 section 4.2.3: an empty path is the same as `/`.
    if !sent.starts_with('/') && held.next() != Some(b'/') {
        return false;
    }
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    let is_same = sent.bytes().all(|byte| match held.next() {
        Some(b'%') if byte != b'%' => {
            let digits = (digit(held.next()), digit(held.next()));
            matches!(digits, (Some(high), Some(low)) if high * 16 + low == u32::from(byte))
        }
        other => other == Some(byte),
    });
    is_same && held.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded::seeded;

    #[test]
    fn the_url_says_what_was_sent() {
        for (host, target, seen) in [
            ("a", "/", "http://a/"),
            ("a:80", "/b?c", "http://a/b?c"),
            ("a:8080", "/b?c", "http://a:8080/b?c"),
            ("A.b", "//c//d", "http://a.b//c//d"),
            ("a.", "/", "http://a./"),
            ("a_b", "/", "http://a_b/"),
            ("127.0.0.1:80", "/", "http://127.0.0.1/"),
            ("[::1]:81", "/", "http://[::1]:81/"),
            ("[0:0::0001]", "/", "http://[::1]/"),
            ("a", "*", "http://a/*"),
            ("b", "http://b", "http://b/"),
            ("b", "HTTP://b?c=/d", "http://b/?c=/d"),
            ("b:1", "https://b:1/c", "https://b:1/c"),
            // Escapes and odd characters.
            ("a", "/%2F%2f%00%zz%", "http://a/%2F%2f%00%zz%"),
            ("a", "/\"<>`{}?\"<>'", "http://a/%22%3C%3E%60%7B%7D?%22%3C%3E%27"),
            ("a", "/a|b^c?a\\b", "http://a/a|b^c?a\\b"),
            // Dots that are not segments of their own.
            ("a", "/...", "http://a/..."),
            ("a", "/.a/b./..c?/../d", "http://a/.a/b./..c?/../d"),
            ("a", "/%2e%2e%2fb", "http://a/%2e%2e%2fb"),
        ] {
            let url = url("http", Some(host), target);
            assert_eq!(url.as_ref().map(Url::as_str), Ok(seen), "{host} {target}");
        }
        for (host, seen) in
            [("a", "https://a/b"), ("a:443", "https://a/b"), ("a:80", "https://a:80/b")]
        {
            assert_eq!(url("https", Some(host), "/b").unwrap().as_str(), seen);
        }
        assert_eq!(url("https", Some("a"), "http://a/b").unwrap().as_str(), "http://a/b");
        assert_eq!(url("http", None, "/a").unwrap().as_str(), "http://localhost/a");
    }

    /// The last URL of the thread does not change the next one.
    #[test]
    fn the_last_url_changes_nothing() {
        const HOSTS: &[&str] = &["a", "a:80", "A", "b:81", "[::1]", "[::1]:80", "web.1", "0x7f.1"];
        const PARTS: &[&str] = &[
            "/", "/", "a", "bc", ".", "..", "%2e", "%41", "?", "&x=1", "\\", "'", "\"", "<", "{",
            "|", "^", ":", "@", "#", ";", "*", "http://", "a:", "é", " ", "\t",
        ];
        let mut random = seeded();
        for _ in 0..20_000 {
            let scheme = if random.u8(..8) == 0 { "https" } else { "http" };
            let host = HOSTS.get(random.usize(..HOSTS.len() * 9 / 8));
            let mut target = String::from(if random.u8(..8) == 0 { "" } else { "/" });
            for _ in 0..random.usize(..8) {
                target += PARTS[random.usize(..PARTS.len())];
            }
            let host = host.copied();
            assert_eq!(
                url(scheme, host, &target),
                parse(scheme, host, &target),
                "{host:?} {target}"
            );
        }
    }

    #[test]
    fn a_long_url_is_not_kept() {
        let kept = || LAST.with_borrow(|last| last.as_ref().map(|made| made.url.path().len()));
        url("http", Some("a"), "/b").unwrap();
        url("http", Some("a"), &format!("/{}", "c".repeat(KEPT))).unwrap();
        assert_eq!(kept(), Some(2));
    }

    #[test]
    fn another_path_is_refused() {
        for target in [
            "/.",
            "/..",
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/%2e/b",
            "/a/%2e%2e/b",
            "/a/%2E%2e",
            "/.%2e/b",
            "/%2e./b",
            "http://a/../b",
            "http://a/%2e",
        ] {
            assert_eq!(url("http", Some("a"), target), Err(StatusCode::BadRequest), "{target}");
        }
    }

    #[test]
    fn another_host_is_refused() {
        for host in [
            "%61dmin",
            "a%2Eb",
            "2130706433",
            "017700000001",
            "0x7f000001",
            "0x7f.1",
            "127.1",
            "010.0.0.1",
            "1.2.3",
            "127.0.0.1.",
            "%31",
            "0",
            "1",
        ] {
            assert_eq!(url("http", Some(host), "/"), Err(StatusCode::BadRequest), "{host}");
            let absolute = format!("http://{host}/");
            assert_eq!(url("http", Some(host), &absolute), Err(StatusCode::BadRequest), "{host}");
        }
    }

    /// The URL cannot hold such a name, but the handler finds it in `Host`.
    #[test]
    fn a_host_that_no_url_holds_is_named_as_unknown() {
        for host in ["web.1", "app.2024", "1.2.3.4.5", "xn--a", "999.999.999.999", "999.1"] {
            assert_eq!(
                url("http", Some(host), "/b?c").unwrap().as_str(),
                "http://host.invalid/b?c",
                "{host}"
            );
        }
        let url_at_port = url("http", Some("web.1:81"), "/b?c").unwrap();
        assert_eq!(url_at_port.as_str(), "http://host.invalid:81/b?c");
        assert_eq!(url("http", Some("web.1"), "/../b"), Err(StatusCode::BadRequest));
    }
}
