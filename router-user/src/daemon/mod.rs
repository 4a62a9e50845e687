//! The daemon: puts a configuration into the data plane and keeps it true.
//!
//! The data plane forwards without it. What the daemon adds: it follows routes, neighbours and addresses ([`kernel`],
//! [`next_hops`]), resolves names ([`names`]), sends packets that wait for a neighbour ([`punts`]), removes sessions that
//! have ended ([`sweep`]), and answers the load balancer ([`probe`]), the command line ([`api`]) and the monitoring
//! ([`metrics`]).

mod api;
mod kernel;
mod metrics;
mod names;
mod next_hops;
mod probe;
mod punts;
mod reports;
mod rule_set;
mod shared;
mod sweep;

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tracing::{info, warn};

use self::shared::{Attached, Shared};
use crate::{
    config::{self, Config},
    dataplane::{self, Dataplane, LoadOptions, Mode, Pins},
    preflight::{self, Severity},
};

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config_path: PathBuf,
    /// The level of the programs' own log; `None` has the verifier remove the code.
    pub bpf_log: Option<log::Level>,
}

/// Runs until SIGTERM or SIGINT, then takes the router off the interfaces.
///
/// # Errors
/// When the configuration is wrong, the machine cannot run it, or the kernel refuses: the machine is then as it was before.
pub async fn run(options: Options) -> Result<()> {
    let config::Loaded { config, warnings } = Config::load(&options.config_path)?;
    for warning in &warnings {
        warn!("{}", warning.brief());
    }
    refuse_second(&config.admin.socket).await?;
    check_machine(&config).await?;

    // Whatever can fail without the kernel's help fails before anything is touched.
    let listeners = Listeners::bind(&config).await?;
    let pins = Pins::open(&config.admin.pins)?;
    let _lock = pins.lock()?;
    let started = start(&options, config, &pins).await;
    let (shared, tasks) = match started {
        Ok(started) => started,
        Err(Failed { error, fresh }) => {
            if fresh {
                undo(&pins);
            }
            return Err(error);
        }
    };
    let result = serve(&shared, tasks, listeners).await;
    shared.drain();
    let interfaces = dataplane::detach(shared.config.admin.pins.as_path())?;
    info!("detached from {}", interfaces.join(", "));
    let _ = std::fs::remove_file(&shared.config.admin.socket);
    result
}

/// The sockets that the daemon answers on.
struct Listeners {
    probe: TcpListener,
    admin: TcpListener,
    api: UnixListener,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self> {
        let tcp = async |address: std::net::SocketAddr, key: &str| {
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address} ({key}); who does: ss -tlnp"))
        };
        let probe = tcp(config.health.listen, "health.listen").await?;
        let admin = tcp(config.admin.listen, "admin.listen").await?;
        let socket = &config.admin.socket;
        let directory = socket.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {} (admin.socket)", directory.display()))?;
        // `refuse_second` found nobody behind it.
        let _ = std::fs::remove_file(socket);
        let api = UnixListener::bind(socket)
            .with_context(|| format!("cannot listen on {} (admin.socket)", socket.display()))?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
            .with_context(|| format!("cannot restrict {}", socket.display()))?;
        Ok(Self { probe, admin, api })
    }
}

/// Refuses to be the second daemon with the same socket.
async fn refuse_second(socket: &Path) -> Result<()> {
    if UnixStream::connect(socket).await.is_ok() {
        bail!("a pls-router daemon is running already: it answers on {}", socket.display());
    }
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
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    bail!("this machine cannot run this configuration\n{}", errors.join("\n"))
}

/// Why starting failed, and whether what is pinned is our own doing.
struct Failed {
    error: anyhow::Error,
    fresh: bool,
}

/// Takes back what a failed start has done.
fn undo(pins: &Pins) {
    if let Err(error) = pins.remove() {
        warn!("cannot clean up: {error:#}");
    }
}

/// Puts the configuration into the data plane and starts everything that keeps it true.
async fn start(
    options: &Options,
    config: Config,
    pins: &Pins,
) -> Result<(Arc<Shared>, JoinSet<Result<()>>), Failed> {
    let fresh = !pins.are_there();
    start_with(options, config).await.map_err(|error| Failed { error, fresh })
}

async fn start_with(options: &Options, config: Config) -> Result<(Arc<Shared>, JoinSet<Result<()>>)> {
    let (watch, kernel) = kernel::connect()?;
    let addresses = kernel.addresses().await?;
    let snat = snat_addresses(&config, &addresses)?;
    let names = names::resolve_all(&config).await;

    let load = LoadOptions {
        pins: Some(config.admin.pins.clone()),
        sessions: config.limits.flows,
        log: options.bpf_log,
    };
    let mut plane = Dataplane::load(&load)?;
    if plane.adopted {
        info!("found the data plane of an earlier daemon: its sessions go on");
        if plane.flows.capacity() != config.limits.flows {
            warn!(
                "the flow table has room for {} sessions; limits.flows = {} takes effect after `pls-router detach`",
                plane.flows.capacity(),
                config.limits.flows
            );
        }
    }
    plane.switch_route_lookups_on()?;
    plane.local_addresses.set(&addresses.own())?;
    plane.settings.set_interfaces(next_hops::interface_indexes(&config, &kernel).await?)?;
    let spec = rule_set::build(&config, &names, &snat);
    {
        let Dataplane { rules, settings, .. } = &mut plane;
        rules.apply(&spec, settings)?;
    }
    let interfaces: Vec<&str> = config.interfaces.names().collect();
    plane.detach_others(&interfaces)?;
    let mode = match config.interfaces.mode {
        config::Mode::Native => Mode::Native,
        config::Mode::Generic => Mode::Generic,
    };
    let mut attached = Vec::new();
    for (slot, name) in interfaces.iter().enumerate() {
        let attachment = plane.attach(u32::try_from(slot)?, name, mode)?;
        info!(interface = name, mode = mode.as_str(), "attached");
        attached.push(Attached { attachment, roles: roles(&config, name) });
    }

    let mut tasks = JoinSet::new();
    if options.bpf_log.is_some() {
        tasks.spawn(punts::log(aya_log::EbpfLogger::init(plane.ebpf_mut())?));
    }
    let punts = plane.take_punts()?;
    let sweeper = plane.flows.try_clone()?;
    let shared = Arc::new(Shared::new(options.config_path.clone(), config, snat, plane, attached, names)?);
    next_hops::refresh(&shared, &kernel).await?;
    tasks.spawn(next_hops::follow(shared.clone(), kernel, watch));
    tasks.spawn(punts::send(punts));
    tasks.spawn(punts::show_presence(shared.clone()));
    tasks.spawn(sweep::sweep(shared.clone(), sweeper));
    tasks.spawn(names::follow(shared.clone()));
    Ok((shared, tasks))
}

/// Answers until a signal says to stop, or until something that must not end has ended.
async fn serve(shared: &Arc<Shared>, mut tasks: JoinSet<Result<()>>, listeners: Listeners) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tasks.spawn(probe::serve(shared.clone(), listeners.probe));
    tasks.spawn(metrics::serve(shared.clone(), listeners.admin));
    tasks.spawn(api::serve(shared.clone(), listeners.api));
    info!(
        config = %shared.config_path.display(),
        rules = shared.config.forwards.len() + shared.config.masquerades.len(),
        probe = %shared.config.health.listen,
        "running"
    );
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
        Some(ended) = tasks.join_next() => {
            ended.context("a part of the daemon has crashed")?.context("a part of the daemon has failed")?;
            bail!("a part of the daemon has ended");
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

fn roles(config: &Config, name: &str) -> Vec<String> {
    [("pls", &config.interfaces.pls), ("firewall", &config.interfaces.firewall)]
        .into_iter()
        .filter(|(_, interface)| *interface == name)
        .map(|(role, _)| role.to_owned())
        .collect()
}

/// The addresses that new sessions get: those configured, or the firewall NIC's first.
fn snat_addresses(config: &Config, addresses: &kernel::Addresses) -> Result<Vec<Ipv4Addr>> {
    if !config.snat.addresses.is_empty() {
        return Ok(config.snat.addresses.clone());
    }
    let interface = &config.interfaces.firewall;
    let first = addresses.first_of(interface).with_context(|| {
        format!("{interface} has no IPv4 address for new sessions to come from: give it one, or set snat.addresses")
    })?;
    Ok(vec![first])
}

/// Addresses by name, with what is known about each.
type Names = HashMap<String, names::Resolved>;
