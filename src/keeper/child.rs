//! [`Child`]: a process that the keeper has started, and the messages that it sends.
//!
//! Invariant: only the first READY of a child counts. The sockets that a child brings become the
//! keeper's only when the keeper trusts the child. This file reads the messages, and does not
//! decide what follows from them.

use std::cell::RefCell;
use std::env;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_io::Timer;
use nix::sys::signal::{Signal, kill, killpg};
use rustix::process::Pid;

use crate::descriptors::{FIRST, inode};
use crate::error::{during, reason};
use crate::keeper::answers::Url;
use crate::keeper::notify::{ChildNotify, Words};
use crate::keeper::policy::Id;
use crate::keeper::program::Program;
use crate::keeper::resume::{RESUME, ServedState};
use crate::keeper::settings::{Keeper, ReadyWhen};
use crate::keeper::sockets::Sockets;
use crate::listen::passing::{FDS, NAMES, PID};
use crate::restart::channel::{Channel, KEEPER};
use crate::restart::message::{Brought, Message, Ready};
use crate::restart::notify::SOCKET;

/// A process that the keeper has started.
pub(crate) struct Child {
    pub(crate) id: Id,
    pub(crate) pid: Pid,
    pub(crate) started: Instant,
    /// The parent channel, until its other end is closed.
    pub(crate) channel: Option<Channel>,
    pub(crate) notify: Option<ChildNotify>,
    /// The listeners that the child has reported. Programs that do not know the channel report
    /// nothing.
    pub(crate) reported: Option<Vec<ServedState>>,
    /// The version of a keeper's state that the child's program can read, or 0.
    pub(crate) resumes: u16,
    /// The sockets that the child has brought, until the keeper trusts the child.
    pub(crate) brought: Vec<(u32, OwnedFd, Brought)>,
    /// Completes when the child counts as ready although it has not said so.
    shown: Option<Pin<Box<dyn Future<Output = ()>>>>,
    why_not_shown: Rc<RefCell<String>>,
    /// The keeper has reaped the child, so another process may have its id.
    has_ended: bool,
}

/// A process that was started, and whose messages the keeper does not read yet.
pub(crate) struct Started {
    pid: Pid,
    at: Instant,
    channel: OwnedFd,
    notify: OwnedFd,
}

impl Started {
    /// Starts the command of `keeper`, and passes the sockets.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel refuses the program. The error names the program, the
    /// directory, and the reason in an operator's words.
    pub(crate) fn new(keeper: &Keeper, sockets: &Sockets) -> io::Result<Self> {
        let step = "cannot start another process";
        let offer = Message::Offer(sockets.offer());
        let (channel, end) = Channel::pair_with(&offer).map_err(during(step))?;
        let (notify, name) = ChildNotify::bind().map_err(during(step))?;
        let mut words = keeper.command.iter().cloned();
        let mut program = Program::new(words.next().unwrap_or_default(), words);
        let mut fd = FIRST;
        for kept in sockets.all() {
            program.pass(kept.socket.try_clone().map_err(during(step))?.into());
            if kept.is_input {
                program.pass_input(kept.socket.try_clone().map_err(during(step))?.into());
            }
            fd += 1;
        }
        // systemd sets LISTEN_PIDFDID for the process that it has started, which is the keeper.
        for name in [FDS, NAMES, PID, "LISTEN_PIDFDID", "WATCHDOG_PID", RESUME] {
            program.unset(name);
        }
        for (name, _) in env::vars_os() {
            // A child may be a keeper, too, and the settings of this keeper are not for that one.
            if let (true, Some(name)) = (name.as_bytes().starts_with(SETTINGS), name.to_str()) {
                program.unset(name);
            }
        }
        if fd > FIRST {
            program.set(FDS, (fd - FIRST).to_string());
            program.set(NAMES, sockets.names());
            program.name_itself();
        }
        program.set(KEEPER, Channel::env_value(&end, fd).map_err(during(step))?);
        program.pass(end);
        program.set(SOCKET, name);

        let at = Instant::now();
        Ok(Self { pid: program.spawn()?, at, channel, notify })
    }
}

impl Child {
    /// Begins to read the messages of a process that was started.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if the keeper cannot wait for the process's sockets.
    /// The process is killed in that case.
    pub(crate) fn of(
        id: Id,
        started: Started,
        keeper: &Keeper,
        url: Option<&Url>,
    ) -> io::Result<Self> {
        let Started { pid, at, channel, notify } = started;
        let channel = Channel::of(channel);
        let heard = channel.and_then(|channel| Ok((channel, ChildNotify::of(notify)?)));
        let (channel, notify) = heard.inspect_err(|_| {
            let _ = killpg(nix_pid(pid), Signal::SIGKILL);
        })?;
        let why_not_shown = Rc::new(RefCell::new("it was not asked".to_owned()));
        let shown: Option<Pin<Box<dyn Future<Output = ()>>>> = match (&keeper.ready, url) {
            (ReadyWhen::After(time), _) => {
                let time = *time;
                Some(Box::pin(async move {
                    Timer::after(time).await;
                }))
            }
            (ReadyWhen::Answers(_), Some(url)) => {
                let (url, why_not) = (url.clone(), why_not_shown.clone());
                Some(Box::pin(async move {
                    url.answered(pid, |why| *why_not.borrow_mut() = why).await;
                }))
            }
            _ => None,
        };
        Ok(Self {
            id,
            pid,
            started: at,
            channel: Some(channel),
            notify: Some(notify),
            reported: None,
            resumes: 0,
            brought: Vec::new(),
            shown,
            why_not_shown,
            has_ended: false,
        })
    }

    /// Takes over a child of the program that this process was before.
    pub(crate) fn resume(id: Id, pid: Pid, reported: Option<Vec<ServedState>>) -> Self {
        Self {
            id,
            pid,
            started: Instant::now(),
            channel: None,
            notify: None,
            reported,
            resumes: 0,
            brought: Vec::new(),
            shown: None,
            why_not_shown: Rc::default(),
            has_ended: false,
        }
    }

    /// Waits until the child counts as ready by a time or by an answer. Always returns `Pending` if
    /// the child has to say that it is ready.
    pub(crate) fn poll_shown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(shown) = &mut self.shown else { return Poll::Pending };
        let polled = shown.as_mut().poll(cx);
        if polled.is_ready() {
            self.shown = None;
        }
        polled
    }

    /// Returns the reason why the last try has not shown that the child is ready.
    pub(crate) fn why_not_shown(&self) -> String {
        self.why_not_shown.borrow().clone()
    }

    /// Waits for a message from the parent channel. Returns `true` if the message is the child's
    /// first READY.
    pub(crate) fn poll_channel(&mut self, sockets: &Sockets, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(channel) = &self.channel else { return Poll::Pending };
        let Poll::Ready(received) = channel.poll_receive(cx) else { return Poll::Pending };
        Poll::Ready(match received {
            Ok(Some((Message::Ready(ready), descriptors))) if self.reported.is_none() => {
                self.report(ready, descriptors, sockets);
                true
            }
            Ok(Some(_)) => false,
            Ok(None) => {
                self.channel = None;
                false
            }
            Err(error) => {
                let pid = self.pid.as_raw_nonzero();
                log::warn!(
                    "keeper: process {pid} has sent a message that makes no sense: {}",
                    reason(&error)
                );
                if error.kind() != io::ErrorKind::InvalidData {
                    self.channel = None;
                }
                false
            }
        })
    }

    fn report(&mut self, ready: Ready, descriptors: Vec<OwnedFd>, sockets: &Sockets) {
        let mut descriptors = descriptors.into_iter();
        let mut reported = Vec::new();
        for served in ready.listeners {
            let number = served.number;
            let inode = match served.brought {
                None => sockets.inode(number),
                Some(brought) => descriptors.next().and_then(|socket| {
                    let inode = inode(&socket).ok();
                    self.brought.push((number, socket, brought));
                    inode
                }),
            };
            let adopts = served.adopts;
            reported.extend(inode.map(|inode| ServedState { number, inode, adopts }));
        }
        self.reported = Some(reported);
        self.resumes = ready.resumes;
    }

    /// Waits for a message from the child's NOTIFY_SOCKET.
    pub(crate) fn poll_notify(&mut self, cx: &mut Context<'_>) -> Poll<Words> {
        let Some(notify) = &self.notify else { return Poll::Pending };
        match notify.poll_receive(self.pid, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(words)) => Poll::Ready(words),
            Poll::Ready(Err(error)) => {
                log::warn!("keeper: cannot hear notifications: {}", reason(&error));
                self.notify = None;
                Poll::Ready(Words::default())
            }
        }
    }

    /// Notes that the keeper has reaped the child, and closes its channel and its NOTIFY_SOCKET.
    pub(crate) fn end(&mut self) {
        self.has_ended = true;
        self.channel = None;
        self.notify = None;
        // The rest of the group may be the program behind a shell that has ended, or workers of a
        // program that was killed.
        let _ = killpg(nix_pid(self.pid), Signal::SIGTERM);
    }

    /// Sends a signal to the child's first process.
    pub(crate) fn signal(&self, signal: async_signal::Signal) {
        if let (false, Ok(signal)) = (self.has_ended, Signal::try_from(signal as i32)) {
            let _ = kill(nix_pid(self.pid), signal);
        }
    }

    /// Kills the child and the processes that it has started.
    pub(crate) fn kill(&self) {
        if !self.has_ended {
            let _ = killpg(nix_pid(self.pid), Signal::SIGKILL);
        }
    }
}

/// The beginning of the names of the binary's settings for its keeper.
const SETTINGS: &[u8] = b"SMOL_GRACEFUL_KEEP_";

fn nix_pid(pid: Pid) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get())
}
