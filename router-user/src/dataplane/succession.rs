//! The data plane whose place another one takes: of another layout, or with a table of another
//! size.
//!
//! The root program on an interface is for good, and so is the map `ROOT` that it knows. A
//! successor has the same `ROOT` and the same attachments, pinned among its own pins, and
//! everything else is its own. It takes the place by one write to `ROOT`; before that, nothing has
//! changed for the programs in force, and there is nothing to give back if the start fails.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aya::maps::MapData;
use router_common::table::{BUCKET, Regions};
use tracing::{info, warn};

use super::{
    flows::FlowTable,
    forwarding::kernel_forwards,
    migration::{Source, Transfer},
    object::PUNTS,
    own_traffic,
    pins::{Pins, entries, read_link_name},
    reserved_ports::{self, ReservedPorts},
    rules::RuleTable,
    settings::SettingsTable,
};
use crate::sys::xdp::Mode;

/// The maps that a successor of the same layout uses on. All others are about its own sessions and
/// rules.
const SHARED: [&str; 8] =
    ["ROOT", "STATS", "DATAGRAMS", "AWAITED", "OWN", "OWN_IPV6", reserved_ports::MAP, PUNTS];

/// The map that every successor uses on: the attached program has no other way on.
const ROOT: &str = "ROOT";

/// The data plane whose place a new one takes.
pub(super) struct Succession {
    /// Its pins.
    pub(super) before: Pins,
    /// Its sessions; `None` if its layout is not known.
    pub(super) source: Option<Source>,
    /// `true` if it is of this version's layout.
    pub(super) is_same_layout: bool,
}

impl Succession {
    /// Finds the data plane whose place a new one with room for `sessions` takes. Returns `None` if
    /// there is none, or if the one that is pinned at `own` is used as it is.
    ///
    /// # Errors
    /// Returns an error if the pins cannot be read, and if there are more sessions than room.
    pub(super) fn find(own: &Pins, sessions: u32) -> Result<Option<Self>> {
        let is_same_layout = own.are_there();
        let before = if is_same_layout {
            if has_room_for(&own.map("FLOWS"), sessions)? {
                return Ok(None);
            }
            own.clone()
        } else {
            match Pins::others(own.root())?.into_iter().rfind(Pins::is_ready) {
                Some(other) => other,
                None => return Ok(None),
            }
        };
        let source = Source::open(&before).with_context(|| {
            format!(
                "cannot read the sessions of the data plane at {}\n  fix: `pls-router detach` removes it, with its sessions",
                before.directory().display()
            )
        })?;
        let there_are = source.as_ref().map_or(0, Source::sessions);
        if there_are > sessions {
            bail!(
                "limits.flows = {sessions} is less than the {there_are} sessions that there are; nothing was changed\n  \
                 fix: set limits.flows to at least {there_are}, or wait until sessions have ended"
            );
        }
        Ok(Some(Self { before, source, is_same_layout }))
    }

    /// Pins at `ours` what the successor uses on.
    pub(super) fn share_with(&self, ours: &Pins) -> Result<()> {
        let names: &[&str] = if self.is_same_layout { &SHARED } else { &[ROOT] };
        for name in names {
            Pins::pin_again(&self.before.map(name), &ours.map(name))?;
        }
        for path in entries(&self.before.links())? {
            let Some(name) = path.file_name() else { continue };
            let (kind, interface) = read_link_name(&name.to_string_lossy());
            let is_root = Mode::ALL.iter().any(|mode| mode.as_str() == kind);
            // This machine's own traffic is seen by both, until one of them goes.
            if is_root || own_traffic::is_filter(&kind) {
                Pins::pin_again(&path, &ours.links().join(name))?;
            }
            let program = self.before.root_program(&interface);
            if is_root && program.exists() {
                Pins::pin_again(&program, &ours.root_program(&interface))?;
            }
        }
        Ok(())
    }
}

impl Succession {
    /// Hands on what the programs before leave beside sessions: the numbers of rules, and what is
    /// to be undone on this machine when the router is taken off.
    pub(super) fn bequeath(
        &self,
        transfer: Option<&Transfer>,
        rules: &RuleTable,
        settings: &mut SettingsTable,
        reserved_ports: &mut ReservedPorts,
    ) -> Result<()> {
        let were_off = match transfer {
            Some(transfer) => transfer.source().route_lookups_were_off(),
            // The setting's default tells.
            None => !kernel_forwards()?,
        };
        if were_off {
            settings.set_route_lookups_were_off()?;
        }
        if let Some(transfer) = transfer {
            rules.inherit(transfer.source().rules());
        }
        if !self.is_same_layout {
            // In a layout that is not known, the map may be another one.
            if let Ok(ports) = reserved_ports::reserved_at(&self.before) {
                reserved_ports.inherit(&ports)?;
            }
        }
        Ok(())
    }
}

/// Takes over what a daemon that was killed while sessions moved has not, after `own` has come into
/// force: sessions that were opened meanwhile.
pub(super) fn finish(own: &Pins, flows: &FlowTable) {
    let next = own.next();
    let others = Pins::others(own.root()).unwrap_or_default();
    let left = others.into_iter().chain([next.clone()]).filter(Pins::is_ready);
    for pins in left {
        match Source::open(&pins) {
            Ok(Some(source)) => {
                let moved = Transfer::new(source, flows.clone()).complete();
                info!(
                    sessions = moved.opened_late,
                    "took over what an earlier start has left at {}",
                    pins.directory().display()
                );
            }
            // `Predecessors` says so.
            Ok(None) => {}
            Err(error) => {
                warn!("cannot read the sessions that are left at {}: {error:#}", pins.directory().display());
            }
        }
    }
    if next.is_ready()
        && let Err(error) = next.remove_beside(own)
    {
        warn!("cannot remove {}: {error:#}", next.directory().display());
    }
}

/// Returns `true` if the table pinned here is the one for this number of sessions.
fn has_room_for(flows: &Path, sessions: u32) -> Result<bool> {
    let wanted = Regions::of(sessions).context("limits.flows is too large")?.slots() / BUCKET;
    let map = MapData::from_pin(flows).with_context(|| format!("cannot open {}", flows.display()))?;
    Ok(map.info().context("cannot examine the flow table")?.max_entries() == wanted)
}
