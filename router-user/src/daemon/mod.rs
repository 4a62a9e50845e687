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
//! - `clock`: tells that the machine's clock was set.
//! - `logging`, `rate`, `sync`: log lines, limits on work, locks.

mod checks;
mod clock;
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

use anyhow::{Result, anyhow};
use tracing::{info, warn};

pub use self::options::Options;

use self::{
    lifecycle::{
        descriptors::reserve_descriptors,
        hand_over::Offer,
        listeners::Inherited,
        loading::Loading,
        privileges,
        replacement::{Replacement, Replacer},
        running::{Event, Running},
        signals::Signals,
        start::{check_machine, find_predecessor, prepare, start},
        waiting, watchdog,
    },
    parts::Common,
};
use crate::{
    config::{self, Config},
    private,
};

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
    // For the life of the process, whatever is paused or replaced meanwhile.
    tokio::spawn(watchdog::feed());
    tokio::spawn(clock::watch());
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
    let (started, paused) = start(candidate, place, &root).await?;
    let mut running = Running::new(started);
    if let Some(paused) = paused {
        paused.finish().await;
    }
    let mut offer = Offer::listen(running.api());
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
                if replaced.is_ok() && !offer.is_beside(running.api()) {
                    offer.remove();
                    offer = Offer::listen(running.api());
                }
                // Whoever has asked may have gone.
                let _ = outcome.send(replaced);
            }
        }
    }
}
