//! An instance of the router: a configuration, the data plane that it is in force in, and the
//! services that keep it true.
//!
//! A [`Candidate`] is prepared beside an instance that may be running, in this process or in
//! another one, and takes its place when it is activated. Services can be paused meanwhile, and go
//! on if the candidate fails.

use std::{
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{task::JoinSet, time::sleep};
use tracing::{debug, info, warn};

use super::{
    listeners::{Listeners, Served},
    loading::Loading,
    succession,
};
use crate::{
    config::Config,
    daemon::{
        checks,
        control::desired,
        kernel::{
            interfaces::{Attached, roles},
            netlink::{self, Addresses, Kernel, Watch},
            next_hops::{self, Topology},
            own_traffic::{self, OwnTraffic},
        },
        logging::watch,
        names::{NameService, resolved::Names},
        observe::target_health::TargetHealth,
        parts::{Common, Parts},
        punts::{
            self,
            router::{KernelRouter, Router as _},
            thread::PuntThread,
        },
        reload, self_test,
        serve::{api, metrics, probe},
        sessions::sweep,
        sync::Stopped,
        upkeep::{Notices, Upkeep},
    },
    dataplane::{self, LoadOptions, Mode, Pins, Prepared},
    port_plan,
};

/// An instance that is ready to come into force. Nothing of the data plane in force was changed for
/// it.
pub(crate) struct Candidate {
    common: Common,
    config: Config,
    kernel: Kernel,
    changes: Watch,
    addresses: Addresses,
    /// The interfaces' indexes by slot.
    indexes: Vec<u32>,
    topology: Topology,
    own: OwnTraffic,
    name_service: Arc<NameService>,
    names: Names,
    prepared: Prepared,
}

impl Candidate {
    /// Prepares an instance: reads what the kernel knows, resolves names that are not `known`, and
    /// loads the programs.
    ///
    /// # Errors
    /// Returns an error if any of that fails. The machine is then as it was.
    pub(crate) async fn prepare(
        common: &Common,
        config: Config,
        known: &Names,
        loading: &Loading,
    ) -> Result<Self> {
        let kernel = netlink::connect()?;
        let changes = netlink::watch()?;
        let addresses = kernel.addresses().await?;
        let indexes =
            config.interfaces.names().map(dataplane::interface_index).collect::<Result<Vec<_>>>()?;
        let topology = Topology::read(&kernel).await?;
        let earlier = dataplane::reserved_earlier(&Pins::open(&config.admin.pins)?)?;
        let own = OwnTraffic::choose(&config, &port_plan::Kernel::read().with_free(&earlier));
        info!("new sessions come from the ports {} to {}", own.snat.first, own.snat.last);
        let name_service = Arc::new(NameService::of_system(&config.admin.socket, &addresses.local()));
        let mut names = name_service.resolve_new(&config, known, &addresses.local()).await;
        for name in desired::target_names(&config) {
            if let Some(resolved) = known.get(name) {
                names.insert(name.clone(), resolved.clone());
            }
        }
        let load = LoadOptions {
            pins: Some(config.admin.pins.clone()),
            sessions: config.limits.flows,
            half_open_per_source: config.half_open_per_source(own.snat.size()),
            generic: config.interfaces.mode == Mode::Generic,
            log: common.options.bpf_log,
        };
        let prepared = loading.load(load).await?;
        let common = common.clone();
        Ok(Self {
            common,
            config,
            kernel,
            changes,
            addresses,
            indexes,
            topology,
            own,
            name_service,
            names,
            prepared,
        })
    }

    /// Puts the instance in force. Nothing else may write to the data plane meanwhile. The services
    /// are started by [`Instance::serve`]. If the pins are in another directory then, `lock`
    /// becomes the one on that.
    ///
    /// # Errors
    /// Returns an error if the kernel or a driver refuses. If packets have not reached the instance
    /// by then, what was in force still is.
    pub(crate) async fn activate(self, lock: &mut Option<File>) -> Result<(Instance, Followed)> {
        let Self { common, config, kernel, changes, addresses, indexes, mut topology, mut own, .. } = self;
        let mut plane = self.prepared.activate()?;
        if plane.adopted {
            info!("found the data plane of an earlier daemon: its sessions go on");
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
            let spec = desired::build(&config, &self.names, &TargetHealth::default(), own.session_ports());
            plane.apply_rules(&spec)?;
        }
        let mut attached = Vec::new();
        for ((slot, name), index) in (0..).zip(&interfaces).zip(&indexes) {
            let attachment = plane.attach_to(slot, name, *index, mode)?;
            info!(interface = name, mode = mode.as_str(), "attached");
            attached.push(Attached { attachment, roles: roles(&config, name) });
        }
        own.begin(&config, &attached, &mut plane).report();

        // Last what takes something away from a router that works: a failure before this leaves it
        // as it was.
        let spec = desired::build(&config, &self.names, &TargetHealth::default(), own.session_ports());
        plane.apply_rules(&spec)?;

        let mut logs = JoinSet::new();
        if common.options.bpf_log.is_some() {
            logs.spawn(punts::log(aya_log::EbpfLogger::init(plane.ebpf_mut())?));
        }
        let punts = PuntThread::spawn(plane.take_punts()?, !plane.settings.daemon_was_there()).await?;
        let replayer = plane.replayer()?;
        let is_adopted = plane.adopted;
        let names: Vec<String> = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let parts = Parts::new(common, config, own, plane, attached, self.names);
        next_hops::refresh(&parts.next_hops(), &kernel, &mut topology).await?;
        // Before anything reports that all is well: without it, packets that are handed to the
        // daemon would be dropped.
        let router = parts.router(replayer);
        router.show_presence()?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if !succession::take_the_place(parts.state.attachments.clone(), parts.plane.clone(), lock).await? {
            parts.plane.lock().detach_others(&names)?;
        } else if let Err(error) = parts.plane.lock().detach_others(&names) {
            // Too late to give up.
            warn!("{error:#}");
        }
        let instance =
            Instance { parts, name_service: self.name_service, kernel, punts, router, _logs: logs };
        Ok((instance, Followed { changes, topology, is_adopted }))
    }
}

/// The starting point of services: the kernel's changes from a moment on, and its state at that
/// moment.
pub(crate) struct Followed {
    changes: Watch,
    topology: Topology,
    /// `true` if the sessions may be those of another instance.
    is_adopted: bool,
}

/// An instance that is in force, or paused.
pub(crate) struct Instance {
    pub(crate) parts: Parts,
    name_service: Arc<NameService>,
    kernel: Kernel,
    punts: PuntThread,
    router: Arc<KernelRouter>,
    /// The programs' own log.
    _logs: JoinSet<Result<()>>,
}

/// The sockets of the services. They are opened before an instance comes into force, since a
/// process may lack descriptors or memory for them, and nothing may fail then.
pub(crate) struct Equipment {
    sockets: Served,
    notices: Notices,
}

impl Equipment {
    /// Gets it.
    ///
    /// # Errors
    /// Returns an error if the process lacks descriptors or memory.
    pub(crate) fn get(listeners: &Listeners) -> Result<Self> {
        Ok(Self { sockets: listeners.serve()?, notices: Notices::open()? })
    }
}

/// The tasks that keep an instance true and answer for it.
pub(crate) type Services = JoinSet<Result<()>>;

/// Keeps an instance paused.
pub(crate) struct Pause {
    work: Stopped,
}

impl Pause {
    /// Says that the instance is not needed any more.
    pub(crate) fn for_good(self) {
        self.work.for_good();
    }
}

impl Instance {
    /// Starts the services.
    pub(crate) fn serve(&self, followed: Followed, equipment: Equipment) -> Services {
        let Self { parts, name_service, kernel, punts, router, .. } = self;
        let Parts { state, plane, punts: tally, .. } = parts;
        let config = state.config.get();
        let Followed { changes, topology, is_adopted } = followed;
        let Equipment { sockets, notices } = equipment;
        let upkeep = Upkeep::new(&config, &plane.lock(), notices);
        let (router, tally, kernel) = (router.clone(), tally.clone(), kernel.clone());

        let mut tasks = JoinSet::new();
        let control = parts.control(name_service.clone());
        let reloader = parts.reloader(control.clone());
        tasks.spawn(control.run());
        tasks.spawn(reload::follow(reloader.clone()));
        tasks.spawn(upkeep.run(state.attachments.clone(), plane.clone()));
        tasks.spawn(punts.serve(router.clone(), tally, kernel.clone()));
        tasks.spawn(self_test::run(parts.self_test(), kernel.clone()));
        tasks.spawn(next_hops::follow(parts.next_hops(), kernel, changes, topology));
        tasks.spawn(punts::show_presence(router));
        tasks.spawn(sweep::sweep(parts.sweep(), is_adopted));
        tasks.spawn(own_traffic::follow::follow(parts.own_traffic()));
        tasks.spawn(parts.drain().follow());
        tasks.spawn(name_service.clone().follow(parts.names()));
        tasks.spawn(checks::run(parts.checks()));
        tasks.spawn(watch::report(parts.monitor.clone(), parts.counters.clone()));
        let probe = parts.probe();
        tasks.spawn(async move { probe::serve(&config, probe, sockets.probe).await });
        tasks.spawn(metrics::serve(parts.reports(), sockets.admin));
        tasks.spawn(api::serve(parts.api(reloader), sockets.api));
        tasks
    }

    /// Ends the services, and returns when none of them writes to the data plane any more. The data
    /// plane goes on forwarding.
    pub(crate) async fn pause(&self, mut services: Services) -> Pause {
        services.shutdown().await;
        self.punts.rest().await;
        Pause { work: self.parts.work.stop().await }
    }

    /// Has packets reach this instance's programs again, after another one was to take its place
    /// and has failed, and starts the services.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses.
    pub(crate) async fn resume(&self, pause: Pause, listeners: &Listeners) -> Result<Services> {
        // First, since the other one's programs may go with it.
        until_it_works("take the data plane back", async || self.parts.take_back()).await?;
        drop(pause);
        let followed = until_it_works("follow the kernel again", async || {
            let changes = netlink::watch()?;
            let mut topology = Topology::read(&self.kernel).await?;
            next_hops::refresh(&self.parts.next_hops(), &self.kernel, &mut topology).await?;
            self.router.show_presence()?;
            Ok(Followed { changes, topology, is_adopted: true })
        })
        .await?;
        let equipment = until_it_works("serve again", async || Equipment::get(listeners)).await?;
        Ok(self.serve(followed, equipment))
    }
}

/// Tries until it works, for a while: a lack of memory or descriptors passes.
async fn until_it_works<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    /// The time after which a failure is final.
    const PATIENCE: Duration = Duration::from_secs(30);
    /// The pause between two attempts.
    const RETRY: Duration = Duration::from_millis(200);
    let start = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("cannot {what}"));
            }
            Err(error) => debug!("cannot {what}: {error:#}"),
        }
        sleep(RETRY).await;
    }
}
