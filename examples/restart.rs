//! A server on an executor of its own that restarts itself: `POST /restart` starts the program again
//! with the listening socket, and this process ends when that one is ready. Nobody is refused.
//!
//! Run with:
//!
//! ```
//! cargo run --example restart -- 127.0.0.1:8082
//! ```
//!
//! Then `curl localhost:8082` says which process serves, and `curl -X POST localhost:8082/restart`
//! makes it another one. Build it anew in between to see that it is the new one.

use std::time::Duration;

use futures_lite::FutureExt;
use http_types::StatusCode;
use smol_graceful::{
    Listener, Method, Outcome, Request, Response, ServeError, Server, Shutdown, ready, restart,
    signals,
};

async fn app(
    request: Request,
    listener: Listener,
    shutdown: Shutdown,
) -> http_types::Result<Response> {
    match (request.method(), request.url().path()) {
        (Method::Post, "/restart") => match restart(&[listener], Duration::from_secs(30)).await {
            Ok(successor) => {
                // This response is finished, and whatever else is in flight.
                shutdown.stop();
                Ok(format!("process {successor}\n").into())
            }
            Err(error) => {
                log::warn!("no successor: {error}");
                Ok(Response::new(StatusCode::ServiceUnavailable))
            }
        },
        _ => Ok(format!("process {}\n", std::process::id()).into()),
    }
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8082".to_owned());
    let listener = Listener::bind(&address.parse()?)?;

    let shutdown = Shutdown::new();
    let (theirs, stop) = (listener.clone(), shutdown.clone());
    let server =
        Server::new(move |request| app(request, theirs.clone(), stop.clone())).shutdown(&shutdown);
    smol::block_on(async {
        let serve = server.serve([listener.clone()]);
        // Whoever has started this process may wait for it.
        ready(&[listener])?;
        serve.or(shutdown.obey(signals()?)).await
    })
}
