//! [`Passed`]: a socket that one process passes to another, as the environment describes it.
//!
//! Two protocols: systemd's (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES), and a predecessor's, which
//! uses the first and says in [`HANDOVER`] what systemd has no word for. Pure: turns text into a
//! value and a value into text. Does not look at a descriptor.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::iter;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::invalid;

/// The number of descriptors that were passed, from [`FIRST`] on.
pub(crate) const FDS: &str = "LISTEN_FDS";
/// The process that they were passed to.
pub(crate) const PID: &str = "LISTEN_PID";
/// Their names, with colons between.
pub(crate) const NAMES: &str = "LISTEN_FDNAMES";
/// A word for each socket of a predecessor, which cannot know its successor's process id.
pub(crate) const HANDOVER: &str = "SMOL_GRACEFUL_HANDOVER";
/// The first descriptor that is passed by LISTEN_FDS.
pub(crate) const FIRST: RawFd = 3;

/// A socket that is passed from one process to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passed {
    /// The descriptor that it has in the other process.
    pub(crate) fd: RawFd,
    /// Its name in LISTEN_FDNAMES.
    pub(crate) name: Option<String>,
    /// The socket's inode, which tells the socket from others that may have its descriptor. Only a
    /// predecessor says it.
    pub(crate) inode: Option<u64>,
    /// A predecessor has bound it, so no process but predecessors and successors has it.
    pub(crate) is_own: bool,
    /// Where a Unix socket's file is. The socket itself may know only a relative path.
    pub(crate) file: Option<PathBuf>,
    /// The descriptor by which the operator knows the socket.
    pub(crate) origin: Option<RawFd>,
}

impl fmt::Display for Passed {
    /// Writes a word of [`HANDOVER`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inode = self.inode.unwrap_or_default();
        write!(f, "{}:socket={inode}", if self.is_own { "own" } else { "passed" })?;
        if let Some(path) = &self.file {
            f.write_str(":file=")?;
            // In hexadecimal digits, because a path may hold any byte.
            path.as_os_str().as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        self.origin.map_or(Ok(()), |fd| write!(f, ":fd={fd}"))
    }
}

impl Passed {
    /// Returns a socket of which only the descriptor and the name are known.
    pub(crate) fn bare(fd: RawFd, name: Option<String>) -> Self {
        Self { fd, name, inode: None, is_own: false, file: None, origin: Some(fd) }
    }

    /// Reads a word of [`HANDOVER`]. Returns `None` if it makes no sense.
    fn read(fd: RawFd, name: Option<String>, word: &str) -> Option<Self> {
        let mut parts = word.split(':');
        let is_own = match parts.next()? {
            "own" => true,
            "passed" => false,
            _ => return None,
        };
        let mut passed = Self { inode: Some(0), is_own, origin: None, ..Self::bare(fd, name) };
        for part in parts {
            match part.split_once('=')? {
                ("socket", inode) => passed.inode = Some(inode.parse().ok()?),
                ("file", digits) => {
                    let byte = |i| u8::from_str_radix(digits.get(i..i + 2)?, 16).ok();
                    let bytes = (0..digits.len()).step_by(2).map(byte).collect::<Option<_>>()?;
                    passed.file = Some(OsString::from_vec(bytes).into());
                }
                ("fd", fd) => passed.origin = Some(fd.parse().ok()?),
                // A later version may add others.
                _ => {}
            }
        }
        Some(passed)
    }
}

/// The variables that pass sockets, in the order in which [`read`] takes them.
pub(crate) const VARIABLES: [&str; 4] = [FDS, PID, NAMES, HANDOVER];

/// Which process the sockets are for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passing {
    /// For the reader.
    Here(Vec<Passed>),
    /// For another process, or for none. The text warns the operator.
    Astray(String),
}

/// Returns the sockets that the [`VARIABLES`] pass to the process `reader`.
///
/// # Errors
///
/// Returns an error if a variable makes no sense.
pub(crate) fn read(
    [fds, pid, names, handover]: [Option<String>; 4],
    reader: u32,
) -> io::Result<Passing> {
    let Some(fds) = fds else { return Ok(Passing::Here(Vec::new())) };
    let pid = pid.map(|pid| number::<u32>(PID, &pid)).transpose()?;
    let names = names.unwrap_or_default();
    let names = names.split(':').map(|name| Some(name.to_owned()).filter(|name| !name.is_empty()));
    let described = (FIRST..).zip(names.chain(iter::repeat(None)));
    Ok(Passing::Here(match (pid, handover) {
        (Some(pid), _) if pid == reader => {
            let count = number::<u16>(FDS, &fds)?.into();
            described.take(count).map(|(fd, name)| Passed::bare(fd, name)).collect()
        }
        (None, Some(handover)) => {
            let words = described.zip(handover.split_whitespace());
            let passed = words.map(|((fd, name), word)| Passed::read(fd, name, word));
            passed.collect::<Option<_>>().unwrap_or_default()
        }
        _ if fds == "0" => Vec::new(),
        // A shell that starts the server without `exec` is the usual reason, because that shell
        // has the process id that was meant.
        (Some(pid), _) => {
            return Ok(Passing::Astray(format!(
                "{FDS}={fds} passes sockets to process {pid}, and this is process {reader}, \
                 which does not take them; what stands between the two has to start the server \
                 by `exec`"
            )));
        }
        (None, None) => {
            return Ok(Passing::Astray(format!(
                "{FDS}={fds} passes sockets, and {PID} does not say that process {reader} is \
                 meant, which does not take them; set it to the process id of the server"
            )));
        }
    }))
}

fn number<T: FromStr>(name: &str, text: &str) -> io::Result<T> {
    text.parse().map_err(|_| invalid(format!("{name}={text} is no number")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn told(environment: [&str; 4]) -> io::Result<Passing> {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        read(environment.map(text), 42)
    }

    fn passed(environment: [&str; 4]) -> Result<Vec<Passed>, String> {
        match told(environment).map_err(|error| error.to_string())? {
            Passing::Here(passed) => Ok(passed),
            Passing::Astray(_) => Ok(Vec::new()),
        }
    }

    #[test]
    fn sockets_for_another_process_are_named() {
        for (fds, pid, handover, warning) in [
            ("", "", "", None),
            ("", "41", "", None),
            ("0", "41", "", None),
            ("0", "", "", None),
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
            let told = told([fds, pid, "", handover]);
            let is_right = match (&told, warning) {
                (Ok(Passing::Astray(told)), Some(warning)) => told.starts_with(warning),
                (told, warning) => warning.is_none() && !matches!(told, Ok(Passing::Astray(_))),
            };
            assert!(is_right, "{fds} {pid} {handover}: {told:?}");
        }
    }

    #[test]
    fn the_environment_says_what_was_passed() {
        let bare = |fd, name: &str| {
            Passed::bare(fd, Some(name.to_owned()).filter(|name| !name.is_empty()))
        };
        let file = Some(OsStr::from_bytes(b"/a b:\xff").into());
        let web = bare(3, "web");
        let own = Passed { inode: Some(7), is_own: true, file, origin: None, ..web };
        let passed_on = Passed { inode: Some(10), origin: Some(0), ..bare(4, "") };
        for (environment, expected) in [
            (["", "", "", ""], vec![]),
            (["0", "42", "", ""], vec![]),
            (["1", "42", "", ""], vec![bare(3, "")]),
            (["2", "42", "web:admin", ""], vec![bare(3, "web"), bare(4, "admin")]),
            // Fewer names than sockets, empty names, more names.
            (["3", "42", "web:", ""], vec![bare(3, "web"), bare(4, ""), bare(5, "")]),
            (["1", "42", "web:admin", ""], vec![bare(3, "web")]),
            // For somebody else, or for nobody.
            (["1", "41", "", ""], vec![]),
            (["1", "", "", ""], vec![]),
            (["1", "41", "", "own:socket=7"], vec![]),
            // From a predecessor, which cannot know its successor's process id.
            (
                ["2", "", "web:", "own:socket=7:file=2f6120623aff passed:socket=10:fd=0"],
                vec![own.clone(), passed_on.clone()],
            ),
            (["1", "", "", "nonsense"], vec![]),
            (["1", "", "", "own:socket=x"], vec![]),
            (["1", "", "", "own:socket=7:file=2f6"], vec![]),
            (["1", "", "", "own:socket=7:file=é1"], vec![]),
            // A predecessor's words are not for a process that a service manager has started since.
            (["1", "42", "", "own:socket=7"], vec![bare(3, "")]),
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
        for passed in [own, passed_on] {
            let read = Passed::read(passed.fd, passed.name.clone(), &passed.to_string());
            assert_eq!(read, Some(passed));
        }
    }
}
