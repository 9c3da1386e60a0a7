//! A server under tokio. Handlers use tokio's timers and spawn tokio's tasks, and a stop waits for
//! both.
//!
//! Run with:
//!
//! ```
//! cargo run --example tokio -- 127.0.0.1:8082
//! ```
//!
//! Each connection is a task of tokio's, on any of its threads. `curl localhost:8082/work/3000`
//! works for 3 s. `curl -X POST localhost:8082/later/3000` is answered at once, and its work is
//! done later. Stop the server with Ctrl-C meanwhile, and both are finished.

use std::io;
use std::time::Duration;

use futures_lite::{Stream, stream};
use smol_graceful::{
    Error, Method, Outcome, Request, Response, Result, ServeError, Server, ServerExecutor,
    Shutdown, Signal, StatusCode, Token,
};
use tokio::signal::unix::{SignalKind, signal};

async fn answer(request: Request) -> Result<Response> {
    let path = request.url().path();
    if let Some(text) = path.strip_prefix("/work/") {
        let done = work(milliseconds(text)?).await;
        Ok(format!("worked for {done:?}\n").into())
    } else if let Some(text) = path.strip_prefix("/later/").filter(|_| is_post(&request)) {
        let work = work(milliseconds(text)?);
        let guard = Token::of(&request).guard()?;
        tokio::spawn(guard.hold(async {
            let done = work.await;
            log::info!("worked for {done:?}");
        }));
        Ok(Response::new(StatusCode::Accepted))
    } else {
        Ok(Response::new(StatusCode::NotFound))
    }
}

fn is_post(request: &Request) -> bool {
    request.method() == Method::Post
}

fn milliseconds(text: &str) -> Result<Duration> {
    let wrong = |error| Error::new(StatusCode::BadRequest, error);
    text.parse().map(Duration::from_millis).map_err(wrong)
}

async fn work(duration: Duration) -> Duration {
    tokio::time::sleep(duration).await;
    duration
}

/// Returns Ctrl-C and TERM from tokio's signal handling. [`smol_graceful::signals`] would do as
/// well.
fn signals() -> io::Result<impl Stream<Item = Signal> + Unpin> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(stream::poll_fn(move |cx| {
        let interrupted = interrupt.poll_recv(cx).map(|heard| heard.map(|()| Signal::Int));
        if interrupted.is_ready() {
            return interrupted;
        }
        terminate.poll_recv(cx).map(|heard| heard.map(|()| Signal::Term))
    }))
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8082".to_owned());
    let shutdown = Shutdown::new();
    let runtime = tokio::runtime::Runtime::new()?;
    let handle = runtime.handle().clone();
    let executor = ServerExecutor::from_fn(move |connection| drop(handle.spawn(connection)));
    let server = Server::new(answer).shutdown(&shutdown).executor(executor);
    let outcome = runtime.block_on(async {
        // The signals come first, so they are handled before a client can connect.
        let signals = signals()?;
        shutdown.obey(signals, server.serve([&*address])).await
    })?;
    Ok(outcome)
}
