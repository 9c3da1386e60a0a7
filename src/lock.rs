//! [`lock`]: takes a mutex whether or not a thread has panicked with it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`. A panic of another thread does not matter, because no code of this crate can
/// panic while the data under a lock is half changed. The program's handlers and streams run
/// without a lock, or their panic ends the connection that has the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
