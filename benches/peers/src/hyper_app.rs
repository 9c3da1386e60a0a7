//! The application on hyper, with tokio and on smol.

use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};

/// Answers one request.
///
/// # Errors
///
/// Returns an error if an upload ends too early.
pub async fn handle(
    request: Request<Incoming>,
) -> hyper::Result<Response<Either<Full<Bytes>, Incoming>>> {
    let whole = |bytes: Bytes| Either::Left(Full::new(bytes));
    let body = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => whole(Bytes::from_static(b"okay")),
        (&Method::POST, "/echo") => Either::Right(request.into_body()),
        (&Method::POST, "/upload") => {
            let mut body = request.into_body();
            let mut count = 0;
            while let Some(frame) = body.frame().await {
                count += frame?.data_ref().map_or(0, Bytes::len);
            }
            whole(count.to_string().into())
        }
        (&Method::GET, "/download") => whole(Bytes::from_static(crate::download())),
        _ => {
            let mut response = Response::new(whole(Bytes::new()));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    };
    Ok(Response::new(body))
}
