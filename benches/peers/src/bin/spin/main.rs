//! A load that never sleeps: one thread that asks on many connections and polls all of them.
//!
//! A send to a client that sleeps pays for waking that client, and wrk sleeps whenever it has
//! nothing to read. This client looks again at once, so a server's CPU time is its own. Every answer
//! has to be a 200 of the length that was asked for, or the run fails.
//!
//! `spin ADDRESS CONNECTIONS PATH LENGTH [fields=N] [upload=BYTES] [pause=MICROSECONDS]
//! [newcomers=MICROSECONDS]` connects, has one answer on each connection, and writes `ready`. Each
//! line on standard input is then a number of seconds to load the server for. The figures of each
//! such window are a line of JSON. The end of standard input ends the program.

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
