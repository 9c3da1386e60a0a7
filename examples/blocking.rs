//! A server whose handler blocks its thread, to show a stop in that case. A handler should never do
//! this. `/block/5000` sleeps for 5 s without giving its thread back, and any other path is
//! answered at once.
//!
//! Run with:
//!
//! ```
//! cargo run --example blocking -- 127.0.0.1:8082
//! ```
//!
//! A grace in seconds and a number of threads may follow the address. Open
//! <http://127.0.0.1:8082/block/60000> once for each thread, and stop the server with Ctrl-C. The
//! drain begins, ends after the grace, and the outcome names the requests that were cut.

use std::env::Args;
use std::io;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use smol_graceful::{
    Error, Outcome, Process, Request, Result, ServeError, Server, Shutdown, StatusCode,
};

async fn block(request: Request) -> Result<String> {
    if let Some(text) = request.url().path().strip_prefix("/block/") {
        let wrong = |error| Error::new(StatusCode::BadRequest, error);
        let milliseconds = text.parse::<u64>().map_err(wrong)?;
        thread::sleep(Duration::from_millis(milliseconds));
    }
    Ok("okay\n".to_owned())
}

/// Returns the next argument, if there is one.
fn next<T: FromStr>(args: &mut Args, what: &str) -> io::Result<Option<T>> {
    let wrong = |_| io::Error::other(format!("`blocking [ADDR [GRACE [THREADS]]]`: no {what}"));
    args.next().map(|text| text.parse().map_err(wrong)).transpose()
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let mut args = std::env::args();
    args.next();
    let address = args.next().unwrap_or("127.0.0.1:8082".to_owned());
    let grace = Duration::from_secs(next(&mut args, "seconds")?.unwrap_or(30));
    let mut process = Process::default();
    if let Some(threads) = next(&mut args, "number of threads")? {
        process = process.threads(threads);
    }
    let server = Server::new(block).shutdown(&Shutdown::new().grace(grace));
    process.run(server, [&*address])
}
