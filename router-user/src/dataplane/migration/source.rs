//! The data plane that sessions come from, by what it has pinned and the description of its layout.

use std::{os::fd::AsFd as _, sync::Arc};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    maps::{MapData, MapType},
    util::nr_cpus,
};
use router_common::{shared::Shared, tuple::Direction};

use super::description::{Description, MovedSettings, RawSlot};
use crate::{
    dataplane::{moving::MovedFlow, pins::Pins, shared_memory::SharedArray},
    sys::bpf,
};

/// The counters of the table as a whole, as numbers of 32 bits.
type RawOccupancy = [Shared<u32>; 16];

/// The data plane that sessions come from.
pub(crate) struct Source {
    description: &'static Description,
    slots: SharedArray<RawSlot>,
    occupancy: Arc<SharedArray<RawOccupancy>>,
    stats: MapData,
    settings: MovedSettings,
    rules: Vec<Option<String>>,
}

impl Source {
    /// Opens the maps of a data plane. Returns `None` if there is no description of its layout.
    ///
    /// # Errors
    /// Returns an error if a map cannot be opened or read, or is not as its layout has it.
    pub(crate) fn open(pins: &Pins) -> Result<Option<Self>> {
        let Some(description) = Description::of(pins.layout()) else { return Ok(None) };
        let open = |name| {
            let path = pins.map(name);
            MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
        };
        let flows = open("FLOWS")?;
        let info = flows.info().context("cannot examine FLOWS")?;
        ensure!(info.map_type()? == MapType::Array, "FLOWS is no array");
        let slots = description.slots(info.value_size(), info.max_entries())?;
        let settings = lookup(&open("SETTINGS")?, 0).context("cannot read SETTINGS")?;
        ensure!(settings.len() == description.settings_bytes, "SETTINGS has {} bytes", settings.len());
        let settings = (description.read_settings)(&settings).context("SETTINGS is too short")?;
        Ok(Some(Self {
            description,
            slots: SharedArray::map(flows.fd().as_fd(), slots).context("cannot map FLOWS")?,
            occupancy: Arc::new(
                SharedArray::map(open("OCCUPANCY")?.fd().as_fd(), 1).context("cannot map OCCUPANCY")?,
            ),
            stats: open("STATS")?,
            rules: names(description, &open("RULES")?, settings.version)?,
            settings,
        }))
    }

    /// Returns the number of slots.
    pub(super) fn slots(&self) -> u32 {
        self.slots.len()
    }

    /// Returns the flow, or the held key, in a slot.
    pub(super) fn flow(&self, index: u32) -> Option<MovedFlow> {
        self.description.read(self.slots.get(index)?)
    }

    /// Returns the names of its rules by number, also of rules that are gone and may have sessions.
    pub(crate) fn rules(&self) -> &[Option<String>] {
        &self.rules
    }

    /// Returns `true` if `detach` is to switch route lookups off.
    pub(crate) fn route_lookups_were_off(&self) -> bool {
        self.settings.route_lookups_were_off
    }

    /// Counts the sessions.
    pub(crate) fn sessions(&self) -> u32 {
        let flows = (0..self.slots()).filter_map(|index| self.flow(index));
        let sessions = flows.filter(|flow| flow.direction == Direction::Forward && !flow.is_held);
        u32::try_from(sessions.count()).unwrap_or(u32::MAX)
    }

    /// Returns the number of packets that were dropped since there was no room for a session.
    pub(super) fn refused(&self) -> Result<u64> {
        let info = self.stats.info().context("cannot examine STATS")?;
        let each = (info.value_size() as usize).next_multiple_of(8);
        let blocks = lookup(&self.stats, 0).context("cannot read STATS")?;
        let counts = blocks.chunks_exact(each).map(|block| {
            let counter = block.get(self.description.refused..).and_then(|bytes| bytes.first_chunk());
            counter.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        });
        Ok(counts.sum())
    }

    /// Has the programs of this table open no more sessions, until what comes back is dropped.
    pub(super) fn pause(&self) -> Pause {
        let mut pause =
            Pause { occupancy: self.occupancy.clone(), place: self.description.capacity / 4, before: 0 };
        pause.before = pause.capacity().map_or(0, Shared::<u32>::get);
        pause.set(0);
        pause
    }
}

/// A pause in which a table gets no new sessions.
pub(super) struct Pause {
    occupancy: Arc<SharedArray<RawOccupancy>>,
    /// The place of the capacity in the record.
    place: usize,
    before: u32,
}

impl Pause {
    fn capacity(&self) -> Option<&Shared<u32>> {
        self.occupancy.get(0)?.get(self.place)
    }

    fn set(&self, sessions: u32) {
        if let Some(capacity) = self.capacity() {
            capacity.set(sessions);
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.set(self.before);
    }
}

/// Returns the names of the rules of a version by number.
fn names(description: &Description, map: &MapData, version: u32) -> Result<Vec<Option<String>>> {
    let name = |number| {
        if version == 0 {
            return Ok(None);
        }
        let index = (description.first_rule)(version) + number;
        let rule = lookup(map, index).context("cannot read RULES")?;
        ensure!(rule.len() == description.rule_bytes, "RULES has values of {} bytes", rule.len());
        let name = rule.get(description.rule_name.clone()).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty());
        Ok(name.map(str::to_owned))
    };
    (0..description.rules).map(name).collect()
}

/// Returns the value of an array at an index: of a per-CPU array, those of all CPUs in turn.
fn lookup(map: &MapData, index: u32) -> Result<Vec<u8>> {
    let info = map.info()?;
    let size = info.value_size() as usize;
    // As much as the kernel writes (`bpf_map_value_size`, kernel/bpf/syscall.c).
    let map_type = info.map_type()?;
    let length = if map_type == MapType::Array {
        size
    } else {
        ensure!(map_type == MapType::PerCpuArray, "a map of type {map_type:?} is no array");
        let cpus = nr_cpus().map_err(|(what, error)| anyhow!("{what}: {error}"))?;
        size.next_multiple_of(8) * cpus
    };
    let mut value = vec![0; length];
    bpf::lookup(map.fd().as_fd(), index, &mut value)?;
    Ok(value)
}
