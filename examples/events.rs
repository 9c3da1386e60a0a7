//! Server-sent events: a stream that ends properly when the server stops, so that the browser goes
//! on with the successor at the next event.
//!
//! Run with:
//!
//! ```
//! cargo run --example events -- 127.0.0.1:8082
//! ```
//!
//! Open <http://127.0.0.1:8082>, stop the server with Ctrl-C, and start it again. Or run it under
//! `smol-graceful keep`, and send USR2 to the keeper. The numbers go on.

use std::io;
use std::process;
use std::time::Duration;

use futures_lite::{Stream, StreamExt, stream};
use smol::Timer;
use smol_graceful::headers::{CACHE_CONTROL, CONTENT_TYPE};
use smol_graceful::{
    Body, Outcome, Request, Response, Result, ServeError, Server, StatusCode, Token, run,
    stream_body,
};

/// The time between events.
const PERIOD: Duration = Duration::from_millis(500);

/// The page. The browser asks again by itself when a stream has ended, unless the status was not
/// 200.
const PAGE: &str = r#"<!DOCTYPE html><title>no events yet</title><ol id="list"></ol><script>
let count = 0;
const source = new EventSource("/events");
source.onmessage = event => {
    document.title = `${++count} received, the last: ${event.data}`;
    list.append(Object.assign(document.createElement("li"), { textContent: event.data }));
};
source.onerror = () => {
    if (source.readyState == EventSource.CLOSED) document.title = "closed for good";
};
</script>"#;

async fn handle(request: Request) -> Result<Response> {
    Ok(match request.url().path() {
        "/" => respond(PAGE.into(), "text/html; charset=utf-8"),
        "/events" => {
            let events = events(Token::of(&request), first(&request));
            respond(stream_body(events), "text/event-stream")
        }
        _ => Response::new(StatusCode::NotFound),
    })
}

fn respond(body: Body, content_type: &str) -> Response {
    let mut response = Response::from(body);
    response.insert_header(CONTENT_TYPE, content_type);
    response.insert_header(CACHE_CONTROL, "no-store");
    response
}

/// Returns the number of the first event that the client has not seen. The client sends the number
/// of the last one.
fn first(request: &Request) -> u64 {
    let last = request.header("Last-Event-ID").and_then(|last| last.as_str().parse::<u32>().ok());
    last.map_or(1, |last| u64::from(last) + 1)
}

/// Returns events from the number `first` on, until the stop begins. Clients come back after 100
/// ms.
fn events(token: Token, first: u64) -> impl Stream<Item = io::Result<String>> + Send {
    let retry = stream::once(Ok("retry: 100\n\n".to_owned()));
    let events = stream::unfold(first, move |n| {
        let token = token.clone();
        async move {
            token.until_stop(Timer::after(PERIOD)).await?;
            let event = format!("id: {n}\ndata: event {n}, by process {}\n\n", process::id());
            Some((Ok(event), n + 1))
        }
    });
    retry.chain(events)
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8082".to_owned());
    run(Server::new(handle), [address])
}
