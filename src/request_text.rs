//! [`RequestText`]: the head of a request as text, for those who report on the request.
//!
//! Invariant: the ranges lie in the text, at the boundaries of its characters. The head may be
//! incomplete or malformed, and then has no fields. Parses nothing but field lines.

use std::ops::Range;

use http_types::Version;

/// A request's head as text.
#[derive(Debug, Default)]
pub(crate) struct RequestText {
    pub(crate) text: String,
    pub(crate) method: Range<usize>,
    pub(crate) target: Range<usize>,
    /// The beginning of the field lines in the text, or its end if the head is not whole.
    pub(crate) fields: usize,
    pub(crate) version: Option<Version>,
}

impl RequestText {
    pub(crate) fn method(&self) -> &str {
        &self.text[self.method.clone()]
    }

    pub(crate) fn target(&self) -> &str {
        &self.text[self.target.clone()]
    }

    /// Returns the value of the first field of this name, in upper or lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut rest = &self.text[self.fields..];
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest.as_bytes()).map_or(rest.len(), |end| end + 1);
            let (line, after) = rest.split_at(end);
            if let Some(value) = value_of(line, name) {
                return Some(value);
            }
            rest = after;
        }
        None
    }
}

/// Returns the value of a field line, if the field has this name.
fn value_of<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    // Most lines have another field, and show it by the place of their colon.
    if line.as_bytes().get(name.len()) != Some(&b':') {
        return None;
    }
    let (own, value) = line.split_at(name.len());
    let is_own = own.eq_ignore_ascii_case(name) && !own.contains(':');
    is_own.then(|| value[1..].trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_the_first_of_its_name() {
        let text = "GET / HTTP/1.1\r\nHost: a\r\nX:\r\nHosts: b\r\nhost: c\nCost: a:b \r\n\r\n";
        let request = RequestText { text: text.into(), fields: 16, ..RequestText::default() };
        for (name, value) in [
            ("HOST", Some("a")),
            ("hosts", Some("b")),
            ("x", Some("")),
            ("cost", Some("a:b")),
            ("get /", None),
            ("ost", None),
            ("Cost: a", None),
            ("", None),
            ("é", None),
        ] {
            assert_eq!(request.field(name), value, "{name}");
        }
        assert_eq!(RequestText::default().field("host"), None);
    }
}
