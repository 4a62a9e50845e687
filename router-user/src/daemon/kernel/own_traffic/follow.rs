//! Puts right what others change of what keeps this machine's own traffic apart.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::time::{MissedTickBehavior, interval};

use super::OwnTraffic;
use crate::{
    config::Config,
    daemon::{control::requests::Requests, state::Attachments, sync::Locked},
    dataplane::Dataplane,
};

/// How often the kernel's settings, and what is attached, are looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// What this has access to.
pub(crate) struct Access {
    pub(crate) config: Locked<Arc<Config>>,
    pub(crate) attachments: Locked<Attachments>,
    pub(crate) own_traffic: Locked<OwnTraffic>,
    pub(crate) plane: Locked<Dataplane>,
    pub(crate) requests: Requests,
}

/// Looks after all of it for ever.
pub(crate) async fn follow(access: Access) -> Result<()> {
    let Access { config, attachments, own_traffic, plane, requests } = access;
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let config = config.get();
        let changes = {
            // Locked until it is done: what is set again after it was stood down would be left
            // behind.
            let attachments = attachments.lock();
            if attachments.stood_down {
                continue;
            }
            own_traffic.lock().look_after(&config, &attachments.attached, &mut plane.lock())
        };
        if changes.rules {
            requests.ask();
        }
        changes.report();
    }
}
