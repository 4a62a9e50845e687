//! A router whose translation changes nothing, and a packet of each kind for it.
//!
//! A repeated run gets the packet that the run before it has written: translated addresses would
//! belong to another flow, and the TTL is reduced by one each time. So the sessions are such that
//! translation changes nothing: a masquerade to the address and port that the packet already has.
//! The program does the same arithmetic for any numbers. A call repeats only 250 times, from a TTL
//! of 255, so that the TTL stays above 1. Each call begins with the original packet.
//!
//! The root program is what is attached to the interfaces, for good: it tail-calls the program in
//! force through a slot of a PROG_ARRAY. Its cost is the difference between a run of the root and a
//! run of the program that it calls.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions, Xdp, XdpMode};
use etherparse::{PacketBuilder, PacketBuilderStep};
use lab::{Namespace, state::State};
use nix::net::if_::if_nametoindex;
use router_common::{address::Mac, maps::settings::Interface, ports::PortRange, reason::Reason};
use router_user::dataplane::{Dataplane, LoadOptions, LocalSpec, MasqueradeSpec, RuleSetSpec};
use serde::Serialize;

use crate::bench::cpu;

/// Runs by one call, see the module's documentation.
const REPEAT: u32 = 250;

/// `enum xdp_action`, include/uapi/linux/bpf.h.
const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 69);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 68);
const FIREWALL: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 66);
const TARGET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const CLIENT_PORT: u16 = 10_000;
const TARGET_PORT: u16 = 9000;
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

/// Ethernet's header.
const ETHERNET: usize = 14;
/// The shortest frame, without the frame check sequence, which no program ever sees: 64 bytes on a
/// wire.
const SHORTEST: usize = 60;
/// Ethernet's header, and a datagram with one byte.
const UNPADDED: usize = ETHERNET + 20 + 8 + 1;
/// Ethernet's header, and a packet as long as most links take.
const LONGEST: usize = ETHERNET + 1500;

/// A kind of packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// UDP from the client, of a known session, 64 bytes on the wire. So are the others, if nothing
    /// else is said.
    Udp,
    /// The same, of 1,500 bytes.
    UdpLong,
    /// The same with one byte of data, in an unpadded frame that is too short for the fast path.
    UdpUnpadded,
    /// A TCP segment without SYN, FIN and RST from the client.
    TcpAck,
    /// The same, of 1,500 bytes.
    TcpAckLong,
    /// Such a segment from the target.
    TcpReply,
    /// The same, of 1,500 bytes.
    TcpReplyLong,
    /// UDP to the router itself, which no rule and nothing else allows: dropped.
    Refused,
}

impl Kind {
    pub(super) const ALL: [Self; 8] = [
        Self::Udp,
        Self::UdpUnpadded,
        Self::UdpLong,
        Self::TcpAck,
        Self::TcpAckLong,
        Self::TcpReply,
        Self::TcpReplyLong,
        Self::Refused,
    ];

    /// Returns its name in tables.
    pub(super) const fn describe(self) -> &'static str {
        match self {
            Self::Udp => "UDP, known session, 64 bytes",
            Self::UdpUnpadded => "UDP, known session, 43 bytes and no padding",
            Self::UdpLong => "UDP, known session, 1500 bytes",
            Self::TcpAck => "TCP, ACK from the client, 64 bytes",
            Self::TcpAckLong => "TCP, ACK from the client, 1500 bytes",
            Self::TcpReply => "TCP, ACK from the target, 64 bytes",
            Self::TcpReplyLong => "TCP, ACK from the target, 1500 bytes",
            Self::Refused => "UDP, refused: no session, no rule, to the router itself",
        }
    }

    fn frame(self) -> Result<Vec<u8>> {
        match self {
            Self::Udp => udp(TARGET, SHORTEST),
            Self::UdpUnpadded => udp(TARGET, UNPADDED),
            Self::UdpLong => udp(TARGET, LONGEST),
            Self::TcpAck => tcp(Sender::Client, Flags::Ack, SHORTEST),
            Self::TcpAckLong => tcp(Sender::Client, Flags::Ack, LONGEST),
            Self::TcpReply => tcp(Sender::Target, Flags::Ack, SHORTEST),
            Self::TcpReplyLong => tcp(Sender::Target, Flags::Ack, LONGEST),
            Self::Refused => udp(ROUTER, SHORTEST),
        }
    }

    /// The expected result: the verdict, and the counter.
    const fn fate(self) -> (u32, Reason) {
        match self {
            Self::Refused => (XDP_DROP, Reason::LocalDenied),
            Self::Udp
            | Self::UdpUnpadded
            | Self::UdpLong
            | Self::TcpAck
            | Self::TcpAckLong
            | Self::TcpReply
            | Self::TcpReplyLong => (XDP_TX, Reason::Forwarded),
        }
    }
}

/// A program that is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Program {
    /// The one that is attached, with all that it calls.
    Root,
    /// The one of known sessions.
    Forward,
}

impl Program {
    const fn name(self) -> &'static str {
        match self {
            Self::Root => "pls_router",
            Self::Forward => "forward",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Sender {
    Client,
    Target,
}

#[derive(Clone, Copy, Debug)]
enum Flags {
    Syn,
    SynAck,
    Ack,
}

fn ip(source: Ipv4Addr, destination: Ipv4Addr) -> PacketBuilderStep<etherparse::IpHeaders> {
    // A repeated run ends above 1.
    PacketBuilder::ethernet2(MAC, MAC).ipv4(source.octets(), destination.octets(), 255)
}

fn udp(destination: Ipv4Addr, length: usize) -> Result<Vec<u8>> {
    let builder = ip(CLIENT, destination).udp(CLIENT_PORT, TARGET_PORT);
    let payload = vec![0; length - builder.size(0)];
    let mut frame = Vec::with_capacity(length);
    builder.write(&mut frame, &payload).context("cannot build a datagram")?;
    Ok(frame)
}

fn tcp(from: Sender, flags: Flags, length: usize) -> Result<Vec<u8>> {
    let ((source, source_port), (destination, destination_port)) = match from {
        Sender::Client => ((CLIENT, CLIENT_PORT), (TARGET, TARGET_PORT)),
        Sender::Target => ((TARGET, TARGET_PORT), (CLIENT, CLIENT_PORT)),
    };
    // The programs believe only acknowledgements that can be right: a SYN takes one number (RFC
    // 9293, section 3.4).
    const START: u32 = 1;
    let sequence = match flags {
        Flags::Syn | Flags::SynAck => START,
        Flags::Ack => START + 1,
    };
    let builder = ip(source, destination).tcp(source_port, destination_port, sequence, 65535);
    let builder = match flags {
        Flags::Syn => builder.syn(),
        Flags::SynAck => builder.syn().ack(START + 1),
        Flags::Ack => builder.ack(START + 1),
    };
    let payload = vec![0; length - builder.size(0)];
    let mut frame = Vec::with_capacity(length);
    builder.write(&mut frame, &payload).context("cannot build a segment")?;
    Ok(frame)
}

/// Makes a router in a new namespace and passes it to `work`, which runs on the router's CPU.
pub(super) fn inside<T: Send>(state: &State, work: impl FnOnce(FixedPoint) -> Result<T> + Send) -> Result<T> {
    let mut namespace = Namespace::create(&lab::paths::namespace_name(state.id(), "program"))?;
    // The state removes all namespaces at once.
    namespace.leave();
    // The frames that leave are for the router, too.
    let mac = Mac::new(MAC);
    namespace.ip(&format!(
        "link add eth0 type veth peer name wire0\n\
         link set eth0 up\n\
         link set wire0 up\n\
         addr add {ROUTER}/26 dev eth0\n\
         route add default via {FIREWALL}\n\
         neigh add {FIREWALL} lladdr {mac} dev eth0 nud permanent\n\
         neigh add {CLIENT} lladdr {mac} dev eth0 nud permanent"
    ))?;
    // Route lookups are answered only where forwarding is on; the programs ask by this interface.
    namespace.sysctl("net/ipv4/conf/lo/forwarding", "1")?;
    namespace.inside(|| {
        cpu::stay_on(cpu::ROUTER)?;
        work(FixedPoint::new()?)
    })?
}

/// The router.
pub(super) struct FixedPoint {
    pub(super) dataplane: Dataplane,
    index: u32,
    frames: Vec<(Kind, Vec<u8>)>,
}

impl FixedPoint {
    fn new() -> Result<Self> {
        let index = if_nametoindex("eth0").context("there is no eth0")?;
        let mut dataplane = Dataplane::load(&LoadOptions {
            pins: None,
            sessions: 1024,
            half_open_per_source: 1024,
            generic: false,
            log: None,
        })?;
        let interfaces =
            [Interface { primary: index, mac: Mac::new(MAC), ..Interface::default() }, Interface::default()];
        dataplane.settings.set_interfaces(interfaces)?;
        dataplane.local_addresses.set(&[ROUTER].into(), &[].into())?;
        let rules = RuleSetSpec {
            forwards: Vec::new(),
            masquerades: vec![MasqueradeSpec {
                name: "same".to_owned(),
                sources: vec![format!("{CLIENT}/32").parse()?],
                destinations: vec!["0.0.0.0/0".parse()?],
                mss: 0,
            }],
            snat: vec![CLIENT],
            ports: PortRange { first: 1024, last: 65535 },
            local: LocalSpec::default(),
            reject_exhausted: false,
            reject_unreachable: false,
        };
        dataplane.rules.apply(&rules, &mut dataplane.settings)?;
        // No packet comes in there. A program that is attached is in the kernel's XDP dispatcher
        // (kernel/bpf/dispatcher.c), which calls it directly; one that is not, a call would put
        // there and take out again, which takes longer than its runs.
        for (program, device) in [(Program::Root, "eth0"), (Program::Forward, "wire0")] {
            let name = program.name();
            dataplane
                .program(name)?
                .attach(device, XdpMode::Driver)
                .with_context(|| format!("cannot put {name} on {device}"))?;
        }
        let frames = Kind::ALL.into_iter().map(|kind| Ok((kind, kind.frame()?))).collect::<Result<_>>()?;
        let mut router = Self { dataplane, index, frames };
        router.open()?;
        for kind in Kind::ALL {
            router.check(Program::Root, kind)?;
        }
        router.check(Program::Forward, Kind::Udp)?;
        Ok(router)
    }

    /// Opens the sessions.
    fn open(&mut self) -> Result<()> {
        let handshake =
            [(Sender::Client, Flags::Syn), (Sender::Target, Flags::SynAck), (Sender::Client, Flags::Ack)];
        let segments = handshake.into_iter().map(|(from, flags)| tcp(from, flags, SHORTEST));
        for frame in [udp(TARGET, SHORTEST)].into_iter().chain(segments) {
            let (verdict, _) = self.run(Program::Root, &frame?, 1, None)?;
            ensure!(verdict == XDP_TX, "a session's first packets end with the verdict {verdict}");
        }
        Ok(())
    }

    /// Makes sure that what is measured is what the module says.
    fn check(&mut self, program: Program, kind: Kind) -> Result<()> {
        let name = program.name();
        let frame = self.frame(kind)?;
        let (verdict, reason) = kind.fate();
        let mut out = vec![0; LONGEST + 256];
        let before = self.dataplane.counters.read()?.reasons[reason as usize].packets;
        self.run(program, &frame, REPEAT, Some(&mut out))?;
        let counted = self.dataplane.counters.read()?.reasons[reason as usize].packets - before;
        let what = reason.as_str();
        ensure!(
            counted == u64::from(REPEAT),
            "{name}, {kind:?}: {counted} packets of {REPEAT} are counted as {what}"
        );
        // Addresses and ports; the checksums around them have changed with the TTL.
        ensure!(out[26..38] == frame[26..38], "{name}, {kind:?}: translated into another flow's packet");
        let hops = if verdict == XDP_TX { REPEAT } else { 0 };
        ensure!(u32::from(out[22]) == 255 - hops, "{name}, {kind:?}: a TTL of {} is left", out[22]);
        Ok(())
    }

    fn frame(&self, kind: Kind) -> Result<Vec<u8>> {
        let found = self.frames.iter().find(|(of, _)| *of == kind);
        found.map(|(_, frame)| frame.clone()).with_context(|| format!("there is no frame of {kind:?}"))
    }

    /// Returns the time of a packet.
    pub(super) fn call(&mut self, program: Program, kind: Kind) -> Result<Duration> {
        let frame = self.frame(kind)?;
        let (verdict, duration) = self.run(program, &frame, REPEAT, None)?;
        let (expected, _) = kind.fate();
        let name = program.name();
        ensure!(verdict == expected, "{name}, {kind:?}: ended with the verdict {verdict}");
        Ok(duration)
    }

    fn run(
        &mut self,
        program: Program,
        frame: &[u8],
        repeat: u32,
        out: Option<&mut [u8]>,
    ) -> Result<(u32, Duration)> {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let context = [0, frame.len() as u32, 0, self.index, 0, 0].map(u32::to_ne_bytes);
        let program: &mut Xdp = self.dataplane.program(program.name())?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: out,
            ctx_in: Some(context.as_flattened()),
            repeat,
            ..TestRunOptions::new()
        })?;
        Ok((result.return_value, result.duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_long_as_they_are_said_to_be() {
        for kind in Kind::ALL {
            let length = kind.frame().expect("a frame").len();
            assert!([UNPADDED, SHORTEST, LONGEST].contains(&length), "{kind:?} has {length} bytes");
            assert_eq!(length == UNPADDED, kind.describe().contains("43"), "{kind:?}");
            assert_eq!(length == LONGEST, kind.describe().contains("1500"), "{kind:?}");
        }
    }
}
