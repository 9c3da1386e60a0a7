//! A client for raw bytes. A test decides which bytes are sent, and sees which bytes come.
//!
//! [`Client`] works over any stream that reads, writes and half-closes: TCP (the default), Unix
//! sockets, TLS (`tests/wrapped.rs`), and streams in memory ([`Blocking`]). Every read and write
//! has a limit of [`PATIENCE`].

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown as Half, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use std::{io, mem};

use futures_lite::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use smol_graceful::{Address, Connection};
use socket2::{Domain, SockRef, Socket, Type};

use super::{PATIENCE, text, within_patience};

/// A stream for a client.
pub trait Duplex: Read + Write {
    /// Closes the client's side, so that the server sees the end of the bytes.
    fn half_close(&mut self);
}

impl Duplex for TcpStream {
    fn half_close(&mut self) {
        self.shutdown(Half::Write).unwrap();
    }
}

/// An async stream that blocks its thread.
pub struct Blocking<S>(pub S);

impl<S: AsyncRead + Unpin> Read for Blocking<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        within_patience(self.0.read(buf))
    }
}

impl<S: AsyncWrite + Unpin> Write for Blocking<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        within_patience(self.0.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        within_patience(self.0.flush())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Duplex for Blocking<S> {
    fn half_close(&mut self) {
        within_patience(self.0.close()).unwrap();
    }
}

/// A raw client, which sends and receives bytes.
pub struct Client<S = TcpStream> {
    pub stream: S,
    /// The bytes that were read from the stream and not yet consumed.
    buffer: Vec<u8>,
}

/// A raw client at the end of a pipe.
pub type PipeClient = Client<Blocking<Connection>>;

/// The end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A proper end, which is a FIN, and under TLS a close_notify and a FIN.
    Eof,
    /// A FIN without close_notify under TLS, which an attacker could have caused.
    Cut,
    Reset,
}

/// A response with the bytes of the wire.
#[derive(Debug, Clone)]
pub struct Received {
    pub status: u16,
    /// The status line and the header fields, without line ends.
    pub lines: Vec<String>,
    pub body: Vec<u8>,
}

impl Received {
    /// Returns the value of a field. Several lines are joined by `, `.
    pub fn header(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self
            .lines
            .iter()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    pub fn text(&self) -> String {
        text(&self.body)
    }

    pub fn says_close(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        TcpStream::connect_timeout(&addr, PATIENCE).unwrap().into()
    }

    /// Connects to a TCP or Unix socket. The standard library's TCP stream reads and writes either.
    pub fn connect_to(address: &Address) -> Self {
        let stream = match address {
            Address::Tcp(addr) => return Self::connect(*addr),
            Address::Unix(path) => UnixStream::connect(path),
            #[cfg(target_os = "linux")]
            Address::Abstract(name) => {
                use std::os::linux::net::SocketAddrExt;
                let name =
                    std::os::unix::net::SocketAddr::from_abstract_name(name.as_encoded_bytes());
                UnixStream::connect_addr(&name.unwrap())
            }
            _ => panic!("nobody can connect to {address}"),
        };
        stream.unwrap().into()
    }

    /// Closes with a reset instead of a FIN.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Asserts that nothing comes from the server for a short time. No event shows that nothing
    /// comes.
    pub fn assert_silent(&self) {
        self.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    }

    /// Returns `true` if there are bytes to read, or the end.
    pub fn has_something(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        !peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    fn of_socket(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self::over(stream)
    }
}

impl From<TcpStream> for Client {
    /// Makes a client of a socket that a test has connected itself.
    fn from(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self::of_socket(stream)
    }
}

impl From<UnixStream> for Client {
    fn from(stream: UnixStream) -> Self {
        Self::of_socket(OwnedFd::from(stream).into())
    }
}

impl From<Connection> for PipeClient {
    fn from(stream: Connection) -> Self {
        Self::over(Blocking(stream))
    }
}

impl<S: Duplex> Client<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Sends `GET path`, keep-alive.
    pub fn get(&mut self, path: &str) -> &mut Self {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    /// Sends `POST path` with this body, keep-alive.
    pub fn post(&mut self, path: &str, body: &str) -> &mut Self {
        let length = body.len();
        self.send(format!(
            "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }

    /// Closes the client's side, so that the server sees the end of the bytes.
    pub fn half_close(&mut self) -> &mut Self {
        self.stream.half_close();
        self
    }

    /// Returns the next response to a request that was not HEAD.
    pub fn response(&mut self) -> Received {
        self.try_response(false).expect("the connection ended before a whole response")
    }

    /// Returns the next response to HEAD: framing fields, no body.
    pub fn response_to_head(&mut self) -> Received {
        self.try_response(true).expect("the connection ended before a whole response")
    }

    /// Returns the next response, or the end of the connection if no whole response has come.
    pub fn try_response(&mut self, to_head: bool) -> Result<Received, End> {
        let head = String::from_utf8(self.take_to(b"\r\n\r\n")?).unwrap();
        let lines: Vec<_> = head.trim_end().split("\r\n").map(str::to_owned).collect();
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let mut received = Received { status, lines, body: Vec::new() };
        let no_body = to_head || status < 200 || status == 204 || status == 304;
        if no_body {
            return Ok(received);
        }
        if received.header("transfer-encoding").is_some() {
            received.body = self.chunks()?;
        } else if let Some(length) = received.header("content-length") {
            received.body = self.take(length.parse().unwrap())?;
        } else {
            let (body, end) = self.rest();
            if end != End::Eof {
                return Err(end);
            }
            received.body = body;
        }
        Ok(received)
    }

    /// Returns all remaining bytes, and the end of the connection.
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        let end = loop {
            if let Err(end) = self.fill() {
                break end;
            }
        };
        (mem::take(&mut self.buffer), end)
    }

    /// Returns the end of the connection. Asserts that no byte comes before it.
    pub fn end(&mut self) -> End {
        let (rest, end) = self.rest();
        assert!(rest.is_empty(), "unexpected: {:?}", text(&rest));
        end
    }

    /// Waits until at least `n` bytes have come, and consumes exactly `n`.
    pub fn take(&mut self, n: usize) -> Result<Vec<u8>, End> {
        while self.buffer.len() < n {
            self.fill()?;
        }
        Ok(self.buffer.drain(..n).collect())
    }

    /// Waits for `mark`, and consumes everything up to its end.
    pub fn take_to(&mut self, mark: &[u8]) -> Result<Vec<u8>, End> {
        let at = loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, mark) {
                break at;
            }
            self.fill()?;
        };
        self.take(at + mark.len())
    }

    /// Returns the next line, without its end.
    pub fn line(&mut self) -> Result<String, End> {
        let line = String::from_utf8(self.take_to(b"\r\n")?).unwrap();
        Ok(line.trim_end_matches("\r\n").to_owned())
    }

    /// Returns the bytes that were read and not yet consumed.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads once. Returns `false` if nothing has come in time.
    pub fn try_fill(&mut self) -> Result<bool, End> {
        let mut bytes = [0; 64 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(End::Eof),
            Ok(n) => {
                self.buffer.extend_from_slice(&bytes[..n]);
                Ok(true)
            }
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => Ok(true),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(false),
                ErrorKind::ConnectionReset => Err(End::Reset),
                ErrorKind::UnexpectedEof => Err(End::Cut),
                _ => panic!("the connection has failed: {error}"),
            },
        }
    }

    /// Waits for more bytes.
    pub fn fill(&mut self) -> Result<(), End> {
        assert!(self.try_fill()?, "waited in vain for the server");
        Ok(())
    }

    fn chunks(&mut self) -> Result<Vec<u8>, End> {
        let mut body = Vec::new();
        loop {
            let size = self.line()?;
            let size = usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.take(size)?);
            assert_eq!(self.take(2)?, b"\r\n");
        }
    }
}

/// Returns the answer of a server on a Unix socket to `GET /`.
pub fn ask_unix(path: &Path) -> String {
    Client::from(UnixStream::connect(path).unwrap()).get("/").response().text()
}

/// Sends `GET /livez` and `GET path` in one write, and returns after the first response. The
/// handler of `path` then runs, because the server sends the first response when it has to wait for
/// the second (rule W10).
pub fn in_flight(addr: SocketAddr, path: &str) -> Client {
    let request = |path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut client = Client::connect(addr);
    client.send(request("/livez") + &request(path));
    assert_eq!(client.response().status, 200);
    client
}

/// Connects `count` clients, each with a request. The kernel queues them while the server is
/// suspended.
pub fn clients_in_queue(addr: SocketAddr, count: usize) -> Vec<Client> {
    let client = |_| {
        let mut client = Client::connect(addr);
        client.get("/work?for=0s");
        client
    };
    (0..count).map(client).collect()
}

/// Asserts that each client gets its answer.
pub fn assert_all_okay(clients: Vec<Client>) {
    for mut client in clients {
        assert_eq!(client.response().text(), "okay");
    }
}

/// Connects a socket with a small receive buffer, so that the kernel takes in few bytes before the
/// client reads.
pub fn small_socket(addr: SocketAddr, receive_buffer: usize) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(receive_buffer).unwrap();
    socket.connect(&addr.into()).unwrap();
    socket.into()
}
