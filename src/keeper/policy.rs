//! [`Policy`]: decides what a keeper does when something happens to the keeper or to a child.
//!
//! Pure: the caller passes the time and the [`Event`], and carries out the [`Action`]s in their
//! order. Invariant: at most one child is starting, and the keeper tells a child that serves to
//! leave only when another one serves. The policy starts nothing, and knows no process ids.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use async_signal::Signal;

use crate::keeper::program::exit_code;

pub(crate) use action::{Action, Ending, Event, Failure, Id, Next, Note};
pub(crate) use condition::{Condition, Member, Remembered};

mod action;
mod condition;
#[cfg(test)]
mod table;

/// The time that a child must stay alive after it is ready, before the keeper trusts the child.
pub(crate) const TRIAL: Duration = Duration::from_millis(50);

/// The shortest time that a child that has failed gets for its stop.
const LEAST_STOP_TIME: Duration = Duration::from_secs(5);

/// The pause between the first death of the only child and the next start. Each death soon after
/// doubles the pause.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between a death and the next start.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A child that has served for this time ends a series of deaths.
const LONG_SERVICE: Duration = Duration::from_secs(1);

/// The state of a keeper as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// A child serves or is starting.
    Running,
    /// No child serves or is starting. The keeper starts another one at `until`.
    Pausing { until: Instant },
    /// The first child was not ready in time, and has to end.
    GivingUp(Id),
    /// A signal has stopped the keeper.
    Stopping,
}

/// The state of a keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    patience: Duration,
    children: Vec<Member>,
    stage: Stage,
    /// The number of the next child.
    next: Id,
    /// A child has served.
    has_served: bool,
    /// The number of children in a row that have died soon.
    deaths: u32,
    /// A restart was asked for during a restart.
    is_wanted: bool,
    /// The manager knows of the begin of a restart, and not yet of its end.
    is_announced: bool,
    /// The exit code of the newest child whose code counts.
    newest: Option<(Id, u8)>,
    /// A child that was alive at the stop has ended with a code other than 0.
    has_cut: bool,
}

impl Policy {
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            patience,
            children: Vec::new(),
            stage: Stage::Running,
            next: 1,
            has_served: false,
            deaths: 0,
            is_wanted: false,
            is_announced: false,
            newest: None,
            has_cut: false,
        }
    }

    /// Makes a policy from the state that [`Policy::remember`] has returned.
    pub(crate) fn resume(patience: Duration, remembered: Remembered) -> Self {
        let Remembered { children, next } = remembered;
        Self { children, next, has_served: true, ..Self::new(patience) }
    }

    /// Returns the state to remember, or `None` if a child is starting or a stop is under way.
    pub(crate) fn remember(&self) -> Option<Remembered> {
        let is_settled = self.stage == Stage::Running && self.on_its_way().is_none();
        let children = self.children.clone();
        (is_settled && self.serving().is_some()).then_some(Remembered { children, next: self.next })
    }

    /// Returns the first actions.
    pub(crate) fn begin(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.start(now, &mut actions);
        actions
    }

    /// Returns the time of the next [`Event::Tick`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let children = self.children.iter().filter_map(|child| match child.condition {
            Condition::Starting { until }
            | Condition::Trial { until }
            | Condition::Failing { until } => Some(until),
            Condition::Serving { .. } | Condition::Leaving | Condition::Killed => None,
        });
        let pause = match self.stage {
            Stage::Pausing { until } => Some(until),
            _ => None,
        };
        children.chain(pause).min()
    }

    /// Returns the child that serves.
    pub(crate) fn serving(&self) -> Option<Id> {
        self.find(|condition| matches!(condition, Condition::Serving { .. }))
    }

    /// Returns `true` if this child has not ended.
    pub(crate) fn has(&self, id: Id) -> bool {
        self.children.iter().any(|child| child.id == id)
    }

    /// Returns the newest child that has not failed.
    pub(crate) fn newest(&self) -> Option<Id> {
        let mut all = self.children.iter().rev();
        let has_failed = |child: &Member| {
            matches!(child.condition, Condition::Failing { .. } | Condition::Killed)
        };
        all.find(|child| !has_failed(child)).map(|child| child.id)
    }

    /// Returns `true` if a stop signal has come.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stage == Stage::Stopping
    }

    /// Takes in an event, and returns the actions.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Restart(signal) => self.on_restart(signal, now, &mut actions),
            Event::Stop(signal) => self.on_stop(signal, now, &mut actions),
            Event::NotStarted(id, reason) => {
                self.children.retain(|child| child.id != id);
                self.fail(Failure::NotStarted(reason), now, &mut actions);
            }
            Event::Ready(id) => self.on_ready(id, now, &mut actions),
            Event::Ended(id, status) => self.on_end(id, status, now, &mut actions),
            Event::Tick => self.on_tick(now, &mut actions),
        }
        actions
    }

    fn on_restart(&mut self, signal: Signal, now: Instant, actions: &mut Vec<Action>) {
        match self.stage {
            Stage::Stopping | Stage::GivingUp(_) => {
                actions.push(Action::Note(Note::TooLate(signal)));
            }
            Stage::Running if self.on_its_way().is_some() => {
                if !self.is_wanted {
                    self.is_wanted = true;
                    actions.push(Action::Note(Note::AnotherFollows));
                }
            }
            Stage::Running | Stage::Pausing { .. } => self.restart(now, actions),
        }
    }

    fn on_stop(&mut self, signal: Signal, now: Instant, actions: &mut Vec<Action>) {
        let is_first = !matches!(self.stage, Stage::Stopping | Stage::GivingUp(_));
        if is_first {
            self.stage = Stage::Stopping;
            self.is_wanted = false;
            actions.extend([Action::Note(Note::Stopping(signal)), Action::LetGo]);
        }
        let until = self.last_chance(now);
        for child in &mut self.children {
            match child.condition {
                // The child has a stop signal already, and a second one would cut its requests.
                Condition::Failing { .. } | Condition::Killed if is_first => continue,
                Condition::Starting { .. } => {
                    child.condition = Condition::Failing { until };
                }
                _ => {}
            }
            actions.push(Action::Forward(child.id, signal));
        }
        self.end_if_alone(actions);
    }

    /// Begins the trial of a child that is starting. A child that has failed stays failed.
    fn on_ready(&mut self, id: Id, now: Instant, actions: &mut Vec<Action>) {
        let is_meant = |child: &&mut Member| {
            child.id == id && matches!(child.condition, Condition::Starting { .. })
        };
        if let Some(child) = self.children.iter_mut().find(is_meant) {
            child.condition = Condition::Trial { until: now + TRIAL };
            actions.push(Action::Note(Note::Ready(id)));
        }
    }

    fn on_end(&mut self, id: Id, status: ExitStatus, now: Instant, actions: &mut Vec<Action>) {
        let Some(index) = self.children.iter().position(|child| child.id == id) else { return };
        let Member { condition, .. } = self.children.remove(index);
        self.note_code(id, condition, exit_code(status));
        let ended = Action::Note(Note::Ended(id, status));
        match condition {
            _ if self.is_stopping() => actions.push(ended),
            Condition::Starting { .. } => self.fail(Failure::Ended(id, status), now, actions),
            Condition::Trial { .. } => {
                self.fail(Failure::EndedOnTrial(id, status), now, actions);
            }
            Condition::Serving { since } => {
                if now.saturating_duration_since(since) >= LONG_SERVICE {
                    self.deaths = 0;
                }
                let next = match self.on_its_way() {
                    Some(next) => Next::OnItsWay(next),
                    None => Next::After(self.pause(now)),
                };
                actions.push(Action::Note(Note::Died { id, status, next }));
            }
            Condition::Leaving | Condition::Failing { .. } | Condition::Killed => {
                actions.push(ended);
            }
        }
        self.end_if_alone(actions);
    }

    /// Notes the exit code of a child for the exit code of the keeper. If another child has served,
    /// the code of a child that never did says nothing about the service.
    fn note_code(&mut self, id: Id, condition: Condition, code: u8) {
        let is_unready = match condition {
            Condition::Starting { .. } | Condition::Failing { .. } | Condition::Killed => true,
            // At a stop, a child on trial may already have clients.
            Condition::Trial { .. } => !self.is_stopping(),
            Condition::Serving { .. } | Condition::Leaving => false,
        };
        if is_unready && self.has_served {
            return;
        }
        if self.newest.is_none_or(|(newest, _)| newest < id) {
            self.newest = Some((id, code));
        }
        self.has_cut |= self.is_stopping() && code != 0;
    }

    fn on_tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if matches!(self.stage, Stage::Pausing { until } if until <= now) {
            self.start(now, actions);
        }
        let last_chance = self.last_chance(now);
        for index in 0..self.children.len() {
            let Member { id, condition } = self.children[index];
            match condition {
                Condition::Starting { until } if until <= now => {
                    self.children[index].condition = Condition::Failing { until: last_chance };
                    actions.push(Action::Term(id));
                    self.fail(Failure::Late(id), now, actions);
                }
                Condition::Failing { until } if until <= now => {
                    self.children[index].condition = Condition::Killed;
                    actions.push(Action::Kill(id));
                }
                Condition::Trial { until } if until <= now && !self.is_stopping() => {
                    self.take_over(id, now, actions);
                }
                // The stop came before the end of the trial, so the child does not take over.
                Condition::Trial { until } if until <= now => {
                    self.children[index].condition = Condition::Leaving;
                }
                _ => {}
            }
        }
    }

    /// Lets a child serve that has been ready for a while.
    fn take_over(&mut self, new: Id, now: Instant, actions: &mut Vec<Action>) {
        let old = self.serving();
        for child in &mut self.children {
            if Some(child.id) == old {
                child.condition = Condition::Leaving;
            } else if child.id == new {
                child.condition = Condition::Serving { since: now };
            }
        }
        actions.push(Action::TakeOver { new, old });
        if !self.has_served {
            self.has_served = true;
            actions.push(Action::FirstReady);
        }
        let was_restart = self.is_announced;
        self.end_restart(true, actions);
        if self.is_wanted {
            self.restart(now, actions);
        } else if was_restart {
            actions.push(Action::Resume(new));
        }
    }

    /// Deals with a child that has failed before it served, and that is told to stop or has ended.
    fn fail(&mut self, failure: Failure, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return self.end_if_alone(actions);
        }
        match self.serving() {
            Some(old) => {
                actions.push(Action::Note(Note::NoRestart { failure, old: Some(old) }));
                self.end_restart(false, actions);
            }
            None if self.has_served => {
                self.end_restart(false, actions);
                let pause = self.pause(now);
                actions.push(Action::Note(Note::NotRevived { failure, pause }));
            }
            None => return self.fail_first(failure, actions),
        }
        if self.is_wanted {
            self.restart(now, actions);
        }
    }

    /// Ends the keeper, because the first child has failed. A child that is late has to end before
    /// the keeper does.
    fn fail_first(&mut self, failure: Failure, actions: &mut Vec<Action>) {
        actions.push(Action::Note(Note::NoRestart { failure: failure.clone(), old: None }));
        self.end_restart(false, actions);
        match failure {
            Failure::NotStarted(reason) => {
                actions.push(Action::End(Ending::NotStarted(reason)));
            }
            Failure::Ended(_, status) | Failure::EndedOnTrial(_, status) => {
                actions.push(Action::End(Ending::Code(exit_code(status))));
            }
            Failure::Late(id) => self.stage = Stage::GivingUp(id),
        }
    }

    /// Starts a child because a restart was asked for.
    fn restart(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.is_wanted = false;
        self.is_announced = true;
        actions.push(Action::RestartBegins);
        self.start(now, actions);
    }

    fn start(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let id = self.next;
        self.next += 1;
        self.stage = Stage::Running;
        let condition = Condition::Starting { until: later(now, self.patience) };
        self.children.push(Member { id, condition });
        actions.push(Action::Start(id));
    }

    /// Announces the end of a restart, if its begin was announced.
    fn end_restart(&mut self, is_done: bool, actions: &mut Vec<Action>) {
        if std::mem::take(&mut self.is_announced) {
            actions.push(Action::RestartEnds { is_done });
        }
    }

    /// Begins a pause before the next start, and returns its length.
    fn pause(&mut self, now: Instant) -> Duration {
        let pause = LONGEST_PAUSE.min(FIRST_PAUSE * (1 << self.deaths.min(10)));
        self.deaths += 1;
        self.stage = Stage::Pausing { until: now + pause };
        pause
    }

    fn last_chance(&self, now: Instant) -> Instant {
        later(now, self.patience.max(LEAST_STOP_TIME))
    }

    fn end_if_alone(&self, actions: &mut Vec<Action>) {
        if !self.children.is_empty() {
            return;
        }
        match self.stage {
            Stage::Stopping => {
                let code = self.newest.map_or(0, |(_, code)| code);
                let code = if code == 0 { u8::from(self.has_cut) } else { code };
                actions.push(Action::End(Ending::Code(code)));
            }
            Stage::GivingUp(id) => actions.push(Action::End(Ending::Late(id))),
            Stage::Running | Stage::Pausing { .. } => {}
        }
    }

    /// Returns the child that is starting or on trial.
    fn on_its_way(&self) -> Option<Id> {
        self.find(|condition| {
            matches!(condition, Condition::Starting { .. } | Condition::Trial { .. })
        })
    }

    fn find(&self, is: impl Fn(Condition) -> bool) -> Option<Id> {
        self.children.iter().find(|child| is(child.condition)).map(|child| child.id)
    }
}

/// Returns the time that is `duration` later, or a time in the far future if that overflows.
pub(crate) fn later(now: Instant, duration: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    now + duration.min(NEVER)
}
