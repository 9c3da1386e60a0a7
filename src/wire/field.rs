//! The names and values that a field may have, and the fields that must not come behind a body (RFC
//! 9110 sections 5 and 6.5).
//!
//! Pure: each answer follows from the bytes of one name or value. The callers decide what becomes
//! of a field.

use std::borrow::Cow;

use http_types::headers::{
    ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CACHE_CONTROL,
    CONNECTION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, COOKIE,
    FORWARDED, FROM, HOST, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, MAX_FORWARDS, ORIGIN, PRAGMA, PROXY_AUTHORIZATION, REFERER, TE,
    TRACEPARENT, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT, VIA,
};

/// Fields that would frame the message anew. The gate refuses them as trailers.
pub(super) const FRAMING_FIELDS: &[&str] = &["content-length", "transfer-encoding"];

/// Fields that say how to route, read, authorise or answer the message, and so are needed before
/// its body (RFC 9110 section 6.5.1). The gate drops them as trailers.
#[rustfmt::skip]
const EARLY_FIELDS: &[&str] = &[
    "authorization", "cache-control", "connection", "content-encoding", "content-range",
    "content-type", "cookie", "expect", "forwarded", "host", "keep-alive", "max-forwards", "pragma",
    "range", "set-cookie", "te", "trailer", "upgrade", "x-real-ip",
];

/// The beginnings of the names of further such fields.
const EARLY_PREFIXES: &[&str] = &["if-", "proxy-", "x-forwarded-"];

/// The names of fields that clients send and http-types knows, by their length.
static KNOWN: [&[HeaderName]; 20] = [
    &[],
    &[],
    &[TE],
    &[VIA],
    &[HOST, FROM],
    &[],
    &[ACCEPT, COOKIE, ORIGIN, PRAGMA],
    &[REFERER, UPGRADE, TRAILER],
    &[IF_MATCH, IF_RANGE],
    &[FORWARDED],
    &[CONNECTION, USER_AGENT],
    &[TRACEPARENT],
    &[CONTENT_TYPE, MAX_FORWARDS],
    &[CACHE_CONTROL, AUTHORIZATION, IF_NONE_MATCH],
    &[CONTENT_LENGTH, ACCEPT_CHARSET],
    &[ACCEPT_ENCODING, ACCEPT_LANGUAGE],
    &[CONTENT_ENCODING, CONTENT_LANGUAGE],
    &[IF_MODIFIED_SINCE, TRANSFER_ENCODING],
    &[],
    &[PROXY_AUTHORIZATION, IF_UNMODIFIED_SINCE],
];

/// Returns the name of a field as http-types holds it, without an allocation for a common name.
pub(super) fn header_name(name: &str) -> HeaderName {
    let known = KNOWN.get(name.len()).copied().unwrap_or_default();
    let known = known.iter().find(|known| known.as_str().eq_ignore_ascii_case(name));
    known.map_or_else(|| name.into(), HeaderName::clone)
}

/// Returns `true` if a field may have this value (RFC 9110 section 5.5).
pub(super) fn is_clean(value: &str) -> bool {
    !value.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0))
}

/// Returns a field's value as http-types can hold it, with bytes outside ASCII as `%XX`.
pub(super) fn visible(value: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(value) {
        Ok(text) if text.is_ascii() => Cow::Borrowed(text),
        _ => {
            let half = |half: u8| char::from(b"0123456789ABCDEF"[usize::from(half)]);
            let mut text = String::with_capacity(2 * value.len());
            for &byte in value {
                match byte {
                    0x80.. => text.extend(['%', half(byte >> 4), half(byte & 15)]),
                    _ => text.push(char::from(byte)),
                }
            }
            Cow::Owned(text)
        }
    }
}

/// Returns `true` if a field may have this name (RFC 9110 section 5.1).
pub(super) fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_token_byte)
}

/// Returns `true` if a field of this name must not come as a trailer.
pub(super) fn is_early(name: &[u8]) -> bool {
    let begins = |prefix: &&str| {
        name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    is_one_of(name, EARLY_FIELDS) || EARLY_PREFIXES.iter().any(begins)
}

/// Returns `true` if neither a request nor a response may send a field of this name behind its
/// body.
pub(super) fn is_forbidden_trailer(name: &[u8]) -> bool {
    is_one_of(name, FRAMING_FIELDS) || is_early(name)
}

/// Returns `true` if a field name is one of `names`, in any case.
pub(super) fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// Returns `true` if a byte may be part of a token, for example of a field name or a method
/// (`tchar`, RFC 9110 section 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    IN_TOKEN[usize::from(byte)]
}

/// The answer for each byte. A table is fast, and the gate asks about every byte of each name.
static IN_TOKEN: [bool; 256] = {
    let mut in_token = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        in_token[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"!#$%&'*+-.^_`|~";
    let mut mark = 0;
    while mark < marks.len() {
        in_token[marks[mark] as usize] = true;
        mark += 1;
    }
    in_token
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_name_is_found_by_its_length() {
        for (length, names) in KNOWN.iter().enumerate() {
            for name in *names {
                assert_eq!(name.as_str().len(), length);
                assert_eq!(&header_name(&name.as_str().to_ascii_uppercase()), name);
            }
        }
        for name in ["", "x", "Hosts", "Sec-Fetch-Mode", "a-name-that-is-longer-than-any"] {
            assert_eq!(header_name(name).as_str(), name.to_ascii_lowercase());
        }
    }
}
