//! One connection of the load. It sends a request and reads the response, and never blocks.
//!
//! Invariant: a response is counted when its last byte has arrived, and only if it is a 200 with
//! the length that the request asks for. The load decides when a client sends a request.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use crate::request::Request;

/// A piece of a request's body.
static PIECE: [u8; 256 * 1024] = [b'x'; 256 * 1024];

/// The state of a client after a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The socket accepts no more of the request.
    Sending,
    /// The response has not arrived, or not completely.
    Waiting,
    /// The complete response has arrived.
    Answered,
}

enum State {
    Quiet,
    SendingHead(usize),
    SendingBody(u64),
    Head,
    Body(u64),
}

pub struct Client {
    pub stream: TcpStream,
    /// The time at which the client began to send the request.
    pub asked: Instant,
    /// The number of bytes of bodies so far, in both directions.
    pub bytes: u64,
    state: State,
    /// The beginning of a response's head whose rest has not arrived.
    head: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let (asked, state) = (Instant::now(), State::Quiet);
        Ok(Self { stream, asked, bytes: 0, state, head: Vec::new() })
    }

    /// Sends as much of the request as the socket accepts.
    pub fn ask(&mut self, request: &Request) -> io::Result<Progress> {
        self.asked = Instant::now();
        self.state = State::SendingHead(0);
        self.send(request)
    }

    /// Continues to send or to read, as far as the socket is ready.
    pub fn go_on(&mut self, request: &Request, buffer: &mut [u8]) -> io::Result<Progress> {
        match self.state {
            State::Quiet => Err(self.unasked(buffer)),
            State::SendingHead(_) | State::SendingBody(_) => self.send(request),
            State::Head | State::Body(_) => self.receive(request, buffer),
        }
    }

    fn send(&mut self, request: &Request) -> io::Result<Progress> {
        loop {
            match self.state {
                State::SendingHead(sent) if sent < request.head.len() => {
                    match written(self.stream.write(&request.head[sent..]))? {
                        None => return Ok(Progress::Sending),
                        Some(n) => self.state = State::SendingHead(sent + n),
                    }
                }
                State::SendingHead(_) => self.state = State::SendingBody(request.body),
                State::SendingBody(left) if left > 0 => {
                    let piece =
                        &PIECE[..PIECE.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
                    match written(self.stream.write(piece))? {
                        None => return Ok(Progress::Sending),
                        Some(n) => {
                            self.bytes += n as u64;
                            self.state = State::SendingBody(left - n as u64);
                        }
                    }
                }
                _ => {
                    self.state = State::Head;
                    return Ok(Progress::Waiting);
                }
            }
        }
    }

    fn receive(&mut self, request: &Request, buffer: &mut [u8]) -> io::Result<Progress> {
        loop {
            let count = match self.stream.read(buffer) {
                Ok(0) => return Err(bad("the server has closed a connection")),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting);
                }
                Err(error) => return Err(error),
            };
            let is_last = count < buffer.len();
            match self.take(request, &buffer[..count])? {
                // If the buffer is full, the socket may have more. Otherwise, the socket is empty.
                Progress::Waiting if !is_last => {}
                progress => return Ok(progress),
            }
        }
    }

    fn take(&mut self, request: &Request, bytes: &[u8]) -> io::Result<Progress> {
        let body = match self.state {
            State::Body(left) => return self.take_body(left, bytes.len() as u64),
            // The response usually arrives in one piece.
            _ if self.head.is_empty() => match end_of_head(bytes) {
                Some(end) => {
                    check(&bytes[..end], request)?;
                    bytes.len() - end
                }
                None => {
                    self.head.extend_from_slice(bytes);
                    return Ok(Progress::Waiting);
                }
            },
            _ => {
                self.head.extend_from_slice(bytes);
                let Some(end) = end_of_head(&self.head) else {
                    return Ok(Progress::Waiting);
                };
                check(&self.head[..end], request)?;
                let body = self.head.len() - end;
                self.head.clear();
                body
            }
        };
        self.take_body(request.answer, body as u64)
    }

    fn take_body(&mut self, left: u64, count: u64) -> io::Result<Progress> {
        self.bytes += count;
        let left = left.checked_sub(count).ok_or_else(|| bad("more than one answer"))?;
        if left > 0 {
            self.state = State::Body(left);
            return Ok(Progress::Waiting);
        }
        self.state = State::Quiet;
        Ok(Progress::Answered)
    }

    /// Returns an error that names the data, or the end, that arrived without a request.
    fn unasked(&mut self, buffer: &mut [u8]) -> io::Error {
        match self.stream.read(buffer) {
            Ok(0) => bad("the server has closed an idle connection"),
            Ok(_) => bad("an answer without a request"),
            Err(error) => error,
        }
    }
}

fn written(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(0) => Err(ErrorKind::WriteZero.into()),
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|position| position + 4)
}

/// Fails unless the head is that of a 200 response with the expected length.
fn check(head: &[u8], request: &Request) -> io::Result<()> {
    if !head.starts_with(b"HTTP/1.1 200") {
        let line = head.split(|&byte| byte == b'\r').next().unwrap_or(head);
        return Err(bad(&String::from_utf8_lossy(line)));
    }
    match content_length(head) {
        Some(length) if length == request.answer => Ok(()),
        Some(length) => Err(bad(&format!("{length} bytes instead of {}", request.answer))),
        None => Err(bad("an answer without a length")),
    }
}

fn content_length(head: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"content-length:";
    let line = head
        .split(|&byte| byte == b'\n')
        .find(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)))?;
    std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()
}

fn bad(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::{check, content_length, end_of_head};
    use crate::request::Request;

    #[test]
    fn an_answer_needs_its_status_and_its_length() {
        let request = Request::new("/", 2, None, 4);
        let good = b"HTTP/1.1 200 OK\r\nCONTENT-length: 4\r\n\r\n";
        assert_eq!(end_of_head(good), Some(good.len()));
        assert_eq!(content_length(good), Some(4));
        assert!(check(good, &request).is_ok());
        for bad in [
            &b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(check(bad, &request).is_err());
        }
    }
}
