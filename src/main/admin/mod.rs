//! `--admin`: answers questions about the public server on another address.
//!
//! Invariant: the admin server answers until the public server has drained, and changes nothing.
//! Its answers come from the latch and the observer of the public server, and never describe the
//! admin server itself.

mod connections;
mod metrics;

use std::sync::Arc;

use smol_graceful::headers::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use smol_graceful::{Body, Method, Request, Response, Result, Shutdown, StatusCode, probe_for};

pub(crate) use self::metrics::Metrics;

/// The facts about the public server for the admin server.
#[derive(Debug)]
pub(crate) struct Admin {
    shutdown: Shutdown,
    metrics: Arc<Metrics>,
}

const ROUTES: &str =
    "GET /livez\nGET /readyz\nGET /metrics\nGET /connections\nGET /connections?format=json\n";

impl Admin {
    /// The largest number of connections of the admin server. The public server does not know of
    /// their descriptors, so they have to be few.
    pub(crate) const CONNECTIONS: usize = 16;

    /// Takes the facts about the server that `shutdown` stops and `metrics` counts.
    pub(crate) fn new(shutdown: &Shutdown, metrics: Arc<Metrics>) -> Self {
        Self { shutdown: shutdown.clone(), metrics }
    }

    /// Answers one request.
    pub(crate) fn answer(&self, request: &Request) -> Result<Response> {
        use Method::{Get, Head};

        if let Some(response) = probe_for(&self.shutdown.token(), request) {
            return Ok(response);
        }
        let path = request.url().path();
        if !matches!(path, "/livez" | "/readyz" | "/metrics" | "/connections") {
            return Ok(text(StatusCode::NotFound, format!("Not Found; try:\n{ROUTES}")));
        }
        if !matches!(request.method(), Get | Head) {
            let mut response = text(StatusCode::MethodNotAllowed, "Method Not Allowed\n");
            response.insert_header(ALLOW, "GET, HEAD");
            return Ok(response);
        }
        let work = self.shutdown.open_work();
        if path == "/metrics" {
            let mut response = text(StatusCode::Ok, self.metrics.encode(&work)?);
            response.insert_header(CONTENT_TYPE, metrics::CONTENT_TYPE);
            return Ok(response);
        }
        match request.url().query() {
            None | Some("") | Some("format=text") => {
                Ok(text(StatusCode::Ok, connections::table(&work)))
            }
            Some("format=json") => {
                let mut response = text(StatusCode::Ok, connections::json(&work));
                response.insert_header(CONTENT_TYPE, "application/json");
                Ok(response)
            }
            Some(_) => {
                Ok(text(StatusCode::BadRequest, "write /connections?format=json, or format=text\n"))
            }
        }
    }
}

fn text(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(status);
    response.insert_header(CONTENT_TYPE, "text/plain; charset=utf-8");
    // The answer is true for this moment only.
    response.insert_header(CACHE_CONTROL, "no-store");
    response.set_body(body);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;

    fn ask(admin: &Admin, method: Method, target: &str) -> (u16, String) {
        let request = Request::new(method, &*format!("http://localhost{target}"));
        let mut response = admin.answer(&request).unwrap();
        (response.status().into(), block_on(response.body_string()).unwrap())
    }

    #[test]
    fn every_route_answers() {
        let shutdown = Shutdown::new();
        let guard = shutdown.token().guard().unwrap();
        let admin = Admin::new(&shutdown, Arc::default());
        for (method, target, status, begin) in [
            (Method::Get, "/livez", 200, "live\n"),
            (Method::Get, "/readyz", 200, "ready\n"),
            (Method::Get, "/metrics", 200, "# HELP smol_graceful_"),
            (Method::Get, "/connections", 200, "0 connections, 0 requests, 1 guard\n"),
            (Method::Get, "/connections?format=json", 200, "{\"connections\":[],\"guards\":[{"),
            (Method::Get, "/connections?format=xml", 400, "write /connections?format=json"),
            (Method::Get, "/", 404, "Not Found; try:\nGET /livez\n"),
            (Method::Post, "/metrics", 405, "Method Not Allowed\n"),
            (Method::Post, "/livez", 405, "Method Not Allowed\n"),
        ] {
            let (found, body) = ask(&admin, method, target);
            assert!(
                found == status && body.starts_with(begin),
                "{method} {target}: {found} {body}"
            );
        }
        shutdown.stop();
        assert_eq!(ask(&admin, Method::Get, "/readyz"), (503, "stopping\n".into()));
        assert_eq!(ask(&admin, Method::Get, "/livez").0, 200);
        drop(guard);
    }
}
