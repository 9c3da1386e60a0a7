//! [`PidLock`]: the pid file of a keeper, which only one keeper at a time can have.
//!
//! Invariant: a keeper holds the lock (`flock`) of its file from its start to its end, so the
//! kernel knows whether the keeper of a file still runs. The file is empty until the keeper has a
//! child that serves, and holds a whole process id from then on. This file does not decide when
//! that is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};
use std::process;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::reason;
use crate::restart::pid_file::{self, cannot_write, taken};

/// A pid file whose lock this process holds. The drop removes the file, unless another file has
/// taken its name.
#[derive(Debug)]
pub(crate) struct PidLock {
    file: File,
    /// The absolute path, because the program may change its directory.
    path: PathBuf,
}

impl PidLock {
    /// Creates and locks the file at `path`, or takes over the file of a keeper that no longer
    /// runs.
    ///
    /// # Errors
    ///
    /// Returns an error that names the path if another keeper has the file, or if the file cannot
    /// be written.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let named = |error| cannot_write(path, &error);
        let absolute = path::absolute(path).map_err(named)?;
        loop {
            // A symbolic link stays, and leads to the file, which the first turn of this loop may
            // have made.
            let path = fs::canonicalize(&absolute).unwrap_or_else(|_| absolute.clone());
            let named = |error| cannot_write(&path, &error);
            pid_file::check(&path).map_err(named)?;
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(named)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(taken(&path)),
                Err(error) => return Err(named(error.into())),
            }
            let lock = Self { file, path: path.clone() };
            // The keeper that had the file may have removed it between the two calls.
            if lock.is_there() {
                pid_file::warn_of_another(&path);
                lock.file.set_len(0).map_err(named)?;
                return Ok(lock);
            }
        }
    }

    /// Takes over a lock that this process held before it replaced its program.
    pub(crate) fn resume(file: OwnedFd, path: PathBuf) -> Self {
        Self { file: file.into(), path }
    }

    /// Writes this process's id. An error is only logged, because serving is worth more than the
    /// file.
    pub(crate) fn write(&self) {
        // A single call writes the id, so a reader finds a whole id or none.
        let written = (&self.file).write_all(format!("{}\n", process::id()).as_bytes());
        if let Err(error) = written {
            log::error!("{}", cannot_write(&self.path, &error));
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns `true` if the file with this name is the locked one.
    fn is_there(&self) -> bool {
        let identity = |file: &fs::Metadata| (file.dev(), file.ino());
        let there = fs::symlink_metadata(&self.path).map(|file| identity(&file));
        matches!((there, self.file.metadata()), (Ok(there), Ok(own)) if there == identity(&own))
    }
}

impl AsFd for PidLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for PidLock {
    fn drop(&mut self) {
        if self.is_there() {
            if let Err(error) = fs::remove_file(&self.path) {
                let path = self.path.display();
                log::warn!("cannot remove the pid file {path}: {}", reason(&error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;

    fn temporary(name: &str) -> PathBuf {
        env::temp_dir().join(format!("sg-{name}-{}.pid", process::id()))
    }

    #[test]
    fn a_file_belongs_to_one_keeper() {
        let path = temporary("lock");
        let lock = PidLock::at(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        let taken = |whom: &str| {
            let error = PidLock::at(&path).unwrap_err().to_string();
            let path = path.display();
            let line = "stop it, or give another path";
            assert_eq!(error, format!("the pid file {path} belongs to the keeper {whom}; {line}"));
        };
        taken("that is starting");
        lock.write();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        taken(&format!("with the process id {}, which runs", process::id()));
        drop(lock);
        assert!(!path.exists());
        drop(PidLock::at(&path).unwrap());
    }

    #[test]
    fn a_link_to_a_file_that_does_not_exist_yet_stays() {
        let (path, link) = (temporary("linked"), temporary("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let lock = PidLock::at(&link).unwrap();
        lock.write();
        assert_eq!(fs::read_to_string(&link).unwrap(), format!("{}\n", process::id()));
        assert_eq!(PidLock::at(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(lock);
        assert!(fs::symlink_metadata(&path).is_err());
        fs::remove_file(&link).unwrap();
    }

    #[test]
    fn a_stale_file_is_replaced_and_another_is_left_alone() {
        let path = temporary("stale");
        // No process has so high an id.
        fs::write(&path, "99999999\n").unwrap();
        let lock = PidLock::at(&path).unwrap();
        lock.write();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        // Another program puts its file there.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(lock);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        fs::write(&path, "precious").unwrap();
        assert!(PidLock::at(&path).unwrap_err().to_string().contains("something else"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
    }
}
