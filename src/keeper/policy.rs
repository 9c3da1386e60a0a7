//! [`Policy`]: what a keeper has to do when something happens to it or to one of its children.
//!
//! Pure: the caller brings the time and what has happened, and carries out the [`Action`]s in their
//! order. Invariant: at most one child is on its way to serve, and a child that serves is told to
//! leave only when another one serves. Starts nothing, and knows no process ids.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use async_signal::Signal;

use crate::keeper::program::exit_code;

pub(crate) use action::{Action, Ending, Event, Failure, Id, Next, Note};

mod action;
#[cfg(test)]
mod table;

/// How long a child must stay alive after it is ready, until the keeper trusts it.
pub(crate) const TRIAL: Duration = Duration::from_millis(50);

/// How long a child that has failed may take to stop, at least.
const LAST_CHANCE: Duration = Duration::from_secs(5);

/// The shortest and the longest pause between the death of the only child and the next start.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A child that has served for so long ends a series of deaths.
const SERVED_WELL: Duration = Duration::from_secs(1);

/// How far a child has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It was started, and has to be ready by then.
    Starting { until: Instant },
    /// It is ready, and the keeper trusts it if it is still alive then.
    Trial { until: Instant },
    /// It serves.
    Serving { since: Instant },
    /// It finishes what it has, because a successor serves.
    Leaving,
    /// It was told to stop before it was ready. It is killed then, or was killed already (`None`).
    Failing { until: Option<Instant> },
}

/// A child that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: Id,
    pub(crate) condition: Condition,
}

/// The state of a keeper as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// A child serves, or is on its way to serve.
    Running,
    /// No child serves or is on its way. Another is started then.
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
    /// How many children in a row have died soon.
    deaths: u32,
    /// A restart was asked for during a restart.
    is_wanted: bool,
    /// A restart was announced, and its end was not.
    is_announced: bool,
    /// The exit code of the newest child that counts.
    newest: Option<(Id, u8)>,
    /// A child that was alive at the stop has ended with something else than 0.
    has_cut: bool,
}

/// The part of the state that outlives the program: its successor in this process goes on with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) children: Vec<Member>,
    pub(crate) next: Id,
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

    /// Goes on where [`Policy::remember`] has ended.
    pub(crate) fn resume(patience: Duration, remembered: Remembered) -> Self {
        let Remembered { children, next } = remembered;
        Self { children, next, has_served: true, ..Self::new(patience) }
    }

    /// Returns what has to be remembered if no child is on its way and no stop is under way.
    pub(crate) fn remember(&self) -> Option<Remembered> {
        let is_settled = self.stage == Stage::Running && self.on_its_way().is_none();
        let children = self.children.clone();
        (is_settled && self.serving().is_some()).then_some(Remembered { children, next: self.next })
    }

    /// Returns what to do at first.
    pub(crate) fn begin(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.start(now, &mut actions);
        actions
    }

    /// Returns the time of the next [`Event::Tick`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let children = self.children.iter().filter_map(|child| match child.condition {
            Condition::Starting { until } | Condition::Trial { until } => Some(until),
            Condition::Failing { until } => until,
            Condition::Serving { .. } | Condition::Leaving => None,
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
        let has_failed = |child: &Member| matches!(child.condition, Condition::Failing { .. });
        all.find(|child| !has_failed(child)).map(|child| child.id)
    }

    /// Returns `true` if a stop signal has come.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stage == Stage::Stopping
    }

    /// Takes in what has happened, and returns what to do.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Restart(signal) => self.on_restart(signal, now, &mut actions),
            Event::Stop(signal) => self.on_stop(signal, now, &mut actions),
            Event::NotStarted(id, reason) => {
                self.children.retain(|child| child.id != id);
                self.fail(Failure::NotStarted(reason), now, &mut actions);
            }
            Event::Ready(id) => {
                let until = now + TRIAL;
                let is_new = self.change(id, |condition| match condition {
                    Condition::Starting { .. } => Some(Condition::Trial { until }),
                    _ => None,
                });
                if is_new {
                    actions.push(Action::Note(Note::Ready(id)));
                }
            }
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
        let until = Some(self.last_chance(now));
        for child in &mut self.children {
            match child.condition {
                // The child was told to stop before, and a second signal would cut its requests.
                Condition::Failing { .. } if is_first => continue,
                Condition::Starting { .. } => {
                    child.condition = Condition::Failing { until };
                }
                _ => {}
            }
            actions.push(Action::Forward(child.id, signal));
        }
        self.end_if_alone(actions);
    }

    fn on_end(&mut self, id: Id, status: ExitStatus, now: Instant, actions: &mut Vec<Action>) {
        let Some(index) = self.children.iter().position(|child| child.id == id) else { return };
        let Member { condition, .. } = self.children.remove(index);
        let is_unready = match condition {
            Condition::Starting { .. } | Condition::Failing { .. } => true,
            // At a stop it may have had clients already.
            Condition::Trial { .. } => !self.is_stopping(),
            Condition::Serving { .. } | Condition::Leaving => false,
        };
        let code = exit_code(status);
        // A child that never served says nothing about the service, if another one does.
        if !(is_unready && self.has_served) {
            if self.newest.is_none_or(|(newest, _)| newest < id) {
                self.newest = Some((id, code));
            }
            self.has_cut |= self.is_stopping() && code != 0;
        }
        let ended = Action::Note(Note::Ended(id, status));
        match condition {
            _ if self.is_stopping() => actions.push(ended),
            Condition::Starting { .. } => self.fail(Failure::Ended(id, status), now, actions),
            Condition::Trial { .. } => {
                self.fail(Failure::EndedOnTrial(id, status), now, actions);
            }
            Condition::Serving { since } => {
                if now.saturating_duration_since(since) >= SERVED_WELL {
                    self.deaths = 0;
                }
                let next = match self.on_its_way() {
                    Some(next) => Next::OnItsWay(next),
                    None => Next::After(self.pause(now)),
                };
                actions.push(Action::Note(Note::Died { id, status, next }));
            }
            Condition::Leaving | Condition::Failing { .. } => actions.push(ended),
        }
        self.end_if_alone(actions);
    }

    fn on_tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if matches!(self.stage, Stage::Pausing { until } if until <= now) {
            self.start(now, actions);
        }
        let last_chance = Some(self.last_chance(now));
        for index in 0..self.children.len() {
            let Member { id, condition } = self.children[index];
            match condition {
                Condition::Starting { until } if until <= now => {
                    self.children[index].condition = Condition::Failing { until: last_chance };
                    actions.push(Action::Term(id));
                    self.fail(Failure::Late(id), now, actions);
                }
                Condition::Failing { until: Some(until) } if until <= now => {
                    self.children[index].condition = Condition::Failing { until: None };
                    actions.push(Action::Kill(id));
                }
                Condition::Trial { until } if until <= now && !self.is_stopping() => {
                    self.take_over(id, now, actions);
                }
                // A stop has come first, so nobody is trusted any more.
                Condition::Trial { until } if until <= now => {
                    self.children[index].condition = Condition::Leaving;
                }
                _ => {}
            }
        }
    }

    /// Trusts a child that has been ready for a while.
    fn take_over(&mut self, new: Id, now: Instant, actions: &mut Vec<Action>) {
        let old = self.serving();
        if let Some(old) = old {
            self.change(old, |_| Some(Condition::Leaving));
        }
        self.change(new, |_| Some(Condition::Serving { since: now }));
        actions.push(Action::TakeOver { new, old });
        if !self.has_served {
            self.has_served = true;
            actions.push(Action::FirstReady);
        }
        let was_restart = self.is_announced;
        self.over(true, actions);
        if self.is_wanted {
            self.restart(now, actions);
        } else if was_restart {
            actions.push(Action::Resume(new));
        }
    }

    /// Deals with a child that did not come to serve and is told to stop, or has ended.
    fn fail(&mut self, failure: Failure, now: Instant, actions: &mut Vec<Action>) {
        if self.is_stopping() {
            return self.end_if_alone(actions);
        }
        let old = self.serving();
        if old.is_some() || !self.has_served {
            actions.push(Action::Note(Note::NoRestart { failure: failure.clone(), old }));
        }
        self.over(false, actions);
        if old.is_some() {
            if self.is_wanted {
                self.restart(now, actions);
            }
        } else if self.has_served {
            let is_wanted = self.is_wanted;
            let pause = self.pause(now);
            actions.push(Action::Note(Note::NotRevived { failure, pause }));
            if is_wanted {
                self.restart(now, actions);
            }
        } else {
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

    /// Announces the end of a restart whose begin was announced.
    fn over(&mut self, is_done: bool, actions: &mut Vec<Action>) {
        if std::mem::take(&mut self.is_announced) {
            actions.push(Action::RestartEnds { is_done });
        }
    }

    /// Waits until another child may be started, and returns for how long.
    fn pause(&mut self, now: Instant) -> Duration {
        let pause = PAUSE.1.min(PAUSE.0 * (1 << self.deaths.min(10)));
        self.deaths += 1;
        self.stage = Stage::Pausing { until: now + pause };
        pause
    }

    fn last_chance(&self, now: Instant) -> Instant {
        later(now, self.patience.max(LAST_CHANCE))
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

    /// Returns the child that is on its way to serve.
    fn on_its_way(&self) -> Option<Id> {
        self.find(|condition| {
            matches!(condition, Condition::Starting { .. } | Condition::Trial { .. })
        })
    }

    fn find(&self, is: impl Fn(Condition) -> bool) -> Option<Id> {
        self.children.iter().find(|child| is(child.condition)).map(|child| child.id)
    }

    /// Changes a child's condition, and returns `true` if it was changed.
    fn change(&mut self, id: Id, change: impl Fn(Condition) -> Option<Condition>) -> bool {
        let child = self.children.iter_mut().find(|child| child.id == id);
        let Some((child, condition)) =
            child.and_then(|child| change(child.condition).map(|condition| (child, condition)))
        else {
            return false;
        };
        child.condition = condition;
        true
    }
}

/// Returns a time that is so much later, or as good as never.
fn later(now: Instant, duration: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    now + duration.min(NEVER)
}
