//! The two ends of a measured path: what makes packets and what counts them. Both are BPF programs of `labtools`.

use std::{
    io::ErrorKind,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{DevMap, PerCpuArray},
    programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use lab::Namespace;
use nix::net::if_::if_nametoindex;
use router_common::checksum::Sum;

use super::cpu;

/// The frame's length without the frame check sequence, which no program ever sees: 64 bytes on a wire.
pub(crate) const FRAME: usize = 60;
/// Ethernet, IPv4, UDP.
const HEADERS: usize = 42;
/// Packets by one call: more than a run takes. Each call sets up its own pool of pages, which takes so long that with
/// shorter calls the router would idle for a tenth of the time; so a call is interrupted when it is no longer wanted.
const CALL: u32 = 1 << 30;
/// Packets that the kernel makes before it hands them on: its own default (`Documentation/bpf/bpf_prog_run.rst`).
const BATCH: u32 = 64;

/// The first of the UDP ports that the bench's packets go to, before and after translation.
pub(crate) const PORT: u16 = 9000;
/// The last one.
pub(crate) const LAST_PORT: u16 = PORT + (MAX_SESSIONS / FLOWS_A_PORT) as u16 - 1;
/// Flows that go to one of them, as `generate` has it.
const FLOWS_A_PORT: u32 = 1 << 15;
/// The source port of the first flow.
const FIRST_SOURCE_PORT: u16 = 10_000;
/// How many sessions there may be: as many as a router has room for by default.
pub(crate) const MAX_SESSIONS: u32 = 1 << 20;

/// The programs of the ends.
pub(crate) fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/labtools"))
}

/// Loads a program.
pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("labtools has no program {name}"))?;
    let program: &mut Xdp = program.try_into().with_context(|| format!("{name} is not an XDP program"))?;
    program.load().with_context(|| format!("the kernel does not take the program {name}"))?;
    Ok(program)
}

/// Loads a program and puts it on devices, for as long as the value lives.
pub(crate) fn attach(ebpf: &mut Ebpf, name: &str, namespace: &Namespace, devices: &[&str]) -> Result<()> {
    let program = program(ebpf, name)?;
    for device in devices {
        namespace
            .inside(|| program.attach(device, XdpMode::Driver))?
            .with_context(|| format!("cannot put {name} on {device}"))?;
    }
    Ok(())
}

/// The one value of a per-CPU array with one slot, from every CPU.
fn per_cpu<T: Pod>(ebpf: &Ebpf, map: &str) -> Result<Vec<T>> {
    let data = ebpf.map(map).with_context(|| format!("labtools has no map {map}"))?;
    let array = PerCpuArray::<_, T>::try_from(data).with_context(|| format!("{map} is another map"))?;
    Ok(array.get(&0, 0).with_context(|| format!("cannot read {map}"))?.iter().copied().collect())
}

/// The headers of a path's first flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Headers {
    pub(crate) source_mac: [u8; 6],
    pub(crate) destination_mac: [u8; 6],
    /// The first flow's; the others' follow.
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
}

impl Headers {
    /// A UDP packet with these, checksums included; its payload is zeros.
    pub(crate) fn frame(&self, ttl: u8) -> [u8; FRAME] {
        let mut frame = [0; FRAME];
        frame[0..6].copy_from_slice(&self.destination_mac);
        frame[6..12].copy_from_slice(&self.source_mac);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        let ip_length = (FRAME - 14) as u16;
        let udp_length = ip_length - 20;
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&ip_length.to_be_bytes());
        // Don't fragment, TTL, UDP.
        frame[20..24].copy_from_slice(&[0x40, 0, ttl, 17]);
        frame[26..30].copy_from_slice(&self.source.octets());
        frame[30..34].copy_from_slice(&self.destination.octets());
        frame[34..36].copy_from_slice(&FIRST_SOURCE_PORT.to_be_bytes());
        frame[36..38].copy_from_slice(&PORT.to_be_bytes());
        frame[38..40].copy_from_slice(&udp_length.to_be_bytes());
        let ip = Sum::ZERO.add_bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&ip);
        // RFC 768's pseudo header: addresses, protocol, length.
        let pseudo = Sum::ZERO.add_bytes(&frame[26..34]).add([0, 17]).add(udp_length.to_be_bytes());
        let udp = pseudo.add_bytes(&frame[34..]).checksum();
        frame[40..42].copy_from_slice(&udp);
        frame
    }
}

/// Sends the packets of a number of flows in turn, as fast as its CPU makes them.
pub(crate) struct Generator {
    ebpf: Ebpf,
    frame: [u8; FRAME],
    device: u32,
}

/// What `generate` counts, see `Generator` in labtools.
#[repr(C)]
#[derive(Clone, Copy)]
struct Counted {
    packets: u64,
    flow: u64,
}

// SAFETY: two numbers, without padding.
unsafe impl Pod for Counted {}

impl Generator {
    /// For this device.
    pub(crate) fn load(namespace: &Namespace, device: &str, headers: &Headers, flows: u32) -> Result<Self> {
        let frame = headers.frame(64);
        let mut template = [0; HEADERS];
        template.copy_from_slice(&frame[..HEADERS]);
        let mut ebpf = EbpfLoader::new()
            .override_global("TEMPLATE", &template, true)
            .override_global("FLOWS", &flows, true)
            .load(object())
            .context("cannot load the generator")?;
        program(&mut ebpf, "generate")?;
        let device = namespace
            .inside(|| if_nametoindex(device))?
            .with_context(|| format!("there is no device {device}"))?;
        Ok(Self { ebpf, frame, device })
    }

    /// How many packets it has made.
    pub(crate) fn made(&self) -> Result<u64> {
        Ok(per_cpu::<Counted>(&self.ebpf, "GENERATOR")?.iter().map(|cpu| cpu.packets).sum())
    }

    /// Sends until told to stop, and then [interrupted](cpu::Thread::interrupt). To be called in the device's namespace, on a thread of its own.
    pub(crate) fn send_until(&self, stop: &AtomicBool) -> Result<()> {
        cpu::stay_on(cpu::GENERATOR)?;
        let program = self.ebpf.program("generate").context("labtools has no program generate")?;
        let program: &Xdp = program.try_into().context("generate is not an XDP program")?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, FRAME as u32, 0, self.device, 0, 0].map(u32::to_ne_bytes);
        while !stop.load(Ordering::Relaxed) {
            let options = TestRunOptions {
                data_in: Some(&self.frame),
                ctx_in: Some(context.as_flattened()),
                repeat: CALL,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            };
            match program.test_run(options) {
                Err(ProgramError::SyscallError(error)) if error.io_error.kind() == ErrorKind::Interrupted => {
                }
                sent => {
                    sent.context("the kernel does not send live frames")?;
                }
            }
        }
        Ok(())
    }
}

/// The addresses that packets have to arrive with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// None: any, since the source was not translated.
    pub(crate) source: Option<Ipv4Addr>,
    pub(crate) destination: Ipv4Addr,
}

/// Counts and drops what arrives.
pub(crate) struct Sink {
    ebpf: Ebpf,
}

impl Sink {
    /// On this device.
    pub(crate) fn attach(namespace: &Namespace, device: &str, expected: Expected) -> Result<Self> {
        Self::attach_with(namespace, device, expected, 0)
    }

    /// On this device, where it turns packets with this mark round.
    pub(crate) fn attach_bouncing(
        namespace: &Namespace,
        device: &str,
        expected: Expected,
        mark: u32,
    ) -> Result<Self> {
        Self::attach_with(namespace, device, expected, mark)
    }

    fn attach_with(namespace: &Namespace, device: &str, expected: Expected, mark: u32) -> Result<Self> {
        let source = expected.source.map_or([0; 4], |source| source.octets());
        let addresses = [source, expected.destination.octets()];
        let mask: [[u8; 4]; 2] = [[if expected.source.is_some() { 0xff } else { 0 }; 4], [0xff; 4]];
        let mut ebpf = EbpfLoader::new()
            .override_global("EXPECTED", addresses.as_flattened(), true)
            .override_global("EXPECTED_MASK", mask.as_flattened(), true)
            .override_global("PORTS", &[u32::from(PORT), u32::from(LAST_PORT - PORT + 1)], true)
            .override_global("PROBE_MARK", &mark, true)
            .load(object())
            .context("cannot load the sink")?;
        attach(&mut ebpf, "sink", namespace, &[device])?;
        Ok(Self { ebpf })
    }

    /// Packets with the expected addresses, and others to the bench's port.
    pub(crate) fn sunk(&self) -> Result<[u64; 2]> {
        let cpus = per_cpu::<[u64; 2]>(&self.ebpf, "SUNK")?;
        Ok(cpus.iter().fold([0; 2], |[a, b], [c, d]| [a + c, b + d]))
    }
}

/// A program of labtools on a router's devices.
pub(crate) struct Attached {
    /// Holds the attachment.
    _ebpf: Ebpf,
}

impl Attached {
    /// Redirects from either device to the other.
    pub(crate) fn redirect(namespace: &Namespace, devices: [&str; 2]) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(object()).context("cannot load labtools")?;
        let map = ebpf.map_mut("OTHER_SIDE").context("labtools has no map OTHER_SIDE")?;
        let mut other_side = DevMap::try_from(map).context("OTHER_SIDE is another map")?;
        // The kernel looks interfaces up in the namespace of who asks.
        namespace.inside(|| -> Result<()> {
            let [a, b] = [if_nametoindex(devices[0])?, if_nametoindex(devices[1])?];
            other_side.set(a, b, None, 0)?;
            other_side.set(b, a, None, 0)?;
            Ok(())
        })??;
        attach(&mut ebpf, "redirect", namespace, &devices)?;
        Ok(Self { _ebpf: ebpf })
    }

    /// Passes every packet on to the kernel. It makes the device poll, which frames that are not sent by a network stack need.
    pub(crate) fn pass(namespace: &Namespace, devices: &[&str]) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(object()).context("cannot load labtools")?;
        attach(&mut ebpf, "xdp_pass", namespace, devices)?;
        Ok(Self { _ebpf: ebpf })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_has_right_checksums() {
        let headers = Headers {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            source: Ipv4Addr::new(10, 0, 2, 69),
            destination: Ipv4Addr::new(10, 0, 2, 68),
        };
        let frame = headers.frame(64);
        // What is right sums up to -0, checksum included (RFC 1071).
        assert_eq!(Sum::ZERO.add_bytes(&frame[14..34]).checksum(), [0, 0]);
        let pseudo = Sum::ZERO.add_bytes(&frame[26..34]).add([0, 17]).add([frame[38], frame[39]]);
        assert_eq!(pseudo.add_bytes(&frame[34..]).checksum(), [0, 0]);
    }
}
