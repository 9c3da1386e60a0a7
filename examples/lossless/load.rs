//! The load: clients that ask without a pause and say what became of every request.
//!
//! A request counts as answered when the answer came whole and right; as refused when nothing of it
//! was sent, so that it can be sent again; and otherwise as lost, with a word on how. Std only, and
//! nothing of the crate: it talks to any server that has the two routes which `main.rs` tells.

#![allow(dead_code, unreachable_pub, reason = "the example and the tests use their own parts")]

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How many failures are described; all are counted.
const DESCRIBED: usize = 20;

/// The largest body that a client sends.
const LARGEST: usize = 8 * 1024;

/// More than any right answer has.
const TOO_MUCH: usize = 1024 * 1024;

/// How a connect fails that finds no listener, or meets its close; a socket file may be missing.
const REFUSED: [ErrorKind; 3] =
    [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset, ErrorKind::NotFound];

/// How long a client waits after a refused connect, and after a loss.
pub const AGAIN: Duration = Duration::from_millis(1);

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `127.0.0.1:8082`
    Tcp(SocketAddr),
    /// `unix:/run/app.sock`
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("there is no path behind `unix:`".to_owned()),
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

/// A server under load.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where the server listens.
    pub target: Target,
    /// How many clients ask at the same time. In equal parts they take a new connection for each
    /// `GET`, keep theirs for the next `GET`, and keep theirs for the next `POST`.
    pub clients: usize,
    /// The longest that the server is asked to work on a request.
    pub longest: Duration,
    /// How long a request may take, and everything else that is waited for.
    pub patience: Duration,
}

impl Load {
    /// 16 clients, requests of up to 50 ms, 30 s of patience.
    pub fn new(target: Target) -> Self {
        let (longest, patience) = (Duration::from_millis(50), Duration::from_secs(30));
        Self { target, clients: 16, longest, patience }
    }

    /// Starts the clients, waits until each has had an answer, calls `during` while they go on, and
    /// lets each finish the request that it is at.
    ///
    /// Fails if some client has had no answer after [`patience`](Self::patience).
    pub fn run<T>(&self, during: impl FnOnce(&Tally) -> T) -> io::Result<(Report, T)> {
        let clients = Clients::start(self)?;
        let tally = &*clients.tally;
        if !tally.all_answered(self.patience) {
            let Self { target, clients, patience, .. } = self;
            let is_without = |client: &&Progress| client.answered.load(Relaxed) == 0;
            let without = tally.progress.iter().filter(is_without).count();
            return Err(io::Error::new(
                ErrorKind::TimedOut,
                format!(
                    "{target} has not answered {without} of {clients} clients within {patience:?}\n{}",
                    tally.report()
                ),
            ));
        }
        let made = during(tally);
        Ok((clients.finish(self.patience), made))
    }
}

/// What has become of the requests so far; the fields are told at [`Report`].
#[derive(Debug)]
pub struct Tally {
    pub answered: AtomicU64,
    pub last: AtomicU64,
    pub closed: AtomicU64,
    pub refused: AtomicU64,
    pub attempts: AtomicU64,
    pub crossed: AtomicU64,
    pub reset: AtomicU64,
    pub cut: AtomicU64,
    pub wrong: AtomicU64,
    pub stalled: AtomicU64,
    /// In microseconds.
    slowest: AtomicU64,
    odd: OnceLock<String>,
    failures: Mutex<Vec<Failure>>,
    /// One for each client.
    progress: Box<[Progress]>,
    start: Instant,
    stop: AtomicBool,
}

/// How far a client is. Its requests are numbered from 1.
#[derive(Debug, Default)]
struct Progress {
    begun: AtomicU64,
    answered: AtomicU64,
}

impl Tally {
    fn new(clients: usize) -> Self {
        Self {
            answered: AtomicU64::new(0),
            last: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
            crossed: AtomicU64::new(0),
            reset: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
            slowest: AtomicU64::new(0),
            odd: OnceLock::new(),
            failures: Mutex::default(),
            progress: (0..clients).map(|_| Progress::default()).collect(),
            start: Instant::now(),
            stop: AtomicBool::new(false),
        }
    }

    /// Waits until every client has had an answer to a request that it began after this call;
    /// whether that came true in time.
    pub fn all_answered(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let begun: Vec<_> = self.progress.iter().map(|client| client.begun.load(Relaxed)).collect();
        let is_answered =
            |(client, begun): (&Progress, &u64)| client.answered.load(Relaxed) > *begun;
        while !self.progress.iter().zip(&begun).all(is_answered) {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(AGAIN);
        }
        true
    }

    /// What there is to say by now.
    pub fn report(&self) -> Report {
        Report {
            answered: self.answered.load(Relaxed),
            last: self.last.load(Relaxed),
            closed: self.closed.load(Relaxed),
            refused: self.refused.load(Relaxed),
            attempts: self.attempts.load(Relaxed),
            crossed: self.crossed.load(Relaxed),
            reset: self.reset.load(Relaxed),
            cut: self.cut.load(Relaxed),
            wrong: self.wrong.load(Relaxed),
            stalled: self.stalled.load(Relaxed),
            slowest: Duration::from_micros(self.slowest.load(Relaxed)),
            odd: self.odd.get().cloned(),
            failures: self.failures().clone(),
        }
    }

    /// How many requests are lost by now.
    pub fn lost(&self) -> u64 {
        self.report().lost()
    }

    fn failures(&self) -> MutexGuard<'_, Vec<Failure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, failure: Failure) {
        let counter = match failure.kind {
            Kind::Crossed => &self.crossed,
            Kind::Reset => &self.reset,
            Kind::Cut => &self.cut,
            Kind::Wrong => &self.wrong,
            Kind::Stalled => &self.stalled,
        };
        // Described first: whoever sees the count may want to read why.
        let mut failures = self.failures();
        if failures.len() < DESCRIBED {
            failures.push(failure);
        }
        counter.fetch_add(1, Relaxed);
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

/// What became of the requests.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests that were answered whole and right.
    pub answered: u64,
    /// Of those, how many answers said that they were the last on their connection.
    pub last: u64,
    /// Connections that the server closed behind an answer that had not said so, and whose client
    /// saw it before it sent the next request: nothing is lost.
    pub closed: u64,
    /// Requests whose connect failed at first: nothing was sent, and the client tried again.
    pub refused: u64,
    /// How many connects failed for them.
    pub attempts: u64,
    /// Lost: sent on a used connection, and not a byte came back. HTTP/1.1 allows this race.
    pub crossed: u64,
    /// Lost: sent on a new connection, and not a byte came back.
    pub reset: u64,
    /// Lost: an answer that began and did not end.
    pub cut: u64,
    /// Lost: a whole answer with a wrong status or body, or without a clean end though it was the
    /// last.
    pub wrong: u64,
    /// Lost: no whole answer in time.
    pub stalled: u64,
    /// The longest that an answer took, from the first attempt to connect.
    pub slowest: Duration,
    /// The first error of a connect that is not among those that a restart explains.
    pub odd: Option<String>,
    /// The first losses.
    pub failures: Vec<Failure>,
}

impl Report {
    /// How many requests the server has lost.
    pub fn lost(&self) -> u64 {
        self.crossed + self.reset + self.cut + self.wrong + self.stalled
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let odd = self.odd.as_ref().map_or(String::new(), |error| format!("; such as: {error}"));
        let tried = format!("nothing was sent; {} connects failed{odd}", self.attempts);
        let slowest = format!("whole and right; the slowest took {:.1?}", self.slowest);
        for (what, number, words) in [
            ("answered", self.answered, &*slowest),
            ("  last", self.last, "of those, said to be the last on their connection"),
            ("closed", self.closed, "unannounced, but seen before the next request was sent"),
            ("refused", self.refused, &*tried),
            ("crossed", self.crossed, "LOST: sent on a used connection, and not a byte came back"),
            ("reset", self.reset, "LOST: sent on a new connection, and not a byte came back"),
            ("cut", self.cut, "LOST: an answer began and did not end"),
            ("wrong", self.wrong, "LOST: another answer than the right one, or no clean end"),
            ("stalled", self.stalled, "LOST: no answer in time"),
        ] {
            // Who has lost nothing is not shouted at.
            let words = if number == 0 { words.trim_start_matches("LOST: ") } else { words };
            writeln!(f, "{what:<10}{number:>8}  {words}")?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(f, "{failure}"))?;
        match self.lost().saturating_sub(self.failures.len() as u64) {
            0 => Ok(()),
            more => writeln!(f, "… and {more} more"),
        }
    }
}

/// How a request was lost: the fields of [`Report`] of the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Crossed,
    Reset,
    Cut,
    Wrong,
    Stalled,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crossed => "crossed",
            Self::Reset => "reset",
            Self::Cut => "cut",
            Self::Wrong => "wrong",
            Self::Stalled => "stalled",
        })
    }
}

/// A lost request.
#[derive(Debug, Clone)]
pub struct Failure {
    pub kind: Kind,
    /// What it was asked for, and how the connection was used.
    pub shape: Shape,
    /// The client's end of the connection.
    pub client: String,
    /// Since the load began.
    pub at: Duration,
    /// Since the request was begun.
    pub elapsed: Duration,
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, shape, client, at, elapsed, what } = self;
        let at = at.as_secs_f64();
        write!(f, "at {at:.3} s, {kind}: {shape}, by {client}, after {elapsed:.1?}: {what}")
    }
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `GET /work`, with a new connection for each.
    Fresh,
    /// `GET /work`, on the same connection as long as the server keeps it.
    Kept,
    /// `POST /echo`, on the same connection as long as the server keeps it.
    Echo,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fresh => "GET, a connection for each",
            Self::Kept => "GET, keep-alive",
            Self::Echo => "POST, keep-alive",
        })
    }
}

impl Shape {
    const ALL: [Self; 3] = [Self::Fresh, Self::Kept, Self::Echo];

    /// The bytes of request `number`, and the body that its answer must have.
    fn request(self, number: u64, longest: Duration) -> (Vec<u8>, Vec<u8>) {
        let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        let work = fastrand::u64(0..=longest);
        let is_even = number % 2 == 0;
        if self != Self::Echo {
            let close = if self == Self::Fresh && is_even { "Connection: close\r\n" } else { "" };
            let head = format!("GET /work?for={work}ms HTTP/1.1\r\nHost: lossless\r\n{close}\r\n");
            return (head.into(), b"okay".into());
        }
        let body: Vec<u8> = (0..fastrand::usize(0..=LARGEST)).map(|_| fastrand::u8(..)).collect();
        let framing = if is_even {
            format!("Content-Length: {}", body.len())
        } else {
            "Transfer-Encoding: chunked".to_owned()
        };
        let head =
            format!("POST /echo?for={work}ms HTTP/1.1\r\nHost: lossless\r\n{framing}\r\n\r\n");
        let mut bytes = head.into_bytes();
        if is_even {
            bytes.extend(&body);
        } else {
            for chunk in body.chunks(fastrand::usize(LARGEST / 8..=LARGEST)) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
        }
        (bytes, body)
    }
}

/// The clients while they run; they are told to stop when this is dropped.
struct Clients {
    tally: Arc<Tally>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(load: &Load) -> io::Result<Self> {
        let tally = Arc::new(Tally::new(load.clients));
        let mut clients = Self { tally, threads: Vec::new() };
        for (index, shape) in Shape::ALL.into_iter().cycle().take(load.clients).enumerate() {
            let (load, tally) = (load.clone(), clients.tally.clone());
            let mut client = Client { index, shape, load, tally, wire: None, local: String::new() };
            let thread = thread::Builder::new().name(format!("client {index}"));
            clients.threads.push(thread.spawn(move || client.run())?);
        }
        Ok(clients)
    }

    /// Waits until each client has finished what it is at.
    fn finish(mut self, patience: Duration) -> Report {
        self.tally.stop.store(true, Relaxed);
        // A connect and a request end after their patience each, but a Unix socket's connect has no
        // timeout: when a listener is held, its queue full, and nobody accepts, it waits forever.
        let deadline = Instant::now() + 2 * patience + Duration::from_secs(5);
        for (index, thread) in self.threads.drain(..).enumerate() {
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(AGAIN);
            }
            if !thread.is_finished() {
                self.tally.lose(Failure {
                    kind: Kind::Stalled,
                    shape: Shape::ALL[index % Shape::ALL.len()],
                    client: format!("client {index}"),
                    at: self.tally.start.elapsed(),
                    elapsed: patience,
                    what: "its connect has not come back".to_owned(),
                });
            } else if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        self.tally.report()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.tally.stop.store(true, Relaxed);
    }
}

/// One client, which sends one request after the other.
struct Client {
    index: usize,
    shape: Shape,
    load: Load,
    tally: Arc<Tally>,
    /// Kept for the next request.
    wire: Option<Wire>,
    /// Our end of the latest connection.
    local: String,
}

impl Client {
    fn run(&mut self) {
        let tally = self.tally.clone();
        let progress = &tally.progress[self.index];
        for number in 1.. {
            if tally.is_stopping() {
                break;
            }
            progress.begun.store(number, Relaxed);
            let begun = Instant::now();
            match self.ask(number) {
                Ok(true) => {
                    let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                    tally.slowest.fetch_max(took, Relaxed);
                    tally.answered.fetch_add(1, Relaxed);
                    progress.answered.store(number, Relaxed);
                }
                // Told to stop before anything was sent.
                Ok(false) => break,
                Err(loss) => {
                    self.lose(loss, begun);
                    thread::sleep(AGAIN);
                }
            }
        }
    }

    fn lose(&self, (kind, what): Loss, begun: Instant) {
        self.tally.lose(Failure {
            kind,
            shape: self.shape,
            client: format!("client {} ({})", self.index, self.local),
            at: self.tally.start.elapsed(),
            elapsed: begun.elapsed(),
            what,
        });
    }

    /// Sends a request and looks at its answer; `false` if it was told to stop before it had sent
    /// anything.
    fn ask(&mut self, number: u64) -> Result<bool, Loss> {
        let (request, body) = self.shape.request(number, self.load.longest);
        let used = self.used();
        let is_used = used.is_some();
        let Some(mut wire) = used.or_else(|| self.connect()) else { return Ok(false) };
        wire.begin(self.load.patience);

        // One write, so that it is sent whole or not at all. If it fails, there may still be
        // something to read that says why.
        let sent = wire.stream.write_all(&request);
        let answer = wire.answer().map_err(|fault| {
            let sent = sent.err().map_or(String::new(), |error| format!("not sent: {error}; "));
            match fault {
                Fault::Late => (Kind::Stalled, format!("{sent}{}", wire.heard())),
                Fault::Ended(how) if wire.is_heard => {
                    (Kind::Cut, format!("{sent}{how}; {}", wire.heard()))
                }
                Fault::Ended(how) if is_used => (Kind::Crossed, format!("{sent}{how}")),
                Fault::Ended(how) => (Kind::Reset, format!("{sent}{how}")),
                Fault::Wrong(what) => (Kind::Wrong, format!("{sent}{what}")),
            }
        })?;
        answer.check(&body).map_err(|what| (Kind::Wrong, what))?;
        if answer.is_last {
            wire.end().map_err(|what| (Kind::Wrong, what))?;
            self.tally.last.fetch_add(1, Relaxed);
        } else if self.shape != Shape::Fresh {
            self.wire = Some(wire);
        }
        Ok(true)
    }

    /// The connection of the request before, unless the server has closed it meanwhile.
    fn used(&mut self) -> Option<Wire> {
        let mut wire = self.wire.take()?;
        match wire.look() {
            Ok(true) => return Some(wire),
            Ok(false) => {
                self.tally.closed.fetch_add(1, Relaxed);
            }
            // No request is lost by it, but no server should do it.
            Err(what) => self.lose((Kind::Wrong, what), Instant::now()),
        }
        None
    }

    /// Connects, and tries again until it works; `None` when it was told to stop before.
    fn connect(&mut self) -> Option<Wire> {
        let mut is_refused = false;
        loop {
            let begun = Instant::now();
            match Stream::connect(&self.load.target, self.load.patience) {
                Ok((stream, local)) => {
                    self.local = local;
                    return Some(Wire::new(stream));
                }
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    self.lose((Kind::Stalled, format!("connect: {error}")), begun);
                }
                Err(error) => {
                    self.tally.refused.fetch_add(u64::from(!is_refused), Relaxed);
                    self.tally.attempts.fetch_add(1, Relaxed);
                    is_refused = true;
                    if !REFUSED.contains(&error.kind()) {
                        self.tally.odd.get_or_init(|| error.to_string());
                    }
                }
            }
            if self.tally.is_stopping() {
                return None;
            }
            thread::sleep(AGAIN);
        }
    }
}

/// How a request was lost, and what was seen of it.
type Loss = (Kind, String);

/// What can be wrong about an answer.
enum Fault {
    /// The connection ended before the answer did.
    Ended(String),
    /// The patience did.
    Late,
    /// It cannot be understood.
    Wrong(String),
}

/// An answer as it came.
struct Answer {
    status: u16,
    body: Vec<u8>,
    /// Whether the connection cannot be used again.
    is_last: bool,
}

impl Answer {
    /// Says what is wrong, if it is not the answer that has `body`.
    fn check(&self, body: &[u8]) -> Result<(), String> {
        if self.status != 200 {
            let text = String::from_utf8_lossy(&self.body);
            return Err(format!("status {}, {:?}", self.status, text.trim_end()));
        }
        if self.body == body {
            return Ok(());
        }
        let same = self.body.iter().zip(body).take_while(|(is, should)| is == should).count();
        let (is, should) = (self.body.len(), body.len());
        Err(format!("a body of {is} bytes for one of {should}, the same up to byte {same}"))
    }
}

/// A connection, and what has been read from it and not used.
pub struct Wire {
    stream: Stream,
    buffer: Vec<u8>,
    /// Whether a byte of the answer has come.
    is_heard: bool,
    deadline: Instant,
}

impl Wire {
    pub fn new(stream: Stream) -> Self {
        Self { stream, buffer: Vec::new(), is_heard: false, deadline: Instant::now() }
    }

    /// A new request, with a new deadline.
    fn begin(&mut self, patience: Duration) {
        self.is_heard = false;
        self.deadline = Instant::now() + patience;
        // It takes any duration that is not zero.
        let _ = self.stream.set_write_timeout(patience);
    }

    /// What the beginning of the answer looks like.
    fn heard(&self) -> String {
        let text = String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(80)]);
        if self.is_heard { format!("it was at {text:?}") } else { "not a byte came".to_owned() }
    }

    /// The next answer that is not an interim one.
    fn answer(&mut self) -> Result<Answer, Fault> {
        loop {
            let answer = self.any_answer()?;
            if !(100..200).contains(&answer.status) {
                return Ok(answer);
            }
        }
    }

    fn any_answer(&mut self) -> Result<Answer, Fault> {
        let status_line = self.line()?;
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
            let line = self.line()?;
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
            _ if is_chunked => self.chunks()?,
            Some(length) => self.take(length)?,
            None => {
                is_last = true;
                self.rest()?
            }
        };
        Ok(Answer { status, body, is_last })
    }

    fn chunks(&mut self) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim_end();
            match usize::from_str_radix(size, 16) {
                Ok(0) => break,
                Ok(size) if body.len().saturating_add(size) <= TOO_MUCH => {
                    body.extend(self.take(size)?);
                }
                _ => return Err(Fault::Wrong(format!("no size of a chunk: {line:?}"))),
            }
            if !self.line()?.is_empty() {
                return Err(Fault::Wrong("a chunk is larger than it said".to_owned()));
            }
        }
        while !self.line()?.is_empty() {}
        Ok(body)
    }

    /// The next line, without its end.
    fn line(&mut self) -> Result<String, Fault> {
        let end = loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                break end;
            }
            if self.buffer.len() > TOO_MUCH {
                return Err(Fault::Wrong("a line without an end".to_owned()));
            }
            self.fill()?;
        };
        let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
        Ok(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    fn take(&mut self, n: usize) -> Result<Vec<u8>, Fault> {
        while self.buffer.len() < n {
            self.fill()?;
        }
        Ok(self.buffer.drain(..n).collect())
    }

    /// What comes until the other side closes.
    fn rest(&mut self) -> Result<Vec<u8>, Fault> {
        while self.read()? > 0 {
            if self.buffer.len() > TOO_MUCH {
                return Err(Fault::Wrong("a body without an end".to_owned()));
            }
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// The end behind the last answer, which must be a clean one.
    fn end(&mut self) -> Result<(), String> {
        match self.rest() {
            Ok(rest) if rest.is_empty() => Ok(()),
            Ok(rest) => Err(format!("{} bytes behind the last answer", rest.len())),
            Err(Fault::Ended(how) | Fault::Wrong(how)) => {
                Err(format!("after the last answer: {how}"))
            }
            Err(Fault::Late) => Err("after the last answer: no end".to_owned()),
        }
    }

    /// Whether the connection can be used again, or has been closed.
    pub fn look(&mut self) -> Result<bool, String> {
        let mut byte = [0];
        let looked = self
            .stream
            .set_nonblocking(true)
            .and_then(|()| match self.stream.read(&mut byte) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                read => read.map(Some),
            })
            .and_then(|read| self.stream.set_nonblocking(false).map(|()| read));
        match looked {
            Ok(Some(0)) => Ok(false),
            Ok(None) if self.buffer.is_empty() => Ok(true),
            Ok(_) => Err("more bytes than the answer has".to_owned()),
            Err(error) => Err(format!("while nothing was asked: {error}")),
        }
    }

    fn fill(&mut self) -> Result<(), Fault> {
        match self.read()? {
            0 => Err(Fault::Ended("closed".to_owned())),
            _ => Ok(()),
        }
    }

    /// Reads what there is; 0 at the end.
    fn read(&mut self) -> Result<usize, Fault> {
        let mut bytes = [0; 16 * 1024];
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Fault::Late);
            }
            let read =
                self.stream.set_read_timeout(left).and_then(|()| self.stream.read(&mut bytes));
            match read {
                Ok(n) => {
                    self.is_heard |= n > 0;
                    self.buffer.extend(&bytes[..n]);
                    return Ok(n);
                }
                Err(error) => match error.kind() {
                    // If it was the timeout, the deadline is over.
                    ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                    _ => return Err(Fault::Ended(error.to_string())),
                },
            }
        }
    }
}

/// A blocking socket.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// A new connection, and the name of our end of it.
    pub fn connect(target: &Target, patience: Duration) -> io::Result<(Self, String)> {
        match target {
            Target::Tcp(addr) => {
                let stream = TcpStream::connect_timeout(addr, patience)?;
                let local = stream.local_addr()?;
                if local == *addr {
                    // A port that nobody listens on can be given to the client itself, which then
                    // talks to itself.
                    return Err(ErrorKind::ConnectionRefused.into());
                }
                stream.set_nodelay(true)?;
                Ok((Self::Tcp(stream), local.to_string()))
            }
            Target::Unix(path) => {
                // Only its descriptor tells one Unix client from another.
                Ok((Self::Unix(UnixStream::connect(path)?), "unix".to_owned()))
            }
        }
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Self::Unix(stream) => stream.set_read_timeout(Some(timeout)),
        }
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(Some(timeout)),
            Self::Unix(stream) => stream.set_write_timeout(Some(timeout)),
        }
    }

    fn set_nonblocking(&self, is_on: bool) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(is_on),
            Self::Unix(stream) => stream.set_nonblocking(is_on),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        }
    }
}
