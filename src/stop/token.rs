//! [`Token`], [`Guard`], [`Stopped`]: a look at the latch, and work that the drain waits for.
//!
//! Invariant: neither moves the latch, and a guard that was given is waited for, here and in the
//! latches above (rules S1, S12). Knows of HTTP only that a request brings the token of its server.

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

/// The facts that the server attaches to a request. In one piece, because http-types makes a box of
/// each.
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
    pub(crate) latch: Arc<Latch>,
    /// The call of the handler whose request the token was taken from.
    pub(crate) call: Option<Call>,
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
        let attached = request.ext().get::<Attached>();
        // Its guards keep the handler going although its client has left.
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
        let since = Instant::now();
        let entry = self.latch.admit(Holder::Guard { place, since }).ok_or(Stopped)?;
        Ok(Guard { entry, place, since, hold: self.call.clone().map(Call::hold) })
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

/// Keeps the drain open for as long as it lives, and as long as any clone of it does.
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
    /// The line that has taken it.
    place: &'static Location<'static>,
    since: Instant,
    /// Keeps the handler going that has taken this guard.
    hold: Option<Hold>,
}

impl Clone for Guard {
    /// Takes a further guard, also when the drain takes in nothing else any more. A report names
    /// each of the two by the line that took the first, and by its age.
    fn clone(&self) -> Self {
        let Self { entry, place, since, hold } = self;
        let holder = Holder::Guard { place, since: *since };
        let entry = entry.latch().admit_beside(holder);
        Self { entry, place, since: *since, hold: hold.clone() }
    }
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
