//! Decides which rules are in force, and writes them.
//!
//! The rule set that is wanted ([`desired`]) follows from the configuration, the addresses of
//! names, the health of targets and the ports of sessions. A part that changes one of these asks
//! for a look ([`requests`]); [`Control`] compares what is wanted with what is in force, and is the
//! only part that writes rules ([`writer`]). It has nothing locked meanwhile that the probe needs.

pub(crate) mod desired;
pub(crate) mod replace;
pub(crate) mod requests;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::future::BoxFuture;
use tokio::{sync::Notify, task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use self::{
    replace::{ReplaceError, of_instance},
    requests::Requests,
    writer::RuleWriter,
};
use crate::{
    config::Config,
    daemon::{
        kernel::{netlink::OwnAddresses, own_traffic::SessionPorts},
        names::resolved::Names,
        state::State,
        sync::{Work, lock},
    },
    dataplane::RuleSetSpec,
};

/// The pause before rules that could not be written are written again, which doubles with each
/// failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest it gets.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Finds out the addresses of names.
pub(crate) trait Resolve: Send + Sync {
    /// Resolves the names of a configuration that are not known yet.
    fn resolve<'a>(
        &'a self,
        config: &'a Config,
        known: &'a Names,
        own: &'a OwnAddresses,
    ) -> BoxFuture<'a, Names>;
}

/// Has the data plane do what is wanted. A clone is the same control.
#[derive(Clone)]
pub(crate) struct Control {
    state: State,
    writer: Arc<dyn RuleWriter>,
    resolver: Arc<dyn Resolve>,
    requests: Requests,
    /// Tells the name service that there are other names.
    names_changed: Arc<Notify>,
    /// The rule set in force; locked while another one is written.
    in_force: Arc<Mutex<Option<Arc<RuleSetSpec>>>>,
    /// Held while a configuration is replaced.
    replacing: Arc<tokio::sync::Mutex<()>>,
    work: Work,
}

impl Control {
    pub(crate) fn new(
        state: State,
        writer: Arc<dyn RuleWriter>,
        resolver: Arc<dyn Resolve>,
        requests: Requests,
        names_changed: Arc<Notify>,
        work: Work,
    ) -> Self {
        let (in_force, replacing) = (Arc::default(), Arc::default());
        Self { state, writer, resolver, requests, names_changed, in_force, replacing, work }
    }

    /// Puts the rules in force whenever a part of the daemon asks for it. The kernel may well
    /// refuse once, which is nothing to end the daemon for: the rules of before stay in force
    /// meanwhile.
    pub(crate) async fn run(self) -> Result<()> {
        // An earlier daemon's rules are in one of the two banks, and nothing is known of the other:
        // so the first look may take a while, and should be over when something changes.
        self.requests.ask();
        loop {
            self.requests.turn().await;
            let mut pause = FIRST_RETRY;
            while let Err(error) = self.apply().await? {
                warn!("cannot write the rules; retrying: {error:#}");
                // Another change may need less memory.
                tokio::select! {
                    () = sleep(pause) => pause = (pause * 2).min(LAST_RETRY),
                    () = self.requests.turn() => {}
                }
            }
        }
    }

    /// Puts another configuration in force while the router runs: its rules, timeouts, names and
    /// SNAT ports. Sessions go on. Listeners are the caller's.
    ///
    /// # Errors
    /// Returns an error if something differs that takes another instance of the data plane, or if
    /// the rules cannot be written. The configuration of before stays in force.
    pub(crate) async fn replace(&self, config: Config) -> Result<(), ReplaceError> {
        let turn = self.replacing.clone().lock_owned().await;
        let keys = of_instance(&self.state.config.get(), &config);
        if !keys.is_empty() {
            return Err(ReplaceError::NeedsInstance(keys));
        }
        let own = self.state.routing.lock().own_addresses.clone();
        let known = self.state.names.get();
        // Before anything is written: a rule is not to be without targets meanwhile.
        let new = self.resolver.resolve(&config, &known, &own).await;
        let (control, config, work) =
            (self.clone(), Arc::new(config), self.work.begin().await.map_err(ReplaceError::NotWritten)?);
        // With its turn: it goes on if the caller gives up.
        let replace = move || {
            let (_turn, _work) = (turn, work);
            control.put_in_force(&config, new)
        };
        let replaced = spawn_blocking(replace).await;
        replaced.context("the writing of rules has crashed").flatten().map_err(ReplaceError::NotWritten)
    }

    fn put_in_force(&self, config: &Arc<Config>, new: Names) -> Result<()> {
        let mut in_force = lock(&self.in_force);
        let is_named = |name: &String| desired::target_names(config).any(|wanted| wanted == name);
        let names = {
            let mut names = self.state.names.get();
            names.retain(|name, _| is_named(name));
            names.extend(new);
            names
        };
        let now = self.state.config.get();
        let ports = self.state.own_traffic.lock().session_ports();
        // Sessions keep the ports that they have.
        let snat =
            if now.snat.ports == config.snat.ports { ports.snat } else { self.writer.choose_ports(config) };
        let spec = {
            let health = self.state.target_health.lock();
            desired::build(config, &names, &health, SessionPorts { snat, ..ports })
        };
        let before = now.half_open_per_source(ports.snat.size());
        self.writer.set_half_open_limit(config.half_open_per_source(snat.size()))?;
        if let Err(error) = self.write(&mut in_force, spec) {
            if let Err(error) = self.writer.set_half_open_limit(before) {
                warn!("the limit of half-open sessions is the new one: {error:#}");
            }
            return Err(error);
        }
        {
            // Together: names belong to a configuration.
            let mut current = self.state.config.lock();
            self.state.own_traffic.lock().snat = snat;
            let mut known = self.state.names.lock();
            known.retain(|name, _| is_named(name));
            for (name, resolved) in names {
                // Those that have been resolved again meanwhile stay as they are.
                known.entry(name).or_insert(resolved);
            }
            *current = config.clone();
            self.state.removed_timeouts.lock().follow(&now, config);
        }
        drop(in_force);
        info!("another configuration is in force");
        self.names_changed.notify_one();
        // Names and targets may have changed meanwhile.
        self.requests.ask();
        Ok(())
    }

    /// Puts the rules in force with names, addresses and targets' health as they are now.
    async fn apply(&self) -> Result<Result<()>> {
        let (control, work) = (self.clone(), self.work.begin().await?);
        // A large rule set takes a while.
        spawn_blocking(move || {
            let _work = work;
            let mut in_force = lock(&control.in_force);
            let config = control.state.config.get();
            let spec = {
                let names = control.state.names.get();
                control.wanted(&config, &names)
            };
            control.write(&mut in_force, spec)
        })
        .await
        .context("the writing of rules has crashed")
    }

    /// Returns the rule set that is wanted with this configuration and these names.
    fn wanted(&self, config: &Config, names: &Names) -> RuleSetSpec {
        let ports = self.state.own_traffic.lock().session_ports();
        desired::build(config, names, &self.state.target_health.lock(), ports)
    }

    /// Has a rule set written if another one is in force.
    fn write(&self, in_force: &mut Option<Arc<RuleSetSpec>>, spec: RuleSetSpec) -> Result<()> {
        if in_force.as_deref() == Some(&spec) {
            // Others may have been wanted meanwhile, and could not be written.
            self.state.rules_error.set(None);
            return Ok(());
        }
        let version = match self.writer.put_in_force(&spec) {
            Ok(version) => version,
            Err(error) => {
                self.state.rules_error.set(Some(format!("{error:#}")));
                return Err(error);
            }
        };
        self.state.rules_error.set(None);
        self.state.rules_version.set(version);
        let spec = Arc::new(spec);
        self.state.rules_in_force.set(Some(spec.clone()));
        if let Err(error) = self.writer.follow_up(&spec, version) {
            warn!(
                "cannot synchronise the spare rule bank; the next change rewrites it completely: {error:#}"
            );
        }
        *in_force = Some(spec);
        Ok(())
    }
}
