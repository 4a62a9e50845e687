//! Puts the daemon's parts together: gives each what it needs, and nothing else.

use std::{fs::File, path::Path, sync::Arc, time::Instant};

use anyhow::Result;
use tokio::sync::Notify;
use tracing::warn;

use super::{
    checks,
    control::{Control, Resolve, requests::Requests, writer::KernelRules},
    drain,
    kernel::{
        interfaces::Attached,
        next_hops,
        own_traffic::{self, OwnTraffic},
    },
    lifecycle::replacement::Replacer,
    names::{self, resolved::Names},
    observe::monitor::Monitor,
    options::Options,
    punts::{router::KernelRouter, tally::Tally},
    reload::{self, Reloader, Tables, cut::Cutter},
    self_test,
    serve::{api, probe, reports::Reports},
    sessions::{audit, sweep},
    state::State,
    sync::{Locked, Work},
};
use crate::{
    config::Config,
    dataplane::{CounterTable, Dataplane, FlowTable, Replayer, RuleTable},
};

/// The things that all instances of a process have in common.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) options: Options,
    pub(crate) replacer: Replacer,
    pub(crate) reloads: reload::Memory,
}

/// The handles that the parts are given.
pub(super) struct Parts {
    pub(super) config_path: Arc<Path>,
    pub(super) state: State,
    /// The data plane, locked for moments.
    pub(super) plane: Locked<Dataplane>,
    requests: Requests,
    names_changed: Arc<Notify>,
    pub(super) monitor: Monitor,
    pub(super) counters: CounterTable,
    /// Counters of punted packets.
    pub(super) punts: Arc<Tally>,
    flows: FlowTable,
    rules: RuleTable,
    started: Instant,
    reloads: reload::Memory,
    /// Asks for another instance in the place of this one.
    replacer: Replacer,
    /// Work that a pause waits for.
    pub(super) work: Work,
}

impl Parts {
    pub(super) fn new(
        common: Common,
        config: Config,
        own: OwnTraffic,
        plane: Dataplane,
        attached: Vec<Attached>,
        names: Names,
    ) -> Self {
        let punts = Arc::new(Tally::default());
        let draining = drain::of_earlier_daemon(&config.admin.socket);
        let Common { options, replacer, reloads } = common;
        let mut state = State::new(config, attached, own, names);
        state.removed_timeouts = reloads.removed_timeouts.clone();
        state.draining.set(draining);
        state.rules_version.set(plane.settings.version());
        Self {
            config_path: options.config_path.as_path().into(),
            replacer,
            monitor: Monitor::new(state.clone(), &plane, punts.clone()),
            state,
            requests: Requests::new(),
            names_changed: Arc::default(),
            counters: plane.counters.clone(),
            punts,
            flows: plane.flows.clone(),
            rules: plane.rules.clone(),
            started: Instant::now(),
            reloads,
            work: Work::default(),
            plane: Locked::new(plane),
        }
    }

    /// Takes over what the parts of another instance know of targets, and the answer of the probe.
    pub(super) fn inherit(&self, before: &Self) {
        let health = std::mem::take(&mut *before.state.target_health.lock());
        self.state.target_health.set(health);
        self.monitor.inherit(&before.monitor);
    }

    /// Returns the number of sessions.
    pub(super) fn sessions(&self) -> u32 {
        self.flows.sessions()
    }

    /// Has packets reach the programs again, after others were to take their place.
    pub(super) fn take_back(&self) -> Result<()> {
        let config = self.state.config.get();
        let changes = {
            let mut attachments = self.state.attachments.lock();
            let mut own_traffic = self.state.own_traffic.lock();
            let mut plane = self.plane.lock();
            plane.take_back()?;
            for (slot, attached) in (0..).zip(&mut attachments.attached) {
                let attachment = &attached.attachment;
                // An interface that is gone gets its place back when it comes back.
                let Some(index) = attachment.place().index() else { continue };
                if attachment.loss().is_none() {
                    plane.set_egress_of(slot, attachment, index)?;
                    continue;
                }
                // The other one may have attached in another mode.
                match plane.attach_again(slot, attachment, index) {
                    Ok(attachment) => attached.attachment = attachment,
                    // `upkeep` goes on trying.
                    Err(error) => warn!("{error:#}"),
                }
            }
            let interfaces: Vec<&str> = config.interfaces.names().collect();
            plane.detach_others(&interfaces)?;
            self.state.rules_version.set(plane.settings.version());
            self.state.rules_in_force.set(None);
            // The classifier may be the other one's.
            own_traffic.begin(&config, &attachments.attached, &mut plane)
        };
        changes.report();
        Ok(())
    }

    /// Moves the pins to another directory. Returns the lock on that.
    pub(super) fn move_pins(&self, root: &Path) -> Result<File> {
        let mut attachments = self.state.attachments.lock();
        let attached = attachments.attached.iter_mut().map(|attached| &mut attached.attachment);
        self.plane.lock().move_pins(root, attached)
    }

    pub(super) fn next_hops(&self) -> next_hops::Access {
        let State { config, attachments, names, routing, .. } = self.state.clone();
        next_hops::Access { config, attachments, names, routing, plane: self.plane.clone() }
    }

    pub(super) fn own_traffic(&self) -> own_traffic::follow::Access {
        let State { config, attachments, own_traffic, .. } = self.state.clone();
        let (plane, requests) = (self.plane.clone(), self.requests.clone());
        own_traffic::follow::Access { config, attachments, own_traffic, plane, requests }
    }

    pub(super) fn names(&self) -> names::Access {
        let State { names, routing, .. } = self.state.clone();
        let (requests, changed) = (self.requests.clone(), self.names_changed.clone());
        names::Access { names, routing, requests, changed }
    }

    pub(super) fn checks(&self) -> checks::Access {
        let State { config, names, target_health, routing, .. } = self.state.clone();
        checks::Access { config, names, target_health, routing, requests: self.requests.clone() }
    }

    pub(super) fn control(&self, resolver: Arc<dyn Resolve>) -> Control {
        let writer = Arc::new(KernelRules::new(&self.plane));
        let (requests, changed) = (self.requests.clone(), self.names_changed.clone());
        Control::new(self.state.clone(), writer, resolver, requests, changed, self.work.clone())
    }

    /// Returns what reloads the configuration, by this control.
    pub(super) fn reloader(&self, control: Control) -> Reloader {
        let cutter = Cutter { plane: self.plane.clone(), flows: self.flows.clone(), work: self.work.clone() };
        let tables = Tables { names: self.state.names.clone(), rules: self.rules.clone(), cutter };
        let (path, replacer) = (self.config_path.clone(), self.replacer.clone());
        Reloader::new(path, control, replacer, self.own_traffic(), self.reloads.clone(), tables)
    }

    pub(super) fn router(&self, replayer: Replayer) -> Arc<KernelRouter> {
        let State { config, attachments, .. } = self.state.clone();
        Arc::new(KernelRouter { plane: self.plane.clone(), replayer, attachments, config })
    }

    pub(super) fn sweep(&self) -> sweep::Access {
        let State { config, own_traffic, names, target_health, removed_timeouts, routing, sessions, .. } =
            self.state.clone();
        sweep::Access {
            config,
            names,
            target_health,
            routing,
            sessions,
            plane: self.plane.clone(),
            flows: self.flows.clone(),
            counters: self.counters.clone(),
            rules: self.rules.clone(),
            own_traffic,
            removed_timeouts,
            requests: self.requests.clone(),
            work: self.work.clone(),
        }
    }

    pub(super) fn drain(&self) -> drain::Access {
        let State { config, draining, .. } = self.state.clone();
        drain::Access::new(config, draining, self.flows.clone(), self.rules.clone(), self.work.clone())
    }

    pub(super) fn self_test(&self) -> self_test::Access {
        let (plane, counters) = (self.plane.clone(), self.counters.clone());
        self_test::Access { state: self.state.clone(), plane, counters }
    }

    pub(super) fn probe(&self) -> probe::Access {
        probe::Access { monitor: self.monitor.clone(), routing: self.state.routing.clone() }
    }

    pub(super) fn reports(&self) -> Reports {
        Reports {
            config_path: self.config_path.clone(),
            started: self.started,
            state: self.state.clone(),
            monitor: self.monitor.clone(),
            plane: self.plane.clone(),
            flows: self.flows.clone(),
            counters: self.counters.clone(),
            rules: self.rules.clone(),
            punts: self.punts.clone(),
        }
    }

    pub(super) fn api(&self, reloader: Reloader) -> api::Access {
        let (flows, counters) = (self.flows.clone(), self.counters.clone());
        api::Access {
            reports: self.reports(),
            audit: audit::Access { flows, counters, rules: self.rules.clone() },
            attachments: self.state.attachments.clone(),
            drain: self.drain(),
            reloader,
        }
    }
}
