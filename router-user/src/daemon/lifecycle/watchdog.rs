//! Tells the service manager again and again that the daemon lives, if it wants to know
//! (`WatchdogSec=` of the unit). It kills a daemon that does not, and starts another.

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// The number of messages within the limit: one may be late.
const TIMES: u32 = 4;

/// Does so until the process ends, through pauses and replacements of the daemon's parts.
pub(crate) async fn feed() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut period = interval(limit / TIMES);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        // A service manager that does not take it will find out by itself.
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}
