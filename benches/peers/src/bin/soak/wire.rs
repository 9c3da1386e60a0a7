//! The client's end of a connection, which sends bytes, reads and checks answers, and closes or
//! resets.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::TcpStream;
use socket2::SockRef;

/// A connection, with the bytes that were read and belong to no answer yet.
pub struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
    piece: Box<[u8]>,
}

/// A whole answer.
pub struct Answer {
    pub status: String,
    pub body: Vec<u8>,
}

impl Wire {
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await.map_err(|error| match error.kind() {
            ErrorKind::AddrNotAvailable => wrong("no port is left for another connection: ss -s"),
            _ => wrong(format!("cannot connect: {error}")),
        })?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::new(), piece: vec![0; 64 * 1024].into() })
    }

    /// Returns a sender, so that the client can send while it reads answers.
    pub fn sender(&self) -> Sender {
        Sender(self.stream.clone())
    }

    pub async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.sender().send(bytes).await
    }

    /// Closes the client's side. The server may still answer.
    pub fn half_close(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Reads the next answer to its end.
    pub async fn answer(&mut self) -> io::Result<Answer> {
        let head = loop {
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                break self.take(end + 4).await?;
            }
            self.more().await?;
        };
        let head = String::from_utf8(head).map_err(|_| wrong("a head that is no text"))?;
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default().to_owned();
        let mut length = None;
        let mut is_chunked = false;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse().map_err(|_| wrong(format!("length {value}")))?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                is_chunked = value.trim() == "chunked";
            }
        }
        let body = match (length, is_chunked) {
            (Some(length), false) => self.take(length).await?,
            (None, true) => self.chunks().await?,
            _ => return Err(wrong(format!("neither a length nor chunks: {head:?}"))),
        };
        Ok(Answer { status, body })
    }

    /// Reads this number of bytes, or up to the end.
    pub async fn skip(&mut self, mut bytes: usize) -> io::Result<()> {
        while bytes > 0 {
            match self.stream.read(&mut self.piece).await? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                n => bytes = bytes.saturating_sub(n),
            }
        }
        Ok(())
    }

    /// Fails if bytes after the last answer were read.
    pub fn is_at_rest(&self) -> io::Result<()> {
        match self.read.len() {
            0 => Ok(()),
            n => Err(wrong(format!("{n} bytes behind the last answer"))),
        }
    }

    /// Reads the end of the connection, and fails if a byte comes before it.
    pub async fn end(mut self) -> io::Result<()> {
        self.is_at_rest()?;
        match self.stream.read(&mut self.piece).await {
            Ok(0) => Ok(()),
            Ok(n) => Err(wrong(format!("{n} bytes behind the last answer"))),
            Err(error) => Err(wrong(format!("no clean end: {error}"))),
        }
    }

    /// Closes the connection with a reset.
    pub fn reset(self) -> io::Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(end) = find(&self.read, b"\r\n") {
                    break self.take(end + 2).await?;
                }
                self.more().await?;
            };
            let size = std::str::from_utf8(&line[..line.len() - 2]).ok();
            let size = size.and_then(|size| usize::from_str_radix(size, 16).ok());
            let size = size.ok_or_else(|| wrong(format!("the size of a chunk: {line:?}")))?;
            let chunk = self.take(size + 2).await?;
            if !chunk.ends_with(b"\r\n") {
                return Err(wrong("a chunk without an end"));
            }
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(body);
            }
        }
    }

    async fn take(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < bytes {
            self.more().await?;
        }
        let rest = self.read.split_off(bytes);
        Ok(std::mem::replace(&mut self.read, rest))
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read(&mut self.piece).await {
            Ok(0) => Err(wrong(format!("the end, {} bytes into an answer", self.read.len()))),
            Ok(n) => {
                self.read.extend_from_slice(&self.piece[..n]);
                Ok(())
            }
            Err(error) => Err(wrong(format!("{error}, {} bytes into an answer", self.read.len()))),
        }
    }
}

/// The sending side of a connection.
pub struct Sender(TcpStream);

impl Sender {
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await.map_err(|error| wrong(format!("cannot send: {error}")))
    }
}

/// Returns an error with this message.
pub fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
