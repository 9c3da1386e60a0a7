//! [`Shutdown`]: the handle that moves a latch, and says how long the drain may take.
//!
//! Invariant: a drain always ends, by itself, at the end of the grace, or at an abort, and what it
//! has cut is in its outcome (rule S13). Knows nothing of HTTP and needs no runtime: it is useful
//! by itself.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_io::Timer;
use async_signal::Signal;
use futures_lite::FutureExt;

use crate::stop::draining::{Draining, InFlight};
use crate::stop::latch::{Entry, Latch, Times};
use crate::stop::orders::Orders;
use crate::stop::outcome::{DrainEnding, OpenWork, Outcome};
use crate::stop::phase::Phase;
use crate::stop::registry::{Holder, Interrupted, Registry};
use crate::stop::seat::{Call, Seat};
use crate::stop::token::{Attached, Token};

/// The handle that moves the latch, and says how long the drain may take. Clones move the same
/// latch.
///
/// The times of a stop ([`Shutdown::grace`], [`Shutdown::lame_duck`], [`Shutdown::linger`],
/// [`Shutdown::stream_grace`]) belong to the latch, so each clone of the handle and each server
/// with this latch has the same ones. Set them before the stop.
///
/// # Examples
///
/// A queue worker without any HTTP:
///
/// ```
/// use smol_graceful::Shutdown;
/// use std::time::Duration;
///
/// futures_lite::future::block_on(async {
///     let shutdown = Shutdown::new().grace(Duration::from_secs(10));
///     let token = shutdown.token();
///     let job = token.guard().expect("nobody has stopped yet");
///
///     std::thread::spawn(move || {
///         // … finish the job …
///         drop(job);
///     });
///
///     let outcome = shutdown.stop_and_drain().await;
///     assert!(outcome.is_drained());
///     assert!(token.guard().is_err());
/// });
/// ```
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    latch: Arc<Latch>,
}

impl Shutdown {
    /// Makes a latch that is running and that nobody holds.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Phase, Shutdown};
    ///
    /// let shutdown = Shutdown::new();
    /// assert_eq!((shutdown.phase(), shutdown.in_flight()), (Phase::Running, 0));
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long the drain may take, from the close of the listeners to the abort of what is
    /// left (rule S13). Default: 30 s.
    ///
    /// A supervisor's own limit must be longer than lame duck and grace together. Zero cuts at once
    /// what has not finished. [`Duration::MAX`] waits until all has finished, or until a second
    /// signal.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{DrainEnding, Server, Shutdown};
    /// use std::time::Duration;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let shutdown = Shutdown::new().grace(Duration::from_millis(10));
    /// let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
    /// let guard = shutdown.token().guard()?; // for work that does not end
    /// shutdown.stop();
    ///
    /// let outcome = smol::block_on(server.serve(["127.0.0.1:0"]))?;
    /// assert_eq!(outcome.ending, DrainEnding::TimedOut);
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    pub fn grace(self, grace: Duration) -> Self {
        self.latch.state().times.grace = grace;
        self
    }

    /// Sets how long a server still accepts connections after the stop, while readiness already
    /// says no (rule S3). Default: zero, which means that there is no lame duck.
    ///
    /// [`Duration::MAX`] accepts connections until a second signal. The grace begins when the lame
    /// duck is over.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Server, Shutdown};
    /// use std::time::{Duration, Instant};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let shutdown = Shutdown::new().lame_duck(Duration::from_millis(20));
    /// let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
    /// shutdown.stop();
    ///
    /// let stopped = Instant::now();
    /// let outcome = smol::block_on(server.serve(["127.0.0.1:0"]))?;
    /// assert!(outcome.is_drained() && stopped.elapsed() >= Duration::from_millis(20));
    /// # Ok(())
    /// # }
    /// ```
    pub fn lame_duck(self, lame_duck: Duration) -> Self {
        self.latch.state().times.lame_duck = lame_duck;
        self
    }

    /// Sets how long an idle connection may still send a request after the stop (rule S6). Default:
    /// 100 ms.
    ///
    /// Zero closes the connection at once, unless a request has arrived. With [`Duration::MAX`] it
    /// ends by [`Limits::idle_timeout`](crate::Limits::idle_timeout) or at the end of the grace. A
    /// connection that gives its place to a new client has been idle for this time, too
    /// ([`Limits::connections`](crate::Limits::connections)).
    ///
    /// A connection that goes to a successor needs no linger. If the successor takes no connections
    /// for this time (100 ms at least), this process serves those that wait until it does (rule
    /// H5).
    ///
    /// # Examples
    ///
    /// For clients that are far away:
    ///
    /// ```
    /// use smol_graceful::{Server, Shutdown};
    /// use std::time::Duration;
    ///
    /// let shutdown = Shutdown::new().linger(Duration::from_millis(500));
    /// let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
    /// # drop(server);
    /// ```
    pub fn linger(self, linger: Duration) -> Self {
        self.latch.state().times.linger = linger;
        self
    }

    /// Sets how long a stream may be silent in the drain: an upgraded connection (WebSocket), or a
    /// response whose body is awaited from the handler ([`stream_body`](crate::stream_body), as
    /// with server-sent events). Default: [`Duration::MAX`], which means as long as the grace.
    ///
    /// A stream whose handler does not look at its [`Token`] holds the drain open until the grace
    /// is over. With a stream grace the server closes such a stream when it has moved nothing for
    /// this time, counted from the end of the lame duck at the earliest. An upgraded connection
    /// whose client has closed its side is closed after this time even if the server still sends
    /// (rule S27).
    ///
    /// The server closes an upgraded connection with a FIN, and its owner's reads and writes fail
    /// from then on. It resets the connection of a response, because the client must not take a
    /// part for the whole. Neither counts as cut: see
    /// [`Outcome::streams_closed`](crate::Outcome::streams_closed).
    ///
    /// # Examples
    ///
    /// ```
    /// use futures_lite::{AsyncWriteExt, stream};
    /// use smol_graceful::{Connection, Listener, Server, Shutdown, stream_body};
    /// use std::time::Duration;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let shutdown = Shutdown::new().stream_grace(Duration::from_millis(20));
    /// let handle = shutdown.clone();
    /// let server = Server::new(move |_request| {
    ///     handle.stop();
    ///     async { Ok(stream_body(stream::pending::<std::io::Result<String>>())) }
    /// });
    ///
    /// let (mut client, connection) = Connection::pair();
    /// let listener = Listener::from_stream(stream::once(Ok(connection)));
    /// let serve = server.shutdown(&shutdown).serve([listener]);
    /// let outcome = smol::block_on(async {
    ///     client.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    ///     serve.await
    /// })?;
    /// assert!(outcome.is_drained());
    /// assert_eq!(outcome.streams_closed, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream_grace(self, stream_grace: Duration) -> Self {
        self.latch.state().times.stream_grace = stream_grace;
        self
    }

    /// Moves on to *draining*; does nothing if that has happened before (rule S2).
    ///
    /// Connections end by this stop. They go to a successor only if a keeper restarts the process.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Phase, Shutdown};
    ///
    /// let shutdown = Shutdown::new();
    /// shutdown.stop();
    /// shutdown.stop();
    /// assert_eq!(shutdown.phase(), Phase::Draining);
    /// ```
    pub fn stop(&self) {
        self.latch.stop(None);
    }

    /// Stops like [`Shutdown::stop`], and lets the outcome say that `signal` began the stop.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Shutdown, Signal};
    ///
    /// let shutdown = Shutdown::new();
    /// shutdown.stop_by(Signal::Term);
    /// let outcome = futures_lite::future::block_on(shutdown.stop_and_drain());
    /// assert_eq!(outcome.signal, Some(Signal::Term));
    /// ```
    pub fn stop_by(&self, signal: Signal) {
        self.stop_after_wait(signal, Duration::ZERO);
    }

    /// Stops because of `signal`, which has `waited` so long to be obeyed.
    pub(crate) fn stop_after_wait(&self, signal: Signal, waited: Duration) {
        self.latch.stop(Some((signal, waited)));
    }

    /// Moves on to *aborting*: what is left is dropped, and the drain ends as forced unless
    /// nothing was left. Does nothing if that has happened before (rule S2).
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Shutdown;
    ///
    /// let shutdown = Shutdown::new();
    /// let guard = shutdown.token().guard().unwrap();
    /// shutdown.abort();
    /// let outcome = futures_lite::future::block_on(shutdown.stop_and_drain());
    /// assert!(!outcome.is_drained());
    /// assert_eq!(outcome.cut.len(), 1);
    /// # drop(guard);
    /// ```
    pub fn abort(&self) {
        self.latch.abort(DrainEnding::Forced);
    }

    /// Returns where the latch stands.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Phase, Shutdown};
    ///
    /// let shutdown = Shutdown::new();
    /// assert_eq!(shutdown.phase(), Phase::Running);
    /// shutdown.clone().stop();
    /// assert_eq!(shutdown.phase(), Phase::Draining);
    /// ```
    pub fn phase(&self) -> Phase {
        self.latch.phase()
    }

    /// Returns a token that looks at this latch.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Shutdown;
    /// use std::thread;
    ///
    /// let shutdown = Shutdown::new();
    /// let token = shutdown.token();
    /// let waiting = thread::spawn(move || {
    ///     futures_lite::future::block_on(token.stopping());
    ///     token.is_stopping()
    /// });
    /// shutdown.stop();
    /// assert!(waiting.join().unwrap());
    /// ```
    pub fn token(&self) -> Token {
        Token { latch: self.latch.clone(), call: None }
    }

    /// Returns how many open connections and guards hold the drain open.
    ///
    /// # Examples
    ///
    /// ```
    /// let shutdown = smol_graceful::Shutdown::new();
    /// let guard = shutdown.token().guard().unwrap();
    /// assert_eq!(shutdown.in_flight(), 1);
    /// drop(guard);
    /// assert_eq!(shutdown.in_flight(), 0);
    /// ```
    pub fn in_flight(&self) -> usize {
        self.latch.state().registry.in_flight()
    }

    /// Returns everything that holds the latch now, the oldest first: connections, idle ones too,
    /// and guards.
    ///
    /// # Examples
    ///
    /// For a page that says what a drain waits for:
    ///
    /// ```
    /// use smol_graceful::{Shutdown, WorkKind};
    ///
    /// let shutdown = Shutdown::new();
    /// let guard = shutdown.token().guard().unwrap();
    /// let lines: Vec<_> = shutdown.open_work().iter().map(ToString::to_string).collect();
    /// assert!(lines[0].starts_with("guard taken at "));
    /// # drop(guard);
    /// ```
    pub fn open_work(&self) -> Vec<OpenWork> {
        self.latch.state().registry.open_work(Instant::now())
    }

    /// Stops, waits until nobody holds the drain open, and says how it ended.
    ///
    /// After [`Shutdown::grace`] what is left is aborted (rule S13), and waited for up to 100 ms
    /// more. If the process was suspended at the end of the grace, what became ready meanwhile gets
    /// its turn first, for as long as the process was suspended beyond the grace, but at most 1 s.
    /// The log says what is left after 1, 2, 5 and 10 s, and then every 10 s (rule S20). May be
    /// awaited by several at once, before or after the end; each gets the outcome.
    ///
    /// The grace begins when [`Shutdown::lame_duck`] is over, which is a time only for a server
    /// with the same latch.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the latch where it is and ends the watch over the grace; a new
    /// call begins a new grace.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Shutdown;
    ///
    /// let outcome = futures_lite::future::block_on(Shutdown::new().stop_and_drain());
    /// assert!(outcome.is_drained());
    /// ```
    pub async fn stop_and_drain(&self) -> Outcome {
        let Times { grace, lame_duck, .. } = self.times();
        let took = self.drain_telling(lame_duck.saturating_add(grace), |_| {}).await;
        self.outcome(took)
    }

    /// Drains like [`Shutdown::stop_and_drain`], and returns how long that took. Calls `tell` once
    /// a second with what is left (rule S20).
    pub(crate) async fn drain_telling(
        &self,
        grace: Duration,
        tell: impl Fn(&Draining),
    ) -> Duration {
        self.stop();
        let began = Instant::now();
        let latch = &self.latch;
        latch.state().reports.begin(began);
        // Four futures side by side. The first one that is ready ends the wait.
        // 1. Nobody is left.
        let drained = latch.drained();
        // 2. The drain was aborted.
        let aborted = latch.reached(Phase::Aborting);
        // 3. The grace is over.
        let deadline = async {
            Timer::after(grace).await;
            // If the process was suspended, work may have become ready meanwhile. That work gets
            // its turn (rule S13).
            Timer::after(began.elapsed().saturating_sub(grace).min(MADE_UP)).await;
            latch.abort(DrainEnding::TimedOut);
        };
        // 4. A report each second, which never ends.
        let report = async {
            let mut moves = None;
            loop {
                Timer::after(Duration::from_secs(1)).await;
                let draining = latch.draining(grace.saturating_sub(began.elapsed()), &mut moves);
                let is_due = latch.state().reports.is_due(Instant::now());
                if is_due {
                    log::info!("{draining}");
                }
                tell(&draining);
            }
        };
        drained.or(aborted).or(deadline).or(report).await;

        let took = began.elapsed();
        // After an abort, each task drops what it holds. A task that is stuck is not waited for.
        let patience = async {
            Timer::after(ABORTING).await;
        };
        latch.drained().or(patience).await;
        took
    }

    /// Returns the outcome of a drain that took so long.
    pub(crate) fn outcome(&self, took: Duration) -> Outcome {
        let state = self.latch.state();
        let interrupted = state.interrupted.iter().filter(|interrupted| interrupted.is_cut());
        let mut cut: Vec<_> = interrupted.map(|interrupted| interrupted.work.clone()).collect();
        cut.sort_by_key(|cut| Reverse(cut.age));
        // An abort that has cut nothing has harmed nobody, so it was a drain.
        let is_drained = cut.is_empty();
        let aborted = state.aborted.unwrap_or(DrainEnding::Forced);
        let (signal, waited) = state.signal.unzip();
        Outcome {
            ending: if is_drained { DrainEnding::Drained } else { aborted },
            took: took.saturating_add(waited.unwrap_or_default()),
            finished: state.finished,
            handed_over: state.handed_over,
            streams_closed: state.streams_closed,
            signal,
            cut,
        }
    }

    /// Wakes the connections that `choose` returns, and returns how many these are.
    pub(crate) fn wake(&self, choose: impl FnOnce(&mut Registry) -> Vec<Arc<Seat>>) -> usize {
        self.latch.wake(choose)
    }

    /// Returns the connections that `choose` finds.
    pub(crate) fn seats(&self, choose: impl FnOnce(&Registry) -> Vec<Arc<Seat>>) -> Vec<Arc<Seat>> {
        choose(&self.latch.state().registry)
    }

    /// Counts connections that a successor has taken.
    pub(crate) fn handed_over(&self, count: usize) {
        self.latch.note(|state| state.handed_over += count as u64);
    }

    /// Returns the times as they are set now.
    pub(crate) fn times(&self) -> Times {
        self.latch.state().times
    }

    /// Returns what the server attaches to a request whose handler it calls.
    pub(crate) fn attached(&self, call: Call, target: &str) -> Attached {
        Attached { latch: self.latch.clone(), call, target: target.into() }
    }

    /// Takes in a holder that keeps the drain open. Returns `None` once the drain is over or
    /// aborted (rule S1).
    pub(crate) fn admit(&self, holder: Holder) -> Option<Entry> {
        self.latch.admit(holder)
    }

    /// Notes a request that had arrived and was turned away.
    pub(crate) fn missed(&self, seat: &Arc<Seat>) {
        let now = Instant::now();
        self.latch.note(|state| state.interrupted.push(Interrupted::of(seat, now)));
    }

    /// Counts a request that was finished in the drain.
    pub(crate) fn finished(&self) {
        self.latch.note(|state| state.finished += 1);
    }

    /// Counts a stream that the server has closed because it was silent for too long (rule S27).
    pub(crate) fn stream_closed(&self) {
        self.latch.note(|state| state.streams_closed += 1);
    }

    /// Returns what holds the latch, in numbers.
    pub(crate) fn counted(&self) -> InFlight {
        self.latch.state().registry.counted()
    }

    /// Returns how the drain stands, `left` before the rest is cut.
    pub(crate) fn draining(&self, left: Duration) -> Draining {
        self.latch.draining(left, &mut None)
    }

    /// Waits until the server of `orders` has a connection.
    pub(crate) async fn occupied(&self, orders: &Arc<Orders>) {
        self.latch.occupied(|registry| registry.seats_of(orders).next().is_some()).await;
    }

    /// Returns `true` if the two move the same latch.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.latch, &other.latch)
    }

    /// Returns `true` if this moves a child latch of `other`, or a child's child.
    pub(crate) fn is_below(&self, other: &Self) -> bool {
        self.latch.is_below(&other.latch)
    }

    /// Returns the orders for the connections of one more server.
    pub(crate) fn orders(&self) -> Arc<Orders> {
        Arc::new(Orders::under(self.latch.shared_phase()))
    }
}

// Here and not in `token.rs`, because only this file makes handles.
impl Token {
    /// Makes a child latch, which stops and aborts when the latch of this token does, and can be
    /// stopped alone before. It begins with the times that the latch has now.
    ///
    /// A child latch is for a part of a program that is stopped while the rest goes on, such as a
    /// worker or one of several servers. A holder of the child latch holds the drain of its parent
    /// open, too, and the parent's outcome counts and names it. A child latch that was made after
    /// the stop takes no guards, because its drain is over.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::Shutdown;
    ///
    /// # fn main() -> Result<(), smol_graceful::Stopped> {
    /// let shutdown = Shutdown::new();
    /// let worker = shutdown.token().child();
    /// let job = worker.token().guard()?;
    /// assert_eq!(shutdown.in_flight(), 1);
    ///
    /// worker.stop();
    /// assert!(worker.token().is_stopping() && !shutdown.token().is_stopping());
    /// drop(job);
    ///
    /// let other = shutdown.token().child();
    /// shutdown.stop();
    /// assert!(other.token().is_stopping());
    /// # Ok(())
    /// # }
    /// ```
    pub fn child(&self) -> Shutdown {
        Shutdown { latch: self.latch.child() }
    }
}

/// The drain gets back at most so much of the time for which the process was suspended beyond the
/// grace.
const MADE_UP: Duration = Duration::from_secs(1);

/// An aborted drain waits for so long until the tasks have dropped what they hold.
const ABORTING: Duration = Duration::from_millis(100);
