//! [`Shutdown::obey`]: moves a latch at signals, and logs each move.
//!
//! The policy decides, and this file carries out its actions. It knows nothing of servers.

use std::future::Future;
use std::time::Duration;

use async_signal::Signal;
use futures_lite::{FutureExt, Stream, future};

use crate::stop::draining::InFlight;
use crate::stop::policy::{Action, Event, Ignored, State};
use crate::stop::shutdown::Shutdown;
use crate::stop::signals::{self, Received, name};

/// The default of [`Process::repeat_window`](crate::Process::repeat_window), and `obey`'s window.
pub(crate) const REPEAT_WINDOW: Duration = Duration::from_millis(100);

/// The number of signals after which the future gets its turn. A process has fewer at a time.
const TURN: usize = 16;

/// A signal that has waited for this time or longer gets a line in the log.
const LONG_WAIT: Duration = Duration::from_secs(1);

impl Shutdown {
    /// Runs `future`, and meanwhile stops at the first of `signals` and aborts at the second (rule
    /// S14), as [`run`](crate::run) does. Returns the value of `future`.
    ///
    /// `future` is the work that the signals stop, such as [`Server::serve`](crate::Server::serve),
    /// or the drain of a program without a server. It has to end by itself after the stop.
    ///
    /// All further signals within 100 ms of the first one belong to the same stop, because wrappers
    /// and terminals send two. The first signal after a stop by the program itself is only noted,
    /// and the 100 ms begin with it. Only `run` can have another window
    /// ([`Process::repeat_window`](crate::Process::repeat_window)).
    ///
    /// If a handler blocks the thread that polls this future, every signal waits, also the second
    /// one. The log then says how long the stop has waited, and [`Outcome::took`] counts that time.
    /// The logger must not block either (see [`LogWriter`](crate::LogWriter)).
    ///
    /// [`Outcome::took`]: crate::Outcome::took
    ///
    /// # Cancel safety
    ///
    /// The drop of this future drops `future`. Signals that come later have no effect, and do not
    /// kill the process either.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use smol_graceful::{Outcome, ServeError, Server, Shutdown, signals};
    ///
    /// fn main() -> Result<Outcome, ServeError> {
    ///     // The signals come first, so they are handled before a client can connect.
    ///     let signals = signals()?;
    ///     let shutdown = Shutdown::new();
    ///     let server = Server::new(|_request| async { Ok("okay") }).shutdown(&shutdown);
    ///     smol::block_on(shutdown.obey(signals, server.serve(["127.0.0.1:8082"])))
    /// }
    /// ```
    ///
    /// For work without a server:
    ///
    /// ```no_run
    /// use smol_graceful::{Shutdown, signals};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let shutdown = Shutdown::new();
    /// let work = async {
    ///     shutdown.token().stopping().await;
    ///     shutdown.stop_and_drain().await
    /// };
    /// println!("{}", smol::block_on(shutdown.obey(signals()?, work)));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn obey<T>(
        &self,
        mut signals: impl Stream<Item = Signal> + Unpin,
        future: impl Future<Output = T>,
    ) -> T {
        let obey = async {
            let mut state = State::Running;
            let mut obeyed = 0;
            while let Some(signal) = signals::next(&mut signals).await {
                if self.token().is_stopping() {
                    (state, _) = state.on(Event::OwnStop, REPEAT_WINDOW);
                }
                let action;
                (state, action) = state.on(Event::StopSignal(signal), REPEAT_WINDOW);
                Self::carry_out(&[self], action);
                obeyed += 1;
                if obeyed % TURN == 0 {
                    // A stream that is always ready must not starve the future.
                    future::yield_now().await;
                }
            }
            future::pending().await
        };
        future.or(obey).await
    }

    /// Carries out `action` on `latches`, and logs that once.
    pub(crate) fn carry_out(latches: &[&Self], action: Action) {
        let in_flight = latches.iter().map(|latch| latch.counted()).reduce(InFlight::and);
        let in_flight = in_flight.unwrap_or_default();
        match action {
            Action::Stop(received) => {
                let name = name(received.signal);
                log::info!("stopping because of {name}: {in_flight}; again to end at once");
                log_wait(received);
                for latch in latches {
                    latch.stop_after_wait(received.signal, received.at.elapsed());
                }
            }
            Action::Abort(received) => {
                log_wait(received);
                log::warn!(
                    "ending at once because of a second signal, {}; if a wrapper sends two signals for \
                     one stop, lengthen the repeat window",
                    name(received.signal)
                );
                latches.iter().for_each(|latch| latch.abort());
            }
            Action::Ignore(Ignored::StoppingAlready(received)) => {
                log::info!("{}: stopping already: {in_flight}", name(received.signal));
            }
            Action::Ignore(Ignored::SameStop(received, since)) => {
                let (name, since) = (name(received.signal), since.as_millis());
                log::debug!("{name} {since} ms after the first stop signal: the same stop");
            }
            Action::Ignore(Ignored::NothingNew) | Action::DoNotRestart(_) => {}
        }
    }
}

fn log_wait(received: Received) {
    let waited = received.at.elapsed();
    if waited >= LONG_WAIT {
        let (name, waited) = (name(received.signal), waited.as_secs_f64());
        log::warn!(
            "{name} waited {waited:.1} s, because a handler or the logger blocked the thread"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::phase::Phase;
    use futures_lite::{StreamExt, stream};
    use std::cell::Cell;
    use std::task::Poll;

    /// A stream of the program's own that is always ready leaves the future its turns.
    #[test]
    fn a_stream_without_end_starves_nobody() {
        // The stream has an end, so that the test cannot hang.
        let taken = Cell::new(0);
        let signals = stream::repeat(Signal::Term).take(100 * TURN);
        let signals = signals.inspect(|_| taken.set(taken.get() + 1));
        let mut taken_at_polls = Vec::new();
        let work = future::poll_fn(|context| {
            taken_at_polls.push(taken.get());
            if taken_at_polls.len() < 5 {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        });
        let shutdown = Shutdown::new();
        future::block_on(shutdown.obey(signals, work));
        assert_eq!(taken_at_polls, [0, TURN, 2 * TURN, 3 * TURN, 4 * TURN]);
        assert!(shutdown.token().is_stopping());
    }

    /// A program may pass a stream of its own, which has no times.
    #[test]
    fn any_stream_is_obeyed() {
        let (send, signals) = smol::channel::unbounded();
        let shutdown = Shutdown::new();
        let token = shutdown.token();
        let watch = async {
            send.send(Signal::Term).await.unwrap();
            token.stopping().await;
            // The signal is repeated until the window is over.
            while future::poll_once(token.aborting()).await.is_none() {
                send.send(Signal::Int).await.unwrap();
                async_io::Timer::after(Duration::from_millis(10)).await;
            }
        };
        future::block_on(shutdown.obey(signals.boxed(), watch));
        assert_eq!(shutdown.phase(), Phase::Aborting);
    }
}
