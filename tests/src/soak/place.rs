//! The place of the soak test: four namespaces, their wires, and the daemon.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use router_common::limits::LAYOUT;

use crate::{
    Process,
    addresses::PLATFORM,
    command,
    link::{self, XdpPass},
    namespace::Namespace,
    paths,
    state::State,
};

/// The router's address and MAC address, and its SNAT ports.
pub(super) const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 68);
pub(super) const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x68];
pub(super) const SNAT_PORTS: (u16, u16) = (1024, 59_999);

/// The next hop to all clients that are no kernel's.
const CLIENT_HOP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 65);
pub(super) const CLIENTS_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x65];

/// The next hops to the servers, which are the same machine.
pub(super) const SERVER_HOPS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 2, 66), Ipv4Addr::new(10, 0, 2, 67)];
/// That machine's MAC addresses: it has one of them at a time.
pub(super) const SERVERS_MACS: [[u8; 6]; 2] = [[0x02, 0, 0, 0, 0, 0x66], [0x02, 0, 0, 0, 1, 0x66]];

/// The targets that no kernel answers for.
pub(super) const TARGET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

/// The two ends of the streams, which have kernels.
pub(super) const STREAMS_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 69);
pub(super) const STREAMS_SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// Timeouts of the router's sessions. The longest decides how long the end takes, and how often the
/// crowd has to speak.
pub(super) const UDP_TIMEOUT: Duration = Duration::from_secs(60);
/// The timeout of TCP sessions, ended ones included. Both FINs may have passed the router while
/// data before one of them was lost after it. If a next hop was away for five seconds (`trouble`)
/// and two more packets are lost then, the data is sent again only 20 to 40 s after the last
/// attempt. If the session expires before that, the other end waits without an end, and the router
/// is not at fault.
const TCP_TIMEOUT: Duration = Duration::from_secs(60);
pub(super) const LONGEST_TIMEOUT: Duration =
    if UDP_TIMEOUT.as_secs() > TCP_TIMEOUT.as_secs() { UDP_TIMEOUT } else { TCP_TIMEOUT };

/// The time that the daemon gets to be healthy: it is a debug build, and there may be little CPU
/// time for it.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The namespaces. They go when this is dropped.
pub(super) struct Place {
    pub(super) clients: Namespace,
    pub(super) vnet: Namespace,
    pub(super) router: Namespace,
    pub(super) servers: Namespace,
    binary: PathBuf,
    // Last, so that it is dropped last: it removes all that is left.
    state: State,
}

impl Place {
    /// Lays the wires for a router with these rules, and room for so many sessions; nothing runs
    /// yet.
    pub(super) fn make(binary: &Path, rules: &str, capacity: u32) -> Result<Self> {
        let state = State::create(&paths::unique_id())?;
        let namespace = |name: &str| -> Result<Namespace> {
            let mut namespace = Namespace::create(&paths::namespace_name(state.id(), name))?;
            // The state removes all namespaces at once.
            namespace.leave();
            Ok(namespace)
        };
        let place = Self {
            clients: namespace("clients")?,
            vnet: namespace("vnet")?,
            router: namespace("router")?,
            servers: namespace("servers")?,
            binary: binary.to_owned(),
            state,
        };
        place.lay_wires().context("cannot lay the wires")?;
        place.state.write("config.toml", place.configuration(rules, capacity))?;
        Ok(place)
    }

    fn lay_wires(&self) -> Result<()> {
        let Self { clients, vnet, router, servers, .. } = self;
        for table in ["arptables", "ip6tables", "iptables"] {
            vnet.sysctl(&format!("net/bridge/bridge-nf-call-{table}"), "0")?;
        }
        vnet.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up")?;
        link::wire((clients, "eth0"), (vnet, "clients"))?;
        link::wire((router, "eth0"), (vnet, "router"))?;
        link::wire((servers, "eth0"), (vnet, "servers"))?;
        link::wire((vnet, "detour"), (vnet, "delay"))?;
        XdpPass::load(&self.state)?.attach(vnet, "router")?;
        // Packets come back from the detour on another port than their sender's, so bridges must
        // not learn from them. Only the weather sends packets there.
        vnet.ip("link set clients master br0\n\
             link set router master br0\n\
             link set servers master br0\n\
             link set detour master br0\n\
             link set detour type bridge_slave learning off flood off mcast_flood off bcast_flood off")?;
        clients.ip(&format!(
            "link set eth0 address {}\naddr add {CLIENT_HOP}/26 dev eth0\naddr add {}/32 dev eth0\n\
             addr add {PLATFORM}/32 dev lo",
            mac(CLIENTS_MAC),
            STREAMS_CLIENT,
        ))?;
        servers.ip(&format!(
            "link set eth0 address {}\naddr add {}/26 dev eth0\naddr add {}/26 dev eth0\naddr add {}/32 dev lo",
            mac(SERVERS_MACS[0]),
            SERVER_HOPS[0],
            SERVER_HOPS[1],
            STREAMS_SERVER,
        ))?;
        router.ip(&format!(
            "link set eth0 address {}\naddr add {ROUTER}/26 dev eth0\n\
             route add 10.64.0.0/14 via {CLIENT_HOP}\n\
             route add {PLATFORM} via {CLIENT_HOP}\nroute add default via {}",
            mac(ROUTER_MAC),
            SERVER_HOPS[0],
        ))?;
        router.sysctl("net/ipv4/ip_forward", "0")?;
        // A retransmission must not wait longer than this test does for bytes.
        for end in [clients, servers] {
            end.sysctl("net/ipv4/tcp_syn_retries", "10")?;
        }
        Ok(())
    }

    fn configuration(&self, rules: &str, capacity: u32) -> String {
        let (first, last) = SNAT_PORTS;
        format!(
            "[interfaces]\npls = \"eth0\"\nmode = \"native\"\n\
             {rules}\
             [snat]\nports = \"{first}-{last}\"\n\
             [health]\nlisten = \"0.0.0.0:8082\"\n\
             [admin]\nlisten = \"127.0.0.1:9090\"\nsocket = \"{}\"\npins = \"{}\"\n\
             [limits]\nflows = {capacity}\n\
             [timeouts]\ntcp_established = \"{tcp}s\"\ntcp_transitory = \"{tcp}s\"\nudp = \"{udp}s\"\n\
             udp_unreplied = \"15s\"\nicmp = \"10s\"\n",
            self.state.path("api.sock").display(),
            self.pins().display(),
            tcp = TCP_TIMEOUT.as_secs(),
            udp = UDP_TIMEOUT.as_secs(),
        )
    }

    /// The directory in which the daemon pins.
    pub(super) fn pins(&self) -> PathBuf {
        self.state.path("bpf/pls-router")
    }

    /// The path at which a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.pins().join(format!("v{LAYOUT}")).join(name)
    }

    /// The path of a file of this place.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.state.path(name)
    }

    /// Starts a process, which ends with this place.
    pub(super) fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        Process::spawn(&self.state, name, command)
    }

    /// The path of pls-router.
    pub(super) fn binary(&self) -> &Path {
        &self.binary
    }

    /// A command on the router, with the configuration of pls-router in its environment.
    pub(super) fn in_router(&self, program: &str) -> Result<Command> {
        let mut command = self.router.command(program)?;
        command.env("PLS_ROUTER_CONFIG", self.state.path("config.toml"));
        Ok(command)
    }

    /// A command of pls-router on the router.
    pub(super) fn pls_router(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.router.command(&self.binary)?;
        command.env("PLS_ROUTER_CONFIG", self.state.path("config.toml")).args(args);
        Ok(command)
    }

    /// Starts the daemon, and waits until it says that it is healthy; how long that took.
    pub(super) fn start_daemon(&self) -> Result<(Process, Duration)> {
        let start = Instant::now();
        let mut daemon = Process::spawn(&self.state, "pls-router", self.pls_router(&["run"])?)?;
        // Its exit status says whether the router is healthy.
        daemon.wait_until(START_LIMIT, || command::run(&mut self.pls_router(&["status"])?).map(drop))?;
        Ok((daemon, start.elapsed()))
    }
}

/// A MAC address as `ip` takes it.
pub(super) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
