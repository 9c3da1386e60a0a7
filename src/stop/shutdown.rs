//! [`Shutdown`]: the handle that moves a latch, and sets the times of the drain.
//!
//! Invariant: a drain always ends, by itself, at the end of the grace, or at an abort, and its
//! outcome names all work that was cut (rule S13). This file knows nothing of HTTP and needs no
//! runtime, so a shutdown is useful by itself.

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

/// A handle that stops servers and other work, and sets the times of the stop.
///
/// The handle moves a latch, which is the phase of everything that the handle stops (see the
/// [words](crate#words)). Clones of the handle move the same latch.
///
/// The times of a stop ([`Shutdown::grace`], [`Shutdown::lame_duck`], [`Shutdown::linger`],
/// [`Shutdown::stream_grace`]) belong to the latch, so all clones of the handle and all servers
/// with this latch share them. Set the times before the stop.
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
    /// Makes a handle with a latch of its own, which is running and which nothing holds open yet.
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

    /// Sets how long the drain may take, from the close of the listeners to the abort of the
    /// remaining work (rule S13). Default: 30 s.
    ///
    /// A supervisor's own limit must be longer than lame duck and grace together. With zero,
    /// unfinished work is cut at once. With [`Duration::MAX`], the drain waits until all work has
    /// finished, or until a second signal.
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

    /// Sets how long a server still accepts connections after the stop, while its readiness probe
    /// already fails (rule S3). Default: zero, which means that there is no lame duck.
    ///
    /// With [`Duration::MAX`], the server accepts connections until a second signal. The grace
    /// begins when the lame duck is over.
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
    /// With zero, the server closes the connection at once, unless a request has arrived. With
    /// [`Duration::MAX`], the connection ends by
    /// [`Limits::idle_timeout`](crate::Limits::idle_timeout) or at the end of the grace. A
    /// connection that gives its place to a new client has been idle for the linger, too
    /// ([`Limits::connections`](crate::Limits::connections)).
    ///
    /// A connection that goes to a successor needs no linger. If the successor takes no connection
    /// for this time (100 ms at least), this process serves the waiting connections meanwhile (rule
    /// H5).
    ///
    /// # Examples
    ///
    /// A longer linger helps clients that are far away:
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
    /// with server-sent events). Default: [`Duration::MAX`], so a stream may be silent until the
    /// end of the grace.
    ///
    /// A stream whose handler does not look at its [`Token`] holds the drain open until the grace
    /// is over. With a stream grace, the server closes a stream that has moved nothing for this
    /// time, counted from the end of the lame duck at the earliest. If the client of an upgraded
    /// connection has closed its side, the server closes the connection after this time even if the
    /// server still sends (rule S27).
    ///
    /// The server closes an upgraded connection with a FIN, and its owner's reads and writes fail
    /// from then on. The server resets the connection of a response, because the client must not
    /// take a part of it for the whole. Neither counts as cut
    /// ([`Outcome::streams_closed`](crate::Outcome::streams_closed)).
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

    /// Begins the stop: moves the latch to *draining*. Does nothing if that has happened before
    /// (rule S2).
    ///
    /// Connections end by this stop. They go to a successor only at a restart by a keeper.
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

    /// Stops because of `signal`, which has `waited` for this time.
    pub(crate) fn stop_after_wait(&self, signal: Signal, waited: Duration) {
        self.latch.stop(Some((signal, waited)));
    }

    /// Moves the latch to *aborting*, so the remaining work is dropped. The drain then ends as
    /// [`DrainEnding::Forced`], unless no work was left. Does nothing if that has happened before
    /// (rule S2).
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

    /// Returns the phase of the latch.
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

    /// Returns the number of open connections and guards, which hold the drain open.
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

    /// Returns all connections, including idle ones, and all guards of the latch, the oldest first.
    ///
    /// # Examples
    ///
    /// A page can show the work for which a drain waits:
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

    /// Stops, waits until all work has ended or is cut, and returns the outcome.
    ///
    /// After [`Shutdown::grace`], the remaining work is aborted (rule S13), and the drain waits up
    /// to 100 ms more for its end. If the process was suspended at the end of the grace, work that
    /// became ready meanwhile gets its turn first, for as long as the process was suspended beyond
    /// the grace, but at most 1 s. The log names the remaining work after 1, 2, 5 and 10 s, and
    /// then every 10 s (rule S20). Several tasks may call this at once, before or after the end,
    /// and each gets the outcome.
    ///
    /// The grace begins when [`Shutdown::lame_duck`] is over. This holds without a server, too.
    ///
    /// # Cancel safety
    ///
    /// The drop of the future does not move the latch, and ends the watch over the grace. A new
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
    /// a second with the state of the drain (rule S20).
    pub(crate) async fn drain_telling(
        &self,
        grace: Duration,
        tell: impl Fn(&Draining),
    ) -> Duration {
        self.stop();
        let began = Instant::now();
        let latch = &self.latch;
        latch.state().reports.begin(began);
        // Four futures run side by side. The first one that is ready ends the wait.
        // 1. No holder is left.
        let drained = latch.drained();
        // 2. The drain was aborted.
        let aborted = latch.reached(Phase::Aborting);
        // 3. The grace is over.
        let deadline = async {
            Timer::after(grace).await;
            // S13: if the process was suspended, work that became ready meanwhile gets its turn.
            Timer::after(began.elapsed().saturating_sub(grace).min(MOST_GIVEN_BACK)).await;
            latch.abort(DrainEnding::TimedOut);
        };
        // 4. A report each second, which never ends.
        let report = async {
            let mut moves = None;
            loop {
                Timer::after(Duration::from_secs(1)).await;
                let draining = latch.draining(grace.saturating_sub(began.elapsed()), &mut moves);
                let is_due = latch.state().reports.take_due(Instant::now());
                if is_due {
                    log::info!("{draining}");
                }
                tell(&draining);
            }
        };
        drained.or(aborted).or(deadline).or(report).await;

        let took = began.elapsed();
        // After an abort, each task drops its work. The drain does not wait for a task that is
        // stuck.
        let patience = async {
            Timer::after(ABORT_WAIT).await;
        };
        latch.drained().or(patience).await;
        took
    }

    /// Returns the outcome of a drain that took this time.
    pub(crate) fn outcome(&self, took: Duration) -> Outcome {
        let state = self.latch.state();
        let interrupted = state.interrupted.iter().filter(|interrupted| interrupted.is_cut());
        let mut cut: Vec<_> = interrupted.map(|interrupted| interrupted.work.clone()).collect();
        cut.sort_by_key(|cut| Reverse(cut.age));
        // An abort that has cut nothing counts as a complete drain.
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

    /// Wakes the connections that `choose` returns, and returns their number.
    pub(crate) fn wake(&self, choose: impl FnOnce(&mut Registry) -> Vec<Arc<Seat>>) -> usize {
        self.latch.wake(choose)
    }

    /// Returns the connections that `choose` finds.
    pub(crate) fn seats(&self, choose: impl FnOnce(&Registry) -> Vec<Arc<Seat>>) -> Vec<Arc<Seat>> {
        choose(&self.latch.state().registry)
    }

    /// Counts connections that a successor has taken.
    pub(crate) fn count_handed_over(&self, count: usize) {
        self.latch.note(|state| state.handed_over += count as u64);
    }

    /// Returns the current times.
    pub(crate) fn times(&self) -> Times {
        self.latch.state().times
    }

    /// Returns the facts that the server attaches to a request before it calls the handler.
    pub(crate) fn attached(&self, call: Call, target: &str) -> Attached {
        Attached { latch: self.latch.clone(), call, target: target.into() }
    }

    /// Adds a holder that keeps the drain open. Returns `None` if the drain is over or aborted
    /// (rule S1).
    pub(crate) fn admit(&self, holder: Holder) -> Option<Entry> {
        self.latch.admit(holder)
    }

    /// Notes a request that had arrived and was not served.
    pub(crate) fn note_missed(&self, seat: &Arc<Seat>) {
        let now = Instant::now();
        self.latch.note(|state| state.interrupted.push(Interrupted::of(seat, now)));
    }

    /// Counts a request that was finished in the drain.
    pub(crate) fn count_finished(&self) {
        self.latch.note(|state| state.finished += 1);
    }

    /// Counts a stream that the server has closed because it was silent for too long (rule S27).
    pub(crate) fn count_stream_closed(&self) {
        self.latch.note(|state| state.streams_closed += 1);
    }

    /// Returns the numbers of holders of the latch.
    pub(crate) fn counted(&self) -> InFlight {
        self.latch.state().registry.counted()
    }

    /// Returns the state of the drain, with `left` as the time until the rest is cut.
    pub(crate) fn draining(&self, left: Duration) -> Draining {
        self.latch.draining(left, &mut None)
    }

    /// Waits until the server of `orders` has a connection.
    pub(crate) async fn occupied(&self, orders: &Arc<Orders>) {
        self.latch.occupied(|registry| registry.seats_of(orders).next().is_some()).await;
    }

    /// Returns `true` if both handles move the same latch.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.latch, &other.latch)
    }

    /// Returns `true` if this handle moves a child latch of `other`, or a child's child.
    pub(crate) fn is_below(&self, other: &Self) -> bool {
        self.latch.is_below(&other.latch)
    }

    /// Returns the orders for the connections of one more server.
    pub(crate) fn orders(&self) -> Arc<Orders> {
        Arc::new(Orders::under(self.latch.shared_phase()))
    }
}

// This part of `Token` is here and not in `token.rs`, because it makes a handle.
impl Token {
    /// Makes a child latch, which stops and aborts when the latch of this token does, and can be
    /// stopped alone before. Returns its handle. The child begins with the current times of the
    /// latch.
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

/// The longest time that a drain gets back after the process was suspended beyond the grace.
const MOST_GIVEN_BACK: Duration = Duration::from_secs(1);

/// The longest time for which an aborted drain waits until the tasks have dropped their work.
const ABORT_WAIT: Duration = Duration::from_millis(100);
