//! A server whose log may go to any output, even to a pipe that nobody reads, because the server
//! never waits for the log.
//!
//! Run with:
//!
//! ```
//! cargo run --example logging -- 127.0.0.1:8082 2>&1 | sleep 60
//! ```
//!
//! Try `curl -d hello 127.0.0.1:8082` while it runs, and stop it with Ctrl-C. A grace in seconds
//! may follow the address.

use std::io::{self, Write};
use std::panic;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use env_logger::{Builder, Env, Target};
use smol_graceful::{LogWriter, Request, Result, Server, Shutdown, run};

async fn echo(mut request: Request) -> Result<String> {
    let text = request.body_string().await?;
    log::info!("{} bytes", text.len());
    Ok(text)
}

fn main() -> ExitCode {
    let writer = match LogWriter::new(io::stderr()) {
        Ok(writer) => writer,
        Err(error) => {
            // The log could not be made, so the error goes to standard error.
            let _ = writeln!(io::stderr(), "{error}");
            return ExitCode::FAILURE;
        }
    };
    Builder::from_env(Env::default().default_filter_or("info"))
        .target(Target::Pipe(Box::new(writer.clone())))
        .init();
    // By default, a panic prints to standard error directly, which may block.
    panic::set_hook(Box::new(|panic| log::error!("{panic}")));

    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or("127.0.0.1:8082".to_owned());
    let grace = args.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(30);
    let shutdown = Shutdown::new().grace(Duration::from_secs(grace));
    let code = match run(Server::new(echo).shutdown(&shutdown), [&*address]) {
        Ok(outcome) => outcome.report(),
        // If `main` returned the error, it would be printed to standard error directly.
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    };
    // The drop waits up to 1 s for the last lines.
    drop(writer);
    code
}
