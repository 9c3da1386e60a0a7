//! [`Token`], [`Guard`], [`Stopped`]: a look at the latch, and work for which the drain waits.
//!
//! Invariant: neither moves the latch, and the drains of this latch and of those above wait for
//! each guard (rules S1, S12). Of HTTP, this file knows only that a request carries the token of
//! its server.

use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;
use std::{error, fmt, io};

use futures_lite::FutureExt;
use http_types::Request;

use crate::error::ServeError;
use crate::stop::latch::{Entry, Latch};
use crate::stop::phase::Phase;
use crate::stop::registry::Holder;
use crate::stop::seat::{Call, Hold, Seat};

/// The facts that the server attaches to a request, in a single value, because http-types makes a
/// box of each one.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) latch: Arc<Latch>,
    pub(crate) call: Call,
    /// The target as the client sent it.
    pub(crate) target: Box<str>,
}

impl Attached {
    /// Returns the seat of the request's connection.
    pub(crate) fn seat(&self) -> &Arc<Seat> {
        self.call.seat()
    }
}

/// A handle that shows whether the stop or the abort has begun, and takes guards for work.
///
/// A token shows the phase of a latch and never moves it. Clones of a token show the same latch.
///
/// # Examples
///
/// ```
/// use smol_graceful::{Server, Token};
///
/// let server = Server::new(|request| async move {
///     let token = Token::of(&request);
///     Ok(if token.is_stopping() { "the last one" } else { "okay" })
/// });
/// # drop(server);
/// ```
#[derive(Debug, Clone)]
pub struct Token {
    pub(crate) latch: Arc<Latch>,
    /// The call of the handler, if the token comes from a request.
    pub(crate) call: Option<Call>,
}

impl Token {
    /// Returns the token of the server that received `request`.
    ///
    /// If the request does not come from a server, as in a test of a handler, returns a token that
    /// never stops. Take the token from the original request, because http-types does not clone
    /// extensions, so a clone of a request has no token.
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
        let attached = request.ext().get::<Attached>();
        // With a guard of this token, the handler goes on although its client has left.
        let of_call = |a: &Attached| Self { latch: a.latch.clone(), call: Some(a.call.clone()) };
        let token = attached.map(of_call).or_else(|| request.ext().get::<Self>().cloned());
        token.unwrap_or_else(|| Self { latch: Arc::default(), call: None })
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

    /// Waits until the stop begins. Returns at once, every time, if it has begun (rule S2).
    ///
    /// A restart is a stop, too, so that a stream can end properly. If the connection goes to the
    /// successor, the response does not announce a close (rule S9).
    ///
    /// # Cancel safety
    ///
    /// A dropped future can be replaced by a new call, which does not miss the stop.
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

    /// Waits until the abort begins, which drops the remaining work. Returns at once, every time,
    /// if it has begun.
    ///
    /// # Cancel safety
    ///
    /// A dropped future can be replaced by a new call, which does not miss the abort.
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

    /// Runs `future` until it is done or the stop begins. Returns `None` if the stop has begun,
    /// even if `future` is ready, too, because work that never waits must not hold up the stop.
    ///
    /// # Cancel safety
    ///
    /// At the stop, `future` is dropped at its current `await`. So it should only do work that may
    /// be dropped, such as waiting for the next job.
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
    /// This is for the worker of a queue. The drain waits for every job that the worker takes, and
    /// the other jobs stay in the queue. If a client was told that its job is accepted, for example
    /// by a 202, the drain has to wait for the job from that moment on. Then take the guard in the
    /// handler, and put it into the queue with the job (`examples/embed.rs`).
    ///
    /// `next` is polled only before the stop, and only under a guard. If a poll returns a job, the
    /// guard comes with it, even if the stop begins in the same moment. Otherwise the guard is
    /// dropped at the end of the poll, so a waiting worker is not in flight, and the report of a
    /// drain does not name it. If both the stop and a job are ready, the result is `None`, and the
    /// job stays in its queue.
    ///
    /// # Cancel safety
    ///
    /// `next` is dropped when the stop begins, and when the future itself is dropped. It must be
    /// cancel safe, which means that it takes a job only when it returns the job. `recv` of a
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
                // The guard comes first, so a stop in between waits for the job.
                let Ok(guard) = self.guard_of(place) else { return Poll::Ready(None) };
                if stopping.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                next.as_mut().poll(cx).map(|job| Some((job, guard)))
            })
            .await
        }
    }

    /// Returns a guard, which holds the drain open as long as it lives.
    ///
    /// During the drain this still returns a guard while another holder keeps the drain open,
    /// because a request in flight may leave work behind (rule S12). The outcome of a drain that
    /// was cut short names the line of this call.
    ///
    /// If the token comes from [`Token::of`], that request's handler goes on even if the client
    /// resets the connection. Without such a guard, the server then drops the handler (rule S22). A
    /// guard does not protect against the end of the grace, nor against a second signal.
    ///
    /// For a worker that takes one job after the other, [`Token::accept`] is shorter.
    ///
    /// # Errors
    ///
    /// Returns [`Stopped`] if the drain is over or aborted. Nothing would wait for the work, so it
    /// must not begin. Pass the error on (`?`), as in the example. `let _guard = token.guard();`
    /// would ignore it.
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
    /// A guard keeps two writes together, even if the client leaves between them:
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

    /// Returns a guard for the line `place`.
    fn guard_of(&self, place: &'static Location<'static>) -> Result<Guard, Stopped> {
        let since = Instant::now();
        let entry = self.latch.admit(Holder::Guard { place, since }).ok_or(Stopped)?;
        Ok(Guard { entry, place, since, hold: self.call.clone().map(Call::hold) })
    }
}

/// The error of [`Token::guard`]. The drain is over, so nothing would wait for the work.
///
/// It converts into an [`io::Error`] and, like every error, into an `http_types::Error`.
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

/// Keeps the drain open as long as the guard or a clone of it lives.
///
/// # Examples
///
/// ```
/// let shutdown = smol_graceful::Shutdown::new();
/// let guard = shutdown.token().guard().unwrap();
/// assert_eq!(shutdown.in_flight(), 1);
/// let for_the_other_half = guard.clone();
/// drop(guard);
/// assert_eq!(shutdown.in_flight(), 1);
/// drop(for_the_other_half);
/// assert_eq!(shutdown.in_flight(), 0);
/// ```
#[derive(Debug)]
#[must_use = "the drain waits only as long as the guard lives"]
pub struct Guard {
    entry: Entry,
    /// The line that has taken the guard.
    place: &'static Location<'static>,
    since: Instant,
    /// Lets the handler that has taken this guard go on without its client.
    hold: Option<Hold>,
}

impl Clone for Guard {
    /// Returns another guard, even if the drain takes no other holder any more. A report names both
    /// guards by the line and the age of the first.
    fn clone(&self) -> Self {
        let Self { entry, place, since, hold } = self;
        let holder = Holder::Guard { place, since: *since };
        let entry = entry.latch().admit_beside(holder);
        Self { entry, place, since: *since, hold: hold.clone() }
    }
}

impl Guard {
    /// Runs `future`, and holds the drain open until it is done. Returns the value of `future`.
    ///
    /// # Cancel safety
    ///
    /// The drop of this future drops the guard, too.
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
