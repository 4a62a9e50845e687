//! Signals to the daemon.

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};
use tracing::info;

/// Tells of signals to reload, which are for whatever runs in this process. One that comes while
/// nothing can be reloaded is kept.
static RELOADS: Notify = Notify::const_new();

/// The signals that concern the daemon, from before it touches anything.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self> {
        let on = |kind| signal(kind).context("cannot receive signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// Returns when the daemon is to stop.
    pub(crate) async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return info!("SIGTERM: stopping"),
                _ = self.interrupt.recv() => return info!("SIGINT: stopping"),
                _ = self.hangup.recv() => {
                    info!("SIGHUP: reloading the configuration");
                    RELOADS.notify_one();
                }
            }
        }
    }
}

/// Returns when a signal has asked for a reload. For one task.
pub(crate) async fn reload() {
    RELOADS.notified().await;
}
