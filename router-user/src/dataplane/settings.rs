//! The programs' settings, and this machine's addresses.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError},
};
use router_common::{
    address::{Ipv4, Ipv6},
    entry::NextHop,
    limits::MAX_INTERFACES,
    local::{BROADCAST_ADDRESS, OWN_ADDRESS},
    maps::{
        route::InterfaceAddresses,
        settings::{Interface, Settings},
    },
    table::{HashSeeds, Regions},
    time::Ticks,
};

use super::flows::now;

/// The settings record.
pub struct SettingsTable {
    map: Array<MapData, Settings>,
    current: Settings,
    invalidations: u64,
}

impl SettingsTable {
    pub(super) fn new(map: Map) -> Result<Self> {
        let map: Array<MapData, Settings> = map.try_into()?;
        let mut current = map.get(&0, 0).context("cannot read the settings")?;
        // Next hops that an earlier daemon knew may have changed since.
        current.next_hop_generation = next_generation(current.next_hop_generation);
        if current.seeds == HashSeeds::default() {
            current.seeds = HashSeeds { words: random_words()? };
        }
        let mut table = Self { map, current, invalidations: 0 };
        table.write()?;
        Ok(table)
    }

    /// Reads what is in force, after another process may have written it.
    pub(super) fn read_again(&mut self) -> Result<()> {
        self.current = self.map.get(&0, 0).context("cannot read the settings")?;
        Ok(())
    }

    /// Returns the settings in force.
    pub fn current(&self) -> &Settings {
        &self.current
    }

    /// Says where the flow table's chains start, how many pools of ports are to spare, and how many
    /// half-open sessions a source may have.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn set_limits(
        &mut self,
        regions: Regions,
        pools_to_spare: u32,
        half_open_per_source: u32,
    ) -> Result<()> {
        self.current.regions = regions;
        self.current.pools_to_spare = pools_to_spare;
        self.current.half_open_per_source = half_open_per_source;
        self.write()
    }

    /// Limits the half-open sessions of a source.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn set_half_open_limit(&mut self, limit: u32) -> Result<()> {
        if self.current.half_open_per_source == limit {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.current.half_open_per_source, limit);
        self.write().inspect_err(|_| self.current.half_open_per_source = before)
    }

    /// The version of the rule set in force; 0 is none.
    pub fn version(&self) -> u32 {
        self.current.version
    }

    /// Puts a rule set in force.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn set_version(&mut self, version: u32) -> Result<()> {
        let before = std::mem::replace(&mut self.current.version, version);
        self.write().inspect_err(|_| self.current.version = before)
    }

    /// Says which interfaces there are; next hops are resolved again if that is new.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn set_interfaces(&mut self, interfaces: [Interface; MAX_INTERFACES]) -> Result<()> {
        if self.current.interfaces == interfaces {
            return Ok(());
        }
        self.current.interfaces = interfaces;
        self.invalidate_next_hops()
    }

    /// Remembers that the kernel did not answer route lookups before the router came.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn set_route_lookups_were_off(&mut self) -> Result<()> {
        self.current.route_lookups_were_off = 1;
        self.write()
    }

    /// Returns `true` if there was a daemon a moment ago, so that packets for it are still of use.
    pub fn daemon_was_there(&self) -> bool {
        /// In ticks: longer than a restart takes, and not longer than clients wait for an answer.
        const RECENT: u32 = 10;
        now().0.saturating_sub(self.current.daemon_seen.0) <= RECENT
    }

    /// Says that the daemon is there now, see
    /// [`Live::daemon_is_there`](router_common::maps::settings::Live::daemon_is_there).
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn show_presence(&mut self) -> Result<()> {
        self.current.daemon_seen = now();
        self.write()
    }

    /// Has every session's next hop resolved again when it is next used.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn invalidate_next_hops(&mut self) -> Result<()> {
        self.current.next_hop_generation = next_generation(self.current.next_hop_generation);
        self.invalidations += 1;
        self.write()
    }

    /// Returns how often [`invalidate_next_hops`](Self::invalidate_next_hops) was called, also by
    /// the others here.
    pub fn invalidations(&self) -> u64 {
        self.invalidations
    }

    fn write(&mut self) -> Result<()> {
        self.map.set(0, self.current, 0).context("cannot write the settings")
    }
}

/// Returns `true` if the settings pinned here say that route lookups were off before the router
/// came.
pub(super) fn route_lookups_were_off(pin: &Path) -> Result<bool> {
    Ok(read_pinned(pin)?.route_lookups_were_off != 0)
}

/// Returns when the daemon of the settings pinned here was last alive.
pub(super) fn daemon_seen(pin: &Path) -> Result<Ticks> {
    Ok(read_pinned(pin)?.daemon_seen)
}

fn read_pinned(pin: &Path) -> Result<Settings> {
    let data = MapData::from_pin(pin).context("cannot open the pinned settings")?;
    let map: Array<MapData, Settings> = Map::Array(data).try_into()?;
    map.get(&0, 0).context("cannot read the pinned settings")
}

/// 0 means "never resolved" in an entry.
fn next_generation(generation: u32) -> u32 {
    generation % NextHop::GENERATIONS + 1
}

/// Returns random numbers that cannot be guessed.
fn random_words<const N: usize>() -> Result<[u64; N]> {
    let mut words = [0_u64; N];
    // SAFETY: the kernel writes at most the buffer's length; any bytes are a value.
    let got = unsafe { libc::getrandom(words.as_mut_ptr().cast(), size_of_val(&words), 0) };
    if usize::try_from(got) != Ok(size_of_val(&words)) {
        return Err(std::io::Error::last_os_error()).context("cannot get random numbers");
    }
    Ok(words)
}

/// This machine's own addresses.
pub struct LocalAddresses {
    ipv4: HashMap<MapData, Ipv4, u32>,
    ipv6: HashMap<MapData, Ipv6, u32>,
}

impl LocalAddresses {
    pub(super) fn new(ipv4: Map, ipv6: Map) -> Result<Self> {
        Ok(Self { ipv4: ipv4.try_into()?, ipv6: ipv6.try_into()? })
    }

    /// Makes the IPv4 addresses this machine's `own` and the `broadcast` addresses of its networks.
    ///
    /// # Errors
    /// Returns an error if the map cannot be read or written.
    pub fn set(&mut self, own: &HashSet<Ipv4Addr>, broadcast: &HashSet<Ipv4Addr>) -> Result<()> {
        let own = own.iter().map(|address| (Ipv4::from(*address), OWN_ADDRESS));
        // The one address of a network of one may be both.
        let wanted: BTreeMap<Ipv4, u32> =
            broadcast.iter().map(|address| (Ipv4::from(*address), BROADCAST_ADDRESS)).chain(own).collect();
        make(&mut self.ipv4, &wanted)
    }

    /// Makes the IPv6 addresses this machine's `own`.
    ///
    /// # Errors
    /// Returns an error if the map cannot be read or written.
    pub fn set_ipv6(&mut self, own: &HashSet<Ipv6Addr>) -> Result<()> {
        let wanted = own.iter().map(|address| (Ipv6(address.octets()), OWN_ADDRESS)).collect();
        make(&mut self.ipv6, &wanted)
    }
}

/// Makes a map these addresses with their kinds. New ones go in before old ones go out.
fn make<A: Pod + Hash + Ord>(map: &mut HashMap<MapData, A, u32>, wanted: &BTreeMap<A, u32>) -> Result<()> {
    let known: HashSet<(A, u32)> =
        map.iter().collect::<Result<_, MapError>>().context("cannot read this machine's addresses")?;
    for (address, kind) in wanted {
        if !known.contains(&(*address, *kind)) {
            map.insert(address, kind, 0).context("cannot add an address of this machine's")?;
        }
    }
    for (address, _) in known.iter().filter(|(address, _)| !wanted.contains_key(address)) {
        map.remove(address).context("cannot remove an address of this machine's")?;
    }
    Ok(())
}

/// The addresses of the router's interfaces, by slot.
pub struct InterfaceAddressTable {
    map: Array<MapData, InterfaceAddresses>,
    current: [InterfaceAddresses; MAX_INTERFACES],
}

impl InterfaceAddressTable {
    pub(super) fn new(map: Map) -> Result<Self> {
        let current = [InterfaceAddresses::default(); MAX_INTERFACES];
        let mut table = Self { map: map.try_into()?, current };
        table.read_again()?;
        Ok(table)
    }

    /// Reads the addresses, after another process may have written them.
    pub(super) fn read_again(&mut self) -> Result<()> {
        for (slot, addresses) in (0..).zip(&mut self.current) {
            *addresses = self.map.get(&slot, 0).context("cannot read the interfaces' addresses")?;
        }
        Ok(())
    }

    /// Sets the addresses of all interfaces.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn set(&mut self, wanted: [InterfaceAddresses; MAX_INTERFACES]) -> Result<()> {
        for (slot, (addresses, known)) in (0..).zip(wanted.iter().zip(&mut self.current)) {
            if addresses != known {
                self.map.set(slot, *addresses, 0).context("cannot write an interface's addresses")?;
                *known = *addresses;
            }
        }
        Ok(())
    }
}
