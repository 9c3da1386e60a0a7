//! The bundled application: a few routes that show and test a stop of the server.
//!
//! Invariant: nothing here blocks its thread or keeps a body in memory. This file knows nothing of
//! connections, signals and settings, apart from the time that `/` works.

use std::fmt;
use std::time::{Duration, Instant};

use futures_lite::{Stream, StreamExt, stream};
use http_types::Method;
use http_types::headers::{ALLOW, CONTENT_TYPE};
use humantime::parse_duration;
use smol::Timer;
use smol_graceful::{Body, Peer, Request, Response, StatusCode, Token, probe, stream_body};

/// The list in the answer to an unknown path.
const ROUTES: &str = "\
    GET /\n\
    GET /work?for=300ms\n\
    POST /echo\n\
    GET /stream?every=100ms&count=50\n\
    GET /livez\n\
    GET /readyz\n";

/// A request to `/` that works for this time or longer has two lines in the log.
const LONG: Duration = Duration::from_secs(1);

/// Answers one request. `/` works for the time `work`.
pub(crate) async fn handle(work: Duration, request: Request) -> http_types::Result<Response> {
    use Method::{Get, Head, Options, Post};

    if let Some(response) = probe(&request) {
        return Ok(response);
    }
    let path = request.url().path();
    let Some(allowed) = allowed(path) else { return Ok(not_found()) };
    Ok(match (request.method(), path) {
        (Options, _) => allow(Response::new(StatusCode::NoContent), allowed),
        (Get | Head, "/") => page(&request, work).await,
        (Get | Head, "/work") => work_for(&request).await,
        (Get | Head, "/stream") => tick(&request),
        (Post, "/echo") => echo(request).await,
        (_, "/*") => not_found(),
        _ => allow(status(StatusCode::MethodNotAllowed), allowed),
    })
}

/// Returns the methods that a path allows, or `None` if there is no such path. `OPTIONS *` arrives
/// as `/*`.
fn allowed(path: &str) -> Option<&'static str> {
    match path {
        "/" | "/work" | "/stream" | "/livez" | "/readyz" => Some("GET, HEAD, OPTIONS"),
        "/echo" => Some("POST, OPTIONS"),
        "/*" => Some("GET, HEAD, POST, OPTIONS"),
        _ => None,
    }
}

/// Answers `GET /` after `work`, which is the operator's setting. Long work is logged, so that an
/// operator who waits for a page finds the reason.
async fn page(request: &Request, work: Duration) -> Response {
    let logged = (work >= LONG).then(|| LoggedWork::begin(request, work));
    let response = okay(work).await;
    if let Some(logged) = logged {
        logged.end();
    }
    response
}

/// A request whose work is logged, also if the work does not come to its end.
struct LoggedWork {
    request: String,
    began: Instant,
    is_over: bool,
}

impl LoggedWork {
    fn begin(request: &Request, work: Duration) -> Self {
        let logged = Self {
            request: format!("{} / from {}", request.method(), Peer::of(request)),
            began: Instant::now(),
            is_over: false,
        };
        log::info!("{logged}: works for {}", humantime::format_duration(work));
        logged
    }

    fn end(mut self) {
        self.is_over = true;
    }
}

impl fmt::Display for LoggedWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.request)
    }
}

impl Drop for LoggedWork {
    fn drop(&mut self) {
        let took = self.began.elapsed().as_secs_f64();
        if self.is_over {
            log::info!("{self}: has worked for {took:.1} s");
        } else {
            log::info!("{self}: was dropped after {took:.1} s");
        }
    }
}

/// Works without blocking its thread.
async fn okay(work: Duration) -> Response {
    Timer::after(work).await;
    text(StatusCode::Ok, "okay")
}

/// Answers `GET /work?for=300ms` after the time that the client has asked for.
async fn work_for(request: &Request) -> Response {
    match parameter(request, "for").and_then(|text| duration(&text)) {
        Some(work) => okay(work).await,
        None => text(StatusCode::BadRequest, "write /work?for=300ms, with at most 1h\n"),
    }
}

/// Answers `POST /echo` with the request's body, as it arrives. With `?for=300ms`, begins after
/// that time.
async fn echo(mut request: Request) -> Response {
    if let Some(work) = parameter(&request, "for") {
        let Some(work) = duration(&work) else {
            return text(StatusCode::BadRequest, "write /echo?for=300ms, with at most 1h\n");
        };
        Timer::after(work).await;
    }
    let mut response = Response::new(StatusCode::Ok);
    if let Some(content_type) = request.header(CONTENT_TYPE) {
        response.insert_header(CONTENT_TYPE, content_type);
    }
    response.set_body(request.take_body());
    response
}

/// Answers `GET /stream?every=100ms&count=50` with one line at a time, and with fewer if the server
/// stops.
fn tick(request: &Request) -> Response {
    let every = parameter(request, "every").unwrap_or("100ms".into());
    let count = parameter(request, "count").unwrap_or("50".into());
    match (duration(&every), count.parse()) {
        (Some(every), Ok(count)) => {
            let ticks = ticks(Token::of(request), every, count);
            text(StatusCode::Ok, stream_body(ticks.map(Ok)))
        }
        _ => text(StatusCode::BadRequest, "write /stream?every=100ms&count=50, with at most 1h\n"),
    }
}

/// Returns the lines `tick 1`, `tick 2`, …: `count` of them, or fewer if the server stops.
fn ticks(token: Token, every: Duration, count: u64) -> impl Stream<Item = String> + Send {
    stream::unfold((token, 1), move |(token, n)| async move {
        if n > count || token.is_stopping() {
            return None;
        }
        token.until_stop(Timer::after(every)).await?;
        Some((format!("tick {n}\n"), (token, n + 1)))
    })
}

/// Reads a duration of at most one hour, which is the longest that a client can ask for.
fn duration(text: &str) -> Option<Duration> {
    parse_duration(text).ok().filter(|duration| *duration <= Duration::from_secs(60 * 60))
}

/// Returns the value of a parameter in the query.
fn parameter(request: &Request, name: &str) -> Option<String> {
    let mut pairs = request.url().query_pairs();
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Returns a 404 with the list of routes.
fn not_found() -> Response {
    text(StatusCode::NotFound, format!("Not Found; try:\n{ROUTES}"))
}

/// Returns a response whose text is its status.
fn status(status: StatusCode) -> Response {
    text(status, format!("{}\n", status.canonical_reason()))
}

fn text(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(status);
    response.insert_header(CONTENT_TYPE, "text/plain; charset=utf-8");
    response.set_body(body);
    response
}

fn allow(mut response: Response, methods: &str) -> Response {
    response.insert_header(ALLOW, methods);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;
    use smol_graceful::Shutdown;

    #[test]
    fn every_route_answers() {
        let not_found = format!("Not Found; try:\n{ROUTES}");
        for (method, target, status, body) in [
            (Method::Get, "/", 200, "okay"),
            (Method::Get, "/?x=y", 200, "okay"),
            (Method::Get, "/work?for=1ms", 200, "okay"),
            (Method::Get, "/work?for=0", 200, "okay"),
            (Method::Get, "/stream?every=1ms&count=2", 200, "tick 1\ntick 2\n"),
            (Method::Get, "/stream?count=0", 200, ""),
            (Method::Get, "/livez", 200, "live\n"),
            (Method::Get, "/readyz", 200, "ready\n"),
            (Method::Options, "/", 204, ""),
            (Method::Options, "/*", 204, ""),
            (Method::Get, "/nothing", 404, &*not_found),
            (Method::Get, "/*", 404, &*not_found),
            (Method::Get, "/work/", 404, &*not_found),
            (Method::Get, "/echo", 405, "Method Not Allowed\n"),
            (Method::Post, "/", 405, "Method Not Allowed\n"),
        ] {
            let answer = ask(Request::new(method, &*url(target)));
            assert_eq!(answer, (status, body.to_owned()), "{method} {target}");
        }
    }

    #[test]
    fn wrong_parameters_are_explained() {
        for target in [
            "/work",
            "/work?for=",
            "/work?for=300",
            "/work?for=-1s",
            "/work?for=1h1ms",
            "/work?for=99999999999999999999y",
            "/stream?every=often",
            "/stream?count=-1",
            "/stream?every=2h",
        ] {
            let (status, body) = ask(Request::new(Method::Get, &*url(target)));
            assert_eq!(status, 400, "{target}");
            assert!(body.starts_with("write /") && body.ends_with('\n'), "{target}: {body}");
        }
    }

    #[test]
    fn the_echo_keeps_type_and_length() {
        let mut request = Request::new(Method::Post, &*url("/echo"));
        request.set_body("{}");
        request.insert_header(CONTENT_TYPE, "application/json; x=y");
        let response = block_on(handle(Duration::ZERO, request)).unwrap();
        assert_eq!(response.header(CONTENT_TYPE).unwrap().as_str(), "application/json; x=y");
        assert_eq!(response.len(), Some(2));
    }

    /// Rule S10.
    #[test]
    fn a_stream_ends_with_the_stop() {
        let shutdown = Shutdown::new();
        let mut ticks = Box::pin(ticks(shutdown.token(), Duration::ZERO, u64::MAX));
        assert_eq!(block_on(ticks.next()).unwrap(), "tick 1\n");
        assert_eq!(block_on(ticks.next()).unwrap(), "tick 2\n");
        shutdown.stop();
        assert_eq!(block_on(ticks.next()), None);
    }

    fn url(target: &str) -> String {
        format!("http://localhost{target}")
    }

    fn ask(request: Request) -> (u16, String) {
        block_on(async {
            let mut response = handle(Duration::ZERO, request).await.unwrap();
            (response.status().into(), response.body_string().await.unwrap())
        })
    }
}
