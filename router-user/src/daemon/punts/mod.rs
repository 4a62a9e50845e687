//! Packets that the data plane punts to the daemon.
//!
//! - Packets to an unresolved neighbour (`waiting`), as they were received. The kernel is asked to
//!   resolve it. Then the programs are run on the packets again, and the results are sent
//!   (`output`), so the first packet of a connection is not lost. A neighbour that does not answer
//!   is noted (`failed`), and the programs answer these and later packets with an error.
//! - Early fragments (`early_fragments`), until the first one of their datagram has arrived. Then
//!   the programs are run on them again as well.
//! - Packets that are larger than the MTU of their next hop. They are translated already, and are
//!   sent in fragments.
//!
//! None of these packets passes the host's firewall. Lost packets are counted (`tally`).

mod early_fragments;
mod failed;
mod handler;
mod output;
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

/// The interval of signs of life to the data plane: well within `Settings::DAEMON_TIMEOUT`.
const PRESENCE: Duration = Duration::from_secs(1);

/// Shows the data plane regularly that there is a daemon to punt packets to.
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

/// Passes the programs' own log on.
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
