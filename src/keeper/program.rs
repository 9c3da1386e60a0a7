//! [`Program`]: a program that a keeper starts with sockets from descriptor 3 on.
//!
//! Invariant: only a file that the kernel accepts is run. `execve` does not fall back to a shell.
//! `execvp`, and so the standard library, lets `/bin/sh` run a file that the kernel refuses, half a
//! file for example. The child gets the descriptors that are passed and those that every child of
//! this process inherits, and no others. This file does not know the purpose of the program, and
//! does not wait.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::iter;
use std::mem;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use nix::errno::Errno;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::Pid;

use crate::descriptors::FIRST;
use crate::error::during;
use crate::keeper::spawn::{Image, spawn};

/// A program that will be started in this process's directory.
pub(crate) struct Program {
    /// The program's first argument. A name without a slash is looked up in PATH.
    name: OsString,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    descriptors: Vec<OwnedFd>,
    input: Option<OwnedFd>,
    names_itself: bool,
}

impl Program {
    /// Makes a program with this process's environment, and with `/dev/null` as its standard input.
    pub(crate) fn new(name: OsString, arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            name,
            arguments: arguments.into_iter().collect(),
            environment: env::vars_os().collect(),
            descriptors: Vec::new(),
            input: None,
            names_itself: false,
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

    /// Sets LISTEN_PID to the child's own process id, which only the child knows.
    pub(crate) fn name_itself(&mut self) {
        self.names_itself = true;
    }

    /// Passes one more descriptor. The first one gets the number 3 in the child, the second 4.
    pub(crate) fn pass(&mut self, descriptor: OwnedFd) {
        self.descriptors.push(descriptor);
    }

    /// Passes a descriptor as the standard input.
    pub(crate) fn pass_input(&mut self, input: OwnedFd) {
        self.input = Some(input);
    }

    /// Starts the program in a process group of its own, with no signal blocked. Returns its
    /// process id. The program gets TERM when the thread that called this ends.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel refuses the program. The error names the program, the
    /// directory, and the reason in an operator's words.
    pub(crate) fn spawn(mut self) -> io::Result<Pid> {
        let input = match self.input.take() {
            Some(input) => input,
            None => File::open("/dev/null").map_err(during("cannot open /dev/null"))?.into(),
        };
        let descriptors = mem::take(&mut self.descriptors);
        self.spawn_with(input, descriptors).map_err(|error| self.refused(&error))
    }

    /// Returns an error with the program, the directory, and the reason why the kernel has refused
    /// it.
    pub(crate) fn refused(&self, error: &io::Error) -> io::Error {
        let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        let name = Path::new(&self.name).display();
        let here = env::current_dir()
            .map_or("a directory that is gone".into(), |dir| dir.display().to_string());
        let message = format!("cannot start {name} in {here}: {}", self.reason(errno));
        io::Error::new(error.kind(), message)
    }

    fn spawn_with(&self, input: OwnedFd, descriptors: Vec<OwnedFd>) -> io::Result<Pid> {
        let file = self.file().ok_or(io::Error::from(Errno::ENOENT))?;
        let numbers = FIRST..FIRST + RawFd::try_from(descriptors.len()).unwrap_or(RawFd::MAX);
        // Each copy has a number above all numbers in the child, so the child overwrites no copy
        // before it is in its place.
        let raise = |descriptor: OwnedFd| fcntl_dupfd_cloexec(descriptor, numbers.end);
        let all = iter::once(input).chain(descriptors);
        let raised = all.map(raise).collect::<Result<Vec<_>, _>>()?;
        let moves = raised.into_iter().zip(iter::once(0).chain(numbers));
        let words = iter::once(&self.name).chain(&self.arguments).map(|word| c_string(word));
        let variables = self.environment.iter().map(|(name, value)| {
            let mut variable = name.clone();
            variable.push("=");
            variable.push(value);
            c_string(&variable)
        });
        spawn(&Image {
            file: c_string(file.as_os_str())?,
            words: words.collect::<io::Result<_>>()?,
            variables: variables.collect::<io::Result<_>>()?,
            names_itself: self.names_itself,
            moves: moves.collect(),
        })
    }

    /// Returns the reason why the kernel has refused the program.
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
            (Errno::EAGAIN, _) => {
                "too many processes; raise `ulimit -u`, or the container's limit of processes"
            }
            (Errno::EIO, _) => "it cannot be read whole",
            (Errno::E2BIG, _) => "its arguments and its environment are too long for the kernel",
            (errno, _) => errno.desc(),
        }
    }

    /// Returns `true` if the program is looked up in PATH.
    fn is_looked_up(&self) -> bool {
        !self.name.as_bytes().contains(&b'/')
    }

    /// Returns the program's file, if there is one. In PATH, an executable file comes before one
    /// that is not, as in a shell.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        if !self.is_looked_up() {
            return Some(PathBuf::from(&self.name)).filter(|file| file.exists());
        }
        let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let files = || env::split_paths(&path).map(|directory| directory.join(&self.name));
        let is_program = |file: &PathBuf| file.is_file() && is_executable(file);
        files().find(is_program).or_else(|| files().find(|file| file.exists()))
    }
}

/// Returns the exit code that stands for this end of a process, as in a shell.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal);
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The kernel's errors for a file that it cannot run, or whose loader it cannot run.
const NOT_A_PROGRAM: [Errno; 2] = [Errno::ENOEXEC, Errno::ELIBBAD];

fn c_string(text: &OsStr) -> io::Result<CString> {
    // The kernel takes no argument and no variable with a zero byte.
    CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL.into())
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::passing::PID;
    use nix::sys::signal::{SIGUSR1, SigSet};
    use rustix::process::{WaitOptions, waitpid};
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::process;

    fn ended(pid: Pid) -> ExitStatus {
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        ExitStatus::from_raw(status.as_raw())
    }

    fn shell(script: &str) -> Program {
        Program::new("sh".into(), ["-c".into(), script.into()])
    }

    #[test]
    fn a_child_begins_with_no_signal_blocked() {
        let file = env::temp_dir().join(format!("sg-child-{}", process::id()));
        let blocked: SigSet = iter::once(SIGUSR1).collect();
        blocked.thread_block().unwrap();
        let words = ["/proc/self/status".into(), file.clone().into_os_string()];
        let child = Program::new("cp".into(), words).spawn().unwrap();
        blocked.thread_unblock().unwrap();
        assert!(ended(child).success());
        let status = fs::read_to_string(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000\n"), "{status}");
    }

    #[test]
    fn an_end_is_told_as_a_shell_tells_it() {
        for (script, end, code) in [
            ("exit 0", "exit status: 0", 0),
            ("exit 3", "exit status: 3", 3),
            ("kill -9 $$", "signal: 9 (SIGKILL)", 137),
        ] {
            let status = ended(shell(script).spawn().unwrap());
            assert_eq!((status.to_string().as_str(), exit_code(status)), (end, code));
        }
    }

    /// Only the child knows its process id.
    #[test]
    fn the_child_is_named_in_its_environment() {
        let mut program = shell("[ $LISTEN_PID = $$ ] && [ $OTHER = x ]");
        program.set("OTHER", "x");
        program.unset(PID);
        program.name_itself();
        assert!(ended(program.spawn().unwrap()).success());
        let mut program = shell("[ -z \"$LISTEN_PID\" ]");
        program.unset(PID);
        assert!(ended(program.spawn().unwrap()).success());
    }

    #[test]
    fn a_child_has_a_process_group_of_its_own() {
        let child = shell("[ $(cut -d' ' -f5 /proc/$$/stat) = $$ ]").spawn().unwrap();
        assert!(ended(child).success());
    }

    /// No descriptor is overwritten before it is passed.
    #[test]
    fn each_descriptor_gets_its_number() {
        let directory = env::temp_dir().join(format!("sg-passed-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        // In the shell, `>&` takes no descriptor above 9.
        let mut program = shell("for n in $(seq 3 42); do echo $n >/proc/self/fd/$n; done");
        // The files are opened in reverse order, so the last one that is passed has the lowest
        // number here.
        let open = |number: i32| File::create(directory.join(number.to_string())).unwrap();
        let files: Vec<_> = (3..43).rev().map(open).collect();
        files.into_iter().rev().for_each(|file| program.pass(file.into()));
        assert!(ended(program.spawn().unwrap()).success());
        for number in 3..43 {
            let text = fs::read_to_string(directory.join(number.to_string())).unwrap();
            assert_eq!(text, format!("{number}\n"));
        }
        fs::remove_dir_all(&directory).unwrap();
    }

    /// A copy in this process would keep the channel open after the child has ended.
    #[test]
    fn what_is_passed_does_not_stay_here() {
        let (here, end) = UnixStream::pair().unwrap();
        let mut program = shell("exit 0");
        program.pass(end.into());
        assert!(ended(program.spawn().unwrap()).success());
        here.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        assert_eq!((&here).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_is_not_a_program_is_refused_by_the_kernel() {
        let path = env::temp_dir().join(format!("sg-half-{}", process::id()));
        fs::write(&path, "exit 0\n").unwrap();
        let refused = |mode, part: &str| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let mut program = Program::new(path.clone().into_os_string(), []);
            // `spawn` reports the refusal although descriptors are passed.
            program.pass(File::open("/dev/null").unwrap().into());
            let error = program.spawn().unwrap_err().to_string();
            assert!(error.ends_with(part), "{error}");
        };
        refused(0o700, "it is not a program that this machine can run");
        refused(0o600, "it is not executable");
        fs::write(&path, "#!/no/such/shell\n").unwrap();
        refused(0o700, "no such file as the interpreter or the loader that it names");
        fs::remove_file(&path).unwrap();
        for (name, part) in [
            ("/no/such/program", ": no such file"),
            ("no-such-program", ": no such file in any directory of PATH"),
            ("/tmp", ": it is a directory, not a program"),
        ] {
            let error = Program::new(name.into(), []).spawn().unwrap_err().to_string();
            assert!(error.ends_with(part), "{error}");
        }
        let refused = Program::new("/bin/sh".into(), []).refused(&Errno::EAGAIN.into());
        assert!(refused.to_string().contains(": too many processes; raise "), "{refused}");
    }
}
