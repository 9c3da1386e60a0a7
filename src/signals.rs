//! The signals that stop a server, as a stream.
//!
//! Invariant: from the moment the stream is made, none of its signals kills the process; this does
//! not end when the stream is dropped, as a handler cannot be taken back safely. Nothing here is
//! done unless asked for: the library registers no signal by itself. Knows nothing of servers, only
//! of the latch that signals move.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use async_io::Timer;
use async_signal::{Signal, Signals};
use atomic_waker::AtomicWaker;
use futures_lite::{FutureExt, Stream, StreamExt, future};

use crate::outcome::name;
use crate::shutdown::Shutdown;

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

/// HUP, INT, TERM and QUIT as they arrive, for programs that have their own control loop; what is
/// usually done with them is [`Shutdown::obey`], and [`run`](crate::run) does it by itself.
///
/// Never ends. Several signals that arrive in one moment may show as fewer, but never as none.
///
/// # Errors
///
/// What the operating system says if a signal cannot be handled.
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
    stream(&STOP_SIGNALS)
}

impl Shutdown {
    /// Stops at the first of `signals`, and aborts at the second (rule S14), as [`run`](crate::run)
    /// does. Never returns: race it against what it is to stop.
    ///
    /// The first signal after a stop by the program itself is only noted, and the same one again in
    /// one moment (3 ms) is the same one.
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
    /// use std::time::Duration;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let shutdown = Shutdown::new();
    /// let signals = signals()?;
    /// let work = async {
    ///     shutdown.token().stopping().await;
    ///     shutdown.drain(Duration::from_secs(30)).await
    /// };
    /// println!("{}", future::block_on(work.or(shutdown.obey(signals))));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn obey<T>(&self, mut signals: impl Stream<Item = Signal> + Unpin) -> T {
        if let Some(signal) = signals.next().await {
            let second = another(&mut signals, signal).await;
            stop(signal, self);
            let second = match second {
                Some(second) => Some(second),
                None => signals.next().await,
            };
            if let Some(signal) = second {
                log::warn!("ending at once because of a second signal, {}", name(signal));
                self.abort();
            }
        }
        future::pending().await
    }
}

/// The same for any set of signals.
pub(crate) fn stream(
    set: &[Signal],
) -> io::Result<impl Stream<Item = Signal> + Send + Unpin + use<>> {
    let steady = Steady { signals: Signals::new(set)?, waker: Arc::default() };
    // A read of the pipe can fail only if the pipe is gone, and it lives as long as the stream.
    Ok(steady.filter_map(Result::ok))
}

/// Signals that always wait with the same waker, which wakes whoever waits for them.
///
/// Polled with another waker than before, async-io wakes the one that it has: where each poll brings a new
/// one, as under `block_on` of tokio's current-thread runtime, each poll would bring about the next.
struct Steady {
    signals: Signals,
    waker: Arc<Forward>,
}

#[derive(Default)]
struct Forward(AtomicWaker);

impl Wake for Forward {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }
}

impl Stream for Steady {
    type Item = io::Result<Signal>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.waker.0.register(cx.waker());
        let waker = Waker::from(self.waker.clone());
        self.signals.poll_next(&mut Context::from_waker(&waker))
    }
}

/// Waits for a moment, whether a signal comes that is not `signal` again.
///
/// The same one again in one moment is the same one: `timeout` and a terminal that is closed send
/// theirs to the process and to its group, and one to the group while a successor is forked is also
/// heard by the child, in this process's name.
pub(crate) async fn another(
    signals: &mut (impl Stream<Item = Signal> + Unpin),
    signal: Signal,
) -> Option<Signal> {
    let another = async { signals.find(|other| *other != signal).await };
    let moment = async {
        Timer::after(MOMENT).await;
        None
    };
    another.or(moment).await
}

const MOMENT: Duration = Duration::from_millis(3);

/// Stops because of `signal`, and says so.
pub(crate) fn stop(signal: Signal, shutdown: &Shutdown) {
    let (signal_name, open) = (name(signal), shutdown.in_flight());
    if shutdown.token().is_stopping() {
        // A successor has taken over, or the program has stopped the server.
        log::info!("{signal_name}: stopping already; in flight: {open}");
    } else {
        log::info!("stopping because of {signal_name}; in flight: {open}");
        shutdown.stop_by(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phase::Phase;
    use futures_lite::stream;

    #[test]
    fn the_second_signal_aborts_whenever_it_comes() {
        use futures_lite::future;
        for (signals, phase) in [
            (&[Signal::Term][..], Phase::Draining),
            (&[Signal::Term, Signal::Term], Phase::Draining),
            (&[Signal::Term, Signal::Int], Phase::Aborting),
        ] {
            let shutdown = Shutdown::new();
            let signals = stream::iter(signals.to_vec()).chain(stream::pending());
            let done = async {
                shutdown.token().stopping().await;
                // What comes in the same moment has been heard by then.
                future::yield_now().await;
            };
            future::block_on(done.or(shutdown.obey(signals)));
            assert_eq!(shutdown.phase(), phase);
        }
    }

    #[test]
    fn the_same_signal_in_one_moment_is_one() {
        let behind_term = |signals: &[Signal]| {
            let mut signals = stream::iter(signals.to_vec()).chain(stream::pending());
            future::block_on(another(&mut signals, Signal::Term))
        };
        assert_eq!(behind_term(&[]), None);
        assert_eq!(behind_term(&[Signal::Term, Signal::Term]), None);
        assert_eq!(behind_term(&[Signal::Term, Signal::Int]), Some(Signal::Int));
    }
}
