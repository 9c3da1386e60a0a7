//! [`Inherited`]: listening sockets that this process was started with.
//!
//! Two protocols: systemd's (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES), and a bare descriptor that
//! the operator names (`fd:0`, Supervisor's `[fcgi-program]`). A predecessor that hands its sockets
//! over uses the first, and says in [`HANDOVER`] what systemd has no word for. Invariant: a
//! descriptor is taken once, and only if it is a listening stream socket; what is not wanted is
//! left as it was. Once a socket is taken, only the copy is left, which no child of this process
//! inherits. Does not accept, and does not decide when a socket is let go of.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use rustix::io::{FdFlags, dup2, fcntl_getfd, fcntl_setfd};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use socket2::Socket;

use crate::address::Address;
use crate::own_sockets::{OwnSocket, address_of};
use crate::socket_file::identity_behind;

/// A listening socket that was passed to this process.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) socket: Socket,
    /// The address on which it listens.
    pub(crate) address: Address,
    /// Its name in LISTEN_FDNAMES.
    pub(crate) name: Option<String>,
    /// The descriptor as which it was passed.
    pub(crate) fd: RawFd,
    /// The predecessor's words on it, if a predecessor has handed it over.
    pub(crate) handed: Option<Handed>,
}

/// A predecessor's words on a socket that it hands over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handed {
    /// The socket's inode: it tells the socket from whatever else may have its number.
    pub(crate) socket: u64,
    /// A predecessor has bound it, so no process but predecessors and successors has it.
    pub(crate) is_own: bool,
    /// Where a Unix socket's file is. The socket itself may know only a relative path.
    pub(crate) file: Option<PathBuf>,
    /// The descriptor by which the operator knows the socket.
    pub(crate) origin: Option<RawFd>,
}

/// The number of descriptors that were passed, from [`FIRST`] on.
pub(crate) const FDS: &str = "LISTEN_FDS";
/// The process that they were passed to.
pub(crate) const PID: &str = "LISTEN_PID";
/// Their names, with colons between.
pub(crate) const NAMES: &str = "LISTEN_FDNAMES";
/// From a predecessor, which cannot know our process id: a [`Handed`] for each of its sockets.
pub(crate) const HANDOVER: &str = "SMOL_GRACEFUL_HANDOVER";
/// The first descriptor that is passed by LISTEN_FDS.
pub(crate) const FIRST: RawFd = 3;

/// Takes every socket that LISTEN_FDS passes and that was not taken before.
///
/// # Errors
///
/// Returns an error if a variable makes no sense, or if a descriptor is not a listening stream
/// socket.
pub(crate) fn all() -> io::Result<Vec<Inherited>> {
    let mut all = Vec::new();
    for passed in passed()? {
        all.extend(take(passed, |_| true)?);
    }
    Ok(all)
}

/// Takes the socket that listens on `address`, if this process was started with one.
///
/// # Errors
///
/// For `fd:N`, as [`all`]. For another address, a socket that cannot be taken is not an error.
pub(crate) fn matching(address: &Address) -> io::Result<Option<Inherited>> {
    if let Address::Fd(fd) = *address {
        let known_as = |passed: &&Passed| match &passed.handed {
            Some(handed) => handed.origin == Some(fd),
            None => passed.fd == fd,
        };
        let is_free = |passed: &&Passed| !taken().contains(&passed.fd);
        let passed = passed()?;
        let chosen = passed.iter().filter(known_as).find(is_free).cloned();
        let bare = Passed { fd, name: None, handed: None };
        return match take(chosen.unwrap_or(bare), |_| true)? {
            None => Err(io::Error::other(format!(
                "descriptor {fd} was taken before, or has another socket now"
            ))),
            inherited => Ok(inherited),
        };
    }
    for passed in passed().unwrap_or_default() {
        let file = passed.handed.as_ref().and_then(|handed| handed.file.clone());
        let is_wanted =
            |bound: &Address| address.covers(bound) || is_at(address, bound, file.as_deref());
        match take(passed, is_wanted) {
            Ok(None) | Err(_) => {}
            inherited => return inherited,
        }
    }
    Ok(None)
}

/// Returns `true` if `address` is another path to the file of the Unix socket `bound`, by symbolic
/// links for example. A predecessor says which `file` that is, because the path of its own may have
/// been relative to another directory.
fn is_at(address: &Address, bound: &Address, file: Option<&Path>) -> bool {
    let (Address::Unix(wanted), Address::Unix(bound)) = (address, bound) else { return false };
    let wanted = identity_behind(wanted);
    wanted.is_some() && wanted == identity_behind(file.unwrap_or(bound))
}

/// Returns `true` if the environment says that this process was started with the descriptor.
pub(crate) fn is_announced(fd: RawFd) -> bool {
    passed().unwrap_or_default().iter().any(|passed| passed.fd == fd)
}

/// Closes the sockets that a predecessor has handed over and that nobody wants. They stay the
/// predecessor's, which empties their queues.
pub(crate) fn close_unclaimed() {
    for passed in passed().unwrap_or_default() {
        if passed.handed.is_none() {
            continue;
        }
        if let Ok(Some(Inherited { address, .. })) = take(passed, |_| true) {
            log::warn!("{address} was handed over, and nobody listens on it any more");
        }
    }
}

/// Returns the inode of a socket.
pub(crate) fn inode(socket: OwnedFd) -> io::Result<u64> {
    Ok(File::from(socket).metadata()?.ino())
}

impl fmt::Display for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { socket, is_own, file, origin } = self;
        write!(f, "{}:socket={socket}", if *is_own { "own" } else { "passed" })?;
        if let Some(path) = file {
            f.write_str(":file=")?;
            // In hexadecimal digits, because a path may hold any byte.
            path.as_os_str().as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        origin.map_or(Ok(()), |fd| write!(f, ":fd={fd}"))
    }
}

impl Handed {
    fn read(word: &str) -> Option<Self> {
        let mut parts = word.split(':');
        let is_own = match parts.next()? {
            "own" => true,
            "passed" => false,
            _ => return None,
        };
        let mut handed = Self { socket: 0, is_own, file: None, origin: None };
        for part in parts {
            match part.split_once('=')? {
                ("socket", inode) => handed.socket = inode.parse().ok()?,
                ("file", digits) => {
                    let byte = |i| u8::from_str_radix(digits.get(i..i + 2)?, 16).ok();
                    let bytes = (0..digits.len()).step_by(2).map(byte).collect::<Option<_>>()?;
                    handed.file = Some(OsString::from_vec(bytes).into());
                }
                ("fd", fd) => handed.origin = Some(fd.parse().ok()?),
                // A later version may add others.
                _ => {}
            }
        }
        Some(handed)
    }
}

/// The environment's words on one descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Passed {
    fd: RawFd,
    name: Option<String>,
    handed: Option<Handed>,
}

fn passed() -> io::Result<Vec<Passed>> {
    static WARNED: Once = Once::new();
    let text = |name| env::var(name).ok().filter(|text| !text.is_empty());
    if let Some(warning) = astray(text(FDS), text(PID), text(HANDOVER), process::id()) {
        WARNED.call_once(|| log::warn!("{warning}"));
    }
    read(text(FDS), text(PID), text(NAMES), text(HANDOVER), process::id())
}

/// Says that sockets were passed to another process than this one. A shell that starts the server
/// without `exec` is the usual reason, because that shell has the process id that was meant.
fn astray(
    fds: Option<String>,
    pid: Option<String>,
    handover: Option<String>,
    own: u32,
) -> Option<String> {
    let fds = fds.filter(|fds| fds != "0")?;
    match (pid, handover) {
        (Some(pid), _) if pid.parse::<u32>().is_ok_and(|pid| pid != own) => Some(format!(
            "{FDS}={fds} passes sockets to process {pid}, and this is process {own}, which does \
             not take them; what stands between the two has to start the server by `exec`"
        )),
        (None, None) => Some(format!(
            "{FDS}={fds} passes sockets, and {PID} does not say that process {own} is meant, \
             which does not take them; set it to the process id of the server"
        )),
        _ => None,
    }
}

fn read(
    fds: Option<String>,
    pid: Option<String>,
    names: Option<String>,
    handover: Option<String>,
    own: u32,
) -> io::Result<Vec<Passed>> {
    let wrong = |name: &str, text: &str| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{name}={text} is no number"))
    };
    let Some(fds) = fds else { return Ok(Vec::new()) };
    let handed: Vec<_> = match (pid, handover) {
        (Some(pid), _) if pid.parse::<u32>().map_err(|_| wrong(PID, &pid))? == own => {
            let count = fds.parse::<u16>().map_err(|_| wrong(FDS, &fds))?;
            vec![None; count.into()]
        }
        (None, Some(handover)) => handover
            .split_whitespace()
            .map(|word| Handed::read(word).map(Some))
            .collect::<Option<_>>()
            .unwrap_or_default(),
        // Meant for another process: passed on by mistake.
        _ => return Ok(Vec::new()),
    };
    let names = names.unwrap_or_default();
    let mut names = names.split(':');
    let passed = (FIRST..).zip(handed).map(|(fd, handed)| {
        let name = names.next().filter(|name| !name.is_empty()).map(str::to_owned);
        Passed { fd, name, handed }
    });
    Ok(passed.collect())
}

/// Returns the descriptors that were taken.
fn taken() -> MutexGuard<'static, BTreeSet<RawFd>> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a descriptor if it was not taken before and is `wanted`. Makes a copy, and then closes the
/// descriptor itself.
#[allow(unsafe_code, reason = "a descriptor that is known by its number alone")]
fn take(
    Passed { fd, name, handed }: Passed,
    wanted: impl FnOnce(&Address) -> bool,
) -> io::Result<Option<Inherited>> {
    let mut taken = taken();
    if taken.contains(&fd) {
        return Ok(None);
    }
    // SAFETY: used for these two calls, which fail if there is no such descriptor. If another
    // thread closes a descriptor of this program meanwhile, the calls see that descriptor or none.
    let there = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfd(there).map_err(|error| of(fd, &error.into()))?;
    let copy = there.try_clone_to_owned().map_err(|error| of(fd, &error))?;
    // A descriptor that was passed has survived an exec. One that this program has opened itself
    // would not.
    let is_ours = fd >= FIRST && flags.contains(FdFlags::CLOEXEC);
    match handed {
        Some(ref handed) if is_ours || inode(copy.try_clone()?)? != handed.socket => {
            return Ok(None);
        }
        None if is_ours => {
            return Err(invalid(&format!(
                "descriptor {fd} was not passed to this process{PASSED_BY}"
            )));
        }
        _ => {}
    }
    let socket = Socket::from(copy);
    let address = address_of(&socket).map_err(|error| of(fd, &error))?;
    if !wanted(&address) {
        return Ok(None);
    }
    taken.insert(fd);
    if fd >= FIRST {
        // SAFETY: it is open, it was passed to this process to be used by it, and it has just been
        // taken for the first and the last time.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    clear_copies(&socket, &mut taken)?;
    Ok(Some(Inherited { socket, address, name, fd, handed }))
}

/// Puts /dev/null in the place of each standard stream that is `socket`, and of each further copy
/// that this process was started with and that the environment does not name. Otherwise the
/// children of this process would inherit the socket, and it would stay open after the close.
fn clear_copies(socket: &Socket, taken: &mut BTreeSet<RawFd>) -> io::Result<()> {
    let socket = inode(socket.as_fd().try_clone_to_owned()?)?;
    let is_socket =
        |fd: BorrowedFd<'_>| fd.try_clone_to_owned().and_then(inode).is_ok_and(|fd| fd == socket);
    if is_socket(io::stdin().as_fd()) {
        dup2_stdin(nothing()?)?;
        taken.insert(0);
    }
    if is_socket(io::stdout().as_fd()) {
        dup2_stdout(nothing()?)?;
        taken.insert(1);
    }
    if is_socket(io::stderr().as_fd()) {
        dup2_stderr(nothing()?)?;
        taken.insert(2);
    }
    let passed = passed().unwrap_or_default();
    let is_announced = |fd: RawFd| passed.iter().any(|passed| passed.fd == fd);
    let others = OwnSocket::all().into_iter().filter(|own| own.is_passed).map(|own| own.fd);
    for fd in others.filter(|fd| *fd >= FIRST && !is_announced(*fd)) {
        if clear_if(fd, is_socket)? {
            taken.insert(fd);
        }
    }
    Ok(())
}

/// Puts /dev/null in the place of `fd` if it `is_socket`. Returns `true` if it was.
#[allow(unsafe_code, reason = "a descriptor that is known by its number alone")]
fn clear_if(fd: RawFd, is_socket: impl Fn(BorrowedFd<'_>) -> bool) -> io::Result<bool> {
    // SAFETY: the descriptor is open and was passed to this process, and nobody has taken it. It
    // stays open, and is not closed here: whoever knows its number finds a file there that has
    // nothing.
    let mut copy = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) });
    if !is_socket(copy.as_fd()) {
        return Ok(false);
    }
    let nothing = nothing()?;
    dup2(&nothing, &mut copy)?;
    fcntl_setfd(&*copy, FdFlags::CLOEXEC)?;
    Ok(true)
}

/// Opens a file that has nothing to read.
fn nothing() -> io::Result<OwnedFd> {
    match File::options().read(true).write(true).open("/dev/null") {
        Ok(null) => Ok(null.into()),
        // In a directory tree without /dev, a socket whose other end is closed does the same.
        Err(_) => UnixStream::pair().map(|(end, _)| end.into()),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Names the descriptor in `error`.
fn of(fd: RawFd, error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(EBADF) => invalid(&format!("descriptor {fd} is not open{PASSED_BY}")),
        Some(ENOTSOCK) => invalid(&format!("descriptor {fd} is not a socket{PASSED_BY}")),
        _ => io::Error::new(error.kind(), format!("descriptor {fd} {error}")),
    }
}

/// Says which programs pass a socket.
const PASSED_BY: &str = "; Supervisor passes one as fd:0 to an [fcgi-program] (not to a [program]), \
                         systemd to the service of a socket unit";

const EBADF: i32 = rustix::io::Errno::BADF.raw_os_error();
const ENOTSOCK: i32 = rustix::io::Errno::NOTSOCK.raw_os_error();

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    type Told = (RawFd, Option<String>, Option<Handed>);

    fn passed([fds, pid, names, handover]: [&str; 4]) -> Result<Vec<Told>, String> {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let passed = read(text(fds), text(pid), text(names), text(handover), 42);
        let passed = passed.map_err(|error| error.to_string())?;
        Ok(passed.into_iter().map(|p| (p.fd, p.name, p.handed)).collect())
    }

    #[test]
    fn sockets_for_another_process_are_named() {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        for (fds, pid, handover, warning) in [
            ("", "", "", None),
            ("", "41", "", None),
            ("0", "41", "", None),
            ("1", "42", "", None),
            ("1", "me", "", None),
            ("1", "", "own:socket=7", None),
            (
                "2",
                "41",
                "",
                Some("LISTEN_FDS=2 passes sockets to process 41, and this is process 42"),
            ),
            ("2", "41", "own:socket=7", Some("LISTEN_FDS=2 passes sockets to process 41, and")),
            ("2", "", "", Some("LISTEN_FDS=2 passes sockets, and LISTEN_PID does not say that")),
        ] {
            let told = astray(text(fds), text(pid), text(handover), 42);
            let is_right = match (&told, warning) {
                (Some(told), Some(warning)) => told.starts_with(warning),
                (told, warning) => told.is_none() && warning.is_none(),
            };
            assert!(is_right, "{fds} {pid} {handover}: {told:?}");
        }
    }

    #[test]
    fn the_environment_says_what_was_passed() {
        let name = |name: &str| Some(name.to_owned());
        let path = |path: &[u8]| Some(OsStr::from_bytes(path).into());
        let own = Handed { socket: 7, is_own: true, file: path(b"/a b:\xff"), origin: None };
        let passed_on = Handed { socket: 10, is_own: false, file: None, origin: Some(0) };
        for (environment, expected) in [
            (["", "", "", ""], vec![]),
            (["0", "42", "", ""], vec![]),
            (["1", "42", "", ""], vec![(3, None, None)]),
            (["2", "42", "web:admin", ""], vec![(3, name("web"), None), (4, name("admin"), None)]),
            // Fewer names than sockets, empty names, more names.
            (
                ["3", "42", "web:", ""],
                vec![(3, name("web"), None), (4, None, None), (5, None, None)],
            ),
            (["1", "42", "web:admin", ""], vec![(3, name("web"), None)]),
            // For somebody else, or for nobody.
            (["1", "41", "", ""], vec![]),
            (["1", "", "", ""], vec![]),
            (["1", "41", "", "own:socket=7"], vec![]),
            // From a predecessor, which cannot know our process id.
            (
                ["2", "", "web:", "own:socket=7:file=2f6120623aff passed:socket=10:fd=0"],
                vec![(3, name("web"), Some(own.clone())), (4, None, Some(passed_on.clone()))],
            ),
            (["1", "", "", "nonsense"], vec![]),
            (["1", "", "", "own:socket=x"], vec![]),
            (["1", "", "", "own:socket=7:file=2f6"], vec![]),
            (["1", "", "", "own:socket=7:file=é1"], vec![]),
            // A predecessor's words are not for a process that a service manager has started since.
            (["1", "42", "", "own:socket=7"], vec![(3, None, None)]),
        ] {
            assert_eq!(passed(environment), Ok(expected), "{environment:?}");
        }
        for (environment, error) in [
            (["x", "42", "", ""], "LISTEN_FDS=x is no number"),
            (["-1", "42", "", ""], "LISTEN_FDS=-1 is no number"),
            (["99999", "42", "", ""], "LISTEN_FDS=99999 is no number"),
            (["1", "me", "", ""], "LISTEN_PID=me is no number"),
        ] {
            assert_eq!(passed(environment), Err(error.to_owned()));
        }
        for handed in [own, passed_on] {
            assert_eq!(Handed::read(&handed.to_string()), Some(handed));
        }
    }
}
