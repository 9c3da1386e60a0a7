//! [`run`]: checks the settings of a keeper, and lets it begin.
//!
//! Invariant: no signal that comes after the first bind is lost or kills the process (rule S16),
//! and only the keeper's thread takes signals, so that none is lost when the program replaces
//! itself.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use async_signal::Signal;
use nix::sys::signal::{SigSet, SigmaskHow};

use crate::error::{during, invalid};
use crate::keeper::answers::Url;
use crate::keeper::child::Started;
use crate::keeper::exit::KeeperExit;
use crate::keeper::manager::Manager;
use crate::keeper::pid_lock::PidLock;
use crate::keeper::policy::Policy;
use crate::keeper::running::{RunningKeeper, SignalStream};
use crate::keeper::settings::{Keeper, ReadyWhen};
use crate::keeper::sockets::Sockets;
use crate::stop::signals::{self, is_ignored, name};
use crate::threads;

/// Runs a keeper to its end.
///
/// # Errors
///
/// Returns the errors of [`Keeper::run`].
pub(crate) fn run(mut keeper: Keeper) -> io::Result<KeeperExit> {
    let url = check(&mut keeper)?;
    let before = block_all()?;
    let pid_lock = keeper.pid_file.as_deref().map(PidLock::at).transpose()?;
    let sockets = Sockets::new(&keeper.listen)?;
    // While SIGCHLD is ignored, the kernel itself takes the exit status of every child.
    let early = is_ignored(Signal::Child).then(|| hear(&keeper, before)).transpose()?;
    // The first child starts before the keeper has its threads, because clients wait for the child.
    // If the keeper then fails, the keeper ends, and the kernel sends the child TERM.
    let started = Started::new(&keeper, &sockets);
    let signals = early.map_or_else(|| hear(&keeper, before), Ok)?;
    let mut policy = Policy::new(keeper.patience);
    let first = policy.begin(Instant::now());
    let keeper = RunningKeeper {
        settings: keeper,
        url,
        policy,
        children: Vec::new(),
        sockets,
        manager: Manager::from_env(),
        pid_lock,
        first: Some(started),
        signals,
        events: VecDeque::new(),
        failure: String::new(),
        is_outdated: false,
    };
    keeper.run(first)
}

/// Checks the settings, and removes the restart signals from the stop signals. Returns the URL to
/// ask, if there is one.
///
/// # Errors
///
/// Returns [`io::ErrorKind::InvalidInput`] and one line with the reason.
pub(crate) fn check(keeper: &mut Keeper) -> io::Result<Option<Url>> {
    if keeper.command.first().is_none_or(|name| name.is_empty()) {
        return Err(invalid("there is no command to keep"));
    }
    if let Some(signal) = keeper.restart_on.iter().find(|signal| !MAY_RESTART.contains(signal)) {
        return Err(invalid(format!("{} cannot restart a program", name(*signal))));
    }
    let Keeper { signals, restart_on, .. } = keeper;
    signals.retain(|signal| !restart_on.contains(signal));
    match &keeper.ready {
        ReadyWhen::After(time) if *time >= keeper.patience => {
            let patience = keeper.patience;
            Err(invalid(format!(
                "a process that is ready after {time:?} is never ready within the patience of \
                 {patience:?}"
            )))
        }
        ReadyWhen::Answers(url) => url.parse().map(Some),
        ReadyWhen::After(_) | ReadyWhen::Notified => Ok(None),
    }
}

/// The signals that may restart a program, because they have no other meaning for a keeper.
const MAY_RESTART: [Signal; 8] = [
    Signal::Hup,
    Signal::Int,
    Signal::Quit,
    Signal::Term,
    Signal::Usr1,
    Signal::Usr2,
    Signal::Winch,
    Signal::Alarm,
];

/// The signals that the keeper passes to the child that serves, unless they stop or restart the
/// program.
const PASSED_ON: [Signal; 11] = [
    Signal::Hup,
    Signal::Int,
    Signal::Quit,
    Signal::Usr1,
    Signal::Usr2,
    Signal::Winch,
    Signal::Alarm,
    Signal::Cont,
    Signal::Ttin,
    Signal::Ttou,
    Signal::Io,
];

/// Blocks every signal in this thread and in the threads that it starts. Returns the mask from
/// before. Signals that come meanwhile are pending, so none is lost.
///
/// # Errors
///
/// Returns the operating system's error.
pub(crate) fn block_all() -> io::Result<SigSet> {
    Ok(SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?)
}

/// Handles the signals of a keeper from now on. All of them are blocked here, so async-io's thread
/// inherits the mask and takes none. `before` has the signals that were blocked at the start.
///
/// # Errors
///
/// Returns the operating system's error.
pub(crate) fn hear(keeper: &Keeper, before: SigSet) -> io::Result<SignalStream> {
    let Keeper { signals: stop, restart_on, .. } = keeper;
    let is_passed = |signal: &Signal| {
        !stop.contains(signal) && !restart_on.contains(signal) && !is_ignored(*signal)
    };
    let passed_on = PASSED_ON.into_iter().filter(is_passed);
    let others: Vec<_> =
        passed_on.chain(restart_on.iter().copied()).chain([Signal::Child]).collect();
    let stream = threads::check().and_then(|()| signals::stream(stop, &others));
    // A program that has replaced the keeper's begins with every signal blocked.
    let mut mask = if is_everything(before) { SigSet::empty() } else { before };
    for signal in stop.iter().chain(&others) {
        if let Ok(signal) = (*signal as i32).try_into() {
            mask.remove(signal);
        }
    }
    mask.thread_set_mask()?;
    Ok(Box::new(stream.map_err(during("cannot handle signals"))?))
}

/// Returns `true` if every signal is blocked.
fn is_everything(mask: SigSet) -> bool {
    [Signal::Hup, Signal::Child, Signal::Winch, Signal::Prof, Signal::Tstp]
        .iter()
        .all(|signal| (*signal as i32).try_into().is_ok_and(|signal| mask.contains(signal)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn settings_that_make_no_sense_are_named() {
        let keeper = || Keeper::new(["true"]);
        for (mut keeper, line) in [
            (Keeper::new(Vec::<String>::new()), "there is no command to keep"),
            (Keeper::new([""]), "there is no command to keep"),
            (keeper().restart_on([Signal::Kill]), "SIGKILL cannot restart a program"),
            (keeper().restart_on([Signal::Child]), "SIGCHILD cannot restart a program"),
            (
                keeper().ready(ReadyWhen::After(Duration::from_secs(30))),
                "a process that is ready after 30s is never ready within the patience of 30s",
            ),
            (
                keeper().ready(ReadyWhen::Answers("https://127.0.0.1/".into())),
                "`https://127.0.0.1/` cannot be asked: write an address such as \
                 `http://127.0.0.1:8082/readyz`",
            ),
        ] {
            let error = check(&mut keeper).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert_eq!(error.to_string(), line);
        }
    }

    #[test]
    fn a_signal_that_restarts_does_not_stop() {
        let mut keeper = Keeper::new(["true"]).restart_on([Signal::Hup]);
        check(&mut keeper).unwrap();
        assert_eq!(keeper.signals, [Signal::Int, Signal::Term, Signal::Quit]);
    }
}
