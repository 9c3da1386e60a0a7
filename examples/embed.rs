//! An existing program gets two servers. The program has a queue, and workers on an executor of its
//! own. Now it gets a public server that accepts jobs, and an admin server. All of them stop
//! together, and every accepted job is done before the process ends.
//!
//! Run with:
//!
//! ```
//! cargo run --example embed -- 127.0.0.1:8082 127.0.0.1:8083
//! ```
//!
//! Try `curl -d one localhost:8082/jobs`, a few times and quickly, then `curl -X POST
//! localhost:8083/stop` or Ctrl-C. Before the stop, `curl localhost:8083/readyz` prints `ready`,
//! and in the lame duck, which lasts for a second, `stopping`.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_lite::future;
use smol::channel::{Receiver, Sender, bounded};
use smol::{Executor, Timer};
use smol_graceful::{
    Guard, Listen, Method, Outcome, Request, Response, Result, ServeError, Server, Shutdown,
    StatusCode, Token, probe, signals,
};

/// The number of threads that run the executor, and of jobs at the same time.
const THREADS: usize = 2;

/// The largest number of waiting jobs.
const QUEUE: usize = 1000;

/// A job. The drain waits as long as this value lives.
struct Job {
    text: String,
    guard: Guard,
}

async fn work(jobs: Receiver<Job>) {
    while let Ok(Job { text, guard }) = jobs.recv().await {
        let job = async {
            Timer::after(Duration::from_secs(1)).await;
            log::info!("done: {text:?}");
        };
        guard.hold(job).await;
    }
}

/// The public server: `POST /jobs`.
async fn enqueue(mut request: Request, queue: Sender<Job>) -> Result<Response> {
    if (request.method(), request.url().path()) != (Method::Post, "/jobs") {
        return Ok(say(StatusCode::NotFound, "POST /jobs\n"));
    }
    let text = request.body_string().await?;
    // The guard comes before the answer, so an accepted job is done. A guard is refused only after
    // an abort, when no client waits for an answer any more.
    let guard = Token::of(&request).guard()?;
    Ok(match queue.try_send(Job { text, guard }) {
        Ok(()) => say(StatusCode::Accepted, "accepted\n"),
        Err(_) => say(StatusCode::ServiceUnavailable, "too many jobs\n"),
    })
}

/// The admin server: `GET /livez`, `GET /readyz`, `POST /stop`.
async fn administer(request: Request, shutdown: Shutdown) -> Result<Response> {
    if let Some(response) = probe(&request) {
        return Ok(response);
    }
    if (request.method(), request.url().path()) != (Method::Post, "/stop") {
        return Ok(say(StatusCode::NotFound, "GET /livez, GET /readyz, POST /stop\n"));
    }
    log::info!("stopping because {} has asked for it", request.peer_addr().unwrap_or("someone"));
    shutdown.stop();
    Ok(say(StatusCode::Accepted, "stopping\n"))
}

fn say(status: StatusCode, text: &str) -> Response {
    let mut response = Response::new(status);
    response.set_body(text);
    response
}

/// Does the work that has to be done at the stop.
async fn farewell(token: Token) {
    token.stopping().await;
    log::info!("at the stop: whoever sends us jobs could be told now");
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let mut args = std::env::args().skip(1);
    let public_address = args.next().unwrap_or("127.0.0.1:8082".to_owned());
    let admin_address = args.next().unwrap_or("127.0.0.1:8083".to_owned());

    // This is the old program.
    let executor = Arc::new(Executor::new());
    let (queue, jobs) = bounded(QUEUE);
    for _ in 0..THREADS {
        let threads_own = executor.clone();
        thread::spawn(move || smol::block_on(threads_own.run(future::pending::<()>())));
        executor.spawn(work(jobs.clone())).detach();
    }

    // This is new: one latch, two servers, and this thread for the signals and the deadline.
    let signals = signals()?;
    let shutdown = Shutdown::new().lame_duck(Duration::from_secs(1));
    // The guard is taken here, before the task runs, so that the drain waits for the task.
    let token = shutdown.token();
    let guard = token.guard()?;
    executor.spawn(guard.hold(farewell(token))).detach();
    let with = |server: Server| server.shutdown(&shutdown).executor(executor.clone());
    let public = with(Server::new(move |request| enqueue(request, queue.clone())));
    let handle = shutdown.clone();
    let admin = with(Server::new(move |request| administer(request, handle.clone())));

    // Both listeners come first, so neither server begins if one address fails.
    let (public_listener, admin_listener) = (public_address.listen()?, admin_address.listen()?);
    let both = future::try_zip(public.serve([public_listener]), admin.serve([admin_listener]));
    // Servers with one latch have the same outcome.
    let (outcome, _) = future::block_on(shutdown.obey(signals, both))?;
    Ok(outcome)
}
