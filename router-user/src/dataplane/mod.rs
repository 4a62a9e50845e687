//! The data plane from user space: loading the programs, and reading and writing their maps.
//!
//! Everything that must outlive the daemon is pinned below [`Pins`]: the link that holds the root
//! program on an interface, the maps, and with them the programs in the program arrays.
//! [`Dataplane::load`] finds it all again, so a daemon that comes back after a crash goes on with
//! the sessions of the one before.
//!
//! Each map has one owner here: [`RuleTable`], [`FlowTable`], [`CounterTable`], [`SettingsTable`].

mod counters;
mod flows;
mod forwarding;
mod held_pins;
mod link;
mod neighbours;
mod object;
mod own_traffic;
mod pins;
mod pools;
mod predecessors;
mod removal;
mod replay;
mod reserved_ports;
mod route;
mod rules;
mod settings;
mod shared_memory;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{DevMap, MapData, ProgramArray, RingBuf},
    programs::{SchedClassifier, Xdp},
};
use router_common::{
    maps::{
        route::{Answer, Query},
        stages::Stage,
    },
    table::{BUCKET, Regions},
};

pub use self::{
    counters::CounterTable,
    flows::{Audit, Flow, FlowTable, REPLY_SHARE, Session, Surplus, Verdict, now, port_pool, port_source},
    forwarding::{ROUTE_LOOKUPS, route_lookups_are_on, switch_route_lookups},
    held_pins::HeldPins,
    link::{Attachment, Loss, Place},
    neighbours::{FailedNeighbours, NextHopsInUse},
    object::object,
    own_traffic::Hook,
    pins::Pins,
    predecessors::Predecessors,
    removal::{Removed, detach},
    replay::{Departure, Replayer},
    reserved_ports::{ReservedPorts, reserved_earlier},
    rules::{ForwardSpec, LocalAllowSpec, LocalSpec, MasqueradeSpec, RuleSetSpec, RuleTable},
    settings::{InterfaceAddressTable, LocalAddresses, SettingsTable},
};

pub use crate::sys::{
    interface::{interface_index, interface_name},
    xdp::Mode,
};

use self::{
    flows::FlowMaps,
    object::{
        OBJECT, explain_load_error, load_own_traffic, load_patiently, load_program, own_traffic_program,
        program, program_fd, take,
    },
};

/// The maps that are pinned by their own name. `STAGES` is apart: each generation of programs has
/// its own.
const PINNED_MAPS: [&str; 24] = [
    "ROOT",
    "EGRESS",
    "SETTINGS",
    "STATS",
    "FLOWS",
    "OCCUPANCY",
    "HALF_OPEN",
    "POOLS",
    "POOL_BITS",
    "RULE_SETS",
    "RULES",
    "MASQUERADES",
    "LISTENERS",
    "SOURCES",
    "LOCAL_ADDRESSES",
    "LOCAL_ADDRESSES_IPV6",
    "LOCAL_ALLOW",
    "LOCAL_ALLOW_IPV6",
    "DATAGRAMS",
    "AWAITED",
    "OWN",
    "OWN_IPV6",
    reserved_ports::MAP,
    "INTERFACE_ADDRESSES",
];
const PUNTS: &str = "PUNTS";
/// The name of the program that is attached to interfaces.
const ROOT_PROGRAM: &str = "pls_router";
/// The program that answers a [`Query`].
const ROUTE_PROGRAM: &str = "ask_route";
/// The program of [`Stage::Slow`], which takes every packet.
const SLOW_STAGE: &str = "slow";

/// Options of loading the data plane.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The directory of pins. `None` pins nothing: the programs live as long as the [`Dataplane`]
    /// (tests).
    pub pins: Option<PathBuf>,
    /// Sessions to make room for.
    pub sessions: u32,
    /// Sessions in the opening state that one source may have.
    pub half_open_per_source: u32,
    /// `true` for the programs of generic mode, which get packets as the kernel keeps them.
    pub generic: bool,
    /// The level of the programs' own log, see [`Dataplane::ebpf_mut`]. `None` compiles it away.
    pub log: Option<log::Level>,
}

/// The loaded data plane. Dropping it leaves what is pinned as it is.
pub struct Dataplane {
    ebpf: Ebpf,
    pins: Option<HeldPins>,
    egress: DevMap<MapData>,
    /// Kept open: programs name maps by descriptor until they are loaded, and an array that no
    /// process holds forgets its programs.
    _arrays: [ProgramArray<MapData>; 2],
    /// The reason why the kernel refused the program that sees this machine's own traffic, if it
    /// did.
    own_traffic: Result<(), String>,
    /// `true` if an earlier daemon's maps were found and stay in use.
    pub adopted: bool,
    /// The rules in force.
    pub rules: RuleTable,
    /// The sessions.
    pub flows: FlowTable,
    /// The counters.
    pub counters: CounterTable,
    /// The programs' settings.
    pub settings: SettingsTable,
    /// This machine's addresses, as the programs know them.
    pub local_addresses: LocalAddresses,
    /// The ports that the kernel is kept from giving out.
    pub reserved_ports: ReservedPorts,
    /// The addresses of the router's interfaces, likewise.
    pub interface_addresses: InterfaceAddressTable,
    /// Neighbours that do not answer, as the programs know them.
    pub failed_neighbours: FailedNeighbours,
    /// The next hops that sessions have.
    pub next_hops_in_use: NextHopsInUse,
}

impl Dataplane {
    /// Loads the programs, on top of the maps that an earlier daemon has left pinned, if there are
    /// any. Attaches nothing, but a root program that is attached already leads to these programs
    /// from now on.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses the programs or maps, or a pin cannot be
    /// written; what had been pinned by this call is removed again.
    pub fn load(options: &LoadOptions) -> Result<Self> {
        Self::load_unless(options, &AtomicBool::new(false))
    }

    /// Loads the programs as [`load`](Self::load) does, unless `cancelled` is set before the last
    /// of them is loaded: the verifier takes a while for each.
    ///
    /// # Errors
    /// As there, and if it was cancelled.
    pub fn load_unless(options: &LoadOptions, cancelled: &AtomicBool) -> Result<Self> {
        let pins = options.pins.as_deref().map(Pins::open).transpose()?;
        let adopted = pins.as_ref().is_some_and(Pins::are_there);
        let result = Self::load_with(options, pins.clone(), adopted, cancelled);
        if let (Err(_), Some(pins), false) = (&result, &pins, adopted) {
            // Best effort: the error that matters is the one above.
            let _ = pins.remove();
        }
        result
    }

    fn load_with(
        options: &LoadOptions,
        pins: Option<Pins>,
        adopted: bool,
        cancelled: &AtomicBool,
    ) -> Result<Self> {
        let slots = Regions::of(options.sessions).context("limits.flows is too large")?.slots();
        let mut loader = EbpfLoader::new();
        let stages_pin = pins.as_ref().map(Pins::new_stages);
        if let Some(pins) = &pins {
            for name in PINNED_MAPS.into_iter().chain([PUNTS]) {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        if let Some(path) = &stages_pin {
            loader.map_pin_path("STAGES", path);
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
        let forward = program_fd(&ebpf, entry)?;
        // Now, as long as all of its maps are open. The router works without it.
        let own_traffic = load_own_traffic(&mut ebpf, cancelled).map_err(|error| format!("{error:#}"));

        // From the inside out: packets reach `forward` only when all it needs is in place.
        let mut stages: ProgramArray<_> = take(&mut ebpf, "STAGES")?.try_into()?;
        for (stage, name) in Stage::ALL {
            stages
                .set(stage as u32, &program_fd(&ebpf, name)?, 0)
                .with_context(|| format!("cannot put the program `{name}` into its slot"))?;
        }
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
        flows.set_capacity(options.sessions);
        settings.set_limits(flows.regions(), flows.pools_to_spare(), options.half_open_per_source)?;
        let counters = CounterTable::new(take(&mut ebpf, "STATS")?)?;
        let egress = take(&mut ebpf, "EGRESS")?.try_into()?;
        let mut root: ProgramArray<_> = take(&mut ebpf, "ROOT")?.try_into()?;
        ensure!(!cancelled.load(Relaxed), "stopped while the programs were loaded");
        root.set(0, &forward, 0).context("cannot put the program into the root slot")?;
        // What the programs before these have found is not noted in these programs' map.
        settings.invalidate_next_hops()?;
        if let (Some(pins), Some(path)) = (&pins, &stages_pin) {
            pins.keep_stages(path)?;
        }
        let pins =
            pins.map(|pins| HeldPins::hold(pins, PINNED_MAPS.into_iter().chain([PUNTS]))).transpose()?;
        Ok(Self {
            ebpf,
            pins,
            _arrays: [root, stages],
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

    /// Switches the kernel's answers to route lookups on, and remembers beside the pins that they
    /// were off, so that `detach` switches them off again.
    ///
    /// # Errors
    /// Returns an error if the setting cannot be read or written.
    pub fn switch_route_lookups_on(&mut self) -> Result<()> {
        if !route_lookups_are_on()? {
            self.settings.set_route_lookups_were_off()?;
            switch_route_lookups(true)?;
        }
        Ok(())
    }

    /// Attaches the root program to an interface, and makes the interface the one of `slot`. An
    /// attachment that an earlier daemon left, in the same mode, stays as it is.
    ///
    /// # Errors
    /// Returns an error if there is no such interface, or the kernel or the driver refuses: the
    /// interface is then as it was.
    pub fn attach(&mut self, slot: u32, interface: &str, mode: Mode) -> Result<Attachment> {
        let index = interface_index(interface)?;
        self.attach_to(slot, interface, index, mode)
    }

    /// Attaches as [`attach`](Self::attach) does, by the index of the interface that has this name
    /// in the configuration.
    ///
    /// # Errors
    /// Returns an error as that does.
    pub fn attach_to(&mut self, slot: u32, interface: &str, index: u32, mode: Mode) -> Result<Attachment> {
        let pins = self.pins.as_ref().context("attaching needs pins")?.pins();
        let attachment = match Attachment::find(pins, interface, index, mode)? {
            Some(attachment) => attachment,
            None => {
                let root: &mut Xdp = program(&mut self.ebpf, ROOT_PROGRAM)?;
                if root.fd().is_err() {
                    load_patiently(root).context("the kernel refuses to load the root program")?;
                }
                // An interface takes one mode at a time. If the new one is refused, the old one
                // comes back.
                let old = Attachment::find(pins, interface, index, mode.other())?;
                if let Some(old) = &old {
                    old.remove()?;
                }
                match (Attachment::create(root, pins, interface, index, mode), old) {
                    (Ok(attachment), _) => attachment,
                    (Err(error), None) => return Err(error),
                    (Err(error), Some(old)) => {
                        Attachment::create(root, pins, interface, index, old.mode)?;
                        return Err(error);
                    }
                }
            }
        };
        self.set_egress_index(slot, interface, index)?;
        Ok(attachment)
    }

    /// Puts a rule set in force, at once and whole.
    ///
    /// # Errors
    /// Returns an error if a map cannot be written or the rule set does not fit. The old one stays
    /// in force.
    pub fn apply_rules(&mut self, spec: &RuleSetSpec) -> Result<()> {
        self.rules.apply(spec, &mut self.settings)
    }

    /// Takes over the attachments that other versions have left on an interface, for
    /// [`attach_to`](Self::attach_to) to find.
    ///
    /// # Errors
    /// Returns an error if the kernel or the driver refuses; [`Predecessors::give_back`] undoes the
    /// rest.
    pub fn take_over(
        &mut self,
        predecessors: &mut Predecessors,
        interface: &str,
        index: u32,
        mode: Mode,
    ) -> Result<()> {
        if predecessors.is_empty() {
            return Ok(());
        }
        if !forwarding::kernel_forwards()? {
            self.settings.set_route_lookups_were_off()?;
        }
        self.program(ROOT_PROGRAM)?;
        let pins = self.pins.as_ref().context("attaching needs pins")?.pins();
        predecessors.take_over(program(&mut self.ebpf, ROOT_PROGRAM)?, pins, interface, index, mode)
    }

    /// Puts the root program back on an interface: `lost` is the attachment that it had, `index`
    /// the interface's now.
    ///
    /// # Errors
    /// Returns an error if the kernel or the driver refuses, or a pin cannot be written.
    pub fn attach_again(&mut self, slot: u32, lost: &Attachment, index: u32) -> Result<Attachment> {
        if lost.index != index || lost.loss().is_some() {
            lost.remove()?;
        }
        self.attach_to(slot, &lost.interface, index, lost.mode)
    }

    /// Watches this machine's own traffic on its way out of the interface with this index, so that
    /// no session takes the answers. An earlier daemon's attachment stays and gets the new program.
    /// `interface` is the name in the configuration.
    ///
    /// # Errors
    /// Returns an error if the kernel cannot attach a program to an interface's way out. The router
    /// works without.
    pub fn watch_own_traffic(&mut self, interface: &str, index: u32, hook: Hook) -> Result<()> {
        let pins = self.pins.as_ref().context("attaching needs pins")?.pins().clone();
        own_traffic::attach(self.own_traffic_program()?, &pins, interface, index, hook)
    }

    /// Returns `true` if this machine's own traffic on the interface with this index is watched.
    pub fn is_own_traffic_watched(&self, interface: &str, index: u32) -> bool {
        self.pins.as_ref().is_some_and(|held| own_traffic::is_attached(held.pins(), interface, index))
    }

    /// Returns the program that sees this machine's own traffic.
    ///
    /// # Errors
    /// Returns an error if the kernel has not taken it.
    pub fn own_traffic_program(&mut self) -> Result<&mut SchedClassifier> {
        if let Err(why) = &self.own_traffic {
            bail!("{why}");
        }
        own_traffic_program(&mut self.ebpf)
    }

    /// Makes an interface the egress interface of `slot`, as [`attach`](Self::attach) does too.
    ///
    /// # Errors
    /// Returns an error if there is no such interface, or its driver cannot send redirected
    /// packets.
    pub fn set_egress(&mut self, slot: u32, interface: &str) -> Result<()> {
        self.set_egress_index(slot, interface, interface_index(interface)?)
    }

    fn set_egress_index(&mut self, slot: u32, interface: &str, index: u32) -> Result<()> {
        self.egress
            .set(slot, index, None, 0)
            .with_context(|| format!("cannot make {interface} an egress interface"))
    }

    /// Returns `true` if packets that leave by `slot` leave by the interface with this index. The
    /// kernel forgets one that is removed.
    pub fn has_egress(&self, slot: u32, index: u32) -> bool {
        self.egress.get(slot, 0).is_ok_and(|egress| egress.if_index == index)
    }

    /// Returns the pins; `None` if nothing is pinned.
    pub fn pins(&self) -> Option<&HeldPins> {
        self.pins.as_ref()
    }

    /// Removes attachments that an earlier daemon left on interfaces other than these.
    ///
    /// # Errors
    /// Returns an error if a pin cannot be removed.
    pub fn detach_others(&self, interfaces: &[&str]) -> Result<Vec<String>> {
        match &self.pins {
            Some(held) => held.pins().remove_links(|name| !interfaces.contains(&name)),
            None => Ok(Vec::new()),
        }
    }

    /// Returns the ring of packets for the daemon, see [`router_common::maps::punt`]. Can be taken
    /// once.
    ///
    /// # Errors
    /// Returns an error if it has been taken already.
    pub fn take_punts(&mut self) -> Result<RingBuf<MapData>> {
        Ok(take(&mut self.ebpf, PUNTS)?.try_into()?)
    }

    /// Returns the replayer, which gives packets to the programs again.
    ///
    /// # Errors
    /// Returns an error if the process has no descriptor left.
    pub fn replayer(&self) -> Result<Replayer> {
        Ok(Replayer::new(program_fd(&self.ebpf, SLOW_STAGE)?))
    }

    /// Asks the kernel for the route of a packet and the source address of its session, by the
    /// program that asks for packets, so that both get the same answer.
    ///
    /// # Errors
    /// Returns an error if the kernel does not run the program.
    pub fn route(&mut self, query: &Query) -> Result<Answer> {
        route::ask(self.program(ROUTE_PROGRAM)?, query)
    }

    /// The programs, for the log that they write when they were loaded with a level.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Loads the programs that are not attached now and may be used later, when this process may
    /// load none any more.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses one.
    pub fn load_what_is_used_later(&mut self) -> Result<()> {
        for name in [ROOT_PROGRAM, ROUTE_PROGRAM] {
            self.program(name)?;
        }
        Ok(())
    }

    /// Returns a program by its function's name: `pls_router` (loaded if it is not yet),
    /// `forward` or `slow`.
    ///
    /// # Errors
    /// Returns an error if there is no such program or the kernel refuses it.
    pub fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        let program: &mut Xdp = program(&mut self.ebpf, name)?;
        if program.fd().is_err() {
            load_patiently(program)
                .with_context(|| format!("the kernel refuses to load the program `{name}`"))?;
        }
        Ok(program)
    }
}

#[cfg(test)]
mod budget;
