//! A connection to the server, which sends a request and reads its answer in any framing.
//!
//! [`Wire`] reads exactly one answer a request and keeps the bytes after it, so it finds a byte too
//! many. An answer is bounded by `TOO_MUCH`. `Wire` judges the framing, and [`Answer::check`] the
//! status and the body. This file does not decide which requests count as lost.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem;
use std::pin::Pin;
use std::task::{Poll, ready};

use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt, future};
use smol::Timer;
use smol::net::TcpStream;
use smol::net::unix::UnixStream;

use super::client::Loss;
use super::{AGAIN, Kind, Target};

/// A number of bytes that no right answer has.
const TOO_MUCH: usize = 16 * 1024 * 1024;

/// A fault of an answer.
pub enum Fault {
    /// The connection ended before the answer did.
    Ended(String),
    /// The answer took too long.
    Late,
    /// The answer cannot be understood.
    Wrong(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(what) | Self::Wrong(what) => f.write_str(what),
            Self::Late => f.write_str("no end"),
        }
    }
}

/// An answer of the server.
pub struct Answer {
    status: u16,
    body: Vec<u8>,
    /// `true` if the connection cannot be used again.
    pub is_last: bool,
}

impl Answer {
    /// Returns the mistake as an error, unless the status is 2xx or 3xx and the body is `body`.
    pub fn check(&self, body: Option<&[u8]>) -> Result<(), String> {
        if !(200..400).contains(&self.status) {
            let start = &self.body[..self.body.len().min(80)];
            let text = String::from_utf8_lossy(start);
            return Err(format!("status {}, {:?}", self.status, text.trim_end()));
        }
        let Some(body) = body.filter(|body| self.body != *body) else { return Ok(()) };
        let same = self.body.iter().zip(body).take_while(|(is, should)| is == should).count();
        let (is, should) = (self.body.len(), body.len());
        Err(format!("a body of {is} bytes for one of {should}, the same up to byte {same}"))
    }
}

/// A connection, with the bytes that were read and not used yet.
pub struct Wire {
    stream: Pin<Box<dyn Stream>>,
    buffer: Vec<u8>,
    /// `true` if a byte of the answer has come.
    is_heard: bool,
    /// The reason why the request could not be sent whole.
    unsent: Option<io::Error>,
}

/// A socket of either kind.
trait Stream: AsyncRead + AsyncWrite + Send {}

impl Stream for TcpStream {}
impl Stream for UnixStream {}

impl Wire {
    /// Returns a new connection, and the name of the client's end.
    pub async fn connect(target: &Target) -> io::Result<(Self, String)> {
        let (stream, local): (Pin<Box<dyn Stream>>, _) = match target {
            Target::Tcp(addr) => {
                let stream = TcpStream::connect(addr).await?;
                let local = stream.local_addr()?;
                if local == *addr {
                    // If no server listens on the port, the kernel may give this port to the
                    // client, which then is connected to itself.
                    return Err(ErrorKind::ConnectionRefused.into());
                }
                stream.set_nodelay(true)?;
                (Box::pin(stream), local.to_string())
            }
            // Unix clients have no address, so the descriptor is the name.
            Target::Unix(path) => loop {
                match UnixStream::connect(path).await {
                    // The queue of the listener is full, and a Unix socket does not wait for a
                    // place by itself.
                    Err(error) if error.kind() == ErrorKind::NotConnected => {
                        Timer::after(AGAIN).await;
                    }
                    connected => break (Box::pin(connected?), "unix".to_owned()),
                }
            },
        };
        Ok((Self { stream, buffer: Vec::new(), is_heard: false, unsent: None }, local))
    }

    /// Sends a request and reads its answer. If the send fails, there may still be an answer with
    /// the reason.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer, Fault> {
        self.is_heard = false;
        self.unsent = self.stream.write_all(request).await.err();
        // The final answer follows an interim one.
        loop {
            let answer = self.answer().await?;
            if !(100..200).contains(&answer.status) {
                return Ok(answer);
            }
        }
    }

    /// Returns the loss of a request whose answer has this fault.
    pub fn loss(&self, fault: &Fault, is_used: bool) -> Loss {
        let kind = match fault {
            Fault::Late => Kind::Stalled,
            Fault::Ended(_) if self.is_heard => Kind::Cut,
            Fault::Ended(_) if is_used => Kind::Crossed,
            Fault::Ended(_) => Kind::Reset,
            Fault::Wrong(_) => Kind::Wrong,
        };
        let unsent = self.unsent.as_ref();
        let mut what = unsent.map_or(String::new(), |error| format!("not sent: {error}; "));
        what += &fault.to_string();
        if matches!(kind, Kind::Stalled | Kind::Cut) {
            what += &format!("; {}", self.heard());
        }
        (kind, what)
    }

    /// Returns a description of the beginning of the answer.
    fn heard(&self) -> String {
        let text = String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(80)]);
        if self.is_heard { format!("it was at {text:?}") } else { "not a byte came".to_owned() }
    }

    /// Reads the next answer.
    async fn answer(&mut self) -> Result<Answer, Fault> {
        let status_line = self.line().await?;
        let wrong = |what: &str| Fault::Wrong(format!("{what}: {status_line:?}"));
        let mut words = status_line.splitn(3, ' ');
        let (version, status) = (words.next().unwrap_or_default(), words.next());
        let Some(status) = status.and_then(|text| text.parse().ok()) else {
            return Err(wrong("no status line"));
        };
        let mut is_last = match version {
            "HTTP/1.1" => false,
            "HTTP/1.0" => true,
            _ => return Err(wrong("no status line")),
        };
        let (mut length, mut is_chunked) = (None, false);
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else {
                return Err(Fault::Wrong(format!("no field: {line:?}")));
            };
            let value = value.trim();
            match &*name.to_ascii_lowercase() {
                "connection" => {
                    let mut options = value.split(',').map(str::trim);
                    is_last |= options.any(|option| option.eq_ignore_ascii_case("close"));
                }
                "content-length" => match value.parse::<usize>() {
                    Ok(number) if number <= TOO_MUCH => length = Some(number),
                    _ => return Err(Fault::Wrong(format!("{line:?}"))),
                },
                "transfer-encoding" => {
                    is_chunked = value.eq_ignore_ascii_case("chunked");
                    if !is_chunked {
                        return Err(Fault::Wrong(format!("{line:?}")));
                    }
                }
                _ => {}
            }
        }
        let has_none = matches!(status, 100..200 | 204 | 304);
        let body = match length {
            _ if has_none => Vec::new(),
            _ if is_chunked => self.chunks().await?,
            Some(length) => self.take(length).await?,
            None => {
                is_last = true;
                self.rest().await?
            }
        };
        Ok(Answer { status, body, is_last })
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim_end();
            match usize::from_str_radix(size, 16) {
                Ok(0) => break,
                Ok(size) if body.len().saturating_add(size) <= TOO_MUCH => {
                    body.extend(self.take(size).await?);
                }
                _ => return Err(Fault::Wrong(format!("no size of a chunk: {line:?}"))),
            }
            if !self.line().await?.is_empty() {
                return Err(Fault::Wrong("a chunk is larger than it said".to_owned()));
            }
        }
        while !self.line().await?.is_empty() {}
        Ok(body)
    }

    /// Reads the next line, and returns it without its end.
    async fn line(&mut self) -> Result<String, Fault> {
        let end = loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                break end;
            }
            if self.buffer.len() > TOO_MUCH {
                return Err(Fault::Wrong("a line without an end".to_owned()));
            }
            self.fill().await?;
        };
        let line = self.take(end + 2).await?;
        Ok(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    async fn take(&mut self, n: usize) -> Result<Vec<u8>, Fault> {
        while self.buffer.len() < n {
            self.fill().await?;
        }
        let rest = self.buffer.split_off(n);
        Ok(mem::replace(&mut self.buffer, rest))
    }

    /// Reads until the other side closes.
    async fn rest(&mut self) -> Result<Vec<u8>, Fault> {
        while self.read().await? > 0 {
            if self.buffer.len() > TOO_MUCH {
                return Err(Fault::Wrong("a body without an end".to_owned()));
            }
        }
        Ok(mem::take(&mut self.buffer))
    }

    /// Waits for the end of the connection after the last answer. The end must be clean.
    pub async fn end(&mut self) -> Result<(), Fault> {
        match self.rest().await?.len() {
            0 => Ok(()),
            more => Err(Fault::Wrong(format!("{more} bytes more"))),
        }
    }

    /// Returns `true` if the connection can be used again, and `false` if the server has closed it.
    pub async fn look(&mut self) -> Result<bool, Fault> {
        match future::poll_once(self.read()).await.transpose()? {
            Some(0) => Ok(false),
            None if self.buffer.is_empty() => Ok(true),
            _ => Err(Fault::Wrong("more bytes than the answer has".to_owned())),
        }
    }

    async fn fill(&mut self) -> Result<(), Fault> {
        match self.read().await? {
            0 => Err(Fault::Ended("closed".to_owned())),
            _ => Ok(()),
        }
    }

    /// Reads the bytes that have come, and returns their number, which is 0 at the end.
    async fn read(&mut self) -> Result<usize, Fault> {
        let read = poll_fn(|cx| {
            // The buffer is on the stack, because in thousands of futures it would need much
            // memory.
            let mut bytes = [0; 16 * 1024];
            let n = ready!(self.stream.as_mut().poll_read(cx, &mut bytes))?;
            self.is_heard |= n > 0;
            self.buffer.extend_from_slice(&bytes[..n]);
            Poll::Ready(Ok(n))
        });
        read.await.map_err(|error: io::Error| Fault::Ended(error.to_string()))
    }
}
