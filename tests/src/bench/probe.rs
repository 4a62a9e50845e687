//! Measures how long a packet takes through a router and back, by BPF programs of `labtools` at
//! both ends: no process is on the way, and so no scheduler but the one of the router's own CPU.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData},
    programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use etherparse::PacketBuilder;
use lab::{Namespace, wait};
use nix::net::if_::if_nametoindex;

use super::{
    frames::{Headers, PORT},
    histogram::{BUCKETS, Histogram},
    labtools::{self, End},
    traffic::HEAD,
};

/// The port that probes come from: none of the generator's.
const SOURCE_PORT: u16 = 5000;
/// The mark that tells a probe from other packets.
const MARK: [u8; 4] = *b"ping";
/// A probe that has not come back for so long is lost, and the next one is sent.
const PATIENCE: Duration = Duration::from_millis(50);
/// The interval of looks at the counters.
const INTERVAL: Duration = Duration::from_millis(5);

/// A probe, but for its time and its epoch: see `labtools/src/probe.rs`.
pub(crate) fn frame(headers: &Headers) -> Result<[u8; HEAD]> {
    let builder = PacketBuilder::ethernet2(headers.source_mac, headers.destination_mac)
        .ipv4(headers.source.octets(), headers.destination.octets(), 64)
        .udp(SOURCE_PORT, PORT);
    let mut payload = vec![0; HEAD - builder.size(0)];
    payload[..4].copy_from_slice(&MARK);
    // The complements of a time and of an epoch, both zero: the checksum is right for all others.
    payload[8..12].fill(0xff);
    payload[14..16].fill(0xff);
    let mut frame = Vec::with_capacity(HEAD);
    builder.write(&mut frame, &payload).context("cannot build a probe")?;
    frame.try_into().ok().context("a probe has another length")
}

/// Returns a loader of programs for probes like this one.
pub(crate) fn settings(probe: &[u8; HEAD]) -> EbpfLoader<'_> {
    const MARK_NUMBER: u32 = u32::from_be_bytes(MARK);
    const PORT_NUMBER: u32 = SOURCE_PORT as u32;
    let mut loader = EbpfLoader::new();
    loader
        .override_global("PROBE", probe, true)
        .override_global("PROBE_MARK", &MARK_NUMBER, true)
        .override_global("PROBE_PORT", &PORT_NUMBER, true);
    loader
}

/// The maps of the programs at the ends, as far as they are about probes.
pub(crate) struct ProbeMaps {
    epoch: Array<MapData, u32>,
    times: Array<MapData, u64>,
    probes: Array<MapData, [u64; 2]>,
    every: Array<MapData, u64>,
    turns: Array<MapData, [u64; 2]>,
}

impl ProbeMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            epoch: labtools::map(ebpf, "PROBE_EPOCH")?,
            times: labtools::map(ebpf, "PROBE_TIMES")?,
            probes: labtools::map(ebpf, "PROBES")?,
            every: labtools::map(ebpf, "PROBE_EVERY")?,
            turns: labtools::map(ebpf, "PROBE_TURNS")?,
        })
    }
}

/// Has probes sent, and reads how long they take.
pub(crate) struct Prober {
    /// Holds `ping`.
    ebpf: Ebpf,
    maps: ProbeMaps,
    frame: [u8; HEAD],
    namespace: Namespace,
    device: u32,
    epoch: u16,
}

/// The result of some probes.
#[derive(Clone, Debug)]
pub(crate) struct Probed {
    pub(crate) times: Histogram,
    /// Probes that did not come back in time.
    pub(crate) lost: u64,
}

impl Prober {
    /// Loads a prober for this end, with such headers.
    pub(crate) fn new(end: End<'_>, headers: &Headers, maps: ProbeMaps) -> Result<Self> {
        let frame = frame(headers)?;
        let mut ebpf = labtools::load_with(&mut settings(&frame))?;
        labtools::program(&mut ebpf, "ping")?;
        let device = end
            .namespace
            .inside(|| if_nametoindex(end.device))?
            .with_context(|| format!("there is no device {}", end.device))?;
        let namespace = Namespace::existing(end.namespace.name())?;
        Ok(Self { ebpf, maps, frame, namespace, device, epoch: 0 })
    }

    /// Has one in `every` packets of the generator, which sends meanwhile, be a probe, for so long.
    pub(crate) fn probe_among(&mut self, every: u64, window: Duration) -> Result<Probed> {
        /// More packets than there are.
        const NEVER: u64 = u64::MAX;
        self.next_epoch()?;
        let (times, back, sent) = (self.times()?, self.back()?, self.sent()?);
        self.set_every(every)?;
        thread::sleep(window);
        self.set_every(NEVER)?;
        let missing = || Ok::<_, anyhow::Error>((self.sent()? - sent).saturating_sub(self.back()? - back));
        // Probes that are not back by then are lost.
        let _late = wait::until("the last probes", PATIENCE, || {
            ensure!(missing()? == 0, "some are under way");
            Ok(())
        });
        let lost = missing()?;
        self.next_epoch()?;
        self.set_every(0)?;
        Ok(Probed { times: self.times()?.since(&times), lost })
    }

    fn set_every(&mut self, every: u64) -> Result<()> {
        self.maps.every.set(0, every, 0).context("cannot write PROBE_EVERY")
    }

    /// Returns the number of probes that the generator has made.
    fn sent(&self) -> Result<u64> {
        let [_since, sent] = self.maps.turns.get(&0, 0).context("cannot read PROBE_TURNS")?;
        Ok(sent)
    }

    /// Sends probes, one at a time, until `enough` have come back, or for so long.
    pub(crate) fn probe(&mut self, enough: u64, limit: Duration) -> Result<Probed> {
        let before = self.times()?;
        let enough = enough.saturating_add(before.samples());
        let start = Instant::now();
        let mut lost = 0;
        while start.elapsed() < limit && self.back()? < enough {
            self.ping()?;
            if self.watch(enough, start + limit)? {
                break;
            }
            lost += 1;
        }
        // Probes that are still under way do not count, and no other follows them.
        self.next_epoch()?;
        Ok(Probed { times: self.times()?.since(&before), lost })
    }

    /// Waits as long as probes come back: `false` if one did not.
    fn watch(&self, enough: u64, end: Instant) -> Result<bool> {
        let mut last = (self.back()?, Instant::now());
        loop {
            thread::sleep(INTERVAL);
            let (back, now) = (self.back()?, Instant::now());
            if back >= enough || now >= end {
                return Ok(true);
            }
            if back != last.0 {
                last = (back, now);
            } else if now - last.1 >= PATIENCE {
                return Ok(false);
            }
        }
    }

    /// Sends the first probe of an epoch.
    fn ping(&mut self) -> Result<()> {
        self.next_epoch()?;
        self.frame[54..56].copy_from_slice(&self.epoch.to_be_bytes());
        self.frame[56..58].copy_from_slice(&(!self.epoch).to_be_bytes());
        let program = self.ebpf.program("ping").context("labtools has no program ping")?;
        let program: &Xdp = program.try_into().context("ping is not an XDP program")?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let context = [0, HEAD as u32, 0, self.device, 0, 0].map(u32::to_ne_bytes);
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(context.as_flattened()),
            repeat: 1,
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::new()
        };
        // The device's index is one of its namespace.
        self.namespace
            .inside(|| program.test_run(options))?
            .context("the kernel does not send a live frame")?;
        Ok(())
    }

    fn next_epoch(&mut self) -> Result<()> {
        self.epoch = self.epoch.wrapping_add(1);
        self.maps.epoch.set(0, u32::from(self.epoch), 0).context("cannot write PROBE_EPOCH")
    }

    /// Returns the number of probes that have come back.
    fn back(&self) -> Result<u64> {
        let [counted, _late] = self.maps.probes.get(&0, 0).context("cannot read PROBES")?;
        Ok(counted)
    }

    fn times(&self) -> Result<Histogram> {
        let mut counts = [0; BUCKETS];
        for (count, read) in counts.iter_mut().zip(self.maps.times.iter()) {
            *count = read.context("cannot read PROBE_TIMES")?;
        }
        Ok(Histogram::of(counts))
    }
}

/// Sends a datagram to and fro between two sockets: the same way, with the two network stacks and
/// the scheduler on it.
pub(crate) fn between_sockets(
    [client, server]: [&std::net::UdpSocket; 2],
    limit: Duration,
) -> Result<Histogram> {
    let mut times = Histogram::new();
    let echoed = |datagram: &[u8]| -> Result<Duration> {
        let start = Instant::now();
        client.send(datagram).context("cannot send a datagram")?;
        let mut answer = [0; 64];
        let length = client.recv(&mut answer).context("a datagram did not come back")?;
        ensure!(answer[..length] == *datagram, "another datagram came back");
        Ok(start.elapsed())
    };
    thread::scope(|scope| {
        let echoing = scope.spawn(|| -> Result<()> {
            let mut datagram = [0; 64];
            loop {
                let (length, from) = server.recv_from(&mut datagram).context("no datagram came")?;
                server.send_to(&datagram[..length], from).context("cannot send a datagram back")?;
                // The shortest one says that it was the last.
                if length == 1 {
                    return Ok(());
                }
            }
        });
        let start = Instant::now();
        while start.elapsed() < limit {
            times.count(echoed(&[0; 18])?.as_nanos());
        }
        echoed(&[0])?;
        echoing.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    })?;
    Ok(times)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use router_common::checksum::Sum;

    use super::*;

    #[test]
    fn a_probes_checksum_is_right_at_all_times() {
        let headers = Headers {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            source: Ipv4Addr::new(10, 0, 2, 69),
            destination: Ipv4Addr::new(10, 0, 2, 68),
        };
        let mut probe = frame(&headers).expect("a probe");
        let intact = |probe: &[u8; HEAD]| {
            let pseudo = Sum::ZERO.add_bytes(&probe[26..34]).add([0, 17]).add([probe[38], probe[39]]);
            pseudo.add_bytes(&probe[34..]).checksum() == [0, 0]
        };
        assert!(intact(&probe));
        let time = 0x1234_5678_u32;
        probe[46..50].copy_from_slice(&time.to_be_bytes());
        probe[50..54].copy_from_slice(&(!time).to_be_bytes());
        assert!(intact(&probe));
    }
}
