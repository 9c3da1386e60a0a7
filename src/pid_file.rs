//! [`PidFile`]: the file that names the process which serves.
//!
//! Invariant: a reader finds a whole process id or no file, because a finished file takes the place
//! of the old one. A process removes the file only while the file holds its own id, as a successor
//! may have written another one by then. Does not know when the process serves.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{self, Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::reason;

/// The pid file of this process. Dropping this removes the file, unless it holds another process's
/// id.
#[derive(Debug)]
pub(crate) struct PidFile(PidWriter);

/// Writes the pid file, as long as there is a [`PidFile`].
#[derive(Debug, Clone)]
pub(crate) struct PidWriter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Absolute, so that it stays the same when the program changes its directory.
    path: PathBuf,
    is_over: Mutex<bool>,
}

impl PidFile {
    /// Makes sure that a file can be written at `path`, and leaves alone what is there.
    ///
    /// # Errors
    ///
    /// Returns an error that names the path if no file can be written there.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let named = |error| cannot_write(path, &error);
        let path = path::absolute(path).map_err(named)?;
        let named = |error| cannot_write(&path, &error);
        check(&path).map_err(named)?;
        let draft = draft(&path).map_err(named)?;
        fs::remove_file(draft).map_err(named)?;
        Ok(Self(PidWriter(Arc::new(Shared { path, is_over: Mutex::new(false) }))))
    }

    /// Returns what writes the file.
    pub(crate) fn writer(&self) -> PidWriter {
        self.0.clone()
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A worker that is still busy writes before this, or not at all.
        *self.0.lock() = true;
        let path = &self.0.0.path;
        if is_own(path) {
            if let Err(error) = fs::remove_file(path) {
                log::warn!("cannot remove the pid file {}: {}", path.display(), reason(&error));
            }
        }
    }
}

impl PidWriter {
    /// Writes this process's id, unless the file holds it. An error is only logged, because
    /// serving is worth more than the file.
    pub(crate) fn write(&self) {
        let is_over = self.lock();
        let path = &self.0.path;
        if *is_over || is_own(path) {
            return;
        }
        let renamed = check(path).and_then(|()| draft(path)).and_then(|draft| {
            fs::rename(&draft, path).inspect_err(|_| drop(fs::remove_file(&draft)))
        });
        if let Err(error) = renamed {
            log::error!("{}", cannot_write(path, &error));
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.0.is_over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns `true` if the file holds this process's id.
fn is_own(path: &Path) -> bool {
    // Something else may have taken the name: a pipe would be waited for, and a device has no end.
    if !fs::metadata(path).is_ok_and(|there| there.is_file()) {
        return false;
    }
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    read.is_ok() && text.trim().parse() == Ok(process::id())
}

/// How many bytes are read of a pid file: more than an id and some white space have.
const LONGEST: u64 = 64;

/// Makes sure that the file at `path` may be replaced, if there is one.
fn check(path: &Path) -> io::Result<()> {
    if path.file_name().is_none() || fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        // A device, such as /dev/null, would be replaced.
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(())
}

/// Writes this process's id to a file beside `path`, and returns the file's path.
fn draft(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", process::id()));
    let draft = PathBuf::from(name);
    // In a container each process has the id of the one before, which may have been killed here.
    // Nothing is overwritten, because in a directory like /tmp somebody else's link could be there.
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
    let written = writeln!(file, "{}", process::id());
    written.inspect_err(|_| drop(fs::remove_file(&draft)))?;
    Ok(draft)
}

fn cannot_write(path: &Path, error: &io::Error) -> io::Error {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "no such directory".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => reason(error),
    };
    let message = format!("cannot write the pid file {}: {reason}", path.display());
    io::Error::other(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The program may go to another directory after it has begun.
    #[test]
    fn a_relative_path_is_made_absolute_at_once() {
        let name = format!("sg-relative-{}.pid", process::id());
        let file = PidFile::at(Path::new(&name)).unwrap();
        assert_eq!(file.0.0.path, std::env::current_dir().unwrap().join(&name));
        // Nothing is there before the server is ready.
        assert!(!Path::new(&name).exists());
    }

    #[test]
    fn nothing_is_written_after_the_end() {
        let path = std::env::temp_dir().join(format!("sg-late-{}.pid", process::id()));
        let file = PidFile::at(&path).unwrap();
        let writer = file.writer();
        writer.write();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        drop(file);
        writer.write();
        assert!(!path.exists());
    }
}
