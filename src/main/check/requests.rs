//! The requests of a load: the text of each kind, and the right answer to it.
//!
//! [`Target`] is the address of the server, [`Shape`] is a kind of request, and [`Requests`] makes
//! the requests of all kinds. An answer is right if its status is 2xx or 3xx and its body is the
//! expected one, or if no body is expected. Nothing here touches a socket.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The largest body that a client sends.
const LARGEST: usize = 8 * 1024;

/// The address of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A TCP address, such as `127.0.0.1:8082`.
    Tcp(SocketAddr),
    /// The file of a Unix socket, such as `unix:/run/app.sock`.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("there is no path after `unix:`".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                format!(
                    "`{text}` is no address to connect to; write `127.0.0.1:8082`, `[::1]:8082` \
                     or `unix:/path`"
                )
            }),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "{addr}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The kind of requests that a client sends, and the use of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `GET`, with a new connection for each.
    Fresh,
    /// `GET`, on the same connection as long as the server keeps it.
    Kept,
    /// `POST`, on the same connection as long as the server keeps it.
    Post,
    /// `GET` of a path that the server answers slowly, on the same connection as long as the server
    /// keeps it. The times of these answers are not counted.
    Slow,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fresh => "GET, a connection for each",
            Self::Kept => "GET, keep-alive",
            Self::Post => "POST, keep-alive",
            Self::Slow => "slow GET, keep-alive",
        })
    }
}

impl Shape {
    /// Returns `true` if request `number` asks the server to close the connection.
    pub fn asks_for_close(self, number: u64) -> bool {
        self == Self::Fresh && number % 2 == 0
    }
}

/// The requests of the clients of a load.
#[derive(Debug, Clone)]
pub struct Requests {
    /// The path of `GET`.
    pub get: String,
    /// The body that an answer to `GET` must have. With `None`, any body is right.
    pub body: Option<Vec<u8>>,
    /// The path of `POST`. With `None`, no client sends `POST`.
    pub post: Option<String>,
    /// `true` if the server answers `POST` with the body of the request.
    pub is_echo: bool,
    /// A path with slow answers, which one more client asks.
    pub slow: Option<String>,
    /// The field lines of each request, with their line ends. `Host` is among them.
    pub fields: String,
    /// The longest time for which a request to `/work` or `/echo` works, or `None` for other
    /// servers than smol-graceful itself.
    pub longest: Option<Duration>,
}

impl Requests {
    /// Returns requests of `GET /`.
    pub fn new(host: &str) -> Self {
        Self {
            get: "/".to_owned(),
            body: None,
            post: None,
            is_echo: false,
            slow: None,
            fields: format!("Host: {host}\r\n"),
            longest: None,
        }
    }

    /// Returns requests to the routes of smol-graceful itself. `GET /work?for=20ms` works for that
    /// time and answers `okay`. `POST /echo?for=20ms` works for that time and sends the body back.
    pub fn of_bundled(host: &str, longest: Duration) -> Self {
        Self {
            get: "/work".to_owned(),
            body: Some(b"okay".into()),
            post: Some("/echo".to_owned()),
            is_echo: true,
            longest: Some(longest),
            ..Self::new(host)
        }
    }

    /// Returns the kinds of the busy clients, in equal parts.
    pub fn of_busy(&self) -> &'static [Shape] {
        match self.post {
            Some(_) => &[Shape::Fresh, Shape::Kept, Shape::Post],
            None => &[Shape::Fresh, Shape::Kept],
        }
    }

    /// Returns the kinds of the idle clients, in equal parts.
    pub fn of_idle(&self) -> &'static [Shape] {
        match self.post {
            Some(_) => &[Shape::Kept, Shape::Post],
            None => &[Shape::Kept],
        }
    }

    /// Returns request `number` of a client, and the body that its answer must have.
    pub fn request(&self, shape: Shape, number: u64) -> (Vec<u8>, Option<Vec<u8>>) {
        let fields = &self.fields;
        let get = |target: &str, close: &str| {
            format!("GET {target} HTTP/1.1\r\n{fields}{close}\r\n").into_bytes()
        };
        match (shape, &self.post, &self.slow) {
            (Shape::Post, Some(path), _) => self.post(&self.target(path), number),
            (Shape::Slow, _, Some(path)) => (get(path, ""), None),
            _ => {
                let is_last = shape.asks_for_close(number);
                let close = if is_last { "Connection: close\r\n" } else { "" };
                (get(&self.target(&self.get), close), self.body.clone())
            }
        }
    }

    fn post(&self, target: &str, number: u64) -> (Vec<u8>, Option<Vec<u8>>) {
        let mut body = vec![0; fastrand::usize(0..=LARGEST)];
        fastrand::fill(&mut body);
        // Not every server takes a body without a length.
        let is_chunked = self.longest.is_some() && number % 2 == 1;
        let framing = if is_chunked {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {}", body.len())
        };
        let fields = &self.fields;
        let mut bytes = format!("POST {target} HTTP/1.1\r\n{fields}{framing}\r\n\r\n").into_bytes();
        if is_chunked {
            for chunk in body.chunks(fastrand::usize(LARGEST / 8..=LARGEST)) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
        } else {
            bytes.extend(&body);
        }
        (bytes, self.is_echo.then_some(body))
    }

    /// Returns the target of a request, with the time for which it asks the server to work.
    fn target(&self, path: &str) -> String {
        let Some(longest) = self.longest else { return path.to_owned() };
        let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        format!("{path}?for={}ms", fastrand::u64(0..=longest))
    }
}
