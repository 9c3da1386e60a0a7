//! `LogFile`: the file of a log, which is opened again after a rename or a removal.
//!
//! Invariant: a line is in one file, never in two, and every write goes to the end of the file, so
//! that several processes may share it and `copytruncate` works. A pipe takes a short line whole or
//! not at all, so processes may share a pipe, too. Writes may block, because only the thread of a
//! `LogWriter` uses this file. It does not know the content of the lines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The shortest time between two looks at the file's name.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// The shortest time between two warnings that the file cannot be written or opened again.
const WARN_PAUSE: Duration = Duration::from_secs(60);

/// The most bytes that a pipe takes as a whole (PIPE_BUF, pipe(7)). POSIX promises 512 of them.
const WHOLE_IN_PIPE: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

/// A file to whose end lines are added, or the standard output.
#[derive(Debug)]
pub(crate) struct LogFile {
    /// `None` for the standard output, which has no name to follow.
    path: Option<PathBuf>,
    file: File,
    is_pipe: bool,
    looked_at: Instant,
    /// `true` if no rest of a line is to come.
    is_between_lines: bool,
    warned_at: Option<Instant>,
}

impl LogFile {
    /// Opens the file, and makes it if there is none.
    ///
    /// # Errors
    ///
    /// Returns an error that names the path.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path).map_err(|error| named(path, &error))?;
        let file = open(&path).map_err(|error| named(&path, &error))?;
        Ok(Self::of(file, Some(path)))
    }

    /// Opens the standard output, without the lock and the buffer of the standard library.
    ///
    /// # Errors
    ///
    /// Returns the system's error if the standard output is closed.
    pub(crate) fn stdout() -> io::Result<Self> {
        Ok(Self::of(File::from(io::stdout().as_fd().try_clone_to_owned()?), None))
    }

    fn of(file: File, path: Option<PathBuf>) -> Self {
        Self {
            path,
            is_pipe: is_pipe(&file),
            file,
            looked_at: Instant::now(),
            is_between_lines: true,
            warned_at: None,
        }
    }

    /// Checks that the file can be opened. Removes the file if there was none before.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`LogFile::open`].
    pub(crate) fn check(path: &Path) -> io::Result<()> {
        let was_there = path.exists();
        Self::open(path)?;
        if was_there { Ok(()) } else { fs::remove_file(path) }
    }

    /// Opens the file again if its name now leads to another file, or to none.
    fn follow(&mut self) {
        self.looked_at = Instant::now();
        let Some(path) = &self.path else { return };
        let identity = |file: &fs::Metadata| (file.dev(), file.ino());
        let there = fs::metadata(path).map(|file| identity(&file)).ok();
        let own = self.file.metadata().map(|file| identity(&file)).ok();
        if there.is_some() && there == own {
            return;
        }
        match open(path) {
            Ok(file) => (self.is_pipe, self.file) = (is_pipe(&file), file),
            Err(error) => self.warn(&error),
        }
    }

    /// Logs that lines are lost, or go to a file that has lost its name. While that goes on, logs
    /// it once in each [`WARN_PAUSE`].
    fn warn(&mut self, error: &io::Error) {
        if self.warned_at.is_some_and(|at| at.elapsed() < WARN_PAUSE) {
            return;
        }
        self.warned_at = Some(Instant::now());
        let path = self.path.as_deref().unwrap_or(Path::new("to the standard output"));
        log::warn!("{}", named(path, error));
    }
}

/// A flush means that no rest of a line will come: the lines before it were whole, or a `LogWriter`
/// has given up the rest of a torn one.
impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_between_lines && self.looked_at.elapsed() >= LOOK_PAUSE {
            self.follow();
        }
        self.is_between_lines = false;
        let bytes = if self.is_pipe { whole_in_pipe(bytes) } else { bytes };
        let written = self.file.write(bytes);
        match &written {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.warn(error),
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.is_between_lines = true;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    // To open a pipe for writing alone would wait for a reader.
    let is_pipe = fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
    if is_pipe {
        return OpenOptions::new().read(true).write(true).open(path);
    }
    OpenOptions::new().append(true).create(true).open(path)
}

fn is_pipe(file: &File) -> bool {
    file.metadata().is_ok_and(|file| file.file_type().is_fifo())
}

/// Returns as many lines of `bytes` as a pipe takes as a whole, and at least one. If the first line
/// is too long for that, returns that line.
fn whole_in_pipe(bytes: &[u8]) -> &[u8] {
    let most = &bytes[..bytes.len().min(WHOLE_IN_PIPE)];
    let end = memchr::memrchr(b'\n', most).or_else(|| memchr::memchr(b'\n', bytes));
    end.map_or(bytes, |end| &bytes[..=end])
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "no such directory; make it first".into(),
        io::ErrorKind::IsADirectory => "it is a directory; give the path of a file".into(),
        _ if path.as_os_str().is_empty() => {
            "the path is empty; give the path of a file, or - for standard output".into()
        }
        _ => crate::reason(error),
    };
    io::Error::new(
        error.kind(),
        format!("cannot write the access log {}: {reason}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;
    use std::process;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            Self(env::temp_dir().join(format!("sg-access-{name}-{}.log", process::id())))
        }

        fn text(&self) -> String {
            fs::read_to_string(&self.0).unwrap()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn write(file: &mut LogFile, text: &str) {
        file.write_all(text.as_bytes()).unwrap();
        file.flush().unwrap();
    }

    #[test]
    fn a_file_that_was_renamed_is_made_anew() {
        let (place, old) = (Place::new("renamed"), Place::new("renamed-old"));
        fs::write(&place.0, "before\n").unwrap();
        let mut file = LogFile::open(&place.0).unwrap();
        write(&mut file, "one\n");
        fs::rename(&place.0, &old.0).unwrap();
        // The last look at the name was a moment ago.
        file.looked_at = Instant::now();
        write(&mut file, "two\n");
        // The second half of a line goes to the same file as the first.
        file.write_all(b"thr").unwrap();
        file.looked_at = Instant::now().checked_sub(LOOK_PAUSE).unwrap();
        write(&mut file, "ee\n");
        write(&mut file, "four\n");
        assert_eq!(old.text(), "before\none\ntwo\nthree\n");
        assert_eq!(place.text(), "four\n");
    }

    #[test]
    fn a_file_that_was_cut_short_goes_on_at_its_beginning() {
        let place = Place::new("truncated");
        let mut file = LogFile::open(&place.0).unwrap();
        write(&mut file, "one\n");
        File::options().write(true).open(&place.0).unwrap().set_len(0).unwrap();
        write(&mut file, "two\n");
        assert_eq!(place.text(), "two\n");
    }

    #[test]
    fn a_pipe_gets_whole_lines() {
        let (short, long) = ([b'x'; 100], vec![b'y'; WHOLE_IN_PIPE]);
        let lines = [&[&short[..], b"\n"].concat().repeat(50), &long[..], b"\n", &short].concat();
        let mut rest = &lines[..];
        let mut lengths = Vec::new();
        while !rest.is_empty() {
            let part = whole_in_pipe(rest);
            lengths.push(part.len());
            rest = &rest[part.len()..];
        }
        let each = WHOLE_IN_PIPE / 101 * 101;
        let all_short = 50 * 101;
        assert_eq!(lengths[0], each);
        assert_eq!(lengths.iter().take_while(|&&n| n <= each).sum::<usize>(), all_short);
        assert_eq!(lengths[lengths.len() - 2..], [WHOLE_IN_PIPE + 1, 100]);
    }

    #[test]
    fn a_path_that_cannot_be_had_is_named() {
        let error = LogFile::open(Path::new("/nowhere/access.log")).unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot write the access log /nowhere/access.log: no such directory; make it first"
        );
        assert!(LogFile::open(&env::temp_dir()).is_err());
    }
}
