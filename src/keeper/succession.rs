//! Lets a keeper become the new version of its own program after a restart, by `exec`.
//!
//! Invariant: no signal, child or socket is lost. Every signal is blocked from before the last look
//! at the signals until the new program handles them, and the kernel keeps the signals that come
//! meanwhile. If the `exec` fails, everything is as before.

use std::collections::VecDeque;
use std::env;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::pin::Pin;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_lite::Stream;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::execve;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Pid;
use socket2::Socket;

use crate::address::Address;
use crate::descriptors::{inode, take_socket};
use crate::error::{during, reason};
use crate::keeper::child::Child;
use crate::keeper::exit::KeeperExit;
use crate::keeper::manager::Manager;
use crate::keeper::notify::ChildNotify;
use crate::keeper::pid_lock::PidLock;
use crate::keeper::policy::{Condition, Member, Policy, Remembered, later};
use crate::keeper::program::Program;
use crate::keeper::resume::{ChildStage, ChildState, Held, RESUME, SocketState, State, VERSION};
use crate::keeper::running::RunningKeeper;
use crate::keeper::settings::Keeper;
use crate::keeper::sockets::{KeptSocket, Sockets};
use crate::keeper::start::{self, block_all};
use crate::process::Process;
use crate::restart::channel::Channel;
use crate::restart::parent::{Parent, set_resumes};

/// Returns `true` if a keeper has started this process. Notes that this program can be its own
/// keeper.
///
/// # Errors
///
/// Returns the operating system's error.
pub(crate) fn is_child() -> io::Result<bool> {
    set_resumes(VERSION);
    // The next call may start async-io's thread, which must not take a signal.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let is_child = Parent::of_this_process().is_some();
    before.thread_set_mask()?;
    Ok(is_child)
}

/// Keeps this program, from the beginning or with the state of the program before.
///
/// # Errors
///
/// Returns the errors of [`Keeper::run`].
pub(crate) fn keep(process: Process) -> io::Result<KeeperExit> {
    let (name, arguments) = own_command()?;
    let command = [name].into_iter().chain(arguments);
    let mut keeper = Keeper::new(command).patience(process.patience);
    keeper = keeper.restart_on(process.restart).signals(process.signals);
    keeper.pid_file = process.pid_file;
    keeper.is_own = true;
    match state() {
        Some(state) => resume(keeper, state),
        None => start::run(keeper),
    }
}

/// Returns the name by which this program was started, and its arguments.
fn own_command() -> io::Result<(OsString, Vec<OsString>)> {
    let mut words = env::args_os();
    // `current_exe` would be the file that runs now, even if another file has its name by now.
    let name = match words.next().filter(|word| !word.is_empty()) {
        Some(word) => word,
        None => env::current_exe()?.into_os_string(),
    };
    Ok((name, words.collect()))
}

/// Returns the state of the program that this process was before, if there was one. A second call
/// returns `None`, because the descriptors are taken by then.
fn state() -> Option<State> {
    static READ: AtomicBool = AtomicBool::new(false);
    let text = env::var(RESUME).ok().filter(|_| !READ.swap(true, Ordering::Relaxed))?;
    State::read(&text, process::id())
}

/// Takes over the work of the program that this process was before.
fn resume(mut keeper: Keeper, state: State) -> io::Result<KeeperExit> {
    let url = start::check(&mut keeper)?;
    let signals = start::hear(&keeper, block_all()?)?;
    let now = Instant::now();
    let pid_lock = match state.lock {
        Some((held, path)) => Some(PidLock::resume(take(held)?, path)),
        None => None,
    };
    let kept = state.sockets.into_iter().map(kept_socket).collect::<io::Result<_>>()?;
    let members = state.children.iter();
    let members =
        members.map(|child| Member { id: child.id, condition: condition(child.stage, now) });
    let remembered = Remembered { children: members.collect(), next: state.next };
    let policy = Policy::resume(keeper.patience, remembered);
    let children = state.children.into_iter().map(child).collect::<io::Result<Vec<_>>>()?;
    let newest = policy.newest().and_then(|id| children.iter().find(|child| child.id == id));
    if let Some(newest) = newest {
        let pid = newest.pid.as_raw_nonzero();
        log::info!("keeper: continues with process {pid} as the new program");
    }
    let keeper = RunningKeeper {
        settings: keeper,
        url,
        policy,
        children,
        sockets: Sockets::resume(kept),
        manager: Manager::from_env(),
        pid_lock,
        first: None,
        signals,
        events: VecDeque::new(),
        failure: String::new(),
        is_outdated: false,
    };
    keeper.run(Vec::new())
}

/// Takes over a listening socket of the program before.
fn kept_socket(state: SocketState) -> io::Result<KeptSocket> {
    let SocketState { held, number, is_own, is_brought, is_input, name, path } = state;
    let socket = Socket::from(take(held)?);
    let address = Address::of(&socket).map_err(during("a socket of the program before"))?;
    Ok(KeptSocket { number, socket, address, is_own, is_brought, path, name, is_input })
}

/// Takes over a child of the program before, with the sockets through which it speaks.
fn child(state: ChildState) -> io::Result<Child> {
    let ChildState { id, pid, stage: _, channel, notify, reported } = state;
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(lost)?;
    let mut child = Child::resume(id, pid, reported);
    child.channel = channel.map(|held| take(held).and_then(Channel::of)).transpose()?;
    child.notify = notify.map(|held| take(held).and_then(ChildNotify::of)).transpose()?;
    Ok(child)
}

/// Takes a descriptor of the program before.
fn take(held: Held) -> io::Result<OwnedFd> {
    take_socket(held.fd, held.inode).ok_or_else(lost)
}

fn lost() -> io::Error {
    io::Error::other("a descriptor of the program before is gone")
}

/// Returns the condition of a child in the policy.
fn condition(stage: ChildStage, now: Instant) -> Condition {
    match stage {
        ChildStage::Serving { for_ms } => {
            let since = now.checked_sub(Duration::from_millis(for_ms)).unwrap_or(now);
            Condition::Serving { since }
        }
        ChildStage::Leaving => Condition::Leaving,
        ChildStage::Failing { killed_in_ms } => {
            Condition::Failing { until: later(now, Duration::from_millis(killed_in_ms)) }
        }
        ChildStage::Killed => Condition::Killed,
    }
}

/// Returns the stage of a child for the new program, or `None` if the child is starting or on
/// trial.
fn stage(condition: Condition, now: Instant) -> Option<ChildStage> {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    match condition {
        Condition::Serving { since } => {
            Some(ChildStage::Serving { for_ms: milliseconds(now.duration_since(since)) })
        }
        Condition::Leaving => Some(ChildStage::Leaving),
        Condition::Failing { until } => {
            Some(ChildStage::Failing { killed_in_ms: milliseconds(until.duration_since(now)) })
        }
        Condition::Killed => Some(ChildStage::Killed),
        Condition::Starting { .. } | Condition::Trial { .. } => None,
    }
}

impl RunningKeeper {
    /// Becomes the program that now has this program's name. Returns if that fails, or if an event
    /// has come first.
    pub(crate) fn become_new_program(&mut self) {
        let before = match SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK) {
            Ok(before) => before,
            Err(error) => return log::error!("keeper: the old program goes on: {error}"),
        };
        // Only this thread takes signals, so no signal is taken after this look.
        let cx = &mut Context::from_waker(Waker::noop());
        if let Poll::Ready(Some(received)) = Pin::new(&mut self.signals).poll_next(cx) {
            let event = self.on_signal(received.signal);
            self.events.extend(event);
        } else {
            self.is_outdated = false;
            if let Err(error) = self.exec() {
                let error = reason(&error);
                log::error!("keeper: cannot become the new program: {error}; the old one goes on");
            }
        }
        let _ = before.thread_set_mask();
    }

    /// Runs the new program in this process. Returns only if that fails, or if a child is starting
    /// or a stop has begun.
    fn exec(&self) -> io::Result<()> {
        let Some(state) = self.state()? else { return Ok(()) };
        let (name, arguments) = own_command()?;
        let program = Program::new(name.clone(), []);
        let missing = || program.refused(&Errno::ENOENT.into());
        let file = program.file().ok_or_else(missing)?;
        let text = |text: OsString| CString::new(text.into_vec());
        let words = [name].into_iter().chain(arguments).map(text).collect::<Result<Vec<_>, _>>()?;
        let others = env::vars_os().filter(|(name, _)| name != RESUME);
        let own = (RESUME.into(), state.to_string().into());
        let variables = others.chain([own]).map(|(mut name, value): (OsString, OsString)| {
            name.push("=");
            name.push(value);
            text(name)
        });
        let variables = variables.collect::<Result<Vec<_>, _>>()?;
        let file = CString::new(file.as_os_str().as_bytes())?;
        let descriptors = self.descriptors();
        for descriptor in &descriptors {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        let Err(errno) = execve(&file, &words, &variables);
        for descriptor in descriptors {
            fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
        }
        Err(program.refused(&errno.into()))
    }

    /// Returns the state for the new program, or `None` if a child is starting or a stop has begun.
    fn state(&self) -> io::Result<Option<State>> {
        let Some(Remembered { children: members, next }) = self.policy.remember() else {
            return Ok(None);
        };
        let now = Instant::now();
        let mut children = Vec::new();
        for Member { id, condition } in members {
            let Some(child) = self.child(id) else { continue };
            let Some(stage) = stage(condition, now) else { return Ok(None) };
            children.push(ChildState {
                id,
                pid: child.pid.as_raw_nonzero().get().unsigned_abs(),
                stage,
                channel: child.channel.as_ref().map(held).transpose()?,
                notify: child.notify.as_ref().map(held).transpose()?,
                reported: child.reported.clone(),
            });
        }
        let sockets = self.sockets.all().iter().map(|kept| {
            Ok(SocketState {
                held: held(kept)?,
                number: kept.number,
                is_own: kept.is_own,
                is_brought: kept.is_brought,
                is_input: kept.is_input,
                name: kept.name.clone(),
                path: kept.path.clone(),
            })
        });
        let sockets = sockets.collect::<io::Result<_>>()?;
        let lock = self.pid_lock.as_ref();
        let lock = lock.map(|lock| io::Result::Ok((held(lock)?, lock.path().to_owned())));
        let lock = lock.transpose()?;
        Ok(Some(State { pid: process::id(), next, lock, sockets, children }))
    }

    /// Returns the descriptors that the new program needs.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let sockets = self.sockets.all().iter().map(AsFd::as_fd);
        let channels = self.children.iter().filter_map(|child| child.channel.as_ref());
        let notify = self.children.iter().filter_map(|child| child.notify.as_ref());
        let lock = self.pid_lock.iter().map(AsFd::as_fd);
        let channels = channels.map(AsFd::as_fd);
        sockets.chain(channels).chain(notify.map(AsFd::as_fd)).chain(lock).collect()
    }
}

fn held(descriptor: impl AsFd) -> io::Result<Held> {
    let descriptor = descriptor.as_fd();
    Ok(Held { fd: descriptor.as_raw_fd(), inode: inode(descriptor)? })
}
