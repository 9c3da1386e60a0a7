//! A server that runs a program for each request: `/sleep/2` runs `sleep 2` and waits for it, and
//! `/leave/2` starts the same program and does not wait.
//!
//! Run with:
//!
//! ```
//! cargo run --example command -- 127.0.0.1:8082
//! ```
//!
//! Open <http://127.0.0.1:8082/sleep/2>, and stop the server with Ctrl-C. The server waits for the
//! program. A program that `/leave` has left running does not keep the address in use, because it
//! does not inherit the listening socket. The address may also be `fd:0`, as under Supervisor's
//! `[fcgi-program]`.

use std::os::unix::process::CommandExt;
use std::process;

use smol::process::Command;
use smol_graceful::{Error, Outcome, Request, Result, ServeError, Server, StatusCode, run};

async fn handle(request: Request) -> Result<String> {
    let path = request.url().path();
    if let Some(seconds) = path.strip_prefix("/sleep/") {
        // A terminal's Ctrl-C goes to all processes in the server's group, so the program gets a
        // group of its own.
        let mut command = process::Command::new("sleep");
        command.arg(seconds).process_group(0);
        let status = Command::from(command).status().await?;
        return Ok(format!("{status}\n"));
    }
    if let Some(seconds) = path.strip_prefix("/leave/") {
        let child = process::Command::new("sleep").arg(seconds).process_group(0).spawn()?;
        return Ok(format!("process {}\n", child.id()));
    }
    Err(Error::from_str(StatusCode::NotFound, "neither /sleep/N nor /leave/N"))
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8082".to_owned());
    run(Server::new(handle), [address])
}
