//! The cost of the programs without drivers and wires: nanoseconds a packet, and their size.
//!
//! The times are those of a fixed point, see [`fixed_point`]: a packet of each kind that its
//! program turns into itself. The sizes are what the kernel made of the programs, see [`size`].

mod fixed_point;
mod size;

use anyhow::Result;
use lab::state::State;
use serde::Serialize;

use self::{
    fixed_point::{FixedPoint, Kind, Program},
    size::Size,
};
use super::{
    setup::{Setup, progress},
    spread::{Spread, line},
};

/// The results.
#[derive(Debug, Serialize)]
pub(crate) struct Programs {
    packets: Vec<Cost>,
    /// `forward` alone, without the root that calls it.
    forward_ns: Spread,
    /// The root program and its tail call: what the whole costs more than `forward`, sample by
    /// sample.
    root_ns: Spread,
    sizes: Vec<Size>,
}

/// The cost of one kind of packet.
#[derive(Debug, Serialize)]
struct Cost {
    packet: Kind,
    /// From the root program on.
    ns: Spread,
}

/// The kind of packet that `forward` is also measured alone with.
const REFERENCE: Kind = Kind::Udp;

/// Measures.
pub(crate) fn measure(setup: &Setup) -> Result<Programs> {
    progress("programs");
    let measured = measure_in(&setup.state, if setup.quick() { 11 } else { 51 });
    progress("");
    measured
}

fn measure_in(state: &State, samples: usize) -> Result<Programs> {
    fixed_point::inside(state, |mut router| {
        let sizes = size::all(&mut router.dataplane)?;
        let mut of_packets = Kind::ALL.map(|kind| (kind, Vec::new()));
        let mut forward = Vec::new();
        let mut root = Vec::new();
        for _ in 0..samples {
            let sample = sample(&mut router)?;
            for ((kind, samples), ns) in of_packets.iter_mut().zip(sample.packets) {
                samples.push(ns);
                if *kind == REFERENCE {
                    root.push(ns - sample.forward);
                }
            }
            forward.push(sample.forward);
        }
        let costs = of_packets
            .iter()
            .map(|(packet, samples)| Ok(Cost { packet: *packet, ns: Spread::of(samples)? }))
            .collect::<Result<_>>()?;
        Ok(Programs { packets: costs, forward_ns: Spread::of(&forward)?, root_ns: Spread::of(&root)?, sizes })
    })
}

/// Nanoseconds a packet.
struct Sample {
    /// The costs of every kind, from the root program on.
    packets: [f64; Kind::ALL.len()],
    /// The cost of [`REFERENCE`] in `forward` alone.
    forward: f64,
}

/// Programs take turns call by call, so that a machine that is slower for a while is slower for all
/// of them.
fn sample(router: &mut FixedPoint) -> Result<Sample> {
    /// Calls of one sample.
    const CALLS: u32 = 500;
    let mut packets = [0; Kind::ALL.len()];
    let mut forward = 0;
    for _ in 0..CALLS {
        for (sum, kind) in packets.iter_mut().zip(Kind::ALL) {
            *sum += router.call(Program::Root, kind)?.as_nanos();
        }
        forward += router.call(Program::Forward, REFERENCE)?.as_nanos();
    }
    // The kernel reports whole nanoseconds, the mean of a call's runs; the mean over the calls has
    // a fraction.
    let mean = |sum: u128| sum as f64 / f64::from(CALLS);
    Ok(Sample { packets: packets.map(mean), forward: mean(forward) })
}

impl Programs {
    pub(crate) fn table(&self) -> String {
        let mut text = "\nThe cost of the programs for one packet (BPF_PROG_TEST_RUN, one warm flow, no driver), from the root program on:\n\n".to_owned();
        let costs = self.packets.iter().map(|cost| (cost.packet.describe(), cost.ns));
        let parts = [
            ("first line: the program forward alone", self.forward_ns),
            ("first line: the root program and its tail call", self.root_ns),
        ];
        for (name, spread) in costs.chain(parts) {
            let Spread { median, min, max } = spread;
            line(&mut text, format_args!("  {name:<56} {median:6.1} ns  ({min:.1} - {max:.1})"));
        }
        text.push_str(&size::table(&self.sizes));
        text
    }
}
