//! Writes rule sets into the data plane.

use anyhow::Result;
use router_common::ports::PortRange;

use crate::{
    config::Config,
    daemon::sync::Locked,
    dataplane::{Dataplane, RuleSetSpec, RuleTable},
    port_plan,
};

/// The part of the data plane that control needs.
pub(crate) trait RuleWriter: Send + Sync {
    /// Puts a rule set in force, at once and whole. Returns its version.
    ///
    /// # Errors
    /// Returns an error if a map cannot be written. The old one stays in force.
    fn put_in_force(&self, spec: &RuleSetSpec) -> Result<u32>;

    /// Prepares the next change, after a rule set has been put in force as this version.
    ///
    /// # Errors
    /// Returns an error if a map cannot be written.
    fn follow_up(&self, spec: &RuleSetSpec, version: u32) -> Result<()>;

    /// Limits the half-open sessions of a source.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    fn set_half_open_limit(&self, limit: u32) -> Result<()>;

    /// Returns the ports of new sessions under another configuration, on this machine as it is now.
    fn choose_ports(&self, config: &Config) -> PortRange;
}

/// The maps in the kernel.
pub(crate) struct KernelRules {
    rules: RuleTable,
    /// Locked only for the moment in which versions are switched.
    plane: Locked<Dataplane>,
}

impl KernelRules {
    pub(crate) fn new(plane: &Locked<Dataplane>) -> Self {
        Self { rules: plane.lock().rules.clone(), plane: plane.clone() }
    }
}

impl RuleWriter for KernelRules {
    fn put_in_force(&self, spec: &RuleSetSpec) -> Result<u32> {
        let version = self.plane.lock().settings.version();
        self.rules.apply_by(spec, version, |version| self.plane.lock().settings.set_version(version))?;
        Ok(self.plane.lock().settings.version())
    }

    fn follow_up(&self, spec: &RuleSetSpec, version: u32) -> Result<()> {
        self.rules.follow_up(spec, version)
    }

    fn set_half_open_limit(&self, limit: u32) -> Result<()> {
        self.plane.lock().set_half_open_limit(limit)
    }

    fn choose_ports(&self, config: &Config) -> PortRange {
        let kernel = port_plan::Kernel::read().with_free(self.plane.lock().reserved_ports.ours());
        port_plan::snat_ports(config, &kernel)
    }
}
