//! [`SocketFile`]: the file that a Unix socket listens on.
//!
//! Invariant: a file is removed only when no other process listens on it, and only if it is still
//! the file that this process has bound or found there. So the last process that lets go of a
//! socket removes its file, whichever that is (rule S5). Does not know who those processes are.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{self, Path, PathBuf};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// The file of a Unix socket. Drop it after the socket.
#[derive(Debug)]
pub(crate) struct SocketFile {
    /// The absolute path, so that the program may change its directory. If that is too long for the
    /// kernel, the path as it was given.
    path: PathBuf,
    /// Device and inode, which tell the file from another one that has taken its name.
    identity: (u64, u64),
}

impl SocketFile {
    /// Answers for the file at `path` from now on.
    ///
    /// # Errors
    ///
    /// Returns what the operating system says if there is no such file.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let absolute = path::absolute(path).ok().filter(|path| SockAddr::unix(path).is_ok());
        let path = absolute.unwrap_or_else(|| path.to_owned());
        Ok(Self { identity: identity(&path)?, path })
    }

    /// Returns where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file while the socket still listens, so that no other server can have put its
    /// own in its place. The caller knows that no other process has the socket.
    pub(crate) fn remove(&self) {
        if self.is_there().unwrap_or(false) {
            // A failure does no harm, because the next server finds the file stale and replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Returns `true` if the file is there, and `false` if another file has taken its name.
    ///
    /// # Errors
    ///
    /// Returns [`io::ErrorKind::NotFound`] if the file was removed, for example by what cleans up
    /// /tmp.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        Ok(identity(&self.path)? == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there().unwrap_or(false) && is_stale(&self.path).unwrap_or(false) {
            self.remove();
        }
    }
}

/// Returns `true` if `path` is the file of a socket that no process has any more.
///
/// # Errors
///
/// Returns what the operating system says if it does not tell, for example because the file belongs
/// to another user.
pub(crate) fn is_stale(path: &Path) -> io::Result<bool> {
    match probe(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // The file's mode may keep out even its owner, who may change it.
            let mode = fs::symlink_metadata(path)?.permissions().mode();
            let set = |mode| fs::set_permissions(path, Permissions::from_mode(mode));
            set(mode | 0o200).map_err(|_| error)?;
            let is_stale = probe(path);
            set(mode)?;
            is_stale
        }
        told => told,
    }
}

/// Asks the kernel whether the socket at `path` is stale.
fn probe(path: &Path) -> io::Result<bool> {
    // A datagram socket cannot connect to a stream socket. The kernel looks for the socket before
    // it looks at the type, so its answer tells whether there is one, and a server notices nothing.
    let probe = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns `true` if the two paths lead to the same file, by symbolic links too.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// Returns device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
