//! Locks of plain data.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks plain data. A panic of another thread that had the lock does not make plain data wrong.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
