//! The names and values that a field may have, and the fields that must not come behind a body (RFC
//! 9110 sections 5 and 6.5).
//!
//! Pure: each answer follows from the bytes of one name or value. The callers decide what becomes
//! of a field.

use std::borrow::Cow;

/// Fields that would frame the message anew: as a trailer, they are refused.
pub(super) const FRAMING_FIELDS: &str = "content-length transfer-encoding";

/// Fields that say how to route, read, authorise or answer the message, and so are needed before
/// its body (RFC 9110 section 6.5.1): as a trailer, they are dropped.
const EARLY_FIELDS: &str = "authorization cache-control connection content-encoding content-range content-type \
    cookie expect forwarded host keep-alive max-forwards pragma range set-cookie te trailer upgrade x-real-ip";

/// How the names of further such fields begin.
const EARLY_PREFIXES: &str = "if- proxy- x-forwarded-";

/// Returns `true` if a field may have this value (RFC 9110 section 5.5).
pub(super) fn is_clean(value: &str) -> bool {
    !value.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0))
}

/// Returns a field's value as http-types can hold it, with bytes outside ASCII as `%XX`.
pub(super) fn visible(value: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(value) {
        Ok(text) if text.is_ascii() => Cow::Borrowed(text),
        _ => {
            let shown = |&byte: &u8| match byte {
                0x80.. => format!("%{byte:02X}"),
                _ => char::from(byte).to_string(),
            };
            Cow::Owned(value.iter().map(shown).collect())
        }
    }
}

/// Returns `true` if a field may have this name (RFC 9110 section 5.1).
pub(super) fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_token_byte)
}

/// Returns `true` if a field of this name must not come as a trailer.
pub(super) fn is_early(name: &[u8]) -> bool {
    let begins =
        |prefix: &str| name.len() >= prefix.len() && is_one_of(&name[..prefix.len()], prefix);
    is_one_of(name, EARLY_FIELDS) || EARLY_PREFIXES.split(' ').any(begins)
}

/// Returns `true` if neither a request nor a response may send a field of this name behind its
/// body.
pub(super) fn is_forbidden_trailer(name: &[u8]) -> bool {
    is_one_of(name, FRAMING_FIELDS) || is_early(name)
}

/// Returns `true` if a field name is one of `names`, which spaces separate.
pub(super) fn is_one_of(name: &[u8], names: &str) -> bool {
    names.split(' ').any(|n| name.eq_ignore_ascii_case(n.as_bytes()))
}

/// Returns `true` if a byte may be part of a token, for example of a field name or a method
/// (`tchar`, RFC 9110 section 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
