//! [`PidFile`]: the file with the id of the process that serves.
//!
//! Invariant: a reader finds a whole process id or no file, because a finished file replaces the
//! old one. A process removes the file only while the file holds its own id, because a successor
//! may have written another id by then. This file does not know when the process serves.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{self, Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::error::reason;
use crate::lock::lock;

/// The pid file of this process, by its absolute path, because the program may change its
/// directory. The drop removes the file, unless it holds another process's id.
#[derive(Debug)]
pub(crate) struct PidFile(Arc<Path>);

/// Writes the pid file, as long as there is a [`PidFile`].
#[derive(Debug, Clone)]
pub(crate) struct PidWriter(Arc<Path>);

impl PidFile {
    /// Checks that a file can be written at `path`, and does not touch an existing one.
    ///
    /// # Errors
    ///
    /// Returns an error that names the path if a file cannot be written there, or if a keeper has
    /// the file.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let named = |error| cannot_write(path, &error);
        let path = path::absolute(path).map_err(named)?;
        // A symbolic link stays, and leads to the new file.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let named = |error| cannot_write(&path, &error);
        check(&path).map_err(named)?;
        if has_keeper(&path) {
            return Err(taken(&path));
        }
        warn_of_another(&path);
        let draft = draft(&path).map_err(named)?;
        fs::remove_file(draft).map_err(named)?;
        let path = Arc::from(path);
        files().push(Arc::clone(&path));
        Ok(Self(path))
    }

    /// Returns the writer of the file.
    pub(crate) fn writer(&self) -> PidWriter {
        PidWriter(self.0.clone())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let path = &self.0;
        // The lock of the list makes a busy worker write before this line, or not at all.
        files().retain(|file| !Arc::ptr_eq(file, path));
        if is_own(path) {
            if let Err(error) = fs::remove_file(path) {
                log::warn!("cannot remove the pid file {}: {}", path.display(), reason(&error));
            }
        }
    }
}

/// Locks and returns the paths of this process's [`PidFile`]s. The lock is held while a file is
/// written.
fn files() -> MutexGuard<'static, Vec<Arc<Path>>> {
    static FILES: Mutex<Vec<Arc<Path>>> = Mutex::new(Vec::new());
    lock(&FILES)
}

impl PidWriter {
    /// Writes this process's id, unless the file holds it already. An error is only logged, because
    /// serving is worth more than the file.
    pub(crate) fn write(&self) {
        files().iter().filter(|file| Arc::ptr_eq(file, &self.0)).for_each(|path| write(path));
    }
}

fn write(path: &Path) {
    if is_own(path) {
        return;
    }
    let renamed = check(path)
        .and_then(|()| draft(path))
        .and_then(|draft| fs::rename(&draft, path).inspect_err(|_| drop(fs::remove_file(&draft))));
    if let Err(error) = renamed {
        log::error!("{}", cannot_write(path, &error));
    }
}

/// Returns `true` if the file holds this process's id.
fn is_own(path: &Path) -> bool {
    matches!(content(path), Content::Id(id) if id == process::id())
}

/// The content of a pid file.
pub(crate) enum Content {
    /// There is no file, or an empty one.
    Nothing,
    /// The file has a process id.
    Id(u32),
    /// The file has something else.
    Other,
}

pub(crate) fn content(path: &Path) -> Content {
    // A read from a pipe could wait for ever, and a device may have no end.
    match fs::metadata(path) {
        Ok(there) if there.is_file() => {}
        Ok(_) => return Content::Other,
        Err(_) => return Content::Nothing,
    }
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    match (read, text.trim()) {
        (Err(_), _) => Content::Other,
        (Ok(_), "") => Content::Nothing,
        (Ok(_), id) => id.parse().map_or(Content::Other, Content::Id),
    }
}

/// Warns if the file at `path` names another process that runs, because that process may be another
/// server.
pub(crate) fn warn_of_another(path: &Path) {
    let Content::Id(id) = content(path) else { return };
    if is_running(id) && id != process::id() {
        log::warn!(
            "the pid file {} names process {id}, which runs and may be another server; this process \
             takes the file over",
            path.display()
        );
    }
}

/// Returns `true` if a keeper that runs holds the lock of the file.
fn has_keeper(path: &Path) -> bool {
    let is_locked =
        |file| flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
    File::open(path).is_ok_and(is_locked)
}

/// Returns the error for a file that a keeper has.
pub(crate) fn taken(path: &Path) -> io::Error {
    let id = match content(path) {
        Content::Id(id) => format!("with the process id {id}, which runs"),
        Content::Nothing | Content::Other => "that is starting".into(),
    };
    let path = path.display();
    let message =
        format!("the pid file {path} belongs to the keeper {id}; stop it, or give another path");
    io::Error::new(io::ErrorKind::AlreadyExists, message)
}

/// Returns `true` if there is a process with this id.
fn is_running(id: u32) -> bool {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// The largest number of bytes that is read of a pid file. An id and white space have fewer.
const LONGEST: u64 = 64;

/// Checks that the file at `path` may be replaced, if there is one.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    if path.file_name().is_none() || fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        // Without this check, a device such as /dev/null would be replaced.
        return Err(io::Error::other("it is not a regular file; give another path"));
    }
    if matches!(content(path), Content::Other) {
        return Err(io::Error::other(
            "the file there holds something else than a process id; remove it, or give another \
             path",
        ));
    }
    Ok(())
}

/// Writes this process's id to a file beside `path`, and returns the file's path.
fn draft(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", process::id()));
    let draft = PathBuf::from(name);
    // In a container, each process may have the id of the process before, which may have left its
    // draft here. The draft is created anew, because in a directory like /tmp another user's link
    // could be there.
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
    let written = writeln!(file, "{}", process::id());
    written.inspect_err(|_| drop(fs::remove_file(&draft)))?;
    Ok(draft)
}

pub(crate) fn cannot_write(path: &Path, error: &io::Error) -> io::Error {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "no such directory; make it first".into(),
        io::ErrorKind::PermissionDenied => {
            "permission denied; this user has to be able to write to the directory".into()
        }
        _ => reason(error),
    };
    io::Error::other(format!("cannot write the pid file {}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;

    /// The program may change its directory after it has begun.
    #[test]
    fn a_relative_path_is_made_absolute_at_once() {
        let name = format!("sg-relative-{}.pid", process::id());
        let file = PidFile::at(Path::new(&name)).unwrap();
        assert_eq!(*file.0, env::current_dir().unwrap().join(&name));
        // There is no file before the server is ready.
        assert!(!Path::new(&name).exists());
    }

    #[test]
    fn nothing_is_written_after_the_end() {
        let path = env::temp_dir().join(format!("sg-late-{}.pid", process::id()));
        let file = PidFile::at(&path).unwrap();
        let writer = file.writer();
        writer.write();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        drop(file);
        writer.write();
        assert!(!path.exists());
    }
}
