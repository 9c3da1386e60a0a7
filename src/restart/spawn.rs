//! [`Program`]: a program that is started with sockets from descriptor 3 on. [`Child`]: its
//! process.
//!
//! Invariant: the kernel decides what a program is. `posix_spawn` does not fall back to a shell,
//! whereas `execvp` (and so the standard library, where it has to fork) lets `/bin/sh` run whatever
//! the kernel refuses. The child gets the descriptors that are passed and those that every child of
//! this process inherits, and no others. Does not know what the program is for.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::iter;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use async_io::Timer;
use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SIGPIPE, SigSet};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::descriptors::FIRST;
use crate::error::during;

/// A program that is to be started in this process's directory, with `/dev/null` as its standard
/// input.
pub(crate) struct Program {
    /// The program's first argument. Looked up in PATH if it has no slash.
    name: OsString,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    descriptors: Vec<OwnedFd>,
}

impl Program {
    /// Returns a program with this process's environment.
    pub(crate) fn new(name: OsString, arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            name,
            arguments: arguments.into_iter().collect(),
            environment: env::vars_os().collect(),
            descriptors: Vec::new(),
        }
    }

    /// Sets a variable of the environment.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.insert(name.into(), value.into());
    }

    /// Removes a variable from the environment.
    pub(crate) fn unset(&mut self, name: &str) {
        self.environment.remove(OsStr::new(name));
    }

    /// Passes one more descriptor: the first is 3 in the child, the second 4.
    pub(crate) fn pass(&mut self, descriptor: OwnedFd) {
        self.descriptors.push(descriptor);
    }

    /// Starts the program.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel refuses the program. It names the program, the directory, and
    /// the reason in an operator's words.
    pub(crate) fn spawn(mut self) -> io::Result<Child> {
        let descriptors = mem::take(&mut self.descriptors);
        let input = File::open("/dev/null").map_err(during("cannot open /dev/null"))?;
        self.spawn_with(&input, descriptors).map_err(|errno| {
            let name = Path::new(&self.name).display();
            let here = env::current_dir()
                .map_or("a directory that is gone".into(), |dir| dir.display().to_string());
            let message = format!("cannot start {name} in {here}: {}", self.reason(errno));
            io::Error::new(io::Error::from(errno).kind(), message)
        })
    }

    fn spawn_with(&self, input: &File, descriptors: Vec<OwnedFd>) -> Result<Child, Errno> {
        let mut actions = PosixSpawnFileActions::init()?;
        // The first action, as its own number may be one of those that the others overwrite.
        actions.add_dup2(input.as_raw_fd(), 0)?;
        // The copies are above all numbers in the child, so that no action overwrites what a later
        // one needs.
        let numbers =
            FIRST..FIRST + RawFd::try_from(descriptors.len()).map_err(|_| Errno::EMFILE)?;
        let raise = |descriptor: OwnedFd| fcntl_dupfd_cloexec(descriptor, numbers.end);
        let raised = descriptors.into_iter().map(raise).collect::<Result<Vec<_>, _>>();
        let raised = raised.map_err(|error| Errno::from_raw(error.raw_os_error()))?;
        for (descriptor, number) in raised.iter().zip(numbers.clone()) {
            actions.add_dup2(descriptor.as_raw_fd(), number)?;
        }

        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
        )?;
        // The standard library does the same. Signals that this process ignores stay ignored,
        // because the program that has started it (`nohup`) wants that.
        attributes.set_sigmask(&SigSet::empty())?;
        attributes.set_sigdefault(&iter::once(SIGPIPE).collect())?;

        let words = iter::once(&self.name).chain(&self.arguments).map(|word| c_string(word));
        let words = words.collect::<Result<Vec<_>, _>>()?;
        let variables = self.environment.iter().map(|(name, value)| {
            let mut variable = name.clone();
            variable.push("=");
            variable.push(value);
            c_string(&variable)
        });
        let variables = variables.collect::<Result<Vec<_>, _>>()?;
        let pid = posix_spawnp(&words[0], &actions, &attributes, &words, &variables)?;
        Ok(Child { pid: Pid::from_raw(pid.as_raw()).ok_or(Errno::ECHILD)?, end: None })
    }

    /// Says why the kernel has refused the program.
    fn reason(&self, errno: Errno) -> &'static str {
        match (errno, self.file()) {
            (errno, _) if NOT_A_PROGRAM.contains(&errno) => {
                "it is not a program that this machine can run"
            }
            (Errno::EACCES, Some(file)) if file.is_dir() => "it is a directory, not a program",
            (Errno::EACCES, Some(file)) if !is_executable(&file) => "it is not executable",
            (Errno::EACCES, _) => {
                "it is not executable for this user, names an interpreter that is not executable, \
                 or lies where nothing may be executed (noexec)"
            }
            (Errno::ENOENT | Errno::ENOTDIR, Some(_)) => {
                "no such file as the interpreter or the loader that it names"
            }
            (Errno::ENOENT | Errno::ENOTDIR, None) if self.is_looked_up() => {
                "no such file in any directory of PATH"
            }
            (Errno::ENOENT | Errno::ENOTDIR, None) => "no such file",
            (Errno::ETXTBSY, _) => "it is still being written",
            (Errno::EIO, _) => "it cannot be read whole",
            (Errno::E2BIG, _) => "its arguments and its environment are too long for the kernel",
            (errno, _) => errno.desc(),
        }
    }

    /// Returns `true` if the program is looked up in PATH.
    fn is_looked_up(&self) -> bool {
        !self.name.as_bytes().contains(&b'/')
    }

    /// Returns the program's file, if there is one.
    fn file(&self) -> Option<PathBuf> {
        let directories = if self.is_looked_up() { env::var_os("PATH")? } else { OsString::new() };
        let mut files = env::split_paths(&directories).map(|directory| directory.join(&self.name));
        // For a name with a slash PATH is empty here: one directory, the current one.
        files.find(|file| file.exists())
    }
}

/// The kernel's errors for a file that it cannot run, or whose loader it cannot run.
#[cfg(any(target_os = "linux", target_os = "android"))]
const NOT_A_PROGRAM: &[Errno] = &[Errno::ENOEXEC, Errno::ELIBBAD];
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const NOT_A_PROGRAM: &[Errno] = &[Errno::ENOEXEC];

fn c_string(text: &OsStr) -> Result<CString, Errno> {
    // The system has no word or variable with a zero byte in it.
    CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL)
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
}

/// A process that this process has started. Dropping the value does not end the process.
pub(crate) struct Child {
    pid: Pid,
    end: Option<String>,
}

impl Child {
    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Returns in words how the process has ended, or `None` while it runs.
    pub(crate) fn try_wait(&mut self) -> Option<String> {
        if self.end.is_none() {
            self.end = match waitpid(Some(self.pid), WaitOptions::NOHANG) {
                Ok(None) | Err(rustix::io::Errno::INTR) => None,
                Ok(Some((_, status))) => Some(ExitStatus::from_raw(status.as_raw()).to_string()),
                // Other code has asked for the status, or the kernel has kept none, because SIGCHLD
                // is ignored.
                Err(_) => Some("exit status unknown".into()),
            };
        }
        self.end.clone()
    }

    /// Waits for the end. Asks now and then, because that needs neither a descriptor nor a thread,
    /// of which there may be none left.
    pub(crate) async fn ended(&mut self) -> String {
        loop {
            if let Some(end) = self.try_wait() {
                return end;
            }
            Timer::after(Duration::from_millis(10)).await;
        }
    }

    /// Sends a signal, unless the process is known to have ended: another process may have its id.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.end.is_none() {
            let _ = kill_process(self.pid, signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;
    use nix::sys::signal::SIGUSR1;

    #[test]
    fn a_child_begins_with_no_signal_blocked() {
        let file = env::temp_dir().join(format!("sg-spawn-{}", std::process::id()));
        let blocked: SigSet = iter::once(SIGUSR1).collect();
        blocked.thread_block().unwrap();
        let words = ["/proc/self/status".into(), file.clone().into_os_string()];
        let mut child = Program::new("cp".into(), words).spawn().unwrap();
        blocked.thread_unblock().unwrap();
        assert_eq!(block_on(child.ended()), "exit status: 0");
        let status = fs::read_to_string(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000\n"), "{status}");
    }

    #[test]
    fn an_end_is_told_as_the_standard_library_tells_it() {
        for (script, end) in [
            ("exit 0", "exit status: 0"),
            ("exit 3", "exit status: 3"),
            ("kill -9 $$", "signal: 9 (SIGKILL)"),
        ] {
            let words = ["-c".into(), script.into()];
            let mut child = Program::new("sh".into(), words).spawn().unwrap();
            assert_eq!(block_on(child.ended()), end);
            // The status is not asked for again: another process may have the id by now.
            assert_eq!(child.try_wait().unwrap(), end);
        }
    }

    #[test]
    fn a_child_whose_end_somebody_else_has_heard_has_ended() {
        let mut child = Program::new("true".into(), []).spawn().unwrap();
        waitpid(Some(child.pid), WaitOptions::empty()).unwrap();
        assert_eq!(block_on(child.ended()), "exit status unknown");
    }

    /// No descriptor is overwritten before it is passed.
    #[test]
    fn each_descriptor_gets_its_number() {
        let directory = env::temp_dir().join(format!("sg-passed-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let mut program = Program::new(
            "sh".into(),
            [
                "-c".into(),
                // The shell cannot name a descriptor above 9 by `>&`.
                "for n in $(seq 3 42); do echo $n >/proc/self/fd/$n; done".into(),
            ],
        );
        // Opened the other way round, so that the last to be passed has the lowest number here.
        let open = |number: i32| File::create(directory.join(number.to_string())).unwrap();
        let files: Vec<_> = (3..43).rev().map(open).collect();
        files.into_iter().rev().for_each(|file| program.pass(file.into()));
        let mut child = program.spawn().unwrap();
        assert_eq!(block_on(child.ended()), "exit status: 0");
        for number in 3..43 {
            let text = fs::read_to_string(directory.join(number.to_string())).unwrap();
            assert_eq!(text, format!("{number}\n"));
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
