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
        let fields = self.text[self.fields..].lines();
        let mut fields = fields.filter_map(|line| line.split_once(':'));
        fields.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim_ascii())
    }
}
