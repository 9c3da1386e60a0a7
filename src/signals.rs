//! The signals that stop a server, as a stream, and what each of them means.
//!
//! Invariant: from the moment the stream is made, none of its signals kills the process; this does
//! not end when the stream is dropped, as a handler cannot be taken back safely. The time of a
//! signal is the time when the process has heard it, even while the thread that obeys it is
//! blocked. The library registers no signal unless a program asks for it. Knows
//! nothing of servers, only of the latch that signals move.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use async_signal::{Signal, Signals};
use atomic_waker::AtomicWaker;
use futures_lite::{Stream, StreamExt, future};
use nix::libc;
use nix::sys::signal::SigSet;

use crate::outcome::name;
use crate::shutdown::Shutdown;
use crate::threads;

/// The signals that stop a server unless it is told otherwise: HUP, INT, TERM and QUIT.
///
/// # Examples
///
/// For a program that reads its configuration again on HUP:
///
/// ```
/// use smol_graceful::{Process, STOP_SIGNALS, Signal};
///
/// let signals = STOP_SIGNALS.into_iter().filter(|signal| *signal != Signal::Hup);
/// assert!(signals.clone().eq([Signal::Int, Signal::Term, Signal::Quit]));
/// let process = Process::default().signals(signals);
/// # drop(process);
/// ```
pub const STOP_SIGNALS: [Signal; 4] = [Signal::Hup, Signal::Int, Signal::Term, Signal::Quit];

/// Returns HUP, INT, TERM and QUIT as they arrive, for programs that have their own control loop.
/// Usually [`Shutdown::obey`] gets them. [`run`](crate::run) does all of this by itself.
///
/// Never ends. Several signals that arrive in one moment may show as fewer, but never as none.
///
/// If the process was started with HUP, INT or QUIT ignored (`nohup` does that, and a script does
/// it to its background jobs), the signal stays ignored, and the log says so. If the process was
/// started with the signals blocked, they are unblocked in the calling thread and in the threads
/// that it starts from now on, so call this in a thread that does not end, before you start others.
///
/// # Errors
///
/// Returns what the operating system says if a signal cannot be handled or a thread cannot be
/// started.
///
/// # Examples
///
/// ```no_run
/// use futures_lite::{StreamExt, future};
/// use smol_graceful::signals;
///
/// # fn main() -> std::io::Result<()> {
/// let mut signals = signals()?;
/// let signal = future::block_on(signals.next());
/// println!("told to stop by {signal:?}");
/// # Ok(())
/// # }
/// ```
pub fn signals() -> io::Result<impl Stream<Item = Signal> + Send + Unpin + use<>> {
    let signals = stream(&STOP_SIGNALS, None)?;
    Ok(signals.map(|heard| {
        HEARD_LAST.set(Some(heard));
        heard.signal
    }))
}

thread_local! {
    /// The signal that [`signals`] has yielded last on this thread: the public stream has no place
    /// for the time, which [`Shutdown::obey`] needs.
    static HEARD_LAST: Cell<Option<Heard>> = const { Cell::new(None) };
}

impl Shutdown {
    /// Stops at the first of `signals`, and aborts at the second (rule S14), as [`run`](crate::run)
    /// does. Never returns: race it against what it is to stop.
    ///
    /// Further signals within 100 ms of the first one belong to the same stop, whichever they are,
    /// because wrappers and terminals send two. The first signal after a stop by the program itself
    /// is only noted, and the 100 ms begin with it.
    ///
    /// A handler that blocks the thread which polls this keeps every signal waiting, the second one
    /// too. The log then says how long the stop has waited, and [`Outcome::took`] counts that time.
    /// The logger must not block either: see [`LogWriter`](crate::LogWriter).
    ///
    /// [`Outcome::took`]: crate::Outcome::took
    ///
    /// # Cancel safety
    ///
    /// Signals that come after it was dropped are not obeyed, and do not kill the process either.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use futures_lite::{FutureExt, future};
    /// use smol_graceful::{Shutdown, signals};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let shutdown = Shutdown::new();
    /// let signals = signals()?;
    /// let work = async {
    ///     shutdown.token().stopping().await;
    ///     shutdown.drain().await
    /// };
    /// println!("{}", future::block_on(work.or(shutdown.obey(signals))));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn obey<T>(&self, mut signals: impl Stream<Item = Signal> + Unpin) -> T {
        let mut stop_signals = StopSignals::new(REPEAT_WINDOW);
        loop {
            let next = future::poll_fn(|cx| {
                HEARD_LAST.take();
                signals.poll_next(cx).map(|signal| signal.map(Heard::from_stream))
            });
            let Some(heard) = next.await else { return future::pending().await };
            match stop_signals.count(heard) {
                StopSignal::First => stop(heard, self),
                StopSignal::Repeated => {}
                StopSignal::Second => {
                    log_second(heard);
                    self.abort();
                }
            }
        }
    }
}

/// The default of [`Process::repeat_window`](crate::Process::repeat_window), and `obey`'s window.
pub(crate) const REPEAT_WINDOW: Duration = Duration::from_millis(100);

/// How long a signal may wait before the log says so.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// A signal, and when the process has heard it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    pub(crate) signal: Signal,
    at: Instant,
}

impl Heard {
    /// Returns `signal`, which a stream has yielded just now, with its time.
    fn from_stream(signal: Signal) -> Self {
        // A stream that is not made of `signals` has no earlier time to tell.
        let heard = HEARD_LAST.take().filter(|heard| heard.signal == signal);
        heard.unwrap_or_else(|| Self { signal, at: Instant::now() })
    }

    /// Returns how long the signal has waited to be obeyed.
    fn waited(self) -> Duration {
        self.at.elapsed()
    }

    fn log_wait(self) {
        let waited = self.waited();
        if waited >= LONG_WAIT {
            let (name, waited) = (name(self.signal), waited.as_secs_f64());
            log::warn!(
                "{name} waited {waited:.1} s, because a handler or the logger blocked the thread"
            );
        }
    }
}

/// Counts stop signals, and tells a repetition of the first one from the second one (rule S14).
#[derive(Debug)]
pub(crate) struct StopSignals {
    window: Duration,
    first_at: Option<Instant>,
    has_aborted: bool,
}

/// The meaning of a stop signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopSignal {
    /// The signal begins the stop.
    First,
    /// The signal belongs to a stop or to an abort that has begun.
    Repeated,
    /// The signal aborts.
    Second,
}

impl StopSignals {
    /// Makes a count at zero. Signals within `window` of the first one are the same stop.
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, first_at: None, has_aborted: false }
    }

    pub(crate) fn count(&mut self, heard: Heard) -> StopSignal {
        let Some(first_at) = self.first_at else {
            self.first_at = Some(heard.at);
            return StopSignal::First;
        };
        let since = heard.at.saturating_duration_since(first_at);
        if self.has_aborted {
            return StopSignal::Repeated;
        }
        if since < self.window {
            let (name, since) = (name(heard.signal), since.as_millis());
            log::debug!("{name} {since} ms after the first stop signal: the same stop");
            return StopSignal::Repeated;
        }
        self.has_aborted = true;
        StopSignal::Second
    }
}

/// Returns the signals of `stop` and `restart` as they arrive, without those of `stop` that the
/// process was started to ignore.
///
/// Registers the signals before it unblocks them, because a pending signal would kill the process
/// otherwise.
pub(crate) fn stream(
    stop: &[Signal],
    restart: Option<Signal>,
) -> io::Result<impl Stream<Item = Heard> + Send + Unpin + use<>> {
    threads::check()?;
    let (ignored, mut handled): (Vec<_>, Vec<_>) =
        stop.iter().partition(|signal| MAY_BE_IGNORED.contains(signal) && is_ignored(**signal));
    log_ignored(ignored);
    handled.extend(restart);
    let stream = Hearing(Ear::new(Signals::new(&handled)?));
    unblock(&handled)?;
    stream.0.hear();
    Ok(stream)
}

/// Lets a write beyond the limit of a file's size (`ulimit -f`) fail. Otherwise the kernel would
/// kill the process for a line of its log.
///
/// A handler, not SIG_IGN, because the programs that this process starts would inherit that.
pub(crate) fn survive_full_files() -> io::Result<()> {
    if !is_ignored(Signal::Xfsz) {
        // The handler stays when this is dropped, and has nothing to do then.
        drop(Signals::new([Signal::Xfsz])?);
    }
    Ok(())
}

/// The signals that a launcher may have ignored on purpose: nohup ignores HUP, and a script INT and
/// QUIT in its background jobs. TERM and USR2 are sent only by somebody who means this process.
const MAY_BE_IGNORED: [Signal; 3] = [Signal::Hup, Signal::Int, Signal::Quit];

fn log_ignored(mut signals: Vec<Signal>) {
    signals.dedup();
    let names: Vec<_> = signals.into_iter().map(name).collect();
    if let Some((last, others)) = names.split_last() {
        let list =
            if others.is_empty() { last.clone() } else { others.join(", ") + " and " + last };
        let (are, do_not) =
            if others.is_empty() { ("is", "it does not") } else { ("are", "they do not") };
        log::info!(
            "{list} {are} ignored, because the process was started so, as nohup and scripts do; \
             {do_not} stop the server"
        );
    }
}

/// Returns `true` if the process ignores `signal`.
#[allow(unsafe_code, reason = "no crate reads a signal's disposition without setting it")]
fn is_ignored(signal: Signal) -> bool {
    let mut disposition = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call changes nothing, and `disposition` is valid for writes.
    let read = unsafe { libc::sigaction(signal as i32, ptr::null(), disposition.as_mut_ptr()) };
    // SAFETY: all zeroes is a valid value of this C struct, whether the call has written or not.
    read == 0 && unsafe { disposition.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Lets the kernel deliver `signals` to this thread, and to the threads that it starts from now on.
fn unblock(signals: &[Signal]) -> io::Result<()> {
    let numbers = signals.iter().map(|signal| *signal as i32);
    let set: SigSet = numbers.filter_map(|number| number.try_into().ok()).collect();
    Ok(set.thread_unblock()?)
}

/// The stream of what an [`Ear`] has heard.
struct Hearing(Arc<Ear>);

impl Stream for Hearing {
    type Item = Heard;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        self.0.reader.register(cx.waker());
        self.0.hear();
        match self.0.state().heard.pop_front() {
            Some(heard) => Poll::Ready(Some(heard)),
            None => Poll::Pending,
        }
    }
}

/// Takes signals in as soon as they arrive, and notes the time of each.
///
/// async-io's thread wakes the ear, which takes the signals in there and then, even while the
/// thread that polls the stream is blocked. The ear always waits with the same waker: if async-io
/// got another one in each poll, it would wake the one before, and under `block_on` of tokio's
/// current-thread runtime, which has a new one each time, each poll would bring about the next.
struct Ear {
    state: Mutex<State>,
    /// The task that waits for the stream.
    reader: AtomicWaker,
    waker: Waker,
}

struct State {
    signals: Signals,
    heard: VecDeque<Heard>,
}

impl Ear {
    /// How many signals may wait, apart from one of each kind: a storm of them must not fill
    /// memory.
    const MANY: usize = 64;

    fn new(signals: Signals) -> Arc<Self> {
        Arc::new_cyclic(|ear| Self {
            state: Mutex::new(State { signals, heard: VecDeque::new() }),
            reader: AtomicWaker::new(),
            waker: Waker::from(Arc::new(EarWaker(ear.clone()))),
        })
    }

    /// Takes in what has arrived, and asks to be woken when more arrives.
    fn hear(&self) {
        self.take_in(&mut self.state());
    }

    /// Takes in what has arrived while a thread that hears already may have the lock, because
    /// async-io wakes this from within the poll of another waker. That thread takes everything in.
    fn overhear(&self) {
        match self.state.try_lock() {
            Ok(mut state) => self.take_in(&mut state),
            Err(TryLockError::Poisoned(state)) => self.take_in(&mut state.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn take_in(&self, state: &mut State) {
        let State { signals, heard } = state;
        let cx = &mut Context::from_waker(&self.waker);
        // Reading fails only if the pipe is gone, and the pipe lives as long as `signals`.
        while let Poll::Ready(Some(Ok(signal))) = signals.poll_next(cx) {
            let is_known = || heard.iter().any(|heard| heard.signal == signal);
            if heard.len() < Self::MANY || !is_known() {
                heard.push_back(Heard { signal, at: Instant::now() });
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Weak, because async-io keeps the waker as long as the pipe lives, and the ear keeps the pipe.
struct EarWaker(Weak<Ear>);

impl Wake for EarWaker {
    fn wake(self: Arc<Self>) {
        if let Some(ear) = self.0.upgrade() {
            ear.overhear();
            ear.reader.wake();
        }
    }
}

/// Stops because of a signal, and says so.
pub(crate) fn stop(heard: Heard, shutdown: &Shutdown) {
    let (signal_name, open) = (name(heard.signal), shutdown.in_flight());
    if shutdown.token().is_stopping() {
        // A successor has taken over, or the program has stopped the server.
        log::info!("{signal_name}: stopping already; in flight: {open}");
    } else {
        log::info!("stopping because of {signal_name}; in flight: {open}");
        heard.log_wait();
        shutdown.stop_heard(heard.signal, heard.waited());
    }
}

pub(crate) fn log_second(heard: Heard) {
    heard.log_wait();
    log::warn!(
        "ending at once because of a second signal, {}; if a wrapper sends two signals for one stop, \
         lengthen the repeat window",
        name(heard.signal)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phase::Phase;
    use futures_lite::FutureExt;

    /// Rule S14: the window begins with the first signal, whichever the others are.
    #[test]
    fn the_window_tells_a_repetition_from_a_second_signal() {
        use StopSignal::{First, Repeated, Second};

        let start = Instant::now();
        let window = Duration::from_millis(100);
        for (window, millis, expected) in [
            (window, &[0][..], &[First][..]),
            (window, &[5000], &[First]),
            (window, &[0, 0], &[First, Repeated]),
            (window, &[0, 99], &[First, Repeated]),
            (window, &[0, 100], &[First, Second]),
            (window, &[0, 60, 120], &[First, Repeated, Second]),
            (window, &[0, 200, 201], &[First, Second, Repeated]),
            (Duration::ZERO, &[0, 0, 0], &[First, Second, Repeated]),
            (Duration::MAX, &[0, 1_000_000], &[First, Repeated]),
            // Two streams may be read in another order than their signals came in.
            (window, &[50, 0], &[First, Repeated]),
        ] {
            let mut stop_signals = StopSignals::new(window);
            let kinds = STOP_SIGNALS.into_iter().cycle();
            let counted: Vec<_> = kinds
                .zip(millis)
                .map(|(signal, millis)| (signal, start + Duration::from_millis(*millis)))
                .map(|(signal, at)| stop_signals.count(Heard { signal, at }))
                .collect();
            assert_eq!(counted, expected, "{window:?}: {millis:?}");
        }
    }

    /// A program may obey a stream of its own, which knows no times.
    #[test]
    fn any_stream_is_obeyed() {
        let (send, signals) = smol::channel::unbounded();
        let shutdown = Shutdown::new();
        let token = shutdown.token();
        let watch = async {
            send.send(Signal::Term).await.unwrap();
            token.stopping().await;
            // Sent again until the window is over.
            while future::poll_once(token.aborting()).await.is_none() {
                send.send(Signal::Int).await.unwrap();
                async_io::Timer::after(Duration::from_millis(10)).await;
            }
        };
        future::block_on(shutdown.obey(signals.boxed()).or(watch));
        assert_eq!(shutdown.phase(), Phase::Aborting);
    }
}
