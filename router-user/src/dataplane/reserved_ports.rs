//! The ports that the kernel is kept from giving to sockets which ask for none, see
//! [`crate::port_plan`].

use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow};
use aya::maps::{Array, Map, MapData};

use super::pins::Pins;
use crate::port_plan::{PortSet, RESERVED_PORTS};

/// The map that remembers them.
pub(super) const MAP: &str = "RESERVED_PORTS";

/// Reservations of ours in `net.ipv4.ip_local_reserved_ports`, beside whatever others have reserved
/// there.
///
/// The map remembers which they are, for whoever takes the router off, as long as the data plane
/// lives. A port that somebody else reserves as well, after us, cannot be told from ours, and goes
/// with them.
pub struct ReservedPorts {
    map: Array<MapData, [u64; PortSet::WORDS]>,
    /// What the map says.
    ours: PortSet,
}

impl ReservedPorts {
    pub(super) fn new(map: Map) -> Result<Self> {
        let map: Array<MapData, [u64; PortSet::WORDS]> = map.try_into()?;
        let ours = PortSet::from_words(&map.get(&0, 0).context("cannot read which ports are reserved")?);
        Ok(Self { map, ours })
    }

    /// The ports that are reserved by us.
    pub fn ours(&self) -> &PortSet {
        &self.ours
    }

    /// Makes these ports the ones that we have reserved, as far as others have not; whether
    /// anything had to be changed.
    ///
    /// # Errors
    /// When the setting or the map cannot be read or written.
    pub fn set(&mut self, wanted: &PortSet) -> Result<bool> {
        let reserved = read()?;
        let others = reserved.without(&self.ours);
        let ours = wanted.without(&others);
        let now = others.or(&ours);
        if now == reserved && ours == self.ours {
            return Ok(false);
        }
        // Remembered before it is so, and forgotten after: whoever comes back from a crash in
        // between takes away too much rather than too little, of what was ours.
        self.remember(&self.ours.or(&ours))?;
        write(&now)?;
        self.remember(&ours)?;
        self.ours = ours;
        Ok(true)
    }

    fn remember(&mut self, ports: &PortSet) -> Result<()> {
        self.map.set(0, ports.words(), 0).context("cannot note which ports are reserved")
    }
}

/// Returns the ports that an earlier daemon has reserved, if it has left its maps in these pins.
///
/// # Errors
/// When the map cannot be read.
pub fn reserved_earlier(pins: &Pins) -> Result<PortSet> {
    let pin = pins.map(MAP);
    if pin.exists() { open(&pin).map(|ports| ports.ours) } else { Ok(PortSet::new()) }
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
