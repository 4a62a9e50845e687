//! Packets that the data plane does not send itself.
//!
//! Packets that wait for a neighbour (`waiting`) are kept as they came in. The kernel is asked for
//! the neighbour. When that has answered, the packets are given to the programs again, and the
//! outcome is sent (`output`): the first packet of a connection is not lost, and needs no
//! retransmission. A neighbour that does not answer is noted (`failed`): the programs then answer
//! the senders of the packets, and for a while the senders of later ones at once. Fragments that
//! came before the first of their datagram are held (`early_fragments`) until that has come, and go
//! the same way. Packets that are too large for their next hop are translated already, and are sent
//! in fragments.
//!
//! These packets do not go through the host's firewall. Lost packets are counted (`tally`).

mod early_fragments;
mod failed;
mod handler;
pub(crate) mod output;
mod received;
pub(crate) mod router;
pub(crate) mod tally;
pub(crate) mod thread;
mod waiting;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use aya_log::EbpfLogger;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::interval,
};
use tracing::warn;

use self::router::Router;

/// The period in which the daemon tells the data plane that it is running: well within
/// `Settings::DAEMON_TIMEOUT`.
const PRESENCE: Duration = Duration::from_secs(1);

/// Tells the data plane periodically that the daemon takes punts.
pub(super) async fn show_presence(router: Arc<dyn Router>) -> Result<()> {
    let mut period = interval(PRESENCE);
    loop {
        period.tick().await;
        let shown = router.show_presence();
        if let Err(error) = shown {
            warn!("{error:#}");
        }
    }
}

/// Passes the programs' own log on until the daemon ends.
pub(super) async fn log(logger: EbpfLogger<&'static dyn log::Log>) -> Result<()> {
    // SAFETY: the logger owns its ring's descriptor, keeps it open as long as it lives, and always
    // names the same one.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
        .context("cannot wait for the programs' log")?;
    loop {
        let mut ready = logger.readable_mut().await.context("cannot wait for the programs' log")?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
