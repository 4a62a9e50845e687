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
mod migration;
mod moving;
mod neighbours;
mod object;
mod own_traffic;
mod pins;
mod pools;
mod predecessors;
mod prepared;
mod relocation;
mod removal;
mod replay;
mod reserved_ports;
mod route;
mod rules;
mod settings;
mod shared_memory;
mod succession;
mod unattended;

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    maps::{DevMap, MapData, ProgramArray, RingBuf},
    programs::{ProgramFd, SchedClassifier, Xdp},
};
use router_common::maps::route::{Answer, Query};
use tracing::warn;

pub use self::{
    counters::CounterTable,
    flows::{Audit, Flow, FlowTable, REPLY_SHARE, Session, Surplus, Verdict, now, port_pool, port_source},
    forwarding::{ROUTE_LOOKUPS, route_lookups_are_on, switch_route_lookups},
    held_pins::HeldPins,
    link::{Attachment, Loss, Place},
    migration::{Moved, knows_layout},
    neighbours::{FailedNeighbours, NextHopsInUse},
    object::object,
    own_traffic::Hook,
    pins::Pins,
    predecessors::Predecessors,
    prepared::{LoadOptions, Prepared},
    removal::{Removed, detach},
    replay::{Departure, Ran, Replayer, run_program},
    reserved_ports::{ReservedPorts, reserved_earlier},
    rules::{ForwardSpec, LocalAllowSpec, LocalSpec, MasqueradeSpec, RuleSetSpec, RuleTable},
    settings::{InterfaceAddressTable, LocalAddresses, SettingsTable},
    unattended::{Unattended, unattended},
};

pub use crate::sys::{
    interface::{interface_index, interface_name},
    xdp::Mode,
};

use self::{
    object::{
        PINNED_MAPS, PUNTS, ROOT_PROGRAM, ROUTE_PROGRAM, SLOW_STAGE, load_patiently, own_traffic_program,
        program, program_fd, take,
    },
    prepared::{Limits, Pinned, Tables, Waiting},
};

/// The result of taking another data plane's place.
#[derive(Debug)]
pub struct Succeeded {
    /// The layout of that one.
    pub layout: u32,
    /// Its sessions; `None` if its layout is not known, so that they are lost.
    pub moved: Option<Moved>,
    /// The lock on the directory of the pins in force, if that is a new one. The one on the
    /// directory before has no meaning any more.
    pub lock: Option<File>,
}

/// The loaded data plane. Dropping it leaves what is pinned as it is.
pub struct Dataplane {
    ebpf: Ebpf,
    pins: Option<HeldPins>,
    /// `Some` if this takes the place of another data plane and has not done so yet.
    waiting: Option<Waiting>,
    egress: DevMap<MapData>,
    /// `ROOT` and `STAGES`. Kept open: programs name maps by descriptor until they are loaded, and
    /// an array that no process holds forgets its programs.
    arrays: [ProgramArray<MapData>; 2],
    /// The program in the first slot of `ROOT`.
    entry: ProgramFd,
    limits: Limits,
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

impl Prepared {
    /// Has packets reach the programs, if a root program is attached. The caller is the only one
    /// that works with the pins ([`Pins::claim`]).
    ///
    /// If the programs take the place of others with another table, packets do not reach them
    /// before [`Dataplane::take_the_place`].
    ///
    /// # Errors
    /// Returns an error if a map cannot be read or written. Before the last step, what was in
    /// force still is.
    pub fn activate(self) -> Result<Dataplane> {
        let Self { mut ebpf, stages, entry, own_traffic, adopted, limits, pinned, tables } = self;
        // From the inside out: packets reach the programs only when all that they need is in place.
        let tables = match tables {
            Some(tables) => tables,
            None => Tables::of(&mut ebpf)?,
        };
        let Tables { mut settings, flows, transfer } = tables;
        let local_addresses = LocalAddresses::new(
            take(&mut ebpf, "LOCAL_ADDRESSES")?,
            take(&mut ebpf, "LOCAL_ADDRESSES_IPV6")?,
        )?;
        let mut reserved_ports = ReservedPorts::new(take(&mut ebpf, reserved_ports::MAP)?)?;
        let interface_addresses = InterfaceAddressTable::new(take(&mut ebpf, "INTERFACE_ADDRESSES")?)?;
        let failed_neighbours = FailedNeighbours::new(take(&mut ebpf, "FAILED_NEIGHBOURS")?)?;
        let next_hops_in_use = NextHopsInUse::new(take(&mut ebpf, "NEXT_HOPS")?)?;
        let rules = RuleTable::new(&mut ebpf, settings.version())?;
        flows.set_capacity(limits.sessions);
        settings.set_limits(flows.regions(), flows.pools_to_spare(), limits.half_open_per_source)?;
        let counters = CounterTable::new(take(&mut ebpf, "STATS")?)?;
        rules.set_numbered(flows.clone(), counters.clone());
        let egress = take(&mut ebpf, "EGRESS")?.try_into()?;
        let mut root: ProgramArray<_> = take(&mut ebpf, "ROOT")?.try_into()?;
        let hold = |pinned: &Pinned| {
            let maps = PINNED_MAPS.into_iter().chain([PUNTS]);
            HeldPins::hold(pinned.pins().clone(), maps, &pinned.pins().new_stages())
        };
        let pins = pinned.as_ref().map(hold).transpose()?;
        let waiting = match pinned {
            Some(mut pinned) => match pinned.succession.take() {
                Some(succession) => {
                    succession.bequeath(transfer.as_ref(), &rules, &mut settings, &mut reserved_ports)?;
                    let (layout, is_same_layout) = (succession.before.layout(), succession.is_same_layout);
                    Some(Waiting { pinned, layout, is_same_layout, transfer })
                }
                None => {
                    // What the programs before these have found is not noted in these programs'
                    // map.
                    settings.invalidate_next_hops()?;
                    pinned.pins().put_stages_in_force(|| {
                        root.set(0, &entry, 0).context("cannot put the program into the root slot")
                    })?;
                    pinned.keep();
                    pinned.pins().discard_stages_of_the_dead();
                    succession::finish(pinned.pins(), &flows);
                    None
                }
            },
            None => {
                root.set(0, &entry, 0).context("cannot put the program into the root slot")?;
                settings.invalidate_next_hops()?;
                None
            }
        };
        Ok(Dataplane {
            ebpf,
            pins,
            waiting,
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

impl Dataplane {
    /// Loads the programs, on top of the maps that an earlier daemon has left pinned, if there are
    /// any, and has packets reach them. Attaches nothing, but a root program that is attached
    /// already leads to these programs from now on.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses the programs or maps, or a pin cannot be
    /// written; what had been pinned by this call is removed again.
    pub fn load(options: &LoadOptions) -> Result<Self> {
        Prepared::load(options, &AtomicBool::new(false))?.activate()
    }

    /// Has packets reach these programs again, after a successor was to take their place and has
    /// failed: it may have put its own there, and may have changed settings and rules.
    ///
    /// # Errors
    /// Returns an error if a map cannot be read or written.
    pub fn take_back(&mut self) -> Result<()> {
        self.settings.read_again()?;
        self.rules.read_again(self.settings.version())?;
        self.reserved_ports.read_again()?;
        self.interface_addresses.read_again()?;
        let limits = &self.limits;
        self.flows.set_capacity(limits.sessions);
        self.settings.set_limits(
            self.flows.regions(),
            self.flows.pools_to_spare(),
            limits.half_open_per_source,
        )?;
        let [root, _] = &mut self.arrays;
        root.set(0, &self.entry, 0).context("cannot put the program into the root slot")?;
        if let Some(held) = &self.pins {
            held.restore_stages()?;
        }
        self.settings.invalidate_next_hops()
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
        let mut attachment = match Attachment::find(pins, interface, index, mode)? {
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
        let root: &mut Xdp = program(&mut self.ebpf, ROOT_PROGRAM)?;
        if root.fd().is_ok() {
            attachment.know_root(root, pins)?;
        }
        self.set_egress_index(slot, interface, index)?;
        Ok(attachment)
    }

    /// Returns the program that an attachment runs on its interface, to be run on test packets; a
    /// copy of it if this process may not have the program itself.
    ///
    /// # Errors
    /// Returns an error if the process has no descriptor left, or the kernel refuses the copy.
    pub fn root_of(&mut self, attachment: &Attachment) -> Result<Arc<OwnedFd>> {
        match attachment.root() {
            Some(root) => Ok(root),
            None => Ok(Arc::new(self.program(ROOT_PROGRAM)?.fd()?.as_fd().try_clone_to_owned()?)),
        }
    }

    /// Limits the half-open sessions of a source.
    ///
    /// # Errors
    /// Returns an error if the map cannot be written.
    pub fn set_half_open_limit(&mut self, limit: u32) -> Result<()> {
        self.settings.set_half_open_limit(limit)?;
        self.limits.half_open_per_source = limit;
        Ok(())
    }

    /// Puts a rule set in force, at once and whole.
    ///
    /// # Errors
    /// Returns an error if a map cannot be written or the rule set does not fit. The old one stays
    /// in force.
    pub fn apply_rules(&mut self, spec: &RuleSetSpec) -> Result<()> {
        self.rules.apply(spec, &mut self.settings)
    }

    /// Copies the sessions of the programs whose place these take, and which may go on meanwhile,
    /// so that [`take_the_place`](Self::take_the_place) has less to do. Takes a while for a large
    /// table.
    pub fn copy_sessions(&mut self) {
        if let Some(Waiting { transfer: Some(transfer), .. }) = &mut self.waiting {
            transfer.copy_in_passes();
        }
    }

    /// Has packets reach these programs, if they take the place of others whose table is another
    /// one, with the sessions of those. Everything else has to be in place: settings, rules, and
    /// `attachments`. Returns `None` if packets reach the programs already.
    ///
    /// Packets go on meanwhile.
    ///
    /// # Errors
    /// Returns an error if a pin or `ROOT` cannot be written: the programs before go on with their
    /// sessions, and dropping this takes nothing away from them.
    pub fn take_the_place<'a>(
        &mut self,
        attachments: impl Iterator<Item = &'a mut Attachment>,
    ) -> Result<Option<Succeeded>> {
        self.copy_sessions();
        let Some(Waiting { mut pinned, layout, is_same_layout, transfer }) = self.waiting.take() else {
            return Ok(None);
        };
        self.settings.show_presence()?;
        let [root, _] = &mut self.arrays;
        let mut swap = || {
            let swap = || root.set(0, &self.entry, 0).context("cannot put the program into the root slot");
            pinned.put_in_force(is_same_layout, swap)
        };
        let moved = match transfer {
            Some(transfer) => Some(transfer.finish(&mut swap)?),
            None => {
                swap()?;
                None
            }
        };
        if let Some(held) = &mut self.pins {
            held.move_to(pinned.pins().clone());
        }
        for attachment in attachments {
            attachment.move_to(pinned.pins());
        }
        if is_same_layout && let Err(error) = pinned.pins().next().remove_beside(pinned.pins()) {
            warn!("cannot remove the pins of the table before: {error:#}");
        }
        Ok(Some(Succeeded { layout, moved, lock: pinned.take_lock() }))
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

    /// Makes an attachment's interface, which has this index now, the egress interface of `slot`.
    ///
    /// # Errors
    /// Returns an error if its driver cannot send redirected packets.
    pub fn set_egress_of(&mut self, slot: u32, attachment: &Attachment, index: u32) -> Result<()> {
        if self.has_egress(slot, index) {
            return Ok(());
        }
        self.set_egress_index(slot, &attachment.interface, index)
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
