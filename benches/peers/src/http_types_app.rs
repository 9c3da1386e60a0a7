//! The application on http-types, for smol-graceful and for async-h1 alone.

use http_types::{Body, Method, Request, Response, StatusCode};

/// Answers one request.
///
/// # Errors
///
/// Returns an error if an upload ends too early.
pub async fn handle(mut request: Request) -> http_types::Result<Response> {
    let body = match (request.method(), request.url().path()) {
        (Method::Get, "/") => Body::from("okay"),
        (Method::Post, "/echo") => request.take_body(),
        (Method::Post, "/upload") => Body::from(crate::count(request).await?.to_string()),
        (Method::Get, "/download") => {
            let bytes = crate::download();
            Body::from_reader(bytes, Some(bytes.len()))
        }
        _ => return Ok(Response::new(StatusCode::NotFound)),
    };
    Ok(Response::from(body))
}
