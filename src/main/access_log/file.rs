//! `LogFile`: the file of a log, which is opened again after a rename or a removal.
//!
//! Invariant: a line is in one file, never in two, and every write goes to the end of the file, so
//! that several processes may share it and `copytruncate` works. Writes may block, because only the
//! thread of a `LogWriter` uses this file. It does not know the content of the lines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The shortest time between two looks at the file's name.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// A file to whose end lines are added.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    looked_at: Instant,
    /// `true` if the last byte that was written has ended a line.
    is_between_lines: bool,
    /// `true` if the log has said that the file cannot be written or opened again.
    has_failed: bool,
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
        Ok(Self {
            path,
            file,
            looked_at: Instant::now(),
            is_between_lines: true,
            has_failed: false,
        })
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
        let identity = |file: &fs::Metadata| (file.dev(), file.ino());
        let there = fs::metadata(&self.path).map(|file| identity(&file)).ok();
        let own = self.file.metadata().map(|file| identity(&file)).ok();
        if there.is_some() && there == own {
            return;
        }
        match open(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => self.warn(&error),
        }
    }

    /// Logs once that lines are lost, or go to a file that has lost its name.
    fn warn(&mut self, error: &io::Error) {
        if !self.has_failed {
            log::warn!("{}", named(&self.path, error));
        }
        self.has_failed = true;
    }
}

/// A flush means that the bytes before it were whole lines, as with a `LogWriter`.
impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_between_lines && self.looked_at.elapsed() >= LOOK_PAUSE {
            self.follow();
        }
        self.is_between_lines = false;
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
    fn a_path_that_cannot_be_had_is_named() {
        let error = LogFile::open(Path::new("/nowhere/access.log")).unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot write the access log /nowhere/access.log: no such directory; make it first"
        );
        assert!(LogFile::open(&env::temp_dir()).is_err());
    }
}
