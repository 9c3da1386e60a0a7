//! [`State`]: the sockets, children and files of a keeper, by their descriptors, for the program
//! that replaces the keeper by `exec`.
//!
//! Pure: the code turns a value into text, and text into a value. Invariant: text that makes no
//! sense, or is meant for another process, gives no value. This file does not look at a descriptor.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The variable that holds the state.
pub(crate) const RESUME: &str = "SMOL_GRACEFUL_RESUME";

/// The version of the state. A program that reads another version does not replace the keeper.
pub(crate) const VERSION: u16 = 2;

/// A descriptor, and its inode. The inode shows whether the descriptor is still the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) fd: RawFd,
    pub(crate) inode: u64,
}

/// The state of a keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// The process for which the state is meant.
    pub(crate) pid: u32,
    /// The number of the next child.
    pub(crate) next: u32,
    pub(crate) lock: Option<(Held, PathBuf)>,
    pub(crate) sockets: Vec<SocketState>,
    pub(crate) children: Vec<ChildState>,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SocketState {
    pub(crate) held: Held,
    pub(crate) number: u32,
    pub(crate) is_own: bool,
    pub(crate) is_brought: bool,
    pub(crate) is_input: bool,
    pub(crate) name: Option<String>,
    pub(crate) path: Option<PathBuf>,
}

/// A child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChildState {
    pub(crate) id: u32,
    pub(crate) pid: u32,
    pub(crate) stage: ChildStage,
    pub(crate) channel: Option<Held>,
    pub(crate) notify: Option<Held>,
    /// The listeners that the child has reported, or `None` if it has not reported yet.
    pub(crate) reported: Option<Vec<ServedState>>,
}

/// The progress of a child, with times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildStage {
    Serving { for_ms: u64 },
    Leaving,
    Failing { killed_in_ms: u64 },
    Killed,
}

/// A listener that a child serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServedState {
    pub(crate) number: u32,
    pub(crate) inode: u64,
    pub(crate) adopts: bool,
}

impl Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION} {} {}", self.pid, self.next)?;
        if let Some((held, path)) = &self.lock {
            write!(f, "\nlock {held} {}", Hex(path.as_os_str().as_bytes()))?;
        }
        for SocketState { held, number, is_own, is_brought, is_input, name, path } in &self.sockets
        {
            let name = Hex(name.as_deref().unwrap_or_default().as_bytes());
            let path = path.as_deref().unwrap_or(Path::new("")).as_os_str().as_bytes();
            let [own, brought, input] = [*is_own, *is_brought, *is_input].map(u8::from);
            write!(f, "\nsocket {held} {number} {own} {brought} {input} {name} {}", Hex(path))?;
        }
        for ChildState { id, pid, stage, channel, notify, reported } in &self.children {
            let (word, time) = match stage {
                ChildStage::Serving { for_ms } => ("serving", Some(*for_ms)),
                ChildStage::Leaving => ("leaving", None),
                ChildStage::Failing { killed_in_ms } => ("failing", Some(*killed_in_ms)),
                ChildStage::Killed => ("failing", None),
            };
            write!(f, "\nchild {id} {pid} {word} {} ", Maybe(time))?;
            write!(f, "{} {}", Maybe(*channel), Maybe(*notify))?;
            if let Some(reported) = reported {
                f.write_str(" ready")?;
                for ServedState { number, inode, adopts } in reported {
                    write!(f, " {number}/{inode}/{}", u8::from(*adopts))?;
                }
            }
        }
        Ok(())
    }
}

impl State {
    /// Reads a state that is meant for the process `reader`.
    pub(crate) fn read(text: &str, reader: u32) -> Option<Self> {
        let mut lines = text.split('\n');
        let mut words = Words(lines.next()?.split(' '));
        if words.next::<u16>()? != VERSION {
            return None;
        }
        let (pid, next) = (words.next()?, words.next()?);
        words.end()?;
        let (lock, sockets, children) = (None, Vec::new(), Vec::new());
        let mut state = Self { pid, next, lock, sockets, children };
        for line in lines {
            let mut words = Words(line.split(' '));
            match words.0.next()? {
                "lock" if state.lock.is_none() => {
                    state.lock = Some((words.next()?, words.path()??));
                }
                "socket" => state.sockets.push(SocketState {
                    held: words.next()?,
                    number: words.next()?,
                    is_own: words.flag()?,
                    is_brought: words.flag()?,
                    is_input: words.flag()?,
                    name: words.name()?,
                    path: words.path()?,
                }),
                "child" => state.children.push(words.child()?),
                _ => return None,
            }
            words.end()?;
        }
        (pid == reader).then_some(state)
    }
}

/// The words of a line that are not read yet.
struct Words<'a>(std::str::Split<'a, char>);

impl Words<'_> {
    fn next<T: FromStr>(&mut self) -> Option<T> {
        self.0.next()?.parse().ok()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.0.next()? {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        }
    }

    /// Reads a value, or `-` for none.
    fn maybe<T: FromStr>(&mut self) -> Option<Option<T>> {
        match self.0.next()? {
            "-" => Some(None),
            word => word.parse().ok().map(Some),
        }
    }

    /// Reads bytes, or `-` for none.
    fn bytes(&mut self) -> Option<Option<Vec<u8>>> {
        let word = self.0.next()?;
        if word == "-" {
            return Some(None);
        }
        let is_whole = !word.is_empty() && word.len() % 2 == 0;
        let digit =
            |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let pairs = word.as_bytes().chunks(2).filter(|_| is_whole);
        let bytes: Option<Vec<u8>> =
            pairs.map(|pair| Some(digit(pair[0])? * 16 + digit(*pair.get(1)?)?)).collect();
        is_whole.then_some(bytes)
    }

    fn path(&mut self) -> Option<Option<PathBuf>> {
        Some(self.bytes()?.map(|bytes| OsString::from_vec(bytes).into()))
    }

    fn name(&mut self) -> Option<Option<String>> {
        match self.bytes()? {
            None => Some(None),
            Some(bytes) => String::from_utf8(bytes).ok().map(Some),
        }
    }

    fn child(&mut self) -> Option<ChildState> {
        let (id, pid) = (self.next()?, self.next()?);
        let (word, time) = (self.0.next()?, self.maybe()?);
        let stage = match (word, time) {
            ("serving", Some(for_ms)) => ChildStage::Serving { for_ms },
            ("leaving", None) => ChildStage::Leaving,
            ("failing", Some(killed_in_ms)) => ChildStage::Failing { killed_in_ms },
            ("failing", None) => ChildStage::Killed,
            _ => return None,
        };
        let (channel, notify) = (self.maybe()?, self.maybe()?);
        let reported = match self.0.next() {
            None => None,
            Some("ready") => Some(self.0.by_ref().map(served).collect::<Option<_>>()?),
            Some(_) => return None,
        };
        Some(ChildState { id, pid, stage, channel, notify, reported })
    }

    fn end(&mut self) -> Option<()> {
        self.0.next().is_none().then_some(())
    }
}

fn served(word: &str) -> Option<ServedState> {
    let mut words = Words(word.split('/'));
    // A word splits further at another character, and the result has the same type.
    let served = ServedState { number: words.next()?, inode: words.next()?, adopts: words.flag()? };
    words.end().map(|()| served)
}

impl Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.fd, self.inode)
    }
}

impl FromStr for Held {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (fd, inode) = text.split_once(':').ok_or(())?;
        Ok(Self { fd: fd.parse().map_err(drop)?, inode: inode.parse().map_err(drop)? })
    }
}

/// Writes a value, or `-` for none.
struct Maybe<T>(Option<T>);

impl<T: Display> Display for Maybe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// Writes bytes as hexadecimal digits, because a path may hold any byte, or `-` if there are none.
struct Hex<'a>(&'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded::seeded;
    use fastrand::Rng;

    fn any_held(random: &mut Rng) -> Held {
        Held { fd: random.i32(0..9), inode: random.u64(..) }
    }

    fn any_bytes(random: &mut Rng) -> Vec<u8> {
        (0..random.usize(1..5)).map(|_| random.u8(..)).collect()
    }

    fn maybe<T>(random: &mut Rng, any: impl Fn(&mut Rng) -> T) -> Option<T> {
        random.bool().then(|| any(random))
    }

    fn any_path(random: &mut Rng) -> PathBuf {
        OsString::from_vec(any_bytes(random)).into()
    }

    fn any_state(random: &mut Rng) -> State {
        let sockets = (0..random.usize(..4)).map(|_| SocketState {
            held: any_held(random),
            number: random.u32(..),
            is_own: random.bool(),
            is_brought: random.bool(),
            is_input: random.bool(),
            name: maybe(random, |random| random.alphanumeric().to_string()),
            path: maybe(random, any_path),
        });
        let sockets = sockets.collect();
        let children = (0..random.usize(..4)).map(|_| ChildState {
            id: random.u32(..),
            pid: random.u32(..),
            stage: match random.u8(..4) {
                0 => ChildStage::Serving { for_ms: random.u64(..) },
                1 => ChildStage::Leaving,
                2 => ChildStage::Failing { killed_in_ms: random.u64(..) },
                _ => ChildStage::Killed,
            },
            channel: maybe(random, any_held),
            notify: maybe(random, any_held),
            reported: maybe(random, |random| {
                let served = (0..random.usize(..3)).map(|_| ServedState {
                    number: random.u32(..),
                    inode: random.u64(..),
                    adopts: random.bool(),
                });
                served.collect()
            }),
        });
        let children = children.collect();
        let lock = maybe(random, |random| (any_held(random), any_path(random)));
        State { pid: 42, next: random.u32(..), lock, sockets, children }
    }

    #[test]
    fn any_state_is_read_as_it_was_written() {
        let mut random = seeded();
        for _ in 0..2_000 {
            let state = any_state(&mut random);
            let text = state.to_string();
            assert!(!text.contains('\0'));
            assert_eq!(State::read(&text, 42), Some(state), "{text}");
            // The variable is in the environment of another process, which has inherited it.
            assert_eq!(State::read(&text, 41), None, "{text}");
        }
    }

    /// Each state has one form, so text that is read as a state is the form of this state.
    #[test]
    fn text_that_was_changed_is_another_state_or_none() {
        const OTHERS: &[u8] = b"0123456789abcdef -:/\n";
        let mut random = seeded();
        let mut accepted = 0;
        for _ in 0..5_000 {
            let mut text = any_state(&mut random).to_string().into_bytes();
            for _ in 0..random.usize(1..4) {
                let place = random.usize(..text.len());
                match random.u8(..3) {
                    0 => text.truncate(place.max(1)),
                    1 => text.insert(place, OTHERS[random.usize(..OTHERS.len())]),
                    _ => text[place] = OTHERS[random.usize(..OTHERS.len())],
                }
            }
            let text = String::from_utf8(text).unwrap();
            if let Some(state) = State::read(&text, 42) {
                accepted += 1;
                // The changed text is another form of the same state: zeroes in front, or upper
                // case.
                assert_eq!(State::read(&state.to_string(), 42), Some(state), "{text}");
            }
        }
        assert!(accepted > 0);
    }

    #[test]
    fn garbage_is_no_state() {
        for text in [
            "",
            "2",
            "2 42",
            "1 42 1",
            "2 42 1 1",
            "2 42 1\n",
            "2 42 1\nlock",
            "2 42 1\nlock 3:7",
            "2 42 1\nlock 3:7 -",
            "2 42 1\nlock 3 2f",
            "2 42 1\nlock 3:7 2f\nlock 3:7 2f",
            "2 42 1\nsocket 3:7 0 1 0 2 - -",
            "2 42 1\nsocket 3:7 0 1 0 1 - 2f6",
            "2 42 1\nsocket 3:7 0 1 0 1 ff -",
            "2 42 1\nsocket 3:7 0 1 1 - -",
            "2 42 1\nchild 1 7 serving - - -",
            "2 42 1\nchild 1 7 leaving 5 - -",
            "2 42 1\nchild 1 7 dead - - -",
            "2 42 1\nchild 1 7 leaving - - - ready 1/2",
            "2 42 1\nchild 1 7 leaving - - - unready",
            "2 42 1\nother",
        ] {
            assert_eq!(State::read(text, 42), None, "{text}");
        }
    }
}
