//! Takes the descriptors that this process was started with, by their numbers.
//!
//! Invariant: a descriptor is taken once. After that only a copy is left, which no child of this
//! process inherits. This file does not know the purpose of a descriptor.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard};

use rustix::io::{FdFlags, fcntl_getfd};

use crate::lock::lock;

/// The first number after the standard streams.
pub(crate) const FIRST: RawFd = 3;

/// Takes a socket that this process was started with, if the descriptor is still the socket with
/// this inode.
pub(crate) fn take_socket(fd: RawFd, expected: u64) -> Option<OwnedFd> {
    let mut taken = taken();
    let is_free = fd >= FIRST && !taken.contains(&fd);
    let (copy, flags) = is_free.then(|| copy(fd).ok())??;
    if flags.contains(FdFlags::CLOEXEC) || inode(&copy).ok()? != expected {
        return None;
    }
    taken.insert(fd);
    close(fd);
    Some(copy)
}

/// Returns the descriptors that were taken.
pub(crate) fn taken() -> MutexGuard<'static, BTreeSet<RawFd>> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    lock(&TAKEN)
}

/// Returns a copy of a descriptor, which no child of this process inherits, and the descriptor's
/// own flags.
#[allow(unsafe_code, reason = "a descriptor that is known by its number alone")]
pub(crate) fn copy(fd: RawFd) -> io::Result<(OwnedFd, FdFlags)> {
    // SAFETY: the descriptor is borrowed for two calls, which fail if it is not open. If another
    // thread closes and opens files meanwhile, the calls see one of these files or none.
    let there = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfd(there)?;
    Ok((there.try_clone_to_owned()?, flags))
}

/// Closes a descriptor that this process was started with, after it was taken.
#[allow(unsafe_code, reason = "a descriptor that is known by its number alone")]
pub(crate) fn close(fd: RawFd) {
    // SAFETY: the descriptor is open, was passed to this process for its use, and has just been
    // taken for the first and the last time.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// Returns the inode of a socket, which no other open socket has.
pub(crate) fn inode(socket: impl AsFd) -> io::Result<u64> {
    Ok(File::from(socket.as_fd().try_clone_to_owned()?).metadata()?.ino())
}
