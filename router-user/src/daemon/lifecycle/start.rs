//! The start of a daemon: from a configuration to an instance that forwards, in the place of a
//! running daemon's if there is one.

use std::{fs::File, path::Path};

use anyhow::{Result, anyhow, bail};
use tracing::{info, warn};

use super::{
    hand_over::{Paused, Predecessor},
    instance::{Candidate, Equipment, Instance, Services},
    listeners::{Inherited, Listeners, is_answered},
    loading::Loading,
};
use crate::{
    config::Config,
    daemon::{names::resolved::Names, options::Options, parts::Common},
    dataplane::{Pins, Predecessors},
    preflight::{self, Severity},
};

/// A daemon that has started.
pub(crate) struct Started {
    pub(crate) instance: Instance,
    pub(crate) services: Services,
    pub(crate) listeners: Listeners,
    pub(crate) pins: Pins,
    /// The lock on the pins.
    pub(crate) lock: Option<File>,
}

/// Finds the daemon whose place this one is to take.
pub(crate) async fn find_predecessor(
    options: &Options,
    config: &Config,
    inherited: &Inherited,
) -> Result<Option<Predecessor>> {
    let socket = &config.admin.socket;
    // The service manager starts one daemon at a time, and it is this one that answers on a socket
    // that it has inherited.
    let is_running = !inherited.has_api() && is_answered(socket).await;
    if !options.take_over {
        if is_running {
            bail!(
                "a pls-router daemon is running already: it answers on {}\n  fix: stop it first (systemctl stop \
                 pls-router), or take its place with `pls-router run --take-over`; no session is lost by either",
                socket.display()
            );
        }
        return Ok(None);
    }
    let predecessor = Predecessor::find(socket).await?;
    if predecessor.is_none() && is_running {
        bail!(
            "the daemon that answers on {} cannot hand over\n  fix: stop it first: systemctl stop pls-router",
            socket.display()
        );
    }
    Ok(predecessor)
}

/// Looks at the machine; errors end it here, all of them at once.
pub(crate) async fn check_machine(config: &Config) -> Result<()> {
    let facts = preflight::inspect(config).await;
    let findings = preflight::findings(config, &facts);
    let mut errors = Vec::new();
    for finding in &findings {
        match finding.severity {
            Severity::Error => errors.push(finding.to_string()),
            Severity::Warning => warn!("{}; fix: {}", finding.text, finding.fix),
            Severity::Note => info!("{}", finding.text),
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    bail!("this machine cannot run this configuration\n{}", errors.join("\n"))
}

/// The things that only one daemon has at a time.
pub(crate) struct Place {
    pins: Pins,
    lock: Option<File>,
    listeners: Listeners,
    predecessors: Predecessors,
    /// `true` if no data plane was pinned.
    is_fresh: bool,
    /// The daemon whose place it was.
    paused: Option<Paused>,
}

impl Place {
    fn take(config: &Config, inherited: Inherited, paused: Option<Paused>) -> Result<Self> {
        let predecessors = Predecessors::find(&config.admin.pins)?;
        let pins = Pins::open(&config.admin.pins)?;
        let lock = Some(pins.claim()?);
        let listeners = Listeners::bind(config, inherited)?;
        for (directory, layout) in predecessors.unknown() {
            warn!(
                "found the data plane of another version at {}: this one takes its place, and its sessions are \
                 lost, because this version cannot read layout {layout}",
                directory.display()
            );
        }
        let is_fresh = !pins.are_there();
        Ok(Self { pins, lock, listeners, predecessors, is_fresh, paused })
    }

    /// Takes back what a failed start has done.
    fn give_up(self) {
        // A data plane that was there goes on, or if this one has taken its place, this one does.
        let removed = if self.is_fresh && self.predecessors.is_empty() {
            self.pins.remove().map(drop)
        } else {
            self.pins.discard_unused()
        };
        if let Err(error) = removed {
            warn!("cannot clean up: {error:#}");
        }
        self.listeners.remove_new();
    }
}

/// Prepares an instance, and takes the place for it, which is a running daemon's if there is one.
/// Whatever can fail without the data plane's help fails before anything is touched, and before a
/// running daemon pauses.
pub(crate) async fn prepare(
    common: &Common,
    config: &Config,
    inherited: Inherited,
    predecessor: Option<&Predecessor>,
    loading: &Loading,
    place: &mut Option<Place>,
) -> Result<Candidate> {
    let Some(predecessor) = predecessor else {
        *place = Some(Place::take(config, inherited, None)?);
        return Candidate::prepare(common, config.clone(), &Names::new(), loading).await;
    };
    let candidate = Candidate::prepare(common, config.clone(), &Names::new(), loading).await?;
    info!("the programs are loaded; asking the running daemon to hand over");
    let (paused, inherited) = predecessor.ask().await?;
    *place = Some(Place::take(config, inherited, Some(paused))?);
    Ok(candidate)
}

/// Puts an instance in force and starts its services, or takes back what was done for it.
pub(crate) async fn start(
    candidate: Result<Candidate>,
    mut place: Option<Place>,
    root: &Path,
) -> Result<(Started, Option<Paused>)> {
    let activated = match (candidate, &mut place) {
        (Ok(candidate), Some(place)) => activate(candidate, &mut place.lock, &place.listeners, None).await,
        (Ok(_), None) => Err(anyhow!("there is no place to take")),
        (Err(error), _) => Err(error),
    };
    match (activated, place) {
        (Ok((instance, services)), Some(place)) => {
            let Place { pins, lock, listeners, predecessors, paused, .. } = place;
            // It forwards; what is left goes with the next start.
            if let Err(error) = predecessors.remove(&pins) {
                warn!("cannot remove the data plane of another version: {error:#}");
            }
            listeners.store();
            Ok((Started { instance, services, listeners, pins, lock }, paused))
        }
        (Ok(_), None) => bail!("there is no place to take"),
        (Err(error), Some(place)) => {
            place.give_up();
            Err(error)
        }
        (Err(error), None) => {
            let pins = Pins::at(root);
            // Without the lock, it is another process's.
            if let Ok(_lock) = pins.lock()
                && let Err(error) = pins.discard_unused()
            {
                warn!("cannot clean up: {error:#}");
            }
            Err(error)
        }
    }
}

/// Puts an instance in force, in the place of the one `before` in this process if there is one, and
/// starts its services.
pub(crate) async fn activate(
    candidate: Candidate,
    lock: &mut Option<File>,
    listeners: &Listeners,
    before: Option<&Instance>,
) -> Result<(Instance, Services)> {
    let equipment = Equipment::get(listeners)?;
    let (instance, followed) = candidate.activate(lock).await?;
    if let Some(before) = before {
        instance.parts.inherit(&before.parts);
    }
    let services = instance.serve(followed, equipment);
    Ok((instance, services))
}
