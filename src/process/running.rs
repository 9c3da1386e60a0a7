//! [`RunningProcess`]: the servers of a process while they serve, from the first signal to the
//! outcome.
//!
//! Invariant: apart from `announce`, all of this runs on the thread that called `run`. This thread
//! runs no handler, so signals, deadlines and the drain go on with every worker blocked (rule S15).
//! The servers that stop last stop when all others have drained (rule S26). Starts no thread and
//! binds nothing.

use std::cell::Cell;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_io::Timer;
use async_signal::Signal;
use futures_lite::{FutureExt, Stream, StreamExt, future};

use super::total::total;
use crate::error::{ServeError, reason};
use crate::listen::listener::Listener;
use crate::ready::ready;
use crate::restart::notify::Notify;
use crate::restart::parent::Parent;
use crate::restart::pid_file::PidWriter;
use crate::server::running::{Running, Stopping};
use crate::stop::draining::Draining;
use crate::stop::outcome::Outcome;
use crate::stop::policy::{Action, Event, State};
use crate::stop::shutdown::Shutdown;
use crate::stop::signals::{self, Received};
use crate::under_keeper;

/// The servers of a process.
pub(super) struct RunningProcess {
    servers: Vec<Arc<Running>>,
    notify: Notify,
    restart: Option<Signal>,
    repeat_window: Duration,
    /// Set once the manager has heard of the stop.
    is_stop_told: Cell<bool>,
}

impl RunningProcess {
    /// Takes servers that listen. `restart` is the signal that asks for a restart. Signals within
    /// `repeat_window` of the first one belong to the same stop.
    pub(super) fn new(
        servers: Vec<Running>,
        restart: Option<Signal>,
        repeat_window: Duration,
    ) -> Self {
        let servers: Vec<_> = servers.into_iter().map(Arc::new).collect();
        servers.iter().for_each(under_keeper::join);
        let is_stop_told = Cell::new(false);
        Self { servers, notify: Notify::from_env(), restart, repeat_window, is_stop_told }
    }

    /// Writes the pid file, and tells the service manager that this process serves. Then feeds the
    /// manager's watchdog, if the manager has one. Runs on the threads that serve requests, so the
    /// manager hears nothing if these are stuck.
    pub(super) fn announce(
        &self,
        pid_file: Option<PidWriter>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let listeners = |servers: &[Arc<Running>]| -> Vec<Listener> {
            servers.iter().flat_map(|server| server.listeners.iter().cloned()).collect()
        };
        let addresses = listeners(&self.servers).into_iter().map(|l| l.address().to_string());
        let addresses = addresses.collect::<Vec<_>>().join(", ");
        // A successor takes its sockets in the order in which its servers start, so the keeper
        // hears of the sockets in this order. Otherwise an address with port 0 would find another
        // server's.
        let mut started = self.servers.clone();
        started.rotate_left(1);
        announce(self.notify.clone(), listeners(&started), addresses, pid_file)
    }

    /// Serves until all servers were stopped and have drained. Returns one outcome for all, or the
    /// failure of a source.
    pub(super) async fn serve(
        &self,
        signals: impl Stream<Item = Received> + Unpin,
    ) -> Result<Outcome, ServeError> {
        // This thread accepts, and not the workers, so that the memory that connections keep and
        // the memory that requests need for a moment are allocated apart. Many idle connections
        // then do not slow down the busy ones.
        let control = self.control().or(self.obey(signals));
        let outcome = control.or(self.accept()).or(self.obey_keeper()).await;
        match self.servers.iter().find_map(|server| server.failure()) {
            Some(failure) => Err(failure),
            None => Ok(outcome),
        }
    }

    /// Controls each server until all have drained, and stops the last ones when the others have.
    async fn control(&self) -> Outcome {
        let (last, first): (Vec<_>, Vec<_>) =
            self.servers.iter().partition(|server| server.stops_last);
        let latches: Vec<_> = last.iter().map(|server| &server.service.shutdown).collect();
        let first = async {
            let outcomes = all(first.into_iter().map(|server| self.control_one(server))).await;
            let grace = self.stopped_first().map(|latch| latch.times().grace).max();
            let took = outcomes.iter().map(|(_, outcome)| outcome.took).max();
            let left = grace.unwrap_or_default().saturating_sub(took.unwrap_or_default());
            for latch in latches {
                // S26: the servers that stop last get only what is left of the grace of the others.
                let grace = latch.times().grace.min(left);
                latch.clone().grace(grace).lame_duck(Duration::ZERO).stop();
            }
            outcomes
        };
        let last = all(last.into_iter().map(|server| self.control_one(server)));
        let (mut outcomes, last) = future::zip(first, last).await;
        outcomes.extend(last);
        total(outcomes)
    }

    /// Controls a server until it has drained. If it stops because a source has failed, all servers
    /// stop (rule S17).
    async fn control_one<'a>(&'a self, server: &'a Running) -> (&'a Shutdown, Outcome) {
        let failed = async {
            server.stopping().await;
            if server.failure().is_some() {
                self.stopped_first().for_each(Shutdown::stop);
            }
        };
        let (outcome, ()) =
            future::zip(server.control(|stopping| self.tell(&stopping)), failed).await;
        (&server.service.shutdown, outcome)
    }

    /// Tells the manager how the stop of a server goes on. The manager does not hear of a server
    /// that the program has stopped alone, because the manager would kill the process some time
    /// after STOPPING=1.
    fn tell(&self, stopping: &Stopping<'_>) {
        if !self.stopped_first().all(|latch| latch.token().is_stopping()) {
            return;
        }
        if !self.is_stop_told.replace(true) {
            self.notify.stopping();
        }
        match stopping {
            Stopping::Begun => {}
            Stopping::LameDuck(duration) => self.notify.lame_duck(*duration),
            Stopping::Draining(draining) => self.notify.draining(&self.draining(draining)),
        }
    }

    /// Adds up how the servers drain, because the manager shows one line for all. `told` is the
    /// report of one server, and decides whether something has moved.
    fn draining(&self, told: &Draining) -> Draining {
        let latches: Vec<_> = self.latches().collect();
        let of_latch = |latch: &Shutdown| {
            let servers = self.servers.iter().filter(|one| latch.is_same(&one.service.shutdown));
            servers.filter_map(|server| server.left()).max().map(|left| latch.draining(left))
        };
        let all = latches.into_iter().filter_map(of_latch).filter(Draining::is_open);
        let total = all.reduce(Draining::and);
        total.map_or_else(|| told.clone(), |total| Draining { is_moving: told.is_moving, ..total })
    }

    /// Accepts connections for all servers. Never returns.
    async fn accept<T: Send>(&self) -> T {
        any(self.servers.iter().map(|server| server.accept())).await
    }

    /// Obeys the keeper, if the process has one. Never returns.
    async fn obey_keeper<T>(&self) -> T {
        any(self.servers.iter().map(under_keeper::obey)).await
    }

    /// Obeys signals (rule S14). Never returns.
    async fn obey<T>(&self, mut signals: impl Stream<Item = Received> + Unpin) -> T {
        let mut state = State::Running;
        loop {
            let own_stop = async {
                if state != State::Running {
                    future::pending().await
                }
                for latch in self.stopped_first() {
                    latch.token().stopping().await;
                }
                Event::OwnStop
            };
            let signal = async {
                match signals.next().await {
                    Some(received) if Some(received.signal) == self.restart => {
                        Event::RestartSignal(received.signal)
                    }
                    Some(received) => Event::StopSignal(received),
                    None => future::pending().await,
                }
            };
            let action;
            (state, action) = state.on(own_stop.or(signal).await, self.repeat_window);
            self.carry_out(action);
        }
    }

    fn carry_out(&self, action: Action) {
        match action {
            Action::Abort(_) => {
                // The kernel has accepted the clients in the queues, so the outcome has to name
                // them.
                self.servers.iter().for_each(|server| server.empty_queues());
                let all: Vec<_> = self.latches().collect();
                Shutdown::carry_out(&all, action);
            }
            Action::DoNotRestart(signal) => log_how_to_restart(signal),
            Action::Stop(_) | Action::Ignore(_) => {
                let first: Vec<_> = self.stopped_first().collect();
                Shutdown::carry_out(&first, action);
            }
        }
    }

    /// Returns the latches of all servers, each one once.
    fn latches(&self) -> impl Iterator<Item = &Shutdown> {
        distinct(self.servers.iter())
    }

    /// Returns the latches of the servers that a signal stops, each one once.
    fn stopped_first(&self) -> impl Iterator<Item = &Shutdown> {
        distinct(self.servers.iter().filter(|server| !server.stops_last))
    }
}

/// Returns the latches of `servers`, each of them once. Leaves out a latch that follows another one
/// of them.
fn distinct<'a>(
    servers: impl Iterator<Item = &'a Arc<Running>>,
) -> impl Iterator<Item = &'a Shutdown> {
    let mut latches: Vec<&Shutdown> = Vec::new();
    for server in servers {
        let latch = &server.service.shutdown;
        if !latches.iter().any(|other| other.is_same(latch)) {
            latches.push(latch);
        }
    }
    let all = latches.clone();
    latches.into_iter().filter(move |latch| !all.iter().any(|other| latch.is_below(other)))
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Runs `futures` side by side until all have ended.
fn all<'a, T: 'a>(
    futures: impl Iterator<Item = impl Future<Output = T> + 'a>,
) -> Boxed<'a, Vec<T>> {
    let none: Boxed<'a, Vec<T>> = Box::pin(async { Vec::new() });
    futures.fold(none, |before, next| {
        Box::pin(async {
            let (mut results, result) = future::zip(before, next).await;
            results.push(result);
            results
        })
    })
}

/// Runs `futures` side by side until one of them has ended.
fn any<'a, T: 'a>(futures: impl Iterator<Item = impl Future<Output = T> + 'a>) -> Boxed<'a, T> {
    let none: Boxed<'a, T> = Box::pin(future::pending());
    futures.fold(none, |others, next| Box::pin(others.or(next)))
}

/// Logs that this process does not restart itself, and how to restart it.
fn log_how_to_restart(signal: Signal) {
    let name = signals::name(signal);
    if Parent::of_this_process().is_some() {
        let keeper = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        log::warn!("no restart because of {name}: send it to the keeper, process {keeper}");
    } else {
        log::warn!(
            "no restart because of {name}: this process has no keeper; start it as: smol-graceful \
             keep -- COMMAND, or call Process::keep"
        );
    }
}

async fn announce(
    notify: Notify,
    listeners: Vec<Listener>,
    addresses: String,
    pid_file: Option<PidWriter>,
) {
    // The file comes first, so a manager that hears READY finds it.
    pid_file.iter().for_each(PidWriter::write);
    let mut failed = false;
    while let Err(error) = ready(&listeners) {
        if !mem::replace(&mut failed, true) {
            log::warn!("cannot say that this process serves, trying again: {}", reason(&error));
        }
        Timer::after(Duration::from_millis(100)).await;
    }
    drop(listeners);
    notify.status(&format!("listening on {addresses}"));
    let Some(interval) = notify.watchdog_interval() else { return };
    loop {
        notify.watchdog();
        // sd_watchdog_enabled(3) recommends half of the interval.
        Timer::after(interval / 2).await;
    }
}
