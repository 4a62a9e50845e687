//! A whole lab: the hosts, the wires between them and what runs on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    addresses::{
        self, DNS, ENDPOINT, EVIL, FIREWALL_ONE_NIC, FIREWALL_PUBLIC, FIREWALL_TWO_NICS, HEALTH_PORT,
        INTERNET, MOST_ROUTERS, NAMES, PLATFORM, PLS_GATEWAY, PYPI, SERVERLESS, SERVERLESS_GATEWAY, SSH_PORT,
        TOOLS, VM, VM_GATEWAY, WWW,
    },
    balancer,
    helper::Helper,
    hosts::{
        firewall, internet, pls,
        router::{self, Seat},
    },
    link::{self, XdpPass},
    namespace::Namespace,
    paths,
    process::Process,
    state::{self, About, State},
    variants::{Nics, PlsPorts, Router},
    wait,
};

/// The load balancer's interval in Azure is 5 seconds at least; the lab's story cannot wait that
/// long.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// `[health]` of tests that are not about the time for which a state has to last: the probe's
/// answer changes at once.
const IMMEDIATE: &str = "down_after = \"0s\"\nup_after = \"0s\"";

/// The name of the router's configuration.
const CONFIGURATION: &str = "config.toml";

/// The options of a lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its id: letters and digits.
    pub id: String,
    /// The number of the router's NICs.
    pub nics: Nics,
    /// The number of routers. A lab starts only the first one; see [`Fleet`](crate::fleet::Fleet).
    pub routers: usize,
    /// The router.
    pub router: Router,
    /// The router's rules (`[[forward]]`, `[[masquerade]]`, `[snat]`, `[timeouts]`), as text of its
    /// configuration.
    pub rules: String,
    /// The router's `[limits]`.
    pub limits: String,
    /// The router's `self_test` of `[health]`. Off unless a test is about it: most tests count
    /// packets and sessions.
    pub self_test: String,
    /// The router's `[health]`, apart from `listen` and `self_test`.
    pub health: String,
    /// The Private Link Service's choice of ports.
    pub pls_ports: PlsPorts,
    /// The probe's interval.
    pub probe_interval: Duration,
    /// The size of the file to download.
    pub large_file: u64,
    /// The binary with the lab's own servers.
    pub helper: Helper,
    /// `true` if the router is started and has to become healthy. A test of the start itself does
    /// that.
    pub start_router: bool,
}

impl Options {
    /// The options for a test: a unique id, a short probe interval, a download of 8 MiB.
    pub fn new(nics: Nics, router: Router, helper: Helper) -> Self {
        Self {
            id: paths::unique_id(),
            nics,
            routers: 1,
            router,
            rules: router::rules(),
            // A lab needs no room for a million sessions, and the machine may run several labs.
            limits: "flows = 65536".to_owned(),
            self_test: "off".to_owned(),
            health: IMMEDIATE.to_owned(),
            pls_ports: PlsPorts::Keep,
            probe_interval: Duration::from_millis(100),
            large_file: 8 << 20,
            helper,
            start_router: true,
        }
    }
}

/// The hosts of a lab.
#[derive(Debug)]
pub struct Hosts {
    /// The client.
    pub serverless: Namespace,
    /// Private Link and the load balancer; also the gateway of the virtual network's subnets.
    pub pls: Namespace,
    /// The switches of the virtual network.
    pub vnet: Namespace,
    /// The router VM.
    pub router: Namespace,
    /// Further router VMs.
    pub more_routers: Vec<Namespace>,
    /// The firewall.
    pub firewall: Namespace,
    /// Everything beyond.
    pub internet: Namespace,
    /// A VM in another subnet whose default route is the router.
    pub vm: Namespace,
}

/// The names of the hosts, apart from further routers: *router2*, *router3*, ...
pub const HOSTS: [&str; 7] = ["serverless", "pls", "vnet", "router", "firewall", "internet", "vm"];

impl Hosts {
    fn create(state: &State, routers: usize) -> Result<Self> {
        let host = |name: &str| create(state, name);
        Ok(Self {
            serverless: host("serverless")?,
            pls: host("pls")?,
            vnet: host("vnet")?,
            router: host("router")?,
            more_routers: (1..routers).map(|number| host(&Seat::new(number).host)).collect::<Result<_>>()?,
            firewall: host("firewall")?,
            internet: host("internet")?,
            vm: host("vm")?,
        })
    }

    /// A router VM, by its number.
    pub(crate) fn router(&self, number: usize) -> &Namespace {
        if number == 0 { &self.router } else { &self.more_routers[number - 1] }
    }
}

/// Makes a host.
fn create(state: &State, name: &str) -> Result<Namespace> {
    let mut namespace = Namespace::create(&paths::namespace_name(state.id(), name))?;
    // The state removes all of the lab's namespaces at once.
    namespace.leave();
    namespace.set_etc(&etc(state, name)?);
    Ok(namespace)
}

/// Writes the `hosts` and `resolv.conf` of a host. To the client every name is the private
/// endpoint, as a private DNS zone makes it.
fn etc(state: &State, host: &str) -> Result<PathBuf> {
    let directory = state.directory(&format!("etc/{host}"))?;
    let mut hosts = "127.0.0.1 localhost\n".to_owned();
    if host == "serverless" {
        for (name, ..) in NAMES {
            hosts.push_str(&format!("{ENDPOINT} {name}\n"));
        }
    }
    let server = match host {
        "firewall" | "internet" => DNS,
        _ => PLATFORM,
    };
    state.write(&format!("etc/{host}/hosts"), hosts)?;
    state.write(&format!("etc/{host}/resolv.conf"), format!("nameserver {server}\n"))?;
    Ok(directory)
}

/// A lab that is up. Dropping it removes it, unless it was [kept](Lab::keep).
#[derive(Debug)]
pub struct Lab {
    /// Its hosts.
    pub hosts: Hosts,
    /// The options that it was made from.
    pub options: Options,
    router: Option<Process>,
    probe: Option<Process>,
    services: Vec<Process>,
    // Last, so that it is dropped last: it removes all that is left.
    state: State,
}

impl Lab {
    /// Brings a lab up; the router is in service at the load balancer when this returns.
    pub fn up(options: Options) -> Result<Self> {
        let routers = options.routers;
        ensure!(
            (1..=MOST_ROUTERS).contains(&routers),
            "a lab has 1 to {MOST_ROUTERS} routers, not {routers}"
        );
        let state = State::create(&options.id)?;
        let hosts = Hosts::create(&state, routers)?;
        let mut lab = Self { hosts, options, router: None, probe: None, services: Vec::new(), state };
        lab.lay_wires().context("cannot lay the lab's wires")?;
        lab.start_services().context("cannot start the lab's services")?;
        lab.start_probe()?;
        if lab.options.start_router {
            lab.start_router()?;
            lab.wait_in_service(router::HEALTHY_LIMIT)?;
        }
        Ok(lab)
    }

    fn lay_wires(&self) -> Result<()> {
        let Hosts { serverless, pls, vnet, firewall, internet, vm, .. } = &self.hosts;
        let nics = self.options.nics;
        for forwards in [pls, firewall] {
            forwards.sysctl("net/ipv4/ip_forward", "1")?;
        }
        // Connections that were there before a table was loaded or a daemon started must not be
        // guessed at.
        pls.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        for table in ["arptables", "ip6tables", "iptables"] {
            // The switches switch; bridged packets are no business of the kernel's firewall.
            vnet.sysctl(&format!("net/bridge/bridge-nf-call-{table}"), "0")?;
        }
        vnet.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
                 link add br1 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
                 link set br0 up\n\
                 link set br1 up")?;

        link::wire((serverless, "eth0"), (pls, "serverless"))?;
        link::wire((vm, "eth0"), (pls, "vm"))?;
        link::wire((pls, "vnet"), (vnet, "pls"))?;
        link::wire((firewall, "vnet"), (vnet, "firewall"))?;
        link::wire((firewall, "internet"), (internet, "eth0"))?;
        vnet.ip("link set pls master br0")?;
        vnet.ip(match nics {
            Nics::One => "link set firewall master br0",
            Nics::Two => "link set firewall master br1",
        })?;
        for number in 0..self.options.routers {
            self.connect_router(number)?;
        }

        serverless
            .ip(&format!("addr add {SERVERLESS}/24 dev eth0\nroute add default via {SERVERLESS_GATEWAY}"))?;
        vm.ip(&format!("addr add {VM}/26 dev eth0\nroute add default via {VM_GATEWAY}"))?;
        pls.ip(&format!(
            "addr add {SERVERLESS_GATEWAY}/24 dev serverless\naddr add {VM_GATEWAY}/26 dev vm\n{}",
            pls::addresses()
        ))?;
        firewall.ip(&format!(
            "addr add {}/26 dev vnet\n\
             addr add {FIREWALL_PUBLIC}/24 dev internet\n\
             route add default via {INTERNET}",
            firewall_address(nics)
        ))?;
        let mut servers = format!("addr add {INTERNET}/24 dev eth0\n");
        for address in [DNS, WWW, PYPI, EVIL, TOOLS] {
            servers.push_str(&format!("addr add {address}/32 dev lo\n"));
        }
        internet.ip(&servers).map(drop)
    }

    /// Lays the wires of a router VM, and gives it its addresses and routes.
    fn connect_router(&self, number: usize) -> Result<()> {
        let (vnet, nics) = (&self.hosts.vnet, self.options.nics);
        let (router, seat) = (self.hosts.router(number), Seat::new(number));
        // pls-router does not need the kernel to forward, so here it would only hide what the
        // router leaves alone.
        let kernel_forwards = matches!(self.options.router, Router::Nftables);
        router.sysctl("net/ipv4/ip_forward", if kernel_forwards { "1" } else { "0" })?;
        let pass = XdpPass::load(&self.state)?;
        let is_machine = self.options.router == Router::Machine;
        for (near, far, switch) in
            [("eth0", seat.host.clone(), "br0"), ("eth1", format!("{}1", seat.host), "br1")]
        {
            if near == "eth0" || nics == Nics::Two {
                if is_machine {
                    link::tap(vnet, &far)?;
                } else {
                    link::wire((router, near), (vnet, &far))?;
                    pass.attach(vnet, &far)?;
                }
                vnet.ip(&format!("link set {far} master {switch}"))?;
            }
        }
        if is_machine {
            // It brings its addresses and routes.
            return Ok(());
        }
        let firewall = firewall_address(nics);
        router.ip(&router::addresses(&seat, nics, PLS_GATEWAY, PLATFORM, firewall)).map(drop)
    }

    /// Takes a router VM off the network.
    pub(crate) fn disconnect_router(&self, number: usize) -> Result<()> {
        let host = Seat::new(number).host;
        self.hosts.vnet.ip(&match self.options.nics {
            Nics::One => format!("link del {host}"),
            Nics::Two => format!("link del {host}\nlink del {host}1"),
        })?;
        Ok(())
    }

    /// Makes the host of a router VM anew, after it is gone.
    pub(crate) fn recreate_router(&mut self, number: usize) -> Result<()> {
        let host = create(&self.state, &Seat::new(number).host)?;
        if number == 0 {
            self.hosts.router = host;
        } else {
            self.hosts.more_routers[number - 1] = host;
        }
        self.connect_router(number)?;
        // Azure's network knows the MAC address of a new VM at once. Here its neighbours would send
        // to the old one for up to half a minute.
        let Seat { address, second, .. } = Seat::new(number);
        for neighbor in [&self.hosts.pls, &self.hosts.firewall] {
            for address in [address, second] {
                neighbor.ip(&format!("neighbor flush to {address}"))?;
            }
        }
        Ok(())
    }

    /// The addresses from which new connections have come to the firewall, since the lab is up.
    pub fn seen_by_firewall(&self) -> Result<BTreeSet<Ipv4Addr>> {
        firewall::sources(&self.hosts.firewall)
    }

    fn start_services(&mut self) -> Result<()> {
        let Self { state, hosts, options, services, .. } = self;
        // Each of them waits until it listens, which takes longer than starting it.
        let routers = addresses(options.routers);
        let (internet, firewall, pls, ssh) = thread::scope(|scope| {
            let internet =
                scope.spawn(|| internet::start(state, &hosts.internet, &options.helper, options.large_file));
            let firewall = scope.spawn(|| firewall::start(state, &hosts.firewall));
            let pls = scope.spawn(|| pls::start(state, &hosts.pls, options.pls_ports, &routers));
            let ssh = options.helper.tcp_echo(state, &hosts.router, "ssh", ([0, 0, 0, 0], SSH_PORT).into());
            (join(internet), join(firewall), join(pls), ssh)
        });
        services.extend(internet?);
        services.extend([firewall?, pls?]);
        let mut ssh = ssh?;
        ssh.wait_until(internet::START_LIMIT, || hosts.router.listens_tcp(SSH_PORT))?;
        services.push(ssh);
        Ok(())
    }

    fn start_probe(&mut self) -> Result<()> {
        let Self { state, hosts, options, .. } = self;
        let routers = addresses(options.routers);
        self.probe = Some(pls::probe(state, &hosts.pls, &options.helper, &routers, options.probe_interval)?);
        Ok(())
    }

    /// Ends the router with this signal. Returns its exit status.
    pub fn stop_router(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut process = self.router.take().context("no router was started")?;
        process.signal(signal)?;
        process.wait(router::STOP_LIMIT)
    }

    /// Starts a second router that takes the place of the first one. The caller waits, and then
    /// makes it the lab's ([`Self::succeed_router`]).
    pub fn spawn_successor(&self) -> Result<Process> {
        let command = self.pls_router_command(&["run", "--take-over"], &self.state.path(CONFIGURATION))?;
        Process::spawn(&self.state, "pls-router", command)
    }

    /// Makes this process the lab's router, after the one before has ended. Returns the exit status
    /// of that one.
    pub fn succeed_router(&mut self, successor: Process) -> Result<ExitStatus> {
        let mut before = self.router.replace(successor).context("no router was started")?;
        before.wait(router::STOP_LIMIT)
    }

    /// Takes the router off its interfaces, after it has been stopped.
    pub fn detach_router(&self) -> Result<()> {
        let configuration = self.state.path(CONFIGURATION);
        crate::command::run(&mut self.pls_router_command(&["detach"], &configuration)?).map(drop)
    }

    /// Starts the router and waits until its health endpoint answers 200.
    pub fn start_router(&mut self) -> Result<()> {
        let mut process = self.spawn_router()?;
        let seat = Seat::new(0);
        process.wait_until(router::HEALTHY_LIMIT, || router::healthy(&seat, &self.hosts.router))?;
        self.router = Some(process);
        Ok(())
    }

    /// Makes a process that [`spawn_router`](Self::spawn_router) has started the lab's router.
    pub fn set_router(&mut self, process: Process) {
        self.router = Some(process);
    }

    /// Starts the router and leaves the waiting to the caller.
    pub fn spawn_router(&self) -> Result<Process> {
        let Self { state, hosts, options, .. } = self;
        match &options.router {
            Router::Nftables => {
                if hosts.router.run("nft", &["list", "table", "ip", "router"]).is_err() {
                    router::nftables(&hosts.router, options.nics)?;
                }
                let listen = ([0, 0, 0, 0], HEALTH_PORT).into();
                options.helper.http_ok(state, &hosts.router, "health", listen)
            }
            Router::PlsRouter(binary) => {
                let configuration = state.write(CONFIGURATION, self.configuration(&options.rules))?;
                router::start(state, &hosts.router, binary, &configuration)
            }
            Router::Machine => bail!("this lab's router is a machine, which starts by itself"),
        }
    }

    /// The whole configuration of this lab's router with these rules.
    pub fn configuration(&self, rules: &str) -> String {
        let (socket, pins) = (self.state.path("api.sock"), self.state.path("bpf/pls-router"));
        let admin = format!("socket = \"{}\"\npins = \"{}\"", socket.display(), pins.display());
        self.configuration_with(rules, &admin)
    }

    /// The configuration of a router that has a file system of its own: its paths are the usual
    /// ones.
    pub(crate) fn machine_configuration(&self, rules: &str) -> String {
        self.configuration_with(rules, "")
    }

    fn configuration_with(&self, rules: &str, admin: &str) -> String {
        let Options { nics, limits, self_test, health, .. } = &self.options;
        router::configuration(*nics, rules, admin, (limits, self_test, health))
    }

    /// Sets the rules for the router's next start.
    pub fn set_rules(&mut self, rules: impl Into<String>) {
        self.options.rules = rules.into();
    }

    /// The router's process: pls-router, or the responder for the probe beside nftables.
    pub fn router(&mut self) -> Result<&mut Process> {
        self.router.as_mut().ok_or_else(|| anyhow!("no router was started"))
    }

    /// Returns the router's log so far.
    pub fn router_log(&self) -> String {
        self.router.as_ref().map(Process::output).unwrap_or_default()
    }

    /// Runs a command of pls-router on the router VM to its end.
    pub fn pls_router(&self, args: &[&str]) -> Result<Output> {
        crate::command::output(&mut self.pls_router_command(args, &self.state.path(CONFIGURATION))?)
    }

    /// A command of pls-router on the router VM, with this configuration.
    pub fn pls_router_command(&self, args: &[&str], configuration: &Path) -> Result<Command> {
        match &self.options.router {
            Router::PlsRouter(binary) => router::command(&self.hosts.router, binary, configuration, args),
            Router::Nftables => bail!("this lab's router is nftables, not pls-router"),
            Router::Machine => bail!("this lab's router is a machine, which runs commands by ssh"),
        }
    }

    /// Returns the output of `pls-router ARGS -o json`.
    pub fn pls_router_json<T: serde::de::DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        let text =
            crate::command::run(&mut self.pls_router_command(&args, &self.state.path(CONFIGURATION))?)?;
        serde_json::from_str(&text).with_context(|| format!("`pls-router {}` printed {text}", args.join(" ")))
    }

    /// Returns the output of `pls-router status -o json`, for a healthy and an unhealthy router.
    pub fn pls_router_status(&self) -> Result<router_user::model::Status> {
        let output = self.pls_router(&["status", "-o", "json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`pls-router status` says {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The status and body of the router's health endpoint.
    pub fn health(&self) -> Result<(u16, String)> {
        router::health(&Seat::new(0), &self.hosts.router, "/")
    }

    /// The status and body of the health endpoint's answer about liveness.
    pub fn live(&self) -> Result<(u16, String)> {
        router::health(&Seat::new(0), &self.hosts.router, "/live")
    }

    /// Returns `true` if the load balancer sends new connections to the router now.
    pub fn in_service(&self) -> Result<bool> {
        Ok(balancer::in_service(&self.hosts.pls)?.contains(&Seat::new(0).address))
    }

    /// Waits until the load balancer has the router in service, and says how long that took.
    pub fn wait_in_service(&self, limit: Duration) -> Result<Duration> {
        self.wait_service(true, limit)
    }

    /// Waits until the load balancer has taken the router out, and says how long that took.
    pub fn wait_out_of_service(&self, limit: Duration) -> Result<Duration> {
        self.wait_service(false, limit)
    }

    fn wait_service(&self, wanted: bool, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let what = if wanted {
            "the load balancer to take the router in"
        } else {
            "the load balancer to take the router out"
        };
        wait::until(what, limit, || {
            ensure!(self.in_service()? == wanted, "the probe's log:\n{}", self.probe_log());
            Ok(start.elapsed())
        })
    }

    /// Ends the probe: the load balancer goes on as it is, and the wires are silent.
    pub fn stop_probe(&mut self) -> Result<()> {
        self.probe.as_mut().map_or(Ok(()), Process::kill)
    }

    /// The log of the load balancer's probe.
    pub fn probe_log(&self) -> String {
        self.probe.as_ref().map(Process::output).unwrap_or_default()
    }

    /// The firewall's log of application rules.
    pub fn firewall_log(&self) -> String {
        std::fs::read_to_string(self.state.path(firewall::LOG)).unwrap_or_default()
    }

    /// The certificate of the authority that signed the servers'.
    pub fn authority(&self) -> PathBuf {
        internet::authority(&self.state)
    }

    /// The large file as the servers have it.
    pub fn large_file(&self) -> PathBuf {
        self.state.path("www").join(internet::LARGE_FILE)
    }

    /// Returns the path of an upload to `https://<name>/upload/<file>`.
    pub fn uploaded(&self, name: &str, file: &str) -> PathBuf {
        internet::uploaded(&self.state, name, file)
    }

    /// The lab's directory and what belongs to it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Leaves the lab up after this process.
    pub fn keep(self) -> Result<()> {
        self.keep_with(BTreeMap::new())
    }

    /// As [`Self::keep`], with hosts that have a file system of their own, by a process of each.
    pub(crate) fn keep_with(mut self, machines: BTreeMap<String, u32>) -> Result<()> {
        let binary = match &self.options.router {
            Router::PlsRouter(binary) => Some(binary.clone()),
            Router::Nftables | Router::Machine => None,
        };
        let process = |(host, pid)| Some((host, (pid, state::start_time(pid)?)));
        let machines = machines.into_iter().filter_map(process).collect();
        let mut hosts = HOSTS.map(str::to_owned).to_vec();
        hosts.extend((1..self.options.routers).map(|number| Seat::new(number).host));
        self.state.keep(&About { hosts, binary, machines })?;
        for process in self.services.iter_mut().chain(&mut self.probe).chain(&mut self.router) {
            process.leave();
        }
        Ok(())
    }
}

/// The firewall's address, as the routers reach it.
fn firewall_address(nics: Nics) -> Ipv4Addr {
    match nics {
        Nics::One => FIREWALL_ONE_NIC,
        Nics::Two => FIREWALL_TWO_NICS,
    }
}

/// The addresses of so many routers.
fn addresses(routers: usize) -> Vec<Ipv4Addr> {
    (0..routers).map(|number| addresses::router(number).0).collect()
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
}
