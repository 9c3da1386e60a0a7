//! [`SocketFile`]: the file that a Unix socket listens on.
//!
//! Invariant: a file is removed only by who is answerable for it, and only if it is still the one
//! that this process bound or was handed: a successor may have put its own in its place.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

/// The file of a Unix socket; removed at the end, unless it is another's by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// What tells it from another that has taken its name; `None` if it is others'.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Answers for the file at `path` from now on.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: Some(identity(path)?) })
    }

    /// Answers for the file of a predecessor's, if there was one.
    pub(crate) fn of(path: &Path, identity: Option<(u64, u64)>) -> Self {
        Self { path: path.to_owned(), identity }
    }

    /// Device and inode; `None` if it is not ours.
    #[cfg(feature = "restart")]
    pub(crate) fn identity(&self) -> Option<(u64, u64)> {
        self.identity
    }

    /// Leaves it to whoever holds the socket too (rule S5).
    #[cfg(feature = "restart")]
    pub(crate) fn leave(&mut self) {
        self.identity = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path).ok() == self.identity {
            // Not worth a word if it fails: the next server finds it stale and replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether `path` is a socket that nobody listens on any more.
pub(crate) fn is_stale(path: &Path) -> io::Result<bool> {
    if !is_deaf(path)? {
        return Ok(false);
    }
    // A server that has just bound it may not listen yet.
    thread::sleep(BINDING);
    is_deaf(path)
}

/// How long a server may take from binding its socket to listening on it.
const BINDING: Duration = Duration::from_millis(50);

/// Whether a client of `path` is refused.
fn is_deaf(path: &Path) -> io::Result<bool> {
    // Without blocking: a live server with a full queue is no less alive.
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    Ok(probe.connect(&SockAddr::unix(path)?).is_err_and(refused))
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
