//! A path to measure: *gen*, the router, *sink*, and what makes the router a router.
//!
//! ```text
//!  gen                       router                        sink
//!  e0 10.0.2.69 ... .76 ---- in 10.0.2.68   out 10.0.3.4 ---- e0 10.0.3.1
//!                                                           203.0.113.10 (the target)
//! ```
//!
//! Each path has namespaces of its own, so what one router does to the kernel (hooks, connection tracking) does not touch
//! another. All neighbours are permanent: nothing but the traffic is on the wires.

mod daemon;

use std::{
    fmt, io,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Namespace, link};
use router_user::model::{Counters, RuleCounters};
use serde::Serialize;

pub(crate) use self::daemon::{Daemon, Started};
use super::{
    Setup,
    ends::{Attached, Expected, Headers, LAST_PORT, MAX_SESSIONS, PORT, Sink},
    probe,
};

/// The target behind the router.
pub(crate) const TARGET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The first of the addresses that packets come from.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 69);
/// The router, where packets come in.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 68);
/// The router, where they go out; the address that they get as their source.
const ROUTER_OUT: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 4);
const SINK: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);
/// Where packets may come from.
const SOURCES: &str = "10.0.2.64/26";
/// The port of the iperf3 server.
pub(crate) const IPERF_PORT: u16 = 5201;

const GEN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const IN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
const OUT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 3];
const SINK_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 4];

/// How many sessions pls-router has room for: for the most that are measured, at 80 %.
const ROOM: u32 = MAX_SESSIONS / 4 * 5;

/// How long a datagram may take there and back.
const ECHO_LIMIT: Duration = Duration::from_secs(2);

/// What is between the ends.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arm {
    /// An XDP program that redirects and does nothing else: the limit.
    Redirect,
    /// The daemon of this repository.
    PlsRouter,
    /// Another build of it.
    Beside,
    /// The kernel's NAT by nftables: DNAT and masquerade.
    Nftables,
    /// The kernel's forwarding, without NAT.
    Kernel,
}

impl Arm {
    pub(crate) const ALL: [Self; 5] =
        [Self::Redirect, Self::PlsRouter, Self::Beside, Self::Nftables, Self::Kernel];

    /// As namespaces and devices are named.
    const fn letter(self) -> char {
        match self {
            Self::Redirect => 'r',
            Self::PlsRouter => 'p',
            Self::Beside => 'b',
            Self::Nftables => 'n',
            Self::Kernel => 'k',
        }
    }

    /// Whether packets are forwarded by an XDP program.
    pub(crate) const fn is_xdp(self) -> bool {
        matches!(self, Self::Redirect | Self::PlsRouter | Self::Beside)
    }

    /// Whether packets go to the router's own address, and are translated there.
    const fn translates(self) -> bool {
        matches!(self, Self::PlsRouter | Self::Beside | Self::Nftables)
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Redirect => "no-op redirect",
            Self::PlsRouter => "pls-router",
            Self::Beside => "beside",
            Self::Nftables => "nftables NAT",
            Self::Kernel => "kernel, no NAT",
        })
    }
}

/// What is sent along a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Traffic {
    /// Packets of our generator, dropped at the far end.
    Packets,
    /// Our probes, turned round at the far end.
    Probes,
    /// None: the daemon is what is measured, at its default size.
    Nothing,
    /// Datagrams between two network stacks.
    Datagrams,
    /// TCP between two network stacks.
    Tcp(Offloads),
}

/// What the NICs at the two ends do for their hosts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Offloads {
    /// Nothing: every packet is one of the wire's.
    Off,
    /// What a veth does when it is new: super-frames and unfinished checksums, which no wire carries.
    Default,
}

/// A path that is up.
pub(crate) struct Path {
    pub(crate) arm: Arm,
    pub(crate) generator: Namespace,
    pub(crate) router: Namespace,
    pub(crate) sink: Namespace,
    /// The devices' names: the generator's, the router's two, the sink's.
    pub(crate) devices: [String; 4],
    daemon: Option<Daemon>,
    _programs: Vec<Attached>,
}

impl Path {
    /// Brings a path up.
    pub(crate) fn up(setup: &Setup, arm: Arm, traffic: Traffic) -> Result<Self> {
        let number = setup.next_number();
        let kind = match traffic {
            Traffic::Packets => 'u',
            Traffic::Probes => 'l',
            Traffic::Datagrams => 's',
            Traffic::Nothing => 'z',
            Traffic::Tcp(Offloads::Off) => 't',
            Traffic::Tcp(Offloads::Default) => 'd',
        };
        let tag = format!("{}{kind}{number}", arm.letter());
        let namespace = |host: &str| -> Result<Namespace> {
            let name = lab::state::namespace_name(setup.state.id(), &format!("{tag}-{host}"));
            let mut namespace = Namespace::create(&name)?;
            // The state removes all namespaces at once.
            namespace.leave();
            Ok(namespace)
        };
        // The names of threads that poll devices have no namespace: this process' id makes them the only ones.
        let pid = std::process::id();
        let devices = ["g", "i", "o", "s"].map(|end| format!("{end}{tag}{pid}"));
        let mut path = Self {
            arm,
            generator: namespace("gen")?,
            router: namespace("router")?,
            sink: namespace("sink")?,
            devices,
            daemon: None,
            _programs: Vec::new(),
        };
        path.lay_wires(traffic)?;
        path.set_up_ends(traffic)?;
        path.set_up_router(setup, &tag, traffic).with_context(|| format!("cannot set up {arm}"))?;
        Ok(path)
    }

    fn lay_wires(&self, traffic: Traffic) -> Result<()> {
        let [gen_device, in_device, out_device, sink_device] = &self.devices;
        let Self { generator, router, sink, .. } = self;
        let wires = [
            ((generator, gen_device, GEN_MAC), (router, in_device, IN_MAC)),
            ((router, out_device, OUT_MAC), (sink, sink_device, SINK_MAC)),
        ];
        for ((left, left_device, left_mac), (right, right_device, right_mac)) in wires {
            if traffic == Traffic::Tcp(Offloads::Default) {
                left.ip(&format!(
                    "link add {left_device} type veth peer name {right_device} netns {}\n\
                     link set {left_device} up",
                    right.name()
                ))?;
                right.ip(&format!("link set {right_device} up"))?;
            } else {
                link::wire((left, left_device), (right, right_device))?;
            }
            left.ip(&format!("link set {left_device} address {}", mac(left_mac)))?;
            right.ip(&format!("link set {right_device} address {}", mac(right_mac)))?;
        }
        Ok(())
    }

    fn set_up_ends(&mut self, traffic: Traffic) -> Result<()> {
        let [gen_device, in_device, out_device, sink_device] = &self.devices;
        // With a program that only redirects, both ends see each other as if there was no router.
        let (to_sink, to_gen) = match self.arm {
            Arm::Redirect => (SINK_MAC, GEN_MAC),
            Arm::PlsRouter | Arm::Beside | Arm::Nftables | Arm::Kernel => (IN_MAC, OUT_MAC),
        };
        self.generator.ip(&format!(
            "addr add {CLIENT}/26 dev {gen_device}\n\
             neigh add {ROUTER} lladdr {} dev {gen_device} nud permanent\n\
             route add default via {ROUTER}",
            mac(to_sink)
        ))?;
        self.router.ip(&format!(
            "addr add {ROUTER}/26 dev {in_device}\n\
             addr add {ROUTER_OUT}/26 dev {out_device}\n\
             neigh add {SINK} lladdr {} dev {out_device} nud permanent\n\
             neigh add {CLIENT} lladdr {} dev {in_device} nud permanent\n\
             route add default via {SINK}",
            mac(SINK_MAC),
            mac(GEN_MAC)
        ))?;
        self.sink.ip(&format!(
            "addr add {SINK}/26 dev {sink_device}\n\
             addr add {TARGET}/32 dev lo\n\
             neigh add {ROUTER_OUT} lladdr {} dev {sink_device} nud permanent\n\
             route add default via {ROUTER_OUT}",
            mac(to_gen)
        ))?;
        if matches!(traffic, Traffic::Datagrams | Traffic::Tcp(Offloads::Off))
            || matches!(traffic, Traffic::Tcp(Offloads::Default) if self.arm.is_xdp())
        {
            // For all routers alike: the ends of their wires have to take frames that no network stack has sent.
            self._programs.push(Attached::pass(&self.generator, &[gen_device])?);
            self._programs.push(Attached::pass(&self.sink, &[sink_device])?);
        }
        Ok(())
    }

    fn set_up_router(&mut self, setup: &Setup, tag: &str, traffic: Traffic) -> Result<()> {
        let Self { arm, router, .. } = self;
        let [_, in_device, out_device, _] = &self.devices;
        let kernel_forwards = matches!(arm, Arm::Nftables | Arm::Kernel);
        router.sysctl("net/ipv4/ip_forward", if kernel_forwards { "1" } else { "0" })?;
        match arm {
            Arm::Redirect => self._programs.push(Attached::redirect(router, [in_device, out_device])?),
            Arm::PlsRouter | Arm::Beside => {
                let beside = setup.beside.as_ref().context("no other pls-router was named");
                let binary = if *arm == Arm::Beside { beside? } else { &setup.binary };
                let room = if traffic == Traffic::Nothing { MAX_SESSIONS } else { ROOM };
                let devices = [in_device.as_str(), out_device];
                let mut daemon = Daemon::configure(&setup.state, tag, devices, binary, room)?;
                daemon.start(&setup.state, router)?;
                self.daemon = Some(daemon);
            }
            Arm::Nftables => {
                nftables(router, [in_device, out_device])?;
                // Sessions are opened before anything is measured, and must still be there then.
                for timeout in ["udp_timeout", "udp_timeout_stream"] {
                    router.sysctl(&format!("net/netfilter/nf_conntrack_{timeout}"), "3600")?;
                }
                // A NIC would have verified the checksums that frames from a generator come without a verdict on.
                router.sysctl("net/netfilter/nf_conntrack_checksum", "0")?;
            }
            Arm::Kernel => {}
        }
        if kernel_forwards {
            match traffic {
                // A device without a program polls only with this, and takes frames that no network stack has sent only if it
                // polls. It merges nothing here, and was no slower than a program that passes every packet.
                Traffic::Packets => router.run("ethtool", &["-K", in_device, "gro", "on"]).map(drop)?,
                // What a program at the other end sends by XDP_TX is taken only where there is a program (`veth_xdp_flush`).
                Traffic::Probes => self._programs.push(Attached::pass(router, &[in_device, out_device])?),
                Traffic::Nothing | Traffic::Datagrams | Traffic::Tcp(_) => {}
            }
        }
        Ok(())
    }

    /// The headers of the packets to send along this path.
    pub(crate) fn headers(&self) -> Headers {
        let destination = if self.arm == Arm::Kernel { TARGET } else { ROUTER };
        Headers { source_mac: GEN_MAC, destination_mac: IN_MAC, source: CLIENT, destination }
    }

    /// Counts what arrives at the end of this path.
    pub(crate) fn sink(&self) -> Result<Sink> {
        Sink::attach(&self.sink, &self.devices[3], self.expected())
    }

    /// Counts what arrives at the end of this path, and turns probes round.
    pub(crate) fn bouncing_sink(&self) -> Result<Sink> {
        Sink::attach_bouncing(&self.sink, &self.devices[3], self.expected(), probe::MARK)
    }

    /// How packets arrive there.
    fn expected(&self) -> Expected {
        Expected {
            source: self.arm.translates().then_some(ROUTER_OUT),
            destination: if self.arm == Arm::Redirect { ROUTER } else { TARGET },
        }
    }

    /// Where a client's packets go to.
    pub(crate) const fn destination(&self) -> Ipv4Addr {
        match self.arm {
            Arm::Redirect | Arm::Kernel => TARGET,
            Arm::PlsRouter | Arm::Beside | Arm::Nftables => ROUTER,
        }
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

    /// Whether the router has room for this many sessions. The kernel's limit is the whole machine's, and not for us to change.
    pub(crate) fn takes(&self, flows: u32) -> Result<bool> {
        if self.arm != Arm::Nftables {
            return Ok(true);
        }
        let path = "/proc/sys/net/netfilter/nf_conntrack_max";
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        let limit: u32 = text.trim().parse().with_context(|| format!("{path} says {text}"))?;
        Ok(flows < limit)
    }

    /// Whether the sessions of this many flows are open.
    pub(crate) fn has_sessions(&self, flows: u32) -> Result<()> {
        let sessions = match self.arm {
            Arm::Redirect | Arm::Kernel => return Ok(()),
            Arm::PlsRouter | Arm::Beside => self.rule_counters()?.sessions_opened,
            Arm::Nftables => {
                let path = "/proc/sys/net/netfilter/nf_conntrack_count";
                let text = self.router.inside(|| std::fs::read_to_string(path))?;
                let text = text.with_context(|| format!("cannot read {path}"))?;
                text.trim().parse().with_context(|| format!("{path} says {text}"))?
            }
        };
        ensure!(sessions >= u64::from(flows), "{} has {sessions} sessions of {flows}", self.arm);
        Ok(())
    }

    /// The daemon, and the namespace that it runs in.
    pub(crate) fn daemon(&mut self) -> Result<(&mut Daemon, &Namespace)> {
        Ok((self.daemon.as_mut().context("no pls-router runs")?, &self.router))
    }

    /// What pls-router has counted; none of another router.
    pub(crate) fn counters(&self) -> Result<Option<Counters>> {
        let Some(daemon) = &self.daemon else { return Ok(None) };
        let text = lab::command::run(&mut daemon.command(&self.router, &["counters", "-o", "json"])?)?;
        Ok(Some(serde_json::from_str(&text).with_context(|| format!("pls-router printed {text}"))?))
    }

    fn rule_counters(&self) -> Result<RuleCounters> {
        let counters = self.counters()?.context("no pls-router runs")?;
        let rule = counters.rules.into_iter().find(|rule| rule.name == "bench");
        rule.context("pls-router does not count the bench's rule")
    }
}

/// The rules of the [`Daemon`]'s configuration as nftables has them.
fn nftables(router: &Namespace, [in_device, out_device]: [&str; 2]) -> Result<()> {
    router.nft(&format!(
        "table ip bench {{
            chain to_target {{
                type nat hook prerouting priority dstnat;
                iifname {in_device} ip daddr {ROUTER} ip saddr {SOURCES} udp dport {PORT}-{LAST_PORT} dnat to {TARGET}
                iifname {in_device} ip daddr {ROUTER} ip saddr {SOURCES} tcp dport {IPERF_PORT} dnat to {TARGET}
            }}
            chain from_router {{
                type nat hook postrouting priority srcnat;
                oifname {out_device} masquerade
            }}
        }}"
    ))
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
