//! [`Passed`]: a socket that one process passes to another, as the environment describes it.
//!
//! The protocol is systemd's (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES). A keeper's offer has more
//! facts about each socket. Pure: the code turns text into values, and does not look at a
//! descriptor.

use std::io;
use std::iter;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use crate::descriptors::FIRST;
use crate::error::invalid;
use crate::restart::message::Offered;

/// The variable with the number of passed descriptors, which begin at [`FIRST`].
pub(crate) const FDS: &str = "LISTEN_FDS";
/// The variable with the process to which they are passed.
pub(crate) const PID: &str = "LISTEN_PID";
/// The variable with their names, with colons between.
pub(crate) const NAMES: &str = "LISTEN_FDNAMES";

/// A socket that is passed from one process to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passed {
    /// The descriptor in the process that gets the socket.
    pub(crate) fd: RawFd,
    /// The socket's name in LISTEN_FDNAMES.
    pub(crate) name: Option<String>,
    /// The keeper's number of the listener, if a keeper has passed it.
    pub(crate) number: Option<u32>,
    /// The keeper or a child of it has bound the socket, so no other program has it.
    pub(crate) is_own: bool,
    /// `true` if an earlier child of the keeper has bound the socket. Only a program that asks for
    /// its address takes it.
    pub(crate) is_brought: bool,
    /// The path of a Unix socket's file. The socket itself may know only a relative path.
    pub(crate) file: Option<PathBuf>,
}

impl Passed {
    /// Returns a socket with a descriptor and a name, and without further facts.
    pub(crate) fn bare(fd: RawFd, name: Option<String>) -> Self {
        Self { fd, name, number: None, is_own: false, is_brought: false, file: None }
    }
}

/// Returns the sockets that a keeper has passed, with the names from the [`VARIABLES`].
pub(crate) fn offered(offered: &[Offered], [_, _, names]: [Option<String>; 3]) -> Vec<Passed> {
    let described = described(offered.len(), names.as_deref());
    let passed = described.into_iter().zip(offered).map(|((fd, name), offered)| Passed {
        number: Some(offered.number),
        is_own: offered.is_own,
        is_brought: offered.is_brought,
        file: offered.file.clone(),
        ..Passed::bare(fd, name)
    });
    passed.collect()
}

/// The variables that pass sockets, in the order in which [`read`] takes them.
pub(crate) const VARIABLES: [&str; 3] = [FDS, PID, NAMES];

/// The process for which the sockets are meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passing {
    /// The sockets are for the reader.
    Here(Vec<Passed>),
    /// The sockets are for another process, or for none. The text is a warning for the operator.
    Astray(String),
}

/// Returns the sockets that the [`VARIABLES`] pass to the process `reader`.
///
/// # Errors
///
/// Returns an error if a variable makes no sense.
pub(crate) fn read([fds, pid, names]: [Option<String>; 3], reader: u32) -> io::Result<Passing> {
    let Some(fds) = fds else { return Ok(Passing::Here(Vec::new())) };
    let pid = pid.map(|pid| number::<u32>(PID, &pid)).transpose()?;
    Ok(Passing::Here(match pid {
        Some(pid) if pid == reader => {
            let count = number::<u16>(FDS, &fds)?.into();
            let described = described(count, names.as_deref()).into_iter();
            described.map(|(fd, name)| Passed::bare(fd, name)).collect()
        }
        _ if fds == "0" => Vec::new(),
        // The usual reason is a shell that starts the server without `exec`, because then the shell
        // has the process id that was meant.
        Some(pid) => {
            return Ok(Passing::Astray(format!(
                "{FDS}={fds} passes sockets to process {pid}, and this is process {reader}, \
                 which does not take them; what stands between the two has to start the server \
                 by `exec`"
            )));
        }
        None => {
            return Ok(Passing::Astray(format!(
                "{FDS}={fds} passes sockets, and {PID} does not say that process {reader} is \
                 meant, which does not take them; set it to the process id of the server"
            )));
        }
    }))
}

/// Returns a descriptor and a name for each of `count` sockets.
fn described(count: usize, names: Option<&str>) -> Vec<(RawFd, Option<String>)> {
    let names = names.unwrap_or_default().split(':');
    let names = names.map(|name| Some(name.to_owned()).filter(|name| !name.is_empty()));
    (FIRST..).zip(names.chain(iter::repeat(None))).take(count).collect()
}

fn number<T: FromStr>(name: &str, text: &str) -> io::Result<T> {
    text.parse().map_err(|_| invalid(format!("{name}={text} is not a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(environment: [&str; 3]) -> io::Result<Passing> {
        read(variables(environment), 42)
    }

    fn variables(environment: [&str; 3]) -> [Option<String>; 3] {
        environment.map(|text| Some(text.to_owned()).filter(|text| !text.is_empty()))
    }

    fn passed(environment: [&str; 3]) -> Result<Vec<Passed>, String> {
        match told(environment).map_err(|error| error.to_string())? {
            Passing::Here(passed) => Ok(passed),
            Passing::Astray(_) => Ok(Vec::new()),
        }
    }

    #[test]
    fn sockets_for_another_process_are_named() {
        for (fds, pid, warning) in [
            ("", "", None),
            ("", "41", None),
            ("0", "41", None),
            ("0", "", None),
            ("1", "42", None),
            ("1", "me", None),
            ("2", "41", Some("LISTEN_FDS=2 passes sockets to process 41, and this is process 42")),
            ("2", "", Some("LISTEN_FDS=2 passes sockets, and LISTEN_PID does not say that")),
        ] {
            let told = told([fds, pid, ""]);
            let is_right = match (&told, warning) {
                (Ok(Passing::Astray(told)), Some(warning)) => told.starts_with(warning),
                (told, warning) => warning.is_none() && !matches!(told, Ok(Passing::Astray(_))),
            };
            assert!(is_right, "{fds} {pid}: {told:?}");
        }
    }

    fn bare(fd: RawFd, name: &str) -> Passed {
        Passed::bare(fd, Some(name.to_owned()).filter(|name| !name.is_empty()))
    }

    #[test]
    fn the_environment_says_what_was_passed() {
        for (environment, expected) in [
            (["", "", ""], vec![]),
            (["0", "42", ""], vec![]),
            (["1", "42", ""], vec![bare(3, "")]),
            (["2", "42", "web:admin"], vec![bare(3, "web"), bare(4, "admin")]),
            // There are fewer names than sockets, an empty name, or more names.
            (["3", "42", "web:"], vec![bare(3, "web"), bare(4, ""), bare(5, "")]),
            (["1", "42", "web:admin"], vec![bare(3, "web")]),
            // The sockets are for another process, or for none.
            (["1", "41", ""], vec![]),
            (["1", "", ""], vec![]),
        ] {
            assert_eq!(passed(environment), Ok(expected), "{environment:?}");
        }
        for (environment, error) in [
            (["x", "42", ""], "LISTEN_FDS=x is not a number"),
            (["-1", "42", ""], "LISTEN_FDS=-1 is not a number"),
            (["99999", "42", ""], "LISTEN_FDS=99999 is not a number"),
            (["1", "me", ""], "LISTEN_PID=me is not a number"),
        ] {
            assert_eq!(passed(environment), Err(error.to_owned()));
        }
    }

    #[test]
    fn a_keeper_says_more_of_each_socket() {
        let file = Some(PathBuf::from("/run/app.sock"));
        let own = Offered { number: 7, is_own: true, is_brought: true, file: file.clone() };
        let foreign = Offered { number: 9, is_own: false, is_brought: false, file: None };
        // The process that LISTEN_PID names may be a shell in between.
        let all = offered(&[own, foreign], variables(["2", "41", "web:"]));
        let own =
            Passed { number: Some(7), is_own: true, is_brought: true, file, ..bare(3, "web") };
        assert_eq!(all, [own, Passed { number: Some(9), ..bare(4, "") }]);
        assert_eq!(offered(&[], variables(["2", "42", ""])), []);
    }
}
