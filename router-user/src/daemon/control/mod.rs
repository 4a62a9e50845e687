//! Decides what the data plane has to do, and has it done.
//!
//! The rule set that is wanted (`desired`) follows from the configuration, the addresses of names,
//! the health of targets and the ports of sessions. Whoever changes one of these asks for a look
//! (`requests`); [`Control`] is the only one that writes rules.

pub(crate) mod desired;
pub(crate) mod requests;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{task::spawn_blocking, time::sleep};
use tracing::warn;

use self::requests::Requests;
use crate::{
    daemon::{state::State, sync::Locked},
    dataplane::{Dataplane, RuleTable},
};

/// The pause before rules that could not be written are written again, which doubles with each
/// failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest it gets.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Has the data plane do what is wanted.
pub(crate) struct Control {
    state: State,
    rules: RuleTable,
    plane: Locked<Dataplane>,
    requests: Requests,
}

impl Control {
    pub(crate) fn new(state: State, plane: &Locked<Dataplane>, requests: Requests) -> Self {
        let rules = plane.lock().rules.clone();
        Self { state, rules, plane: plane.clone(), requests }
    }

    /// Puts the rules in force whenever somebody asks for it. The kernel may well refuse once,
    /// which is nothing to end the daemon for: the rules of before stay in force meanwhile.
    pub(crate) async fn run(self) -> Result<()> {
        let control = Arc::new(self);
        loop {
            control.requests.turn().await;
            let mut pause = FIRST_RETRY;
            loop {
                let applying = control.clone();
                // A large rule set takes a while.
                let applied = spawn_blocking(move || applying.apply()).await;
                let Err(error) = applied.context("the writing of rules has crashed")? else { break };
                warn!("the rules are not followed yet: {error:#}");
                sleep(pause).await;
                pause = (pause * 2).min(LAST_RETRY);
            }
        }
    }

    /// Puts the rules in force with names, addresses and targets' health as they are now.
    fn apply(&self) -> Result<()> {
        let config = self.state.config.get();
        let spec = {
            let ports = self.state.own_traffic.lock().session_ports();
            let names = self.state.names.lock();
            desired::build(&config, &names, &self.state.target_health.lock(), ports)
        };
        let version = self.plane.lock().settings.version();
        self.rules.apply_by(&spec, version, |version| {
            self.plane.lock().settings.set_version(version)?;
            self.state.rules_version.set(version);
            Ok(())
        })
    }
}
