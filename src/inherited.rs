//! [`Inherited`]: listening sockets that this process was started with.
//!
//! Two protocols: systemd's (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES), and a bare descriptor that
//! the operator names (`fd:0`, Supervisor's `[fcgi-program]`). A predecessor that hands its sockets
//! over uses the first, and says in [`HANDOVER`] what systemd has no word for. Invariant: a
//! descriptor is taken once, and only if it is a listening stream socket; what is not wanted is left
//! as it was. Does not accept, and does not decide when a socket is let go of.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process;
use std::sync::{Mutex, PoisonError};

use rustix::process::getppid;
use socket2::{Domain, Socket, Type};

use crate::address::Address;

/// A listening socket that was passed to this process.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) socket: Socket,
    /// What it listens on.
    pub(crate) address: Address,
    /// What LISTEN_FDNAMES calls it.
    pub(crate) name: Option<String>,
    /// Another process holds it too (rule S5); otherwise it was a predecessor's, and is ours now.
    pub(crate) is_held: bool,
}

/// The number of descriptors that were passed, from [`FIRST`] on.
pub(crate) const FDS: &str = "LISTEN_FDS";
/// The process that they were passed to.
pub(crate) const PID: &str = "LISTEN_PID";
/// Their names, with colons between.
pub(crate) const NAMES: &str = "LISTEN_FDNAMES";
/// From a predecessor that hands its sockets over: its process id, which must be our parent's, as
/// it cannot know ours; then for each socket [`OWN`] or [`HELD`].
pub(crate) const HANDOVER: &str = "SMOL_GRACEFUL_HANDOVER";
/// A socket that goes to the successor.
pub(crate) const OWN: &str = "own";
/// A socket that some other process holds, too.
#[cfg(feature = "restart")]
pub(crate) const HELD: &str = "held";
/// The first descriptor that is passed by LISTEN_FDS.
pub(crate) const FIRST: RawFd = 3;

/// What a socket is called that its server knows as descriptor `fd`, when it is handed over.
pub(crate) fn name_of(fd: RawFd) -> String {
    format!("fd{fd}")
}

/// Everything that LISTEN_FDS passes and that was not taken before.
///
/// # Errors
///
/// A text that makes no sense, and a descriptor that is no listening stream socket.
pub(crate) fn all() -> io::Result<Vec<Inherited>> {
    let mut all = Vec::new();
    for passed in passed()? {
        all.extend(take(passed, |_| true)?);
    }
    Ok(all)
}

/// The socket for who wants to listen on `address`, if there is one.
///
/// # Errors
///
/// As [`all`]; for addresses other than `fd:N` a descriptor that is something else is no error.
pub(crate) fn matching(address: &Address) -> io::Result<Option<Inherited>> {
    let passed = passed()?;
    if let Address::Fd(fd) = *address {
        let name = name_of(fd);
        let handed_over = passed.iter().find(|p| p.name.as_ref() == Some(&name));
        let by_number = || passed.iter().find(|p| p.fd == fd);
        let bare = Passed { fd, name: None, is_held: true };
        let chosen = handed_over.or_else(by_number).cloned().unwrap_or(bare);
        return match take(chosen, |_| true)? {
            None => Err(io::Error::other(format!("descriptor {fd} was taken before"))),
            inherited => Ok(inherited),
        };
    }
    for passed in passed {
        match take(passed, |bound| address.covers(bound)) {
            Ok(None) | Err(_) => {}
            inherited => return inherited,
        }
    }
    Ok(None)
}

/// What the environment says of one descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Passed {
    fd: RawFd,
    name: Option<String>,
    is_held: bool,
}

fn passed() -> io::Result<Vec<Passed>> {
    let text = |name| env::var(name).ok().filter(|text| !text.is_empty());
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let handover = text(HANDOVER).and_then(|text| read_handover(&text, parent));
    read(text(FDS), text(PID), text(NAMES), handover, process::id())
}

/// Whether each socket is held by others, if it is our parent that says so.
fn read_handover(text: &str, parent: i32) -> Option<Vec<bool>> {
    let mut words = text.split_whitespace();
    let pid: i32 = words.next()?.parse().ok()?;
    (pid == parent).then(|| words.map(|word| word != OWN).collect())
}

fn read(
    fds: Option<String>,
    pid: Option<String>,
    names: Option<String>,
    handover: Option<Vec<bool>>,
    own: u32,
) -> io::Result<Vec<Passed>> {
    let wrong = |name: &str, text: &str| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{name}={text} is no number"))
    };
    let Some(fds) = fds else { return Ok(Vec::new()) };
    if handover.is_none() {
        // Meant for another process: passed on by mistake.
        let Some(pid) = pid else { return Ok(Vec::new()) };
        if pid.parse::<u32>().map_err(|_| wrong(PID, &pid))? != own {
            return Ok(Vec::new());
        }
    }
    let count = fds.parse::<u16>().map_err(|_| wrong(FDS, &fds))?;
    let names = names.unwrap_or_default();
    let mut names = names.split(':');
    let mut held = handover.unwrap_or_default().into_iter();
    let passed = (FIRST..FIRST + RawFd::from(count)).map(|fd| Passed {
        fd,
        name: names.next().filter(|name| !name.is_empty()).map(str::to_owned),
        is_held: held.next().unwrap_or(true),
    });
    Ok(passed.collect())
}

/// The descriptors that are not to be had any more.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes a descriptor if it is not taken and `wanted`; the copy that is made of it is what is left.
#[allow(unsafe_code, reason = "a descriptor that is known by its number alone")]
fn take(
    Passed { fd, name, is_held }: Passed,
    wanted: impl FnOnce(&Address) -> bool,
) -> io::Result<Option<Inherited>> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&fd) {
        return Ok(None);
    }
    // SAFETY: used for this one call, which fails if there is no such descriptor. If there is one,
    // it was opened by whoever started this process, and nobody closes it but the lines below.
    let copy = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
    let socket = Socket::from(copy.map_err(|error| of(fd, &error))?);
    let address = address_of(&socket).map_err(|error| of(fd, &error))?;
    if !wanted(&address) {
        return Ok(None);
    }
    // Standard input, output and error stay what the standard library believes them to be.
    if fd >= FIRST {
        taken.insert(fd);
        // SAFETY: it is open, it was passed to this process to be used by it, and it has just been
        // taken for the first and the last time.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(Some(Inherited { socket, address, name, is_held }))
}

/// What a listening stream socket is bound to.
pub(crate) fn address_of(socket: &Socket) -> io::Result<Address> {
    if socket.r#type()? != Type::STREAM || !socket.is_listener().unwrap_or(false) {
        return Err(invalid("is no socket that listens for connections"));
    }
    let addr = socket.local_addr()?;
    if let Some(addr) = addr.as_socket() {
        return Ok(Address::Tcp(addr));
    }
    if socket.domain()? != Domain::UNIX {
        return Err(invalid("is no TCP and no Unix socket"));
    }
    Ok(Address::Unix(match (addr.as_pathname(), addr.as_abstract_namespace()) {
        (Some(path), _) => path.to_owned(),
        (None, Some(name)) => {
            let mut text = OsStr::new("@").to_owned();
            text.push(OsStr::from_bytes(name));
            PathBuf::from(text)
        }
        (None, None) => PathBuf::new(),
    }))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Names the descriptor in `error`.
fn of(fd: RawFd, error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(EBADF) => invalid(&format!("descriptor {fd} is not open")),
        Some(ENOTSOCK) => invalid(&format!("descriptor {fd} is no socket")),
        _ => io::Error::new(error.kind(), format!("descriptor {fd} {error}")),
    }
}

const EBADF: i32 = rustix::io::Errno::BADF.raw_os_error();
const ENOTSOCK: i32 = rustix::io::Errno::NOTSOCK.raw_os_error();

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(
        [fds, pid, names, handover]: [&str; 4],
    ) -> Result<Vec<(RawFd, Option<String>, bool)>, String> {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let handover = read_handover(handover, 7);
        let passed = read(text(fds), text(pid), text(names), handover, 42);
        let passed = passed.map_err(|error| error.to_string())?;
        Ok(passed.into_iter().map(|p| (p.fd, p.name, p.is_held)).collect())
    }

    #[test]
    fn the_environment_says_what_was_passed() {
        let name = |name: &str| Some(name.to_owned());
        for (environment, expected) in [
            (["", "", "", ""], vec![]),
            (["0", "42", "", ""], vec![]),
            (["1", "42", "", ""], vec![(3, None, true)]),
            (["2", "42", "web:admin", ""], vec![(3, name("web"), true), (4, name("admin"), true)]),
            // Fewer names than sockets, empty names, more names.
            (
                ["3", "42", "web:", ""],
                vec![(3, name("web"), true), (4, None, true), (5, None, true)],
            ),
            (["1", "42", "web:admin", ""], vec![(3, name("web"), true)]),
            // For somebody else, or for nobody.
            (["1", "41", "", ""], vec![]),
            (["1", "", "", ""], vec![]),
            // From a predecessor, which cannot know our process id.
            (["2", "", "", "7 own held"], vec![(3, None, false), (4, None, true)]),
            (["2", "41", "", "7 own"], vec![(3, None, false), (4, None, true)]),
            // From the parent's predecessor: its words are not for us.
            (["1", "", "", "6 own"], vec![]),
            (["1", "42", "", "6 own"], vec![(3, None, true)]),
            (["1", "", "", "nonsense"], vec![]),
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
    }
}
