//! The load: clients that send requests, and the counts of their results.
//!
//! Most clients ask without a pause. A crowd of idle ones keeps a connection each and sends at
//! random moments, and a share of the crowd sends in the moment of a restart.
//!
//! A request counts as answered if its answer came whole and right, as refused if no byte of it was
//! sent, so that the client may send it again, and as lost otherwise. The load uses nothing of the
//! crate, and tests include this file by its path.

#![allow(dead_code, unreachable_pub, reason = "the binary and the tests use their own parts")]
#![allow(unused_imports, reason = "the binary and the tests use their own parts")]

use std::future::Future;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use smol::{LocalExecutor, Timer};

// The tests include this file by its path, so its modules have paths, too.
#[path = "client.rs"]
mod client;
#[path = "report.rs"]
mod report;
#[path = "requests.rs"]
mod requests;
#[path = "tally.rs"]
mod tally;
#[path = "timeline.rs"]
pub mod timeline;
#[path = "wire.rs"]
mod wire;

pub use report::{Failure, Kind, Report, Row, Spread};
pub use requests::{Requests, Shape, Target};
pub use tally::Tally;
pub use timeline::Timeline;
pub use wire::Wire;

use client::{Client, within};
use wire::Fault;

/// The pause of a busy client after a refused connect, and after a loss.
pub const AGAIN: Duration = Duration::from_millis(1);

/// One in this number of idle clients sends in the moment of a restart.
const SHARE: usize = 4;

/// The time in which all idle clients connect at the beginning, and ask once more at the end.
const GATHERING: Duration = Duration::from_secs(1);

/// A server under load.
#[derive(Debug, Clone)]
pub struct Load {
    /// The address of the server.
    pub target: Target,
    /// The requests of the clients.
    pub requests: Requests,
    /// The number of busy clients, which ask without a pause, in equal parts by the kinds of
    /// requests.
    pub clients: usize,
    /// The time for which a busy client waits between an answer and its next request.
    pub gap: Duration,
    /// The number of idle clients beside them, in equal parts by the kinds that keep their
    /// connection.
    pub idle: usize,
    /// If this is `true`, clients send on a kept connection without a look whether it is closed.
    /// Most client libraries look.
    pub is_blind: bool,
    /// The longest time for a connect, for a request, and for every other wait.
    pub patience: Duration,
}

impl Load {
    /// Returns a load for the routes of smol-graceful itself, with 16 clients that look and ask
    /// without a gap, requests of up to 50 ms, and 30 s of patience.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            requests: Requests::of_bundled("localhost", Duration::from_millis(50)),
            clients: 16,
            gap: Duration::ZERO,
            idle: 0,
            is_blind: false,
            patience: Duration::from_secs(30),
        }
    }

    /// Sends one request of each kind. Returns an error of one line if the server cannot be
    /// reached, or if an answer is not right.
    pub fn probe(&self) -> io::Result<()> {
        let Self { target, patience, .. } = self;
        let shapes = self.requests.of_busy().iter().filter(|shape| **shape != Shape::Fresh);
        smol::block_on(async {
            for shape in shapes {
                let cannot = |error: io::Error| {
                    io::Error::new(error.kind(), format!("cannot connect to {target}: {error}"))
                };
                let late = async {
                    Timer::after(*patience).await;
                    Err(io::Error::new(ErrorKind::TimedOut, format!("not within {patience:?}")))
                };
                let (mut wire, _) = Wire::connect(target).or(late).await.map_err(cannot)?;
                let (request, body) = self.requests.request(*shape, 0);
                let answer = within(*patience, wire.exchange(&request)).await;
                let is_right = match answer {
                    Ok(answer) => answer.check(body.as_deref()),
                    Err(Fault::Late) => Err(format!("no answer within {patience:?}")),
                    Err(fault) => Err(fault.to_string()),
                };
                is_right.map_err(|what| {
                    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
                    let line = String::from_utf8_lossy(line);
                    let what = format!("{target} has no right answer to `{line}`: {what}");
                    io::Error::new(ErrorKind::InvalidData, what)
                })?;
            }
            Ok(())
        })
    }

    /// Starts the clients, waits until each has had an answer, calls `during` while they go on, and
    /// lets each finish its request. Returns the report and the result of `during`. Idle clients
    /// ask once more at the end, because otherwise a connection that no process reads would go
    /// unnoticed.
    ///
    /// Returns an error if a client has had no answer after [`patience`](Self::patience).
    pub fn run<T>(&self, during: impl FnOnce(&Tally) -> T) -> io::Result<(Report, T)> {
        let (tally, made) = self.run_with_course(during)?;
        Ok((tally.report(), made))
    }

    /// Runs like [`run`](Self::run), but returns all counts instead of the report.
    pub fn run_with_course<T>(
        &self,
        during: impl FnOnce(&Tally) -> T,
    ) -> io::Result<(Arc<Tally>, T)> {
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

/// The running clients. The drop tells them to stop.
struct Clients {
    tally: Arc<Tally>,
    /// The thread that runs all clients. Each client is a task, so thousands of them are cheap.
    thread: Option<JoinHandle<()>>,
}

impl Clients {
    fn start(load: &Load) -> io::Result<Self> {
        let tally = Arc::new(Tally::new(load.clients, load.idle));
        let busy = load.requests.of_busy().iter().cycle().take(load.clients);
        let idle = load.requests.of_idle().iter().cycle().take(load.idle);
        let slow = load.requests.slow.iter().map(|_| &Shape::Slow);
        let clients: Vec<_> = busy
            .chain(idle)
            .chain(slow)
            .enumerate()
            .map(|(index, shape)| Client::new(index, *shape, load, &tally))
            .collect();
        let all = tally.clone();
        let run = move || {
            let executor = LocalExecutor::new();
            let (idle, busy): (Vec<_>, Vec<_>) =
                clients.into_iter().partition(|client| client.is_idle);
            let [idle, busy] = [idle, busy].map(|clients| {
                clients.into_iter().map(|client| executor.spawn(client.run())).collect::<Vec<_>>()
            });
            smol::block_on(executor.run(async {
                if !idle.is_empty() {
                    for client in idle {
                        client.await;
                    }
                    all.end();
                }
                for client in busy {
                    client.await;
                }
            }));
        };
        let thread = thread::Builder::new().name("clients".to_owned()).spawn(run)?;
        Ok(Self { tally, thread: Some(thread) })
    }

    /// Waits until each client has finished its request.
    fn finish(mut self) -> Arc<Tally> {
        self.tally.stop();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        self.tally.clone()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.tally.stop();
    }
}
