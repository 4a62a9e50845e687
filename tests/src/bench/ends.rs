//! The two ends of a measured path: what makes packets and what counts them. Both are BPF programs
//! of `labtools`, one object for each path, whose maps they share.

use std::{
    io::ErrorKind,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, Pod,
    maps::{Array, DevMap, MapData, PerCpuArray, PerCpuValues},
    programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use lab::Namespace;
use nix::net::if_::if_nametoindex;
use serde::Serialize;

use super::{
    cpu,
    frames::PORT,
    labtools::{End, attach, load, load_with, map, program},
    probe::{self, ProbeMaps},
    traffic::{CPUS, Expected, Generator, HEAD, Sunk, Traffic},
};

/// Packets by one call: more than a run takes. Each call sets up its own pool of pages, which takes
/// so long that with shorter calls the router would idle for a tenth of the time; so a call is
/// interrupted when it is no longer wanted.
const ENDLESS: u32 = 1 << 30;

/// Flows to one port of the target: each needs a separate SNAT port there.
pub(crate) const FLOWS_A_PORT: u32 = 1 << 15;
/// The largest number of sessions: the default of a router.
pub(crate) const MAX_SESSIONS: u32 = 1 << 20;
/// The last one of the target's ports.
pub(crate) const LAST_PORT: u16 = PORT + (MAX_SESSIONS / FLOWS_A_PORT) as u16 - 1;

// SAFETY: of all of them: numbers, without padding.
unsafe impl Pod for Traffic {}
// SAFETY: as above.
unsafe impl Pod for Generator {}
// SAFETY: as above.
unsafe impl Pod for Expected {}
// SAFETY: as above.
unsafe impl Pod for Sunk {}

/// The distribution of packets over time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pacing {
    /// As fast as they are made. Packets that do not fit into the router's ring are refused.
    Blast,
    /// As fast as they arrive: a batch of `batch` is sent when less than `under_way` are under way.
    Window { under_way: u32, batch: u32 },
    /// At this rate, in packets a second.
    Rate(f64),
}

impl Pacing {
    /// With a batch, it fits into a veth's ring of 256, and it keeps a router busy that takes 64 at
    /// a time. The kernel's pool keeps as many returned pages as a batch has packets; with batches
    /// of 64 more of them went back to the allocator, and a no-op was 7 % slower.
    pub(crate) const IN_FLIGHT: Self = Self::Window { under_way: 128, batch: 128 };

    /// Packets that the kernel makes before it hands them on, its own default being 64: see
    /// `BPF_PROG_TEST_RUN` (`Documentation/bpf/bpf_prog_run.rst`).
    pub(crate) const fn batch(self) -> u32 {
        match self {
            Self::Blast => 64,
            Self::Window { batch, .. } => batch,
            // Smooth, as far as calls by the kernel's own rules can be.
            Self::Rate(_) => 8,
        }
    }

    /// The limit of packets under way, and the nanoseconds from a batch to the next one, as
    /// [`Traffic`] has them.
    pub(crate) fn limits(self) -> (u32, u64) {
        match self {
            Self::Blast => (0, 0),
            Self::Window { under_way, .. } => (under_way, 0),
            Self::Rate(rate) => (0, (f64::from(self.batch()) * 1e9 / rate) as u64),
        }
    }
}

/// The packets that one CPU sends, for [`Ends::send`].
#[derive(Clone, Debug)]
pub(crate) struct Sending {
    pub(crate) cpu: usize,
    pub(crate) traffic: Traffic,
    /// A whole frame, whose head is overwritten.
    pub(crate) frame: Vec<u8>,
}

impl Sending {
    /// A frame's head in the words of a [`Traffic`].
    pub(crate) fn head(frame: &[u8]) -> Result<[u32; HEAD / 4]> {
        let mut head = [0; HEAD / 4];
        ensure!(frame.len() >= HEAD, "a frame of {} bytes is too short", frame.len());
        for (word, bytes) in head.iter_mut().zip(frame.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(head)
    }
}

/// The counts of a path's sinks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Arrived {
    /// Packets with the expected addresses, and others with the bench's ports.
    pub(crate) packets: u64,
    pub(crate) otherwise: u64,
    /// From the first one to the last one, if that was requested.
    pub(crate) took: Duration,
}

/// Sends and counts at both ends of a path.
pub(crate) struct Ends {
    ebpf: Ebpf,
    traffic: PerCpuArray<MapData, Traffic>,
    generator: PerCpuArray<MapData, Generator>,
    expected: Array<MapData, Expected>,
    sunk: Array<MapData, Sunk>,
    cpus: u32,
}

impl Ends {
    /// Puts a sink on every end, which also turns probes round and counts them if it knows one.
    pub(crate) fn attach(ends: &[End<'_>], probe: Option<&[u8; HEAD]>) -> Result<Self> {
        let mut ebpf = match probe {
            Some(probe) => load_with(&mut probe::settings(probe))?,
            None => load()?,
        };
        program(&mut ebpf, "generate")?;
        let sink = program(&mut ebpf, "sink")?;
        for End { namespace, device } in ends {
            attach(sink, namespace, device)?;
        }
        let cpus = cpu::count()? as u32;
        ensure!(cpus <= CPUS, "the sink counts on the first {CPUS} CPUs, and there are {cpus}");
        Ok(Self {
            traffic: map(&mut ebpf, "TRAFFIC")?,
            generator: map(&mut ebpf, "GENERATOR")?,
            expected: map(&mut ebpf, "EXPECTED")?,
            sunk: map(&mut ebpf, "SUNK")?,
            ebpf,
            cpus,
        })
    }

    /// Returns the sinks' maps of probes. Can be taken once.
    pub(crate) fn take_probes(&mut self) -> Result<ProbeMaps> {
        ProbeMaps::take(&mut self.ebpf)
    }

    /// Says what will be sent, and what is to arrive. Every CPU begins with its first flow.
    pub(crate) fn prepare(&mut self, sendings: &[Sending], expected: Expected) -> Result<()> {
        let mut generators = self.generators()?;
        let mut traffic = vec![Traffic::default(); generators.len()];
        for sending in sendings {
            traffic[sending.cpu] = sending.traffic;
            let sink = self.sunk.get(&sending.traffic.sink_cpu, 0).context("cannot read SUNK")?;
            let generator = &mut generators[sending.cpu];
            *generator = Generator {
                made: generator.made,
                next: sending.traffic.spans.map(|span| span.first),
                ..Generator::default()
            };
            // Lost packets are not under way. A sink may have counted packets of another CPU's
            // generator.
            generator.write_off(sink.packets + sink.otherwise);
            generator.stalls = 0;
        }
        self.expected.set(0, expected, 0).context("cannot write EXPECTED")?;
        for cpu in 0..self.cpus {
            let mut sunk = self.sunk.get(&cpu, 0).context("cannot read SUNK")?;
            (sunk.first, sunk.last) = (0, 0);
            self.sunk.set(cpu, sunk, 0).context("cannot write SUNK")?;
        }
        let traffic = PerCpuValues::try_from(traffic).context("too few CPUs")?;
        self.traffic.set(0, traffic, 0).context("cannot write TRAFFIC")?;
        let generators = PerCpuValues::try_from(generators).context("too few CPUs")?;
        self.generator.set(0, generators, 0).context("cannot write GENERATOR")
    }

    fn generators(&self) -> Result<Vec<Generator>> {
        let values = self.generator.get(&0, 0).context("cannot read GENERATOR")?;
        Ok(values.iter().copied().collect())
    }

    /// Returns the number of packets that have been made.
    pub(crate) fn made(&self) -> Result<u64> {
        Ok(self.generators()?.iter().map(|generator| generator.made).sum())
    }

    /// Returns how often a generator has waited for packets that never came, since
    /// [`Ends::prepare`].
    pub(crate) fn stalls(&self) -> Result<u64> {
        Ok(self.generators()?.iter().map(|generator| generator.stalls).sum())
    }

    /// Returns what has arrived.
    pub(crate) fn arrived(&self) -> Result<Arrived> {
        let mut arrived = Arrived::default();
        let (mut first, mut last) = (u64::MAX, 0);
        for cpu in 0..self.cpus {
            let sunk = self.sunk.get(&cpu, 0).context("cannot read SUNK")?;
            arrived.packets += sunk.packets;
            arrived.otherwise += sunk.otherwise;
            if sunk.first != 0 {
                first = first.min(sunk.first);
                last = last.max(sunk.last);
            }
        }
        arrived.took = Duration::from_nanos(last.saturating_sub(first));
        Ok(arrived)
    }

    /// Sends a number of packets, or until told to stop and then
    /// [interrupted](cpu::Thread::interrupt). To be called in the namespace of `device`, on a
    /// separate thread.
    pub(crate) fn send(&self, sending: &Sending, device: &str, until: Until<'_>) -> Result<()> {
        cpu::stay_on(sending.cpu)?;
        let device = if_nametoindex(device).with_context(|| format!("there is no device {device}"))?;
        let program = self.ebpf.program("generate").context("labtools has no program generate")?;
        let program: &Xdp = program.try_into().context("generate is not an XDP program")?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let context = [0, sending.frame.len() as u32, 0, device, 0, 0].map(u32::to_ne_bytes);
        let call = |repeat| {
            program.test_run(TestRunOptions {
                data_in: Some(&sending.frame),
                ctx_in: Some(context.as_flattened()),
                repeat,
                attrs: TestRunAttrs::new().xdp_live_frames(sending.traffic.batch),
                ..TestRunOptions::new()
            })
        };
        match until {
            Until::Packets(packets) => {
                call(packets).context("the kernel does not send live frames")?;
            }
            Until::Stopped(stop) => {
                while !stop.load(Ordering::Relaxed) {
                    match call(ENDLESS) {
                        Err(ProgramError::SyscallError(error))
                            if error.io_error.kind() == ErrorKind::Interrupted => {}
                        sent => {
                            sent.context("the kernel does not send live frames")?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// When sending ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until<'a> {
    Packets(u32),
    Stopped(&'a AtomicBool),
}

/// An address and how many of its first bits count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Network(pub(crate) Ipv4Addr, pub(crate) u8);

impl Network {
    /// Any address.
    pub(crate) const ANY: Self = Self(Ipv4Addr::UNSPECIFIED, 0);

    /// This one.
    pub(crate) const fn only(address: Ipv4Addr) -> Self {
        Self(address, 32)
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.1)).unwrap_or(0)
    }
}

/// The addresses that packets have to arrive with: source and destination.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival(pub(crate) Network, pub(crate) Network);

impl Arrival {
    /// Converts them for the sink, with these flags of [`super::traffic`].
    pub(crate) fn expected(self, flags: u32) -> Expected {
        let both = |pick: fn(Network) -> u32| u64::from(pick(self.0)) << 32 | u64::from(pick(self.1));
        Expected {
            addresses: both(|network| network.0.to_bits()),
            mask: both(Network::mask),
            flags,
            ports: [u32::from(PORT), u32::from(LAST_PORT - PORT + 1)],
            zero: 0,
        }
    }
}

/// Each of two devices redirects to the other.
const ACROSS: fn([u32; 2]) -> [(u32, u32); 2] = |[a, b]| [(a, b), (b, a)];

/// A program of labtools on a router's devices.
pub(crate) struct Attached {
    /// Holds the attachment.
    _ebpf: Ebpf,
}

impl Attached {
    /// Redirects from either device to the other.
    pub(crate) fn redirect(namespace: &Namespace, devices: [&str; 2]) -> Result<Self> {
        Self::with_egress(namespace, "redirect", devices, ACROSS)
    }

    /// The same with other MAC addresses.
    pub(crate) fn readdress(namespace: &Namespace, devices: [&str; 2]) -> Result<Self> {
        Self::with_egress(namespace, "readdress", devices, ACROSS)
    }

    /// Forwards from either device by the kernel's routes.
    pub(crate) fn route(namespace: &Namespace, devices: [&str; 2]) -> Result<Self> {
        Self::with_egress(namespace, "route", devices, |[a, b]| [(a, a), (b, b)])
    }

    /// Sends back what comes in.
    pub(crate) fn turn(namespace: &Namespace, device: &str) -> Result<Self> {
        Self::plain(namespace, "turn", &[device])
    }

    /// Passes every packet on to the kernel. It makes the device poll, which frames that are not
    /// sent by a network stack need.
    pub(crate) fn pass(namespace: &Namespace, devices: &[&str]) -> Result<Self> {
        Self::plain(namespace, "xdp_pass", devices)
    }

    fn plain(namespace: &Namespace, name: &str, devices: &[&str]) -> Result<Self> {
        let mut ebpf = load()?;
        let program = program(&mut ebpf, name)?;
        for device in devices {
            attach(program, namespace, device)?;
        }
        Ok(Self { _ebpf: ebpf })
    }

    fn with_egress(
        namespace: &Namespace,
        name: &str,
        devices: [&str; 2],
        entries: fn([u32; 2]) -> [(u32, u32); 2],
    ) -> Result<Self> {
        let mut ebpf = load()?;
        let map = ebpf.map_mut("EGRESS").context("labtools has no map EGRESS")?;
        let mut egress = DevMap::try_from(map).context("EGRESS is another map")?;
        // The kernel looks interfaces up in the caller's namespace.
        namespace.inside(|| -> Result<()> {
            let indices = [if_nametoindex(devices[0])?, if_nametoindex(devices[1])?];
            for (from, to) in entries(indices) {
                egress.set(from, to, None, 0)?;
            }
            Ok(())
        })??;
        let program = program(&mut ebpf, name)?;
        for device in devices {
            attach(program, namespace, device)?;
        }
        Ok(Self { _ebpf: ebpf })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            arms::Direction,
            frames::{FRAME, Headers, LONG_FRAME, Shape, Step, Transport, tests::assert_right_checksums},
            traffic::{Flow, REPLY, Span, TCP},
        },
        *,
    };

    #[test]
    fn pacing_says_how_many_are_under_way_or_how_far_apart() {
        assert_eq!(Pacing::Blast.limits(), (0, 0));
        assert_eq!(Pacing::Window { under_way: 96, batch: 128 }.limits(), (96, 0));
        // 8 packets at a time, a million a second.
        assert_eq!(Pacing::Rate(1e6).limits(), (0, 8000));
    }

    #[test]
    fn networks_have_masks() {
        let arrival = Arrival(Network(Ipv4Addr::new(10, 0, 2, 69), 26), Network::ANY);
        let expected = arrival.expected(0);
        assert_eq!((expected.addresses, expected.mask), (0x0a00_0245_0000_0000, 0xffff_ffc0_0000_0000));
        assert_eq!(Network::only(Ipv4Addr::LOCALHOST).mask(), u32::MAX);
    }

    /// Returns the frame that `generate` makes after a number of others.
    fn generated(ends: &mut Ends, shape: Shape, direction: Direction, flow: u32) -> Vec<u8> {
        let headers = Headers {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            source: Ipv4Addr::new(10, 0, 2, 69),
            destination: Ipv4Addr::new(10, 0, 2, 68),
        };
        let (step, reply) = match direction {
            Direction::Forward => (Step::Data, 0),
            Direction::Reply => (Step::ReplyData, REPLY),
        };
        let frame = headers.packet(shape, step);
        let first = Flow { number: flow, at: flow, port: 3 };
        let span = Span { first, end: flow + 1, at_port: [0, FLOWS_A_PORT] };
        let tcp = if shape.transport == Transport::Tcp { TCP } else { 0 };
        let traffic = Traffic {
            batch: 1,
            flags: tcp | reply,
            head: Sending::head(&frame).expect("it is long enough"),
            spans: [span; 2],
            ..Traffic::default()
        };
        let sendings: Vec<_> =
            (0..ends.cpus as usize).map(|cpu| Sending { cpu, traffic, frame: frame.clone() }).collect();
        ends.prepare(&sendings, Expected::default()).expect("it can be prepared");
        let program: &Xdp =
            ends.ebpf.program("generate").expect("it is there").try_into().expect("it is XDP");
        let mut out = vec![0; shape.length];
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            repeat: 1,
            ..TestRunOptions::new()
        };
        program.test_run(options).expect("it runs");
        out
    }

    #[test]
    #[ignore = "loading BPF programs needs root; `cargo xtask test` runs this"]
    fn generated_frames_of_every_shape_have_right_checksums() {
        let mut ends = Ends::attach(&[], None).expect("it loads");
        for transport in [Transport::Udp, Transport::Tcp] {
            for length in [FRAME, LONG_FRAME] {
                for direction in [Direction::Forward, Direction::Reply] {
                    for flow in [0, 1, 7, 8, 255, 32_767] {
                        let shape = Shape { transport, length };
                        let frame = generated(&mut ends, shape, direction, flow);
                        assert_right_checksums(&frame);
                        let payload = if transport == Transport::Tcp { 54 } else { 42 };
                        assert_eq!(frame[payload..payload + 4], flow.to_be_bytes());
                        let ports = match direction {
                            Direction::Forward => [10_000 + flow as u16 / 8, PORT + 3],
                            Direction::Reply => [PORT + 3, 0],
                        };
                        assert_eq!(frame[34..38], *ports.map(u16::to_be_bytes).as_flattened());
                    }
                }
            }
        }
    }
}
