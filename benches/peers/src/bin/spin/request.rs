//! The request that a client sends repeatedly, and the response that it must receive.
//!
//! The request is built once, so the client formats nothing during the run. A head of up to twelve
//! fields has the fields of a browser, in the browser's order. A longer head has further fields
//! after them.

/// The fields that a browser sends in addition to `Host`.
const BROWSER: [(&str, &str); 11] = [
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    (
        "Accept",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    ),
    ("Accept-Language", "en-GB,en;q=0.8,de;q=0.5,de-DE;q=0.3"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Referer", "https://www.example.org/some/page/that/links/here"),
    ("Cookie", "session=8f14e45fceea167a5a36dedd4bea2543; theme=dark; consent=necessary"),
    ("Upgrade-Insecure-Requests", "1"),
    ("Sec-Fetch-Dest", "document"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Site", "same-origin"),
    ("Sec-Fetch-User", "?1"),
];

/// A request and the length of its response.
pub struct Request {
    pub head: Vec<u8>,
    /// The number of bytes after the head.
    pub body: u64,
    /// The required length of the response's body.
    pub answer: u64,
}

impl Request {
    /// Makes a request whose head has this number of fields, including `Host` and, for an upload,
    /// `Content-Length`.
    pub fn new(path: &str, fields: usize, upload: Option<u64>, answer: u64) -> Self {
        let method = if upload.is_some() { "POST" } else { "GET" };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        let mut left = fields.saturating_sub(1);
        if let Some(length) = upload {
            head += &format!("Content-Length: {length}\r\n");
            left = left.saturating_sub(1);
        }
        for (name, value) in BROWSER.iter().take(left) {
            head += &format!("{name}: {value}\r\n");
        }
        for number in BROWSER.len()..left {
            head += &format!("X-Field-{number}: a value of some thirty letters\r\n");
        }
        head += "\r\n";
        Self { head: head.into_bytes(), body: upload.unwrap_or(0), answer }
    }
}

#[cfg(test)]
mod tests {
    use super::Request;

    #[test]
    fn a_head_has_as_many_fields_as_asked_for() {
        for (fields, upload) in [(1, None), (2, None), (12, None), (60, None), (12, Some(7))] {
            let request = Request::new("/", fields, upload, 4);
            let head = String::from_utf8(request.head).unwrap();
            assert_eq!(head.trim_end().lines().count(), 1 + fields, "{head}");
            assert!(head.ends_with("\r\n\r\n"));
        }
    }
}
