//! The daemon: puts a configuration into the data plane and keeps it true.
//!
//! The data plane forwards without it. The daemon's modules:
//!
//! - `lifecycle`: start, signals, listeners, privileges. `parts` gives each part what it needs.
//! - `state`: what the parts have in common, as plain data.
//! - `control`: decides which rules are in force, and writes them.
//! - `drain`: keeps the load balancer from sending new connections, on request.
//! - `kernel`: follows routes, neighbours, addresses and this machine's own traffic.
//! - `names`: resolves targets that are given by name.
//! - `checks`: connects to targets again and again, and tells whether they answer.
//! - `observe`: the health of targets, and every other condition.
//! - `sessions`: removes sessions that have ended, counts and lists the others.
//! - `punts`: sends packets that the data plane cannot send.
//! - `self_test`: tests that the programs forward, by sessions of its own.
//! - `upkeep`: undoes what others change.
//! - `reload`: puts a changed configuration file in force.
//! - `serve`: the load balancer's probe, the metrics, and the API of the command line.
//! - `logging`, `rate`, `sync`: log lines, limits on work, locks.

mod checks;
mod control;
mod drain;
mod kernel;
mod lifecycle;
mod logging;
mod names;
mod observe;
mod options;
mod parts;
mod punts;
mod rate;
mod reload;
mod self_test;
mod serve;
mod sessions;
mod state;
mod sync;
mod upkeep;

use std::{fs::File, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use self::lifecycle::{
    descriptors::reserve_descriptors,
    hand_over::{Offer, Paused, Predecessor, Request},
    instance::{Candidate, Instance, Services},
    listeners::{self, Inherited, Listeners, is_answered},
    loading::Loading,
    privileges,
    replacement::{Replacement, Replacer},
    signals::Signals,
    waiting,
};
pub use self::options::Options;
use self::{names::resolved::Names, parts::Common, serve::http};

use crate::{
    config::{self, Config},
    dataplane::{Pins, Predecessors},
    preflight::{self, Severity},
    private,
};

/// The time in which a successor that has failed lets go of the pins.
const RELEASE: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT, or until another daemon takes its place. The data plane goes on
/// forwarding.
///
/// # Errors
/// When the configuration is wrong, the machine cannot run it, or the kernel refuses: the machine
/// is then as it was before, and a daemon whose place it was to take goes on.
pub async fn run(options: Options) -> Result<()> {
    let config::Loaded { config, warnings } = Config::load(&options.config_path)?;
    for warning in &warnings {
        warn!("{}", warning.brief());
    }
    private::set_umask();
    reserve_descriptors(&config);
    let inherited = Inherited::from_service_manager();
    let predecessor = find_predecessor(&options, &config, &inherited).await?;
    let mut signals = Signals::new()?;
    let inherited = match &predecessor {
        Some(_) => Some(inherited),
        None => waiting::for_interfaces(&options.config_path, &config, inherited, &mut signals).await?,
    };
    let Some(inherited) = inherited else { return Ok(()) };
    check_machine(&config).await?;

    let loading = Loading::default();
    let (replacer, mut replacements) = Replacer::new();
    let common = Common { options, replacer, reloads: reload::Memory::default() };
    let root = config.admin.pins.clone();
    let mut place = None;
    let prepared = prepare(&common, &config, inherited, predecessor.as_ref(), &loading, &mut place);
    // Only that can be broken off: what follows is short, and a stop comes after it.
    let candidate = tokio::select! {
        candidate = prepared => candidate,
        () = signals.stop() => {
            loading.stop().await;
            Err(anyhow!("stopped before it had started"))
        }
    };
    let (mut running, paused) = start(candidate, place, &root).await?;
    if let Some(paused) = paused {
        paused.finish().await;
    }
    let mut offer = Offer::listen(running.listeners.api());
    match privileges::give_up() {
        Ok(()) => info!("this process has given up all privileges but {}", privileges::KEPT_NAMES),
        // It forwards all the same.
        Err(error) => warn!("{error:#}"),
    }
    running.report();
    loop {
        match running.wait(&mut signals, &mut offer, &mut replacements).await? {
            Event::Stop => {
                // Without a service manager there is none to notify.
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                running.stop().await;
                offer.remove();
                return Ok(());
            }
            Event::Asked(request) => {
                if let Some(reason) = request.obstacle() {
                    request.refuse(reason).await;
                } else if running.hand_over(request, &mut signals).await? {
                    return Ok(());
                }
            }
            Event::Replace(Replacement { config, outcome }) => {
                let prepared = tokio::select! {
                    prepared = running.prepare(&common, *config, &loading) => prepared,
                    () = signals.stop() => {
                        loading.stop().await;
                        running.stop().await;
                        offer.remove();
                        return Ok(());
                    }
                };
                let replaced = match prepared {
                    Ok((candidate, listeners)) => running.replace(candidate, listeners).await?,
                    Err(error) => Err(error),
                };
                if replaced.is_ok() && !offer.is_beside(running.listeners.api()) {
                    offer.remove();
                    offer = Offer::listen(running.listeners.api());
                }
                // Whoever has asked may have gone.
                let _ = outcome.send(replaced);
            }
        }
    }
}

/// Finds the daemon whose place this one is to take.
async fn find_predecessor(
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
async fn check_machine(config: &Config) -> Result<()> {
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

/// What only one daemon has at a time.
struct Place {
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
async fn prepare(
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
async fn start(
    candidate: Result<Candidate>,
    mut place: Option<Place>,
    root: &Path,
) -> Result<(Running, Option<Paused>)> {
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
            Ok((Running { instance, services, listeners, pins, lock }, paused))
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
async fn activate(
    candidate: Candidate,
    lock: &mut Option<File>,
    listeners: &Listeners,
    before: Option<&Instance>,
) -> Result<(Instance, Services)> {
    let (instance, followed) = candidate.activate(lock).await?;
    if let Some(before) = before {
        instance.parts.inherit(&before.parts);
    }
    let services = instance.serve(followed, listeners)?;
    Ok((instance, services))
}

/// What a running daemon is asked for.
enum Event {
    /// To end.
    Stop,
    /// To hand over.
    Asked(Request),
    /// To run with another configuration.
    Replace(Replacement),
}

/// A running daemon.
struct Running {
    instance: Instance,
    services: Services,
    listeners: Listeners,
    pins: Pins,
    /// The lock on the pins, except during a hand-over.
    lock: Option<File>,
}

impl Running {
    /// Tells the log and the service manager that it forwards.
    fn report(&self) {
        let parts = &self.instance.parts;
        let config = parts.state.config.get();
        info!(
            config = %parts.config_path.display(),
            rules = config.forwards.len() + config.masquerades.len(),
            probe = %config.health.listen,
            "running"
        );
        // Without a service manager there is none to notify.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }

    /// Waits until it is asked for something, or until something that must not end has ended.
    async fn wait(
        &mut self,
        signals: &mut Signals,
        offer: &mut Offer,
        replacements: &mut mpsc::UnboundedReceiver<Replacement>,
    ) -> Result<Event> {
        tokio::select! {
            () = signals.stop() => Ok(Event::Stop),
            request = offer.asked() => Ok(Event::Asked(request)),
            Some(replacement) = replacements.recv() => Ok(Event::Replace(replacement)),
            Some(ended) = self.services.join_next() => {
                ended.context("a part of the daemon has crashed")?.context("a part of the daemon has failed")?;
                bail!("a part of the daemon has ended")
            }
        }
    }

    /// Ends the services.
    async fn pause(&mut self) -> lifecycle::instance::Pause {
        self.instance.pause(std::mem::take(&mut self.services)).await
    }

    /// Ends everything but the data plane.
    async fn stop(mut self) {
        let _paused = self.pause().await;
        let parts = &self.instance.parts;
        let interfaces: Vec<_> = parts.state.config.get().interfaces.names().map(str::to_owned).collect();
        info!(
            sessions = parts.sessions(),
            "stopped; the programs go on forwarding on {} without a daemon, and the next start takes them over \
             (`pls-router detach` takes them off)",
            interfaces.join(", ")
        );
        if !listeners::is_managed() {
            self.listeners.remove();
        }
        http::finish().await;
    }

    /// Hands over to a successor. Returns `true` if that has this daemon's place now, and `false`
    /// if it has failed, and this daemon goes on.
    ///
    /// # Errors
    /// Returns an error if this daemon cannot go on.
    async fn hand_over(&mut self, request: Request, signals: &mut Signals) -> Result<bool> {
        let process = request.process.unwrap_or_default();
        info!(process, version = request.program, "another daemon takes over");
        let pause = self.pause().await;
        self.lock = None;
        let handed_over = async {
            request.grant(&self.listeners).await?;
            request.done().await
        };
        let outcome = tokio::select! {
            outcome = handed_over => outcome,
            // The other one goes on by itself.
            () = signals.stop() => return Ok(true),
        };
        let Err(error) = outcome else {
            info!(process, "handed over");
            http::finish().await;
            return Ok(true);
        };
        warn!(process, "the other daemon has failed, so this one goes on: {error:#}");
        drop(request);
        self.lock = Some(self.lock_again().await?);
        let followed = self.instance.resume(pause).await?;
        self.services = self.instance.serve(followed, &self.listeners)?;
        Ok(false)
    }

    /// Prepares an instance with another configuration beside the one that runs.
    ///
    /// # Errors
    /// Returns an error if it cannot be prepared. Nothing has changed then.
    async fn prepare(
        &self,
        common: &Common,
        config: Config,
        loading: &Loading,
    ) -> Result<(Candidate, Listeners)> {
        reserve_descriptors(&config);
        let known = self.instance.parts.state.names.get();
        let candidate = Candidate::prepare(common, config.clone(), &known, loading).await?;
        let listeners = Listeners::bind(&config, self.listeners.inherit()?)?;
        Ok((candidate, listeners))
    }

    /// Puts an instance in the place of the one that runs. The inner result says if that has
    /// succeeded; if not, the one of before runs on.
    ///
    /// # Errors
    /// Returns an error if neither runs.
    async fn replace(&mut self, candidate: Candidate, listeners: Listeners) -> Result<Result<()>> {
        let pause = self.pause().await;
        let activated = async {
            // Now that nobody can begin or end a drain.
            drain::carry(self.listeners.api(), listeners.api())?;
            activate(candidate, &mut self.lock, &listeners, Some(&self.instance)).await
        };
        match activated.await {
            Ok((instance, services)) => {
                if listeners.api() != self.listeners.api() {
                    self.listeners.remove();
                }
                drain::forget(self.listeners.api(), listeners.api());
                pause.for_good();
                (self.instance, self.services, self.listeners) = (instance, services, listeners);
                self.listeners.store();
                Ok(Ok(()))
            }
            Err(error) => {
                listeners.remove_new();
                drain::forget(listeners.api(), self.listeners.api());
                let followed = self.instance.resume(pause).await?;
                self.services = self.instance.serve(followed, &self.listeners)?;
                Ok(Err(error))
            }
        }
    }

    /// Locks the pins again, which the failed successor may hold until it has ended.
    async fn lock_again(&self) -> Result<File> {
        /// The pause between two attempts.
        const RETRY: Duration = Duration::from_millis(20);
        let start = Instant::now();
        loop {
            match self.pins.lock() {
                Ok(lock) => return Ok(lock),
                Err(error) if start.elapsed() > RELEASE => return Err(error),
                Err(_) => sleep(RETRY).await,
            }
        }
    }
}
