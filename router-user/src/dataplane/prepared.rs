//! Programs and maps that the kernel has accepted, and that no packet reaches yet.
//!
//! Preparing takes long and can fail, and changes nothing: it may be done beside a data plane that
//! forwards, and beside the daemon of that data plane. Activating is short.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, ProgramArray},
    programs::ProgramFd,
};
use router_common::{
    maps::stages::Stage,
    table::{BUCKET, Regions},
};

use super::{
    CounterTable, Dataplane, FailedNeighbours, FlowTable, HeldPins, InterfaceAddressTable, Limits,
    LoadOptions, LocalAddresses, NextHopsInUse, PINNED_MAPS, PUNTS, Pins, ReservedPorts, RuleTable,
    SettingsTable,
    flows::FlowMaps,
    object::{OBJECT, explain_load_error, load_own_traffic, load_program, program_fd, take},
    pools, reserved_ports,
};

/// Programs and maps that the kernel has accepted, and that no packet reaches yet. Dropping it
/// removes what it has pinned.
pub struct Prepared {
    ebpf: Ebpf,
    stages: ProgramArray<MapData>,
    /// The program for the first slot of `ROOT`.
    entry: ProgramFd,
    own_traffic: Result<(), String>,
    adopted: bool,
    limits: Limits,
    pinned: Option<Pinned>,
}

/// Pins of a data plane that is not in force yet.
struct Pinned {
    pins: Pins,
    /// The pin of the program array, until that is in force.
    stages: PathBuf,
    /// `true` if there was no data plane before.
    is_new: bool,
    is_kept: bool,
}

impl Pinned {
    fn of(pins: Pins) -> Self {
        Self { stages: pins.new_stages(), is_new: !pins.are_there(), pins, is_kept: false }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // Best effort: what matters is the error because of which this is dropped.
        let _ = fs::remove_file(&self.stages);
        if self.is_new {
            let _ = self.pins.remove();
        }
    }
}

impl Prepared {
    /// Has the kernel load the programs, on top of the maps that an earlier daemon has left pinned,
    /// if there are any. Writes nothing that programs in force read. Ends early if `cancelled` is
    /// set: the verifier takes a while for each program.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses the programs or maps, if a pin cannot be written, and
    /// if it was cancelled. What this call has pinned is removed again.
    pub fn load(options: &LoadOptions, cancelled: &AtomicBool) -> Result<Self> {
        let pinned = options.pins.as_deref().map(Pins::open).transpose()?.map(Pinned::of);
        let slots = Regions::of(options.sessions).context("limits.flows is too large")?.slots();
        let mut loader = EbpfLoader::new();
        if let Some(Pinned { pins, stages, .. }) = &pinned {
            for name in PINNED_MAPS.into_iter().chain([PUNTS]) {
                loader.map_pin_path(name, pins.map(name));
            }
            loader.map_pin_path("STAGES", stages);
        }
        loader.map_max_entries("FLOWS", slots / BUCKET);
        for name in ["POOLS", "POOL_BITS"] {
            loader.map_max_entries(name, pools::pools_for(options.sessions));
        }
        let level = options.log.map_or(0, |level| level as u8);
        loader.override_global("AYA_LOG_LEVEL", &level, false);
        let generic = u8::from(options.generic);
        loader.override_global("GENERIC_MODE", &generic, true);
        let mut ebpf = loader.load(OBJECT).map_err(|error| explain_load_error(error, slots))?;

        let entry = if options.generic { "generic" } else { "forward" };
        load_program(&mut ebpf, entry, cancelled)?;
        for (_, name) in Stage::ALL {
            load_program(&mut ebpf, name, cancelled)?;
        }
        let entry = program_fd(&ebpf, entry)?;
        // Now, as long as all of its maps are open. The router works without it.
        let own_traffic = load_own_traffic(&mut ebpf, cancelled).map_err(|error| format!("{error:#}"));
        let mut stages: ProgramArray<_> = take(&mut ebpf, "STAGES")?.try_into()?;
        for (stage, name) in Stage::ALL {
            stages
                .set(stage as u32, &program_fd(&ebpf, name)?, 0)
                .with_context(|| format!("cannot put the program `{name}` into its slot"))?;
        }
        ensure!(!cancelled.load(Relaxed), "stopped while the programs were loaded");
        let LoadOptions { sessions, half_open_per_source, .. } = *options;
        let adopted = pinned.as_ref().is_some_and(|pinned| !pinned.is_new);
        let limits = Limits { sessions, half_open_per_source };
        Ok(Self { ebpf, stages, entry, own_traffic, adopted, limits, pinned })
    }

    /// Returns `true` if an earlier daemon's maps were found and stay in use.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Has packets reach the programs, if a root program is attached. The caller is the only one
    /// that works with the pins ([`Pins::lock`]).
    ///
    /// # Errors
    /// Returns an error if a map cannot be read or written. Before the last step, what was in
    /// force still is.
    pub fn activate(self) -> Result<Dataplane> {
        let Self { mut ebpf, stages, entry, own_traffic, adopted, limits, mut pinned } = self;
        // From the inside out: packets reach the programs only when all that they need is in place.
        let mut settings = SettingsTable::new(take(&mut ebpf, "SETTINGS")?)?;
        let local_addresses = LocalAddresses::new(
            take(&mut ebpf, "LOCAL_ADDRESSES")?,
            take(&mut ebpf, "LOCAL_ADDRESSES_IPV6")?,
        )?;
        let reserved_ports = ReservedPorts::new(take(&mut ebpf, reserved_ports::MAP)?)?;
        let interface_addresses = InterfaceAddressTable::new(take(&mut ebpf, "INTERFACE_ADDRESSES")?)?;
        let failed_neighbours = FailedNeighbours::new(take(&mut ebpf, "FAILED_NEIGHBOURS")?)?;
        let next_hops_in_use = NextHopsInUse::new(take(&mut ebpf, "NEXT_HOPS")?)?;
        let rules = RuleTable::new(&mut ebpf, settings.version())?;
        let maps = FlowMaps {
            slots: take(&mut ebpf, "FLOWS")?,
            occupancy: take(&mut ebpf, "OCCUPANCY")?,
            half_open: take(&mut ebpf, "HALF_OPEN")?,
            peers: take(&mut ebpf, "PEERS")?,
            pools: take(&mut ebpf, "POOLS")?,
            pool_bits: take(&mut ebpf, "POOL_BITS")?,
        };
        let flows = FlowTable::new(maps, settings.current())?;
        flows.set_capacity(limits.sessions);
        settings.set_limits(flows.regions(), flows.pools_to_spare(), limits.half_open_per_source)?;
        let counters = CounterTable::new(take(&mut ebpf, "STATS")?)?;
        rules.set_numbered(flows.clone(), counters.clone());
        let egress = take(&mut ebpf, "EGRESS")?.try_into()?;
        let mut root: ProgramArray<_> = take(&mut ebpf, "ROOT")?.try_into()?;
        root.set(0, &entry, 0).context("cannot put the program into the root slot")?;
        // What the programs before these have found is not noted in these programs' map.
        settings.invalidate_next_hops()?;
        let pins = match &mut pinned {
            Some(pinned) => {
                pinned.pins.keep_stages(&pinned.stages)?;
                let maps = PINNED_MAPS.into_iter().chain([PUNTS]);
                let held = HeldPins::hold(pinned.pins.clone(), maps)?;
                pinned.is_kept = true;
                Some(held)
            }
            None => None,
        };
        Ok(Dataplane {
            ebpf,
            pins,
            arrays: [root, stages],
            entry,
            limits,
            own_traffic,
            egress,
            adopted,
            rules,
            flows,
            counters,
            settings,
            local_addresses,
            reserved_ports,
            interface_addresses,
            failed_neighbours,
            next_hops_in_use,
        })
    }
}
