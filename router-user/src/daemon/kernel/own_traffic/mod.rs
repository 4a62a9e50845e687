//! This machine's own traffic beside that of sessions: keeps its ports apart
//! ([`crate::port_plan`]), and has it seen by the data plane, so that answers to it are known.
//! Repairs changes that other programs make to that.

pub(crate) mod follow;

use router_common::ports::PortRange;
use tracing::{info, warn};

use crate::{
    config::Config,
    daemon::kernel::interfaces::Attached,
    dataplane::{Dataplane, Hook},
    health::{Conditions, Id, Severity},
    port_plan::{self, Kernel, Overlap, Plan},
};

/// No port.
const NONE: PortRange = PortRange { first: 1, last: 0 };

/// Changes, for the log.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Changes {
    /// The ports that are reserved now.
    reserved: Option<String>,
    /// Failures of something that worked before.
    failures: Vec<String>,
    /// Interfaces whose own traffic is seen again.
    seen: Vec<String>,
    /// `true` if the rule set says something else than what is in force.
    pub(super) rules: bool,
}

impl Changes {
    /// Logs the changes.
    pub(crate) fn report(self) {
        if let Some(ports) = self.reserved {
            if ports.is_empty() {
                info!("released all reserved ports");
            } else {
                info!(
                    ports,
                    "reserved (net.ipv4.ip_local_reserved_ports) until the router is taken off: this machine's own sockets get other ports"
                );
            }
        }
        for failure in self.failures {
            warn!("{failure}");
        }
        for interface in self.seen {
            info!(interface, "this machine's own traffic is seen");
        }
    }
}

/// The ports of sessions and of this machine's own traffic, as rules need them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionPorts {
    /// The ports of new sessions.
    pub(crate) snat: PortRange,
    /// The ports at which datagrams for a socket of this machine are taken for answers without its
    /// having been seen to ask.
    pub(crate) answered: PortRange,
}

/// The ports of new sessions, and where this machine's own traffic cannot be told from theirs.
#[derive(Debug)]
pub(crate) struct OwnTraffic {
    /// The ports of new sessions, for each address and target.
    pub(crate) snat: PortRange,
    /// The ranges of these ports that sockets of this machine may get as well.
    overlaps: Vec<Overlap>,
    /// Interfaces whose own traffic is not seen, and why not.
    unseen: Vec<(String, String)>,
}

impl OwnTraffic {
    /// Chooses the ports.
    ///
    /// `kernel`: as it is without what an earlier daemon has reserved.
    pub(crate) fn choose(config: &Config, kernel: &Kernel) -> Self {
        Self { snat: port_plan::snat_ports(config, kernel), overlaps: Vec::new(), unseen: Vec::new() }
    }

    /// Sets everything up, with the program of now in the place of an earlier daemon's. Where that
    /// cannot be, the router works all the same, and a condition says so.
    pub(crate) fn begin(&mut self, config: &Config, attached: &[Attached], plane: &mut Dataplane) -> Changes {
        let mut changes = Changes::default();
        self.keep_apart(config, plane, &mut changes);
        self.watch(attached, plane, |_, _, _| false, &mut changes);
        changes
    }

    /// Puts right what is not as it should be any more.
    pub(super) fn look_after(
        &mut self,
        config: &Config,
        attached: &[Attached],
        plane: &mut Dataplane,
    ) -> Changes {
        let mut changes = Changes::default();
        self.keep_apart(config, plane, &mut changes);
        self.watch(attached, plane, Dataplane::is_own_traffic_watched, &mut changes);
        changes
    }

    fn keep_apart(&mut self, config: &Config, plane: &mut Dataplane, changes: &mut Changes) {
        let (kernel, reserved) = (Kernel::read(), &mut plane.reserved_ports);
        let Plan { reserve, left } =
            port_plan::plan(config, self.snat, &kernel.clone().with_free(reserved.ours()));
        match reserved.set(&reserve) {
            Ok(changed) => {
                changes.reserved = changed.then(|| reserved.ours().to_string());
                self.overlaps = left;
            }
            Err(error) => {
                let all = port_plan::overlaps(config, self.snat, &kernel.given());
                // Said once, and not every time.
                if self.overlaps != all {
                    changes.failures.push(format!("cannot keep this machine's own ports apart: {error:#}"));
                }
                self.overlaps = all;
            }
        }
    }

    fn watch(
        &mut self,
        attached: &[Attached],
        plane: &mut Dataplane,
        is_good: fn(&Dataplane, &str, u32) -> bool,
        changes: &mut Changes,
    ) {
        let before = std::mem::take(&mut self.unseen);
        for Attached { attachment, .. } in attached {
            let interface = &attachment.interface;
            // Nothing leaves by an interface that is gone.
            let Some(index) = attachment.place().index() else { continue };
            if is_good(plane, interface, index) {
                continue;
            }
            match plane.watch_own_traffic(interface, index, Hook::Any) {
                Ok(()) => changes.seen.push(interface.clone()),
                Err(error) => {
                    let unseen = (interface.clone(), format!("{error:#}"));
                    if !before.contains(&unseen) {
                        let (_, why) = &unseen;
                        changes
                            .failures
                            .push(format!("{interface}: this machine's own traffic cannot be seen: {why}"));
                    }
                    self.unseen.push(unseen);
                }
            }
        }
        changes.rules = self.unseen.is_empty() != before.is_empty();
    }

    /// Returns the ports of sessions and of this machine's own traffic, as rules need them.
    pub(crate) fn session_ports(&self) -> SessionPorts {
        let answered = if self.unseen.is_empty() { NONE } else { Kernel::read().range };
        SessionPorts { snat: self.snat, answered }
    }

    /// Adds a condition for each overlap and each interface that is not seen.
    pub(crate) fn add_to(&self, conditions: &mut Conditions) {
        for overlap in &self.overlaps {
            let detail = format!("{overlap}; fix: {}", overlap.fix());
            conditions.add(Severity::Degraded, Id::PortsShared, overlap.subject(), detail);
        }
        for (interface, why) in &self.unseen {
            let detail = format!(
                "{interface}: what this machine itself sends cannot be seen ({why}): a session with the same port may take the answers to a \
                 datagram or ping; fix: Linux 6.6 or later, or the kernel modules sch_ingress and cls_bpf"
            );
            conditions.add(Severity::Degraded, Id::OwnTrafficUnseen, interface, detail);
        }
    }
}
