//! Restores the reserved ports and the egress classifier when something else changes them.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval};

use super::OwnTraffic;
use crate::{
    config::Config,
    daemon::{control::requests::Requests, state::Attachments, sync::Locked},
    dataplane::Dataplane,
};

/// The period in which the kernel's settings and the attached programs are checked.
const PERIOD: Duration = Duration::from_secs(2);

/// The parts of the daemon that this has access to. A clone has the same.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) config: Locked<Arc<Config>>,
    pub(crate) attachments: Locked<Attachments>,
    pub(crate) own_traffic: Locked<OwnTraffic>,
    pub(crate) plane: Locked<Dataplane>,
    pub(crate) requests: Requests,
}

/// Checks and repairs, periodically.
pub(crate) async fn follow(access: Access) -> Result<()> {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        look(&access);
    }
}

/// Checks and repairs once.
pub(crate) fn look(access: &Access) {
    let Access { config, attachments, own_traffic, plane, requests } = access;
    let config = config.get();
    let changes = {
        // Locked until all is set: a repair after the stand-down would never be undone.
        let attachments = attachments.lock();
        if attachments.is_being_detached {
            return;
        }
        own_traffic.lock().look_after(&config, &attachments.attached, &mut plane.lock())
    };
    if changes.rules {
        requests.ask();
    }
    changes.report();
}
