//! The signals that stop a server, as a stream.
//!
//! Invariant: after the stream was made, none of its signals kills the process. This holds after
//! the drop of the stream, too, because a handler cannot be removed safely. The time of a signal is
//! the time at which the process received it, even while the thread that obeys it is blocked. The
//! library registers no signal unless a program asks for it. This file decides nothing about
//! stopping.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use async_signal::{Signal, Signals};
use atomic_waker::AtomicWaker;
use futures_lite::{Stream, StreamExt, future, stream};
use nix::libc;
use nix::sys::signal::SigSet;

use crate::lock::lock;
use crate::threads;

/// The default signals that stop a server: HUP, INT, TERM and QUIT.
///
/// # Examples
///
/// A program that reads its configuration again on HUP leaves HUP out:
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

/// Handles HUP, INT, TERM and QUIT, and returns them as a stream, for programs that have their own
/// control loop. The usual place for the stream is [`Shutdown::obey`](crate::Shutdown::obey).
/// [`run`](crate::run) does all of this by itself.
///
/// The stream never ends. Several signals that arrive in one moment may show as fewer, but at least
/// as one.
///
/// If the process was started with HUP, INT or QUIT ignored (`nohup` does that, and a script does
/// it to its background jobs), the signal stays ignored, and the log says so. USR2, which asks a
/// keeper for a restart, does not kill the process, and the log says how a restart works. Blocked
/// signals are unblocked in the calling thread and in the threads that it starts later. So call
/// this in a thread that does not end, before other threads start.
///
/// # Errors
///
/// Returns the operating system's error if a signal cannot be handled or a thread cannot be
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
    let signals = stream(&STOP_SIGNALS, &[Signal::Usr2])?;
    Ok(signals.filter_map(|received| {
        if received.signal == Signal::Usr2 {
            log::warn!(
                "no restart because of SIGUSR2: only a keeper restarts a process, so send it to the \
                 keeper; to get one, start the process as: smol-graceful keep -- COMMAND, or call \
                 Process::keep"
            );
            return None;
        }
        YIELDED_LAST.set(Some(received));
        Some(received.signal)
    }))
}

thread_local! {
    /// The last signal that [`signals`] has yielded on this thread. [`next`] needs its time, for
    /// which the public stream has no place.
    static YIELDED_LAST: Cell<Option<Received>> = const { Cell::new(None) };
}

/// A signal, and the time at which the process has received it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) signal: Signal,
    pub(crate) at: Instant,
}

/// Returns the next signal of a program's stream, with its time.
pub(crate) async fn next(signals: &mut (impl Stream<Item = Signal> + Unpin)) -> Option<Received> {
    let (signal, last) = future::poll_fn(|cx| {
        YIELDED_LAST.take();
        signals.poll_next(cx).map(|signal| (signal, YIELDED_LAST.take()))
    })
    .await;
    let signal = signal?;
    // A stream that does not come from `signals` has no earlier time.
    let received = last.filter(|received| received.signal == signal);
    Some(received.unwrap_or_else(|| Received { signal, at: Instant::now() }))
}

/// Returns the name of a signal in the form that operators write.
pub(crate) fn name(signal: Signal) -> String {
    format!("SIG{}", format!("{signal:?}").to_uppercase())
}

/// Handles the signals of `stop` and `others`, and returns them as a stream. Leaves out signals of
/// `stop` that were ignored when the process was started.
///
/// The signals are registered before they are unblocked, because otherwise a pending one would kill
/// the process.
pub(crate) fn stream(
    stop: &[Signal],
    others: &[Signal],
) -> io::Result<impl Stream<Item = Received> + Send + Unpin + use<>> {
    threads::check()?;
    let (ignored, mut handled): (Vec<_>, Vec<_>) =
        stop.iter().partition(|signal| MAY_BE_IGNORED.contains(signal) && is_ignored(**signal));
    log_ignored(ignored);
    handled.extend(others);
    let queue = SignalQueue::new(Signals::new(&handled)?);
    unblock(&handled)?;
    queue.take_in();
    Ok(stream::poll_fn(move |cx| queue.poll_next(cx)))
}

/// Makes a write beyond the limit of a file's size (`ulimit -f`) fail. Without this, a line of the
/// log could kill the process.
///
/// This is a handler and not SIG_IGN, because the programs that this process starts would inherit
/// SIG_IGN.
pub(crate) fn survive_full_files() -> io::Result<()> {
    if !is_ignored(Signal::Xfsz) {
        // The handler stays after this drop, and does nothing.
        drop(Signals::new([Signal::Xfsz])?);
    }
    Ok(())
}

/// The signals that a launcher may have ignored on purpose: nohup ignores HUP, and a script INT and
/// QUIT in its background jobs. TERM and USR2 are always sent on purpose.
const MAY_BE_IGNORED: [Signal; 3] = [Signal::Hup, Signal::Int, Signal::Quit];

fn log_ignored(mut signals: Vec<Signal>) {
    signals.dedup();
    let names: Vec<_> = signals.into_iter().map(name).collect();
    let (list, are, do_not) = match &names[..] {
        [] => return,
        [one] => (one.clone(), "is", "it does not"),
        [others @ .., last] => (others.join(", ") + " and " + last, "are", "they do not"),
    };
    log::info!(
        "{list} {are} ignored, because the process was started so, as nohup and scripts do; \
         {do_not} stop the server"
    );
}

/// Returns `true` if the process ignores `signal`.
#[allow(unsafe_code, reason = "no crate reads a signal's disposition without setting it")]
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let mut disposition = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call changes nothing, and `disposition` is valid for writes.
    let read = unsafe { libc::sigaction(signal as i32, ptr::null(), disposition.as_mut_ptr()) };
    // SAFETY: zero bytes are a valid value of this C struct, so it is valid even if the call has
    // written nothing.
    read == 0 && unsafe { disposition.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Unblocks `signals` in this thread, and in the threads that it starts from now on.
fn unblock(signals: &[Signal]) -> io::Result<()> {
    let numbers = signals.iter().map(|signal| *signal as i32);
    let set: SigSet = numbers.filter_map(|number| number.try_into().ok()).collect();
    Ok(set.thread_unblock()?)
}

/// The signals that have come and were not yet taken, each with its time.
///
/// async-io's thread wakes the queue, which takes the signals in at once, even while the thread
/// that polls the stream is blocked. The queue always waits with the same waker, because async-io
/// wakes the old waker when it gets a new one. `block_on` of tokio's current-thread runtime has a
/// new waker in each poll, so each poll would cause the next one.
struct SignalQueue {
    state: Mutex<QueueState>,
    /// The task that waits for the stream.
    reader: AtomicWaker,
    waker: Waker,
}

struct QueueState {
    signals: Signals,
    received: VecDeque<Received>,
}

impl SignalQueue {
    /// Beyond this number, the queue takes only one signal of each kind, because a storm of signals
    /// must not fill memory.
    const MANY: usize = 64;

    fn new(signals: Signals) -> Arc<Self> {
        Arc::new_cyclic(|queue| Self {
            state: Mutex::new(QueueState { signals, received: VecDeque::new() }),
            reader: AtomicWaker::new(),
            waker: Waker::from(Arc::new(QueueWaker(queue.clone()))),
        })
    }

    fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<Received>> {
        self.reader.register(cx.waker());
        self.take_in();
        let received = lock(&self.state).received.pop_front();
        received.map_or(Poll::Pending, |received| Poll::Ready(Some(received)))
    }

    /// Takes in the signals that have arrived, and registers for more.
    ///
    /// Does nothing if another call is under way, because async-io may wake the queue from within
    /// that call, which then takes all signals in.
    fn take_in(&self) {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let QueueState { signals, received } = &mut *state;
        let cx = &mut Context::from_waker(&self.waker);
        // A read fails only if the pipe is gone, and the pipe lives as long as `signals`.
        while let Poll::Ready(Some(Ok(signal))) = signals.poll_next(cx) {
            let is_known = || received.iter().any(|received| received.signal == signal);
            if received.len() < Self::MANY || !is_known() {
                received.push_back(Received { signal, at: Instant::now() });
            }
        }
    }
}

/// The waker of a queue. Its reference is weak, because async-io keeps the waker as long as the
/// pipe lives, and the queue keeps the pipe.
struct QueueWaker(Weak<SignalQueue>);

impl Wake for QueueWaker {
    fn wake(self: Arc<Self>) {
        if let Some(queue) = self.0.upgrade() {
            queue.take_in();
            queue.reader.wake();
        }
    }
}
