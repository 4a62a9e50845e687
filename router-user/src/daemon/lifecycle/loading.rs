//! Loading the data plane without blocking the executor.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::{Context as _, Result};
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::dataplane::{LoadOptions, Prepared};

/// The loading of the data plane, on a thread that may block: the verifier takes a while, and the
/// kernel may have it begin again. The executor goes on meanwhile, so that signals are received.
#[derive(Default)]
pub(crate) struct Loading {
    cancelled: Arc<AtomicBool>,
    /// Locked while the data plane is being loaded.
    active: Arc<Mutex<()>>,
}

impl Loading {
    /// Loads the programs.
    ///
    /// # Errors
    /// Fails as [`Prepared::load`] does, and after [`stop`](Self::stop).
    pub(crate) async fn load(&self, options: LoadOptions) -> Result<Prepared> {
        let active = self.active.clone().lock_owned().await;
        let cancelled = self.cancelled.clone();
        // If the caller has gone, the result is dropped in this order: `active` last.
        let work = move || (Prepared::load(&options, &cancelled), active);
        let (prepared, _active) = spawn_blocking(work).await.context("the loading has crashed")?;
        prepared
    }

    /// Cancels the loading, and returns once it has ended.
    pub(crate) async fn stop(&self) {
        self.cancelled.store(true, Relaxed);
        drop(self.active.lock().await);
    }
}
