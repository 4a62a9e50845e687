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
//! - `observe`: the health of targets, and every other condition.
//! - `sessions`: removes sessions that have ended, counts and lists the others.
//! - `punts`: sends packets that the data plane cannot send.
//! - `upkeep`: undoes what others change.
//! - `serve`: the load balancer's probe, the metrics, and the API of the command line.
//! - `logging`, `rate`, `sync`: log lines, limits on work, locks.

mod control;
mod drain;
mod kernel;
mod lifecycle;
mod logging;
mod names;
mod observe;
mod parts;
mod punts;
mod rate;
mod serve;
mod sessions;
mod state;
mod sync;
mod upkeep;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::{
    control::desired,
    kernel::{
        interfaces::{Attached, roles},
        netlink,
        next_hops::{self, Topology},
        own_traffic::{self, OwnTraffic},
    },
    lifecycle::{
        listeners::{Listeners, refuse_second, reserve_descriptors},
        loading::Loading,
        privileges,
        signals::Signals,
    },
    logging::watch,
    names::{NameService, resolved::Names},
    observe::target_health::TargetHealth,
    parts::Parts,
    punts::{router::Router as _, thread::PuntThread},
    serve::{api, metrics, probe},
    sessions::sweep,
    upkeep::Upkeep,
};
use crate::{
    config::{self, Config},
    dataplane::{self, LoadOptions, Mode, Pins, Predecessors},
    port_plan,
    preflight::{self, Severity},
    private,
};

/// The options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config_path: PathBuf,
    /// The level of the programs' own log; `None` has the verifier remove the code.
    pub bpf_log: Option<log::Level>,
}

/// Runs until SIGTERM or SIGINT. The data plane goes on forwarding then.
///
/// # Errors
/// When the configuration is wrong, the machine cannot run it, or the kernel refuses: the machine
/// is then as it was before.
pub async fn run(options: Options) -> Result<()> {
    let config::Loaded { config, warnings } = Config::load(&options.config_path)?;
    for warning in &warnings {
        warn!("{}", warning.brief());
    }
    private::set_umask();
    reserve_descriptors(&config);
    refuse_second(&config.admin.socket).await?;
    check_machine(&config).await?;

    // Whatever can fail without the kernel's help fails before anything is touched.
    let listeners = Listeners::bind(&config)?;
    let mut predecessors = Predecessors::find(&config.admin.pins)?;
    let pins = Pins::open(&config.admin.pins)?;
    let _lock = pins.lock()?;
    let socket = config.admin.socket.clone();
    let fresh = !pins.are_there();
    for directory in predecessors.directories() {
        warn!(
            "found the data plane of another version at {}: this one takes its place, and its sessions are lost",
            directory.display()
        );
    }
    let mut signals = Signals::new()?;
    let loading = Loading::default();
    let started = tokio::select! {
        started = start(&options, config, &mut predecessors, &loading) => started,
        () = signals.stop() => {
            loading.stop().await;
            Err(anyhow!("stopped before it had started"))
        }
    };
    let (parts, tasks) = match started {
        Ok(started) => started,
        Err(error) => {
            let keep_settings = !predecessors.is_empty();
            // Otherwise our program forwards on, with the rules that are in force by then, and the
            // next start finds it.
            let given_back = predecessors.give_back();
            if fresh && given_back {
                undo(&pins, keep_settings);
            }
            let _ = std::fs::remove_file(&socket);
            return Err(error);
        }
    };
    predecessors.remove()?;
    match privileges::give_up() {
        Ok(()) => info!("this process has given up all privileges but {}", privileges::KEPT_NAMES),
        // It forwards all the same.
        Err(error) => warn!("{error:#}"),
    }
    serve(&parts, tasks, listeners, &mut signals).await?;
    let interfaces: Vec<_> = parts.state.config.get().interfaces.names().map(str::to_owned).collect();
    info!(
        sessions = parts.sessions(),
        "stopped; the programs go on forwarding on {} without a daemon, and the next start takes them over \
         (`pls-router detach` takes them off)",
        interfaces.join(", ")
    );
    let _ = std::fs::remove_file(&socket);
    Ok(())
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

/// Takes back what a failed start has done; but not the system settings, if a data plane of another
/// version goes on with them.
fn undo(pins: &Pins, keep_settings: bool) {
    let removed = if keep_settings { pins.remove_all() } else { pins.remove() };
    if let Err(error) = removed {
        warn!("cannot clean up: {error:#}");
    }
}

/// Puts the configuration into the data plane and starts everything that keeps it true.
async fn start(
    options: &Options,
    config: Config,
    predecessors: &mut Predecessors,
    loading: &Loading,
) -> Result<(Parts, JoinSet<Result<()>>)> {
    let (changes, kernel) = netlink::connect()?;
    let addresses = kernel.addresses().await?;
    let indexes = config.interfaces.names().map(dataplane::interface_index).collect::<Result<Vec<_>>>()?;
    let mut topology = Topology::read(&kernel).await?;
    let earlier = dataplane::reserved_earlier(&Pins::open(&config.admin.pins)?)?;
    let mut own = OwnTraffic::choose(&config, &port_plan::Kernel::read().with_free(&earlier));
    info!("new sessions come from the ports {} to {}", own.snat.first, own.snat.last);
    let name_service = Arc::new(NameService::of_system(&config.admin.socket, &addresses.local()));
    let names = name_service.resolve_new(&config, &Names::new(), &addresses.local()).await;

    let load = LoadOptions {
        pins: Some(config.admin.pins.clone()),
        sessions: config.limits.flows,
        half_open_per_source: config.half_open_per_source(own.snat.size()),
        generic: config.interfaces.mode == Mode::Generic,
        log: options.bpf_log,
    };
    let mut plane = loading.load(load).await?.activate()?;
    if plane.adopted {
        info!("found the data plane of an earlier daemon: its sessions go on");
        if plane.flows.capacity() != config.limits.flows {
            warn!(
                "the flow table has room for {} sessions; limits.flows = {} takes effect after `pls-router detach` and a start",
                plane.flows.capacity(),
                config.limits.flows
            );
        }
    }
    plane.switch_route_lookups_on()?;
    plane.local_addresses.set(&addresses.own(), &addresses.broadcast())?;
    plane.local_addresses.set_ipv6(&addresses.own_ipv6())?;
    plane.interface_addresses.set(next_hops::sources(&indexes, &addresses))?;
    plane.settings.set_interfaces(next_hops::interfaces(&indexes, &kernel, &addresses).await?)?;
    let interfaces: Vec<&str> = config.interfaces.names().collect();
    let mode = config.interfaces.mode;
    // The first packet has to find rules.
    if !plane.adopted {
        let spec = desired::build(&config, &names, &TargetHealth::default(), own.session_ports());
        plane.apply_rules(&spec)?;
    }
    let mut attached = Vec::new();
    for ((slot, name), index) in (0..).zip(&interfaces).zip(&indexes) {
        plane.take_over(predecessors, name, *index, mode)?;
        let attachment = plane.attach_to(slot, name, *index, mode)?;
        info!(interface = name, mode = mode.as_str(), "attached");
        attached.push(Attached { attachment, roles: roles(&config, name) });
    }
    own.begin(&config, &attached, &mut plane).report();
    plane.load_what_is_used_later()?;

    // Last what takes something away from a router that works: a failure before this leaves it as
    // it was.
    let spec = desired::build(&config, &names, &TargetHealth::default(), own.session_ports());
    plane.apply_rules(&spec)?;
    plane.detach_others(&interfaces)?;

    let mut tasks = JoinSet::new();
    if options.bpf_log.is_some() {
        tasks.spawn(punts::log(aya_log::EbpfLogger::init(plane.ebpf_mut())?));
    }
    let punt_thread = PuntThread::spawn(plane.take_punts()?).await?;
    let replayer = plane.replayer()?;
    let upkeep = Upkeep::of(&config, &plane)?;
    let is_adopted = plane.adopted;
    let parts = Parts::new(options.config_path.as_path().into(), config, own, plane, attached, names);
    next_hops::refresh(&parts.next_hops(), &kernel, &mut topology).await?;
    // Before anything reports that all is well: without it, packets that are handed to the daemon
    // would be dropped.
    let router = parts.router(replayer);
    router.show_presence()?;
    let Parts { state, plane, punts: tally, .. } = &parts;
    tasks.spawn(parts.control(name_service.clone()).run());
    tasks.spawn(upkeep.run(state.attachments.clone(), plane.clone()));
    tasks.spawn(punt_thread.serve(router.clone(), tally.clone(), kernel.clone()));
    tasks.spawn(next_hops::follow(parts.next_hops(), kernel, changes, topology));
    tasks.spawn(punts::show_presence(router));
    tasks.spawn(sweep::sweep(parts.sweep(), is_adopted));
    tasks.spawn(own_traffic::follow::follow(parts.own_traffic()));
    tasks.spawn(parts.drain().follow());
    tasks.spawn(name_service.follow(parts.names()));
    Ok((parts, tasks))
}

/// Answers until a signal says to stop, or until something that must not end has ended.
async fn serve(
    parts: &Parts,
    mut tasks: JoinSet<Result<()>>,
    listeners: Listeners,
    signals: &mut Signals,
) -> Result<()> {
    let config = parts.state.config.get();
    let (probe_config, probe) = (config.clone(), parts.probe());
    tasks.spawn(watch::report(parts.monitor.clone(), parts.counters.clone()));
    tasks.spawn(async move { probe::serve(&probe_config, probe, listeners.probe).await });
    tasks.spawn(metrics::serve(parts.reports(), listeners.admin));
    tasks.spawn(api::serve(parts.api(), listeners.api));
    info!(
        config = %parts.config_path.display(),
        rules = config.forwards.len() + config.masquerades.len(),
        probe = %config.health.listen,
        "running"
    );
    // Without a service manager there is none to notify.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        () = signals.stop() => {}
        Some(ended) = tasks.join_next() => {
            ended.context("a part of the daemon has crashed")?.context("a part of the daemon has failed")?;
            bail!("a part of the daemon has ended");
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}
