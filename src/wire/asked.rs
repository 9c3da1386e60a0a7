//! [`Asked`]: the part of a request that decides how it is answered.
//!
//! Pure: knows of a response only whether its status allows a body.

use http_types::{Method, StatusCode, Version};

use super::head::Head;

/// The part of a request that decides how it is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) version: Version,
    /// Set if the client accepts trailers.
    pub(crate) accepts_trailers: bool,
}

impl Asked {
    pub(crate) fn by(head: &Head) -> Self {
        Self { method: head.method, version: head.version, accepts_trailers: head.accepts_trailers }
    }
}

/// Returns `true` if a response with this status has no body (RFC 9110 sections 15.2, 15.3.5 and
/// 15.4.5).
pub(super) fn has_no_body(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NoContent
        || status == StatusCode::NotModified
}
