//! [`SocketFile`]: the file of a listening Unix socket.
//!
//! Invariant: this process removes a file only if no other process listens on it, and only if it is
//! still the file that this process has bound or found. So the last process that closes a socket
//! removes its file (rule S5). This file does not know the other processes.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{self, Path, PathBuf};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// The file of a Unix socket. Drop it after the socket.
#[derive(Debug)]
pub(crate) struct SocketFile {
    /// The absolute path, so that the program may change its directory. If the absolute path is too
    /// long for the kernel, this is the path as it was given.
    path: PathBuf,
    /// The device and the inode, which show whether another file has taken the name.
    identity: (u64, u64),
}

impl SocketFile {
    /// Returns the file at `path`, which this value removes at its drop if it is stale by then.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if there is no such file.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let absolute = path::absolute(path).ok().filter(|path| SockAddr::unix(path).is_ok());
        let path = absolute.unwrap_or_else(|| path.to_owned());
        Ok(Self { identity: identity(&path)?, path })
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file while the socket still listens, because then no other server can have put
    /// its own file there. The caller knows that no other process has the socket.
    pub(crate) fn remove(&self) {
        if self.is_there().unwrap_or(false) {
            // A failure does no harm, because the next server finds the file stale and replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Returns `true` if the file is still there, and `false` if another file has taken its name.
    ///
    /// # Errors
    ///
    /// Returns [`io::ErrorKind::NotFound`] if the file was removed, for example by a program that
    /// cleans up /tmp.
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

/// Returns `true` if `path` is the file of a socket that no process has open.
///
/// # Errors
///
/// Returns the operating system's error if this process cannot find out, for example because the
/// file belongs to another user.
pub(crate) fn is_stale(path: &Path) -> io::Result<bool> {
    match probe(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // The file's mode may keep out even its owner, but the owner may change the mode.
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
    // it looks at the type, so its answer shows whether a socket is there, and a server notices
    // nothing.
    let probe = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns `true` if both paths lead to the same file, also by symbolic links.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// Returns the device and the inode of the file at `path`.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
