//! [`RunningKeeper`]: a keeper at work. It waits for signals, children and times, asks the
//! [`Policy`], and carries out the policy's actions.
//!
//! Invariant: one thread does all of this, and never waits for a child or for the manager. Only
//! this thread reaps children, and a child that was reaped gets no signal, so no signal goes to
//! another process that has got the same id. This file decides nothing.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::os::unix::process::ExitStatusExt;
use std::pin::Pin;
use std::process::ExitStatus;
use std::task::{Context, Poll};
use std::time::Instant;

use async_io::Timer;
use async_signal::Signal;
use futures_lite::{FutureExt, Stream, future};
use rustix::process::{WaitOptions, wait};

use crate::error::reason;
use crate::keeper::answers::Url;
use crate::keeper::child::{Child, Started};
use crate::keeper::exit::KeeperExit;
use crate::keeper::manager::Manager;
use crate::keeper::pid_lock::PidLock;
use crate::keeper::policy::{Action, Ending, Event, Id, Policy};
use crate::keeper::resume::VERSION;
use crate::keeper::settings::{Keeper, ReadyWhen};
use crate::keeper::sockets::Sockets;
use crate::keeper::takeover;
use crate::restart::message::Message;
use crate::stop::signals::Received;

/// The signals of a keeper, with their times.
pub(crate) type SignalStream = Box<dyn Stream<Item = Received> + Send + Unpin>;

/// A keeper at work.
pub(crate) struct RunningKeeper {
    pub(crate) settings: Keeper,
    /// The URL that a child has to answer, if the settings have one.
    pub(crate) url: Option<Url>,
    pub(crate) policy: Policy,
    pub(crate) children: Vec<Child>,
    pub(crate) sockets: Sockets,
    pub(crate) manager: Manager,
    pub(crate) pid_lock: Option<PidLock>,
    /// The first process, which starts while the keeper still prepares itself.
    pub(crate) first: Option<io::Result<Started>>,
    pub(crate) signals: SignalStream,
    /// The events that the policy has not seen yet.
    pub(crate) events: VecDeque<Event>,
    /// The reason why the last restart has failed, for the manager.
    pub(crate) failure: String,
    /// The new program replaces this one when nothing else is left to do.
    pub(crate) is_outdated: bool,
}

impl RunningKeeper {
    /// Runs until the keeper ends, and returns how it has ended.
    pub(crate) fn run(mut self, first: Vec<Action>) -> io::Result<KeeperExit> {
        let mut timer = Timer::never();
        let mut ending = self.carry_out(first);
        // The first child may have ended before the signals were handled, and then no signal comes.
        self.reap();
        loop {
            if let Some(ending) = ending {
                return self.end(ending);
            }
            // The new program would not send READY=1 again, so the manager gets it first.
            let is_told = self.manager.deadline().is_none();
            if self.is_outdated && self.events.is_empty() && is_told {
                self.become_new_program();
            }
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => match future::block_on(poll_fn(|cx| self.poll_event(&mut timer, cx))) {
                    Some(event) => event,
                    None => continue,
                },
            };
            let actions = self.policy.on(event, Instant::now());
            ending = self.carry_out(actions);
        }
    }

    fn end(&mut self, ending: Ending) -> io::Result<KeeperExit> {
        match ending {
            Ending::Code(code) => Ok(KeeperExit(code)),
            Ending::NotStarted(reason) => Err(io::Error::other(reason)),
            Ending::Late(_) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, mem::take(&mut self.failure)))
            }
        }
    }

    /// Waits until something has happened. Returns `None` if it is not an event for the policy.
    fn poll_event(&mut self, timer: &mut Timer, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Poll::Ready(Some(received)) = Pin::new(&mut self.signals).poll_next(cx) {
            return Poll::Ready(self.on_signal(received.signal));
        }
        let deadlines = [self.policy.deadline(), self.manager.deadline()];
        match deadlines.into_iter().flatten().min() {
            Some(deadline) => timer.set_at(deadline),
            None => *timer = Timer::never(),
        }
        if timer.poll(cx).is_ready() {
            self.manager.try_again(Instant::now());
            return Poll::Ready(Some(Event::Tick));
        }
        for index in 0..self.children.len() {
            if let Poll::Ready(event) = self.poll_child(index, cx) {
                return Poll::Ready(event);
            }
        }
        Poll::Pending
    }

    /// Waits until the child at `index` has said or shown something. Returns `None` if it is not an
    /// event for the policy.
    fn poll_child(&mut self, index: usize, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let child = &mut self.children[index];
        let id = child.id;
        if child.poll_shown(cx).is_ready() {
            return Poll::Ready(Some(Event::Ready(id)));
        }
        // A child that has to answer a URL is not ready because it says so.
        let may_say_ready = !matches!(self.settings.ready, ReadyWhen::Answers(_));
        let serves = self.policy.serving() == Some(id);
        if let Poll::Ready(is_ready) = child.poll_channel(&self.sockets, cx) {
            if is_ready && serves {
                takeover::settle_sockets(&mut self.children, &mut self.sockets, id);
            }
            return Poll::Ready((is_ready && may_say_ready).then_some(Event::Ready(id)));
        }
        if let Poll::Ready(mut words) = child.poll_notify(cx) {
            // The manager gets the status of the newest child alone, and the watchdog of the child
            // that serves. In a stop, the newest child counts as the one that serves.
            let is_newest = self.policy.newest() == Some(id);
            if !is_newest {
                words.status = None;
            }
            words.is_watchdog &= serves || is_newest && self.policy.is_stopping();
            self.manager.pass_on(&words);
            return Poll::Ready((words.is_ready && may_say_ready).then_some(Event::Ready(id)));
        }
        Poll::Pending
    }

    /// Returns the event of a signal. Returns `None` if a child has ended, or if the keeper passes
    /// the signal on.
    pub(crate) fn on_signal(&mut self, signal: Signal) -> Option<Event> {
        if signal == Signal::Child {
            self.reap();
            return None;
        }
        if self.settings.restart_on.contains(&signal) {
            return Some(Event::Restart(signal));
        }
        if self.settings.signals.contains(&signal) {
            return Some(Event::Stop(signal));
        }
        // A child that is still starting may not handle the signal yet, which would kill it.
        let id = self.policy.serving().or_else(|| self.policy.newest());
        if let Some(child) = id.and_then(|id| self.child(id)) {
            // Other programs change the number of their workers at these two signals. They would
            // suspend a program of this library.
            let suspends = matches!(signal, Signal::Ttin | Signal::Ttou);
            if child.reported.is_none() || !suspends {
                child.signal(signal);
            }
        }
        None
    }

    /// Reaps each process that has ended: children, and orphans if this is process 1.
    fn reap(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let status = ExitStatus::from_raw(status.as_raw());
                    match self.children.iter_mut().find(|child| child.pid == pid) {
                        Some(child) => {
                            child.end();
                            self.events.push_back(Event::Ended(child.id, status));
                        }
                        None => log::debug!(
                            "process {} has ended, whose parent has left it: {status}",
                            pid.as_raw_nonzero()
                        ),
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> Option<Ending> {
        for action in actions {
            match action {
                Action::Start(id) => self.start(id),
                Action::TakeOver { new, old } => {
                    takeover::take_over(&mut self.children, &mut self.sockets, new, old);
                }
                Action::Term(id) => self.signal(id, Signal::Term),
                Action::Kill(id) => {
                    if let Some(child) = self.child(id) {
                        child.kill();
                    }
                }
                Action::Forward(id, signal) => self.signal(id, signal),
                Action::LetGo => self.let_go(),
                Action::FirstReady => {
                    // The file is written first, so it is there when the manager hears READY.
                    self.pid_lock.iter().for_each(PidLock::write);
                    self.manager.ready();
                }
                Action::RestartBegins => self.manager.reloading(),
                Action::RestartEnds { is_done } => {
                    self.manager.ready();
                    if !is_done {
                        self.manager.status(&format!("no restart: {}", self.failure));
                    }
                }
                Action::Resume(id) => self.is_outdated = self.is_resumed_by(id),
                Action::Note(note) => self.note(&note),
                Action::End(ending) => return Some(ending),
            }
        }
        // Children that have ended are dropped last, because the notes name them.
        self.children.retain(|child| self.policy.has(child.id));
        None
    }

    fn start(&mut self, id: Id) {
        self.sockets.rebind_removed();
        let (settings, url) = (&self.settings, self.url.as_ref());
        let started = self.first.take().unwrap_or_else(|| Started::new(settings, &self.sockets));
        match started.and_then(|started| Child::of(id, started, settings, url)) {
            Ok(child) => {
                log::info!("keeper: started process {}", child.pid.as_raw_nonzero());
                self.children.push(child);
            }
            Err(error) => self.events.push_back(Event::NotStarted(id, error.to_string())),
        }
    }

    /// Closes the listening sockets, and tells the children that no other process has them.
    fn let_go(&mut self) {
        self.sockets.let_go();
        for child in &mut self.children {
            // The sockets of a child on trial are copies, too.
            child.brought.clear();
            if let Some(channel) = &child.channel {
                if let Err(error) = channel.send(&Message::Alone, &[]) {
                    log::debug!("a child does not hear the keeper: {}", reason(&error));
                }
            }
        }
        self.manager.stopping();
    }

    fn signal(&self, id: Id, signal: Signal) {
        if let Some(child) = self.child(id) {
            child.signal(signal);
        }
    }

    pub(crate) fn child(&self, id: Id) -> Option<&Child> {
        self.children.iter().find(|child| child.id == id)
    }

    /// Returns `true` if the program that the child runs can take this process's place.
    fn is_resumed_by(&self, id: Id) -> bool {
        self.settings.is_own && self.child(id).is_some_and(|child| child.resumes == VERSION)
    }
}
