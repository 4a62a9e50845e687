//! Plain data behind locks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Locks plain data. A panic of another thread that had the lock does not make plain data wrong.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Data that several parts of the daemon have in common. A clone is the same data.
#[derive(Debug, Default)]
pub(crate) struct Locked<T>(Arc<Mutex<T>>);

impl<T> Clone for Locked<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Locked<T> {
    pub(crate) fn new(data: T) -> Self {
        Self(Arc::new(Mutex::new(data)))
    }

    /// Locks the data, for a moment. The guard cannot be held over an `await` in a task.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        lock(&self.0)
    }

    /// Returns `true` if the data is locked now.
    #[cfg(test)]
    pub(crate) fn is_locked(&self) -> bool {
        self.0.try_lock().is_err()
    }

    /// Replaces the data.
    pub(crate) fn set(&self, data: T) {
        *self.lock() = data;
    }
}

/// Work on threads that may block, which outlives the task that has begun it. A clone is the same
/// work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Work(Arc<RwLock<()>>);

impl Work {
    /// Begins a piece of work, which lasts until the guard is dropped. Waits while work is stopped.
    pub(crate) async fn begin(&self) -> OwnedRwLockReadGuard<()> {
        self.0.clone().read_owned().await
    }

    /// Waits until no work is going on, and stops it until the guard is dropped.
    pub(crate) async fn stop(&self) -> OwnedRwLockWriteGuard<()> {
        self.0.clone().write_owned().await
    }
}

impl<T: Clone> Locked<T> {
    /// Returns the data as it is now.
    pub(crate) fn get(&self) -> T {
        self.lock().clone()
    }
}
