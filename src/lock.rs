//! [`lock`]: takes a mutex even if a thread has panicked with it.
//!
//! Invariant: a panic never makes a lock unusable. This file does not repair the data under a lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`. A panic of another thread does not matter, because no code of this crate can
/// panic while the data under a lock is half changed. The program's handlers and streams run
/// without a lock, or their panic ends the connection that has the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
