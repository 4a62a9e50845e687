//! Reserved ports, which the kernel does not give to sockets that ask for none, see
//! [`crate::port_plan`].

use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use aya::maps::{Array, Map, MapData};

use super::pins::Pins;
use crate::port_plan::{PortSet, RESERVED_PORTS};

/// The map that remembers them.
pub(super) const MAP: &str = "RESERVED_PORTS";

/// The router's reservations in `net.ipv4.ip_local_reserved_ports`, beside those of others.
///
/// The map remembers which they are as long as the data plane lives, for `detach` to release them.
/// A port that another program reserves later as well cannot be told apart, and is released with
/// them.
pub struct ReservedPorts {
    map: Array<MapData, [u64; PortSet::WORDS]>,
    /// The contents of the map.
    ours: PortSet,
}

impl ReservedPorts {
    pub(super) fn new(map: Map) -> Result<Self> {
        let mut ports = Self { map: map.try_into()?, ours: PortSet::new() };
        ports.read_again()?;
        Ok(ports)
    }

    /// Reads the map, after another process may have written it.
    pub(super) fn read_again(&mut self) -> Result<()> {
        let words = self.map.get(&0, 0).context("cannot read which ports are reserved")?;
        self.ours = PortSet::from_words(&words);
        Ok(())
    }

    /// Returns the ports that the router has reserved.
    pub fn ours(&self) -> &PortSet {
        &self.ours
    }

    /// Makes these ports the router's reservations, except those that others have reserved. Returns
    /// `true` if that changed anything.
    ///
    /// # Errors
    /// Returns an error if the setting or the map cannot be read or written.
    pub fn set(&mut self, wanted: &PortSet) -> Result<bool> {
        let reserved = read()?;
        let others = reserved.without(&self.ours);
        let ours = wanted.without(&others);
        let now = others.or(&ours);
        if now == reserved && ours == self.ours {
            return Ok(false);
        }
        // Noted before the change and forgotten after it: after a crash in between, too many of the
        // router's ports are released rather than too few.
        self.remember(&self.ours.or(&ours))?;
        write(&now)?;
        self.remember(&ours)?;
        self.ours = ours;
        Ok(true)
    }

    /// Takes over ports that a data plane before this one has reserved.
    pub(super) fn inherit(&mut self, ports: &PortSet) -> Result<()> {
        let ours = self.ours.or(ports);
        self.remember(&ours)?;
        self.ours = ours;
        Ok(())
    }

    fn remember(&mut self, ports: &PortSet) -> Result<()> {
        self.map.set(0, ports.words(), 0).context("cannot note which ports are reserved")
    }
}

/// Returns the ports that earlier daemons have reserved, also of other versions, by the maps that
/// they have left in these pins and beside them.
///
/// # Errors
/// Returns an error if the map in these pins cannot be read.
pub fn reserved_earlier(pins: &Pins) -> Result<PortSet> {
    let own = reserved_at(pins)?;
    let others = Pins::others(pins.root()).unwrap_or_default();
    // What cannot be read is not ours to give out.
    Ok(others.iter().filter_map(|other| reserved_at(other).ok()).fold(own, |all, other| all.or(&other)))
}

/// Returns the ports that the map in these pins says are reserved by us.
pub(super) fn reserved_at(pins: &Pins) -> Result<PortSet> {
    let pin = pins.map(MAP);
    if pin.exists() { open(&pin).map(|ports| ports.ours) } else { Ok(PortSet::new()) }
}

/// Takes away what the map in these pins says is reserved by us, except for what the map in `ours`
/// says.
pub(super) fn release_to(pins: &Pins, ours: &Pins) -> Result<()> {
    let pin = pins.map(MAP);
    if pin.exists() { open(&pin)?.set(&reserved_at(ours)?).map(drop) } else { Ok(()) }
}

/// Takes away what the map in these pins says is reserved by us.
pub(super) fn release(pins: &Pins) -> Result<()> {
    let pin = pins.map(MAP);
    if pin.exists() { open(&pin)?.set(&PortSet::new()).map(drop) } else { Ok(()) }
}

fn open(pin: &Path) -> Result<ReservedPorts> {
    let data = MapData::from_pin(pin).context("cannot open the pinned list of reserved ports")?;
    ReservedPorts::new(Map::Array(data))
}

fn read() -> Result<PortSet> {
    let text = fs::read_to_string(RESERVED_PORTS).with_context(|| format!("cannot read {RESERVED_PORTS}"))?;
    PortSet::parse(&text).ok_or_else(|| anyhow!("{RESERVED_PORTS} is no list of ports: {text:?}"))
}

fn write(ports: &PortSet) -> Result<()> {
    // A line, since an empty text is no value to the kernel.
    fs::write(RESERVED_PORTS, format!("{ports}\n")).with_context(|| {
        format!(
            "cannot write {RESERVED_PORTS} (run as root; sysctl net.ipv4.ip_local_reserved_ports={ports})"
        )
    })
}
