//! The load: clients that send requests and say what became of each.
//!
//! Most clients ask without a pause. A crowd of idle ones keeps a connection each and sends at
//! random moments, and a share of the crowd sends in the moment of a restart.
//!
//! A request counts as answered if its answer came whole and right, as refused if no byte of it was
//! sent, so that the client may send it again, and as lost otherwise. The load uses nothing of the
//! crate: it talks to any server that has the two routes which `main.rs` names.

#![allow(dead_code, unreachable_pub, reason = "the example and the tests use their own parts")]
#![allow(unused_imports, reason = "the example and the tests use their own parts")]

use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use smol::{LocalExecutor, Timer};

// The tests include this file by its path, so its modules have paths, too.
#[path = "tally.rs"]
mod tally;
#[path = "wire.rs"]
mod wire;

pub use tally::{Failure, Kind, Report, Spread, Tally};
pub use wire::Wire;

use wire::Fault;

/// The largest body that a client sends.
const LARGEST: usize = 8 * 1024;

/// How a connect fails if nobody listens, or if the listener closes meanwhile. The file of a Unix
/// socket may be missing.
const REFUSED: [ErrorKind; 3] =
    [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset, ErrorKind::NotFound];

/// How long a client that asks without a pause waits after a refused connect, and after a loss.
pub const AGAIN: Duration = Duration::from_millis(1);

/// How long an idle client waits in these cases. Thousands that try every millisecond would leave
/// the server no time to come back.
const IDLE_AGAIN: Duration = Duration::from_millis(50);

/// The longest that an idle client is silent.
const SILENCE: Duration = Duration::from_secs(5);

/// One in so many idle clients sends in the moment of a restart.
const SHARE: usize = 4;

/// How long the moment of a restart is. Half of the share sends at its beginning, and the others
/// send at some time in it.
const MOMENT: Duration = Duration::from_millis(300);

/// The time in which all idle clients connect at the beginning, and ask once more at the end.
const GATHERING: Duration = Duration::from_secs(1);

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
    /// How many clients ask without a pause. In equal parts they take a new connection for each
    /// `GET`, keep theirs for the next `GET`, and keep theirs for the next `POST`.
    pub clients: usize,
    /// How many idle clients there are beside them. In equal parts they send `GET` and `POST`.
    pub idle: usize,
    /// If this is `true`, clients send on a kept connection and do not look whether it is closed.
    /// Most client libraries look.
    pub is_blind: bool,
    /// The longest that the server is asked to work on a request.
    pub longest: Duration,
    /// How long a connect may take, a request, and everything else that is waited for.
    pub patience: Duration,
}

impl Load {
    /// 16 clients that look, requests of up to 50 ms, 30 s of patience.
    pub fn new(target: Target) -> Self {
        let (longest, patience) = (Duration::from_millis(50), Duration::from_secs(30));
        Self { target, clients: 16, idle: 0, is_blind: false, longest, patience }
    }

    /// Starts the clients, waits until each has had an answer, calls `during` while they go on, and
    /// lets each finish its request. Idle clients ask once more at the end, because otherwise a
    /// connection that no process reads would go unnoticed.
    ///
    /// Fails if some client has had no answer after [`patience`](Self::patience).
    pub fn run<T>(&self, during: impl FnOnce(&Tally) -> T) -> io::Result<(Report, T)> {
        let clients = Clients::start(self)?;
        let tally = &*clients.tally;
        let without = tally.wait_for_all(self.patience);
        if without > 0 {
            let (target, patience, all) = (&self.target, self.patience, self.clients + self.idle);
            return Err(io::Error::new(
                ErrorKind::TimedOut,
                format!(
                    "{target} has not answered {without} of {all} clients within {patience:?}\n{}",
                    tally.report()
                ),
            ));
        }
        let made = during(tally);
        Ok((clients.finish(), made))
    }
}

/// The kind of requests that a client sends, and how it uses connections.
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
    const OF_BUSY: [Self; 3] = [Self::Fresh, Self::Kept, Self::Echo];
    const OF_IDLE: [Self; 2] = [Self::Kept, Self::Echo];

    /// Returns `true` if request `number` asks the server to close the connection.
    fn asks_for_close(self, number: u64) -> bool {
        self == Self::Fresh && number % 2 == 0
    }

    /// Returns the bytes of request `number`, and the body that its answer must have.
    fn request(self, number: u64, longest: Duration) -> (Vec<u8>, Vec<u8>) {
        let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        let work = fastrand::u64(0..=longest);
        if self != Self::Echo {
            let close = if self.asks_for_close(number) { "Connection: close\r\n" } else { "" };
            let head = format!("GET /work?for={work}ms HTTP/1.1\r\nHost: lossless\r\n{close}\r\n");
            return (head.into(), b"okay".into());
        }
        let has_length = number % 2 == 0;
        let mut body = vec![0; fastrand::usize(0..=LARGEST)];
        fastrand::fill(&mut body);
        let framing = if has_length {
            format!("Content-Length: {}", body.len())
        } else {
            "Transfer-Encoding: chunked".to_owned()
        };
        let head =
            format!("POST /echo?for={work}ms HTTP/1.1\r\nHost: lossless\r\n{framing}\r\n\r\n");
        let mut bytes = head.into_bytes();
        if has_length {
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

/// The clients while they run. Dropped, it tells them to stop.
struct Clients {
    tally: Arc<Tally>,
    /// Runs all clients: each is a task, so that thousands of them are cheap.
    thread: Option<JoinHandle<()>>,
}

impl Clients {
    fn start(load: &Load) -> io::Result<Self> {
        let tally = Arc::new(Tally::new(load.clients, load.idle));
        let busy = Shape::OF_BUSY.into_iter().cycle().take(load.clients);
        let idle = Shape::OF_IDLE.into_iter().cycle().take(load.idle);
        let clients: Vec<_> = busy
            .chain(idle)
            .enumerate()
            .map(|(index, shape)| Client {
                index,
                shape,
                is_idle: index >= load.clients,
                load: load.clone(),
                tally: tally.clone(),
                wire: None,
                local: String::new(),
            })
            .collect();
        let run = move || {
            let executor = LocalExecutor::new();
            let clients: Vec<_> =
                clients.into_iter().map(|client| executor.spawn(client.run())).collect();
            smol::block_on(executor.run(async {
                for client in clients {
                    client.await;
                }
            }));
        };
        let thread = thread::Builder::new().name("clients".to_owned()).spawn(run)?;
        Ok(Self { tally, thread: Some(thread) })
    }

    /// Waits until each client has finished its request.
    fn finish(mut self) -> Report {
        self.tally.stop();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        self.tally.report()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.tally.stop();
    }
}

/// One client, which sends one request after the other.
struct Client {
    index: usize,
    shape: Shape,
    is_idle: bool,
    load: Load,
    tally: Arc<Tally>,
    /// Kept for the next request.
    wire: Option<Wire>,
    /// Our end of the latest connection.
    local: String,
}

impl Client {
    async fn run(mut self) {
        for number in 1.. {
            if self.is_idle {
                self.rest(number).await;
            }
            let is_last = self.tally.is_stopping();
            if !is_last || self.is_idle {
                self.turn(number).await;
            }
            if is_last {
                break;
            }
        }
        // Counts the connection if the server has closed it meanwhile.
        self.look().await;
    }

    /// Is silent for a random time, which a restart or the end of the load may cut short.
    async fn rest(&self, number: u64) {
        let woken = self.tally.crowd.listen();
        if !self.tally.is_stopping() {
            let silence = if number == 1 { GATHERING } else { SILENCE };
            let by_time = async {
                random_part_of(silence).await;
                false
            };
            let by_event = async {
                woken.await;
                true
            };
            if !by_time.or(by_event).await {
                return;
            }
        }
        if self.tally.is_stopping() {
            random_part_of(GATHERING).await;
        } else if fastrand::bool() {
            random_part_of(MOMENT).await;
        }
    }

    /// Sends request `number`, and counts what became of it.
    async fn turn(&mut self, number: u64) {
        self.tally.begin(self.index, number);
        let begun = Instant::now();
        match self.ask(number).await {
            Ok(true) => self.tally.answer(self.index, number, begun),
            // Told to stop before anything was sent.
            Ok(false) => {}
            Err(loss) => {
                self.lose(loss, begun);
                self.wait().await;
            }
        }
    }

    fn lose(&self, (kind, what): Loss, begun: Instant) {
        self.tally.lose(Failure {
            kind,
            shape: self.shape,
            client: format!("client {} ({})", self.index, self.local),
            at: self.tally.elapsed(),
            elapsed: begun.elapsed(),
            what,
        });
    }

    /// Sends a request and checks its answer. Returns `false` if the client was told to stop before
    /// it had sent anything.
    async fn ask(&mut self, number: u64) -> Result<bool, Loss> {
        let (request, body) = self.shape.request(number, self.load.longest);
        if !self.load.is_blind {
            self.look().await;
        }
        let is_used = self.wire.is_some();
        let Some(mut wire) = (match self.wire.take() {
            Some(wire) => Some(wire),
            None => self.connect().await,
        }) else {
            return Ok(false);
        };
        let answer = match within(self.load.patience, wire.exchange(&request)).await {
            Ok(answer) => answer,
            Err(fault) => {
                if is_used && matches!(fault, Fault::Ended(_)) {
                    self.tally.untold.fetch_add(1, Relaxed);
                }
                return Err(wire.loss(&fault, is_used));
            }
        };
        answer.check(&body).map_err(|what| (Kind::Wrong, what))?;
        if answer.is_last {
            within(self.load.patience, wire.end())
                .await
                .map_err(|fault| (Kind::Wrong, format!("after the last answer: {fault}")))?;
            let is_asked = self.shape.asks_for_close(number);
            let counter = if is_asked { &self.tally.asked } else { &self.tally.told };
            counter.fetch_add(1, Relaxed);
        } else if self.shape != Shape::Fresh {
            self.wire = Some(wire);
        }
        Ok(true)
    }

    /// Looks whether the server has closed the kept connection.
    async fn look(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        match wire.look().await {
            Ok(true) => return,
            Ok(false) => {
                self.tally.untold.fetch_add(1, Relaxed);
            }
            // No request is lost by it, but no server should do it.
            Err(fault) => {
                self.tally.untold.fetch_add(u64::from(matches!(fault, Fault::Ended(_))), Relaxed);
                let what = format!("while nothing was asked: {fault}");
                self.lose((Kind::Wrong, what), Instant::now());
            }
        }
        self.wire = None;
    }

    /// Connects, and tries again until that works. Returns `None` if the client was told to stop
    /// before.
    async fn connect(&mut self) -> Option<Wire> {
        let mut is_refused = false;
        loop {
            let begun = Instant::now();
            let late = async {
                Timer::after(self.load.patience).await;
                Err(ErrorKind::TimedOut.into())
            };
            match Wire::connect(&self.load.target).or(late).await {
                Ok((wire, local)) => {
                    self.local = local;
                    return Some(wire);
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
            self.wait().await;
        }
    }

    /// Waits before another attempt.
    async fn wait(&self) {
        Timer::after(if self.is_idle { IDLE_AGAIN } else { AGAIN }).await;
    }
}

/// How a request was lost, and what was seen of it.
type Loss = (Kind, String);

/// Waits for `future`, but not longer than this.
async fn within<T>(
    patience: Duration,
    future: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let late = async {
        Timer::after(patience).await;
        Err(Fault::Late)
    };
    future.or(late).await
}

async fn random_part_of(duration: Duration) {
    Timer::after(duration.mul_f64(fastrand::f64())).await;
}
