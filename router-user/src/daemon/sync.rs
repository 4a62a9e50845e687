//! Plain data behind locks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
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
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// `true` until the instance that does it has been replaced.
    is_wanted: Arc<RwLock<bool>>,
}

/// A piece of work, which lasts until this is dropped.
pub(crate) type Piece = OwnedRwLockReadGuard<bool>;

/// Keeps work from being begun, until this is dropped.
pub(crate) struct Stopped(OwnedRwLockWriteGuard<bool>);

impl Default for Work {
    fn default() -> Self {
        Self { is_wanted: Arc::new(RwLock::new(true)) }
    }
}

impl Work {
    /// Begins a piece of work. Waits while work is stopped.
    ///
    /// # Errors
    /// Returns an error if another instance of the daemon has taken the place of this one.
    pub(crate) async fn begin(&self) -> Result<Piece> {
        let piece = self.is_wanted.clone().read_owned().await;
        ensure!(*piece, "the daemon has just been replaced; ask again");
        Ok(piece)
    }

    /// Waits until no work is going on, and stops it until the value is dropped.
    pub(crate) async fn stop(&self) -> Stopped {
        Stopped(self.is_wanted.clone().write_owned().await)
    }
}

impl Stopped {
    /// Stops work for good.
    pub(crate) fn for_good(mut self) {
        *self.0 = false;
    }
}

impl<T: Clone> Locked<T> {
    /// Returns the data as it is now.
    pub(crate) fn get(&self) -> T {
        self.lock().clone()
    }
}
