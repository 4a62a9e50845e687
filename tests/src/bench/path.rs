//! A path to measure: *gen*, the router, *sink*, and what makes the router a router.
//!
//! ```text
//!  gen                       router                        sink
//!  e0 10.0.2.69 ... .76 ---- in 10.0.2.68   out 10.0.3.4 ---- e0 10.0.3.1
//!                                                           203.0.113.10 (the target)
//! ```
//!
//! With one NIC only the wire on the left exists: what leaves goes back to *gen*, whose device is
//! the router's next hop, too.
//!
//! Each path has separate namespaces, so a router's changes to the kernel (hooks, connection
//! tracking) do not affect another. All neighbours are permanent: the wires carry nothing but the
//! traffic.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};
use lab::{Namespace, conntrack, link};
use router_user::model::{Counters, RuleCounters};

use super::{
    addresses::{CLIENT, CLIENTS, FIREWALL, IPERF_PORT, ROUTER, ROUTER_OUT, SINK, TARGET},
    arms::{Arm, Direction, Offloads, Traffic, Wires},
    daemon::{Daemon, rule_name},
    ends::{Arrival, Attached, Ends, LAST_PORT, Network},
    frames::{Headers, PORT, Transport},
    labtools::End,
    probe,
    setup::Setup,
    traffic::SOURCES,
};

const GEN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const IN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
const OUT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 3];
const SINK_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 4];

/// The limit for a datagram there and back.
const ECHO_LIMIT: Duration = Duration::from_secs(2);

/// A path that is up.
pub(crate) struct Path {
    pub(crate) arm: Arm,
    pub(crate) generator: Namespace,
    pub(crate) router: Namespace,
    pub(crate) sink: Namespace,
    /// The devices' names: the generator's, the router's two, the sink's.
    pub(crate) devices: [String; 4],
    traffic: Traffic,
    tag: String,
    daemon: Option<Daemon>,
    _programs: Vec<Attached>,
}

impl Path {
    /// Brings a path up.
    pub(crate) fn up(setup: &Setup, arm: Arm, traffic: Traffic) -> Result<Self> {
        let tag = format!("{}{}", arm.letter(), traffic.letter());
        let namespace = |host: &str| -> Result<Namespace> {
            let name = lab::paths::namespace_name(setup.state.id(), &format!("{tag}-{host}"));
            // Dropping the path removes it; if this process ends otherwise, the state does.
            Namespace::create(&name)
        };
        // The names of threads that poll devices have no namespace: this process' id makes them the
        // only ones.
        let pid = std::process::id();
        let devices = ["g", "i", "o", "s"].map(|end| format!("{end}{tag}{pid}"));
        let mut path = Self {
            arm,
            generator: namespace("gen")?,
            router: namespace("router")?,
            sink: namespace("sink")?,
            devices,
            traffic,
            tag,
            daemon: None,
            _programs: Vec::new(),
        };
        path.lay_wires()?;
        path.set_up_ends()?;
        path.set_up_router(setup).with_context(|| format!("cannot set up {arm}"))?;
        Ok(path)
    }

    fn has_one_nic(&self) -> bool {
        self.traffic == Traffic::Packets(Wires::One)
    }

    /// The device that leads to the target.
    fn out_device(&self) -> &str {
        &self.devices[if self.has_one_nic() { 1 } else { 2 }]
    }

    /// The address that packets get as their source.
    fn snat(&self) -> Ipv4Addr {
        if self.has_one_nic() { ROUTER } else { ROUTER_OUT }
    }

    fn lay_wires(&self) -> Result<()> {
        let [gen_device, in_device, out_device, sink_device] = &self.devices;
        let Self { generator, router, sink, .. } = self;
        let wires = [
            ((generator, gen_device, GEN_MAC), (router, in_device, IN_MAC)),
            ((router, out_device, OUT_MAC), (sink, sink_device, SINK_MAC)),
        ];
        let count = if self.has_one_nic() { 1 } else { 2 };
        for ((left, left_device, left_mac), (right, right_device, right_mac)) in wires.into_iter().take(count)
        {
            match self.traffic {
                Traffic::Tcp(Offloads::Default) => {
                    left.ip(&format!(
                        "link add {left_device} type veth peer name {right_device} netns {}\n\
                         link set {left_device} up",
                        right.name()
                    ))?;
                    right.ip(&format!("link set {right_device} up"))?;
                }
                Traffic::Packets(Wires::TwoQueues) => {
                    link::wire_with_queues((left, left_device), (right, right_device), 2)?;
                }
                Traffic::Packets(Wires::Two | Wires::One)
                | Traffic::Probes
                | Traffic::Nothing
                | Traffic::Datagrams
                | Traffic::Tcp(Offloads::Off) => {
                    link::wire((left, left_device), (right, right_device))?;
                }
            }
            left.ip(&format!("link set {left_device} address {}", mac(left_mac)))?;
            right.ip(&format!("link set {right_device} address {}", mac(right_mac)))?;
        }
        Ok(())
    }

    fn set_up_ends(&mut self) -> Result<()> {
        let [gen_device, in_device, out_device, sink_device] = &self.devices;
        // With a program that only redirects, both ends see each other as if there was no router.
        let (to_sink, to_gen) =
            if self.arm == Arm::Redirect { (SINK_MAC, GEN_MAC) } else { (IN_MAC, OUT_MAC) };
        self.generator.ip(&format!(
            "addr add {CLIENT}/26 dev {gen_device}\n\
             neigh add {ROUTER} lladdr {} dev {gen_device} nud permanent\n\
             route add default via {ROUTER}",
            mac(to_sink)
        ))?;
        let mut router = format!("addr add {ROUTER}/26 dev {in_device}\n");
        for client in 0..SOURCES {
            let client = Ipv4Addr::from_bits(CLIENT.to_bits() + client);
            router += &format!("neigh add {client} lladdr {} dev {in_device} nud permanent\n", mac(GEN_MAC));
        }
        if self.has_one_nic() {
            router += &format!(
                "neigh add {FIREWALL} lladdr {} dev {in_device} nud permanent\n\
                 route add default via {FIREWALL}",
                mac(GEN_MAC)
            );
            self.router.ip(&router)?;
            return Ok(());
        }
        router += &format!(
            "addr add {ROUTER_OUT}/26 dev {out_device}\n\
             neigh add {SINK} lladdr {} dev {out_device} nud permanent\n\
             route add default via {SINK}",
            mac(SINK_MAC)
        );
        self.router.ip(&router)?;
        self.sink.ip(&format!(
            "addr add {SINK}/26 dev {sink_device}\n\
             addr add {TARGET}/32 dev lo\n\
             neigh add {ROUTER_OUT} lladdr {} dev {sink_device} nud permanent\n\
             route add default via {ROUTER_OUT}",
            mac(to_gen)
        ))?;
        let needs_programs = match self.traffic {
            Traffic::Datagrams | Traffic::Tcp(Offloads::Off) => true,
            Traffic::Tcp(Offloads::Default) => self.arm.is_xdp(),
            Traffic::Packets(_) | Traffic::Probes | Traffic::Nothing => false,
        };
        if needs_programs {
            // For all routers alike: the ends of their wires have to take frames that no network
            // stack has sent.
            self._programs.push(Attached::pass(&self.generator, &[gen_device])?);
            self._programs.push(Attached::pass(&self.sink, &[sink_device])?);
        }
        Ok(())
    }

    fn set_up_router(&mut self, setup: &Setup) -> Result<()> {
        let (arm, router) = (self.arm, &self.router);
        let (in_device, out_device) = (self.devices[1].as_str(), self.out_device());
        let forwards = arm.is_kernel() || arm == Arm::Fib;
        router.sysctl("net/ipv4/ip_forward", if forwards { "1" } else { "0" })?;
        let (mut program, mut daemon) = (None, None);
        match arm {
            Arm::Redirect if self.has_one_nic() => program = Some(Attached::turn(router, in_device)?),
            Arm::Redirect => program = Some(Attached::redirect(router, [in_device, out_device])?),
            Arm::Readdress => program = Some(Attached::readdress(router, [in_device, out_device])?),
            Arm::Fib => program = Some(Attached::route(router, [in_device, out_device])?),
            Arm::PlsRouter | Arm::Beside => {
                let mut installed =
                    Daemon::configure(setup, arm, self.traffic, &self.tag, [in_device, out_device])?;
                installed.start(&setup.state, router)?;
                daemon = Some(installed);
            }
            Arm::Nftables => nftables(router, [in_device, out_device])?,
            Arm::Iptables => iptables(router, [in_device, out_device])?,
            Arm::Kernel => {}
        }
        if arm.tracks() {
            // Sessions are opened before anything is measured, and must still be there then.
            for timeout in ["udp_timeout", "udp_timeout_stream"] {
                router.sysctl(&format!("net/netfilter/nf_conntrack_{timeout}"), "3600")?;
            }
            // A NIC would have verified the checksums that frames from a generator come without a
            // verdict on.
            router.sysctl("net/netfilter/nf_conntrack_checksum", "0")?;
        }
        if arm.is_kernel() {
            match self.traffic {
                // A device without a program polls only with this, and takes frames that no network
                // stack has sent only if it polls. It merges nothing here, and was no slower than a
                // program that passes every packet.
                Traffic::Packets(_) => {
                    for device in [in_device, out_device] {
                        router.run("ethtool", &["-K", device, "gro", "on"])?;
                    }
                }
                // A veth accepts frames sent by XDP_TX only if it has a program itself
                // (`veth_xdp_flush`).
                Traffic::Probes => program = Some(Attached::pass(router, &[in_device, out_device])?),
                Traffic::Nothing | Traffic::Datagrams | Traffic::Tcp(_) => {}
            }
        }
        self._programs.extend(program);
        self.daemon = daemon;
        Ok(())
    }

    /// Has the router forget all sessions.
    pub(crate) fn forget_sessions(&mut self, setup: &Setup) -> Result<()> {
        if let Some(daemon) = &mut self.daemon {
            daemon.stop()?;
            daemon.start(&setup.state, &self.router)?;
        } else if self.arm.tracks() {
            self.router.inside(conntrack::flush)??;
        }
        Ok(())
    }

    /// The headers of the packets to send along this path.
    pub(crate) fn headers(&self, direction: Direction) -> Headers {
        match direction {
            Direction::Forward => Headers {
                source_mac: GEN_MAC,
                destination_mac: IN_MAC,
                source: CLIENT,
                destination: match self.arm {
                    Arm::Kernel | Arm::Fib => TARGET,
                    Arm::Redirect
                    | Arm::Readdress
                    | Arm::PlsRouter
                    | Arm::Beside
                    | Arm::Nftables
                    | Arm::Iptables => ROUTER,
                },
            },
            Direction::Reply => Headers {
                source_mac: SINK_MAC,
                destination_mac: OUT_MAC,
                source: TARGET,
                destination: self.snat(),
            },
        }
    }

    /// The addresses of what arrives at the other end.
    pub(crate) fn arrival(&self, direction: Direction) -> Arrival {
        match direction {
            Direction::Forward if self.arm.translates() => {
                Arrival(Network::only(self.snat()), Network::only(TARGET))
            }
            Direction::Forward => Arrival(Network::ANY, Network::only(self.headers(direction).destination)),
            Direction::Reply if self.arm.translates() => Arrival(Network::only(ROUTER), Network(CLIENT, 26)),
            Direction::Reply => Arrival(Network::only(TARGET), Network::only(self.snat())),
        }
    }

    /// Returns the end that packets of this direction are sent from.
    pub(crate) fn sender(&self, direction: Direction) -> End<'_> {
        match direction {
            Direction::Forward => End { namespace: &self.generator, device: &self.devices[0] },
            Direction::Reply => End { namespace: &self.sink, device: &self.devices[3] },
        }
    }

    /// Returns the device of the router that packets of this direction leave by.
    pub(crate) fn egress(&self, direction: Direction) -> &str {
        match direction {
            Direction::Forward => self.out_device(),
            Direction::Reply => &self.devices[1],
        }
    }

    /// The router's devices that packets come in by.
    pub(crate) fn router_devices(&self) -> Vec<&str> {
        self.devices[1..].iter().take(if self.has_one_nic() { 1 } else { 2 }).map(String::as_str).collect()
    }

    /// Returns the destination of a client's packets, if a network stack sends them.
    pub(crate) const fn destination(&self) -> Ipv4Addr {
        if self.arm.translates() { ROUTER } else { TARGET }
    }

    /// Sockets for datagrams at both ends: the client's, and the target's.
    pub(crate) fn sockets(&self) -> Result<[UdpSocket; 2]> {
        let server = self.sink.inside(|| UdpSocket::bind((TARGET, PORT)))?;
        let server = server.context("cannot open the target's socket")?;
        let client = self.generator.inside(|| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((CLIENT, 0))?;
            socket.connect((self.destination(), PORT))?;
            Ok(socket)
        })?;
        let client = client.context("cannot open the client's socket")?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(ECHO_LIMIT)).context("cannot set a timeout")?;
        }
        Ok([client, server])
    }

    /// Puts sinks on the ends of this path.
    pub(crate) fn ends(&self) -> Result<Ends> {
        let mut ends = vec![self.sender(Direction::Forward)];
        if !self.has_one_nic() {
            ends.push(self.sender(Direction::Reply));
        }
        let probe = match self.traffic {
            Traffic::Probes => Some(probe::frame(&self.headers(Direction::Forward))?),
            Traffic::Packets(_) | Traffic::Nothing | Traffic::Datagrams | Traffic::Tcp(_) => None,
        };
        Ends::attach(&ends, probe.as_ref())
    }

    /// Returns `true` if the router has room for this many sessions. The kernel's limit is global,
    /// and the bench does not change it.
    pub(crate) fn takes(&self, flows: u32) -> Result<bool> {
        Ok(!self.arm.tracks() || flows < conntrack::limit()?)
    }

    /// Returns the number of sessions, open now or opened since its start, if the router knows.
    pub(crate) fn sessions(&self, transport: Transport) -> Result<Option<u64>> {
        if self.arm.is_pls_router() {
            return Ok(Some(self.rule_counters(transport)?.sessions_opened));
        }
        if self.arm.tracks() {
            return Ok(Some(self.router.inside(conntrack::count)??));
        }
        Ok(None)
    }

    /// The daemon, and the namespace that it runs in.
    pub(crate) fn daemon(&mut self) -> Result<(&mut Daemon, &Namespace)> {
        Ok((self.daemon.as_mut().context("no pls-router runs")?, &self.router))
    }

    /// Returns pls-router's counters; `None` for another router.
    pub(crate) fn counters(&self) -> Result<Option<Counters>> {
        let Some(daemon) = &self.daemon else { return Ok(None) };
        let text = lab::command::run(&mut daemon.command(&self.router, &["counters", "-o", "json"])?)?;
        Ok(Some(serde_json::from_str(&text).with_context(|| format!("pls-router printed {text}"))?))
    }

    fn rule_counters(&self, transport: Transport) -> Result<RuleCounters> {
        let counters = self.counters()?.context("no pls-router runs")?;
        let name = rule_name(transport);
        let rule = counters.rules.into_iter().find(|rule| rule.name == name);
        rule.context("pls-router does not count the bench's rule")
    }
}

/// The rules of the [`Daemon`]'s configuration as nftables has them.
fn nftables(router: &Namespace, [in_device, out_device]: [&str; 2]) -> Result<()> {
    router.nft(&format!(
        "table ip bench {{
            chain to_target {{
                type nat hook prerouting priority dstnat;
                iifname {in_device} ip daddr {ROUTER} ip saddr {CLIENTS} udp dport {PORT}-{LAST_PORT} dnat to {TARGET}
                iifname {in_device} ip daddr {ROUTER} ip saddr {CLIENTS} tcp dport {PORT}-{LAST_PORT} dnat to {TARGET}
                iifname {in_device} ip daddr {ROUTER} ip saddr {CLIENTS} tcp dport {IPERF_PORT} dnat to {TARGET}
            }}
            chain from_router {{
                type nat hook postrouting priority srcnat;
                oifname {out_device} masquerade
            }}
        }}"
    ))
}

/// Loads the same rules into iptables.
fn iptables(router: &Namespace, [in_device, out_device]: [&str; 2]) -> Result<()> {
    let ports = format!("{PORT}:{LAST_PORT}");
    let iperf3 = IPERF_PORT.to_string();
    let (here, target) = (ROUTER.to_string(), TARGET.to_string());
    for (protocol, ports) in [("udp", &ports), ("tcp", &ports), ("tcp", &iperf3)] {
        let what = ["-t", "nat", "-A", "PREROUTING", "-i", in_device, "-s", CLIENTS, "-d", &here];
        let to = ["-p", protocol, "--dport", ports, "-j", "DNAT", "--to-destination", &target];
        router.run("iptables", &[&what[..], &to[..]].concat())?;
    }
    router.run("iptables", &["-t", "nat", "-A", "POSTROUTING", "-o", out_device, "-j", "MASQUERADE"])?;
    Ok(())
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
