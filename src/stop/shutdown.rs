//! [`Shutdown`], [`Token`], [`Guard`], [`Stopped`]: the latch and the count.
//!
//! Invariant: the phase only moves forward, and once it has left *running* with nobody holding the
//! drain open, nobody can join any more (rules S1, S2). The holders are a list under one lock. The
//! count is that list's length, and "drained" is a predicate over both, never an event of its own.
//! Knows nothing of HTTP and needs no runtime: it is useful by itself.

use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::{Duration, Instant};
use std::{error, fmt, io};

use async_io::Timer;
use async_signal::Signal;
use event_listener::Event;
use futures_lite::FutureExt;
use http_types::Request;

use crate::error::ServeError;
use crate::lock::lock;
use crate::log_limit::LogLimit;
use crate::stop::orders::Orders;
use crate::stop::outcome::{DrainEnding, Draining, Outcome};
use crate::stop::phase::{AtomicPhase, Phase};
use crate::stop::registry::{Holder, Interrupted, Registry};
use crate::stop::seat::{Call, Hold, Seat};
use crate::stream::socket::ClientLeft;

/// The handle that moves the latch, and says how long the drain may take. Clones move the same
/// latch.
///
/// The three times ([`Shutdown::grace`], [`Shutdown::lame_duck`], [`Shutdown::linger`]) belong to
/// the latch, so each clone of the handle and each server with this latch has the same ones. Set
/// them before the stop.
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

/// The three times of a stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) grace: Duration,
    pub(crate) lame_duck: Duration,
    pub(crate) linger: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            lame_duck: Duration::ZERO,
            linger: Duration::from_millis(100),
        }
    }
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
        self.latch.advance(Phase::Draining, |_| {});
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
        self.latch.advance(Phase::Draining, |state| state.signal = Some((signal, waited)));
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
        self.abort_as(DrainEnding::Forced);
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

    /// Stops, waits until nobody holds the drain open, and says how it ended.
    ///
    /// After [`Shutdown::grace`] what is left is aborted (rule S13), and waited for up to 100 ms
    /// more. If the process was suspended at the end of the grace, what became ready meanwhile gets
    /// its turn first, for as long as the process was suspended beyond the grace, but at most 1 s.
    /// Once a second the log says what is left (rule S20). May be awaited by several at once,
    /// before or after the end; each gets the outcome.
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

    /// Drains like [`Shutdown::stop_and_drain`], and returns how long that took. Tells `tell` once a second
    /// what the log says (rule S20).
    pub(crate) async fn drain_telling(
        &self,
        grace: Duration,
        tell: impl Fn(&Draining),
    ) -> Duration {
        self.stop();
        let began = Instant::now();
        let latch = &self.latch;
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
            self.abort_as(DrainEnding::TimedOut);
        };
        // 4. A report each second, which never ends.
        let report = async {
            let mut moves = None;
            loop {
                Timer::after(Duration::from_secs(1)).await;
                let draining = latch.draining(grace.saturating_sub(began.elapsed()), &mut moves);
                // There may be several drains.
                if latch.reports.count(Instant::now()).is_some() {
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
        let cut: Vec<_> = interrupted.map(|interrupted| interrupted.cut.clone()).collect();
        // An abort that has cut nothing has harmed nobody, so it was a drain.
        let is_drained = cut.is_empty();
        let aborted = state.aborted.unwrap_or(DrainEnding::Forced);
        let (signal, waited) = state.signal.unzip();
        Outcome {
            ending: if is_drained { DrainEnding::Drained } else { aborted },
            took: took.saturating_add(waited.unwrap_or_default()),
            finished: state.finished,
            handed_over: state.handed_over,
            signal,
            cut,
        }
    }

    fn abort_as(&self, ending: DrainEnding) {
        self.latch.advance(Phase::Aborting, |state| {
            // Named before anyone can begin to drop what it holds (rule S13).
            let cuts = state.registry.cuts(Instant::now());
            state.interrupted.splice(..0, cuts);
            state.aborted = Some(ending);
        });
        self.wake(|registry| registry.seats().cloned().collect());
    }

    /// Wakes the connections that `choose` returns, and returns how many these are. The registry is
    /// unlocked then, because a waker may run anything.
    pub(crate) fn wake(&self, choose: impl FnOnce(&mut Registry) -> Vec<Arc<Seat>>) -> usize {
        let seats = choose(&mut self.latch.state().registry);
        seats.iter().for_each(|seat| seat.wake());
        seats.len()
    }

    /// Returns the connections that `choose` finds.
    pub(crate) fn seats(&self, choose: impl FnOnce(&Registry) -> Vec<Arc<Seat>>) -> Vec<Arc<Seat>> {
        choose(&self.latch.state().registry)
    }

    /// Counts connections that a successor has taken.
    pub(crate) fn handed_over(&self, count: usize) {
        self.latch.state().handed_over += count as u64;
    }

    /// Returns the times as they are set now.
    pub(crate) fn times(&self) -> Times {
        self.latch.state().times
    }

    /// Returns the token for a handler. Its guards keep the handler going although its client has
    /// left.
    pub(crate) fn token_for(&self, call: Call) -> Token {
        Token { latch: self.latch.clone(), call: Some(call) }
    }

    /// Takes in a holder that keeps the drain open. Returns `None` once the drain is over or
    /// aborted (rule S1).
    pub(crate) fn admit(&self, holder: Holder) -> Option<Guard> {
        self.latch.admit(holder, None)
    }

    /// Notes a request that had arrived and was turned away.
    pub(crate) fn missed(&self, seat: &Arc<Seat>) {
        let interrupted = Interrupted::of(seat, Instant::now());
        self.latch.state().interrupted.push(interrupted);
    }

    /// Counts a request that was finished in the drain.
    pub(crate) fn finished(&self) {
        self.latch.state().finished += 1;
    }

    /// Waits until the server of `orders` has a connection.
    pub(crate) async fn occupied(&self, orders: &Arc<Orders>) {
        let is_occupied = |latch: &Latch| latch.state().registry.seats_of(orders).next().is_some();
        self.latch.until(&self.latch.joined, is_occupied).await;
    }

    /// Returns `true` if the two move the same latch.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.latch, &other.latch)
    }

    /// Returns the orders for the connections of one more server.
    pub(crate) fn orders(&self) -> Arc<Orders> {
        Arc::new(Orders::under(self.latch.phase.clone()))
    }
}

/// The drain gets back at most so much of the time for which the process was suspended beyond the
/// grace.
const MADE_UP: Duration = Duration::from_secs(1);

/// An aborted drain waits for so long until the tasks have dropped what they hold.
const ABORTING: Duration = Duration::from_millis(100);

/// Looks at a latch, and never moves it. Clones look at the same one.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Response, Server, Token};
///
/// let server = Server::new(|request| async move {
///     let token = Token::of(&request);
///     Ok(if token.is_stopping() { "the last one" } else { "okay" })
/// });
/// # drop(server);
/// ```
#[derive(Debug, Clone)]
pub struct Token {
    latch: Arc<Latch>,
    /// The call of the handler whose request the token was taken from.
    call: Option<Call>,
}

impl Token {
    /// Returns the token of the server that received `request`.
    ///
    /// For a request that came from no server, as in a test of a handler, returns a token that
    /// never stops. A clone of a request is such a request too, because http-types does not clone
    /// extensions, so ask the original.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Method, Request, Token, http_types};
    ///
    /// async fn handler(request: Request) -> http_types::Result<&'static str> {
    ///     Ok(if Token::of(&request).is_stopping() { "the last one" } else { "okay" })
    /// }
    ///
    /// # fn main() -> http_types::Result<()> {
    /// let request = Request::new(Method::Get, "http://localhost/");
    /// let text = futures_lite::future::block_on(handler(request))?;
    /// assert_eq!(text, "okay");
    /// # Ok(())
    /// # }
    /// ```
    pub fn of(request: &Request) -> Self {
        request.ext().get::<Self>().cloned().unwrap_or_else(|| Shutdown::new().token())
    }

    /// Returns `true` if the stop has begun.
    ///
    /// # Examples
    ///
    /// ```
    /// let shutdown = smol_graceful::Shutdown::new();
    /// let token = shutdown.token();
    /// assert!(!token.is_stopping());
    /// shutdown.stop();
    /// assert!(token.is_stopping());
    /// ```
    pub fn is_stopping(&self) -> bool {
        self.latch.phase() >= Phase::Draining
    }

    /// Waits until the stop begins; ready at once, every time, when it has (rule S2).
    ///
    /// A restart is a stop, too, so a stream can end properly. If the connection goes to the
    /// successor, the response does not announce a close (rule S9).
    ///
    /// # Cancel safety
    ///
    /// Can be dropped and awaited again without missing the stop.
    ///
    /// # Examples
    ///
    /// ```
    /// let shutdown = smol_graceful::Shutdown::new();
    /// let token = shutdown.token();
    /// shutdown.stop();
    /// futures_lite::future::block_on(async {
    ///     token.stopping().await;
    ///     token.stopping().await;
    /// });
    /// ```
    pub async fn stopping(&self) {
        self.latch.reached(Phase::Draining).await;
    }

    /// Waits until what is left is dropped; ready at once, every time, when that has begun.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped and awaited again without missing it.
    ///
    /// # Examples
    ///
    /// ```
    /// let shutdown = smol_graceful::Shutdown::new();
    /// shutdown.abort();
    /// futures_lite::future::block_on(shutdown.token().aborting());
    /// ```
    pub async fn aborting(&self) {
        self.latch.reached(Phase::Aborting).await;
    }

    /// Runs `future` until it is done or the stop begins, whichever is first; `None` if it was
    /// the stop, also if both were ready: work that never waits must not hold up the stop.
    ///
    /// # Cancel safety
    ///
    /// `future` is dropped where it stands when the stop begins: give it work that may be
    /// dropped, such as waiting for the next job.
    ///
    /// # Examples
    ///
    /// ```
    /// let shutdown = smol_graceful::Shutdown::new();
    /// let token = shutdown.token();
    /// futures_lite::future::block_on(async {
    ///     assert_eq!(token.until_stop(async { 7 }).await, Some(7));
    ///     shutdown.stop();
    ///     assert_eq!(token.until_stop(std::future::pending::<()>()).await, None);
    /// });
    /// ```
    pub async fn until_stop<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let stop = async {
            self.stopping().await;
            None
        };
        stop.or(async { Some(future.await) }).await
    }

    /// Waits for the next job, and returns it with a guard that was taken before the job. Returns
    /// `None` once the stop has begun.
    ///
    /// This is a queue worker: no job is taken that the drain would not wait for. Jobs that nobody
    /// has taken stay in the queue. If somebody was told that a job is accepted, as by a 202, the
    /// drain has to wait for the job from that moment on: take the guard there, and put it into the
    /// queue with the job (`examples/embed.rs`).
    ///
    /// `next` is polled only before the stop, and only under a guard. If a poll returns a job, the
    /// guard comes with it, even if the stop begins in the same moment. Otherwise the guard is
    /// dropped with the end of the poll, so a worker that waits is not in flight, and the report of
    /// a drain does not name it. If both the stop and a job are ready, the result is `None`, and
    /// the job stays where it is.
    ///
    /// # Cancel safety
    ///
    /// `next` is dropped when the stop begins, and when the future itself is dropped. It must be
    /// cancel safe: as long as it has not returned a job, it must not have taken one. `recv` of a
    /// channel and `next` of a stream are such futures. A future that reads a job in several parts
    /// is not.
    ///
    /// # Examples
    ///
    /// A whole worker:
    ///
    /// ```
    /// use smol::channel::Receiver;
    /// use smol_graceful::{Shutdown, Token};
    /// # use std::time::Duration;
    ///
    /// async fn work(token: Token, queue: Receiver<u32>) -> u32 {
    ///     let mut sum = 0;
    ///     while let Some((Ok(job), guard)) = token.accept(queue.recv()).await {
    ///         sum += guard.hold(async { job }).await; // … do the job …
    ///     }
    ///     sum
    /// }
    ///
    /// let shutdown = Shutdown::new();
    /// let (post, queue) = smol::channel::unbounded();
    /// for job in [1, 2, 3] {
    ///     post.try_send(job).unwrap();
    /// }
    /// drop(post); // the queue's end ends the worker, too
    /// assert_eq!(smol::block_on(work(shutdown.token(), queue)), 6);
    /// ```
    #[track_caller]
    pub fn accept<T>(
        &self,
        next: impl Future<Output = T>,
    ) -> impl Future<Output = Option<(T, Guard)>> {
        let place = Location::caller();
        async move {
            let (mut next, mut stopping) = (pin!(next), pin!(self.stopping()));
            poll_fn(|cx| {
                // The guard comes first: a stop in between finds it, and waits for the job.
                let Ok(guard) = self.guard_of(place) else { return Poll::Ready(None) };
                if stopping.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                next.as_mut().poll(cx).map(|job| Some((job, guard)))
            })
            .await
        }
    }

    /// Takes a guard, which holds the drain open as long as it lives.
    ///
    /// During the drain it still returns a guard, as long as something else holds the drain open,
    /// because a request in flight may leave work behind (rule S12). The report of a drain that was
    /// cut short names the line that called this.
    ///
    /// If the token comes from [`Token::of`], the guard also keeps that request's handler going.
    /// Without such a guard, the server drops the handler when the client has reset the connection
    /// (rule S22). A guard does not protect against the end of the grace, nor against a second
    /// signal.
    ///
    /// A worker that takes one job after the other is shorter with [`Token::accept`].
    ///
    /// # Errors
    ///
    /// [`Stopped`] once the drain is over or aborted: nothing would wait for the work, so it must
    /// not begin. Pass it on (`?`), as in the example. `let _guard = token.guard();` would ignore
    /// it.
    ///
    /// # Examples
    ///
    /// ```
    /// use smol_graceful::{Shutdown, Stopped, Token};
    ///
    /// fn work(token: &Token) -> Result<&'static str, Stopped> {
    ///     let _guard = token.guard()?;
    ///     Ok("done") // … the work …
    /// }
    ///
    /// let shutdown = Shutdown::new();
    /// assert_eq!(work(&shutdown.token()), Ok("done"));
    /// shutdown.stop();
    /// assert_eq!(work(&shutdown.token()), Err(Stopped)); // nothing was left to wait for
    /// ```
    ///
    /// Two writes that a client cannot separate by leaving:
    ///
    /// ```
    /// use smol_graceful::{Request, Token, http_types};
    /// # async fn write_one() {}
    /// # async fn write_other() {}
    ///
    /// async fn handler(request: Request) -> http_types::Result<&'static str> {
    ///     let _guard = Token::of(&request).guard()?;
    ///     write_one().await;
    ///     write_other().await;
    ///     Ok("both are written")
    /// }
    /// ```
    #[track_caller]
    pub fn guard(&self) -> Result<Guard, Stopped> {
        self.guard_of(Location::caller())
    }

    /// Takes a guard for the line `place`.
    fn guard_of(&self, place: &'static Location<'static>) -> Result<Guard, Stopped> {
        let holder = Holder::Guard { place, since: Instant::now() };
        self.latch.admit(holder, self.call.clone().map(Call::hold)).ok_or(Stopped)
    }
}

/// The error of [`Token::guard`]: the drain is over, so nothing would wait for this work.
///
/// Converts into an [`io::Error`] and, like every error, into an `http_types::Error`.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Shutdown, Stopped};
///
/// let shutdown = Shutdown::new();
/// shutdown.stop();
/// let error = shutdown.token().guard().unwrap_err();
/// assert_eq!(error, Stopped);
/// assert_eq!(error.to_string(), "the drain is over, so nothing would wait for this work");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the drain is over, so nothing would wait for this work")
    }
}

impl error::Error for Stopped {}

impl From<Stopped> for ServeError {
    fn from(stopped: Stopped) -> Self {
        io::Error::from(stopped).into()
    }
}

impl From<Stopped> for io::Error {
    fn from(stopped: Stopped) -> Self {
        Self::other(stopped)
    }
}

/// Keeps the drain open for as long as it lives.
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
#[derive(Debug)]
#[must_use = "the drain waits only as long as the guard lives"]
pub struct Guard {
    latch: Arc<Latch>,
    /// The place of the guard among the holders of the latch.
    id: usize,
    /// Keeps the handler going that has taken this guard.
    #[expect(dead_code, reason = "it is there to be dropped")]
    hold: Option<Hold>,
}

impl Guard {
    /// Runs `future` and holds the drain open until it is done.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the guard with it.
    ///
    /// # Examples
    ///
    /// ```
    /// let shutdown = smol_graceful::Shutdown::new();
    /// let guard = shutdown.token().guard().unwrap();
    /// assert_eq!(futures_lite::future::block_on(guard.hold(async { 7 })), 7);
    /// assert_eq!(shutdown.in_flight(), 0);
    /// ```
    pub async fn hold<T>(self, future: impl Future<Output = T>) -> T {
        future.await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.latch.state();
        let holder = state.registry.holders.remove(self.id);
        let is_last = state.registry.holders.is_empty();
        drop(state);
        if let Some(seat) = holder.seat() {
            seat.client_left(ClientLeft::Gone);
        }
        // Looked at after the registry: `advance` moves the phase under the same lock and announces
        // it, so one of the two sides sees both.
        if is_last && self.latch.phase() > Phase::Running {
            self.latch.moved.notify(usize::MAX);
        }
    }
}

/// The state that all handles, tokens and guards share. Every wait listens first and looks
/// afterwards, so no move is missed.
#[derive(Debug, Default)]
struct Latch {
    /// Moved with the state locked, and read without.
    phase: Arc<AtomicPhase>,
    state: Mutex<LatchState>,
    /// The phase has moved, or the last holder is gone in the drain.
    moved: Event,
    /// A connection has come.
    joined: Event,
    /// Keeps several drains from logging the same report.
    reports: LogLimit,
}

/// The holders of a latch, and what is known of its stop.
#[derive(Debug, Default)]
struct LatchState {
    times: Times,
    /// The holders that keep the drain open.
    registry: Registry,
    /// The signal that began the stop, and how long it had waited to be obeyed.
    signal: Option<(Signal, Duration)>,
    /// Requests finished in the drain.
    finished: u64,
    /// Connections that a successor has taken.
    handed_over: u64,
    /// Why the drain was aborted.
    aborted: Option<DrainEnding>,
    /// Everything that the abort may have cut, and requests that had arrived and were turned away.
    interrupted: Vec<Interrupted>,
}

impl Latch {
    fn state(&self) -> MutexGuard<'_, LatchState> {
        lock(&self.state)
    }

    fn phase(&self) -> Phase {
        self.phase.current()
    }

    /// Takes a holder in, unless the drain is over or aborted. The state's lock keeps the phase
    /// from moving meanwhile (rule S1).
    fn admit(self: &Arc<Self>, holder: Holder, hold: Option<Hold>) -> Option<Guard> {
        let mut state = self.state();
        let is_open = match self.phase() {
            Phase::Running => true,
            // A server that was stopped before it began still has its listeners' queues to serve
            // (rule S4), and the program that runs it waits for that server's outcome.
            Phase::Draining => {
                !state.registry.holders.is_empty() || matches!(holder, Holder::Server)
            }
            Phase::Aborting => false,
        };
        if !is_open {
            return None;
        }
        let is_connection = holder.seat().is_some();
        let id = state.registry.holders.insert(holder);
        drop(state);
        if is_connection {
            self.joined.notify(usize::MAX);
        }
        Some(Guard { latch: self.clone(), id, hold })
    }

    /// Moves the phase forward to `phase`, after `note` has noted why, unless it is there already.
    fn advance(&self, phase: Phase, note: impl FnOnce(&mut LatchState)) {
        let mut state = self.state();
        if self.phase() < phase {
            note(&mut state);
            self.phase.advance(phase);
            drop(state);
            self.moved.notify(usize::MAX);
        }
    }

    async fn reached(&self, phase: Phase) {
        self.until(&self.moved, |latch| latch.phase() >= phase).await;
    }

    /// Waits until the drain is over: a predicate, looked at again after every change.
    async fn drained(&self) {
        let is_over = |latch: &Self| {
            latch.phase() > Phase::Running && latch.state().registry.holders.is_empty()
        };
        self.until(&self.moved, is_over).await;
    }

    async fn until(&self, event: &Event, is_ready: impl Fn(&Self) -> bool) {
        while !is_ready(self) {
            let listener = event.listen();
            if is_ready(self) {
                return;
            }
            listener.await;
        }
    }

    /// Returns how the drain stands. `moves` are those that the last report has seen.
    fn draining(&self, left: Duration, moves: &mut Option<u64>) -> Draining {
        let state = self.state();
        let now = state.registry.moves().wrapping_add(state.finished);
        let mut holders = state.registry.cuts(Instant::now());
        drop(state);
        let open = holders.len();
        holders.retain(Interrupted::is_cut);
        Draining {
            open,
            busy: holders.len(),
            left,
            oldest: holders.first().map(|holder| holder.cut.clone()),
            is_moving: moves.replace(now) != Some(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded::seeded;
    use futures_lite::future::{block_on, poll_once, yield_now};
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    fn is_ready<T>(future: impl Future<Output = T>) -> bool {
        block_on(poll_once(future)).is_some()
    }

    /// Operators rely on them.
    #[test]
    fn defaults_are_the_agreed_ones() {
        let Times { grace, lame_duck, linger } = Shutdown::new().times();
        assert_eq!(grace, Duration::from_secs(30));
        assert_eq!(lame_duck, Duration::ZERO);
        assert_eq!(linger, Duration::from_millis(100));
    }

    #[test]
    fn every_clone_has_the_same_times() {
        let shutdown = Shutdown::new();
        let clone = shutdown.clone();
        let _ = shutdown.grace(Duration::from_secs(1)).lame_duck(Duration::from_secs(2));
        let _ = clone.clone().linger(Duration::from_secs(3));
        let Times { grace, lame_duck, linger } = clone.times();
        assert_eq!([grace, lame_duck, linger].map(|time| time.as_secs()), [1, 2, 3]);
    }

    /// A drain beside a server must not cut the server's lame duck.
    #[test]
    fn the_grace_of_a_drain_begins_after_the_lame_duck() {
        let shutdown = Shutdown::new().lame_duck(Duration::MAX).grace(Duration::ZERO);
        let guard = shutdown.token().guard().unwrap();
        let drained = async {
            let _ = shutdown.stop_and_drain().await;
            true
        };
        // No event tells that a deadline does not come. A grace that begins too early is over at
        // once, so it needs no more time than this.
        let later = async {
            Timer::after(Duration::from_millis(20)).await;
            false
        };
        assert!(!block_on(drained.or(later)), "the lame duck was cut");
        drop(guard);
    }

    /// Rule S2.
    #[test]
    fn the_phase_only_goes_forward() {
        let shutdown = Shutdown::new();
        assert_eq!(shutdown.phase(), Phase::Running);
        shutdown.stop();
        shutdown.stop();
        assert_eq!(shutdown.phase(), Phase::Draining);
        shutdown.abort();
        shutdown.stop();
        shutdown.abort();
        assert_eq!(shutdown.phase(), Phase::Aborting);
    }

    /// Rule S2: latched, not an edge.
    #[test]
    fn a_tokens_futures_resolve_every_time() {
        let shutdown = Shutdown::new();
        let token = shutdown.token();
        assert!(!is_ready(token.stopping()));
        shutdown.stop();
        assert!(is_ready(token.stopping()) && is_ready(token.stopping()));
        assert!(!is_ready(token.aborting()));
        shutdown.abort();
        assert!(is_ready(token.aborting()) && is_ready(token.aborting()));
    }

    #[test]
    fn a_waiting_token_is_woken() {
        let shutdown = Shutdown::new();
        let token = shutdown.token();
        let mut stopping = pin!(token.stopping());
        assert!(!is_ready(stopping.as_mut()));
        shutdown.stop();
        assert!(is_ready(stopping.as_mut()));
    }

    /// Rule S1: not before the stop, not while anyone is left, and then for good.
    #[test]
    fn drained_is_a_predicate() {
        let shutdown = Shutdown::new();
        let token = shutdown.token();
        // The count falls to zero before the stop: that means nothing.
        drop(token.guard());
        let drained = shutdown.latch.clone();
        let mut drained = pin!(drained.drained());
        assert!(!is_ready(drained.as_mut()));

        let first = token.guard().unwrap();
        shutdown.stop();
        assert!(!is_ready(drained.as_mut()));
        // Held open by the first, the drain admits a second (rule S12).
        let second = token.guard().unwrap();
        drop(first);
        assert!(!is_ready(drained.as_mut()));
        drop(second);
        assert!(is_ready(drained.as_mut()));
        assert!(token.guard().is_err());
    }

    #[test]
    fn nobody_joins_an_aborted_drain() {
        let shutdown = Shutdown::new();
        let guard = shutdown.token().guard().unwrap();
        shutdown.abort();
        assert!(shutdown.token().guard().is_err());
        drop(guard);
    }

    #[test]
    fn a_drain_with_nobody_left_ends_at_once() {
        let shutdown = Shutdown::new();
        let outcome =
            block_on(poll_once(pin!(shutdown.stop_and_drain()))).expect("no wait (rule S19)");
        assert_eq!(outcome.ending, DrainEnding::Drained);
        // And again, for whoever asks later.
        assert!(block_on(shutdown.stop_and_drain()).is_drained());
    }

    /// Rule S13.
    #[test]
    fn a_drain_that_times_out_names_who_held_it() {
        let shutdown = Shutdown::new().grace(Duration::from_millis(10));
        let guard = shutdown.token().guard().unwrap();
        let line = line!() - 1;
        let outcome = block_on(shutdown.stop_and_drain());
        assert_eq!(outcome.ending, DrainEnding::TimedOut);
        let [cut] = &outcome.cut[..] else { panic!("{outcome}") };
        assert!(
            matches!(cut.kind, crate::WorkKind::Guard(place) if place.line() == line),
            "{outcome}"
        );
        drop(guard);
        // The end stays what it was.
        assert_eq!(block_on(shutdown.stop_and_drain()).ending, DrainEnding::TimedOut);
    }

    /// Rule S14.
    #[test]
    fn an_abort_ends_the_drain() {
        let shutdown = Shutdown::new();
        let guard = shutdown.token().guard().unwrap();
        let handle = shutdown.clone();
        let waiting = thread::spawn(move || block_on(handle.stop_and_drain()));
        block_on(shutdown.token().stopping());
        shutdown.abort();
        assert_eq!(waiting.join().unwrap().ending, DrainEnding::Forced);
        drop(guard);
    }

    #[test]
    fn an_abort_that_cuts_nothing_is_a_drain() {
        let shutdown = Shutdown::new();
        shutdown.abort();
        assert_eq!(block_on(shutdown.stop_and_drain()).ending, DrainEnding::Drained);
    }

    #[test]
    fn the_first_signal_is_the_one_that_began_it() {
        let shutdown = Shutdown::new();
        shutdown.stop_by(Signal::Hup);
        shutdown.stop_by(Signal::Term);
        assert_eq!(block_on(shutdown.stop_and_drain()).signal, Some(Signal::Hup));
    }

    #[test]
    fn a_request_from_nowhere_never_stops() {
        let url = http_types::Url::parse("http://test/").unwrap();
        let token = Token::of(&Request::new(http_types::Method::Get, url));
        assert!(!token.is_stopping());
    }

    #[test]
    fn public_types_are_what_threads_need() {
        fn check<T: Send + Sync + Unpin + 'static>() {}
        check::<Shutdown>();
        check::<Token>();
        check::<Guard>();
        check::<Outcome>();
    }

    /// Rule S12: a worker that waits holds nothing, and neither a stop nor an end comes between a
    /// job and its guard.
    #[test]
    fn a_job_comes_with_its_guard() {
        let shutdown = Shutdown::new().grace(Duration::ZERO);
        let token = shutdown.token();
        let (post, jobs) = smol::channel::unbounded();
        {
            let mut waiting = pin!(token.accept(jobs.recv()));
            assert!(block_on(poll_once(waiting.as_mut())).is_none());
            assert_eq!(shutdown.in_flight(), 0, "an idle worker is in flight");
            post.try_send(1).unwrap();
            let (job, guard) = block_on(waiting).unwrap();
            assert_eq!((job, shutdown.in_flight()), (Ok(1), 1));
            drop(guard);
        }
        // The stop begins while the job is taken.
        let line = line!() + 1;
        let (_, guard) = block_on(token.accept(async { shutdown.stop() })).expect("a taken job");
        let mut drain = pin!(shutdown.stop_and_drain());
        assert!(!is_ready(shutdown.latch.drained()));
        let outcome = block_on(drain.as_mut());
        let [cut] = &outcome.cut[..] else { panic!("{outcome}") };
        assert!(
            matches!(cut.kind, crate::WorkKind::Guard(place) if place.line() == line),
            "{outcome}"
        );
        drop(guard);
    }

    #[test]
    fn no_job_is_taken_after_the_stop() {
        let shutdown = Shutdown::new();
        let token = shutdown.token();
        let (post, jobs) = smol::channel::unbounded();
        let mut waiting = pin!(token.accept(jobs.recv()));
        assert!(block_on(poll_once(waiting.as_mut())).is_none());
        // Something else holds the drain open, so there would be a guard.
        let guard = token.guard();
        shutdown.stop();
        post.try_send("late").unwrap();
        assert!(block_on(waiting).is_none());
        assert!(block_on(token.accept(async { panic!("polled after the stop") })).is_none());
        assert_eq!(jobs.len(), 1);
        drop(guard);
    }

    /// Workers take jobs while one stops, at any moment: every job that was taken is done when the
    /// drain ends, and the others are in the queue.
    #[test]
    fn jobs_and_stop_race() {
        let rounds = if cfg!(miri) { 5 } else { 300 };
        let mut random = seeded();
        for _ in 0..rounds {
            let shutdown = Shutdown::new();
            let (post, queue) = smol::channel::unbounded();
            let taken = Arc::new(AtomicUsize::new(0));
            let done = Arc::new(AtomicUsize::new(0));
            let workers: Vec<_> = (0..3)
                .map(|_| {
                    let (token, queue, mut random) =
                        (shutdown.token(), queue.clone(), random.fork());
                    let (taken, done) = (taken.clone(), done.clone());
                    let next = async move || {
                        queue.recv().await.unwrap();
                        taken.fetch_add(1, Ordering::SeqCst);
                    };
                    thread::spawn(move || {
                        block_on(async {
                            while let Some(((), guard)) = token.accept(next()).await {
                                let job = async {
                                    for _ in 0..random.usize(..5) {
                                        yield_now().await;
                                    }
                                    done.fetch_add(1, Ordering::SeqCst);
                                };
                                guard.hold(job).await;
                            }
                        })
                    })
                })
                .collect();
            let mut posted = 0;
            for _ in 0..random.usize(..100) {
                for _ in 0..random.usize(..3) {
                    post.try_send(()).unwrap();
                    posted += 1;
                }
                std::hint::spin_loop();
            }
            let outcome = block_on(shutdown.stop_and_drain());
            let (done, taken) = (done.load(Ordering::SeqCst), taken.load(Ordering::SeqCst));
            assert!(outcome.is_drained());
            assert_eq!(done, taken, "a job was lost");
            assert_eq!(taken + queue.len(), posted);
            for worker in workers {
                worker.join().unwrap();
            }
        }
    }

    /// Threads take and drop guards while one stops: nobody is admitted after the end, the end is
    /// not missed, and it does not come early.
    #[test]
    fn guards_and_stop_race() {
        let rounds = if cfg!(miri) { 5 } else { 300 };
        let mut random = seeded();
        for _ in 0..rounds {
            let shutdown = Shutdown::new();
            let held = Arc::new(AtomicUsize::new(0));
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    let (token, held, mut random) = (shutdown.token(), held.clone(), random.fork());
                    thread::spawn(move || {
                        while let Ok(guard) = token.guard() {
                            held.fetch_add(1, Ordering::SeqCst);
                            let copies: Vec<_> =
                                (0..random.usize(..3)).filter_map(|_| token.guard().ok()).collect();
                            block_on(async {
                                for _ in 0..random.usize(..5) {
                                    yield_now().await;
                                }
                            });
                            drop(copies);
                            held.fetch_sub(1, Ordering::SeqCst);
                            drop(guard);
                            if token.is_stopping() && random.bool() {
                                break;
                            }
                        }
                    })
                })
                .collect();
            for _ in 0..random.usize(..200) {
                std::hint::spin_loop();
            }
            let outcome = block_on(shutdown.stop_and_drain());
            assert!(outcome.is_drained());
            assert_eq!(held.load(Ordering::SeqCst), 0, "the end came early");
            assert!(shutdown.token().guard().is_err(), "admitted after the end");
            for worker in workers {
                worker.join().unwrap();
            }
        }
    }
}
