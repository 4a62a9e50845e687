//! What the programs are told: settings, and this machine's addresses.

use std::{collections::HashSet, net::Ipv4Addr, path::Path};

use super::now;
use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use router_common::{
    address::Ipv4,
    settings::{InterfaceIndexes, Settings},
};

/// The settings record.
pub struct SettingsTable {
    map: Array<MapData, Settings>,
    current: Settings,
}

impl SettingsTable {
    pub(super) fn new(map: Map) -> Result<Self> {
        let map: Array<MapData, Settings> = map.try_into()?;
        let mut current = map.get(&0, 0).context("cannot read the settings")?;
        // Next hops that an earlier daemon knew may have changed since.
        current.next_hop_generation = next_generation(current.next_hop_generation);
        let mut table = Self { map, current };
        table.write()?;
        Ok(table)
    }

    /// The version of the rule set in force; 0 is none.
    pub fn version(&self) -> u32 {
        self.current.version
    }

    /// Puts a rule set in force.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_version(&mut self, version: u32) -> Result<()> {
        let before = std::mem::replace(&mut self.current.version, version);
        self.write().inspect_err(|_| self.current.version = before)
    }

    /// Says which interfaces there are; next hops are resolved again if that is new.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_interfaces(
        &mut self,
        interfaces: [InterfaceIndexes; router_common::MAX_INTERFACES],
    ) -> Result<()> {
        if self.current.interfaces == interfaces {
            return Ok(());
        }
        self.current.interfaces = interfaces;
        self.invalidate_next_hops()
    }

    /// Remembers that the kernel did not answer route lookups before the router came.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_route_lookups_were_off(&mut self) -> Result<()> {
        self.current.route_lookups_were_off = 1;
        self.write()
    }

    /// Says that the daemon is there now, see [`Settings::daemon_is_there`].
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn show_presence(&mut self) -> Result<()> {
        self.current.daemon_seen = now();
        self.write()
    }

    /// Has every session's next hop resolved again when it is next used.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn invalidate_next_hops(&mut self) -> Result<()> {
        self.current.next_hop_generation = next_generation(self.current.next_hop_generation);
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        self.map.set(0, self.current, 0).context("cannot write the settings")
    }
}

/// Whether the settings pinned here say that route lookups were off before the router came.
pub(super) fn route_lookups_were_off(pin: &Path) -> Result<bool> {
    let data = MapData::from_pin(pin).context("cannot open the pinned settings")?;
    let map: Array<MapData, Settings> = Map::Array(data).try_into()?;
    let settings = map.get(&0, 0).context("cannot read the pinned settings")?;
    Ok(settings.route_lookups_were_off != 0)
}

/// 0 means "never resolved" in an entry, so it is left out.
fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

/// This machine's own addresses.
pub struct LocalAddresses {
    map: HashMap<MapData, Ipv4, u32>,
}

impl LocalAddresses {
    pub(super) fn new(map: Map) -> Result<Self> {
        Ok(Self { map: map.try_into()? })
    }

    /// Makes the set what it is given. New addresses go in before old ones go out.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn set(&mut self, addresses: &HashSet<Ipv4Addr>) -> Result<()> {
        let known: HashSet<Ipv4> =
            self.map.keys().collect::<Result<_, MapError>>().context("cannot read addresses")?;
        let wanted: HashSet<Ipv4> = addresses.iter().map(|address| Ipv4::from(*address)).collect();
        for address in wanted.difference(&known) {
            self.map.insert(address, 1, 0).with_context(|| format!("cannot add the address {address}"))?;
        }
        for address in known.difference(&wanted) {
            self.map.remove(address).with_context(|| format!("cannot remove the address {address}"))?;
        }
        Ok(())
    }
}
