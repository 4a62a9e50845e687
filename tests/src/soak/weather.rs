//! Bad weather: packets get lost, are overtaken, and come twice. A BPF program at every port of the
//! switch decides by chance; what others are to overtake goes to a side wire, whose other end is
//! here, and comes back a little later.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::PerCpuArray,
    programs::{SchedClassifier, TcAttachType},
};
use nix::net::if_::if_nametoindex;

use super::{place::Place, plan::Phases};
use crate::{namespace::Namespace, random::Random, wire::Wire};

/// Of a million packets at each port: how many are lost, held up, doubled. A packet passes two
/// ports on its way through the router.
const SHARES: [u32; 3] = [10_000, 10_000, 5_000];

/// For how long they are held up, in microseconds: from less than a packet takes to more than many
/// take.
const HOLD_UP: (u64, u64) = (200, 20_000);

/// The switch's ports.
const PORTS: [&str; 3] = ["clients", "router", "servers"];

/// The counts of the weather; see `Weather` in labtools.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Damage {
    pub(super) passed: u64,
    pub(super) lost: u64,
    pub(super) held_up: u64,
    pub(super) doubled: u64,
}

// SAFETY: numbers, without padding.
unsafe impl Pod for Damage {}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, lost, held_up, doubled } = self;
        write!(f, "{passed} packets passed a port, {lost} lost, {held_up} held up, {doubled} doubled")
    }
}

/// The weather, for as long as this lives.
pub(super) struct Weather {
    ebpf: Ebpf,
}

impl Weather {
    /// Begins at all ports.
    pub(super) fn begin(place: &Place) -> Result<Self> {
        let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/labtools"));
        let detour = place.vnet.inside(|| if_nametoindex("detour"))?.context("there is no detour")?;
        let mut ebpf = EbpfLoader::new()
            .override_global("WEATHER_SHARES", &SHARES, true)
            .override_global("DETOUR", &detour, true)
            .load(object)
            .context("cannot load the weather")?;
        let program = ebpf.program_mut("weather").context("labtools has no program weather")?;
        let program: &mut SchedClassifier =
            program.try_into().context("weather is another kind of program")?;
        program.load().context("the kernel refuses to load the program weather")?;
        for port in PORTS {
            place
                .vnet
                .inside(|| program.attach(port, TcAttachType::Ingress))?
                .with_context(|| format!("cannot put the weather on {port}"))?;
        }
        Ok(Self { ebpf })
    }

    /// Returns the counts so far.
    pub(super) fn damage(&self) -> Result<Damage> {
        let map = self.ebpf.map("WEATHER").context("labtools has no map WEATHER")?;
        let cpus = PerCpuArray::<_, Damage>::try_from(map)?.get(&0, 0).context("cannot read WEATHER")?;
        Ok(cpus.iter().fold(Damage::default(), |sum, cpu| Damage {
            passed: sum.passed + cpu.passed,
            lost: sum.lost + cpu.lost,
            held_up: sum.held_up + cpu.held_up,
            doubled: sum.doubled + cpu.doubled,
        }))
    }
}

/// Lets packets wait at the end of the detour.
pub(super) fn hold_up(vnet: &Namespace, seed: u64, phases: &Phases) -> Result<()> {
    /// The longest time between checks for the end of the run.
    const TURN: Duration = Duration::from_millis(100);
    let mut wire = Wire::open(vnet, "delay")?;
    let mut random = Random::with_seed(seed);
    let mut waiting: BinaryHeap<Reverse<(Instant, Vec<u8>)>> = BinaryHeap::new();
    while !phases.stopped() {
        let now = Instant::now();
        while let Some(frame) = wire.take()? {
            let wait = Duration::from_micros(random.u64(HOLD_UP.0..=HOLD_UP.1));
            waiting.push(Reverse((now + wait, frame.to_vec())));
        }
        while let Some(Reverse((due, _))) = waiting.peek()
            && *due <= now
            && let Some(Reverse((_, frame))) = waiting.pop()
        {
            wire.send(&frame)?;
        }
        let next = waiting.peek().map_or(TURN, |Reverse((due, _))| due.saturating_duration_since(now));
        // Whole milliseconds, and not none: a busy loop would take the CPU from the router.
        wire.wait(next.clamp(Duration::from_millis(1), TURN))?;
    }
    Ok(())
}
