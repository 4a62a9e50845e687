//! Programs and maps that the kernel has accepted, and that no packet reaches yet.
//!
//! Preparing takes long and can fail, and changes nothing: it may be done beside a data plane that
//! forwards, and beside the daemon of that data plane. Activating is short.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
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
    flows::{FlowMaps, FlowTable},
    migration::Transfer,
    object::{
        OBJECT, PINNED_MAPS, PUNTS, ROOT_PROGRAM, ROUTE_PROGRAM, explain_load_error, load_own_traffic,
        load_program, program_fd, take,
    },
    pins::Pins,
    pools,
    settings::SettingsTable,
    succession::Succession,
};

/// Options of loading the data plane.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The directory of pins. `None` pins nothing: the programs live as long as the data plane
    /// (tests).
    pub pins: Option<PathBuf>,
    /// Sessions to make room for.
    pub sessions: u32,
    /// Sessions in the opening state that one source may have.
    pub half_open_per_source: u32,
    /// `true` for the programs of generic mode, which get packets as the kernel keeps them.
    pub generic: bool,
    /// The level of the programs' own log. `None` compiles it away.
    pub log: Option<log::Level>,
}

/// Limits of sessions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) sessions: u32,
    pub(super) half_open_per_source: u32,
}

/// Programs and maps that the kernel has accepted, and that no packet reaches yet. Dropping it
/// removes what it has pinned.
pub struct Prepared {
    pub(super) ebpf: Ebpf,
    pub(super) stages: ProgramArray<MapData>,
    /// The program for the first slot of `ROOT`.
    pub(super) entry: ProgramFd,
    pub(super) own_traffic: Result<(), String>,
    pub(super) adopted: bool,
    pub(super) limits: Limits,
    pub(super) pinned: Option<Pinned>,
    /// The table to which sessions of another one move.
    pub(super) tables: Option<Tables>,
}

/// The settings and the flow table.
pub(super) struct Tables {
    pub(super) settings: SettingsTable,
    pub(super) flows: FlowTable,
    /// `Some` if sessions of another table move to this one.
    pub(super) transfer: Option<Transfer>,
}

impl Tables {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self> {
        let settings = SettingsTable::new(take(ebpf, "SETTINGS")?)?;
        let maps = FlowMaps {
            slots: take(ebpf, "FLOWS")?,
            occupancy: take(ebpf, "OCCUPANCY")?,
            half_open: take(ebpf, "HALF_OPEN")?,
            peers: take(ebpf, "PEERS")?,
            pools: take(ebpf, "POOLS")?,
            pool_bits: take(ebpf, "POOL_BITS")?,
        };
        let flows = FlowTable::new(maps, settings.current())?;
        Ok(Self { settings, flows, transfer: None })
    }
}

/// Pins of a data plane that is not in force yet.
pub(super) struct Pinned {
    /// The place of the pins now.
    pins: Pins,
    /// `true` if there was no data plane before.
    is_new: bool,
    is_kept: bool,
    /// The data plane whose place this one takes.
    pub(super) succession: Option<Succession>,
    takes_a_place: bool,
    /// The lock on a directory that this call has made.
    lock: Option<File>,
}

impl Pinned {
    /// Chooses where to pin a data plane for this number of sessions, and pins there what it uses
    /// of the one before.
    fn below(root: &Path, sessions: u32) -> Result<Self> {
        let own = Pins::open(root)?;
        // Of a process with this number that was killed: it would be used on.
        let _ = fs::remove_file(own.new_stages());
        let Some(succession) = Succession::find(&own, sessions)? else {
            let is_new = !own.are_there();
            if is_new {
                // What a start has left that was killed.
                own.discard_contents()?;
            }
            return Ok(Self {
                pins: own,
                is_new,
                is_kept: false,
                succession: None,
                takes_a_place: false,
                lock: None,
            });
        };
        let (pins, lock) = if succession.is_same_layout {
            let next = own.next();
            next.make()?;
            let lock = next.lock()?;
            if next.is_ready() {
                next.remove_beside(&own)?;
                next.make()?;
            }
            (next, Some(lock))
        } else {
            (own, None)
        };
        // What a start has left that was killed.
        pins.discard_contents()?;
        let mut pinned =
            Self { pins, is_new: true, is_kept: false, succession: None, takes_a_place: true, lock };
        succession.share_with(&pinned.pins)?;
        pinned.succession = Some(succession);
        Ok(pinned)
    }

    /// Returns the place of the pins.
    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Says that the pins are those of the data plane in force now.
    pub(super) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Takes the lock on the directory in force, if this call has made that directory.
    pub(super) fn take_lock(&mut self) -> Option<File> {
        self.lock.take()
    }

    /// Puts the pins where the next daemon looks for them, and then has packets reach the programs
    /// by `swap`. Undoes the first if the second fails.
    pub(super) fn put_in_force(&mut self, is_beside: bool, swap: impl FnOnce() -> Result<()>) -> Result<()> {
        let place = self.pins.clone();
        if is_beside {
            self.pins = self.pins.in_force();
            self.pins.exchange()?;
        }
        let stages = self.pins.new_stages();
        let done = self.pins.keep_stages(&stages).and_then(|()| swap());
        if done.is_err() && is_beside {
            self.pins.exchange()?;
            self.pins = place;
        }
        done?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // Best effort: what matters is the error because of which this is dropped.
        let _ = fs::remove_file(self.pins.new_stages());
        if self.takes_a_place {
            // Without detaching anything: the attachments are those of the data plane in force.
            let _ = self.pins.discard();
        } else if self.is_new {
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
        let mut pinned =
            options.pins.as_deref().map(|root| Pinned::below(root, options.sessions)).transpose()?;
        let slots = Regions::of(options.sessions).context("limits.flows is too large")?.slots();
        let mut loader = EbpfLoader::new();
        if let Some(Pinned { pins, .. }) = &pinned {
            for name in PINNED_MAPS.into_iter().chain([PUNTS]) {
                loader.map_pin_path(name, pins.map(name));
            }
            loader.map_pin_path("STAGES", pins.new_stages());
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
        // Also those that are attached or run by the daemon, so that the verifier refuses nothing
        // later.
        for name in [ROOT_PROGRAM, ROUTE_PROGRAM] {
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
        // The other programs, and their daemon, may go on meanwhile.
        let source = pinned.as_mut().and_then(|pinned| pinned.succession.as_mut()?.source.take());
        let tables = match source {
            Some(source) => {
                let mut tables = Tables::of(&mut ebpf)?;
                let mut transfer = Transfer::new(source, tables.flows.clone());
                transfer.copy_in_passes();
                tables.transfer = Some(transfer);
                Some(tables)
            }
            None => None,
        };
        Ok(Self { ebpf, stages, entry, own_traffic, adopted, limits, pinned, tables })
    }

    /// Returns `true` if an earlier daemon's maps were found and stay in use.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }
}

/// A data plane that takes the place of another one and has not done so yet.
pub(super) struct Waiting {
    /// Its pins.
    pub(super) pinned: Pinned,
    /// The layout of the other one.
    pub(super) layout: u32,
    /// `true` if that is this version's.
    pub(super) is_same_layout: bool,
    /// Moves the sessions; `None` if the layout is not known.
    pub(super) transfer: Option<Transfer>,
}
