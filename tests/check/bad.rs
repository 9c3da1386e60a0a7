//! A server that answers well, except that it commits one fault each time the restart command runs.
//!
//! So a test knows each number of the report in advance. The command only makes a file and waits.
//! The server removes the file when it commits the fault, and then the command ends.

#![allow(unreachable_pub, reason = "it is a module of a test")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use super::common::{PATIENCE, SERVER, output_within, text};

/// The time of a late answer.
pub const LATE: Duration = Duration::from_millis(300);

/// A fault of a bad server.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Sends the text and closes.
    End(&'static str),
    /// Sends the text and goes on.
    Bytes(&'static str),
    /// Sends the text and the end of the connection in one packet, so the client sees both at once.
    Leave(&'static str),
    /// Sends the right answer, but late.
    Late,
    /// Does not answer.
    Never,
}

/// The requests on which a server commits its fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAt {
    Any,
    /// The first of a connection.
    First,
    /// Not the first of a connection.
    Later,
    /// `GET` on a kept connection that has had one before.
    Kept,
    Post,
    Slow,
}

/// A server that commits its fault once whenever `file` appears, and removes the file.
pub struct FaultyServer {
    pub addr: SocketAddr,
    file: PathBuf,
    /// The number of requests with the right answer.
    pub served: Arc<AtomicU64>,
    /// The number of those that had asked for a close.
    pub asked: Arc<AtomicU64>,
}

impl FaultyServer {
    pub fn start(file: PathBuf, fault: Fault, on: FaultAt) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (served, asked) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let bad = Self { addr, file, served, asked };
        let (file, served, asked) = (bad.file.clone(), bad.served.clone(), bad.asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (file, stream) = (file.clone(), stream.unwrap());
                let (served, asked) = (served.clone(), asked.clone());
                thread::spawn(move || {
                    Connection { stream, file, fault, on, served, asked }.serve()
                });
            }
        });
        bad
    }

    /// Runs a check of the server. In place of a restart, the command causes the fault, and waits
    /// until it has begun.
    pub fn check(&self, flags: &str) -> Output {
        let file = self.file.display();
        let script = format!("touch {file}; while [ -e {file} ]; do sleep 0.01; done");
        let mut check = Command::new(SERVER);
        check.args(["check", &self.addr.to_string()]).args(flags.split_whitespace());
        output_within(check.args(["--", "sh", "-c", &script]), b"", 2 * PATIENCE)
    }
}

struct Connection {
    stream: TcpStream,
    file: PathBuf,
    fault: Fault,
    on: FaultAt,
    served: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
}

impl Connection {
    fn serve(mut self) {
        for number in 0.. {
            if self.answer(number).is_none() {
                return;
            }
        }
    }

    /// Answers a request. Returns `None` if the connection ends.
    fn answer(&mut self, number: usize) -> Option<()> {
        let request = read_request(&mut self.stream)?;
        let is_it = match self.on {
            FaultAt::Any => true,
            FaultAt::First => number == 0,
            FaultAt::Later => number > 0,
            FaultAt::Kept => number > 0 && !request.is_post() && !request.asks_for_close(),
            FaultAt::Post => request.is_post(),
            FaultAt::Slow => request.path() == "/slow",
        };
        // If several requests find the file, only one of them removes it.
        if is_it && fs::remove_file(&self.file).is_ok() {
            match self.fault {
                Fault::End(bytes) => {
                    let _ = self.stream.write_all(bytes.as_bytes());
                    return None;
                }
                Fault::Bytes(bytes) => return self.stream.write_all(bytes.as_bytes()).ok(),
                Fault::Leave(bytes) => {
                    SockRef::from(&self.stream).set_tcp_cork(true).unwrap();
                    let _ = self.stream.write_all(bytes.as_bytes());
                    return None;
                }
                Fault::Never => {
                    let _ = self.stream.read(&mut [0]);
                    return None;
                }
                Fault::Late => thread::sleep(LATE),
            }
        }
        let (status, body) = match request.path() {
            "/nothing" => ("404 Not Found", &b"no"[..]),
            _ if request.is_post() => ("200 OK", &*request.body),
            _ => ("200 OK", &b"okay"[..]),
        };
        let is_last = request.asks_for_close();
        let close = if is_last { "Connection: close\r\n" } else { "" };
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\n{close}Content-Length: {length}\r\n\r\n");
        self.served.fetch_add(1, SeqCst);
        self.asked.fetch_add(u64::from(is_last), SeqCst);
        self.stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
        (!is_last).then_some(())
    }
}

pub struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    fn is_post(&self) -> bool {
        self.head.starts_with("POST ")
    }

    fn asks_for_close(&self) -> bool {
        self.head.contains("\r\nConnection: close\r\n")
    }
}

/// Reads a request. Returns `None` if the client has gone.
pub fn read_request(stream: &mut impl Read) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = text(&head);
    let length = head
        .split_once("Content-Length: ")
        .map_or(0, |(_, rest)| rest.split("\r\n").next().unwrap().parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Request { head, body })
}
