//! The two routers, and the wires to them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    life::Change,
    pace::Pace,
    topology::{
        CLIENT_HOP, MARKER, MARKER_CLIENT, NARROW_CLIENT_MTU, NARROW_SERVER_MTU, NARROW_SERVERS, Network,
        ROUTER, ROUTER_SECOND, SERVER_HOP, SERVER_HOP_SECOND, SERVICES, SNAT_PORTS, Service, Side, Targets,
    },
};
use crate::{
    Nics, Process, command,
    link::{self, XdpPass},
    namespace::Namespace,
    packet::{Header, UDP, udp},
    paths,
    state::State,
    view::View,
    wait,
    wire::Wire,
};

/// The limit for a start of pls-router.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Ethernet's header.
const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];

/// The destination of markers.
const MARKER_LISTEN: SocketAddrV4 = SocketAddrV4::new(ROUTER, MARKER.listen.0);

/// More than either narrow way takes.
const MARKER_LENGTH: usize = 1_400;

/// The MAC addresses of each router's NICs.
const ROUTER_MACS: [[u8; 6]; 2] = [[0x02, 0, 0, 0, 0, 0xa0], [0x02, 0, 0, 0, 0, 0xa1]];

/// The routers that are compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Arm {
    /// The kernel with nftables.
    Oracle,
    /// pls-router.
    Ours,
}

impl Arm {
    pub(super) const BOTH: [Self; 2] = [Self::Oracle, Self::Ours];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Oracle => "oracle",
            Self::Ours => "ours",
        }
    }
}

/// A packet and the side that it is sent from, or has come out on.
#[derive(Clone, Debug)]
pub(super) struct Traffic {
    pub(super) side: Side,
    pub(super) packet: Vec<u8>,
}

/// One of the routers with its wires.
#[derive(Debug)]
struct Router {
    namespace: Namespace,
    daemon: Option<Daemon>,
    /// One wire per NIC.
    wires: Vec<Wire>,
    /// The source that the markers' session leaves with.
    snat: SocketAddrV4,
    last_marker: u32,
}

/// A pls-router that runs.
#[derive(Debug)]
struct Daemon {
    process: Process,
    binary: PathBuf,
    configuration: PathBuf,
}

/// The timeouts of idle sessions, on both routers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Timeouts {
    /// Longer than any run.
    Long,
    /// As short as a busy machine allows: the steps of a sequence between two changes have to be
    /// done within it.
    Short,
}

impl Timeouts {
    const fn seconds(self) -> u32 {
        match self {
            Self::Long => 600,
            Self::Short => 20,
        }
    }
}

/// The limit for all sessions to expire: their timeout, and the interval of sweeps.
const EXPIRY_LIMIT: Duration = Duration::from_secs(Timeouts::Short.seconds() as u64 + 40);

/// Both routers.
#[derive(Debug)]
pub(super) struct Rig {
    routers: [Router; 2],
    pace: Pace,
    nics: Nics,
    timeouts: Timeouts,
    _world: Namespace,
    // Last, so that it is dropped last: it removes all that is left.
    state: State,
}

impl Rig {
    /// Brings both routers up. Without a binary, the kernel is in its place, too.
    pub(super) fn up(nics: Nics, binary: Option<&Path>, timeouts: Timeouts) -> Result<Self> {
        let state = State::create(&paths::unique_id())?;
        let namespace = |name: &str| -> Result<Namespace> {
            let mut namespace = Namespace::create(&paths::namespace_name(state.id(), name))?;
            // The state removes all namespaces at once.
            namespace.leave();
            Ok(namespace)
        };
        let world = namespace("world")?;
        let pass = XdpPass::load(&state)?;
        let mut routers = Vec::new();
        for arm in Arm::BOTH {
            let router = namespace(arm.name())?;
            let wires = lay_wires(arm, nics, &world, &router, &pass)?;
            let daemon = match (arm, binary) {
                (Arm::Ours, Some(binary)) => Some(start_daemon(&state, nics, &router, binary, timeouts)?),
                (Arm::Oracle, _) | (Arm::Ours, None) => {
                    set_up_oracle(nics, &router, &pass, timeouts)?;
                    None
                }
            };
            let mut router = Router { namespace: router, daemon, wires, snat: MARKER_CLIENT, last_marker: 0 };
            router.begin().with_context(|| format!("{} does not forward", arm.name()))?;
            routers.push(router);
        }
        let Ok(routers) = <[Router; 2]>::try_from(routers) else { bail!("there are two arms") };
        Ok(Self { routers, pace: Pace::new(), nics, timeouts, _world: world, state })
    }

    /// Has both routers become what a change says.
    pub(super) fn change(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Pause => {}
            Change::Lead(targets) => {
                let text = configuration(&self.state, self.nics, targets, self.timeouts);
                for Router { namespace, daemon, .. } in &mut self.routers {
                    match daemon {
                        Some(daemon) => daemon.take_over(&self.state, namespace, &text)?,
                        None => lead(namespace, targets)?,
                    }
                }
            }
            Change::Expire => {
                ensure!(self.timeouts == Timeouts::Short, "sessions that live for long do not expire");
                for router in &mut self.routers {
                    wait::until("all sessions to expire", EXPIRY_LIMIT, || router.has_no_sessions())?;
                    // The markers' has, too.
                    router.begin()?;
                }
            }
        }
        Ok(())
    }

    /// The address that sessions get.
    pub(super) const fn snat_address(&self) -> Ipv4Addr {
        snat_address(self.nics)
    }

    /// Sends packets through a router, in this order, and returns all that comes out of it.
    ///
    /// Nothing is waited for but packets: a pair of markers follows, one from each side. The queues
    /// on the way keep the order, so when both have come out the router has handled everything; and
    /// when a second pair has, everything that it has sent meanwhile is here, too, whichever way it
    /// took. Markers are too large for their way: pls-router has its daemon split them, so that
    /// they come after the daemon's other packets.
    ///
    /// `errors`: how many the router is likely to have to send. Before its rate allows them,
    /// nothing is sent.
    pub(super) fn exchange(&mut self, arm: Arm, packets: &[Traffic], errors: usize) -> Result<Vec<Traffic>> {
        if arm == Arm::Ours {
            self.pace.wait_for(errors);
        }
        let [oracle, ours] = &mut self.routers;
        let router = match arm {
            Arm::Oracle => oracle,
            Arm::Ours => ours,
        };
        for Traffic { side, packet } in packets {
            router.send(*side, packet)?;
        }
        let mut out = Vec::new();
        for _ in 0..2 {
            router.mark(&mut out).with_context(|| format!("{} lost a marker", arm.name()))?;
        }
        if arm == Arm::Ours {
            self.pace.spent(errors);
        }
        Ok(out)
    }
}

const fn snat_address(nics: Nics) -> Ipv4Addr {
    match nics {
        Nics::One => ROUTER,
        Nics::Two => ROUTER_SECOND,
    }
}

/// A command of pls-router's.
fn pls_router(namespace: &Namespace, binary: &Path, configuration: &Path, args: &[&str]) -> Result<Command> {
    let mut command = namespace.command(binary)?;
    command.env("PLS_ROUTER_CONFIG", configuration).args(args);
    Ok(command)
}

impl Daemon {
    fn command(&self, namespace: &Namespace, args: &[&str]) -> Result<Command> {
        pls_router(namespace, &self.binary, &self.configuration, args)
    }

    /// Another daemon takes over, with another configuration: a killed one leaves the data plane
    /// and its sessions as they are.
    fn take_over(&mut self, state: &State, namespace: &Namespace, configuration: &str) -> Result<()> {
        self.process.kill()?;
        fs::write(&self.configuration, configuration).context("cannot write the configuration")?;
        self.process = Process::spawn(state, "pls-router", self.command(namespace, &["run"])?)?;
        self.wait_until_ready(namespace)
    }

    /// Waits until the router is in place.
    fn wait_until_ready(&mut self, namespace: &Namespace) -> Result<()> {
        let (binary, configuration) = (self.binary.clone(), self.configuration.clone());
        // Its exit status says whether the router is healthy.
        self.process.wait_until(START_LIMIT, || {
            let mut command = pls_router(namespace, &binary, &configuration, &["status"])?;
            command::run(&mut command).map(drop)
        })
    }
}

impl Router {
    /// Fails while the router knows of any session.
    fn has_no_sessions(&self) -> Result<()> {
        let known = match &self.daemon {
            Some(daemon) => {
                let flows = command::run(&mut daemon.command(&self.namespace, &["flows", "-o", "json"])?)?;
                flows.matches("\"client\"").count()
            }
            // Sessions that have expired and have not been swept yet are not shown.
            None => {
                let read = || fs::read_to_string("/proc/thread-self/net/nf_conntrack");
                self.namespace.inside(read)?.context("cannot read the connections")?.lines().count()
            }
        };
        ensure!(known == 0, "there are {known}");
        Ok(())
    }

    /// The wire to a side.
    fn wire(&self, side: Side) -> usize {
        match side {
            Side::Client => 0,
            Side::Server => self.wires.len() - 1,
        }
    }

    fn send(&self, side: Side, packet: &[u8]) -> Result<()> {
        let wire = self.wire(side);
        let frame = [&ROUTER_MACS[wire], &side.mac(), IPV4.as_slice(), packet].concat();
        self.wires[wire].send(&frame)
    }

    /// Opens the markers' session.
    fn begin(&mut self) -> Result<()> {
        self.send(Side::Client, &marker(MARKER_CLIENT, MARKER_LISTEN, 0))?;
        let wire = self.wire(Side::Server);
        loop {
            // Before this, nothing but the kernel's own questions comes.
            let Some((Side::Server, packet)) = self.receive(wire)? else { continue };
            let Some(piece) = Piece::of(&packet) else { continue };
            if piece.number == Some(0) {
                self.snat = View::new(&packet).context("a marker is a packet")?.tuple().source;
            }
            if piece.is_last {
                return Ok(());
            }
        }
    }

    /// Sends a marker each way and waits for them; what comes before them is added to `out`.
    fn mark(&mut self, out: &mut Vec<Traffic>) -> Result<()> {
        self.last_marker += 1;
        let number = self.last_marker;
        self.send(Side::Client, &marker(MARKER_CLIENT, MARKER_LISTEN, number))?;
        self.send(Side::Server, &marker(MARKER.target(MARKER.listen.0), self.snat, number))?;
        for wire in 0..self.wires.len() {
            // One wire brings both.
            let mut missing = 2 / self.wires.len();
            while missing > 0 {
                let Some((side, packet)) = self.receive(wire)? else { continue };
                let Some(piece) = Piece::of(&packet) else {
                    out.push(Traffic { side, packet });
                    continue;
                };
                if let Some(found) = piece.number {
                    ensure!(found == number, "marker {found} came in place of {number}");
                }
                if piece.is_last {
                    missing -= 1;
                }
            }
        }
        Ok(())
    }

    /// The next packet of a wire; none if it is a frame of another kind.
    fn receive(&mut self, wire: usize) -> Result<Option<(Side, Vec<u8>)>> {
        let wires = self.wires.len();
        let frame = self.wires[wire].receive()?;
        if frame.get(12..ETHERNET) != Some(IPV4.as_slice()) {
            // ARP without an answer: the neighbours that matter are permanent.
            return Ok(None);
        }
        let side = Side::BOTH.into_iter().find(|side| frame.starts_with(&side.mac()));
        let side = side.with_context(|| format!("a frame for an unknown MAC address: {frame:02x?}"))?;
        ensure!(
            wires == 1 || side == Side::BOTH[wire],
            "a frame for the {side:?} side on the other's wire: {frame:02x?}"
        );
        Ok(Some((side, frame[ETHERNET..].to_vec())))
    }
}

/// A piece of a marker.
struct Piece {
    /// The marker's number, if it is the first piece.
    number: Option<u32>,
    is_last: bool,
}

impl Piece {
    fn of(packet: &[u8]) -> Option<Self> {
        let view = View::new(packet)?;
        let marker = view.protocol() == UDP
            && (view.destination() == *MARKER_CLIENT.ip() || view.destination() == MARKER.target);
        let number = || view.payload().get(8..)?.first_chunk().map(|number| u32::from_be_bytes(*number));
        let number = if view.offset() == 0 { number() } else { None };
        marker.then_some(Self { number, is_last: !view.more_fragments() })
    }
}

fn marker(source: SocketAddrV4, destination: SocketAddrV4, number: u32) -> Vec<u8> {
    let header = Header {
        source: *source.ip(),
        destination: *destination.ip(),
        protocol: UDP,
        id: 0xffff,
        tos: 0,
        ttl: 64,
        dont_fragment: false,
        options: Vec::new(),
    };
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(MARKER_LENGTH, 0);
    header.packet(&udp(source, destination, &payload, true))
}

/// Lays the wires of one router, and sets its addresses and routes.
fn lay_wires(
    arm: Arm,
    nics: Nics,
    world: &Namespace,
    router: &Namespace,
    pass: &XdpPass,
) -> Result<Vec<Wire>> {
    let devices: &[&str] = match nics {
        Nics::One => &["eth0"],
        Nics::Two => &["eth0", "eth1"],
    };
    let mut wires = Vec::new();
    for (device, router_mac) in devices.iter().zip(ROUTER_MACS) {
        let end = format!("{}-{device}", arm.name());
        // The next hops are no hosts: the stack of their namespace has no address that packets are
        // for.
        world.ip(&format!("link add {end} type veth peer name {device} netns {}", router.name()))?;
        world.ip(&format!("link set {end} arp off up"))?;
        link::offloads(world, &end, false)?;
        link::offloads(router, device, false)?;
        pass.attach(world, &end)?;
        router.ip(&format!("link set {device} address {} up", mac(router_mac)))?;
        wires.push(Wire::open(world, &end)?);
    }
    let (server_device, server_hop) = match nics {
        Nics::One => ("eth0", SERVER_HOP),
        Nics::Two => ("eth1", SERVER_HOP_SECOND),
    };
    let second = match nics {
        Nics::One => String::new(),
        Nics::Two => format!("addr add {ROUTER_SECOND}/26 dev eth1\n"),
    };
    router.ip(&format!(
        "addr add {ROUTER}/26 dev eth0\n\
         {second}\
         neigh add {CLIENT_HOP} lladdr {} dev eth0 nud permanent\n\
         neigh add {server_hop} lladdr {} dev {server_device} nud permanent\n\
         route add 10.64.0.0/14 via {CLIENT_HOP}\n\
         route add {} via {CLIENT_HOP} mtu lock {NARROW_CLIENT_MTU}\n\
         route add {NARROW_SERVERS} via {server_hop} mtu lock {NARROW_SERVER_MTU}\n\
         route add default via {server_hop}",
        mac(Side::Client.mac()),
        mac(Side::Server.mac()),
        Network::Narrow.cidr(),
    ))?;
    for (name, value) in [
        // Every error is compared, none is held back.
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv4/icmp_ratemask", "0"),
        ("net/ipv4/icmp_msgs_per_sec", "1000000"),
        ("net/ipv4/icmp_msgs_burst", "1000000"),
        // A datagram that stays incomplete must not be told of in the middle of another sequence.
        ("net/ipv4/ipfrag_time", "600"),
        ("net/ipv4/ipfrag_high_thresh", "67108864"),
        // Many sequences have the same server: fragments of one's datagram may be far apart among
        // all the others'.
        ("net/ipv4/ipfrag_max_dist", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/eth0/rp_filter", "0"),
        ("net/ipv4/conf/eth1/rp_filter", "0"),
        // Resets and errors answer packets of no socket; none of them may be one that is not sent.
        ("net/ipv4/tcp_challenge_ack_limit", "1000000"),
    ] {
        router.sysctl(name, value)?;
    }
    Ok(wires)
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// The kernel as a router that does what [`start_daemon`]'s configuration says.
fn set_up_oracle(nics: Nics, router: &Namespace, pass: &XdpPass, timeouts: Timeouts) -> Result<()> {
    let devices: &[&str] = match nics {
        Nics::One => &["eth0"],
        Nics::Two => &["eth0", "eth1"],
    };
    for device in devices {
        // Packets then come in through one queue, as they do where pls-router is, and not through
        // one a CPU.
        pass.attach(router, device)?;
    }
    router.sysctl("net/ipv4/ip_forward", "1")?;
    let denied: Vec<String> = SERVICES
        .iter()
        .chain([&MARKER])
        .map(|service| format!("ip saddr != {{ {} }} {} drop", service.sources().join(", "), listen(service)))
        .collect();
    let (first, last) = SNAT_PORTS;
    router.nft(&format!(
        "define masqueraded = {}
        table ip oracle {{
            chain to_targets {{
                type nat hook prerouting priority dstnat;
            }}
            chain from_router {{
                type nat hook postrouting priority srcnat;
                ct status dnat meta l4proto {{ tcp, udp }} masquerade to :{first}-{last}
                ip saddr $masqueraded meta l4proto {{ tcp, udp }} masquerade to :{first}-{last}
                ip saddr $masqueraded masquerade
            }}
            # A router that translates lets nothing through untranslated.
            chain through {{
                type filter hook forward priority filter; policy drop;
                ct state invalid drop
                ct state established,related accept
                ct status dnat accept
                ip saddr $masqueraded accept
            }}
            # `sources` of the services; and what their users may reach on the router itself.
            chain to_router {{
                type filter hook input priority filter;
                {}
                # The kernel takes class E for sources like others, and a rule names it.
                ip saddr {{ {}, 240.0.0.0/4 }} jump users
            }}
            chain users {{
            }}
        }}",
        Network::Masqueraded.cidr(),
        denied.join("\n"),
        [Network::Clients, Network::Narrow, Network::Masqueraded].map(Network::cidr).join(", "),
    ))?;
    lead(router, Targets::First)?;
    for (name, value) in [
        // A segment of no known connection opens none: pls-router leaves it to the kernel, which
        // resets it.
        ("tcp_loose", "0"),
        // A segment outside of the window would not be translated, and the kernel would reset the
        // connection; pls-router keeps no windows. Resets are still checked.
        ("tcp_be_liberal", "1"),
        // A router verifies the IP header's checksum only (RFC 1812 5.2.2). A wrong transport
        // checksum stays wrong.
        ("checksum", "0"),
    ] {
        router.sysctl(&format!("net/netfilter/nf_conntrack_{name}"), value)?;
    }
    for name in [
        "tcp_timeout_syn_sent",
        "tcp_timeout_syn_recv",
        "tcp_timeout_established",
        "tcp_timeout_fin_wait",
        "tcp_timeout_close_wait",
        "tcp_timeout_last_ack",
        "tcp_timeout_time_wait",
        "tcp_timeout_close",
        "tcp_timeout_max_retrans",
        "tcp_timeout_unacknowledged",
        "udp_timeout",
        "udp_timeout_stream",
        "icmp_timeout",
    ] {
        router.sysctl(&format!("net/netfilter/nf_conntrack_{name}"), &timeouts.seconds().to_string())?;
    }
    Ok(())
}

/// The services that have a target, and the target's address; and the markers', which always has
/// one.
fn leading(targets: Targets) -> impl Iterator<Item = (&'static Service, Ipv4Addr)> {
    let services = SERVICES.iter().filter_map(move |service| Some((service, targets.of(service)?)));
    services.chain([(&MARKER, MARKER.target)])
}

/// The packets to a service, as nftables has it.
fn listen(service: &Service) -> String {
    let (first, last) = service.listen;
    format!("{} dport {first}-{last}", service.protocol_name())
}

/// Has the kernel's services lead to these targets, all at once.
fn lead(router: &Namespace, targets: Targets) -> Result<()> {
    let dnat: Vec<String> = leading(targets)
        .map(|(service, target)| {
            let port = service.port.map(|port| format!(":{port}")).unwrap_or_default();
            let sources = service.sources().join(", ");
            format!("ip daddr {ROUTER} ip saddr {{ {sources} }} {} dnat to {target}{port}", listen(service))
        })
        .collect();
    let accepted: Vec<String> =
        leading(targets).map(|(service, _)| format!("{} accept", listen(service))).collect();
    router.nft(&format!(
        "flush chain ip oracle to_targets
        flush chain ip oracle users
        table ip oracle {{
            chain to_targets {{
                {}
            }}
            chain users {{
                icmp type {{ echo-reply, destination-unreachable, source-quench, time-exceeded, parameter-problem }} accept
                udp dport 68 accept
                {}
                drop
            }}
        }}",
        dnat.join("\n"),
        accepted.join("\n"),
    ))
}

/// pls-router with the same services.
fn start_daemon(
    state: &State,
    nics: Nics,
    router: &Namespace,
    binary: &Path,
    timeouts: Timeouts,
) -> Result<Daemon> {
    router.sysctl("net/ipv4/ip_forward", "0")?;
    let text = configuration(state, nics, Targets::First, timeouts);
    let configuration = state.write("config.toml", text)?;
    let process = Process::spawn(state, "pls-router", pls_router(router, binary, &configuration, &["run"])?)?;
    let mut daemon = Daemon { process, binary: binary.to_owned(), configuration };
    daemon.wait_until_ready(router)?;
    Ok(daemon)
}

/// pls-router's configuration.
fn configuration(state: &State, nics: Nics, targets: Targets, timeouts: Timeouts) -> String {
    let firewall = match nics {
        Nics::One => "eth0",
        Nics::Two => "eth1",
    };
    let mut text = format!("[interfaces]\npls = \"eth0\"\nfirewall = \"{firewall}\"\nmode = \"native\"\n");
    for (service, target) in leading(targets) {
        let (first, last) = service.listen;
        let port = service.port.map(|port| format!(":{port}")).unwrap_or_default();
        text.push_str(&format!(
            "[[forward]]\nname = \"{}\"\nprotocol = \"{}\"\nlisten = \"{}\"\ntarget = \"{target}{port}\"\n\
             sources = {:?}\n",
            service.name,
            service.protocol_name(),
            if first == last { first.to_string() } else { format!("{first}-{last}") },
            service.sources(),
        ));
    }
    let (first, last) = SNAT_PORTS;
    let seconds = timeouts.seconds();
    let all = ["tcp_established", "tcp_transitory", "udp", "udp_unreplied", "icmp"]
        .map(|name| format!("{name} = \"{seconds}s\"\n"))
        .concat();
    text.push_str(&format!(
        "[[masquerade]]\nname = \"masquerade\"\nsources = [\"{}\"]\ndestinations = [\"0.0.0.0/0\"]\n\
         [snat]\nports = \"{first}-{last}\"\n\
         # Where no packet of the sequences comes: the oracle has none.\n\
         [health]\nlisten = \"0.0.0.0:65535\"\nself_test = \"off\"\n\
         [admin]\nsocket = \"{}\"\npins = \"{}\"\n\
         [limits]\nflows = 131072\n\
         [timeouts]\n{all}",
        Network::Masqueraded.cidr(),
        state.path("api.sock").display(),
        state.path("bpf/pls-router").display(),
    ));
    text
}
