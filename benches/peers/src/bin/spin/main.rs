//! A load that never sleeps. One thread sends requests on many connections, and polls all of them.
//!
//! A server that sends to a sleeping client also pays for waking that client, and wrk sleeps
//! whenever it has no data to read. This client polls again at once, so the CPU time of the server
//! includes no wake-ups. The run fails unless every response is a 200 with the requested length.
//!
//! `spin ADDRESS CONNECTIONS PATH LENGTH [fields=N] [upload=BYTES] [pause=MICROSECONDS]
//! [newcomers=MICROSECONDS]` connects, receives one response on each connection, and writes
//! `ready`. After that, each line on standard input is a number of seconds, and the program loads
//! the server for that time. It writes the figures of each such window as a line of JSON. The end
//! of standard input ends the program.

mod client;
mod load;
mod request;

use std::io::{self, BufRead};
use std::process::ExitCode;
use std::time::Duration;

use load::{Load, Settings};
use request::Request;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spin: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut load = Load::open(settings()?)?;
    println!("ready");
    for line in io::stdin().lock().lines() {
        let seconds = line?.trim().parse().map_err(|_| wrong("a line that is no number"))?;
        println!("{}", load.run(Duration::from_secs_f64(seconds))?);
    }
    Ok(())
}

fn settings() -> io::Result<Settings> {
    let mut arguments = std::env::args().skip(2);
    let mut next = |what| arguments.next().ok_or_else(|| wrong(what));
    let connections = number(&next("how many connections?")?)? as usize;
    let path = next("which path?")?;
    let length = number(&next("which length?")?)?;
    let (mut fields, mut upload, mut pause, mut newcomers) = (2, None, None, None);
    for argument in arguments {
        let (name, value) = argument.split_once('=').ok_or_else(|| wrong(&argument))?;
        let value = number(value)?;
        match name {
            "fields" => fields = value as usize,
            "upload" => upload = Some(value),
            "pause" => pause = Some(Duration::from_micros(value)),
            "newcomers" => newcomers = Some(Duration::from_micros(value)),
            _ => return Err(wrong(name)),
        }
    }
    let request = Request::new(&path, fields, upload, length);
    Ok(Settings { address: peers::address(), connections, request, pause, newcomers })
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| wrong(text))
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("wrong usage: {what}"))
}
